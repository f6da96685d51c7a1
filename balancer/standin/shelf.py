"""What was made, and whose it is: every resource belongs to the project of the key that made it.

Names are unique per project only, as Google's are: two projects may own the same caller-chosen name, and neither sees
the other's. Contents of more than 1 MiB live in a temporary file that no directory lists.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import secrets
import tempfile
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO

from balancer.clock import Clock
from balancer.standin.answers import Json, refuse

IN_MEMORY = 1 << 20
KEPT_BYTES = 256 << 20
"""Bytes in memory above which a shelf with a limit lets its oldest resources go."""
_PIECE = 256 << 10


@dataclass(slots=True)
class Held:
    """Bytes that many blobs together have in memory."""

    size: int = 0


class Blob:
    """Bytes of any size at constant memory: written once from front to back, read as often as one likes."""

    def __init__(self, held: Held | None = None) -> None:
        self.size = 0
        self._held = held or Held()
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._flushed = 0
        self._hash = hashlib.sha256()
        self._lock = threading.Lock()
        """A writer that was cancelled leaves its thread behind."""
        self._closed = False

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    async def write(self, data: bytes) -> None:
        self._hash.update(data)
        self._memory += data
        self.size += len(data)
        self._held.size += len(data)
        if len(self._memory) > IN_MEMORY:
            piece, self._memory = self._memory, bytearray()
            self._held.size -= len(piece)
            offset = self._flushed
            self._flushed += len(piece)
            await asyncio.shield(asyncio.to_thread(self._spill, offset, piece))

    async def chunks(self, start: int = 0, stop: int | None = None) -> AsyncGenerator[bytes, None]:
        stop = self.size if stop is None else min(stop, self.size)
        while start < stop:
            if start < self._flushed:
                end = min(start + _PIECE, stop, self._flushed)
                piece = await asyncio.to_thread(self._pick, start, end)
            else:
                end = min(start + _PIECE, stop)
                piece = bytes(self._memory[start - self._flushed : end - self._flushed])
            yield piece
            start = end

    async def read(self, start: int = 0, stop: int | None = None) -> bytes:
        return b"".join([piece async for piece in self.chunks(start, stop)])

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._held.size -= len(self._memory)
            self._closed = True
            if self._file is not None:
                self._file.close()
                self._file = None

    def _spill(self, offset: int, piece: bytearray) -> None:
        with self._lock:
            if self._closed:
                return
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the blob
            self._file.seek(offset)
            self._file.write(piece)

    def _pick(self, start: int, end: int) -> bytes:
        with self._lock:
            if self._file is None:
                raise ConnectionError("the resource was deleted while it was read")
            self._file.seek(start)
            return self._file.read(end - start)


@dataclass(slots=True, eq=False)
class Resource:
    """`settle` turns pending into done when someone first looks; `expires` is on the wall clock."""

    project: str
    name: str
    data: Json
    serial: int
    blob: Blob | None = None
    expires: float | None = None
    aside: Blob | None = None
    """What is kept beside its data and asked for by another path."""
    settle: Callable[[], Awaitable[None]] | None = field(default=None, repr=False)

    async def looked_at(self) -> Json:
        """Its data now that someone looks."""
        if self.settle is not None:
            settle, self.settle = self.settle, None
            await settle()
        return self.data


@dataclass(slots=True, eq=False)
class Upload:
    """One upload under way, or finished: then `final` is its answer."""

    identity: str
    key: str
    project: str
    target: str
    """Where it goes: `files`, or a name and a verb such as `fileSearchStores/S:uploadToFileSearchStore`."""
    wanted: Json
    declared: int | None
    blob: Blob
    final: Json | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Shelf:
    """All resources of all projects: with a `limit` the newest so many of them, and what of their bytes fits into 256 MiB."""

    def __init__(self, clock: Clock, limit: int | None = None) -> None:
        self._clock = clock
        self._limit = limit
        self._resources: dict[tuple[str, str], Resource] = {}
        self._serials = itertools.count(1)
        self._numbers: dict[str, itertools.count[int]] = {}
        self._seed = secrets.token_hex(8)
        self._blobs: set[Blob] = set()
        self.held = Held()

    def blob(self) -> Blob:
        blob = Blob(self.held)
        self._blobs.add(blob)
        return blob

    def discard(self, blob: Blob) -> None:
        self._blobs.discard(blob)
        blob.close()

    def fresh(self, collection: str, prefix: str = "", length: int = 12) -> str:
        """A name that nobody has had, in this process or any other."""
        digest = hashlib.sha256(f"{self._seed}{next(self._serials)}".encode()).digest()
        return f"{collection}/{prefix}{base64.b32encode(digest).decode().lower()[:length]}"

    def numbered(self, collection: str) -> str:
        """The next plain name of a collection that the stand-in knows nothing about: x1, x2 …"""
        return f"{collection}/x{next(self._numbers.setdefault(collection, itertools.count(1)))}"

    def put(
        self, project: str, name: str, data: Json, *, blob: Blob | None = None, lifetime: float | None = None
    ) -> Resource:
        """`lifetime` in seconds, None for ever. Raises 409 when the project has that name already."""
        if self.get(project, name) is not None:
            raise refuse(409, f"Resource {name} already exists.")
        expires = None if lifetime is None else self._clock.wall() + lifetime
        resource = Resource(project, name, data, next(self._serials), blob, expires)
        self._resources[project, name] = resource
        if self._limit is not None:
            self._keep_within(self._limit)
        return resource

    def _keep_within(self, limit: int) -> None:
        while len(self._resources) > limit or (self.held.size > KEPT_BYTES and len(self._resources) > 1):
            self._let_go(next(iter(self._resources.values())))

    def get(self, project: str, name: str) -> Resource | None:
        found = self._resources.get((project, name))
        if found is not None and found.expires is not None and found.expires <= self._clock.wall():
            self.remove(found)
            return None
        return found

    def remove(self, resource: Resource) -> None:
        """The resource and everything below its name."""
        below = [r for r in self._resources.values() if r.project == resource.project and under(r, resource.name)]
        for gone in [resource, *below]:
            self._let_go(gone)

    def children(self, project: str, collection: str) -> list[Resource]:
        """Direct members of a collection, newest first."""
        names = [name for owner, name in self._resources if owner == project and name.rpartition("/")[0] == collection]
        found = [resource for name in names if (resource := self.get(project, name)) is not None]
        return sorted(found, key=lambda resource: -resource.serial)

    def _let_go(self, resource: Resource) -> None:
        self._resources.pop((resource.project, resource.name), None)
        for blob in (resource.blob, resource.aside):
            if blob is not None:
                self.discard(blob)

    def close(self) -> None:
        self._resources.clear()
        for blob in self._blobs:
            blob.close()
        self._blobs.clear()


def under(resource: Resource, name: str) -> bool:
    return resource.name.startswith(name + "/")


def timestamp(wall: float) -> str:
    """RFC 3339 in UTC, as every time in an answer."""
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
