"""Rule trees: what is one, what it is true of and until when, and which a change may turn."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service import keys
from service.errors import Invalid
from service.grouping import Definition, GroupAttribute, Rules
from service.rules import (
    DEPTH,
    NODES,
    TREE_BYTES,
    Book,
    LeafResult,
    Subject,
    Verdict,
    parse_tree,
    subject_of,
)

NOW = 1_714_564_800_000_000
"""Noon of 2024-05-01."""
DAY = 86_400_000_000
ID = "0c1f2d3e-0000-4000-8000-00000000000{}"
GROUPS = {"g": (ID.format(1), 11), ID.format(1).upper(): (ID.format(1), 11), "h": (ID.format(2), 2)}


def is_(value, attribute="a"):
    return {"attribute": attribute, "condition": "is", "value": value}


def group(given="g"):
    return {"group": given}


def node(operator, *children):
    return {"operator": operator, "children": list(children)}


AND, OR, NOT = (partial(node, operator) for operator in ("AND", "OR", "NOT"))


def rule(given, number=7, version=100):
    return parse_tree(given).bound(number, version, GROUPS)


def subject(*groups, **values):
    return Subject({name: msgspec.json.encode(each) for name, each in values.items()}, set(groups))


def holds(given, *groups, **values):
    return rule(given).evaluate(subject(*groups, **values), NOW).holds


# Trees

YES, NO = is_("yes"), {"attribute": "zz", "condition": "exists"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (YES, True),
        (NO, False),
        (AND(YES), True),
        (AND(NO), False),
        (AND(YES, YES), True),
        (AND(YES, NO), False),
        (AND(NO, YES), False),
        (OR(NO), False),
        (OR(NO, NO), False),
        (OR(NO, YES), True),
        (OR(YES, NO), True),
        (NOT(YES), False),
        (NOT(NO), True),
        (NOT(NOT(YES)), True),
        (AND(OR(NO, YES), NOT(AND(YES, NO))), True),
        (group(), True),
        (group("h"), False),
        (AND(group(), NOT(group("h"))), True),
        (AND(YES, {"attribute": "d", "condition": "within_last_days", "value": 1}), True),
        (NOT({"attribute": "d", "condition": "within_last_days", "value": 1}), False),
        (OR(NO, NOT({"attribute": "d", "condition": "within_last_days", "value": 1})), False),
    ],
)
def test_operators_mean_what_they_say(given, expected):
    assert expected is holds(given, 11, a="yes", d="2024-05-01T12:00:00Z")


def test_inherited_attributes_are_ordinary_ones():
    has_dog = {"attribute": "household:has_dog", "condition": "is", "value": True}
    assert holds(has_dog, **{"household:has_dog": "true"})
    assert not holds(has_dog, **{"has_dog": "true", "household:has_cat": "true"})


def test_reserved_names_are_those_of_any_case():
    tree = parse_tree(AND(is_("x", "$Address"), is_("y", "$ADDRESS"), is_("z", "Address")))
    assert {"$address", "Address"} == tree.attributes
    assert holds(is_("x", "$Address"), **{"$address": "X"})
    assert tree.shown["children"][0]["attribute"] == "$Address"


def test_a_tree_is_shown_as_it_was_given():
    given = AND(
        OR({"value": 5, "condition": "greater_than", "attribute": "points"}, group("Fans")),
        NOT({"attribute": "x", "condition": "is_set", "value": None}),
        {"attribute": "t", "condition": "in_list", "value": ["a", "B"], "type": "string"},
    )
    before = json.dumps(given)
    tree = parse_tree(given)
    assert before == json.dumps(given)
    assert given == tree.shown
    given["children"][2]["value"].append("later")
    assert tree.shown["children"][2]["value"] == ["a", "B"]


def test_what_a_tree_names_is_known_with_its_places():
    tree = parse_tree(AND(OR(group("g"), is_("x", "b")), group("h"), NOT(group("g"))), "$.tree")
    assert ("g", "h") == tree.groups
    assert {"g": "$.tree.children[0].children[0].group", "h": "$.tree.children[1].group"} == (
        tree.places
    )
    assert frozenset({"b"}) == tree.attributes
    assert not tree.timed
    assert parse_tree(
        AND(YES, {"attribute": "a", "condition": "within_last_days", "value": 1})
    ).timed


def test_a_bound_tree_is_shown_with_the_ids_of_its_groups_and_names_each_once():
    upper = ID.format(1).upper()
    tree = parse_tree(AND(group("g"), OR(group(upper), group("h")), YES))
    bound = tree.bound(7, 100, GROUPS)
    mine, other = group(ID.format(1)), group(ID.format(2))
    assert AND(mine, OR(mine, other), YES) == bound.shown
    assert AND(group("g"), OR(group(upper), group("h")), YES) == tree.shown
    assert (11, 2) == bound.groups
    assert (7, 100) == (bound.number, bound.version)
    assert frozenset({"a"}) == bound.attributes


def test_a_stored_tree_reads_back_as_the_same_rule():
    bound = rule(AND(group("g"), OR(YES, is_(Decimal("12345678901234567890.5"), "n"))))
    stored = msgspec.json.decode(msgspec.json.encode(bound.shown))
    again = parse_tree(stored).bound(7, 100, {ID.format(1): (ID.format(1), 11)})
    assert bound == again


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (YES, False),
        (NOT(YES), True),
        (group(), False),
        (NOT(group()), True),
        ({"attribute": "a", "condition": "empty"}, True),
        ({"attribute": "a", "condition": "not_exists"}, True),
        ({"attribute": "a", "condition": "is_not", "value": "x"}, False),
        (AND(NOT(group()), YES), False),
        (OR(NOT(group()), YES), True),
        (NOT({"attribute": "a", "condition": "within_last_days", "value": 1}), True),
    ],
)
def test_a_rule_knows_whether_it_is_true_of_nothing(given, expected):
    assert expected is rule(given).true_of_nothing


def nested(depth):
    return YES if depth == 1 else NOT(nested(depth - 1))


def test_trees_may_be_eight_levels_deep_and_no_deeper():
    assert parse_tree(nested(DEPTH)).shown == nested(8)
    with pytest.raises(Invalid, match=r"8 levels deep") as refused:
        parse_tree(nested(DEPTH + 1))
    assert str(refused.value).endswith(f" - at `$.rule_tree{'.children[0]' * 8}`")


def test_a_tree_has_at_most_200_nodes_with_its_leaves():
    wide = AND(*[OR(*[YES] * 99)], *[NO] * 99)
    assert NODES == 200
    parse_tree(AND(OR(*[YES] * 99), *[NO] * 99))
    with pytest.raises(Invalid, match="at most 200 nodes") as refused:
        parse_tree(AND(*wide["children"], NO))
    assert str(refused.value).endswith(" - at `$.rule_tree.children[100]`")


def test_a_hostile_tree_is_refused_at_once():
    deep = YES
    for _ in range(100_000):
        deep = {"operator": "NOT", "children": [deep]}
    with pytest.raises(Invalid, match="levels deep"):
        parse_tree(deep)
    with pytest.raises(Invalid, match="200 nodes"):
        parse_tree(AND(*[YES] * 1_000_000))
    with pytest.raises(Invalid, match="not"):
        parse_tree(is_([[[[]]]] * 1_000_000))


def test_a_tree_has_at_most_32_kib_of_json_with_whole_ids_of_its_groups():
    longest = AND(is_("x" * (TREE_BYTES - len(msgspec.json.encode(AND(is_("")))))))
    assert len(msgspec.json.encode(longest)) == TREE_BYTES
    parse_tree(longest)
    with pytest.raises(Invalid, match=r"32,768 bytes of JSON, and this is 32,769 - at `\$\.rule"):
        parse_tree(AND(is_(longest["children"][0]["value"] + "x")))
    with pytest.raises(Invalid, match="bytes of JSON"):
        parse_tree(is_("é" * (TREE_BYTES // 2)))
    short = AND(group("g"), is_("x" * (TREE_BYTES - 200)))
    bound = parse_tree(short).bound(1, 1, GROUPS)
    parse_tree(bound.shown)
    room = TREE_BYTES - len(msgspec.json.encode(AND(group(ID.format(1)), is_(""))))
    parse_tree(parse_tree(AND(group("g"), is_("x" * room))).bound(1, 1, GROUPS).shown)
    with pytest.raises(Invalid, match="this is 32,769"):
        parse_tree(AND(group("g"), is_("x" * (room + 1))))


BAD_TREES = [
    (None, "", "null"),
    (True, "", "true"),
    (5, "", "a number"),
    ("AND", "", "`AND`"),
    ([], "", "an array"),
    ({}, "", "another object"),
    ({"value": 5}, "", "another object"),
    ({"operator": "AND"}, "", "`children` is missing"),
    ({"children": [YES]}, "", "`operator` is missing"),
    ({"attribute": "a"}, "", "`condition` is missing"),
    ({"condition": "is", "value": 1}, "", "`attribute` is missing"),
    (node("XOR", YES), ".operator", "`XOR` is no operator. There are: AND, OR, NOT"),
    (node("and", YES), ".operator", "`and` is no operator"),
    (node(None, YES), ".operator", "null is no operator"),
    (node(["AND"], YES), ".operator", "an array is no operator"),
    ({"operator": "AND", "children": []}, ".children", "one node or more"),
    ({"operator": "NOT", "children": []}, ".children", "one node or more"),
    ({"operator": "OR", "children": None}, ".children", "one node or more"),
    ({"operator": "OR", "children": YES}, ".children", "one node or more"),
    (NOT(YES, NO), ".children", "`NOT` has one child, and here are 2"),
    (AND(YES) | {"attribute": "a"}, "", "no field `attribute` here. There are: operator, children"),
    (AND(YES) | {"group": "a"}, "", "no field `group`"),
    (YES | {"group": "a"}, "", "no field `attribute` here. There are: group"),
    (YES | {"operatr": "a"}, "", "no field `operatr` here. There are: attribute, condition, value"),
    (YES | {"x" * 5000: "a"}, "", "no field `xxx"),
    (AND(YES, None), ".children[1]", "null"),
    (AND(YES, OR(NO, AND(YES, 5))), ".children[1].children[1].children[1]", "a number"),
    (AND(YES, OR(NO, is_(None))), ".children[1].children[1].value", "`equals` takes"),
    (AND(YES, OR(NO, {"attribute": "a", "condition": "no"})), ".children[1].children[1].condition",
     "`no` is no condition"),
    (group(""), ".group", "`` "),
    (group(None), ".group", "null"),
    (group(5), ".group", "a number"),
    (group(["g"]), ".group", "an array"),
    (group("g" * 256), ".group", "The id or custom id of a group"),
    (group("g\0"), ".group", "The id or custom id of a group"),
    (is_("\ud800"), "", "half of a surrogate pair"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "place", "said"), BAD_TREES)
@pytest.mark.parametrize("root", ["$.rule_tree", "$.tree"])
def test_what_is_no_tree_is_refused_with_its_place(given, place, said, root):
    with pytest.raises(Invalid) as refused:
        parse_tree(given, root)
    assert refused.value.field == "rule_tree"
    message, _, where = str(refused.value).rpartition(" - at ")
    assert f"`{root}{place}`" == where
    assert said in message + " "
    assert len(message) < 600


# Explanations


def test_every_leaf_is_explained_in_order_whatever_decided():
    lately = recent("d", 1)
    bound = rule(
        OR(YES, AND(group("h"), group("g")), NOT(is_("Dog", "tags")), lately, is_(5, "n"), NO)
    )
    known = subject(11, a="yes", tags=["Dog"], d="2024-05-01", n=5)
    rows: list[tuple[Any, Any, str]] = [
        (YES, "yes", "true"),
        (group(ID.format(2)), False, "false"),
        (group(ID.format(1)), True, "true"),
        (is_("Dog", "tags"), ["Dog"], "false"),
        (lately, "2024-05-01", "true"),
        (is_(5, "n"), "5", "true"),
        (NO, None, "false"),
    ]
    assert [LeafResult(leaf, value, result == "true") for leaf, value, result in rows] == (
        bound.explain(known, NOW)
    )
    assert not bound.explain(known, NOW + DAY)[4].result


def test_a_leaf_alone_is_explained():
    expected = [LeafResult(leaf=YES, value=None, result=False)]
    assert expected == rule(YES).explain(subject(a=None), NOW)


# Time


def recent(attribute, days):
    return {"attribute": attribute, "condition": "within_last_days", "value": days}


def test_what_decides_a_branch_decides_until_when():
    """`a` leaves the window in one day, `b` in two, `c` comes into it in three."""
    known = subject(a=(NOW // 1000) - 86_400_000, b=(NOW // 1000), c=(NOW // 1000) + 3 * 86_400_000)
    in_a, in_b, in_c = NOW + DAY + 1, NOW + 2 * DAY + 1, NOW + 3 * DAY
    a, b, c = (recent(name, 2) for name in "abc")
    for tree, expected in (
        (a, (True, in_a)),
        (c, (False, in_c)),
        (AND(b, a), (True, in_a)),
        (AND(b, c, a), (False, in_c)),
        (AND(NO, a), (False, None)),
        (AND(YES, a), (False, None)),
        (OR(c, b, a), (True, in_b)),
        (OR(c, NOT(a)), (False, in_a)),
        (OR(group(), a), (True, None)),
        (NOT(AND(a, b)), (False, in_a)),
        (NOT(c), (True, in_c)),
        (AND(group(), b), (True, in_b)),
        (NOT(NOT(OR(NO, AND(b, NOT(c))))), (True, in_b)),
    ):
        assert Verdict(*expected) == rule(tree).evaluate(known._replace(groups={11}), NOW), tree


def test_a_rule_without_windows_never_turns_by_time():
    assert Verdict(holds=True, turns_at_us=None) == rule(YES).evaluate(subject(a="yes"), NOW)
    assert Verdict(holds=False, turns_at_us=None) == rule(YES).evaluate(subject(), NOW)


# Against a naive evaluator, which shares nothing with the rules

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def naive_text(value):
    if value is None or isinstance(value, list):
        return None
    return value if isinstance(value, str) else json.dumps(value)


def naive_number(value):
    text = naive_text(value)
    if text is None or not re.fullmatch(r"-?[0-9]{1,30}(\.[0-9]{1,15})?", text):
        return None
    return Decimal(text)


def naive_date(value):
    """The first instant and, for an operand, the last one; generated texts have these forms."""
    text = naive_text(value)
    if text is None or isinstance(value, bool):
        return None
    if re.fullmatch(r"-?\d+", text):
        try:
            moment = EPOCH + timedelta(milliseconds=int(text))
        except OverflowError:
            return None
        return moment, moment
    if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        moment = datetime.fromisoformat(text).replace(tzinfo=UTC)
        return moment, moment + timedelta(days=1, microseconds=-1)
    if re.fullmatch(r"\d{4}-\d\d-\d\dT.*", text):
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return moment, moment
    return None


def naive_like(pattern, text):
    def one(character):
        if character == "?":
            return "."
        return ".*" if character == "*" else re.escape(character)

    return re.fullmatch("".join(map(one, pattern)), text, re.DOTALL | re.IGNORECASE) is not None


def naive_leaf(leaf, value, there, now):  # noqa: C901, PLR0911, PLR0912 - it is the whole matrix
    condition, wanted, kind = leaf["condition"], leaf.get("value"), leaf.get("type")
    if condition == "exists":
        return there
    if condition == "not_exists":
        return not there
    if condition == "empty":
        return not there or value in (None, "", [])
    if not there or value is None:
        return False
    if condition in {"includes", "not_includes", "partial_match"}:
        if not isinstance(value, list):
            return False
        items = [item.casefold() for item in value]
        return {
            "includes": wanted.casefold() in items,
            "not_includes": wanted.casefold() not in items,
            "partial_match": any(wanted.casefold() in item for item in items),
        }[condition]
    if isinstance(value, list):
        return False
    text = naive_text(value).casefold()
    if condition == "contains":
        return wanted.casefold() in text
    if condition == "not_contains":
        return wanted.casefold() not in text
    if condition == "pattern":
        return naive_like(wanted, naive_text(value))
    if condition in {"equals", "not_equals", "in_list"} and kind == "string":
        texts = [each.casefold() for each in (wanted if condition == "in_list" else [wanted])]
        return (text in texts) is not (condition == "not_equals")
    if kind == "boolean":
        return text == json.dumps(wanted)
    if kind == "number":
        number = naive_number(value)
        if number is None:
            return False
        operands = [
            Decimal(str(each)) for each in (wanted if isinstance(wanted, list) else [wanted])
        ]
        return {
            "equals": number == operands[0],
            "not_equals": number != operands[0],
            "in_list": number in operands,
            "greater_than": number > operands[0],
            "greater_or_equal": number >= operands[0],
            "less_than": number < operands[0],
            "less_than_or_equal": number <= operands[0],
            "between": operands[0] <= number <= operands[-1],
        }[condition]
    dated = naive_date(value)
    if dated is None:
        return False
    moment = dated[0]
    if condition == "within_last_days":
        return now - timedelta(days=wanted) <= moment <= now
    spans = [naive_date(each) for each in (wanted if isinstance(wanted, list) else [wanted])]
    return {
        "before": moment < spans[0][0],
        "after": moment >= spans[0][0],
        "on": spans[0][0] <= moment <= spans[0][1],
        "equals": spans[0][0] <= moment <= spans[0][1],
        "between_dates": spans[0][0] <= moment <= spans[-1][1],
    }[condition]


def naive(tree, values, groups, now):
    if "operator" in tree:
        results = [naive(each, values, groups, now) for each in tree["children"]]
        if tree["operator"] == "NOT":
            return not results[0]
        return all(results) if tree["operator"] == "AND" else any(results)
    if "group" in tree:
        return GROUPS[tree["group"]][1] in groups
    name = tree["attribute"]
    return naive_leaf(tree, values.get(name), name in values, now)


NAMES = st.sampled_from(["a", "b", "$address", "household:has_dog"])
WORDS = st.sampled_from(["", "dog", "DOG", "hot dog", "Straße", "STRASSE", "true", "12", "1.5"])
NUMBERS = st.sampled_from([0, 12, -3, 1.5, "12", "12.0", "-3", 10**20, "0.000000000000001"])
MS = NOW // 1000
DATES = st.sampled_from([
    "2024-05-01", "2024-05-02", "2024-04-30", "2024-05-01T12:00:00Z", "2024-05-01T12:00:00",
    "2024-05-01T14:00:00+02:00", "2024-05-01T12:00:00.000001Z", "2024-04-30T12:00:00-01:30",
    MS, str(MS), MS + 86_400_000, MS - 2 * 86_400_000, MS + 1, "1970-01-01",
])  # fmt: skip
LISTS = st.lists(WORDS, max_size=3)
VALUES = st.one_of(st.none(), st.booleans(), WORDS, NUMBERS, DATES, LISTS)
PATTERNS = st.lists(st.sampled_from("dog1*?. "), max_size=6).map("".join)


def leaves(condition, values, kind=None):
    typed = {} if kind is None else {"type": kind}
    return st.builds(
        lambda name, value: {"attribute": name, "condition": condition, "value": value} | typed,
        NAMES,
        values,
    )


def ordered(values, key):
    return st.lists(values, min_size=2, max_size=2).map(lambda two: sorted(two, key=key))


LEAVES = st.one_of(
    *(
        st.builds(lambda name, c=c: {"attribute": name, "condition": c}, NAMES)
        for c in ("exists", "not_exists", "empty")
    ),
    *(leaves(each, WORDS, "string") for each in ("equals", "not_equals")),
    *(leaves(each, WORDS) for each in ("contains", "not_contains")),
    *(leaves(each, WORDS) for each in ("includes", "not_includes", "partial_match")),
    leaves("pattern", PATTERNS),
    leaves("in_list", st.lists(WORDS, min_size=1, max_size=3), "string"),
    leaves("in_list", st.lists(NUMBERS, min_size=1, max_size=3), "number"),
    leaves("equals", st.booleans(), "boolean"),
    *(leaves(each, NUMBERS, "number") for each in ("equals", "not_equals")),
    *(
        leaves(each, NUMBERS, "number")
        for each in ("greater_than", "greater_or_equal", "less_than", "less_than_or_equal")
    ),
    leaves("between", ordered(NUMBERS, lambda each: Decimal(str(each))), "number"),
    leaves("equals", DATES, "date"),
    *(leaves(each, DATES) for each in ("before", "after", "on")),
    leaves("between_dates", ordered(DATES, naive_date)),
    leaves("within_last_days", st.integers(1, 3)),
    st.sampled_from([group("g"), group("h")]),
)
WINDOWS = st.one_of(
    leaves("within_last_days", st.integers(1, 3)),
    leaves("within_last_days", st.integers(1, 3)),
    LEAVES,
)


def trees_of(leaf):
    return st.recursive(
        leaf,
        lambda children: st.one_of(
            children.map(NOT),
            st.builds(
                lambda operator, below: node(operator, *below),
                st.sampled_from(["AND", "OR"]),
                st.lists(children, min_size=1, max_size=4),
            ),
        ),
        max_leaves=8,
    )


def depth_of(tree):
    return 1 + max(map(depth_of, tree.get("children", [])), default=0)


HELD = st.dictionaries(NAMES, VALUES, max_size=4)
IN_GROUPS = st.sets(st.sampled_from([2, 11, 5]))


def known_of(values, groups):
    return Subject({name: msgspec.json.encode(each) for name, each in values.items()}, groups)


@given(LEAVES, HELD, IN_GROUPS)
@settings(max_examples=600)
@example(is_("STRASSE") | {"condition": "equals", "type": "string"}, {"a": "Straße"}, set())
def test_every_leaf_is_true_where_a_naive_evaluator_says_so(leaf, values, groups):
    now = EPOCH + timedelta(microseconds=NOW)
    bound = rule(leaf)
    expected = naive(leaf, values, groups, now)
    assert expected is bound.evaluate(known_of(values, groups), NOW).holds
    [explained] = bound.explain(known_of(values, groups), NOW)
    assert expected is explained.result


@given(trees_of(LEAVES).filter(lambda tree: depth_of(tree) <= DEPTH), HELD, IN_GROUPS)
@settings(max_examples=300)
def test_every_tree_is_true_where_a_naive_evaluator_says_so(tree, values, groups):
    now = EPOCH + timedelta(microseconds=NOW)
    expected = naive(tree, values, groups, now)
    known = known_of(values, groups)
    bound = rule(tree)
    assert expected is bound.evaluate(known, NOW).holds
    assert expected is rule(json.loads(json.dumps(tree))).evaluate(known, NOW).holds
    assert bound.true_of_nothing is naive(tree, {}, set(), now)


INSTANTS = st.dictionaries(
    NAMES,
    st.one_of(st.integers(MS - 4 * 86_400_000, MS + 4 * 86_400_000), DATES, WORDS),
    max_size=4,
)


@given(trees_of(WINDOWS).filter(lambda tree: depth_of(tree) <= DEPTH), INSTANTS, IN_GROUPS)
@settings(max_examples=300)
@example(AND(recent("a", 1), NOT(recent("b", 2))), {"a": MS, "b": MS - 86_400_000}, set())
def test_nothing_turns_before_the_instant_that_a_verdict_names(tree, values, groups):
    """A clock that moves to every instant at which anything could turn, and beside it."""
    bound, known = rule(tree), known_of(values, groups)
    instants = {NOW, NOW + 9 * DAY}
    for value in values.values():
        dated = naive_date(value)
        if dated is not None:
            start = (dated[0] - EPOCH) // timedelta(microseconds=1)
            for days in range(4):
                instants |= {start + days * DAY + beside for beside in (-1, 0, 1, 2)}
    clock = sorted(each for each in instants if each >= NOW)
    held, turns_at_us = None, NOW
    for now_us in clock:
        expected = naive(tree, values, groups, EPOCH + timedelta(microseconds=now_us))
        verdict = bound.evaluate(known, now_us)
        assert expected is verdict.holds
        assert verdict.turns_at_us is None or verdict.turns_at_us > now_us
        assert verdict.turns_at_us is None or bound.timed
        if turns_at_us is not None and now_us >= turns_at_us:
            # Only now would anybody look again.
            held, turns_at_us = verdict.holds, verdict.turns_at_us
        assert held is expected


@given(
    trees_of(LEAVES).filter(lambda tree: depth_of(tree) <= DEPTH), HELD, IN_GROUPS, HELD, IN_GROUPS
)
@settings(max_examples=300)
def test_what_no_rule_is_touched_by_turns_none(tree, values, groups, later, later_groups):
    """From one subject to any other: the names of what differs, and whether a rule is found."""
    bound = rule(tree)
    book = Book(rules_of(), {bound.number: bound})
    names = {
        name.encode()
        for name in {*values, *later}
        if (name in values, values.get(name)) != (name in later, later.get(name))
        or type(values.get(name)) is not type(later.get(name))
    } | {keys.named_group(number) for number in groups ^ later_groups}
    if bool(values or groups) is not bool(later or later_groups):
        names.add(keys.named_group(0))
    before = bool(values or groups) and bound.evaluate(known_of(values, groups), NOW).holds
    after = bool(later or later_groups) and bound.evaluate(known_of(later, later_groups), NOW).holds
    assert before is after or [bound] == book.touched(names)
    assert [bound] == book.touched(names) or not names & book.named


# Subjects


def definition(named="household", number=100, **attributes):
    return Definition(
        id=named,
        source_user_attribute="$Address",
        attributes=tuple(
            GroupAttribute(name, "latest", since) for name, since in attributes.items()
        ),
        number=number,
        created_at_us=1,
        created_by="t",
        modified_at_us=1,
        modified_by="t",
    )


def rules_of(*definitions):
    return Rules(version=1000, definitions=definitions)


def test_a_subject_is_what_a_profile_has_and_inherits():
    held = {
        b"a": b'5 3 "x y"',
        b"gone": b"7",
        b"n": b"5 5 12",
        "ä b".encode(): b'5 3 ["a b","c"]',
        b"household:has_dog": b'5 5 "own"',
        b"household:cat": b'5 5 "own"',
        b"households:cat": b'5 5 "own"',
    }
    listed = {b"i" * 16: b'100 5 1000 {"has_dog":"true","tags":["a","b"]}'}
    known = subject_of(rules_of(definition(has_dog=100, tags=100, cat=100)), held, listed, {3})
    assert {
        "a": b'"x y"',
        "n": b"12",
        "ä b": b'["a b","c"]',
        "household:has_dog": b'"true"',
        "household:tags": b'["a","b"]',
        "households:cat": b'"own"',
    } == known.values
    assert {3} == known.groups


def test_without_definitions_a_name_with_a_colon_is_an_attribute_as_any_other():
    held = {b"household:has_dog": b'5 5 "own"'}
    assert {"household:has_dog": b'"own"'} == subject_of(rules_of(), held, {}, ()).values
    assert {} == subject_of(rules_of(), {}, {}, ()).values


# Books


def book_of(*trees, rules=None):
    bound = {n: parse_tree(tree).bound(n, 100, GROUPS) for n, tree in enumerate(trees, 1)}
    return Book(rules or rules_of(definition(has_dog=100)), bound)


def touched(book, *names):
    return [each.number for each in book.touched(names)]


DOG = {"attribute": "household:has_dog", "condition": "is", "value": True}


def test_a_change_touches_the_rules_that_name_it_and_no_other():
    book = book_of(is_("x", "b"), AND(YES, group("h")), NOT(group("g")), OR(DOG, YES), YES)
    assert [2, 4, 5] == touched(book, b"a")
    assert [1] == touched(book, b"b")
    assert [1, 2, 4, 5] == touched(book, b"b", b"a", b"a")
    assert [2] == touched(book, keys.named_group(2))
    assert [3] == touched(book, keys.named_group(11))
    assert [3] == touched(book, keys.named_group(0))
    assert [4] == touched(book, keys.named_definition(100))
    assert [4] == touched(book, b"household:has_dog")
    assert [5] == touched(book, keys.named_rule(5))
    assert [1, 5] == touched(book, keys.named_rule(5), b"b", keys.named_rule(77))
    assert [] == touched(book, b"c", keys.named_group(1), keys.named_definition(11), b"", b"1")
    assert [] == touched(book)


def test_what_partitions_are_told_is_what_touches_a_rule():
    book = book_of(is_("x", "$Address"), AND(YES, group("h")), NOT(group("g")), OR(DOG, YES))
    groups = {keys.named_group(number) for number in (2, 11, 0)}
    assert {b"$address", b"a", b"household:has_dog", b"\0:100"} | groups == book.named
    assert isinstance(book.named, frozenset)


def test_having_any_fact_is_named_only_where_a_rule_is_true_of_nothing():
    assert keys.named_group(0) not in book_of(YES, group()).named
    assert keys.named_group(0) in book_of(YES, {"attribute": "a", "condition": "empty"}).named


def test_a_definition_is_named_by_every_name_under_it_and_only_where_it_is():
    not_shared = is_("x", "household:cat")
    other = is_("x", "club:has_dog")
    assert keys.named_definition(100) in book_of(not_shared).named
    assert {b"club:has_dog"} == book_of(other).named
    assert {b"household:has_dog"} == book_of(DOG, rules=rules_of()).named


def test_a_book_says_what_to_read_for_some_of_its_rules():
    book = book_of(
        AND(is_("x", "b"), is_("x", "$City"), group("h")), OR(DOG, group("g"), is_("ö", "ä")), NO
    )
    one, two, three = (book.rules_by_number[number] for number in (1, 2, 3))
    assert (b"$city", b"b") == book.attributes_of([one])
    assert ("ä".encode(),) == book.attributes_of([two])
    assert (b"$city", b"b", b"zz", "ä".encode()) == book.attributes_of([three, two, one])
    assert (2, 11) == book.groups_of([two, one])
    assert (100,) == book.definitions_of([one, two])
    assert () == book.definitions_of([one, three]) == book.groups_of([]) == book.groups_of([three])


def test_a_rule_that_is_only_previewed_can_be_read_for_with_the_book():
    book = book_of(YES)
    previewed = parse_tree(AND(DOG, is_("x", "b"), group())).bound(1, 0, GROUPS)
    assert (b"b",) == book.attributes_of([previewed])
    assert (100,) == book.definitions_of([previewed])
    assert (11,) == book.groups_of([previewed])
    assert [1] == touched(book, b"a")


def test_a_book_without_rules_is_touched_by_nothing():
    book = Book(Rules(), {})
    assert frozenset() == book.named
    assert [] == touched(book, b"a", keys.named_group(0), keys.named_rule(1))
    assert {} == book.rules_by_number


def test_of_a_thousand_rules_a_change_touches_those_that_name_it():
    book = book_of(*(AND(is_("x", f"a{n % 300}"), group()) for n in range(1000)))
    assert [8, 308, 608, 908] == touched(book, b"a7")
    assert 1000 == len(touched(book, keys.named_group(11)))
    assert list(range(1, 1001)) == list(book.rules_by_number)
