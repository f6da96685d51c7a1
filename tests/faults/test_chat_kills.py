"""The whole proxy killed by SIGKILL right behind a `complete`: what its client was told is there afterwards, and goes on."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import aiohttp

from balancer.standin.base import running as standing_in
from balancer.standin.coze import BOT, CozeStandIn
from tests.faults.process import proxy
from tests.surfaces.chats import event_of

KEY = "pat-first-pool-key-01"


def serving(folder: Path, upstream: str) -> AbstractAsyncContextManager[tuple[asyncio.subprocess.Process, str]]:
    coze = {"kind": "coze", "base_url": upstream, "keys": [KEY], "bot_id": BOT}
    return proxy(folder, f"sqlite:///{folder}/chats.db", {"coze": coze}, chat={"upstream": "coze"})


async def test_what_complete_has_told_survives_a_kill(tmp_path: Path) -> None:
    standin = CozeStandIn([KEY])
    async with standing_in(standin) as upstream, aiohttp.ClientSession() as http:
        async with serving(tmp_path, upstream) as (program, url):
            body = {"message": "one", "session_id": "S"}
            async with http.post(f"{url}/chat/stream", json=body) as answer:
                while (event := await event_of(answer))["type"] != "complete":
                    pass
                program.send_signal(signal.SIGKILL)
                await program.wait()
        conversation = event["data"]["conversation_id"]
        async with serving(tmp_path, upstream) as (_, url):
            async with http.get(f"{url}/session/S/info") as answer:
                info = await answer.json()
            assert (info["message_count"], info["conversation_id"]) == (2, conversation)
            async with http.post(f"{url}/chat", json={"message": "two", "session_id": "S"}) as answer:
                told = await answer.json()
            assert (told["response"], told["conversation_id"]) == ("You said: two", conversation)
        assert standin.conversations[conversation].texts == ["one", "two"]
