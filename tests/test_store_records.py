"""What is kept of profiles: made, read, changed, erased, and what two at once come to."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest

from service import attributes, ids, keys, scripts, store_records
from service.attributes import ProfileAttribute, value_of
from service.errors import Conflict, Erasing, Invalid, NotFound, Unwritable
from service.groups import NewGroup
from service.store import Store
from service.store_profiles import Erased
from service.store_records import NewProfile, ProfileChanges
from service.verify import verify
from tests import backings
from tests.test_store_members import script_times_us, slowness

LONG_AGO_US = 1_000_000
FAR_AHEAD_US = 9_000_000_000_000_000
on_servers = pytest.mark.parametrize("backing", ["embedded", "cluster"], indirect=True)


def texts(profile):
    return {each.name: each.text for each in profile.attributes}


def having(**given):
    return {name: value_of(text) for name, text in given.items()}


async def change(store, env, profile_id, *, at_us=None, since_us=None, recorded=False, **changes):
    if "attributes" in changes:
        changes["attributes"] = having(**changes["attributes"])
    return await store.records.update_profile(
        env, profile_id, ProfileChanges(**changes), at_us=at_us, since_us=since_us,
        recorded=recorded,
    )  # fmt: skip


async def raw(store, env, profile_id, kind="attributes"):
    """What is stored of a profile."""
    mixed = env.mixer.mix(profile_id)
    key = keys.of_profile(env.home(mixed), kind, mixed)
    flat = await store.connection.command(key, "HGETALL", key)
    return dict(zip(flat[::2], flat[1::2], strict=True))


async def put(store, env, profile_id, name, held):
    """Store an attribute as the other face would, or a process with another clock."""
    mixed = env.mixer.mix(profile_id)
    key = keys.of_profile(env.home(mixed), "attributes", mixed)
    await store.connection.command(key, "HSET", key, name, held)


async def known_profiles(store, env):
    [count] = await store.members.count_members(env, [0])
    return count


async def test_a_new_profile_is_read_as_it_was_made(store, env):
    before = time.time_ns() // 1000
    made = await store.records.create_profile(
        env,
        NewProfile(nickname="N", custom_id="c", custom_data="{}", attributes=having(b="2", a="")),
    )
    read = await store.records.get_profile(env, made.id)

    assert ("N", "c", "{}", None) == (made.nickname, made.custom_id, made.custom_data, made.mpid)
    assert {"a": "", "b": "2"} == texts(made)
    assert ["a", "b"] == [each.name for each in made.attributes]
    assert before <= made.created_at_us == made.seq <= time.time_ns() // 1000
    assert made == store_records.Profile(
        **{name: getattr(read, name) for name in made.__struct_fields__}
    )
    assert (("customer_id", "c"),) == read.identities
    assert [made.id] == await store.profiles.resolve_identities(
        env, "customer_id", ["c"], create=False
    )
    assert 1 == await known_profiles(store, env)


async def test_a_profile_may_have_nothing_but_its_id(store, env):
    made = [await store.records.create_profile(env, NewProfile()) for _ in range(60)]
    assert 60 == len({each.id for each in made}) == await known_profiles(store, env)
    profile = await store.records.get_profile(env, made[0].id)
    assert (None, None, None, (), (), 0) == (
        profile.nickname,
        profile.custom_id,
        profile.custom_data,
        profile.attributes,
        profile.identities,
        profile.seq,
    )


async def test_a_taken_custom_id_is_a_conflict_and_makes_nothing(store, env):
    [owner] = await store.profiles.resolve_identities(env, "customer_id", ["c"], create=True)
    with pytest.raises(Conflict, match=r"profile with custom_id 'c' already exists\."):
        await store.records.create_profile(env, NewProfile(custom_id="c", nickname="thief"))
    assert 1 == await known_profiles(store, env)
    assert (await store.records.get_profile(env, owner)).nickname is None


@on_servers
async def test_of_many_that_take_one_custom_id_exactly_one_gets_it(store, second, env):
    new = NewProfile(custom_id="c", attributes=having(k="v"))
    made: list[Any] = await asyncio.gather(
        *(each.records.create_profile(env, new) for each in (store, second) * 10),
        return_exceptions=True,
    )
    [winner] = [each for each in made if not isinstance(each, Conflict)]
    assert (await store.records.get_profile(env, winner.id)).custom_id == "c"
    assert 1 == await known_profiles(store, env)


async def test_a_custom_id_that_is_only_reserved_is_settled_first(store, env):
    # Somebody reserved it and died before the profile that should get it was written.
    partition, bucket = env.mixer.place_identity("customer_id", "c", len(env.partitions))
    field = keys.identity_field("customer_id", "c")
    await store.profiles._reserve(
        env, partition, bucket, field, env.mixer.mix(ids.new()), LONG_AGO_US, b""
    )
    made = await store.records.create_profile(env, NewProfile(custom_id="c"))
    assert [made.id] == await store.profiles.resolve_identities(
        env, "customer_id", ["c"], create=False
    )


async def test_making_a_profile_is_safe_to_send_twice(store, env):
    sent = []
    call = store.connection.call

    async def twice(script, *arguments, **options):
        first = await call(script, *arguments, **options)
        sent.append(first == await call(script, *arguments, **options))
        return first

    store.connection.call = twice
    try:
        await store.records.create_profile(env, NewProfile(custom_id="c", attributes=having(k="v")))
    finally:
        del store.connection.call
    assert [True] == sent
    assert 1 == await known_profiles(store, env)


async def test_nobody_is_not_found(store, env):
    with pytest.raises(NotFound):
        await store.records.get_profile(env, ids.new())
    with pytest.raises(NotFound):
        await change(store, env, ids.new(), nickname="N", attributes={"a": "b"})
    assert 0 == await known_profiles(store, env)


async def test_a_profile_with_memberships_alone_is_known_and_gets_a_record(store, env):
    profile_id = ids.new()
    group = await store.groups.create_group(env, NewGroup(name="g"))
    await store.members.add_members(env, group.number, profile_id)
    assert (None, None, ()) == (
        (known := await store.records.get_profile(env, profile_id)).created_at_us,
        known.nickname,
        known.attributes,
    )

    changed = await change(store, env, profile_id, nickname="N")

    assert abs(time.time_ns() // 1000 - changed.created_at_us) < 60_000_000
    await store.members.remove_members(env, group.number, profile_id)
    assert "N" == (await store.records.get_profile(env, profile_id)).nickname


async def test_a_profile_that_only_has_an_identity_is_known(store, env):
    profile_id = ids.new()
    await store.profiles.add_identity(env, profile_id, "email", "e")
    await store.profiles.add_identity(env, profile_id, "customer_id", "c")
    known = await store.records.get_profile(env, profile_id)
    assert ("c", (("customer_id", "c"), ("email", "e"))) == (known.custom_id, known.identities)


async def test_what_is_not_named_stays_and_none_takes_it_away(store, env):
    made = await store.records.create_profile(
        env, NewProfile(nickname="N", custom_data="D", custom_id="c", attributes=having(a="1"))
    )
    assert made == await change(store, env, made.id)
    changed = await change(store, env, made.id, nickname=None)
    assert (None, "D", "c", {"a": "1"}) == (
        changed.nickname,
        changed.custom_data,
        changed.custom_id,
        texts(changed),
    )
    changed = await change(store, env, made.id, custom_data=None, nickname="-")
    assert ("-", None) == (changed.nickname, changed.custom_data)
    changed = await change(store, env, made.id, custom_data="", nickname="=")
    assert ("=", "") == (changed.nickname, changed.custom_data)
    assert {} == texts(await change(store, env, made.id, attributes={}))


@pytest.mark.parametrize("text", ["", "-", "=", "é🙂", "a\r\nb", "{7}:groups", "x" * 8192, "%s%d"])
async def test_any_text_is_kept(store, env, text):
    made = await store.records.create_profile(env, NewProfile(nickname=text, custom_data=text))
    changed = await change(store, env, made.id, nickname=text, attributes={text[:256]: text[:4096]})
    assert (text, text, {text[:256]: text[:4096]}) == (
        changed.nickname,
        changed.custom_data,
        texts(changed),
    )
    if not text:
        # A face refuses a name without characters; the store's own check must see it, too.
        await change(store, env, made.id, attributes={})
        await store.profiles.erase_profile(env, made.id)


async def test_a_list_of_attributes_is_replaced(store, env):
    made = await store.records.create_profile(
        env, NewProfile(attributes=having(stays="1", goes="2", turns="3"))
    )
    wanted = {"stays": "1", "turns": "4", "comes": "5"}
    changed = await change(store, env, made.id, attributes=wanted)
    assert wanted == texts(changed) == texts(await store.records.get_profile(env, made.id))
    times = {each.name: (each.time_us, each.since_us) for each in changed.attributes}
    first = made.created_at_us
    assert (first, first) == times["stays"]
    assert first < times["turns"][0] == times["turns"][1] == times["comes"][0]
    stored = await raw(store, env, made.id)
    assert stored[b"goes"].isdigit()
    assert int(stored[b"goes"]) == times["turns"][0]


async def test_a_change_of_attributes_raises_seq_and_nothing_else_does(store, env):
    made = await store.records.create_profile(env, NewProfile(attributes=having(a="1")))
    for same in ({"nickname": "N"}, {"custom_data": "D"}, {"attributes": {"a": "1"}}):
        assert made.seq == (await change(store, env, made.id, **same)).seq
    last = made.seq
    for other in ({"a": "2"}, {"a": "2", "b": ""}, {"b": ""}, {}):
        before = time.time_ns() // 1000
        changed = await change(store, env, made.id, attributes=other)
        assert changed.seq >= max(last + 1, before)
        last = changed.seq
    assert last == (await change(store, env, made.id, attributes={})).seq


async def test_seq_only_rises_whatever_the_clock_says(store, env):
    made = await store.records.create_profile(env, NewProfile(attributes=having(a="1")))
    mixed = env.mixer.mix(made.id)
    key = keys.of_profile(env.home(mixed), "profile", mixed)
    await store.connection.command(key, "HSET", key, "seq", FAR_AHEAD_US)
    assert FAR_AHEAD_US + 1 == (await change(store, env, made.id, attributes={})).seq


@pytest.mark.parametrize("value", [b"12", b"1.0", b"true", b"null", b'["a\\"\\\\","\xc3\xa9"]'])
async def test_what_is_shown_as_the_same_text_is_left_as_it_is(store, env, value):
    made = await store.records.create_profile(env, NewProfile())
    await put(store, env, made.id, "k", b"20 10 " + value)
    shown = texts(await store.records.get_profile(env, made.id))

    changed = await change(store, env, made.id, attributes=shown | {"other": "x"})
    assert ProfileAttribute("k", value, 20, 10) == changed.attributes[0]

    changed = await change(store, env, made.id, attributes={"k": shown["k"] + "!"})
    assert value_of(shown["k"] + "!") == changed.attributes[0].value


async def test_a_long_list_that_is_shown_can_be_sent_back(store, env):
    made = await store.records.create_profile(env, NewProfile())
    value = b"[" + b",".join([b'"' + b"x" * 512 + b'"'] * 1000) + b"]"
    await put(store, env, made.id, "k", b"20 10 " + value)
    shown = texts(await store.records.get_profile(env, made.id))
    changed = await change(store, env, made.id, attributes=shown)
    assert (ProfileAttribute("k", value, 20, 10),) == changed.attributes


async def test_an_older_time_never_overwrites_a_newer_one(store, env):
    made = await store.records.create_profile(env, NewProfile(attributes=having(a="1", b="2")))
    at = made.created_at_us
    assert (
        made.attributes
        == (await change(store, env, made.id, attributes={"a": "x"}, at_us=at - 1)).attributes
    )
    changed = await change(store, env, made.id, attributes={"a": "1"}, at_us=at + 10)
    assert {"a": "1"} == texts(changed)
    for time_us, expected in ((at + 9, {"a": "1"}), (at + 10, {"a": "1", "b": "3"})):
        wanted = {"a": "1", "b": "3"}
        changed = await change(store, env, made.id, attributes=wanted, at_us=time_us)
        assert expected == texts(changed)


async def test_a_change_without_a_time_comes_after_all_that_is_held(store, env):
    # A process whose clock is ahead wrote before: the list that was sent last is what is there.
    made = await store.records.create_profile(env, NewProfile())
    for name, held in (("a", b'%d 1 "x"'), ("b", b'%d 1 "x"'), ("c", b"%d")):
        await put(store, env, made.id, name, held % FAR_AHEAD_US)
    changed = await change(store, env, made.id, attributes={"a": "1", "c": "2", "d": "3"})
    assert {"a": "1", "c": "2", "d": "3"} == texts(changed)
    times = {each.name: each.time_us for each in changed.attributes}
    assert (FAR_AHEAD_US + 1, FAR_AHEAD_US + 1) == (times["a"], times["c"])
    assert abs(times["d"] - time.time_ns() // 1000) < 60_000_000
    assert b"%d" % (FAR_AHEAD_US + 1) == (await raw(store, env, made.id))[b"b"]


async def test_a_deletion_is_remembered_for_thirty_days(store, env):
    made = await store.records.create_profile(env, NewProfile(attributes=having(a="1", live="2")))
    now = time.time_ns() // 1000
    month = attributes.KEPT_SECONDS * 1_000_000
    await put(store, env, made.id, "old", b"%d" % (now - month - 1_000_000))
    await put(store, env, made.id, "young", b"%d" % (now - month + 60_000_000))
    await put(store, env, made.id, "live", b'%d %d "2"' % (now - 2 * month, now - 2 * month))
    changed = await change(store, env, made.id, attributes={"live": "2"})
    assert {"live": "2"} == texts(changed)
    assert {b"a", b"live", b"young"} == set(await raw(store, env, made.id))


async def test_of_deletions_the_latest_are_remembered(store, env, monkeypatch):
    monkeypatch.setattr(store_records, "DELETIONS", 3)
    made = await store.records.create_profile(env, NewProfile())
    for n in range(6):
        await change(store, env, made.id, attributes={f"n{n}": "x", "always": "y"})
    assert {b"n2", b"n3", b"n4", b"n5", b"always"} == set(await raw(store, env, made.id))


@pytest.mark.parametrize("backing", ["fake", "embedded"], indirect=True)
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {f"n{n}": b'""' for n in range(attributes.MANY + 1)},
            f"at most {attributes.MANY} attributes",
        ),
        ({"k": b'"' + b"x" * attributes.MANY_BYTES + b'"'}, "1,048,576 bytes together"),
    ],
)
async def test_attributes_are_bounded(store, env, given, sentence):
    made = await store.records.create_profile(env, NewProfile())
    with pytest.raises(Invalid, match=sentence):
        await store.records.create_profile(env, NewProfile(attributes=given))
    with pytest.raises(Invalid, match=sentence):
        await store.records.update_profile(env, made.id, ProfileChanges(attributes=given))
    assert (1, made.attributes) == (
        await known_profiles(store, env),
        (await store.records.get_profile(env, made.id)).attributes,
    )


async def test_as_many_attributes_as_there_may_be_are_replaced_at_once(store, env):
    first = {f"a{n}": "1" for n in range(attributes.MANY)}
    made = await store.records.create_profile(env, NewProfile(attributes=having(**first)))
    assert first == texts(made)
    other = {f"b{n}": "1" for n in range(attributes.MANY)}
    assert other == texts(await change(store, env, made.id, attributes=other))
    assert Erased(attributes=attributes.MANY) == await store.profiles.erase_profile(env, made.id)


async def test_a_change_can_ask_for_one_record(store, env):
    made = await store.records.create_profile(env, NewProfile())
    since = made.created_at_us
    assert "N" == (await change(store, env, made.id, nickname="N", since_us=since)).nickname
    assert "O" == (await change(store, env, made.id, nickname="O", recorded=True)).nickname
    for other in (since - 1, since + 1):
        with pytest.raises(NotFound):
            await change(store, env, made.id, nickname="X", since_us=other)
    member = ids.new()
    group = await store.groups.create_group(env, NewGroup(name="g"))
    await store.members.add_members(env, group.number, member)
    with pytest.raises(NotFound):
        await change(store, env, member, nickname="X", recorded=True)
    assert "O" == (await store.records.get_profile(env, made.id)).nickname


async def test_an_identity_can_ask_for_a_known_profile(store, env):
    nobody = ids.new()
    with pytest.raises(NotFound):
        await store.profiles.add_identity(env, nobody, "customer_id", "c", known=True)
    assert 0 == await known_profiles(store, env)
    # What it had reserved is free again at once.
    made = await store.records.create_profile(env, NewProfile())
    await store.profiles.add_identity(env, made.id, "customer_id", "c", known=True)
    assert "c" == (await store.records.get_profile(env, made.id)).custom_id


async def test_erasing_removes_all_of_it_and_counts_what_was_shown(store, env):
    made = await store.records.create_profile(
        env, NewProfile(custom_id="c", nickname="N", attributes=having(a="1", b="2", c="3"))
    )
    await change(store, env, made.id, attributes={"a": "1", "b": "2"})
    group = await store.groups.create_group(env, NewGroup(name="g"))
    await store.members.add_members(env, group.number, made.id)

    erased = await store.profiles.erase_profile(env, made.id)

    assert Erased(memberships=1, attributes=2, identities=1) == erased
    with pytest.raises(NotFound):
        await store.records.get_profile(env, made.id)
    with pytest.raises(NotFound):
        await change(store, env, made.id, attributes={"a": "1"})
    assert ({}, {}) == (
        await raw(store, env, made.id),
        await raw(store, env, made.id, "profile"),
    )
    assert (await store.records.create_profile(env, NewProfile(custom_id="c"))).id != made.id


async def test_whoever_is_being_erased_is_neither_read_nor_changed(store, env):
    made = await store.records.create_profile(env, NewProfile(attributes=having(a="1")))
    mixed = env.mixer.mix(made.id)
    key = keys.key(env.home(mixed), "erasing")
    await store.connection.command(key, "SADD", key, mixed)
    with pytest.raises(Erasing):
        await store.records.get_profile(env, made.id)
    with pytest.raises(Erasing):
        await change(store, env, made.id, attributes={"b": "1"})
    await store.profiles.finish_erasures(env)
    with pytest.raises(NotFound):
        await store.records.get_profile(env, made.id)


@on_servers
async def test_two_lists_at_once_are_never_mixed(store, second, env):
    made = await store.records.create_profile(env, NewProfile())
    for n in range(30):
        lists = [{f"{who}{k}": f"{n}" for k in range(5)} | {"same": who} for who in "ab"]
        done = await asyncio.gather(
            change(store, env, made.id, attributes=lists[0], nickname="a"),
            change(second, env, made.id, attributes=lists[1], nickname="b"),
        )
        assert lists == [texts(each) for each in done]
        held = await store.records.get_profile(env, made.id)
        assert (texts(held), held.nickname) in [(lists[0], "a"), (lists[1], "b")]


@on_servers
async def test_a_change_that_meets_an_erasing_leaves_nothing_behind(store, second, env):
    for n in range(30):
        made = await store.records.create_profile(
            env, NewProfile(custom_id=f"c{n}", attributes=having(a="1"))
        )
        done: list[Any] = await asyncio.gather(
            store.profiles.erase_profile(env, made.id),
            *(
                change(each, env, made.id, attributes={f"k{k}": "v"}, nickname="N")
                for k, each in enumerate((second, store) * 5)
            ),
            return_exceptions=True,
        )
        erased, *changed = done
        assert (1, 1) == (erased.attributes, erased.identities)
        refused = [each for each in changed if isinstance(each, BaseException)]
        assert [] == [each for each in refused if not isinstance(each, Erasing | NotFound)]
        assert ({}, {}) == (
            await raw(store, env, made.id),
            await raw(store, env, made.id, "profile"),
        )
    assert 0 == await known_profiles(store, env)


@contextlib.asynccontextmanager
async def alone(*options):
    """A server of one's own, with an application of one partition."""
    server = backings.embedded(*options)
    try:
        store = await Store.open(server.url)
        try:
            application = await store.registry.create_application("test", partitions=1)
            yield server, store, application.production
            server.ask("CONFIG", "SET", "maxmemory", "0")
            assert [] == (await verify(store)).problems
        finally:
            await store.close()
    finally:
        server.stop()


async def test_a_full_store_can_be_read_and_emptied_and_says_so():
    async with alone() as (server, store, env):
        made = await store.records.create_profile(
            env, NewProfile(custom_id="c", attributes=having(a="1"))
        )
        server.ask("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(Unwritable):
            await store.records.create_profile(env, NewProfile())
        with pytest.raises(Unwritable):
            await change(store, env, made.id, attributes={"a": "2"})
        assert {"a": "1"} == texts(await store.records.get_profile(env, made.id))
        assert Erased(attributes=1, identities=1) == await store.profiles.erase_profile(
            env, made.id
        )


@pytest.mark.alone
async def test_no_script_of_records_holds_the_server_up():
    slow_log = ("--slowlog-log-slower-than", "0", "--slowlog-max-len", "20000")
    async with alone(*slow_log) as (server, store, env):
        few = [f"x{n}" for n in range(attributes.MANY)]
        rounds = []
        for _ in range(6):
            made = await store.records.create_profile(
                env, NewProfile(attributes=dict.fromkeys(few, value_of("v" * 60)))
            )
            for turn in range(3):
                wanted = {f"{turn}{name}": "w" * 60 for name in few}
                await change(store, env, made.id, attributes=wanted)
            await store.records.get_profile(env, made.id)
            slowest: dict[bytes, int] = {}
            for sha, us in script_times_us(server):
                slowest[sha] = max(slowest.get(sha, 0), us)
            rounds.append(slowest)
        # In the first one the server was told the scripts.
        del rounds[0]
        names = ("create_profile", "update_profile", "get_profile")
        shas = {name: scripts.load(name).sha.encode() for name in names}
        taken = {name: min(each[sha] for each in rounds) for name, sha in shas.items()}
        limit = 2_000 * slowness(server)
        assert {} == {name: us for name, us in taken.items() if us > limit}
