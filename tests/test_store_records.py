"""What is kept of profiles: made, read, changed, erased, and what two at once come to."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import msgspec
import pytest

from service import attributes, ids, keys, scripts, store_records
from service.attributes import ProfileAttribute, value_of
from service.errors import Conflict, Erasing, Invalid, NotFound, Unavailable, Unwritable
from service.grouping import GroupAttribute
from service.groups import NewGroup
from service.store import Store
from service.store_definitions import NewDefinition
from service.store_profiles import Erased
from service.store_records import NewProfile, ProfileChanges
from service.verify import verify
from tests import backings
from tests.test_store_members import noted, script_times_us, slowness
from tests.test_store_settling import audience, no, unsettled
from tests.test_store_settling import members as within

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


async def settle(store, env, *profiles):
    await store.settling.settle(env, [env.mixer.mix(each) for each in profiles])


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


async def test_what_rules_name_of_a_change_is_noted_and_nothing_else(store, env):
    old = await audience(store, env, {"attribute": "age", "condition": "greater_than", "value": 30})
    await audience(store, env, {"attribute": "$City", "condition": "exists"})
    made = await store.records.create_profile(env, NewProfile(attributes=having(age="31", x="1")))
    assert (True, False) == (made.is_unsettled, made.is_behind)
    assert {b"age"} == await noted(store, env, made.id)
    await settle(store, env, made.id)
    assert [made.id] == await within(store, env, old, [made.id])

    for given, names in (
        ({"age": "31", "x": "2"}, set()),
        ({"age": "31", "y": "1"}, set()),
        ({"age": "31", "$CITY": "X"}, {b"$city"}),
        ({"age": "30"}, {b"age", b"$city"}),
        ({}, {b"age"}),
        ({"y": "2"}, set()),
    ):
        changed = await change(store, env, made.id, attributes=given)
        assert names == await noted(store, env, made.id), given
        assert bool(names) == changed.is_unsettled, given
        assert (await change(store, env, made.id, nickname="N")).is_unsettled == bool(names)
        await settle(store, env, made.id)
    assert [] == await within(store, env, old, [made.id])
    assert 0 == await unsettled(store, env)


async def test_who_becomes_known_is_noted_where_a_rule_is_true_of_nothing(store, env):
    plain = await store.records.create_profile(env, NewProfile())
    assert not plain.is_unsettled
    young = await audience(store, env, no({"attribute": "age", "condition": "exists"}))

    made = await store.records.create_profile(env, NewProfile(custom_id="c"))
    assert {keys.named_group(0)} == await noted(store, env, made.id)
    assert not (await change(store, env, plain.id, nickname="N")).is_unsettled
    await settle(store, env, made.id)

    assert [made.id] == await within(store, env, young, [made.id])
    assert 2 == await known_profiles(store, env)


async def test_rules_follow_at_once_where_definitions_follow_on_mondays(store, application, env):
    await define(store, application, ("points", "sum"))
    await store.registry.update_application("test", grouping="weekly")
    await store.definitions.follow_settings("test")
    number = await audience(store, env, {"attribute": "points", "condition": "exists"})

    made = await store.records.create_profile(env, NewProfile(attributes=having(points="1")))

    assert (True, False) == (made.is_unsettled, made.is_behind)
    await settle(store, env, made.id)
    assert [made.id] == await within(store, env, number, [made.id])


async def test_what_contributes_and_turns_a_rule_is_both_and_followed_together(
    store, application, env
):
    await define(store, application, ("points", "sum"))
    many = {"attribute": "household:points", "condition": "greater_than", "value": 5}
    number = await audience(store, env, many)
    own = await audience(store, env, {"attribute": "points", "condition": "exists"})
    given = having(points="3", **{"$address": "1 Main"})

    made = [await store.records.create_profile(env, NewProfile(attributes=given)) for _ in "ab"]

    assert {(True, True)} == {(each.is_unsettled, each.is_behind) for each in made}
    await store.derivation.derive_profiles(env, [env.mixer.mix(each.id) for each in made])
    people = [each.id for each in made]
    assert people == await within(store, env, number, people)
    assert people == await within(store, env, own, people)
    assert 0 == await unsettled(store, env)


async def test_development_has_no_rules_to_follow(store, application, env):
    await audience(store, env, {"attribute": "age", "condition": "exists"})

    made = await store.records.create_profile(
        application.environments["development"], NewProfile(attributes=having(age="1"))
    )

    assert not made.is_unsettled


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


async def test_a_full_store_lets_a_member_of_a_household_be_erased():
    async with alone() as (server, store, env):
        await define(store, await store.registry.application("test"), ("points", "sum"))
        people = []
        for _ in range(3):
            given = having(**{"$address": "1 Main", "points": "1"})
            made = await store.records.create_profile(env, NewProfile(attributes=given))
            people.append(made.id)
        mixed = [env.mixer.mix(each) for each in people]
        await store.derivation.derive_profiles(env, mixed)
        server.ask("CONFIG", "SET", "maxmemory", "1")
        assert Erased(attributes=2, instances=1) == await store.profiles.erase_profile(
            env, people[0]
        )
        for each in people[1:]:
            read = await store.records.get_profile(env, each)
            assert {"household:points": "2"} == read.inherited


@pytest.mark.alone
async def test_no_script_of_records_holds_the_server_up():
    slow_log = ("--slowlog-log-slower-than", "0", "--slowlog-max-len", "20000")
    async with alone(*slow_log) as (server, store, env):
        few = [f"x{n}" for n in range(attributes.MANY)]
        await define(store, await store.registry.application("test"), ("2x199", "latest"))
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
            await store.derivation.derive_profiles(env, [env.mixer.mix(made.id)])
        # In the first one the server was told the scripts.
        del rounds[0]
        names = ("create_profile", "update_profile", "get_profile")
        shas = {name: scripts.load(name).sha.encode() for name in names}
        taken = {name: min(each[sha] for each in rounds) for name, sha in shas.items()}
        limit = 2_000 * slowness(server)
        assert {} == {name: us for name, us in taken.items() if us > limit}


# --- attributes that definitions name


async def define(store, application, *shares, named="household", source="$address"):
    """Create a definition, in force in every partition."""
    new = NewDefinition(
        id=named,
        source_user_attribute=source,
        attributes=tuple(GroupAttribute(name, kind) for name, kind in shares),
    )
    await store.definitions.create_definition(application, new, "test")


async def behind(store, env):
    """The profiles that are noted as behind (mixed ids), in all partitions."""
    found = set()
    for tag in env.partitions:
        key = keys.key(tag, "dirty")
        found |= set(await store.connection.command(key, "ZRANGE", key, 0, -1))
    return found


async def test_reserved_names_are_stored_in_lower_case_whoever_writes_them(store, env):
    made = await store.records.create_profile(
        env, NewProfile(attributes={"$Address": b'"1"', "$age": b'"2"', "$Other": b'"3"'})
    )
    assert {"$address": "1", "$age": "2", "$Other": "3"} == texts(made)
    changes = ProfileChanges(attributes={"$ADDRESS": b'"1"', "Address": b'"4"'})
    changed = await store.records.update_profile(env, made.id, changes)
    assert {"$address": "1", "Address": "4"} == texts(changed)
    assert made.attributes[1].time_us == changed.attributes[0].time_us


async def test_a_name_of_a_definition_is_not_written_and_counted(store, application, env):
    await define(store, application, ("has_dog", "boolean_or"))
    given = having(**{"household:has_dog": "true", "household:x": "y", "own": "1"})
    made = await store.records.create_profile(env, NewProfile(attributes=given))
    assert ({"own": "1"}, 2) == (texts(made), made.dropped)
    changed = await store.records.update_profile(env, made.id, ProfileChanges(attributes=given))
    assert (made.attributes, made.seq, 2) == (changed.attributes, changed.seq, changed.dropped)
    assert {b"own"} == set(await raw(store, env, made.id))


@on_servers
async def test_a_definition_made_by_another_process_reserves_its_names_at_once(
    store, second, application, env
):
    made = await second.records.create_profile(env, NewProfile(attributes=having(own="1")))
    await define(store, application, ("has_dog", "boolean_or"))
    given = having(**{"household:has_dog": "true", "own": "2"})
    changed = await second.records.update_profile(env, made.id, ProfileChanges(attributes=given))
    assert ({"own": "2"}, 1) == (texts(changed), changed.dropped)
    await store.definitions.delete_definition(application, "household")
    other = await second.records.create_profile(env, NewProfile(attributes=given))
    assert ({"household:has_dog": "true", "own": "2"}, 0) == (texts(other), other.dropped)


async def test_rules_that_change_again_and_again_end_as_unavailable(
    store, application, env, monkeypatch
):
    made = await store.records.create_profile(env, NewProfile())
    await define(store, application, ("has_dog", "boolean_or"))
    rules = await store.definitions.rules(env)

    async def behind_again(_env, _seen=0):
        return msgspec.structs.replace(rules, version=1)

    monkeypatch.setattr(store.definitions, "rules", behind_again)
    monkeypatch.setattr(store.definitions, "reload", behind_again)
    with pytest.raises(Unavailable, match="group definitions"):
        await change(store, env, made.id, attributes={"a": "1"})
    with pytest.raises(Unavailable, match="group definitions"):
        await store.records.create_profile(env, NewProfile(attributes=having(a="1")))
    # What names no attributes does not depend on them.
    assert "N" == (await change(store, env, made.id, nickname="N")).nickname
    assert 1 == await known_profiles(store, env)


async def test_what_was_written_before_under_a_name_that_is_reserved_now_is_hidden_while_it_is(
    store, application, env
):
    # It was shown to somebody in no household, as if inherited.
    before = {"household:has_dog": "mine", "household:size": "7", "household": "2", "own": "1"}
    made = await store.records.create_profile(env, NewProfile(attributes=having(**before)))
    assert before == texts(made)
    await define(store, application, ("has_dog", "boolean_or"))
    shown = {"household": "2", "own": "1"}
    assert shown == texts(await store.records.get_profile(env, made.id))

    sent = having(**{"household:has_dog": "other", "household:size": "8", **shown})
    changed = await store.records.update_profile(env, made.id, ProfileChanges(attributes=sent))
    assert (shown, made.seq) == (texts(changed), changed.seq)
    # Who sends back what was read takes nothing away that was not seen.
    assert {"own": "1"} == texts(await change(store, env, made.id, attributes={"own": "1"}))
    await store.definitions.delete_definition(application, "household")
    del before["household"]
    assert before == texts(await store.records.get_profile(env, made.id))


async def test_inherited_names_do_not_count_as_a_profiles_own(store, application, env):
    await store.registry.update_application("test", attributes_per_definition=100)
    application = await store.registry.application("test")
    shares = [(f"s{n}", "latest") for n in range(100)]
    await define(store, application, *shares)
    full = having(**{f"a{n}": "1" for n in range(attributes.MANY)})
    shown = {f"household:s{n}": b'"' + b"x" * 9_000 + b'"' for n in range(100)}
    made = await store.records.create_profile(env, NewProfile(attributes=full | shown))
    assert (attributes.MANY, 100) == (len(made.attributes), made.dropped)
    assert (
        made.attributes
        == (
            await store.records.update_profile(
                env, made.id, ProfileChanges(attributes=full | shown)
            )
        ).attributes
    )
    for one_more in ("b", "household:not-shared"):
        with pytest.raises(Invalid, match=f"at most {attributes.MANY} attributes"):
            await store.records.update_profile(
                env, made.id, ProfileChanges(attributes=full | having(**{one_more: "1"}))
            )


async def test_a_change_of_what_is_watched_notes_that_the_profile_is_behind(
    store, application, env
):
    await define(store, application, ("has_dog", "boolean_or"), source="$Address")
    made = await store.records.create_profile(env, NewProfile(attributes=having(other="1")))
    mixed = env.mixer.mix(made.id)
    assert not made.is_behind
    assert not (await change(store, env, made.id, attributes={"other": "2"})).is_behind
    assert set() == await behind(store, env)

    for wanted in ({"has_dog": "1"}, {"$ADDRESS": "1"}, {}):
        before = time.time_ns() // 1000
        changed = await change(store, env, made.id, attributes=wanted)
        assert changed.is_behind
        assert {mixed} == await behind(store, env)
        key = keys.key(env.home(mixed), "dirty")
        since = float(await store.connection.command(key, "ZSCORE", key, mixed))
        assert before <= since <= time.time_ns() // 1000
        # Since then, however often it is written meanwhile; and whoever repeats it is told so.
        assert (await change(store, env, made.id, attributes=wanted)).is_behind
        assert (await store.records.get_profile(env, made.id)).is_behind
        assert since == float(await store.connection.command(key, "ZSCORE", key, mixed))
        await store.derivation.derive_profiles(env, [mixed])
        assert not (await store.records.get_profile(env, made.id)).is_behind

    born = await store.records.create_profile(env, NewProfile(attributes=having(has_dog="1")))
    assert born.is_behind
    assert {env.mixer.mix(born.id)} == await behind(store, env)
    await store.derivation.derive_profiles(env, [env.mixer.mix(born.id)])


async def test_in_a_weekly_application_nobody_is_behind(store, application, env):
    await store.registry.update_application("test", grouping="weekly")
    await define(store, await store.registry.application("test"), ("has_dog", "boolean_or"))
    made = await store.records.create_profile(env, NewProfile(attributes=having(has_dog="1")))
    assert not made.is_behind
    assert not (await change(store, env, made.id, attributes={"has_dog": "2"})).is_behind


async def test_a_profile_that_gets_its_mpid_is_behind_if_anything_may_follow(
    store, application, env
):
    first = await store.records.create_profile(env, NewProfile(attributes=having(a="1")))
    await store.profiles.add_identity(env, first.id, "mpid", "7")
    read = await store.records.get_profile(env, first.id)
    assert ("7", False) == (read.mpid, read.is_behind)
    assert read.seq > first.seq

    await define(store, application, ("has_dog", "boolean_or"))
    other = await store.records.create_profile(env, NewProfile(attributes=having(a="1")))
    await store.profiles.add_identity(env, other.id, "mpid", "-8")
    await store.profiles.add_identity(env, other.id, "mpid", "-8")
    read = await store.records.get_profile(env, other.id)
    assert ("-8", True) == (read.mpid, read.is_behind)
    await store.derivation.derive_profiles(env, [env.mixer.mix(other.id)])
    with pytest.raises(Conflict):
        await store.profiles.add_identity(env, other.id, "mpid", "9")
    [made] = await store.profiles.resolve_identities(env, "mpid", ["10"], create=True)
    assert "10" == (await store.records.get_profile(env, made)).mpid


@pytest.mark.parametrize("value", ["", "x", "01", "1.0", "9223372036854775808", "-0", "7 "])
@pytest.mark.parametrize("backing", ["fake", "embedded"], indirect=True)
async def test_an_mpid_that_is_none_is_refused(store, env, value):
    made = await store.records.create_profile(env, NewProfile())
    with pytest.raises(Invalid, match="mpid"):
        await store.profiles.add_identity(env, made.id, "mpid", value)
    with pytest.raises(Invalid, match="mpid"):
        await store.profiles.resolve_identities(env, "mpid", ["7", value], create=True)
    found = await store.profiles.resolve_identities(env, "mpid", ["7", value], create=False)
    assert [None, None] == found
