"""Which upstream serves a model, under which name, and whether this client may use it.

Ranks, best first: the model is listed exactly in an upstream's `models`, or matches a glob there. Among upstreams of one
rank the configuration's order decides. A call that names no model goes to the first upstream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from balancer.errors import ProxyError
from balancer.model import Choice, Client

MOST_CHOICES = 4096
"""Answers that are remembered; models are named by callers."""


@dataclass(frozen=True, slots=True)
class Route:
    """What one upstream serves: globs of model names, globs of those switched off, and other names for models."""

    upstream: str
    kind: str
    models: tuple[str, ...] = ("*",)
    disabled: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)

    def rank(self, model: str) -> int | None:
        """0: listed exactly, 1: matches a glob, None: not served."""
        if model in self.models:
            return 0
        return 1 if _matches(model, self.models) else None


class Router:
    """The routes of one configuration, in its order."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = tuple(routes)
        self._chosen: dict[tuple[str | None, str, str], Choice] = {}

    def choose(self, model: str | None, kind: str, client: Client) -> Choice:
        """The upstream of this kind for a call. Raises ProxyError 404 (unknown), 400 (switched off), 403 (forbidden)."""
        asked = (model, kind, client.name)
        chosen = self._chosen.get(asked)
        if chosen is None:
            chosen = self._choose(model, kind, client)
            if len(self._chosen) >= MOST_CHOICES:
                self._chosen.clear()
            self._chosen[asked] = chosen
        return chosen

    def _choose(self, model: str | None, kind: str, client: Client) -> Choice:
        routes = [route for route in self._routes if route.kind == kind]
        if not routes:
            raise ProxyError(404, "unknown_url", f"No upstream of kind {kind} is configured.")
        if model is None:
            return Choice(routes[0].upstream, None)
        served = sorted(
            ((rank, order, route) for order, route in enumerate(routes) if (rank := _rank(route, model)) is not None),
            key=lambda found: found[:2],
        )
        if not served:
            raise ProxyError(404, "model_not_found", f"The model {model} is not served here.", param="model")
        active = [route for _, _, route in served if not _matches(route.aliases.get(model, model), route.disabled)]
        if not active:
            raise ProxyError(400, "model_inactive", f"The model {model} is switched off here.", param="model")
        allowed = [route for route in active if may_use(client, route.upstream, route.aliases.get(model, model))]
        if not allowed:
            raise ProxyError(403, "model_not_allowed", f"This client may not use the model {model}.", param="model")
        return Choice(allowed[0].upstream, allowed[0].aliases.get(model, model))


def _rank(route: Route, model: str) -> int | None:
    return 0 if model in route.aliases else route.rank(model)


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(glob == "*" or fnmatchcase(name, glob) for glob in globs)


def may_use(client: Client, upstream: str, model: str) -> bool:
    """Whether the client's allow-list covers a model: a glob with `/` is matched against upstream/model, else the bare name."""
    return any(
        glob == "*" or fnmatchcase(f"{upstream}/{model}" if "/" in glob else model, glob) for glob in client.models
    )
