"""Profile groups: the directory of an application, as the Profile Groups API shows it.

Owns what may be written into a group. What is shown of one is in `group_bodies`, what narrows a
list of them in `filters`; members of a group are in `members`.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service import ids
from service.endpoint import NO_NUL, Resource, endpoint, stepwise
from service.errors import Invalid, NotFound
from service.filters import GroupListQuery, Whether, group_query, require_admin
from service.group_bodies import (
    Attributes,
    GroupBody,
    MembershipType,
    chosen_fields,
    group_bodies,
    group_body,
    stored,
)
from service.groups import GroupChanges, NewGroup
from service.paging import PAGE_SIZE_LIMIT, PageBody, chosen, walk_of
from service.rule_trees import FIELD, PLACE, GivenTree, is_given, read_tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.admission import TenantCall
    from service.cuts import Cut
    from service.groups import Group, GroupQuery

Name = Annotated[str, Meta(min_length=1, max_length=255, extra_json_schema=NO_NUL)]
Description = Annotated[str, Meta(max_length=2000, extra_json_schema=NO_NUL)]
CustomId = Annotated[str, Meta(min_length=1, max_length=255, extra_json_schema=NO_NUL)]

NO_TREE = "only a dynamic group has a rule tree, and this one is `static`"


class NewGroupBody(msgspec.Struct, forbid_unknown_fields=True):
    """A group to create. A dynamic one has a rule tree, and its members follow that."""

    SCHEMA: ClassVar[dict[str, object]] = {
        "anyOf": [
            {"properties": {"membership_type": {"const": "static"}, "rule_tree": {"type": "null"}}},
            {
                "properties": {
                    "membership_type": {"const": "dynamic"},
                    "rule_tree": {"not": {"type": "null"}},
                },
                "required": ["membership_type", "rule_tree"],
            },
        ]
    }

    name: Name
    is_active: bool = True
    description: Description | None = None
    attributes: Attributes = []
    custom_id: CustomId | None = None
    membership_type: MembershipType = "static"
    rule_tree: GivenTree | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Refuse what no annotation can say."""
        _check_texts(self)
        if self.membership_type == "dynamic" and not is_given(self.rule_tree):
            raise ValueError(f"a dynamic group needs a rule tree - at `{PLACE}`")
        if self.membership_type == "static" and is_given(self.rule_tree):
            raise ValueError(f"{NO_TREE} - at `{PLACE}`")


class GroupChangesBody(msgspec.Struct, forbid_unknown_fields=True):
    """Changes of a group: fields that are not given stay, `attributes` replaces the list.

    `membership_type` may be given as it is; it never changes. `rule_tree` replaces the one of a
    dynamic group.
    """

    name: Name | UnsetType = UNSET
    is_active: bool | UnsetType = UNSET
    description: Description | UnsetType | None = UNSET
    attributes: Attributes | UnsetType = UNSET
    custom_id: CustomId | UnsetType | None = UNSET
    membership_type: MembershipType | UnsetType = UNSET
    rule_tree: GivenTree | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Refuse what no annotation can say."""
        _check_texts(self)

    def changes(self, author: str) -> GroupChanges:
        """Give what the store is to change.

        :raises Invalid: there is a rule tree, and it is none
        """
        attributes = self.attributes
        return GroupChanges(
            name=self.name,
            is_active=self.is_active,
            description=self.description,
            attributes=UNSET if attributes is UNSET else stored(attributes),
            custom_id=self.custom_id,
            rule_tree=read_tree(self.rule_tree) if is_given(self.rule_tree) else UNSET,
            modified_by=author,
        )

    def check_kind(self, group: Group) -> None:
        """See to it that the kind of a group stays as it is.

        :raises Invalid: it would not
        """
        kind = group.membership_type
        if self.membership_type not in (UNSET, kind):
            message = f"the kind of a group never changes, and this one is `{kind}`"
            raise Invalid(f"{message} - at `$.membership_type`", "membership_type")
        if group.is_dynamic and self.rule_tree is not UNSET and not is_given(self.rule_tree):
            message = "a dynamic group has a rule tree: give another one, or leave this out"
            raise Invalid(f"{message} - at `{PLACE}`", FIELD)
        if not group.is_dynamic and is_given(self.rule_tree):
            raise Invalid(f"{NO_TREE} - at `{PLACE}`", FIELD)


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
        walk = walk_of(call, "groups", query=repr(wanted))
        cut = await _skipped(call, wanted, query.skipped) or walk.cut(query.cursor)
        page = await call.store.groups.list_groups(call.environment, wanted, cut, query.page_size)
        bodies = await group_bodies(call, page.rows, fields)
        if fields is None:
            return walk.body(page, bodies)

        def make(rows: Sequence[GroupBody]) -> list[object]:
            return [chosen_fields(body, fields) for body in rows]

        return walk.body(page, await stepwise(make, bodies))

    @endpoint(
        "groups:write",
        body=NewGroupBody,
        reply=GroupBody,
        status=HTTPStatus.CREATED,
        errors=(HTTPStatus.CONFLICT,),
    )
    async def on_post(self, call: TenantCall, body: NewGroupBody) -> GroupBody:
        """Create a group.

        A dynamic one is in force when this is answered: whoever changes from then on is a member as
        the rule tree says. Profiles that are there already are looked at meanwhile; `status` says
        how far that is.
        """
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
        return await group_body(call, group)

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

        With `is_active` false it answers 404 everywhere from the moment of the answer on. Another
        `rule_tree` is in force then, too; members leave and join one by one, as they are looked at.
        """
        return await _change(call, body, query, gid)

    @endpoint(
        "groups:write",
        query=Whether,
        status=HTTPStatus.NO_CONTENT,
        errors=(HTTPStatus.CONFLICT,),
    )
    async def on_delete(self, call: TenantCall, query: Whether, *, gid: str) -> None:
        """Delete a group with all its memberships.

        One that the rule tree of a dynamic group names is a conflict (409).
        """
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
        attributes=stored(body.attributes),
        custom_id=custom_id,
        id=group_id,
        membership_type=body.membership_type,
        rule_tree=read_tree(body.rule_tree) if is_given(body.rule_tree) else None,
        created_by=call.author,
    )
    return await group_body(call, await call.store.groups.create_group(call.environment, new))


async def _change(call: TenantCall, body: GroupChangesBody, query: Whether, gid: str) -> GroupBody:
    require_admin(call, query.include_inactive)
    changes = body.changes(call.author)
    if body.membership_type is not UNSET or body.rule_tree is not UNSET:
        body.check_kind(
            await call.store.groups.get_group(
                call.environment, gid, include_inactive=query.include_inactive
            )
        )
    group = await call.store.groups.update_group(
        call.environment, gid, changes, include_inactive=query.include_inactive
    )
    return await group_body(call, group)


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


def _check_texts(body: NewGroupBody | GroupChangesBody) -> None:
    """Check NULs.

    :raises ValueError: msgspec makes its error of it, so the sentence says where.
    """
    for field in ("name", "description", "custom_id"):
        value = getattr(body, field)
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"NUL characters are not allowed - at `$.{field}`")
