"""Queries over HTTP: what is sent, what is answered, and what is refused with its place."""

from __future__ import annotations

import asyncio

import pytest

from service.groups import GroupChanges, NewGroup
from service.worker import work
from tests.client import GROUPS, HOST

QUERY = f"{GROUPS}/query/"


def g(name):
    return {"group": name}


def people(count):
    return [f"00000000-0000-4000-8000-{at:012}" for at in range(count)]


@pytest.fixture
async def groups(admin):
    """`a` holds the first 30 of 40, `b` the last 30; their ids."""
    everybody = people(40)
    made = {}
    for name, members in (("a", everybody[:30]), ("b", everybody[10:])):
        made[name] = await admin.group(name, custom_id=name)
        await admin.post(f"{GROUPS}/{name}/members/", {"profile_ids": members})
    return made


async def pages(client, body, path=QUERY, link="next"):
    """Follow a query to its end, and give the body of every page."""
    found = [(await client.post(path, body)).body]
    while getattr(found[-1], link) is not None:
        found.append((await client.post(getattr(found[-1], link), body)).body)
    return found


async def test_a_query_is_answered_with_a_page(admin, groups):
    body = {"query": {"and": [g("a"), {"not": g(groups["b"])}]}}
    answer = (await admin.post(QUERY, body)).body
    assert (10, None, None) == (answer.count, answer.next, answer.previous)
    assert set(people(10)) == {row.id for row in answer.results}
    assert {"Profile 00000000"} == {row.nickname for row in answer.results}
    assert {None} == {row.custom_id for row in answer.results}


async def test_a_walk_gives_everybody_once_and_back_again(admin, groups):
    body = {"query": {"and": [g("a"), g("b")]}, "page_size": 7}
    walked = await pages(admin, body)
    rows = [row.id for page in walked for row in page.results]
    assert [7, 7, 6] == [len(page.results) for page in walked]
    assert set(people(40)[10:30]) == set(rows)
    assert {20} == {page.count for page in walked}
    back = await pages(admin, body, walked[-1].previous, "previous")
    assert rows[:14] == [row.id for page in reversed(back) for row in page.results]
    assert walked[0].next.startswith(f"{HOST}{QUERY}?cursor=")


async def test_rows_are_in_the_order_of_the_members_list(admin, groups):
    listed = (await admin.get(f"{GROUPS}/a/members/?page_size=100")).body.results
    for query in (g("a"), {"or": [g("a"), {"and": [g("a"), g("b")]}]}):
        asked = (await admin.post(QUERY, {"query": query, "page_size": 100})).body.results
        assert [row.id for row in listed] == [row.id for row in asked]


async def test_a_cursor_is_bound_to_what_is_asked_not_to_how_it_is_written(admin, groups):
    body = {"query": {"and": [g("a"), g("b")]}, "page_size": 5}
    first = (await admin.post(QUERY, body)).body
    same = {"query": {"and": [{"and": [g(groups["a"])]}, g("b")]}, "page_size": 5}
    await admin.post(first.next, same)
    other = {"query": {"or": [g("a"), g("b")]}, "page_size": 5}
    refused = await admin.post(first.next, other, 400)
    assert "The cursor is not one of this list" in refused.plain["cursor"][0]
    members = first.next.replace("query/", "a/members/")
    await admin.call("GET", members, status=400)


async def test_only_the_fields_that_are_named_are_given(admin, groups):
    body = {"query": {"and": [g("a"), g("b")]}, "page_size": 1, "fields": "id"}
    assert ["id"] == list((await admin.post(QUERY, body)).plain["results"][0])
    body["fields"] = "custom_id,nickname"
    assert ["custom_id", "nickname"] == list((await admin.post(QUERY, body)).plain["results"][0])
    refused = await admin.post(QUERY, body | {"fields": "joined"}, 400)
    assert "is not a field here" in refused.plain["fields"][0]


async def test_dynamic_groups_are_asked_like_static_ones(admin, groups):
    one = people(40)[15]
    tree = {"attribute": "tier", "condition": "equals", "value": "pro"}
    await admin.group("pros", custom_id="pros", membership_type="dynamic", rule_tree=tree)
    attributes = [{"key": "tier", "value": "pro"}]
    await admin.patch(f"/api/v1/profiles/{one}/?client_id=demo", {"attributes": attributes})
    answer = await admin.post(QUERY, {"query": {"and": [g("pros"), g("a"), g("b")]}})
    assert [one] == [row.id for row in answer.body.results]


@pytest.mark.parametrize(
    ("body", "field", "place"),
    [
        ({"query": 1}, "query", "$.query"),
        ({"query": {"and": []}}, "query", "$.query.and"),
        ({"query": {"nand": [g("a")]}}, "query", "$.query"),
        ({"query": {"or": [g("a"), {"not": g(7)}]}}, "query", "$.query.or[1].not.group"),
        ({"query": {"or": [g("a")] * 1001}}, "query", "$.query.or[1000].group"),
        ({"query": {"at_least": 3, "of": [g("a")]}}, "query", "$.query.at_least"),
        ({"query": g("a"), "page_size": 0}, "page_size", "$.page_size"),
        ({"query": g("a"), "page_size": 1001}, "page_size", "$.page_size"),
        ({"query": g("a"), "save_as": {}}, "save_as", "$.save_as"),
        ({"query": g("a"), "save_as": {"name": ""}}, "save_as", "$.save_as.name"),
        ({"query": g("a"), "save_as": {"name": "n\0"}}, "save_as", "$.save_as"),
        ({"query": g("a"), "save_as": {"name": "n"}, "page_size": 2}, "page_size", "$.page_size"),
        ({"query": g("a"), "save_as": {"name": "n"}, "fields": "id"}, "fields", "$.fields"),
    ],
)
async def test_what_is_wrong_is_refused_with_its_place(admin, groups, body, field, place):
    refused = await admin.post(QUERY, body, 400)
    assert f"at `{place}`" in refused.plain[field][0]
    assert 2 == (await admin.get(f"{GROUPS}/")).body.count


async def test_a_body_that_is_nested_without_end_is_refused(admin):
    hostile = b'{"query":' + b'{"not":' * 100_000 + b"1" + b"}" * 100_001
    await admin.post(QUERY, hostile, 400)


async def test_a_missing_query_and_unknown_fields_are_refused(admin):
    await admin.post(QUERY, {}, 400)
    await admin.post(QUERY, {"query": g("a"), "limit": 5}, 400)
    await admin.post(f"{QUERY}?page_size=5", {"query": g("a")}, 400)


@pytest.mark.parametrize("state", ["unknown", "inactive", "deleted"])
async def test_a_group_that_is_not_there_is_404_and_named(admin, groups, state):
    if state == "unknown":
        body = {"query": {"and": [g("a"), g("c")]}}
        named = "'c' - at `$.query.and[1].group`"
    else:
        body = {"query": {"and": [g("a"), g(groups["b"])]}}
        named = f"'{groups['b']}' - at `$.query.and[1].group`"
        await admin.post(QUERY, body)
        if state == "inactive":
            await admin.patch(f"{GROUPS}/b/", {"is_active": False})
        else:
            await admin.delete(f"{GROUPS}/b/")
    for asked in (body, body | {"save_as": {"name": "s"}}):
        refused = await admin.post(QUERY, asked, 404)
        assert f"There is no group {named}" == refused.body.detail


async def test_a_group_of_another_application_is_not_there(api, admin, groups):
    other = await api.store.registry.create_application("other")
    await api.store.groups.create_group(
        other.production, NewGroup(name="foreign", custom_id="foreign")
    )
    await admin.post(QUERY, {"query": {"or": [g("a"), g("foreign")]}}, 404)


async def test_reading_needs_a_scope_and_saving_two_more(api, groups):
    body = {"query": {"or": [g("a"), g("b")]}}
    reader = await api.client("members:read")
    await reader.post(QUERY, body)
    saving = body | {"save_as": {"name": "s"}}
    for scopes in ((), ("groups:write",), ("members:write",)):
        client = await api.client("members:read", *scopes)
        await client.post(QUERY, saving, 403)
    writer = await api.client("members:read", "members:write", "groups:write")
    await writer.post(QUERY, saving, 202)
    await (await api.client("groups:read", "members:write", "groups:write")).post(QUERY, body, 403)


async def saved(api, group_id):
    """Let the worker work until the group is ready."""
    for _ in range(100):
        await work(api.store)
        shown = (await api.admin.get(f"{GROUPS}/{group_id}/")).body
        if shown.status.state == "ready":
            return shown
        await asyncio.sleep(0.01)
    raise AssertionError(shown)


async def test_a_query_is_saved_as_a_group_that_fills(api, admin, groups):
    body = {
        "query": {"and": [g("a"), {"not": g("b")}]},
        "save_as": {"name": "Only a", "custom_id": "only", "description": "d"},
    }
    made = (await admin.post(QUERY, body, 202)).body
    assert ("Only a", "only", "d", "static") == (
        made.name,
        made.custom_id,
        made.description,
        made.membership_type,
    )
    assert "building" == made.status.state
    ready = await saved(api, made.id)
    assert 10 == ready.profile_count
    rows = (await admin.get(f"{GROUPS}/only/members/")).body.results
    assert set(people(10)) == {row.id for row in rows}
    await admin.post(f"{GROUPS}/only/members/", {"profile_ids": people(12)})
    again = await admin.post(QUERY, {"query": {"and": [g("only"), g("b")]}})
    assert 2 == again.body.count


async def test_a_page_size_is_an_integer_as_json_knows_them(admin, groups):
    # The fuzzer sent 11.0, which the schema allows, and had a 400.
    page = (await admin.post(QUERY, {"query": g("a"), "page_size": 3.0})).body
    assert 3 == len(page.results)
    for size in (3.5, 0.0, 1001.0, "3"):
        refused = await admin.post(QUERY, {"query": g("a"), "page_size": size}, 400)
        assert "$.page_size" in refused.content.decode()


async def test_a_custom_id_in_use_is_409_and_nothing_is_saved(api, admin, groups):
    body = {"query": g("a"), "save_as": {"name": "s", "custom_id": "b"}}
    await admin.post(QUERY, body, 409)
    assert 2 == (await admin.get(f"{GROUPS}/")).body.count
    assert [] == await api.store.jobs.list_jobs(await api.store.registry.application("demo"))


async def test_who_cannot_be_added_is_told_by_the_job(api, admin, groups):
    application = await api.store.registry.update_application("demo", groups_per_profile=2)
    made = (
        await admin.post(QUERY, {"query": {"or": [g("a"), g("b")]}, "save_as": {"name": "s"}}, 202)
    ).body
    await work(api.store)
    [job] = await api.store.jobs.list_jobs(application)
    assert ("failed", 20) == (job.state, job.failures)
    assert "is in 2 groups, as many as it may" in job.error
    shown = (await admin.get(f"{GROUPS}/{made.id}/")).body
    assert (20, "failed", 40) == (shown.profile_count, shown.status.state, shown.status.total)


async def test_a_job_whose_query_names_a_group_that_is_gone_fails_and_says_so(api, admin, groups):
    body = {"query": {"or": [g("a"), g("b")]}, "save_as": {"name": "s"}}
    await admin.post(QUERY, body, 202)
    application = await api.store.registry.application("demo")
    await api.store.groups.update_group(application.production, "b", GroupChanges(is_active=False))
    await work(api.store)
    [job] = await api.store.jobs.list_jobs(application)
    assert "failed" == job.state
    assert f"There is no group '{groups['b']}' - at `$.query.or[1].group`" in job.error
