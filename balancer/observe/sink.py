"""Where log lines are written: straight to a descriptor, whole lines, and never waiting for a reader.

A pipe or a terminal whose reader stands still would block the writer, and with it every request. So a line goes there in
pieces that a pipe which is ready takes without waiting, and is dropped where it is not. Files are opened for appending, so
that several processes can share one.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import sys
from io import FileIO
from pathlib import Path
from typing import Any, TextIO

_PIECE = 4096
"""Bytes that a pipe which is ready takes at once (PIPE_BUF of Linux)."""
_PIPE = 1 << 20
"""Bytes of pipe buffer that every process may ask for (fs.pipe-max-size), so that a reader may lag behind a burst."""


class Sink:
    """Takes lines. `dropped` counts those that were lost, whole or in part."""

    def __init__(self, target: Path | TextIO) -> None:
        """Raises OSError if the file cannot be opened."""
        self.dropped = 0
        self._torn = False
        self._path = target if isinstance(target, Path) else None
        self._stream = None if isinstance(target, Path) else target
        self._raw = _open(target) if isinstance(target, Path) else _behind(target)
        self._look()

    def _look(self) -> None:
        self.is_terminal = self._raw is not None and self._raw.isatty()
        self._poll: Any = None
        if self._raw is None or stat.S_ISREG(os.fstat(self._raw.fileno()).st_mode) or not hasattr(select, "poll"):
            return
        self._poll = select.poll()
        self._poll.register(self._raw, select.POLLOUT)
        _widen(self._raw)

    def reopen(self) -> None:
        """Open the file anew by its name. Raises OSError, and then goes on with the old one."""
        if self._path is None:
            return
        old, self._raw = self._raw, _open(self._path)
        if old is not None:
            old.close()
        self._look()

    def close(self) -> None:
        """A file is closed, and lines are dropped from then on; a stream is its owner's."""
        if self._path is not None and self._raw is not None:
            self._raw.close()

    def write(self, line: bytes) -> None:
        """Write one line that ends with a newline; nothing for b"". Never raises, never waits."""
        try:
            if self._raw is not None:
                self._send(b"\n" + line if self._torn else line)
            elif self._stream is not None:
                self._stream.write(line.decode("utf-8", "replace"))
        except (OSError, ValueError):
            self.dropped += 1

    debug = info = warning = error = critical = write
    """structlog calls the sink by the level of the event."""

    def _send(self, data: bytes) -> None:
        """A line that broke off leaves `_torn`: the next one then begins with a newline of its own."""
        assert self._raw is not None
        size = _PIECE if self._poll is not None else max(1, len(data))
        while data:
            if self._poll is not None and not any(event & select.POLLOUT for _, event in self._poll.poll(0)):
                raise BlockingIOError
            sent = self._raw.write(data[:size])
            if not sent:
                raise BlockingIOError
            data = data[sent:]
            self._torn = bool(data)


def _open(path: Path) -> FileIO:
    return FileIO(path, "a", opener=lambda name, flags: os.open(name, flags, 0o640))


def _widen(pipe: FileIO) -> None:
    if sys.platform == "linux":
        import fcntl  # noqa: PLC0415 - not on every platform

        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)


def _behind(stream: TextIO) -> FileIO | None:
    """The descriptor behind a stream, whose own buffer is emptied first; None if it has none."""
    try:
        stream.flush()
        return FileIO(stream.fileno(), "w", closefd=False)
    except (AttributeError, OSError, ValueError):
        return None
