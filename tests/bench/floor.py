"""The yardstick: the smallest honest relay that aiohttp can be. It streams both ways and does nothing else.

python floor.py HOST:PORT  listens on a free port of 127.0.0.1, prints that port, and forwards to HOST:PORT.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from yarl import URL

HOP_BY_HOP = ("Connection", "Keep-Alive", "Proxy-Authorization", "TE", "Trailer", "Transfer-Encoding", "Upgrade")


async def serve(upstream: str) -> None:
    session = ClientSession(
        connector=TCPConnector(limit=0),
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,
        timeout=ClientTimeout(total=None),
    )

    async def relay(request: web.Request) -> web.StreamResponse:
        headers = request.headers.copy()
        for name in ("Host", *HOP_BY_HOP):
            headers.popall(name, None)
        url = URL(f"http://{upstream}{request.raw_path}", encoded=True)
        data = request.content if request.body_exists else None
        async with session.request(request.method, url, headers=headers, data=data, allow_redirects=False) as answer:
            response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=answer.headers)
            for name in HOP_BY_HOP:
                response.headers.popall(name, None)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response

    app = web.Application(client_max_size=0)
    app.router.add_route("*", "/{path:.*}", relay)
    runner = web.AppRunner(app, access_log=None, auto_decompress=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    sys.stdout.write(f"{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
