"""`balancer create-session` against a running proxy, and the files that `balancer deploy` hands out."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
from pathlib import Path

import pytest

from balancer.cli import main
from tests.surfaces.backend_chats import ALICE, ANN_TOKEN, MODEL, here

ROOT = Path(__file__).parents[2]
WRAPPERS = ("create-session.bat", "create-session.sh")


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if "BALANCER" in name or name.startswith("SERVER_")]:
        monkeypatch.delenv(name)


async def create(*arguments: str) -> int:
    """The command, beside the event loop that the proxy runs in."""
    return await asyncio.to_thread(main, ["create-session", "--model", MODEL, *arguments])


async def test_it_prints_the_session_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    async with here() as at:
        assert await create("--url", f"{at.proxy.url}/", "--token", ANN_TOKEN) == 0
        (number,) = at.standin.sessions
        assert capsys.readouterr() == (f"Session ID: {number}\n", "")
        assert (await at.ann.say(headers={"x-session-id": str(number)})).status == 200


async def test_token_and_address_come_from_environment_and_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with here() as at:
        monkeypatch.setenv("BALANCER_TOKEN", ANN_TOKEN)
        monkeypatch.setenv("SERVER_PORT", at.proxy.url.rpartition(":")[2])
        assert await create() == 0
        assert re.fullmatch(r"Session ID: [0-9]+\n", capsys.readouterr().out)


async def test_the_whole_reply_is_printed_on_demand_in_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    async with here() as at:
        assert await create("--url", at.proxy.url, "--token", ANN_TOKEN, "--json") == 0
        out = capsys.readouterr().out
        assert out.isascii()
        assert json.loads(out)["data"]["id"] in at.standin.sessions
        assert re.search(r'"id":[0-9]+', out)


@pytest.mark.parametrize(
    ("token", "fault", "said"),
    [
        ("nobody", None, "answered 401: 无效的 API Key"),
        (ANN_TOKEN, "status-400", "answered 400: 后端错误(400)"),
        (ANN_TOKEN, "status-401", "answered 503: No usable key"),
    ],
)
async def test_a_failure_is_told_on_standard_error_alone(
    token: str, fault: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with here() as at:
        if fault is not None:
            at.standin.script(ALICE, fault)
        assert await create("--url", at.proxy.url, "--token", token) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert said in [line for line in printed.err.splitlines() if line.startswith("balancer: ")][-1]


async def test_nobody_there_and_somebody_else_are_failures_too(
    unused_tcp_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await create("--url", f"http://127.0.0.1:{unused_tcp_port}") == 1
    async with here() as at:
        assert await create("--url", at.proxy.admin_url) == 1
    assert capsys.readouterr().out == ""


# deploy ----------------------------------------------------------------------------------------------------------------


def test_the_shipped_files_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy"]) == 0
    assert set(WRAPPERS) <= set(capsys.readouterr().out.splitlines())
    for name in WRAPPERS:
        assert main(["deploy", name]) == 0
        printed = capsys.readouterr().out
        assert printed.isascii()
        assert len(printed.splitlines()) == 3
        assert "/api/chat/session" in printed


def test_a_shipped_file_is_written_as_it_is_and_a_script_can_be_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in WRAPPERS:
        assert main(["deploy", name, "--to", str(tmp_path)]) == 0
        assert capsys.readouterr().out == f"{tmp_path / name}\n"
        assert (tmp_path / name).read_bytes() == (ROOT / "balancer" / "deploy" / name).read_bytes()
    assert (tmp_path / "create-session.sh").stat().st_mode & stat.S_IXUSR
    assert (tmp_path / "create-session.bat").read_bytes().count(b"\r\n") == 3


@pytest.mark.parametrize(("arguments", "code"), [(["nope"], 2), (["create-session.sh", "--to", "nowhere"], 1)])
def test_what_cannot_be_handed_out_is_told(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", *arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
