"""Google's error dialect, both ways."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from balancer.errors import ProxyError
from balancer.wire.google import GoogleError, Quota, parse, render


def rendered(error: ProxyError) -> dict[str, Any]:
    answer = orjson.loads(render(error))
    assert list(answer) == ["error"]
    content: dict[str, Any] = answer["error"]
    assert list(content) == ["code", "message", "status", "details"]
    return content


@pytest.mark.parametrize(
    ("status", "code", "word"),
    [
        (400, "invalid_body", "INVALID_ARGUMENT"),
        (400, "resources_on_different_keys", "FAILED_PRECONDITION"),
        (401, "missing_api_key", "UNAUTHENTICATED"),
        (403, "model_not_allowed", "PERMISSION_DENIED"),
        (404, "unknown_url", "NOT_FOUND"),
        (405, "method_not_allowed", "UNIMPLEMENTED"),
        (408, "request_timeout", "DEADLINE_EXCEEDED"),
        (409, "session_busy", "ABORTED"),
        (413, "request_too_large", "INVALID_ARGUMENT"),
        (417, "expectation_failed", "INVALID_ARGUMENT"),
        (429, "keys_resting", "RESOURCE_EXHAUSTED"),
        (499, "client_left", "CANCELLED"),
        (500, "internal_error", "INTERNAL"),
        (502, "upstream_error", "UNAVAILABLE"),
        (503, "no_usable_key", "UNAVAILABLE"),
        (504, "upstream_timeout", "DEADLINE_EXCEEDED"),
        (507, "storage", "INTERNAL"),
    ],
)
def test_every_status_has_its_google_word(status: int, code: str, word: str) -> None:
    content = rendered(ProxyError(status, code, "Something."))
    assert (content["code"], content["status"], content["message"]) == (status, word, "Something.")
    assert content["details"][0]["reason"] == code.upper()


@pytest.mark.parametrize(
    ("seconds", "delay"),
    [(12, "12s"), (1.5, "1.5s"), (0.0001, "0.001s"), (0, "0s"), (-3, "0s"), (86400.0, "86400s")],
)
def test_a_wait_is_told_as_retry_info(seconds: float, delay: str) -> None:
    detail = rendered(ProxyError(429, "keys_resting", "Wait.", retry_after=seconds))["details"][0]
    assert detail == {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


def test_a_message_that_is_not_unicode_still_makes_an_answer() -> None:
    assert rendered(ProxyError(404, "unknown_url", "Invalid URL (/\udcff)"))["message"] == "Invalid URL (/\\udcff)"


def test_what_is_rendered_can_be_parsed() -> None:
    error = parse(render(ProxyError(429, "keys_resting", "Wait.", retry_after=2.5)))
    assert error == GoogleError(429, "RESOURCE_EXHAUSTED", "Wait.", ("KEYS_RESTING",), retry_delay=2.5)


RPC = "type.googleapis.com/google.rpc."
QUOTA: dict[str, Any] = {
    "error": {
        "code": 429,
        "message": "You exceeded your current quota, please check your plan and billing details.",
        "status": "RESOURCE_EXHAUSTED",
        "details": [
            {"@type": RPC + "Help", "links": [{"description": "Learn more", "url": "https://ai.google.dev"}]},
            {
                "@type": RPC + "QuotaFailure",
                "violations": [
                    {
                        "quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests",
                        "quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier",
                        "quotaDimensions": {"location": "global", "model": "gemini-2.5-flash"},
                        "quotaValue": "10",
                    }
                ],
            },
            {"@type": RPC + "RetryInfo", "retryDelay": "17.5s"},
            {"@type": RPC + "ErrorInfo", "reason": "RATE_LIMIT", "metadata": {"consumer": "projects/123"}},
        ],
    }
}
PARSED = GoogleError(
    code=429,
    status="RESOURCE_EXHAUSTED",
    message="You exceeded your current quota, please check your plan and billing details.",
    reasons=("RATE_LIMIT",),
    consumer="projects/123",
    retry_delay=17.5,
    quotas=(
        Quota(
            "GenerateRequestsPerMinutePerProjectPerModel-FreeTier",
            "generativelanguage.googleapis.com/generate_content_free_tier_requests",
            "gemini-2.5-flash",
            "10",
        ),
    ),
    itemised=True,
)
PRETTY = json.dumps(QUOTA, indent=2).encode()


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(QUOTA).encode(),
        PRETTY,
        b"\xef\xbb\xbf \r\n" + PRETTY + b"\n",
        b"[" + PRETTY + b"\n]\n",
        b"data: " + json.dumps(QUOTA).encode() + b"\r\n\r\n",
        b"event: error\ndata:" + json.dumps(QUOTA).encode(),
        b"data: " + PRETTY.replace(b"\n", b"\ndata: ") + b"\n\n",
        b": comment\n\ndata: {}\n\ndata: " + json.dumps(QUOTA).encode() + b"\n\n",
    ],
    ids=["object", "pretty", "padded", "list of one", "event", "named event", "event of many lines", "later event"],
)
def test_an_error_is_found_in_every_wrapping(body: bytes) -> None:
    assert parse(body) == PARSED


def test_an_error_of_the_interactions_family_has_a_word_for_its_code() -> None:
    body = b'{"error":{"message":"Request contains an invalid argument.","code":"invalid_request"}}'
    assert parse(body) == GoogleError("invalid_request", "", "Request contains an invalid argument.")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"{}", b"[1]", b'"error"', b'{"errors":[]}', b"<!DOCTYPE html><p>502", b'{"error":', b"data:",
        b"[[[", b"[" * 5000, b'{"candidates":[]}', b"data: [DONE]\n\n",
    ],
)  # fmt: skip
def test_what_is_no_error_is_none(body: bytes) -> None:
    assert parse(body) is None


def test_bytes_that_are_not_utf8_do_not_hide_the_error() -> None:
    error = parse(b'{"error":{"code":400,"message":"Invalid \xff value"}}')
    assert error == GoogleError(400, "", "Invalid \ufffd value")


def test_half_a_surrogate_pair_does_not_hide_the_error() -> None:
    error = parse(b'{"error":{"code":400,"message":"Invalid \\ud83d"}}')
    assert error == GoogleError(400, "", "Invalid \ud83d")


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [
        ("17s", 17.0),
        ("17.5s", 17.5),
        ("0s", 0.0),
        (30, 30.0),
        ("-4s", 0.0),
        ("315576000000s", 86400.0),
        ("NaNs", None),
        ("1e400s", None),
        ("soon", None),
        (True, None),
        ({"seconds": 5}, None),
        (None, None),
    ],
)
def test_delays_are_read_and_cut_to_a_day(delay: Any, seconds: float | None) -> None:
    error = parse(orjson.dumps({"error": {"details": [{"retryDelay": delay}]}}))
    assert error is not None
    assert error.retry_delay == seconds


@pytest.mark.parametrize(
    ("consumer", "project"),
    [("projects/123", "projects/123"), ("api_key:AIzaSyA", None), ("projects/1\nx", None), (7, None)],
)
def test_only_a_project_is_taken_for_a_consumer(consumer: Any, project: str | None) -> None:
    error = parse(orjson.dumps({"error": {"details": [{"metadata": {"consumer": consumer}}]}}))
    assert error is not None
    assert error.consumer == project


@pytest.mark.parametrize(
    "body",
    [
        {"error": "unauthorized"},
        {"error": None},
        {"error": []},
        {"error": {"code": True, "details": {"a": 1}}},
        {"error": {"details": [1, None, {"violations": [1, {"quotaDimensions": []}], "metadata": []}]}},
        {"error": {"message": {"a": 1}, "status": 3, "code": 1.5}},
    ],
)
def test_members_of_the_wrong_type_count_as_absent(body: Any) -> None:
    error = parse(orjson.dumps(body))
    assert error is not None
    assert error.code is None
    assert error.retry_delay is None
