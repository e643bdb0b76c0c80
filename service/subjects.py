"""What is read of profiles to evaluate rules, and what is written of what follows.

Pure: it takes what `read_subjects` answers, and gives what `settle_memberships` is told.
"""

from __future__ import annotations

from itertools import chain, compress
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from service.rules import subject_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from service.environment import Environment
    from service.rules import Book, Rule, Subject, Verdict

    Part = bytes | str | int

NAMES = 300
"""Above so many attributes that rules name, all attributes of a profile are read."""
GROUPS = 300
"""Above so many groups, all memberships of a profile are read."""
CALLS = 300
"""Above so many rules that time may turn, it is not read until when they do not."""
PART = 30
"""Memberships of one profile that one script changes: each in a group of its own, 15 us."""
PART_NAMES = 500

_YES = ord("1")
_PROFILE = 10
"""What a profile costs beside what is looked at, in such looks."""


class Plan(NamedTuple):
    """Rules, and what has to be read of profiles to evaluate them.

    `followed` are the groups whose memberships follow, with `timed` those whose rule time may turn.
    `reading` and `writing` are what the scripts are told of it before any profile; `cost` is what
    one profile costs, in looks at one of its fields.
    """

    book: Book
    rules: tuple[Rule, ...]
    followed: tuple[int, ...]
    numbers: frozenset[int]
    names: tuple[bytes, ...]
    leaves: tuple[int, ...]
    every: bool
    timed: tuple[int, ...]
    reading: tuple[Part, ...]
    writing: tuple[Part, ...]
    cost: int


class Facts(NamedTuple):
    """What was read of a profile.

    `seq` is that of its record, b"" without one; `fact`: whether there is any fact about it.
    `inside` says in which leaves it is, as the script that writes compares it; `groups` are those
    leaves, `member` the groups that follow which it is in. `told` are instances and what they told
    it, alternating. `calls` are when time may turn rules, as noted; None: that was not read.
    """

    unsettled: bool
    fact: bool
    seq: bytes
    held: dict[bytes, bytes]
    inside: bytes
    groups: frozenset[int]
    member: frozenset[int]
    told: list[bytes]
    changed: list[bytes]
    calls: dict[int, int | None] | None

    def subject(self, plan: Plan) -> Subject:
        """Make of it what rules are evaluated on."""
        told = dict(zip(self.told[::2], self.told[1::2], strict=True)) if self.told else {}
        return subject_of(plan.book.rules, self.held, told, self.groups)


class Row(NamedTuple):
    """What follows for a profile, in parts of which each is written after those before it.

    `adds`: of each part, whether it may add anything; `weights`: what it costs, in memberships.
    """

    mixed: bytes
    parts: list[list[Part]]
    adds: list[bool]
    weights: list[int]


def planned(book: Book, rules: Sequence[Rule], followed: Sequence[int] | None = None) -> Plan:
    """Say what has to be read for rules. `followed`: of which groups it is asked who is in them."""
    if followed is None:
        followed = [rule.number for rule in rules]
    names = book.attributes_of(rules)
    leaves = book.groups_of(rules)
    definitions = book.definitions_of(rules)
    timed = tuple(rule.number for rule in rules if rule.timed)
    asked = timed if len(timed) <= CALLS else ()
    every = len(leaves) + len(followed) > GROUPS
    version = book.rules.version
    groups: tuple[Part, ...] = () if every else (*leaves, *followed)
    return Plan(
        book,
        tuple(rules),
        tuple(followed),
        frozenset(followed),
        names if len(names) <= NAMES else (),
        leaves,
        every,
        timed,
        (
            -1 if len(names) > NAMES else len(names),
            -1 if every else len(groups),
            len(definitions),
            len(asked),
            *(names if len(names) <= NAMES else ()),
            *groups,
            *definitions,
            *asked,
        ),
        (
            version,
            -1 if every else len(leaves),
            len(definitions),
            *(() if every else leaves),
            *definitions,
        ),
        _PROFILE + len(names) + len(leaves) + len(followed) + len(asked) + 5 * len(definitions),
    )


def facts_of(plan: Plan, row: list[Any]) -> Facts | None:
    """Take what was read of a profile; None: it is being erased."""
    state = row[0]
    if state == b"E":
        return None
    _, seq, values, memberships, told, changed, calls = row
    if not values:
        held = {}
    elif plan.names:
        held = {
            name: value for name, value in zip(plan.names, values, strict=True) if value is not None
        }
    else:
        held = dict(zip(values[::2], values[1::2], strict=True))
    if plan.every:
        static = [each for each in memberships if each[:1] != b"-" and each != b"d"]
        compared = b" ".join(static)
        groups = frozenset(map(int, static))
        member = plan.numbers & {int(each[1:]) for each in memberships if each[:1] == b"-"}
    else:
        many = len(plan.leaves)
        compared = memberships[:many]
        groups = frozenset(compress(plan.leaves, map(_YES.__eq__, compared)))
        member = frozenset(compress(plan.followed, map(_YES.__eq__, memberships[many:])))
    noted = None
    if len(plan.timed) <= CALLS:
        noted = {
            number: None if at is None else int(float(at))
            for number, at in zip(plan.timed, calls, strict=True)
        }
    return Facts(
        state[:1] == b"U",
        state[1:] == b"1",
        seq,
        held,
        compared,
        groups,
        member,
        told,
        changed,
        noted,
    )


def row_of(
    mixed: bytes,
    facts: Facts,
    verdicts: Sequence[tuple[Rule, Verdict]],
    names: Sequence[bytes],
) -> Row | None:
    """Say what follows for a profile from verdicts, and which names are followed with that.

    None: nothing is to be written. What only time can turn is written as it is where anything is:
    others may have looked at it at another moment. A name is only forgotten by a part that says
    what every rule comes to, also where nothing moves: memberships of static groups leave no trace
    when they come and go, so others may have followed what was in between.
    """
    changes: list[tuple[Part, Part, Part]] = []
    moving: list[tuple[Part, Part, Part]] = []
    adds: list[bool] = []
    differs = facts.unsettled and not facts.changed
    for rule, (holds, turns_at_us) in verdicts:
        number = rule.number
        call: Part = b"="
        moves = holds != (number in facts.member)
        begins = moves and holds
        if rule.timed:
            call = b"" if turns_at_us is None else turns_at_us
            moves = moves or facts.calls is None or facts.calls[number] != turns_at_us
            begins = holds or turns_at_us is not None
        change = number, b"+" if holds else b"-", call
        changes.append(change)
        if moves or rule.timed:
            moving.append(change)
            adds.append(begins)
        differs = differs or moves
    if not (differs or names):
        return None
    head: list[Part] = [mixed, facts.seq, b"1" if facts.fact else b"0", facts.inside]
    head += (len(facts.told) // 2, *facts.told)
    parts: list[list[Part]] = []
    may_add: list[bool] = []
    weights: list[int] = []

    def write(
        gone: Sequence[bytes], following: list[tuple[Part, Part, Part]], some: int, *, begins: bool
    ) -> None:
        parts.append([*head, len(gone), *gone, len(following), *chain.from_iterable(following)])
        may_add.append(begins)
        weights.append(1 + some + len(following) // 10 + len(gone) // 10)

    some = 0
    while len(moving) - some > (PART if names else 0):
        following = moving[some : some + PART]
        write((), following, len(following), begins=any(adds[some : some + PART]))
        some += PART
    for left in range(0, len(names), PART_NAMES):
        gone = names[left : left + PART_NAMES]
        write(gone, changes, len(moving) - some, begins=any(adds[some:]))
        some = len(moving)
    if not parts:
        write((), [], 0, begins=False)
    return Row(mixed, parts, may_add, weights)


def cut(
    env: Environment, rows: Iterable[Row], part: int, most: int, most_bytes: int
) -> Iterator[tuple[bytes, bool, list[Row]]]:
    """Cut a part of rows into what one script takes: by home, ascending, those that add apart."""
    apart: dict[tuple[bytes, bool], list[Row]] = {}
    for row in rows:
        apart.setdefault((env.home(row.mixed), row.adds[part]), []).append(row)
    for (tag, adds), within in apart.items():
        within.sort(key=_mixed_of)
        chunk: list[Row] = []
        weight = size = 0
        for row in within:
            if chunk and (weight + row.weights[part] > most or size > most_bytes):
                yield tag, adds, chunk
                chunk, weight, size = [], 0, 0
            chunk.append(row)
            weight += row.weights[part]
            size += sum(len(each) for each in row.parts[part] if isinstance(each, bytes))
        yield tag, adds, chunk


_mixed_of = itemgetter(0)
