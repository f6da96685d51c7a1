"""The process: event loop, listeners, signals, reload, drain.

start → announce → serve … SIGHUP or a changed file: reload (a bad one changes nothing) …
SIGTERM or SIGINT: not ready, no new connections, every answer closes its connection; what runs may finish within
`server.drain_timeout` (5 s after Ctrl-C on a terminal); a second signal ends it at once. Exit code 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from aiohttp import web

from balancer import __version__
from balancer.app import Runtime, beside_router, make_admin_app, make_app
from balancer.clock import Clock
from balancer.config import ConfigError, Settings, Upstream, find_config, load
from balancer.conversations.retention import purge_forever
from balancer.listener import FIELD_LIMIT, LINGER, Listeners
from balancer.observe import logs as observe_logs
from balancer.observe.redaction import Redactor
from balancer.relay.probe import probe_forever

log = structlog.get_logger()

INTERRUPT_DRAIN = 5.0
"""Seconds of drain after Ctrl-C on a terminal: somebody is waiting for the prompt."""
StandIns = Mapping[str, tuple[str, tuple[str, ...]]]
"""Base URL and keys of the stand-in upstream of each kind."""
ACCESS_FLUSH = 0.01
"""Seconds that an access line may wait to be written with others: a system call for each would cost more than the line, and
more than a few lines at once would hold up a request that comes meanwhile."""
WATCH_EVERY = 2.0
"""Seconds between two looks at the configuration file."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt(3), as malloc.h numbers them."""

Announce = Callable[[str], None]


def serve(
    config: Path | None, settings: Settings, *, stand_in: bool, announce: Announce, environ: Mapping[str, str]
) -> int:
    """Serve until told to stop. Returns the exit code; raises OSError where a listener cannot be opened."""
    with _loop_factory() as runner:
        return runner.run(_serve(config, settings, stand_in, announce, environ))


def _loop_factory() -> asyncio.Runner:
    """uvloop where it is installed, else the standard loop: the program is the same on both."""
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


async def _serve(
    config: Path | None, settings: Settings, stand_in: bool, announce: Announce, environ: Mapping[str, str]
) -> int:
    config = find_config(config)
    stop: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()
    hangup = asyncio.Event()
    # Before anybody can know that we run, and so before anybody can send one.
    _on_signals(stop, hangup)
    async with contextlib.AsyncExitStack() as stack:
        stand_ins = await stack.enter_async_context(_stand_ins()) if stand_in else None
        if stand_ins is not None:
            settings = on_stand_ins(settings, stand_ins)
        server = await stack.enter_async_context(running(settings))
        for line in greeting(server, stands_in=stand_in):
            announce(line)
        reloads = asyncio.create_task(_reload_forever(server, config, environ, stand_ins, hangup))
        _settle_memory()
        received = await stop
        reloads.cancel()
        patience = server.runtime.settings.server.drain_timeout
        if received is signal.SIGINT and sys.stdin is not None and sys.stdin.isatty():
            patience = INTERRUPT_DRAIN if patience is None else min(INTERRUPT_DRAIN, patience)
        await _drain(server, patience)
    return 0


class Server:
    """The running parts: what tests and the reloader reach for."""

    def __init__(self, runtime: Runtime, main: Listeners, admin: Listeners) -> None:
        self.runtime = runtime
        self.main = main
        self.admin = admin
        self.address: tuple[str, int] = ("", 0)
        self.admin_address: tuple[str, int] | None = None
        self.tls: ssl.SSLContext | None = None
        self._started_with = runtime.settings

    def take(self, settings: Settings) -> None:
        """Let the listeners follow settings that the runtime has applied; what they cannot follow is logged."""
        self.runtime.logs.set_level(settings.logging.level)
        for listeners in (self.main, self.admin):
            listeners.header_timeout = settings.server.header_timeout
            listeners.max_connections = settings.server.max_connections
        tls = settings.server.tls
        if self.tls is not None and tls.cert is not None:
            self.tls.load_cert_chain(tls.cert, tls.key)
        for place in restart_needed(self._started_with, settings):
            log.warning("this change takes effect after a restart", setting=place)


FIXED = (
    *(("server", name) for name in ("host", "port", "workers", "keepalive_timeout")),
    *(("admin", name) for name in ("host", "port")),
    *(("logging", name) for name in ("format", "file")),
    ("database", "url"),
)
"""Settings that a running process keeps as it started with."""


def restart_needed(before: Settings, after: Settings) -> Iterator[str]:
    """The places of settings that changed and cannot change in a running process."""
    for section, name in FIXED:
        if getattr(getattr(before, section), name) != getattr(getattr(after, section), name):
            yield f"{section}.{name}"
    if (before.server.tls.cert is None) != (after.server.tls.cert is None):
        yield "server.tls"


@asynccontextmanager
async def running(settings: Settings, clock: Clock | None = None) -> AsyncIterator[Server]:
    """A whole proxy inside the running loop, on real sockets, until the block ends. Raises OSError."""
    logging = settings.logging
    file = Path(logging.file) if logging.file else None
    logs = observe_logs.configure(logging.level, logging.format, file, Redactor(settings.secret_texts()))
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(logs.close)
        loop = asyncio.get_running_loop()
        logs.later = lambda flush: loop.call_later(ACCESS_FLUSH, flush)
        runtime = Runtime(logs, clock)
        runtime.apply(settings)
        stack.push_async_callback(runtime.close)
        app = make_app(runtime)
        main = await _listen(stack, app, runtime, settings)
        main.server.request_handler = beside_router(app, main.server.request_handler)
        admin = await _listen(stack, make_admin_app(runtime), runtime, settings)
        server = Server(runtime, main, admin)
        server.tls = _tls(settings)
        server.address = (await main.open(settings.server.host, settings.server.port, server.tls))[0]
        if settings.admin.port is not None:
            server.admin_address = (await admin.open(settings.admin.host, settings.admin.port))[0]
        probes = asyncio.create_task(probe_forever(lambda: tuple(runtime.rooms.upstreams.values()), runtime.clock))
        stack.callback(probes.cancel)
        purges = asyncio.create_task(
            purge_forever(lambda: runtime.conversations, "chat", lambda: runtime.settings.chat.retention, runtime.clock)
        )
        stack.callback(purges.cancel)
        expiry = asyncio.create_task(runtime.expiry.look_forever())
        stack.callback(expiry.cancel)
        yield server


async def _listen(
    stack: contextlib.AsyncExitStack, app: web.Application, runtime: Runtime, settings: Settings
) -> Listeners:
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        auto_decompress=False,
        access_log=None,
        keepalive_timeout=settings.server.keepalive_timeout or 0,
        lingering_time=LINGER,
        max_line_size=FIELD_LIMIT,
        max_field_size=FIELD_LIMIT,
        shutdown_timeout=0.1,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    listeners = Listeners(
        runner,
        runtime.surfaces[0].refuse,
        header_timeout=settings.server.header_timeout,
        max_connections=settings.server.max_connections,
    )
    stack.push_async_callback(listeners.stop)
    return listeners


def _tls(settings: Settings) -> ssl.SSLContext | None:
    tls = settings.server.tls
    if tls.cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.cert, tls.key)
    return context


def _settle_memory() -> None:
    """What was made until now stays: keep the collector away from it, and keep buffers instead of faulting them in again.

    glibc gives back every freed buffer of a large transfer to the kernel and takes a page fault for each of its pages when the
    next one is needed; with these thresholds (mallopt(3)) it reuses them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((_M_MMAP_THRESHOLD, 4 << 20), (_M_TRIM_THRESHOLD, 16 << 20), (_M_TOP_PAD, 1 << 20)):
            mallopt(parameter, value)


@asynccontextmanager
async def _stand_ins() -> AsyncIterator[StandIns]:
    """A built-in stand-in upstream of every kind, each on a port of its own, inside this process."""
    from balancer.standin.base import running as standing_in  # noqa: PLC0415
    from balancer.standin.kinds import KINDS  # noqa: PLC0415

    async with contextlib.AsyncExitStack() as stack:
        yield {
            name: (await stack.enter_async_context(standing_in(kind.make(kind.keys))) + kind.path, kind.keys)
            for name, kind in KINDS.items()
        }


def on_stand_ins(settings: Settings, stand_ins: StandIns) -> Settings:
    """The same settings with every upstream's requests and keys turned to the stand-in of its kind."""
    upstreams = {name: _on_stand_in(name, upstream, stand_ins) for name, upstream in settings.upstreams.items()}
    return settings.model_copy(update={"upstreams": upstreams})


def _on_stand_in(name: str, upstream: Upstream, stand_ins: StandIns) -> Upstream:
    url, keys = stand_ins[upstream.kind]
    kept = upstream.model_dump(exclude_unset=True, exclude={"keys", "keys_file", "proxy", "ca_file"})
    there = Upstream.model_validate({**kept, "base_url": url, "keys": list(keys)})
    there.resolve(name, Path(), {}, lambda place, text: None)
    return there


def greeting(server: Server, *, stands_in: bool) -> Iterator[str]:
    """What a person who has just started it wants to know, and the lines to paste."""
    settings = server.runtime.settings
    scheme = "https" if settings.server.tls.cert else "http"
    url = f"{scheme}://{authority(*server.address)}"
    if stands_in:
        yield "*" * 100
        yield "*  NO KEYS: every answer comes from a built-in STAND-IN upstream and from no model."
        yield "*  Set GEMINI_API_KEYS=key1,key2 (or GEMINI_API_KEY) in the environment or in .env, and start again."
        yield "*" * 100
    for upstream in settings.upstreams.values():
        yield f"balancer {__version__}: {url} -> {upstream.name} ({upstream.base_url}) with {len(upstream.pool)} keys"
    if server.admin_address is not None:
        yield f"key states and metrics: http://{authority(*server.admin_address)}/api/keys and /metrics"
    token = "any-text" if not settings.auth.tokens else "YOUR-CLIENT-TOKEN"
    yield "Try it:"
    yield f"  curl {url}/v1beta/models/gemini-2.5-flash:generateContent -H 'x-goog-api-key: {token}' \\"
    yield """    -H 'content-type: application/json' -d '{"contents":[{"parts":[{"text":"Hello"}]}]}'"""
    yield f"OpenAI clients: base URL {url}/v1, the same token as API key."
    yield "Or in Python (pip install google-genai):"
    yield "  from google import genai"
    yield f'  client = genai.Client(api_key="{token}", http_options={{"base_url": "{url}"}})'
    yield '  print(client.models.generate_content(model="gemini-2.5-flash", contents="Hello").text)'
    yield '  for part in client.models.generate_content_stream(model="gemini-2.5-flash", contents="Count to five"):'
    yield '      print(part.text, end="", flush=True)'


def authority(host: str, port: int) -> str:
    """host:port as it stands in a URL; an address that means "any" becomes one that can be called."""
    if host in ("0.0.0.0", "::"):  # noqa: S104
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _on_signals(stop: asyncio.Future[signal.Signals], hangup: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def received(which: signal.Signals) -> None:
        if stop.done():
            log.warning("second signal: stopping at once")
            signal.signal(which, signal.SIG_DFL)
            signal.raise_signal(which)
        else:
            stop.set_result(which)

    for which in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(which, received, which)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)


async def _drain(server: Server, patience: float | None) -> None:
    """Let what runs finish. Connections that idle are closed; a request on them would have been told to close anyway."""
    runtime = server.runtime
    runtime.drain.begin()
    server.main.close()
    log.info("draining", in_flight=runtime.drain.in_flight, seconds=patience)
    try:
        async with asyncio.timeout(patience):
            await runtime.drain.idle()
            await server.main.flush()
    except TimeoutError:
        log.warning("drain timeout: cutting what still runs", in_flight=runtime.drain.in_flight)


async def _reload_forever(
    server: Server, config: Path | None, environ: Mapping[str, str], stand_ins: StandIns | None, wake: asyncio.Event
) -> None:
    """Reload on SIGHUP and when the file changes. What cannot change in a running process is said."""
    seen = _modified(config)
    while True:
        asked = False
        try:
            async with asyncio.timeout(WATCH_EVERY):
                await wake.wait()
                asked = True
        except TimeoutError:
            pass
        wake.clear()
        now = _modified(config)
        if asked:
            server.runtime.logs.reopen()
        if asked or now != seen:
            seen = now
            reload(server, config, environ, stand_ins)


def reload(server: Server, config: Path | None, environ: Mapping[str, str], stand_ins: StandIns | None = None) -> bool:
    """Read the configuration again and apply it whole, or not at all. Whether it was applied."""
    runtime = server.runtime
    try:
        settings = load(config, environ)
        if stand_ins is not None:
            settings = on_stand_ins(settings, stand_ins)
        _tls(settings)
        runtime.apply(settings)
    except ConfigError as bad:
        log.error("configuration not reloaded: it has mistakes", problems=bad.problems)
        return False
    except OSError as bad:
        log.error("configuration not reloaded", error=str(bad))
        return False
    except Exception:
        log.exception("configuration not reloaded")
        return False
    server.take(settings)
    log.info("configuration reloaded")
    return True


def _modified(config: Path | None) -> tuple[int, int] | None:
    try:
        state = config.stat() if config is not None else None
    except OSError:
        return None
    return None if state is None else (state.st_mtime_ns, state.st_size)
