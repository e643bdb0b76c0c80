"""Processes die between two scripts of an operation, and the worker leaves nothing half done.

Each case runs an operation in a process of its own, which is killed at a fault point; the store is
as that process left it. The operations are the functions here whose names stand in CASES.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service import keys, scripts, store_profiles, store_upkeep
from service.errors import Conflict, NotFound, Unavailable
from service.faults import POINTS, fault
from service.grouping import GroupAttribute
from service.groups import GroupChanges, NewGroup
from service.ids import head, new, split
from service.store import Store
from service.store_definitions import NewDefinition
from service.store_records import ProfileChanges
from service.worker import work

CREATE = ("create_group.reserved", "create_group.probed", "create_group.created")
INSTALL = ("create_group.installed", "create_group.finished")
UPDATE = ("update_group.updated", "update_group.installed", "update_group.finished")
DELETE = ("delete_group.deleted", "delete_group.installed")
SWEEP = ("sweep_group.swept", "sweep_group.finished")
ERASE = (
    "erase_profile.begun", "erase_profile.stepped", "erase_profile.derived",
    "erase_profile.released",
)  # fmt: skip
ERASED = ("erase_profile.finished",)
IDENTITY = ("add_identity.reserved", "add_identity.confirmed", "add_identity.settled")
REPLACE = ("replace_members.added",)
CASES = {
    "create_active": CREATE,
    "create_inactive": CREATE + INSTALL,
    "deactivate": UPDATE,
    "activate": UPDATE,
    "delete": DELETE,
    "sweep": SWEEP,
    "erase": ERASE + ERASED,
    "second_identity": IDENTITY,
    "replace": REPLACE,
}
TOO_EARLY = {"create_group.reserved", "create_group.probed", "add_identity.reserved", *REPLACE}
"""Points at which nothing of what was asked for is done yet; after all others all of it is."""
ELSEWHERE = ("define.", "job.", "derive.", "ingest.", "dynamic.", "save.", "settle.", "due.")
"""Points of operations that have their cases in the tests of their own."""
OTHERS = [new() for _ in range(40)]
NEIGHBOUR = ("customer_id", ["neighbour"])
REPLACING = [bytes([n]) * 16 for n in range(1, 120)]

both_topologies = pytest.mark.parametrize(
    ("backing", "partitions"), [("embedded", 1), ("cluster", 8)], indirect=True
)


async def create_active(store, env):
    await store.groups.create_group(env, NewGroup(name="new", custom_id="new"))


async def create_inactive(store, env):
    await store.groups.create_group(env, NewGroup(name="new", custom_id="new", is_active=False))


async def deactivate(store, env):
    await store.groups.update_group(env, "awake", GroupChanges(is_active=False))


async def activate(store, env):
    changes = GroupChanges(is_active=True)
    await store.groups.update_group(env, "asleep", changes, include_inactive=True)


async def delete(store, env):
    await store.groups.delete_group(env, "awake")


async def sweep(store, env):
    await store.upkeep.sweep_groups(env, 2**62)


async def erase(store, env):
    await store.profiles.erase_profile(env, await person(store, env))


async def second_identity(store, env):
    profile = await person(store, env)
    await store.profiles.add_identity(env, profile, "email", elsewhere(env, profile))


async def replace(store, env):
    number = await store.groups.number_of(env, "third")
    await store.members.replace_members(env, number, b"".join(REPLACING))


async def person(store, env):
    [profile] = await store.profiles.resolve_identities(env, "customer_id", ["p"], create=True)
    return profile


def elsewhere(env, profile):
    """An address that lives in another slot than its profile, where there is one."""
    count = len(env.partitions)
    home = head(env.mixer.mix(profile)) % count
    return next(
        value
        for value in map(str, range(1000))
        if count == 1 or env.mixer.place_identity("email", value, count)[0] != home
    )


async def prepare(store, env, operation):
    """A person in three groups, one of them inactive, with identities in several slots.

    And somebody who shares an address with it, and so a point.
    """
    profile = await person(store, env)
    await share(store, env, profile)
    for n in range(6):
        await store.profiles.add_identity(env, profile, "other", f"o{n}")
    await store.records.update_profile(env, profile, ProfileChanges(nickname="N"))
    for name in ("awake", "asleep", "third"):
        group = await store.groups.create_group(env, NewGroup(name=name, custom_id=name))
        packed = profile + b"".join(OTHERS)
        await store.members.add_members(env, group.number, packed)
    asleep = GroupChanges(is_active=False)
    await store.groups.update_group(env, "asleep", asleep)
    if operation == "sweep":
        await delete(store, env)
    return profile


async def share(store, env, profile):
    """Make a household of a person and the one who is called neighbour."""
    definition = NewDefinition(
        id="household",
        source_user_attribute="$address",
        attributes=(GroupAttribute("points", "sum"),),
    )
    application = await store.registry.application("test")
    await store.definitions.create_definition(application, definition, "test")
    [other] = await store.profiles.resolve_identities(env, *NEIGHBOUR, create=True)
    home = ProfileChanges(attributes={"$address": b'"1 Main"', "points": b'"1"'})
    for each in (profile, other):
        await store.records.update_profile(env, each, home)
    await store.derivation.derive_profiles(env, [env.mixer.mix(each) for each in (profile, other)])


async def shared(store, env):
    """What the neighbour inherits."""
    [other] = await store.profiles.resolve_identities(env, *NEIGHBOUR, create=False)
    return (await store.records.get_profile(env, other)).inherited


async def is_done(store, env, operation, profile, numbers):
    """Whether an operation is done, by all that can be asked; it must not be half done."""
    everybody = [profile, *OTHERS]
    packed = b"".join(everybody)

    async def letters(number):
        return set(await store.members.check_members(env, [number] * len(everybody), packed))

    if operation in {"create_active", "create_inactive"}:
        try:
            group = await store.groups.get_group(env, "new", include_inactive=True)
        except NotFound:
            return False
        assert group.is_active == (operation == "create_active")
        assert set(b"0" if group.is_active else b"n") == await letters(group.number)
        return True
    if operation in {"deactivate", "activate"}:
        gid = "awake" if operation == "deactivate" else "asleep"
        group = await store.groups.get_group(env, gid, include_inactive=True)
        assert set(b"1" if group.is_active else b"n") == await letters(group.number)
        return group.is_active == (operation == "activate")
    if operation in {"delete", "sweep"}:
        with pytest.raises(NotFound):
            await store.groups.get_group(env, "awake", include_inactive=True)
        assert set(b"n") == await letters(numbers["awake"])
        return await store.members.count_members(env, [numbers["awake"]]) == [0]
    if operation == "erase":
        identities = await store.profiles.resolve_identities(
            env, "other", [f"o{n}" for n in range(6)], create=False
        )
        page = await store.lookups.list_profile_groups(env, profile, None, 10)
        with pytest.raises(NotFound):
            await store.profiles.erase_profile(env, profile)
        with pytest.raises(NotFound):
            await store.records.get_profile(env, profile)
        counts = await store.members.count_members(env, list(numbers.values()))
        assert {"household:points": "1"} == await shared(store, env)
        return ([None] * 6, 0, {40}) == (identities, page.count, set(counts))
    if operation == "replace":
        page = await store.members.list_members(env, numbers["third"], None, 1000)
        members = {row.id for row in page.rows}
        assert members >= set(REPLACING)
        done = members == set(REPLACING)
    else:
        value = elsewhere(env, profile)
        [found] = await store.profiles.resolve_identities(env, "email", [value], create=False)
        assert found in {None, profile}
        done = found == profile
    return done


async def unfinished(store, env):
    """How much is noted as begun and not finished, in all of an environment."""
    ask = store.connection.command
    found = 0
    for kind in ("intents", "deleting"):
        key = keys.key(env.directory, kind)
        found += await ask(key, "ZCARD", key)
    for tag in env.partitions:
        erasing = keys.key(tag, "erasing")
        found += await ask(erasing, "SCARD", erasing)
        for kind in ("reserved", "dirty", "stale"):
            key = keys.key(tag, kind)
            found += await ask(key, "ZCARD", key)
    return found


def in_a_process(url, operation, point):
    """Run an operation in a process that is to die at a point; its return code."""
    return subprocess.run(
        [sys.executable, "-c", f"import tests.test_faults as t; t.child({url!r}, {operation!r})"],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"BELONG_FAULT": point},
        check=False,
        timeout=60,
    ).returncode


def child(url, operation):
    async def run():
        store = await Store.open(url)
        [application] = await store.registry.list_applications()
        await globals()[operation](store, application.production)

    # Several steps where there would be one.
    store_upkeep.SWEEP = store_profiles.CHUNK = 2
    asyncio.run(run())


async def numbers_of(store, env):
    return {name: await store.groups.number_of(env, name) for name in ("awake", "asleep", "third")}


def test_every_fault_point_has_a_case():
    here = {point for points in CASES.values() for point in points}
    assert here == {point for point in POINTS if not point.startswith(ELSEWHERE)}


@both_topologies
@pytest.mark.parametrize(
    ("operation", "point"), [(name, point) for name, points in CASES.items() for point in points]
)
async def test_what_a_killed_process_left_is_finished_or_undone(
    backing, store, env, operation, point
):
    profile = await prepare(store, env, "")
    numbers = await numbers_of(store, env)
    if operation == "sweep":
        await delete(store, env)
    died_with = await asyncio.to_thread(in_a_process, backing.url, operation, point)
    assert -signal.SIGKILL == died_with
    await work(store, grace_us=0)
    await work(store, grace_us=0)
    assert 0 == await unfinished(store, env)
    assert (point not in TOO_EARLY) == await is_done(store, env, operation, profile, numbers)


@both_topologies
@pytest.mark.parametrize("point", IDENTITY)
async def test_an_identity_that_a_dead_process_reserved_can_be_taken_at_once(
    backing, store, env, point
):
    profile = await prepare(store, env, "")
    value = elsewhere(env, profile)
    died_with = await asyncio.to_thread(in_a_process, backing.url, "second_identity", point)
    assert -signal.SIGKILL == died_with
    other = new()
    if point in TOO_EARLY:
        await store.profiles.add_identity(env, other, "email", value)
    else:
        with pytest.raises(Conflict):
            await store.profiles.add_identity(env, other, "email", value)
    owner = other if point in TOO_EARLY else profile
    assert [owner] == await store.profiles.resolve_identities(env, "email", [value], create=True)
    await work(store, grace_us=0)
    assert 0 == await unfinished(store, env)


@both_topologies
@pytest.mark.parametrize("point", REPLACE)
async def test_a_replacement_that_a_dead_process_began_is_done_by_repeating_it(
    backing, store, env, point
):
    profile = await prepare(store, env, "")
    numbers = await numbers_of(store, env)
    died_with = await asyncio.to_thread(in_a_process, backing.url, "replace", point)
    assert -signal.SIGKILL == died_with
    packed = b"".join(REPLACING)
    outcome, removed = await store.members.replace_members(env, numbers["third"], packed)
    assert (b"=" * len(REPLACING), {profile, *OTHERS}) == (outcome, set(split(removed)))
    assert await is_done(store, env, "replace", profile, numbers)


@both_topologies
@pytest.mark.parametrize("point", ERASE)
async def test_erasing_can_be_taken_up_by_another_request(backing, store, env, point):
    profile = await prepare(store, env, "")
    numbers = await numbers_of(store, env)
    died_with = await asyncio.to_thread(in_a_process, backing.url, "erase", point)
    assert -signal.SIGKILL == died_with
    letters = await store.members.add_members(env, numbers["third"], profile)
    assert b"E" == letters
    await store.profiles.erase_profile(env, profile)
    assert await is_done(store, env, "erase", profile, numbers)
    assert 0 == await unfinished(store, env)


async def install_in_three(store, env, number, version, letter):
    """What a process does that loses its connection between two partitions."""
    for tag in env.partitions[:3]:
        await store.connection.call(
            scripts.load("set_state"),
            [keys.key(tag, "state"), keys.none(tag)],
            [number, version, letter],
        )
    raise Unavailable("gone")


@pytest.mark.parametrize(("backing", "partitions"), [("cluster", 8)], indirect=True)
@pytest.mark.parametrize("operation", ["deactivate", "activate", "delete"])
async def test_a_state_that_reached_some_partitions_reaches_all(store, env, operation, monkeypatch):
    profile = await prepare(store, env, "")
    numbers = await numbers_of(store, env)
    with monkeypatch.context() as patched:
        patched.setattr(store.groups, "install_state", lambda *args: install_in_three(store, *args))
        with pytest.raises(Unavailable):
            await globals()[operation](store, env)
    await work(store, grace_us=0)
    assert 0 == await unfinished(store, env)
    assert await is_done(store, env, operation, profile, numbers)


@pytest.mark.parametrize(("backing", "partitions"), [("cluster", 8)], indirect=True)
@pytest.mark.parametrize("is_active", [False, True])
async def test_a_repeated_change_of_state_is_in_force_when_it_is_answered(
    store, env, is_active, monkeypatch
):
    profile = await prepare(store, env, "")
    gid = "asleep" if is_active else "awake"
    changes = GroupChanges(is_active=is_active)

    async def change():
        await store.groups.update_group(env, gid, changes, include_inactive=True)

    with monkeypatch.context() as patched:
        patched.setattr(store.groups, "install_state", lambda *args: install_in_three(store, *args))
        with pytest.raises(Unavailable):
            await change()
    await change()
    operation = "activate" if is_active else "deactivate"
    assert await is_done(store, env, operation, profile, await numbers_of(store, env))


def test_an_unarmed_fault_point_does_nothing():
    fault("create_group.reserved")
