"""The index of instances: exact pages in both directions, over any number of partitions."""

from __future__ import annotations

import random

import pytest

from service import ids, keys, scripts
from service.cuts import Cut

NUMBER = 1_763_758_800_000_123


@pytest.fixture
async def index(store, env):
    """Give a store whose index is filled by hand; it is empty again when the test ends."""
    added = []

    async def fill(iids, number=NUMBER):
        for iid in iids:
            key = keys.instance_index(env.home(iid), number, keys.instance_bucket(iid))
            await store.connection.command(key, "ZADD", key, 0, iid)
            added.append((key, iid))

    yield fill
    for key, iid in added:
        await store.connection.command(key, "ZREM", key, iid)


def drawn(count, seed=1):
    rng = random.Random(seed)
    return [rng.randbytes(16) for _ in range(count)]


def in_order(env, iids):
    return sorted(iids, key=lambda iid: (ids.head(iid) % len(env.partitions), iid))


async def walked(store, env, limit, *, backward=False):
    """All rows of a walk from one end to the other, page by page."""
    end = Cut(backward=True, partition=len(env.partitions) - 1, key=b"\xff" * 16)
    cut = end if backward else None
    rows: list[bytes] = []
    while True:
        page = await store.instance_index.list_instances(env, NUMBER, cut, limit)
        rows = page.rows + rows if backward else rows + page.rows
        cut = page.first if backward else page.last
        if cut is None:
            return rows
        assert len(page.rows) == limit


async def test_a_definition_without_instances_has_none(store, env):
    page = await store.instance_index.list_instances(env, NUMBER, None, 10)
    assert (0, [], None, None) == (page.count, page.rows, page.first, page.last)
    assert 0 == await store.instance_index.count_instances(env, NUMBER)


@pytest.mark.parametrize("limit", [1, 7, 60, 100])
async def test_every_instance_is_walked_once_forward_and_backward(store, env, index, limit):
    iids = drawn(60)
    iids += [bytes(16), b"\xff" * 16, b"\x00\x3f" + b"\xff" * 14, b"\x00\x40" + bytes(14)]
    await index(iids)
    expected = in_order(env, iids)
    assert expected == await walked(store, env, limit)
    assert expected == await walked(store, env, limit, backward=True)
    assert len(iids) == await store.instance_index.count_instances(env, NUMBER)


async def test_next_then_previous_is_the_same_page(store, env, index):
    await index(drawn(40))
    first = await store.instance_index.list_instances(env, NUMBER, None, 7)
    second = await store.instance_index.list_instances(env, NUMBER, first.last, 7)
    again = await store.instance_index.list_instances(env, NUMBER, second.first, 7)
    assert (first.rows, None, 40) == (again.rows, again.first, again.count)
    assert again.last == first.last
    assert second.rows == in_order(env, drawn(40))[7:14]


async def test_a_position_whose_instance_is_gone_is_still_one(store, env, index):
    iids = in_order(env, drawn(30))
    await index(iids)
    page = await store.instance_index.list_instances(env, NUMBER, None, 10)
    for gone in iids[5:15]:
        key = keys.instance_index(env.home(gone), NUMBER, keys.instance_bucket(gone))
        await store.connection.command(key, "ZREM", key, gone)
    assert (
        iids[15:25] == (await store.instance_index.list_instances(env, NUMBER, page.last, 10)).rows
    )


async def test_an_empty_page_keeps_its_position(store, env, index):
    iids = in_order(env, drawn(10))
    await index(iids)
    page = await store.instance_index.list_instances(env, NUMBER, None, 5)
    for gone in iids[5:]:
        key = keys.instance_index(env.home(gone), NUMBER, keys.instance_bucket(gone))
        await store.connection.command(key, "ZREM", key, gone)
    empty = await store.instance_index.list_instances(env, NUMBER, page.last, 5)
    assert ([], None) == (empty.rows, empty.last)
    assert iids[:5] == (await store.instance_index.list_instances(env, NUMBER, empty.first, 5)).rows


async def test_definitions_have_indexes_of_their_own(store, env, index):
    one, two = drawn(10), drawn(10, seed=2)
    await index(one)
    await index(two, number=NUMBER + 1)
    page = await store.instance_index.list_instances(env, NUMBER + 1, None, 50)
    assert (in_order(env, two), 10) == (page.rows, page.count)


@pytest.mark.parametrize(("backing", "partitions"), [("embedded", 1)], indirect=True)
@pytest.mark.parametrize("count", [0, 3, 20_000])
async def test_a_page_and_a_count_hold_nobody_up(backing, store, env, count):
    """Each looks at a fixed number of buckets, however few instances there are."""
    tag = env.partitions[0]
    for iid in drawn(count):
        key = keys.instance_index(tag, NUMBER, keys.instance_bucket(iid))
        backing.ask("ZADD", key, 0, iid)
    declared = [keys.instance_index(tag, NUMBER, 0), keys.none(tag)]
    calls = {"count_instances": [NUMBER, 0], "list_instances": [NUMBER, 0, b"", 100]}
    for name, arguments in calls.items():
        took = []
        for _ in range(20):
            backing.ask("CONFIG", "RESETSTAT")
            await store.connection.call(scripts.load(name), declared, arguments)
            said = backing.about("INFO", "commandstats")
            calls_, usec, *_ = said["cmdstat_evalsha"].split(",")
            took.append(int(usec.partition("=")[2]) / int(calls_.partition("=")[2]))
        # The very first is refused: the server does not know the script yet.
        assert sorted(took)[1] < 2000, (name, sorted(took))
    for bucket in range(keys.INDEX_BUCKETS):
        backing.ask("DEL", keys.instance_index(tag, NUMBER, bucket))
