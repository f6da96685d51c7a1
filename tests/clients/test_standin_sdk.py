"""The real google-genai SDK against the stand-in, with nothing between them: it holds the stand-in to the real wire."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable

import pytest
from google import genai
from google.genai import errors, types

from balancer.standin.app import StandIn, running

MODEL = "gemini-2.5-flash"
BIG = bytes(range(256)) * 80_000
"""20 MB: three chunks of the SDK's 8 MiB."""

pytestmark = [  # of the SDK's own making
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning"),
]

Connect = Callable[[str], genai.Client]


@pytest.fixture
def standin() -> StandIn:
    return StandIn(["a", "b"])


@pytest.fixture
async def connect(standin: StandIn) -> AsyncIterator[Connect]:
    """Makes a client with a key; all are closed at the end."""
    made: list[genai.Client] = []

    async with running(standin) as url:

        def client(key: str) -> genai.Client:
            made.append(genai.Client(api_key=key, http_options=types.HttpOptions(base_url=url, api_version="v1beta")))
            return made[-1]

        yield client
        for each in made:
            await each.aio.aclose()
            each.close()


async def test_the_sync_client_generates_counts_embeds_and_lists(connect: Connect) -> None:
    client = connect("a")

    def use() -> None:
        assert client.models.generate_content(model=MODEL, contents="hello").text == "You said: hello"
        pieces = [each.text or "" for each in client.models.generate_content_stream(model=MODEL, contents="hello")]
        assert (len(pieces), "".join(pieces)) == (3, "You said: hello")
        assert client.models.count_tokens(model=MODEL, contents="hello").total_tokens == 2
        embedded = client.models.embed_content(model="gemini-embedding-001", contents=["x", "y"]).embeddings
        assert embedded is not None
        assert [len(each.values or []) for each in embedded] == [8, 8]
        assert len(list(client.models.list(config={"page_size": 4}))) > 10
        assert client.models.get(model=MODEL).name == f"models/{MODEL}"

    await asyncio.to_thread(use)


async def test_the_async_client_generates_counts_embeds_and_lists(connect: Connect) -> None:
    models = connect("a").aio.models
    assert (await models.generate_content(model=MODEL, contents="hello")).text == "You said: hello"
    stream = await models.generate_content_stream(model=MODEL, contents="hello")
    assert "".join([each.text or "" async for each in stream]) == "You said: hello"
    assert (await models.count_tokens(model=MODEL, contents="hello")).total_tokens == 2
    assert (await models.embed_content(model="gemini-embedding-001", contents="x")).embeddings
    assert len([each async for each in await models.list(config={"page_size": 4})]) > 10


async def test_a_large_file_goes_up_in_chunks_and_comes_back_the_same(standin: StandIn, connect: Connect) -> None:
    client, other = connect("a"), connect("b")

    def use() -> None:
        file = client.files.upload(file=io.BytesIO(BIG), config={"mime_type": "video/mp4", "display_name": "big"})
        assert (file.size_bytes, file.display_name, file.state) == (len(BIG), "big", types.FileState.ACTIVE)
        assert file.name is not None
        assert file.uri == f"https://generativelanguage.googleapis.com/v1beta/{file.name}"
        assert [each.name for each in client.files.list()] == [file.name]
        assert client.files.download(file=file.name) == BIG
        assert client.models.generate_content(model=MODEL, contents=[file, "look"]).text == "You said: look"
        with pytest.raises(errors.ClientError, match="do not have permission to access the File"):
            other.models.generate_content(model=MODEL, contents=[file, "look"])
        with pytest.raises(errors.ClientError, match="do not have permission to access the File"):
            other.files.get(name=file.name)
        client.files.delete(name=file.name)
        with pytest.raises(errors.ClientError):
            client.files.get(name=file.name)

    await asyncio.to_thread(use)
    chunks = [arrival for arrival in standin.requests if "upload_id=" in arrival.target]
    assert [arrival.size for arrival in chunks] == [8 << 20, 8 << 20, len(BIG) - (16 << 20)]
    assert {arrival.header("x-goog-api-key") for arrival in chunks} == {None}


@pytest.mark.parametrize("data", [b"", b"small", BIG], ids=["empty", "small", "big"])
async def test_the_async_client_uploads_and_downloads(connect: Connect, data: bytes) -> None:
    files = connect("a").aio.files
    file = await files.upload(file=io.BytesIO(data), config={"mime_type": "text/plain", "name": "mine"})
    assert (file.name, file.size_bytes) == ("files/mine", len(data))
    assert await files.download(file="files/mine") == data
    assert [each.name async for each in await files.list()] == ["files/mine"]
    await files.delete(name="files/mine")


async def test_caches_live_with_their_project(connect: Connect) -> None:
    client, other = connect("a"), connect("b")

    def use() -> None:
        cache = client.caches.create(model=MODEL, config={"contents": ["x" * 100], "ttl": "300s", "display_name": "c"})
        assert cache.name is not None
        assert client.caches.get(name=cache.name).display_name == "c"
        answer = client.models.generate_content(model=MODEL, contents="hi", config={"cached_content": cache.name})
        assert answer.usage_metadata is not None
        assert answer.usage_metadata.cached_content_token_count == 1024
        with pytest.raises(errors.ClientError, match="CachedContent not found"):
            other.models.generate_content(model=MODEL, contents="hi", config={"cached_content": cache.name})
        assert client.caches.update(name=cache.name, config={"ttl": "600s"}).expire_time is not None
        assert [each.name for each in client.caches.list()] == [cache.name]
        client.caches.delete(name=cache.name)
        assert list(client.caches.list()) == []

    await asyncio.to_thread(use)


async def test_batches_inline_and_from_a_file(connect: Connect) -> None:
    client = connect("a")

    def use() -> None:
        inline = client.batches.create(model=MODEL, src=[types.InlinedRequest(contents="hi")])
        assert inline.name is not None
        assert inline.state == types.JobState.JOB_STATE_PENDING
        done = client.batches.get(name=inline.name)
        assert done.state == types.JobState.JOB_STATE_SUCCEEDED
        assert done.dest is not None
        assert done.dest.inlined_responses is not None
        answer = done.dest.inlined_responses[0].response
        assert answer is not None
        assert answer.text == "You said: hi"
        line = json.dumps({"key": "1", "request": {"contents": [{"parts": [{"text": "from a file"}]}]}})
        file = client.files.upload(file=io.BytesIO(line.encode()), config={"mime_type": "application/jsonl"})
        queued = client.batches.create(model=MODEL, src=file.name or "")
        assert queued.name is not None
        finished = client.batches.get(name=queued.name)
        assert finished.dest is not None
        assert finished.dest.file_name is not None
        assert b"You said: from a file" in client.files.download(file=finished.dest.file_name)
        assert len(list(client.batches.list())) == 2
        client.batches.cancel(name=queued.name)
        client.batches.delete(name=queued.name)
        assert len(list(client.batches.list())) == 1

    await asyncio.to_thread(use)


async def test_file_search_stores_take_uploads_and_imports(connect: Connect) -> None:
    client, other = connect("a"), connect("b")

    def use() -> None:
        store = client.file_search_stores.create(config={"display_name": "s"})
        name = store.name or ""
        uploaded = client.file_search_stores.upload_to_file_search_store(
            file_search_store_name=name, file=io.BytesIO(b"words"), config={"mime_type": "text/plain"}
        )
        done = client.operations.get(uploaded)
        assert done.done
        assert done.response is not None
        document = done.response.document_name or ""
        assert client.file_search_stores.download_media(media_id=document.replace("/documents/", "/media/")) == b"words"
        file = client.files.upload(file=io.BytesIO(b"more"), config={"mime_type": "text/plain"})
        imported = client.file_search_stores.import_file(file_search_store_name=name, file_name=file.name or "")
        assert client.operations.get(imported).done
        assert len(list(client.file_search_stores.documents.list(parent=name))) == 2
        tool = types.Tool(file_search=types.FileSearch(file_search_store_names=[name]))
        config = types.GenerateContentConfig(tools=[tool])
        assert client.models.generate_content(model=MODEL, contents="hi", config=config).text == "You said: hi"
        with pytest.raises(errors.ClientError, match="403"):
            other.models.generate_content(model=MODEL, contents="hi", config=config)
        client.file_search_stores.documents.delete(name=document, config={"force": True})
        client.file_search_stores.delete(name=name, config={"force": True})
        assert list(client.file_search_stores.list()) == []

    await asyncio.to_thread(use)


async def test_errors_are_the_sdk_s_errors(standin: StandIn, connect: Connect) -> None:
    client = connect("a")

    def use() -> None:
        with pytest.raises(errors.ClientError) as missing:
            client.models.generate_content(model="gemini-0", contents="hi")
        assert (missing.value.code, missing.value.status) == (404, "NOT_FOUND")
        standin.script("a", "rate-minute", times=1)
        with pytest.raises(errors.ClientError) as limited:
            client.models.generate_content(model=MODEL, contents="hi")
        assert (limited.value.code, limited.value.status) == (429, "RESOURCE_EXHAUSTED")
        standin.script("a", "error-503", times=1)
        with pytest.raises(errors.ServerError):
            client.models.generate_content(model=MODEL, contents="hi")
        standin.script("a", "error-event", times=1)
        with pytest.raises(errors.APIError):
            list(client.models.generate_content_stream(model=MODEL, contents="hi"))

    await asyncio.to_thread(use)
