"""Batches in the store: whose they are, and what they write.

A bulk is done together: one round finds whose its identities are, from which is worked out, batch
after batch, which profile each means, which profiles are new, and which identities they get. Then
one script for many batches of a partition writes identities, records and attributes; it refuses,
batch by batch, what is not as it was found, and those are looked at again. Identities that live in
another slot than their profile are added after that, as `store_profiles` does it. An identity that
another profile has is never taken from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from service import ids, keys, scripts
from service.attributes import DELETIONS, KEPT_SECONDS, MANY, MANY_BYTES
from service.errors import Conflict, Erasing, NotFound, Stale
from service.faults import fault
from service.resolution import FINAL, WRITTEN, Ingested, Plan, Step, Work
from service.store_groups import all_done
from service.store_profiles import FIND, TRIES
from service.store_records import BEHIND, UNSETTLED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from service.batches import Identity, UserUpdate
    from service.connection import Connection
    from service.environment import Environment
    from service.grouping import Rules
    from service.store_definitions import DefinitionStore
    from service.store_profiles import ProfileStore

CHUNK = 25
"""Batches that one script does: all users new, four attributes each that rules name."""
CHUNK_CHANGES = 500
"""Attributes that one script writes at most: 1.3 ms."""
REQUESTS = 1_000
"""Requests of a profile that are remembered, the latest, for `KEPT_SECONDS`."""
PAUSE_SECONDS = 0.02
"""Before a batch is tried again whose profile is being erased, or which lost against others."""
TOGETHER = 100
"""Identities in other slots that are added side by side."""
_ZERO = ord("0")


class IngestStore:
    """Users of an environment, as batches tell of them. Every method may raise Unavailable."""

    def __init__(
        self, connection: Connection, profiles: ProfileStore, definitions: DefinitionStore
    ) -> None:
        """Take the open connection, and the stores that know identities and rules."""
        self._connection = connection
        self._profiles = profiles
        self._definitions = definitions

    async def write_batches(
        self,
        env: Environment,
        updates: Sequence[UserUpdate],
        credential: str = "",
        *,
        now_us: int | None = None,
    ) -> Ingested:
        """Do batches in their order, each whole or not at all.

        Whose one is: the profile of its mpid, new where there is none; else that of the first of
        its identities that has one, unless that has another customer id; else a new one. Then
        identities of nobody become the profile's. Where two requests at once name a new user by
        different identities, each goes by what it finds: there may be two profiles in the end.

        An attribute is written if nothing later was; without a time of its own it is as of now, and
        after all that is held. What the rules reserve is passed over. A batch whose request id was
        done before for `credential` and the same profile, within 30 days and 1,000 others, changes
        nothing; nor does one after which the profile would have more than `MANY` attributes, or
        more than `MANY_BYTES` of them.

        Two round trips, and a few more where an identity lives in another slot than its profile.
        Raises Erasing where a batch names a profile that is being erased, after some waiting; what
        was done by then stays, and repeating is safe.
        """
        work = Work(env, updates, credential, now_us or _now_us())
        rules = await self._definitions.rules(env)
        losses = 0
        while work.left:
            before = len(work.left)
            try:
                await self._attempt(work, rules)
            except Stale as error:
                rules = await self._definitions.reload(env, int(str(error)))
            if len(work.left) < before:
                losses = 0
                continue
            losses += 1
            if losses == TRIES:
                raise work.failure()
            if losses > 1:
                await asyncio.sleep(PAUSE_SECONDS)
        return work.done

    async def _attempt(self, work: Work, rules: Rules) -> None:
        """Do what can be done of the batches that are left.

        :raises Stale: some are left because the rules are others by now
        """
        await self._find(work)
        plan = Plan(work)
        await plan.make()
        fault("ingest.resolved")
        if plan.reserved:
            await all_done(*(self._settle(work, each) for each in plan.reserved))
            return
        stale = None
        try:
            await self._write(work, rules, plan.steps)
        except Stale as error:
            stale = error
        fault("ingest.written")
        await self._add(work, rules, plan.steps)
        work.finish(plan.steps)
        if stale is not None:
            raise stale

    async def _find(self, work: Work) -> None:
        """Find out whose identities are, and the custom ids of profiles where these matter."""
        work.forget()
        places = await work.places()
        await all_done(
            *(
                self._find_owners(work, partition, within[start : start + FIND])
                for partition, within in places.items()
                for start in range(0, len(within), FIND)
            )
        )
        count = len(work.env.partitions)
        asked: dict[int, list[bytes]] = {}
        for mixed in work.contested():
            asked.setdefault(ids.head(mixed) % count, []).append(mixed)
        await all_done(
            *(
                self._find_custom_ids(work, partition, within[start : start + FIND])
                for partition, within in asked.items()
                for start in range(0, len(within), FIND)
            )
        )

    async def _find_owners(self, work: Work, partition: int, wanted: list[Identity]) -> None:
        tag = work.env.partitions[partition]
        arguments: list[bytes | int] = []
        for each in wanted:
            arguments += (work.placed[each][1], keys.identity_field(*each))
        found = await self._connection.call(
            scripts.load("find_owners"), [keys.key(tag, "count"), keys.none(tag)], arguments
        )
        for each, holder in zip(wanted, found, strict=True):
            if holder is None:
                continue
            if len(holder) == ids.SIZE:
                work.owners[each] = holder
            else:
                work.reservations[each] = holder

    async def _find_custom_ids(self, work: Work, partition: int, wanted: list[bytes]) -> None:
        tag = work.env.partitions[partition]
        found = await self._connection.call(
            scripts.load("find_custom_ids"), [keys.key(tag, "count"), keys.none(tag)], wanted
        )
        for mixed, custom_id in zip(wanted, found, strict=True):
            work.custom_ids[mixed] = None if custom_id is None else custom_id.decode()

    async def _settle(self, work: Work, identity: Identity) -> None:
        """Settle the reservation of an identity, so that it is somebody's or nobody's."""
        partition, bucket = work.placed[identity]
        field = keys.identity_field(*identity)
        reservation = work.reservations[identity]
        await self._profiles.settle_other(work.env, partition, bucket, field, reservation)

    async def _write(self, work: Work, rules: Rules, steps: Iterable[Step]) -> None:
        """Have steps done, and write into each what became of it; partitions side by side."""
        by_partition: dict[int, list[Step]] = {}
        for step in steps:
            by_partition.setdefault(step.partition, []).append(step)
        await all_done(
            *(
                self._write_within(work, rules, partition, within)
                for partition, within in by_partition.items()
            )
        )

    async def _write_within(
        self, work: Work, rules: Rules, partition: int, steps: list[Step]
    ) -> None:
        """Have the steps of a partition done, one script after another."""
        tag = work.env.partitions[partition]
        declared = [keys.key(tag, "erasing"), keys.key(tag, "rules"), keys.none(tag)]
        head = [work.now_us, rules.version, MANY, MANY_BYTES, DELETIONS]
        head += [work.now_us - KEPT_SECONDS * 1_000_000, REQUESTS, KEPT_SECONDS]
        bulk = len(steps) > CHUNK
        waiting: set[bytes] = set()
        at = 0
        while at < len(steps):
            chunk: list[Step] = []
            arguments: list[bytes | str | int] = [*head]
            changes = 0
            while at + len(chunk) < len(steps) and len(chunk) < CHUNK:
                step = steps[at + len(chunk)]
                changes += len(step.changes)
                if chunk and changes > CHUNK_CHANGES:
                    break
                chunk.append(step)
                work.describe(step, rules, arguments)
            letters, behind = await self._connection.call(
                scripts.load("write_batches"), declared, arguments, bulk=bulk
            )
            for step, letter, digit in zip(chunk, letters, behind, strict=False):
                step.letter = letter
                step.dirty = bool(digit - _ZERO & BEHIND)
                step.unsettled = bool(digit - _ZERO & UNSETTLED)
                if letter not in FINAL:
                    waiting.add(step.mixed)
            at += len(letters)
            if waiting:
                # What comes later for the same profile must not overtake what waits.
                steps[at:] = [step for step in steps[at:] if step.mixed not in waiting]

    async def _add(self, work: Work, rules: Rules, steps: Iterable[Step]) -> None:
        """Add identities that live in other slots to the profiles of steps that are done.

        One that somebody else was faster to take is left to them. Then the requests of these steps
        are remembered: had that been done before, one repeated after we died would add nothing.
        """
        adding = [step for step in steps if step.elsewhere and step.letter == WRITTEN]
        wanted = list(
            dict.fromkeys((step.mixed, each) for step in adding for each in step.elsewhere)
        )
        for start in range(0, len(wanted), TOGETHER):
            await all_done(
                *(
                    self._add_identity(work.env, mixed, identity)
                    for mixed, identity in wanted[start : start + TOGETHER]
                )
            )
        fault("ingest.identified")
        marks = [step.mark() for step in adding if work.updates[step.index].request_id]
        for _ in range(TRIES):
            try:
                await self._write(work, rules, marks)
            except Stale as error:
                rules = await self._definitions.reload(work.env, int(str(error)))
            else:
                return
        raise work.failure()

    async def _add_identity(self, env: Environment, mixed: bytes, identity: Identity) -> None:
        with contextlib.suppress(Conflict, NotFound, Erasing):
            await self._profiles.add_identity(env, env.mixer.unmix(mixed), *identity, known=True)


def _now_us() -> int:
    return time.time_ns() // 1000
