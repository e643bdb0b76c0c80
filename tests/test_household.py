"""Many processes at one household: what everybody inherits is exact whenever all are answered.

Each process is one of its own, with its own copy of everything, and does what a request does: it
writes facts and derives. Nobody helps them: no worker runs.
"""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from service.groups import NewGroup
from service.ids import new
from tests.face import NOW_MS, batch, of_profile
from tests.households import (
    HOUSEHOLD,
    Process,
    as_stored,
    catch_up,
    define,
    do,
    exact,
    mixed_ids,
    processes,
)
from tests.naive import GONE, Group, Share, User, World

ROUNDS = {1: 500, 8: 250}
"""By the number of partitions: on one server, and on a cluster."""
PROCESSES = 10
EPISODES, FLAPS = 12, 12
TURMOILS = int(os.environ.get("BELONG_TEST_EXAMPLES", "0")) or 10
both_topologies = pytest.mark.parametrize(
    ("backing", "partitions"), [("embedded", 1), ("cluster", 8)], indirect=True
)


@pytest.mark.alone
@pytest.mark.slow
@both_topologies
async def test_ten_processes_at_one_household_are_exact_in_every_round(backing, store, application):
    env = await define(store, application, limit=8)
    chance = random.Random(4)
    world = World(groups=(HOUSEHOLD,), limit=8)
    with processes(backing.url, *[0] * PROCESSES) as started:
        users: dict[int, User] = {}
        for at in range(ROUNDS[len(env.partitions)]):
            said = [one_thing(chance, at, number) for number in range(PROCESSES)]
            for process, each in zip(started, said, strict=True):
                process.tell(each)
            for process in started:
                process.answer()
            if not users:
                found = await mixed_ids(store, env, range(PROCESSES))
                users = {number: User(mixed, number) for number, mixed in found.items()}
                world.users = list(users.values())
            for number, each in enumerate(said):
                time_us = (NOW_MS + at) * 1000
                for name, value in each.get("user_attributes", {}).items():
                    users[number].write(name, value, time_us)
                for name in each.get("deleted_user_attributes", ()):
                    users[number].write(name, GONE, time_us)
            await exact(store, env, world)


def one_thing(chance, at, number):
    """Most often a new value; now and then somebody goes, or comes back, or loses a value."""
    if at == 0:
        return batch(number, at=at, address="here", x=str(number), last=f"of {number}")
    kind = chance.random()
    if kind < 0.7:
        return batch(number, at=at, address="here", x=str(chance.randrange(-99, 99)))
    if kind < 0.8:
        return batch(number, at=at, address="there", dog=chance.choice(["true", "false"]))
    if kind < 0.9:
        return batch(number, "address", at=at, last=f"of {number} at {at}")
    return batch(number, "x", "dog", at=at, address="here", last=f"of {number} at {at}")


@pytest.mark.alone
@both_topologies
async def test_a_user_whom_two_clients_move_to_and_fro_ends_in_one_household(
    backing, store, application
):
    env = await define(store, application)
    [definition] = (await store.definitions.rules(env)).definitions
    for number, place in ((1, "here"), (2, "here"), (3, "there"), (4, "there"), (9, "here")):
        await do(store, env, batch(number, address=place, x=str(10**number), last=place))
    mixed = await mixed_ids(store, env, (1, 2, 3, 4, 9))
    homes = {
        env.mixer.instance_id(env.number, definition.number, place): place
        for place in ("here", "there")
    }
    with processes(backing.url, 0, 0) as clients:
        for episode in range(EPISODES):
            for client, place in zip(clients, ("here", "there"), strict=True):
                # By turns as of their arrival, and as of times that contradict it.
                at = None if episode % 2 else episode
                client.tell(*(batch(9, at=at, address=place, x=str(flap)) for flap in range(FLAPS)))
            for client in clients:
                client.answer()
            listed = await of_profile(store, env, "instances", mixed[9])
            assert 1 == len(listed)
            instances = await store.instances.read(env, list(homes))
            assert [homes[iid] for iid in listed] == [
                each.value for each in instances if mixed[9] in {one.mixed for one in each.counted}
            ]
            users = [await as_stored(store, env, each) for each in mixed.values()]
            await exact(store, env, World(users, (HOUSEHOLD,)))


@both_topologies
async def test_everything_at_once_ends_as_what_follows_from_the_facts(backing, store, application):
    """Users, two clients, a worker and somebody who changes the definition, all at the same time.

    In every other round one of them is killed in the middle of it. Who wins is up to them; what is
    derived then follows from whatever facts there are.
    """
    env = await define(store, application, limit=3)
    chance = random.Random(4)
    with processes(backing.url, *[0] * 5) as started:
        for at in range(TURMOILS):
            there = await mixed_ids(store, env, range(1, 7))
            erased = chance.sample(sorted(there), min(len(there), 2))
            todo = [
                [any_batch(chance, at) for _ in range(8)],
                [any_batch(chance, at) for _ in range(8)],
                [{"erase": env.mixer.unmix(there[each]).hex()} for each in erased],
                [any_change(chance) for _ in range(2)],
                [{"work": True}] * 3,
            ]
            for process, each in zip(started, todo, strict=True):
                process.tell(*each)
            if at % 2:
                await asyncio.sleep(chance.random() / 50)
                killed = chance.randrange(len(started))
                started[killed].kill()
                started[killed] = Process(backing.url)
                started[killed].tell()
            for process in started:
                process.answer()
            await catch_up(store)
            rules = await store.definitions.reload(env)
            [definition] = rules.definitions
            shares = tuple(Share(each.id, each.type) for each in definition.attributes)
            group = Group("household", definition.source, shares)
            there = await mixed_ids(store, env, range(1, 7))
            users = [await as_stored(store, env, each) for each in there.values()]
            await exact(store, env, World(users, (group,), rules.limit))


def any_batch(chance, at):
    said = {
        "address": chance.choice(["here", "here", "there", ""]),
        "plan": chance.choice(["here", "a"]),
        "x": str(chance.randrange(9)),
        "last": str(at),
    }
    gone = chance.sample(["address", "x"], chance.choice([0, 0, 1]))
    kept = {name: value for name, value in said.items() if chance.random() < 0.6}
    when = chance.choice([None, at, at - 1])
    return batch(chance.randrange(1, 7), *set(gone) - set(kept), at=when, **kept)


def any_change(chance):
    if chance.random() < 0.3:
        return {"limit": chance.randrange(1, 5)}
    share = chance.sample([("x", "sum"), ("x", "max"), ("n", "count"), ("last", "latest")], 2)
    of = chance.choice(["$address", "$address", "plan"])
    return {"share": list({name: (name, kind) for name, kind in share}.values()), "of": of}


@both_topologies
async def test_processes_whose_clocks_differ_by_hours_derive_the_same(backing, store, application):
    env = await define(store, application, limit=3)
    chance = random.Random(4)
    numbers = range(5)
    with processes(backing.url, -3600, -4, 0, 3600) as started:
        for at in range(15):
            for process in started:
                process.tell(
                    *(
                        batch(
                            chance.choice(numbers),
                            *chance.choice([(), ("x",), ("dog",)]),
                            address=chance.choice(["here", "here", "there"]),
                            last=str(at),
                        )
                        for _ in range(2)
                    )
                )
            for process in started:
                process.answer()
            there = await mixed_ids(store, env, numbers)
            users = [await as_stored(store, env, each) for each in there.values()]
            await exact(store, env, World(users, (HOUSEHOLD,), 3))


@both_topologies
async def test_who_is_erased_by_a_fast_clock_can_come_back_by_a_slow_one(
    backing, store, application
):
    """What ended keeps its seq for an hour, of a clock that is ahead; the next one is lower."""
    env = await define(store, application)
    group = await store.groups.create_group(env, NewGroup(name="all"))
    profile = new()
    mixed = env.mixer.mix(profile)
    await do(store, env, batch(1, address="here", x="1"))
    [other] = (await mixed_ids(store, env, [1])).values()
    with processes(backing.url, 3600, -3600) as (fast, slow):
        for at in range(3):
            await store.members.add_members(env, group.number, profile)
            for each in (fast, slow):
                each.tell({"patch": profile.hex(), "to": {"$address": "here", "x": f"{at}.5"}})
                each.answer()
            users = [await as_stored(store, env, each) for each in (other, mixed)]
            await exact(store, env, World(users, (HOUSEHOLD,)))
            fast.tell({"erase": profile.hex()})
            fast.answer()
            await exact(store, env, World([await as_stored(store, env, other)], (HOUSEHOLD,)))
            await store.members.add_members(env, group.number, profile)
            slow.tell({"patch": profile.hex(), "to": {"$address": "here", "x": f"-{at}.5"}})
            slow.answer()
            users = [await as_stored(store, env, each) for each in (other, mixed)]
            assert {"$address", "x"} == users[1].names
            await exact(store, env, World(users, (HOUSEHOLD,)))
            slow.tell({"erase": profile.hex()})
            slow.answer()
