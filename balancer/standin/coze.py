"""An honest small Coze: bots that keep the conversation, answer in events, and know nobody's conversation but its own key's.

Strict about what a proxy can get wrong: one Bearer key and no other credential; conversations, chats and files exist for their
account only; one chat runs in a conversation at a time (4016), also after its reader has left, until it is canceled or
`lingers` seconds have gone; bodies have the documented members (coze_checks.py). Every fault of faults.py and every code of
coze_answers.py can be scripted per key; what chats say, and how, is a `Play`.

    standin = CozeStandIn(["key-a", "key-b"], bots=["bot-1"])
    async with running(standin) as url:
        standin.play = Play(messages=(("a ", " b"), ("c",)), extras=True)
        standin.perform("key-a", Play(outcome="failed", code=4014), times=1)
        standin.script("key-b", "code-4016", times=2)
        ...
        assert not standin.overlaps and not standin.hurried
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import orjson
from aiohttp import web

from balancer.clock import Clock, SystemClock
from balancer.model import fingerprint
from balancer.standin import coze_answers as answers
from balancer.standin import coze_checks as checks
from balancer.standin.answers import Json, Refusal, Reply
from balancer.standin.base import BaseStandIn
from balancer.standin.coze_answers import FRAME, REFUSALS, SSE, Play
from balancer.standin.coze_checks import Asked
from balancer.standin.gemini import thirds
from balancer.standin.record import Arrival, Record
from balancer.standin.shelf import Shelf
from balancer.standin.world import Incoming, World

BOT = "7379462189365198898"
FIRST_ID = 7_500_000_000_000_000_001
KEPT = 20_000
"""Conversations of all accounts together: the oldest go first, so that a long load test stays flat."""
KEPT_CHATS = 100
"""Chats of one conversation."""
KEPT_FILES = 1000
BODY_LIMIT = 64 << 20
POLITE = 0.9
"""Seconds that at least lie between two looks at a chat."""
_RUNNING = "in_progress"
_SECOND_CREDENTIALS = ("x-api-key", "api-key", "x-goog-api-key", "x-session-token", "cookie", "x-session-id")


@dataclass(slots=True)
class Chat:
    """One turn. `status` as Coze has it; `seen`: when it was last looked at; `polls`: looks after which it has ended."""

    identity: str
    conversation: Conversation
    asked: Asked
    play: Play
    arrival: Arrival
    created: float
    seen: float
    polls: int
    status: str = _RUNNING
    told: list[Json] = field(default_factory=list)

    @property
    def polled(self) -> bool:
        """Whether it was answered by an object and not by events."""
        return self.play.plain or not self.asked.stream

    @property
    def left(self) -> float | None:
        """When the reader of its events was gone, in monotonic seconds."""
        return None if self.polled else self.arrival.cancelled or self.arrival.finished

    def ends(self) -> None:
        if self.status == _RUNNING:
            self.status = self.play.outcome


@dataclass(slots=True)
class Conversation:
    """`chats`: the last of them."""

    identity: str
    account: str
    created: int
    chats: list[Chat] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """What was asked in it, a text a chat."""
        return [chat.asked.text for chat in self.chats]


@dataclass(frozen=True, slots=True)
class File:
    """Something uploaded."""

    account: str
    name: str
    content: bytes = field(repr=False)


class Ask(Incoming):
    """A request; its body is read once."""

    def __init__(self, record: Record, request: web.BaseRequest, arrival: Arrival) -> None:
        super().__init__(record, request, arrival)
        self._whole: bytes | None = None

    async def whole(self) -> bytes:
        if self._whole is None:
            self._whole = await self.gathered(BODY_LIMIT)
            if self._whole is None:
                raise answers.refuse(4302, status=413)
        return self._whole

    async def json(self) -> Json:
        if (self.arrival.header("content-type") or "").partition(";")[0] != "application/json":
            raise answers.refuse(4000, "The field http body provided is not a valid json.")
        try:
            parsed = orjson.loads(await self.whole())
        except orjson.JSONDecodeError:
            parsed = None
        if not isinstance(parsed, dict):
            raise answers.refuse(4000, "The field http body provided is not a valid json.")
        return parsed

    def only(self, *names: str) -> list[str]:
        """The query's members of these names, and no others; "" for one that is missing."""
        if set(self.query) - set(names):
            raise answers.refuse(4000)
        return [self.query.get(name, "") for name in names]


class CozeStandIn(BaseStandIn[Ask]):
    """`keys`: keys, or keys to accounts: each key of a list has one of its own. `bots`: ids that may be asked, none: any."""

    def __init__(
        self,
        keys: Mapping[str, str] | Iterable[str],
        *,
        bots: Iterable[str] = (BOT,),
        clock: Clock | None = None,
        plain: bool = False,
    ) -> None:
        clock = clock or SystemClock()
        record = Record(clock, enabled=not plain)
        accounts = keys if isinstance(keys, Mapping) else {key: fingerprint(key) for key in keys}
        world = World(accounts, tuple(bots), clock, record, Shelf(clock), open_to_all=plain)
        super().__init__(world, REFUSALS, plain=plain)
        self.play = Play()
        """How chats go for which nothing was asked with `perform`."""
        self.missing_as = 4200
        """The code for a conversation that does not exist or is another account's: 4200, 4002."""
        self.lingers = 60.0
        """Seconds for which a chat runs on whose reader has left."""
        self.conversations: dict[str, Conversation] = {}
        self.chats: dict[str, Chat] = {}
        self.files: dict[str, File] = {}
        self.overlaps: list[str] = []
        """Conversations in which a chat was asked for while another ran, each time it happened. Refused as well."""
        self.hurried: list[str] = []
        """Chats that were looked at more than once a second, each time it happened."""
        self._plays: dict[str, deque[Play]] = {}
        self._ids = itertools.count(FIRST_ID)

    def perform(self, key: str, play: Play, times: int = 1) -> None:
        """The next chats of a key go so."""
        self._plays.setdefault(key, deque()).extend([play] * times)

    def begin_conversation(self, key: str) -> Conversation:
        """A conversation as if it had been made before."""
        return self._opened("plain" if self.world.open_to_all else self.world.keys[key])

    def forget_conversation(self, identity: str) -> None:
        """From now on it does not exist."""
        del self.conversations[identity]

    def running(self, conversation: str) -> Chat | None:
        """The chat that runs in a conversation."""
        now = self.world.clock.monotonic()
        for chat in self.conversations[conversation].chats:
            if chat.left is not None and now >= chat.left + self.lingers:
                chat.ends()
        return next((chat for chat in self.conversations[conversation].chats if chat.status == _RUNNING), None)

    # what the base asks for

    async def quick(self, request: web.BaseRequest) -> web.StreamResponse | None:
        return None

    def read(self, request: web.BaseRequest, arrival: Arrival) -> Ask:
        return Ask(self.record, request, arrival)

    def admit(self, ask: Ask) -> Reply | None:
        """One Bearer key that is known, and no other credential."""
        arrival, world = ask.arrival, self.world
        shown = [value for name, value in arrival.headers if name.lower() == "authorization"]
        beside = [name for name in _SECOND_CREDENTIALS if arrival.header(name) is not None]
        key = shown[0].removeprefix("Bearer ") if len(shown) == 1 and shown[0].startswith("Bearer ") else ""
        account = "plain" if world.open_to_all and key else world.keys.get(key)
        if account is None or beside:
            return answers.no(4100, status=401)
        arrival.key, arrival.project = key, account
        return None

    async def model_of(self, ask: Ask) -> str | None:
        if not self.faults.names_models or ask.arrival.path != "/v3/chat":
            return None
        try:
            return str((await ask.json()).get("bot_id"))
        except Refusal:
            return None

    def in_dialect(self, ask: Ask, reply: Reply) -> Reply:
        """With the log id that every answer has, in its head and in its envelope."""
        made = datetime.fromtimestamp(self.world.clock.wall(), UTC).strftime("%Y%m%d%H%M%S")
        logid = f"{made}{ask.arrival.number:018X}"
        reply.headers = [*reply.headers, ("X-Tt-Logid", logid)]
        if isinstance(reply.body, bytes) and reply.body.startswith(b"{"):
            reply.body = orjson.dumps(orjson.loads(reply.body) | {"detail": {"logid": logid}})
        return reply

    def error_event(self, ask: Ask, reply: Reply) -> bytes:
        return answers.FAILED

    async def answer(self, ask: Ask) -> Reply:
        match ask.method, ask.arrival.path:
            case "POST", "/v3/chat":
                return self._chat(await ask.json(), ask)
            case "GET" | "POST", "/v3/chat/retrieve":  # documented as GET, sent as POST by Coze's own SDK
                return self._retrieve(self._named(ask))
            case "GET", "/v3/chat/message/list":
                return self._messages(self._named(ask))
            case "POST", "/v3/chat/cancel":
                return self._cancel(await ask.json(), ask)
            case "GET", "/v1/conversation/retrieve":
                return self._look_up(ask)
            case "POST", "/v1/files/upload":
                return self._upload(await ask.whole(), ask)
            case _:
                raise answers.refuse(4000, "no such page", 404)

    # chats

    def _chat(self, body: Json, ask: Ask) -> Reply:
        account = ask.arrival.project or ""
        (named,) = ask.only("conversation_id")
        asked = checks.asked(body, lambda file: file in self.files and self.files[file].account == account)
        if self.world.models and asked.bot not in self.world.models:
            raise answers.refuse(4006)
        conversation = (
            self._conversation(named, ask) if named else self._opened(account)
        )  # Coze's SDK sends an empty one
        if self.running(conversation.identity) is not None:
            self.overlaps.append(conversation.identity)
            raise answers.refuse(4016)
        chat = self._began(conversation, asked, ask.arrival)
        if chat.polled:
            return answers.ok(self._as_object(chat))
        return Reply(answers.written(self._events(chat), chat.play), content_type=SSE, frame=FRAME)

    def _began(self, conversation: Conversation, asked: Asked, arrival: Arrival) -> Chat:
        plays = self._plays.get(arrival.key or "")
        play = plays.popleft() if plays else self.play
        if play.messages is None:
            play = replace(play, messages=(tuple(thirds(f"You said: {asked.text}")),))
        clock = self.world.clock
        chat = Chat(
            self._new_id(), conversation, asked, play, arrival, clock.wall(), clock.monotonic(), polls=play.polls
        )
        whole = replace(play, deltas=False, outcome="completed")
        chat.told = [value for name, value in self._spoken(chat, whole) if name == "conversation.message.completed"]
        self.chats[chat.identity] = chat
        conversation.chats.append(chat)
        for gone in conversation.chats[:-KEPT_CHATS]:
            self.chats.pop(gone.identity, None)
        del conversation.chats[:-KEPT_CHATS]
        return chat

    def _events(self, chat: Chat) -> Iterator[tuple[str, object]]:
        """The stream of a chat. A canceled one is streamed to its end all the same."""
        yield "conversation.chat.created", self._as_object(chat, "created")
        yield "conversation.chat.in_progress", self._as_object(chat, _RUNNING)
        yield from self._spoken(chat, chat.play)
        yield f"conversation.chat.{chat.play.outcome}", self._as_object(chat, chat.play.outcome)
        chat.ends()
        if chat.play.done:
            yield "done", "[DONE]"

    def _spoken(self, chat: Chat, play: Play) -> Iterator[tuple[str, Json]]:
        places: dict[int, str] = {}

        def message(kind: str, content: str, place: int | None = None, **more: str) -> Json:
            identity = self._new_id() if place is None else places.setdefault(place, self._new_id())
            made = {"id": identity, "role": "assistant", "type": kind, "content": content, "content_type": "text"}
            beside = {"conversation_id": chat.conversation.identity, "bot_id": chat.asked.bot}
            return made | beside | {"chat_id": chat.identity, "section_id": chat.conversation.identity} | more

        return answers.spoken(play, message)

    def _retrieve(self, chat: Chat) -> Reply:
        now = self.world.clock.monotonic()
        if chat.polled and now < chat.seen + POLITE:
            self.hurried.append(chat.identity)
        chat.seen = now
        if chat.polled:
            if chat.polls <= 0:
                chat.ends()
            chat.polls -= 1
        return answers.ok(self._as_object(chat))

    def _messages(self, chat: Chat) -> Reply:
        return answers.ok(chat.told if chat.status == "completed" else [])

    def _cancel(self, body: Json, ask: Ask) -> Reply:
        if set(body) != {"chat_id", "conversation_id"} or not all(isinstance(each, str) for each in body.values()):
            raise answers.refuse(4000)
        chat = self._found(body["conversation_id"], body["chat_id"], ask)
        if self.running(chat.conversation.identity) is not chat:
            raise answers.refuse(4104)
        chat.status = "canceled"
        return answers.ok(self._as_object(chat))

    def _look_up(self, ask: Ask) -> Reply:
        (identity,) = ask.only("conversation_id")
        found = self._conversation(identity, ask)
        times = {"created_at": found.created, "updated_at": found.created}
        ids = {"last_section_id": found.identity, "creator_id": "1", "connector_id": "1024"}
        return answers.ok({"id": found.identity, "name": "", "meta_data": {}} | times | ids)

    def _upload(self, body: bytes, ask: Ask) -> Reply:
        name, content = checks.uploaded(body, ask.arrival.header("content-type") or "")
        identity = self._new_id()
        self.files[identity] = File(ask.arrival.project or "", name, content)
        if len(self.files) > KEPT_FILES:
            del self.files[next(iter(self.files))]
        made = int(self.world.clock.wall())
        return answers.ok({"id": identity, "bytes": len(content), "file_name": name, "created_at": made})

    # what exists, and for whom

    def _opened(self, account: str) -> Conversation:
        made = Conversation(self._new_id(), account, int(self.world.clock.wall()))
        self.conversations[made.identity] = made
        if len(self.conversations) > KEPT:
            gone = self.conversations.pop(next(iter(self.conversations)))
            for chat in gone.chats:
                self.chats.pop(chat.identity, None)
        return made

    def _conversation(self, identity: str, ask: Ask) -> Conversation:
        found = self.conversations.get(identity)
        if found is None or found.account != ask.arrival.project:
            raise answers.refuse(self.missing_as)
        return found

    def _named(self, ask: Ask) -> Chat:
        """The chat in the query."""
        conversation, identity = ask.only("conversation_id", "chat_id")
        return self._found(conversation, identity, ask)

    def _found(self, conversation: str, identity: str, ask: Ask) -> Chat:
        self._conversation(conversation, ask)
        chat = self.chats.get(identity)
        if chat is None or chat.conversation.identity != conversation:
            raise answers.refuse(4001)
        return chat

    def _new_id(self) -> str:
        return str(next(self._ids))

    def _as_object(self, chat: Chat, status: str | None = None) -> Json:
        status = status or chat.status
        made: Json = {"id": chat.identity, "conversation_id": chat.conversation.identity, "bot_id": chat.asked.bot}
        made |= {"created_at": int(chat.created), "section_id": chat.conversation.identity, "status": status}
        made["last_error"] = {"code": 0, "msg": ""}
        made["usage"] = {"token_count": 0, "output_count": 0, "input_count": 0}
        if status == "completed":
            made |= {"completed_at": int(self.world.clock.wall()), "usage": _usage(chat)}
        elif status == "failed":
            made["last_error"] = {"code": chat.play.code, "msg": answers.WORDS.get(chat.play.code, "failed")}
        elif status == "requires_action":
            call = {"id": "call-1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
            made["required_action"] = {"type": "submit_tool_outputs", "submit_tool_outputs": {"tool_calls": [call]}}
        return made


def _usage(chat: Chat) -> dict[str, int]:
    """A character is a token."""
    asked = sum(len(message["content"]) for message in chat.asked.messages)
    said = sum(len(text) for texts in chat.play.messages or () for text in texts)
    return {"token_count": asked + said, "output_count": said, "input_count": asked}
