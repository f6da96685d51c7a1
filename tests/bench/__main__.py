"""make bench: what the program costs, side by side with a bare relay and nginx, in one run.

python -m tests.bench [--quick] [--only GROUP …] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from time import monotonic, strftime

import uvloop

from balancer.conversations.base import StorageUnavailable
from tests.bench import figures, stored
from tests.bench.figures import Figures, Scale
from tests.bench.load import Broken
from tests.bench.process import cores, machine, pinned
from tests.bench.table import growth_table, main_table, stored_table
from tests.bench.targets import (
    ROOT,
    Died,
    Kind,
    Target,
    balancer_kind,
    nginx_version,
    running,
    targets,
    upstream_kind,
)

GROUPS = ("life", "unary", "latency", "events", "chat", "chat_events", "ttfb", "upload", "download", "growth", "stored")
QUICK = Scale(
    seconds=0.25, short=0.5, idle_streams=300, transfer=1 << 28, bindings=20_000, turns=50_000, sessions=20_000
)
FAILURES = (Broken, Died, OSError, TimeoutError, StorageUnavailable)
"""What a target or a database may do wrong. Anything else is a mistake of the bench."""
WARM_CALLS = 3
"""Of each sort, before those that count."""

METHOD = """\
Method: the program under test on core {proxy}, load and upstream on core {load}; loopback, plain HTTP; CPU of all threads of all
processes of a target from /proc (schedstat), memory from /proc (VmRSS); every round measures all targets in turn, there and back
again: {often} rounds of {seconds} s of unary requests, {rounds} of events and of chats, {rounds} of {short} s with one client,
{few} of starts, memory and transfers of {transfer} MiB; medians; each measurement is warmed up for {warm} s. "added" is the
difference to the upstream alone in the same round. A ratio is the median of the rounds' own; absolute numbers do not travel.
balancer: client tokens, affinity, 3 keys with rpm, rpd, tpm and concurrency limits, all timeouts, request ids, one JSON access
line to a file, metrics. floor: tests/bench/floor.py, on uvloop as well. nginx: one worker, buffering off, no access log.
"spread" is half the distance between the quartiles of the rounds' ratios to the floor: smaller differences are noise.
stored: the store and its database on core {proxy}; {calls} calls of each sort in either store, in turn; medians and their ratio.
SQLite in a file, flushed by each append; PostgreSQL: the server of DATABASE_URL, or one started as for the tests, which does
not wait for the disk."""

Measure = Callable[[Target, Scale], Awaitable[Figures]]
PER_ROUND: dict[str, Measure] = {
    "unary": figures.throughput,
    "latency": figures.latency,
    "events": figures.events,
    "chat": figures.chat,
    "chat_events": figures.chat_events,
    "ttfb": figures.first_byte,
}
OFTEN = frozenset({"unary"})
TRANSFERS: dict[str, Measure] = {"upload": figures.upload, "download": figures.download}


class Bench:
    """One run: the numbers so far, and what failed."""

    def __init__(self, scale: Scale, rounds: int, groups: Sequence[str], names: Sequence[str], work: Path) -> None:
        self.scale = scale
        self.rounds = rounds
        self.few = min(rounds, 3)
        """Rounds of what takes long and varies little."""
        self.often = rounds * scale.slices
        """Rounds of what is compared most closely."""
        self.groups = groups
        self.kinds = targets(names)
        self.work = work
        self.core, self.load_core = cores()
        self.results: dict[str, dict[str, list[float]]] = {}
        self.failed: dict[tuple[str, str], str] = {}
        self._began = monotonic()

    def say(self, text: str) -> None:
        sys.stderr.write(f"{monotonic() - self._began:6.1f} s  {text}\n")
        sys.stderr.flush()

    def keep(self, target: str, found: Figures) -> None:
        for figure, value in found.items():
            self.results.setdefault(figure, {}).setdefault(target, []).append(value)

    async def run(self) -> None:
        if self._through_targets():
            await self._relayed()
        if "stored" in self.groups:
            await self._stored()
        self.say("done")

    def _through_targets(self) -> bool:
        return any(group != "stored" for group in self.groups)

    async def _relayed(self) -> None:
        """All that is measured through targets."""
        with running(upstream_kind(), self.work, self.load_core) as upstream, pinned(self.load_core):
            await figures.until_answer(upstream)
            where = f"127.0.0.1:{upstream.address[1]}"
            if "life" in self.groups:
                for turn in range(self.few):
                    self.say(f"start, rest, idle streams: round {turn + 1} of {self.few}")
                    for kind in self.kinds:
                        await self._life(kind, where)
            await self._steady(Target("upstream", upstream.address), where)
            if "growth" in self.groups:
                await self._growth(where)

    async def _life(self, kind: Kind, where: str) -> None:
        began = monotonic()
        with running(kind, self.work, self.core, where) as target:
            try:
                self.keep(kind.name, await figures.life(target, self.scale, began))
            except FAILURES as failure:
                self._fail("life", target, failure)

    def _fail(self, group: str, target: Target, failure: BaseException) -> None:
        text = f"{type(failure).__name__}: {failure}"
        if not isinstance(failure, Died) and target.process is not None:
            text += f" (it said: {target.last_words()})"
        self._failed(group, target.name, text)

    def _failed(self, group: str, name: str, text: str) -> None:
        self.say(f"FAILED: {group} of {name}: {text}")
        self.failed.setdefault((group, name), text)

    async def _steady(self, upstream: Target, where: str) -> None:
        """Everything that is measured on processes that stay."""
        wanted = [group for group in (*PER_ROUND, *TRANSFERS) if group in self.groups]
        if not wanted:
            return
        async with contextlib.AsyncExitStack() as stack:
            steady = [upstream]
            for kind in self.kinds:
                target = stack.enter_context(running(kind, self.work, self.core, where))
                try:
                    await figures.until_answer(target)
                    steady.append(target)
                except FAILURES as failure:
                    self._fail("start", target, failure)
            for target in steady:
                with contextlib.suppress(*FAILURES):
                    await figures.throughput(target, self.scale)
            for group in wanted:
                rounds = self.few if group in TRANSFERS else self.often if group in OFTEN else self.rounds
                for turn in range(rounds):
                    self.say(f"{group}: round {turn + 1} of {rounds}")
                    for target in reversed(steady) if turn % 2 else steady:
                        await self._measure(group, target, {**PER_ROUND, **TRANSFERS}[group])

    async def _measure(self, group: str, target: Target, measure: Measure) -> None:
        try:
            self.keep(target.name, await measure(target, self.scale))
        except FAILURES as failure:
            self._fail(group, target, failure)

    async def _growth(self, where: str) -> None:
        """The program with little and with much to look after."""
        few, many, bound = balancer_kind("10-keys", 10), balancer_kind("200-keys", 200), balancer_kind("bindings", 10)
        with (
            running(few, self.work, self.core, where) as little,
            running(many, self.work, self.core, where) as keys,
            running(bound, self.work, self.core, where) as bindings,
        ):
            target = little
            try:
                for target in (little, keys, bindings):
                    await figures.until_answer(target)
                for target, names in ((little, 1000), (bindings, self.scale.bindings)):
                    await figures.meet(target, names)
                for turn in range(self.rounds):
                    self.say(f"growth: round {turn + 1} of {self.rounds}")
                    for name, target, what in (
                        ("10 keys", little, figures.UNARY),
                        ("200 keys", keys, figures.UNARY),
                        ("few bindings", little, figures.NAMING),
                        ("many bindings", bindings, figures.NAMING),
                        ("session", little, figures.SESSION),
                    ):
                        found = await figures.throughput(target, self.scale, what)
                        self.keep(name, {"growth_us": found["cpu_us"]})
            except FAILURES as failure:
                self._fail("growth", target, failure)

    async def _stored(self) -> None:
        """The store with little and with much in it."""
        scale = self.scale
        with pinned(self.core):
            for name, place in stored.places(self.work).items():
                self.say(f"stored: {name}")
                try:
                    with place() as (few, many):
                        async with (
                            stored.filled(few, scale.little, scale.little) as little,
                            stored.filled(many, scale.turns, scale.sessions) as much,
                        ):
                            await self._ask(name, little, much)
                except FAILURES as failure:
                    self._failed("stored", name, f"{type(failure).__name__}: {failure}")

    async def _ask(self, database: str, little: stored.Stored, much: stored.Stored) -> None:
        for _ in range(WARM_CALLS):
            for warmed in (little, much):
                await stored.once(warmed)
        both = ((f"{database}, little", little), (f"{database}, much", much))
        for turn in range(self.scale.calls):
            for name, asked in reversed(both) if turn % 2 else both:
                self.keep(name, await stored.once(asked))

    def report(self, command: str) -> str:
        scale = self.scale
        parts = [
            f"Machine: {machine()}",
            f"Versions: {versions()}",
            METHOD.format(
                proxy=self.core,
                load=self.load_core,
                rounds=self.rounds,
                seconds=scale.seconds,
                short=scale.short,
                few=self.few,
                often=self.often,
                transfer=scale.transfer >> 20,
                warm=scale.warm,
                calls=scale.calls,
            ),
            f"Command: {command} ({monotonic() - self._began:.0f} s)",
        ]
        if self._through_targets():
            parts += ["", main_table(self.results, self._failed_rows())]
        if self.core == self.load_core:
            parts.insert(0, "ONE CORE ONLY: load, upstream and program share it; times and rates mean little.")
        if "growth" in self.groups:
            parts += ["", growth_table(self.results)]
        if "stored" in self.groups:
            parts += ["", self._stored_table()]
        if self._through_targets() and not any(kind.name == "nginx" for kind in self.kinds):
            parts += ["", "nginx is not installed: not measured."]
        parts += [f"\nFAILED: {group} of {target}: {text}" for (group, target), text in self.failed.items()]
        return "\n".join(parts)

    def _stored_table(self) -> str:
        scale = self.scale
        little, much = (
            f"{turns:,} turns, {sessions:,} sessions"
            for turns, sessions in ((scale.little, scale.little), (scale.turns, scale.sessions))
        )
        return stored_table(self.results, {name for group, name in self.failed if group == "stored"}, little, much)

    def _failed_rows(self) -> set[tuple[str, str]]:
        """The figures that a target owes, as far as others gave them."""
        broken = {target for _, target in self.failed}
        return {(row, target) for row, found in self.results.items() for target in broken if target not in found}

    def as_json(self, command: str) -> str:
        return json.dumps(
            {
                "when": strftime("%Y-%m-%dT%H:%M:%S%z"),
                "machine": machine(),
                "versions": versions(),
                "command": command,
                "rounds": self.rounds,
                "scale": {name: getattr(self.scale, name) for name in Scale.__slots__},
                "figures": {
                    figure: {
                        target: [None if math.isnan(value) else round(value, 4) for value in values]
                        for target, values in by_target.items()
                    }
                    for figure, by_target in self.results.items()
                },
                "failed": [f"{group} of {target}: {text}" for (group, target), text in self.failed.items()],
            },
            indent=1,
        )


def versions() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("aiohttp", "uvloop"))
    return f"balancer {_commit()}, CPython {platform.python_version()}, {packages}, nginx {nginx_version() or 'none'}"


def _commit() -> str:
    def git(*what: str) -> str:
        done = subprocess.run(["git", *what], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD")
        return (f"{commit} with changes" if git("status", "--porcelain", "balancer") else commit) or "?"
    except OSError:
        return "?"


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short measurements, two rounds: a look, not a result")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--targets", nargs="+", default=(), help="floor, balancer, nginx; the upstream is always there")
    parser.add_argument("--rounds", type=int, help="rounds of every measurement (default 5, quick 2)")
    parser.add_argument("--json", type=Path, default=ROOT / ".bench.json", help="where the numbers go")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None, scale: Scale | None = None) -> int:
    """Run it. Exit code 0, or 1 where something could not be measured."""
    chosen = arguments(given)
    command = " ".join(["python -m tests.bench", *(sys.argv[1:] if given is None else given)])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="balancer-bench-") as work:
        bench = Bench(
            scale or (QUICK if chosen.quick else Scale()),
            chosen.rounds or (2 if chosen.quick else 5),
            chosen.only,
            chosen.targets,
            Path(work),
        )
        try:
            uvloop.run(bench.run())
        except KeyboardInterrupt:
            bench.say("stopped: what has been measured so far")
        except Died as death:
            bench.say(f"stopped: {death}")
            bench.failed["all", "upstream"] = str(death)
    sys.stdout.write(bench.report(command) + "\n")
    chosen.json.write_text(bench.as_json(command) + "\n")
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
