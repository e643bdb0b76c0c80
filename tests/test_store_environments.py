"""Environments as a whole: what holds the deletion of an application up, and what goes with it."""

from __future__ import annotations

import pytest

from service import keys
from service.errors import Conflict
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
