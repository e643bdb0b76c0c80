"""The worker: it finishes what is old enough, leaves alone what is not, and outlives trouble."""

from __future__ import annotations

import asyncio

import pytest

from service import keys, worker
from service.errors import Conflict, NotFound, ScriptFailed, Unavailable
from service.groups import GroupChanges, NewGroup
from service.ids import new
from service.store import Store
from service.worker import run, work
from tests import backings


@pytest.fixture
async def group(store, env):
    """A group with members that is deleted, or about to be."""
    made = await store.groups.create_group(env, NewGroup(name="g"))
    await store.members.add_members(env, made.number, b"".join(new() for _ in range(250)))
    return made


async def lose_states(store, monkeypatch, change):
    """Make a change whose process dies before any partition knows of it."""

    async def lost(*args):
        raise Unavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(store.groups, "install_state", lost)
        with pytest.raises(Unavailable):
            await change


async def test_with_nothing_to_do_it_does_nothing(store, env, group):
    assert 0 == await work(store, grace_us=0)


async def test_a_deleted_group_is_swept(store, env, group):
    await store.groups.delete_group(env, group.id)
    assert [250] == await store.members.count_members(env, [group.number])
    assert 1 == await work(store, grace_us=0)
    assert [0, 0] == await store.members.count_members(env, [group.number, 0])


async def test_what_is_young_is_somebodys_work_in_progress(store, env, group):
    await store.groups.delete_group(env, group.id)
    assert 0 == await work(store, grace_us=60_000_000)
    assert [250] == await store.members.count_members(env, [group.number])


async def test_a_deletion_that_no_partition_knows_of_is_made_known(store, env, group, monkeypatch):
    await lose_states(store, monkeypatch, store.groups.delete_group(env, group.id))
    assert b"0" == await store.members.check_members(env, [group.number], new())
    await work(store, grace_us=0)
    assert b"n" == await store.members.check_members(env, [group.number], new())


async def test_an_intent_says_what_the_directory_says_by_now(store, env, group, monkeypatch):
    away, back = GroupChanges(is_active=False), GroupChanges(is_active=True)
    await lose_states(store, monkeypatch, store.groups.update_group(env, group.id, away))
    await lose_states(
        store,
        monkeypatch,
        store.groups.update_group(env, group.id, back, include_inactive=True),
    )
    assert 1 == await work(store, grace_us=0)
    assert b"0" == await store.members.check_members(env, [group.number], new())


async def test_several_workers_at_once_do_no_harm(store, env, backing):
    others = [await Store.open(backing.url) for _ in range(2)]
    try:
        for _ in range(3):
            made = await store.groups.create_group(env, NewGroup(name="g"))
            packed = b"".join(new() for _ in range(150))
            await store.members.add_members(env, made.number, packed)
            await store.groups.delete_group(env, made.id)
        await asyncio.gather(*(work(each, grace_us=0) for each in (store, *others)))
        assert [0] == await store.members.count_members(env, [0])
        assert 0 == await work(store, grace_us=0)
    finally:
        for each in others:
            await each.close()


async def test_a_count_that_is_wrong_does_not_keep_the_sweep_going(store, env, group):
    for tag in env.partitions:
        key = keys.key(tag, "count")
        await store.connection.command(key, "HINCRBY", key, group.number, 7)
    await store.groups.delete_group(env, group.id)
    await asyncio.wait_for(work(store, grace_us=0), 10)
    assert [0] == await store.members.count_members(env, [group.number])


async def test_trouble_in_one_environment_does_not_keep_the_others_waiting(
    store, application, env, group, monkeypatch, caplog
):
    await store.groups.delete_group(env, group.id)
    finish = store.groups.finish_intents

    async def broken(env, before_us):
        if env.name == "development":
            raise ScriptFailed("broken")
        return await finish(env, before_us)

    monkeypatch.setattr(store.groups, "finish_intents", broken)
    assert 1 == await work(store, grace_us=0)
    assert "development" in caplog.text


async def test_an_environment_out_of_reach_does_not_keep_the_others_waiting(
    store, application, env, group, monkeypatch
):
    """Its slot may be on its way from one node to another for minutes."""
    await store.groups.delete_group(env, group.id)
    finish = store.groups.finish_intents
    calls = []

    async def unreachable(env, before_us):
        calls.append(env)
        if len(calls) == 1:
            raise Unavailable("moving")
        return await finish(env, before_us)

    monkeypatch.setattr(worker, "TOGETHER", 1)
    await store.registry.create_application("later", partitions=2)
    monkeypatch.setattr(store.groups, "finish_intents", unreachable)
    with pytest.raises(Unavailable):
        await work(store, grace_us=0)
    assert 4 == len({each.number for each in calls})


async def test_a_store_that_is_gone_is_said_to_be(store, env, group, monkeypatch):
    async def gone(env, before_us):
        raise Unavailable("gone")

    monkeypatch.setattr(store.groups, "finish_intents", gone)
    with pytest.raises(Unavailable):
        await work(store, grace_us=0)


async def test_it_waits_for_a_store_that_is_gone_and_goes_on(monkeypatch):
    monkeypatch.setattr(worker, "INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr(worker, "GRACE_US", 0)
    monkeypatch.setattr(worker.work, "__kwdefaults__", {"grace_us": 0, "purge": False})
    server = backings.embedded(persistent=True)
    stop = asyncio.Event()
    working = asyncio.create_task(run(server.url, stop))
    try:
        await asyncio.sleep(0.2)
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(server.start)
        store = await Store.open(server.url)
        env = (await store.registry.create_application("test")).production
        made = await store.groups.create_group(env, NewGroup(name="g"))
        await store.members.add_members(env, made.number, new())
        await store.groups.delete_group(env, made.id)
        async with asyncio.timeout(5):
            while await store.members.count_members(env, [0]) != [0]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await store.close()
    finally:
        stop.set()
        await asyncio.wait_for(working, 5)
        server.stop()


async def test_a_name_is_free_as_soon_as_its_group_is_deleted(store, env, group):
    made = await store.groups.create_group(env, NewGroup(name="g", custom_id="c"))
    with pytest.raises(Conflict):
        await store.groups.create_group(env, NewGroup(name="g", custom_id="c"))
    await store.groups.delete_group(env, made.id)
    again = await store.groups.create_group(env, NewGroup(name="g", custom_id="c"))
    await work(store, grace_us=0)
    assert again == await store.groups.get_group(env, "c")
    with pytest.raises(NotFound):
        await store.groups.get_group(env, made.id)
