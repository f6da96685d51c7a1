"""Which upstreams serve a model, under which name, and whether this client may use it.

What an upstream makes of a name, best first (an alias is the operator's own word and says it before all ranks):

    rank       an upstream has the model where
    LISTED     its `models` list the very name, or it is the name of one of its bots
    MATCHED    a glob of its `models` fits
    CATALOGUE  it has no `models`, and its own catalogue lists the name
    ANY        it has neither `models` nor a catalogue. One whose catalogue could not be had yet counts as without: an
               upstream that is down must not turn its models into unknown ones

Two ways to ask. `choose` serves a dialect in which clients write bare names and cannot write anything else (Gemini's paths):
all upstreams of the best rank, in the configuration's order, no catalogue asked; without a model those where the client may use
any, else the first. `resolve` serves everybody else and takes `provider/model` too: a bare name that several upstreams of the
best rank have is ambiguous, unless it is an alias: then they are tried in the configuration's order. Neither looks at what is up:
what a name means does not change with the weather.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from balancer.errors import ProxyError
from balancer.model import Choice, Client
from balancer.routing.catalogue import NO_CATALOGUES, Catalogues, Listing, Unsettled

Listings = Mapping[str, Listing | None]
"""What upstreams list themselves; None: that one has no catalogue. Those that are not in it have not been asked."""

MOST_CHOICES = 4096
"""Answers that are remembered; models are named by callers."""

_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")
_GLOB_LETTERS = frozenset("*?[")


class Rank(enum.IntEnum):
    """How surely an upstream has a model; the table above."""

    LISTED = 0
    MATCHED = 1
    CATALOGUE = 2
    ANY = 3


@dataclass(frozen=True, slots=True)
class Route:
    """What one upstream serves: the dialects its kind speaks, globs of model names (None: none are configured), names of its
    bots, globs of what is switched off, and other names for models.
    """

    upstream: str
    kind: str
    dialects: frozenset[str]
    models: tuple[str, ...] | None = None
    bots: tuple[str, ...] = ()
    disabled: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)

    def target(self, name: str) -> Choice:
        """The upstream with the name that it knows the model by."""
        return Choice(self.upstream, self.aliases.get(name, name))

    def rank(self, name: str, listing: Listing | None) -> Rank | None:
        """How surely it has a model, None: it has not. `listing`: its own catalogue, None where there is none."""
        if name in self.bots or (self.models is not None and name in self.models):
            return Rank.LISTED
        if self.models is not None:
            return Rank.MATCHED if _matches(name, self.models) else None
        if listing is None:
            return Rank.ANY
        return Rank.CATALOGUE if name in listing else None

    def needs_catalogue(self, name: str) -> bool:
        """Whether its configuration alone cannot say if it has the model."""
        return self.models is None and name not in self.bots and name not in self.aliases

    def switched_off(self, name: str) -> bool:
        return _matches(self.aliases.get(name, name), self.disabled)

    def open_to(self, name: str, client: Client) -> bool:
        return may_use(client, self.upstream, self.aliases.get(name, name))


class Router:
    """The routes of one configuration, in its order."""

    def __init__(self, routes: Sequence[Route], catalogues: Catalogues = NO_CATALOGUES, started: float = 0.0) -> None:
        """`started`: POSIX seconds since when this process serves, shown as the time of origin of configured models."""
        self._routes = tuple(routes)
        self._catalogues = catalogues
        self._started = int(started)
        self._chosen: dict[tuple[str | None, str, str], tuple[Choice, ...]] = {}
        self._shown: dict[tuple[str, str], tuple[Listings, list[dict[str, Any]]]] = {}
        """By dialect and client: what was shown last, and the catalogues that it was made of."""
        self._resolved: dict[tuple[str, str, str], tuple[tuple[Choice, ...], Listings]] = {}
        """By name, dialect and client, with the catalogues that decided; all are forgotten when one has changed."""

    # Bare names of a dialect that knows no others

    def choose(self, model: str | None, dialect: str, client: Client) -> tuple[Choice, ...]:
        """The upstreams that may be asked, best first. Raises ProxyError 404 (unknown), 400 (switched off), 403 (forbidden)."""
        asked = (model, dialect, client.name)
        chosen = self._chosen.get(asked)
        if chosen is None:
            chosen = _kept(self._chosen, asked, self._choose(model, dialect, client))
        return chosen

    def _choose(self, model: str | None, dialect: str, client: Client) -> tuple[Choice, ...]:
        routes = self._speaking(dialect)
        if not routes:
            raise ProxyError(404, "unknown_url", f"No upstream that speaks the {dialect} dialect is configured.")
        if model is None:
            usable = [route for route in routes if may_use_some(client, route.upstream)]
            return tuple(Choice(route.upstream, None) for route in usable or routes[:1])
        served = [(rank, route) for route in routes if (rank := _rank(route, model)) is not None]
        if not served:
            raise ProxyError(404, "model_not_found", f"The model {model} is not served here.", param="model")
        active = [(rank, route) for rank, route in served if not route.switched_off(model)]
        if not active:
            raise ProxyError(400, "model_inactive", f"The model {model} is switched off here.", param="model")
        allowed = [(rank, route) for rank, route in active if route.open_to(model, client)]
        if not allowed:
            raise ProxyError(403, "model_not_allowed", f"This client may not use the model {model}.", param="model")
        best = min(rank for rank, _ in allowed)
        return tuple(route.target(model) for rank, route in allowed if rank is best)

    # provider/model, bare names and aliases

    async def resolve(self, name: str, client: Client, dialect: str = "openai") -> tuple[Choice, ...]:
        """The upstreams that `name` means, best first: one, or several where it is an alias of several.

        Raises ProxyError: 404 `model_not_found`, 400 `model_inactive`, 403 `model_not_allowed`, 400 `model_ambiguous`, and
        400 `missing_required_parameter` for a blank name. Waits for a catalogue only where nothing else decides.
        """
        asked = (name, dialect, client.name)
        known = self._resolved.get(asked)
        if known is not None:
            if all(self._catalogues.kept(each) is listing for each, listing in known[1].items()):
                return known[0]
            self._resolved.clear()
        if not name.strip():
            raise missing_model()
        routes = self._speaking(dialect)
        listings: dict[str, Listing | None] = {}
        while not isinstance(found := _find(routes, name, listings), _Found):
            listings |= await self._listings(found)
        return _kept(self._resolved, asked, (_settled(found, client), listings))[0]

    async def _listings(self, routes: Iterable[Route]) -> dict[str, Listing | None]:
        """What these upstreams list themselves, by name. Those to be asked are asked all at once, since one may be slow."""
        listings: dict[str, Listing | None] = {}
        due: list[str] = []
        for route in routes:
            kept = self._catalogues.kept(route.upstream)
            if isinstance(kept, Unsettled):
                due.append(route.upstream)
            else:
                listings[route.upstream] = kept
        if due:
            listings.update(zip(due, await asyncio.gather(*map(self._catalogues.listing, due)), strict=True))
        return listings

    def default_choice(self, client: Client, default_upstream: str | None) -> Choice:
        """Where a call goes that names neither a model nor a resource: the default, else the first of kind openai, as far as the
        client may use something there. Raises ProxyError 400 `missing_required_parameter` where there is none.
        """
        usable = [route for route in self._routes if may_use_some(client, route.upstream)]
        for route in usable:
            if route.upstream == default_upstream:
                return Choice(route.upstream, None)
        for route in usable:
            if route.kind == "openai":
                return Choice(route.upstream, None)
        raise missing_model()

    # What there is

    async def models_for(self, client: Client, dialect: str = "openai") -> list[dict[str, Any]]:
        """The models that the client may use, as `/v1/models` shows them: qualified, and bare where the bare name means one.

        Order: the configuration's, then by id. Never fails: an upstream without a list shows what is configured for it.
        """
        routes = self._speaking(dialect)
        listings = await self._listings(route for route in routes if _shows_catalogue(route))
        of, known = self._shown.get((dialect, client.name), ({}, None))
        if known is None or any(of[name] is not listing for name, listing in listings.items()):
            known = self._show(routes, listings, client)
            self._shown[dialect, client.name] = listings, known
        return list(known)

    def _show(self, routes: Sequence[Route], listings: Listings, client: Client) -> list[dict[str, Any]]:
        shown: list[dict[str, Any]] = []
        for route in routes:
            entries: dict[str, dict[str, Any]] = {}
            for name, members in self._own(route, listings.get(route.upstream)):
                if route.switched_off(name) or not route.open_to(name, client):
                    continue
                for id_ in _ids(routes, route, name, client, listings):
                    entries[id_] = {**members, "id": id_}
            shown += [entries[id_] for id_ in sorted(entries)]
        return shown

    def _own(self, route: Route, listing: Listing | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Each model of one upstream by its bare name: in its own words where its catalogue has it, else as configured."""
        listing = listing or {}
        configured = [name for name in route.models or () if not _GLOB_LETTERS.intersection(name)]
        for name in dict.fromkeys((*configured, *route.bots, *route.aliases)):
            yield (
                name,
                listing.get(name)
                or {"id": name, "object": "model", "created": self._started, "owned_by": route.upstream},
            )
        for name, members in listing.items():
            if route.rank(name, listing) is not None:
                yield name, members

    def _speaking(self, dialect: str) -> tuple[Route, ...]:
        return tuple(route for route in self._routes if dialect in route.dialects)


@dataclass(frozen=True, slots=True)
class _Found:
    """Who has a model of this bare name. `ordered`: it is an alias of all of them, to be tried in turn."""

    name: str
    routes: Sequence[Route]
    ordered: bool = False


def _find(routes: Sequence[Route], asked: str, listings: Listings) -> _Found | list[Route]:
    """Who has what was asked for, before anybody is dropped; or the upstreams whose catalogues must be known first."""
    provider, _, rest = asked.partition("/")
    named = next((route for route in routes if route.upstream == provider), None) if rest else None
    if named is not None:
        if named.needs_catalogue(rest) and named.upstream not in listings:
            return [named]
        if rest in named.aliases or named.rank(rest, listings.get(named.upstream)) is not None:
            return _Found(rest, [named])
    name = asked.removeprefix("models/")
    aliased = [route for route in routes if name in route.aliases]
    if aliased:
        return _Found(name, aliased, ordered=True)
    ranked = [(rank, route) for route in routes if (rank := route.rank(name, listings.get(route.upstream))) is not None]
    best = min((rank for rank, _ in ranked), default=Rank.ANY)
    if best >= Rank.CATALOGUE:
        unknown = [route for route in routes if route.needs_catalogue(name) and route.upstream not in listings]
        if unknown:
            return unknown
    return _Found(name, [route for rank, route in ranked if rank is best])


def _settled(found: _Found, client: Client) -> tuple[Choice, ...]:
    """The rules that drop candidates. Raises ProxyError."""
    if not found.routes:
        raise ProxyError(404, "model_not_found", f"模型 {_shown(found)} 不存在", param="model")
    active = [route for route in found.routes if not route.switched_off(found.name)]
    if not active:
        raise ProxyError(400, "model_inactive", f"模型 {_shown(found)} 未激活", param="model")
    allowed = [route for route in active if route.open_to(found.name, client)]
    if not allowed:
        raise ProxyError(403, "model_not_allowed", f"API Key 不允许访问模型 {_shown(found)}", param="model")
    if len(allowed) > 1 and not found.ordered:
        several = "、".join(f"{route.upstream}/{found.name}" for route in allowed)
        message = f"模型 {found.name} 不唯一，请使用 provider/model：{several}"
        raise ProxyError(400, "model_ambiguous", message, param="model")
    return tuple(route.target(found.name) for route in allowed)


def _shown(found: _Found) -> str:
    """P/M as the texts show it: M alone where no upstream has it."""
    return f"{found.routes[0].upstream}/{found.name}" if found.routes else found.name


def _ids(routes: Sequence[Route], route: Route, name: str, client: Client, listings: Listings) -> Iterator[str]:
    """The ids under which one upstream's model is shown."""
    yield f"{route.upstream}/{name}"
    found = _find(routes, name, listings)
    assert isinstance(found, _Found)  # every catalogue that decides is in `listings`
    with contextlib.suppress(ProxyError):
        if _settled(found, client)[0] == route.target(name):
            yield name


def _shows_catalogue(route: Route) -> bool:
    return route.models is None or any(_GLOB_LETTERS.intersection(glob) for glob in route.models)


def _rank(route: Route, model: str) -> Rank | None:
    """Where no catalogue is asked and an alias is one way of listing a name."""
    return Rank.LISTED if model in route.aliases else route.rank(model, None)


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(glob == "*" or fnmatchcase(name, glob) for glob in globs)


def may_use(client: Client, upstream: str, model: str) -> bool:
    """Whether the client's allow-list covers a model: a glob with `/` is matched against upstream/model, else the bare name."""
    return any(
        glob == "*" or fnmatchcase(f"{upstream}/{model}" if "/" in glob else model, glob) for glob in client.models
    )


def may_use_some(client: Client, upstream: str) -> bool:
    """Whether the allow-list may cover any model there."""
    return any("/" not in glob or fnmatchcase(upstream, glob.partition("/")[0]) for glob in client.models)


def missing_model() -> ProxyError:
    """No model is named and none is bound."""
    message = "缺少 model：请提供 'provider/model' 或 'model'，或先用 /auth/bind-model 绑定模型"
    return ProxyError(400, "missing_required_parameter", message, param="model")


def _kept(memory: dict[_Asked, _Answer], asked: _Asked, answer: _Answer) -> _Answer:
    if len(memory) >= MOST_CHOICES:
        memory.clear()
    memory[asked] = answer
    return answer
