"""The stand-in of each kind of upstream, by the kind's name: for the demo and the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from balancer.standin.achuan import AchuanStandIn, token
from balancer.standin.app import StandIn
from balancer.standin.base import BaseStandIn
from balancer.standin.coze import CozeStandIn
from balancer.standin.openai.app import OpenAIStandIn

_KEYS = ("stand-in-key-1", "stand-in-key-2", "stand-in-key-3")


@dataclass(frozen=True, slots=True)
class Kind:
    """How a stand-in is made: from its keys. `path`: of its base URL. `keys`: some that it would accept."""

    make: Callable[[Iterable[str]], BaseStandIn[Any]]
    path: str = ""
    keys: tuple[str, ...] = _KEYS


KINDS: dict[str, Kind] = {
    "gemini": Kind(StandIn),
    "openai": Kind(OpenAIStandIn, "/v1"),
    "achuan": Kind(AchuanStandIn, keys=tuple(token(f"stand-in-{n}") for n in (1, 2, 3))),
    "coze": Kind(partial(CozeStandIn, bots=()), "/v3"),
}
