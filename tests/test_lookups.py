"""Lookups: which groups a profile is in, and whether it is in one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from service import ids, lookups
from service.groups import Group
from service.lookups import MembershipBody
from service.store_members import ProfileGroup
from tests.client import DEMO, GROUPS, P1, P2, Api, Client

if TYPE_CHECKING:
    from collections.abc import Sequence

CHECK = f"{DEMO}/memberships/check/"


async def joined(client: Client, profiles: Sequence[str], *names: str) -> list[str]:
    """Create groups with these members, and give their ids."""
    made = [await client.group(name, custom_id=f"c {name}") for name in names]
    for group in made:
        await client.post(f"{GROUPS}/{group}/members/", {"profile_ids": list(profiles)})
    return made


async def test_groups_of_a_profile_have_the_documented_fields(admin: Client) -> None:
    [group] = await joined(admin, [P1, P2], 'na"me')
    created_at = (await admin.get(f"{GROUPS}/{group}/")).body.created_at

    for _ in range(2):
        page = (await admin.get(f"{DEMO}/profiles/{P1.upper()}/profile-groups/")).plain
        assert {name: page[name] for name in ("count", "next", "previous")} == {
            "count": 1,
            "next": None,
            "previous": None,
        }
        assert [
            {
                "group_id": group,
                "group_name": 'na"me',
                "profile_count": 2,
                "is_active": True,
                "created_at": created_at,
                "custom_id": 'c na"me',
            }
        ] == page["results"]


async def test_a_change_of_the_group_shows_at_once(admin: Client) -> None:
    [group] = await joined(admin, [P1], "old")
    path = f"{DEMO}/profiles/{P1}/profile-groups/"
    await admin.get(path)

    await admin.patch(f"{GROUPS}/{group}/", {"name": "new", "custom_id": None})

    [row] = (await admin.get(path)).body.results
    assert (row.group_name, row.custom_id) == ("new", None)


async def test_who_is_in_no_group_has_an_empty_page(admin: Client) -> None:
    page = (await admin.get(f"{DEMO}/profiles/{P1}/profile-groups/")).body

    assert (page.count, page.results) == (0, [])
    await admin.get(f"{DEMO}/profiles/never-heard-of/profile-groups/", 404)


async def test_many_groups_are_walked_both_ways_in_the_order_of_creation(admin: Client) -> None:
    groups = await joined(admin, [P1], *map(str, range(11)))
    path = f"{DEMO}/profiles/{P1}/profile-groups/?page_size=3"

    pages = await admin.walk(path)

    assert groups == [row.group_id for page in pages for row in page.results]
    assert {11} == {page.count for page in pages}
    back = (await admin.get(pages[2].previous)).body
    assert pages[1].results == back.results


async def test_only_the_fields_asked_for_are_given(admin: Client) -> None:
    [group] = await joined(admin, [P1], "n")
    path = f"{DEMO}/profiles/{P1}/profile-groups/?fields="

    assert [{"group_id": group}] == (await admin.get(f"{path}group_id")).plain["results"]
    assert (await admin.get(f"{path}profile_count")).plain["results"] == [{"profile_count": 1}]


async def test_a_filter_that_this_version_lacks_is_refused_and_not_passed_over(
    admin: Client,
) -> None:
    answer = await admin.get(f"{DEMO}/profiles/{P1}/profile-groups/?attributes=k:v", 400)

    assert "attributes" in answer.body


def a_group(name: str, custom_id: str | None = None) -> Group:
    return Group(
        id=P1,
        name=name,
        is_active=True,
        description=None,
        custom_id=custom_id,
        created_at_us=1_745_842_609_670_053,
        attributes=(),
        membership_type="static",
        number=1,
        version=len(name),
    )


@pytest.mark.parametrize("name", ["n", '"profile_count":0', '\\"profile_count":0,', "é😀\u2028"])
def test_a_spliced_row_is_what_the_struct_would_be(name: str) -> None:
    group = a_group(name, name)
    for count in (0, 7, 10**12):
        row = ProfileGroup(group, 1, count)
        assert lookups._body(group, count) == msgspec.json.decode(
            lookups._spliced(1, [row])[0], type=MembershipBody
        )


def test_the_memory_of_spliced_rows_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "_SPLICED", 5)
    for number in range(20):
        lookups._spliced(1, [ProfileGroup(a_group("n" * number), 1, 0)])

    assert len(lookups._spliced_parts) <= 5


def test_a_spliced_row_is_never_one_of_another_application() -> None:
    """Two had a group of the same id and version, and one was shown the name of the other's."""
    mine, theirs = (ProfileGroup(a_group(name), 1, 0) for name in ("mine", "them"))
    assert (mine.group.id, mine.group.version) == (theirs.group.id, theirs.group.version)

    for _ in range(2):
        assert b'"group_name":"mine"' in lookups._spliced(1, [mine])[0]
        assert b'"group_name":"them"' in lookups._spliced(2, [theirs])[0]


async def checked(client: Client, *pairs: dict[str, Any]) -> list[bool | None]:
    results: list[bool | None] = (await client.post(CHECK, {"pairs": pairs})).body.results
    return results


async def test_a_check_answers_true_false_or_null_in_the_order_asked(admin: Client) -> None:
    [one, other] = await joined(admin, [P1], "one", "other")
    await admin.post(f"{GROUPS}/{one}/members/", {"custom_ids": ["a"]})
    pairs: dict[bool | None, list[dict[str, str]]] = {
        True: [
            {"profile_id": P1, "group_id": one},
            {"profile_id": P1.upper(), "group_id": one.upper()},
            {"profile_id": P1, "group_id": "c other"},
            {"custom_id": "a", "group_id": one},
            {"custom_id": "a", "group_id": "c one"},
        ],
        False: [
            {"profile_id": P2, "group_id": one},
            {"custom_id": "a", "group_id": other},
            {"custom_id": "never-heard-of", "group_id": one},
        ],
        None: [
            {"profile_id": P1, "group_id": P2},
            {"profile_id": P1, "group_id": "no-such-group"},
            {"custom_id": "never-heard-of", "group_id": ""},
        ],
    }
    for expected, each in pairs.items():
        for pair in each:
            assert (pair, [expected]) == (pair, await checked(admin, pair))
    every = [(pair, expected) for expected, each in pairs.items() for pair in each]
    every = every[::2] + every[1::2]
    assert [expected for _, expected in every] == await checked(admin, *(p for p, _ in every))
    assert await checked(admin) == []


async def test_ten_thousand_pairs_in_one_call(admin: Client) -> None:
    groups = await joined(admin, [P1], *map(str, range(40)))
    away = groups[7]
    await admin.patch(f"{GROUPS}/{away}/", {"is_active": False})
    pairs = [
        {"profile_id": (P1, P2)[number % 3 == 0], "group_id": groups[number % 40]}
        for number in range(10_000)
    ]

    assert [
        None if pair["group_id"] == away else pair["profile_id"] == P1 for pair in pairs
    ] == await checked(admin, *pairs)


async def test_ten_thousand_unknown_groups_are_null(admin: Client) -> None:
    pairs = [{"profile_id": P1, "group_id": f"g{number}"} for number in range(10_000)]

    assert await checked(admin, *pairs) == [None] * 10_000


async def test_forward_and_reverse_answers_agree(admin: Client) -> None:
    groups = await joined(admin, [], *map(str, range(6)))
    profiles = [f"{n:08x}-0000-4000-8000-000000000000" for n in range(12)]
    expected = {
        (p, g) for i, p in enumerate(profiles) for j, g in enumerate(groups) if i % (j + 1) == 0
    }
    for group in groups:
        sent = [profile for profile in profiles if (profile, group) in expected]
        await admin.post(f"{GROUPS}/{group}/members/", {"profile_ids": sent})

    forward, reverse = set(), set()
    for group in groups:
        page = (await admin.get(f"{GROUPS}/{group}/members/?page_size=100")).body
        forward |= {(row.id, group) for row in page.results}
    for profile in profiles:
        page = (await admin.get(f"{DEMO}/profiles/{profile}/profile-groups/?page_size=100")).body
        reverse |= {(profile, row.group_id) for row in page.results}
    pairs = [{"profile_id": p, "group_id": g} for p in profiles for g in groups]
    answers = await checked(admin, *pairs)
    said = {
        (pair["profile_id"], pair["group_id"])
        for pair, answer in zip(pairs, answers, strict=True)
        if answer
    }

    assert expected == forward == reverse == said


async def test_a_warm_lookup_is_one_command(api: Api, admin: Client) -> None:
    [group] = await joined(admin, [P1], "n")
    pair = {"pairs": [{"profile_id": P1, "group_id": group}]}
    groups_of = f"{DEMO}/profiles/{P1}/profile-groups/"
    await admin.post(CHECK, pair)
    await admin.get(groups_of)
    # NOTE: copies are confirmed once a second in the background; one of those may fall in between.
    for method, path, body in (("POST", CHECK, pair), ("GET", groups_of, None)):
        spent = []
        for _ in range(5):
            before = api.store.connection.stats.commands
            await admin.call(method, path, body, status=200)
            spent.append(api.store.connection.stats.commands - before)
        assert min(spent) == 1
        assert sorted(spent)[2] == 1


async def test_a_group_made_anew_under_its_id_is_the_one_that_is_asked(
    api: Api, admin: Client
) -> None:
    # A process that had not heard of the deletion asked under the old number: no such group.
    application = await api.store.registry.application("demo")
    assert application is not None
    env = application.production
    group = await admin.group()
    old = await api.store.groups.number_of(env, group)
    await admin.delete(f"{GROUPS}/{group}/")
    await admin.post(f"{GROUPS}/{group}/", {"name": "again"}, 201)
    await admin.post(f"{GROUPS}/{group}/members/", {"profile_ids": [P1]})

    def unheard() -> None:
        api.store.cache.directory(env.directory).keep_number(ids.parse(group) or b"", old)

    pair = {"profile_id": P1, "group_id": group}
    for asked in ([pair], [pair, pair]):
        unheard()
        answer = await admin.post(f"{DEMO}/memberships/check/", {"pairs": asked})
        assert answer.body.results == [True] * len(asked)
    unheard()
    assert (await admin.get(f"{GROUPS}/{group}/members/")).body.count == 1
    unheard()
    assert (await admin.get(f"{GROUPS}/{group}/members/{P1}/")).body.id == P1
    unheard()
    answer = await admin.post(f"{GROUPS}/{group}/members/", {"profile_ids": [P2]})
    assert answer.body.successfully_added == [P2]
    unheard()
    await admin.delete(f"{GROUPS}/{group}/members/", {"profile_ids": [P2]})
