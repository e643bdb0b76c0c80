"""Profile groups: the directory of an application, as the Profile Groups API shows it.

Owns the shape of a group on the wire, and what may be written into one. What narrows a list of
them is in `filters`, members of a group are in `members`.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service import ids
from service.endpoint import NO_NUL, Resource, Timestamp, UuidText, endpoint, stepwise, timestamp
from service.errors import Invalid, NotFound
from service.filters import GroupListQuery, Whether, group_query, require_admin
from service.groups import Attribute, GroupChanges, NewGroup
from service.paging import PAGE_SIZE_LIMIT, PageBody, Walk, chosen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.admission import TenantCall
    from service.cuts import Cut
    from service.groups import Group, GroupQuery

Name = Annotated[str, Meta(min_length=1, max_length=255, extra_json_schema=NO_NUL)]
Description = Annotated[str, Meta(max_length=2000, extra_json_schema=NO_NUL)]
CustomId = Annotated[str, Meta(min_length=1, max_length=255, extra_json_schema=NO_NUL)]
MembershipType = Annotated[str, Meta(extra_json_schema={"enum": ["static"]})]
RuleTree = Annotated[
    Any, Meta(description="Of a dynamic group.", extra_json_schema={"type": "null"})
]

NO_DYNAMIC = "dynamic groups are not offered by this version, only `static` ones"


class GroupAttribute(msgspec.Struct, forbid_unknown_fields=True):
    """One attribute of a group. Keys may repeat."""

    key: Annotated[str, Meta(min_length=1, max_length=255, extra_json_schema=NO_NUL)]
    value: Annotated[str, Meta(max_length=1024, extra_json_schema=NO_NUL)]

    def __post_init__(self) -> None:
        """Refuse NUL; msgspec says where."""
        if "\0" in self.key or "\0" in self.value:
            raise ValueError("NUL characters are not allowed")


Attributes = Annotated[list[GroupAttribute], Meta(max_length=100)]


class GroupBody(msgspec.Struct, forbid_unknown_fields=True):
    """A group as it is answered. `profile_count` is exact."""

    id: UuidText
    name: str
    is_active: bool
    description: str | None
    profile_count: int
    custom_id: str | None
    created_at: Timestamp
    attributes: list[GroupAttribute]
    membership_type: MembershipType


class NewGroupBody(msgspec.Struct, forbid_unknown_fields=True):
    """A group to create."""

    name: Name
    is_active: bool = True
    description: Description | None = None
    attributes: Attributes = []
    custom_id: CustomId | None = None
    membership_type: MembershipType = "static"
    rule_tree: RuleTree = None

    def __post_init__(self) -> None:
        """Refuse what no annotation can say."""
        _check_texts(self)


class GroupChangesBody(msgspec.Struct, forbid_unknown_fields=True):
    """Changes of a group: fields that are not given stay, `attributes` replaces the list."""

    name: Name | UnsetType = UNSET
    is_active: bool | UnsetType = UNSET
    description: Description | UnsetType | None = UNSET
    attributes: Attributes | UnsetType = UNSET
    custom_id: CustomId | UnsetType | None = UNSET
    membership_type: MembershipType | UnsetType = UNSET
    rule_tree: RuleTree = None

    def __post_init__(self) -> None:
        """Refuse what no annotation can say."""
        _check_texts(self)

    def changes(self) -> GroupChanges:
        """Give what the store is to change."""
        attributes = self.attributes
        return GroupChanges(
            name=self.name,
            is_active=self.is_active,
            description=self.description,
            attributes=UNSET if attributes is UNSET else _stored(attributes),
            custom_id=self.custom_id,
        )


class GroupReplacementBody(GroupChangesBody, forbid_unknown_fields=True, kw_only=True):
    """The body of PUT: as of PATCH, with the name required."""

    name: Name


class Groups(Resource):
    """`applications/{cid}/profile-groups/`."""

    @endpoint("groups:read", query=GroupListQuery, reply=PageBody[GroupBody])
    async def on_get(self, call: TenantCall, query: GroupListQuery) -> bytes:
        """List the groups of an application.

        In the order of creation; filters narrow it, all of them together.
        """
        wanted = group_query(call, query)
        fields = chosen(query.fields, GroupBody)
        walk = Walk(call, "groups", query=repr(wanted))
        cut = await _skipped(call, wanted, query.skipped) or walk.cut(query.cursor)
        page = await call.store.groups.list_groups(call.environment, wanted, cut, query.page_size)
        counts: Sequence[int] = [0] * len(page.rows)
        if fields is None or "profile_count" in fields:
            numbers = [group.number for group in page.rows]
            counts = await call.store.members.count_members(call.environment, numbers)

        def make(rows: Sequence[tuple[Group, int]]) -> list[object]:
            bodies = [_body(group, count) for group, count in rows]
            if fields is None:
                return list(bodies)
            return [{name: getattr(body, name) for name in fields} for body in bodies]

        return walk.body(page, await stepwise(make, list(zip(page.rows, counts, strict=True))))

    @endpoint(
        "groups:write",
        body=NewGroupBody,
        reply=GroupBody,
        status=HTTPStatus.CREATED,
        errors=(HTTPStatus.CONFLICT,),
    )
    async def on_post(self, call: TenantCall, body: NewGroupBody) -> GroupBody:
        """Create a group."""
        return await _create(call, body, group_id=None, custom_id=body.custom_id)


class OneGroup(Resource):
    """`applications/{cid}/profile-groups/{gid}/`."""

    @endpoint("groups:read", query=Whether, reply=GroupBody)
    async def on_get(self, call: TenantCall, query: Whether, *, gid: str) -> GroupBody:
        """Read a group by its id or custom id."""
        require_admin(call, query.include_inactive)
        group = await call.store.groups.get_group(
            call.environment, gid, include_inactive=query.include_inactive
        )
        return await _counted(call, group)

    @endpoint(
        "groups:write",
        body=NewGroupBody,
        reply=GroupBody,
        status=HTTPStatus.CREATED,
        errors=(HTTPStatus.CONFLICT,),
    )
    async def on_post(self, call: TenantCall, body: NewGroupBody, *, gid: str) -> GroupBody:
        """Create a group under an id of your own.

        A UUID that is free becomes its id, any other text its custom id.
        """
        gid_is_custom = ids.named_by_custom_id(gid)
        if gid_is_custom is not None:
            gid = gid_is_custom
        elif ids.parse(gid) is not None:
            return await _create(call, body, group_id=gid.lower(), custom_id=body.custom_id)
        if len(gid) > 255 or "\0" in gid:
            message = "A custom id has at most 255 characters and no NUL - at the end of the path"
            raise Invalid(message)
        if body.custom_id not in (None, gid):
            message = "This is not the custom id in the path: leave it out - at `$.custom_id`"
            raise Invalid(message, "custom_id")
        return await _create(call, body, group_id=None, custom_id=gid)

    @endpoint(
        "groups:write",
        body=GroupReplacementBody,
        query=Whether,
        reply=GroupBody,
        errors=(HTTPStatus.CONFLICT,),
    )
    async def on_put(
        self, call: TenantCall, body: GroupReplacementBody, query: Whether, *, gid: str
    ) -> GroupBody:
        """Change a group, naming it again."""
        return await _change(call, body, query, gid)

    @endpoint(
        "groups:write",
        body=GroupChangesBody,
        query=Whether,
        reply=GroupBody,
        errors=(HTTPStatus.CONFLICT,),
    )
    async def on_patch(
        self, call: TenantCall, body: GroupChangesBody, query: Whether, *, gid: str
    ) -> GroupBody:
        """Change some fields of a group.

        With `is_active` false it answers 404 everywhere from the moment of the answer on.
        """
        return await _change(call, body, query, gid)

    @endpoint("groups:write", query=Whether, status=HTTPStatus.NO_CONTENT)
    async def on_delete(self, call: TenantCall, query: Whether, *, gid: str) -> None:
        """Delete a group with all its memberships."""
        require_admin(call, query.include_inactive)
        await call.store.groups.delete_group(
            call.environment, gid, include_inactive=query.include_inactive
        )


async def _create(
    call: TenantCall, body: NewGroupBody, *, group_id: str | None, custom_id: str | None
) -> GroupBody:
    new = NewGroup(
        name=body.name,
        is_active=body.is_active,
        description=body.description,
        attributes=_stored(body.attributes),
        custom_id=custom_id,
        id=group_id,
    )
    return _body(await call.store.groups.create_group(call.environment, new), 0)


async def _change(call: TenantCall, body: GroupChangesBody, query: Whether, gid: str) -> GroupBody:
    require_admin(call, query.include_inactive)
    group = await call.store.groups.update_group(
        call.environment, gid, body.changes(), include_inactive=query.include_inactive
    )
    return await _counted(call, group)


async def _skipped(call: TenantCall, wanted: GroupQuery, rows: int) -> Cut | None:
    """Give the position after so many rows, by walking there.

    :raises NotFound: there are no more rows than these
    """
    cut = None
    while rows:
        step = min(rows, PAGE_SIZE_LIMIT)
        page = await call.store.groups.list_groups(call.environment, wanted, cut, step)
        cut = page.last
        if cut is None:
            raise NotFound("There is no such page.")
        rows -= step
    return cut


async def _counted(call: TenantCall, group: Group) -> GroupBody:
    counts = await call.store.members.count_members(call.environment, [group.number])
    return _body(group, counts[0])


def _body(group: Group, profile_count: int) -> GroupBody:
    return GroupBody(
        id=group.id,
        name=group.name,
        is_active=group.is_active,
        description=group.description,
        profile_count=profile_count,
        custom_id=group.custom_id,
        created_at=timestamp(group.created_at_us),
        attributes=[GroupAttribute(each.key, each.value) for each in group.attributes],
        membership_type=group.membership_type,
    )


def _stored(attributes: list[GroupAttribute]) -> tuple[Attribute, ...]:
    return tuple(Attribute(each.key, each.value) for each in attributes)


def _check_texts(body: NewGroupBody | GroupChangesBody) -> None:
    """Check NULs and the kind of group.

    :raises ValueError: msgspec makes its error of it, so the sentence says where.
    """
    for field in ("name", "description", "custom_id"):
        value = getattr(body, field)
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"NUL characters are not allowed - at `$.{field}`")
    if body.membership_type not in ("static", UNSET):
        raise ValueError(f"{NO_DYNAMIC} - at `$.membership_type`")
    if body.rule_tree is not None:
        raise ValueError(f"{NO_DYNAMIC} - at `$.rule_tree`")
