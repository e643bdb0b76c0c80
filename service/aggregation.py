"""How the values of an instance's members become one.

Values are what the store holds: JSON. They count as texts, so `12` and `"12"` are the same; null (a
tag) counts nowhere. Numbers are decimal and exact: scaled whole numbers, never floats. What the
documents leave open is decided in `design.md` 3.2 and in `wire/group-identity.md` 2.6. Pure: no
I/O.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from service.attributes import ITEM_CHARACTERS, LIST_ITEMS, canonical_name
from service.grouping import order_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from service.grouping import Definition, Instance

DECIMALS = 15
"""Decimals that a number may have; 30 digits before them."""
AVERAGE_DECIMALS = 10

_NUMBER = re.compile(r"(-?)([0-9]{1,30})(?:\.([0-9]{1,15}))?")
# No exponents: `1e999999` is a few bytes that become a million.
_ONE: int = 10**DECIMALS
_TRUTHS = {"true": True, "false": False}
_ENCODER = msgspec.json.Encoder()
_TEXT = msgspec.json.Decoder(str)
_LIST = msgspec.json.Decoder(list[str])


class Held(NamedTuple):
    """The value of one attribute that a member has, as stored (JSON), and when it was written."""

    mpid: int | None
    mixed: bytes
    time_us: int
    value: bytes


class Outcome(NamedTuple):
    """What members inherit.

    `value` is the JSON of a string, or of a list of strings. `source` is the member that decided
    it, and `set_at_us` when that member's value was written; None where all count alike, or nobody
    did. `conflicts`: values that the aggregation could not use, for they are of another type.
    `left_out`: different values that a list of values had no room for.
    """

    value: bytes
    source: Held | None = None
    set_at_us: int | None = None
    conflicts: int = 0
    left_out: int = 0


def aggregate(kind: str, held: Sequence[Held], members: int) -> Outcome | None:
    """Make one value of those that members have; None: the attribute is absent.

    `held` are the values of those of the `members` that have the attribute, in the order in which
    the members count. Ties go to the first of them, but for `latest`, where the smaller mpid wins.

    - `latest`: the one written last, as it is.
    - `boolean_or`: `"true"` if any is true (in any case), else `"false"`.
    - `boolean_and`: `"true"` if every member has it and it is true, else `"false"`.
    - `sum`, `average`, `min`, `max`: of the numbers; absent without any. `average` has at most ten
      decimals, half to even; the others are exact. Without exponent and trailing zeros.
    - `count`: how many members have a value; `"0"` if nobody does.
    - `count_distinct`: how many different texts there are; a list counts by its items.
    - `unique_list`: these texts, in the order of the members; absent without any. It is an
      attribute as any other, so it has at most 1,000 of 512 characters: the first ones. A longer
      text is a conflict, one more is left out.
    """
    held = [each for each in held if each.value != b"null"]
    return _boolean_and(held, members) if kind == "boolean_and" else _AGGREGATES[kind](held)


def values_of(definition: Definition, instance: Instance) -> dict[str, Outcome]:
    """Give what members of an instance inherit: attribute id -> what became of their values."""
    found = {}
    for attribute in definition.attributes:
        name = canonical_name(attribute.id)
        held = [
            Held(each.mpid, each.mixed, *each.values[name])
            for each in instance.counted
            if name in each.values
        ]
        outcome = aggregate(attribute.type, held, len(instance.counted))
        if outcome is not None:
            found[attribute.id] = outcome
    return found


def number_of(text: str) -> int | None:
    """Give a decimal number as a whole one of 10**-15; None: the text is none."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, whole, fraction = match.groups("")
    scaled = int(whole) * _ONE + int(fraction.ljust(DECIMALS, "0"))
    return -scaled if sign else scaled


def number_text(scaled: int) -> str:
    """Give the text of a whole number of 10**-15: no exponent, no trailing zeros, no `-0`."""
    whole, fraction = divmod(abs(scaled), _ONE)
    decimals = f"{fraction:0{DECIMALS}d}".rstrip("0")
    return ("-" if scaled < 0 else "") + str(whole) + (f".{decimals}" if decimals else "")


def _is_list(value: bytes) -> bool:
    return value[:1] == b"["


def _text(value: bytes) -> str:
    return _TEXT.decode(value) if value[:1] == b'"' else value.decode()


def _numbers(held: Sequence[Held]) -> list[tuple[int, Held]]:
    return [
        (number, each)
        for each in held
        if not _is_list(each.value) and (number := number_of(_text(each.value))) is not None
    ]


def _truths(held: Sequence[Held]) -> list[tuple[bool, Held]]:
    return [
        (truth, each)
        for each in held
        if not _is_list(each.value)
        and (truth := _TRUTHS.get(_text(each.value).lower())) is not None
    ]


def _items(held: Sequence[Held]) -> Iterator[str]:
    for each in held:
        if _is_list(each.value):
            yield from _LIST.decode(each.value)
        else:
            yield _text(each.value)


def _latest(held: Sequence[Held]) -> Outcome | None:
    if not held:
        return None
    newest = max(each.time_us for each in held)
    source = min(
        (each for each in held if each.time_us == newest),
        key=lambda each: order_of(each.mpid, each.mixed),
    )
    value = source.value if _is_list(source.value) else _ENCODER.encode(_text(source.value))
    return Outcome(value, source, source.time_us)


def _decided(text: str, source: Held | None, conflicts: int) -> Outcome:
    return Outcome(
        _ENCODER.encode(text), source, None if source is None else source.time_us, conflicts
    )


def _boolean_or(held: Sequence[Held]) -> Outcome | None:
    truths = _truths(held)
    source = next((each for truth, each in truths if truth), None)
    text = "false" if source is None else "true"
    return _decided(text, source, len(held) - len(truths))


def _boolean_and(held: Sequence[Held], members: int) -> Outcome:
    truths = _truths(held)
    true = {each.mixed for truth, each in truths if truth}
    # Who has a null, or nothing at all, is not true either, but has no value to name.
    source = next((each for each in held if each.mixed not in true), None)
    text = "true" if len(true) == members else "false"
    return _decided(text, source, len(held) - len(truths))


def _sum(held: Sequence[Held]) -> Outcome | None:
    numbers = _numbers(held)
    if not numbers:
        return None
    total = sum(number for number, each in numbers)
    return _decided(number_text(total), None, len(held) - len(numbers))


def _average(held: Sequence[Held]) -> Outcome | None:
    numbers = _numbers(held)
    if not numbers:
        return None
    last = 10 ** (DECIMALS - AVERAGE_DECIMALS)
    divisor = len(numbers) * last
    mean, rest = divmod(sum(number for number, each in numbers), divisor)
    if 2 * rest > divisor or (2 * rest == divisor and mean % 2):
        mean += 1
    return _decided(number_text(mean * last), None, len(held) - len(numbers))


def _extreme(
    held: Sequence[Held], of: Callable[[Sequence[tuple[int, Held]]], tuple[int, Held]]
) -> Outcome | None:
    numbers = _numbers(held)
    if not numbers:
        return None
    number, source = of(numbers)
    return _decided(number_text(number), source, len(held) - len(numbers))


def _min(held: Sequence[Held]) -> Outcome | None:
    return _extreme(held, lambda numbers: min(numbers, key=lambda each: each[0]))


def _max(held: Sequence[Held]) -> Outcome | None:
    return _extreme(held, lambda numbers: max(numbers, key=lambda each: each[0]))


def _count(held: Sequence[Held]) -> Outcome | None:
    return _decided(str(len(held)), None, 0)


def _count_distinct(held: Sequence[Held]) -> Outcome | None:
    return _decided(str(len(set(_items(held)))), None, 0)


def _unique_list(held: Sequence[Held]) -> Outcome | None:
    found = dict.fromkeys(_items(held))
    fitting = [each for each in found if len(each) <= ITEM_CHARACTERS]
    if not fitting:
        return None
    return Outcome(
        _ENCODER.encode(fitting[:LIST_ITEMS]),
        conflicts=len(found) - len(fitting),
        left_out=max(len(fitting) - LIST_ITEMS, 0),
    )


_AGGREGATES: dict[str, Callable[[Sequence[Held]], Outcome | None]] = {
    "latest": _latest,
    "boolean_or": _boolean_or,
    "sum": _sum,
    "average": _average,
    "min": _min,
    "max": _max,
    "count": _count,
    "count_distinct": _count_distinct,
    "unique_list": _unique_list,
}
