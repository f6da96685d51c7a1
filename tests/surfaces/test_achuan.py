"""An upstream that keeps the conversation, end to end: which session a request goes on with, what travels, what comes back.

Every test also proves that no turn met another in its session: `here` looks at the end.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from balancer.standin.achuan_answers import Style
from tests.fakes import FakeClock
from tests.surfaces.backend_chats import (
    ALICE,
    ALICE_TOO,
    BOB,
    CAROL,
    CHAT,
    MODEL,
    OTHER_MODEL,
    WAIT,
    beside,
    here,
    next_frame,
    text_of,
    user,
)

STALE = "对话不存在"


# Which session ---------------------------------------------------------------------------------------------------------


async def test_a_user_s_requests_share_one_session_which_is_asked_with_the_bare_token_of_its_maker() -> None:
    async with here() as at:
        first, second = await at.ann.say("one", user="u"), await at.ann.say("two", user="u")
        assert (first.text, second.text) == ("You said: one", "You said: two")
        assert len(at.created) == 1
        assert at.sessions == [int(str(first.session))] * 2
        assert [each.header("authorization") for each in at.standin.requests] == [ALICE] * 3
        assert at.created[0].json() == {"model": MODEL, "plugins": [], "mcp": []}
        assert at.completed[0].json() == {"text": "one", "sessionId": at.sessions[0], "files": []}


async def test_of_ten_first_requests_in_two_processes_one_makes_the_session() -> None:
    async with here() as at, beside(at) as other:
        held = at.standin.script(ALICE, "stall-head", target="/session", times=1)
        asked = [asyncio.ensure_future((at, other)[n % 2].ann.say(f"m{n}", user="u")) for n in range(10)]
        await at.standin.wait_for(1, WAIT)
        held.open()
        answers = await asyncio.gather(*asked)
        assert sorted(answer.text for answer in answers) == [f"You said: m{n}" for n in range(10)]
        assert len(at.created) == 1
        assert len({answer.session for answer in answers}) == 1
        assert len(at.completed) == 10


async def test_the_header_wins_over_metadata_and_that_over_the_user() -> None:
    async with here() as at:
        made = [at.standin.begin_session("alice", MODEL).number for _ in range(3)]
        everywhere: dict[str, Any] = {"metadata": {"sessionId": made[1]}, "user": "u"}
        assert (await at.ann.say(headers={"x-session-id": str(made[0])}, **everywhere)).session == str(made[0])
        assert (await at.ann.say(**everywhere)).session == str(made[1])
        assert (await at.ann.say(metadata={"sessionId": str(made[2])}, user="u")).session == str(made[2])
        assert (await at.ann.say(metadata={"sessionId": float(made[2])}, user="u")).session == str(made[2])
        assert not at.created
        assert (await at.ann.say(user="u")).session not in {str(number) for number in made}
        assert len(at.created) == 1


async def test_query_body_and_path_name_a_session_too_and_none_of_it_travels() -> None:
    async with here() as at:
        number = at.standin.begin_session("alice", MODEL).number
        answers = [
            await at.ann.say(path=f"{CHAT}?session_id={number}"),
            await at.ann.say(session_id=str(number)),
            await at.ann.say(path=f"/s/{number}{CHAT}"),
        ]
        assert [answer.session for answer in answers] == [str(number)] * 3
        assert all(set(each.json()) == {"text", "sessionId", "files"} for each in at.completed)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_explicit_session_that_the_backend_denies_is_a_404_and_never_replaced(stream: bool) -> None:
    async with here() as at:
        answer = await at.ann.say(headers={"x-session-id": "77"}, stream=stream)
        assert answer.code == (404, "session_not_found")
        assert answer.message == f"{STALE}: 77"
        assert answer.json["error"]["type"] == "invalid_request_error"
        assert answer.session is None
        assert not at.created
        assert len(at.completed) == 1
        assert (await at.ann.say(headers={"x-session-id": "77"})).status == 404
        assert len(at.completed) == 1  # remembered for a while


async def test_that_nobody_knows_a_session_is_forgotten_after_a_minute() -> None:
    clock = FakeClock()
    async with here(clock=clock) as at:
        for seconds, asked in ((0, 1), (59, 1), (2, 2)):
            clock.advance(seconds)
            assert (await at.ann.say(headers={"x-session-id": "77"})).status == 404
            assert len(at.completed) == asked


async def test_a_bound_session_that_is_no_more_is_a_404_and_stays_one() -> None:
    async with here() as at:
        made = await at.ann.say()
        at.standin.forget_session(int(str(made.session)))
        for _ in range(2):
            assert (await at.ann.say(headers={"x-session-id": str(made.session)})).status == 404
        assert len(at.created) == 1


async def test_a_stale_derived_session_is_made_anew_once_and_its_message_said_once_more() -> None:
    async with here() as at:
        first = await at.ann.say("one", user="u")
        at.standin.forget_session(int(str(first.session)))
        second = await at.ann.say("two", user="u")
        assert second.text == "You said: two"
        assert second.session != first.session
        assert len(at.created) == 2
        assert at.texts == ["one", "two", "two"]
        assert (await at.ann.say("three", user="u")).session == second.session


async def test_a_derived_session_that_is_stale_again_is_a_502_without_a_third_try() -> None:
    async with here() as at:
        at.standin.script(ALICE, "stale", target="/completions")
        answer = await at.ann.say(user="u")
        assert answer.code == (502, "backend_error")
        assert STALE in answer.message
        assert (len(at.created), len(at.completed)) == (2, 2)


async def test_renewed_by_two_requests_at_once_a_session_is_made_once() -> None:
    async with here() as at:
        first = await at.ann.say(user="u")
        at.standin.forget_session(int(str(first.session)))
        answers = await asyncio.gather(*(at.ann.say(f"m{n}", user="u") for n in range(4)))
        assert len({answer.session for answer in answers}) == 1
        assert len(at.created) == 2


async def test_an_unknown_explicit_session_is_looked_for_in_each_account_and_then_bound() -> None:
    async with here([ALICE, BOB, CAROL]) as at:
        number = at.standin.begin_session("carol", MODEL).number
        named = {"x-session-id": str(number)}
        assert (await at.ann.say("one", headers=named)).text == "You said: one"
        assert [each.key for each in at.completed] == [ALICE, BOB, CAROL]
        assert (await at.ann.say("two", headers=named)).text == "You said: two"
        assert [each.key for each in at.completed[3:]] == [CAROL]
        assert (await at.ben.say(headers=named)).status == 404
        assert len(at.completed) == 4


async def test_an_account_that_rests_may_have_the_session_that_the_others_deny() -> None:
    async with here([ALICE, BOB]) as at:
        at.standin.script(BOB, "status-429", times=1, seconds=40)
        for _ in range(2):
            await at.ann.say()  # one of them meets the refusal
        answer = await at.ann.say(headers={"x-session-id": "5"})
        assert answer.code == (429, "keys_resting")
        assert 30 <= int(answer.headers["Retry-After"]) <= 40


async def test_unknown_sessions_are_not_looked_for_where_that_is_switched_off() -> None:
    async with here(settings={"adopt_unknown_sessions": False}) as at:
        number = at.standin.begin_session("alice", MODEL).number
        assert (await at.ann.say(headers={"x-session-id": str(number)})).code == (404, "session_not_found")
        assert not at.completed
        made = await at.ann.say()
        assert (await at.ann.say(headers={"x-session-id": str(made.session)})).status == 200


async def test_an_explicit_session_that_is_no_more_is_replaced_where_that_is_wanted() -> None:
    async with here(settings={"renew_explicit": True}) as at:
        answers = [await at.ann.say(headers={"x-session-id": "77"}) for _ in range(2)]
        assert [answer.text for answer in answers] == ["You said: hello"] * 2
        (made,) = {int(str(answer.session)) for answer in answers}
        assert len(at.created) == 1
        assert at.sessions == [77, made, made]


async def test_another_client_s_session_does_not_exist() -> None:
    async with here() as at:
        made = await at.ann.say("mine")
        answer = await at.ben.say(headers={"x-session-id": str(made.session)})
        assert answer.code == (404, "session_not_found")
        assert answer.message == f"{STALE}: {made.session}"
        assert at.texts == ["mine"]


async def test_handles_are_each_client_s_own_and_each_model_s() -> None:
    async with here() as at:
        answers = [
            await at.ann.say(user="Room 1"),
            await at.ann.say(user=" room 1 "),
            await at.ben.say(user="room 1"),
            await at.ann.say(user="room 1", model=OTHER_MODEL),
        ]
        assert answers[0].session == answers[1].session
        assert len({answer.session for answer in answers}) == 3
        assert [each.json()["model"] for each in at.created] == [MODEL, MODEL, OTHER_MODEL]


async def test_a_request_that_names_none_gets_a_session_that_it_can_go_on_with() -> None:
    async with here() as at:
        first, second = await at.ann.say(), await at.ann.say()
        assert first.session != second.session
        assert (await at.ann.say(headers={"x-session-id": str(first.session)})).session == first.session
        assert len(at.created) == 2


async def test_a_handle_means_a_new_session_once_it_was_not_used_for_its_lifetime() -> None:
    clock = FakeClock()
    async with here(clock=clock, settings={"session_ttl": "1h"}) as at:
        first = await at.ann.say(user="u")
        clock.advance(3000)
        assert (await at.ann.say(user="u")).session == first.session
        clock.advance(3000)
        assert (await at.ann.say(user="u")).session == first.session
        clock.advance(3700)
        assert (await at.ann.say(user="u")).session != first.session


async def test_a_jwt_that_was_replaced_leaves_the_old_sessions_served() -> None:
    async with here([ALICE]) as at:
        made = await at.ann.say(user="u")
        runtime = at.proxy.server.runtime
        new = runtime.settings.upstreams["achuan"].model_validate(
            {"kind": "achuan", "base_url": at.url, "keys": [ALICE_TOO], "models": [MODEL]}
        )
        new.resolve("achuan", Path(), {}, lambda place, text: None)
        runtime.apply(runtime.settings.model_copy(update={"upstreams": {"achuan": new}}))
        assert (await at.ann.say(user="u")).session == made.session
        assert (await at.ann.say(headers={"x-session-id": str(made.session)})).status == 200
        assert [each.key for each in at.completed] == [ALICE, ALICE_TOO, ALICE_TOO]
        assert len(at.created) == 1


# What travels, and what comes back -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "style", [Style(split=1), Style(split=7), Style(comments=True), Style(blank=False, closed=False, end=b"\r\n")]
)
@pytest.mark.parametrize("stale", ["stale", "event-stale", "stale-english"])
async def test_a_stale_answer_is_recognised_in_every_form(style: Style, stale: str) -> None:
    async with here() as at:
        at.standin.style = style
        at.standin.script(ALICE, stale, target="/completions", times=1)
        answer = await at.ann.say(user="u")
        assert answer.text == "You said: hello"
        assert len(at.created) == 2


async def test_a_marker_behind_a_comment_or_cut_in_two_is_recognised_and_within_a_text_it_is_text() -> None:
    denial = b'data: {"err":"' + STALE.encode() + b'"}\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    async with here() as at:
        at.standin.script(ALICE, "raw", target="/completions", times=1, data=head + b": ping\n" + denial)
        assert (await at.ann.say(headers={"x-session-id": "9"})).status == 404
        for number, form in (("10", "plain"), ("11", "event")):
            at.standin.stale_as = form
            cut = at.standin.script(ALICE, "stall-stream", target="/completions", times=1, after=1)
            asked = asyncio.ensure_future(at.ann.say(headers={"x-session-id": number}))
            await at.standin.wait_for(lambda arrival: arrival is at.standin.requests[-1] and arrival.fault, WAIT)
            cut.open()
            assert (await asked).code == (404, "session_not_found")
        at.standin.says = lambda text: ['{"err":"', STALE, '"}']
        for stream in (False, True):
            answer = await at.ann.say(stream=stream)
            said = "".join(answer.deltas) if stream else answer.text
            assert said == '{"err":"' + STALE + '"}'


@pytest.mark.parametrize("style", [Style(), Style(split=1), Style(closed=False), Style(repeat=False, split=3)])
async def test_deltas_reach_the_client_exactly_as_they_came(style: Style) -> None:
    deltas = ['"hi"', "[user] x", " ", "\n", "好", "last line without an end"]
    async with here() as at:
        at.standin.style, at.standin.says = style, lambda text: deltas
        assert (await at.ann.say(stream=True)).deltas == deltas
        assert (await at.ann.say()).text == "".join(deltas)


async def test_a_stream_has_a_role_its_deltas_one_end_and_usage_only_when_asked() -> None:
    async with here() as at:
        plain = await at.ann.say("hello", stream=True)
        *frames, done = plain.frames
        assert done == "[DONE]"
        assert plain.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert plain.headers["cache-control"] == "no-cache, no-transform"
        assert plain.headers["x-accel-buffering"] == "no"
        assert len({(frame["id"], frame["created"], frame["model"], frame["object"]) for frame in frames}) == 1
        choices = [frame["choices"][0] for frame in frames]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert [each["finish_reason"] for each in choices] == [None] * (len(choices) - 1) + ["stop"]
        assert choices[-1]["delta"] == {}
        asked = await at.ann.say("hello", stream=True, stream_options={"include_usage": True})
        usage = asked.frames[-2]
        assert usage["choices"] == []
        assert usage["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


async def test_a_delta_is_passed_on_before_the_next_one_comes() -> None:
    async with here() as at:
        gate = at.standin.script(ALICE, "stall-stream", target="/completions", times=1, after=1)
        async with at.ann.streaming(user="u") as answer:
            assert (await next_frame(answer))["choices"][0]["delta"]["role"] == "assistant"
            assert await text_of(answer) == "You s"
            gate.open()
            assert await text_of(answer) == "aid: "
            assert (await answer.read()).endswith(b"data: [DONE]\n\n")


async def test_an_answer_that_was_not_streamed_is_one_completion_under_the_name_that_was_asked_for() -> None:
    async with here(settings={"aliases": {"fast": MODEL}}) as at:
        choice = {"index": 0, "message": {"role": "assistant", "content": "You said: hello"}, "finish_reason": "stop"}
        for asked, shown in ((MODEL, MODEL), (f"achuan/{MODEL}", MODEL), ("fast", "fast"), ("achuan/fast", "fast")):
            answer = (await at.ann.say("hello", model=asked)).json
            assert (answer["object"], answer["model"], answer["choices"]) == ("chat.completion", shown, [choice])
            assert answer["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        assert {each.json()["model"] for each in at.created} == {MODEL}


async def test_the_system_prompt_opens_a_made_session_and_is_in_no_later_text() -> None:
    system, developer = {"role": "system", "content": "Be brief."}, {"role": "developer", "content": "In French."}
    async with here() as at:
        for _ in range(2):
            await at.ann.say(
                system, user("one"), {"role": "assistant", "content": "a"}, user("two"), developer, user="u"
            )
        assert at.texts == ["Be brief.\nIn French.\n\ntwo", "two"]


async def test_of_several_first_requests_the_one_that_made_the_session_speaks_first_in_it() -> None:
    async with here() as at:
        held = at.standin.script(ALICE, "stall-head", target="/session", times=1)
        system = {"role": "system", "content": "Be brief."}
        asked = [asyncio.ensure_future(at.ann.say(system, user(f"m{n}"), user="u")) for n in range(5)]
        await at.standin.wait_for(1, WAIT)
        held.open()
        await asyncio.gather(*asked)
        assert [text.startswith("Be brief.") for text in at.texts] == [True, False, False, False, False]
        assert len(at.created) == 1


async def test_a_made_session_begins_with_what_was_said_before_where_that_is_wanted() -> None:
    async with here(settings={"fresh_history": "transcript"}) as at:
        await at.ann.say(
            {"role": "system", "content": "S"}, "one", {"role": "assistant", "content": "a"}, "two", user="u"
        )
        await at.ann.say("one", {"role": "assistant", "content": "a"}, "two", user="u")
        assert at.texts == ["S\n\nuser: one\n\nassistant: a\n\ntwo", "two"]


async def test_parts_become_text_and_files_and_addresses_become_lines() -> None:
    content = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,BBBB", "filename": "a.pdf"}},
        {"type": "text", "text": "please"},
    ]
    async with here() as at:
        assert (await at.ann.say(user(content))).status == 200
        said = at.completed[0].json()
        assert said["text"] == "look\nhttps://example.com/x.png\nplease"
        assert said["files"] == [
            {"name": "file000.png", "data": "data:image/png;base64,AAAA"},
            {"name": "a.pdf", "data": "data:application/pdf;base64,BBBB"},
        ]


async def test_headers_of_the_configuration_go_with_every_call() -> None:
    required = {"x-app-version": "2.1", "referer": "https://ai.example"}
    async with here(required=required, settings={"headers": required}) as at:
        assert (await at.ann.say(headers={"referer": "https://elsewhere", "cookie": "a=b"})).status == 200


async def test_members_that_mean_nothing_to_the_backend_are_accepted_and_more_than_one_choice_is_not() -> None:
    async with here() as at:
        assert (await at.ann.say(temperature=0.2, tools=[], max_tokens=5, n=1, logit_bias={})).status == 200
        several = await at.ann.say(n=2)
        assert several.code == (400, "unsupported_parameter")
        assert several.json["error"]["param"] == "n"
