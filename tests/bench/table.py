"""The table: one row a figure, one column a target, medians of the rounds and ratios within the run."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

Results = Mapping[str, Mapping[str, Sequence[float]]]
"""Figure, target, one number a round."""


@dataclass(frozen=True, slots=True)
class Row:
    figure: str
    text: str
    digits: int = 1
    over: bool = False
    """Shown is what the target adds to the upstream alone, round by round."""
    ratio: bool = True
    """Ratios and spread say something of it."""


ROWS = (
    Row("rps", "unary, 64 connections: requests/s", 0),
    Row("cpu_us", "unary, 64 connections: CPU µs/request"),
    Row("c1_p50_us", "unary, one client: p50 added to the upstream's, µs", 0, over=True),
    Row("c1_p99_us", "unary, one client: p99 added to the upstream's, µs", 0, over=True),
    Row("ttfb_us", "stream, one client: first byte p50 added, µs", 0, over=True),
    Row("ttfb_p99_us", "stream, one client: first byte p99 added, µs", 0, over=True),
    Row("event_us", "64 streams: CPU µs/event"),
    Row("chat_rps", "/v1/chat/completions, 64 connections: requests/s", 0),
    Row("chat_cpu_us", "/v1/chat/completions, 64 connections: CPU µs/request"),
    Row("chat_event_us", "/v1/chat/completions, 64 streams: CPU µs/event"),
    Row("events_s", "64 streams: events/s (given)", 0, ratio=False),
    Row("open_us", "CPU µs to open a stream, cold", 0),
    Row("stream_kb", "memory of an idle stream, kB"),
    Row("up_s_gib", "upload: CPU s/GiB", 2),
    Row("up_gib_s", "upload: GiB/s", 2),
    Row("up_growth_mb", "upload: growth of resident memory, MB", ratio=False),
    Row("down_s_gib", "download: CPU s/GiB", 2),
    Row("down_gib_s", "download: GiB/s", 2),
    Row("down_growth_mb", "download: growth of resident memory, MB", ratio=False),
    Row("rest_mb", "resident memory at rest, MB"),
    Row("start_s", "start to first 200, s", 2),
)
STORED = (
    ("stored_first_ms", "first page of 100 turns"),
    ("stored_last_ms", "last page of 100 turns"),
    ("stored_history_ms", "history: the newest 100 turns"),
    ("stored_roles_ms", "history: the newest 100 of two roles"),
    ("stored_append_ms", "append of one turn"),
    ("stored_list_ms", "list of sessions, first page of 100"),
)
COLUMNS = ("upstream", "floor", "balancer", "nginx")


def cell(results: Results, row: Row, target: str) -> float:
    """The median of a figure; NaN where it was not measured."""
    values = results.get(row.figure, {}).get(target, ())
    if row.over and target != "upstream":
        alone = results.get(row.figure, {}).get("upstream", ())
        values = [one - other for one, other in zip(values, alone, strict=False)]
    values = [value for value in values if not math.isnan(value)]
    return median(values) if values else math.nan


def number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:,.{digits}f}".replace(",", " ")


def ratio(one: float, other: float) -> str:
    return "–" if math.isnan(one) or math.isnan(other) or other <= 0 else f"{one / other:.2f}"


def ratios(results: Results, row: Row, target: str, other: str) -> list[float]:
    """The rounds' own ratios: what disturbs the machine in a round disturbs both sides of it."""
    measured = results.get(row.figure, {})
    pairs = zip(measured.get(target, ()), measured.get(other, ()), strict=False)
    return [one / two for one, two in pairs if two > 0 and not math.isnan(one)]


def against(results: Results, row: Row, other: str) -> str:
    """How many times `other` the program is: the median of the rounds' ratios; of what is added, the ratio of the medians."""
    if row.over:
        return ratio(cell(results, row, "balancer"), cell(results, row, other))
    found = ratios(results, row, "balancer", other)
    return f"{median(found):.2f}" if found else "–"


def spread(results: Results, row: Row) -> str:
    """Half the distance between the quartiles of the rounds' ratios to the floor, in percent of their median."""
    found = ratios(results, row, "balancer", "floor")
    if len(found) < 2 or not (middle := median(found)):
        return "–"
    low, _, high = quantiles(found, n=4, method="inclusive")
    return f"±{(high - low) / 2 / abs(middle) * 100:.0f} %"


def main_table(results: Results, failed: Collection[tuple[str, str]]) -> str:
    lines = [["figure", "upstream alone", "floor", "balancer", "× floor", "spread", "nginx", "× nginx"]]
    for row in ROWS:
        values = {target: cell(results, row, target) for target in COLUMNS}
        if all(math.isnan(value) for value in values.values()):
            continue
        cells = {
            target: "FAILED" if (row.figure, target) in failed else number(values[target], row.digits)
            for target in COLUMNS
        }
        lines.append([
            row.text,
            cells["upstream"],
            cells["floor"],
            cells["balancer"],
            against(results, row, "floor") if row.ratio else "",
            spread(results, row) if row.ratio else "",
            cells["nginx"],
            against(results, row, "nginx") if row.ratio else "",
        ])  # fmt: skip
    return markdown(lines)


def growth_table(results: Results) -> str:
    """What grows with the work: CPU a request, beside the same with little."""
    measured = results.get("growth_us", {})
    lines = [["as work grows: CPU µs/request", "little", "much", "ratio"]]
    for text, little, much in (
        ("10 → 200 keys", "10 keys", "200 keys"),
        ("1,000 → 100,000 bindings, a request that names one", "few bindings", "many bindings"),
        ("no session → a session (its two log lines included)", "10 keys", "session"),
    ):
        few, many = measured.get(little, ()), measured.get(much, ())
        one = median(few) if few else math.nan
        other = median(many) if many else math.nan
        lines.append([text, number(one, 1), number(other, 1), ratio(other, one)])
    return markdown(lines)


def stored_table(results: Results, failed: Collection[str], little: str, much: str) -> str:
    """What grows with what is stored: milliseconds a call. `little` and `much` say how much that is."""
    lines = [["as stored chats grow: ms a call", little, much, "ratio"]]
    for database in ("SQLite", "PostgreSQL"):
        rows = []
        for figure, text in STORED:
            measured = results.get(figure, {})
            few, many = measured.get(f"{database}, little", ()), measured.get(f"{database}, much", ())
            if few and many:
                one, other = median(few), median(many)
                rows.append([f"{database}: {text}", number(one, 2), number(other, 2), ratio(other, one)])
        why = "FAILED" if database in failed else f"not measured: no {database}"
        lines += rows or [[database, why, "", ""]]
    return markdown(lines)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]

    def drawn(line: Sequence[str]) -> str:
        cells = [
            text.ljust(width) if not column else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join(
        "-" * (width + 2) if not column else "-" * (width + 1) + ":" for column, width in enumerate(widths)
    )
    return "\n".join([drawn(lines[0]), rule + "|", *map(drawn, lines[1:])])
