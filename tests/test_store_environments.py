"""Environments as a whole: what holds the deletion of an application up, and what goes with it."""

from __future__ import annotations

import time

import pytest

from service import keys, store_environments
from service.errors import Conflict
from service.groups import NewGroup
from service.rules import parse_tree
from service.store_definitions import NewDefinition
from service.store_records import ProfileChanges
from service.worker import work

HOUSEHOLD = NewDefinition(id="household", source_user_attribute="$address")


@pytest.fixture
async def household(store, application, env):
    """A definition, and a profile that is grouped by it."""
    await store.definitions.create_definition(application, HOUSEHOLD, "tests")
    [profile] = await store.profiles.resolve_identities(env, "customer_id", ["p"], create=True)
    kept = ProfileChanges(attributes={"$address": b'"here"'})
    await store.records.update_profile(env, profile, kept)
    await work(store, grace_us=0)
    return profile


async def left(store, application):
    """Every key that an application has, but those that go by themselves."""
    tags = {env.directory for env in application.environments.values()}
    tags |= {tag for env in application.environments.values() for tag in env.partitions}
    return [
        key
        async for found in store.connection.scan()
        for key in found
        if key.partition(b":")[0] in tags and key.split(b":")[1].decode() not in keys.EXPIRING
    ]


async def test_what_definitions_leave_goes_with_the_application(store, application, env, household):
    await store.profiles.erase_profile(env, household)
    await work(store, grace_us=0)
    await store.registry.delete_application("test")
    assert [] == await left(store, application)


async def test_an_application_with_definitions_alone_is_empty(store, application):
    await store.definitions.create_definition(application, HOUSEHOLD, "tests")
    await store.registry.delete_application("test")
    assert [] == await left(store, application)


async def test_what_members_are_still_to_be_told_keeps_an_application(store, application, env):
    """Its instances would be left: nothing else names their keys."""
    key = keys.key(env.partitions[0], "stale")
    await store.connection.command(key, "ZADD", key, 1, b"i" * 16)
    with pytest.raises(Conflict):
        await store.registry.delete_application("test")
    await store.connection.command(key, "DEL", key)
    await store.registry.delete_application("test")
    assert [] == await left(store, application)


@pytest.fixture
async def audience(store, application, env):
    """A dynamic group, with somebody in it and something that is yet to follow."""
    tree = parse_tree({"attribute": "seen", "condition": "within_last_days", "value": 30})
    new = NewGroup(name="recent", membership_type="dynamic", rule_tree=tree)
    group = await store.groups.create_group(env, new)
    [profile] = await store.profiles.resolve_identities(env, "customer_id", ["p"], create=True)
    kept = ProfileChanges(attributes={"seen": b'"%d"' % (time.time_ns() // 1_000_000)})
    await store.records.update_profile(env, profile, kept)
    await work(store, grace_us=0)
    return group, profile


async def test_what_dynamic_groups_leave_goes_with_the_application(
    store, application, env, audience
):
    group, profile = audience
    home = env.home(env.mixer.mix(profile))
    for kind in ("due", "dynamic", "named"):
        key = keys.key(home, kind)
        assert await store.connection.command(key, "EXISTS", key) == 1
    with pytest.raises(Conflict):
        await store.registry.delete_application("test")
    await store.profiles.erase_profile(env, profile)
    await store.groups.delete_group(env, group.id)
    await work(store, grace_us=0)
    await store.registry.delete_application("test")
    assert [] == await left(store, application)


async def test_what_changed_of_profiles_that_are_gone_goes_with_the_application(
    store, application, env, monkeypatch
):
    monkeypatch.setattr(store_environments, "CLEARED", 7)
    for tag in env.partitions:
        unsettled = keys.key(tag, "unsettled")
        for n in range(30):
            gone = n.to_bytes(16, "big")
            key = keys.of_profile(tag, "changed", gone)
            await store.connection.command(key, "SADD", key, "tier", "city")
            await store.connection.command(unsettled, "ZADD", unsettled, n, gone)
    await store.registry.delete_application("test")
    assert [] == await left(store, application)
