"""The examples of dynamic groups: of a rule tree, and what follows from it.

They go on where those of `examples_identity` end, on the same application: the group `gold` is
there, and Alice, who is not in it.
"""

from __future__ import annotations

from typing import Any

from service.examples import ALICE, APPLICATION, GOLD, ORIGIN, Example

_PRO: dict[str, Any] = {"attribute": "plan", "condition": "is", "value": "pro"}
_MANY: dict[str, Any] = {"attribute": "seats", "condition": "between", "value": [5, 12.5]}
_NOT_GOLD = {"operator": "NOT", "children": [{"group": GOLD["id"]}]}

_TREE = {"operator": "AND", "children": [{"operator": "OR", "children": [_PRO, _MANY]}, _NOT_GOLD]}

_UPGRADE: dict[str, Any] = {
    "id": "c1f0a2d4-6e83-4b5b-9d27-0a8e5c7b3f46",
    "name": "Ready for gold",
    "is_active": True,
    "description": None,
    "profile_count": 0,
    "custom_id": "ready",
    "created_at": "2026-03-01T09:32:00.750000Z",
    "attributes": [],
    "membership_type": "dynamic",
    "rule_tree": _TREE,
    "status": {"state": "building", "done": 0, "total": 6},
}

_PROFILE: dict[str, Any] = {
    "id": ALICE["id"],
    "url": f"{ORIGIN}/api/v1/profiles/{ALICE['id']}/?client_id=demo",
    "client_id": "demo",
    "nickname": ALICE["nickname"],
    "created_at": "2026-03-01T09:30:12.000000Z",
    "custom_id": "alice",
    "custom_data": None,
    "attributes": [{"key": "plan", "value": "Pro"}],
    "points": 0,
    "reported_count": 0,
    "badges": [],
    "profile_groups_url": f"{ORIGIN}{APPLICATION}profiles/{ALICE['id']}/profile-groups/",
    "subscribe_channel": None,
    "chat_room_memberships_url": None,
}

_WIDER = {"attribute": "plan", "condition": "exists"}

EXAMPLES: tuple[Example, ...] = (
    Example(
        "create_group",
        "A dynamic group",
        "POST",
        "profile-groups/",
        201,
        _UPGRADE,
        body={
            "name": "Ready for gold",
            "custom_id": "ready",
            "membership_type": "dynamic",
            "rule_tree": {
                "operator": "AND",
                "children": [
                    {"operator": "OR", "children": [_PRO, _MANY]},
                    {"operator": "NOT", "children": [{"group": "gold"}]},
                ],
            },
        },
    ),
    Example(
        "create_group",
        "A rule tree that does not fit",
        "POST",
        "profile-groups/",
        400,
        {
            "rule_tree": [
                (
                    "A number of at most 30 digits and 15 decimals is wanted here, or the text of "
                    "one, and this is `many` - at `$.rule_tree.children[0].value`"
                )
            ]
        },
        body={
            "name": "Many seats",
            "membership_type": "dynamic",
            "rule_tree": {
                "operator": "AND",
                "children": [{"attribute": "seats", "condition": "greater_than", "value": "many"}],
            },
        },
    ),
    Example(
        "update_profile",
        "An attribute by which she joins",
        "PATCH",
        "/api/v1/profiles/alice/?client_id=demo",
        200,
        _PROFILE,
        body={"attributes": [{"key": "plan", "value": "Pro"}]},
    ),
    Example(
        "list_groups",
        "Dynamic groups",
        "GET",
        "profile-groups/?membership_type=dynamic&fields=name,profile_count",
        200,
        {
            "count": 1,
            "next": None,
            "previous": None,
            "results": [{"name": "Ready for gold", "profile_count": 1}],
        },
    ),
    Example(
        "explain_member",
        "Why she is a member",
        "GET",
        "profile-groups/ready/members/alice/explain/",
        200,
        {
            "member": True,
            "tree": [
                {"leaf": _PRO, "value": "Pro", "result": True},
                {"leaf": _MANY, "value": None, "result": False},
                {"leaf": {"group": GOLD["id"]}, "value": False, "result": False},
            ],
        },
    ),
    Example(
        "preview_group",
        "Another rule tree for it",
        "POST",
        "profile-groups/preview/",
        200,
        {
            "joining": 0,
            "leaving": 1,
            "staying": 0,
            "samples": {"joining": [], "leaving": [ALICE["id"]]},
        },
        body={"rule_tree": _MANY, "group_id": "ready"},
    ),
    Example(
        "delete_group",
        "A group that a rule tree names",
        "DELETE",
        "profile-groups/gold/",
        409,
        {
            "detail": (
                "The group cannot be deleted, for rule trees of dynamic groups name it. Delete "
                f"those first, or change their trees: {_UPGRADE['id']}."
            ),
            "error_code": "conflict",
        },
    ),
    Example(
        "update_group",
        "Another rule tree",
        "PATCH",
        "profile-groups/ready/",
        200,
        _UPGRADE | {"rule_tree": _WIDER, "profile_count": 1},
        body={"rule_tree": _WIDER},
    ),
    Example(
        "add_members",
        "Of a dynamic group",
        "POST",
        "profile-groups/ready/members/",
        409,
        {
            "detail": "The members of a dynamic group follow its rule tree, and are not written.",
            "error_code": "conflict",
        },
        body={"custom_ids": ["alice"]},
    ),
)
