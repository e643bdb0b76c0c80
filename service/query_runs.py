"""One query being answered: the walk over the partitions, and how wide its steps are.

A step is one script over a range of h, the leading bytes of mixed ids; those are uniform, so that a
range of a certain width holds a certain part of every group. Where two groups are only counted the
server does it segment by segment; else candidates are listed, and asked about the other groups.
"""

from __future__ import annotations

from collections import deque
from itertools import repeat
from typing import TYPE_CHECKING, Any

import msgspec

from service import ids, keys, scripts
from service.cuts import Around
from service.errors import NotFound
from service.query_tree import (
    BUDGET_US,
    EVERYBODY,
    LOOK_US,
    WIDE,
    Node,
    Plan,
    Tree,
    node_of,
    pieces,
)
from service.store_group_directory import all_done

if TYPE_CHECKING:
    from service.connection import Connection
    from service.cuts import Cut
    from service.environment import Environment
    from service.query_tree import Formula

END = 2**32
"""The end of the range of h."""
KEPT = 250
"""Ids that a step gives without being asked: where a page begins there, they need no second one."""


class Bound(msgspec.Struct, frozen=True):
    """A query with the numbers of its groups, as they were found by what they were named."""

    tree: Tree
    numbers: dict[str, int]
    node: Node

    @property
    def text(self) -> str:
        """Give what a cursor of this query is bound to."""
        return self.node.text

    def missing(self, number: int) -> GroupMissing:
        """Say where the query names a group that is not there, or not any more."""
        leaves = (leaf for leaf in self.tree.leaves() if self.numbers[leaf.group] == number)
        return GroupMissing(next(leaves), number)


class GroupMissing(NotFound):
    """A group that a query names is not there, or is inactive."""

    def __init__(self, leaf: Tree, number: int | None) -> None:
        """Take the place in the query, and the number under which it was looked for."""
        named = (
            leaf.group if len(leaf.group) <= ids.TEXT_SIZE else f"{leaf.group[: ids.TEXT_SIZE]}…"
        )
        super().__init__(f"There is no group {named!r} - at `{leaf.place}.group`")
        self.number = number


class _Range(msgspec.Struct):
    """A range of h: how many there are in it, and who, where that is known: packed mixed ids."""

    begin: int
    end: int
    count: int
    packed: bytes | None = None


class Run:
    """One query being answered: it knows its plan, and how wide its steps may be."""

    def __init__(self, connection: Connection, env: Environment, bound: Bound, plan: Plan) -> None:
        """Take a query with its plan."""
        self._connection = connection
        self._env = env
        self._bound = bound
        self.plan = plan
        width = max(int(plan.part() * END), 1)
        self._widths = [width] * len(env.partitions)
        self._bulk = width < END
        """What takes one step is no bulk work."""

    async def read(self, cut: Cut | None, limit: int) -> tuple[list[tuple[int, bytes]], Around]:
        """Walk everything once; give the places of a page in the list's order, and what is around.

        Partitions are walked side by side; then who is on the page is read in the order of the
        list, where that is not known yet.
        """
        backward = cut is not None and cut.backward
        walks = [_Walk(cut, partition, limit + 1) for partition in range(len(self._env.partitions))]
        await all_done(*map(self._walk, walks))
        places: list[tuple[int, bytes]] = []
        for walk in reversed(walks) if backward else walks:
            if len(places) <= limit:
                mixed = await self._ids_ahead(walk, limit + 1 - len(places))
                places += ((walk.partition, each) for each in mixed)
        ahead = sum(walk.ahead for walk in walks)
        behind = sum(walk.behind for walk in walks)
        more = len(places) > limit or ahead > limit
        del places[limit:]
        if backward:
            places.reverse()
        return places, Around(more, behind > 0, max(ahead + behind, len(places)))

    async def check(self, *, wide_only: bool = False) -> None:
        """See to it that all groups are active in every partition: GroupMissing where not.

        :param wide_only: where one script looks at all groups it sees to that by itself
        """
        node = self.plan.node
        if wide_only and node.leaves <= WIDE:
            return
        numbers = sorted(node.numbers())
        await all_done(
            *(
                # Over no range at all nobody is looked at.
                self.ask(partition, 0, 0, 0, _any_of(numbers[start : start + WIDE]))
                for partition in range(len(self._env.partitions))
                for start in range(0, len(numbers), WIDE)
            )
        )

    async def read_ids(self, partition: int, begin: int) -> tuple[int, bytes]:
        """Give who is in the next range of a partition: where that ends, and packed mixed ids."""
        end = min(begin + self._widths[partition], END)
        _, packed = await self._evaluate(partition, begin, end, END)
        return end, packed or b""

    async def _walk(self, walk: _Walk) -> None:
        """Count a partition, around the cut if it lies there."""
        begin = 0
        if self.plan.formula is not None:
            while begin < END:
                end, count = await self._add_up(walk.partition, begin, self.plan.formula)
                if end == begin:
                    break
                if walk.divides(begin, end):
                    await self._look_through(walk, begin, end)
                else:
                    walk.take(_Range(begin, end, count))
                begin = end
        await self._look_through(walk, begin, END)

    async def _look_through(self, walk: _Walk, begin: int, end: int) -> None:
        """Evaluate a range in steps; the cut divides none but that of its own h."""
        while begin < end:
            stop = min(begin + self._widths[walk.partition], end)
            exact = begin == walk.h
            if exact:
                stop = begin + 1
            elif walk.divides(begin, stop):
                stop = walk.h or end
            count, packed = await self._evaluate(
                walk.partition, begin, stop, END if exact else KEPT
            )
            walk.take(_Range(begin, stop, count, packed))
            begin = stop

    async def _ids_ahead(self, walk: _Walk, wanted: int) -> list[bytes]:
        """Give the first who are ahead of the cut in a partition, in reading direction."""
        found: list[bytes] = []
        for each in reversed(walk.kept) if walk.backward else walk.kept:
            begin, end = each.begin, each.end
            while begin < end and len(found) < wanted:
                packed, width = each.packed, self._widths[walk.partition]
                low, high = begin, end
                if packed is None:
                    if walk.backward:
                        low = max(begin, end - width)
                    else:
                        high = min(begin + width, end)
                    _, packed = await self._evaluate(walk.partition, low, high, END)
                begin, end = (begin, low) if walk.backward else (high, end)
                mixed = sorted(ids.split(packed or b""), reverse=walk.backward)
                found += filter(walk.is_ahead, mixed)
        return found[:wanted]

    async def _add_up(self, partition: int, begin: int, formula: Formula) -> tuple[int, int]:
        """Count a range that the script chooses, without looking at anybody: its end, and how many.

        Where the end is the beginning, segments have become too different for that meanwhile.
        """
        end, count = await self._call(
            "count_common",
            partition,
            [begin, formula.segments, formula.added, *formula.groups],
        )
        # NOTE: where groups change between two steps, what is added and taken off may not match.
        return int(end), max(count, 0)

    async def _evaluate(
        self, partition: int, begin: int, end: int, most: int
    ) -> tuple[int, bytes | None]:
        """Count who is in a range; and who that is, packed, where there are at most so many.

        The width of the steps to come follows from what this one cost.
        """
        node = self.plan.node
        packed: bytes | None
        if node.leaves <= WIDE:
            cost, count, packed, _ = await self.ask(partition, begin, end, most, node)
            if count > most:
                packed = None
        else:
            pieces = _Pieces(self, partition, begin, end)
            found = await pieces.evaluate(node, None)
            count, packed = len(found), b"".join(found)
            # No script of several may take more than one that looks at as many groups as it may.
            most_us = BUDGET_US + LOOK_US * WIDE
            cost = max(pieces.cost_us, int(pieces.longest_us * self.plan.budget_us / most_us))
        factor = self.plan.budget_us / max(cost, 1)
        if factor < 1 or end - begin >= self._widths[partition]:
            width = int((end - begin) * min(max(factor, 0.1), 2))
            self._widths[partition] = min(max(width, 1), END)
        return count, packed

    async def ask(
        self,
        partition: int,
        begin: int,
        end: int,
        most: int,
        node: Node,
        *,
        tally: bool = False,
        within: bytes = b"",
    ) -> tuple[int, int, bytes, bytes]:
        """Run the script over a range: cost, how many, who, and how many children hold of each."""
        cost, count, packed, tallies = await self._call(
            "query_members", partition, [begin, end, most, int(tally), within, *node.program()]
        )
        return cost, count, packed, tallies

    async def _call(self, name: str, partition: int, arguments: list[bytes | str | int]) -> Any:
        tag = self._env.partitions[partition]
        try:
            return await self._connection.call(
                scripts.load(name),
                [keys.key(tag, "state"), keys.key(tag, "shape"), keys.none(tag)],
                arguments,
                bulk=self._bulk,
            )
        except NotFound as ex:
            raise self._bound.missing(int(str(ex))) from ex


def _any_of(numbers: list[int]) -> Node:
    return node_of("or", [Node("group", number=number) for number in numbers])


class _Walk:
    """What a walk over one partition has found: how many lie on which side of the cut.

    `kept` are the ranges ahead of the cut that are next to it, as many as hold the page.
    """

    __slots__ = ("_cut", "_wanted", "ahead", "backward", "behind", "h", "kept", "partition")

    def __init__(self, cut: Cut | None, partition: int, wanted: int) -> None:
        """Take the position, the partition, and how many rows the page may need of it."""
        self._cut = cut
        self._wanted = wanted
        self.partition = partition
        self.backward = cut is not None and cut.backward
        self.h: int | None = None
        """The h of the cut, if it lies in this partition."""
        if cut is not None and cut.partition == partition:
            self.h = ids.head(cut.key)
        self.ahead = self.behind = 0
        self.kept: deque[_Range] = deque()

    def divides(self, begin: int, end: int) -> bool:
        """Whether the cut lies within a range."""
        return self.h is not None and begin <= self.h < end

    def is_ahead(self, mixed: bytes) -> bool:
        """Whether one lies ahead of the cut, in reading direction."""
        cut = self._cut
        if cut is None:
            return True
        if cut.partition != self.partition:
            return (self.partition > cut.partition) != self.backward
        is_before = mixed < cut.key or (mixed == cut.key and cut.after)
        return is_before == self.backward

    def take(self, found: _Range) -> None:
        """Count a range. They come in ascending order; one that the cut divides has its ids."""
        if not found.count:
            return
        if self.divides(found.begin, found.end):
            count = sum(map(self.is_ahead, ids.split(found.packed or b"")))
        else:
            count = found.count if self.is_ahead(found.begin.to_bytes(4, "big")) else 0
        self.behind += found.count - count
        if not count:
            return
        before = self.ahead
        self.ahead += count
        found.count = count
        if not self.backward:
            if before < self._wanted:
                self.kept.append(found)
            return
        self.kept.append(found)
        held = sum(each.count for each in self.kept)
        while held - self.kept[0].count >= self._wanted:
            held -= self.kept.popleft().count


class _Pieces:
    """A range of a query over more groups than one script looks at.

    The upper part of the tree is put together here, of what scripts find of its pieces.
    """

    def __init__(self, run: Run, partition: int, begin: int, end: int) -> None:
        """Take the range."""
        self.cost_us = self.longest_us = 0
        self._run = run
        self._where = (partition, begin, end, END)
        self._part = (end - begin) / END

    async def evaluate(self, node: Node, within: set[bytes] | None) -> set[bytes]:
        """Give those of whom a node is true: of some, or of everybody in the range."""
        if within is not None and not within:
            return within
        if node.leaves <= WIDE:
            return set(await self._ask(node, within))
        if node.kind == "not":
            if within is None:
                within = set(await self._ask(Node("group", number=EVERYBODY), None))
            return within - await self.evaluate(node.children[0], within)
        if node.kind == "and":
            for piece in pieces(node):
                whole = piece if piece.leaves <= WIDE else piece.children[0]
                within = await self.evaluate(whole, within)
            return within or set()
        least = node.least if node.kind == "at_least" else 1
        times: dict[bytes, int] = {}
        asked = 0
        for piece in pieces(node):
            # Whoever is in none of so many children is in too few of the others.
            if asked > len(node.children) - least:
                within = set(times)
            for mixed, count in (await self._tally(piece, within)).items():
                times[mixed] = times.get(mixed, 0) + count
            asked += len(piece.children)
        return {mixed for mixed, count in times.items() if count >= least}

    async def _tally(self, piece: Node, within: set[bytes] | None) -> dict[bytes, int]:
        """Give how many of a piece's children are true of each."""
        if within is not None and not within:
            return {}
        if piece.leaves <= WIDE:
            return await self._ask(piece, within, tally=True)
        [child] = piece.children
        return dict.fromkeys(await self.evaluate(child, within), 1)

    async def _ask(
        self, node: Node, within: set[bytes] | None, *, tally: bool = False
    ) -> dict[bytes, int]:
        if tally:
            # As a piece it is counted: how many of its children there have to be is said elsewhere.
            node = node_of("or", list(node.children))
        asked = within
        if within is not None and self._run.plan.asks_all(node, self._part, len(within)):
            asked = None
        cost, _, packed, tallies = await self._run.ask(
            *self._where, node, tally=tally, within=b"".join(sorted(asked or ()))
        )
        self.cost_us += cost
        self.longest_us = max(self.longest_us, cost)
        found = ids.split(packed)
        times = zip(found, map(int, tallies.split()) if tally else repeat(1), strict=False)
        if asked is within or within is None:
            return dict(times)
        return {mixed: count for mixed, count in times if mixed in within}
