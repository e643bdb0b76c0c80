"""Queries over groups: reading one, binding it to group numbers, and planning how it is answered.

Pure. A query is a tree of `and`, `or`, `not`, `at_least` over groups. Bound to numbers it is a
`Node`; a plan orders the children of each node so that few profiles become candidates, and knows
what a step over a part of the profiles costs the store. The store's module sends it there: as a
program in prefix notation, or, where all that is wanted is how many members two groups have in
common, as a `Formula`. `not` is relative to all profiles of which there is any fact: group 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from service.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LEAVES = 1_000
"""Groups that one query may name, each as often as it names it."""
DEPTH = 8
"""Levels of a tree; a group that stands alone has one."""
NAME = 1_024
"""Characters of what names a group: an id or a custom id, which has 255 at most."""
EVERYBODY = 0
"""The number of the group in which everybody is."""

LOOK_US = 6.0
CALL_US = 2.5
LISTED_US = 0.3
PROBED_US = 2.4
FIELD_US = 0.5
PASSED_US = 0.5
"""What the store needs: for the first segment of a group and for each further one, for a listed id,
for asking one profile about one group and about each further one, and for an id that it is sent.
Measured at 1,500,000 profiles, in terms of a machine that runs 1,000 ECHOs in a script in 1 ms; the
script has the same figures."""
BUDGET_US = 700
"""What a step may cost by these figures, beside a look at each of its groups."""
WIDE = 100
"""Groups that one script looks at: 0.6 ms where nobody is in them."""

Kind = Literal["group", "and", "or", "not", "at_least"]

_KINDS: tuple[Kind, ...] = ("and", "or", "not", "group", "at_least")
_SHAPES = '{"group"}, {"and"}, {"or"}, {"not"} or {"at_least", "of"}'


class Tree(msgspec.Struct, frozen=True):
    """A query as it was given: a group by what names it, or what is made of its children."""

    kind: Kind
    children: tuple[Tree, ...] = ()
    least: int = 0
    group: str = ""
    place: str = "$"

    def leaves(self) -> Iterator[Tree]:
        """Give the groups that it names, in order."""
        if self.kind == "group":
            yield self
        for child in self.children:
            yield from child.leaves()

    def shown(self, names: Mapping[str, str]) -> dict[str, object]:
        """Give it as it is written, with other names for the groups."""
        if self.kind == "group":
            return {"group": names[self.group]}
        of = [child.shown(names) for child in self.children]
        if self.kind == "not":
            return {"not": of[0]}
        return {"at_least": self.least, "of": of} if self.kind == "at_least" else {self.kind: of}

    def bound(self, numbers: Mapping[str, int]) -> Node:
        """Give the same over group numbers, made simpler where that changes nothing."""
        return _simple(self, numbers)


class Node(msgspec.Struct, frozen=True):
    """A query over group numbers. `leaves` is how many groups it asks, repeats included."""

    kind: Kind
    children: tuple[Node, ...] = ()
    least: int = 0
    number: int = 0
    leaves: int = 1

    @property
    def text(self) -> str:
        """Give the one text of this query: equal texts ask the same."""
        if self.kind == "group":
            return str(self.number)
        least = str(self.least) if self.kind == "at_least" else ""
        return f"{self.kind}{least}({','.join(child.text for child in self.children)})"

    def numbers(self) -> set[int]:
        """Give the groups that it asks."""
        if self.kind == "group":
            return {self.number}
        found: set[int] = set()
        for child in self.children:
            found |= child.numbers()
        return found

    def program(self) -> list[str]:
        """Give it in prefix notation, as the script reads it.

        A number is a group; `!` negates what follows; `&3` and `|3` are of the next three, and
        `#2 3` is true where two of the next three are.
        """
        tokens: list[str] = []
        self._write(tokens)
        return tokens

    def _write(self, tokens: list[str]) -> None:
        if self.kind == "group":
            tokens.append(str(self.number))
            return
        size = len(self.children)
        tokens.append(
            {"and": f"&{size}", "or": f"|{size}", "not": "!"}.get(self.kind)
            or f"#{self.least} {size}"
        )
        for child in self.children:
            child._write(tokens)  # noqa: SLF001 - of its own kind


class Formula(msgspec.Struct, frozen=True):
    """Those whom all `groups` have in common; or the members of the first `added`, less those.

    `segment_us` is what it costs to count one segment of the largest group.
    """

    groups: tuple[int, ...]
    added: int = 0
    segment_us: float = CALL_US

    @property
    def segments(self) -> int:
        """Give how many segments one script may count."""
        return max(int(BUDGET_US / self.segment_us), 1)


def parse_query(given: object, place: str = "$.query") -> Tree:
    """Read a query.

    :raises Invalid: it is none, too deep, or names too many groups; the sentence ends in the place
    """
    return _Reading().node(given, place, 1)


class _Reading:
    """A query being read: it counts the groups that are named."""

    def __init__(self) -> None:
        self._named = 0

    def node(self, given: object, where: str, depth: int) -> Tree:
        """Read a node at a place and a level."""
        if depth > DEPTH:
            raise _refused(f"A query has at most {DEPTH} levels", where)
        kind = _kind_of(given, where)
        held: dict[str, object] = given  # type: ignore[assignment]  # `_kind_of` looked at it
        if kind == "group":
            self._named += 1
            if self._named > LEAVES:
                raise _refused(f"A query names at most {LEAVES:,} groups", f"{where}.group")
            return Tree("group", group=_name(held["group"], f"{where}.group"), place=where)
        if kind == "not":
            return Tree("not", (self.node(held["not"], f"{where}.not", depth + 1),), place=where)
        below = f"{where}.{'of' if kind == 'at_least' else kind}"
        of = held.get("of" if kind == "at_least" else kind)
        if not isinstance(of, list):
            raise _refused("Expected a list of queries", below)
        if not of:
            raise _refused("A list of queries may not be empty", below)
        least = 0
        if kind == "at_least":
            least = _least(held["at_least"], len(of), f"{where}.at_least")
        children = tuple(
            self.node(child, f"{below}[{at}]", depth + 1) for at, child in enumerate(of)
        )
        return Tree(kind, children, least, place=where)


def _kind_of(given: object, where: str) -> Kind:
    """Give what a node is."""
    if not isinstance(given, dict):
        raise _refused(f"Expected an object, {_SHAPES}", where)
    kind = next((each for each in _KINDS if each in given), None)
    known = {"at_least", "of"} if kind == "at_least" else {kind}
    for name in given:
        if name not in known:
            beside = f" beside `{kind}`" if kind else ""
            raise _refused(
                f"`{str(name)[:100]}` has no meaning here{beside}: a node is {_SHAPES}", where
            )
    if kind is None:
        raise _refused(f"Expected an object, {_SHAPES}", where)
    return kind


def _name(given: object, where: str) -> str:
    if not isinstance(given, str):
        raise _refused("Expected a text, the id or the custom id of a group", where)
    if not 0 < len(given) <= NAME or "\0" in given:
        raise _refused(f"Expected 1 to {NAME:,} characters without NUL", where)
    return given


def _least(given: object, size: int, where: str) -> int:
    if type(given) is not int or not 1 <= given <= size:
        raise _refused(f"Expected a whole number from 1 to {size:,}, as many as `of` has", where)
    return given


def _refused(message: str, where: str) -> Invalid:
    return Invalid(f"{message} - at `{where}`", "query")


def _simple(tree: Tree, numbers: Mapping[str, int]) -> Node:
    if tree.kind == "group":
        return Node("group", number=numbers[tree.group])
    children = [_simple(child, numbers) for child in tree.children]
    if tree.kind == "not":
        [child] = children
        # Everybody is in group 0: what is not outside of a group is in it.
        return child.children[0] if child.kind == "not" else node_of("not", children)
    kind = tree.kind
    if kind == "at_least" and tree.least in (1, len(children)):
        kind = "or" if tree.least == 1 else "and"
    if kind != "at_least":
        flat = [
            each
            for child in children
            for each in (child.children if child.kind == kind else [child])
        ]
        children = list({each.text: each for each in flat}.values())
        if len(children) == 1:
            return children[0]
    return node_of(kind, children, tree.least if kind == "at_least" else 0)


def node_of(kind: Kind, children: list[Node], least: int = 0) -> Node:
    """Give a node of children."""
    return Node(kind, tuple(children), least, leaves=sum(child.leaves for child in children))


class Plan:
    """How a query is answered where groups have these sizes: in all of the profiles, or a part.

    `sizes` holds every group of the query and group 0. Sizes decide what is cheap, never what is
    right.
    """

    def __init__(self, node: Node, sizes: Mapping[int, int]) -> None:
        """Order the children of each node by how many profiles they can leave."""
        self._sizes = sizes
        self._all = float(sizes[EVERYBODY])
        self.node = self._ordered(node)
        self.budget_us = BUDGET_US + LOOK_US * node.leaves
        self.formula = self._formula()

    def cost_us(self, part: float) -> float:
        """Estimate what it costs to look at this part of the profiles."""
        return self._cost(self.node, part, None)[0]

    def asks_all(self, node: Node, part: float, within: int) -> bool:
        """Tell whether a node of it is asked of everybody at less cost than of so many."""
        restricted_us = self._cost(node, part, within)[0] + PASSED_US * within
        return self._cost(node, part, None)[0] <= restricted_us

    def part(self) -> float:
        """Give the part of the profiles that one step may look at."""
        part = 1.0
        while part > 2**-31 and (cost := self.cost_us(part)) > self.budget_us:
            part /= max(cost / self.budget_us, 1.5)
        return part

    def _ordered(self, node: Node) -> Node:
        if node.kind == "group":
            return node
        children = [self._ordered(child) for child in node.children]
        children.sort(key=self._size)
        return node_of(node.kind, children, node.least)

    def _size(self, node: Node) -> float:
        """Give at most how many profiles it can hold; what needs everybody comes last."""
        if node.kind == "group":
            return self._sizes[node.number]
        if node.kind == "not":
            return self._all + 1
        sizes = sorted(map(self._size, node.children))
        if node.kind == "and":
            return sizes[0]
        least = node.least if node.kind == "at_least" else 1
        return min(sum(sizes[: len(sizes) - least + 1]), self._all + 1)

    def _cost(self, node: Node, part: float, within: float | None) -> tuple[float, float]:
        """Estimate what a node costs, asked of some candidates or of everybody, and leaves."""
        if node.kind == "group":
            held = self._sizes[node.number] * part
            listing = LOOK_US + (CALL_US / SEGMENT + LISTED_US) * held
            if within is None:
                return listing, held
            return min(listing, PROBED_US * within), min(held, within)
        if node.kind == "not":
            cost = 0.0
            if within is None:
                within = self._all * part
                cost = LOOK_US + (CALL_US / SEGMENT + LISTED_US) * within
            return cost + self._cost(node.children[0], part, within)[0], within
        if node.kind == "and":
            total = 0.0
            for child in node.children:
                cost, within = self._cost(child, part, within)
                total += cost
            return total, within or 0.0
        return self._cost_of_several(node, part, within)

    def _cost_of_several(
        self, node: Node, part: float, within: float | None
    ) -> tuple[float, float]:
        least = node.least if node.kind == "at_least" else 1
        covering = len(node.children) - least + 1
        total = found = 0.0
        for child in node.children[:covering]:
            cost, held = self._cost(child, part, within)
            total, found = total + cost, found + held
        found = min(found, self._all * part if within is None else within)
        for child in node.children[covering:]:
            total += self._cost(child, part, found)[0]
        if within is not None:
            total = min(total, within * (PROBED_US + FIELD_US * node.leaves) + CALL_US)
        return total, found

    def _formula(self) -> Formula | None:
        """Give the formula that counts it at less cost, where there is one.

        PERF: whom two groups of 1,000,000 have in common, 500,000, the server counts in 0.67 s by
        ZINTERCARD of their segments, in 1.09 s by listing both, and in 3.2 s by asking each member
        of one; where one has 300,000 in 0.86, 0.91 and 1.30 s, where it has 30,000 in 0.88, 0.89
        and 0.33 s (processor time of the server, all in one run on a busy machine).
        """
        found = _formula_of(self.node)
        if found is None or len(found.groups) > COMMON or self.part() == 1:
            return None
        sizes = [max(self._sizes[number], 1) for number in found.groups]
        if min(sizes[: found.added], default=max(sizes)) * COARSER < max(sizes):
            return None
        # Whoever is not in the second group is not looked for in the third.
        scanned = min(*sizes, SEGMENT) * SCANNED_US * len(sizes) / 2
        found = msgspec.structs.replace(found, segment_us=CALL_US * len(sizes) + scanned)
        whole_us = found.segment_us * (1 + max(sizes) / SEGMENT)
        return found if whole_us < self.cost_us(1.0) else None


COMMON = 8
"""Groups of a formula at most."""
COARSER = 8
"""How many times larger the largest group may be than one that is added: the script goes on to the
end of that one's segment."""
SEGMENT = 40
"""Members of a segment: 24 to 96."""
SCANNED_US = 0.4
"""What the server needs to look for one member in a segment of another group."""


def _formula_of(node: Node) -> Formula | None:
    """Give the formula of a query over a few groups, all of one kind."""
    if node.kind == "not":
        common = _shared(node.children[0])
        return Formula((EVERYBODY, *common), 1) if common else None
    if node.kind == "or" and len(node.children) == 2:
        both = _shared(node_of("and", list(node.children)))
        return Formula(both, 2) if both else None
    if node.kind != "and":
        return None
    outside = [child for child in node.children if child.kind == "not"]
    if not outside:
        common = _shared(node)
        return Formula(common) if common else None
    inside = [child for child in node.children if child.kind == "group"]
    less = _shared(outside[0].children[0])
    if len(inside) != 1 or len(outside) != 1 or len(node.children) != 2 or not less:
        return None
    return Formula((inside[0].number, *less), 1)


def _shared(node: Node) -> tuple[int, ...] | None:
    """Give the groups of which a node wants membership in all; None: it wants something else."""
    if node.kind == "group":
        return (node.number,)
    if node.kind == "and" and all(child.kind == "group" for child in node.children):
        return tuple(child.number for child in node.children)
    return None


def pieces(node: Node) -> Iterator[Node]:
    """Cut a node that asks more groups than one script may into pieces of the same kind.

    Each is of some of its children, in their order; one may still be too wide in itself, and is
    then of one child alone.
    """
    ready: list[Node] = []
    weight = 0
    for child in node.children:
        if ready and weight + child.leaves > WIDE:
            yield node_of(node.kind, ready)
            ready, weight = [], 0
        ready.append(child)
        weight += child.leaves
    yield node_of(node.kind, ready)
