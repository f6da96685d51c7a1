"""A proxy on a stand-in of Coze, and clients of its surfaces: for the tests of that kind of upstream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balancer.clock import Clock
from balancer.standin.base import running as standing_in
from balancer.standin.coze import BOT, CozeStandIn
from balancer.standin.record import Arrival
from tests.proxy import proxying
from tests.surfaces.backend_chats import Answer, Chat
from tests.surfaces.chats import ANN, TOKENS, Bot
from tests.upstream import RawUpstream

ONE, TWO = "pat-first-pool-key-01", "pat-second-pool-key-2"
MODEL = "coze"
CANCEL = "/v3/chat/cancel"
LOOK_UP = "/v1/conversation/retrieve"
UPLOAD = "/v1/files/upload"


@dataclass
class Coze(Bot):
    """The surface on a stand-in of Coze."""

    standin: CozeStandIn
    folder: Path
    url: str

    def asked(self, path: str = "/v3/chat") -> list[Arrival]:
        """What arrived at one of Coze's calls."""
        return [each for each in self.standin.requests if each.path == path]

    @property
    def keys(self) -> list[str | None]:
        """The key of each chat."""
        return [each.key for each in self.asked()]

    @property
    def conversations(self) -> list[str | None]:
        """The conversation that each chat named."""
        return [each.target.partition("conversation_id=")[2] or None for each in self.asked()]

    def texts(self, number: int = -1) -> list[tuple[str, str]]:
        """Role and text of what one chat was told."""
        return [(each["role"], each["content"]) for each in self.asked()[number].json()["additional_messages"]]


def sections_of(folder: Path, url: str, keys: Sequence[Any], **more: Any) -> dict[str, Any]:
    upstream = {"kind": "coze", "base_url": f"{url}/v3", "keys": list(keys), "bot_id": BOT, **more}
    return {
        "auth": {"tokens": TOKENS},
        "chat": {"upstream": "coze"},
        "database": {"url": f"sqlite:///{folder}/chats.db"},
        "upstreams": {"coze": upstream},
    }


@asynccontextmanager
async def beside(first: Coze, keys: Sequence[Any] = (ONE, TWO)) -> AsyncIterator[Coze]:
    """Another process with the same upstream, database and state."""
    sections = sections_of(first.folder, first.url, keys)
    async with proxying("http://127.0.0.1:9", ["gemini-key-0001"], **sections) as proxy:
        proxy.server.runtime.locks = first.proxy.server.runtime.locks
        yield Coze(proxy, first.upstream, first.standin, first.folder, first.url)


@asynccontextmanager
async def coze(
    folder: Path,
    keys: Sequence[Any] = (ONE, TWO),
    *,
    clock: Clock | None = None,
    settings: Mapping[str, Any] | None = None,
    **sections: Mapping[str, Any],
) -> AsyncIterator[Coze]:
    """`settings`: of the upstream. No chat may meet another in its conversation, and none is looked at in a hurry."""
    standin = CozeStandIn([ONE, TWO])
    async with standing_in(standin) as url:
        sections = sections_of(folder, url, keys, **(settings or {})) | sections
        async with proxying("http://127.0.0.1:9", ["gemini-key-0001"], clock=clock, **sections) as proxy:
            yield Coze(proxy, RawUpstream(None), standin, folder, url)  # type: ignore[arg-type]  # nobody asks that one
    assert standin.hurried == []


async def say(here: Coze, *messages: Any, token: str = ANN, **more: Any) -> Answer:
    """A chat with the one bot, as OpenAI's clients have it; as `Chat.say`."""
    return await Chat(here.proxy, token).say(*messages, **{"model": MODEL, **more})


def conversation(answer: Answer) -> str:
    """Which one the answer is of."""
    return answer.headers["x-conversation-id"]
