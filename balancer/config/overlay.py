"""Settings from the environment: `BALANCER_SERVER__PORT=9000` over what the file says.

Only names with `__` are settings; `BALANCER_TOKENS`, `BALANCER_URL` and the like belong to others (the file's `${}`, the
command line, or a container platform's service links).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from balancer.config.interpolation import Verbatim
from balancer.config.models import Settings
from balancer.config.problems import Loc, did_you_mean
from balancer.config.tree import Tree
from balancer.config.values import flow

PREFIX = "BALANCER_"


def overlay(tree: Tree, environ: Mapping[str, str], problems: list[str]) -> dict[Loc, str]:
    """Puts the settings of the environment into the tree. Returns which variable each place came from."""
    origins: dict[Loc, str] = {}
    kinds = {name for name in environ if name.startswith(f"{PREFIX}UPSTREAMS__") and name.endswith("__KIND")}
    for variable in sorted(environ, key=lambda name: (name not in kinds, name.count("__"), name)):
        if not variable.startswith(PREFIX) or "__" not in variable or variable != variable.upper():
            continue
        steps = variable.removeprefix(PREFIX).lower().split("__")
        loc = _locate(steps, tree, creating=variable in kinds)
        if isinstance(loc, str):
            problems.append(f"{variable}: {loc}")
            continue
        if _put(tree, loc, _verbatim(environ[variable], group=model_at(loc) is not None)):
            origins[loc] = variable
    return origins


def _locate(steps: list[str], tree: Tree, *, creating: bool) -> Loc | str:
    """The place that the steps name, or what is wrong with them."""
    model: type[BaseModel] | None = Settings
    loc: Loc = ()
    rest = list(steps)
    while rest:
        step = rest.pop(0)
        if loc == ("upstreams",):
            name = _upstream(step, tree, creating=creating)
            if name is None:
                return f"there is no upstream {step}{did_you_mean(step, tree['upstreams'])}; a new one needs its kind"
            loc = (*loc, name)
            model = model_at(loc)
            continue
        if model is None or step not in model.model_fields:
            known = [] if model is None else list(model.model_fields)
            return f"unknown setting{did_you_mean(step, known)}"
        loc = (*loc, step)
        model = model_at(loc)
    return loc if loc else "unknown setting"


def _upstream(step: str, tree: Tree, *, creating: bool) -> str | None:
    """An upstream's name as the file spells it; variables have neither small letters nor hyphens."""
    upstreams = tree.setdefault("upstreams", {})
    for name in upstreams if isinstance(upstreams, dict) else ():
        if name.lower().replace("-", "_").replace(".", "_") == step:
            return str(name)
    return step if creating else None


def _verbatim(text: str, *, group: bool) -> Any:
    """The value as a tree; a whole group of settings is given as JSON. What is no JSON is reported when it is checked."""
    if not group or not text.strip().startswith("{"):
        return Verbatim(text)
    try:
        return _leaves(flow(text))
    except ValueError:
        return Verbatim(text)


def _leaves(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _leaves(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_leaves(value) for value in tree]
    return Verbatim(tree) if isinstance(tree, str) else tree


def _put(tree: Tree, loc: Loc, value: Any) -> bool:
    """False where something else than a group of settings stands above the place: that is reported when it is checked."""
    node: Any = tree
    for step in loc[:-1]:
        if node.get(step) is None:
            node[step] = {}
        node = node[step]
        if not isinstance(node, dict):
            return False
    node[loc[-1]] = value
    return True


def model_at(loc: Loc) -> type[BaseModel] | None:
    """The model of the group of settings that stands there; None for a single value."""
    model: type[BaseModel] | None = Settings
    many = False
    for step in loc:
        if many:
            many = False
        elif model is not None and step in model.model_fields:
            annotation = model.model_fields[str(step)].annotation
            model = _model_in(annotation)
            many = model is not None and annotation is not model
        else:
            return None
    return None if many else model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)


def all_places(model: type[BaseModel] = Settings, above: str = "") -> Iterator[str]:
    """Every setting by its full name, upstreams and list entries with `*` for their name or position."""
    for name, field in model.model_fields.items():
        here = f"{above}{name}"
        inner = _model_in(field.annotation)
        listed = inner is not None and field.annotation is not inner
        yield here
        if inner is not None:
            yield from all_places(inner, f"{here}.*." if listed else f"{here}.")
