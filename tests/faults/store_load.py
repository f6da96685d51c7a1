"""Writes turns as fast as it can, and tells each that was acknowledged. Killed, stopped and raced against by tests.

    python -m tests.faults.store_load URL WRITERS TURNS SESSION [SESSION ...]

Says `ready`, waits for a line, opens the database. Each writer appends turns to its session, one after the other, until it has
written TURNS of them (0: for ever), and prints `<session> <sequence> <id> <text>` for each after it was acknowledged. A
database that goes away ends the writer.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import structlog

import balancer.conversations.postgres
import balancer.conversations.sqlite  # noqa: F401  imported before the start, so that starts meet
from balancer.clock import SystemClock
from balancer.conversations.base import NewTurn, SessionName, StorageUnavailable
from balancer.conversations.opening import Conversations

REPOSITORY = Path(__file__).parents[2]


def start(url: str, writers: int, turns: int, *sessions: str) -> subprocess.Popen[str]:
    """This program, ready to `go`."""
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.store_load", url, str(writers), str(turns), *sessions],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    return program


def go(program: subprocess.Popen[str]) -> None:
    assert program.stdin is not None
    program.stdin.write("\n")
    program.stdin.flush()


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def write(conversations: Conversations, name: str, writer: str, turns: int) -> None:
    try:
        store = await conversations.store()
        session, _ = await store.get_or_create(SessionName("ann", "chat", name))
        number = 0
        while turns == 0 or number < turns:
            text = f"{writer}:{number}"
            stored = await store.append(session, [NewTurn("user", text)])
            assert stored is not None
            say(f"{name} {stored[0].sequence} {stored[0].id} {text}")
            number += 1
    except StorageUnavailable as error:
        sys.stderr.write(f"unavailable: {error.reason}\n")


async def load(url: str, writers: int, turns: int, sessions: list[str]) -> None:
    conversations = Conversations(url, SystemClock())
    names = [(sessions[number % len(sessions)], f"{os.getpid()}-{number}") for number in range(writers)]
    await asyncio.gather(*(write(conversations, name, writer, turns) for name, writer in names))
    await conversations.close()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    say("ready")
    sys.stdin.readline()
    asyncio.run(load(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
