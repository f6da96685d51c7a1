"""An honest small Gemini: a real HTTP server that speaks Google's wire and refuses what Google would refuse.

For the demo (`make run` without keys), the tests and the benchmark. What it plays: generation (gemini.py; the names of models for
sizes, counts and slowness are listed there), uploads and downloads (uploads.py), everything that can be made and then belongs
to the project of the key that made it (collections.py, shelf.py), Google's OpenAI-compatible paths (openai.py), and every
fault by name (faults.py). What it does not: Live, and anything that needs a model.

In a test:

    standin = StandIn(["key-a", "key-b"])
    async with running(standin) as url:
        fault = standin.script("key-a", "rate-minute", times=1)
        ...
        arrival = await standin.wait_for(lambda a: a.key == "key-b" and a.finished)

For a demo the same over HTTP: POST /_standin/faults {"key": …, "fault": …, "times": …}, DELETE /_standin/faults?key=…,
POST /_standin/gates to open every gate, GET /_standin/requests.

`plain=True` is for benchmarks: any key, no record, no faults, one small fixed answer; the model names made for sizes and
speeds still work.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

from aiohttp import web

from balancer.clock import Clock, SystemClock
from balancer.standin import control, plain
from balancer.standin.answers import SSE, Refusal, Reply
from balancer.standin.ask import MODELS, Ask, World
from balancer.standin.credentials import admit
from balancer.standin.faults import ANSWER, EVERY_KEY, REFUSALS, Fault, Script, Victim
from balancer.standin.record import Arrival, Record, Wanted
from balancer.standin.routes import answer_to, model_of
from balancer.standin.sending import Silent, send, send_faulty, strike

GOOGLE = "https://generativelanguage.googleapis.com"
_HEAD_LIMIT = 64 << 10


class StandIn:
    """The server's state and its one handler. `keys`: key to project, or a list where each key is a project of its own.

    `host` is what stands in every `uri` of an answer; upload URLs have the address that the client used.
    """

    def __init__(
        self,
        keys: Mapping[str, str] | Iterable[str],
        *,
        models: Iterable[str] = (),
        host: str = GOOGLE,
        clock: Clock | None = None,
        plain: bool = False,
    ) -> None:
        if not isinstance(keys, Mapping):
            keys = {key: str(1000 + n) for n, key in enumerate(keys, 1)}
        self.plain = plain
        self.record = Record(clock or SystemClock(), enabled=not plain)
        self.faults = Script()
        self.world = World(keys, (*MODELS, *models), host, clock or SystemClock(), self.record, open_to_all=plain)
        self._server: web.Server | None = None

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

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Every request comes here."""
        if self.plain and (quick := await plain.answer_quickly(request)) is not None:
            return quick
        if request.raw_path.startswith("/_standin/"):
            return await control.handle(request, self.faults, self.record)
        arrival = self.record.open(request)
        try:
            return await self._answer(request, arrival)
        except asyncio.CancelledError:
            self.record.cancel(arrival)
            raise
        except ConnectionError:
            self.record.cancel(arrival)
            return Silent()
        finally:
            self.record.finish(arrival)

    async def _answer(self, request: web.BaseRequest, arrival: Arrival) -> web.StreamResponse:
        ask = Ask(self.world, request, arrival)
        refused = admit(ask)
        fault = self._fault(ask)
        if fault is not None and not fault.read:
            refused = refused or self._refusal(fault, ask)
        elif fault is not None and fault.name not in ANSWER:
            await _take_body(ask, fault)
            refused = refused or self._refusal(fault, ask)
        if fault is not None and refused is None and fault.name not in ANSWER:
            return await strike(request, fault)
        reply = _in_dialect(ask, refused) if refused is not None else await _carried_out(ask)
        if fault is not None and fault.name in ANSWER:
            return await send_faulty(request, reply, arrival, fault)
        return await send(request, reply, arrival)

    def _fault(self, ask: Ask) -> Fault | None:
        arrival = ask.arrival
        fault = self.faults.take(arrival.key, arrival.method, arrival.target, model_of(ask))
        arrival.fault = None if fault is None else fault.name
        return fault

    def _refusal(self, fault: Fault, ask: Ask) -> Reply | None:
        make = REFUSALS.get(fault.name)
        if make is None:
            return None
        return make(Victim(ask.arrival.key or "", ask.arrival.project or "", model_of(ask) or "", fault))


async def _take_body(ask: Ask, fault: Fault) -> None:
    """The request's body before a fault strikes: all of it, or as much as the fault lets in."""
    if fault.name == "early-413":
        return
    async with contextlib.aclosing(ask.chunks()) as body:
        async for _ in body:
            if fault.name == "rst-in-body" and ask.arrival.size >= fault.after:
                return


async def _carried_out(ask: Ask) -> Reply:
    try:
        reply = await answer_to(ask)
    except Refusal as refusal:
        reply = _in_dialect(ask, refusal.reply)
    await ask.drain()
    return reply


def _in_dialect(ask: Ask, reply: Reply) -> Reply:
    """Errors of event streams keep the stream's content type; those of the OpenAI paths are a list of one."""
    if ask.sse and reply.status >= 400:
        reply.content_type = SSE
    if ask.name.startswith("openai/") and isinstance(reply.body, bytes) and reply.body.startswith(b"{"):
        reply.body = b"[" + reply.body.rstrip() + b"\n]\n"
    return reply


STANDIN = web.AppKey("standin", StandIn)


def make_app(standin: StandIn) -> web.Application:
    """Run it with `settings()`: handlers that see their client leave, bodies left as they came, large heads allowed."""
    app = web.Application()
    app[STANDIN] = standin
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
async def running(standin: StandIn, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
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


def run(
    host: str,
    port: int,
    keys: Mapping[str, str] | Iterable[str],
    announce: Callable[[str], None],
    *,
    plain: bool = False,
) -> int:
    """Serve until Ctrl-C or SIGTERM; `announce` is called once with the URL. The exit status: 0, or 1 if the port is taken."""
    try:
        asyncio.run(_serve(StandIn(keys, plain=plain), host, port, announce))
    except KeyboardInterrupt:
        return 0
    except OSError as refused:
        announce(f"cannot listen on {host}:{port}: {refused.strerror or refused}")
        return 1
    return 0


async def _serve(standin: StandIn, host: str, port: int, announce: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError, ValueError):  # Windows; not the main thread
            loop.add_signal_handler(number, stop.set)
    async with running(standin, host, port) as url:
        announce(url)
        await stop.wait()
