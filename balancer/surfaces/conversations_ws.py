"""The socket of stored chats (`/ws/chat`): one session, one generation at a time, an event for every piece of an answer.

    client: chat.message                   chat.cancel              ping
    server: content_block_start            (stops what runs)        pong
            content_block_delta …
            content_block_stop, message_delta, message_stop

The first event is always `session_start`. Errors are events, and the connection stays open, but for these:

| close code | why |
|---|---|
| 1001 | the process is about to end; what runs is said to its end first |
| 1009 | a frame is larger than LARGEST_FRAME |
| 4401 | the token is not valid any more; it is looked at anew for each message |
| 4404 | the session was deleted |

Up to MOST_WAITING messages wait while one is answered. Nothing is buffered beyond one event: a slow reader slows the upstream.
A client that leaves, or answers no ping, ends the call to the upstream; what was said until then is stored as partial.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol
from uuid import uuid4

import structlog
from aiohttp import WSMsgType, web

from balancer.conversations.base import Session, SessionName, StorageUnavailable
from balancer.errors import ClientGone, ClientStalled, ProxyError
from balancer.model import Client, Record
from balancer.relay.speak import speak
from balancer.relay.speech import Speech, Told
from balancer.surfaces.conversations_answers import no_session, unavailable
from balancer.surfaces.conversations_chat import Backend
from balancer.surfaces.conversations_events import PROCESSING_FAILED, Events, error_data
from balancer.surfaces.conversations_requests import Asked, SocketMessage, checked, read_object, refuse
from balancer.surfaces.conversations_turns import SURFACE, Stop, Stopped
from balancer.surfaces.upgrade import flaw
from balancer.web import CLIENT, LOGIN, RECORD, Surface
from balancer.wire.loose_json import dump
from balancer.wire.session_ids import handle_of

log = structlog.get_logger()

LARGEST_FRAME = 1 << 20
MOST_WAITING = 16
PING_EVERY = 30.0
"""Seconds between two pings, and for an answer to one."""
CLOSE_WAIT = 5.0
"""Seconds that a client has to take what is left and to close, too."""
PENDING_RETRY = 5.0
"""Seconds after which one with too many messages may send another: when an answer ends is not known."""
GOING_AWAY, INVALID_TOKEN, SESSION_GONE = 1001, 4401, 4404
CREDENTIALS = ("openai-insecure-api-key.", "bearer.")
"""Beginnings of subprotocols that are credentials."""


class Admits(Protocol):
    """Who calls (`middlewares.auth.Callers`)."""

    def known(self, request: web.Request, surface: Surface | None = None) -> Client | None: ...

    async def looked_up(self, request: web.Request, surface: Surface) -> Client: ...


class _Left(Exception):
    """The client is gone, or the socket is closed: nobody is told anything any more."""


class _Typed(Asked):
    """What every frame has."""

    type: str


async def serve_socket(
    request: web.Request, backend: Backend, callers: Callable[[], Admits], surface: Surface
) -> web.StreamResponse:
    """Answer a handshake; returns when the socket has ended. Raises ProxyError, StorageUnavailable before it is opened."""
    if backend.draining.is_set():
        raise ProxyError(503, "draining", "The proxy is about to end.", retry_after=1)
    lacking = flaw(request)
    if lacking is not None:
        answer = surface.refuse(ProxyError(426, "upgrade_required", lacking), request)
        answer.headers.update({"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"})
        return answer
    named = request.query.get("session_id", str(uuid4()))
    if handle_of(named) is None:
        message = "session_id must have 1 to 256 printable characters."
        raise ProxyError(400, "invalid_request", message, param="session_id")
    name = SessionName(request[CLIENT].name, SURFACE, named)
    store = await backend.store()
    session, _ = await store.get_or_create(name, title=f"WebSocket会话 {named[:8]}")
    record = request[RECORD]
    socket = web.WebSocketResponse(
        protocols=_chosen(request), max_msg_size=LARGEST_FRAME + 1, autoping=False, compress=False, writer_limit=0,
        timeout=CLOSE_WAIT,
    )  # fmt: skip
    socket.headers["X-Request-Id"] = record.request_id
    socket.headers.extend(record.fields)
    await socket.prepare(request)
    record.status = 101
    if request.transport is not None:
        request.transport.set_write_buffer_limits(0)  # a write is done when it has left
    await _Chat(request, socket, session, backend, callers, surface).run()
    return socket


def _chosen(request: web.Request) -> tuple[str, ...]:
    """The first offered subprotocol that is no credential, else the credential."""
    offers = ",".join(request.headers.getall("Sec-WebSocket-Protocol", ())).split(",")
    names = [name for each in offers if (name := each.strip())]
    return tuple([name for name in names if not name.startswith(CREDENTIALS)][:1] or names[:1])


class _Chat:
    """One open socket."""

    def __init__(
        self,
        request: web.Request,
        socket: web.WebSocketResponse,
        session: Session,
        backend: Backend,
        callers: Callable[[], Admits],
        surface: Surface,
    ) -> None:
        self._request = request
        self._socket = socket
        self._name = session.name
        self._backend = backend
        self._callers = callers
        self._surface = surface
        self._client = request[CLIENT]
        self._waiting: deque[SocketMessage] = deque()
        self._arrived = asyncio.Event()
        self._ponged = asyncio.Event()
        self._stop: Stop | None = None
        self._running = False
        self._turns = 0

    async def run(self) -> None:
        """Until either side closes."""
        beside = [asyncio.create_task(each()) for each in (self._answer, self._ping, self._drain)]
        try:
            await self.send("session_start", {"session_id": self._name.id})
            await self._listen()
        except _Left:
            pass
        finally:
            for task in beside:
                task.cancel()
            # What was said is stored before the handler ends, so that a process that ends waits for it.
            for outcome in await asyncio.gather(*beside, return_exceptions=True):
                if isinstance(outcome, Exception) and not isinstance(outcome, _Left):
                    log.error("internal error", exc_info=outcome, surface=SURFACE)

    # What the client says

    async def _listen(self) -> None:
        while True:
            message = await self._socket.receive()
            match message.type:
                case WSMsgType.TEXT:
                    await self._hear(message.data)
                case WSMsgType.BINARY:
                    await self._refuse(_invalid("Frames must be text."))
                case WSMsgType.PING:
                    with suppress(ConnectionError):
                        await self._socket.pong(message.data)
                case WSMsgType.PONG:
                    self._ponged.set()
                case _:
                    return

    async def _hear(self, text: str) -> None:
        try:
            tree = read_object(_Typed, text)
            match tree.get("type"):
                case "chat.message":
                    await self._enqueue(tree)
                case "chat.cancel":
                    if self._stop is not None:
                        self._stop("cancelled")
                case "ping":
                    await self.send("pong", {})
                case _:
                    refuse("type", "type must be chat.message, chat.cancel or ping.")
        except ProxyError as error:
            await self._refuse(error)

    async def _enqueue(self, tree: dict[str, Any]) -> None:
        message = checked(SocketMessage, tree)
        await self._admit()
        if self._backend.draining.is_set():
            raise _draining()
        if self._running and len(self._waiting) >= MOST_WAITING:
            text = f"{MOST_WAITING} messages wait already."
            raise ProxyError(429, "too_many_pending", text, retry_after=PENDING_RETRY)
        self._waiting.append(message)
        self._running = True
        self._arrived.set()

    async def _admit(self) -> None:
        """The token must still be valid, and still the same client's. Raises _Left where it is not, ProxyError 503."""
        request, rules = self._request, self._callers()
        try:
            client = rules.known(request, self._surface) or await rules.looked_up(request, self._surface)
        except ProxyError as error:
            if error.status not in (401, 403):
                raise
            client = None
        if client is None or client.name != self._name.client:
            await self._close(INVALID_TOKEN, b"the token is not valid any more")
        self._client = client or self._client

    # What it is told

    async def _answer(self) -> None:
        """Answers the messages, one after the other."""
        while True:
            while not self._waiting:
                self._running = False
                if self._backend.draining.is_set():
                    await self._close(GOING_AWAY, b"the proxy is about to end")
                self._arrived.clear()
                await self._arrived.wait()
            await self._turn(self._waiting.popleft())

    async def _turn(self, message: SocketMessage) -> None:
        try:
            await self._generate(message)
        except ProxyError as error:
            await self._refuse(error)
            if error.code == "not_found":
                await self._close(SESSION_GONE, b"the session was deleted")
        except StorageUnavailable as error:
            await self._refuse(unavailable(error))
        except (ClientGone, ClientStalled):
            raise _Left from None
        except (_Left, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("internal error", surface=SURFACE, request_id=self._request[RECORD].request_id)
            await self._refuse(ProxyError(500, "internal_error", PROCESSING_FAILED))

    async def _generate(self, message: SocketMessage) -> None:
        """One turn. Raises ProxyError, StorageUnavailable."""
        told = Told(self._backend.budget)
        events = Events(self)
        try:
            try:
                async with self._backend.generations.running(self._name) as self._stop:
                    await self._speak(message, told, events)
            except Stopped as stopped:
                if stopped.why == "deleted":
                    raise no_session() from None
                await events.start()
                told.finish_reason = "cancelled"
                await events.finish(told)
            finally:
                self._stop = None
        finally:
            told.release()

    async def _speak(self, message: SocketMessage, told: Told, events: Events) -> None:
        backend, client = self._backend, self._client
        login = self._request.get(LOGIN)
        bound = login.bound if login is not None else None
        given = message.model if message.model is not None and message.model.strip() else None
        choices = await backend.choices(given or bound, client)
        async with backend.turn(self._name) as turn:
            said = {"role": "user", "content": message.content}
            context = await turn.begin([said], backend.settings().history)
            await events.start()
            events.turn = turn
            speech = Speech(
                surface=SURFACE,
                client=client,
                choices=choices,
                messages=context.messages,
                session=turn.session.name.folded,
                new=context.new,
                members=message.model_dump(include={"temperature", "max_tokens"}, exclude_none=True),
                binding=turn.session.binding,
            )
            try:
                await speak(speech, events, told, backend.means(), self._record())
            finally:
                await turn.spare(told)

    def _record(self) -> Record:
        """What one turn comes to."""
        self._turns += 1
        known = self._request[RECORD]
        return Record(self._backend.clock.monotonic(), f"{known.request_id}.{self._turns}", surface=SURFACE)

    def ends(self) -> None:
        """The answer is whole: there is nothing left to cancel."""
        self._stop = None

    async def send(self, event: str, data: Any) -> None:
        """Returns when it has left. Raises _Left."""
        if self._socket.closed:
            raise _Left
        try:
            await self._socket.send_str(dump({"event": event, "data": data}).decode())
        except (ConnectionError, RuntimeError):
            raise _Left from None

    async def _refuse(self, error: ProxyError) -> None:
        await self.send("error", error_data(error))

    # When it ends

    async def _close(self, code: int, reason: bytes) -> None:
        """Raises _Left."""
        with suppress(ConnectionError):
            await self._socket.close(code=code, message=reason)
        raise _Left

    async def _ping(self) -> None:
        """A client that answers no ping is gone."""
        while True:
            await asyncio.sleep(PING_EVERY)
            self._ponged.clear()
            try:
                async with asyncio.timeout(PING_EVERY):
                    await self._socket.ping()
                    await self._ponged.wait()
            except TimeoutError:
                break
            except ConnectionError:
                return
        if self._request.transport is not None:
            self._request.transport.abort()

    async def _drain(self) -> None:
        """When the process is about to end, what waits is refused, and what runs is said to its end."""
        await self._backend.draining.wait()
        while self._waiting:
            self._waiting.popleft()
            await self._refuse(_draining())
        if not self._running:
            await self._close(GOING_AWAY, b"the proxy is about to end")


def _invalid(message: str) -> ProxyError:
    return ProxyError(400, "invalid_request", message)


def _draining() -> ProxyError:
    return ProxyError(503, "draining", "The proxy is about to end.")
