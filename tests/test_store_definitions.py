"""Definitions in the store: one document of rules, and what every partition knows of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service import keys, scripts
from service.errors import NotFound, Stale, Unavailable, Unprocessable
from service.faults import POINTS
from service.grouping import GroupAttribute, Rules
from service.store import Store
from service.store_definitions import DefinitionChanges, NewDefinition, decode_rules
from service.store_records import ProfileChanges
from service.worker import work

HOUSEHOLD = NewDefinition(
    id="household",
    description="who lives together",
    source_user_attribute="$Address",
    attributes=(GroupAttribute("has_dog", "boolean_or"), GroupAttribute("$City", "latest")),
)
WATCHED = {b"$address", b"has_dog", b"$city"}
BY = "client_id:tester"

both_topologies = pytest.mark.parametrize(
    ("backing", "partitions"), [("embedded", 1), ("cluster", 8)], indirect=True
)


async def create(store, application, new=HOUSEHOLD, **changes):
    made, _ = await store.definitions.create_definition(
        application, NewDefinition(**{**as_dict(new), **changes}), BY
    )
    return made


def as_dict(new):
    return {name: getattr(new, name) for name in new.__struct_fields__}


async def ask(store, key, *command):
    return await store.connection.command(key, command[0], key, *command[1:])


async def installed(store, application):
    """What every partition of both environments knows: (version, watched) of each."""
    found = []
    for env in application.environments.values():
        for tag in env.partitions:
            version = await ask(store, keys.key(tag, "rules"), "GET")
            watched = await ask(store, keys.key(tag, "watch"), "SMEMBERS")
            found.append((int(version or 0), set(watched)))
    return found


async def told(store, env):
    """What every partition of an environment knows that rule trees name."""
    keys_ = [keys.key(tag, "named") for tag in env.partitions]
    return [set(await ask(store, key, "SMEMBERS")) for key in keys_]


async def is_installing(store, application):
    key = keys.key(application.production.directory, "installing")
    return await ask(store, key, "GET") is not None


async def in_force(store, application):
    """The rules of the directory, which every partition must know."""
    raw = await ask(store, keys.key(application.production.directory, "rules"), "GET")
    rules = decode_rules(raw)
    count = sum(len(env.partitions) for env in application.environments.values())
    watched = {name.encode() for name in rules.watched}
    assert [(rules.version, watched)] * count == await installed(store, application)
    env, other = application.production, application.environments["development"]
    if rules.dynamic:
        await store.definitions.reread(env)
    named = set((await store.definitions.book(env)).named) if rules.dynamic else set()
    assert [named] * len(env.partitions) == await told(store, env)
    assert [set()] * len(other.partitions) == await told(store, other)
    assert not await is_installing(store, application)
    return rules


async def lose(store, home, kind="rules", raw=None):
    """Have a failover lose the last writes of the directory."""
    key = keys.key(home, kind)
    await (ask(store, key, "DEL") if raw is None else ask(store, key, "SET", raw))


async def test_without_definitions_the_rules_are_empty(store, application, env):
    assert Rules() == await store.definitions.rules(env)
    assert () == await store.definitions.list_definitions(application)
    with pytest.raises(NotFound):
        await store.definitions.get_definition(application, "household")


async def test_a_created_definition_is_read_as_it_was_given(store, application):
    before = time.time_ns() // 1000
    made = await create(store, application)
    assert made == await store.definitions.get_definition(application, "household")
    assert (made,) == await store.definitions.list_definitions(application)
    assert ("who lives together", "$Address") == (made.description, made.source_user_attribute)
    assert [("has_dog", "boolean_or"), ("$City", "latest")] == [
        (each.id, each.type) for each in made.attributes
    ]
    assert (BY, BY) == (made.created_by, made.modified_by)
    assert before <= made.created_at_us == made.modified_at_us


async def test_every_partition_of_both_environments_knows_it_when_it_is_answered(
    store, application
):
    made = await create(store, application)
    rules = await in_force(store, application)
    assert (made.number, made.number) == (rules.version, made.attributes[0].since)
    assert WATCHED == {name.encode() for name in rules.watched}


async def test_another_process_has_the_rules_when_it_reloads_them(store, second, application, env):
    assert Rules() == await second.definitions.rules(env)
    await create(store, application)
    rules = await in_force(store, application)
    assert Rules() == await second.definitions.rules(env)
    assert rules == await second.definitions.reload(env, rules.version)
    assert rules == await second.definitions.rules(env)


async def test_a_definition_is_read_as_the_directory_has_it(store, second, application):
    await second.definitions.list_definitions(application)
    made = await create(store, application)
    assert made == await second.definitions.get_definition(application, "household")


@pytest.mark.parametrize("operation", ["create", "update", "delete"])
async def test_a_change_queues_a_job(store, application, operation):
    definitions = store.definitions
    if operation == "create":
        _, job = await definitions.create_definition(application, HOUSEHOLD, BY)
    else:
        await create(store, application)
        await lose(store, application.production.directory, "jobs")
        if operation == "update":
            changes = DefinitionChanges(attributes=())
            _, job = await definitions.update_definition(application, "household", changes, BY)
        else:
            job = await definitions.delete_definition(application, "household")
    held = await ask(store, keys.key(application.production.directory, "jobs"), "HKEYS")
    assert [job.encode()] == held


async def test_a_job_that_waits_is_the_job_of_the_next_change_too(store, application):
    _, one = await store.definitions.create_definition(application, HOUSEHOLD, BY)
    assert one == await store.definitions.delete_definition(application, "household")


async def test_an_id_in_use_is_refused_and_changes_nothing(store, application):
    await store.registry.update_application("test", definitions_per_workspace=2)
    application = await store.registry.application("test")
    await create(store, application)
    rules = await in_force(store, application)
    with pytest.raises(Unprocessable, match="household"):
        await create(store, application, description="other")
    assert rules == await in_force(store, application)


async def test_more_definitions_than_the_setting_allows_are_refused(store, application):
    await create(store, application)
    with pytest.raises(Unprocessable, match="at most 1 group definition"):
        await create(store, application, id="second")
    application = await store.registry.update_application("test", definitions_per_workspace=2)
    await create(store, application, id="second")
    assert ["household", "second"] == [
        each.id for each in (await in_force(store, application)).definitions
    ]


async def test_more_attributes_than_the_setting_allows_are_refused(store, application):
    many = tuple(GroupAttribute(f"a{n}", "latest") for n in range(11))
    with pytest.raises(Unprocessable, match="at most 10 attributes"):
        await create(store, application, attributes=many)
    await create(store, application, attributes=many[:10])
    changes = DefinitionChanges(attributes=many)
    with pytest.raises(Unprocessable, match="at most 10 attributes"):
        await store.definitions.update_definition(application, "household", changes, BY)
    assert 10 == len((await in_force(store, application)).definitions[0].attributes)


async def test_what_a_change_does_not_name_stays(store, application):
    made = await create(store, application)
    changes = DefinitionChanges(attributes=(GroupAttribute("has_cat", "boolean_or"),))
    changed, _ = await store.definitions.update_definition(
        application, "household", changes, "client_id:other"
    )
    assert (made.id, made.description, made.source_user_attribute, made.number) == (
        changed.id,
        changed.description,
        changed.source_user_attribute,
        changed.number,
    )
    assert ["has_cat"] == [each.id for each in changed.attributes]
    assert (made.created_at_us, BY, "client_id:other") == (
        changed.created_at_us,
        changed.created_by,
        changed.modified_by,
    )
    assert made.modified_at_us < changed.modified_at_us
    assert changed == await store.definitions.get_definition(application, "household")


async def test_an_attribute_that_stays_keeps_its_since_and_a_changed_one_does_not(
    store, application
):
    made = await create(store, application)
    given = (
        GroupAttribute("$City", "count_distinct"),
        GroupAttribute("has_dog", "boolean_or"),
        GroupAttribute("new", "sum"),
    )
    changed, _ = await store.definitions.update_definition(
        application, "household", DefinitionChanges(attributes=given), BY
    )
    version = (await in_force(store, application)).version
    assert version > made.number
    assert [version, made.number, version] == [each.since for each in changed.attributes]


async def test_another_source_gives_a_new_number(store, application):
    made = await create(store, application)
    same = DefinitionChanges(source_user_attribute="$ADDRESS")
    changed, _ = await store.definitions.update_definition(application, "household", same, BY)
    assert made.number == changed.number
    other = DefinitionChanges(source_user_attribute="Address")
    changed, _ = await store.definitions.update_definition(application, "household", other, BY)
    assert (await in_force(store, application)).version == changed.number > made.number


async def test_a_new_description_makes_nobody_look_at_anything(store, application):
    await create(store, application)
    rules = await in_force(store, application)
    await lose(store, application.production.directory, "jobs")
    changes = DefinitionChanges(description=None)
    changed, job = await store.definitions.update_definition(application, "household", changes, BY)
    assert (None, None) == (changed.description, job)
    assert rules.version == (await in_force(store, application)).version
    assert changed == await store.definitions.get_definition(application, "household")


async def test_a_deleted_definition_is_gone_everywhere(store, application):
    await create(store, application)
    await store.definitions.delete_definition(application, "household")
    rules = await in_force(store, application)
    assert ((), ()) == (rules.definitions, rules.watched)
    for change in (
        store.definitions.get_definition(application, "household"),
        store.definitions.delete_definition(application, "household"),
        store.definitions.update_definition(application, "household", DefinitionChanges(), BY),
    ):
        with pytest.raises(NotFound, match="household"):
            await change


async def test_a_definition_made_anew_has_another_number(store, application):
    one = await create(store, application)
    await store.definitions.delete_definition(application, "household")
    two = await create(store, application)
    assert one.number < two.number


async def test_every_change_raises_the_version_also_where_the_clock_went_back(
    store, application, monkeypatch
):
    made = await create(store, application)
    monkeypatch.setattr("service.store_definitions._now_us", lambda: 1)
    await store.definitions.delete_definition(application, "household")
    assert made.number + 1 == (await in_force(store, application)).version


async def test_changes_at_once_are_all_made(store, second, application):
    application = await store.registry.update_application("test", definitions_per_workspace=100)
    await asyncio.gather(
        *(
            create(each, application, id=f"d{n}")
            for n in range(6)
            for each in [(store, second)[n % 2]]
        )
    )
    rules = await in_force(store, application)
    assert {f"d{n}" for n in range(6)} == {each.id for each in rules.definitions}
    assert 6 == len({each.number for each in rules.definitions})


async def test_of_two_who_create_the_only_one_one_is_refused(store, second, application):
    done = await asyncio.gather(
        create(store, application, id="one"),
        create(second, application, id="two"),
        return_exceptions=True,
    )
    assert 1 == sum(isinstance(each, Unprocessable) for each in done)
    assert 1 == len((await in_force(store, application)).definitions)


async def test_who_always_loses_gives_up(store, application, monkeypatch):
    async def lost(*args, **options):
        raise Stale("always")

    monkeypatch.setattr(store.definitions, "_replace", lost)
    with pytest.raises(Unavailable, match="too many others"):
        await create(store, application)


async def test_a_partition_that_is_behind_is_told_by_whoever_sees_it(store, second, application):
    """Its process may have died before it told anybody."""
    await create(store, application)
    rules = await in_force(store, application)
    for env in application.environments.values():
        for tag in env.partitions:
            for kind in ("rules", "watch"):
                await ask(store, keys.key(tag, kind), "DEL")
    for env in application.environments.values():
        assert rules == await second.definitions.reload(env, 0)
    assert rules == await in_force(store, application)


async def test_a_failover_that_lost_the_last_change_raises_the_version_above_what_was_seen(
    store, second, application, env
):
    await create(store, application)
    home = application.production.directory
    kept = await ask(store, keys.key(home, "rules"), "GET")
    await store.definitions.delete_definition(application, "household")
    seen = (await in_force(store, application)).version
    await lose(store, home, raw=kept)
    await lose(store, home, "jobs")
    rules = await second.definitions.reload(env, seen)
    assert rules.version > seen
    assert ["household"] == [each.id for each in rules.definitions]
    assert await is_installing(store, application)
    assert rules == await second.definitions.install(application)
    assert rules == await in_force(store, application)
    assert 1 == await ask(store, keys.key(home, "jobs"), "HLEN")


async def test_a_failover_that_lost_all_definitions_leaves_none_in_force(store, application, env):
    await create(store, application)
    seen = (await in_force(store, application)).version
    await lose(store, application.production.directory)
    assert () == (await store.definitions.reload(env, seen)).definitions
    await store.definitions.install(application)
    rules = await in_force(store, application)
    assert (True, ()) == (rules.version > seen, rules.watched)


async def test_a_change_after_such_a_failover_is_above_what_partitions_know(
    store, second, application, monkeypatch
):
    """Clocks differ: the partitions had been told by a process whose clock is ahead."""
    ahead = time.time_ns() // 1000 + 3_600_000_000
    with monkeypatch.context() as patched:
        patched.setattr("service.store_definitions._now_us", lambda: ahead)
        await create(store, application)
    await lose(store, application.production.directory)
    made = await create(second, application, id="other")
    rules = await in_force(store, application)
    assert rules.version > ahead > made.number
    assert ["other"] == [each.id for each in rules.definitions]


async def test_a_partition_never_goes_back(store, application, env):
    await create(store, application)
    rules = await in_force(store, application)
    tag = env.partitions[0]
    for version in (rules.version, rules.version - 1, 0):
        held = await store.connection.call(
            scripts.load("install_rules"),
            [*(keys.key(tag, kind) for kind in ("rules", "watch", "named")), keys.none(tag)],
            [version, "all", 1, 1, -1, "other", "one"],
        )
        assert rules.version == int(held)
    assert rules == await in_force(store, application)


async def test_a_partition_out_of_reach_is_told_later(store, application, monkeypatch):
    call = store.connection.call
    unreachable = application.environments["development"].partitions[-1]

    async def cut_off(script, keys_, args, **options):
        if script.name == "install_rules" and keys_[-1] == keys.none(unreachable):
            raise Unavailable("gone")
        return await call(script, keys_, args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(store.connection, "call", cut_off)
        with pytest.raises(Unavailable):
            await create(store, application)
    assert await is_installing(store, application)
    assert 1 == [version for version, _ in await installed(store, application)].count(0)
    await store.definitions.install(application)
    assert ["household"] == [each.id for each in (await in_force(store, application)).definitions]


@both_topologies
@pytest.mark.parametrize("point", ["define.written", "define.installed"])
@pytest.mark.parametrize("operation", ["create", "delete"])
async def test_what_a_killed_process_left_can_be_installed(
    backing, store, application, operation, point
):
    if operation == "delete":
        await create(store, application)
    died_with = await asyncio.to_thread(in_a_process, backing.url, operation, point)
    assert -signal.SIGKILL == died_with
    assert await is_installing(store, application)
    await store.definitions.install(application)
    left = (await in_force(store, application)).definitions
    assert (["household"] if operation == "create" else []) == [each.id for each in left]
    assert 1 == await ask(store, keys.key(application.production.directory, "jobs"), "HLEN")


def test_every_fault_point_of_a_change_has_a_case():
    assert {"define.written", "define.installed"} == {
        point for point in POINTS if point.startswith("define.")
    }


def in_a_process(url, operation, point):
    """Run an operation in a process that is to die at a point; its return code."""
    code = f"import tests.test_store_definitions as t; t.child({url!r}, {operation!r})"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"BELONG_FAULT": point},
        check=False,
        timeout=60,
    ).returncode


def child(url, operation):
    async def run():
        store = await Store.open(url)
        [application] = await store.registry.list_applications()
        if operation == "create":
            await create(store, application)
        else:
            await store.definitions.delete_definition(application, "household")

    asyncio.run(run())


async def test_the_first_definition_takes_the_settings_of_the_application(store, application):
    application = await store.registry.update_application(
        "test", users_per_group=7, grouping="weekly"
    )
    assert 0 == (await in_force(store, application)).version
    await create(store, application)
    rules = await in_force(store, application)
    assert (7, True, ()) == (rules.limit, rules.weekly, rules.watched)


async def test_the_rules_follow_the_settings(store, application):
    await create(store, application)
    rules = await in_force(store, application)
    for settings in ({"users_per_group": 3}, {"grouping": "weekly"}, {"grouping": "realtime"}):
        await store.registry.update_application("test", **settings)
        await store.definitions.follow_settings("test")
        followed = await in_force(store, application)
        assert followed.version > rules.version
        assert rules.definitions == followed.definitions
        rules = followed
    assert (3, False) == (rules.limit, rules.weekly)
    await store.definitions.follow_settings("test")
    assert rules == await in_force(store, application)


async def test_settings_without_any_rules_change_nothing(store, application):
    await store.registry.update_application("test", users_per_group=3)
    await store.definitions.follow_settings("test")
    assert 0 == (await in_force(store, application)).version


async def test_an_application_that_is_gone_has_no_settings_to_follow(store, application):
    assert None is await store.definitions.follow_settings("nobody")


async def test_a_change_of_definitions_leaves_settings_to_who_changes_those(store, application):
    """A process's copy of the application may be a second old."""
    await create(store, application)
    await store.registry.update_application("test", users_per_group=3)
    await store.definitions.follow_settings("test")
    changes = DefinitionChanges(attributes=())
    await store.definitions.update_definition(application, "household", changes, BY)
    assert 3 == (await in_force(store, application)).limit


async def test_a_weekly_application_waits_for_monday(store, application):
    application = await store.registry.update_application("test", grouping="weekly")
    _, job = await store.definitions.create_definition(application, HOUSEHOLD, BY)
    assert job is None
    home = application.production.directory
    assert 0 == await ask(store, keys.key(home, "jobs"), "HLEN")
    monday = int(await ask(store, keys.key(home, "weekly"), "GET"))
    moment = time.gmtime(monday // 1_000_000)
    assert (0, 0, 0, 0) == (moment.tm_wday, moment.tm_hour, moment.tm_min, moment.tm_sec)
    assert 0 <= time.time_ns() // 1000 - monday < 7 * 86_400_000_000


@pytest.mark.parametrize(("backing", "partitions"), [("embedded", 8)], indirect=True)
async def test_rules_as_large_as_settings_allow_are_installed(store, application):
    application = await store.registry.update_application(
        "test", definitions_per_workspace=100, attributes_per_definition=100
    )
    for n in range(100):
        many = tuple(GroupAttribute(f"{n:03d}:{m:03d}:" + "x" * 215, "sum") for m in range(100))
        await create(
            store, application, id=f"d{n:03d}", source_user_attribute=f"s{n}", attributes=many
        )
    rules = await in_force(store, application)
    assert (100, 10_100, ("",)) == (len(rules.definitions), len(rules.names), rules.watched)


@pytest.mark.parametrize(("backing", "partitions"), [("embedded", 1)], indirect=True)
async def test_where_very_many_attributes_are_named_a_change_of_any_counts(store, application, env):
    application = await store.registry.update_application(
        "test", definitions_per_workspace=100, attributes_per_definition=100
    )
    for n in range(4):
        many = tuple(GroupAttribute(f"{n} {m}", "sum") for m in range(100))
        await create(store, application, id=f"d{n:03d}", attributes=many)
    assert ("",) == (await in_force(store, application)).watched
    [profile] = await store.profiles.resolve_identities(env, "customer_id", ["p"], create=True)
    await work(store, grace_us=0)
    await store.records.update_profile(env, profile, ProfileChanges(nickname="N"))
    key = keys.key(env.partitions[0], "dirty")
    assert 0 == await ask(store, key, "ZCARD")
    kept = ProfileChanges(attributes={"other": b'"x"'})
    await store.records.update_profile(env, profile, kept)
    assert 1 == await ask(store, key, "ZCARD")


async def test_a_process_remembers_no_more_rules_than_it_may(store, application, env, monkeypatch):
    monkeypatch.setattr("service.store_definitions.COPIES", 1)
    other = await store.registry.create_application("other")
    assert Rules() == await store.definitions.rules(other.production)
    await create(store, application)
    assert ["household"] == [each.id for each in (await store.definitions.rules(env)).definitions]
    assert Rules() == await store.definitions.rules(other.production)


@pytest.mark.parametrize(("backing", "partitions"), [("embedded", 1)], indirect=True)
async def test_a_full_store_can_still_lose_a_definition(backing, store, application):
    application = await store.registry.update_application("test", definitions_per_workspace=2)
    await create(store, application)
    backing.ask("CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(Unavailable):
            await create(store, application, id="other")
        await store.definitions.delete_definition(application, "household")
    finally:
        backing.ask("CONFIG", "SET", "maxmemory", "0")
    assert () == (await in_force(store, application)).definitions
