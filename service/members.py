"""Members of a group: listed, added, removed, replaced, looked at one by one.

Owns the item-by-item answer to an add and the meaning of `profile_ids` and `custom_ids`.
"""

from __future__ import annotations

import asyncio
import functools
import struct
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, ClassVar, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service import ids
from service.endpoint import (
    ENCODER,
    IDS_PER_TURN,
    NO_NUL,
    Resource,
    Timestamp,
    UuidText,
    endpoint,
    stepwise,
    timestamp,
)
from service.errors import Conflict, Erasing, Invalid, NotFound
from service.filters import IncludeInactive, Whether, require_admin
from service.paging import PageBody, Paging, Walk, chosen, walk_of
from service.store_group_directory import FOLLOWS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from service.admission import TenantCall
    from service.cuts import Page
    from service.groups import Group
    from service.store_members import Member

Written = TypeVar("Written")

LIST = "members"
"""What cursors of a group's members are bound to."""

MANY = 10_000
"""Ids of one call at most (design 3.1)."""

NAMED = 100
"""Profiles that the list of members can be narrowed to."""

LONGEST_CUSTOM_ID = 255

ADDED, ALREADY_ADDED, OVER_THE_LIMIT, UNKNOWN, ERASING = b"+=LUE"
"""What the store says of an id that was to be added; the last one when removing, too."""

CustomIdText = Annotated[
    str,
    Meta(extra_json_schema={"minLength": 1, "maxLength": LONGEST_CUSTOM_ID, **NO_NUL}),
]
"""A custom id, looked at by itself: in a list to add, a malformed one is told, not refused."""

ProfileIds = Annotated[list[UuidText], Meta(max_length=MANY)]
CustomIds = Annotated[list[CustomIdText], Meta(max_length=MANY)]

_ONE_LIST = "give either `profile_ids` or `custom_ids`, not both and not neither - at `$`"


class MemberIds(msgspec.Struct, forbid_unknown_fields=True):
    """Profiles to add or remove: by their ids or by their custom ids."""

    INSTEAD: ClassVar[dict[str, str]] = {
        "custom_id": "use `custom_ids`, a list",
        "profile_id": "use `profile_ids`, a list",
        "application_profile_ids": "use `profile_ids`",
    }

    SCHEMA: ClassVar[dict[str, object]] = {
        "oneOf": [{"required": ["profile_ids"]}, {"required": ["custom_ids"]}]
    }

    profile_ids: ProfileIds | UnsetType = UNSET
    custom_ids: CustomIds | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Require exactly one of the lists."""
        if (self.profile_ids is UNSET) == (self.custom_ids is UNSET):
            raise ValueError(_ONE_LIST)


class ReplacingIds(MemberIds, forbid_unknown_fields=True):
    """Profiles that are to be the members: 10,000 at most, of more it is a conflict (409)."""

    profile_ids: list[UuidText] | UnsetType = UNSET
    custom_ids: list[CustomIdText] | UnsetType = UNSET


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


class ReplacedMembers(msgspec.Struct, forbid_unknown_fields=True):
    """What became of a group's members.

    `added` and `invalid_ids` hold what was sent, each id once; `removed` holds profile ids, however
    the others were named.
    """

    added: list[str]
    removed: list[UuidText]
    unchanged: int
    invalid_ids: list[str]
    errors: list[ItemError] | UnsetType = UNSET


class MemberListQuery(Paging, kw_only=True):
    """Query parameters of a list of members."""

    profile_id: Annotated[
        list[UuidText],
        Meta(max_length=NAMED, description="Only these profiles, of those who are members."),
    ] = msgspec.field(default_factory=list)
    custom_id: Annotated[
        list[str],
        Meta(max_length=NAMED, description="The same by custom ids, without `profile_id`."),
    ] = msgspec.field(default_factory=list)
    include_inactive: IncludeInactive = False


class MemberBody(msgspec.Struct, forbid_unknown_fields=True):
    """A member of a group; `id` is the profile's."""

    id: UuidText
    nickname: str
    custom_id: str | None
    membership_created_at: Timestamp


class Members(Resource):
    """`applications/{cid}/profile-groups/{gid}/members/`."""

    @endpoint("members:read", query=MemberListQuery, reply=PageBody[MemberBody])
    async def on_get(self, call: TenantCall, query: MemberListQuery, *, gid: str) -> bytes:
        """List the members of a group.

        Who stays in the group during a walk over the pages is in exactly one of them. With
        `profile_id` or `custom_id`, which may be repeated, the list holds those of these profiles
        who are members; `count` is of them.
        """
        require_admin(call, query.include_inactive)
        fields = chosen(query.fields, MemberBody)
        named = await _wanted(call, query)
        if named == b"":
            await call.store.groups.get_group(
                call.environment, gid, include_inactive=query.include_inactive
            )
        narrowed = ""
        if named is not None or query.include_inactive:
            narrowed = repr((query.profile_id, query.custom_id, query.include_inactive))

        async def read(number: int) -> tuple[Walk, Page[Member]]:
            walk = walk_of(call, LIST, target=b"%d" % number, query=narrowed)
            where = call.environment, number
            window = walk.cut(query.cursor), query.page_size
            if named is None:
                reading = call.store.members.list_members(
                    *where, *window, include_inactive=query.include_inactive
                )
            else:
                reading = call.store.members.find_members(
                    *where, named, *window, include_inactive=query.include_inactive
                )
            return walk, await reading

        walk, page = await call.store.groups.with_number(call.environment, gid, read)

        def make(rows: Sequence[Member]) -> list[object]:
            bodies = [body_of(member) for member in rows]
            if fields is None:
                return list(bodies)
            return [{name: getattr(body, name) for name in fields} for body in bodies]

        return walk.body(page, await stepwise(make, page.rows))

    @endpoint("members:write", body=MemberIds, reply=AddedMembers, errors=(HTTPStatus.CONFLICT,))
    async def on_post(self, call: TenantCall, body: MemberIds, *, gid: str) -> AddedMembers:
        """Add members to a group.

        Ids that are malformed or of members already are told, not refused. Repeating is safe. The
        members of a dynamic group follow its rule tree: to write them is a conflict (409).
        """
        by_custom_id = body.custom_ids is not UNSET
        if by_custom_id:
            # Custom ids may get profiles before the group's own scripts can refuse.
            await _require_static(call, gid)
        named, invalid = await _named(call, body, adding=True)
        if not named:
            await _require_static(call, gid)
        told = await _writing(
            call,
            gid,
            lambda number: _added(call, number, named, by_custom_id=by_custom_id),
        )
        return AddedMembers(
            successfully_added=told[ADDED],
            already_added=told[ALREADY_ADDED],
            invalid_ids=invalid + told[UNKNOWN] + told[OVER_THE_LIMIT],
            errors=_errors(call, told[OVER_THE_LIMIT]),
        )

    @endpoint(
        "members:write", body=ReplacingIds, reply=ReplacedMembers, errors=(HTTPStatus.CONFLICT,)
    )
    async def on_put(self, call: TenantCall, body: ReplacingIds, *, gid: str) -> ReplacedMembers:
        """Make the members of a group exactly these.

        At most 10,000, of a group of at most 10,000 members, else it is 409 and nothing changed.
        An empty list empties the group. Ids that are malformed or cannot be added are told, and do
        not stop the others; a list of nothing but malformed ones changes nothing: 400. It is not
        atomic as a whole: first who is missing is added, then who is not in the list is removed;
        repeating is safe. Whom somebody else adds or removes meanwhile may be in or out.
        """
        by_custom_id = body.custom_ids is not UNSET
        sent = (body.custom_ids if by_custom_id else body.profile_ids) or []
        if len(sent) > MANY:
            raise Conflict(
                f"These are {len(sent):,} ids. A group can be given up to {MANY:,} members at once;"
                " send more to memberships/bulk/."
            )
        if by_custom_id:
            # Custom ids may get profiles before the group's own scripts can refuse.
            group = await _require_static(call, gid)
            await call.store.members.check_replaceable(call.environment, group.number)
        named, invalid = await _named(call, body, adding=True)
        if sent and not named:
            field = "custom_ids" if by_custom_id else "profile_ids"
            message = "none of these can be a member; only an empty list empties the group"
            raise Invalid(f"{message} - at `$.{field}`", field)
        told, removed = await _writing(
            call,
            gid,
            lambda number: _replaced(call, number, named, by_custom_id=by_custom_id),
        )
        return ReplacedMembers(
            added=told[ADDED],
            removed=await stepwise(_texts, removed),
            unchanged=len(told[ALREADY_ADDED]),
            invalid_ids=invalid + told[UNKNOWN] + told[OVER_THE_LIMIT],
            errors=_errors(call, told[OVER_THE_LIMIT]),
        )

    @endpoint(
        "members:write",
        body=MemberIds,
        status=HTTPStatus.NO_CONTENT,
        errors=(HTTPStatus.CONFLICT,),
    )
    async def on_delete(self, call: TenantCall, body: MemberIds, *, gid: str) -> None:
        """Remove members from a group.

        Who is not a member is passed over.
        """
        named, _ = await _named(call, body, adding=False)
        if not named:
            await _require_static(call, gid)
        packed = b"".join(named)
        outcome = await _writing(
            call,
            gid,
            lambda number: call.store.members.remove_members(call.environment, number, packed),
        )
        await _told(named, outcome)


class OneMember(Resource):
    """`applications/{cid}/profile-groups/{gid}/members/{pid}/`."""

    @endpoint("members:read", query=Whether, reply=MemberBody)
    async def on_get(self, call: TenantCall, query: Whether, *, gid: str, pid: str) -> MemberBody:
        """Read one membership."""
        require_admin(call, query.include_inactive)
        profile_id = await call.profile_id(pid)
        if profile_id is None:
            raise NotFound
        member = await call.store.groups.with_number(
            call.environment,
            gid,
            lambda number: call.store.members.get_member(
                call.environment, number, profile_id, include_inactive=query.include_inactive
            ),
        )
        if member is None:
            raise NotFound
        return body_of(member)

    @endpoint("members:write", status=HTTPStatus.NO_CONTENT, errors=(HTTPStatus.CONFLICT,))
    async def on_delete(self, call: TenantCall, *, gid: str, pid: str) -> None:
        """End one membership, whether it exists or not."""
        profile_id = await call.profile_id(pid)
        if profile_id is None:
            await _require_static(call, gid)
            return
        outcome = await _writing(
            call,
            gid,
            lambda number: call.store.members.remove_members(call.environment, number, profile_id),
        )
        await _told({profile_id: pid}, outcome)


async def _require_static(call: TenantCall, gid: str) -> Group:
    """Give a group, read from the directory, whose members can be written.

    :raises NotFound: there is none, or an inactive one
    :raises Conflict: it is dynamic
    """
    group = await call.store.groups.get_group(call.environment, gid)
    if group.is_dynamic:
        raise Conflict(FOLLOWS)
    return group


async def _writing(
    call: TenantCall, gid: str, write: Callable[[int], Awaitable[Written]]
) -> Written:
    """Write members of a group under its number; NotFound is confirmed before it is raised.

    :raises Conflict: the group is dynamic
    """
    groups, env = call.store.groups, call.environment
    try:
        return await groups.with_number(env, gid, write, static=True)
    except Conflict:
        # That it is inactive or gone comes first; its kind may be known for longer than that.
        await groups.get_group(env, gid)
        raise


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


async def _replaced(
    call: TenantCall, number: int, named: dict[bytes, str], *, by_custom_id: bool
) -> tuple[dict[int, list[str]], list[bytes]]:
    """Replace the members, sort what was sent by what became of it, and give who was removed."""
    outcome, removed = await call.store.members.replace_members(
        call.environment, number, b"".join(named), recorded=by_custom_id
    )
    told = await _told(named, outcome)
    if by_custom_id and told[UNKNOWN]:
        anew, told[UNKNOWN] = await _named_by_custom_id(call, told[UNKNOWN], adding=True)
        for letter, texts in (await _added(call, number, anew, by_custom_id=True)).items():
            told[letter] += texts
    return told, ids.split(removed)


async def _wanted(call: TenantCall, query: MemberListQuery) -> bytes | None:
    """Give the profiles, packed, that a list of members is narrowed to; None: it is not.

    :raises Invalid: a profile id is malformed, or profiles are named in both ways
    """
    if query.profile_id and query.custom_id:
        raise Invalid("give either `profile_id` or `custom_id` - at `$.custom_id`", "custom_id")
    if query.profile_id:
        packed, malformed = ids.pack(query.profile_id)
        if malformed:
            place = malformed[0]
            raise _malformed("profile_id", query.profile_id[place], place, "a UUID")
        return b"".join(dict.fromkeys(ids.split(packed)))
    if query.custom_id:
        resolved = await call.store.profiles.resolve_identities(
            call.environment, "customer_id", query.custom_id, create=False
        )
        return b"".join(dict.fromkeys(each for each in resolved if each is not None))
    return None


def _errors(call: TenantCall, over: list[str]) -> list[ItemError] | UnsetType:
    """Say why ids are invalid that are over the limit."""
    most = call.application.groups_per_profile
    detail = f"The profile is in {most} groups, as many as it may."
    return [ItemError(text, detail) for text in over] or UNSET


def _texts(packed: Sequence[bytes]) -> list[str]:
    return [ids.text(each) for each in packed]


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


def body_of(member: Member) -> MemberBody:
    """Show a member."""
    profile_id = ids.text(member.id)
    return MemberBody(
        id=profile_id,
        nickname=member.nickname or f"Profile {profile_id[:8]}",
        custom_id=member.custom_id,
        membership_created_at=timestamp(member.joined_at_us),
    )


_DIGITS = struct.Struct("8s4s4s4s12s")
_ID = b',{"id":"%b-%b-%b-%b-%b","nickname":'
_JOINED = b',"membership_created_at":"%b.%bZ"}'
_NAMELESS = _ID + b'"Profile %b","custom_id":null' + _JOINED
_LEAST = len("1000000")
_NAMED = _ID + b'%b,"custom_id":%b' + _JOINED


def rows_of(packed: bytes, joined: Sequence[bytes], names: Sequence[bytes | None]) -> bytes:
    """Encode members as `body_of` shows them, each behind a comma.

    :param packed: their ids
    :param joined: when each joined, in microseconds since 1970
    :param names: nickname and custom id of each in turn, or nothing where nobody has either

    PERF: nameless rows in a third of what structs take, named ones in a half.
    """
    pieces: list[bytes] = []
    digits = _DIGITS.iter_unpack(packed.hex().encode())
    joined = [at.zfill(_LEAST) for at in joined]
    if not names:
        for (a, b, c, d, e), at in zip(digits, joined, strict=True):
            pieces += a, b, c, d, e, a, _second(at[:-6]), at[-6:]
        return _NAMELESS * len(joined) % tuple(pieces)
    told = zip(digits, joined, names[::2], names[1::2], strict=True)
    for (a, b, c, d, e), at, nickname, custom_id in told:
        shown = _quoted(nickname) if nickname else b'"Profile %b"' % a
        known_as = b"null" if custom_id is None else _quoted(custom_id)
        pieces += a, b, c, d, e, shown, known_as, _second(at[:-6]), at[-6:]
    return _NAMED * len(joined) % tuple(pieces)


def _quoted(text: bytes) -> bytes:
    return ENCODER.encode(text.decode())


@functools.lru_cache(maxsize=4096)
def _second(seconds: bytes) -> bytes:
    return timestamp(int(seconds) * 1_000_000)[: -len(".000000Z")].encode()
