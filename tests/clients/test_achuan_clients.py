"""Real clients on a model whose upstream keeps the conversation: the openai SDKs, curl as people write it, the shipped wrapper.

Proxy and stand-in run here, on real sockets; each client is a process of its own, in the environment that the matrix gives it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients import running
from tests.clients.matrix import Environment
from tests.clients.running import PATIENCE, SDKS, Ended
from tests.surfaces.backend_chats import ALICE, ANN_TOKEN, MODEL, Here, here

_PROGRAMS = Path(__file__).parent / "programs"
_WRAPPER = Path(__file__).parents[2] / "balancer" / "deploy" / "create-session.sh"
_SHELL = Environment("sh", "system", ("sh", "curl", "grep"))
_CLIENT = {"CLIENT_TOKEN": ANN_TOKEN, "CLIENT_MODEL": MODEL}


async def _run(at: Here, environment: Environment, *command: str, **variables: str) -> Ended:
    return await running.run(at.proxy.url, environment, *command, **_CLIENT, **variables)


async def _calls(at: Here, environment: Environment, **variables: str) -> list[dict[str, object]]:
    return await running.calls(at.proxy.url, environment, "achuan_openai", **_CLIENT, **variables)


@pytest.mark.timeout(PATIENCE + 15)
@pytest.mark.parametrize("environment", SDKS, ids=lambda each: each.name)
async def test_the_openai_sdks_find_what_they_expect(environment: Environment) -> None:
    async with here() as at:
        calls = await _calls(at, environment)
        assert len(calls) >= 5
        assert [each for each in calls if not each["ok"]] == []
        assert {each.key for each in at.standin.requests} == {ALICE}
        assert not [each for each in at.standin.requests if ANN_TOKEN in str(each.headers)]


@pytest.mark.timeout(PATIENCE + 15)
@pytest.mark.parametrize("environment", SDKS, ids=lambda each: each.name)
async def test_the_openai_sdks_see_that_a_stream_broke(environment: Environment) -> None:
    async with here() as at:
        at.standin.script(ALICE, "cut-fin", target="/completions", after=2)
        calls = await _calls(at, environment, CLIENT_BREAKS="yes")
        assert [each["ok"] for each in calls] == [True], calls
        assert len(at.completed) == 1


async def test_curl_hands_over_a_session_in_header_query_and_body() -> None:
    async with here() as at:
        ended = await _run(at, _SHELL, "sh", str(_PROGRAMS / "achuan_curl.sh"))
        assert ended.code == 0, ended.err
        (number,) = at.standin.sessions
        assert ended.out.splitlines() == [
            f"made {number}",
            *(f"{place} {number}" for place in ("header", "query", "body")),
            "said You said: hello",
            "stream data: [DONE]",
            "gone 对话不存在: 7",
        ]


async def test_the_shipped_wrapper_prints_the_session_and_fails_without_output() -> None:
    async with here() as at:
        place = {"BALANCER_URL": at.proxy.url, "BALANCER_TOKEN": ANN_TOKEN}
        ended = await _run(at, _SHELL, "sh", str(_WRAPPER), MODEL, **place)
        (number,) = at.standin.sessions
        assert (ended.code, ended.out) == (0, f"Session ID: {number}\n")
        for arguments, token in (((MODEL,), "nobody"), (("nope",), ANN_TOKEN), ((), ANN_TOKEN)):
            ended = await _run(at, _SHELL, "sh", str(_WRAPPER), *arguments, **{**place, "BALANCER_TOKEN": token})
            assert ended.code != 0
            assert ended.out == ""
            assert ended.err
        assert len(at.standin.sessions) == 1
