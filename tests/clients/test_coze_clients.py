"""Real clients on a bot of Coze: the openai SDKs, each a process of its own, against a proxy on a stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest

from balancer.standin.coze_answers import Play
from tests.clients.matrix import Environment
from tests.clients.running import PATIENCE, SDKS, calls
from tests.surfaces.chats import ANN
from tests.surfaces.coze_chats import MODEL, ONE, coze

_CLIENT = {"CLIENT_TOKEN": ANN, "CLIENT_MODEL": MODEL}
_PROGRAM = "coze_openai"


@pytest.mark.timeout(PATIENCE + 15)
@pytest.mark.parametrize("environment", SDKS, ids=lambda each: each.name)
async def test_the_openai_sdks_find_what_they_expect(tmp_path: Path, environment: Environment) -> None:
    async with coze(tmp_path) as here:
        here.standin.play = Play(messages=(("a ", " b", "\n"),), reasoning=("h", "m"), extras=True, split=7)
        said = await calls(here.proxy.url, environment, _PROGRAM, **_CLIENT)
        assert len(said) >= 5
        assert [each for each in said if not each["ok"]] == []
        assert here.standin.overlaps == []
        assert not [each for each in here.standin.requests if ANN in str(each.headers)]


@pytest.mark.timeout(PATIENCE + 15)
@pytest.mark.parametrize("environment", SDKS, ids=lambda each: each.name)
async def test_the_openai_sdks_see_that_a_stream_broke(tmp_path: Path, environment: Environment) -> None:
    async with coze(tmp_path) as here:
        here.standin.script(ONE, "cut-fin", after=3)
        said = await calls(here.proxy.url, environment, _PROGRAM, CLIENT_BREAKS="yes", **_CLIENT)
        assert [each["ok"] for each in said] == [True], said
        assert len(here.asked()) == 1
