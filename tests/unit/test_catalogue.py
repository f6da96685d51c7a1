"""What an upstream itself lists: how it is read, and how long it is kept."""

from __future__ import annotations

import json
from typing import Any

import pytest

from balancer.routing.catalogue import KEPT, RETRY, Catalogue, entries_of

ENTRIES = {"m": {"id": "m"}}


def test_a_catalogue_is_due_at_once_then_after_an_hour() -> None:
    catalogue = Catalogue()
    assert catalogue.due(0.0)
    catalogue.had(ENTRIES, 100.0)
    assert not catalogue.due(100.0 + KEPT - 1)
    assert catalogue.due(100.0 + KEPT)


def test_a_failure_keeps_the_old_list_and_is_repaired_within_half_a_minute() -> None:
    catalogue = Catalogue()
    catalogue.had(ENTRIES, 0.0)
    catalogue.failed(KEPT)
    assert catalogue.entries == ENTRIES
    assert not catalogue.due(KEPT + RETRY - 1)
    assert catalogue.due(KEPT + RETRY)


def test_entries_keep_their_members_and_lose_the_prefix_of_their_ids() -> None:
    data: list[dict[str, Any]] = [
        {"id": "models/gemini-2.5-pro", "object": "model", "owned_by": "google", "more": [1]},
        {"id": "b"},
    ]
    body = json.dumps({"object": "list", "data": data}).encode()
    assert entries_of(body) == {"gemini-2.5-pro": {**data[0], "id": "gemini-2.5-pro"}, "b": {"id": "b"}}


def test_what_has_no_id_is_left_out() -> None:
    assert entries_of(b'{"data": [{"id": 5}, {}, "x", null, {"id": ""}, {"id": "models/"}, {"id": "m"}]}') == ENTRIES


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"data": {}}', b'"x"', b"\xff", b'{"data": null}'])
def test_what_is_no_list_is_none(body: bytes) -> None:
    assert entries_of(body) is None


def test_an_empty_list_is_a_list() -> None:
    assert entries_of(b'{"data": []}') == {}
