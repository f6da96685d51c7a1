"""Whether an event stream that passes through stands between two events (WHATWG HTML, section 9.2.6).

A comment of ours may be written only there. Lines end with LF, CRLF or CR, and an empty line ends an event; so the last three
bytes tell, however the stream was cut into pieces. Behind a CR the LF of the same line's end may still follow: then what is
written in between only makes one more empty line, which means nothing.
"""

from __future__ import annotations

_ENDS = (b"\n\n", b"\r\r", b"\n\r", b"\n\r\n", b"\r\r\n")


class EventBoundary:
    """Fed with every byte of one stream, in order."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b"\n\n"  # the beginning is a boundary

    def feed(self, data: bytes) -> bool:
        """Whether the stream stands between two events after these bytes."""
        self._tail = tail = data[-3:] if len(data) >= 3 else (self._tail + data)[-3:]
        return tail.endswith(_ENDS)
