"""Runs a client of the matrix against a proxy with three keys, one of them rate-limited at times, and tells what it saw.

Proxy and stand-ins run here, on real sockets; the client is a process of its own with an environment of its own. Each row has
a proxy and its stand-ins to itself, so that nothing of another row's is in its lists. On the Gemini surface there is one
upstream and no token; on OpenAI's there are clients with tokens, three upstreams, and a tap on each way: what passed is compared.
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
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balancer.standin.app import StandIn, running
from balancer.standin.openai.app import OpenAIStandIn
from balancer.standin.record import Arrival
from tests.clients.comparing import Compared, Server, compare
from tests.clients.environments import CACHE, node, python_of, required
from tests.clients.matrix import Row
from tests.clients.tap import Tap
from tests.proxy import KEYS, proxying

PATIENCE = 75.0
"""Seconds for one program."""
_PROGRAMS = Path(__file__).parent / "programs"
_OURS = re.compile(
    r"(?i)(?:https?|all|no|ws|ftp)_proxy|(?:GOOGLE|GEMINI|OPENAI|ANTHROPIC|AZURE|LITELLM|AIDER|PYTHON|NODE|LANG(?:CHAIN|SMITH))_?.*"
)
"""Variables of whoever runs the tests that would send a client elsewhere."""
TOKENS = {"ann": "token-of-ann-0001", "bob": "token-of-bob-0002"}
"""Clients of the rows on OpenAI's surface, and what they show."""
OPENAI_KEYS = ("sk-pool-key-000001", "sk-pool-key-000002", "sk-pool-key-000003")
"""Each of a project of its own."""
_BUSY = "sk-pool-key-always-busy"
_ALIASES = {"fast": "gpt-4o-mini"}
_REST = 30
"""Seconds that the busy key rests: longer than any call waits here."""


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
    """User-Agent lines of each request as the client sent it; empty unless somebody looked."""
    merged: frozenset[int]
    """The same of the requests as the upstream got them."""
    makers: frozenset[str]
    """The keys that files were made with."""
    compared: Compared
    """What passed both ways on OpenAI's surface, byte for byte."""


async def run(row: Row) -> Saw:
    """Raises NotInstalled."""
    required(row.environment)
    return await (_on_openai(row) if row.surface == "openai" else _on_gemini(row))


async def _on_gemini(row: Row) -> Saw:
    standin = StandIn(KEYS)
    standin.script(KEYS[1], "rate-minute", times=2, seconds=1, target="gemini-2.5-flash:")
    tap = Tap()
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(running(standin))
        serving = proxying(upstream, relay={"max_wait": "10s"}, logging={"level": "error"})
        proxy = await stack.enter_async_context(serving)
        url = await stack.enter_async_context(tap.before(proxy.url)) if row.duplicate_user_agent else proxy.url
        lines, trouble = await _program(row, url)
    return _saw(lines, trouble, standin.requests, tap, Compared(0, ()))


async def _on_openai(row: Row) -> Saw:
    """Upstreams `oa` with three keys, `gemini` on its OpenAI-compatible paths, and `busy`, whose only key always rests."""
    standin, google = OpenAIStandIn((*OPENAI_KEYS, _BUSY)), StandIn(KEYS)
    standin.script(OPENAI_KEYS[1], "rate-retry-after", times=2, seconds=1, target="chat/completions")
    standin.script(_BUSY, "rate-retry-after", seconds=_REST)
    standin.script("*", "gzip", target="?coded")
    front, behind, compatible = Tap(), Tap(), Tap()
    async with contextlib.AsyncExitStack() as stack:
        base = await stack.enter_async_context(behind.before(await stack.enter_async_context(running(standin))))
        google_url = await stack.enter_async_context(running(google))
        upstreams = {
            "oa": {"kind": "openai", "base_url": f"{base}/v1", "keys": list(OPENAI_KEYS), "aliases": _ALIASES},
            "gemini": {"base_url": await stack.enter_async_context(compatible.before(google_url))},
            "busy": {"kind": "openai", "base_url": f"{base}/v1", "keys": [_BUSY], "models": ["always-busy"]},
        }
        serving = proxying(
            google_url,
            relay={"max_wait": "10s"},
            logging={"level": "error"},
            auth={"tokens": [{"name": name, "token": token} for name, token in TOKENS.items()]},
            openai={"default_upstream": "oa"},
            upstreams=upstreams,
        )
        proxy = await stack.enter_async_context(serving)
        url = await stack.enter_async_context(front.before(proxy.url))
        lines, trouble = await _program(row, url)
    servers = (
        Server(("oa", "busy"), "/v1", (*OPENAI_KEYS, _BUSY), behind.exchanges(), _ALIASES),
        Server(("gemini",), "/v1beta/openai", KEYS, compatible.exchanges(), {}),
    )
    compared = compare(front.exchanges(), servers, (*TOKENS.values(), "bal_"))
    return _saw(lines, trouble, standin.requests, front, compared)


def _saw(lines: list[dict[str, Any]], trouble: str, requests: Iterable[Arrival], tap: Tap, compared: Compared) -> Saw:
    about = lines[0] if lines else {}
    arrived = [each for each in requests if each.key not in (None, _BUSY) and each.status is not None]
    good = [each for each in arrived if each.status is not None and each.status < 300]
    return Saw(
        client=about.get("client", ""),
        version=about.get("version", ""),
        transport=about.get("transport", ""),
        calls=tuple(Call(each["call"], each["ok"], each["detail"]) for each in lines[1:]),
        trouble=trouble,
        api=frozenset(
            found[1] for each in arrived if (found := re.match(r"/(?:upload/|download/)?(v1\w*)/", each.path))
        ),
        keys=frozenset(str(each.key) for each in good),
        limited=sum(each.status == 429 for each in arrived),
        user_agents=frozenset(each.count("user-agent") for each in tap.requests()),
        merged=frozenset(sum(name.lower() == "user-agent" for name, _ in each.headers) for each in arrived),
        makers=frozenset(str(each.key) for each in good if (each.method, each.path) == ("POST", "/v1/files")),
        compared=compared,
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
        "CLIENT_TOKEN": TOKENS["ann"],
        "OTHER_TOKEN": TOKENS["bob"],
        "CLIENT_HOME": str(CACHE / row.environment.name),
        "CLIENT_NODE": str(node()),
    }
