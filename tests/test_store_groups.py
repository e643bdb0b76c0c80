"""Groups in the directory: documents, ids, indexes, and what happens when several change them."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from service import ids, keys
from service.errors import Conflict, NotFound, Unavailable
from service.groups import Attribute, GroupChanges, GroupQuery, NewGroup
from service.store_group_directory import SCAN
from service.store_transfer import TransferStore
from service.worker import work
from tests.model import stroll

on_real_servers = pytest.mark.parametrize("backing", ["embedded", "cluster"], indirect=True)
ODD = ["", "a:b", "a=b", "=", "{7}:groups", "\x00", "ünï 🙂", "1:a", "x" * 255]


async def create(store, env, name="g", **fields):
    return await store.groups.create_group(env, NewGroup(name=name, **fields))


async def listed(store, env, **query):
    page = await store.groups.list_groups(env, GroupQuery(**query), None, 1000)
    assert page.count == len(page.rows)
    return [group.number for group in page.rows]


async def test_a_created_group_is_read_as_it_was_given(store, env):
    made = await create(
        store,
        env,
        description="d",
        custom_id="c",
        attributes=(Attribute("k", "v"), Attribute("k", "v"), Attribute("k", "w")),
    )
    assert made == await store.groups.get_group(env, made.id)


async def test_a_group_is_found_by_its_custom_id(store, env):
    made = await create(store, env, custom_id="c/ü:1")
    assert made == await store.groups.get_group(env, "c/ü:1")


async def test_an_id_comes_before_a_custom_id(store, env):
    one = await create(store, env)
    two = await create(store, env, custom_id=one.id)
    assert one.number == (await store.groups.get_group(env, one.id)).number
    await store.groups.delete_group(env, one.id)
    assert two.number == (await store.groups.get_group(env, one.id)).number


async def test_an_id_is_the_same_in_either_case(store, env):
    made = await create(store, env)
    assert made.number == await store.groups.number_of(env, made.id.upper())


@pytest.mark.parametrize("gid", ["", "nobody", str(uuid.UUID(int=1)), "\x00"])
async def test_a_group_that_is_not_there_is_not_found(store, env, gid):
    with pytest.raises(NotFound):
        await store.groups.get_group(env, gid)


@pytest.mark.parametrize("taken", ["id", "custom_id"])
async def test_a_taken_id_is_a_conflict_and_changes_nothing(store, env, taken):
    value = str(uuid.UUID(int=5))
    await create(store, env, **{taken: value})
    with pytest.raises(Conflict):
        await create(store, env, name="h", **{taken: value})
    assert [] == await listed(store, env, name="h")


async def test_the_custom_id_of_an_inactive_group_stays_taken(store, env):
    await create(store, env, custom_id="c", is_active=False)
    with pytest.raises(Conflict):
        await create(store, env, custom_id="c")


async def test_a_custom_id_is_free_again_when_it_was_given_up(store, env):
    made = await create(store, env, custom_id="c")
    await store.groups.update_group(env, made.id, GroupChanges(custom_id=None))
    other = await create(store, env, custom_id="c")
    assert other.number == (await store.groups.get_group(env, "c")).number


async def test_what_a_change_does_not_name_stays(store, env):
    made = await create(store, env, description="d", attributes=(Attribute("k", "v"),))
    changed = await store.groups.update_group(env, made.id, GroupChanges(name="h"))
    assert ("h", "d", made.attributes) == (
        changed.name,
        changed.description,
        changed.attributes,
    )


async def test_every_change_raises_the_version(store, env):
    made = await create(store, env)
    one = await store.groups.update_group(env, made.id, GroupChanges(name="h"))
    two = await store.groups.update_group(env, made.id, GroupChanges(name="h"))
    assert made.version < one.version < two.version


async def test_a_group_created_inactive_is_inactive_everywhere(store, env):
    made = await create(store, env, is_active=False)
    everywhere = b"".join(ids.new() for _ in range(40))
    letters = await store.members.check_members(env, [made.number] * 40, everywhere)
    assert b"n" * 40 == letters
    with pytest.raises(NotFound):
        await store.groups.get_group(env, made.id)
    assert made == await store.groups.get_group(env, made.id, include_inactive=True)


async def test_changing_an_inactive_group_needs_to_be_asked_for(store, env):
    made = await create(store, env, is_active=False)
    with pytest.raises(NotFound):
        await store.groups.update_group(env, made.id, GroupChanges(is_active=True))
    with pytest.raises(NotFound):
        await store.groups.delete_group(env, made.id)


@pytest.mark.parametrize("key", ODD)
@pytest.mark.parametrize("value", ["v", "a=b"])
async def test_groups_are_found_by_attributes_of_any_text(store, env, key, value):
    made = await create(store, env, name=key or "n", attributes=(Attribute(key, value),))
    await create(store, env, attributes=(Attribute(key + "=" + value, ""),))
    await create(store, env, attributes=(Attribute(key + value, "v"), Attribute("k", key)))
    assert [made.number] == await listed(store, env, attributes=((key, value),))
    assert [made.number] == await listed(store, env, attributes=((key, None),))


async def test_all_conditions_of_a_query_must_match(store, env):
    both = await create(store, env, attributes=(Attribute("a", "1"), Attribute("b", "2")))
    await create(store, env, attributes=(Attribute("a", "1"),))
    await create(store, env, attributes=(Attribute("b", "2"),))
    wanted = (("a", "1"), ("b", None))
    assert [both.number] == await listed(store, env, attributes=wanted)
    assert [] == await listed(store, env, attributes=wanted, name="h")


@pytest.mark.parametrize(("backing", "partitions"), [("embedded", 1)], indirect=True)
async def test_more_conditions_than_a_step_has_entries_match_too(store, env):
    """More of them than a step has entries made steps that looked at nothing: an empty list."""
    names = [f"k{n}" for n in range(SCAN + 1)]
    made = await create(store, env, attributes=tuple(Attribute(each, "v") for each in names))
    wanted = tuple((each, None) for each in names)
    assert [made.number] == await listed(store, env, attributes=wanted)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("include_inactive", [False, True])
@pytest.mark.parametrize("backing", ["embedded", "fake"], indirect=True)
async def test_a_list_of_groups_goes_to_and_fro(store, env, descending, include_inactive):
    made = [await create(store, env, is_active=n % 3 > 0) for n in range(60)]
    query = GroupQuery(descending=descending, include_inactive=include_inactive)
    expected = [each.number for each in made if include_inactive or each.is_active]
    await stroll(
        lambda cut, size: store.groups.list_groups(env, query, cut, size),
        sorted(expected, reverse=descending),
        [(7, False), (20, False), (3, True), (50, True), (50, False), (1, False), (9, True)],
        lambda group: group.number,
    )


@pytest.mark.parametrize("backing", ["embedded"], indirect=True)
async def test_a_group_changed_meanwhile_comes_once_in_a_walk(store, env):
    made = [await create(store, env, is_active=n % 2 > 0) for n in range(50)]
    query, cut, found = GroupQuery(include_inactive=True), None, []
    while True:
        page = await store.groups.list_groups(env, query, cut, 7)
        found += [group.number for group in page.rows]
        for group in made[::5]:
            now = await store.groups.get_group(env, group.id, include_inactive=True)
            await store.groups.update_group(
                env, group.id, GroupChanges(is_active=not now.is_active), include_inactive=True
            )
        cut = page.last
        if cut is None:
            break
    assert [group.number for group in made] == found


@on_real_servers
async def test_of_many_that_create_one_custom_id_exactly_one_does(store, second, env):
    for n in range(10):
        done = await asyncio.gather(
            *(create(each, env, custom_id=f"c{n}") for each in (store, second) * 10),
            return_exceptions=True,
        )
        assert 19 == sum(isinstance(each, Conflict) for each in done)
        [made] = [each for each in done if not isinstance(each, Conflict)]
        assert made == await store.groups.get_group(env, f"c{n}")


@on_real_servers
async def test_changes_of_different_fields_at_once_are_all_made(store, second, env):
    made = await create(store, env)
    for n in range(20):
        await asyncio.gather(
            store.groups.update_group(env, made.id, GroupChanges(name=f"n{n}")),
            second.groups.update_group(env, made.id, GroupChanges(description=f"d{n}")),
            second.groups.update_group(env, made.id, GroupChanges(custom_id=f"c{n}")),
        )
        group = await store.groups.get_group(env, made.id)
        assert (f"n{n}", f"d{n}", f"c{n}") == (group.name, group.description, group.custom_id)


@on_real_servers
async def test_a_change_against_switching_ends_as_the_directory_says(store, second, env):
    made = await create(store, env)
    packed = b"".join(ids.new() for _ in range(20))
    for n in range(30):
        done = await asyncio.gather(
            *(
                each.groups.update_group(
                    env, made.id, GroupChanges(is_active=active), include_inactive=True
                )
                for each, active in ((store, n % 2 > 0), (second, n % 3 > 0), (store, n % 5 > 0))
            ),
            return_exceptions=True,
        )
        assert [] == [each for each in done if isinstance(each, BaseException)]
        group = await store.groups.get_group(env, made.id, include_inactive=True)
        letters = await second.members.check_members(env, [made.number] * 20, packed)
        assert (b"0" if group.is_active else b"n") * 20 == letters


class Late:
    """A step that stops before it is taken, until it is let go."""

    def __init__(self, groups, step):
        self.reached, self.go = asyncio.Event(), asyncio.Event()
        self._step = getattr(groups, step)

    async def __call__(self, *args):
        self.reached.set()
        await self.go.wait()
        return await self._step(*args)


async def switch(store, env, group, *, is_active):
    changes = GroupChanges(is_active=is_active)
    await store.groups.update_group(env, group.id, changes, include_inactive=True)


@on_real_servers
async def test_a_state_that_comes_late_does_not_undo_a_newer_one(store, second, env, monkeypatch):
    made = await create(store, env)
    late = Late(store.groups, "install_state")
    monkeypatch.setattr(store.groups, "install_state", late)
    switching = asyncio.create_task(switch(store, env, made, is_active=False))
    await late.reached.wait()
    await switch(second, env, made, is_active=True)
    late.go.set()
    await switching
    packed = b"".join(ids.new() for _ in range(40))
    letters = await store.members.check_members(env, [made.number] * 40, packed)
    assert b"0" * 40 == letters


@on_real_servers
async def test_who_finishes_late_does_not_drop_the_intent_of_another(
    store, second, env, monkeypatch
):
    """The second switch dies before any partition knows of it; its intent is all there is."""
    made = await create(store, env)
    late = Late(store.groups, "finish_intent")
    with monkeypatch.context() as patched:
        patched.setattr(store.groups, "finish_intent", late)
        switching = asyncio.create_task(switch(store, env, made, is_active=False))
        await late.reached.wait()

        async def dies(*args):
            raise Unavailable("gone")

        patched.setattr(second.groups, "install_state", dies)
        with pytest.raises(Unavailable):
            await switch(second, env, made, is_active=True)
        late.go.set()
        await switching
    await work(store, grace_us=0)
    packed = b"".join(ids.new() for _ in range(40))
    letters = await store.members.check_members(env, [made.number] * 40, packed)
    assert b"0" * 40 == letters


@on_real_servers
async def test_a_change_against_deleting_does_not_bring_a_group_back(store, second, env):
    for n in range(20):
        made = await create(store, env, custom_id=f"c{n}")
        await asyncio.gather(
            store.groups.update_group(env, made.id, GroupChanges(is_active=False)),
            second.groups.update_group(env, made.id, GroupChanges(name="h")),
            second.groups.delete_group(env, made.id, include_inactive=True),
            store.groups.update_group(env, made.id, GroupChanges(custom_id=None)),
            return_exceptions=True,
        )
        with pytest.raises(NotFound):
            await store.groups.get_group(env, made.id, include_inactive=True)
        assert b"n" == await store.members.check_members(env, [made.number], ids.new())
    await work(store, grace_us=0)
    assert [] == await listed(store, env, include_inactive=True)


async def forget(store, env, *kinds):
    """Lose keys of the directory, as a failover does that lost its last writes."""
    for kind in kinds:
        key = keys.key(env.directory, kind)
        await store.connection.command(key, "DEL", key)


async def test_a_number_that_the_partitions_know_is_not_given_out_again(store, env):
    """The directory lost all it had in a failover; the partitions kept memberships and states."""
    member, inactive, gone = [
        await create(store, env, is_active=n != 1, custom_id=f"c{n}") for n in range(3)
    ]
    one = ids.new()
    await store.members.add_members(env, member.number, one)
    await store.groups.delete_group(env, gone.id)
    await work(store, grace_us=0)
    documents = [
        await raw(store, env, "HGETALL", keys.group(env.directory, each.number))
        for each in (member, inactive)
    ]
    await forget(store, env, "numbers")
    for each in (member, inactive):
        key = keys.group(env.directory, each.number)
        await store.connection.command(key, "DEL", key)
    made = await create(store, env)
    assert made.number not in {member.number, inactive.number, gone.number}
    assert b"0" == await store.members.check_members(env, [made.number], one)
    for each, document in zip((member, inactive), documents, strict=True):
        await raw(store, env, "HSET", keys.group(env.directory, each.number), *document)


async def test_a_number_under_which_members_were_derived_is_not_given_out_again(store, env):
    """Nobody is left in the group, but its number still says that memberships are no facts."""
    last = (await create(store, env)).number
    noted = keys.key(env.partitions[-1], "dynamic")
    await raw(store, env, "SADD", noted, last + 1)
    assert last + 2 == (await create(store, env)).number
    await raw(store, env, "SADD", noted, last + 4)
    transfer = TransferStore(store.connection, store.groups, store.profiles, store.settling)
    assert [last + 3, last + 5] == await transfer._reserve_numbers(env, 2)
    await raw(store, env, "DEL", noted)


async def raw(store, env, name, key, *parts):
    return await store.connection.command(key, name, key, *parts)


async def test_a_number_that_the_directory_knows_is_not_given_out_again(store, env):
    """Only the counter was lost; the groups have no members that a partition could know of."""
    old = [await create(store, env) for _ in range(3)]
    await forget(store, env, "numbers")
    made = await create(store, env)
    assert made.number not in {each.number for each in old}
    assert [each.number for each in [*old, made]] == await listed(store, env)


async def test_states_that_say_nothing_are_forgotten_after_a_day(store, env):
    kept, away, gone = [await create(store, env) for _ in range(3)]
    for is_active in (False, True):
        changes = GroupChanges(is_active=is_active)
        await store.groups.update_group(env, kept.id, changes, include_inactive=True)
    await store.groups.update_group(env, away.id, GroupChanges(is_active=False))
    await store.groups.delete_group(env, gone.id)
    await work(store, grace_us=0)
    assert 0 == await store.upkeep.purge_states(env, kept.created_at_us)
    assert 2 * len(env.partitions) == await store.upkeep.purge_states(env, 2**62)
    [states] = {
        tuple(await store.connection.command(key, "HKEYS", key))
        for key in (keys.key(tag, "state") for tag in env.partitions)
    }
    assert (b"%d" % away.number,) == states


async def test_groups_with_large_documents_are_all_listed_and_read_in_smaller_steps(
    store, env, monkeypatch
):
    """A hundred and fifty documents of 128 kB were one script of 20 ms."""
    many = tuple(Attribute("k" * 200, f"{n}" + "x" * 1000) for n in range(100))
    made = [await create(store, env, name=f"{n}", attributes=many) for n in range(20)]
    made.append(await create(store, env, name="idle", is_active=False))
    sizes = []
    call = store.connection.call

    async def noted(script, keys_, args, **options):
        reply = await call(script, keys_, args, **options)
        if script.name in ("list_groups", "read_groups"):
            sizes.append(sum(len(each or b"") for each in reply))
        return reply

    monkeypatch.setattr(store.connection, "call", noted)
    for query in (GroupQuery(), GroupQuery(descending=True), GroupQuery(include_inactive=True)):
        page = await store.groups.list_groups(env, query, None, 1000)
        wanted = made if query.include_inactive else made[:-1]
        assert (wanted[::-1] if query.descending else wanted, len(wanted)) == (
            page.rows,
            page.count,
        )
    numbers = [each.number for each in made]
    found = await store.groups.read_groups(env, [*numbers, 10_000], cached=False)
    assert dict(zip(numbers, made, strict=True)) == found
    assert max(sizes) < 1_200_000
    assert len(sizes) >= 12
