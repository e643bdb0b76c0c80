"""Queries over groups, answered where the memberships are: how many profiles, and which.

Partitions are walked side by side in steps that stay under 2 ms each (`query_runs`), whatever the
groups hold and however many there are. Nobody holds a snapshot: what is said of each profile was
true when its step ran, so an answer is exact for groups that do not change meanwhile. Of a walk
nothing is kept but counts, and where the rows of one page are.

A query may be saved as a static group: a job fills that, step by step.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

import msgspec

from service import ids, keys, scripts
from service.cuts import Page, member_page
from service.errors import NotFound
from service.job_record import SaveStep
from service.query_runs import END, Bound, GroupMissing, Run
from service.query_tree import EVERYBODY, Plan, parse_query
from service.store_group_directory import all_done
from service.store_members import BEING_ERASED, OVER_LIMIT, UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from service.connection import Connection
    from service.cuts import Cut
    from service.environment import Environment
    from service.groups import Group, NewGroup
    from service.query_tree import Tree
    from service.store_groups import GroupStore
    from service.store_members import MemberStore

__all__ = ["Bound", "GroupMissing", "QueryRow", "QueryStore"]

Used = TypeVar("Used")

NAMES = 250
"""Profiles whose names one script reads: 0.6 ms."""
SAVED = 1_000
"""Profiles that a step of a job adds to the group that it fills, more or less."""
STEP_SECONDS = 0.5
"""A step ends after this, too: it has to be far below a job's lease."""


class QueryRow(msgspec.Struct, frozen=True):
    """A profile of which a query is true. `id` is its 16 bytes."""

    id: bytes
    nickname: str | None = None
    custom_id: str | None = None


class QueryStore:
    """Answers queries. Every method may raise Unavailable."""

    def __init__(self, connection: Connection, groups: GroupStore, members: MemberStore) -> None:
        """Take the open connection, who knows groups by their ids, and who counts members."""
        self._connection = connection
        self._groups = groups
        self._members = members

    async def bind(self, env: Environment, tree: Tree) -> Bound:
        """Find the groups that a query names. GroupMissing where one is not there."""
        leaves = list(tree.leaves())
        found = await self._groups.numbers_of(env, dict.fromkeys(leaf.group for leaf in leaves))
        numbers: dict[str, int] = {}
        for leaf in leaves:
            number = found[leaf.group]
            if number is None:
                raise GroupMissing(leaf, None)
            numbers[leaf.group] = number
        return Bound(tree, numbers, tree.bound(numbers))

    async def with_bound(
        self, env: Environment, tree: Tree, use: Callable[[Bound], Awaitable[Used]]
    ) -> Used:
        """Do something with a query whose groups were found.

        That one is missing is confirmed by the directory before GroupMissing is raised.
        """
        bound = await self.bind(env, tree)
        try:
            return await use(bound)
        except GroupMissing as ex:
            gone = [gid for gid, number in bound.numbers.items() if number == ex.number]
            if not await self._groups.renumbered(env, bound.numbers, gone):
                raise
        return await use(await self.bind(env, tree))

    async def count(self, env: Environment, bound: Bound) -> int:
        """How many profiles a query is true of. GroupMissing where a group is gone."""
        return (await self.read_page(env, bound, None, 1, named=False)).count

    async def read_page(
        self, env: Environment, bound: Bound, cut: Cut | None, limit: int, *, named: bool = True
    ) -> Page[QueryRow]:
        """Give a page of the profiles that a query is true of, and how many there are in all.

        In the order of partition and mixed id, as members are listed. With `named` rows have
        nickname and custom id. GroupMissing where a group is deleted or inactive by now.

        Costs a walk over those of whom it could be true: of `and` the smallest group, of `or` all,
        of `not` all profiles. For a query of one group it is a list of members.
        """
        if bound.node.kind == "group":
            number = bound.node.number
            try:
                page = await self._members.list_members(env, number, cut, limit)
            except NotFound as ex:
                raise bound.missing(number) from ex
            rows = [QueryRow(row.id, row.nickname, row.custom_id) for row in page.rows]
            return Page(page.count, rows, page.first, page.last)
        run = await self.begin(env, bound)
        await run.check(wide_only=True)
        places, around = await run.read(cut, limit)
        packed = b"".join(mixed for _, mixed in places)
        names: Sequence[tuple[str | None, str | None]] = [(None, None)] * len(places)
        if named:
            names = await self._names(env, places)
        found = [
            QueryRow(id16, *name)
            for id16, name in zip(ids.split(env.mixer.unmix(packed)), names, strict=True)
        ]
        return member_page(found, places, around, cut)

    async def begin(self, env: Environment, bound: Bound) -> Run:
        """Plan a query by the sizes that its groups have now."""
        numbers = sorted(bound.node.numbers() | {EVERYBODY})
        counts = await self._members.count_members(env, numbers)
        share = len(env.partitions)
        sizes = {number: -(-held // share) for number, held in zip(numbers, counts, strict=True)}
        return Run(self._connection, env, bound, Plan(bound.node, sizes))

    async def save(self, env: Environment, tree: Tree, new: NewGroup) -> Group:
        """Create a static group that a job fills with those of whom a query is true.

        Group and job are there both or neither. GroupMissing where the query names a group that is
        not there; a custom id in use, or too many that wait already, is a Conflict.
        """
        bound = await self.with_bound(env, tree, lambda bound: self._checked(env, bound))
        named = await self._groups.read_groups(env, sorted(set(bound.numbers.values())))
        shown = {}
        for leaf in tree.leaves():
            group = named.get(bound.numbers[leaf.group])
            if group is None:
                raise GroupMissing(leaf, None)
            shown[leaf.group] = group.id
        query = tree.shown(shown)
        return await self._groups.create_group(env, msgspec.structs.replace(new, saved_query=query))

    async def _checked(self, env: Environment, bound: Bound) -> Bound:
        """Give a query if all its groups are active: asked of nobody, it says so."""
        run = await self.begin(env, bound)
        await run.check()
        return bound

    async def save_step(self, env: Environment, number: int, position: str) -> SaveStep:
        """Add some of those of whom the query of a group is true to it, from a position on.

        Safe to repeat. NotFound where the group, or one that its query names, is gone or inactive.
        Who may not be in more groups, or is being erased, is counted, and the first one named.
        """
        group = (await self._groups.read_groups(env, [number])).get(number)
        if group is None or group.saved_query is None:
            message = "The group that was to be filled is gone."
            raise NotFound(message)
        tree = parse_query(group.saved_query)
        return await self.with_bound(
            env, tree, lambda bound: self._save_step(env, number, bound, position)
        )

    async def _save_step(
        self, env: Environment, number: int, bound: Bound, position: str
    ) -> SaveStep:
        run = await self.begin(env, bound)
        partition, h, before = map(int, position.split(":")) if position else (0, 0, 0)
        added = failed = 0
        error = None
        until = time.monotonic() + STEP_SECONDS
        while partition < len(env.partitions):
            h, packed = await run.read_ids(partition, h)
            unmixed = env.mixer.unmix(packed)
            letters = await self._fill(env, number, unmixed)
            for id16, letter in zip(ids.split(unmixed), letters, strict=True):
                if letter in _REASONS:
                    failed += 1
                    most = env.groups_per_profile
                    error = error or f"{ids.text(id16)} {_REASONS[letter].format(most=most)}"
                else:
                    added += 1
            if h == END:
                partition, h = partition + 1, 0
            if added + failed >= SAVED or time.monotonic() > until:
                break
        found = before + added + failed
        part = (partition + h / END) / len(env.partitions)
        over = partition == len(env.partitions)
        return SaveStep(
            "" if over else f"{partition}:{h}:{found}", added, round(found / part), failed, error
        )

    async def _fill(self, env: Environment, number: int, packed: bytes) -> bytes:
        if not packed:
            return b""
        try:
            return await self._members.add_members(env, number, packed)
        except NotFound as ex:
            message = "The group that was to be filled is gone, or inactive."
            raise NotFound(message) from ex

    async def _names(
        self, env: Environment, places: Sequence[tuple[int, bytes]]
    ) -> list[tuple[str | None, str | None]]:
        """Read nicknames and custom ids, in the order given; partitions side by side."""
        script = scripts.load("read_names")
        names: list[tuple[str | None, str | None]] = [(None, None)] * len(places)
        within: dict[int, list[int]] = {}
        for at, (partition, _) in enumerate(places):
            within.setdefault(partition, []).append(at)

        async def read(tag: bytes, chunk: list[int]) -> None:
            flat = await self._connection.call(
                script,
                [keys.key(tag, "erasing"), keys.none(tag)],
                [b"".join(places[at][1] for at in chunk)],
            )
            for at, nickname, custom_id in zip(chunk, flat[::2], flat[1::2], strict=True):
                names[at] = (_text(nickname), _text(custom_id))

        await all_done(
            *(
                read(env.partitions[partition], chunk[start : start + NAMES])
                for partition, chunk in within.items()
                for start in range(0, len(chunk), NAMES)
            )
        )
        return names


_REASONS = {
    OVER_LIMIT: "is in {most} groups, as many as it may",
    BEING_ERASED: "is being erased",
    UNKNOWN: "has no record, and the application takes registered profiles alone",
}


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode()
