"""Audiences: the dynamic groups of a workspace, as the Group Identity face lists them.

Owns the shape of an audience (that of mParticle's Platform API) and its id. They are made and
changed as groups, on the other face: here they are looked at, and deleted.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from service import ids
from service.endpoint import Resource, endpoint, moment, stepwise
from service.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.admission import TenantCall
    from service.store_dynamic import Audience

AudienceId = Annotated[
    int, Meta(description="The environment's number times 2**32, and the group's number.")
]


class AudienceWorkspace(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The workspace that an audience is of."""

    id: int
    name: str
    data_type: Literal["workspace"] = "workspace"
    created_on: str


class AudienceBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A dynamic group as an audience. What Belong does not keep is empty.

    `size` is exact. While the status is `building`, users who were there before its rule tree are
    still being looked at.
    """

    id: AudienceId
    name: str
    external_name: str
    size: int
    status: Literal["building", "active"]
    is_calculated: bool = True
    added_last_24_hours: int
    """Users who became members in this hour of UTC or the 23 before it, as often as they did."""
    dropped_last_24_hours: int
    """Users who ceased to be."""
    workspaces: list[AudienceWorkspace]
    connected_outputs: list[Any] = []
    created_by: str | None
    last_modified_by: str | None
    last_modified_on: str
    data_type: Literal["audience"] = "audience"


class WorkspaceAudiences(Resource):
    """`/v1/workspace/{ws}/audiences`."""

    @endpoint("groups:read", reply=list[AudienceBody])
    async def on_get(self, call: TenantCall) -> list[AudienceBody]:
        """List the audiences of a workspace.

        All of them, the oldest first: the dynamic groups of production that are active.
        """
        return await _listed(call)


class Audiences(Resource):
    """`/v1/audiences`."""

    @endpoint("groups:read", reply=list[AudienceBody], errors=(HTTPStatus.BAD_REQUEST,))
    async def on_get(self, call: TenantCall) -> list[AudienceBody]:
        """List the audiences of the workspace that the token is for.

        Of a token that is for several, `?client_id=` names the application.
        """
        return await _listed(call)


class OneAudience(Resource):
    """`/v1/audiences/{aid}`."""

    @endpoint("groups:write", status=HTTPStatus.NO_CONTENT)
    async def on_delete(self, call: TenantCall, *, aid: str) -> None:
        """Delete an audience: the dynamic group that it is.

        One of another workspace is 404, as one that there is not; so is one that is inactive. Of a
        token that is for several workspaces, `?client_id=` names the application.
        """
        store, env = call.store, call.application.production
        named = ids.parse_audience_id(aid)
        if named is not None and named[0] == env.number:
            _, number = named
            group = (await store.groups.read_groups(env, [number], cached=False)).get(number)
            if group is not None and group.is_dynamic:
                await store.groups.delete_group(env, group.id)
                return
        raise NotFound("The specified resource was not found: there is no such audience.")


async def _listed(call: TenantCall) -> list[AudienceBody]:
    application = call.application
    workspace = AudienceWorkspace(
        id=application.workspace_id,
        name=application.name,
        created_on=moment(application.created_at_us),
    )
    number = application.production.number

    def make(rows: Sequence[Audience]) -> list[AudienceBody]:
        return [_body(each, number, workspace) for each in rows]

    return await stepwise(make, await call.store.dynamic.audiences(application))


def _body(audience: Audience, environment: int, workspace: AudienceWorkspace) -> AudienceBody:
    group = audience.group
    return AudienceBody(
        id=ids.audience_id(environment, group.number),
        name=group.name,
        external_name=group.name,
        size=audience.size,
        status="building" if audience.status.state == "building" else "active",
        added_last_24_hours=audience.added,
        dropped_last_24_hours=audience.dropped,
        workspaces=[workspace],
        created_by=group.created_by,
        last_modified_by=group.modified_by,
        # Versions of a document are the times at which it was written, in us.
        last_modified_on=moment(group.version),
    )
