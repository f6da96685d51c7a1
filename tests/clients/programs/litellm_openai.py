"""litellm as a client, by its `openai/` provider: a conversation, called, streamed and awaited, tools, responses and the rest."""

from __future__ import annotations

import asyncio
import io
import os
from importlib.metadata import version

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for its list of prices

import litellm
from telling import MODEL, TOKEN, URL, call, equal, holds, line

line(client="litellm", version=version("litellm"), transport="httpx, aiohttp")  # sync, async
GPT = "openai/oa/gpt-4o-mini"
HERE = {"api_base": f"{URL}/v1", "api_key": TOKEN}
ASK = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


def heard(answer: object) -> str:
    return answer.choices[0].message.content


def conversation() -> None:
    talk = []
    with call("completion (three turns)"):
        for text in ("one", "two", "three"):
            talk.append({"role": "user", "content": text})
            answer = litellm.completion(model=GPT, messages=talk, **HERE)
            equal(heard(answer), f"You said: {text}")
            talk.append({"role": "assistant", "content": heard(answer)})
    with call("completion (stream)"):
        chunks = list(litellm.completion(model=GPT, messages=ASK, stream=True, **HERE))
        equal("".join(chunk.choices[0].delta.content or "" for chunk in chunks), "You said: hello")
    with call("completion (tools)"):
        answer = litellm.completion(model=GPT, messages=ASK, tools=TOOLS, **HERE)
        equal(answer.choices[0].message.tool_calls[0].function.name, "look")
    with call("completion (gemini)"):
        equal(heard(litellm.completion(model=f"openai/gemini/{MODEL}", messages=ASK, **HERE)), "You said: hello")
    with call("an unknown model (404)"):
        try:
            litellm.completion(model="openai/oa/gpt-0", messages=ASK, **HERE)
        except litellm.NotFoundError as error:
            holds("模型 oa/gpt-0 不存在" in str(error), error)
        else:
            raise AssertionError("it was not refused")


async def awaited() -> None:
    with call("acompletion"):
        equal(heard(await litellm.acompletion(model=GPT, messages=ASK, **HERE)), "You said: hello")
    with call("acompletion (stream)"):
        chunks = [each async for each in await litellm.acompletion(model=GPT, messages=ASK, stream=True, **HERE)]
        equal("".join(chunk.choices[0].delta.content or "" for chunk in chunks), "You said: hello")
    with call("aresponses"):
        answer = await litellm.aresponses(model=GPT, input="hello", **HERE)
        equal(answer.output[0].content[0].text, "You said: hello")


def the_rest() -> None:
    with call("embedding"):
        answer = litellm.embedding(model="openai/oa/text-embedding-3-small", input=["a", "b"], **HERE)
        equal([len(each["embedding"]) for each in answer.data], [1536] * 2)
    with call("image_generation"):
        answer = litellm.image_generation(model="openai/oa/gpt-image-1", prompt="a bird", **HERE)
        holds(answer.data[0].b64_json)
    with call("speech"):
        answer = litellm.speech(model="openai/oa/tts-1", voice="alloy", input="hello", **HERE)
        holds(answer.content.startswith(b"ID3"))
    with call("transcription (multipart)"):
        file = ("a.mp3", io.BytesIO(b"sound"), "audio/mpeg")
        answer = litellm.transcription(model="openai/oa/whisper-1", file=file, **HERE)
        holds(answer.text.startswith("You sent: a.mp3, 5 bytes"), answer)
    with call("create_file, file_content, file_delete"):
        here = {"custom_llm_provider": "openai", **HERE}
        made = litellm.create_file(file=("w.txt", b"words"), purpose="user_data", **here)
        equal(litellm.file_content(file_id=made.id, **here).content, b"words")
        holds(litellm.file_delete(file_id=made.id, **here).deleted)


conversation()
asyncio.run(awaited())
the_rest()
