"""Many changes at once: outcomes in the order of lines, exactly those of one after another."""

from __future__ import annotations

import asyncio
import random
import statistics
from collections import Counter

import pytest

from service import ids, keys, scripts, store_bulk
from service.errors import NotFound, Unavailable, Unwritable
from service.groups import GroupChanges, NewGroup
from service.store import Store
from service.store_bulk import ADD, ADD_RECORDED, CHUNK, REMOVE, Changes
from service.worker import work
from tests import backings
from tests.test_store_members import broken
from tests.test_store_settling import audience, no, unsettled
from tests.test_store_settling import members as within

LONGEST_US = 2_000
"""Server time that one script may take, on a machine as fast as the reference says."""
REFERENCE = "for _ = 1, 1000 do redis.call('ECHO', 'x') end"
REFERENCE_US = 1_000

on_one_server = pytest.mark.parametrize(("backing", "partitions"), [("embedded", 1)], indirect=True)


def some(count):
    return [ids.new() for _ in range(count)]


async def create(store, env, count=1):
    made = [await store.groups.create_group(env, NewGroup(name=f"{n}")) for n in range(count)]
    return [group.number for group in made]


async def change(store, env, lines):
    """Make changes (kind, number, profile), and give their letters."""
    kinds, numbers, profiles = zip(*lines, strict=True)
    changes = Changes.of(list(kinds), list(numbers), b"".join(profiles))
    await store.bulk.change_members(env, changes)
    return bytes(changes.letters)


async def test_every_change_has_its_outcome_in_the_order_given(store, env):
    one, other = await create(store, env, 2)
    a, b = some(2)

    letters = await change(
        store,
        env,
        [
            (ADD, one, a),
            (REMOVE, one, b),
            (ADD, one, a),
            (ADD, other, a),
            (REMOVE, one, a),
            (REMOVE, one, a),
            (ADD, one, a),
            (ADD, one, b),
            (REMOVE, other, a),
        ],
    )

    assert b"+.=+-.++-" == letters
    assert b"1100" == await store.members.check_members(
        env, [one, one, other, other], a + b + a + b
    )


@pytest.mark.parametrize("seed", range(6))
async def test_random_changes_end_as_one_after_another_do(store, application, seed):
    draw = random.Random(seed)
    env = application.production
    numbers = await create(store, env, 4)
    profiles = some(draw.choice([2, 20, 300]))
    held: set[tuple[int, bytes]] = set()
    for _ in range(4):
        lines, expected = [], bytearray()
        for _ in range(draw.choice([1, 50, 1500])):
            number, profile = draw.choice(numbers), draw.choice(profiles)
            if draw.random() < 0.6:
                lines.append((ADD, number, profile))
                expected += b"=" if (number, profile) in held else b"+"
                held.add((number, profile))
            else:
                lines.append((REMOVE, number, profile))
                expected += b"-" if (number, profile) in held else b"."
                held.discard((number, profile))
        assert bytes(expected) == await change(store, env, lines)
    counts = Counter(number for number, _ in held)
    assert [counts[each] for each in numbers] == await store.members.count_members(env, numbers)


async def test_a_group_that_is_not_active_is_told_and_the_others_are_done(store, env):
    active, inactive, deleted = groups = [
        await store.groups.create_group(env, NewGroup(name=f"{n}")) for n in range(3)
    ]
    await store.groups.update_group(env, inactive.id, GroupChanges(is_active=False))
    await store.groups.delete_group(env, deleted.id)
    profiles = some(100)

    lines = [(ADD, group.number, each) for each in profiles for group in groups]
    letters = await change(store, env, lines)

    assert b"+NN" * 100 == letters
    assert [100] == await store.members.count_members(env, [active.number])


async def test_who_moves_at_the_limit_of_groups_is_not_over_it(store, application):
    limited = await store.registry.update_application(application.client_id, groups_per_profile=1)
    env = limited.production
    one, other = await create(store, env, 2)
    profiles = some(30)
    assert {*b"+"} == {*await change(store, env, [(ADD, one, each) for each in profiles])}

    assert {*b"L"} == {*await change(store, env, [(ADD, other, each) for each in profiles])}
    lines = [(kind, n, p) for p in profiles for kind, n in ((REMOVE, one), (ADD, other))]
    assert b"-+" * 30 == await change(store, env, lines)


async def test_only_profiles_with_a_record_are_taken_where_that_is_asked(store, application):
    env = application.production
    [number] = await create(store, env)
    [known] = await store.profiles.resolve_identities(env, "customer_id", ["a"], create=True)
    [unknown] = some(1)

    lines = [(ADD_RECORDED, number, unknown), (ADD_RECORDED, number, known), (ADD, number, unknown)]
    assert b"U++" == await change(store, env, lines)
    closed = await store.registry.update_application(application.client_id, profiles="registered")
    [stranger] = some(1)
    assert b"U" == await change(store, closed.production, [(ADD, number, stranger)])


async def test_a_profile_being_erased_is_told_and_left_alone(store, env):
    one, other = await create(store, env, 2)
    [leaving], [known] = some(1), some(1)
    await change(store, env, [(ADD, one, leaving), (ADD, one, known)])
    mixed = env.mixer.mix(leaving)
    tag = env.home(mixed)
    await store.connection.call(
        scripts.load("begin_erase"),
        [keys.key(tag, "erasing"), keys.of_profile(tag, "profile", mixed), keys.none(tag)],
        [mixed, 1],
    )

    lines = [(ADD, other, leaving), (ADD, other, known), (REMOVE, one, leaving)]
    assert b"E+E" == await change(store, env, lines)
    await store.profiles.finish_erasures(env)


async def test_changes_that_are_done_are_not_made_again(store, env):
    [number] = await create(store, env)
    a, b = some(2)
    changes = Changes.of([ADD, ADD, ADD], [number] * 3, a + b + a)
    changes.letters[0] = store_bulk.ALREADY

    await store.bulk.change_members(env, changes)

    assert b"=++" == bytes(changes.letters)
    await store.bulk.change_members(env, changes)
    assert b"=++" == bytes(changes.letters)


@on_one_server
async def test_what_a_failure_left_is_done_by_the_next_call(store, env, monkeypatch):
    [number] = await create(store, env)
    profiles = some(1000)
    changes = Changes.of([ADD] * 1000, [number] * 1000, b"".join(profiles))
    call, calls = store.connection.call, 0

    async def failing(*arguments, **named):
        nonlocal calls
        calls += 1
        reply = await call(*arguments, **named)
        if calls == 5:
            # The script ran, and its reply was lost.
            message = "gone"
            raise Unavailable(message)
        return reply

    monkeypatch.setattr(store.connection, "call", failing)
    with pytest.raises(Unavailable):
        await store.bulk.change_members(env, changes)
    assert 4 * CHUNK == 1000 - changes.letters.count(0)
    await store.bulk.change_members(env, changes)

    left = 1000 - 4 * CHUNK
    assert 5 + -(-left // CHUNK) == calls
    assert (1000 - CHUNK, CHUNK) == (changes.letters.count(b"+"), changes.letters.count(b"="))
    assert [1000] == await store.members.count_members(env, [number])


@on_one_server
async def test_a_line_that_is_there_twice_does_not_undo_what_came_after_it(store, env, monkeypatch):
    # What became of the second `add` was told only when all went well. After a failure it was made
    # with the rest, behind the removal, and the profile stayed in the group that it had left.
    monkeypatch.setattr(store_bulk, "CHUNK", 1)
    [number] = await create(store, env)
    a, b = some(2)
    kinds = [ADD, ADD, REMOVE, ADD, REMOVE, ADD]
    changes = Changes.of(kinds, [number] * 6, a + a + a + b + b + b)
    call, calls = store.connection.call, 0

    async def failing(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == 5:
            message = "gone"
            raise Unavailable(message)
        return await call(*arguments, **named)

    monkeypatch.setattr(store.connection, "call", failing)
    with pytest.raises(Unavailable):
        await store.bulk.change_members(env, changes)
    assert b"+=-+-\0" == bytes(changes.letters)
    await store.bulk.change_members(env, changes)

    assert b"+=-+-+" == bytes(changes.letters)
    assert b"01" == await store.members.check_members(env, [number] * 2, a + b)


async def test_a_group_may_be_deleted_under_the_changes(store, env):
    group = await store.groups.create_group(env, NewGroup(name="g"))
    profiles = some(3000)

    letters, _ = await asyncio.gather(
        change(store, env, [(ADD, group.number, each) for each in profiles]),
        store.groups.delete_group(env, group.id),
    )

    assert {*letters} <= {*b"+N"}
    with pytest.raises(NotFound):
        await store.members.list_members(env, group.number, None, 10)


async def test_dynamic_groups_have_followed_when_changes_are_made(store, second, env):
    groups = [await store.groups.create_group(env, NewGroup(name=f"{n}")) for n in range(3)]
    one, two, _ = [each.number for each in groups]
    both = {"operator": "AND", "children": [{"group": each.id} for each in groups[:2]]}
    inside = await audience(store, env, both)
    outside = await audience(store, env, no({"group": groups[0].id}))
    people = some(100)

    # The third is in no rule.
    lines = [(ADD, each.number, one) for one in people for each in groups[1:]]
    await change(store, env, lines)
    assert people == await within(second, env, outside, people)
    lines = [(ADD, one, each) for each in people]
    lines += [(REMOVE, two, each) for each in people[:30]]
    lines += [(REMOVE, one, each) for each in people[60:]]
    await change(second, env, lines)

    assert people[30:60] == await within(store, env, inside, people)
    assert people[60:] == await within(store, env, outside, people)
    assert 0 == await unsettled(store, env)


@on_one_server
async def test_ten_thousand_adds_to_a_group_that_a_rule_names_are_followed_in_bounded_steps(
    store, application, env
):
    group = await store.groups.create_group(env, NewGroup(name="g"))
    number = await audience(store, env, {"group": group.id})
    people = some(10_000)
    sizes = []
    call = store.connection.call

    async def measured(script, declared, arguments, **options):
        sizes.append(sum(len(each) for each in arguments if isinstance(each, bytes)))
        assert options["bulk"]
        return await call(script, declared, arguments, **options)

    store.connection.call = measured
    await change(store, env, [(ADD, group.number, each) for each in people])
    store.connection.call = call

    assert people == await within(store, env, number, people)
    assert max(sizes) < 20_000
    assert 0 == await unsettled(store, env)


async def test_what_was_made_and_not_followed_is_followed_when_it_is_asked_for_again(
    store, env, monkeypatch
):
    group = await store.groups.create_group(env, NewGroup(name="g"))
    number = await audience(store, env, {"group": group.id})
    people = some(100)
    changes = Changes.of([ADD] * 100, [group.number] * 100, b"".join(people))
    asked = broken(store, monkeypatch)

    with pytest.raises(Unavailable):
        await store.bulk.change_members(env, changes)
    assert b"+" * 100 == changes.letters
    assert 100 == await unsettled(store, env)
    await store.bulk.change_members(env, changes)
    assert people == await within(store, env, number, people)
    # Neither is anything left to be asked for, nor where a client sends it again.
    await store.bulk.change_members(env, changes)
    await change(store, env, [(ADD, group.number, each) for each in people])
    assert 2 == len(asked)


async def test_lines_sent_again_have_followed_what_broke_off_before(store, env, monkeypatch):
    group = await store.groups.create_group(env, NewGroup(name="g"))
    number = await audience(store, env, {"group": group.id})
    people = some(5)
    for kind, again in ((ADD, b"="), (REMOVE, b".")):
        lines = [(kind, group.number, each) for each in people]
        with monkeypatch.context() as patched:
            broken(store, patched)
            with pytest.raises(Unavailable):
                await change(store, env, lines)
        assert again * 5 == await change(store, env, lines)
        assert (people if kind == ADD else []) == await within(store, env, number, people)


async def test_a_full_store_takes_removals_and_says_that_it_takes_no_adds():
    server = backings.embedded("--maxmemory-policy", "noeviction")
    try:
        store = await Store.open(server.url)
        env = (await store.registry.create_application("test")).production
        one, other = await create(store, env, 2)
        gone = await store.groups.create_group(env, NewGroup(name="gone"))
        profiles = some(120)
        await change(store, env, [(ADD, n, each) for n in (one, other) for each in profiles])
        await store.groups.update_group(env, gone.id, GroupChanges(is_active=False))
        [gid] = [each.id for each in (await store.groups.read_groups(env, [one])).values()]
        inside = await audience(store, env, {"group": gid})
        outside = await audience(store, env, no({"group": gid}))
        await work(store, grace_us=0)
        server.ask("CONFIG", "SET", "maxmemory", "1")

        lines = [(REMOVE, n, each) for each in profiles for n in (one, gone.number)]
        assert b"-N" * 120 == await change(store, env, lines)
        with pytest.raises(Unwritable):
            await change(store, env, [(ADD, one, each) for each in profiles])

        server.ask("CONFIG", "SET", "maxmemory", "0")
        assert [0, 120] == await store.members.count_members(env, [one, other])
        # Who leaves leaves at once, where nobody has to be taken in; who is to be taken in waits.
        assert 120 == await unsettled(store, env)
        await store.settling.settle_unsettled(env, 2**62)
        assert [0, 120] == await store.members.count_members(env, [inside, outside])
        await store.close()
    finally:
        server.stop()


@pytest.mark.alone
@pytest.mark.parametrize("groups", [1, 1000])
async def test_no_script_holds_the_server_up_for_long(groups):
    """The slowest of the scripts of a window, as the median of several windows."""
    server = backings.embedded("--slowlog-log-slower-than", "0", "--slowlog-max-len", "20000")
    try:
        store = await Store.open(server.url)
        env = (await store.registry.create_application("test")).production
        numbers = await create(store, env, groups)
        every = some(20_000)
        for start in range(0, len(every), 5000):
            part = every[start : start + 5000]
            await change(store, env, [(ADD, random.choice(numbers), each) for each in part])
        medians = {}
        for name, kind in (("new", ADD), ("known", ADD), ("leaving", REMOVE)):
            found = []
            for _ in range(5):
                wanted = some(1000) if name == "new" else random.sample(every, 1000)
                server.ask("SLOWLOG", "RESET")
                server.ask("EVAL", REFERENCE, 0)
                slower = max(1, server.ask("SLOWLOG", "GET", 1)[0][2] / REFERENCE_US)
                server.ask("SLOWLOG", "RESET")
                await change(store, env, [(kind, random.choice(numbers), each) for each in wanted])
                sha = scripts.load("change_members").sha.encode()
                times = [
                    us
                    for _, _, us, command, *_ in server.ask("SLOWLOG", "GET", -1)
                    if command[:2] == [b"EVALSHA", sha]
                ]
                assert len(times) >= 1000 / CHUNK
                found.append(statistics.median(times) / slower)
            medians[name] = statistics.median(found)
        print(medians)  # noqa: T201 - `-s` shows the table
        assert {name: us for name, us in medians.items() if us > LONGEST_US} == {}
        await store.close()
    finally:
        server.stop()
