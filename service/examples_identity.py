"""The examples of the Group Identity face: the story of John and Jane, who share an address.

It goes on where the one of `examples` ends, on the same application: its workspace is 1.
"""

from __future__ import annotations

from typing import Any

from service.examples import CREDENTIAL, ORIGIN, Example

DEFINITIONS = "/platform/workspaces/1/groups"

_DOCUMENTED = "users who share the same physical address"

_HOUSEHOLD: dict[str, Any] = {
    "id": "household",
    "description": _DOCUMENTED,
    "source_user_attribute": "$address",
    "attributes": [{"id": "has_dog", "type": "boolean_or"}],
    "created_on": "2026-03-01T09:31:00.250Z",
    "created_by": f"client_id:{CREDENTIAL['client_id']}",
    "last_modified_on": "2026-03-01T09:31:00.250Z",
    "last_modified_by": f"client_id:{CREDENTIAL['client_id']}",
}

_SHARED = [{"id": "has_dog", "type": "boolean_or"}, {"id": "$city", "type": "latest"}]

_CHANGED = _HOUSEHOLD | {
    "description": "A household",
    "last_modified_on": "2026-03-01T09:31:01.375Z",
}

_SET = _CHANGED | {"attributes": _SHARED, "last_modified_on": "2026-03-01T09:31:02.125Z"}

_JOHN = 7301529486013265920

_JOHN_ID = "9d0f3c5a-6b1e-4f27-8c94-2e7a5b8d1f60"
_JANE = 2885170341268734104
_JANE_ID = "41b8e7d2-90ac-4e6f-b3d5-7c2f1a9e0846"

_INSTANCE = "8f1c2ab07d9e4463b5d0e7f2a6c41938"

_FROM_JOHN = {
    "from": {"profile_id": _JOHN_ID, "mpid": _JOHN},
    "set_at": "2026-03-01T09:31:00.500Z",
}

_MEMBERS = [{"id": _JOHN_ID, "mpid": _JOHN}, {"id": _JANE_ID, "mpid": _JANE}]

_MAIN_STREET: dict[str, Any] = {
    "id": _INSTANCE,
    "value": "123 Main St",
    "environment": "production",
    "size": 2,
    "excluded_count": 0,
    "overflow": False,
    "members": _MEMBERS,
    "members_url": f"{ORIGIN}{DEFINITIONS}/household/instances/{_INSTANCE}/members",
    "attributes": {"has_dog": "true", "$city": "Oakland"},
    "explain": {
        "has_dog": {"value": "true", **_FROM_JOHN},
        "$city": {"value": "Oakland", **_FROM_JOHN},
    },
}

_JOB = {"id": "d6a84c1f-27e9-4b3a-8f50-91c7e2b4a6d3", "state": "queued", "done": 0, "total": 0}

_JOHN_SEEN: dict[str, Any] = {
    "mpid": _JOHN,
    "created_timestamp_ms": 1772357460500,
    "last_stored_timestamp_ms": 1772357460750,
    "is_opted_out": False,
    "limit_ad_tracking": None,
    "account_userattributes": None,
}

_FIELDS = "fields=user_identities,user_attributes"

REFUSALS = {
    400: "A JSON body is required, and this one is empty.",
    401: "Authentication credentials were not provided: send Authorization: Bearer <token>.",
    403: "The token is not for the workspace 2.",
    404: "The group definition 'family' was not found.",
    413: "The body may have 8388608 bytes (8 MiB) at most.",
    415: "Bodies are taken as they are: send them without Content-Encoding.",
    422: "A group definition with the id 'household' exists already.",
    429: "Too many requests: 1 a second are allowed here.",
    503: "The store has not answered yet.",
}
"""What is said with the statuses that many operations have in common."""


def _refused(status: int, code: str, message: str) -> dict[str, Any]:
    return {"statusCode": status, "errors": [{"code": code, "message": message}]}


EXAMPLES: tuple[Example, ...] = (
    Example(
        "create_definition",
        "Households, where somebody may have a dog",
        "POST",
        DEFINITIONS,
        200,
        _HOUSEHOLD,
        body={name: _HOUSEHOLD[name] for name in list(_HOUSEHOLD)[:4]},
    ),
    Example(
        "create_definition",
        "An id that is taken",
        "POST",
        DEFINITIONS,
        422,
        _refused(
            422, "VALIDATION_ERROR", "A group definition with the id 'household' exists already."
        ),
        body={"id": "household", "source_user_attribute": "$zip"},
    ),
    Example(
        "list_definitions",
        "All definitions of a workspace",
        "GET",
        DEFINITIONS,
        200,
        [_HOUSEHOLD],
    ),
    Example(
        "get_definition",
        "One definition",
        "GET",
        f"{DEFINITIONS}/household",
        200,
        _HOUSEHOLD,
    ),
    Example(
        "get_definition",
        "A definition that does not exist",
        "GET",
        f"{DEFINITIONS}/family",
        404,
        _refused(404, "NOT_FOUND", REFUSALS[404]),
    ),
    Example(
        "update_definition",
        "Another description",
        "PUT",
        f"{DEFINITIONS}/household",
        200,
        _CHANGED,
        body={"description": "A household"},
    ),
    Example(
        "update_definition",
        "All attributes anew",
        "PUT",
        f"{DEFINITIONS}/household",
        200,
        _SET,
        body={"attributes": _SHARED},
    ),
    Example(
        "upload_events",
        "John, who has a dog",
        "POST",
        "/v2/events",
        202,
        body={
            "environment": "production",
            "mpid": _JOHN,
            "user_identities": {"customerid": "john-1", "email": "john@example.com"},
            "user_attributes": {"$address": "123 Main St", "has_dog": True, "$City": "Oakland"},
        },
    ),
    Example(
        "upload_events",
        "Nobody who could be meant",
        "POST",
        "/v2/events",
        400,
        _refused(
            400,
            "BAD_REQUEST",
            "No user ID provided: a batch names its user by `mpid` or `user_identities`.",
        ),
        body={"user_attributes": {"has_dog": True}},
    ),
    Example(
        "upload_bulk_events",
        "Jane at the same address, and Bob elsewhere",
        "POST",
        "/v2/bulkevents",
        202,
        body=[
            {
                "user_identities": {"customerid": "jane-1", "email": "jane@example.com"},
                "user_attributes": {"$address": "123 Main St"},
                "source_request_id": "3b5a",
            },
            {
                "user_identities": {"customerid": "bob-1"},
                "user_attributes": {"$address": "9 Oak", "tags": ["new", "trial"]},
            },
        ],
    ),
    Example(
        "upload_historical_events",
        "What Jane's city was in 2023",
        "POST",
        "/v2/bulkevents/historical",
        202,
        body=[
            {
                "user_identities": {"customerid": "jane-1"},
                "user_attributes": {"$city": "Fresno"},
                "events": [
                    {
                        "event_type": "user_attribute_change",
                        "data": {
                            "user_attribute_name": "$city",
                            "new": "Fresno",
                            "timestamp_unixtime_ms": 1700000000000,
                        },
                    }
                ],
            }
        ],
    ),
    Example(
        "list_instances",
        "The household of an address",
        "GET",
        f"{DEFINITIONS}/household/instances?value=123+Main+St",
        200,
        {"count": 1, "next": None, "previous": None, "results": [_MAIN_STREET]},
    ),
    Example(
        "get_instance",
        "Who lives there, and what they share",
        "GET",
        f"{DEFINITIONS}/household/instances/{_INSTANCE}",
        200,
        _MAIN_STREET,
    ),
    Example(
        "list_instance_members",
        "Everybody in it",
        "GET",
        f"{DEFINITIONS}/household/instances/{_INSTANCE}/members",
        200,
        _MEMBERS,
    ),
    Example(
        "get_user",
        "John by mpid",
        "GET",
        f"/userprofile/v1/1/1/1/{_JOHN}?{_FIELDS}",
        200,
        _JOHN_SEEN
        | {
            "user_identities": [
                {"type": "customer_id", "encoding": "none", "value": "john-1"},
                {"type": "email", "encoding": "none", "value": "john@example.com"},
            ],
            "user_attributes": {
                "$address": "123 Main St",
                "$city": "Oakland",
                "has_dog": "true",
                "household:$city": "Oakland",
                "household:has_dog": "true",
            },
        },
    ),
    Example(
        "get_user",
        "A user that does not exist",
        "GET",
        f"/userprofile/v1/1/1/1/1?{_FIELDS}",
        404,
        _refused(404, "NOT_FOUND", "The specified resource was not found: there is no such user."),
    ),
    Example(
        "read_user",
        "John as the documents write it",
        "POST",
        f"/userprofile/v1/1/1/1/{_JOHN}?fields=audience_memberships",
        200,
        _JOHN_SEEN | {"audience_memberships": []},
        body={"environment_type": "production"},
    ),
    Example(
        "resolve_user",
        "Jane by her customer id",
        "POST",
        "/userprofile/v1/resolve/1/1/1?fields=user_attributes",
        200,
        {
            "mpid": _JANE,
            "created_timestamp_ms": 1772357461500,
            "last_stored_timestamp_ms": 1772357461750,
            "is_opted_out": False,
            "limit_ad_tracking": None,
            "account_userattributes": None,
            "user_attributes": {
                "$address": "123 Main St",
                "$city": "Fresno",
                "household:$city": "Oakland",
                "household:has_dog": "true",
            },
        },
        body={
            "environment_type": "production",
            "identity": {"type": "customer_id", "value": "jane-1"},
        },
    ),
    Example(
        "recompute_definition",
        "Now, and not on Monday",
        "POST",
        f"{DEFINITIONS}/household/recompute",
        202,
        _JOB,
    ),
    Example("list_jobs", "What is to be done", "GET", "/platform/workspaces/1/jobs", 200, [_JOB]),
    Example(
        "get_job",
        "How far it is",
        "GET",
        f"/platform/workspaces/1/jobs/{_JOB['id']}",
        200,
        _JOB,
    ),
    Example(
        "delete_definition",
        "A definition, and what it made",
        "DELETE",
        f"{DEFINITIONS}/household",
        204,
    ),
)
