"""The chat surface over upstreams of other kinds: Gemini, and those that keep the conversation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from balancer.standin.achuan import AchuanStandIn
from balancer.standin.app import StandIn
from balancer.standin.app import running as standing_in
from tests.fakes import FakeClock
from tests.proxy import KEYS, proxying
from tests.surfaces.backend_chats import ALICE, BOB, MODEL, Here, here
from tests.surfaces.chats import ANN, TOKENS, Bot
from tests.upstream import RawUpstream


async def test_two_turns_over_gemini_reach_it_as_three_messages(tmp_path: Path) -> None:
    standin = StandIn(KEYS)
    chat = {"upstream": "gemini", "model": "gemini-2.5-flash"}
    database = {"url": f"sqlite:///{tmp_path}/chats.db"}
    async with (
        standing_in(standin) as url,
        proxying(url, KEYS, chat=chat, database=database, auth={"tokens": TOKENS}) as proxy,
    ):
        bot = Bot(proxy, RawUpstream(None))  # type: ignore[arg-type]  # nobody asks it
        first = (await bot.chat("one")).json
        second = await bot.stream("two", session_id=first["session_id"])
        assert second.kinds[-1] == "complete"
        arrived = [each for each in standin.requests if each.path.endswith("/chat/completions")]
        assert [message["content"] for message in arrived[1].json()["messages"]] == ["one", first["response"], "two"]
        assert len({each.key for each in arrived}) == 1


@asynccontextmanager
async def talking(folder: Path, *keys: str, **more: Any) -> AsyncIterator[tuple[Bot, Here]]:
    """The surface on a stand-in of achuan."""
    sections = {
        "auth": {"tokens": TOKENS},
        "chat": {"upstream": "achuan", "model": MODEL},
        "database": {"url": f"sqlite:///{folder}/chats.db"},
    }
    async with here(keys or (ALICE,), **{**sections, **more}) as at:
        yield Bot(at.proxy, RawUpstream(None)), at  # type: ignore[arg-type]  # nobody asks it


async def test_an_upstream_that_keeps_the_conversation_gets_only_what_is_new(tmp_path: Path) -> None:
    async with talking(tmp_path) as (bot, at):
        first = (await bot.chat("one", session_id="S")).json
        second = await bot.stream("two", session_id="S")
        assert (len(at.created), at.texts) == (1, ["one", "two"])
        assert second.events[-1]["data"]["full_content"] == "You said: two"
        assert first["conversation_id"].startswith("conv_")
        assert second.events[-1]["data"]["conversation_id"] == first["conversation_id"]


async def test_the_conversation_goes_on_after_a_restart(tmp_path: Path) -> None:
    standin: AchuanStandIn
    async with talking(tmp_path) as (bot, at):
        await bot.chat("one", session_id="S")
        async with proxying(
            at.url,
            ["unused"],
            auth={"tokens": TOKENS},
            chat={"upstream": "achuan", "model": MODEL},
            database={"url": f"sqlite:///{tmp_path}/chats.db"},
            upstreams={"achuan": {"kind": "achuan", "base_url": at.url, "keys": [ALICE], "models": [MODEL]}},
        ) as proxy:
            again = Bot(proxy, RawUpstream(None))  # type: ignore[arg-type]  # nobody asks it
            assert (await again.chat("two", session_id="S")).status == 200
        standin = at.standin
        assert (len(at.created), at.texts) == (1, ["one", "two"])
        assert standin.overlaps == []


async def test_a_conversation_that_is_gone_is_made_anew_with_what_was_said(tmp_path: Path) -> None:
    async with talking(tmp_path) as (bot, at):
        first = (await bot.chat("one", session_id="S")).json
        at.standin.forget_session(at.sessions[0])
        second = (await bot.chat("two", session_id="S", conversation_id=first["conversation_id"])).json
        assert second["response"].endswith("two")
        assert len(at.created) == 2
        assert at.texts == ["one", "two", "user: one\n\nassistant: You said: one\n\ntwo"]
        assert second["conversation_id"] == first["conversation_id"]


async def test_a_dead_key_s_conversation_moves_with_what_was_said(tmp_path: Path) -> None:
    async with talking(tmp_path, ALICE, BOB) as (bot, at):
        await bot.chat("one", session_id="S")
        (owner,) = {each.header("authorization") for each in at.completed}
        at.standin.script(str(owner), "status-401")
        answer = await bot.chat("two", session_id="S")
        assert answer.status == 200, answer.body
        assert at.completed[-1].header("authorization") != owner
        assert at.texts[-1] == "user: one\n\nassistant: You said: one\n\ntwo"


@pytest.mark.parametrize("path", ["/chat", "/chat/stream"])
async def test_a_backend_that_breaks_off_is_a_failure(tmp_path: Path, path: str) -> None:
    async with talking(tmp_path) as (bot, at):
        at.standin.says = lambda text: ["a ", "b ", "c"]
        at.standin.script(ALICE, "cut-fin", after=2, target="/completions", times=1)
        answer = await bot.call("POST", path, {"message": "m", "session_id": "S"}, ANN)
        detail = "achuan API请求失败: 502 Bad Gateway"
        if path == "/chat":
            assert answer.said == (500, detail)
        else:
            assert answer.kinds == ["chunk", "chunk", "error"]
            assert answer.events[-1]["data"]["message"] == detail
        assert (await bot.info("S"))["message_count"] == 1


async def test_a_backend_s_refusal_is_told_by_its_status(tmp_path: Path) -> None:
    async with talking(tmp_path, clock=FakeClock()) as (bot, at):
        at.standin.script(ALICE, "status-500", target="/completions")
        answer = await bot.chat("m", session_id="S")
        assert answer.said == (500, "achuan API请求失败: 502 Bad Gateway")
