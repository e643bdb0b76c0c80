"""What is kept of profiles in the store: nickname, custom id and data, attributes.

A record and its attributes live in the slot of the profile; each operation is one script there. A
profile of which only memberships are known has no record, and gets one with the first thing that
is kept of it. What it inherits stands there, too, and is read as the rules are then; to make it
follow from what was written is the matter of `store_derivation`, and its caller's to ask for. How
identities resolve, and how all of it is erased, is the matter of `store_profiles`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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
    canonical_name,
)
from service.errors import Conflict, Invalid, Stale, Unavailable
from service.grouping import Rules, inherited
from service.store_profiles import TRIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.connection import Connection
    from service.environment import Environment
    from service.store_definitions import DefinitionStore
    from service.store_profiles import ProfileStore

BEHIND, UNSETTLED = 1, 2
"""Bits that scripts answer: contributions have yet to follow, and dynamic groups."""
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
    """Its own, in the order of their names, without what stands under names of definitions: that is
    from before these were, and hidden while they are."""
    inherited: Mapping[str, str | list[str]] = {}
    """What it has of groups, as the rules are now: name -> text, or list of texts."""
    is_behind: bool = False
    """Whether what follows from its attributes has yet to follow: `derive_profiles` sees to it."""
    is_unsettled: bool = False
    """Whether its dynamic groups have yet to follow, as writers are told: `derive_profiles` sees
    to that, too, or else `settle`."""
    dropped: int = 0
    """Attributes that were given under names that definitions reserve, and were not written."""


class KnownProfile(Profile, frozen=True, kw_only=True):
    """The same, and what resolves to it: type and value of each identity, in order."""

    identities: tuple[tuple[str, str], ...]


class NewProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A profile to create. `attributes` are names and JSON values, by whatever name was given."""

    nickname: str | None = None
    custom_id: str | None = None
    custom_data: str | None = None
    attributes: Mapping[str, bytes] = {}


class ProfileChanges(msgspec.Struct, frozen=True, kw_only=True):
    """What to change of a profile: UNSET stays, None takes it away.

    `attributes`, names and JSON values, are what the profile has then, and no others.
    """

    nickname: str | UnsetType | None = UNSET
    custom_data: str | UnsetType | None = UNSET
    attributes: Mapping[str, bytes] | UnsetType = UNSET


class RecordStore:
    """Records of an environment's profiles. Every method may raise Unavailable.

    Attributes are stored under their canonical names. One whose name belongs to a definition is not
    written, and not an error: so what was read, inherited attributes and all, can be sent back.
    More attributes than one script can bear are Invalid, and nothing is written. The rules are
    known to this process; where they changed meanwhile it takes two more round trips.
    """

    def __init__(
        self, connection: Connection, profiles: ProfileStore, definitions: DefinitionStore
    ) -> None:
        """Take the open connection, and the stores that know their identities and the rules."""
        self._connection = connection
        self._profiles = profiles
        self._definitions = definitions

    async def check_attributes(self, env: Environment, attributes: Mapping[str, bytes]) -> None:
        """Raise Invalid where these are more than a profile may have, by the rules known here."""
        _given(await self._definitions.rules(env), attributes)

    async def create_profile(self, env: Environment, new: NewProfile) -> Profile:
        """Make a profile under a new id. One round trip.

        A custom id that another profile has is a Conflict, and nothing is made. After a connection
        broke in mid-write it is unknown whether it was made: without a custom id, repeating makes
        a second one.
        """
        version: int | str = ""
        given: list[str | bytes] = []
        dropped = 0
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
        rules = await self._definitions.rules(env) if new.attributes else None
        for _ in range(TRIES):
            if rules is not None:
                version = rules.version
                given, reserved = _given(rules, new.attributes)
                dropped = len(reserved)
            created_at = _now_us()
            try:
                kept = await self._connection.call(
                    scripts.load("create_profile"),
                    [
                        keys.of_profile(tag, "profile", mixed),
                        keys.of_profile(tag, "attributes", mixed),
                        keys.of_profile(tag, "identities", mixed),
                        keys.of_profile(tag, "instances", mixed),
                        keys.key(tag, "rules"),
                        keys.none(tag),
                    ],
                    [
                        mixed,
                        created_at,
                        bucket,
                        field,
                        len(record) // 2,
                        version,
                        *record,
                        *given,
                    ],
                )
            except Conflict as ex:
                message = f"profile with custom_id '{new.custom_id}' already exists."
                raise Conflict(message) from ex
            except Stale as stale:
                rules = await self._definitions.reload(env, int(str(stale)))
                continue
            if len(kept) > 1:
                return await self._profile(env, mixed, kept, dropped)
            await self._profiles.settle_other(env, partition, int(bucket), field, kept[0])
        message = "the custom id or the group definitions are being changed by too many at once"
        raise Unavailable(message)

    async def get_profile(self, env: Environment, id16: bytes) -> KnownProfile:
        """Read what is known of a profile. One round trip.

        What it inherits is by the rules in force in its partition: at once without what came from
        a definition that was changed or deleted.

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
                keys.of_profile(tag, "instances", mixed),
                keys.key(tag, "rules"),
                keys.none(tag),
            ],
            [mixed],
        )
        profile = await self._profile(env, mixed, kept)
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
        record: list[str] = []
        for name in ("nickname", "custom_data"):
            value = getattr(changes, name)
            if value is not UNSET:
                record += (name, "-" if value is None else f"={value}")
        at: str | int = ""
        version: int | str = ""
        given: list[str | bytes] = []
        hidden = ""
        dropped = 0
        rules = None
        if changes.attributes is not UNSET:
            at = "-" if at_us is None else at_us
            rules = await self._definitions.rules(env)
        for _ in range(TRIES):
            if rules is not None and changes.attributes is not UNSET:
                version = rules.version
                given, reserved = _given(rules, changes.attributes)
                dropped = len(reserved)
                hidden = "".join(f"\0{each.id}\0" for each in rules.definitions)
            now = _now_us()
            try:
                kept = await self._connection.call(
                    scripts.load("update_profile"),
                    [
                        keys.of_profile(tag, "profile", mixed),
                        keys.of_profile(tag, "attributes", mixed),
                        keys.key(tag, "erasing"),
                        keys.of_profile(tag, "instances", mixed),
                        keys.key(tag, "rules"),
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
                        version,
                        hidden,
                        *record,
                        *given,
                    ],
                )
            except Stale as stale:
                rules = await self._definitions.reload(env, int(str(stale)))
                continue
            return await self._profile(env, mixed, kept, dropped)
        message = "the group definitions are being changed by too many at once"
        raise Unavailable(message)

    async def _profile(
        self, env: Environment, mixed: bytes, kept: Sequence[Any], dropped: int = 0
    ) -> Profile:
        """Make a profile of what a script answered: see `kept_of`."""
        fields, held, listed, version, behind = kept
        record = _pairs(fields)
        attributes = (as_attribute(name, value) for name, value in _pairs(held).items())
        own = sorted(filter(None, attributes), key=lambda each: each.name)
        inherits: dict[str, str | list[str]] = {}
        if listed or any(":" in each.name for each in own):
            rules = await self._definitions.rules(env)
            if rules.version != int(version):
                rules = await self._definitions.reload(env, int(version))
            inherits = inherited(rules, _pairs(listed))
            # From before the definition was: under its name only what is inherited is shown.
            own = [each for each in own if not rules.reserves(each.name)]
        created_at = record.get(b"created_at")
        return Profile(
            id=env.mixer.unmix(mixed),
            created_at_us=None if created_at is None else int(created_at),
            nickname=_text(record.get(b"nickname")),
            custom_id=_text(record.get(b"custom_id")),
            custom_data=_text(record.get(b"custom_data")),
            mpid=_text(record.get(b"mpid")),
            seq=int(record.get(b"seq", 0)),
            attributes=tuple(own),
            inherited=inherits,
            is_behind=bool(behind & BEHIND),
            is_unsettled=bool(behind & UNSETTLED),
            dropped=dropped,
        )


def _given(
    rules: Rules, attributes: Mapping[str, bytes]
) -> tuple[list[str | bytes], frozenset[str]]:
    """Give attributes as a script takes them, and the names of those that no client writes.

    What is held under such a name stays as it is. One that a definition reserves without sharing
    anything under it counts as one of the profile's own.
    """
    stored = {canonical_name(name): value for name, value in attributes.items()}
    reserved = frozenset(filter(rules.reserves, stored))
    own = {name: value for name, value in stored.items() if name not in reserved}
    _check(own, len(reserved - rules.inherited_names))
    return [part for pair in own.items() for part in pair], reserved


def _check(attributes: Mapping[str, bytes], others: int) -> None:
    """Hold attributes against what a profile may have, and one script can bear."""
    where = " - at `$.attributes`"
    if len(attributes) + others > MANY:
        message = f"a profile has at most {MANY} attributes{where}"
        raise Invalid(message, "attributes")
    size = sum(len(name.encode()) + len(value) for name, value in attributes.items())
    if size > MANY_BYTES:
        message = f"the attributes of a profile have at most {MANY_BYTES:,} bytes together"
        raise Invalid(f"{message}, and these {size:,}{where}", "attributes")


def _pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode()


def _now_us() -> int:
    return time.time_ns() // 1000
