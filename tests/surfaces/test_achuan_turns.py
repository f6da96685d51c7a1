"""Turns with an upstream that keeps the conversation: their order, what fails, and whose fault that is taken for."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise

import pytest

from balancer.relay.probe import probe_due, probe_reach
from balancer.standin.achuan import token
from tests.fakes import FakeClock
from tests.surfaces.backend_chats import (
    ALICE,
    ALICE_TOO,
    BOB,
    WAIT,
    Here,
    Watched,
    beside,
    here,
    next_frame,
    text_of,
)

# Turns -----------------------------------------------------------------------------------------------------------------


async def test_requests_of_one_session_follow_each_other_and_those_of_two_run_at_once() -> None:
    async with here() as at, beside(at) as other:
        one = await at.ann.say(user="one")
        gate = at.standin.script(ALICE, "stall-stream", target="/completions", times=2, after=1)
        async with at.ann.streaming(user="one") as first, at.ann.streaming(user="two") as second:
            for answer in (first, second):  # both at once
                assert "role" in (await next_frame(answer))["choices"][0]["delta"]
                assert await text_of(answer) == "You s"
            waiting = [asyncio.ensure_future(each.ann.say(f"m{n}", user="one")) for n, each in enumerate((at, other))]
            elsewhere = await other.ann.say(user="three")
            assert elsewhere.status == 200
            assert len(at.completed) == 4
            gate.open()
            await first.read()
            await second.read()
        assert {answered.session for answered in await asyncio.gather(*waiting)} == {one.session}
        runs = [each for each in at.completed if each.json()["sessionId"] == int(str(one.session))]
        assert all(a.finished is not None and a.finished <= b.arrived for a, b in pairwise(runs))


async def test_a_turn_that_does_not_come_in_time_is_a_409() -> None:
    async with here(chat={"turn_wait": "50ms"}) as at:
        gate = at.standin.script(ALICE, "stall-stream", target="/completions", times=1, after=1)
        async with at.ann.streaming(user="u") as first:
            await next_frame(first)
            busy = await at.ann.say(user="u")
            assert busy.code == (409, "session_busy")
            assert busy.json["error"]["type"] == "conflict_error"
            assert busy.headers["Retry-After"] == "5"
            gate.open()
            await first.read()
        assert (await at.ann.say(user="u")).status == 200


async def test_a_client_that_leaves_frees_its_session_at_once() -> None:
    async with here() as at:
        made = await at.ann.say(user="u")
        at.standin.script(ALICE, "stall-stream", target="/completions", times=1, after=1)
        async with at.ann.streaming(user="u") as answer:
            await next_frame(answer)
            answer.close()
        left = at.completed[1]
        await at.standin.wait_for(lambda arrival: arrival is left and arrival.finished is not None, WAIT)
        assert left.cancelled is not None
        async with asyncio.timeout(WAIT):
            assert (await at.ann.say("next", user="u")).session == made.session
        keys = at.proxy.server.runtime.rooms.upstreams["achuan"].pool.snapshot().keys
        assert [key.in_flight for key in keys] == [0]
        assert keys[0].counts["gone"] == 1


async def test_a_client_that_leaves_while_it_waits_gives_up_its_place() -> None:
    async with here() as at:
        await at.ann.say(user="u")
        gate = at.standin.script(ALICE, "stall-stream", target="/completions", times=1, after=1)
        async with at.ann.streaming(user="u") as first:
            await next_frame(first)
            locks = Watched(at)
            leaving = asyncio.ensure_future(at.ann.say("left", user="u"))
            staying = asyncio.ensure_future(at.ann.say("stays", user="u"))
            await locks.until(2)
            leaving.cancel()
            await locks.until(1)
            gate.open()
            await first.read()
        assert (await staying).text == "You said: stays"
        assert "left" not in at.texts


# Failures --------------------------------------------------------------------------------------------------------------


async def test_a_dead_key_is_disabled_and_a_fresh_request_answered_with_another_and_without_any_it_is_a_503() -> None:
    async with here([ALICE, BOB]) as at:
        at.standin.script(ALICE, "status-401", times=1, target="/completions")
        answers = [await at.ann.say() for _ in range(2)]
        assert [answer.status for answer in answers] == [200, 200]
        states = {key.state for key in at.proxy.server.runtime.rooms.upstreams["achuan"].pool.snapshot().keys}
        assert states == {"ready", "disabled"}
        at.standin.script(BOB, "code-401", times=1)
        last = await at.ann.say()
        assert last.code == (503, "no_usable_key")
        assert last.json["error"]["type"] == "server_error"
        assert (await at.ann.say(stream=True)).status == 503


async def test_a_known_session_goes_to_another_key_of_its_account_and_to_no_other() -> None:
    async with here([ALICE, ALICE_TOO, BOB]) as at:
        made = await at.ann.say(user="u")
        for fault in ("status-403", "event-429", "code-402"):
            at.standin.script("*", fault, times=1, target="/completions", seconds=1)
            assert (await at.ann.say(user="u")).session == made.session
            at.proxy.server.runtime.rooms.upstreams["achuan"].pool.replace([])
            at.proxy.server.runtime.apply(at.proxy.server.runtime.settings)  # all rested
        assert len(at.created) == 1
        account = at.standin.sessions[int(str(made.session))].account
        assert {at.standin.world.keys[str(each.key)] for each in at.completed} == {account}


async def test_a_known_session_waits_for_its_account_and_then_is_told_how_long() -> None:
    async with here([ALICE, BOB], relay={"max_wait": "0s"}) as at:
        made = await at.ann.say(user="u")
        mine = ALICE if at.created[0].key == ALICE else BOB
        at.standin.script(mine, "status-429", times=1, target="/completions", seconds=33)
        for _ in range(2):
            answer = await at.ann.say(user="u")
            assert answer.code == (429, "keys_resting")
            assert 30 <= int(answer.headers["Retry-After"]) <= 33
            assert answer.session == made.session
        assert len(at.created) == 1


async def test_a_session_whose_account_lost_its_last_key_is_made_anew_elsewhere() -> None:
    async with here([ALICE, BOB]) as at:
        made = await at.ann.say(user="u")
        mine = ALICE if at.created[0].key == ALICE else BOB
        at.standin.script(mine, "status-401", times=1, target="/completions")
        explicit = await at.ann.say(headers={"x-session-id": str(made.session)})
        assert explicit.code == (503, "no_usable_key")
        again = await at.ann.say(user="u")
        assert again.text == "You said: hello"
        assert again.session != made.session


@pytest.mark.parametrize(
    ("fault", "status", "code", "message"),
    [
        ("status-400", 400, "backend_error", "后端错误(400): 参数错误"),
        ("status-404", 404, "backend_error", "后端错误(404): 接口不存在"),
        ("status-413", 413, "backend_error", "后端错误(413): 请求体过大"),
        ("status-500", 502, "backend_error", "后端错误(500): 服务器内部错误"),
        ("code-500", 502, "backend_error", "后端错误(500): 服务器内部错误"),
        ("event-err", 502, "backend_error", "后端错误(200): 模型繁忙"),
        ("redirect", 502, "backend_error", "后端错误(302): "),
        ("empty", 502, "backend_empty_body", "后端返回空内容"),
        ("done-only", 502, "backend_empty_body", "后端返回空内容"),
        ("html", 502, "backend_connection_error", "后端连接失败: its answer ended too early"),
        ("fin", 502, "backend_connection_error", "后端连接失败: it closed the connection without an answer"),
        ("rst", 502, "backend_connection_error", "后端连接失败: the connection to it was lost"),
        ("gzip", 502, "backend_connection_error", "后端连接失败: its answer has a content coding that was not asked for"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_frame_is_an_http_error_and_said_once_to_a_known_session(
    fault: str, status: int, code: str, message: str, stream: bool
) -> None:
    async with here() as at:
        made = await at.ann.say(user="u")
        at.standin.script(ALICE, fault, target="/completions")
        answer = await at.ann.say(user="u", stream=stream)
        assert (answer.code, answer.message) == ((status, code), message)
        wanted = "api_error" if status < 500 else "server_error"
        assert answer.json["error"]["type"] == wanted
        assert answer.session == made.session
        assert len(at.completed) == 2
        assert len(at.created) == 1


async def test_a_fresh_request_that_was_lost_is_said_once_more_in_a_new_session_but_no_refusal_is() -> None:
    async with here() as at:
        at.standin.script(ALICE, "lost", target="/completions", times=1)
        assert (await at.ann.say()).status == 200
        assert (len(at.created), len(at.completed)) == (2, 2)
        at.standin.script(ALICE, "code-500", target="/completions", times=1)
        assert (await at.ann.say()).code == (502, "backend_error")
        assert (len(at.created), len(at.completed)) == (3, 3)


async def test_words_of_the_backend_are_cut_and_hold_no_key() -> None:
    async with here() as at:
        at.standin.script(ALICE, "names-key", target="/completions")
        answer = await at.ann.say()
        assert answer.status == 400
        assert ALICE not in answer.body.decode()
        assert ALICE[-20:] not in answer.body.decode()
        assert answer.message.startswith("后端错误(400): bad token ")


async def test_a_backend_that_is_slow_is_a_504_and_not_asked_again() -> None:
    async with here(relay={"timeouts": {"first_byte": "100ms", "idle": "100ms"}}) as at:
        for fault, asked in (("stall-head", 1), ("stall-stream", 2)):
            at.standin.script(ALICE, fault, target="/completions", times=1, after=0)
            answer = await at.ann.say()
            assert answer.code == (504, "upstream_timeout")
            assert len(at.completed) == asked


async def test_a_session_that_cannot_be_made_fails_as_its_making_did() -> None:
    async with here(relay={"attempts": 2}) as at:
        for fault, code in (("status-400", 400), ("status-500", 502), ("no-id", 502)):
            at.standin.script(ALICE, fault, target="/session")
            answer = await at.ann.say()
            assert answer.code == (code, "backend_error")
            at.standin.clear()
        assert len(at.created) == 1 + 2 + 2
        assert not at.completed


async def test_a_session_is_made_with_another_key_where_one_is_refused() -> None:
    async with here([ALICE, BOB]) as at:
        for fault in ("status-403", "status-429", "status-402"):
            at.standin.script(ALICE, fault, target="/session", times=1, seconds=60)
        for _ in range(2):
            assert (await at.ann.say()).status == 200
        assert [each.key for each in at.completed] == [BOB, BOB]


def _move(at: Here, url: str) -> None:
    """From now on the backend is looked for there."""
    runtime = at.proxy.server.runtime
    moved = runtime.settings.upstreams["achuan"].model_copy(update={"base_url": url})
    upstreams = {**runtime.settings.upstreams, "achuan": moved}
    runtime.apply(runtime.settings.model_copy(update={"upstreams": upstreams}))


async def test_no_connection_is_a_502_and_tried_as_often_as_is_allowed(capfd: pytest.CaptureFixture[str]) -> None:
    async with here(relay={"attempts": 2}, logging={"level": "info"}) as at:
        _move(at, "http://127.0.0.1:9")
        answer = await at.ann.say()
        assert answer.code == (502, "backend_connection_error")
        assert answer.message.startswith("后端连接失败: no connection")
        at.proxy.server.runtime.logs.flush()
    (line,) = [json.loads(each) for each in capfd.readouterr().err.splitlines() if '"event":"request"' in each]
    assert line["attempts"] == 2


@pytest.mark.parametrize("fault", ["cut-fin", "cut-rst", "error-event"])
async def test_a_cut_after_two_deltas_is_two_content_frames_and_an_error_frame_without_an_end(fault: str) -> None:
    async with here() as at:
        at.standin.script(ALICE, fault, target="/completions", after=2)
        answer = await at.ann.say("hello", stream=True)
        assert answer.status == 200
        assert answer.deltas == ["You s", "aid: "]
        last = answer.frames[-1]["error"]
        assert (last["type"], last["param"], last["code"]) == ("api_error", None, "stream_error")
        assert b"[DONE]" not in answer.body
        assert len(at.completed) == 1
        at.standin.clear()
        assert (await at.ann.say(headers={"x-session-id": str(answer.session)})).status == 200


async def test_an_answer_that_is_cut_before_it_was_whole_is_no_answer_for_who_did_not_stream() -> None:
    async with here() as at:
        await at.ann.say(user="u")
        at.standin.script(ALICE, "cut-fin", target="/completions", after=2)
        answer = await at.ann.say(user="u")
        assert answer.code == (502, "backend_connection_error")
        assert len(at.completed) == 2


async def test_an_answer_is_whole_once_its_object_event_has_come() -> None:
    async with here() as at:
        for after in (4, 5):
            at.standin.script(ALICE, "cut-fin", target="/completions", after=after, times=2)
            assert (await at.ann.say("hello")).text == "You said: hello"
            assert (await at.ann.say("hello", stream=True)).frames[-1] == "[DONE]"


async def test_an_upstream_that_is_down_is_left_out_and_says_when_to_ask_again(unused_tcp_port: int) -> None:
    clock = FakeClock()
    async with here(clock=clock, relay={"attempts": 1}) as at:
        _move(at, f"http://127.0.0.1:{unused_tcp_port}")
        for _ in range(5):
            answer = await at.ann.say()
            assert answer.code == (502, "backend_connection_error")
            assert "Retry-After" not in answer.headers  # it was tried
            clock.advance(1)
        assert at.proxy.server.runtime.rooms.upstreams["achuan"].reach.down
        answer = await at.ann.say()
        assert answer.code == (502, "backend_connection_error")
        assert int(answer.headers["Retry-After"]) >= 1


async def test_an_upstream_is_found_again_by_a_question_that_makes_nothing() -> None:
    async with here() as at:
        upstream = at.proxy.server.runtime.rooms.upstreams["achuan"]
        await probe_reach(upstream)
        assert not at.standin.sessions
        assert [each.path for each in at.standin.requests] == ["/api/chat/completions"]
        assert upstream.pool.states().ready == 1


async def test_who_does_not_stream_is_refused_where_there_is_no_room_to_gather_the_answer() -> None:
    async with here(relay={"buffer_budget": "2000"}) as at:
        at.standin.says = lambda text: ["x" * 900] * 4
        answer = await at.ann.say(user="u")
        assert answer.code == (503, "buffer_exhausted")
        assert len((await at.ann.say(user="u", stream=True)).deltas) == 4
        at.standin.says = lambda text: ["short"]
        assert (await at.ann.say(user="u")).text == "short"
        assert at.proxy.server.runtime.budget.used == 0


async def test_an_answer_ends_with_its_marker_though_the_upstream_does_not_hang_up() -> None:
    events = b'data: {"type":"string","data":"hi"}\n\ndata: [DONE]\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9999\r\n\r\n"
    async with here() as at:
        await at.ann.say(user="u")
        open_ = asyncio.Event()
        at.standin.script(ALICE, "raw", target="/completions", times=2, data=head + events, end="open", gate=open_)
        async with asyncio.timeout(WAIT):
            assert (await at.ann.say(user="u")).text == "hi"
            assert (await at.ann.say(user="u", stream=True)).frames[-1] == "[DONE]"
        open_.set()


async def test_a_silent_stream_gets_comments_where_they_are_wanted() -> None:
    async with here(relay={"keepalive": "20ms"}) as at:
        gate = at.standin.script(ALICE, "stall-stream", target="/completions", times=1, after=1)
        async with at.ann.streaming() as answer:
            assert "role" in (await next_frame(answer))["choices"][0]["delta"]
            assert await text_of(answer) == "You s"
            async with asyncio.timeout(WAIT):
                assert await answer.content.readuntil(b"\n\n") == b": keep-alive\n\n"
            gate.open()
            assert (await answer.read()).endswith(b"data: [DONE]\n\n")


# Keys that end by themselves -------------------------------------------------------------------------------------------


async def test_a_key_whose_token_has_run_out_starts_disabled_and_is_not_even_probed() -> None:
    clock = FakeClock()
    old = token("alice", expires=clock.wall() - 1)
    async with here([old, BOB], clock=clock, known=(old, BOB)) as at:
        pool = at.proxy.server.runtime.rooms.upstreams["achuan"].pool
        assert {key.reason for key in pool.snapshot().keys if key.state == "disabled"} == {"expired"}
        assert (await at.ann.say()).status == 200
        clock.advance(2 * 86400)
        await probe_due(at.proxy.server.runtime.rooms.upstreams["achuan"], clock)
        assert {each.key for each in at.standin.requests} == {BOB}


async def test_a_key_that_runs_out_while_it_serves_is_disabled_and_told_of_once_a_day_before(
    capfd: pytest.CaptureFixture[str],
) -> None:
    clock = FakeClock()
    ending = token("alice", expires=clock.wall() + 4 * 86400)
    async with here([ending], clock=clock, known=(ending,)) as at:
        expiry = at.proxy.server.runtime.expiry
        for hours in (20, 5, 1, 20, 5):
            clock.advance(hours * 3600)
            expiry.look()
        warned = [json.loads(each) for each in capfd.readouterr().err.splitlines() if "expires soon" in each]
        assert [each["days"] for each in warned] == [3.0, 1.9]
        assert {each["upstream"] for each in warned} == {"achuan"}
        clock.advance(2 * 86400)
        expiry.look()
        assert (await at.ann.say()).code == (503, "no_usable_key")
        assert not at.standin.requests


async def test_a_disabled_key_is_probed_with_a_question_that_makes_nothing() -> None:
    clock = FakeClock()
    async with here(clock=clock) as at:
        at.standin.script(ALICE, "status-401", times=1)
        assert (await at.ann.say()).status == 503
        clock.advance(3601)
        await probe_due(at.proxy.server.runtime.rooms.upstreams["achuan"], clock)
        assert (await at.ann.say()).status == 200
        assert len(at.standin.sessions) == 1
