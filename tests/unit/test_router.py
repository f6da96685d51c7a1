"""Which upstreams a model goes to, under which name, and who may use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from balancer.errors import ProxyError
from balancer.model import ANONYMOUS, Choice, Client
from balancer.routing.catalogue import Listing, Unsettled
from balancer.routing.router import Route, Router

GOOGLE = frozenset({"gemini", "openai"})
OPENAI = frozenset({"openai"})


def google(upstream: str, models: tuple[str, ...] | None = None, **more: Any) -> Route:
    return Route(upstream, "gemini", GOOGLE, models, **more)


def openai(upstream: str, models: tuple[str, ...] | None = None, **more: Any) -> Route:
    return Route(upstream, "openai", OPENAI, models, **more)


@dataclass
class Listed:
    """Catalogues that are there at once; what was asked for is noted."""

    ids: Mapping[str, Sequence[str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def kept(self, upstream: str) -> Unsettled:
        return Unsettled.DUE

    async def listing(self, upstream: str) -> Listing | None:
        self.asked.append(upstream)
        if upstream not in self.ids:
            return None
        return {id_: {"id": id_, "object": "model", "owned_by": "them", "extra": 1} for id_ in self.ids[upstream]}


# Bare names: `choose` -------------------------------------------------------------------------------------------------

EXACT = google("exact", ("gemini-2.5-pro", "gemini-2.5-flash"), aliases={"fast": "gemini-2.5-flash"})
GLOB = google("glob", ("gemini-*",), disabled=("gemini-1.*", "*-exp"))
ANY = google("any", aliases={"gemini-2.5-pro": "own-pro", "old": "gemini-1.5-pro"}, disabled=("switched-off",))
OTHER = openai("other", ("gemini-2.5-pro",))
ROUTES = (ANY, GLOB, EXACT, OTHER)

CHOICES: dict[str, tuple[tuple[Route, ...], str | None, str, tuple[Choice, ...]]] = {
    "a listed name before a glob": ((GLOB, EXACT), "gemini-2.5-pro", "gemini", (Choice("exact", "gemini-2.5-pro"),)),
    "a glob before an upstream that lists nothing": ((ANY, GLOB), "gemini-3", "gemini", (Choice("glob", "gemini-3"),)),
    "an upstream that lists nothing has any": ((ANY, GLOB), "other", "gemini", (Choice("any", "other"),)),
    "all of one rank, in the order of the file": (
        (ANY, GLOB, google("glob2", ("*-3",))),
        "gemini-3",
        "gemini",
        (Choice("glob", "gemini-3"), Choice("glob2", "gemini-3")),
    ),
    "an alias counts as listed": (
        (EXACT, GLOB, ANY),
        "gemini-2.5-pro",
        "gemini",
        (Choice("exact", "gemini-2.5-pro"), Choice("any", "own-pro")),
    ),
    "an alias of the second": ((GLOB, EXACT), "fast", "gemini", (Choice("exact", "gemini-2.5-flash"),)),
    "no model": (ROUTES, None, "gemini", (Choice("any", None), Choice("glob", None), Choice("exact", None))),
    "no model, another dialect": ((OTHER,), None, "openai", (Choice("other", None),)),
    "the dialect before the rank": ((GLOB, OTHER), "gemini-2.5-pro", "gemini", (Choice("glob", "gemini-2.5-pro"),)),
    "switched off in one": ((GLOB, ANY), "gemini-1.5-pro", "gemini", (Choice("any", "gemini-1.5-pro"),)),
    "slashes in a name": ((GLOB, ANY), "deepseek/v3", "gemini", (Choice("any", "deepseek/v3"),)),
    "case counts": ((EXACT, ANY), "Gemini-2.5-pro", "gemini", (Choice("any", "Gemini-2.5-pro"),)),
    "letters of globs in a name": ((EXACT, ANY), "gemini-[2]*?", "gemini", (Choice("any", "gemini-[2]*?"),)),
}


@pytest.mark.parametrize("case", CHOICES)
def test_a_model_finds_its_upstreams(case: str) -> None:
    routes, model, dialect, expected = CHOICES[case]
    router = Router(routes)
    assert router.choose(model, dialect, ANONYMOUS) == expected
    assert router.choose(model, dialect, ANONYMOUS) == expected  # as it was remembered


REFUSALS: dict[str, tuple[tuple[Route, ...], str | None, str, int, str]] = {
    "no upstream of the dialect": ((OTHER,), "m", "gemini", 404, "unknown_url"),
    "no upstream of the dialect, no model": ((OTHER,), None, "gemini", 404, "unknown_url"),
    "no upstream at all": ((), None, "gemini", 404, "unknown_url"),
    "a name that nobody lists": ((EXACT, GLOB), "other", "gemini", 404, "model_not_found"),
    "an empty name": ((EXACT, GLOB), "", "gemini", 404, "model_not_found"),
    "switched off": ((EXACT, GLOB), "gemini-1.5-pro", "gemini", 400, "model_inactive"),
    "switched off by its end": ((GLOB,), "gemini-3-exp", "gemini", 400, "model_inactive"),
    "an alias of what is switched off": (
        (google("a", disabled=("gemini-1.*",), aliases={"old": "gemini-1.5"}),),
        "old",
        "gemini",
        400,
        "model_inactive",
    ),
    "switched off everywhere": ((ANY,), "switched-off", "gemini", 400, "model_inactive"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_model_without_an_upstream_is_refused(case: str) -> None:
    routes, model, kind, status, code = REFUSALS[case]
    with pytest.raises(ProxyError) as refused:
        Router(routes).choose(model, kind, ANONYMOUS)
    assert (refused.value.status, refused.value.code) == (status, code)
    assert refused.value.param == ("model" if code.startswith("model") else None)


ALLOWED: dict[str, tuple[tuple[str, ...], str, str | None]] = {
    "everything": (("*",), "gemini-2.5-pro", "exact"),
    "everything, slashes too": (("*",), "a/b", "any"),
    "a name": (("gemini-2.5-pro",), "gemini-2.5-pro", "exact"),
    "a glob": (("gemini-2.5-*",), "gemini-2.5-pro", "exact"),
    "one of several": (("x", "gemini-*", "y"), "gemini-2.5-pro", "exact"),
    "an upstream": (("exact/*",), "gemini-2.5-pro", "exact"),
    "an upstream that is not the first choice": (("any/*",), "gemini-2.5-pro", "any"),
    "an upstream's model": (("*/gemini-2.5-pro",), "gemini-2.5-pro", "exact"),
    "the name behind an alias": (("gemini-2.5-flash",), "fast", "exact"),
    "nothing": ((), "gemini-2.5-pro", None),
    "another name": (("gemini-2.5-flash",), "gemini-2.5-pro", None),
    "the beginning of a name": (("gemini-2.5",), "gemini-2.5-pro", None),
    "another case": (("GEMINI-*",), "gemini-2.5-pro", None),
    "an alias, where another upstream has a model of that name": (("fast",), "fast", "any"),
    "another upstream": (("other/*",), "gemini-2.5-pro", None),
    "a name in another upstream's clothes": (("gemini-*",), "x/gemini-2.5-pro", None),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_a_client_uses_what_its_list_allows(case: str) -> None:
    globs, model, upstream = ALLOWED[case]
    plain = google("any")
    client = Client("team", globs)
    if upstream is not None:
        assert Router((EXACT, plain)).choose(model, "gemini", client)[0].upstream == upstream
        return
    with pytest.raises(ProxyError) as refused:
        Router((EXACT, plain)).choose(model, "gemini", client)
    assert (refused.value.status, refused.value.code) == (403, "model_not_allowed")


def test_a_call_without_a_model_falls_back_only_to_where_the_client_may_use_something() -> None:
    router = Router((EXACT, GLOB, ANY))
    client = Client("team", ("glob/*", "any/gemini-*"))
    assert router.choose(None, "gemini", client) == (Choice("glob", None), Choice("any", None))
    assert router.choose(None, "gemini", Client("other", ("other/*",))) == (Choice("exact", None),)


def test_what_is_switched_off_is_told_before_what_is_forbidden() -> None:
    with pytest.raises(ProxyError) as refused:
        Router((GLOB,)).choose("gemini-1.5-pro", "gemini", Client("team", ()))
    assert refused.value.code == "model_inactive"


# provider/model, bare names and aliases: `resolve` --------------------------------------------------------------------

GEMINI = google("gemini", aliases={"fast": "gemini-2.5-flash", "both": "gemini-2.5-pro"}, disabled=("*-exp",))
GPT = openai("openai", ("gpt-5.1", "gpt-*", "shared"), aliases={"both": "gpt-5.1"})
DEEP = openai("deep", ("deepseek/v3", "chat", "shared"), bots=("helper",), disabled=("chat",))
OPEN = openai("open")
CATALOGUES = {"gemini": ("gemini-2.5-flash", "gemini-2.5-pro", "gemini-3-exp", "gpt-5.1"), "open": ("llama", "twin")}

MEANT: dict[str, tuple[tuple[Route, ...], str, tuple[Choice, ...]]] = {
    "provider and model": ((GEMINI, GPT), "openai/gpt-5.1", (Choice("openai", "gpt-5.1"),)),
    "provider and a model of its glob": ((GEMINI, GPT), "openai/gpt-6", (Choice("openai", "gpt-6"),)),
    "provider and a model of its catalogue": (
        (GEMINI,),
        "gemini/gemini-2.5-pro",
        (Choice("gemini", "gemini-2.5-pro"),),
    ),
    "provider and an alias": ((GEMINI, GPT), "gemini/fast", (Choice("gemini", "gemini-2.5-flash"),)),
    "provider and an alias of several": ((GEMINI, GPT), "openai/both", (Choice("openai", "gpt-5.1"),)),
    "provider and a model with slashes": ((DEEP,), "deep/deepseek/v3", (Choice("deep", "deepseek/v3"),)),
    "a slash in a bare name": ((GPT, DEEP), "deepseek/v3", (Choice("deep", "deepseek/v3"),)),
    "a provider that has it not, and one that has it all": (
        (openai("deepseek", ("x",)), DEEP),
        "deepseek/v3",
        (Choice("deep", "deepseek/v3"),),
    ),
    "a provider without that in its catalogue, and one that lists it all": (
        (openai("open"), openai("b", ("open/free",))),
        "open/free",
        (Choice("b", "open/free"),),
    ),
    "a bare name that is listed, before a glob": (
        (openai("a", ("gpt-*",)), openai("b", ("gpt-5.1",))),
        "gpt-5.1",
        (Choice("b", "gpt-5.1"),),
    ),
    "a glob before a catalogue": (
        (GEMINI, openai("b", ("gemini-*",))),
        "gemini-2.5-pro",
        (Choice("b", "gemini-2.5-pro"),),
    ),
    "a catalogue before one that has none": ((openai("dark"), OPEN), "llama", (Choice("open", "llama"),)),
    "any name, where there is no catalogue": (
        (OPEN, openai("dark")),
        "nowhere-listed",
        (Choice("dark", "nowhere-listed"),),
    ),
    "a bot's name": ((DEEP,), "helper", (Choice("deep", "helper"),)),
    "models/ before a bare name": ((GEMINI,), "models/gemini-2.5-flash", (Choice("gemini", "gemini-2.5-flash"),)),
    "an alias of several, in the order of the file": (
        (GEMINI, GPT),
        "both",
        (Choice("gemini", "gemini-2.5-pro"), Choice("openai", "gpt-5.1")),
    ),
    "an alias before a model that is listed": (
        (openai("a", ("fast",)), GEMINI),
        "fast",
        (Choice("gemini", "gemini-2.5-flash"),),
    ),
    "one of two is switched off": (
        (openai("a", ("m",), disabled=("m",)), openai("b", ("m",))),
        "m",
        (Choice("b", "m"),),
    ),
}


@pytest.mark.parametrize("case", MEANT)
async def test_a_name_means(case: str) -> None:
    routes, name, expected = MEANT[case]
    router = Router(routes, Listed(CATALOGUES))
    assert await router.resolve(name, ANONYMOUS) == expected
    assert await router.resolve(name, ANONYMOUS) == expected


REFUSED: dict[str, tuple[tuple[Route, ...], str, Client, int, str, str]] = {
    "unknown": ((GPT,), "nope", ANONYMOUS, 404, "model_not_found", "模型 nope 不存在"),
    "unknown there": ((GPT,), "openai/nope", ANONYMOUS, 404, "model_not_found", "模型 openai/nope 不存在"),
    "unknown to its catalogue": (
        (GEMINI,),
        "gemini/nope",
        ANONYMOUS,
        404,
        "model_not_found",
        "模型 gemini/nope 不存在",
    ),
    "another dialect's": ((google("g"),), "m", ANONYMOUS, 404, "model_not_found", "模型 m 不存在"),
    "switched off": ((DEEP,), "deep/chat", ANONYMOUS, 400, "model_inactive", "模型 deep/chat 未激活"),
    "switched off, bare": ((DEEP,), "chat", ANONYMOUS, 400, "model_inactive", "模型 deep/chat 未激活"),
    "switched off, though another provider would take all of it": (
        (DEEP, openai("dark")),
        "deep/chat",
        ANONYMOUS,
        400,
        "model_inactive",
        "模型 deep/chat 未激活",
    ),
    "switched off in a catalogue": (
        (GEMINI,),
        "gemini-3-exp",
        ANONYMOUS,
        400,
        "model_inactive",
        "模型 gemini/gemini-3-exp 未激活",
    ),
    "forbidden": (
        (GPT,),
        "gpt-5.1",
        Client("c", ("gemini/*",)),
        403,
        "model_not_allowed",
        "API Key 不允许访问模型 openai/gpt-5.1",
    ),
    "ambiguous": (
        (DEEP, GPT),
        "shared",
        ANONYMOUS,
        400,
        "model_ambiguous",
        "模型 shared 不唯一，请使用 provider/model：deep/shared、openai/shared",
    ),
    "ambiguous for want of catalogues": (
        (openai("a"), openai("b")),
        "m",
        ANONYMOUS,
        400,
        "model_ambiguous",
        "模型 m 不唯一，请使用 provider/model：a/m、b/m",
    ),
    "no name": (
        (GPT,),
        " ",
        ANONYMOUS,
        400,
        "missing_required_parameter",
        "缺少 model：请提供 'provider/model' 或 'model'，或先用 /auth/bind-model 绑定模型",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_name_that_means_nothing_usable_is_refused(case: str) -> None:
    routes, name, client, status, code, text = REFUSED[case]
    dialect = "conversing" if case == "another dialect's" else "openai"
    with pytest.raises(ProxyError) as refused:
        await Router(routes, Listed(CATALOGUES)).resolve(name, client, dialect)
    error = refused.value
    assert (error.status, error.code, error.message, error.param) == (status, code, text, "model")


async def test_an_allow_list_makes_an_ambiguous_name_one() -> None:
    client = Client("c", ("openai/*",))
    assert await Router((DEEP, GPT)).resolve("shared", client) == (Choice("openai", "shared"),)


async def test_a_catalogue_is_asked_for_only_where_nothing_else_decides() -> None:
    listed = Listed(CATALOGUES)
    router = Router((GEMINI, OPEN, GPT), listed)
    for name in ("openai/gpt-5.1", "gpt-5.1", "gpt-6", "fast", "gemini/fast"):
        await router.resolve(name, ANONYMOUS)
    assert listed.asked == []
    await router.resolve("gemini/gemini-2.5-pro", ANONYMOUS)
    assert listed.asked == ["gemini"]
    await router.resolve("llama", ANONYMOUS)
    assert listed.asked == ["gemini", "gemini", "open"]


async def test_a_name_follows_the_catalogue_as_it_changes() -> None:
    catalogues = {"open": ["old"]}
    router = Router((OPEN,), Listed(catalogues))
    assert await router.resolve("old", ANONYMOUS) == (Choice("open", "old"),)
    catalogues["open"] = ["new"]
    assert await router.resolve("new", ANONYMOUS) == (Choice("open", "new"),)
    with pytest.raises(ProxyError):
        await router.resolve("old", ANONYMOUS)


# Calls without a model ------------------------------------------------------------------------------------------------

DEFAULTS: dict[str, tuple[tuple[str, ...], str | None, str | None]] = {
    "the first of kind openai": (("*",), None, "a"),
    "the default": (("*",), "gemini", "gemini"),
    "the first that the client may use": (("b/*",), None, "b"),
    "a default that the client may not use": (("b/x",), "a", "b"),
    "a glob of bare names may fit anywhere": (("gpt-*",), "b", "b"),
    "nothing allowed": ((), "a", None),
    "nothing of kind openai allowed": (("gemini/*",), None, None),
}


@pytest.mark.parametrize("case", DEFAULTS)
def test_a_call_without_a_model_goes_to(case: str) -> None:
    globs, default, expected = DEFAULTS[case]
    router, client = Router((google("gemini"), openai("a"), openai("b"))), Client("c", globs)
    if expected is not None:
        assert router.default_choice(client, default) == Choice(expected, None)
        return
    with pytest.raises(ProxyError) as refused:
        router.default_choice(client, default)
    assert (refused.value.status, refused.value.code) == (400, "missing_required_parameter")


# What there is --------------------------------------------------------------------------------------------------------


async def ids(router: Router, client: Client = ANONYMOUS) -> list[str]:
    return [model["id"] for model in await router.models_for(client)]


async def test_models_are_shown_qualified_and_bare_where_that_means_one() -> None:
    router = Router((GPT, DEEP, OPEN), Listed(CATALOGUES))
    assert await ids(router) == [
        *("both", "gpt-5.1", "openai/both", "openai/gpt-5.1", "openai/shared"),
        *("deep/deepseek/v3", "deep/helper", "deep/shared", "deepseek/v3", "helper"),
        *("llama", "open/llama", "open/twin", "twin"),
    ]


async def test_every_model_that_is_shown_resolves() -> None:
    router = Router((GEMINI, GPT, DEEP, OPEN), Listed(CATALOGUES))
    for client in (ANONYMOUS, Client("c", ("gemini/*", "gpt-*"))):
        shown = await ids(router, client)
        assert len(shown) == len(set(shown))
        for name in shown:
            assert await router.resolve(name, client)


async def test_only_models_that_the_client_may_use_are_shown() -> None:
    router = Router((GPT, DEEP, OPEN), Listed(CATALOGUES))
    client = Client("c", ("openai/gpt-*",))
    assert await ids(router, client) == ["both", "gpt-5.1", "openai/both", "openai/gpt-5.1"]


async def test_entries_of_a_catalogue_keep_their_members_and_configured_names_tell_the_start_of_the_process() -> None:
    router = Router((openai("open", ("llama", "own", "tw*")),), Listed(CATALOGUES), started=1234.5)
    models = {model["id"]: model for model in await router.models_for(ANONYMOUS)}
    assert set(models) == {"llama", "own", "twin", "open/llama", "open/own", "open/twin"}
    assert models["own"] == {"id": "own", "object": "model", "created": 1234, "owned_by": "open"}
    assert models["open/twin"] == {"id": "open/twin", "object": "model", "owned_by": "them", "extra": 1}
    assert models["llama"]["owned_by"] == "them"


async def test_an_upstream_without_a_catalogue_shows_its_configured_names() -> None:
    router = Router((openai("dark", ("m", "n-*")), openai("dim", aliases={"x": "y"})))
    assert await ids(router) == ["dark/m", "m", "dim/x", "x"]


async def test_an_alias_of_several_upstreams_is_shown_bare_once() -> None:
    assert (await ids(Router((GPT, GEMINI)))).count("both") == 1
