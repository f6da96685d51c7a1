"""Properties of the OpenAI codecs: a splice is the edit of the object it stands for, and no cut changes what is found."""

from __future__ import annotations

import json
import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import ProxyError
from balancer.model import Edit
from balancer.wire.event_boundary import EventBoundary
from balancer.wire.json_places import Malformed, Outline
from balancer.wire.multipart import Field, model_field
from balancer.wire.openai import TOKEN_LIMITS, Asked, apply, edits, read
from balancer.wire.openai_ids import in_windows, place
from balancer.wire.openai_lists import Merge, Page, paging

NAMES = ["model", "session_id", "metadata", "messages", "stream", "user", "x", 'a"b', "\\", "max", *TOKEN_LIMITS]
TEXTS = st.sampled_from(["", " ", "m", 'x"model": "y"', '\\"', "\\\\", "{", "]}", "é你", "\n", ",", 'session_id":1,'])
VALUES = st.recursive(
    st.sampled_from([None, True, False, 0, -1, 7, 500, 1.5]) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=6,
)
METADATA = st.dictionaries(st.sampled_from(["sessionId", "a", "model", 'q"']), VALUES, max_size=3)
BODIES = st.lists(
    st.tuples(st.sampled_from(NAMES), VALUES)
    | st.tuples(st.just("metadata"), METADATA)
    | st.tuples(st.just("model"), TEXTS),
    max_size=6,
)
UNIQUE = BODIES.map(lambda pairs: list(dict(pairs).items()))
BLANK = st.sampled_from(["", "", " ", "\n\t", "\r\n  "])


@st.composite
def spelled(draw: st.DrawFn, pairs: st.SearchStrategy[list[tuple[str, Any]]] = UNIQUE, escapes: bool = False) -> bytes:
    """An object written with any blanks, and on request with escaped letters in its names."""

    def blank() -> str:
        return draw(BLANK)

    def write(value: Any) -> str:
        if isinstance(value, dict):
            return obj(list(value.items()))
        if isinstance(value, list):
            return "[" + blank() + ",".join(blank() + write(each) + blank() for each in value) + "]"
        return json.dumps(value, ensure_ascii=draw(st.booleans()))

    def obj(members: list[tuple[str, Any]]) -> str:
        written = [f"{blank()}{name(each)}{blank()}:{blank()}{write(value)}{blank()}" for each, value in members]
        return "{" + (",".join(written) or blank()) + "}"

    def name(text: str) -> str:
        if escapes and draw(st.booleans()):
            return '"' + "".join(f"\\u{ord(letter):04x}" for letter in text) + '"'
        return json.dumps(text)

    return (blank() + obj(draw(pairs)) + blank()).encode()


def edited(tree: dict[str, Any], model: str | None, maximum: int | None, member: str | None) -> dict[str, Any]:
    """What `edits` is to come to, done on the object."""
    tree = json.loads(json.dumps(tree))
    tree.pop("session_id", None)
    if isinstance(tree.get("metadata"), dict) and "sessionId" in tree["metadata"]:
        del tree["metadata"]["sessionId"]
        if not tree["metadata"]:
            del tree["metadata"]
    if model is not None:
        tree["model"] = model
    if maximum is not None:
        given = [name for name in TOKEN_LIMITS if tree.get(name) is not None]
        for name in given:
            if isinstance(tree[name], bool | str | list | dict) or not 0 <= tree[name] <= maximum:
                tree[name] = maximum
        if not given and member is not None:
            tree[member] = maximum
    return tree


def untouched(body: bytes, changes: list[Edit]) -> bool:
    """Whether the edits are in order and do not overlap, so that all between them is as it came."""
    places = [place for start, end, _ in changes for place in (start, end)]
    return places == sorted(places) and all(0 <= place <= len(body) for place in places)


CHANGES = st.tuples(
    st.sampled_from([None, "m", 'a"é\\']), st.sampled_from([None, 0, 7, 100]), st.sampled_from([None, *TOKEN_LIMITS])
)


@given(spelled(), CHANGES)
def test_a_splice_is_the_edit_of_the_object(body: bytes, change: tuple[str | None, int | None, str | None]) -> None:
    asked = read(body)
    model, maximum, member = change
    changes = edits(asked, model=model, maximum=maximum, limit_member=member)
    assert not asked.rewritten
    assert untouched(body, changes)
    expected = edited(json.loads(body), model, maximum, member)
    assert orjson.loads(apply(body, changes)) == expected
    kept = [name for name in json.loads(body) if name in expected]
    assert [name for name in orjson.loads(apply(body, changes)) if name in kept] == kept


@given(spelled(BODIES, escapes=True), CHANGES)
def test_members_that_stand_twice_or_escaped_are_edited_like_the_last_one(
    body: bytes, change: tuple[str | None, int | None, str | None]
) -> None:
    asked = read(body)
    model, maximum, member = change
    changes = edits(asked, model=model, maximum=maximum, limit_member=member)
    assert untouched(body, changes)
    assert orjson.loads(apply(body, changes)) == edited(json.loads(body), model, maximum, member)
    assert asked.session_id == json.loads(body).get("session_id")
    if asked.rewritten:
        assert [(start, end) for start, end, _ in changes] == [(0, len(body))]


@given(spelled(), st.data())
def test_the_first_part_of_a_body_tells_the_same_as_far_as_it_goes(body: bytes, data: st.DataObject) -> None:
    whole = read(body)
    cut = data.draw(st.integers(body.index(b"{") + 1, len(body)))
    part = read(body[:cut], complete=False)
    for name, value in part.values.items():
        if name == "messages":
            assert bool(value) == (isinstance(whole.values[name], list) and bool(whole.values[name]))
        else:
            assert value == whole.values[name]
    assert part.places.items() <= whole.places.items()
    assert part.model_hidden == ("model" not in part.values)
    model = None if part.model_hidden else "other"
    changes = edits(part, model=model)
    after = orjson.loads(apply(body, changes))
    assert after == edited_part(json.loads(body), part, model)


def edited_part(tree: dict[str, Any], part: Asked, model: str | None) -> dict[str, Any]:
    """The same with members removed only where the part shows them."""
    known = {
        name: value for name, value in tree.items() if name in part.values or name not in ("session_id", "metadata")
    }
    return edited(known, model, None, None) | {name: tree[name] for name in tree if name not in known}


@given(spelled(BODIES, escapes=True))
def test_a_body_that_is_only_outlined_tells_the_same(body: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("balancer.wire.openai.LARGEST_PARSED", 0)
        outlined = read(body)
    parsed = read(body)
    assert outlined.rewritten == parsed.rewritten
    assert (outlined.model, outlined.stream, outlined.store) == (parsed.model, parsed.stream, parsed.store)
    assert outlined.no_messages == parsed.no_messages
    assert edits(outlined, model="m", maximum=7, limit_member="max_tokens") == edits(
        parsed, model="m", maximum=7, limit_member="max_tokens"
    )


@given(st.binary(max_size=60) | st.text('{}[]":,\\ amodeltrunl019.e-', max_size=60).map(str.encode))
def test_what_is_no_json_object_is_refused_and_nothing_else_is(body: bytes) -> None:
    def strict(text: str) -> float:
        if text == "NaN" or math.isinf(float(text)):
            raise ValueError
        return float(text)

    try:
        tree = json.loads(body.decode(), parse_constant=strict, parse_float=strict)
        fits = isinstance(tree, dict) and not body.startswith(b"\xef\xbb\xbf")
    except (ValueError, RecursionError):
        fits = False
    if fits:
        assert read(body).text
    else:
        with pytest.raises(ProxyError) as refused:
            read(body)
        assert (refused.value.status, refused.value.code) == (400, "invalid_json")


@given(spelled(), st.lists(st.integers(0, 400), max_size=5))
def test_the_depth_of_a_place_is_that_of_the_brackets_before_it(body: bytes, steps: list[int]) -> None:
    depth, inside, skip = 0, False, False
    depths: list[int | None] = [0]
    for byte in body.decode("latin-1"):
        if skip:
            skip = False
        elif inside:
            skip = byte == "\\"
            inside = byte != '"'
        else:
            inside = byte == '"'
            depth += (byte in "[{") - (byte in "]}")
        depths.append(None if inside else depth)
    outline = Outline(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("balancer.wire.json_places._PIECE", 3)
        for step in sorted({min(step, len(body)) for step in steps}):
            if depths[step] is not None:
                assert outline.depth(step) == depths[step]
                continue
            with pytest.raises(Malformed):
                outline.depth(step)
            break


EVENTS = st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b"data: a", b": c", b"\n\n"]), max_size=12).map(b"".join)


@given(EVENTS, st.data())
def test_a_comment_on_a_boundary_changes_no_event_however_the_stream_is_cut(stream: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(stream)))
    boundary = EventBoundary()
    pieces = [stream[at : at + 1] for at in range(cut)] if data.draw(st.booleans()) else [stream[:cut]]
    on_boundary = [boundary.feed(piece) for piece in pieces][-1:] or [boundary.feed(b"")]
    before = _lines(stream[:cut])
    assert on_boundary == [before[-2:] == ["", ""] or before == [""]]
    if on_boundary == [True]:
        assert _events(stream[:cut] + b": keep-alive\n\n" + stream[cut:]) == _events(stream)


def _lines(stream: bytes) -> list[str]:
    return stream.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _events(stream: bytes) -> list[list[str]]:
    events: list[list[str]] = [[]]
    for line in _lines(stream)[:-1]:
        if not line:
            events.append([])
        elif line.startswith("data"):
            events[-1].append(line)
    return [event for event in events if event]


IDS = st.sampled_from(
    ["file-abc", "vs_1234", "resp_9aZ", "files/x-1", "call_abc1", "user", "gpt-4o", "batch_é", "é" * 300]
)


@given(st.lists(IDS, max_size=20), st.data())
def test_ids_are_found_wherever_the_windows_cut(ids: list[str], data: st.DataObject) -> None:
    body = json.dumps(
        {"input": [{"file_id": each, "text": f'x "{each}" y'} for each in ids]}, ensure_ascii=False
    ).encode()
    whole = in_windows([body]).named
    assert whole == list(
        dict.fromkeys(each for each in ids if each in ("file-abc", "vs_1234", "resp_9aZ", "files/x-1"))
    )
    size = data.draw(st.integers(1, 2000))
    windows = [body[max(0, at - 1100) : at + size] for at in range(0, len(body), size)]
    found = in_windows(windows).named
    assert [
        each for each in found if each != "file_id"
    ] == whole  # a name whose colon is behind the cut looks like a value


@given(st.sampled_from(["GET", "POST", "DELETE", "PATCH"]), st.text("/fileschat%2Fbrun_.é", max_size=40))
def test_any_path_is_about_something_or_nothing(method: str, path: str) -> None:
    found = place(method, path)
    assert all(found.ids)
    assert (found.root_path is not None) == bool(found.ids)


FIELDS = st.lists(
    st.tuples(
        st.sampled_from(["model", "file", "Model", "prompt"]),
        st.sampled_from([b"", b"m/x", b"\r\n", b"--b", b"\x00\xff"]),
    ),
    max_size=5,
)


@given(FIELDS, st.data())
def test_the_model_of_a_form_is_found_and_cut_forms_show_it_or_nothing(
    fields: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    body = b"".join(
        b'--b1\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)
        for name, value in fields
    )
    body = (body or b"--b1\r\nContent-Disposition: form-data; name=x\r\n\r\n\r\n") + b"--b1--\r\n"
    models = [value for name, value in fields if name == "model"]
    if len(models) > 1 or b"\x00\xff" in models:
        with pytest.raises(ProxyError):
            model_field(body, "multipart/form-data; boundary=b1")
        return
    found = model_field(body, "multipart/form-data; boundary=b1")
    assert (found is None) == (not models)
    if found is not None:
        assert body[found.start : found.end] == models[0] == found.value.encode()
    cut = data.draw(st.integers(4, len(body)))
    part = model_field(body[:cut], "multipart/form-data; boundary=b1", complete=False)
    assert part is None or part == found
    assert isinstance(part, Field | None)


@given(
    st.dictionaries(
        st.integers(0, 60), st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 9)), max_size=30
    ),
    st.integers(1, 7),
    st.booleans(),
    st.integers(1, 5),
)
def test_pages_of_several_owners_give_each_item_once_in_order(
    things: dict[int, tuple[str, bool, int]], limit: int, ascending: bool, size: int
) -> None:
    sign = 1 if ascending else -1
    items = {
        owner: sorted(
            ({"id": f"file-{n}", "created_at": made} for n, (whose, _, made) in things.items() if whose == owner),
            key=lambda item: sign * int(str(item["created_at"])),
        )
        for owner in "abc"
    }
    hidden = {f"file-{n}" for n, (_, is_hidden, _) in things.items() if is_hidden}
    seen: list[dict[str, Any]] = []
    after = ""
    while True:
        query = f"limit={limit}&order={'asc' if ascending else 'desc'}&after={after}"
        merge = Merge("files", paging("files", query), "abc")
        shown = dict.fromkeys("abc", 0)
        while wanted := merge.wanting():
            for owner in wanted:
                page = items[owner][shown[owner] : shown[owner] + size]
                shown[owner] += size
                more = shown[owner] < len(items[owner])
                merge.add(owner, Page(page, str(page[-1]["id"]) if more and page else None), hidden)
        answer = orjson.loads(merge.page())
        assert len(answer["data"]) <= limit
        seen += answer["data"]
        if not answer["has_more"]:
            break
        after = answer["last_id"]
    assert sorted(item["id"] for item in seen) == sorted(f"file-{n}" for n in things if f"file-{n}" not in hidden)
    made = [sign * item["created_at"] for item in seen]
    assert made == sorted(made)
