"""What the gemini kind sends, and what it makes of every answer: one row for each line of the table of verdicts.

Bodies have the shapes of recorded traffic and of Google's documentation.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from balancer.errors import ProxyError
from balancer.model import ANONYMOUS, OK, Call, Disable, Headers, Judgement, Key, Rest, Scope, Verdict
from balancer.upstreams.gemini import GeminiKind
from balancer.wire import google

RPC = "type.googleapis.com/google.rpc."
SECRET = "AIzaSyD-0123456789abcdefghijklmnopqrstu"
KIND = GeminiKind("gemini", "https://generativelanguage.googleapis.com", {})
GENERATE = "/v1beta/models/gemini-2.5-flash:generateContent"

DEAD = Disable()
LEAKED = Disable(alert=True)
QUOTA_DAY = Rest(Scope.PROJECT_MODEL, until_quota_day=True)
NEVER_SERVED = Rest(Scope.KEY_MODEL, seconds=86400.0)
GROWING = Rest(Scope.PROJECT_MODEL, first=5.0, cap=300.0)


def call(path: str = GENERATE, headers: tuple[tuple[str, str], ...] = ()) -> Call:
    return Call("gemini", "gemini", "POST", path, list(headers), ANONYMOUS, model="gemini-2.5-flash")


def rests(seconds: float) -> Rest:
    return Rest(Scope.PROJECT_MODEL, seconds=seconds)


def body(code: int | str, message: str, status: str | None, *details: dict[str, Any]) -> bytes:
    error: dict[str, Any] = {"code": code, "message": message}
    if status is not None:
        error["status"] = status
    if details:
        error["details"] = details
    return json.dumps({"error": error}, indent=2).encode()


def info(reason: str, **metadata: str) -> dict[str, Any]:
    return {"@type": RPC + "ErrorInfo", "reason": reason, "domain": "googleapis.com", "metadata": metadata}


def violation(period: str, **more: Any) -> dict[str, Any]:
    return {
        "quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests",
        "quotaId": f"GenerateRequestsPer{period}PerProjectPerModel-FreeTier",
        "quotaDimensions": {"location": "global", "model": "gemini-2.5-flash"},
        **more,
    }


def quota(*violations: dict[str, Any], retry: str | None = None, limit: str = "10") -> bytes:
    message = (
        "You exceeded your current quota, please check your plan and billing details. For more information on this error, "
        "head to: https://ai.google.dev/gemini-api/docs/rate-limits.\n* Quota exceeded for metric: "
        f"generativelanguage.googleapis.com/generate_content_free_tier_requests, limit: {limit}, model: gemini-2.5-flash"
    )
    details = [
        {
            "@type": RPC + "Help",
            "links": [{"description": "Learn more about Gemini API quotas", "url": "https://ai.google.dev"}],
        }
    ]
    if violations:
        details.append({"@type": RPC + "QuotaFailure", "violations": list(violations)})
    if retry is not None:
        message += f"\nPlease retry in {retry}."
        details.append({"@type": RPC + "RetryInfo", "retryDelay": retry})
    return body(429, message, "RESOURCE_EXHAUSTED", *details)


MINUTE, DAY = violation("Minute", quotaValue="10"), violation("Day", quotaValue="250")
BARE_429 = body(429, "Resource has been exhausted (e.g. check quota).", "RESOURCE_EXHAUSTED")
INVALID_KEY = body(
    400,
    "API key not valid. Please pass a valid API key.",
    "INVALID_ARGUMENT",
    info("API_KEY_INVALID", service="generativelanguage.googleapis.com"),
    {
        "@type": RPC + "LocalizedMessage",
        "locale": "en-US",
        "message": "API key not valid. Please pass a valid API key.",
    },
)
SUSPENDED = body(
    403,
    f"Permission denied: Consumer 'api_key:{SECRET}' has been suspended.",
    "PERMISSION_DENIED",
    info("CONSUMER_SUSPENDED", consumer="projects/123456", containerInfo=f"api_key:{SECRET}"),
)

Row = tuple[int, bytes, Judgement]
TABLE: dict[str, Row] = {
    # 2xx
    "200": (200, b"", OK),
    "204": (204, b"", OK),
    # 400 with ErrorInfo API_KEY_INVALID, "API key expired"; 401
    "key invalid": (400, INVALID_KEY, Judgement(Verdict.KEY, "API key not valid", DEAD)),
    "key invalid, other words": (
        400,
        body(400, "Chiave API non valida.", "INVALID_ARGUMENT", info("API_KEY_INVALID")),
        Judgement(Verdict.KEY, "API_KEY_INVALID", DEAD),
    ),
    "key expired": (
        400,
        body(400, "API key expired. Please renew the API key.", "INVALID_ARGUMENT", info("API_KEY_INVALID")),
        Judgement(Verdict.KEY, "API key expired", DEAD),
    ),
    "401": (
        401,
        body(
            401,
            "Request had invalid authentication credentials.",
            "UNAUTHENTICATED",
            info("ACCESS_TOKEN_TYPE_UNSUPPORTED"),
        ),
        Judgement(Verdict.KEY, "401 not authenticated", DEAD),
    ),
    "401 of nobody": (401, b"", Judgement(Verdict.KEY, "401 not authenticated", DEAD)),
    # 403 suspended, leaked, project denied, SERVICE_DISABLED, API_KEY_*_BLOCKED
    "suspended": (403, SUSPENDED, Judgement(Verdict.KEY, "consumer suspended", DEAD, project="projects/123456")),
    "leaked": (
        403,
        body(403, "Your API key was reported as leaked. Please use another API key.", "PERMISSION_DENIED"),
        Judgement(Verdict.KEY, "key reported as leaked", LEAKED),
    ),
    "project denied": (
        403,
        body(403, "Your project has been denied access. Please contact support.", "PERMISSION_DENIED"),
        Judgement(Verdict.KEY, "project denied access", DEAD),
    ),
    "service disabled": (
        403,
        body(
            403,
            "Generative Language API has not been used in project 123456 before or it is disabled.",
            "PERMISSION_DENIED",
            info("SERVICE_DISABLED", consumer="projects/123456", serviceTitle="Generative Language API"),
        ),
        Judgement(Verdict.KEY, "SERVICE_DISABLED", DEAD, project="projects/123456"),
    ),
    **{
        reason: (
            403,
            body(403, "Requests to this API are blocked.", "PERMISSION_DENIED", info(reason, consumer="projects/7")),
            Judgement(Verdict.KEY, reason, DEAD, project="projects/7"),
        )
        for reason in ("API_KEY_SERVICE_BLOCKED", "API_KEY_HTTP_REFERRER_BLOCKED", "API_KEY_IP_ADDRESS_BLOCKED")
    },
    "billing disabled": (
        403,
        body(403, "This API method requires billing to be enabled.", "PERMISSION_DENIED", info("BILLING_DISABLED")),
        Judgement(Verdict.KEY, "BILLING_DISABLED", DEAD),
    ),
    # 403/404 on a named resource
    "another's file": (
        403,
        body(403, "You do not have permission to access the File abc-123 or it may not exist.", "PERMISSION_DENIED"),
        Judgement(Verdict.CALLER, "403 PERMISSION_DENIED"),
    ),
    "another's cache": (
        403,
        body(403, "CachedContent not found (or permission denied)", "PERMISSION_DENIED"),
        Judgement(Verdict.CALLER, "403 PERMISSION_DENIED"),
    ),
    "no such resource": (
        404,
        body(404, "Requested entity was not found.", "NOT_FOUND"),
        Judgement(Verdict.CALLER, "404 NOT_FOUND"),
    ),
    "no such page": (404, b"<!DOCTYPE html><title>Error 404</title>", Judgement(Verdict.CALLER, "404")),
    "unknown 403": (
        403,
        body(403, f"Permission denied on the method for Consumer 'api_key:{SECRET}'.", "PERMISSION_DENIED"),
        Judgement(Verdict.CALLER, "403 PERMISSION_DENIED"),
    ),
    # 429, QuotaFailure …PerMinute… with RetryInfo
    "per minute": (429, quota(MINUTE, retry="17s"), Judgement(Verdict.KEY, "429 per minute", rests(17.0))),
    "per minute, fractions": (
        429,
        quota(MINUTE, retry="0.559s"),
        Judgement(Verdict.KEY, "429 per minute", rests(0.559)),
    ),
    "per minute, for years": (
        429,
        quota(MINUTE, retry="31536000s"),
        Judgement(Verdict.KEY, "429 per minute", rests(86400.0)),
    ),
    "per minute, no delay": (429, quota(MINUTE), Judgement(Verdict.KEY, "429 per minute without a delay", GROWING)),
    "per minute, a delay of nothing": (
        429,
        quota(MINUTE, retry="0s"),
        Judgement(Verdict.KEY, "429 per minute without a delay", GROWING),
    ),
    "per minute, in a list": (
        429,
        b"[" + quota(MINUTE, retry="9s") + b"]",
        Judgement(Verdict.KEY, "429 per minute", rests(9.0)),
    ),
    "per minute, as an event": (
        429,
        b"data: " + json.dumps(json.loads(quota(MINUTE, retry="9s"))).encode() + b"\r\n\r\n",
        Judgement(Verdict.KEY, "429 per minute", rests(9.0)),
    ),
    # 429, …PerDay…
    "per day": (429, quota(DAY, retry="17s"), Judgement(Verdict.KEY, "429 per day", QUOTA_DAY)),
    "per day and per minute": (429, quota(MINUTE, DAY, retry="17s"), Judgement(Verdict.KEY, "429 per day", QUOTA_DAY)),
    # 429, "limit: 0"
    "limit 0 in words": (
        429,
        quota(violation("Day"), violation("Minute"), retry="17s", limit="0"),
        Judgement(Verdict.KEY, "429 limit 0", NEVER_SERVED),
    ),
    "limit 0 in numbers": (
        429,
        quota(violation("Day", quotaValue="0")),
        Judgement(Verdict.KEY, "429 limit 0", NEVER_SERVED),
    ),
    "limit 0.5 is not 0": (
        429,
        quota(MINUTE, retry="3s", limit="0.5"),
        Judgement(Verdict.KEY, "429 per minute", rests(3.0)),
    ),
    # 429 without details
    "bare 429": (429, BARE_429, Judgement(Verdict.KEY, "429 without a delay", GROWING, "429")),
    "429 of an address": (
        429,
        b"<html>Sorry, unusual traffic</html>",
        Judgement(Verdict.KEY, "429 without a delay", GROWING, "429"),
    ),
    "429 with a delay and no quota": (429, quota(retry="12s"), Judgement(Verdict.KEY, "429", rests(12.0), "429")),
    "429 that names its project": (
        429,
        body(
            429,
            "Quota exceeded for quota metric 'Generate Content API requests per minute'.",
            "RESOURCE_EXHAUSTED",
            info(
                "RATE_LIMIT_EXCEEDED",
                consumer="projects/123456",
                quota_limit="GenerateContentRequestsPerMinutePerProjectPerRegion",
                quota_limit_value="10",
            ),
        ),
        Judgement(Verdict.KEY, "429 per minute without a delay", GROWING, "429", "projects/123456"),
    ),
    # 400 FAILED_PRECONDITION "location", other 4xx
    "location": (
        400,
        body(400, "User location is not supported for the API use.", "FAILED_PRECONDITION"),
        Judgement(Verdict.CALLER, "400 FAILED_PRECONDITION"),
    ),
    "bad argument": (
        400,
        body(400, "* GenerateContentRequest.contents: contents is not specified\n", "INVALID_ARGUMENT"),
        Judgement(Verdict.CALLER, "400 INVALID_ARGUMENT"),
    ),
    "conflict": (409, body(409, "Exists.", "ALREADY_EXISTS"), Judgement(Verdict.CALLER, "409 ALREADY_EXISTS")),
    "too large": (413, b"", Judgement(Verdict.CALLER, "413")),
    "cancelled": (499, body(499, "Cancelled.", "CANCELLED"), Judgement(Verdict.CALLER, "499 CANCELLED")),
    # 500, 502, 503, 504
    "500": (
        500,
        body(500, "An internal error has occurred.", "INTERNAL"),
        Judgement(Verdict.UPSTREAM, "500", correlates="500"),
    ),
    "502": (502, b"<!DOCTYPE html><title>Error 502</title>", Judgement(Verdict.UPSTREAM, "502", correlates="502")),
    "503": (
        503,
        body(503, "The model is overloaded.", "UNAVAILABLE"),
        Judgement(Verdict.UPSTREAM, "503", correlates="503"),
    ),
    "504": (
        504,
        body(504, "Deadline expired.", "DEADLINE_EXCEEDED"),
        Judgement(Verdict.UPSTREAM, "504", correlates="504"),
    ),
    "501": (501, body(501, "Not implemented.", "UNIMPLEMENTED"), Judgement(Verdict.CALLER, "501 not implemented")),
    # errors of the interactions family: the HTTP status decides
    "interactions 400": (
        400,
        body("invalid_request", "API key not valid is what the caller wrote", None),
        Judgement(Verdict.CALLER, "400"),
    ),
    "interactions 401": (
        401,
        body("unauthenticated", "No.", None),
        Judgement(Verdict.KEY, "401 not authenticated", DEAD),
    ),
    "interactions 404": (404, body("not_found", "Interaction not found.", None), Judgement(Verdict.CALLER, "404")),
    "interactions 429": (
        429,
        body("too_many_requests", "Too many requests.", None),
        Judgement(Verdict.KEY, "429 without a delay", GROWING, "429"),
    ),
    "interactions 503": (
        503,
        body("service_unavailable", "Try again.", None),
        Judgement(Verdict.UPSTREAM, "503", correlates="503"),
    ),
    # redirects
    "304": (304, b"", OK),
    "307": (307, b"", Judgement(Verdict.UPSTREAM, "redirect 307")),
}


@pytest.mark.parametrize(("status", "said", "judgement"), TABLE.values(), ids=TABLE)
def test_every_answer_means_what_the_table_says(status: int, said: bytes, judgement: Judgement) -> None:
    assert KIND.judge(call(), status, [("Content-Type", "application/json")], said) == judgement


@pytest.mark.parametrize(("status", "said"), [row[:2] for row in TABLE.values()], ids=TABLE)
def test_no_reason_holds_key_text(status: int, said: bytes) -> None:
    judgement = KIND.judge(call(), status, [], said)
    assert SECRET not in repr(judgement)


@pytest.mark.parametrize(
    ("headers", "action"),
    [
        ([("Retry-After", "30")], rests(30.0)),
        ([("retry-after", "0")], GROWING),
        ([("Retry-After", "soon")], GROWING),
        ([("Retry-After", "999999999")], rests(86400.0)),
        ([("Date", "Mon, 21 Sep 2026 14:13:20 GMT"), ("Retry-After", "Mon, 21 Sep 2026 14:13:50 GMT")], rests(30.0)),
        ([("Retry-After", "Mon, 21 Sep 2026 14:13:50 GMT")], GROWING),
    ],
)
def test_a_429_without_details_rests_as_long_as_its_header_says(headers: Headers, action: Rest) -> None:
    assert KIND.judge(call(), 429, headers, BARE_429).action == action


def test_the_body_knows_better_than_the_header() -> None:
    judgement = KIND.judge(call(), 429, [("Retry-After", "3")], quota(MINUTE, retry="17s"))
    assert judgement.action == rests(17.0)


def test_an_unfinished_resumable_upload_is_no_redirect() -> None:
    assert KIND.judge(call(), 308, [("Range", "bytes=0-99")], b"") == OK
    assert KIND.judge(call(), 308, [("Location", "/x")], b"").verdict is Verdict.UPSTREAM


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "Invalid value at 'contents': \"API key expired\""),
        (400, 'Unknown name "API key not valid": Cannot find field.'),
        (403, "You do not have permission to access the File your-api-key-was-reported-as-leaked or it may not exist."),
        (404, "models/API key expired is not found for API version v1beta"),
    ],
)
def test_words_of_the_caller_in_a_message_disable_no_key(status: int, message: str) -> None:
    assert KIND.judge(call(), status, [], body(status, message, "INVALID_ARGUMENT")).verdict is Verdict.CALLER


@pytest.mark.parametrize("field", ["Authorization", "x-goog-user-project"])
@pytest.mark.parametrize("name", ["401", "suspended", "service disabled", "leaked"])
def test_a_credential_of_the_callers_own_is_not_held_against_the_key(field: str, name: str) -> None:
    status, said, _ = TABLE[name]
    judgement = KIND.judge(call("/v1beta/files:register", ((field, "theirs"),)), status, [], said)
    assert (judgement.verdict, judgement.action, judgement.project) == (Verdict.CALLER, None, None)


def test_a_429_of_another_balancer_is_understood() -> None:
    said = google.render(ProxyError(429, "keys_resting", "Every key is resting.", retry_after=7))
    assert KIND.judge(call(), 429, [], said) == Judgement(Verdict.KEY, "429", rests(7.0), "429")


KEY = Key(SECRET)


def test_the_key_travels_in_its_field_and_nothing_else_changes() -> None:
    asked = call(GENERATE + "?alt=sse&x=%2F", (("Accept", "*/*"), ("X-Two", "1"), ("x-two", "2")))
    sent = KIND.prepare(asked, KEY)
    assert sent.url == f"https://generativelanguage.googleapis.com{GENERATE}?alt=sse&x=%2F"
    assert sent.method == "POST"
    assert sent.headers == [*asked.headers, ("x-goog-api-key", SECRET)]
    assert asked.headers == [("Accept", "*/*"), ("X-Two", "1"), ("x-two", "2")]


@pytest.mark.parametrize("base_url", ["http://10.0.0.1:9/gemini", "http://10.0.0.1:9/gemini/"])
def test_a_path_prefix_of_the_upstream_is_kept(base_url: str) -> None:
    assert GeminiKind("g", base_url, {}).prepare(call(), KEY).url == f"http://10.0.0.1:9/gemini{GENERATE}"


def test_configured_fields_replace_the_clients_but_never_the_key() -> None:
    kind = GeminiKind("g", "https://h", {"User-Agent": "ours", "X-Goog-Api-Key": "wrong", "X-Gateway": "1"})
    sent = kind.prepare(call(headers=(("user-agent", "theirs"), ("x-goog-api-key", "stray"), ("Accept", "*/*"))), KEY)
    assert sent.headers == [("Accept", "*/*"), ("User-Agent", "ours"), ("X-Gateway", "1"), ("x-goog-api-key", SECRET)]


def spoken_in_openais(path: str, headers: tuple[tuple[str, str], ...] = (), surface: str = "openai") -> Call:
    return Call(surface, "openai", "POST", path, list(headers), ANONYMOUS, model="gemini-2.5-flash")


def test_openais_dialect_goes_below_googles_path_for_it_with_the_key_as_bearer_and_no_second_credential() -> None:
    kind = GeminiKind("g", "https://h/p/", {"Authorization": "Basic x", "X-Goog-Api-Key": "wrong", "X-Gateway": "1"})
    headers = (("Accept", "*/*"), ("authorization", "stray"), ("x-goog-api-key", "stray"))
    sent = kind.prepare(spoken_in_openais("/chat/completions?x=%2F", headers), KEY)
    assert sent.url == "https://h/p/v1beta/openai/chat/completions?x=%2F"
    assert sent.headers == [("Accept", "*/*"), ("X-Gateway", "1"), ("authorization", f"Bearer {SECRET}")]


@pytest.mark.parametrize("dialect", ["openai", "gemini"])
@pytest.mark.parametrize(
    ("path", "credential"),
    [
        ("/v1beta/openai/chat/completions", ("authorization", f"Bearer {SECRET}")),
        ("/v1beta/models/openai/x", ("x-goog-api-key", SECRET)),
        ("/v1alpha/anything?x=1", ("x-goog-api-key", SECRET)),
    ],
)
def test_a_raw_call_keeps_its_path_and_gets_the_credential_that_google_wants_there(
    dialect: str, path: str, credential: tuple[str, str]
) -> None:
    sent = KIND.prepare(Call("raw", dialect, "PATCH", path, [], ANONYMOUS), KEY)
    assert (sent.method, sent.url) == ("PATCH", f"https://generativelanguage.googleapis.com{path}")
    assert sent.headers == [credential]


def in_a_list(said: bytes) -> bytes:
    return b"[" + said + b"]\n" if said.startswith(b"{") else said


@pytest.mark.parametrize(("status", "said", "judgement"), TABLE.values(), ids=TABLE)
def test_an_error_in_a_list_of_one_means_the_same(status: int, said: bytes, judgement: Judgement) -> None:
    assert KIND.judge(spoken_in_openais("/chat/completions"), status, [], in_a_list(said)) == judgement


def test_a_stray_credential_that_does_not_travel_leaves_the_key_to_blame() -> None:
    asked = spoken_in_openais("/chat/completions", (("Authorization", "Bearer stray"),))
    assert KIND.judge(asked, 401, [], b"").action == DEAD


def test_the_catalogue_is_googles_list_in_openais_dialect() -> None:
    asked = KIND.catalogue()
    assert (asked.surface, asked.dialect, asked.method, asked.path) == ("catalogue", "openai", "GET", "/models")
    assert KIND.prepare(asked, KEY).url == "https://generativelanguage.googleapis.com/v1beta/openai/models"


def test_a_probe_is_a_free_call() -> None:
    probe = KIND.probe()
    assert (probe.method, probe.path, probe.repeatable) == ("GET", "/v1beta/models?pageSize=1", True)
    assert KIND.prepare(probe, KEY).headers == [("x-goog-api-key", SECRET)]
