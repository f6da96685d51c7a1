"""A page of another origin in a real browser: it makes a session, chats over the socket, and reads what was stored."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.contract.databases import missing
from tests.surfaces.conversations_calls import GPT, chats
from tests.surfaces.openai_calls import ANN

PAGE = """<!doctype html><meta charset="utf-8"><script>
const base = "BASE", token = "TOKEN", headers = {authorization: `Bearer ${token}`, "content-type": "application/json"};
const call = async (path, options = {}) => (await fetch(base + path, {headers, ...options})).json();
async function chat(session) {
  const events = [];
  const socket = new WebSocket(`${base.replace("http", "ws")}/ws/chat?session_id=${session}&key=${token}`);
  return new Promise((done, failed) => {
    socket.onerror = () => failed(new Error("the socket broke"));
    socket.onmessage = message => {
      const event = JSON.parse(message.data);
      events.push(event);
      if (event.event === "session_start")
        socket.send(JSON.stringify({type: "chat.message", content: "hello 你好", model: "MODEL"}));
      if (event.event === "message_stop" || event.event === "error") { socket.close(); done(events); }
    };
  });
}
(async () => {
  let told;
  try {
    const session = await call("/api/sessions", {method: "POST", body: JSON.stringify({title: "from a page"})});
    const events = await chat(session.id);
    const messages = await call(`/api/sessions/${session.id}/messages`);
    const gone = await call(`/api/sessions/${session.id}`, {method: "DELETE"});
    told = {session, events, messages, gone};
  } catch (error) { told = {error: String(error)}; }
  await fetch("/told", {method: "POST", body: JSON.stringify(told)});
})();
</script>"""


@asynccontextmanager
async def page_server(shown: list[str], told: asyncio.Future[Any]) -> AsyncIterator[str]:
    """The origin of the page, which is in `shown` when it is asked for; what it found out goes into `told`."""
    app = web.Application()

    async def show(request: web.Request) -> web.Response:
        return web.Response(text=shown[0], content_type="text/html")

    async def tell(request: web.Request) -> web.Response:
        told.set_result(json.loads(await request.text()))
        return web.Response()

    app.add_routes([web.get("/", show), web.post("/told", tell)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def browsing(url: str, folder: Path) -> AsyncIterator[None]:
    """A browser that shows a page, until the block ends."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        missing("no browser: none of chromium, chromium-browser and google-chrome is on PATH")
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-proxy-server", f"--user-data-dir={folder}")
    browser = await asyncio.create_subprocess_exec(
        *(program, *options, url),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        browser.terminate()
        await browser.wait()


@pytest.mark.timeout(90)
async def test_a_page_of_another_origin_chats(tmp_path: Path) -> None:
    told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    shown: list[str] = []
    async with page_server(shown, told) as origin:
        async with chats(tmp_path, conversations={"allowed_origins": [origin]}) as at:
            shown.append(PAGE.replace("BASE", at.proxy.url).replace("TOKEN", ANN).replace("MODEL", GPT))
            async with browsing(f"{origin}/", tmp_path / "browser"), asyncio.timeout(60):
                found = await told
    assert "error" not in found, found
    assert found["session"]["title"] == "from a page"
    names = [each["event"] for each in found["events"]]
    assert names[:2] == ["session_start", "content_block_start"]
    assert names[-1] == "message_stop"
    said = [(each["role"], each["content"]) for each in found["messages"]]
    assert said == [("user", "hello 你好"), ("assistant", "You said: hello 你好")]
    assert found["gone"] == {"message": "会话删除成功"}
