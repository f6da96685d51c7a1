"""Runs a client of the matrix against a proxy with three keys, one of them rate-limited at times, and tells what it saw.

Proxy and stand-in run here, on real sockets; the client is a process of its own with an environment of its own. Each row has
a proxy and a stand-in to itself, so that nothing of another row's is in its lists.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from balancer.standin.app import StandIn, running
from tests.clients.environments import CACHE, node, python_of, required
from tests.clients.matrix import Row
from tests.proxy import KEYS, proxying

PATIENCE = 75.0
"""Seconds for one program."""
_PROGRAMS = Path(__file__).parent / "programs"
_OURS = re.compile(r"(?i)(?:https?|all|no|ws|ftp)_proxy|(?:GOOGLE|GEMINI|PYTHON|NODE|LANG(?:CHAIN|SMITH))_?.*")
"""Variables of whoever runs the tests that would send a client elsewhere."""
_HEAD = re.compile(rb"(?:POST|GET) [^\r\n]+ HTTP/1\.1\r\n(.*?\r\n)\r\n", re.DOTALL)
_USER_AGENT = re.compile(rb"(?im)^user-agent:")


@dataclass(frozen=True)
class Call:
    """`ok` is None where the SDK has no such call."""

    name: str
    ok: bool | None
    detail: str


@dataclass(frozen=True)
class Saw:
    """What a run of one row saw."""

    client: str
    version: str
    transport: str
    """What the program says of itself."""
    calls: tuple[Call, ...]
    trouble: str
    """What it wrote to standard error if it did not come to its end, else empty."""
    api: frozenset[str]
    """The API versions in the paths that reached the upstream."""
    keys: frozenset[str]
    """The keys whose answers were good."""
    limited: int
    """How often the rate-limited key was asked in vain."""
    user_agents: frozenset[int]
    """User-Agent lines of each request as the client sent it; empty unless the row asks for it."""
    merged: frozenset[int]
    """The same of the requests as the upstream got them."""


async def run(row: Row) -> Saw:
    """Raises NotInstalled."""
    required(row.environment)
    standin = StandIn(KEYS)
    standin.script(KEYS[1], "rate-minute", times=2, seconds=1, target="gemini-2.5-flash:")
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(running(standin))
        serving = proxying(upstream, relay={"max_wait": "10s"}, logging={"level": "error"})
        proxy = await stack.enter_async_context(serving)
        wire = _Wire()
        url = await stack.enter_async_context(wire.tapped(proxy.url)) if row.duplicate_user_agent else proxy.url
        lines, trouble = await _program(row, url)
    about = lines[0] if lines else {}
    arrived = [each for each in standin.requests if each.key is not None and each.status is not None]
    return Saw(
        client=about.get("client", ""),
        version=about.get("version", ""),
        transport=about.get("transport", ""),
        calls=tuple(Call(each["call"], each["ok"], each["detail"]) for each in lines[1:]),
        trouble=trouble,
        api=frozenset(
            found[1] for each in arrived if (found := re.match(r"/(?:upload/|download/)?(v1\w*)/", each.path))
        ),
        keys=frozenset(str(each.key) for each in arrived if each.status is not None and each.status < 300),
        limited=sum(each.status == 429 for each in arrived),
        user_agents=wire.user_agents(),
        merged=frozenset(sum(name.lower() == "user-agent" for name, _ in each.headers) for each in arrived),
    )


async def _program(row: Row, url: str) -> tuple[list[dict[str, Any]], str]:
    """The lines of JSON that it prints, and what went wrong with the program as a whole."""
    with tempfile.TemporaryDirectory() as home:
        process = await asyncio.create_subprocess_exec(
            *_command(row),
            env=_environ(row, url, home),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=1 << 20,
        )
        talk = asyncio.ensure_future(process.communicate())
        trouble = ""
        try:
            await asyncio.wait_for(asyncio.shield(talk), PATIENCE)
        except TimeoutError:
            trouble = f"not done after {PATIENCE:.0f} s\n"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        out, err = await talk
    if trouble or process.returncode:
        trouble += f"exit code {process.returncode}\n{err.decode(errors='replace')[-3000:]}"
    return [json.loads(line) for line in out.decode().splitlines() if line.startswith("{")], trouble


def _command(row: Row) -> tuple[str, ...]:
    program = _PROGRAMS / row.program
    if program.suffix == ".mjs":
        interpreter = str(node())
    elif row.environment.kind == "python":
        interpreter = str(python_of(row.environment))
    else:
        interpreter = sys.executable
    return interpreter, str(program), *row.arguments


def _environ(row: Row, url: str, home: str) -> dict[str, str]:
    """The environment without whatever points clients at keys, addresses and proxies of whoever runs the tests."""
    return {name: value for name, value in os.environ.items() if _OURS.fullmatch(name) is None} | {
        "HOME": home,
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "PYTHONWARNINGS": "ignore",
        "NODE_NO_WARNINGS": "1",
        "PROXY_URL": url,
        "CLIENT_HOME": str(CACHE / row.environment.name),
        "CLIENT_NODE": str(node()),
    }


class _Wire:
    """What clients send, as they send it: a relay of bytes in front of the proxy."""

    def __init__(self) -> None:
        self._sent: list[bytearray] = []

    @asynccontextmanager
    async def tapped(self, url: str) -> AsyncIterator[str]:
        target = urlsplit(url)

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            sent = bytearray()
            self._sent.append(sent)
            there, back = await asyncio.open_connection(target.hostname, target.port)
            await asyncio.gather(_copy(reader, back, sent), _copy(there, writer, None))

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def user_agents(self) -> frozenset[int]:
        heads = (head for sent in self._sent for head in _HEAD.findall(bytes(sent)))
        return frozenset(len(_USER_AGENT.findall(head)) for head in heads)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray | None) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            if kept is not None:
                kept += data
            writer.write(data)
            await writer.drain()
    writer.close()
