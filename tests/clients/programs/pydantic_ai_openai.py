"""pydantic-ai's OpenAI provider: a conversation by chat completions and by responses, run and streamed, and a tool."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from telling import TOKEN, URL, call, equal, line

provider = OpenAIProvider(base_url=f"{URL}/v1", api_key=TOKEN)
library = next(base for base in type(provider.client._client).__mro__ if base.__module__.startswith("httpx"))
line(
    client="pydantic-ai (OpenAI)",
    version=version("pydantic-ai-slim"),
    transport=library.__module__.partition(".")[0],
)


async def main() -> None:
    for name, kind in (("chat", OpenAIChatModel), ("responses", OpenAIResponsesModel)):
        model = kind("oa/gpt-4o-mini", provider=provider)
        agent = Agent(model)
        history = None
        with call(f"run ({name}, three turns)"):
            for said in ("one", "two", "three"):
                answer = await agent.run(said, message_history=history)
                equal(answer.output, f"You said: {said}")
                history = answer.all_messages()
        with call(f"run_stream ({name})"):
            async with agent.run_stream("four", message_history=history) as stream:
                pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
            equal("".join(pieces), "You said: four")
        with call(f"run ({name}, with a tool)"):
            armed = Agent(model)

            @armed.tool_plain
            def look(said: str) -> str:
                return "a bird"

            equal((await armed.run("five")).output, "You said: a bird")


asyncio.run(main())
