"""Members over HTTP: item by item, by id and by custom id, one by one and 10,000 at a time."""

from __future__ import annotations

import itertools
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from service import ids
from service.endpoint import ENCODER
from service.members import body_of, rows_of
from service.store_members import member_of
from tests.client import DEMO, GROUPS, P1, P2, Api, Client

P3 = "00000000-0000-4000-8000-000000000003"


def uuids(number: int, start: int = 0) -> list[str]:
    return [ids.text(n.to_bytes(16, "big")) for n in range(start, start + number)]


async def held(client: Client, group: str) -> list[str]:
    """Ids of the members."""
    pages = await client.walk(f"{GROUPS}/{group}/members/?page_size=1000")
    return sorted(member.id for page in pages for member in page.results)


@pytest.fixture
async def group(admin: Client) -> str:
    """An empty group."""
    return await admin.group()


@pytest.fixture
def path(group: str) -> str:
    """Where its members are."""
    return f"{GROUPS}/{group}/members/"


async def test_an_add_says_of_every_id_what_became_of_it(admin: Client, path: str) -> None:
    await admin.post(path, {"profile_ids": [P1]})

    body = (await admin.post(path, {"profile_ids": [P1, P2, "x", "", P3.replace("-", "")]})).plain

    assert {
        "successfully_added": [P2],
        "already_added": [P1],
        "invalid_ids": ["x", "", P3.replace("-", "")],
    } == body


async def test_arrays_hold_what_was_sent_and_each_id_once(admin: Client, path: str) -> None:
    sent = [P2.upper(), P1, P2, "X", P1, "X", P2.upper()]

    body = (await admin.post(path, {"profile_ids": sent})).body

    assert ([P2.upper(), P1], [], ["X"]) == (
        body.successfully_added,
        body.already_added,
        body.invalid_ids,
    )
    again = (await admin.post(path, {"profile_ids": [P1.upper()]})).body
    assert [P1.upper()] == again.already_added


async def test_repeating_an_add_is_safe(admin: Client, group: str, path: str) -> None:
    sent = {"profile_ids": uuids(250)}

    first, second = (await admin.post(path, sent)).body, (await admin.post(path, sent)).body

    assert (len(first.successfully_added), len(first.already_added)) == (250, 0)
    assert (len(second.successfully_added), len(second.already_added)) == (0, 250)
    assert uuids(250) == await held(admin, group)


async def test_members_are_listed_with_the_documented_fields(admin: Client, path: str) -> None:
    await admin.post(path, {"profile_ids": [P1]})
    await admin.post(path, {"custom_ids": ["é😀"]})

    rows = {row["custom_id"]: row for row in (await admin.get(path)).plain["results"]}

    assert list(rows[None]) == ["id", "nickname", "custom_id", "membership_created_at"]
    assert (rows[None]["id"], rows[None]["nickname"]) == (P1, "Profile 174cc6dd")
    assert f"Profile {rows['é😀']['id'][:8]}" == rows["é😀"]["nickname"]
    some = (await admin.get(f"{path}?fields=custom_id,id")).plain["results"]
    assert [{"custom_id", "id"}] * 2 == [set(row) for row in some]


async def test_a_custom_id_is_the_same_profile_everywhere(admin: Client, path: str) -> None:
    body = (await admin.post(path, {"custom_ids": ["a", "b", "a"]})).body
    assert body.successfully_added == ["a", "b"]
    [one, _] = sorted((await admin.get(path)).body.results, key=lambda row: row.custom_id)

    other = await admin.group("other")
    await admin.post(f"{GROUPS}/{other}/members/", {"profile_ids": [one.id]})
    body = (await admin.post(f"{GROUPS}/{other}/members/", {"custom_ids": ["a", "c"]})).body

    assert (body.successfully_added, body.already_added) == (["c"], ["a"])
    groups = (await admin.get(f"{DEMO}/profiles/a/profile-groups/")).body
    assert groups == (await admin.get(f"{DEMO}/profiles/{one.id}/profile-groups/")).body
    assert groups.count == 2


async def test_custom_ids_that_cannot_be_are_invalid_when_added(admin: Client, path: str) -> None:
    sent = ["ok", "", "x" * 255, "x" * 256, "a\0b", ""]

    body = (await admin.post(path, {"custom_ids": sent})).body

    assert body.successfully_added == ["ok", "x" * 255]
    assert body.invalid_ids == ["", "x" * 256, "a\0b"]


async def test_a_registered_application_takes_no_unknown_custom_ids(
    api: Api, admin: Client, path: str
) -> None:
    await admin.post(path, {"custom_ids": ["known"]})
    await api.store.registry.update_application("demo", profiles="registered")

    body = (await admin.post(path, {"custom_ids": ["known", "unknown"]})).body

    assert (body.already_added, body.invalid_ids) == (["known"], ["unknown"])
    assert (await admin.call("GET", f"{path}unknown/")).status == 404


async def test_removal_passes_over_who_is_no_member(admin: Client, group: str, path: str) -> None:
    await admin.post(path, {"profile_ids": [P1, P2]})
    await admin.post(path, {"custom_ids": ["a"]})

    await admin.delete(path, {"profile_ids": [P1.upper(), P3, P1]})
    await admin.delete(path, {"custom_ids": ["a", "never-heard-of"]})
    await admin.delete(path, {"profile_ids": []})

    assert await held(admin, group) == [P2]
    await admin.get(f"{DEMO}/profiles/never-heard-of/profile-groups/", 404)


async def test_a_removal_with_a_malformed_id_removes_nothing(
    admin: Client, group: str, path: str
) -> None:
    await admin.post(path, {"profile_ids": [P1]})

    answer = await admin.delete(path, {"profile_ids": [P1, "x"]}, 400)
    assert answer.body["profile_ids"] == ["'x' is not a UUID - at `$.profile_ids[1]`"]
    answer = await admin.delete(path, {"profile_ids": [*[P1] * 600, "y"]}, 400)
    assert "`$.profile_ids[600]`" in answer.body["profile_ids"][0]
    answer = await admin.delete(path, {"custom_ids": ["a", "x" * 256]}, 400)
    assert "`$.custom_ids[1]`" in answer.body["custom_ids"][0]

    assert await held(admin, group) == [P1]


async def test_ten_thousand_ids_in_one_call(admin: Client, group: str, path: str) -> None:
    sent = uuids(10_000)
    sent[5000] = "malformed"

    body = (await admin.post(path, {"profile_ids": sent})).body

    assert body.invalid_ids == ["malformed"]
    assert [each for each in sent if each != "malformed"] == body.successfully_added
    assert sorted(body.successfully_added) == await held(admin, group)
    await admin.delete(path, {"profile_ids": body.successfully_added})
    assert await held(admin, group) == []


async def test_ten_thousand_custom_ids_in_one_call(admin: Client, path: str) -> None:
    sent = [f"user {number}" for number in range(10_000)]

    body = (await admin.post(path, {"custom_ids": sent})).body

    assert sent == body.successfully_added
    assert (await admin.get(path)).body.count == 10_000
    await admin.delete(path, {"custom_ids": sent})
    assert (await admin.get(path)).body.count == 0


async def test_a_profile_over_its_limit_is_invalid_and_told_why(api: Api, admin: Client) -> None:
    await api.store.registry.update_application("demo", groups_per_profile=2)
    for number in range(2):
        await admin.post(
            f"{GROUPS}/{await admin.group(f'{number}')}/members/", {"profile_ids": [P1]}
        )

    body = (
        await admin.post(
            f"{GROUPS}/{await admin.group('third')}/members/", {"profile_ids": ["x", P1, P2]}
        )
    ).plain

    assert (body["successfully_added"], body["invalid_ids"]) == ([P2], ["x", P1])
    detail = "The profile is in 2 groups, as many as it may."
    assert [{"id": P1, "detail": detail}] == body["errors"]


async def test_one_membership_is_read_and_ended(admin: Client, path: str) -> None:
    await admin.post(path, {"profile_ids": [P1]})
    await admin.post(path, {"custom_ids": ["a/b"]})
    rows = {row.id: row for row in (await admin.get(path)).body.results}
    [other] = set(rows) - {P1}

    assert rows[P1] == (await admin.get(f"{path}{P1.upper()}/")).body
    assert rows[other] == (await admin.get(f"{path}a%2Fb")).body
    await admin.get(f"{path}{P2}/", 404)
    await admin.get(f"{path}never-heard-of/", 404)
    for pid in (P1, P1, P2, "a%2Fb", "never-heard-of"):
        await admin.delete(f"{path}{pid}/")
    assert (await admin.get(path)).body.count == 0


async def test_who_is_being_erased_is_503_for_who_names_it_alone(
    api: Api, admin: Client, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await admin.post(path, {"profile_ids": [P1, P2]})
    [application] = await api.store.registry.list_applications()
    environment = application.production
    with monkeypatch.context() as patched:
        patched.setattr(api.store.profiles, "_erase", nothing)
        await api.store.profiles.erase_profile(environment, ids.parse(P1) or b"")

    for method, where, body in (
        ("POST", path, {"profile_ids": [P1, P3]}),
        ("DELETE", path, {"profile_ids": [P1]}),
        ("GET", f"{path}{P1}/", None),
        ("DELETE", f"{path}{P1}/", None),
        ("GET", f"{DEMO}/profiles/{P1}/profile-groups/", None),
    ):
        answer = await admin.call(method, where, body, status=503)
        assert (answer.headers["retry-after"], answer.body.error_code) == ("1", "unavailable")
    pairs = [{"profile_id": P1, "group_id": path.split("/")[-3]}]
    await admin.post(f"{DEMO}/memberships/check/", {"pairs": pairs}, 503)
    await admin.post(path, {"profile_ids": [P2]})
    assert P3 in [row.id for row in (await admin.get(path)).body.results]

    await api.store.profiles.finish_erasures(environment)
    assert P1 not in [row.id for row in (await admin.get(path)).body.results]
    await admin.post(path, {"profile_ids": [P1]})


async def nothing(*_: object) -> None:
    """Stand for the steps of an erase that has only begun."""


async def test_walking_under_changes_gives_who_stays_exactly_once(admin: Client, path: str) -> None:
    staying, going = uuids(700), uuids(700, 10_000)
    await admin.post(path, {"profile_ids": staying + going})
    seen: list[str] = []
    page = (await admin.get(f"{path}?page_size=50")).body
    while True:
        seen += [row.id for row in page.results]
        if page.next is None:
            break
        await admin.delete(path, {"profile_ids": going[:40]})
        await admin.post(path, {"profile_ids": uuids(60, 50_000 + len(seen))})
        going = going[40:]
        page = (await admin.get(page.next)).body

    assert sorted(staying) == sorted(set(staying) & set(seen))
    assert len(set(seen)) == len(seen)


def test_the_struct_of_an_add_leaves_out_errors_where_there_are_none() -> None:
    from service.members import AddedMembers

    encoded = msgspec.json.encode(AddedMembers([], [], []))

    assert encoded == b'{"successfully_added":[],"already_added":[],"invalid_ids":[]}'


async def test_a_registered_application_takes_no_profile_ids_without_a_record(
    api: Api, admin: Client
) -> None:
    members = f"{GROUPS}/{await admin.group()}/members/"
    await admin.post(members, {"custom_ids": ["known"]})
    known = (await admin.get(members)).body.results[0].id
    other = f"{GROUPS}/{await admin.group()}/members/"
    await api.store.registry.update_application("demo", profiles="registered")
    answer = await admin.post(other, {"profile_ids": [P1, known]})
    assert (answer.body.successfully_added, answer.body.invalid_ids) == ([known], [P1])


async def test_adding_custom_ids_to_an_inactive_group_makes_no_profiles(
    api: Api, admin: Client
) -> None:
    group = await admin.group()
    await admin.patch(f"{GROUPS}/{group}/", {"is_active": False})
    await admin.post(f"{GROUPS}/{group}/members/", {"custom_ids": ["nobody"]}, 404)
    application = await api.store.registry.application("demo")
    assert application is not None
    env = application.production
    [found] = await api.store.profiles.resolve_identities(
        env, "customer_id", ["nobody"], create=False
    )
    assert found is None


async def test_a_custom_id_whose_profile_is_erased_meanwhile_is_somebody_new(
    api: Api, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The custom id was resolved, its profile was erased, and the erased id was added: the answer
    # said so, and the custom id was nobody.
    group = await admin.group()
    members = f"{GROUPS}/{group}/members/"
    await admin.post(members, {"custom_ids": ["carol"]})
    old = (await admin.get(members)).body.results[0].id
    application = await api.store.registry.application("demo")
    assert application is not None
    add = api.store.members.add_members

    async def late(env: Any, number: int, packed: bytes, **options: Any) -> bytes:
        monkeypatch.undo()
        await api.store.profiles.erase_profile(application.production, packed)
        return await add(env, number, packed, **options)

    monkeypatch.setattr(api.store.members, "add_members", late)
    answer = await admin.post(members, {"custom_ids": ["carol"]})
    assert answer.body.successfully_added == ["carol"]
    [row] = (await admin.get(members)).body.results
    assert (row.custom_id, row.id == old) == ("carol", False)


@pytest.mark.parametrize(
    "parameter",
    ["page=2", "ordering=-created_at", "attributes=a:b", "name=a", "membership_type=static"],
)
async def test_parameters_that_this_list_has_not_are_refused(admin: Client, parameter: str) -> None:
    # Ignored, `page=2` gave the first page again and again.
    path = f"{GROUPS}/{await admin.group()}/members/?{parameter}"
    name = parameter.partition("=")[0]
    assert list((await admin.get(path, 400)).plain) == [name]


async def test_a_field_of_a_nested_object_is_named_by_where_it_is(admin: Client) -> None:
    answer = await admin.post(f"{GROUPS}/", {"name": "a", "attributes": [{"value": "1"}]}, 400)
    assert answer.plain == {
        "attributes": ["Object missing required field `key` - at `$.attributes[0]`"]
    }


async def replaced(client: Client, path: str, body: object) -> Any:
    """What the answer to a replacement says."""
    return (await client.call("PUT", path, body, status=200)).body


async def test_a_replacement_says_who_was_added_and_removed(
    admin: Client, group: str, path: str
) -> None:
    await admin.post(path, {"profile_ids": [P1, P2]})

    sent = [P2.upper(), P3.upper(), "x", P3, "x"]
    answer = await admin.call("PUT", path, {"profile_ids": sent}, status=200)

    assert answer.plain == {
        "added": [P3.upper()],
        "removed": [P1],
        "unchanged": 1,
        "invalid_ids": ["x"],
    }
    assert await held(admin, group) == [P3, P2]


async def test_repeating_a_replacement_changes_nothing(
    admin: Client, group: str, path: str
) -> None:
    for body in ({"profile_ids": uuids(250)}, {"custom_ids": ["a", "b"]}):
        await replaced(admin, path, body)
        before = await held(admin, group)
        times = (await admin.get(f"{path}?page_size=1000")).body.results

        again = await replaced(admin, path, body)

        assert (again.added, again.removed, again.unchanged) == ([], [], len(before))
        assert times == (await admin.get(f"{path}?page_size=1000")).body.results


async def test_an_empty_list_empties_the_group(admin: Client, group: str, path: str) -> None:
    await admin.post(path, {"profile_ids": uuids(120)})

    body = await replaced(admin, path, {"custom_ids": []})

    assert (sorted(body.removed), body.unchanged) == (uuids(120), 0)
    assert await held(admin, group) == []
    assert (await replaced(admin, path, {"profile_ids": []})).removed == []


async def test_members_are_replaced_by_custom_id_and_removed_ones_are_named_by_id(
    admin: Client, path: str
) -> None:
    await admin.post(path, {"custom_ids": ["a", "b"]})
    rows = {row.custom_id: row.id for row in (await admin.get(path)).body.results}

    body = await replaced(admin, path, {"custom_ids": ["b", "c", "", "x" * 256]})

    assert (body.added, body.removed, body.unchanged) == (["c"], [rows["a"]], 1)
    assert body.invalid_ids == ["", "x" * 256]
    assert {row.custom_id for row in (await admin.get(path)).body.results} == {"b", "c"}


async def test_who_cannot_be_added_does_not_stop_the_others(api: Api, admin: Client) -> None:
    await api.store.registry.update_application("demo", groups_per_profile=1)
    full = await admin.group("full")
    await admin.post(f"{GROUPS}/{full}/members/", {"profile_ids": [P1]})
    path = f"{GROUPS}/{await admin.group('other')}/members/"
    await admin.post(path, {"profile_ids": [P3]})

    body = (await admin.call("PUT", path, {"profile_ids": [P1, P2]}, status=200)).plain

    assert (body["added"], body["removed"], body["invalid_ids"]) == ([P2], [P3], [P1])
    assert body["errors"] == [
        {"id": P1, "detail": "The profile is in 1 groups, as many as it may."}
    ]


async def test_a_registered_application_replaces_by_known_profiles_alone(
    api: Api, admin: Client, path: str
) -> None:
    await admin.post(path, {"custom_ids": ["known"]})
    [known] = (await admin.get(path)).body.results
    await admin.post(path, {"profile_ids": [P1]})
    await api.store.registry.update_application("demo", profiles="registered")

    body = await replaced(admin, path, {"custom_ids": ["known", "unknown"]})
    assert (body.removed, body.unchanged, body.invalid_ids) == ([P1], 1, ["unknown"])
    body = await replaced(admin, path, {"profile_ids": [known.id, P1]})
    assert (body.added, body.unchanged, body.invalid_ids) == ([], 1, [P1])


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"profile_ids": [], "custom_ids": []},
        {"profile_ids": None},
        {"profile_ids": [1]},
        {"profile_id": P1},
        {"profile_ids": [P1], "more": 1},
        [],
        "",
        "[object Object]",
    ],
)
async def test_a_body_that_is_no_list_of_members_removes_nobody(
    admin: Client, group: str, path: str, body: object
) -> None:
    await admin.post(path, {"profile_ids": [P1]})

    await admin.call("PUT", path, body, status=400)

    assert await held(admin, group) == [P1]


async def test_ten_thousand_members_are_replaced_and_not_one_more(
    admin: Client, group: str, path: str
) -> None:
    first, second = uuids(10_000), uuids(10_000, 5_000)
    await replaced(admin, path, {"profile_ids": first})

    body = await replaced(admin, path, {"profile_ids": second})
    assert (body.added, sorted(body.removed)) == (uuids(5_000, 10_000), uuids(5_000))
    assert body.unchanged == 5_000

    answer = await admin.call("PUT", path, {"profile_ids": [*second, P1]}, status=409)
    assert "memberships/bulk/" in answer.body.detail
    await admin.post(path, {"profile_ids": [P1]})
    for body in ({"profile_ids": []}, {"custom_ids": ["nobody"]}):
        answer = await admin.call("PUT", path, body, status=409)
        assert answer.body.detail.startswith("The group has 10,001 members.")
        assert "memberships/bulk/" in answer.body.detail
    assert sorted([*second, P1]) == await held(admin, group)
    assert [] == (await admin.get(f"{path}?custom_id=nobody")).body.results


async def test_a_refused_replacement_makes_no_profiles(api: Api, admin: Client) -> None:
    group = await admin.group()
    path = f"{GROUPS}/{group}/members/"
    await admin.post(path, {"profile_ids": uuids(10_000)})
    await admin.post(path, {"profile_ids": [P1]})
    away = await admin.group(is_active=False)

    await admin.call("PUT", path, {"custom_ids": ["nobody"]}, status=409)
    await admin.call("PUT", f"{GROUPS}/{away}/members/", {"custom_ids": ["nobody"]}, status=404)
    await admin.call("PUT", f"{GROUPS}/{P2}/members/", {"custom_ids": ["nobody"]}, status=404)

    application = await api.store.registry.application("demo")
    assert application is not None
    assert [None] == await api.store.profiles.resolve_identities(
        application.production, "customer_id", ["nobody"], create=False
    )


@pytest.mark.parametrize("body", [{"profile_ids": ["x", ""]}, {"custom_ids": ["", "a\0b"]}])
async def test_a_replacement_by_malformed_ids_alone_does_not_empty_the_group(
    admin: Client, body: dict[str, list[str]]
) -> None:
    group = await admin.group()
    path = f"{GROUPS}/{group}/members/"
    await admin.post(path, {"profile_ids": [P1]})

    refused = await admin.call("PUT", path, body, status=400)

    assert "only an empty list empties the group" in next(iter(refused.plain.values()))[0]
    assert await held(admin, group) == [P1]


@pytest.mark.parametrize("custom_id", [P1, "mpid:7", "custom_id:x", "a/b"])
async def test_a_custom_id_of_any_form_is_reached_by_its_prefix(
    admin: Client, custom_id: str
) -> None:
    """A service's own user ids are often UUIDs: as custom ids they could be in no path."""
    group = await admin.group(custom_id=custom_id)
    other = await admin.group(custom_id="other")
    one = f"{GROUPS}/custom_id:{quote(custom_id, safe='')}/"
    who = f"custom_id:{quote(custom_id, safe='')}"
    await admin.post(f"{one}members/", {"custom_ids": [custom_id]})

    assert group == (await admin.get(one)).body.id
    assert custom_id == (await admin.get(f"{one}members/{who}/")).body.custom_id
    groups = (await admin.get(f"{DEMO}/profiles/{who}/profile-groups/")).body
    assert [group] == [row.group_id for row in groups.results]
    pair = {"custom_id": custom_id, "group_id": f"custom_id:{custom_id}"}
    checked = await admin.post(f"{DEMO}/memberships/check/", {"pairs": [pair]})
    assert [True] == checked.body.results
    await admin.delete(f"{one}members/{who}/")
    assert 0 == (await admin.get(one)).body.profile_count
    await admin.get(f"{GROUPS}/{other}/members/{who}/", 404)
    created = await admin.post(f"{GROUPS}/custom_id:{P2}/", {"name": "By prefix"}, 201)
    assert (P2, True) == (created.body.custom_id, created.body.id != P2)


async def test_members_of_an_inactive_group_are_not_replaced(admin: Client) -> None:
    group = await admin.group()
    path = f"{GROUPS}/{group}/members/"
    await admin.post(path, {"profile_ids": [P1]})
    await admin.patch(f"{GROUPS}/{group}/", {"is_active": False})

    bodies: list[object] = [{"profile_ids": []}, {"profile_ids": [P2]}, {"custom_ids": []}]
    for body in bodies:
        await admin.call("PUT", path, body, status=404)
        # Not passed over: somebody might count on it.
        await admin.call("PUT", f"{path}?include_inactive=true", body, status=400)

    await admin.patch(f"{GROUPS}/{group}/?include_inactive=true", {"is_active": True})
    assert await held(admin, group) == [P1]


async def test_a_replacement_that_meets_a_deactivation_says_what_it_had_done(
    api: Api, admin: Client, path: str, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await admin.post(path, {"profile_ids": uuids(3)})
    remove = api.store.members.remove_members

    async def late(*arguments: Any) -> bytes:
        monkeypatch.undo()
        await admin.patch(f"{GROUPS}/{group}/", {"is_active": False})
        return await remove(*arguments)

    monkeypatch.setattr(api.store.members, "remove_members", late)
    answer = await admin.call("PUT", path, {"profile_ids": [P1, P2]}, status=404)

    assert answer.body.detail == "Not found. Before that 2 ids were added; repeating is safe."
    await admin.patch(f"{GROUPS}/{group}/?include_inactive=true", {"is_active": True})
    assert sorted([*uuids(3), P1, P2]) == await held(admin, group)
    body = await replaced(admin, path, {"profile_ids": [P1, P2]})
    assert (body.unchanged, sorted(body.removed)) == (2, uuids(3))


async def test_who_is_being_erased_is_503_for_a_replacement_that_names_it(
    api: Api, admin: Client, group: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await admin.post(path, {"profile_ids": [P1, P2]})
    [application] = await api.store.registry.list_applications()
    with monkeypatch.context() as patched:
        patched.setattr(api.store.profiles, "_erase", nothing)
        await api.store.profiles.erase_profile(application.production, ids.parse(P1) or b"")

    answer = await admin.call("PUT", path, {"profile_ids": [P1, P3]}, status=503)
    assert P1 in answer.body.detail
    assert (await admin.get(f"{path}{P3}/")).body.id == P3
    await admin.get(f"{path}{P2}/", 404)
    body = await replaced(admin, path, {"profile_ids": [P2]})
    assert (body.added, body.removed) == ([P2], [P3])
    for named in (f"?profile_id={P2}&profile_id={P1}", f"?profile_id={P1}"):
        await admin.get(f"{path}{named}", 503)

    await api.store.profiles.finish_erasures(application.production)
    assert await held(admin, group) == [P2]
    assert (await replaced(admin, path, {"profile_ids": [P1]})).added == [P1]


async def test_a_custom_id_whose_profile_is_erased_during_a_replacement_is_somebody_new(
    api: Api, admin: Client, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = f"{GROUPS}/{await admin.group('other')}/members/"
    await admin.post(other, {"custom_ids": ["carol"]})
    [old] = (await admin.get(other)).body.results
    [application] = await api.store.registry.list_applications()
    replace = api.store.members.replace_members

    async def late(*arguments: Any, **options: Any) -> tuple[bytes, bytes]:
        monkeypatch.undo()
        await api.store.profiles.erase_profile(application.production, ids.parse(old.id) or b"")
        return await replace(*arguments, **options)

    monkeypatch.setattr(api.store.members, "replace_members", late)
    body = await replaced(admin, path, {"custom_ids": ["carol", "dave"]})

    assert sorted(body.added) == ["carol", "dave"]
    rows = {row.custom_id: row.id for row in (await admin.get(path)).body.results}
    assert (set(rows), rows["carol"] == old.id) == ({"carol", "dave"}, False)


async def test_replacing_needs_the_scope_to_write(api: Api, path: str) -> None:
    reader = await api.client("members:read", "groups:write")

    await reader.call("PUT", path, {"profile_ids": []}, status=403)


async def test_the_list_is_narrowed_to_profiles_by_id(admin: Client, path: str) -> None:
    await admin.post(path, {"profile_ids": uuids(40)})
    everybody = [row.id for page in await admin.walk(path) for row in page.results]
    named = [*uuids(3, 5), P1, uuids(1, 5)[0].upper(), *uuids(4, 36)]
    query = "&".join(f"profile_id={each}" for each in named)

    body = (await admin.get(f"{path}?{query}")).body

    expected = [each for each in everybody if each in set(named)]
    assert (body.count, body.next, body.previous) == (7, None, None)
    assert [row.id for row in body.results] == expected
    pages = await admin.walk(f"{path}?{query}&page_size=3")
    assert [row.id for page in pages for row in page.results] == expected
    assert {page.count for page in pages} == {7}
    assert (await admin.get(pages[1].previous)).body.results == pages[0].results
    rows = (await admin.get(f"{path}?{query}&fields=id")).plain["results"]
    assert rows == [{"id": each} for each in expected]


async def test_the_list_is_narrowed_to_profiles_by_custom_id(admin: Client, path: str) -> None:
    await admin.post(path, {"custom_ids": ["a", "b&c", "é", "d"]})

    body = (await admin.get(f"{path}?custom_id=b%26c&custom_id=%C3%A9&custom_id=nobody")).body
    assert (body.count, {row.custom_id for row in body.results}) == (2, {"b&c", "é"})
    for query in ("custom_id=nobody", "custom_id=", f"profile_id={P1}"):
        body = (await admin.get(f"{path}?{query}")).body
        assert (body.count, body.results, body.next, body.previous) == (0, [], None, None)
    for gid in (P2, "no-such-group"):
        for query in (f"profile_id={P1}", "custom_id=a", "custom_id=nobody"):
            await admin.get(f"{GROUPS}/{gid}/members/?{query}", 404)


async def test_profiles_that_the_list_cannot_be_narrowed_to_are_refused(
    admin: Client, path: str
) -> None:
    for query, field in (
        ("profile_id=x", "profile_id"),
        ("profile_id=", "profile_id"),
        (f"profile_id={P1}&profile_id=%00", "profile_id"),
        (f"profile_id={P1}&custom_id=a", "custom_id"),
        ("&".join(f"profile_id={each}" for each in uuids(101)), "profile_id"),
        ("&".join(["custom_id=a"] * 101), "custom_id"),
        ("profile_id=%ff", None),
    ):
        answer = await admin.get(f"{path}?{query}", 400)
        assert field is None or list(answer.plain) == [field]
    await admin.get(f"{path}?{'&'.join(f'profile_id={each}' for each in uuids(100))}")


async def test_an_admin_sees_members_of_an_inactive_group(
    api: Api, admin: Client, path: str, group: str
) -> None:
    await admin.post(path, {"profile_ids": uuids(5)})
    before = (await admin.get(path)).body
    await admin.patch(f"{GROUPS}/{group}/", {"is_active": False})
    reader = await api.client("members:read")

    for query in ("", "&page_size=2", f"&profile_id={uuids(1)[0]}&profile_id={P1}"):
        await admin.get(f"{path}?{query}", 404)
        await reader.get(f"{path}?include_inactive=true{query}", 403)
    pages = await admin.walk(f"{path}?include_inactive=true&page_size=2")
    assert [row for page in pages for row in page.results] == before.results
    assert (await admin.get(pages[1].previous)).body.results == pages[0].results
    narrowed = f"{path}?include_inactive=true&profile_id={before.results[2].id}&profile_id={P1}"
    assert (await admin.get(narrowed)).body.results == [before.results[2]]
    one = f"{path}{before.results[0].id}/"
    assert (await admin.get(f"{one}?include_inactive=true")).body == before.results[0]
    await admin.get(one, 404)
    await admin.get(f"{path}{P1}/?include_inactive=true", 404)
    await reader.get(f"{one}?include_inactive=true", 403)
    await admin.delete(f"{GROUPS}/{group}/?include_inactive=true")
    await admin.get(f"{path}?include_inactive=true", 404)
    await admin.get(f"{path}?include_inactive=true&custom_id=nobody", 404)
    await admin.get(f"{one}?include_inactive=true", 404)


@pytest.mark.parametrize("named", [0, 1])
def test_rows_of_members_are_what_structs_would_be(named: int) -> None:
    packed = [ids.new() for _ in range(50)]
    joined = [b"0", b"7", b"1000000", b"1745842609670053", b"1745842609000000"] * 10
    texts: list[bytes | None] = [None, b"", b"Jane", b'"\\\n', "Zo\u00eb \u2028".encode()]
    # Each with each, twice.
    names = [text for pair in itertools.product(texts, texts) for text in pair] * 2 * named
    nicknames, custom_ids = (names[at::2] or [None] * 50 for at in (0, 1))
    told = zip(packed, joined, nicknames, custom_ids, strict=True)

    rows = rows_of(b"".join(packed), joined, names)

    wanted = [body_of(member_of(*each)) for each in told]
    assert rows == b"".join(b"," + ENCODER.encode(each) for each in wanted)
    assert rows_of(b"", [], []) == b""
