"""Realtime: a WebSocket that says who it is, and answers; and the calls that prepare one.

    server  session.created, at once
    client  session.update -> session.updated; conversation.item.create -> conversation.item.added
            input_audio_buffer.append: kept as a size; input_audio_buffer.commit -> input_audio_buffer.committed
            response.create -> response.created, response.output_text.delta …, response.output_text.done, response.done
            response.create with `metadata.bytes: N` -> one delta of N bytes, for frames that are large
            a binary frame -> the same bytes back; anything else -> error

What is said: the last text that came in an item. Of the faults, those of the answer that cut or stall count its frames.
"""

from __future__ import annotations

import secrets
from typing import Any

import orjson
from aiohttp import WSMsgType, web

from balancer.standin.answers import Json, Reply
from balancer.standin.gemini import thirds
from balancer.standin.openai import answers
from balancer.standin.openai.answers import ok
from balancer.standin.openai.ask import Ask
from balancer.standin.openai.said import text_of
from balancer.standin.sending import cut, waiting

_FRAME_LIMIT = 64 << 20
_LARGEST = 32 << 20
"""Bytes of a delta that a client may ask for."""
_TICKET_LIFETIME = 600
_CUTS = frozenset({"cut-head", "cut-fin", "cut-rst", "cut-chunk", "short-body", "lost"})


class _Cut(Exception):
    """The fault has struck."""


class _Session:
    """One socket: numbers its events, and keeps what an answer needs."""

    def __init__(self, ask: Ask, socket: web.WebSocketResponse, model: str) -> None:
        self.ask = ask
        self.socket = socket
        self.about: Json = {
            "type": "realtime",
            "object": "realtime.session",
            "id": f"sess_{ask.arrival.number:024d}",
            "model": model,
            "output_modalities": ["text"],
            "instructions": "",
            "tools": [],
        }
        self._last = "nothing"
        self._sent = 0
        self._audio = 0

    async def say(self, kind: str, **members: Any) -> None:
        data = orjson.dumps({"type": kind, "event_id": f"event_{self._sent:020d}", **members})
        await self._send(data, text=True)

    async def echo(self, data: bytes) -> None:
        await self._send(data, text=False)

    async def _send(self, data: bytes, *, text: bool) -> None:
        fault = self.ask.fault
        if fault is not None and self._sent >= fault.after:
            if fault.name in _CUTS:
                raise _Cut
            if fault.name == "stall-stream":
                await waiting(fault)
        await (self.socket.send_str(data.decode()) if text else self.socket.send_bytes(data))
        self._sent += 1
        self.ask.arrival.sent += len(data)
        self.ask.world.record.touch()

    async def take(self, message: Any) -> None:
        """One event of the client."""
        match message.get("type") if isinstance(message, dict) else None:
            case "session.update":
                self.about |= _object(message, "session")
                await self.say("session.updated", session=self.about)
            case "conversation.item.create":
                item = _object(message, "item")
                self._last = text_of(item.get("content")) or self._last
                added = {"id": f"item_{self._sent:020d}", "object": "realtime.item", "status": "completed"} | item
                await self.say("conversation.item.added", previous_item_id=None, item=added)
                await self.say("conversation.item.done", previous_item_id=None, item=added)
            case "input_audio_buffer.append":
                self._audio += len(str(message.get("audio", "")))
            case "input_audio_buffer.commit":
                self._last, self._audio = f"{self._audio} characters of audio", 0
                await self.say("input_audio_buffer.committed", previous_item_id=None, item_id=f"item_{self._sent:020d}")
            case "response.create":
                await self._respond(_object(message, "response"))
            case kind:
                wrong = {"type": "invalid_request_error", "code": "invalid_value", "param": "type", "event_id": None}
                await self.say("error", error=wrong | {"message": f"Invalid value: '{kind}'."})

    async def _respond(self, wanted: Json) -> None:
        asked = str(_object(wanted, "metadata").get("bytes"))
        large = asked.isdigit()
        text = "x" * min(int(asked), _LARGEST) if large else f"You said: {self._last}"
        shown = "" if large else text
        identity, item = f"resp_{self._sent:020d}", f"item_{self._sent:020d}"
        frame: Json = {"id": identity, "object": "realtime.response", "status": "in_progress", "output": []}
        await self.say("response.created", response=frame)
        place = {"response_id": identity, "item_id": item, "output_index": 0, "content_index": 0}
        for piece in [text] if large else thirds(text):
            await self.say("response.output_text.delta", delta=piece, **place)
        await self.say("response.output_text.done", text=shown, **place)
        part = {"type": "output_text", "text": shown}
        output = {"id": item, "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        spent = {"total_tokens": 2, "input_tokens": 1, "output_tokens": 1}
        await self.say("response.done", response=frame | {"status": "completed", "output": [output], "usage": spent})


async def connect(ask: Ask) -> Reply | web.StreamResponse:
    """GET /realtime?model=…: the handshake, then events until one side closes."""
    socket = web.WebSocketResponse(protocols=("realtime",), max_msg_size=_FRAME_LIMIT)
    if not socket.can_prepare(ask.request):
        raise answers.refuse(400, "This endpoint must be called with a WebSocket handshake.")
    model = ask.known_model({"model": ask.query.get("model")})
    if ask.fault is not None and ask.fault.name == "stall-head":
        await waiting(ask.fault)
    if ask.fault is not None and ask.fault.name == "lost":
        return await cut(ask.request, ask.fault, reset=True)
    socket.headers["x-request-id"] = ask.request_id
    for name, value in answers.FRAME:
        if "ratelimit" not in name:
            socket.headers.add(name, value)
    await socket.prepare(ask.request)
    ask.arrival.status = 101
    try:
        await _converse(ask, _Session(ask, socket, model))
    except _Cut:
        fault = ask.fault
        assert fault is not None
        return await cut(ask.request, fault, reset=fault.name in ("cut-rst", "lost"))
    return socket


async def _converse(ask: Ask, session: _Session) -> None:
    await session.say("session.created", session=session.about)
    async for frame in session.socket:
        if frame.type is WSMsgType.BINARY:
            _record(ask, frame.data)
            await session.echo(frame.data)
        elif frame.type is WSMsgType.TEXT:
            _record(ask, frame.data.encode())
            try:
                message = orjson.loads(frame.data)
            except orjson.JSONDecodeError:
                message = None
            await session.take(message)


def _object(message: Json, member: str) -> Json:
    """A member that is an object, an empty one where it is none."""
    found = message.get(member)
    return found if isinstance(found, dict) else {}


def _record(ask: Ask, data: bytes) -> None:
    ask.arrival.feed(data)
    ask.world.record.touch()


async def client_secret(ask: Ask) -> Reply:
    """A secret that opens a socket for its holder: another name of the key that asked for it."""
    body = await ask.json()
    about = {
        "type": "realtime",
        "object": "realtime.session",
        "id": f"sess_{ask.arrival.number:024d}",
        "model": "gpt-realtime",
    }
    value = f"ek_{secrets.token_hex(16)}"
    ask.world.ticket(value, ask.arrival.key or "")
    return ok({"value": value, "expires_at": ask.now + _TICKET_LIFETIME, "session": about | _object(body, "session")})


async def session(ask: Ask) -> Reply:
    """The older form: a session with its secret inside."""
    body = await ask.json()
    value = f"ek_{secrets.token_hex(16)}"
    ask.world.ticket(value, ask.arrival.key or "")
    about = {"id": f"sess_{ask.arrival.number:024d}", "object": "realtime.session", "model": "gpt-realtime"}
    return ok(about | body | {"client_secret": {"value": value, "expires_at": ask.now + _TICKET_LIFETIME}})


async def call(ask: Ask) -> Reply:
    """POST /realtime/calls: an SDP offer gets an answer, and the call a place of its own."""
    async for _ in ask.chunks():
        pass
    name, identity = ask.fresh("realtime/calls", "rtc_")
    ask.put(name, {"id": identity})
    place = [("location", f"/v1/realtime/calls/{identity}")]
    return Reply(b"v=0\r\ns=stand-in\r\n", 201, "application/sdp", place)


async def act(ask: Ask) -> Reply:
    """accept, hangup, refer, reject."""
    ask.require("/".join(ask.name.split("/")[:3]))
    await ask.json()
    return Reply(b"", 200, "")
