"""What was acknowledged is there after kill -9: once, in order, under sequences without gaps.

STORE_KILLS is how often each is killed; each round goes on where the last was cut off.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from balancer.clock import SystemClock
from balancer.conversations.base import SessionName, Turn
from balancer.conversations.opening import Conversations
from tests.contract.databases import Server, any_server, new_database, own_server
from tests.faults.store_load import go, start

KILLS = int(os.environ.get("STORE_KILLS", "3"))
SESSIONS = ["one", "two", "three"]
WRITERS = 12


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with ExitStack() as stack:
        if request.param == "sqlite":
            yield f"sqlite:///{tmp_path}/chats.db"
        else:
            yield stack.enter_context(new_database(stack.enter_context(any_server())))


@dataclass(slots=True)
class Told:
    """What programs were told is stored."""

    turns: dict[tuple[str, int], tuple[str, str]] = field(default_factory=dict)
    """Id and text by session and sequence."""

    def note(self, lines: str) -> None:
        """The last line may be cut off."""
        for line in lines.split("\n")[:-1]:
            session, sequence, *rest = line.split()
            assert (session, int(sequence)) not in self.turns, "a sequence was given twice"
            self.turns[session, int(sequence)] = (rest[0], rest[1])


def killed(url: str, chance: random.Random) -> str:
    """What a program said until it was killed: while it opened the database, or at some moment of its work."""
    with start(url, WRITERS, 0, *SESSIONS) as program:
        go(program)
        assert program.stdout is not None
        said = [program.stdout.readline() for _ in range(chance.randrange(100))]
        with suppress(subprocess.TimeoutExpired):
            program.wait(chance.uniform(0, 0.05))
        program.send_signal(signal.SIGKILL)
        said.append(program.stdout.read())
    assert program.returncode == -signal.SIGKILL
    return "".join(said)


async def stored(url: str) -> dict[str, list[Turn]]:
    conversations = Conversations(url, SystemClock())
    store = await conversations.store()
    found = {}
    for name in SESSIONS:
        session, _ = await store.get_or_create(SessionName("ann", "chat", name))
        found[name] = await store.turns(session, limit=1_000_000)
        assert session.turns == len(found[name])
    await conversations.close()
    return found


def check(found: dict[str, list[Turn]], told: Told) -> None:
    for name, turns in found.items():
        assert [turn.sequence for turn in turns] == list(range(1, len(turns) + 1))
        of_writer = defaultdict(list)
        for turn in turns:
            writer, _, number = str(turn.content).partition(":")
            of_writer[writer].append(int(number))
        for numbers in of_writer.values():
            assert numbers == list(range(len(numbers))), "a turn is there twice, or not in the order it was written in"
        there = {(name, turn.sequence): (turn.id, turn.content) for turn in turns}
        wanted = {place: turn for place, turn in told.turns.items() if place[0] == name}
        assert {place: there.get(place) for place in wanted} == wanted


@pytest.mark.timeout(30 + 4 * KILLS)
async def test_a_killed_process_has_stored_all_that_it_acknowledged(url: str) -> None:
    chance = random.Random(KILLS)
    told = Told()
    for _ in range(KILLS):
        told.note(killed(url, chance))
        check(await stored(url), told)
    assert told.turns


@pytest.mark.timeout(30 + 4 * KILLS)
async def test_a_killed_server_has_stored_all_that_was_acknowledged() -> None:
    chance = random.Random(KILLS)
    told = Told()
    with own_server() as server, new_database(server.url) as url:
        for _ in range((KILLS + 1) // 2):
            told.note(told_until_the_server_dies(server, url, chance))
            check(await stored(url), told)
    assert told.turns


def told_until_the_server_dies(server: Server, url: str, chance: random.Random) -> str:
    with start(url, WRITERS, 40, *SESSIONS) as program:  # a writer that the server's absence spared goes on
        go(program)
        assert program.stdout is not None
        said = [program.stdout.readline() for _ in range(chance.randrange(1, 100))]
        server.stop(signal.SIGQUIT)
        server.start()
        said.append(program.stdout.read())
    assert program.returncode == 0
    return "".join(said)
