"""The field `model` of a form, and forms that must not be read in two ways."""

from __future__ import annotations

import pytest

from balancer.errors import ProxyError
from balancer.wire.multipart import LONGEST_HEAD, MOST_PARTS, is_form, model_field
from balancer.wire.openai import apply

TYPE = "multipart/form-data; boundary=b1"
FILE = (
    b'--b1\r\nContent-Disposition: form-data; name="file"; filename="a; name=\\"model\\""\r\nContent-Type: audio/x\r\n\r\n'
    b"\r\n-\x00\xff\r\n"
)
MODEL = b'--b1\r\nContent-Disposition: form-data; name="model"\r\n\r\nopenai/whisper-1\r\n'
END = b"--b1--\r\n"


@pytest.mark.parametrize(
    "body", [FILE + MODEL + END, MODEL + FILE + END, MODEL + b"--b1--", b"\r\n" + MODEL + END + b"epilogue"]
)
def test_the_field_is_found_and_can_be_exchanged(body: bytes) -> None:
    field = model_field(body, TYPE)
    assert field is not None
    assert field.value == "openai/whisper-1"
    after = apply(body, [(field.start, field.end, b"whisper-1")])
    assert after == body.replace(b"openai/whisper-1", b"whisper-1")


@pytest.mark.parametrize(
    "content_type",
    [
        TYPE,
        'multipart/form-data; boundary="b1"',
        "Multipart/Form-Data;BOUNDARY=b1",
        "multipart/form-data; boundary=b1; charset=utf-8",
    ],
)
def test_the_boundary_comes_from_the_content_type(content_type: str) -> None:
    assert is_form(content_type)
    assert model_field(MODEL + END, content_type) is not None


@pytest.mark.parametrize("content_type", [None, "", "application/json", "multipart/mixed; boundary=b1"])
def test_other_types_are_no_forms(content_type: str | None) -> None:
    assert not is_form(content_type)


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Disposition: form-data; name=model",
        b'content-disposition:form-data;name="model"',
        b'Content-Disposition: Form-Data; filename="x"; NAME="mo\\del" ;',
        b'Content-Type: text/plain\r\nContent-Disposition: form-data; name="model"\r\nContent-Transfer-Encoding: 8BIT',
    ],
)
def test_a_name_is_read_in_any_spelling(head: bytes) -> None:
    field = model_field(b"--b1 \t\r\n" + head + b"\r\n\r\nm\r\n" + END, TYPE)
    assert field is not None
    assert field.value == "m"


def test_a_form_without_the_field_has_none() -> None:
    assert model_field(FILE + END, TYPE) is None
    assert model_field(MODEL.replace(b'"model"', b'"Model"') + END, TYPE) is None
    assert model_field(END, TYPE) is None


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "begin"),
        (b"preamble\r\n" + MODEL + END, "begin"),
        (MODEL, "no end"),
        (MODEL + MODEL + END, "twice"),
        (MODEL.replace(b"\r\n", b"\n") + END, "followed by text"),
        (b"--b12" + MODEL[4:] + END, "followed by text"),
        (b"--b1\r\n\r\nm\r\n\r\nx\r\n" + END, "malformed"),
        (b"--b1\r\nContent-Type: x\r\n\r\nm\r\n" + END, "no name"),
        (MODEL.replace(b"form-data;", b"form-data;\r\n\t") + END, "no name"),
        (MODEL.replace(b"form-data", b"attachment") + END, "no form field"),
        (MODEL.replace(b'name="model"', b"name*=utf-8''model") + END, "encoded"),
        (MODEL.replace(b'name="model"', b'name="file"; name="model"') + END, "two"),
        (MODEL.replace(b'name="model"', b"name=mo del") + END, "malformed"),
        (MODEL.replace(b'name="model"', b'name="model') + END, "malformed"),
        (MODEL.replace(b'name="model"', b"x=y") + END, "no name"),
        (MODEL.replace(b"\r\n\r\n", b"\r\nContent-Disposition: form-data; name=x\r\n\r\n") + END, "two names"),
        (MODEL.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n") + END, "encoded"),
        (MODEL.replace(b"openai", b"\xff") + END, "UTF-8"),
        (MODEL.replace(b"openai", b"x" * 2000) + END, "long"),
        (b"--b1\r\n" + b"x" * (LONGEST_HEAD + 10), "no head"),
        (b'--b1\r\nContent-Disposition: form-data; name="model"\r\n\r\n--b1\r\n' + MODEL[6:] + END, "no body"),
        (FILE.replace(b"\r\n-", b"\n" + MODEL) + END, "bare line feed"),
        (FILE.replace(b"\r\n\r\n\r\n", b"\r\n\r\n\n--b1") + END, "bare line feed"),
        (b'--b1\r\nContent-Disposition: form-data; name="model"\r\nX: a\r\n b\r\n\r\nm\r\n' + END, "malformed"),
        (FILE * (MOST_PARTS + 1) + END, "more than"),
    ],
)
def test_what_servers_might_read_differently_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(ProxyError, match=why) as refused:
        model_field(body, TYPE)
    assert (refused.value.status, refused.value.code) == (400, "invalid_body")


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=b1; boundary=b2"],
)
def test_a_form_without_one_boundary_is_refused(content_type: str) -> None:
    with pytest.raises(ProxyError, match="boundary"):
        model_field(MODEL + END, content_type)


def test_the_first_part_of_a_form_shows_the_field_or_not() -> None:
    body = MODEL + FILE
    found = [model_field(body[:cut], TYPE, complete=False) for cut in range(4, len(body))]
    first = len(MODEL) + len(b"--b1") - 4
    assert found[:first] == [None] * first
    assert all(field == model_field(body + END, TYPE) for field in found[first:])
    assert model_field(FILE + b"\x00" * 100_000, TYPE, complete=False) is None
