"""Conditions: each with each type of value, true, false and neither; and what they refuse."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import pytest

from service.conditions import CONDITIONS, TYPES, echoed, moment_of, shown_value
from service.errors import Invalid
from service.rules import Subject, parse_tree

YES, NO = True, False
MISSING = object()
NOTHING = object()
DAY = 86_400_000_000


def us(text: str) -> int:
    """The instant of a date with a zone."""
    moment = datetime.fromisoformat(text)
    whole = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return whole.days * DAY + whole.seconds * 1_000_000 + whole.microseconds


NOW = us("2024-05-10T00:00:00+00:00")

SAMPLES = {
    "missing": MISSING,
    "null": None,
    "empty": "",
    "no items": [],
    "dog": "dog",
    "DOG": "DOG",
    "hot dog": "Hot Dog",
    "12": "12",
    "number 12": 12,
    "12.0": "12.0",
    "-3": -3,
    "1.5": 1.5,
    "1e3": "1e3",
    "true": "true",
    "TRUE": "TRUE",
    "truth": True,
    "untruth": False,
    "day": "2024-05-01",
    "noon": "2024-05-01T12:00:00Z",
    "ms": 1714564800000,
    "ms text": "1714564800000",
    "next day": "2024-05-02T00:00:00Z",
    "dogs": ["Dog", "cat"],
    "hot dogs": ["hot dog"],
}
LISTS = {"no items", "dogs", "hot dogs"}
TEXTS = set(SAMPLES) - LISTS - {"missing", "null"}
NUMBERS = {"12", "number 12", "12.0", "-3", "1.5", "ms", "ms text"}
DATES = {"day", "noon", "ms", "ms text", "next day", "12", "number 12", "-3"}
"""Whole numbers are dates too: ms since 1970."""


def leaf(condition, value=NOTHING, kind=None, attribute="a"):
    given = {"attribute": attribute, "condition": condition}
    if value is not NOTHING:
        given["value"] = value
    if kind is not None:
        given["type"] = kind
    return given


def holds(given, stored, now_us=NOW):
    """Whether a leaf over `a` holds of what is stored as JSON."""
    values = {} if stored is MISSING else {"a": msgspec.json.encode(stored)}
    return parse_tree(given).bound(1, 1, {}).evaluate(Subject(values, ()), now_us).holds


ROWS = [
    ("exists", None, NOTHING, set(SAMPLES) - {"missing"}),
    ("not_exists", None, NOTHING, {"missing"}),
    ("empty", None, NOTHING, {"missing", "null", "empty", "no items"}),
    ("in_list", "string", ["Dog", "12"], {"dog", "DOG", "12", "number 12"}),
    ("in_list", "number", [12, "1.5", Decimal("-3.0")], {"12", "number 12", "12.0", "-3", "1.5"}),
    ("contains", "string", "DO", {"dog", "DOG", "hot dog"}),
    ("contains", "string", "", TEXTS),
    ("not_contains", "string", "DO", TEXTS - {"dog", "DOG", "hot dog"}),
    ("pattern", "string", "?o*G", {"dog", "DOG", "hot dog"}),
    ("pattern", "string", "1?", {"12", "number 12"}),
    ("equals", "string", "Dog", {"dog", "DOG"}),
    ("equals", "string", "12", {"12", "number 12"}),
    ("equals", "string", "true", {"true", "TRUE", "truth"}),
    ("equals", "string", "", {"empty"}),
    ("equals", "number", 12, {"12", "number 12", "12.0"}),
    ("equals", "number", "1.50", {"1.5"}),
    ("equals", "boolean", True, {"true", "TRUE", "truth"}),
    ("equals", "boolean", "False", {"untruth"}),
    ("equals", "date", "2024-05-01", {"day", "noon", "ms", "ms text"}),
    ("equals", "date", "2024-05-01T14:00:00+02:00", {"noon", "ms", "ms text"}),
    ("equals", "date", 1714564800000, {"noon", "ms", "ms text"}),
    ("not_equals", "string", "dog", TEXTS - {"dog", "DOG"}),
    ("not_equals", "number", 12, {"-3", "1.5", "ms", "ms text"}),
    ("greater_than", "number", 1.5, {"12", "number 12", "12.0", "ms", "ms text"}),
    ("greater_or_equal", "number", 1.5, {"12", "number 12", "12.0", "1.5", "ms", "ms text"}),
    ("less_than", "number", "12", {"-3", "1.5"}),
    ("less_than_or_equal", "number", "12", {"-3", "1.5", "12", "number 12", "12.0"}),
    ("between", "number", [1.5, 12], {"1.5", "12", "number 12", "12.0"}),
    ("between", "number", ["1.6", "11.999999999999999"], set()),
    ("before", "date", "2024-05-02", DATES - {"next day"}),
    ("before", "date", "2024-05-01T12:00:00Z", {"day", "12", "number 12", "-3"}),
    ("before", "date", "2024-05-01", {"12", "number 12", "-3"}),
    ("after", "date", "2024-05-01", {"day", "noon", "ms", "ms text", "next day"}),
    ("after", "date", "2024-05-01T12:00:00Z", {"noon", "ms", "ms text", "next day"}),
    ("between_dates", "date", ["2024-04-30", "2024-05-01"], {"day", "noon", "ms", "ms text"}),
    ("between_dates", "date", ["2024-05-01", "2024-05-02T00:00:00Z"],
     DATES - {"12", "number 12", "-3"}),
    ("on", "date", "2024-05-01", {"day", "noon", "ms", "ms text"}),
    ("on", "date", "2024-05-02T00:00:00Z", {"next day"}),
    ("within_last_days", "date", 9, {"day", "noon", "ms", "ms text", "next day"}),
    ("within_last_days", "date", "8", {"next day"}),
    ("includes", "list", "DOG", {"dogs"}),
    ("not_includes", "list", "DOG", LISTS - {"dogs"}),
    ("partial_match", "list", "Do", {"dogs", "hot dogs"}),
]  # fmt: skip
"""Condition, type, operand -> which of all samples it is true of; of no other."""

MATRIX = {
    "in_list": {"string", "number"},
    "contains": {"string"},
    "not_contains": {"string"},
    "pattern": {"string"},
    "equals": {"string", "number", "boolean", "date"},
    "not_equals": {"string", "number"},
    "greater_than": {"number"},
    "greater_or_equal": {"number"},
    "less_than": {"number"},
    "less_than_or_equal": {"number"},
    "between": {"number"},
    "before": {"date"},
    "after": {"date"},
    "between_dates": {"date"},
    "on": {"date"},
    "within_last_days": {"date"},
    "includes": {"list"},
    "not_includes": {"list"},
    "partial_match": {"list"},
}
"""The published matrix, and what we have beside it."""
ALIASES = {
    "exists": {"is_set"},
    "not_exists": {"is_not_set"},
    "not_contains": {"does_not_contain"},
    "equals": {"is", "exact_match"},
    "not_equals": {"is_not", "does_not_match"},
    "greater_or_equal": {"greater_than_or_equal"},
    "less_than_or_equal": {"less_or_equal"},
    "not_includes": {"does_not_include"},
}


@pytest.mark.parametrize(("condition", "kind", "value", "true_of"), ROWS)
def test_a_condition_is_true_of_exactly_these(condition, kind, value, true_of):
    given = leaf(condition, value, kind)
    assert true_of == {name for name, stored in SAMPLES.items() if holds(given, stored)}


@pytest.mark.parametrize(
    ("name", "alias"), [(name, each) for name, all_ in ALIASES.items() for each in sorted(all_)]
)
def test_an_alias_is_the_same_condition(name, alias):
    for condition, kind, value, true_of in ROWS:
        if condition == name:
            given = leaf(alias, value, kind)
            assert true_of == {name for name, stored in SAMPLES.items() if holds(given, stored)}


def test_the_table_has_every_condition_with_every_type_and_no_other():
    rows = {(condition, kind) for condition, kind, _, _ in ROWS if kind is not None}
    assert {(name, kind) for name, kinds in MATRIX.items() for kind in kinds} == rows
    assert {*MATRIX, "exists", "not_exists", "empty"} == {each.name for each in CONDITIONS.values()}
    names = {*MATRIX, "exists", "not_exists", "empty"} | set().union(*ALIASES.values())
    assert names == set(CONDITIONS)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("condition", sorted(MATRIX))
def test_a_condition_of_another_type_is_refused_with_its_place(condition, kind):
    value = next(row[2] for row in ROWS if row[0] == condition)
    if kind not in MATRIX[condition]:
        with pytest.raises(Invalid, match=r"at `\$\.rule_tree\.type`"):
            parse_tree(leaf(condition, value, kind))
    else:
        value = next(row[2] for row in ROWS if row[:2] == (condition, kind))
        assert kind == parse_tree(leaf(condition, value, kind)).shown["type"]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("condition", ["exists", "not_exists", "empty"])
def test_whether_there_is_a_value_is_the_same_for_every_type(condition, kind):
    true_of = next(row[3] for row in ROWS if row[0] == condition)
    given = leaf(condition, None, kind)
    assert true_of == {name for name, stored in SAMPLES.items() if holds(given, stored)}


@pytest.mark.parametrize(
    ("condition", "value", "kind"),
    [
        ("equals", "12", "string"),
        ("equals", 12, "number"),
        ("equals", 1.5, "number"),
        ("equals", Decimal("1.50"), "number"),
        ("equals", True, "boolean"),
        ("is_not", "12", "string"),
        ("is_not", 12, "number"),
        ("in_list", ["12"], "string"),
        ("in_list", [12, 1.5], "number"),
        ("on", "2024-05-01", "date"),
        ("greater_than", "12", "number"),
        ("contains", "1", "string"),
        ("includes", "Dog", "list"),
    ],
)
def test_the_type_follows_from_the_condition_or_else_from_the_value(condition, value, kind):
    plain, typed = leaf(condition, value), leaf(condition, value, kind)
    for name, stored in SAMPLES.items():
        assert holds(typed, stored) is holds(plain, stored), name
    assert "type" not in parse_tree(plain).shown


# Boundaries


@pytest.mark.parametrize(
    ("condition", "value", "stored", "expected"),
    [
        ("equals", 0, "-0", True),
        ("equals", Decimal("-0.0"), 0, True),
        ("equals", 0.1, "0.1", True),
        ("equals", Decimal("0.1"), "0.100000000000000", True),
        ("equals", 0.1, "0.100000000000001", False),
        ("equals", 10**30 - 1, "9" * 30, True),
        ("equals", 10**30 - 1, "9" * 30 + ".1", False),
        ("greater_than", 2**53, str(2**53 + 1), True),
        ("greater_than", 2**53, 2**53, False),
        ("less_than", 1e-15, 0, True),
        ("equals", 1e-15, "0.000000000000001", True),
        ("equals", 1e22, "1" + "0" * 22, True),
        ("equals", Decimal("1E+5"), 100000, True),
        ("equals", Decimal("1.50000000000000000000"), "1.5", True),
        ("not_equals", 5, "9" * 31, False),
        ("not_equals", 5, "0.0000000000000001", False),
        ("not_equals", 5, " 4", False),
        ("not_equals", 5, "+4", False),
        ("not_equals", 5, "4.", False),
        ("not_equals", 5, ".4", False),
        ("not_equals", 5, "4e1", False),
        ("not_equals", 5, "\u0664", False),
        ("not_equals", 5, "0004", True),
        ("not_equals", 5, "nan", False),
        ("between", [5, 5], 5, True),
        ("between", [5, 5], "5.000000000000001", False),
        ("between", [-1, "1"], "-1.000000000000001", False),
        ("less_than_or_equal", -1, "-1.000000000000001", True),
    ],
)
def test_numbers_are_exact_to_their_last_digit(condition, value, stored, expected):
    given = leaf(condition, value, "number")
    assert expected is holds(given, stored)


def test_a_stored_number_that_only_an_exponent_makes_short_is_none():
    values = {"a": b"1e999999"}
    rule = parse_tree(leaf("not_equals", 5)).bound(1, 1, {})
    assert not rule.evaluate(Subject(values, ()), NOW).holds


@pytest.mark.parametrize(
    ("condition", "value", "stored", "expected"),
    [
        ("equals", "STRASSE", "straße", True),
        ("equals", "Straße", "STRASSE", True),
        ("equals", "ΟΔΟΣ", "οδος", True),
        ("equals", "ǆ", "ǅ", True),
        ("equals", "ﬁ", "FI", True),
        ("equals", "é", "e\u0301", False),
        ("equals", "dog", "dog ", False),
        ("equals", "a\u0000b", "A\u0000B", True),
        ("equals", '"q\\"', '"Q\\"', True),
        ("contains", "SS", "Fuß", True),
        ("contains", "🐕", "my 🐕!", True),
        ("not_contains", "ss", "Fuß", False),
        ("not_equals", "strasse", "STRAßE", False),
        ("in_list", ["STRASSE", "x"], "straße", True),
        ("includes", "STRASSE", ["straße"], True),
        ("includes", "strass", ["straße"], False),
        ("partial_match", "STRASS", ["x", "straße"], True),
        ("includes", "", ["x", ""], True),
        ("partial_match", "", [], False),
        ("not_includes", "x", ["X"], False),
        ("pattern", "STRA?E", "straße", True),
        ("pattern", "*\n*", "a\nb", True),
    ],
)
def test_texts_are_compared_whole_and_without_case(condition, value, stored, expected):
    assert expected is holds(leaf(condition, value), stored)


def test_a_truth_is_a_text_in_any_case_and_nothing_else():
    for text in ("true", "True", "tRUE", True):
        assert holds(leaf("is", YES), text), text
        assert not holds(leaf("is", NO), text), text
    for other in ("yes", "1", 1, 0, "", " true", "\uff54rue", "fal\u017fe", None, ["true"]):
        assert not holds(leaf("is", YES), other), other
        assert not holds(leaf("is", NO), other), other


DATE_TEXTS = {
    "2024-05-01T12:00:00Z": "2024-05-01T12:00:00+00:00",
    "2024-05-01t12:00:00z": "2024-05-01T12:00:00+00:00",
    "2024-05-01 12:00:00": "2024-05-01T12:00:00+00:00",
    "2024-05-01T12:00": "2024-05-01T12:00:00+00:00",
    "2024-05-01T12:00+02": "2024-05-01T10:00:00+00:00",
    "2024-05-01T12:00:00+0230": "2024-05-01T09:30:00+00:00",
    "2024-05-01T12:00:00-11:59": "2024-05-01T23:59:00+00:00",
    "2024-05-01T00:00:00+23:59": "2024-04-30T00:01:00+00:00",
    "2024-05-01T12:00:00.5Z": "2024-05-01T12:00:00.500000+00:00",
    "2024-05-01T12:00:00,25": "2024-05-01T12:00:00.250000+00:00",
    "2024-05-01T12:00:00.123456Z": "2024-05-01T12:00:00.123456+00:00",
    "2024-05-01T12:00:00.123456789Z": "2024-05-01T12:00:00.123456+00:00",
    "1969-12-31T23:59:59.999999Z": "1969-12-31T23:59:59.999999+00:00",
    "2024-02-29": "2024-02-29T00:00:00+00:00",
    "0001-01-01": "0001-01-01T00:00:00+00:00",
    "9999-12-31T23:59:59.999999Z": "9999-12-31T23:59:59.999999+00:00",
    "0": "1970-01-01T00:00:00+00:00",
    "-1": "1969-12-31T23:59:59.999000+00:00",
    "1714564800000": "2024-05-01T12:00:00+00:00",
    "-62135596800000": "0001-01-01T00:00:00+00:00",
    "253402300799999": "9999-12-31T23:59:59.999000+00:00",
}
NO_DATES = [
    "", "2024", "2023-02-29", "2024-13-01", "2024-00-10", "2024-04-31", "0000-01-01", "2024-5-1",
    "20240501T120000Z", "2024-W18-3", "2024-122", "12:00", "2024-05-01T", "2024-05-01T12",
    "2024-05-01T24:00:00Z", "2024-05-01T12:60", "2024-05-01T12:00:60Z", "2024-05-01Z",
    "2024-05-01+02:00", "2024-05-01T12:00:00+24:00", "2024-05-01T12:00:00+02:60",
    "2024-05-01T12:00:00.Z", "2024-05-01T12:00:00.1234567890Z", "2024-05-01T12:00.5Z",
    " 2024-05-01", "2024-05-01 ", "2024-05-01T12:00:00Z ", "2024-05-01\n", "1714564800000.0",
    "1714564800000\n", "1e12", "-62135596800001", "253402300800000", "9" * 16, "9" * 5000,
    "+5", "--5", "\u0662\u0660\u0662\u0664-05-01", "May 1, 2024", "2024-05-01T12:00:00 UTC", "now",
]  # fmt: skip


@pytest.mark.parametrize(("text", "moment"), DATE_TEXTS.items())
def test_a_date_is_an_instant(text, moment):
    whole = text.count("-") == 2 and len(text) == 10
    assert (us(moment), whole) == moment_of(text)
    assert holds(leaf("equals", text, "date"), text)
    assert holds(leaf("after", moment), text)
    assert not holds(leaf("before", moment), text)


@pytest.mark.parametrize("text", [each for each in NO_DATES if each != "2024"])
def test_what_is_no_date_fulfils_no_condition_on_dates_and_is_no_operand(text):
    assert moment_of(text) is None
    for condition, value in (
        ("before", "9999-12-31"), ("after", "0001-01-01"), ("on", "2024-05-01"),
        ("between_dates", ["0001-01-01", "9999-12-31"]), ("within_last_days", 36_500),
    ):  # fmt: skip
        assert not holds(leaf(condition, value), text)
    with pytest.raises(Invalid, match=r"A date .* at `\$\.rule_tree\.value`"):
        parse_tree(leaf("on", text))


def test_whole_numbers_are_ms_since_1970_even_where_they_look_like_a_year():
    assert (2_024_000, False) == moment_of("2024")
    assert (20_240_501_000, False) == moment_of("20240501")


@pytest.mark.parametrize(
    ("condition", "value", "first", "last"),
    [
        ("on", "2024-05-01", "2024-05-01T00:00:00.000000", "2024-05-01T23:59:59.999999"),
        ("on", "2024-05-01T12:00:00+02:00", "2024-05-01T10:00:00.000000",
         "2024-05-01T10:00:00.000000"),
        ("between_dates", ["2024-04-30", "2024-05-01"], "2024-04-30T00:00:00.000000",
         "2024-05-01T23:59:59.999999"),
        ("between_dates", ["2024-05-01", "2024-05-01"], "2024-05-01T00:00:00.000000",
         "2024-05-01T23:59:59.999999"),
        ("between_dates", ["2024-05-01T12:00Z", "2024-05-01"], "2024-05-01T12:00:00.000000",
         "2024-05-01T23:59:59.999999"),
        ("between_dates", ["2024-05-01T12:00Z", "2024-05-01T12:00Z"],
         "2024-05-01T12:00:00.000000", "2024-05-01T12:00:00.000000"),
        ("between_dates", [0, 1000], "1970-01-01T00:00:00.000000", "1970-01-01T00:00:01.000000"),
        ("between_dates", ["9999-12-31", "9999-12-31"], "9999-12-31T00:00:00.000000",
         "9999-12-31T23:59:59.999999"),
    ],
)  # fmt: skip
def test_a_span_of_dates_holds_from_its_first_to_its_last_microsecond(
    condition, value, first, last
):
    def text(instant: int) -> str:
        days, rest = divmod(instant, DAY)
        seconds, fraction = divmod(rest, 1_000_000)
        day = datetime.fromordinal(days + datetime(1970, 1, 1).toordinal())  # noqa: DTZ001
        minutes, second = divmod(seconds, 60)
        return f"{day:%Y-%m-%d}T{minutes // 60:02}:{minutes % 60:02}:{second:02}.{fraction:06}Z"

    given = leaf(condition, value)
    start, end = us(first + "+00:00"), us(last + "+00:00")
    assert holds(given, text(start))
    assert holds(given, text(end))
    assert not holds(given, text(start - 1))
    if not last.startswith("9999-12-31T23"):
        assert not holds(given, text(end + 1))


@pytest.mark.parametrize("days", [1, 30, 36_500])
def test_the_last_days_hold_from_both_ends_and_say_when_they_turn(days):
    rule = parse_tree(leaf("within_last_days", days)).bound(1, 1, {})
    assert rule.timed
    stored = us("2024-05-01T12:00:00+00:00")
    subject = Subject({"a": b'"2024-05-01T12:00:00Z"'}, ())
    end = stored + days * DAY
    assert (False, stored) == rule.evaluate(subject, stored - 1)
    assert (True, end + 1) == rule.evaluate(subject, stored)
    assert (True, end + 1) == rule.evaluate(subject, end)
    assert (False, None) == rule.evaluate(subject, end + 1)
    assert (False, None) == rule.evaluate(Subject({}, ()), stored)
    assert (False, None) == rule.evaluate(Subject({"a": b'"soon"'}, ()), stored)


def test_a_day_is_stored_as_its_start():
    rule = parse_tree(leaf("within_last_days", 1)).bound(1, 1, {})
    start = us("2024-05-01T00:00:00+00:00")
    assert (True, start + DAY + 1) == rule.evaluate(Subject({"a": b'"2024-05-01"'}, ()), start)


# What is refused

BAD_OPERANDS = [
    (leaf("equals"), ""),
    (leaf("within_last_days"), ""),
    (leaf("equals", None), ".value"),
    (leaf("equals", {}), ".value"),
    (leaf("equals", []), ".value"),
    (leaf("equals", ["x"]), ".value"),
    (leaf("not_equals", YES), ".value"),
    (leaf("equals", 5, "string"), ".value"),
    (leaf("equals", "five", "number"), ".value"),
    (leaf("equals", YES, "number"), ".value"),
    (leaf("equals", 1, "boolean"), ".value"),
    (leaf("equals", "yes", "boolean"), ".value"),
    (leaf("equals", "may", "date"), ".value"),
    (leaf("equals", YES, "date"), ".value"),
    (leaf("equals", 1.5, "date"), ".value"),
    (leaf("equals", 10**30, "date"), ".value"),
    (leaf("equals", "x", "text"), ".type"),
    (leaf("equals", "x", "list"), ".type"),
    (leaf("equals", "x") | {"type": None}, ".type"),
    (leaf("equals", "x") | {"type": ["string"]}, ".type"),
    (leaf("exists", 1), ".value"),
    (leaf("exists", ""), ".value"),
    (leaf("exists", NO), ".value"),
    (leaf("empty", []), ".value"),
    (leaf("exists", kind="text"), ".type"),
    (leaf("contains", 5), ".value"),
    (leaf("contains", YES), ".value"),
    (leaf("contains", None), ".value"),
    (leaf("contains", ["x"]), ".value"),
    (leaf("pattern", 5), ".value"),
    (leaf("pattern", "x" * 257), ".value"),
    (leaf("includes", 5), ".value"),
    (leaf("partial_match", ["x"]), ".value"),
    (leaf("in_list", "x"), ".value"),
    (leaf("in_list", []), ".value"),
    (leaf("in_list", [], "string"), ".value"),
    (leaf("in_list", ["x"] * 1001), ".value"),
    (leaf("in_list", ["x", 1]), ".value[1]"),
    (leaf("in_list", [1, "x"]), ".value[1]"),
    (leaf("in_list", [1, True]), ".value[1]"),
    (leaf("in_list", [True]), ".value"),
    (leaf("in_list", [None]), ".value"),
    (leaf("in_list", [["x"]]), ".value"),
    (leaf("in_list", ["x", ["x"]]), ".value[1]"),
    (leaf("in_list", ["1", None], "number"), ".value[1]"),
    (leaf("greater_than", "many"), ".value"),
    (leaf("greater_than", YES), ".value"),
    (leaf("greater_than", None), ".value"),
    (leaf("greater_than", []), ".value"),
    (leaf("greater_than", {}), ".value"),
    (leaf("greater_than", ""), ".value"),
    (leaf("greater_than", "1e5"), ".value"),
    (leaf("greater_than", 10**30), ".value"),
    (leaf("greater_than", -(10**30)), ".value"),
    (leaf("greater_than", 1e30), ".value"),
    (leaf("greater_than", 1e-16), ".value"),
    (leaf("greater_than", float("nan")), ".value"),
    (leaf("greater_than", float("inf")), ".value"),
    (leaf("greater_than", Decimal("NaN")), ".value"),
    (leaf("greater_than", Decimal("-Infinity")), ".value"),
    (leaf("greater_than", Decimal("1E+30")), ".value"),
    (leaf("greater_than", Decimal("1E+999999999")), ".value"),
    (leaf("greater_than", Decimal("1E-999999999")), ".value"),
    (leaf("greater_than", Decimal("0.0000000000000001")), ".value"),
    (leaf("between", 5), ".value"),
    (leaf("between", [5]), ".value"),
    (leaf("between", [1, 2, 3]), ".value"),
    (leaf("between", [2, 1]), ".value"),
    (leaf("between", ["x", 2]), ".value[0]"),
    (leaf("between", [1, None]), ".value[1]"),
    (leaf("before", "tomorrow"), ".value"),
    (leaf("after", ["2024-05-01"]), ".value"),
    (leaf("between_dates", "2024-05-01"), ".value"),
    (leaf("between_dates", ["2024-05-01"]), ".value"),
    (leaf("between_dates", ["2024-05-02", "2024-05-01"]), ".value"),
    (leaf("between_dates", ["2024-05-01", "x"]), ".value[1]"),
    (leaf("between_dates", [None, "2024-05-01"]), ".value[0]"),
    (leaf("within_last_days", 0), ".value"),
    (leaf("within_last_days", -1), ".value"),
    (leaf("within_last_days", 36_501), ".value"),
    (leaf("within_last_days", 10**5000), ".value"),
    (leaf("within_last_days", "9" * 5000), ".value"),
    (leaf("within_last_days", 1.5), ".value"),
    (leaf("within_last_days", "1.0"), ".value"),
    (leaf("within_last_days", YES), ".value"),
    (leaf("within_last_days", [1]), ".value"),
    (leaf("no_such", "x"), ".condition"),
    (leaf("EQUALS", "x"), ".condition"),
    (leaf(None, "x"), ".condition"),
    (leaf(5, "x"), ".condition"),
    (leaf(["is"], "x"), ".condition"),
    (leaf({}, "x"), ".condition"),
    (leaf("x" * 5000, "x"), ".condition"),
    (leaf("is", "x", attribute=""), ".attribute"),
    (leaf("is", "x", attribute="x" * 257), ".attribute"),
    (leaf("is", "x", attribute="a\0b"), ".attribute"),
    (leaf("is", "x", attribute=None), ".attribute"),
    (leaf("is", "x", attribute=["a"]), ".attribute"),
]


@pytest.mark.parametrize(
    ("given", "place"), BAD_OPERANDS, ids=[str(at) for at in range(len(BAD_OPERANDS))]
)
def test_a_leaf_that_does_not_fit_is_refused_with_its_place(given, place):
    with pytest.raises(Invalid) as refused:
        parse_tree({"operator": "AND", "children": [{"group": "g"}, given]})
    assert refused.value.field == "rule_tree"
    assert str(refused.value).endswith(f" - at `$.rule_tree.children[1]{place}`")
    assert len(str(refused.value)) < 600, "what was sent is not repeated at length"


def test_a_sentence_says_what_there_is():
    with pytest.raises(Invalid, match=r"`bigger_than` is no condition\. There are: .*greater_than"):
        parse_tree(leaf("bigger_than", 5))
    for value, found in ((10**30, "a longer one"), (1e-16, "a longer one"), ("many", "`many`")):
        with pytest.raises(Invalid, match=f"15 decimals .* and this is {found} - at"):
            parse_tree(leaf("less_than", value))
    with pytest.raises(Invalid, match=r"`text` is no type\. There are: string, number, boolean"):
        parse_tree(leaf("is", "x", "text"))
    with pytest.raises(Invalid, match=r"`not_equals` is of type string or number, not boolean"):
        parse_tree(leaf("is_not", YES, "boolean"))


def test_what_was_sent_is_repeated_as_it_was_and_no_longer_than_a_line():
    assert "`x`" == echoed("x")
    assert "`" + "x" * 100 + "`…" == echoed("x" * 101)
    shown = [echoed(each) for each in (None, True, False, 1, 0, 1.5, Decimal(1), [1], {"a": 1})]
    kinds = ["null", "true", "false", *["a number"] * 4, "an array", "an object"]
    assert kinds == shown


# What is shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (5, {"value": 5}),
        (10**29, {"value": 10**29}),
        (1.5, {"value": 1.5}),
        (Decimal("1.50"), {"value": 1.5}),
        (Decimal("1E+2"), {"value": 100.0}),
        (Decimal("-0.0"), {"value": 0.0}),
        (Decimal("0.123456789012345"), {"value": 0.123456789012345}),
        (Decimal("123456789.123456789012345"),
         {"value": "123456789.123456789012345", "type": "number"}),
        (Decimal("12345678901234567890.5"), {"value": "12345678901234567890.5", "type": "number"}),
    ],
)  # fmt: skip
def test_an_operand_is_shown_as_given_and_reads_back_as_the_same_number(value, shown):
    tree = parse_tree(leaf("equals", value))
    assert leaf("equals") | shown == tree.shown
    again = parse_tree(json.loads(json.dumps(tree.shown)))
    assert tree.shown == again.shown
    exact = {f"{Decimal(value):f}", f"{Decimal(value) + Decimal('1E-15'):f}"}
    for text in exact:
        assert holds(tree.shown, text) is holds(leaf("equals", value), text)
    assert holds(tree.shown, f"{Decimal(value):f}")


def test_numbers_of_a_list_that_no_float_is_are_shown_as_texts_of_type_number():
    tree = parse_tree(leaf("in_list", [1, Decimal("0.5"), Decimal("12345678901234567890.5")]))
    expected = leaf("in_list", [1, 0.5, "12345678901234567890.5"], "number")
    assert expected == tree.shown == parse_tree(tree.shown).shown


def test_a_value_is_shown_as_a_text_or_a_list_of_texts():
    stored = (None, b"null", b'"a\\"b"', b"12", b"1.0", b"true", b'["a","b"]', b"[]", b'""')
    expected = [None, None, 'a"b', "12", "1.0", "true", ["a", "b"], [], ""]
    assert expected == [shown_value(each) for each in stored]
