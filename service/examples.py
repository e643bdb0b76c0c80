"""The examples of the OpenAPI document: what is sent, and what is answered.

They tell one story, from the first to the last, on an application `demo` that is new: a test plays
it and compares. Ids, times and tokens are others there, but the same ones wherever they are the
same here.

The first examples of an operation give it its name, which other people's generated code will have:
a name, once published, stays.
"""

from __future__ import annotations

from typing import Any

import msgspec

ORIGIN = "https://belong.example"
"""Stands for scheme and host, as the client used them."""

APPLICATION = "/api/v1/applications/demo/"

ADMIN = "(admin)"
"""Stands for the token of an admin."""


class Example(msgspec.Struct, frozen=True):
    """One call and its answer."""

    operation: str
    """The operation's name (`operationId`)."""
    summary: str
    method: str
    address: str
    """The path below the application, or the whole one; with the query string."""
    status: int
    reply: Any = None
    body: Any = None
    media: str = "application/json"
    """The media type of `body`."""
    token: str | None = None
    """The token that is sent. Else an admin's, where the operation wants one."""
    whole: bool = True
    """Whether `reply` is all of the answer. Else a document has more members, a text more lines."""

    @property
    def path(self) -> str:
        """The path, with the query string."""
        return self.address if self.address.startswith("/") else APPLICATION + self.address

    @property
    def title(self) -> str:
        """What the document calls it."""
        return "_".join(self.summary.lower().replace("`", "").rstrip(".").split())


ALICE = {
    "id": "174cc6dd-c1da-42d2-886e-c48b2bf803a8",
    "nickname": "Profile 174cc6dd",
    "custom_id": "alice",
    "membership_created_at": "2026-03-01T09:30:12.125000Z",
}

_ADA: dict[str, Any] = {
    "id": "0c9d5b1e-8f4a-4c72-b3e6-1a2d7f9c5e44",
    "url": f"{ORIGIN}/api/v1/profiles/0c9d5b1e-8f4a-4c72-b3e6-1a2d7f9c5e44/?client_id=demo",
    "client_id": "demo",
    "nickname": "Ada",
    "created_at": "2026-03-01T09:29:30.000001Z",
    "custom_id": None,
    "custom_data": None,
    "attributes": [],
    "points": 0,
    "reported_count": 0,
    "badges": [],
    "profile_groups_url": (
        f"{ORIGIN}{APPLICATION}profiles/0c9d5b1e-8f4a-4c72-b3e6-1a2d7f9c5e44/profile-groups/"
    ),
    "subscribe_channel": None,
    "chat_room_memberships_url": None,
}
_AS_ADA = "eyJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJkZW1vIiwic3ViIjoiMGM5ZDViMWUifQ.c2lnbmVk"

_GRACE = _ADA | {
    "id": "5a7e2f10-3b6c-4d8e-9f01-7c4b2a6d8e35",
    "url": f"{ORIGIN}/api/v1/profiles/5a7e2f10-3b6c-4d8e-9f01-7c4b2a6d8e35/?client_id=demo",
    "nickname": "Grace",
    "created_at": "2026-03-01T09:29:40.000002Z",
    "custom_id": "grace",
    "attributes": [{"key": "plan", "value": "pro"}],
    "profile_groups_url": (
        f"{ORIGIN}{APPLICATION}profiles/5a7e2f10-3b6c-4d8e-9f01-7c4b2a6d8e35/profile-groups/"
    ),
}

GOLD = {
    "id": "7b9a6f0e-2b0c-4b8e-9f7e-0d6a3c1e5f11",
    "name": "Gold",
    "is_active": True,
    "description": "Customers of ten years",
    "profile_count": 0,
    "custom_id": "gold",
    "created_at": "2026-03-01T09:30:00.250000Z",
    "attributes": [{"key": "tier", "value": "1"}],
    "membership_type": "static",
}

_SILVER = {
    "id": "3e5d1c80-57c2-4c0f-8d39-5f0a1f3d9c22",
    "name": "Silver",
    "is_active": True,
    "description": None,
    "profile_count": 0,
    "custom_id": "silver",
    "created_at": "2026-03-01T09:30:01.500000Z",
    "attributes": [],
    "membership_type": "static",
}

_BOB = "d4b24ed2-f242-4a5a-9ae1-d9b7834f5a98"

_GOLD_OF_ALICE = {
    "group_id": GOLD["id"],
    "group_name": "Gold",
    "profile_count": 1,
    "is_active": True,
    "created_at": GOLD["created_at"],
    "custom_id": "gold",
}

CREDENTIAL = {
    "client_id": "5c1f7a90b4e2d8c3a6f01b27",
    "client_secret": "q7Vd1yZr0uJx3mKfTn9cWb5sEo8hLg2aPi6kRw4tYzM",
}


def _page(*results: object, count: int | None = None, after: str | None = None) -> dict[str, Any]:
    """Give a page; `after` is the address of the next one."""
    following = None if after is None else ORIGIN + APPLICATION + after
    total = len(results) if count is None else count
    return {"count": total, "next": following, "previous": None, "results": list(results)}


REFUSALS = {
    400: "A JSON body is required, and this one is empty.",
    401: "Authentication credentials were not provided: send Authorization: Bearer <token>.",
    403: "The token is not for the application 'demo'.",
    404: "Not found.",
    409: "profile group with custom_id 'gold' already exists.",
    413: "The body may have 8388608 bytes (8 MiB) at most.",
    415: "Bodies are taken as they are: send them without Content-Encoding.",
    429: "Too many requests: 1 a second are allowed here.",
    503: "The store has not answered yet.",
}
"""What is said with the statuses that many operations have in common."""

EXAMPLES: tuple[Example, ...] = (
    Example("get_health", "Alive", "GET", "/healthz", 200, {"status": "ok"}),
    Example("get_readiness", "Ready", "GET", "/readyz", 200, {"status": "ok"}),
    Example(
        "get_metrics",
        "Some of the lines",
        "GET",
        "/metrics",
        200,
        "# TYPE belong_http_requests_total counter\n",
        whole=False,
    ),
    Example(
        "create_token",
        "As a form",
        "POST",
        "/oauth/token",
        200,
        {
            "access_token": "eyJhbGciOiJIUzI1NiIsImtpZCI6IjEiLCJ0eXAiOiJhdCtqd3QifQ.eyJzdWIiOiIx",
            "expires_in": 28800,
            "token_type": "Bearer",
            "scope": "members:read",
        },
        body={"grant_type": "client_credentials", "scope": "members:read", **CREDENTIAL},
        media="application/x-www-form-urlencoded",
    ),
    Example(
        "create_token",
        "All scopes of the credential",
        "POST",
        "/oauth/token",
        200,
        {
            "access_token": "eyJhbGciOiJIUzI1NiIsImtpZCI6IjEiLCJ0eXAiOiJhdCtqd3QifQ.eyJzdWIiOiIy",
            "expires_in": 28800,
            "token_type": "Bearer",
            "scope": "groups:read members:read",
        },
        body={"grant_type": "client_credentials", **CREDENTIAL},
    ),
    Example(
        "create_token",
        "A wrong secret",
        "POST",
        "/oauth/token",
        401,
        {
            "error": "invalid_client",
            "error_description": "The client_id or client_secret is wrong.",
        },
        body={
            "grant_type": "client_credentials",
            "client_id": CREDENTIAL["client_id"],
            "client_secret": "forgotten",
        },
    ),
    Example(
        "create_token",
        "A scope that the credential does not have",
        "POST",
        "/oauth/token",
        400,
        {
            "error": "invalid_scope",
            "error_description": "The credential does not have groups:write.",
        },
        body={"grant_type": "client_credentials", "scope": "groups:write", **CREDENTIAL},
    ),
    Example(
        "get_application",
        "The application demo",
        "GET",
        APPLICATION,
        200,
        {
            "client_id": "demo",
            "name": "demo",
            "url": f"{ORIGIN}{APPLICATION}",
            "profile_url": f"{ORIGIN}{APPLICATION}profile/",
            "profile_groups_url": f"{ORIGIN}{APPLICATION}profile-groups/",
            "profile_detail_url_template": (
                f"{ORIGIN}/api/v1/profiles/{{profile_id}}/?client_id=demo"
            ),
            "api_polling_interval": None,
            "chat_room_detail_url_template": None,
            "chat_room_invitation_detail_url_template": None,
            "chat_rooms_invitations_url": None,
            "create_chat_room_url": None,
            "leaderboard_detail_url_template": None,
            "pinned_messages_url": None,
            "program_detail_url_template": None,
            "pubnub_heartbeat_interval": None,
            "pubnub_origin": None,
            "pubnub_presence_timeout": None,
            "pubnub_publish_key": None,
            "pubnub_subscribe_key": None,
        },
    ),
    Example(
        "create_profile",
        "Anonymous, with a nickname",
        "POST",
        "profile/",
        201,
        _ADA | {"access_token": _AS_ADA},
        body={"nickname": "Ada"},
    ),
    Example(
        "create_profile",
        "By a back end, with all there is",
        "POST",
        "profile/",
        201,
        _GRACE | {"access_token": "eyJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJkZW1vIn0.c2lnbmVkdG9v"},
        body={
            "nickname": "Grace",
            "custom_id": "grace",
            "attributes": [{"key": "plan", "value": "pro"}],
        },
        token=ADMIN,
    ),
    Example(
        "create_profile",
        "A custom id, without a token",
        "POST",
        "profile/",
        401,
        {
            "detail": (
                "This needs a token with the scope profiles:write. Without that an anonymous "
                "profile has a nickname and nothing else."
            ),
            "error_code": "not_authenticated",
        },
        body={"custom_id": "grace"},
    ),
    Example(
        "get_current_profile",
        "With the token of a profile",
        "GET",
        "profile/",
        200,
        _ADA,
        token=_AS_ADA,
    ),
    Example(
        "update_current_profile",
        "Another nickname",
        "PATCH",
        "profile/",
        200,
        _ADA | {"nickname": "Ada L."},
        body={"nickname": "Ada L."},
        token=_AS_ADA,
    ),
    Example(
        "get_profile",
        "A profile by its custom id",
        "GET",
        "/api/v1/profiles/grace/?client_id=demo",
        200,
        _GRACE,
    ),
    Example(
        "update_profile",
        "Other attributes",
        "PATCH",
        "/api/v1/profiles/grace/?client_id=demo",
        200,
        _GRACE | {"attributes": [{"key": "plan", "value": "free"}]},
        body={"attributes": [{"key": "plan", "value": "free"}]},
    ),
    Example(
        "create_group",
        "A group with an attribute",
        "POST",
        "profile-groups/",
        201,
        GOLD,
        body={
            "name": "Gold",
            "description": "Customers of ten years",
            "custom_id": "gold",
            "attributes": [{"key": "tier", "value": "1"}],
        },
    ),
    Example(
        "create_group",
        "A custom id that is taken",
        "POST",
        "profile-groups/",
        409,
        {"detail": "profile group with custom_id 'gold' already exists.", "error_code": "conflict"},
        body={"name": "Gold again", "custom_id": "gold"},
    ),
    Example(
        "create_group",
        "A name that is empty",
        "POST",
        "profile-groups/",
        400,
        {"name": ["Expected `str` of length >= 1 - at `$.name`"]},
        body={"name": ""},
    ),
    Example(
        "create_group_as",
        "The custom id in the path",
        "POST",
        "profile-groups/silver/",
        201,
        _SILVER,
        body={"name": "Silver"},
    ),
    Example(
        "list_groups",
        "Groups with an attribute",
        "GET",
        "profile-groups/?attributes=tier:1",
        200,
        _page(GOLD),
    ),
    Example(
        "list_groups",
        "The first page, of names alone",
        "GET",
        "profile-groups/?page_size=1&fields=id,name",
        200,
        _page(
            {"id": GOLD["id"], "name": "Gold"},
            count=2,
            after="profile-groups/?page_size=1&fields=id,name&cursor=9fJ0SkqmpcZ7Yw3v0b1XkQIAAA",
        ),
    ),
    Example("get_group", "A group by its custom id", "GET", "profile-groups/gold/", 200, GOLD),
    Example(
        "get_group",
        "A group that does not exist",
        "GET",
        "profile-groups/bronze/",
        404,
        {"detail": "Not found.", "error_code": "not_found"},
    ),
    Example(
        "replace_group",
        "Another name",
        "PUT",
        "profile-groups/silver/",
        200,
        _SILVER | {"name": "Silver and above"},
        body={"name": "Silver and above"},
    ),
    Example(
        "update_group",
        "Other attributes",
        "PATCH",
        "profile-groups/silver/",
        200,
        _SILVER | {"name": "Silver and above", "attributes": [{"key": "tier", "value": "2"}]},
        body={"attributes": [{"key": "tier", "value": "2"}]},
    ),
    Example(
        "add_members",
        "By custom id",
        "POST",
        "profile-groups/gold/members/",
        200,
        {"successfully_added": ["alice"], "already_added": [], "invalid_ids": []},
        body={"custom_ids": ["alice"]},
    ),
    Example(
        "add_members",
        "By id, one of them malformed",
        "POST",
        "profile-groups/silver/members/",
        200,
        {
            "successfully_added": [_BOB],
            "already_added": [],
            "invalid_ids": ["nobody"],
        },
        body={"profile_ids": [_BOB, "nobody"]},
    ),
    Example(
        "replace_members",
        "These and nobody else",
        "PUT",
        "profile-groups/silver/members/",
        200,
        {
            "added": ["e2a1c6b4-0d57-4f3e-9a18-6c5b7d8e9f01"],
            "removed": [_BOB],
            "unchanged": 0,
            "invalid_ids": [],
        },
        body={"profile_ids": ["e2a1c6b4-0d57-4f3e-9a18-6c5b7d8e9f01"]},
    ),
    Example(
        "list_members",
        "Everybody in a group",
        "GET",
        "profile-groups/gold/members/",
        200,
        _page(ALICE),
    ),
    Example(
        "get_member",
        "A membership",
        "GET",
        "profile-groups/gold/members/alice/",
        200,
        ALICE,
    ),
    Example(
        "list_profile_groups",
        "Groups of a profile",
        "GET",
        "profiles/alice/profile-groups/",
        200,
        _page(_GOLD_OF_ALICE),
    ),
    Example(
        "check_members",
        "A member, not a member, no such group",
        "POST",
        "memberships/check/",
        200,
        {"results": [True, False, None]},
        body={
            "pairs": [
                {"custom_id": "alice", "group_id": "gold"},
                {"profile_id": _BOB, "group_id": GOLD["id"]},
                {"custom_id": "alice", "group_id": "bronze"},
            ]
        },
    ),
    Example(
        "change_members",
        "A removal, an addition, and a line that does not fit",
        "POST",
        "memberships/bulk/",
        200,
        '{"line":3,"status":"invalid","detail":"Not found."}\n'
        '{"done":true,"lines":3,"added":1,"already_added":0,"removed":1,"not_member":0,"failed":1}'
        "\n",
        body='{"op":"remove","group_id":"gold","custom_id":"alice"}\n'
        '{"op":"add","group_id":"gold","custom_id":"alice"}\n'
        '{"op":"add","group_id":"bronze","custom_id":"alice"}\n',
        media="application/x-ndjson",
    ),
    Example(
        "remove_member",
        "One member",
        "DELETE",
        "profile-groups/gold/members/alice/",
        204,
    ),
    Example(
        "remove_members",
        "Several members",
        "DELETE",
        "profile-groups/silver/members/",
        204,
        body={"profile_ids": [_BOB]},
    ),
    Example(
        "erase_profile",
        "A profile",
        "DELETE",
        "/api/v1/profiles/grace/?client_id=demo",
        200,
        {
            "id": _GRACE["id"],
            "memberships": 0,
            "attributes": 1,
            "identities": 1,
            "instances": 0,
        },
    ),
    Example("delete_group", "A group", "DELETE", "profile-groups/silver/", 204),
    Example(
        "get_openapi",
        "This document",
        "GET",
        "/openapi.json",
        200,
        {"openapi": "3.1.1"},
        whole=False,
    ),
    Example(
        "get_docs",
        "The page",
        "GET",
        "/docs",
        200,
        '<!doctype html>\n<html lang="en">\n',
        whole=False,
    ),
    Example(
        "get_docs_file",
        "A stylesheet",
        "GET",
        "/docs/index.css",
        200,
        "html {\n    box-sizing: border-box;\n",
        whole=False,
    ),
)
