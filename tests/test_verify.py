"""Every invariant, broken by hand: verify names it, repair mends it, and what was right stays.

A breakage is a function that takes a small world, breaks one thing in it with plain commands, and
gives words that one sentence of the report has to hold. What a breakage makes true (a membership
that nobody can bring back) it writes into the world's expectations.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import pytest

from service import ids, keys, worker
from service import verify as verify_module
from service.attributes import value_of
from service.errors import BelongError, NotFound, Unavailable
from service.groups import Attribute, GroupChanges, GroupQuery, NewGroup
from service.store import Store
from service.store_records import ProfileChanges
from service.verify import repair, verify

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from service.cuts import Cut
    from service.environment import Environment
    from service.groups import Group

    Breakage = Callable[["World"], Awaitable[list[str]]]

JOINED_US = 1_700_000_000_000_000
on_servers = pytest.mark.parametrize(
    "backing",
    ["embedded", pytest.param("cluster", marks=pytest.mark.cluster)],
    indirect=True,
)


@dataclass
class World:
    """A store with a bit of everything, and what is expected of it."""

    store: Store
    env: Environment
    big: Group
    small: Group
    idle: Group
    members: dict[int, dict[bytes, int]] = field(default_factory=dict)
    identities: dict[tuple[str, str], bytes | None] = field(default_factory=dict)
    attributes: dict[bytes, dict[str, str]] = field(default_factory=dict)

    async def do(self, key: bytes, name: str, *parts: bytes | str | int):
        """Run a plain command on a key."""
        return await self.store.connection.command(key, name, key, *parts)

    def mixed(self, id16: bytes) -> bytes:
        return self.env.mixer.mix(id16)

    def owner(self, id16):
        """Give what a bucket holds of an identity that this profile has."""
        return self.mixed(id16) + b"%d" % JOINED_US

    def partition(self, id16: bytes) -> int:
        return ids.head(self.mixed(id16)) % len(self.env.partitions)

    def tag(self, id16: bytes) -> bytes:
        return self.env.partitions[self.partition(id16)]

    def m(self, id16: bytes) -> bytes:
        return keys.memberships(self.tag(id16), self.mixed(id16))

    def of(self, kind: str, id16: bytes) -> bytes:
        return keys.of_profile(self.tag(id16), kind, self.mixed(id16))

    def one_of(self, group: Group) -> bytes:
        return min(self.members[group.number])

    async def segments(self, group: Group, tag: bytes) -> list[bytes]:
        start = tag + b":g:%d:" % group.number
        return sorted([
            key async for batch in self.store.connection.scan() for key in batch
            if key.startswith(start)
        ])  # fmt: skip

    async def segment_of(self, group: Group, id16: bytes) -> bytes:
        for key in await self.segments(group, self.tag(id16)):
            if await self.do(key, "ZSCORE", self.mixed(id16)) is not None:
                return key
        raise AssertionError

    def bucket(self, kind: str, value: str) -> bytes:
        partition, bucket = self.env.mixer.place_identity(kind, value, len(self.env.partitions))
        return keys.identity_bucket(self.env.partitions[partition], bucket)

    def hash(self, kind: str, partition: int = 0) -> bytes:
        return keys.key(self.env.partitions[partition], kind)

    def directory(self, kind: str) -> bytes:
        return keys.key(self.env.directory, kind)

    async def check(self) -> None:
        """Everything that is expected, asked through the store as a client would."""
        for group in (self.big, self.small):
            listed = {}
            cut: Cut | None = None
            while True:
                page = await self.store.members.list_members(self.env, group.number, cut, 250)
                listed.update({row.id: row.joined_at_us for row in page.rows})
                if page.last is None:
                    break
                cut = page.last
            assert listed == self.members[group.number]
            assert await self.store.members.count_members(self.env, [group.number]) == [len(listed)]
            assert (await self.store.groups.get_group(self.env, group.id)).number == group.number
        with pytest.raises(NotFound):
            await self.store.members.list_members(self.env, self.idle.number, None, 1)
        await self.store.groups.update_group(
            self.env, self.idle.id, GroupChanges(is_active=True), include_inactive=True
        )
        page = await self.store.members.list_members(self.env, self.idle.number, None, 100)
        assert {row.id: row.joined_at_us for row in page.rows} == self.members[self.idle.number]
        for query in (GroupQuery(), GroupQuery(name="small"), GroupQuery(attributes=(("k", "v"),))):
            found = await self.store.groups.list_groups(self.env, query, None, 10)
            assert self.small.number in [each.number for each in found.rows]
        assert (await self.store.groups.get_group(self.env, "small-1")).number == self.small.number
        for (kind, value), id16 in self.identities.items():
            [found16] = await self.store.profiles.resolve_identities(
                self.env, kind, [value], create=False
            )
            assert (kind, value, found16) == (kind, value, id16)
        for id16, expected in self.attributes.items():
            profile = await self.store.records.get_profile(self.env, id16)
            assert {each.name: each.text for each in profile.attributes} == expected
            assert profile.created_at_us is not None


async def build(store: Store, env: Environment) -> World:
    groups = store.groups
    big = await groups.create_group(env, NewGroup(name="big"))
    small = await groups.create_group(
        env, NewGroup(name="small", custom_id="small-1", attributes=(Attribute("k", "v"),))
    )
    idle = await groups.create_group(env, NewGroup(name="idle"))
    gone = await groups.create_group(env, NewGroup(name="gone"))
    world = World(store, env, big, small, idle)
    crowd = [ids.new() for _ in range(600)]
    values = [f"p{n}" for n in range(10)]
    people = await store.profiles.resolve_identities(env, "customer_id", values, create=True)
    known = [each for each in people if each is not None]
    for n, each in enumerate(known):
        world.identities["customer_id", f"p{n}"] = each
        if n < 4:
            await store.profiles.add_identity(env, each, "email", f"p{n}@example.org")
            world.identities["email", f"p{n}@example.org"] = each
            for texts in ({"gone": "x", "k": "v"}, {"k": "v", "é": f"{n}"}):
                given = {name: value_of(text) for name, text in texts.items()}
                changes = ProfileChanges(nickname="N", custom_data="D", attributes=given)
                await store.records.update_profile(env, each, changes)
            world.attributes[each] = texts
    for group, members in ((big, crowd), (small, known[:5]), (idle, crowd[:4]), (gone, crowd[:9])):
        world.members[group.number] = dict.fromkeys(members, JOINED_US)
        await store.members.add_members(env, group.number, b"".join(members), now_us=JOINED_US)
    await groups.update_group(env, idle.id, GroupChanges(is_active=False))
    await groups.delete_group(env, gone.id)
    await store.upkeep.sweep_groups(env, 2**53)
    return world


BREAKAGES: dict[str, Breakage] = {}


def breakage(function: Breakage) -> Breakage:
    BREAKAGES[function.__name__] = function
    return function


# --- both directions, segments, counts, shapes


@breakage
async def a_member_missing_in_its_segment(world):
    id16 = world.one_of(world.big)
    await world.do(await world.segment_of(world.big, id16), "ZREM", world.mixed(id16))
    return [ids.text(id16), f"member of group {world.big.number}"]


@breakage
async def a_whole_segment_lost(world):
    id16 = world.one_of(world.big)
    await world.do(await world.segment_of(world.big, id16), "UNLINK")
    return [ids.text(id16), f"member of group {world.big.number}"]


@breakage
async def all_memberships_of_a_profile_lost(world):
    id16 = world.one_of(world.small)
    await world.do(world.m(id16), "DEL")
    for members in world.members.values():
        members.pop(id16, None)
    return [f"group {world.small.number}", ids.text(id16), "not a member"]


@breakage
async def a_stranger_in_a_segment(world):
    id16 = world.one_of(world.big)
    stranger = world.mixed(id16)[:8] + bytes(8)
    await world.do(await world.segment_of(world.big, id16), "ZADD", 0, stranger)
    return [f"group {world.big.number}", ids.text(world.env.mixer.unmix(stranger)), "not a member"]


@breakage
async def a_member_in_another_segment(world):
    id16 = world.one_of(world.big)
    right = await world.segment_of(world.big, id16)
    other = next(key for key in await world.segments(world.big, world.tag(id16)) if key != right)
    await world.do(right, "ZREM", world.mixed(id16))
    await world.do(other, "ZADD", 0, world.mixed(id16))
    return [f"group {world.big.number}", ids.text(id16), "another segment"]


@breakage
async def a_member_in_two_segments(world):
    id16 = world.one_of(world.big)
    right = await world.segment_of(world.big, id16)
    other = next(key for key in await world.segments(world.big, world.tag(id16)) if key != right)
    await world.do(other, "ZADD", 0, world.mixed(id16))
    return [f"group {world.big.number}", ids.text(id16), "another segment"]


@breakage
async def a_segment_that_the_shape_has_no_place_for(world):
    key = (await world.segments(world.big, world.env.partitions[0]))[0]
    other = keys.segment(world.env.partitions[0], world.big.number, 9, 7)
    await world.do(key, "RENAME", other)
    return [f"group {world.big.number}", "segment 9:7", "no place"]


@breakage
async def a_segment_written_with_zeros_in_front(world):
    key = (await world.segments(world.small, world.tag(world.one_of(world.small))))[0]
    await world.do(key, "RENAME", key[:-1] + b"00")
    return [f"group {world.small.number}", "segment 0:00", "no place"]


@breakage
async def scores_in_a_segment(world):
    id16 = world.one_of(world.big)
    key = await world.segment_of(world.big, id16)
    await world.do(key, "ZADD", 5, world.mixed(id16))
    await world.do(key, "ZADD", -3, b"short")
    return [f"group {world.big.number}", ids.text(id16), "score"]


@breakage
async def something_in_a_segment_that_is_no_id(world):
    key = await world.segment_of(world.big, world.one_of(world.big))
    await world.do(key, "ZADD", 0, b"short")
    return [f"group {world.big.number}", "'short'", "no id"]


@breakage
async def a_count_too_high(world):
    await world.do(world.hash("count", 1), "HINCRBY", world.big.number, 3)
    return [f"group {world.big.number} in partition 1", "count"]


@breakage
async def a_count_lost(world):
    await world.do(world.hash("count", 1), "HDEL", world.big.number)
    return [f"group {world.big.number} in partition 1", "no count"]


@breakage
async def a_count_of_nothing(world):
    await world.do(world.hash("count"), "HSET", world.idle.number, "many")
    return [f"group {world.idle.number} in partition 0", "'many'"]


@breakage
async def a_count_without_members(world):
    new = await world.store.groups.create_group(world.env, NewGroup(name="new"))
    await world.do(world.hash("count"), "HSET", new.number, 7)
    return [f"group {new.number} in partition 0", "count 7", "0 members"]


@breakage
async def a_shape_lost(world):
    await world.do(world.hash("shape"), "HDEL", world.big.number)
    return [f"group {world.big.number} in partition 0", "1 segments"]


@breakage
async def a_shape_of_too_many_segments(world):
    await world.do(world.hash("shape"), "HSET", world.big.number, 31)
    return [f"group {world.big.number} in partition 0", "31 segments"]


@breakage
async def a_shape_of_very_many_segments(world):
    await world.do(world.hash("shape"), "HSET", world.big.number, 10**8)
    return [f"group {world.big.number} in partition 0", "100000000 segments"]


@breakage
async def a_shape_that_is_no_number(world):
    await world.do(world.hash("shape"), "HSET", world.big.number, "1e999")
    return [f"group {world.big.number} in partition 0", "1e999"]


@breakage
async def a_shape_of_one(world):
    await world.do(world.hash("shape"), "HSET", world.small.number, 1)
    return [f"group {world.small.number} in partition 0", "shape"]


@breakage
async def a_count_of_no_group(world):
    await world.do(world.hash("count"), "HSET", "x1", 7)
    return ["'x1'", "no group"]


@breakage
async def a_profile_without_facts_in_group_0(world):
    id16 = ids.new()
    tag = world.tag(id16)
    segment = (await world.segments(msgspec.structs.replace(world.big, number=0), tag))[0]
    depth, prefix = map(int, segment.split(b":")[-2:])
    while (world.tag(id16), ids.head(world.mixed(id16)) >> (32 - depth)) != (tag, prefix):
        id16 = ids.new()
    await world.do(segment, "ZADD", 0, world.mixed(id16))
    return ["group 0", ids.text(id16), "not a member"]


@breakage
async def a_member_missing_in_group_0(world):
    id16 = world.one_of(world.big)
    everybody = msgspec.structs.replace(world.big, number=0)
    await world.do(await world.segment_of(everybody, id16), "ZREM", world.mixed(id16))
    return [ids.text(id16), "not in group 0"]


@breakage
async def a_record_missing_in_group_0(world):
    id16 = world.identities["customer_id", "p9"]
    everybody = msgspec.structs.replace(world.big, number=0)
    await world.do(await world.segment_of(everybody, id16), "ZREM", world.mixed(id16))
    return [ids.text(id16), "not in group 0"]


@breakage
async def more_derived_memberships_than_there_are(world):
    id16 = world.one_of(world.big)
    await world.do(world.m(id16), "HSET", "d", 9)
    return [ids.text(id16), "9 derived"]


@breakage
async def a_number_of_derived_memberships_that_is_none(world):
    id16 = world.one_of(world.big)
    await world.do(world.m(id16), "HSET", "d", "0x")
    return [ids.text(id16), "'0x' derived"]


@breakage
async def a_membership_in_no_group(world):
    id16 = world.one_of(world.big)
    await world.do(world.m(id16), "HSET", "club", JOINED_US)
    return [ids.text(id16), "'club'", "no group"]


@breakage
async def a_membership_without_a_time(world):
    id16 = world.one_of(world.big)
    await world.do(world.m(id16), "HSET", world.big.number, "once")
    world.members[world.big.number][id16] = None
    return [ids.text(id16), f"group {world.big.number}", "no time"]


@breakage
async def memberships_in_the_wrong_partition(world):
    id16 = world.one_of(world.big)
    other = world.env.partitions[(world.partition(id16) + 1) % len(world.env.partitions)]
    stray = keys.memberships(other, world.mixed(id16))
    await world.do(stray, "HSET", world.small.number, JOINED_US)
    world.members[world.small.number][id16] = JOINED_US
    return [ids.text(id16), "belongs into"]


@breakage
async def a_profile_being_erased_that_is_none(world):
    await world.do(world.hash("erasing"), "SADD", "nobody")
    return ["'nobody'", "being erased"]


# --- group numbers and states


@breakage
async def members_of_a_number_that_nobody_owns(world):
    number = int(await world.do(world.directory("numbers"), "INCR"))
    await world.store.members.add_members(world.env, number, b"".join(map(fixed, range(150))))
    return [f"group {number}", "does not exist"]


@breakage
async def members_of_a_number_above_the_counter(world):
    number = int(await world.do(world.directory("numbers"), "GET")) + 5
    await world.store.members.add_members(world.env, number, b"".join(map(fixed, range(150))))
    return [f"group {number}", "above the last number"]


@breakage
async def a_membership_of_a_number_that_nobody_owns(world):
    id16 = world.one_of(world.big)
    await world.do(world.m(id16), "HSET", 9999, JOINED_US)
    return [ids.text(id16), "group 9999"]


@breakage
async def members_of_a_group_that_was_swept(world):
    number = world.idle.number + 1
    id16 = fixed(1)
    segment = keys.segment(world.tag(id16), number, 0, 0)
    await world.do(segment, "ZADD", 0, world.mixed(id16))
    await world.do(world.m(id16), "HSET", number, JOINED_US)
    await world.do(keys.key(world.tag(id16), "count"), "HSET", number, 2)
    return [f"group {number}", "does not exist"]


@breakage
async def a_counter_of_numbers_lost(world):
    await world.do(world.directory("numbers"), "DEL")
    return [f"group {world.big.number}", "above the last number"]


@breakage
async def a_counter_that_is_no_number(world):
    await world.do(world.directory("numbers"), "SET", "many")
    return ["counter numbers", "'many'"]


@breakage
async def a_version_of_the_directory_that_is_no_number(world):
    await world.do(world.directory("version"), "SET", "new")
    return ["counter version", "'new'"]


@breakage
async def a_state_of_a_number_that_nobody_owns(world):
    await world.do(world.directory("numbers"), "SET", 100)
    await world.do(world.hash("state"), "HSET", 77, b"%d i" % JOINED_US)
    return ["group 77", "does not exist"]


@breakage
async def an_active_group_put_away_in_one_partition(world):
    version = 2 * JOINED_US
    await world.do(world.hash("state", 1), "HSET", world.big.number, b"%d i" % version)
    return [f"group {world.big.number}", "is active", "partition 1"]


@breakage
async def an_active_group_deleted_in_one_partition(world):
    await world.do(world.hash("state", 1), "HSET", world.big.number, b"%d d" % JOINED_US)
    return [f"group {world.big.number}", "is active", "partition 1"]


@breakage
async def an_inactive_group_active_in_one_partition(world):
    await world.do(world.hash("state", 1), "HDEL", world.idle.number)
    return [f"group {world.idle.number}", "is inactive", "partition 1"]


@breakage
async def a_state_that_cannot_be(world):
    await world.do(world.hash("state", 1), "HSET", world.small.number, "on holiday")
    return [f"group {world.small.number}", "'on holiday'"]


# --- the directory


@breakage
async def a_group_missing_in_an_index(world):
    await world.do(keys.name_index(world.env.directory, "small", active=True), "DEL")
    return [f"group {world.small.number}", "missing in the index", "group_names:small"]


@breakage
async def a_group_in_an_index_of_something_else(world):
    index = keys.attribute_index(world.env.directory, "k", "w", active=True)
    await world.do(index, "ZADD", world.small.number, world.small.number)
    return [f"group {world.small.number}", "attribute:1:k=w", "does not belong"]


@breakage
async def nobody_in_an_index(world):
    await world.do(world.directory("groups"), "ZADD", 0, "nobody")
    return ["group 'nobody'", "groups", "does not belong"]


@breakage
async def an_index_out_of_order(world):
    await world.do(world.directory("groups"), "ZADD", 0, world.small.number)
    return [f"group {world.small.number}", "missing in the index"]


@breakage
async def a_group_not_found_by_its_id(world):
    id16 = ids.parse(world.big.id)
    await world.do(world.directory("group_ids"), "HDEL", id16)
    return [f"group {world.big.number}", "not found by its id", world.big.id]


@breakage
async def an_id_that_names_another_group(world):
    id16 = ids.parse(world.big.id)
    await world.do(world.directory("group_ids"), "HSET", id16, world.small.number)
    return [world.big.id, f"names group {world.small.number}"]


@breakage
async def a_group_not_found_by_its_custom_id(world):
    await world.do(world.directory("group_custom_ids"), "HDEL", "small-1")
    return [f"group {world.small.number}", "not found by its custom id 'small-1'"]


@breakage
async def a_custom_id_of_nobody(world):
    await world.do(world.directory("group_custom_ids"), "HSET", "ghost", 1234)
    return ["custom id 'ghost'", "group 1234"]


@breakage
async def a_state_to_install_for_nobody(world):
    await world.do(world.directory("intents"), "ZADD", JOINED_US, 1)
    await world.do(world.directory("intents"), "ZADD", JOINED_US, "x")
    await world.do(world.directory("intents"), "ZADD", JOINED_US, world.idle.number + 1)
    return [f"group {world.idle.number + 1}", "no document"]


@breakage
async def a_state_to_install_of_no_version(world):
    await world.do(world.directory("intents"), "ZADD", -1, world.small.number)
    return [f"group {world.small.number}", "'-1'", "cannot be"]


@breakage
async def a_group_being_deleted_that_has_a_document(world):
    await world.do(world.directory("deleting"), "ZADD", JOINED_US, world.small.number)
    return [f"group {world.small.number}", "is being deleted"]


@breakage
async def nobody_being_deleted(world):
    await world.do(world.directory("deleting"), "ZADD", JOINED_US, "x")
    return ["group 'x'", "deleting"]


@breakage
async def a_document_without_a_version(world):
    await world.do(keys.group(world.env.directory, world.small.number), "HDEL", "version")
    return [f"group {world.small.number}", "version"]


# --- profiles and identities


@breakage
async def a_record_lost(world):
    id16 = world.identities["email", "p0@example.org"]
    await world.do(world.of("profile", id16), "DEL")
    return [ids.text(id16), "no record"]


@breakage
async def attributes_without_a_record(world):
    id16 = fixed(7)
    await world.do(world.of("attributes", id16), "HSET", "age", "3")
    return [ids.text(id16), "no record"]


@breakage
async def many_attributes_without_a_record(world):
    id16 = fixed(8)
    parts = [part for n in range(700) for part in (f"a{n}", f'20 10 "{n}"')]
    await world.do(world.of("attributes", id16), "HSET", *parts)
    world.attributes[id16] = {f"a{n}": str(n) for n in range(700)}
    return [ids.text(id16), "no record"]


def an_attribute_that_is_none(name, field, held):
    async def broken(world):
        id16 = world.identities["email", "p0@example.org"]
        await world.do(world.of("attributes", id16), "HSET", field, held)
        world.attributes[id16].pop("k" if field == "k" else "", None)
        return [ids.text(id16), "attribute", "which is none"]

    broken.__name__ = f"an_attribute_{name}"
    return breakage(broken)


an_attribute_that_is_none("without_a_time", "k", '"v"')
an_attribute_that_is_none("without_since", "k", '20 "v"')
an_attribute_that_is_none("since_after_its_time", "k", '10 20 "v"')
an_attribute_that_is_none("that_is_no_json", "k", "20 10 v")
an_attribute_that_is_none("that_is_an_object", "k", "20 10 {}")
an_attribute_that_is_none("that_is_no_utf8", "k", b'20 10 "\xff"')
an_attribute_that_is_none("with_a_name_that_is_no_utf8", b"\xff", '20 10 "v"')
an_attribute_that_is_none("with_a_name_that_is_too_long", "x" * 257, '20 10 "v"')
an_attribute_that_is_none("without_a_name", "", '20 10 "v"')
an_attribute_that_is_none("deleted_at_no_time", "other", "now")


@breakage
async def attributes_of_the_wrong_type(world):
    id16 = world.identities["email", "p1@example.org"]
    await world.do(world.of("attributes", id16), "SET", 1)
    world.attributes[id16] = {}
    return [":attributes:", "is a string"]


@breakage
async def attributes_in_the_wrong_partition(world):
    id16 = fixed(9)
    wrong = world.env.partitions[(world.partition(id16) + 1) % len(world.env.partitions)]
    key = keys.of_profile(wrong, "attributes", world.mixed(id16))
    await world.do(key, "HSET", "k", '20 10 "v"')
    world.attributes[id16] = {"k": "v"}
    return [ids.text(id16), "no record"]


@breakage
async def a_record_without_a_time(world):
    id16 = world.identities["email", "p0@example.org"]
    await world.do(world.of("profile", id16), "HDEL", "created_at")
    return [ids.text(id16), "no created_at"]


@breakage
async def a_record_created_at_no_time(world):
    id16 = world.identities["email", "p0@example.org"]
    await world.do(world.of("profile", id16), "HSET", "created_at", "yesterday")
    return [ids.text(id16), "created_at 'yesterday', which is none"]


@breakage
async def a_seq_that_is_no_number(world):
    id16 = world.identities["email", "p0@example.org"]
    await world.do(world.of("profile", id16), "HSET", "seq", "1.7e15")
    return [ids.text(id16), "seq '1.7e15', which is none"]


@breakage
async def a_nickname_that_is_no_utf8(world):
    id16 = world.identities["email", "p0@example.org"]
    await world.do(world.of("profile", id16), "HSET", "nickname", b"\xff")
    await world.do(world.of("profile", id16), "HSET", "custom_data", b"\xff" * 500)
    return [ids.text(id16), "nickname '\\xff', which is none"]


@breakage
async def a_field_that_no_record_has(world):
    id16 = world.identities["email", "p0@example.org"]
    await world.do(world.of("profile", id16), "HSET", "shoe_size", "44")
    return [ids.text(id16), "a field 'shoe_size'"]


@breakage
async def an_identity_that_its_profile_does_not_list(world):
    id16 = world.identities["email", "p0@example.org"]
    await world.do(world.of("identities", id16), "HDEL", "e:p0@example.org")
    return ["email 'p0@example.org'", ids.text(id16), "does not list it"]


@breakage
async def an_identity_listed_since_another_moment(world):
    id16 = world.identities["email", "p0@example.org"]
    await world.do(world.of("identities", id16), "HSET", "e:p0@example.org", JOINED_US)
    return ["email 'p0@example.org'", ids.text(id16), "another moment"]


@breakage
async def an_identity_of_nobody(world):
    id16 = fixed(3)
    await world.do(world.bucket("email", "ghost"), "HSET", "e:ghost", world.owner(id16))
    world.identities["email", "ghost"] = None
    return ["email 'ghost'", ids.text(id16), "no record"]


@breakage
async def a_listed_identity_that_resolves_to_nobody(world):
    id16 = world.identities["email", "p1@example.org"]
    await world.do(world.bucket("email", "p1@example.org"), "HDEL", "e:p1@example.org")
    return [ids.text(id16), "email 'p1@example.org'", "does not resolve"]


@breakage
async def a_listed_identity_that_resolves_to_another(world):
    thief = world.identities["email", "p2@example.org"]
    await world.do(world.of("identities", thief), "HSET", "e:p1@example.org", JOINED_US)
    return [ids.text(thief), "email 'p1@example.org'", "does not resolve"]


@breakage
async def a_listed_identity_that_is_none(world):
    id16 = world.identities["email", "p1@example.org"]
    await world.do(world.of("identities", id16), "HSET", "passport", JOINED_US)
    return [ids.text(id16), "'passport'", "no identity"]


@breakage
async def an_identity_in_the_wrong_bucket(world):
    id16 = world.identities["email", "p1@example.org"]
    right = world.bucket("email", "p1@example.org")
    await world.do(right, "HDEL", "e:p1@example.org")
    await world.do(right + b"1", "HSET", "e:p1@example.org", world.owner(id16))
    return ["email 'p1@example.org'", "by mistake"]


@breakage
async def an_identity_that_resolves_to_no_profile(world):
    await world.do(world.bucket("email", "x"), "HSET", "e:x", "somebody")
    world.identities["email", "x"] = None
    return ["email 'x'", "'somebody'", "no profile"]


@breakage
async def an_identity_of_no_known_type(world):
    await world.do(
        keys.identity_bucket(world.env.partitions[0], 5), "HSET", "zz:1", bytes(16) + b"1"
    )
    return ["'zz:1'", "no known type"]


@breakage
async def a_reservation_that_is_not_entered(world):
    held = world.mixed(fixed(1)) + b"r%d" % JOINED_US
    await world.do(world.bucket("email", "later"), "HSET", "e:later", held)
    world.identities["email", "later"] = None
    return ["email 'later'", "reserved by", ids.text(fixed(1))]


@breakage
async def an_entered_reservation_that_is_none(world):
    bucket = world.bucket("email", "p1@example.org")
    entry = bucket.rpartition(b":")[2] + b":e:p1@example.org"
    await world.do(bucket.partition(b":")[0] + b":reserved", "ZADD", JOINED_US, entry)
    await world.do(world.hash("reserved"), "ZADD", JOINED_US, "nothing")
    return ["p1@example.org", "is entered as reserved"]


@breakage
async def a_record_without_its_custom_id(world):
    id16 = world.identities["customer_id", "p3"]
    await world.do(world.of("profile", id16), "HDEL", "custom_id")
    return [ids.text(id16), "no custom id", "'p3'"]


@breakage
async def a_record_with_another_custom_id(world):
    id16 = world.identities["customer_id", "p3"]
    await world.do(world.of("profile", id16), "HSET", "custom_id", "p4")
    return [ids.text(id16), "custom id 'p4'", "'p3'"]


@breakage
async def a_custom_id_that_is_not_listed(world):
    id16 = world.identities["customer_id", "p3"]
    await world.do(world.of("identities", id16), "HDEL", "c:p3")
    return [ids.text(id16), "custom id 'p3'", "none"]


@breakage
async def a_custom_id_that_is_neither_listed_nor_held(world):
    id16 = world.identities["customer_id", "p3"]
    await world.do(world.of("identities", id16), "HDEL", "c:p3")
    await world.do(world.bucket("customer_id", "p3"), "DEL")
    return [ids.text(id16), "custom id 'p3'", "none"]


@breakage
async def two_custom_ids(world):
    id16 = world.identities["customer_id", "p3"]
    await world.do(world.of("identities", id16), "HSET", "c:p99", JOINED_US)
    await world.do(world.bucket("customer_id", "p99"), "HSET", "c:p99", world.owner(id16))
    world.identities["customer_id", "p99"] = None
    return [ids.text(id16), "custom id 'p3'", "'p99'"]


# --- keys and the registry


@breakage
async def a_key_that_the_schema_does_not_have(world):
    await world.do(world.hash("secrets"), "SET", 1)
    await world.do(world.directory("m"), "SET", 1)
    await world.do(b"{belong}:attic", "SET", 1)
    return [":secrets'", "none of the schema"]


@breakage
async def a_key_that_must_never_exist(world):
    await world.do(keys.none(world.env.partitions[0]), "SET", 1)
    return [":none'", "none of the schema"]


@breakage
async def memberships_of_the_wrong_type(world):
    id16 = world.one_of(world.small)
    await world.do(world.m(id16), "SET", 1)
    for members in world.members.values():
        members.pop(id16, None)
    return [":m:", "is a string"]


@breakage
async def a_segment_of_the_wrong_type(world):
    segment = await world.segment_of(world.big, world.one_of(world.big))
    await world.do(segment, "SET", 1)
    return [segment.decode(), "is a string"]


@breakage
async def an_application_not_found_by_its_client_id(world):
    await world.do(b"{belong}:client_ids", "HDEL", "test")
    await world.do(b"{belong}:client_ids", "HSET", "ghost", 99)
    return ["registry: client_ids", "'test'"]


@breakage
async def an_application_not_found_by_its_workspace(world):
    await world.do(b"{belong}:workspaces", "DEL")
    return ["registry: workspaces", "'1'"]


@breakage
async def a_counter_of_environments_that_is_behind(world):
    await world.do(b"{belong}:numbers", "HSET", "environment", 0)
    return ["registry", "counter environment"]


@breakage
async def a_credential_that_is_none(world):
    await world.do(b"{belong}:credentials", "HSET", "abc", "{}")
    return ["registry: credential 'abc'"]


def fixed(number: int) -> bytes:
    """Give the id of somebody whom nobody knows."""
    return bytes([7]) * 12 + number.to_bytes(4, "big")


@pytest.fixture
def at_once(monkeypatch):
    """Nothing is written meanwhile: what looks wrong need not be left alone for long."""
    monkeypatch.setattr(verify_module, "PAUSES_SECONDS", (0.0, 0.0))


@pytest.fixture
def partitions():
    return 3


@on_servers
@pytest.mark.parametrize("name", BREAKAGES)
async def test_verify_names_it_and_repair_mends_it(store, env, at_once, name):
    world = await build(store, env)
    assert (await verify(store)).problems == []

    words = await BREAKAGES[name](world)

    broken = await verify(store)
    assert not broken.ok
    assert [line for line in broken.problems if all(word in line for word in words)] != []
    mended = await repair(store)
    assert mended.mended != []
    assert mended.problems == []
    if name == "a_membership_without_a_time":
        world.members[world.big.number] = await joined_now(world)
    await world.check()


async def joined_now(world: World) -> dict[bytes, int]:
    """Give the memberships as expected, with the time that repair gave to the one without."""
    expected = world.members[world.big.number]
    [id16] = [each for each, joined_at in expected.items() if joined_at is None]
    member = await world.store.members.get_member(world.env, world.big.number, id16)
    assert member is not None
    assert abs(member.joined_at_us - time.time_ns() // 1000) < 60_000_000
    return {**expected, id16: member.joined_at_us}


@on_servers
@pytest.mark.parametrize("seed", range(3))
async def test_repair_mends_everything_at_once(store, env, at_once, seed):
    world = await build(store, env)
    rng = random.Random(seed)
    broken = 0
    for name in rng.sample(sorted(BREAKAGES), len(BREAKAGES)):
        with contextlib.suppress(Exception):
            # What one broke may keep the next from breaking anything.
            await BREAKAGES[name](world)
            broken += 1

    assert broken > len(BREAKAGES) / 2
    assert len((await verify(store)).problems) > 50
    await repair(store)

    assert (await verify(store)).problems == []
    assert (await repair(store)).mended == []


@on_servers
async def test_keys_of_nobody_are_reported_and_left_alone(store, env, at_once):
    await build(store, env)
    command = store.connection.command
    foreign = [b"session:1", b"{999}:groups", b"{999.0}:m:" + bytes(16), b"{%d.9}:x" % env.number]
    for key in foreign:
        await command(key, "SET", key, "mine")

    report = await repair(store)

    assert report.mended == []
    assert [sum(str(key)[2:-1] in line for line in report.problems) for key in foreign] == [1] * 4
    assert [await command(key, "GET", key) for key in foreign] == [b"mine"] * 4
    for key in foreign:
        await command(key, "DEL", key)


@on_servers
async def test_many_keys_of_nobody_are_few_sentences(store, env, at_once):
    for number in range(50):
        await store.connection.command(b"{x}", "SET", b"{x}:%d" % number, 1)

    problems = (await verify(store)).problems

    assert len(problems) == 3
    assert all("one of 50 below '{x}'" in line for line in problems)
    for number in range(50):
        await store.connection.command(b"{x}", "DEL", b"{x}:%d" % number)


@on_servers
async def test_a_document_that_does_not_decode_is_reported_and_left(store, env, at_once):
    world = await build(store, env)
    key = keys.group(env.directory, world.small.number)
    document = await world.do(key, "HGET", "document")
    await world.do(key, "HSET", "document", "{}")

    report = await repair(store)

    assert any(f"group {world.small.number} has a document that does not" in line
               for line in report.problems)  # fmt: skip
    assert await world.do(key, "HGET", "document") == b"{}"
    await world.do(key, "HSET", "document", document)
    assert (await repair(store)).problems == []
    await world.check()


@on_servers
async def test_two_groups_that_say_the_same_custom_id_are_reported_and_left(store, env, at_once):
    world = await build(store, env)
    key = keys.group(env.directory, world.big.number)
    raw = await world.do(key, "HGET", "document")
    await world.do(
        key, "HSET", "document", raw.replace(b'"custom_id":null', b'"custom_id":"small-1"')
    )

    report = await repair(store)

    who = f"test/production: group {world.big.number}"
    assert report.problems == [f"{who} is not found by its custom id 'small-1'"]
    assert report.mended == []
    await world.do(key, "HSET", "document", raw)
    await world.check()


@on_servers
async def test_a_profile_being_erased_is_passed_over(store, env, at_once):
    world = await build(store, env)
    id16 = world.one_of(world.small)
    [name] = [value for (_, value), each in world.identities.items() if each == id16][:1]
    await world.do(keys.key(world.tag(id16), "erasing"), "SADD", world.mixed(id16))
    since = await world.do(world.of("identities", id16), "HGET", f"c:{name}")
    await world.do(world.of("identities", id16), "HDEL", f"c:{name}")

    assert (await verify(store)).problems == []

    await world.do(world.of("identities", id16), "HSET", f"c:{name}", since)
    await store.profiles.finish_erasures(env)


@on_servers
async def test_what_is_left_to_do_is_nothing_wrong(store, env, at_once):
    world = await build(store, env)
    await world.do(world.directory("intents"), "ZADD", JOINED_US, world.idle.number)
    await world.do(world.hash("state", 1), "HDEL", world.idle.number)
    await store.groups.delete_group(env, world.big.id)
    await store.profiles._reserve(env, *where(world, "email", "new"), fixed(1), JOINED_US, b"")

    assert (await verify(store)).problems == []

    assert await worker.work(store, grace_us=0) == 3


def where(world: World, kind: str, value: str) -> tuple[int, int, bytes]:
    """Give partition, bucket and field of an identity."""
    place = world.env.mixer.place_identity(kind, value, len(world.env.partitions))
    return (*place, keys.identity_field(kind, value))


@pytest.mark.parametrize("partitions", [1, 8])
async def test_a_large_clean_store_is_clean_on_every_backing(store, env):
    rng = random.Random(env.number)
    crowd = [ids.new() for _ in range(400)]
    groups = [
        await store.groups.create_group(
            env,
            NewGroup(
                name=rng.choice("abc"),
                is_active=n % 7 > 0,
                custom_id=f"c{n}",
                attributes=(Attribute("n", str(n % 5)), Attribute("n", str(n % 3))),
            ),
        )
        for n in range(200)
    ]
    for group in groups[::9]:
        if group.is_active:
            await store.members.add_members(env, group.number, b"".join(rng.sample(crowd, 100)))
    names = [f"c{n}" for n in range(200)]
    people = await store.profiles.resolve_identities(env, "customer_id", names, create=True)
    for n, each in enumerate(people[:40]):
        assert each is not None
        await store.profiles.add_identity(env, each, "mpid", str(n))
    seen: list[tuple[int, int]] = []

    report = await verify(store, lambda done, total: seen.append((done, total)))

    assert report.problems == []
    assert report.ok
    assert report.checked > 1000
    assert seen[-1][0] == report.checked <= seen[-1][1]
    assert seen == sorted(seen)


@on_servers
@pytest.mark.parametrize("partitions", [8])
async def test_verify_reports_nothing_while_everything_is_written(backing, store, env):
    other = await Store.open(backing.url)
    load = Load(store, env)
    try:
        _, problems = await asyncio.gather(load.run(3), watched(other, load))
    finally:
        await other.close()

    assert load.done > 100
    assert problems == set()


@on_servers
@pytest.mark.parametrize("partitions", [8])
async def test_repair_mends_while_everything_is_written(backing, store, env):
    other = await Store.open(backing.url)
    world = await build(store, env)
    for name in SAFE:
        await BREAKAGES[name](world)
    load = Load(store, env)
    try:
        _, report = await asyncio.gather(load.run(2), repair(other))
    finally:
        await other.close()

    assert load.done > 100
    assert report.problems == []
    assert (await verify(store)).problems == []


SAFE = (
    "a_count_too_high", "a_shape_lost", "a_stranger_in_a_segment", "a_record_missing_in_group_0",
    "an_active_group_put_away_in_one_partition", "a_group_missing_in_an_index",
    "a_listed_identity_that_resolves_to_nobody", "members_of_a_number_that_nobody_owns",
    "a_segment_that_the_shape_has_no_place_for", "more_derived_memberships_than_there_are",
)  # fmt: skip


async def watched(store: Store, load: Load) -> set[str]:
    """Verify again and again while there is load; give every problem that was ever reported."""
    problems: set[str] = set()
    while not load.ended:
        problems.update((await verify(store)).problems)
    return problems


class Load:
    """Somebody who does everything that can be done, from several tasks at once."""

    def __init__(self, store: Store, env: Environment) -> None:
        self.store = store
        self.env = env
        self.done = 0
        self.ended = False
        self._people = [ids.new() for _ in range(400)]
        self._groups: list[Group] = []

    async def run(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        try:
            await asyncio.gather(*(self._write(random.Random(n), deadline) for n in range(6)))
        finally:
            self.ended = True

    async def _write(self, rng: random.Random, deadline: float) -> None:
        while time.monotonic() < deadline:
            try:
                await self._one(rng)
            except Unavailable as ex:
                assert "erased" in str(ex)  # noqa: PT017
            except BelongError as ex:
                assert ex.status in {404, 409}  # noqa: PT017
            self.done += 1

    async def _one(self, rng: random.Random) -> None:
        store, env, groups = self.store, self.env, self._groups
        some = b"".join(rng.sample(self._people, 100))
        kind = rng.choice(("customer_id", "email", "mpid"))
        match rng.randrange(10):
            case 0:
                attributes = (Attribute("k", rng.choice("uv")),)
                new = NewGroup(
                    name=rng.choice("ab"), attributes=attributes, is_active=rng.random() > 0.3
                )
                groups.append(await store.groups.create_group(env, new))
            case 1 if len(groups) > 5:
                gone = groups.pop(rng.randrange(len(groups)))
                await store.groups.delete_group(env, gone.id, include_inactive=True)
            case 2 if groups:
                changes = GroupChanges(
                    name=rng.choice("ab"),
                    is_active=rng.random() > 0.3,
                    custom_id=str(rng.randrange(50)),
                )
                gid = rng.choice(groups).id
                await store.groups.update_group(env, gid, changes, include_inactive=True)
            case 3 | 4 if groups:
                await store.members.add_members(env, rng.choice(groups).number, some)
            case 5 | 6 if groups:
                await store.members.remove_members(env, rng.choice(groups).number, some)
            case 7:
                await store.profiles.erase_profile(env, rng.choice(self._people))
            case 8:
                id16, value = rng.choice(self._people), str(rng.randrange(200))
                await store.profiles.add_identity(env, id16, kind, value)
            case 9:
                values = [str(rng.randrange(200)) for _ in range(10)]
                await store.profiles.resolve_identities(env, kind, values, create=True)
                await worker.work(store, grace_us=50_000)


@pytest.mark.slow
@pytest.mark.parametrize("backing", ["embedded"], indirect=True)
async def test_a_hundred_thousand_broken_memberships_are_repaired_in_bounded_time(store, env):
    people = [ids.new() for _ in range(20_000)]
    groups = [await store.groups.create_group(env, NewGroup(name=str(n))) for n in range(5)]
    for group in groups:
        for start in range(0, len(people), 10_000):
            packed = b"".join(people[start : start + 10_000])
            await store.members.add_members(env, group.number, packed)
    lost, misshapen, moved, miscounted, _ = groups
    async for batch in store.connection.scan():
        for key in batch:
            if b":g:%d:" % lost.number in key:
                await store.connection.command(key, "UNLINK", key)
            elif b":g:%d:" % moved.number in key:
                await store.connection.command(key, "RENAME", key, key + b"7")
    for tag in env.partitions:
        shape, count = keys.key(tag, "shape"), keys.key(tag, "count")
        await store.connection.command(shape, "HSET", shape, misshapen.number, 2)
        await store.connection.command(count, "HSET", count, miscounted.number, 2)

    began = time.monotonic()
    report = await repair(store)
    taken = time.monotonic() - began

    assert report.problems == []
    numbers = [group.number for group in groups]
    assert await store.members.count_members(env, numbers) == [len(people)] * len(groups)
    assert taken < 60
