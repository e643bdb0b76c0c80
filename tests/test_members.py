"""Members over HTTP: item by item, by id and by custom id, one by one and 10,000 at a time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from service import ids
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


@pytest.mark.parametrize("parameter", ["page=2", "ordering=-created_at", "attributes=a:b"])
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
