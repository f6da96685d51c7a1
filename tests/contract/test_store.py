"""What the store of chats must do on each database."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, inspect, text

from balancer.conversations import migrations, schema
from balancer.conversations.base import Binding, DatabaseRefused, NewTurn, Session, SessionName, StorageUnavailable
from balancer.conversations.opening import Conversations, sqlite_path
from balancer.conversations.store import Store
from tests.contract.databases import any_server, new_database, raw
from tests.fakes import FakeClock
from tests.faults.store_load import go, start

REPOSITORY = Path(__file__).parents[2]
NAME = SessionName("ann", "conversations", "s")
CHAT = SessionName("ann", "chat", "s")
BINDING = Binding("coze", "helper", "key-1", "7400000001")
HELLO = NewTurn("user", "hello")


@pytest.fixture(scope="module")
def servers() -> Iterator[Callable[[], str]]:
    """The PostgreSQL server, started by the first test that asks."""
    with ExitStack() as stack:
        started: list[str] = []

        def server() -> str:
            if not started:
                started.append(stack.enter_context(any_server()))
            return started[0]

        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, servers: Callable[[], str]) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/chats.db"
    else:
        with new_database(servers()) as made:
            yield made


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def store(url: str, clock: FakeClock) -> AsyncIterator[Store]:
    conversations = Conversations(url, clock)
    yield await conversations.store()
    await conversations.close()


async def session(store: Store, name: SessionName = NAME, turns: int = 0) -> Session:
    """A session with so many turns."""
    made, _ = await store.get_or_create(name)
    if turns:
        await store.append(made, [NewTurn("user", str(number + 1)) for number in range(turns)])
    return made


def named(name: str, surface: str = "conversations", client: str = "ann") -> SessionName:
    return SessionName(client, surface, name)


# Sessions ----------------------------------------------------------------------------------------------------------------


async def test_a_new_session_is_active_and_has_nothing_yet(store: Store, clock: FakeClock) -> None:
    made, fresh = await store.get_or_create(NAME, title="T", user_id="u")
    assert fresh
    assert made.created_at == made.updated_at == datetime.fromtimestamp(clock.wall(), UTC)
    assert (made.name, made.title, made.user_id, made.is_active, made.turns) == (NAME, "T", "u", True, 0)
    assert (made.conversation, made.binding) == (None, None)
    assert await store.get(NAME) == made
    assert await store.turns(made) == await store.newest(made, 10) == []


async def test_a_session_that_is_there_stays_as_it_is(store: Store, clock: FakeClock) -> None:
    made, _ = await store.get_or_create(NAME, title="T", user_id="u")
    clock.advance(5)
    assert await store.get_or_create(NAME, title="other", user_id="v") == (made, False)


async def test_times_are_kept_to_the_microsecond(store: Store, clock: FakeClock) -> None:
    clock.advance(0.123457)
    made = await session(store)
    assert made.created_at.microsecond == 123457
    found = await store.get(NAME)
    assert found is not None
    assert found.created_at == made.created_at


async def test_ids_are_compared_trimmed_and_folded_and_shown_as_first_given(store: Store) -> None:
    made, _ = await store.get_or_create(named(" Straße "))
    for same in ("STRASSE", " straße", "StraSSe  "):
        assert await store.get_or_create(named(same)) == (made, False)
    assert made.id == " Straße "
    assert await store.get(named("strase")) is None


async def test_clients_and_surfaces_use_the_same_ids_beside_each_other(store: Store) -> None:
    names = [named("s", surface, client) for surface in ("chat", "conversations") for client in ("ann", "bob")]
    made = [await session(store, name, turns=number) for number, name in enumerate(names)]
    assert len({each.number for each in made}) == 4
    assert [(await store.turns(each))[-1:] != [] for each in made] == [False, True, True, True]
    assert await store.delete(names[0])
    assert [await store.get(name) is not None for name in names] == [False, True, True, True]


async def test_of_calls_that_make_a_session_at_once_one_does(store: Store) -> None:
    outcomes = await asyncio.gather(*(store.get_or_create(NAME, title=str(number)) for number in range(20)))
    assert sum(made for _, made in outcomes) == 1
    assert len({each.number for each, _ in outcomes}) == 1


async def test_lists_begin_with_the_last_activity_and_then_the_newest(store: Store, clock: FakeClock) -> None:
    for name in "abcd":
        await session(store, named(name))
    clock.advance(1)
    await store.update(named("b"), is_active=False)
    await session(store, named("x", client="bob"))
    await session(store, named("y", surface="chat"))

    async def ids(**page: Any) -> str:
        return "".join(each.id for each in await store.sessions("ann", "conversations", **page))

    assert await ids() == "bdca"
    assert await ids(active_only=True) == "dca"
    assert await ids(skip=1, limit=2) == "dc"
    assert await ids(skip=1, limit=2, active_only=True) == "ca"
    assert await ids(skip=4) == await ids(skip=10**30) == ""
    assert await store.count("ann", "conversations") == 4
    assert await store.count("eve", "conversations") == 0


async def test_an_update_changes_what_is_given_and_is_an_activity(store: Store, clock: FakeClock) -> None:
    made = await session(store)
    clock.advance(3)
    changed = await store.update(NAME, title="new")
    assert changed is not None
    assert (changed.title, changed.is_active, changed.created_at) == ("new", True, made.created_at)
    assert changed.updated_at - made.updated_at == timedelta(seconds=3)
    off = await store.update(NAME, is_active=False)
    assert off is not None
    assert (off.title, off.is_active) == ("new", False)
    assert await store.get(NAME) == off
    assert await store.update(named("none"), title="x") is None


async def test_a_deleted_session_takes_its_turns_along(store: Store, url: str) -> None:
    await session(store, turns=3)
    kept = await session(store, named("kept"), turns=2)
    assert await store.delete(NAME)
    assert not await store.delete(NAME)
    assert await store.get(NAME) is None
    with raw(url) as connection:
        assert connection.execute(text("SELECT DISTINCT session FROM chat_messages")).all() == [(kept.number,)]


async def test_a_new_session_never_gets_the_number_of_a_deleted_one(store: Store) -> None:
    first = await session(store)
    await store.delete(NAME)
    assert (await session(store)).number > first.number


# Turns -------------------------------------------------------------------------------------------------------------------


async def test_turns_are_numbered_from_one_without_gaps(store: Store, clock: FakeClock) -> None:
    made = await session(store)
    clock.advance(2)
    first = await store.append(made, [NewTurn("system", "be kind"), HELLO])
    second = await store.append(made, [NewTurn("assistant", "hi", 3, {"partial": True})])
    assert first is not None
    assert second is not None
    assert [turn.sequence for turn in first + second] == [1, 2, 3]
    assert len({turn.id for turn in first + second}) == 3
    assert {turn.created_at for turn in first + second} == {datetime.fromtimestamp(clock.wall(), UTC)}
    assert await store.turns(made) == first + second
    found = await store.get(NAME)
    assert found is not None
    assert (found.turns, found.updated_at - made.updated_at) == (3, timedelta(seconds=2))


CONTENTS: list[Any] = [
    *("", " ", "line\nline\r\n\ttab", 'quotes " and \\ ', "你好 🧑‍🚀 é e\u0301", "\u2028\x7f\x01", "x" * 300_000),
    [{"type": "text", "text": "你好"}, {"type": "image_url", "image_url": {"url": "data:;base64," + "A" * 300_000}}],
    [{"z": 1, "a": [1.0, 1e-7, 0.1 + 0.2, 10**30, -0.0, True, None, {}, []]}, "plain", ["nested"]],
]


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: repr(content)[:20])
async def test_content_comes_back_as_it_was_stored(store: Store, content: Any) -> None:
    made = await session(store)
    stored = await store.append(made, [NewTurn("user", content)])
    (turn,) = await store.turns(made)
    assert stored == [turn]
    assert repr(turn.content) == repr(content)


@pytest.mark.parametrize("info", [None, {}, {"b": {"a": [None, 1.5, "ü"]}, "a": 10**30}], ids=repr)
async def test_metadata_comes_back_as_it_was_stored(store: Store, info: dict[str, Any] | None) -> None:
    made = await session(store)
    await store.append(made, [NewTurn("custom role", "x", 2**63 - 1, info)])
    (turn,) = await store.newest(made, 1)
    assert repr(turn.metadata_info) == repr(info)
    assert (turn.role, turn.tokens) == ("custom role", 2**63 - 1)


async def test_a_page_is_a_range_and_history_its_newest_end(store: Store) -> None:
    made = await session(store, turns=250)

    async def page(skip: int, limit: int) -> list[int]:
        return [turn.sequence for turn in await store.turns(made, skip=skip, limit=limit)]

    assert await page(0, 100) == list(range(1, 101))
    assert await page(200, 100) == list(range(201, 251))
    assert await page(249, 1) == [250]
    assert await page(250, 1) == await page(10**30, 1000) == []
    newest = await store.newest(made, 100)
    assert [turn.content for turn in newest] == [str(number) for number in range(151, 251)]
    assert len(await store.newest(made, 1000)) == 250


async def test_the_newest_of_some_roles_are_found_behind_any_number_of_others(store: Store) -> None:
    made = await session(store)
    await store.append(made, [NewTurn("system", "one"), NewTurn("user", "two"), NewTurn("assistant", "three")])
    await store.append(made, [NewTurn("system", "four")])
    await store.append(made, [NewTurn("note", "n")] * 300)

    async def newest(limit: int, *roles: str) -> list[Any]:
        return [turn.content for turn in await store.newest(made, limit, roles=roles)]

    assert await newest(1, "system") == ["four"]
    assert await newest(2, "user", "assistant", "tool") == ["two", "three"]
    assert await newest(2, "system", "user", "assistant") == ["three", "four"]
    assert await newest(10, "tool") == []


async def test_the_user_of_the_last_turn_is_the_session_s(store: Store) -> None:
    made, _ = await store.get_or_create(CHAT, user_id="first")
    await store.append(made, [HELLO])
    assert (await session(store, CHAT)).user_id == "first"
    await store.append(made, [HELLO], user_id="second")
    assert (await session(store, CHAT)).user_id == "second"


async def test_appends_at_once_share_the_sequence(store: Store) -> None:
    made = await session(store)
    outcomes = await asyncio.gather(*(store.append(made, [NewTurn("user", str(n)), HELLO]) for n in range(60)))
    assert sorted(turn.sequence for stored in outcomes if stored for turn in stored) == list(range(1, 121))
    assert all(stored is not None and stored[1].sequence == stored[0].sequence + 1 for stored in outcomes)
    assert await store.turns(made, limit=1000) == sorted(
        (turn for stored in outcomes if stored for turn in stored), key=lambda turn: turn.sequence
    )


def test_programs_that_start_at_once_make_the_tables_once_and_share_the_sequence(url: str) -> None:
    programs = [start(url, 10, 10, "s") for _ in range(2)]
    for program in programs:
        go(program)
    said = [program.communicate()[0] for program in programs]
    assert [program.returncode for program in programs] == [0, 0]
    assert sorted(int(line.split()[1]) for lines in said for line in lines.splitlines()) == list(range(1, 201))
    with raw(url) as connection:
        assert connection.execute(text("SELECT version FROM chat_schema")).all() == [(len(migrations.MIGRATIONS),)]
        stored = connection.execute(text("SELECT sequence FROM chat_messages ORDER BY sequence")).scalars()
        assert list(stored) == list(range(1, 201))


async def test_a_late_answer_never_brings_a_deleted_session_back(store: Store) -> None:
    gone = await session(store, turns=1)
    await store.delete(NAME)
    assert await store.append(gone, [HELLO]) is None
    assert await store.bind(gone, BINDING) is None
    assert await store.get(NAME) is None
    again = await session(store)
    assert await store.append(gone, [HELLO]) is None
    assert await store.turns(again) == await store.turns(gone) == []


async def test_a_cleared_session_stays_and_takes_no_late_answer(store: Store, clock: FakeClock) -> None:
    before = await session(store, CHAT, turns=2)
    await store.bind(before, BINDING, conversation="conversation-1")
    clock.advance(1)
    cleared = await store.clear(CHAT)
    assert cleared is not None
    assert (cleared.turns, cleared.conversation, cleared.binding) == (0, None, None)
    assert (cleared.number, cleared.created_at) == (before.number, before.created_at)
    assert cleared.updated_at > before.updated_at
    assert await store.get(CHAT) == cleared
    assert await store.turns(cleared) == []
    assert await store.append(before, [HELLO]) is None
    assert await store.bind(before, BINDING) is None
    stored = await store.append(cleared, [HELLO])
    assert stored is not None
    assert [turn.sequence for turn in stored] == [1]
    assert await store.clear(named("none")) is None


async def test_a_write_goes_on_when_its_caller_leaves(store: Store, url: str) -> None:
    made = await session(store)
    leaving = asyncio.ensure_future(store.append(made, [HELLO]))
    await asyncio.sleep(0)  # it has begun
    leaving.cancel()
    await store.close()  # waits for what was begun
    assert leaving.cancelled()
    with raw(url) as connection:
        assert connection.execute(text("SELECT sequence FROM chat_messages")).scalars().all() == [1]


async def test_what_cannot_be_stored_takes_nothing_else_with_it(store: Store) -> None:
    made = await session(store)
    turns = [NewTurn("user", str(number), tokens=10**30 if number == 5 else 0) for number in range(10)]
    outcomes = await asyncio.gather(*(store.append(made, [turn]) for turn in turns), return_exceptions=True)
    assert [isinstance(outcome, Exception) for outcome in outcomes] == [number == 5 for number in range(10)]
    assert [turn.sequence for turn in await store.turns(made)] == list(range(1, 10))


# Conversations elsewhere -------------------------------------------------------------------------------------------------


async def test_a_session_is_bound_to_one_conversation_at_a_time(store: Store) -> None:
    made = await session(store)
    bound = await store.bind(made, BINDING)
    assert bound is not None
    assert (bound.binding, bound.conversation, bound.updated_at) == (BINDING, None, made.updated_at)
    other = Binding("achuan", "m", "account", "296270")
    assert await store.bind(made, other) == await store.get(NAME)
    assert (await session(store)).binding == other
    freed = await store.bind(made, None)
    assert freed is not None
    assert freed.binding is None


async def test_a_session_is_found_by_its_conversation(store: Store) -> None:
    made = await session(store, CHAT)
    assert await store.by_conversation("chat", "conversation-1") is None
    bound = await store.bind(made, BINDING, conversation="conversation-1")
    assert await store.by_conversation("chat", "conversation-1") == bound
    assert await store.by_conversation("conversations", "conversation-1") is None
    assert await store.by_conversation("chat", "CONVERSATION-1") is None


async def test_a_conversation_moves_to_another_session_and_the_old_one_goes(store: Store, clock: FakeClock) -> None:
    old = await session(store, CHAT, turns=2)
    await store.bind(old, BINDING, conversation="conversation-1")
    clock.advance(1)
    moved = await store.take(named("other", "chat"), "conversation-1", BINDING, user_id="u")
    assert moved is not None
    assert (moved.conversation, moved.binding, moved.user_id, moved.turns) == ("conversation-1", BINDING, "u", 0)
    assert await store.get(CHAT) is None
    assert await store.by_conversation("chat", "conversation-1") == moved
    clock.advance(1)
    again = await store.take(named("OTHER", "chat"), "conversation-1", BINDING)
    assert again is not None
    assert (again.number, again.updated_at - moved.updated_at) == (moved.number, timedelta(seconds=1))
    third = await session(store, named("third", "chat"))
    assert await store.bind(third, BINDING, conversation="conversation-1") is not None
    assert [each.id for each in await store.sessions("ann", "chat")] == ["third"]


async def test_another_client_s_conversation_is_not_taken(store: Store) -> None:
    mine = await session(store, CHAT)
    mine = await store.bind(mine, BINDING, conversation="conversation-1") or mine
    theirs = named("s", "chat", "bob")
    assert await store.take(theirs, "conversation-1", BINDING) is None
    assert await store.get(theirs) is None
    assert await store.bind(await session(store, theirs), BINDING, conversation="conversation-1") is None
    assert (await session(store, theirs)).binding is None
    assert await store.get(CHAT) == mine


async def test_of_clients_that_take_a_conversation_at_once_one_has_it(store: Store) -> None:
    names = [named(f"s{number % 3}", "chat", client) for number in range(6) for client in ("ann", "bob")]
    outcomes = await asyncio.gather(*(store.take(name, "conversation-1", BINDING) for name in names))
    winners = {each.client for each in outcomes if each is not None}
    assert len(winners) == 1
    holder = await store.by_conversation("chat", "conversation-1")
    assert holder is not None
    assert await store.sessions(holder.client, "chat") == [holder]
    assert {holder.client} == winners


async def test_what_was_idle_for_too_long_goes_in_batches(store: Store, clock: FakeClock) -> None:
    start_of_all = datetime.fromtimestamp(clock.wall(), UTC)
    for number in range(7):
        await session(store, named(f"s{number}", "chat"), turns=1)
        await session(store, named(f"s{number}", "conversations"))
        clock.advance(1)
    assert await store.purge("chat", start_of_all + timedelta(seconds=5), limit=3) == 3
    assert [each.id for each in await store.sessions("ann", "chat")] == ["s6", "s5", "s4", "s3"]
    assert await store.purge("chat", start_of_all + timedelta(seconds=5), limit=3) == 2
    assert await store.purge("chat", start_of_all + timedelta(seconds=5), limit=3) == 0
    assert [each.id for each in await store.sessions("ann", "chat")] == ["s6", "s5"]
    assert await store.count("ann", "conversations") == 7


# The database ------------------------------------------------------------------------------------------------------------


async def test_all_is_there_after_a_restart(url: str, clock: FakeClock) -> None:
    first = Conversations(url, clock)
    store = await first.store()
    made = await session(store, turns=3)
    await store.bind(made, BINDING, conversation="conversation-1")
    before = (await store.get(NAME), await store.turns(made))
    await first.close()
    second = Conversations(url, clock)
    store = await second.store()
    assert (await store.get(NAME), await store.turns(made)) == before
    assert [turn.sequence for turn in await store.append(made, [HELLO]) or []] == [4]
    await second.close()


async def test_a_closed_store_says_so(url: str, clock: FakeClock) -> None:
    conversations = Conversations(url, clock)
    store = await conversations.store()
    made = await session(store)
    await conversations.close()
    await conversations.close()
    for call in (conversations.store(), store.append(made, [HELLO]), store.get(NAME)):
        with pytest.raises(StorageUnavailable, match="closed"):
            await call


async def test_a_later_step_is_run_once_over_what_is_there(
    url: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Conversations(url, clock)
    made = await session(await before.store(), turns=2)
    await before.close()
    later = ("ALTER TABLE chat_messages ADD COLUMN later BIGINT", "UPDATE chat_messages SET later = sequence * 2")
    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, later))
    for _ in range(2):
        after = Conversations(url, clock)
        await (await after.store()).append(made, [HELLO])
        await after.close()
    with raw(url) as connection:
        rows = connection.execute(text("SELECT sequence, later FROM chat_messages ORDER BY sequence")).all()
        versions = connection.execute(text("SELECT version FROM chat_schema ORDER BY version")).scalars().all()
    assert rows == [(1, 2), (2, 4), (3, None), (4, None)]
    assert versions == list(range(1, len(migrations.MIGRATIONS) + 1))


async def test_a_database_newer_than_the_program_is_refused_and_left_alone(url: str, clock: FakeClock) -> None:
    newer = len(migrations.MIGRATIONS) + 1
    with raw(url) as connection:
        connection.execute(text("CREATE TABLE chat_schema (version INTEGER NOT NULL PRIMARY KEY)"))
        connection.execute(text(f"INSERT INTO chat_schema VALUES ({newer})"))
    conversations = Conversations(url, clock)
    with pytest.raises(DatabaseRefused, match=f"newer version of this program: its schema is {newer}"):
        await conversations.store()
    await conversations.close()
    with raw(url) as connection:
        assert inspect(connection).get_table_names() == ["chat_schema"]


async def test_tables_of_another_program_are_refused_and_left_alone(url: str, clock: FakeClock) -> None:
    with raw(url) as connection:
        connection.execute(text("CREATE TABLE chat_messages (body TEXT)"))
    conversations = Conversations(url, clock)
    with pytest.raises(DatabaseRefused, match=r"chat_messages.* already exists"):
        await conversations.store()
    await conversations.close()
    with raw(url) as connection:
        assert inspect(connection).get_table_names() == ["chat_messages"]


async def test_the_tables_are_what_statements_take_them_for(store: Store, url: str) -> None:
    with raw(url) as connection:
        found = inspect(connection)
        assert sorted(found.get_table_names()) == ["chat_messages", "chat_schema", "chat_sessions"]
        for table in schema.metadata.sorted_tables:
            key = list(table.primary_key.columns.keys())
            assert found.get_pk_constraint(table.name)["constrained_columns"] == key
            # SQLite tells its INTEGER PRIMARY KEY as one that could be null, which it cannot.
            there = [(each["name"], each["name"] in key or each["nullable"]) for each in found.get_columns(table.name)]
            assert there == [(column.name, column.name in key or column.nullable) for column in table.columns]
        (reference,) = found.get_foreign_keys("chat_messages")
        assert (reference["referred_table"], reference["referred_columns"]) == ("chat_sessions", ["number"])


FILL = {
    "sqlite": "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {count}) ",
    "postgresql": "WITH n(n) AS (SELECT generate_series(1, {count})) ",
}


def fill(url: str, session: Session, turns: int, others: int) -> None:
    """So many turns, every tenth of them the assistant's, and so many other sessions of this client and of others."""
    count = FILL[url.partition(":")[0]]
    with raw(url) as connection:
        connection.execute(
            text(
                "INSERT INTO chat_messages (session, sequence, id, role, content, tokens, created_at) "
                + count.format(count=turns)
                + f"SELECT {session.number}, n, 'id' || n, CASE WHEN n % 10 = 0 THEN 'assistant' ELSE 'user' END, "
                "'\"some words of text\"', 4, 0 FROM n"
            )
        )
        connection.execute(text(f"UPDATE chat_sessions SET turns = {turns} WHERE number = {session.number}"))
        connection.execute(
            text(
                "INSERT INTO chat_sessions (edition, client, surface, folded, id, is_active, created_at, updated_at, turns) "
                + count.format(count=others)
                + f"SELECT 1, CASE WHEN n % 2 = 0 THEN '{session.client}' ELSE 'client' || n END, '{session.surface}', "
                "'o' || n, 'o' || n, n % 4 <> 0, n, n, 0 FROM n"
            )
        )
        connection.execute(text("ANALYZE"))


async def test_no_page_reads_more_than_it_shows(store: Store, url: str) -> None:
    made = await session(store)
    fill(url, made, 50_000, 5_000)
    long_ago = datetime.fromtimestamp(0, UTC)
    turns, newest, sessions = store.turns, store.newest, store.sessions
    pages: list[tuple[str, Callable[[], Coroutine[Any, Any, Any]]]] = [
        ("chat_messages_pkey", lambda: turns(made, skip=49_900)),
        ("chat_messages_pkey", lambda: turns(made)),
        ("chat_messages_pkey", lambda: newest(made, 100)),
        ("chat_messages_role", lambda: newest(made, 1, roles=["system"])),
        ("chat_messages_role", lambda: newest(made, 100, roles=["user", "assistant", "tool"])),
        ("chat_sessions_recent", lambda: sessions("ann", "conversations")),
        ("chat_sessions_active", lambda: sessions("ann", "conversations", active_only=True)),
        ("chat_sessions_name", lambda: store.get(NAME)),
        ("chat_sessions_conversation", lambda: store.by_conversation("conversations", "none")),
        ("chat_sessions_idle", lambda: store.purge("conversations", long_ago)),
    ]
    for index, ask in pages:
        with asked() as statements:
            await ask()
        (plan,) = [explained(url, *statement) for statement in statements if statement[0].startswith(("SEL", "DEL"))]
        assert index in plan or (index == "chat_messages_pkey" and "sqlite_autoindex_chat_messages_1" in plan), plan
        assert "SCAN chat_" not in plan, plan
        assert "Seq Scan" not in plan, plan
        if index in ("chat_sessions_recent", "chat_sessions_active"):
            assert "Sort" not in plan, plan
            assert "TEMP B-TREE" not in plan, plan


@contextmanager
def asked() -> Iterator[list[tuple[str, Any]]]:
    """The statements that databases are sent, with their parameters."""
    statements: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        statements.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def explained(url: str, statement: str, parameters: Any) -> str:
    explain = "EXPLAIN QUERY PLAN" if url.startswith("sqlite") else "EXPLAIN"
    with raw(url) as connection:
        return "\n".join(str(row[-1]) for row in connection.exec_driver_sql(f"{explain} {statement}", parameters))


# Opening -----------------------------------------------------------------------------------------------------------------


def test_nothing_is_imported_or_made_before_the_first_use(tmp_path: Path) -> None:
    program = f"""
import sys
import balancer.app
from balancer.clock import SystemClock
from balancer.conversations.opening import Conversations
Conversations("sqlite:///{tmp_path}/chats.db", SystemClock())
print([name for name in ("sqlalchemy", "aiosqlite", "psycopg") if name in sys.modules])
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert said.stdout == "[]\n"
    assert files_in(tmp_path) == []


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


async def test_calls_that_come_while_it_is_opened_wait_for_that(url: str, clock: FakeClock) -> None:
    conversations = Conversations(url, clock)
    first, second = await asyncio.gather(conversations.store(), conversations.store())
    assert first is second is await conversations.store()
    await conversations.close()


async def test_a_caller_who_leaves_while_it_is_opened_leaves_the_others_alone(url: str, clock: FakeClock) -> None:
    conversations = Conversations(url, clock)
    leaving = asyncio.ensure_future(conversations.store())
    staying = asyncio.ensure_future(conversations.store())
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await session(await staying)).turns == 0
    await conversations.close()


async def test_a_missing_driver_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    conversations = Conversations("postgresql://ann@127.0.0.1/chats", clock)
    with pytest.raises(DatabaseRefused, match=r"pip install 'balancer\[postgres\]'"):
        await conversations.store()
    await conversations.close()


async def test_an_sqlite_that_is_too_old_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    conversations = Conversations(f"sqlite:///{tmp_path}/chats.db", clock)
    with pytest.raises(DatabaseRefused, match=r"SQLite 3\.35 or newer is needed"):
        await conversations.store()
    await conversations.close()
    assert files_in(tmp_path) == []


async def test_the_file_is_made_with_its_folder_for_its_owner_only(tmp_path: Path, clock: FakeClock) -> None:
    url = f"sqlite:///{tmp_path}/deep/er/chats.db"
    conversations = Conversations(url, clock)
    await session(await conversations.store())
    files = files_in(sqlite_path(url).parent)
    assert [file.name for file in files] == ["chats.db", "chats.db-shm", "chats.db-wal"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    await conversations.close()
    os.chmod(sqlite_path(url), 0o644)
    again = Conversations(url, clock)
    await again.store()
    assert stat.S_IMODE(sqlite_path(url).stat().st_mode) == 0o600
    await again.close()


async def test_what_is_acknowledged_is_flushed_and_other_processes_are_waited_for(
    tmp_path: Path, clock: FakeClock
) -> None:
    pragmas: dict[str, set[Any]] = {}
    store = await Conversations(f"sqlite:///{tmp_path}/chats.db", clock).store()

    def look(connection: Any) -> None:
        for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys"):
            pragmas.setdefault(name, set()).add(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())

    await store._database.read(look)
    await store._database.write(look)
    assert pragmas == {"journal_mode": {"wal"}, "synchronous": {2}, "busy_timeout": {5000}, "foreign_keys": {1}}
    await store.close()
