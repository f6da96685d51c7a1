"""`database.url`: what it may be, and which file it means."""

from __future__ import annotations

import os
from importlib import util
from pathlib import Path

import pytest

from balancer.config import ConfigError, parse
from balancer.conversations.opening import sqlite_path


@pytest.mark.parametrize(
    ("written", "file"),
    [
        ("database: {url: 'sqlite:///chats.db'}", "chats.db"),
        ("database: {url: 'sqlite:///deep/er/my chats%20.db'}", "deep/er/my chats%20.db"),
        ("database: {url: }", "balancer.db"),
        ("", "balancer.db"),
    ],
)
def test_a_relative_file_counts_from_the_folder_of_the_configuration(tmp_path: Path, written: str, file: str) -> None:
    assert sqlite_path(parse(written, {}, tmp_path).database.url) == tmp_path / file


def test_four_slashes_begin_at_the_root(tmp_path: Path) -> None:
    assert os.fspath(sqlite_path(parse("database: {url: 'sqlite:////a/b.db'}", {}, tmp_path).database.url)) == "/a/b.db"


@pytest.mark.parametrize("url", ["postgresql://u:p@h:5/n", "postgres://h/n", "postgresql:///n?host=/run/postgresql"])
def test_an_address_of_a_server_stays_as_it_is(url: str) -> None:
    settings = parse(f"database: {{url: '{url}'}}", {})
    assert settings.database.url == url
    assert ("p" in settings.secret_texts()) == ("u:p@" in url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("mysql://h/n", "must be sqlite:///file or postgresql://user@host/name"),
        ("balancer.db", "must be sqlite:///file or postgresql://user@host/name"),
        ("postgresql+asyncpg://h/n", "must be sqlite:///file or postgresql://user@host/name"),
        ("postgresql://u:geheim@h", "names no database: postgresql://user@host/name"),
        ("postgresql://u:geheim@h:x/n", "is not a URL"),
        *(
            (f"sqlite:{rest}", "must be sqlite:///file, or sqlite:////folder/file from the root on")
            for rest in ("//", "///", "///:memory:", "//chats.db", "chats.db", "///chats.db?mode=ro")
        ),
    ],
)
def test_what_cannot_keep_chats_is_refused(url: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"database: {{url: '{url}'}}", {})
    assert caught.value.problems == [f"database.url: {reason}"]


def test_a_missing_driver_is_told_by_check_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "balancer.config.checks.find_spec", lambda name: None if name == "psycopg" else util.find_spec(name)
    )
    with pytest.raises(ConfigError, match=r"^database.url: postgresql:// needs .* pip install 'balancer\[postgres\]'$"):
        parse("database: {url: 'postgresql://h/n'}", {})
    parse("", {})
