"""What the stand-ins share: the one handler with its faults and its record, and how a stand-in is put on a socket.

A stand-in is a subclass: it reads a request (`read`), says who may come in (`admit`), answers (`answer`), and knows how
its provider words an error. The rest is here, so that a fault means the same whatever the dialect.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from aiohttp import web

from balancer.standin import control
from balancer.standin.answers import Refusal, Reply
from balancer.standin.faults import ANSWER, EVERY_KEY, Fault, Refusals, Script, Victim
from balancer.standin.record import Arrival, Wanted
from balancer.standin.sending import Silent, send, send_faulty, strike
from balancer.standin.world import Incoming, World

_HEAD_LIMIT = 64 << 10

A = TypeVar("A", bound=Incoming)


class BaseStandIn(ABC, Generic[A]):
    """A server's state and its one handler."""

    world: World

    def __init__(self, world: World, refusals: Refusals, *, plain: bool) -> None:
        self.plain = plain
        self.world = world
        self.record = world.record
        self.faults = Script(refusals)
        self._server: web.Server | None = None

    # what a subclass says

    @abstractmethod
    async def quick(self, request: web.BaseRequest) -> web.StreamResponse | None:
        """The plain mode's fixed answer, or None where the whole stand-in is wanted."""

    @abstractmethod
    def read(self, request: web.BaseRequest, arrival: Arrival) -> A:
        """The request as this stand-in's handlers see it."""

    @abstractmethod
    def admit(self, ask: A) -> Reply | None:
        """Note key and project on the arrival. A refusal, or None: come in."""

    @abstractmethod
    async def answer(self, ask: A) -> Reply | web.StreamResponse:
        """What the request deserves. Raises Refusal. A response is one that was already sent: a WebSocket's."""

    @abstractmethod
    async def model_of(self, ask: A) -> str | None:
        """The model that the request names; asked only while something is scripted."""

    @abstractmethod
    def in_dialect(self, ask: A, reply: Reply) -> Reply:
        """The reply as this path says it: errors in its shape, and the fields of its server."""

    @abstractmethod
    def error_event(self, ask: A, reply: Reply) -> bytes:
        """What a stream says in its middle when it fails."""

    # what tests and demos use

    @property
    def requests(self) -> deque[Arrival]:
        """What arrived, in order, since the start or the last `forget`."""
        return self.record.arrivals

    @property
    def connections(self) -> int:
        """Connections that are open now (only under `running` and `run`)."""
        return 0 if self._server is None else len(self._server.connections)

    def project(self, key: str) -> str:
        return self.world.keys[key]

    def forget(self) -> None:
        """Start a clean list of arrivals."""
        self.record.clear()

    async def wait_for(self, wanted: Wanted, timeout: float = 5.0) -> Arrival:
        """The first arrival that a predicate accepts, or with a number N the Nth of the list. TimeoutError otherwise."""
        return await self.record.wait_for(wanted, timeout)

    def script(self, key: str, name: str, **options: Any) -> Fault:
        """Queue a fault for a key ("*": for every key). `options` are the fields of `Fault`; without `times` it stays."""
        if key != EVERY_KEY and key not in self.world.keys:
            raise ValueError("no such key")
        return self.faults.add(key, Fault(name, **options))

    def clear(self, key: str | None = None) -> None:
        """Take back the faults of one key, or all; what waits at their gates goes on."""
        self.faults.clear(key)

    # a request

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Every request comes here."""
        if self.plain and (quick := await self.quick(request)) is not None:
            return quick
        if request.raw_path.startswith("/_standin/"):
            return await control.handle(request, self.faults, self.record)
        arrival = self.record.open(request)
        try:
            return await self._respond(request, arrival)
        except asyncio.CancelledError:
            self.record.cancel(arrival)
            raise
        except ConnectionError:
            self.record.cancel(arrival)
            return Silent()
        finally:
            self.record.finish(arrival)

    async def _respond(self, request: web.BaseRequest, arrival: Arrival) -> web.StreamResponse:
        ask = self.read(request, arrival)
        refused = self.admit(ask)
        fault = await self._fault(ask)
        if fault is not None and not fault.read:
            refused = refused or self._refusal(fault, ask)
        elif fault is not None and fault.name not in ANSWER:
            await _take_body(ask, fault)
            refused = refused or self._refusal(fault, ask)
        if fault is not None and refused is None and fault.name not in ANSWER:
            return await strike(request, fault)
        reply = refused if refused is not None else await self._carried_out(ask, fault)
        if isinstance(reply, web.StreamResponse):
            return reply
        reply = self.in_dialect(ask, reply)
        if fault is not None and fault.name in ANSWER:
            return await send_faulty(request, reply, arrival, fault, self.error_event(ask, reply))
        return await send(request, reply, arrival)

    async def _fault(self, ask: A) -> Fault | None:
        if self.faults.empty:
            return None
        arrival = ask.arrival
        ask.model = await self.model_of(ask)
        fault = self.faults.take(arrival.key, arrival.method, arrival.target, ask.model)
        arrival.fault = None if fault is None else fault.name
        return fault

    def _refusal(self, fault: Fault, ask: A) -> Reply | None:
        make = self.faults.refusals.get(fault.name)
        if make is None:
            return None
        arrival = ask.arrival
        return make(Victim(arrival.key or "", arrival.project or "", ask.model or "", fault, self.world.clock.wall()))

    async def _carried_out(self, ask: A, fault: Fault | None) -> Reply | web.StreamResponse:
        ask.fault = fault
        reply: Reply | web.StreamResponse
        try:
            reply = await self.answer(ask)
        except Refusal as refusal:
            reply = refusal.reply
        if isinstance(reply, Reply):
            await ask.drain()
        return reply


async def _take_body(ask: Incoming, fault: Fault) -> None:
    """The request's body before a fault strikes: all of it, or as much as the fault lets in."""
    if fault.name == "early-413":
        return
    async with contextlib.aclosing(ask.chunks()) as body:
        async for _ in body:
            if fault.name == "rst-in-body" and ask.arrival.size >= fault.after:
                return


def projects(keys: Mapping[str, str] | Iterable[str], prefix: str = "") -> Mapping[str, str]:
    """Key to project as given, or a project of its own for each key of a list."""
    return keys if isinstance(keys, Mapping) else {key: f"{prefix}{1000 + n}" for n, key in enumerate(keys, 1)}


def make_app(standin: BaseStandIn[Any]) -> web.Application:
    """Run it with `settings()`: handlers that see their client leave, bodies left as they came, large heads allowed."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", standin.handle)

    async def close(_: web.Application) -> None:
        standin.clear()
        standin.world.close()

    app.on_cleanup.append(close)
    return app


def settings() -> dict[str, Any]:
    """How a runner of this application must be made."""
    return {
        "handler_cancellation": True,
        "auto_decompress": False,
        "access_log": None,
        "max_line_size": _HEAD_LIMIT,
        "max_field_size": _HEAD_LIMIT,
        "shutdown_timeout": 0.1,
    }


@contextlib.asynccontextmanager
async def running(standin: BaseStandIn[Any], host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """The stand-in on a real socket for the time of the context. Yields its base URL, without a slash at the end."""
    runner = web.AppRunner(make_app(standin), **settings())
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        standin._server = runner.server
        bound = runner.addresses[0][1]
        yield f"http://{f'[{host}]' if ':' in host else host}:{bound}"
    finally:
        standin.clear()
        await runner.cleanup()
        standin._server = None


def serve(standin: BaseStandIn[Any], host: str, port: int, announce: Callable[[str], None]) -> int:
    """Serve until Ctrl-C or SIGTERM; `announce` is called once with the URL. The exit status: 0, or 1 if the port is taken."""
    try:
        asyncio.run(_serve(standin, host, port, announce))
    except KeyboardInterrupt:
        return 0
    except OSError as refused:
        announce(f"cannot listen on {host}:{port}: {refused.strerror or refused}")
        return 1
    return 0


async def _serve(standin: BaseStandIn[Any], host: str, port: int, announce: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError, ValueError):  # Windows; not the main thread
            loop.add_signal_handler(number, stop.set)
    async with running(standin, host, port) as url:
        announce(url)
        await stop.wait()
