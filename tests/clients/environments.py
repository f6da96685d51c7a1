"""Installs the clients, each in a folder of its own under .cache/clients: `python -m tests.clients.environments`.

What is installed stays, and is installed anew when its line in the matrix changes. What cannot be installed (no network, no
such program) is said and does not stop anything: pytest then names the rows that are unproved. Standard library only, and
nothing but `pip` is needed: Node comes as a wheel.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.clients.matrix import NODE, ROWS, Environment

CACHE = Path(__file__).parents[2] / ".cache" / "clients"
_NODE = Environment(NODE.replace("==", "-"), "python", (NODE,))
COZEPY = Environment("cozepy-0.20.0", "python", ("cozepy==0.20.0",))
"""Holds the stand-in of Coze to the real wire: no row of the matrix."""
READERS = Environment(
    "readers-of-streams", "python", ("requests==2.34.2", "sseclient-py==1.9.0", "httpx==0.28.1", "httpx-sse==0.4.3")
)
"""What people read the chat surface's stream with: neither is it a row."""
PATIENCE = 600.0
"""Seconds for one installation."""
_STAMP = "installed.json"
_WHY = "failed.txt"
_BIN = "bin"


class NotInstalled(Exception):
    """Says why."""


def required(environment: Environment) -> None:
    """Return if it is there. Raises NotInstalled with the reason."""
    if environment.kind == "system":
        for program in environment.packages:
            if shutil.which(program) is None:
                raise NotInstalled(f"there is no {program} on PATH")
        return
    if _there(environment):
        return
    folder = CACHE / environment.name
    with contextlib.suppress(OSError):
        raise NotInstalled((folder / _WHY).read_text(encoding="utf-8"))
    raise NotInstalled("not installed: make clients")


def python_of(environment: Environment) -> Path:
    return CACHE / environment.name / _BIN / "python"


def node() -> Path:
    """The interpreter of all environments of kind node."""
    return CACHE / _NODE.name / _BIN / "node"


def all_environments() -> list[Environment]:
    """Those of the matrix and those beside it, each once."""
    return list(dict.fromkeys([*(row.environment for row in ROWS), COZEPY, READERS]))


def install(environment: Environment) -> str:
    """Install it unless it is there. A line for people."""
    if environment.kind == "system":
        return _checked(environment)
    folder = CACHE / environment.name
    with _locked(folder):
        if _there(environment):
            return f"{environment.name}: there"
        began = time.monotonic()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            (_install_python if environment.kind == "python" else _install_node)(folder, environment.packages)
        except (OSError, subprocess.SubprocessError, NotInstalled) as failed:
            (folder / _WHY).write_text(_reason(failed), encoding="utf-8")
            return f"{environment.name}: not installed: {_reason(failed)}"
        (folder / _STAMP).write_text(json.dumps(_wanted(environment)), encoding="utf-8")
        return f"{environment.name}: installed in {time.monotonic() - began:.0f} s"


def _checked(environment: Environment) -> str:
    try:
        required(environment)
    except NotInstalled as missing:
        return f"{environment.name}: {missing}"
    return f"{environment.name}: there"


def _install_python(folder: Path, packages: tuple[str, ...]) -> None:
    """A virtual environment without pip (some systems split ensurepip off): ours installs into it."""
    _run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    pip = (sys.executable, "-m", "pip", "--python", str(folder / _BIN / "python"), "--disable-pip-version-check")
    _run(*pip, "install", "--quiet", "--no-input", "--retries", "1", *packages)


def _install_node(folder: Path, packages: tuple[str, ...]) -> None:
    _need_node()
    (folder / "package.json").write_text('{"private": true, "type": "module"}', encoding="utf-8")
    options = ("--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", "--prefer-offline")
    path = f"{node().parent}{os.pathsep}{os.environ.get('PATH', '')}"
    _run(str(node().parent / "npm"), "install", *options, *packages, cwd=folder, env=os.environ | {"PATH": path})


def _need_node() -> None:
    said = install(_NODE)
    try:
        required(_NODE)
    except NotInstalled:
        raise NotInstalled(said) from None


def _run(*command: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
    subprocess.run(command, cwd=cwd, env=env, check=True, capture_output=True, text=True, timeout=PATIENCE)


def _reason(failed: Exception) -> str:
    """One line of what went wrong."""
    said = getattr(failed, "stderr", None) or str(failed)
    lines = [line.strip() for line in str(said).splitlines() if line.strip()]
    return (lines[-1] if lines else type(failed).__name__)[:300]


def _there(environment: Environment) -> bool:
    """Whether its installation was finished and is of what the matrix says now."""
    if _stamp(CACHE / environment.name) != _wanted(environment):
        return False
    return environment.kind != "node" or _there(_NODE)


def _wanted(environment: Environment) -> list[str]:
    """What the stamp of a finished installation says."""
    return [*environment.packages, NODE if environment.kind == "node" else sys.version.split()[0], str(CACHE)]


def _stamp(folder: Path) -> object:
    with contextlib.suppress(OSError, ValueError):
        return json.loads((folder / _STAMP).read_text(encoding="utf-8"))
    return None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One installation into a folder at a time, whichever process does it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Install everything, as many at a time as there are processors. Always 0: what is missing is pytest's to say."""
    began = time.monotonic()
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as workers:
        said = list(workers.map(install, all_environments()))
    news = [line for line in said if not line.endswith(": there")]
    for line in news:
        sys.stdout.write(f"clients: {line}\n")
    if news:
        sys.stdout.write(f"clients: {time.monotonic() - began:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
