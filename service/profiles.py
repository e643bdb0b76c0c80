"""Profiles: made anonymously or by a back end, read, changed and erased.

Owns the shape of a profile on the wire, who may do what to which one, and how often anybody may
make one without a token. What a profile inherits is shown among its attributes, and follows from
what was written before that is answered. Whose groups and members they are is in `lookups` and
`members`; how the other face shows the same profiles, in `user_profiles`.
"""

from __future__ import annotations

import ipaddress
import uuid
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service import ids, signing
from service.admission import Call, TenantCall, admitted
from service.attributes import MANY, NAME_CHARACTERS, canonical_name, value_of
from service.auth import InvalidToken
from service.decoding import decoded
from service.endpoint import (
    API,
    BODY_LIMIT_BYTES,
    ENCODER,
    NO_NUL,
    Resource,
    Timestamp,
    UuidText,
    Wire,
    endpoint,
    read_body,
    timestamp,
)
from service.errors import Conflict, Erasing, Forbidden, NotFound, Unauthorized
from service.paging import client_address, origin
from service.store_records import NewProfile, ProfileChanges

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from service.auth import Principal
    from service.environment import Application, Environment
    from service.store_records import Profile

ADDRESS_PER_MINUTE = 60
"""Anonymous profiles that one client address makes in a minute."""

ANONYMOUS_BODY_BYTES = 64 * 1024
"""A longer body of somebody who may give no more than a nickname is 413."""

OWN_BODY_BYTES = 128 * 1024
"""The same of the token of a profile, which anybody gets: a nickname and custom data, escaped."""

INHERITED = 10_000
"""Inherited attributes that come back with a profile's own: what settings allow to be shared."""

DROPPED = "belong_profile_dropped_attributes_total"

WRITE = "profiles:write"

Nickname = Annotated[str, Meta(max_length=255, extra_json_schema=NO_NUL)]
CustomId = Annotated[str, Meta(min_length=1, max_length=255, extra_json_schema=NO_NUL)]
CustomData = Annotated[str, Meta(max_length=8192, extra_json_schema=NO_NUL)]

_FOR_A_TOKEN = (
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
)

_Body = TypeVar("_Body", bound=msgspec.Struct)


class ProfileAttribute(msgspec.Struct, forbid_unknown_fields=True):
    """One attribute of a profile, by its name. A value that is no text is shown as its JSON.

    Inherited ones are called `<definition>:<attribute>`, and stand before one of the profile's own
    that has the same name.
    """

    key: str
    value: str


class NewProfileAttribute(msgspec.Struct, forbid_unknown_fields=True):
    """One attribute that a profile is to have. Keys do not repeat.

    Keys that begin with the id of a group definition and a colon are for what is inherited: they
    are passed over, so that what was read can be sent back.
    """

    key: Annotated[str, Meta(min_length=1, max_length=NAME_CHARACTERS, extra_json_schema=NO_NUL)]
    value: Annotated[
        str,
        Meta(
            description="4,096 characters at most; more only as a JSON list of strings.",
            extra_json_schema=NO_NUL,
        ),
    ]

    def __post_init__(self) -> None:
        """Refuse NUL, and what is too long; msgspec says where."""
        if "\0" in self.key:
            raise ValueError("NUL characters are not allowed")
        value_of(self.value)


Attributes = Annotated[
    list[NewProfileAttribute],
    Meta(max_length=MANY + INHERITED, description=f"{MANY} at most, besides what is inherited."),
]


class ProfileBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A profile. What this server does not offer is 0, empty or null, as the SDK's type has it."""

    id: UuidText
    url: str
    client_id: str
    nickname: str
    created_at: Timestamp | None
    """Null where nothing but memberships is known."""
    custom_id: str | None
    custom_data: str | None
    attributes: list[ProfileAttribute]
    points: int = 0
    reported_count: int = 0
    badges: list[Any] = []
    profile_groups_url: str
    subscribe_channel: str | None = None
    chat_room_memberships_url: str | None = None
    access_token: str | UnsetType = UNSET
    """The profile's own token: in the answer to its creation, and nowhere else."""


class NewProfileBody(msgspec.Struct, forbid_unknown_fields=True):
    """A profile to create; all but the nickname needs the scope profiles:write."""

    nickname: Nickname | None = None
    custom_id: CustomId | None = None
    custom_data: CustomData | None = None
    attributes: Attributes = []

    def __post_init__(self) -> None:
        """Refuse what no annotation can say."""
        _check(self)


class ProfileChangesBody(msgspec.Struct, forbid_unknown_fields=True):
    """Changes of a profile: what is not given stays, null takes it away.

    `attributes` replaces the list; `custom_id` can be given to a profile that has none.
    """

    nickname: Nickname | UnsetType | None = UNSET
    custom_id: CustomId | UnsetType = UNSET
    custom_data: CustomData | UnsetType | None = UNSET
    attributes: Attributes | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Refuse what no annotation can say."""
        _check(self)

    def changes(self) -> ProfileChanges:
        """Give what the store is to change. An empty nickname is none."""
        attributes = self.attributes
        return ProfileChanges(
            nickname=self.nickname or None if self.nickname is not UNSET else UNSET,
            custom_data=self.custom_data,
            attributes=UNSET if attributes is UNSET else _given(attributes),
        )


class ErasedProfile(msgspec.Struct, forbid_unknown_fields=True):
    """What erasing a profile removed, in numbers."""

    id: str
    memberships: int
    attributes: int
    identities: int
    instances: int


_NEW = msgspec.json.Decoder(NewProfileBody)
_CHANGES = msgspec.json.Decoder(ProfileChangesBody)


class CurrentProfile(Resource):
    """`applications/{cid}/profile/`."""

    @endpoint(None, reply=ProfileBody, own=True, errors=_FOR_A_TOKEN)
    async def on_get(self, call: Call, *, cid: str) -> ProfileBody:
        """Read the profile that the token speaks for.

        A token that speaks for none gets a profile made up for it, which is always the same and in
        no group.
        """
        tenant = await admitted(call, cid, None, own=True)
        own = tenant.principal.profile
        if own is None:
            return _made_up(tenant)
        return _body(tenant, tenant.application, await _own(tenant, own))

    @endpoint(
        None,
        reply=ProfileBody,
        status=HTTPStatus.CREATED,
        errors=(*_FOR_A_TOKEN, HTTPStatus.CONFLICT),
        wire=Wire(reads=NewProfileBody, empty=True),
    )
    async def on_post(self, call: Call, *, cid: str) -> ProfileBody:
        """Create a profile, and give its token.

        Without a token the profile is anonymous, and the body may be empty. Anonymous profiles can
        be switched off for an application, and are limited to so many a minute: of all clients, and
        60 of each.
        """
        application, principal = await _creator(call, cid)
        anonymous = principal is None or WRITE not in principal.scopes
        data = await read_body(
            call.request, ANONYMOUS_BODY_BYTES if anonymous else BODY_LIMIT_BYTES
        )
        body = _decoded(_NEW, NewProfileBody, data) if data.strip() else NewProfileBody()
        if anonymous:
            _refuse_anonymous(application, principal, body)
            await _take_allowance(call, application)
        new = NewProfile(
            nickname=body.nickname or None,
            custom_id=body.custom_id,
            custom_data=body.custom_data,
            attributes=_given(body.attributes),
        )
        env = application.production
        made = await call.backend.store.records.create_profile(env, new)
        made = await _followed(call, env, made, new.attributes)
        answer = _body(call, application, made)
        answer.access_token = signing.profile_token(application, made.id, made.created_at_us or 0)
        return answer

    @endpoint(
        None, reply=ProfileBody, own=True, errors=_FOR_A_TOKEN, wire=Wire(reads=ProfileChangesBody)
    )
    async def on_patch(self, call: Call, *, cid: str) -> ProfileBody:
        """Change the profile that the token speaks for: its nickname and custom data."""
        tenant = await admitted(call, cid, None, own=True)
        own = tenant.principal.profile
        if own is None:
            raise Forbidden("The token speaks for no profile: change one at profiles/{id}/.")
        data = await read_body(call.request, OWN_BODY_BYTES)
        body = _decoded(_CHANGES, ProfileChangesBody, data)
        return _body(tenant, tenant.application, await _change_own(tenant, own, body))


class OneProfile(Resource):
    """`profiles/{pid}/`."""

    @endpoint("profiles:read", reply=ProfileBody, own=True)
    async def on_get(self, call: TenantCall, *, pid: str) -> ProfileBody:
        """Read a profile by its id, `mpid:<number>` or custom id.

        Of whom nothing is known there is no profile, whatever the form of the id.
        """
        profile_id = await _named(call, pid)
        if call.principal.profile is not None:
            return _body(call, call.application, await _own(call, profile_id))
        profile = await call.store.records.get_profile(call.environment, profile_id)
        return _body(call, call.application, profile)

    @endpoint(
        WRITE,
        reply=ProfileBody,
        own=True,
        errors=(HTTPStatus.CONFLICT,),
        wire=Wire(reads=ProfileChangesBody),
    )
    async def on_patch(self, call: TenantCall, *, pid: str) -> ProfileBody:
        """Change a profile.

        What its groups share follows before this is answered (for more than 100 members, soon
        after), and so do memberships of dynamic groups. Inherited attributes are passed over.
        Repeating is safe: of a custom id and other changes at once, the custom id comes first.
        """
        of_a_profile = call.principal.profile is not None
        data = await read_body(call.request, OWN_BODY_BYTES if of_a_profile else BODY_LIMIT_BYTES)
        body = _decoded(_CHANGES, ProfileChangesBody, data)
        profile_id = await _named(call, pid)
        if of_a_profile:
            return _body(call, call.application, await _change_own(call, profile_id, body))
        # What does not fit is refused here, before anything is changed.
        changes = body.changes()
        env, records = call.environment, call.store.records
        if body.custom_id is not UNSET:
            if changes.attributes is not UNSET:
                await records.check_attributes(env, changes.attributes)
            await _give_custom_id(call, profile_id, body.custom_id)
        changed = await records.update_profile(env, profile_id, changes)
        given = () if changes.attributes is UNSET else changes.attributes
        changed = await _followed(call, env, changed, given)
        return _body(call, call.application, changed)

    @endpoint(WRITE, reply=ErasedProfile)
    async def on_delete(self, call: TenantCall, *, pid: str) -> ErasedProfile:
        """Erase a profile everywhere, and say what that removed.

        Whoever shared a group with it inherits nothing of it any more when this is answered (where
        more than 100 did, soon after).
        """
        profile_id = await _named(call, pid)
        erased = await call.store.profiles.erase_profile(call.environment, profile_id)
        return ErasedProfile(
            id=ids.text(profile_id),
            memberships=erased.memberships,
            attributes=erased.attributes,
            identities=erased.identities,
            instances=erased.instances,
        )


async def _followed(
    call: Call, env: Environment, written: Profile, given: Iterable[str]
) -> Profile:
    """Have follow what follows from what was written, and give the profile as it is then.

    `given` are the names of attributes that were.
    """
    if written.dropped:
        call.backend.counters.count(DROPPED, by=written.dropped)
    if not (written.is_behind or written.is_unsettled):
        return written
    store, mixed = call.backend.store, [env.mixer.mix(written.id)]
    names = [canonical_name(each).encode() for each in given]
    if not written.is_behind:
        await store.settling.settle(env, mixed, names)
        return written
    await store.derivation.derive_profiles(env, mixed, names=names)
    try:
        return await store.records.get_profile(env, written.id)
    except (Erasing, NotFound):
        # Somebody erased it meanwhile: it was written all the same.
        return written


def _decoded(decoder: msgspec.json.Decoder[_Body], shape: type[_Body], data: bytes) -> _Body:
    return cast("_Body", decoded(decoder, shape, data))


async def _creator(call: Call, cid: str) -> tuple[Application, Principal | None]:
    """Give the application that a profile is to be made in, and who makes it; None is anybody.

    `Bearer` without a token, as the SDK sends it, is none; any other header has to be valid.

    :raises NotFound: there is no such application
    """
    header = call.request.auth
    if header is not None and header.strip().lower() not in ("", "bearer"):
        tenant = await admitted(call, cid, None, own=True)
        return tenant.application, tenant.principal
    application = await call.backend.store.registry.application(cid)
    if application is None:
        raise NotFound
    call.request.admitted = cid, "anonymous"
    return application, None


def _refuse_anonymous(
    application: Application, principal: Principal | None, body: NewProfileBody
) -> None:
    """Refuse what needs the scope, to somebody who lacks it: 401 without a token, else 403."""
    why = ""
    if not application.anonymous_profiles:
        why = "Anonymous profiles are switched off for this application"
    elif body != NewProfileBody(nickname=body.nickname):
        why = "Without that an anonymous profile has a nickname and nothing else"
    if not why:
        return
    if principal is None:
        raise Unauthorized(f"This needs a token with the scope {WRITE}. {why}.")
    raise Forbidden(f"This needs the scope {WRITE}, which the token does not have. {why}.")


async def _take_allowance(call: Call, application: Application) -> None:
    """Count an anonymous creation.

    One client that makes too many does not use up what the others have.

    :raises TooManyRequests: of this client, or of all
    """
    limits, env = call.backend.store.limits, application.production
    address = _neighbourhood(client_address(call.request, call.backend.config))
    for caller, per_minute, of in (
        (f"anonymous:{address}", ADDRESS_PER_MINUTE, " from one address"),
        ("anonymous", application.anonymous_per_minute, ""),
    ):
        allowed = f"{per_minute:,} anonymous profiles a minute{of}"
        await limits.take(env, caller, per_minute / 60, per_minute, allowed)


def _neighbourhood(address: str) -> str:
    """Give what is counted as one client: an IPv4 address, or the /64 of an IPv6 one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed.packed[:8] + bytes(8), 64)))


async def _named(call: TenantCall, text: str) -> bytes:
    """Give the profile that the path names.

    :raises Forbidden: it is not the one that the token speaks for, and that is all it may
    :raises NotFound: an unknown mpid or custom id
    """
    found = await call.profile_id(text)
    own = call.principal.profile
    if own is not None and found != own:
        raise Forbidden("The token of a profile reads and changes that profile alone.")
    if found is None:
        raise NotFound
    return found


async def _own(call: TenantCall, own: bytes) -> Profile:
    """Read the profile that the token speaks for.

    :raises InvalidToken: it was erased; perhaps another one has its id now
    """
    try:
        profile = await call.store.records.get_profile(call.environment, own)
    except NotFound:
        raise _erased() from None
    if profile.created_at_us is None or not call.principal.is_of(profile.created_at_us):
        raise _erased()
    return profile


async def _change_own(call: TenantCall, own: bytes, body: ProfileChangesBody) -> Profile:
    if body.custom_id is not UNSET or body.attributes is not UNSET:
        raise Forbidden("The token of a profile changes its nickname and custom_data alone.")
    try:
        return await call.store.records.update_profile(
            call.environment,
            own,
            body.changes(),
            since_us=call.principal.profile_since_us,
            recorded=True,
        )
    except NotFound:
        raise _erased() from None


def _erased() -> InvalidToken:
    return InvalidToken("The profile of this token was erased.")


async def _give_custom_id(call: TenantCall, profile_id: bytes, custom_id: str) -> None:
    """Give a custom id to a profile that has none, or this one.

    :raises Conflict: it has another, or another profile has this
    """
    try:
        await call.store.profiles.add_identity(
            call.environment, profile_id, "customer_id", custom_id, known=True
        )
    except Conflict as error:
        owner = await call.profile_id_of(custom_id)
        if owner is None or owner == profile_id:
            raise Conflict("The profile has another custom_id, which stays.") from error
        raise Conflict(f"profile with custom_id '{custom_id}' already exists.") from error


def _body(call: Call, application: Application, profile: Profile) -> ProfileBody:
    made = _blank(call, application, ids.text(profile.id))
    if profile.nickname:
        made.nickname = profile.nickname
    if profile.created_at_us is not None:
        made.created_at = timestamp(profile.created_at_us)
    made.custom_id = profile.custom_id
    made.custom_data = profile.custom_data
    shown = {each.name: each.text for each in profile.attributes}
    for name, value in profile.inherited.items():
        shown[name] = value if isinstance(value, str) else ENCODER.encode(value).decode()
    made.attributes = [ProfileAttribute(name, shown[name]) for name in sorted(shown)]
    return made


def _made_up(call: TenantCall) -> ProfileBody:
    """Make up the profile of a token that speaks for none."""
    application, subject = call.application, call.principal.subject
    name = f"{application.client_id}\0{subject}"
    made = _blank(call, application, str(uuid.uuid5(uuid.NAMESPACE_URL, name)))
    made.nickname = subject
    # Its id is nobody's: this is where it is read again.
    base, name = origin(call.request, call.backend.config) + API, quote(application.client_id)
    made.url = f"{base}/applications/{name}/profile/"
    made.created_at = timestamp(application.created_at_us)
    return made


def _blank(call: Call, application: Application, profile_id: str) -> ProfileBody:
    base = origin(call.request, call.backend.config) + API
    name = quote(application.client_id, safe="")
    return ProfileBody(
        id=profile_id,
        url=f"{base}/profiles/{profile_id}/?client_id={name}",
        client_id=application.client_id,
        nickname=f"Profile {profile_id[:8]}",
        created_at=None,
        custom_id=None,
        custom_data=None,
        attributes=[],
        profile_groups_url=f"{base}/applications/{name}/profiles/{profile_id}/profile-groups/",
    )


def _given(attributes: list[NewProfileAttribute]) -> Mapping[str, bytes]:
    return {each.key: value_of(each.value) for each in attributes}


def _check(body: NewProfileBody | ProfileChangesBody) -> None:
    """Check NULs and keys.

    :raises ValueError: msgspec makes its error of it, so the sentence says where.
    """
    for field in ("nickname", "custom_id", "custom_data"):
        value = getattr(body, field)
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"NUL characters are not allowed - at `$.{field}`")
    seen: set[str] = set()
    own = 0
    for position, each in enumerate(body.attributes or ()):
        name = canonical_name(each.key)
        if name in seen:
            raise ValueError(f"the key is given twice - at `$.attributes[{position}]`")
        seen.add(name)
        own += ":" not in name
        if own > MANY:
            raise ValueError(f"Expected `array` of length <= {MANY} - at `$.attributes`")
