"""The worker: it finishes what is old enough, leaves alone what is not, and outlives trouble."""

from __future__ import annotations

import asyncio

import pytest

from service import keys, store_groups, store_upkeep, worker
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
    finish = store.upkeep.finish_intents

    async def broken(env, before_us):
        if env.name == "development":
            raise ScriptFailed("broken")
        return await finish(env, before_us)

    monkeypatch.setattr(store.upkeep, "finish_intents", broken)
    assert 1 == await work(store, grace_us=0)
    assert "development" in caplog.text


async def test_an_environment_out_of_reach_does_not_keep_the_others_waiting(
    store, application, env, group, monkeypatch
):
    """Its slot may be on its way from one node to another for minutes."""
    await store.groups.delete_group(env, group.id)
    finish = store.upkeep.finish_intents
    calls = []

    async def unreachable(env, before_us):
        calls.append(env)
        if len(calls) == 1:
            raise Unavailable("moving")
        return await finish(env, before_us)

    monkeypatch.setattr(worker, "TOGETHER", 1)
    await store.registry.create_application("later", partitions=2)
    monkeypatch.setattr(store.upkeep, "finish_intents", unreachable)
    with pytest.raises(Unavailable):
        await work(store, grace_us=0)
    assert 4 == len({each.number for each in calls})


async def test_a_long_sweep_does_not_keep_other_groups_waiting(store, env, group, monkeypatch):
    """A sweep ran to its end first: for minutes members of a group deleted since were members."""
    monkeypatch.setattr(store_upkeep, "SWEEP", 5)
    await store.groups.delete_group(env, group.id)
    await work(store, grace_us=0, sweep_seconds=0)
    [left] = await store.members.count_members(env, [group.number])
    assert left > 0
    other = await store.groups.create_group(env, NewGroup(name="other"))
    member = new()
    await store.members.add_members(env, other.number, member)
    await lose_states(store, monkeypatch, store.groups.delete_group(env, other.id))
    assert 0 == await work(store, grace_us=0, sweep_seconds=0)
    assert b"n" == await store.members.check_members(env, [other.number], member)


@pytest.mark.parametrize(("backing", "partitions"), [("embedded", 1)], indirect=True)
async def test_a_sweep_goes_on_where_the_last_look_left_it(store, env, group):
    await store.groups.delete_group(env, group.id)
    [before] = await store.members.count_members(env, [group.number])
    looks = 0
    while not await work(store, grace_us=0, sweep_seconds=0):
        looks += 1
        assert {env.number} == store.upkeep.interrupted
        [left] = await store.members.count_members(env, [group.number])
        assert left < before or left == 0
        before = left
    assert looks < 250
    assert set() == store.upkeep.interrupted
    assert [0] == await store.members.count_members(env, [0])


async def test_what_a_clock_that_ran_ahead_left_is_finished_now(store, env, group, monkeypatch):
    """Its versions lay an hour ahead, and for that hour the worker took them for too young."""
    ahead = store_groups._now_us() + 3_600_000_000
    away = GroupChanges(is_active=False)
    with monkeypatch.context() as patched:
        patched.setattr(store_groups, "_now_us", lambda: ahead)
        other = await store.groups.create_group(env, NewGroup(name="other"))
        await lose_states(store, monkeypatch, store.groups.update_group(env, other.id, away))
        await lose_states(store, monkeypatch, store.groups.delete_group(env, group.id))
    await work(store, grace_us=2_000_000)
    numbers = [group.number, other.number]
    assert b"nn" == await store.members.check_members(env, numbers, new() + new())
    assert [0] == await store.members.count_members(env, [0])


async def test_a_state_lost_in_mid_sweep_is_installed_again(store, env, group, caplog, monkeypatch):
    """A failover may lose it, and a sweep that remembers having installed it found no way on."""
    monkeypatch.setattr(store_upkeep, "SWEEP", 5)
    await store.groups.delete_group(env, group.id)
    await work(store, grace_us=0, sweep_seconds=0)
    for tag in env.partitions:
        key = keys.key(tag, "state")
        await store.connection.command(key, "HDEL", key, group.number)
    await work(store, grace_us=0)
    assert "is not finished" in caplog.text
    assert 1 == await work(store, grace_us=0)
    assert [0] == await store.members.count_members(env, [0])


@pytest.mark.parametrize(("backing", "partitions"), [("embedded", 8)], indirect=True)
async def test_nothing_goes_on_behind_a_look_that_failed(store, env, group, monkeypatch):
    """One partition was out of reach: sweeps of the others went on, one more with every look."""
    await store.groups.delete_group(env, group.id)
    call, running = store.connection.call, []
    lost = keys.key(env.partitions[0], "state")

    async def fails(script, key_names, args, *, bulk=False):
        if script.name in {"sweep_group", "set_state"}:
            if key_names[0] == lost:
                raise Unavailable("gone")
            running.append(script)
            await asyncio.sleep(0.01)
            reply = await call(script, key_names, args, bulk=bulk)
            running.remove(script)
            return reply
        return await call(script, key_names, args, bulk=bulk)

    with monkeypatch.context() as patched:
        patched.setattr(store.connection, "call", fails)
        with pytest.raises(Unavailable):
            await store.upkeep._sweep_group(env, group.number, group.version, float("inf"))
        assert [] == running
        with pytest.raises(Unavailable):
            await store.groups.install_state(env, group.number, group.version, "d")
        assert [] == running
    await work(store, grace_us=0)
    assert [0] == await store.members.count_members(env, [0])


@pytest.mark.parametrize(("backing", "partitions"), [("embedded", 1)], indirect=True)
async def test_a_group_that_cannot_be_swept_does_not_keep_others_waiting(store, env, group):
    """What failed came first in every look, and nothing after it was ever swept."""
    state = keys.key(env.partitions[0], "state")
    other = await store.groups.create_group(env, NewGroup(name="other"))
    await store.members.add_members(env, other.number, new())
    for each in (group, other):
        await store.groups.delete_group(env, each.id)
    held = await store.connection.command(state, "HGET", state, group.number)
    await store.connection.command(state, "HSET", state, group.number, f"{2**53} a")
    await work(store, grace_us=0)
    assert [0] == await store.members.count_members(env, [other.number])
    await store.connection.command(state, "HSET", state, group.number, held)
    assert 1 == await work(store, grace_us=0)


async def test_a_store_that_is_gone_is_said_to_be(store, env, group, monkeypatch):
    async def gone(env, before_us):
        raise Unavailable("gone")

    monkeypatch.setattr(store.upkeep, "finish_intents", gone)
    with pytest.raises(Unavailable):
        await work(store, grace_us=0)


async def test_it_waits_for_a_store_that_is_gone_and_goes_on(monkeypatch):
    monkeypatch.setattr(worker, "INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr(worker, "GRACE_US", 0)
    monkeypatch.setitem(worker.work.__kwdefaults__, "grace_us", 0)
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
