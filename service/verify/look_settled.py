"""Looking at members of dynamic groups: they are those of whom the rules hold (invariant 6).

Every profile of production is read once, with what any rule names of it, and every rule that may
hold by that is evaluated; what is left out are rules that its own slot notes as yet to follow
(`changed`, or `due` by now), groups that are being built, and all of them while a job is to look at
everybody again. A rule of which nothing is there that it names is as it is for a profile of which
nothing is known, and is not evaluated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from service import ids, keys
from service.attributes import is_sound
from service.rules import Subject, subject_of
from service.verify.findings import STEP, Finding, Unit, in_steps, whole
from service.verify.look_derived import told
from service.verify.look_dynamic import rulebook
from service.verify.look_rules import book

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from service.grouping import Rules
    from service.rules import Book as RuleBook
    from service.rules import Rule
    from service.verify.findings import Census, Part
    from service.verify.look_rules import Book

KIB = 256
"""What one script reads, in KiB, and one thing more."""
NAMES = 300
"""Names of attributes that are asked for one by one; where rules name more, all are read."""
LARGEST = 1_000
"""Attributes of a profile that are then read at once; more are walked."""
ENTRIES = 1_000
"""Entries of `due` that one script reads."""


class Row(NamedTuple):
    """What was read of a profile. States are those that `verify_subjects` answers."""

    state: bytes
    values: dict[bytes, bytes]
    groups: frozenset[bytes]
    instances: dict[bytes, bytes]
    changed: frozenset[bytes]


class Held(NamedTuple):
    """Rules that are in force for everybody, as they are held against profiles.

    `ready` are the built ones. Of a profile that has nothing of what a rule names, `constant` says
    whether it holds; `by_attribute` and `by_group` say which rules name what it has.
    """

    book: RuleBook
    ready: dict[int, Rule]
    constant: frozenset[int]
    by_attribute: dict[str, list[Rule]]
    by_group: dict[int, list[Rule]]

    @classmethod
    def of(cls, known: Book, rules: RuleBook) -> Held:
        """Take those of which members have to be right, whatever waits or runs."""
        ready = {
            number: rule
            for number, rule in rules.rules_by_number.items()
            if known.built.get(b"%d" % number) == b"%d" % rule.version
            and not (rules.rules.weekly and _is_ahead(rule, known, rules.rules))
        }
        by_attribute: dict[str, list[Rule]] = {}
        by_group: dict[int, list[Rule]] = {}
        for rule in ready.values():
            for name in rule.attributes:
                by_attribute.setdefault(name, []).append(rule)
            for number in rule.groups:
                by_group.setdefault(number, []).append(rule)
        constant = frozenset(number for number, rule in ready.items() if rule.true_of_nothing)
        return cls(rules, ready, constant, by_attribute, by_group)

    def named_by(self, subject: Subject) -> dict[int, Rule]:
        """Give the rules that name something that a profile has."""
        found: dict[int, Rule] = {}
        for name in subject.values:
            found.update((rule.number, rule) for rule in self.by_attribute.get(name, ()))
        for group in subject.groups:
            found.update((rule.number, rule) for rule in self.by_group.get(group, ()))
        return found


def _is_ahead(rule: Rule, known: Book, rules: Rules) -> bool:
    """Whether definitions changed what a rule may be over since everybody was looked at last.

    In a weekly application what a change of definitions hides, or shows, is followed on Mondays.
    """
    done = whole(known.built.get(b"whole")) or 0
    for name in rule.attributes:
        prefix, colon, attribute = name.partition(":")
        if not colon:
            continue
        definition = rules.definition(prefix)
        if definition is None or definition.number > done:
            return True
        if not any(each.id == attribute and each.since <= done for each in definition.attributes):
            return True
    return False


class Suspect(NamedTuple):
    """A rule and a profile that do not go together, or are to do so only until a moment.

    `turns_at_us`: by then there has to be a wake-up call. `is_wrong`: the membership is another one
    than follows, unless time alone has turned it just now.
    """

    mixed: bytes
    rule: Rule
    turns_at_us: int | None
    is_wrong: bool
    said: str


async def look_subjects(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at profiles that have a record: they are in the dynamic groups that follow."""
    return await _look(census, tag, names, "subject")


async def look_recordless(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at profiles that have memberships and no record, as `look_subjects` does."""
    return await _look(census, tag, names, "recordless")


async def _look(census: Census, tag: bytes, names: list[bytes], kind: str) -> list[Finding]:
    known = await book(census, tag)
    env = census.places[tag].env
    if known.rules is None or not known.rules.dynamic or known.is_going:
        return []
    rules = await rulebook(census, tag)
    if rules is None or env.directory != env.rules_home or known.is_walking_all:
        return []
    held = Held.of(known, rules.book)
    right = [each for each in names if len(each) == ids.SIZE and env.home(each) == tag]
    now_us = census.store.settling.clock()
    suspects: list[Suspect] = []
    seen: dict[bytes, Row] = {}
    async for mixed, row in _rows(census, tag, held.book, right, kind):
        mine = _suspects(held, mixed, row, now_us)
        if mine:
            seen[mixed] = row
            suspects += mine
    found = await _confirmed(census, tag, suspects, now_us, kind)
    # Of whom something changed since, what was read in two steps need not go together.
    again = sorted({each.unit.name for each in found})
    same = {
        mixed
        async for mixed, row in _rows(census, tag, held.book, again, kind)
        if row == seen[mixed]
    }
    return [each for each in found if each.unit.name in same]


def _suspects(held: Held, mixed: bytes, row: Row, now_us: int) -> list[Suspect]:
    """Hold rules against what was read of a profile."""
    if row.state in {b"E", b"P"}:
        return []
    groups = {number for field in row.groups if (number := whole(field)) is not None}
    member_of = groups & held.ready.keys()
    unsettled = {rule.number for rule in held.book.touched(row.changed)}
    if row.state == b"-":
        said = "is in dynamic group {}, and nothing is known of it"
        return [
            Suspect(mixed, held.ready[number], None, is_wrong=True, said=said.format(number))
            for number in sorted(member_of - unsettled)
        ]
    subject = _subject(held, row, groups)
    touched = held.named_by(subject)
    found = []
    for number, rule in touched.items():
        if number in unsettled:
            continue
        holds, turns_at_us = rule.evaluate(subject, now_us)
        is_wrong = holds != (number in member_of)
        if is_wrong or turns_at_us is not None:
            said = _said(number, holds=holds)
            found.append(Suspect(mixed, rule, turns_at_us, is_wrong=is_wrong, said=said))
    wrong = (member_of ^ held.constant) - touched.keys() - unsettled
    found += [
        Suspect(
            mixed,
            held.ready[number],
            None,
            is_wrong=True,
            said=_said(number, holds=number in held.constant),
        )
        for number in sorted(wrong)
    ]
    return found


def _said(number: int, *, holds: bool) -> str:
    if holds:
        return f"is not in dynamic group {number}, and its rule holds"
    return f"is in dynamic group {number}, and its rule does not hold"


def _subject(held: Held, row: Row, groups: set[int]) -> Subject:
    """Make a subject of what can be read; of what cannot, another look says so."""
    values = {name: value for name, value in row.values.items() if is_sound(name, value)}
    instances = {
        iid: value
        for iid, value in row.instances.items()
        if len(iid) == ids.SIZE and told(value) is not None
    }
    return subject_of(held.book.rules, values, instances, groups)


async def _confirmed(
    census: Census, tag: bytes, suspects: Sequence[Suspect], now_us: int, kind: str
) -> list[Finding]:
    """Read when rules are to be looked at again, and say what that does not explain."""
    found = []
    timed = [each for each in suspects if each.rule.timed]
    due: dict[bytes, bytes | None] = {}
    for part in in_steps([_entry(each) for each in timed], ENTRIES):
        at = await census.call("verify_due", [keys.key(tag, "due")], list(part))
        due |= zip(part, at, strict=True)
    for each in suspects:
        at = due.get(_entry(each))
        if at is not None and float(at) <= now_us:
            # Its time has come: the worker is about to look at it.
            continue
        who = f"{census.label(tag)}: profile {census.profile(tag, each.mixed)}"
        about = b"%d" % each.rule.number
        unit = Unit(kind, tag, each.mixed)
        if each.is_wrong:
            found.append(Finding(unit, "member", about, f"{who} {each.said}"))
        if each.turns_at_us is not None and (at is None or float(at) > float(each.turns_at_us)):
            text = (
                f"{who} is to be looked at for dynamic group {each.rule.number} by"
                f" {each.turns_at_us}, and is not entered so"
            )
            found.append(Finding(unit, "due", about, text))
    return found


def _entry(suspect: Suspect) -> bytes:
    return b"%b%d" % (suspect.mixed, suspect.rule.number)


async def _rows(
    census: Census, tag: bytes, rules: RuleBook, names: Sequence[bytes], kind: str
) -> AsyncIterator[tuple[bytes, Row]]:
    """Read what rules have to know of profiles."""
    declared = [keys.key(tag, "erasing"), keys.key(tag, "unsettled")]
    asked = rules.attributes_of(rules.rules_by_number.values())
    count = len(asked) if len(asked) <= NAMES else -1
    head: list[Part] = [KIB, LARGEST, int(kind == "recordless"), count]
    head += asked if count >= 0 else ()
    left = list(names)
    while left:
        rows = await census.call("verify_subjects", declared, [*head, *left[:STEP]])
        for mixed, (state, *rest) in zip(left, rows, strict=False):
            values, groups, instances, changed = rest or ([], [], [], [])
            told_of = _pairs(instances)
            row = Row(state, _pairs(values), frozenset(groups), told_of, frozenset(changed))
            if state == b"L":
                row = row._replace(values=await _walked(census, tag, mixed, asked))
            yield mixed, row
        left = left[len(rows) :]


async def _walked(
    census: Census, tag: bytes, mixed: bytes, asked: Iterable[bytes]
) -> dict[bytes, bytes]:
    """Walk the attributes of a profile that has very many."""
    wanted = frozenset(asked)
    found: dict[bytes, bytes] = {}
    async for step in census.walk(keys.of_profile(tag, "attributes", mixed), "HSCAN"):
        found |= {name: held for name, held in _pairs(step).items() if name in wanted}
    return found


def _pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
