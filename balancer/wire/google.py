"""Google's error dialect: how errors of ours are written in it, and what errors of Google's say.

https://cloud.google.com/apis/design/errors: `{"error": {"code", "message", "status", "details": [...]}}`. Seen in the wild
are also that object in a list of one (OpenAI-compatible and streaming calls without `alt=sse`), the same as plain JSON
or as `data:` lines under the type text/event-stream, and, from the interactions family, `{"error": {"message", "code":
"a_word"}}` without status and details.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from balancer.errors import ProxyError

LONGEST_DELAY = 86400.0
"""Seconds to which a provider's delays are cut."""

_TYPE = "type.googleapis.com/google.rpc."
_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    412: "FAILED_PRECONDITION",
    416: "OUT_OF_RANGE",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_FAILED_PRECONDITION = frozenset({"resources_on_different_keys", "model_inactive"})
"""Codes of 400 that are about the state of things and not about the request."""

_DURATION = re.compile(r"(-?[0-9]{1,18}(?:\.[0-9]{1,18})?)s?")
_PROJECT = re.compile(r"projects/[A-Za-z0-9:._-]{1,128}")
_EVENTS = 32
"""How many `data:` events of a body are looked at."""


def render(error: ProxyError) -> bytes:
    """An error of ours as Google would write it."""
    details: list[dict[str, Any]] = []
    if error.retry_after is not None:
        details.append({"@type": _TYPE + "RetryInfo", "retryDelay": _duration(error.retry_after)})
    details.append({"@type": _TYPE + "ErrorInfo", "reason": error.code.upper(), "domain": "balancer"})
    content = {
        "code": error.status,
        "message": error.message.encode("utf-8", "backslashreplace").decode(),
        "status": _status(error),
        "details": details,
    }
    return orjson.dumps({"error": content})


def _status(error: ProxyError) -> str:
    if error.status == 400 and error.code in _FAILED_PRECONDITION:
        return "FAILED_PRECONDITION"
    return _STATUS.get(error.status) or ("INTERNAL" if error.status >= 500 else "INVALID_ARGUMENT")


def _duration(seconds: float) -> str:
    """google.protobuf.Duration in JSON, rounded up to milliseconds: "12s", "1.5s"."""
    text = f"{math.ceil(max(0.0, seconds) * 1000) / 1000:.3f}"
    return text.rstrip("0").rstrip(".") + "s"


@dataclass(frozen=True, slots=True)
class Quota:
    """One limit that was met, in Google's words; "" where it said nothing. `model` is Google's name of it, not an alias."""

    id: str = ""
    metric: str = ""
    model: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True)
class GoogleError:
    """What an error says. `code` is an HTTP status; in the interactions family a word.

    `retry_delay`: seconds, 0 to LONGEST_DELAY. `consumer`: "projects/…", and nothing else that Google puts there (keys, too).
    `itemised`: it had a QuotaFailure; `quotas` also holds the limit that an ErrorInfo names.
    """

    code: int | str | None = None
    status: str = ""
    message: str = ""
    reasons: tuple[str, ...] = ()
    consumer: str | None = None
    retry_delay: float | None = None
    quotas: tuple[Quota, ...] = ()
    itemised: bool = False


def parse(body: bytes) -> GoogleError | None:
    """The error in an answer's body; None if there is none. Takes any bytes and raises nothing."""
    for value in _values(body):
        for each in value if isinstance(value, list) else (value,):
            if isinstance(each, dict) and "error" in each:
                return _read(each["error"])
    return None


def _values(body: bytes) -> Iterator[Any]:
    """The JSON values that a body may be meant as: itself, else those of its events."""
    text = body.removeprefix(b"\xef\xbb\xbf").strip()
    if text[:1] in (b"{", b"["):
        yield _load(text)
        return
    lines = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for event in lines.split(b"\n\n", _EVENTS)[:_EVENTS]:
        data = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
        if data:
            yield _load(b"\n".join(data))


def _load(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:  # bytes that are not UTF-8 and halves of surrogate pairs, which a cut made in a message leaves behind
        return json.loads(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def _read(error: Any) -> GoogleError:
    if not isinstance(error, dict):
        return GoogleError(message=_text(error))
    code = error.get("code")
    given = error.get("details")
    details = [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    metadata = [each for each in (detail.get("metadata") for detail in details) if isinstance(each, dict)]
    failures = [each for each in (detail.get("violations") for detail in details) if isinstance(each, list)]
    quotas = [_quota(each) for failure in failures for each in failure if isinstance(each, dict)]
    named = [_named_quota(each) for each in metadata if "quota_limit" in each]
    return GoogleError(
        code=code if isinstance(code, int | str) and not isinstance(code, bool) else None,
        status=_text(error.get("status")),
        message=_text(error.get("message")),
        reasons=tuple(reason for detail in details if (reason := _text(detail.get("reason")))),
        consumer=next((found for each in metadata if _PROJECT.fullmatch(found := _text(each.get("consumer")))), None),
        retry_delay=next((delay for each in details if (delay := _delay(each.get("retryDelay"))) is not None), None),
        quotas=tuple(quotas + named),
        itemised=bool(failures),
    )


def _quota(violation: dict[str, Any]) -> Quota:
    dimensions = violation.get("quotaDimensions")
    return Quota(
        id=_text(violation.get("quotaId")),
        metric=_text(violation.get("quotaMetric")),
        model=_text(dimensions.get("model")) if isinstance(dimensions, dict) else "",
        value=_text(violation.get("quotaValue")),
    )


def _named_quota(metadata: dict[str, Any]) -> Quota:
    return Quota(
        id=_text(metadata.get("quota_limit")),
        metric=_text(metadata.get("quota_metric")),
        value=_text(metadata.get("quota_limit_value")),
    )


def _text(value: Any) -> str:
    """A string; a number as its digits (int64 values are written both ways); "" for all else."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _delay(value: Any) -> float | None:
    found = _DURATION.fullmatch(_text(value))
    return None if found is None else min(max(float(found[1]), 0.0), LONGEST_DELAY)
