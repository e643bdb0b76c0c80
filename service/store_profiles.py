"""Profiles in the store: what resolves to them, and how they are erased.

An identity lives in the slot that its keyed hash says, its profile in the slot of its own id. A
profile that we create for an identity gets an id of the same slot, so both are written by one
script. A further identity may live elsewhere: it is *reserved* there, then *confirmed* in the
profile, then *settled*; a reservation whose owner did not confirm can be taken over, after a fence
in the owner's slot made a late confirmation impossible. Every step can be repeated, and the worker
finishes what a dead process left.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec

from service import ids, keys, scripts
from service.errors import Conflict, Invalid, NotFound, Stale, Unavailable
from service.faults import fault
from service.store_members import UNSETTLED
from service.store_settling import HOUR_US, TURNOVER_SECONDS

if TYPE_CHECKING:
    from service.connection import Connection
    from service.environment import Environment
    from service.store_derivation import DerivationStore
    from service.store_settling import SettlingStore

CHUNK = 40
"""Identities that one script creates, memberships that one step erases: 1.5 ms of server time."""
FIND = 350
"""Identities that one script looks up: 1.5 ms."""
FENCE_SECONDS = 86_400
"""How long a given-up attempt stays impossible: far longer than any request lives."""
TRIES = 20
MARKED = 10_000
"""Profiles of which it is remembered since when they are being erased."""
SHOWN = {"customer_id": "custom_id", "mpid": "mpid"}
"""Identity types that the profile's record shows, of which it has one, and in which field."""
_KNOWN = (keys.named_group(0),)
"""What changes of a profile that becomes known."""


class Erased(msgspec.Struct):
    """What erasing a profile removed. `instances` are those that it contributed to."""

    memberships: int = 0
    attributes: int = 0
    identities: int = 0
    instances: int = 0


class ProfileStore:
    """Profiles of an environment. Every method may raise Unavailable."""

    def __init__(
        self, connection: Connection, derivation: DerivationStore, settling: SettlingStore
    ) -> None:
        """Take the open connection, and the stores of what follows.

        One ends what erased profiles contributed, one has dynamic groups take in new profiles.
        """
        self._connection = connection
        self._derivation = derivation
        self._settling = settling
        self._marked: dict[tuple[bytes, bytes], float] = {}

    async def resolve_identities(
        self, env: Environment, kind: str, values: list[str], *, create: bool
    ) -> list[bytes | None]:
        """Give the 16-byte profile ids of identities, in the order given; None where there is none.

        With `create` a new profile is made for each that has none, and in the dynamic groups that
        follow; Invalid where one can be no identity of its type. One round trip for each 350
        of a partition, and one for each 40 that are created; partitions side by side.
        """
        wanted = list(dict.fromkeys(values))
        if not wanted:
            return []
        if create:
            _check(kind, wanted)
        places: dict[int, list[tuple[str, int]]] = {}
        for position, value in enumerate(wanted):
            if position and position % CHUNK == 0:
                await asyncio.sleep(0)
            partition, bucket = env.mixer.place_identity(kind, value, len(env.partitions))
            places.setdefault(partition, []).append((value, bucket))
        found: dict[str, bytes | None] = {}
        unsettled: list[bytes] = []

        async def run(partition: int, within: list[tuple[str, int]]) -> None:
            bulk = len(wanted) > FIND
            for start in range(0, len(within), FIND):
                part = within[start : start + FIND]
                mixed = await self._find(env, partition, kind, part, bulk)
                found.update(zip((value for value, _ in part), mixed, strict=True))
            missing = [each for each in within if found[each[0]] is None] if create else []
            for start in range(0, len(missing), CHUNK):
                part = missing[start : start + CHUNK]
                made, follow = await self._create(
                    env, partition, kind, part, bulk or len(missing) > CHUNK
                )
                if follow:
                    unsettled.extend(made)
                found.update(zip((value for value, _ in part), made, strict=True))

        await asyncio.gather(*(run(partition, within) for partition, within in places.items()))
        if unsettled:
            await self._settling.settle(env, unsettled, _KNOWN, bulk=len(wanted) > FIND)
        unmix = env.mixer.unmix
        return [None if (each := found[value]) is None else unmix(each) for value in values]

    async def _find(
        self,
        env: Environment,
        partition: int,
        kind: str,
        wanted: list[tuple[str, int]],
        bulk: bool,
    ) -> list[bytes | None]:
        tag = env.partitions[partition]
        found: list[bytes | None] = await self._connection.call(
            scripts.load("find_identities"),
            [keys.key(tag, "count"), keys.none(tag)],
            [
                part
                for value, bucket in wanted
                for part in (bucket, keys.identity_field(kind, value))
            ],
            bulk=bulk,
        )
        return found

    async def _create(
        self,
        env: Environment,
        partition: int,
        kind: str,
        wanted: list[tuple[str, int]],
        bulk: bool,
    ) -> tuple[list[bytes], bool]:
        """Give mixed ids, and whether dynamic groups have yet to follow from new profiles."""
        tag = env.partitions[partition]
        follow = False
        for _ in range(TRIES):
            arguments: list[bytes | str | int] = [SHOWN.get(kind, ""), _now_us()]
            drawn = env.mixer.draw(partition, len(env.partitions), len(wanted))
            for (value, bucket), candidate in zip(wanted, drawn, strict=True):
                arguments += [bucket, keys.identity_field(kind, value), value, candidate]
            found: list[bytes] = await self._connection.call(
                scripts.load("create_identities"),
                [keys.key(tag, "count"), keys.key(tag, "shape"), keys.none(tag)],
                arguments,
                bulk=bulk,
            )
            if found[-1] == UNSETTLED:
                found.pop()
                follow = True
            held = [
                (value, bucket, each)
                for (value, bucket), each in zip(wanted, found, strict=True)
                if len(each) != ids.SIZE
            ]
            if not held:
                return found, follow
            for value, bucket, reservation in held:
                await self.settle_other(
                    env, partition, bucket, keys.identity_field(kind, value), reservation
                )
        message = "an identity is being changed by too many others at once"
        raise Unavailable(message)

    async def add_identity(
        self, env: Environment, id16: bytes, kind: str, value: str, *, known: bool = False
    ) -> None:
        """Make one more identity resolve to a profile, which may be new.

        An identity that another profile owns is never stolen: Conflict, and nothing changed. So is
        a second custom id or mpid. A profile being erased: Erasing; one of which nothing is known,
        where it has to be `known`: NotFound; an mpid that is no number of 64 bits: Invalid. Three
        round trips. Contributions are in the order of mpids: whoever gets one may be behind.
        """
        _check(kind, [value])
        mixed = env.mixer.mix(id16)
        if await self._add(env, mixed, kind, value, known=known):
            await self._settling.settle(env, [mixed], _KNOWN)

    async def _add(
        self, env: Environment, mixed: bytes, kind: str, value: str, *, known: bool
    ) -> bool:
        """Do it, and say whether dynamic groups have yet to follow."""
        q, bucket = env.mixer.place_identity(kind, value, len(env.partitions))
        field = keys.identity_field(kind, value)
        expected = b""
        given_up = 0
        follow = False
        for _ in range(TRIES):
            attempt = max(_now_us(), given_up + 1)
            held = await self._reserve(env, q, bucket, field, mixed, attempt, expected)
            fault("add_identity.reserved")
            ours = held[: ids.SIZE] == mixed
            if not reserved(held):
                if ours:
                    return follow
                message = f"{kind} '{value}' belongs to another profile"
                raise Conflict(message)
            if not ours:
                since = await self._fence(env, held, field)
                if since is not None:
                    await self._settle(env, q, bucket, field, held, held[: ids.SIZE] + since)
                expected = held if since is None else b""
                continue
            attempt = int(held[ids.SIZE + 1 :])
            try:
                since, more = await self._confirm(
                    env, mixed, field, attempt, kind, value, int(known)
                )
            except Stale as error:
                # By a clock that is ahead of ours, perhaps, or was: the next attempt comes after.
                given_up = int(str(error))
                expected = held
                continue
            except (Conflict, NotFound, Unavailable):
                # Refused before anything was written; only a reply that was lost may be confirmed.
                if await self._fence(env, held, field) is None:
                    await self._settle(env, q, bucket, field, held, b"")
                raise
            fault("add_identity.confirmed")
            follow = follow or more
            settled = await self._settle(env, q, bucket, field, held, mixed + since)
            fault("add_identity.settled")
            if settled:
                return follow
        message = "the identity is being changed by too many others at once"
        raise Unavailable(message)

    async def _reserve(
        self,
        env: Environment,
        partition: int,
        bucket: int,
        field: bytes,
        mixed: bytes,
        attempt: int,
        expected: bytes,
    ) -> bytes:
        tag = env.partitions[partition]
        held: bytes = await self._connection.call(
            scripts.load("reserve_identity"),
            [keys.identity_bucket(tag, bucket), keys.key(tag, "reserved"), keys.none(tag)],
            [bucket, field, mixed, attempt, expected],
        )
        return held

    async def _confirm(
        self,
        env: Environment,
        mixed: bytes,
        field: bytes,
        attempt: int,
        kind: str,
        value: str,
        known: int,
    ) -> tuple[bytes, bool]:
        """Write the identity into its profile; give since when it is there.

        And whether dynamic groups have yet to follow, since something is known of it now.
        """
        tag = env.home(mixed)
        since, follow = await self._connection.call(
            scripts.load("confirm_identity"),
            [
                keys.of_profile(tag, "profile", mixed),
                keys.of_profile(tag, "identities", mixed),
                keys.of_profile(tag, "fence", mixed),
                keys.key(tag, "erasing"),
                keys.none(tag),
            ],
            [mixed, field, attempt, SHOWN.get(kind, ""), value, known, _now_us()],
        )
        return since, bool(follow)

    async def _fence(self, env: Environment, reservation: bytes, field: bytes) -> bytes | None:
        """Say since when the owner of a reservation has it; None: it cannot confirm it any more."""
        mixed, attempt = reservation[: ids.SIZE], reservation[ids.SIZE + 1 :]
        tag = env.home(mixed)
        since: bytes | None = await self._connection.call(
            scripts.load("fence_identity"),
            [
                keys.of_profile(tag, "identities", mixed),
                keys.of_profile(tag, "fence", mixed),
                keys.none(tag),
            ],
            [field, attempt, FENCE_SECONDS],
        )
        return since

    async def _settle(
        self,
        env: Environment,
        partition: int,
        bucket: int,
        field: bytes,
        expected: bytes,
        settled: bytes,
    ) -> bool:
        tag = env.partitions[partition]
        replaced = await self._connection.call(
            scripts.load("settle_identity"),
            [keys.identity_bucket(tag, bucket), keys.key(tag, "reserved"), keys.none(tag)],
            [bucket, field, expected, settled],
        )
        return bool(replaced)

    async def settle_other(
        self, env: Environment, partition: int, bucket: int, field: bytes, reservation: bytes
    ) -> None:
        """Settle a reservation on behalf of whoever made it: confirmed for good, or released."""
        since = await self._fence(env, reservation, field)
        settled = b"" if since is None else reservation[: ids.SIZE] + since
        await self._settle(env, partition, bucket, field, reservation, settled)

    async def settle_reservations(self, env: Environment, before_us: int) -> int:
        """Settle reservations that a dead process left, those from before a moment. How many.

        For the worker; safe at any time, by several at once.
        """
        total = 0
        for partition, tag in enumerate(env.partitions):
            found = await self._connection.call(
                scripts.load("list_reserved"),
                [keys.key(tag, "reserved"), keys.none(tag)],
                [before_us, CHUNK],
            )
            for named, held in zip(found[::2], found[1::2], strict=True):
                bucket, _, field = named.partition(b":")
                if held is None or not reserved(held):
                    await self._settle(env, partition, int(bucket), field, b"", b"")
                else:
                    await self.settle_other(env, partition, int(bucket), field, held)
                total += 1
        return total

    async def erase_profile(self, env: Environment, id16: bytes) -> Erased:
        """Erase a profile: memberships, attributes, identities, record. Unknown: NotFound.

        What it contributed to instances ends, too, and their members have what follows without it
        when this returns (of more than 100, when the worker comes by). From the first step on the
        profile is skipped by every script; requests that name it get Erasing until this is done. In
        bounded steps; what a crash leaves the worker finishes.
        """
        mixed = env.mixer.mix(id16)
        tag = env.home(mixed)
        known = await self._connection.call(
            scripts.load("begin_erase"),
            [keys.key(tag, "erasing"), keys.of_profile(tag, "profile", mixed), keys.none(tag)],
            [mixed, _now_us()],
        )
        if not known:
            raise NotFound
        fault("erase_profile.begun")
        return await self._erase(env, tag, mixed)

    async def _erase(self, env: Environment, tag: bytes, mixed: bytes) -> Erased:
        erased = Erased()
        tries = 0
        while tries < TRIES:
            marked, memberships, attributes, instances, left, *listed = await self._connection.call(
                scripts.load("erase_step"),
                [
                    keys.key(tag, "erasing"),
                    keys.of_profile(tag, "attributes", mixed),
                    keys.of_profile(tag, "instances", mixed),
                    keys.none(tag),
                ],
                [mixed, CHUNK, _now_us() // HOUR_US, TURNOVER_SECONDS],
                bulk=True,
            )
            fault("erase_profile.stepped")
            erased.memberships += memberships
            erased.attributes += attributes
            if attributes:
                # Of several who erase it, this one took away what the instances followed from.
                erased.instances = instances
            if not marked:
                return erased
            if left:
                continue
            if instances:
                await self._derivation.derive_profiles(env, [mixed])
                tries += 1
            fault("erase_profile.derived")
            released = await asyncio.gather(
                *(
                    self._release(env, mixed, field, since)
                    for field, since in zip(listed[::2], listed[1::2], strict=True)
                )
            )
            erased.identities += sum(released)
            fault("erase_profile.released")
            finished = await self._connection.call(
                scripts.load("finish_erase"),
                [
                    keys.key(tag, "erasing"),
                    keys.of_profile(tag, "profile", mixed),
                    keys.of_profile(tag, "identities", mixed),
                    keys.of_profile(tag, "fence", mixed),
                    keys.none(tag),
                ],
                [mixed, _now_us(), FENCE_SECONDS, *listed],
            )
            fault("erase_profile.finished")
            if finished:
                return erased
        # The mark stands: the worker goes on with it.
        message = "the groups of the profile are being changed by too many others at once"
        raise Unavailable(message)

    async def _release(self, env: Environment, mixed: bytes, field: bytes, since: bytes) -> bool:
        """Take an identity away from a profile that has listed it since then."""
        kind, value = keys.parse_identity(field)
        q, bucket = env.mixer.place_identity(kind, value, len(env.partitions))
        tag = env.partitions[q]
        released = await self._connection.call(
            scripts.load("release_identity"),
            [keys.identity_bucket(tag, bucket), keys.key(tag, "reserved"), keys.none(tag)],
            [bucket, field, mixed, since],
        )
        return bool(released)

    async def finish_erasures(self, env: Environment, *, grace_seconds: float = 0.0) -> int:
        """Go on erasing every profile that is marked, and say how many there were.

        One that this store did not see marked `grace_seconds` ago is left to whoever is erasing it,
        and answers what was removed. For the worker; safe at any time, by several at once.
        """
        total = 0
        now = time.monotonic()
        for tag in env.partitions:
            marked = await self._connection.call(
                scripts.load("list_erasing"),
                [keys.key(tag, "erasing"), keys.none(tag)],
                [CHUNK],
            )
            if len(marked) < CHUNK:
                # That is all of them: whoever else was marked is erased, and may be marked anew.
                for seen in [each for each in self._marked if each[0] == tag]:
                    if seen[1] not in marked:
                        del self._marked[seen]
            for mixed in marked:
                if now - self._marked.setdefault((tag, mixed), now) >= grace_seconds:
                    await self._erase(env, tag, mixed)
                    self._marked.pop((tag, mixed), None)
                    total += 1
        while len(self._marked) > MARKED:
            del self._marked[next(iter(self._marked))]
        return total


def _check(kind: str, values: list[str]) -> None:
    """Raise Invalid where one of these is no identity of its type."""
    if kind == "mpid":
        for value in values:
            if ids.parse_mpid(f"mpid:{value}") is None:
                message = f"{value[:100]!r} is no mpid: that is a whole number of 64 bits"
                raise Invalid(message)


def reserved(held: bytes) -> bool:
    """Tell whether what a bucket holds is a reservation: ``<mixed id>r<attempt>``.

    Otherwise it is an owner: ``<mixed id><since>``.
    """
    return held[ids.SIZE : ids.SIZE + 1] == b"r"


def _now_us() -> int:
    return time.time_ns() // 1000
