"""One request as the Gemini's handlers see it, and the world that they act on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import orjson
from aiohttp import web

from balancer.clock import Clock
from balancer.standin import answers
from balancer.standin.answers import Json, Refusal, refuse
from balancer.standin.record import Arrival, Record
from balancer.standin.shelf import Resource, Shelf, Upload
from balancer.standin.sizes import scripted
from balancer.standin.world import Incoming, World

BODY_LIMIT = 100 << 20
"""Google's own limit for a JSON body; uploads have none."""

MODELS = (
    "gemini-3-pro-preview",
    "gemini-3-flash-preview",
    "gemini-2.5-pro",
    "gemini-2.5-flash",
    "gemini-2.5-flash-lite",
    "gemini-2.5-flash-image",
    "gemini-2.0-flash",
    "gemini-2.0-flash-lite",
    "gemini-1.5-flash",
    "gemini-1.5-pro",
    "gemini-embedding-001",
    "text-embedding-004",
    "imagen-4.0-generate-001",
    "veo-3.0-generate-001",
    "veo-2.0-generate-001",
    "stand-in-slow",
    "stand-in-sink",
)
_FILE_URI = re.compile(r"https?://[^/\s]+/(?:download/)?v1\w*/(files/[^/?:#]+)[^/]*")


class GoogleWorld(World):
    """The world of a Gemini."""

    def __init__(
        self,
        keys: Mapping[str, str],
        models: tuple[str, ...],
        host: str,
        clock: Clock,
        record: Record,
        *,
        open_to_all: bool = False,
    ) -> None:
        super().__init__(keys, models, clock, record, Shelf(clock), open_to_all=open_to_all)
        self.host = host
        """Scheme and host of every `uri` in an answer, whatever address the client used."""
        self.uploads: dict[str, Upload] = {}
        """Uploads by `upload_id`, the finished ones too: a chunk may come twice."""

    def close(self) -> None:
        self.uploads.clear()
        super().close()

    def has_model(self, model: str) -> bool:
        return model in self.models or scripted(model)


class Ask(Incoming):
    """A request after its key was accepted. `name` is the path below the version, decoded; `verb` what follows its colon."""

    def __init__(self, world: GoogleWorld, request: web.BaseRequest, arrival: Arrival) -> None:
        super().__init__(world.record, request, arrival)
        self.world = world
        path, self.version, self.area = split(request.raw_path)
        head, colon, tail = path.rpartition(":")
        self.name, self.verb = (head, tail) if colon and "/" not in tail else (path, "")
        self._parsed: Json | None = None

    @property
    def project(self) -> str:
        if self.arrival.project is None:
            raise Refusal(answers.unregistered())
        return self.arrival.project

    @property
    def sse(self) -> bool:
        return self.query.get("alt") == "sse"

    async def body(self) -> bytes:
        if (whole := await self.gathered(BODY_LIMIT)) is None:
            raise refuse(400, f"Request payload size exceeds the limit: {BODY_LIMIT} bytes.")
        return whole

    async def json(self) -> Json:
        """The body as an object, after every resource that it names was found to be this project's."""
        if self._parsed is None:
            text = await self.body()
            try:
                parsed = orjson.loads(text) if text else {}
            except orjson.JSONDecodeError as wrong:
                raise refuse(400, f"Invalid JSON payload received. {wrong}") from None
            if not isinstance(parsed, dict):
                raise refuse(400, 'Invalid JSON payload received. Unknown name "": Root element must be a message.')
            for name in mentions(parsed):
                self.require_named(name)
            self._parsed = parsed
        return self._parsed

    def require_named(self, name: str) -> Resource:
        """The resource that a body names, or the 403 that its kind has."""
        found = self.world.shelf.get(self.project, name)
        if found is not None:
            return found
        collection, _, rest = name.partition("/")
        if collection == "files":
            raise Refusal(answers.file_denied(name))
        if collection == "cachedContents":
            raise Refusal(answers.cache_denied())
        if collection == "tunedModels":
            raise refuse(403, f"You do not have permission to access tuned model {name} or it may not exist.")
        kind = collection[:1].upper() + collection[1:].removesuffix("s")
        raise refuse(403, f"You do not have permission to access the {kind} {rest} or it may not exist.")

    def require(self, name: str) -> Resource:
        """The resource that a path names; foreign and missing look the same, and mostly like 404."""
        found = self.world.shelf.get(self.project, name)
        if found is None:
            if name.startswith("files/"):
                raise Refusal(answers.file_denied(name))
            if name.startswith("cachedContents/"):
                raise Refusal(answers.cache_denied())
            raise Refusal(answers.not_found())
        return found


_PATH = re.compile(r"/+(?:(upload|download)/)?(v1\w*)/([^?#]*)")


def split(target: str) -> tuple[str, str, str]:
    """Path below the version (decoded), version, and `upload`, `download` or nothing. Empty strings where it has no such form."""
    match = _PATH.match(target)
    if match is None:
        return "", "", ""
    return unquote(match[3]).rstrip("/"), match[2], match[1] or ""


_NAMING = {
    "fileuri": "files/",
    "uri": "files/",
    "filename": "files/",
    "cachedcontent": "cachedContents/",
    "filesearchstore": "fileSearchStores/",
    "filesearchstorenames": "fileSearchStores/",
    "tunedmodel": "tunedModels/",
}


def mentions(value: Any, member: str = "") -> Iterator[str]:
    """Names of resources in a body: members in camelCase and snake_case, at any depth; file URIs count as their file."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from mentions(inner, key.replace("_", "").lower())
    elif isinstance(value, list):
        for inner in value:
            yield from mentions(inner, member)
    elif isinstance(value, str) and (prefix := _NAMING.get(member)):
        if match := _FILE_URI.fullmatch(value):
            yield match[1]
        elif value.startswith(prefix):
            yield "/".join(value.split("/")[:2])
