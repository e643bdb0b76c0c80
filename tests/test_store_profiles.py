"""Identities and erasing, above all where several processes meet.

A second Store over the same server stands for a second process. Steps of the protocol are held up
by wrapping them: `held_up` stops one until it is let go, `delayed` makes all of them late.
"""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from service import keys, scripts, store_profiles
from service.errors import Conflict, Erasing, NotFound, Unavailable
from service.grouping import GroupAttribute
from service.groups import NewGroup
from service.ids import head, new
from service.store_definitions import NewDefinition
from service.store_profiles import Erased
from service.store_records import NewProfile, ProfileChanges
from service.worker import work
from tests.test_store_members import broken, noted
from tests.test_store_settling import audience, held, no, unsettled
from tests.test_store_settling import members as within

ROUNDS = 200
STEPS = ("_reserve", "_confirm", "_fence", "_settle", "_release")

both_topologies = pytest.mark.parametrize(
    ("backing", "partitions"), [("embedded", 1), ("cluster", 8)], indirect=True
)


class HeldUp:
    """A step that one process is about to take: `reached` when it gets there, `go` lets it."""

    def __init__(self, profiles, step):
        self.reached, self.go = asyncio.Event(), asyncio.Event()
        self._step = getattr(profiles, step)

    async def __call__(self, *args):
        self.reached.set()
        await self.go.wait()
        return await self._step(*args)


@asynccontextmanager
async def held_up(store, step, doing):
    """Start something that stops before a step, and let it go on when the block is left."""
    gate = HeldUp(store.profiles, step)
    setattr(store.profiles, step, gate)
    task = asyncio.ensure_future(doing)
    await asyncio.wait_for(gate.reached.wait(), 5)
    delattr(store.profiles, step)
    try:
        yield task
    finally:
        gate.go.set()
        with suppress(Conflict, Unavailable):
            await task


def delay(store, seconds):
    """Make every step of the protocol late by up to some time, chosen for each."""

    def late(step):
        taken = getattr(store.profiles, step)

        async def later(*args):
            if random.random() < 0.7:
                await asyncio.sleep(random.random() * seconds)
            return await taken(*args)

        return later

    for step in STEPS:
        setattr(store.profiles, step, late(step))


async def owner(store, env, kind, value):
    [found] = await store.profiles.resolve_identities(env, kind, [value], create=False)
    return found


async def identities_of(store, env, profile):
    mixed = env.mixer.mix(profile)
    key = keys.of_profile(env.partitions[head(mixed) % len(env.partitions)], "identities", mixed)
    return await store.connection.command(key, "HKEYS", key)


async def test_an_identity_gets_one_profile_and_keeps_it(store, env):
    values = ["a", "b", "a"]
    first = await store.profiles.resolve_identities(env, "customer_id", values, create=True)
    again = await store.profiles.resolve_identities(env, "customer_id", values, create=True)
    assert (first, first[0], 2) == (again, first[2], len(set(first)))


async def test_an_unknown_identity_resolves_to_nobody(store, env):
    found = await store.profiles.resolve_identities(env, "email", ["nobody"], create=False)
    assert [None] == found


async def test_types_of_identities_do_not_mix(store, env):
    [one] = await store.profiles.resolve_identities(env, "customer_id", ["x"], create=True)
    [two] = await store.profiles.resolve_identities(env, "email", ["x"], create=True)
    assert one != two


@pytest.mark.parametrize("value", ["", "\x00", "a:b", "{7}:groups", "ünï 🙂", "x" * 255])
async def test_an_identity_may_hold_any_text(store, env, value):
    [made] = await store.profiles.resolve_identities(env, "email", [value], create=True)
    await store.profiles.add_identity(env, made, "customer_id", value)
    assert made == await owner(store, env, "customer_id", value)


@pytest.mark.parametrize("backing", ["embedded", "cluster"], indirect=True)
async def test_ten_thousand_identities_resolve_in_one_call(store, env):
    values = [f"person {n}" for n in range(10_000)]
    made = await store.profiles.resolve_identities(env, "customer_id", values, create=True)
    assert 10_000 == len(set(made))
    assert made == await store.profiles.resolve_identities(env, "customer_id", values, create=False)


async def test_a_new_profile_lives_where_its_identity_lives(store, env):
    values = [f"v{n}" for n in range(50)]
    made = await store.profiles.resolve_identities(env, "email", values, create=True)
    count = len(env.partitions)
    places = [head(env.mixer.mix(each)) % count for each in made]
    assert [env.mixer.place_identity("email", each, count)[0] for each in values] == places


async def test_a_profile_has_one_custom_id(store, env):
    [made] = await store.profiles.resolve_identities(env, "customer_id", ["one"], create=True)
    with pytest.raises(Conflict):
        await store.profiles.add_identity(env, made, "customer_id", "two")
    assert await owner(store, env, "customer_id", "two") is None


async def test_an_identity_is_added_though_the_clock_went_back(store, env, monkeypatch):
    # Whoever had been refused one before was 503 until the clock was there again.
    [made] = await store.profiles.resolve_identities(env, "customer_id", ["one"], create=True)
    with pytest.raises(Conflict):
        await store.profiles.add_identity(env, made, "customer_id", "two")
    now_us = store_profiles._now_us
    monkeypatch.setattr(store_profiles, "_now_us", lambda: now_us() - 3_600_000_000)
    await store.profiles.add_identity(env, made, "email", "e")
    assert made == await owner(store, env, "email", "e")


async def test_an_identity_of_another_profile_is_not_stolen(store, env):
    [one, two] = await store.profiles.resolve_identities(env, "email", ["1", "2"], create=True)
    with pytest.raises(Conflict):
        await store.profiles.add_identity(env, two, "email", "1")
    assert one == await owner(store, env, "email", "1")


async def test_a_profile_with_an_identity_and_no_groups_is_a_profile(store, env):
    profile = new()
    await store.profiles.add_identity(env, profile, "email", "x")
    [count] = await store.members.count_members(env, [0])
    assert 1 == count


async def test_erasing_says_what_it_removed(store, env):
    [profile] = await store.profiles.resolve_identities(env, "customer_id", ["x"], create=True)
    await store.profiles.add_identity(env, profile, "email", "y")
    for name in "abc":
        group = await store.groups.create_group(env, NewGroup(name=name))
        await store.members.add_members(env, group.number, profile)
    erased = await store.profiles.erase_profile(env, profile)
    assert Erased(memberships=3, identities=2) == erased


async def test_erasing_somebody_unknown_is_not_found(store, env):
    with pytest.raises(NotFound):
        await store.profiles.erase_profile(env, new())


@pytest.mark.parametrize("backing", ["fake", "embedded"], indirect=True)
async def test_erasing_takes_bounded_steps(store, env, monkeypatch):
    monkeypatch.setattr(store_profiles, "CHUNK", 3)
    profile = new()
    for n in range(7):
        await store.profiles.add_identity(env, profile, "other", str(n))
        group = await store.groups.create_group(env, NewGroup(name="g"))
        await store.members.add_members(env, group.number, profile)
    erased = await store.profiles.erase_profile(env, profile)
    assert Erased(memberships=7, identities=7) == erased


async def test_a_profile_being_erased_is_skipped_by_everybody(store, env):
    [profile] = await store.profiles.resolve_identities(env, "email", ["x"], create=True)
    group = await store.groups.create_group(env, NewGroup(name="g"))
    await store.members.add_members(env, group.number, profile)
    async with held_up(store, "_release", store.profiles.erase_profile(env, profile)):
        packed = profile + new()
        number = group.number
        assert b"E+" == await store.members.add_members(env, number, packed)
        assert b"E-" == await store.members.remove_members(env, number, packed)
        assert b"E0" == await store.members.check_members(env, [number, number], packed)
        with pytest.raises(Erasing):
            await store.members.get_member(env, number, profile)
        with pytest.raises(Erasing):
            await store.lookups.list_profile_groups(env, profile, None, 10)
        with pytest.raises(Erasing):
            await store.profiles.add_identity(env, profile, "email", "z")
    assert await owner(store, env, "email", "z") is None


@both_topologies
async def test_of_two_profiles_that_take_one_identity_exactly_one_gets_it(store, second, env):
    delay(store, 0.003)
    delay(second, 0.003)
    for n in range(ROUNDS):
        profiles, value = [new(), new()], f"race {n}"
        done = await asyncio.gather(
            *(
                each.profiles.add_identity(env, profile, "email", value)
                for each, profile in zip((store, second), profiles, strict=True)
            ),
            return_exceptions=True,
        )
        [winner] = [profile for profile, ended in zip(profiles, done, strict=True) if ended is None]
        assert [Conflict] == [type(ended) for ended in done if ended is not None]
        assert winner == await owner(store, env, "email", value)


@both_topologies
async def test_a_reservation_that_waits_is_taken_over_and_then_refused(store, second, env):
    slow, fast = new(), new()
    adding = store.profiles.add_identity(env, slow, "email", "x")
    async with held_up(store, "_confirm", adding) as task:
        await second.profiles.add_identity(env, fast, "email", "x")
    with pytest.raises(Conflict):
        await task
    assert (fast, []) == (
        await owner(store, env, "email", "x"),
        await identities_of(store, env, slow),
    )


@both_topologies
async def test_a_reservation_that_was_confirmed_is_not_taken_over(store, second, env):
    slow, fast = new(), new()
    adding = store.profiles.add_identity(env, slow, "email", "x")
    async with held_up(store, "_settle", adding):
        with pytest.raises(Conflict):
            await second.profiles.add_identity(env, fast, "email", "x")
    assert slow == await owner(store, env, "email", "x")


@both_topologies
async def test_creating_meets_a_reservation_that_waits(store, second, env):
    slow = new()
    adding = store.profiles.add_identity(env, slow, "email", "x")
    async with held_up(store, "_confirm", adding) as task:
        [made] = await second.profiles.resolve_identities(env, "email", ["x"], create=True)
    with pytest.raises(Conflict):
        await task
    assert made == await owner(store, env, "email", "x")


@both_topologies
async def test_creating_meets_a_reservation_that_was_confirmed(store, second, env):
    slow = new()
    adding = store.profiles.add_identity(env, slow, "email", "x")
    async with held_up(store, "_settle", adding):
        found = await second.profiles.resolve_identities(env, "email", ["w", "x", "y"], create=True)
    assert slow == found[1]


@both_topologies
async def test_the_worker_settles_an_attempt_and_the_late_process_makes_another(store, second, env):
    profile = new()
    adding = store.profiles.add_identity(env, profile, "email", "x")
    async with held_up(store, "_confirm", adding) as task:
        await work(second, grace_us=0)
        assert await owner(second, env, "email", "x") is None
    await task
    assert profile == await owner(store, env, "email", "x")


@both_topologies
async def test_an_identity_added_while_its_profile_is_erased_is_wholly_there_or_not(
    store, second, env
):
    """The profile was erased between reserve and confirm of an identity that it had before.

    The late confirm then wrote it into the profile, while nothing resolved to that any more.
    """
    profile = new()
    first = store.profiles.add_identity(env, profile, "email", "x")
    async with held_up(store, "_settle", first):
        again = second.profiles.add_identity(env, profile, "email", "x")
        async with held_up(second, "_confirm", again):
            await store.profiles.erase_profile(env, profile)
    await work(store, grace_us=0)
    found = await owner(store, env, "email", "x")
    held = await identities_of(store, env, profile)
    assert (found is None, found in {None, profile}) == (held == [], True)


@both_topologies
async def test_a_profile_is_erased_while_others_write_to_it(store, second, env):
    delay(second, 0.002)
    delay(store, 0.002)
    groups = [await store.groups.create_group(env, NewGroup(name="g")) for _ in range(3)]
    for n in range(40):
        profile = new()
        await store.profiles.add_identity(env, profile, "customer_id", f"c{n}")
        for group in groups[:2]:
            await store.members.add_members(env, group.number, profile)
        done = await asyncio.gather(
            store.profiles.erase_profile(env, profile),
            second.profiles.erase_profile(env, profile),
            *(
                second.members.add_members(env, group.number, profile + new())
                for group in groups * 2
            ),
            second.profiles.add_identity(env, profile, "customer_id", f"c{n}"),
            second.profiles.add_identity(env, profile, "email", f"e{n}"),
            second.lookups.list_profile_groups(env, profile, None, 10),
            second.profiles.resolve_identities(env, "customer_id", [f"c{n}"], create=True),
            return_exceptions=True,
        )
        failures = [each for each in done if isinstance(each, BaseException)]
        assert [] == [
            each for each in failures if not isinstance(each, (Erasing, NotFound, Conflict))
        ]
    await work(store, grace_us=0)


def test_no_script_orders_texts():
    """How Lua compares strings is up to the locale of the server.

    With en_US.UTF-8 new profiles stood in wrong segments of group 0: their ids had been sorted.
    """
    files = Path(str(scripts.Scripts().folder)).rglob("*.lua")
    sorts = {
        (file.stem, sorted_by)
        for file in files
        for sorted_by in re.findall(r"table\.sort\((.*)\)", file.read_text())
    }
    numbers = {("list_profile_groups", "listed")}
    assert numbers == {(name, by) for name, by in sorts if ", " not in by}


async def test_a_process_held_up_in_erasing_takes_nothing_that_was_given_anew(
    store, second, env, monkeypatch
):
    # Two processes erased one profile. The second was held up before it released the identity;
    # meanwhile the first finished, and the profile got the same identity again. The late release
    # took that away: the profile listed an identity that resolved to nobody.
    profile = new()
    await store.profiles.add_identity(env, profile, "customer_id", "c")
    reached, go = asyncio.Event(), asyncio.Event()
    release = second.profiles._release

    async def late(*arguments):
        reached.set()
        await go.wait()
        return await release(*arguments)

    monkeypatch.setattr(second.profiles, "_release", late)
    slow = asyncio.create_task(second.profiles.erase_profile(env, profile))
    await reached.wait()
    await store.profiles.erase_profile(env, profile)
    await store.profiles.add_identity(env, profile, "customer_id", "c")
    go.set()
    await slow
    assert await store.profiles.resolve_identities(env, "customer_id", ["c"], create=False) == [
        profile
    ]


async def test_a_process_held_up_in_erasing_does_not_end_a_later_erasing(
    store, second, env, monkeypatch
):
    # The first stopped before its last script; another finished; the profile came back and was
    # erased anew. The late script dropped the mark of that: it reported success, and the new
    # memberships stayed.
    profile = new()
    await store.profiles.add_identity(env, profile, "email", "x")
    group = await store.groups.create_group(env, NewGroup(name="g"))
    reached, go = asyncio.Event(), asyncio.Event()
    call = second.connection.call

    async def late(script, *arguments, **options):
        if script.name == "finish_erase":
            reached.set()
            await go.wait()
        return await call(script, *arguments, **options)

    monkeypatch.setattr(second.connection, "call", late)
    slow = asyncio.create_task(second.profiles.erase_profile(env, profile))
    await reached.wait()
    await store.profiles.erase_profile(env, profile)
    await store.members.add_members(env, group.number, profile)
    mixed = env.mixer.mix(profile)
    tag = env.partitions[head(mixed) % len(env.partitions)]
    begin = [keys.key(tag, "erasing"), keys.of_profile(tag, "profile", mixed), keys.none(tag)]
    await store.connection.call(scripts.load("begin_erase"), begin, [mixed, 1])
    go.set()
    await slow
    await store.profiles.finish_erasures(env)
    assert await store.members.check_members(env, [group.number], profile) == b"0"


@both_topologies
async def test_who_is_erased_a_second_time_is_left_to_whoever_is_erasing_it(store, second, env):
    # The worker took the second mark for the first, stepped in, and the answer missed what it did.
    profile = new()

    async def erasing():
        await store.profiles.add_identity(env, profile, "email", "e")
        async with held_up(store, "_release", store.profiles.erase_profile(env, profile)):
            return await second.profiles.finish_erasures(env, grace_seconds=0.1)

    assert 0 == await erasing()
    await second.profiles.finish_erasures(env, grace_seconds=0.1)
    await asyncio.sleep(0.2)
    assert 0 == await erasing()


async def test_an_identity_reserved_again_while_it_is_confirmed_is_settled_all_the_same(
    store, second, env, monkeypatch
):
    # Two requests gave a profile one identity. The second reserved anew and died; the first found
    # that it could not settle, and answered although the identity resolved to nobody.
    profile = new()
    place = env.mixer.place_identity("email", "x", len(env.partitions))
    confirm = store.profiles._confirm

    async def overtaken(env, mixed, field, *arguments):
        since = await confirm(env, mixed, field, *arguments)
        monkeypatch.undo()
        await second.profiles._reserve(env, *place, field, mixed, 2**50 + 1, b"")
        return since

    monkeypatch.setattr(store.profiles, "_confirm", overtaken)
    await store.profiles.add_identity(env, profile, "email", "x")
    assert await store.profiles.resolve_identities(env, "email", ["x"], create=False) == [profile]


# --- those who share a group


ADDRESS = {"$address": b'"1 Main"'}


async def define(store, application):
    new = NewDefinition(
        id="household",
        source_user_attribute="$address",
        attributes=(GroupAttribute("points", "sum"),),
    )
    await store.definitions.create_definition(application, new, "test")


async def living(store, env, count, **fields):
    """Profiles at one address, each with a point; what follows has followed."""
    new = NewProfile(attributes=ADDRESS | {"points": b'"1"'}, **fields)
    made = [(await store.records.create_profile(env, new)).id for _ in range(count)]
    await store.derivation.derive_profiles(env, [env.mixer.mix(each) for each in made])
    return made


async def inherited(store, env, profile):
    return (await store.records.get_profile(env, profile)).inherited


async def held_of(store, env, profile):
    """The keys that are kept of a profile, but for what fences it."""
    mixed = env.mixer.mix(profile)
    return {
        key
        async for step in store.connection.scan()
        for key in step
        if mixed in key and b":fence:" not in key
    }


async def open_ends(store, env):
    """How many profiles and instances there are from which something has yet to follow."""
    zsets = [keys.key(tag, kind) for tag in env.partitions for kind in ("dirty", "stale")]
    return sum([await store.connection.command(key, "ZCARD", key) for key in zsets])


async def test_whoever_is_erased_leaves_the_groups_before_it_is_answered(store, application, env):
    await define(store, application)
    people = await living(store, env, 3)
    assert {"household:points": "3"} == await inherited(store, env, people[0])

    erased = await store.profiles.erase_profile(env, people[1])

    assert Erased(attributes=2, instances=1) == erased
    for each in (people[0], people[2]):
        assert {"household:points": "2"} == await inherited(store, env, each)
    assert set() == await held_of(store, env, people[1])
    for left in (people[0], people[2]):
        assert 1 == (await store.profiles.erase_profile(env, left)).instances
        assert set() == await held_of(store, env, left)
    assert 0 == await open_ends(store, env)


async def test_who_comes_back_with_the_same_id_contributes_anew(store, application, env):
    await define(store, application)
    stays, comes = await living(store, env, 2)
    await store.profiles.erase_profile(env, comes)
    group = await store.groups.create_group(env, NewGroup(name="g"))
    await store.members.add_members(env, group.number, comes)
    changes = ProfileChanges(attributes=ADDRESS | {"points": b'"5"'})

    await store.records.update_profile(env, comes, changes)
    await store.derivation.derive_profiles(env, [env.mixer.mix(comes)])

    for each in (stays, comes):
        assert {"household:points": "6"} == await inherited(store, env, each)


async def test_in_a_weekly_application_too_erasing_leaves_the_groups_at_once(
    store, application, env
):
    await define(store, application)
    stays, goes = await living(store, env, 2)
    await store.registry.update_application("test", grouping="weekly")
    await store.definitions.follow_settings("test")

    assert 1 == (await store.profiles.erase_profile(env, goes)).instances

    assert {"household:points": "1"} == await inherited(store, env, stays)


async def test_what_a_definition_that_is_gone_grouped_is_taken_apart_by_erasing(
    store, application, env
):
    await define(store, application)
    stays, goes = await living(store, env, 2)
    await store.definitions.delete_definition(application, "household")

    assert 1 == (await store.profiles.erase_profile(env, goes)).instances

    assert set() == await held_of(store, env, goes)
    assert {} == await inherited(store, env, stays)
    await work(store, grace_us=0)


async def test_batches_that_were_remembered_of_a_profile_are_forgotten_with_it(store, env):
    profile = (await store.records.create_profile(env, NewProfile())).id
    mixed = env.mixer.mix(profile)
    key = keys.of_profile(env.home(mixed), "requests", mixed)
    await store.connection.command(key, "ZADD", key, 1, bytes(16))
    await store.profiles.erase_profile(env, profile)
    assert set() == await held_of(store, env, profile)


@both_topologies
async def test_a_profile_with_many_identities_and_a_group_is_erased_in_steps(
    store, application, env, monkeypatch
):
    monkeypatch.setattr(store_profiles, "CHUNK", 3)
    await define(store, application)
    stays, goes = await living(store, env, 2)
    for n in range(7):
        await store.profiles.add_identity(env, goes, "other", str(n))
    erased = await store.profiles.erase_profile(env, goes)
    assert Erased(attributes=2, identities=7, instances=1) == erased
    assert {"household:points": "1"} == await inherited(store, env, stays)


@both_topologies
async def test_what_cannot_follow_now_leaves_the_mark_and_the_worker_finishes(
    store, application, env, monkeypatch
):
    await define(store, application)
    stays, goes = await living(store, env, 2)

    async def gone(*_arguments, **_options):
        raise Unavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(store.derivation, "derive_profiles", gone)
        with pytest.raises(Unavailable, match="gone"):
            await store.profiles.erase_profile(env, goes)
    with pytest.raises(Erasing):
        await store.records.get_profile(env, goes)

    async def left_to_others(*_arguments, **_options):
        pass

    with monkeypatch.context() as patched:
        patched.setattr(store.derivation, "derive_profiles", left_to_others)
        with pytest.raises(Unavailable, match="too many others"):
            await store.profiles.erase_profile(env, goes)
    with pytest.raises(Erasing):
        await store.records.get_profile(env, goes)
    await work(store, grace_us=0)
    assert set() == await held_of(store, env, goes)
    assert {"household:points": "1"} == await inherited(store, env, stays)


@both_topologies
async def test_of_two_who_erase_a_profile_one_counts_its_groups_and_nothing_is_left(
    store, second, application, env
):
    await define(store, application)
    [stays] = await living(store, env, 1)
    for n in range(20):
        [goes] = await living(store, env, 1)
        changes = ProfileChanges(attributes=ADDRESS | {"points": f'"{n}"'.encode()})
        done: tuple[Any, ...] = await asyncio.gather(
            store.profiles.erase_profile(env, goes),
            second.profiles.erase_profile(env, goes),
            second.records.update_profile(env, goes, changes),
            return_exceptions=True,
        )
        erased = done[:2]
        told = [each for each in erased if isinstance(each, Erased)]
        assert all(isinstance(each, (Erased, NotFound)) for each in erased), erased
        assert (2, 1) == (sum(e.attributes for e in told), sum(e.instances for e in told))
        assert set() == await held_of(store, env, goes)
        assert {"household:points": "1"} == await inherited(store, env, stays)


@both_topologies
async def test_members_that_are_erased_at_once_leave_nothing(store, second, application, env):
    await define(store, application)
    people = await living(store, env, 9)
    await asyncio.gather(
        *(
            (store, second)[n % 2].profiles.erase_profile(env, each)
            for n, each in enumerate(people[1:])
        )
    )
    assert {"household:points": "1"} == await inherited(store, env, people[0])
    for each in people[1:]:
        assert set() == await held_of(store, env, each)


# What follows in dynamic groups


async def test_profiles_made_for_identities_are_in_the_groups_that_follow(store, second, env):
    number = await audience(store, env, no({"attribute": "age", "condition": "exists"}))
    names = [f"{n}" for n in range(100)]

    made = await second.profiles.resolve_identities(env, "customer_id", names, create=True)
    assert made == await within(store, env, number, made)
    again = await store.profiles.resolve_identities(env, "customer_id", names, create=True)
    assert made == again
    known = new()
    await store.profiles.add_identity(env, known, "email", "x")
    await store.profiles.add_identity(env, known, "email", "x")

    assert [known] == await within(second, env, number, [known])
    assert 0 == await unsettled(store, env)


async def test_who_becomes_known_without_settling_is_left_to_the_worker(store, env, monkeypatch):
    number = await audience(store, env, no({"attribute": "age", "condition": "exists"}))
    known = new()
    broken(store, monkeypatch, 2)

    with pytest.raises(Unavailable):
        await store.profiles.add_identity(env, known, "email", "x")
    with pytest.raises(Unavailable):
        await store.profiles.resolve_identities(env, "email", ["y"], create=True)
    assert [known] == await store.profiles.resolve_identities(env, "email", ["x"], create=False)
    assert {keys.named_group(0)} == await noted(store, env, known)
    assert 2 == await unsettled(store, env)
    await work(store, grace_us=0)

    assert [2] == await store.members.count_members(env, [number])


async def test_an_identity_of_somebody_known_is_nobodys_work(store, env, monkeypatch):
    await audience(store, env, no({"attribute": "age", "condition": "exists"}))
    group = await store.groups.create_group(env, NewGroup(name="g"))
    profile = new()
    await store.members.add_members(env, group.number, profile)
    asked = broken(store, monkeypatch, 99)

    await store.profiles.add_identity(env, profile, "email", "x", known=True)

    assert [] == asked


async def test_erasing_takes_a_profile_out_of_dynamic_groups_too(store, env, monkeypatch):
    monkeypatch.setattr(store_profiles, "CHUNK", 2)
    group = await store.groups.create_group(env, NewGroup(name="g"))
    numbers = [
        await audience(store, env, {"group": group.id}),
        await audience(store, env, no({"attribute": "age", "condition": "exists"})),
        await audience(store, env, {"attribute": "x", "condition": "exists"}),
    ]
    [profile, stays] = people = await store.profiles.resolve_identities(
        env, "customer_id", ["x", "y"], create=True
    )
    plain = new()
    await store.members.add_members(env, group.number, b"".join([*people, plain]))
    changes = ProfileChanges(attributes={"x": b'"1"'})
    for each in people:
        await store.records.update_profile(env, each, changes)
    await store.settling.settle(env, [env.mixer.mix(each) for each in people])
    assert b"3" == (await held(store, env, "m", profile))[b"d"]
    # Something is noted of it when it goes.
    await store.records.update_profile(env, profile, ProfileChanges(attributes={}))
    assert 1 == await unsettled(store, env)

    erased = await store.profiles.erase_profile(env, profile)
    assert Erased(memberships=4, attributes=0, identities=1) == erased
    assert set() == await held_of(store, env, profile)
    assert 0 == await unsettled(store, env)
    assert Erased(memberships=3) == await store.profiles.erase_profile(env, plain)

    assert [1, 1, 1, 1, 1] == await store.members.count_members(env, [0, group.number, *numbers])
    assert [stays] == await within(store, env, numbers[2], people)
    dropped: dict[int, int] = {}
    async for part in store.connection.scan():
        for key in part:
            parsed = keys.parse(key)
            if parsed is not None and parsed.kind == "turnover":
                flat = await store.connection.command(key, "HGETALL", key)
                for name, count in zip(flat[::2], flat[1::2], strict=True):
                    if name[:1] == b"-":
                        dropped[int(name[1:])] = dropped.get(int(name[1:]), 0) + int(count)
    assert dict(zip(numbers, (2, 2, 1), strict=True)) == dropped


async def test_of_whom_nothing_is_known_any_more_there_is_nothing_to_erase(store, env, monkeypatch):
    group = await store.groups.create_group(env, NewGroup(name="g"))
    await audience(store, env, {"group": group.id})
    profile = new()
    await store.members.add_members(env, group.number, profile)
    with monkeypatch.context() as patched:
        broken(store, patched)
        with pytest.raises(Unavailable):
            await store.members.remove_members(env, group.number, profile)
    assert b"1" == (await held(store, env, "m", profile))[b"d"]

    for refused in (store.profiles.erase_profile, store.records.get_profile):
        with pytest.raises(NotFound):
            await refused(env, profile)
    await store.settling.settle_unsettled(env, 2**62)

    assert set() == await held_of(store, env, profile)


@both_topologies
async def test_erasing_while_others_settle_leaves_nothing(store, second, env):
    group = await store.groups.create_group(env, NewGroup(name="g"))
    number = await audience(store, env, {"group": group.id})
    for _ in range(30):
        profile = new()
        await store.members.add_members(env, group.number, profile)
        done = await asyncio.gather(
            store.profiles.erase_profile(env, profile),
            second.members.remove_members(env, group.number, profile),
            second.settling.settle(env, [env.mixer.mix(profile)]),
            store.members.add_members(env, group.number, profile),
            return_exceptions=True,
        )
        assert isinstance(done[0], (Erased, NotFound)), done
        await store.settling.settle_unsettled(env, 2**62)
        there = await store.members.check_members(env, [group.number, number], profile * 2)
        assert there in {b"00", b"11"}
        if there == b"00":
            assert set() == await held_of(store, env, profile)
