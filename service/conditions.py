"""The conditions that rule trees are made of: their names, the types of their values, what is true.

The matrix is that of the Group Identity documents; the names of the Profile Groups documents are
aliases, in one table. Everything compared is what the store holds: JSON of a text, a number, a
truth value, null or a list of texts, which count as texts, so `12` and `"12"` are the same. A
condition is bound to its operand once, and is then a function of what is stored. Pure: no I/O.

- A missing attribute fulfils `not_exists` and `empty` alone; null, a name without a value, `exists`
  and `empty`. What is of another type than the condition fulfils it not, `not_equals` included.
- Texts are compared whole and without case (Unicode's full case folding); patterns by `patterns`.
- Numbers are exact: `aggregation.number_of`.
- Dates are instants in us: ISO 8601, UTC where no zone is given, finer digits than us cut off; or
  whole ms since 1970. Years 1 to 9999. One that is stored without a time of day is the start of
  its day in UTC; one in a rule is that whole day.
"""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec

from service import patterns
from service.aggregation import DECIMALS, number_of, number_text
from service.attributes import NAME_CHARACTERS, canonical_name
from service.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

Test: TypeAlias = "Callable[..., Any]"
"""A part of a rule: attributes (name -> JSON) and numbers of groups -> whether it holds.

One that is timed takes the present (us) as third, and gives beside it when it may turn (us), or
None: never by time alone.
"""

LIST_ITEMS = 1_000
PATTERN_CHARACTERS = 256
LONGEST_DAYS = 36_500

TYPES = ("string", "number", "boolean", "date", "list")

_ECHOED = 100
"""Characters of what was sent that a sentence repeats."""
_SECOND_US = 1_000_000
_DAY_US = 86_400 * _SECOND_US
_EPOCH = date(1970, 1, 1).toordinal()
_FIRST_MS = (date.min.toordinal() - _EPOCH) * _DAY_US // 1000
_LAST_MS = (date.max.toordinal() + 1 - _EPOCH) * _DAY_US // 1000 - 1
_WHOLE_DIGITS = 30

_TEXT = msgspec.json.Decoder(str)
_TEXTS = msgspec.json.Decoder(list[str])
_EMPTY = frozenset({b"null", b'""', b"[]"})
_TRUTHS = {"true": True, "false": False}
_WHOLE = re.compile(r"-?[0-9]{1,15}")
_ISO = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?:[Tt ]([01][0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9])(?:[.,]([0-9]{1,9}))?)?"
    r"(?:[Zz]|([+-])([01][0-9]|2[0-3])(?::?([0-5][0-9]))?)?)?"
)


class Condition(NamedTuple):
    """A row of the table: what it is also called, and how it tests the values of each type.

    Without types it asks only whether there is a value: `bare` is told it, or None. Of a `timed`
    one the test takes the present (us) too, and gives when it may turn beside its result.
    """

    name: str
    aliases: tuple[str, ...] = ()
    types: Mapping[str, Comparison] = {}
    bare: Callable[[bytes | None], bool] | None = None
    timed: bool = False


class Comparison(NamedTuple):
    """How a condition tests the values of a type.

    `read` makes what is compared of what is stored (None: it is of another type), `operand` makes
    it of what a rule says (raising Invalid with its place), `against` binds that to a test.
    """

    read: Callable[[bytes], Any]
    operand: Callable[[object, str], Any]
    against: Callable[[Any], Callable[..., Any]]


class AttributeLeaf(NamedTuple):
    """A leaf over an attribute, bound: how it is shown, the attribute's stored name, its test."""

    shown: dict[str, object]
    name: str
    test: Test
    timed: bool = False


def misplaced(message: str, place: str) -> Invalid:
    """Make an error of a sentence and where in the tree it was."""
    return Invalid(f"{message} - at `{place}`", "rule_tree")


def echoed(given: object) -> str:
    """Give what was sent as a sentence repeats it."""
    if isinstance(given, str):
        return f"`{given[:_ECHOED]}`" + ("…" if len(given) > _ECHOED else "")
    if isinstance(given, dict):
        return "an object"
    if isinstance(given, list):
        return "an array"
    if given is None or isinstance(given, bool):
        return "null" if given is None else str(given).lower()
    return "a number"


def text_of(stored: bytes) -> str | None:
    """Give the text of a value as stored; None: it is null, or a list."""
    first = stored[:1]
    if first == b'"':
        return _TEXT.decode(stored)
    return None if first == b"[" or stored == b"null" else stored.decode()


def shown_value(stored: bytes | None) -> str | list[str] | None:
    """Give a value as stored for people to see: a text, a list of texts, None: null or missing."""
    if stored is None:
        return None
    return _TEXTS.decode(stored) if stored[:1] == b"[" else text_of(stored)


def moment_of(text: str) -> tuple[int, bool] | None:
    """Give the instant (us) of a date, and whether it is without a time of day; None: it is none.

    Of one without a time of day it is the start of that day in UTC.
    """
    match = _ISO.fullmatch(text)
    if match is None:
        if _WHOLE.fullmatch(text) and _FIRST_MS <= (ms := int(text)) <= _LAST_MS:
            return ms * 1000, False
        return None
    year, month, day, hours, minutes, seconds, fraction, sign, east, east_minutes = match.groups()
    try:
        us = (date(int(year), int(month), int(day)).toordinal() - _EPOCH) * _DAY_US
    except ValueError:
        return None
    if hours is None:
        return us, True
    us += (int(hours) * 3600 + int(minutes) * 60 + int(seconds or 0)) * _SECOND_US
    if fraction:
        us += int(fraction[:6].ljust(6, "0"))
    if sign:
        offset = (int(east) * 60 + int(east_minutes or 0)) * 60 * _SECOND_US
        us -= offset if sign == "+" else -offset
    return us, False


def _folded(stored: bytes) -> str | None:
    text = text_of(stored)
    return None if text is None else text.casefold()


def _read_pattern(stored: bytes) -> str | None:
    text = text_of(stored)
    return None if text is None else patterns.folded(text)


def _read_number(stored: bytes) -> int | None:
    text = text_of(stored)
    return None if text is None else number_of(text)


def _read_truth(stored: bytes) -> bool | None:
    text = text_of(stored)
    return None if text is None else _TRUTHS.get(text.lower())


def _read_moment(stored: bytes) -> int | None:
    text = text_of(stored)
    moment = None if text is None else moment_of(text)
    return None if moment is None else moment[0]


def _read_list(stored: bytes) -> list[str] | None:
    if stored[:1] != b"[":
        return None
    return [item.casefold() for item in _TEXTS.decode(stored)]


def _text(given: object, place: str) -> str:
    if not isinstance(given, str):
        raise misplaced(f"A text is wanted here, and this is {echoed(given)}", place)
    return given.casefold()


def _pattern(given: object, place: str) -> str:
    if not isinstance(given, str) or len(given) > PATTERN_CHARACTERS:
        message = f"A pattern is a text of at most {PATTERN_CHARACTERS} characters"
        raise misplaced(f"{message}, and this is not", place)
    return patterns.folded(given)


def _number(given: object, place: str) -> int:
    number = None if isinstance(given, bool) else _exact(given)
    if number is None:
        message = "A number of at most 30 digits and 15 decimals is wanted here, or the text of one"
        is_longer = isinstance(given, int | float | Decimal) and not isinstance(given, bool)
        found = "a longer one" if is_longer else echoed(given)
        raise misplaced(f"{message}, and this is {found}", place)
    return number


def _exact(given: object) -> int | None:
    """Give a number as a whole one of 10**-15; None: it is none, or has more digits."""
    if isinstance(given, str):
        return number_of(given)
    if isinstance(given, int):
        return given * 10**DECIMALS if abs(given) < 10**_WHOLE_DIGITS else None
    number = Decimal(repr(given)) if isinstance(given, float) else given
    if not isinstance(number, Decimal) or not number.is_finite():
        return None
    if not number:
        return 0
    # NOTE: no arithmetic of decimals, which rounds, and no text of one: `1e999999` is a million.
    sign, digits, exponent = number.as_tuple()
    shift = int(exponent) + DECIMALS
    if number.adjusted() >= _WHOLE_DIGITS or (shift < 0 and any(digits[shift:])):
        return None
    kept = int("".join(map(str, digits[:shift] if shift < 0 else digits)))
    scale: int = 10 ** max(shift, 0)
    return (-kept if sign else kept) * scale


def _truth(given: object, place: str) -> bool:
    truth = given if isinstance(given, bool) else None
    if isinstance(given, str):
        truth = _TRUTHS.get(given.lower())
    if truth is None:
        raise misplaced(f"true or false is wanted here, and this is {echoed(given)}", place)
    return truth


def _span(given: object, place: str) -> tuple[int, int]:
    """Give the first instant of a date in a rule, and the first one after it."""
    moment = None
    if isinstance(given, str):
        moment = moment_of(given)
    elif isinstance(given, int) and not isinstance(given, bool):
        moment = moment_of(str(given)) if _FIRST_MS <= given <= _LAST_MS else None
    if moment is None:
        message = "A date of ISO 8601 (`2024-02-29`, `2024-02-29T12:00:00Z`) or a whole number of"
        raise misplaced(f"{message} ms since 1970 is wanted here, and this is neither", place)
    start, whole = moment
    return start, start + (_DAY_US if whole else 1)


def _point(given: object, place: str) -> tuple[int, int]:
    """Give a number in a rule, and the first one after it."""
    number = _number(given, place)
    return number, number + 1


def _days(given: object, place: str) -> int:
    days = int(given) if isinstance(given, str) and _WHOLE.fullmatch(given) else given
    if not isinstance(days, int) or isinstance(days, bool) or not 1 <= days <= LONGEST_DAYS:
        message = f"A whole number of days from 1 to {LONGEST_DAYS:,} is wanted here"
        raise misplaced(message, place)
    return days * _DAY_US


def _each(operand: Callable[[object, str], Any]) -> Callable[[object, str], frozenset[Any]]:
    def operands(given: object, place: str) -> frozenset[Any]:
        if not isinstance(given, list) or not 1 <= len(given) <= LIST_ITEMS:
            raise misplaced(f"An array of 1 to {LIST_ITEMS:,} values is wanted here", place)
        return frozenset(operand(each, f"{place}[{at}]") for at, each in enumerate(given))

    return operands


def _range(
    operand: Callable[[object, str], tuple[int, int]],
) -> Callable[[object, str], tuple[int, int]]:
    """Read two operands as one, from the start of the first to the end of the second."""

    def operands(given: object, place: str) -> tuple[int, int]:
        if not isinstance(given, list) or len(given) != 2:
            raise misplaced("An array of two values is wanted here, from and to", place)
        low, high = (operand(each, f"{place}[{at}]") for at, each in enumerate(given))
        if low[0] >= high[1]:
            raise misplaced("Nothing is between these two: the first is the larger", place)
        return low[0], high[1]

    return operands


def _within(span: tuple[int, int]) -> Callable[[int], bool]:
    start, end = span
    return lambda value: start <= value < end


def _window(length_us: int) -> Callable[[int, int], tuple[bool, int | None]]:
    """Bind the last so many us, both ends included."""

    def fulfils(us: int, now_us: int) -> tuple[bool, int | None]:
        if us > now_us:
            return False, us
        last_us = us + length_us
        return (True, last_us + 1) if now_us <= last_us else (False, None)

    return fulfils


_STRING = (_folded, _text)
_NUMBER = (_read_number, _number)
_DATE = (_read_moment, _span)
_TRUTH = Comparison(_read_truth, _truth, lambda wanted: lambda truth: truth is wanted)
_DAY = Comparison(*_DATE, _within)

_TABLE = (
    Condition("exists", ("is_set",), bare=lambda stored: stored is not None),
    Condition("not_exists", ("is_not_set",), bare=lambda stored: stored is None),
    Condition("empty", bare=lambda stored: stored is None or stored in _EMPTY),
    Condition(
        "in_list",
        types={
            "string": Comparison(_folded, _each(_text), lambda wanted: wanted.__contains__),
            "number": Comparison(_read_number, _each(_number), lambda wanted: wanted.__contains__),
        },
    ),
    Condition(
        "contains",
        types={"string": Comparison(*_STRING, lambda wanted: lambda text: wanted in text)},
    ),
    Condition(
        "not_contains",
        ("does_not_contain",),
        {"string": Comparison(*_STRING, lambda wanted: lambda text: wanted not in text)},
    ),
    Condition("pattern", types={"string": Comparison(_read_pattern, _pattern, patterns.matcher)}),
    Condition(
        "equals",
        ("is", "exact_match"),
        {
            "string": Comparison(*_STRING, lambda wanted: wanted.__eq__),
            "number": Comparison(*_NUMBER, lambda wanted: wanted.__eq__),
            "boolean": _TRUTH,
            "date": _DAY,
        },
    ),
    Condition(
        "not_equals",
        ("is_not", "does_not_match"),
        {
            "string": Comparison(*_STRING, lambda wanted: wanted.__ne__),
            "number": Comparison(*_NUMBER, lambda wanted: wanted.__ne__),
        },
    ),
    # The operand's own comparison is the fastest test, and the mirrored one.
    Condition("greater_than", (), {"number": Comparison(*_NUMBER, lambda least: least.__lt__)}),
    Condition(
        "greater_or_equal",
        ("greater_than_or_equal",),
        {"number": Comparison(*_NUMBER, lambda least: least.__le__)},
    ),
    Condition("less_than", (), {"number": Comparison(*_NUMBER, lambda most: most.__gt__)}),
    Condition(
        "less_than_or_equal",
        ("less_or_equal",),
        {"number": Comparison(*_NUMBER, lambda most: most.__ge__)},
    ),
    Condition(
        "between",
        types={"number": Comparison(_read_number, _range(_point), _within)},
    ),
    Condition("before", types={"date": Comparison(*_DATE, lambda span: lambda us: us < span[0])}),
    Condition("after", types={"date": Comparison(*_DATE, lambda span: lambda us: us >= span[0])}),
    Condition(
        "between_dates",
        types={"date": Comparison(_read_moment, _range(_span), _within)},
    ),
    Condition("on", types={"date": _DAY}),
    Condition(
        "within_last_days",
        types={"date": Comparison(_read_moment, _days, _window)},
        timed=True,
    ),
    Condition(
        "includes",
        types={"list": Comparison(_read_list, _text, lambda wanted: lambda texts: wanted in texts)},
    ),
    Condition(
        "not_includes",
        ("does_not_include",),
        {"list": Comparison(_read_list, _text, lambda wanted: lambda texts: wanted not in texts)},
    ),
    Condition(
        "partial_match",
        types={
            "list": Comparison(
                _read_list,
                _text,
                lambda wanted: lambda texts: any(wanted in text for text in texts),
            )
        },
    ),
)

CONDITIONS: dict[str, Condition] = {
    name: condition for condition in _TABLE for name in (condition.name, *condition.aliases)
}
"""Every name of every condition."""


def attribute_leaf(given: Mapping[str, object], place: str) -> AttributeLeaf:
    """Bind a leaf over an attribute.

    :raises Invalid: it is none; the sentence names the place
    """
    name, named = given["attribute"], given["condition"]
    if not isinstance(name, str) or not 1 <= len(name) <= NAME_CHARACTERS or "\0" in name:
        message = f"The name of an attribute is a text of 1 to {NAME_CHARACTERS} characters"
        raise misplaced(f"{message} without NUL", f"{place}.attribute")
    condition = CONDITIONS.get(named) if isinstance(named, str) else None
    if condition is None:
        message = f"{echoed(named)} is no condition. There are: {', '.join(CONDITIONS)}"
        raise misplaced(message, f"{place}.condition")
    kind = given.get("type")
    if "type" in given and kind not in TYPES:
        message = f"{echoed(kind)} is no type. There are: {', '.join(TYPES)}"
        raise misplaced(message, f"{place}.type")
    stored = canonical_name(name)
    if condition.bare is None:
        return _compared_leaf(condition, given, stored, place)
    if given.get("value") is not None:
        raise misplaced(f"`{named}` takes no value", f"{place}.value")
    return AttributeLeaf(dict(given), stored, _bare(stored, condition.bare))


def _compared_leaf(
    condition: Condition, given: Mapping[str, object], stored: str, place: str
) -> AttributeLeaf:
    if "value" not in given:
        raise misplaced(f"`{condition.name}` needs a `value`", place)
    value, at = given["value"], f"{place}.value"
    kind = str(given["type"]) if "type" in given else _type_of(condition, value, at)
    comparison = condition.types.get(kind)
    if comparison is None:
        message = f"`{condition.name}` is of type {' or '.join(condition.types)}, not {kind}"
        raise misplaced(message, f"{place}.type")
    fulfils = comparison.against(comparison.operand(value, at))
    shown = dict(given) | {"value": _as_json(value)}
    if _is_text_of_number(value, shown["value"]):
        shown["type"] = kind
    make = _timed if condition.timed else _compared
    return AttributeLeaf(shown, stored, make(stored, comparison.read, fulfils), condition.timed)


def _type_of(condition: Condition, value: object, place: str) -> str:
    """Give the type that a leaf is of which says none: that of its condition, or of its value."""
    types = condition.types
    if len(types) == 1:
        return next(iter(types))
    sample = value
    if condition.name == "in_list" and isinstance(value, list) and value:
        sample = value[0]
    found = {str: "string", bool: "boolean", int: "number", float: "number", Decimal: "number"}
    kind = found.get(type(sample))
    if kind is None or kind not in types:
        wanted = "an array of one type: " if condition.name == "in_list" else ""
        message = f"`{condition.name}` takes {wanted}{' or '.join(types)}, and this is not"
        raise misplaced(message, place)
    return kind


def _as_json(value: object) -> object:
    """Give an operand for the store and for people: no decimals, which JSON has not.

    A number that a float is not exactly becomes its text.
    """
    if isinstance(value, list):
        return [_as_json(each) for each in value]
    if isinstance(value, Decimal):
        near = float(value)
        return near if Decimal(repr(near)) == value else number_text(_exact(value) or 0)
    return value


def _is_text_of_number(value: object, shown: object) -> bool:
    """Tell whether numbers had to become texts, so that the type no longer follows from them."""
    if isinstance(value, list) and isinstance(shown, list):
        return any(map(_is_text_of_number, value, shown))
    return isinstance(value, Decimal) and isinstance(shown, str)


def _bare(name: str, fulfils: Callable[[bytes | None], bool]) -> Test:
    return lambda values, _groups: fulfils(values.get(name))


def _compared(name: str, read: Callable[[bytes], Any], fulfils: Callable[..., Any]) -> Test:
    def test(values: Mapping[str, bytes], _groups: Collection[int]) -> bool:
        stored = values.get(name)
        if stored is None:
            return False
        value = read(stored)
        return value is not None and fulfils(value)

    return test


def _timed(
    name: str,
    read: Callable[[bytes], Any],
    fulfils: Callable[..., Any],
) -> Test:
    def test(
        values: Mapping[str, bytes], _groups: Collection[int], now_us: int
    ) -> tuple[bool, int | None]:
        stored = values.get(name)
        value = None if stored is None else read(stored)
        if value is None:
            return False, None
        verdict: tuple[bool, int | None] = fulfils(value, now_us)
        return verdict

    return test
