"""The whole proxy killed by SIGKILL right behind a `complete`: what its client was told is there afterwards, and goes on."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from balancer.standin.base import running as standing_in
from balancer.standin.coze import BOT, CozeStandIn
from tests.surfaces.chats import event_of

KEY = "pat-first-pool-key-01"
WAIT = 20.0


@asynccontextmanager
async def serving(folder: Path, upstream: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A whole proxy in a process of its own, and its address."""
    config = folder / "config.yaml"
    tree = {
        "server": {"port": 0},
        "admin": {"port": "off"},
        "database": {"url": f"sqlite:///{folder}/chats.db"},
        "upstreams": {"coze": {"kind": "coze", "base_url": upstream, "keys": [KEY], "bot_id": BOT}},
        "chat": {"upstream": "coze"},
        "logging": {"level": "error"},
    }
    config.write_text(json.dumps(tree))
    clean = {name: value for name, value in os.environ.items() if "PROXY" not in name.upper()}
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "balancer", "serve", "--config", str(config)),
        stdout=asyncio.subprocess.PIPE,
        env={**clean, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=folder,
    )
    assert program.stdout is not None
    try:
        async with asyncio.timeout(WAIT):
            said = b""
            while (found := re.search(rb"(http://127\.0\.0\.1:\d+) -> ", said)) is None:
                line = await program.stdout.readline()
                assert line, said
                said += line
        yield program, found[1].decode()
    finally:
        if program.returncode is None:
            program.kill()
        await program.communicate()


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
