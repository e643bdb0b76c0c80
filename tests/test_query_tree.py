"""Queries: what is read and what is refused, and that a plan asks the same as the query."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import query_tree, scripts
from service.errors import Invalid
from service.query_tree import EVERYBODY, Plan, node_of, parse_query, pieces

NAMES = "abcdef"
NUMBERS = {name: 10 + at for at, name in enumerate(NAMES)}

A, B, C = ({"group": name} for name in "abc")


def lists_of(children):
    return st.lists(children, min_size=1, max_size=4)


def at_least(children):
    return lists_of(children).flatmap(
        lambda of: st.integers(1, len(of)).map(lambda least: {"at_least": least, "of": of})
    )


queries: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(NAMES).map(lambda name: {"group": name}),
    lambda children: st.one_of(
        lists_of(children).map(lambda of: {"and": of}),
        lists_of(children).map(lambda of: {"or": of}),
        children.map(lambda child: {"not": child}),
        at_least(children),
    ),
    max_leaves=12,
)


def deep(query: Any) -> int:
    below = query.get("and") or query.get("or") or query.get("of") or []
    if "not" in query:
        below = [query["not"]]
    return 1 + max(map(deep, below), default=0)


shallow = queries.filter(lambda query: deep(query) <= query_tree.DEPTH)


def holds(query: Any, member_of: set[str]) -> bool:
    """What a query means, said once more."""
    if "group" in query:
        return query["group"] in member_of
    if "and" in query:
        return all(holds(child, member_of) for child in query["and"])
    if "or" in query:
        return any(holds(child, member_of) for child in query["or"])
    if "not" in query:
        return not holds(query["not"], member_of)
    return sum(holds(child, member_of) for child in query["of"]) >= query["at_least"]


def runs(program: list[str], member_of: set[int]) -> bool:
    """Run a program as the script does, on one profile."""
    at = 0

    def run() -> bool:
        nonlocal at
        token = program[at]
        at += 1
        if token == "!":
            return not run()
        size = re.fullmatch(r"[&|](\d+)|#(\d+) (\d+)", token)
        if size is None:
            return int(token) in member_of
        times = sum([run() for _ in range(int(size[1] or size[3]))])
        return times >= int(size[2] or (size[1] if token[0] == "&" else 1))

    value = run()
    assert at == len(program)
    return value


@given(shallow, st.dictionaries(st.sampled_from(NAMES), st.integers(0, 10**6)), st.data())
def test_what_is_planned_asks_the_same_as_the_query(query, sizes, data):
    node = parse_query(query).bound(NUMBERS)
    held = {number: sizes.get(name, 0) for name, number in NUMBERS.items()}
    plan = Plan(node, held | {EVERYBODY: 10**6})
    for _ in range(8):
        member_of = data.draw(st.sets(st.sampled_from(NAMES)))
        inside = {NUMBERS[name] for name in member_of} | {EVERYBODY}
        assert holds(query, member_of) == runs(node.program(), inside)
        assert holds(query, member_of) == runs(plan.node.program(), inside)


@given(shallow, st.lists(st.integers(0, 10**6), min_size=6, max_size=6))
def test_a_part_of_the_profiles_never_costs_more_than_a_step_may(query, sizes):
    node = parse_query(query).bound(NUMBERS)
    plan = Plan(node, dict(zip(NUMBERS.values(), sizes, strict=True)) | {EVERYBODY: 10**6})
    part = plan.part()
    assert 0 < part <= 1
    assert plan.cost_us(part) <= plan.budget_us


def test_a_thousand_groups_are_not_asked_a_few_profiles_at_a_time():
    query = {"not": {"or": [{"group": f"{at}"} for at in range(1, 1001)]}}
    node = parse_query(query).bound({f"{at}": at for at in range(1, 1001)})
    plan = Plan(node, dict.fromkeys(range(1, 1001), 30) | {EVERYBODY: 1_500_000})
    assert plan.part() > 1 / 3000


def formula_of(query, **sizes):
    node = parse_query(query).bound(NUMBERS)
    held = {NUMBERS[name]: size for name, size in sizes.items()}
    return Plan(node, held | {EVERYBODY: 1_500_000}).formula


def counted(formula, members, everybody):
    """What a formula comes to, over sets of members."""
    sets = [everybody if number == EVERYBODY else members[number] for number in formula.groups]
    common = len(set.intersection(*sets))
    return len(set().union(*sets[: formula.added])) - common if formula.added else common


@pytest.mark.parametrize(
    "query",
    [
        {"and": [A, B]},
        {"and": [A, B, C]},
        {"and": [A, {"not": B}]},
        {"and": [{"not": {"and": [B, C]}}, A]},
        {"not": A},
        {"not": {"and": [A, B]}},
    ],
)
@given(st.data())
def test_a_formula_counts_what_the_query_asks(query, data):
    formula = formula_of(query, a=1_000_000, b=1_000_000, c=1_000_000)
    everybody = set(range(20))
    members = {
        NUMBERS[name]: data.draw(st.sets(st.sampled_from(sorted(everybody)))) for name in "abc"
    }
    expected = sum(
        holds(query, {name for name in "abc" if one in members[NUMBERS[name]]}) for one in everybody
    )
    assert expected == counted(formula, members, everybody)


def test_of_two_groups_what_either_has_is_counted_by_what_both_have():
    formula = formula_of({"or": [A, B]}, a=1_000_000, b=1_000_000)
    assert (2, {NUMBERS["a"], NUMBERS["b"]}) == (formula.added, set(formula.groups))


@pytest.mark.parametrize(
    ("query", "sizes"),
    [
        ({"and": [A, B]}, {"a": 3, "b": 300_000}),
        ({"and": [A, B]}, {"a": 500, "b": 500}),
        ({"or": [A, B]}, {"a": 3, "b": 300_000}),
        ({"or": [A, B, C]}, {"a": 10**6, "b": 10**6, "c": 10**6}),
        ({"at_least": 2, "of": [A, B, C]}, {"a": 10**6, "b": 10**6, "c": 10**6}),
    ],
)
def test_there_is_no_formula_where_it_does_not_pay(query, sizes):
    assert formula_of(query, **sizes) is None


def test_of_and_the_smallest_group_comes_first_and_what_is_negated_last():
    node = parse_query({"and": [{"not": C}, A, B]}).bound(NUMBERS)
    plan = Plan(node, {NUMBERS["a"]: 900, NUMBERS["b"]: 3, NUMBERS["c"]: 1, EVERYBODY: 1000})
    assert ["&3", str(NUMBERS["b"]), str(NUMBERS["a"]), "!", str(NUMBERS["c"])] == (
        plan.node.program()
    )


def test_what_is_small_makes_a_step_of_all_profiles():
    node = parse_query({"and": [A, B]}).bound(NUMBERS)
    plan = Plan(node, {NUMBERS["a"]: 300_000, NUMBERS["b"]: 3, EVERYBODY: 10**6})
    assert 1.0 == plan.part()


@pytest.mark.parametrize(
    ("query", "simpler"),
    [
        ({"and": [A]}, A),
        ({"not": {"not": A}}, A),
        ({"and": [A, {"and": [B, C]}]}, {"and": [A, B, C]}),
        ({"or": [A, {"or": [B, A]}]}, {"or": [A, B]}),
        ({"at_least": 1, "of": [A, B]}, {"or": [A, B]}),
        ({"at_least": 2, "of": [A, B]}, {"and": [A, B]}),
    ],
)
def test_what_asks_the_same_has_the_same_text(query, simpler):
    assert parse_query(simpler).bound(NUMBERS).text == parse_query(query).bound(NUMBERS).text


def test_who_is_asked_for_twice_counts_twice():
    node = parse_query({"at_least": 2, "of": [A, A, B]}).bound(NUMBERS)
    assert runs(node.program(), {NUMBERS["a"]})


def test_a_wide_query_is_cut_into_pieces_in_their_order():
    many = [query_tree.Node("group", number=number) for number in range(1, 501)]
    cut = list(pieces(node_of("or", many)))
    assert many == [child for piece in cut for child in piece.children]
    assert [query_tree.WIDE] * 5 == [piece.leaves for piece in cut]


def test_a_child_that_is_too_wide_is_a_piece_of_its_own():
    leaf = query_tree.Node("group", number=1)
    wide = node_of("and", [leaf] * 300)
    cut = list(pieces(node_of("or", [leaf, wide, leaf])))
    assert [1, 300, 1] == [piece.leaves for piece in cut]


WRONG: list[tuple[Any, str]] = [
    (7, "$.query"),
    (None, "$.query"),
    ([], "$.query"),
    ({}, "$.query"),
    ({"xor": [A, B]}, "$.query"),
    ({"and": [A], "or": [A]}, "$.query"),
    ({"group": "a", "extra": 1}, "$.query"),
    ({"of": [A]}, "$.query"),
    ({"group": 7}, "$.query.group"),
    ({"group": ""}, "$.query.group"),
    ({"group": "a\0b"}, "$.query.group"),
    ({"group": "a" * 1025}, "$.query.group"),
    ({"and": A}, "$.query.and"),
    ({"and": []}, "$.query.and"),
    ({"or": []}, "$.query.or"),
    ({"not": [A]}, "$.query.not"),
    ({"at_least": 1, "of": []}, "$.query.of"),
    ({"at_least": 1}, "$.query.of"),
    ({"at_least": 0, "of": [A]}, "$.query.at_least"),
    ({"at_least": 2, "of": [A]}, "$.query.at_least"),
    ({"at_least": 1.0, "of": [A]}, "$.query.at_least"),
    ({"at_least": True, "of": [A]}, "$.query.at_least"),
    ({"at_least": "1", "of": [A]}, "$.query.at_least"),
    ({"and": [A, {"or": [B, {"group": []}]}]}, "$.query.and[1].or[1].group"),
    ({"not": {"at_least": 1, "of": [A, {"nor": []}]}}, "$.query.not.of[1]"),
]


@pytest.mark.parametrize(("query", "place"), WRONG)
def test_what_is_no_query_is_refused_with_its_place(query, place):
    with pytest.raises(Invalid) as refused:
        parse_query(query)
    assert str(refused.value).endswith(f" - at `{place}`")
    assert "query" == refused.value.field


def nested(levels):
    query: Any = A
    for _ in range(levels - 1):
        query = {"not": query}
    return query


def test_eight_levels_are_read_and_the_ninth_is_refused():
    parse_query(nested(8))
    with pytest.raises(Invalid, match=r"at most 8 levels - at `\$\.query(\.not){8}`"):
        parse_query(nested(9))


def test_a_thousand_groups_are_read_and_one_more_is_refused():
    parse_query({"or": [A] * 1000})
    place = r"\$\.query\.or\[1\]\.or\[499\]\.group"
    with pytest.raises(Invalid, match=f"at most 1,000 groups - at `{place}`"):
        parse_query({"or": [{"or": [A] * 501}, {"or": [A] * 500}]})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.just(A),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["and", "or", "not", "group", "at_least", "of", "x"]),
                inner,
                max_size=2,
            )
        ),
        max_leaves=20,
    )
)
def test_whatever_is_given_is_read_or_refused_in_a_sentence(garbage):
    said = " - at `$.query`"
    try:
        tree = parse_query(garbage)
        assert tree == parse_query(tree.shown({leaf.group: leaf.group for leaf in tree.leaves()}))
    except Invalid as refused:
        said = str(refused)
    assert re.search(r" - at `\$\.query[^`]*`$", said)


def test_script_and_plan_have_the_same_figures():
    text = scripts.load("query_members").text
    match = re.search(r"^local (LOOK, CALL, LISTED, PROBED, FIELD) = (.*)$", text, re.MULTILINE)
    assert match
    names = [f"{name}_US" for name in match[1].split(", ")]
    assert [getattr(query_tree, name) for name in names] == list(map(float, match[2].split(", ")))
    assert f"At most {query_tree.WIDE} groups" in text
