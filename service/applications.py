"""The application resource: where a client learns every other address.

The SDK of the Profile Groups API reads it first, without a token, and takes its URLs as they are.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from service.endpoint import API, Resource, endpoint
from service.errors import NotFound
from service.paging import origin

if TYPE_CHECKING:
    from service.admission import Call


class ApplicationBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An application. What this server does not offer is null, as the SDK's type has it."""

    client_id: str
    name: str
    url: str
    profile_url: str
    profile_groups_url: str
    profile_detail_url_template: str
    api_polling_interval: int | None = None
    chat_room_detail_url_template: str | None = None
    chat_room_invitation_detail_url_template: str | None = None
    chat_rooms_invitations_url: str | None = None
    create_chat_room_url: str | None = None
    leaderboard_detail_url_template: str | None = None
    pinned_messages_url: str | None = None
    program_detail_url_template: str | None = None
    pubnub_heartbeat_interval: int | None = None
    pubnub_origin: str | None = None
    pubnub_presence_timeout: int | None = None
    pubnub_publish_key: str | None = None
    pubnub_subscribe_key: str | None = None


class OneApplication(Resource):
    """`applications/{cid}/`."""

    @endpoint(None, reply=ApplicationBody, errors=(HTTPStatus.SERVICE_UNAVAILABLE,))
    async def on_get(self, call: Call, *, cid: str) -> ApplicationBody:
        """Read an application. Public: the SDK asks for it before it has a token."""
        application = await call.backend.store.registry.application(cid)
        if application is None:
            raise NotFound
        name = quote(cid, safe="")
        base = origin(call.request, call.backend.config) + API
        return ApplicationBody(
            client_id=cid,
            name=application.name,
            url=f"{base}/applications/{name}/",
            profile_url=f"{base}/applications/{name}/profile/",
            profile_groups_url=f"{base}/applications/{name}/profile-groups/",
            # The SDK replaces every brace with one value, so there is one placeholder.
            profile_detail_url_template=f"{base}/profiles/{{profile_id}}/?client_id={name}",
        )
