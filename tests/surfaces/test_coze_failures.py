"""Bots of Coze behind the openai surface: failures, files that must be uploaded, and clients who leave."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from balancer.keypool.pool import States
from balancer.relay.chatting import READ_ON
from balancer.relay.finishing import to_the_end
from balancer.relay.probe import probe_due
from balancer.standin.coze_answers import Play
from tests.fakes import FakeClock
from tests.surfaces.backend_chats import user
from tests.surfaces.coze_chats import CANCEL, LOOK_UP, ONE, TWO, UPLOAD, conversation, coze, say
from tests.upstream import WAIT

PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG pixel").decode()


# Failures ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "told", "calls"),
    [
        ("code-4000", (400, "coze_4000"), 1),
        ("code-4006", (400, "coze_4006"), 1),
        ("code-4014", (400, "coze_4014"), 1),
        ("code-4200", (400, "coze_4200"), 1),
        ("error-4105", (400, "coze_4105"), 1),
        ("code-5000", (502, "coze_5000"), 2),
        ("error-empty", (502, "coze_5000"), 2),
        ("code-4315", (502, "coze_4315"), 2),
        ("status-503", (502, "upstream_error"), 2),
        ("html", (502, "upstream_error"), 2),
        ("no-chat", (502, "upstream_error"), 2),
        ("lost", (502, "upstream_error"), 2),
    ],
)
async def test_refusals_of_a_new_conversation_are_openai_errors(
    tmp_path: Path, fault: str, told: tuple[int, str], calls: int
) -> None:
    async with coze(tmp_path) as here:
        here.standin.script("*", fault, target="/v3/chat")
        answer = await say(here, stream=True)
        assert answer.code == told
        assert len(here.asked()) == calls
        assert "x-conversation-id" not in answer.headers


@pytest.mark.parametrize("fault", ["code-5000", "status-502", "html", "lost", "fin"])
async def test_what_is_said_in_a_conversation_is_not_said_twice(tmp_path: Path, fault: str) -> None:
    async with coze(tmp_path) as here:
        identity = conversation(await say(here, "one", user="u"))
        here.standin.script(ONE, fault, target="/v3/chat", times=1)
        answer = await say(here, "two", user="u")
        assert answer.status == 502
        assert conversation(answer) == identity
        assert len(here.asked()) == 2


async def test_a_dead_key_s_new_conversation_is_made_with_the_next(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        here.standin.script(ONE, "code-4100")
        assert (await say(here)).status == 200
        assert here.keys == [ONE, TWO]
        here.standin.script(TWO, "code-4100")
        for _ in range(2):  # the call that meets it, and the next one
            assert (await say(here)).code == (503, "no_usable_key")
        assert here.keys == [ONE, TWO, TWO]


async def test_a_session_whose_key_has_died_goes_on_with_the_next_and_all_messages(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        first = await say(here, "one", user="u")
        here.standin.script(ONE, "code-4101")
        second = await say(here, "one", "two", user="u")
        assert conversation(second) != conversation(first)
        assert (here.keys, here.texts()) == ([ONE, ONE, TWO], [("user", "one"), ("user", "two")])


async def test_a_session_whose_key_rests_waits_and_is_then_told(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        await say(here, "one", user="u")
        here.standin.script(ONE, "code-4102", times=1)
        answer = await say(here, "two", user="u")
        assert answer.code == (429, "keys_resting")
        assert int(answer.headers["Retry-After"]) > 3000
        assert here.keys == [ONE, ONE]


async def test_a_busy_conversation_is_asked_again_with_the_same_key(tmp_path: Path) -> None:
    keys = [{"key": ONE, "project": "p"}, {"key": TWO, "project": "p"}]
    async with coze(tmp_path, keys) as here:
        here.standin.world.keys = {ONE: "p", TWO: "p"}
        await say(here, "one", user="u")
        here.standin.script("*", "code-4016", times=2)
        assert (await say(here, "two", user="u")).text == "You said: two"
        assert len(set(here.keys[1:])) == 1
        assert len(here.keys) == 4


async def test_a_conversation_that_stays_busy_is_a_409(tmp_path: Path) -> None:
    async with coze(tmp_path, chat={"upstream": "coze", "turn_wait": "600ms"}) as here:
        await say(here, "one", user="u")
        here.standin.script(ONE, "code-4016")
        answer = await say(here, "two", user="u")
        assert answer.code == (409, "session_busy")
        assert answer.headers["Retry-After"] == "5"
        assert len(here.asked()) == 3


async def test_an_overloaded_upstream_is_asked_twice_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("balancer.upstreams.coze_turns.OVERLOADED_PAUSES", (0.01, 0.02))
    async with coze(tmp_path) as here:
        await say(here, "one", user="u")
        here.standin.script(ONE, "code-4009", times=2)
        assert (await say(here, "two", user="u")).text == "You said: two"
        here.standin.script(ONE, "code-4013")
        assert (await say(here, "three", user="u")).code == (502, "coze_4013")
        assert len(here.asked()) == 7


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cut_in_the_middle_is_told_and_nothing_is_repeated(tmp_path: Path, stream: bool) -> None:
    async with coze(tmp_path) as here:
        here.standin.script(ONE, "cut-fin", after=3, times=1)
        answer = await say(here, stream=stream)
        assert len(here.asked()) == 1
        assert conversation(answer) in here.standin.conversations
        if stream:
            assert answer.frames[-1]["error"]["code"] == "stream_error"
            assert b"[DONE]" not in answer.body
        else:
            assert answer.code == (502, "upstream_error")


async def test_a_chat_that_fails_in_its_middle_is_told(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        here.standin.play = Play(messages=(("a", "b"),), outcome="failed", code=4013)
        streamed = await say(here, stream=True)
        assert streamed.deltas == ["a", "b"]
        assert "429 Too Many Requests" in streamed.frames[-1]["error"]["message"]
        assert (await say(here)).code == (502, "coze_4013")
        here.standin.play = Play(messages=(("a",),), outcome="requires_action")
        assert (await say(here)).code == (400, "coze_requires_action")


async def test_an_upstream_that_falls_silent_is_left_and_its_chat_canceled(tmp_path: Path) -> None:
    async with coze(tmp_path, relay={"timeouts": {"idle": "300ms"}}) as here:
        here.standin.script(ONE, "stall-stream", after=3, times=1)
        answer = await say(here, stream=True, user="u")
        assert answer.frames[-1]["error"]["code"] == "stream_error"
        assert len(here.asked(CANCEL)) == 1
        assert (await say(here, "two", user="u")).text == "You said: two"
        assert here.standin.overlaps == []


async def test_an_upstream_that_says_nothing_is_a_504_and_not_asked_again(tmp_path: Path) -> None:
    async with coze(tmp_path, relay={"timeouts": {"first_byte": "300ms"}}) as here:
        here.standin.script(ONE, "stall-head", times=1)
        async with asyncio.timeout(READ_ON):  # it is not read on for the chat's id
            assert (await say(here)).code == (504, "upstream_timeout")
        assert len(here.asked()) == 1


async def test_an_upstream_that_cannot_be_reached_is_a_502(tmp_path: Path) -> None:
    async with coze(tmp_path, settings={"base_url": "http://127.0.0.1:9"}) as here:
        assert (await say(here)).code == (502, "upstream_unreachable")


async def test_key_text_in_coze_s_words_is_masked(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        here.standin.script(ONE, "names-key", times=1)
        answer = await say(here)
        assert answer.code == (400, "coze_4000")
        assert "bad token" in answer.message
        assert ONE not in answer.body.decode()


async def test_a_disabled_key_is_probed_with_what_makes_nothing_and_costs_nothing(tmp_path: Path) -> None:
    clock = FakeClock()
    async with coze(tmp_path, clock=clock) as here:
        here.standin.script(ONE, "code-4100", times=1)
        await say(here)
        here.standin.forget()
        upstream = here.proxy.server.runtime.rooms.upstreams["coze"]
        assert upstream.pool.states() == States(ready=1, resting=0, disabled=1)
        clock.advance(2 * 86400)
        await probe_due(upstream, clock)
        assert upstream.pool.states() == States(ready=2, resting=0, disabled=0)
        assert [(each.key, each.path) for each in here.standin.requests] == [(ONE, LOOK_UP)]


async def test_an_answer_for_which_there_is_no_room_is_a_503_and_its_chat_is_canceled(tmp_path: Path) -> None:
    async with coze(tmp_path, relay={"buffer_budget": "300B"}) as here:
        here.standin.play = Play(messages=(("x" * 200, "y" * 200),))
        assert (await say(here)).code == (503, "buffer_exhausted")
        assert (len(here.asked()), len(here.asked(CANCEL))) == (1, 1)
        here.standin.play = Play(messages=(("x" * 200,),))
        assert (await say(here)).status == 200  # what was taken was given back


# Files -------------------------------------------------------------------------------------------------------------------


def with_image(url: str) -> dict[str, Any]:
    return user([{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}])


async def test_a_data_url_is_uploaded_with_the_key_that_gets_the_chat(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        here.standin.script(ONE, "code-4100", target="/v3/chat")
        answer = await say(here, with_image(PIXEL), with_image("https://example.com/a.png"))
        assert answer.text == "You said: What is it?"
        assert [each.key for each in here.asked(UPLOAD)] == [ONE, TWO]
        (first, second) = (json.loads(text) for _, text in here.texts())
        (identity,) = (each for each, file in here.standin.files.items() if file.account == here.standin.project(TWO))
        assert first == [{"type": "text", "text": "What is it?"}, {"type": "image", "file_id": identity}]
        assert second[1] == {"type": "image", "file_url": "https://example.com/a.png"}
        assert here.standin.files[identity].content == b"\x89PNG pixel"


async def test_a_data_url_that_holds_nothing_is_a_400_before_anything_is_sent(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        answer = await say(here, with_image("data:image/png;base64,"), "and?")
        assert answer.code == (400, "invalid_body")
        assert list(here.standin.requests) == []


async def test_a_refused_upload_is_told_like_a_refused_chat(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        here.standin.script("*", "code-4302", target=UPLOAD)
        assert (await say(here, with_image(PIXEL))).code == (400, "coze_4302")
        assert here.asked() == []


# Who leaves --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_who_leaves_cancels_the_chat_and_the_session_goes_on(tmp_path: Path, stream: bool) -> None:
    async with coze(tmp_path) as here:
        here.standin.script(ONE, "stall-stream", after=3, times=1)
        leaving = asyncio.create_task(say(here, "one", user="u", stream=stream))
        await here.standin.wait_for(lambda each: each.sent, WAIT)
        leaving.cancel()
        async with asyncio.timeout(1):
            await here.standin.wait_for(lambda each: each.path == CANCEL)
        assert (await say(here, "two", user="u")).text == "You said: two"
        assert here.standin.overlaps == []


@pytest.mark.parametrize("fault", ["stall-head", "stall-stream"])
@pytest.mark.parametrize("plain", [False, True])
async def test_who_leaves_before_the_chat_is_known_cancels_it_when_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, plain: bool
) -> None:
    noticed = asyncio.Event()

    async def to_the_end_once_noticed(work: Coroutine[Any, Any, None]) -> None:
        noticed.set()
        await to_the_end(work)

    monkeypatch.setattr("balancer.relay.chatting.to_the_end", to_the_end_once_noticed)
    async with coze(tmp_path) as here:
        here.standin.play = Play(plain=plain)
        held = here.standin.script(ONE, fault, after=0, times=1)
        leaving = asyncio.create_task(say(here, "one", user="u"))
        await here.standin.wait_for(1, WAIT)
        leaving.cancel()
        async with asyncio.timeout(WAIT):
            await noticed.wait()
        held.open()
        canceled = await here.standin.wait_for(lambda each: each.path == CANCEL, WAIT)
        (chat,) = here.standin.chats.values()
        assert canceled.json() == {"chat_id": chat.identity, "conversation_id": chat.conversation.identity}
        assert canceled.key == ONE
