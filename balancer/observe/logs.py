"""Log events: one line each, as JSON or for people, without secrets, and never in a request's way.

    structlog logger ─┐
    stdlib records  ──┼→ mask every string → JSON or console line → Sink (stream or file)
    access lines    ──┘   (access lines: only what others wrote)

Nothing here raises into the code that logs. A line that cannot be made or written is dropped and counted.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TextIO

import orjson
import structlog

from balancer.observe.redaction import Redactor
from balancer.observe.sink import Sink

Format = Literal["auto", "console", "json"]
Event = MutableMapping[str, Any]

OFTEN = ("path", "model", "method")
FREE_TEXT = ("error", "request_id", "session")
"""Fields of an access line whose text comes from outside; the others are words of ours."""

_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
_DEEPEST = 8
"""Levels of nesting that an event may have; what lies deeper is written as text."""
_QUOTE = re.compile(r":?\s*(?:b?['\"]|\n|$)")
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
    return logs


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
        self.set_redactor(redactor)
        self._console = console
        self._level = logging.INFO
        self._waiting: list[bytes] = []
        self.later: Callable[[Callable[[], None]], object] | None = None
        """Runs something in a moment. With it, the access lines of that moment are written together; events never wait."""

    @property
    def dropped(self) -> int:
        return self._sink.dropped

    def set_redactor(self, redactor: Redactor) -> None:
        self._mask = redactor.text
        self._mask_often = lru_cache(1024)(redactor.text)
        """For words that come again and again."""

    def set_level(self, level: str) -> None:
        """debug, info, warning, error or critical. Loggers that were bound before keep the level they were bound with."""
        self._level = logging.getLevelNamesMapping()[level.upper()]
        structlog.configure(
            processors=[structlog.contextvars.merge_contextvars, self._process],
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
            lines, self._waiting = b"".join(self._waiting), []
            self._sink.write(lines)

    def access(self, fields: Mapping[str, Any]) -> None:
        """Write the line of one request."""
        if self._level > logging.INFO:
            return
        try:
            line: dict[str, Any] = {"timestamp": datetime.now(UTC), "level": "info", "event": "request", **fields}
            often, mask = self._mask_often, self._mask
            for name in OFTEN:
                value = line.get(name)
                if value is not None:
                    line[name] = often(value)
            for name in FREE_TEXT:
                value = line.get(name)
                if value is not None:
                    line[name] = mask(value)
            data = _access_console(line) if self._console else _json(line)
            if self.later is None or self._console:
                self._sink.write(data)
                return
            if not self._waiting:
                self.later(self.flush)
            self._waiting.append(data)
        except Exception:
            self._sink.dropped += 1

    def event(self, level: str, event: str, fields: Mapping[str, Any]) -> None:
        """Write one event, whatever the level that is set."""
        self.flush()
        self._sink.write(self._render({"level": level, "event": event, **fields}))

    def accepts(self, level: int) -> bool:
        return level >= self._level

    def _process(self, _: Any, method: str, event: Event) -> bytes:
        """The last processor of structlog: its result is what the sink's method is called with."""
        self.flush()
        event["level"] = method
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
    text = f"{time.astimezone():%H:%M:%S} {shown} {_printable(str(event))}{fields}\n"
    if trace:
        text += "".join(f"    {_printable(row)}\n" for row in trace.splitlines())
    return text.encode("utf-8", "backslashreplace")


def _access_console(line: dict[str, Any]) -> bytes:
    """`12:30:05 200 POST /v1beta/… 812 ms (first byte 640, own 0.4) client gemini/ab12cd34 …`."""
    get = line.get
    text = f"{line['timestamp'].astimezone():%H:%M:%S} {get('status')} {get('method')} {get('path')} {get('ms')} ms"
    if get("ttfb_ms") is not None:
        text += f" (first byte {get('ttfb_ms')}, own {get('overhead_ms')})"
    text += f" {get('client') or '-'}"
    if get("upstream"):
        text += f" → {get('upstream')}/{get('key')}"
    if (get("attempts") or 0) > 1:
        text += f" in {get('attempts')} attempts"
    if get("error"):
        text += f" {get('error')}"
    return _printable(f"{text} [{get('request_id')}]").encode("utf-8", "backslashreplace") + b"\n"


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _printable(value) if value and " " not in value else repr(value)
    return _printable(str(value))


def _printable(text: str) -> str:
    """The text with control characters escaped: nobody's request steers the operator's terminal."""
    return text if text.isprintable() else "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
