"""Instances: the groups that a definition made, who is in them, and what they came to share.

Ours: mParticle's API shows definitions alone. What is answered is made of what the instance itself
keeps, which is what its members are told of.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Literal, TypeGuard

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service import ids
from service.aggregation import values_of
from service.cuts import Page
from service.endpoint import Resource, UuidText, endpoint, moment
from service.errors import NotFound
from service.paging import PAGE_SIZE, PageBody, origin, walk_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.admission import TenantCall
    from service.aggregation import Outcome
    from service.environment import Environment
    from service.grouping import Definition, Instance

SHOWN = 20
"""Members that an instance is shown with."""
PAGE_LIMIT = 100
"""Instances of a page at most: each is read with all that its members bring in."""
_HEX = 2 * ids.SIZE

EnvironmentName = Annotated[
    Literal["production", "development"], Meta(description="Whose users are grouped.")
]


class InstanceQuery(msgspec.Struct):
    """Where an instance is."""

    environment: EnvironmentName = "production"


class InstanceListQuery(InstanceQuery):
    """Which instances are listed."""

    value: Annotated[
        str | None, Meta(description="Only the instance of this value of the source attribute.")
    ] = None
    page_size: Annotated[int, Meta(ge=1, le=PAGE_LIMIT, description="Rows of a page.")] = PAGE_SIZE
    cursor: Annotated[
        str | None, Meta(description="Position, from `next` or `previous` of a page.")
    ] = None


class InstanceMember(msgspec.Struct, forbid_unknown_fields=True):
    """A user of an instance. One whom the Profile Groups face alone has written has no mpid."""

    id: UuidText
    mpid: int | None


class DecidingMember(msgspec.Struct, forbid_unknown_fields=True):
    """The user whose value decided."""

    profile_id: UuidText
    mpid: int | None


class ExplanationBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Where a shared value comes from."""

    value: str | list[str]
    decided_by: DecidingMember | None = msgspec.field(name="from")
    """Null where all members count alike, or no value decided."""
    set_at: str | None
    """When that user's value was written."""
    conflicts: int | UnsetType = UNSET
    """Values that are of another type than the aggregation takes, where there are any."""
    left_out: int | UnsetType = UNSET
    """Values that a list of values had no room for, where there are any."""


class InstanceBody(msgspec.Struct, forbid_unknown_fields=True):
    """One group that a definition made: all users with one value of its source attribute.

    `size` users count, those who had the value first; `excluded_count` came after the limit was
    reached. `attributes` are what the members inherit, and `explain` says why.
    """

    id: str
    value: str
    environment: str
    size: int
    excluded_count: int
    overflow: bool
    members: Annotated[list[InstanceMember], Meta(max_length=SHOWN)]
    members_url: str
    attributes: dict[str, str | list[str]]
    explain: dict[str, ExplanationBody]


class Instances(Resource):
    """`/platform/workspaces/{ws}/groups/{did}/instances`."""

    @endpoint("definitions:read", query=InstanceListQuery, reply=PageBody[InstanceBody])
    async def on_get(self, call: TenantCall, query: InstanceListQuery, *, did: str) -> bytes:
        """List the instances of a definition.

        In an order of no meaning, that stays as it is.
        """
        definition = await call.store.definitions.get_definition(call.application, did)
        env = call.application.environments[query.environment]
        walk = walk_of(call, "instances", query=f"{env.name} {definition.number}")
        cut = walk.cut(query.cursor)
        if query.value is None:
            page = await call.store.instance_index.list_instances(
                env, definition.number, cut, query.page_size
            )
        else:
            one = env.mixer.instance_id(env.number, definition.number, query.value)
            page = Page(0, [one], None, None)
        rows = [
            instance
            for instance in await call.store.instances.read(env, page.rows)
            if _is_there(instance)
        ]
        if query.value is not None:
            page.count = len(rows)
        bodies = []
        for row in rows:
            bodies.append(_body(call, env, definition, row))
            await asyncio.sleep(0)
        return walk.body(page, bodies)


class OneInstance(Resource):
    """`/platform/workspaces/{ws}/groups/{did}/instances/{iid}`."""

    @endpoint("definitions:read", query=InstanceQuery, reply=InstanceBody)
    async def on_get(
        self, call: TenantCall, query: InstanceQuery, *, did: str, iid: str
    ) -> InstanceBody:
        """Read an instance."""
        env, definition, instance = await _found(call, query, did, iid)
        return _body(call, env, definition, instance)


class InstanceMembers(Resource):
    """`/platform/workspaces/{ws}/groups/{did}/instances/{iid}/members`."""

    @endpoint("definitions:read", query=InstanceQuery, reply=list[InstanceMember])
    async def on_get(
        self, call: TenantCall, query: InstanceQuery, *, did: str, iid: str
    ) -> list[InstanceMember]:
        """List the members of an instance.

        All that count, in the order in which they joined; at most 1,000, for that is the highest
        limit there is.
        """
        env, _, instance = await _found(call, query, did, iid)
        return _members(env, instance, len(instance.counted))


async def _found(
    call: TenantCall, query: InstanceQuery, did: str, iid: str
) -> tuple[Environment, Definition, Instance]:
    definition = await call.store.definitions.get_definition(call.application, did)
    env = call.application.environments[query.environment]
    if len(iid) == _HEX:
        try:
            [instance] = await call.store.instances.read(env, [bytes.fromhex(iid)])
        except ValueError:
            instance = None
        if _is_there(instance) and instance.number == definition.number:
            return env, definition, instance
    message = f"The group definition {definition.id!r} has no such instance in {env.name}."
    raise NotFound(message)


def _is_there(instance: Instance | None) -> TypeGuard[Instance]:
    """Tell whether an instance has users: one whom the last left is there until all were told."""
    return instance is not None and instance.total > 0


def _body(
    call: TenantCall, env: Environment, definition: Definition, instance: Instance
) -> InstanceBody:
    size = len(instance.counted)
    excluded = instance.total - size
    outcomes = _outcomes(definition, instance)
    return InstanceBody(
        id=instance.id.hex(),
        value=instance.value,
        environment=env.name,
        size=size,
        excluded_count=excluded,
        overflow=excluded > 0,
        members=_members(env, instance, SHOWN),
        members_url=_members_url(call, env, definition, instance),
        attributes={name: _value(outcome) for name, outcome in outcomes.items()},
        explain={name: _explanation(env, outcome) for name, outcome in outcomes.items()},
    )


def _outcomes(definition: Definition, instance: Instance) -> dict[str, Outcome]:
    """Give what members inherit.

    Without attributes that came, or got another type, after the instance was last looked at: its
    users have not said anything about those yet.
    """
    found = values_of(definition, instance)
    return {
        attribute.id: found[attribute.id]
        for attribute in definition.attributes
        if attribute.id in found and attribute.since <= instance.rules
    }


def _value(outcome: Outcome) -> str | list[str]:
    return msgspec.json.decode(outcome.value, type=str | list[str])


def _explanation(env: Environment, outcome: Outcome) -> ExplanationBody:
    source = outcome.source
    return ExplanationBody(
        value=_value(outcome),
        decided_by=None
        if source is None
        else DecidingMember(ids.text(env.mixer.unmix(source.mixed)), source.mpid),
        set_at=None if outcome.set_at_us is None else moment(outcome.set_at_us),
        conflicts=outcome.conflicts or UNSET,
        left_out=outcome.left_out or UNSET,
    )


def _members(env: Environment, instance: Instance, most: int) -> list[InstanceMember]:
    counted: Sequence[tuple[bytes, int | None]] = [
        (each.mixed, each.mpid) for each in instance.counted[:most]
    ]
    unmixed = ids.split(env.mixer.unmix(b"".join(mixed for mixed, _ in counted)))
    return [
        InstanceMember(ids.text(id16), mpid)
        for id16, (_, mpid) in zip(unmixed, counted, strict=True)
    ]


def _members_url(
    call: TenantCall, env: Environment, definition: Definition, instance: Instance
) -> str:
    base = origin(call.request, call.backend.config)
    path = f"/platform/workspaces/{call.application.workspace_id}/groups/{definition.id}"
    query = "" if env is call.application.production else f"?environment={env.name}"
    return f"{base}{path}/instances/{instance.id.hex()}/members{query}"
