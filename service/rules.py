"""What makes a profile a member of a dynamic group: rule trees, and all of an application.

A *tree* is what a client sent, checked. A *rule* is a tree bound to a dynamic group and to the
numbers of the groups that it names: every leaf is a function by then. The *book* is all rules of
one version of `grouping.Rules`, and knows which of them a change may turn. Pure: no I/O. What a
leaf may say is in `conditions`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec

from service.conditions import (
    LIST_ITEMS,
    PATTERN_CHARACTERS,
    attribute_leaf,
    echoed,
    misplaced,
    shown_value,
)
from service.grouping import inherited
from service.keys import named_definition, named_group, named_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from service.conditions import AttributeLeaf, Test
    from service.grouping import Rules

__all__ = [
    "DEPTH", "LIST_ITEMS", "NODES", "PATTERN_CHARACTERS", "TREE_BYTES", "Book", "LeafResult",
    "Rule", "Subject", "Tree", "Verdict", "parse_tree", "subject_of",
]  # fmt: skip

DEPTH = 8
"""Levels of a tree; the root is the first."""
NODES = 200
"""Nodes of a tree, leaves too."""
TREE_BYTES = 32_768
"""Bytes of a tree as JSON, every group in it given by a whole id."""
GROUP_CHARACTERS = 255
_ID_CHARACTERS = 36

OPERATORS = ("AND", "OR", "NOT")
_ENCODER = msgspec.json.Encoder()


class Subject(NamedTuple):
    """What is known of a profile: values as stored by the names that they are shown under, groups.

    Own attributes stand under their stored names, inherited ones under inherited names, which win:
    what else has a name of an existing definition is absent. `groups` are numbers of static groups.
    """

    values: Mapping[str, bytes]
    groups: Collection[int]


class Verdict(NamedTuple):
    """Whether a rule holds, and the next instant (us) at which time alone may turn it; None: never.

    Before that instant it is as it is now, as long as the subject is.
    """

    holds: bool
    turns_at_us: int | None


class LeafResult(NamedTuple):
    """What became of a leaf: the leaf as it is shown, what the profile has there, its result.

    `value` is a text, a list of texts, None (missing or null), or whether it is in the group.
    """

    leaf: dict[str, object]
    value: str | list[str] | bool | None
    result: bool


_HOLDS = Verdict(holds=True, turns_at_us=None)
_FAILS = Verdict(holds=False, turns_at_us=None)


class _GroupLeaf(NamedTuple):
    given: str


class _Branch(NamedTuple):
    operator: str
    children: tuple[_Node, ...]


_Node: TypeAlias = "_Branch | _GroupLeaf | AttributeLeaf"


class _Bound(NamedTuple):
    """A node of a rule: how it is shown, its test, whether time may turn it."""

    shown: dict[str, object]
    test: Test
    timed: bool

    @property
    def as_timed(self) -> Test:
        """Its test as one that is timed."""
        test = self.test
        if self.timed:
            return test
        return lambda values, groups, _now_us: (test(values, groups), None)


class _BoundLeaf(NamedTuple):
    """A leaf of a rule; of `attribute` (its stored name) or `group`, one is None."""

    bound: _Bound
    attribute: str | None = None
    group: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """A tree bound to a dynamic group: its number, and the version of the rules that it came with.

    `attributes` are the stored names of what it tests, `groups` the numbers of its group leaves.
    `true_of_nothing`: it holds for a profile of which nothing is known. `timed`: time alone may
    turn it.
    """

    number: int
    version: int
    shown: dict[str, Any]
    attributes: frozenset[str]
    groups: tuple[int, ...]
    timed: bool
    true_of_nothing: bool
    _test: Test = field(repr=False, compare=False)
    _leaves: tuple[_BoundLeaf, ...] = field(repr=False, compare=False)

    def evaluate(self, subject: Subject, now_us: int) -> Verdict:
        """Tell whether the rule holds, and until when it does not turn by itself."""
        if self.timed:
            return Verdict(*self._test(subject.values, subject.groups, now_us))
        return _HOLDS if self._test(subject.values, subject.groups) else _FAILS

    def explain(self, subject: Subject, now_us: int) -> list[LeafResult]:
        """Tell what became of every leaf, in order."""
        return [
            LeafResult(
                leaf.bound.shown,
                leaf.group in subject.groups
                if leaf.attribute is None
                else shown_value(subject.values.get(leaf.attribute)),
                leaf.bound.as_timed(subject.values, subject.groups, now_us)[0],
            )
            for leaf in self._leaves
        ]


@dataclass(frozen=True, slots=True)
class Tree:
    """A checked tree.

    `shown` is what is stored and shown: as it was given. `groups` are its group leaves as given,
    each once, and `places` where each first stands. `attributes` are stored names.
    """

    shown: dict[str, Any]
    attributes: frozenset[str]
    groups: tuple[str, ...]
    places: dict[str, str]
    timed: bool
    _root: _Node = field(repr=False, compare=False)

    def bound(self, number: int, version: int, groups: Mapping[str, tuple[str, int]]) -> Rule:
        """Bind it to dynamic group `number`, whose tree came with a version of the rules.

        :param groups: its group leaves, as given -> id and number of the group; it is shown with
            the ids
        """
        leaves: list[_BoundLeaf] = []
        root = _bind(self._root, groups, leaves)
        return Rule(
            number=number,
            version=version,
            shown=root.shown,
            attributes=self.attributes,
            groups=tuple(dict.fromkeys(leaf.group for leaf in leaves if leaf.group is not None)),
            timed=self.timed,
            true_of_nothing=bool(root.as_timed({}, (), 0)[0]),
            _test=root.test,
            _leaves=tuple(leaves),
        )


def parse_tree(given: object, place: str = "$.rule_tree") -> Tree:
    """Check a tree: JSON as decoded, numbers with a point as `Decimal` (or float, which is less).

    :raises Invalid: it is none; the sentence names the place
    """
    found = _Found()
    root = _parse(given, place, 1, found)
    shown = _shown(root)
    try:
        size = len(_ENCODER.encode(shown))
    except UnicodeEncodeError as error:
        raise misplaced("A text in it holds half of a surrogate pair", place) from error
    # A group that is given by its custom id is stored by its id.
    size += sum(max(0, _ID_CHARACTERS - len(each.encode())) for each in found.group_leaves)
    if size > TREE_BYTES:
        message = f"A rule tree is at most {TREE_BYTES:,} bytes of JSON, and this is {size:,}"
        raise misplaced(message, place)
    return Tree(
        shown=shown,
        attributes=frozenset(found.attributes),
        groups=tuple(found.places),
        places=found.places,
        timed=found.timed,
        _root=root,
    )


@dataclass(slots=True)
class _Found:
    """What a tree was found to name, while it is checked."""

    nodes: int = 0
    attributes: set[str] = field(default_factory=set)
    group_leaves: list[str] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    timed: bool = False


def _parse(given: object, place: str, depth: int, found: _Found) -> _Node:
    found.nodes += 1
    if found.nodes > NODES:
        raise misplaced(f"A rule tree has at most {NODES} nodes, and this is one more", place)
    if depth > DEPTH:
        raise misplaced(f"A rule tree is at most {DEPTH} levels deep, and this is deeper", place)
    if not isinstance(given, dict):
        raise misplaced(f"{_NODE}, and this is {echoed(given)}", place)
    for marks, fields, parse in _KINDS:
        if not marks.isdisjoint(given):
            for missing in fields[:2]:
                if missing not in given:
                    raise misplaced(f"`{missing}` is missing", place)
            for name in given:
                if name not in fields:
                    message = f"There is no field {echoed(name)} here. There are: "
                    raise misplaced(message + ", ".join(fields), place)
            return parse(given, place, depth, found)
    raise misplaced(f"{_NODE}, and this is another object", place)


def _parse_branch(given: dict[str, object], place: str, depth: int, found: _Found) -> _Branch:
    operator, children = given["operator"], given["children"]
    if operator not in OPERATORS:
        message = f"{echoed(operator)} is no operator. There are: {', '.join(OPERATORS)}"
        raise misplaced(message, f"{place}.operator")
    below = f"{place}.children"
    if not isinstance(children, list) or not children:
        raise misplaced(f"`{operator}` needs an array of one node or more here", below)
    if operator == "NOT" and len(children) != 1:
        raise misplaced(f"`NOT` has one child, and here are {len(children):,}", below)
    return _Branch(
        str(operator),
        tuple(
            _parse(child, f"{below}[{at}]", depth + 1, found) for at, child in enumerate(children)
        ),
    )


def _parse_group(given: dict[str, object], place: str, _depth: int, found: _Found) -> _GroupLeaf:
    group = given["group"]
    if not isinstance(group, str) or not 1 <= len(group) <= GROUP_CHARACTERS or "\0" in group:
        message = f"The id or custom id of a group is wanted here, and this is {echoed(group)}"
        raise misplaced(message, f"{place}.group")
    found.group_leaves.append(group)
    found.places.setdefault(group, f"{place}.group")
    return _GroupLeaf(group)


def _parse_attribute(
    given: dict[str, object], place: str, _depth: int, found: _Found
) -> AttributeLeaf:
    leaf = attribute_leaf(given, place)
    found.attributes.add(leaf.name)
    found.timed |= leaf.timed
    return leaf


_NODE = (
    "A node has `operator` and `children`, or `attribute`, `condition` and `value`, or is a `group`"
)
_KINDS: tuple[
    tuple[
        frozenset[str],
        tuple[str, ...],
        Callable[[dict[str, object], str, int, _Found], _Node],
    ],
    ...,
] = (
    (frozenset({"operator", "children"}), ("operator", "children"), _parse_branch),
    (frozenset({"group"}), ("group",), _parse_group),
    (
        frozenset({"attribute", "condition"}),
        ("attribute", "condition", "value", "type"),
        _parse_attribute,
    ),
)
"""Kinds of nodes: what one is known by, its fields, and what checks it. The first two fields are
required."""


def _shown(node: _Node) -> dict[str, object]:
    if isinstance(node, _Branch):
        return {"operator": node.operator, "children": [_shown(each) for each in node.children]}
    return {"group": node.given} if isinstance(node, _GroupLeaf) else node.shown


def _bind(node: _Node, groups: Mapping[str, tuple[str, int]], leaves: list[_BoundLeaf]) -> _Bound:
    if isinstance(node, _Branch):
        children = [_bind(each, groups, leaves) for each in node.children]
        shown: dict[str, object] = {
            "operator": node.operator,
            "children": [each.shown for each in children],
        }
        timed = any(each.timed for each in children)
        make = _timed_branch if timed else _branch
        tests = [each.as_timed if timed else each.test for each in children]
        return _Bound(shown, make(node.operator, tests), timed)
    if isinstance(node, _GroupLeaf):
        gid, number = groups[node.given]
        bound = _Bound({"group": gid}, lambda _values, held: number in held, timed=False)
        leaves.append(_BoundLeaf(bound, group=number))
        return bound
    bound = _Bound(node.shown, node.test, node.timed)
    leaves.append(_BoundLeaf(bound, attribute=node.name))
    return bound


def _branch(operator: str, tests: list[Test]) -> Test:
    if len(tests) == 1:
        [only] = tests
        return only if operator != "NOT" else lambda values, groups: not only(values, groups)
    decisive: bool = operator == "OR"

    def test(values: Mapping[str, bytes], groups: Collection[int]) -> bool:
        for each in tests:
            holds: bool = each(values, groups)
            if holds is decisive:
                return decisive
        return not decisive

    return test


def _timed_branch(operator: str, tests: list[Test]) -> Test:
    """Bind a branch that time may turn.

    The first child that decides it decides until when: before that instant nothing else matters.
    Where none does, it is the earliest of all.
    """
    if operator == "NOT":
        [only] = tests

        def negated(
            values: Mapping[str, bytes], groups: Collection[int], now_us: int
        ) -> tuple[bool, int | None]:
            holds, turns_at_us = only(values, groups, now_us)
            return not holds, turns_at_us

        return negated
    decisive = operator == "OR"

    def test(
        values: Mapping[str, bytes], groups: Collection[int], now_us: int
    ) -> tuple[bool, int | None]:
        earliest_us = None
        for each in tests:
            holds, turns_at_us = each(values, groups, now_us)
            if holds is decisive:
                return decisive, turns_at_us
            if turns_at_us is not None and (earliest_us is None or turns_at_us < earliest_us):
                earliest_us = turns_at_us
        return not decisive, earliest_us

    return test


def subject_of(
    rules: Rules,
    held: Mapping[bytes, bytes],
    listed: Mapping[bytes, bytes],
    groups: Collection[int],
) -> Subject:
    """Make a subject of what its keys hold.

    :param held: of `attributes:<id>`: what there is of the attributes that are asked for, or all
    :param listed: of `instances:<id>`: those of the definitions that are asked for, or all
    :param groups: numbers of static groups that the profile is in
    """
    values = {}
    for name, entry in held.items():
        # One that was deleted keeps its time alone.
        times_and_value = entry.split(b" ", 2)
        if len(times_and_value) == 3 and not rules.reserves(text := name.decode()):
            values[text] = times_and_value[2]
    if listed:
        for shown_name, value in inherited(rules, listed).items():
            values[shown_name] = _ENCODER.encode(value)
    return Subject(values, groups)


class _Reads(NamedTuple):
    attributes: frozenset[bytes]
    groups: frozenset[int]
    definitions: frozenset[int]


class Book:
    """All rules of one version of an environment's rules, and which of them a change may turn.

    `named` are the names that partitions are told: what changes of a profile under another one
    turns no rule.
    """

    def __init__(self, rules: Rules, trees: Mapping[int, Rule]) -> None:
        """Take the rules of the application, and the rule of each dynamic group by its number.

        Development has no dynamic groups, and so no rule.
        """
        self.rules = rules
        self.rules_by_number: Mapping[int, Rule] = dict(sorted(trees.items()))
        self._reads = {number: self._reads_of(rule) for number, rule in trees.items()}
        index: dict[bytes, list[int]] = {}
        for number, rule in self.rules_by_number.items():
            for name in self._names_of(rule):
                index.setdefault(name, []).append(number)
        self.named = frozenset(index)
        self._index = index | {named_rule(number): [number] for number in trees}

    def touched(self, names: Iterable[bytes]) -> list[Rule]:
        """Give the rules that a change of what is so named may turn, each once, by number.

        Names are those of `changed:<id>`: of attributes, `keys.named_group`, `named_definition`,
        `named_rule`. What no rule names is passed over.
        """
        numbers = {number for name in names for number in self._index.get(name, ())}
        return [self.rules_by_number[number] for number in sorted(numbers)]

    def attributes_of(self, rules: Iterable[Rule]) -> tuple[bytes, ...]:
        """Give the names of the own attributes to read for these rules, in order.

        What has the name of an existing definition is inherited, or absent.
        """
        return tuple(sorted({name for rule in rules for name in self._of(rule).attributes}))

    def groups_of(self, rules: Iterable[Rule]) -> tuple[int, ...]:
        """Give the static groups to look for, for these rules, in order."""
        return tuple(sorted({number for rule in rules for number in self._of(rule).groups}))

    def definitions_of(self, rules: Iterable[Rule]) -> tuple[int, ...]:
        """Give the numbers of the definitions whose instances to read for these rules, in order."""
        return tuple(sorted({number for rule in rules for number in self._of(rule).definitions}))

    def _of(self, rule: Rule) -> _Reads:
        # One that is previewed is in no book.
        known = self.rules_by_number.get(rule.number)
        return self._reads[rule.number] if known is rule else self._reads_of(rule)

    def _reads_of(self, rule: Rule) -> _Reads:
        own, shared = set(), set()
        for name in rule.attributes:
            definition = self.rules.definition(name.partition(":")[0]) if ":" in name else None
            if definition is None:
                own.add(name.encode())
            else:
                shared.add(definition.number)
        return _Reads(frozenset(own), frozenset(rule.groups), frozenset(shared))

    def _names_of(self, rule: Rule) -> Iterator[bytes]:
        yield from (name.encode() for name in rule.attributes)
        yield from map(named_group, rule.groups)
        yield from map(named_definition, self._reads[rule.number].definitions)
        if rule.true_of_nothing:
            yield named_group(0)
