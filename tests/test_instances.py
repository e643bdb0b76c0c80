"""Instances over HTTP: who is in a group, what its members share, and why."""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.client import HOST
from tests.face import NOW_MS, Face, batch
from tests.naive import when

GROUPS = "/platform/workspaces/1/groups"
INSTANCES = f"{GROUPS}/household/instances"
ID = re.compile("[0-9a-f]{32}")


@pytest.fixture
async def face(api, admin) -> Face:
    """Workspace 1."""
    return Face(api, admin, 1)


async def many(face, count, *, environment=None):
    """A household for each of so many users; their addresses."""
    for start in range(0, count, 100):
        users = range(start, min(start + 100, count))
        await face.send(
            *(batch(n + 1, environment=environment, address=f"{n} Main St") for n in users)
        )
    return {f"{n} Main St" for n in range(count)}


async def test_an_instance_is_shown_with_its_members_and_why_they_share_what(face):
    await face.define(("has_dog", "boolean_or"), ("age", "average"))
    await face.say(1, at=10, address="123 Main St", age=30)
    await face.say(2, at=20, address="123 Main St", has_dog=True, age=41)
    [row] = await face.instances()
    whole = await face.instance("123 Main St")
    assert whole == row
    profiles = [await face.profile(user) for user in (1, 2)]
    assert ID.fullmatch(row.pop("id"))
    assert re.fullmatch(f"{HOST}{INSTANCES}/[0-9a-f]{{32}}/members", row.pop("members_url"))
    assert {
        "value": "123 Main St",
        "environment": "production",
        "size": 2,
        "excluded_count": 0,
        "overflow": False,
        "members": [{"id": profiles[0], "mpid": 1}, {"id": profiles[1], "mpid": 2}],
        "attributes": {"has_dog": "true", "age": "35.5"},
        "explain": {
            "has_dog": {
                "value": "true",
                "from": {"profile_id": profiles[1], "mpid": 2},
                "set_at": when((NOW_MS + 20) * 1000),
            },
            "age": {"value": "35.5", "from": None, "set_at": None},
        },
    } == row


async def test_lists_and_conflicts_are_explained(face):
    await face.define(("pets", "unique_list"), ("age", "sum"))
    await face.say(1, address="here", pets=["cat", "dog"], age="old")
    await face.say(2, address="here", pets="dog", age=7)
    one = await face.instance("here")
    assert {"pets": ["cat", "dog"], "age": "7"} == one["attributes"]
    assert {"value": "7", "from": None, "set_at": None, "conflicts": 1} == one["explain"]["age"]
    assert ["cat", "dog"] == one["explain"]["pets"]["value"]


async def test_a_member_whom_the_other_face_alone_knows_has_no_mpid(face):
    await face.define()
    profiles = []
    for _ in range(2):
        made = await face.client.post("/api/v1/applications/demo/profile/", {}, 201)
        profiles.append(made.plain["id"])
        path = f"/api/v1/profiles/{profiles[-1]}/?client_id=demo"
        body = {"attributes": [{"key": "$address", "value": "here"}]}
        await face.client.patch(path, body)
    one = await face.instance("here")
    assert {(each, None) for each in profiles} == {
        (each["id"], each["mpid"]) for each in one["members"]
    }


async def test_twenty_members_are_shown_and_the_others_are_one_link_away(face):
    await face.api.store.registry.update_application("demo", users_per_group=30)
    await face.define()
    for start in (0, 20):
        await face.send(
            *(batch(n, at=n, address="here") for n in range(start + 1, min(start + 21, 36)))
        )
    one = await face.instance("here")
    assert (30, 5, True) == (one["size"], one["excluded_count"], one["overflow"])
    assert list(range(1, 21)) == [each["mpid"] for each in one["members"]]
    members = (await face.client.get(one["members_url"])).plain
    assert list(range(1, 31)) == [each["mpid"] for each in members]
    assert one["members"] == members[:20]


async def test_instances_come_in_pages_each_exactly_once(face):
    await face.define()
    addresses = await many(face, 45)
    seen = []
    path = f"{INSTANCES}?page_size=10"
    pages = [(await face.client.get(path)).plain]
    while pages[-1]["next"]:
        pages.append((await face.client.get(pages[-1]["next"])).plain)
    for page in pages:
        assert 45 == page["count"]
        seen += [each["value"] for each in page["results"]]
    assert (addresses, 45) == (set(seen), len(seen))
    assert [10, 10, 10, 10, 5] == [len(page["results"]) for page in pages]
    back = [pages[-1]]
    while back[-1]["previous"]:
        back.append((await face.client.get(back[-1]["previous"])).plain)
    assert [each["results"] for each in pages] == [each["results"] for each in reversed(back)]


async def test_who_stays_is_walked_once_whoever_comes_and_goes(face):
    await face.define()
    staying = await many(face, 30)
    seen = []
    path = f"{INSTANCES}?page_size=5"
    for turn in range(100):
        page = (await face.client.get(path)).plain
        seen += [each["value"] for each in page["results"]]
        await face.say(1000 + turn, address=f"new {turn}")
        await face.say(500, address=f"moving {turn}")
        if page["next"] is None:
            break
        path = page["next"]
    assert sorted(staying) == sorted(each for each in seen if each in staying)


async def test_one_instance_is_found_by_its_value(face):
    await face.define()
    await many(face, 3)
    answer = await face.client.get(f"{INSTANCES}?value=2%20Main%20St")
    assert (1, ["2 Main St"], None, None) == (
        answer.plain["count"],
        [each["value"] for each in answer.plain["results"]],
        answer.plain["next"],
        answer.plain["previous"],
    )
    for value in ("", "2", "2 main st", "nowhere", "x" * 5000, "%00"):
        none = (await face.client.get(f"{INSTANCES}?value={value}".replace(" ", "+"))).plain
        assert (0, []) == (none["count"], none["results"])


async def test_values_of_any_text_are_instances(face):
    await face.define()
    values = ["a:b", " x ", "ünï 🙂", '"', "null", "0", "\t"]
    await face.send(*(batch(n + 1, address=value) for n, value in enumerate(values)))
    for value in values:
        assert value == (await face.instance(value))["value"]


async def test_environments_have_instances_of_their_own(face):
    await face.define(("age", "sum"))
    await face.say(1, address="here", age=1)
    await face.say(2, address="here", age=2, environment="development")
    [live] = await face.instances()
    [tried] = await face.instances(query="?environment=development")
    assert ("production", "1", [1]) == (
        live["environment"],
        live["attributes"]["age"],
        [each["mpid"] for each in live["members"]],
    )
    assert ("development", "2", [2]) == (
        tried["environment"],
        tried["attributes"]["age"],
        [each["mpid"] for each in tried["members"]],
    )
    await face.client.get(f"{INSTANCES}/{tried['id']}", 404)
    path = f"{INSTANCES}/{tried['id']}?environment=development"
    assert tried == (await face.client.get(path)).plain
    assert tried["members"] == (await face.client.get(tried["members_url"])).plain
    for wrong in ("staging", "", "Production"):
        await face.client.get(f"{INSTANCES}?environment={wrong}", 400)


async def test_an_instance_that_its_last_member_left_is_gone(face):
    await face.define()
    await face.say(1, address="here")
    one = await face.instance("here")
    await face.say(1, "address")
    assert [] == await face.instances()
    await face.client.get(f"{INSTANCES}/{one['id']}", 404)
    await face.client.get(one["members_url"], 404)
    await face.say(1, address="here")
    assert one["id"] == (await face.instance("here"))["id"]


async def test_instances_of_a_definition_that_was_made_anew_are_others(face):
    await face.define()
    await face.say(1, address="here")
    one = await face.instance("here")
    await face.drop()
    await face.client.get(INSTANCES, 404)
    await face.client.get(f"{INSTANCES}/{one['id']}", 404)
    await face.define()
    again = await face.instance("here")
    assert (1, True) == (again["size"], again["id"] != one["id"])
    await face.client.get(f"{INSTANCES}/{one['id']}", 404)


async def test_an_instance_belongs_to_one_definition(face):
    await face.api.store.registry.update_application("demo", definitions_per_workspace=2)
    await face.define()
    await face.define(named="other", source="$city")
    await face.say(1, address="here")
    one = await face.instance("here")
    await face.client.get(f"{GROUPS}/other/instances/{one['id']}", 404)
    assert [] == await face.instances("other")


async def test_an_attribute_that_is_new_is_shown_when_its_job_has_walked(face):
    """Nobody had contributed it yet: it was false, though a member had said otherwise."""
    await face.define()
    await face.say(1, address="here", has_dog=True)
    body = {"attributes": [{"id": "has_dog", "type": "boolean_or"}]}
    await face.client.call("PUT", f"{GROUPS}/household", body, status=200)
    assert {} == (await face.instance("here"))["attributes"]
    await face.run()
    assert {"has_dog": "true"} == (await face.instance("here"))["attributes"]


@pytest.mark.parametrize(
    "iid", ["nobody", "0" * 32, "0" * 31, "0" * 33, "g" * 32, "%00" * 16, "0x" + "0" * 30, " " * 32]
)
async def test_what_is_no_instance_is_404(face, iid):
    await face.define()
    iid = iid.replace(" ", "%20")
    await face.client.get(f"{INSTANCES}/{iid}", 404)
    await face.client.get(f"{INSTANCES}/{iid}/members", 404)


@pytest.mark.parametrize("page_size", ["0", "101", "-1", "x", "1.5"])
async def test_a_page_size_that_cannot_be_is_400(face, page_size):
    await face.define()
    await face.client.get(f"{INSTANCES}?page_size={page_size}", 400)


async def test_a_cursor_is_of_one_list(face):
    await face.api.store.registry.update_application("demo", definitions_per_workspace=2)
    await face.define()
    await face.define(named="other", source="$city")
    await many(face, 2)
    cursor = (await face.client.get(f"{INSTANCES}?page_size=1")).plain["next"].partition("&")[2]
    assert cursor.startswith("cursor=")
    await face.client.get(f"{INSTANCES}?{cursor}")
    for path in (
        f"{GROUPS}/other/instances?{cursor}",
        f"{INSTANCES}?environment=development&{cursor}",
        f"{INSTANCES}?cursor=x",
    ):
        await face.client.get(path, 400)


async def test_a_page_while_everything_ends_is_a_page(face):
    await face.define()
    await many(face, 40)
    pages, _ = await asyncio.gather(
        asyncio.gather(*(face.client.get(f"{INSTANCES}?page_size=100") for _ in range(5))),
        face.send(*(batch(n + 1, "address") for n in range(40))),
    )
    for page in pages:
        assert all(each["size"] == 1 for each in page.plain["results"])
    assert [] == await face.instances()


async def test_only_the_scope_to_read_definitions_shows_instances(api, face):
    await face.define()
    other = await api.client("definitions:write")
    for path in (INSTANCES, f"{INSTANCES}/{'0' * 32}", f"{INSTANCES}/{'0' * 32}/members"):
        assert 403 == (await other.call("GET", path)).status
