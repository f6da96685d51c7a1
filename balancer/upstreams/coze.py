"""Coze: bots that keep the conversation themselves. How its calls carry a key, and what its answers mean for that key.

Models are bots. A conversation, and a file, belong to the key that made it. What an answer means, first row that fits; a code is
the number in an envelope or in an event (wire/coze.py), whatever the HTTP status around it; `as` is the status that people are
shown unless the answer's own is one of error (https://www.coze.cn/open/docs/developer_guides/coze_error_codes):

    code                                       as
    4003 4004 4005 4010 4014 4105              400   CALLER     the message itself
    4002, 4200 where a conversation is named   404   OK         and the conversation is stale
    4016                                       409   OK         and the conversation is busy
    4008                                       429   KEY        rests until midnight UTC+8
    4020                                       429   KEY        rests for Retry-After, else 60 s
    4011 4019 4022                             429   KEY        rests 1 h, doubled up to 24 h
    4102                                       403   KEY        rests 1 h
    4100 700012006, 4101                       401   KEY        disabled (4101: 403)
    4009 4013                                  429   UPSTREAM   overloaded
    4314 4315                                  500   UPSTREAM
    other 4xxx, requires_action                400   CALLER     a setting
    any other code, canceled                   500   UPSTREAM
    without a code: HTTP 401                   401   KEY        disabled
                    HTTP 429                   429   KEY        as 4020
                    HTTP 5xx, 3xx, 408, 425    500   UPSTREAM   redirects are never followed
                    no envelope                500   UPSTREAM
                    other 4xx                  400   CALLER     a setting

Rests hold for the key and every bot.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

from balancer.clock import Clock
from balancer.errors import AnswerStalled, ConnectFailed, FirstByteTimeout, ProxyError, UpstreamError
from balancer.model import OK, Call, Disable, Headers, Judgement, Key, Outbound, Rest, Scope, Verdict
from balancer.upstreams.base import retry_after
from balancer.upstreams.conversing import Finding, Keeping, Question, Trouble
from balancer.wire import coze
from balancer.wire.coze import Began, Failure, Good, Reading
from balancer.wire.coze_messages import Upload
from balancer.wire.headers import CLIENT_CREDENTIALS

DEFAULT_USER = "default_user"
NO_CONVERSATION = "1000000000000000001"
"""A conversation that every backend takes for an id and none has given: its ids are counted by the clock from 2023 on."""
BUSY_PAUSES: Final = (0.5, 1.0, 2.0, 4.0)
"""Seconds between attempts while another chat runs in the conversation; the last for all that follow."""
OVERLOADED_PAUSES: Final = (1.0, 2.0)
"""Seconds between attempts where Coze says that it is overloaded: as many more."""
POLL = 1.0
"""Seconds between two looks at a chat that is not streamed: Coze asks for no more than that."""
LONGEST_TEXT = 500
"""Characters of Coze's own words in an error of ours."""

_OF_THE_MESSAGE = frozenset({4003, 4004, 4005, 4010, 4014, 4105})
_NOT_FOUND = frozenset({4002, 4200})
_UNPAID = frozenset({4011, 4019, 4022})
_DEAD = frozenset({4100, 4101, 700012006})
_OVERLOADED = frozenset({4009, 4013})
_UPSTREAM = frozenset({4314, 4315})
_NOT_CANCELABLE = 4104

_AS_PASTED = re.compile(r"(?:(?<!:/)/v[13])?/*\Z")
_DAY = 86400
_EAST_OF_UTC = 8 * 3600
_LONGEST_DELAY = 86400.0
_DEFAULT_DELAY = 60.0
_OURS = frozenset({"authorization", "content-type", "accept", "accept-encoding"})

_Fields = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class CozeFinding(Finding):
    """`code`: Coze's number; `shown`: the HTTP status that people are told; `logid`: what Coze knows the answer by."""

    code: int | None = None
    shown: int = 200
    logid: str | None = None
    reason: str = ""
    """requires_action or canceled, where that is how the chat ended."""

    @property
    def of_message(self) -> bool:
        """Whether the message itself was unacceptable, and not a setting of ours."""
        return self.code in _OF_THE_MESSAGE

    @property
    def overloaded(self) -> bool:
        """Whether Coze asks for the same a little later."""
        return self.code in _OVERLOADED


class CozeKind:
    """Speaks to the API at `base_url`. `bots`: model to bot id; `user_id`: for calls that name no user. `extra_headers` go with
    every call; none of them replaces what the wire fixes.

    The keys need the permissions chat, getChat, listMessage, cancelChat, retrieveConversation and, for files, uploadFile.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        extra_headers: Mapping[str, str],
        bots: Mapping[str, str],
        user_id: str,
        clock: Clock,
        keeping: Keeping | None = None,
    ) -> None:
        self.name = name
        self.keeping = keeping or Keeping()
        self.bots = dict(bots)
        self._user = user_id
        self._origin = origin(base_url)
        self._extra: _Fields = [field for field in extra_headers.items() if field[0].lower() not in _OURS]
        self._clock = clock

    def chat(
        self,
        model: str,
        messages: Sequence[Any],
        key: Key,
        conversation: str | None = None,
        user: str | None = None,
    ) -> Question:
        """A turn: `messages` as `coze_messages.rendered` makes them. Without a conversation Coze opens one."""
        content = coze.chat(self.bots[model], user or self._user, messages)
        query = _query(conversation_id=conversation) if conversation is not None else ""
        return self._post(coze.CHAT_PATH + query, key, content, accept="text/event-stream")

    def retrieve(self, began: Began, key: Key) -> Question:
        """How a chat that is not streamed is going."""
        return self._get(coze.RETRIEVE_PATH, key, conversation_id=began.conversation, chat_id=began.chat)

    def messages(self, began: Began, key: Key) -> Question:
        """What a completed chat said."""
        return self._get(coze.MESSAGES_PATH, key, conversation_id=began.conversation, chat_id=began.chat)

    def cancel(self, began: Began, key: Key) -> Question:
        """Ends a chat, though not a stream of it."""
        return self._post(coze.CANCEL_PATH, key, coze.cancel(began))

    def look_up(self, conversation: str, key: Key) -> Question:
        """Whether the key knows the conversation."""
        return self._get(coze.LOOK_UP_PATH, key, conversation_id=conversation)

    def upload(self, file: Upload, key: Key) -> Question:
        """Makes a file that chats of the same key may name; its id is `coze.id_of` of the reply's data."""
        boundary = f"balancer-{secrets.token_hex(16)}"
        content = coze.upload(file.name, file.media_type, file.data, boundary)
        return self._post(coze.UPLOAD_PATH, key, content, content_type=f"multipart/form-data; boundary={boundary}")

    def probe(self, key: Key) -> Question:
        """Looks up a conversation that does not exist: makes nothing, costs nothing, and only a live key is told so."""
        return self.look_up(NO_CONVERSATION, key)

    def reading(self) -> Reading:
        return Reading()

    def prepare(self, call: Call, key: Key) -> Outbound:
        """A raw call with its key."""
        replaced = CLIENT_CREDENTIALS.union(name.lower() for name, _ in self._extra)
        headers = [each for each in call.headers if each[0].lower() not in replaced]
        headers += [*self._extra, ("authorization", f"Bearer {key.secret}")]
        return Outbound(call.method, self._origin + call.path, headers)

    def judge(self, call: Call, status: int, headers: Headers, body: bytes) -> Judgement:
        """What a raw call's answer means: of a good one nothing is read."""
        if status < 300 or status == 304:
            return OK
        finding = self.find(status, headers, body, named=False)
        return Judgement(Verdict.CALLER, str(status)) if finding.trouble is not None else finding.judgement

    def find(self, status: int, headers: Headers, body: bytes, *, named: bool = True) -> CozeFinding:
        """What an answer means that was read whole. `named`: its request named a conversation. Any bytes may be `body`."""
        return self._judged(coze.reply(body), status, headers, named)

    def read(self, status: int, headers: Headers, body: bytes, *, named: bool = True) -> Good | CozeFinding:
        """The data of an answer that says yes, else what it means."""
        said = coze.reply(body)
        if isinstance(said, Good) and 200 <= status < 300:
            return said
        return self._judged(said, status, headers, named)

    def failed(self, failure: Failure, headers: Headers, *, named: bool) -> CozeFinding:
        """What a failure means that came as an event, or as the state of a chat, in a good answer."""
        return self._judged(failure, 200, headers, named)

    def canceled(self, status: int, headers: Headers, body: bytes) -> CozeFinding:
        """What an answer to `cancel` means: a chat that runs no more is as good."""
        finding = self.find(status, headers, body)
        return replace(finding, judgement=OK) if finding.code == _NOT_CANCELABLE else finding

    def told(self, cause: Finding | UpstreamError, text: str) -> ProxyError:
        """How a caller in OpenAI's dialect learns of a failure. `text`: Coze's words, masked, or what the error says."""
        match cause:
            case CozeFinding(trouble=Trouble.BUSY):
                return busy_error()
            case CozeFinding():
                return openai_error(cause, text)
            case FirstByteTimeout() | AnswerStalled():
                return ProxyError(504, "upstream_timeout", f"The upstream {self.name} gave {text}.")
            case ConnectFailed():
                return ProxyError(502, "upstream_unreachable", f"The upstream {self.name} cannot be reached: {text}")
            case _:
                return ProxyError(502, "upstream_error", f"The upstream {self.name} gave no usable answer: {text}")

    def missing(self, conversation: str) -> ProxyError:
        return ProxyError(404, "session_not_found", f"会话不存在 - conversation_id: {conversation}")

    def seconds_left(self, key: Key, wall: float) -> float | None:
        """Personal access tokens do not tell."""
        return None

    def _judged(self, said: Good | Failure | None, status: int, headers: Headers, named: bool) -> CozeFinding:
        failure = said if isinstance(said, Failure) else None
        fine = 200 <= status < 300
        if fine and isinstance(said, Good):
            return CozeFinding(OK, status=status, logid=coze.logid_of(headers, None))
        if failure is not None and (failure.code is not None or failure.reason):
            found = self._by_code(failure, headers, named)
        else:
            found = _by_status(status, headers, envelope=said is not None)
        judgement, trouble, shown = found
        return CozeFinding(
            judgement,
            trouble,
            (failure.code if failure is not None else None) or status,
            failure.msg if failure is not None else "",
            failure is not None,
            failure.code if failure is not None else None,
            status if status >= 400 else shown,
            coze.logid_of(headers, failure),
            failure.reason if failure is not None else "",
        )

    def _by_code(self, failure: Failure, headers: Headers, named: bool) -> _Found:
        """The rows of the table that a code or the state of a chat decides."""
        code = failure.code
        match code:
            case None:
                wrong = Verdict.CALLER if failure.reason == coze.REQUIRES_ACTION else Verdict.UPSTREAM
                return Judgement(wrong, failure.reason), None, 400 if wrong is Verdict.CALLER else 500
            case 4016:
                return Judgement(Verdict.OK, "conversation busy"), Trouble.BUSY, 409
            case 4008:
                rest = Rest(Scope.KEY, seconds=until_midnight(self._clock.wall()))
                return Judgement(Verdict.KEY, "4008 per day", rest), None, 429
            case 4020:
                return _limited("4020", headers), None, 429
            case 4102:
                return Judgement(Verdict.KEY, "4102", Rest(Scope.KEY, seconds=3600.0)), None, 403
            case _ if code in _UNPAID:
                rest = Rest(Scope.KEY, first=3600.0, cap=86400.0)
                return Judgement(Verdict.KEY, f"{code} unpaid", rest), None, 429
            case _ if code in _DEAD:
                return Judgement(Verdict.KEY, f"{code} refused", Disable()), None, 403 if code == 4101 else 401
            case _ if code in _NOT_FOUND and named:
                return Judgement(Verdict.OK, "no such conversation"), Trouble.STALE, 404
            case _ if code in _OVERLOADED:
                return Judgement(Verdict.UPSTREAM, f"{code} overloaded"), None, 429
            case _ if 4000 <= code < 5000 and code not in _UPSTREAM:
                return Judgement(Verdict.CALLER, str(code)), None, 400
            case _:
                return Judgement(Verdict.UPSTREAM, str(code)), None, 500

    def _get(self, path: str, key: Key, **query: str) -> Question:
        headers = [*self._extra, ("accept", "application/json"), *_credential(key)]
        return Question(Outbound("GET", self._origin + path + _query(**query), headers), b"")

    def _post(
        self,
        target: str,
        key: Key,
        content: bytes,
        *,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Question:
        headers = [*self._extra, ("content-type", content_type), ("accept", accept), *_credential(key)]
        return Question(Outbound("POST", self._origin + target, headers), content)


_Found = tuple[Judgement, Trouble | None, int]
"""What an answer means for the key and for the conversation, and the status that people are shown."""


def cut(*, began: bool) -> CozeFinding:
    """What it means that a stream ended too early. `began`: the chat was created, so that nothing may be sent again."""
    reason = "cut" if began else "cut before the chat began"
    return CozeFinding(Judgement(Verdict.UPSTREAM, reason), shown=500)


def origin(base_url: str) -> str:
    """A base URL without what its calls have themselves: a slash, `/v3` or `/v1` at its end."""
    return _AS_PASTED.sub("", base_url, count=1).rstrip("/")


def until_midnight(wall: float) -> float:
    """Seconds until Coze's next day, which begins at midnight UTC+8. `wall`: POSIX seconds."""
    return _DAY - (wall + _EAST_OF_UTC) % _DAY


def busy_pause(attempt: int) -> float:
    """Seconds to wait after the attempt of that number, from 0, found the conversation busy."""
    return BUSY_PAUSES[min(attempt, len(BUSY_PAUSES) - 1)]


def status_line(status: int) -> str:
    """A status with its words: "401 Unauthorized"."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def request_failed(finding: CozeFinding) -> str:
    """What the chat surface says of a refusal: nothing of Coze's own words."""
    return f"Coze API请求失败: {status_line(finding.shown)}"


def chat_error(finding: CozeFinding) -> ProxyError:
    """The error of the chat surface: 400 where the message was unacceptable, else 500."""
    return ProxyError(400 if finding.of_message else 500, _code(finding), request_failed(finding))


def openai_error(finding: CozeFinding, text: str) -> ProxyError:
    """The error of the openai surface: 400 for the caller's fault, else 502. `text`: Coze's words, masked."""
    status = 400 if finding.judgement.verdict is Verdict.CALLER else 502
    words = f": {text[:LONGEST_TEXT]}" if text else ""
    return ProxyError(status, _code(finding), request_failed(finding) + words)


def busy_error() -> ProxyError:
    """The caller's error for a conversation in which another chat ran all the while. The chat surface shows it as 503."""
    return ProxyError(409, "session_busy", "会话正忙，请稍后重试", retry_after=5.0)


def _code(finding: CozeFinding) -> str:
    if finding.code is not None:
        return f"coze_{finding.code}"
    return f"coze_{finding.reason}" if finding.reason else "upstream_error"


def _by_status(status: int, headers: Headers, *, envelope: bool) -> _Found:
    """The rows of the table for answers without a code."""
    if status == 401:
        return Judgement(Verdict.KEY, "401", Disable()), None, 401
    if status == 429:
        return _limited("429", headers), None, 429
    if envelope and 400 <= status < 500 and status not in (408, 425):
        return Judgement(Verdict.CALLER, str(status)), None, 400
    if envelope and 200 <= status < 300:
        return Judgement(Verdict.UPSTREAM, "refusal"), None, 500
    return Judgement(Verdict.UPSTREAM, str(status) if status >= 300 else "unreadable answer"), None, 500


def _limited(reason: str, headers: Headers) -> Judgement:
    """A delay of nothing tells nothing."""
    delay = retry_after(headers)
    seconds = min(delay, _LONGEST_DELAY) if delay else _DEFAULT_DELAY
    return Judgement(Verdict.KEY, reason, Rest(Scope.KEY, seconds=seconds))


def _credential(key: Key) -> _Fields:
    return [("accept-encoding", "identity"), ("authorization", f"Bearer {key.secret}")]


def _query(**members: str) -> str:
    return "?" + "&".join(f"{name}={quote(value, safe='', errors='replace')}" for name, value in members.items())
