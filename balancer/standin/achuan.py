"""An honest small achuan: a chat backend that numbers its sessions, keeps what was said in them, and answers in events.

Strict about what a proxy can get wrong: tokens come bare in `authorization` and alone, sessions belong to the account of the
token (its `userId`) and do not exist for others, a turn has exactly its three members, and one session says one thing at a
time. Every fault of faults.py, and the refusals of achuan_answers.py, can be scripted per token.

    alice, bob = token("alice"), token("bob", expires=…)
    standin = AchuanStandIn([alice, bob])
    async with running(standin) as url:
        standin.says = lambda text: ["a ", "b"]
        standin.style = Style(split=3, comments=True)
        standin.script(alice, "cut-fin", after=2, times=1)
        ...
        standin.forget_session(296270)
        assert not standin.overlaps
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
from aiohttp import web

from balancer.clock import Clock, SystemClock
from balancer.model import fingerprint
from balancer.standin import achuan_answers as answers
from balancer.standin.achuan_answers import FRAME, REFUSALS, SSE, Style
from balancer.standin.answers import Json, Reply
from balancer.standin.base import BaseStandIn
from balancer.standin.gemini import thirds
from balancer.standin.record import Arrival, Record
from balancer.standin.shelf import Shelf
from balancer.standin.world import Incoming, World
from balancer.wire import jwt_claims

FIRST_SESSION = 296270
KEPT = 20_000
"""Sessions of all accounts together: the oldest go first, so that a long load test stays flat."""
KEPT_TURNS = 100
"""Turns of one session."""
BODY_LIMIT = 32 << 20
_FOREVER = 4102444800
_SECOND_CREDENTIALS = ("x-api-key", "api-key", "x-goog-api-key", "x-session-token", "cookie", "x-session-id")
_GRACE = 10
"""Turns of the event loop after which a client that has hung up is gone."""


def token(user: str | int, *, expires: float = _FOREVER) -> str:
    """A token as the backend gives them out. `expires`: POSIX seconds."""
    head, payload = (_encoded(orjson.dumps(each)) for each in ({"alg": "HS256", "typ": "JWT"}, _claims(user, expires)))
    signature = hmac.digest(b"stand-in", f"{head}.{payload}".encode(), hashlib.sha256)
    return f"{head}.{payload}.{_encoded(signature)}"


def _claims(user: str | int, expires: float) -> Json:
    return {"userId": user, "exp": int(expires)}


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@dataclass(slots=True)
class Session:
    """A conversation. `turns` are what was said in it, each with the request that said it."""

    number: int
    account: str
    model: str
    turns: list[Turn] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        return [turn.text for turn in self.turns]

    @property
    def at_work(self) -> bool:
        return any(turn.arrival.finished is None and turn.arrival.cancelled is None for turn in self.turns)

    async def busy(self) -> bool:
        """Whether a turn is at work. One whose client hung up before another came may not have noticed yet."""
        for _ in range(_GRACE):
            if not self.at_work:
                return False
            await asyncio.sleep(0)
        return self.at_work


@dataclass(slots=True)
class Turn:
    """One thing said."""

    text: str
    files: list[Json]
    arrival: Arrival


class Ask(Incoming):
    """A request; its body is read once."""

    def __init__(self, record: Record, request: web.BaseRequest, arrival: Arrival) -> None:
        super().__init__(record, request, arrival)
        self._parsed: Json | None = None

    async def json(self) -> Json:
        if self._parsed is None:
            text = await self.gathered(BODY_LIMIT)
            if text is None:
                raise answers.refuse(413)
            try:
                parsed = orjson.loads(text)
            except orjson.JSONDecodeError:
                raise answers.refuse(400) from None
            if not isinstance(parsed, dict):
                raise answers.refuse(400)
            self._parsed = parsed
        return self._parsed


class AchuanStandIn(BaseStandIn[Ask]):
    """`keys`: tokens, or tokens to accounts; the account of a listed token is its `userId`, else its fingerprint.

    `required`: header fields without which every call is refused with 403, as a check of the origin would.
    """

    def __init__(
        self,
        keys: Mapping[str, str] | Iterable[str],
        *,
        models: Iterable[str] = ("claude-sonnet-4-5-20250929", "gpt-5.1-high"),
        required: Mapping[str, str] | None = None,
        clock: Clock | None = None,
        plain: bool = False,
    ) -> None:
        clock = clock or SystemClock()
        record = Record(clock, enabled=not plain)
        accounts = keys if isinstance(keys, Mapping) else {key: account_of(key) for key in keys}
        world = World(accounts, tuple(models), clock, record, Shelf(clock), open_to_all=plain)
        super().__init__(world, REFUSALS, plain=plain)
        self.required = dict(required or {})
        self.style = Style()
        self.says: Callable[[str], Iterable[str]] = lambda text: thirds(f"You said: {text}")
        """The deltas of an answer to a text."""
        self.stale_as = "plain"
        """How a missing session is told of: plain, event."""
        self.sessions: dict[int, Session] = {}
        """All sessions by number."""
        self.overlaps: list[int] = []
        """Sessions in which a turn began while another was at work, each time it happened. Refused as well."""
        self._next = FIRST_SESSION

    def forget_session(self, number: int) -> None:
        """From now on the session does not exist."""
        del self.sessions[number]

    def begin_session(self, account: str, model: str) -> Session:
        """A session as if it had been made before."""
        session = Session(self._next, account, model)
        self.sessions[session.number] = session
        self._next += 1
        if len(self.sessions) > KEPT:
            del self.sessions[next(iter(self.sessions))]
        return session

    # what the base asks for

    async def quick(self, request: web.BaseRequest) -> web.StreamResponse | None:
        return None

    def read(self, request: web.BaseRequest, arrival: Arrival) -> Ask:
        return Ask(self.record, request, arrival)

    def admit(self, ask: Ask) -> Reply | None:
        """One bare token that is known and not past its time, and no other credential."""
        arrival, world = ask.arrival, self.world
        shown = [value for name, value in arrival.headers if name.lower() == "authorization"]
        beside = [name for name in _SECOND_CREDENTIALS if arrival.header(name) is not None]
        if len(shown) != 1 or beside or ask.query:
            return answers.error(401, f"多余的凭证: {', '.join(beside)}" if beside else None)
        account = "plain" if world.open_to_all else world.keys.get(shown[0])
        if account is None:
            return answers.error(401)
        arrival.key, arrival.project = shown[0], account
        expires = jwt_claims.read(shown[0]).expires
        if expires is not None and expires <= world.clock.wall():
            return answers.error(401)
        if any(arrival.header(name) != value for name, value in self.required.items()):
            return answers.error(403)
        return None

    async def model_of(self, ask: Ask) -> str | None:
        if not self.faults.names_models:
            return None
        body = await ask.json()
        session = self._session(body.get("sessionId"))
        return session.model if session is not None else str(body.get("model"))

    def in_dialect(self, ask: Ask, reply: Reply) -> Reply:
        return reply

    def error_event(self, ask: Ask, reply: Reply) -> bytes:
        return answers.FAILED

    async def answer(self, ask: Ask) -> Reply:
        match ask.method, ask.arrival.path:
            case "POST", "/api/chat/session":
                return self._create(await self._body(ask), ask)
            case "POST", "/api/chat/completions":
                return await self._complete(await self._body(ask), ask)
            case _, "/api/chat/session" | "/api/chat/completions":
                raise answers.refuse(405)
            case _:
                raise answers.refuse(404)

    async def _body(self, ask: Ask) -> Json:
        if (ask.arrival.header("content-type") or "").partition(";")[0] != "application/json":
            raise answers.refuse(415)
        return await ask.json()

    def _create(self, body: Json, ask: Ask) -> Reply:
        model = body.get("model")
        if not isinstance(model, str) or model not in self.world.models:
            raise answers.refuse(400, "模型不存在")
        if not isinstance(body.get("plugins"), list) or not isinstance(body.get("mcp"), list):
            raise answers.refuse(400)
        session = self.begin_session(ask.arrival.project or "", model)
        made = datetime.fromtimestamp(self.world.clock.wall(), UTC).strftime("%Y-%m-%d %H:%M:%S")
        shown = {name: body[name] for name in body if name not in ("id", "created", "uid")}
        return answers.ok({"id": session.number, "created": made, "uid": session.account, **shown})

    async def _complete(self, body: Json, ask: Ask) -> Reply:
        text, files = _checked(body, ask.arrival)
        session = self._session(body["sessionId"])
        if session is None or session.account != ask.arrival.project:
            return answers.denied(answers.GONE, event=self.stale_as == "event")
        if await session.busy():
            self.overlaps.append(session.number)
            return answers.denied("上一条消息正在生成", 500)
        session.turns.append(Turn(text, files, ask.arrival))
        del session.turns[:-KEPT_TURNS]
        return Reply(answers.events(self.says(text), self.style), content_type=SSE, frame=FRAME)

    def _session(self, number: Any) -> Session | None:
        return self.sessions.get(number) if isinstance(number, int) else None


def account_of(key: str) -> str:
    """Whose sessions a token opens."""
    return jwt_claims.read(key).user or fingerprint(key)


def _checked(body: Json, arrival: Arrival) -> tuple[str, list[Json]]:
    """Text and files of a turn that has exactly what a turn has."""
    text, number, files = (body.get(name) for name in ("text", "sessionId", "files"))
    if set(body) != {"text", "sessionId", "files"} or not isinstance(text, str) or not isinstance(files, list):
        raise answers.refuse(400)
    if not isinstance(number, int) or isinstance(number, bool) or not all(map(_is_file, files)):
        raise answers.refuse(400)
    if not text.strip() and not files:
        raise answers.refuse(400, "内容不能为空")
    if arrival.header("accept") != SSE.partition(";")[0]:
        raise answers.refuse(400, "accept")
    return text, files


def _is_file(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"name", "data"}:
        return False
    return all(isinstance(each, str) and each for each in value.values()) and value["data"][:5].lower() == "data:"
