"""Processes die between a fact and what everybody inherits by it, and the worker makes it whole.

Each case runs an operation in a process of its own, which is killed at a fault point. Afterwards
somebody else changes the same household, the worker passes, and everything is what follows from the
facts there are, each counted once; the request is then repeated, as a client does, and everything
is what it asked for. The same of dynamic groups, when facts, rules or time turn them.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from service import store_derivation, store_jobs, store_queries, store_telling
from service.batches import read_batch
from service.faults import POINTS
from service.groups import NewGroup
from service.query_tree import parse_query
from service.store import Store
from service.store_bulk import REMOVE, Changes
from service.verify import verify
from service.worker import work
from tests.audiences import WITH_A_DOG, any_of, exact_groups, leaf, members, no, rule
from tests.face import NOW_MS, batch, of_profile
from tests.households import (
    HOUSEHOLD,
    SHARES,
    as_stored,
    catch_up,
    define,
    do,
    exact,
    killed_at,
    mixed_ids,
)
from tests.naive import World

EXAMPLES = int(os.environ.get("BELONG_TEST_EXAMPLES", "0"))
LIMIT = 3
INGEST = tuple(point for point in POINTS if point.startswith("ingest."))
DERIVE = tuple(point for point in POINTS if point.startswith("derive."))
CASES = {
    "join": (*INGEST, *DERIVE),
    "move": ("ingest.written", *DERIVE),
    "erase": DERIVE,
    "the_worker_derives": DERIVE,
}
"""Operations, and the points at which a process dies that does them."""
AT_EVERY_POINT = [(name, point) for name, points in CASES.items() for point in points]

PEOPLE = {1: "here", 2: "here", 3: "here", 4: "there", 5: "here"}
"""Who lives where, in the order in which they came. 5 is one too many."""

on_one_node = pytest.mark.parametrize(("backing", "partitions"), [("embedded", 1)], indirect=True)
on_a_cluster = pytest.mark.parametrize(("backing", "partitions"), [("cluster", 8)], indirect=True)

NAMES_OF_6 = [
    ("customer_id", "user 6"),
    ("email", "six@example.com"),
    *((f"other{n}", f"six {n}") for n in range(2, 6)),
]
JOIN = batch(
    6, at=-10, address="here", x="1000000", dog="true", last="six",
    identities={"email": "six@example.com", **{f"other_id_{n}": f"six {n}" for n in range(2, 6)}},
) | {"source_request_id": "join"}  # fmt: skip
"""A new user with names in many slots, who came before all others: 3 has to make room."""
MOVE = batch(1, at=20, address="there", x="7", last="moved") | {"source_request_id": "move"}


async def join(store, env):
    await do(store, env, JOIN)


async def move(store, env):
    await do(store, env, MOVE)


async def erase(store, env):
    [profile] = await store.profiles.resolve_identities(
        env, "customer_id", ["user 1"], create=False
    )
    if profile is not None:
        await store.profiles.erase_profile(env, profile)


async def the_worker_derives(store, env):
    await work(store, grace_us=0)


async def prepare(store, application, operation):
    """Households with a place too few, and facts that nobody has derived from yet."""
    env = await define(store, application, LIMIT)
    for number, place in PEOPLE.items():
        said = batch(number, at=number, address=place, x=str(10**number), last=f"of {number}")
        await do(store, env, said)
    if operation == "the_worker_derives":
        updates = [read_batch(json.dumps(each).encode()) for each in (JOIN, MOVE)]
        await store.ingest.write_batches(env, updates)
    return env


async def there(store, env):
    """Everybody there is, with the facts that the store has of them."""
    found = await mixed_ids(store, env, (*PEOPLE, 6))
    return [await as_stored(store, env, each) for each in found.values()]


async def named(store, env, kind, value):
    """Who an identity is."""
    [found] = await store.profiles.resolve_identities(env, kind, [value], create=False)
    return None if found is None else env.mixer.mix(found)


async def x_of(store, env, mixed):
    """What a user sees as the sum of their household."""
    for held in (await of_profile(store, env, "instances", mixed)).values():
        values = held.split(b" ", 3)[3]
        return json.loads(values)["x"] if values else None
    return None


def test_every_fault_point_of_ingest_and_derivation_has_a_case():
    assert INGEST
    assert DERIVE
    assert {*INGEST, *DERIVE} == {point for points in CASES.values() for point in points}


async def killed(backing, store, application, operation, point):
    env = await prepare(store, application, operation)
    died_with = await asyncio.to_thread(killed_at, point, backing.url, globals()[operation])
    assert -signal.SIGKILL == died_with
    # Somebody who knows nothing of it changes the same households, before the worker has a look.
    await do(store, env, batch(2, at=30, x="200", dog="false"))
    await do(store, env, batch(4, at=30, x="20000", address="there"))
    await work(store, grace_us=0)
    await work(store, grace_us=0)
    await exact(store, env, World(await there(store, env), (HOUSEHOLD,), LIMIT))
    # The client that got no answer asks again.
    await globals()[operation](store, env)
    await work(store, grace_us=0)
    await exact(store, env, World(await there(store, env), (HOUSEHOLD,), LIMIT))
    users = await mixed_ids(store, env, (*PEOPLE, 6))
    seen = [await x_of(store, env, users[number]) for number in PEOPLE if number != 1]
    assert {
        # Without their owner, by 2, 3, 4 and 5.
        "join": ["1000210", None, "20000", None],
        "move": ["101200", "101200", "20007", "101200"],
        "erase": ["101200", "101200", "20000", "101200"],
        "the_worker_derives": ["1001200", "1001200", "20007", None],
    }[operation] == seen
    if operation == "erase":
        assert 1 not in users
    if operation == "join":
        assert {users[6]} == {await named(store, env, kind, value) for kind, value in NAMES_OF_6}


@on_one_node
@pytest.mark.parametrize("point", CASES["join"])
async def test_on_one_node_the_worker_derives_what_a_killed_process_did_not(
    backing, store, application, point
):
    await killed(backing, store, application, "join", point)


@pytest.mark.slow
@on_a_cluster
@pytest.mark.parametrize(("operation", "point"), AT_EVERY_POINT)
async def test_on_a_cluster_the_worker_derives_what_a_killed_process_did_not(
    backing, store, application, operation, point
):
    await killed(backing, store, application, operation, point)


@on_a_cluster
@pytest.mark.parametrize("point", DERIVE)
async def test_what_a_killed_process_left_is_not_in_the_way_of_erasing(
    backing, store, application, point
):
    env = await prepare(store, application, "move")
    died_with = await asyncio.to_thread(killed_at, point, backing.url, move)
    assert -signal.SIGKILL == died_with
    await erase(store, env)
    await exact_but_for_1(store, env)
    await work(store, grace_us=0)
    await exact_but_for_1(store, env)


async def exact_but_for_1(store, env):
    users = await there(store, env)
    assert len(PEOPLE) - 1 == len(users)
    await exact(store, env, World(users, (HOUSEHOLD,), LIMIT))


class Killed(BaseException):
    """As if the process were gone."""


async def change(store, env, _):
    await do(store, env, batch(1, x="5", last="changed"))


async def come_and_go(store, env, _):
    for place in ("there", "elsewhere", "here", "there", "here"):
        await do(store, env, batch(1, address=place))


async def go(store, env, _):
    await do(store, env, batch(1, "address"))


async def go_for_good(store, env, _):
    await erase(store, env)


async def go_and_come_again(store, env, revived):
    """Erased, an id may come again: by a membership, and who has that may be given attributes."""
    [id16] = await store.profiles.resolve_identities(env, "mpid", ["1"], create=False)
    await erase(store, env)
    group = await store.groups.create_group(env, NewGroup(name="all"))
    await store.members.add_members(env, group.number, id16)
    await do(store, env, {"patch": id16.hex(), "to": {"$address": "here", "x": "3"}})
    revived.append(id16)


async def leave_places_to_others(store, env, _):
    await do(store, env, batch(2, "address"))
    await do(store, env, batch(3, address="there"))


async def define_anew(store, env, _):
    for shared in ([("x", "max")], SHARES):
        await do(store, env, {"share": shared, "of": "$address"})
    await do(store, env, {"work": True})


async def lower_the_limit(store, env, _):
    await do(store, env, {"limit": 1})
    await do(store, env, {"work": True})


MEANWHILE = (
    change, come_and_go, go, go_for_good, go_and_come_again, leave_places_to_others, define_anew,
    lower_the_limit,
)  # fmt: skip


def as_another_process(url, meanwhile):
    """Do something from beginning to end while everything here stands still."""
    revived: list[bytes] = []

    async def run():
        store = await Store.open(url)
        try:
            [application] = await store.registry.list_applications()
            await meanwhile(store, application.production, revived)
        finally:
            await store.close()

    with ThreadPoolExecutor(1) as other:
        other.submit(asyncio.run, run()).result()
    return revived


@on_a_cluster
@pytest.mark.parametrize("point", DERIVE)
@pytest.mark.parametrize("meanwhile", MEANWHILE, ids=lambda each: each.__name__)
async def test_who_is_overtaken_between_two_steps_undoes_nothing(
    backing, store, application, meanwhile, point, monkeypatch
):
    """Whoever was held up goes on as if nothing were, to the end, or dies a step later."""
    env = await prepare(store, application, "move")
    later = DERIVE[DERIVE.index(point) + 1 :] + DERIVE
    for dies_at in (None, *(later if EXAMPLES else later[:1])):
        reached: list[str] = []
        revived: list[bytes] = []

        def step(at, reached=reached, revived=revived, dies_at=dies_at):
            if threading.current_thread() is not threading.main_thread():
                return
            if at == dies_at and point in reached:
                raise Killed
            reached.append(at)
            if reached.count(point) == 1 and at == point:
                revived += as_another_process(backing.url, meanwhile)

        with monkeypatch.context() as patched:
            patched.setattr(store_derivation, "fault", step)
            patched.setattr(store_telling, "fault", step)
            try:
                await do(store, env, batch(1, address="there", x="7"))
                died = False
            except Killed:
                died = True
        assert point in reached
        if died:
            await catch_up(store)
        await exact_by_facts(store, env, revived)
        for id16 in revived:
            await do(store, env, {"erase": id16.hex()})
        await do(store, env, {"limit": LIMIT})
        await catch_up(store)
        for number, place in PEOPLE.items():
            await do(store, env, batch(number, address=place, x=str(10**number)))


async def exact_by_facts(store, env, revived):
    rules = await store.definitions.reload(env)
    users = await there(store, env)
    users += [await as_stored(store, env, env.mixer.mix(each)) for each in revived]
    await exact(store, env, World(users, (HOUSEHOLD,), rules.limit))


# Dynamic groups

SETTLE = tuple(point for point in POINTS if point.startswith("settle."))
DUE = tuple(point for point in POINTS if point.startswith("due."))
DYNAMIC = tuple(point for point in POINTS if point.startswith("dynamic."))
RULED = {
    "say": (*DERIVE, *SETTLE),
    "add": SETTLE,
    "take_out": SETTLE,
    "erase": (*DERIVE, *SETTLE),
    "the_worker_settles": SETTLE,
    "time_turns": (*DUE, *SETTLE),
    "create_rule": DYNAMIC,
    "change_rule": DYNAMIC,
    "delete_rule": DYNAMIC,
}
RULED_AT_EVERY_POINT = [(name, point) for name, points in RULED.items() for point in points]
RICH = leaf("x", "greater_than", 5)
TREES = {
    "rich": RICH,
    "dogs": WITH_A_DOG,
    "outside": no({"group": "one"}),
    "lately": any_of(leaf("seen", "within_last_days", 1), leaf("household:x", "greater_than", 99)),
}
STRANGER = b"stranger" * 2
LATER_NS = 30 * 3_600 * 10**9


async def say(store, env):
    await do(store, env, batch(1, at=20, x="1000", dog="true", seen="now"))


async def add(store, env):
    number = await store.groups.number_of(env, "one")
    await store.members.add_members(env, number, await both_of(store, env))


async def take_out(store, env):
    packed = await both_of(store, env)
    number = await store.groups.number_of(env, "two")
    many = len(packed) // 16
    await store.bulk.change_members(env, Changes.of([REMOVE] * many, [number] * many, packed))


async def both_of(store, env):
    [profile] = await store.profiles.resolve_identities(env, "mpid", ["1"], create=False)
    return STRANGER + profile


async def the_worker_settles(store, env):
    await work(store, grace_us=0)


async def time_turns(store, env):
    """In the process that dies of it, whose clock is its own."""
    time.time_ns = later
    await work(store, grace_us=0)


true_time = time.time_ns


def later():
    return true_time() + LATER_NS


async def create_rule(store, env):
    await rule(store, env, "new", any_of(RICH, {"group": "two"}))


async def change_rule(store, env):
    await rule(store, env, "rich", no(RICH))


async def delete_rule(store, env):
    await rule(store, env, "rich", None)


async def prepare_rules(store, application, operation):
    """What there is beside the households: static groups, and dynamic ones over all of it."""
    env = await prepare(store, application, "")
    for named in ("one", "two"):
        group = await store.groups.create_group(env, NewGroup(name=named, custom_id=named))
    await store.members.add_members(env, group.number, await both_of(store, env))
    for named, tree in TREES.items():
        await rule(store, env, named, tree)
    await do(store, env, batch(3, seen=str(NOW_MS - 3_600_000)))
    await catch_up(store)
    if operation == "the_worker_settles":
        said = batch(1, x="1000", dog="true", seen=str(NOW_MS))
        await store.ingest.write_batches(env, [read_batch(json.dumps(said).encode())])
    return env


async def ruled(store, env):
    """See to it that nothing is wrong; give how many are in which dynamic group."""
    assert [] == (await verify(store)).problems
    users = (await mixed_ids(store, env, (*PEOPLE, 6))).values()
    return await exact_groups(store, env, [*users, env.mixer.mix(STRANGER)])


async def killed_with_rules(backing, store, application, operation, point, monkeypatch):
    env = await prepare_rules(store, application, operation)
    died_with = await asyncio.to_thread(killed_at, point, backing.url, globals()[operation])
    assert -signal.SIGKILL == died_with
    if operation == "time_turns":
        monkeypatch.setattr(time, "time_ns", later)
    # Somebody who knows nothing of it goes on, with the rules of before.
    await do(store, env, batch(2, x="2", dog="false"))
    await do(store, env, {"remove": STRANGER.hex(), "of": "one"})
    await do(store, env, batch(4, x="7"))
    await catch_up(store)
    await ruled(store, env)
    # The client that got no answer asks again.
    await globals()[operation](store, env)
    await catch_up(store)
    await ruled(store, env)


@on_one_node
@pytest.mark.parametrize(("operation", "point"), RULED_AT_EVERY_POINT)
async def test_on_one_node_members_follow_what_a_killed_process_did_not(
    monkeypatch, backing, store, application, operation, point
):
    # The clock is the first to be there: it is still the same when all is verified.
    await killed_with_rules(backing, store, application, operation, point, monkeypatch)


@pytest.mark.slow
@on_a_cluster
@pytest.mark.parametrize(("operation", "point"), RULED_AT_EVERY_POINT)
async def test_on_a_cluster_members_follow_what_a_killed_process_did_not(
    monkeypatch, backing, store, application, operation, point
):
    # The clock is the first to be there: it is still the same when all is verified.
    await killed_with_rules(backing, store, application, operation, point, monkeypatch)


async def the_worker_saves(store, env):
    store_queries.SAVED = 1
    await work(store, grace_us=0)


@on_a_cluster
async def test_what_a_killed_worker_did_not_save_of_a_query_is_saved_and_followed(
    monkeypatch, backing, store, application
):
    env = await prepare_rules(store, application, "")
    query = {"or": [{"group": "outside"}, {"and": [{"group": "rich"}, {"group": "two"}]}]}
    new = NewGroup(name="saved", custom_id="saved")
    group = await store.queries.save(env, parse_query(query), new)
    await rule(store, env, "of the saved", {"group": "saved"})
    died_with = await asyncio.to_thread(killed_at, "save.stepped", backing.url, the_worker_saves)
    assert -signal.SIGKILL == died_with
    wanted = await told(store, env, "outside")
    wanted |= await told(store, env, "rich") & await told(store, env, "two")
    assert len(PEOPLE) < len(wanted)
    begun = await members(store, env, group.number)
    assert begun < wanted
    # Long after: nobody waits here until what it had taken may be taken over.
    monkeypatch.setattr(store_jobs, "_now_us", lambda: later() // 1000)
    await catch_up(store)
    assert (
        wanted == await members(store, env, group.number) == await told(store, env, "of the saved")
    )
    await ruled(store, env)


async def told(store, env, named):
    """Who is listed as a member of a group of a custom id."""
    return await members(store, env, await store.groups.number_of(env, named))


def test_every_fault_point_of_dynamic_groups_has_a_case():
    assert SETTLE
    assert DUE
    assert DYNAMIC
    assert {*SETTLE, *DUE, *DYNAMIC, *DERIVE} == {
        point for points in RULED.values() for point in points
    }
