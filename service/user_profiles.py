"""A user's profile as the Group Identity face shows it: by mpid, or by an identity.

The same profiles as in `profiles`, and attributes that are inherited among a user's own. Owns the
shape of the view (that of mParticle's Profile API) and which parts of it are asked for. Nothing is
written here.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service import ids
from service.batches import KINDS
from service.decoding import decoded
from service.endpoint import Resource, Wire, endpoint, read_body
from service.errors import Invalid, NotFound
from service.groups import DYNAMIC_TYPE, GroupQuery

if TYPE_CHECKING:
    from service.admission import TenantCall
    from service.attributes import ProfileAttribute
    from service.environment import Environment
    from service.store_records import KnownProfile

FIELDS = (
    "device_identities", "user_identities", "user_attributes", "audience_memberships",
    "attribution",
)  # fmt: skip
"""The parts of a view."""
_ANY = "|".join(FIELDS)

NAMES = {kind: name for name, kind in KINDS.items() if name != "customerid"}
"""Type of an identity -> what this face calls it."""

BODY_BYTES = 64 * 1024
"""A longer body of somebody who may name one identity is 413."""

NO_USER = "No user ID provided"

PAGE = 1000
"""Audiences of a user that are read at a time."""
_DYNAMIC = GroupQuery(membership_type=DYNAMIC_TYPE)

EnvironmentType = Literal["production", "development"]
Attribute = str | list[str] | None


class ViewQuery(msgspec.Struct):
    """Which parts of the view are wanted, and, where no body says so, of which environment."""

    SCHEMA: ClassVar[dict[str, object]] = {"required": ["fields"]}

    fields: Annotated[
        str,
        Meta(
            description=f"Parts of the view, with commas between: {', '.join(FIELDS)}.",
            extra_json_schema={"pattern": f"^ *({_ANY}) *(, *({_ANY}) *)*$"},
        ),
    ] = ""
    environment_type: Annotated[EnvironmentType, Meta(description="Whose users are meant.")] = (
        "production"
    )


class Identity(msgspec.Struct):
    """An identity of the user."""

    SCHEMA: ClassVar[dict[str, object]] = {"required": ["type", "value"]}

    type: (
        Annotated[
            str,
            Meta(
                description="A type as in a batch's `user_identities`.",
                extra_json_schema={"enum": [*KINDS]},
            ),
        ]
        | None
    ) = None
    value: Annotated[str, Meta(extra_json_schema={"minLength": 1})] | None = None


class ResolveBody(msgspec.Struct):
    """Who is meant."""

    SCHEMA: ClassVar[dict[str, object]] = {"required": ["identity"]}

    environment_type: EnvironmentType | UnsetType = UNSET
    identity: Identity | None = None


class PlaceBody(msgspec.Struct):
    """Where the user is looked for, where the query does not say it."""

    environment_type: EnvironmentType | UnsetType = UNSET


class UserIdentity(msgspec.Struct, forbid_unknown_fields=True):
    """One identity of a user."""

    type: str
    encoding: str
    value: str


class AudienceMembership(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One audience that a user is in. A membership lasts as long as the rule tree is true."""

    audience_id: int
    audience_name: str
    expiration_timestamp_ms: int | None = None


class UserProfileBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A user's profile, with the parts that were asked for. What Belong does not keep is empty."""

    mpid: int | None
    """A number of 64 bits; null where the user has none: whom the other face alone has written."""
    created_timestamp_ms: int
    last_stored_timestamp_ms: int
    is_opted_out: bool = False
    limit_ad_tracking: bool | None = None
    device_identities: list[Any] | UnsetType = UNSET
    user_identities: list[UserIdentity] | UnsetType = UNSET
    account_userattributes: dict[str, Any] | None = None
    user_attributes: dict[str, Attribute] | UnsetType = UNSET
    """Texts, lists of texts, and null for a tag. Inherited ones are `<definition>:<attribute>`."""
    audience_memberships: list[AudienceMembership] | UnsetType = UNSET
    """The active dynamic groups that the user is in, the oldest first."""
    attribution: dict[str, Any] | UnsetType | None = UNSET


_RESOLVE = msgspec.json.Decoder(ResolveBody)
_PLACE = msgspec.json.Decoder(PlaceBody)
_VALUE = msgspec.json.Decoder(list[str] | None)


class UserProfile(Resource):
    """`/userprofile/v1/{org}/{account}/{ws}/{mpid}`."""

    @endpoint(
        "profiles:read", query=ViewQuery, reply=UserProfileBody, errors=(HTTPStatus.NOT_FOUND,)
    )
    async def on_get(
        self,
        call: TenantCall,
        query: ViewQuery,
        *,
        mpid: str,
        **_others: str,
    ) -> UserProfileBody:
        """Read a user's profile by mpid.

        Attributes are the user's own and those that are inherited, as they are now.
        """
        return await _by_mpid(call, query, mpid, query.environment_type)

    @endpoint(
        "profiles:read",
        query=ViewQuery,
        reply=UserProfileBody,
        errors=(HTTPStatus.NOT_FOUND,),
        wire=Wire(reads=PlaceBody, empty=True),
    )
    async def on_post(
        self,
        call: TenantCall,
        query: ViewQuery,
        *,
        mpid: str,
        **_others: str,
    ) -> UserProfileBody:
        """Read a user's profile by mpid, as GET does.

        The documents write POST, and code that is there sends GET.
        """
        data = await read_body(call.request, BODY_BYTES)
        place: Any = decoded(_PLACE, PlaceBody, data) if data.strip() else PlaceBody()
        environment_type = place.environment_type or query.environment_type
        return await _by_mpid(call, query, mpid, environment_type)


class ResolvedUserProfile(Resource):
    """`/userprofile/v1/resolve/{org}/{account}/{ws}`."""

    @endpoint(
        "profiles:read",
        query=ViewQuery,
        reply=UserProfileBody,
        errors=(HTTPStatus.NOT_FOUND,),
        wire=Wire(reads=ResolveBody),
    )
    async def on_post(self, call: TenantCall, query: ViewQuery, **_others: str) -> UserProfileBody:
        """Read the profile of the user whom an identity names."""
        wanted = _wanted(query)
        data = await read_body(call.request, BODY_BYTES)
        body: Any = decoded(_RESOLVE, ResolveBody, data) if data.strip() else ResolveBody()
        identity = body.identity
        if identity is None or not identity.type or not identity.value:
            message = f"{NO_USER}: `identity` needs a type and a value - at `$.identity`"
            raise Invalid(message, "identity")
        kind = KINDS.get(identity.type)
        if kind is None:
            message = f"There is no such type of identity. There are: {', '.join(NAMES.values())}"
            raise Invalid(f"{message} - at `$.identity.type`", "identity")
        env = _environment(call, body.environment_type or query.environment_type)
        return await _view(call, env, wanted, kind, identity.value)


async def _by_mpid(
    call: TenantCall, query: ViewQuery, mpid: str, environment_type: EnvironmentType
) -> UserProfileBody:
    wanted = _wanted(query)
    number = ids.parse_mpid(f"mpid:{mpid}")
    if number is None:
        message = f"{NO_USER}: an mpid is a whole number of 64 bits with a sign, and this is none."
        raise Invalid(message)
    env = _environment(call, environment_type)
    return await _view(call, env, wanted, "mpid", str(number))


def _environment(call: TenantCall, environment_type: EnvironmentType) -> Environment:
    """Give the environment that is meant.

    :raises NotFound: the application has not got it
    """
    found = call.application.environments.get(environment_type)
    if found is None:
        raise NotFound(f"The workspace has no environment {environment_type}.")
    return found


def _wanted(query: ViewQuery) -> frozenset[str]:
    """Give the parts that are asked for.

    :raises Invalid: none are named, or there is no such part
    """
    wanted = frozenset(filter(None, map(str.strip, query.fields.split(","))))
    if not wanted:
        message = f"`fields` is required - at `$.fields`. There are: {', '.join(FIELDS)}"
        raise Invalid(message, "fields")
    if not wanted <= set(FIELDS):
        unknown = min(wanted - set(FIELDS))[:100]
        message = f"{unknown!r} is no field of a profile - at `$.fields`"
        raise Invalid(f"{message}. There are: {', '.join(FIELDS)}", "fields")
    return wanted


async def _view(
    call: TenantCall, env: Environment, wanted: frozenset[str], kind: str, value: str
) -> UserProfileBody:
    """Read whom an identity names, and show what was asked for.

    :raises NotFound: nobody
    """
    [found] = await call.store.profiles.resolve_identities(env, kind, [value], create=False)
    if found is None:
        raise NotFound("The specified resource was not found: there is no such user.")
    profile, audiences = await asyncio.gather(
        call.store.records.get_profile(env, found),
        _audiences(call, env, found if "audience_memberships" in wanted else None),
    )
    created_at_us = profile.created_at_us or 0
    shown = UserProfileBody(
        mpid=None if profile.mpid is None else int(profile.mpid),
        created_timestamp_ms=created_at_us // 1000,
        last_stored_timestamp_ms=max(created_at_us, profile.seq) // 1000,
    )
    parts: dict[str, Any] = {
        "device_identities": [],
        "user_identities": _identities(profile),
        "user_attributes": _attributes(profile),
        "audience_memberships": audiences,
        "attribution": None,
    }
    for part in wanted:
        setattr(shown, part, parts[part])
    return shown


async def _audiences(
    call: TenantCall, env: Environment, id16: bytes | None
) -> list[AudienceMembership]:
    """Give the audiences that a profile is in, in order of their ids; of None: it is not asked."""
    found: list[AudienceMembership] = []
    if id16 is None:
        return found
    cut = None
    while True:
        page = await call.store.lookups.list_profile_groups(
            env, id16, cut, PAGE, query=_DYNAMIC, counted=False
        )
        found += [
            AudienceMembership(
                audience_id=ids.audience_id(env.number, row.group.number),
                audience_name=row.group.name,
            )
            for row in page.rows
        ]
        cut = page.last
        if cut is None:
            return found


def _identities(profile: KnownProfile) -> list[UserIdentity]:
    return [
        UserIdentity(NAMES[kind], "none", value)
        for kind, value in profile.identities
        if kind in NAMES
    ]


def _attributes(profile: KnownProfile) -> dict[str, Attribute]:
    """Give all attributes by name, in order."""
    shown: dict[str, Attribute] = {each.name: _value(each) for each in profile.attributes}
    shown.update(profile.inherited)
    return dict(sorted(shown.items()))


def _value(attribute: ProfileAttribute) -> Attribute:
    """Give a value as this face shows it: every scalar is a text."""
    if attribute.value[:1] in {b"[", b"n"}:
        held: Attribute = _VALUE.decode(attribute.value)
        return held
    return attribute.text
