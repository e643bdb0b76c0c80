"""The examples of queries: over the groups of `examples` and `examples_dynamic`.

They go on where those end: Alice is in the group `ready`, and nobody is in `gold`.
"""

from __future__ import annotations

from typing import Any

from service.examples import ALICE, Example

_QUERY = {"and": [{"group": "ready"}, {"not": {"group": "gold"}}]}

_SAVED: dict[str, Any] = {
    "id": "5e0b7c42-93d1-4f6a-8a57-c2d4e9f1b360",
    "name": "Ready, not gold",
    "is_active": True,
    "description": None,
    "profile_count": 0,
    "custom_id": "spring-mailing",
    "created_at": "2026-03-01T09:33:10.250000Z",
    "attributes": [],
    "membership_type": "static",
    "status": {"state": "building", "done": 0, "total": 6},
}

EXAMPLES: tuple[Example, ...] = (
    Example(
        "query_groups",
        "In one group and not in another",
        "POST",
        "profile-groups/query/",
        200,
        {
            "count": 1,
            "next": None,
            "previous": None,
            "results": [{name: ALICE[name] for name in ("id", "nickname", "custom_id")}],
        },
        body={"query": _QUERY, "page_size": 100},
    ),
    Example(
        "query_groups",
        "A query that is saved as a group",
        "POST",
        "profile-groups/query/",
        202,
        _SAVED,
        body={
            "query": _QUERY,
            "save_as": {"name": _SAVED["name"], "custom_id": _SAVED["custom_id"]},
        },
    ),
    Example(
        "query_groups",
        "A query over a group that is not there",
        "POST",
        "profile-groups/query/",
        404,
        {
            "detail": "There is no group 'platinum' - at `$.query.or[1].group`",
            "error_code": "not_found",
        },
        body={"query": {"or": [{"group": "gold"}, {"group": "platinum"}]}},
    ),
)
