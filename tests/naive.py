"""Group Identity as it is written down, recomputed from all facts at every question.

Facts are logs in the order of their arrival: attribute writes with their times, deletions,
erasures, definitions. Nothing derived is kept. Values are a text, None (a tag) or a list of texts;
sums are fractions. Written from the rules (design 3.2 and 6.2, tables 2.2 to 2.6 of the wire
document) and not from the code that it judges: it shares neither functions nor structs with it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Context, Decimal, Inexact
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Value = str | list[str] | None


class _Gone:
    def __repr__(self) -> str:
        return "GONE"


GONE = _Gone()
"""What a deletion writes."""

RESERVED = {
    "$age", "$firstname", "$lastname", "$gender", "$mobile", "$address", "$city", "$state", "$zip",
    "$country",
}  # fmt: skip
NUMBER = re.compile(r"-?[0-9]{1,30}(\.[0-9]{1,15})?")


@dataclass(frozen=True)
class Kept:
    """An attribute that a user has: when it was last written, and since when it has this value."""

    value: Value
    time_us: int
    since_us: int


@dataclass(eq=False)
class User:
    """A profile. `mixed` is what its id is inside the store; it breaks the last ties."""

    mixed: bytes
    mpid: int | None = None
    writes: list[tuple[str, Value | _Gone, int]] = field(default_factory=list)

    def write(self, name: str, value: Value | _Gone, time_us: int) -> None:
        """Note what has arrived, as late as it may be."""
        self.writes.append((stored_name(name), value, time_us))

    def kept(self, name: str) -> Kept | None:
        """What is in force: the latest time wins, of equal times the later arrival."""
        wanted = stored_name(name)
        value: Value | _Gone = GONE
        time_us, since_us = -1, -1
        for each, written, at_us in self.writes:
            if each != wanted or at_us < time_us:
                continue
            if GONE in (value, written) or shown(written) != shown(value):
                since_us = at_us
            value, time_us = written, at_us
        return None if isinstance(value, _Gone) else Kept(value, time_us, since_us)

    @property
    def latest_us(self) -> int:
        """The latest time of any write."""
        return max((at_us for _, _, at_us in self.writes), default=0)

    @property
    def names(self) -> set[str]:
        """The names of what the user has."""
        return {name for name, _, _ in self.writes if self.kept(name) is not None}

    @property
    def attributes(self) -> dict[str, Value]:
        """What the user has: name -> value."""
        return {name: held.value for name in self.names if (held := self.kept(name))}


@dataclass(frozen=True)
class Share:
    """One attribute that a definition shares. `born` changes when its type does."""

    id: str
    type: str
    born: int = 0


@dataclass(frozen=True)
class Group:
    """A definition. `number` changes when its source does."""

    id: str
    source: str
    shares: tuple[Share, ...] = ()
    number: int = 0


@dataclass(frozen=True)
class Outcome:
    """What an aggregation gives: the value, who decided it, since when, and how many did not fit.

    `by` and `set_at_us` are None where all count alike.
    """

    value: str | list[str]
    by: User | None = None
    set_at_us: int | None = None
    conflicts: int = 0


@dataclass(frozen=True)
class Household:
    """An instance: everybody who shares the value, in their order, and the first of them."""

    group: Group
    value: str
    everybody: tuple[User, ...]
    counted: tuple[User, ...]
    values: dict[str, Outcome]

    @property
    def excluded(self) -> int:
        """How many are over the limit."""
        return len(self.everybody) - len(self.counted)


@dataclass
class World:
    """One environment: users, and what groups them."""

    users: list[User] = field(default_factory=list)
    groups: tuple[Group, ...] = ()
    limit: int = 10

    def households(self) -> dict[tuple[str, str], Household]:
        """Every instance there is, by definition id and value."""
        found = {}
        for group in self.groups:
            sharing: dict[str, list[User]] = {}
            for user in self.users:
                value = shared(user, group)
                if value is not None:
                    sharing.setdefault(value, []).append(user)
            for value, users in sharing.items():
                everybody = tuple(sorted(users, key=lambda user: seniority(user, group)))
                counted = everybody[: self.limit]
                values = {
                    each.id: outcome
                    for each in group.shares
                    if (outcome := aggregate(each, counted)) is not None
                }
                found[group.id, value] = Household(group, value, everybody, counted, values)
        return found

    def inherited(self, user: User) -> dict[str, str | list[str]]:
        """What a user has of others, by the names under which it is seen."""
        return {
            f"{household.group.id}:{name}": outcome.value
            for household in self.households().values()
            if user in household.counted
            for name, outcome in household.values.items()
        }


class Workspace:
    """Definitions and settings of one application, and what is made of them at each run.

    In real time what is seen follows facts at once, but what a definition changed only with the
    run after it. Weekly all of it follows facts as they were at the last run; who was erased since
    is gone all the same.
    """

    def __init__(self, limit: int = 10) -> None:
        self.users: dict[str, list[User]] = {"production": [], "development": []}
        self.groups: tuple[Group, ...] = ()
        self.limit = limit
        self.weekly = False
        self._last = 0
        self._run = 0
        self._seen: dict[str, World] = {name: World() for name in self.users}

    def define(self, group_id: str, source: str, shares: Iterable[tuple[str, str]]) -> None:
        """Create a definition, or make one what this says; as PUT does."""
        self._last += 1
        old = next((each for each in self.groups if each.id == group_id), None)
        had = {each.id: each for each in old.shares} if old else {}
        moved = old is None or stored_name(old.source) != stored_name(source)
        new = Group(
            group_id,
            source,
            tuple(
                had[name] if name in had and had[name].type == kind and not moved
                else Share(name, kind, self._last)
                for name, kind in shares
            ),
            self._last if old is None or moved else old.number,
        )  # fmt: skip
        self.groups = (*(each for each in self.groups if each.id != group_id), new)

    def drop(self, group_id: str) -> None:
        """Delete a definition."""
        self.groups = tuple(each for each in self.groups if each.id != group_id)

    def run(self) -> None:
        """Run the job: look at everybody, with what is defined now."""
        self._seen = {
            name: World(
                [replace(user, writes=list(user.writes)) for user in users],
                self.groups,
                self.limit,
            )
            for name, users in self.users.items()
        }

    def erase(self, environment: str, user: User) -> None:
        """Take a user away, and all that was said of them."""
        self.users[environment].remove(user)
        seen = self._seen[environment].users
        seen[:] = [each for each in seen if each.mixed != user.mixed]

    def world(self, environment: str) -> World:
        """What is to be seen now in an environment."""
        seen = self._seen[environment]
        current = {each.number: each for each in self.groups}
        known = {each.number: each for each in seen.groups}
        groups = tuple(
            replace(
                current[number],
                shares=tuple(each for each in current[number].shares if each in group.shares),
            )
            for number, group in known.items()
            if number in current
        )
        if self.weekly:
            return World(seen.users, groups, seen.limit)
        return World(self.users[environment], groups, seen.limit)


def stored_name(name: str) -> str:
    """The ten reserved names mean the same in any case; all others are what they are."""
    return name.lower() if name.lower() in RESERVED else name


def shown(value: Value | _Gone) -> str:
    """A value as the Profile Groups face shows it."""
    assert not isinstance(value, _Gone)
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def shared(user: User, group: Group) -> str | None:
    """The text that makes a user one of an instance: no tag, no list, not empty (2.4)."""
    held = user.kept(group.source)
    if held is None or not isinstance(held.value, str) or not held.value:
        return None
    return held.value


def seniority(user: User, group: Group) -> tuple[int, bool, int, bytes]:
    """Who joined first comes first, then the smaller mpid; those without one last (2.3)."""
    held = user.kept(group.source)
    assert held is not None
    return held.since_us, user.mpid is None, user.mpid or 0, user.mixed


def plain(number: Fraction) -> str:
    """A number in decimal digits, all of them, without exponent and trailing zeros."""
    exact = Context(prec=400, traps=[Inexact])
    text = f"{exact.divide(Decimal(number.numerator), Decimal(number.denominator)):f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text


def average_of(numbers: Sequence[Fraction]) -> str:
    """The mean: at most 10 decimals, half-even, by whole numbers alone."""
    scaled = sum(numbers, Fraction(0)) / len(numbers) * 10**10
    whole = scaled.numerator // scaled.denominator
    rest = scaled - whole
    if rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2):
        whole += 1
    return plain(Fraction(whole, 10**10))


def when(time_us: int) -> str:
    """A time as it is shown: ISO 8601, milliseconds, Z."""
    at = datetime.fromtimestamp(time_us // 1000 / 1000, UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{time_us // 1000 % 1000:03d}Z"


def aggregate(share: Share, members: Sequence[User]) -> Outcome | None:
    """One attribute of all that count; None: the instance does not have it (2.6)."""
    held = [(user, kept) for user in members if (kept := user.kept(share.id)) is not None]
    found: Any = AGGREGATIONS[share.type](members, held)
    assert found is None or isinstance(found, Outcome)
    return found


Held = list[tuple[User, Kept]]


def _truths(held: Held) -> tuple[list[tuple[bool, User, Kept]], int]:
    """What is true or false, in any case, and how many are neither; tags are nothing."""
    truths = [
        (kept.value.lower() == "true", user, kept)
        for user, kept in held
        if isinstance(kept.value, str) and kept.value.lower() in ("true", "false")
    ]
    tags = sum(kept.value is None for _, kept in held)
    return truths, len(held) - tags - len(truths)


def _latest(members: Sequence[User], held: Held) -> Outcome | None:
    there = [(user, kept) for user, kept in held if kept.value is not None]
    if not there:
        return None
    user, kept = min(
        there,
        key=lambda each: (-each[1].time_us, each[0].mpid is None, each[0].mpid or 0, each[0].mixed),
    )
    assert kept.value is not None
    return Outcome(kept.value, user, kept.time_us)


def _boolean_or(members: Sequence[User], held: Held) -> Outcome:
    truths, conflicts = _truths(held)
    for truth, user, kept in truths:
        if truth:
            return Outcome("true", user, kept.time_us, conflicts)
    return Outcome("false", conflicts=conflicts)


def _boolean_and(members: Sequence[User], held: Held) -> Outcome:
    """False as soon as one member is not true; who says so first is who has another value."""
    truths, conflicts = _truths(held)
    true = [user for truth, user, _ in truths if truth]
    if len(true) == len(members):
        return Outcome("true", conflicts=conflicts)
    for user, kept in held:
        if kept.value is not None and user not in true:
            return Outcome("false", user, kept.time_us, conflicts)
    return Outcome("false", conflicts=conflicts)


def _numbers(held: Held) -> tuple[list[tuple[Fraction, User, Kept]], int]:
    """The numbers among the values, and how many are none; tags are neither."""
    numbers = [
        (Fraction(kept.value), user, kept)
        for user, kept in held
        if isinstance(kept.value, str) and NUMBER.fullmatch(kept.value)
    ]
    tags = sum(kept.value is None for _, kept in held)
    return numbers, len(held) - tags - len(numbers)


def _sum(members: Sequence[User], held: Held) -> Outcome | None:
    numbers, conflicts = _numbers(held)
    if not numbers:
        return None
    total = sum((number for number, _, _ in numbers), Fraction(0))
    return Outcome(plain(total), conflicts=conflicts)


def _average(members: Sequence[User], held: Held) -> Outcome | None:
    numbers, conflicts = _numbers(held)
    if not numbers:
        return None
    return Outcome(average_of([number for number, _, _ in numbers]), conflicts=conflicts)


def _min(members: Sequence[User], held: Held) -> Outcome | None:
    return _extreme(held, 1)


def _max(members: Sequence[User], held: Held) -> Outcome | None:
    return _extreme(held, -1)


def _extreme(held: Held, sign: int) -> Outcome | None:
    numbers, conflicts = _numbers(held)
    if not numbers:
        return None
    best = min(numbers, key=lambda each: sign * each[0])
    return Outcome(plain(best[0]), best[1], best[2].time_us, conflicts)


def _texts(held: Held) -> list[str]:
    """All texts, those of lists one by one, in order; tags are nothing."""
    found = []
    for _, kept in held:
        if isinstance(kept.value, list):
            found += kept.value
        elif kept.value is not None:
            found.append(kept.value)
    return found


def _count(members: Sequence[User], held: Held) -> Outcome:
    return Outcome(str(sum(kept.value is not None for _, kept in held)))


def _count_distinct(members: Sequence[User], held: Held) -> Outcome:
    return Outcome(str(len(set(_texts(held)))))


def _unique_list(members: Sequence[User], held: Held) -> Outcome | None:
    found: list[str] = []
    for text in _texts(held):
        if text not in found:
            found.append(text)
    return Outcome(found) if found else None


AGGREGATIONS = {
    "latest": _latest,
    "boolean_or": _boolean_or,
    "boolean_and": _boolean_and,
    "sum": _sum,
    "average": _average,
    "min": _min,
    "max": _max,
    "count": _count,
    "count_distinct": _count_distinct,
    "unique_list": _unique_list,
}
