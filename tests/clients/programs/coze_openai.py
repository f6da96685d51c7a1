"""openai for Python on a bot: whole, streamed with what it thought, conversations, refused."""

from __future__ import annotations

import os

import openai
from telling import TOKEN, URL, call, equal, holds, line

line(client="openai (Python)", version=openai.__version__, transport="sync")
client = openai.OpenAI(api_key=TOKEN, base_url=f"{URL}/v1", max_retries=0)
MODEL = os.environ["CLIENT_MODEL"]
HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "grüße 你好"},
]
SAID = "a  b\n"
PIXEL = "data:image/png;base64,iVBORw0KGgo="

if os.environ.get("CLIENT_BREAKS"):
    with call("chat.completions.create (a stream that breaks)"):
        try:
            list(client.chat.completions.create(model=MODEL, messages=HISTORY, stream=True))
        except openai.APIError as broken:
            equal((broken.type, broken.code), ("api_error", "stream_error"))
        else:
            raise AssertionError("it ended well")
    raise SystemExit

with call("chat.completions.create"):
    answer = client.chat.completions.create(model=MODEL, messages=HISTORY)
    message = answer.choices[0].message
    equal((message.content, message.reasoning_content), (SAID, "hm"))
    equal((answer.model, answer.choices[0].finish_reason), (MODEL, "stop"))
    holds(answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0, answer.usage)

with call("chat.completions.create (stream, include_usage)"):
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=HISTORY, stream=True, stream_options={"include_usage": True}
        )
    )
    deltas = [each.choices[0].delta for each in chunks if each.choices]
    equal("".join(each.content or "" for each in deltas), SAID)
    equal("".join(getattr(each, "reasoning_content", None) or "" for each in deltas), "hm")
    holds(chunks[-1].choices == [] and chunks[-1].usage.total_tokens > 0, chunks[-1])
    equal(chunks[-2].choices[0].finish_reason, "stop")

with call("chat.completions.create (user, x-conversation-id)"):
    said = [
        client.chat.completions.with_raw_response.create(model=MODEL, messages=HISTORY, user="alice", **more)
        for more in ({}, {}, {"temperature": 0.2, "max_tokens": 5})
    ]
    named = {each.headers["x-conversation-id"] for each in said}
    equal(len(named), 1)
    header = {"x-conversation-id": named.pop()}
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=HISTORY, extra_headers=header)
    equal(raw.headers["x-conversation-id"], header["x-conversation-id"])

with call("chat.completions.create (an image)"):
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])
    equal(answer.choices[0].message.content, SAID)

with call("chat.completions.create (a conversation that is no more)"):
    for stream in (False, True):
        try:
            client.chat.completions.create(
                model=MODEL,
                messages=HISTORY,
                stream=stream,
                extra_headers={"x-conversation-id": "7500000000000000999"},
            )
        except openai.NotFoundError as refused:
            holds("会话不存在" in refused.message, refused.message)
            equal((refused.code, refused.type), ("session_not_found", "invalid_request_error"))
        else:
            raise AssertionError("it was not refused")

with call("embeddings.create (what bots do not serve)"):
    try:
        client.embeddings.create(model=MODEL, input="x")
    except openai.BadRequestError as refused:
        equal(refused.code, "unsupported_endpoint")
    else:
        raise AssertionError("it was not refused")

with call("models.list"):
    holds(MODEL in [each.id for each in client.models.list()])
