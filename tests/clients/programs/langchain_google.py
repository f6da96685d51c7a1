"""langchain-google-genai: a conversation, called, streamed and awaited, with a tool, and an embedding."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_google_genai import ChatGoogleGenerativeAI, GoogleGenerativeAIEmbeddings
from telling import MODEL, URL, call, equal, holds, line

line(client="langchain-google-genai", version=version("langchain-google-genai"), transport="httpx")
model = ChatGoogleGenerativeAI(model=MODEL, base_url=URL, google_api_key="any-text")
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
    pieces = [heard(piece) for piece in model.stream([*talk, HumanMessage("four")])]
    equal("".join(pieces), "You said: four")
    holds(len(pieces) > 1, pieces)


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
with call("bind_tools"):

    def weather(city: str) -> str:
        """The weather in a city."""
        return "fine"

    holds(isinstance(model.bind_tools([weather]).invoke("seven"), AIMessage))
with call("get_num_tokens"):
    equal(model.get_num_tokens("hello"), 2)
with call("embed_documents"):
    embedder = GoogleGenerativeAIEmbeddings(model="gemini-embedding-001", base_url=URL, google_api_key="any-text")
    equal([len(each) for each in embedder.embed_documents(["x", "y"])], [8, 8])
