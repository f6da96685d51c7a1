"""`balancer conversations`: all of it is written out, an export that was broken off goes on, and old sessions are deleted."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from balancer.cli import main
from balancer.conversations.base import NewTurn, SessionName
from balancer.conversations.opening import Conversations
from tests.fakes import FakeClock

YEAR = 366 * 86400


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A configuration whose database has three sessions of ann, one of them old, and one of bob."""
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"database": {"url": f"sqlite:///{tmp_path}/chats.db"}}))
    asyncio.run(_fill(f"sqlite:///{tmp_path}/chats.db"))
    return str(file)


async def _fill(url: str) -> None:
    clock = FakeClock(wall=1_000_000_000.0)
    conversations = Conversations(url, clock)
    store = await conversations.store()
    for client, name, turns in (("ann", "old", 3), ("ann", "long", 450), ("bob", "b", 1), ("ann", "empty", 0)):
        session, _ = await store.get_or_create(SessionName(client, "conversations", name), title=f"title {name}")
        for n in range(0, turns, 100):
            await store.append(session, [NewTurn("user", f"turn {m}") for m in range(n, min(turns, n + 100))])
        clock.advance(20 * YEAR if name == "old" else 0)
    await conversations.close()


def lines_of(text: str | bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def shape(lines: list[dict[str, Any]]) -> list[tuple[int, int | None]]:
    return [(line["session"], line.get("sequence")) for line in lines]


WHOLE = [
    (1, None),
    *((1, n) for n in range(1, 4)),
    (2, None),
    *((2, n) for n in range(1, 451)),
    (3, None),
    (3, 1),
    (4, None),
]


def test_an_export_has_every_session_with_its_messages(config: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["conversations", "export", "--config", config]) == 0
    said = capsysbinary.readouterr()
    lines = lines_of(said.out)
    assert shape(lines) == WHOLE
    assert (lines[0]["client"], lines[0]["id"], lines[0]["title"]) == ("ann", "old", "title old")
    assert (lines[1]["role"], lines[1]["content"], lines[1]["metadata_info"]) == ("user", "turn 0", None)
    assert b"4 sessions and 454 messages written: done" in said.err


def test_an_export_may_be_of_one_client_or_of_old_sessions(
    config: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    for options, expected in (
        (["--client", "bob"], {3}),
        (["--older-than", "3650d"], {1}),
        (["--client", "eve"], set()),
    ):
        assert main(["conversations", "export", "--config", config, *options]) == 0
        assert {line["session"] for line in lines_of(capsysbinary.readouterr().out)} == expected


@pytest.mark.parametrize("lines", [0, 1, 2, 4, 5, 6, 204, 455, 456, 458])
@pytest.mark.parametrize("torn", [b"", b'{"session": 9, "seq'])
def test_an_export_that_was_broken_off_goes_on(config: str, tmp_path: Path, lines: int, torn: bytes) -> None:
    to = tmp_path / "chats.jsonl"
    assert main(["conversations", "export", "--config", config, "--to", str(to)]) == 0
    whole = to.read_bytes()
    assert shape(lines_of(whole)) == WHOLE
    assert to.stat().st_mode & 0o777 == 0o600
    to.write_bytes(b"".join(whole.splitlines(keepends=True)[:lines]) + torn)
    assert main(["conversations", "export", "--config", config, "--to", str(to)]) == 0
    assert to.read_bytes() == whole


@pytest.mark.parametrize("content", ["something else\n", "without an end", '{"session": 5}\nwithout', "[]\n"])
def test_another_file_is_not_written_on(
    config: str, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "other"
    to.write_text(content)
    assert main(["conversations", "export", "--config", config, "--to", str(to)]) == 1
    assert "is no export" in capsys.readouterr().err
    assert to.read_text() == content


def test_a_purge_deletes_what_is_old_and_nothing_else(config: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    purge = ["conversations", "purge", "--config", config, "--older-than", "3650d"]
    assert main([*purge, "--client", "bob"]) == 0
    assert main([*purge, "--dry-run"]) == 0
    assert b"1 sessions" in capsysbinary.readouterr().err
    assert main(purge) == 0
    assert main(["conversations", "export", "--config", config]) == 0
    assert shape(lines_of(capsysbinary.readouterr().out)) == WHOLE[4:]


def test_a_purge_without_an_age_is_refused(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conversations", "purge", "--config", config]) == 2
    assert "--older-than" in capsys.readouterr().err


def test_where_nothing_was_stored_no_database_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"database": {"url": f"sqlite:///{tmp_path}/chats.db"}}))
    assert main(["conversations", "export", "--config", str(file)]) == 1
    assert "no database" in capsys.readouterr().err
    assert not (tmp_path / "chats.db").exists()
