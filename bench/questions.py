"""What subjects are asked: requests over the world, each with what a right answer to it is.

Everybody is asked the same in the same order, for it is drawn from a seed. Before every measurement
some of the answers are looked at, so that nobody is fast by being wrong.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import msgspec

from bench.calls import Caller, Refused
from bench.world import BASE

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.measurement import Bench, Subject
    from bench.world import World

    Asking = Callable[[World, Subject, Random], "Question"]
    """Draws a question for a subject."""

DIFFERENT = 10_000
"""Requests that are sent in turn: more than are found in caches of a processor."""
FEW = 60
"""The same for the smoke."""
LOOKED_AT = 25
"""Answers that are looked at before each measurement."""
LOOKED_AT_BRIEFLY = 5
"""The same for the smoke."""
PAGE = 100
"""Rows of a page: the longest list of a profile's groups that is asked for."""


class Question(NamedTuple):
    """A request, and whether the body of an answer, decoded, is right."""

    method: str
    path: str
    body: bytes | None
    is_right: Callable[[Any], bool]


def pair(world: World, draw: Random) -> tuple[int, int]:
    """Draw a profile and a group: in one half of the cases one that it is in."""
    profile = draw.randrange(len(world.profiles))
    if draw.random() < 0.5:
        return profile, draw.choice(world.groups_of[profile])
    return profile, draw.randrange(len(world.groups))


def check(world: World, subject: Subject, draw: Random, pairs: int = 1) -> Question:
    """Whether profiles are in groups; half of them are."""
    asked = [pair(world, draw) for _ in range(pairs)]
    expected = [world.is_member(profile, group) for profile, group in asked]
    body = {
        "pairs": [
            {"profile_id": world.profiles[profile], "group_id": world.group_id(subject, group)}
            for profile, group in asked
        ]
    }
    return Question(
        "POST",
        f"{BASE}/memberships/check/",
        msgspec.json.encode(body),
        lambda found: found["results"] == expected,
    )


def groups_of(world: World, subject: Subject, draw: Random, number: int | None = None) -> Question:
    """Which groups a profile is in, with the counts of their members: of anybody, or of many."""
    profile = (
        draw.randrange(len(world.profiles))
        if number is None
        else draw.choice(world.in_groups(number))
    )
    places = world.groups_of[profile]
    expected = {world.group_id(subject, each): each for each in places}

    def is_right(found: Any) -> bool:
        rows = found["results"]
        return (
            found["count"] == len(rows) == len(expected)
            and {row["group_id"] for row in rows} == expected.keys()
            and all(
                row["group_name"] == world.groups[expected[row["group_id"]]].name
                and world.can_count(expected[row["group_id"]], row["profile_count"])
                for row in rows
            )
        )

    path = f"{BASE}/profiles/{world.profiles[profile]}/profile-groups/?page_size={PAGE}"
    return Question("GET", path, None, is_right)


def members(world: World, subject: Subject, draw: Random, page: int = PAGE) -> Question:
    """Who is in a group: the first page."""
    group = draw.randrange(len(world.groups))

    def is_right(found: Any) -> bool:
        ids = {row["id"] for row in found["results"]}
        fresh = found["count"] - world.shape.size
        return (
            world.can_count(group, found["count"])
            and len(ids) == len(found["results"]) == min(page, found["count"])
            and len(ids - set(world.members(group))) <= fresh
        )

    path = f"{BASE}/profile-groups/{world.group_id(subject, group)}/members/?page_size={page}"
    return Question("GET", path, None, is_right)


def membership(world: World, subject: Subject, draw: Random) -> Question:
    """One membership that exists."""
    profile = draw.randrange(len(world.profiles))
    group = draw.choice(world.groups_of[profile])
    path = (
        f"{BASE}/profile-groups/{world.group_id(subject, group)}/members/{world.profiles[profile]}/"
    )
    return Question("GET", path, None, lambda found: found["id"] == world.profiles[profile])


def group(world: World, subject: Subject, draw: Random) -> Question:
    """One group, with the count of its members."""
    place = draw.randrange(len(world.groups))
    its_id = world.group_id(subject, place)

    def is_right(found: Any) -> bool:
        return (
            found["id"] == its_id
            and found["name"] == world.groups[place].name
            and world.can_count(place, found["profile_count"])
        )

    return Question("GET", f"{BASE}/profile-groups/{its_id}/", None, is_right)


def alive(_: World, __: Subject, ___: Random) -> Question:
    """Nothing but whether the server answers: what HTTP alone costs it."""
    return Question("GET", "/healthz", None, bool)


def drawn(
    bench: Bench, subject: Subject, asking: Asking, seed: str, many: int = DIFFERENT
) -> list[Question]:
    """Draw what is asked of a subject in one measurement: of everybody the same."""
    draw = Random(seed)
    return [
        asking(bench.world, subject, draw) for _ in range(min(many, FEW) if bench.smoke else many)
    ]


def requests(subject: Subject, asked: list[Question]) -> list[bytes]:
    """Give them as they go over the wire."""
    return [subject.request(each.method, each.path, each.body) for each in asked]


def wrong(subject: Subject, asked: list[Question], many: int = LOOKED_AT) -> int:
    """Ask so many of these, and count answers that are none or wrong; the first is shown."""
    found = 0
    with Caller(subject.host, subject.port) as caller:
        for each in asked[:many]:
            answer = caller.ask(subject.request(each.method, each.path, each.body))
            try:
                is_right = each.is_right(answer.read())
            except (Refused, msgspec.DecodeError, KeyError, TypeError):
                is_right = False
            if not is_right:
                if not found:
                    said = f"{answer.status} {answer.body[:300].decode(errors='replace')}"
                    click.echo(
                        f"wrong: {subject.name}: {each.method} {each.path}: {said}", err=True
                    )
                found += 1
    return found
