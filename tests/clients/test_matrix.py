"""The real clients, each call of theirs, through the proxy. A row whose client cannot be installed is named as unproved."""

from __future__ import annotations

import pytest

from tests.clients import guide
from tests.clients.environments import NotInstalled
from tests.clients.matrix import ROWS, Row
from tests.clients.run import PATIENCE, Saw, run
from tests.clients.running import unproved


@pytest.mark.timeout(PATIENCE + 15)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name.replace(" ", "-").replace(",", ""))
async def test_every_call_of_the_client_works_through_the_proxy(row: Row) -> None:
    saw = await _seen(row)
    assert saw.trouble == ""
    assert saw.calls
    assert [f"{call.name}: {call.detail}" for call in saw.calls if call.ok is False] == []
    assert (saw.client, saw.version, saw.transport) == (row.client, row.version, row.transport)
    assert row.api in saw.api
    assert saw.limited >= 1, "no key was refused, so the run proves no rotation"
    assert len(saw.keys) >= 2
    assert saw.merged <= {0, 1}
    assert saw.compared.differences == ()
    assert (saw.compared.count > 0) == (row.surface == "openai")
    if any("over several keys" in call.name for call in saw.calls):
        assert len(saw.makers) >= 2, "all files are of one key, so the run proves no merged list"
    if row.duplicate_user_agent:
        assert 2 in saw.user_agents, "the client sends User-Agent once now: pin the versions that send it twice"
    _compare(row, saw)


async def _seen(row: Row) -> Saw:
    try:
        return await run(row)
    except NotInstalled as missing:
        unproved(row.name, missing)


def _compare(row: Row, saw: Saw) -> None:
    """What the guide says of this row is what the run saw."""
    text = guide.GUIDE.read_text(encoding="utf-8")
    assert guide.line(row, saw) in text, "balancer/docs/clients.md says something else: make clients-doc"
    assert guide.paragraph(row, saw) in text, "balancer/docs/clients.md says something else: make clients-doc"


def test_the_guide_has_a_line_for_each_client_and_no_other() -> None:
    lines = guide.GUIDE.read_text(encoding="utf-8").partition("## What was seen")[2].splitlines()
    table = [tuple(cell.strip() for cell in line.split("|")[1:4]) for line in lines if line.startswith("| ")]
    assert table[1:] == [(row.client, row.version, row.transport) for row in ROWS]
