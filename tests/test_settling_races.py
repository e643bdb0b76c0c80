"""Dynamic groups while everything that they follow changes at once: never wrong at the end.

Processes are ones of their own, with their own copies of rules and groups, and do what requests do.
Facts are whatever the store then has of them; who has to be in which group is worked out from these
by `tests/naive_rules.py`.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading

import pytest

from service import keys, store_settling
from service.errors import Conflict
from service.faults import POINTS
from service.groups import NewGroup
from service.ids import new
from service.store import Store
from tests.audiences import (
    WITH_A_DOG,
    all_of,
    any_of,
    exact_groups,
    leaf,
    no,
    rule,
)
from tests.face import batch
from tests.households import catch_up, define, do, mixed_ids, processes
from tests.naive_rules import names_of
from tests.test_derivation_faults import Killed, as_another_process

EXAMPLES = int(os.environ.get("BELONG_TEST_EXAMPLES", "0"))
ROUNDS = EXAMPLES or 60
HOUSEHOLD_ROUNDS = 200
PROCESSES = 10
SETTLE = tuple(point for point in POINTS if point.startswith("settle."))
PEOPLE = {1: "here", 2: "here", 3: "there"}

RICH = leaf("x", "greater_than", 5)
POOR = leaf("x", "less_than", 3)
IN_ONE = {"group": "one"}
TREES = {
    "rich": RICH,
    "with a dog": WITH_A_DOG,
    "in one": IN_ONE,
    "not in one": no(IN_ONE),
    "both": any_of(all_of(RICH, WITH_A_DOG), all_of(no(IN_ONE), leaf("household:x", "is_set"))),
}

both_topologies = pytest.mark.parametrize(
    ("backing", "partitions"), [("embedded", 1), ("cluster", 8)], indirect=True
)
on_a_cluster = pytest.mark.parametrize(("backing", "partitions"), [("cluster", 8)], indirect=True)


async def prepare(store, application, trees=TREES):
    """Three users in two households, a static group, and dynamic groups over all of it."""
    env = await define(store, application)
    await store.groups.create_group(env, NewGroup(name="one", custom_id="one"))
    for number, place in PEOPLE.items():
        await do(store, env, batch(number, address=place, x=str(number)))
    for named, tree in trees.items():
        await rule(store, env, named, tree)
    await catch_up(store)
    return env


async def everybody(store, env, more=()):
    return [*(await mixed_ids(store, env, range(12))).values(), *more]


# One is held up between two steps, and another does something from beginning to end.


async def another_tree(store, env, _):
    await rule(store, env, "rich", POOR)


async def another_tree_and_back(store, env, _):
    await rule(store, env, "rich", POOR)
    await do(store, env, batch(1, x="1"))
    await rule(store, env, "rich", RICH)


async def the_job_too(store, env, _):
    await rule(store, env, "rich", POOR)
    await catch_up(store)


async def no_rule_any_more(store, env, _):
    await rule(store, env, "rich", None)


async def deleted_and_swept(store, env, _):
    await rule(store, env, "rich", None)
    await store.upkeep.sweep_groups(env, 2**62)


async def one_more_rule(store, env, _):
    await rule(store, env, "new", any_of(RICH, IN_ONE))


async def poor_again(store, env, _):
    await do(store, env, batch(1, x="1"))


async def to_and_fro(store, env, _):
    for x in ("1", "8", "1", "7"):
        await do(store, env, batch(1, x=x))


async def a_member(store, env, _):
    number = await store.groups.number_of(env, "one")
    for id16 in await ids_of(store, env):
        await store.members.add_members(env, number, id16)


async def a_member_no_more(store, env, _):
    await a_member(store, env, _)
    number = await store.groups.number_of(env, "one")
    for id16 in await ids_of(store, env):
        await store.members.remove_members(env, number, id16)


async def ids_of(store, env):
    return [env.mixer.unmix(each) for each in (await mixed_ids(store, env, [1, 2])).values()]


async def a_dog(store, env, _):
    await do(store, env, batch(2, dog="true"))


async def moved_away(store, env, _):
    await do(store, env, batch(1, address="there"))
    await do(store, env, batch(3, dog="true"))


async def shared_otherwise(store, env, _):
    await do(store, env, {"share": [("x", "max")], "of": "$address"})


async def not_defined_any_more(store, env, _):
    [application] = await store.registry.list_applications()
    await store.definitions.delete_definition(application, "household")


async def gone_for_good(store, env, _):
    [id16] = await store.profiles.resolve_identities(env, "mpid", ["1"], create=False)
    await store.profiles.erase_profile(env, id16)


MEANWHILE = (
    another_tree, another_tree_and_back, the_job_too, no_rule_any_more, deleted_and_swept,
    one_more_rule, poor_again, to_and_fro, a_member, a_member_no_more, a_dog, moved_away,
    shared_otherwise, not_defined_any_more, gone_for_good,
)  # fmt: skip


@on_a_cluster
@pytest.mark.parametrize("dies", [False, True], ids=["goes-on", "dies"])
@pytest.mark.parametrize("point", SETTLE)
@pytest.mark.parametrize("meanwhile", MEANWHILE, ids=lambda each: each.__name__)
async def test_who_settles_by_what_was_read_before_undoes_nothing(
    backing, store, application, meanwhile, point, dies, monkeypatch
):
    """The rules of this process are those of before; it goes on as if nothing were, or dies."""
    env = await prepare(store, application)
    reached: list[str] = []

    def step(at):
        if threading.current_thread() is not threading.main_thread():
            return
        reached.append(at)
        if at == point and reached.count(point) == 1:
            as_another_process(backing.url, meanwhile)
            if dies:
                raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(store_settling, "fault", step)
        try:
            await do(store, env, batch(1, x="9", dog="true"))
            died = False
        except Killed:
            died = True
    assert point in reached
    assert dies == died
    await catch_up(store)
    await exact_groups(store, env, await everybody(store, env))


# Processes of their own


@both_topologies
async def test_old_and_new_rules_at_one_profile_end_as_the_new_ones_say(
    backing, store, application
):
    env = await prepare(store, application)
    chance = random.Random(5)
    trees = [RICH, POOR, WITH_A_DOG, any_of(POOR, IN_ONE), no(RICH)]
    [mixed] = (await mixed_ids(store, env, [1])).values()
    profile = env.mixer.unmix(mixed).hex()
    with processes(backing.url, 0, 0, 0) as started:
        for at in range(ROUNDS):
            writes = [batch(1, x=str(chance.randrange(9)), dog=chance.choice(["true", "false"]))]
            writes += [{"add": profile, "to": "one"}, {"remove": profile, "of": "one"}]
            todo = [
                [{"rule": "rich", "tree": chance.choice(trees)} for _ in range(2)],
                chance.sample(writes, 3),
                [batch(1, x=str(chance.randrange(9))), batch(2, dog=str(at % 2 == 0))],
            ]
            for process, each in zip(started, todo, strict=True):
                process.tell(*each)
            for process in started:
                process.answer()
            # Rules that name what was written since they came are followed, and the others when
            # their job is done.
            await do(store, env, batch(1, x=f"{at}.5"))
            users = await everybody(store, env)
            await exact_groups(
                store, env, users, of=lambda tree, one: one == mixed and "x" in names_of(tree)
            )
            if at % 10 == 9:
                await catch_up(store)
                await exact_groups(store, env, users)


@both_topologies
async def test_a_rule_that_comes_while_its_static_group_changes_misses_nobody(
    backing, store, application
):
    env = await prepare(store, application, {})
    chance = random.Random(5)
    strangers = [new() for _ in range(12)]
    mixed = [env.mixer.mix(each) for each in strangers]
    trees = [IN_ONE, no(IN_ONE), any_of(IN_ONE, RICH), all_of(IN_ONE, no({"group": "two"}))]
    await store.groups.create_group(env, NewGroup(name="two", custom_id="two"))
    with processes(backing.url, *[0] * 4) as started:
        for at in range(ROUNDS // 2):
            for process in started[1:]:
                process.tell(*(any_membership(chance, strangers) for _ in range(12)))
            tree = None if at % 5 == 4 else chance.choice(trees)
            started[0].tell(*[{"rule": f"rule {at % 3}", "tree": tree}])
            for process in started:
                process.answer()
            await catch_up(store)
            await exact_groups(store, env, await everybody(store, env, mixed))


def any_membership(chance, strangers):
    packed = b"".join(chance.sample(strangers, chance.choice([1, 1, 5]))).hex()
    group = chance.choice(["one", "one", "two"])
    return chance.choice([{"add": packed, "to": group}, {"remove": packed, "of": group}])


class HeldUp:
    """One who settles, and is held up between what was read and what is to be written."""

    def __init__(self, store, env, mixed, number):
        self._read, self._go_on = asyncio.Event(), asyncio.Event()
        self._write = store.settling._write
        store.settling._write = self._later
        names = (keys.named_group(number),)
        self._task = asyncio.create_task(store.settling.settle(env, [mixed], names))

    async def _later(self, *args, **options):
        self._read.set()
        await self._go_on.wait()
        return await self._write(*args, **options)

    async def has_read(self):
        await asyncio.wait_for(self._read.wait(), 5)

    async def goes_on(self):
        self._go_on.set()
        await self._task


@both_topologies
async def test_a_member_who_comes_and_goes_twice_while_two_settle_is_not_left_behind(
    backing, store, second, application
):
    """Facts were as both had read them again, and one had seen nothing to write then.

    It happened with three processes at one group: whoever had been outside when one of them read
    stayed in the dynamic group which the other one had put them into meanwhile.
    """
    env = await prepare(store, application, {"in one": IN_ONE})
    number = await store.groups.number_of(env, "one")
    stranger = new()
    facts = await Store.open(backing.url)

    async def nothing(*_args, **_options):
        """Whoever writes facts here dies before they are followed."""

    facts.settling.settle = nothing  # type: ignore[method-assign]
    try:
        await facts.members.add_members(env, number, stranger)
        one = HeldUp(store, env, env.mixer.mix(stranger), number)
        await one.has_read()
        await facts.members.remove_members(env, number, stranger)
        other = HeldUp(second, env, env.mixer.mix(stranger), number)
        await other.has_read()
        await facts.members.add_members(env, number, stranger)
        await one.goes_on()
        await facts.members.remove_members(env, number, stranger)
        await other.goes_on()
        await catch_up(facts)
        await exact_groups(facts, env, [env.mixer.mix(stranger)])
    finally:
        await facts.close()


@both_topologies
async def test_of_a_group_that_is_deleted_and_a_rule_that_names_it_one_wins(
    backing, store, second, application
):
    env = await prepare(store, application, {})
    stranger = new()
    won = {"rule": 0, "deletion": 0}
    for at in range(15):
        named = f"leaf {at}"
        group = await store.groups.create_group(env, NewGroup(name=named, custom_id=named))
        await store.members.add_members(env, group.number, stranger)
        outcomes = await asyncio.gather(
            rule(second, env, "ruled", {"group": group.id}),
            store.groups.delete_group(env, group.id),
            return_exceptions=True,
        )
        refused = [each for each in outcomes if isinstance(each, Exception)]
        assert 1 == len(refused), outcomes
        won["rule" if isinstance(outcomes[1], Conflict) else "deletion"] += 1
        await catch_up(store)
        await store.upkeep.sweep_groups(env, 2**62)
        users = await everybody(store, env, [env.mixer.mix(stranger)])
        sizes = await exact_groups(store, env, users)
        assert sizes.get("ruled", 0) == (1 if isinstance(outcomes[1], Conflict) else 0)
        await rule(store, env, "ruled", None)
        if isinstance(outcomes[1], Conflict):
            await store.groups.delete_group(env, group.id)
    assert 15 == sum(won.values())


@pytest.mark.alone
@pytest.mark.slow
@both_topologies
async def test_households_of_ten_processes_and_their_audiences_are_exact_in_every_round(
    backing, store, application
):
    """Nobody helps them: no worker runs."""
    env = await define(store, application, limit=8)
    await store.groups.create_group(env, NewGroup(name="one", custom_id="one"))
    for named, tree in TREES.items():
        await rule(store, env, named, tree)
    await catch_up(store)
    chance = random.Random(5)
    with processes(backing.url, *[0] * PROCESSES) as started:
        for at in range(HOUSEHOLD_ROUNDS):
            users = await mixed_ids(store, env, range(PROCESSES))
            for number, process in enumerate(started):
                process.tell(one_thing(chance, at, number, env, users))
            for process in started:
                process.answer()
            users = await mixed_ids(store, env, range(PROCESSES))
            sizes = await exact_groups(store, env, users.values())
            assert set(TREES) == set(sizes)


def one_thing(chance, at, number, env, users):
    if at == 0:
        return batch(number, address="here", x=str(number))
    if chance.random() < 0.2 and users:
        packed = env.mixer.unmix(chance.choice(list(users.values()))).hex()
        return chance.choice([{"add": packed, "to": "one"}, {"remove": packed, "of": "one"}])
    if chance.random() < 0.1:
        return batch(number, "address", x="1")
    return batch(
        number,
        address=chance.choice(["here", "here", "there"]),
        x=str(chance.randrange(9)),
        dog=chance.choice(["true", "false", "false", "false", "false"]),
    )


@on_a_cluster
async def test_what_nobody_settled_waits_for_the_worker_and_for_no_one_else(
    backing, store, application, monkeypatch
):
    """A process writes facts and is gone; lookups and other writes go on; the worker settles."""
    env = await prepare(store, application)
    number = await store.groups.number_of(env, "one")

    async def gone(*_args, **_options):
        raise Killed

    monkeypatch.setattr(store.settling, "settle", gone)
    [mixed] = (await mixed_ids(store, env, [1])).values()
    with pytest.raises(Killed):
        await store.members.add_members(env, number, env.mixer.unmix(mixed))
    monkeypatch.undo()
    waiting = keys.key(env.home(mixed), "unsettled")
    assert 1 == await store.connection.command(waiting, "ZCARD", waiting)
    await do(store, env, batch(3, x="8"))
    assert 1 == await store.connection.command(waiting, "ZCARD", waiting)
    await catch_up(store)
    await exact_groups(store, env, await everybody(store, env))
