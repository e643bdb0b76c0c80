"""Queries: who is in some groups and not in others, how many that are, and saving it as a group."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service import ids
from service.endpoint import NO_NUL, Resource, UuidText, Wire, endpoint, stepwise
from service.errors import Invalid
from service.group_bodies import Attributes, GroupBody, group_body, stored
from service.groups import NewGroup
from service.paging import PAGE_SIZE, PAGE_SIZE_LIMIT, PageBody, Walk, chosen, walk_of
from service.query_tree import DEPTH, LEAVES, parse_query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.admission import TenantCall
    from service.cuts import Page
    from service.query_tree import Tree
    from service.store_queries import Bound, QueryRow

_ANY: dict[str, object] = {"type": "object"}
_LIST: dict[str, object] = {"type": "array", "items": _ANY, "minItems": 1}


def _node(**properties: dict[str, object]) -> dict[str, object]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_QUERY = {
    "oneOf": [
        _node(group={"type": "string", "minLength": 1}),
        _node(**{"and": _LIST}),
        _node(**{"or": _LIST}),
        _node(**{"not": _ANY}),
        _node(at_least={"type": "integer", "minimum": 1}, of=_LIST),
    ]
}

Query = Annotated[
    Any,
    Meta(
        description=(
            '`{"group": id or custom id}`, or of such: `{"and": [...]}`, `{"or": [...]}`, '
            '`{"not": {...}}`, `{"at_least": 2, "of": [...]}`; '
            f"{DEPTH} levels and {LEAVES:,} groups at most. `not` is of all profiles of which "
            "anything is known."
        ),
        extra_json_schema=_QUERY,
    ),
]


class SaveAs(msgspec.Struct, forbid_unknown_fields=True):
    """The static group that is to have those as members of whom a query is true now."""

    name: Annotated[str, Meta(min_length=1, max_length=255, extra_json_schema=NO_NUL)]
    description: Annotated[str, Meta(max_length=2000, extra_json_schema=NO_NUL)] | None = None
    attributes: Attributes = []
    custom_id: (
        Annotated[str, Meta(min_length=1, max_length=255, extra_json_schema=NO_NUL)] | None
    ) = None

    def __post_init__(self) -> None:
        """Refuse NUL; msgspec says where."""
        if any("\0" in (text or "") for text in (self.name, self.description, self.custom_id)):
            raise ValueError("NUL characters are not allowed")


class QueryBody(msgspec.Struct, forbid_unknown_fields=True):
    """A query, and what is wanted of it: a page, or that it is saved as a group."""

    query: Query
    page_size: (
        Annotated[int, Meta(ge=1, le=PAGE_SIZE_LIMIT, description="Rows of a page.")]
        # In JSON 20.0 is an integer, too.
        | Annotated[float, Meta(ge=1, le=PAGE_SIZE_LIMIT, multiple_of=1)]
        | UnsetType
    ) = UNSET
    fields: (
        Annotated[str, Meta(description="Names of fields, with commas: only these are given.")]
        | UnsetType
    ) = UNSET
    save_as: SaveAs | UnsetType = UNSET


class CursorQuery(msgspec.Struct):
    """Query parameters of a page of a query."""

    cursor: Annotated[
        str | None, Meta(description="Position, from `next` or `previous` of a page.")
    ] = None


class MatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """A profile of which a query is true: all of these, or those that `fields` names."""

    id: UuidText | UnsetType = UNSET
    nickname: str | UnsetType = UNSET
    custom_id: str | UnsetType | None = UNSET


class Queries(Resource):
    """`applications/{cid}/profile-groups/query/`."""

    @endpoint(
        "members:read",
        body=QueryBody,
        query=CursorQuery,
        reply=PageBody[MatchBody],
        errors=(HTTPStatus.CONFLICT,),
        wire=Wire(accepted=GroupBody),
    )
    async def on_post(self, call: TenantCall, body: QueryBody, query: CursorQuery) -> object:
        """Ask who is in some groups, and not in others.

        `count` is exact, and so are the pages, for groups that do not change meanwhile; `next` and
        `previous` are asked for with the same body. With `save_as` those of whom the query is true
        become members of a new static group, which is answered with 202; its `status` says how far
        that is. That needs the scopes `groups:write` and `members:write`, too.
        """
        tree = parse_query(body.query)
        if body.save_as is not UNSET:
            return await _save(call, body, body.save_as, tree, query)
        fields = None if body.fields is UNSET else chosen(body.fields, MatchBody)
        named = fields is None or not {"nickname", "custom_id"}.isdisjoint(fields)
        size = PAGE_SIZE if body.page_size is UNSET else int(body.page_size)
        store = call.store.queries

        async def read(bound: Bound) -> tuple[Walk, Page[QueryRow]]:
            walk = walk_of(call, "query", query=bound.text)
            cut = walk.cut(query.cursor)
            return walk, await store.read_page(call.environment, bound, cut, size, named=named)

        walk, page = await store.with_bound(call.environment, tree, read)

        def make(rows: Sequence[QueryRow]) -> list[object]:
            bodies = [_body(row) for row in rows]
            if fields is None:
                return list(bodies)
            return [{name: getattr(body, name) for name in fields} for body in bodies]

        return walk.body(page, await stepwise(make, page.rows))


async def _save(
    call: TenantCall, body: QueryBody, save_as: SaveAs, tree: Tree, query: CursorQuery
) -> GroupBody:
    for scope in ("groups:write", "members:write"):
        call.require(scope)
    for name, given in (
        ("page_size", body.page_size),
        ("fields", body.fields),
        ("cursor", UNSET if query.cursor is None else query.cursor),
    ):
        if given is not UNSET:
            message = f"what is saved has no page: leave this out - at `$.{name}`"
            raise Invalid(message, name)
    new = NewGroup(
        name=save_as.name,
        description=save_as.description,
        attributes=stored(save_as.attributes),
        custom_id=save_as.custom_id,
        created_by=call.author,
    )
    group = await call.store.queries.save(call.environment, tree, new)
    call.response.status = HTTPStatus.ACCEPTED
    return await group_body(call, group)


def _body(row: QueryRow) -> MatchBody:
    profile_id = ids.text(row.id)
    return MatchBody(
        id=profile_id,
        nickname=row.nickname or f"Profile {profile_id[:8]}",
        custom_id=row.custom_id,
    )
