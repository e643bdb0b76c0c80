"""Groups of a profile in the store: all of them, or those that match a query, page by page.

The profile's partition says which groups they are, and which of them are active; the directory says
which match. A profile in few groups is answered by one script. Of one in many the numbers are read
first, then what there is to say of them in parts, so that nobody waits for long; and a walk over
pages is exact all the same: a group that the profile stays in is among the numbers each time.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import chain
from operator import neg
from typing import TYPE_CHECKING

import msgspec

from service import keys, scripts
from service.cuts import Around, number_bound, number_page
from service.groups import Group, GroupQuery, query_indexes

if TYPE_CHECKING:
    from service.connection import Connection
    from service.cuts import Cut, Page
    from service.environment import Environment
    from service.store_groups import GroupStore
    from service.store_members import MemberStore

    Row = tuple[bytes | None, bytes | None]
    """When the profile joined a group, and the group's members in the partition."""

WHOLE = 1_000
"""Groups of a profile up to which one script gives a page of `ROWS` of them: 1.3 ms."""
ROWS = 500
WHOLE_IN_ROWS = 700
"""Groups of a profile up to which one script gives all of them, each in a row: 1.2 ms."""
PART = 1_000
"""Groups of a profile that one script reads, where the numbers are known: 1 ms."""
LOOKED_UP = 2_000
"""Index entries that one script looks up, of all groups together: 1 ms."""

EVERY = GroupQuery()


class ProfileGroup(msgspec.Struct, frozen=True):
    """One group of a profile. `members` is exact; None where it was not asked for."""

    group: Group
    joined_at_us: int
    members: int | None


class LookupStore:
    """Which groups is a profile in. Every method may raise Unavailable."""

    def __init__(self, connection: Connection, groups: GroupStore, members: MemberStore) -> None:
        """Take the open connection, and the stores that know documents and counts."""
        self._connection = connection
        self._groups = groups
        self._members = members

    async def list_profile_groups(
        self,
        env: Environment,
        id16: bytes,
        cut: Cut | None,
        limit: int,
        *,
        query: GroupQuery = EVERY,
        skip: int = 0,
        counted: bool = True,
    ) -> Page[ProfileGroup]:
        """Give a page of the groups that a profile is in, in order of their creation or reversed.

        Those that are active and match the query, from the cut on, `skip` of them passed over. A
        profile being erased: Erasing.

        One round trip with one partition and warm documents; a query that narrows, or wants
        inactive groups, too, costs one more to the directory for each 1,000 groups of the profile
        (for each 500 at four conditions, and so on). Of a profile in more than 1,000 groups, 700
        with a query or for a page of more than 500, the numbers are read first (at 10,000, 2.5 ms),
        then their states, 1,000 in a script, then the rows. With more partitions exact member
        counts (`counted`) cost one parallel fan-out.
        """
        mixed = env.mixer.mix(id16)
        up = query.descending == (cut is not None and cut.backward)
        bound = number_bound(cut, up=up)
        inactive = int(query.include_inactive)
        is_plain = query in _PLAIN
        window = (int(not up), bound, skip, limit) if is_plain else (0, b"", 0, WHOLE)
        most = WHOLE if is_plain and limit <= ROWS else WHOLE_IN_ROWS
        tag = env.home(mixed)
        reply = await self._connection.call(
            scripts.load("list_profile_groups"), _declared(tag), [mixed, *window, inactive, most]
        )
        if is_plain and not isinstance(reply, bytes):
            count, more, other, names, *columns = reply
            around = Around(bool(more), bool(other), count)
            numbers = [int(each) for each in names]
            rows: list[Row] = list(zip(*columns, strict=True))
        else:
            joined: dict[int, Row] = {}
            if isinstance(reply, bytes):
                wanted = await self._listed(env, mixed, reply, inactive)
            else:
                wanted = [int(each) for each in reply[3]]
                joined = dict(zip(wanted, zip(*reply[4:], strict=True), strict=True))
            if not is_plain:
                wanted = await self._match(env, query, wanted)
            numbers, around = _from(wanted, bound, skip, limit, up=up)
            if isinstance(reply, bytes):
                joined = await self._rows(env, mixed, numbers, inactive)
            rows = [joined.get(number, (None, None)) for number in numbers]
        # NOTE: with inactive ones, what a row says of `is_active` must not be a second old.
        cached = not query.include_inactive
        groups = await self._groups.read_groups(env, numbers, cached=cached)
        members: list[int] | list[None]
        if not counted:
            members = [None] * len(numbers)
        elif len(env.partitions) == 1:
            members = [int(held or 0) for _, held in rows]
        else:
            members = await self._members.count_members(env, numbers)
        found = [
            ProfileGroup(groups[number], int(joined_at), held)
            for number, (joined_at, _), held in zip(numbers, rows, members, strict=True)
            if number in groups and joined_at is not None
        ]
        # NOTE: what ended between two reads is neither a row nor counted.
        gone = len(numbers) - len(found)
        if gone:
            around = msgspec.structs.replace(around, count=around.count - gone)
        return number_page(found, numbers, around, cut, descending=query.descending)

    async def _listed(
        self, env: Environment, mixed: bytes, texts: bytes, inactive: int
    ) -> list[int]:
        """Give those of these numbers that may be listed, in ascending order."""
        texts_of = [each for each in texts.split(b" ") if each != b"d"]
        numbers: list[int] = []
        for start in range(0, len(texts_of), PART):
            part = texts_of[start : start + PART]
            [unlisted, *_] = await self._read(env, mixed, part, inactive, rows=0)
            without = set(unlisted)
            numbers += [int(each) for each in part if each not in without]
        numbers.sort()
        return numbers

    async def _rows(
        self, env: Environment, mixed: bytes, numbers: list[int], inactive: int
    ) -> dict[int, Row]:
        """Give what a page shows of these groups, without those that ended."""
        found: dict[int, Row] = {}
        for start in range(0, len(numbers), PART):
            part = numbers[start : start + PART]
            unlisted, *columns = await self._read(env, mixed, part, inactive, rows=1)
            found.update(zip(part, zip(*columns, strict=True), strict=True))
            for each in unlisted:
                del found[int(each)]
        return found

    async def _read(
        self,
        env: Environment,
        mixed: bytes,
        numbers: list[int] | list[bytes],
        inactive: int,
        *,
        rows: int,
    ) -> list[list[bytes]]:
        reply: list[list[bytes]] = await self._connection.call(
            scripts.load("read_profile_groups"),
            _declared(env.home(mixed)),
            [mixed, inactive, rows, *numbers],
        )
        return reply

    async def _match(self, env: Environment, query: GroupQuery, numbers: list[int]) -> list[int]:
        """Give those of ascending numbers whose groups match, in parts, in the same order."""
        tag = env.directory
        if query.custom_id is not None:
            key = keys.key(tag, "group_custom_ids")
            held = await self._connection.command(key, "HGET", key, query.custom_id)
            numbers = [number for number in numbers if held is not None and number == int(held)]
        indexes = [
            query_indexes(tag, query, active=active)
            for active in ((True, False) if query.include_inactive else (True,))
        ]
        part = max(1, min(PART, LOOKED_UP // sum(map(len, indexes))))
        found: list[int] = []
        for start in range(0, len(numbers), part):
            standing = await self._connection.call(
                scripts.load("match_groups"),
                [*chain.from_iterable(indexes), keys.none(tag)],
                [len(indexes[0]), *numbers[start : start + part]],
            )
            found += sorted(map(int, standing))
        return found


_PLAIN = (EVERY, GroupQuery(descending=True))
"""What narrows nothing."""


def _declared(tag: bytes) -> list[bytes]:
    return [
        keys.key(tag, "state"),
        keys.key(tag, "count"),
        keys.key(tag, "erasing"),
        keys.none(tag),
    ]


def _from(
    numbers: list[int], bound: bytes, skip: int, limit: int, *, up: bool
) -> tuple[list[int], Around]:
    """Give a page of ascending numbers in reading order, and what lies around it."""
    numbers = numbers if up else list(reversed(numbers))
    begin = skip
    if bound:
        key = None if up else neg
        begin += bisect_left(numbers, int(bound) if up else -int(bound), key=key)
    end = begin + limit
    return numbers[begin:end], Around(end < len(numbers), bool(numbers[:begin]), len(numbers))
