"""What follows from facts: exact whoever derives it, however late, and whatever happens meanwhile.

After every test `verify` recomputes all of it from facts, and compares.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import time

import pytest

from service import ids, keys, rows, scripts, store_derivation, store_instances, store_telling
from service.counters import Counters, key
from service.errors import NotFound, Unavailable
from service.grouping import GroupAttribute
from service.store import Store
from service.store_definitions import DefinitionChanges, NewDefinition
from service.store_transfer import Arriving
from service.worker import ENDED_US, count, work
from tests import backings

on_one_server = pytest.mark.parametrize(("backing", "partitions"), [("embedded", 1)], indirect=True)
everywhere_apart = pytest.mark.parametrize(
    ("backing", "partitions"), [("embedded", 8), ("cluster", 8)], indirect=True
)

T0 = 1_763_758_800_000_000
"""When facts of tests begin, in us. Contributions count in the order of `since`."""
STEPS = (
    "read_facts",
    "list_contributions",
    "contribute",
    "end_contributions",
    "read_instances",
    "settle_profiles",
    "release_instances",
    "finish_profiles",
)
"""The scripts of one derivation, in their order."""
LONGEST_US = 2_000
REFERENCE = "for _ = 1, 1000 do redis.call('ECHO', 'x') end"
REFERENCE_US = 1_000

moments = itertools.count(T0)


def now_us():
    return time.time_ns() // 1000


def definition(*attributes, named="household", source="$address"):
    return NewDefinition(
        id=named,
        source_user_attribute=source,
        attributes=tuple(GroupAttribute(name, kind) for name, kind in attributes),
    )


DOGS = definition(("has_dog", "boolean_or"), ("score", "sum"))


async def grouped(store, application, new=DOGS, limit=None):
    """Create a definition, and give its number."""
    if limit is not None:
        application = await store.registry.update_application(
            application.client_id, users_per_group=limit
        )
    made, _ = await store.definitions.create_definition(application, new, "client_id:test")
    return made.number


def user():
    return ids.new()


async def write(store, env, facts, *, derive=True):
    """Write attributes of profiles (id -> name -> value, None deletes), each later than the last.

    As another process would that has not derived yet, unless it is to.
    """
    arriving = []
    for id16, attributes in facts.items():
        at = next(moments)
        told: list[tuple[str, int, int | bytes, bytes]] = [
            (name, at, b"", b"") if value is None else (name, at, at, json.dumps(value).encode())
            for name, value in attributes.items()
        ]
        arriving.append(Arriving(id16, [("created_at", T0)], told))
    await store.transfer.import_profiles(env, arriving)
    if derive:
        await store.derivation.derive_profiles(env, [env.mixer.mix(each) for each in facts])


async def shown(store, env, *users):
    """Give what profiles inherit."""
    return [dict((await store.records.get_profile(env, each)).inherited) for each in users]


async def instance_of(store, env, number, value):
    [found] = await store.instances.read(env, [env.mixer.instance_id(env.number, number, value)])
    return found


async def behind(store, env):
    """How many profiles and instances are behind."""
    totals = await store.totals.count(env)
    return totals.profiles_behind, totals.instances_behind


def dog(value, score=None):
    told = {"household:has_dog": value}
    return told if score is None else {**told, "household:score": score}


async def test_users_who_share_a_value_inherit_what_follows_from_all_of_them(
    store, application, env
):
    number = await grouped(store, application)
    john, jane, other = user(), user(), user()

    await write(
        store,
        env,
        {
            john: {"$address": "123 Main St", "has_dog": "true", "score": "1.5"},
            jane: {"$address": "123 Main St", "score": "2"},
            other: {"$address": "5 Side St", "has_dog": "false"},
        },
    )

    assert [dog("true", "3.5"), dog("true", "3.5"), dog("false")] == await shown(
        store, env, john, jane, other
    )
    found = await instance_of(store, env, number, "123 Main St")
    assert ("123 Main St", 2, number, False) == (
        found.value,
        found.total,
        found.number,
        found.stale,
    )
    assert [env.mixer.mix(john), env.mixer.mix(jane)] == [each.mixed for each in found.counted]
    assert (0, 0) == await behind(store, env)


async def test_whoever_moves_leaves_one_instance_and_joins_the_other(store, application, env):
    number = await grouped(store, application)
    john, jane, other = user(), user(), user()
    await write(
        store,
        env,
        {
            john: {"$address": "A", "has_dog": "true"},
            jane: {"$address": "A"},
            other: {"$address": "B"},
        },
    )

    await write(store, env, {john: {"$address": "B"}})

    assert [dog("true"), dog("false"), dog("true")] == await shown(store, env, john, jane, other)
    await write(store, env, {jane: {"$address": None}})
    assert [{}] == await shown(store, env, jane)
    assert await instance_of(store, env, number, "A") is None
    assert (0, 0) == await behind(store, env)


@pytest.mark.parametrize("nothing", [None, "", ["A", "B"]])
async def test_nobody_shares_nothing(store, application, env, nothing):
    await grouped(store, application)
    john, jane = user(), user()
    if nothing is None:
        await write(store, env, {john: {"has_dog": "true"}, jane: {"has_dog": "true"}})
    else:
        facts = {"$address": nothing, "has_dog": "true"}
        await write(store, env, {john: facts, jane: facts})

    assert [{}, {}] == await shown(store, env, john, jane)


async def test_only_so_many_users_count_and_a_place_that_becomes_free_is_the_next_ones(
    store, application, env
):
    number = await grouped(store, application, limit=3)
    users = [user() for _ in range(5)]
    await write(store, env, {each: {"$address": "A", "score": "1"} for each in users})

    assert [dog("false", "3")] * 3 + [{}, {}] == await shown(store, env, *users)
    found = await instance_of(store, env, number, "A")
    assert (5, 3) == (found.total, len(found.counted))

    await write(store, env, {users[1]: {"$address": "B"}})
    assert [dog("false", "3"), dog("false", "1"), *[dog("false", "3")] * 2, {}] == await shown(
        store, env, *users
    )

    # Who comes back comes last.
    await write(store, env, {users[1]: {"$address": "A"}})
    assert [dog("false", "3"), {}, *[dog("false", "3")] * 2, {}] == await shown(store, env, *users)
    assert (0, 0) == await behind(store, env)


async def test_who_has_had_the_value_for_longer_displaces_the_last_one_that_counts(
    store, application, env
):
    await grouped(store, application, limit=2)
    older = next(moments)
    one, other, late = user(), user(), user()
    await write(store, env, {each: {"$address": "A", "score": "1"} for each in (one, other)})

    await store.transfer.import_profiles(
        env,
        [
            Arriving(
                late,
                [("created_at", T0)],
                [("$address", older, older, b'"A"'), ("score", older, older, b'"5"')],
            )
        ],
    )
    await store.derivation.derive_profiles(env, [env.mixer.mix(late)])

    assert [dog("false", "6"), {}, dog("false", "6")] == await shown(store, env, one, other, late)
    assert (0, 0) == await behind(store, env)


async def test_what_lands_beyond_the_limit_changes_nothing_for_the_others(store, application, env):
    number = await grouped(store, application, limit=2)
    await write(store, env, {user(): {"$address": "A"} for _ in range(2)})
    before = await instance_of(store, env, number, "A")

    late = user()
    await write(store, env, {late: {"$address": "A", "has_dog": "true"}})
    await write(store, env, {late: {"has_dog": "false"}})

    after = await instance_of(store, env, number, "A")
    assert (before.version, 3) == (after.version, after.total)
    assert before.counted == after.counted


async def test_of_many_members_a_request_tells_its_own_and_the_worker_the_others(
    store, application, env
):
    await grouped(store, application, limit=1000)
    users = [user() for _ in range(150)]
    await write(store, env, {each: {"$address": "A", "score": "1"} for each in users})
    await work(store, grace_us=0)
    assert [dog("false", "150")] * 150 == await shown(store, env, *users)
    assert (0, 0) == await behind(store, env)

    await write(store, env, {users[7]: {"has_dog": "true"}})

    assert [dog("false", "150"), dog("true", "150")] == await shown(store, env, *users[6:8])
    assert (0, 1) == await behind(store, env)
    await work(store, grace_us=0)
    assert [dog("true", "150")] * 150 == await shown(store, env, *users)
    assert (0, 0) == await behind(store, env)


async def test_a_lower_limit_takes_from_those_who_count_no_more_what_they_had(
    store, application, env
):
    number = await grouped(store, application, limit=4)
    users = [user() for _ in range(6)]
    await write(store, env, {each: {"$address": "A", "score": "1"} for each in users})

    for limit, told in ((2, "2"), (5, "5"), (8, "6")):
        await store.registry.update_application(application.client_id, users_per_group=limit)
        await store.definitions.follow_settings(application.client_id)
        await work(store)
        counted = min(limit, 6)
        assert [dog("false", told)] * counted + [{}] * (6 - counted) == await shown(
            store, env, *users
        )
        assert counted == len((await instance_of(store, env, number, "A")).counted)
        assert (0, 0) == await behind(store, env)


async def test_a_process_with_old_rules_goes_by_the_new_ones(store, second, application, env):
    await grouped(store, application)
    john = user()
    await write(store, env, {john: {"$address": "A", "score": "1", "city": "Bonn"}})
    assert (await second.definitions.rules(env)).definitions
    await store.definitions.update_definition(
        application,
        "household",
        DefinitionChanges(attributes=(GroupAttribute("score", "count"),)),
        "client_id:test",
    )

    await second.derivation.derive_profiles(env, [env.mixer.mix(john)])

    assert [{"household:score": "1"}] == await shown(store, env, john)
    await store.definitions.update_definition(
        application, "household", DefinitionChanges(source_user_attribute="city"), "client_id:test"
    )
    await second.derivation.derive_profiles(env, [env.mixer.mix(john)])
    [held] = await shown(store, env, john)
    assert {"household:score": "1"} == held
    await store.definitions.delete_definition(application, "household")
    await second.derivation.derive_profiles(env, [env.mixer.mix(john)])
    assert [{}] == await shown(store, env, john)


async def test_an_application_without_definitions_derives_nothing(store, env):
    john = user()
    await write(store, env, {john: {"$address": "A"}})

    assert [{}] == await shown(store, env, john)
    assert (0, 0) == await behind(store, env)


async def test_instances_of_environments_and_of_definitions_have_nothing_to_do_with_each_other(
    store, application, env
):
    application = await store.registry.update_application(
        application.client_id, definitions_per_workspace=2
    )
    other = application.environments["development"]
    await grouped(store, application)
    await grouped(store, application, definition(("score", "max"), named="city", source="city"))
    john, jane = user(), user()
    facts = {"$address": "A", "city": "A", "score": "1"}

    await write(store, env, {john: facts})
    await write(store, other, {jane: {**facts, "score": "5"}})

    told = {**dog("false", "1"), "city:score": "1"}
    assert [told] == await shown(store, env, john)
    assert [{**dog("false", "5"), "city:score": "5"}] == await shown(store, other, jane)


async def test_contributions_of_the_same_moment_are_in_the_order_of_mpids(store, application, env):
    number = await grouped(store, application)
    users = [user() for _ in range(4)]
    at = next(moments)
    await store.transfer.import_profiles(
        env,
        [Arriving(each, [("created_at", T0)], [("$address", at, at, b'"A"')]) for each in users],
    )
    mixed = [env.mixer.mix(each) for each in users]
    for each, mpid in ((users[2], "-5"), (users[0], "7")):
        await store.transfer.import_identities(env, [(each, "mpid", mpid)])
    assert 4 == (await behind(store, env))[0]

    await store.derivation.derive_profiles(env, mixed)

    found = await instance_of(store, env, number, "A")
    assert [mixed[2], mixed[0], *sorted((mixed[1], mixed[3]))] == [
        each.mixed for each in found.counted
    ]
    assert [-5, 7, None, None] == [each.mpid for each in found.counted]
    # Who gets one later has another place then.
    await store.transfer.import_identities(env, [(users[3], "mpid", "-9")])
    await store.derivation.derive_profiles(env, [mixed[3]])
    found = await instance_of(store, env, number, "A")
    assert [-9, -5, 7, None] == [each.mpid for each in found.counted]


async def test_a_user_who_is_erased_counts_no_more(store, application, env):
    await grouped(store, application)
    john, jane = user(), user()
    await write(
        store,
        env,
        {
            john: {"$address": "A", "has_dog": "true", "score": "1"},
            jane: {"$address": "A", "score": "2"},
        },
    )

    await store.profiles.erase_profile(env, john)

    assert [dog("false", "2")] == await shown(store, env, jane)
    assert (0, 0) == await behind(store, env)


async def test_a_user_who_comes_back_by_a_clock_that_is_behind_counts_again(
    store, application, env, monkeypatch
):
    # Its seq was below that of the end of its contribution, which was remembered for an hour.
    await grouped(store, application)
    john, jane = user(), user()
    await write(store, env, {john: {"$address": "A", "score": "1"}, jane: {"$address": "A"}})
    await store.profiles.erase_profile(env, john)

    true_time = time.time_ns
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: true_time() - 600 * 10**9)
        await write(store, env, {john: {"$address": "A", "score": "5"}})

    assert [dog("false", "5")] * 2 == await shown(store, env, john, jane)
    assert (0, 0) == await behind(store, env)


@everywhere_apart
async def test_what_a_failover_lost_of_instances_is_told_anew_above_what_was_told(
    store, application, env, partitions
):
    number = await grouped(store, application)
    users = [user() for _ in range(3)]
    await write(store, env, {each: {"$address": "A", "score": "1"} for each in users})
    iid = env.mixer.instance_id(env.number, number, "A")
    tag = env.home(iid)
    told = (await instance_of(store, env, number, "A")).version
    # As after a failover to a replica that was far behind, with a clock that is, too.
    for kind in ("instance", "contributors"):
        gone = keys.of_instance(tag, kind, iid)
        await store.connection.command(gone, "DEL", gone)
    index = keys.instance_index(tag, number, keys.instance_bucket(iid))
    await store.connection.command(index, "DEL", index)
    for each in users:
        mixed = env.mixer.mix(each)
        listed = keys.of_profile(env.home(mixed), "instances", mixed)
        ahead = told + 10**12
        await store.connection.command(
            listed, "HSET", listed, iid, b'%d %d %d {"score":"9"}' % (number, ahead, number)
        )

    await store.derivation.derive_profiles(env, [env.mixer.mix(each) for each in users[:2]])
    assert [dog("false", "2")] * 2 == await shown(store, env, *users[:2])
    await store.derivation.derive_profiles(env, [env.mixer.mix(users[2])])

    assert [dog("false", "3")] * 3 == await shown(store, env, *users)
    assert (await instance_of(store, env, number, "A")).version > told + 10**12
    assert (0, 0) == await behind(store, env)


async def test_a_member_that_was_told_a_higher_version_is_told_anew(store, application, env):
    # By an instance's former life, or another clock: nobody could have told it anything any more.
    number = await grouped(store, application)
    john, jane = user(), user()
    await write(store, env, {john: {"$address": "A", "score": "1"}, jane: {"$address": "A"}})
    iid = env.mixer.instance_id(env.number, number, "A")
    mixed = env.mixer.mix(jane)
    listed = keys.of_profile(env.home(mixed), "instances", mixed)
    ahead = now_us() + 10**10
    await store.connection.command(
        listed, "HSET", listed, iid, b'%d %d %d {"score":"9"}' % (number, ahead, number)
    )

    await write(store, env, {john: {"score": "2"}})

    assert [dog("false", "2")] * 2 == await shown(store, env, john, jane)
    assert ahead < (await instance_of(store, env, number, "A")).version
    assert (0, 0) == await behind(store, env)


async def test_an_instance_that_comes_back_has_a_higher_version(store, application, env):
    number = await grouped(store, application)
    john = user()
    await write(store, env, {john: {"$address": "A"}})
    first = await instance_of(store, env, number, "A")
    iid = env.mixer.instance_id(env.number, number, "A")
    # It went at a time that is yet to come here.
    header = keys.of_instance(env.home(iid), "instance", iid)
    ahead = now_us() + 10**10
    await store.connection.command(header, "HSET", header, "version", ahead)
    await write(store, env, {john: {"$address": "B"}})
    assert await instance_of(store, env, number, "A") is None

    await write(store, env, {john: {"$address": "A"}})

    assert first.version < ahead < (await instance_of(store, env, number, "A")).version
    assert [dog("false")] == await shown(store, env, john)


class Pause:
    """Holds up one script of a store, before it is sent or after its answer, the first time."""

    def __init__(self, store, name, when, monkeypatch):
        self._name, self._when = name, when
        self._call = store.connection.call
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        monkeypatch.setattr(store.connection, "call", self._paused)

    async def _paused(self, script, *args, **kwargs):
        if script.name != self._name or self.reached.is_set():
            return await self._call(script, *args, **kwargs)
        if self._when == "after":
            answer = await self._call(script, *args, **kwargs)
        self.reached.set()
        await self.go_on.wait()
        return answer if self._when == "after" else await self._call(script, *args, **kwargs)


async def moves_away(store, application, env, john, jane):
    await write(store, env, {john: {"$address": "C"}})
    return [dog("true", "1"), dog("false", "2"), dog("false", "4")]


async def moves_back(store, application, env, john, jane):
    await write(store, env, {john: {"$address": "C"}})
    await write(store, env, {john: {"$address": "A"}})
    return [dog("true", "3"), dog("true", "3"), dog("false", "4")]


async def other_changes(store, application, env, john, jane):
    await write(store, env, {jane: {"score": "7"}})
    return [dog("true", "5"), dog("false", "7"), dog("true", "5")]


async def other_follows(store, application, env, john, jane):
    await write(store, env, {jane: {"$address": "B"}})
    return [dog("true", "7"), dog("true", "7"), dog("true", "7")]


async def is_erased(store, application, env, john, jane):
    await store.profiles.erase_profile(env, john)
    return [None, dog("false", "2"), dog("false", "4")]


async def comes_back(store, application, env, john, jane):
    await store.profiles.erase_profile(env, john)
    await write(store, env, {john: {"$address": "A", "score": "9"}})
    return [dog("false", "11"), dog("false", "11"), dog("false", "4")]


async def is_deleted(store, application, env, john, jane):
    await store.definitions.delete_definition(application, "household")
    await work(store)
    return [{}, {}, {}]


async def is_created_anew(store, application, env, john, jane):
    await store.definitions.delete_definition(application, "household")
    await work(store)
    await grouped(store, application)
    await work(store)
    return [dog("true", "5"), dog("false", "2"), dog("true", "5")]


async def has_other_attributes(store, application, env, john, jane):
    changes = DefinitionChanges(attributes=(GroupAttribute("score", "max"),))
    await store.definitions.update_definition(application, "household", changes, "client_id:test")
    await work(store)
    return [{"household:score": each} for each in ("4", "2", "4")]


async def has_a_lower_limit(store, application, env, john, jane):
    await store.registry.update_application(application.client_id, users_per_group=1)
    await store.definitions.follow_settings(application.client_id)
    await work(store)
    return [{}, dog("false", "2"), dog("false", "4")]


async def is_derived_by_another(store, application, env, john, jane):
    await store.derivation.derive_profiles(env, [env.mixer.mix(john)])
    return [dog("true", "5"), dog("false", "2"), dog("true", "5")]


MEANWHILE = (
    moves_away,
    moves_back,
    other_changes,
    other_follows,
    is_erased,
    comes_back,
    is_deleted,
    is_created_anew,
    has_other_attributes,
    has_a_lower_limit,
    is_derived_by_another,
)


@pytest.mark.parametrize("meanwhile", MEANWHILE)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("backing", "partitions"), [("embedded", 8)], indirect=True)
async def test_a_process_that_is_held_up_anywhere_changes_nothing_for_the_worse(
    store, second, application, env, step, when, meanwhile, monkeypatch
):
    """John moves from A, where Jane is, to B; his process is late, another one is not."""
    await grouped(store, application)
    john, jane, other = user(), user(), user()
    await write(
        store,
        env,
        {
            other: {"$address": "B", "score": "4"},
            jane: {"$address": "A", "score": "2"},
            john: {"$address": "A", "has_dog": "true", "score": "1"},
        },
    )
    await write(store, env, {john: {"$address": "B"}}, derive=False)
    held_up = Pause(second, step, when, monkeypatch)
    late = asyncio.create_task(second.derivation.derive_profiles(env, [env.mixer.mix(john)]))
    await held_up.reached.wait()

    told = await meanwhile(store, application, env, john, jane)
    held_up.go_on.set()
    await late

    # Nobody had to help: all that was begun is done.
    assert (0, 0) == await behind(store, env)
    known = [
        each
        for each, expected in zip((john, jane, other), told, strict=True)
        if expected is not None
    ]
    assert [each for each in told if each is not None] == await shown(store, env, *known)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
@everywhere_apart
async def test_the_worker_goes_on_wherever_a_process_died(
    store, second, application, env, partitions, step, when, monkeypatch
):
    await grouped(store, application)
    john, jane, other = user(), user(), user()
    await write(
        store,
        env,
        {
            other: {"$address": "B", "score": "4"},
            jane: {"$address": "A", "score": "2"},
            john: {"$address": "A", "has_dog": "true", "score": "1"},
        },
    )
    await write(store, env, {john: {"$address": "B"}}, derive=False)
    held_up = Pause(second, step, when, monkeypatch)
    dying = asyncio.create_task(second.derivation.derive_profiles(env, [env.mixer.mix(john)]))
    await held_up.reached.wait()
    dying.cancel()
    await asyncio.wait([dying])

    await work(store, grace_us=0)

    assert [dog("true", "5"), dog("false", "2"), dog("true", "5")] == await shown(
        store, env, john, jane, other
    )
    assert (0, 0) == await behind(store, env)


async def test_what_is_young_is_somebodys_work_in_progress(store, application, env):
    await grouped(store, application)
    # The job of the new definition derives everybody.
    await work(store)
    john = user()
    await write(store, env, {john: {"$address": "A"}}, derive=False)

    await work(store)
    assert (1, 0) == await behind(store, env)

    dirty = keys.key(env.home(env.mixer.mix(john)), "dirty")
    # By a clock that ran ahead: it is not from before, but it need not wait until then.
    await store.connection.command(
        dirty, "ZADD", dirty, now_us() + 3600 * 10**6, env.mixer.mix(john)
    )
    await work(store)
    assert (0, 0) == await behind(store, env)
    assert [dog("false")] == await shown(store, env, john)


@everywhere_apart
async def test_two_processes_that_change_one_household_at_once_are_both_right(
    store, second, application, env, partitions
):
    await grouped(store, application)
    users = [user() for _ in range(4)]
    await write(store, env, {each: {"$address": "A", "score": "0"} for each in users})

    for turn in range(1, 15):
        await asyncio.gather(
            *(
                write(each, env, {one: {"score": str(turn)}, other: {"score": str(turn)}})
                for each, one, other in ((store, *users[:2]), (second, *users[2:]))
            )
        )
        assert [dog("false", str(4 * turn))] * 4 == await shown(store, env, *users)
        assert (0, 0) == await behind(store, env)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("backing", "partitions"), [("embedded", 8)], indirect=True)
async def test_whatever_order_the_scripts_of_many_at_once_come_in_the_end_is_exact(
    store, second, application, env, partitions, seed, monkeypatch
):
    """Two processes write, move, erase and change rules, and every script may be late."""
    chance = random.Random(seed)
    await grouped(store, application, limit=2)
    users = [user() for _ in range(5)]
    turns = itertools.count(1)

    def delayed(call):
        async def late(script, *args, **kwargs):
            await asyncio.sleep(chance.choice((0, 0, 0.001, 0.01)))
            answer = await call(script, *args, **kwargs)
            await asyncio.sleep(chance.choice((0, 0, 0.001, 0.01)))
            return answer

        return late

    for each in (store, second):
        monkeypatch.setattr(each.connection, "call", delayed(each.connection.call))

    async def act(process):
        for _ in range(6):
            one = chance.choice(users)
            dice = chance.random()
            with contextlib.suppress(Unavailable, NotFound):
                if dice < 0.1:
                    await process.profiles.erase_profile(env, one)
                elif dice < 0.2 and seed % 2:
                    kind = chance.choice(("sum", "count", "max"))
                    changes = DefinitionChanges(attributes=(GroupAttribute("score", kind),))
                    await process.definitions.update_definition(
                        application, "household", changes, "client_id:test"
                    )
                    await process.derivation.derive_profiles(env, list(map(env.mixer.mix, users)))
                else:
                    told = {"$address": chance.choice("AB"), "score": str(next(turns))}
                    await write(process, env, {one: told})

    await asyncio.gather(*(act(each) for each in (store, second) * 4))
    if seed % 2:
        # What the job of the last rules would do; else nobody has to help.
        await store.derivation.derive_profiles(env, list(map(env.mixer.mix, users)))

    assert (0, 0) == await behind(store, env)


async def test_a_profile_that_others_keep_changing_is_left_to_the_worker(
    store, second, application, env, monkeypatch
):
    await grouped(store, application)
    john = user()
    await write(store, env, {john: {"$address": "A", "score": "0"}}, derive=False)
    call = second.connection.call

    async def changed_meanwhile(script, *args, **kwargs):
        if script.name == "finish_profiles":
            await write(store, env, {john: {"score": str(next(moments))}}, derive=False)
        return await call(script, *args, **kwargs)

    monkeypatch.setattr(second.connection, "call", changed_meanwhile)
    monkeypatch.setattr(store_derivation, "PAUSE_SECONDS", 0)

    await second.derivation.derive_profiles(env, [env.mixer.mix(john)])

    assert (1, 0) == await behind(store, env)
    await work(store, grace_us=0)
    assert (0, 0) == await behind(store, env)


async def test_rules_that_keep_changing_are_unavailable_and_nothing_is_lost(
    store, second, application, env, monkeypatch
):
    await grouped(store, application)
    john = user()
    await write(store, env, {john: {"$address": "A", "score": "1"}}, derive=False)
    call = second.connection.call
    kinds = itertools.cycle(("max", "sum"))

    async def changed_meanwhile(script, *args, **kwargs):
        if script.name == "read_facts":
            changes = DefinitionChanges(attributes=(GroupAttribute("score", next(kinds)),))
            await store.definitions.update_definition(
                application, "household", changes, "client_id:test"
            )
        return await call(script, *args, **kwargs)

    monkeypatch.setattr(second.connection, "call", changed_meanwhile)
    monkeypatch.setattr(store_derivation, "PAUSE_SECONDS", 0)

    with pytest.raises(Unavailable, match="are being changed by too many others"):
        await second.derivation.derive_profiles(env, [env.mixer.mix(john)])

    assert (1, 0) == await behind(store, env)
    await work(store, grace_us=0)
    assert [{"household:score": "1"}] == await shown(store, env, john)


async def test_facts_that_were_read_long_ago_are_read_again(store, application, env, monkeypatch):
    # A process that was stopped for longer than ends of contributions are remembered.
    await grouped(store, application)
    john = user()
    await write(store, env, {john: {"$address": "A"}}, derive=False)
    reads = []
    call = store.connection.call
    true_time = time.time_ns

    async def stopped(script, *args, **kwargs):
        if script.name == "read_facts":
            reads.append(script.name)
        if script.name == "list_contributions" and len(reads) == 1:
            monkeypatch.setattr(time, "time_ns", lambda: true_time() + ENDED_US * 1000)
        return await call(script, *args, **kwargs)

    monkeypatch.setattr(store.connection, "call", stopped)
    await store.derivation.derive_profiles(env, [env.mixer.mix(john)])

    assert 2 == len(reads)
    assert [dog("false")] == await shown(store, env, john)


@pytest.mark.parametrize("what", ["profile", "instance"])
async def test_what_cannot_be_derived_does_not_keep_the_others_waiting(
    store, application, env, what, caplog, monkeypatch
):
    number = await grouped(store, application, limit=1000)
    users = [user() for _ in range(5)]
    await work(store)
    await write(store, env, {each: {"$address": str(at)} for at, each in enumerate(users)})
    if what == "profile":
        await write(store, env, {each: {"has_dog": "true"} for each in users}, derive=False)
        broken = env.mixer.mix(users[2])
        spoilt = keys.of_profile(env.home(broken), "instances", broken)
        field, kind = b"x" * 16, "dirty"
    else:
        monkeypatch.setattr(store_telling, "TELL", 0)
        await write(store, env, {each: {"has_dog": "true"} for each in users})
        broken = env.mixer.instance_id(env.number, number, "2")
        spoilt = keys.of_instance(env.home(broken), "instance", broken)
        field, kind = env.mixer.mix(users[2]), "stale"
    held = await store.connection.command(spoilt, "HGET", spoilt, field)
    await store.connection.command(spoilt, "HSET", spoilt, field, "nonsense")

    await work(store, grace_us=0)

    assert [dog("true")] * 4 == await shown(store, env, *users[:2], *users[3:])
    assert "is not finished" in caplog.text
    assert (1, 0) if what == "profile" else (0, 1) == await behind(store, env)
    # It waits behind all others, for somebody who mends it.
    waiting = keys.key(env.home(broken), kind)
    since = await store.connection.command(waiting, "ZSCORE", waiting, broken)
    assert now_us() - int(since) < 10**7
    await store.connection.command(spoilt, "HDEL", spoilt, field)
    if held is not None:
        await store.connection.command(spoilt, "HSET", spoilt, field, held)
    await work(store, grace_us=0)
    assert [dog("true")] * 5 == await shown(store, env, *users)
    assert (0, 0) == await behind(store, env)


async def test_what_does_not_fit_into_a_look_is_gone_on_with_in_the_next(store, application, env):
    await grouped(store, application)
    await work(store)
    users = [user() for _ in range(20)]
    await write(store, env, {each: {"$address": "A"} for each in users}, derive=False)

    first = await store.derivation.derive_dirty(env, now_us(), budget_seconds=0)

    assert 0 < first <= 20
    assert {env.number} == store.derivation.interrupted
    assert 20 - first == await store.derivation.derive_dirty(env, now_us())
    assert (0, 0) == await behind(store, env)


async def test_lag_and_backlog_are_counted(store, application, env):
    await grouped(store, application, limit=1000)
    john = user()
    await write(store, env, {john: {"$address": "A"}}, derive=False)
    counters = Counters("worker")

    await count(store, counters)

    told = counters.snapshot().gauges
    assert 1 == told[key("belong_worker_backlog", ["profile"])]
    assert 0 == told[key("belong_worker_backlog", ["instance"])]
    assert 0 < told[key("belong_derivation_lag_seconds", ["profile"])] < 60
    assert 0 == told[key("belong_derivation_lag_seconds", ["instance"])]
    await work(store, grace_us=0, counters=counters)
    await count(store, counters)
    told = counters.snapshot().gauges
    assert 0 == told[key("belong_worker_backlog", ["profile"])]
    assert 0 == told[key("belong_derivation_lag_seconds", ["profile"])]


async def test_ends_are_remembered_for_an_hour(store, application, env):
    number = await grouped(store, application)
    john, jane = user(), user()
    await write(store, env, {john: {"$address": "A"}, jane: {"$address": "B"}})
    await write(store, env, {each: {"$address": None} for each in (john, jane)})

    async def remembered():
        found = 0
        for tag in env.partitions:
            ended = keys.key(tag, "ended")
            found += await store.connection.command(ended, "ZCARD", ended)
        return found

    # Each end, and each instance that is gone.
    assert 4 == await remembered()
    assert 0 == await store.derivation.purge_ended(env, now_us() - ENDED_US)
    assert 4 == await store.derivation.purge_ended(env, now_us() + 1)
    assert 0 == await remembered()
    assert await instance_of(store, env, number, "A") is None


async def test_many_definitions_and_large_values_are_derived_in_parts(
    store, application, env, monkeypatch
):
    monkeypatch.setattr(store_derivation, "READ_BYTES", 10_000)
    monkeypatch.setattr(store_derivation, "WRITE_BYTES", 10_000)
    monkeypatch.setattr(rows, "WRITE_BYTES", 10_000)
    monkeypatch.setattr(store_instances, "READ_BYTES", 10_000)
    application = await store.registry.update_application(
        application.client_id, definitions_per_workspace=10, attributes_per_definition=100
    )
    for at in range(4):
        many = ((f"a{at}-{each}", "latest") for each in range(99))
        await grouped(store, application, definition(*many, named=f"group{at}", source=f"s{at}"))
    users = [user() for _ in range(7)]
    text = "ü" * 3_000

    await write(
        store,
        env,
        {
            each: {"s0": "A", "s3": text, "a0-1": text, "a3-98": [text[:500]] * 20, "unnamed": "x"}
            for each in users
        },
    )

    told = {"group0:a0-1": text, "group3:a3-98": [text[:500]] * 20}
    assert [told] * 7 == await shown(store, env, *users)
    assert (0, 0) == await behind(store, env)


async def test_a_large_instance_is_read_in_parts_and_as_it_was_at_one_moment(
    store, second, application, env, monkeypatch
):
    number = await grouped(store, application, limit=100)
    users = [user() for _ in range(60)]
    await write(store, env, {each: {"$address": "A", "score": "1"} for each in users})
    before = await instance_of(store, env, number, "A")
    monkeypatch.setattr(store_instances, "READ_CONTRIBUTIONS", 7)
    call = second.connection.call
    reads = []

    async def changed_meanwhile(script, *args, **kwargs):
        answer = await call(script, *args, **kwargs)
        if script.name == "read_instances":
            reads.append(answer)
            if len(reads) == 3:
                await write(store, env, {users[0]: {"score": "5"}})
        return answer

    monkeypatch.setattr(second.connection, "call", changed_meanwhile)
    wanted = [env.mixer.instance_id(env.number, number, each) for each in ("A", "A", "B")]
    found, again = await second.instances.read(env, wanted[:2])

    assert (60, 60) == (len(found.counted), found.total)
    assert again == found == await instance_of(store, env, number, "A")
    assert found.version > before.version
    assert before.counted[1:] == found.counted[1:]
    assert len(reads) > 9
    assert [None, found] == await second.instances.read(env, [wanted[2], wanted[0]])


@pytest.mark.parametrize("fits", [True, False])
async def test_an_instance_that_changes_at_every_look_is_read_at_one_look_if_that_can_be(
    store, second, application, env, monkeypatch, fits
):
    number = await grouped(store, application, limit=100)
    users = [user() for _ in range(10)]
    await write(store, env, {each: {"$address": "A", "score": "1"} for each in users})
    monkeypatch.setattr(store_instances, "READ_CONTRIBUTIONS", 7)
    call = second.connection.call

    async def changed_meanwhile(script, *args, **kwargs):
        answer = await call(script, *args, **kwargs)
        await write(store, env, {users[0]: {"score": str(next(moments))}})
        return answer

    monkeypatch.setattr(second.connection, "call", changed_meanwhile)

    if fits:
        assert 10 == len((await instance_of(second, env, number, "A")).counted)
        return
    monkeypatch.setattr(store_instances, "WHOLE_BYTES", 1)
    with pytest.raises(Unavailable, match="changed by too many others"):
        await instance_of(second, env, number, "A")


@on_one_server
async def test_a_full_store_can_be_emptied_of_users_and_their_instances(
    store, backing, application, env, partitions
):
    number = await grouped(store, application)
    john, jane = user(), user()
    await write(store, env, {john: {"$address": "A", "has_dog": "true"}, jane: {"$address": "A"}})
    backing.ask("CONFIG", "SET", "maxmemory", "1")
    try:
        await store.profiles.erase_profile(env, john)
        assert [dog("false")] == await shown(store, env, jane)
        await store.profiles.erase_profile(env, jane)
    finally:
        backing.ask("CONFIG", "SET", "maxmemory", "0")

    assert await instance_of(store, env, number, "A") is None
    assert (0, 0) == await behind(store, env)


@on_one_server
async def test_on_a_full_store_the_job_of_a_deleted_definition_frees_what_it_kept(
    store, backing, application, env, partitions
):
    # The contributions to the other definition, which stay as they are, were refused.
    application = await store.registry.update_application("test", definitions_per_workspace=2)
    number = await grouped(store, application)
    other = definition(("has_dog", "latest"), source="city", named="town")
    gone = await grouped(store, application, other)
    users = [user() for _ in range(6)]
    facts = {"$address": "A", "city": "B", "has_dog": "true"}
    await write(store, env, dict.fromkeys(users, facts))
    await work(store)
    backing.ask("CONFIG", "SET", "maxmemory", "1")
    try:
        await store.definitions.delete_definition(application, "town")
        await work(store)
        assert [dog("true")] * 6 == await shown(store, env, *users)
    finally:
        backing.ask("CONFIG", "SET", "maxmemory", "0")
    assert {"done"} == {job.state for job in await store.jobs.list_jobs(application)}
    assert await instance_of(store, env, gone, "B") is None
    assert 6 == (await instance_of(store, env, number, "A")).total


async def test_who_fell_out_is_remembered_until_told_and_no_longer(store, application, env):
    # With more than 100 to tell only the worker drops them, and somebody else came in between.
    number = await grouped(store, application, limit=2)
    users = [user() for _ in range(3)]
    await write(store, env, {each: {"$address": "A"} for each in users})
    iid = env.mixer.instance_id(env.number, number, "A")
    tag = env.home(iid)
    formers = keys.of_instance(tag, "formers", iid)
    version = (await instance_of(store, env, number, "A")).version
    first, later = (env.mixer.mix(each) for each in users[:2])
    for mixed, at in ((first, version), (later, version + 1)):
        await store.connection.command(formers, "ZADD", formers, str(at), mixed)
    key = keys.of_instance(tag, "instance", iid)
    await store.connection.command(key, "HSET", key, "version", str(version + 1))
    stale = keys.key(tag, "stale")
    await store.connection.command(stale, "ZADD", stale, "1", iid)
    letter = await store.connection.call(
        scripts.load("release_instances"),
        [stale, keys.key(tag, "ended"), keys.none(tag)],
        [T0, iid, version, 0, "+"],
    )
    assert (b"V", [later]) == (
        letter,
        await store.connection.command(formers, "ZRANGE", formers, "0", "-1"),
    )
    await store.derivation.settle_stale(env, 2**52)
    assert 0 == await store.connection.command(formers, "EXISTS", formers)


@on_one_server
async def test_a_crowd_at_one_value_costs_a_newcomer_what_few_do(
    store, application, env, partitions
):
    await grouped(store, application)
    await work(store)

    async def commands(value):
        newcomer = user()
        await write(store, env, {newcomer: {"$address": value}}, derive=False)
        before = store.connection.stats.commands
        await store.derivation.derive_profiles(env, [env.mixer.mix(newcomer)])
        return store.connection.stats.commands - before

    await write(store, env, {user(): {"$address": "few"} for _ in range(5)})
    for _ in range(10):
        await write(store, env, {user(): {"$address": "N/A"} for _ in range(200)})

    assert await commands("N/A") < await commands("few") <= 7


@pytest.mark.alone
@pytest.mark.parametrize("members", [4, 4_000])
async def test_no_script_holds_the_server_up_for_long(members):
    """The slowest kind of script of bulks: everybody joins, changes and moves, in any order."""
    server = backings.embedded("--slowlog-log-slower-than", "0", "--slowlog-max-len", "20000")
    try:
        store = await Store.open(server.url)
        application = await store.registry.create_application("test")
        env = application.production
        await grouped(store, application, limit=10)
        users = [user() for _ in range(4_000)]
        names = {scripts.load(name).sha.encode(): name for name in scripts.Scripts().names()}
        found: dict[tuple[int, str], list[float]] = {}
        for turn in range(3):
            random.shuffle(users)
            for at in range(0, len(users), 200):
                facts = {
                    each: {"$address": str((hash(each) + turn // 2) % (4_000 // members))}
                    | {"has_dog": str(turn)}
                    for each in users[at : at + 200]
                }
                await write(store, env, facts, derive=False)
                server.ask("SLOWLOG", "RESET")
                server.ask("EVAL", REFERENCE, 0)
                slower = max(1, server.ask("SLOWLOG", "GET", 1)[0][2] / REFERENCE_US)
                server.ask("SLOWLOG", "RESET")
                await store.derivation.derive_profiles(env, [env.mixer.mix(each) for each in facts])
                for _, _, us, command, *_ in server.ask("SLOWLOG", "GET", -1):
                    if command[0] == b"EVALSHA":
                        found.setdefault((turn, names[command[1]]), []).append(us / slower)
        # Of each step only its largest scripts, which are some tenths of all.
        large = {each: sorted(us)[len(us) * 7 // 10] for each, us in found.items()}
        print(large)  # noqa: T201 - `-s` shows the table
        assert {name: us for name, us in large.items() if us > LONGEST_US} == {}
        await store.close()
    finally:
        server.stop()
