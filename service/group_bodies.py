"""The body of a group, as the Profile Groups API shows it: of static ones, and of dynamic ones.

Several nouns answer with groups; what is read to show them is read here, for many at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service.endpoint import NO_NUL, Timestamp, UuidText, stepwise, timestamp
from service.groups import Attribute
from service.rule_trees import RuleTreeJson, written

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from service.admission import TenantCall
    from service.groups import Group
    from service.store_dynamic import Status

MembershipType = Literal["static", "dynamic"]


class GroupAttribute(msgspec.Struct, forbid_unknown_fields=True):
    """One attribute of a group. Keys may repeat."""

    key: Annotated[str, Meta(min_length=1, max_length=255, extra_json_schema=NO_NUL)]
    value: Annotated[str, Meta(max_length=1024, extra_json_schema=NO_NUL)]

    def __post_init__(self) -> None:
        """Refuse NUL; msgspec says where."""
        if "\0" in self.key or "\0" in self.value:
            raise ValueError("NUL characters are not allowed")


Attributes = Annotated[list[GroupAttribute], Meta(max_length=100)]


class StatusBody(msgspec.Struct, forbid_unknown_fields=True):
    """How far the members of a group are built: of `total` profiles, `done` were looked at.

    A query that was saved as a group `failed` where not all of its profiles could be added.
    """

    state: Literal["building", "ready", "failed"]
    done: int
    total: int


class GroupBody(msgspec.Struct, forbid_unknown_fields=True):
    """A group as it is answered. `profile_count` is exact.

    A dynamic group has a `rule_tree`, and a `status`: while its state is `building`, profiles that
    were there before its rule tree are still being looked at. A group that a query was saved as has
    a `status`, too.
    """

    id: UuidText
    name: str
    is_active: bool
    description: str | None
    profile_count: int
    custom_id: str | None
    created_at: Timestamp
    attributes: list[GroupAttribute]
    membership_type: MembershipType
    rule_tree: RuleTreeJson | UnsetType = UNSET
    status: StatusBody | UnsetType = UNSET


async def group_bodies(
    call: TenantCall, groups: Sequence[Group], fields: Collection[str] | None = None
) -> list[GroupBody]:
    """Show groups as they are now.

    :param fields: what is wanted of them; the others are not read, and hold nothing then
    """
    counted, followed, shown = (
        fields is None or name in fields for name in ("profile_count", "status", "rule_tree")
    )
    counts, statuses = await asyncio.gather(
        _counts(call, groups if counted else ()), _statuses(call, groups if followed else ())
    )

    def make(rows: Sequence[Group]) -> list[GroupBody]:
        return [
            _body(
                group,
                profile_count=counts.get(group.number, 0),
                rule_tree=written(group.rule_tree) if shown and group.is_dynamic else UNSET,
                status=statuses.get(group.number, UNSET),
            )
            for group in rows
        ]

    return await stepwise(make, groups)


def _body(
    group: Group,
    *,
    profile_count: int,
    rule_tree: msgspec.Raw | UnsetType,
    status: StatusBody | UnsetType,
) -> GroupBody:
    return GroupBody(
        id=group.id,
        name=group.name,
        is_active=group.is_active,
        description=group.description,
        profile_count=profile_count,
        custom_id=group.custom_id,
        created_at=timestamp(group.created_at_us),
        attributes=[GroupAttribute(each.key, each.value) for each in group.attributes],
        membership_type="dynamic" if group.is_dynamic else "static",
        rule_tree=rule_tree,
        status=status,
    )


async def group_body(call: TenantCall, group: Group) -> GroupBody:
    """Show one group as it is now."""
    [body] = await group_bodies(call, [group])
    return body


def chosen_fields(body: GroupBody, fields: Collection[str]) -> dict[str, Any]:
    """Give some fields of a body, but for those that such a group does not have."""
    found = ((name, getattr(body, name)) for name in fields)
    return {name: value for name, value in found if value is not UNSET}


def stored(attributes: Sequence[GroupAttribute]) -> tuple[Attribute, ...]:
    """Give the attributes of a group as the store has them."""
    return tuple(Attribute(each.key, each.value) for each in attributes)


async def _counts(call: TenantCall, groups: Sequence[Group]) -> dict[int, int]:
    if not groups:
        return {}
    numbers = [group.number for group in groups]
    counts = await call.store.members.count_members(call.environment, numbers)
    return dict(zip(numbers, counts, strict=True))


async def _statuses(call: TenantCall, groups: Sequence[Group]) -> dict[int, StatusBody]:
    built = [group for group in groups if group.is_dynamic or group.saved_query is not None]
    if not built:
        return {}
    found: dict[int, Status] = await call.store.dynamic.statuses(call.application, built)
    return {
        number: StatusBody(status.state, status.done, status.total)
        for number, status in found.items()
    }
