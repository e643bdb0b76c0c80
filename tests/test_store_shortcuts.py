"""The shortest way to the store gives what the ordinary one does, on every kind of store."""

from __future__ import annotations

import asyncio

import pytest

from service import ids, keys, scripts
from service.groups import GroupChanges, NewGroup
from service.lane import ReplyError


class Told:
    """Who waits for replies, and notes them."""

    def __init__(self):
        self.replies: asyncio.Queue[object] = asyncio.Queue()

    def done(self):
        return False

    def set_result(self, reply, /):
        self.replies.put_nowait(reply)

    set_exception = set_result

    async def next(self):
        async with asyncio.timeout(10):
            return await self.replies.get()


@pytest.fixture
async def number(store, env):
    made = [await store.groups.create_group(env, NewGroup(name=f"{n}")) for n in range(4)]
    await store.groups.update_group(env, made[2].id, GroupChanges(is_active=False))
    for group in made[:2]:
        await store.members.add_members(env, group.number, ME + OTHER)
    await store.members.add_members(env, made[3].number, ME)
    return made[0].number


ME, OTHER, NOBODY = (bytes([n]) * 16 for n in (1, 2, 3))


async def test_replies_are_those_of_the_scripts(store, env, number):
    told, hot = Told(), store.shortcuts
    for _ in range(2):
        for each, letter in ((ME, b"1"), (OTHER, b"1"), (NOBODY, b"0")):
            assert hot.check_member(env, number, each, told)
            assert letter == await told.next()
        assert hot.check_member(env, number + 2, ME, told)
        assert b"n" == await told.next()
        assert hot.get_member(env, number, ME, told)
        joined_at, nickname, custom_id = await told.next()
        member = await store.members.get_member(env, number, ME)
        assert member.joined_at_us == int(joined_at)
        assert (None, None) == (nickname, custom_id)
        assert hot.get_member(env, number, NOBODY, told)
        assert [None, None, None] == await told.next()
        for each in (ME, OTHER, NOBODY):
            assert hot.read_groups_of(env, each, told)
            names, counts = await told.next()
            page = await store.lookups.list_profile_groups(env, each, None, 100)
            assert {row.group.number for row in page.rows} == set(map(int, names.split()))
            if len(env.partitions) == 1:
                held = dict(zip(map(int, names.split()), map(int, counts.split()), strict=True))
                assert held == {row.group.number: row.members for row in page.rows}


async def test_a_profile_in_many_groups_is_told_of_elsewhere(store, env, number):
    mixed = env.mixer.mix(ME)
    tag = env.home(mixed)
    declared = [keys.key(tag, kind) for kind in ("state", "count", "erasing")]
    script = scripts.load("read_groups_of")
    called = [*declared, keys.none(tag)]
    assert None is await store.connection.call(script, called, [mixed, 2])
    assert None is not await store.connection.call(script, called, [mixed, 3])


async def test_groups_that_were_put_away_are_not_told(store, env):
    """Few states among many groups are read otherwise than as many states as groups."""
    told, one = Told(), ids.new()
    groups = [await store.groups.create_group(env, NewGroup(name="g")) for _ in range(5)]
    for group in groups:
        await store.members.add_members(env, group.number, one)
    for away, group in enumerate(groups, 1):
        await store.groups.update_group(env, group.id, GroupChanges(is_active=False))
        assert store.shortcuts.read_groups_of(env, one, told)
        names, counts = await told.next()
        assert {each.number for each in groups[away:]} == set(map(int, names.split()))
        assert [b"1"] * (5 - away) == counts.split()
        letters = await store.members.check_members(env, [each.number for each in groups], one * 5)
        assert b"n" * away + b"1" * (5 - away) == letters
    back = GroupChanges(is_active=True)
    await store.groups.update_group(env, groups[0].id, back, include_inactive=True)
    assert store.shortcuts.read_groups_of(env, one, told)
    assert [b"%d" % groups[0].number, b"1"] == await told.next()


async def test_who_is_being_erased_is_told_of_elsewhere(store, env, number):
    told, mixed = Told(), env.mixer.mix(ME)
    key = keys.key(env.home(mixed), "erasing")
    await store.connection.command(key, "SADD", key, mixed)
    assert store.shortcuts.read_groups_of(env, ME, told)
    assert None is await told.next()
    assert store.shortcuts.check_member(env, number, ME, told)
    assert b"E" == await told.next()
    await store.connection.command(key, "SREM", key, mixed)


async def test_a_server_that_forgot_the_scripts_is_told_them_again(store, env, number):
    told = Told()
    for _ in range(2):
        assert store.shortcuts.check_member(env, number, ME, told)
        assert b"1" == await told.next()
    for tag in env.partitions:
        await store.connection.command(keys.none(tag), "SCRIPT", "FLUSH")
    assert store.shortcuts.check_member(env, number, ME, told)
    refusal = await told.next()
    assert isinstance(refusal, ReplyError)
    assert str(refusal).startswith("NOSCRIPT")
    store.shortcuts.forgotten()
    for _ in range(2):
        assert store.shortcuts.check_member(env, number, ME, told)
        assert b"1" == await told.next()


async def test_what_is_remembered_of_partitions_is_bounded(store, env, number, monkeypatch):
    monkeypatch.setattr("service.store_shortcuts.BEGINNINGS", 2)
    told = Told()
    for _ in range(2):
        for ask in (store.shortcuts.check_member, store.shortcuts.get_member):
            assert ask(env, number, ME, told)
            await told.next()
        assert store.shortcuts.read_groups_of(env, ME, told)
        await told.next()
    assert len(store.shortcuts._beginnings) <= 2


async def test_without_a_link_nothing_is_asked(store, env, number):
    told = Told()
    link = store.connection.link_to(env.home(env.mixer.mix(ME)))
    link.drop("for the test")
    assert not store.shortcuts.check_member(env, number, ME, told)
    assert told.replies.empty()
    assert [2] == await store.members.count_members(env, [number])
    assert store.shortcuts.check_member(env, number, ME, told)
    assert b"1" == await told.next()


@pytest.mark.parametrize("partitions", [1], ids=["one-partition"])
async def test_a_first_page_is_what_the_list_begins_with(store, env, number):
    told = Told()
    [named] = await store.profiles.resolve_identities(env, "customer_id", ["mine"], create=True)
    for crowd, limit in ((0, 10), (0, 1), (40, 42), (200, 125)):
        await store.members.add_members(env, number, b"".join(ids.new() for _ in range(crowd)))
        assert store.shortcuts.read_first_members(env, number, limit, told)
        count, more, mixed, times, names = await told.next()
        page = await store.members.list_members(env, number, None, limit)
        assert page.count == int(count)
        assert (page.last is not None) == bool(more)
        assert [row.id for row in page.rows] == ids.split(env.mixer.unmix(mixed))
        assert [row.joined_at_us for row in page.rows] == list(map(int, times.split()))
        assert [] == names
    await store.members.add_members(env, number, named)
    while named not in {row.id for row in page.rows}:
        await store.members.remove_members(env, number, b"".join(row.id for row in page.rows))
        page = await store.members.list_members(env, number, None, 125)
    assert store.shortcuts.read_first_members(env, number, 125, told)
    *_, names = await told.next()
    assert [row.custom_id for row in page.rows] == [each and each.decode() for each in names[1::2]]
    assert store.shortcuts.read_first_members(env, number + 2, 10, told)
    assert None is await told.next()
