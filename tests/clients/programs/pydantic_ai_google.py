"""pydantic-ai's Google provider: a conversation, run and streamed. In the pinned pair of versions it sends User-Agent twice."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from importlib.util import find_spec

from pydantic_ai import Agent
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.providers.google import GoogleProvider
from telling import MODEL, URL, call, equal, line

line(
    client="pydantic-ai",
    version=version("pydantic-ai-slim"),
    transport="aiohttp" if find_spec("aiohttp") else "httpx",
)


async def main() -> None:
    agent = Agent(GoogleModel(MODEL, provider=GoogleProvider(api_key="any-text", base_url=URL)))
    history = None
    with call("run (three turns)"):
        for said in ("one", "two", "three"):
            answer = await agent.run(said, message_history=history)
            equal(answer.output, f"You said: {said}")
            history = answer.all_messages()
    with call("run_stream"):
        async with agent.run_stream("four", message_history=history) as stream:
            pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
        equal("".join(pieces), "You said: four")


asyncio.run(main())
with call("run_sync"):
    agent = Agent(GoogleModel(MODEL, provider=GoogleProvider(api_key="any-text", base_url=URL)))
    equal(agent.run_sync("five").output, "You said: five")
