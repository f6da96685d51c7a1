"""Upload addresses that carry their own credential."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.wire.headers import strip_query
from balancer.wire.upload_url import INTERNAL, MEMBER, Grant, rewrite, verify

KEY, OTHER = b"k" * 32, b"o" * 32
GRANT = Grant("a1b2c3d4", "team-a")
TARGET = "/upload/v1beta/files?upload_id=AOCed_x-1&upload_protocol=resumable"


def signed(
    address: str = "https://up.example" + TARGET,
    public: str = "http://here:8000",
    prefix: str = "",
    grant: Grant = GRANT,
) -> str:
    ((name, value),) = rewrite([("X-Goog-Upload-URL", address)], grant, KEY, public, prefix)
    assert name == "X-Goog-Upload-URL"
    return value


def checked(address: str, *keys: bytes) -> Grant | None:
    parts = urlsplit(address)
    bare, removed = strip_query(f"{parts.path}?{parts.query}", INTERNAL)
    return verify(bare, removed.get(MEMBER, ""), keys or (KEY,))


def test_an_address_is_turned_to_us_and_verifies() -> None:
    address = signed()
    assert address.startswith(f"http://here:8000{TARGET}&balancer=")
    assert checked(address) == GRANT


@pytest.mark.parametrize("name", ["x-goog-upload-url", "X-Goog-Upload-Control-URL", "Location", "LOCATION"])
def test_every_field_that_holds_an_address_is_rewritten_and_no_other(name: str) -> None:
    fields = [
        ("X-Other", "https://up.example/x"),
        (name, "https://up.example" + TARGET),
        ("X-Goog-Upload-Status", "active"),
    ]
    changed = rewrite(fields, GRANT, KEY, "http://here", "")
    assert changed[0] == fields[0]
    assert changed[2] == fields[2]
    assert changed[1][1].startswith("http://here/upload/")


def test_the_path_of_the_public_url_is_kept_and_that_of_the_upstream_s_goes() -> None:
    address = signed("https://up.example/base" + TARGET, "https://proxy.example/s/x/gemini", "/base")
    assert address.startswith(f"https://proxy.example/s/x/gemini{TARGET}&")
    assert checked(address.replace("https://proxy.example/s/x/gemini", "http://here")) == GRANT
    assert signed("https://up.example/basement" + TARGET, prefix="/base").startswith("http://here:8000/basement/")


def test_an_address_without_query_gets_one() -> None:
    assert checked(signed("https://up.example/upload/v1beta/files/x1")) == GRANT


def test_the_order_and_spelling_of_members_make_no_difference() -> None:
    address = urlsplit(signed())
    members = dict(reversed(parse_qsl(address.query)))
    assert checked(f"http://elsewhere{address.path}?{urlencode(members)}") == GRANT


def test_credentials_and_sessions_in_an_address_neither_stay_in_it_nor_break_it() -> None:
    address = signed("https://up.example" + TARGET + "&key=AIza-secret&session_id=s")
    assert "secret" not in address
    assert "session_id" not in address
    assert checked(address + "&key=client-token&session_id=x") == GRANT


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("AOCed_x-1", "AOCed_x-2"),
        ("/files?", "/files/x?"),
        ("v1beta", "v1alpha"),
        ("resumable", "raw"),
        ("&balancer=", "&extra=1&balancer="),
        ("&balancer=", "&upload_id=second&balancer="),
    ],
)
def test_an_address_that_was_changed_does_not_hold(before: str, after: str) -> None:
    address = signed()
    assert before in address
    assert checked(address.replace(before, after, 1)) is None


def test_another_grant_in_the_same_address_does_not_hold() -> None:
    ours, theirs = signed(), signed(grant=Grant("a1b2c3d4", "team-b"))
    owner, client, signature = ours.rpartition("=")[2].split(".")
    _, other, _ = theirs.rpartition("=")[2].split(".")
    head = ours.rpartition("=")[0]
    assert checked(f"{head}={owner}.{client}.{signature}") == GRANT
    assert checked(f"{head}={owner}.{other}.{signature}") is None
    assert checked(f"{head}={client}.{owner}.{signature}") is None


@pytest.mark.parametrize(
    "value", ["", ".", "..", "a.b", "a.b.c", "a.b.c.d", "é.ü.x", "....", "a" * 5000, "%%%.%%%.%%%"]
)
def test_nonsense_is_no_grant(value: str) -> None:
    assert verify(TARGET, value, [KEY]) is None


def test_any_of_several_keys_will_do_and_no_other() -> None:
    assert checked(signed(), OTHER, KEY) == GRANT
    assert checked(signed(), OTHER) is None
    assert verify(TARGET, "x.y.z", []) is None


@given(owner=st.text(max_size=40), client=st.text(max_size=40), identity=st.text(min_size=1, max_size=40))
def test_whatever_is_signed_comes_back(owner: str, client: str, identity: str) -> None:
    try:
        grant = Grant(owner.encode().decode(), client.encode().decode())
        query = urlencode({"upload_id": identity})
    except UnicodeEncodeError:
        return
    assert checked(signed(f"https://up.example/upload/v1beta/files?{query}", grant=grant)) == grant
