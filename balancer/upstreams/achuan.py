"""A chat backend that keeps the conversation itself: how its two calls carry a key, and what its answers mean for that key.

Keys are JSON Web Tokens, sent bare. One `userId` is one account, whose sessions each of its keys may use. What an answer
means, first row that fits; a code is the number in a refusal (wire/achuan.py), whatever the HTTP status around it:

    a refusal that says the session does not exist     OK         and the conversation is stale
    401, code 401                                      KEY        disabled
    403, code 403                                      KEY        rests 5 min, doubled up to 1 h: an origin check, no dead key
    429, code 429                                      KEY        rests for Retry-After, else 60 s
    402, code 402                                      KEY        rests 1 h, doubled up to 24 h
    any other refusal in a 2xx, a 2xx without answer   UPSTREAM
    2xx                                                OK
    3xx, 408, 425                                      UPSTREAM   redirects are never followed
    other 4xx                                          CALLER
    5xx                                                UPSTREAM

Rests hold for the key, whatever the model: that is the session's, and leases of this kind name none.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from balancer.errors import AnswerStalled, FirstByteTimeout, ProxyError, UpstreamError
from balancer.model import OK, Call, Disable, Headers, Judgement, Key, Outbound, Rest, Scope, Verdict
from balancer.upstreams.base import retry_after
from balancer.upstreams.conversing import AS_USUAL, Finding, Keeping, Question, Trouble
from balancer.wire import achuan, jwt_claims
from balancer.wire.achuan import Created, Ending, Reading, Refused
from balancer.wire.chat_messages import Message
from balancer.wire.headers import CLIENT_CREDENTIALS

EMPTY = Judgement(Verdict.UPSTREAM, "empty answer")
"""What an answer means that said nothing."""
NO_SESSION = (1 << 31) - 1
"""A number that every backend takes for an id and none has given to a session: its numbers are counted up from 1."""
LONGEST_TEXT = 500
"""Characters of the backend's own words in an error of ours."""

_AS_PASTED = re.compile(r"(?:(?<!:/)/api(?:/chat(?:/completions)?)?)?/*\Z")
_LONGEST_DELAY = 86400.0
_DEFAULT_DELAY = 60.0
_OURS = frozenset({"authorization", "content-type", "accept", "accept-encoding"})

_Fields = list[tuple[str, str]]


class AchuanKind:
    """Speaks to the backend at `base_url`. `extra_headers` go with every call; none of them replaces what the wire fixes."""

    def __init__(self, name: str, base_url: str, extra_headers: Mapping[str, str], keeping: Keeping = AS_USUAL) -> None:
        self.name = name
        self.keeping = keeping
        self._origin = origin(base_url)
        self._extra: _Fields = [field for field in extra_headers.items() if field[0].lower() not in _OURS]

    def create(self, model: str, key: Key, members: Mapping[str, Any] | None = None) -> Question:
        """Asks for a new session. `members`: what a caller wants beside the model."""
        return self._question(achuan.SESSION_PATH, key, achuan.creation(model, members))

    def complete(self, conversation: str, message: Message, key: Key) -> Question:
        """Says the next thing in a session, which is a number; the answer is events."""
        content = achuan.completion(int(conversation), message.text, message.files)
        return self._question(achuan.COMPLETIONS_PATH, key, content, ("accept", "text/event-stream"))

    def probe(self, key: Key) -> Question:
        """Speaks to a session that does not exist: makes nothing, costs nothing, and only a live key is told so.

        A session created to see whether a key lives would stay in its owner's list, one an hour.
        """
        return self.complete(str(NO_SESSION), Message("ping"), key)

    def _question(self, path: str, key: Key, content: bytes, *more: tuple[str, str]) -> Question:
        headers = [*self._extra, ("content-type", "application/json"), *more]
        headers += [("accept-encoding", "identity"), ("authorization", key.secret)]
        return Question(Outbound("POST", self._origin + path, headers), content)

    def reading(self) -> Reading:
        return Reading()

    def prepare(self, call: Call, key: Key) -> Outbound:
        """A raw call with its key."""
        replaced = CLIENT_CREDENTIALS.union(name.lower() for name, _ in self._extra)
        headers = [each for each in call.headers if each[0].lower() not in replaced]
        headers += [*self._extra, ("authorization", key.secret)]
        return Outbound(call.method, self._origin + call.path, headers)

    def judge(self, call: Call, status: int, headers: Headers, body: bytes) -> Judgement:
        """What a raw call's answer means, by its status alone: its body is that of any path."""
        return OK if status < 300 or status == 304 else _by_number(status, headers)

    def created(self, status: int, headers: Headers, body: bytes) -> Created | Finding:
        """What an answer to `create` says."""
        if not 200 <= status < 300:
            return self.find(status, headers, body)
        match achuan.created(body):
            case Created() as made:
                return made
            case Refused() as refused:
                return self.refused(refused, status, headers)
            case None:
                return unreadable(status) if body.strip() else empty(status)

    def find(self, status: int, headers: Headers, body: bytes) -> Finding:
        """What an answer means that was read whole: one of error, or the answer to a probe. Any bytes may be `body`."""
        refused, ending = achuan.read_whole(body)
        fine = 200 <= status < 300
        if refused is not None and (fine or achuan.is_stale(refused)):
            return self.refused(refused, status, headers)
        if not fine:
            return Finding(_by_number(status, headers), None, status, achuan.error_text(body))
        match ending:
            case Ending.WHOLE:
                return Finding(OK, status=status)
            case Ending.EMPTY:
                return empty(status)
            case Ending.CUT:
                return unreadable(status)

    def refused(self, refused: Refused, status: int, headers: Headers) -> Finding:
        """What a refusal means that came as an event of an answer with this HTTP status."""
        number = refused.code or status
        if achuan.is_stale(refused):
            return Finding(Judgement(Verdict.OK, "no such session"), Trouble.STALE, number, refused.err, True)
        judgement = _by_number(refused.code, headers) if refused.code in _OF_THE_KEY else None
        if judgement is None:
            reason = "refusal" if refused.code is None else f"refusal {refused.code}"
            judgement = Judgement(Verdict.UPSTREAM, reason)
        return Finding(judgement, None, number, refused.err, True)

    def told(self, cause: Finding | UpstreamError, text: str) -> ProxyError:
        """How the caller learns of a failure: in the words that clients of this backend look for."""
        match cause:
            case Finding(judgement=judgement) if judgement is EMPTY:
                return ProxyError(502, "backend_empty_body", "后端返回空内容")
            case Finding():
                return backend_error(cause, text)
            case FirstByteTimeout() | AnswerStalled():
                return ProxyError(504, "upstream_timeout", f"The upstream {self.name} gave {text}.")
            case _:
                return ProxyError(502, "backend_connection_error", f"后端连接失败: {text}")

    def missing(self, conversation: str) -> ProxyError:
        return ProxyError(404, "session_not_found", f"对话不存在: {conversation}")

    def seconds_left(self, key: Key, wall: float) -> float | None:
        expires = jwt_claims.read(key.secret).expires
        return None if expires is None else expires - wall


def empty(status: int) -> Finding:
    """What it means that an answer said nothing."""
    return Finding(EMPTY, status=status)


def unreadable(status: int) -> Finding:
    """What it means that an answer said something else than answers do."""
    return Finding(Judgement(Verdict.UPSTREAM, "unreadable answer"), status=status)


def origin(base_url: str) -> str:
    """A base URL without what people paste along with it: a slash, `/api`, `/api/chat` or `/api/chat/completions`."""
    return _AS_PASTED.sub("", base_url, count=1).rstrip("/")


def with_account(key: Key) -> Key:
    """The key with its account as the owner of what is made with it, unless the configuration names another."""
    user = None if key.project else jwt_claims.read(key.secret).user
    return dataclasses.replace(key, project=user) if user is not None else key


def backend_error(finding: Finding, text: str) -> ProxyError:
    """The caller's error for an answer whose fault it or the backend was. `text`: the backend's words, masked."""
    status = finding.status if finding.judgement.verdict is Verdict.CALLER else 502
    return ProxyError(status, "backend_error", f"后端错误({finding.status}): {text[:LONGEST_TEXT]}")


def _by_number(number: int | None, headers: Headers) -> Judgement:
    """The rows of the table that a number decides."""
    match number:
        case 401:
            return Judgement(Verdict.KEY, "401 expired or revoked", Disable())
        case 403:
            return Judgement(Verdict.KEY, "403", Rest(Scope.KEY, first=300.0, cap=3600.0))
        case 429:
            return Judgement(Verdict.KEY, "429", Rest(Scope.KEY, seconds=_delay(headers)))
        case 402:
            return Judgement(Verdict.KEY, "402", Rest(Scope.KEY, first=3600.0, cap=86400.0))
        case int() if 400 <= number < 500 and number not in (408, 425):
            return Judgement(Verdict.CALLER, str(number))
        case _:
            return Judgement(Verdict.UPSTREAM, str(number))


_OF_THE_KEY = frozenset({401, 402, 403, 429})
"""Codes of refusals that are about the key, like the HTTP statuses of these numbers."""


def _delay(headers: Headers) -> float:
    """Seconds of Retry-After. A delay of nothing tells nothing."""
    delay = retry_after(headers)
    return min(delay, _LONGEST_DELAY) if delay else _DEFAULT_DELAY
