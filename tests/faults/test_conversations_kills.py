"""The whole proxy killed by SIGKILL at random moments: what its clients were told is stored, is stored, once and in order.

CHAT_KILLS is how often it is killed on each database.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from balancer.standin.openai.app import OpenAIStandIn
from balancer.standin.openai.app import running as standing_in
from tests.contract.databases import any_server, new_database, own_server
from tests.faults.chat_load import Told, load, stored
from tests.faults.process import WAIT, proxy

KILLS = int(os.environ.get("CHAT_KILLS", "2"))
CLIENTS = 12


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with ExitStack() as stack:
        if request.param == "sqlite":
            yield f"sqlite:///{tmp_path}/chats.db"
        else:
            yield stack.enter_context(new_database(stack.enter_context(any_server())))


def serving(
    folder: Path, database: str, upstream: str
) -> AbstractAsyncContextManager[tuple[asyncio.subprocess.Process, str]]:
    openai = {"kind": "openai", "base_url": f"{upstream}/v1", "keys": ["a-pool-key-0001"], "models": ["gpt-*"]}
    return proxy(folder, database, {"oa": openai})


async def sessions_of(url: str, count: int) -> list[str]:
    made = []
    async with aiohttp.ClientSession() as http:
        for number in range(count):
            async with http.post(f"{url}/api/sessions", json={"title": f"session {number}"}) as answer:
                assert answer.status == 200, await answer.text()
                made.append((await answer.json())["id"])
    return made


def check(turns: dict[str, list[dict[str, Any]]], told: Told) -> None:
    """All that was told is there, once; each answer that is whole stands behind its question; nothing else is there."""
    for session, of_session in turns.items():
        contents = Counter(turn["content"] for turn in of_session if turn["role"] != "assistant")
        assert not [content for content, times in contents.items() if times > 1]
        posted = {each["id"]: each["content"] for each in of_session if each["role"] == "note"}
        for _, identity, text in (each for each in told.messages if each[0] == session):
            assert posted.get(identity) == text
        spoken = [turn for turn in of_session if turn["role"] != "note"]
        answered = set()
        for before, turn in pairwise(spoken):
            if turn["role"] == "assistant":
                assert before["role"] == "user"
                assert before["content"] in told.asked
                if turn["metadata_info"] is None:
                    assert turn["content"] == f"You said: {before['content']}"
                    answered.add(before["content"])
        missing = {text for where, text in told.answers if where == session} - answered
        assert not missing


async def kill(
    folder: Path, database: str, upstream: str, told: Told, sessions: list[str], chance: random.Random
) -> None:
    """One life of the proxy: what was told before is there, and then it works until it is killed."""
    async with serving(folder, database, upstream) as (program, url):
        sessions += await sessions_of(url, 4 - len(sessions))
        check({session: await stored(url, session) for session in sessions}, told)
        dead, before = asyncio.Event(), len(told.answers)
        working = asyncio.create_task(load(url, sessions, told, CLIENTS, dead))
        async with asyncio.timeout(WAIT):
            while len(told.answers) < before + chance.randrange(1, 60) and not working.done():
                await asyncio.wait({working}, timeout=chance.uniform(0, 0.05))
        program.send_signal(signal.SIGKILL)
        await program.wait()
        dead.set()
        await working


@pytest.mark.timeout(30 + 6 * KILLS)
async def test_a_killed_proxy_has_stored_all_that_its_clients_were_told(url: str, tmp_path: Path) -> None:
    chance, told, sessions = random.Random(KILLS), Told(), list[str]()
    async with standing_in(OpenAIStandIn(["a-pool-key-0001"])) as upstream:
        for _ in range(KILLS):
            await kill(tmp_path, url, upstream, told, sessions, chance)
        async with serving(tmp_path, url, upstream) as (_, at):
            check({session: await stored(at, session) for session in sessions}, told)
    assert told.answers
    assert told.messages


@pytest.mark.timeout(60)
async def test_a_database_server_that_restarts_under_load_loses_nothing(tmp_path: Path) -> None:
    told = Told()
    with own_server() as server, new_database(server.url) as database:
        async with (
            standing_in(OpenAIStandIn(["a-pool-key-0001"])) as upstream,
            serving(tmp_path, database, upstream) as (_, url),
        ):
            sessions = await sessions_of(url, 4)
            ended, away = asyncio.Event(), asyncio.Event()
            working = asyncio.create_task(load(url, sessions, told, CLIENTS, ended, away))
            await more(told, working)
            await asyncio.to_thread(server.stop, signal.SIGQUIT)
            async with asyncio.timeout(WAIT):
                await away.wait()
            async with aiohttp.ClientSession() as http:
                async with http.get(f"{url}/api/sessions") as answer:
                    assert (answer.status, (await answer.json())["error"]["code"]) == (503, "storage_unavailable")
                    assert int(answer.headers["Retry-After"]) > 0
                async with http.get(f"{url}/api/health") as answer:
                    assert answer.status == 200
            await asyncio.to_thread(server.start)
            await more(told, working)
            ended.set()
            await working
            check({session: await stored(url, session) for session in sessions}, told)


async def more(told: Told, working: asyncio.Task[None]) -> None:
    """Returns when clients were told some more answers."""
    before = len(told.answers)
    async with asyncio.timeout(WAIT):
        while len(told.answers) < before + 20 and not working.done():
            await asyncio.wait({working}, timeout=0.05)
    if working.done():
        await working
