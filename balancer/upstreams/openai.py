"""Servers that speak OpenAI's API: how a request carries its key, and what their answers mean for that key.

What an answer means, first row that fits (https://platform.openai.com/docs/guides/error-codes, .../guides/rate-limits and
recorded traffic; compatible servers write the same errors, with fewer members):

    2xx, 304                                              OK
    other 3xx                                             UPSTREAM   redirects are never followed
    401, 403 for a scope that the key lacks               as 403 below; to a probe OK: the key lives
    401, 403 with a code of DEAD_KEY_CODES                KEY        disabled
    402, 429 insufficient_quota                           KEY        project rests 1 h, doubled up to 24 h
    403 with an owned resource named                      CALLER
    other 403                                             KEY        no rest: another key may do what this one may not
    429 with a delay, or a limit that is used up          KEY        project x model rests that long
    other 429                                             KEY        project x model rests 10 s, doubled up to 5 min
    408                                                   UPSTREAM
    other 4xx, 501                                        CALLER     501: the method does not exist
    other 5xx                                             UPSTREAM

Codes and types are compared whole, and messages are not asked what disables or rests a key, because they repeat words of
the request: a caller must not be able to write them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from balancer.model import OK, Call, Disable, Headers, Judgement, Key, Outbound, Rest, Scope, Verdict
from balancer.upstreams.base import model_list, own_call, retry_after
from balancer.wire.headers import CLIENT_CREDENTIALS, first, sieve

DEAD_KEY_CODES = frozenset({"account_deactivated", "invalid_api_key", "unsupported_country_region_territory"})
"""Codes of a 403 with which every call of the key fails until its owner acts."""

_NO_MONEY = "insufficient_quota"
_SCOPE_MISSING = re.compile(r"You have insufficient permissions for this operation\b")
"""How OpenAI refuses a restricted key what lies outside its scopes, with 401 or 403 and no code."""

_LONGEST_DELAY = 86400.0
_EPOCH = 1e9
"""A number this large is a point in time and no delay."""
_REMAINING, _RESET = "x-ratelimit-remaining-", "x-ratelimit-reset-"
_NONE_LEFT = re.compile(r"0(?:\.0*)?|-[0-9]+")
_NUMBER = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,18})?")
_SPAN = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,18})?(?:ms|[dhms]))+")
_PART = re.compile(r"([0-9.]+)(ms|[dhms])")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_ANTHROPIC_VERSION = ("anthropic-version", "2023-06-01")
"""Anthropic's API, which looks for keys in x-api-key, answers nothing without it."""


class OpenAIKind:
    """Speaks to the server at `base_url`, to which paths are appended as clients know them behind `/v1`.

    `extra_headers` replace a client's fields of the name. The key goes into `key_header`: into authorization as Bearer, into
    another one bare. Other fields for credentials are left out, whoever wrote them.
    """

    def __init__(
        self, name: str, base_url: str, extra_headers: Mapping[str, str], key_header: str = "authorization"
    ) -> None:
        self.name = name
        self._base_url = base_url.rstrip("/")
        self._key_header = key_header
        self._scheme = "Bearer " if key_header == "authorization" else ""
        self._extra = [field for field in extra_headers.items() if field[0].lower() not in CLIENT_CREDENTIALS]
        self._passes = sieve(CLIENT_CREDENTIALS.union(field.lower() for field in extra_headers))

    def prepare(self, call: Call, key: Key) -> Outbound:
        """The call with its key."""
        passes = self._passes
        headers = [field for field in call.headers if passes[field[0]]]
        headers += self._extra
        headers.append((self._key_header, self._scheme + key.secret))
        return Outbound(call.method, self._base_url + call.path, headers)

    def judge(self, call: Call, status: int, headers: Headers, body: bytes) -> Judgement:
        """The table above. Any bytes may be `body`."""
        if status < 300 or status == 304:
            return OK
        if status < 400:
            return Judgement(Verdict.UPSTREAM, f"redirect {status}")
        if status == 408:
            return Judgement(Verdict.UPSTREAM, "408")
        if status >= 500:
            return _server_failed(status)
        error = _read(body)
        if status in (401, 403):
            return _refused(call, status, error)
        if status == 402 or (status == 429 and _NO_MONEY in (error.code, error.type)):
            reason = f"{status} {_NO_MONEY}" if status == 429 else "402 payment required"
            return Judgement(Verdict.KEY, reason, Rest(Scope.PROJECT, first=3600.0, cap=86400.0))
        if status == 429:
            return _limit_met(error, headers)
        return Judgement(Verdict.CALLER, _reason(status, error))

    def probe(self) -> Call:
        """Lists the models: free, and refused to dead keys."""
        return self._own(own_call("probe", "openai", "/models"))

    def catalogue(self) -> Call:
        """Lists the models."""
        return self._own(model_list())

    def _own(self, call: Call) -> Call:
        if self._key_header == "x-api-key":
            call.headers.append(_ANTHROPIC_VERSION)
        return call


@dataclass(frozen=True, slots=True)
class _Error:
    """What an error says of itself; "" where it says nothing, or nothing that is text."""

    code: str = ""
    type: str = ""
    message: str = ""


def _read(body: bytes) -> _Error:
    """The error in an answer's body. Google writes it into a list of one."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _Error()
    if isinstance(value, list) and value:
        value = value[0]
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict):
        return _Error()
    return _Error(*(text if isinstance(text := error.get(name), str) else "" for name in ("code", "type", "message")))


def _server_failed(status: int) -> Judgement:
    if status == 501:
        return Judgement(Verdict.CALLER, "501 not implemented")
    return Judgement(Verdict.UPSTREAM, str(status), correlates=str(status))


def _refused(call: Call, status: int, error: _Error) -> Judgement:
    """A 401 or 403: the key is dead, or may not do this one thing."""
    if _SCOPE_MISSING.match(error.message):
        if call.surface == "probe":
            return OK
    elif status == 401:
        return Judgement(Verdict.KEY, "401 not authenticated", Disable())
    elif error.code in DEAD_KEY_CODES:
        return Judgement(Verdict.KEY, f"403 {error.code}", Disable())
    if call.owned:
        return Judgement(Verdict.CALLER, _reason(status, error))
    return Judgement(Verdict.KEY, _reason(status, error))


def _limit_met(error: _Error, headers: Headers) -> Judgement:
    """A rate limit. Where neither a word for it nor a counter tells which, it may as well be our address that is refused."""
    resets = _resets(headers)
    named = error.code == "rate_limit_exceeded" or error.type == "rate_limit_error"  # OpenAI's word, and Anthropic's
    correlates = None if resets or named else "429"
    # A delay of nothing tells nothing; taken at its word it would have every key asked again at once, without end.
    delay = _milliseconds(first(headers, "retry-after-ms")) or retry_after(headers) or max(resets, default=0.0)
    if delay:
        rest = Rest(Scope.PROJECT_MODEL, seconds=min(delay, _LONGEST_DELAY))
        return Judgement(Verdict.KEY, "429 rate limit", rest, correlates)
    rest = Rest(Scope.PROJECT_MODEL, first=10.0, cap=300.0)
    return Judgement(Verdict.KEY, "429 without a delay", rest, correlates)


def _milliseconds(value: str | None) -> float | None:
    """Seconds."""
    found = _NUMBER.fullmatch((value or "").strip())
    return None if found is None else float(found[0]) / 1000


def _resets(headers: Headers) -> list[float]:
    """Seconds until each limit that is used up lets something through again; 0 where the answer does not say."""
    fields = {name.lower(): value.strip() for name, value in headers}
    return [
        _seconds(fields.get(_RESET + name.removeprefix(_REMAINING), ""))
        for name, value in fields.items()
        if name.startswith(_REMAINING) and _NONE_LEFT.fullmatch(value)
    ]


def _seconds(text: str) -> float:
    """Of `1s`, `6m0s`, `120ms`, `1h2m3s` or plain seconds; 0 of anything else."""
    if _NUMBER.fullmatch(text):
        number = float(text)
        return number if number < _EPOCH else 0.0
    if not _SPAN.fullmatch(text):
        return 0.0
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


def _reason(status: int, error: _Error) -> str:
    """The status and the error's code or type, if that is one word: nothing else of a body goes into a reason."""
    word = error.code or error.type
    return f"{status} {word}" if re.fullmatch(r"[a-z_]{1,48}", word) else str(status)
