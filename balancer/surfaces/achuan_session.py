"""`POST /api/chat/session`: a session of an achuan backend, made with a client token instead of one of the backend's.

Clients of the backend itself make their sessions so, and cut the id out of the answer with `grep -o '"id":[0-9]*'`: the
backend's bytes are the answer, and no error holds such a text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import orjson
from aiohttp import web

from balancer.errors import ProxyError
from balancer.model import Choice, Client
from balancer.relay.converse import create_session
from balancer.relay.exchange import Rooms
from balancer.routing.router import missing_model
from balancer.surfaces.base import ClientBody
from balancer.surfaces.openai_voice import SESSION_FIELD
from balancer.web import BAD_CREDENTIAL, CLIENT, NO_CREDENTIAL, RECORD, error_answer, json_answer
from balancer.wire import openai_errors

PATH = "/api/chat/session"
KIND = "achuan"
MAX_BODY = 1 << 20
"""Bytes of a request's body."""

_TEXTS = {"missing_api_key": NO_CREDENTIAL, "invalid_api_key": BAD_CREDENTIAL}


class AchuanSessionSurface:
    """Serves that one route. All it is given is asked anew for each request: a reload changes the next one."""

    name = "achuan"

    def __init__(self, rooms: Callable[[], Rooms], body_idle: Callable[[], float | None]) -> None:
        """`body_idle`: seconds without a byte after which a body is given up."""
        self._rooms = rooms
        self._body_idle = body_idle

    def claims(self, request: web.Request) -> bool:
        raw = request.raw_path
        # The absolute form (RFC 9112 section 3.2.2) is rare, and only there the path must be taken apart.
        return raw.partition("?")[0] == PATH or (not raw.startswith("/") and request.path == PATH)

    def recognise(self, request: web.Request) -> Client | None:
        return None

    def allowed_origins(self) -> Collection[str]:
        return ()

    def refuse(self, error: ProxyError, request: web.BaseRequest | None = None) -> web.Response:
        """In the backend's shape, with OpenAI's beside it."""
        error.message = _TEXTS.get(error.code, error.message)
        told = orjson.loads(openai_errors.render(error))
        shape = {"code": error.status, "data": None, "msg": told["error"]["message"], **told}
        return error_answer(error, orjson.dumps(shape))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.method != "POST":
            message = f"{request.method} is not a method of this URL."
            raise ProxyError(405, "method_not_allowed", message, allow="POST", close=True)
        members = await self._members(request)
        model = members.pop("model", None)
        if not isinstance(model, str) or not model.strip():
            raise missing_model()
        rooms, client = self._rooms(), request[CLIENT]
        choice = await self._choice(model, client, rooms)
        made = await create_session(client, choice, members, rooms, request[RECORD], None)
        fields = [(SESSION_FIELD, made.session.id)]
        if _wants_text(request):
            fields.append(("Server", "balancer"))
            return web.Response(text=f"Session ID: {made.session.id}\n", headers=fields)
        return json_answer(200, made.body, fields)

    async def _members(self, request: web.Request) -> dict[str, Any]:
        source, text = ClientBody(request, MAX_BODY, self._body_idle()), bytearray()
        while piece := await source.read():
            text += piece
        request[RECORD].bytes_in = len(text)
        try:
            members = orjson.loads(text)
        except orjson.JSONDecodeError:
            members = None
        if not isinstance(members, dict):
            raise ProxyError(400, "invalid_json", "请求体必须是 JSON 对象")
        return members

    async def _choice(self, model: str, client: Client, rooms: Rooms) -> Choice:
        """The upstream of this kind that has the model. Raises ProxyError."""
        choices = await rooms.router.resolve(model, client)
        for choice in choices:
            if rooms.upstreams[choice.upstream].kind_name == KIND:
                return choice
        message = f"The model {model} is not one of an upstream that makes sessions."
        raise ProxyError(404, "model_not_found", message, param="model")


def _wants_text(request: web.Request) -> bool:
    """Whether a line of text is asked for, as people's shells do, and no JSON."""
    kinds = {part.partition(";")[0].strip().lower() for part in request.headers.get("Accept", "").split(",")}
    return "text/plain" in kinds and "application/json" not in kinds
