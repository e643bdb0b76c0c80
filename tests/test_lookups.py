"""Lookups: which groups a profile is in, and whether it is in one."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from service import ids, lookups, nearcache
from service.groups import Group
from service.lookups import MembershipBody
from service.nearcache import Directory
from service.store_lookups import ProfileGroup
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


def pairs_of(**attributes: str) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in attributes.items()]


async def names_of(client: Client, path: str) -> list[str]:
    """Names of the groups on a page, whose count has to be theirs."""
    page = (await client.get(path)).body
    assert page.count == len(page.results)
    return [row.group_name for row in page.results]


@pytest.fixture
async def of_p1(admin: Client) -> str:
    """The path of the groups of a profile that is in five, of which three are red."""
    colours = {"a": "red", "b": "blue", "c": "red", "d": "red", "e": "a:b c"}
    for name, colour in colours.items():
        attributes = pairs_of(colour=colour, **({"size": "1"} if name in "bc" else {}))
        group = await admin.group(name, custom_id=f"c {name}", attributes=attributes)
        await admin.post(f"{GROUPS}/{group}/members/", {"profile_ids": [P1, P2]})
    other = await admin.group("other", custom_id="other", attributes=pairs_of(colour="red"))
    await admin.post(f"{GROUPS}/{other}/members/", {"profile_ids": [P2]})
    return f"{DEMO}/profiles/{P1}/profile-groups/"


FILTERS = {
    "": "abcde",
    "attributes=colour:red": "acd",
    "attributes=colour:red&attributes=size:1": "c",
    "attributes=size": "bc",
    "attributes=colour:red&attributes=colour:blue": "",
    "attributes=colour:a%3Ab%20c": "e",
    "attributes=colour:a:b+c": "e",
    "attributes=colour%3Aa:b%20c": "",
    "attributes=": "",
    "attributes=%00:": "",
    "name=b": "b",
    "name=b&attributes=size": "b",
    "name=other": "",
    "custom_id=c%20d": "d",
    "custom_id=c%20d&attributes=size": "",
    "custom_id=other": "",
    "custom_id=": "",
    "membership_type=static": "abcde",
    "membership_type=dynamic": "",
    "ordering=-created_at": "edcba",
    "ordering=created_at&attributes=colour:red": "acd",
    "ordering=-created_at&attributes=colour:red": "dca",
    "page=1": "abcde",
}


@pytest.mark.parametrize("query", FILTERS)
async def test_groups_of_a_profile_are_filtered_as_groups_are(
    admin: Client, of_p1: str, query: str
) -> None:
    assert list(FILTERS[query]) == await names_of(admin, f"{of_p1}?{query}")
    everything = [
        row.name
        for row in (await admin.get(f"{GROUPS}/?{query}&page_size=100")).body.results
        if row.name != "other"
    ]
    assert list(FILTERS[query]) == everything


@pytest.mark.parametrize("query", [q for q, found in FILTERS.items() if len(found) > 2])
async def test_filtered_groups_are_walked_both_ways(admin: Client, of_p1: str, query: str) -> None:
    query = query.replace("page=1", "")
    expected = list(FILTERS.get(query, "abcde"))
    pages = await admin.walk(f"{of_p1}?{query}&page_size=2")

    assert expected == [row.group_name for page in pages for row in page.results]
    assert {len(expected)} == {page.count for page in pages}
    assert (pages[0].previous, pages[-1].next) == (None, None)
    for earlier, later in pairwise(pages):
        assert (await admin.get(later.previous)).body.results == earlier.results
    numbered = [
        (await admin.get(f"{of_p1}?{query}&page_size=2&page={number}")).body
        for number in range(1, len(pages) + 1)
    ]
    assert [page.results for page in numbered] == [page.results for page in pages]
    assert (await admin.get(numbered[1].previous)).body.results == pages[0].results
    for number in (len(pages) + 1, 1_000_000):
        await admin.get(f"{of_p1}?{query}&page_size=2&page={number}", 404)


async def test_a_first_page_may_be_empty_and_no_other(admin: Client) -> None:
    path = f"{DEMO}/profiles/{P1}/profile-groups/"
    for query in ("", "attributes=a:b&"):
        assert await names_of(admin, f"{path}?{query}page=1") == []
        await admin.get(f"{path}?{query}page=2", 404)


@pytest.mark.parametrize(
    "query",
    [
        "page=0",
        "page=-1",
        "page=x",
        "page=1000001",
        "page=2&page=3",
        "ordering=name",
        "membership_type=none",
        "include_inactive=perhaps",
        "name=a&name=b",
        "custom_id=%ff",
        "attributes=%ff",
        "attributes=%ff:a",
        "&".join(["attributes=a"] * 101),
        "page_size=1001",
        "fields=attributes",
    ],
)
async def test_filters_that_make_no_sense_are_refused(admin: Client, query: str) -> None:
    await admin.get(f"{DEMO}/profiles/{P1}/profile-groups/?{query}", 400)


async def test_a_numbered_page_has_no_cursor(admin: Client, of_p1: str) -> None:
    cursor = (await admin.get(f"{of_p1}?page_size=1")).body.next.partition("cursor=")[2]
    assert list((await admin.get(f"{of_p1}?page=2&cursor={cursor}", 400)).plain) == ["page"]


async def test_a_hundred_filters_are_all_looked_at(admin: Client, of_p1: str) -> None:
    attributes = [{"key": f"k{n}", "value": str(n)} for n in range(100)]
    group = await admin.group("hundred", attributes=attributes)
    await admin.post(f"{GROUPS}/{group}/members/", {"profile_ids": [P1]})
    query = "&".join(f"attributes=k{n}:{n}" for n in range(99))

    for inactive in ("", "&include_inactive=true"):
        assert ["hundred"] == await names_of(admin, f"{of_p1}?{query}&attributes=k99:99{inactive}")
        assert [] == await names_of(admin, f"{of_p1}?{query}&attributes=k99:98{inactive}")


async def test_a_change_of_attributes_shows_in_the_filter_at_once(
    admin: Client, of_p1: str
) -> None:
    red = f"{of_p1}?attributes=colour:red"
    assert list("acd") == await names_of(admin, red)

    await admin.patch(f"{GROUPS}/c%20c/", {"attributes": pairs_of(colour="blue")})
    assert list("ad") == await names_of(admin, red)
    await admin.patch(f"{GROUPS}/c%20b/", {"attributes": pairs_of(colour="red")})
    assert list("abd") == await names_of(admin, red)
    await admin.delete(f"{GROUPS}/c%20d/members/", {"profile_ids": [P1]})
    assert list("ab") == await names_of(admin, red)
    await admin.delete(f"{GROUPS}/c%20a/")
    assert ["b"] == await names_of(admin, red)


async def test_an_admin_sees_the_inactive_groups_of_a_profile(
    api: Api, admin: Client, of_p1: str
) -> None:
    for gid in ("c%20c", "c%20e"):
        await admin.patch(f"{GROUPS}/{gid}/", {"is_active": False})

    for query, active, every in (
        ("", "abd", "abcde"),
        ("attributes=colour:red&", "ad", "acd"),
        ("attributes=size&ordering=-created_at&", "b", "cb"),
        ("custom_id=c%20c&", "", "c"),
        ("name=e&membership_type=static&", "", "e"),
    ):
        assert list(active) == await names_of(admin, f"{of_p1}?{query}")
        assert list(every) == await names_of(admin, f"{of_p1}?{query}include_inactive=true")
        pages = await admin.walk(f"{of_p1}?{query}include_inactive=true&page_size=1")
        assert list(every) == [row.group_name for page in pages for row in page.results]
    rows = (await admin.get(f"{of_p1}?include_inactive=true")).body.results
    assert [row.is_active for row in rows] == [True, True, False, True, False]
    assert {2} == {row.profile_count for row in rows}
    reader = await api.client("members:read", "groups:read")
    await reader.get(f"{of_p1}?include_inactive=true", 403)
    await reader.get(f"{of_p1}?include_inactive=false")


async def test_a_filtered_list_gives_only_the_fields_asked_for(admin: Client, of_p1: str) -> None:
    path = f"{of_p1}?attributes=colour:red&fields="
    rows = (await admin.get(f"{path}profile_count,group_name")).plain["results"]
    assert rows == [{"profile_count": 2, "group_name": name} for name in "acd"]
    assert (await admin.get(f"{path}group_name")).plain["results"][0] == {"group_name": "a"}


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
            lookups._spliced(Directory(b"{7}"), [row])[0][1:], type=MembershipBody
        )


def test_a_row_is_kept_for_as_long_as_its_group_is_known() -> None:
    directory = Directory(b"{7}")
    old, new, unknown = (a_group(name) for name in ("old", "new", "unknown"))

    directory.keep_group(old)
    kept = lookups.around_count(directory, old)
    assert b'"group_name":"old"' in kept[0]
    assert lookups.around_count(directory, old) is kept
    assert b'"group_name":"unknown"' in lookups.around_count(directory, unknown)[0]
    directory.keep_group(new)
    assert b'"group_name":"new"' in lookups.around_count(directory, new)[0]
    directory.forget(new.number)
    assert {} == directory.rows
    directory.keep_group(new)
    lookups.around_count(directory, new)
    directory.forget_all()
    assert {} == directory.rows


def test_the_memory_of_rows_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearcache, "GROUPS", 5)
    directory = Directory(b"{7}")
    for number in range(20):
        group = msgspec.structs.replace(a_group("n"), number=number)
        directory.keep_group(group)
        lookups.around_count(directory, group)

    assert [15, 16, 17, 18, 19] == list(directory.rows)


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


# --- with the token of the profile itself


async def born(api: Api, **fields: str) -> tuple[Client, str]:
    """Make a profile: its own client, and its id."""
    made = (await api.admin.post(f"{DEMO}/profile/", fields, 201)).body
    return api.admin.using(made.access_token), made.id


async def test_a_profile_lists_its_own_groups_and_no_others(api: Api, admin: Client) -> None:
    own, profile_id = await born(api, custom_id="me")
    other, other_id = await born(api, custom_id="you")
    await joined(admin, [profile_id, other_id], *"abc")
    mine = f"{DEMO}/profiles/{profile_id}/profile-groups/"

    for name in (profile_id, profile_id.upper(), "me"):
        path = f"{DEMO}/profiles/{name}/profile-groups/"
        assert list("abc") == await names_of(own, path)
        assert ["b"] == await names_of(own, f"{path}?name=b")
        assert list("cba") == await names_of(own, f"{path}?ordering=-created_at")
    pages = await own.walk(f"{mine}?page_size=2")
    assert list("abc") == [row.group_name for page in pages for row in page.results]
    for name in (other_id, "you", P1, "nobody"):
        answer = await own.get(f"{DEMO}/profiles/{name}/profile-groups/", 403)
        assert "profile" in answer.body.detail
    await other.get(mine, 403)
    await own.get(f"{mine}?include_inactive=true", 403)
    pair = {"profile_id": profile_id, "group_id": P2}
    await own.post(CHECK, {"pairs": [pair]}, 403)


async def test_the_token_of_an_erased_profile_lists_no_groups(api: Api, admin: Client) -> None:
    own, profile_id = await born(api)
    [group] = await joined(admin, [profile_id], "a")
    path = f"{DEMO}/profiles/{profile_id}/profile-groups/"
    assert ["a"] == await names_of(own, path)
    await admin.call("DELETE", f"/api/v1/profiles/{profile_id}/", status=200)

    await own.get(path, 401)
    await admin.post(f"{GROUPS}/{group}/members/", {"profile_ids": [profile_id]})
    assert ["a"] == await names_of(admin, path)
    await own.get(path, 401)
    application = await api.store.registry.application("demo")
    assert application is not None
    id16 = ids.parse(profile_id) or b""
    await api.store.profiles.add_identity(application.production, id16, "email", "new")
    assert "erased" in (await own.get(path, 401)).body.detail
    assert "erased" in (await own.get(f"{path}?name=a", 401)).body.detail


async def test_an_own_list_takes_no_longer_than_any(api: Api, admin: Client) -> None:
    own, profile_id = await born(api)
    await joined(admin, [profile_id], "a")
    path = f"{DEMO}/profiles/{profile_id}/profile-groups/"
    await own.get(path)
    spent = []
    for _ in range(5):
        before = api.store.connection.stats.batches
        await own.get(path)
        spent.append(api.store.connection.stats.batches - before)
    assert min(spent) == 1
