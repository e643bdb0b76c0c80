"""Queries against Python's set arithmetic: counts, pages to and fro, steps, saving."""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import ids, keys, query_runs, query_tree, scripts, store_queries
from service.cuts import Cut
from service.errors import NotFound
from service.groups import GroupChanges, NewGroup
from service.query_runs import GroupMissing
from service.query_tree import parse_query
from service.store import Store
from tests import backings
from tests.test_query_tree import holds, shallow

if TYPE_CHECKING:
    from collections.abc import Iterable

LONGEST_US = 2_000
REFERENCE = "for _ = 1, 1000 do redis.call('ECHO', 'x') end"
REFERENCE_US = 1_000

on_one_server = pytest.mark.parametrize(("backing", "partitions"), [("embedded", 1)], indirect=True)
on_servers = pytest.mark.parametrize(
    ("backing", "partitions"), [("embedded", 1), ("embedded", 8), ("cluster", 8)], indirect=True
)


class World:
    """Groups in a store, and the same as sets: by their names, which are their custom ids."""

    def __init__(self, store, env):
        self.store = store
        self.env = env
        self.members: dict[str, set[bytes]] = {}
        self.numbers: dict[str, int] = {}

    async def group(self, name, members: Iterable[bytes] = ()):
        made = await self.store.groups.create_group(self.env, NewGroup(name=name, custom_id=name))
        self.numbers[name] = made.number
        self.members[name] = set(members)
        await add(self.store, self.env, made.number, list(self.members[name]))

    @property
    def everybody(self):
        return set().union(*self.members.values())

    def expected(self, query):
        """Who the query is true of, in the order of the list."""
        found = [
            one
            for one in self.everybody
            if holds(query, {name for name, members in self.members.items() if one in members})
        ]
        return in_order(self.env, found)

    async def bound(self, query):
        return await self.store.queries.bind(self.env, parse_query(query))

    async def count(self, query):
        return await self.store.queries.count(self.env, await self.bound(query))

    async def page(self, query, cut=None, limit=20, **options):
        bound = await self.bound(query)
        return await self.store.queries.read_page(self.env, bound, cut, limit, **options)

    async def walk(self, query, *, backward=False, limit=1000):
        """The ids of a whole walk, in the order of the list, with what is said on the way."""
        end = Cut(backward=True, partition=len(self.env.partitions) - 1, key=b"\xff" * 16)
        cut: Cut | None = end if backward else None
        found: list[bytes] = []
        counts = set()
        while True:
            page = await self.page(query, cut, limit, named=False)
            rows = [row.id for row in page.rows]
            found = rows + found if backward else found + rows
            counts.add(page.count)
            cut = page.first if backward else page.last
            if cut is None:
                assert {len(found)} == counts
                return found


def in_order(env, found):
    def place(one):
        mixed = env.mixer.mix(one)
        return ids.head(mixed) % len(env.partitions), mixed

    return sorted(found, key=place)


def some(count):
    return [ids.new() for _ in range(count)]


def g(name):
    return {"group": name}


async def add(store, env, number, members):
    for start in range(0, len(members), 20_000):
        part = members[start : start + 20_000]
        letters = await store.members.add_members(env, number, b"".join(part))
        assert b"+" * len(part) == letters


@pytest.fixture
async def world(store, env):
    return World(store, env)


@pytest.fixture
async def small(world):
    """Six groups over sixty profiles, each profile in its own choice of them."""
    chosen = random.Random(7)
    people = some(60)
    for name in "abcdef":
        await world.group(name, [one for one in people if chosen.random() < 0.4])
    return world


SHAPES = [
    g("a"),
    {"and": [g("a"), g("b")]},
    {"or": [g("a"), g("b")]},
    {"not": g("a")},
    {"and": [g("a"), {"not": g("b")}]},
    {"or": [g("a"), {"not": g("b")}]},
    {"not": {"and": [g("a"), g("b")]}},
    {"and": [{"not": g("a")}, {"not": g("b")}]},
    {"and": [g("a"), g("b"), g("c")]},
    {"and": [{"or": [g("a"), g("b")]}, {"or": [g("c"), g("d")]}]},
    {"at_least": 2, "of": [g("a"), g("b"), g("c")]},
    {"at_least": 3, "of": [g("a"), g("b"), g("c"), {"not": g("d")}, {"and": [g("e"), g("f")]}]},
    {"at_least": 2, "of": [g("a"), g("a"), g("b"), g("c")]},
    {"and": [g("a"), {"at_least": 2, "of": [g("b"), g("c"), g("d"), g("e")]}]},
]


async def test_counts_and_walks_are_those_of_sets(small):
    for query in SHAPES:
        expected = small.expected(query)
        assert len(expected) == await small.count(query), query
        assert expected == await small.walk(query, limit=7), query
        assert expected == await small.walk(query, limit=7, backward=True), query


@on_servers
async def test_random_queries_over_small_groups_are_those_of_sets(small):
    loop = asyncio.get_running_loop()

    @settings(
        max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(shallow, st.integers(1, 30))
    def check(query, limit):
        walked = asyncio.run_coroutine_threadsafe(small.walk(query, limit=limit), loop).result()
        assert small.expected(query) == walked

    await asyncio.to_thread(check)


@on_servers
async def test_what_one_script_asks_is_what_many_steps_ask(small, monkeypatch):
    """Steps so narrow, and pieces so small, that every way through the walk is taken."""
    monkeypatch.setattr(query_tree, "BUDGET_US", 12)
    monkeypatch.setattr(query_runs, "BUDGET_US", 12)
    monkeypatch.setattr(query_runs, "KEPT", 1)
    for wide in (200, 3, 1):
        monkeypatch.setattr(query_tree, "WIDE", wide)
        monkeypatch.setattr(query_runs, "WIDE", wide)
        for query in SHAPES:
            expected = small.expected(query)
            assert expected == await small.walk(query, limit=9), (wide, query)
            assert expected == await small.walk(query, limit=4, backward=True), (wide, query)


async def test_rows_are_called_as_members_are(world):
    [named] = await world.store.profiles.resolve_identities(
        world.env, "customer_id", ["c"], create=True
    )
    await world.group("a", [named, *some(3)])
    await world.group("b", [named])
    for query in (g("b"), {"and": [g("a"), g("b")]}):
        [row] = (await world.page(query)).rows
        assert (named, None, "c") == (row.id, row.nickname, row.custom_id)


async def test_a_page_ends_where_the_list_does_on_both_sides(small):
    query = {"or": [g("a"), g("b")]}
    expected = small.expected(query)
    first = await small.page(query, None, 10)
    assert first.first is None
    second = await small.page(query, first.last, 10)
    again = await small.page(query, second.first, 10)
    assert expected[:10] == [row.id for row in again.rows]
    assert again.first is None
    assert first.last == again.last
    whole = await small.page(query, None, len(expected))
    assert (None, None) == (whole.first, whole.last)


async def test_nobody_is_in_empty_groups(world):
    await world.group("a")
    await world.group("b")
    for query in ({"and": [g("a"), g("b")]}, {"or": [g("a"), g("b")]}, {"not": g("a")}):
        page = await world.page(query)
        assert (0, [], None, None) == (page.count, page.rows, page.first, page.last)


async def test_a_group_that_is_not_there_is_named_with_its_place(small):
    with pytest.raises(GroupMissing, match=r"'nobody' - at `\$\.query\.and\[1\]\.not\.group`"):
        await small.count({"and": [g("a"), {"not": g("nobody")}]})


@pytest.mark.parametrize("wide", [200, 1])
async def test_an_inactive_group_is_named_with_its_place(small, monkeypatch, wide):
    monkeypatch.setattr(query_runs, "WIDE", wide)
    await small.store.groups.update_group(small.env, "c", GroupChanges(is_active=False))
    for query, place in (
        (g("c"), r"\$\.query\.group"),
        ({"and": [g("a"), {"or": [g("b"), g("c")]}]}, r"\$\.query\.and\[1\]\.or\[1\]\.group"),
        ({"and": [g("a"), {"not": g("a")}, g("c")]}, r"\$\.query\.and\[2\]\.group"),
    ):
        with pytest.raises(GroupMissing, match=rf"'c' - at `{place}`"):
            await small.count(query)


async def test_a_group_that_is_deleted_after_it_was_found_is_named_with_its_place(small):
    query = {"or": [g("a"), g("b")]}
    bound = await small.bound(query)
    await small.store.groups.delete_group(small.env, "b")
    with pytest.raises(GroupMissing, match=r"'b' - at `\$\.query\.or\[1\]\.group`"):
        await small.store.queries.read_page(small.env, bound, None, 10)


@on_servers
async def test_a_group_that_is_deactivated_in_the_middle_of_a_walk_is_named(world, monkeypatch):
    monkeypatch.setattr(query_tree, "BUDGET_US", 20)
    monkeypatch.setattr(query_runs, "BUDGET_US", 20)
    people = some(2000)
    await world.group("a", people)
    await world.group("b", people[1000:])
    query = {"and": [g("a"), {"or": [g("b"), g("a")]}, {"not": {"and": [g("b"), g("a")]}}]}
    seen = 0
    evaluate = query_runs.Run._evaluate

    async def counted(run, *arguments):
        nonlocal seen
        seen += 1
        if seen == 5:
            change = GroupChanges(is_active=False)
            await world.store.groups.update_group(world.env, "b", change)
        return await evaluate(run, *arguments)

    monkeypatch.setattr(query_runs.Run, "_evaluate", counted)
    with pytest.raises(GroupMissing, match=r"'b' - at `\$\.query\.and\[1\]\.or\[0\]\.group`"):
        await world.count(query)
    assert seen >= 5


async def test_a_group_made_anew_under_its_id_is_found_by_a_process_that_knew_the_old_one(
    small, second
):
    gid = (await small.store.groups.get_group(small.env, "a")).id
    query = parse_query({"and": [g(gid), g("b")]})
    await second.groups.get_group(small.env, gid)
    await small.store.groups.delete_group(small.env, gid)
    await small.store.groups.create_group(small.env, NewGroup(name="new", id=gid))
    number = (await small.store.groups.get_group(small.env, gid)).number
    one = next(iter(small.members["b"]))
    await small.store.members.add_members(small.env, number, one)
    page = await second.queries.with_bound(
        small.env, query, lambda bound: second.queries.read_page(small.env, bound, None, 10)
    )
    assert [one] == [row.id for row in page.rows]


@on_servers
async def test_groups_that_change_while_a_query_walks_disturb_nobody_else(world):
    stay, come, others = some(3000), some(2000), some(1500)
    await world.group("a", stay + others)
    await world.group("b", stay)
    query = {"and": [g("a"), g("b")]}
    number = world.numbers["a"]
    stop = False

    async def churn():
        for at in itertools.cycle(range(0, 2000, 100)):
            if stop:
                return
            part = b"".join(come[at : at + 100])
            await world.store.members.add_members(world.env, number, part)
            await world.store.members.add_members(world.env, world.numbers["b"], part[:800])
            await world.store.members.remove_members(world.env, number, part)

    churning = asyncio.create_task(churn())
    try:
        for backward in (False, True):
            found: list[bytes] = []
            cut = None
            if backward:
                cut = Cut(backward=True, partition=len(world.env.partitions) - 1, key=b"\xff" * 16)
            while True:
                page = await world.page(query, cut, 300, named=False)
                assert page.count >= len(stay)
                found += [row.id for row in page.rows]
                cut = page.first if backward else page.last
                if cut is None:
                    break
            assert len(found) == len(set(found))
            assert set(stay) <= set(found) <= set(stay + come)
    finally:
        stop = True
        await churning


MANY = 300_000


@pytest.mark.alone
@pytest.mark.parametrize("partitions", [1, 8], ids=["one-partition", "eight-partitions"])
async def test_groups_of_3_50_and_300_000_are_those_of_sets(partitions):
    server = backings.embedded()
    try:
        store = await Store.open(server.url)
        application = await store.registry.create_application("test", partitions=partitions)
        world = World(store, application.production)
        people = some(MANY + 100_000)
        await world.group("a", people[:MANY])
        await world.group("b", people[100_000:])
        await world.group("c", [*people[99_990:100_040]])
        await world.group("d", [people[0], people[100_000], people[-1]])
        for query in (
            {"and": [g("a"), g("b")]},
            {"or": [g("a"), g("b")]},
            {"and": [g("b"), {"not": g("a")}]},
            {"not": g("b")},
            {"and": [g("a"), g("d")]},
            {"or": [g("d"), {"and": [g("a"), g("c")]}]},
            {"at_least": 3, "of": [g("a"), g("b"), g("c"), g("d")]},
            {"and": [g("a"), {"or": [g("c"), g("d")]}, {"not": {"and": [g("c"), g("b")]}}]},
        ):
            expected = world.expected(query)
            page = await world.page(query, None, 1000)
            assert len(expected) == page.count, query
            assert expected[:1000] == [row.id for row in page.rows], query
            last = Cut(backward=True, partition=partitions - 1, key=b"\xff" * 16)
            page = await world.page(query, last, 1000)
            assert (len(expected), expected[-1000:]) == (
                page.count,
                [row.id for row in page.rows],
            ), query
            for at in (len(expected) // 3, len(expected) // 2, len(expected) - 1):
                mixed = world.env.mixer.mix(expected[at])
                cut = Cut(
                    backward=False, partition=ids.head(mixed) % partitions, key=mixed, after=True
                )
                page = await world.page(query, cut, 50)
                assert expected[at + 1 : at + 51] == [row.id for row in page.rows], query
                assert len(expected) == page.count, query
                cut = Cut(backward=True, partition=cut.partition, key=mixed, after=False)
                page = await world.page(query, cut, 50)
                assert expected[max(0, at - 50) : at] == [row.id for row in page.rows], query
        await store.close()
    finally:
        server.stop()


@on_one_server
async def test_a_small_group_with_a_large_one_costs_one_script(world, monkeypatch):
    people = some(20_000)
    await world.group("a", people)
    await world.group("b", people[5:8])
    sent = []
    call = world.store.connection.call

    async def counted(script, *arguments, **options):
        sent.append(script.name)
        return await call(script, *arguments, **options)

    monkeypatch.setattr(world.store.connection, "call", counted)
    bound = await world.bound({"and": [g("a"), g("b")]})
    sent.clear()
    assert 3 == await world.store.queries.count(world.env, bound)
    assert ["count_members", "query_members"] == sent


@on_one_server
async def test_a_query_takes_no_memory_that_grows_with_the_groups(world, monkeypatch):
    """Of a walk over 60,000 candidates in many steps nothing stays but counts."""
    people = some(60_000)
    await world.group("a", people)
    await world.group("b", people[20_000:])
    bound = await world.bound({"or": [{"and": [g("a"), g("b")]}, {"not": g("b")}, g("b")]})
    await world.store.queries.count(world.env, bound)
    tracemalloc.start()
    try:
        assert 60_000 == await world.store.queries.count(world.env, bound)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * 2**20


def wide(count, size=20):
    people = some(400)
    return {f"w{n}": random.sample(people, size) for n in range(count)}


@on_servers
async def test_a_query_over_a_thousand_groups_is_that_of_sets(world):
    groups = wide(1000, 5)
    await asyncio.gather(*(world.group(name, members) for name, members in groups.items()))
    leaves = [g(name) for name in groups]
    for query in (
        {"or": leaves},
        {"at_least": 12, "of": leaves},
        {"at_least": 998, "of": leaves},
        {"not": {"or": leaves}},
        {"and": [{"or": leaves[:500]}, {"not": {"at_least": 7, "of": leaves[500:]}}]},
        {"and": [{"or": leaves[n : n + 100]} for n in range(0, 1000, 100)]},
    ):
        expected = world.expected(query)
        assert expected == await world.walk(query), query
        assert len(expected) == await world.count(query), query


QUERIES: dict[str, Any] = {
    "and of two large": {"and": [g("a"), g("b")]},
    "or of two large": {"or": [g("a"), g("b")]},
    "not of a large": {"not": g("a")},
    "large, not a larger": {"and": [g("c"), {"not": g("a")}]},
    "small with large": {"and": [g("a"), g("d")]},
    "2 of three large": {"at_least": 2, "of": [g("a"), g("b"), g("c")]},
    "or of three and not": {"or": [g("b"), g("c"), {"not": g("a")}]},
    "or of 100": {"or": [g(f"w{n}") for n in range(100)]},
    "or of 1,000": {"or": [g(f"w{n}") for n in range(1000)]},
    "5 of 1,000": {"at_least": 5, "of": [g(f"w{n}") for n in range(1000)]},
    "and of ors of 1,000": {
        "and": [{"or": [g(f"w{n}") for n in range(k, 1000, 4)]} for k in range(4)]
    },
    "or of 99 in a large": {"and": [g("a"), {"or": [g(f"w{n}") for n in range(99)]}]},
}


def steps_of(entries):
    """The scripts of a query in a slow log, with the time of each; counting has its own test."""
    names = {scripts.load(name).sha.encode(): name for name in STEPS}
    return [
        (names[command[1]], us)
        for _, _, us, command, *_ in entries
        if command[0] == b"EVALSHA" and command[1] in names
    ]


STEPS = ("query_members", "count_common", "read_names")


@pytest.mark.alone
async def test_no_step_of_a_query_holds_the_server_up_for_long():
    """By the server's clock, in terms of how fast it is at the moment; `-s` shows the table.

    The steps of a query are the same each time: each counts as it was when nothing else held the
    machine up.
    """
    server = backings.embedded("--slowlog-log-slower-than", "0", "--slowlog-max-len", "20000")
    table, late = [], []
    try:
        store = await Store.open(server.url)
        application = await store.registry.create_application("test")
        world = World(store, application.production)
        people = some(90_000)
        await world.group("a", people[:60_000])
        await world.group("b", people[30_000:])
        await world.group("c", people[50_000:75_000])
        await world.group("d", people[20_000:20_800])
        await asyncio.gather(*(world.group(name, each) for name, each in wide(1000, 30).items()))
        for name, query in QUERIES.items():
            bound = await world.bound(query)
            references, runs = [], []
            for _ in range(15):
                server.ask("SLOWLOG", "RESET")
                server.ask("EVAL", REFERENCE, 0)
                references.append(server.ask("SLOWLOG", "GET", 1)[0][2])
                # NOTE: the first scripts after many others pay for what those left to Lua's garbage
                # collector, 5 to 15 ms: so it is after checks and lists of members, too.
                for _ in range(10):
                    await store.members.count_members(world.env, [world.numbers["a"]])
                server.ask("SLOWLOG", "RESET")
                await store.queries.read_page(world.env, bound, None, 1000)
                entries = server.ask("SLOWLOG", "GET", -1)
                runs.append([us for _, us in steps_of(entries)])
            assert 1 == len(set(map(len, runs)))
            slower = max(1, min(references) / REFERENCE_US)
            steps = [min(times) / slower for times in zip(*runs, strict=True)]
            table.append(f"{name:24}{len(steps):5} steps, longest {max(steps):6.0f} us\n")
            if max(steps) > LONGEST_US:
                late.append(name)
        await store.close()
    finally:
        server.stop()
    sys.stdout.write("".join(table))
    assert [] == late


@on_one_server
async def test_what_can_not_be_counted_by_segments_in_one_step_is_looked_through(world):
    """A group that shrank while a query was planned has one segment for all of another's."""
    people = some(20_000)
    await world.group("a", people)
    await world.group("b", people[:10])
    tag = world.env.partitions[0]
    numbers = [world.numbers["b"], world.numbers["a"]]
    end, count = await world.store.connection.call(
        scripts.load("count_common"),
        [keys.key(tag, "state"), keys.key(tag, "shape"), keys.none(tag)],
        [0, 50, 2, *numbers],
    )
    assert (b"0", 0) == (end, count)
    bound = await world.bound({"or": [g("a"), g("b")]})
    run = await world.store.queries.begin(world.env, bound)
    run.plan.formula = query_tree.Formula(tuple(numbers), 2)
    _, around = await run.read(None, 10)
    assert 20_000 == around.count


@on_servers
async def test_formulas_count_around_a_cut_as_steps_do(world):
    people = some(4000)
    await world.group("a", people[:3000])
    await world.group("b", people[1000:])
    for query, formula in (
        ({"and": [g("a"), g("b")]}, query_tree.Formula((world.numbers["a"], world.numbers["b"]))),
        ({"or": [g("a"), g("b")]}, query_tree.Formula((world.numbers["a"], world.numbers["b"]), 2)),
        (
            {"and": [g("a"), {"not": g("b")}]},
            query_tree.Formula((world.numbers["a"], world.numbers["b"]), 1),
        ),
        ({"not": g("a")}, query_tree.Formula((0, world.numbers["a"]), 1)),
    ):
        expected = world.expected(query)
        bound = await world.bound(query)
        for at in (0, 1, len(expected) // 2, len(expected) - 1):
            mixed = world.env.mixer.mix(expected[at])
            partition = ids.head(mixed) % len(world.env.partitions)
            for backward, after in itertools.product((False, True), repeat=2):
                run = await world.store.queries.begin(world.env, bound)
                run.plan.formula = msgspec_small(formula)
                cut = Cut(backward=backward, after=after, partition=partition, key=mixed)
                places, around = await run.read(cut, 30)
                middle = at + after
                rows = (
                    expected[max(0, middle - 30) : middle]
                    if backward
                    else (expected[middle : middle + 30])
                )
                assert rows == ids.split(world.env.mixer.unmix(b"".join(m for _, m in places)))
                ahead = middle if backward else len(expected) - middle
                assert (ahead > 30, ahead < len(expected), len(expected)) == (
                    around.more,
                    around.other,
                    around.count,
                )


def msgspec_small(formula):
    """The same formula, of which a script counts a few segments."""
    return query_tree.Formula(formula.groups, formula.added, 250.0)


async def save(world, query, **fields):
    return await world.store.queries.save(
        world.env, parse_query(query), NewGroup(name="saved", **fields)
    )


async def fill(world, number):
    """Take the steps of a job, each of them twice; what they came to."""
    position, added, failed, error, steps = "", 0, 0, None, 0
    while True:
        step = await world.store.queries.save_step(world.env, number, position)
        again = await world.store.queries.save_step(world.env, number, position)
        assert (step.added, step.failed) == (again.added, again.failed)
        position, added, failed = step.position, added + step.added, failed + step.failed
        error = error or step.error
        steps += 1
        if not position:
            return added, failed, error, steps, step.total


async def members_of(world, number):
    found: list[bytes] = []
    cut = None
    while True:
        page = await world.store.members.list_members(world.env, number, cut, 1000)
        found += [row.id for row in page.rows]
        cut = page.last
        if cut is None:
            return found


async def test_a_saved_query_becomes_a_group_of_those_of_whom_it_is_true(small):
    query = {"and": [{"or": [g("a"), g("b")]}, {"not": g("c")}]}
    group = await save(small, query)
    added, failed, error, _, total = await fill(small, group.number)
    expected = small.expected(query)
    assert expected == await members_of(small, group.number)
    assert (len(expected), 0, None, len(expected)) == (added, failed, error, total)


@on_servers
async def test_a_saved_query_is_filled_in_steps(world, monkeypatch):
    monkeypatch.setattr(store_queries, "SAVED", 100)
    monkeypatch.setattr(query_tree, "BUDGET_US", 40)
    monkeypatch.setattr(query_runs, "BUDGET_US", 40)
    people = some(3000)
    await world.group("a", people)
    await world.group("b", people[1000:])
    query = {"and": [g("a"), g("b")]}
    group = await save(world, query)
    added, failed, _, steps, total = await fill(world, group.number)
    assert (2000, 0, 2000) == (added, failed, total)
    assert steps > 5
    assert world.expected(query) == await members_of(world, group.number)


async def test_who_is_over_the_limit_of_groups_is_counted_and_named(store, application):
    application = await store.registry.update_application(
        application.client_id, groups_per_profile=2
    )
    world = World(store, application.production)
    one, other = some(2)
    await world.group("a", [one, other])
    await world.group("b", [one])
    group = await save(world, {"or": [g("a"), g("b")]})
    added, failed, error, _, _ = await fill(world, group.number)
    assert (1, 1) == (added, failed)
    assert f"{ids.text(one)} is in 2 groups, as many as it may" == error
    assert [other] == await members_of(world, group.number)


async def test_a_query_is_saved_with_the_ids_of_its_groups(small):
    group = await save(small, {"at_least": 1, "of": [g("a"), {"not": g("b")}]}, custom_id="s")
    held = await small.store.groups.get_group(small.env, "s")
    named = [(await small.store.groups.get_group(small.env, name)).id for name in "ab"]
    assert {"at_least": 1, "of": [g(named[0]), {"not": g(named[1])}]} == held.saved_query
    assert group.number == held.number


async def test_a_query_that_names_an_inactive_group_is_not_saved(small):
    await small.store.groups.update_group(small.env, "b", GroupChanges(is_active=False))
    with pytest.raises(GroupMissing, match=r"'b' - at `\$\.query\.or\[1\]\.group`"):
        await save(small, {"or": [g("a"), g("b")]}, custom_id="s")
    with pytest.raises(NotFound):
        await small.store.groups.get_group(small.env, "s")


async def test_filling_ends_where_a_group_that_is_named_is_gone(small):
    group = await save(small, {"or": [g("a"), g("b")]})
    await small.store.groups.delete_group(small.env, "b")
    with pytest.raises(GroupMissing, match=r"at `\$\.query\.or\[1\]\.group`"):
        await small.store.queries.save_step(small.env, group.number, "")


async def test_filling_ends_where_the_group_itself_is_gone(small):
    group = await save(small, {"or": [g("a"), g("b")]})
    await small.store.groups.delete_group(small.env, group.id)
    with pytest.raises(NotFound, match="to be filled is gone"):
        await small.store.queries.save_step(small.env, group.number, "")
