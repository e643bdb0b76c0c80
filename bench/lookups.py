"""Lookups beside the peers: peaks, latency at half of them and at one rate for all, and ceilings.

The peak is found in a closed loop; latency is looked at in an open one, for at the peak it says
nothing but how many ask. "Bare answers" is what Python's fastest protocol gives for HTTP alone, the
store called directly what that gives: what lies between is what could still be gained. At the rate
of checks bare answers show how long a tail the machine makes by itself. `/healthz` goes through
parser and framework, which hot lookups do not; the design compares with it.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING

from bench import bare, direct, goals, questions
from bench.measurement import Sample, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.measurement import Bench, Mode, Setting, Subject
    from bench.questions import Asking
    from bench.world import World

CONNECTIONS = (1, 8, 32, 128)
"""Throughput by concurrency; 32 are those of the goals."""
PAIRS = 1_000
"""Of a request with many."""
PAIRS_REQUESTS = 50
"""Different ones: 4 MB."""
PAIRS_CONNECTIONS = 4
"""Enough that the server always has one to work on; more would only wait."""
NUMBERS = (1, 10, 100)
"""Groups of a profile."""
RATE = 200
"""Requests/s that everybody can answer, Django too, and when it has half of a core: latency beside
the peers."""
SMOKE_RATE = 100

SHARED: dict[str, Asking] = {
    "check": questions.check,
    **{f"groups of {each}": partial(questions.groups_of, number=each) for each in NUMBERS},
    "page of members": questions.members,
}
"""What everybody answers."""
OWN: dict[str, Asking] = {
    "one membership": questions.membership,
    "healthz": questions.alive,
}
"""What Belong alone is asked."""
LATENCY = ("check", "groups of 10")
"""Those whose latency is looked at beside the peers, all at one rate."""


def steps(bench: Bench) -> list[Step]:
    """Give all steps: for each thing that is asked one for each subject."""
    subjects = [*bench.subjects.values()]
    belong = subjects[0]
    made = []
    for workload, asking in SHARED.items():
        made += [_peak(bench, subject, workload, asking, bench.connections) for subject in subjects]
        # Soon after the peak: what the machine gives changes from minute to minute.
        if workload in goals.LOOKUPS:
            made.append(_at_half(bench, belong, workload))
        if workload == "check":
            made.append(_bare_at_half(bench, belong))
    made += [
        _peak(bench, belong, workload, asking, bench.connections)
        for workload, asking in OWN.items()
    ]
    made += [_pairs(bench, subject) for subject in subjects]
    made += [_bare(bench, belong), _differing(bench, belong)]
    made += _direct(bench, belong)
    made += [
        # A curve of the peers has no goal: once is enough.
        _peak(bench, subject, "check", questions.check, connections)._replace(
            runs=None if subject is belong else 1
        )
        for connections in CONNECTIONS[: 1 if bench.smoke else None]
        if connections != bench.connections
        for subject in subjects
    ]
    made += [_at_one_rate(bench, subject, workload) for workload in LATENCY for subject in subjects]
    return made


def looked_at(
    bench: Bench,
    subject: Subject,
    asked: list[questions.Question],
    measure: Callable[[list[bytes]], Sample],
) -> Sample:
    """Look at some answers, then measure; what was wrong counts among the errors."""
    many = questions.LOOKED_AT_BRIEFLY if bench.smoke else questions.LOOKED_AT
    wrong = questions.wrong(subject, asked, many)
    sample = measure(questions.requests(subject, asked))
    return sample._replace(errors=sample.errors + wrong)


def _peak(bench: Bench, subject: Subject, workload: str, asking: Asking, connections: int) -> Step:
    def measure() -> Sample:
        asked = questions.drawn(bench, subject, asking, workload)
        return looked_at(
            bench, subject, asked, partial(bench.closed, subject, connections=connections)
        )

    fixed = {"connections": connections}
    return Step(workload, subject.name, "closed", "requests/s", fixed, measure)


def _bare(bench: Bench, belong: Subject) -> Step:
    """Measure what answers fixed bytes without reading what was asked."""

    def measure() -> Sample:
        with bare.server(belong) as server:
            return bench.closed(server, _checks(bench, belong))

    fixed = {"connections": bench.connections}
    return Step("bare answers", belong.name, "closed", "requests/s", fixed, measure)


def _bare_at_half(bench: Bench, belong: Subject) -> Step:
    """Measure the latencies of the same, when as much is asked as checks at half of their peak."""

    def measure() -> Sample:
        rate = bench.peak("check", belong.name) / 2
        with bare.server(belong) as server:
            return bench.open(server, _checks(bench, belong), rate)

    fixed: dict[str, Setting] = {
        "connections": bench.connections,
        "rate": goals.AT_HALF_OF_CHECK,
    }
    return Step("bare answers", belong.name, "open", "us", fixed, measure)


def _checks(bench: Bench, belong: Subject) -> list[bytes]:
    asked = questions.drawn(bench, belong, questions.check, "check")
    return questions.requests(belong, asked)


def _differing(bench: Bench, belong: Subject) -> Step:
    """Measure checks that each bring an id and a trace of their own, as behind a proxy."""

    def marked(sent: list[bytes]) -> list[bytes]:
        draw = Random("heads")
        return [
            each.replace(
                b"\r\n",
                b"\r\nX-Request-Id: %032x\r\ntraceparent: 00-%032x-%016x-01\r\n"
                % tuple(draw.getrandbits(bits) for bits in (128, 128, 64)),
                1,
            )
            for each in sent
        ]

    def measure() -> Sample:
        asked = questions.drawn(bench, belong, questions.check, "check")
        return looked_at(bench, belong, asked, lambda sent: bench.closed(belong, marked(sent)))

    fixed = {"connections": bench.connections}
    return Step("check, heads that differ", belong.name, "closed", "requests/s", fixed, measure)


def _pairs(bench: Bench, subject: Subject) -> Step:
    connections = min(PAIRS_CONNECTIONS, bench.connections)

    def measure() -> Sample:
        asking = partial(questions.check, pairs=PAIRS)
        asked = questions.drawn(bench, subject, asking, "pairs", PAIRS_REQUESTS)
        sample = looked_at(
            bench, subject, asked, partial(bench.closed, subject, connections=connections)
        )
        return sample._replace(value=sample.value * PAIRS)

    fixed = {"connections": connections, "pairs a request": PAIRS}
    return Step("many pairs", subject.name, "closed", "pairs/s", fixed, measure)


def _at_half(bench: Bench, subject: Subject, workload: str) -> Step:
    def rate() -> float:
        return bench.peak(workload, subject.name) / 2

    return _open(bench, subject, workload, goals.AT_HALF, rate)


def _at_one_rate(bench: Bench, subject: Subject, workload: str) -> Step:
    rate = SMOKE_RATE if bench.smoke else RATE
    return _open(bench, subject, workload, rate, lambda: rate)


def _open(
    bench: Bench, subject: Subject, workload: str, said: str | int, rate: Callable[[], float]
) -> Step:
    def measure() -> Sample:
        asked = questions.drawn(bench, subject, SHARED[workload], workload)
        now = rate()
        return looked_at(bench, subject, asked, lambda sent: bench.open(subject, sent, now))

    mode: Mode = "open"
    fixed = {"connections": bench.connections, "rate": said}
    return Step(workload, subject.name, mode, "us", fixed, measure)


def _direct(bench: Bench, belong: Subject) -> list[Step]:
    """Make the ceilings of the store: with as many calls at a time as there are connections."""
    pairs = min(PAIRS_CONNECTIONS, bench.connections)
    return [
        _called(bench, belong, "check", partial(_check, number=1), bench.connections),
        _called(bench, belong, "groups of 10", _groups_of_10, bench.connections),
        _called(bench, belong, "many pairs", partial(_check, number=PAIRS), pairs, PAIRS),
    ]


def _called(
    bench: Bench,
    belong: Subject,
    workload: str,
    call: Callable[[World, Subject, Random], direct.Check | direct.GroupsOf],
    together: int,
    times: int = 1,
) -> Step:
    many = questions.FEW if bench.smoke else questions.DIFFERENT
    many = many if times == 1 else min(many, PAIRS_REQUESTS)

    def measure() -> Sample:
        draw = Random(workload)
        calls = [call(bench.world, belong, draw) for _ in range(many)]
        sample = direct.measure(belong, calls, together=together, seconds=bench.seconds)
        return sample._replace(value=sample.value * times)

    fixed = {"calls at a time": together}
    unit = "calls/s" if times == 1 else "pairs/s"
    how = "shortcut" if times == 1 else "methods"
    return Step(f"{workload}, {how} alone", belong.name, "closed", unit, fixed, measure)


def _check(world: World, subject: Subject, draw: Random, number: int) -> direct.Check:
    drawn = [questions.pair(world, draw) for _ in range(number)]
    return direct.Check(
        [world.group_id(subject, group) for _, group in drawn],
        [world.profiles[profile] for profile, _ in drawn],
        [world.is_member(profile, group) for profile, group in drawn],
    )


def _groups_of_10(world: World, _: Subject, draw: Random) -> direct.GroupsOf:
    return direct.GroupsOf(world.profiles[draw.choice(world.in_groups(10))], 10)
