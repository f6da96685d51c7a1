"""The process from outside: how it starts, reloads, drains and ends. Each test runs `balancer serve` as people do.

Nothing here sleeps: a test waits for a line that the process writes, for an HTTP answer, or for its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from balancer.standin.app import StandIn, running
from tests.proxy import GENERATE, KEYS, STREAM, Raw, error_of, post_bytes
from tests.upstream import WAIT, Peer, raw_upstream, serving

ROOT = Path(__file__).parents[2]
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if "BALANCER" not in name and "API_KEY" not in name and "PROXY" not in name.upper()
}
BALANCER = (sys.executable, "-m", "balancer")
WITHOUT_UVLOOP = (
    sys.executable,
    "-c",
    "import sys; sys.modules['uvloop'] = None; from balancer.cli import main; sys.exit(main())",
)
UP = 20.0
"""Seconds that a process may take to start or to end."""


class Process:
    """A running `balancer serve`. `said` are the lines of its greeting."""

    def __init__(self, process: asyncio.subprocess.Process, file: Path) -> None:
        self._process = process
        self.file = file
        self.said: list[str] = []
        self.url = self.admin_url = ""
        self.log: list[dict[str, Any]] = []
        self.raws: list[Raw] = []
        """Every connection that a test made: they end with the process."""

    async def greeted(self) -> None:
        """Reads the greeting up to its first line that names the address of the admin listener, the last of addresses."""
        while not self.admin_url:
            line = await self.line()
            if " -> " in line:
                self.url = line.split()[2]
            elif line.startswith("key states and metrics: "):
                self.admin_url = line.split()[4].removesuffix("/api/keys")

    async def line(self) -> str:
        assert self._process.stdout is not None
        async with asyncio.timeout(UP):
            line = (await self._process.stdout.readline()).decode().rstrip("\n")
        assert line, f"it ended: {await self.rest_of_log()}"
        self.said.append(line)
        return line

    async def logged(self, event: str) -> dict[str, Any]:
        """The next log line of that event."""
        assert self._process.stderr is not None
        async with asyncio.timeout(UP):
            while line := await self._process.stderr.readline():
                entry: dict[str, Any] = json.loads(line)
                self.log.append(entry)
                if entry["event"] == event:
                    return entry
        raise AssertionError(f"it ended without logging {event!r}: {self.log}")

    async def rest_of_log(self) -> str:
        assert self._process.stderr is not None
        return (await self._process.stderr.read()).decode()

    def send(self, which: signal.Signals) -> None:
        self._process.send_signal(which)

    async def end(self) -> int:
        """Waits for its end; the exit code, negative for a signal."""
        async with asyncio.timeout(UP):
            return await self._process.wait()

    async def raw(self) -> Raw:
        host, _, port = self.url.removeprefix("http://").partition(":")
        self.raws.append(raw := Raw(*await asyncio.open_connection(host, int(port))))
        return raw

    async def generate(self) -> tuple[int, bytes]:
        """Status and body of one call on a connection of its own."""
        raw = await self.raw()
        await raw.send(post_bytes(b'{"contents":[{"parts":[{"text":"hello"}]}]}', GENERATE, "Connection: close"))
        whole = await raw.rest()
        raw.close()
        return int(whole.split()[1]), whole.partition(b"\r\n\r\n")[2]

    async def keys(self) -> list[dict[str, Any]]:
        host, _, port = self.admin_url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        raw = Raw(reader, writer)
        await raw.send(b"GET /api/keys HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        _, _, body = (await raw.rest()).partition(b"\r\n\r\n")
        raw.close()
        found: list[dict[str, Any]] = json.loads(body)["upstreams"][0]["keys"]
        return found

    def write(self, **sections: Any) -> None:
        """Change sections of its configuration file."""
        tree = json.loads(self.file.read_text()) | sections
        self.file.write_text(json.dumps(tree))


def configuration(upstream: str, *keys: str, **sections: dict[str, Any]) -> dict[str, Any]:
    return {
        "server": {"port": 0} | sections.pop("server", {}),
        "admin": {"port": 0},
        "upstreams": {"gemini": {"base_url": upstream, "keys": list(keys or KEYS)}},
        "relay": {"max_wait": "1s"},
        "logging": {"format": "json"},
    } | sections


@asynccontextmanager
async def started(
    folder: Path, tree: Mapping[str, Any], *options: str, command: tuple[str, ...] = BALANCER
) -> AsyncIterator[Process]:
    """The process from its first line to its end, which comes by force where the test did not bring it about."""
    file = folder / "config.yaml"
    file.write_text(json.dumps(tree))  # JSON is YAML
    made = await asyncio.create_subprocess_exec(
        *command,
        *("serve", "--config", str(file), *options),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
        env=CLEAN | {"PYTHONPATH": os.fspath(ROOT)},
        limit=1 << 20,
    )
    process = Process(made, file)
    try:
        yield process
    finally:
        for raw in process.raws:
            raw.close()
        with contextlib.suppress(ProcessLookupError):
            made.kill()
        await made.communicate()


async def ended(folder: Path, tree: Mapping[str, Any], *options: str) -> tuple[int, list[str], list[str]]:
    """Exit code and what stood on both outputs of a process that ends by itself."""
    async with started(folder, tree, *options) as process:
        async with asyncio.timeout(UP):
            out, err = await process._process.communicate()
        return await process.end(), out.decode().splitlines(), err.decode().splitlines()


async def hanging(peer: Peer) -> None:
    """An upstream's script: one event of a stream, and then nothing until the proxy leaves."""
    await peer.request()
    await peer.stream()
    await peer.chunk(b"data: 1\r\n\r\n")
    await peer.gone()


async def streaming(process: Process) -> Raw:
    """A client that has read the first event of its stream."""
    raw = await process.raw()
    await raw.send(post_bytes(b"{}", STREAM))
    await raw.until(b"data: 1\r\n\r\n")
    return raw


async def readiness(raw: Raw) -> tuple[bytes, bytes]:
    await raw.send(b"GET /readyz HTTP/1.1\r\nHost: p\r\n\r\n")
    return await raw.answer()


# Start ----------------------------------------------------------------------------------------------------------------


async def test_it_says_where_it_is_and_serves_from_then_on_and_shows_no_key(tmp_path: Path) -> None:
    standin = StandIn(KEYS)
    async with running(standin) as url, started(tmp_path, configuration(url)) as process:
        await process.greeted()
        status, body = await process.generate()
        assert status == 200
        assert b"You said: hello" in body
        while "stream" not in (line := await process.line()):
            pass
        assert process.url in "".join(process.said)
        assert "with 3 keys" in "".join(process.said)
        assert "YOUR-CLIENT-TOKEN" not in line
        assert not any(key in "".join(process.said) for key in KEYS)
        process.send(signal.SIGINT)
        assert await process.end() == 0
        log = await process.rest_of_log()
        assert not any(key in log for key in KEYS)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_that_follows_the_first_line_at_once_ends_it_cleanly(
    which: signal.Signals, tmp_path: Path
) -> None:
    async with started(tmp_path, configuration("http://127.0.0.1:9")) as process:
        await process.line()
        process.send(which)
        assert await process.end() == 0


@pytest.mark.parametrize("listener", ["server", "admin"])
async def test_a_port_in_use_ends_it_with_one_line(listener: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        tree = configuration("http://127.0.0.1:9") | {listener: {"port": port}}
        code, out, err = await ended(tmp_path, tree)
    assert code == 1
    assert out == []
    (line,) = err
    assert "address already in use" in line
    assert str(port) in line


async def test_a_certificate_that_is_none_ends_it_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "junk.pem").write_text("no certificate")
    tls = {"cert": "junk.pem", "key": "junk.pem"}
    code, out, err = await ended(tmp_path, configuration("http://127.0.0.1:9", server={"tls": tls}))
    assert code in (1, 2)
    assert out == []
    assert len(err) == 1


async def test_without_keys_it_refuses_with_3_and_says_what_to_do(tmp_path: Path) -> None:
    tree = configuration("http://127.0.0.1:9") | {"upstreams": {"gemini": {}}}
    code, out, (line,) = await ended(tmp_path, tree)
    assert (code, out) == (3, [])
    assert "--stand-in" in line


async def test_the_stand_in_is_announced_loudly_and_answers(tmp_path: Path) -> None:
    tree = configuration("http://127.0.0.1:9") | {"upstreams": {"gemini": {}}}
    async with started(tmp_path, tree, "--stand-in") as process:
        await process.greeted()
        assert process.said[0] == "*" * 100
        assert "STAND-IN" in process.said[1]
        assert (await process.generate())[0] == 200
        process.send(signal.SIGHUP)
        await process.logged("configuration reloaded")
        assert (await process.generate())[0] == 200


# Drain ----------------------------------------------------------------------------------------------------------------

LOOPS = {"uvloop": BALANCER, "asyncio": WITHOUT_UVLOOP}


@pytest.mark.parametrize("loop", LOOPS)
async def test_what_runs_at_sigterm_finishes_and_nothing_new_begins(loop: str, tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            seen = await peer.request()
            if "stream" not in seen.line:
                await peer.answer(b"short")
                continue
            await peer.stream()
            await peer.chunk(b"data: 1\r\n\r\n")
            await gate.wait()
            await peer.chunk(b"data: 2\r\n\r\n")
            await peer.end()

    async with raw_upstream(script) as upstream:
        async with started(tmp_path, configuration(upstream.url), command=LOOPS[loop]) as process:
            await process.greeted()
            watching, kept = await process.raw(), await process.raw()
            for raw in (watching, kept):
                assert (await readiness(raw))[0].startswith(b"HTTP/1.1 200")
            stream = await streaming(process)
            process.send(signal.SIGTERM)
            head, body = await readiness(watching)
            while head.startswith(b"HTTP/1.1 200"):
                head, body = await readiness(watching)
            assert head.startswith(b"HTTP/1.1 503")
            assert b"\r\nConnection: close\r\n" in head
            assert json.loads(body) == {"status": "not ready", "reason": "draining"}
            assert await watching.rest() == b""
            with pytest.raises(ConnectionRefusedError):
                await process.raw()
            await kept.send(post_bytes(b"{}"))
            head, body = await kept.answer()
            assert body == b"short"
            assert b"\r\nConnection: close\r\n" in head
            gate.set()
            assert await stream.rest() == b"\r\nb\r\ndata: 2\r\n\r\n\r\n0\r\n\r\n"
            assert await process.end() == 0
            for raw in (watching, kept, stream):
                raw.close()


@pytest.mark.parametrize("loop", LOOPS)
async def test_a_second_signal_ends_it_at_once(loop: str, tmp_path: Path) -> None:
    async with raw_upstream(hanging) as upstream:
        async with started(tmp_path, configuration(upstream.url), command=LOOPS[loop]) as process:
            await process.greeted()
            stream = await streaming(process)
            process.send(signal.SIGTERM)
            assert (await process.logged("draining"))["in_flight"] == 1
            process.send(signal.SIGTERM)
            assert await process.end() == -signal.SIGTERM
            stream.close()


async def test_the_drain_timeout_cuts_what_still_runs(tmp_path: Path) -> None:
    async with raw_upstream(hanging) as upstream:
        tree = configuration(upstream.url, server={"drain_timeout": "200ms"})
        async with started(tmp_path, tree) as process:
            await process.greeted()
            stream = await streaming(process)
            process.send(signal.SIGINT)
            await process.logged("drain timeout: cutting what still runs")
            assert not (await stream.rest()).endswith(b"0\r\n\r\n")
            assert await process.end() == 0
            stream.close()


async def test_an_idle_process_ends_at_once_and_closes_what_idles(tmp_path: Path) -> None:
    async with started(tmp_path, configuration("http://127.0.0.1:9")) as process:
        await process.greeted()
        idle, begun = await process.raw(), await process.raw()
        for raw in (idle, begun):
            await readiness(raw)
        await begun.send(b"GET /v1beta/models HTTP/1.1\r\nHost:")
        process.send(signal.SIGTERM)
        assert await idle.rest() == b""
        assert await begun.rest() == b""
        assert await process.end() == 0
        idle.close()
        begun.close()


# Reload ---------------------------------------------------------------------------------------------------------------


async def test_sighup_takes_new_keys_and_keeps_rests_and_what_is_in_flight(tmp_path: Path) -> None:
    standin = StandIn(KEYS)
    held = standin.script(KEYS[0], "stall-stream", target="stream")
    standin.script(KEYS[0], "rate-minute", seconds=600)
    async with running(standin) as url, started(tmp_path, configuration(url, KEYS[0])) as process:
        await process.greeted()
        raw = await process.raw()
        await raw.send(post_bytes(b'{"contents":[{"parts":[{"text":"hello"}]}]}', STREAM))
        await raw.until(b"\r\n\r\n")
        assert (await process.generate())[0] == 429
        process.write(upstreams={"gemini": {"base_url": url, "keys": [KEYS[0], KEYS[1]]}})
        process.send(signal.SIGHUP)
        await process.logged("configuration reloaded")
        for _ in range(3):
            assert (await process.generate())[0] == 200
        assert [arrival.key for arrival in standin.requests][2:] == [KEYS[1]] * 3
        resting, ready = await process.keys()
        assert (resting["state"], resting["in_flight"], resting["counts"]["key"]) == ("resting", 1, 1)
        assert (ready["state"], ready["counts"]["ok"]) == ("ready", 3)
        held.open()
        await raw.until(b"0\r\n\r\n")
        raw.close()


async def test_sighup_with_a_bad_file_changes_nothing_and_logs_every_problem_without_secrets(tmp_path: Path) -> None:
    standin = StandIn(KEYS)
    async with running(standin) as url, started(tmp_path, configuration(url, KEYS[0])) as process:
        await process.greeted()
        process.write(
            upstreams={"gemini": {"base_url": url, "keys": [KEYS[1], KEYS[1], "a-new-key with a blank"]}},
            server={"port": "x", "a-new-key-in-a-wrong-place": 1},
            relay={"attempts": 0},
        )
        process.send(signal.SIGHUP)
        entry = await process.logged("configuration not reloaded: it has mistakes")
        said = "\n".join(entry["problems"])
        for place in ("upstreams.gemini.keys[1]", "upstreams.gemini.keys[2]", "server.port", "relay.attempts"):
            assert place in said
        assert "a-new-key with" not in said
        assert KEYS[1] not in said
        assert (await process.generate())[0] == 200
        assert [arrival.key for arrival in standin.requests] == [KEYS[0]]
        process.file.write_text("{not: [yaml")
        process.send(signal.SIGHUP)
        await process.logged("configuration not reloaded: it has mistakes")
        process.file.unlink()
        process.send(signal.SIGHUP)
        await process.logged("configuration not reloaded: it has mistakes")
        process.file.write_text(json.dumps(configuration(url, KEYS[1])))
        process.send(signal.SIGHUP)
        await process.logged("configuration reloaded")
        assert (await process.generate())[0] == 200
        assert standin.requests[-1].key == KEYS[1]


async def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    standin = StandIn(KEYS)
    async with running(standin) as url, started(tmp_path, configuration(url, KEYS[0])) as process:
        await process.greeted()
        assert (await process.generate())[0] == 200
        process.write(auth={"tokens": "team=a-new-token-of-team"})
        while (answer := await process.generate())[0] == 200:
            pass
        assert answer[0] == 401
        error_of(answer[1])


async def test_changes_that_want_a_restart_are_said(tmp_path: Path) -> None:
    async with started(tmp_path, configuration("http://127.0.0.1:9")) as process:
        await process.greeted()
        process.write(server={"port": 1, "keepalive_timeout": "1s"}, admin={"port": 0})
        process.send(signal.SIGHUP)
        said = [(await process.logged("this change takes effect after a restart"))["setting"] for _ in range(2)]
        assert said == ["server.port", "server.keepalive_timeout"]
        await process.logged("configuration reloaded")
        assert (await process.keys())[0]["state"] == "ready"


async def test_sighup_opens_the_log_file_anew(tmp_path: Path) -> None:
    log, old = tmp_path / "balancer.log", tmp_path / "balancer.log.1"
    tree = configuration("http://127.0.0.1:9") | {"logging": {"format": "json", "file": "balancer.log"}}
    async with started(tmp_path, tree) as process:
        await process.greeted()
        await seen(process, "/none?before")
        log.rename(old)
        await seen(process, "/none?meanwhile")
        process.send(signal.SIGHUP)
        while not log.exists():
            await seen(process, "/none?meanwhile")
        await seen(process, "/none?after")
        process.send(signal.SIGTERM)
        assert await process.end() == 0
        assert await process.rest_of_log() == ""
    before, after = ([json.loads(line) for line in path.read_text().splitlines()] for path in (old, log))
    assert before[0]["path"] == "/none"
    assert after[-1]["event"] == "draining"


async def seen(process: Process, target: str) -> None:
    """Makes it write a line to its log."""
    raw = await process.raw()
    await raw.send(f"GET {target} HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n".encode())
    assert (await raw.rest()).startswith(b"HTTP/1.1 404")
    raw.close()


# On the loop of production --------------------------------------------------------------------------------------------


async def test_connections_beyond_the_limit_are_refused_on_the_production_loop_too(tmp_path: Path) -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream:
        async with started(tmp_path, configuration(upstream.url, server={"max_connections": 1})) as process:
            await process.greeted()
            held = await process.raw()
            await held.send(post_bytes(b"{}"))
            await held.answer()
            extra = await process.raw()
            with contextlib.suppress(ConnectionError):
                assert await extra.rest() == b""
            assert (await process.logged("connection refused"))["limit"] == 1
            await held.send(post_bytes(b"{}"))
            await held.answer()
            held.close()
            extra.close()
            process.send(signal.SIGTERM)
            assert await process.end() == 0
            assert "Traceback" not in await process.rest_of_log()


async def test_a_client_that_leaves_frees_the_upstream_on_the_production_loop_too(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await hanging(peer)
        gone.set()

    async with raw_upstream(script) as upstream, started(tmp_path, configuration(upstream.url)) as process:
        await process.greeted()
        (await streaming(process)).close()
        async with asyncio.timeout(WAIT):
            await gone.wait()
        assert (await process.keys())[0]["state"] == "ready"
