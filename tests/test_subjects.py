"""What is read for rules, and what is written of what follows, by themselves."""

from __future__ import annotations

from service import ids
from service.environment import Environment, EnvironmentDocument
from service.grouping import Definition, GroupAttribute, Ruled, Rules
from service.rules import Book, Verdict, parse_tree
from service.subjects import cut, facts_of, planned, row_of

VERSION = 7
LEAVES = {"a": ("id-a", 11), "b": ("id-b", 12)}
HOUSEHOLD = Definition(
    id="household",
    source_user_attribute="$address",
    attributes=(GroupAttribute("dog", "boolean_or"),),
    number=3,
    created_at_us=0,
    created_by="test",
    modified_at_us=0,
    modified_by="test",
)
INSTANCE = b"i" * 16


def rule(number, *leaves):
    tree = {"operator": "AND", "children": list(leaves)}
    return parse_tree(tree).bound(number, VERSION, LEAVES)


FIRST = rule(1, {"attribute": "age", "condition": "exists"}, {"group": "b"}, {"group": "a"})
SECOND = rule(
    2,
    {"attribute": "household:dog", "condition": "equals", "value": True},
    {"attribute": "seen", "condition": "within_last_days", "value": 3},
)
RULES = Rules(
    version=VERSION, definitions=(HOUSEHOLD,), dynamic=(Ruled(1, VERSION), Ruled(2, VERSION))
)
BOOK = Book(RULES, {1: FIRST, 2: SECOND})
TOLD = b'3 9 7 {"dog":"true"}'


def read(plan, *, memberships=b"0110", changed=(), due=(None,)):
    """A profile as the script answers it."""
    values = {b"age": b"1 1 40", b"seen": b"5"}
    return facts_of(
        plan,
        [
            b"U1" if changed else b"C1",
            b"5",
            [values.get(name) for name in plan.names],
            memberships,
            [INSTANCE, TOLD],
            list(changed),
            list(due),
        ],
    )


def test_a_plan_names_what_its_rules_look_at_and_no_more():
    both, second = planned(BOOK, [FIRST, SECOND]), planned(BOOK, [SECOND])

    assert ((b"age", b"seen"), (11, 12), (2,)) == (both.names, both.leaves, both.timed)
    assert ((b"seen",), (), (2,)) == (second.names, second.leaves, second.timed)
    assert (2, 4, 1, 1, b"age", b"seen", 11, 12, 1, 2, 3, 2) == both.reading
    assert (VERSION, 2, 1, 11, 12, 3) == both.writing
    assert both.cost > second.cost > planned(BOOK, []).cost


def test_facts_are_what_was_read():
    plan = planned(BOOK, [FIRST, SECOND])
    facts = read(plan, changed=[b"age"], due=[b"1e+15"])

    assert (True, True, b"5") == (facts.unsettled, facts.fact, facts.seq)
    assert (frozenset({12}), frozenset({1}), b"01") == (facts.groups, facts.member, facts.inside)
    assert {2: 10**15} == facts.calls
    subject = facts.subject(plan)
    assert {"age": b"40", "household:dog": b'"true"'} == dict(subject.values)
    assert {12} == set(subject.groups)
    assert facts_of(plan, [b"E"]) is None


def test_nothing_is_written_where_nothing_changes():
    plan = planned(BOOK, [FIRST, SECOND])
    facts = read(plan, due=[b"99"])
    mixed = bytes(16)
    same = [
        (FIRST, Verdict(holds=True, turns_at_us=None)),
        (SECOND, Verdict(holds=False, turns_at_us=99)),
    ]

    assert row_of(mixed, facts, same, []) is None
    another_call = [same[0], (SECOND, Verdict(holds=False, turns_at_us=98))]
    row = row_of(mixed, facts, another_call, [])
    assert row is not None
    assert [[mixed, b"5", b"1", b"01", 1, INSTANCE, TOLD, 0, 1, 2, b"-", 98]] == row.parts
    # Whoever forgets a name says what every rule comes to.
    row = row_of(mixed, facts, same, [b"age"])
    assert row is not None
    told = [mixed, b"5", b"1", b"01", 1, INSTANCE, TOLD]
    assert [[*told, 1, b"age", 2, 1, b"+", b"=", 2, b"-", 99]] == row.parts
    assert [True] == row.adds


def test_names_are_forgotten_with_the_last_part_of_what_follows():
    plan = planned(BOOK, [FIRST])
    facts = read(plan, memberships=b"010", due=[])
    holds = Verdict(holds=True, turns_at_us=None)
    row = row_of(bytes(16), facts, [(FIRST, holds)] * 250, [b"n%d" % n for n in range(700)])

    assert row is not None
    begin = len([*[bytes(16), b"5", b"1", b"01"], 1, INSTANCE, TOLD])
    gone = [int(part[begin]) for part in row.parts]
    follow = [part[begin + 1 + many] for part, many in zip(row.parts, gone, strict=True)]
    assert ([0] * 8 + [500, 200], [30] * 8 + [250, 250]) == (gone, follow)
    assert [True] * 9 + [False] == row.adds


def test_scripts_take_rows_in_ascending_order_and_those_that_add_apart():
    document = EnvironmentDocument(1, ("1.0",))
    env = Environment.__new__(Environment)
    env.partitions = (b"{%b}" % document.tags[0].encode(),)
    plan = planned(BOOK, [FIRST])
    facts = read(plan, memberships=b"010", due=[])
    holds = [(FIRST, Verdict(holds=True, turns_at_us=None))]
    people = sorted(ids.new() for _ in range(10))
    rows = [row_of(each, facts, holds, []) for each in reversed(people)]
    rows += [row_of(bytes(16), facts, [], [b"age"])]

    chunks = list(cut(env, [each for each in rows if each], 0, most=8, most_bytes=10**6))

    assert [(True, 4), (True, 4), (True, 2), (False, 1)] == [
        (adds, len(chunk)) for _, adds, chunk in chunks
    ]
    assert people == [row.mixed for _, adds, chunk in chunks if adds for row in chunk]
