"""Dynamic groups over what the store has of facts, whoever wrote them, and what has to follow.

Facts are read from the store as they are kept; who is in a dynamic group is worked out from them by
`tests/naive_rules.py`, and compared with both directions of what is stored, counts included.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from service import keys
from service.errors import Conflict, NotFound
from service.groups import GroupChanges, GroupQuery, NewGroup
from service.rules import parse_tree
from tests import naive_rules
from tests.face import of_profile
from tests.households import as_stored
from tests.naive import Group, Share, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from service.environment import Environment
    from service.store import Store

WITH_A_DOG = {"attribute": "household:dog", "condition": "is", "value": True}


def leaf(name: str, condition: str, *value: object, **more: object) -> dict[str, Any]:
    """A leaf over an attribute."""
    made = {"attribute": name, "condition": condition}
    return made | ({"value": value[0]} if value else {}) | more


def all_of(*children: dict[str, Any]) -> dict[str, Any]:
    return {"operator": "AND", "children": list(children)}


def any_of(*children: dict[str, Any]) -> dict[str, Any]:
    return {"operator": "OR", "children": list(children)}


def no(child: dict[str, Any]) -> dict[str, Any]:
    return {"operator": "NOT", "children": [child]}


async def rule(store: Store, env: Environment, named: str, tree: dict[str, Any] | None) -> None:
    """Have a dynamic group of a custom id with this tree, or none of it without one."""
    if tree is None:
        with contextlib.suppress(NotFound):
            await store.groups.delete_group(env, named)
        return
    changes = GroupChanges(rule_tree=parse_tree(tree))
    try:
        await store.groups.update_group(env, named, changes)
    except NotFound:
        new = NewGroup(
            name=named, custom_id=named, membership_type="dynamic", rule_tree=parse_tree(tree)
        )
        try:
            await store.groups.create_group(env, new)
        except Conflict:
            # Somebody else was faster, and it has their tree now.
            await store.groups.update_group(env, named, changes)


async def dynamic_groups(store: Store, env: Environment) -> list[Any]:
    """All dynamic groups, as the directory has them now."""
    query = GroupQuery(membership_type="dynamic", include_inactive=True)
    page = await store.groups.list_groups(env, query, None, 1000)
    assert len(page.rows) == page.count
    return page.rows


async def memberships(
    store: Store, env: Environment, mixed: Iterable[bytes]
) -> dict[bytes, set[int]]:
    """What stands at profiles: the numbers of their groups."""
    wanted = list(mixed)
    held = await asyncio.gather(*(of_profile(store, env, "m", each) for each in wanted))
    return {
        each: {int(number) for number in found if number != b"d"}
        for each, found in zip(wanted, held, strict=True)
    }


async def members(store: Store, env: Environment, number: int) -> set[bytes]:
    """Who is listed as a member of a group (mixed ids); the count has to say as many."""
    found: list[bytes] = []
    cut = None
    while True:
        page = await store.members.list_members(env, number, cut, 500)
        found += [env.mixer.mix(row.id) for row in page.rows]
        cut = page.last
        if cut is None:
            break
    assert len(set(found)) == len(found) == page.count
    return set(found)


async def world_of(store: Store, env: Environment, mixed: Iterable[bytes]) -> World:
    """Everybody who has a record, with the facts that the store has, and what is defined."""
    rules = await store.definitions.reload(env)
    users = await asyncio.gather(*(as_stored(store, env, each) for each in mixed))
    there = await asyncio.gather(*(of_profile(store, env, "profile", each) for each in mixed))
    return World(
        [user for user, record in zip(users, there, strict=True) if record],
        tuple(
            Group(
                each.id,
                each.source_user_attribute,
                tuple(Share(one.id, one.type) for one in each.attributes),
            )
            for each in rules.definitions
        ),
        rules.limit,
    )


async def exact_groups(
    store: Store,
    env: Environment,
    mixed: Iterable[bytes],
    *,
    now_us: int | None = None,
    of: Callable[[dict[str, Any], bytes], bool] | None = None,
) -> dict[str, int]:
    """See to it that all dynamic groups have the members that follow from facts.

    `mixed` is everybody there is; `of` says of which tree and whom it has to be so already, where
    jobs have yet to run. Gives how many each group has, by name. Nothing may wait for the worker.
    """
    everybody = list(dict.fromkeys(mixed))
    now_us = time.time_ns() // 1000 if now_us is None else now_us
    world = await world_of(store, env, everybody)
    stored = await memberships(store, env, everybody)
    groups = await dynamic_groups(store, env)
    numbers = {group.number for group in groups}
    page = await store.groups.list_groups(
        env, GroupQuery(membership_type="static", include_inactive=True), None, 1000
    )
    static = {group.number: group.id for group in page.rows}
    inside = {
        each: {static[number] for number in held if number in static}
        for each, held in stored.items()
    }
    subjects = naive_rules.subjects(world, inside)
    sizes = {}
    for group in groups:
        tree = group.rule_tree
        there = {each for each, held in stored.items() if group.number in held}
        expected = {
            each for each, held in subjects.items() if naive_rules.holds(tree, held, now_us)
        }
        judged = {each for each in everybody if of is None or of(tree, each)}
        assert set() == (expected ^ there) & judged, (group, expected - there, there - expected)
        if group.is_active:
            assert there == await members(store, env, group.number)
        sizes[group.name] = len(there)
    for each in everybody:
        held = await of_profile(store, env, "m", each)
        assert len(stored[each] & numbers) == int(held.get(b"d", 0))
    for tag in env.partitions:
        for kind in ("dirty", "stale", "unsettled"):
            key = keys.key(tag, kind)
            assert 0 == await store.connection.command(key, "ZCARD", key), kind
    return sizes
