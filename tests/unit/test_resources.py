"""Resource names in paths, queries, bodies and answers."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from balancer.relay.replay import OVERLAP
from balancer.wire.resources import LONGEST, MOST_NAMED, NOTHING, Scanner, born, in_path, in_query, root_of

GOOGLE = "https://generativelanguage.googleapis.com"


def named(body: object, scanner: Scanner | None = None) -> list[str]:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (scanner or Scanner()).scan([text]).named


def attracting(text: str) -> list[str]:
    mentions = Scanner().scan([json.dumps({"parts": [{"text": text}]}).encode()])
    assert mentions.named == []
    return mentions.attracting


@pytest.mark.parametrize(
    ("text", "root"),
    [
        ("files/abc", "files/abc"),
        ("files/abc:download", "files/abc"),
        ("files/abc:download?alt=media", "files/abc"),
        ("files/batch-abc_1", "files/batch-abc_1"),
        (f"{GOOGLE}/v1beta/files/abc", "files/abc"),
        (f"{GOOGLE}/v1beta/files/abc:download?alt=media", "files/abc"),
        (f"{GOOGLE}/download/v1beta/files/abc:download?alt=media", "files/abc"),
        (f"{GOOGLE}/v1beta/files/%61bc", "files/abc"),
        ("HTTPS://GenerativeLanguage.GoogleApis.com/v1/files/abc", "files/abc"),
        ("cachedContents/c", "cachedContents/c"),
        ("batches/b:cancel", "batches/b"),
        ("fileSearchStores/s", "fileSearchStores/s"),
        ("fileSearchStores/s/documents/d", "fileSearchStores/s"),
        ("fileSearchStores/s/upload/operations/o", "fileSearchStores/s"),
        ("fileSearchStores/s/media/m", "fileSearchStores/s"),
        ("tunedModels/t/operations/o", "tunedModels/t"),
        ("models/veo/operations/o", "models/veo/operations/o"),
        ("models/veo-3.0/operations/o", "models/veo-3.0/operations/o"),
        ("newThings2/x", "newThings2/x"),
        ("auth_tokens/" + "a" * 64, "auth_tokens/" + "a" * 64),
        ("models/gemini-2.5-flash", None),
        ("models/gemini:generateContent", None),
        ("files", None),
        ("files/", None),
        ("files/a b", None),
        ("files/abc: look at this", None),
        ("files/src/main.py", None),
        ("files/main.py", None),
        (f"{GOOGLE}/v1beta/files/abc and more", None),
        (f"{GOOGLE}/v1beta/files/abc, please", None),
        ("https://example.com/", None),
        ("text", None),
        ("", None),
        ("/files/abc", None),
        ("files/" + "x" * 129, None),
    ],
)
def test_a_whole_name_or_uri_has_a_root(text: str, root: str | None) -> None:
    assert root_of(text) == root


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/v1beta/files/abc", "files/abc"),
        ("/v1beta/files/abc:download", "files/abc"),
        ("/v1beta/files/abc%3Adownload", "files/abc"),
        ("/v1beta/files/%61bc", "files/abc"),
        ("/download/v1beta/files/abc:download", "files/abc"),
        ("/upload/v1beta/fileSearchStores/s:uploadToFileSearchStore", "fileSearchStores/s"),
        ("/upload/v1beta/environments/e/files/deep/path.txt", "environments/e"),
        ("/v1alpha/newThings/x", "newThings/x"),
        ("/files/abc", "files/abc"),
        ("/v1beta/fileSearchStores/s/documents/d", "fileSearchStores/s"),
        ("/v1beta/models/veo/operations/o", "models/veo/operations/o"),
        ("/v1beta/tunedModels/t:generateContent", "tunedModels/t"),
        ("/v1beta/models/gemini:generateContent", None),
        ("/v1beta/models/gemini", None),
        ("/v1beta/openai/chat/completions", None),
        ("/v1beta/files", None),
        ("/v1beta/files:register", None),
        ("/upload/v1beta/files", None),
        ("/v1beta/files%2Fabc", None),
        ("/", None),
    ],
)
def test_a_path_names_a_root(path: str, root: str | None) -> None:
    assert in_path(path) == root


def test_whole_query_values_name_roots() -> None:
    assert in_query("name=files%2Fa&x=1&y=cachedContents/b&name=files%2fa") == ["files/a", "cachedContents/b"]
    assert in_query("q=see+files%2Fa+there&alt=media&mime=models/x") == []
    assert in_query("alt=sse") == []


@pytest.mark.parametrize(
    "body",
    [
        {"contents": [{"parts": [{"fileData": {"fileUri": f"{GOOGLE}/v1beta/files/a"}}]}]},
        {"contents": [{"parts": [{"file_data": {"file_uri": f"{GOOGLE}/v1beta/files/a"}}]}]},
        {"fileName": "files/a"},
        {"batch": {"input_config": {"file_name": "files/a"}}},
        {"input": [{"type": "document", "uri": f"{GOOGLE}/v1beta/files/a"}]},
        {"video": {"uri": f"{GOOGLE}/v1beta/files/a:download?alt=media"}},
        {"deep": [[[{"x": "files/a"}]]]},
        ["files/a"],
        "files/a",
    ],
)
def test_whole_strings_of_a_body_are_named_wherever_they_stand(body: object) -> None:
    assert named(body) == ["files/a"]
    assert named(json.dumps(body, indent=2).encode()) == ["files/a"]
    assert named(json.dumps(body, separators=(",", ":")).encode()) == ["files/a"]


@pytest.mark.parametrize("member", ["fileSearchStoreNames", "file_search_store_names"])
def test_every_name_of_a_list_is_named(member: str) -> None:
    body = {"tools": [{"fileSearch": {member: ["fileSearchStores/a", "fileSearchStores/b"]}}]}
    assert named(body) == ["fileSearchStores/a", "fileSearchStores/b"]


@pytest.mark.parametrize(
    "body",
    [
        rb'{"cachedContent":"cachedContents\/c"}',
        rb'{"cachedContent":"cachedContents\u002fc"}',
        rb'{"cachedContent":"cachedContents\u002Fc"}',
        rb'{"cachedContent":"\u0063achedContents\/\u0063"}',
        rb'{"cachedContent":"cachedContents\u002f\u0063"}',
        rb'{"uri":"https:\/\/generativelanguage.googleapis.com\/v1beta\/cachedContents\/c"}',
        rb'{"uri":"https://generativelanguage.googleapis.com/v1beta/cachedContents/c?x\u003dy"}',
        rb'{"uri":"HTTPS://GENERATIVELANGUAGE.googleapis.com:443/v1beta/cachedContents/c"}',
    ],
)
def test_json_escapes_hide_nothing(body: bytes) -> None:
    assert json.loads(body)
    assert named(body) == ["cachedContents/c"]


@pytest.mark.parametrize(
    "body",
    [
        {"files/a": 1},
        {"text": "see files/a"},
        {"text": "files/a is it"},
        {"text": 'he said "files/a" and left'},
        {"text": '"files/a"'},
        {"text": "files/a\n"},
        {"text": f"{GOOGLE}/v1beta/files/a is the file"},
        {"text": "https://example.com/v1beta/files/a"},
        {"path": "files/src/main.py"},
        {"model": "models/gemini-2.5-flash"},
        {"mimeType": "text/plain"},
    ],
)
def test_what_only_looks_like_a_name_is_not_named(body: object) -> None:
    assert named(body) == []
    assert named(json.dumps(body).replace('\\"', "\\u0022").encode()) == []


def test_a_collection_met_in_an_answer_is_found_from_then_on() -> None:
    scanner = Scanner()
    body = {"thing": "newThings/x"}
    assert named(body, scanner) == []
    scanner.learn("newThings")
    assert named(body, scanner) == ["newThings/x"]
    for number in range(1000):
        scanner.learn(f"more{chr(97 + number % 26)}{number}")
    assert len(scanner._collections) <= 64


def test_a_uri_inside_longer_text_only_attracts_and_the_last_stands_last() -> None:
    text = f"Compare {GOOGLE}/v1beta/files/one with {GOOGLE}/v1beta/files/two, then {GOOGLE}/v1beta/files/one."
    assert attracting(text) == ["files/two", "files/one"]
    assert attracting(f"{GOOGLE}/v1beta/files/one and so on") == ["files/one"]
    assert attracting(f"({GOOGLE}/v1beta/files/one:download?alt=media)") == ["files/one"]
    assert attracting(f"{GOOGLE}/v1beta/cachedContents/c or https://example.com/v1beta/files/x") == []


def test_the_last_of_many_attracting_uris_is_not_lost() -> None:
    text = " ".join(f"{GOOGLE}/v1beta/files/f{number}" for number in range(1000))
    assert attracting(text + ".")[-1] == "files/f999"


def test_a_name_is_found_behind_any_number_of_others() -> None:
    """What the scan overlooked would get past the check of who may use it."""
    same = [{"fileUri": f"{GOOGLE}/v1beta/files/same"}] * 500
    text = {"text": " ".join(f"{GOOGLE}/v1beta/files/t{number}" for number in range(500)) + " x"}
    assert named([*same, text, {"fileName": "files/last"}]) == ["files/same", "files/last"]
    many = [f"files/f{number}" for number in range(1000)]
    assert named(many) == many


def test_more_names_than_any_request_has_are_too_many() -> None:
    mentions = Scanner().scan([json.dumps([f"files/f{number}" for number in range(MOST_NAMED + 1)]).encode()])
    assert mentions.crowded
    assert not Scanner().scan([json.dumps([f"files/f{number}" for number in range(MOST_NAMED)]).encode()]).crowded


def windows(body: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(body), size):
        yield body[max(0, start - OVERLAP) : start + size]


@pytest.mark.parametrize("size", [1, 7, 100, 1099, 1100, 1101, 5000])
def test_a_body_in_windows_names_the_same_as_in_one_piece(size: int) -> None:
    assert OVERLAP >= LONGEST
    words = ['say "files/quoted"', "x" * 300, f"see {GOOGLE}/v1beta/files/attract there"]
    body = json.dumps([*words, *words, "files/a", {"files/key": f"{GOOGLE}/v1beta/files/b"}, *words]).encode()
    whole = Scanner().scan([body])
    assert whole.named == ["files/a", "files/b"]
    cut = Scanner().scan(windows(body, size))
    # A member's name at the very end of a window may be taken for a value: its colon is not there yet.
    assert [root for root in cut.named if root != "files/key"] == whole.named
    assert cut.attracting == whole.attracting == ["files/attract"]


def test_a_body_without_names_mentions_nothing() -> None:
    assert Scanner().scan([b'{"contents":[{"parts":[{"text":"hello"}]}]}']) is NOTHING
    assert Scanner().scan([b""]) is NOTHING
    assert Scanner().scan([]) is NOTHING
    assert Scanner().scan([b"\xff\xfe/\x00\\"]) is NOTHING


def source_paths() -> bytes:
    paths = "\n".join(
        f"src/files/module_{n}/files/part_{n}.py: import files/x_{n} from batches/y" for n in range(15_000)
    )
    return json.dumps({"contents": [{"parts": [{"text": paths[: 1 << 20]}]}]}).encode()


def test_in_a_megabyte_of_source_paths_there_is_nothing_to_look_at_closer() -> None:
    scanner, body = Scanner(), source_paths()
    assert len(body) > 1 << 20
    assert scanner.scan([body]) is NOTHING
    assert scanner._whole.search(body) is None


def roots(answer: object) -> set[str]:
    return {each.root for each in born(json.dumps(answer).encode())}


def test_a_created_file_is_learned_with_its_lifetime() -> None:
    file = {"name": "files/a", "uri": f"{GOOGLE}/v1beta/files/a", "expirationTime": "2026-11-21T12:00:00.123456789Z"}
    (found,) = born(json.dumps({"file": file}).encode())
    assert (found.root, found.own) == ("files/a", True)
    assert found.expires == pytest.approx(1795262400.123456)


@pytest.mark.parametrize("member", ["expirationTime", "expireTime", "expiration_time", "expire_time"])
def test_lifetimes_are_read_in_every_spelling(member: str) -> None:
    (found,) = born(json.dumps({"name": "cachedContents/c", member: "2026-11-21T12:00:00Z"}).encode())
    assert found.expires == 1795262400
    (found,) = born(json.dumps({"name": "cachedContents/c", member: "soon"}).encode())
    assert found.expires is None


def test_the_lifetime_of_something_below_is_not_the_root_s() -> None:
    (found,) = born(b'{"name":"fileSearchStores/s/documents/d","expireTime":"2026-11-21T12:00:00Z"}')
    assert (found.root, found.expires) == ("fileSearchStores/s", None)


def test_results_and_parts_are_learned_with_what_made_them() -> None:
    batch = {
        "name": "batches/b",
        "metadata": {"name": "batches/b", "output": {"responsesFile": "files/batch-b"}},
        "response": {"responsesFile": "files/batch-b"},
    }
    assert roots(batch) == {"batches/b", "files/batch-b"}
    sample = {"video": {"uri": f"{GOOGLE}/v1beta/files/v:download?alt=media"}}
    video = {"name": "models/veo/operations/o", "response": {"samples": [sample]}}
    assert roots(video) == {"models/veo/operations/o", "files/v"}
    tuning = {"name": "tunedModels/t/operations/o", "metadata": {"tunedModel": "tunedModels/t"}}
    assert roots(tuning) == {"tunedModels/t"}
    upload = {
        "name": "fileSearchStores/s/upload/operations/o",
        "response": {"documentName": "fileSearchStores/s/documents/d"},
    }
    assert roots(upload) == {"fileSearchStores/s"}
    assert roots({"files": [{"name": "files/a"}, {"name": "files/b"}]}) == {"files/a", "files/b"}
    assert roots({"names": ["files/a", "text/plain"]}) == {"files/a"}


def test_an_unheard_of_collection_is_learned_from_what_the_answer_is_about_and_from_nothing_else() -> None:
    assert roots({"name": "newThings/x"}) == {"newThings/x"}
    assert roots({"newThings": [{"name": "newThings/x"}]}) == {"newThings/x"}
    assert roots({"name": "newThings/x", "config": {"name": "image/png"}, "type": "text/plain"}) == {"newThings/x"}


@pytest.mark.parametrize(
    "echo",
    [
        {"displayName": "files/theirs"},
        {"description": f"{GOOGLE}/v1beta/files/theirs"},
        {"customMetadata": [{"key": "files/theirs", "stringValue": "files/theirs"}]},
        {"inlinedResponses": [{"metadata": {"name": "files/theirs"}}]},
        {"steps": [{"arguments": {"path": "files/theirs"}}]},
        {"steps": [{"text": "files/theirs"}]},
    ],
)
def test_what_people_and_models_wrote_tells_of_nothing(echo: dict[str, object]) -> None:
    assert roots({"name": "batches/b", "response": echo, **echo}) == {"batches/b"}


def test_a_mention_is_not_what_the_answer_is_about() -> None:
    found = {each.root: each.own for each in born(b'{"name":"batches/b","metadata":{"fileName":"files/in"}}')}
    assert found == {"batches/b": True, "files/in": False}


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[]", b"3", b"null", b'"files/a"', b'{"name": 3, "file": "x"}'])
def test_anything_else_tells_of_nothing(body: bytes) -> None:
    assert born(body) == []


def test_as_many_as_a_list_has_are_learned() -> None:
    assert len(born(json.dumps({"files": [{"name": f"files/f{n}"} for n in range(3000)]}).encode())) == 3000
