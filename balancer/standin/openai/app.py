"""An honest small OpenAI: a real HTTP server that speaks its wire and refuses what it would refuse.

Interface, faults and record are those of the Gemini stand-in (standin/app.py); the names of its refusals are in refusals.py.
What it plays is in routes.py. What a key makes is its project's; another project's answers like what never was. It is strict
about what a proxy must not send: a second credential, a foreign `OpenAI-Organization` or `OpenAI-Project`, a `session_id` in
the body.

    standin = OpenAIStandIn(["sk-a", "sk-b"])
    async with running(standin) as url:          # base URL of a client: url + "/v1"
        standin.script("sk-a", "rate-reset", times=1, seconds=2)

`key_header` is where it looks for keys: authorization (as Bearer), x-api-key or api-key (bare). `plain=True` is for benchmarks:
any key, no record, no faults, one small fixed answer of chat completions; the model names made for sizes and speeds still work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import orjson
from aiohttp import web

from balancer.clock import Clock, SystemClock
from balancer.standin.answers import Reply
from balancer.standin.base import BaseStandIn, projects, running
from balancer.standin.openai import answers, plain
from balancer.standin.openai.ask import MODELS, Ask, OpenAIWorld
from balancer.standin.openai.credentials import admit
from balancer.standin.openai.refusals import REFUSALS
from balancer.standin.openai.routes import answer_to
from balancer.standin.record import Arrival, Record

__all__ = ["OpenAIStandIn", "running"]

_BROKEN = {"message": "The server had an error while processing your request.", "type": "server_error"}
_JSON_START = (b"{", b"[")


class OpenAIStandIn(BaseStandIn[Ask]):
    """`keys`: key to project, or a list where each key is a project of its own."""

    world: OpenAIWorld

    def __init__(
        self,
        keys: Mapping[str, str] | Iterable[str],
        *,
        models: Iterable[str] = (),
        key_header: Literal["authorization", "x-api-key", "api-key"] = "authorization",
        clock: Clock | None = None,
        plain: bool = False,
    ) -> None:
        clock = clock or SystemClock()
        record = Record(clock, enabled=not plain)
        known = (*MODELS, *models)
        world = OpenAIWorld(projects(keys, "proj_"), known, clock, record, key_header=key_header, open_to_all=plain)
        super().__init__(world, REFUSALS, plain=plain)

    async def quick(self, request: web.BaseRequest) -> web.StreamResponse | None:
        return await plain.answer_quickly(request)

    def read(self, request: web.BaseRequest, arrival: Arrival) -> Ask:
        return Ask(self.world, request, arrival)

    def admit(self, ask: Ask) -> Reply | None:
        return admit(ask)

    async def answer(self, ask: Ask) -> Reply | web.StreamResponse:
        return await answer_to(ask)

    async def model_of(self, ask: Ask) -> str | None:
        """From the query (realtime), else from a JSON body: read ahead only while a fault is for one model."""
        if "model" in ask.query or not self.faults.names_models:
            return ask.query.get("model")
        return await ask.peeked_model()

    def in_dialect(self, ask: Ask, reply: Reply) -> Reply:
        """Anthropic's errors on its paths; and on everything the fields of the edge, rates only where all went well."""
        if ask.anthropic and reply.status >= 400 and isinstance(reply.body, bytes) and reply.body.startswith(b"{"):
            said = orjson.loads(reply.body)
            if "message" in said.get("error", {}) and "type" not in said:
                wrong = answers.anthropic_error(reply.status, said["error"]["message"], ask.request_id)
                reply.body = orjson.dumps(wrong)
        own = {name.lower() for name, _ in reply.headers}
        limits = reply.status < 400 and not ask.anthropic
        frame = tuple(each for each in answers.FRAME if each[0] not in own and (limits or "ratelimit" not in each[0]))
        reply.frame = (("request-id" if ask.anthropic else "x-request-id", ask.request_id), *frame)
        return reply

    def error_event(self, ask: Ask, reply: Reply) -> bytes:
        if reply.content_type != answers.SSE:
            return b', "error": ' + orjson.dumps(_BROKEN) + b"}"
        if ask.anthropic:
            return answers.event(answers.anthropic_error(529, "Overloaded", ask.request_id), "error")
        if ask.name.startswith("responses"):
            return answers.event({"type": "error", "code": "server_error", "param": None} | _BROKEN, "error")
        return answers.event({"error": _BROKEN | {"param": None, "code": None}})
