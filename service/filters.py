"""Filters of lists of groups: the query parameters that both of them take, and what they mean.

The groups of an application and the groups of a profile are narrowed, ordered and numbered by pages
in the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from service.decoding import plain, raw_values
from service.errors import Forbidden, Invalid
from service.groups import GroupQuery
from service.paging import Paging

if TYPE_CHECKING:
    from service.admission import TenantCall

IncludeInactive = Annotated[bool, Meta(description="Inactive groups too; needs the scope admin.")]


class Whether(msgspec.Struct):
    """Query parameters of one group, and of what is read of its members."""

    include_inactive: IncludeInactive = False


class GroupListQuery(Paging, kw_only=True):
    """Query parameters of a list of groups."""

    attributes: Annotated[
        list[str],
        Meta(
            max_length=100,
            description="`key:value`, or `key` for presence; all that are given must match.",
        ),
    ] = msgspec.field(default_factory=list)
    custom_id: Annotated[str | None, Meta(description="The custom id of the group.")] = None
    name: Annotated[str | None, Meta(description="The name of the group, exactly.")] = None
    membership_type: Annotated[
        Literal["static", "dynamic"] | None, Meta(description="How profiles come into the group.")
    ] = None
    ordering: Annotated[
        Literal["created_at", "-created_at"],
        Meta(description="Oldest groups first, or youngest first."),
    ] = "created_at"
    page: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None,
        Meta(description="Number of a page, from 1 on, without `cursor`."),
    ] = None
    include_inactive: IncludeInactive = False

    @property
    def skipped(self) -> int:
        """How many rows lie before the page that is asked for by its number.

        :raises Invalid: a cursor says otherwise
        """
        if self.page is None:
            return 0
        if self.cursor is not None:
            raise Invalid("give either `page` or `cursor`, not both - at `$.page`", "page")
        return (self.page - 1) * self.page_size


def group_query(call: TenantCall, query: GroupListQuery) -> GroupQuery:
    """Give what the store is asked for.

    :raises Forbidden: inactive groups are asked for by somebody who is no admin
    """
    require_admin(call, query.include_inactive)
    raw = raw_values(call.request.query_string, "attributes") if query.attributes else ()
    return GroupQuery(
        attributes=tuple(map(_attribute, raw)),
        name=query.name,
        custom_id=query.custom_id,
        membership_type=query.membership_type,
        descending=query.ordering == "-created_at",
        include_inactive=query.include_inactive,
    )


def require_admin(call: TenantCall, include_inactive: bool) -> None:
    """Let only admins see inactive groups.

    :raises Forbidden: it is asked for, and the token has not the scope admin
    """
    if include_inactive and not call.is_admin:
        raise Forbidden("include_inactive needs the scope admin, which the token does not have.")


def _attribute(raw: str) -> tuple[str, str | None]:
    """Read one `attributes=` as the client wrote it: `key:value`, or `key` alone.

    The first colon that is not percent-encoded parts it, so that a client which encodes both sides
    can have colons in a key; where the client encoded every colon, the first one does.
    """
    key, colon, value = raw.partition(":")
    if colon:
        return plain(key), plain(value)
    key, colon, value = plain(raw).partition(":")
    return key, value if colon else None
