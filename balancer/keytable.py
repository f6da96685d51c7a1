"""The table of `balancer keys`, made from what the admin listener answers at /api/keys (`surfaces.admin`).

Raises KeyError, TypeError, AttributeError or ValueError where that is something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

_COLUMNS = (
    "UPSTREAM",
    "KEY",
    "NAME",
    "PROJECT",
    "STATE",
    "UNTIL",
    "REASON",
    "IN FLIGHT",
    "OK",
    "BY CALLER",
    "BY KEY",
    "BY UPSTREAM",
)


def key_table(answer: Mapping[str, Any]) -> Iterator[str]:
    now = datetime.fromisoformat(answer["time"])
    rows: list[Sequence[str]] = [_COLUMNS]
    notes: dict[int, list[str]] = {}
    for upstream in answer["upstreams"]:
        reach = upstream.get("reach")  # a process of an earlier version tells nothing of it
        if reach and reach["state"] == "down":
            next_probe = _moment(reach["next_probe"], now)
            yield f"{upstream['name']} is down since {_time(reach['since'], now)}: {reach['reason']}; next probe {next_probe}"
        if upstream["backoff"]:
            until, why = upstream["backoff"]["until"], upstream["backoff"]["reason"]
            yield f"{upstream['name']} is not called until {_moment(until, now)}: {why}"
        for key in upstream["keys"]:
            counts = (str(key["counts"].get(name, 0)) for name in ("ok", "caller", "key", "upstream"))
            state = (
                key["state"],
                _moment(key["until"] or key["next_probe"], now),
                key["reason"] or "",
                str(key["in_flight"]),
            )
            rows.append(
                (upstream["name"], key["fingerprint"], key["name"] or "", key["project"] or "", *state, *counts)
            )
            notes[len(rows) - 1] = [
                f"    {rest['model']} rests until {_moment(rest['until'], now)}: {rest['reason']}"
                for rest in key["models"]
            ]
    yield from _aligned(rows, notes)


def _aligned(rows: Sequence[Sequence[str]], notes: Mapping[int, Iterable[str]]) -> Iterator[str]:
    """The rows with columns of one width, each followed by its notes; empty columns keep their heading."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        yield from notes.get(number, ())


def _moment(iso: str | None, now: datetime) -> str:
    """`14:03:12 (in 12 s)` in local time."""
    if iso is None:
        return ""
    seconds = max(0, round((datetime.fromisoformat(iso) - now.astimezone(UTC)).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{_time(iso, now)} (in {round(seconds / size)} {unit})"
    return f"{_time(iso, now)} (in {seconds} s)"


def _time(iso: str, now: datetime) -> str:
    """`14:03:12` in local time, with the day where it is another."""
    local = datetime.fromisoformat(iso).astimezone()
    return f"{local:%H:%M:%S}" if local.date() == now.astimezone().date() else f"{local:%Y-%m-%d %H:%M:%S}"
