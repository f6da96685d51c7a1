"""`${NAME}` and `${NAME:-default}` in the values of the file.

Replaced in parsed scalars, so that what a variable holds is never read as YAML and never scanned again. Defaults nest
(`${A:-${B:-}}`) and are looked at only when needed; `:-` counts an empty variable as unset, as shells do. `$${` stands for
a plain `${`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from balancer.config.problems import Loc, place

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Verbatim(str):
    """Text from the environment: not looked at for `${}`."""

    __slots__ = ()


class _Malformed(Exception):
    pass


class _Unset(Exception):
    pass


def interpolate(tree: Any, environ: Mapping[str, str], problems: list[str], loc: Loc = ()) -> Any:
    """The tree with every `${}` replaced; what cannot be replaced becomes None and a problem.

    The places of those are told by `problems`; the caller decides what else a None there means.
    """
    if isinstance(tree, dict):
        return {name: interpolate(value, environ, problems, (*loc, name)) for name, value in tree.items()}
    if isinstance(tree, list):
        return [interpolate(value, environ, problems, (*loc, index)) for index, value in enumerate(tree)]
    if not isinstance(tree, str) or isinstance(tree, Verbatim) or "${" not in tree:
        return tree
    try:
        text, end = _expand(tree, 0, environ, nested=False, wanted=True)
    except _Unset as unset:
        name = unset.args[0]
        problems.append(
            f"{place(loc)}: the environment variable {name} is not set; set it, or write ${{{name}:-default}}"
        )
        return Failed(loc)
    except _Malformed:
        problems.append(
            f"{place(loc)}: write ${{NAME}} or ${{NAME:-default}}; a plain dollar and brace are written as $${{"
        )
        return Failed(loc)
    assert end == len(tree)
    wholly = tree.startswith("${") and _end_of_first(tree) == len(tree)
    return None if wholly and text in ("null", "~") else text


class Failed:
    """Stands where a value could not be made, so that its setting is not complained about twice."""

    def __init__(self, loc: Loc) -> None:
        self.loc = loc


def _end_of_first(text: str) -> int:
    return _variable(text, 0, {}, wanted=False)[1]


def _expand(text: str, at: int, environ: Mapping[str, str], *, nested: bool, wanted: bool) -> tuple[str, int]:
    """Literal text and variables up to the end, or up to the `}` that closes a default."""
    out = []
    while at < len(text):
        if text.startswith("$${", at):
            out.append("${")
            at += 3
        elif text.startswith("${", at):
            value, at = _variable(text, at, environ, wanted=wanted)
            out.append(value)
        elif nested and text[at] == "}":
            return "".join(out), at
        else:
            out.append(text[at])
            at += 1
    if nested:
        raise _Malformed
    return "".join(out), at


def _variable(text: str, at: int, environ: Mapping[str, str], *, wanted: bool) -> tuple[str, int]:
    """The variable that starts at `at`: its value and where it ends. Not `wanted`: only the end matters."""
    match = _NAME.match(text, at + 2)
    if match is None:
        raise _Malformed
    value, at = environ.get(match[0]), match.end()
    if text.startswith("}", at):
        if value is None and wanted:
            raise _Unset(match[0])
        return value or "", at + 1
    if not text.startswith(":-", at):
        raise _Malformed
    default, end = _expand(text, at + 2, environ, nested=True, wanted=wanted and not value)
    return value or default, end + 1
