"""Whose batches are: which profile each of a bulk means, which are new, what identities they get.

Works from what was found in the store, as if the batches were done one after another; what is done
with it is the matter of `store_ingest`. Pure, but for others that it lets run in between.
"""

from __future__ import annotations

import asyncio
from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec

from service import ids, keys
from service.batches import CUSTOMER_ID, MPID, Change, Identity
from service.errors import Erasing, Unavailable
from service.store_profiles import SHOWN

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from service.batches import UserUpdate
    from service.environment import Environment
    from service.grouping import Rules

TURN = 25
"""Batches that the event loop prepares between two awaits."""

WRITTEN, DUPLICATE, TOO_MANY, TOO_LARGE = b"+=LS"
"""What became of a batch. The last two changed nothing: its profile would have too much."""
FINAL = frozenset(b"+=LS")
_BEING_ERASED, _NO_MPID = b"EM"


class Ingested(msgspec.Struct):
    """What became of batches: a letter for each, in their order.

    `dirty` are the mixed ids of those profiles whose contributions have yet to follow from their
    facts; `unsettled` of the others whose dynamic groups have.
    `dropped` counts attributes that were passed over, since members inherit them.
    """

    letters: bytearray
    dirty: list[bytes]
    dropped: int = 0
    unsettled: list[bytes] = []


class Step(msgspec.Struct, kw_only=True):
    """What one batch comes to: a profile, what it gets, and what became of it (0: nothing yet)."""

    index: int
    mixed: bytes
    partition: int
    is_new: bool
    here: list[bytes | str | int]
    """Identities of the profile's slot as the script takes them: four values each."""
    elsewhere: list[Identity]
    changes: tuple[Change, ...]
    custom_id: str = ""
    """The profile is meant only if it has no other one."""
    letter: int = 0
    dirty: bool = False
    unsettled: bool = False
    dropped: int = 0

    def mark(self) -> Step:
        """Give the step that does nothing but remember the request of this one."""
        return Step(
            index=self.index,
            mixed=self.mixed,
            partition=self.partition,
            is_new=False,
            here=[],
            elsewhere=[],
            changes=(),
        )


class Work:
    """A call of `write_batches`: what is left, and what was found in the store for it."""

    def __init__(
        self, env: Environment, updates: Sequence[UserUpdate], credential: str, now_us: int
    ) -> None:
        """Take the batches, who sends them, and when they were received."""
        self.env = env
        self.updates = updates
        self.now_us = now_us
        self.left = list(range(len(updates)))
        self.done = Ingested(bytearray(len(updates)), [])
        self.placed: dict[Identity, tuple[int, int]] = {}
        self.owners: dict[Identity, bytes] = {}
        self.reservations: dict[Identity, bytes] = {}
        self.custom_ids: dict[bytes, str | None] = {}
        self.drawn_mpids: dict[bytes, tuple[int, int]] = {}
        """Profiles that turned out to have no mpid -> the one that they get, and its bucket."""
        self._credential = credential.encode()
        self._dirty: dict[bytes, None] = {}
        self._unsettled: dict[bytes, None] = {}
        self._last = 0

    def named(self, index: int) -> tuple[Identity, ...]:
        """Give what names the user of a batch, in the order in which it counts."""
        update = self.updates[index]
        if update.mpid is None:
            return update.identities
        return (Identity(MPID, str(update.mpid)), *update.identities)

    def forget(self) -> None:
        """Forget what was found: it is looked for again."""
        self.owners.clear()
        self.reservations.clear()
        self.custom_ids.clear()

    async def places(self) -> dict[int, list[Identity]]:
        """Give the identities of all batches that are left, by the partition they live in."""
        count = len(self.env.partitions)
        place = self.env.mixer.place_identity
        found: dict[int, dict[Identity, None]] = {}
        for turn, index in enumerate(self.left, 1):
            for each in self.named(index):
                where = self.placed.get(each)
                if where is None:
                    where = self.placed[each] = place(*each, count)
                found.setdefault(where[0], {})[each] = None
            if turn % TURN == 0:
                await asyncio.sleep(0)
        return {partition: list(within) for partition, within in found.items()}

    def contested(self) -> set[bytes]:
        """Give the profiles whose custom id decides whether they are meant.

        Those that some identity of a batch resolves to, where its customer id resolves to nobody.
        """
        return {
            owner
            for index in self.left
            if (named := self.named(index))
            and any(each.kind == CUSTOMER_ID and each not in self.owners for each in named)
            for each in named
            if (owner := self.owners.get(each)) is not None
        }

    def describe(self, step: Step, rules: Rules, to: list[bytes | str | int]) -> None:
        """Write a step as the script takes it, without what the rules reserve."""
        request_id = self.updates[step.index].request_id
        digest = b""
        if request_id is not None:
            named = b"%d:%b%b" % (len(self._credential), self._credential, request_id.encode())
            digest = blake2b(named, digest_size=ids.SIZE).digest()
        changes: list[bytes | str | int] = []
        reserves, now_us = rules.reserves, self.now_us
        step.dropped = 0
        for name, value, time_us in step.changes:
            if value is not None and reserves(name):
                # To delete it is fine: it may be from before the definition was.
                step.dropped += 1
                continue
            at: str | int = "" if time_us is None or time_us >= now_us else time_us
            changes += (name, at, b"" if value is None else value)
        to += (
            step.mixed,
            "new" if step.is_new else "known",
            step.custom_id,
            digest,
            0 if step.elsewhere else 1,
            len(step.here) // 4,
            len(changes) // 3,
        )
        to += step.here
        to += changes

    def finish(self, steps: Iterable[Step]) -> None:
        """Take note of what became of steps; those that are done are left no more."""
        for step in steps:
            if step.letter == _NO_MPID:
                count = len(self.env.partitions)
                drawn = self.env.mixer.draw_mpid(step.partition, count)
                self.drawn_mpids.setdefault(step.mixed, drawn)
            if step.letter not in FINAL:
                self._last = step.letter or self._last
                continue
            self.done.letters[step.index] = step.letter
            if step.letter == WRITTEN:
                self.done.dropped += step.dropped
            if step.dirty:
                self._dirty[step.mixed] = None
            if step.unsettled:
                self._unsettled[step.mixed] = None
        self.left = [index for index in self.left if not self.done.letters[index]]
        self.done.dirty = list(self._dirty)
        self.done.unsettled = [each for each in self._unsettled if each not in self._dirty]

    def failure(self) -> Unavailable:
        """Say why nothing goes on."""
        if self._last == _BEING_ERASED:
            return Erasing("A user that the request names is being erased: try again.")
        return Unavailable("A user is being changed by too many others at once.")


class _Cut(Exception):
    """A batch depends on what one before it will have done, or not: it is planned after that."""


class Plan:
    """Which profile each batch means, and what it gets, as if they were done one after another.

    Sure is only that a profile that is new will be there. Where a batch depends on what else one
    before it brings, the plan ends before it.
    """

    def __init__(self, work: Work) -> None:
        """Take what is left, and what was found for it."""
        self.steps: list[Step] = []
        self.reserved: set[Identity] = set()
        """Identities that profiles are to get, and that are reserved: they are settled first."""
        self._work = work
        self._count = len(work.env.partitions)
        self._made: dict[Identity, bytes] = {}
        self._brought: dict[Identity, bytes] = {}
        self._custom_ids = dict(work.custom_ids)
        self._brought_custom_ids: dict[bytes, str] = {}
        self._pools: dict[int, list[bytes]] = {}

    async def make(self) -> None:
        """Make the plan, and let others run in between."""
        for turn, index in enumerate(self._work.left, 1):
            try:
                self.steps.append(self._step(index))
            except _Cut:
                return
            if turn % TURN == 0:
                await asyncio.sleep(0)

    def _step(self, index: int) -> Step:
        named = self._work.named(index)
        customer_id = next((each.value for each in named if each.kind == CUSTOMER_ID), None)
        mixed = self._meant(named, customer_id)
        gets = [each for each in named if self._owner(each) is None]
        for each in gets:
            if self._brought.get(each, mixed) != mixed:
                raise _Cut
        if mixed is None:
            return self._new(index, gets, customer_id)
        partition = ids.head(mixed) % self._count
        if customer_id is not None and self._another(mixed, customer_id):
            # The one of the batch is nobody's, and stays so.
            gets = [each for each in gets if each.kind != CUSTOMER_ID]
        here, elsewhere = self._split(gets, partition)
        custom_id = ""
        for each in gets:
            self._brought[each] = mixed
            if each.kind == CUSTOMER_ID:
                self._brought_custom_ids[mixed] = each.value
                if named[0].kind != MPID:
                    custom_id = each.value
        lacking = self._work.drawn_mpids.get(mixed)
        if lacking is not None:
            here += _mpid(*lacking)
        return Step(
            index=index,
            mixed=mixed,
            partition=partition,
            is_new=False,
            here=here,
            elsewhere=elsewhere,
            changes=self._work.updates[index].changes,
            custom_id=custom_id,
        )

    def _new(self, index: int, gets: list[Identity], customer_id: str | None) -> Step:
        """Plan a new profile, in the slot of the first identity that it gets."""
        work = self._work
        partition = work.placed[gets[0]][0]
        mixed = self._draw(partition)
        here, elsewhere = self._split(gets, partition)
        for each in gets:
            (self._brought if each in elsewhere else self._made)[each] = mixed
        if customer_id is not None:
            if any(each.kind == CUSTOMER_ID for each in elsewhere):
                self._brought_custom_ids[mixed] = customer_id
            else:
                self._custom_ids[mixed] = customer_id
        if gets[0].kind != MPID:
            here += _mpid(*work.env.mixer.draw_mpid(partition, self._count))
        return Step(
            index=index,
            mixed=mixed,
            partition=partition,
            is_new=True,
            here=here,
            elsewhere=elsewhere,
            changes=work.updates[index].changes,
        )

    def _owner(self, identity: Identity) -> bytes | None:
        return self._made.get(identity) or self._work.owners.get(identity)

    def _meant(self, named: Sequence[Identity], customer_id: str | None) -> bytes | None:
        """Give the profile that is meant; None: a new one."""
        for each in named:
            owner = self._owner(each)
            if owner is None:
                if each.kind == MPID:
                    return None
            elif (
                each.kind in {MPID, CUSTOMER_ID}
                or customer_id is None
                or not self._another(owner, customer_id)
            ):
                return owner
        return None

    def _another(self, mixed: bytes, customer_id: str) -> bool:
        """Tell whether a profile has another customer id."""
        if self._brought_custom_ids.get(mixed, customer_id) != customer_id:
            raise _Cut
        return self._custom_ids.get(mixed) not in {None, customer_id}

    def _split(
        self, gets: Iterable[Identity], partition: int
    ) -> tuple[list[bytes | str | int], list[Identity]]:
        """Part the identities that a profile gets: those of its slot, and those of others."""
        here: list[bytes | str | int] = []
        elsewhere = []
        for each in gets:
            where, bucket = self._work.placed[each]
            if where != partition:
                elsewhere.append(each)
                continue
            if each in self._work.reservations:
                self.reserved.add(each)
            shown = SHOWN.get(each.kind, "")
            here += (bucket, keys.identity_field(*each), shown, each.value)
        return here, elsewhere

    def _draw(self, partition: int) -> bytes:
        """Give a new mixed id of a partition."""
        pool = self._pools.setdefault(partition, [])
        if not pool:
            wanted = len(self._work.left) // self._count + 1
            pool += self._work.env.mixer.draw(partition, self._count, wanted)
        return pool.pop()


def _mpid(mpid: int, bucket: int) -> tuple[int, bytes, str, str]:
    """Give an mpid that was drawn as the script takes an identity."""
    text = str(mpid)
    return bucket, keys.identity_field(MPID, text), MPID, text
