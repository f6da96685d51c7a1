"""One request as the handlers see it, and the world that they act on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import orjson
from aiohttp import web

from balancer.clock import Clock
from balancer.standin.answers import Json, Refusal
from balancer.standin.ask import BODY_LIMIT
from balancer.standin.openai import answers
from balancer.standin.record import Arrival, Record
from balancer.standin.shelf import Blob, Resource, Shelf
from balancer.standin.sizes import scripted
from balancer.standin.world import Incoming, World

MODELS = (
    "gpt-5.1",
    "gpt-5",
    "gpt-5-mini",
    "gpt-4.1",
    "gpt-4.1-mini",
    "gpt-4o",
    "gpt-4o-mini",
    "o3",
    "o4-mini",
    "gpt-3.5-turbo-instruct",
    "text-embedding-3-small",
    "text-embedding-3-large",
    "text-embedding-ada-002",
    "omni-moderation-latest",
    "gpt-image-1",
    "dall-e-2",
    "dall-e-3",
    "tts-1",
    "gpt-4o-mini-tts",
    "whisper-1",
    "gpt-4o-transcribe",
    "gpt-realtime",
    "sora-2",
    "stand-in-slow",
    "stand-in-sink",
)
KEPT = 20_000
"""Resources of all projects together: the oldest go first, so that a long load test stays flat."""
_TICKETS = 10_000
_ID_LENGTH = 24


class OpenAIWorld(World):
    """The world of an OpenAI. `key_header` is where keys are looked for."""

    def __init__(
        self,
        keys: Mapping[str, str],
        models: tuple[str, ...],
        clock: Clock,
        record: Record,
        *,
        key_header: str,
        open_to_all: bool = False,
    ) -> None:
        super().__init__(keys, models, clock, record, Shelf(clock, KEPT), open_to_all=open_to_all)
        self.key_header = key_header
        self._tickets: dict[str, str] = {}

    def has_model(self, model: str, project: str | None = None) -> bool:
        """Whether a project may use it: everybody's models, those that are named for what they do, and its own."""
        if model in self.models or scripted(model):
            return True
        return project is not None and self.shelf.get(project, f"models/{model}") is not None

    def ticket(self, value: str, key: str) -> None:
        """A secret for one client's realtime session, as good as the key that made it."""
        self._tickets[value] = key
        if len(self._tickets) > _TICKETS:
            del self._tickets[next(iter(self._tickets))]

    def key_of(self, ticket: str) -> str | None:
        return self._tickets.get(ticket)


class Ask(Incoming):
    """A request. `path` is the raw path; `name` what stands below `/v1/`, decoded, and empty for a path elsewhere."""

    def __init__(self, world: OpenAIWorld, request: web.BaseRequest, arrival: Arrival) -> None:
        super().__init__(world.record, request, arrival)
        self.world = world
        self.path = arrival.path
        self.name = unquote(self.path.removeprefix("/v1/")) if self.path.startswith("/v1/") else ""
        self._text: bytes | None = None
        self._parsed: Json | None = None

    @property
    def project(self) -> str:
        if self.arrival.project is None:
            raise Refusal(answers.no_key())
        return self.arrival.project

    @property
    def anthropic(self) -> bool:
        return self.name in ("messages", "messages/count_tokens")

    @property
    def request_id(self) -> str:
        return f"req_{self.arrival.number:032x}"

    @property
    def now(self) -> int:
        """Seconds since 1970, as every time in an answer."""
        return int(self.world.clock.wall())

    @property
    def multipart(self) -> bool:
        return (self.arrival.header("content-type") or "").lower().startswith("multipart/form-data")

    async def json(self) -> Json:
        """The body as an object, after every resource that it names was found to be this project's. Empty is {}."""
        if self._parsed is None:
            parsed = await self.parsed()
            for name, param in mentions(parsed):
                self.require_named(name, param)
            if "session_id" in parsed:
                raise answers.refuse(
                    400, "Unknown parameter: 'session_id'.", param="session_id", code="unknown_parameter"
                )
            self._parsed = parsed
        return self._parsed

    async def peeked_model(self) -> str | None:
        """The model that a JSON body names, before anything is said of the body. The body stays to be read."""
        if self.multipart:
            return None
        try:
            model = (await self.parsed()).get("model")
        except Refusal:
            return None
        return model if isinstance(model, str) else None

    async def parsed(self) -> Json:
        if self._text is None:
            self._text = await self.gathered(BODY_LIMIT)
        if (text := self._text) is None:
            raise answers.refuse(413, f"Maximum content size limit ({BODY_LIMIT}) exceeded.", code="request_too_large")
        try:
            parsed = orjson.loads(text) if text else {}
        except orjson.JSONDecodeError:
            raise answers.no_json() from None
        if not isinstance(parsed, dict):
            raise answers.no_json()
        return parsed

    def known_model(self, body: Json) -> str:
        """The body's model, or the refusal it deserves."""
        model = body.get("model")
        if model is None or model == "":
            raise answers.refuse(400, "you must provide a model parameter")
        if not isinstance(model, str):
            raise answers.wrong_type("model", "a string", model)
        if not self.world.has_model(model, self.arrival.project):
            raise answers.no_model(model)
        return model

    def fresh(self, collection: str, prefix: str) -> tuple[str, str]:
        """A new name and the identity that ends it."""
        name = self.world.shelf.fresh(collection, prefix, _ID_LENGTH)
        return name, name.rpartition("/")[2]

    def put(self, name: str, data: Json, *, blob: Blob | None = None) -> Resource:
        return self.world.shelf.put(self.project, name, data, blob=blob)

    def find(self, name: str) -> Resource | None:
        return self.world.shelf.get(self.project, name)

    def require(self, name: str, param: str = "id") -> Resource:
        """The resource, if it is this project's."""
        if (found := self.find(name)) is None:
            raise answers.no_resource(name, param)
        return found

    def require_named(self, name: str, param: str) -> Resource:
        """The resource that a body names, or the refusal of its kind."""
        found = self.find(name)
        if found is None and param == "previous_response_id":
            text = f"Previous response with id '{name.rpartition('/')[2]}' not found."
            raise answers.refuse(400, text, param=param, code="previous_response_not_found")
        return found or self.require(name, param)


def several(body: Json, param: str) -> list[Any]:
    """A member that is a list, empty where it is missing. 400 for anything else."""
    given = body.get(param)
    if given is not None and not isinstance(given, list):
        raise answers.wrong_type(param, "an array", given)
    return given or []


_COLLECTIONS = {
    "file-": "files",
    "batch_": "batches",
    "resp_": "responses",
    "conv_": "conversations",
    "vs_": "vector_stores",
    "asst_": "assistants",
    "thread_": "threads",
    "cntr_": "containers",
    "skill_": "skills",
    "video_": "videos",
    "eval_": "evals",
}
_NAMING = frozenset({
    "previous_response_id", "conversation", "input_file_id", "file_id", "file_ids", "training_file", "validation_file",
    "vector_store_id", "vector_store_ids", "assistant_id", "thread_id", "container", "skill_id", "eval_id",
})  # fmt: skip


def mentions(value: Any, member: str = "") -> Iterator[tuple[str, str]]:
    """Names of resources in a body and the members that they stand in, at any depth but in `metadata`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "id" and member == "conversation":
                yield from mentions(inner, member)
            elif key != "metadata":
                yield from mentions(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from mentions(inner, member)
    elif isinstance(value, str) and member in _NAMING:
        for prefix, collection in _COLLECTIONS.items():
            if value.startswith(prefix):
                yield f"{collection}/{value}", member
