"""Groups of a profile: pages of many, filtered and not, exact while they change."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from service import ids, store_lookups
from service.errors import Erasing, NotFound
from service.groups import Attribute, GroupChanges, GroupQuery, NewGroup
from service.store_lookups import EVERY
from tests.model import stroll

if TYPE_CHECKING:
    from service.cuts import Cut

on_one_server = pytest.mark.parametrize(("backing", "partitions"), [("embedded", 1)], indirect=True)
RED = GroupQuery(attributes=(("colour", "red"),))
QUERIES = {
    "all": EVERY,
    "reversed": GroupQuery(descending=True),
    "red": RED,
    "red, reversed": GroupQuery(attributes=RED.attributes, descending=True),
    "red, with inactive ones": GroupQuery(attributes=RED.attributes, include_inactive=True),
    "with inactive ones": GroupQuery(include_inactive=True),
    "by name and kind": GroupQuery(name="g", membership_type="static"),
    "by custom id": GroupQuery(custom_id="c3"),
    "of nobody": GroupQuery(custom_id="nobody"),
    "blue and red": GroupQuery(attributes=(("colour", "blue"), ("colour", "red"))),
}

STEPS = [(4, False), (3, False), (5, True), (1, False), (50, False), (6, True), (6, True)]


@pytest.fixture(params=["whole", "in parts"])
def parts(request, monkeypatch):
    """Let the sizes be so small that a few groups are many, or leave them."""
    if request.param == "in parts":
        monkeypatch.setattr(store_lookups, "WHOLE", 5)
        monkeypatch.setattr(store_lookups, "ROWS", 3)
        monkeypatch.setattr(store_lookups, "WHOLE_IN_ROWS", 2)
        monkeypatch.setattr(store_lookups, "PART", 4)
        monkeypatch.setattr(store_lookups, "LOOKED_UP", 7)


def new(number):
    colour = "red" if number % 3 else "blue"
    return NewGroup(
        name="g" if number % 5 else "h",
        custom_id=f"c{number}",
        attributes=(Attribute("colour", colour), Attribute("n", str(number))),
    )


async def in_groups(store, env, count, profile):
    """Make groups with this profile in them: every seventh inactive."""
    groups = await asyncio.gather(
        *(store.groups.create_group(env, new(number)) for number in range(count))
    )
    for group in groups:
        await store.members.add_members(env, group.number, profile + ids.new())
    found = {}
    for number, group in enumerate(groups):
        is_active = bool(number % 7)
        if not is_active:
            away = GroupChanges(is_active=False)
            await store.groups.update_group(env, group.id, away)
        found[group.number] = (number, is_active)
    return found


def matching(made, query):
    """Numbers of the groups that a query is about, in its order."""

    def matches(number, is_active):
        document = new(number)
        pairs = {(each.key, each.value) for each in document.attributes}
        return (
            (is_active or query.include_inactive)
            and query.name in {None, document.name}
            and query.custom_id in {None, document.custom_id}
            and set(query.attributes) <= pairs
        )

    found = [number for number, what in made.items() if matches(*what)]
    return sorted(found, reverse=query.descending)


def reading(store, env, profile, query):
    """What reads a page of the groups of a profile."""
    return lambda cut, size: store.lookups.list_profile_groups(env, profile, cut, size, query=query)


async def test_every_query_gives_its_pages_to_and_fro(store, env, parts):
    profile = ids.new()
    made = await in_groups(store, env, 40, profile)
    for query in QUERIES.values():
        await stroll(
            reading(store, env, profile, query),
            matching(made, query),
            STEPS,
            lambda row: row.group.number,
        )


async def test_rows_that_are_skipped_lie_before_the_page(store, env, parts):
    profile = ids.new()
    made = await in_groups(store, env, 20, profile)
    for query in QUERIES.values():
        expected = matching(made, query)
        for skip in (0, 1, 3, len(expected), 10**9):
            page = await store.lookups.list_profile_groups(
                env, profile, None, 3, query=query, skip=skip
            )
            assert expected[skip : skip + 3] == [row.group.number for row in page.rows]
            if page.rows:
                assert (bool(skip), skip + 3 < len(expected)) == (
                    page.first is not None,
                    page.last is not None,
                )
            assert len(expected) == page.count


async def test_rows_say_since_when_and_how_many(store, env, parts):
    profile = ids.new()
    groups = [await store.groups.create_group(env, new(number)) for number in range(8)]
    for at, group in enumerate(groups):
        await store.members.add_members(env, group.number, profile, now_us=at + 1)
        others = b"".join(ids.new() for _ in range(at))
        await store.members.add_members(env, group.number, others)
    for query in (EVERY, RED):
        page = await store.lookups.list_profile_groups(env, profile, None, 20, query=query)
        expected = [at for at in range(8) if query is EVERY or at % 3]
        assert [(at + 1, at + 1) for at in expected] == [
            (row.joined_at_us, row.members) for row in page.rows
        ]
        page = await store.lookups.list_profile_groups(
            env, profile, None, 20, query=query, counted=False
        )
        assert {None} == {row.members for row in page.rows}


async def test_a_walk_under_change_gives_every_group_that_stays_exactly_once(
    store, second, env, parts
):
    """Others are joined, left, put away, made anew and deleted meanwhile."""
    profile = ids.new()
    staying = [await store.groups.create_group(env, new(3 * n + 1)) for n in range(12)]
    coming = [await store.groups.create_group(env, new(3 * n + 200)) for n in range(8)]
    for group in staying + coming:
        await store.members.add_members(env, group.number, profile)
    done = asyncio.Event()
    rounds = 0

    async def change():
        nonlocal rounds
        while not done.is_set():
            for group in coming[:6]:
                await second.members.remove_members(env, group.number, profile)
                await second.members.add_members(env, group.number, profile)
            for is_active in (False, True):
                changes = GroupChanges(is_active=is_active)
                await second.groups.update_group(env, coming[6].id, changes, include_inactive=True)
            doomed = await second.groups.create_group(env, NewGroup(name="g"))
            await second.members.add_members(env, doomed.number, profile)
            await second.groups.delete_group(env, doomed.id)
            rounds += 1

    changing = asyncio.ensure_future(change())
    kept = {group.number for group in staying}
    while rounds < 2:
        for query in (EVERY, RED, QUERIES["red, reversed"], QUERIES["with inactive ones"]):
            cut: Cut | None = None
            found: list[int] = []
            while True:
                page = await store.lookups.list_profile_groups(
                    env, profile, cut, random.choice((1, 3, 4, 7)), query=query
                )
                found += [row.group.number for row in page.rows]
                cut = page.last
                if cut is None:
                    break
            assert Counter(kept) == Counter(each for each in found if each in kept)
            assert len(found) == len(set(found))
            assert all((a > b) == query.descending for a, b in pairwise(found))
    done.set()
    await changing


async def test_a_group_that_vanishes_between_two_reads_is_neither_row_nor_counted(
    store, env, parts, monkeypatch
):
    profile = ids.new()
    groups = [await store.groups.create_group(env, NewGroup(name="g")) for _ in range(9)]
    for group in groups:
        await store.members.add_members(env, group.number, profile)
    read = store.groups.read_groups

    async def late(*arguments, **options):
        monkeypatch.undo()
        await store.groups.delete_group(env, groups[1].id)
        return await read(*arguments, cached=False)

    monkeypatch.setattr(store.groups, "read_groups", late)
    page = await store.lookups.list_profile_groups(env, profile, None, 3)
    assert ([groups[0].number, groups[2].number], 8) == (
        [row.group.number for row in page.rows],
        page.count,
    )
    page = await store.lookups.list_profile_groups(env, profile, page.last, 3)
    assert [each.number for each in groups[3:6]] == [row.group.number for row in page.rows]


async def test_a_profile_being_erased_is_said_to_be(store, env, parts, monkeypatch):
    profile = ids.new()
    await in_groups(store, env, 9, profile)

    async def nothing(*_):
        pass

    with monkeypatch.context() as patched:
        patched.setattr(store.profiles, "_erase", nothing)
        await store.profiles.erase_profile(env, profile)
    for query in (EVERY, RED):
        with pytest.raises(Erasing):
            await store.lookups.list_profile_groups(env, profile, None, 3, query=query)
    await store.profiles.finish_erasures(env)
    assert 0 == (await store.lookups.list_profile_groups(env, profile, None, 3)).count
    with pytest.raises(NotFound):
        await store.profiles.erase_profile(env, profile)


@on_one_server
@pytest.mark.slow
async def test_somebody_in_thousands_of_groups_has_exact_pages(store, application):
    application = await store.registry.update_application(
        application.client_id, groups_per_profile=10_000
    )
    env, profile = application.production, ids.new()
    made = await in_groups(store, env, 2_500, profile)
    for query in (EVERY, RED, QUERIES["with inactive ones"]):
        await stroll(
            reading(store, env, profile, query),
            matching(made, query),
            [(1000, False), (501, False), (1000, False), (20, True), (1000, True), (1, False)],
            lambda row: row.group.number,
        )
