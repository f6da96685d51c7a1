"""Whether an upstream can be reached at all: one state machine an upstream, beside those of its keys.

Refusals are answers, and belong to keys (cooldown.py) or, seen at several of them, to the pool (outage.py): a 503 of every
key backs the pool off. Here count the attempts, of all keys and calls, that got no answer whatever; any HTTP answer, a 500 too,
proves that the upstream is there. A failure without a connection says so by itself. A request that was sent and lost, answered
with nonsense or never answered may be the request's own doing, and so only asks for a probe, which no request can spoil.

    state     event                                                         then
    up        no connection, 5 in a row over 1 s                            down
              no answer of whatever sort, 5 in a row over 1 s               doubted: probed at once, calls go on
    doubted   no connection, 5 in a row over 1 s; probe without answer      down
              an answer                                                     up
    down      an answer                                                     up
              probe without answer                                          down, the next probe after twice the delay
              no key to probe with                                          down, one call may try in the probe's place

In a row: with no answer between them. An attempt that began before the last answer is no news when it fails, nor is an answer
that came before the last failure. The delay begins with 1 s and doubles up to 60 s, a fifth more or less by chance, so that
many proxies do not knock at once; an upstream that goes down again within a minute finds the delay where it was.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from balancer.clock import Clock
from balancer.keypool.snapshot import ReachSnapshot, ReachState

FAILURES = 5
SPAN = 1.0
FIRST = 1.0
CAP = 60.0
SPREAD = 0.2
QUIET = 60.0


@dataclass(frozen=True, slots=True)
class Turn:
    """A change of state, for the log. `seconds` until the next probe, where one is due; how long it was down, where it is up."""

    kind: Literal["doubted", "down", "up"]
    reason: str = ""
    seconds: float | None = None


class Reach:
    """The state of one upstream. `down`: calls are to leave it out."""

    on_turn: Callable[[Turn], None] | None = None
    """Called once per change of state: for the log, and to have it probed."""

    def __init__(self, clock: Clock, chance: Callable[[], float] = random.random) -> None:
        """`chance`: numbers from [0, 1) that spread the probes."""
        self._clock = clock
        self._monotonic = clock.monotonic
        self._chance = chance
        self._state: ReachState = "up"
        self.down = False
        self.blind = False
        """It is down, and there was no key to probe it with."""
        self._failures = 0
        self._unconnected = 0
        self._row_began = 0.0
        self._last_failure = float("-inf")
        self._last_answer = float("-inf")
        self._since = self._monotonic()
        self._came_up = float("-inf")
        self.reason = ""
        self._delay = 0.0
        self._next = 0.0
        self._probing = False
        self._subscribers: list[Callable[[], None]] = []

    def now(self) -> float:
        """Monotonic seconds, on the clock of `begun`."""
        return self._monotonic()

    # What attempts tell

    def answered(self, at: float | None = None) -> None:
        """The head of an answer came, now or then (monotonic)."""
        if at is None:
            at = self._monotonic()
        if at < self._last_failure:
            return
        self._last_answer = at
        if self._failures:
            self._failures = self._unconnected = 0
            if self._state != "up":
                self._come_up(self._monotonic())

    def failed(self, reason: str, *, begun: float, sent: bool) -> None:
        """An attempt begun then got no answer. `sent`: there was a connection."""
        now = self._monotonic()
        if begun < self._last_answer:
            return
        self._last_failure = now
        if self._state == "down":
            return
        if not self._failures:
            self._row_began = begun
        self._failures += 1
        self._unconnected = 0 if sent else self._unconnected + 1
        if now - self._row_began < SPAN:
            return
        if self._unconnected >= FAILURES:
            self._go_down(reason, now)
        elif self._failures >= FAILURES and self._state == "up":
            self._turn("doubted", reason, now)
            self._next = now
            self._tell(Turn("doubted", reason, 0.0))

    # Probes

    @property
    def troubled(self) -> bool:
        """Whether it wants probes."""
        return self._state != "up"

    @property
    def next_probe(self) -> float:
        """Monotonic time of the next one."""
        return self._next

    def begin_probe(self) -> bool:
        """Whether it is to be probed now; then `probed` or `unprobed` must follow. One probe at a time."""
        if self._state == "up" or self._probing or self._monotonic() < self._next:
            return False
        self._probing = True
        return True

    def probed(self, reason: str | None) -> None:
        """What came of a probe: an answer (None), or why there was none."""
        self._probing = self.blind = False
        if reason is None:
            self.answered()
        elif self._state == "doubted":
            self._go_down(reason, self._monotonic())
        elif self._state == "down":
            self.reason = reason
            self._put_off(self._monotonic())

    def unprobed(self) -> None:
        """No key could be had for a probe, or it was not finished."""
        self._probing = False
        self.blind = self.down
        self._next = self._monotonic() + max(self._delay, FIRST)

    def tried(self) -> None:
        """A call takes the place of the probe that had no key; if it fails, the next chance comes as after a probe."""
        self.blind = False
        self._put_off(self._monotonic())

    def _come_up(self, now: float) -> None:
        was, seconds = self._state, now - self._since
        self._turn("up", "", now)
        if was == "down":
            self._came_up = now
            self._tell(Turn("up", seconds=seconds))

    def _go_down(self, reason: str, now: float) -> None:
        if now - self._came_up > QUIET:
            self._delay = 0.0
        self._turn("down", reason, now)
        self._put_off(now)
        self._tell(Turn("down", reason, self._next - now))

    def _turn(self, state: ReachState, reason: str, now: float) -> None:
        self._state, self.reason, self._since = state, reason, now
        self.down, self.blind = state == "down", False

    def _put_off(self, now: float) -> None:
        self._delay = min(2 * self._delay, CAP) if self._delay else FIRST
        self._next = now + self._delay * (1 - SPREAD + 2 * SPREAD * self._chance())

    # Looking on

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back whenever it is up again; returns what ends that."""
        entry = partial(callback)
        self._subscribers.append(entry)

        def unsubscribe() -> None:
            if entry in self._subscribers:
                self._subscribers.remove(entry)

        return unsubscribe

    def _tell(self, turn: Turn) -> None:
        if self.on_turn is not None:
            self.on_turn(turn)
        if turn.kind == "up":
            for callback in tuple(self._subscribers):
                callback()

    def snapshot(self) -> ReachSnapshot:
        wall = self._clock.wall() - self._monotonic()
        return ReachSnapshot(
            state=self._state,
            since_wall=wall + self._since,
            reason=self.reason,
            next_probe_wall=None if self._state == "up" else wall + self._next,
        )
