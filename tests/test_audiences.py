"""Audiences: dynamic groups as the Group Identity face lists and deletes them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from service import auth, ids, keys
from service.endpoint import moment
from service.errors import Unavailable
from tests.client import DEMO, GROUPS, opened
from tests.face import Face

OF_WORKSPACE = "/v1/workspace/1/audiences"
HOUR_US = 3_600_000_000
PRO: dict[str, Any] = {"attribute": "plan", "condition": "is", "value": "pro"}
DOG = {"attribute": "household:has_dog", "condition": "is", "value": True}


@pytest.fixture
async def face(api, admin) -> Face:
    """Workspace 1."""
    return Face(api, admin, 1)


async def create(face, name="Pros", tree=PRO, *, run=True, **fields):
    """Create a dynamic group, and have it built; give its id as a group."""
    body = {"name": name, "membership_type": "dynamic", "rule_tree": tree} | fields
    answer = await face.client.post(f"{GROUPS}/", body, 201)
    if run:
        await face.run()
    group_id: str = answer.body.id
    return group_id


async def listed(face, path=OF_WORKSPACE):
    """All audiences, as JSON."""
    found: list[dict[str, Any]] = (await face.client.get(path)).plain
    return found


async def audience_of(face, name):
    [found] = [each for each in await listed(face) if each["name"] == name]
    return found


async def in_audiences(face, user, environment="production"):
    """What a user is said to be in."""
    answer = await face.client.post(
        f"/userprofile/v1/resolve/1/1/{face.workspace}?fields=audience_memberships",
        {
            "environment_type": environment,
            "identity": {"type": "customer_id", "value": f"user {user}"},
        },
    )
    found: list[dict[str, Any]] = answer.plain["audience_memberships"]
    return found


async def number_of(api, gid):
    application = await api.store.registry.application("demo")
    return (await api.store.groups.get_group(application.production, gid)).number


async def test_a_dynamic_group_is_an_audience(face):
    await face.say(1, plan="pro")
    gid = await create(face, description="Those who pay", attributes=[{"key": "a", "value": "b"}])
    application = await face.api.store.registry.application("demo")
    group = await face.api.store.groups.get_group(application.production, gid)

    [audience] = await listed(face)

    assert {
        "id": application.production.number * 2**32 + group.number,
        "name": "Pros",
        "external_name": "Pros",
        "size": 1,
        "status": "active",
        "is_calculated": True,
        "added_last_24_hours": 1,
        "dropped_last_24_hours": 0,
        "workspaces": [
            {
                "id": 1,
                "name": "demo",
                "data_type": "workspace",
                "created_on": moment(application.created_at_us),
            }
        ],
        "connected_outputs": [],
        "created_by": "admin",
        "last_modified_by": "admin",
        "last_modified_on": moment(group.version),
        "data_type": "audience",
    } == audience
    assert group.created_at_us <= group.version <= time.time_ns() // 1000


async def test_there_are_none_where_no_group_is_dynamic(face):
    await face.client.group("Static")
    assert [] == await listed(face)
    assert [] == await listed(face, "/v1/audiences")


async def test_all_active_dynamic_groups_are_listed_the_oldest_first(face):
    await face.client.group("Static")
    for name in ("Zebra", "Apple", "Mango"):
        await create(face, name, run=False)
    gone = await create(face, "Gone", run=False)
    hidden = await create(face, "Hidden", run=False)
    await face.client.delete(f"{GROUPS}/{gone}/")
    await face.client.patch(f"{GROUPS}/{hidden}/", {"is_active": False})
    assert ["Zebra", "Apple", "Mango"] == [each["name"] for each in await listed(face)]


async def test_more_than_a_page_of_them_are_one_array(face):
    for n in range(0, 203, 20):
        await asyncio.gather(
            *(create(face, f"Audience {m}", run=False) for m in range(n, min(n + 20, 203)))
        )
    found = await listed(face)
    assert {f"Audience {n}" for n in range(203)} == {each["name"] for each in found}
    assert sorted(each["id"] for each in found) == [each["id"] for each in found]


async def test_the_token_names_the_workspace_where_the_path_does_not(face):
    await create(face)
    second = await face.api.store.registry.create_application("second")
    other = await face.api.client("groups:read", applications=("second",))
    both = await face.api.client("groups:read", applications=("demo", "second"))

    assert await listed(face) == await listed(face, "/v1/audiences")
    assert [] == (await other.get("/v1/audiences")).plain
    assert [] == (await other.get(f"/v1/workspace/{second.workspace_id}/audiences")).plain
    assert "not for exactly one" in (await both.get("/v1/audiences", 400)).body.detail
    assert 1 == len((await both.get(OF_WORKSPACE)).plain)
    assert 1 == len((await both.get("/v1/audiences?client_id=demo")).plain)
    assert [] == (await both.get("/v1/audiences?client_id=second")).plain


async def test_a_token_for_several_workspaces_names_the_one_whose_audience_it_deletes(face):
    await create(face)
    path = f"/v1/audiences/{(await audience_of(face, 'Pros'))['id']}"
    await face.api.store.registry.create_application("second")
    both = await face.api.client("groups:write", applications=("demo", "second"))

    assert "?client_id=" in (await both.delete(path, status=400)).body.detail
    await both.delete(f"{path}?client_id=second", status=404)
    assert 1 == len(await listed(face))
    await both.delete(f"{path}?client_id=demo")
    assert [] == await listed(face)


async def test_the_account_that_mparticle_asks_for_is_read_past(face):
    await create(face)
    found = await listed(face)
    for query in ("accountId=1", "accountId=", "accountId=x&unknown=%00"):
        for path in (OF_WORKSPACE, "/v1/audiences", "/v1/audiences/"):
            assert found == await listed(face, f"{path}?{query}")


async def test_who_writes_is_named_and_when(face):
    registry = face.api.store.registry
    credential, _ = await registry.create_credential(["demo"], ["groups:write"])
    token = await auth.mint(
        registry,
        applications=["demo"],
        scopes=["groups:write"],
        subject=credential.id,
        credential=credential.id,
    )
    gid = await create(face, run=False)
    first = await audience_of(face, "Pros")
    before_us = time.time_ns() // 1000
    await face.client.using(token).patch(f"{GROUPS}/{gid}/", {"name": "Payers"})
    changed = await audience_of(face, "Payers")

    assert (first["id"], "Payers") == (changed["id"], changed["external_name"])
    assert ("admin", f"client_id:{credential.id}") == (
        changed["created_by"],
        changed["last_modified_by"],
    )
    assert moment(before_us) <= changed["last_modified_on"] <= moment(time.time_ns() // 1000)
    assert first["last_modified_on"] <= changed["last_modified_on"]


# Size, status, turnover


async def test_its_size_follows_the_facts_at_once(face):
    await create(face)
    for user in range(1, 6):
        await face.say(user, plan="pro")
        assert user == (await audience_of(face, "Pros"))["size"]
    await face.say(2, plan="free")
    await face.erase(3)
    seen = await audience_of(face, "Pros")
    assert (3, 5) == (seen["size"], seen["added_last_24_hours"])
    assert 2 == seen["dropped_last_24_hours"], "the one who is erased, too"


async def test_an_audience_is_building_until_everybody_was_looked_at(face):
    for user in range(1, 4):
        await face.say(user, plan="pro")
    gid = await create(face, run=False)
    assert "building" == (await audience_of(face, "Pros"))["status"]
    await face.run()
    ready = await audience_of(face, "Pros")
    assert ("active", 3) == (ready["status"], ready["size"])

    await face.client.patch(f"{GROUPS}/{gid}/", {"rule_tree": PRO | {"value": "free"}})
    rebuilt = await audience_of(face, "Pros")
    assert ("building", 3) == (rebuilt["status"], rebuilt["size"])
    await face.run()
    after = await audience_of(face, "Pros")
    assert ("active", 0) == (after["status"], after["size"])
    assert (3, 3) == (after["added_last_24_hours"], after["dropped_last_24_hours"])


async def test_members_count_as_often_as_they_come_and_go(face):
    await create(face)
    for _ in range(3):
        await face.say(1, plan="pro")
        await face.say(1, plan="free")
    await face.say(1, plan="pro")
    await face.say(1, plan="PRO")
    seen = await audience_of(face, "Pros")
    assert (1, 4, 3) == (seen["size"], seen["added_last_24_hours"], seen["dropped_last_24_hours"])


async def test_what_happened_23_hours_ago_counts_and_24_hours_ago_does_not(face):
    await create(face)
    await face.say(1, plan="pro")
    store = face.api.store
    application = await store.registry.application("demo")
    number = (await audience_of(face, "Pros"))["id"] % 2**32
    tag = application.production.partitions[0]
    hour = time.time_ns() // 1000 // HOUR_US
    for back, gained, lost in ((1, 10, 20), (23, 100, 200), (24, 1000, 2000)):
        key = keys.turnover(tag, hour - back)
        fields = [b"+%d" % number, gained, b"-%d" % number, lost]
        await store.connection.command(key, "HSET", key, *fields)
        await store.connection.command(key, "EXPIRE", key, 60)
    seen = await audience_of(face, "Pros")
    if hour == time.time_ns() // 1000 // HOUR_US:
        assert (111, 220) == (seen["added_last_24_hours"], seen["dropped_last_24_hours"])


async def test_a_household_that_gets_a_dog_brings_its_members(face):
    await face.define(("has_dog", "boolean_or"))
    await create(face, "Dog households", DOG)
    for user in (1, 2):
        await face.say(user, address="123 Main St")
    assert 0 == (await audience_of(face, "Dog households"))["size"]
    await face.say(1, has_dog=True)
    seen = await audience_of(face, "Dog households")
    assert (2, 2, 0) == (seen["size"], seen["added_last_24_hours"], seen["dropped_last_24_hours"])
    memberships = {"audience_id": seen["id"], "audience_name": "Dog households"}
    expected = [memberships | {"expiration_timestamp_ms": None}]
    assert expected == await in_audiences(face, 1) == await in_audiences(face, 2)
    await face.say(1, has_dog=False)
    assert [] == await in_audiences(face, 2)


# Deleting


async def test_deleting_an_audience_deletes_the_group(face):
    await face.say(1, plan="pro")
    gid = await create(face)
    other = await create(face, "Others")
    audience = await audience_of(face, "Pros")

    answer = await face.client.delete(f"/v1/audiences/{audience['id']}?accountId=1")

    assert b"" == answer.content
    await face.client.get(f"{GROUPS}/{gid}/", 404)
    assert ["Others"] == [each["name"] for each in await listed(face)]
    assert ["Others"] == [each["audience_name"] for each in await in_audiences(face, 1)]
    await face.client.delete(f"/v1/audiences/{audience['id']}", status=404)
    await face.run()
    await face.client.get(f"{GROUPS}/{other}/")


async def test_what_is_no_audience_is_not_deleted(face):
    static = await face.client.group("Static")
    hidden = await create(face, "Hidden")
    audience = await audience_of(face, "Hidden")
    await face.client.patch(f"{GROUPS}/{hidden}/", {"is_active": False})
    environment, number = divmod(audience["id"], 2**32)
    of_static = ids.audience_id(environment, await number_of(face.api, static))
    application = await face.api.store.registry.application("demo")
    other = application.environments["development"].number
    asked = [
        of_static, audience["id"], audience["id"] + 1, number, 0, -audience["id"], "x", "1.5",
        f"0{audience['id']}", ids.audience_id(other, number), 2**63, "9" * 5000, "%20", "%C3%A9",
    ]  # fmt: skip
    for each in asked:
        answer = await face.client.delete(f"/v1/audiences/{each}", status=404)
        assert "NOT_FOUND" == answer.body.error_code
    await face.client.get(f"{GROUPS}/{static}/")
    await face.client.get(f"{GROUPS}/{hidden}/?include_inactive=true")


async def test_an_audience_of_another_workspace_is_as_unknown_as_one_that_there_is_not(face):
    await create(face)
    theirs = (await audience_of(face, "Pros"))["id"]
    await face.api.store.registry.create_application("second")
    other = await face.api.client("groups:write", applications=("second",))
    seen = {
        (await other.delete(f"/v1/audiences/{each}", status=404)).content
        for each in (theirs, theirs + 1, ids.audience_id(4711, 1), 1)
    }
    assert 1 == len(seen)
    assert [theirs] == [each["id"] for each in await listed(face)]


async def test_of_two_who_delete_one_at_a_time_both_are_answered(face):
    await create(face)
    path = f"/v1/audiences/{(await audience_of(face, 'Pros'))['id']}"
    answers = await asyncio.gather(*(face.client.call("DELETE", path) for _ in range(2)))
    assert {204} <= {each.status for each in answers} <= {204, 404}
    assert [] == await listed(face)


async def test_a_token_without_the_scope_may_not(face):
    await create(face)
    path = f"/v1/audiences/{(await audience_of(face, 'Pros'))['id']}"
    reader = await face.api.client("groups:read", "members:read", "definitions:write")
    await reader.delete(path, status=403)
    writer = await face.api.client("groups:write")
    await writer.get(OF_WORKSPACE, 403)
    await writer.get("/v1/audiences", 403)
    await writer.delete(path)


# What a user is said to be in


async def test_a_user_is_in_audiences_in_the_order_of_their_ids(face):
    static = await face.client.group("Static")
    await face.say(1, plan="pro", seats=7)
    await create(face, "Zebra")
    await create(face, "Never", PRO | {"value": "none"})
    await create(face, "Apple", {"attribute": "seats", "condition": "greater_than", "value": 5})
    await face.client.post(f"{GROUPS}/{static}/members/", {"profile_ids": [await face.profile(1)]})
    found = await in_audiences(face, 1)
    assert ["Zebra", "Apple"] == [each["audience_name"] for each in found]
    numbers = {each["name"]: each["id"] for each in await listed(face)}
    assert [numbers["Zebra"], numbers["Apple"]] == [each["audience_id"] for each in found]
    assert {None} == {each["expiration_timestamp_ms"] for each in found}


async def test_an_inactive_audience_is_not_shown_with_users_until_it_is_active_again(face):
    await face.say(1, plan="pro")
    gid = await create(face)
    assert 1 == len(await in_audiences(face, 1))
    path = f"{GROUPS}/{gid}/"
    await face.client.patch(path, {"is_active": False})
    assert [] == await in_audiences(face, 1)
    await face.client.patch(f"{path}?include_inactive=true", {"is_active": True})
    assert 1 == len(await in_audiences(face, 1))


async def test_a_user_of_development_is_in_none(face):
    await face.say(1, plan="pro", environment="development")
    await create(face)
    assert [] == await in_audiences(face, 1, "development")
    assert 0 == (await audience_of(face, "Pros"))["size"]


async def test_a_user_in_more_than_a_page_of_audiences_is_shown_all(face, monkeypatch):
    monkeypatch.setattr("service.user_profiles.PAGE", 7)
    for n in range(23):
        await create(face, f"Audience {n}", run=False)
    await face.run()
    await face.say(1, plan="pro")
    found = await in_audiences(face, 1)
    assert [f"Audience {n}" for n in range(23)] == [each["audience_name"] for each in found]


async def test_audiences_of_a_user_are_read_only_where_they_are_asked_for(face):
    await face.say(1, plan="pro")
    await create(face)
    path = "/userprofile/v1/resolve/1/1/1?fields=user_identities"
    body = {"identity": {"type": "customer_id", "value": "user 1"}}
    assert "audience_memberships" not in (await face.client.post(path, body)).plain


# Several processes, and a store that fails


async def test_another_process_lists_what_was_just_made_and_deleted(face, valkey):
    async with opened(valkey.url) as second:
        other = Face(second, second.admin, 1)
        assert [] == await listed(other)
        await create(face, run=False)
        await face.say(1, plan="pro")
        [found] = await listed(other)
        assert ("Pros", 1) == (found["name"], found["size"])
        await other.client.delete(f"/v1/audiences/{found['id']}")
        assert [] == await listed(face) == await in_audiences(face, 1)
        await face.client.get(f"{DEMO}/profile-groups/?membership_type=dynamic")


async def test_a_store_that_is_gone_is_503_in_the_shape_of_the_face(face, monkeypatch):
    await create(face)
    audience = await audience_of(face, "Pros")

    async def gone(*_args, **_options):
        raise Unavailable("The store does not answer.")

    with monkeypatch.context() as patched:
        patched.setattr(face.api.store.connection, "call", gone)
        for method, path in (
            ("GET", OF_WORKSPACE),
            ("GET", "/v1/audiences"),
            ("DELETE", f"/v1/audiences/{audience['id']}"),
        ):
            answer = await face.client.call(method, path, status=503)
            assert "SERVICE_UNAVAILABLE" == answer.body.error_code
            assert "1" == answer.headers["retry-after"]
    assert [audience["id"]] == [each["id"] for each in await listed(face)]
