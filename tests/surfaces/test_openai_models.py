"""`/v1/models`: what a client may use, in both spellings, whatever the upstreams are up to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.surfaces.openai_calls import ANN, OA_KEYS, TOKENS, World, scripted, world
from tests.upstream import Peer, Seen, serving


async def ids(here: World, who: Any = None) -> list[str]:
    answer = await (who or here.ann).get("models")
    assert answer.status == 200, answer.body
    assert set(answer.json) == {"object", "data"}
    return [model["id"] for model in answer.json["data"]]


async def test_every_model_is_listed_with_its_upstream_and_bare_where_that_means_one() -> None:
    models = {"models": ["shared", "gpt-5.1"]}
    more = {
        "oa2": {
            "kind": "openai",
            "base_url": "http://127.0.0.1:9/v1",
            "keys": ["sk-x-key-00000001"],
            "models": ["shared", "b"],
        }
    }
    google = {"oa": {}, "gemini": {"models": ["gemini-2.5-flash"]}}
    async with world(oa=models, more={**more, **{"gemini": google["gemini"]}}) as here:
        assert await ids(here) == [
            "gemini-2.5-flash",
            "gemini/gemini-2.5-flash",
            "gpt-5.1",
            "oa/gpt-5.1",
            "oa/shared",
            "b",
            "oa2/b",
            "oa2/shared",
        ]


async def test_an_entry_keeps_what_its_upstream_says_of_it_and_a_configured_one_has_ours() -> None:
    async with world(oa={"models": ["gpt-5.1", "gpt-*", "own-name"]}) as here:
        data = {model["id"]: model for model in (await here.ann.get("models")).json["data"]}
        assert data["oa/gpt-5"] == {**data["gpt-5"], "id": "oa/gpt-5"}
        assert data["gpt-5"]["owned_by"] == "system"
        own = data["own-name"]
        assert (own["object"], own["owned_by"]) == ("model", "oa")
        assert isinstance(own["created"], int)
        assert own["created"] > 1_700_000_000
        assert data["gemini/gemini-2.5-flash"]["owned_by"] == "google"
        assert not any("models/" in id_ for id_ in data)


async def test_one_model_is_found_with_raw_and_encoded_slashes_and_another_is_not() -> None:
    async with world(oa={"models": ["gpt-5.1", "deepseek/v3"]}) as here:
        for path in ("oa/gpt-5.1", "oa%2Fgpt-5.1", "oa/gpt-5%2E1"):
            assert (await here.ann.get(f"models/{path}")).json["id"] == "oa/gpt-5.1"
        for path in ("deepseek/v3", "oa/deepseek/v3", "oa%2fdeepseek%2Fv3"):
            assert (await here.ann.get(f"models/{path}")).status == 200
        for path in ("nope", "oa/nope", "models/nope"):
            answer = await here.ann.get(f"models/{path}")
            assert answer.code == (404, "model_not_found")
            assert answer.error["param"] == "model"


async def test_an_allow_list_shows_what_it_allows_and_refuses_the_rest() -> None:
    auth = {"tokens": [{"name": "ann", "token": ANN, "models": ["oa/gpt-4*"]}, TOKENS[1]]}
    async with world(auth=auth) as here:
        shown = await ids(here)
        assert shown == sorted(shown)
        assert {id_.removeprefix("oa/") for id_ in shown} == {
            "gpt-4.1",
            "gpt-4.1-mini",
            "gpt-4o",
            "gpt-4o-mini",
            "gpt-4o-mini-tts",
            "gpt-4o-transcribe",
        }
        assert "oa/gpt-4o" in shown
        assert "gpt-4o" in shown
        assert (await here.ann.chat("oa/gpt-4o")).status == 200
        for model in ("oa/gpt-5.1", "gpt-5.1", "gemini/gemini-2.5-flash"):
            answer = await here.ann.chat(model)
            assert answer.code == (403, "model_not_allowed")
            assert answer.error["param"] == "model"
        assert "oa/gpt-5.1" in await ids(here, here.bob)


async def test_a_model_that_is_switched_off_is_neither_shown_nor_served() -> None:
    async with world(oa={"disabled_models": ["gpt-4*"]}) as here:
        assert not [id_ for id_ in await ids(here) if "gpt-4" in id_]
        assert (await here.ann.chat("oa/gpt-4o")).code == (400, "model_inactive")


async def test_a_list_is_asked_of_an_upstream_once_and_with_a_pooled_key() -> None:
    async with world(warm=False) as here:
        for _ in range(3):
            await ids(here)
        assert here.targets() == ["GET /v1/models"]
        assert here.keys()[0] in OA_KEYS
        assert ANN not in str(here.last().headers)


@pytest.mark.parametrize("fault", ["error-500", "rst", "key-invalid", "garbage"])
async def test_an_upstream_that_is_down_shows_its_configured_names_and_fails_no_list(fault: str) -> None:
    async with world(oa={"models": ["gpt-5.1", "gpt-*"]}, warm=False) as here:
        here.oa.script("*", fault)
        shown = await ids(here)
        assert [id_ for id_ in shown if "gpt" in id_] == ["gpt-5.1", "oa/gpt-5.1"]
        assert "gemini/gemini-2.5-flash" in shown


async def test_a_catalogue_that_is_no_list_is_as_good_as_none() -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.answer(json.dumps({"data": "nothing"}).encode())

    async with scripted(serving(answer), oa={"models": ["gpt-5.1", "x*"]}) as here:
        listed = await here.ann.get("models")
        assert [model["id"] for model in listed.json["data"] if model["owned_by"] == "oa"] == ["gpt-5.1", "oa/gpt-5.1"]


async def test_googles_sdks_get_googles_shape_under_v1_and_openais_get_openais() -> None:
    async with world() as here:
        google = await here.ann.call("GET", "/v1/models", headers={"x-goog-api-key": ANN, "Authorization": ""})
        assert google.json["models"][0]["name"].startswith("models/")
        assert "object" not in google.json
        one = await here.ann.call("GET", "/v1/models/gemini-2.5-flash", headers={"x-goog-api-client": "genai"})
        assert one.json["name"] == "models/gemini-2.5-flash"
        openai = await here.ann.get("models")
        assert openai.json["object"] == "list"
        assert (await here.ann.get("models/gemini-2.5-flash")).json["object"] == "model"
