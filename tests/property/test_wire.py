"""Properties of the codecs and of redaction: for any input, not for examples."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote_plus

import orjson
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import ProxyError
from balancer.model import ANONYMOUS, Call, Disable, Edit, Rest, Verdict
from balancer.observe.redaction import SHORT, Redactor
from balancer.relay.replay import spliced
from balancer.upstreams.gemini import GeminiKind
from balancer.wire.google import LONGEST_DELAY, GoogleError, parse, render
from balancer.wire.headers import HOP_BY_HOP, REQUEST_DROP, end_to_end, parse_retry_after, strip_query

NAMES = frozenset({"key", "api_key", "session_id"})

TOKENS = st.sampled_from(
    ["a", "Key", "key", "api_key", "%6bey", "k+y", "&", "=", "?", "%", "%2", "%2F", "+", "é", "\udc80", "1"]
)
TARGETS = st.lists(TOKENS, max_size=20).map(lambda parts: "/p?" + "".join(parts)) | st.text(max_size=30).map(
    lambda t: "/" + t
)

JSON = st.recursive(
    st.sampled_from(
        [
            None,
            True,
            0,
            -1,
            2**70,
            1.5,
            float("inf"),
            float("nan"),
            "",
            "0",
            "17s",
            "-1s",
            "\ud800",
            "projects/1",
            "Day",
        ]
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)
DETAILS = st.dictionaries(
    st.sampled_from(["@type", "reason", "metadata", "violations", "retryDelay"]),
    JSON
    | st.sampled_from(["17s", "API_KEY_INVALID"])
    | st.just({"consumer": "projects/1", "quota_limit": "PerDay"})
    | st.lists(st.fixed_dictionaries({"quotaId": JSON, "quotaDimensions": JSON}), max_size=2),
)
ERRORS = st.dictionaries(
    st.sampled_from(["code", "message", "status", "details"]), JSON | st.lists(DETAILS | JSON, max_size=3)
).map(lambda error: {"error": error})


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda data: b'{"error":' + data))
def test_any_bytes_can_be_parsed_as_an_error(body: bytes) -> None:
    assert isinstance(parse(body), GoogleError | None)


@given(
    ERRORS,
    st.sampled_from(["{}", "[{}]", "data: {}\n\n", "event: error\r\ndata:{}"]),
    st.sampled_from([400, 401, 403, 429, 503]),
)
def test_whatever_an_error_holds_it_is_judged_and_delays_stay_sane(error: Any, wrapping: str, status: int) -> None:
    body = wrapping.replace("{}", json.dumps(error)).encode()
    found = parse(body)
    assert found is not None
    assert found.retry_delay is None or 0 <= found.retry_delay <= LONGEST_DELAY
    call = Call("gemini", "gemini", "GET", "/v1beta/models", [], ANONYMOUS)
    judgement = GeminiKind("gemini", "http://h", {}).judge(call, status, [], body)
    match judgement.action:
        case Rest(seconds=seconds):
            assert judgement.verdict is Verdict.KEY
            assert seconds is None or 0 < seconds <= LONGEST_DELAY
        case Disable():
            assert judgement.verdict is Verdict.KEY
        case None:
            assert judgement.verdict is not Verdict.KEY


@given(st.integers(400, 599), st.text(max_size=30), st.none() | st.floats(0, 86400))
def test_an_error_of_ours_survives_being_written_and_read(status: int, message: str, wait: float | None) -> None:
    found = parse(render(ProxyError(status, "some_code", message, retry_after=wait)))
    assert found is not None
    assert (found.code, found.message) == (status, message)
    assert (found.retry_delay is None) == (wait is None)
    if wait is not None and found.retry_delay is not None:
        assert wait <= found.retry_delay <= wait + 0.0011


@given(TARGETS)
def test_stripping_takes_the_named_members_and_nothing_else(target: str) -> None:
    rest, removed = strip_query(target, NAMES)
    path, _, query = target.partition("?")
    kept = [member for member in query.split("&") if unquote_plus(member.partition("=")[0]) not in NAMES]
    if removed:
        assert rest == path + ("?" + "&".join(kept) if "&".join(kept) else "")
    else:
        assert rest is target
    before = [(name, value) for name, value in parse_qsl(query, keep_blank_values=True) if name not in NAMES]
    assert parse_qsl(rest.partition("?")[2], keep_blank_values=True) == before
    assert strip_query(rest, NAMES) == (rest, {})


@given(st.text(max_size=40), st.floats())
def test_any_retry_after_is_a_wait_or_nothing(value: str, now: float) -> None:
    seconds = parse_retry_after(value, now)
    assert seconds is None or 0 <= seconds < float("inf")


FIELD_NAMES = st.sampled_from(["Accept", "X-A", "x-a", "TE", "Cookie", "Host", "x-forwarded-y", "Upgrade", "X-B"])
FIELDS = st.lists(
    st.tuples(FIELD_NAMES, st.text(max_size=5))
    | st.tuples(st.just("Connection"), st.sampled_from(["close", "keep-alive", "x-a", "keep-alive, X-B", ",", ""])),
    max_size=8,
)


@given(FIELDS)
def test_what_travels_is_a_part_of_what_came_in_its_order(fields: list[tuple[str, str]]) -> None:
    kept = end_to_end(fields, REQUEST_DROP)
    remaining = iter(fields)
    assert all(any(field is other for other in remaining) for field in kept)
    assert not {name.lower() for name, _ in kept} & (HOP_BY_HOP | REQUEST_DROP)
    assert end_to_end(kept, REQUEST_DROP) == kept


LONG = st.text(st.sampled_from("abAB01-_/+=.~% \"\\'é€\U0001f511&<>"), min_size=SHORT, max_size=14).filter(str.strip)
FORMS: st.SearchStrategy[Callable[[str], str]] = st.sampled_from([
    lambda secret: secret,
    quote,
    lambda secret: quote(secret, safe=""),
    quote_plus,
    lambda secret: json.dumps(secret)[1:-1],
    lambda secret: json.dumps(secret)[1:-1].replace("/", "\\/"),
    lambda secret: orjson.dumps(secret).decode()[1:-1],
])  # fmt: skip


@given(st.lists(LONG, min_size=1, max_size=6), st.data())
def test_no_secret_survives_in_any_form_between_any_words(secrets: list[str], data: st.DataObject) -> None:
    words = st.sampled_from(
        ["", " ", "x", "?key=", "&key=", "Bearer ", "AIza", '"', "api_key:", "\n", "%", "\\", *secrets]
    )
    parts = st.tuples(words, st.sampled_from(secrets), FORMS, words).map(
        lambda part: part[0] + part[2](part[1]) + part[3]
    )
    text = "".join(data.draw(st.lists(parts, min_size=1, max_size=4)))
    redactor = Redactor(secrets)
    masked = redactor.text(text)
    for secret in secrets:
        assert secret not in masked
    assert redactor.data(text.encode()).decode() == masked
    assert redactor.contains(text.encode())


@given(st.sampled_from(["k1", "p@s", "a b", "é1"]), FORMS, st.sampled_from([" ", "(", '"', "=", "\n"]))
def test_a_short_secret_does_not_survive_as_a_word(secret: str, form: Callable[[str], str], edge: str) -> None:
    masked = Redactor([secret]).text(f"{edge}{form(secret)}{edge}")
    assert form(secret) not in masked


@given(st.text('abc.:/ 0\n\\"', max_size=40))
def test_what_holds_no_secret_stays_the_same_object(text: str) -> None:
    redactor = Redactor(["AIzaSyKnown-0123456789", "d1"])
    assert redactor.text(text) is text
    data = text.encode()
    assert redactor.data(data) is data


@st.composite
def cut_bodies(draw: st.DrawFn) -> tuple[bytes, list[bytes], list[Edit]]:
    """A body, its pieces, and splices of it in order and without overlap."""
    body = draw(st.binary(max_size=40))
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=6)))
    pieces = [body[start:end] for start, end in pairwise([0, *cuts, len(body)])]
    places = sorted(draw(st.lists(st.integers(0, len(body)), max_size=8)))
    edits = [(start, end, draw(st.binary(max_size=5))) for start, end in zip(places[::2], places[1::2], strict=False)]
    return body, pieces, edits


@given(cut_bodies())
def test_splices_do_not_depend_on_how_a_body_was_cut_into_pieces(case: tuple[bytes, list[bytes], list[Edit]]) -> None:
    body, pieces, edits = case
    expected, place = b"", 0
    for start, end, new in edits:
        expected += body[place:start] + new
        place = end
    assert b"".join(spliced(pieces, edits)) == expected + body[place:]
