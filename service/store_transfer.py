"""Whole applications in the store, read and written in bulk: what export and import stand on.

Reading walks group 0, every profile about which there is any fact, in the order of partition and
mixed id; writing brings records, attributes and memberships in with the times they had. Every
script is of a bounded size and goes as bulk work, and everything that writes can be repeated.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from service import ids, keys, scripts
from service.attributes import canonical_name
from service.errors import Conflict, Erasing, Invalid
from service.groups import DYNAMIC_TYPE
from service.store_environments import EnvironmentStore
from service.store_groups import all_done
from service.store_members import UNSETTLED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from service.connection import Connection
    from service.environment import Environment
    from service.groups import Group, NewGroup
    from service.store_groups import GroupStore
    from service.store_profiles import ProfileStore
    from service.store_settling import SettlingStore

    Piece = tuple[int, list[bytes | str | int]]

PROFILES = 100
"""Profiles that one script exports."""
FIELDS = 300
"""Memberships, attributes and identities that one script exports: 1 ms with their profiles."""
NUMBERS = 500
"""Groups whose numbers one script finds or probes."""
CHUNK = 60
"""Memberships, or profiles and attributes together, that one script imports: 1.0 to 1.5 ms."""
AT_ONCE = 32
"""Groups that are created, and identities that are added, side by side."""
GROUPS_PER_PROFILE = 10_000
"""What no profile may exceed, whatever its application is set to: listings read them all."""
ADDED, ALREADY, OVER_LIMIT, BEING_ERASED, DELETED = b"+=LED"
"""Outcomes of bringing in, one per profile or membership."""
_MEMBERSHIPS, _ATTRIBUTES, _IDENTITIES = "m", "attributes", "identities"


class Known(msgspec.Struct):
    """All that is known of a profile. Field by field as it is stored; `id` is its 16 bytes."""

    id: bytes
    record: dict[bytes, bytes]
    attributes: dict[bytes, bytes]
    identities: list[bytes]
    memberships: dict[int, int]
    """Number of a static group -> joined at, in microseconds."""


class Arriving(msgspec.Struct):
    """A profile to bring in: its 16 bytes, the record's fields, its attributes.

    What a record shows of identities is none of its fields here: it comes with them. An attribute
    is its name, time, since and JSON value; since and value are empty where it was deleted.
    """

    id: bytes
    record: list[tuple[str, str | int]]
    attributes: list[tuple[str, int, int | bytes, bytes]]


class Refused(msgspec.Struct, frozen=True):
    """Why a group was not created. `is_taken`: by what there is, else by what it says itself."""

    sentence: str
    is_taken: bool


class TransferStore:
    """Reads and writes environments in bulk. Every method may raise Unavailable."""

    def __init__(
        self,
        connection: Connection,
        groups: GroupStore,
        profiles: ProfileStore,
        settling: SettlingStore,
    ) -> None:
        """Take the open connection, the stores of what is brought in one by one, and of the rest.

        The last one makes dynamic groups follow what is brought in.
        """
        self._connection = connection
        self._groups = groups
        self._profiles = profiles
        self._settling = settling
        self._environments = EnvironmentStore(connection)

    async def is_empty(self, env: Environment) -> bool:
        """Whether there is no group, no profile, and nothing on its way in or out."""
        return await self._environments.is_empty(env)

    async def count_profiles(self, env: Environment) -> int:
        """How many profiles there are, of which there is any fact."""
        counts = await all_done(
            *(
                self._connection.call(
                    scripts.load("count_members"), [keys.key(tag, "count"), keys.none(tag)], [0]
                )
                for tag in env.partitions
            )
        )
        return sum(int(held or 0) for [held] in counts)

    async def export_profiles(
        self, env: Environment, partition: int, bound: bytes
    ) -> tuple[bytes, list[Known]]:
        """Give profiles of a partition from a bound on, and the bound to go on at; empty: the end.

        In the order of mixed ids, so who is there from the first step to the last comes exactly
        once. Profiles being erased are left out. One round trip; a profile with more than 300
        memberships, attributes and identities takes more, and is as it was while they ran.
        """
        tag = env.partitions[partition]
        next_bound, *rows = await self._connection.call(
            scripts.load("export_profiles"),
            [keys.key(tag, "shape"), keys.key(tag, "erasing"), keys.none(tag)],
            [bound, PROFILES, FIELDS],
            bulk=True,
        )
        known = []
        unmixed = ids.split(env.mixer.unmix(b"".join(row[0] for row in rows)))
        for id16, (mixed, record, *rest) in zip(unmixed, rows, strict=True):
            if rest:
                attributes, identities, memberships = map(_pairs, rest)
            else:
                try:
                    attributes, identities, memberships = [
                        await self._walk(tag, kind, mixed)
                        for kind in (_ATTRIBUTES, _IDENTITIES, _MEMBERSHIPS)
                    ]
                except Erasing:
                    continue
            memberships.pop(b"d", None)
            known.append(
                Known(
                    id16,
                    _pairs(record),
                    attributes,
                    list(identities),
                    {int(number): int(joined_at) for number, joined_at in memberships.items()},
                )
            )
        return next_bound, known

    async def _walk(self, tag: bytes, kind: str, mixed: bytes) -> dict[bytes, bytes]:
        """Read a large hash of a profile in bounded steps. Erasing: it goes away meanwhile."""
        found: dict[bytes, bytes] = {}
        cursor: bytes = b"0"
        while True:
            cursor, *flat = await self._connection.call(
                scripts.load("export_fields"),
                [keys.key(tag, "erasing"), keys.none(tag)],
                [mixed, kind, cursor],
                bulk=True,
            )
            for field, value in _pairs(flat).items():
                # A field may come twice; then what it was the first time stays.
                found.setdefault(field, value)
            if cursor == b"0":
                return found

    async def find_numbers(self, env: Environment, packed: bytes) -> list[int | None]:
        """Give the numbers of groups by their ids, in the order given; None where none is."""
        found: list[int | None] = []
        for start in range(0, len(packed), NUMBERS * ids.SIZE):
            numbers = await self._connection.call(
                scripts.load("find_numbers"),
                [keys.key(env.directory, "group_ids"), keys.none(env.directory)],
                [packed[start : start + NUMBERS * ids.SIZE]],
                bulk=True,
            )
            found += [None if number is None else int(number) for number in numbers]
        return found

    async def find_dynamic(self, env: Environment, numbers: list[int]) -> set[int]:
        """Pick the numbers of dynamic groups. What a group is never changes."""
        found: set[int] = set()
        indexes = [
            keys.type_index(env.directory, DYNAMIC_TYPE, active=active) for active in (True, False)
        ]
        for start in range(0, len(numbers), NUMBERS):
            part = numbers[start : start + NUMBERS]
            letters = await self._connection.call(
                scripts.load("find_dynamic"), [*indexes, keys.none(env.directory)], part, bulk=True
            )
            found.update(
                number for number, letter in zip(part, letters, strict=True) if letter == ord("1")
            )
        return found

    async def import_groups(self, env: Environment, new: list[NewGroup]) -> list[Group | Refused]:
        """Create groups with numbers in the order given; or say why one was not.

        Its id or custom id is in use, or there is no room for a dynamic group; or its rule tree
        names what it cannot. Then nothing was changed. Three round trips for 32 static groups, and
        one for each that is created inactive; a dynamic one takes about six, and is created when
        all before it are: its tree may name them.
        """
        made: list[Group | Refused] = []
        for part in _together(new):
            numbers = await self._reserve_numbers(env, len(part))
            made += await all_done(
                *(
                    self._create(env, each, number)
                    for each, number in zip(part, numbers, strict=True)
                )
            )
        return made

    async def _create(self, env: Environment, new: NewGroup, number: int) -> Group | Refused:
        try:
            return await self._groups.create_group(env, new, number=number)
        except (Conflict, Invalid) as error:
            return Refused(str(error), isinstance(error, Conflict))

    async def _reserve_numbers(self, env: Environment, count: int) -> list[int]:
        """Reserve group numbers, ascending, that no partition knows anything of."""
        counter = keys.key(env.directory, "numbers")
        free: list[int] = []
        while len(free) < count:
            wanted = count - len(free)
            last = int(await self._connection.command(counter, "INCRBY", counter, wanted))
            numbers = range(last - wanted + 1, last + 1)
            used = await all_done(
                *(
                    self._connection.call(
                        scripts.load("probe_numbers"),
                        [
                            *(keys.key(tag, kind) for kind in ("state", "count", "dynamic")),
                            keys.none(tag),
                        ],
                        list(numbers),
                    )
                    for tag in env.partitions
                )
            )
            free += [
                number
                for at, number in enumerate(numbers)
                if all(letters[at] == ord("0") for letters in used)
            ]
        return free

    async def import_profiles(self, env: Environment, profiles: list[Arriving]) -> bytes:
        """Bring in records and attributes. Returns one outcome per profile, in the order given.

        ADDED, ALREADY, BEING_ERASED. Of a record that is there only what is missing is filled in;
        an attribute is written, under its canonical name, where its time is later than the one
        here. Whoever is behind then is noted so: `derive_profiles`, or the worker, sees to it.
        Dynamic groups have followed when it returns. Atomic for each profile, but for one of more
        than 60 attributes, which takes several scripts.
        """
        outcomes = bytearray(ALREADY for _ in profiles)
        mixed = ids.split(env.mixer.mix(b"".join(each.id for each in profiles)))
        parts: dict[bytes, list[Piece]] = {}
        for at, each in enumerate(profiles):
            pieces = parts.setdefault(env.home(mixed[at]), [])
            pieces += ((at, piece) for piece in _pieces(mixed[at], each))
        now_us = time.time_ns() // 1000
        unsettled: dict[bytes, None] = {}

        async def run(tag: bytes, pieces: list[Piece]) -> None:
            for part in _batches(pieces):
                letters = await self._connection.call(
                    scripts.load("import_profiles"),
                    [keys.key(tag, "erasing"), keys.none(tag)],
                    [now_us, *(argument for _, piece in part for argument in piece)],
                    bulk=True,
                )
                if letters.endswith(UNSETTLED):
                    letters = letters[:-1]
                    unsettled.update((mixed[at], None) for at, _ in part)
                for (at, _), letter in zip(part, letters, strict=True):
                    if letter != ALREADY:
                        outcomes[at] = letter

        await all_done(*(run(tag, pieces) for tag, pieces in parts.items()))
        if unsettled:
            await self._settling.settle(env, list(unsettled), bulk=True)
        return bytes(outcomes)

    async def import_identities(
        self, env: Environment, wanted: list[tuple[bytes, str, str]]
    ) -> list[str | None]:
        """Make identities resolve to profiles (id, type, value), or say why one does not.

        A sentence; None: it does now, or did before. What another profile has is never taken from
        it; where two want the same, it is the first's. Three round trips for 32 that are new.
        """
        told: list[str | None] = []

        async def add(id16: bytes, kind: str, value: str) -> str | None:
            try:
                await self._profiles.add_identity(env, id16, kind, value)
            except (Conflict, Erasing, Invalid) as ex:
                return str(ex)
            return None

        together: dict[tuple[str, str], bytes] = {}
        for id16, kind, value in wanted:
            if len(together) == AT_ONCE or (kind, value) in together:
                told += await all_done(*(add(whose, *what) for what, whose in together.items()))
                together = {}
            together[kind, value] = id16
        return told + await all_done(*(add(whose, *what) for what, whose in together.items()))

    async def import_members(
        self, env: Environment, packed: bytes, numbers: list[int], times: list[int]
    ) -> bytes:
        """Bring in static memberships: a profile, a group, joined at. One outcome for each.

        ADDED, ALREADY (a member before, or given twice: the first time stays), OVER_LIMIT,
        BEING_ERASED, DELETED. Inactive groups take members here. Dynamic groups have followed when
        it returns. Scripts of 60, partitions side by side; atomic for each membership.
        """
        outcomes = bytearray(ALREADY for _ in numbers)
        mixed = env.mixer.mix(packed)
        count = len(env.partitions)
        parts: list[dict[tuple[int, bytes], int]] = [{} for _ in env.partitions]
        for at, number in enumerate(numbers):
            each = mixed[ids.SIZE * at : ids.SIZE * at + ids.SIZE]
            parts[ids.head(each) % count if count > 1 else 0].setdefault((number, each), at)
        now_us = time.time_ns() // 1000
        unsettled: dict[bytes, None] = {}

        async def run(tag: bytes, places: dict[tuple[int, bytes], int]) -> None:
            rows = sorted(places)
            for start in range(0, len(rows), CHUNK):
                chunk = rows[start : start + CHUNK]
                at = [places[row] for row in chunk]
                letters = await self._connection.call(
                    scripts.load("import_members"),
                    [keys.key(tag, "state"), keys.key(tag, "erasing"), keys.none(tag)],
                    [now_us, GROUPS_PER_PROFILE, *_runs(chunk, [times[each] for each in at])],
                    bulk=True,
                )
                if letters.endswith(UNSETTLED):
                    letters = letters[:-1]
                    unsettled.update((each, None) for _, each in chunk)
                for each, letter in zip(at, letters, strict=True):
                    outcomes[each] = letter

        await all_done(
            *(run(tag, places) for tag, places in zip(env.partitions, parts, strict=True) if places)
        )
        if unsettled:
            await self._settling.settle(env, list(unsettled), bulk=True)
        return bytes(outcomes)


def _together(new: list[NewGroup]) -> Iterator[list[NewGroup]]:
    """Cut groups into those that are created side by side."""
    part: list[NewGroup] = []
    for each in new:
        if part and (len(part) == AT_ONCE or each.rule_tree is not None):
            yield part
            part = []
        part.append(each)
        if each.rule_tree is not None:
            yield part
            part = []
    if part:
        yield part


def _pairs(flat: Iterable[bytes]) -> dict[bytes, bytes]:
    each = iter(flat)
    return dict(zip(each, each, strict=True))


def _pieces(mixed: bytes, profile: Arriving) -> Iterable[list[bytes | str | int]]:
    """Give what a script takes of a profile, at most CHUNK attributes at a time."""
    for start in range(0, max(len(profile.attributes), 1), CHUNK):
        attributes = profile.attributes[start : start + CHUNK]
        piece: list[bytes | str | int] = [mixed, len(profile.record), len(attributes)]
        for field in profile.record:
            piece += field
        for name, *held in attributes:
            piece += (canonical_name(name), *held)
        yield piece


def _batches(pieces: list[Piece]) -> Iterable[list[Piece]]:
    """Give pieces as one script takes them: profiles and attributes are at most CHUNK together."""
    batch: list[Piece] = []
    weight = 0
    for piece in pieces:
        heavier = 1 + int(piece[1][2])
        if batch and weight + heavier > CHUNK:
            yield batch
            batch, weight = [], 0
        batch.append(piece)
        weight += heavier
    if batch:
        yield batch


def _runs(chunk: list[tuple[int, bytes]], times: list[int]) -> list[bytes | str | int]:
    """Give memberships, sorted, as runs of one group: its number, packed ids, times."""
    arguments: list[bytes | str | int] = []
    start = 0
    for at in range(1, len(chunk) + 1):
        if at == len(chunk) or chunk[at][0] != chunk[start][0]:
            arguments += (
                chunk[start][0],
                b"".join(mixed for _, mixed in chunk[start:at]),
                " ".join(map(str, times[start:at])),
            )
            start = at
    return arguments
