"""Shortcuts: answered as on the ordinary way, byte for byte, or not at all.

Two application objects over one store, behind the protocol of an API process: one has shortcuts,
the other has none. Whatever is sent, both have to answer the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import api_process, auth, ids, record, shortcuts
from service.app import create_app
from service.config import Config
from service.errors import Unavailable
from service.groups import NewGroup
from tests.client import DEMO, GROUPS
from tests.listening import connected, listening

COUNT = 30
LENGTH = re.compile(rb"content-length: (\d+)\r\n")
CHANGING = re.compile(rb"\r\n(date|x-request-id): [^\r]*")
CHECK = f"{DEMO}/memberships/check/"
ROUTE = "/api/v1/applications/{cid}/memberships/check"


class World:
    """A profile in thirty groups, one that is in none, and how to ask about them."""

    def __init__(self, api):
        self.api = api
        self.store = api.store
        self.me, self.nobody = ids.new(), ids.new()
        self.groups = []

    async def fill(self):
        application = await self.store.registry.application("demo")
        self.env = application.production
        for n in range(COUNT):
            group = await self.store.groups.create_group(self.env, NewGroup(name=f"Größe {n}"))
            others = b"".join(ids.new() for _ in range(n % 3))
            await self.store.members.add_members(self.env, group.number, self.me + others)
            self.groups.append(group)
        self.large = self.groups[3]
        crowd = b"".join(ids.new() for _ in range(150))
        await self.store.members.add_members(self.env, self.large.number, crowd)
        self.token = await self.minted("members:read")
        return self

    async def minted(self, *scopes):
        return await auth.mint(
            self.store.registry, applications=["demo"], scopes=scopes, subject="test"
        )

    def request(self, method, path, body=None, *, token=None, lines=()):
        head = [f"{method} {path} HTTP/1.1", "Host: belong.test"]
        head += [f"Authorization: Bearer {token or self.token}", *lines]
        if body is not None:
            body = body if isinstance(body, bytes) else msgspec.json.encode(body)
            head.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*head, "", ""]).encode() + (body or b"")

    def groups_of(self, id16=None, query="", **options):
        path = f"{DEMO}/profiles/{ids.text(id16 or self.me)}/profile-groups/{query}"
        return self.request("GET", path, **options)

    def member(self, group=None, id16=None, **options):
        gid = (group or self.groups[0]).id
        return self.request(
            "GET", f"{GROUPS}/{gid}/members/{ids.text(id16 or self.me)}/", **options
        )

    def members(self, query="", **options):
        return self.request("GET", f"{GROUPS}/{self.large.id}/members/{query}", **options)

    def check(self, group=None, id16=None, **options):
        gid = group or self.groups[0].id
        pair = {"profile_id": ids.text(id16 or self.me), "group_id": gid}
        return self.request("POST", CHECK, {"pairs": [pair]}, **options)


@pytest.fixture
async def world(api):
    return await World(api).fill()


class Both:
    """A connection to each of the two servers."""

    def __init__(self, short, plain):
        self.short = short
        self.plain = plain

    async def answers(self, *sent, count=1):
        """Send pieces to both, a turn of the loop apart; what both answered, which is the same."""
        found = []
        for reader, writer in (self.short, self.plain):
            for piece in sent:
                writer.write(piece)
                await asyncio.sleep(0.001)
            async with asyncio.timeout(10):
                found.append([await answer(reader) for _ in range(count)])
        assert found[0] == found[1]
        return found[0]


async def answer(reader):
    """Head and body of an answer, without what differs between two of the same."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = LENGTH.search(head)
    body = await reader.readexactly(int(length[1])) if length else b""
    return CHANGING.sub(rb"\r\n\1", head), body


async def one(reader):
    """One answer: status and JSON."""
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        assert length is not None
        body = await reader.readexactly(int(length[1]))
    return int(head.split()[1]), msgspec.json.decode(body)


@pytest.fixture
async def servers_of(api):
    """An application object with shortcuts, and one without, both listening."""
    app, plain = (create_app(Config(request_log="off"), api.store) for _ in range(2))
    plain.shortcuts = None
    async with listening(app) as short, listening(plain) as ordinary:
        yield short, ordinary


@contextlib.asynccontextmanager
async def both(servers_of):
    async with connected(servers_of[0]) as short, connected(servers_of[1]) as plain:
        yield Both(short, plain)


@pytest.fixture
def ordinary(monkeypatch):
    """A list that grows by every request that goes the ordinary way."""
    noted = []

    class Noted(record.Note):
        def __init__(self, request_id, send):
            noted.append(request_id)
            super().__init__(request_id, send)

    monkeypatch.setattr(record, "Note", Noted)
    return noted


async def test_the_hot_requests_take_the_shortcut_once_all_is_known(world, servers_of, ordinary):
    asked = [
        world.groups_of(),
        world.groups_of(query="?page_size=100"),
        world.member(),
        world.members(),
        world.members("?page_size=125"),
        world.check(),
        world.check(id16=world.nobody),
        world.check(lines=["X-Request-Id: my-own"]),
        world.request("GET", f"{GROUPS}/{world.groups[1].id}/members/{ids.text(world.me)}"),
        world.member(id16=world.nobody),
    ]
    async with connected(servers_of[0]) as (reader, writer):
        # What is known is forgotten once, when the near-cache first reads the directory's version.
        for _ in range(4):
            ordinary.clear()
            for each in asked:
                writer.write(each)
                assert (200 if each is not asked[-1] else 404) == (await one(reader))[0]
            if not ordinary:
                break
            await asyncio.sleep(0.5)
    assert [] == ordinary


async def test_what_is_answered_is_the_same_on_both_ways(world, servers_of):
    other = await world.minted("groups:read")
    pid, gid = ids.text(world.me), world.groups[0].id
    pair = {"profile_id": pid, "group_id": gid}
    empty = await world.store.groups.create_group(world.env, NewGroup(name="empty"))
    named = await world.api.admin.group("named")
    custom_ids = {"custom_ids": ['é "1"', "2"]}
    await world.api.admin.post(f"{GROUPS}/{named}/members/", custom_ids)
    await world.api.admin.post(f"{GROUPS}/{named}/members/", {"profile_ids": [pid]})
    asked = {
        "groups": world.groups_of(),
        "a page": world.groups_of(query="?page_size=7"),
        "a whole page": world.groups_of(query="?page_size=30"),
        "a large page": world.groups_of(query="?page_size=500"),
        "a page too large": world.groups_of(query="?page_size=1001"),
        "other parameters": world.groups_of(query="?fields=group_id&page_size=2"),
        "a parameter twice": world.groups_of(query="?page_size=2&page_size=3"),
        "an unknown parameter": world.groups_of(query="?nothing=1"),
        "groups of nobody": world.groups_of(world.nobody),
        "upper case": world.request("GET", f"{DEMO}/profiles/{pid.upper()}/profile-groups/"),
        "no UUID": world.request("GET", f"{DEMO}/profiles/{'-' * 36}/profile-groups/"),
        "hyphens elsewhere": world.request(
            "GET", f"{DEMO}/profiles/{pid[:9]}{pid[8:17]}{pid[18:]}/profile-groups/"
        ),
        "members": world.members(),
        "members of one page": world.members("?page_size=151"),
        "a page of members": world.members("?page_size=125"),
        "fields of members": world.members("?fields=id"),
        "members of no group": world.request("GET", f"{GROUPS}/{pid}/members/"),
        "a group of few": world.request("GET", f"{GROUPS}/{gid}/members/?page_size=7"),
        "a group of nobody": world.request("GET", f"{GROUPS}/{empty.id}/members/"),
        "members with names": world.request("GET", f"{GROUPS}/{named}/members/"),
        "a member": world.member(),
        "no member": world.member(id16=world.nobody),
        "no group": world.request("GET", f"{GROUPS}/{pid}/members/{pid}/"),
        "in": world.check(),
        "not in": world.check(id16=world.nobody),
        "in no group": world.check(group=pid),
        "a custom id": world.check(group="no such"),
        "two pairs": world.request("POST", CHECK, {"pairs": [pair, pair]}),
        "no pair": world.request("POST", CHECK, {"pairs": []}),
        "no profile": world.request("POST", CHECK, {"pairs": [{"group_id": gid}]}),
        "another profile": world.request("POST", CHECK, {"pairs": [pair | {"custom_id": "a"}]}),
        "a profile that is none": world.request(
            "POST", CHECK, {"pairs": [pair | {"profile_id": "x"}]}
        ),
        "more than pairs": world.request("POST", CHECK, {"pairs": [pair], "x": 1}),
        "no JSON": world.request("POST", CHECK, b"{"),
        "no UTF-8": world.request("POST", CHECK, b'{"pairs":[{"group_id":"\xff"}]}'),
        "no body": world.request("POST", CHECK),
        "a body to a GET": world.groups_of(lines=["Content-Length: 0"]),
        "another method": world.request("PUT", CHECK, {"pairs": [pair]}),
        "a HEAD": world.request("OPTIONS", CHECK),
        "another scope": world.groups_of(token=other),
        "another application": world.request(
            "GET", f"/api/v1/applications/else/profiles/{pid}/profile-groups/"
        ),
        "a length of many digits": world.check().replace(
            b"Content-Length: ", b"Content-Length: " + b"0" * 5000
        ),
        "no token": world.groups_of(token="x"),
        "two tokens": world.groups_of(lines=["Authorization: Bearer x"]),
        "two hosts": world.groups_of(query="?page_size=3", lines=["Host: other"]),
        "a host that is none": world.groups_of(query="?page_size=3").replace(
            b"belong.test", b"a b"
        ),
        "an id of its own": world.groups_of(lines=["X-Request-Id: my-own"]),
        "an id that is none": world.groups_of(lines=["X-Request-Id: my own"]),
        "compressed": world.check(lines=["Content-Encoding: gzip"]),
        "not compressed": world.check(lines=["Content-Encoding: identity"]),
        "an offer": world.check(lines=["Connection: Upgrade", "Upgrade: h2c"]),
        "chunks": world.groups_of(lines=["Transfer-Encoding: chunked"]) + b"0\r\n\r\n",
        "expecting": world.check(lines=["Expect: something"]),
        "many headers": world.groups_of(lines=[f"X-{n}: {'x' * 100}" for n in range(40)]),
        "a page of another origin": world.groups_of(lines=["Origin: https://example.com"]),
        "folded": world.groups_of(lines=["X-A: 1", " 2"]),
        "an escape": world.groups_of().replace(b"/demo/", b"/%64emo/"),
    }
    for each in asked.values():
        async with both(servers_of) as connections:
            [(head, _)] = await connections.answers(each)
            if b"connection: close" not in head:
                await connections.answers(each)


async def test_a_first_page_of_members_leads_on(world, servers_of, ordinary):
    async with connected(servers_of[0]) as (reader, writer):
        for _ in range(4):
            ordinary.clear()
            writer.write(world.members("?page_size=40"))
            _, page = await one(reader)
            if not ordinary:
                break
            await asyncio.sleep(0.5)
        assert [] == ordinary
        seen = []
        while True:
            seen += [row["id"] for row in page["results"]]
            if page["next"] is None:
                break
            writer.write(world.request("GET", page["next"].removeprefix("http://belong.test")))
            _, page = await one(reader)
    assert 151 == page["count"] == len(seen) == len(set(seen))


async def test_a_link_of_a_first_page_leads_on(world, servers_of, ordinary):
    seen = []
    async with connected(servers_of[0]) as (reader, writer):
        for _ in range(4):
            ordinary.clear()
            writer.write(world.groups_of(query="?page_size=7"))
            _, page = await one(reader)
            if not ordinary:
                break
            await asyncio.sleep(0.5)
        assert [] == ordinary
        while True:
            seen += [row["group_id"] for row in page["results"]]
            if page["next"] is None:
                break
            assert page["next"].startswith("http://belong.test/")
            path = page["next"].removeprefix("http://belong.test")
            writer.write(world.request("GET", path))
            _, page = await one(reader)
    assert [group.id for group in world.groups] == seen


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        (Config(public_url="https://api.example.com/"), "https://api.example.com"),
        (Config(trusted_proxies=("127.0.0.1",)), "https://front"),
    ],
)
async def test_links_name_the_public_address(world, given, origin):
    app = create_app(given, world.store)
    forwarded = ["X-Forwarded-Proto: https", "X-Forwarded-Host: front"]
    async with listening(app) as server, connected(server) as (reader, writer):
        for _ in range(3):
            writer.write(world.groups_of(query="?page_size=3", lines=forwarded))
            _, page = await one(reader)
            assert page["next"].startswith(f"{origin}/api/v1/")


@given(data=st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_however_requests_arrive_both_answer_the_same(both_at_once, data):
    loop, world, both = both_at_once
    whole = [
        world.groups_of(),
        world.members(),
        world.member(),
        world.member(id16=world.nobody),
        world.check(),
        world.check(group="none"),
        world.groups_of(query="?page_size=2"),
        world.request("GET", "/healthz"),
        world.request("POST", CHECK, b"{"),
    ]
    asked = data.draw(st.lists(st.sampled_from(whole), min_size=1, max_size=5))
    sent = b"".join(asked)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=4)))
    pieces = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True) if a < b]
    loop.run_until_complete(both.answers(*pieces, count=len(asked)))


@pytest.fixture
def both_at_once(valkey):
    """The world and both connections on a loop of their own, for a test that is no coroutine."""
    from tests.client import opened

    loop = asyncio.new_event_loop()
    stack = contextlib.AsyncExitStack()

    async def begin():
        api = await stack.enter_async_context(opened(valkey.url))
        world = await World(api).fill()
        app, plain = (create_app(Config(request_log="off"), api.store) for _ in range(2))
        plain.shortcuts = None
        ends = []
        for each in (app, plain):
            server = await stack.enter_async_context(listening(each))
            ends.append(await stack.enter_async_context(connected(server)))
        return world, Both(*ends)

    world, both = loop.run_until_complete(begin())
    yield loop, world, both
    loop.run_until_complete(stack.aclose())
    loop.close()


async def test_what_is_sent_ahead_waits_for_its_turn(world, servers_of, ordinary):
    async with connected(servers_of[0]) as (reader, writer):
        for each in (world.check(), world.check()):
            writer.write(each)
            await one(reader)
        ordinary.clear()
        kinds = [world.check(), world.check(id16=world.nobody), world.groups_of(), world.member()]
        for n in range(40):
            writer.write(kinds[n % 4])
            await asyncio.sleep(0)
        found = [await one(reader) for _ in range(40)]
    assert [200] * 40 == [status for status, _ in found]
    assert [{"results": [True]}, {"results": [False]}] == [found[0][1], found[1][1]]
    assert all(found[n % 4] == each for n, each in enumerate(found))


def answered(server, method, path, status):
    name = f"belong_http_requests_total\t{method}\t{path}\t{status}"
    return server.app.counters.snapshot().counters.get(name, 0)


async def test_shortcuts_are_counted_as_the_others_are(world, servers_of):
    async with connected(servers_of[0]) as (reader, writer):
        for n in range(5):
            writer.write(world.check())
            await one(reader)
            assert n + 1 == answered(servers_of[0], "POST", ROUTE, 200)
        told = servers_of[0].app.counters.snapshot()
    times = told.histograms[f"belong_http_request_duration_seconds\tPOST\t{ROUTE}"]
    assert 5 == sum(times[:-1])
    assert 0 < times[-1] < 1
    assert 0 == told.gauges["belong_http_requests_in_flight"]


async def test_the_log_says_the_same_of_both_ways(world, capfd):
    asked = [world.check(), world.member(), world.member(id16=world.nobody), world.groups_of()]
    asked.append(world.members("?page_size=7"))
    found = []
    for shortcuts_on in (True, False):
        app = create_app(Config(request_log="all"), world.store)
        if not shortcuts_on:
            app.shortcuts = None
        async with listening(app) as server, connected(server) as (reader, writer):
            for each in asked * 3:
                writer.write(each)
                await one(reader)
        app.log.close()
        lines = [msgspec.json.decode(line) for line in capfd.readouterr().err.splitlines()]
        for line in lines:
            for name in ("time", "request_id", "duration_ms"):
                line.pop(name)
        found.append(lines)
    assert 15 == len(found[0])
    assert found[0] == found[1]


async def test_only_errors_are_logged_unless_all_are_to_be(world, capfd):
    app = create_app(Config(request_log="errors"), world.store)
    async with listening(app) as server, connected(server) as (reader, writer):
        for each in (world.member(), world.member(id16=world.nobody)) * 3:
            writer.write(each)
            await one(reader)
    app.log.close()
    lines = [msgspec.json.decode(line) for line in capfd.readouterr().err.splitlines()]
    assert [404] * 3 == [line["status"] for line in lines]


class Held:
    """What the store was asked and has not answered yet."""

    def __init__(self, store, monkeypatch):
        self.waiting = []
        monkeypatch.setattr(store.shortcuts, "_ask", self.ask)

    def ask(self, _name, _tag, _count, _tail, waiter):
        self.waiting.append(waiter)
        return True


@pytest.fixture
async def held(world, servers_of, monkeypatch):
    """A connection to the server with shortcuts, and what waits for the store."""
    async with connected(servers_of[0]) as ends:
        while True:
            ends[1].write(world.check())
            await one(ends[0])
            if world.store.cache.directory(world.env.directory).version is not None:
                break
            await asyncio.sleep(0.1)
        ends[1].write(world.check())
        await one(ends[0])
        yield *ends, Held(world.store, monkeypatch).waiting


async def waiting(held, count=1):
    while len(held) < count:  # noqa: ASYNC110 - what is waited for happens in a protocol
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("said", [b"n", b"E", None, 5, [], Unavailable("gone")])
async def test_an_answer_of_the_store_that_is_not_as_usual_leads_the_ordinary_way(
    world, held, ordinary, said, caplog
):
    reader, writer, shortcut = held
    writer.write(world.check())
    await waiting(shortcut)
    ordinary.clear()
    (shortcut[0].set_exception if isinstance(said, Exception) else shortcut[0].set_result)(said)
    assert (200, {"results": [True]}) == await one(reader)
    assert 1 == len(ordinary)


async def test_who_has_left_gets_no_answer_and_is_counted(world, servers_of, held):
    _, writer, shortcut = held
    before = answered(servers_of[0], "POST", ROUTE, 200)
    writer.write(world.check())
    await waiting(shortcut)
    gauge = "belong_http_requests_in_flight"
    assert 1 == servers_of[0].app.counters.snapshot().gauges[gauge]
    writer.close()
    await writer.wait_closed()
    await asyncio.sleep(0.05)
    shortcut[0].set_result(b"1")
    told = servers_of[0].app.counters.snapshot()
    assert 0 == told.gauges[gauge]
    assert before + 1 == answered(servers_of[0], "POST", ROUTE, 200)


async def test_what_is_under_way_is_answered_before_the_server_stops(world, servers_of, held):
    reader, writer, shortcut = held
    writer.write(world.check())
    await waiting(shortcut)
    for connection in list(servers_of[0].server.server_state.connections):
        connection.shutdown()
    await asyncio.sleep(0.05)
    shortcut[0].set_result(b"1")
    answer = await reader.read()
    assert b"\r\nconnection: close\r\n\r\n{" in answer
    assert answer.endswith(b'{"results":[true]}')


async def test_what_went_the_ordinary_way_is_answered_before_the_server_stops(
    world, servers_of, held, monkeypatch
):
    reader, writer, shortcut = held
    writer.write(world.check())
    await waiting(shortcut)
    for connection in list(servers_of[0].server.server_state.connections):
        connection.shutdown()
    shortcut[0].set_result(b"n")
    answer = await reader.read()
    assert b"connection: close\r\n" in answer
    assert answer.endswith(b'{"results":[true]}')


async def test_a_connection_that_is_in_use_is_kept_and_an_idle_one_closed(world):
    app = create_app(Config(), world.store)
    async with (
        listening(app, keep_alive_seconds=2) as server,
        connected(server) as (reader, writer),
    ):
        for _ in range(6):
            writer.write(world.check())
            assert 200 == (await one(reader))[0]
            await asyncio.sleep(0.5)
        async with asyncio.timeout(20):
            assert b"" == await reader.read()


async def test_a_client_that_does_not_read_is_waited_for(world, servers_of, ordinary):
    async with connected(servers_of[0]) as (reader, writer):
        for _ in range(2):
            writer.write(world.groups_of(query="?page_size=100"))
            await one(reader)
        for _ in range(500):
            writer.write(world.groups_of(query="?page_size=100"))
        await writer.drain()
        found = [await one(reader) for _ in range(500)]
    assert {200} == {status for status, _ in found}


async def test_changes_show_at_once(world, servers_of):
    """Inactive, back again, deleted, and made anew under the same id."""
    admin, group = world.api.admin, world.groups[0]
    async with connected(servers_of[0]) as (reader, writer):

        async def seen():
            found = []
            for asked in (world.check(), world.groups_of(query="?page_size=100"), world.member()):
                writer.write(asked)
                found.append(await one(reader))
            checked, listed, one_member = found
            rows = {row["group_id"] for row in listed[1]["results"]}
            return checked[1]["results"][0], group.id in rows, one_member[0]

        assert (True, True, 200) == await seen()
        await admin.patch(f"{GROUPS}/{group.id}/", {"is_active": False})
        assert (None, False, 404) == await seen()
        await admin.patch(f"{GROUPS}/{group.id}/?include_inactive=true", {"is_active": True})
        assert (True, True, 200) == await seen()
        member = {"profile_ids": [ids.text(world.me)]}
        await admin.delete(f"{GROUPS}/{group.id}/members/", member)
        assert (False, False, 404) == await seen()
        await admin.post(f"{GROUPS}/{group.id}/members/", member)
        assert (True, True, 200) == await seen()
        await admin.delete(f"{GROUPS}/{group.id}/")
        assert (None, False, 404) == await seen()
        await admin.post(f"{GROUPS}/{group.id}/", {"name": "anew"}, 201)
        assert (False, False, 404) == await seen()
        await admin.post(f"{GROUPS}/{group.id}/members/", member)
        assert (True, True, 200) == await seen()


async def test_an_application_that_limits_requests_counts_all(world, servers_of):
    await world.store.registry.update_application("demo", requests_per_second=3)
    async with connected(servers_of[0]) as (reader, writer):
        statuses = []
        for _ in range(30):
            writer.write(world.check())
            statuses.append((await one(reader))[0])
    assert 429 in statuses


async def test_a_token_that_ended_is_refused(world, servers_of):
    async with connected(servers_of[0]) as (reader, writer):
        for _ in range(2):
            writer.write(world.check())
            assert 200 == (await one(reader))[0]
        for remembered in servers_of[0].app.shortcuts.backend.access._tokens.values():
            remembered.expires_at = remembered.good_until = 0.0
        writer.write(world.check())
        assert 401 == (await one(reader))[0]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (b"", ("Bearer x", "h", 0, None)),
        (b"content-length: 12\r\n", ("Bearer x", "h", 12, None)),
        (b"X-REQUEST-ID: me\r\nAccept: */*\r\n", ("Bearer x", "h", 0, b"me")),
        (b"content-length: 12\r\ncontent-length: 12\r\n", None),
        (b"content-length: -1\r\n", None),
        (b"content-length: " + b"0" * 5000 + b"\r\n", None),
        (b"transfer-encoding: chunked\r\n", None),
        (b"connection: close\r\n", None),
        (b"connection: upgrade\r\nupgrade: h2c\r\n", None),
        (b"expect: 100-continue\r\n", None),
        (b"host: other\r\n", None),
        (b"no colon\r\n", None),
        (b"a: b\n c\r\n", None),
        (b"x-request-id: not one\r\n", None),
    ],
)
def test_a_head_says_what_matters_or_nothing(lines, expected):
    head = shortcuts.read_head(b"Host: h\r\nAuthorization: Bearer x\r\n" + lines + b"\r\n")
    assert expected == (head and tuple(head)[:4])


def test_a_head_without_its_end_host_or_token_says_nothing():
    assert None is shortcuts.read_head(b"Host: h\r\nAuthorization: Bearer x\r\n")
    assert None is shortcuts.read_head(b"Host: h\r\n\r\n")
    assert None is shortcuts.read_head(b"Authorization: Bearer x\r\n\r\n")


async def test_no_more_heads_are_remembered_than_fit(world, servers_of, monkeypatch):
    monkeypatch.setattr(shortcuts, "HEADS", 3)
    async with connected(servers_of[0]) as (reader, writer):
        for n in range(8):
            writer.write(world.check(lines=[f"X-Request-Id: {n}"]))
            assert 200 == (await one(reader))[0]
        writer.write(world.check(lines=[f"X-Much: {'x' * shortcuts.HEAD_BYTES}"]))
        assert 200 == (await one(reader))[0]
    assert 3 == len(servers_of[0].app.shortcuts._heads)


async def test_what_fails_for_one_client_is_its_own(world, servers_of, held, monkeypatch, caplog):
    """A head of 5,000 digits once went through the store's link, and took others with it."""
    reader, writer, shortcut = held
    writer.write(world.check())
    await waiting(shortcut)
    link = world.store.connection.link_to(world.env.partitions[0])

    def fails(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(servers_of[0].app.shortcuts, "take", fails)
    writer.write(world.check())
    await asyncio.sleep(0.05)
    shortcut[0].set_result(b"1")
    assert (200, {"results": [True]}) == await one(reader)
    assert b"" == await reader.read()
    assert "a bug" in caplog.text
    assert link.lost is None
    assert 0 == servers_of[0].app.counters.snapshot().gauges["belong_http_requests_in_flight"]


async def test_an_inactive_group_does_not_have_scripts_sent_anew(world, servers_of):
    group = world.groups[1]
    async with connected(servers_of[0]) as (reader, writer):
        for _ in range(3):
            writer.write(world.member(group))
            assert 200 == (await one(reader))[0]
        await world.api.admin.patch(f"{GROUPS}/{group.id}/", {"is_active": False})
        kept = world.store.shortcuts._beginnings
        before = dict(kept)
        for _ in range(3):
            writer.write(world.member(group))
            assert 404 == (await one(reader))[0]
    assert before
    assert before == kept


async def test_a_shortcut_leaves_nothing_for_the_collector(world, servers_of):
    async with connected(servers_of[0]) as (reader, writer):
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                for each in (world.groups_of(), world.members(), world.member(), world.check()):
                    writer.write(each)
                    await one(reader)
            alive = [each for each in gc.get_objects() if isinstance(each, shortcuts.Shortcut)]
        finally:
            gc.enable()
    assert len(alive) <= 1


async def test_empty_lines_between_requests_are_nothing(world, monkeypatch):
    monkeypatch.setattr(api_process, "HEAD_SECONDS", 0.2)
    app = create_app(Config(), world.store)
    async with (
        listening(app, keep_alive_seconds=2) as server,
        connected(server) as (reader, writer),
    ):
        for first in (world.check(), world.request("GET", "/healthz"), b""):
            writer.write(first)
            if first:
                assert 200 == (await one(reader))[0]
            writer.write(b"\r\n")
            await asyncio.sleep(0.5)
            writer.write(world.check())
            assert 200 == (await one(reader))[0]
        writer.write(b"\r\n")
        async with asyncio.timeout(20):
            assert b"" == await reader.read()


async def test_a_connection_of_empty_lines_alone_ends(world):
    app = create_app(Config(), world.store)
    async with (
        listening(app, keep_alive_seconds=1) as server,
        connected(server) as (reader, writer),
    ):
        writer.write(b"\r\n")
        async with asyncio.timeout(20):
            assert b"" == await reader.read()


async def test_who_leaves_while_the_first_of_two_is_answered_is_no_error(
    world, servers_of, monkeypatch, caplog
):
    gate = asyncio.Event()
    check = world.store.members.check_members

    async def slow(*args):
        await gate.wait()
        return await check(*args)

    monkeypatch.setattr(world.store.members, "check_members", slow)
    two = world.check(lines=["Expect: something"]) * 2
    async with connected(servers_of[1]) as (_, writer):
        writer.write(two)
        await asyncio.sleep(0.1)
        writer.transport.abort()
        await asyncio.sleep(0.1)
        gate.set()
        await asyncio.sleep(0.1)
    assert "Exception" not in caplog.text


async def test_behind_a_trusted_proxy_a_page_is_one_command(world, ordinary):
    app = create_app(Config(trusted_proxies=("127.0.0.1",)), world.store)
    forwarded = ["X-Forwarded-Proto: https", "X-Forwarded-Host: front"]
    asked = world.members("?page_size=3", lines=forwarded)
    async with listening(app) as server, connected(server) as (reader, writer):
        for _ in range(4):
            ordinary.clear()
            writer.write(asked)
            _, page = await one(reader)
            assert page["next"].startswith("https://front/api/v1/")
            if not ordinary:
                break
            await asyncio.sleep(0.5)
    assert [] == ordinary


async def test_hits_of_the_near_cache_count_once(world, servers_of):
    group = world.groups[1]
    async with connected(servers_of[0]) as (reader, writer):
        for _ in range(3):
            writer.write(world.member(group))
            await one(reader)
            await asyncio.sleep(0.4)
        cache = world.store.cache
        before = cache.hits
        writer.write(world.member(group))
        await one(reader)
        assert before + 1 == cache.hits
        await world.api.admin.patch(f"{GROUPS}/{group.id}/", {"is_active": False})
        writer.write(world.member(group))
        await one(reader)
        before = cache.hits
        writer.write(world.member(group))
        await one(reader)
        assert before + 1 >= cache.hits
