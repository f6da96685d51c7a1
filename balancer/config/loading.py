"""From file and environment to settings: read, overlay, complete, interpolate, check, resolve.

Every mistake is reported in one go. What fails is taken out of the tree and the rest is checked again, so that one mistake
hides no other; checks that span several settings are skipped where one of those failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from balancer.config.checks import cross_checks
from balancer.config.interpolation import Failed, interpolate
from balancer.config.models import Settings, Token
from balancer.config.overlay import all_places, model_at, overlay
from balancer.config.problems import (
    ConfigError,
    Loc,
    did_you_mean,
    place,
    sentence,
    shown_name,
)
from balancer.config.section import Section
from balancer.config.tree import Tree, read_env_file, read_yaml, reason
from balancer.config.upstream import AVAILABLE_KINDS, BASE_URLS, KINDS, KeyEntry
from balancer.config.values import listed

_ROUNDS = 20
"""How often what is left is looked at again. Each round takes out what the one before found, so few are needed."""
DEFAULT_FILE = Path("config.yaml")
_USUAL_KEYS = {
    "gemini": "${GEMINI_API_KEYS:-${GEMINI_API_KEY:-${GOOGLE_API_KEY:-}}}",
    "openai": "${OPENAI_API_KEYS:-${OPENAI_API_KEY:-}}",
}
"""Where the keys of the upstream stand that goes by its provider's name."""
_PLACED_DEFAULTS: Tree = {
    "server": {"host": "${SERVER_HOST:-127.0.0.1}", "port": "${SERVER_PORT:-8000}"},
    "auth": {"tokens": "${BALANCER_TOKENS:-}"},
    "database": {"url": "sqlite:///balancer.db"},
}


def find_config(path: Path | None) -> Path | None:
    """The file to load: the one asked for, else ./config.yaml where there is one, else none (built-in defaults)."""
    if path is not None:
        return path
    return DEFAULT_FILE if DEFAULT_FILE.is_file() else None


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of a file (None: ./config.yaml, else the defaults) under an environment. Raises ConfigError."""
    found = find_config(path)
    if found is None:
        return parse("", environ, Path())
    try:
        text = found.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"the file cannot be read: {reason(error)}"]) from None
    return parse(text, environ, found.parent)


def parse(text: str, environ: Mapping[str, str], folder: Path | None = None) -> Settings:
    """The settings of a YAML text. Raises ConfigError.

    `folder` is where its `.env` and the files that it names are; None: no `.env`, and the working directory.
    """
    values, problems = ({}, []) if folder is None else read_env_file(folder / ".env")
    environ = {**values, **environ}
    read = read_yaml(text)
    if read is None:
        read = {}
    if not isinstance(read, dict):
        raise ConfigError([*problems, "the file must be a mapping of settings"])
    return _Loading(read, environ, folder or Path(), problems).settings()


class _Loading:
    """One pass over one configuration."""

    def __init__(self, tree: Tree, environ: Mapping[str, str], folder: Path, problems: list[str]) -> None:
        self.problems = problems
        self._environ = environ
        self._folder = folder
        self._failed: set[Loc] = set()
        if tree.get("upstreams") is None:
            tree["upstreams"] = {"gemini": {}}
        self._origins = overlay(tree, environ, problems)
        _complete(tree)
        self._tree: Tree = interpolate(tree, environ, problems)
        for loc in list(_failures(self._tree)):
            self._take_out(loc)

    def settings(self) -> Settings:
        _complete_upstreams(self._tree)
        self._drop_unavailable_kinds()
        settings = self._validate()
        for name, upstream in settings.upstreams.items():
            upstream.resolve(name, self._folder, self._environ, partial(self._report_in, name))
        for loc, needs, text in cross_checks(settings):
            if not any(self._has_failed(need) for need in needs):
                self._report(loc, text)
        if self.problems:
            raise ConfigError(self.problems)
        return settings

    def _report(self, loc: Loc, text: str) -> None:
        origin = next((self._origins[loc[:end]] for end in range(len(loc), 0, -1) if loc[:end] in self._origins), None)
        self.problems.append(f"{place(loc)}{f' ({origin})' if origin else ''}: {text}")

    def _report_in(self, upstream: str, setting: Loc, text: str) -> None:
        self._report(("upstreams", upstream, *setting), text)

    def _has_failed(self, loc: Loc) -> bool:
        """Something at, above or below the place was wrong."""
        return any(failed[: len(loc)] == loc or loc[: len(failed)] == failed for failed in self._failed)

    def _take_out(self, loc: Loc) -> None:
        self._failed.add(loc)
        _prune(self._tree, loc)

    def _drop_unavailable_kinds(self) -> None:
        """An upstream of a kind that is not built has settings of its own; nothing else can be said about it."""
        upstreams = self._tree.get("upstreams")
        for name, upstream in list(upstreams.items()) if isinstance(upstreams, dict) else ():
            kind = upstream.get("kind") if isinstance(upstream, dict) else None
            if kind in KINDS and kind not in AVAILABLE_KINDS:
                self._report(("upstreams", name, "kind"), f"kind {kind} is not available in this version")
                self._take_out(("upstreams", name))

    def _validate(self) -> Settings:
        for _ in range(_ROUNDS):
            _complete_upstreams(self._tree)
            try:
                return Settings.model_validate(self._tree, context={"folder": self._folder})
            except ValidationError as error:
                wrong = [self._told(found) for found in error.errors(include_url=False)]
            for loc in set(wrong):
                self._take_out(loc)
        raise ConfigError(self.problems)

    def _told(self, error: Any) -> Loc:
        """Reports one pydantic error; returns the place to take out before looking again."""
        loc = _as_written(self._tree, error["loc"])
        if error["type"] == "extra_forbidden":
            self._report(*_unknown(loc, error["loc"]))
        elif not (error["type"] == "missing" and loc in self._failed):
            member = f"{error['loc'][-1]} " if error["type"] == "missing" and loc != error["loc"] else ""
            self._report(loc, member + sentence(error))
        return loc


def _failures(tree: Any) -> Iterator[Loc]:
    if isinstance(tree, Failed):
        yield tree.loc
    elif isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _failures(value)


def _unknown(written: Loc, loc: Loc) -> tuple[Loc, str]:
    name = str(loc[-1])
    if shown_name(name) is None:
        return written[:-1], "has an unknown setting (its name is not repeated here, in case it is a secret)"
    model = model_at(loc[:-1])
    hint = did_you_mean(name, model.model_fields if model else ())
    if not hint:
        elsewhere = [known for known in all_places() if known.rpartition(".")[2] == name and "*" not in known]
        hint = f" (did you mean {elsewhere[0]}?)" if elsewhere else ""
    return written, f"unknown setting{hint}" if written == loc else f"holds the unknown setting {name}{hint}"


def _as_written(tree: Any, loc: Loc) -> Loc:
    """The place as the file has it: pydantic also names what a validator made of a text, which stands nowhere."""
    kept: list[int | str] = []
    node = tree
    for step in loc:
        if isinstance(node, dict):
            node = node.get(str(step))
        elif isinstance(step, str):
            continue
        else:
            node = node[step] if isinstance(node, list) and step < len(node) else ""
        kept.append(step)
    return tuple(kept)


def _prune(tree: Tree, loc: Loc) -> None:
    """Takes the place out; where it stands nowhere (it is missing, or part of a text), what is above it.

    In a list of keys or tokens a stand-in is left behind: the places of the neighbours stay true. Other lists go whole.
    """
    parent: Any = {}
    node: Any = tree
    name: int | str = ""
    for step in loc:
        stand_in = _STAND_INS.get(name) if isinstance(step, int) else None
        if stand_in is not None and isinstance(step, int):
            parent[name] = entries = _pieces(node)
            if isinstance(entries, list) and step < len(entries):
                entries[step] = stand_in(step)
                return
        if not isinstance(node, dict) or step not in node:
            break
        parent, name, node = node, step, node[step]
    parent.pop(name, None)


def _pieces(written: Any) -> Any:
    try:
        return listed(written)
    except ValueError:
        return written


_STAND_INS: dict[int | str, Callable[[int], Section]] = {
    "keys": lambda index: KeyEntry.model_construct(key=SecretStr(f"\0{index}")),
    "tokens": lambda index: Token.model_construct(name=f"\0{index}", token=SecretStr(f"\0{index}")),
}


def _complete(tree: Tree) -> None:
    """Puts the defaults in that look at the environment, or at the file's folder; the models know the rest."""
    for section, defaults in _PLACED_DEFAULTS.items():
        if tree.get(section) is None:
            tree[section] = {}
        group = tree[section]
        for name, value in defaults.items() if isinstance(group, dict) else ():
            if group.get(name) is None:
                group[name] = value
    # Only for an upstream that goes by the provider's name: another one must not be sent a provider's keys by accident.
    upstreams = tree["upstreams"]
    for name, keys in _USUAL_KEYS.items() if isinstance(upstreams, dict) else ():
        if name not in upstreams:
            continue
        upstream = upstreams[name] = {} if upstreams[name] is None else upstreams[name]
        if not isinstance(upstream, dict) or upstream.get("kind", name) not in (None, name):
            continue
        if upstream.get("keys") is None and upstream.get("keys_file") is None:
            upstream["keys"] = keys


def _complete_upstreams(tree: Tree) -> None:
    """A kind that the name tells, and the address of the kind.

    Where the kind is missing too, any address will do: one complaint is enough.
    """
    upstreams: Any = tree.get("upstreams")
    for name, settings in list(upstreams.items()) if isinstance(upstreams, dict) else ():
        upstream = {} if settings is None else settings
        if not isinstance(upstream, dict):
            continue
        upstreams[name] = upstream
        if upstream.get("kind") is None:
            upstream["kind"] = name if name in KINDS else None
        if upstream["kind"] is None:
            del upstream["kind"]
        kind = str(upstream.get("kind"))
        if upstream.get("base_url") is None:
            upstream.pop("base_url", None)
            if kind in BASE_URLS or kind not in AVAILABLE_KINDS:
                upstream["base_url"] = BASE_URLS.get(kind, "http://unknown.invalid")
