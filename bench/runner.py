"""Runs the bench: starts the subjects, loads the world into them, measures step by step.

In every run each step is measured once; the same thing is asked of one subject after the other, and
who comes first changes from run to run, so that what the machine does meanwhile hits all of them.
This is the one place that knows which workloads there are.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from bench import (
    against,
    dynamic,
    ingest,
    load,
    lookups,
    memory,
    peers,
    serving,
    social,
    start,
    underload,
    writes,
    wrk,
)
from bench.measurement import Measurement, Sample
from bench.world import FULL, TINY, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from hdrh.histogram import HdrHistogram

    from bench.load import Job, Outcome
    from bench.measurement import Bench, Step, Subject

WORKLOADS: dict[str, Callable[[Bench], list[Step]]] = {
    "lookups": lookups.steps,
    "social": social.steps,
    "writes": writes.steps,
    "underload": underload.steps,
    "ingest": ingest.steps,
    "dynamic": dynamic.steps,
    "memory": memory.steps,
    "start": start.steps,
}
"""Every module that measures, in the order in which they do."""
WARM_UP = 0.2
"""Of the seconds of a sample: what is added before, and cut."""


class Settings(NamedTuple):
    """What somebody who runs the bench may choose."""

    only: tuple[str, ...] = ()
    runs: int = 3
    seconds: float = 5.0
    connections: int = 32
    peers: bool = True
    large: bool = False
    smoke: bool = False
    against: str = ""
    """Another commit to be beside the present tree, in the place of the peers."""


class Failure(NamedTuple):
    """A step that gave nothing: it is told at the end, and the bench exits with 1."""

    step: str
    why: str


class Runner:
    """The bench that workloads see (`measurement.Bench`), and what has been measured until now."""

    def __init__(self, settings: Settings, world: World, subjects: Mapping[str, Subject]) -> None:
        """Take what was started already."""
        self.world = world
        self.subjects = subjects
        self.seconds = settings.seconds
        self.connections = settings.connections
        self.large = settings.large
        self.smoke = settings.smoke
        self.settings = settings
        self.measurements: dict[str, Measurement] = {}
        self.failures: list[Failure] = []
        self.interrupted = False
        self.notes: list[str] = []
        self.clients: set[str] = set()
        """With what closed loops were made."""
        self._histograms: dict[str, HdrHistogram] = {}

    def closed(
        self, subject: Subject, requests: list[bytes], *, connections: int | None = None
    ) -> Sample:
        """Send prepared requests in turn, as fast as answers come: requests/s."""
        job = self._job(subject, requests, connections or self.connections, self.seconds)
        by_wrk = wrk.can(job)
        self.clients.add(f"wrk {wrk.version()}" if by_wrk else "the built-in client")
        outcome, details = self._measured(subject, job, wrk.run if by_wrk else load.run)
        histogram = outcome.histogram()
        details |= _percentiles(histogram)
        value = outcome.answered / outcome.seconds
        return Sample(value, outcome.errors, outcome.unsent, histogram, details)

    def open(
        self, subject: Subject, requests: list[bytes], rate: float, *, seconds: float | None = None
    ) -> Sample:
        """Send prepared requests in turn at a fixed rate; the value is the p99 in us.

        Latencies count from the moment at which a request was due.
        """
        if rate <= 0:
            raise ValueError(f"a rate of {rate} is none")
        job = self._job(subject, requests, self.connections, seconds or self.seconds, rate)
        outcome, details = self._measured(subject, job, load.run)
        histogram = outcome.histogram()
        details |= _percentiles(histogram)
        details |= {"asked rate": rate, "achieved rate": outcome.answered / outcome.seconds}
        return Sample(details["p99"], outcome.errors, outcome.unsent, histogram, details)

    def peak(self, workload: str, subject: str) -> float:
        """Give the median of what the closed loop of a workload has given until now.

        Of several that with the usual number of connections, else the highest. None yet:
        LookupError.
        """
        found = [
            (each.settings.get("connections") == self.connections, statistics.median(each.values))
            for each in self.measurements.values()
            if (each.workload, each.subject, each.mode) == (workload, subject, "closed")
        ]
        if not found:
            raise LookupError(f"no closed loop of {workload!r} by {subject} was measured yet")
        return max(found)[1]

    def run(self, steps: list[Step]) -> None:
        """Measure all steps as often as they are to be. Ctrl-C: what there is stays."""
        plan = list(self._plan(steps))
        with click.progressbar(
            plan,
            file=sys.stderr,
            label="measuring",
            item_show_func=lambda each: name(each) if each else "",
        ) as bar:
            for step in bar:
                try:
                    self._measure(step)
                except KeyboardInterrupt:
                    self.interrupted = True
                    _say("interrupted: what was measured until now is kept")
                    break

    def _plan(self, steps: list[Step]) -> Iterable[Step]:
        """Say what is measured in which order: the same of all subjects next to each other."""
        alike: dict[str, list[Step]] = {}
        for step in steps:
            alike.setdefault(name(step._replace(subject="")), []).append(step)
        most = 1 if self.smoke else self.settings.runs
        times = {name(each): most if self.smoke else each.runs or most for each in steps}
        for run in range(max(times.values(), default=0)):
            for group in alike.values():
                first = run % len(group)
                for step in group[first:] + group[:first]:
                    if run < times[name(step)]:
                        yield step

    def _measure(self, step: Step) -> None:
        key = name(step)
        try:
            sample = step.measure()
        # One workload that fails must not cost what the others measure.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            self.failures.append(Failure(key, f"{type(error).__name__}: {error}"))
            _say(f"FAILED {key}: {type(error).__name__}: {error}")
            return
        made = self.measurements.get(key)
        if made is None:
            made = self.measurements[key] = Measurement(
                workload=step.workload,
                subject=step.subject,
                mode=step.mode,
                unit=step.unit,
                settings=dict(step.settings),
                values=[],
                details={},
            )
        made.values.append(sample.value)
        made.errors += sample.errors
        made.unsent += sample.unsent
        for detail, value in sample.details.items():
            made.details.setdefault(detail, []).append(value)
        if sample.histogram is not None:
            together = self._histograms.setdefault(key, load.histogram({}))
            together.add(sample.histogram)
            made.histogram = together.encode().decode()
        _say(
            f"{key}: {sample.value:,.4g} {step.unit}"
            + (f", {sample.errors:,} ERRORS" if sample.errors else "")
            + (f", {sample.unsent:,} unsent" if sample.unsent else "")
        )

    def _job(
        self,
        subject: Subject,
        requests: list[bytes],
        connections: int,
        seconds: float,
        rate: float | None = None,
    ) -> load.Job:
        return load.Job(
            subject.host, subject.port, requests, connections, seconds, WARM_UP * seconds, rate
        )

    def _measured(
        self, subject: Subject, job: Job, make: Callable[[Job], Outcome]
    ) -> tuple[Outcome, dict[str, float]]:
        """Make load, and give with what came of it the processor time of each request, in us."""
        parts = {"api us": subject.api, "store us": subject.store}
        before = {part: _spent(pid) for part, pid in parts.items() if pid}
        outcome = make(job)
        sent = max(1, outcome.sent)
        details = {}
        for part, was in before.items():
            now = _spent(parts[part] or 0)
            spent = sum(seconds - was[pid] for pid, seconds in now.items() if pid in was)
            details[part] = 1e6 * spent / sent
        details["client us"] = 1e6 * outcome.client_seconds / sent
        details["client load"] = outcome.client_seconds / outcome.lasted
        if outcome.example:
            _say(f"{subject.name}, the first error: {outcome.example}")
        return outcome, details


def name(step: Step | Measurement) -> str:
    """Name a step so that no other has that name."""
    fixed = ", ".join(f"{key} {value}" for key, value in step.settings.items())
    return " · ".join(filter(None, (step.workload, step.subject, step.mode, step.unit, fixed)))


def _spent(pid: int) -> dict[int, float]:
    """Give the processor time of a process and of those below it: PostgreSQL works in them."""
    found = {}
    for each in (pid, *serving.children(pid)):
        with suppress(OSError):  # It may be gone: stores fork to write their logs anew.
            found[each] = serving.cpu_seconds(each)
    return found


def _percentiles(histogram: HdrHistogram) -> dict[str, float]:
    return {
        f"p{each}": float(histogram.get_value_at_percentile(each)) for each in (50, 99, 99.9)
    } | {"max": float(histogram.get_max_value())}


def _say(line: str) -> None:
    """Print a line for somebody who watches; on a terminal it takes the place of the bar."""
    click.echo(f"\r\x1b[K{line}" if sys.stderr.isatty() else line, err=True)


def chosen(runner: Runner, only: tuple[str, ...]) -> list[Step]:
    """Make the steps that were asked for, by the name of a module or of a workload.

    A name that is neither: click.UsageError, which says what there is.
    """
    made = {module: steps(runner) for module, steps in WORKLOADS.items()}
    known = {*made, *(step.workload for steps in made.values() for step in steps)}
    unknown = [each for each in only if each not in known]
    if unknown:
        raise click.UsageError(f"{unknown[0]!r} is none of: {', '.join(sorted(known))}")
    return [
        step
        for module, steps in made.items()
        for step in steps
        if not only or module in only or step.workload in only
    ]


def run(settings: Settings) -> Runner:
    """Start what is to be measured, and measure it. What is started is stopped in any case.

    Ctrl-C while steps are measured ends that, and what there is stays; at any other time it is a
    KeyboardInterrupt.
    """
    with ExitStack() as stack:
        serving.pin(os.getpid(), serving.OTHER_CORE)
        if not serving.PINNED:
            _say("nothing is pinned: one core, no choice of cores, or the smoke")
        world = World(TINY if settings.smoke else FULL)
        subjects = _started(stack, settings, world)
        runner = Runner(settings, world, subjects)
        if settings.peers and not settings.against:
            runner.notes += [
                f"{each} is left out: {why}" for each in peers.NAMES if (why := peers.missing(each))
            ]
        steps = chosen(runner, settings.only)
        runner.run(against.shared(steps) if settings.against else steps)
        return runner


def _started(stack: ExitStack, settings: Settings, world: World) -> dict[str, Subject]:
    """Start all subjects, and load the world into them; ours is the first."""
    ours = serving.subject(stack.enter_context(serving.server(1)))
    world.load(ours)
    subjects: dict[str, Subject] = {ours.name: ours}
    if settings.against:
        name, folder = stack.enter_context(against.worktree(settings.against))
        other = serving.subject(stack.enter_context(serving.server(1, folder)), name)
        world.load(other)
        subjects[name] = other
    elif settings.peers:
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="belong-bench-"))
        subjects |= stack.enter_context(peers.peers(world, Path(place)))
    return subjects
