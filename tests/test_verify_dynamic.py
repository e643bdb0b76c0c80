"""Dynamic groups, broken by hand: verify names it, repair mends it, and members stay who they were.

A breakage takes a world of profiles in dynamic groups, breaks one thing in it with plain commands,
and gives words that one sentence of the report has to hold. When it is mended, and the jobs are
done that mending may have queued, everybody is in the groups that they were in before.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from service import ids, keys
from service import verify as verify_module
from service.attributes import value_of
from service.errors import Unavailable
from service.grouping import GroupAttribute, Ruled
from service.groups import GroupChanges, GroupDocument, NewGroup, encode
from service.rules import parse_tree
from service.store import Store
from service.store_definitions import DefinitionChanges, NewDefinition, decode_rules
from service.store_jobs import encode_job, new_job, new_save
from service.store_records import ProfileChanges
from service.verify import look_members, look_settled, repair, verify
from service.verify.findings import Census

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from service.environment import Application, Environment
    from service.grouping import Rules
    from service.groups import Group

    Breakage = Callable[["World"], Awaitable[list[str]]]

DAY_US = 86_400_000_000
HOUSEHOLD = NewDefinition(
    id="household",
    source_user_attribute="$Address",
    attributes=(GroupAttribute("has_dog", "boolean_or"),),
)
on_servers = pytest.mark.parametrize(
    "backing",
    ["embedded", pytest.param("cluster", marks=pytest.mark.cluster)],
    indirect=True,
)
GOLD = {"attribute": "tier", "condition": "is", "value": "gold"}
DOG = {"attribute": "household:has_dog", "condition": "is", "value": True, "type": "boolean"}
SEEN = {"attribute": "seen", "condition": "within_last_days", "value": 30}
PLAIN = {"attribute": "tier", "condition": "not_exists"}


@dataclass
class World:
    """People in dynamic groups; `guest` is in a static one, and has no record."""

    store: Store
    application: Application
    env: Environment
    people: list[bytes]
    guest: bytes
    vips: Group
    groups: dict[str, Group]
    members: dict[bytes, set[str]]

    async def do(self, key: bytes, name: str, *parts: bytes | str | int):
        """Run a plain command on a key."""
        return await self.store.connection.command(key, name, key, *parts)

    def mixed(self, id16: bytes) -> bytes:
        return self.env.mixer.mix(id16)

    def tag(self, id16: bytes) -> bytes:
        return self.env.home(self.mixed(id16))

    def of(self, kind: str, id16: bytes) -> bytes:
        return keys.of_profile(self.tag(id16), kind, self.mixed(id16))

    def beside(self, kind: str, id16: bytes) -> bytes:
        """Give a key of the partition where a profile is at home."""
        return keys.key(self.tag(id16), kind)

    def elsewhere(self, id16: bytes) -> bytes:
        """Give the tag of a partition where a profile is not at home."""
        return next(tag for tag in self.env.partitions if tag != self.tag(id16))

    def home(self, kind: str) -> bytes:
        return keys.key(self.env.rules_home, kind)

    async def rules(self) -> Rules:
        return decode_rules(await self.do(self.home("rules"), "GET"))

    async def set_rules(self, **changes: Any) -> None:
        rules = msgspec.structs.replace(await self.rules(), **changes)
        await self.do(self.home("rules"), "SET", msgspec.json.encode(rules))

    async def set_document(self, group: Group, **changes: Any) -> None:
        held = {name: getattr(group, name) for name in GroupDocument.__struct_fields__}
        key = keys.group(self.env.directory, group.number)
        await self.do(key, "HSET", "document", encode(GroupDocument(**held | changes)))

    async def leave(self, id16: bytes, number: int) -> None:
        """Take a profile out of a small group as if it had never been in it."""
        mixed, tag = self.mixed(id16), self.tag(id16)
        assert await self.do(self.of("m", id16), "HDEL", number) == 1
        if not await self.do(self.of("m", id16), "HINCRBY", "d", -1):
            await self.do(self.of("m", id16), "HDEL", "d")
        await self.do(keys.segment(tag, number, 0, 0), "ZREM", mixed)
        if not await self.do(keys.key(tag, "count"), "HINCRBY", number, -1):
            await self.do(keys.key(tag, "count"), "HDEL", number)

    async def join(self, id16: bytes, number: int) -> None:
        """Put a profile into a small dynamic group as if it belonged there."""
        mixed, tag = self.mixed(id16), self.tag(id16)
        assert await self.do(self.of("m", id16), "HSET", number, 5) == 1
        await self.do(self.of("m", id16), "HINCRBY", "d", 1)
        await self.do(keys.segment(tag, number, 0, 0), "ZADD", 0, mixed)
        await self.do(keys.key(tag, "count"), "HINCRBY", number, 1)
        await self.do(keys.key(tag, "dynamic"), "SADD", number)

    async def work(self) -> None:
        """Do what a worker does, where there is something to do."""
        await self.store.jobs.work(self.application, self.store.derivation)
        for env in self.application.environments.values():
            await self.store.derivation.derive_dirty(env, 2**53)
            await self.store.derivation.settle_stale(env, 2**53)
            await self.store.settling.settle_unsettled(env, 2**53)
            await self.store.settling.turn_due(env, self.store.settling.clock())

    async def shown(self) -> dict[bytes, set[str]]:
        """Give the dynamic groups that everybody is in, both directions."""
        names = {b"%d" % group.number: name for name, group in self.groups.items()}
        found = {}
        for id16 in (*self.people, self.guest):
            flat = await self.do(self.of("m", id16), "HGETALL")
            found[id16] = {names[field] for field in flat[::2] if field in names}
        return found


async def dynamic(store: Store, env: Environment, name: str, tree: object) -> Group:
    new = NewGroup(name=name, membership_type="dynamic", rule_tree=parse_tree(tree))
    return await store.groups.create_group(env, new)


async def build(store: Store, env: Environment) -> World:
    client_id = (await store.registry.list_applications())[0].client_id
    application = await store.registry.application(client_id)
    assert application is not None
    await store.definitions.create_definition(application, HOUSEHOLD, "client_id:tester")
    vips = await store.groups.create_group(env, NewGroup(name="vips"))
    groups = {
        name: await dynamic(store, env, name, tree)
        for name, tree in {
            "gold": GOLD,
            "dogs": DOG,
            "vip": {"group": vips.id},
            "recent": SEEN,
            "plain": PLAIN,
            "poor": {"operator": "AND", "children": [
                {"operator": "NOT", "children": [GOLD]}, {"group": vips.id},
            ]},
        }.items()
    }  # fmt: skip
    people = [
        found
        for n in range(6)
        for found in await store.profiles.resolve_identities(
            env, "customer_id", [f"u{n}"], create=True
        )
        if found is not None
    ]
    world = World(store, application, env, people, ids.new(), vips, groups, {})
    now_ms = time.time_ns() // 1_000_000
    for n, id16 in enumerate(people):
        await write(
            world,
            id16,
            tier="gold" if n < 3 else "silver",
            **{"$Address": "here" if n % 2 else "there", "has_dog": str(n == 1).lower()},
            seen=str(now_ms - n * 10 * DAY_US // 1000),
        )
    await store.members.add_members(env, vips.number, b"".join([*people[2:4], world.guest]))
    await world.work()
    world.members = await world.shown()
    return world


async def write(world: World, id16: bytes, **texts: str) -> None:
    """Write attributes of a profile, and have follow what follows, as a request does."""
    given = {name: value_of(text) for name, text in texts.items()}
    await world.store.records.update_profile(world.env, id16, ProfileChanges(attributes=given))
    await world.store.derivation.derive_profiles(world.env, [world.mixed(id16)])


@pytest.fixture
def at_once(monkeypatch):
    """Nothing is written meanwhile: what looks wrong need not be left alone for long."""
    monkeypatch.setattr(verify_module, "PAUSES_SECONDS", (0.0, 0.0))


@pytest.fixture
def partitions():
    return 3


async def test_the_world_has_something_of_everything(store, env, at_once):
    world = await build(store, env)

    assert list(world.members.values()) == [
        {"gold", "recent"},
        {"gold", "dogs", "recent"},
        {"gold", "vip", "recent"},
        {"dogs", "vip", "poor"},
        set(),
        {"dogs"},
        {"vip", "poor", "plain"},
    ]
    assert (await verify(store)).behind == []


BREAKAGES: dict[str, Breakage] = {}


def breakage(function: Breakage) -> Breakage:
    BREAKAGES[function.__name__] = function
    return function


# --- members


@breakage
async def a_member_that_is_missing(world):
    group = world.groups["gold"]
    await world.leave(world.people[0], group.number)
    return [
        ids.text(world.people[0]),
        f"is not in dynamic group {group.number}, and its rule holds",
    ]


@breakage
async def a_member_that_is_missing_though_nothing_is_there(world):
    group = world.groups["plain"]
    await world.leave(world.guest, group.number)
    return [ids.text(world.guest), f"is not in dynamic group {group.number}, and its rule holds"]


@breakage
async def a_member_too_many(world):
    group = world.groups["vip"]
    await world.join(world.people[0], group.number)
    return [ids.text(world.people[0]), f"is in dynamic group {group.number}, and its rule does not"]


@breakage
async def a_member_too_many_of_an_inherited_attribute(world):
    group = world.groups["dogs"]
    await world.join(world.people[0], group.number)
    return [ids.text(world.people[0]), f"is in dynamic group {group.number}, and its rule does not"]


@breakage
async def a_fact_that_changed_behind_everybodys_back(world):
    key = world.of("attributes", world.people[0])
    held = await world.do(key, "HGET", "tier")
    await world.do(key, "HSET", "tier", held.replace(b"gold", b"GOLDEN"))
    world.members[world.people[0]] = {"recent"}
    return [ids.text(world.people[0]), "and its rule does not hold"]


@breakage
async def a_static_membership_that_went_behind_everybodys_back(world):
    id16, number = world.people[2], world.vips.number
    mixed, tag = world.mixed(id16), world.tag(id16)
    await world.do(world.of("m", id16), "HDEL", number)
    await world.do(keys.segment(tag, number, 0, 0), "ZREM", mixed)
    if not await world.do(keys.key(tag, "count"), "HINCRBY", number, -1):
        await world.do(keys.key(tag, "count"), "HDEL", number)
    world.members[id16] = {"gold", "recent"}
    return [ids.text(id16), f"is in dynamic group {world.groups['vip'].number}"]


@breakage
async def a_member_of_whom_nothing_is_known(world):
    stranger, group = ids.new(), world.groups["plain"]
    await world.join(stranger, group.number)
    return [ids.text(stranger), f"is in dynamic group {group.number}, and nothing is known of it"]


@breakage
async def more_derived_memberships_than_there_are(world):
    await world.do(world.of("m", world.people[3]), "HSET", "d", 4)
    return [ids.text(world.people[3]), "has 4 derived memberships"]


@breakage
async def fewer_derived_memberships_than_there_are(world):
    await world.do(world.of("m", world.people[3]), "HSET", "d", 2)
    return [ids.text(world.people[3]), "has 2 derived memberships"]


@breakage
async def derived_memberships_that_nobody_counted(world):
    await world.do(world.of("m", world.people[0]), "HDEL", "d")
    return [ids.text(world.people[0]), "has no derived memberships"]


@breakage
async def a_membership_that_one_side_alone_has(world):
    id16, number = world.people[0], world.groups["gold"].number
    tag = world.tag(id16)
    await world.do(keys.segment(tag, number, 0, 0), "ZREM", world.mixed(id16))
    if not await world.do(keys.key(tag, "count"), "HINCRBY", number, -1):
        await world.do(keys.key(tag, "count"), "HDEL", number)
    return [ids.text(id16), f"is a member of group {number}, and stands in no segment"]


# --- what time may turn


@breakage
async def a_wake_up_call_that_is_missing(world):
    entry = b"%b%d" % (world.mixed(world.people[0]), world.groups["recent"].number)
    assert await world.do(world.beside("due", world.people[0]), "ZREM", entry) == 1
    return [ids.text(world.people[0]), "is to be looked at for dynamic group"]


@breakage
async def a_wake_up_call_that_comes_too_late(world):
    entry = b"%b%d" % (world.mixed(world.people[0]), world.groups["recent"].number)
    late = (time.time_ns() // 1000) + 31 * DAY_US
    await world.do(world.beside("due", world.people[0]), "ZADD", late, entry)
    return [ids.text(world.people[0]), "is to be looked at for dynamic group"]


@breakage
async def a_wake_up_call_for_nobody(world):
    await world.do(world.beside("due", world.people[0]), "ZADD", 5, "short")
    return ["'short' is due at '5'", "which cannot be"]


@breakage
async def a_wake_up_call_without_a_group(world):
    entry = world.mixed(world.people[0]) + b"x"
    await world.do(world.beside("due", world.people[0]), "ZADD", 2**53, entry)
    return ["is due at", "which cannot be"]


@breakage
async def a_wake_up_call_in_another_partition(world):
    entry = world.mixed(world.people[0]) + b"1"
    key = keys.key(world.elsewhere(world.people[0]), "due")
    await world.do(key, "ZADD", 5, entry)
    return ["is due at '5'", "which cannot be"]


# --- what changed


@breakage
async def a_change_that_nobody_looks_at(world):
    await world.do(world.of("changed", world.people[4]), "SADD", "tier")
    return [ids.text(world.people[4]), "changed, and is not unsettled"]


@breakage
async def a_profile_that_is_unsettled_by_nothing(world):
    await world.do(
        world.beside("unsettled", world.people[4]), "ZADD", 5, world.mixed(world.people[4])
    )
    return [ids.text(world.people[4]), "is unsettled, and nothing of it changed"]


@breakage
async def somebody_unsettled_who_is_no_profile(world):
    await world.do(world.beside("unsettled", world.people[4]), "ZADD", 5, "somebody")
    return ["'somebody' is unsettled since", "no profile of it"]


@breakage
async def a_profile_that_is_unsettled_since_no_time(world):
    id16 = world.people[4]
    await world.do(world.of("changed", id16), "SADD", "tier")
    await world.do(world.beside("unsettled", id16), "ZADD", "inf", world.mixed(id16))
    return [ids.text(id16), "is unsettled since 'inf'"]


@breakage
async def a_change_in_another_partition(world):
    id16 = world.people[4]
    other = world.elsewhere(id16)
    await world.do(keys.of_profile(other, "changed", world.mixed(id16)), "SADD", "tier")
    await world.do(keys.key(other, "unsettled"), "ZADD", 5, world.mixed(id16))
    return [ids.text(id16), "changed in partition", "no profile of it"]


@breakage
async def a_change_of_something_that_no_rule_can_name(world):
    id16 = world.people[4]
    await world.do(world.of("changed", id16), "SADD", b"\0x", b"tier")
    await world.do(world.beside("unsettled", id16), "ZADD", 5, world.mixed(id16))
    return [ids.text(id16), r"changed in '\x00x'", "which no rule tree can name"]


# --- what partitions know


@breakage
async def a_name_that_a_partition_does_not_know(world):
    await world.do(keys.key(world.env.partitions[1], "named"), "SREM", "tier")
    return ["partition 1 does not know that rule trees name 'tier'"]


@breakage
async def a_partition_that_knows_no_name(world):
    await world.do(keys.key(world.env.partitions[2], "named"), "DEL")
    return ["partition 2 does not know that rule trees name"]


@breakage
async def a_name_that_no_rule_tree_has(world):
    await world.do(keys.key(world.env.partitions[0], "named"), "SADD", "age")
    return ["partition 0 knows of names that no rule tree has"]


@breakage
async def names_in_the_other_environment(world):
    other = world.application.environments["development"].partitions[0]
    await world.do(keys.key(other, "named"), "SADD", "tier")
    return ["development: partition 0 knows of names that no rule tree has"]


@breakage
async def a_static_group_that_is_noted_as_dynamic(world):
    await world.do(world.beside("dynamic", world.guest), "SADD", world.vips.number)
    return [f"group {world.vips.number} is noted as dynamic", "and is not"]


@breakage
async def a_group_that_is_gone_and_noted_as_dynamic(world):
    await world.do(world.beside("dynamic", world.guest), "SADD", 99)
    return ["group 99 is noted as dynamic", "and is not"]


@breakage
async def a_dynamic_group_that_is_not_noted(world):
    number = world.groups["gold"].number
    await world.do(world.beside("dynamic", world.people[0]), "SREM", number)
    return [f"group {number} has members in partition", "not noted as dynamic"]


@breakage
async def nothing_that_is_noted_as_dynamic(world):
    for tag in world.env.partitions:
        await world.do(keys.key(tag, "dynamic"), "DEL")
    return ["has members in partition", "not noted as dynamic"]


@breakage
async def a_turnover_that_stays_for_ever(world):
    key = keys.turnover(world.env.partitions[0], time.time_ns() // 3_600_000_000_000)
    await world.do(key, "HSET", "+1", 1)
    await world.do(key, "PERSIST")
    return ["the turnover of hour", "does not expire"]


@breakage
async def a_turnover_that_counts_nothing(world):
    key = keys.turnover(world.env.partitions[0], 5)
    await world.do(key, "HSET", "1", "2", "-1", "many")
    await world.do(key, "EXPIRE", 1000)
    return ["the turnover of hour 5 has 'many' as '-1', which is none"]


# --- the directory


@breakage
async def a_group_that_was_built_and_is_gone(world):
    await world.do(world.home("built"), "HSET", "99", 5)
    return ["group 99 was built, and the rules know of none such"]


@breakage
async def a_group_that_was_built_by_rules_that_are_yet_to_come(world):
    await world.do(world.home("built"), "HSET", world.groups["gold"].number, 2**52)
    return [f"was built by version '{2**52}'"]


@breakage
async def a_group_that_was_built_by_no_rules(world):
    await world.do(world.home("built"), "HSET", world.groups["gold"].number, "x")
    return ["was built by version 'x'"]


@breakage
async def a_group_that_nobody_is_to_build(world):
    await world.do(world.home("built"), "HDEL", world.groups["gold"].number)
    return ["is not built by its rule tree, and no job is to do it"]


@breakage
async def a_whole_run_that_is_none(world):
    await world.do(world.home("built"), "HSET", "whole", "soon")
    return ["built has 'soon' as whole"]


@breakage
async def rules_that_forgot_a_dynamic_group(world):
    left = [
        each for each in (await world.rules()).dynamic if each.number != world.groups["vip"].number
    ]
    await world.set_rules(dynamic=tuple(left))
    return [f"group {world.groups['vip'].number} came with version", "do not say so"]


@breakage
async def rules_that_forgot_every_dynamic_group(world):
    await world.set_rules(dynamic=())
    return ["came with version", "do not say so"]


@breakage
async def rules_that_are_lost(world):
    await world.do(world.home("rules"), "DEL")
    world.members = {
        id16: {each for each in names if each != "dogs"} for id16, names in world.members.items()
    }
    return ["came with version", "do not say so"]


@breakage
async def rules_that_say_another_version_of_a_tree(world):
    dynamic = tuple(Ruled(each.number, each.version - 1) for each in (await world.rules()).dynamic)
    await world.set_rules(dynamic=dynamic)
    return ["came with version", "do not say so"]


@breakage
async def rules_that_take_a_static_group_for_dynamic(world):
    rules = await world.rules()
    await world.set_rules(dynamic=(*rules.dynamic, Ruled(world.vips.number, rules.version)))
    return [f"the rules say that group {world.vips.number} is dynamic, which it is not"]


@breakage
async def rules_that_say_a_group_twice(world):
    rules = await world.rules()
    await world.set_rules(dynamic=(*rules.dynamic, rules.dynamic[0]))
    return [f"the rules say of group {rules.dynamic[0].number} what cannot be, or say it twice"]


@breakage
async def a_leaf_that_is_another_group(world):
    other = await world.store.groups.create_group(world.env, NewGroup(name="other"))
    await world.set_document(world.groups["vip"], leaf_groups={world.vips.id: other.number})
    return [f"names the group '{world.vips.id}' as number {other.number}, which it is not"]


@breakage
async def a_leaf_without_a_number(world):
    await world.set_document(world.groups["vip"], leaf_groups={})
    return [f"names the group '{world.vips.id}' as number none"]


@breakage
async def a_leaf_that_the_tree_does_not_name(world):
    await world.set_document(world.groups["gold"], leaf_groups={world.vips.id: world.vips.number})
    return [f"names the group '{world.vips.id}'", "its rule tree does not name"]


@breakage
async def a_tree_that_came_with_no_version(world):
    await world.set_document(world.groups["gold"], rules_version=0)
    return ["came with version 0 of the rules"]


@breakage
async def a_static_group_with_a_rule_tree(world):
    await world.set_document(world.vips, rule_tree=GOLD, rules_version=5)
    return [f"group {world.vips.number} is static, and has a rule tree"]


@breakage
async def a_dynamic_group_of_the_other_environment(world):
    other = world.application.environments["development"]
    made = await world.store.groups.create_group(other, NewGroup(name="odd"))
    world.env, production = other, world.env
    await world.set_document(made, membership_type="dynamic", rule_tree=GOLD, rules_version=5)
    world.env = production
    return [f"group {made.number} is dynamic, which no group of development is"]


@breakage
async def a_group_of_a_type_that_there_is_not(world):
    await world.set_document(world.groups["gold"], membership_type="clever")
    return ["is 'clever': static or dynamic it is"]


@breakage
async def a_static_group_of_a_type_that_there_is_not(world):
    await world.set_document(world.vips, membership_type="clever")
    return ["is 'clever': static or dynamic it is"]


@breakage
async def a_dynamic_group_that_says_it_is_static(world):
    rules = await world.rules()
    group = world.groups["gold"]
    assert any(each.number == group.number for each in rules.dynamic)
    await world.set_document(group, membership_type="static")
    return [f"group {group.number} is static, and has a rule tree"]


@breakage
async def a_job_that_saves_no_group(world):
    job = msgspec.structs.replace(new_save(1, 5), group=0)
    await world.do(world.home("jobs"), "HSET", job.id, encode_job(job))
    return [f"job {job.id} is to do what no job does"]


@breakage
async def a_job_that_builds_a_group_that_cannot_be(world):
    job = new_job("rules", 5, whole=False)
    job = msgspec.structs.replace(job, decided=True, state="running", groups=(0,))
    await world.do(world.home("jobs"), "HSET", job.id, encode_job(job))
    return [f"job {job.id} is to do what no job does"]


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
    assert await world.shown() == world.members
    settled = await verify(store)
    assert (settled.problems, settled.behind) == ([], [])
    assert (await repair(store)).mended == []


@on_servers
@pytest.mark.parametrize("seed", range(3))
async def test_repair_mends_everything_at_once(store, env, at_once, seed):
    rng = random.Random(seed)
    world = await build(store, env)
    for name in rng.sample(sorted(BREAKAGES), len(BREAKAGES)):
        if not name.startswith("rules_"):
            try:
                await BREAKAGES[name](world)
            except (TypeError, ValueError, AttributeError, AssertionError):
                # What one broke may keep the next from breaking anything.
                continue

    assert len((await verify(store)).problems) > 10
    for _ in range(3):
        await repair(store)
        await world.work()

    settled = await verify(store)
    assert (settled.problems, settled.behind) == ([], [])
    assert (await repair(store)).mended == []


# --- what nobody can mend


async def test_a_rule_tree_that_nobody_can_read_is_said_and_hurts_no_other_group(
    store, env, at_once
):
    world = await build(store, env)
    gold = world.groups["gold"]
    tree = gold.rule_tree
    await world.set_document(gold, rule_tree={"attribute": "tier", "condition": "glows"})

    report = await repair(store)

    [problem] = report.problems
    assert f"group {gold.number} has a rule tree that is none" in problem
    await world.leave(world.people[1], world.groups["dogs"].number)
    assert len((await verify(store)).problems) == 2
    assert len((await repair(store)).problems) == 1
    await world.set_document(gold, rule_tree=tree)
    assert (await repair(store)).problems == []
    await world.work()
    assert await world.shown() == world.members


async def test_a_rule_tree_whose_group_is_gone_is_said_until_it_gets_another(store, env, at_once):
    world = await build(store, env)
    vips = world.vips
    key = keys.group(env.directory, vips.number)
    await world.do(key, "DEL")

    problems = (await repair(store)).problems

    assert any(f"names the group '{vips.id}' as number" in each for each in problems)
    for name in ("vip", "poor"):
        changes = GroupChanges(rule_tree=parse_tree(GOLD))
        await store.groups.update_group(env, world.groups[name].id, changes)
    assert (await repair(store)).problems == []
    await world.work()
    # The guest, of whom nothing is known now, may have been left out by the job.
    await repair(store)
    settled = await verify(store)
    assert (settled.problems, settled.behind) == ([], [])


# --- what is on its way is nothing wrong, and nothing else is


async def write_only(world: World, id16: bytes, **texts: str) -> None:
    given = {name: value_of(text) for name, text in texts.items()}
    changes = ProfileChanges(attributes=given)
    await world.store.records.update_profile(world.env, id16, changes)


@pytest.fixture
def held_up(monkeypatch):
    """Have processes die before anything follows."""

    def hold(store):
        async def nothing(*_, **__):
            return None

        monkeypatch.setattr(store.settling, "settle", nothing)

    return hold


async def test_a_rule_that_is_yet_to_follow_is_nothing_wrong(store, env, at_once, held_up):
    world = await build(store, env)
    held_up(store)
    await write_only(world, world.people[0], tier="silver")
    await store.members.remove_members(env, world.vips.number, world.guest)
    assert await world.shown() == world.members

    assert (await verify(store)).problems == []
    assert (await repair(store)).mended == []
    # Only the rules that name what changed may lag behind.
    await world.join(world.people[0], world.groups["vip"].number)
    [problem] = (await verify(store)).problems
    assert f"is in dynamic group {world.groups['vip'].number}, and its rule does not" in problem

    await repair(store)
    await world.work()
    world.members |= {world.people[0]: set(), world.guest: set()}
    assert await world.shown() == world.members


async def test_what_time_has_turned_is_nothing_wrong_while_a_call_stands(store, env, at_once):
    world = await build(store, env)
    later = time.time_ns() // 1000 + 15 * DAY_US
    store.settling.clock = lambda: later

    assert (await verify(store)).problems == []

    due = keys.key(env.home(world.mixed(world.people[1])), "due")
    number = world.groups["recent"].number
    entry = b"%b%d" % (world.mixed(world.people[2]), number)
    await world.do(keys.key(world.tag(world.people[2]), "due"), "ZREM", entry)
    [problem] = (await verify(store)).problems
    assert f"is in dynamic group {number}, and its rule does not hold" in problem
    assert (await repair(store)).problems == []
    await store.settling.turn_due(env, later)
    assert (await verify(store)).problems == []
    shown = await world.shown()
    assert [{"gold", "recent"}, {"gold", "dogs", "recent"}, {"gold", "vip"}] == [
        shown[each] for each in world.people[:3]
    ]
    assert due


async def test_a_group_that_is_being_built_is_passed_over_and_the_others_are_not(
    store, env, at_once
):
    world = await build(store, env)
    await dynamic(store, env, "silver", {**GOLD, "value": "silver"})

    report = await verify(store)
    await world.leave(world.people[0], world.groups["gold"].number)
    broken = await verify(store)

    assert (report.problems, report.behind) == ([], [])
    assert len(broken.problems) == 1
    await repair(store)
    await world.work()
    assert (await verify(store)).problems == []
    assert await world.shown() == world.members


async def test_while_a_job_looks_at_everybody_members_may_be_behind(store, env, at_once):
    world = await build(store, env)
    await store.definitions.delete_definition(world.application, "household")

    report = await verify(store)

    assert report.problems == []
    assert [f"{world.application.client_id}: a job waits or runs"] == report.behind
    await world.work()
    settled = await verify(store)
    assert (settled.problems, settled.behind) == ([], [])
    assert not any("dogs" in names for names in (await world.shown()).values())


async def test_in_a_weekly_application_rules_over_own_attributes_follow_at_once(
    store, env, at_once
):
    world = await build(store, env)
    await store.registry.update_application(world.application.client_id, grouping="weekly")
    await store.definitions.follow_settings(world.application.client_id)
    world.application = await store.registry.application(world.application.client_id)
    await world.work()
    assert (await verify(store)).problems == []

    changes = DefinitionChanges(attributes=())
    await store.definitions.update_definition(world.application, "household", changes, "tester")
    assert await store.jobs.open_jobs(world.application) == []
    await world.leave(world.people[0], world.groups["gold"].number)
    problems = (await verify(store)).problems

    [problem] = problems
    assert f"is not in dynamic group {world.groups['gold'].number}" in problem
    await repair(store)
    await world.work()
    assert (await verify(store)).problems == []


async def test_a_profile_being_erased_is_passed_over(store, env, at_once, monkeypatch):
    world = await build(store, env)

    async def fail(*_, **__):
        raise Unavailable

    with monkeypatch.context() as patch:
        patch.setattr(store.derivation, "derive_profiles", fail)
        with pytest.raises(Unavailable):
            await store.profiles.erase_profile(env, world.people[3])

    assert (await verify(store)).problems == []
    await store.profiles.erase_profile(env, world.people[3])
    assert (await verify(store)).problems == []


async def test_more_names_while_rules_are_told_are_nothing_wrong(store, env, at_once):
    world = await build(store, env)
    key = keys.key(env.partitions[0], "named")
    await world.do(key, "SADD", "age", b"\0!")
    await world.do(world.home("installing"), "SET", (await world.rules()).version)
    assert (await verify(store)).problems == []

    await store.definitions.install(world.application)
    await world.do(key, "SREM", "age", b"\0!")


# --- much of everything


async def test_what_is_read_of_many_does_not_grow_with_the_rules(store, env, at_once, monkeypatch):
    world = await build(store, env)
    for at in range(40):
        tree = {"attribute": "tier", "condition": "is", "value": f"tier {at}"}
        await dynamic(store, env, f"more {at}", tree)
    await world.work()
    called: list[str] = []
    call = Census.call

    async def counted(self, name, *rest):
        called.append(name)
        return await call(self, name, *rest)

    monkeypatch.setattr(Census, "call", counted)
    assert (await verify(store)).problems == []

    # Per partition one step of those with a record, and one of those without.
    assert called.count("verify_subjects") <= 2 * len(env.partitions)


@pytest.mark.parametrize("partitions", [1])
@on_servers
async def test_a_profile_with_very_much_of_everything_is_looked_at_in_steps(
    store, env, at_once, monkeypatch
):
    monkeypatch.setattr(look_settled, "NAMES", 5)
    monkeypatch.setattr(look_settled, "LARGEST", 50)
    world = await build(store, env)
    for at in range(8):
        await dynamic(store, env, f"a{at}", {**GOLD, "attribute": f"a{at}"})
    await world.work()
    whole = {f"a{at}": "gold" for at in range(150)}
    await write(world, world.people[0], **whole)
    key = world.of("m", world.people[0])
    assert int(await world.do(key, "HGET", "d")) == 9
    assert (await verify(store)).problems == []

    attributes = world.of("attributes", world.people[0])
    held = await world.do(attributes, "HGET", "a3")
    await world.do(attributes, "HSET", "a3", held.replace(b"gold", b"none"))
    [problem] = (await verify(store)).problems
    assert "and its rule does not hold" in problem
    assert (await repair(store)).problems == []
    assert int(await world.do(key, "HGET", "d")) == 8


async def test_derived_memberships_among_thousands_are_counted_in_steps(store, env, at_once):
    world = await build(store, env)
    census = Census(store)
    await census.take()
    id16 = world.people[0]
    fields = [part for at in range(1000, 2500) for part in (at, 5)]
    await world.do(world.of("m", id16), "HSET", *fields)
    problems = [each for each in (await verify(store)).problems if "derived" in each]
    assert problems == []

    await world.do(world.of("m", id16), "HSET", "d", 1)
    [problem] = [each for each in (await verify(store)).problems if "derived" in each]
    assert "has 1 derived memberships" in problem
    assert (await look_members.derived(census, world.tag(id16), world.mixed(id16))) == (
        1503, b"1", 2,
    )  # fmt: skip
    assert (await repair(store)).problems == []
    assert await world.do(world.of("m", id16), "HGET", "d") == b"2"
    await world.work()
    assert await world.shown() == world.members


async def test_hundreds_of_names_of_what_changed_are_walked(store, env, at_once):
    world = await build(store, env)
    names = [f"n{at}" for at in range(700)]
    await world.do(world.of("changed", world.people[0]), "SADD", *names, b"\0:x")
    key = world.beside("unsettled", world.people[0])
    await world.do(key, "ZADD", 5, world.mixed(world.people[0]))

    [problem] = (await verify(store)).problems

    assert r"changed in '\x00:x'" in problem
    assert (await repair(store)).problems == []
    assert await world.do(world.of("changed", world.people[0]), "SCARD") == 700
    await world.work()
    assert await world.do(key, "ZCARD") == 0


async def change_one(world, rng):
    """Change a fact of somebody."""
    id16, vips = rng.choice(world.people), world.vips.number
    kind = rng.randrange(4)
    if kind == 0:
        await write(world, id16, tier=rng.choice(["gold", "silver"]))
    elif kind == 1:
        dog = rng.choice(["true", "false"])
        await write(world, id16, **{"$Address": rng.choice(["here", "x"]), "has_dog": dog})
    elif kind == 2:
        await world.store.members.add_members(world.env, vips, id16)
    else:
        await world.store.members.remove_members(world.env, vips, id16)


@on_servers
async def test_verify_reports_nothing_while_people_and_rules_change(backing, store, env):
    world = await build(store, env)
    other = await Store.open(backing.url)
    ended, done = False, 0

    async def change(seed):
        nonlocal done
        rng = random.Random(seed)
        until = time.monotonic() + 3
        while time.monotonic() < until:
            await change_one(world, rng)
            done += 1

    async def rule():
        until = time.monotonic() + 3
        values = ["gold", "silver"]
        while time.monotonic() < until:
            values.reverse()
            tree = parse_tree({**GOLD, "value": values[0]})
            gold = world.groups["gold"]
            await store.groups.update_group(env, gold.id, GroupChanges(rule_tree=tree))
            made = await dynamic(store, env, "passing", {"group": world.vips.id})
            await store.jobs.work(world.application, store.derivation)
            await store.groups.delete_group(env, made.id)
            await store.upkeep.sweep_groups(env, 2**53)

    async def watch():
        problems = set()
        while not ended:
            problems.update((await verify(other)).problems)
        return problems

    async def write_all():
        nonlocal ended
        try:
            await asyncio.gather(*map(change, range(3)), rule())
        finally:
            ended = True

    try:
        _, problems = await asyncio.gather(write_all(), watch())
    finally:
        await other.close()

    assert done > 20
    assert problems == set()
    await world.work()


async def test_an_application_that_is_half_deleted_is_nothing_wrong(store, env, at_once):
    world = await build(store, env)
    for id16 in (*world.people, world.guest):
        await store.profiles.erase_profile(env, id16)
    for group in (*world.groups.values(), world.vips):
        await store.groups.delete_group(env, group.id)
    while await store.upkeep.sweep_groups(env, 2**53):
        pass
    key = b"{belong}:applications"
    number = str(world.application.number)
    document = msgspec.json.decode(await world.do(key, "HGET", number))
    going = msgspec.json.encode(document | {"deleting_since_us": 1})
    await world.do(key, "HSET", number, going)
    await world.do(world.home("rules"), "DEL")

    assert (await verify(store)).problems == []
    assert (await repair(store)).mended == []
