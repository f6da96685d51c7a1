"""Bots of Coze behind the openai surface, end to end: which conversation a request goes on with, what travels, what comes back.

Every test also proves that no chat was looked at in a hurry: `coze` looks at the end.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from balancer.standin.coze import BOT
from balancer.standin.coze_answers import Play
from tests.fakes import FakeClock
from tests.proxy import proxying
from tests.surfaces.backend_chats import CHAT, Chat, next_frame, user
from tests.surfaces.chats import ANN, BOB, TOKENS
from tests.surfaces.coze_chats import LOOK_UP, MODEL, ONE, TWO, conversation, coze, say
from tests.upstream import WAIT


def named(identity: str) -> dict[str, str]:
    return {"x-conversation-id": identity}


# What travels ------------------------------------------------------------------------------------------------------------


async def test_a_session_s_first_request_sends_all_messages_and_later_ones_the_last(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        history = [
            {"role": "system", "content": "Be brief."},
            user("one"),
            {"role": "assistant", "content": "a"},
            user("two"),
        ]
        first = await say(here, *history, user="Kim")
        assert here.texts() == [("user", "Be brief.\n\none"), ("assistant", "a"), ("user", "two")]
        assert here.asked()[0].json()["user_id"] == "Kim"
        second = await say(here, *history, {"role": "assistant", "content": "b"}, "three", user="Kim")
        assert (first.text, second.text) == ("You said: two", "You said: three")
        assert here.texts() == [("user", "three")]
        assert here.conversations == [None, conversation(first)]
        assert conversation(second) == conversation(first)
        assert here.keys == [ONE, ONE]


async def test_the_newest_hundred_messages_make_a_conversation(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        history = [user(str(n)) if n % 2 else {"role": "assistant", "content": str(n)} for n in range(1, 120)]
        assert (await say(here, *history)).status == 200
        assert [text for _, text in here.texts()] == [str(n) for n in range(20, 120)]


async def test_a_session_is_one_client_s_with_one_bot_and_nobody_s_without_a_name(tmp_path: Path) -> None:
    bots = [{"name": name, "bot_id": here_id} for name, here_id in (("poet", 7379462189365198898), ("cook", "other"))]
    async with coze(
        tmp_path, settings={"bot_id": None, "bots": bots}, chat={"upstream": "coze", "model": "poet"}
    ) as here:
        here.standin.world.models = ("7379462189365198898", "other")
        asked = [
            await say(here, model="poet", user="u"),
            await say(here, model="coze/cook", user="u"),
            await say(here, model="poet", user="u", token=BOB),
            await say(here, model="poet"),
            await say(here, model="poet"),
        ]
        assert len({conversation(each) for each in asked}) == 5
        assert [each.json["model"] for each in asked] == ["poet", "cook", "poet", "poet", "poet"]
        assert [each.json()["bot_id"] for each in here.asked()][:2] == ["7379462189365198898", "other"]
        async with here.proxy.get("/v1/models", headers={"Authorization": f"Bearer {ANN}"}) as answer:
            assert {"poet", "cook"} <= {each["id"] for each in (await answer.json())["data"]}


@pytest.mark.parametrize(
    "place",
    [
        {"headers": {"x-session-id": "42"}},
        {"path": f"{CHAT}?session_id=42"},
        {"session_id": "42"},
        {"session_id": 42},
        {"metadata": {"sessionId": 42}},
        {"path": f"/s/42{CHAT}"},
        {"user": " 42 "},
    ],
    ids=str,
)
async def test_a_number_is_a_session_s_name_like_any_other(tmp_path: Path, place: dict[str, Any]) -> None:
    async with coze(tmp_path) as here:
        first = await say(here, "one", headers={"x-session-id": "42"})
        second = await say(here, "two", **place)
        assert conversation(second) == conversation(first)
        assert here.conversations == [None, conversation(first)]


async def test_a_session_is_remembered_for_a_day_from_its_last_use(tmp_path: Path) -> None:
    clock = FakeClock()
    async with coze(tmp_path, clock=clock) as here:
        first = await say(here, "one", user="u")
        for hours in (23, 23):
            clock.advance(hours * 3600)
            assert conversation(await say(here, "more", user="u")) == conversation(first)
        clock.advance(24 * 3600 + 1)
        assert conversation(await say(here, "late", user="u")) != conversation(first)


async def test_of_two_first_requests_of_a_session_the_second_waits_for_the_conversation(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        held = here.standin.script(ONE, "stall-stream", after=3, times=1)
        first = asyncio.create_task(say(here, "one", user="u"))
        await here.standin.wait_for(1, WAIT)
        second = asyncio.create_task(say(here, "two", user="u"))
        other = await say(here, "else", user="v")
        assert len(here.asked()) == 2
        held.open()
        answers = [await first, await second]
        assert [each.text for each in answers] == ["You said: one", "You said: two"]
        assert len({conversation(each) for each in [*answers, other]}) == 2
        assert here.standin.overlaps == []


async def test_of_ten_first_requests_in_two_processes_one_makes_the_conversation(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        one = here.proxy.server.runtime
        url = one.settings.upstreams["coze"].base_url
        bots = {"coze": {"kind": "coze", "base_url": url, "bot_id": BOT, "keys": [ONE, TWO]}}
        async with proxying(
            "http://127.0.0.1:9", ["unused-key-0001"], auth={"tokens": TOKENS}, upstreams=bots
        ) as proxy:
            other = proxy.server.runtime
            other.talks, other.locks, other.bindings = one.talks, one.locks, one.bindings
            other.apply(other.settings)
            beside = Chat(proxy, ANN)
            asked = [say(here, f"m{n}", user="u") for n in range(5)]
            asked += [beside.say(f"n{n}", model=MODEL, user="u") for n in range(5)]
            answers = await asyncio.gather(*asked)
        assert len({conversation(each) for each in answers}) == 1
        assert len(here.standin.conversations) == 1
        assert here.standin.overlaps == []


# What comes back ---------------------------------------------------------------------------------------------------------


async def test_a_stream_tells_thoughts_deltas_and_on_request_the_usage(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        here.standin.play = Play(messages=(("a ", " b"), ("c",)), reasoning=("hm", "…"), extras=True, split=3)
        options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
        answer = await say(here, **options)
        frames = answer.frames
        assert frames.pop() == "[DONE]"
        usage = frames.pop()
        assert (usage["choices"], usage["usage"]) == (
            [],
            {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10},
        )
        deltas = [each["choices"][0]["delta"] for each in frames]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert [each for each in deltas[1:] if "reasoning_content" in each] == [
            {"reasoning_content": "hm"},
            {"reasoning_content": "…"},
        ]
        assert [each["content"] for each in deltas[1:] if "content" in each] == ["a ", " b", "\n\n", "c"]
        assert frames[-1]["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "stop"}
        assert conversation(answer) in here.standin.conversations
        assert "usage" not in (await say(here, stream=True)).body.decode()


async def test_a_whole_answer_has_thoughts_and_usage_too(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        here.standin.play = Play(messages=(("a ", " b"),), reasoning=("h", "m"))
        answer = (await say(here)).json
        (choice,) = answer["choices"]
        assert choice["message"] == {"role": "assistant", "content": "a  b", "reasoning_content": "hm"}
        assert choice["finish_reason"] == "stop"
        assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}


async def test_each_delta_passes_at_once(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        held = here.standin.script(ONE, "stall-stream", after=3, times=1)
        async with Chat(here.proxy).streaming(model=MODEL) as answer:
            assert (await next_frame(answer))["choices"][0]["delta"]["role"] == "assistant"
            assert (await next_frame(answer))["choices"][0]["delta"]["content"] == "You s"
            held.open()
            rest = await answer.content.read()
            assert rest.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(("done", "closed"), [(False, True), (False, False), (True, False)])
async def test_an_answer_is_whole_with_its_completion(tmp_path: Path, done: bool, closed: bool) -> None:
    async with coze(tmp_path) as here:
        here.standin.play = Play(done=done, closed=closed)
        assert (await say(here, stream=True)).frames[-1] == "[DONE]"


async def test_a_completed_answer_is_told_though_the_connection_stays_open(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        # created, in_progress, three deltas, the message, completed; then `done` is withheld
        held = here.standin.script(ONE, "stall-stream", after=7, times=1)
        async with asyncio.timeout(WAIT):
            assert (await say(here, user="u")).text == "You said: hello"
        held.open()
        assert (await say(here, "two", user="u")).status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_that_is_no_stream_and_fails_is_an_error_of_its_own(tmp_path: Path, stream: bool) -> None:
    async with coze(tmp_path) as here:
        here.standin.play = Play(plain=True, polls=0, outcome="failed", code=4014)
        answer = await say(here, stream=stream)
        assert conversation(answer) in here.standin.conversations
        assert len(here.asked()) == 1
        if stream:
            assert answer.frames[-1]["error"]["code"] == "stream_error"
        else:
            assert answer.code == (400, "coze_4014")


# Conversations that a request names --------------------------------------------------------------------------------------


async def test_a_conversation_that_nobody_here_has_met_is_looked_for_with_each_key(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        made = here.standin.begin_conversation(TWO)
        answer = await say(here, "one", "two", headers=named(made.identity))
        assert (answer.text, conversation(answer)) == ("You said: two", made.identity)
        assert [each.key for each in here.asked(LOOK_UP)] == [ONE, TWO]
        assert (here.keys, here.conversations, here.texts()) == ([TWO], [made.identity], [("user", "two")])
        assert (await say(here, "three", headers=named(made.identity))).status == 200
        assert len(here.asked(LOOK_UP)) == 2  # from now on it is known


async def test_an_id_that_an_answer_told_can_be_named_by_its_client_alone(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        identity = conversation(await say(here, "one", user="u"))
        assert conversation(await say(here, "two", headers=named(identity))) == identity
        refused = await say(here, headers=named(identity), token=BOB)
        assert refused.code == (404, "session_not_found")
        assert refused.message == f"会话不存在 - conversation_id: {identity}"
        assert (len(here.asked()), here.asked(LOOK_UP)) == (2, [])


async def test_a_conversation_that_nobody_knows_is_a_404(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        for stream in (False, True):
            answer = await say(here, headers=named("7500000000000000999"), stream=stream)
            assert answer.code == (404, "session_not_found")
            assert "x-conversation-id" not in answer.headers
        assert here.asked() == []


async def test_a_conversation_that_may_be_a_resting_key_s_is_a_429(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        here.standin.script(ONE, "code-4102", times=1)
        assert (await say(here)).status == 200  # with the other key
        answer = await say(here, headers=named("7500000000000000999"))
        assert answer.code == (429, "keys_resting")
        assert int(answer.headers["Retry-After"]) > 3000


async def test_a_conversation_that_a_request_names_is_never_replaced(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        identity = conversation(await say(here, "one", user="u"))
        here.standin.forget_conversation(identity)
        assert (await say(here, "two", user="u", headers=named(identity))).code == (404, "session_not_found")
        assert len(here.standin.conversations) == 0


@pytest.mark.parametrize("identity", ["123456789", "x" * 129, "1234 567\t89"])
async def test_what_cannot_be_a_conversation_s_id_is_a_400(tmp_path: Path, identity: str) -> None:
    async with coze(tmp_path) as here:
        assert (await say(here, headers=named(identity))).code == (400, "invalid_conversation_id")
        assert list(here.standin.requests) == []


@pytest.mark.parametrize("code", [4200, 4002])
async def test_a_session_s_conversation_that_is_gone_is_replaced_once_with_all_messages(
    tmp_path: Path, code: int
) -> None:
    async with coze(tmp_path) as here:
        here.standin.missing_as = code
        first = await say(here, "one", user="u")
        here.standin.forget_conversation(conversation(first))
        second = await say(here, "one", {"role": "assistant", "content": "a"}, "two", user="u")
        assert second.text == "You said: two"
        assert here.conversations == [None, conversation(first), None]
        assert here.texts() == [("user", "one"), ("assistant", "a"), ("user", "two")]
        assert conversation(await say(here, "three", user="u")) == conversation(second) != conversation(first)


# Beside chats ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/responses", "/v1/completions"])
async def test_other_endpoints_are_a_400(tmp_path: Path, path: str) -> None:
    async with coze(tmp_path) as here:
        answer = await Chat(here.proxy).post(path, {"model": MODEL, "input": "x", "prompt": "x"})
        assert answer.code == (400, "unsupported_endpoint")
        assert list(here.standin.requests) == []


async def test_raw_paths_pass_with_a_pooled_key(tmp_path: Path) -> None:
    async with coze(tmp_path, [ONE], settings={"raw": True}) as here:
        made = here.standin.begin_conversation(ONE)
        path = f"/proxy/coze{LOOK_UP}?conversation_id={made.identity}"
        async with here.proxy.get(path, headers={"Authorization": f"Bearer {ANN}"}) as answer:
            assert (await answer.json())["data"]["id"] == made.identity


async def test_a_client_s_own_limit_counts(tmp_path: Path) -> None:
    tokens = [{**each, "rpm": 1} for each in TOKENS]
    async with coze(tmp_path, auth={"tokens": tokens}) as here:
        assert (await say(here)).status == 200
        assert (await say(here)).code == (429, "rate_limit_exceeded")
        assert len(here.asked()) == 1
