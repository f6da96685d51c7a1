"""A whole proxy in a process of its own, for tests that kill it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

WAIT = 20.0
"""Seconds after which something that should have happened has not."""


@asynccontextmanager
async def proxy(
    folder: Path, database: str, upstreams: dict[str, Any], **more: Any
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The process and its address. `more`: further sections of its configuration."""
    config = folder / "config.yaml"
    tree = {
        "server": {"port": 0},
        "admin": {"port": "off"},
        "database": {"url": database},
        "upstreams": upstreams,
        "logging": {"level": "error"},
        **more,
    }
    config.write_text(json.dumps(tree))
    clean = {name: value for name, value in os.environ.items() if "PROXY" not in name.upper()}
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "balancer", "serve", "--config", str(config)),
        stdout=asyncio.subprocess.PIPE,
        env={**clean, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=folder,
    )
    assert program.stdout is not None
    try:
        async with asyncio.timeout(WAIT):
            said = b""
            while (found := re.search(rb"(http://127\.0\.0\.1:\d+) -> ", said)) is None:
                line = await program.stdout.readline()
                assert line, said
                said += line
        yield program, found[1].decode()
    finally:
        if program.returncode is None:
            program.kill()
        await program.communicate()
