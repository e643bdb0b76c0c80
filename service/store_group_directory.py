"""Groups as their directory knows them: one by its id, the numbers of ids, lists.

Reads alone; `store_groups.py` changes groups. Numbers and documents may come from the near-cache of
the process, and what may is said with each.
"""

from __future__ import annotations

import asyncio
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from service import ids, keys, scripts
from service.cuts import Around, Page, number_bound, number_page
from service.errors import Conflict, NotFound
from service.groups import Group, GroupQuery, NotStatic, decode, matches, query_indexes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping

    from service.connection import Connection
    from service.cuts import Cut
    from service.environment import Environment
    from service.nearcache import NearCache

    Indexes = list[list[bytes]]

Used = TypeVar("Used")

SCAN = 200
"""Index entries that one step of a list looks at, in all indexes together: 1 ms."""
ROWS = 150
"""Groups that one step of a list reads, or that are read by number: 1.5 ms."""
READERS = 32
"""Groups whose numbers are asked for at the same time."""
FOLLOWS = "The members of a dynamic group follow its rule tree, and are not written."


class GroupDirectory:
    """Reads the groups of an environment. Every method may raise Unavailable."""

    def __init__(self, connection: Connection, cache: NearCache) -> None:
        """Take the open connection and the process's near-cache."""
        self._connection = connection
        self._cache = cache

    async def get_group(
        self, env: Environment, gid: str, *, include_inactive: bool = False
    ) -> Group:
        """Give the group of an id or, if no group has that id, of a custom id.

        What follows on `custom_id:` is a custom id, whatever its form. Read from the directory, so
        it is as it is now. NotFound where there is none, or an inactive one that was not asked for.
        One round trip.
        """
        custom_id = ids.named_by_custom_id(gid)
        parsed = ids.parse(gid)
        directory = self._cache.directory(env.directory)
        with directory.filling() as fill:
            found = await self._connection.call(
                scripts.load("find_group"),
                [
                    keys.key(env.directory, "group_ids"),
                    keys.key(env.directory, "group_custom_ids"),
                    keys.none(env.directory),
                ],
                [parsed or b"", (gid if custom_id is None else custom_id).encode()],
            )
            if not found or found[1] is None:
                raise NotFound
            group = decode(int(found[0]), found[1], found[2])
            if fill.fits(group.number):
                directory.keep_number(id16(group.id), group.number, dynamic=group.is_dynamic)
                directory.keep_group(group)
        if not (group.is_active or include_inactive):
            raise NotFound
        return group

    async def number_of(self, env: Environment, gid: str) -> int:
        """Give the number of a group, to ask member scripts about. NotFound where none is.

        An id is near-cached (no round trip); a custom id reads the directory. An id's number never
        changes while the group exists; where member scripts say that there is none, see `renumber`.
        """
        parsed = ids.parse(gid)
        if parsed is not None:
            number = self._cache.directory(env.directory).numbers.get(parsed)
            if number is not None:
                self._cache.hits += 1
                return number
            self._cache.misses += 1
        return (await self.get_group(env, gid, include_inactive=True)).number

    async def static_number_of(self, env: Environment, gid: str) -> int:
        """Give the number of a static group, as `number_of` does. Conflict: it is a dynamic one.

        The near-cache knows that too, so it takes no round trip more.
        """
        number = await self.number_of(env, gid)
        if await self._is_dynamic(env, gid, number):
            raise Conflict(FOLLOWS)
        return number

    async def _is_dynamic(self, env: Environment, gid: str, number: int) -> bool:
        """Tell whether the group that was just found under this number is dynamic."""
        directory = self._cache.directory(env.directory)
        if number in directory.ids:
            return number in directory.dynamic
        # A change was heard of since, and what was read is not kept.
        return (await self.get_group(env, gid, include_inactive=True)).is_dynamic

    async def numbers_of(self, env: Environment, gids: Collection[str]) -> dict[str, int | None]:
        """Give the number of each group, as `number_of` does; None where none is.

        Those that are not near-cached are asked for side by side.
        """
        numbers: dict[str, int | None] = {}

        async def read(gid: str) -> None:
            try:
                numbers[gid] = await self.number_of(env, gid)
            except NotFound:
                numbers[gid] = None

        await _side_by_side(read, gids)
        return numbers

    async def static_numbers_of(
        self, env: Environment, gids: Collection[str]
    ) -> dict[str, int | NotStatic | None]:
        """Give the number of each static group, as `numbers_of` does, and DYNAMIC of a dynamic one.

        For who writes members of many groups: what is no number is refused, each for its reason.
        """
        numbers: dict[str, int | NotStatic | None] = {}

        async def read(gid: str) -> None:
            try:
                numbers[gid] = await self.static_number_of(env, gid)
            except NotFound:
                numbers[gid] = None
            except Conflict:
                numbers[gid] = NotStatic.DYNAMIC

        await _side_by_side(read, gids)
        return numbers

    async def renumbered(
        self,
        env: Environment,
        numbers: Mapping[str, int | NotStatic | None],
        gids: Collection[str],
    ) -> set[str]:
        """Give those groups that are said to be gone, but have another number: see `renumber`."""
        moved: set[str] = set()

        async def confirm(gid: str) -> None:
            number = numbers[gid]
            if isinstance(number, int) and await self.renumber(env, gid, number) is not None:
                moved.add(gid)

        await _side_by_side(confirm, gids)
        return moved

    async def renumber(self, env: Environment, gid: str, number: int) -> int | None:
        """Give the number of a group that is said to be gone under this one, if it has another.

        A group may be deleted and another made under its id before this process hears of it: so a
        miss under a cached number is confirmed by the directory. None where nothing changed.
        """
        self._cache.directory(env.directory).forget(number)
        try:
            fresh = await self.number_of(env, gid)
        except NotFound:
            return None
        return None if fresh == number else fresh

    async def with_number(
        self,
        env: Environment,
        gid: str,
        use: Callable[[int], Awaitable[Used]],
        *,
        static: bool = False,
    ) -> Used:
        """Do something with the number of a group; NotFound is confirmed before it is raised.

        With `static` only with that of a static one: a dynamic one is a Conflict.
        """
        give = self.static_number_of if static else self.number_of
        number = await give(env, gid)
        try:
            return await use(number)
        except NotFound:
            if await self.renumber(env, gid, number) is None:
                raise
        return await use(await give(env, gid))

    async def read_groups(
        self, env: Environment, numbers: list[int], *, cached: bool = True
    ) -> dict[int, Group]:
        """Documents of groups by number; those that are gone are left out.

        Cached ones may be behind by the time a published change takes, at most about a second.
        """
        directory = self._cache.directory(env.directory)
        found = {}
        missing = []
        for number in numbers:
            group = directory.groups.get(number) if cached else None
            if group is None:
                missing.append(number)
            else:
                found[number] = group
        if cached:
            self._cache.hits += len(found)
            self._cache.misses += len(missing)
        start = 0
        while start < len(missing):
            wanted = missing[start : start + ROWS]
            with directory.filling() as fill:
                flat = await self._connection.call(
                    scripts.load("read_groups"),
                    [keys.key(env.directory, "group_ids"), keys.none(env.directory)],
                    wanted,
                )
                start += len(flat) // 2
                for number, raw, version in zip(wanted, flat[::2], flat[1::2], strict=False):
                    if raw is not None:
                        group = found[number] = decode(number, raw, version)
                        if fill.fits(number):
                            directory.keep_group(group)
        return found

    async def list_groups(
        self, env: Environment, query: GroupQuery, cut: Cut | None, limit: int
    ) -> Page[Group]:
        """Give a page of the groups that match, in order of creation (or the reverse).

        Exact under changes: a group that matches during the whole walk comes exactly once. One
        round trip for a page, and one for each 200 entries of the smallest index that it and the
        count of several conditions have to look at.
        """
        if query.custom_id is not None:
            return await self._list_one(env, query, cut)
        indexes = [
            query_indexes(env.directory, query, active=active)
            for active in ((True, False) if query.include_inactive else (True,))
        ]
        up = query.descending == (cut is not None and cut.backward)
        bound, other = number_bound(cut, up=up), number_bound(cut, up=not up)
        rows, beyond, count = await asyncio.gather(
            self._walk(env, indexes, up=up, bound=bound, limit=limit + 1),
            self._lies(env, indexes, up=not up, bound=other) if cut is not None else _no(),
            self._count(env, indexes),
        )
        around = Around(len(rows) > limit, beyond, count)
        rows = rows[:limit]
        return number_page(
            rows, [each.number for each in rows], around, cut, descending=query.descending
        )

    async def _list_one(self, env: Environment, query: GroupQuery, cut: Cut | None) -> Page[Group]:
        """Give a list by custom id has at most one row."""
        key = keys.key(env.directory, "group_custom_ids")
        number = await self._connection.command(key, "HGET", key, query.custom_id or "")
        groups = await self.read_groups(env, [int(number)], cached=False) if number else {}
        rows = [each for each in groups.values() if matches(each, query)]
        if cut is None or not rows:
            return Page(len(rows), rows, None, None)
        up = query.descending == (cut is not None and cut.backward)
        bound = int(number_bound(cut, up=up))
        inside = rows[0].number >= bound if up else rows[0].number <= bound
        rows = rows if inside else []
        return number_page(
            rows,
            [each.number for each in rows],
            Around(more=False, other=not inside, count=1),
            cut,
            descending=query.descending,
        )

    async def _walk(
        self, env: Environment, indexes: Indexes, *, up: bool, bound: bytes, limit: int
    ) -> list[Group]:
        """Read up to `limit` groups from a bound on."""
        found: list[Group] = []
        steps = self._steps(env, indexes, up=up, bound=bound, limit=limit, documents=True)
        async for step in steps:
            found += [
                decode(int(number), raw, version)
                for number, raw, version in zip(step[::3], step[1::3], step[2::3], strict=True)
            ]
        return found

    async def _lies(self, env: Environment, indexes: Indexes, *, up: bool, bound: bytes) -> bool:
        """Tell whether any group matches from a bound on."""
        steps = self._steps(env, indexes, up=up, bound=bound, limit=1, documents=False)
        return bool(sum([len(step) async for step in steps]))

    async def _count(self, env: Environment, indexes: Indexes) -> int:
        """Count the groups that match: one command for one condition, else a walk in steps."""
        if len(indexes[0]) == 1:
            return sum(
                await asyncio.gather(
                    *(self._connection.command(part[0], "ZCARD", part[0]) for part in indexes)
                )
            )
        steps = self._steps(env, indexes, up=True, bound=b"", limit=None, documents=False)
        return sum([len(step) async for step in steps])

    async def _steps(
        self,
        env: Environment,
        indexes: Indexes,
        *,
        up: bool,
        bound: bytes,
        limit: int | None,
        documents: bool,
    ) -> AsyncIterator[list[bytes]]:
        """Walk the groups that stand in all indexes, in bounded steps, up to `limit` of them.

        A step is a flat list: a number, or number, document and version, for each group.
        """
        width = 3 if documents else 1
        left = limit
        while left is None or left > 0:
            most = ROWS if left is None else min(left, ROWS)
            last, *step = await self._connection.call(
                scripts.load("list_groups"),
                [*chain.from_iterable(indexes), keys.none(env.directory)],
                [
                    len(indexes[0]),
                    int(not up),
                    bound,
                    most,
                    max(SCAN // sum(map(len, indexes)), 1),
                    int(documents),
                ],
            )
            yield step
            if not last:
                return
            if left is not None:
                left -= len(step) // width
            bound = b"%d" % (int(last) + (1 if up else -1))


def id16(text: str) -> bytes:
    """Give the 16 bytes of a stored id."""
    parsed = ids.parse(text)
    if parsed is None:
        message = f"{text} is no UUID"
        raise ValueError(message)
    return parsed


async def _side_by_side(use: Callable[[str], Awaitable[None]], gids: Collection[str]) -> None:
    """Do something with each of many groups, READERS at the same time."""
    waiting = iter(gids)
    done = 0

    async def work() -> None:
        nonlocal done
        for gid in waiting:
            await use(gid)
            done += 1
            if done % READERS == 0:
                # With a warm cache nothing waits, and the first takes them all.
                await asyncio.sleep(0)

    await all_done(*(work() for _ in range(min(READERS, len(gids)))))


async def _no() -> bool:
    return False


async def all_done(*calls: Awaitable[Any]) -> list[Any]:
    """Wait for all, also where one fails, so that none goes on behind the caller's back.

    Then the first failure is raised.
    """
    done = await asyncio.gather(*calls, return_exceptions=True)
    for each in done:
        if isinstance(each, BaseException):
            raise each
    return done
