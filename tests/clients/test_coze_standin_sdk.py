"""The real cozepy SDK against the stand-in, with nothing between them: it holds the stand-in to the real wire.

The SDK has its own interpreter (environments.py) and runs once: programs/coze_sdk.py tells what became of each scenario.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from balancer.standin.base import running
from balancer.standin.coze import BOT, CozeStandIn
from balancer.standin.coze_answers import Play
from balancer.standin.record import Arrival
from tests.clients.environments import COZEPY, python_of
from tests.clients.running import wanted

KEY, OTHER = "pat_one_0000000000000", "pat_two_0000000000000"
PATIENCE = 90.0
_PROGRAM = Path(__file__).parent / "programs" / "coze_sdk.py"
SCENARIOS = (
    "chat_streams", "extras", "create_and_poll", "retrieve_and_messages", "cancel", "conversations", "files", "errors",
    "asynchronous",
)  # fmt: skip


@dataclass(frozen=True)
class Saw:
    """What became of the scenarios (None: well), what arrived meanwhile, and which chats were looked at too often."""

    became: dict[str, str | None]
    arrivals: tuple[Arrival, ...]
    hurried: list[str]


async def _run() -> Saw:
    standin = CozeStandIn([KEY, OTHER])
    standin.perform(OTHER, Play(reasoning=("hm", "…"), extras=True))
    standin.perform(OTHER, Play(outcome="failed", code=4014))
    async with running(standin) as url:
        process = await asyncio.create_subprocess_exec(
            *(str(python_of(COZEPY)), "-W", "ignore", str(_PROGRAM), url, KEY, OTHER, BOT),
            env={name: value for name, value in os.environ.items() if not name.lower().startswith(("coze", "http"))},
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
    return Saw(json.loads(out), tuple(standin.requests), standin.hurried)


@pytest.fixture(scope="module")
def saw() -> Saw:
    wanted(COZEPY)
    return asyncio.run(_run())


@pytest.mark.timeout(PATIENCE + 15)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_sdk_finds_what_it_expects(saw: Saw, scenario: str) -> None:
    assert saw.became[scenario] is None, saw.became[scenario]


def test_every_scenario_of_the_program_is_asked_for(saw: Saw) -> None:
    assert set(saw.became) == set(SCENARIOS)


def test_the_sdk_names_itself_and_looks_no_oftener_than_it_may(saw: Saw) -> None:
    assert all((arrival.header("user-agent") or "").startswith("cozepy/") for arrival in saw.arrivals)
    assert not saw.hurried
