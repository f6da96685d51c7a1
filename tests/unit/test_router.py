"""Which upstream a model goes to, under which name, and who may use it."""

from __future__ import annotations

import pytest

from balancer.errors import ProxyError
from balancer.model import ANONYMOUS, Choice, Client
from balancer.routing.router import Route, Router

EXACT = Route("exact", "gemini", ("gemini-2.5-pro", "gemini-2.5-flash"), aliases={"fast": "gemini-2.5-flash"})
GLOB = Route("glob", "gemini", ("gemini-*",), disabled=("gemini-1.*", "*-exp"))
ANY = Route("any", "gemini", aliases={"gemini-2.5-pro": "own-pro", "old": "gemini-1.5-pro"}, disabled=("switched-off",))
OTHER = Route("other", "openai", ("gemini-2.5-pro",))
ROUTES = (ANY, GLOB, EXACT, OTHER)

CHOICES: dict[str, tuple[tuple[Route, ...], str | None, str, Choice]] = {
    "a listed name before a glob": ((GLOB, EXACT), "gemini-2.5-pro", "gemini", Choice("exact", "gemini-2.5-pro")),
    "a glob, in the order of the file": ((GLOB, ANY), "gemini-3", "gemini", Choice("glob", "gemini-3")),
    "everything, in the order of the file": ((ANY, GLOB), "gemini-3", "gemini", Choice("any", "gemini-3")),
    "an alias counts as listed": ((GLOB, ANY), "gemini-2.5-pro", "gemini", Choice("any", "own-pro")),
    "an alias of the second": ((GLOB, EXACT), "fast", "gemini", Choice("exact", "gemini-2.5-flash")),
    "no model": (ROUTES, None, "gemini", Choice("any", None)),
    "no model, another kind": (ROUTES, None, "openai", Choice("other", None)),
    "the kind before the rank": (ROUTES, "gemini-2.5-flash", "gemini", Choice("exact", "gemini-2.5-flash")),
    "switched off in one": ((GLOB, ANY), "gemini-1.5-pro", "gemini", Choice("any", "gemini-1.5-pro")),
    "slashes in a name": ((GLOB, ANY), "deepseek/v3", "gemini", Choice("any", "deepseek/v3")),
    "case counts": ((EXACT, ANY), "Gemini-2.5-pro", "gemini", Choice("any", "Gemini-2.5-pro")),
    "letters of globs in a name": ((EXACT, ANY), "gemini-[2]*?", "gemini", Choice("any", "gemini-[2]*?")),
}


@pytest.mark.parametrize("case", CHOICES)
def test_a_model_finds_its_upstream(case: str) -> None:
    routes, model, kind, expected = CHOICES[case]
    assert Router(routes).choose(model, kind, ANONYMOUS) == expected


REFUSALS: dict[str, tuple[tuple[Route, ...], str | None, str, int, str]] = {
    "no upstream of the kind": ((OTHER,), "m", "gemini", 404, "unknown_url"),
    "no upstream of the kind, no model": ((OTHER,), None, "gemini", 404, "unknown_url"),
    "no upstream at all": ((), None, "gemini", 404, "unknown_url"),
    "a name that nobody lists": ((EXACT, GLOB), "other", "gemini", 404, "model_not_found"),
    "an empty name": ((EXACT, GLOB), "", "gemini", 404, "model_not_found"),
    "switched off": ((EXACT, GLOB), "gemini-1.5-pro", "gemini", 400, "model_inactive"),
    "switched off by its end": ((GLOB,), "gemini-3-exp", "gemini", 400, "model_inactive"),
    "an alias of what is switched off": (
        (Route("a", "gemini", disabled=("gemini-1.*",), aliases={"old": "gemini-1.5"}),),
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
    plain = Route("any", "gemini")
    client = Client("team", globs)
    if upstream is not None:
        assert Router((EXACT, plain)).choose(model, "gemini", client).upstream == upstream
        return
    with pytest.raises(ProxyError) as refused:
        Router((EXACT, plain)).choose(model, "gemini", client)
    assert (refused.value.status, refused.value.code) == (403, "model_not_allowed")


def test_what_is_switched_off_is_told_before_what_is_forbidden() -> None:
    with pytest.raises(ProxyError) as refused:
        Router((GLOB,)).choose("gemini-1.5-pro", "gemini", Client("team", ()))
    assert refused.value.code == "model_inactive"
