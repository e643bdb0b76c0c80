"""Cursors and links: whose list a cursor is of, and where links lead."""

from __future__ import annotations

import base64
from itertools import pairwise
from typing import Any

import pytest

from service.config import Config
from tests.client import DEMO, GROUPS, P1, P2, Api, Client, opened

OF_THIS_LIST = "The cursor is not one of this list"


async def cursors(client: Client, path: str) -> tuple[str, str]:
    """Links of the middle page of three."""
    joint = "&" if "?" in path else "?"
    first = (await client.get(f"{path}{joint}page_size=1")).body
    middle = (await client.get(first.next)).body
    return cursor_of(middle.next), cursor_of(middle.previous)


def cursor_of(link: str) -> str:
    return link.partition("cursor=")[2].partition("&")[0]


async def members(client: Client, group: str, number: int = 3) -> None:
    ids = [f"{n:08x}-0000-4000-8000-000000000000" for n in range(number)]
    await client.post(f"{GROUPS}/{group}/members/", {"profile_ids": ids})


async def test_next_then_previous_gives_the_same_page(admin: Client) -> None:
    group = await admin.group()
    await members(admin, group, 10)

    pages = await admin.walk(f"{GROUPS}/{group}/members/?page_size=3")

    assert [len(page.results) for page in pages] == [3, 3, 3, 1]
    assert {10} == {page.count for page in pages}
    assert pages[0].previous is None
    for earlier, later in pairwise(pages):
        back = (await admin.get(later.previous)).body
        assert (earlier.results, earlier.count) == (back.results, back.count)
        assert later.results == (await admin.get(back.next)).body.results


async def test_a_cursor_of_another_list_is_refused(api: Api, admin: Client) -> None:
    one, other = await admin.group("one"), await admin.group("other")
    third = await admin.group("third", attributes=[{"key": "k", "value": "v"}])
    for group in (one, other, third):
        await members(admin, group)
    three = "&".join(f"profile_id={n:08x}-0000-4000-8000-000000000000" for n in range(3))
    lists = [
        f"{GROUPS}/{one}/members/",
        f"{GROUPS}/{other}/members/",
        f"{GROUPS}/",
        f"{GROUPS}/?ordering=-created_at",
        f"{GROUPS}/?include_inactive=true",
        f"{GROUPS}/?membership_type=static",
        f"{DEMO}/profiles/00000000-0000-4000-8000-000000000000/profile-groups/",
        f"{DEMO}/profiles/00000001-0000-4000-8000-000000000000/profile-groups/",
        f"{DEMO}/profiles/00000000-0000-4000-8000-000000000000/profile-groups/?ordering=-created_at",
        f"{DEMO}/profiles/00000000-0000-4000-8000-000000000000/profile-groups/?membership_type=static",
        f"{DEMO}/profiles/00000000-0000-4000-8000-000000000000/profile-groups/?membership_type=static&include_inactive=true",
        f"{GROUPS}/{one}/members/?include_inactive=true",
        f"{GROUPS}/{one}/members/?{three}",
        f"{GROUPS}/{one}/members/?{three}&profile_id={P1}",
    ]
    found = {path: await cursors(admin, path) for path in lists}
    for path in [*lists, f"{GROUPS}/?name=one", f"{GROUPS}/?attributes=k"]:
        joint = "&" if "?" in path else "?"
        for of, given in found.items():
            for cursor in given:
                answer = await admin.get(
                    f"{path}{joint}cursor={cursor}", 200 if of == path else 400
                )
                assert of == path or OF_THIS_LIST in answer.body["cursor"][0]

    await api.store.registry.create_application("second")
    second = await api.client("admin", applications=("second",))
    cursor = found[f"{GROUPS}/"][0]
    await second.get(f"/api/v1/applications/second/profile-groups/?cursor={cursor}", 400)


async def test_a_forged_cursor_is_refused(admin: Client) -> None:
    group = await admin.group()
    await members(admin, group)
    path = f"{GROUPS}/{group}/members/?cursor="
    cursor = (await cursors(admin, f"{GROUPS}/{group}/members/"))[0]
    raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    for position in range(len(raw)):
        bent = bytearray(raw)
        bent[position] ^= 1
        forged = base64.urlsafe_b64encode(bent).decode()
        answer = await admin.get(path + forged, 400)
        assert OF_THIS_LIST in answer.body["cursor"][0]
    await admin.get(path + cursor[:-4], 400)
    await admin.get(path + cursor, 200)


async def test_links_keep_the_other_parameters_and_the_path_as_it_was(admin: Client) -> None:
    group = await admin.group(custom_id="a/b c")
    await members(admin, group)
    for path in (f"{GROUPS}/a%2Fb%20c/members", f"{GROUPS}/a%2Fb%20c/members/"):
        page = (await admin.get(f"{path}?page_size=1&fields=%20id&&include_inactive=0")).plain
        start = f"http://belong.test:8000{path}?page_size=1&fields=%20id&include_inactive=0&cursor="
        assert page["next"].startswith(start)
        assert (await admin.get(page["next"])).plain["previous"].startswith(start)


async def test_a_page_may_grow_and_shrink_while_it_is_walked(admin: Client) -> None:
    group = await admin.group()
    await members(admin, group, 5)
    first = (await admin.get(f"{GROUPS}/{group}/members/?page_size=2")).body

    rest = (await admin.get(first.next.replace("page_size=2", "page_size=1000"))).body

    assert (len(rest.results), rest.next) == (3, None)


async def test_an_empty_page_has_no_links(admin: Client) -> None:
    group = await admin.group()

    page = (await admin.get(f"{GROUPS}/{group}/members/")).body

    assert (page.count, page.next, page.previous, page.results) == (0, None, None, [])


async def test_an_empty_page_in_the_middle_keeps_its_position(admin: Client) -> None:
    group = await admin.group()
    path = f"{GROUPS}/{group}/members/"
    await admin.post(path, {"profile_ids": [P1, P2]})
    page = (await admin.get(f"{path}?page_size=1")).body
    await admin.delete(path, {"profile_ids": [{P1: P2, P2: P1}[page.results[0].id]]})

    empty = (await admin.get(page.next)).body

    assert (empty.results, empty.count, empty.next) == ([], 1, None)
    assert page.results == (await admin.get(empty.previous)).body.results


@pytest.mark.parametrize(
    ("settings", "headers", "expected"),
    [
        ({}, {}, "http://belong.test:8000"),
        ({}, {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil"}, "http://belong.test:8000"),
        ({"public_url": "https://x.example/belong"}, {}, "https://x.example/belong"),
        (
            {"trusted_proxies": ("127.0.0.0/8",)},
            {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "a.example, b.example"},
            "https://b.example",
        ),
        ({"trusted_proxies": ("*",)}, {"X-Forwarded-Proto": "https"}, "https://belong.test:8000"),
        (
            {"trusted_proxies": ("10.0.0.1",)},
            {"X-Forwarded-Proto": "https"},
            "http://belong.test:8000",
        ),
        ({}, {"Host": "[::1]:81"}, "http://[::1]:81"),
    ],
)
async def test_links_lead_to_the_host_that_the_client_used(
    valkey, settings: dict[str, Any], headers: dict[str, str], expected: str
) -> None:
    async with opened(valkey.url, Config(**settings)) as api:
        await api.admin.group("one")
        await api.admin.group("two")

        page = (await api.admin.get(f"{GROUPS}/?page_size=1", headers=headers)).body
        application = (await api.admin.get(f"{DEMO}/", headers=headers)).body

        assert page.next.startswith(f"{expected}{GROUPS}/?page_size=1&cursor=")
        assert f"{expected}{GROUPS}/" == application.profile_groups_url


@pytest.mark.parametrize("host", ["a b:1", 'x"y:1', "a/b:1", f"{'x' * 300}:1"])
async def test_a_host_header_that_is_no_host_is_refused(admin: Client, host: str) -> None:
    assert "Host" in (await admin.get(f"{DEMO}/", 400, headers={"Host": host})).body.detail
