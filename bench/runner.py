"""Runs the bench: starts the subjects, loads the world into them, measures step by step.

In every run each step is measured once; the same thing is asked of one subject after the other, and
who comes first changes from run to run, so that what the machine does meanwhile hits all of them.
This is the one place that knows which workloads there are.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from functools import partial
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
from bench.settling import rest
from bench.world import FULL, TINY, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from hdrh.histogram import HdrHistogram

    from bench.against import Other
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
WARM_UP, LONGEST_WARM_UP = 0.2, 1.0
"""Of the seconds of a sample, and in seconds: what is added before, and cut."""
TOLD_SECONDS = 20.0
"""How often it is told how long the rest takes."""
LOOP_TAKES, OTHER_TAKES = 1.0, 4.0
"""Of a step that was not measured yet: seconds beyond its loop; where it has none, so many times
those of one."""


class Settings(NamedTuple):
    """What somebody who runs the bench may choose."""

    only: tuple[str, ...] = ()
    runs: int = 3
    seconds: float = 4.0
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
        self.stolen: dict[int, float] = {}
        """Of each core the share of the time of all steps in which the machine had it not."""
        self.known: list[Step] = []
        """All steps that there are: those that are not run, too."""
        self._run = 0
        self._took: dict[str, float] = {}
        """Seconds that each step took the last time."""
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
        """Give what the closed loop of a workload gives in this run, with the usual connections.

        Where that was not measured in this run yet, it is now. None, or it fails: LookupError.
        """
        for step in self.known:
            closed = (step.workload, step.subject, step.mode) == (workload, subject, "closed")
            if closed and step.settings.get("connections") == self.connections:
                found = self._value(step)
                if found is None:
                    self._measure(step)
                    found = self._value(step)
                if found is not None:
                    return found
        raise LookupError(f"no closed loop of {workload!r} by {subject} in this run")

    def _value(self, step: Step) -> float | None:
        """Give what a step gave in this run."""
        made = self.measurements.get(name(step))
        return made.by_run().get(self._run) if made else None

    def run(self, steps: list[Step]) -> None:
        """Measure all steps as often as they are to be. Ctrl-C: what there is stays."""
        plan = list(self._plan(steps))
        before = serving.core_times()
        told = time.monotonic()
        with click.progressbar(
            plan,
            file=sys.stderr,
            label="measuring",
            show_eta=False,
            item_show_func=lambda each: name(each[1]) if each else "",
        ) as bar:
            rested = None
            for at, (self._run, step) in enumerate(bar):
                began = time.monotonic()
                try:
                    if self._run != rested:
                        rested = self._run
                        rest(self)
                    self._measure(step)
                except KeyboardInterrupt:
                    self.interrupted = True
                    _say("interrupted: what was measured until now is kept")
                    break
                now = time.monotonic()
                self._took[name(step)] = now - began
                if now > told + TOLD_SECONDS:
                    told = now
                    left = sum(self._takes(each) for _, each in plan[at + 1 :])
                    _say(f"{at + 1} of {len(plan)} steps, about {left / 60:.0f} minutes left")
        self.stolen = serving.stolen(before)

    def _takes(self, step: Step) -> float:
        """Estimate the seconds of a step: as many as the last time."""
        guess = OTHER_TAKES * self.seconds
        if step.mode != "once":
            seconds = float(step.settings.get("seconds", self.seconds))
            guess = seconds + _warm_up(seconds) + LOOP_TAKES
        return self._took.get(name(step), guess)

    def _plan(self, steps: list[Step]) -> Iterable[tuple[int, Step]]:
        """Say in which run what is measured: the same of all subjects one after the other."""
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
                        yield run, step

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
            )
        made.values.append(sample.value)
        made.runs.append(self._run)
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
            subject.host, subject.port, requests, connections, seconds, _warm_up(seconds), rate
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


def _warm_up(seconds: float) -> float:
    return min(WARM_UP * seconds, LONGEST_WARM_UP)


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


def chosen(runner: Runner, only: tuple[str, ...], other: Other | None = None) -> list[Step]:
    """Make the steps that were asked for, by the name of a module or of a workload.

    A name that is neither: click.UsageError, which says what there is.
    """
    made = {
        module: against.of_both(runner, other, partial(make, runner)) if other else make(runner)
        for module, make in WORKLOADS.items()
    }
    runner.known = [step for steps in made.values() for step in steps]
    known = {*made, *(step.workload for step in runner.known)}
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
        subjects, other = _started(stack, settings, world)
        runner = Runner(settings, world, subjects)
        if settings.peers and not settings.against:
            runner.notes += [
                f"{each} is left out: {why}" for each in peers.NAMES if (why := peers.missing(each))
            ]
        runner.run(chosen(runner, settings.only, other))
        return runner


def _started(
    stack: ExitStack, settings: Settings, world: World
) -> tuple[dict[str, Subject], Other | None]:
    """Start all subjects, and load the world into them; ours is the first.

    Another commit is none of them: it takes our place.
    """
    ours = serving.subject(stack.enter_context(serving.server(1)))
    world.load(ours)
    subjects: dict[str, Subject] = {ours.name: ours}
    if settings.against:
        name, tree = stack.enter_context(against.worktree(settings.against))
        with serving.program_of(tree):
            subject = serving.subject(stack.enter_context(serving.server(1)), name)
        world.load(subject)
        return subjects, against.Other(subject, tree)
    if settings.peers:
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="belong-bench-"))
        subjects |= stack.enter_context(peers.peers(world, Path(place)))
    return subjects, None
