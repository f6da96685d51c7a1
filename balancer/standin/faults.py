"""Everything that can go wrong, by name, scripted per key; and Gemini's refusals (those of OpenAI: openai/refusals.py).

A script is a queue per key: the first fault in it that fits the request is used, until its `times` are used up. Names:

    answers instead of the answer    rate-minute rate-day rate-zero rate-bare rate-retry-after rate-consumer
                                     key-invalid key-expired key-leaked key-suspended key-blocked service-disabled
                                     project-denied unauthenticated names-key location
                                     error-500 error-502 error-503 error-504 redirect early-413
    the connection                   rst fin rst-in-body garbage big-head raw
    what happens to the true answer  stall-head lost cut-head cut-fin cut-rst cut-chunk short-body stall-stream drip error-event
                                     gzip gzip-bomb interim trailers

`lost`: the request was carried out and then the connection reset before a byte of its answer; rst and fin carry out nothing.
`gate` is an asyncio.Event: a stall waits for it, a cut waits for it where one was given. `after` counts pieces of the answer
(events of a stream, halves of a unary body), for rst-in-body bytes of the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from balancer.standin import answers
from balancer.standin.answers import Reply, error, error_info, quota


@dataclass(slots=True, eq=False)
class Fault:
    """One scripted fault, for requests whose model is `model` and whose raw target contains `target`, after `skip` of them."""

    name: str
    times: int | None = None
    """How many requests it still meets; None until cleared."""
    model: str | None = None
    target: str | None = None
    method: str | None = None
    skip: int = 0
    gate: asyncio.Event | None = None
    after: int = 1
    interval: float = 0.0
    seconds: int = 17
    size: int = 0
    """Bytes of a gzip-bomb once inflated (0: 200 MiB), of the field of a big-head (0: 1 MiB)."""
    data: bytes = b""
    kind: str = "banner"
    """Which of `sending.RAW_ANSWERS` is the garbage."""
    end: str = "fin"
    """How `raw` and `garbage` end: fin, rst, open (fin after the gate), keep (the connection takes another request)."""
    read: bool = True
    """Whether the request's body is read before the fault strikes."""
    used: int = 0

    def __post_init__(self) -> None:
        if self.gate is None and self.name.startswith("stall"):
            self.gate = asyncio.Event()

    def open(self) -> None:
        """Let what waits at the gate go on."""
        if self.gate is not None:
            self.gate.set()

    def fits(self, method: str, target: str, model: str | None) -> bool:
        if (
            self.times == 0
            or (self.model is not None and self.model != model)
            or (self.target is not None and self.target not in target)
            or (self.method is not None and self.method != method)
        ):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        return True


@dataclass(slots=True)
class Victim:
    """Whom a refusal is addressed to: its words name key, project and model."""

    key: str
    project: str
    model: str
    fault: Fault
    wall: float
    """Seconds since 1970."""

    @property
    def consumer(self) -> str:
        return f"projects/{self.project.removeprefix('projects/')}"


EVERY_KEY = "*"

Refusals = dict[str, Callable[[Victim], Reply]]


class Script:
    """Faults by key; those of "*" come after the key's own. `refusals` are the answers that its provider gives."""

    def __init__(self, refusals: Refusals) -> None:
        self.refusals = refusals
        self.names = frozenset(refusals) | CONNECTION | ANSWER
        self._faults: dict[str, list[Fault]] = {}

    @property
    def empty(self) -> bool:
        return not self._faults

    @property
    def names_models(self) -> bool:
        """Whether any fault is for one model only."""
        return any(fault.model is not None for _, fault in self.listed())

    def add(self, key: str, fault: Fault) -> Fault:
        """ValueError if no fault has that name."""
        if fault.name not in self.names:
            raise ValueError(f"no fault is called {fault.name!r}; there are {', '.join(sorted(self.names))}")
        self._faults.setdefault(key, []).append(fault)
        return fault

    def clear(self, key: str | None = None) -> None:
        """Take back the faults of one key or of all. What waits at a gate is let go."""
        for each in list(self._faults) if key is None else [key]:
            for fault in self._faults.pop(each, []):
                fault.times = 0
                fault.open()

    def take(self, key: str | None, method: str, target: str, model: str | None) -> Fault | None:
        """The fault that this request meets, counted as used."""
        none: list[Fault] = []
        for fault in self._faults.get(key or "", none) + self._faults.get(EVERY_KEY, none):
            if fault.fits(method, target, model):
                fault.used += 1
                fault.times = None if fault.times is None else fault.times - 1
                return fault
        return None

    def listed(self) -> list[tuple[str, Fault]]:
        return [(key, fault) for key, faults in self._faults.items() for fault in faults]


def _suspended(v: Victim) -> Reply:
    text = f"Permission denied: Consumer 'api_key:{v.key}' has been suspended."
    return error(403, text, [error_info("CONSUMER_SUSPENDED", consumer=v.consumer, containerInfo=f"api_key:{v.key}")])


def _service_disabled(v: Victim) -> Reply:
    url = f"https://console.developers.google.com/apis/api/{answers.SERVICE}/overview?project={v.project}"
    text = (
        f"Generative Language API has not been used in project {v.project} before or it is disabled. Enable it by "
        f"visiting {url} then retry. If you enabled this API recently, wait a few minutes for the action to propagate "
        "to our systems and retry."
    )
    metadata = {"consumer": v.consumer, "serviceTitle": "Generative Language API", "activationUrl": url}
    return error(403, text, [error_info("SERVICE_DISABLED", **metadata, containerInfo=v.project)])


def _key_blocked(v: Victim) -> Reply:
    text = (
        f"Requests to this API {answers.SERVICE} method "
        "google.ai.generativelanguage.v1beta.GenerativeService.GenerateContent are blocked."
    )
    return error(403, text, [error_info("API_KEY_SERVICE_BLOCKED", consumer=v.consumer, apiName=answers.SERVICE)])


def _rate_consumer(v: Victim) -> Reply:
    info = error_info(
        "RATE_LIMIT_EXCEEDED",
        consumer=v.consumer,
        quota_limit="GenerateContentRequestsPerMinutePerProjectPerRegion",
        quota_limit_value="10",
        quota_location="us-central1",
        quota_metric=f"{answers.SERVICE}/generate_content_requests",
    )
    return quota(v.model, retry=f"{v.fault.seconds}s", violations=False, info=[info])


_EXHAUSTED = "Resource has been exhausted (e.g. check quota)."
_502 = b"<!DOCTYPE html>\n<html lang=en>\n<title>Error 502 (Server Error)!!1</title>\n<p><b>502.</b> That's an error.\n"

REFUSALS: Refusals = {
    "rate-minute": lambda v: quota(v.model, retry=f"{v.fault.seconds}s"),
    "rate-day": lambda v: quota(v.model, period="Day", limit=250, retry=f"{v.fault.seconds}s"),
    "rate-zero": lambda v: quota(v.model, limit=0, retry=f"{v.fault.seconds}s"),
    "rate-bare": lambda v: error(429, _EXHAUSTED),
    "rate-retry-after": lambda v: error(429, _EXHAUSTED, headers=[("Retry-After", str(v.fault.seconds))]),
    "rate-consumer": _rate_consumer,
    "key-invalid": lambda v: answers.key_invalid(),
    "key-expired": lambda v: answers.key_invalid("API key expired. Please renew the API key."),
    "key-leaked": lambda v: error(403, "Your API key was reported as leaked. Please use another API key."),
    "key-suspended": _suspended,
    "key-blocked": _key_blocked,
    "service-disabled": _service_disabled,
    "project-denied": lambda v: error(403, "Your project has been denied access. Please contact support."),
    "unauthenticated": lambda v: answers.unauthenticated(),
    "names-key": lambda v: error(403, f"Permission denied on the method for Consumer 'api_key:{v.key}'."),
    "location": lambda v: error(400, "User location is not supported for the API use.", code="FAILED_PRECONDITION"),
    "error-500": lambda v: error(
        500,
        "An internal error has occurred. Please retry or report in "
        "https://developers.generativeai.google/guide/troubleshooting",
    ),
    "error-502": lambda v: Reply(_502, 502, "text/html; charset=UTF-8"),
    "error-503": lambda v: error(503, "The model is overloaded. Please try again later."),
    "error-504": lambda v: error(504, "The request timed out. Please try again."),
    "redirect": lambda v: Reply(b"", 307, "text/html", [("Location", v.fault.data.decode() or "/elsewhere")]),
    "early-413": lambda v: error(413, "Request payload size exceeds the limit.", headers=[("Connection", "close")]),
}

CONNECTION = frozenset({"rst", "fin", "rst-in-body", "garbage", "big-head", "raw"})
ANSWER = frozenset({
    "stall-head", "lost", "cut-head", "cut-fin", "cut-rst", "cut-chunk", "short-body", "stall-stream", "drip", "error-event",
    "gzip", "gzip-bomb", "interim", "trailers",
})  # fmt: skip
NAMES = frozenset(REFUSALS) | CONNECTION | ANSWER
