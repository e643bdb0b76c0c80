"""Rule trees as they are written down, evaluated from nothing but their text.

Written from what is promised (design 6.3, table 5.2 of the wire document, and the limits and
defaults that ours adds) and not from the code that it judges. An attribute is a text, None (a tag)
or a list of texts, as in `tests/naive.py`; a group is its id. Slow and plain: patterns are tried in
all ways, and when time turns a rule is found by asking again at every moment that it could.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from tests.naive import NUMBER, Group, User, Value, World, stored_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

Tree = dict[str, Any]

NAMES = {
    "is_set": "exists",
    "is_not_set": "not_exists",
    "is": "equals",
    "exact_match": "equals",
    "is_not": "not_equals",
    "does_not_match": "not_equals",
    "does_not_contain": "not_contains",
    "greater_than_or_equal": "greater_or_equal",
    "less_or_equal": "less_than_or_equal",
    "does_not_include": "not_includes",
}
"""Other names of conditions."""

KINDS = {
    "contains": "string",
    "not_contains": "string",
    "pattern": "string",
    "greater_than": "number",
    "greater_or_equal": "number",
    "less_than": "number",
    "less_than_or_equal": "number",
    "between": "number",
    "before": "date",
    "after": "date",
    "between_dates": "date",
    "on": "date",
    "within_last_days": "date",
    "includes": "list",
    "not_includes": "list",
    "partial_match": "list",
}
"""Conditions that say by themselves of which type a value has to be."""

DAY_US = 86_400_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_DATE = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?:T([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,6}))?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?"
)


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()


@dataclass(frozen=True)
class Subject:
    """What rules look at: attributes under the names that they are seen by, and static groups."""

    attributes: Mapping[str, Value]
    groups: Collection[str] = ()


def subject_of(
    user: User,
    inherited: Mapping[str, Value],
    definitions: Iterable[Group] = (),
    groups: Collection[str] = (),
) -> Subject:
    """What there is of a user: what is their own, what they inherit, and where they are members."""
    return Subject({**visible(user.attributes, definitions), **inherited}, groups)


def visible(kept: Mapping[str, Value], definitions: Iterable[Group]) -> dict[str, Value]:
    """What is seen of attributes that clients wrote: nothing under the name of a definition."""
    hidden = tuple(f"{each.id}:" for each in definitions)
    return {name: value for name, value in kept.items() if not name.startswith(hidden)}


def subjects(world: World, groups: Mapping[bytes, Collection[str]]) -> dict[bytes, Subject]:
    """Everybody about whom there is any fact, by mixed id. `groups`: who is in which static ones.

    A profile about which nothing is known, and which is in no static group, is nobody.
    """
    inherited: dict[bytes, dict[str, Value]] = {user.mixed: {} for user in world.users}
    for household in world.households().values():
        for user in household.counted:
            for name, outcome in household.values.items():
                inherited[user.mixed][f"{household.group.id}:{name}"] = outcome.value
    found = {mixed: Subject({}, held) for mixed, held in groups.items() if held}
    for user in world.users:
        held = groups.get(user.mixed, ())
        found[user.mixed] = subject_of(user, inherited[user.mixed], world.groups, held)
    return found


def depth(tree: Tree) -> int:
    """How many levels there are; a leaf alone is one."""
    return 1 + max(map(depth, tree.get("children", ())), default=0)


def leaves(tree: Tree) -> Iterator[Tree]:
    """Every leaf, in order."""
    if "operator" not in tree:
        yield tree
    for child in tree.get("children", ()):
        yield from leaves(child)


def names_of(tree: Tree) -> set[str]:
    """The stored names of all attributes that a tree names."""
    return {stored_name(leaf["attribute"]) for leaf in leaves(tree) if "attribute" in leaf}


def groups_of(tree: Tree) -> set[str]:
    """The groups that a tree names."""
    return {leaf["group"] for leaf in leaves(tree) if "group" in leaf}


def holds(tree: Tree, subject: Subject, now_us: int) -> bool:
    """Whether a tree is true of somebody at a moment."""
    if "operator" in tree:
        found = [holds(child, subject, now_us) for child in tree["children"]]
        if tree["operator"] == "NOT":
            [one] = found
            return not one
        return {"AND": all, "OR": any}[tree["operator"]](found)
    if "group" in tree:
        return tree["group"] in subject.groups
    value = subject.attributes.get(stored_name(tree["attribute"]), MISSING)
    return _leaf_holds(tree, value, now_us)


def _leaf_holds(leaf: Tree, value: Value | _Missing, now_us: int) -> bool:
    condition = _condition_of(leaf)
    if condition == "empty":
        return value is MISSING or value in (None, "", [])
    if condition in ("exists", "not_exists"):
        return (value is MISSING) == (condition == "not_exists")
    wanted = leaf["value"]
    kind: str = leaf["type"] if "type" in leaf else KINDS.get(condition, _kind_of(wanted))
    read = _READ[kind](value)
    return read is not None and bool(_TESTS[kind][condition](read, wanted, now_us))


def first_turn(tree: Tree, subject: Subject, now_us: int) -> int | None:
    """The first moment after this one at which a tree is something else; None: there is none."""
    before = holds(tree, subject, now_us)
    moments = set()
    for leaf in leaves(tree):
        if "attribute" in leaf and _condition_of(leaf) == "within_last_days":
            value = _read_date(subject.attributes.get(stored_name(leaf["attribute"]), MISSING))
            if value is not None:
                moments |= {value[0], value[0] + int(leaf["value"]) * DAY_US + 1}
    for at_us in sorted(each for each in moments if each > now_us):
        if holds(tree, subject, at_us) != before:
            return at_us
    return None


def _condition_of(leaf: Tree) -> str:
    given: str = leaf["condition"]
    return NAMES.get(given, given)


def _kind_of(operand: object) -> str:
    if isinstance(operand, list):
        return _kind_of(operand[0])
    if isinstance(operand, bool):
        return "boolean"
    return "number" if isinstance(operand, int | float | Decimal) else "string"


# Of each type: what a value is to it (None: it is of another), and what its conditions ask.


def _read_string(value: Value | _Missing) -> str | None:
    return value if isinstance(value, str) else None


def _read_number(value: Value | _Missing) -> Fraction | None:
    return Fraction(value) if isinstance(value, str) and NUMBER.fullmatch(value) else None


def _read_boolean(value: Value | _Missing) -> str | None:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower()
    return None


def _read_date(value: Value | _Missing) -> tuple[int, int] | None:
    return span(value) if isinstance(value, str) else None


def _read_list(value: Value | _Missing) -> tuple[str, ...] | None:
    return tuple(each.casefold() for each in value) if isinstance(value, list) else None


def span(given: str | int) -> tuple[int, int] | None:
    """The first and the last microsecond of what a text calls a time; None: it is none.

    A date without a time of day is the whole day, in UTC.
    """
    text = str(given)
    if re.fullmatch(r"-?[0-9]+", text):
        at_us = int(text) * 1000
        return at_us, at_us
    parts = _DATE.fullmatch(text)
    if parts is None:
        return None
    year, month, day, hour, minute, second, fraction, zone = parts.groups()
    try:
        at = datetime(
            int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0),
            int((fraction or "0").ljust(6, "0")), UTC,
        )  # fmt: skip
    except ValueError:
        return None
    at_us = (at - EPOCH) // timedelta(microseconds=1)
    if hour is None:
        return at_us, at_us + DAY_US - 1
    if zone not in (None, "Z"):
        ahead = int(zone[1:3]) * 60 + int(zone[4:6])
        at_us -= ahead * 60_000_000 * (-1 if zone[0] == "-" else 1)
    return at_us, at_us


def fits(pattern: str, text: str) -> bool:
    """Whether a pattern (`*` any run, `?` one character) is a whole text; both are folded."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(fits(pattern[1:], text[at:]) for at in range(len(text) + 1))
    return bool(text) and pattern[0] in ("?", text[0]) and fits(pattern[1:], text[1:])


def one_by_one(text: str) -> str:
    """Fold a text so that it stays as long as it is."""
    return "".join(folded if len(folded := each.casefold()) == 1 else each for each in text)


def _span(given: str | int) -> tuple[int, int]:
    found = span(given)
    assert found is not None, given
    return found


_STRING: dict[str, Any] = {
    "equals": lambda value, wanted, _: value.casefold() == wanted.casefold(),
    "not_equals": lambda value, wanted, _: value.casefold() != wanted.casefold(),
    "contains": lambda value, wanted, _: wanted.casefold() in value.casefold(),
    "not_contains": lambda value, wanted, _: wanted.casefold() not in value.casefold(),
    "pattern": lambda value, wanted, _: fits(one_by_one(wanted), one_by_one(value)),
    "in_list": lambda value, wanted, _: value.casefold() in [each.casefold() for each in wanted],
}


def _exact(given: float | str | Decimal) -> Fraction:
    return Fraction(str(given))


_NUMBER: dict[str, Any] = {
    "equals": lambda value, wanted, _: value == _exact(wanted),
    "not_equals": lambda value, wanted, _: value != _exact(wanted),
    "greater_than": lambda value, wanted, _: value > _exact(wanted),
    "greater_or_equal": lambda value, wanted, _: value >= _exact(wanted),
    "less_than": lambda value, wanted, _: value < _exact(wanted),
    "less_than_or_equal": lambda value, wanted, _: value <= _exact(wanted),
    "between": lambda value, wanted, _: _exact(wanted[0]) <= value <= _exact(wanted[1]),
    "in_list": lambda value, wanted, _: value in [_exact(each) for each in wanted],
}
_BOOLEAN: dict[str, Any] = {"equals": lambda value, wanted, _: value == str(wanted).lower()}
_DATES: dict[str, Any] = {
    "equals": lambda value, wanted, _: _span(wanted)[0] <= value[0] <= _span(wanted)[1],
    "on": lambda value, wanted, _: _span(wanted)[0] <= value[0] <= _span(wanted)[1],
    "before": lambda value, wanted, _: value[0] < _span(wanted)[0],
    "after": lambda value, wanted, _: value[0] >= _span(wanted)[0],
    "between_dates": lambda value, wanted, _: (
        _span(wanted[0])[0] <= value[0] <= _span(wanted[1])[1]
    ),
    "within_last_days": lambda value, wanted, now_us: (
        now_us - int(wanted) * DAY_US <= value[0] <= now_us
    ),
}
_LIST: dict[str, Any] = {
    "includes": lambda value, wanted, _: wanted.casefold() in value,
    "not_includes": lambda value, wanted, _: wanted.casefold() not in value,
    "partial_match": lambda value, wanted, _: any(wanted.casefold() in each for each in value),
}
_READ: dict[str, Callable[[Any], Any]] = {
    "string": _read_string,
    "number": _read_number,
    "boolean": _read_boolean,
    "date": _read_date,
    "list": _read_list,
}
_TESTS = {
    "string": _STRING, "number": _NUMBER, "boolean": _BOOLEAN, "date": _DATES, "list": _LIST,
}  # fmt: skip
