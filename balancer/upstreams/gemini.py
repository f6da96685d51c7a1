"""The Gemini API: how a request carries its key, and what Google's answers mean for that key.

What an answer means, first row that fits (https://ai.google.dev/gemini-api/docs/troubleshooting and recorded traffic):

    2xx, 304, 308 without Location                        OK
    other 3xx                                             UPSTREAM   redirects are never followed
    401, 403 about a credential that the caller sent      CALLER
    400, 401, 403 with a reason or sentence of DEAD_KEY,
    any other 401                                         KEY        disabled
    other 4xx but 429                                     CALLER
    429 with a limit of 0                                 KEY        key x model rests a day: this tier never serves it
    429 per day                                           KEY        project x model rests until the quota day ends
    429 with RetryInfo or Retry-After                     KEY        project x model rests that long
    other 429                                             KEY        project x model rests 5 s, doubled up to 5 min
    501                                                   CALLER     the method does not exist
    other 5xx                                             UPSTREAM

Sentences are matched at their beginning only, because Google's messages repeat words of the request: a caller must not be
able to write what disables a key. Errors whose code is a word (the interactions family) have neither reasons nor
those sentences, so that their HTTP status alone decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from balancer.model import (
    OK,
    Call,
    Disable,
    Headers,
    Judgement,
    Key,
    Outbound,
    Rest,
    Scope,
    Verdict,
)
from balancer.upstreams.base import model_list, own_call, retry_after
from balancer.wire import google
from balancer.wire.google import GoogleError, Quota
from balancer.wire.headers import first, sieve
from balancer.wire.often import BySpelling

DEAD_KEY_REASONS = re.compile(
    r"API_KEY_(?:INVALID|EXPIRED|[A-Z_]+_BLOCKED)|CONSUMER_(?:SUSPENDED|INVALID)|(?:SERVICE|BILLING)_DISABLED"
)
"""ErrorInfo reasons (google.api.ErrorReason) with which every call of the key fails until its owner acts."""

DEAD_KEY_SENTENCES: tuple[tuple[int, re.Pattern[str], str], ...] = (
    (400, re.compile(r"API key expired"), "API key expired"),
    (400, re.compile(r"API key not valid"), "API key not valid"),
    (403, re.compile(r"(?:Your|The|This) API key (?:was|has been) reported as leaked"), "key reported as leaked"),
    (403, re.compile(r"(?:Your|The|This) project has been denied access"), "project denied access"),
    (403, re.compile(r"(?:Permission denied: )?Consumer '[^']*' has been suspended"), "consumer suspended"),
)
"""HTTP status, beginning of the message, reason for operators."""

_LEAKED = "key reported as leaked"
_NO_ACCESS_TEXT = re.compile(r"\blimit: 0(?!\.?\d)")
_OWN_CREDENTIALS = frozenset({"authorization", "x-goog-user-project"})
_OPENAI = "/v1beta/openai"
_BELOW_OPENAI = _OPENAI + "/"
_DAY = 86400.0


class GeminiKind:
    """Speaks to the Gemini API at `base_url` (a path prefix is kept). `extra_headers` replace a client's fields of the name."""

    def __init__(self, name: str, base_url: str, extra_headers: Mapping[str, str]) -> None:
        self.name = name
        self._base_url = base_url.rstrip("/")
        self._google = _Fields.of(extra_headers, {"x-goog-api-key"})
        self._bearer = _Fields.of(extra_headers, {"x-goog-api-key", "authorization"})

    def prepare(self, call: Call, key: Key) -> Outbound:
        """The call with its key: in `x-goog-api-key`, or as Bearer on the paths of OpenAI's dialect. Google refuses both in one.

        A raw call has its path already, whatever it speaks.
        """
        path = call.path
        if call.dialect == "openai" and call.surface != "raw":
            path = _OPENAI + path
        if path.startswith(_BELOW_OPENAI):
            fields, credential = self._bearer, ("authorization", f"Bearer {key.secret}")
        else:
            fields, credential = self._google, ("x-goog-api-key", key.secret)
        passes = fields.passes
        headers = [field for field in call.headers if passes[field[0]]]
        headers += fields.added
        headers.append(credential)
        return Outbound(call.method, self._base_url + path, headers)

    def judge(self, call: Call, status: int, headers: Headers, body: bytes) -> Judgement:
        """The table above. Any bytes may be `body`."""
        if status < 300 or status == 304:
            return OK
        if status < 400:
            # 308 without Location is "Resume Incomplete" of the older resumable uploads.
            resume = status == 308 and first(headers, "location") is None
            return OK if resume else Judgement(Verdict.UPSTREAM, f"redirect {status}")
        error = google.parse(body) or GoogleError()
        borrowed = _shows_own_credential(call)
        project = None if borrowed else error.consumer
        if status == 429:
            return _quota_met(error, headers, project)
        if status >= 500:
            return _server_failed(status, project)
        dead = _dead_key(status, error)
        if dead is None or (borrowed and status in (401, 403)):
            return Judgement(Verdict.CALLER, f"{status} {_word(error.status)}".rstrip(), project=project)
        return Judgement(Verdict.KEY, dead, Disable(alert=dead == _LEAKED), project=project)

    def probe(self) -> Call:
        """Lists one model: free, and refused to dead keys."""
        return own_call("probe", "gemini", "/v1beta/models?pageSize=1")

    def catalogue(self) -> Call:
        """Lists the models, without pages and in OpenAI's shape."""
        return model_list()


@dataclass(frozen=True, slots=True)
class _Fields:
    """What changes in a request's fields for one way of showing the key: which of them pass, and what is added."""

    passes: BySpelling[bool | None]
    added: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, extra_headers: Mapping[str, str], credentials: set[str]) -> Self:
        added = tuple(field for field in extra_headers.items() if field[0].lower() not in credentials)
        return cls(sieve(credentials.union(field.lower() for field in extra_headers)), added)


def _shows_own_credential(call: Call) -> bool:
    """Whether a credential of the caller's own travels, or had to (files:register): what is said of it is not said of the key."""
    if call.dialect == "openai":
        return False
    if call.path.partition("?")[0].endswith(":register"):
        return True
    return any(field.lower() in _OWN_CREDENTIALS for field, _ in call.headers)


def _dead_key(status: int, error: GoogleError) -> str | None:
    """Why the key is of no more use; None if nothing says so."""
    if status not in (400, 401, 403):
        return None
    if not isinstance(error.code, str):
        for where, sentence, reason in DEAD_KEY_SENTENCES:
            if status == where and sentence.match(error.message):
                return reason
        for reason in error.reasons:
            if DEAD_KEY_REASONS.fullmatch(reason):
                return reason
    return "401 not authenticated" if status == 401 else None


def _quota_met(error: GoogleError, headers: Headers, project: str | None) -> Judgement:
    correlates = None if error.itemised else "429"
    reason, rest = _rest(error, headers)
    return Judgement(Verdict.KEY, reason, rest, correlates, project)


def _rest(error: GoogleError, headers: Headers) -> tuple[str, Rest]:
    if _NO_ACCESS_TEXT.search(error.message) or any(quota.value == "0" for quota in error.quotas):
        return "429 limit 0", Rest(Scope.KEY_MODEL, seconds=_DAY)
    period = _period(error.quotas)
    if period == "day":
        return "429 per day", Rest(Scope.PROJECT_MODEL, until_quota_day=True)
    reason = f"429 per {period}" if period else "429"
    # A delay of nothing tells nothing; taken at its word it would have every key asked again at once, without end.
    delay = error.retry_delay or retry_after(headers)
    if delay:
        return reason, Rest(Scope.PROJECT_MODEL, seconds=min(delay, google.LONGEST_DELAY))
    return f"{reason} without a delay", Rest(Scope.PROJECT_MODEL, first=5.0, cap=300.0)


def _period(quotas: tuple[Quota, ...]) -> str | None:
    """The longest period whose limit was met."""
    for period in ("Day", "Hour", "Minute", "Second"):
        if any(f"Per{period}" in quota.id for quota in quotas):
            return period.lower()
    return None


def _server_failed(status: int, project: str | None) -> Judgement:
    if status == 501:
        return Judgement(Verdict.CALLER, "501 not implemented", project=project)
    return Judgement(Verdict.UPSTREAM, str(status), correlates=str(status), project=project)


def _word(status: str) -> str:
    """Google's status word, if it is one: nothing else of an answer's body goes into a reason."""
    return status if re.fullmatch(r"[A-Z_]{1,32}", status) else ""
