"""A mix as a social network reads it, with the published shares of Facebook's TAO.

N. Bronson et al., "TAO: Facebook's Distributed Data Store for the Social Graph", USENIX ATC 2013,
figure 3: of all requests 99.8 % read, and of those so many are of each kind. A group is an object,
a membership an association, and what they ask of TAO is here

- `assoc_range`, a list of associations: the groups of a profile, drawn from all profiles, so most
  are in one, some in ten, few in a hundred;
- `obj_get`, an object: a group;
- `assoc_get`, whether there is an association: a check of one pair;
- `assoc_count`: how many members a group has, read from a page with one row;
- `assoc_time_range`, associations of a time: nobody here keeps members by time, so it is a page of
  a group's members as they come;
- a write: one profile, new to everybody, is added to a group that others read meanwhile.

Requests are sent again and again, and by wrk from the first on after its warm-up. So that a write
stays one, the last twelve digits of its profile's id are written when it is sent: the number of
the load, of which wrk's warm-up is one and its run another, and how many requests that has sent
over all of its connections.

What it is not: groups and profiles are drawn evenly, and TAO's traffic has favourites; TAO's
answers come from caches and may be old, these may not.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import msgspec

from bench import questions
from bench.load import NEW
from bench.lookups import looked_at
from bench.measurement import Sample, Step
from bench.world import BASE, WRITTEN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from bench.measurement import Bench, Setting, Subject
    from bench.questions import Asking, Question
    from bench.world import World

NAME = "social mix"
MANY = 20_000
"""Requests that are sent in turn: 40 of them write."""
READS = 0.998
ROW = 20
"""Rows of a page of members."""


class Kind(NamedTuple):
    """A kind of read: which share of all reads it has, and how it is asked."""

    name: str
    share: float
    asking: Asking


KINDS = (
    Kind("range", 0.409, questions.groups_of),
    Kind("object", 0.289, questions.group),
    Kind("check", 0.157, questions.check),
    Kind("count", 0.117, partial(questions.members, page=1)),
    Kind("time range", 0.028, partial(questions.members, page=ROW)),
)


def mix(world: World, subject: Subject, draw: Random) -> Question:
    """Draw one request of the mix."""
    if draw.random() >= READS:
        return added(world, subject, draw)
    [kind] = draw.choices(KINDS, [each.share for each in KINDS])
    return kind.asking(world, subject, draw)


def added(world: World, subject: Subject, draw: Random) -> Question:
    """Add a profile that nobody knows to one of the groups that may be written."""
    group = world.group_id(subject, draw.randrange(WRITTEN))
    fresh = str(UUID(int=draw.getrandbits(128), version=4))[: -len(NEW)] + NEW

    def is_right(found: dict[str, list[str]]) -> bool:
        return fresh in found["successfully_added"]

    body = msgspec.json.encode({"profile_ids": [fresh]})
    return questions.Question("POST", f"{BASE}/profile-groups/{group}/members/", body, is_right)


def steps(bench: Bench) -> list[Step]:
    """Give the peak and, at half of it, the latency."""
    return [
        make(bench, subject) for make in (_peak, _at_half) for subject in bench.subjects.values()
    ]


def _peak(bench: Bench, subject: Subject) -> Step:
    times = itertools.count()

    def measure() -> Sample:
        asked = _asked(bench, subject, "peak", times)
        return looked_at(bench, subject, asked, partial(bench.closed, subject))

    fixed = {"connections": bench.connections}
    return Step(NAME, subject.name, "closed", "requests/s", fixed, measure)


def _at_half(bench: Bench, subject: Subject) -> Step:
    times = itertools.count()

    def measure() -> Sample:
        asked = _asked(bench, subject, "half", times)
        rate = bench.peak(NAME, subject.name) / 2
        return looked_at(bench, subject, asked, lambda sent: bench.open(subject, sent, rate))

    fixed: dict[str, Setting] = {"connections": bench.connections, "rate": "half of the peak"}
    return Step(NAME, subject.name, "open", "us", fixed, measure)


def _asked(bench: Bench, subject: Subject, what: str, times: Iterator[int]) -> list[Question]:
    # In each run others: writes that are looked at go out as they are, and must be new, too.
    return questions.drawn(bench, subject, mix, f"{NAME} {what} {next(times)}", MANY)
