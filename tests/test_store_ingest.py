"""Batches in the store: whose they are, what they write, and what happens to what is in between.

`before` puts something between two scripts of an operation, as another process would do it.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from service import ids, keys, scripts, store_ingest
from service.attributes import DELETIONS, KEPT_SECONDS, MANY, MANY_BYTES, value_of
from service.batches import KINDS, Change, Identity, UserUpdate
from service.errors import Erasing, NotFound, Unavailable, Unwritable
from service.grouping import GroupAttribute
from service.resolution import DUPLICATE, TOO_LARGE, TOO_MANY, WRITTEN
from service.store import Store
from service.store_definitions import NewDefinition
from service.store_records import NewProfile
from service.verify import verify
from service.worker import work
from tests.test_store_members import noted, script_times_us, slowness
from tests.test_store_records import alone, known_profiles, raw, texts
from tests.test_store_settling import audience, no, unsettled
from tests.test_store_settling import members as within

DAY_US = 86_400_000_000
NOW_US = time.time_ns() // 1000
LONG_AGO_US = 1_000_000
ORDER = list(KINDS)
DONE = bytes([WRITTEN])
AGAIN = bytes([DUPLICATE])

both_topologies = pytest.mark.parametrize(
    ("backing", "partitions"), [("embedded", 1), ("cluster", 8)], indirect=True
)
eight_slots = pytest.mark.parametrize(
    ("backing", "partitions"), [("embedded", 8), ("cluster", 8)], indirect=True
)


def user(*deleted, mpid=None, at=None, request=None, named=None, wrote=None, **identities):
    """A batch: `wrote` are texts by name, all of it as of `at` microseconds since 1970."""
    given = sorted((named or identities).items(), key=lambda each: ORDER.index(each[0]))
    found = tuple(Identity(kind, value) for kind, value in given)
    changes = [Change(name, None, at) for name in deleted]
    changes += [Change(name, value_of(text), at) for name, text in (wrote or {}).items()]
    return UserUpdate("production", mpid, found, tuple(changes), request)


async def send(store, env, *updates, now_us=None, credential="key"):
    """Do batches, and what follows; the letters of what became of them."""
    done = await store.ingest.write_batches(env, updates, credential, now_us=now_us)
    await store.derivation.derive_profiles(env, done.dirty)
    return bytes(done.letters)


async def owner(store, env, kind, value):
    [found] = await store.profiles.resolve_identities(env, kind, [value], create=False)
    return found


async def profile_of(store, env, kind, value):
    found = await owner(store, env, kind, value)
    assert found is not None
    return await store.records.get_profile(env, found)


async def has(store, env, kind, value):
    """The attributes of whoever an identity resolves to; None: nobody."""
    found = await owner(store, env, kind, value)
    return None if found is None else texts(await store.records.get_profile(env, found))


def before(store, name, action, times=1):
    """Do something before the next calls of a script, as another process would."""
    call = store.connection.call
    left = [times]

    async def calling(script, *arguments, **options):
        if script.name == name and left[0]:
            left[0] -= 1
            await action()
        return await call(script, *arguments, **options)

    store.connection.call = calling


def elsewhere(env, kind, than):
    """A value of an identity whose slot is not that of another identity, where there is one."""
    count = len(env.partitions)
    home = env.mixer.place_identity(*than, count)[0]
    return next(
        value
        for value in (f"v{n}" for n in range(1000))
        if count == 1 or env.mixer.place_identity(kind, value, count)[0] != home
    )


def same_slot(env, *identities):
    count = len(env.partitions)
    return 1 == len({env.mixer.place_identity(*each, count)[0] for each in identities})


# Whose a batch is


async def test_a_new_user_gets_a_profile_with_an_mpid_and_all_identities(store, env):
    sent = {"customer_id": "c", "email": "e", "mobile_number": "5", "alias": "a", "other2": "o"}
    wrote = {"$address": "1 Main St", "tier": "gold"}
    assert DONE == await send(store, env, user(named=sent, wrote=wrote), now_us=NOW_US)

    profile = await profile_of(store, env, "customer_id", "c")
    assert wrote == texts(profile)
    assert {NOW_US} == {profile.created_at_us, profile.seq} | {
        each.time_us for each in profile.attributes
    }
    assert "c" == profile.custom_id
    mpid = int(profile.mpid)
    assert 0 < mpid < 2**63
    assert sorted([*sent.items(), ("mpid", str(mpid))]) == sorted(profile.identities)
    for kind, value in profile.identities:
        assert profile.id == await owner(store, env, kind, value)
    assert 1 == await known_profiles(store, env)


async def test_a_known_user_is_found_by_any_identity(store, env):
    await send(store, env, user(customer_id="c", email="e", wrote={"a": "1"}))
    mpid = int((await profile_of(store, env, "customer_id", "c")).mpid)
    await send(store, env, user(email="e", wrote={"b": "2"}))
    await send(store, env, user(mpid=mpid, wrote={"c": "3"}))
    await send(store, env, user(customer_id="c", wrote={"d": "4"}))
    assert {"a": "1", "b": "2", "c": "3", "d": "4"} == await has(store, env, "email", "e")
    assert 1 == await known_profiles(store, env)


async def test_identities_of_nobody_become_those_of_the_user(store, env):
    await send(store, env, user(customer_id="c", wrote={"a": "1"}))
    await send(store, env, user(customer_id="c", email="e", yahoo="y"))
    profile = await profile_of(store, env, "yahoo", "y")
    assert {"customer_id", "email", "mpid", "yahoo"} == {kind for kind, _ in profile.identities}
    assert profile.id == await owner(store, env, "email", "e")


async def test_the_first_identity_in_the_order_that_somebody_has_decides(store, env):
    await send(store, env, user(email="e", wrote={"who": "by mail"}))
    await send(store, env, user(mobile_number="5", wrote={"who": "by phone"}))
    both = user(mobile_number="5", email="e", wrote={"x": "1"})
    await send(store, env, both)
    assert {"who": "by phone", "x": "1"} == await has(store, env, "mobile_number", "5")
    assert {"who": "by mail"} == await has(store, env, "email", "e")


async def test_an_identity_of_somebody_else_is_left_to_them(store, env):
    await send(store, env, user(customer_id="one", email="shared", wrote={"a": "1"}))
    await send(store, env, user(customer_id="two", email="shared", wrote={"a": "2"}))
    await send(store, env, user(customer_id="two", email="shared", wrote={"b": "3"}))
    one, two = [await profile_of(store, env, "customer_id", each) for each in ("one", "two")]
    assert ({"a": "1"}, {"a": "2", "b": "3"}) == (texts(one), texts(two))
    assert one.id == await owner(store, env, "email", "shared")
    assert {"customer_id", "mpid"} == {kind for kind, _ in two.identities}
    assert 2 == await known_profiles(store, env)


async def test_a_user_without_customer_id_is_whoever_has_the_mail_and_gets_the_customer_id(
    store, env
):
    await send(store, env, user(email="e", wrote={"a": "1"}))
    await send(store, env, user(customer_id="c", email="e", wrote={"b": "2"}))
    profile = await profile_of(store, env, "customer_id", "c")
    assert ("c", {"a": "1", "b": "2"}) == (profile.custom_id, texts(profile))
    assert 1 == await known_profiles(store, env)


async def test_whoever_has_another_customer_id_is_passed_over_for_the_next(store, env):
    await send(store, env, user(customer_id="other", mobile_number="5"))
    await send(store, env, user(email="e", wrote={"who": "by mail"}))
    await send(store, env, user(customer_id="c", mobile_number="5", email="e"))
    assert {"who": "by mail"} == await has(store, env, "customer_id", "c")
    assert "other" == (await profile_of(store, env, "mobile_number", "5")).custom_id


async def test_an_mpid_wins_over_identities(store, env):
    await send(store, env, user(customer_id="c", email="e"))
    await send(store, env, user(mpid=-5, customer_id="d"))
    await send(store, env, user(mpid=-5, customer_id="c", email="f", wrote={"a": "1"}))
    profile = await profile_of(store, env, "mpid", "-5")
    assert ("-5", "d", {"a": "1"}) == (profile.mpid, profile.custom_id, texts(profile))
    assert profile.id == await owner(store, env, "email", "f")
    assert {} == await has(store, env, "customer_id", "c")


async def test_an_unknown_mpid_makes_a_profile_that_has_it(store, env):
    await send(store, env, user(customer_id="c"))
    await send(store, env, user(mpid=2**63 - 1, customer_id="c", wrote={"a": "1"}))
    await send(store, env, user(mpid=-(2**63), wrote={"a": "2"}))
    assert {"a": "1"} == await has(store, env, "mpid", str(2**63 - 1))
    assert {"a": "2"} == await has(store, env, "mpid", str(-(2**63)))
    profile = await profile_of(store, env, "mpid", str(2**63 - 1))
    assert (("mpid", str(2**63 - 1)),) == profile.identities
    assert {} == await has(store, env, "customer_id", "c")
    assert 3 == await known_profiles(store, env)


async def test_a_second_customer_id_of_a_user_stays_nobodys(store, env):
    await send(store, env, user(mpid=5, customer_id="c"))
    await send(store, env, user(mpid=5, customer_id="d", wrote={"a": "1"}))
    assert await owner(store, env, "customer_id", "d") is None
    assert {"a": "1"} == await has(store, env, "customer_id", "c")


async def test_a_profile_of_the_other_face_is_found_and_gets_an_mpid(store, env):
    made = await store.records.create_profile(
        env, NewProfile(nickname="N", custom_id="c", attributes={"a": b'"1"'})
    )
    assert DONE == await send(store, env, user(customer_id="c", email="e", wrote={"b": "2"}))
    profile = await profile_of(store, env, "email", "e")
    assert (made.id, "N", {"a": "1", "b": "2"}) == (profile.id, profile.nickname, texts(profile))
    assert profile.id == await owner(store, env, "mpid", profile.mpid)
    assert profile.created_at_us == made.created_at_us
    assert profile.seq > made.seq


async def test_an_mpid_that_comes_without_attributes_raises_seq(store, env):
    made = await store.records.create_profile(env, NewProfile(custom_id="c"))
    await send(store, env, user(customer_id="c"))
    profile = await store.records.get_profile(env, made.id)
    assert profile.seq > 0
    await send(store, env, user(customer_id="c"))
    assert profile == await store.records.get_profile(env, made.id)


async def test_environments_know_nothing_of_each_other(store, application):
    for name, env in application.environments.items():
        await send(store, env, user(customer_id="c", wrote={"in": name}))
    for name, env in application.environments.items():
        assert {"in": name} == await has(store, env, "customer_id", "c")
        assert 1 == await known_profiles(store, env)


@pytest.mark.parametrize("value", ["a:b", "{7}:groups", "ünï 🙂", "x" * 255, " ", "%s"])
async def test_any_text_names_a_user(store, env, value):
    named = {"customer_id": value, "email": value, "other10": value}
    await send(store, env, user(named=named, wrote={value: value}))
    for kind in named:
        assert {value: value} == await has(store, env, kind, value)


# What it writes

SET, DROP = "set", None


@pytest.mark.parametrize(
    ("writes", "value", "time_us", "since_us"),
    [
        ([("a", 5)], "a", 5, 5),
        ([("a", 5), ("b", 6)], "b", 6, 6),
        ([("b", 6), ("a", 5)], "b", 6, 6),
        ([("a", 5), ("a", 6)], "a", 6, 5),
        ([("a", 6), ("a", 5)], "a", 6, 6),
        ([("a", 5), ("b", 5)], "b", 5, 5),
        ([("b", 5), ("a", 5)], "a", 5, 5),
        ([("a", 5), (DROP, 6)], None, 6, None),
        ([("a", 5), (DROP, 4)], "a", 5, 5),
        ([("a", 5), (DROP, 5)], None, 5, None),
        ([(DROP, 5), ("a", 5)], "a", 5, 5),
        ([(DROP, 5), ("a", 4)], None, 5, None),
        ([(DROP, 5), ("a", 6)], "a", 6, 6),
        ([("a", 5), (DROP, 6), ("a", 7)], "a", 7, 7),
        ([("a", 5), ("b", 6), ("a", 7)], "a", 7, 7),
        ([(DROP, 5), (DROP, 7), (DROP, 6), ("a", 6)], None, 7, None),
        ([("a", 0)], "a", 0, 0),
        ([("a", 5), ("a", 6), ("a", 5), ("b", 4)], "a", 6, 5),
    ],
)
@pytest.mark.parametrize("together", [False, True], ids=["one by one", "in a bulk"])
async def test_the_latest_write_wins_and_the_same_value_lasts(
    store, env, writes, value, time_us, since_us, together
):
    hour = NOW_US - 3_600_000_000
    updates = [
        user("k", at=hour + at, customer_id="c")
        if text is None
        else user(wrote={"k": text}, at=hour + at, customer_id="c")
        for text, at in writes
    ]
    if together:
        assert DONE * len(updates) == await send(store, env, *updates)
    else:
        for update in updates:
            assert DONE == await send(store, env, update)
    held = (await raw(store, env, await owner(store, env, "customer_id", "c")))[b"k"]
    wanted = [hour + time_us] if value is None else [hour + time_us, hour + since_us, f'"{value}"']
    assert " ".join(map(str, wanted)).encode() == held


async def test_what_has_no_time_comes_after_all_that_is_held(store, env):
    # Whoever wrote through a process whose clock was ahead was not overwritten until then.
    ahead = NOW_US + 60_000_000
    await send(
        store, env, user(customer_id="c", wrote={"a": "1", "b": "1", "c": "1"}), now_us=ahead
    )
    await send(store, env, user("c", customer_id="c", wrote={"a": "2"}), now_us=NOW_US)
    profile = await profile_of(store, env, "customer_id", "c")
    assert {"a": "2", "b": "1"} == texts(profile)
    assert {ahead} == {each.time_us for each in profile.attributes}
    assert profile.seq > ahead
    await send(store, env, user(customer_id="c", at=NOW_US - 1, wrote={"a": "3"}), now_us=NOW_US)
    assert {"a": "2", "b": "1"} == await has(store, env, "customer_id", "c")


async def test_no_time_is_later_than_when_it_was_received(store, env):
    future = NOW_US + DAY_US
    await send(store, env, user(customer_id="c", at=future, wrote={"a": "1"}), now_us=NOW_US)
    [held] = (await profile_of(store, env, "customer_id", "c")).attributes
    assert NOW_US == held.time_us
    await send(store, env, user(customer_id="c", wrote={"a": "2"}), now_us=NOW_US + 1)
    assert {"a": "2"} == await has(store, env, "customer_id", "c")


async def test_seq_rises_with_every_change_and_with_nothing_else(store, env):
    await send(store, env, user(customer_id="c", at=5, wrote={"a": "1"}), now_us=NOW_US)
    seen = []
    for update in (
        user(customer_id="c", at=5, wrote={"a": "1"}),
        user(customer_id="c", at=4, wrote={"a": "2"}),
        user("a", customer_id="c", at=4),
        user(customer_id="c"),
        user(customer_id="c", at=6, wrote={"a": "1"}),
        user(customer_id="c", at=6, wrote={"a": "2"}),
        user("a", customer_id="c", at=6),
    ):
        await send(store, env, update, now_us=LONG_AGO_US)
        seen.append((await profile_of(store, env, "customer_id", "c")).seq - NOW_US)
    assert [0, 0, 0, 0, 1, 2, 3] == seen


async def test_null_and_lists_are_kept_as_they_are(store, env):
    update = UserUpdate(
        "production",
        None,
        (Identity("email", "e"),),
        (Change("tag", b"null", None), Change("list", b'["a","b"]', None)),
        None,
    )
    await send(store, env, update)
    held = {
        each.name: each.value for each in (await profile_of(store, env, "email", "e")).attributes
    }
    assert {"tag": b"null", "list": b'["a","b"]'} == held


async def test_deletions_are_remembered_for_thirty_days_and_the_latest_of_many(store, env):
    start = NOW_US - KEPT_SECONDS * 1_000_000
    for turn in range(4):
        names = [f"k{n}" for n in range(turn * 60, turn * 60 + 60)]
        update = user(*names, customer_id="c", at=start + turn * DAY_US + 1)
        await send(store, env, update, now_us=NOW_US)
    profile_id = await owner(store, env, "customer_id", "c")
    held = await raw(store, env, profile_id)
    assert DELETIONS == len(held)
    assert {f"k{n}".encode() for n in range(60, 240)} <= held.keys()
    await send(store, env, user("x", customer_id="c"), now_us=NOW_US + 2 * DAY_US)
    held = await raw(store, env, profile_id)
    assert {f"k{n}".encode() for n in range(120, 240)} | {b"x"} == held.keys()


async def test_a_user_has_so_many_attributes_and_no_more(store, env):
    first, second = ({f"{n}{k}": "v" for k in range(100)} for n in "ab")
    assert DONE * 2 == await send(
        store, env, user(customer_id="c", wrote=first), user(customer_id="c", wrote=second)
    )
    refused = user(
        customer_id="c", email="e", request="r", wrote={"one more": "x", "a1": "changed"}
    )
    assert bytes([TOO_MANY]) == await send(store, env, refused)
    profile = await profile_of(store, env, "customer_id", "c")
    assert first | second == texts(profile)
    assert await owner(store, env, "email", "e") is None
    # What deletes as many as it sets fits, and what was refused was not remembered as done.
    fits = user("a0", customer_id="c", wrote={"one more": "x"}, request="r")
    assert DONE == await send(store, env, fits)
    assert MANY == len(await has(store, env, "customer_id", "c"))
    assert DONE == await send(store, env, user("a1", "a2", customer_id="c"))
    assert bytes([TOO_MANY]) == await send(store, env, user(customer_id="c", wrote=first))
    assert MANY - 2 == len(await has(store, env, "customer_id", "c"))


async def test_whoever_has_too_much_already_can_still_delete(store, env):
    attributes = {f"k{n}": b'"v"' for n in range(MANY)}
    made = await store.records.create_profile(env, NewProfile(custom_id="c", attributes=attributes))
    mixed = env.mixer.mix(made.id)
    key = keys.of_profile(env.home(mixed), "attributes", mixed)
    await store.connection.command(key, "HSET", key, "over", '5 5 "x"', "more", '5 5 "x"')
    assert DONE == await send(store, env, user("k1", customer_id="c"))
    assert bytes([TOO_MANY]) == await send(
        store, env, user("k2", customer_id="c", wrote={"z": "1", "y": "2"})
    )
    assert MANY + 1 == len(await has(store, env, "customer_id", "c"))


async def test_a_user_has_so_many_bytes_and_no_more(store, env):
    large = {f"k{n:02}": "x" * 4096 for n in range(100)}
    await send(store, env, user(customer_id="c", wrote=large))
    await send(
        store, env, user(customer_id="c", wrote={f"l{n:02}": "y" * 4096 for n in range(100)})
    )
    lists = tuple(
        Change(f"m{n}", b'["' + b'","'.join([b"z" * 500] * 100) + b'"]', None) for n in range(9)
    )
    refused = UserUpdate("production", None, (Identity("customer_id", "c"),), lists, None)
    gone = user(*(f"l{n:02}" for n in range(50)), customer_id="c")
    assert bytes([TOO_MANY]) + DONE == await send(store, env, refused, gone)
    assert bytes([TOO_LARGE]) == await send(store, env, refused)
    profile = await profile_of(store, env, "customer_id", "c")
    assert 150 == len(profile.attributes)
    assert sum(len(each.name) + len(each.value) for each in profile.attributes) < MANY_BYTES


async def test_many_batches_of_a_user_who_has_much_are_all_done(store, env):
    # One call of the script reads only so much: the rest has to be sent again.
    large = {f"k{n:02}": "x" * 4000 for n in range(100)}
    await send(store, env, user(customer_id="c", wrote=large))
    updates = [
        user(customer_id="c", wrote={"turn": str(n), f"t{n % 7}": str(n)}) for n in range(90)
    ]
    assert DONE * 90 == await send(store, env, *updates)
    held = await has(store, env, "customer_id", "c")
    assert "89" == held["turn"]
    assert {f"t{n % 7}": str(n) for n in range(83, 90)} == {
        name: text for name, text in held.items() if name.startswith("t") and name != "turn"
    }


# Once and not again


async def test_a_request_is_done_once(store, env):
    assert DONE == await send(store, env, user(customer_id="c", request="r", wrote={"a": "1"}))
    await send(store, env, user(customer_id="c", wrote={"a": "2"}))
    again = user(customer_id="c", request="r", email="e", wrote={"a": "1", "b": "1"})
    assert AGAIN == await send(store, env, again)
    assert {"a": "2"} == await has(store, env, "customer_id", "c")
    assert await owner(store, env, "email", "e") is None


async def test_requests_are_told_apart_by_credential_and_by_user(store, env):
    def one(name="c"):
        return user(customer_id=name, request="r", wrote={"a": "1"})

    assert DONE + AGAIN + DONE == await send(store, env, one(), one(), one("d"))
    assert DONE + AGAIN == await send(store, env, one(), one(), credential="other")
    assert DONE == await send(store, env, one(), credential="ke")
    assert DONE == await send(store, env, user(customer_id="c", request="yr"), credential="ke")


async def test_requests_are_remembered_for_thirty_days(store, env):
    def one():
        return user(customer_id="c", request="r")

    assert DONE == await send(store, env, one(), now_us=NOW_US)
    later = NOW_US + KEPT_SECONDS * 1_000_000
    assert AGAIN == await send(store, env, one(), now_us=later)
    assert DONE == await send(store, env, one(), now_us=later + 1)
    mixed = env.mixer.mix(await owner(store, env, "customer_id", "c"))
    key = keys.of_profile(env.home(mixed), "requests", mixed)
    assert 1 == await store.connection.command(key, "ZCARD", key)
    assert KEPT_SECONDS - 60 < await store.connection.command(key, "TTL", key) <= KEPT_SECONDS


async def test_the_latest_thousand_requests_of_a_user_are_remembered(store, env, monkeypatch):
    monkeypatch.setattr(store_ingest, "REQUESTS", 20)
    for n in range(22):
        await send(store, env, user(customer_id="c", request=f"r{n}"), now_us=NOW_US + n)
    sent = [user(customer_id="c", request=f"r{n}") for n in range(21, 0, -1)]
    assert AGAIN * 20 + DONE == await send(store, env, *sent, now_us=NOW_US + 50)


@pytest.mark.parametrize("times", [2, 3])
async def test_every_script_is_safe_to_send_again(store, env, times):
    call = store.connection.call

    async def again(script, *arguments, **options):
        for _ in range(times - 1):
            await call(script, *arguments, **options)
        return await call(script, *arguments, **options)

    store.connection.call = again
    updates = [
        user(customer_id=f"c{n}", email=f"e{n}", at=NOW_US - 5, wrote={"a": "1"}, request=f"r{n}")
        for n in range(5)
    ]
    letters = await send(store, env, *updates)
    del store.connection.call
    assert set(letters) <= {WRITTEN, DUPLICATE}
    for n in range(5):
        profile = await profile_of(store, env, "customer_id", f"c{n}")
        assert profile.id == await owner(store, env, "email", f"e{n}")
        assert {"a": "1"} == texts(profile)
    assert 5 == await known_profiles(store, env)


# Many together


async def test_a_bulk_of_a_hundred_users_new_and_known(store, env):
    def everybody(text):
        return [
            user(customer_id=f"c{n}", email=f"e{n}", wrote={"a": text, "n": str(n)})
            for n in range(100)
        ]

    assert DONE * 100 == await send(store, env, *everybody("1"))
    assert DONE * 100 == await send(store, env, *everybody("2"))
    assert 100 == await known_profiles(store, env)
    for n in range(0, 100, 9):
        assert {"a": "2", "n": str(n)} == await has(store, env, "email", f"e{n}")


async def test_batches_of_one_new_user_are_done_in_their_order(store, env):
    updates = [
        user(customer_id="c", wrote={"turn": str(n), f"k{n % 3}": str(n)}) for n in range(100)
    ]
    assert DONE * 100 == await send(store, env, *updates, now_us=NOW_US)
    assert {"turn": "99", "k0": "99", "k1": "97", "k2": "98"} == await has(
        store, env, "customer_id", "c"
    )
    assert 1 == await known_profiles(store, env)


@pytest.mark.parametrize("order", ["abc", "acb", "bac", "bca", "cab", "cba"])
async def test_a_bulk_comes_to_what_its_batches_come_to_one_by_one(store, env, order):
    given = {
        "a": user(email="e", wrote={"a": "1", "last": "a"}),
        "b": user(customer_id="c", email="e", yahoo="y", wrote={"b": "1", "last": "b"}),
        "c": user(customer_id="c", other="o", wrote={"c": "1", "last": "c"}),
    }
    for number, together in enumerate((True, False)):
        updates = [
            UserUpdate(
                "production",
                None,
                tuple(Identity(kind, f"{value}{number}") for kind, value in given[name].identities),
                given[name].changes,
                None,
            )
            for name in order
        ]
        if together:
            assert DONE * 3 == await send(store, env, *updates)
        else:
            for update in updates:
                assert DONE == await send(store, env, update)
    for kind in ("email", "customer_id", "yahoo", "other"):
        value = {"customer_id": "c"}.get(kind, kind[0])
        assert await has(store, env, kind, f"{value}0") == await has(store, env, kind, f"{value}1")
    assert 0 == await known_profiles(store, env) % 2


async def test_households_that_share_a_mail_are_different_people_in_one_bulk(store, env):
    updates = [
        user(customer_id=f"c{n}", email=f"home {n // 4}", wrote={"n": str(n)}) for n in range(100)
    ]
    for _ in range(2):
        assert DONE * 100 == await send(store, env, *updates)
        assert 100 == await known_profiles(store, env)
        for n in range(100):
            assert {"n": str(n)} == await has(store, env, "customer_id", f"c{n}")
        for n in range(25):
            assert {"n": str(4 * n)} == await has(store, env, "email", f"home {n}")


async def test_what_a_refused_batch_brought_is_not_there_for_those_after_it(store, env):
    full = [{f"{n}{k}": "v" for k in range(100)} for n in "ab"]
    await send(store, env, *(user(customer_id="c", wrote=each) for each in full))
    letters = await send(
        store,
        env,
        user(customer_id="c", email="e", wrote={"one more": "x"}),
        user(email="e", wrote={"who": "somebody else"}),
        user(customer_id="d", email="e", wrote={"b": "1"}),
        user(customer_id="c", yahoo="y"),
    )
    assert bytes([TOO_MANY]) + DONE * 3 == letters
    assert {"who": "somebody else", "b": "1"} == await has(store, env, "email", "e")
    assert await owner(store, env, "yahoo", "y") == await owner(store, env, "customer_id", "c")


async def test_nothing_to_do_is_done(store, env):
    assert b"" == await send(store, env)


# What others do meanwhile


@both_topologies
@pytest.mark.parametrize("together", [1, 5])
async def test_of_many_that_bring_a_new_user_at_once_one_makes_the_profile(
    store, second, env, together
):
    for n in range(20):
        sent = [
            [
                user(customer_id=f"c{n}.{k}", email=f"e{n}.{k}", wrote={f"by {turn}": "1"})
                for k in range(together)
            ]
            for turn in range(10)
        ]
        done = await asyncio.gather(
            *(
                send(each, env, *updates)
                for each, updates in zip((store, second) * 5, sent, strict=True)
            )
        )
        assert {DONE * together} == set(done)
        for k in range(together):
            profile = await profile_of(store, env, "customer_id", f"c{n}.{k}")
            assert profile.id == await owner(store, env, "email", f"e{n}.{k}")
            assert {f"by {turn}" for turn in range(10)} == set(texts(profile))
    assert 20 * together == await known_profiles(store, env)


@both_topologies
async def test_random_users_from_two_processes_never_share_and_never_lose_an_identity(
    store, second, env
):
    randomly = random.Random(5)
    written: Counter[int] = Counter()
    for turn in range(60):

        def one(turn=turn):
            named = {
                kind: f"{kind[0]}{randomly.randrange(4)}"
                for kind in ("customer_id", "mobile_number", "email", "other")
                if randomly.random() < 0.6
            }
            named = named or {"customer_id": "c0"}
            mpid = randomly.randrange(3) if randomly.random() < 0.1 else None
            written[turn] += 1
            return user(named=named, mpid=mpid, wrote={f"t{turn % 40}": str(turn)})

        bulks = [[one() for _ in range(randomly.randrange(1, 6))] for _ in range(4)]
        done = await asyncio.gather(
            *(
                send(each, env, *updates)
                for each, updates in zip((store, second) * 2, bulks, strict=True)
            )
        )
        assert {WRITTEN} == set(b"".join(done))
        # Nothing that names a user is ever nobody's afterwards.
        for updates in bulks:
            for update in updates:
                first = update.identities[0] if update.mpid is None else ("mpid", str(update.mpid))
                assert await owner(store, env, *first) is not None
    for kind in ("customer_id", "mobile_number", "email", "other"):
        for n in range(4):
            found = await owner(store, env, kind, f"{kind[0]}{n}")
            assert found is not None
            held = (await store.records.get_profile(env, found)).identities
            assert (kind, f"{kind[0]}{n}") in held
            assert 1 >= sum(each == "customer_id" for each, _ in held)


async def test_a_user_who_was_made_meanwhile_is_found(store, second, env):
    async def meanwhile():
        await send(second, env, user(email="e", wrote={"by": "another"}))

    before(store, "write_batches", meanwhile)
    await send(store, env, user(email="e", customer_id="c", wrote={"a": "1"}))
    del store.connection.call
    by_mail, by_id = [
        await has(store, env, *each) for each in (("email", "e"), ("customer_id", "c"))
    ]
    if same_slot(env, ("email", "e"), ("customer_id", "c")):
        assert {"by": "another", "a": "1"} == by_mail == by_id
    else:
        # What is done in one slot does not see the other: the mail is left to whoever has it.
        assert ({"by": "another"}, {"a": "1"}) == (by_mail, by_id)


async def test_an_identity_that_was_taken_meanwhile_is_left_to_whoever_took_it(store, second, env):
    await send(store, env, user(customer_id="c"))

    async def meanwhile():
        await send(second, env, user(customer_id="d", email="e", wrote={"who": "d"}))

    before(store, "write_batches", meanwhile)
    assert DONE == await send(store, env, user(customer_id="c", email="e", wrote={"who": "c"}))
    del store.connection.call
    assert {"who": "d"} == await has(store, env, "email", "e")
    assert {"who": "c"} == await has(store, env, "customer_id", "c")


@eight_slots
async def test_an_identity_of_another_slot_that_was_taken_meanwhile_is_left_to_them(
    store, second, env
):
    mail = elsewhere(env, "email", ("customer_id", "c"))

    async def meanwhile():
        await send(second, env, user(customer_id="d", email=mail, wrote={"who": "d"}))

    before(store, "reserve_identity", meanwhile)
    sent = user(customer_id="c", email=mail, wrote={"who": "c"}, request="r")
    assert DONE == await send(store, env, sent)
    del store.connection.call
    assert {"who": "d"} == await has(store, env, "email", mail)
    assert {"who": "c"} == await has(store, env, "customer_id", "c")
    assert AGAIN == await send(store, env, sent)


async def test_a_customer_id_that_the_user_got_meanwhile_makes_another_user_of_it(
    store, second, env
):
    await send(store, env, user(email="e", wrote={"who": "first"}))

    async def meanwhile():
        await send(second, env, user(email="e", customer_id="first"))

    before(store, "write_batches", meanwhile)
    await send(store, env, user(email="e", customer_id="second", wrote={"who": "second"}))
    del store.connection.call
    first = await profile_of(store, env, "email", "e")
    assert ("first", {"who": "first"}) == (first.custom_id, texts(first))
    assert {"who": "second"} == await has(store, env, "customer_id", "second")


async def test_an_identity_that_a_dead_process_reserved_is_taken(store, env):
    for kind, value in (("customer_id", "c"), ("email", "e")):
        partition, bucket = env.mixer.place_identity(kind, value, len(env.partitions))
        field = keys.identity_field(kind, value)
        dead = env.mixer.mix(ids.new())
        await store.profiles._reserve(env, partition, bucket, field, dead, LONG_AGO_US, b"")
    assert DONE == await send(store, env, user(customer_id="c", email="e", wrote={"a": "1"}))
    assert (
        {"a": "1"}
        == await has(store, env, "customer_id", "c")
        == await has(store, env, "email", "e")
    )


async def test_a_user_who_is_being_erased_is_not_written_and_the_request_is_to_come_again(
    store, env, monkeypatch
):
    monkeypatch.setattr(store_ingest, "PAUSE_SECONDS", 0.0)
    await send(store, env, user(customer_id="c", email="e", wrote={"a": "1"}))
    old = await owner(store, env, "customer_id", "c")
    mixed = env.mixer.mix(old)
    tag = env.home(mixed)
    await store.connection.call(
        scripts.load("begin_erase"),
        [keys.key(tag, "erasing"), keys.of_profile(tag, "profile", mixed), keys.none(tag)],
        [mixed, NOW_US],
    )
    with pytest.raises(Erasing, match="being erased"):
        await send(
            store, env, user(customer_id="d", wrote={"a": "3"}), user(email="e", wrote={"a": "2"})
        )
    assert {"a": "3"} == await has(store, env, "customer_id", "d")
    await store.profiles.erase_profile(env, old)
    assert DONE == await send(store, env, user(email="e", wrote={"b": "2"}))
    assert {"b": "2"} == await has(store, env, "email", "e")
    assert old != await owner(store, env, "email", "e")
    assert await owner(store, env, "customer_id", "c") is None


async def test_whoever_waits_for_an_erasing_goes_on_when_it_is_done(store, second, env):
    await send(store, env, user(customer_id="c", wrote={"a": "1"}))
    old = await owner(store, env, "customer_id", "c")

    async def meanwhile():
        await second.profiles.erase_profile(env, old)

    before(store, "write_batches", meanwhile)
    updates = [user(customer_id="c", wrote={"b": str(n)}) for n in range(3)]
    assert DONE * 3 == await send(store, env, *updates, now_us=NOW_US)
    del store.connection.call
    assert {"b": "2"} == await has(store, env, "customer_id", "c")
    assert old != await owner(store, env, "customer_id", "c")
    with pytest.raises(NotFound):
        await store.records.get_profile(env, old)


@eight_slots
async def test_a_user_who_is_erased_before_all_identities_are_there_stays_erased(
    store, second, env
):
    mail = elsewhere(env, "email", ("customer_id", "c"))

    async def meanwhile():
        await second.profiles.erase_profile(env, await owner(second, env, "customer_id", "c"))

    before(store, "reserve_identity", meanwhile)
    sent = user(customer_id="c", email=mail, wrote={"a": "1"}, request="r")
    assert DONE == await send(store, env, sent)
    del store.connection.call
    assert 0 == await known_profiles(store, env)
    assert await owner(store, env, "email", mail) is None


@both_topologies
async def test_batches_that_meet_an_erasing_are_done_before_or_after_it(store, second, env):
    for n in range(20):
        named = {"customer_id": f"c{n}", "email": f"e{n}"}
        await send(store, env, user(named=named, wrote={"old": "1"}))
        old = await owner(store, env, "customer_id", f"c{n}")
        done: list[Any] = await asyncio.gather(
            store.profiles.erase_profile(env, old),
            *(
                send(each, env, user(named=named, wrote={f"new {k}": "1"}))
                for k, each in enumerate((second, store) * 3)
            ),
            return_exceptions=True,
        )
        failed = [each for each in done[1:] if isinstance(each, BaseException)]
        assert [] == [each for each in failed if not isinstance(each, Erasing)]
        with pytest.raises(NotFound):
            await store.records.get_profile(env, old)
        assert DONE == await send(store, env, user(named=named, wrote={"last": "1"}))
        held = await has(store, env, "customer_id", f"c{n}")
        assert {"last"} <= set(held) <= {"last"} | {f"new {k}" for k in range(6)}
        assert held == await has(store, env, "email", f"e{n}")


# Rules

HOUSEHOLD = NewDefinition(
    id="household",
    source_user_attribute="$Address",
    attributes=(GroupAttribute("has_dog", "boolean_or"),),
)


async def ingest(store, env, *updates):
    return await store.ingest.write_batches(env, updates, "key")


async def test_what_members_inherit_is_passed_over_and_counted(store, application, env):
    await store.definitions.create_definition(application, HOUSEHOLD, "tester")
    named = {"household:has_dog": "true", "household:": "x", "households:x": "kept", "a": "1"}
    done = await ingest(store, env, user("household:gone", customer_id="c", wrote=named))
    await store.derivation.derive_profiles(env, done.dirty)
    assert (DONE, 2) == (bytes(done.letters), done.dropped)
    assert {"households:x": "kept", "a": "1"} == await has(store, env, "customer_id", "c")


async def test_a_definition_of_another_process_holds_at_once(store, second, application, env):
    await ingest(store, env, user(customer_id="before", wrote={"household:x": "1"}))
    await second.definitions.create_definition(application, HOUSEHOLD, "tester")
    done = await ingest(store, env, user(customer_id="after", wrote={"household:x": "1"}))
    assert 1 == done.dropped
    assert {} == await has(store, env, "customer_id", "after")


async def test_a_definition_that_comes_in_between_holds_for_what_is_not_yet_written(
    store, second, application, env
):
    async def meanwhile():
        await second.definitions.create_definition(application, HOUSEHOLD, "tester")

    before(store, "write_batches", meanwhile)
    updates = [user(customer_id=f"c{n}", wrote={"household:x": "1", "a": "1"}) for n in range(70)]
    done = await ingest(store, env, *updates)
    del store.connection.call
    assert DONE * 70 == bytes(done.letters)
    held = [await has(store, env, "customer_id", f"c{n}") for n in range(70)]
    assert [{"a": "1"}] * 70 == held
    # Other partitions are written side by side: there it may come after that, and is hidden.
    await store.definitions.delete_definition(application, HOUSEHOLD.id)
    held = [await has(store, env, "customer_id", f"c{n}") for n in range(70)]
    written = sum("household:x" in each for each in held)
    assert 70 - written == done.dropped > 0
    assert len(env.partitions) > 1 or written == 0


async def test_what_is_from_before_a_definition_can_be_deleted_while_that_is_there(
    store, application, env
):
    # It was passed over like a write, so nobody could take it away.
    await ingest(store, env, user(customer_id="c", wrote={"household:x": "1", "a": "1"}))
    await store.definitions.create_definition(application, HOUSEHOLD, "tester")
    done = await ingest(store, env, user("household:x", customer_id="c"))
    assert 0 == done.dropped
    await store.definitions.delete_definition(application, HOUSEHOLD.id)
    assert {"a": "1"} == await has(store, env, "customer_id", "c")


@eight_slots
async def test_a_definition_that_comes_before_a_request_is_remembered_does_not_lose_it(
    store, second, application, env
):
    mail = elsewhere(env, "email", ("customer_id", "c"))

    async def meanwhile():
        await second.definitions.create_definition(application, HOUSEHOLD, "tester")

    before(store, "reserve_identity", meanwhile)
    sent = user(customer_id="c", email=mail, wrote={"a": "1"}, request="r")
    assert DONE == await send(store, env, sent)
    del store.connection.call
    assert AGAIN == await send(store, env, sent)


async def test_only_watched_attributes_make_what_follows_behind(store, application, env):
    await store.definitions.create_definition(application, HOUSEHOLD, "tester")

    async def dirty(*updates):
        done = await ingest(store, env, *updates)
        await store.derivation.derive_profiles(env, done.dirty)
        return len(done.dirty)

    assert 0 == await dirty(user(customer_id="c", wrote={"a": "1"}))
    assert 1 == await dirty(user(customer_id="c", wrote={"has_dog": "true"}))
    assert 1 == await dirty(user(customer_id="c", at=NOW_US - 5, wrote={"$address": "x"}))
    assert 0 == await dirty(user(customer_id="c", at=NOW_US - 6, wrote={"$address": "y"}))
    assert 0 == await dirty(user(customer_id="c", at=NOW_US - 5, wrote={"$address": "x"}))
    assert 1 == await dirty(user(customer_id="c", at=NOW_US - 4, wrote={"$address": "x"}))
    assert 0 == await dirty(user(customer_id="d", request="r"))
    assert 1 == await dirty(user("$address", customer_id="c"), user("has_dog", customer_id="c"))
    assert 0 == await dirty(user("$address", "never there", customer_id="d"))
    many = [user(customer_id=f"c{n}", wrote={"$address": "x"}) for n in range(70)]
    assert 70 == await dirty(*many, *many)


async def test_a_profile_that_gets_an_mpid_is_behind_where_anything_is_watched(
    store, application, env
):
    await store.records.create_profile(env, NewProfile(custom_id="early"))
    assert [] == (await ingest(store, env, user(customer_id="early"))).dirty
    await store.definitions.create_definition(application, HOUSEHOLD, "tester")
    made = await store.records.create_profile(env, NewProfile(custom_id="c"))
    done = await ingest(store, env, user(customer_id="c"))
    assert [env.mixer.mix(made.id)] == done.dirty
    await store.derivation.derive_profiles(env, done.dirty)


async def test_a_request_that_is_done_again_says_what_is_still_behind(store, application, env):
    await store.definitions.create_definition(application, HOUSEHOLD, "tester")
    sent = user(customer_id="c", request="r", wrote={"$address": "x"})
    first = await ingest(store, env, sent)
    again = await ingest(store, env, sent)
    assert (AGAIN, first.dirty) == (bytes(again.letters), again.dirty)
    await store.derivation.derive_profiles(env, again.dirty)
    assert [] == (await ingest(store, env, sent)).dirty


# Failures


def in_a_process(url, point):
    """Do batches in a process that is to die at a point; its return code."""
    return subprocess.run(
        [sys.executable, "-c", f"import tests.test_store_ingest as t; t.child({url!r})"],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"BELONG_FAULT": point},
        check=False,
        timeout=60,
    ).returncode


def uploaded():
    return [
        user(customer_id=f"c{n}", email=f"e{n}", yahoo=f"y{n}", wrote={"a": "1"}, request=f"r{n}")
        for n in range(10)
    ]


def child(url):
    async def run():
        store = await Store.open(url)
        [application] = await store.registry.list_applications()
        await store.ingest.write_batches(application.production, uploaded(), "key")

    asyncio.run(run())


@both_topologies
@pytest.mark.parametrize("point", ["ingest.resolved", "ingest.written", "ingest.identified"])
async def test_what_a_killed_process_left_is_done_by_sending_it_again(backing, store, env, point):
    await send(store, env, *uploaded()[:3])
    assert -signal.SIGKILL == await asyncio.to_thread(in_a_process, backing.url, point)
    assert [] == (await verify(store)).problems
    letters = await send(store, env, *uploaded())
    assert set(letters) <= {WRITTEN, DUPLICATE}
    for n in range(10):
        profile = await profile_of(store, env, "customer_id", f"c{n}")
        assert {"customer_id", "email", "mpid", "yahoo"} == {kind for kind, _ in profile.identities}
        assert {"a": "1"} == texts(profile)
    assert AGAIN * 10 == await send(store, env, *uploaded())
    assert 10 == await known_profiles(store, env)


@both_topologies
@pytest.mark.parametrize("point", ["add_identity.reserved", "add_identity.confirmed"])
async def test_an_identity_that_a_killed_process_was_adding_comes_with_the_next_try(
    backing, store, env, point
):
    died_with = await asyncio.to_thread(in_a_process, backing.url, point)
    # In one slot nothing is reserved, and there is nothing to die at.
    assert (0 if len(env.partitions) == 1 else -signal.SIGKILL) == died_with
    assert set(await send(store, env, *uploaded())) <= {WRITTEN, DUPLICATE}
    for n in range(10):
        profile = await profile_of(store, env, "yahoo", f"y{n}")
        assert 4 == len(profile.identities)
    await work(store, grace_us=0)
    assert 10 == await known_profiles(store, env)


@both_topologies
async def test_what_comes_to_no_end_is_unavailable(store, env, monkeypatch):
    monkeypatch.setattr(store_ingest, "PAUSE_SECONDS", 0.0)
    turn = 0

    async def meanwhile():
        nonlocal turn
        turn += 1
        found = await owner(store, env, "customer_id", "c")
        if found is not None:
            await store.profiles.erase_profile(env, found)
        else:
            await store.profiles.resolve_identities(env, "customer_id", ["c"], create=True)

    before(store, "write_batches", meanwhile, times=1000)
    with pytest.raises(Unavailable, match="too many others at once"):
        await store.ingest.write_batches(env, [user(customer_id="c", wrote={"a": "1"})], "key")
    del store.connection.call
    assert turn >= 20


async def follow(store, env, *updates, credential="key"):
    """Do batches and what follows; what had changed, by customer ids, of whom is no more behind."""
    done = await store.ingest.write_batches(env, updates, credential)
    found = {}
    for each in done.unsettled:
        profile = await store.records.get_profile(env, env.mixer.unmix(each))
        found[profile.custom_id] = await noted(store, env, profile.id)
    await store.derivation.derive_profiles(env, done.dirty)
    await store.settling.settle(env, done.unsettled)
    assert 0 == await unsettled(store, env)
    return found


async def test_batches_tell_whose_dynamic_groups_have_yet_to_follow(store, application, env):
    definition = NewDefinition(
        id="household",
        source_user_attribute="$address",
        attributes=(GroupAttribute("points", "sum"),),
    )
    await store.definitions.create_definition(application, definition, "test")
    old = await audience(store, env, {"attribute": "age", "condition": "greater_than", "value": 30})
    young = await audience(store, env, no({"attribute": "age", "condition": "exists"}))
    new = keys.named_group(0)

    assert {"a": {new}, "b": {new, b"age"}} == await follow(
        store, env, user(customer_id="a", wrote={"x": "1"}),
        user(customer_id="b", wrote={"age": "31"}),
    )  # fmt: skip
    a, b = people = [await owner(store, env, "customer_id", each) for each in "ab"]
    assert [b] == await within(store, env, old, people)
    assert [a] == await within(store, env, young, people)
    # Of two batches of one profile it is told once; who is dirty, too, is told as that.
    assert {"b": {b"age"}} == await follow(
        store, env, user(customer_id="b", wrote={"age": "30"}),
        user(customer_id="b", wrote={"x": "1"}),
        user(customer_id="a", wrote={"age": "99", "$address": "1 Main"}),
    )  # fmt: skip
    assert [a] == await within(store, env, old, people)
    assert [] == await within(store, env, young, people)
    # The same again, what is older, and what was not there, change nothing.
    assert {} == await follow(
        store, env, user("never", customer_id="a", wrote={"age": "99", "y": "1"}),
        user("age", customer_id="b", at=1), user(customer_id="b", wrote={"age": "77"}, at=1),
    )  # fmt: skip
    assert {"a": {b"age"}} == await follow(store, env, user("age", customer_id="a"))
    assert [a] == await within(store, env, young, people)


async def test_a_batch_that_is_sent_again_has_followed_what_broke_off_before(store, env):
    number = await audience(store, env, {"attribute": "age", "condition": "exists"})
    update = user(customer_id="a", wrote={"age": "1"}, request="r")
    await store.ingest.write_batches(env, [update], "key")
    assert 1 == await unsettled(store, env)

    assert {"a": {b"age"}} == await follow(store, env, update)

    person = await owner(store, env, "customer_id", "a")
    assert [person] == await within(store, env, number, [person])


async def test_a_value_of_another_type_is_another_value_to_rules(store, env):
    tags = {"attribute": "tags", "condition": "includes", "value": "x"}
    number = await audience(store, env, tags)
    text, several = (
        UserUpdate("production", None, (Identity("customer_id", "a"),), (change,), None)
        for change in (Change("tags", b'"[\\"x\\"]"', None), Change("tags", b'["x"]', None))
    )
    await follow(store, env, text)
    person = await owner(store, env, "customer_id", "a")
    assert [] == await within(store, env, number, [person])

    assert {"a": {b"tags"}} == await follow(store, env, several)

    assert [person] == await within(store, env, number, [person])


async def test_a_store_that_is_full_says_so_and_changes_nothing():
    async with alone() as (server, store, env):
        await send(store, env, user(customer_id="c", wrote={"a": "1"}))
        server.ask("CONFIG", "SET", "maxmemory", "1")
        for update in (user(customer_id="c", wrote={"a": "2"}), user(customer_id="d")):
            with pytest.raises(Unwritable):
                await send(store, env, update)
        assert {"a": "1"} == await has(store, env, "customer_id", "c")
        server.ask("CONFIG", "SET", "maxmemory", "0")
        assert 1 == await known_profiles(store, env)


async def test_a_bulk_of_known_users_is_a_handful_of_commands():
    async with alone() as (_, store, env):
        updates = [user(customer_id=f"c{n}", email=f"e{n}", wrote={"a": "1"}) for n in range(100)]
        for _ in range(2):
            await store.ingest.write_batches(env, updates, "key")
        sent = store.connection.stats.commands
        await store.ingest.write_batches(env, updates, "key")
        assert 1 + 100 / store_ingest.CHUNK == store.connection.stats.commands - sent


@pytest.mark.alone
async def test_no_script_of_ingest_holds_the_server_up():
    slow_log = ("--slowlog-log-slower-than", "0", "--slowlog-max-len", "20000")
    async with alone(*slow_log) as (server, store, env):
        large = {f"k{n:02}": "x" * 4000 for n in range(100)}
        many = [{f"{part}{n}": "v" * 10 for n in range(100)} for part in "ab"]
        rounds = []
        for turn in range(6):
            new = [
                user(
                    customer_id=f"{turn} {n}",
                    email=f"{turn} {n}",
                    request=f"{n}",
                    wrote={"$address": "1 Main St", "has_dog": "true", "name": "John"},
                )
                for n in range(100)
            ]
            for _ in range(2):
                await store.ingest.write_batches(env, new, "key")
                new = [replace(each, request_id=f"again {each.request_id}") for each in new]
            wide = [user(customer_id=f"w{turn} {n}", wrote=many[n % 2]) for n in range(20)]
            await store.ingest.write_batches(env, wide, "key")
            much = [user(customer_id=f"m{turn}", wrote=each) for each in (large, *many[:1])]
            much += [user(customer_id=f"m{turn}", wrote={"k00": str(n)}) for n in range(60)]
            await store.ingest.write_batches(env, much, "key")
            slowest: dict[bytes, int] = {}
            for sha, us in script_times_us(server):
                slowest[sha] = max(slowest.get(sha, 0), us)
            rounds.append(slowest)
        # In the first one the server was told the scripts.
        del rounds[0]
        shas = {name: scripts.load(name).sha.encode() for name in ("find_owners", "write_batches")}
        taken = {name: min(each[sha] for each in rounds) for name, sha in shas.items()}
        sys.stdout.write(f"{taken}\n")
        limit = 2_000 * slowness(server)
        assert {} == {name: us for name, us in taken.items() if us > limit}
