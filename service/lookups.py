"""Lookups: which groups is a profile in, and is this profile in this group.

These are the answers that services ask for on every request, so nothing is done here that one
request does not need.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service import ids
from service.endpoint import (
    ENCODER,
    IDS_PER_TURN,
    Resource,
    Timestamp,
    UuidText,
    endpoint,
    stepwise,
    timestamp,
)
from service.errors import Erasing, Invalid, NotFound
from service.filters import GroupListQuery, group_query
from service.paging import PageBody, Walk, chosen
from service.store_lookups import EVERY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.admission import TenantCall
    from service.groups import Group
    from service.store_lookups import ProfileGroup

MANY = 10_000
"""Pairs of one check at most (design 3.1)."""


class MembershipBody(msgspec.Struct, forbid_unknown_fields=True):
    """A group as seen from a profile that is in it; times and custom id are the group's."""

    group_id: UuidText
    group_name: str
    profile_count: int
    is_active: bool
    created_at: Timestamp
    custom_id: str | None


class Pair(msgspec.Struct, forbid_unknown_fields=True):
    """One question: a profile, by id or custom id, and a group, likewise."""

    SCHEMA: ClassVar[dict[str, object]] = {
        "oneOf": [{"required": ["profile_id"]}, {"required": ["custom_id"]}]
    }

    group_id: str
    profile_id: UuidText | UnsetType = UNSET
    custom_id: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Require exactly one name of the profile."""
        if (self.profile_id is UNSET) == (self.custom_id is UNSET):
            raise ValueError("give either `profile_id` or `custom_id`, not both and not neither")


class Pairs(msgspec.Struct, forbid_unknown_fields=True):
    """The questions of one check."""

    pairs: Annotated[list[Pair], Meta(max_length=MANY)]


class Answers(msgspec.Struct, forbid_unknown_fields=True):
    """An answer per pair, in their order; null where there is no such group."""

    results: list[bool | None]


class ProfileGroups(Resource):
    """`applications/{cid}/profiles/{pid}/profile-groups/`."""

    @endpoint("members:read", query=GroupListQuery, reply=PageBody[MembershipBody], own=True)
    async def on_get(self, call: TenantCall, query: GroupListQuery, *, pid: str) -> bytes:
        """List the groups that a profile is in, in the order of their creation.

        A UUID that was never heard of is in none; an unknown custom id is 404. Filters narrow the
        list as they do the one of the application's groups; `count` is of what matches. They cost
        one round trip more than the list without, and a look into an index for each filter and each
        group that the profile is in.
        """
        fields = chosen(query.fields, MembershipBody)
        wanted = group_query(call, query) if call.request.query_string else EVERY
        skip = query.skipped
        profile_id = await call.profile_id(pid)
        own = call.principal.profile
        if profile_id is None or own not in (None, profile_id):
            await call.require_own(profile_id)
            raise NotFound
        narrowed = "" if wanted == EVERY else repr(wanted)
        walk = Walk(call, "groups of a profile", target=profile_id, query=narrowed)
        reading = call.store.lookups.list_profile_groups(
            call.environment,
            profile_id,
            walk.cut(query.cursor),
            query.page_size,
            query=wanted,
            skip=skip,
            counted=fields is None or "profile_count" in fields,
        )
        if own is None:
            page = await reading
        else:
            # Both leave together; whether the token is still good decides over what was read.
            page, _ = await asyncio.gather(reading, call.require_own(profile_id))
        if skip and not page.rows:
            raise NotFound("There is no such page.")

        if fields is None:
            spliced = functools.partial(_spliced, call.environment.number)
            return walk.spliced(page, await stepwise(spliced, page.rows))

        def make(rows: Sequence[ProfileGroup]) -> list[object]:
            bodies = [_body(row.group, row.members or 0) for row in rows]
            return [{name: getattr(body, name) for name in fields} for body in bodies]

        return walk.body(page, await stepwise(make, page.rows))


class Check(Resource):
    """`applications/{cid}/memberships/check/`."""

    @endpoint("members:read", body=Pairs, reply=Answers)
    async def on_post(self, call: TenantCall, body: Pairs) -> bytes:
        """Check for many pairs whether the profile is in the group."""
        pairs = body.pairs
        if len(pairs) == 1:
            return await _checked(call, pairs[0])
        groups, env = call.store.groups, call.environment
        numbers = await groups.numbers_of(env, {pair.group_id: None for pair in pairs})
        profiles = await _profiles(call, pairs)
        letters = await _letters(call, pairs, numbers, profiles)
        gone = {
            pair.group_id for pair, letter in zip(pairs, letters, strict=True) if letter == GONE
        }
        if gone and (moved := await groups.renumbered(env, numbers, gone)):
            numbers |= await groups.numbers_of(env, moved)
            letters = await _letters(call, pairs, numbers, profiles)
        if ERASING in letters:
            raise _being_erased(letters.index(ERASING))
        return b'{"results":[%b]}' % b",".join([_WORDS[letter] for letter in letters])


async def _letters(
    call: TenantCall,
    pairs: list[Pair],
    numbers: dict[str, int | None],
    profiles: list[bytes],
) -> bytes:
    """Give what the store says of each pair."""
    letters = bytearray([GONE]) * len(pairs)
    places, asked, packed = [], [], bytearray()
    for place, pair in enumerate(pairs):
        number = numbers[pair.group_id]
        if number is not None:
            places.append(place)
            asked.append(number)
            packed += profiles[place]
        if place % IDS_PER_TURN == IDS_PER_TURN - 1:
            await asyncio.sleep(0)
    found = await call.store.members.check_members(call.environment, asked, bytes(packed))
    for place, letter in zip(places, found, strict=True):
        letters[place] = letter
    return bytes(letters)


ERASING, GONE = b"En"
_WORDS = {ord("1"): b"true", ord("0"): b"false", ord("n"): b"null"}

_ANSWERS = {letter: b'{"results":[%b]}' % word for letter, word in _WORDS.items()}


def _being_erased(place: int) -> Erasing:
    return Erasing(f"The profile of `$.pairs[{place}]` is being erased: try again.")


def _no_uuid(text: str, place: int) -> Invalid:
    return Invalid(f"{text[:255]!r} is not a UUID - at `$.pairs[{place}].profile_id`", "pairs")


async def _checked(call: TenantCall, pair: Pair) -> bytes:
    """Answer one pair: what is asked most often goes the shortest way."""
    if pair.custom_id is not UNSET:
        profile_id = await call.profile_id_of(pair.custom_id) or ids.new()
    else:
        text = pair.profile_id or ""
        profile_id = ids.parse(text) or b""
        if not profile_id:
            raise _no_uuid(text, 0)
    try:
        number = await call.store.groups.number_of(call.environment, pair.group_id)
    except NotFound:
        return _ANSWERS[GONE]
    letters = await call.store.members.check_members(call.environment, [number], profile_id)
    if letters[0] == GONE:
        fresh = await call.store.groups.renumber(call.environment, pair.group_id, number)
        if fresh is not None:
            letters = await call.store.members.check_members(call.environment, [fresh], profile_id)
    if letters[0] == ERASING:
        raise _being_erased(0)
    return _ANSWERS[letters[0]]


async def _profiles(call: TenantCall, pairs: list[Pair]) -> list[bytes]:
    """Give the profile of each pair. An unknown custom id is a profile that nobody has.

    :raises Invalid: a profile id is malformed
    """
    profiles: list[bytes] = []
    by_custom_id: dict[str, list[int]] = {}
    for first in range(0, len(pairs), IDS_PER_TURN):
        if first:
            await asyncio.sleep(0)
        part = pairs[first : first + IDS_PER_TURN]
        packed = _packed(part, first)
        if len(packed) == len(part):
            profiles += packed
            continue
        known = iter(packed)
        for place, pair in enumerate(part, first):
            if pair.custom_id is UNSET:
                profiles.append(next(known))
            else:
                profiles.append(ids.new())
                by_custom_id.setdefault(pair.custom_id, []).append(place)
    if by_custom_id:
        resolved = await call.store.profiles.resolve_identities(
            call.environment, "customer_id", list(by_custom_id), create=False
        )
        for profile_id, places in zip(resolved, by_custom_id.values(), strict=True):
            if profile_id is not None:
                for place in places:
                    profiles[place] = profile_id
    return profiles


def _packed(part: list[Pair], first: int) -> list[bytes]:
    """Give the profiles that these pairs name by UUID; `first` is the place of the first pair."""
    texts = [pair.profile_id for pair in part if pair.profile_id is not UNSET]
    packed, malformed = ids.pack(texts)
    if malformed:
        text = texts[malformed[0]]
        place = first + [pair.profile_id for pair in part].index(text)
        raise _no_uuid(text, place)
    return ids.split(packed)


_spliced_parts: dict[tuple[int, str, int], tuple[bytes, bytes]] = {}
"""By environment, id and version: two applications may each have a group of the same id."""

_SPLICED = 20_000


def _spliced(environment: int, rows: Sequence[ProfileGroup]) -> list[bytes]:
    """Encode rows around their counts; what is before and after is kept for the next request.

    PERF: 20 rows in 14 us, against 34 us as structs.
    """
    found = []
    for row in rows:
        group = row.group
        key = (environment, group.id, group.version)
        parts = _spliced_parts.get(key)
        if parts is None:
            if len(_spliced_parts) >= _SPLICED:
                _spliced_parts.clear()
            before, _, after = ENCODER.encode(_body(group, 0)).partition(b'"profile_count":0')
            parts = _spliced_parts[key] = (before + b'"profile_count":', after)
        found.append(b"%b%d%b" % (parts[0], row.members or 0, parts[1]))
    return found


def _body(group: Group, profile_count: int) -> MembershipBody:
    return MembershipBody(
        group_id=group.id,
        group_name=group.name,
        profile_count=profile_count,
        is_active=group.is_active,
        created_at=timestamp(group.created_at_us),
        custom_id=group.custom_id,
    )
