"""Resource ids of OpenAI's API in paths, bodies and answers, and lists of several owners."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from balancer.errors import ProxyError
from balancer.model import Effect
from balancer.relay.replay import OVERLAP
from balancer.wire.naming import Naming
from balancer.wire.openai_ids import OpenaiNaming, Place, born, in_windows, place
from balancer.wire.openai_lists import MOST_PAGES, Merge, Page, Paging, paging, read_page
from balancer.wire.resources import MOST_NAMED, Born


@pytest.mark.parametrize(
    ("path", "ids", "root_path"),
    [
        ("/v1/files/file-abc", ("file-abc",), "/v1/files/file-abc"),
        ("/files/file-abc/content", ("file-abc",), "/files/file-abc"),
        ("/v1/files/file-abc/", ("file-abc",), "/v1/files/file-abc"),
        ("/v1/uploads/upload_1/parts", ("upload_1",), "/v1/uploads/upload_1"),
        ("/v1/batches/batch_1/cancel", ("batch_1",), "/v1/batches/batch_1"),
        ("/v1/responses/resp_1", ("resp_1",), "/v1/responses/resp_1"),
        ("/v1/responses/resp_1/input_items", ("resp_1",), "/v1/responses/resp_1"),
        ("/v1/conversations/conv_1/items/msg_1", ("conv_1",), "/v1/conversations/conv_1"),
        ("/v1/vector_stores/vs_1/files/file-1/content", ("vs_1", "file-1"), "/v1/vector_stores/vs_1"),
        ("/v1/vector_stores/vs_1/file_batches/vsfb_1", ("vs_1",), "/v1/vector_stores/vs_1"),
        ("/v1/assistants/asst_1", ("asst_1",), "/v1/assistants/asst_1"),
        ("/v1/threads/thread_1/runs/run_1/steps/step_1", ("thread_1", "run_1"), "/v1/threads/thread_1"),
        ("/v1/threads/thread_1/messages/msg_1", ("thread_1",), "/v1/threads/thread_1"),
        ("/v1/containers/cntr_1/files/cfile_1/content", ("cntr_1",), "/v1/containers/cntr_1"),
        ("/v1/evals/eval_1/runs/evalrun_1/output_items", ("eval_1", "evalrun_1"), "/v1/evals/eval_1"),
        ("/v1/fine_tuning/jobs/ftjob-1/events", ("ftjob-1",), "/v1/fine_tuning/jobs/ftjob-1"),
        ("/v1/fine_tuning/checkpoints/ft:gpt%3Aa/permissions/p", ("ft:gpt:a",), "/v1/models/ft:gpt%3Aa"),
        ("/v1/videos/video_1/content", ("video_1",), "/v1/videos/video_1"),
        ("/v1/videos/characters/char_1", ("char_1",), "/v1/videos/characters/char_1"),
        ("/v1/skills/skill_1/versions/2", ("skill_1",), "/v1/skills/skill_1"),
        ("/v1/chat/completions/chatcmpl-1/messages", ("chatcmpl-1",), "/v1/chat/completions/chatcmpl-1"),
        ("/v1/realtime/calls/rtc_1/hangup", ("rtc_1",), "/v1/realtime/calls/rtc_1"),
        ("/v1beta/openai/files/files/abc", ("files/abc",), "/v1beta/openai/files/files/abc"),
        ("/openai/v1/files/files%2Fabc/content", ("files/abc",), "/openai/v1/files/files%2Fabc"),
        ("/v1/files", (), None),
        ("/v1/files/", (), None),
        ("/v1/files//content", (), None),
        ("/v1/responses/input_tokens", (), None),
        ("/v1/responses/compact", (), None),
        ("/v1/threads/runs", (), None),
        ("/v1/chat/completions", (), None),
        ("/v1/fine_tuning/alpha/graders/run", (), None),
        ("/v1/models/gpt-5.1", (), None),
        ("/v1/realtime/client_secrets", (), None),
        ("", (), None),
    ],
)
def test_a_path_names_its_root_first(path: str, ids: tuple[str, ...], root_path: str | None) -> None:
    found = place("GET", path)
    assert (found.ids, found.root_path) == (ids, root_path)


@pytest.mark.parametrize(
    ("method", "path", "effect"),
    [
        ("POST", "/v1/files", Effect.CREATE),
        ("POST", "/v1/threads/runs", Effect.CREATE),
        ("POST", "/v1/threads/thread_1/runs", Effect.CREATE),
        ("POST", "/v1/evals/eval_1/runs", Effect.CREATE),
        ("POST", "/v1/videos/video_1/remix", Effect.CREATE),
        ("POST", "/v1/uploads/upload_1/complete", Effect.CREATE),
        ("POST", "/v1/fine_tuning/jobs", Effect.CREATE),
        ("POST", "/v1/responses", Effect.CREATE),
        ("POST", "/v1/responses/compact", Effect.NONE),
        ("POST", "/v1/embeddings", Effect.NONE),
        ("POST", "/v1/uploads/upload_1/parts", Effect.NONE),
        ("POST", "/v1/threads/thread_1/messages", Effect.NONE),
        ("POST", "/v1/threads/thread_1/runs/run_1/cancel", Effect.NONE),
        ("POST", "/v1/batches/batch_1/cancel", Effect.READ),
        ("POST", "/v1/assistants/asst_1", Effect.READ),
        ("GET", "/v1/batches/batch_1", Effect.READ),
        ("GET", "/v1/files/file-1/content", Effect.NONE),
        ("GET", "/v1/files", Effect.LIST),
        ("GET", "/v1/chat/completions", Effect.LIST),
        ("GET", "/v1/fine_tuning/jobs", Effect.LIST),
        ("GET", "/v1/threads", Effect.NONE),
        ("GET", "/v1/vector_stores/vs_1/files", Effect.NONE),
        ("DELETE", "/v1/files/file-1", Effect.DELETE),
        ("DELETE", "/v1/vector_stores/vs_1/files/file-1", Effect.NONE),
        ("DELETE", "/v1/files", Effect.NONE),
        ("PUT", "/v1/files/file-1", Effect.NONE),
    ],
)
def test_method_and_path_tell_what_a_call_does(method: str, path: str, effect: Effect) -> None:
    found = place(method, path)
    assert found.effect is effect
    assert (found.listed is not None) == (effect is Effect.LIST)


def test_only_a_stored_completion_is_a_creation() -> None:
    assert place("POST", "/v1/chat/completions") == Place(
        effect=Effect.CREATE, repeatable=True, if_stored=True, scans=True
    )
    assert not place("POST", "/v1/responses").if_stored


@pytest.mark.parametrize(
    ("method", "path", "repeatable"),
    [
        ("GET", "/v1/files/file-1/content", True),
        ("HEAD", "/v1/files/file-1", True),
        ("POST", "/v1/embeddings", True),
        ("POST", "/v1/completions", True),
        ("POST", "/v1/moderations", True),
        ("POST", "/v1/messages", True),
        ("POST", "/v1/messages/count_tokens", True),
        ("POST", "/v1/responses/input_tokens", True),
        ("POST", "/v1/responses", False),
        ("POST", "/v1/images/generations", False),
        ("POST", "/v1/files", False),
        ("POST", "/v1/chat/completions/chatcmpl-1", False),
        ("DELETE", "/v1/files/file-1", False),
    ],
)
def test_only_what_changes_nothing_may_be_repeated(method: str, path: str, repeatable: bool) -> None:
    assert place(method, path).repeatable == repeatable


@pytest.mark.parametrize(
    ("method", "path", "scans"),
    [
        ("POST", "/v1/responses", True),
        ("POST", "/v1/threads/thread_1/runs", True),
        ("POST", "/v1/embeddings", False),
        ("GET", "/v1/files/file-1", False),
        ("DELETE", "/v1/files/file-1", False),
    ],
)
def test_only_bodies_that_may_name_resources_are_scanned(method: str, path: str, scans: bool) -> None:
    assert place(method, path).scans == scans


@pytest.mark.parametrize(
    "each",
    ["file-abc", "file_1", "batch_67", "resp_a", "conv_-", "vs_abc123", "asst_1", "thread_x", "run_x", "cntr_1", "video_1",
     "eval_1", "ftjob-1", "skill_1", "upload_1", "chatcmpl-1", "files/abc", "batches/abc", "other_AbC123", "my-thing-01234",
     "497f6eca-6276-4993-bfeb-53cbbba6f08e", "65f0c3a1b2c3d4e5f6a7b8c9", "vs_" + "x" * 128],
)  # fmt: skip
def test_what_is_shaped_like_an_id_is_a_candidate(each: str) -> None:
    assert in_windows([json.dumps({"a": [each]}).encode()]).named == [each]
    assert in_windows([b'{"a":"' + each.replace("-", "\\u002d").replace("/", "\\/").encode() + b'"}']).named == [each]
    assert in_windows([b'{"a":"\\u00%02x%s"}' % (ord(each[0]), each[1:].encode())]).named == [each]
    for other in (f"{each} ", f'"{each}"', f"see {each}", {each: 1}, f"{each}\\"):
        assert in_windows([json.dumps({"a": other}).encode()]).named == []


@pytest.mark.parametrize(
    "each",
    [
        "get_weather",
        "input_text",
        "user",
        "assistant",
        "gpt-4o-mini",
        "claude-opus-4-1",
        "call_abc1",
        "a",
        "",
        "vs_" + "x" * 129,
    ],
)
def test_common_words_are_no_candidates(each: str) -> None:
    assert in_windows([json.dumps({"a": each, "b": [each]}).encode()]).named == []


def test_candidates_are_bounded_and_seen_across_windows() -> None:
    body = json.dumps({"a": [f"file-{n}" for n in range(MOST_NAMED + 9)]}).encode()
    crowded = in_windows([body])
    assert crowded.crowded
    assert len(crowded.named) == MOST_NAMED + 1
    few = json.dumps({"a": [f"file-{n:03}" for n in range(900)]}).encode()
    windows = [few[max(0, at - OVERLAP) : at + 2000] for at in range(0, len(few), 2000)]
    assert in_windows(windows) == in_windows([few])
    assert not in_windows([few]).crowded


@pytest.mark.parametrize(
    ("answer", "resources"),
    [
        ({"id": "file-1", "object": "file", "expires_at": 99}, [Born("file-1", 99.0, own=True)]),
        ({"id": "file-1", "object": "file", "expires_at": None}, [Born("file-1", own=True)]),
        (
            {"id": "batch_1", "object": "batch", "expires_at": 99, "output_file_id": "file-o", "error_file_id": None},
            [Born("batch_1", own=True), Born("file-o")],
        ),
        (
            {"id": "resp_1", "conversation": {"id": "conv_1"}, "output": [{"type": "x", "container_id": "cntr_1"}, 5]},
            [Born("resp_1", own=True), Born("conv_1"), Born("cntr_1")],
        ),
        (
            {"type": "response.created", "response": {"id": "resp_1", "conversation": {"id": "conv_1"}}},
            [Born("resp_1", own=True), Born("conv_1")],
        ),
        ({"id": "run_1", "thread_id": "thread_1"}, [Born("run_1", own=True), Born("thread_1")]),
        ({"id": "upload_1", "file": {"id": "file-1"}}, [Born("upload_1", own=True), Born("file-1", own=True)]),
        ({"id": "ftjob-1", "result_files": ["file-1"]}, [Born("ftjob-1", own=True), Born("file-1")]),
        ({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": []}, [Born("chatcmpl-1", own=True)]),
        (
            {"object": "list", "data": [{"id": "file-1"}, {"id": "batch_1", "output_file_id": "file-2"}, 5, {}]},
            [Born("file-1", own=True), Born("batch_1", own=True), Born("file-2")],
        ),
        ({"id": "resp_1", "conversation": "conv_1", "output": "text"}, [Born("resp_1", own=True)]),
        ({"error": {"message": "no"}}, []),
        ({"type": "response.failed", "response": None}, []),
        ({"id": 5}, []),
        ({"id": ""}, []),
        (["x"], []),
    ],
)
def test_answers_tell_of_resources(answer: Any, resources: list[Born]) -> None:
    assert born(orjson.dumps(answer)) == resources


def test_what_is_no_json_tells_of_nothing() -> None:
    assert born(b"[DONE]") == []


def test_the_relay_can_use_these_names() -> None:
    naming: Naming = OpenaiNaming(5.0)
    assert (naming.ttl, naming.sliding, naming.searched, naming.streams) == (5.0, True, False, True)
    assert naming.mentions([b'["file-1"]']).named == ["file-1"]
    assert naming.subject("/v1/files/file-1/content") == "file-1"
    assert naming.subject("/v1/files") is None
    assert naming.question("/v1/files/file-1/content?x=/1", "file-1") == "/v1/files/file-1"
    assert naming.born(b'{"id":"file-1"}') == [Born("file-1", own=True)]
    tree = {"object": "list", "data": [{"id": "file-1"}, 5]}
    assert [naming.root_of(item) for _, items in naming.items_of(tree) for item in items] == ["file-1", None]


def test_a_lists_query_is_read() -> None:
    asked = paging("files", "purpose=batch&limit=3&after=file-1&order=asc&purpose=x")
    assert asked == Paging(3, after="file-1", ascending=True, filters=(("purpose", "batch"), ("purpose", "x")))
    assert paging("files", "").limit == 10_000
    assert paging("batches", "").limit == 20
    assert paging("batches", "limit=5000").limit == 100


@pytest.mark.parametrize("query", ["limit=0", "limit=-1", "limit=x", "limit=²", "limit=9999999999", "order=up"])
def test_a_query_that_makes_no_sense_is_refused(query: str) -> None:
    with pytest.raises(ProxyError) as refused:
        paging("files", query)
    assert (refused.value.status, refused.value.param) == (400, query.partition("=")[0])


def item(name: str, made: int) -> dict[str, Any]:
    return {"id": name, "object": "file", "created_at": made, "x": {"y": 1}}


def listed(merge: Merge) -> list[str]:
    return [each["id"] for each in orjson.loads(merge.page())["data"]]


def test_lists_of_two_owners_become_one() -> None:
    merge = Merge("files", paging("files", "limit=2&purpose=batch"), ["a", "b"])
    assert merge.wanting() == {"a": "purpose=batch&limit=100", "b": "purpose=batch&limit=100"}
    merge.add("a", Page([item("file-4", 4), item("file-1", 1)]))
    merge.add("b", Page([item("file-3", 3), item("file-2", 2)]), hidden={"file-3"})
    assert merge.wanting() == {}
    assert orjson.loads(merge.page()) == {
        "object": "list",
        "data": [item("file-4", 4), item("file-2", 2)],
        "first_id": "file-4",
        "last_id": "file-2",
        "has_more": True,
    }


def test_only_owners_that_may_still_have_something_are_asked_again() -> None:
    merge = Merge("files", paging("files", "limit=1"), ["a", "b"])
    merge.add("a", Page([item("file-9", 9), item("file-8", 8)], last="file-8"))
    merge.add("b", Page([item("file-10", 10), item("file-7", 7)], last="file-7"))
    assert merge.wanting() == {}  # 10 comes first, and 9 shows that there is more
    merge = Merge("files", paging("files", "limit=1"), ["a", "b"])
    merge.add("a", Page([item("file-9", 9)], last="file-9"))
    merge.add("b", Page([item("file-1", 1)]))
    assert merge.wanting() == {"a": "limit=100&after=file-9"}
    merge.leave_out("a")
    assert merge.wanting() == {}
    assert listed(merge) == ["file-9"]


def test_cursors_are_of_the_whole_list() -> None:
    pages = {"a": [item("file-4", 4), item("file-2", 2)], "b": [item("file-3", 3), item("file-1", 1)]}
    for query, found in (
        ("after=file-4", ["file-3", "file-2", "file-1"]),
        ("after=file-3&limit=1", ["file-2"]),
        ("before=file-1&limit=2", ["file-3", "file-2"]),
        ("before=file-3", ["file-4"]),
        ("after=file-4&before=file-1", ["file-3", "file-2"]),
        ("after=file-1", []),
    ):
        merge = Merge("assistants", paging("assistants", query), pages)
        for owner, items in pages.items():
            merge.add(owner, Page(items))
        assert listed(merge) == found
    merge = Merge("files", paging("files", "after=file-nobody"), [])
    with pytest.raises(ProxyError) as refused:
        merge.page()
    assert (refused.value.status, refused.value.code) == (404, "resource_not_found")


def test_a_cursor_makes_pages_be_read_until_it_is_met() -> None:
    merge = Merge("batches", paging("batches", "before=batch_1"), ["a"])
    merge.add("a", Page([item("batch_3", 3), item("batch_2", 2)], last="batch_2"))
    assert merge.wanting() == {"a": "limit=100&after=batch_2"}
    merge.add("a", Page([item("batch_1", 1), item("batch_0", 0)], last="batch_0"))
    assert merge.wanting() == {}
    assert listed(merge) == ["batch_3", "batch_2"]


def test_an_empty_list_has_no_ends() -> None:
    assert orjson.loads(Merge("files", paging("files", ""), []).page()) == {
        "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False,
    }  # fmt: skip


def test_collections_that_begin_with_the_oldest_are_asked_for_the_newest() -> None:
    assert Merge("evals", paging("evals", ""), ["a"]).wanting() == {"a": "limit=100&order=desc"}
    assert Merge("files", paging("files", "order=asc"), ["a"]).wanting() == {"a": "limit=10000&order=asc"}


def test_an_owner_that_never_ends_is_left_after_a_while() -> None:
    merge = Merge("files", paging("files", "limit=5"), ["a"])
    merge.add("a", Page([item("file-1", 1)], last="file-1"))
    merge.add("a", Page([item("file-1", 1)], last="file-1"))  # it does not know `after`
    assert merge.wanting() == {}
    merge = Merge("files", paging("files", "limit=5"), ["a"])
    for n in range(MOST_PAGES):
        assert merge.wanting()
        name = f"file-{n}"
        merge.add("a", Page([item(name, -n)], last=name), hidden={name})
    assert merge.wanting() == {}


def test_a_list_answer_is_read() -> None:
    assert read_page(b'{"data":[{"id":"file-1"},5],"has_more":true}') == Page([{"id": "file-1"}], "file-1")
    assert read_page(b'{"data":[{"id":"file-1"}]}') == Page([{"id": "file-1"}])
    assert read_page(b'{"data":[],"has_more":true}') == Page([])
    for other in (b"", b"[]", b'{"error":{}}', b"<html>"):
        assert read_page(other) is None


@pytest.mark.parametrize(
    ("beginning", "root"),
    [
        (b'{"id": "resp_1", "object": "response", "output": [{"x": "', "resp_1"),
        (b' {\n "object":"response" , "created_at":17.5,"error":null,\t"id" : "resp_1","output": [', "resp_1"),
        (b'{"object": {"id": "inner"}, "id": "resp_1", "output": [', None),
        (b'{"object": "response", "output": ["id"', None),
        (b'{"text": "\\"id\\": \\"no\\"", "id": "resp_1"', None),
        (b'[{"id": "resp_1"', None),
        (b'{"id": "resp_', None),
        (b'{"id": 5, "x": [', None),
        (b"", None),
    ],
)
def test_the_beginning_of_an_answer_tells_its_id_where_only_words_and_numbers_stand_before_it(
    beginning: bytes, root: str | None
) -> None:
    assert [each.root for each in born(beginning)] == ([] if root is None else [root])
