"""Derived data, broken by hand: verify names it, repair mends it, and what was right stays.

A breakage takes a world of users in instances, breaks one thing in it with plain commands, and
gives words that one sentence of the report has to hold. When it is mended, and the jobs are done
that mending may have queued, everybody inherits what they inherited before.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import pytest

from service import ids, keys
from service import verify as verify_module
from service.attributes import value_of
from service.errors import Unavailable
from service.grouping import Definition, GroupAttribute, Rules
from service.store import Store
from service.store_definitions import NewDefinition, decode_rules
from service.store_jobs import encode_job, new_job
from service.store_records import ProfileChanges
from service.verify import repair, verify

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from service.environment import Application, Environment

    Breakage = Callable[["World"], Awaitable[list[str]]]

LIMIT = 3
HOUSEHOLD = NewDefinition(
    id="household",
    source_user_attribute="$Address",
    attributes=(
        GroupAttribute("has_dog", "boolean_or"),
        GroupAttribute("kids", "sum"),
        GroupAttribute("city", "latest"),
    ),
)
TEAM = NewDefinition(
    id="team", source_user_attribute="team", attributes=(GroupAttribute("name", "unique_list"),)
)
on_servers = pytest.mark.parametrize(
    "backing",
    ["embedded", pytest.param("cluster", marks=pytest.mark.cluster)],
    indirect=True,
)


@dataclass
class World:
    """Users in instances: `together` in one, `crowd` in one that has no place for all of them."""

    store: Store
    application: Application
    env: Environment
    together: list[bytes]
    crowd: list[bytes]
    inherited: dict[bytes, dict[str, str | list[str]]]

    async def do(self, key: bytes, name: str, *parts: bytes | str | int):
        """Run a plain command on a key."""
        return await self.store.connection.command(key, name, key, *parts)

    def mixed(self, id16: bytes) -> bytes:
        return self.env.mixer.mix(id16)

    def of(self, kind: str, id16: bytes) -> bytes:
        mixed = self.mixed(id16)
        return keys.of_profile(self.env.home(mixed), kind, mixed)

    def beside(self, kind: str, mixed: bytes) -> bytes:
        """Give a key of the partition where a profile or an instance is at home."""
        return keys.key(self.env.home(mixed), kind)

    def home(self, kind: str) -> bytes:
        return keys.key(self.env.rules_home, kind)

    async def rules(self) -> Rules:
        return decode_rules(await self.do(self.home("rules"), "GET"))

    async def definition(self, definition_id: str) -> Definition:
        found = (await self.rules()).definition(definition_id)
        assert found is not None
        return found

    async def iid(self, definition_id: str, text: str) -> bytes:
        number = (await self.definition(definition_id)).number
        return self.env.mixer.instance_id(self.env.number, number, text)

    def instance(self, kind: str, iid: bytes) -> bytes:
        return keys.of_instance(self.env.home(iid), kind, iid)

    async def index(self, iid: bytes) -> bytes:
        number = int(await self.do(self.instance("instance", iid), "HGET", "number"))
        return keys.instance_index(self.env.home(iid), number, keys.instance_bucket(iid))

    async def work(self) -> None:
        """Do what a worker does, where there is something to do."""
        await self.store.jobs.work(self.application, self.store.derivation)
        for env in self.application.environments.values():
            await self.store.derivation.derive_dirty(env, 2**53)
            await self.store.derivation.settle_stale(env, 2**53)

    async def shown(self) -> dict[bytes, dict[str, str | list[str]]]:
        """Give what everybody is shown to inherit."""
        return {
            id16: dict((await self.store.records.get_profile(self.env, id16)).inherited)
            for id16 in self.inherited
        }


async def build(store: Store, env: Environment) -> World:
    client_id = (await store.registry.list_applications())[0].client_id
    application = await store.registry.update_application(
        client_id, definitions_per_workspace=3, users_per_group=LIMIT
    )
    for new in (HOUSEHOLD, TEAM):
        await store.definitions.create_definition(application, new, "client_id:tester")
    people = [
        await store.profiles.resolve_identities(env, "customer_id", [f"u{n}"], create=True)
        for n in range(9)
    ]
    users = [each for [each] in people if each is not None]
    together, crowd = users[:3], users[3:8]
    world = World(store, application, env, together, crowd, {each: {} for each in users})
    for n, id16 in enumerate(users[:8]):
        await store.profiles.add_identity(env, id16, "mpid", str(n - 4))
        address = "123 Main St" if id16 in together else "N/A"
        await write(
            world, id16, **{"$Address": address, "has_dog": str(n == 1).lower(), "kids": f"{n}.5"}
        )
    for id16 in together:
        await write(
            world, id16, **{"$Address": "123 Main St", "team": "red", "name": "é", "kids": "1.5"}
        )
    await write(world, users[8], **{"$Address": "", "kids": "1"})
    await world.work()
    world.inherited = await world.shown()
    return world


async def write(world: World, id16: bytes, **texts: str) -> None:
    """Write attributes of a user, and derive what follows, as a request does."""
    given = {name: value_of(text) for name, text in texts.items()}
    await world.store.records.update_profile(world.env, id16, ProfileChanges(attributes=given))
    await world.store.derivation.derive_profiles(world.env, [world.mixed(id16)])


async def test_the_world_has_something_of_everything(store, env):
    world = await build(store, env)

    [first, *others] = [world.inherited[each] for each in world.together]
    assert first["household:kids"] == "4.5"
    assert others == [first, first]
    counted = [each for each in world.crowd if world.inherited[each]]
    assert len(counted) == LIMIT
    assert await world.do(world.instance("contributors", await world.iid("team", "red")), "ZCARD")
    assert (await verify(store)).behind == []


BREAKAGES: dict[str, Breakage] = {}


def breakage(function: Breakage) -> Breakage:
    BREAKAGES[function.__name__] = function
    return function


# --- what profiles list


@breakage
async def an_instance_that_a_profile_does_not_list(world):
    await world.do(world.of("instances", world.together[0]), "DEL")
    return [ids.text(world.together[0]), "household", "in no instance"]


@breakage
async def a_contributor_that_does_not_list_the_instance(world):
    iid = await world.iid("household", "N/A")
    await world.do(world.of("instances", world.crowd[4]), "HDEL", iid)
    return [iid.hex(), ids.text(world.crowd[4]), "does not list it"]


@breakage
async def an_instance_listed_that_no_fact_names(world):
    iid = world.env.mixer.instance_id(world.env.number, 7, "nowhere")
    await world.do(world.of("instances", world.together[0]), "HSET", iid, "7 0 0 ")
    return [ids.text(world.together[0]), iid.hex(), "has not its value"]


@breakage
async def something_listed_that_is_no_instance(world):
    await world.do(world.of("instances", world.together[0]), "HSET", "short", "7 0 0 ")
    return [ids.text(world.together[0]), "'short'", "cannot be"]


@breakage
async def values_that_nobody_can_read(world):
    iid = await world.iid("household", "123 Main St")
    await world.do(world.of("instances", world.together[0]), "HSET", iid, "7 0 0 {oops")
    return [ids.text(world.together[0]), iid.hex(), "{oops", "cannot be"]


@breakage
async def other_values_than_those_that_follow(world):
    iid = await world.iid("household", "123 Main St")
    key = world.of("instances", world.together[0])
    held = await world.do(key, "HGET", iid)
    await world.do(key, "HSET", iid, held.replace(b"4.5", b"4.6"))
    return [iid.hex(), ids.text(world.together[0]), "something else than follows"]


@breakage
async def values_of_an_older_version(world):
    iid = await world.iid("household", "123 Main St")
    key = world.of("instances", world.together[2])
    number, _, rest = (await world.do(key, "HGET", iid)).split(b" ", 2)
    await world.do(key, "HSET", iid, b"%b 5 %b" % (number, rest))
    return [iid.hex(), ids.text(world.together[2]), "something else than follows"]


@breakage
async def values_of_a_version_that_is_yet_to_come(world):
    iid = await world.iid("household", "123 Main St")
    key = world.of("instances", world.together[2])
    number, _, rest = (await world.do(key, "HGET", iid)).split(b" ", 2)
    await world.do(key, "HSET", iid, b"%b %d %b" % (number, 2**52, rest))
    return [iid.hex(), ids.text(world.together[2]), "something else than follows"]


@breakage
async def values_for_one_who_does_not_count(world):
    iid = await world.iid("household", "N/A")
    counted, beyond = world.of("instances", world.crowd[0]), world.of("instances", world.crowd[4])
    await world.do(beyond, "HSET", iid, await world.do(counted, "HGET", iid))
    return [iid.hex(), ids.text(world.crowd[4]), "does not count"]


@breakage
async def instances_of_a_profile_in_another_partition(world):
    mixed = world.mixed(world.together[0])
    other = next(tag for tag in world.env.partitions if tag != world.env.home(mixed))
    iid = await world.iid("household", "123 Main St")
    await world.do(keys.of_profile(other, "instances", mixed), "HSET", iid, "7 0 0 ")
    return [ids.text(world.together[0]), "lists instances in partition"]


# --- contributions


@breakage
async def a_contribution_lost(world):
    iid, mixed = await world.iid("household", "123 Main St"), world.mixed(world.together[1])
    held = await world.do(world.instance("instance", iid), "HGET", mixed)
    order = held.split(b" ", 2)[2][:32]
    await world.do(world.instance("instance", iid), "HDEL", mixed)
    await world.do(world.instance("contributors", iid), "ZREM", order)
    return [ids.text(world.together[1]), iid.hex(), "does not contribute"]


@breakage
async def a_contribution_of_other_values(world):
    iid, mixed = await world.iid("household", "123 Main St"), world.mixed(world.together[1])
    key = world.instance("instance", iid)
    held = await world.do(key, "HGET", mixed)
    await world.do(key, "HSET", mixed, held.replace(b"1.5", b"9.5"))
    return [ids.text(world.together[1]), iid.hex(), "something else than its facts"]


@breakage
async def a_contribution_of_facts_that_are_yet_to_come(world):
    iid, mixed = await world.iid("household", "123 Main St"), world.mixed(world.together[1])
    key = world.instance("instance", iid)
    _, rest = (await world.do(key, "HGET", mixed)).split(b" ", 1)
    await world.do(key, "HSET", mixed, b"%d %b" % (2**52, rest))
    return [ids.text(world.together[1]), iid.hex(), f"facts of {2**52}"]


@breakage
async def facts_that_changed_behind_everybodys_back(world):
    key = world.of("attributes", world.together[1])
    held = await world.do(key, "HGET", "kids")
    await world.do(key, "HSET", "kids", held.replace(b"1.5", b"2.5"))
    for id16 in world.together:
        world.inherited[id16]["household:kids"] = "5.5"
    return [ids.text(world.together[1]), "something else than its facts"]


@breakage
async def a_user_who_moved_behind_everybodys_back(world):
    key = world.of("attributes", world.together[1])
    held = await world.do(key, "HGET", "team")
    await world.do(key, "HSET", "team", held.replace(b"red", b"blue"))
    return [ids.text(world.together[1]), "team", "in no instance"]


@breakage
async def a_contribution_that_is_none(world):
    iid, mixed = await world.iid("household", "123 Main St"), world.mixed(world.together[1])
    await world.do(world.instance("instance", iid), "HSET", mixed, "1 2 three")
    return [iid.hex(), "no contribution"]


@breakage
async def a_contribution_of_nobody(world):
    iid = await world.iid("household", "123 Main St")
    await world.do(world.instance("instance", iid), "HSET", "somebody", "1")
    return [iid.hex(), "'somebody'", "no contribution"]


@breakage
async def a_contribution_of_a_profile_without_facts(world):
    iid, mixed = await world.iid("household", "123 Main St"), world.mixed(bytes(16))
    order = b"g" * 16 + mixed
    await world.do(world.instance("instance", iid), "HSET", mixed, b"1 5 %b {}" % order)
    await world.do(world.instance("contributors", iid), "ZADD", 5, order)
    return [iid.hex(), ids.text(bytes(16)), "does not list it"]


@breakage
async def a_contributor_without_a_contribution(world):
    iid = await world.iid("household", "123 Main St")
    await world.do(world.instance("contributors", iid), "ZADD", 1, b"g" * 16 + bytes(16))
    return [iid.hex(), "holds 3 contributions, and has 4 contributors"]


@breakage
async def a_contribution_without_its_place(world):
    iid = await world.iid("household", "123 Main St")
    key = world.instance("contributors", iid)
    [first] = await world.do(key, "ZRANGE", 0, 0)
    await world.do(key, "ZREM", first)
    return [iid.hex(), "in another place than its own"]


@breakage
async def a_contribution_in_another_place(world):
    iid = await world.iid("household", "N/A")
    key = world.instance("contributors", iid)
    [last] = await world.do(key, "ZRANGE", -1, -1)
    await world.do(key, "ZADD", 1, last)
    return [iid.hex(), "in another place than its own"]


@breakage
async def all_contributors_lost(world):
    iid = await world.iid("household", "123 Main St")
    await world.do(world.instance("contributors", iid), "DEL")
    return [iid.hex(), "in another place than its own"]


@breakage
async def contributors_of_no_instance(world):
    iid = await world.iid("household", "nowhere")
    await world.do(world.instance("contributors", iid), "ZADD", 1, b"g" * 16 + bytes(16))
    return [iid.hex(), "header"]


# --- instances


@breakage
async def a_whole_instance_lost(world):
    iid = await world.iid("household", "123 Main St")
    await world.do(world.instance("instance", iid), "DEL")
    await world.do(world.instance("contributors", iid), "DEL")
    return [ids.text(world.together[0]), iid.hex(), "does not contribute"]


@breakage
async def an_instance_without_its_version(world):
    iid = await world.iid("household", "123 Main St")
    await world.do(world.instance("instance", iid), "HDEL", "version")
    return [iid.hex(), "header"]


@breakage
async def an_instance_without_its_number(world):
    iid = await world.iid("household", "123 Main St")
    await world.do(world.instance("instance", iid), "HDEL", "number")
    return [iid.hex(), "header"]


@breakage
async def an_instance_with_a_version_that_is_none(world):
    iid = await world.iid("household", "123 Main St")
    await world.do(world.instance("instance", iid), "HSET", "version", "1e999")
    return [iid.hex(), "header"]


@breakage
async def an_instance_with_another_value(world):
    iid = await world.iid("household", "123 Main St")
    await world.do(world.instance("instance", iid), "HSET", "value", "123 main st")
    return [iid.hex(), "'123 main st'", "not its own"]


@breakage
async def an_instance_with_another_limit(world):
    iid = await world.iid("household", "N/A")
    await world.do(world.instance("instance", iid), "HSET", "limit", 5)
    return [iid.hex(), "counts 5 users", "rules say 3"]


@breakage
async def an_instance_by_older_rules(world):
    iid = await world.iid("household", "123 Main St")
    await world.do(world.instance("instance", iid), "HSET", "rules", 5)
    return [iid.hex(), "follows version 5"]


@breakage
async def an_instance_in_another_partition(world):
    iid = await world.iid("household", "123 Main St")
    other = next(tag for tag in world.env.partitions if tag != world.env.home(iid))
    key = keys.of_instance(other, "instance", iid)
    await world.do(key, "HSET", "number", 5, "value", "x", "version", 1, "rules", 1, "limit", 1)
    return [iid.hex(), "another partition"]


@breakage
async def an_instance_of_no_definition(world):
    iid = world.env.mixer.instance_id(world.env.number, 7, "nowhere")
    mixed = world.mixed(world.crowd[4])
    order = b"g" * 16 + mixed
    key = world.instance("instance", iid)
    header = {"number": 7, "value": "nowhere", "version": 9, "rules": 9, "limit": 3}
    await world.do(key, "HSET", *(part for pair in header.items() for part in pair))
    await world.do(key, "HSET", mixed, b"1 5 %b {}" % order)
    await world.do(world.instance("contributors", iid), "ZADD", 5, order)
    await world.do(await world.index(iid), "ZADD", 0, iid)
    await world.do(world.of("instances", world.crowd[4]), "HSET", iid, "7 9 9 ")
    return [iid.hex(), "belongs to no definition"]


@breakage
async def an_instance_without_anybody(world):
    iid = await world.iid("household", "nowhere")
    number = (await world.definition("household")).number
    key = world.instance("instance", iid)
    header = {"number": number, "value": "nowhere", "version": 9, "rules": 9, "limit": 3}
    await world.do(key, "HSET", *(part for pair in header.items() for part in pair))
    await world.do(await world.index(iid), "ZADD", 0, iid)
    return [iid.hex(), "has no contributor"]


@breakage
async def formers_of_an_instance_that_is_not_stale(world):
    iid = await world.iid("household", "N/A")
    await world.do(world.instance("formers", iid), "ZADD", 1, world.mixed(world.crowd[4]))
    return [iid.hex(), "not entered as stale"]


@breakage
async def formers_of_no_instance(world):
    iid = await world.iid("household", "nowhere")
    await world.do(world.instance("formers", iid), "ZADD", 1, world.mixed(world.crowd[4]))
    return [iid.hex(), "header"]


# --- lists of instances, what is behind, what ended


@breakage
async def an_instance_that_is_not_listed(world):
    iid = await world.iid("household", "123 Main St")
    await world.do(await world.index(iid), "ZREM", iid)
    return [iid.hex(), "in no list"]


@breakage
async def an_instance_listed_that_is_not_there(world):
    other = await world.iid("household", "123 Main St")
    iid = other[:8] + bytes(8)
    await world.do(await world.index(other), "ZADD", 0, iid)
    return [iid.hex(), "none of that definition"]


@breakage
async def an_instance_listed_in_another_bucket(world):
    iid = await world.iid("household", "123 Main St")
    key = (await world.index(iid)).rpartition(b":")[0]
    await world.do(key + b":1023", "ZADD", 0, iid)
    await world.do(key + b":9999", "ZADD", 0, b"short")
    return [iid.hex(), ":1023", "does not belong there"]


@breakage
async def an_instance_listed_with_a_score(world):
    iid = await world.iid("household", "123 Main St")
    await world.do(await world.index(iid), "ZADD", 3, iid)
    return [iid.hex(), "score"]


@breakage
async def a_profile_behind_that_is_none(world):
    tag = world.env.partitions[0]
    await world.do(keys.key(tag, "dirty"), "ZADD", 1, "nobody")
    return ["'nobody'", "is behind since 1"]


@breakage
async def a_profile_behind_in_another_partition(world):
    mixed = world.mixed(world.together[0])
    other = next(tag for tag in world.env.partitions if tag != world.env.home(mixed))
    await world.do(keys.key(other, "dirty"), "ZADD", 1, mixed)
    return [ids.text(world.together[0]), "is behind since 1"]


@breakage
async def an_instance_stale_that_is_none(world):
    iid = await world.iid("household", "nowhere")
    await world.do(world.beside("stale", iid), "ZADD", 1, iid)
    return [iid.hex(), "is stale, and is none"]


@breakage
async def an_end_of_a_contribution_that_goes_on(world):
    iid, mixed = await world.iid("household", "123 Main St"), world.mixed(world.together[1])
    await world.do(world.beside("ended", iid), "ZADD", 2**52, iid + mixed)
    return [(iid + mixed).hex(), "goes on since"]


@breakage
async def an_end_of_an_instance_that_goes_on(world):
    iid = await world.iid("household", "123 Main St")
    await world.do(world.beside("ended", iid), "ZADD", 2**52, iid)
    return [iid.hex(), "goes on since"]


@breakage
async def an_end_of_nothing(world):
    await world.do(keys.key(world.env.partitions[0], "ended"), "ZADD", 1, "nothing")
    return ["'nothing'", "its end, which is none"]


@breakage
async def an_end_in_another_partition(world):
    iid = await world.iid("household", "nowhere")
    other = next(tag for tag in world.env.partitions if tag != world.env.home(iid))
    await world.do(keys.key(other, "ended"), "ZADD", 1, iid)
    return [iid.hex(), "ended in another partition"]


# --- batches


@breakage
async def batches_of_a_profile_that_is_none(world):
    await world.do(world.of("requests", bytes(16)), "ZADD", 1, bytes(16))
    await world.do(world.of("requests", bytes(16)), "EXPIRE", 1000)
    return [ids.text(bytes(16)), "batches, and is no profile"]


@breakage
async def batches_that_never_go(world):
    await world.do(world.of("requests", world.together[0]), "ZADD", 1, bytes(16))
    return [ids.text(world.together[0]), "without end"]


@breakage
async def a_batch_that_is_none(world):
    await world.do(world.of("requests", world.together[0]), "ZADD", 1, "batch")
    await world.do(world.of("requests", world.together[0]), "EXPIRE", 1000)
    return [ids.text(world.together[0]), "'batch'"]


# --- mpids


@breakage
async def an_mpid_lost(world):
    await world.do(world.of("profile", world.together[0]), "HDEL", "mpid")
    return [ids.text(world.together[0]), "no mpid", "'-4'"]


@breakage
async def another_mpid_than_resolves_to_it(world):
    await world.do(world.of("profile", world.together[0]), "HSET", "mpid", 77)
    return [ids.text(world.together[0]), "mpid '77'", "'-4'"]


@breakage
async def an_mpid_that_is_none(world):
    await world.do(world.of("profile", world.together[0]), "HSET", "mpid", "007")
    return [ids.text(world.together[0]), "mpid '007'"]


@breakage
async def an_mpid_of_more_than_64_bits(world):
    await world.do(world.of("profile", world.together[0]), "HSET", "mpid", 2**63)
    return [ids.text(world.together[0]), "mpid", str(2**63)]


@breakage
async def an_mpid_that_nothing_lists(world):
    await world.do(world.of("profile", list(world.inherited)[8]), "HSET", "mpid", 88)
    return ["mpid '88'", "lists as mpid none"]


# --- rules and jobs


@breakage
async def a_partition_that_knows_older_rules(world):
    await world.do(keys.key(world.env.partitions[1], "rules"), "SET", 5)
    return ["partition 1 knows version 5"]


@breakage
async def a_partition_that_knows_no_rules(world):
    await world.do(keys.key(world.env.partitions[1], "rules"), "DEL")
    return ["partition 1 knows version 0"]


@breakage
async def a_partition_that_knows_rules_that_are_none(world):
    await world.do(keys.key(world.env.partitions[1], "rules"), "SET", "new")
    return ["partition 1 knows version 'new'"]


@breakage
async def a_partition_that_knows_later_rules(world):
    await world.do(keys.key(world.env.partitions[1], "rules"), "SET", 2**52)
    return [f"partition 1 knows version {2**52}"]


@breakage
async def a_partition_of_the_other_environment_that_is_behind(world):
    [tag, *_] = world.application.environments["development"].partitions
    await world.do(keys.key(tag, "rules"), "DEL")
    return ["development: partition 0 knows version 0"]


@breakage
async def names_that_a_partition_does_not_watch(world):
    await world.do(keys.key(world.env.partitions[2], "watch"), "SREM", "kids")
    return ["partition 2 does not watch"]


@breakage
async def rules_lost_by_the_directory(world):
    await world.do(world.home("rules"), "DEL")
    for id16 in world.inherited:
        world.inherited[id16] = {}
    return ["partition 0 knows version"]


@breakage
async def rules_that_nobody_can_read(world):
    await world.do(world.home("rules"), "SET", "{")
    for id16 in world.inherited:
        world.inherited[id16] = {}
    return ["nobody can read"]


async def _set_rules(world: World, **changes: object) -> None:
    rules = msgspec.structs.replace(await world.rules(), **changes)
    await world.do(world.home("rules"), "SET", msgspec.json.encode(rules))


@breakage
async def a_definition_that_stands_twice(world):
    [household, team] = (await world.rules()).definitions
    again = msgspec.structs.replace(team, number=household.number)
    await _set_rules(world, definitions=(household, team, again))
    return ["two definitions are 'team'"]


@breakage
async def an_aggregation_that_there_is_not(world):
    [household, team] = (await world.rules()).definitions
    odd = msgspec.structs.replace(
        team, attributes=(*team.attributes, GroupAttribute("x", "median", team.number))
    )
    await _set_rules(world, definitions=(household, odd))
    return ["'team' has an unknown aggregation"]


@breakage
async def a_definition_from_the_future(world):
    [household, team] = (await world.rules()).definitions
    late = msgspec.structs.replace(team, number=2**52)
    await _set_rules(world, definitions=(household, late))
    return ["'team' came after version"]


@breakage
async def rules_of_the_other_environment(world):
    other = world.application.environments["development"].directory
    await world.do(keys.key(other, "rules"), "SET", "{}")
    await world.do(keys.key(other, "jobs"), "HSET", "a", "b")
    return ["development: has definitions or jobs of its own"]


@breakage
async def word_of_rules_that_there_are_not(world):
    await world.do(world.home("installing"), "SET", 5)
    return ["told of version '5'"]


@breakage
async def a_job_that_is_none(world):
    await world.do(world.home("jobs"), "HSET", "abc", "q {}")
    return ["job 'abc' is none"]


@breakage
async def two_jobs_that_wait(world):
    for _ in range(2):
        job = new_job("asked", 5)
        await world.do(world.home("jobs"), "HSET", job.id, encode_job(job))
    return ["is queued beside"]


@breakage
async def a_week_that_begins_on_a_tuesday(world):
    await world.do(world.home("weekly"), "SET", 86_400_000_000 * 5)
    return ["weekly run was due at '432000000000'"]


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
    assert [line for line in broken.problems if all(word in line for word in words)] != []
    mended = await repair(store)
    assert mended.mended != []
    assert mended.problems == []
    await world.work()
    assert await world.shown() == world.inherited
    settled = await verify(store)
    assert (settled.problems, settled.behind) == ([], [])


@on_servers
@pytest.mark.parametrize("seed", range(3))
async def test_repair_mends_everything_at_once(store, env, at_once, seed):
    rng = random.Random(seed)
    world = await build(store, env)
    for name in rng.sample(sorted(BREAKAGES), len(BREAKAGES)):
        if not name.startswith("rules_"):
            try:
                await BREAKAGES[name](world)
            except (TypeError, ValueError, AttributeError):
                # What one broke may keep the next from breaking anything.
                continue

    assert len((await verify(store)).problems) > 10
    await repair(store)
    await world.work()
    await repair(store)
    await world.work()

    settled = await verify(store)
    assert (settled.problems, settled.behind) == ([], [])
    assert (await repair(store)).mended == []


# --- what is on its way is nothing wrong


async def write_only(world: World, id16: bytes, **texts: str) -> None:
    given = {name: value_of(text) for name, text in texts.items()}
    await world.store.records.update_profile(world.env, id16, ProfileChanges(attributes=given))


async def test_a_profile_that_is_behind_is_nothing_wrong(store, env, at_once):
    world = await build(store, env)
    await write_only(world, world.together[0], **{"$Address": "elsewhere"})
    await write_only(world, world.crowd[0], **{"$Address": "N/A", "kids": "100"})

    report = await verify(store)

    assert (report.problems, report.behind) == ([], [])
    assert (await repair(store)).mended == []
    await world.work()
    assert (await verify(store)).problems == []


async def test_an_instance_that_is_stale_is_nothing_wrong(store, env, at_once, monkeypatch):
    world = await build(store, env)

    async def fail(*_, **__):
        raise Unavailable

    with monkeypatch.context() as patch:
        patch.setattr(store.derivation, "_settle", fail)
        with pytest.raises(Unavailable):
            await write(world, world.together[0], **{"$Address": "123 Main St", "kids": "7"})

    assert (await verify(store)).problems == []
    await world.work()
    assert (await world.shown())[world.together[1]]["household:kids"] == "10"


async def test_while_a_job_waits_only_what_holds_in_itself_is_looked_at(store, env, at_once):
    world = await build(store, env)
    await world.store.definitions.delete_definition(world.application, "team")

    report = await verify(store)
    iid = await world.iid("household", "123 Main St")
    await world.do(world.instance("contributors", iid), "DEL")
    broken = await verify(store)

    assert report.problems == []
    assert [f"{world.application.client_id}: a job waits or runs"] == report.behind
    assert len(broken.problems) == 1
    await repair(store)
    await world.work()
    settled = await verify(store)
    assert (settled.problems, settled.behind) == ([], [])


async def test_in_a_weekly_application_facts_may_be_ahead(store, env, at_once):
    world = await build(store, env)
    await store.registry.update_application(world.application.client_id, grouping="weekly")
    await store.definitions.follow_settings(world.application.client_id)
    await world.work()
    await write_only(world, world.together[0], **{"$Address": "elsewhere"})

    report = await verify(store)

    assert report.problems == []
    assert [f"{world.application.client_id}: its users are grouped on Mondays"] == report.behind
    key = world.of("instances", world.together[1])
    iid = await world.iid("household", "123 Main St")
    await world.do(key, "HDEL", iid)
    assert len((await verify(store)).problems) == 1
    assert (await repair(store)).problems == []
    assert world.inherited == await world.shown()


async def test_a_profile_being_erased_is_passed_over(store, env, at_once, monkeypatch):
    world = await build(store, env)

    async def fail(*_, **__):
        raise Unavailable

    with monkeypatch.context() as patch:
        patch.setattr(store.derivation, "derive_profiles", fail)
        with pytest.raises(Unavailable):
            await store.profiles.erase_profile(env, world.together[0])

    assert (await verify(store)).problems == []
    await store.profiles.erase_profile(env, world.together[0])
    report = await verify(store)
    assert (report.problems, report.behind) == ([], [])


@on_servers
async def test_verify_reports_nothing_while_users_move_and_change(backing, store, env):
    world = await build(store, env)
    other = await Store.open(backing.url)
    ended, done = False, 0

    async def move(seed):
        nonlocal done
        rng = random.Random(seed)
        until = time.monotonic() + 3
        while time.monotonic() < until:
            await write(
                world,
                rng.choice([*world.together, *world.crowd]),
                **{"$Address": rng.choice(["123 Main St", "N/A", ""]), "kids": str(done)},
            )
            done += 1

    async def watch():
        problems = set()
        while not ended:
            problems.update((await verify(other)).problems)
        return problems

    async def write_all():
        nonlocal ended
        try:
            await asyncio.gather(*map(move, range(4)))
        finally:
            ended = True

    try:
        _, problems = await asyncio.gather(write_all(), watch())
    finally:
        await other.close()

    assert done > 50
    assert problems == set()


async def test_an_application_that_is_half_deleted_is_nothing_wrong(store, env, at_once):
    world = await build(store, env)
    for id16 in world.inherited:
        await store.profiles.erase_profile(env, id16)
    key = b"{belong}:applications"
    number = str(world.application.number)
    document = msgspec.json.decode(await world.do(key, "HGET", number))
    going = msgspec.json.encode(document | {"deleting_since_us": 1})
    await world.do(key, "HSET", number, going)
    await world.do(world.home("rules"), "DEL")

    assert (await verify(store)).problems == []
    assert (await repair(store)).mended == []


async def test_an_instance_of_many_is_looked_at_in_steps(store, env, at_once):
    world = await build(store, env)
    many = [ids.new() for _ in range(700)]
    for id16 in many:
        await store.profiles.add_identity(env, id16, "email", f"{id16.hex()}@example.org")
        await write_only(world, id16, **{"$Address": "N/A", "kids": "1"})
    await world.work()
    assert (await verify(store)).problems == []

    iid = await world.iid("household", "N/A")
    mixed = world.mixed(many[350])
    held = await world.do(world.instance("instance", iid), "HGET", mixed)
    await world.do(world.instance("instance", iid), "HSET", mixed, held.replace(b'"1"', b'"2"'))
    assert len((await verify(store)).problems) == 1
    assert (await repair(store)).problems == []
    assert (await verify(store)).problems == []
