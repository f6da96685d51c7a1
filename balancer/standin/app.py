"""An honest small Gemini: a real HTTP server that speaks Google's wire and refuses what Google would refuse.

For the demo (`make run` without keys), the tests and the benchmark. What it plays: generation (gemini.py; the names of models for
sizes, counts and slowness are listed there), uploads and downloads (uploads.py), everything that can be made and then belongs
to the project of the key that made it (made.py, shelf.py), Google's OpenAI-compatible paths (google_openai.py), and every
fault by name (faults.py). What it does not: Live, and anything that needs a model. An OpenAI of the same kind: openai/app.py.

In a test:

    standin = StandIn(["key-a", "key-b"])
    async with running(standin) as url:
        fault = standin.script("key-a", "rate-minute", times=1)
        ...
        arrival = await standin.wait_for(lambda a: a.key == "key-b" and a.finished)

For a demo the same over HTTP: POST /_standin/faults {"key": …, "fault": …, "times": …}, DELETE /_standin/faults?key=…,
POST /_standin/gates to open every gate, GET /_standin/requests.

`plain=True` is for benchmarks: any key, no record, no faults, one small fixed answer; the model names made for sizes and
speeds still work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aiohttp import web

from balancer.clock import Clock, SystemClock
from balancer.standin import plain as fixed
from balancer.standin.answers import SSE, Reply, compact
from balancer.standin.ask import MODELS, Ask, GoogleWorld
from balancer.standin.base import BaseStandIn, make_app, projects, running, settings
from balancer.standin.credentials import admit
from balancer.standin.faults import REFUSALS
from balancer.standin.record import Arrival, Record
from balancer.standin.routes import answer_to, model_of

__all__ = ["GOOGLE", "StandIn", "make_app", "running", "settings"]

GOOGLE = "https://generativelanguage.googleapis.com"
_OVERLOADED = compact(
    {"error": {"code": 503, "message": "The model is overloaded. Please try again later.", "status": "UNAVAILABLE"}}
)


class StandIn(BaseStandIn[Ask]):
    """`keys`: key to project, or a list where each key is a project of its own.

    `host` is what stands in every `uri` of an answer; upload URLs have the address that the client used.
    """

    world: GoogleWorld

    def __init__(
        self,
        keys: Mapping[str, str] | Iterable[str],
        *,
        models: Iterable[str] = (),
        host: str = GOOGLE,
        clock: Clock | None = None,
        plain: bool = False,
    ) -> None:
        clock = clock or SystemClock()
        record = Record(clock, enabled=not plain)
        world = GoogleWorld(projects(keys), (*MODELS, *models), host, clock, record, open_to_all=plain)
        super().__init__(world, REFUSALS, plain=plain)

    async def quick(self, request: web.BaseRequest) -> web.StreamResponse | None:
        return await fixed.answer_quickly(request)

    def read(self, request: web.BaseRequest, arrival: Arrival) -> Ask:
        return Ask(self.world, request, arrival)

    def admit(self, ask: Ask) -> Reply | None:
        return admit(ask)

    async def answer(self, ask: Ask) -> Reply:
        return await answer_to(ask)

    async def model_of(self, ask: Ask) -> str | None:
        return model_of(ask)

    def in_dialect(self, ask: Ask, reply: Reply) -> Reply:
        """Errors of event streams keep the stream's content type; those of the OpenAI paths are a list of one."""
        if ask.sse and reply.status >= 400:
            reply.content_type = SSE
        if ask.name.startswith("openai/") and reply.status >= 400 and isinstance(reply.body, bytes):
            reply.body = b"[%b\n]\n" % reply.body.rstrip() if reply.body.startswith(b"{") else reply.body
        return reply

    def error_event(self, ask: Ask, reply: Reply) -> bytes:
        return b"data: %b\r\n\r\n" % _OVERLOADED if reply.content_type == SSE else b",\r\n%b]" % _OVERLOADED
