"""Bulk over HTTP: lines, windows, what is told of them; and what happens in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import http.client
import json
import logging
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import api_process, auth, bulk, bulk_lines, ids, keys, scripts
from service.bulk import BulkDone, BulkFailure, BulkResult
from service.bulk_lines import LONGEST_LINE, Cutter, Window
from service.groups import NewGroup
from service.store import Store
from service.verify import verify
from tests import backings
from tests.client import DEMO, GROUPS, P1, P2, Api, Client, opened
from tests.conftest import start
from tests.listening import listening
from tests.serving import ROOT, Serving, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

BULK = f"{DEMO}/memberships/bulk/"
P3 = "00000000-0000-4000-8000-000000000003"


def line(op: str, group: str, profile: str | None = None, **more: Any) -> bytes:
    names = {} if profile is None else {"profile_id": profile}
    return msgspec.json.encode({"op": op, "group_id": group, **names, **more})


def body(lines: Iterable[bytes]) -> bytes:
    return b"".join(each + b"\n" for each in lines)


def read(content: bytes) -> tuple[list[BulkFailure], BulkDone]:
    """The failed lines and the last line of an answer."""
    *failures, last = content.splitlines()
    decode = msgspec.json.Decoder(BulkFailure).decode
    return [decode(each) for each in failures], msgspec.json.decode(last, type=BulkDone)


def read_all(content: bytes) -> tuple[list[BulkResult], BulkDone]:
    """The results and the last line of an answer with all results."""
    *results, last = content.splitlines()
    decode = msgspec.json.Decoder(BulkResult).decode
    return [decode(each) for each in results], msgspec.json.decode(last, type=BulkDone)


async def send(by: Client, lines: Iterable[bytes] | bytes) -> tuple[list[BulkFailure], BulkDone]:
    sent = lines if isinstance(lines, bytes) else body(lines)
    answer = await by.call("POST", BULK, sent, status=200)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.content.endswith(b"\n")
    return read(answer.content)


async def held(by: Client, group: str) -> set[str]:
    """Ids of the members."""
    pages = await by.walk(f"{GROUPS}/{group}/members/?page_size=1000")
    return {member.id for page in pages for member in page.results}


async def test_lines_are_done_and_counted(admin: Client) -> None:
    one, other = await admin.group("one"), await admin.group("other", custom_id="o/1")
    await admin.post(f"{GROUPS}/{one}/members/", {"profile_ids": [P1]})

    failures, done = await send(
        admin,
        [
            line("add", one, P1),
            line("add", one, P2.upper()),
            line("add", "o/1", P1),
            line("add", other, custom_id="alice"),
            line("remove", one, P1),
            line("remove", one, P3),
            line("remove", one, custom_id="nobody"),
        ],
    )

    assert [] == failures
    assert BulkDone(lines=7, added=3, already_added=1, removed=1, not_member=2, failed=0) == done
    assert {P2} == await held(admin, one)
    members = (await admin.get(f"{GROUPS}/{other}/members/")).body.results
    assert {P1, "alice"} == {row.custom_id or row.id for row in members}
    await admin.get(f"{DEMO}/profiles/nobody/profile-groups/", 404)


BAD: list[tuple[bytes, str]] = [
    (b"x", "The line is not JSON: invalid character (byte 0)."),
    (b'{"op":"add"', "The line is not JSON"),
    (b"\xef\xbb\xbf{}", "The line is not JSON"),
    (b'{"op":"add","group_id":"\xff"}', "The line is not valid UTF-8."),
    (b"[]", "Expected `object`, got `array`"),
    (b"null", "Expected `object`, got `null`"),
    (b"{}", "missing required field `op`"),
    (b'{"op":"add"}', "missing required field `group_id`"),
    (b'{"op":"Add","group_id":"g","profile_id":"p"}', "Invalid enum value 'Add' - at `$.op`"),
    (b'{"op":1,"group_id":"g"}', "`$.op`"),
    (b'{"op":"add","group_id":null,"profile_id":"p"}', "`$.group_id`"),
    (b'{"op":"add","group_id":"g"}', "give either `profile_id` or `custom_id`"),
    (b'{"op":"add","group_id":"g","profile_id":"p","custom_id":"c"}', "not both and not neither"),
    (b'{"op":"add","group_id":"g","profile_id":null}', "`$.profile_id`"),
    (b'{"op":"add","group_id":"g","profile_id":"17"}', "'17' is not a UUID - at `$.profile_id`"),
    (b'{"op":"add","group_id":"g","custom_id":""}', "`custom_id` must have 1 to 255"),
    (b'{"op":"add","group_id":"g","custom_id":"' + b"c" * 256 + b'"}', "1 to 255 characters"),
    (b'{"op":"add","group_id":"g","custom_id":"a\\u0000"}', "no NUL"),
    (b'{"op":"add","group_id":"g","custom_ids":["c"]}', "use `custom_id`, one a line"),
    (b'{"op":"add","group_id":"g","profile_ids":["c"]}', "use `profile_id`, one a line"),
    (b'{"op":"add","group_id":"g","colour":"red","profile_id":"p"}', "unknown field `colour`"),
    (b'{"op":"add","group_id":"g","' + b"c" * 500 + b'":1}', "very long name"),
    (b'{"op":"add","group_id":"' + b"g" * 256 + b'","custom_id":"c"}', "Not found."),
    (b'{"op":"add","group_id":"","custom_id":"c"}', "Not found."),
    (b'{"op":"add","group_id":"unknown","custom_id":"c"}', "Not found."),
    (b'{"op":"remove","group_id":"unknown","custom_id":"c"}', "Not found."),
    (b'{"op":"add","group_id":"%b","custom_id":"c"}' % P3.encode(), "Not found."),
    (b'{"op":"' + b"x" * 40_000 + b'"}', "`$.op`"),
    (b"[" * 40_000, "Expected `object`, got `array`"),
    (b'{"op":' + b"[" * 40_000, "`$.op`"),
    (b'{"op":"add","group_id":"g"}{"op":"add","group_id":"g"}', "trailing characters"),
    (b" " * (LONGEST_LINE + 1), "The line has more than 65,536 bytes."),
]


@pytest.mark.parametrize(("bad", "expected"), BAD)
async def test_a_bad_line_is_told_and_the_others_are_done(
    admin: Client, bad: bytes, expected: str
) -> None:
    group = await admin.group()

    failures, done = await send(admin, [line("add", group, P1), bad, line("add", group, P2)])

    [failure] = failures
    assert (2, "invalid") == (failure.line, failure.status)
    assert expected in failure.detail
    assert len(failure.detail) <= 400
    assert (3, 2, 1) == (done.lines, done.added, done.failed)
    assert {P1, P2} == await held(admin, group)
    await admin.get(f"{DEMO}/profiles/c/profile-groups/", 404)


async def test_many_bad_lines_among_good_ones(admin: Client) -> None:
    group = await admin.group()
    good = line("add", group, P1)

    sent = [each for bad, _ in BAD for each in (bad, good)]
    failures, done = await send(admin, sent)

    assert [1 + 2 * place for place in range(len(BAD))] == [each.line for each in failures]
    assert all(expected in each.detail for (_, expected), each in zip(BAD, failures, strict=True))
    assert (1, len(BAD) - 1, len(BAD)) == (done.added, done.already_added, done.failed)


async def test_blank_lines_count_and_any_end_of_line_will_do(admin: Client) -> None:
    group = await admin.group()

    failures, done = await send(
        admin,
        b"\n" + line("add", group, P1) + b"\r\n\r\n  \nx\n \t " + line("add", group, P2),
    )

    assert [5] == [failure.line for failure in failures]
    assert (6, 2, 1) == (done.lines, done.added, done.failed)


@pytest.mark.parametrize("nothing", [b"", b"\n", b"\r\n\n\n"])
async def test_no_lines_are_done_at_once(admin: Client, nothing: bytes) -> None:
    assert ([], BulkDone(lines=nothing.count(b"\n"))) == await send(admin, nothing)


async def test_a_line_may_have_64_kib_and_what_ends_it(admin: Client) -> None:
    group = await admin.group()
    longest = line("add", group, P1).ljust(LONGEST_LINE)

    failures, done = await send(
        admin, longest + b"\n" + longest + b"\r\n" + longest + b" \n" + longest
    )

    assert [(3, "The line has more than 65,536 bytes.")] == [(f.line, f.detail) for f in failures]
    assert (4, 1, 2) == (done.lines, done.added, done.already_added)


async def test_the_first_thousand_failures_are_told_and_all_are_counted(admin: Client) -> None:
    group = await admin.group()
    sent = [b"x" if number % 3 else line("add", group, P1) for number in range(1, 4501)]

    failures, done = await send(admin, sent)

    assert [n for n in range(1, 4501) if n % 3][:1000] == [failure.line for failure in failures]
    assert (4500, 3000, 1, 1499) == (done.lines, done.failed, done.added, done.already_added)


PARTS = [b"\n", b"\r\n", b"a", b"a" * 9, b"a" * 10, b"a" * 11]


@given(st.lists(st.sampled_from(PARTS)), st.lists(st.integers(0, 40)))
def test_a_body_is_cut_into_its_lines_however_it_comes(parts: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(parts)
    cutter = Cutter()
    found: list[bytes | None] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk_lines, "LONGEST_LINE", 20)
        rest = whole
        for each in cuts:
            found += cutter.cut(rest[:each])
            rest = rest[each:]
        found += cutter.cut(rest)
        found += cutter.end()

    lines = whole.split(b"\n")
    expected = lines[:-1] + [each for each in lines[-1:] if each]
    assert [None if len(e.removesuffix(b"\r")) > 20 else e for e in expected] == found


def test_a_line_that_never_ends_is_not_kept() -> None:
    cutter = Cutter()

    for _ in range(100):
        assert [] == list(cutter.cut(b"x" * 10_000))
        assert len(cutter._rest) <= LONGEST_LINE + 1
    assert [None, b"y"] == list(cutter.cut(b"x\ny\n"))


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of a few lines, so that many borders are crossed."""
    monkeypatch.setattr(bulk, "WINDOW", 7)


class Doing:
    """The same lines as a client would do them one by one, over dicts."""

    def __init__(self, groups: dict[str, str], profiles: dict[str, str]) -> None:
        self.groups = groups
        self.profiles = profiles
        self.members: set[tuple[str, str]] = set()

    def do(self, op: str, group: str, profile: str) -> str:
        place = (self.groups[group], self.profiles.get(profile, profile))
        if op == "add":
            word = "already_added" if place in self.members else "added"
            self.members.add(place)
        else:
            word = "removed" if place in self.members else "not_member"
            self.members.discard(place)
        return word


@pytest.mark.parametrize("window", [3, 50, 10_000])
@pytest.mark.parametrize("place", ["embedded", "cluster"])
async def test_random_lines_end_as_one_after_another_do(
    servers: dict[str, Any], monkeypatch: pytest.MonkeyPatch, place: str, window: int
) -> None:
    backing = start(servers, place)
    monkeypatch.setattr(bulk, "WINDOW", window)
    store = await Store.open(backing.url)
    await store.registry.create_application("demo", partitions=8)
    await store.close()
    draw = random.Random(window)
    async with opened(backing.url) as api:
        by = api.admin
        made = [await by.group(f"{n}", custom_id=f"g{n}") for n in range(3)]
        groups = {name: each for n, each in enumerate(made) for name in (each, f"g{n}")}
        await by.post(f"{GROUPS}/{made[0]}/members/", {"custom_ids": [f"p{n}" for n in range(4)]})
        rows = (await by.get(f"{GROUPS}/{made[0]}/members/")).body.results
        profiles = {name: row.id for row in rows for name in (row.id, row.custom_id)}
        model = Doing(groups, profiles)
        model.members |= {(made[0], row.id) for row in rows}
        names = [*profiles, *(f"new{n}" for n in range(4)), P1, P2]
        for query in ("", "?results=all"):
            lines, expected = [], []
            for number in range(1, 3001):
                op, group = draw.choice(["add", "remove"]), draw.choice([*groups])
                name = draw.choice(names)
                field = "custom_id" if ids.parse(name) is None else "profile_id"
                lines.append(line(op, group, **{field: name}))
                expected.append((number, model.do(op, group, name)))
            answer = await by.call("POST", BULK + query, body(lines), status=200)
            counts = Counter(word for _, word in expected)
            if query:
                results, done = read_all(answer.content)
                assert expected == [(each.line, each.status) for each in results]
            else:
                failures, done = read(answer.content)
                assert [] == failures
            assert msgspec.convert({"lines": 3000, **counts}, BulkDone) == done
        for group in made:
            of_group = {profile for of, profile in model.members if of == group}
            rows = (await by.get(f"{GROUPS}/{group}/members/")).body.results
            known = {row.custom_id for row in rows} | {row.id for row in rows}
            assert len(of_group) == len(rows)
            assert of_group <= known
        assert [] == (await verify(api.store)).problems


async def test_the_names_of_one_profile_keep_their_order(admin: Client) -> None:
    group = await admin.group()
    await admin.post(f"{GROUPS}/{group}/members/", {"custom_ids": ["a"]})
    [row] = (await admin.get(f"{GROUPS}/{group}/members/")).body.results

    for last in ("remove", "add"):
        first = "add" if last == "remove" else "remove"
        sent = [
            each
            for _ in range(50)
            for each in (line(first, group, row.id), line(last, group, custom_id="a"))
        ]
        _, done = await send(admin, sent)
        assert done.failed == 0
        assert await held(admin, group) == (set() if last == "remove" else {row.id})


async def test_two_at_once_on_the_same_profiles_add_each_once(
    api: Api, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "WINDOW", 100)
    groups = [await admin.group(f"{n}") for n in range(3)]
    sent = [line("add", group, custom_id=f"c{n}") for n in range(400) for group in groups]
    shuffled = random.Random(1).sample(sent, len(sent))

    found = await asyncio.gather(send(admin, sent), send(admin, shuffled), send(admin, sent[::-1]))

    assert ([], [], []) == tuple(failures for failures, _ in found)
    assert 1200 == sum(done.added for _, done in found)
    assert 2400 == sum(done.already_added for _, done in found)
    assert [400] * 3 == [len(await held(admin, group)) for group in groups]


async def test_adds_and_removals_at_once_leave_a_store_that_is_right(
    api: Api, admin: Client, small_windows: None
) -> None:
    group = await admin.group()
    draw = random.Random(5)
    many = [
        [
            line(draw.choice(["add", "remove"]), group, custom_id=f"c{draw.randrange(8)}")
            for _ in range(700)
        ]
        for _ in range(3)
    ]

    found = await asyncio.gather(*(send(admin, lines) for lines in many))

    joined = sum(done.added - done.removed for _, done in found)
    assert joined == len(await held(admin, group))
    assert {(700, 0)} == {(done.lines, done.failed) for _, done in found}


async def test_all_results_come_in_the_order_of_lines(admin: Client) -> None:
    group = await admin.group()

    answer = await admin.call(
        "POST",
        f"{BULK}?results=all",
        body([line("add", group, P1), b"x", b"", line("remove", group, P1), line("add", "g", P2)]),
        status=200,
    )

    results, done = read_all(answer.content)
    assert [
        (1, "added", msgspec.UNSET),
        (2, "invalid", "The line is not JSON: invalid character (byte 0)."),
        (4, "removed", msgspec.UNSET),
        (5, "invalid", "Not found."),
    ] == [(each.line, each.status, each.detail) for each in results]
    assert BulkDone(lines=5, added=1, removed=1, failed=2) == done


@pytest.mark.parametrize("query", ["results=some", "results=", "results=all&results=all"])
async def test_another_value_of_results_is_refused(admin: Client, query: str) -> None:
    answer = await admin.call("POST", f"{BULK}?{query}", b"", status=400)
    assert ["results"] == list(answer.body)


async def test_a_compressed_body_is_refused(admin: Client) -> None:
    for query in ("", "?results=all"):
        await admin.call(
            "POST", BULK + query, b"x\n", status=415, headers={"Content-Encoding": "gzip"}
        )


async def test_a_token_that_may_not_write_members_is_refused(api: Api) -> None:
    by = await api.client("members:read", "groups:write")
    await by.call("POST", BULK, b"x\n", status=403)
    await by.using(None).call("POST", f"{BULK}?results=all", b"x\n", status=401)


@pytest.mark.parametrize("query", ["", "?results=all"])
async def test_a_token_that_ends_in_the_middle_ends_the_request(
    api: Api, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    """Lines were done for as long as the body went on, though the credential was deactivated."""
    monkeypatch.setattr(bulk, "WINDOW", 2)
    monkeypatch.setattr(auth, "RECHECK_SECONDS", 0.0)
    group = await api.admin.group()
    registry = api.store.registry
    credential, _ = await registry.create_credential(["demo"], ["members:write"])
    token = await auth.mint(
        registry,
        applications=["demo"],
        scopes=["members:write"],
        subject="bulk",
        credential=credential.id,
    )
    execute = bulk.Work._execute

    async def deactivate_after(work: bulk.Work, window: Window) -> None:
        await execute(work, window)
        await registry.deactivate_credential(credential.id)

    monkeypatch.setattr(bulk.Work, "_execute", deactivate_after)
    lines = [line("add", group, ids.text(ids.new())) for _ in range(10)]
    answer = await api.admin.using(token).call("POST", BULK + query, body(lines))

    assert 2 == (await api.admin.get(f"{GROUPS}/{group}/")).body.profile_count
    if query:
        assert b'"done"' not in answer.content
    else:
        assert 401 == answer.status
        assert "the first 2 are done" in answer.plain["detail"]


async def test_a_registered_application_takes_no_unknown_profiles(api: Api, admin: Client) -> None:
    group = await admin.group()
    await admin.post(f"{GROUPS}/{group}/members/", {"custom_ids": ["known"]})
    [row] = (await admin.get(f"{GROUPS}/{group}/members/")).body.results
    await admin.delete(f"{GROUPS}/{group}/members/", {"custom_ids": ["known"]})
    await api.store.registry.update_application("demo", profiles="registered")

    failures, done = await send(
        admin,
        [
            line("add", group, custom_id="known"),
            line("add", group, custom_id="unknown"),
            line("add", group, P1),
            line("remove", group, custom_id="unknown"),
            line("remove", group, P1),
            line("remove", group, row.id),
            line("add", group, row.id),
        ],
    )

    assert [2, 3] == [failure.line for failure in failures]
    assert {"invalid"} == {failure.status for failure in failures}
    assert all("is not known" in failure.detail for failure in failures)
    assert BulkDone(lines=7, added=2, removed=1, not_member=2, failed=2) == done
    assert {row.id} == await held(admin, group)
    await admin.get(f"{DEMO}/profiles/unknown/profile-groups/", 404)


async def test_nobody_is_made_for_a_group_that_is_not_there(admin: Client) -> None:
    inactive, deleted = await admin.group("i"), await admin.group("d")
    for group in (inactive, deleted):
        await send(admin, [line("add", group, P1)])
    await admin.patch(f"{GROUPS}/{inactive}/", {"is_active": False})
    await admin.delete(f"{GROUPS}/{deleted}/")

    sent = [
        line(op, group, custom_id=f"c{n}")
        for n in range(3)
        for op in ("add", "remove")
        for group in (inactive, deleted, "never")
    ]
    failures, done = await send(admin, [*sent, line("add", inactive, P2)])

    assert done.failed + done.not_member == done.lines == 19
    assert {"Not found."} == {failure.detail for failure in failures}
    assert {1, 2, 3} <= {failure.line for failure in failures}
    for n in range(3):
        await admin.get(f"{DEMO}/profiles/c{n}/profile-groups/", 404)


async def test_a_group_that_another_process_made_anew_is_found(
    api: Api, admin: Client, valkey: backings.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = await admin.group("old")
    await send(admin, [line("add", group, P1)])
    # What this process remembers of the group stays, as it does before it hears of the change.
    monkeypatch.setattr(api.store.cache, "_heard", lambda _: None)
    other = await Store.open(valkey.url)
    application = await other.registry.application("demo")
    assert application is not None
    env = application.production
    old = await other.groups.get_group(env, group)
    known = api.store.cache.directory(env.directory)
    await other.groups.delete_group(env, group)
    made = await other.groups.create_group(env, NewGroup(id=group, name="new"))
    known.keep_number(ids.parse(group) or b"", old.number)

    failures, done = await send(
        admin, [line("add", group, P2), line("remove", group, P1), line("add", group, P3)]
    )

    assert ([], 2, 1) == (failures, done.added, done.not_member)
    assert [2] == await other.members.count_members(env, [made.number])
    await other.close()


async def test_a_profile_over_its_limit_is_told_why(api: Api, admin: Client) -> None:
    await api.store.registry.update_application("demo", groups_per_profile=2)
    groups = [await admin.group(f"{n}") for n in range(3)]
    await send(admin, [line("add", group, P1) for group in groups[:2]])

    failures, done = await send(
        admin,
        [line("add", groups[2], each) for each in (P2, P1, P1)] + [line("add", groups[0], P1)],
    )

    detail = "The profile is in 2 groups, as many as it may."
    assert [BulkFailure(line, "invalid", detail) for line in (2, 3)] == failures
    assert (1, 1, 2) == (done.added, done.already_added, done.failed)


async def test_a_profile_being_erased_is_told_to_be(api: Api, admin: Client) -> None:
    group = await admin.group()
    await send(admin, [line("add", group, P1), line("add", group, P2)])
    env = await production(api)
    mixed = env.mixer.mix(ids.parse(P1) or b"")
    tag = env.home(mixed)
    await api.store.connection.call(
        scripts.load("begin_erase"),
        [keys.key(tag, "erasing"), keys.of_profile(tag, "profile", mixed), keys.none(tag)],
        [mixed, 1],
    )

    failures, done = await send(
        admin, [line("add", group, P1), line("remove", group, P2), line("remove", group, P1)]
    )

    detail = "The profile is being erased: try again."
    assert [BulkFailure(each, "unavailable", detail) for each in (1, 3)] == failures
    assert (1, 2) == (done.removed, done.failed)
    await api.store.profiles.finish_erasures(env)
    _, done = await send(admin, [line("add", group, P1)])
    assert 1 == done.added


async def production(api: Api) -> Any:
    application = await api.store.registry.application("demo")
    assert application is not None
    return application.production


async def test_who_is_erased_behind_a_custom_id_is_made_anew_and_the_order_stays(
    api: Api, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = await admin.group("1"), await admin.group("2")
    await send(admin, [line("add", one, custom_id="a"), line("add", one, custom_id="b")])
    env = await production(api)
    change, times = api.store.bulk.change_members, 0

    async def erasing(*arguments: Any, **named: Any) -> None:
        nonlocal times
        times += 1
        if times == 1:
            [found] = await api.store.profiles.resolve_identities(
                env, "customer_id", ["a"], create=False
            )
            assert found is not None
            await api.store.profiles.erase_profile(env, found)
        await change(*arguments, **named)

    monkeypatch.setattr(api.store.bulk, "change_members", erasing)
    failures, done = await send(
        admin,
        [
            line("add", other, custom_id="a"),
            line("add", other, custom_id="b"),
            line("remove", other, custom_id="a"),
            line("add", one, custom_id="a"),
        ],
    )

    assert ([], 2) == (failures, times)
    assert BulkDone(lines=4, added=3, removed=1) == done
    names = [
        {row.custom_id for row in (await admin.get(f"{GROUPS}/{each}/members/")).body.results}
        for each in (one, other)
    ]
    assert [{"a", "b"}, {"b"}] == names


async def test_a_profile_that_is_erased_all_the_time_is_told_to_be_sent_again(
    api: Api, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = await admin.group()
    env = await production(api)
    change = api.store.bulk.change_members

    async def erasing(*arguments: Any, **named: Any) -> None:
        [found] = await api.store.profiles.resolve_identities(
            env, "customer_id", ["a"], create=False
        )
        await api.store.profiles.erase_profile(env, found or b"")
        await change(*arguments, **named)

    monkeypatch.setattr(api.store.bulk, "change_members", erasing)
    failures, done = await send(admin, [line("add", group, custom_id="a"), line("add", group, P1)])

    assert [(1, "unavailable")] == [(failure.line, failure.status) for failure in failures]
    assert (1, 1) == (done.added, done.failed)


class Gone(Exception):
    """The client closes the connection."""


async def stream(
    api: Api, pieces: AsyncIterator[bytes], query: bytes = b"", **how: Any
) -> tuple[int, bytes]:
    """Call the application as a server does that reads the body bit by bit; give what it sends."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        try:
            return {"type": "http.request", "body": await anext(pieces), "more_body": True}
        except StopAsyncIteration:
            return {"type": "http.request", "body": b"", "more_body": False}
        except Gone:
            return {"type": "http.disconnect"}

    async def take(event: dict[str, Any]) -> None:
        sent.append(event)
        if "on_part" in how and event.get("body"):
            how["on_part"](event["body"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": BULK,
        "raw_path": BULK.encode(),
        "query_string": query,
        "root_path": "",
        "headers": [
            (b"host", b"belong.test"),
            (b"authorization", f"Bearer {api.admin.token}".encode()),
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    app: Callable[..., Any] = api.conductor.app
    await app(scope, receive, take)
    return sent[0]["status"], b"".join(event.get("body", b"") for event in sent[1:])


async def test_a_byte_at_a_time_is_the_same(api: Api, admin: Client) -> None:
    group = await admin.group()
    whole = body([line("add", group, P1), b"x", line("remove", group, P1)])

    async def bytewise() -> AsyncIterator[bytes]:
        for place in range(len(whole)):
            yield whole[place : place + 1]

    status, content = await stream(api, bytewise())

    assert 200 == status
    assert BulkDone(lines=3, added=1, removed=1, failed=1) == read(content)[1]


async def test_what_waits_is_done_though_more_may_come(
    api: Api, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "LINGER_SECONDS", 0.05)
    group = await admin.group()

    async def slowly() -> AsyncIterator[bytes]:
        yield line("add", group, P1) + b"\n" + line("add", group, P2)[:20]
        async with asyncio.timeout(5):
            while await held(admin, group) != {P1}:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        yield line("add", group, P2)[20:]

    status, content = await stream(api, slowly())

    assert (200, 2) == (status, read(content)[1].added)


async def test_a_client_may_wait_for_each_result_before_it_sends_more(
    api: Api, admin: Client
) -> None:
    group = await admin.group()
    told: asyncio.Queue[bytes] = asyncio.Queue()

    async def in_turns() -> AsyncIterator[bytes]:
        for n in range(1, 6):
            yield line("add", group, P1) + b"\n"
            async with asyncio.timeout(5):
                result = msgspec.json.decode(await told.get(), type=BulkResult)
            assert (n, "added" if n == 1 else "already_added") == (result.line, result.status)

    status, content = await stream(api, in_turns(), b"results=all", on_part=told.put_nowait)

    assert (200, 5) == (status, read_all(content)[1].lines)


@pytest.mark.parametrize("query", [b"", b"results=all"])
async def test_a_group_put_away_in_the_middle_is_not_found_from_then_on(
    api: Api, admin: Client, query: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "WINDOW", 2)
    one, other = await admin.group("1"), await admin.group("2")
    both = [line("add", one, P1), line("add", other, P1)]

    async def meanwhile() -> AsyncIterator[bytes]:
        yield body(both * 2)
        async with asyncio.timeout(5):
            while not await held(admin, other):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await admin.patch(f"{GROUPS}/{one}/", {"is_active": False})
        yield body([line("add", one, P2), line("add", other, P2), line("remove", one, P1)])

    status, content = await stream(api, meanwhile(), query)

    assert 200 == status
    told = [msgspec.json.decode(each) for each in content.splitlines()]
    assert [5, 7] == [each["line"] for each in told if each.get("status") == "invalid"]
    assert (7, 3, 2, 2) == (
        told[-1]["lines"],
        told[-1]["added"],
        told[-1]["already_added"],
        told[-1]["failed"],
    )


@pytest.mark.parametrize("query", [b"", b"results=all"])
async def test_nothing_is_done_for_a_client_that_went_away(
    api: Api,
    admin: Client,
    query: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(bulk, "WINDOW", 2)
    group = await admin.group()
    change, begun, ended = api.store.bulk.change_members, asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any, **named: Any) -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
            await change(*arguments, **named)
        finally:
            ended.set()

    monkeypatch.setattr(api.store.bulk, "change_members", slow)

    async def leaving() -> AsyncIterator[bytes]:
        yield body([line("add", group, P1), line("add", group, P2), line("add", group, P3)])
        await begun.wait()
        raise Gone

    async with asyncio.timeout(5):
        await stream(api, leaving(), query)

    assert ended.is_set()
    assert set() == await held(admin, group)
    assert (
        "the client went away. Of the 2 lines that were begun the first 0 are done" in caplog.text
    )


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "PATIENCE_SECONDS", 0.5)


async def test_a_store_that_comes_back_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    server = backings.embedded(persistent=True)
    try:
        async with opened(server.url) as api:
            group = await api.admin.group()
            monkeypatch.setattr(bulk, "WINDOW", 100)

            async def over_a_gap() -> AsyncIterator[bytes]:
                for start_at in range(0, 1000, 100):
                    if start_at == 300:
                        server.kill()
                        asyncio.get_running_loop().call_later(1, server.start)
                    yield body(line("add", group, uuid(n)) for n in range(start_at, start_at + 100))

            status, content = await stream(api, over_a_gap())

            assert 200 == status
            failures, done = read(content)
            assert ([], 1000, 0) == (failures, done.lines, done.failed)
            # One whose reply was lost may have been added before.
            assert 1000 == done.added + done.already_added
            assert 1000 == len(await held(api.admin, group))
            assert [] == (await verify(api.store)).problems
    finally:
        server.stop()


def uuid(number: int) -> str:
    return ids.text(number.to_bytes(16, "big"))


async def test_a_store_that_stays_away_is_told_with_what_was_done(
    monkeypatch: pytest.MonkeyPatch, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    server = backings.embedded(persistent=True)
    try:
        async with opened(server.url) as api:
            monkeypatch.setattr(bulk, "WINDOW", 100)
            group = await api.admin.group()
            lines = [line("add", group, uuid(n)) for n in range(1000)]

            async def cut_off() -> AsyncIterator[bytes]:
                yield body(lines[:300])
                async with asyncio.timeout(10):
                    while len(await held(api.admin, group)) < 300:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                server.kill()
                yield body(lines[300:])

            status, content = await stream(api, cut_off())
            told = json.loads(content)
            assert (503, "unavailable") == (status, told["error_code"])
            assert "Of the 400 lines that were begun the first 300 are done" in told["detail"]
            assert "repeating is safe" in told["detail"]

            server.start()
            status, content = await stream(api, cut_off(), b"results=all")
            results, last = read_results(content)
            assert (200, None) == (status, last)
            assert {"already_added"} >= {each.status for each in results}
            assert [*range(1, len(results) + 1)] == [each.line for each in results]
            assert len(results) < 1000
            assert "bulk of demo ends without its last line" in caplog.text

            server.start()
            await asyncio.sleep(0.3)
            _, done = await send(api.admin, lines)
            assert (1000, 300) == (done.added + done.already_added, done.already_added)
            assert [] == (await verify(api.store)).problems
    finally:
        server.stop()


def read_results(content: bytes) -> tuple[list[BulkResult], BulkDone | None]:
    """The results, and the last line if there is one."""
    lines = content.splitlines()
    if lines and b'"done"' in lines[-1]:
        return read_all(content)
    decode = msgspec.json.Decoder(BulkResult).decode
    return [decode(each) for each in lines], None


async def test_a_full_store_is_told_at_once(api: Api, admin: Client, valkey: Any) -> None:
    group = await admin.group()
    await send(admin, [line("add", group, P1)])
    valkey.ask("CONFIG", "SET", "maxmemory", "1")
    try:
        async with asyncio.timeout(5):
            answer = await admin.call("POST", BULK, line("add", group, P2), status=503)
            assert "no memory left" in answer.body.detail
            _, done = await send(admin, [line("remove", group, P1)])
            assert 1 == done.removed
    finally:
        valkey.ask("CONFIG", "SET", "maxmemory", "0")


async def test_the_event_loop_takes_few_lines_at_a_time(
    admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    take = Window.take

    def counted(window: Window, lines: Any) -> None:
        taken.append(len(lines))
        take(window, lines)

    monkeypatch.setattr(Window, "take", counted)

    _, done = await send(admin, b"\n" * 5000 + b"x\n" * 5000)

    assert (10_000, 5000) == (done.lines, done.failed)
    assert max(taken) <= 500


async def test_memory_holds_two_windows_at_most(
    api: Api, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However fast a client sends, what is read waits for what is being done."""
    monkeypatch.setattr(bulk, "WINDOW", 500)
    group = await admin.group()
    change, ahead, given = api.store.bulk.change_members, [], 0

    async def slow(*arguments: Any, **named: Any) -> None:
        await asyncio.sleep(0.01)
        done = await count()
        ahead.append(given - done)
        await change(*arguments, **named)

    async def count() -> int:
        return int((await admin.get(f"{GROUPS}/{group}/members/")).body.count)

    monkeypatch.setattr(api.store.bulk, "change_members", slow)

    async def fast() -> AsyncIterator[bytes]:
        nonlocal given
        for start_at in range(0, 5000, 100):
            given = start_at + 100
            yield body(line("add", group, uuid(n)) for n in range(start_at, start_at + 100))

    status, content = await stream(api, fast())

    assert (200, 5000) == (status, read(content)[1].added)
    assert max(ahead) <= 2 * 500 + 100


async def test_long_lines_are_done_fewer_at_a_time(
    api: Api, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "WINDOW_BYTES", 100_000)
    group = await admin.group()
    sizes = []
    change = api.store.bulk.change_members

    async def counted(env: Any, changes: Any) -> None:
        sizes.append(len(changes.kinds))
        await change(env, changes)

    monkeypatch.setattr(api.store.bulk, "change_members", counted)
    monkeypatch.setattr(bulk, "IDS_PER_TURN", 10)

    _, done = await send(admin, [line("add", group, uuid(n)).ljust(10_000) for n in range(100)])

    assert (100, 100) == (done.added, sum(sizes))
    assert max(sizes) <= 20


async def test_a_name_of_a_group_may_change_hands_between_windows(
    admin: Client, small_windows: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = await admin.group("1", custom_id="gold"), await admin.group("2")
    await send(admin, [line("add", "gold", P1)])
    await admin.patch(f"{GROUPS}/{one}/", {"custom_id": None})
    await admin.patch(f"{GROUPS}/{other}/", {"custom_id": "gold"})

    await send(admin, [line("add", "gold", P2)])

    assert [{P1}, {P2}] == [await held(admin, each) for each in (one, other)]


# From here on over sockets: what clients, servers and the network make of it.


class Demo:
    """A served demo application."""

    def __init__(self, one: Serving) -> None:
        self.one = one
        self.host = one.base.partition("//")[2]
        self.token = belong(one, "token", "--application", "demo")
        self.headers = {"Authorization": f"Bearer {self.token}"}

    def call(self, method: str, path: str, sent: object = None) -> Any:
        answer = httpx.request(
            method, f"{self.one.base}{path}", json=sent, headers=self.headers, timeout=60
        )
        assert answer.status_code < 300, answer.text
        return answer.json() if answer.content else None

    def group(self, name: str = "g") -> str:
        created: str = self.call("POST", f"{GROUPS}/", {"name": name})["id"]
        return created

    def count(self, group: str) -> int:
        counted: int = self.call("GET", f"{GROUPS}/{group}/members/?page_size=1")["count"]
        return counted

    def rss_mib(self) -> float:
        [process] = self.one.api_processes
        status = Path(f"/proc/{process}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """One server for many tests, which starts when the first needs it."""
    folder = tmp_path_factory.mktemp("shared")
    with (
        tempfile.TemporaryDirectory(prefix="run-", dir="/tmp") as place,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("XDG_RUNTIME_DIR", place)
        one = Serving(folder, folder / "data", "--demo")
        try:
            yield Demo(one.ready())
            assert 0 == one.stop()
            assert "Traceback" not in one.log.read_text()
            assert [] == one.pids()
        finally:
            one.end()


def belong(one: Serving, *arguments: str) -> str:
    """Run a command on the data directory of a server, and give what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "service", *arguments, "--data-dir", str(one.data_dir)],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def many(group: str, number: int, *, profiles: int = 10_000) -> Iterator[bytes]:
    """Lines in pieces of a thousand: adds of so many profiles, again and again."""
    for first in range(0, number, 1000):
        yield body(
            line("add", group, uuid(n % profiles)) for n in range(first, min(first + 1000, number))
        )


def by_http_client(demo: Demo, pieces: Iterator[bytes], query: str = "") -> tuple[int, bytes]:
    """Send everything, then read: what Python's own client does."""
    with contextlib.closing(http.client.HTTPConnection(demo.host, timeout=300)) as connection:
        connection.request(
            "POST", BULK + query, body=pieces, headers=demo.headers, encode_chunked=True
        )
        answer = connection.getresponse()
        return answer.status, answer.read()


def by_httpx(demo: Demo, pieces: Iterator[bytes], query: str = "") -> tuple[int, bytes]:
    answer = httpx.post(
        f"{demo.one.base}{BULK}{query}", content=pieces, headers=demo.headers, timeout=300
    )
    return answer.status_code, answer.content


def by_urllib(demo: Demo, pieces: Iterator[bytes], query: str = "") -> tuple[int, bytes]:
    """Send a file of known length."""
    with tempfile.TemporaryFile() as file:
        file.writelines(pieces)
        size = file.tell()
        file.seek(0)
        request = urllib.request.Request(
            f"{demo.one.base}{BULK}{query}",
            data=file,
            headers={**demo.headers, "Content-Length": str(size)},
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


CLIENTS = [by_http_client, by_httpx, by_urllib]


@pytest.mark.parametrize("send_by", CLIENTS)
def test_a_client_that_sends_everything_before_it_reads_is_answered(
    demo: Demo, send_by: Callable[..., tuple[int, bytes]]
) -> None:
    group = demo.group()

    status, content = send_by(demo, many(group, 100_000))

    assert 200 == status
    assert BulkDone(lines=100_000, added=10_000, already_added=90_000) == read(content)[1]
    assert 10_000 == demo.count(group)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send_by", "lines"), [(by_httpx, 2_000_000), (by_http_client, 400_000), (by_urllib, 400_000)]
)
def test_two_million_lines_are_answered_to_an_ordinary_client(
    demo: Demo, send_by: Callable[..., tuple[int, bytes]], lines: int
) -> None:
    """All three were tried with as many; what is sent is far more than any buffer holds."""
    group = demo.group()

    status, content = send_by(demo, many(group, lines))

    assert 200 == status
    assert BulkDone(lines=lines, added=10_000, already_added=lines - 10_000) == read(content)[1]


@pytest.mark.parametrize("send_by", CLIENTS)
@pytest.mark.parametrize("query", ["", "?results=all"])
def test_a_refusal_reaches_a_client_that_goes_on_sending(
    demo: Demo, send_by: Callable[..., tuple[int, bytes]], query: str
) -> None:
    """2,000,000 lines of 105 bytes; that the client ends, with an answer or an error, is enough."""
    stranger = copy.copy(demo)
    stranger.headers = {"Authorization": "Bearer x"}
    piece = b"x" * 105_000
    began = time.monotonic()

    try:
        status, content = send_by(stranger, (piece for _ in range(2000)), query)
    except (OSError, httpx.HTTPError, http.client.HTTPException):
        pass
    else:
        assert 401 == status
        assert "error_code" in json.loads(content)

    assert time.monotonic() - began < 60
    assert demo.one.get().status_code == 200


@pytest.mark.alone
@pytest.mark.slow
def test_memory_stays_flat_and_others_are_answered(demo: Demo) -> None:
    """The growth between line 10,000 and line 1,000,000 is below 32 MiB (design 3.1)."""
    group = demo.group()
    measured: dict[int, float] = {}
    waited: list[float] = []

    def measuring() -> Iterator[bytes]:
        for sent, piece in enumerate(many(group, 1_000_000), 1):
            yield piece
            if sent % 10 == 0:
                measured[sent * 1000] = demo.rss_mib()
                began = time.monotonic()
                assert demo.one.get().status_code == 200
                waited.append(time.monotonic() - began)

    status, content = by_http_client(demo, measuring())

    assert (200, 1_000_000) == (status, read(content)[1].lines)
    assert max(measured.values()) - measured[10_000] < 32, measured
    assert statistics.median(waited) < 0.5


def test_an_api_process_that_is_killed_in_the_middle_leaves_what_can_be_repeated(
    serve: Callable[..., Serving],
) -> None:
    demo = Demo(serve("--demo").ready())
    group = demo.group()
    killed = False

    def killing() -> Iterator[bytes]:
        nonlocal killed
        for sent, piece in enumerate(many(group, 40_000, profiles=40_000), 1):
            yield piece
            if sent == 20:
                eventually(lambda: demo.count(group) > 0)
                [process] = demo.one.api_processes
                os.kill(process, signal.SIGKILL)
                killed = True

    with pytest.raises((OSError, http.client.HTTPException)):
        by_http_client(demo, killing())
    assert killed
    eventually(lambda: demo.one.get().status_code == 200)
    before = demo.count(group)
    assert 0 < before < 40_000

    status, content = by_http_client(demo, many(group, 40_000, profiles=40_000))

    assert 200 == status
    done = read(content)[1]
    assert (40_000, before) == (done.added + done.already_added, done.already_added)
    assert json.loads(belong(demo.one, "verify", "--json"))["ok"]


def open_bulk(demo: Demo, *headers: str, query: str = "") -> socket.socket:
    """Send the head of a request, and give the connection."""
    host, _, port = demo.host.rpartition(":")
    opened_one = socket.create_connection((host, int(port)), timeout=20)
    head = [f"POST {BULK}{query} HTTP/1.1", f"Host: {demo.host}"]
    head += [f"{name}: {value}" for name, value in demo.headers.items()]
    opened_one.sendall("\r\n".join([*head, *headers, "", ""]).encode())
    return opened_one


def until(one: socket.socket, wanted: bytes) -> bytes:
    received = b""
    while wanted not in received:
        more = one.recv(65_536)
        assert more, received
        received += more
    return received


@pytest.mark.parametrize("query", ["", "?results=all"])
def test_a_client_that_asks_before_it_sends_is_told_to_go_on(demo: Demo, query: str) -> None:
    sent = line("add", demo.group(), P1)
    with open_bulk(
        demo, "Expect: 100-continue", f"Content-Length: {len(sent)}", query=query
    ) as one:
        assert until(one, b"\r\n\r\n").startswith(b"HTTP/1.1 100 Continue\r\n")
        one.sendall(sent)
        assert b'"added":1' in until(one, b'"done":true')


def test_a_client_that_goes_away_in_the_middle_leaves_nothing_running(demo: Demo) -> None:
    group = demo.group()
    sent = b"".join(many(group, 20_000, profiles=20_000))
    with open_bulk(demo, f"Content-Length: {len(sent) + 1}") as one:
        one.sendall(sent)
    eventually(lambda: '"status":499' in demo.one.log.read_text())
    settled = demo.count(group)
    time.sleep(0.5)
    assert settled == demo.count(group)


def test_a_client_that_reads_while_it_writes_gets_every_result(demo: Demo) -> None:
    """More than all buffers hold, in both directions."""
    group = demo.group()
    number = 300_000
    with open_bulk(demo, "Transfer-Encoding: chunked", query="?results=all") as one:

        def write() -> None:
            for piece in many(group, number, profiles=1000):
                one.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            one.sendall(b"0\r\n\r\n")

        writer = threading.Thread(target=write)
        writer.start()
        answer = http.client.HTTPResponse(one, method="POST")
        answer.begin()
        results, done = read_all(answer.read())
        writer.join()

    assert [*range(1, number + 1)] == [each.line for each in results]
    assert (number, 1000) == (done.lines, done.added)


async def test_a_client_that_reads_nothing_is_dropped_in_time_and_others_are_served(
    valkey: backings.Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its results fill every buffer, then nothing more is read of it, then it is gone."""
    monkeypatch.setattr(api_process, "STALLED_SECONDS", 1.0)
    async with opened(valkey.url) as api, listening(api.conductor.app) as server:
        group = await api.admin.group()
        piece = next(many(group, 1000, profiles=1))

        def send_alone() -> int:
            with socket.create_connection(("127.0.0.1", server.port), timeout=60) as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                head = [
                    f"POST {BULK}?results=all HTTP/1.1",
                    "Host: h",
                    "Content-Length: 10000000000",
                ]
                head.append(f"Authorization: Bearer {api.admin.token}")
                one.sendall("\r\n".join([*head, "", ""]).encode())
                sent = 0
                with contextlib.suppress(ConnectionError):
                    while True:
                        one.sendall(piece)
                        sent += 1
                return sent

        sending = asyncio.create_task(asyncio.to_thread(send_alone))
        others = 0
        async with asyncio.timeout(120):
            while not sending.done():
                await api.admin.get(f"{GROUPS}/{group}/")
                others += 1
                await asyncio.sleep(0.05)

        assert await sending > 0
        assert others > 10
        assert "has read nothing of its answer for 1 s and is dropped" in caplog.text
        async with asyncio.timeout(10):
            while any("Work." in repr(task) for task in asyncio.all_tasks()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
