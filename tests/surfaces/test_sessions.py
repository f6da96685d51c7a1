"""Sessions: where their ids come from, and what they hold together for how long."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from balancer.model import fingerprint
from tests.fakes import FakeClock
from tests.proxy import GENERATE, KEYS
from tests.surfaces.calls import ANN, BOB, Caller, World, caller, world

HELLO = {"contents": [{"parts": [{"text": "hello"}]}]}


async def ask(client: Caller, path: str = GENERATE, **headers: str) -> None:
    answer = await client.call("POST", path, HELLO, headers)
    assert answer.status == 200, answer.body


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


async def test_calls_without_a_session_rotate() -> None:
    async with world() as here:
        for _ in range(6):
            await ask(here.ann)
        assert here.keys() == [*KEYS, *KEYS]


@pytest.mark.parametrize("source", ["header", "query", "path", "path and gemini", "gemini and path"])
async def test_calls_of_one_session_go_to_one_key(source: str) -> None:
    async with world() as here:
        for _ in range(4):
            await ask(here.bob)
            match source:
                case "header":
                    await ask(here.ann, **{"X-Session-Id": "s1"})
                case "query":
                    await ask(here.ann, GENERATE + "?session_id=s1")
                case "path":
                    await ask(here.ann.below("/s/s1"))
                case "path and gemini":
                    await ask(here.ann.below("/s/s1/gemini"))
                case _:
                    await ask(here.ann.below("/gemini/s/s1"))
        assert set(here.keys()[::2]) == set(KEYS)
        assert len(set(here.keys()[1::2])) == 1


async def test_all_sources_name_the_same_session() -> None:
    async with world() as here:
        await ask(here.ann.within("one"))
        await ask(here.ann, GENERATE + "?session_id=one")
        await ask(here.ann.below("/s/one"))
        await ask(here.ann.below("/s/%6Fne/gemini"))
        assert len(set(here.keys())) == 1


async def test_the_header_counts_before_the_query_and_the_query_before_the_path() -> None:
    async with world() as here:
        await ask(here.ann.within("header"))
        await ask(here.ann.within("query"))
        await ask(here.ann.within("path"))
        header, query, path = here.keys()
        assert len({header, query, path}) == 3
        for _ in range(2):
            await ask(here.ann.below("/s/path").within("header"), GENERATE + "?session_id=query")
            await ask(here.ann.below("/s/path"), GENERATE + "?session_id=query")
            await ask(here.ann.below("/s/path"))
        assert here.keys()[3:] == [header, query, path] * 2


@pytest.mark.parametrize("other", ["Report-17", "  report-17\t", "REPORT-17"])
async def test_case_and_surrounding_space_make_no_difference(other: str) -> None:
    async with world() as here:
        for session in ("report-17", other):
            await ask(here.ann.within(session))
        assert len(set(here.keys())) == 1


async def test_letters_beyond_ascii_fold_as_well() -> None:
    async with world() as here:
        for session in ("stra%C3%9Fe", "STRASSE", "Stra%C3%9Fe"):
            await ask(here.ann.below(f"/s/{session}"))
        assert len(set(here.keys())) == 1


@pytest.mark.parametrize("session", ["x" * 256, "a b", "%20a%20", "日本語"])
async def test_up_to_256_printable_characters_are_a_session(session: str) -> None:
    async with world() as here:
        for _ in range(3):
            await ask(here.ann, f"{GENERATE}?session_id={session}")
        assert len(set(here.keys())) == 1


@pytest.mark.parametrize("session", ["x" * 257, "", "%20%20", "a%00b", "a%0Ab", "a%7Fb", "a%E2%80%8Bb"])
async def test_anything_else_is_ignored(session: str) -> None:
    async with world() as here:
        for _ in range(3):
            await ask(here.ann, f"{GENERATE}?session_id={session}")
        assert here.keys() == list(KEYS)


async def test_a_first_source_that_is_no_good_is_not_made_up_for_by_the_next() -> None:
    async with world() as here:
        for _ in range(3):
            await ask(here.ann.within("x" * 300), GENERATE + "?session_id=good")
        assert here.keys() == list(KEYS)


async def test_nothing_of_a_session_reaches_the_upstream() -> None:
    async with world() as here:
        await ask(
            here.ann.below("/s/my-session/gemini").within("my-session"), GENERATE + "?a=1&session_id=my-session&b=2"
        )
        await ask(here.ann, GENERATE + "?session%5Fid=my-session")
        upload = await here.ann.below("/s/my-session").upload()
        assert upload
        assert here.standin.requests[0].target == GENERATE + "?a=1&b=2"
        assert here.standin.requests[1].target == GENERATE
        for arrival in here.standin.requests:
            assert "session" not in arrival.target.lower()
            assert not any("my-session" in f"{name}{value}".lower() for name, value in arrival.headers)
            assert arrival.header("x-session-id") is None


async def test_a_session_lives_from_use_to_use() -> None:
    clock = FakeClock()
    async with world(clock=clock, affinity={"session_ttl": "1h"}) as here:
        session = here.ann.within("s")
        for _ in range(4):
            await ask(session)
            await ask(here.bob)
            clock.advance(3599)
        assert len(set(here.keys()[::2])) == 1
        clock.advance(2)
        await ask(session)
        assert here.keys()[-1] != here.keys()[0]


async def test_when_there_are_too_many_sessions_the_longest_unused_is_forgotten() -> None:
    async with world(affinity={"max_sessions": 2}) as here:
        pins = here.proxy.server.runtime.pins
        assert pins is not None
        for number in range(50):
            await ask(here.ann.within("kept"))
            await ask(here.ann.within(f"passing-{number}"))
            assert len(pins) <= 2
        assert len(set(here.keys()[::2])) == 1


async def test_the_same_id_of_two_clients_is_two_sessions() -> None:
    async with world() as here:
        for client in (here.ann, here.bob, here.ann, here.bob):
            await ask(client.within("same"))
        ann, bob = here.keys()[:2]
        assert ann != bob
        assert here.keys() == [ann, bob, ann, bob]


async def test_two_concurrent_first_requests_of_a_session_get_one_key() -> None:
    async with world() as here:
        gate = asyncio.Event()
        for key in KEYS:
            here.standin.script(key, "stall-head", gate=gate)
        session = here.ann.within("new")
        calls = [asyncio.create_task(ask(session)) for _ in range(8)]
        await here.standin.wait_for(8)  # none has been answered: the pin was made before the upstream said anything
        assert len(set(here.keys())) == 1
        gate.set()
        await asyncio.gather(*calls)


async def test_a_soft_pin_moves_when_its_key_rests_and_stays_where_it_went() -> None:
    async with world() as here:
        session = here.ann.within("s")
        await ask(session)
        first = here.keys()[0]
        here.standin.script(first or "", "rate-minute", times=1, seconds=3600)
        await ask(session)
        moved = here.keys()[-1]
        assert moved != first
        for _ in range(3):
            await ask(here.bob)
            await ask(session)
        assert here.keys()[4::2] == [moved] * 3


async def test_a_soft_pin_rests_for_its_own_model_only() -> None:
    async with world() as here:
        session = here.ann.within("s")
        await ask(session)
        first = here.keys()[0]
        here.standin.script(first or "", "rate-minute", times=1, model="gemini-2.5-pro", seconds=3600)
        await ask(session, "/v1beta/models/gemini-2.5-pro:generateContent")
        assert here.keys()[-1] != first


async def _owning(here: World) -> tuple[Caller, str]:
    """A session that owns a file, and its key."""
    session = here.ann.within("owner")
    return session, here.key_of(await session.upload())


async def test_a_session_that_owns_something_waits_for_its_key() -> None:
    async with world() as here:
        session, key = await _owning(here)
        here.standin.script(key, "rate-minute", times=1, seconds=1)
        before = len(here.keys())
        await ask(session)
        assert here.keys()[before:] == [key, key]


async def test_a_session_that_owns_something_gets_the_true_429_and_never_another_key() -> None:
    async with world(relay={"max_wait": "0s"}) as here:
        session, key = await _owning(here)
        here.standin.script(key, "rate-minute", times=1, seconds=60)
        before = len(here.keys())
        for _ in range(2):
            answer = await session.generate()
            assert answer.status == 429
            assert 55 <= int(answer.headers["Retry-After"]) <= 60
            assert answer.error["status"] == "RESOURCE_EXHAUSTED"
        assert here.keys()[before:] == [key]
        await ask(here.ann)  # others go on


async def test_a_hard_pin_outlives_that_more_is_made_elsewhere() -> None:
    """What the session owned first decides where its uploads go, even if it uses another owner's file on the way."""
    async with world() as here:
        session, key = await _owning(here)
        other = await here.ann.within("other").upload()
        assert here.key_of(other) != key
        store = await session.make("fileSearchStores")
        assert here.key_of(store) == key
        named = await session.post("batches", {"name": "batches/chosen", "fileName": other})
        assert named.status == 200
        assert here.key_of("batches/chosen") == here.key_of(other)
        assert here.key_of(await session.upload()) == key


async def test_a_hard_pin_whose_key_is_dead_moves() -> None:
    async with world() as here:
        session, key = await _owning(here)
        here.standin.script(key, "key-leaked")
        await ask(session)
        moved = here.keys()[-1]
        assert moved != key
        await ask(session)
        assert here.keys()[-1] == moved


async def test_a_hard_pin_survives_that_the_key_s_project_becomes_known() -> None:
    async with world(relay={"max_wait": "0s"}) as here:
        session, key = await _owning(here)
        here.standin.script(key, "rate-consumer", times=1, model="gemini-2.5-flash", seconds=60)
        assert (await session.generate()).status == 429
        assert (await session.generate()).status == 429
        answer = await session.call("POST", "/v1beta/models/gemini-2.5-pro:generateContent", HELLO)
        assert answer.status == 200
        assert here.keys()[-1] == key
        assert here.key_of(await session.upload()) == key


async def test_the_log_tells_where_a_session_came_from_and_which_key_it_goes_on_with(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with world(logging={"level": "info", "file": str(log)}) as here:
        await ask(here.ann.within("Alpha"))
        await ask(here.ann, GENERATE + "?session_id=alpha")
        await ask(here.ann.below("/s/alpha"))
        key = fingerprint(here.keys()[0] or "")
    said = [line for line in lines(log) if "session" in line["event"]]
    assert [line["event"] for line in said] == [
        "Received session_id: alpha (from header)",
        "Received session_id: alpha (from query)",
        "Reusing API key for session alpha",
        "Received session_id: alpha (from path)",
        "Reusing API key for session alpha",
    ]
    assert [line["key"] for line in said if "key" in line] == [key, key]
    assert {line["client"] for line in said} == {"ann"}
    text = log.read_text()
    assert not any(secret in text for secret in (*KEYS, ANN, BOB))


async def test_a_session_that_was_moved_is_not_said_to_go_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with world(logging={"level": "info", "file": str(log)}) as here:
        session = here.ann.within("s")
        await ask(session)
        here.standin.script(here.keys()[0] or "", "rate-minute", seconds=3600)
        await ask(session)
        await ask(session)
        last = fingerprint(here.keys()[-1] or "")
    reused = [line["key"] for line in lines(log) if line["event"].startswith("Reusing")]
    assert reused[-1] == last


async def test_without_tokens_everybody_is_one_client() -> None:
    async with world(auth={"tokens": ""}) as here:
        for client in (caller(here.proxy, "x"), caller(here.proxy, None)):
            await ask(client.within("s"))
        assert len(set(here.keys())) == 1
