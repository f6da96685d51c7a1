"""The chat surface over Coze, which keeps the conversation: what reaches it, and what its failures come to."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from balancer.standin.coze_answers import Play
from tests.surfaces.chats import event_of
from tests.surfaces.coze_chats import ONE, TWO, beside, coze
from tests.upstream import WAIT


async def test_a_first_message_names_no_conversation(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        answer = await here.chat("hello")
        told = answer.json
        assert set(told) == {"response", "session_id", "message_id", "timestamp", "conversation_id"}
        assert told["response"] == "You said: hello"
        assert here.conversations == [None]
        assert told["conversation_id"] in here.standin.conversations
        (arrival,) = here.asked()
        assert arrival.json()["user_id"] == "default_user"
        assert arrival.header("accept") == "text/event-stream"


async def test_the_next_message_goes_on_with_the_same_key(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        first = (await here.chat("one")).json
        second = (await here.stream("two", session_id=first["session_id"], user_id="u-1")).events[-1]["data"]
        assert here.keys == [ONE, ONE]
        assert here.conversations == [None, first["conversation_id"]]
        assert second["conversation_id"] == first["conversation_id"]
        assert here.texts() == [("user", "two")]
        assert here.asked()[-1].json()["user_id"] == "u-1"
        info = await here.info(first["session_id"])
        assert (info["user_id"], info["message_count"]) == ("u-1", 4)


async def test_of_two_first_messages_the_second_waits_for_the_conversation(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        answers = await asyncio.gather(*(here.chat(text, session_id="S") for text in ("one", "two")))
        assert sorted(each.json["response"] for each in answers) == ["You said: one", "You said: two"]
        assert len({each.json["conversation_id"] for each in answers}) == 1
        assert len(here.standin.conversations) == 1
        assert here.standin.overlaps == []


async def test_turns_of_one_session_in_two_processes_come_one_after_the_other(tmp_path: Path) -> None:
    async with coze(tmp_path) as here, beside(here) as there:
        turns = [process.chat(f"m{n}", session_id="S") for n, process in enumerate((here, there) * 3)]
        answers = await asyncio.gather(*turns)
        assert [each.json["response"] for each in answers] == [f"You said: m{n}" for n in range(6)]
        assert len({each.json["conversation_id"] for each in answers}) == 1
        assert here.standin.overlaps == []
        assert (await there.info("S"))["message_count"] == 12


@pytest.mark.parametrize("split", [0, 1, 3, 50])
async def test_deltas_pass_unchanged_under_any_split(tmp_path: Path, split: int) -> None:
    async with coze(tmp_path) as here:
        here.standin.play = Play(messages=(("a ", " b", "\n"),), split=split, extras=True, reasoning=("hm",))
        answer = await here.stream()
        chunks = [each["data"]["content"] for each in answer.events if each["type"] == "chunk"]
        assert chunks == ["a ", " b", "\n"]
        complete = answer.events[-1]["data"]
        assert (complete["full_content"], complete["reasoning_content"]) == ("a  b\n", "hm")
        for word in (b"secret", b"And then", b"recalled", b"card"):
            assert word not in answer.body


async def test_a_chat_that_is_no_stream_is_looked_at_until_it_has_ended(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        here.standin.play = Play(messages=(("one",), ("two",)), plain=True, polls=1)
        assert (await here.chat()).json["response"] == "one\n\ntwo"


async def test_a_dead_key_is_left_while_the_session_is_new(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        here.standin.script(ONE, "code-4100")
        assert (await here.chat()).status == 200
        assert here.keys == [ONE, TWO]
        async with here.proxy.client.get(here.proxy.admin_url + "/api/keys") as answer:
            upstreams = (await answer.json())["upstreams"]
        states = [key["state"] for each in upstreams if each["name"] == "coze" for key in each["keys"]]
        assert states == ["disabled", "ready"]


async def test_a_session_whose_key_has_died_goes_on_elsewhere_with_what_was_said(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        first = (await here.chat("one", session_id="S")).json
        here.standin.script(ONE, "code-4100")
        second = (await here.chat("two", session_id="S")).json
        assert second["response"] == "You said: two"
        assert second["conversation_id"] != first["conversation_id"]
        assert here.keys == [ONE, ONE, TWO]
        assert here.texts() == [("user", "one"), ("assistant", "You said: one"), ("user", "two")]
        third = (await here.chat("three", session_id="S")).json
        assert third["conversation_id"] == second["conversation_id"]


async def test_the_call_that_disables_the_last_key_tells_the_refusal_and_later_ones_that_there_is_none(
    tmp_path: Path,
) -> None:
    async with coze(tmp_path, [ONE]) as here:
        here.standin.script(ONE, "code-4100")
        answer = await here.chat()
        assert (answer.status, answer.json["detail"]) == (500, "Coze API请求失败: 401 Unauthorized")
        assert answer.json["code"] == 4100
        assert (await here.chat()).said == (503, "服务不可用: no usable key")
        assert (await here.get("/health", None)).json["coze_client_status"] == "uninitialized"
        assert (await here.get("/", None)).json["message"] == "Coze聊天机器人API服务正在运行"


async def test_a_busy_conversation_is_asked_again_with_the_same_key(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        await here.chat("one", session_id="S")
        here.standin.script(ONE, "code-4016", times=2)
        answer = await here.stream("two", session_id="S")
        assert answer.kinds[-1] == "complete"
        assert here.keys == [ONE] * 4


async def test_a_conversation_that_stays_busy_is_told_as_such(tmp_path: Path) -> None:
    async with coze(tmp_path, chat={"upstream": "coze", "turn_wait": "100ms"}) as here:
        await here.chat("one", session_id="S")
        here.standin.script(ONE, "code-4016")
        answer = await here.chat("two", session_id="S")
        assert answer.said == (503, "会话正忙，请稍后重试")


@pytest.mark.parametrize("code", [4002, 4200])
async def test_a_conversation_that_is_gone_is_replaced_once(tmp_path: Path, code: int) -> None:
    async with coze(tmp_path) as here:
        here.standin.missing_as = code
        first = (await here.chat("one", session_id="S")).json
        here.standin.forget_conversation(first["conversation_id"])
        second = (await here.chat("two", session_id="S")).json
        assert second["conversation_id"] != first["conversation_id"]
        assert here.texts() == [("user", "one"), ("assistant", "You said: one"), ("user", "two")]
        named = second["conversation_id"]
        here.standin.forget_conversation(named)
        answer = await here.chat("three", session_id="S", conversation_id=named)
        assert answer.said == (404, f"会话不存在 - conversation_id: {named}")


async def test_a_conversation_that_nobody_here_has_met_is_looked_for(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        named = here.standin.begin_conversation(TWO).identity
        told = (await here.chat("hello", session_id="S", conversation_id=named)).json
        assert told["conversation_id"] == named
        assert (here.keys, here.conversations) == ([TWO], [named])
        assert [each.key for each in here.asked("/v1/conversation/retrieve")] == [ONE, TWO]
        other = here.standin.begin_conversation(TWO).identity
        bound = await here.call("POST", "/session/T/bind", {"conversation_id": other})
        assert bound.json["conversation_id"] == other
        missing = await here.call("POST", "/session/T/bind", {"conversation_id": "1234567890123"})
        assert missing.said == (404, "会话不存在 - conversation_id: 1234567890123")
        assert (await here.info("T"))["conversation_id"] == other


async def test_a_chat_that_fails_in_its_middle_is_an_error_event(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        here.standin.play = Play(messages=(("a", "b"),), outcome="failed", code=5000)
        answer = await here.stream(session_id="S")
        assert (answer.status, answer.kinds) == (200, ["chunk", "chunk", "error"])
        assert answer.events[-1]["data"]["message"] == "Coze API请求失败: 500 Internal Server Error"
        assert (await here.info("S"))["message_count"] == 1


@pytest.mark.parametrize(
    ("fault", "status", "detail"),
    [
        ("code-4014", 400, "Coze API请求失败: 400 Bad Request"),
        ("code-4015", 500, "Coze API请求失败: 400 Bad Request"),
        ("error-4014", 400, "Coze API请求失败: 400 Bad Request"),
        ("status-502", 500, "Coze API请求失败: 502 Bad Gateway"),
        ("code-5000", 500, "Coze API请求失败: 500 Internal Server Error"),
    ],
)
@pytest.mark.parametrize("path", ["/chat", "/chat/stream"])
async def test_refusals_before_the_chat_is_made_are_plain_errors(
    tmp_path: Path, fault: str, status: int, detail: str, path: str
) -> None:
    async with coze(tmp_path) as here:
        for key in (ONE, TWO):
            here.standin.script(key, fault)
        answer = await here.call("POST", path, {"message": "m"})
        assert (answer.status, answer.json["detail"]) == (status, detail)


async def test_keys_that_rest_are_told_with_the_time(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        for key in (ONE, TWO):
            here.standin.script(key, "code-4020")
        answer = await here.chat()
        assert answer.said == (429, "Coze API请求失败: 429 Too Many Requests")
        assert 1 <= int(answer.headers["Retry-After"]) <= 60


async def test_who_leaves_cancels_the_chat_and_the_next_turn_is_served(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        here.standin.script(ONE, "stall-stream", after=3, times=1)
        async with here.open("one", session_id="S") as answer:
            assert (await event_of(answer))["type"] == "chunk"
            answer.close()
        async with asyncio.timeout(1):
            await here.standin.wait_for(lambda each: each.path == "/v3/chat/cancel")
        assert (await here.chat("two", session_id="S")).status == 200
        assert here.standin.overlaps == []
        assert (await here.info("S"))["message_count"] == 4


async def test_who_leaves_before_the_chat_is_known_cancels_it_when_it_is(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        held = here.standin.script(ONE, "stall-head", times=1)
        leaving = asyncio.create_task(here.stream("one", session_id="S"))
        await here.standin.wait_for(1, WAIT)
        leaving.cancel()
        held.open()
        await here.standin.wait_for(lambda each: each.path == "/v3/chat/cancel", WAIT)
        assert (await here.chat("two", session_id="S")).status == 200
        assert here.standin.overlaps == []


async def test_clearing_cancels_the_chat_and_begins_a_new_conversation(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        here.standin.script(ONE, "stall-stream", after=3, times=1)
        async with here.open("one", session_id="S") as answer:
            first = await event_of(answer)
            assert (await here.call("POST", "/session/S/clear")).status == 200
            while (event := await event_of(answer))["type"] == "chunk":
                pass
            assert event["type"] == "error"
        await here.standin.wait_for(lambda each: each.path == "/v3/chat/cancel", WAIT)
        again = (await here.chat("two", session_id="S")).json
        assert again["conversation_id"] != first["data"]["conversation_id"]
        assert here.texts() == [("user", "two")]


async def test_another_client_s_conversation_is_not_there(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        named = (await here.chat("one", session_id="S")).json["conversation_id"]
        answer = await here.chat("two", token="token-of-bob-2", conversation_id=named)
        assert answer.said == (404, f"会话不存在 - conversation_id: {named}")
        assert len(here.asked()) == 1
