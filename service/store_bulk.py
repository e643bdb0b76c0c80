"""Many changes of memberships at once, of any groups and profiles, mixed as they come.

What a script does for one group, this does for many: it sorts changes by partition, group and id,
and cuts them into scripts of one size. Changes of one profile keep their order where they differ:
adds that follow one another may be done together, a removal after them is done after them. Dynamic
groups follow when all of it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import msgspec

from service import ids, keys, scripts
from service.errors import NotFound, Unwritable
from service.store_groups import all_done
from service.store_members import UNSETTLED, followed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from service.connection import Connection
    from service.environment import Environment
    from service.store_settling import SettlingStore

CHUNK = 75
"""Ids that one script changes: 1.4 ms of server time, in one group or each in one of its own."""
TURN = 500
"""Changes that the event loop prepares between two awaits."""
HINTED = 100
"""Groups that settling is told of at most; it reads what changed all the same."""
ADD, ADD_RECORDED, REMOVE = b"+", b"!", b"-"
"""Kinds of change. ADD_RECORDED takes only profiles that have a record."""
ADDED, ALREADY, OVER_LIMIT, UNKNOWN, BEING_ERASED, REMOVED, NO_MEMBER, NO_GROUP = b"+=LUE-.N"
"""Outcomes, one per change."""

_AGAIN = {ADDED: ALREADY, REMOVED: NO_MEMBER}
"""What follows from an outcome for the same change once more."""

_Step = tuple[int, bytes, int]
"""Changes that one script may do together: their wave, kind and group."""

_Chunk = list[tuple[_Step, list[bytes]]]
"""What one script does: steps, and the ids of each."""


class Changes(msgspec.Struct):
    """Changes in the order given, a column each; `letters` says what became of them, 0: nothing.

    `unsettled` are the mixed ids of profiles whose dynamic groups have yet to follow what was done.
    """

    kinds: list[bytes]
    numbers: list[int]
    packed: bytes
    letters: bytearray
    unsettled: dict[bytes, None] = {}

    @classmethod
    def of(cls, kinds: list[bytes], numbers: list[int], packed: bytes) -> Changes:
        """Take kinds, numbers of groups, and packed ids of profiles."""
        return cls(kinds, numbers, packed, bytearray(len(kinds)))


class BulkStore:
    """Changes of an environment's memberships, many at once."""

    def __init__(self, connection: Connection, settling: SettlingStore) -> None:
        """Take the open connection, and the store that makes dynamic groups follow."""
        self._connection = connection
        self._settling = settling

    async def change_members(
        self, env: Environment, changes: Changes, *, now_us: int | None = None
    ) -> None:
        """Make changes, and write what became of each into `letters`.

        ADDED, ALREADY, OVER_LIMIT (the profile is in `groups_per_profile` groups), UNKNOWN (it has
        no record, and is only taken with one: all in a registered application), REMOVED, NO_MEMBER,
        BEING_ERASED, NO_GROUP (inactive or deleted in the profile's partition).

        Changes of one profile are done in their order, but for adds, or removals, next to each
        other: those may change places where their groups differ. Atomic for each, not for all.
        Raises Unavailable; `letters` then has what was done for sure, and another call with the
        same changes does the rest. When it returns dynamic groups have followed; where all were
        removals, on a full store, those that take somebody in follow when there is room. One round
        trip for each 75 changes of a partition, one after another, and partitions side by side.
        """
        plan = await _planned(env, changes)
        tail = (now_us or time.time_ns() // 1000, env.groups_per_profile)
        try:
            await all_done(
                *(
                    self._write(env.partitions[partition], steps, plan.places, changes, tail)
                    for partition, steps in plan.parts.items()
                )
            )
        finally:
            # Also where something failed: made with the rest they would come too late.
            for place, first in plan.repeated:
                letter = changes.letters[first]
                changes.letters[place] = _AGAIN.get(letter, letter)
        if changes.unsettled:
            numbers = set(changes.numbers)
            names = map(keys.named_group, numbers) if len(numbers) <= HINTED else ()
            mixed = list(changes.unsettled)
            removes = all(kind == REMOVE for kind in changes.kinds)
            with contextlib.suppress(*([Unwritable] if removes else [])):
                await self._settling.settle(env, mixed, set(names), bulk=True)
            changes.unsettled.clear()

    async def _write(
        self,
        tag: bytes,
        steps: dict[_Step, list[bytes]],
        places: dict[tuple[int, int, bytes], int],
        changes: Changes,
        tail: tuple[int, int],
    ) -> None:
        """Make the changes of one partition, wave after wave."""
        script = scripts.load("change_members")
        declared = [keys.key(tag, each) for each in ("state", "count", "shape", "erasing")]
        declared.append(keys.none(tag))
        async for chunk in _chunks(steps):
            arguments: list[bytes | int] = [*tail]
            for (_, kind, number), mixed in chunk:
                arguments += (kind, number, b"".join(mixed))
            try:
                outcome = await self._connection.call(script, declared, arguments, bulk=True)
            except Unwritable:
                if any(kind != REMOVE for (_, kind, _), _ in chunk):
                    raise
                outcome, follow = await self._removed(declared, chunk, tail[0])
            else:
                outcome, follow = _parted(outcome)
            if follow:
                mixed = [each for _, part in chunk for each in part]
                changes.unsettled.update(dict.fromkeys(followed(mixed, outcome)))
            at = 0
            for (wave, _, number), mixed in chunk:
                for each in mixed:
                    changes.letters[places[wave, number, each]] = outcome[at]
                    at += 1

    async def _removed(
        self, declared: list[bytes], chunk: _Chunk, now_us: int
    ) -> tuple[bytes, bool]:
        """Make removals with the script that a full store runs, too."""
        outcome, follow = b"", False
        for (_, _, number), mixed in chunk:
            try:
                letters, more = _parted(
                    await self._connection.call(
                        scripts.load("remove_members"),
                        declared,
                        [number, now_us, b"".join(mixed)],
                        bulk=True,
                    )
                )
            except NotFound:
                letters, more = bytes([NO_GROUP]) * len(mixed), False
            outcome += letters
            follow = follow or more
        return outcome, follow


def _parted(outcome: bytes) -> tuple[bytes, bool]:
    """Give the letters of an answer, and whether dynamic groups have yet to follow."""
    follow = outcome.endswith(UNSETTLED)
    return (outcome[:-1] if follow else outcome), follow


class _Plan(msgspec.Struct):
    """What is to be sent, by partition and step, in order; and where its outcomes belong.

    `repeated` are changes that are made already by one before them, whose place stands beside.
    """

    parts: dict[int, dict[_Step, list[bytes]]]
    places: dict[tuple[int, int, bytes], int]
    repeated: list[tuple[int, int]]


async def _planned(env: Environment, changes: Changes) -> _Plan:
    """Sort what is not done yet.

    A profile's changes of one kind are a wave of it, and every change of kind begins the next. So
    the waves of a partition, one after another, keep the order of each profile.
    """
    plan = _Plan({}, {}, [])
    count = len(env.partitions)
    plain_add = ADD_RECORDED if env.registered else ADD
    places, repeated = plan.places, plan.repeated
    waves: dict[bytes, tuple[int, bytes]] = {}
    for start in range(0, len(changes.kinds), TURN):
        if start:
            await asyncio.sleep(0)
        mixed = ids.split(env.mixer.mix(bytes(changes.packed[16 * start : 16 * (start + TURN)])))
        columns = zip(
            mixed,
            changes.kinds[start : start + TURN],
            changes.numbers[start : start + TURN],
            changes.letters[start : start + TURN],
            strict=True,
        )
        for place, (each, kind, number, letter) in enumerate(columns, start):
            if letter:
                continue
            made = plain_add if kind == ADD else kind
            wave, last = waves.get(each, (0, made))
            if last != made:
                wave += 1
            waves[each] = (wave, made)
            first = places.setdefault((wave, number, each), place)
            if first != place:
                repeated.append((place, first))
                continue
            steps = plan.parts.setdefault(ids.head(each) % count if count > 1 else 0, {})
            steps.setdefault((wave, made, number), []).append(each)
    return plan


async def _chunks(
    steps: dict[_Step, list[bytes]],
) -> AsyncIterator[_Chunk]:
    """Give the steps of a partition in their order, cut and bundled to CHUNK ids, ascending."""
    ready: _Chunk = []
    room = CHUNK
    for step in sorted(steps, key=_wave):
        async for part in _ascending(steps[step]):
            taken = 0
            while taken < len(part):
                piece = part[taken : taken + room]
                taken += len(piece)
                room -= len(piece)
                ready.append((step, piece))
                if not room:
                    yield ready
                    ready, room = [], CHUNK
    if ready:
        yield ready


def _wave(step: _Step) -> int:
    return step[0]


async def _ascending(mixed: list[bytes]) -> AsyncIterator[list[bytes]]:
    """Sort ids, in parts of which none holds the loop up.

    PERF: sorting 10,000 ids at once would take some 3 ms; a few dozen at a time do not.
    """
    if len(mixed) <= TURN:
        yield sorted(mixed)
        return
    buckets: dict[int, list[bytes]] = {}
    for start in range(0, len(mixed), TURN):
        if start:
            await asyncio.sleep(0)
        for each in mixed[start : start + TURN]:
            buckets.setdefault(each[0], []).append(each)
    for first in sorted(buckets):
        yield sorted(buckets[first])
