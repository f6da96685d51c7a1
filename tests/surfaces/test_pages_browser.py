"""The documentation page in a real browser: it shows every operation, and calls one."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from balancer.surfaces.pages_document import OPERATIONS
from tests.surfaces.chats import ANN, bot

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WAIT = 25.0
TRY = """
new Promise(done => {
  const begin = () => {
    const all = [...document.querySelectorAll("details")];
    if (!all.length) return setTimeout(begin, 20);
    document.getElementById("token").value = TOKEN;
    const one = all.find(each => each.querySelector(".path").textContent === "/chat/stream");
    one.querySelector("textarea").value = '{"message": "hello"}';
    one.querySelector("button").click();
    const shown = one.querySelector("pre");
    const look = () => shown.textContent.includes("complete") ? done([all.length, shown.textContent]) : setTimeout(look, 20);
    look();
  };
  begin();
})
"""


class Tab:
    """A page of the browser, over its debugging protocol (https://chromedevtools.github.io/devtools-protocol/)."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._calls = 0
        self.complaints: list[Any] = []

    async def call(self, method: str, **params: Any) -> Any:
        self._calls += 1
        await self._socket.send_json({"id": self._calls, "method": method, "params": params})
        while True:
            said = await self._socket.receive_json()
            if said.get("id") == self._calls:
                return said["result"]
            if said["method"] == "Runtime.exceptionThrown" or (
                said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] == "error"
            ):
                self.complaints.append(said["params"])


@asynccontextmanager
async def browsing(folder: Path) -> AsyncIterator[Tab]:
    assert CHROMIUM is not None
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--remote-debugging-port=0")
    browser = await asyncio.create_subprocess_exec(
        *(CHROMIUM, *options, f"--user-data-dir={folder}/profile", "about:blank"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert browser.stderr is not None
    try:
        while (found := re.search(rb"ws://(127\.0\.0\.1:\d+)/", line := await browser.stderr.readline())) is None:
            assert line, "the browser ended"
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://{found[1].decode()}/json") as answer:
                tabs = await answer.json(content_type=None)
            (address,) = [tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"]
            async with http.ws_connect(address) as socket:
                yield Tab(socket)
    finally:
        browser.terminate()
        await browser.communicate()


@pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason="there is no chromium on this machine")
async def test_the_page_shows_every_operation_and_tries_one(tmp_path: Path) -> None:
    async with asyncio.timeout(WAIT), bot(tmp_path) as here, browsing(tmp_path) as tab:
        for domain in ("Log", "Runtime", "Page"):
            await tab.call(f"{domain}.enable")
        await tab.call("Page.navigate", url=f"{here.proxy.url}/docs")
        script = TRY.replace("TOKEN", json.dumps(ANN))
        found = await tab.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        shown, said = found["result"]["value"]
        assert shown == len(OPERATIONS)
        assert said.startswith("POST /chat/stream\n200 OK\n\ndata: {")
        assert '"full_content":"You said: hello"' in said
        assert tab.complaints == []
