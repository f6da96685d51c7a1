"""openai, every call that passes, with its sync or its async client: `openai_python.py sync|async`.

Both clients have the same methods, so one text serves both: what returns something to wait for is waited for (`got`, `every`).
Models are named as `provider/model`, bare, by an alias, and (a login session) not at all.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys

import openai
from openai_calls import login
from pydantic import BaseModel
from telling import MODEL, OTHER_TOKEN, TOKEN, URL, call, equal, every, got, holds, line

GPT = "oa/gpt-4o-mini"
ASK = [{"role": "user", "content": "grüße 你好"}]
SAID = "You said: grüße 你好"
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("look", "hear")
]
COUNTED = {"stream": True, "stream_options": {"include_usage": True}}
DATA = bytes(range(256)) * 400
SESSIONS = 12
"""Enough for their files to be of several keys."""


class Bird(BaseModel):
    name: str
    wings: int


async def main(mode: str) -> None:
    kind = openai.OpenAI if mode == "sync" else openai.AsyncOpenAI

    def client(token: str, **more: object):
        return kind(api_key=token, base_url=f"{URL}/v1", **more)

    api, other = client(TOKEN, organization="org-of-the-client"), client(OTHER_TOKEN)
    library = next(base for base in type(api._client).__mro__ if base.__module__.startswith("httpx"))
    line(
        client="openai (Python)",
        version=openai.__version__,
        transport=f"{library.__module__.partition('.')[0]}, {mode}",
    )
    for part in (chats, streams, tools, numbers, responses, files, batches, stores, pictures, sounds, models, google):
        await part(api)
    await owners(api, other)
    await errors(api, client("token-of-nobody", max_retries=0), client(TOKEN, max_retries=0))
    await logged_in(client)


async def chats(api) -> None:
    for name, model in (("provider/model", GPT), ("model", "gpt-4o-mini"), ("alias", "fast")):
        with call(f"chat.completions.create ({name})"):
            answer = await got(api.chat.completions.create(model=model, messages=ASK))
            equal((answer.choices[0].message.content, answer.model), (SAID, "gpt-4o-mini"))
            holds(answer._request_id)
    with call("chat.completions.create (n=2)"):
        answer = await got(api.chat.completions.create(model=GPT, messages=ASK, n=2, seed=7, logit_bias={"1": 2}))
        equal([choice.message.content for choice in answer.choices], [SAID] * 2)
    with call("chat.completions.create (limit)"):
        answer = await got(api.chat.completions.create(model=GPT, messages=ASK, max_completion_tokens=2))
        equal((answer.choices[0].message.content, answer.choices[0].finish_reason), (SAID[:8], "length"))
    with call("chat.completions.parse"):
        answer = await got(api.chat.completions.parse(model=GPT, messages=ASK, response_format=Bird))
        equal(answer.choices[0].message.parsed, Bird(name=ASK[0]["content"], wings=0))
    with call("chat.completions (stored)"):
        made = await got(api.chat.completions.create(model=GPT, messages=ASK, store=True, metadata={"a": "b"}))
        kept = await got(api.chat.completions.retrieve(made.id))
        equal(kept.choices[0].message.content, SAID)
        holds((await got(api.chat.completions.delete(made.id))).deleted)
    with call("completions.create"):
        answer = await got(api.completions.create(model="gpt-3.5-turbo-instruct", prompt=["a", "b"]))
        equal([choice.text for choice in answer.choices], ["You said: a", "You said: b"])


async def streams(api) -> None:
    with call("chat.completions.create (stream, include_usage)"):
        chunks = await every(api.chat.completions.create(model=GPT, messages=ASK, **COUNTED))
        equal("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), SAID)
        equal((chunks[-1].choices, chunks[-1].usage.total_tokens > 0), ([], True))
        holds(len(chunks) > 4, chunks)
    with call("chat.completions.stream"):
        manager = api.chat.completions.stream(model=GPT, messages=ASK)
        if hasattr(manager, "__aenter__"):
            async with manager as stream:
                final = await stream.get_final_completion()
        else:
            with manager as stream:
                final = stream.get_final_completion()
        equal(final.choices[0].message.content, SAID)


async def tools(api) -> None:
    with call("chat.completions.create (tools)"):
        answer = await got(api.chat.completions.create(model=GPT, messages=ASK, tools=TOOLS))
        (tool,) = answer.choices[0].message.tool_calls
        equal((tool.function.name, json.loads(tool.function.arguments)), ("look", {"said": ASK[0]["content"]}))
        talk = [*ASK, answer.choices[0].message, {"role": "tool", "tool_call_id": tool.id, "content": "a bird"}]
        answer = await got(api.chat.completions.create(model=GPT, messages=talk, tools=TOOLS))
        equal(answer.choices[0].message.content, "You said: a bird")
    with call("chat.completions.create (tools, stream)"):
        wanted = {"model": GPT, "messages": ASK, "tools": TOOLS, "parallel_tool_calls": True, "stream": True}
        chunks = await every(api.chat.completions.create(**wanted))
        pieces = [each for chunk in chunks for each in chunk.choices[0].delta.tool_calls or ()]
        equal([each.function.name for each in pieces if each.function.name], ["look", "hear"])
        text = "".join(each.function.arguments or "" for each in pieces if each.index == 1)
        equal(json.loads(text), {"said": ASK[0]["content"]})


async def numbers(api) -> None:
    with call("embeddings.create"):
        answer = await got(api.embeddings.create(model="oa/text-embedding-3-small", input=["a", "b"]))
        equal([len(each.embedding) for each in answer.data], [1536] * 2)
    with call("moderations.create"):
        answer = await got(api.moderations.create(input=["peace", "violence"]))
        equal([each.flagged for each in answer.results], [False, True])


async def responses(api) -> None:
    first = await got(api.responses.create(model=GPT, input="one"))
    with call("responses.create"):
        equal((first.output_text, first.status), ("You said: one", "completed"))
    with call("responses.create (stream)"):
        events = await every(api.responses.create(model=GPT, input="hello", stream=True))
        text = "".join(each.delta for each in events if each.type == "response.output_text.delta")
        equal((text, events[-1].type), ("You said: hello", "response.completed"))
    with call("responses.create (previous_response_id)"):
        for previous in (first.id, events[0].response.id):
            for _ in range(3):  # each time another key's turn, were it not for the name
                answer = await got(api.responses.create(model=GPT, input="two", previous_response_id=previous))
                equal(answer.previous_response_id, previous)
    with call("responses.create (tools)"):
        tool = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}
        answer = await got(api.responses.create(model=GPT, input="hello", tools=[tool]))
        equal((answer.output[0].type, answer.output[0].name), ("function_call", "look"))
    with call("responses.parse"):
        answer = await got(api.responses.parse(model=GPT, input="x", text_format=Bird))
        equal(answer.output_parsed, Bird(name="x", wings=0))
    with call("responses.retrieve, input_items.list, delete"):
        equal((await got(api.responses.retrieve(first.id))).output_text, "You said: one")
        equal((await every(api.responses.input_items.list(first.id)))[0].content[0].text, "one")
        await got(api.responses.delete(first.id))
    with call("conversations.create, responses.create (conversation)"):
        made = await got(api.conversations.create(metadata={"a": "b"}))
        for _ in range(3):
            answer = await got(api.responses.create(model=GPT, input="hello", conversation=made.id))
            equal(answer.conversation.id, made.id)
        holds((await got(api.conversations.delete(made.id))).deleted)


async def files(api) -> None:
    made = []
    with call("files.create"):
        for n in range(SESSIONS):
            place = api.with_options(default_headers={"X-Session-Id": f"files-{n}"})
            made.append(await got(place.files.create(file=(f"{n}.bin", DATA[:n]), purpose="user_data")))
        equal([each.bytes for each in made], list(range(SESSIONS)))
    with call("files.list (pages over several keys)"):
        listed = await every(api.files.list(limit=2))
        equal(sorted(each.id for each in listed), sorted(each.id for each in made))
        equal([each.created_at for each in listed], sorted((each.created_at for each in made), reverse=True))
        equal(await every(api.files.list(purpose="batch")), [])
    with call("files.retrieve"):
        equal(
            [(await got(api.files.retrieve(each.id))).filename for each in made], [f"{n}.bin" for n in range(SESSIONS)]
        )
    with call("files.content"):
        equal((await got(api.files.content(made[5].id))).content, DATA[:5])
    with call("uploads (in parts)"):
        about = {"filename": "u.bin", "mime_type": "text/plain", "purpose": "user_data"}
        upload = await got(api.uploads.create(bytes=len(DATA), **about))
        second = await got(api.uploads.parts.create(upload.id, data=DATA[5000:]))
        first = await got(api.uploads.parts.create(upload.id, data=DATA[:5000]))
        done = await got(api.uploads.complete(upload.id, part_ids=[first.id, second.id]))
        equal((await got(api.files.content(done.file.id))).content, DATA)
        made.append(done.file)
    with call("files.delete"):
        equal([(await got(api.files.delete(each.id))).deleted for each in made], [True] * (SESSIONS + 1))
        equal(await every(api.files.list()), [])


async def batches(api) -> None:
    request = {
        "custom_id": "1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "gpt-4o-mini", "messages": ASK},
    }
    text = f"{json.dumps(request)}\nnonsense\n"
    with call("batches.create"):
        file = await got(api.files.create(file=("b.jsonl", text.encode()), purpose="batch"))
        wanted = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        made = await got(api.batches.create(**wanted))
        equal(made.status, "validating")
    with call("batches.retrieve"):
        done = await got(api.batches.retrieve(made.id))
        equal((done.status, done.request_counts.completed, done.request_counts.failed), ("completed", 1, 1))
    with call("files.content (result of a batch)"):
        answer = json.loads((await got(api.files.content(done.output_file_id))).text)
        equal(answer["response"]["body"]["choices"][0]["message"]["content"], SAID)
        holds("invalid_request" in (await got(api.files.content(done.error_file_id))).text)
    with call("batches.list"):
        equal([each.id for each in await every(api.batches.list(limit=1))], [made.id])
    with call("batches.cancel"):
        spare = await got(api.batches.create(**wanted))
        equal((await got(api.batches.cancel(spare.id))).status, "cancelling")


async def stores(api) -> None:
    with call("vector_stores.create (of a file)"):
        file = await got(api.files.create(file=("w.txt", b"words"), purpose="assistants"))
        store = await got(api.vector_stores.create(name="s", file_ids=[file.id]))
        equal((await got(api.vector_stores.retrieve(store.id))).file_counts.completed, 1)
        holds((await got(api.vector_stores.delete(store.id))).deleted)
    with call("vector_stores.files.create (into an empty one)"):
        store = await got(api.vector_stores.create(name="s"))
        await got(api.embeddings.create(model="text-embedding-3-small", input="a"))  # it is another key's turn
        file = await got(api.files.create(file=("w.txt", b"words"), purpose="assistants"))
        added = await got(api.vector_stores.files.create_and_poll(vector_store_id=store.id, file_id=file.id))
        equal(added.status, "completed")
        equal([each.id for each in await every(api.vector_stores.files.list(store.id))], [file.id])
        found = await every(api.vector_stores.search(store.id, query="x"))
        equal(found[0].file_id, file.id)
        holds((await got(api.vector_stores.delete(store.id))).deleted)


async def pictures(api) -> None:
    with call("images.generate"):
        made = await got(api.images.generate(model="oa/gpt-image-1", prompt="a bird", n=2))
        equal([base64.b64decode(each.b64_json)[:4] for each in made.data], [b"\x89PNG"] * 2)
        picture = ("a.png", base64.b64decode(made.data[0].b64_json), "image/png")
    with call("images.edit (multipart)"):
        edited = await got(api.images.edit(model="oa/gpt-image-1", image=[picture, picture], prompt="bluer"))
        holds(base64.b64decode(edited.data[0].b64_json).startswith(b"\x89PNG"))
    with call("images.create_variation (multipart)"):
        varied = await got(api.images.create_variation(image=picture, response_format="b64_json"))
        holds(varied.data[0].b64_json)


async def sounds(api) -> None:
    with call("audio.speech.create"):
        spoken = await got(api.audio.speech.create(model="oa/tts-1", voice="alloy", input="hello"))
        holds(spoken.content.startswith(b"ID3"))
    sent = ("a.mp3", b"sound", "audio/mpeg")
    with call("audio.transcriptions.create (multipart)"):
        heard = await got(api.audio.transcriptions.create(model="oa/whisper-1", file=sent))
        holds(heard.text.startswith("You sent: a.mp3, 5 bytes"), heard)
    with call("audio.transcriptions.create (multipart, stream)"):
        events = await every(api.audio.transcriptions.create(model="gpt-4o-transcribe", file=sent, stream=True))
        holds(events[-1].text.startswith("You sent: a.mp3"), events)
    with call("audio.translations.create (multipart)"):
        text = await got(api.audio.translations.create(model="whisper-1", file=sent, response_format="text"))
        holds(text.startswith("You sent: a.mp3"), text)


async def models(api) -> None:
    with call("models.list"):
        names = {each.id for each in await every(api.models.list())}
        holds({GPT, "gpt-4o-mini", "fast", f"gemini/{MODEL}"} <= names, names)
    with call("models.retrieve (with a slash)"):
        for name in (GPT, "gpt-4o-mini"):
            equal((await got(api.models.retrieve(name))).id, name)


async def google(api) -> None:
    name = f"gemini/{MODEL}"
    with call("chat.completions.create (gemini)"):
        answer = await got(api.chat.completions.create(model=name, messages=ASK))
        equal((answer.choices[0].message.content, answer.model), (SAID, MODEL))
    with call("chat.completions.create (gemini, stream)"):
        chunks = await every(api.chat.completions.create(model=name, messages=ASK, **COUNTED))
        equal("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), SAID)
    with call("chat.completions.create (gemini, tools)"):
        answer = await got(api.chat.completions.create(model=name, messages=ASK, tools=TOOLS))
        equal(answer.choices[0].message.tool_calls[0].function.name, "look")
    with call("embeddings.create (gemini)"):
        wanted = {"model": "gemini/gemini-embedding-001", "input": "a", "encoding_format": "float"}
        holds((await got(api.embeddings.create(**wanted))).data[0].embedding)
    with call("an error of Google's (400)"):
        error = await refused(api.chat.completions.create, openai.BadRequestError, model=name, messages=ASK, n=99)
        holds("candidate_count" in str(error), error)


async def refused(method, kind: type[Exception], /, *arguments: object, **wanted: object) -> Exception:
    """What a call says that has to fail so."""
    try:
        await got(method(*arguments, **wanted))
    except kind as error:
        return error
    raise AssertionError("it was not refused")


async def owners(api, other) -> None:
    """What one client made, another does not find."""
    with call("files.retrieve of another client's (404)"):
        file = await got(api.files.create(file=("mine.txt", b"mine"), purpose="user_data"))
        for method in (other.files.retrieve, other.files.content, other.files.delete):
            equal((await refused(method, openai.NotFoundError, file.id)).code, "resource_not_found")
        equal(await every(other.files.list()), [])
        await got(api.files.delete(file.id))


async def errors(api, nobody, impatient) -> None:
    with call("an unknown model (404)"):
        error = await refused(api.chat.completions.create, openai.NotFoundError, model="oa/gpt-0", messages=ASK)
        equal((error.code, error.param, "模型 oa/gpt-0 不存在" in str(error)), ("model_not_found", "model", True))
    with call("no messages (400)"):
        error = await refused(api.chat.completions.create, openai.BadRequestError, model=GPT, messages=[])
        equal((error.code, error.param), ("missing_required_parameter", "messages"))
    with call("an error of the upstream's (400)"):
        wanted = {"model": "oa/text-embedding-3-small", "input": ""}
        holds("'$.input' is invalid" in str(await refused(api.embeddings.create, openai.BadRequestError, **wanted)))
    with call("a wrong token (401)"):
        equal((await refused(nobody.models.list, openai.AuthenticationError)).code, "invalid_api_key")
    with call("all keys at rest (429, retry-after)"):
        wanted = {"model": "busy/always-busy", "messages": ASK}
        error = await refused(impatient.chat.completions.create, openai.RateLimitError, **wanted)
        equal(error.code, "keys_resting")
        holds(20 <= int(error.response.headers["retry-after"]) <= 31, error.response.headers)


async def logged_in(client) -> None:
    """A session token, which remembers the model that was named last."""
    with call("a login session"):
        session = client(login(TOKEN))
        error = await refused(session.post, openai.BadRequestError, "/chat/completions", **untold("one"))
        equal((error.code, error.param), ("missing_required_parameter", "model"))
        answer = await got(session.chat.completions.create(model=GPT, messages=ASK))
        equal(answer.choices[0].message.content, SAID)
        for said in ("two", "three"):
            answer = await got(session.post("/chat/completions", **untold(said)))
            equal((answer["model"], answer["choices"][0]["message"]["content"]), ("gpt-4o-mini", f"You said: {said}"))


def untold(text: str) -> dict:
    """A chat without a model."""
    return {"cast_to": object, "body": {"messages": [{"role": "user", "content": text}]}}


asyncio.run(main(sys.argv[1]))
