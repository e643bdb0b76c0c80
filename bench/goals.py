"""The goals that Belong has set itself, and whether a run of the bench reached them.

A goal that was not measured says so; none is left out. Nor does one count as reached where an
answer was an error, or where less was sent than was to be.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.measurement import Measurement, Setting

    Values = Callable[["Found"], Sequence[float]]

LOOKUPS = ("check", "groups of 1", "groups of 10", "groups of 100")
AT_HALF = "half of the peak"
AT_HALF_OF_CHECK = "half of check's peak"
"""What is said of open loops instead of a rate."""
MILLISECOND = 1000
"""In us."""
HELD = 0.99
"""So much of the asked rate has to be achieved."""


class Judged(NamedTuple):
    """A row of the table of goals."""

    row: str
    wanted: str
    figure: str
    verdict: str
    """`reached`, `not reached`, `not measured`, or `not valid` and why."""


class Goal(NamedTuple):
    """What is wanted: the median of some values at least, or at most, so much."""

    row: str
    values: Values
    limit: Values
    is_most: bool = False
    unit: str = ""

    def judge(self, found: Found) -> Judged:
        """Hold it against what was measured."""
        wanted = "<=" if self.is_most else ">="
        found.used = []
        try:
            limit = statistics.median(self.limit(found))
            wanted += f" {_short(limit)}{self.unit}"
            values = self.values(found)
            middle = statistics.median(values)
        except LookupError as missing:
            return Judged(self.row, wanted, str(missing.args[0]), "not measured")
        is_reached = middle <= limit if self.is_most else middle >= limit
        told = f"{_short(middle)}{self.unit}"
        if len(values) > 1:
            told += f" ({_short(min(values))} to {_short(max(values))})"
        wrong = next(filter(None, map(fault_of, found.used)), None)
        if wrong is not None:
            return Judged(self.row, wanted, told, f"not valid: {wrong}")
        return Judged(self.row, wanted, told, "reached" if is_reached else "not reached")


class Floor(NamedTuple):
    """What the machine itself does to latencies: nothing is wanted of it, it stands beside goals.

    The least that can be: bytes that do not change, at the rate of a goal.
    """

    row: str
    workload: str

    def judge(self, found: Found) -> Judged:
        """Give p50, p99 and their ratio."""
        found.used = []
        try:
            measured = found.one(self.workload, mode="open", rate=AT_HALF_OF_CHECK)
        except LookupError as missing:
            return Judged(self.row, "", str(missing.args[0]), "not measured")
        p50, p99 = (
            statistics.median(measured.details[each]) / MILLISECOND for each in ("p50", "p99")
        )
        tail = statistics.median(_tails(measured))
        told = f"{_short(p50)} ms, {_short(p99)} ms, {_short(tail)}"
        wrong = fault_of(measured)
        return Judged(self.row, "", told, f"not valid: {wrong}" if wrong else "the floor")


class Found:
    """Measurements, looked up by what they are."""

    def __init__(self, measurements: Sequence[Measurement]) -> None:
        """Take them all."""
        self._measurements = measurements
        self.used: list[Measurement] = []
        """Those that were given since it was emptied."""

    def one(
        self, workload: str, subject: str = "belong", mode: str = "", **settings: Setting
    ) -> Measurement:
        """Give the first that fits; none: LookupError. `_` in a setting's name is a blank."""
        wanted = {name.replace("_", " "): value for name, value in settings.items()}
        for each in self._measurements:
            if (
                (each.workload, each.subject) == (workload, subject)
                and mode in {"", each.mode}
                and wanted.items() <= each.settings.items()
                and each.values
            ):
                self.used.append(each)
                return each
        said = ", ".join(f"{name} {value}" for name, value in wanted.items())
        raise LookupError(" ".join(filter(None, ("no", mode, workload, "of", subject, said))))


def fault_of(measurement: Measurement) -> str | None:
    """Say what makes a measurement worthless: errors, or a rate that was not held."""
    each = measurement
    if each.errors:
        return f"{each.errors:,} errors of {each.subject}"
    return None if held(each) else f"{each.subject} did not hold the rate"


def held(measurement: Measurement) -> bool:
    """Say whether an open loop achieved the rate that was asked for; of others: yes."""
    rates = [measurement.details.get(each, []) for each in ("achieved rate", "asked rate")]
    shares = [achieved / asked for achieved, asked in zip(*rates, strict=True)]
    return not shares or statistics.median(shares) >= HELD


def judged(measurements: Sequence[Measurement]) -> list[Judged]:
    """Judge every goal."""
    found = Found(measurements)
    return [goal.judge(found) for goal in goals()]


def ratios(ours: Measurement, theirs: Measurement) -> list[float]:
    """Divide the values of the runs that have both; by 0 it is infinite."""
    others = theirs.by_run()
    return [
        one / others[run] if others[run] else float("inf")
        for run, one in ours.by_run().items()
        if run in others
    ]


def goals() -> list[Goal | Floor]:
    """Give all goals, in the order in which they are published."""
    made: list[Goal | Floor] = []
    for each in LOOKUPS:
        made += [
            Goal(f"{each}: peak beside FastAPI + redis-py", _beside(each, "fastapi"), _is(4)),
            Goal(f"{each}: peak beside Django + PostgreSQL", _beside(each, "django"), _is(12)),
            Goal(f"{each}: peak beside its own /healthz", _peak_by_healthz(each), _is(0.5)),
        ]
    for each in LOOKUPS:
        made += [
            Goal(
                f"{each}: p99 at half of the peak", _at_half(each), _is(5), is_most=True, unit=" ms"
            ),
            Goal(f"{each}: p99 / p50 at half of the peak", _tail(each), _is(5), is_most=True),
        ]
    made.append(Floor("bare answers at the rate of check: p50, p99, p99 / p50", "bare answers"))
    made += [
        Goal(
            f"{each}: beside Fastify + ioredis, the far goal",
            _beside(each, "fastify"),
            _is(1),
        )
        for each in LOOKUPS
    ]
    return [
        *made,
        Goal(
            "pairs checked, 1,000 a request",
            lambda found: found.one("many pairs", pairs_a_request=1000).values,
            _is(200_000),
            unit="/s",
        ),
        *(
            goal
            for who in ("new", "known")
            for goal in (
                Goal(
                    f"memberships of {who} profiles added over HTTP, 10,000 a call",
                    _added(who),
                    _is(50_000),
                    unit="/s",
                ),
                Goal(
                    f"memberships of {who} profiles added, beside the same scripts alone",
                    _added_by_scripts(who),
                    _is(0.6),
                ),
            )
        ),
        Goal(
            "adding one member: p50 at 1,000,000 / at 1,000",
            lambda found: _divided(
                found.one("add one", group_size=1_000_000),
                found.one("add one", group_size=1_000),
            ),
            _is(1.2),
            is_most=True,
        ),
        Goal(
            "bytes per membership, 100 groups of 10,000 over 100,000 profiles",
            _bytes_per_membership,
            _is(46),
            is_most=True,
        ),
        Goal("users ingested, 100 a request, instances of 4", _ingested, _is(2_000), unit="/s"),
        Goal(
            "2,000 checks/s while 10,000 ids a call are loaded: p99",
            _milliseconds("checks under load", load="10,000 ids a call", rate=2_000),
            _twice_unloaded,
            is_most=True,
            unit=" ms",
        ),
    ]


def _is(limit: float) -> Values:
    return lambda _: [limit]


def _peak(found: Found, workload: str, subject: str = "belong") -> Measurement:
    return found.one(workload, subject, "closed", connections=32)


def _divided(ours: Measurement, theirs: Measurement) -> list[float]:
    """Give ratios; where no run has both: LookupError."""
    found = ratios(ours, theirs)
    if not found:
        raise LookupError(f"{ours.subject} and {theirs.subject} never in the same run")
    return found


def _added(who: str) -> Values:
    return lambda found: found.one(f"bulk add of {who} profiles", ids_a_call=10_000).values


def _added_by_scripts(who: str) -> Values:
    name = f"bulk add of {who} profiles"
    return lambda found: _divided(
        found.one(name, ids_a_call=10_000),
        found.one(f"{name}, scripts alone", ids_a_call=10_000),
    )


def _beside(workload: str, peer: str) -> Values:
    def values(found: Found) -> Sequence[float]:
        return _divided(_peak(found, workload), _peak(found, workload, peer))

    return values


def _peak_by_healthz(workload: str) -> Values:
    def values(found: Found) -> Sequence[float]:
        return _divided(_peak(found, workload), _peak(found, "healthz"))

    return values


def _milliseconds(workload: str, **settings: Any) -> Values:
    def values(found: Found) -> Sequence[float]:
        measured = found.one(workload, mode="open", **settings)
        return [each / MILLISECOND for each in measured.values]

    return values


def _at_half(workload: str) -> Values:
    return _milliseconds(workload, rate=AT_HALF)


def _tail(workload: str) -> Values:
    def values(found: Found) -> Sequence[float]:
        return _tails(found.one(workload, mode="open", rate=AT_HALF))

    return values


def _tails(measurement: Measurement) -> list[float]:
    details = measurement.details
    return [p99 / p50 for p99, p50 in zip(details["p99"], details["p50"], strict=True)]


def _twice_unloaded(found: Found) -> Sequence[float]:
    alone = _milliseconds("checks under load", load="none", rate=2_000)(found)
    return [max(8, 2 * statistics.median(alone))]


def _bytes_per_membership(found: Found) -> Sequence[float]:
    return found.one("bytes per membership", groups=100, size=10_000).values


def _ingested(found: Found) -> Sequence[float]:
    return found.one("ingest", users="new", of_a_household=4, of_a_bulk=100).values


def _short(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
