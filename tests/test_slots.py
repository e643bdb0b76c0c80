"""A slot of the cluster moves to another node while everybody works.

Key by key, calls may be refused with Unavailable as long as the slot is on its way; they changed
nothing then and are repeated here, as a client does. Moved atomically, nobody should notice more
than a pause. Either way: no change half applied, none lost that was answered.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from service import ids, keys
from service.errors import NotFound, Unavailable
from service.groups import Attribute, GroupChanges, GroupQuery, NewGroup
from service.worker import work
from tests import backings

on_a_cluster = pytest.mark.parametrize(
    ("backing", "partitions"), [("cluster", 1), ("cluster", 8)], indirect=True
)
both_ways = pytest.mark.parametrize("how", ["key by key", "atomically"])


@pytest.fixture
def put_back(backing):
    """Give the slots back afterwards, for the next test begins with the same cluster."""
    owners: list[tuple[int, backings.Server]] = []
    yield owners
    for slot, owner in owners:
        if backing.owner(slot) is not owner:
            for _ in backings.move_slot(backing, slot, owner):
                pass


async def repeated(call):
    """Repeat a call until it is answered. What was refused has changed nothing."""
    while True:
        try:
            return await call()
        except Unavailable:
            await asyncio.sleep(0.01)


async def move(cluster, slot, how, put_back, done):
    """Move a slot to another node; twice, since after once everybody knows both nodes."""
    source = cluster.owner(slot)
    put_back.append((slot, source))
    target = next(node for node in cluster.servers if node is not source)
    await asyncio.sleep(0.1)
    for to in (target, source, target):
        if how == "atomically":
            await asyncio.to_thread(backings.move_slot_atomically, cluster, slot, to)
        else:
            for step in backings.move_slot(cluster, slot, to):
                # Now and then the others get further while the slot is in two places.
                await asyncio.sleep(0.02 if step != "key" or random.random() < 0.02 else 0)
        await asyncio.sleep(0.1)
    done.set()


@on_a_cluster
@both_ways
async def test_a_partition_moves_while_members_come_and_go(store, env, backing, how, put_back):
    groups = [await store.groups.create_group(env, NewGroup(name="g")) for _ in range(3)]
    staying = [ids.new() for _ in range(300)]
    for group in groups:
        await store.members.add_members(env, group.number, b"".join(staying))
    done = asyncio.Event()
    acknowledged: dict[int, set[bytes]] = {group.number: set(staying) for group in groups}
    rounds = 0

    async def come_and_go(number):
        nonlocal rounds
        mine = acknowledged[number]
        while not done.is_set():
            coming = [ids.new() for _ in range(30)]
            packed = b"".join(coming)
            letters = await repeated(lambda p=packed: store.members.add_members(env, number, p))
            assert set(letters) <= set(b"+=")
            mine.update(coming)
            checked = await repeated(
                lambda p=packed: store.members.check_members(env, [number] * 30, p)
            )
            assert b"1" * 30 == checked
            leaving = coming[::2]
            letters = await repeated(
                lambda p=leaving: store.members.remove_members(env, number, b"".join(p))
            )
            assert set(letters) <= set(b"-.")
            mine.difference_update(leaving)
            rounds += 1

    async def look():
        while not done.is_set():
            one = random.choice(staying)
            page = await repeated(lambda p=one: store.lookups.list_profile_groups(env, p, None, 10))
            assert [group.number for group in groups] == [row.group.number for row in page.rows]
            number = random.choice(groups).number
            assert set(staying) <= set(await everybody(store, env, number))

    slot = keys.slot_of(env.partitions[0][1:-1])
    await asyncio.gather(
        move(backing, slot, how, put_back, done),
        look(),
        *(come_and_go(group.number) for group in groups),
    )
    assert rounds > 10
    for number, members in acknowledged.items():
        assert members == set(await everybody(store, env, number))


async def everybody(store, env, number):
    found, cut = [], None
    while True:
        page = await repeated(lambda c=cut: store.members.list_members(env, number, c, 1000))
        found += [row.id for row in page.rows]
        cut = page.last
        if cut is None:
            return found


@on_a_cluster
@both_ways
async def test_the_directory_moves_while_groups_are_made_and_deleted(
    store, env, backing, how, put_back
):
    kept = [
        await store.groups.create_group(
            env, NewGroup(name="kept", attributes=(Attribute("k", str(n)),))
        )
        for n in range(20)
    ]
    done = asyncio.Event()
    acknowledged: dict[str, str] = {group.id: "kept" for group in kept}
    rounds = 0

    async def work_on_groups():
        nonlocal rounds
        while not done.is_set():
            new = NewGroup(id=ids.text(ids.new()), name="new", attributes=(Attribute("k", "0"),))
            # NOTE: 409 on repeating means that the first try was carried out, and only its
            # answer lost. Here nothing is lost, so it never comes.
            group = await repeated(lambda n=new: store.groups.create_group(env, n))
            acknowledged[group.id] = "new"
            name = random.choice(["one", "two"])
            changes = GroupChanges(name=name, is_active=random.random() < 0.7)
            await repeated(
                lambda g=group, c=changes: store.groups.update_group(
                    env, g.id, c, include_inactive=True
                )
            )
            acknowledged[group.id] = name
            if random.random() < 0.5:
                await repeated(lambda g=group: delete(store, env, g))
                del acknowledged[group.id]
            rounds += 1

    slot = keys.slot_of(env.directory[1:-1])
    await asyncio.gather(
        move(backing, slot, how, put_back, done), *(work_on_groups() for _ in range(4))
    )
    assert rounds > 10
    await repeated(lambda: work(store, grace_us=0))
    query = GroupQuery(include_inactive=True)
    page = await store.groups.list_groups(env, query, None, 100_000)
    assert acknowledged == {group.id: group.name for group in page.rows}


async def delete(store, env, group):
    """A repeated DELETE finds nothing where the first one lost its way after the directory."""
    try:
        await store.groups.delete_group(env, group.id, include_inactive=True)
    except NotFound:
        return
