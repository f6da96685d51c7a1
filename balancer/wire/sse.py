"""Event streams read piece by piece: lines, and the events that lines make (WHATWG HTML, section 9.2.6).

Any split of the bytes gives the same lines and events. Lines end with LF, CRLF or CR; a byte order mark before the first one
is none of it. Beyond the standard, because the streams that are read here end so: a last line without its end is a line, and
a last event without its empty line is an event.
"""

from __future__ import annotations

from dataclasses import dataclass

from balancer.errors import AnswerBroken

LONGEST = 16 << 20
"""Bytes of one line or one event: more than any answer of a model, less than what would hurt."""

_BOM = b"\xef\xbb\xbf"


class Lines:
    """Splits a stream into lines, without their ends. `limit`: bytes that are held back of an unfinished one."""

    __slots__ = ("_after_cr", "_begun", "_held", "_limit", "_size")

    def __init__(self, limit: int = LONGEST) -> None:
        self._limit = limit
        self._held: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._begun = False

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that these bytes complete. Raises AnswerBroken for a line that is too long."""
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = data.split(b"\n")
        rest = lines.pop()
        if lines:
            if self._held:
                lines[0] = b"".join(self._held) + lines[0]
                self._held.clear()
                self._size = 0
            self._begin(lines)
        if rest:
            self._held.append(rest)
            self._size += len(rest)
            if self._size > self._limit:
                raise AnswerBroken(f"a line of its event stream is longer than {self._limit} bytes")
        return lines

    def end(self) -> list[bytes]:
        """The stream has ended: the last line, if it had no end."""
        last = b"".join(self._held)
        self._held.clear()
        self._size = 0
        lines = [last] if last else []
        self._begin(lines)
        return lines

    def _begin(self, lines: list[bytes]) -> None:
        if lines and not self._begun:
            self._begun = True
            lines[0] = lines[0].removeprefix(_BOM)


def field(line: bytes) -> tuple[bytes, bytes]:
    """Name and value of a line, one blank behind the colon removed. A comment has an empty name."""
    name, _, value = line.partition(b":")
    return name, value.removeprefix(b" ")


@dataclass(frozen=True, slots=True)
class Event:
    """`name` is "" where the stream gave none; `data` has the data lines joined by LF."""

    name: str
    data: bytes


class Events:
    """Reads a stream as events. Those without data are none; `id` and `retry` say nothing to a proxy."""

    __slots__ = ("_data", "_limit", "_lines", "_name", "_size")

    def __init__(self, limit: int = LONGEST) -> None:
        self._lines = Lines(limit)
        self._limit = limit
        self._name = ""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes complete. Raises AnswerBroken for one that is too long."""
        return self._read(self._lines.feed(data))

    def end(self) -> list[Event]:
        """The stream has ended: the last event, if its empty line is missing."""
        return self._read([*self._lines.end(), b""])

    def _read(self, lines: list[bytes]) -> list[Event]:
        events = []
        for line in lines:
            if not line:
                if self._data:
                    events.append(Event(self._name, b"\n".join(self._data)))
                    self._data = []
                    self._size = 0
                self._name = ""
                continue
            name, value = field(line)
            if name == b"data":
                self._data.append(value)
                self._size += len(value) + 1
                if self._size > self._limit:
                    raise AnswerBroken(f"an event of its stream is longer than {self._limit} bytes")
            elif name == b"event":
                self._name = value.decode("utf-8", "replace")
        return events
