"""google-genai, every call over plain HTTP, with its sync or its async client: `google_genai.py sync|async`.

Both clients have the same methods, so one text serves both: what returns something to wait for is waited for (`got`, `every`).
"""

from __future__ import annotations

import asyncio
import io
import json
import sys

from google import genai
from google.genai import errors, types
from google.oauth2.credentials import Credentials
from telling import MODEL, URL, call, equal, every, got, holds, line, there

BIG = bytes(range(256)) * 70_000
"""18 MB: three chunks of the SDK's 8 MiB."""
TUNED = [types.TuningExample(text_input="1", output="2")]


async def main(mode: str) -> None:
    client = genai.Client(api_key="any-text", http_options=types.HttpOptions(base_url=URL))
    line(client="google-genai (Python)", version=genai.__version__, transport=_transport(client, mode))
    api = client if mode == "sync" else client.aio
    # A store and what is imported into it must be of one key, so they are of one session, by the base URL's prefix.
    session = genai.Client(api_key="any-text", http_options=types.HttpOptions(base_url=f"{URL}/s/stores"))
    for part in (models, chats, files, caches, batches, tunings, the_rest):
        await part(api)
    await stores(session if mode == "sync" else session.aio)
    for each in (client, session):
        if mode == "async":
            await each.aio.aclose()
        each.close()


def _transport(client, mode: str) -> str:
    inner = client._api_client
    if mode == "async" and inner._use_aiohttp():
        return "aiohttp, async"
    http = inner._httpx_client if mode == "sync" else inner._async_httpx_client
    library = next(
        base.__module__.partition(".")[0] for base in type(http).__mro__ if base.__module__.startswith("httpx")
    )
    return f"{library}, {mode}"


async def models(api) -> None:
    with call("models.generate_content"):
        equal((await got(api.models.generate_content(model=MODEL, contents="hello"))).text, "You said: hello")
    with call("models.generate_content_stream"):
        pieces = [
            each.text or "" for each in await every(api.models.generate_content_stream(model=MODEL, contents="hi"))
        ]
        equal("".join(pieces), "You said: hi")
        equal(len(pieces), 3)
    with call("models.count_tokens"):
        equal((await got(api.models.count_tokens(model=MODEL, contents="hello"))).total_tokens, 2)
    with call("models.embed_content"):
        embedded = await got(api.models.embed_content(model="gemini-embedding-001", contents=["x", "y"]))
        equal([len(each.values) for each in embedded.embeddings], [8, 8])
    with call("models.list"):
        holds(len(await every(api.models.list(config={"page_size": 4}))) > 10)
    with call("models.get"):
        equal((await got(api.models.get(model=MODEL))).name, f"models/{MODEL}")
    with call("models.generate_images"):
        made = await got(api.models.generate_images(model="imagen-4.0-generate-001", prompt="x"))
        holds(made.generated_images[0].image.image_bytes)
    operation = video = None
    with call("models.generate_videos"):
        operation = await got(api.models.generate_videos(model="veo-3.0-generate-001", prompt="x"))
        holds(operation.name.startswith("models/veo-3.0-generate-001/operations/"), operation.name)
    with call("operations.get (video)"):
        done = await got(api.operations.get(there(operation)))
        equal(done.done, True)
        video = done.response.generated_videos[0].video
    with call("files.download (video)"):
        holds(len(await got(api.files.download(file=there(video)))) > 100)
    with call("models.compute_tokens"):
        await got(api.models.compute_tokens(model=MODEL, contents="x"))
    with call("models.upscale_image"):
        image = types.Image(image_bytes=b"x", mime_type="image/png")
        await got(api.models.upscale_image(model="imagen-4.0-generate-001", image=image, upscale_factor="x2"))


async def chats(api) -> None:
    chat = api.chats.create(model=MODEL)
    with call("chats.send_message"):
        for said in ("one", "two", "three", "four"):
            equal((await got(chat.send_message(said))).text, f"You said: {said}")
    with call("chats.send_message_stream"):
        pieces = [each.text or "" for each in await every(chat.send_message_stream("five"))]
        equal("".join(pieces), "You said: five")
    with call("chats.get_history"):
        turns = [content.role for content in chat.get_history()]
        equal(turns[:8], ["user", "model"] * 4)
        holds(len(turns) >= 10)


async def files(api) -> None:
    with call("files.upload (three chunks)"):
        big = await got(
            api.files.upload(file=io.BytesIO(BIG), config={"mime_type": "video/mp4", "display_name": "big"})
        )
        equal((big.size_bytes, big.display_name), (len(BIG), "big"))
        holds(big.uri.startswith("https://generativelanguage.googleapis.com/"), big.uri)
    with call("files.upload (small, empty)"):
        small = await got(api.files.upload(file=io.BytesIO(b"small"), config={"mime_type": "text/plain"}))
        empty = await got(api.files.upload(file=io.BytesIO(b""), config={"mime_type": "text/plain"}))
        equal((small.size_bytes, empty.size_bytes), (5, 0))
    with call("files.get"):
        for file in (big, small, empty):
            equal((await got(api.files.get(name=file.name))).name, file.name)
    with call("files.list"):
        names = {file.name for file in await every(api.files.list(config={"page_size": 2}))}
        holds(names >= {big.name, small.name, empty.name}, names)
    with call("files.download"):
        equal(await got(api.files.download(file=big.name)), BIG)
    with call("models.generate_content with two files"):
        for _ in range(4):
            equal(
                (await got(api.models.generate_content(model=MODEL, contents=[big, small, "look"]))).text,
                "You said: look",
            )
    with call("files.register_files"):
        owner = Credentials(token="the-caller-s-own", quota_project_id="a-project")
        registered = await got(api.files.register_files(auth=owner, uris=["gs://bucket/object"]))
        equal((await got(api.files.get(name=registered.files[0].name))).name, registered.files[0].name)
    with call("files.delete"):
        for file in (big, small, empty):
            await got(api.files.delete(name=file.name))
        try:
            await got(api.files.get(name=big.name))
        except errors.ClientError as gone:
            holds(gone.code in (403, 404), gone)
        else:
            raise AssertionError("the file is still there")


async def caches(api) -> None:
    with call("caches.create"):
        config = {"contents": ["x" * 100], "ttl": "300s", "display_name": "c"}
        cache = await got(api.caches.create(model=MODEL, config=config))
    with call("caches.get"):
        equal((await got(api.caches.get(name=cache.name))).display_name, "c")
    with call("caches.list"):
        await every(api.caches.list())
    with call("caches.update"):
        holds((await got(api.caches.update(name=cache.name, config={"ttl": "600s"}))).expire_time > cache.expire_time)
    with call("models.generate_content with a cache"):
        for _ in range(4):
            used = await got(
                api.models.generate_content(model=MODEL, contents="hi", config={"cached_content": cache.name})
            )
            equal(used.usage_metadata.cached_content_token_count, 1024)
    with call("caches.delete"):
        await got(api.caches.delete(name=cache.name))


async def batches(api) -> None:
    with call("batches.create (inline)"):
        inline = await got(api.batches.create(model=MODEL, src=[types.InlinedRequest(contents="hi")]))
    with call("batches.get"):
        done = await got(api.batches.get(name=inline.name))
        equal(done.state, types.JobState.JOB_STATE_SUCCEEDED)
        equal(done.dest.inlined_responses[0].response.text, "You said: hi")
    with call("batches.create (from a file)"):
        request = json.dumps({"key": "1", "request": {"contents": [{"parts": [{"text": "from a file"}]}]}})
        lines = await got(
            api.files.upload(file=io.BytesIO(request.encode()), config={"mime_type": "application/jsonl"})
        )
        queued = await got(api.batches.create(model=MODEL, src=lines.name))
    with call("files.download (result of a batch)"):
        finished = await got(api.batches.get(name=queued.name))
        holds(b"You said: from a file" in await got(api.files.download(file=finished.dest.file_name)))
    with call("batches.create_embeddings"):
        source = types.EmbeddingsBatchJobSource(inlined_requests=types.EmbedContentBatch(contents=["x"]))
        embeddings = await got(api.batches.create_embeddings(model="gemini-embedding-001", src=source))
        done = await got(api.batches.get(name=embeddings.name))
        equal(done.state, types.JobState.JOB_STATE_SUCCEEDED)
    with call("batches.list"):
        await every(api.batches.list())
    with call("batches.cancel"):
        await got(api.batches.cancel(name=queued.name))
    with call("batches.delete"):
        await got(api.batches.delete(name=queued.name))


async def stores(api) -> None:
    group = api.file_search_stores
    with call("file_search_stores.create"):
        store = await got(group.create(config={"display_name": "s"}))
    with call("file_search_stores.get"):
        equal((await got(group.get(name=store.name))).display_name, "s")
    with call("file_search_stores.list"):
        await every(group.list())
    with call("file_search_stores.upload_to_file_search_store"):
        config = {"mime_type": "text/plain"}
        uploaded = await got(
            group.upload_to_file_search_store(
                file_search_store_name=store.name, file=io.BytesIO(b"words"), config=config
            )
        )
    with call("operations.get (upload)"):
        done = await got(api.operations.get(uploaded))
        equal(done.done, True)
        document = done.response.document_name
    with call("file_search_stores.import_file"):
        file = await got(api.files.upload(file=io.BytesIO(b"more"), config={"mime_type": "text/plain"}))
        imported = await got(group.import_file(file_search_store_name=store.name, file_name=file.name))
    with call("operations.get (import)"):
        equal((await got(api.operations.get(imported))).done, True)
    with call("file_search_stores.documents.list"):
        equal(len(await every(group.documents.list(parent=store.name))), 2)
    with call("file_search_stores.documents.get"):
        equal((await got(group.documents.get(name=document))).name, document)
    with call("file_search_stores.download_media"):
        media = document.replace("/documents/", "/media/")
        equal(await got(group.download_media(media_id=media)), b"words")
    with call("models.generate_content with a store"):
        tool = types.Tool(file_search=types.FileSearch(file_search_store_names=[store.name]))
        config = types.GenerateContentConfig(tools=[tool])
        for _ in range(4):
            equal(
                (await got(api.models.generate_content(model=MODEL, contents="hi", config=config))).text, "You said: hi"
            )
    with call("file_search_stores.documents.delete"):
        await got(group.documents.delete(name=document, config={"force": True}))
    with call("file_search_stores.delete"):
        await got(group.delete(name=store.name, config={"force": True}))


async def tunings(api) -> None:
    with call("tunings.tune"):
        data = types.TuningDataset(examples=TUNED)
        job = await got(api.tunings.tune(base_model="models/gemini-1.5-flash", training_dataset=data))
        holds(job.name.startswith("tunedModels/"), job.name)
    with call("tunings.get"):
        equal((await got(api.tunings.get(name=job.name))).name, job.name)
    with call("tunings.list"):
        await every(api.tunings.list())
    with call("models.list (tuned)"):
        await every(api.models.list(config={"query_base": False}))
    with call("models.generate_content (tuned)"):
        for _ in range(4):
            equal((await got(api.models.generate_content(model=job.name, contents="hi"))).text, "You said: hi")
    with call("models.update"):
        equal((await got(api.models.update(model=job.name, config={"display_name": "mine"}))).display_name, "mine")
    with call("tunings.cancel"):
        await got(api.tunings.cancel(name=job.name))
    with call("models.delete"):
        await got(api.models.delete(model=job.name))


async def the_rest(api) -> None:
    with call("auth_tokens.create"):
        config = {"uses": 1, "http_options": {"api_version": "v1alpha"}}
        holds((await got(api.auth_tokens.create(config=config))).name.startswith("auth_tokens/"))
    with call("an error (404)"):
        try:
            await got(api.models.generate_content(model="gemini-0", contents="hi"))
        except errors.ClientError as refused:
            equal((refused.code, refused.status), (404, "NOT_FOUND"))
        else:
            raise AssertionError("there is no such model")


asyncio.run(main(sys.argv[1]))
