"""The real openai SDK against the stand-in, with nothing between them: it holds the stand-in to the real wire.

The SDK has its own interpreter (environments.py) and runs once: programs/openai_sdk.py tells what became of each scenario.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from balancer.standin.openai.app import OpenAIStandIn, running
from balancer.standin.record import Arrival
from tests.clients.environments import python_of
from tests.clients.matrix import OPENAI
from tests.clients.running import wanted

KEYS = ("sk-one-0000000000000", "sk-two-0000000000000")
PATIENCE = 90.0
_PROGRAM = Path(__file__).parent / "programs" / "openai_sdk.py"
SCENARIOS = (
    "chat", "chat_streams", "tools", "structured", "stored_chats", "completions", "embeddings", "moderations", "images",
    "audio", "models", "files", "uploads", "batches", "responses", "responses_stream", "conversations", "vector_stores",
    "shelves", "assistants", "errors", "asynchronous", "realtime",
)  # fmt: skip


@dataclass(frozen=True)
class Saw:
    """What became of the scenarios (None: well), and what arrived meanwhile."""

    became: dict[str, str | None]
    arrivals: tuple[Arrival, ...]


async def _run() -> Saw:
    standin = OpenAIStandIn(KEYS)
    async with running(standin) as url:
        process = await asyncio.create_subprocess_exec(
            *(str(python_of(OPENAI)), "-W", "ignore", str(_PROGRAM), url, *KEYS),
            env={name: value for name, value in os.environ.items() if not name.lower().startswith(("openai", "http"))},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(PATIENCE):
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, err.decode(errors="replace")[-3000:]
    return Saw(json.loads(out), tuple(standin.requests))


@pytest.fixture(scope="module")
def saw() -> Saw:
    wanted(OPENAI)
    return asyncio.run(_run())


@pytest.mark.timeout(PATIENCE + 15)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_sdk_finds_what_it_expects(saw: Saw, scenario: str) -> None:
    assert saw.became[scenario] is None, saw.became[scenario]


def test_every_scenario_of_the_program_is_asked_for(saw: Saw) -> None:
    assert set(saw.became) == set(SCENARIOS)


def test_the_sdk_names_itself_and_sends_one_credential(saw: Saw) -> None:
    assert all(arrival.header("authorization") for arrival in saw.arrivals)
    agents = {arrival.header("user-agent") or "" for arrival in saw.arrivals if "realtime?" not in arrival.target}
    assert {agent.partition(" ")[0] for agent in agents} == {"OpenAI/Python", "AsyncOpenAI/Python"}
    assert not [arrival for arrival in saw.arrivals if arrival.status is None or arrival.status >= 500]
