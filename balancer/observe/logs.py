"""Log events: one line each, as JSON or for people, without secrets, and never in a request's way.

    structlog logger ─┐
    stdlib records  ──┼→ mask every string → JSON or console line → Sink (stream or file)
    info()          ──┤
    access lines    ──┘   (access lines: only what others wrote; access.py)

Nothing here raises into the code that logs. A line that cannot be made or written is dropped and counted.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

import orjson
import structlog

from balancer.model import Record
from balancer.observe.access import AccessLines, printable
from balancer.observe.redaction import Redactor
from balancer.observe.sink import Sink

Format = Literal["auto", "console", "json"]
Event = MutableMapping[str, Any]

_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
_DEEPEST = 8
"""Levels of nesting that an event may have; what lies deeper is written as text."""
_QUOTE = re.compile(r":?\s*(?:b?['\"]|\n|$)")
_QUIET = frozenset({"debug", "info"})
_COLOURS = {"debug": "\x1b[2m", "warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[1;31m"}


def configure(level: str, format: Format, file: Path | None, redactor: Redactor, stream: TextIO | None = None) -> Logs:  # noqa: A002
    """Send all logging of this process through one new Logs, to `file` or else `stream` (standard error). Raises OSError.

    `auto` is the console form on a terminal, else JSON.
    """
    sink = Sink(file) if file is not None else Sink(stream or sys.stderr)
    console = format == "console" or (format == "auto" and sink.is_terminal)
    logs = Logs(sink, redactor, console=console)
    logs.set_level(level)
    _take_over(_Bridge(logs))
    global _configured  # noqa: PLW0603 - a process has one, as structlog's own configuration is one
    _configured = logs
    return logs


_configured: Logs | None = None


def info(event: str, **fields: str | None) -> None:
    """An event that calls of a session write each time: past structlog, which would take three times as long."""
    if _configured is None:
        structlog.get_logger().info(event, **fields)
    elif _configured.accepts(logging.INFO):
        _configured.quiet("info", event, fields)


def _take_over(bridge: _Bridge) -> None:
    """Make it the way of the standard library's records, in place of an earlier one. Handlers of others stay."""
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, _Bridge)]:
        root.removeHandler(handler)
    root.addHandler(bridge)
    root.setLevel(logging.WARNING)


class Logs:
    """Where all events of a process go. `dropped` counts the lines lost so far."""

    def __init__(self, sink: Sink, redactor: Redactor, *, console: bool) -> None:
        self._sink = sink
        self._console = console
        self._level = logging.INFO
        self._waiting: list[bytes | tuple[Record, float, float]] = []
        self.later: Callable[[Callable[[], None]], object] | None = None
        """Runs something in a moment. With it, the access lines and quiet events of that moment are written together."""
        self.set_redactor(redactor)

    @property
    def dropped(self) -> int:
        return self._sink.dropped

    def set_redactor(self, redactor: Redactor) -> None:
        self.flush()
        self._mask = redactor.text
        self._lines = AccessLines(redactor.text)

    def set_level(self, level: str) -> None:
        """debug, info, warning, error or critical. Loggers that were bound before keep the level they were bound with."""
        self._level = logging.getLevelNamesMapping()[level.upper()]
        structlog.configure(
            processors=[self._process],
            wrapper_class=structlog.make_filtering_bound_logger(self._level),
            logger_factory=lambda *_: self._sink,
            cache_logger_on_first_use=False,
        )

    def reopen(self) -> None:
        """Go on in a new file of the same name, after the old one was moved away. Keeps the old one if that fails."""
        self.flush()
        try:
            self._sink.reopen()
        except OSError as failed:
            self.event("error", "log file not reopened", {"error": str(failed)})

    def close(self) -> None:
        """Close the log file; what is logged from then on is dropped. A stream stays open."""
        self.flush()
        self._sink.close()

    def flush(self) -> None:
        """Write the access lines that wait."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._sink.write(b"".join([each if isinstance(each, bytes) else self._line(*each) for each in waiting]))

    def _line(self, record: Record, now: float, wall: float) -> bytes:
        """The line of one request; b"" where it cannot be made."""
        try:
            made = self._lines.console if self._console else self._lines.json
            return made(record, now, wall)
        except Exception:
            self._sink.dropped += 1
            return b""

    def access(self, record: Record, now: float) -> None:
        """Write the line of one request, which is over at `now` (monotonic) and changes no more.

        Lines that wait are made when they are written: one after the other they cost half.
        """
        if self._level > logging.INFO:
            return
        if self.later is None or self._console:
            self._sink.write(self._line(record, now, time.time()))
        else:
            self._wait((record, now, time.time()), self.later)

    def _wait(self, what: bytes | tuple[Record, float, float], later: Callable[[Callable[[], None]], object]) -> None:
        if not self._waiting:
            later(self.flush)
        self._waiting.append(what)

    def event(self, level: str, event: str, fields: Mapping[str, Any]) -> None:
        """Write one event, whatever the level that is set."""
        self.flush()
        self._sink.write(self._render({"level": level, "event": event, **fields}))

    def quiet(self, level: str, event: str, fields: Mapping[str, Any]) -> None:
        """Write one event that is no news to an operator: it may wait with the access lines, in its place among them."""
        line = self._render({"level": level, "event": event, **fields})
        if self.later is not None and not self._console:
            self._wait(line, self.later)
        else:
            self.flush()
            self._sink.write(line)

    def accepts(self, level: int) -> bool:
        return level >= self._level

    def _process(self, _: Any, method: str, event: Event) -> bytes:
        """The last processor of structlog: its result is what the sink's method is called with.

        What is no news to an operator waits with the access lines, in its place among them; the rest never does.
        """
        event["level"] = method
        if self.later is not None and method in _QUIET and not self._console:
            self._wait(self._render(event), self.later)
            return b""
        self.flush()
        return self._render(event)

    def _render(self, event: Event) -> bytes:
        """One line; b"" for an event that cannot be written."""
        try:
            failure = event.pop("exc_info", None)
            if failure:
                event["exception"] = _exception(failure)
            mask, level, name = self._mask, event.pop("level"), str(event.pop("event", ""))
            event.pop("timestamp", None)
            line: dict[str, Any] = {"timestamp": datetime.now(UTC), "level": level, "event": mask(name)}
            line |= {name: _masked(value, mask, _DEEPEST) for name, value in event.items()}
            return _console(line, colour=self._sink.is_terminal) if self._console else _json(line)
        except Exception:
            self._sink.dropped += 1
            return b""


class _Bridge(logging.Handler):
    """Takes the records of libraries that log through the standard library."""

    def __init__(self, logs: Logs) -> None:
        super().__init__(logging.WARNING)
        self._logs = logs

    def emit(self, record: logging.LogRecord) -> None:
        if not self._logs.accepts(record.levelno):
            return
        try:
            event, fields, level = record.getMessage(), {"logger": record.name}, record.levelname.lower()
            error = record.exc_info[1] if record.exc_info else None
            malformed = _malformed(error)
            if malformed is not None:
                level, fields["error"] = "warning", _without_quotes(malformed)
            elif error is not None:
                fields["exception"] = _exception(error)
            self._logs.event(level, event, fields)
        except Exception:
            self._logs.event("error", "a log record could not be formatted", {"logger": record.name})


def _malformed(error: BaseException | None) -> BaseException | None:
    """The parser's error that is, or led to, this one: it quotes the request's bytes, and with them its credentials."""
    for _ in range(10):
        if error is None or type(error).__module__ == "aiohttp.http_exceptions":
            return error
        error = error.__cause__ or error.__context__
    return None


def _without_quotes(error: BaseException) -> str:
    """What a parser says, up to where it begins to quote."""
    said = str(getattr(error, "message", "")).lstrip()
    return f"{type(error).__name__}: {_QUOTE.split(said, maxsplit=1)[0][:100]}"


def _exception(failure: Any) -> str:
    """A traceback, from any of the forms in which `exc_info` is given."""
    error = (
        failure
        if isinstance(failure, BaseException)
        else failure[1]
        if isinstance(failure, tuple)
        else sys.exc_info()[1]
    )
    return "".join(traceback.format_exception(error)).rstrip() if error is not None else ""


def _masked(value: Any, mask: Callable[[str], str], depth: int) -> Any:
    """The value with every string in it masked; what JSON has no form for becomes masked text."""
    match value:
        case str():
            return mask(value)
        case None | bool() | int() | float() | datetime():
            return value
        case Mapping() if depth:
            return {_key(key): _masked(each, mask, depth - 1) for key, each in value.items()}
        case list() | tuple() | set() | frozenset() if depth:
            return [_masked(each, mask, depth - 1) for each in value]
        case bytes():
            return mask(value.decode("utf-8", "replace"))
        case _:
            return mask(str(value))


def _key(key: Any) -> Any:
    return key if isinstance(key, str | int | float) else str(key)


def _json(line: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(line, option=_OPTIONS)
    except TypeError:  # lone surrogates, integers beyond 64 bits
        return json.dumps(line, default=_as_text, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _as_text(value: Any) -> str:
    return value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else str(value)


def _console(line: dict[str, Any], *, colour: bool) -> bytes:
    """`12:30:05 warning  key rests  upstream=gemini seconds=17`, and a traceback below."""
    time, level, event = line.pop("timestamp"), line.pop("level"), line.pop("event")
    trace = line.pop("exception", None)
    shown = f"{level:8}"
    if colour and level in _COLOURS:
        shown = f"{_COLOURS[level]}{shown}\x1b[0m"
    fields = "".join(f" {name}={_value(value)}" for name, value in line.items())
    text = f"{time.astimezone():%H:%M:%S} {shown} {printable(str(event))}{fields}\n"
    if trace:
        text += "".join(f"    {printable(row)}\n" for row in trace.splitlines())
    return text.encode("utf-8", "backslashreplace")


def _value(value: Any) -> str:
    if isinstance(value, str):
        return printable(value) if value and " " not in value else repr(value)
    return printable(str(value))
