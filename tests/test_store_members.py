"""Memberships: outcomes, exact walks under change, sizes, and what each request costs.

What is said of lists in general (to and fro, cuts at the ends) the state machine of
test_invariants.py proves too; here the lists are long and change while they are read.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
from collections import Counter, defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from service import ids, keys, scripts, store_lookups, store_members
from service.cuts import Cut
from service.errors import Conflict, NotFound, Unavailable
from service.groups import Attribute, GroupChanges, GroupQuery, NewGroup
from service.store import Store
from service.worker import work
from tests import backings
from tests.model import stroll
from tests.test_store_settling import audience, held, no, unsettled
from tests.test_store_settling import members as within

if TYPE_CHECKING:
    from service.environment import Environment
    from service.groups import Group

MEMBERS = 20_000
MANY = 200_000
LONGEST_US = 2_000
"""Server time that one script may take at most, for everybody else waits."""
REFERENCE = "for _ = 1, 1000 do redis.call('ECHO', 'x') end"
REFERENCE_US = 1_000
"""What the reference takes where the sizes of scripts were chosen; a slower machine gets more."""

on_real_servers = pytest.mark.parametrize("backing", ["embedded", "cluster"], indirect=True)
on_one_server = pytest.mark.parametrize(("backing", "partitions"), [("embedded", 1)], indirect=True)


@pytest.fixture
async def group(store, env):
    return await store.groups.create_group(env, NewGroup(name="g"))


def some(count):
    return [ids.new() for _ in range(count)]


async def add(store, env, group, wanted):
    for start in range(0, len(wanted), 10_000):
        part = wanted[start : start + 10_000]
        letters = await store.members.add_members(env, group.number, b"".join(part))
        assert b"+" * len(part) == letters


async def everybody(store, env, number, *, backward=False, sizes=(1000,)):
    """The ids of a whole walk, in the order in which they came."""
    end = Cut(backward=True, partition=len(env.partitions) - 1, key=b"\xff" * 16)
    cut: Cut | None = end if backward else None
    found: list[bytes] = []
    while True:
        page = await store.members.list_members(env, number, cut, random.choice(sizes))
        rows = [row.id for row in page.rows]
        found += reversed(rows) if backward else rows
        cut = page.first if backward else page.last
        if cut is None:
            return found


async def keys_of(store):
    found = set()
    async for part in store.connection.scan():
        found |= {parsed.kind for key in part if (parsed := keys.parse(key)) is not None}
    return found


async def test_added_profiles_are_members_and_the_others_are_not(store, env, group):
    member, other = some(2)
    await store.members.add_members(env, group.number, member)
    letters = await store.members.check_members(env, [group.number] * 2, member + other)
    assert b"10" == letters


async def test_adding_answers_for_each_id_in_the_order_given(store, env, group):
    one, two, three = some(3)
    await store.members.add_members(env, group.number, two)
    letters = await store.members.add_members(env, group.number, one + two + one + three)
    assert b"+=++" == letters


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("kinds", ["", "r", "m", "=", "rm", "m=", "r=", "rm="])
async def test_each_of_many_is_answered_for_what_it_is(store, env, group, kinds, recorded):
    """Those who are like the first are looked up together: new, recorded, known, members."""
    other = await store.groups.create_group(env, NewGroup(name="other"))
    people = {kind: some(8) for kind in f"n{kinds}"}
    if "r" in people:
        names = [ids.text(ids.new()) for _ in range(8)]
        people["r"] = await store.profiles.resolve_identities(
            env, "customer_id", names, create=True
        )
    for kind, where in (("m", other), ("=", group)):
        if kind in people:
            await add(store, env, where, people[kind])
    wanted = [(kind, each) for kind, some_of in people.items() for each in some_of]
    random.shuffle(wanted)

    letters = await store.members.add_members(
        env, group.number, b"".join([each for _, each in wanted]), recorded=recorded
    )

    expected = {"n": "+", "r": "+", "m": "+", "=": "="}
    if recorded:
        # Membership alone makes no record.
        expected |= {"n": "U", "m": "U"}
    assert "".join([expected[kind] for kind, _ in wanted]) == letters.decode()


async def test_removing_answers_for_each_id_in_the_order_given(store, env, group):
    one, two, three = some(3)
    await store.members.add_members(env, group.number, one + two)
    letters = await store.members.remove_members(env, group.number, two + three + two + one)
    assert b"-.--" == letters


async def test_who_is_added_again_keeps_the_time_of_joining(store, env, group):
    [one] = some(1)
    await store.members.add_members(env, group.number, one, now_us=1)
    await store.members.add_members(env, group.number, one, now_us=2)
    member = await store.members.get_member(env, group.number, one)
    assert 1 == member.joined_at_us


async def test_a_stranger_is_no_member(store, env, group):
    assert await store.members.get_member(env, group.number, ids.new()) is None


async def test_a_member_shows_its_custom_id(store, env, group):
    [one] = await store.profiles.resolve_identities(env, "customer_id", ["c"], create=True)
    await store.members.add_members(env, group.number, one)
    page = await store.members.list_members(env, group.number, None, 10)
    assert [(one, "c")] == [(row.id, row.custom_id) for row in page.rows]


async def test_a_profile_over_its_limit_of_groups_is_said_to_be(store, application):
    application = await store.registry.update_application(
        application.client_id, groups_per_profile=2
    )
    env = application.production
    one, other = some(2)
    groups = [await store.groups.create_group(env, NewGroup(name="g")) for _ in range(3)]
    for each in groups[:2]:
        await store.members.add_members(env, each.number, one)
    assert b"L+" == await store.members.add_members(env, groups[2].number, one + other)
    assert b"=" == await store.members.add_members(env, groups[1].number, one)


async def test_an_inactive_group_has_no_members_until_it_is_active_again(store, env, group):
    one, two = some(2)
    await store.members.add_members(env, group.number, one)
    await store.groups.update_group(env, group.id, GroupChanges(is_active=False))
    assert b"n" == await store.members.check_members(env, [group.number], one)
    for asked in (
        store.members.add_members(env, group.number, two),
        store.members.remove_members(env, group.number, one),
        store.members.get_member(env, group.number, one),
        store.members.list_members(env, group.number, None, 10),
    ):
        with pytest.raises(NotFound):
            await asked
    assert [] == (await store.lookups.list_profile_groups(env, one, None, 10)).rows
    awake = GroupChanges(is_active=True)
    await store.groups.update_group(env, group.id, awake, include_inactive=True)
    assert [one] == await everybody(store, env, group.number)


@on_real_servers
async def test_ten_thousand_ids_with_repeats_are_one_call(store, env, group):
    wanted = some(5_000)
    packed = b"".join(wanted + wanted)
    assert b"+" * 10_000 == await store.members.add_members(env, group.number, packed)
    assert b"=" * 10_000 == await store.members.add_members(env, group.number, packed)
    letters = await store.members.check_members(env, [group.number] * 10_000, packed)
    assert b"1" * 10_000 == letters
    assert b"-" * 10_000 == await store.members.remove_members(env, group.number, packed)


async def segments_of(store, env, number):
    """How many segments a group has."""
    keys_of_shape = [keys.key(tag, "shape") for tag in env.partitions]
    held = [await store.connection.command(key, "HGET", key, number) for key in keys_of_shape]
    return sum(int(each or 1) for each in held)


@on_real_servers
async def test_a_walk_under_change_gives_everybody_who_stays_exactly_once(
    store, second, env, group
):
    """So many come and go meanwhile that the segments split and merge."""
    staying, coming = some(MEMBERS), some(25_000)
    await add(store, env, group, staying + coming)
    done = asyncio.Event()
    shapes = [await segments_of(store, env, group.number)]

    async def change():
        while not done.is_set():
            for change_members in (second.members.remove_members, second.members.add_members):
                for start in range(0, len(coming), 500):
                    part = b"".join(coming[start : start + 500])
                    await change_members(env, group.number, part)
                shapes.append(await segments_of(second, env, group.number))

    changing = asyncio.ensure_future(change())
    sizes, kept = (1, 19, 200, 250, 251, 1000), set(staying)
    while len(shapes) < 3:
        forward = await everybody(store, env, group.number, sizes=sizes)
        backward = await everybody(store, env, group.number, sizes=sizes, backward=True)
        assert Counter(staying) == Counter(each for each in forward if each in kept)
        assert Counter(staying) == Counter(each for each in backward if each in kept)
        assert len(forward) == len(set(forward))
        order = [each for each in forward if each in kept]
        assert order == [each for each in reversed(backward) if each in kept]
    done.set()
    await changing
    assert shapes[1] < shapes[0]
    assert shapes[1] < shapes[2]


async def test_next_then_previous_is_the_same_page_if_nothing_changed(store, env, group):
    await add(store, env, group, some(300))
    first = await store.members.list_members(env, group.number, None, 70)
    second = await store.members.list_members(env, group.number, first.last, 100)
    again = await store.members.list_members(env, group.number, second.first, 70)
    assert first == again


async def test_the_page_before_is_short_only_at_the_start(store, env, group):
    await add(store, env, group, some(30))
    first = await store.members.list_members(env, group.number, None, 10)
    second = await store.members.list_members(env, group.number, first.last, 10)
    before = await store.members.list_members(env, group.number, second.first, 25)
    assert (first.rows, None) == (before.rows, before.first)


async def test_an_empty_page_has_the_position_that_was_asked_for(store, env, group):
    wanted = some(20)
    await add(store, env, group, wanted)
    first = await store.members.list_members(env, group.number, None, 10)
    shown = {row.id for row in first.rows}
    rest = [each for each in wanted if each not in shown]
    await store.members.remove_members(env, group.number, b"".join(rest))
    empty = await store.members.list_members(env, group.number, first.last, 10)
    assert ([], None) == (empty.rows, empty.last)
    back = await store.members.list_members(env, group.number, empty.first, 10)
    assert first.rows == back.rows
    await store.members.add_members(env, group.number, b"".join(rest))
    on = await store.members.list_members(env, group.number, first.last, 10)
    assert set(rest) == {row.id for row in on.rows}


async def test_a_list_that_was_emptied_has_nothing_on_either_side(store, env, group):
    await add(store, env, group, some(20))
    page = await store.members.list_members(env, group.number, None, 10)
    packed = b"".join(await everybody(store, env, group.number))
    await store.members.remove_members(env, group.number, packed)
    empty = await store.members.list_members(env, group.number, page.last, 10)
    assert (0, [], None, None) == (empty.count, empty.rows, empty.first, empty.last)


@on_one_server
async def test_members_are_found_behind_many_empty_segments(store, env, group):
    """A group of 400,000 was emptied from one end: a page of what was left took one script 30 ms.

    Where a script now stops in between, the next one goes on.
    """
    order = sorted(some(60_000), key=env.mixer.mix)
    await add(store, env, group, order)
    for start in range(0, 45_000, 9_000):
        part = b"".join(order[start : start + 9_000])
        await store.members.remove_members(env, group.number, part)
    await stroll(
        lambda cut, size: store.members.list_members(env, group.number, cut, size),
        order[45_000:],
        [(10, False), (5, False), (15, True), (20, False), (200, False), (1, True)],
        lambda row: row.id,
    )
    behind = Cut(backward=False, key=env.mixer.mix(order[44_999]))
    page = await store.members.list_members(env, group.number, behind, 10)
    assert (order[45_000:45_010], None) == ([row.id for row in page.rows], page.first)
    rest = b"".join(order[45_001:])
    await store.members.remove_members(env, group.number, rest)
    last = await store.members.list_members(env, group.number, None, 1)
    assert ([order[45_000]], None, None) == ([last.rows[0].id], last.first, last.last)


@on_one_server
@pytest.mark.slow
@pytest.mark.parametrize("how", ["removed", "deleted"])
async def test_a_group_of_many_that_is_emptied_leaves_no_key(store, env, group, how):
    wanted = some(MANY)
    await add(store, env, group, wanted)
    assert [MANY] == await store.members.count_members(env, [group.number])
    if how == "removed":
        for start in range(0, MANY, 10_000):
            part = b"".join(wanted[start : start + 10_000])
            await store.members.remove_members(env, group.number, part)
    else:
        await store.groups.delete_group(env, group.id)
        await work(store, grace_us=0)
    kinds = await keys_of(store)
    assert set() == kinds & {"m", "g", "count", "shape", "profile", "deleting", "intents"}


def guesses():
    """Ids that begin alike, and ids that would under a key that somebody guessed."""
    alike = [b"\x00" * 8 + n.to_bytes(8, "big") for n in range(13_000)]
    guessed = ids.split(ids.Mixer(bytes(32)).unmix(b"".join(alike)))
    return {"none": alike, "a guessed key": guessed}


@on_one_server
@pytest.mark.parametrize("guess", guesses())
async def test_ids_made_to_collide_spread_all_the_same(store, env, group, guess):
    await add(store, env, group, guesses()[guess])
    sizes = []
    async for part in store.connection.scan():
        segments = [key for key in part if (keys.parse(key) or [None] * 2)[1] == "g"]
        sizes += [await store.connection.command(key, "ZCARD", key) for key in segments]
    assert sum(sizes) == 26_000
    assert max(sizes) <= 130


@on_real_servers
async def test_delete_against_adding_leaves_nobody_behind(store, second, env):
    for _ in range(10):
        group = await store.groups.create_group(env, NewGroup(name="g"))
        adding = [
            second.members.add_members(env, group.number, b"".join(some(150))) for _ in range(6)
        ]
        deleting = store.groups.delete_group(env, group.id)
        done = await asyncio.gather(*adding[:3], deleting, *adding[3:], return_exceptions=True)
        assert {bytes, NotFound, type(None)} >= {type(each) for each in done}
        await work(store, grace_us=0)
        assert [0] == await store.members.count_members(env, [group.number])
    kinds = await keys_of(store)
    assert set() == kinds & {"m", "g", "count", "shape", "deleting"}


async def test_a_replacement_answers_for_each_id_and_names_who_left(store, env, group):
    staying, coming, going = some(3), some(70), some(120)
    await add(store, env, group, staying + going)
    given = [coming[0], *staying, *coming, staying[0]]
    outcome, removed = await store.members.replace_members(env, group.number, b"".join(given))
    assert b"+===" + b"+" * 70 + b"=" == outcome
    assert sorted(going) == sorted(ids.split(removed))
    assert sorted(staying + coming) == sorted(await everybody(store, env, group.number))
    again = await store.members.replace_members(env, group.number, b"".join(given))
    assert (b"=" * 75, b"") == again
    outcome, removed = await store.members.replace_members(env, group.number, b"")
    assert (b"", set(staying + coming)) == (outcome, set(ids.split(removed)))
    assert [0] == await store.members.count_members(env, [group.number])


async def test_who_stays_in_a_replacement_keeps_the_time_of_joining(store, env, group):
    one, two = some(2)
    await store.members.add_members(env, group.number, one, now_us=1)
    await store.members.replace_members(env, group.number, one + two, now_us=2)
    joined = await store.members.get_members(env, group.number, two + one)
    assert [2, 1] == [member.joined_at_us for member in joined]


@on_real_servers
async def test_members_are_replaced_up_to_ten_thousand_and_not_beyond(store, env, group):
    wanted = some(10_000)
    await store.members.replace_members(env, group.number, b"".join(wanted))
    others = wanted[50:] + some(50)
    outcome, removed = await store.members.replace_members(env, group.number, b"".join(others))
    assert (9_950, 50, set(wanted[:50])) == (
        outcome.count(b"="),
        outcome.count(b"+"),
        set(ids.split(removed)),
    )
    await add(store, env, group, some(1))
    for refused in (
        store.members.replace_members(env, group.number, b""),
        store.members.check_replaceable(env, group.number),
    ):
        with pytest.raises(Conflict, match="10,001 members"):
            await refused
    assert [10_001] == await store.members.count_members(env, [group.number])


async def test_a_group_that_grows_while_it_is_read_is_not_replaced(store, env, group, monkeypatch):
    monkeypatch.setattr(store_members, "REPLACED", 400)
    monkeypatch.setattr(store_members, "LISTED", 10)
    await add(store, env, group, some(350))
    call, grown = store.connection.call, some(300)

    async def slow(script, *arguments, **options):
        reply = await call(script, *arguments, **options)
        if script.name == "list_member_ids" and grown:
            part = b"".join(grown.pop() for _ in range(min(60, len(grown))))
            await store.members.add_members(env, group.number, part)
        return reply

    monkeypatch.setattr(store.connection, "call", slow)
    with pytest.raises(Conflict):
        await store.members.replace_members(env, group.number, b"")
    monkeypatch.undo()
    assert [650 - len(grown)] == await store.members.count_members(env, [group.number])


@on_real_servers
async def test_two_replacements_at_once_never_contradict(store, second, env, group):
    both, one, other, before = some(40), some(150), some(150), some(300)
    for _ in range(6):
        await add(store, env, group, before)
        await asyncio.gather(
            store.members.replace_members(env, group.number, b"".join(both + one)),
            second.members.replace_members(env, group.number, b"".join(other + both)),
        )
        found = set(await everybody(store, env, group.number))
        assert set(both) <= found <= set(both + one + other)
        assert [len(found)] == await store.members.count_members(env, [group.number])
        await store.members.replace_members(env, group.number, b"")


@on_real_servers
async def test_a_replacement_among_other_writers_is_exact_for_whom_they_leave_alone(
    store, second, env, group
):
    staying, leaving, theirs = some(300), some(300), some(400)
    await add(store, env, group, staying + leaving)
    done = asyncio.Event()

    async def change():
        while not done.is_set():
            await second.members.add_members(env, group.number, b"".join(theirs))
            await second.members.remove_members(env, group.number, b"".join(theirs))

    changing = asyncio.ensure_future(change())
    coming = some(100)
    outcome, removed = await store.members.replace_members(
        env, group.number, b"".join(staying + coming)
    )
    done.set()
    await changing
    assert b"=" * 300 + b"+" * 100 == outcome
    assert set(leaving) <= set(ids.split(removed)) <= set(leaving + theirs)
    assert set(staying + coming) == set(await everybody(store, env, group.number))


async def test_a_replacement_of_members_of_no_group_is_refused(store, env, group):
    one, two = some(2)
    await store.members.add_members(env, group.number, one)
    await store.groups.update_group(env, group.id, GroupChanges(is_active=False))
    for wanted in (b"", one, two):
        with pytest.raises(NotFound):
            await store.members.replace_members(env, group.number, wanted)
    awake = GroupChanges(is_active=True)
    await store.groups.update_group(env, group.id, awake, include_inactive=True)
    assert [one] == await everybody(store, env, group.number)
    await store.groups.delete_group(env, group.id)
    with pytest.raises(NotFound):
        await store.members.replace_members(env, group.number, b"")


async def test_profiles_are_found_among_members_in_the_order_of_the_list(store, env, group):
    members, strangers = some(60), some(40)
    await add(store, env, group, members)
    order = await everybody(store, env, group.number)
    wanted = random.sample(members, 30)
    packed = b"".join(random.sample([*wanted, *strangers], 70))
    await stroll(
        lambda cut, size: store.members.find_members(env, group.number, packed, cut, size),
        [each for each in order if each in set(wanted)],
        [(7, False), (3, False), (5, True), (1, False), (50, False), (6, True), (6, True)],
        lambda row: row.id,
    )
    found = await store.members.get_members(env, group.number, packed)
    assert [each if each in set(wanted) else None for each in ids.split(packed)] == [
        member and member.id for member in found
    ]


async def test_members_of_an_inactive_group_are_shown_to_who_asks_for_them(store, env, group):
    wanted = some(30)
    await add(store, env, group, wanted)
    packed, shown = b"".join(wanted), {"include_inactive": True}
    before = await store.members.list_members(env, group.number, None, 20)
    await store.groups.update_group(env, group.id, GroupChanges(is_active=False))
    page = await store.members.list_members(env, group.number, None, 20, **shown)
    assert before == page
    rest = await store.members.list_members(env, group.number, page.last, 20, **shown)
    assert set(wanted) == {row.id for row in page.rows + rest.rows}
    again = await store.members.list_members(env, group.number, rest.first, 20, **shown)
    assert page == again
    found = await store.members.find_members(env, group.number, packed, None, 20, **shown)
    assert page.rows == found.rows
    one = await store.members.get_member(env, group.number, page.rows[3].id, **shown)
    assert page.rows[3] == one
    for refused in (
        store.members.find_members(env, group.number, packed, None, 20),
        store.members.get_members(env, group.number, packed),
    ):
        with pytest.raises(NotFound):
            await refused
    await store.groups.delete_group(env, group.id, include_inactive=True)
    for refused in (
        store.members.list_members(env, group.number, None, 20, **shown),
        store.members.find_members(env, group.number, packed, None, 20, **shown),
        store.members.get_member(env, group.number, wanted[0], **shown),
    ):
        with pytest.raises(NotFound):
            await refused


# What follows in dynamic groups


async def noted(store, env, id16):
    """What changed of a profile that rules have yet to follow."""
    mixed = env.mixer.mix(id16)
    key = keys.of_profile(env.home(mixed), "changed", mixed)
    return set(await store.connection.command(key, "SMEMBERS", key))


def broken(store, monkeypatch, times=1):
    """Let settling fail so many times, as where the store is gone; give how often it was asked."""
    settle, asked = store.settling.settle, []

    async def failing(*args, **kwargs):
        asked.append(args)
        if len(asked) <= times:
            raise Unavailable("gone")
        await settle(*args, **kwargs)

    monkeypatch.setattr(store.settling, "settle", failing)
    return asked


async def test_dynamic_groups_have_followed_when_members_are_written(store, second, env, group):
    other = await store.groups.create_group(env, NewGroup(name="other"))
    inside = await audience(store, env, {"group": group.id})
    outside = await audience(store, env, no({"group": group.id}))
    people = some(120)

    # Of all of them something is known as soon as they are in the other group.
    await store.members.add_members(env, other.number, b"".join(people))
    assert people == await within(second, env, outside, people)
    await second.members.add_members(env, group.number, b"".join(people[:90]))
    assert people[:90] == await within(store, env, inside, people)
    await store.members.remove_members(env, group.number, b"".join(people[60:]))
    assert people[:60] == await within(second, env, inside, people)
    assert people[60:] == await within(second, env, outside, people)
    await store.members.replace_members(env, group.number, b"".join(people[50:70]))
    assert people[50:70] == await within(second, env, inside, people)
    # Of those nothing is known any more, who are in no static group.
    await store.members.remove_members(env, other.number, b"".join(people[:100]))
    assert people[100:] == await within(second, env, outside, people)
    assert 0 == await unsettled(store, env)


async def test_what_changed_is_noted_with_it_and_not_lost(store, env, group, monkeypatch):
    inside = await audience(store, env, {"group": group.id})
    await audience(store, env, no({"group": group.id}))
    one, two = people = some(2)
    broken(store, monkeypatch, 2)

    with pytest.raises(Unavailable):
        await store.members.add_members(env, group.number, one + two, now_us=5)
    names = {keys.named_group(group.number), keys.named_group(0)}
    assert [names, names] == [await noted(store, env, each) for each in people]
    assert b"11" == await store.members.check_members(env, [group.number] * 2, one + two)
    assert 2 == await unsettled(store, env)
    assert 5 == (await store.totals.count(env)).memberships_behind_since_us
    with pytest.raises(Unavailable):
        await store.members.remove_members(env, group.number, two)
    await store.settling.settle_unsettled(env, 2**62)

    assert [one] == await within(store, env, inside, people)
    assert [set(), set()] == [await noted(store, env, each) for each in people]


async def test_repeating_what_broke_off_before_it_was_followed_has_it_followed(
    store, env, group, monkeypatch
):
    inside = await audience(store, env, {"group": group.id})
    people = some(2)
    asked = broken(store, monkeypatch)

    with pytest.raises(Unavailable):
        await store.members.add_members(env, group.number, b"".join(people))
    assert b"==" == await store.members.add_members(env, group.number, b"".join(people))
    assert people == await within(store, env, inside, people)
    asked.clear()
    with pytest.raises(Unavailable):
        await store.members.remove_members(env, group.number, b"".join(people))
    assert b".." == await store.members.remove_members(env, group.number, b"".join(people))
    assert [] == await within(store, env, inside, people)


async def test_members_of_groups_that_no_rule_names_are_nobodys_work(
    store, env, group, monkeypatch
):
    named = await store.groups.create_group(env, NewGroup(name="named"))
    await audience(store, env, {"group": named.id})
    one, two = some(2)
    asked = broken(store, monkeypatch, 99)

    await store.members.add_members(env, group.number, one + two)
    await store.members.replace_members(env, group.number, one)
    await store.members.remove_members(env, group.number, one)
    # Who is none of its members is not taken out of it.
    await store.members.remove_members(env, named.number, one)

    assert [] == asked
    assert 0 == await unsettled(store, env)


async def test_dynamic_groups_count_for_no_limit_and_are_listed_with_the_others(
    store, application, env, monkeypatch
):
    env = (
        await store.registry.update_application(application.client_id, groups_per_profile=2)
    ).production
    groups = [await store.groups.create_group(env, NewGroup(name=f"{n}")) for n in range(3)]
    numbers = [each.number for each in groups]
    wanted = numbers[:2]
    for each in groups[:2]:
        wanted.append(await audience(store, env, {"group": each.id}))
    [one] = some(1)

    for number, letter in zip(numbers, (b"+", b"+", b"L"), strict=True):
        assert letter == await store.members.add_members(env, number, one)
    page = await store.lookups.list_profile_groups(env, one, None, 10)
    assert wanted == [each.group.number for each in page.rows]
    assert 4 == page.count
    # As of a profile in very many groups, whose numbers come first.
    monkeypatch.setattr(store_lookups, "WHOLE", 3)
    assert page == await store.lookups.list_profile_groups(env, one, None, 10)
    assert b"-" == await store.members.remove_members(env, numbers[0], one)
    assert b"+" == await store.members.add_members(env, numbers[2], one)
    assert {b"d": b"1"}.items() <= (await held(store, env, "m", one)).items()
    assert 1 == (await store.totals.count(env)).profiles
    assert 3 == (await store.totals.count(env)).memberships


async def test_the_sweep_of_a_dynamic_group_leaves_what_is_known_of_its_members(store, env, group):
    number = await audience(store, env, {"group": group.id}, "swept")
    await audience(store, env, {"group": group.id})
    people = some(60)
    await store.members.add_members(env, group.number, b"".join(people))
    [gid] = (each.id for each in (await store.groups.read_groups(env, [number])).values())

    await store.groups.delete_group(env, gid)
    await store.upkeep.sweep_groups(env, 2**62)

    assert [60, 60, 0] == await store.members.count_members(env, [0, group.number, number])
    assert [b"1"] * 60 == [(await held(store, env, "m", each))[b"d"] for each in people]
    for tag in env.partitions:
        key = keys.key(tag, "dynamic")
        assert not await store.connection.command(key, "SISMEMBER", key, number)


async def test_who_is_unknown_after_a_sweep_leaves_the_dynamic_groups(store, env, group):
    other = await store.groups.create_group(env, NewGroup(name="other"))
    outside = await audience(store, env, no({"group": other.id}))
    people = some(60)
    await store.members.add_members(env, group.number, b"".join(people))
    await store.members.add_members(env, other.number, b"".join(people[:1]))

    await store.groups.delete_group(env, group.id)
    await store.upkeep.sweep_groups(env, 2**62)
    assert 59 == await unsettled(store, env)
    await store.settling.settle_unsettled(env, 2**62)

    assert [] == await within(store, env, outside, people)
    assert [1] == await store.members.count_members(env, [0])


async def test_a_group_may_be_named_while_it_is_written_and_nobody_is_missed(store, second, env):
    one = await store.groups.create_group(env, NewGroup(name="one"))
    people = some(400)

    async def write():
        for start in range(0, len(people), 20):
            part = b"".join(people[start : start + 20])
            await store.members.add_members(env, one.number, part)

    writing = asyncio.ensure_future(write())
    number = await audience(second, env, {"group": one.id})
    await writing
    await work(second, grace_us=0)

    assert people == await within(store, env, number, people)


async def test_a_full_store_has_members_removed_and_dynamic_groups_follow_as_there_is_room():
    async with alone() as (server, store, env):
        group, other = [await store.groups.create_group(env, NewGroup(name="g")) for _ in range(2)]
        inside = await audience(store, env, {"group": group.id})
        outside = await audience(store, env, no({"group": group.id}))
        one, two = people = some(2)
        for each in (group, other):
            await store.members.add_members(env, each.number, one)
        await store.members.add_members(env, group.number, two)
        server.ask("CONFIG", "SET", "maxmemory", "1")

        assert b"--" == await store.members.remove_members(env, group.number, one + two)

        assert {keys.named_group(group.number)} == await noted(store, env, one)
        server.ask("CONFIG", "SET", "maxmemory", "0")
        await store.settling.settle_unsettled(env, 2**62)
        assert [] == await within(store, env, inside, people)
        assert [one] == await within(store, env, outside, people)


@asynccontextmanager
async def alone(*options):
    """A server of our own, an open store that asks nothing by itself, and an application."""
    server = backings.embedded(*options)
    try:
        store = await Store.open(server.url)
        try:
            env = (await store.registry.create_application("test")).production
            while store.cache.directory(env.directory).version is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            for task in store._tasks:
                task.cancel()
            yield server, store, env
        finally:
            await store.close()
    finally:
        server.stop()


async def test_a_full_store_can_be_read_and_emptied():
    async with alone() as (server, store, env):
        one, two = some(2)
        [named] = await store.profiles.resolve_identities(env, "email", ["e"], create=True)
        groups = [await store.groups.create_group(env, NewGroup(name="g")) for _ in range(2)]
        for group in groups:
            await store.members.add_members(env, group.number, one + two + named)
        server.ask("CONFIG", "SET", "maxmemory", "1")
        number = groups[0].number
        for refused in (
            store.members.add_members(env, number, ids.new()),
            store.profiles.resolve_identities(env, "email", ["f"], create=True),
            store.profiles.add_identity(env, one, "email", "g"),
            store.groups.create_group(env, NewGroup(name="h")),
            store.groups.update_group(env, groups[0].id, GroupChanges(name="h")),
        ):
            with pytest.raises(Unavailable):
                await refused
        assert {one, two, named} == set(await everybody(store, env, number))
        assert b"1" == await store.members.check_members(env, [number], one)
        assert 2 == (await store.lookups.list_profile_groups(env, one, None, 10)).count
        everyone = b"".join([one, two, named])
        assert (b"===", b"") == await store.members.replace_members(env, number, everyone)
        with pytest.raises(Unavailable):
            await store.members.replace_members(env, number, ids.new())
        assert (b"==", one) == await store.members.replace_members(env, number, two + named)
        assert 2 == (await store.profiles.erase_profile(env, named)).memberships
        await store.groups.delete_group(env, groups[1].id)
        assert 1 == await store.upkeep.sweep_groups(env, 2**62)
        assert {two} == set(await everybody(store, env, number))
        server.ask("CONFIG", "SET", "maxmemory", "0")
        assert b"+" == await store.members.add_members(env, number, one)


async def test_counts_of_few_groups_are_a_table_for_as_long_as_there_are_any():
    """As a list they would be looked up from its beginning, each."""
    async with alone("--enable-debug-command", "yes") as (server, store, env):
        [one] = some(1)
        group = await store.groups.create_group(env, NewGroup(name="g"))
        key = keys.key(env.partitions[0], "count")
        for _ in range(2):
            await store.members.add_members(env, group.number, one)
            assert server.ask("OBJECT", "ENCODING", key) == b"hashtable"
            server.ask("DEBUG", "RELOAD")
            assert server.ask("OBJECT", "ENCODING", key) == b"hashtable"
            assert [1] == await store.members.count_members(env, [group.number])
            await store.members.remove_members(env, group.number, one)
            assert 0 == server.ask("EXISTS", key)


def commands_of(server):
    """How many commands a server has run, other than the ones by which it is asked that."""
    said = server.about("INFO commandstats")
    return sum(
        int(value.split(",")[0].removeprefix("calls="))
        for name, value in said.items()
        if name.split("_", 1)[1] not in {"info", "ping"} and "|" not in name
    )


@asynccontextmanager
async def counted(server, store):
    """How many commands and batches leave within the block, as we and as the server count them."""
    stats = store.connection.stats
    before = commands_of(server), stats.commands, stats.batches
    found: dict[str, int] = {}
    yield found
    after = commands_of(server), stats.commands, stats.batches
    run, sent, batches = (b - a for a, b in zip(before, after, strict=True))
    found.update(run=run, sent=sent, batches=batches)


async def warm(server, store, call):
    """Count what calls cost that find everything near-cached.

    What is known of a directory is forgotten when its version is read for the first time and when
    the subscription begins, both of which a busy machine may do late.
    """
    for _ in range(20):
        await call()
        misses = store.cache.misses
        server.ask("CONFIG", "RESETSTAT")
        async with counted(server, store) as found:
            await call()
        if store.cache.misses == misses:
            return found
        await asyncio.sleep(0.1)
    pytest.fail("the near-cache forgets again and again")


async def test_a_warm_lookup_is_one_command():
    """What a script calls inside counts for the server too; EVALSHA is what a round trip is."""
    async with alone() as (server, store, env):
        [one] = some(1)
        groups = [await store.groups.create_group(env, NewGroup(name="g")) for _ in range(3)]
        for group in groups:
            await store.members.add_members(env, group.number, one)
        lookups = {
            "check": lambda: check(store, env, groups[0].id, one),
            "groups of a profile": lambda: store.lookups.list_profile_groups(env, one, None, 20),
        }
        costs = {}
        for name, lookup in lookups.items():
            found = await warm(server, store, lookup)
            calls = server.about("INFO commandstats")["cmdstat_evalsha"].split(",")[0]
            costs[name] = (calls, found["sent"], found["batches"])
        assert dict.fromkeys(lookups, ("calls=1", 1, 1)) == costs


async def check(store, env, gid, profile):
    number = await store.groups.number_of(env, gid)
    return await store.members.check_members(env, [number], profile)


async def test_concurrent_checks_leave_in_a_handful_of_writes():
    async with alone() as (server, store, env):
        group = await store.groups.create_group(env, NewGroup(name="g"))
        wanted = some(100)

        async def checks():
            await asyncio.gather(*(check(store, env, group.id, each) for each in wanted))

        found = await warm(server, store, checks)
        assert 100 == found["sent"]
        assert found["batches"] <= 5


def script_times_us(server):
    """Scripts that ran since the last look (their SHA), and for how long each did, in us."""
    entries = server.ask("SLOWLOG", "GET", -1)
    server.ask("SLOWLOG", "RESET")
    return [(command[1], us) for _, _, us, command, *_ in entries if command[0] == b"EVALSHA"]


def slowness(server):
    """How much slower the machine is just now than the one that the sizes were chosen on."""
    server.ask("EVAL", REFERENCE, 0)
    us = server.ask("SLOWLOG", "GET", 1)[0][2]
    server.ask("SLOWLOG", "RESET")
    return max(1, us / REFERENCE_US)


@dataclass
class Loaded:
    """A store with something in it: a large group, and somebody in a thousand groups."""

    store: Store
    env: Environment
    everyone: list[bytes]
    big: Group
    many: list[Group]
    joiner: bytes
    everywhere: bytes
    listed: list[str]
    named: Group | None = None

    async def create(self):
        return await self.store.groups.create_group(self.env, NewGroup(name="g"))

    async def add(self, number, wanted):
        await self.store.members.add_members(self.env, number, b"".join(wanted))


async def loaded(store, env):
    everyone, [joiner] = some(100_000), some(1)
    listed = [str(n) for n in range(500)]
    new = NewGroup(name="g")
    many = await asyncio.gather(*(store.groups.create_group(env, new) for _ in range(1000)))
    big = await store.groups.create_group(env, new)
    await add(store, env, big, everyone)
    for group in many:
        await store.members.add_members(env, group.number, joiner)
    await store.profiles.resolve_identities(env, "email", listed, create=True)
    everywhere = await in_ten_thousand_groups(store, env)
    return Loaded(store, env, everyone, big, many, joiner, everywhere, listed)


async def in_ten_thousand_groups(store, env):
    """Somebody of whom so much is only said: most of these groups do not exist."""
    one = ids.new()
    mixed = env.mixer.mix(one)
    key = keys.of_profile(env.home(mixed), "m", mixed)
    for start in range(1, 10_000, 1000):
        fields = [part for n in range(start, start + 1000) for part in (n, 1_763_758_800_000_123)]
        await store.connection.command(key, "HSET", key, *fields)
    return one


async def add_to_big(at):
    yield
    await at.add(at.big.number, some(100))


async def add_to_new(at):
    group = await at.create()
    yield
    await at.add(group.number, some(100))


async def add_known_to_new(at):
    group = await at.create()
    yield
    await at.add(group.number, at.everyone[:100])


async def remove(at):
    wanted = at.everyone[-100:]
    del at.everyone[-100:]
    yield
    await at.store.members.remove_members(at.env, at.big.number, b"".join(wanted))


async def named(at):
    """A group that two rules name, one of which is true of nothing."""
    if at.named is None:
        at.named = await at.create()
        await audience(at.store, at.env, {"group": at.named.id})
        await audience(at.store, at.env, no({"group": at.named.id}))
    return at.named


async def add_to_named(at):
    group = await named(at)
    yield
    await at.add(group.number, some(100))


async def remove_from_named(at):
    group = await named(at)
    people = some(100)
    await at.add(group.number, people)
    yield
    await at.store.members.remove_members(at.env, group.number, b"".join(people))


async def check_pairs(at):
    packed = b"".join(random.sample(at.everyone, 1000))
    yield
    await at.store.members.check_members(at.env, [each.number for each in at.many], packed)


async def list_members(at):
    yield
    page = await at.store.members.list_members(at.env, at.big.number, None, 250)
    await at.store.members.list_members(at.env, at.big.number, page.last, 250)


async def list_1000_groups_of_profile(at):
    yield
    await at.store.lookups.list_profile_groups(at.env, at.joiner, None, 1000)


async def list_20_of_1000_groups_of_profile(at):
    yield
    await at.store.lookups.list_profile_groups(at.env, at.joiner, None, 20)


async def list_20_of_10000_groups_of_profile(at):
    yield
    await at.store.lookups.list_profile_groups(at.env, at.everywhere, None, 20)


async def list_1000_of_10000_groups_of_profile(at):
    yield
    await at.store.lookups.list_profile_groups(at.env, at.everywhere, None, 1000)


async def filter_10000_groups_of_profile(at):
    query = GroupQuery(name="g", membership_type="static", include_inactive=True)
    yield
    await at.store.lookups.list_profile_groups(at.env, at.everywhere, None, 20, query=query)


async def filter_1000_groups_of_profile_by_100_conditions(at):
    query = GroupQuery(attributes=tuple((f"k{n}", "v") for n in range(100)), include_inactive=True)
    yield
    await at.store.lookups.list_profile_groups(at.env, at.joiner, None, 20, query=query)


async def find_100_members(at):
    packed = b"".join(at.everyone[:100])
    yield
    await at.store.members.find_members(at.env, at.big.number, packed, None, 100)


async def replace_10000_members(at):
    group = await at.create()
    await at.add(group.number, at.everyone[:10_000])
    wanted = b"".join([*at.everyone[100:10_000], *some(100)])
    yield
    await at.store.members.replace_members(at.env, group.number, wanted)


async def count_1000_groups(at):
    yield
    await at.store.members.count_members(at.env, [each.number for each in at.many])


async def sweep(at):
    group = await at.create()
    await add(at.store, at.env, group, some(1_000))
    await at.store.groups.delete_group(at.env, group.id)
    yield
    await at.store.upkeep.sweep_groups(at.env, 2**62)


async def erase(at):
    identity = ids.text(ids.new())
    [one] = await at.store.profiles.resolve_identities(at.env, "other", [identity], create=True)
    for group in at.many[:100]:
        await at.store.members.add_members(at.env, group.number, one)
    for n in range(20):
        await at.store.profiles.add_identity(at.env, one, "alias", f"{identity} {n}")
    yield
    await at.store.profiles.erase_profile(at.env, one)


async def create_identities(at):
    wanted = [ids.text(ids.new()) for _ in range(100)]
    yield
    await at.store.profiles.resolve_identities(at.env, "customer_id", wanted, create=True)


async def find_500_identities(at):
    yield
    await at.store.profiles.resolve_identities(at.env, "email", at.listed, create=False)


async def list_groups(at):
    yield
    await at.store.groups.list_groups(at.env, GroupQuery(), None, 250)


async def list_groups_by_two_conditions(at):
    query = GroupQuery(name="g", membership_type="static")
    yield
    await at.store.groups.list_groups(at.env, query, None, 250)


async def list_groups_by_two_with_inactive(at):
    query = GroupQuery(name="g", membership_type="static", include_inactive=True)
    yield
    await at.store.groups.list_groups(at.env, query, None, 250)


async def read_1000_documents(at):
    numbers = [each.number for each in at.many]
    yield
    await at.store.groups.read_groups(at.env, numbers, cached=False)


async def update_100_attributes(at):
    for letter in "ab":
        attributes = tuple(Attribute(f"{letter}{n}", "v") for n in range(100))
        changes = GroupChanges(attributes=attributes)
        if letter == "b":
            yield
        await at.store.groups.update_group(at.env, at.big.id, changes)


async def purge(at):
    [state] = [keys.key(tag, "state") for tag in at.env.partitions]
    values = [part for n in range(1000) for part in (10**7 + n, "1 a")]
    await at.store.connection.command(state, "HSET", state, *values)
    yield
    await at.store.upkeep.purge_states(at.env, 2)


LONGER = {
    list_20_of_10000_groups_of_profile,
    list_1000_of_10000_groups_of_profile,
    filter_10000_groups_of_profile,
}
"""The numbers of 10,000 groups (1,000 unless set otherwise) are read at once: twice as long."""
LARGEST = (
    add_to_big,
    add_to_new,
    add_known_to_new,
    remove,
    check_pairs,
    list_members,
    list_1000_groups_of_profile,
    list_20_of_1000_groups_of_profile,
    list_20_of_10000_groups_of_profile,
    list_1000_of_10000_groups_of_profile,
    filter_10000_groups_of_profile,
    filter_1000_groups_of_profile_by_100_conditions,
    find_100_members,
    replace_10000_members,
    count_1000_groups,
    sweep,
    erase,
    create_identities,
    find_500_identities,
    list_groups,
    list_groups_by_two_conditions,
    list_groups_by_two_with_inactive,
    read_1000_documents,
    update_100_attributes,
    purge,
    add_to_named,
    remove_from_named,
)
"""Operations that send their longest script at its largest size, after a first part unmeasured."""


@pytest.mark.alone
async def test_no_script_holds_the_server_up_for_long():
    """Medians of several runs by the server's clock, in terms of how fast it is at the moment.

    `-s` shows the table: the median as it was, and what it comes to.
    """
    async with alone("--slowlog-log-slower-than", "0", "--slowlog-max-len", "20000") as (
        server,
        store,
        env,
    ):
        at = await loaded(store, env)
        longest, table = {}, []
        for operation in LARGEST:
            found: dict[bytes, list[tuple[float, int]]] = defaultdict(list)
            for _ in range(9):
                running = operation(at)
                await anext(running)
                slower = slowness(server)
                await anext(running, None)
                for script, us in script_times_us(server):
                    found[script].append((us / slower, us))
            longest[operation], us = max(map(statistics.median_low, found.values()))
            table.append(f"{operation.__name__:36}{us:8.0f} us  {longest[operation]:8.0f}\n")
    sys.stdout.write("".join(table))
    late = {each for each, us in longest.items() if us > LONGEST_US}
    assert late <= LONGER
    assert max(longest.values()) <= 2 * LONGEST_US


def test_every_script_that_only_removes_may_run_in_a_full_store():
    removing = {"remove_members", "sweep_group", "erase_step", "finish_erase", "delete_group"}
    assert {True} == {"allow-oom" in scripts.load(name).text.split("\n", 1)[0] for name in removing}
