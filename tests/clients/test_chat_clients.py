"""Clients of the chat surface in the wild: readers of its stream in Python, and a page of another origin in a real browser.

Proxy and stand-in run here, on real sockets; the readers are a process of their own, in the environment that they need.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from balancer.standin.app import StandIn
from balancer.standin.app import running as standing_in
from balancer.standin.coze_answers import Play
from tests.clients import running
from tests.clients.environments import READERS, python_of
from tests.clients.running import PATIENCE
from tests.proxy import KEYS, proxying
from tests.surfaces.chats import ANN, TOKENS
from tests.surfaces.coze_chats import coze
from tests.surfaces.test_conversations_browser import browsing, page_server

_PROGRAM = Path(__file__).parent / "programs" / "chat_readers.py"
_READERS = ["lines_of_requests", "lines_of_requests_decoded", "events_of_sseclient", "events_of_httpx_sse"]
_DELTAS = ("a ", " b", "\n", "\n\n", "data: no line\u2028nor here\x85", "grüße 你好", " 🙂", "\t \r\n")
_SAID = "".join(_DELTAS)
_MESSAGE = " two  blanks\nand a line, 你好 🙂\n"

_PAGE = """<!doctype html><meta charset="utf-8">INSIDE<script>
const headers = {authorization: "Bearer TOKEN", "content-type": "application/json"};
async function turn(session) {
  const body = JSON.stringify({message: "hello", session_id: session});
  const answer = await fetch("BASE/chat/stream", {method: "POST", headers, body});
  const reader = answer.body.getReader(), events = [];
  for (;;) {
    const {done, value} = await reader.read();
    if (done) break;
    for (const line of new TextDecoder().decode(value).split("\\n"))
      if (line.startsWith("data: ")) events.push(JSON.parse(line.slice(6)));
  }
  const [named, withheld] = ["x-session-id", "x-accel-buffering"].map(name => answer.headers.get(name));
  return {status: answer.status, named, withheld, events};
}
(async () => {
  let told;
  try {
    const first = await turn(null);
    told = {turns: [first, await turn(first.named)]};
  } catch (error) { told = {error: String(error)}; }
  await fetch("/told", {method: "POST", body: JSON.stringify(told)});
})();
</script>"""


async def _read(url: str, message: str, said: str) -> list[Any]:
    """What the readers say of themselves: [name, whether all was well, why not]."""
    command = (str(python_of(READERS)), str(_PROGRAM))
    ended = await running.run(url, READERS, *command, CLIENT_TOKEN=ANN, CLIENT_MESSAGE=message, CLIENT_SAID=said)
    assert ended.code == 0, ended.err[-3000:]
    _, *calls = map(json.loads, ended.out.splitlines())
    return [[each["call"], each["ok"], each["detail"]] for each in calls]


@pytest.mark.timeout(PATIENCE + 15)
async def test_readers_of_lines_and_of_events_find_a_bot_s_text_unchanged(tmp_path: Path) -> None:
    async with coze(tmp_path) as here:
        here.standin.play = Play(messages=(_DELTAS,), extras=True, split=7)
        assert await _read(here.proxy.url, _MESSAGE, _SAID) == [[name, True, ""] for name in _READERS]
        assert here.texts() == [("user", _MESSAGE)]
        assert here.standin.overlaps == []
        firsts, seconds = here.conversations[::2], here.conversations[1::2]
        assert firsts == [None] * len(_READERS)
        assert None not in seconds
        assert len(set(seconds)) == len(_READERS)


@pytest.mark.timeout(PATIENCE + 15)
async def test_readers_of_lines_and_of_events_find_gemini_s_text_unchanged(tmp_path: Path) -> None:
    standin = StandIn(KEYS)
    sections: dict[str, Any] = {
        "auth": {"tokens": TOKENS},
        "chat": {"upstream": "gemini", "model": "gemini-2.5-flash"},
        "database": {"url": f"sqlite:///{tmp_path}/chats.db"},
    }
    async with standing_in(standin) as url, proxying(url, KEYS, **sections) as proxy:
        said = f"You said: {_MESSAGE}"
        assert await _read(proxy.url, _MESSAGE, said) == [[name, True, ""] for name in _READERS]
        told = [[each["content"] for each in request.json()["messages"]] for request in standin.requests]
        assert told == [[_MESSAGE], [_MESSAGE, said, _MESSAGE]] * len(_READERS)


@pytest.mark.timeout(90)
async def test_a_page_reads_the_stream_where_its_origin_is_listed_and_not_where_it_is_not(tmp_path: Path) -> None:
    """The page of the listed origin holds that of the other, which says the same."""
    loop = asyncio.get_running_loop()
    told, refused = loop.create_future(), loop.create_future()
    shown: list[str] = []
    hidden: list[str] = []
    async with page_server(shown, told) as origin, page_server(hidden, refused) as other:
        async with coze(tmp_path, chat={"upstream": "coze", "allowed_origins": [origin]}) as here:
            here.standin.play = Play(messages=(_DELTAS,), extras=True, split=7)
            page = _PAGE.replace("BASE", here.proxy.url).replace("TOKEN", ANN)
            shown.append(page.replace("INSIDE", f'<iframe src="{other}/"></iframe>'))
            hidden.append(page.replace("INSIDE", ""))
            async with browsing(f"{origin}/", tmp_path / "browser"), asyncio.timeout(60):
                found, unread = await told, await refused
            assert len(here.asked()) == 2  # the other's preflight failed, so that its valid token asked for nothing
            _, conversation = here.conversations
    assert unread == {"error": "TypeError: Failed to fetch"}
    assert "error" not in found, found
    for turn in found["turns"]:
        *chunks, complete = turn["events"]
        assert (turn["status"], complete["type"]) == (200, "complete")
        assert tuple(each["data"]["content"] for each in chunks) == _DELTAS
        assert complete["data"]["full_content"] == _SAID
        assert complete["data"]["session_id"] == turn["named"] == found["turns"][0]["named"]
        assert complete["data"]["conversation_id"] == conversation
        assert turn["withheld"] is None  # the answer has it; what is not exposed, no page sees
