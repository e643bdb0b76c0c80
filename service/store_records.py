"""What is kept of profiles in the store: nickname, custom id and data, attributes.

A record and its attributes live in the slot of the profile; each operation is one script there. A
profile of which only memberships are known has no record, and gets one with the first thing that
is kept of it. How identities resolve, and how all of it is erased, is the matter of
`store_profiles`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from service import ids, keys, scripts
from service.attributes import (
    DELETIONS,
    KEPT_SECONDS,
    MANY,
    MANY_BYTES,
    ProfileAttribute,
    as_attribute,
)
from service.errors import Conflict, Invalid, Unavailable
from service.store_profiles import TRIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.connection import Connection
    from service.environment import Environment
    from service.store_profiles import ProfileStore

CUSTOM_ID = "customer_id"
"""The identity type of what a record shows as its custom_id."""


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a profile, but for its memberships. `id` is its 16 bytes.

    Where only those are known there is no record, and `created_at_us` is None.
    """

    id: bytes
    created_at_us: int | None
    nickname: str | None
    custom_id: str | None
    custom_data: str | None
    mpid: str | None
    seq: int
    attributes: tuple[ProfileAttribute, ...]
    """In the order of their names."""


class KnownProfile(Profile, frozen=True, kw_only=True):
    """The same, and what resolves to it: type and value of each identity, in order."""

    identities: tuple[tuple[str, str], ...]


class NewProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A profile to create. `attributes` are names and JSON values."""

    nickname: str | None = None
    custom_id: str | None = None
    custom_data: str | None = None
    attributes: Mapping[str, bytes] = {}

    def __post_init__(self) -> None:
        """Raise Invalid where the attributes are more than one script can bear."""
        _check(self.attributes)


class ProfileChanges(msgspec.Struct, frozen=True, kw_only=True):
    """What to change of a profile: UNSET stays, None takes it away.

    `attributes`, names and JSON values, are what the profile has then, and no others.
    """

    nickname: str | UnsetType | None = UNSET
    custom_data: str | UnsetType | None = UNSET
    attributes: Mapping[str, bytes] | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Raise Invalid where the attributes are more than one script can bear."""
        if self.attributes is not UNSET:
            _check(self.attributes)


class RecordStore:
    """Records of an environment's profiles. Every method may raise Unavailable."""

    def __init__(self, connection: Connection, profiles: ProfileStore) -> None:
        """Take the open connection, and the store that knows their identities."""
        self._connection = connection
        self._profiles = profiles

    async def create_profile(self, env: Environment, new: NewProfile) -> Profile:
        """Make a profile under a new id. One round trip.

        A custom id that another profile has is a Conflict, and nothing is made. After a connection
        broke in mid-write it is unknown whether it was made: without a custom id, repeating makes
        a second one.
        """
        partitions = len(env.partitions)
        bucket: int | str = ""
        if new.custom_id is None:
            mixed = env.mixer.mix(ids.new())
            field = b""
        else:
            partition, bucket = env.mixer.place_identity(CUSTOM_ID, new.custom_id, partitions)
            [mixed] = env.mixer.draw(partition, partitions, 1)
            field = keys.identity_field(CUSTOM_ID, new.custom_id)
        tag = env.home(mixed)
        record = [
            part
            for name in ("nickname", "custom_id", "custom_data")
            if (value := getattr(new, name)) is not None
            for part in (name, value)
        ]
        for _ in range(TRIES):
            created_at = _now_us()
            try:
                kept = await self._connection.call(
                    scripts.load("create_profile"),
                    [
                        keys.of_profile(tag, "profile", mixed),
                        keys.of_profile(tag, "attributes", mixed),
                        keys.of_profile(tag, "identities", mixed),
                        keys.none(tag),
                    ],
                    [
                        mixed,
                        created_at,
                        bucket,
                        field,
                        len(record) // 2,
                        *record,
                        *_listed(new.attributes),
                    ],
                )
            except Conflict as ex:
                message = f"profile with custom_id '{new.custom_id}' already exists."
                raise Conflict(message) from ex
            if len(kept) > 1:
                return _profile(env, mixed, kept)
            await self._profiles.settle_other(env, partition, int(bucket), field, kept[0])
        message = "the custom id is being changed by too many others at once"
        raise Unavailable(message)

    async def get_profile(self, env: Environment, id16: bytes) -> KnownProfile:
        """Read what is known of a profile. One round trip.

        Nothing known (of a profile that has only derived memberships, too): NotFound. A profile
        being erased: Erasing.
        """
        mixed = env.mixer.mix(id16)
        tag = env.home(mixed)
        *kept, fields = await self._connection.call(
            scripts.load("get_profile"),
            [
                keys.of_profile(tag, "profile", mixed),
                keys.of_profile(tag, "attributes", mixed),
                keys.of_profile(tag, "identities", mixed),
                keys.key(tag, "erasing"),
                keys.none(tag),
            ],
            [mixed],
        )
        profile = _profile(env, mixed, kept)
        identities = tuple(sorted(map(keys.parse_identity, fields)))
        return KnownProfile(identities=identities, **msgspec.structs.asdict(profile))

    async def update_profile(
        self,
        env: Environment,
        id16: bytes,
        changes: ProfileChanges,
        *,
        since_us: int | None = None,
        recorded: bool = False,
        at_us: int | None = None,
    ) -> Profile:
        """Change a profile, and give it as it is then. Atomic; one round trip; repeatable.

        Whoever is known by memberships alone gets a record. Unknown: NotFound; so is one without a
        record where that is required, created at `since_us` or, `recorded`, at any time. A profile
        being erased: Erasing.

        Attributes are replaced after all that was written before, whatever the clocks say; with
        `at_us` as of that time: what was written or deleted later stays. One that is shown as the
        same text is left as it is. Of those that go, it is remembered for 30 days when that was,
        for the latest 200 of a profile.
        """
        mixed = env.mixer.mix(id16)
        tag = env.home(mixed)
        now = _now_us()
        record: list[str] = []
        for name in ("nickname", "custom_data"):
            value = getattr(changes, name)
            if value is not UNSET:
                record += (name, "-" if value is None else f"={value}")
        at: str | int = ""
        attributes: list[str | bytes] = []
        if changes.attributes is not UNSET:
            at = "-" if at_us is None else at_us
            attributes = _listed(changes.attributes)
        kept = await self._connection.call(
            scripts.load("update_profile"),
            [
                keys.of_profile(tag, "profile", mixed),
                keys.of_profile(tag, "attributes", mixed),
                keys.key(tag, "erasing"),
                keys.none(tag),
            ],
            [
                mixed,
                now,
                since_us if since_us is not None else "*" if recorded else "",
                len(record) // 2,
                at,
                now - KEPT_SECONDS * 1_000_000,
                DELETIONS,
                *record,
                *attributes,
            ],
        )
        return _profile(env, mixed, kept)


def _check(attributes: Mapping[str, bytes]) -> None:
    """Hold attributes against what one script can bear."""
    if len(attributes) > MANY:
        message = f"a profile has at most {MANY} attributes - at `$.attributes`"
        raise Invalid(message, "attributes")
    size = sum(len(name.encode()) + len(value) for name, value in attributes.items())
    if size > MANY_BYTES:
        message = f"the attributes of a profile have at most {MANY_BYTES:,} bytes together"
        raise Invalid(f"{message}, and these {size:,} - at `$.attributes`", "attributes")


def _listed(attributes: Mapping[str, bytes]) -> list[str | bytes]:
    return [part for pair in attributes.items() for part in pair]


def _profile(env: Environment, mixed: bytes, kept: Sequence[list[bytes]]) -> Profile:
    fields, held = kept
    record = dict(zip(fields[::2], fields[1::2], strict=True))
    attributes = (
        as_attribute(name, value) for name, value in zip(held[::2], held[1::2], strict=True)
    )
    created_at = record.get(b"created_at")
    return Profile(
        id=env.mixer.unmix(mixed),
        created_at_us=None if created_at is None else int(created_at),
        nickname=_text(record.get(b"nickname")),
        custom_id=_text(record.get(b"custom_id")),
        custom_data=_text(record.get(b"custom_data")),
        mpid=_text(record.get(b"mpid")),
        seq=int(record.get(b"seq", 0)),
        attributes=tuple(sorted(filter(None, attributes), key=lambda each: each.name)),
    )


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode()


def _now_us() -> int:
    return time.time_ns() // 1000
