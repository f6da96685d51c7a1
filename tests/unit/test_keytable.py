"""What `balancer keys` prints of upstreams as a whole; the table itself is in test_cli.py."""

from __future__ import annotations

import re
from typing import Any

import pytest

from balancer.keytable import key_table


def answer(reach: dict[str, Any] | None) -> dict[str, Any]:
    upstream: dict[str, Any] = {"name": "gemini", "backoff": None, "keys": []} | (
        {} if reach is None else {"reach": reach}
    )
    return {"time": "2026-11-21T10:00:00Z", "upstreams": [upstream]}


def reach(state: str) -> dict[str, Any]:
    return {
        "state": state,
        "since": "2026-11-21T09:59:00Z",
        "reason": "its name does not resolve",
        "next_probe": "2026-11-21T10:00:07Z",
    }


def test_an_upstream_that_is_down_stands_above_the_table_with_its_reason() -> None:
    first, *_ = key_table(answer(reach("down")))
    time = r"(\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d"
    told = rf"gemini is down since {time}: its name does not resolve; next probe {time} \(in 7 s\)"
    assert re.fullmatch(told, first)


@pytest.mark.parametrize("told", [reach("up"), reach("doubted"), None])
def test_an_upstream_that_is_called_is_not_mentioned(told: dict[str, Any] | None) -> None:
    assert [line.split()[0] for line in key_table(answer(told))] == ["UPSTREAM"]
