"""Log lines: their forms, what is kept out of them, and that they stand in nobody's way."""

from __future__ import annotations

import errno
import io
import logging
import os
import pty
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog
from aiohttp.http_exceptions import BadStatusLine, InvalidHeader, LineTooLong

from balancer.model import Record, fingerprint
from balancer.observe.access import AccessLines
from balancer.observe.logs import Format, Logs, configure, info
from balancer.observe.redaction import Redactor

SECRET = "pool-key-0123456789"
LABEL = f"[key:{fingerprint(SECRET)}]"

log = structlog.get_logger()


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Logs]]:
    started: list[Logs] = []

    def start(level: str = "info", form: Format = "json", file: Path | None = None) -> Logs:
        logs = configure(level, form, file or tmp_path / "log", Redactor([SECRET]))
        started.append(logs)
        return logs

    yield start
    for logs in started:
        logs.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


NOW = 100.8125


def record(**more: Any) -> Record:
    """What a request came to that took 812.5 ms until `NOW`."""
    what: dict[str, Any] = {
        "started": 100.0,
        "request_id": "4f1d",
        "client": "team-a",
        "surface": "gemini",
        "method": "POST",
        "path": "/v1beta/models/m:generateContent",
        "upstream": "gemini",
        "key": "ab12cd34",
        "attempts": 2,
        "status": 200,
        "bytes_in": 11,
        "bytes_out": 22,
        "first_byte": 100.64025,
        "upstream_wait": 0.6,
        "other_wait": 0.039838,
        **more,
    }
    return Record(**what)


def test_an_event_is_one_json_line(start: Callable[..., Logs], tmp_path: Path) -> None:
    start()
    log.warning("key rests", upstream="gemini", seconds=17.5)
    (line,) = lines(tmp_path / "log")
    assert list(line) == ["timestamp", "level", "event", "upstream", "seconds"]
    assert line["timestamp"].endswith("Z")
    assert (line["level"], line["event"], line["seconds"]) == ("warning", "key rests", 17.5)


def test_quiet_events_wait_with_access_lines_in_their_order_and_warnings_send_them_off(
    start: Callable[..., Logs], tmp_path: Path
) -> None:
    logs = start()
    asked: list[Callable[[], None]] = []
    logs.later = asked.append
    log.info("first")
    logs.access(record(), NOW)
    log.info("third")
    assert (len(asked), lines(tmp_path / "log")) == (1, [])
    log.warning("fourth")
    assert [line["event"] for line in lines(tmp_path / "log")] == ["first", "request", "third", "fourth"]
    log.info("fifth")
    asked[1]()
    assert lines(tmp_path / "log")[-1]["event"] == "fifth"


def test_the_short_way_of_a_session_s_events_makes_the_line_that_structlog_makes(
    start: Callable[..., Logs], tmp_path: Path
) -> None:
    logs = start()
    asked: list[Callable[[], None]] = []
    logs.later = asked.append
    log.info(f"met {SECRET}", client="team")
    info(f"met {SECRET}", client="team")
    assert (len(asked), lines(tmp_path / "log")) == (1, [])
    logs.set_level("warning")
    info("unheard", client="team")
    logs.later = None
    logs.set_level("info")
    info("at once", client="team")
    long, short, last = ({**line, "timestamp": ""} for line in lines(tmp_path / "log"))
    assert short == long == {"timestamp": "", "level": "info", "event": f"met {LABEL}", "client": "team"}
    assert last["event"] == "at once"


def test_lines_that_wait_are_masked_by_the_secrets_of_their_time(start: Callable[..., Logs], tmp_path: Path) -> None:
    logs = start()
    logs.later = lambda flush: None
    logs.access(record(path=SECRET), NOW)
    logs.set_redactor(Redactor([]))
    logs.close()
    (line,) = lines(tmp_path / "log")
    assert line["path"] == LABEL


def test_events_below_the_level_are_not_written_and_the_level_can_change(
    start: Callable[..., Logs], tmp_path: Path
) -> None:
    logs = start("warning")
    log.info("quiet")
    logs.access(record(), NOW)
    logs.set_level("debug")
    log.debug("loud")
    logs.access(record(), NOW)
    assert [line["event"] for line in lines(tmp_path / "log")] == ["loud", "request"]


def test_secrets_are_masked_at_any_depth(start: Callable[..., Logs], tmp_path: Path) -> None:
    start()
    log.info(f"event {SECRET}", a=SECRET, b=[{"c": (SECRET, 1)}], d=SECRET.encode(), e=ValueError(SECRET), f={SECRET})
    text = (tmp_path / "log").read_text()
    assert SECRET not in text
    assert text.count(LABEL) == 6


def test_secrets_are_masked_in_exceptions(start: Callable[..., Logs], tmp_path: Path) -> None:
    start()
    try:
        raise ValueError(f"bad {SECRET}")
    except ValueError:
        log.exception("internal error")
    (line,) = lines(tmp_path / "log")
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith(f"ValueError: bad {LABEL}")


def test_secrets_of_a_new_configuration_are_masked_from_then_on(start: Callable[..., Logs], tmp_path: Path) -> None:
    logs = start()
    logs.set_redactor(Redactor(["another-pool-key"]))
    log.info("another-pool-key")
    logs.access(record(path="/another-pool-key"), NOW)
    assert "another-pool-key" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    "value",
    [
        "\udcff",
        2**80,
        {1: {2: 3}},
        pytest.param(object(), id="an object"),
        float("nan"),
        b"\xff",
        {"a": {"b": [{}] * 3}},
        Path("/x"),
        [[[[[[[[[["deep"]]]]]]]]]],
    ],
    ids=ascii,
)
def test_whatever_is_logged_makes_a_line(start: Callable[..., Logs], tmp_path: Path, value: Any) -> None:
    logs = start()
    log.info("odd", value=value)
    assert len(lines(tmp_path / "log")) == 1
    assert logs.dropped == 0


@pytest.mark.parametrize("text", ["\udcff", '"', "\\", "\n", "\x00", "\u2028", "é🙂", "x" * 2000, ""], ids=ascii)
def test_whatever_a_request_says_makes_one_line_that_says_it(
    start: Callable[..., Logs], tmp_path: Path, text: str
) -> None:
    logs = start()
    logs.access(record(request_id=text, method=text, path=text, model=text, error=text, client=text), NOW)
    (line,) = lines(tmp_path / "log")
    said = {name: line[name] for name in ("request_id", "method", "path", "model", "error", "client")}
    assert set(said.values()) == {text.replace("\udcff", "?")}
    assert logs.dropped == 0


def test_what_cannot_be_written_at_all_is_dropped_and_counted(start: Callable[..., Logs], tmp_path: Path) -> None:
    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError

    logs = start()
    log.info("odd", value=Hostile())
    logs.access(record(path=Hostile()), NOW)
    assert lines(tmp_path / "log") == []
    assert logs.dropped == 2


def test_an_access_line_has_its_fields_and_no_secret(start: Callable[..., Logs], tmp_path: Path) -> None:
    logs = start()
    said = {"path": f"/v1beta/x?key={SECRET}&a=1", "error": f"refused {SECRET}"}
    logs.access(record(**said, model=SECRET, method=SECRET, request_id=SECRET), NOW)
    logs.access(record(), NOW)
    masked, plain = lines(tmp_path / "log")
    assert masked["path"] == f"/v1beta/x?key={LABEL}&a=1"
    assert masked["error"] == f"refused {LABEL}"
    assert {masked[name] for name in ("model", "method", "request_id")} == {LABEL}
    sent = datetime.fromisoformat(plain.pop("timestamp"))
    assert abs((datetime.now(UTC) - sent).total_seconds()) < 60
    assert list(plain.items()) == [
        ("level", "info"),
        ("event", "request"),
        ("request_id", "4f1d"),
        ("client", "team-a"),
        ("surface", "gemini"),
        ("method", "POST"),
        ("path", "/v1beta/models/m:generateContent"),
        ("model", None),
        ("upstream", "gemini"),
        ("key", "ab12cd34"),
        ("attempts", 2),
        ("status", 200),
        ("bytes_in", 11),
        ("bytes_out", 22),
        ("ms", 812.5),
        ("ttfb_ms", 640.25),
        ("overhead_ms", 0.412),
    ]


def test_a_client_that_left_before_an_answer_is_a_499_without_a_first_byte(
    start: Callable[..., Logs], tmp_path: Path
) -> None:
    start().access(record(status=0, first_byte=None, upstream=None, key=None, attempts=0), NOW)
    (line,) = lines(tmp_path / "log")
    assert (line["status"], line["upstream"], line["key"], line["attempts"]) == (499, None, None, 0)
    assert not {"ttfb_ms", "overhead_ms", "error"} & line.keys()


def test_a_timestamp_has_its_microseconds() -> None:
    line = AccessLines(str).json(record(), NOW, 1_000_000_000.000042)
    assert orjson.loads(line)["timestamp"] == "2001-09-09T01:46:40.000042Z"


def test_the_console_form_is_for_people(start: Callable[..., Logs], tmp_path: Path) -> None:
    logs = start(form="console")
    logs.access(record(), NOW)
    logs.access(Record(100.0, "5", "GET", "/", status=401, error="missing_api_key"), 100.0002)
    log.warning("key rests", upstream="gemini", reason="429 per minute", seconds=17.5)
    rows = [row[9:] for row in (tmp_path / "log").read_text().splitlines()]
    assert rows == [
        "200 POST /v1beta/models/m:generateContent 812.5 ms (first byte 640.25, own 0.412) team-a → gemini/ab12cd34 "
        "in 2 attempts [4f1d]",
        "401 GET / 0.2 ms - missing_api_key [5]",
        "warning  key rests upstream=gemini reason='429 per minute' seconds=17.5",
    ]


def test_nobodys_request_steers_the_operators_terminal(start: Callable[..., Logs], tmp_path: Path) -> None:
    logs = start(form="console")
    logs.access(record(path="/\x1b[2J\n200 GET /forged"), NOW)
    log.warning("odd\x1b[0m", value="\x07", other={"a": "\x9b"})
    text = (tmp_path / "log").read_text()
    assert len(text.splitlines()) == 2
    assert not any(char in text for char in "\x1b\x07\x9b")


def test_libraries_are_heard_from_warnings_up(start: Callable[..., Logs], tmp_path: Path) -> None:
    start()
    logging.getLogger("asyncio").info("quiet")
    logging.getLogger("asyncio").warning("slow %s", SECRET)
    try:
        raise OSError(errno.ENOSPC, SECRET)
    except OSError:
        logging.getLogger("aiohttp.client").exception("failed")
    slow, failed = lines(tmp_path / "log")
    assert (slow["level"], slow["event"], slow["logger"]) == ("warning", f"slow {LABEL}", "asyncio")
    assert failed["level"] == "error"
    assert failed["exception"].endswith(LABEL)


def test_a_record_that_does_not_fit_its_own_arguments_is_told_of(start: Callable[..., Logs], tmp_path: Path) -> None:
    start()
    root = logging.getLogger()
    root.handlers[:] = root.handlers[-1:]  # pytest's own handler raises
    logging.getLogger("asyncio").warning("%d", "x")
    (line,) = lines(tmp_path / "log")
    assert line["event"] == "a log record could not be formatted"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InvalidHeader(b"Authorization: Bearer unknown-token"), "InvalidHeader: Invalid HTTP header"),
        (BadStatusLine("GET /?key=unknown-token"), "BadStatusLine: Bad status line"),
        (LineTooLong(b"unknown-token", 8190), "LineTooLong: Got more than 8190 bytes when reading"),
        (
            BadStatusLine("x", error="Invalid method encountered:\n\n  b'GET@ /?key=unknown-token HTTP/1.1'\n       ^"),
            "BadStatusLine: Invalid method encountered",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_malformed_request_is_not_quoted(
    start: Callable[..., Logs], tmp_path: Path, error: Exception, said: str
) -> None:
    start()
    server = logging.getLogger("aiohttp.server")
    server.error("Error handling request from %s", "127.0.0.1", exc_info=error)
    try:
        raise RuntimeError("wrapped") from error
    except RuntimeError:
        server.exception("Unhandled exception")
    for line in lines(tmp_path / "log"):
        assert (line["level"], line["error"]) == ("warning", said)
        assert "unknown-token" not in orjson.dumps(line).decode()


def test_a_second_configuration_takes_the_place_of_the_first(start: Callable[..., Logs], tmp_path: Path) -> None:
    start(file=tmp_path / "one")
    start(file=tmp_path / "two")
    log.warning("a")
    logging.getLogger("asyncio").warning("b")
    assert lines(tmp_path / "one") == []
    assert [line["event"] for line in lines(tmp_path / "two")] == ["a", "b"]


def test_after_rotation_a_new_file_is_written(start: Callable[..., Logs], tmp_path: Path) -> None:
    logs = start()
    log.info("before")
    (tmp_path / "log").rename(tmp_path / "log.1")
    log.info("between")
    logs.reopen()
    log.info("after")
    assert [line["event"] for line in lines(tmp_path / "log.1")] == ["before", "between"]
    assert [line["event"] for line in lines(tmp_path / "log")] == ["after"]


def test_a_file_that_cannot_be_reopened_leaves_the_old_one_in_use(start: Callable[..., Logs], tmp_path: Path) -> None:
    logs = start()
    (tmp_path / "log").rename(tmp_path / "log.1")
    (tmp_path / "log").mkdir()
    logs.reopen()
    log.info("still here")
    assert [line["event"] for line in lines(tmp_path / "log.1")] == ["log file not reopened", "still here"]


def test_a_file_that_cannot_be_opened_is_an_error_at_the_start(start: Callable[..., Logs], tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        start(file=tmp_path / "missing" / "log")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_loses_lines_and_nothing_else(start: Callable[..., Logs]) -> None:
    logs = start(file=Path("/dev/full"))
    log.info("lost")
    logs.access(record(), NOW)
    assert logs.dropped == 2


def test_a_pipe_without_a_reader_loses_lines_and_nothing_else() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        logs = configure("info", "json", None, Redactor([]), stream)
        log.info("read")
        assert orjson.loads(os.read(reader, 65536))["event"] == "read"
        os.close(reader)
        log.info("lost")
        assert logs.dropped == 1


def test_a_reader_that_stands_still_holds_up_nobody_and_finds_whole_lines_later() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream, os.fdopen(reader, "rb", buffering=0) as pipe:
        logs = configure("info", "json", None, Redactor([]), stream)
        written = 0
        while logs.dropped < 3:
            log.info("line", number=written, padding="x" * 9000)
            written += 1
        os.set_blocking(reader, False)
        got = b""
        while piece := pipe.read(1 << 20):
            got += piece
        log.info("last")
        got += pipe.read(1 << 20) or b""
        whole = [line for line in got.splitlines() if line.endswith(b"}")]
        events = [orjson.loads(line) for line in whole]
        assert [line["number"] for line in events[:-1]] == list(range(written - 3))
        assert events[-1]["event"] == "last"


def test_a_stream_without_a_descriptor_will_do() -> None:
    stream = io.StringIO()
    logs = configure("info", "auto", None, Redactor([]), stream)
    log.info("hello")
    assert orjson.loads(stream.getvalue())["event"] == "hello"
    stream.close()
    log.info("lost")
    assert logs.dropped == 1


def test_a_terminal_gets_the_console_form_in_colour() -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        configure("info", "auto", None, Redactor([]), terminal)
        log.warning("careful")
        shown = os.read(master, 4096).decode()
    os.close(master)
    assert "\x1b[33mwarning \x1b[0m careful" in shown


def test_a_line_costs_microseconds(start: Callable[..., Logs]) -> None:
    logs, done = start(), record()
    began = time.process_time()
    for _ in range(2000):
        logs.access(done, NOW)
        log.warning("key rests", upstream="gemini", key="ab12cd34", reason="429 per minute", seconds=17.0)
    each = (time.process_time() - began) / 4000
    assert each < 200e-6, "about 8 microseconds on an idle core; 30 are the limit there"


def test_standard_error_is_where_it_goes_unless_told(capfd: pytest.CaptureFixture[str]) -> None:
    configure("info", "json", None, Redactor([]))
    log.info("hello")
    sys.stderr.flush()
    assert '"event":"hello"' in capfd.readouterr().err
