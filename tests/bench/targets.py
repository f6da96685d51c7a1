"""What is measured: the upstream itself, the floor, the program with everything on, and nginx where it is installed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.load import Address
from tests.bench.process import pinned

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOKENS = ("bench-token-one-0001", "bench-token-two-0002", "bench-token-three-0003")
NO_LIMIT = 1_000_000_000
"""A limit that is counted and never met."""

_NGINX = """
daemon off; pid {work}/nginx.pid; error_log stderr error; worker_processes 1; worker_rlimit_nofile {files};
events {{ worker_connections {connections}; }}
http {{
  access_log off; client_max_body_size 0; keepalive_requests 1000000000; keepalive_timeout 300s;
  client_body_temp_path {work}/body; proxy_temp_path {work}/proxy; fastcgi_temp_path {work}/fastcgi;
  uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
  upstream there {{ server {upstream}; keepalive 1024; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://there; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 300s;
      proxy_buffer_size 128k; proxy_buffers 4 128k; proxy_busy_buffers_size 128k; client_body_buffer_size 128k;
    }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of target. `command` gets a working folder, a free port (0 if it prints its own) and the upstream's address."""

    name: str
    command: Callable[[Path, int, str], list[str]]
    prints_port: bool = False


class Died(Exception):
    """A target that did not come up, or went away; with the last that it said."""


@dataclass(slots=True)
class Target:
    """A target that runs, or ran. Without a `process`, nothing is known of it but its address."""

    name: str
    address: Address
    process: subprocess.Popen[bytes] | None = None
    folder: Path | None = None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None else None

    def check(self) -> None:
        """Raises Died if it has ended."""
        if self.process is not None and self.process.poll() is not None:
            raise Died(f"{self.name} ended with code {self.process.returncode}: {self.last_words()}")

    def last_words(self) -> str:
        """The last errors in its log, else the last that it printed."""
        for name, wanted in (("access.log", ('"error"', "Traceback", '"critical"')), ("output.txt", ("",))):
            with contextlib.suppress(OSError, AttributeError, TypeError):
                lines = (self.folder / name).read_text(errors="replace").splitlines()  # type: ignore[operator]
                if found := [line for line in lines if any(word in line for word in wanted)]:
                    return " | ".join(found[-3:])[-1500:]
        return "it said nothing"


def upstream_kind() -> Kind:
    return Kind("upstream", lambda work, port, upstream: [sys.executable, str(HERE / "upstream.py")], prints_port=True)


def floor_kind() -> Kind:
    def command(work: Path, port: int, upstream: str) -> list[str]:
        return [sys.executable, str(HERE / "floor.py"), upstream]

    return Kind("floor", command, prints_port=True)


def balancer_kind(name: str = "balancer", keys: int = 3) -> Kind:
    def command(work: Path, port: int, upstream: str) -> list[str]:
        config = work / "config.yaml"
        config.write_text(json.dumps(everything_on(work, port, upstream, keys), indent=2))
        return [sys.executable, "-m", "balancer", "serve", "--config", str(config)]

    return Kind(name, command)


def everything_on(work: Path, port: int, upstream: str, keys: int) -> dict[str, Any]:
    """Client tokens, affinity, keys with every limit, all timeouts, a JSON access line to a file, metrics."""
    return {
        "server": {"host": "127.0.0.1", "port": port},
        "admin": {"port": 0},
        "auth": {"tokens": [{"name": f"team-{n}", "token": token} for n, token in enumerate(TOKENS)]},
        "relay": {"timeouts": {"total": "1h"}},
        "upstreams": {
            "gemini": {
                "kind": "gemini",
                "base_url": f"http://{upstream}",
                "proxy": "off",
                "keys": [
                    {
                        "key": f"bench-pool-key-{n:04}",
                        "rpm": NO_LIMIT,
                        "rpd": NO_LIMIT,
                        "tpm": NO_LIMIT,
                        "concurrency": 1_000_000,
                    }
                    for n in range(keys)
                ],
            }
        },
        "logging": {"format": "json", "level": "info", "file": str(work / "access.log")},
    }


def nginx_kind() -> Kind | None:
    """nginx as a proxy that buffers nothing; None where it is not installed."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None:
        return None

    def command(work: Path, port: int, upstream: str) -> list[str]:
        config = work / "nginx.conf"
        connections = 8192
        text = _NGINX.format(work=work, files=2 * connections, connections=connections, upstream=upstream, port=port)
        config.write_text(text)
        return [program, "-p", str(work), "-c", str(config)]

    return Kind("nginx", command)


def nginx_version() -> str | None:
    kind = nginx_kind()
    if kind is None:
        return None
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin") or "nginx"
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=False).stderr
    return said.strip().rpartition("/")[2] or "?"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def running(kind: Kind, work: Path, core: int, upstream: str = "") -> Iterator[Target]:
    """Start a target in an empty folder of its own, pinned to a core, and end it with all its children."""
    folder = work / f"{kind.name}-{free_port()}"
    folder.mkdir()
    port = 0 if kind.prints_port else free_port()
    with pinned(core), (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            kind.command(folder, port, upstream),
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if kind.prints_port else output,
            stderr=output,
            start_new_session=True,
        )
    target = Target(kind.name, ("127.0.0.1", port), process, folder)
    try:
        if process.stdout is not None:
            line = process.stdout.readline()
            if not line.strip().isdigit():
                process.wait(5.0)
                target.check()
            target.address = ("127.0.0.1", int(line))
        yield target
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _environment() -> dict[str, str]:
    """Nothing of this shell's settings or keys; the program of this checkout."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {"PYTHONPATH": str(ROOT)}


def _end(process: subprocess.Popen[bytes]) -> None:
    for how, patience in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # children that outlived it
    if process.stdout is not None:
        process.stdout.close()


def targets(names: Sequence[str]) -> list[Kind]:
    """The kinds that can be measured here, in the order of the table."""
    kinds = [floor_kind(), balancer_kind()]
    nginx = nginx_kind()
    if nginx is not None:
        kinds.append(nginx)
    return [kind for kind in kinds if not names or kind.name in names]
