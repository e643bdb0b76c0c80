"""Members of a group: listed, added, removed, looked at one by one.

Owns the item-by-item answer to an add and the meaning of `profile_ids` and `custom_ids`.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service import ids
from service.decoding import refuse
from service.endpoint import (
    IDS_PER_TURN,
    Resource,
    TenantCall,
    endpoint,
    stepwise,
    timestamp,
)
from service.errors import Erasing, Invalid, NotFound
from service.paging import PageBody, Paging, Walk, chosen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.cuts import Page
    from service.store_members import Member

MANY = 10_000
"""Ids of one call at most (design 3.1)."""

LONGEST_CUSTOM_ID = 255

ADDED, ALREADY_ADDED, OVER_THE_LIMIT, UNKNOWN, ERASING = b"+=LUE"
"""What the store says of an id that was to be added; the last one when removing, too."""

Texts = Annotated[list[str], Meta(max_length=MANY)]

_ONE_LIST = "give either `profile_ids` or `custom_ids`, not both and not neither - at `$`"


class MemberIds(msgspec.Struct, forbid_unknown_fields=True):
    """Profiles to add or remove: by their ids or by their custom ids."""

    INSTEAD: ClassVar[dict[str, str]] = {
        "custom_id": "use `custom_ids`, a list",
        "profile_id": "use `profile_ids`, a list",
        "application_profile_ids": "use `profile_ids`",
    }

    profile_ids: Texts | UnsetType = UNSET
    custom_ids: Texts | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Require exactly one of the lists."""
        if (self.profile_ids is UNSET) == (self.custom_ids is UNSET):
            raise ValueError(_ONE_LIST)


class ItemError(msgspec.Struct, forbid_unknown_fields=True):
    """Why an id that is well formed is among the `invalid_ids`."""

    id: str
    detail: str


class AddedMembers(msgspec.Struct, forbid_unknown_fields=True):
    """What became of each id; the arrays hold what was sent, each id once."""

    successfully_added: list[str]
    already_added: list[str]
    invalid_ids: list[str]
    errors: list[ItemError] | UnsetType = UNSET


class MemberBody(msgspec.Struct, forbid_unknown_fields=True):
    """A member of a group; `id` is the profile's."""

    id: str
    nickname: str
    custom_id: str | None
    membership_created_at: str


class Members(Resource):
    """`applications/{cid}/profile-groups/{gid}/members/`."""

    @endpoint("members:read", query=Paging, reply=PageBody[MemberBody])
    async def on_get(self, call: TenantCall, query: Paging, *, gid: str) -> bytes:
        """List the members of a group.

        Who stays in the group during a walk over the pages is in exactly one of them.
        """
        fields = chosen(query.fields, MemberBody)
        refuse(call.request.query_string, "attributes", "ordering", "page")

        async def read(number: int) -> tuple[Walk, Page[Member]]:
            walk = Walk(call, "members", target=b"%d" % number)
            cut = walk.cut(query.cursor)
            return walk, await call.store.members.list_members(
                call.environment, number, cut, query.page_size
            )

        walk, page = await call.store.groups.with_number(call.environment, gid, read)

        def make(rows: Sequence[Member]) -> list[object]:
            bodies = [_body(member) for member in rows]
            if fields is None:
                return list(bodies)
            return [{name: getattr(body, name) for name in fields} for body in bodies]

        return walk.body(page, await stepwise(make, page.rows))

    @endpoint("members:write", body=MemberIds, reply=AddedMembers)
    async def on_post(self, call: TenantCall, body: MemberIds, *, gid: str) -> AddedMembers:
        """Add members to a group.

        Ids that are malformed or of members already are told, not refused. Repeating is safe.
        """
        by_custom_id = body.custom_ids is not UNSET
        if by_custom_id:
            # Custom ids may get profiles before the group's own scripts can refuse.
            await call.store.groups.get_group(call.environment, gid)
        named, invalid = await _named(call, body, adding=True)
        if not named:
            await call.store.groups.get_group(call.environment, gid)
        told = await call.store.groups.with_number(
            call.environment,
            gid,
            lambda number: _added(call, number, named, by_custom_id=by_custom_id),
        )
        over = told[OVER_THE_LIMIT]
        detail = (
            f"The profile is in {call.application.groups_per_profile} groups, as many as it may."
        )
        return AddedMembers(
            successfully_added=told[ADDED],
            already_added=told[ALREADY_ADDED],
            invalid_ids=invalid + told[UNKNOWN] + over,
            errors=[ItemError(text, detail) for text in over] or UNSET,
        )

    @endpoint("members:write", body=MemberIds, status=HTTPStatus.NO_CONTENT)
    async def on_delete(self, call: TenantCall, body: MemberIds, *, gid: str) -> None:
        """Remove members from a group.

        Who is not a member is passed over.
        """
        named, _ = await _named(call, body, adding=False)
        if not named:
            await call.store.groups.get_group(call.environment, gid)
        packed = b"".join(named)
        outcome = await call.store.groups.with_number(
            call.environment,
            gid,
            lambda number: call.store.members.remove_members(call.environment, number, packed),
        )
        await _told(named, outcome)


class OneMember(Resource):
    """`applications/{cid}/profile-groups/{gid}/members/{pid}/`."""

    @endpoint("members:read", reply=MemberBody)
    async def on_get(self, call: TenantCall, *, gid: str, pid: str) -> MemberBody:
        """Read one membership."""
        profile_id = await call.profile_id(pid)
        if profile_id is None:
            raise NotFound
        member = await call.store.groups.with_number(
            call.environment,
            gid,
            lambda number: call.store.members.get_member(call.environment, number, profile_id),
        )
        if member is None:
            raise NotFound
        return _body(member)

    @endpoint("members:write", status=HTTPStatus.NO_CONTENT)
    async def on_delete(self, call: TenantCall, *, gid: str, pid: str) -> None:
        """End one membership, whether it exists or not."""
        profile_id = await call.profile_id(pid)
        if profile_id is None:
            await call.store.groups.get_group(call.environment, gid)
            return
        outcome = await call.store.groups.with_number(
            call.environment,
            gid,
            lambda number: call.store.members.remove_members(call.environment, number, profile_id),
        )
        await _told({profile_id: pid}, outcome)


async def _named(
    call: TenantCall, body: MemberIds, *, adding: bool
) -> tuple[dict[bytes, str], list[str]]:
    """Give the profiles that a body names, each once: id -> what was sent; and what is invalid.

    :raises Invalid: one is malformed, and they are not to be added
    """
    if body.profile_ids is not UNSET:
        return await _named_by_id(body.profile_ids, adding=adding)
    return await _named_by_custom_id(call, body.custom_ids or [], adding=adding)


async def _named_by_id(texts: list[str], *, adding: bool) -> tuple[dict[bytes, str], list[str]]:
    named: dict[bytes, str] = {}
    invalid: dict[str, None] = {}
    for first in range(0, len(texts), IDS_PER_TURN):
        part = texts[first : first + IDS_PER_TURN]
        packed, malformed = ids.pack(part)
        if malformed and not adding:
            raise _malformed("profile_ids", part[malformed[0]], first + malformed[0], "a UUID")
        if malformed:
            without = set(malformed)
            invalid |= dict.fromkeys(part[position] for position in malformed)
            part = [text for position, text in enumerate(part) if position not in without]
        for profile_id, text in zip(ids.split(packed), part, strict=True):
            named.setdefault(profile_id, text)
        if len(texts) > IDS_PER_TURN:
            await asyncio.sleep(0)
    return named, list(invalid)


async def _named_by_custom_id(
    call: TenantCall, texts: list[str], *, adding: bool
) -> tuple[dict[bytes, str], list[str]]:
    """Resolve custom ids.

    An unknown one gets a profile where it is added to a group of an open application. In a
    registered one it is invalid then; where it is to be removed, it is no member.
    """
    usable: dict[str, None] = {}
    invalid: dict[str, None] = {}
    for position, text in enumerate(texts):
        if 0 < len(text) <= LONGEST_CUSTOM_ID and "\0" not in text:
            usable[text] = None
        elif adding:
            invalid[text] = None
        else:
            wanted = f"a custom id: 1 to {LONGEST_CUSTOM_ID} characters without NUL"
            raise _malformed("custom_ids", text, position, wanted)
        if position % IDS_PER_TURN == IDS_PER_TURN - 1:
            await asyncio.sleep(0)
    resolved = await call.store.profiles.resolve_identities(
        call.environment,
        "customer_id",
        list(usable),
        create=adding and call.application.profiles == "open",
    )
    named: dict[bytes, str] = {}
    for position, (profile_id, text) in enumerate(zip(resolved, usable, strict=True)):
        if profile_id is not None:
            named.setdefault(profile_id, text)
        elif adding:
            invalid[text] = None
        if position % IDS_PER_TURN == IDS_PER_TURN - 1:
            await asyncio.sleep(0)
    return named, list(invalid)


def _malformed(field: str, text: str, position: int, wanted: str) -> Invalid:
    return Invalid(f"{text[:255]!r} is not {wanted} - at `$.{field}[{position}]`", field)


async def _added(
    call: TenantCall, number: int, named: dict[bytes, str], *, by_custom_id: bool
) -> dict[int, list[str]]:
    """Add profiles, and sort what was sent by what became of it.

    A profile that a custom id resolved to may be erased before the second script: then the custom
    id is resolved again, for it is nobody by now, or somebody new.
    """
    told: dict[int, list[str]] = {letter: [] for letter in _LETTERS}
    for _ in range(_TRIES):
        outcome = await call.store.members.add_members(
            call.environment, number, b"".join(named), recorded=by_custom_id
        )
        for letter, texts in (await _told(named, outcome)).items():
            told[letter] += texts
        if not (by_custom_id and told[UNKNOWN]):
            return told
        named, told[UNKNOWN] = await _named_by_custom_id(call, told[UNKNOWN], adding=True)
        if not named:
            return told
    message = "A profile is being erased and made again all the time, the others are done."
    raise Erasing(message)


_LETTERS = b"+=LU-.E"
_TRIES = 5


async def _told(named: dict[bytes, str], outcome: bytes) -> dict[int, list[str]]:
    """Sort what was sent by what became of it.

    :raises Erasing: one of the profiles is being erased; the others are done
    """
    told: dict[int, list[str]] = {letter: [] for letter in _LETTERS}
    for position, (text, letter) in enumerate(zip(named.values(), outcome, strict=True)):
        told[letter].append(text)
        if position % IDS_PER_TURN == IDS_PER_TURN - 1:
            await asyncio.sleep(0)
    if told[ERASING]:
        message = f"The profile {told[ERASING][0]} is being erased, the others are done: try again."
        raise Erasing(message)
    return told


def _body(member: Member) -> MemberBody:
    profile_id = ids.text(member.id)
    return MemberBody(
        id=profile_id,
        nickname=member.nickname or f"Profile {profile_id[:8]}",
        custom_id=member.custom_id,
        membership_created_at=timestamp(member.joined_at_us),
    )
