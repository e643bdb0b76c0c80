"""Dynamic groups in the directory: document and rules change together, and partitions know both."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from service import ids, keys, scripts, store_books, store_dynamic, store_jobs
from service.errors import Conflict, Invalid, NotFound, Unavailable
from service.faults import POINTS
from service.groups import (
    Attribute,
    GroupChanges,
    GroupDocument,
    NewGroup,
    NotStatic,
    decode,
    encode,
)
from service.nearcache import Directory
from service.rules import parse_tree
from service.store import Store
from service.store_definitions import decode_rules
from service.store_dynamic import Status
from service.store_records import ProfileChanges
from service.worker import work
from tests.test_store_definitions import ask, in_force, told
from tests.test_store_definitions import create as define
from tests.test_store_settling import members, write

both_topologies = pytest.mark.parametrize(
    ("backing", "partitions"), [("embedded", 1), ("cluster", 8)], indirect=True
)
on_one = pytest.mark.parametrize(("backing", "partitions"), [("embedded", 1)], indirect=True)
HAS_DOG = {"attribute": "has_dog", "condition": "equals", "value": "true"}
HAS_CAT = {"attribute": "has_cat", "condition": "equals", "value": "true"}
HAS_DOG_TOO = {"attribute": "dogs", "condition": "greater_than", "value": 0}
NOBODY = "00000000-0000-4000-8000-000000000000"


def member_of(group):
    return {"group": group}


def all_of(*children):
    return {"operator": "AND", "children": list(children)}


async def make(store, env, tree=HAS_DOG, name="dogs", **fields):
    new = NewGroup(name=name, membership_type="dynamic", rule_tree=parse_tree(tree), **fields)
    return await store.groups.create_group(env, new)


async def static(store, env, name="g", **fields):
    return await store.groups.create_group(env, NewGroup(name=name, **fields))


async def retree(store, env, group, tree, **changes):
    given = GroupChanges(rule_tree=parse_tree(tree), **changes)
    return await store.groups.update_group(env, group.id, given)


async def rules_of(store, application):
    """The rules as the directory has them, without any copy."""
    key = keys.key(application.production.directory, "rules")
    return decode_rules(await ask(store, key, "GET"))


async def job_names(store, application):
    return await ask(store, keys.key(application.production.directory, "jobs"), "HKEYS")


async def built(store, application):
    found = await store.jobs.read_built(application)
    return {int(name): version for name, version in found.items() if name.isdigit()}


async def everything(store, application):
    """All that a change of a dynamic group may touch in the directory, as it is stored."""
    home = application.production.directory
    found = {}
    for kind in ("rules", "installing", "jobs", "built", "group_ids", "group_custom_ids"):
        key = keys.key(home, kind)
        found[kind] = await ask(store, key, "DUMP")
    return found


# What a dynamic group is


async def test_a_dynamic_group_is_read_as_it_was_made(store, application, env):
    vip = await static(store, env, custom_id="vip")
    made = await make(
        store,
        env,
        all_of(HAS_DOG, member_of("vip"), member_of(vip.id.upper())),
        custom_id="c",
        description="d",
        attributes=(Attribute("k", "v"),),
        created_by="client_id:me",
    )
    assert made == await store.groups.get_group(env, made.id) == await only(store, env, made)
    assert all_of(HAS_DOG, member_of(vip.id), member_of(vip.id)) == made.rule_tree
    assert ({vip.id: vip.number}, "dynamic", True) == (
        made.leaf_groups,
        made.membership_type,
        made.is_dynamic,
    )
    assert ("client_id:me", "client_id:me") == (made.created_by, made.modified_by)
    rules = await in_force(store, application)
    assert [(made.number, made.rules_version)] == [
        (each.number, each.version) for each in rules.dynamic
    ]
    assert rules.version == made.rules_version


async def only(store, env, group):
    return (await store.groups.read_groups(env, [group.number], cached=False))[group.number]


async def test_numbers_of_a_tree_stay_what_they_were_given_as(store, application, env):
    values = [Decimal("0.1"), 7, Decimal("12345678901234567890.5"), 2**63, "0.10"]
    leaves = [{"attribute": "a", "condition": "greater_than", "value": value} for value in values]
    made = await make(store, env, all_of(*leaves))
    found = await only(store, env, made)
    assert made == found
    shown = [str(each["value"]) for each in found.rule_tree["children"]]
    assert list(map(str, values)) == shown


async def test_every_partition_knows_what_it_names_when_it_is_answered(store, application, env):
    vip = await static(store, env)
    await make(store, env, all_of(HAS_DOG, member_of(vip.id)))
    await in_force(store, application)
    assert [{b"has_dog", keys.named_group(vip.number)}] * len(env.partitions) == await told(
        store, env
    )


async def test_what_no_tree_names_any_more_no_partition_knows(store, application, env):
    one, two = await make(store, env), await make(store, env, HAS_CAT)
    await retree(store, env, one, {"attribute": "age", "condition": "exists"})
    assert [{b"age", b"has_cat"}] * len(env.partitions) == await told(store, env)
    await store.groups.delete_group(env, two.id)
    assert [{b"age"}] * len(env.partitions) == await told(store, env)
    await store.groups.delete_group(env, one.id)
    assert [set()] * len(env.partitions) == await told(store, env)
    await in_force(store, application)


async def test_a_tree_that_is_true_of_nobody_known_names_having_any_fact(store, application, env):
    await make(store, env, {"attribute": "age", "condition": "not_exists"})
    assert [{b"age", keys.named_group(0)}] * len(env.partitions) == await told(store, env)
    await in_force(store, application)


async def test_what_a_definition_shares_is_named_when_it_comes_and_no_more_when_it_goes(
    store, application, env
):
    await make(store, env, {"attribute": "household:has_dog", "condition": "exists"})
    assert [{b"household:has_dog"}] * len(env.partitions) == await told(store, env)
    definition = await define(store, application)
    named = {b"household:has_dog", keys.named_definition(definition.number)}
    assert [named] * len(env.partitions) == await told(store, env)
    await store.definitions.delete_definition(application, "household")
    assert [{b"household:has_dog"}] * len(env.partitions) == await told(store, env)
    await in_force(store, application)


async def test_another_tree_is_another_version_and_another_name_is_not(store, application, env):
    made = await make(store, env, created_by="client_id:me")
    version = (await in_force(store, application)).version
    changes = GroupChanges(
        name="cats", description="d", custom_id="c", is_active=False, modified_by="client_id:you"
    )
    named = await store.groups.update_group(env, made.id, changes)
    assert (version, version) == (
        named.rules_version,
        (await in_force(store, application)).version,
    )
    assert (HAS_DOG, "client_id:me", "client_id:you") == (
        named.rule_tree,
        named.created_by,
        named.modified_by,
    )
    given = GroupChanges(rule_tree=parse_tree(HAS_CAT), is_active=True)
    changed = await store.groups.update_group(env, made.id, given, include_inactive=True)
    assert changed == await store.groups.get_group(env, "c")
    assert (HAS_CAT, "cats", True) == (changed.rule_tree, changed.name, changed.is_active)
    assert version < changed.rules_version == (await in_force(store, application)).version


async def test_the_same_tree_again_changes_nothing_that_follows(store, application, env):
    vip = await static(store, env, custom_id="vip")
    made = await make(store, env, all_of(HAS_DOG, member_of("vip")))
    await work(store)
    jobs = await job_names(store, application)
    again = await retree(store, env, made, all_of(HAS_DOG, member_of(vip.id)), name="new")
    assert ("new", made.rules_version) == (again.name, again.rules_version)
    assert jobs == await job_names(store, application)
    rebuilt = await retree(store, env, made, all_of(member_of(vip.id), HAS_DOG))
    assert made.rules_version < rebuilt.rules_version


async def test_true_and_one_are_two_trees(store, env):
    one = {"attribute": "a", "condition": "in_list", "value": [1]}
    made = await make(store, env, one)
    changed = await retree(store, env, made, one | {"value": [Decimal("1.0")]})
    assert made.rules_version < changed.rules_version


async def test_a_change_of_a_group_that_another_one_overtook_is_made_again(
    store, second, application, env
):
    made = await make(store, env)
    one, two = await asyncio.gather(
        retree(store, env, made, HAS_CAT),
        second.groups.update_group(env, made.id, GroupChanges(name="new")),
    )
    found = await only(store, env, made)
    assert (HAS_CAT, "new") == (found.rule_tree, found.name)
    assert found.version == max(one.version, two.version)
    await in_force(store, application)


async def test_a_deleted_group_is_in_no_rules(store, application, env):
    one, two = await make(store, env), await make(store, env, HAS_CAT)
    await work(store, grace_us=0)
    assert {one.number, two.number} == set(await built(store, application))
    await store.groups.delete_group(env, one.id)
    rules = await in_force(store, application)
    assert [two.number] == [each.number for each in rules.dynamic]
    assert {two.number} == set(await built(store, application))
    with pytest.raises(NotFound):
        await store.groups.get_group(env, one.id, include_inactive=True)
    assert [two.number] == list((await store.definitions.book(env)).rules_by_number)


async def test_a_dynamic_group_may_be_made_inactive(store, application, env):
    made = await make(store, env, is_active=False)
    rules = await in_force(store, application)
    assert [made.number] == [each.number for each in rules.dynamic]
    with pytest.raises(NotFound):
        await store.groups.get_group(env, made.id)
    for tag in env.partitions:
        held = await ask(store, keys.key(tag, "state"), "HGET", str(made.number))
        assert b"i" == held[-1:]


# What is refused


@pytest.mark.parametrize("leaf", [NOBODY, "nobody", "gone", "foreign", "sibling", "dynamic"])
async def test_a_group_that_a_tree_cannot_name_is_refused_with_its_place(
    store, application, env, leaf
):
    other = await store.registry.create_application("other")
    gone = await static(store, env)
    await store.groups.delete_group(env, gone.id)
    named = {
        "gone": gone.id,
        "foreign": (await static(store, other.production)).id,
        "sibling": (await static(store, application.environments["development"])).id,
        "dynamic": (await make(store, env)).id,
    }
    tree = all_of(HAS_DOG, {"operator": "NOT", "children": [member_of(named.get(leaf, leaf))]})
    before = await everything(store, application)
    with pytest.raises(Invalid, match=r"\$\.rule_tree\.children\[1\]\.children\[0\]\.group") as ex:
        await make(store, env, tree)
    assert "rule_tree" == ex.value.field
    assert before == await everything(store, application)
    made = await make(store, env, HAS_CAT)
    before = await everything(store, application)
    with pytest.raises(Invalid, match=r"\$\.rule_tree\.children\[1\]\.children\[0\]\.group"):
        await retree(store, env, made, tree)
    assert before == await everything(store, application)


async def test_an_inactive_group_may_be_named(store, application, env):
    vip = await static(store, env, is_active=False)
    made = await make(store, env, member_of(vip.id))
    assert {vip.id: vip.number} == made.leaf_groups
    await in_force(store, application)


async def test_a_tree_and_a_type_that_do_not_go_together_are_refused(store, application, env):
    tree = parse_tree(HAS_DOG)
    for fields in (
        {"membership_type": "dynamic"},
        {"membership_type": "static", "rule_tree": tree},
        {"membership_type": "dynamic", "rule_tree": tree, "saved_query": {"group": "vip"}},
    ):
        with pytest.raises(Invalid):
            await store.groups.create_group(env, NewGroup(name="g", **fields))
    vip = await static(store, env)
    with pytest.raises(Invalid, match="Only a dynamic group"):
        await retree(store, env, vip, HAS_DOG)
    assert 0 == (await in_force(store, application)).version


async def test_there_are_none_in_development(store, application):
    other = application.environments["development"]
    with pytest.raises(Invalid, match="production"):
        await make(store, other)
    with pytest.raises(Invalid, match="production"):
        await store.dynamic.bound(other, parse_tree(HAS_DOG))
    assert 0 == (await in_force(store, application)).version
    book = await store.definitions.book(other)
    assert ((), frozenset()) == (tuple(book.rules_by_number), book.named)


async def test_one_more_than_the_setting_allows_is_refused(store, application, env):
    application = await store.registry.update_application("test", dynamic_groups=2)
    one, _ = await make(store, env), await make(store, env, HAS_CAT)
    before = await everything(store, application)
    with pytest.raises(Conflict, match="at most 2 dynamic groups"):
        await make(store, env, name="third")
    assert before == await everything(store, application)
    await retree(store, env, one, HAS_CAT)
    await store.groups.delete_group(env, one.id)
    await make(store, env, name="third")
    assert 2 == len((await in_force(store, application)).dynamic)


async def test_of_two_who_make_the_last_one_allowed_one_is_refused(store, second, application, env):
    await store.registry.update_application("test", dynamic_groups=1)
    for each in (store, second):
        await each.registry.list_applications()
    done = await asyncio.gather(
        *(make(each, env) for each in (store, second)), return_exceptions=True
    )
    assert 1 == sum(isinstance(each, Conflict) for each in done)
    assert 1 == len((await in_force(store, application)).dynamic)


async def test_ids_in_use_are_refused_and_change_no_rules(store, application, env):
    made = await make(store, env, custom_id="c")
    before = await everything(store, application)
    for fields in ({"id": made.id}, {"custom_id": "c"}):
        with pytest.raises(Conflict, match="already exists"):
            await make(store, env, **fields)
    other = await static(store, env, custom_id="d")
    with pytest.raises(Conflict, match="already exists"):
        await retree(store, env, made, HAS_CAT, custom_id="d")
    await store.groups.delete_group(env, other.id)
    assert before == await everything(store, application)
    await in_force(store, application)


# Static groups that trees name


async def test_a_group_that_a_tree_names_is_not_deleted(store, application, env):
    vip = await static(store, env, custom_id="vip")
    made = await make(store, env, all_of(HAS_DOG, member_of("vip")), is_active=False)
    with pytest.raises(Conflict, match=made.id):
        await store.groups.delete_group(env, vip.id)
    assert vip == await store.groups.get_group(env, "vip")
    await store.groups.update_group(
        env, made.id, GroupChanges(rule_tree=parse_tree(HAS_CAT)), include_inactive=True
    )
    await store.groups.delete_group(env, vip.id)
    await in_force(store, application)


async def test_the_first_five_that_name_it_are_said_and_how_many_more(store, application, env):
    vip = await static(store, env)
    made = [await make(store, env, member_of(vip.id), name=str(n)) for n in range(7)]
    with pytest.raises(Conflict) as ex:
        await store.groups.delete_group(env, vip.id)
    assert [True] * 5 + [False] * 2 == [each.id in str(ex.value) for each in made]
    assert "and 2 more" in str(ex.value)
    for each in made:
        await store.groups.delete_group(env, each.id)
    await store.groups.delete_group(env, vip.id)
    await in_force(store, application)


async def test_a_process_whose_copy_of_the_rules_is_old_decides_by_those_in_force(
    store, second, application, env
):
    vip, gold = await static(store, env), await static(store, env)
    made = await make(store, env, member_of(gold.id))
    await second.definitions.book(env)
    await retree(store, env, made, member_of(vip.id))
    with pytest.raises(Conflict, match=made.id):
        await second.groups.delete_group(env, vip.id)
    await retree(store, env, made, HAS_DOG)
    await second.groups.delete_group(env, vip.id)
    await second.groups.delete_group(env, gold.id)
    await in_force(store, application)


async def test_groups_of_development_are_deleted_whatever_the_rules_say(store, application, env):
    await make(store, env)
    other = application.environments["development"]
    made = await static(store, other)
    await store.groups.delete_group(other, made.id)
    await in_force(store, application)


async def before_script(store, name, action):
    """Have something done just before this store calls a script for the first time."""
    call, waiting = store.connection.call, [action]

    async def first(script, keys_, args, **options):
        if script.name == name and waiting:
            await waiting.pop()()
        return await call(script, keys_, args, **options)

    store.connection.call = first


@pytest.mark.parametrize("operation", ["create", "update"])
async def test_a_group_that_is_deleted_while_a_tree_comes_to_name_it_is_not_named(
    store, second, application, env, operation
):
    vip = await static(store, env)
    made = await make(store, env) if operation == "update" else None
    await before_script(
        store, f"{operation}_dynamic", lambda: second.groups.delete_group(env, vip.id)
    )
    tree = all_of(HAS_DOG, member_of(vip.id))
    with pytest.raises(Invalid, match=r"children\[1\]\.group"):
        await (make(store, env, tree) if made is None else retree(store, env, made, tree))
    rules = await in_force(store, application)
    assert ([] if made is None else [made.rules_version]) == [
        each.version for each in rules.dynamic
    ]


async def test_another_group_under_the_id_that_a_tree_names_is_another_number(
    store, second, application, env
):
    vip = await static(store, env)

    async def anew():
        await second.groups.delete_group(env, vip.id)
        await static(second, env, id=vip.id)

    await before_script(store, "create_dynamic", anew)
    made = await make(store, env, member_of(vip.id))
    assert made.leaf_groups[vip.id] == await store.groups.number_of(env, vip.id)
    await in_force(store, application)


@pytest.mark.parametrize("operation", ["create", "update"])
async def test_a_tree_that_comes_to_name_a_group_that_is_being_deleted_keeps_it(
    store, second, application, env, operation
):
    vip = await static(store, env)
    made = [await make(second, env)] if operation == "update" else []

    async def name_it():
        if made:
            await retree(second, env, made[0], member_of(vip.id))
        else:
            made.append(await make(second, env, member_of(vip.id)))

    await before_script(store, "delete_group", name_it)
    with pytest.raises(Conflict, match="rule trees of dynamic groups name it"):
        await store.groups.delete_group(env, vip.id)
    assert vip == await store.groups.get_group(env, vip.id)
    await in_force(store, application)


@both_topologies
async def test_whoever_is_first_wins_and_no_tree_names_a_group_that_is_gone(
    store, second, application, env
):
    outcomes = set()
    for n in range(12):
        vip = await static(store, env, name=str(n))
        pause = asyncio.sleep(n % 4 / 1000)
        done = await asyncio.gather(
            make(store, env, member_of(vip.id)),
            delayed(pause, second.groups.delete_group(env, vip.id)),
            return_exceptions=True,
        )
        outcomes.add((isinstance(done[0], Invalid), isinstance(done[1], Conflict)))
    assert outcomes <= {(True, False), (False, True)}
    await in_force(store, application)


async def delayed(pause, work):
    await pause
    return await work


# Several at once


async def test_rules_and_definitions_that_change_at_once_all_change(
    store, second, application, env
):
    application = await store.registry.update_application("test", definitions_per_workspace=100)
    stores = itertools.cycle((store, second))
    made = await asyncio.gather(
        *(make(next(stores), env, name=str(n)) for n in range(5)),
        *(define(next(stores), application, id=f"d{n}00") for n in range(5)),
    )
    changed = await asyncio.gather(
        *(retree(next(stores), env, each, HAS_CAT) for each in made[:3]),
        *(next(stores).groups.delete_group(env, each.id) for each in made[3:5]),
        *(next(stores).definitions.delete_definition(application, f"d{n}00") for n in range(3)),
    )
    rules = await in_force(store, application)
    assert {(each.number, each.rules_version) for each in changed[:3]} == {
        (each.number, each.version) for each in rules.dynamic
    }
    assert {"d300", "d400"} == {each.id for each in rules.definitions}


async def test_who_always_loses_gives_up(store, application, env, monkeypatch):
    call = store.connection.call

    async def lost(script, keys_, args, **options):
        if script.name in ("create_dynamic", "update_dynamic", "delete_dynamic"):
            args = [*args]
            at = {"create_dynamic": 6, "update_dynamic": 8, "delete_dynamic": 5}[script.name]
            args[at] = b"other rules"
        return await call(script, keys_, args, **options)

    made = await make(store, env)
    before = await everything(store, application)
    with monkeypatch.context() as patched:
        patched.setattr(store.connection, "call", lost)
        for change in (
            make(store, env, HAS_CAT),
            retree(store, env, made, HAS_CAT),
            store.groups.delete_group(env, made.id),
        ):
            with pytest.raises(Conflict, match="too many others"):
                await change
    assert before == await everything(store, application)


async def test_a_creation_that_was_sent_twice_happened_once(store, application, env, monkeypatch):
    """After a connection broke in mid-write nobody knows whether the script ran."""
    call = store.connection.call

    async def twice(script, keys_, args, **options):
        one = await call(script, keys_, args, **options)
        if script.name == "create_dynamic":
            assert one == await call(script, keys_, args, **options)
        return one

    monkeypatch.setattr(store.connection, "call", twice)
    made = await make(store, env)
    assert [made.number] == [each.number for each in (await in_force(store, application)).dynamic]
    assert 1 == len(await job_names(store, application))


# The book


async def test_trees_that_are_known_are_not_read_again(
    store, second, application, env, monkeypatch
):
    groups = [await make(store, env, name=str(n)) for n in range(5)]
    await second.definitions.book(env)
    read = []
    call = second.connection.call

    async def noted(script, keys_, args, **options):
        if script.name == "read_groups":
            read.extend(args)
        return await call(script, keys_, args, **options)

    monkeypatch.setattr(second.connection, "call", noted)
    made = await make(store, env, HAS_CAT)
    await retree(store, env, groups[0], HAS_CAT)
    await store.groups.delete_group(env, groups[1].id)
    rules = await second.definitions.reload(env)
    book = await second.definitions.book(env)
    assert {made.number, groups[0].number} == set(read)
    assert rules is book.rules
    assert [each.number for each in rules.dynamic] == sorted(book.rules_by_number)
    assert {b"has_cat", b"has_dog"} == book.named
    assert book is await second.definitions.book(env)


async def test_a_book_is_of_one_version_whatever_changes_while_it_is_read(
    store, second, application, env
):
    made = [await make(store, env, name=str(n)) for n in range(3)]
    await second.definitions.rules(env)

    async def change():
        await retree(store, env, made[0], HAS_CAT)
        await store.groups.delete_group(env, made[1].id)

    await before_script(second, "read_groups", change)
    book = await second.definitions.book(env)
    rules = await rules_of(store, application)
    assert rules == book.rules
    assert {each.number: each.version for each in rules.dynamic} == {
        number: rule.version for number, rule in book.rules_by_number.items()
    }
    assert {b"has_cat", b"has_dog"} == book.named


async def test_a_book_that_many_ask_for_at_once_is_read_once(
    store, second, application, env, monkeypatch
):
    for n in range(3):
        await make(store, env, name=str(n))
    await second.definitions.rules(env)
    reads = []
    call = second.connection.call

    async def noted(script, keys_, args, **options):
        if script.name == "read_groups":
            reads.append(args)
        return await call(script, keys_, args, **options)

    monkeypatch.setattr(second.connection, "call", noted)
    books = await asyncio.gather(*(second.definitions.book(env) for _ in range(10)))
    assert (1, 1) == (len(set(map(id, books))), len(reads))


@on_one
async def test_a_tree_that_cannot_be_read_keeps_no_other_group_from_its_members(
    backing, store, application, env, caplog
):
    bad, good = await make(store, env), await make(store, env, HAS_CAT)
    key = keys.group(env.directory, bad.number)
    raw = await ask(store, key, "HGET", "document")
    odd = json.loads(raw) | {"rule_tree": {"attribute": "a", "condition": "of the future"}}
    await ask(store, key, "HSET", "document", json.dumps(odd).encode())
    fresh = await Store.open(backing.url)
    with caplog.at_level(logging.ERROR):
        book = await fresh.definitions.book(env)
    assert [good.number] == list(book.rules_by_number)
    assert f"dynamic group {bad.number} of test has no tree that fits" in caplog.text
    await make(fresh, env, HAS_DOG, name="third")
    await fresh.close()
    await ask(store, key, "HSET", "document", raw)
    await retree(store, env, bad, HAS_CAT)
    await in_force(store, application)


async def test_a_process_remembers_no_more_books_than_it_may(store, application, env, monkeypatch):
    monkeypatch.setattr(store_books, "COPIES", 1)
    other = (await store.registry.create_application("other")).production
    made = [await make(store, each) for each in (env, other)]
    for _ in range(2):
        for each, group in zip((env, other), made, strict=True):
            assert [group.number] == list((await store.definitions.book(each)).rules_by_number)
    await in_force(store, application)


# Telling partitions


@pytest.fixture
def few_names(monkeypatch):
    """Three names a script."""
    monkeypatch.setattr(store_books, "NAMED", 3)


def about(*names):
    return all_of(*({"attribute": name, "condition": "exists"} for name in names))


async def test_names_that_are_too_many_for_one_script_are_told_in_several(
    store, application, env, few_names
):
    made = await make(store, env, about(*(f"a{n}" for n in range(10))))
    await in_force(store, application)
    await retree(store, env, made, about(*(f"a{n}" for n in range(5, 15))))
    await in_force(store, application)
    await make(store, env, about("a1", "b"), name="second")
    await in_force(store, application)
    await store.groups.delete_group(env, made.id)
    assert [{b"a1", b"b"}] * len(env.partitions) == await told(store, env)
    await in_force(store, application)


async def test_a_partition_that_is_behind_is_told_all_names(
    store, second, application, env, few_names
):
    await make(store, env, about("a", "b"))
    await second.definitions.book(env)
    await make(store, env, about(*(f"c{n}" for n in range(7))), name="second")
    for tag in env.partitions:
        for kind in ("rules", "watch", "named"):
            await ask(store, keys.key(tag, kind), "DEL")
    await second.definitions.reload(env)
    assert 9 == len((await told(store, env))[0])
    for tag in application.environments["development"].partitions:
        await ask(store, keys.key(tag, "rules"), "DEL")
    await second.definitions.install(application)
    await in_force(store, application)


@pytest.mark.parametrize("script", ["add_named", "install_rules"])
async def test_names_that_somebody_else_took_out_meanwhile_are_told_again(
    store, second, application, env, few_names, monkeypatch, script
):
    """Parts of later rules were there already when earlier ones took all others out."""
    await make(store, env, about("a"))
    rules = await rules_of(store, application)
    tag = env.partitions[0]
    held = [*(keys.key(tag, kind) for kind in ("rules", "watch", "named")), keys.none(tag)]
    await ask(store, held[0], "SET", rules.version - 1)
    calls: list[str] = []
    call = store.connection.call

    async def interrupted(called, keys_, args, **options):
        # The second part of the names, or the rules after all of them.
        is_late = called.name == script and args[1] in (0, "added")
        if is_late and keys_[-1] == keys.none(tag) and not calls:
            calls.append(called.name)
            between = [rules.version, "all", 0, 1, rules.before, "a"]
            await call(scripts.load("install_rules"), held, between)
        return await call(called, keys_, args, **options)

    monkeypatch.setattr(store.connection, "call", interrupted)
    await make(store, env, about(*(f"b{n}" for n in range(10))), name="second")
    assert [script] == calls
    await in_force(store, application)


async def test_names_that_a_dead_process_did_not_take_out_any_more_the_worker_takes_out(
    store, second, application, env, few_names, monkeypatch
):
    made = await make(store, env, about(*(f"a{n}" for n in range(6))))
    await second.definitions.install(application)

    async def died(*_args):
        raise Unavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(store.definitions._books, "_told", {})
        patched.setattr(store.definitions._books, "_drop_named", died)
        with pytest.raises(Unavailable):
            await retree(store, env, made, about(*(f"a{n}" for n in range(1, 6))))
    assert 6 == len((await told(store, env))[0])
    await second.jobs.work(application, second.derivation)
    await in_force(store, application)


async def test_a_partition_with_other_rules_than_expected_is_told_all(
    store, second, application, env
):
    await make(store, env)
    await make(second, env, HAS_CAT)
    await make(store, env, {"attribute": "age", "condition": "exists"})
    assert [{b"has_dog", b"has_cat", b"age"}] * len(env.partitions) == await told(store, env)
    await in_force(store, application)


@on_one
async def test_the_thousandth_group_costs_a_partition_what_the_first_did(
    store, application, env, monkeypatch
):
    sent = []
    call = store.connection.call

    async def noted(script, keys_, args, **options):
        if script.name in ("install_rules", "add_named"):
            sent.append(len(args))
        return await call(script, keys_, args, **options)

    monkeypatch.setattr(store.connection, "call", noted)
    for n in range(60):
        await make(store, env, about(f"{n}a", f"{n}b"), name=str(n))
    assert set(sent[4:]) == {5, 7}
    assert 120 == len((await told(store, env))[0])
    await in_force(store, application)


# Processes that die, stores that lose or refuse writes

OPERATIONS = ("create", "update", "delete")


@both_topologies
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("point", ["dynamic.written", "dynamic.installed"])
async def test_what_a_killed_process_left_the_worker_completes(
    backing, store, application, env, operation, point
):
    made = [await make(store, env)] if operation != "create" else []
    await work(store, grace_us=0)
    died_with = await asyncio.to_thread(in_a_process, backing.url, operation, point)
    assert -signal.SIGKILL == died_with
    await work(store, grace_us=0)
    rules = await in_force(store, application)
    wanted = {"create": HAS_DOG, "update": HAS_CAT}.get(operation)
    if wanted is None:
        assert () == rules.dynamic
        with pytest.raises(NotFound):
            await store.groups.get_group(env, made[0].id)
    else:
        [ruled] = rules.dynamic
        found = (await store.groups.read_groups(env, [ruled.number], cached=False))[ruled.number]
        assert (wanted, ruled.version) == (found.rule_tree, found.rules_version)
        assert {ruled.number: ruled.version} == await built(store, application)


@both_topologies
async def test_who_repeats_what_a_killed_process_began_has_it_in_force(
    backing, store, application, env
):
    made = await make(store, env)
    await asyncio.to_thread(in_a_process, backing.url, "update", "dynamic.written")
    again = await retree(store, env, made, HAS_CAT)
    rules = await in_force(store, application)
    assert again.rules_version == rules.version


def test_every_fault_point_of_a_dynamic_group_has_a_case():
    assert {"dynamic.written", "dynamic.installed"} == {
        point for point in POINTS if point.startswith("dynamic.")
    }


def in_a_process(url, operation, point):
    """Run an operation in a process that is to die at a point; its return code."""
    code = f"import tests.test_store_dynamic as t; t.child({url!r}, {operation!r})"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"BELONG_FAULT": point},
        check=False,
        timeout=60,
    ).returncode


def child(url, operation):
    async def run():
        store = await Store.open(url)
        [application] = await store.registry.list_applications()
        env = application.production
        if operation == "create":
            await make(store, env)
            return
        [group] = (await rules_of(store, application)).dynamic
        gid = (await store.groups.read_groups(env, [group.number]))[group.number].id
        if operation == "update":
            changes = GroupChanges(rule_tree=parse_tree(HAS_CAT))
            await store.groups.update_group(env, gid, changes)
        else:
            await store.groups.delete_group(env, gid)

    asyncio.run(run())


@pytest.mark.parametrize("grouping", ["realtime", "weekly"])
async def test_after_a_failover_that_lost_a_tree_everybody_is_looked_at_again(
    store, second, application, env, grouping
):
    application = await store.registry.update_application("test", grouping=grouping)
    made = await make(store, env)
    await work(store, grace_us=0)
    home = env.directory
    kept = {kind: await ask(store, key, "DUMP") for kind, key in directory_keys(home, made.number)}
    await retree(store, env, made, HAS_CAT)
    seen = (await in_force(store, application)).version
    for kind, key in directory_keys(home, made.number):
        await ask(store, key, "DEL")
        await ask(store, key, "RESTORE", 0, kept[kind])
    assert {made.number} == set(await built(store, application))
    rules = await second.definitions.reload(env, seen)
    assert seen < rules.version
    assert {} == await built(store, application)
    store.cache.directory(home).forget_all()
    [status] = (await store.dynamic.statuses(application, [await only(store, env, made)])).values()
    assert "building" == status.state
    [job] = [each for each in await store.jobs.list_jobs(application) if not each.is_over]
    await second.jobs.work(application, second.derivation)
    done = await store.jobs.get_job(application, job.id)
    assert ("done", True) == (done.state, done.whole)
    assert {made.number: made.rules_version} == await built(store, application)
    assert [{b"has_dog"}] * len(env.partitions) == await told(store, env)
    await store.definitions.reload(env)
    await in_force(store, application)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("most", [store_books.NAMED, 1])
async def test_a_change_after_a_failover_does_not_hide_that_rules_were_lost(
    store, second, application, env, monkeypatch, known, most
):
    """Partitions have members by the lost tree, and noted nothing of what it did not name."""
    made = await make(store, env, all_of(HAS_DOG, HAS_DOG_TOO))
    await work(store, grace_us=0)
    home = env.directory
    kept = {kind: await ask(store, key, "DUMP") for kind, key in directory_keys(home, made.number)}
    await retree(store, env, made, HAS_CAT)
    cat, dog = ids.new(), ids.new()
    await write(store, env, {cat: {"has_cat": True}, dog: {"has_dog": True, "dogs": 1}})
    assert [cat] == await members(store, env, made.number, [cat, dog])
    for kind, key in directory_keys(home, made.number):
        await ask(store, key, "DEL")
        await ask(store, key, "RESTORE", 0, kept[kind])
    store.cache.directory(home).forget_all()
    monkeypatch.setattr(store_books, "NAMED", most)
    await make(store if known else second, env, HAS_CAT, "cats")
    await work(second, grace_us=0)
    assert [dog] == await members(second, env, made.number, [cat, dog])
    await in_force(second, application)


def directory_keys(home, number):
    kinds = ("rules", "jobs", "built", "version")
    return [(kind, keys.key(home, kind)) for kind in kinds] + [
        ("group", keys.group(home, number)),
    ]


async def test_a_job_that_ran_into_a_failover_built_nothing(store, second, application, env):
    """It was about to end when all was to be built anew."""
    made = await make(store, env)
    end = store.jobs._end

    async def late(application, raw, job, error=None):
        ahead = (await rules_of(store, application)).version + 5_000_000
        for each in application.environments.values():
            for tag in each.partitions:
                await ask(store, keys.key(tag, "rules"), "SET", ahead)
        await second.definitions.reload(env, ahead)
        store.jobs._end = end
        await end(application, raw, job, error)

    store.jobs._end = late
    jobs = []
    queue = store.jobs._run

    async def noted(*args):
        ended = await queue(*args)
        jobs.append(await built(store, application))
        return ended

    store.jobs._run = noted
    assert 2 == await store.jobs.work(application, store.derivation)
    assert [{}, {made.number: made.rules_version}] == jobs
    await in_force(store, application)


@on_one
async def test_a_full_store_can_still_lose_a_dynamic_group(backing, store, application, env):
    made = await make(store, env)
    before = await everything(store, application)
    backing.ask("CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(Unavailable):
            await make(store, env, HAS_CAT)
        with pytest.raises(Unavailable):
            await retree(store, env, made, HAS_CAT)
        assert before == await everything(store, application)
        await store.groups.delete_group(env, made.id)
    finally:
        backing.ask("CONFIG", "SET", "maxmemory", "0")
    assert () == (await in_force(store, application)).dynamic


async def test_a_partition_out_of_reach_is_told_later(store, application, env, monkeypatch):
    await make(store, env)
    call = store.connection.call

    async def cut_off(script, keys_, args, **options):
        if script.name == "install_rules" and keys_[-1] == keys.none(env.partitions[-1]):
            raise Unavailable("gone")
        return await call(script, keys_, args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(store.connection, "call", cut_off)
        with pytest.raises(Unavailable):
            await make(store, env, HAS_CAT)
    await work(store, grace_us=0)
    assert 2 == len((await in_force(store, application)).dynamic)


# Weekly applications


async def test_a_weekly_application_builds_its_groups_at_once_and_waits_with_definitions(
    store, application, env
):
    application = await store.registry.update_application("test", grouping="weekly")
    made = await make(store, env)
    await define(store, application)
    [john] = await store.profiles.resolve_identities(env, "customer_id", ["john"], create=True)
    await store.records.update_profile(
        env, john, ProfileChanges(attributes={"$address": b'"1 Main St"', "has_dog": b'"true"'})
    )
    assert 1 == await store.jobs.work(application, store.derivation)
    [job] = await store.jobs.list_jobs(application)
    assert ("done", False, 1) == (job.state, job.whole, job.done)
    assert {made.number: made.rules_version} == await built(store, application)
    assert {} == (await store.records.get_profile(env, john)).inherited
    assert 0 == await store.jobs.work(application, store.derivation)
    rules = await in_force(store, application)
    assert ((), True) == (rules.watched, rules.weekly)


# How far they are


async def people(store, env, count):
    names = [ids.text(ids.new()) for _ in range(count)]
    return await store.profiles.resolve_identities(env, "customer_id", names, create=True)


async def statuses(store, application, *groups):
    found = await store.dynamic.statuses(application, list(groups))
    return [found[each.number] for each in groups]


async def test_a_group_is_building_until_its_job_is_done(
    store, second, application, env, monkeypatch
):
    monkeypatch.setattr(store_jobs, "PAGE", 3)
    await people(store, env, 10)
    made, vip = await make(store, env), await static(store, env)
    assert [Status("building", 0, 10)] == await statuses(store, application, made)
    said = []
    replaced = store.jobs._replaced

    async def noted(*args):
        found = await replaced(*args)
        said.extend(await statuses(second, application, made))
        return found

    monkeypatch.setattr(store.jobs, "_replaced", noted)
    await store.jobs.work(application, store.derivation)
    done = [each.done for each in said]
    assert ({"building"}, {10}) == ({each.state for each in said}, {each.total for each in said})
    assert (sorted(done), 0, 10) == (done, done[0], done[-1])
    assert [Status("ready", 10, 10)] * 2 == await statuses(store, application, made, vip)


async def test_another_tree_is_built_anew_and_other_groups_stay_ready(store, application, env):
    await people(store, env, 4)
    one, two = await make(store, env), await make(store, env, HAS_CAT)
    await store.jobs.work(application, store.derivation)
    one = await retree(store, env, one, HAS_CAT)
    assert [Status("building", 0, 4), Status("ready", 4, 4)] == await statuses(
        store, application, one, two
    )
    await store.jobs.work(application, store.derivation)
    job, _ = await store.jobs.list_jobs(application)
    assert (False, 4) == (job.whole, job.done)
    assert ["ready"] * 2 == [each.state for each in await statuses(store, application, one, two)]


async def test_a_job_that_ends_while_one_looks_does_not_begin_anew(
    store, second, application, env, monkeypatch
):
    """It was "building, nothing done" for a moment, after it had been nearly done."""
    await people(store, env, 8)
    one = await make(store, env)
    read = store.jobs.open_jobs

    async def ends_meanwhile(application):
        await second.jobs.work(application, second.derivation)
        return await read(application)

    monkeypatch.setattr(store.jobs, "open_jobs", ends_meanwhile)
    assert [Status("ready", 8, 8)] == await statuses(store, application, one)


async def test_a_tree_that_came_after_a_job_was_decided_on_waits_for_the_next(
    store, second, application, env, monkeypatch
):
    monkeypatch.setattr(store_jobs, "PAGE", 2)
    await people(store, env, 8)
    one, two = await make(store, env), await make(store, env, HAS_CAT)
    while not (await statuses(store, application, two))[0].done:
        await store.jobs.work(application, store.derivation, budget_seconds=0)
    changed = await retree(second, env, one, HAS_CAT)
    found = await statuses(store, application, changed, two)
    assert Status("building", 0, 8) == found[0]
    assert ("building", True) == (found[1].state, found[1].done > 0)
    assert 2 == await store.jobs.work(application, store.derivation)
    assert {changed.number: changed.rules_version, two.number: two.rules_version} == await built(
        store, application
    )


async def test_a_group_that_a_query_is_saved_as_is_building_while_its_job_waits(
    store, application, env
):
    await people(store, env, 3)
    saved = await static(store, env, saved_query={"group": "vip"})
    assert [Status("building", 0, 3)] == await statuses(store, application, saved)
    [job] = await store.jobs.list_jobs(application)
    assert ("save", saved.number, "queued") == (job.reason, job.group, job.state)
    assert {"group": "vip"} == (await only(store, env, saved)).saved_query
    await forget_jobs(store, application)
    assert [Status("ready", 3, 3)] == await statuses(store, application, saved)


async def forget_jobs(store, application):
    key = keys.key(application.production.directory, "jobs")
    await ask(store, key, "DEL")


async def test_queries_that_wait_to_be_saved_are_not_without_number(
    store, application, env, monkeypatch
):
    monkeypatch.setattr("service.store_groups.WAITING", 2)
    for n in range(2):
        await static(store, env, name=str(n), saved_query={})
    before = await everything(store, application)
    with pytest.raises(Conflict, match="saved as groups already"):
        await static(store, env, name="third", saved_query={})
    assert before == await everything(store, application)
    await forget_jobs(store, application)


# Audiences


async def turn(store, env, hours_ago, number, gained, lost):
    """Have a group gain and lose members some hours ago, in every partition."""
    hour = store_dynamic._now_us() // 3_600_000_000 - hours_ago
    for tag in env.partitions:
        key = keys.turnover(tag, hour)
        for field, count in ((f"+{number}", gained), (f"-{number}", lost)):
            if count:
                await ask(store, key, "HINCRBY", field, count)
        await ask(store, key, "EXPIRE", 100_000)


async def test_turnover_is_that_of_this_hour_and_the_23_before_it(store, application, env):
    made, other = await make(store, env), await make(store, env, HAS_CAT)
    await work(store, grace_us=0)
    for hours_ago, gained, lost in ((0, 1, 0), (1, 10, 2), (23, 100, 3), (24, 1000, 4)):
        await turn(store, env, hours_ago, made.number, gained, lost)
    partitions = len(env.partitions)
    assert {
        made.number: (111 * partitions, 5 * partitions),
        other.number: (0, 0),
    } == await store.dynamic.turnover(env, [made.number, other.number])
    assert {} == await store.dynamic.turnover(env, [])


async def test_turnover_of_many_groups_is_read_in_parts(store, application, env, monkeypatch):
    monkeypatch.setattr(store_dynamic, "TURNED", 2)
    monkeypatch.setattr(store_dynamic, "COUNTED", 2)
    made = [await make(store, env, name=str(n)) for n in range(5)]
    await work(store, grace_us=0)
    for at, each in enumerate(made):
        await turn(store, env, 0, each.number, at, 2 * at)
    partitions = len(env.partitions)
    found = await store.dynamic.audiences(application)
    assert [(at * partitions, 2 * at * partitions) for at in range(5)] == [
        (each.added, each.dropped) for each in found
    ]
    assert made == [each.group for each in found]


async def test_audiences_are_the_active_dynamic_groups_with_their_size(store, application, env):
    one, two, idle = [await make(store, env, name=name) for name in ("one", "two", "idle")]
    await static(store, env)
    two = await retree(store, env, two, HAS_CAT)
    await store.groups.update_group(env, idle.id, GroupChanges(is_active=False))
    dogs = ProfileChanges(attributes={"has_dog": b'"true"'})
    for profile in await people(store, env, 3):
        await store.records.update_profile(env, profile, dogs)
        await store.settling.settle(env, [env.mixer.mix(profile)])
    found = await store.dynamic.audiences(application)
    assert [(one, 3, 3, 0, "building"), (two, 0, 0, 0, "building")] == [
        (each.group, each.size, each.added, each.dropped, each.status.state) for each in found
    ]
    await store.jobs.work(application, store.derivation)
    found = await store.dynamic.audiences(application)
    assert [(3, Status("ready", 3, 3)), (0, Status("ready", 3, 3))] == [
        (each.size, each.status) for each in found
    ]


async def test_an_application_without_dynamic_groups_has_no_audiences(store, application):
    assert [] == await store.dynamic.audiences(application)


# Numbers of static groups


async def test_the_number_of_a_static_group_is_given_and_that_of_a_dynamic_one_is_not(store, env):
    vip, made = await static(store, env, custom_id="vip"), await make(store, env, custom_id="dogs")
    for gid in (vip.id, vip.id.upper(), "vip"):
        assert vip.number == await store.groups.static_number_of(env, gid)
    for gid in (made.id, "dogs", made.id):
        with pytest.raises(Conflict, match="follow its rule tree"):
            await store.groups.static_number_of(env, gid)
    with pytest.raises(NotFound):
        await store.groups.static_number_of(env, NOBODY)
    assert {
        vip.id: vip.number,
        "dogs": NotStatic.DYNAMIC,
        made.id: NotStatic.DYNAMIC,
        "nobody": None,
    } == await store.groups.static_numbers_of(env, [vip.id, "dogs", made.id, "nobody"])


async def test_what_the_near_cache_knows_takes_no_round_trip(store, env, monkeypatch):
    vip, made = await static(store, env), await make(store, env)
    wanted = {vip.id: vip.number, made.id: NotStatic.DYNAMIC}

    async def nothing(*args, **options):
        raise AssertionError("a round trip")

    for _ in range(20):
        assert wanted == await store.groups.static_numbers_of(env, [vip.id, made.id])
        drops = store.cache.drops
        with monkeypatch.context() as patched:
            patched.setattr(store.connection, "call", nothing)
            try:
                assert wanted == await store.groups.static_numbers_of(env, [vip.id, made.id])
                break
            except AssertionError:
                # The version was read for the first time, or the subscription began: all is
                # forgotten then, which a busy machine may do late.
                if store.cache.drops == drops:
                    raise
    else:
        pytest.fail("the near-cache forgets again and again")


async def test_a_group_that_is_made_anew_with_another_type_is_known_by_it(store, second, env):
    made = await make(store, env)
    with pytest.raises(Conflict):
        await second.groups.static_number_of(env, made.id)
    await store.groups.delete_group(env, made.id)
    again = await static(store, env, id=made.id)

    for _ in range(500):
        if await second.groups.number_of(env, made.id) == again.number:
            break
        await asyncio.sleep(0.01)
    assert again.number == await second.groups.static_number_of(env, made.id)


async def test_members_of_a_dynamic_group_are_not_written_under_a_number_found_anew(
    store, second, env, monkeypatch
):
    """A static group was deleted and a dynamic one made under its id, which nobody heard of."""
    vip = await static(store, env)
    await second.groups.number_of(env, vip.id)
    for hears in ("heard", "polled"):
        monkeypatch.setattr(Directory, hears, lambda *_: None)
    await store.groups.delete_group(env, vip.id)
    made = await make(store, env, id=vip.id)

    async def use(number):
        if number != made.number:
            raise NotFound
        return number

    with pytest.raises(Conflict):
        await second.groups.with_number(env, vip.id, use, static=True)
    assert made.number == await second.groups.with_number(env, vip.id, use)


def test_a_document_of_an_older_version_is_a_static_group_of_nobody():
    """0.4 wrote none of these members, and stays able to read what it wrote itself."""
    document = GroupDocument(
        id=NOBODY,
        name="g",
        is_active=True,
        description=None,
        custom_id=None,
        created_at_us=1,
        attributes=(),
        membership_type="static",
    )
    raw = encode(document)
    assert {"id", "name", "is_active", "description", "custom_id", "created_at_us"} | {
        "attributes",
        "membership_type",
    } == set(msgspec.json.decode(raw))
    found = decode(1, raw, b"7")
    assert (None, None, None, {}, 0, None) == (
        found.created_by,
        found.modified_by,
        found.rule_tree,
        found.leaf_groups,
        found.rules_version,
        found.saved_query,
    )
