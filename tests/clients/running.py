"""Real clients as processes of their own, against a proxy that runs in the test: how they are run, and what they say."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from tests.clients.environments import CACHE, NotInstalled, node, python_of, required
from tests.clients.matrix import OPENAI, ROWS, Environment

PATIENCE = 60.0
JAVASCRIPT = next(row.environment for row in ROWS if row.client == "openai (JavaScript)")
SDKS = (OPENAI, JAVASCRIPT)
_PROGRAMS = Path(__file__).parent / "programs"


def wanted(environment: Environment) -> None:
    """What a test cannot do without: where it is not installed the test says so and is skipped, and in CI fails."""
    try:
        required(environment)
    except NotInstalled as missing:
        unproved(environment.name, missing)


def unproved(name: str, why: object) -> NoReturn:
    """A gap in the tests is told, and in CI it is a failure."""
    told = f"UNPROVED: {name}: {why}"
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(told)
    pytest.skip(told)


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    code: int | None
    out: str
    err: str


async def run(url: str, environment: Environment, *command: str, **variables: str) -> Ended:
    """Run a client against the proxy. Skips the test, or fails it in CI, where the client is not installed."""
    wanted(environment)
    with tempfile.TemporaryDirectory() as home:
        process = await asyncio.create_subprocess_exec(
            *command,
            env={
                "PATH": os.environ["PATH"],
                "HOME": home,
                "NO_PROXY": "127.0.0.1",
                "PYTHONWARNINGS": "ignore",
                "PROXY_URL": url,
                "CLIENT_HOME": str(CACHE / environment.name),
                **variables,
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(PATIENCE):
                out, err = await process.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return Ended(process.returncode, out.decode(), err.decode(errors="replace"))


async def calls(url: str, environment: Environment, program: str, **variables: str) -> list[dict[str, object]]:
    """What the openai SDK's program of that name says of each of its calls."""
    if environment.kind == "node":
        command = (str(node()), str(_PROGRAMS / f"{program}.mjs"))
    else:
        command = (str(python_of(environment)), str(_PROGRAMS / f"{program}.py"))
    ended = await run(url, environment, *command, **variables)
    assert ended.code == 0, ended.err[-3000:]
    about, *said = [json.loads(each) for each in ended.out.splitlines() if each.startswith("{")]
    assert about["client"].startswith("openai")
    return said
