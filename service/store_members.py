"""Memberships in the store: both directions of them, in the slot of the profile's partition.

Ids come and go as 16-byte UUIDs; inside they are mixed, which decides the partition (h mod B) and
the order (partition, then mixed bytes). One script changes one partition's memberships atomically,
both directions at once; a request for many ids is many scripts, each of a size that holds the
server up for less than 2 ms, and its answer says item by item what was done. All of it can be
repeated. Memberships of dynamic groups that follow from what was written are there when it is
answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from bisect import bisect_left, bisect_right
from itertools import chain
from typing import TYPE_CHECKING

import msgspec

from service import ids, keys, scripts
from service.cuts import Around, member_page
from service.errors import Conflict, NotFound, Unavailable, Unwritable
from service.faults import fault
from service.store_groups import all_done

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from service.connection import Connection
    from service.cuts import Cut, Page
    from service.environment import Environment
    from service.store_settling import SettlingStore

    Row = tuple[bytes, bytes, bytes | None, bytes | None]

CHUNK = 50
"""Ids that one script adds or removes: 1.5 ms of server time (measured: up to 30 us each)."""
ROWS = 125
"""Rows that one script lists: 1.5 ms."""
PAIRS = 350
"""Pairs that one script checks: 1.5 ms, for each profile is somewhere else in memory."""
COUNTS = 1_000
"""Groups whose members one script counts: 1 ms."""
LISTED = 500
"""Ids of members that one script lists: 0.5 ms."""
REPLACED = 10_000
"""Members of a group that can be replaced at once (design 3.1)."""
TURN = 500
"""Ids that the event loop prepares between two awaits."""
ADDED, ALREADY, OVER_LIMIT, UNKNOWN, BEING_ERASED, REMOVED, NO_MEMBER = b"+=LUE-."
"""Outcomes of adding and removing, one per id."""
UNSETTLED = b"!"
"""What scripts put behind outcomes, or profiles, where dynamic groups have yet to follow."""
SETTLED = frozenset(b"+=-.")
"""Outcomes after which these may have to follow; `=` and `.` where a request is repeated."""


class Member(msgspec.Struct, frozen=True):
    """One row of a member list. `id` is the profile's 16 bytes."""

    id: bytes
    nickname: str | None
    custom_id: str | None
    joined_at_us: int


class MemberStore:
    """Memberships of an environment. Every method may raise Unavailable.

    Where a group number is taken, an inactive or deleted group raises NotFound.
    """

    def __init__(self, connection: Connection, settling: SettlingStore) -> None:
        """Take the open connection, and the store that makes dynamic groups follow."""
        self._connection = connection
        self._settling = settling

    async def add_members(
        self,
        env: Environment,
        number: int,
        packed: bytes,
        *,
        recorded: bool = False,
        now_us: int | None = None,
    ) -> bytes:
        """Add profiles to a group. Returns one outcome per id, in the order given.

        An id that is given twice counts once, and has one outcome at both places. ADDED, ALREADY
        (a member before), OVER_LIMIT (the profile is in
        `groups_per_profile` static groups), UNKNOWN (it has no record, and only profiles with
        one are taken: those of a registered application, and, `recorded`, those that an identity
        resolved to, which may have been erased since), BEING_ERASED. Atomic for each id, not for
        all: an add that meets a deactivation raises NotFound, and what it had added stays.
        Repeatable. One round trip for each 50 ids of a partition.
        """
        tail = (now_us or _now_us(), env.groups_per_profile, int(env.registered or recorded))
        return await self._write(env, "add_members", number, packed, tail)

    async def remove_members(self, env: Environment, number: int, packed: bytes) -> bytes:
        """Remove profiles from a group. Returns one outcome per id, in the order given.

        REMOVED, NO_MEMBER, BEING_ERASED. Atomic for each id, not for all; repeatable. On a full
        store, too: dynamic groups that take somebody in then follow when there is room.
        """
        return await self._write(env, "remove_members", number, packed, (_now_us(),))

    async def replace_members(
        self,
        env: Environment,
        number: int,
        packed: bytes,
        *,
        recorded: bool = False,
        now_us: int | None = None,
    ) -> tuple[bytes, bytes]:
        """Make the members of a group exactly these. Returns outcomes, and who was removed.

        One outcome per id, in the order given, as of `add_members`: ALREADY stayed. Then the packed
        ids of those removed. A group of more than 10,000 members: Conflict, and nothing changed.

        Atomic for each profile, not for all: the members are read, who is missing is added, then
        who is not wanted is removed. So a failure leaves nobody out who was to stay; repeating is
        safe, and goes on from there. Who is added or removed by others meanwhile may be in or out
        at the end; of two replacements at once those whom both want are in, those whom neither
        wants are not. Who is being erased is left to that. Costs reading 500 members in a round
        trip, and adding and removing of the difference alone.
        """
        held, erasing = await self._member_ids(env, number)
        outcome = dict.fromkeys(erasing, BEING_ERASED)
        wanted: set[bytes] = set()
        for start in range(0, len(packed), 16 * TURN):
            wanted.update(ids.split(packed[start : start + 16 * TURN]))
            await asyncio.sleep(0)
        missing = list(wanted - held)
        letters = await self.add_members(
            env, number, b"".join(missing), recorded=recorded, now_us=now_us
        )
        outcome.update(zip(missing, letters, strict=True))
        added = letters.count(ADDED)
        fault("replace_members.added")
        leaving = list(held - wanted - erasing)
        try:
            letters = await self.remove_members(env, number, b"".join(leaving))
        except (NotFound, Unavailable) as ex:
            if not added:
                raise
            message = f"{ex} Before that {added:,} ids were added; repeating is safe."
            raise type(ex)(message) from ex
        outcomes = bytearray()
        for start in range(0, len(packed), 16 * TURN):
            part = ids.split(packed[start : start + 16 * TURN])
            outcomes += bytes([outcome.get(each, ALREADY) for each in part])
            await asyncio.sleep(0)
        removed = [each for each, letter in zip(leaving, letters, strict=True) if letter == REMOVED]
        return bytes(outcomes), b"".join(removed)

    async def check_replaceable(self, env: Environment, number: int) -> None:
        """Raise Conflict where a group has more members than `replace_members` takes."""
        [count] = await self.count_members(env, [number])
        if count > REPLACED:
            raise _too_many(count)

    async def _member_ids(self, env: Environment, number: int) -> tuple[set[bytes], set[bytes]]:
        """Read who is in a group of at most 10,000, and who of them is being erased."""
        script = scripts.load("list_member_ids")
        held: set[bytes] = set()
        erasing: set[bytes] = set()

        async def read(tag: bytes, bound: bytes) -> tuple[int, bytes]:
            declared = [
                keys.key(tag, "state"),
                keys.key(tag, "count"),
                keys.key(tag, "shape"),
                keys.key(tag, "erasing"),
                keys.none(tag),
            ]
            count, left, part, going = await self._connection.call(
                script, declared, [number, bound, LISTED], bulk=bool(bound)
            )
            held.update(ids.split(env.mixer.unmix(part)))
            erasing.update(ids.split(env.mixer.unmix(going)))
            return count, left

        async def go_on(tag: bytes, bound: bytes) -> None:
            while bound:
                if len(held) > REPLACED:
                    raise _too_many(len(held))
                _, bound = await read(tag, bound)

        first = await all_done(*(read(tag, b"") for tag in env.partitions))
        count = sum(each for each, _ in first)
        if count > REPLACED:
            raise _too_many(count)
        parts = zip(env.partitions, first, strict=True)
        await all_done(*(go_on(tag, left) for tag, (_, left) in parts if left))
        return held, erasing

    async def _write(
        self, env: Environment, name: str, number: int, packed: bytes, tail: tuple[int, ...]
    ) -> bytes:
        """Run one of the two writing scripts over chunks of sorted mixed ids of each partition.

        Chunks of one partition follow one another, those of several run side by side; what is more
        than one chunk goes as bulk work. A failure in one partition is raised when the others are
        through with theirs; what then has to follow from what was done is left to the worker.
        """
        script = scripts.load(name)
        order, parts = await _planned(env, packed)
        outcomes: dict[bytes, int] = {}
        unsettled: list[bytes] = []
        bulk = len(order) > CHUNK

        async def write(partition: int, buckets: dict[int, list[bytes]]) -> None:
            tag = env.partitions[partition]
            declared = [
                keys.key(tag, "state"),
                keys.key(tag, "count"),
                keys.key(tag, "shape"),
                keys.key(tag, "erasing"),
                keys.none(tag),
            ]
            async for chunk in _chunks(buckets):
                try:
                    letters = await self._connection.call(
                        script, declared, [number, *tail, b"".join(chunk)], bulk=bulk
                    )
                except (NotFound, Unavailable) as ex:
                    if not outcomes:
                        raise
                    done = f"{len(outcomes):,} of {len(order):,} ids were done before that"
                    raise type(ex)(f"{ex} {done}; repeating is safe.") from ex
                if letters.endswith(UNSETTLED):
                    letters = letters[:-1]
                    unsettled.extend(followed(chunk, letters))
                outcomes.update(zip(chunk, letters, strict=True))

        if len(parts) == 1:
            [(partition, buckets)] = parts.items()
            await write(partition, buckets)
        else:
            await all_done(*(write(partition, buckets) for partition, buckets in parts.items()))
        if unsettled:
            removes = name == "remove_members"
            with contextlib.suppress(*([Unwritable] if removes else [])):
                await self._settling.settle(env, unsettled, (keys.named_group(number),), bulk=bulk)
        return bytes(map(outcomes.__getitem__, order))

    async def check_members(self, env: Environment, numbers: list[int], packed: bytes) -> bytes:
        """Whether each profile is in the group at its place: one letter per pair.

        ``1`` member, ``0`` not, ``n`` no such group (inactive or deleted), ``E`` being erased. One
        round trip for up to 350 pairs of a partition, side by side for several.
        """
        script = scripts.load("check_members")
        mixed = env.mixer.mix(packed)
        if len(numbers) == 1:
            tag = env.home(mixed)
            return bytes(
                await self._connection.call(
                    script,
                    [keys.key(tag, "state"), keys.key(tag, "erasing"), keys.none(tag)],
                    [mixed, numbers[0]],
                )
            )
        bulk = len(numbers) > PAIRS

        async def check(tag: bytes, chunk: Sequence[int], packed_ids: bytes) -> bytes:
            declared = [keys.key(tag, "state"), keys.key(tag, "erasing"), keys.none(tag)]
            arguments: list[bytes | int] = [packed_ids, *chunk]
            return bytes(await self._connection.call(script, declared, arguments, bulk=bulk))

        if len(env.partitions) == 1:
            parts = [
                check(
                    env.partitions[0],
                    numbers[start : start + PAIRS],
                    mixed[16 * start : 16 * (start + PAIRS)],
                )
                for start in range(0, len(numbers), PAIRS)
            ]
            return b"".join(await asyncio.gather(*parts))
        places: list[list[int]] = [[] for _ in env.partitions]
        for start in range(0, len(numbers), TURN):
            if start:
                await asyncio.sleep(0)
            heads = ids.heads(mixed[16 * start : 16 * (start + TURN)])
            for place, head in enumerate(heads, start):
                places[head % len(places)].append(place)
        letters = bytearray(len(numbers))

        async def check_some(tag: bytes, chunk: list[int]) -> None:
            found = await check(
                tag,
                [numbers[place] for place in chunk],
                b"".join([mixed[16 * place : 16 * place + 16] for place in chunk]),
            )
            for place, letter in zip(chunk, found, strict=True):
                letters[place] = letter

        await asyncio.gather(
            *(
                check_some(tag, within[start : start + PAIRS])
                for tag, within in zip(env.partitions, places, strict=True)
                for start in range(0, len(within), PAIRS)
            )
        )
        return bytes(letters)

    async def get_members(
        self, env: Environment, number: int, packed: bytes, *, include_inactive: bool = False
    ) -> list[Member | None]:
        """Give the memberships of up to 100 profiles, in the order given; None: it is no member.

        One of them is being erased: Erasing. One round trip, partitions side by side.
        """
        found: dict[bytes, Member | None] = {}
        within: dict[bytes, dict[bytes, bytes]] = {}
        for id16 in ids.split(packed):
            mixed = env.mixer.mix(id16)
            within.setdefault(env.home(mixed), {})[id16] = mixed

        async def get(tag: bytes, wanted: dict[bytes, bytes]) -> None:
            flat = await self._connection.call(
                scripts.load("get_members"),
                [keys.key(tag, "state"), keys.key(tag, "erasing"), keys.none(tag)],
                [number, int(include_inactive), b"".join(wanted.values())],
            )
            for id16, joined_at, nickname, custom_id in zip(
                wanted, flat[::3], flat[1::3], flat[2::3], strict=True
            ):
                found[id16] = None
                if joined_at is not None:
                    found[id16] = member_of(id16, joined_at, nickname, custom_id)

        await asyncio.gather(*(get(tag, wanted) for tag, wanted in within.items()))
        return [found[id16] for id16 in ids.split(packed)]

    async def get_member(
        self, env: Environment, number: int, id16: bytes, *, include_inactive: bool = False
    ) -> Member | None:
        """One membership, or None where the profile is no member. One round trip."""
        [member] = await self.get_members(env, number, id16, include_inactive=include_inactive)
        return member

    async def find_members(
        self,
        env: Environment,
        number: int,
        packed: bytes,
        cut: Cut | None,
        limit: int,
        *,
        include_inactive: bool = False,
    ) -> Page[Member]:
        """Give a page of those of up to 100 profiles that are members, in the order of the list.

        One of them is being erased: Erasing. One round trip, partitions side by side.
        """
        held = await self.get_members(env, number, packed, include_inactive=include_inactive)
        found = []
        for member in held:
            if member is not None:
                mixed = env.mixer.mix(member.id)
                found.append((ids.head(mixed) % len(env.partitions), mixed, member))
        found.sort(key=_place)
        begin, end, backward = 0, limit, cut is not None and cut.backward
        if cut is not None:
            bisect = bisect_right if cut.after else bisect_left
            at = bisect(found, (cut.partition, cut.key), key=_place)
            begin, end = (max(0, at - limit), at) if backward else (at, at + limit)
        before, after = begin > 0, end < len(found)
        around = (
            Around(before, after, len(found)) if backward else Around(after, before, len(found))
        )
        rows = found[begin:end]
        return member_page([each[2] for each in rows], [_place(each) for each in rows], around, cut)

    async def count_members(self, env: Environment, numbers: list[int]) -> list[int]:
        """How many members each group has, exactly. One round trip, all partitions side by side."""
        if not numbers:
            return []
        totals = [0] * len(numbers)
        for start in range(0, len(numbers), COUNTS):
            wanted = numbers[start : start + COUNTS]
            for counts in await self._counts(env, wanted):
                for place, held in enumerate(counts):
                    if held is not None:
                        totals[start + place] += int(held)
        return totals

    async def _counts(self, env: Environment, numbers: list[int]) -> list[list[bytes | None]]:
        script = scripts.load("count_members")
        counts: list[list[bytes | None]] = await asyncio.gather(
            *(
                self._connection.call(script, [keys.key(tag, "count"), keys.none(tag)], numbers)
                for tag in env.partitions
            )
        )
        return counts

    async def list_members(
        self,
        env: Environment,
        number: int,
        cut: Cut | None,
        limit: int,
        *,
        include_inactive: bool = False,
    ) -> Page[Member]:
        """Give a page of a group's members, in the order of partition and mixed id.

        Whoever stays in the group during a walk comes exactly once, whatever is added and removed
        meanwhile. One round trip for 125 rows of one partition and the count; where the page
        reaches into further partitions they are read side by side.
        """
        walk = _Walk(cut, len(env.partitions), include_inactive=include_inactive)
        first = self._list_part(env, number, walk, walk.partition, walk.bound, limit)
        counts, (rows, more, other) = await asyncio.gather(self._counts(env, [number]), first)
        here = [int(each[0] or 0) for each in counts]
        found = [(walk.partition, row) for row in rows]
        later = [each for each in walk.after(walk.partition) if here[each]]
        while later and not more and len(found) < limit:
            wanted: list[int] = []
            expected = len(found)
            while later and expected < limit:
                wanted.append(later.pop(0))
                expected += here[wanted[-1]]
            parts = await asyncio.gather(
                *(
                    self._list_part(env, number, walk, partition, b"", limit - len(found))
                    for partition in wanted
                )
            )
            for partition, (rows, more_here, _) in zip(wanted, parts, strict=True):
                more = more or more_here or (len(found) >= limit and bool(rows))
                found += [(partition, row) for row in rows]
        more = more or bool(later) or len(found) > limit
        other = other or any(here[each] for each in walk.before(walk.partition))
        found = found[:limit]
        if walk.backward:
            found.reverse()
        unmixed = ids.split(env.mixer.unmix(b"".join(row[0] for _, row in found)))
        members = [
            Member(id16, _text(nickname), _text(custom_id), int(joined_at or 0))
            for id16, (_, (_, joined_at, nickname, custom_id)) in zip(unmixed, found, strict=True)
        ]
        places = [(partition, row[0]) for partition, row in found]
        return member_page(members, places, Around(more, other, sum(here)), cut)

    async def _list_part(
        self,
        env: Environment,
        number: int,
        walk: _Walk,
        partition: int,
        bound: bytes,
        limit: int,
    ) -> tuple[list[Row], bool, bool]:
        """Rows of one partition from a bound on; whether more follow, and lie on the other side."""
        tag = env.partitions[partition]
        declared = [keys.key(tag, "state"), keys.key(tag, "shape"), keys.none(tag)]
        script = scripts.load("list_members")
        backward, inactive = int(walk.backward), int(walk.include_inactive)
        rows: list[Row] = []
        other = None
        while True:
            size, sides = min(ROWS, limit - len(rows)), int(other is None)
            more, beyond, *flat = await self._connection.call(
                script, declared, [number, backward, bound, size, sides, inactive]
            )
            other = beyond if other is None else other
            rows += zip(flat[::4], flat[1::4], flat[2::4], flat[3::4], strict=True)
            if isinstance(more, bytes):
                # So many empty segments that a row has still to be looked for.
                bound = more
            elif not more or len(rows) >= limit:
                break
            else:
                bound = b"(" + rows[-1][0]
        while isinstance(other, bytes):
            other, *_ = await self._connection.call(
                script, declared, [number, 1 - backward, other, 0, 0, inactive]
            )
        return rows, bool(more), bool(other)


class _Walk:
    """Where a page of members begins, and which partitions it may go on to."""

    __slots__ = ("backward", "bound", "include_inactive", "partition", "partitions")

    def __init__(self, cut: Cut | None, partitions: int, *, include_inactive: bool) -> None:
        self.partitions = partitions
        self.include_inactive = include_inactive
        self.backward = cut is not None and cut.backward
        if cut is None:
            self.partition, self.bound = 0, b""
        else:
            self.partition = cut.partition
            # Forward from a cut after an id, or backward from one before it, leaves the id out.
            self.bound = (b"(" if cut.after != cut.backward else b"[") + cut.key

    def after(self, partition: int) -> range:
        """Partitions that follow in reading direction."""
        if self.backward:
            return range(partition - 1, -1, -1)
        return range(partition + 1, self.partitions)

    def before(self, partition: int) -> range:
        """Partitions that lie behind, against the reading direction."""
        if self.backward:
            return range(partition + 1, self.partitions)
        return range(partition)


async def _planned(
    env: Environment, packed: bytes
) -> tuple[list[bytes], dict[int, dict[int, list[bytes]]]]:
    """Mixed ids in the order given, and without repeats by partition and first byte.

    PERF: sorting 10,000 ids at once would hold the loop up for some 3 ms; a few dozen at a time do
    not.
    """
    order: list[bytes] = []
    parts: dict[int, dict[int, list[bytes]]] = {}
    seen: set[bytes] = set()
    count = len(env.partitions)
    for start in range(0, len(packed), 16 * TURN):
        if start:
            await asyncio.sleep(0)
        mixed = ids.split(env.mixer.mix(packed[start : start + 16 * TURN]))
        order += mixed
        for each in mixed:
            if each in seen:
                continue
            seen.add(each)
            partition = ids.head(each) % count if count > 1 else 0
            buckets = parts.get(partition)
            if buckets is None:
                buckets = parts[partition] = {}
            bucket = buckets.get(each[0])
            if bucket is None:
                buckets[each[0]] = [each]
            else:
                bucket.append(each)
    return order, parts


async def _chunks(buckets: dict[int, list[bytes]]) -> AsyncIterator[list[bytes]]:
    """Give the ids of a partition in ascending order, CHUNK at a time."""
    ready: list[bytes] = []
    for first in sorted(buckets):
        ready = list(chain(ready, sorted(buckets[first])))
        while len(ready) >= CHUNK:
            yield ready[:CHUNK]
            ready = ready[CHUNK:]
    if ready:
        yield ready


def followed(mixed: Iterable[bytes], letters: bytes) -> list[bytes]:
    """Give those of some profiles from whose outcomes something may have to follow."""
    return [each for each, letter in zip(mixed, letters, strict=True) if letter in SETTLED]


def _too_many(count: int) -> Conflict:
    return Conflict(
        f"The group has {count:,} members. Up to {REPLACED:,} can be replaced; of a larger group "
        "send what changes to memberships/bulk/."
    )


def _place(found: tuple[int, bytes, Member]) -> tuple[int, bytes]:
    return found[:2]


def member_of(
    id16: bytes, joined_at: bytes, nickname: bytes | None, custom_id: bytes | None
) -> Member:
    """Give a member of what the store tells of it."""
    return Member(id16, _text(nickname), _text(custom_id), int(joined_at))


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode()


def _now_us() -> int:
    return time.time_ns() // 1000
