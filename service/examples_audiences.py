"""The examples of audiences: the dynamic group of `examples_dynamic`, on the other face.

They go on where those end, on the same application: Alice is in the group.
"""

from __future__ import annotations

from typing import Any

from service.examples import CREDENTIAL, Example

_ID = 4_294_967_300
"""That of the fourth group of environment 1."""
_AUTHOR = f"client_id:{CREDENTIAL['client_id']}"

_AUDIENCE: dict[str, Any] = {
    "id": _ID,
    "name": "Ready for gold",
    "external_name": "Ready for gold",
    "size": 1,
    "status": "building",
    "is_calculated": True,
    "added_last_24_hours": 1,
    "dropped_last_24_hours": 0,
    "workspaces": [
        {
            "id": 1,
            "name": "demo",
            "data_type": "workspace",
            "created_on": "2026-03-01T09:30:00.125Z",
        }
    ],
    "connected_outputs": [],
    "created_by": _AUTHOR,
    "last_modified_by": _AUTHOR,
    "last_modified_on": "2026-03-01T09:32:01.125Z",
    "data_type": "audience",
}

EXAMPLES: tuple[Example, ...] = (
    Example(
        "list_workspace_audiences",
        "The dynamic group as an audience",
        "GET",
        "/v1/workspace/1/audiences",
        200,
        [_AUDIENCE],
    ),
    Example(
        "list_audiences",
        "Those of the token's workspace",
        "GET",
        "/v1/audiences",
        200,
        [_AUDIENCE],
    ),
    Example(
        "resolve_user",
        "The audiences that Alice is in",
        "POST",
        "/userprofile/v1/resolve/1/1/1?fields=audience_memberships",
        200,
        {
            "mpid": None,
            "created_timestamp_ms": 1772357412000,
            "last_stored_timestamp_ms": 1772357520875,
            "is_opted_out": False,
            "limit_ad_tracking": None,
            "account_userattributes": None,
            "audience_memberships": [
                {
                    "audience_id": _ID,
                    "audience_name": "Ready for gold",
                    "expiration_timestamp_ms": None,
                }
            ],
        },
        body={"identity": {"type": "customer_id", "value": "alice"}},
    ),
    Example(
        "delete_audience",
        "An audience",
        "DELETE",
        f"/v1/audiences/{_ID}",
        204,
    ),
    Example(
        "delete_audience",
        "An audience that does not exist",
        "DELETE",
        f"/v1/audiences/{_ID}",
        404,
        {
            "statusCode": 404,
            "errors": [
                {
                    "code": "NOT_FOUND",
                    "message": ("The specified resource was not found: there is no such audience."),
                }
            ],
        },
    ),
)
