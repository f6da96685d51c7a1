"""Reading: a YAML file and a `.env` file as plain trees of text, before anything is known about settings.

Scalars stay the text that was written (only an unquoted null becomes None), because the setting decides what it is: a token
`0123` is no octal number, a name `no` is not false, `off` switches off. So a value means the same whether it came from
the file, from `${NAME}` or from the environment.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from balancer.config.problems import ConfigError, Loc, place

Tree = dict[str, Any]
"""Nested dict, list, str and None."""

_NULL = "tag:yaml.org,2002:null"
_PLAIN_TAGS = re.compile(r"tag:yaml\.org,2002:.*")
_MERGE = "tag:yaml.org,2002:merge"


def read_yaml(text: str) -> Any:
    """The document as a tree. Raises ConfigError with line and column; never repeats what was written there."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise ConfigError([_syntax(error)]) from None
    except yaml.YAMLError:
        raise ConfigError(["the file holds a character that YAML does not allow"]) from None
    return None if node is None else _Builder().value(node, ())


def _syntax(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    # PyYAML quotes names from the file (an alias may be a token that starts with *); only its own words are kept.
    problem = re.sub(r" ?(['\"])(?!<)[^'\"]{2,}\1", "", error.problem or "")
    context = re.sub(r" ?(['\"])(?!<)[^'\"]{2,}\1", "", error.context or "")
    if isinstance(error, yaml.composer.ComposerError) and "alias" in problem:
        problem += "; a value that starts with * wants quotes"
    return f"{where}{problem}{f' ({context})' if context else ''}"


class _Builder:
    """Turns composed nodes into a tree, gathering what YAML allows and a configuration does not."""

    def __init__(self) -> None:
        self._open: list[yaml.Node] = []

    def value(self, node: yaml.Node, loc: Loc) -> Any:
        if any(node is outer for outer in self._open):
            raise ConfigError([f"{place(loc)}: an alias that holds itself"])
        if not _PLAIN_TAGS.fullmatch(node.tag):
            where = f"line {node.start_mark.line + 1}, column {node.start_mark.column + 1}"
            raise ConfigError([f"{where}: tags are not used here; a value that starts with ! wants quotes"])
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, loc)
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*loc, index)) for index, item in enumerate(node.value)]
            return None if node.tag == _NULL else node.value
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> Tree:
        merged: Tree = {}
        own: Tree = {}
        for key, item in node.value:
            if key.tag == _MERGE:
                bases = self.value(item, loc)
                for base in bases if isinstance(bases, list) else [bases]:
                    merged = {**base, **merged} if isinstance(base, dict) else merged
                continue
            name = self.value(key, loc)
            where = f"line {key.start_mark.line + 1}, column {key.start_mark.column + 1}"
            if not isinstance(name, str):
                raise ConfigError([f"{where}: the name of a setting must be text"])
            if name in own:
                raise ConfigError([f"{where}: {place(loc) or 'the file'} has this setting twice"])
            own[name] = self.value(item, (*loc, name))
        return {**merged, **own}


def read_env_file(path: Path) -> tuple[dict[str, str], list[str]]:
    """Values and problems of a `.env` file; an absent one is empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return {}, []
    except (OSError, UnicodeDecodeError) as error:
        return {}, [f"{path.name}: cannot be read: {reason(error)}"]
    found: dict[str, str] = {}
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = re.fullmatch(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_.]*)\s*=\s*(.*)", stripped)
        value = None if match is None else _env_value(match[2])
        if match is None or value is None:
            problems.append(f"{path.name} line {number}: must be NAME=VALUE, with quotes closed on the same line")
        else:
            found[match[1]] = value
    return found, problems


def _env_value(text: str) -> str | None:
    """The value as a shell would take it, without expansion; None where a quote is left open."""
    if text[:1] == "'":
        match = re.fullmatch(r"'([^']*)'\s*(?:#.*)?", text)
        return match[1] if match else None
    if text[:1] == '"':
        match = re.fullmatch(r'"((?:[^"\\]|\\.)*)"\s*(?:#.*)?', text)
        escapes = {"n": "\n", "t": "\t", "r": "\r"}
        return re.sub(r"\\(.)", lambda escape: escapes.get(escape[1], escape[1]), match[1]) if match else None
    return re.split(r"(?:^|\s)#", text, maxsplit=1)[0].strip()


def reason(error: Exception) -> str:
    """Why a file could not be read, in words for people."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    return type(error).__name__
