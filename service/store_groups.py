"""Groups in the store: their documents, ids, indexes and life in a directory.

A change is one directory script, version checked. What has to follow in the partitions (the state
that member scripts consult, the sweep of a deleted group) is named by an intent that the script
leaves; the caller completes it before answering, and the worker completes what a dead process left.
"""

from __future__ import annotations

import asyncio
import time
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import UNSET

from service import ids, keys, scripts
from service.cuts import Around, Page, number_bound, number_page
from service.errors import Conflict, NotFound, Stale
from service.faults import fault
from service.groups import (
    Group,
    GroupChanges,
    GroupDocument,
    GroupQuery,
    NewGroup,
    as_group,
    decode,
    group_indexes,
    matches,
    query_indexes,
)

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
TRIES = 50
"""How often a change is made again after losing against others."""


class GroupStore:
    """Groups of an environment. Every method may raise Unavailable."""

    def __init__(self, connection: Connection, cache: NearCache) -> None:
        """Take the open connection and the process's near-cache."""
        self._connection = connection
        self._cache = cache

    async def create_group(
        self, env: Environment, new: NewGroup, *, number: int | None = None
    ) -> Group:
        """Create a group. An id or custom id in use is a Conflict, and nothing changed.

        Three round trips: reserve a number, ask the partitions whether it is free (a failover may
        have lost writes of the directory), create. One more where it is created inactive. Whoever
        creates many reserves their numbers together, and gives a `number` that was found free.
        """
        document = GroupDocument(
            id=new.id or ids.text(ids.new()),
            name=new.name,
            is_active=new.is_active,
            description=new.description,
            custom_id=new.custom_id,
            created_at_us=_now_us() if new.created_at_us is None else new.created_at_us,
            attributes=new.attributes,
            membership_type=new.membership_type,
        )
        tag = env.directory
        while True:
            if number is None:
                number = await self._reserve_number(env)
            indexes = sorted(group_indexes(tag, document))
            try:
                version = await self._connection.call(
                    scripts.load("create_group"),
                    [
                        keys.group(tag, number),
                        keys.key(tag, "group_ids"),
                        keys.key(tag, "group_custom_ids"),
                        keys.key(tag, "intents"),
                        keys.key(tag, "version"),
                        *indexes,
                        keys.none(tag),
                    ],
                    [
                        number,
                        _id16(document.id),
                        (document.custom_id or "").encode(),
                        msgspec.json.encode(document),
                        _now_us(),
                        int(document.is_active),
                    ],
                )
                break
            except Conflict as ex:
                if str(ex) != "number":
                    raise _taken(ex, document) from None
                number = None
        fault("create_group.created")
        group = as_group(document, number, int(version))
        if not group.is_active:
            await self.install_state(env, group.number, group.version, "i")
            fault("create_group.installed")
            await self.finish_intent(env, "intents", group.number, group.version)
            fault("create_group.finished")
        return group

    async def _reserve_number(self, env: Environment) -> int:
        counter = keys.key(env.directory, "numbers")
        while True:
            number = int(await self._connection.command(counter, "INCR", counter))
            fault("create_group.reserved")
            used = await all_done(
                *(
                    self._connection.call(
                        scripts.load("probe_number"),
                        [keys.key(tag, "state"), keys.key(tag, "count"), keys.none(tag)],
                        [number],
                    )
                    for tag in env.partitions
                )
            )
            fault("create_group.probed")
            if not any(used):
                return number

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
                directory.keep_number(_id16(group.id), group.number)
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

    async def renumbered(
        self, env: Environment, numbers: Mapping[str, int | None], gids: Collection[str]
    ) -> set[str]:
        """Give those groups that are said to be gone, but have another number: see `renumber`."""
        moved: set[str] = set()

        async def confirm(gid: str) -> None:
            number = numbers[gid]
            if number is not None and await self.renumber(env, gid, number) is not None:
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
        self, env: Environment, gid: str, use: Callable[[int], Awaitable[Used]]
    ) -> Used:
        """Do something with the number of a group; NotFound is confirmed before it is raised."""
        number = await self.number_of(env, gid)
        try:
            return await use(number)
        except NotFound:
            fresh = await self.renumber(env, gid, number)
            if fresh is None:
                raise
        return await use(fresh)

    async def update_group(
        self,
        env: Environment,
        gid: str,
        changes: GroupChanges,
        *,
        include_inactive: bool = False,
    ) -> Group:
        """Change a group. A custom id in use is a Conflict, and nothing changed.

        A change of `is_active` is in force in every partition when this returns.
        """
        for _ in range(TRIES):
            old = await self.get_group(env, gid, include_inactive=include_inactive)
            document = GroupDocument(
                id=old.id,
                name=_changed(changes.name, old.name),
                is_active=_changed(changes.is_active, old.is_active),
                description=_changed(changes.description, old.description),
                custom_id=_changed(changes.custom_id, old.custom_id),
                created_at_us=old.created_at_us,
                attributes=_changed(changes.attributes, old.attributes),
                membership_type=old.membership_type,
            )
            try:
                version = await self._replace(env, old, document)
            except Stale:
                continue
            except Conflict as ex:
                raise _taken(ex, document) from None
            fault("update_group.updated")
            group = as_group(document, old.number, version)
            switched = document.is_active != old.is_active
            if not switched and changes.is_active is not UNSET:
                # Asked for again: whoever switched it may have died before all partitions knew.
                switched = await self._is_open(env, old.number)
            if switched:
                await self.install_state(
                    env, group.number, version, "a" if group.is_active else "i"
                )
                fault("update_group.installed")
                await self.finish_intent(env, "intents", group.number, version)
                fault("update_group.finished")
            return group
        message = "the group is being changed by too many others at once"
        raise Conflict(message)

    async def _replace(self, env: Environment, old: Group, new: GroupDocument) -> int:
        tag = env.directory
        before, after = group_indexes(tag, old), group_indexes(tag, new)
        leaving, entering = sorted(before - after), sorted(after - before)
        version = await self._connection.call(
            scripts.load("update_group"),
            [
                keys.group(tag, old.number),
                keys.key(tag, "group_custom_ids"),
                keys.key(tag, "intents"),
                keys.key(tag, "version"),
                *leaving,
                *entering,
                keys.none(tag),
            ],
            [
                old.number,
                old.version,
                (old.custom_id or "").encode(),
                (new.custom_id or "").encode(),
                msgspec.json.encode(new),
                _now_us(),
                len(leaving),
                int(new.is_active != old.is_active),
            ],
        )
        return int(version)

    async def delete_group(
        self, env: Environment, gid: str, *, include_inactive: bool = False
    ) -> None:
        """Delete a group: it is gone everywhere when this returns. The worker sweeps its members.

        NotFound where there is none, or an inactive one that was not asked for. So answers, too,
        who repeats a deletion that died between the directory and the partitions: nothing is known
        of the group's number any more, and checks go on saying member until the worker has told
        the partitions, which it does about 3 s after the deletion at the latest.
        """
        tag = env.directory
        for _ in range(TRIES):
            old = await self.get_group(env, gid, include_inactive=include_inactive)
            try:
                version = await self._connection.call(
                    scripts.load("delete_group"),
                    [
                        keys.group(tag, old.number),
                        keys.key(tag, "group_ids"),
                        keys.key(tag, "group_custom_ids"),
                        keys.key(tag, "intents"),
                        keys.key(tag, "deleting"),
                        keys.key(tag, "version"),
                        *sorted(group_indexes(tag, old)),
                        keys.none(tag),
                    ],
                    [
                        old.number,
                        old.version,
                        _id16(old.id),
                        (old.custom_id or "").encode(),
                        _now_us(),
                    ],
                )
            except Stale:
                continue
            fault("delete_group.deleted")
            await self.install_state(env, old.number, int(version), "d")
            fault("delete_group.installed")
            return
        message = "the group is being changed by too many others at once"
        raise Conflict(message)

    async def install_state(self, env: Environment, number: int, version: int, letter: str) -> None:
        """Install a group's state in every partition, unless a newer one is there.

        Partitions that can be reached have it, also where another one raised Unavailable.
        """
        await all_done(
            *(
                self._connection.call(
                    scripts.load("set_state"),
                    [keys.key(tag, "state"), keys.none(tag)],
                    [number, version, letter],
                )
                for tag in env.partitions
            )
        )

    async def _is_open(self, env: Environment, number: int) -> bool:
        key = keys.key(env.directory, "intents")
        return await self._connection.command(key, "ZSCORE", key, number) is not None

    async def finish_intent(self, env: Environment, kind: str, number: int, version: int) -> None:
        """Drop an intent (`intents` or `deleting`), unless a later change left a newer one."""
        await self._connection.call(
            scripts.load("finish_intent"),
            [keys.key(env.directory, kind), keys.none(env.directory)],
            [number, version],
        )

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
        for start in range(0, len(missing), ROWS):
            wanted = missing[start : start + ROWS]
            with directory.filling() as fill:
                flat = await self._connection.call(
                    scripts.load("read_groups"),
                    [keys.key(env.directory, "group_ids"), keys.none(env.directory)],
                    wanted,
                )
                for number, raw, version in zip(wanted, flat[::2], flat[1::2], strict=True):
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


def _taken(ex: Conflict, document: GroupDocument) -> Conflict:
    if str(ex) == "custom_id":
        return Conflict(f"profile group with custom_id '{document.custom_id}' already exists.")
    return Conflict(f"profile group with id '{document.id}' already exists.")


def _changed(change: Any, old: Any) -> Any:
    return old if change is UNSET else change


def _id16(text: str) -> bytes:
    parsed = ids.parse(text)
    if parsed is None:
        message = f"{text} is no UUID"
        raise ValueError(message)
    return parsed


def _now_us() -> int:
    return time.time_ns() // 1000


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
