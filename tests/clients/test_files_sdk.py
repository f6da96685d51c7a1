"""The real google-genai SDK through the proxy: files and all else that belongs to a key, with several keys behind it."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google import genai
from google.genai import errors, types

from balancer.standin.app import StandIn
from balancer.standin.app import running as standing_in
from tests.proxy import KEYS, Proxy, proxying

MODEL = "gemini-2.5-flash"
ANN, BOB = "token-of-ann-1", "token-of-bob-2"
AUTH = {"tokens": f"ann={ANN},bob={BOB}"}
BIG = bytes(range(256)) * 40_000
"""10 MB: two chunks of the SDK's 8 MiB."""

pytestmark = [  # of the SDK's own making
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning"),
]


@dataclass
class Bench:
    """A stand-in with three keys, proxies before it one after the other, and clients of them."""

    standin: StandIn
    upstream: str
    proxy: Proxy
    made: list[genai.Client] = field(default_factory=list)

    def client(self, token: str = ANN, prefix: str = "", headers: dict[str, str] | None = None) -> genai.Client:
        options = types.HttpOptions(base_url=self.proxy.url + prefix, headers=headers)
        self.made.append(genai.Client(api_key=token, http_options=options))
        return self.made[-1]

    async def close(self) -> None:
        for each in self.made:
            await each.aio.aclose()
            each.close()

    def keys(self, part: str) -> list[str | None]:
        """The keys of requests whose target holds this text."""
        return [arrival.key for arrival in self.standin.requests if part in arrival.target]

    @asynccontextmanager
    async def restarted(self) -> AsyncIterator[Bench]:
        async with proxying(self.upstream, auth=AUTH) as proxy:
            after = Bench(self.standin, self.upstream, proxy)
            yield after
            await after.close()


@asynccontextmanager
async def benched(**overrides: Any) -> AsyncIterator[Bench]:
    standin = StandIn(KEYS)
    async with standing_in(standin) as upstream, proxying(upstream, auth=AUTH, **overrides) as proxy:
        bench = Bench(standin, upstream, proxy)
        yield bench
        await bench.close()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with benched() as each:
        yield each


@pytest.fixture
def pdfs(tmp_path: Path) -> list[Path]:
    """Two files that are PDF enough for everybody who does not draw them."""
    made = []
    for number in (1, 2):
        path = tmp_path / f"report-{number}.pdf"
        path.write_bytes(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n" + f"% number {number}\n".encode() * 2000 + b"%%EOF\n")
        made.append(path)
    return made


def upload_pdfs(client: genai.Client, pdfs: list[Path], session: str | None = None) -> list[types.File]:
    """As the users of issue 3 do it: with a header for a single upload, which no version of the SDK delivers."""
    options = {"http_options": {"headers": {"X-Session-Id": session}}} if session else {}
    return [
        client.files.upload(
            file=io.BytesIO(path.read_bytes()),
            config=types.UploadFileConfig(**{"mime_type": "application/pdf", "display_name": path.name, **options}),  # type: ignore[arg-type]
        )
        for path in pdfs
    ]


def compare(client: genai.Client, one: types.File, two: types.File) -> None:
    text = client.models.generate_content(model=MODEL, contents=[f"Compare {one.uri} and {two.uri}"]).text
    assert text == f"You said: Compare {one.uri} and {two.uri}"
    assert (
        client.models.generate_content(model=MODEL, contents=[one, two, "Compare them"]).text
        == "You said: Compare them"
    )
    pieces = client.models.generate_content_stream(model=MODEL, contents=[one, two, "Compare them"])
    assert "".join(piece.text or "" for piece in pieces) == "You said: Compare them"


async def test_the_user_s_own_script_works(bench: Bench, pdfs: list[Path]) -> None:
    """Against three keys, several times over, so that the rotation stands somewhere else each time."""
    client, other = bench.client(), bench.client(BOB)

    def use() -> None:
        for number in range(4):
            one, two = upload_pdfs(client, pdfs, session=f"session-{number}")
            other.models.generate_content(model=MODEL, contents="in between")
            compare(client, one, two)
            for file, path in ((one, pdfs[0]), (two, pdfs[1])):
                assert client.files.download(file=file.name or "") == path.read_bytes()

    await asyncio.to_thread(use)
    assert len(set(bench.keys("generateContent"))) > 1


async def test_the_same_script_fails_where_uploads_are_not_kept_together(pdfs: list[Path]) -> None:
    """What the affinity is for: without it the stand-in, as Google does, has the files in two projects."""
    async with benched(affinity={"uploads": "none"}) as bench:
        client = bench.client()

        def use() -> None:
            one, two = upload_pdfs(client, pdfs, session="s")
            with pytest.raises(errors.ClientError, match="belong to different API keys") as refused:
                client.models.generate_content(model=MODEL, contents=[one, two, "Compare them"])
            assert (refused.value.code, refused.value.status) == (400, "FAILED_PRECONDITION")

        await asyncio.to_thread(use)


async def test_two_keys_without_any_affinity_are_refused_by_the_upstream_itself(pdfs: list[Path]) -> None:
    async with standing_in(StandIn(KEYS)) as url:
        clients = [genai.Client(api_key=key, http_options=types.HttpOptions(base_url=url)) for key in KEYS[:2]]

        def use() -> None:
            (one,), (two,) = (upload_pdfs(client, [pdf]) for client, pdf in zip(clients, pdfs, strict=True))
            with pytest.raises(errors.ClientError, match="do not have permission"):
                clients[0].models.generate_content(model=MODEL, contents=[one, two, "Compare them"])
            for client in clients:
                client.close()

        await asyncio.to_thread(use)
        for client in clients:
            await client.aio.aclose()


@pytest.mark.parametrize("how", ["header", "prefix", "prefix and gemini"])
@pytest.mark.parametrize("uploads", ["client", "none"])
async def test_a_session_of_the_whole_client_keeps_files_together(how: str, uploads: str, pdfs: list[Path]) -> None:
    async with benched(affinity={"uploads": uploads}) as bench:
        clients = [
            bench.client(headers={"X-Session-Id": f"s{n}"})
            if how == "header"
            else bench.client(prefix=f"/s/s{n}" + ("/gemini" if how != "prefix" else ""))
            for n in range(3)
        ]

        def use() -> None:
            uploaded = [upload_pdfs(client, pdfs) for client in clients]
            for client, (one, two) in zip(clients, uploaded, strict=True):
                compare(client, one, two)

        await asyncio.to_thread(use)
        assert set(bench.keys("/upload/")) == set(KEYS)


async def test_the_script_works_with_a_restart_between_upload_and_use(bench: Bench, pdfs: list[Path]) -> None:
    uploaded = await asyncio.to_thread(
        lambda: [upload_pdfs(bench.client(headers={"X-Session-Id": f"s{n}"}), pdfs) for n in range(3)]
    )
    assert len(set(bench.keys("/upload/"))) == 3
    for one, two in uploaded:
        async with bench.restarted() as after:
            client = after.client()

            def use(client: genai.Client = client, one: types.File = one, two: types.File = two) -> None:
                # A uri inside longer text only attracts, and after a restart nobody is known to have the files.
                assert client.models.generate_content(model=MODEL, contents=[f"Compare {one.uri} and {two.uri}"]).text
                assert client.models.generate_content(model=MODEL, contents=[one, two, "Compare them"]).text
                compare(client, one, two)
                assert client.files.download(file=two.name or "") == pdfs[1].read_bytes()

            await asyncio.to_thread(use)


async def test_files_are_got_listed_downloaded_and_deleted(bench: Bench) -> None:
    client, other = bench.client(), bench.client(BOB)

    def use() -> None:
        file = client.files.upload(file=io.BytesIO(BIG), config={"mime_type": "video/mp4", "display_name": "big"})
        name = file.name or ""
        assert (file.size_bytes, file.state) == (len(BIG), types.FileState.ACTIVE)
        assert file.uri == f"https://generativelanguage.googleapis.com/v1beta/{name}"
        for _ in range(3):
            other.models.generate_content(model=MODEL, contents="in between")
            assert client.files.get(name=name).display_name == "big"
            assert [each.name for each in client.files.list()] == [name]
        assert client.files.download(file=name) == BIG
        with pytest.raises(errors.ClientError) as missing:
            other.files.get(name=name)
        assert (missing.value.code, missing.value.status) == (404, "NOT_FOUND")
        assert list(other.files.list()) == []
        client.files.delete(name=name)
        assert list(client.files.list()) == []

    await asyncio.to_thread(use)
    chunks = [arrival for arrival in bench.standin.requests if "upload_id=" in arrival.target]
    assert [arrival.size for arrival in chunks] == [8 << 20, len(BIG) - (8 << 20)]
    assert "balancer" not in "".join(arrival.target for arrival in chunks)


@pytest.mark.parametrize("data", [b"", b"small", BIG], ids=["empty", "small", "big"])
async def test_the_async_client_uploads_uses_and_downloads(bench: Bench, data: bytes) -> None:
    aio = bench.client().aio
    files = [
        await aio.files.upload(file=io.BytesIO(data), config={"mime_type": "text/plain", "display_name": f"{n}"})
        for n in range(2)
    ]
    answer = await aio.models.generate_content(model=MODEL, contents=[*files, "Compare them"])
    assert answer.text == "You said: Compare them"
    stream = await aio.models.generate_content_stream(model=MODEL, contents=[*files, "Compare them"])
    assert "".join([piece.text or "" async for piece in stream]) == "You said: Compare them"
    for file in files:
        assert await aio.files.download(file=file.name or "") == data
    assert len([each async for each in await aio.files.list()]) == 2
    for file in files:
        await aio.files.delete(name=file.name or "")


async def test_async_clients_at_once_keep_their_files_apart_and_together(bench: Bench) -> None:
    async def one(number: int) -> None:
        aio = bench.client(ANN if number % 2 else BOB, headers={"X-Session-Id": f"s{number}"}).aio
        files = [
            await aio.files.upload(file=io.BytesIO(f"{number} {n}".encode()), config={"mime_type": "text/plain"})
            for n in range(3)
        ]
        answer = await aio.models.generate_content(model=MODEL, contents=[*files, f"{number}"])
        assert answer.text == f"You said: {number}"
        for n, file in enumerate(files):
            assert await aio.files.download(file=file.name or "") == f"{number} {n}".encode()

    await asyncio.gather(*(one(number) for number in range(12)))
    assert set(bench.keys("/upload/")) == set(KEYS)


async def each_of_three(bench: Bench, use: Callable[[genai.Client], None]) -> None:
    """Run this for three sessions, which have three keys."""
    clients = [bench.client(headers={"X-Session-Id": f"s{n}"}) for n in range(3)]
    for client in clients:
        await asyncio.to_thread(use, client)


async def test_caches_live_with_their_key(bench: Bench) -> None:
    other = bench.client(BOB)

    def use(client: genai.Client) -> None:
        file = client.files.upload(file=io.BytesIO(b"words"), config={"mime_type": "text/plain"})
        cache = client.caches.create(model=MODEL, config={"contents": [file], "ttl": "300s", "display_name": "c"})
        name = cache.name or ""
        assert client.caches.get(name=name).display_name == "c"
        answer = client.models.generate_content(model=MODEL, contents="hi", config={"cached_content": name})
        assert answer.usage_metadata is not None
        assert answer.usage_metadata.cached_content_token_count == 1024
        with pytest.raises(errors.ClientError, match="does not exist"):
            other.models.generate_content(model=MODEL, contents="hi", config={"cached_content": name})
        assert client.caches.update(name=name, config={"ttl": "600s"}).expire_time is not None
        assert [each.name for each in client.caches.list()] == [name]
        client.caches.delete(name=name)

    await each_of_three(bench, use)
    assert set(bench.keys("cachedContents")) == set(KEYS)


async def test_batches_live_with_their_key(bench: Bench) -> None:
    def use(client: genai.Client) -> None:
        line = json.dumps({"key": "1", "request": {"contents": [{"parts": [{"text": "from a file"}]}]}})
        file = client.files.upload(file=io.BytesIO(line.encode()), config={"mime_type": "application/jsonl"})
        queued = client.batches.create(model=MODEL, src=file.name or "")
        done = client.batches.get(name=queued.name or "")
        assert done.dest is not None
        assert b"You said: from a file" in client.files.download(file=done.dest.file_name or "")
        inline = client.batches.create(model=MODEL, src=[types.InlinedRequest(contents="hi")])
        assert {each.name for each in client.batches.list()} == {queued.name, inline.name}
        client.batches.cancel(name=inline.name or "")
        for each in (queued, inline):
            client.batches.delete(name=each.name or "")

    await each_of_three(bench, use)
    assert set(bench.keys("batches")) == set(KEYS)


async def test_file_search_stores_live_with_their_key(bench: Bench) -> None:
    other = bench.client(BOB)

    def use(client: genai.Client) -> None:
        name = client.file_search_stores.create(config={"display_name": "s"}).name or ""
        uploaded = client.file_search_stores.upload_to_file_search_store(
            file_search_store_name=name, file=io.BytesIO(b"words"), config={"mime_type": "text/plain"}
        )
        done = client.operations.get(uploaded)
        assert done.response is not None
        document = done.response.document_name or ""
        media = document.replace("/documents/", "/media/")
        assert client.file_search_stores.download_media(media_id=media) == b"words"
        file = client.files.upload(file=io.BytesIO(b"more"), config={"mime_type": "text/plain"})
        imported = client.file_search_stores.import_file(file_search_store_name=name, file_name=file.name or "")
        assert client.operations.get(imported).done
        assert len(list(client.file_search_stores.documents.list(parent=name))) == 2
        tool = types.Tool(file_search=types.FileSearch(file_search_store_names=[name]))
        config = types.GenerateContentConfig(tools=[tool])
        assert client.models.generate_content(model=MODEL, contents="hi", config=config).text == "You said: hi"
        with pytest.raises(errors.ClientError, match="does not exist"):
            other.models.generate_content(model=MODEL, contents="hi", config=config)
        client.file_search_stores.documents.delete(name=document, config={"force": True})
        client.file_search_stores.delete(name=name, config={"force": True})

    await each_of_three(bench, use)
    assert set(bench.keys("fileSearchStores")) == set(KEYS)


async def test_a_tampered_upload_address_ends_the_sdk_s_upload_at_once(bench: Bench) -> None:
    """The status field of our answer keeps it from sending the chunk three times more."""
    client = bench.client()
    begun = await client.aio._api_client.async_request(
        "post",
        "upload/v1beta/files",
        {"file": {"mimeType": "text/plain", "sizeBytes": "1"}},
        types.HttpOptions(
            api_version="",
            headers={"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start"},
        ),
    )
    assert begun.headers is not None
    url = {name.lower(): value for name, value in begun.headers.items()}["x-goog-upload-url"]
    spoiled = url.replace("upload_id=", "upload_id=x")
    with pytest.raises((errors.ClientError, ValueError)):
        await client.aio._api_client.async_upload_file(io.BytesIO(b"x"), spoiled, 1)
    assert len(bench.standin.requests) == 1
