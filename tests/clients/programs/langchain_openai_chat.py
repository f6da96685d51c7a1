"""langchain-openai: a conversation, called, streamed and awaited, tools, responses, embeddings."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from telling import TOKEN, URL, call, equal, holds, line

GPT = "oa/gpt-4o-mini"
HERE = {"base_url": f"{URL}/v1", "api_key": TOKEN}
model = ChatOpenAI(model=GPT, **HERE)
library = next(base for base in type(model.root_client._client).__mro__ if base.__module__.startswith("httpx"))
line(
    client="langchain-openai",
    version=version("langchain-openai"),
    transport=library.__module__.partition(".")[0],
)
talk = [SystemMessage("Be brief."), HumanMessage("one")]


def heard(answer: object) -> str:
    return answer.text if isinstance(answer.text, str) else answer.text()


with call("invoke (three turns)"):
    for said in ("one", "two", "three"):
        talk.append(HumanMessage(said))
        answer = model.invoke(talk)
        equal(heard(answer), f"You said: {said}")
        talk.append(answer)
with call("stream"):
    pieces = list(ChatOpenAI(model=GPT, stream_usage=True, **HERE).stream([*talk, HumanMessage("four")]))
    equal("".join(map(heard, pieces)), "You said: four")
    holds(any(piece.usage_metadata for piece in pieces), pieces)


async def awaited() -> None:
    with call("ainvoke"):
        equal(heard(await model.ainvoke([*talk, HumanMessage("five")])), "You said: five")
    with call("astream"):
        pieces = [heard(piece) async for piece in model.astream([*talk, HumanMessage("six")])]
        equal("".join(pieces), "You said: six")
    with call("abatch"):
        many = await model.abatch([[HumanMessage(str(n))] for n in range(8)])
        equal([heard(each) for each in many], [f"You said: {n}" for n in range(8)])


asyncio.run(awaited())


def weather(city: str) -> str:
    """The weather in a city."""
    return "fine"


with call("bind_tools"):
    armed = model.bind_tools([weather])
    asked = armed.invoke("seven")
    equal(asked.tool_calls[0]["name"], "weather")
    answer = armed.invoke([HumanMessage("seven"), asked, ToolMessage("fine", tool_call_id=asked.tool_calls[0]["id"])])
    equal(heard(answer), "You said: fine")
with call("with_structured_output"):
    schema = {"title": "Bird", "type": "object", "properties": {"name": {"type": "string"}}}
    equal(model.with_structured_output(schema, method="json_schema").invoke("eight"), {"name": "eight"})
with call("invoke (responses)"):
    answering = ChatOpenAI(model=GPT, use_responses_api=True, use_previous_response_id=True, **HERE)
    first = answering.invoke("nine")
    equal(heard(first), "You said: nine")
    for _ in range(3):
        answer = answering.invoke([HumanMessage("nine"), first, HumanMessage("ten")])
        equal((type(answer), heard(answer)), (AIMessage, "You said: ten"))
with call("embed_documents"):
    # With the check it sends numbers of tokens, for which it fetches a table from elsewhere.
    embedder = OpenAIEmbeddings(model="oa/text-embedding-3-small", check_embedding_ctx_length=False, **HERE)
    equal([len(each) for each in embedder.embed_documents(["x", "y"])], [1536] * 2)
