"""Totals: counts of what an environment holds are exact, however it is cut into steps."""

from __future__ import annotations

import pytest

from service import ids, store_totals
from service.groups import GroupChanges, NewGroup
from service.store_totals import Totals


@pytest.mark.parametrize("step", [1, 2, 500])
async def test_groups_memberships_and_profiles_are_counted(store, env, monkeypatch, step):
    monkeypatch.setattr(store_totals, "STEP", step)
    assert Totals() == await store.totals.count(env)
    groups = [await store.groups.create_group(env, NewGroup(name="g")) for _ in range(5)]
    people = b"".join(ids.new() for _ in range(20))
    for size, group in enumerate(groups):
        await store.members.add_members(env, group.number, people[: 16 * 4 * size])
    await store.groups.update_group(env, groups[1].id, GroupChanges(is_active=False))
    assert Totals(groups=5, memberships=4 + 8 + 12 + 16, profiles=16) == await store.totals.count(
        env
    )


async def test_a_group_that_is_put_away_or_back_while_counting_counts_once(store, env, monkeypatch):
    # The indexes of active and of inactive groups were walked one after the other: a group that
    # was put away between the two was counted in both, with its members.
    monkeypatch.setattr(store_totals, "STEP", 1)
    groups = [await store.groups.create_group(env, NewGroup(name="g")) for _ in range(4)]
    for group in groups:
        await store.members.add_members(env, group.number, ids.new())
    for group in groups[:2]:
        await store.groups.update_group(env, group.id, GroupChanges(is_active=False))
    read = store.totals._members
    switched = []

    async def switch(tag, numbers):
        for number in numbers:
            if number != b"0" and number not in switched:
                switched.append(number)
                group = groups[len(switched) - 1]
                await store.groups.update_group(
                    env, group.id, GroupChanges(is_active=len(switched) < 3), include_inactive=True
                )
        return await read(tag, numbers)

    monkeypatch.setattr(store.totals, "_members", switch)
    assert Totals(groups=4, memberships=4, profiles=4) == await store.totals.count(env)
    assert 4 == len(switched)


async def test_a_deleted_group_counts_no_more_and_waits_for_its_sweep(store, env):
    group = await store.groups.create_group(env, NewGroup(name="g"))
    await store.members.add_members(env, group.number, ids.new() + ids.new())
    await store.groups.delete_group(env, group.id)
    assert Totals(profiles=2, sweeps=1) == await store.totals.count(env)
    await store.upkeep.sweep_groups(env, 2**62)
    assert Totals() == await store.totals.count(env)


async def test_other_environments_do_not_count(store, application):
    group = await store.groups.create_group(application.production, NewGroup(name="g"))
    await store.members.add_members(application.production, group.number, ids.new())
    assert Totals() == await store.totals.count(application.environments["development"])
