"""Explanations: why a profile is a member of a group, or is not, leaf by leaf of its rule tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from service.endpoint import Resource, endpoint
from service.errors import NotFound
from service.filters import Whether, require_admin
from service.rule_trees import rule_of, written

if TYPE_CHECKING:
    from service.admission import TenantCall

Leaf = Annotated[
    msgspec.Raw,
    Meta(
        extra_json_schema={
            "anyOf": [
                {"$ref": "#/components/schemas/RuleOfAttribute"},
                {"$ref": "#/components/schemas/RuleOfGroup"},
            ]
        }
    ),
]
Value = Annotated[
    Any,
    Meta(
        description="Of the attribute; of a group, whether the profile is in it.",
        extra_json_schema={
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
                {"type": "boolean"},
                {"type": "null"},
            ]
        },
    ),
]


class ExplainedLeaf(msgspec.Struct, forbid_unknown_fields=True):
    """A leaf of a rule tree, what the profile has there, and whether that fulfils it."""

    leaf: Leaf
    value: Value
    result: bool


class Explanation(msgspec.Struct, forbid_unknown_fields=True):
    """Whether the profile is a member, and every leaf of the tree in order.

    The tree of a static group is empty. A profile of which nothing is known is in no dynamic group,
    whatever its leaves say.
    """

    member: bool
    tree: list[ExplainedLeaf]


class MemberExplanation(Resource):
    """`applications/{cid}/profile-groups/{gid}/members/{pid}/explain/`."""

    @endpoint("members:read", query=Whether, reply=Explanation, also=("profiles:read",))
    async def on_get(self, call: TenantCall, query: Whether, *, gid: str, pid: str) -> Explanation:
        """Explain why a profile is a member of a group, or why not.

        It shows attributes of the profile, so the token needs the scope `profiles:read`, too. A
        profile need not be a member, nor known.
        """
        require_admin(call, query.include_inactive)
        env = call.environment
        group = await call.store.groups.get_group(env, gid, include_inactive=query.include_inactive)
        profile_id = await call.profile_id(pid)
        if profile_id is None:
            raise NotFound
        if not group.is_dynamic:
            found = await call.store.members.get_member(
                env, group.number, profile_id, include_inactive=query.include_inactive
            )
            return Explanation(member=found is not None, tree=[])
        member, leaves = await call.store.settling.explain(env, rule_of(group), profile_id)
        return Explanation(
            member=member,
            tree=[ExplainedLeaf(written(each.leaf), each.value, each.result) for each in leaves],
        )
