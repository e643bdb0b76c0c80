"""Results as pictures: SVG files that are the same, byte by byte, for the same results.

Each is drawn only if its measurements are there. Lines and bars are medians over the runs, whiskers
the lowest and the highest run; latencies by percentile are of all runs together.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from hdrh.histogram import HdrHistogram
from matplotlib.figure import Figure

from bench.tables import fixed, number, what

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from bench.measurement import Measurement
    from bench.results import Results

COLOURS = {
    "belong": "#c2410c",
    "fastapi": "#0f766e",
    "django": "#4d7c0f",
    "fastify": "#1d4ed8",
    "plain sets": "#a1a1aa",
}
OTHER_COLOURS = ("#52525b", "#7c3aed", "#b45309", "#0e7490", "#be185d", "#a16207")
PERCENTILES = (0.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99)
TICKS = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "font.size": 9,
    "grid.color": "#e4e4e7",
    "legend.frameon": False,
    # Names of things in the file are hashes: of this, not of chance.
    "svg.hashsalt": "belong",
    "svg.fonttype": "none",
}
WIDTH = 8.0
"""Inches."""


def draw(results: Results, folder: Path) -> list[str]:
    """Draw what there is to be drawn into a folder; give the names of the files."""
    drawn = []
    with mpl.rc_context(STYLE):
        for name, make in PICTURES.items():
            figure = make(results.measurements)
            if figure is not None:
                figure.savefig(folder / name, metadata={"Date": None, "Creator": None})
                drawn.append(name)
    return drawn


def beside_the_peers(measurements: Sequence[Measurement]) -> Figure | None:
    """Draw the peaks that more than one subject has, as a share of ours."""
    rows: dict[str, dict[str, Measurement]] = {}
    for each in measurements:
        if each.mode == "closed" and each.values:
            rows.setdefault(what(each), {})[each.subject] = each
    rows = {name: row for name, row in rows.items() if len(row) > 1}
    if not rows:
        return None
    subjects = list(dict.fromkeys(name for row in rows.values() for name in row))
    figure, axes = _figure(1.2 + 0.24 * len(rows) * len(subjects))
    high = 0.8 / len(subjects)
    for place, subject in enumerate(subjects):
        at, widths, labels = [], [], []
        for line, row in enumerate(rows.values()):
            if subject in row:
                best = max(statistics.median(each.values) for each in row.values()) or 1
                middle = statistics.median(row[subject].values)
                at.append(line + place * high)
                widths.append(middle / best)
                labels.append(f"{number(middle)} {row[subject].unit}")
        bars = axes.barh(at, widths, high * 0.9, color=_colour(subject, place), label=subject)
        axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.set_yticks([line + 0.4 - high / 2 for line in range(len(rows))], list(rows))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25)
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.set_title("Peaks side by side, each row scaled to its highest")
    _legend(figure)
    return figure


def throughput_by_concurrency(measurements: Sequence[Measurement]) -> Figure | None:
    """Draw the peaks of what was measured with several numbers of connections."""
    lines: dict[tuple[str, str, str], dict[float, list[float]]] = {}
    for each in measurements:
        connections = each.settings.get("connections")
        if each.mode == "closed" and each.values and isinstance(connections, int):
            key = (each.workload, each.unit, each.subject)
            lines.setdefault(key, {})[connections] = each.values
    lines = {key: points for key, points in lines.items() if len(points) > 1}
    if not lines:
        return None
    workloads = list(dict.fromkeys(key[:2] for key in lines))
    figure = Figure(figsize=(WIDTH, 3.6 * len(workloads)), layout="constrained")
    for place, (workload, unit) in enumerate(workloads):
        axes = figure.add_subplot(len(workloads), 1, place + 1)
        for number_of, (key, points) in enumerate(lines.items()):
            if key[:2] == (workload, unit):
                _line(axes, points, key[2], _colour(key[2], number_of))
        axes.set_xscale("log", base=2)
        ticks = sorted({at for key, points in lines.items() if key[0] == workload for at in points})
        axes.set_xticks(ticks, [f"{at:g}" for at in ticks])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("connections")
        axes.set_ylabel(unit)
        axes.set_title(f"Throughput by concurrency: {workload}")
        axes.legend()
    return figure


def latency_by_percentile(measurements: Sequence[Measurement]) -> Figure | None:
    """Draw the latencies of open loops, a part for everything that was asked at a rate."""
    parts: dict[str, list[Measurement]] = {}
    for each in measurements:
        if each.mode == "open" and each.histogram:
            name = each.workload if "load" in each.settings else what(each)
            parts.setdefault(name, []).append(each)
    if not parts:
        return None
    figure = Figure(figsize=(WIDTH, 3.2 * len(parts)), layout="constrained")
    for place, (name, each_of) in enumerate(parts.items()):
        axes = figure.add_subplot(len(parts), 1, place + 1)
        for line, each in enumerate(each_of):
            histogram = HdrHistogram.decode(str(each.histogram).encode())
            total = histogram.get_total_count()
            # Beyond that a percentile is a single request.
            shares = [share for share in PERCENTILES if total * (1 - share / 100) >= 1]
            heights = [histogram.get_value_at_percentile(share) / 1000 for share in shares]
            several = sum(other.subject == each.subject for other in each_of) > 1
            axes.plot(
                [1 / (1 - share / 100) for share in shares],
                heights,
                color=OTHER_COLOURS[line % 6] if several else _colour(each.subject, line),
                label=f"{each.subject} ({fixed(each)})" if several else each.subject,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(
            [1 / (1 - share / 100) for share in TICKS], [f"{share:g} %" for share in TICKS]
        )
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylabel("ms")
        axes.set_xlabel("percentile")
        axes.set_title(f"Latency by percentile: {name}")
        axes.legend()
    return figure


def add_one_by_group_size(measurements: Sequence[Measurement]) -> Figure | None:
    """Draw what it costs to add one member, by how many there are."""
    lines: dict[str, dict[float, list[float]]] = {}
    for each in measurements:
        size = each.settings.get("group size")
        if each.workload == "add one" and isinstance(size, int):
            for name in ("p50", "p99"):
                if each.details.get(name):
                    lines.setdefault(f"{each.subject}, {name}", {})[size] = each.details[name]
    if not lines:
        return None
    figure, axes = _figure(3.6)
    for place, (name, points) in enumerate(lines.items()):
        _line(axes, points, name, OTHER_COLOURS[place % 6])
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("members of the group")
    axes.set_ylabel("us")
    axes.set_title("Adding one member, by the size of the group")
    axes.legend()
    return figure


def bytes_per_membership(measurements: Sequence[Measurement]) -> Figure | None:
    """Draw what a membership takes, by shape and subject."""
    found = [each for each in measurements if each.unit == "bytes" and each.values]
    if not found:
        return None
    figure, axes = _figure(1.0 + 0.3 * len(found))
    bars = axes.barh(
        [f"{each.subject}: {_shape(each)}" for each in found],
        [statistics.median(each.values) for each in found],
        color=[_colour(each.subject, place) for place, each in enumerate(found)],
    )
    axes.bar_label(bars, [number(statistics.median(each.values)) for each in found], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("bytes")
    axes.set_title("Bytes per membership, both directions with join time")
    return figure


def _shape(measurement: Measurement) -> str:
    """Say in a short line of what the bytes are."""
    told = measurement.settings
    said = f"{told['groups']:,} groups of {told['size']:,}"
    if told.get("partitions", 1) != 1:
        said += f" in {told['partitions']} partitions"
    return f"{said}, {told['server']}" if "server" in told else said


PICTURES: dict[str, Callable[[Sequence[Measurement]], Figure | None]] = {
    "beside-the-peers.svg": beside_the_peers,
    "throughput-by-concurrency.svg": throughput_by_concurrency,
    "latency-by-percentile.svg": latency_by_percentile,
    "add-one-by-group-size.svg": add_one_by_group_size,
    "bytes-per-membership.svg": bytes_per_membership,
}


def _figure(high: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, high), layout="constrained")
    return figure, figure.add_subplot()


def _line(axes: Axes, points: dict[float, list[float]], label: str, colour: str) -> None:
    at = sorted(points)
    middles = [statistics.median(points[each]) for each in at]
    below = [middle - min(points[each]) for each, middle in zip(at, middles, strict=True)]
    above = [max(points[each]) - middle for each, middle in zip(at, middles, strict=True)]
    axes.errorbar(
        at, middles, (below, above), color=colour, marker="o", markersize=4, capsize=3, label=label
    )


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside lower center", ncols=4)


def _colour(subject: str, place: int) -> str:
    return COLOURS.get(subject) or OTHER_COLOURS[place % len(OTHER_COLOURS)]
