"""The openai SDK against an upstream, one function a scenario: `openai_sdk.py BASE_URL KEY OTHER_KEY` prints what became of each.

The keys are of two projects. Output: one JSON object, scenario to null or to the traceback of its failure.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
import traceback

import openai
from pydantic import BaseModel

BASE, KEY, OTHER = sys.argv[1:4]
MODEL = "gpt-4o-mini"
ASK = [{"role": "user", "content": "grüße 你好"}]
SAID = "You said: grüße 你好"
TOOLS = [
    {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "hear", "parameters": {"type": "object"}}},
]
client = openai.OpenAI(api_key=KEY, base_url=f"{BASE}/v1", max_retries=0)
other = openai.OpenAI(api_key=OTHER, base_url=f"{BASE}/v1", max_retries=0)


def refused(call, kind=openai.NotFoundError):
    """What a call says that has to fail."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError("it was not refused")


def chat():
    answer = client.chat.completions.create(model=MODEL, messages=ASK, n=2)
    assert [choice.message.content for choice in answer.choices] == [SAID, SAID]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    assert answer._request_id.startswith("req_")
    short = client.chat.completions.create(model=MODEL, messages=ASK, max_completion_tokens=2)
    assert (short.choices[0].message.content, short.choices[0].finish_reason) == (SAID[:8], "length")
    error = refused(lambda: client.chat.completions.create(model="gpt-0", messages=ASK))
    assert (error.code, error.type) == ("model_not_found", "invalid_request_error")
    error = refused(lambda: client.chat.completions.create(model=MODEL, messages=[]), openai.BadRequestError)
    assert error.param == "messages"


def chat_streams():
    options = {"include_usage": True}
    with client.chat.completions.create(model=MODEL, messages=ASK, stream=True, stream_options=options) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == SAID
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens > 0) == ([], True)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def tools():
    answer = client.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS)
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("look", {"said": ASK[0]["content"]})
    assert answer.choices[0].finish_reason == "tool_calls"
    wanted = {"messages": ASK, "model": MODEL, "tools": TOOLS, "parallel_tool_calls": True}
    with client.chat.completions.stream(**wanted) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert [each.function.name for each in calls] == ["look", "hear"]
    assert [json.loads(each.function.arguments) for each in calls] == [{"said": ASK[0]["content"]}] * 2
    back = [*ASK, answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "a bird"}]
    answer = client.chat.completions.create(model=MODEL, messages=back, tools=TOOLS)
    assert answer.choices[0].message.content == "You said: a bird"


def structured():
    class Bird(BaseModel):
        name: str
        wings: int

    bird = client.chat.completions.parse(model=MODEL, messages=ASK, response_format=Bird).choices[0].message.parsed
    assert bird == Bird(name=ASK[0]["content"], wings=0)
    assert client.responses.parse(model=MODEL, input="x", text_format=Bird).output_parsed == Bird(name="x", wings=0)


def stored_chats():
    made = client.chat.completions.create(model=MODEL, messages=ASK, store=True, metadata={"a": "b"})
    assert client.chat.completions.retrieve(made.id).choices[0].message.content == SAID
    assert [each.id for each in client.chat.completions.list()] == [made.id]
    assert list(other.chat.completions.list()) == []
    assert [each.content for each in client.chat.completions.messages.list(made.id)] == [ASK[0]["content"]]
    assert client.chat.completions.update(made.id, metadata={"c": "d"}).metadata == {"c": "d"}
    refused(lambda: other.chat.completions.retrieve(made.id))
    assert client.chat.completions.delete(made.id).deleted
    refused(lambda: client.chat.completions.retrieve(made.id))


def completions():
    answer = client.completions.create(model="gpt-3.5-turbo-instruct", prompt=["a", "b"])
    assert [choice.text for choice in answer.choices] == ["You said: a", "You said: b"]
    stream = client.completions.create(model="gpt-3.5-turbo-instruct", prompt="a", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "You said: a"


def embeddings():
    packed = client.embeddings.create(model="text-embedding-3-small", input=["a", "b"])
    plain = client.embeddings.create(model="text-embedding-3-small", input=["a", "b"], encoding_format="float")
    assert [len(each.embedding) for each in packed.data] == [1536, 1536]
    for one, two in zip(packed.data, plain.data, strict=True):
        assert max(abs(a - b) for a, b in zip(one.embedding, two.embedding, strict=True)) < 1e-6
    small = client.embeddings.create(model="text-embedding-3-small", input="a", dimensions=4)
    assert len(small.data[0].embedding) == 4


def moderations():
    answer = client.moderations.create(input=["peace", "violence"])
    assert [each.flagged for each in answer.results] == [False, True]
    assert answer.results[1].categories.violence


def images():
    made = client.images.generate(model="gpt-image-1", prompt="a bird", n=2)
    assert [base64.b64decode(each.b64_json)[:4] for each in made.data] == [b"\x89PNG"] * 2
    assert client.images.generate(model="dall-e-3", prompt="a bird").data[0].url.startswith("https://")
    picture = ("a.png", base64.b64decode(made.data[0].b64_json), "image/png")
    edited = client.images.edit(model="gpt-image-1", image=[picture, picture], prompt="bluer")
    assert base64.b64decode(edited.data[0].b64_json).startswith(b"\x89PNG")
    assert client.images.create_variation(image=picture, response_format="b64_json").data[0].b64_json
    events = list(client.images.generate(model="gpt-image-1", prompt="x", stream=True, partial_images=1))
    assert [each.type for each in events] == ["image_generation.partial_image", "image_generation.completed"]


def audio():
    spoken = client.audio.speech.create(model="tts-1", voice="alloy", input="hello").read()
    assert spoken.startswith(b"ID3")
    with client.audio.speech.with_streaming_response.create(model="bytes-1MiB", voice="alloy", input="x") as answer:
        assert sum(map(len, answer.iter_bytes())) == 1 << 20
    sent = ("a.mp3", b"sound", "audio/mpeg")
    assert client.audio.transcriptions.create(model="whisper-1", file=sent).text.startswith("You sent: a.mp3, 5 bytes")
    text = client.audio.translations.create(model="whisper-1", file=sent, response_format="text")
    assert text.startswith("You sent: a.mp3")
    events = list(client.audio.transcriptions.create(model="gpt-4o-transcribe", file=sent, stream=True))
    assert events[-1].text.startswith("You sent: a.mp3")


def models():
    listed = [each.id for each in client.models.list()]
    assert MODEL in listed
    assert client.models.retrieve(MODEL).id == MODEL
    assert refused(lambda: client.models.retrieve("gpt-0")).code == "model_not_found"


def files():
    data = bytes(range(256)) * 5000
    made = [client.files.create(file=(f"{n}.bin", data[n:]), purpose="user_data") for n in range(3)]
    assert [each.bytes for each in made] == [len(data), len(data) - 1, len(data) - 2]
    assert client.files.content(made[1].id).read() == data[1:]
    assert [each.id for each in client.files.list(limit=2)] == [each.id for each in reversed(made)]
    assert [each.id for each in client.files.list(order="asc")] == [each.id for each in made]
    assert list(client.files.list(purpose="batch")) == []
    assert list(other.files.list()) == []
    for call in (other.files.retrieve, other.files.content, other.files.delete):
        assert str(refused(lambda call=call: call(made[0].id))).endswith(f"No such File object: {made[0].id}")
    assert all(client.files.delete(each.id).deleted for each in made)
    refused(lambda: client.files.retrieve(made[0].id))


def uploads():
    data = bytes(range(256)) * 40
    upload = client.uploads.create(bytes=len(data), filename="u.bin", mime_type="text/plain", purpose="user_data")
    first = client.uploads.parts.create(upload.id, data=data[5000:])
    second = client.uploads.parts.create(upload.id, data=data[:5000])
    refused(lambda: other.uploads.parts.create(upload.id, data=b"x"))
    refused(lambda: client.uploads.complete(upload.id, part_ids=[first.id]), openai.BadRequestError)
    done = client.uploads.complete(upload.id, part_ids=[second.id, first.id])
    assert (done.status, client.files.content(done.file.id).read()) == ("completed", data)
    whole = client.uploads.upload_file_chunked(
        file=data, filename="c.bin", bytes=len(data), mime_type="text/plain", purpose="user_data", part_size=3000
    )
    assert client.files.content(whole.file.id).read() == data
    spare = client.uploads.create(bytes=1, filename="u", mime_type="text/plain", purpose="user_data")
    assert client.uploads.cancel(spare.id).status == "cancelled"


def batches():
    line = {
        "custom_id": "1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": MODEL, "messages": ASK},
    }
    text = json.dumps(line) + "\nnonsense\n"
    file = client.files.create(file=("b.jsonl", text.encode()), purpose="batch")
    wanted = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    refused(lambda: other.batches.create(**wanted))
    made = client.batches.create(**wanted)
    assert (made.status, made.output_file_id) == ("validating", None)
    refused(lambda: other.batches.retrieve(made.id))
    done = client.batches.retrieve(made.id)
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 1, 1)
    (answer,) = map(json.loads, client.files.content(done.output_file_id).text.splitlines())
    assert answer["response"]["body"]["choices"][0]["message"]["content"] == SAID
    assert "invalid_request" in client.files.content(done.error_file_id).text
    refused(lambda: other.files.content(done.output_file_id))
    assert [each.id for each in client.batches.list()] == [made.id]
    spare = client.batches.create(**wanted)
    assert client.batches.cancel(spare.id).status == "cancelling"
    assert client.batches.retrieve(spare.id).status == "cancelled"


def responses():
    first = client.responses.create(model=MODEL, input="one", metadata={"a": "b"})
    assert (first.output_text, first.status) == ("You said: one", "completed")
    second = client.responses.create(model=MODEL, input="two", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    error = refused(
        lambda: other.responses.create(model=MODEL, input="x", previous_response_id=first.id), openai.BadRequestError
    )
    assert error.code == "previous_response_not_found"
    assert client.responses.retrieve(first.id).output_text == "You said: one"
    assert client.responses.input_items.list(first.id).data[0].content[0].text == "one"
    refused(lambda: other.responses.retrieve(first.id))
    unkept = client.responses.create(model=MODEL, input="x", store=False)
    refused(lambda: client.responses.retrieve(unkept.id))
    later = client.responses.create(model=MODEL, input="x", background=True)
    assert (later.status, client.responses.cancel(later.id).status) == ("queued", "cancelled")
    later = client.responses.create(model=MODEL, input="x", background=True)
    assert client.responses.retrieve(later.id).status == "completed"
    assert client.responses.input_tokens.count(model=MODEL, input="four token text").input_tokens == 4
    assert client.responses.compact(model=MODEL, input="x").output[0].type == "compaction"
    client.responses.delete(first.id)
    refused(lambda: client.responses.retrieve(first.id))


def responses_stream():
    with client.responses.stream(model=MODEL, input="hello") as stream:
        events = list(stream)
        assert stream.get_final_response().output_text == "You said: hello"
    assert [events[0].type, events[-1].type] == ["response.created", "response.completed"]
    assert "".join(each.delta for each in events if each.type == "response.output_text.delta") == "You said: hello"
    assert [each.sequence_number for each in events] == list(range(len(events)))
    identity = events[0].response.id
    assert client.responses.retrieve(identity).status == "completed"
    assert [each.type for each in client.responses.retrieve(identity, stream=True)][-1] == "response.completed"
    tool = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}
    with client.responses.stream(model=MODEL, input="hello", tools=[tool]) as stream:
        (call,) = stream.get_final_response().output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "look", {"said": "hello"})


def conversations():
    made = client.conversations.create(items=[{"type": "message", "role": "user", "content": "x"}], metadata={"a": "b"})
    answer = client.responses.create(model=MODEL, input="hello", conversation=made.id)
    assert answer.conversation.id == made.id
    refused(lambda: other.responses.create(model=MODEL, input="hello", conversation=made.id))
    items = list(client.conversations.items.list(made.id, order="asc", limit=1))
    assert [each.role for each in items] == ["user", "user", "assistant"]
    assert client.conversations.items.retrieve(items[0].id, conversation_id=made.id).content[0].text == "x"
    refused(lambda: other.conversations.items.list(made.id))
    client.conversations.items.delete(items[0].id, conversation_id=made.id)
    assert client.conversations.update(made.id, metadata={"c": "d"}).metadata == {"c": "d"}
    assert client.conversations.delete(made.id).deleted
    refused(lambda: client.conversations.retrieve(made.id))


def vector_stores():
    file = client.files.create(file=("w.txt", b"words"), purpose="assistants")
    store = client.vector_stores.create(name="s", file_ids=[file.id])
    assert (store.name, store.file_counts.completed) == ("s", 1)
    refused(lambda: other.vector_stores.retrieve(store.id))
    empty = client.vector_stores.create()
    assert client.vector_stores.files.create_and_poll(vector_store_id=empty.id, file_id=file.id).status == "completed"
    stranger = other.vector_stores.create()
    refused(lambda: other.vector_stores.files.create(vector_store_id=stranger.id, file_id=file.id))
    assert [each.id for each in client.vector_stores.files.list(empty.id)] == [file.id]
    assert next(iter(client.vector_stores.files.content(file.id, vector_store_id=empty.id))).text == "words"
    assert client.vector_stores.search(empty.id, query="x").data[0].file_id == file.id
    batch = client.vector_stores.file_batches.create_and_poll(store.id, file_ids=[file.id])
    assert batch.status == "completed"
    assert client.vector_stores.update(store.id, name="t").name == "t"
    assert client.vector_stores.files.delete(file.id, vector_store_id=empty.id).deleted
    assert {each.id for each in client.vector_stores.list()} == {store.id, empty.id}
    assert client.vector_stores.delete(store.id).deleted


def shelves():
    training = client.files.create(file=("t.jsonl", b"{}"), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=training.id)
    refused(lambda: other.fine_tuning.jobs.create(model=MODEL, training_file=training.id))
    done = client.fine_tuning.jobs.retrieve(job.id)
    assert done.status == "succeeded"
    assert list(client.fine_tuning.jobs.list_events(job.id)) == []
    assert client.chat.completions.create(model=done.fine_tuned_model, messages=ASK).choices[0].message.content == SAID
    refused(lambda: other.chat.completions.create(model=done.fine_tuned_model, messages=ASK))
    assert client.models.delete(done.fine_tuned_model).deleted
    container = client.containers.create(name="c", file_ids=[training.id])
    placed = client.containers.files.create(container.id, file=("p.txt", b"placed"))
    assert client.containers.files.content.retrieve(placed.id, container_id=container.id).read() == b"placed"
    refused(lambda: other.containers.retrieve(container.id))
    assert len(list(client.containers.files.list(container.id))) == 2
    video = client.videos.create(prompt="a bird", model="sora-2")
    assert (video.status, client.videos.retrieve(video.id).status) == ("queued", "completed")
    assert b"ftyp" in client.videos.download_content(video.id).read()
    refused(lambda: other.videos.retrieve(video.id))
    assert client.videos.remix(video.id, prompt="bluer").remixed_from_video_id == video.id
    assert client.videos.delete(video.id).deleted
    config = {"type": "custom", "item_schema": {"type": "object"}}
    made = client.evals.create(data_source_config=config, testing_criteria=[])
    source = {"type": "jsonl", "source": {"type": "file_content", "content": []}}
    run = client.evals.runs.create(made.id, data_source=source)
    assert (run.status, client.evals.runs.retrieve(run.id, eval_id=made.id).status) == ("queued", "completed")
    assert client.evals.delete(made.id).deleted
    skill = client.skills.create(files=[("s/SKILL.md", b"# s")])
    assert [each.id for each in client.skills.list()] == [skill.id]
    refused(lambda: other.skills.retrieve(skill.id))
    assert client.skills.delete(skill.id).deleted


def assistants():
    beta = client.beta
    made = beta.assistants.create(model=MODEL, name="a")
    thread = beta.threads.create(messages=[{"role": "user", "content": "hello"}])
    run = beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=made.id)
    assert run.status == "completed"
    newest = next(iter(beta.threads.messages.list(thread.id)))
    assert (newest.role, newest.content[0].text.value) == ("assistant", "You said: hello")
    refused(lambda: other.beta.threads.runs.create(thread_id=thread.id, assistant_id=made.id))
    with beta.threads.runs.stream(thread_id=thread.id, assistant_id=made.id) as stream:
        assert "".join(stream.text_deltas) == "You said: hello"
    assert beta.threads.create_and_run(assistant_id=made.id).status == "queued"
    assert beta.threads.delete(thread.id).deleted
    assert beta.assistants.delete(made.id).deleted
    refused(lambda: beta.assistants.retrieve(made.id))


def errors():
    nobody = openai.OpenAI(api_key="sk-nobody-at-all-0000", base_url=f"{BASE}/v1", max_retries=0)
    assert refused(nobody.models.list, openai.AuthenticationError).code == "invalid_api_key"
    error = refused(lambda: client.get("/nothing", cast_to=object))
    assert "Invalid URL (GET /v1/nothing)" in str(error)
    error = refused(lambda: client.get("/embeddings", cast_to=object), openai.APIStatusError)
    assert (error.status_code, error.code) == (405, "method_not_supported")


def asynchronous():
    async def use():
        async with openai.AsyncOpenAI(api_key=KEY, base_url=f"{BASE}/v1", max_retries=0) as aio:
            answer = await aio.chat.completions.create(model=MODEL, messages=ASK)
            assert answer.choices[0].message.content == SAID
            stream = await aio.chat.completions.create(model=MODEL, messages=ASK, stream=True)
            assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == SAID
            made = await aio.files.create(file=io.BytesIO(b"abc"), purpose="user_data")
            assert (await aio.files.content(made.id)).read() == b"abc"
            await aio.files.delete(made.id)

    asyncio.run(use())


def realtime():
    async def use():
        async with openai.AsyncOpenAI(api_key=KEY, base_url=f"{BASE}/v1", max_retries=0) as aio:
            secret = await aio.realtime.client_secrets.create()
        for key in (KEY, secret.value):
            aio = openai.AsyncOpenAI(api_key=key, base_url=f"{BASE}/v1", max_retries=0)
            async with aio.realtime.connect(model="gpt-realtime") as socket:
                assert (await socket.recv()).type == "session.created"
                item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
                await socket.conversation.item.create(item=item)
                await socket.response.create()
                text = ""
                async for event in socket:
                    text += event.delta if event.type == "response.output_text.delta" else ""
                    if event.type == "response.done":
                        break
                assert text == "You said: hello"
            await aio.close()

    asyncio.run(use())


SCENARIOS = (
    chat, chat_streams, tools, structured, stored_chats, completions, embeddings, moderations, images, audio, models, files,
    uploads, batches, responses, responses_stream, conversations, vector_stores, shelves, assistants, errors, asynchronous,
    realtime,
)  # fmt: skip


def main() -> None:
    became = {}
    for scenario in SCENARIOS:
        try:
            scenario()
            became[scenario.__name__] = None
        except Exception:
            became[scenario.__name__] = traceback.format_exc()
    client.close()
    other.close()
    json.dump(became, sys.stdout)


main()
