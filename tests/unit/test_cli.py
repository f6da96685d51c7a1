"""The command line: what it prints, where to, and how it exits."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from balancer import __version__
from balancer.cli import main

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "config.yaml"
CLEAN = {name: value for name, value in os.environ.items() if "BALANCER" not in name and "API_KEY" not in name}
CHILD = CLEAN | {"PYTHONPATH": os.fspath(ROOT)}
"""The environment of a process that the tests start."""
COMMANDS = ["serve", "check-config", "keys", "health", "create-session", "deploy", "conversations", "stand-in", "docs"]


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, and none of the developer's own keys."""
    monkeypatch.chdir(tmp_path)
    for name in set(os.environ) - set(CLEAN):
        monkeypatch.delenv(name)


class Process:
    """A listener that answers as it is told, in place of a running balancer."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append((request.path, request.headers.get("Authorization")))
        status, body = self.answers[request.path]
        headers = {"Location": "/elsewhere"} if status == 302 else {}
        return web.Response(status=status, body=body, headers=headers)


@pytest.fixture
def process() -> Iterator[Process]:
    made = Process()
    with _serving(made):
        yield made


@contextmanager
def _serving(process: Process) -> Iterator[None]:
    loop = asyncio.new_event_loop()
    app = web.Application()
    app.router.add_route("GET", "/{path:.*}", process.handle)
    runner = web.AppRunner(app)

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        process.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


def key(fingerprint: str, state: str = "ready", **more: Any) -> dict[str, Any]:
    blank: dict[str, Any] = {"name": None, "project": None, "reason": None, "until": None, "next_probe": None}
    counts = {"ok": 7, "caller": 1, "key": 2, "upstream": 3, "gone": 4}
    entry = blank | {"fingerprint": fingerprint, "state": state, "in_flight": 5, "requests": 17, "counts": counts}
    return entry | {"models": []} | more


def snapshot(*keys: Mapping[str, Any], backoff: Mapping[str, str] | None = None) -> bytes:
    upstream = {"name": "gemini", "kind": "gemini", "base_url": "https://h", "backoff": backoff, "keys": keys}
    return json.dumps({"time": "2026-11-21T10:00:00Z", "upstreams": [upstream]}).encode()


# Help --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples_and_exit_codes(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    help_text = capsys.readouterr().out
    assert f"balancer {command}" in help_text.partition("examples:")[2]
    assert "exit codes: 0 " in help_text


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"balancer {__version__}\n"


@pytest.mark.parametrize("argv", [[], ["sevre"], ["serve", "--no-such"], ["stand-in", "--port", "99999"]])
def test_misuse_ends_with_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2


def test_help_loads_nothing_heavy() -> None:
    heavy = ("pydantic", "aiohttp", "asyncio", "yaml", "ssl", "structlog")
    script = f"import sys, balancer.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=CHILD, check=True)
    assert done.stdout.strip() == "[]"


# check-config and serve --------------------------------------------------------------------------------------------------


def test_a_valid_configuration_is_summed_up_without_secrets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "server: {host: 0.0.0.0}\nadmin: {port: off}\nauth: {tokens: 'team-a=token-text'}\n"
        "upstreams: {gemini: {keys: 'key-text-1,key-text-2', proxy: 'http://u:proxy-text@p:1'}}\n"
    )
    assert main(["check-config", "--config", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines() == [
        f"{path}: valid",
        "  clients    http://0.0.0.0:8000",
        "  operators  off",
        "  upstream   gemini (gemini): 2 keys, https://generativelanguage.googleapis.com through a proxy",
        "  callers    team-a",
    ]


@pytest.mark.parametrize("command", ["check-config", "serve", "keys", "health"])
def test_every_mistake_is_told_with_file_and_place(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("server: {port: x, prot: 1}\nadmin: {host: 0.0.0.0}\n")
    assert main([command, "--config", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f'{path}: server.port: must be a whole number, not "x"',
        f"{path}: server.prot: unknown setting (did you mean port?)",
        f"{path}: admin.host: 0.0.0.0 can be reached from other machines: set admin.token, or listen on 127.0.0.1",
        "balancer: 3 mistakes in the configuration; balancer docs configuration explains it",
    ]


def test_a_file_that_is_not_there_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: the file cannot be read: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["serve"], ["check-config"]])
def test_without_keys_the_way_out_is_told(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "GEMINI_API_KEYS=" in line
    assert "keys_file" in line


def test_the_shipped_configuration_is_valid_and_wants_keys_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["check-config", "--quiet", "--config", str(REFERENCE)]
    assert main(argv) in (0, 3)  # a developer's .env beside it may hold keys
    monkeypatch.setenv("GEMINI_API_KEYS", "k1")
    assert main(argv) == 0
    assert capsys.readouterr() == ("", "")


# keys --------------------------------------------------------------------------------------------------------------------


def test_keys_are_shown_in_a_table_with_their_resting_models(
    process: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = {"model": "gemini-2.5-pro", "until": "2026-11-21T10:00:12Z", "reason": "429 per minute"}
    process.answers["/api/keys"] = (
        200,
        snapshot(
            key("aaaaaaaa", name="main", project="p1", models=[rest]),
            key("bbbbbbbb", "disabled", reason="API_KEY_INVALID", next_probe="2026-11-21T11:00:00Z"),
            backoff={"until": "2026-11-21T10:00:03Z", "reason": "503 from 3 keys"},
        ),
    )
    assert main(["keys", "--url", process.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    clock = r"(\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d"
    assert re.fullmatch(rf"gemini is not called until {clock} \(in 3 s\): 503 from 3 keys", lines[0])
    headings = r"UPSTREAM +KEY +NAME +PROJECT +STATE +UNTIL +REASON +IN FLIGHT +OK +BY CALLER +BY KEY +BY UPSTREAM"
    assert re.fullmatch(headings, lines[1])
    assert re.fullmatch(r"gemini +aaaaaaaa +main +p1 +ready +5 +7 +1 +2 +3", lines[2])
    assert re.fullmatch(rf"    gemini-2.5-pro rests until {clock} \(in 12 s\): 429 per minute", lines[3])
    assert re.fullmatch(rf"gemini +bbbbbbbb +disabled +{clock} \(in 60 min\) +API_KEY_INVALID +5 +7 +1 +2 +3", lines[4])
    columns = {line.index(state) for line, state in ((lines[1], "STATE"), (lines[2], "ready"), (lines[4], "disabled"))}
    assert len(columns) == 1


def test_keys_prints_the_answer_as_it_is_when_asked_for_json(
    process: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    process.answers["/api/keys"] = (200, snapshot(key("aaaaaaaa")))
    assert main(["keys", "--json", "--url", f"{process.url}/"]) == 0
    assert json.loads(capsys.readouterr().out)["upstreams"][0]["keys"][0]["fingerprint"] == "aaaaaaaa"


def test_an_upstream_without_a_ready_key_ends_with_1(process: Process) -> None:
    process.answers["/api/keys"] = (200, snapshot(key("aaaaaaaa", "resting", until="2026-11-21T10:00:12Z")))
    assert main(["keys", "--url", process.url]) == 1


def test_the_listener_of_the_configuration_is_asked_with_its_token(process: Process, tmp_path: Path) -> None:
    process.answers["/api/keys"] = (200, snapshot(key("aaaaaaaa")))
    port = process.url.rpartition(":")[2]
    path = tmp_path / "c.yaml"
    path.write_text(f"admin: {{host: 0.0.0.0, port: {port}, token: operator-token}}\n")
    assert main(["keys", "--config", str(path)]) == 0
    assert process.requests == [("/api/keys", "Bearer operator-token")]


def test_a_token_follows_no_redirect_and_no_proxy(
    process: Process, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BALANCER_ADMIN__TOKEN", "operator-token")
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")
    process.answers["/api/keys"] = (302, b"")
    assert main(["keys", "--url", process.url]) == 4
    assert [path for path, _ in process.requests] == ["/api/keys"]
    assert "answered 302, but not as balancer's admin listener does" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [(401, b"{}", "admin.token"), (403, b"", "admin.token"), (200, b"<html>", "not as"), (404, b"[]", "not as")],
)
def test_an_answer_of_another_sort_is_told(
    status: int, body: bytes, said: str, process: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    process.answers["/api/keys"] = (status, body)
    assert main(["keys", "--url", process.url]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_keys_says_so_when_the_admin_listener_is_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("admin: {port: off}\n")
    assert main(["keys"]) == 4
    assert "admin.port is off" in capsys.readouterr().err


# health ------------------------------------------------------------------------------------------------------------------


def test_health_tells_ready(
    process: Process, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    process.answers["/readyz"] = (200, b'{"status":"ready"}')
    monkeypatch.setenv("SERVER_PORT", process.url.rpartition(":")[2])
    assert main(["health"]) == 0
    assert capsys.readouterr().out == f"ready: {process.url}\n"
    assert process.requests == [("/readyz", None)]


@pytest.mark.parametrize(
    ("body", "why"), [(b'{"reason":"draining"}', "draining"), (b"busy", "GET /readyz answered 503")]
)
def test_health_tells_why_not(body: bytes, why: str, process: Process, capsys: pytest.CaptureFixture[str]) -> None:
    process.answers["/readyz"] = (503, body)
    assert main(["health", "--url", process.url]) == 1
    assert capsys.readouterr().out == f"not ready: {process.url}: {why}\n"


@pytest.mark.parametrize("command", ["keys", "health"])
def test_nobody_there_is_told_in_one_line_with_the_way_out(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--url", f"http://127.0.0.1:{closed_port()}"]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "Connection refused" in line
    assert "balancer serve" in line


@pytest.mark.parametrize("url", ["ftp://h", "h:8000", "http://[", "http://h:x", "http://"])
@pytest.mark.parametrize("command", ["keys", "health"])
def test_an_address_that_is_none_is_told_in_one_line(
    command: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--url", url]) in (2, 4)
    assert len(capsys.readouterr().err.splitlines()) == 1


# stand-in, docs, the whole program ---------------------------------------------------------------------------------------


def test_docs_lists_and_prints_guides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docs"]) == 0
    topics = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:1].isalpha()]
    assert {"configuration", "operations"} <= set(topics)
    for topic in ("configuration", "operations"):
        assert main(["docs", topic]) == 0
        assert capsys.readouterr().out.startswith("# ")


def test_a_guide_that_is_not_there_is_told_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docs", "../cli"]) == 2
    assert "configuration, conversations" in capsys.readouterr().err


def test_the_stand_in_needs_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stand-in", "--keys", " , "]) == 2
    assert "--keys" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("gemini", " with the keys a, b"),
        ("openai", "/v1 with the keys a, b"),
        ("coze", "/v3 with the keys a, b and any bot"),
    ],
)
def test_the_stand_in_tells_its_address_and_ends_cleanly_on_ctrl_c(kind: str, place: str) -> None:
    command = [sys.executable, "-m", "balancer", "stand-in", "--kind", kind, "--port", "0", "--keys", "a,b"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=CHILD) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert re.fullmatch(rf"stand-in upstream on http://127\.0\.0\.1:\d+{re.escape(place)}\n", line)
    assert (process.returncode, errors) == (0, "")


def test_a_port_that_is_taken_ends_with_1(process: Process, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stand-in", "--port", process.url.rpartition(":")[2]]) == 1
    assert "cannot listen" in capsys.readouterr().err


def test_the_module_is_the_command(tmp_path: Path) -> None:
    environ = CHILD | {"GEMINI_API_KEYS": "pool-key-text"}
    command = [sys.executable, "-m", "balancer", "check-config"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environ, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("built-in defaults: valid")
    assert "pool-key-text" not in done.stdout


def test_a_reader_that_has_enough_is_no_error() -> None:
    script = f"{sys.executable} -m balancer docs configuration | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=CHILD, check=False)
    assert (done.returncode, done.stderr) == (0, "")
