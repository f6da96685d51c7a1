"""What clients make, look at, change and take away: one table of kinds, the same five calls for each.

A collection's line says how its identities begin, what its objects are called, which members a creation must have, and which
calls it takes: Create, List, Get, Update, Delete. What is below something belongs to it and goes with it. What a kind does
beyond that is `made`: stores.py, runs.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from balancer.standin.answers import Json, Reply
from balancer.standin.openai import answers, runs, stores
from balancer.standin.openai.answers import ok
from balancer.standin.openai.ask import Ask
from balancer.standin.openai.lists import listing
from balancer.standin.openai.multipart import form
from balancer.standin.shelf import Blob, Resource


@dataclass(frozen=True, slots=True)
class Kind:
    """One collection. `usual` is what an object says where its maker said nothing."""

    prefix: str
    shown: str
    calls: str
    needs: tuple[str, ...] = ()
    usual: Json | None = None
    made: Callable[[Ask, Resource, Json], Awaitable[None]] | None = None
    """What happens when one was made, with the body that it was made from."""
    named_by: str | None = None
    """The member of the body that is its identity, where it gets no fresh one."""
    order: str = "desc"


KINDS: dict[str, Kind] = {
    "vector_stores": Kind("vs_", "vector_store", "CLGUD", usual=stores.VECTOR_STORE, made=stores.fill_vector_store),
    "vector_stores/*/files": Kind(
        "file-", "vector_store.file", "CLGUD", ("file_id",), stores.STORED_FILE, stores.count, named_by="file_id"
    ),
    "vector_stores/*/file_batches": Kind(
        "vsfb_", "vector_store.file_batch", "CG", usual={"status": "completed"}, made=stores.fill_batch
    ),
    "containers": Kind("cntr_", "container", "CLGD", ("name",), {"status": "running"}, stores.fill_container),
    "containers/*/files": Kind("cfile_", "container.file", "CLGD", usual={"source": "user"}, made=stores.place_file),
    "assistants": Kind("asst_", "assistant", "CLGUD", ("model",), runs.ASSISTANT, runs.check_model),
    "threads": Kind("thread_", "thread", "CGUD", usual={"tool_resources": {}}, made=runs.fill_thread),
    "threads/*/messages": Kind("msg_", "thread.message", "CLGUD", ("role", "content"), made=runs.place_message),
    "threads/*/runs": Kind("run_", "thread.run", "CLGU", ("assistant_id",), runs.RUN, runs.queue_run),
    "evals": Kind("eval_", "eval", "CLGUD", ("data_source_config", "testing_criteria")),
    "evals/*/runs": Kind("evalrun_", "eval.run", "CLGD", ("data_source",), {"status": "queued"}, runs.queue_eval),
    "fine_tuning/jobs": Kind("ftjob-", "fine_tuning.job", "CLG", ("model", "training_file"), runs.JOB, runs.queue_job),
    "videos": Kind("video_", "video", "CLGD", ("prompt",), runs.VIDEO, runs.queue_video),
    "skills": Kind("skill_", "skill", "CLGUD", usual={"default_version": "1", "latest_version": "1"}),
    "skills/*/versions": Kind("skillver_", "skill.version", "CLGD", usual={"version": "1"}),
}
_KEPT_AS_THEY_ARE = frozenset({"id", "object", "created_at"})


def kind_of(name: str) -> tuple[Kind, str]:
    """The kind that a path is about and the collection it stands in: the path itself, or all but its last part."""
    parts = name.split("/")
    lead = 1 if name.startswith("fine_tuning/") else 0
    for collection in (name, "/".join(parts[:-1])):
        pieces = collection.split("/")
        shape = "/".join("*" if n > lead and (n - lead) % 2 else piece for n, piece in enumerate(pieces))
        if shape in KINDS:
            return KINDS[shape], collection
    raise answers.no_resource(name)


async def create(ask: Ask) -> Reply:
    _require_parents(ask, ask.name)
    kind, collection = kind_of(ask.name)
    body, blob = await _given(ask)
    return ok((await make(ask, kind, collection, body, blob)).data)


async def make(ask: Ask, kind: Kind, collection: str, body: Json, blob: Blob | None = None) -> Resource:
    """One of that kind."""
    for param in kind.needs:
        if body.get(param) is None:
            raise answers.missing(param)
    name, identity = ask.fresh(collection, kind.prefix)
    if kind.named_by is not None:
        identity = str(body[kind.named_by])
        name = f"{collection}/{identity}"
        if (there := ask.find(name)) is not None:
            return there
    data: Json = {"id": identity, "object": kind.shown, "created_at": ask.now, "metadata": {}}
    data |= kind.usual or {}
    data |= {key: value for key, value in body.items() if key not in _KEPT_AS_THEY_ARE and value is not None}
    made = ask.put(name, data, blob=blob)
    if kind.made is not None:
        try:
            await kind.made(ask, made, body)
        except BaseException:
            ask.world.shelf.remove(made)
            raise
    return made


async def _given(ask: Ask) -> tuple[Json, Blob | None]:
    """The body's members, and the bytes of its first file where it is a form."""
    if not ask.multipart:
        return await ask.json(), None
    sent = await form(ask)
    files = [each for several in sent.files.values() for each in several]
    for spare in files[1:]:
        ask.world.shelf.discard(spare.blob)
    if not files:
        return sent.fields, None
    return sent.fields | {"filename": files[0].name}, files[0].blob


def _require_parents(ask: Ask, name: str) -> None:
    """Everything that the path is below must be the project's."""
    parts = name.split("/")
    first = 3 if parts[0] == "fine_tuning" else 2
    for stop in range(first, len(parts), 2):
        ask.require("/".join(parts[:stop]))


async def index(ask: Ask) -> Reply:
    _require_parents(ask, ask.name)
    return listing(ask, ask.name)


async def get(ask: Ask) -> Reply:
    _require_parents(ask, ask.name)
    return ok(await ask.require(ask.name).looked_at())


async def update(ask: Ask) -> Reply:
    """The members of the body over those that are there."""
    _require_parents(ask, ask.name)
    found = ask.require(ask.name)
    found.data |= {key: value for key, value in (await ask.json()).items() if key not in _KEPT_AS_THEY_ARE}
    return ok(found.data)


async def delete(ask: Ask) -> Reply:
    _require_parents(ask, ask.name)
    kind, _ = kind_of(ask.name)
    found = ask.require(ask.name)
    ask.world.shelf.remove(found)
    return ok({"id": found.data["id"], "object": f"{kind.shown}.deleted", "deleted": True})


_CALLS: dict[str, tuple[str, str, Callable[[Ask], Awaitable[Reply]]]] = {
    "C": ("POST", "", create),
    "L": ("GET", "", index),
    "G": ("GET", "/*", get),
    "U": ("POST", "/*", update),
    "D": ("DELETE", "/*", delete),
}
ROUTES = tuple(
    (method, collection + rest, handler)
    for collection, kind in KINDS.items()
    for method, rest, handler in (_CALLS[letter] for letter in kind.calls)
)


async def create_run(ask: Ask) -> Reply:
    """A run of a thread, told as it goes with `stream`."""
    _require_parents(ask, ask.name)
    body = await ask.json()
    return await _run(ask, ask.name, body)


async def create_thread_and_run(ask: Ask) -> Reply:
    """A thread and its run in one call."""
    body = await ask.json()
    given = body.pop("thread", None)
    thread = await make(ask, KINDS["threads"], "threads", given if isinstance(given, dict) else {})
    return await _run(ask, f"{thread.name}/runs", body)


async def _run(ask: Ask, collection: str, body: Json) -> Reply:
    made = await make(ask, KINDS["threads/*/runs"], collection, body)
    if body.get("stream"):
        return Reply(runs.stream_run(ask, made), content_type=answers.SSE)
    return ok(made.data)


async def remix(ask: Ask) -> Reply:
    """A video made of another."""
    found = ask.require(ask.name.removesuffix("/remix"))
    body = await ask.json()
    return ok((await make(ask, KINDS["videos"], "videos", body | {"remixed_from_video_id": found.data["id"]})).data)
