"""The database full, locked, damaged or away: the caller is told, nothing acknowledged is lost, and the next call tries again."""

from __future__ import annotations

import asyncio
import resource
import signal
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog
from sqlalchemy import text
from structlog.testing import capture_logs

from balancer.conversations import sqlite
from balancer.conversations.base import NewTurn, SessionName, StorageUnavailable
from balancer.conversations.opening import Conversations, sqlite_path
from balancer.conversations.store import Store
from tests.contract.databases import Server, new_database, own_server, raw
from tests.fakes import FakeClock

NAME = SessionName("ann", "chat", "s")
HELLO = NewTurn("user", "hello")
LARGE = NewTurn("user", "x" * 60_000)


@pytest.fixture(autouse=True)
def every_level_is_logged() -> None:
    """Whatever a proxy of an earlier test has set: its level filters before anything is captured."""
    structlog.reset_defaults()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/folder/chats.db"


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    conversations = Conversations(url, FakeClock())
    yield await conversations.store()
    await conversations.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with own_server() as own:
        yield own


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """This process cannot write beyond that many bytes of any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_file_that_cannot_grow_refuses_turns_until_it_can(store: Store, url: str) -> None:
    session, _ = await store.get_or_create(NAME)
    largest = max(file.stat().st_size for file in sqlite_path(url).parent.iterdir())
    with files_end_at(largest + 500_000):
        outcomes = await asyncio.gather(*(store.append(session, [LARGE]) for _ in range(30)), return_exceptions=True)
        kept = [turn for outcome in outcomes if isinstance(outcome, list) for turn in outcome]
        refused = [outcome for outcome in outcomes if not isinstance(outcome, list)]
        assert {type(each) for each in refused} == {StorageUnavailable}
        assert {getattr(each, "retry_after", None) for each in refused} == {30.0}
        assert 0 < len(kept) < 30
        assert await store.turns(session) == kept
        with pytest.raises(StorageUnavailable):
            await store.append(session, [LARGE] * 20)
    after = await store.append(session, [HELLO])
    assert after is not None
    assert [turn.sequence for turn in await store.turns(session)] == list(range(1, len(kept) + 2))


async def test_what_is_too_large_for_the_disk_refuses_nobody_else(store: Store, url: str) -> None:
    session, _ = await store.get_or_create(NAME)
    largest = max(file.stat().st_size for file in sqlite_path(url).parent.iterdir())
    with files_end_at(largest + 500_000):
        turns = [[HELLO], [LARGE] * 20, [HELLO]]
        outcomes = await asyncio.gather(*(store.append(session, each) for each in turns), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [list, StorageUnavailable, list]
    assert [turn.sequence for turn in await store.turns(session)] == [1, 2]


async def test_a_full_database_is_told_as_full(url: str) -> None:
    conversations = Conversations(url, FakeClock())
    store = await conversations.store()
    session, _ = await store.get_or_create(NAME)
    pages = await store._database.write(lambda at: at.exec_driver_sql("PRAGMA page_count").scalar_one())
    await store._database.write(lambda at: at.exec_driver_sql(f"PRAGMA max_page_count = {pages + 8}").all())
    with pytest.raises(StorageUnavailable, match="the disk of the database is full"):
        await store.append(session, [LARGE])
    assert await store.turns(session) == []
    await store._database.write(lambda at: at.exec_driver_sql("PRAGMA max_page_count = 1000000").all())
    assert [turn.sequence for turn in await store.append(session, [LARGE]) or []] == [1]
    await conversations.close()


async def test_a_lock_of_another_process_is_waited_for_and_then_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.2)
    conversations = Conversations(url, FakeClock())
    store = await conversations.store()
    session, _ = await store.get_or_create(NAME)
    with sqlite3.connect(sqlite_path(url), isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        outcomes = await asyncio.gather(*(store.append(session, [HELLO]) for _ in range(3)), return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["the database is locked by another process"] * 3
        assert await store.get(NAME) == session
        other.execute("COMMIT")
    other.close()
    assert [turn.sequence for turn in await store.append(session, [HELLO]) or []] == [1]
    await conversations.close()


async def test_a_full_database_can_be_read_and_the_log_is_told_once(store: Store, url: str) -> None:
    session, _ = await store.get_or_create(NAME)
    largest = max(file.stat().st_size for file in sqlite_path(url).parent.iterdir())
    with capture_logs() as logs:
        with files_end_at(largest):
            for _ in range(3):
                with pytest.raises(StorageUnavailable):
                    await store.append(session, [LARGE] * 10)
                assert await store.turns(session) == []
        await store.append(session, [HELLO])
    assert [each["event"] for each in logs] == ["stored chats cannot be written", "stored chats can be written again"]


async def test_a_lock_that_is_given_up_in_time_is_not_noticed(store: Store, url: str) -> None:
    session, _ = await store.get_or_create(NAME)
    with sqlite3.connect(sqlite_path(url), isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.ensure_future(store.append(session, [HELLO]))
        assert await store.turns(session) == []
        other.execute("COMMIT")
    other.close()
    assert await waiting is not None


async def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(url: str) -> None:
    path = sqlite_path(url)
    path.parent.mkdir()
    path.write_bytes(b"something else, of some length" * 100)
    conversations = Conversations(url, FakeClock())
    with pytest.raises(StorageUnavailable, match="no SQLite database") as caught:
        await conversations.store()
    assert caught.value.retry_after is None
    assert str(path) not in str(caught.value)
    await conversations.close()
    assert path.read_bytes() == b"something else, of some length" * 100


async def test_a_folder_that_cannot_be_made_is_told_and_tried_again(url: str) -> None:
    folder = sqlite_path(url).parent
    folder.write_text("in the way")
    conversations = Conversations(url, FakeClock())
    for _ in range(2):
        with pytest.raises(StorageUnavailable, match="cannot be read or written") as caught:
            await conversations.store()
        assert str(folder) not in str(caught.value)
    folder.unlink()
    assert await (await conversations.store()).get(NAME) is None
    await conversations.close()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["shut down", "killed"])
async def test_a_server_that_was_away_is_used_again_at_once(server: Server, how: signal.Signals) -> None:
    with new_database(server.url) as url:
        conversations = Conversations(url, FakeClock())
        store = await conversations.store()
        session, _ = await store.get_or_create(NAME)
        for _ in range(2):  # all connections of the pool know the server that goes
            await asyncio.gather(*(store.append(session, [HELLO]) for _ in range(20)))
        with capture_logs() as logs:
            await asyncio.to_thread(server.stop, how)
            for call in (store.get(NAME), store.append(session, [HELLO]), store.append(session, [HELLO])):
                with pytest.raises(StorageUnavailable) as caught:
                    await call
                told(caught.value, server)
            await asyncio.to_thread(server.start)
            found = await store.get(NAME)
            stored = await store.append(session, [HELLO])
        assert found is not None
        assert (found.turns, [turn.sequence for turn in stored or []]) == (40, [41])
        assert [each["event"] for each in logs] == [
            "stored chats cannot be read",
            "stored chats cannot be written",
            "stored chats can be read again",
            "stored chats can be written again",
        ]
        await conversations.close()


async def test_a_server_that_was_restarted_between_two_calls_is_not_noticed(server: Server) -> None:
    with new_database(server.url) as url:
        conversations = Conversations(url, FakeClock())
        store = await conversations.store()
        session, _ = await store.get_or_create(NAME)
        await asyncio.gather(*(store.append(session, [HELLO]) for _ in range(20)))
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
        outcomes = await asyncio.gather(store.get(NAME), *(store.append(session, [HELLO]) for _ in range(20)))
        assert None not in outcomes
        await conversations.close()


async def test_a_server_that_is_away_at_the_first_use_is_tried_again(server: Server) -> None:
    with new_database(server.url) as url:
        await asyncio.to_thread(server.stop)
        conversations = Conversations(url, FakeClock())
        with pytest.raises(StorageUnavailable) as caught:
            await conversations.store()
        told(caught.value, server)
        await asyncio.to_thread(server.start)
        assert (await (await conversations.store()).get_or_create(NAME))[1]
        await conversations.close()


def told(error: StorageUnavailable, server: Server) -> None:
    assert error.reason == str(error) == "the database cannot be reached"
    assert error.retry_after == 5.0
    assert error.__suppress_context__
    assert str(server.port) not in repr(error)


REFUSALS = [
    ("53100", "the disk of the database is full"),
    ("53200", "the database is overloaded"),
    ("25006", "the database is read-only"),
    ("42501", "the database does not give the rights that are needed"),
]


@pytest.mark.parametrize(("state", "reason"), REFUSALS)
async def test_what_the_server_cannot_do_is_told(server: Server, state: str, reason: str) -> None:
    with new_database(server.url) as url:
        conversations = Conversations(url, FakeClock())
        store = await conversations.store()
        session, _ = await store.get_or_create(NAME)
        with raw(url) as connection:
            connection.execute(text(REFUSE.format(state=state)))
            connection.execute(text("CREATE TRIGGER refuse BEFORE INSERT ON chat_messages EXECUTE FUNCTION refuse()"))
            with pytest.raises(StorageUnavailable, match=reason):
                await store.append(session, [HELLO])
            connection.execute(text("DROP TRIGGER refuse ON chat_messages"))
        assert [turn.sequence for turn in await store.append(session, [HELLO]) or []] == [1]
        await conversations.close()


REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$
"""


async def test_a_server_that_does_not_let_us_in_is_told_to_callers_in_general_and_to_the_log_in_full(
    server: Server,
) -> None:
    conversations = Conversations(server.url.replace("/postgres", "/none"), FakeClock())
    with capture_logs() as logs, pytest.raises(StorageUnavailable) as caught:
        await conversations.store()
    told(caught.value, server)
    assert 'database "none" does not exist' in logs[0]["error"]
    await conversations.close()
