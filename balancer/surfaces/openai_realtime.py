"""OpenAI's Realtime API (https://platform.openai.com/docs/guides/realtime-websocket): a WebSocket whose query names the model.

    GET [/s/{session}] … /v1/realtime?model=provider/m     to the upstream that the model means, its provider cut
                         …/realtime?call_id=… , ?intent=…   to the default upstream, as they are

Only upstreams of kind openai have it. Messages are not looked at. What prepares a socket (`POST /realtime/client_secrets`,
`/realtime/calls` …) are calls like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from urllib.parse import quote

from aiohttp import web

from balancer.errors import ProxyError
from balancer.model import Call, Choice, Client, Edit
from balancer.relay.exchange import Rooms
from balancer.relay.websocket import relay_socket
from balancer.surfaces.openai_target import Target
from balancer.surfaces.upgrade import UpgradeReply, flaw
from balancer.web import CLIENT, RECORD, error_answer
from balancer.wire import openai_errors
from balancer.wire.headers import REQUEST_DROP, end_to_end, strip_query
from balancer.wire.session_ids import handle_of

_KIND = "openai"
_INTERNAL = frozenset({"key", "api_key", "session_token", "session_id"})
_MODEL = frozenset({"model"})
_DROP = REQUEST_DROP | {"openai-organization", "openai-project"}


async def realtime(
    request: web.Request, target: Target, rooms: Rooms, default_upstream: str | None
) -> web.StreamResponse:
    """Answer `GET /v1/realtime`; returns when the socket has ended. Raises ProxyError and as `relay` does."""
    record = request[RECORD]
    lacking = flaw(request)
    if lacking is not None:
        return _upgrade_required(request, lacking)
    path, internal = strip_query(f"{target.path}?{target.query}" if target.query else target.path, _INTERNAL)
    path, asked = strip_query(path, _MODEL)
    client = request[CLIENT]
    given = (request.headers.get("X-Session-Id"), internal.get("session_id"), target.session)
    call = Call(
        surface="openai",
        dialect="openai",
        method="GET",
        path=path,
        headers=end_to_end(request.headers.items(), _DROP),
        client=client,
        choices=await _choices(asked.get("model", "").strip(), client, rooms, default_upstream),
        session=next((found for each in given if (found := handle_of(each)) is not None), None),
        repeatable=True,
    )
    call.edits = partial(_name_model, call, path)
    reply = UpgradeReply(request, record)
    await relay_socket(call, reply, rooms, record)
    assert reply.response is not None
    return reply.response


def _upgrade_required(request: web.Request, lacking: str) -> web.Response:
    """RFC 9110 section 15.5.22, RFC 6455 section 4.4."""
    error = ProxyError(426, "upgrade_required", lacking)
    request[RECORD].error = error.code
    answer = error_answer(error, openai_errors.render(error))
    answer.headers.update({"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"})
    return answer


async def _choices(model: str, client: Client, rooms: Rooms, default_upstream: str | None) -> tuple[Choice, ...]:
    """The upstreams that the socket may go to. Raises ProxyError where there is none."""
    if not model:
        home = rooms.upstreams.get(default_upstream or "")
        default = default_upstream if home is not None and home.kind_name == _KIND else None
        return (rooms.router.default_choice(client, default),)
    choices = await rooms.router.resolve(model, client)
    found = tuple(choice for choice in choices if rooms.upstreams[choice.upstream].kind_name == _KIND)
    if not found:
        message = f"{choices[0].upstream} has no Realtime API: it is a WebSocket of upstreams of kind {_KIND}."
        raise ProxyError(400, "unsupported_endpoint", message)
    return found


def _name_model(call: Call, path: str, choice: Choice) -> Sequence[Edit]:
    """Let the query name the model as this upstream knows it. There is no body to splice."""
    if choice.model is not None:
        bare, _, query = path.partition("?")
        call.path = f"{bare}?model={quote(choice.model, safe='')}" + (f"&{query}" if query else "")
    return ()
