"""What the openai kind sends, and what it makes of every answer: one row for each line of the table of verdicts.

Bodies have the shapes of recorded traffic of OpenAI and of servers that are compatible with it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from balancer.model import ANONYMOUS, OK, Call, Disable, Headers, Judgement, Key, Rest, Scope, Verdict
from balancer.upstreams.openai import OpenAIKind

SECRET = "sk-proj-0123456789abcdefghijklmnopqrstuvwxyz"
KEY = Key(SECRET)
KIND = OpenAIKind("openai", "https://api.openai.com/v1", {})

DEAD = Disable()
NO_MONEY = Rest(Scope.PROJECT, first=3600.0, cap=86400.0)
GROWING = Rest(Scope.PROJECT_MODEL, first=10.0, cap=300.0)


def call(path: str = "/chat/completions", headers: tuple[tuple[str, str], ...] = (), *, owned: bool = False) -> Call:
    return Call("openai", "openai", "POST", path, list(headers), ANONYMOUS, model="gpt-5.1", owned=owned)


def rests(seconds: float) -> Rest:
    return Rest(Scope.PROJECT_MODEL, seconds=seconds)


def body(message: str, type_: Any = "invalid_request_error", code: Any = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": type_, "param": None, "code": code}}, indent=2).encode()


WRONG_KEY = body(
    "Incorrect API key provided: sk-proj-0123***. You can find your API key at ...", code="invalid_api_key"
)
NO_SCOPE = body(
    "You have insufficient permissions for this operation. Missing scopes: api.responses.write. Check that you have the "
    "correct role in your organization (Reader, Writer, Owner) and project (Member, Owner), and if you're using a restricted "
    "API key, that it has the necessary scopes."
)
NO_QUOTA = "You exceeded your current quota, please check your plan and billing details."
RATE = body(
    "Rate limit reached for gpt-5.1 in organization org-x on requests per min (RPM): Limit 3, Used 3, Requested 1.",
    "requests",
    "rate_limit_exceeded",
)

TABLE: dict[str, tuple[int, bytes, Judgement]] = {
    "200": (200, b"", OK),
    "204": (204, b"", OK),
    "304": (304, b"", OK),
    "redirect": (307, b"", Judgement(Verdict.UPSTREAM, "redirect 307")),
    # 400, 404, 405, 409, 413, 415, 422, other 4xx
    "400": (
        400,
        body("Invalid value: 'x'.", code="invalid_value"),
        Judgement(Verdict.CALLER, "400 invalid_value"),
    ),
    "400 of another server": (400, b'{"error": "bad"}', Judgement(Verdict.CALLER, "400")),
    "404": (404, body("No such File object: file-1"), Judgement(Verdict.CALLER, "404 invalid_request_error")),
    **{
        str(status): (status, b"", Judgement(Verdict.CALLER, str(status)))
        for status in (405, 409, 413, 415, 418, 422, 451, 499)
    },
    # 401; 403 with the code of a dead key
    "wrong key": (401, WRONG_KEY, Judgement(Verdict.KEY, "401 not authenticated", DEAD)),
    "401 of nobody": (401, b"", Judgement(Verdict.KEY, "401 not authenticated", DEAD)),
    "401 of Anthropic": (
        401,
        b'{"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}}',
        Judgement(Verdict.KEY, "401 not authenticated", DEAD),
    ),
    "403 wrong key": (403, WRONG_KEY, Judgement(Verdict.KEY, "403 invalid_api_key", DEAD)),
    "deactivated": (
        403,
        body("The account is deactivated.", code="account_deactivated"),
        Judgement(Verdict.KEY, "403 account_deactivated", DEAD),
    ),
    "country": (
        403,
        body(
            "Country, region, or territory not supported", "request_forbidden", "unsupported_country_region_territory"
        ),
        Judgement(Verdict.KEY, "403 unsupported_country_region_territory", DEAD),
    ),
    # 403 otherwise, and a restricted key
    "no access": (
        403,
        body("Project `proj_x` does not have access to model `gpt-5.1`", code="model_not_found"),
        Judgement(Verdict.KEY, "403 model_not_found"),
    ),
    "403 of nobody": (403, b"<html>Forbidden</html>", Judgement(Verdict.KEY, "403")),
    "scope missing, 401": (401, NO_SCOPE, Judgement(Verdict.KEY, "401 invalid_request_error")),
    "scope missing, 403": (403, NO_SCOPE, Judgement(Verdict.KEY, "403 invalid_request_error")),
    # 402; 429 insufficient_quota
    "402": (
        402,
        body("Insufficient Balance", "unknown_error"),
        Judgement(Verdict.KEY, "402 payment required", NO_MONEY),
    ),
    "no quota, by code": (
        429,
        body(NO_QUOTA, "requests", "insufficient_quota"),
        Judgement(Verdict.KEY, "429 insufficient_quota", NO_MONEY),
    ),
    "no quota, by type": (
        429,
        body(NO_QUOTA, "insufficient_quota"),
        Judgement(Verdict.KEY, "429 insufficient_quota", NO_MONEY),
    ),
    "no quota, in a list": (
        429,
        b"[" + body(NO_QUOTA, "insufficient_quota") + b"]",
        Judgement(Verdict.KEY, "429 insufficient_quota", NO_MONEY),
    ),
    # 429
    "rate limit": (429, RATE, Judgement(Verdict.KEY, "429 without a delay", GROWING)),
    "429 of an address": (
        429,
        b"<html>Slow down</html>",
        Judgement(Verdict.KEY, "429 without a delay", GROWING, "429"),
    ),
    # 408, 5xx
    "408": (408, b"", Judgement(Verdict.UPSTREAM, "408")),
    "501": (501, b"", Judgement(Verdict.CALLER, "501 not implemented")),
    **{
        str(status): (
            status,
            body("Try again.", "server_error"),
            Judgement(Verdict.UPSTREAM, str(status), None, str(status)),
        )
        for status in (500, 502, 503, 504, 520, 529)
    },
}


@pytest.mark.parametrize(("status", "said", "judgement"), TABLE.values(), ids=TABLE)
def test_every_answer_means_what_the_table_says(status: int, said: bytes, judgement: Judgement) -> None:
    assert KIND.judge(call(), status, [("Content-Type", "application/json")], said) == judgement


@pytest.mark.parametrize("name", ["no access", "403 of nobody", "scope missing, 401", "scope missing, 403"])
def test_what_a_living_key_may_not_do_with_a_resource_of_its_owner_is_the_callers_affair(name: str) -> None:
    status, said, _ = TABLE[name]
    judgement = KIND.judge(call("/files/file-1", owned=True), status, [], said)
    assert (judgement.verdict, judgement.action) == (Verdict.CALLER, None)


@pytest.mark.parametrize("name", ["wrong key", "403 wrong key", "deactivated", "402", "rate limit"])
def test_a_named_resource_saves_no_dead_or_spent_key(name: str) -> None:
    status, said, judgement = TABLE[name]
    assert KIND.judge(call("/files/file-1", owned=True), status, [], said) == judgement


@pytest.mark.parametrize("status", [401, 403])
def test_a_probe_that_lacks_a_scope_has_found_a_living_key(status: int) -> None:
    assert KIND.judge(KIND.probe(), status, [], NO_SCOPE) == OK
    assert KIND.judge(KIND.probe(), status, [], WRONG_KEY).action == DEAD


# 429: how long -----------------------------------------------------------------------------------------------------------

HOUR = 3600.0


@pytest.mark.parametrize(
    ("headers", "action"),
    [
        ([("retry-after-ms", "1500"), ("Retry-After", "30")], rests(1.5)),
        ([("Retry-After-Ms", "0"), ("Retry-After", "30")], rests(30.0)),
        ([("retry-after-ms", "soon"), ("Retry-After", "30")], rests(30.0)),
        (
            [("Retry-After", "0.5"), ("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "9s")],
            rests(0.5),
        ),
        ([("Date", "Mon, 21 Sep 2026 14:13:20 GMT"), ("Retry-After", "Mon, 21 Sep 2026 14:13:50 GMT")], rests(30.0)),
        ([("Retry-After", "Mon, 21 Sep 2026 14:13:50 GMT")], GROWING),
        ([("Retry-After", "999999999")], rests(86400.0)),
        ([("retry-after", "0")], GROWING),
        ([], GROWING),
    ],
)
def test_a_429_rests_as_long_as_it_asks_for(headers: Headers, action: Rest) -> None:
    assert KIND.judge(call(), 429, headers, RATE).action == action


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(
            ("1s", 1.0),
            ("6m0s", 360.0),
            ("120ms", 0.12),
            ("1h2m3s", HOUR + 123),
            ("2m59.56s", 179.56),
            ("1h30m", 1.5 * HOUR),
        ),
        *(("20", 20.0), ("7.66", 7.66), (" 3s ", 3.0), ("400d", 86400.0)),
    ],
)
def test_a_used_up_limit_tells_when_it_is_back(text: str, seconds: float) -> None:
    headers = [("X-RateLimit-Remaining-Requests", "0"), ("X-RateLimit-Reset-Requests", text)]
    action = KIND.judge(call(), 429, headers, b"").action
    assert isinstance(action, Rest)
    assert action.scope is Scope.PROJECT_MODEL
    assert action.seconds == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "1x", "s", "1735689600", "-1s", "1s and more", "9" * 40])
def test_a_reset_that_says_no_delay_is_not_believed(text: str) -> None:
    headers = [("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", text)]
    assert KIND.judge(call(), 429, headers, b"").action == GROWING


def test_of_several_used_up_limits_the_one_that_is_back_last_counts_and_others_do_not() -> None:
    headers = [
        ("x-ratelimit-remaining-requests", "0"),
        ("x-ratelimit-reset-requests", "2s"),
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-tokens", "1m0s"),
        ("x-ratelimit-remaining-images", "5"),
        ("x-ratelimit-reset-images", "24h"),
    ]
    assert KIND.judge(call(), 429, headers, RATE).action == rests(60.0)


@pytest.mark.parametrize(
    ("headers", "said", "correlates"),
    [
        ([("retry-after", "5")], b"", "429"),
        ([("retry-after", "5")], RATE, None),
        ([("x-ratelimit-remaining-tokens", "0"), ("retry-after", "5")], b"", None),
        ([("x-ratelimit-remaining-tokens", "7"), ("retry-after", "5")], b"", "429"),
    ],
)
def test_only_a_429_that_names_no_limit_may_be_the_addresss_fault(
    headers: Headers, said: bytes, correlates: str | None
) -> None:
    assert KIND.judge(call(), 429, headers, said).correlates == correlates


# What a caller can write -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403, 404, 422, 429])
@pytest.mark.parametrize("word", ["invalid_api_key", "account_deactivated", "insufficient_quota"])
def test_words_of_the_caller_in_a_message_disable_no_key(status: int, word: str) -> None:
    said = body(f'The model `", "code": "{word}", "type": "{word}` does not exist: {word}', code="model_not_found")
    assert KIND.judge(call(), status, [], said).action not in (DEAD, NO_MONEY)


@pytest.mark.parametrize("word", ["invalid_api_key", "insufficient_quota"])
def test_a_code_counts_only_beside_its_own_status(word: str) -> None:
    for status in (400, 404, 409, 422):
        assert KIND.judge(call(), status, [], body("No.", word, word)).verdict is Verdict.CALLER


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 429, 500])
def test_no_reason_holds_text_of_a_body(status: int) -> None:
    judgement = KIND.judge(call(), status, [], body(f"Incorrect API key provided: {SECRET}", SECRET, SECRET))
    assert SECRET not in repr(judgement)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"{",
        b"[]",
        b"[[]]",
        b"null",
        b"\xff\xfe",
        b'{"error": 5}',
        b'{"error": {"code": 5, "type": []}}',
        b"[" * 9999,
    ],
)
@pytest.mark.parametrize("status", [400, 401, 402, 403, 429, 500])
def test_any_bytes_are_judged_by_their_status(status: int, said: bytes) -> None:
    assert KIND.judge(call(), status, [], said) == KIND.judge(call(), status, [], b"")


# What is sent ------------------------------------------------------------------------------------------------------------


def test_the_path_follows_the_base_url_and_nothing_but_the_key_is_added() -> None:
    asked = call("/chat/completions?x=%2F&y", (("Accept", "*/*"), ("X-Two", "1"), ("x-two", "2")))
    sent = KIND.prepare(asked, KEY)
    assert (sent.method, sent.url) == ("POST", "https://api.openai.com/v1/chat/completions?x=%2F&y")
    assert sent.headers == [*asked.headers, ("authorization", f"Bearer {SECRET}")]
    assert asked.headers == [("Accept", "*/*"), ("X-Two", "1"), ("x-two", "2")]


@pytest.mark.parametrize("base_url", ["http://10.0.0.1:9/api/v1", "http://10.0.0.1:9/api/v1/"])
def test_a_raw_path_is_appended_as_it_is(base_url: str) -> None:
    asked = Call("raw", "openai", "PUT", "/v2/odd%2Fpath;x?y", [], ANONYMOUS)
    sent = OpenAIKind("o", base_url, {}).prepare(asked, KEY)
    assert (sent.method, sent.url) == ("PUT", "http://10.0.0.1:9/api/v1/v2/odd%2Fpath;x?y")


@pytest.mark.parametrize(
    ("key_header", "credential"),
    [
        ("authorization", ("authorization", f"Bearer {SECRET}")),
        ("x-api-key", ("x-api-key", SECRET)),
        ("api-key", ("api-key", SECRET)),
    ],
)
def test_the_key_is_the_only_credential_whatever_else_was_written(key_header: str, credential: tuple[str, str]) -> None:
    fields = ("Authorization", "X-Api-Key", "Api-Key", "x-goog-api-key", "X-Session-Token")
    kind = OpenAIKind("o", "https://h/v1", dict.fromkeys(fields, "configured"), key_header)
    sent = kind.prepare(call(headers=(("Accept", "*/*"), *((name, "stray") for name in fields))), KEY)
    assert sent.headers == [("Accept", "*/*"), credential]


def test_configured_fields_replace_the_clients() -> None:
    kind = OpenAIKind("o", "https://h/v1", {"User-Agent": "ours", "OpenAI-Organization": "org-1"})
    sent = kind.prepare(call(headers=(("user-agent", "theirs"), ("Accept", "*/*"), ("USER-AGENT", "too"))), KEY)
    assert sent.headers == [
        ("Accept", "*/*"),
        ("User-Agent", "ours"),
        ("OpenAI-Organization", "org-1"),
        ("authorization", f"Bearer {SECRET}"),
    ]


@pytest.mark.parametrize(("ask", "surface"), [(KIND.probe, "probe"), (KIND.catalogue, "catalogue")])
def test_a_probe_and_the_catalogue_are_free_calls_for_the_list_of_models(ask: Any, surface: str) -> None:
    asked = ask()
    assert (asked.surface, asked.dialect, asked.method, asked.repeatable) == (surface, "openai", "GET", True)
    sent = KIND.prepare(asked, KEY)
    assert sent.url == "https://api.openai.com/v1/models"
    assert sent.headers == [("authorization", f"Bearer {SECRET}")]


def test_calls_of_our_own_are_made_as_anthropic_wants_them_and_calls_of_clients_are_theirs() -> None:
    kind = OpenAIKind("claude", "https://api.anthropic.com/v1", {}, "x-api-key")
    version = ("anthropic-version", "2023-06-01")
    assert kind.prepare(kind.probe(), KEY).headers == [version, ("x-api-key", SECRET)]
    assert kind.prepare(kind.catalogue(), KEY).headers == [version, ("x-api-key", SECRET)]
    assert kind.prepare(call("/messages"), KEY).headers == [("x-api-key", SECRET)]
