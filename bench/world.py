"""The world that every subject holds: groups of one size, profiles in exactly so many of them.

Made of a seed, so that it is the same in every run and on every machine. Who is in which group is
dealt like cards, from a deck that holds every group once and is shuffled anew when it is empty:
sizes come out exactly, and neighbours have no more in common than others. Belong is loaded through
its API and draws the ids of groups itself; the peers load what is given here, ids included.
"""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import click
import msgspec

from bench.calls import Caller, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bench.measurement import Subject

BASE = "/api/v1/applications/bench"
"""What the path of every request begins with, `/healthz` aside."""
WRITTEN = 10
"""So many groups, the first ones, are written to while others are read: theirs may have grown."""


class Shape(NamedTuple):
    """How large a world is. Profiles times their groups must be groups times their size."""

    groups: int
    size: int
    """Members of each group."""
    profiles: Mapping[int, int]
    """Groups of a profile -> how many profiles are in so many."""
    seed: int = 6

    @property
    def memberships(self) -> int:
        """How many there are."""
        return self.groups * self.size


FULL = Shape(groups=500, size=1_000, profiles={1: 100_000, 10: 20_000, 100: 2_000})
TINY = Shape(groups=100, size=40, profiles={1: 1_000, 10: 200, 100: 10})
"""For the smoke: what is asked is the same."""


class Group(NamedTuple):
    """A group: what is known of it, and who is in it."""

    id: str
    """A UUID, with which the peers know it. Belong draws its own: see `World.group_id`."""
    name: str
    description: str
    custom_id: str
    attributes: tuple[tuple[str, str], ...]
    members: list[int]
    """Places in `World.profiles`."""

    def body(self) -> dict[str, Any]:
        """Give what creates it: the body of `POST …/profile-groups/`."""
        return {
            "name": self.name,
            "description": self.description,
            "custom_id": self.custom_id,
            "attributes": [{"key": key, "value": value} for key, value in self.attributes],
        }


class World:
    """Groups, profiles, and who is in what. Places in the two lists are what others speak of."""

    groups: list[Group]
    """In the order of their creation."""
    profiles: list[str]
    """Their ids: UUIDs."""
    groups_of: list[list[int]]
    """Of each profile the places of its groups, ascending."""

    def __init__(self, shape: Shape) -> None:
        """Make it. A shape whose sums differ, or a profile in too many groups: ValueError."""
        wanted = sum(each * many for each, many in shape.profiles.items())
        if wanted != shape.memberships:
            message = f"{wanted:,} memberships of profiles are not {shape.memberships:,} of groups"
            raise ValueError(message)
        if max(shape.profiles) > shape.groups:
            message = f"nobody can be in {max(shape.profiles)} of {shape.groups} groups"
            raise ValueError(message)
        self.shape = shape
        draw = random.Random(shape.seed)
        numbers = [each for each, many in shape.profiles.items() for _ in range(many)]
        draw.shuffle(numbers)
        self.profiles = [_uuid(draw) for _ in numbers]
        self.groups = [_group(place, _uuid(draw)) for place in range(shape.groups)]
        self.groups_of = list(_dealt(draw, shape.groups, numbers))
        for profile, places in enumerate(self.groups_of):
            for place in places:
                self.groups[place].members.append(profile)
        self._in_groups: dict[int, list[int]] = {number: [] for number in shape.profiles}
        for profile, number in enumerate(numbers):
            self._in_groups[number].append(profile)
        self._ids: dict[tuple[str, int], list[str]] = {}

    def in_groups(self, number: int) -> list[int]:
        """Give the places of the profiles that are in exactly so many groups."""
        return self._in_groups[number]

    def is_member(self, profile: int, group: int) -> bool:
        """Say whether a profile is in a group."""
        return group in self.groups_of[profile]

    def members(self, group: int) -> list[str]:
        """Give the ids of the profiles in a group."""
        return [self.profiles[each] for each in self.groups[group].members]

    def memberships(self) -> Iterator[tuple[str, str]]:
        """Give the ids of group and profile of every membership, group by group."""
        for group in self.groups:
            for each in group.members:
                yield group.id, self.profiles[each]

    def group_id(self, subject: Subject, group: int) -> str:
        """Give the id by which a subject knows a group: a UUID everywhere."""
        drawn = self._ids.get((subject.host, subject.port))
        return drawn[group] if drawn else self.groups[group].id

    def can_count(self, group: int, count: int) -> bool:
        """Say whether a group may have so many members: those of the world, or more if written."""
        return count >= self.shape.size if group < WRITTEN else count == self.shape.size

    def load(self, subject: Subject) -> None:
        """Load everything into Belong through its API, and look whether all of it is there.

        Groups come into being one after the other, so that their order is the same everywhere. An
        answer that is not what it has to be: Refused.
        """
        drawn: list[str] = []
        with (
            Caller(subject.host, subject.port) as caller,
            click.progressbar(self.groups, label=f"loading {subject.name}", file=sys.stderr) as bar,
        ):

            def call(method: str, path: str, body: object = None) -> Any:
                sent = None if body is None else msgspec.json.encode(body)
                path = f"{BASE}/profile-groups/{path}"
                return caller.ask(subject.request(method, path, sent)).read()

            for place, group in enumerate(bar):
                drawn.append(call("POST", "", group.body())["id"])
                ids = {"profile_ids": self.members(place)}
                added = len(call("POST", f"{drawn[-1]}/members/", ids)["successfully_added"])
                found = call("GET", f"{drawn[-1]}/")["profile_count"]
                if not added == found == self.shape.size:
                    message = f"{added} of {self.shape.size} were added to a group that has {found}"
                    raise Refused(message)
        self._ids[subject.host, subject.port] = drawn


def _uuid(draw: random.Random) -> str:
    return str(UUID(int=draw.getrandbits(128), version=4))


def _group(place: int, name: str) -> Group:
    return Group(
        id=name,
        name=f"Group {place}",
        description=f"Everybody who follows team {place}",
        custom_id=f"group-{place}",
        attributes=(("kind", "team"), ("league", f"league-{place % 20}")),
        members=[],
    )


def _dealt(draw: random.Random, groups: int, numbers: list[int]) -> Iterator[list[int]]:
    """Deal so many different groups to each profile; over all, every group equally often."""
    deck: list[int] = []
    for number in numbers:
        hand, deck = deck[:number], deck[number:]
        if len(hand) < number:
            fresh = list(range(groups))
            draw.shuffle(fresh)
            # What is in the hand must not come again: it waits in the new deck.
            held = set(hand)
            taken = [each for each in fresh if each not in held][: number - len(hand)]
            hand += taken
            held = set(taken)
            deck = [each for each in fresh if each not in held]
        yield sorted(hand)
