"""Profile groups over HTTP: created, found, changed, put away, deleted."""

from __future__ import annotations

import re
import uuid

import pytest

from tests.client import DEMO, GROUPS, P1, P2, Api, Client

FIELDS = [
    "id",
    "name",
    "is_active",
    "description",
    "profile_count",
    "custom_id",
    "created_at",
    "attributes",
    "membership_type",
]


async def listed(client: Client, query: str = "") -> list[str]:
    """Names of the groups of a list."""
    return [group.name for group in (await client.get(f"{GROUPS}/{query}")).body.results]


async def test_a_new_group_has_the_documented_fields_in_their_order(admin: Client) -> None:
    body = (await admin.post(f"{GROUPS}/", {"name": "n"}, 201)).plain

    assert list(body) == FIELDS
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", body["created_at"])
    assert body["id"] == str(uuid.UUID(body["id"]))
    del body["id"], body["created_at"]
    assert body == {
        "name": "n",
        "is_active": True,
        "description": None,
        "profile_count": 0,
        "custom_id": None,
        "attributes": [],
        "membership_type": "static",
    }


async def test_what_was_given_is_what_is_read(admin: Client) -> None:
    given = {
        "name": "é" * 255,
        "is_active": True,
        "description": "d" * 2000,
        "attributes": [{"key": "k" * 255, "value": "v" * 1024}] * 2
        + [{"key": "k", "value": ""}] * 98,
        "custom_id": "😀" * 255,
        "membership_type": "static",
        "rule_tree": None,
    }
    created = (await admin.post(f"{GROUPS}/", given, 201)).plain
    del given["rule_tree"]

    assert given == {name: created[name] for name in given}
    assert created == (await admin.get(f"{GROUPS}/{created['id']}/")).plain
    assert [created] == (await admin.get(f"{GROUPS}/")).plain["results"]


async def test_a_group_is_found_by_id_in_any_case_and_by_custom_id(admin: Client) -> None:
    group = await admin.group(custom_id="mine")

    for gid in (group, group.upper(), "mine"):
        assert group == (await admin.get(f"{GROUPS}/{gid}/")).body.id
    for gid in (P1, "MINE", "x" * 300, "%00"):
        await admin.get(f"{GROUPS}/{gid}/", 404)


async def test_an_id_comes_before_a_custom_id_that_looks_like_it(admin: Client) -> None:
    first = await admin.group("first")
    second = await admin.group("second", custom_id=first)
    third = await admin.group("third", custom_id=P1)

    assert first == (await admin.get(f"{GROUPS}/{first}/")).body.id
    assert third == (await admin.get(f"{GROUPS}/{P1}/")).body.id
    assert second == (await admin.get(f"{GROUPS}/?custom_id={first}")).body.results[0].id


async def test_a_taken_custom_id_is_409_and_changes_nothing(admin: Client) -> None:
    await admin.group("first", custom_id="taken")
    second = await admin.group("second")
    detail = "profile group with custom_id 'taken' already exists."

    for answer in (
        await admin.post(f"{GROUPS}/", {"name": "n", "custom_id": "taken"}, 409),
        await admin.post(f"{GROUPS}/taken/", {"name": "n"}, 409),
        await admin.patch(f"{GROUPS}/{second}/", {"custom_id": "taken", "name": "n"}, 409),
    ):
        assert (detail, "conflict") == (answer.body.detail, answer.body.error_code)

    assert await listed(admin) == ["first", "second"]


async def test_post_with_an_id_in_the_path_makes_it_the_id_or_the_custom_id(admin: Client) -> None:
    by_id = (await admin.post(f"{GROUPS}/{P1.upper()}/", {"name": "a", "custom_id": "c"}, 201)).body
    by_custom_id = (await admin.post(f"{GROUPS}/a%2Fb/", {"name": "b"}, 201)).body

    assert (by_id.id, by_id.custom_id) == (P1, "c")
    assert by_custom_id.custom_id == "a/b"
    await admin.post(f"{GROUPS}/{P1}/", {"name": "n"}, 409)
    await admin.post(f"{GROUPS}/same/", {"name": "n", "custom_id": "same"}, 201)
    answer = await admin.post(f"{GROUPS}/one/", {"name": "n", "custom_id": "other"}, 400)
    assert "$.custom_id" in answer.body["custom_id"][0]
    await admin.post(f"{GROUPS}/{'x' * 256}/", {"name": "n"}, 400)
    await admin.post(f"{GROUPS}/a%00b/", {"name": "n"}, 400)


async def test_patch_changes_the_fields_given_and_null_clears(admin: Client) -> None:
    pairs = [{"key": "k", "value": "v"}]
    group = await admin.group("n", description="d", custom_id="c", attributes=pairs)
    path = f"{GROUPS}/{group}/"

    assert (await admin.patch(path, {"name": "m"})).body.name == "m"
    body = (await admin.patch(path, {})).plain
    assert ("m", "d", "c", pairs) == tuple(
        body[name] for name in ("name", "description", "custom_id", "attributes")
    )
    other = [{"key": "k2", "value": "v2"}, {"key": "k2", "value": "v3"}]
    assert other == (await admin.patch(path, {"attributes": other})).plain["attributes"]
    assert await listed(admin, "?attributes=k2:v3") == ["m"]
    assert await listed(admin, "?attributes=k:v") == []
    body = (await admin.patch(path, {"description": None, "custom_id": None})).body
    assert (body.description, body.custom_id) == (None, None)
    await admin.get(f"{GROUPS}/c/", 404)
    for name in ("name", "is_active", "attributes"):
        await admin.patch(path, {name: None}, 400)


async def test_put_needs_the_name_and_leaves_what_is_not_given(admin: Client) -> None:
    group = await admin.group("n", description="d")

    body = (await admin.call("PUT", f"{GROUPS}/{group}/", {"name": "m"}, status=200)).body

    assert (body.name, body.description) == ("m", "d")
    answer = await admin.call("PUT", f"{GROUPS}/{group}/", {"description": "e"}, status=400)
    assert answer.body["name"][0] == "Object missing required field `name`"


@pytest.mark.parametrize("slash", ["", "/"])
async def test_delete_is_final(admin: Client, slash: str) -> None:
    group = await admin.group(custom_id="c")
    await admin.post(f"{GROUPS}/{group}/members/", {"profile_ids": [P1]})

    await admin.delete(f"{GROUPS}/{group}{slash}")

    await everywhere_404(admin, group)
    assert (await admin.call("DELETE", f"{GROUPS}/{group}/")).status == 404
    again = await admin.group(custom_id="c")
    assert (await admin.get(f"{GROUPS}/{again}/")).body.profile_count == 0


async def everywhere_404(client: Client, group: str) -> None:
    """A group that is gone or put away is so everywhere."""
    path = f"{GROUPS}/{group}/"
    ids = {"profile_ids": [P2]}
    for method, where, body in (
        ("GET", path, None),
        ("PATCH", path, {"name": "m"}),
        ("PUT", path, {"name": "m"}),
        ("DELETE", path, None),
        ("GET", f"{path}members/", None),
        ("POST", f"{path}members/", ids),
        ("POST", f"{path}members/", {"custom_ids": ["c"]}),
        ("POST", f"{path}members/", {"profile_ids": []}),
        ("DELETE", f"{path}members/", ids),
        ("DELETE", f"{path}members/", {"custom_ids": ["never-heard-of"]}),
        ("GET", f"{path}members/{P1}/", None),
        ("DELETE", f"{path}members/{P1}/", None),
        ("DELETE", f"{path}members/never-heard-of/", None),
    ):
        answer = await client.call(method, where, body)
        assert (404, method, where) == (answer.status, method, where)
    assert group not in [each.id for each in (await client.get(f"{GROUPS}/")).body.results]
    for pid in (P1, P2):
        page = (await client.get(f"{DEMO}/profiles/{pid}/profile-groups/")).body
        assert (page.count, page.results) == (0, [])
    pairs = [{"profile_id": P1, "group_id": group}, {"custom_id": "who", "group_id": group}]
    check = await client.post(f"{DEMO}/memberships/check/", {"pairs": pairs})
    assert check.body.results == [None, None]


async def test_an_inactive_group_is_404_everywhere_until_an_admin_takes_it_back(
    api: Api, admin: Client
) -> None:
    group = await admin.group(custom_id="c")
    await admin.post(f"{GROUPS}/{group}/members/", {"profile_ids": [P1]})

    body = (await admin.patch(f"{GROUPS}/{group}/", {"is_active": False})).body

    assert (body.is_active, body.profile_count) == (False, 1)
    await everywhere_404(admin, group)
    await admin.post(f"{GROUPS}/", {"name": "n", "custom_id": "c"}, 409)
    seen = (await admin.get(f"{GROUPS}/?include_inactive=true")).body
    assert [(group, False)] == [(each.id, each.is_active) for each in seen.results]
    assert (await admin.get(f"{GROUPS}/{group}/?include_inactive=true")).body.profile_count == 1
    writer = await api.client("groups:read", "groups:write")
    for method in ("GET", "PATCH", "PUT", "DELETE"):
        answer = await writer.call(
            method, f"{GROUPS}/{group}/?include_inactive=true", {"name": "x"}, status=403
        )
        assert "admin" in answer.body.detail
    await writer.get(f"{GROUPS}/?include_inactive=true", 403)
    await writer.get(f"{GROUPS}/?include_inactive=false")

    await admin.patch(f"{GROUPS}/{group}/?include_inactive=true", {"is_active": True})

    page = (await admin.get(f"{GROUPS}/{group}/members/")).body
    assert [member.id for member in page.results] == [P1]
    assert group == (await admin.get(f"{GROUPS}/c/")).body.id


async def test_a_group_may_be_created_inactive(admin: Client) -> None:
    body = (await admin.post(f"{GROUPS}/", {"name": "n", "is_active": False}, 201)).body

    assert body.is_active is False
    await everywhere_404(admin, body.id)


async def test_filters_narrow_the_list_together(admin: Client) -> None:
    def pairs(**values: str) -> list[dict[str, str]]:
        return [{"key": key, "value": value} for key, value in values.items()]

    await admin.group("a", attributes=pairs(team="red", level="1"), custom_id="ca")
    await admin.group("b", attributes=pairs(team="red", level="2"))
    await admin.group("c", attributes=pairs(team="blue"))
    await admin.group("a", attributes=[{"key": "x:y", "value": "1:2"}])

    for query, expected in {
        "": ["a", "b", "c", "a"],
        "?ordering=created_at": ["a", "b", "c", "a"],
        "?ordering=-created_at": ["a", "c", "b", "a"],
        "?attributes=team:red": ["a", "b"],
        "?attributes=team%3Ared": ["a", "b"],
        "?attributes=team": ["a", "b", "c"],
        "?attributes=team:red&attributes=level:2": ["b"],
        "?attributes=team:red&attributes=team:blue": [],
        "?attributes=team:red&attributes=team:red": ["a", "b"],
        "?attributes=team:": [],
        "?attributes=tea": [],
        "?attributes=x%3Ay:1:2": ["a"],
        "?attributes=x%3Ay:1%3A2": ["a"],
        "?attributes=x:y:1:2": [],
        "?name=a": ["a", "a"],
        "?name=a&attributes=team": ["a"],
        "?name=A": [],
        "?custom_id=ca": ["a"],
        "?custom_id=ca&attributes=team:blue": [],
        "?custom_id=cb": [],
        "?membership_type=static": ["a", "b", "c", "a"],
        "?membership_type=dynamic": [],
    }.items():
        page = (await admin.get(f"{GROUPS}/{query}")).body
        assert (query, expected) == (query, [group.name for group in page.results])
        assert (query, len(expected)) == (query, page.count)
    for query in ("membership_type=odd", "ordering=name", "include_inactive=maybe"):
        assert query.partition("=")[0] in (await admin.get(f"{GROUPS}/?{query}", 400)).body


async def test_more_filters_than_a_group_has_attributes_are_refused(admin: Client) -> None:
    """4,000 in one request kept the store busy for all others."""
    query = "&".join(["attributes=team:red"] * 100)
    assert await listed(admin, f"?{query}") == []

    answer = await admin.get(f"{GROUPS}/?{query}&attributes=level", 400)

    assert {"attributes": ["Expected `array` of length <= 100 - at `$.attributes`"]} == answer.body


async def test_a_filtered_list_is_walked_both_ways(admin: Client) -> None:
    for number in range(7):
        key = "odd" if number % 2 else "even"
        await admin.group(f"{number}", attributes=[{"key": key, "value": "x"}])
    for query, expected in {
        "attributes=even:x": ["0", "2", "4", "6"],
        "attributes=even:x&ordering=-created_at": ["6", "4", "2", "0"],
        "ordering=-created_at": ["6", "5", "4", "3", "2", "1", "0"],
    }.items():
        pages = await admin.walk(f"{GROUPS}/?page_size=2&{query}")
        assert expected == [group.name for page in pages for group in page.results]
        last = (await admin.get(pages[-2].next)).body
        back = [last]
        while back[-1].previous is not None:
            back.append((await admin.get(back[-1].previous)).body)
        assert expected == [group.name for page in reversed(back) for group in page.results]


async def test_pages_may_be_numbered(admin: Client) -> None:
    for number in range(5):
        await admin.group(f"{number}")

    second = (await admin.get(f"{GROUPS}/?page=2&page_size=2")).body

    assert [group.name for group in second.results] == ["2", "3"]
    assert "page=" not in second.next.replace("page_size=", "")
    assert [group.name for group in (await admin.get(second.next)).body.results] == ["4"]
    assert [group.name for group in (await admin.get(second.previous)).body.results] == ["0", "1"]
    assert await listed(admin, "?page=3&page_size=2") == ["4"]
    assert await listed(admin, "?page=2&page_size=3&ordering=-created_at") == ["1", "0"]
    assert (
        await admin.get(f"{GROUPS}/?page=4&page_size=2", 404)
    ).body.detail == "There is no such page."
    cursor = second.next.partition("cursor=")[2]
    answer = await admin.get(f"{GROUPS}/?page=1&cursor={cursor}", 400)
    assert "not both" in answer.body["page"][0]
    for bad in ("0", "-1", "x", "", "1000001"):
        assert "page" in (await admin.get(f"{GROUPS}/?page={bad}", 400)).body


async def test_only_the_fields_asked_for_are_given(admin: Client) -> None:
    await admin.group("a", custom_id="c")

    page = (await admin.get(f"{GROUPS}/?fields=name,profile_count,custom_id,name")).plain

    assert page["results"] == [{"name": "a", "profile_count": 0, "custom_id": "c"}]
    assert page["count"] == 1


async def test_profile_count_is_exact(admin: Client) -> None:
    group = await admin.group()
    ids = [str(uuid.UUID(int=number)) for number in range(300)]
    await admin.post(f"{GROUPS}/{group}/members/", {"profile_ids": ids})
    await admin.delete(f"{GROUPS}/{group}/members/", {"profile_ids": ids[:7]})

    assert (await admin.get(f"{GROUPS}/{group}/")).body.profile_count == 293
    assert (await admin.patch(f"{GROUPS}/{group}/", {"name": "m"})).body.profile_count == 293
    assert [each.profile_count for each in (await admin.get(f"{GROUPS}/")).body.results] == [293]
    page = (await admin.get(f"{DEMO}/profiles/{ids[-1]}/profile-groups/")).body
    assert [each.profile_count for each in page.results] == [293]
