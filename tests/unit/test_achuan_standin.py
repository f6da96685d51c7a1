"""The stand-in of achuan over real sockets: its strictness, its sessions, its ways to answer and to fail."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest

from balancer.model import Key, Verdict
from balancer.standin.achuan import FIRST_SESSION, AchuanStandIn, Session, Turn, token
from balancer.standin.achuan_answers import REFUSALS, Style
from balancer.standin.base import running
from balancer.standin.record import Arrival
from balancer.upstreams.achuan import AchuanKind
from balancer.upstreams.conversing import Question, Trouble
from balancer.wire.achuan import Created, Delta, Done, Ending, Event, Reading, Refused, Whole
from balancer.wire.chat_messages import File, Message
from tests.fakes import FakeClock

ALICE, RENEWED, BOB = token("alice"), token("alice", expires=1_800_000_000), token("bob")
MODEL = "gpt-5.1-high"
SAID = [Delta("You s"), Delta("aid: "), Delta("hello")]


class Caller:
    """Calls the stand-in as the achuan kind does."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session
        self.kind = AchuanKind("achuan", url, {})

    def send(self, question: Question, **more: str) -> Any:
        outbound = question.outbound
        return self.session.request(
            outbound.method,
            outbound.url,
            headers=dict(outbound.headers) | more,
            data=question.content,
            allow_redirects=False,
        )

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """Status and JSON of a call made by hand."""
        fields = {"authorization": ALICE, "content-type": "application/json", "accept": "text/event-stream"} | headers
        async with self.session.post(
            self.url + path,
            data=orjson.dumps(body),
            headers={name.replace("_", "-"): value for name, value in fields.items() if value},
        ) as answer:
            return answer.status, orjson.loads(await answer.read())

    async def create(self, key: str = ALICE, model: str = MODEL) -> int:
        async with self.send(self.kind.create(model, Key(key))) as answer:
            made = self.kind.created(answer.status, list(answer.headers.items()), await answer.read())
        assert isinstance(made, Created)
        return made.number

    async def say(self, session: int, text: str = "hello", key: str = ALICE) -> tuple[list[Event], Ending]:
        """The events of a turn and how they ended; a broken body ends them too."""
        reading = Reading()
        events: list[Event] = []
        async with self.send(self.kind.complete(str(session), Message(text), Key(key))) as answer:
            assert answer.status == 200
            try:
                async for piece in answer.content.iter_any():
                    events += reading.feed(piece)
            except aiohttp.ClientPayloadError:
                pass
        return events + reading.end(), reading.ending


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_790_000_000.0)


@pytest.fixture
def standin(clock: FakeClock) -> AchuanStandIn:
    return AchuanStandIn([ALICE, RENEWED, BOB], clock=clock)


@pytest.fixture
async def caller(standin: AchuanStandIn) -> AsyncIterator[Caller]:
    async with running(standin) as url, aiohttp.ClientSession() as session:
        yield Caller(url, session)


# credentials


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": ""},
        {"authorization": f"Bearer {ALICE}"},
        {"authorization": f"bearer {ALICE}"},
        {"authorization": token("nobody")},
        {"x_api_key": "secret"},
        {"x_session_id": "1"},
        {"cookie": "a=b"},
    ],
)
async def test_only_one_bare_token_that_is_known_comes_in(caller: Caller, headers: dict[str, str]) -> None:
    status, body = await caller.post("/api/chat/session", {"model": MODEL, "plugins": [], "mcp": []}, **headers)
    assert (status, body["code"]) == (401, 401)


async def test_a_credential_in_the_query_is_one_too_many(caller: Caller) -> None:
    status, _ = await caller.post("/api/chat/session?key=x", {"model": MODEL, "plugins": [], "mcp": []})
    assert status == 401


async def test_a_token_past_its_time_is_refused(caller: Caller, clock: FakeClock) -> None:
    await caller.create(RENEWED)
    clock.advance(10_000_000.0)
    status, _ = await caller.post("/api/chat/session", {}, authorization=RENEWED)
    assert status == 401
    await caller.create(ALICE)


async def test_required_headers_are_checked_as_an_origin_is(clock: FakeClock) -> None:
    standin = AchuanStandIn([ALICE], required={"x-app-version": "2.1"}, clock=clock)
    async with running(standin) as url, aiohttp.ClientSession() as session:
        caller = Caller(url, session)
        assert (await caller.post("/api/chat/session", {}))[0] == 403
        caller.kind = AchuanKind("achuan", url + "/api/chat/", {"X-App-Version": "2.1"})
        assert await caller.create() == FIRST_SESSION


# sessions


async def test_a_session_is_numbered_and_its_first_id_is_its_own(caller: Caller, standin: AchuanStandIn) -> None:
    question = caller.kind.create(MODEL, Key(ALICE), {"plugins": ["p"], "id": 1})
    async with caller.send(question) as answer:
        text = (await answer.read()).decode()
    assert re.findall(r'"id":[0-9]+', text)[0] == f'"id":{FIRST_SESSION}'
    assert orjson.loads(text)["data"]["plugins"] == ["p"]
    assert standin.sessions[FIRST_SESSION].model == MODEL
    assert await caller.create() == FIRST_SESSION + 1


@pytest.mark.parametrize(
    "body",
    [{}, {"model": MODEL}, {"model": "nope", "plugins": [], "mcp": []}, [], {"model": 5, "plugins": [], "mcp": []}],
)
async def test_a_session_wants_a_known_model_and_both_lists(caller: Caller, body: Any) -> None:
    assert (await caller.post("/api/chat/session", body))[0] == 400


async def test_a_session_remembers_what_was_said_in_it(caller: Caller, standin: AchuanStandIn) -> None:
    number = await caller.create()
    assert await caller.say(number) == ([*SAID, Whole("You said: hello"), Done()], Ending.WHOLE)
    await caller.say(number, "again")
    assert standin.sessions[number].texts == ["hello", "again"]


async def test_a_session_belongs_to_the_account_and_not_to_the_token(caller: Caller, standin: AchuanStandIn) -> None:
    number = await caller.create(ALICE)
    assert (await caller.say(number, key=RENEWED))[1] is Ending.WHOLE
    assert (await caller.say(number, key=BOB))[0] == [Refused(None, "对话不存在")]
    assert (await caller.say(number + 1, key=ALICE))[0] == [Refused(None, "对话不存在")]
    assert standin.sessions[number].texts == ["hello"]


@pytest.mark.parametrize("form", ["plain", "event"])
async def test_a_forgotten_session_does_not_exist_in_either_form(
    caller: Caller, standin: AchuanStandIn, form: str
) -> None:
    standin.stale_as = form
    number = await caller.create()
    standin.forget_session(number)
    async with caller.send(caller.kind.complete(str(number), Message("x"), Key(ALICE))) as answer:
        text = await answer.read()
        finding = caller.kind.find(answer.status, list(answer.headers.items()), text)
    assert answer.status == 200
    assert text.startswith(b"data: {" if form == "event" else b"{")
    assert finding.trouble is Trouble.STALE


async def test_a_probe_tells_a_live_token_from_a_dead_one(caller: Caller, standin: AchuanStandIn) -> None:
    verdicts = []
    for key in (ALICE, token("nobody")):
        async with caller.send(caller.kind.probe(Key(key))) as answer:
            verdicts.append(caller.kind.find(answer.status, [], await answer.read()).judgement.verdict)
    assert verdicts == [Verdict.OK, Verdict.KEY]
    assert not standin.sessions


# turns


@pytest.mark.parametrize(
    "change",
    [
        {"model": MODEL},
        {"stream": True},
        {"messages": []},
        {"sessionId": str(FIRST_SESSION)},
        {"sessionId": True},
        {"text": ""},
        {"text": None},
        {"files": None},
        {"files": [{"name": "a"}]},
        {"files": [{"name": "a", "data": "https://h/a"}]},
        {"files": ["a"]},
    ],
)
async def test_a_turn_has_its_three_members_and_no_others(caller: Caller, change: dict[str, Any]) -> None:
    body = {"text": "x", "sessionId": await caller.create(), "files": []} | change
    assert (await caller.post("/api/chat/completions", body))[0] == 400


@pytest.mark.parametrize(("headers", "expected"), [({"accept": "*/*"}, 400), ({"content_type": "text/plain"}, 415)])
async def test_a_turn_says_what_it_is_and_what_it_wants(caller: Caller, headers: dict[str, str], expected: int) -> None:
    body = {"text": "x", "sessionId": await caller.create(), "files": []}
    assert (await caller.post("/api/chat/completions", body, **headers))[0] == expected


async def test_files_are_kept_with_their_turn(caller: Caller, standin: AchuanStandIn) -> None:
    number = await caller.create()
    message = Message("", (File("file000.png", "data:image/png;base64,AAAA"),))
    async with caller.send(caller.kind.complete(str(number), message, Key(ALICE))) as answer:
        assert answer.status == 200
        await answer.read()
    assert standin.sessions[number].turns[0].files == [{"name": "file000.png", "data": "data:image/png;base64,AAAA"}]


@pytest.mark.parametrize(("method", "path", "expected"), [("GET", "/api/chat/session", 405), ("POST", "/api/x", 404)])
async def test_there_are_two_calls_and_no_more(caller: Caller, method: str, path: str, expected: int) -> None:
    async with caller.session.request(method, caller.url + path, headers={"authorization": ALICE}) as answer:
        assert answer.status == expected


async def test_two_turns_at_once_in_one_session_are_a_violation_that_is_seen(
    caller: Caller, standin: AchuanStandIn
) -> None:
    number, other = await caller.create(), await caller.create()
    fault = standin.script(ALICE, "stall-stream", after=1, times=1)
    first = asyncio.create_task(caller.say(number))
    await standin.wait_for(lambda arrival: arrival.fault == "stall-stream" and arrival.size)
    assert (await caller.say(other))[1] is Ending.WHOLE
    assert (await caller.say(number, "too early"))[0] == [Refused(500, "上一条消息正在生成")]
    fault.open()
    assert (await first)[1] is Ending.WHOLE
    assert (await caller.say(number, "now"))[1] is Ending.WHOLE
    assert standin.overlaps == [number]
    assert standin.sessions[number].texts == ["hello", "now"]


async def test_a_turn_after_a_client_that_left_is_no_violation(caller: Caller, standin: AchuanStandIn) -> None:
    number, other = await caller.create(), await caller.create()
    standin.script(ALICE, "stall-stream", after=1, times=1)
    async with caller.send(caller.kind.complete(str(number), Message("left"), Key(ALICE))) as answer:
        await answer.content.readany()
        await caller.say(other)  # leaves a connection open, on which the next call may overtake the news
        answer.close()
    assert (await caller.say(number))[1] is Ending.WHOLE
    assert not standin.overlaps
    assert standin.sessions[number].texts == ["left", "hello"]


async def test_a_session_waits_a_moment_for_the_news_that_a_client_left() -> None:
    session, arrival = Session(1, "alice", MODEL), Arrival(1, "POST", "/", (), 1, 0.0)
    session.turns.append(Turn("x", [], arrival))
    assert await session.busy()
    asyncio.get_running_loop().call_soon(setattr, arrival, "cancelled", 1.0)
    assert not await session.busy()


# ways to answer


@pytest.mark.parametrize("end", [b"\n", b"\n\n", b"\r\n\r\n"])
@pytest.mark.parametrize("blank", [True, False])
@pytest.mark.parametrize("comments", [True, False])
@pytest.mark.parametrize("split", [0, 1, 7])
async def test_however_it_is_written_an_answer_says_the_same(
    caller: Caller, standin: AchuanStandIn, end: bytes, blank: bool, comments: bool, split: int
) -> None:
    standin.style = Style(split=split, blank=blank, comments=comments, closed=False, end=end)
    texts = ['"hi"', "[user] x", " ", "对话不存在", "\n"]
    standin.says = lambda _: texts
    expected = [*map(Delta, texts), Whole("".join(texts)), Done()]
    assert await caller.say(await caller.create()) == (expected, Ending.WHOLE)


@pytest.mark.parametrize(
    ("style", "texts", "expected", "ending"),
    [
        (Style(repeat=False), ["a"], [Delta("a"), Done()], Ending.WHOLE),
        (Style(done=False), ["a"], [Delta("a"), Whole("a")], Ending.WHOLE),
        (Style(done=False, repeat=False), ["a"], [Delta("a")], Ending.CUT),
        (Style(repeat=False), [], [Done()], Ending.EMPTY),
    ],
)
async def test_parts_of_an_answer_can_be_left_out(
    caller: Caller, standin: AchuanStandIn, style: Style, texts: list[str], expected: list[Event], ending: Ending
) -> None:
    standin.style, standin.says = style, lambda _: texts
    assert await caller.say(await caller.create()) == (expected, ending)


# ways to fail

VERDICTS = {
    **dict.fromkeys(("status-400", "status-404", "status-413", "early-413", "names-key"), Verdict.CALLER),
    **{f"{form}-{code}": Verdict.KEY for form in ("status", "code", "event") for code in (401, 402, 403, 429)},
    **dict.fromkeys(("status-500", "status-502", "status-503", "redirect", "empty"), Verdict.UPSTREAM),
    **dict.fromkeys(("code-500", "event-500", "err", "event-err", "done-only", "html", "no-id"), Verdict.UPSTREAM),
    **dict.fromkeys(("stale", "event-stale", "stale-english"), Verdict.OK),
}


def test_every_refusal_is_in_the_table() -> None:
    assert set(VERDICTS) == set(REFUSALS)


@pytest.mark.parametrize("name", sorted(REFUSALS))
async def test_refusals_are_what_they_are_called(caller: Caller, standin: AchuanStandIn, name: str) -> None:
    number = await caller.create()
    standin.script(ALICE, name, seconds=9, times=1)
    async with caller.send(caller.kind.complete(str(number), Message("x"), Key(ALICE))) as answer:
        headers = list(answer.headers.items())
        finding = caller.kind.find(answer.status, headers, await answer.read())
    status = (
        int(name[7:])
        if name.startswith("status-")
        else {"redirect": 302, "names-key": 400, "early-413": 413}.get(name, 200)
    )
    assert answer.status == status
    assert finding.judgement.verdict is VERDICTS[name]
    assert (finding.trouble is Trouble.STALE) == ("stale" in name)
    assert ("Retry-After", "9") in headers or not name.endswith("429")
    assert not standin.sessions[number].turns
    assert (await caller.say(number))[1] is Ending.WHOLE


@pytest.mark.parametrize("name", ["no-id", "html", "empty", "code-500", "event-500", "status-503"])
async def test_a_creation_can_fail_alone(caller: Caller, standin: AchuanStandIn, name: str) -> None:
    number = await caller.create()
    standin.script(ALICE, name, target="/session", times=1)
    assert (await caller.say(number))[1] is Ending.WHOLE
    async with caller.send(caller.kind.create(MODEL, Key(ALICE))) as answer:
        made = caller.kind.created(answer.status, [], await answer.read())
    assert not isinstance(made, Created)
    assert made.judgement.verdict is Verdict.UPSTREAM
    assert len(standin.sessions) == 1


@pytest.mark.parametrize("name", ["cut-fin", "cut-rst"])
async def test_an_answer_can_be_cut_after_any_number_of_deltas(
    caller: Caller, standin: AchuanStandIn, name: str
) -> None:
    number = await caller.create()
    standin.script(ALICE, name, after=2, times=1)
    assert await caller.say(number) == (SAID[:2], Ending.CUT)
    assert (await caller.say(number))[1] is Ending.WHOLE
    assert not standin.overlaps


async def test_a_delta_is_read_while_the_next_waits_at_the_gate(caller: Caller, standin: AchuanStandIn) -> None:
    number = await caller.create()
    fault = standin.script(ALICE, "stall-stream", after=1)
    async with caller.send(caller.kind.complete(str(number), Message("hello"), Key(ALICE))) as answer:
        reading = Reading()
        assert reading.feed(await answer.content.readany()) == SAID[:1]
        fault.open()
        assert reading.feed(await answer.content.read()) == [*SAID[1:], Whole("You said: hello"), Done()]


async def test_an_answer_can_come_byte_by_byte(caller: Caller, standin: AchuanStandIn) -> None:
    standin.script(ALICE, "drip")
    assert (await caller.say(await caller.create()))[0][:3] == SAID


async def test_a_stream_can_fail_in_its_middle(caller: Caller, standin: AchuanStandIn) -> None:
    number = await caller.create()
    standin.script(ALICE, "error-event", after=1)
    assert (await caller.say(number))[0] == [SAID[0], Refused(500, "服务器内部错误")]


async def test_a_fault_can_be_for_one_model(caller: Caller, standin: AchuanStandIn) -> None:
    number, other = await caller.create(), await caller.create(model="claude-sonnet-4-5-20250929")
    standin.script("*", "err", model=MODEL)
    assert (await caller.say(other))[1] is Ending.WHOLE
    assert (await caller.say(number))[0] == [Refused(None, "模型繁忙")]
