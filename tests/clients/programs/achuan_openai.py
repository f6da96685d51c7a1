"""openai for Python on a model whose upstream keeps the conversation: whole, streamed, sessions, refused."""

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
SAID = "You said: Be brief.\n\ngrüße 你好"

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
    equal(answer.choices[0].message.content, SAID)
    equal((answer.model, answer.choices[0].finish_reason, answer.usage.total_tokens), (MODEL, "stop", 0))

with call("chat.completions.create (stream, include_usage)"):
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=HISTORY, stream=True, stream_options={"include_usage": True}
        )
    )
    equal("".join(each.choices[0].delta.content or "" for each in chunks if each.choices), SAID)
    equal((chunks[-1].choices, chunks[-1].usage.total_tokens), ([], 0))
    equal(chunks[-2].choices[0].finish_reason, "stop")
    equal(len({each.id for each in chunks}), 1)

with call("chat.completions.create (user)"):
    said = [
        client.chat.completions.with_raw_response.create(model=MODEL, messages=HISTORY, user="alice") for _ in range(2)
    ]
    equal(len({each.headers["x-session-id"] for each in said}), 1)
    equal(said[1].parse().choices[0].message.content, "You said: grüße 你好")
session = said[0].headers["x-session-id"]

with call("chat.completions.create (x-session-id, metadata.sessionId)"):
    for more in (
        {"extra_headers": {"x-session-id": session}},
        {"extra_body": {"metadata": {"sessionId": int(session)}}},
        {"metadata": {"sessionId": session}},
    ):
        raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=HISTORY, **more)
        equal(raw.headers["x-session-id"], session)

with call("chat.completions.create (a session that is no more)"):
    for stream in (False, True):
        try:
            client.chat.completions.create(
                model=MODEL, messages=HISTORY, stream=stream, extra_headers={"x-session-id": "7"}
            )
        except openai.NotFoundError as refused:
            holds("对话不存在" in refused.message, refused.message)
            equal((refused.code, refused.type), ("session_not_found", "invalid_request_error"))
        else:
            raise AssertionError("it was not refused")

with call("models.list"):
    holds(MODEL in [each.id for each in client.models.list()])
