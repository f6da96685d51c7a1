"""The bench works from end to end. Nothing here looks at a time: that is what `make bench` is for."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

from balancer.conversations.base import NewTurn
from tests.bench import figures, stored
from tests.bench.__main__ import GROUPS, main
from tests.bench.figures import Scale
from tests.bench.load import Broken, connect, percentile, request
from tests.bench.process import cores, cpu_seconds, family, resident
from tests.bench.table import ROWS, STORED, main_table, ratio, stored_table
from tests.bench.targets import Died, Kind, Target, free_port, running, upstream_kind
from tests.contract.databases import missing

TINY = Scale(
    seconds=0.3,
    short=0.3,
    warm=0.05,
    connections=2,
    streams=2,
    stream_interval=5,
    idle_streams=4,
    transfer=1 << 20,
    bindings=1000,
    slices=1,
    little=200,
    turns=400,
    sessions=300,
    calls=2,
    settle=0.05,
)


def table_rows(results: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    lines = main_table(results, set()).splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.timeout(120)
def test_every_figure_is_measured_for_floor_and_program(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    numbers = tmp_path / "bench.json"
    code = main(["--rounds", "1", "--targets", "floor", "balancer", "--json", str(numbers)], TINY)
    out, err = capfd.readouterr()
    assert code == 0, err
    for row in ROWS:
        assert row.text in out
    found: dict[str, Any] = json.loads(numbers.read_text())
    assert found["failed"] == []
    for row in ROWS:
        for target in ("floor", "balancer"):
            values = found["figures"][row.figure][target]
            assert len(values) == 1
            assert values[0] is not None, (row.figure, target)
    assert found["figures"]["growth_us"].keys() == {"10 keys", "200 keys", "few bindings", "many bindings", "session"}
    for word in ("Machine:", "Versions:", "Method:", "Command:", "aiohttp", "CPython"):
        assert word in out


STORES = [f"{database}, {size}" for database in ("SQLite", "PostgreSQL") for size in ("little", "much")]


def test_stored_chats_are_measured_by_themselves_in_both_databases(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if "PostgreSQL" not in stored.places(tmp_path):
        missing("no PostgreSQL: neither DATABASE_URL nor a server's programs")
    numbers = tmp_path / "bench.json"
    code = main(["--only", "stored", "--json", str(numbers)], TINY)
    out, err = capfd.readouterr()
    assert code == 0, err
    assert "200 turns, 200 sessions" in out
    assert "400 turns, 300 sessions" in out
    assert "upstream alone |" not in out
    found = json.loads(numbers.read_text())["figures"]
    assert found.keys() == {figure for figure, _ in STORED}
    for figure, text in STORED:
        assert {store: len(values) for store, values in found[figure].items()} == dict.fromkeys(STORES, TINY.calls)
        assert f"SQLite: {text} " in out
        assert f"PostgreSQL: {text} " in out


def test_without_postgresql_the_table_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setattr("tests.contract.databases.binaries", lambda: None)
    numbers = tmp_path / "bench.json"
    assert main(["--only", "stored", "--json", str(numbers)], TINY) == 0
    out, _ = capfd.readouterr()
    assert "not measured: no PostgreSQL" in out
    assert json.loads(numbers.read_text())["figures"]["stored_append_ms"].keys() == set(STORES[:2])


def test_a_server_that_cannot_be_reached_makes_the_run_fail(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://bench:secret-word@127.0.0.1:{free_port()}/none")
    assert main(["--only", "stored", "--json", str(tmp_path / "bench.json")], TINY) == 1
    out, err = capfd.readouterr()
    assert "FAILED: stored of PostgreSQL: Broken" in out
    (row,) = [line for line in out.splitlines() if line.startswith("| PostgreSQL")]
    assert row.split("|")[2].strip() == "FAILED"
    assert "secret-word" not in out + err


@pytest.mark.parametrize("turns", [1, 250])
async def test_a_filled_store_holds_what_it_says_in_order_and_grows_at_its_end(tmp_path: Path, turns: int) -> None:
    async with stored.filled(f"sqlite:///{tmp_path}/chats.db", turns, 7) as (store, session):
        assert session.turns == turns
        assert await store.count(session.client, session.surface) == 7 + 1
        assert [turn.sequence for turn in await store.turns(session, limit=1000)] == list(range(1, turns + 1))
        (added,) = await store.append(session, [NewTurn("user", "and then?")]) or []
        assert [turn.id for turn in await store.newest(session, 1)] == [added.id]


def test_a_store_that_grows_costs_the_ratio_of_the_medians() -> None:
    measured = {"stored_append_ms": {"SQLite, little": [1.0, 2.0, 9.0], "SQLite, much": [3.0, 1.0, 9.0]}}
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in stored_table(measured, (), "1", "2").splitlines()
    ]
    assert lines[2:] == [
        ["SQLite: append of one turn", "2.00", "3.00", "1.50"],
        ["PostgreSQL", "not measured: no PostgreSQL", "", ""],
    ]


def test_what_fails_is_said_and_makes_the_run_fail(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(target: Target, scale: Scale) -> figures.Figures:
        if target.name == "floor":
            raise Broken("not what was asked for")
        return {"rps": 1.0}

    monkeypatch.setitem(__import__("tests.bench.__main__", fromlist=["PER_ROUND"]).PER_ROUND, "unary", broken)
    numbers = tmp_path / "bench.json"
    code = main(["--rounds", "1", "--only", "unary", "--targets", "floor", "--json", str(numbers)], TINY)
    out, _ = capfd.readouterr()
    assert code == 1
    assert "FAILED: unary of floor: Broken: not what was asked for" in out
    assert json.loads(numbers.read_text())["failed"]


def test_a_target_that_ends_at_once_is_named_with_its_last_words(tmp_path: Path) -> None:
    kind = Kind("dies", lambda work, port, upstream: ["sh", "-c", "echo no such thing >&2; exit 3"], prints_port=True)
    with pytest.raises(Died, match="no such thing"), running(kind, tmp_path, cores()[0]):
        pass
    assert list(tmp_path.iterdir()) == []


async def test_the_upstream_answers_each_sort_of_request(tmp_path: Path) -> None:
    with running(upstream_kind(), tmp_path, cores()[0]) as upstream:
        client = await connect(upstream.address)
        try:
            for what, body in (
                (figures.UNARY, 0),
                (figures.stream(5), 0),
                (figures.stream(3, 1), 0),
                (request("POST", "/upload/v1beta/files?upload_id=1", "t", length=300_000), 300_000),
                (request("GET", "/v1beta/files/bytes-300000:download?alt=media", "t"), 0),
                (request("GET", "/v1beta/files?pageSize=1000&pageToken=3", "t"), 0),
            ):
                await client.ask(what, body)
            assert client.pieces == 8
        finally:
            client.transport.abort()
        assert upstream.pid is not None
        assert family(upstream.pid) == [upstream.pid]
        assert resident([upstream.pid]) > 1_000_000
        assert cpu_seconds(upstream.pid) > 0


async def test_a_chunked_request_body_is_read_to_its_end(tmp_path: Path) -> None:
    with running(upstream_kind(), tmp_path, cores()[0]) as upstream:
        client = await connect(upstream.address)
        try:
            head = b"POST /upload/v1beta/files?upload_id=1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            asking = asyncio.ensure_future(client.ask(head))
            for piece in (b"5\r\nhel", b"lo\r\n", b"0\r\n", b"\r\n"):
                await asyncio.sleep(0)
                client.transport.write(piece)
            await asking
            assert b"final" in client.head
        finally:
            client.transport.abort()


async def test_an_answer_of_error_is_broken_and_shown() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\nbusy")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        with pytest.raises(Broken, match="503 No"):
            await figures.until_answer(Target("refusing", ("127.0.0.1", server.sockets[0].getsockname()[1])))


async def test_where_nobody_listens_the_wait_ends() -> None:
    with pytest.raises(Broken, match="does not listen"):
        await figures.until_answer(Target("nobody", ("127.0.0.1", free_port())), patience=0.05)


def test_numbers_that_are_missing_are_shown_as_missing() -> None:
    assert ratio(1.0, math.nan) == ratio(1.0, 0.0) == "–"
    assert math.isnan(percentile([], 0.5))
    table = main_table(
        {"rps": {"upstream": [5.0], "balancer": [2.0, 4.0]}, "c1_p50_us": {"upstream": [10.0], "balancer": [15.0]}},
        {("rps", "floor")},
    )
    assert "FAILED" in table
    assert [cell.strip() for cell in table.splitlines()[3].split("|")][2:5] == ["10", "–", "5"]
    assert set(GROUPS) >= {"unary", "growth"}


def test_a_ratio_is_that_of_the_rounds_so_that_a_disturbed_round_counts_for_one() -> None:
    rounds = {"floor": [100.0, 300.0, 110.0, 100.0], "balancer": [90.0, 270.0, 220.0, 90.0]}
    row = next(row for row in table_rows({"cpu_us": rounds}) if "CPU µs/request" in row[0])
    assert row[4:6] == ["0.90", "±15 %"]
