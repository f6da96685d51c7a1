"""The stand-in of Coze over real sockets: its strictness, its conversations, its ways to answer and to fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
import pytest

from balancer.model import Key, Verdict
from balancer.standin.base import running
from balancer.standin.coze import BOT, KEPT, KEPT_CHATS, CozeStandIn
from balancer.standin.coze_answers import REFUSALS, WORDS, Play
from balancer.upstreams.conversing import Question, Trouble
from balancer.upstreams.coze import CozeFinding, CozeKind
from balancer.wire import coze
from balancer.wire.chat_chunks import Usage
from balancer.wire.coze import (
    BETWEEN_ANSWERS,
    Began,
    Completed,
    Delta,
    Done,
    Event,
    Failed,
    Failure,
    Good,
    Reading,
    Reasoning,
)
from balancer.wire.coze_messages import Entry, Upload, rendered, said
from balancer.wire.coze_messages import newest as newest_of
from tests.fakes import FakeClock

ALICE, BOB = "pat_alice", "pat_bob"
OTHER_BOT = "7379462189365198899"
SAID = [Delta("You s"), Delta("aid: "), Delta("hello")]
USAGE = Completed(Usage(5, 15, 20))
QUERY = {"role": "user", "type": "question", "content": "hello", "content_type": "text"}
GOOD = {"bot_id": BOT, "user_id": "u", "stream": True, "auto_save_history": True, "additional_messages": [QUERY]}


@dataclass
class Saw:
    """A turn: its events, whether the answer was whole, and under which ids."""

    events: list[Event]
    whole: bool

    @property
    def began(self) -> Began:
        (began,) = (event for event in self.events if isinstance(event, Began))
        return began

    @property
    def rest(self) -> list[Event]:
        return [event for event in self.events if not isinstance(event, Began)]


class Caller:
    """Calls the stand-in as the coze kind does."""

    def __init__(self, url: str, session: aiohttp.ClientSession, clock: FakeClock) -> None:
        self.url = url
        self.session = session
        self.kind = CozeKind("coze", url + "/v3", {}, {"coze": BOT, "other": OTHER_BOT}, "default_user", clock)

    def send(self, question: Question) -> Any:
        outbound = question.outbound
        return self.session.request(
            outbound.method,
            outbound.url,
            headers=outbound.headers,
            data=question.content or None,
            allow_redirects=False,
        )

    async def post(
        self, path: str, body: Any, headers: dict[str, str | None] | None = None, method: str = "POST"
    ) -> tuple[int, dict[str, Any]]:
        """Status and envelope of a call made by hand."""
        fields = {"authorization": f"Bearer {ALICE}", "content-type": "application/json"} | (headers or {})
        async with self.session.request(
            method,
            self.url + path,
            data=body if isinstance(body, bytes) else orjson.dumps(body),
            headers={name: value for name, value in fields.items() if value},
        ) as answer:
            return answer.status, orjson.loads(await answer.read())

    async def read(self, question: Question) -> Good | CozeFinding:
        async with self.send(question) as answer:
            return self.kind.read(answer.status, list(answer.headers.items()), await answer.read())

    async def good(self, question: Question) -> Any:
        said = await self.read(question)
        assert isinstance(said, Good), said
        return said.data

    def turn(self, text: str, conversation: str | None = None, key: str = ALICE, model: str = "coze") -> Question:
        return self.kind.chat(model, rendered([said("user", text)], {}), Key(key), conversation)

    async def say(self, text: str = "hello", conversation: str | None = None, key: str = ALICE) -> Saw:
        """A turn that is answered by events; a broken body ends them too."""
        reading = Reading()
        events: list[Event] = []
        async with self.send(self.turn(text, conversation, key)) as answer:
            assert coze.streams(list(answer.headers.items())), await answer.read()
            try:
                async for piece in answer.content.iter_any():
                    events += reading.feed(piece)
            except aiohttp.ClientPayloadError:
                pass
        return Saw(events + reading.end(), reading.whole)

    async def refused(self, conversation: str | None = None, key: str = ALICE) -> int | None:
        """The code with which a turn is refused."""
        found = await self.read(self.turn("hello", conversation, key))
        assert isinstance(found, CozeFinding)
        return found.code


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def standin(clock: FakeClock) -> CozeStandIn:
    return CozeStandIn([ALICE, BOB], bots=[BOT, OTHER_BOT], clock=clock)


@pytest.fixture
async def caller(standin: CozeStandIn, clock: FakeClock) -> AsyncIterator[Caller]:
    async with running(standin) as url, aiohttp.ClientSession() as session:
        yield Caller(url, session, clock)


# credentials and log ids


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": None},
        {"authorization": ALICE},
        {"authorization": f"bearer {ALICE}"},
        {"authorization": "Bearer nobody"},
        {"authorization": "Bearer "},
        {"x-api-key": "secret"},
        {"x-session-id": "1"},
        {"cookie": "a=b"},
    ],
)
async def test_only_one_bearer_key_that_is_known_comes_in(caller: Caller, headers: dict[str, str | None]) -> None:
    status, body = await caller.post("/v3/chat", GOOD, headers)
    assert (status, body["code"]) == (401, 4100)


async def test_every_answer_has_a_log_id_in_its_head_and_in_its_envelope(caller: Caller) -> None:
    seen = set()
    for question in (caller.turn("x"), caller.kind.look_up("1", Key(ALICE)), caller.turn("x", key="nobody")):
        async with caller.send(question) as answer:
            logid = answer.headers["X-Tt-Logid"]
            body = await answer.read()
        seen.add(logid)
        assert body.startswith(b"event:") or orjson.loads(body)["detail"] == {"logid": logid}
    assert len(seen) == 3


# conversations


async def test_a_turn_opens_a_conversation_and_the_next_goes_on_in_it(caller: Caller, standin: CozeStandIn) -> None:
    first = await caller.say()
    assert (first.rest, first.whole) == ([*SAID, USAGE, Done()], True)
    second = await caller.say("again", first.began.conversation)
    assert second.began.conversation == first.began.conversation
    assert second.began.chat != first.began.chat
    assert standin.conversations[first.began.conversation].texts == ["hello", "again"]
    assert "conversation_id" not in standin.requests[0].target


async def test_a_conversation_exists_for_its_key_only(caller: Caller, standin: CozeStandIn) -> None:
    owned = standin.begin_conversation(ALICE).identity
    assert (await caller.say("x", owned)).whole
    assert await caller.refused(owned, BOB) == 4200
    assert await caller.refused("7000000000") == 4200
    assert (await caller.good(caller.kind.look_up(owned, Key(ALICE))))["id"] == owned
    foreign = await caller.read(caller.kind.look_up(owned, Key(BOB)))
    assert isinstance(foreign, CozeFinding)
    assert foreign.trouble is Trouble.STALE
    standin.missing_as = 4002
    standin.forget_conversation(owned)
    assert await caller.refused(owned) == 4002
    assert standin.project(ALICE) != standin.project(BOB)


async def test_keys_of_one_account_share_its_conversations(clock: FakeClock) -> None:
    standin = CozeStandIn({ALICE: "team", BOB: "team"}, clock=clock)
    async with running(standin) as url, aiohttp.ClientSession() as session:
        caller = Caller(url, session, clock)
        owned = (await caller.say()).began.conversation
        assert (await caller.say("x", owned, BOB)).whole


async def test_a_probe_tells_a_live_key_from_a_dead_one(caller: Caller, standin: CozeStandIn) -> None:
    verdicts = []
    for key in (ALICE, "nobody"):
        found = await caller.read(caller.kind.probe(Key(key)))
        assert isinstance(found, CozeFinding)
        verdicts.append(found.judgement.verdict)
    assert verdicts == [Verdict.OK, Verdict.KEY]
    assert not standin.conversations


# one chat at a time


async def test_one_chat_runs_in_a_conversation_at_a_time(caller: Caller, standin: CozeStandIn) -> None:
    busy = standin.begin_conversation(ALICE).identity
    fault = standin.script(ALICE, "stall-stream", after=2, times=1)
    first = asyncio.create_task(caller.say("hello", busy))
    await standin.wait_for(lambda arrival: arrival.fault == "stall-stream" and arrival.sent)
    assert (await caller.say()).whole
    found = await caller.read(caller.turn("too early", busy))
    assert isinstance(found, CozeFinding)
    assert (found.trouble, found.shown) == (Trouble.BUSY, 409)
    fault.open()
    assert (await first).whole
    assert (await caller.say("now", busy)).whole
    assert standin.overlaps == [busy]
    assert standin.conversations[busy].texts == ["hello", "now"]


async def test_a_chat_whose_reader_left_runs_until_it_is_canceled(caller: Caller, standin: CozeStandIn) -> None:
    standin.script(ALICE, "stall-stream", after=2, times=1)
    async with caller.send(caller.turn("left")) as answer:
        (began,) = Reading().feed(await answer.content.readany())
        answer.close()
    assert isinstance(began, Began)
    await standin.wait_for(lambda arrival: arrival.cancelled is not None)
    assert await caller.refused(began.conversation) == 4016
    assert (await caller.good(caller.kind.cancel(began, Key(ALICE))))["status"] == "canceled"
    assert (await caller.say("next", began.conversation)).whole
    async with caller.send(caller.kind.cancel(began, Key(ALICE))) as answer:
        finding = caller.kind.canceled(answer.status, [], await answer.read())
    assert (finding.code, finding.judgement.verdict) == (4104, Verdict.OK)


async def test_a_chat_whose_reader_left_ends_by_itself_in_the_end(
    caller: Caller, standin: CozeStandIn, clock: FakeClock
) -> None:
    standin.script(ALICE, "cut-fin", after=3, times=1)
    cut = await caller.say()
    assert (cut.rest, cut.whole) == (SAID[:1], False)
    assert await caller.refused(cut.began.conversation) == 4016
    clock.advance(60.0)
    assert (await caller.say("next", cut.began.conversation)).whole


async def test_canceling_does_not_stop_a_stream(caller: Caller, standin: CozeStandIn) -> None:
    fault = standin.script(ALICE, "stall-stream", after=2, times=1)
    async with caller.send(caller.turn("hello")) as answer:
        reading = Reading()
        (began,) = reading.feed(await answer.content.readany())
        assert isinstance(began, Began)
        await caller.good(caller.kind.cancel(began, Key(ALICE)))
        assert (await caller.say("at once", began.conversation)).whole
        fault.open()
        assert reading.feed(await answer.content.read()) == [*SAID, USAGE, Done()]
    assert standin.chats[began.chat].status == "canceled"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, 4000),
        ({"chat_id": 1, "conversation_id": "1"}, 4000),
        ({"chat_id": "1", "conversation_id": "1"}, 4200),
        ({"chat_id": "1", "conversation_id": "1", "x": "y"}, 4000),
    ],
)
async def test_a_cancel_names_both_ids(caller: Caller, body: Any, code: int) -> None:
    assert (await caller.post("/v3/chat/cancel", body))[1]["code"] == code


# what is asked


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"bot_id": "1"}, 4006),
        ({"bot_id": None}, 4000),
        ({"bot_id": 5}, 4000),
        ({"user_id": ""}, 4000),
        ({"stream": "true"}, 4000),
        ({"auto_save_history": 1}, 4000),
        ({"stream": False, "auto_save_history": False}, 4007),
        ({"model": "m"}, 4000),
        ({"conversation_id": "1"}, 4000),
        ({"additional_messages": None}, 4000),
        ({"additional_messages": []}, 4000),
        ({"additional_messages": ["x"]}, 4000),
        ({"additional_messages": [QUERY] * 101}, 4004),
        ({"additional_messages": [QUERY, QUERY | {"role": "assistant", "type": "answer"}]}, 4000),
        ({"additional_messages": [QUERY | {"role": "system"}]}, 4000),
        ({"additional_messages": [QUERY | {"type": "answer"}]}, 4000),
        ({"additional_messages": [QUERY | {"name": "x"}]}, 4000),
        ({"additional_messages": [QUERY | {"content": ""}]}, 4005),
        ({"additional_messages": [QUERY | {"content": []}]}, 4005),
        ({"additional_messages": [QUERY | {"content_type": "card"}]}, 4000),
        ({"additional_messages": [QUERY | {"content_type": "object_string"}]}, 4005),
        ({"additional_messages": [QUERY | {"content_type": "object_string", "content": "[]"}]}, 4005),
        ({"additional_messages": [QUERY | {"content_type": "object_string", "content": '[{"type":"text"}]'}]}, 4005),
        (
            {"additional_messages": [QUERY | {"content_type": "object_string", "content": '[{"type":5,"text":5}]'}]},
            4005,
        ),
        ({"additional_messages": [QUERY | {"content_type": "object_string", "content": '[{"type":"image"}]'}]}, 4005),
        (
            {
                "additional_messages": [
                    QUERY
                    | {"content_type": "object_string", "content": '[{"type":"image","file_url":"data:image/png,x"}]'}
                ]
            },
            4005,
        ),
    ],
)
async def test_a_chat_has_the_members_that_chats_have(
    caller: Caller, standin: CozeStandIn, change: dict[str, Any], code: int
) -> None:
    assert (await caller.post("/v3/chat", GOOD | change))[1]["code"] == code
    assert not standin.chats


async def test_a_chat_is_json_in_its_place(caller: Caller) -> None:
    assert (await caller.post("/v3/chat", GOOD, {"content-type": "text/plain"}))[1]["code"] == 4000
    assert (await caller.post("/v3/chat", b"{"))[1]["code"] == 4000
    assert (await caller.post("/v3/chat?bot=1", GOOD))[1]["code"] == 4000
    assert (await caller.post("/v3/chat", GOOD, method="GET"))[0] == 404
    assert (await caller.post("/chat", GOOD))[0] == 404


# files


async def upload(caller: Caller, key: str, data: bytes = b"\x00\r\n--x", name: str = "好.png") -> str:
    identity = coze.id_of(await caller.good(caller.kind.upload(Upload("data:,", name, "image/png", data), Key(key))))
    assert identity is not None
    return identity


async def test_a_file_exists_for_its_key_only(caller: Caller, standin: CozeStandIn) -> None:
    url = "data:image/png;base64,AA=="
    mine, theirs = await upload(caller, ALICE), await upload(caller, BOB)
    assert (standin.files[mine].name, standin.files[mine].content) == ("好.png", b"\x00\r\n--x")
    content = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": url}}]
    entries: tuple[Entry, ...] = newest_of([{"role": "user", "content": content}])
    for file, whole in ((mine, True), (theirs, False)):
        question = caller.kind.chat("coze", rendered(entries, {url: file}), Key(ALICE))
        async with caller.send(question) as answer:
            body = await answer.read()
        assert (b"conversation.chat.completed" in body) is whole
        assert (b'"code":4005' in body) is not whole
    assert [chat.asked.text for chat in standin.chats.values()] == ["look"]


def form(*parts: bytes) -> bytes:
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"


FILE = b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\nx'


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        (form(FILE), "multipart/form-data; boundary=b", 0),
        (form(FILE), 'multipart/form-data; boundary="b"', 0),
        (form(FILE), "application/octet-stream", 4300),
        (form(FILE[:-1]), "multipart/form-data; boundary=b", 4300),
        (form(), "multipart/form-data; boundary=b", 4300),
        (form(FILE, FILE), "multipart/form-data; boundary=b", 4301),
        (form(FILE.replace(b'"file"', b'"other"')), "multipart/form-data; boundary=b", 4000),
        (form(FILE).removesuffix(b"--\r\n"), "multipart/form-data; boundary=b", 4000),
        (b"x" + form(FILE), "multipart/form-data; boundary=b", 4000),
    ],
)
async def test_an_upload_is_a_form_with_one_file(caller: Caller, body: bytes, content_type: str, code: int) -> None:
    assert (await caller.post("/v1/files/upload", body, {"content-type": content_type}))[1]["code"] == code


# ways to answer


@pytest.mark.parametrize("split", [0, 1, 7])
@pytest.mark.parametrize("blanks", [True, False])
@pytest.mark.parametrize("comments", [True, False])
@pytest.mark.parametrize("extras", [True, False])
async def test_however_it_is_written_a_chat_says_the_same(
    caller: Caller, standin: CozeStandIn, split: int, blanks: bool, comments: bool, extras: bool
) -> None:
    texts = ("a ", " b", "\n", "好", '"[DONE]"')
    standin.play = Play(
        (texts, ("c",)), ("hm", "…"), extras=extras, split=split, blanks=blanks, comments=comments, closed=False
    )
    expected = [Reasoning("hm"), Reasoning("…"), *map(Delta, texts), Delta(BETWEEN_ANSWERS), Delta("c")]
    saw = await caller.say()
    assert (saw.rest, saw.whole) == ([*expected, Completed(Usage(5, 15, 20)), Done()], True)


async def test_a_message_can_come_whole_or_without_the_end_mark(caller: Caller, standin: CozeStandIn) -> None:
    standin.play = Play((("a", "b"),), ("hm",), deltas=False, done=False)
    saw = await caller.say()
    assert (saw.rest, saw.whole) == ([Reasoning("hm"), Delta("ab"), Completed(Usage(5, 2, 7))], True)


@pytest.mark.parametrize(
    ("play", "failure"),
    [
        (Play(outcome="failed", code=4014), Failure(4014, WORDS[4014])),
        (Play(outcome="failed"), Failure(5000, WORDS[5000])),
        (Play(outcome="requires_action"), Failure(None, reason="requires_action")),
    ],
)
async def test_a_chat_can_fail_behind_its_deltas(
    caller: Caller, standin: CozeStandIn, play: Play, failure: Failure
) -> None:
    standin.perform(ALICE, play)
    saw = await caller.say()
    assert (saw.rest, saw.whole) == ([*SAID, Failed(failure)], False)
    assert (await caller.say("again", saw.began.conversation)).whole


async def test_plays_are_performed_in_their_order_and_per_key(caller: Caller, standin: CozeStandIn) -> None:
    standin.perform(ALICE, Play((("one",),)), times=2)
    heard = [(await caller.say(key=key)).rest[0] for key in (BOB, ALICE, BOB, ALICE, ALICE)]
    assert heard == [Delta("You s"), Delta("one"), Delta("You s"), Delta("one"), Delta("You s")]


@pytest.mark.parametrize(
    ("play", "expected"),
    [
        (Play((("a", "b"), ("c",)), ("hm",), plain=True, polls=2, extras=True), Completed(Usage(5, 3, 8))),
        (Play(plain=True, polls=2, outcome="failed", code=4013), Failed(Failure(4013, WORDS[4013]))),
        (Play(plain=True, polls=2, outcome="requires_action"), Failed(Failure(None, reason="requires_action"))),
    ],
)
async def test_a_chat_can_be_an_object_to_be_looked_at_until_it_has_ended(
    caller: Caller, standin: CozeStandIn, clock: FakeClock, play: Play, expected: Completed | Failed
) -> None:
    standin.perform(ALICE, play)
    chat = coze.chat_of(await caller.good(caller.turn("hello")))
    assert chat is not None
    began = chat.began
    for _ in range(2):
        assert chat is not None
        assert chat.outcome is None
        assert coze.answers(await caller.good(caller.kind.messages(began, Key(ALICE)))) == []
        assert await caller.refused(began.conversation) == 4016
        clock.advance(1.0)
        chat = coze.chat_of(await caller.good(caller.kind.retrieve(began, Key(ALICE))))
    clock.advance(1.0)
    chat = coze.chat_of(await caller.good(caller.kind.retrieve(began, Key(ALICE))))
    assert chat is not None
    assert chat.outcome == expected
    answers = coze.answers(await caller.good(caller.kind.messages(began, Key(ALICE))))
    whole = [Reasoning("hm"), Delta("ab"), Delta("\n\n"), Delta("c")]
    assert answers == (whole if isinstance(expected, Completed) else [])
    assert not standin.hurried


async def test_a_chat_is_looked_at_once_a_second_at_most(caller: Caller, standin: CozeStandIn) -> None:
    standin.play = Play(plain=True, polls=0)
    chat = coze.chat_of(await caller.good(caller.turn("hello")))
    assert chat is not None
    await caller.good(caller.kind.retrieve(chat.began, Key(ALICE)))
    assert standin.hurried == [chat.began.chat]


async def test_a_chat_is_shown_to_its_account_under_both_its_ids_only(caller: Caller, standin: CozeStandIn) -> None:
    began, other = (await caller.say()).began, (await caller.say()).began
    crossed = Began(began.chat, other.conversation)
    for question, code in (
        (caller.kind.retrieve(began, Key(BOB)), 4200),
        (caller.kind.retrieve(crossed, Key(ALICE)), 4001),
        (caller.kind.messages(crossed, Key(ALICE)), 4001),
        (caller.kind.cancel(crossed, Key(ALICE)), 4001),
    ):
        found = await caller.read(question)
        assert isinstance(found, CozeFinding)
        assert found.code == code


# ways to fail

OK_CODES = {4002, 4016, 4200}
KEY_CODES = {4008, 4011, 4019, 4020, 4022, 4100, 4101, 4102, 700012006}
UPSTREAM_CODES = {4009, 4013, 4314, 4315, 5000}


def verdict_of(name: str) -> Verdict:
    form, _, number = name.partition("-")
    if form in ("code", "error") and number.isdecimal():
        code = int(number)
        if code in OK_CODES:
            return Verdict.OK
        if code in KEY_CODES:
            return Verdict.KEY
        return Verdict.UPSTREAM if code in UPSTREAM_CODES else Verdict.CALLER
    if name in ("status-401", "status-429"):
        return Verdict.KEY
    return Verdict.CALLER if name == "names-key" else Verdict.UPSTREAM


def test_every_code_of_the_specification_can_be_scripted() -> None:
    codes = {4003, 4004, 4005, 4010, 4014, 4105, 4000, 4001, 4006, 4007, 4012, 4015, 4021, *range(4300, 4305), 4104}
    assert codes | OK_CODES | KEY_CODES | UPSTREAM_CODES <= set(WORDS)
    assert {f"{form}-{code}" for code in WORDS for form in ("code", "error")} <= set(REFUSALS)


@pytest.mark.parametrize("name", sorted(REFUSALS))
async def test_refusals_are_what_they_are_called(caller: Caller, standin: CozeStandIn, name: str) -> None:
    conversation = standin.begin_conversation(ALICE).identity
    standin.script(ALICE, name, seconds=9, times=1)
    async with caller.send(caller.turn("x", conversation)) as answer:
        headers = list(answer.headers.items())
        body = await answer.read()
        finding = caller.kind.find(answer.status, headers, body)
        if coze.streams(headers):
            (event,) = Reading().feed(body)
            assert isinstance(event, Failed)
            finding = caller.kind.failed(event.failure, headers, named=True)
    status = {"redirect": 302, "early-413": 413, "html-502": 502}.get(name, 200)
    assert answer.status == (int(name[7:]) if name.startswith("status-") else status)
    if name == "no-chat":
        assert coze.chat_of(orjson.loads(body)["data"]) is None
    else:
        assert finding.judgement.verdict is verdict_of(name)
    assert ("Retry-After", "9") in headers or name not in ("status-429", "code-4020")
    assert not standin.chats
    assert (await caller.say("x", conversation)).whole


async def test_a_stream_can_fail_in_its_middle(caller: Caller, standin: CozeStandIn) -> None:
    standin.script(ALICE, "error-event", after=3, times=1)
    assert (await caller.say()).rest == [SAID[0], Failed(Failure(5000, WORDS[5000]))]


async def test_a_delta_is_read_while_the_next_waits_at_the_gate(caller: Caller, standin: CozeStandIn) -> None:
    fault = standin.script(ALICE, "stall-stream", after=3)
    async with caller.send(caller.turn("hello")) as answer:
        reading = Reading()
        events: list[Event] = []
        while len(events) < 2:
            events += reading.feed(await answer.content.readany())
        assert events[1:] == SAID[:1]
        fault.open()
        assert reading.feed(await answer.content.read()) == [*SAID[1:], USAGE, Done()]


async def test_a_chat_can_come_byte_by_byte(caller: Caller, standin: CozeStandIn) -> None:
    standin.script(ALICE, "drip")
    assert (await caller.say()).rest[:3] == SAID


async def test_a_fault_can_be_for_one_bot_and_for_one_call(caller: Caller, standin: CozeStandIn) -> None:
    standin.script("*", "code-4015", model=OTHER_BOT)
    standin.script(ALICE, "code-4101", target="/v1/conversation")
    began = (await caller.say()).began
    found = await caller.read(caller.turn("x", model="other"))
    assert isinstance(found, CozeFinding)
    assert found.code == 4015
    assert (await caller.post("/v3/chat", b"{"))[1]["code"] == 4000
    blocked = await caller.read(caller.kind.look_up(began.conversation, Key(ALICE)))
    assert isinstance(blocked, CozeFinding)
    assert blocked.code == 4101


async def test_a_long_test_stays_flat(caller: Caller, standin: CozeStandIn) -> None:
    kept = standin.begin_conversation(ALICE).identity
    first = (await caller.say("first", kept)).began.chat
    for number in range(KEPT_CHATS):
        await caller.say(str(number), kept)
    assert first not in standin.chats
    assert len(standin.conversations[kept].chats) == len(standin.chats) == KEPT_CHATS
    for _ in range(KEPT):
        standin.begin_conversation(ALICE)
    assert len(standin.conversations) == KEPT
    assert kept not in standin.conversations
    assert not standin.chats


async def test_without_a_record_any_key_will_do(clock: FakeClock) -> None:
    standin = CozeStandIn([], clock=clock, plain=True)
    async with running(standin) as url, aiohttp.ClientSession() as session:
        caller = Caller(url, session, clock)
        assert (await caller.say(key="anybody")).whole
        assert (await caller.say("x", standin.begin_conversation("any").identity, "anybody")).whole
    assert not standin.requests
