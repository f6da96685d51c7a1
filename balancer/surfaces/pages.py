"""The documentation: an OpenAPI document, and one page that shows it and calls what it describes.

Both are made when they are first asked for, in a thread: nobody else pays for their models. The page is one file without an
outside address; a content security policy names its style and its script by their digests.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable
from functools import cache
from importlib.resources import files

from aiohttp import web

Page = Callable[[web.Request], Awaitable[web.StreamResponse]]


@cache
def document() -> bytes:
    """The OpenAPI document, as JSON."""
    from balancer.surfaces import pages_document  # noqa: PLC0415

    return pages_document.document()


@cache
def page() -> tuple[bytes, str]:
    """The page, with the document in it, and its content security policy."""
    folder = files("balancer.surfaces") / "static"
    style, script = ((folder / name).read_text("utf-8") for name in ("docs.css", "docs.js"))
    # Inside a script element only its end tag, and what opens a comment, would be read as HTML.
    described = document().decode().replace("<", "\\u003c")
    html = (folder / "docs.html").read_text("utf-8")
    for mark, text in (("/*style*/", style), ("/*document*/", described), ("/*script*/", script)):
        html = html.replace(mark, text)
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; connect-src 'self'; "
        "img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html.encode(), policy


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


async def show_page(request: web.Request) -> web.StreamResponse:
    """`/docs` and `/redoc`."""
    body, policy = await asyncio.to_thread(page)
    answer = web.Response(body=body, content_type="text/html", charset="utf-8")
    answer.headers["Content-Security-Policy"] = policy
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers["Referrer-Policy"] = "no-referrer"
    return answer


async def show_document(request: web.Request) -> web.StreamResponse:
    """`/openapi.json`."""
    return web.Response(body=await asyncio.to_thread(document), content_type="application/json")


def pages(prefix: str = "") -> dict[str, Page]:
    """The pages by path."""
    return {
        f"{prefix}/docs": show_page,
        f"{prefix}/redoc": show_page,
        f"{prefix}/openapi.json": show_document,
    }
