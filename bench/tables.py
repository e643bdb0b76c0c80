"""Results as Markdown: Belong beside the peers, what is Belong's alone, and the goals.

Medians over the runs stand in the cells, with the lowest and the highest run behind them. Ratios
are taken within each run, where both were measured shortly after each other.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from bench import goals

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.measurement import Measurement
    from bench.results import Machine, Results

OURS = "belong"
TITLES = {
    "closed": "Peaks: as fast as answers come",
    "open": "Latency: requests at a fixed rate, counted from when they were due",
    "once": "What was measured otherwise",
}
CLIENT_LOAD = "client load"
BUSY = 0.7
"""Of its core: a client that took more may have measured itself."""

_SAID_OF_CLIENTS = (
    f"Client load is what the client took of its core; in **bold** it was more than {BUSY} in a "
    "run, and what was measured may be the client."
)


def page(results: Results, pictures: Sequence[str] = ()) -> str:
    """Give the whole page of a run."""
    parts = [_head(results)]
    # They are about full sizes, and about the present tree.
    if results.settings.get("smoke") != "yes" and not results.settings.get("against"):
        parts.append(_goals(results))
    parts += [_side_by_side(results.measurements, "closed"), _open(results.measurements)]
    parts += [_side_by_side(results.measurements, "once"), _ceilings(results.measurements)]
    parts.append(_details(results.measurements))
    parts.append(_failures(results))
    parts.append(_limits())
    if pictures:
        parts.append("## Pictures\n\n" + "\n\n".join(f"![{each}]({each})" for each in pictures))
    return "\n\n".join(filter(None, parts)) + "\n"


def _limits() -> str:
    """Give what the figures do not show, as the bench's own page says it."""
    text = Path(__file__).with_name("README.md").read_text()
    _, title, rest = text.partition("## What these figures do not show")
    return title + rest.partition("\n## ")[0].rstrip()


def number(value: float) -> str:
    """Write a figure with as many digits as say something."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(values: Sequence[float]) -> str:
    """Write the median, and the extremes where there is more than one."""
    middle = number(statistics.median(values))
    if len(values) < 2:
        return middle
    return f"{middle} ({number(min(values))} to {number(max(values))})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, text: int = 1) -> str:
    """Write a Markdown table: first so many columns of text, then figures."""
    lines = [head, ["---"] * text + ["---:"] * (len(head) - text), *rows]
    return "\n".join(f"| {' | '.join(each)} |" for each in lines)


def fixed(measurement: Measurement) -> str:
    """Write what was fixed."""
    settings = measurement.settings
    return ", ".join(
        f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}"
        for key, value in settings.items()
    )


def what(measurement: Measurement) -> str:
    """Name the row of a measurement: what all subjects have in common."""
    said = fixed(measurement)
    return f"{measurement.workload} ({said})" if said else measurement.workload


def stolen(machine: Machine) -> str:
    """Write which share of the time of each core was taken away."""
    shares = [f"{100 * share:.1f} % of core {core}" for core, share in machine.stolen.items()]
    return ", ".join(shares) or "not known"


def _head(results: Results) -> str:
    machine, settings = results.machine, results.settings
    load = ", ".join(f"{each:.2f}" for each in machine.load_before)
    where = (
        "what serves HTTP has a core for itself; stores, databases and the load have another"
        if machine.pinned
        else "nothing is pinned"
    )
    memory = f"{machine.memory_bytes / 2**30:.0f} GiB"
    clients = " and ".join(results.closed_loops_by) or "nobody"
    lines = [
        f"# Bench of {results.began:%Y-%m-%d %H:%M} UTC",
        "",
        f"- commit {results.commit}{', with changes' if results.dirty else ''}",
        f"- {machine.cpu}, {machine.cores} cores, {memory}, {machine.system}; {where}",
        f"- load average before: {load}" + ", **busy**" * machine.was_busy,
        f"- stolen by other guests of its host: {stolen(machine)}",
        "- " + ", ".join(f"{name} {version}" for name, version in results.versions.items()),
        "- " + ", ".join(f"{name} {value}" for name, value in settings.items() if value != ""),
        f"- closed loops by {clients}, open loops by the built-in client",
        f"- it took {results.seconds / 60:.1f} minutes",
        *(f"- {note}" for note in results.notes),
    ]
    if results.interrupted:
        lines.append("- **it was interrupted**: some rows have fewer runs, or are missing")
    lines += ["", "Medians over the runs, in brackets the lowest and the highest."]
    return "\n".join(lines)


def _goals(results: Results) -> str:
    rows = [
        [each.row.replace("|", "/"), each.wanted, each.figure, each.verdict]
        for each in goals.judged(results.measurements)
    ]
    return "## Goals\n\n" + table(("what", "wanted", "measured", ""), rows, text=4) if rows else ""


def _grouped(
    measurements: Iterable[Measurement], mode: str
) -> dict[tuple[str, str], dict[str, Measurement]]:
    rows: dict[tuple[str, str], dict[str, Measurement]] = {}
    for each in measurements:
        if each.mode == mode and each.values:
            rows.setdefault((what(each), each.unit), {})[each.subject] = each
    return rows


def _side_by_side(measurements: Iterable[Measurement], mode: str) -> str:
    """Write ours beside the others, and how many times ours is better; a table for each company."""
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for (said, unit), row in _grouped(measurements, mode).items():
        ours = row.get(OURS)
        line = [said, unit, spread(ours.values) if ours else ""]
        others = tuple(name for name in row if name != OURS)
        for name in others:
            better = _times_better(ours, row[name]) if ours else []
            line += [spread(row[name].values), spread(better) if better else ""]
        wrong = [f"{name} {each.errors:,}" for name, each in row.items() if each.errors]
        tables.setdefault(others, []).append([*line, ", ".join(wrong) or "0"])
    if not tables:
        return ""
    parts = [f"## {TITLES[mode]}"]
    for others, lines in tables.items():
        head = ["what", "unit", OURS]
        for name in others:
            head += [name, f"{OURS} is x better"]
        parts.append(table([*head, "errors"], lines, text=2))
    return "\n\n".join(parts)


def _times_better(ours: Measurement, theirs: Measurement) -> list[float]:
    # Of what is so much a second more is better, of everything else less.
    if ours.unit.endswith("/s"):
        return goals.ratios(ours, theirs)
    return goals.ratios(theirs, ours)


def _open(measurements: Iterable[Measurement]) -> str:
    rows = []
    for row in _grouped(measurements, "open").values():
        for name, each in row.items():
            details = [
                _detail(each, detail) if each.details.get(detail) else ""
                for detail in ("achieved rate", "p50", "p99", "p99.9", "max", CLIENT_LOAD)
            ]
            if not goals.held(each):
                details[0] += ", **not held**"
            wrong = [f"{each.errors:,}", f"{each.unsent:,}"]
            rows.append([what(each), name, *details[:-1], *wrong, details[-1]])
    head = ("what", "subject", "achieved requests/s", "p50 us", "p99 us", "p99.9 us", "max us")
    if not rows:
        return ""
    made = table((*head, "errors", "unsent", CLIENT_LOAD), rows, text=2)
    return f"## {TITLES['open']}\n\n{_SAID_OF_CLIENTS}\n\n{made}"


def _detail(measurement: Measurement, name: str) -> str:
    """Write what is known by that name, in bold where it says that the client was busy."""
    values = measurement.details[name]
    said = spread(values)
    return f"**{said}**" if name == CLIENT_LOAD and max(values) > BUSY else said


def _ceilings(measurements: Iterable[Measurement]) -> str:
    """Write what ours reaches of what the same server, or its store, gives for less work."""
    ours = [each for each in measurements if each.subject == OURS and each.values]
    rows = [
        [what(each), ceiling.workload, spread(ceiling.values), spread(shares)]
        for each in ours
        for ceiling in ours
        if _is_ceiling(ceiling, each)
        if (shares := goals.ratios(each, ceiling))
    ]
    if not rows:
        return ""
    head = ("what", "ceiling", "gives, a second", "reached of it")
    return "## Ceilings\n\n" + table(head, rows, text=2)


def _is_ceiling(ceiling: Measurement, of: Measurement) -> bool:
    """Say whether one is the ceiling of the other: as many at a time of the same, or `/healthz`."""
    if (
        of.mode == "open"
        or ceiling.mode != of.mode
        or _together(ceiling) != _together(of)
        or ceiling is of
    ):
        return False
    if ceiling.workload in {"healthz", "bare answers"}:
        return of.unit == ceiling.unit and of.workload not in {"healthz", "bare answers"}
    name, alone, _ = ceiling.workload.rpartition(" alone")
    return bool(alone) and name.rpartition(", ")[0] == of.workload


def _together(measurement: Measurement) -> object:
    settings = measurement.settings
    return settings.get("connections", settings.get("calls at a time"))


def _details(measurements: Iterable[Measurement]) -> str:
    """Write everything else that is known of each measurement, a row each."""
    rows = [
        [
            what(each),
            each.subject,
            ", ".join(f"{name} {_detail(each, name)}" for name in each.details),
        ]
        for each in measurements
        if each.details and each.mode != "open"
    ]
    if not rows:
        return ""
    said = "Latencies and processor time are in us; processor time is that of one request. "
    said += _SAID_OF_CLIENTS
    made = table(("what", "subject", "details"), rows, text=3)
    return f"## Details\n\n{said}\n\n{made}"


def _failures(results: Results) -> str:
    rows = [[each.step, each.why.replace("\n", " ")[:300]] for each in results.failures]
    return "## Failed\n\n" + table(("what", "why"), rows, text=2) if rows else ""
