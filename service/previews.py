"""Previews: whom a rule tree would make members of a dynamic group, before it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from service import ids
from service.endpoint import Resource, UuidText, endpoint
from service.errors import Invalid, NotFound
from service.rule_trees import RuleTreeJson, read_tree

if TYPE_CHECKING:
    from service.admission import TenantCall

SAMPLES = 20
"""Profiles that are named of those who would join, and of those who would leave."""


class PreviewBody(msgspec.Struct, forbid_unknown_fields=True):
    """A rule tree, and the dynamic group that it is to be compared with: without one, with none."""

    rule_tree: RuleTreeJson
    group_id: Annotated[
        str | None, Meta(description="A dynamic group, by its id or custom id.")
    ] = None


class Samples(msgspec.Struct, forbid_unknown_fields=True):
    """Some of those who would join, and of those who would leave, by their ids."""

    joining: Annotated[list[UuidText], Meta(max_length=SAMPLES)]
    leaving: Annotated[list[UuidText], Meta(max_length=SAMPLES)]


class PreviewReply(msgspec.Struct, forbid_unknown_fields=True):
    """How many would join, how many would leave, and how many members would stay."""

    joining: int
    leaving: int
    staying: int
    samples: Samples


class Preview(Resource):
    """`applications/{cid}/profile-groups/preview/`."""

    @endpoint("members:read", body=PreviewBody, reply=PreviewReply, also=("profiles:read",))
    async def on_post(self, call: TenantCall, body: PreviewBody) -> PreviewReply:
        """Tell whom a rule tree would make members, and change nothing.

        Every profile is looked at, so this takes as long as it takes to build a group. It tells of
        attributes of profiles, so the token needs the scope `profiles:read`, too.
        """
        env = call.environment
        tree = read_tree(body.rule_tree)
        group = None
        if body.group_id is not None:
            try:
                group = await call.store.groups.get_group(env, body.group_id)
            except NotFound as error:
                raise _no_group("there is no such group") from error
            if not group.is_dynamic:
                raise _no_group("members of this group follow no rule tree, it is `static`")
        number = None if group is None else group.number
        rule = await call.store.dynamic.bound(env, tree, number or 0)
        found = await call.store.settling.preview(env, rule, number)
        return PreviewReply(
            joining=found.joining,
            leaving=found.leaving,
            staying=found.staying,
            samples=Samples(
                joining=[ids.text(each) for each in found.joining_samples],
                leaving=[ids.text(each) for each in found.leaving_samples],
            ),
        )


def _no_group(message: str) -> Invalid:
    return Invalid(f"{message} - at `$.group_id`", "group_id")
