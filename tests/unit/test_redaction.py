"""Secrets in text and bytes."""

from __future__ import annotations

import json
import time
from urllib.parse import quote, quote_plus

import orjson
import pytest

from balancer.model import fingerprint
from balancer.observe.redaction import Redactor

GOOGLE = "AIzaSyD-0123456789abcdefghijklmnopqrstu"
ODD = 'pa ss/wörd"\\=%'
LONGER = GOOGLE + "-and-more"


def label(secret: str) -> str:
    return f"[key:{fingerprint(secret)}]"


def both(redactor: Redactor, text: str) -> str:
    """The masked text, which is the same for a string and for its bytes."""
    masked = redactor.text(text)
    assert redactor.data(text.encode()) == masked.encode()
    assert redactor.contains(text.encode()) is (masked != text)
    return masked


@pytest.mark.parametrize("secret", [GOOGLE, ODD, "k/1+x=", "team-a-secret", "sk-" + "x" * 2000])
def test_a_secret_is_masked_in_every_form_that_is_promised(secret: str) -> None:
    forms = {
        secret,
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        quote(secret, safe="").lower() if secret == ODD else secret,
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        orjson.dumps(secret).decode()[1:-1],
        json.dumps(secret)[1:-1].replace("/", "\\/").replace("=", "\\u003d"),
    }
    redactor = Redactor([secret, "another-secret"])
    for form in forms:
        assert both(redactor, f"<{form}>") == f"<{label(secret)}>"


def test_what_holds_no_secret_is_the_same_object() -> None:
    redactor = Redactor([GOOGLE, "k1"])
    text, data = "/v1beta/models/k12?alt=sse", b"\xff\x00 nothing"
    assert redactor.text(text) is text
    assert redactor.data(data) is data


def test_the_longest_secret_wins() -> None:
    redactor = Redactor([GOOGLE, LONGER, GOOGLE[:20]])
    assert both(redactor, f"{LONGER} {GOOGLE} {GOOGLE[:20]}") == f"{label(LONGER)} {label(GOOGLE)} {label(GOOGLE[:20])}"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("k1", "K"),
        ("(k1) k1, a-k1.", "(K) K, a-K."),
        ("k12 xk1 k1_", "k12 xk1 k1_"),
        ('{"a":"b\\nk1"}', '{"a":"b\\nK"}'),
        ("?q=%20k1", "?q=%20K"),
        ('"\\u0020k1"', '"\\u0020K"'),
        ("xk1 k1x k1", "xk1 k1x K"),
    ],
)
def test_a_short_secret_is_masked_as_a_whole_word_only(text: str, masked: str) -> None:
    assert both(Redactor(["k1"]), text) == masked.replace("K", label("k1"))


def test_a_short_secret_inside_a_long_one_is_left_to_the_long_one() -> None:
    assert both(Redactor(["ab", "ab-cdefgh"]), "ab-cdefgh ab-c") == f"{label('ab-cdefgh')} {label('ab')}-c"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("key AIza" + "x" * 35, "key [redacted]"),
        ("AIzaShort", "AIzaShort"),
        ("AQ." + "Ab8" * 12, "[redacted]"),
        ("token bal_" + "A-_" * 14 + "z", "token [redacted]"),
        ("Authorization: Bearer abc.def~1", "Authorization: Bearer [redacted]"),
        ("bearer  token-1", "bearer  [redacted]"),
        ("Bearer authentication is needed", "Bearer authentication is needed"),
        ("a Bearer token.", "a Bearer token."),
        ("/m?key=abc&alt=sse", "/m?key=[redacted]&alt=sse"),
        ("/m?alt=sse&api_key=a%2Bb#x", "/m?alt=sse&api_key=[redacted]#x"),
        ('"uri": "/m?alt=sse\\u0026access_token=abc"', '"uri": "/m?alt=sse\\u0026access_token=[redacted]"'),
        ("/u?upload_id=1&balancer=o.c.5f5f", "/u?upload_id=1&balancer=[redacted]"),
        ("/m?monkey=abc&pageToken=abc&key=", "/m?monkey=abc&pageToken=abc&key="),
    ],
)
def test_what_has_the_shape_of_a_credential_is_masked(text: str, masked: str) -> None:
    assert both(Redactor([]), text) == masked


def test_a_known_secret_is_named_by_its_fingerprint_where_shapes_would_hide_it() -> None:
    text = f"/m?key={GOOGLE} Bearer {GOOGLE}"
    assert both(Redactor([GOOGLE]), text) == f"/m?key={label(GOOGLE)} Bearer {label(GOOGLE)}"


def test_blank_secrets_mask_nothing() -> None:
    text = "a  b"
    assert Redactor(["", " ", "\n"]).text(text) is text


def test_masked_json_is_still_json() -> None:
    redactor = Redactor([GOOGLE, ODD])
    body = orjson.dumps({"error": {"message": f"Consumer 'api_key:{GOOGLE}' {ODD}"}})
    message = orjson.loads(redactor.data(body))["error"]["message"]
    assert message == f"Consumer 'api_key:{label(GOOGLE)}' {label(ODD)}"


def test_two_hundred_keys_over_a_mebibyte_take_a_moment() -> None:
    redactor = Redactor(
        [f"AIza{number:035d}" for number in range(100)] + [f"{number:03d}-{'x' * 30}" for number in range(100)]
    )
    data = (b'{"text": "An internal error has occurred: 17 bad Bears & AIza"}, ' * 20_000)[: 1 << 20]
    assert redactor.data(data) is data
    began = time.process_time()
    assert redactor.data(data) is data
    assert time.process_time() - began < 0.5, "it takes about 20 ms; a scan per key takes 20 times that"
