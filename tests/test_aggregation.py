"""How values of members become one: every row of table 2.6, and what it leaves open."""

from __future__ import annotations

import json
import random
from decimal import Decimal, localcontext

import pytest

from service.aggregation import Held, Outcome, aggregate, number_of, number_text, values_of
from service.attributes import is_sound
from service.grouping import AGGREGATIONS, Contribution, Definition, GroupAttribute, Instance

JOHN, JANE, JIM = (bytes([each]) * 16 for each in (1, 2, 3))


def held(*values: object, members: int | None = None) -> tuple[list[Held], int]:
    """Members 1, 2, … with these values, written at 10, 20, …; None stands for a null."""
    found = [
        Held(
            position,
            bytes([position]) * 16,
            10 * position,
            value if isinstance(value, bytes) else json.dumps(value).encode(),
        )
        for position, value in enumerate(values, 1)
    ]
    return found, len(found) if members is None else members


def value(kind: str, *values: object, members: int | None = None) -> object:
    outcome = aggregate(kind, *held(*values, members=members))
    return None if outcome is None else json.loads(outcome.value)


def deciding(kind: str, *values: object, members: int | None = None) -> tuple[int, int] | None:
    outcome = aggregate(kind, *held(*values, members=members))
    assert outcome is not None
    if outcome.source is None:
        assert outcome.set_at_us is None
        return None
    assert outcome.source.mpid is not None
    assert outcome.set_at_us is not None
    return outcome.source.mpid, outcome.set_at_us


def conflicts(kind: str, *values: object) -> int:
    outcome = aggregate(kind, *held(*values))
    assert outcome is not None
    return outcome.conflicts


@pytest.mark.parametrize("kind", AGGREGATIONS)
def test_every_aggregation_of_nothing_is_decided(kind):
    nothing = {
        "boolean_or": "false", "boolean_and": "false", "count": "0", "count_distinct": "0",
    }  # fmt: skip
    assert nothing.get(kind) == value(kind, members=3)
    assert nothing.get(kind) == value(kind, None, None, members=3)


@pytest.mark.parametrize("kind", AGGREGATIONS)
def test_what_comes_out_is_an_attribute_as_any_other(kind):
    for values in (["true", "7"], [b"true", b"7.50"], [["a", "b"], "a"], ["é\n🙂", ""]):
        outcome = aggregate(kind, *held(*values))
        if outcome is not None:
            assert outcome.value[:1] in {b'"', b"["}
            assert is_sound(b"name", b"2 1 " + outcome.value)


def test_an_unknown_aggregation_is_no_silent_nothing():
    with pytest.raises(KeyError):
        aggregate("median", *held("1"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["true"], "true"),
        ([b"true"], "true"),
        (["TRUE"], "true"),
        (["False", "tRue"], "true"),
        (["false", b"false"], "false"),
        (["1"], "false"),
        ([b"1"], "false"),
        (["yes"], "false"),
        ([" true"], "false"),
        ([["true"]], "false"),
        ([None], "false"),
        ([""], "false"),
    ],
)
def test_boolean_or_is_true_if_any_is_true_in_any_case(values, expected):
    assert expected == value("boolean_or", *values)


def test_boolean_or_names_the_first_who_is_true_and_nobody_for_false():
    assert (2, 20) == deciding("boolean_or", "false", "true", "true")
    assert deciding("boolean_or", "false", "no") is None


@pytest.mark.parametrize(
    ("values", "members", "expected"),
    [
        (["true", "TRUE", b"true"], 3, "true"),
        (["true", "false"], 2, "false"),
        (["true", "yes"], 2, "false"),
        (["true", ["true"]], 2, "false"),
        (["true", None], 2, "false"),
        (["true", "true"], 3, "false"),
    ],
)
def test_boolean_and_is_true_if_every_member_is(values, members, expected):
    assert expected == value("boolean_and", *values, members=members)


def test_boolean_and_names_the_first_who_is_not_true():
    assert (2, 20) == deciding("boolean_and", "true", "maybe", "false")
    assert deciding("boolean_and", "true", "true") is None
    assert deciding("boolean_and", "true", members=2) is None


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (b'"a"', "a"),
        (b'""', ""),
        (b"12", "12"),
        (b"1.0", "1.0"),
        (b"true", "true"),
        (b'["b","a"]', ["b", "a"]),
    ],
)
def test_latest_is_the_value_as_it_is(stored, expected):
    assert expected == value("latest", stored)


def test_latest_is_the_one_written_last_whoever_joined_first():
    john = Held(1, JOHN, 30, b'"old"')
    jane = Held(2, JANE, 31, b'"new"')
    for each in ([john, jane], [jane, john]):
        assert Outcome(b'"new"', jane, 31) == aggregate("latest", each, 2)


def test_latest_skips_a_tag():
    assert value("latest", "a", None) == "a"


@pytest.mark.parametrize(("john", "jane"), [(-5, 3), (3, None), (-(2**63), 2**63 - 1)])
def test_latest_of_one_time_is_that_of_the_smaller_mpid(john, jane):
    values = [Held(jane, JOHN, 30, b'"jane"'), Held(john, JANE, 30, b'"john"')]
    for each in (values, values[::-1]):
        assert Outcome(b'"john"', values[1], 30) == aggregate("latest", each, 2)


def test_latest_of_one_time_without_mpids_is_the_same_whatever_the_order():
    values = [Held(None, JANE, 30, b'"jane"'), Held(None, JOHN, 30, b'"john"')]
    assert aggregate("latest", values, 2) == aggregate("latest", values[::-1], 2)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["0.1", "0.2"], "0.3"),
        ([b"12", "12"], "24"),
        (["1.50", "1.50"], "3"),
        (["-1", "1"], "0"),
        (["-0.5"], "-0.5"),
        (["-0.0"], "0"),
        (["007"], "7"),
        (["34.32", None, "yes", ["1"], ""], "34.32"),
        (["9" * 30 + "." + "9" * 15] * 2, "1" + "9" * 30 + "." + "9" * 14 + "8"),
        (["0." + "0" * 14 + "1"], "0." + "0" * 14 + "1"),
        (["-" + "9" * 30, "0." + "0" * 14 + "1"], "-" + "9" * 29 + "8." + "9" * 15),
    ],
)
def test_a_sum_is_exact(values, expected):
    assert expected == value("sum", *values)


@pytest.mark.parametrize(
    "text",
    [
        "1e999999", b"1e5", "+1", ".5", "1.", "1,000", " 1", "1 ", "1\n", "0x1", "NaN", "Infinity",
        "\u0661", "--1", "1" * 31, "0." + "0" * 16, "yes", "", b"true", ["1"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["sum", "average", "min", "max"])
def test_what_is_no_number_is_a_conflict_and_counts_nowhere(kind, text):
    assert "5" == value(kind, text, "5", text)
    assert 2 == conflicts(kind, text, "5", text)
    assert value(kind, text) is None


def test_a_tag_is_no_conflict():
    for kind in ("sum", "boolean_or", "boolean_and", "latest", "unique_list"):
        assert 0 == conflicts(kind, None, "true", "5", None) - conflicts(kind, "true", "5")


def test_a_truth_value_that_is_none_is_a_conflict():
    assert 3 == conflicts("boolean_or", "yes", "true", "1", ["true"], None)
    assert 3 == conflicts("boolean_and", "yes", "true", "1", ["true"], None)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "2"], "1.5"),
        (["1", "2", None, "yes"], "1.5"),
        (["1", "1", "2"], "1.3333333333"),
        (["1", "2", "2"], "1.6666666667"),
        (["-1", "-1", "-2"], "-1.3333333333"),
        (["0.00000000005"], "0"),
        (["0.00000000015"], "0.0000000002"),
        (["0.00000000025"], "0.0000000002"),
        (["0.000000000250001"], "0.0000000003"),
        (["-0.00000000015"], "-0.0000000002"),
        (["-0.00000000005"], "0"),
        (["10", "10"], "10"),
    ],
)
def test_an_average_has_ten_decimals_half_to_even(values, expected):
    assert expected == value("average", *values)


def test_sums_and_averages_are_those_of_exact_decimal_arithmetic():
    drawn = random.Random(4)
    for _ in range(300):
        texts = [
            ("-" if drawn.random() < 0.5 else "")
            + str(drawn.randrange(10 ** drawn.randint(1, 30)))
            + (f".{drawn.randrange(10**15):015d}"[: drawn.randint(2, 16)])
            for _ in range(drawn.randint(1, 12))
        ]
        with localcontext(prec=200):
            total = sum(map(Decimal, texts), Decimal(0))
            mean = (total / len(texts)).quantize(Decimal(10) ** -10)
            assert total == Decimal(str(value("sum", *texts)))
            assert mean == Decimal(str(value("average", *texts)))


def test_all_count_for_a_sum_so_nobody_decided_it():
    for kind in ("sum", "average", "count", "count_distinct", "unique_list"):
        assert deciding(kind, "1", "2") is None


def test_min_and_max_compare_numbers_and_name_the_first_who_has_it():
    assert "9" == value("min", "10", "9.0", "9", "yes")
    assert "10" == value("max", "10.0", "9", "10", "yes")
    assert (2, 20) == deciding("min", "10", "9.0", "9")
    assert (1, 10) == deciding("max", "10.0", "9", "10")
    assert "-2" == value("min", "-1", "-2")


def test_a_count_is_of_members_who_have_a_value():
    assert "3" == value("count", "a", "a", ["b"], None, members=5)


def test_distinct_values_are_texts_and_those_of_lists_count_one_by_one():
    assert "3" == value("count_distinct", b"12", "12", ["a", "12", "b"], "a", None)
    assert ["12", "a", "b"] == value("unique_list", b"12", "12", ["a", "12", "b"], "a", None)


def test_a_unique_list_is_within_the_limits_of_an_attribute_and_says_what_it_left_out():
    first = [str(each) for each in range(600)]
    second = [str(each) for each in range(500, 1100)]
    outcome = aggregate("unique_list", *held("x" * 513, first, second, "é" * 512))
    assert outcome is not None
    assert [str(each) for each in range(1000)] == json.loads(outcome.value)
    assert (1, 101) == (outcome.conflicts, outcome.left_out)
    assert "1102" == value("count_distinct", "x" * 513, first, second, "é" * 512)


def test_a_unique_list_of_nothing_that_fits_is_absent():
    assert value("unique_list", "x" * 513, []) is None


@pytest.mark.parametrize("text", ["0", "1", "-1", "0.5", "-12.25", "9" * 30 + "." + "9" * 15])
def test_a_number_comes_back_as_its_text(text):
    scaled = number_of(text)
    assert scaled is not None
    assert text == number_text(scaled)


def test_members_of_an_instance_inherit_what_their_values_became():
    definition = Definition(
        id="household",
        source_user_attribute="$Address",
        attributes=(
            GroupAttribute("has_dog", "boolean_or"),
            GroupAttribute("$Age", "sum"),
            GroupAttribute("pet", "latest"),
        ),
        number=7,
        created_at_us=7,
        created_by="",
        modified_at_us=7,
        modified_by="",
    )
    john = Contribution(mixed=JOHN, seq=1, since_us=1, mpid=5, values={"$age": (3, b'"40"')})
    jane = Contribution(
        mixed=JANE,
        seq=1,
        since_us=2,
        mpid=None,
        values={"has_dog": (4, b'"true"'), "$age": (9, b"38.5"), "other": (9, b'"x"')},
    )
    instance = Instance(
        id=JIM, number=7, value="123 Main St", version=1, total=2, counted=(john, jane)
    )
    expected = {
        "has_dog": Outcome(b'"true"', Held(None, JANE, 4, b'"true"'), 4),
        "$Age": Outcome(b'"78.5"'),
    }
    assert expected == values_of(definition, instance)
