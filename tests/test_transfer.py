"""Export and import: two stores are equal when their exports are, as sets of lines.

The lines of profiles come in the order of mixed ids, and another store mixes with another key: so
lines are compared sorted.
"""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from service import (
    ids,
    keys,
    scripts,
    store_transfer,
    transfer,
)
from service.attributes import value_of
from service.embedded import EmbeddedServer
from service.errors import Conflict, Invalid, NotFound, Unusable
from service.grouping import GroupAttribute as SharedAttribute
from service.groups import Attribute, Group, GroupChanges, GroupQuery, NewGroup
from service.rules import parse_tree
from service.store import Store
from service.store_definitions import NewDefinition
from service.store_records import ProfileChanges
from service.store_transfer import Arriving
from service.transfer import exporting, importing, merging
from service.transfer.exporting import export_to_file, export_to_stream
from service.transfer.importing import Options, import_file, import_stream
from service.verify import verify
from tests import backings
from tests.serving import ROOT

G1 = "11111111-1111-4111-8111-111111111111"
G2 = "22222222-2222-4222-8222-222222222222"
G3 = "33333333-3333-4333-8333-333333333333"
P1 = "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa"
P2 = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb"
APPLICATION = {"kind": "application", "client_id": "shop", "workspace_id": 7, "name": "Shop"}
IN = {"environment": "production"}
GROUP = {"kind": "group", **IN, "id": G1, "name": "Gold", "is_active": True, "created_at_us": 5}
DEFINITION = {
    "kind": "definition",
    "id": "household",
    "source_user_attribute": "$Address",
    "attributes": [{"id": "kids", "type": "sum"}],
    "created_at_us": 11,
    "created_by": "client_id:c1",
    "modified_at_us": 12,
    "modified_by": "ann@example.com",
}
GOLD = {"attribute": "tier", "condition": "is", "value": "gold"}
DYNAMIC = GROUP | {"id": G3, "membership_type": "dynamic", "rule_tree": GOLD}
PROFILE = {"kind": "profile", **IN, "id": P1, "created_at_us": 6}
MEMBER = {"kind": "membership", **IN, "group_id": G1, "profile_id": P1, "joined_at_us": 7}
END = {"kind": "end"}
MEMBERSHIPS = int(os.environ.get("BELONG_TEST_MEMBERSHIPS", "30000"))
"""How many the tests with processes move; the evidence was run with 1,000,000."""


def packed(text):
    """Give the 16 bytes of an id."""
    return uuid.UUID(text).bytes


def nothing(*_):
    """Be told what is done, or what is wrong."""


def lines(*records):
    """Give a file of these records, or of lines where they are bytes."""
    made = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in records]
    return b"\n".join([b'{"format":1}', *made]) + b"\n"


async def imported(store, data, *, report=nothing, **options):
    """Import bytes, and give what was read."""
    return await import_stream(store, io.BytesIO(data), Options(**options), report)


async def exported(store, *client_ids):
    """Export applications, and give the sorted lines."""
    found = [await store.registry.application(each) for each in client_ids or ("shop",)]
    out = io.BytesIO()
    await export_to_stream(store, found, out, nothing)
    return sorted(out.getvalue().splitlines())


def without_partitions(exported_lines):
    """Give the lines without what differs where partitions do."""
    return [json.dumps(json.loads(each) | {"partitions": 0}) for each in exported_lines]


async def fill(store, client_id="shop", *, partitions=1, seed=1, profiles=300):
    """Make an application with some of everything; give it."""
    draw = random.Random(seed)
    application = await store.registry.create_application(
        client_id, partitions=partitions, name="Some Shop", profiles="registered"
    )
    await store.registry.update_application(client_id, groups_per_profile=2000, name="Shop")
    application = await store.registry.application(client_id)
    for number, env in enumerate(application.environments.values()):
        known = [draw.randbytes(16) for _ in range(profiles // (number + 1))]
        await store.transfer.import_profiles(env, [record(draw, each) for each in known[::2]])
        groups = [
            await store.groups.create_group(
                env,
                NewGroup(
                    name=f"Gr\N{LATIN SMALL LETTER O WITH DIAERESIS}up {at}",
                    description="d" * at if at % 3 else None,
                    custom_id=f"c-{at}" if at % 2 else None,
                    attributes=tuple(Attribute("k", str(each)) for each in range(at % 4)),
                ),
            )
            for at in range(12)
        ]
        for group in groups:
            chosen = draw.sample(known, len(known) // 3)
            joined_at_us = draw.randrange(10**15, 2 * 10**15)
            await store.members.add_members(
                env, group.number, b"".join(chosen), now_us=joined_at_us
            )
        for at, each in enumerate(known[:40]):
            await store.profiles.add_identity(env, each, "customer_id", f"customer {at}")
            await store.profiles.add_identity(env, each, "email", f"{at}@example.com")
        for group in groups[::5]:
            await store.groups.update_group(env, group.id, GroupChanges(is_active=False))
    return application


def record(draw, id16):
    """Give a profile with a record, and attributes of all kinds."""
    time_us = draw.randrange(10**15, 2 * 10**15)
    return Arriving(
        id16,
        [("created_at", time_us), ("nickname", f"N{time_us}"), ("custom_data", '{"a": "\\u0000"}')],
        [
            ("tier", time_us, time_us - 5, b'"gold"'),
            ("price", time_us, time_us, b"1.0"),
            ("gone", time_us, b"", b""),
            ("tags", time_us, 3, b'["a b","c"]'),
        ],
    )


async def in_groups(store, env, text):
    """Give the memberships of a profile as the store keeps them: number -> joined at."""
    for partition in range(len(env.partitions)):
        bound = b""
        while True:
            bound, found = await store.transfer.export_profiles(env, partition, bound)
            for each in found:
                if ids.text(each.id) == text:
                    return each
            if not bound:
                break
    return None


@pytest.fixture
async def other(servers):
    """Another store, empty, on fakeredis."""
    server = backings.fake()
    opened = await Store.open(server.url)
    yield opened
    report = await verify(opened)
    await opened.close()
    server.stop()
    assert report.problems == []


# --- there and back


async def fill_households(store, *, partitions=1, users=30):
    """Make an application with two definitions, and users in households; give it."""
    application = await store.registry.create_application("shop", partitions=partitions)
    application = await store.registry.update_application(
        "shop", definitions_per_workspace=2, users_per_group=3
    )
    for new in (
        NewDefinition(
            id="household",
            description="who lives together",
            source_user_attribute="$Address",
            attributes=(SharedAttribute("kids", "sum"), SharedAttribute("$Age", "max")),
        ),
        NewDefinition(id="team", source_user_attribute="team"),
    ):
        await store.definitions.create_definition(application, new, "client_id:c1")
    application = await store.registry.application("shop")
    for env in application.environments.values():
        for n in range(users):
            [id16] = await store.profiles.resolve_identities(
                env, "customer_id", [f"u{n}"], create=True
            )
            await store.profiles.add_identity(env, id16, "mpid", str(n - users // 2))
            given = {"$address": f"{n // 4} Main St", "kids": f"{n}.50", "$age": str(n)}
            await store.records.update_profile(
                env,
                id16,
                ProfileChanges(attributes={k: value_of(v) for k, v in given.items()}),
            )
    await work(store, application)
    return application


async def written(store, application):
    """Give who wrote each definition, and when."""
    return [
        (each.id, each.created_at_us, each.created_by, each.modified_at_us, each.modified_by)
        for each in await store.definitions.list_definitions(application)
    ]


async def work(store, application):
    """Do what a worker does: jobs, and who is behind."""
    await store.jobs.work(application, store.derivation)
    for env in application.environments.values():
        await store.derivation.derive_dirty(env, 2**53)
        await store.derivation.settle_stale(env, 2**53)


async def inheritance(store, application, *, users=30):
    """Give what everybody inherits, by customer id."""
    shown = {}
    for env in application.environments.values():
        for n in range(users):
            [id16] = await store.profiles.resolve_identities(
                env, "customer_id", [f"u{n}"], create=False
            )
            known = await store.records.get_profile(env, id16)
            shown[env.name, n] = (known.mpid, dict(known.inherited))
    return shown


@pytest.mark.parametrize("there", [1, 8])
async def test_users_are_grouped_where_they_are_imported_as_they_were(store, other, there):
    application = await fill_households(other, partitions=9 - there)
    expected = await inheritance(other, application)
    data = b"\n".join(await unsorted(other)) + b"\n"
    said: list[str] = []

    read = await imported(store, data, partitions=there, report=said.append)

    assert (1, 2, 60, 0) == (read.applications, read.definitions, read.profiles, read.conflicts)
    imported_ = await store.registry.application("shop")
    [job] = await store.jobs.list_jobs(imported_)
    assert [f"application shop: job {job.id} groups its users, as soon as a worker runs"] == said
    await work(store, imported_)
    assert expected == await inheritance(store, imported_)
    assert {"household:kids": "4.5", "household:$Age": "2"} == expected["production", 0][1]
    assert without_partitions(await exported(other)) == without_partitions(await exported(store))
    assert await written(other, application) == await written(store, imported_)


async def fill_dynamic(store, *, partitions=1, users=30):
    """Make an application with dynamic groups over everything that a rule tree may name; give it.

    One of them names a static group that is younger than it.
    """
    application = await fill_households(store, partitions=partitions, users=users)
    env = application.production
    people = [
        (await store.profiles.resolve_identities(env, "customer_id", [f"u{n}"], create=False))[0]
        for n in range(users)
    ]
    vips = await store.groups.create_group(env, NewGroup(name="vips", created_by="ann"))
    trees = {
        "vip": {"group": vips.id},
        "kids": {"attribute": "household:kids", "condition": "greater_than", "value": 50.10},
        "young": {"attribute": "$age", "condition": "between", "value": ["3", "12"]},
        "later": {"group": vips.id},
        "unlikely": {"operator": "NOT", "children": [{"group": vips.id}]},
    }
    for at, (name, tree) in enumerate(trees.items()):
        made = NewGroup(
            name=name,
            custom_id=f"d-{at}" if at % 2 else None,
            is_active=name != "young",
            membership_type="dynamic",
            rule_tree=parse_tree(tree),
            created_by="client_id:c1",
        )
        await store.groups.create_group(env, made)
    younger = await store.groups.create_group(env, NewGroup(name="younger"))
    both = {"operator": "OR", "children": [{"group": younger.id}, {"group": vips.id}]}
    changes = GroupChanges(rule_tree=parse_tree(both), modified_by="bob")
    await store.groups.update_group(env, "d-3", changes)
    await store.members.add_members(env, vips.number, b"".join([*people[:7], packed(P1)]))
    await store.members.add_members(env, younger.number, b"".join(people[5:9]))
    await work(store, application)
    return application


async def derived(store, application):
    """Give who is in which dynamic group, by name of the group and custom id or id."""
    env = application.production
    groups = await groups_of(store, env)
    names = {each.number: each.name for each in groups if each.is_dynamic}
    found: dict[str, set[bytes]] = {name: set() for name in names.values()}
    for partition in range(len(env.partitions)):
        bound = b""
        while True:
            bound, profiles = await store.transfer.export_profiles(env, partition, bound)
            for each in profiles:
                who = each.record.get(b"custom_id", each.id)
                mixed = env.mixer.mix(each.id)
                key = keys.memberships(env.home(mixed), mixed)
                for field in await store.connection.command(key, "HKEYS", key):
                    if field != b"d" and int(field) in names:
                        found[names[int(field)]].add(who)
            if not bound:
                break
    return found


async def groups_of(store, env):
    """Give all groups of an environment, in their order."""
    query = GroupQuery(include_inactive=True)
    return (await store.groups.list_groups(env, query, None, 1000)).rows


@pytest.mark.parametrize("there", [1, 8])
async def test_dynamic_groups_have_the_same_members_where_they_are_imported(store, other, there):
    application = await fill_dynamic(other, partitions=9 - there)
    expected = await derived(other, application)
    data = b"\n".join(await unsorted(other)) + b"\n"

    read = await imported(store, data, partitions=there)

    imported_ = await store.registry.application("shop")
    await work(store, imported_)
    assert (7, 60, 0) == (read.groups, read.profiles, read.conflicts)
    assert expected == await derived(store, imported_)
    assert {name: len(members) for name, members in expected.items()} == {
        "vip": 8, "kids": 11, "young": 10, "later": 10, "unlikely": 23,
    }  # fmt: skip
    assert without_partitions(await exported(other)) == without_partitions(await exported(store))
    before, after = [
        await groups_of(each, (await each.registry.application("shop")).production)
        for each in (other, store)
    ]
    assert ["vips", "vip", "kids", "young", "later", "unlikely", "younger"] == [
        each.name for each in before
    ]
    assert ["vips", "vip", "kids", "young", "younger", "later", "unlikely"] == [
        each.name for each in after
    ]
    held = {each.id: (each.rule_tree, each.created_by, each.modified_by) for each in before}
    assert held == {each.id: (each.rule_tree, each.created_by, each.modified_by) for each in after}
    assert ("client_id:c1", "bob") == held[before[4].id][1:]


async def test_derived_memberships_are_not_exported_nor_is_anything_else_that_follows(other):
    application = await fill_dynamic(other)

    records = [json.loads(each) for each in await exported(other)]

    dynamic = {each["id"] for each in records if each.get("membership_type") == "dynamic"}
    assert 5 == len(dynamic)
    of = [each["group_id"] for each in records if each.get("kind") == "membership"]
    assert (12, set()) == (len(of), dynamic.intersection(of))
    assert {"$.rule_tree"} >= {
        name for each in records for name in each if name in {"leaf_groups", "rules_version"}
    }
    groups = await groups_of(other, application.production)
    [kids] = [each["rule_tree"] for each in records if each.get("name") == "kids"]
    assert kids == {"attribute": "household:kids", "condition": "greater_than", "value": 50.1}
    assert b'"value":50.1' in await_line(await exported(other), b'"kids"')
    assert len(groups) == 7


def await_line(exported_lines, part):
    """Give the one line that holds something."""
    [line] = [each for each in exported_lines if part in each and b'"kind":"group"' in each]
    return line


async def test_a_dynamic_group_is_imported_behind_the_groups_that_it_names(other):
    named = DYNAMIC | {"rule_tree": {"group": G1.upper()}}
    profile = PROFILE | {"attributes": []}
    said: list[str] = []

    await imported(other, lines(APPLICATION, GROUP, named, profile, MEMBER), report=said.append)

    application = await other.registry.application("shop")
    [job] = await other.jobs.list_jobs(application)
    does = "finds the members of its dynamic groups"
    assert [f"application shop: job {job.id} {does}, as soon as a worker runs"] == said
    await work(other, application)
    assert {"Gold": {packed(P1)}} == await derived(other, application)
    [group] = [each for each in await groups_of(other, application.production) if each.is_dynamic]
    assert {"group": G1} == group.rule_tree


@pytest.mark.parametrize("dynamic", [False, True])
async def test_a_rule_tree_that_names_what_it_cannot_ends_the_import(other, dynamic):
    named = DYNAMIC | {"rule_tree": {"group": G1}, "id": G2}
    first = [DYNAMIC | {"id": G1}] if dynamic else []
    data = lines(APPLICATION, *first, named, GROUP | {"id": P2})

    with pytest.raises(Invalid, match=rf"^line {3 + dynamic}: group {G2} cannot be created: "):
        await imported(other, data)

    said: list[str] = []
    read = await imported(other, data, merge=True, report=said.append)
    assert 1 == read.conflicts
    assert said[0].startswith(f"line {3 + dynamic}: group {G2} cannot be created: The")
    env = (await other.registry.application("shop")).production
    assert {P2, *[each["id"] for each in first]} == {
        each.id for each in await groups_of(other, env)
    }


async def test_more_dynamic_groups_than_the_application_may_have_are_left_out(other):
    settings = {"dynamic_groups": 1}
    second = DYNAMIC | {"id": G2, "name": "Second", "custom_id": "second"}
    data = lines(APPLICATION | {"settings": settings}, DYNAMIC, second, GROUP)

    with pytest.raises(Invalid, match=r"^line 4: .*at most 1 dynamic group"):
        await imported(other, data)
    said: list[str] = []
    read = await imported(other, data, merge=True, report=said.append)

    assert 1 == read.conflicts
    assert said[0].startswith(f"line 4: group {G2} cannot be created: An application has at most 1")
    env = (await other.registry.application("shop")).production
    assert [G3, G1] == [each.id for each in await groups_of(other, env)]


async def test_in_a_merge_a_group_stays_what_it_is(store, application, env):
    static = await store.groups.create_group(env, NewGroup(id=G3, name="Static"))
    tree = parse_tree({"attribute": "tier", "condition": "is", "value": "silver"})
    made = NewGroup(id=G1, name="Dynamic", membership_type="dynamic", rule_tree=tree)
    await store.groups.create_group(env, made)
    others = [str(uuid.UUID(int=n)) for n in range(5)]
    members = [MEMBER | {"profile_id": each} for each in others]
    mine = MEMBER | {"group_id": G3, "profile_id": P2}
    profile = PROFILE | {
        "attributes": [{"name": "tier", "time_us": 9, "since_us": 9, "value": "silver"}]
    }
    data = lines(
        APPLICATION | {"client_id": "test"},
        GROUP,
        DYNAMIC,
        profile,
        *members[:3],
        mine,
        *members[3:],
    )
    said: list[str] = []

    read = await imported(store, data, merge=True, report=said.append)

    assert (2, 6, 5) == (read.groups, read.memberships, read.conflicts)
    assert (
        f"line 6: group {G1} is dynamic: its members follow its rule tree, and none is written"
        == said[0]
    )
    assert 2 == len(said)
    await work(store, application)
    assert {"Dynamic": {packed(P1)}} == await derived(store, application)
    assert {} == (await in_groups(store, env, P1)).memberships
    assert {static.number: 7} == (await in_groups(store, env, P2)).memberships
    assert await in_groups(store, env, others[0]) is None
    kept = {each.id: (each.name, each.rule_tree) for each in await groups_of(store, env)}
    assert {G3: ("Static", None), G1: ("Dynamic", tree.shown)} == kept


async def test_members_of_a_dynamic_group_end_an_import_without_merge(other):
    data = lines(APPLICATION, DYNAMIC, GROUP, MEMBER, MEMBER | {"group_id": G3}, END)

    with pytest.raises(Invalid, match=rf"^line 6: group {G3} is dynamic: "):
        await imported(other, data)

    env = (await other.registry.application("shop")).production
    assert {2: 7} == (await in_groups(other, env, P1)).memberships


async def test_a_dynamic_group_that_comes_twice_has_to_be_the_same(other):
    tree = {"operator": "AND", "children": [GOLD, {"group": G1.upper()}]}
    named = DYNAMIC | {"rule_tree": tree, "created_by": "ann", "modified_by": "bob"}
    await imported(other, lines(APPLICATION, GROUP, named, named | {"modified_by": "eve"}))

    for differs in ({"rule_tree": GOLD}, {"created_by": "eve"}, {"name": "x"}):
        data = lines(APPLICATION | {"client_id": "club"}, GROUP, named, named | differs)
        with pytest.raises(Invalid, match=rf"^line 5: there is a group {G3} already"):
            await imported(other, data, application=f"club-{next(iter(differs))}")


async def test_dynamic_groups_of_an_unfinished_import_are_gone_on_with(
    other, tmp_path, monkeypatch
):
    monkeypatch.setattr(importing, "PLACE_SECONDS", 0)
    monkeypatch.setattr(importing, "LINES", 2)
    path = tmp_path / "dump"
    named = DYNAMIC | {"rule_tree": {"group": G1}}
    more = [DYNAMIC | {"id": str(uuid.UUID(int=n)), "name": f"D{n}"} for n in range(5)]
    good = [APPLICATION, GROUP, named, *more, PROFILE, MEMBER]
    for cut in range(3, len(good)):
        path.write_bytes(lines(*good[:cut], b"{"))
        with pytest.raises(Invalid, match=rf"^line {cut + 2}: "):
            await import_file(other, path, Options(), nothing, nothing)

    path.write_bytes(lines(*good, END))
    read = await import_file(other, path, Options(), nothing, nothing)

    assert (7, 1, 0) == (read.groups, read.memberships, read.conflicts)
    application = await other.registry.application("shop")
    await work(other, application)
    assert {packed(P1)} == (await derived(other, application))["Gold"]


async def test_an_export_with_dynamic_groups_goes_on_where_it_was_kept(
    other, tmp_path, monkeypatch
):
    monkeypatch.setattr(exporting, "PLACE_SECONDS", 0)
    monkeypatch.setattr(exporting, "BLOCK", 0)
    monkeypatch.setattr(exporting, "GROUPS", 1)
    monkeypatch.setattr(store_transfer, "PROFILES", 5)
    application = await fill_dynamic(other)
    expected = await unsorted(other)
    path = tmp_path / "dump"
    write = transfer.write_place
    places: list[object] = []
    runs = 0

    def stop(*place):
        write(*place)
        places.append(place)
        if len(places) == 1 + runs % 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "write_place", stop)
    while not path.exists():
        places.clear()
        runs += 1
        try:
            await export_to_file(other, [application], path, nothing)
        except KeyboardInterrupt:
            continue

    assert runs > 10
    assert expected == path.read_bytes().splitlines()


async def test_a_tree_that_changes_while_it_is_exported_names_what_is_exported(other, monkeypatch):
    application = await fill_dynamic(other)
    env = application.production
    [younger] = [each for each in await groups_of(other, env) if each.name == "younger"]
    listed = other.groups.list_groups
    changed: list[Group] = []

    async def list_groups(where, *page):
        found = await listed(where, *page)
        if where is env and not changed:
            changed.append(await other.groups.create_group(env, NewGroup(name="youngest")))
            tree = parse_tree({"group": changed[0].id})
            await other.groups.update_group(env, "d-3", GroupChanges(rule_tree=tree))
            await other.groups.delete_group(env, younger.id)
        return found

    monkeypatch.setattr(other.groups, "list_groups", list_groups)
    records = [json.loads(each) for each in await unsorted(other)]

    groups = [each for each in records if each.get("kind") == "group"]
    names = [each["name"] for each in groups if each["environment"] == "production"]
    assert names.index("youngest") < names.index("later")
    assert {"group": changed[0].id} == groups[names.index("later")]["rule_tree"]
    await work(other, application)
    while await other.upkeep.sweep_groups(env, 2**53):
        pass


async def test_definitions_keep_who_wrote_them_and_get_numbers_of_their_own(store, application):
    second = DEFINITION | {"id": "team", "description": "é", "attributes": []}
    settings = {"definitions_per_workspace": 2}
    data = lines(APPLICATION | {"client_id": "test", "settings": settings}, DEFINITION, second, END)

    await imported(store, data)

    application = await store.registry.application("test")
    household, team = await store.definitions.list_definitions(application)
    assert (11, "client_id:c1", 12, "ann@example.com") == (
        household.created_at_us,
        household.created_by,
        household.modified_at_us,
        household.modified_by,
    )
    assert (None, "é") == (household.description, team.description)
    rules = await store.definitions.rules(application.production)
    assert household.number < team.number <= rules.version
    assert household.number == household.attributes[0].since


async def test_in_a_weekly_application_a_job_groups_whom_an_import_brought(store):
    settings = {"grouping": "weekly"}
    profile = PROFILE | {
        "mpid": "-7",
        "attributes": [
            {"name": "$Address", "time_us": 9, "since_us": 9, "value": "here"},
            {"name": "kids", "time_us": 9, "since_us": 9, "value": "2"},
        ],
    }
    said: list[str] = []

    data = lines(APPLICATION | {"settings": settings}, DEFINITION, profile, END)
    await imported(store, data, report=said.append)

    assert 1 == len(said)
    application = await store.registry.application("shop")
    await work(store, application)
    known = await store.records.get_profile(application.production, packed(P1))
    assert ("-7", {"household:kids": "2"}) == (known.mpid, dict(known.inherited))
    assert (("mpid", "-7"),) == known.identities


async def test_in_a_merge_the_definition_that_is_there_stays(store, application):
    mine = NewDefinition(id="household", source_user_attribute="mine")
    await store.definitions.create_definition(application, mine, "me")
    data = lines(
        APPLICATION | {"client_id": "test"}, DEFINITION, DEFINITION | {"id": "second"}, PROFILE
    )
    said: list[str] = []

    read = await imported(store, data, merge=True, report=said.append)

    assert (2, 1, 1) == (read.definitions, read.profiles, read.conflicts)
    assert (
        "line 4: there is no room for definition second: the application is set to 1 with 10"
        " attributes each"
    ) == said[0]
    [held] = await store.definitions.list_definitions(application)
    assert ("mine", "me") == (held.source_user_attribute, held.created_by)


async def test_an_application_with_a_definition_is_not_empty(store, application):
    mine = NewDefinition(id="household", source_user_attribute="mine")
    await store.definitions.create_definition(application, mine, "me")

    with pytest.raises(Conflict, match=r"^line 2: application test is not empty"):
        await imported(store, lines(APPLICATION | {"client_id": "test"}, DEFINITION))


async def test_a_definition_that_comes_twice_has_to_be_the_same(other):
    await imported(other, lines(APPLICATION, DEFINITION, DEFINITION))

    with pytest.raises(Invalid, match=r"^line 4: there is a definition household already, and it"):
        await imported(
            other,
            lines(
                APPLICATION | {"client_id": "club", "workspace_id": 8},
                DEFINITION,
                DEFINITION | {"source_user_attribute": "x"},
            ),
        )


async def test_an_mpid_that_somebody_else_has_is_left_out(store, application, env):
    await store.profiles.add_identity(env, packed(P2), "mpid", "7")
    said: list[str] = []
    data = lines(APPLICATION | {"client_id": "test"}, PROFILE | {"mpid": "7"})

    await imported(store, data, merge=True, report=said.append)

    assert [f"line 3: profile {P1}: mpid '7' belongs to another profile"] == said
    assert (await store.records.get_profile(env, packed(P1))).mpid is None


async def test_what_is_exported_and_imported_is_exported_again_as_the_same_lines(
    store, partitions, other
):
    await fill(store, partitions=partitions)
    there = await exported(store)

    read = await imported(other, b"\n".join(await unsorted(store)) + b"\n")

    assert there == await exported(other)
    assert (1, 24, 0) == (read.applications, read.groups, read.conflicts)
    assert 300 // 2 <= read.profiles
    assert read.memberships == sum(b'"membership"' in each for each in there)


async def unsorted(store, *client_ids):
    found = [await store.registry.application(each) for each in client_ids or ("shop",)]
    out = io.BytesIO()
    await export_to_stream(store, found, out, nothing)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("there", [1, 8])
async def test_an_application_gets_other_partitions_by_export_and_import(store, other, there):
    # `store` has each backing; the number of partitions changes on the way.
    await fill(other, partitions=9 - there)
    data = b"\n".join(await unsorted(other)) + b"\n"

    await imported(store, data, partitions=there)

    assert there == len((await store.registry.application("shop")).production.partitions)
    assert without_partitions(await exported(other)) == without_partitions(await exported(store))


async def test_importing_twice_with_merge_changes_nothing(store, other):
    await fill(other)
    data = b"\n".join(await unsorted(other)) + b"\n"
    await imported(store, data)
    before = await exported(store)

    said: list[str] = []
    read = await imported(store, data, merge=True, report=said.append)

    assert [] == said
    assert 0 == read.conflicts
    assert before == await exported(store)


async def test_an_application_can_be_copied_within_a_store_under_another_client_id(store):
    await fill(store, partitions=2)
    data = b"\n".join(await unsorted(store)) + b"\n"
    said: list[str] = []

    await imported(store, data, application="copy", report=said.append)

    [sentence] = said
    assert "application copy: workspace 1 is in use, it got 2" == sentence
    copied = [
        each.replace(b'"copy","workspace_id":2', b'"shop","workspace_id":1')
        for each in await exported(store, "copy")
    ]
    assert await exported(store) == sorted(copied)


async def test_several_applications_go_into_one_file(store, other):
    await fill(store, "shop", profiles=40)
    await fill(store, "club", seed=2, profiles=40)
    data = b"\n".join(await unsorted(store, "shop", "club")) + b"\n"

    read = await imported(other, data)

    assert 2 == read.applications
    assert await exported(store, "club") == await exported(other, "club")
    assert await exported(store, "shop", "club") == await exported(other, "shop", "club")
    with pytest.raises(Invalid, match=r"^line \d+: the file holds another application, club"):
        await imported(other, data, application="third")


async def test_groups_keep_their_order_and_lists_find_them(store, env, other):
    made = [
        await store.groups.create_group(
            env, NewGroup(name=f"n{at % 3}", is_active=at % 7 != 0, custom_id=f"c{at}")
        )
        for at in range(100)
    ]
    out = io.BytesIO()
    await export_to_stream(store, [await store.registry.application("test")], out, nothing)

    await imported(other, out.getvalue())

    there = (await other.registry.application("test")).production
    query = GroupQuery(include_inactive=True)
    listed = await other.groups.list_groups(there, query, None, 200)
    assert [each.id for each in made] == [each.id for each in listed.rows]
    named = await other.groups.list_groups(there, GroupQuery(name="n1"), None, 200)
    assert [each.id for each in made if each.name == "n1" and each.is_active] == [
        each.id for each in named.rows
    ]
    inactive = next(each for each in made if not each.is_active)
    with pytest.raises(NotFound):
        await other.groups.get_group(there, inactive.id)
    with pytest.raises(NotFound):
        await other.members.add_members(there, 1, ids.new())


async def test_a_group_that_is_deleted_and_a_profile_that_is_erased_are_not_exported(store, env):
    doomed = await store.groups.create_group(env, NewGroup(name="doomed"))
    group = await store.groups.create_group(env, NewGroup(name="kept"))
    erased, left = packed(P1), packed(P2)
    for each in (doomed, group):
        await store.members.add_members(env, each.number, erased + left)
    await store.groups.delete_group(env, doomed.id)
    mixed = env.mixer.mix(erased)
    tag = env.home(mixed)
    await store.connection.call(
        scripts.load("begin_erase"),
        [keys.key(tag, "erasing"), keys.of_profile(tag, "profile", mixed), keys.none(tag)],
        [mixed, 1],
    )

    found = [json.loads(each) for each in await exported(store, "test")]

    assert ["kept"] == [each["name"] for each in found if each.get("kind") == "group"]
    members = [each for each in found if each.get("kind") == "membership"]
    assert [(group.id, P2)] == [(each["group_id"], each["profile_id"]) for each in members]
    await store.profiles.finish_erasures(env)


async def test_no_secret_is_exported(store, application):
    credential, secret = await store.registry.create_credential(["test"], ["admin"])
    await store.registry.signing_key()

    data = b"\n".join(await exported(store, "test"))

    assert secret.encode() not in data
    assert credential.id.encode() not in data
    assert credential.secret_sha256.encode() not in data
    assert b"secret" not in data


async def test_a_profile_in_hundreds_of_groups_with_many_attributes_is_exported_whole(
    store, env, other
):
    new = [NewGroup(name=f"g{at}") for at in range(550)]
    made = await store.transfer.import_groups(env, new)
    numbers = [each.number for each in made]
    assert sorted(numbers) == numbers
    times = [10**15 + at for at in range(550)]
    await store.transfer.import_members(env, packed(P1) * 550, numbers, times)
    attributes: list[tuple[str, int, int | bytes, bytes]]
    attributes = [(f"a{at}", 9 + at, 8 + at, b'"v"') for at in range(550)]
    profile = Arriving(packed(P1), [("created_at", 5)], attributes)
    await store.transfer.import_profiles(env, [profile])
    await store.members.add_members(env, numbers[0], packed(P2))
    there = await exported(store, "test")
    out = io.BytesIO()
    await export_to_stream(store, [await store.registry.application("test")], out, nothing)

    await imported(other, out.getvalue())

    assert 551 == sum(b'"membership"' in each for each in there)
    assert there == await exported(other, "test")


async def test_what_stays_during_an_export_comes_exactly_once(store, env, monkeypatch):
    monkeypatch.setattr(store_transfer, "PROFILES", 5)
    draw = random.Random(3)
    group = await store.groups.create_group(env, NewGroup(name="g"))
    staying = [draw.randbytes(16) for _ in range(400)]
    passing = [draw.randbytes(16) for _ in range(400)]
    await store.members.add_members(env, group.number, b"".join(staying + passing[:200]))
    ended = asyncio.Event()

    async def churn():
        late = 0
        while not ended.is_set():
            some = b"".join(draw.sample(passing, 20))
            await store.members.add_members(env, group.number, some)
            await store.members.remove_members(env, group.number, b"".join(passing[::3]))
            late += 1
            fresh = await store.groups.create_group(env, NewGroup(name=f"late {late}"))
            await store.members.add_members(env, fresh.number, b"".join(staying[:20]))

    churning = asyncio.create_task(churn())
    try:
        found = [json.loads(each) for each in await unsorted(store, "test")]
    finally:
        ended.set()
        await churning

    here = [each for each in found if each.get("kind") == "membership"]
    in_group = [each["profile_id"] for each in here if each["group_id"] == group.id]
    assert len(set(in_group)) == len(in_group)
    assert {ids.text(each) for each in staying} <= set(in_group)
    named = [each["id"] for each in found if each.get("kind") == "group"]
    assert {each["group_id"] for each in here} <= set(named)
    assert len(set(named)) == len(named)


# --- into what is there already


async def test_an_application_that_is_not_empty_is_refused_without_merge(store, application, env):
    await store.members.list_members(env, 1, None, 1)
    data = lines(APPLICATION | {"client_id": "test"}, GROUP, END)
    await store.groups.create_group(env, NewGroup(name="there"))

    with pytest.raises(Conflict, match=r"^line 2: application test is not empty\."):
        await imported(store, data)
    await imported(store, data, merge=True)

    assert "Gold" == (await store.groups.get_group(env, G1)).name


async def test_an_empty_application_takes_the_settings_of_the_file(store, application):
    settings = {"profiles": "registered", "groups_per_profile": 77}
    named = APPLICATION | {"client_id": "test", "settings": settings}

    await imported(store, lines(named))

    found = await store.registry.application("test")
    assert ("Shop", "registered", 77) == (found.name, found.profiles, found.groups_per_profile)
    assert application.workspace_id == found.workspace_id


async def test_in_a_merge_what_is_there_stays_and_later_attributes_win(store, application, env):
    group = await store.groups.create_group(env, NewGroup(id=G1, name="Mine", custom_id="gold"))
    await store.members.add_members(env, group.number, packed(P1), now_us=1000)
    there = Arriving(
        packed(P1),
        [("created_at", 50), ("nickname", "Ann")],
        [
            ("older", 100, 100, b'"mine"'),
            ("newer", 300, 300, b'"mine"'),
            ("same", 100, 90, b'"v"'),
            ("deleted", 300, b"", b""),
            ("revived", 100, b"", b""),
        ],
    )
    await store.transfer.import_profiles(env, [there])
    attributes = [
        {"name": "older", "time_us": 200, "since_us": 150, "value": "file"},
        {"name": "newer", "time_us": 200, "since_us": 150, "value": "file"},
        {"name": "same", "time_us": 200, "since_us": 150, "value": "v"},
        {"name": "deleted", "time_us": 200, "since_us": 150, "value": "file"},
        {"name": "revived", "time_us": 200, "since_us": 150, "value": "file"},
        {"name": "new", "time_us": 200, "since_us": 150, "value": [1]},
    ]
    attributes[-1]["value"] = ["a"]
    profile = PROFILE | {"nickname": "Bob", "custom_data": "{}", "attributes": attributes}

    data = lines(APPLICATION | {"client_id": "test"}, GROUP, profile, MEMBER)
    read = await imported(store, data, merge=True)

    assert 0 == read.conflicts
    assert ("Mine", "gold") == (
        (await store.groups.get_group(env, G1)).name,
        (await store.groups.get_group(env, G1)).custom_id,
    )
    known = await in_groups(store, env, P1)
    assert {group.number: 1000} == known.memberships
    seq = known.record.pop(b"seq")
    assert int(seq) > 10**15
    assert {b"created_at": b"50", b"nickname": b"Ann", b"custom_data": b"{}"} == known.record
    assert {
        b"older": b'200 150 "file"',
        b"newer": b'300 300 "mine"',
        b"same": b'200 90 "v"',
        b"deleted": b"300",
        b"revived": b'200 150 "file"',
        b"new": b'200 150 ["a"]',
    } == known.attributes


async def test_identities_that_others_have_are_reported_by_line_and_left_out(
    store, application, env
):
    await store.profiles.add_identity(env, packed(P2), "email", "a@example.com")
    await store.profiles.add_identity(env, packed(P2), "customer_id", "ann")
    both = {"type": "email", "value": "a@example.com"}, {"type": "email", "value": "b@example.com"}
    data = lines(
        APPLICATION | {"client_id": "test"},
        PROFILE | {"custom_id": "ann", "identities": both},
        PROFILE | {"id": P2, "custom_id": "other"},
        PROFILE | {"id": G1, "identities": both[1:]},
    )
    said: list[str] = []

    read = await imported(store, data, merge=True, report=said.append)

    assert [
        f"line 3: profile {P1}: customer_id 'ann' belongs to another profile",
        f"line 3: profile {P1}: email 'a@example.com' belongs to another profile",
        f"line 4: profile {P2}: the profile has another custom_id",
        f"line 5: profile {G1}: email 'b@example.com' belongs to another profile",
    ] == said
    assert 4 == read.conflicts
    resolved = await store.profiles.resolve_identities(
        env, "email", ["a@example.com", "b@example.com"], create=False
    )
    assert [packed(P2), packed(P1)] == resolved


async def test_of_two_groups_with_one_custom_id_the_first_keeps_it(store):
    other = GROUP | {"id": G2, "name": "Also", "custom_id": "gold"}
    data = lines(APPLICATION, GROUP | {"custom_id": "gold"}, other, MEMBER | {"group_id": G2})
    said: list[str] = []

    await imported(store, data, report=said.append)

    expected = f"line 4: custom id 'gold' belongs to another group; group {G2} was created without"
    [sentence] = said
    assert sentence.startswith(expected)
    env = (await store.registry.application("shop")).production
    assert G1 == (await store.groups.get_group(env, "gold")).id
    assert await in_groups(store, env, P1) is not None


async def test_a_profile_being_erased_takes_nothing(store, application, env):
    group = await store.groups.create_group(env, NewGroup(id=G1, name="Gold"))
    await store.members.add_members(env, group.number, packed(P1))
    mixed = env.mixer.mix(packed(P1))
    tag = env.home(mixed)
    await store.connection.call(
        scripts.load("begin_erase"),
        [keys.key(tag, "erasing"), keys.of_profile(tag, "profile", mixed), keys.none(tag)],
        [mixed, 1],
    )
    said: list[str] = []

    data = lines(APPLICATION | {"client_id": "test"}, PROFILE | {"custom_id": "x"}, MEMBER)
    await imported(store, data, merge=True, report=said.append)

    assert [f"line {n}: profile {P1} is being erased" for n in (3, 4)] == said
    await store.profiles.finish_erasures(env)
    assert await in_groups(store, env, P1) is None


async def test_nobody_is_imported_into_more_groups_than_a_listing_can_bear(store, monkeypatch):
    monkeypatch.setattr(store_transfer, "GROUPS_PER_PROFILE", 2)
    groups = [GROUP | {"id": str(uuid.UUID(int=at))} for at in range(1, 4)]
    members = [MEMBER | {"group_id": each["id"]} for each in groups]
    said: list[str] = []

    await imported(store, lines(APPLICATION, *groups, *members), report=said.append)

    assert [f"line 8: profile {P1} is in too many groups"] == said


# --- files that are wrong

BAD_LINES = {
    "no JSON": (b"{", "line 3: no JSON"),
    "no object": (b"[1]", "line 3: Expected `object`, got `array`"),
    "an unknown kind": (b'{"kind":"secret"}', "line 3: Invalid value 'secret' - at `$.kind`"),
    "an unknown member": (GROUP | {"x": 1}, "line 3: Object contains unknown field `x`"),
    "a missing member": ({"kind": "group", **IN, "id": G1}, "line 3: Object missing required"),
    "a wrong type": (GROUP | {"name": 5}, "line 3: Expected `str`, got `int` - at `$.name`"),
    "another environment": (GROUP | {"environment": "test"}, "line 3: Invalid enum value 'test'"),
    "a type of groups that there is not": (
        GROUP | {"membership_type": "clever"},
        "line 3: Invalid enum value 'clever'",
    ),
    "a dynamic group without a rule tree": (
        GROUP | {"membership_type": "dynamic"},
        "line 3: a dynamic group has a `rule_tree`, and no other group has one",
    ),
    "a static group with a rule tree": (
        GROUP | {"rule_tree": {"group": G2}},
        "line 3: a dynamic group has a `rule_tree`, and no other group has one",
    ),
    "a rule tree that is none": (
        DYNAMIC | {"rule_tree": {"operator": "XOR", "children": []}},
        "line 3: `XOR` is no operator",
    ),
    "a rule tree that is null": (DYNAMIC | {"rule_tree": None}, "line 3: A node has `operator`"),
    "a rule tree that names a group by its custom id": (
        DYNAMIC | {"rule_tree": {"group": "gold"}},
        "line 3: groups are named by their UUIDs here, unlike `$.rule_tree.group`",
    ),
    "a dynamic group of development": (
        DYNAMIC | {"environment": "development"},
        "line 3: dynamic groups are in production alone",
    ),
    "NUL in an author": (
        GROUP | {"created_by": "a\0"},
        "line 3: NUL characters are not allowed in `created_by`",
    ),
    "an author that is none": (GROUP | {"modified_by": None}, "line 3: Expected `str`"),
    "no UUID": (GROUP | {"id": "gold"}, "line 3: `id` has to be a UUID"),
    "NUL in a name": (GROUP | {"name": "a\0"}, "line 3: NUL characters are not allowed in `name`"),
    "NUL in an attribute": (
        GROUP | {"attributes": [{"key": "\0", "value": ""}]},
        "line 3: NUL characters are not allowed",
    ),
    "invalid UTF-8": (b'{"kind":"gro\xff"}', "line 3: "),
    "a lone surrogate": (b'{"kind":"group","name":"\\ud800"}', "line 3: no JSON"),
    "a time before 1970": (GROUP | {"created_at_us": -1}, "line 3: Expected `int` >= 0"),
    "a time beyond doubles": (GROUP | {"created_at_us": 2**53}, "line 3: Expected `int` <= "),
    "a fraction": (MEMBER | {"joined_at_us": 1.5}, "line 3: Expected `int`, got `float`"),
    "an identity of no type": (
        PROFILE | {"identities": [{"type": "shoe", "value": "x"}]},
        "line 3: there is no identity type `shoe`",
    ),
    "a custom id among the identities": (
        PROFILE | {"identities": [{"type": "customer_id", "value": "x"}]},
        "line 3: an identity `customer_id` is written as `custom_id`",
    ),
    "an attribute that is an object": (
        PROFILE | {"attributes": [{"name": "a", "time_us": 1, "since_us": 1, "value": {}}]},
        "line 3: `a` is no attribute",
    ),
    "an attribute since later": (
        PROFILE | {"attributes": [{"name": "a", "time_us": 1, "since_us": 2, "value": 1}]},
        "line 3: `a` is no attribute",
    ),
    "half an attribute": (
        PROFILE | {"attributes": [{"name": "a", "time_us": 1, "value": "x"}]},
        "line 3: `since_us` and `value` stand together",
    ),
    "a setting that there is not": (
        APPLICATION | {"settings": {"colour": 1}},
        "line 3: there is no setting `colour`",
    ),
    "a setting that cannot be": (
        APPLICATION | {"settings": {"groups_per_profile": 0}},
        "line 3: Expected `int` >= 1",
    ),
    "a definition without a source": (
        {name: value for name, value in DEFINITION.items() if name != "source_user_attribute"},
        "line 3: Object missing required field `source_user_attribute`",
    ),
    "a definition of two characters": (
        DEFINITION | {"id": "ab"},
        "line 3: `ab` is no id of a definition",
    ),
    "an id of a definition that ends its line": (
        DEFINITION | {"id": "abc\n"},
        "line 3: `abc",
    ),
    "an aggregation that there is not": (
        DEFINITION | {"attributes": [{"id": "kids", "type": "median"}]},
        "line 3: Field 'attributes[0].type' is 'median', which is no aggregation",
    ),
    "an attribute that is shared twice": (
        DEFINITION | {"attributes": [{"id": "kids", "type": "sum"}] * 2},
        "line 3: Field 'attributes[1].id' must be unique",
    ),
    "a definition that nobody wrote": (
        DEFINITION | {"created_by": "\0"},
        "line 3: NUL characters are not allowed in `created_by`",
    ),
    "a definition of more attributes than there may be": (
        DEFINITION | {"attributes": [{"id": f"a{n}", "type": "sum"} for n in range(11)]},
        "line 3: there is no room for definition household: the application is set to 1 with 10",
    ),
    "an mpid that is none": (PROFILE | {"mpid": "007"}, "line 3: `007` is no mpid"),
    "an mpid of more than 64 bits": (
        PROFILE | {"mpid": str(2**63)},
        "line 3: `9223372036854775808`",
    ),
    "an identity that is no mpid": (
        PROFILE | {"identities": [{"type": "mpid", "value": "x"}]},
        "line 3: `x` is no mpid",
    ),
    "a membership of no group": (MEMBER, f"line 3: there is no group {G1}"),
    "a membership of no profile": (MEMBER | {"profile_id": "x"}, "line 3: `profile_id` has to be"),
    "a membership in no group id": (MEMBER | {"group_id": "x"}, "line 3: `group_id` has to be"),
    "a second first line": (b'{"format":1}', "line 3: Object "),
    "what nests too deeply": (b'{"kind":"group","x":' + b"[" * 5000, "line 3: "),
}


@pytest.mark.parametrize(("line", "sentence"), BAD_LINES.values(), ids=BAD_LINES)
async def test_a_line_that_is_no_record_ends_the_import_with_its_number(other, line, sentence):
    with pytest.raises(Invalid) as raised:
        await imported(other, lines(APPLICATION, line, GROUP))

    assert str(raised.value).startswith(sentence)
    [application] = await other.registry.list_applications()
    with pytest.raises(NotFound):
        await other.groups.get_group(application.production, G1)


async def test_what_stands_before_a_wrong_line_is_imported(other):
    with pytest.raises(Invalid, match=r"^line 5: "):
        await imported(other, lines(APPLICATION, GROUP, MEMBER, b"{", GROUP | {"id": G2}))

    env = (await other.registry.application("shop")).production
    known = await in_groups(other, env, P1)
    assert {1: 7} == known.memberships


async def test_a_membership_before_its_group_is_refused(other):
    with pytest.raises(Invalid, match=rf"^line 3: there is no group {G1}: its record has to stand"):
        await imported(other, lines(APPLICATION, MEMBER, GROUP))


async def test_a_group_that_was_deleted_long_ago_takes_no_members(other, monkeypatch):
    # Numbers of groups were remembered for as long as an import ran. A day after the sweep nothing
    # says any more that the group is gone: members were made of a number that nobody has.
    monkeypatch.setattr(merging, "REMEMBERED_SECONDS", 0)
    application = await other.registry.create_application("shop")
    env = application.production
    group = await other.groups.create_group(env, NewGroup(name="g", id=G1))
    merger = merging.Merger(other, nothing, merge=True)

    async def bring(line, profile_id):
        segment = merging.Segment(environment="production")
        row = {"environment": "production", "group_id": G1, "profile_id": profile_id}
        segment.add(line, transfer.MembershipRecord(**row, joined_at_us=7))
        await merger.bring(application, segment)

    await bring(3, P1)
    await other.groups.delete_group(env, group.id)
    await other.upkeep.sweep_groups(env, 2**62)
    await other.upkeep.purge_states(env, 2**62)

    with pytest.raises(Invalid, match=r"^line 4: there is no group"):
        await bring(4, P2)


async def test_a_group_that_comes_twice_has_to_be_the_same(other):
    await imported(other, lines(APPLICATION, GROUP, GROUP, MEMBER, GROUP))

    data = lines(APPLICATION | {"client_id": "two"}, GROUP, GROUP | {"name": "Other"})
    with pytest.raises(Invalid, match=r"^line 4: there is a group .* and it is another one"):
        await imported(other, data)


async def test_records_without_an_application_are_refused(other):
    with pytest.raises(Invalid, match=r"^line 2: an application record has to stand before it"):
        await imported(other, lines(GROUP))


HEADS = {
    "another format": (b'{"format":2}\n', "line 1: the file has format 2, and this version reads"),
    "no format": (json.dumps(APPLICATION).encode() + b"\n", "line 1: no export begins so"),
    "a BOM": (b"\xef\xbb\xbf" + lines(APPLICATION), "line 1: it begins with a byte order mark"),
    "UTF-16": ('{"format":1}\n'.encode("utf-16"), "line 1: it is UTF-16"),
    "gzip": (b"\x1f\x8b\x08\0\0\n", "line 1: it is compressed by gzip; use gunzip -c"),
    "zstd": (b"\x28\xb5\x2f\xfd\0\n", "line 1: it is compressed by zstd; use zstd -dc"),
    "zip": (b"PK\3\4\n", "line 1: it is a zip archive"),
    "noise": (bytes(range(128, 256)) + b"\n", "line 1: no export begins so"),
    "nothing": (b"", "The file is empty."),
}


@pytest.mark.parametrize(("data", "sentence"), HEADS.values(), ids=HEADS)
async def test_a_file_that_is_no_export_is_refused_by_what_it_is(other, data, sentence):
    with pytest.raises(Invalid) as raised:
        await imported(other, data)

    assert str(raised.value).startswith(sentence)
    assert [] == await other.registry.list_applications()


async def test_crlf_and_blank_lines_are_taken(other):
    data = lines(APPLICATION, GROUP, b"", MEMBER, END).replace(b"\n", b"\r\n") + b"\n\n"

    read = await imported(other, data)

    assert (1, 1) == (read.groups, read.memberships)


async def test_a_file_that_was_cut_off_says_so(other):
    whole = lines(APPLICATION | {"ends": True}, GROUP, MEMBER, END)

    with pytest.raises(Invalid, match=r"^line 4: the file is cut off in the middle of this line"):
        await imported(other, whole[: whole.index(b"joined")])
    with pytest.raises(Invalid, match=r"^line 5: the file ends without its end record"):
        await imported(other, whole[: whole.index(b'{"kind": "end"}')], merge=True)
    with pytest.raises(Invalid, match=r"^line 6: nothing may follow the end record"):
        await imported(other, whole + json.dumps(GROUP).encode(), merge=True)
    await imported(other, whole.rstrip(b"\n"), merge=True)


async def test_a_line_of_100_megabytes_is_refused_without_being_held(other):
    class Endless(io.BytesIO):
        left = 100 * 2**20
        begun = lines(APPLICATION, GROUP)

        def read(self, size=-1):
            if self.begun:
                data, self.begun = self.begun, b""
                return data
            self.left -= size
            return b"x" * size if self.left > 0 else b""

    source = Endless()
    with pytest.raises(Invalid, match=r"^line 4: it is longer than 16,777,216 bytes"):
        await import_stream(other, source, Options(), nothing)

    assert source.left > 80 * 2**20


# --- files that are gone on with


async def test_a_mended_file_is_gone_on_with_without_merge(other, tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "LAG_SECONDS", 0)
    monkeypatch.setattr(importing, "PLACE_SECONDS", 0)
    monkeypatch.setattr(importing, "LINES", 2)
    path = tmp_path / "dump"
    second = GROUP | {"id": G2, "name": "Second"}
    path.write_bytes(lines(APPLICATION, GROUP, MEMBER, b"{", second, END))
    kept = tmp_path / "dump.progress"

    with pytest.raises(Invalid, match=r"^line 5: "):
        await import_file(other, path, Options(), nothing, nothing)
    assert 4 == json.loads(kept.read_bytes())["place"]["line"]
    assert 0o600 == kept.stat().st_mode & 0o777
    path.write_bytes(lines(APPLICATION, GROUP, MEMBER, second, END))
    read = await import_file(other, path, Options(), nothing, nothing)

    assert not kept.exists()
    assert (1, 2, 1) == (read.applications, read.groups, read.memberships)
    env = (await other.registry.application("shop")).production
    assert {1: 7} == (await in_groups(other, env, P1)).memberships


async def test_a_file_whose_definition_had_no_room_is_gone_on_with_from_there(
    other, tmp_path, monkeypatch
):
    monkeypatch.setattr(importing, "LAG_SECONDS", 0)
    monkeypatch.setattr(importing, "PLACE_SECONDS", 0)
    monkeypatch.setattr(importing, "LINES", 2)
    path = tmp_path / "dump"
    second = DEFINITION | {"id": "second"}
    path.write_bytes(lines(APPLICATION, GROUP, DEFINITION, second, PROFILE, MEMBER, END))

    with pytest.raises(Invalid, match=r"^line 5: there is no room for definition second"):
        await import_file(other, path, Options(), nothing, nothing)
    await other.registry.update_application("shop", definitions_per_workspace=2)
    read = await import_file(other, path, Options(), nothing, nothing)

    assert (2, 1, 1, 1) == (read.definitions, read.groups, read.profiles, read.memberships)
    application = await other.registry.application("shop")
    held = await other.definitions.list_definitions(application)
    assert ["household", "second"] == [each.id for each in held]
    [job] = await other.jobs.list_jobs(application)
    assert "queued" == job.state


async def test_the_place_that_is_kept_is_older_than_what_a_store_may_lose(other, tmp_path):
    path = tmp_path / "dump"
    path.write_bytes(lines(APPLICATION, GROUP, MEMBER, b"{"))

    with pytest.raises(Invalid, match=r"^line 5: "):
        await import_file(other, path, Options(), nothing, nothing)

    place = json.loads((tmp_path / "dump.progress").read_bytes())["place"]
    assert (0, 0) == (place["line"], place["offset"])
    path.write_bytes(lines(APPLICATION, GROUP, MEMBER))
    await import_file(other, path, Options(), nothing, nothing)


async def test_a_file_that_changed_before_the_place_is_not_gone_on_with(
    other, tmp_path, monkeypatch
):
    monkeypatch.setattr(importing, "LAG_SECONDS", 0)
    monkeypatch.setattr(importing, "PLACE_SECONDS", 0)
    path = tmp_path / "dump"
    path.write_bytes(lines(APPLICATION, GROUP, MEMBER, b"{"))
    with pytest.raises(Invalid):
        await import_file(other, path, Options(), nothing, nothing)

    path.write_bytes(lines(APPLICATION, GROUP | {"name": "Cold"}, MEMBER, END))
    with pytest.raises(Unusable, match=r"was changed before line 5"):
        await import_file(other, path, Options(), nothing, nothing)
    path.write_bytes(lines(APPLICATION))
    with pytest.raises(Unusable, match=r"was changed before line 5"):
        await import_file(other, path, Options(), nothing, nothing)


async def test_an_unfinished_import_is_not_gone_on_with_under_another_client_id(
    other, tmp_path, monkeypatch
):
    # It was: what was left went into the application of the first run, the one that was asked for
    # was not even made, and the command said that all was well.
    monkeypatch.setattr(importing, "LAG_SECONDS", 0)
    monkeypatch.setattr(importing, "PLACE_SECONDS", 0)
    path = tmp_path / "dump"
    path.write_bytes(lines(APPLICATION, GROUP, MEMBER, b"{"))
    with pytest.raises(Invalid):
        await import_file(other, path, Options(application="one"), nothing, nothing)
    path.write_bytes(lines(APPLICATION, GROUP, MEMBER, MEMBER | {"profile_id": P2}))

    with pytest.raises(Unusable, match="go on with --application one, or delete it"):
        await import_file(other, path, Options(application="two"), nothing, nothing)
    with pytest.raises(Unusable, match="go on with --application one, or delete it"):
        await import_file(other, path, Options(), nothing, nothing)
    read = await import_file(other, path, Options(application="one"), nothing, nothing)

    assert (1, 2) == (read.applications, read.memberships)
    assert ["one"] == [each.client_id for each in await other.registry.list_applications()]


async def test_an_import_into_another_store_is_not_gone_on_with(other, tmp_path):
    path = tmp_path / "dump"
    path.write_bytes(lines(APPLICATION, GROUP, b"{"))
    with pytest.raises(Invalid):
        await import_file(other, path, Options(), nothing, nothing)
    elsewhere = backings.fake()
    second = await Store.open(elsewhere.url)

    with pytest.raises(Unusable, match="unfinished import into another store"):
        await import_file(second, path, Options(), nothing, nothing)

    await second.close()
    elsewhere.stop()
    (tmp_path / "dump.progress").write_bytes(b"{")
    with pytest.raises(Unusable, match="does not say where an earlier run was"):
        await import_file(other, path, Options(), nothing, nothing)


async def test_an_export_goes_on_where_it_was_kept(store, partitions, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "PLACE_SECONDS", 0)
    monkeypatch.setattr(exporting, "BLOCK", 0)
    monkeypatch.setattr(exporting, "GROUPS", 5)
    monkeypatch.setattr(store_transfer, "PROFILES", 20)
    application = await fill(store, partitions=partitions)
    expected = await exported(store)
    path = tmp_path / "dump"
    kept = tmp_path / "dump.progress"
    write = transfer.write_place
    places = []

    def stop(at):
        def write_and_stop(*place):
            write(*place)
            places.append(place)
            if len(places) == at:
                raise KeyboardInterrupt

        return write_and_stop

    runs = 0
    while not path.exists():
        places.clear()
        monkeypatch.setattr(exporting, "write_place", stop(1 + runs % 3))
        runs += 1
        try:
            written = await export_to_file(store, [application], path, nothing)
        except KeyboardInterrupt:
            # Lines that no place speaks of, half a line among them.
            with (tmp_path / "dump.part").open("ab") as part:
                part.write(b'{"kind":"group"}\n{"ki')

    assert runs > 10
    assert expected == sorted(path.read_bytes().splitlines())
    assert written.memberships == sum(b'"membership"' in each for each in expected)
    assert [path] == list(tmp_path.iterdir())
    assert 0o600 == path.stat().st_mode & 0o777
    assert not kept.exists()


async def test_an_unfinished_export_of_something_else_is_not_gone_on_with(
    other, tmp_path, monkeypatch
):
    monkeypatch.setattr(exporting, "PLACE_SECONDS", 0)
    shop, club = await fill(other), await fill(other, "club", profiles=20)
    path = tmp_path / "dump"
    write = transfer.write_place

    def stop(*place):
        write(*place)
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "write_place", stop)
    with pytest.raises(KeyboardInterrupt):
        await export_to_file(other, [shop], path, nothing)

    with pytest.raises(Unusable, match="unfinished export of other applications"):
        await export_to_file(other, [club], path, nothing)
    (tmp_path / "dump.part").write_bytes(b"")
    with pytest.raises(Unusable, match="is shorter than"):
        await export_to_file(other, [shop], path, nothing)


async def test_an_export_that_was_killed_when_its_file_had_its_name_is_begun_anew(
    other, tmp_path, monkeypatch
):
    # The place was left behind without the part that it speaks of, and no export to that file
    # was to be had until somebody deleted it.
    monkeypatch.setattr(exporting, "PLACE_SECONDS", 0)
    shop = await fill(other, profiles=20)
    path = tmp_path / "dump"

    def stop(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(exporting, "sync_folder", stop)
        with pytest.raises(KeyboardInterrupt):
            await export_to_file(other, [shop], path, nothing)
    assert [path, tmp_path / "dump.progress"] == sorted(tmp_path.iterdir())
    await export_to_file(other, [shop], path, nothing)

    assert await exported(other) == sorted(path.read_bytes().splitlines())
    assert [path] == list(tmp_path.iterdir())


async def test_an_export_does_not_empty_the_file_of_one_that_has_just_finished(
    tmp_path, monkeypatch
):
    # Who opened the part before it got its name, and had its lock after that, began anew in what
    # was the finished file by then.
    path = tmp_path / "dump"
    first = exporting.FileSink(path, {})
    first.write(b"whole\n")
    lock = fcntl.flock

    def finish_and_lock(file, how):
        monkeypatch.setattr(fcntl, "flock", lock)
        first.finish()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", finish_and_lock)
    with pytest.raises(Unusable, match="Another export has just finished"):
        exporting.FileSink(path, {})

    assert b"whole\n" == path.read_bytes()
    exporting.FileSink(path, {}).close()


async def test_two_at_one_file_are_kept_apart(other, tmp_path):
    application = await fill(other, profiles=20)
    path = tmp_path / "dump"
    sink = exporting.FileSink(path, {})
    with pytest.raises(Unusable, match="Another export is writing"):
        await export_to_file(other, [application], path, nothing)
    sink.close()
    await export_to_file(other, [application], path, nothing)
    await export_to_file(other, [application], path, nothing)

    with path.open("rb") as file:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Unusable, match="Another import is reading"):
            await import_file(other, path, Options(merge=True), nothing, nothing)


# --- the command, as processes


@pytest.fixture
def place(runtime, tmp_path):
    """Give a function that starts an embedded store and gives its data directory."""
    started = []

    def start(name):
        server = EmbeddedServer(tmp_path / name)
        server.start()
        started.append(server)
        return tmp_path / name

    yield start
    for each in started:
        each.stop()


QUICK = (
    "import sys; from service import cli;"
    "from service.transfer import exporting as e, importing as i;"
    "e.PLACE_SECONDS = i.PLACE_SECONDS = 0.05; i.LAG_SECONDS = 0; i.LINES = 1000; cli.main()"
)
"""The command, which keeps its place more often than a minute's work needs."""


def command(data_dir, *arguments, **how):
    """Start `belong` on a data directory."""
    clean = {n: v for n, v in os.environ.items() if not n.startswith("BELONG_")}
    return subprocess.Popen(
        [sys.executable, "-c", QUICK, *arguments, "--data-dir", str(data_dir)],
        cwd=ROOT,
        env=clean,
        **how,
    )


def belong(data_dir, *arguments, code=0):
    """Run `belong` on a data directory, and give stdout and stderr."""
    with command(data_dir, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=600)
    assert code == process.returncode, err.decode()
    return out.decode(), err.decode()


def sorted_lines(path):
    return sorted(path.read_bytes().splitlines())


def dump(path, memberships):
    """Write a file of so many memberships in groups of different sizes, ten of each profile."""
    draw = random.Random(5)
    profiles = memberships // 10
    groups = [str(uuid.UUID(int=draw.getrandbits(128))) for _ in range(max(profiles // 100, 20))]
    with path.open("wb") as file:

        def put(line):
            file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")

        put({"format": 1})
        put(APPLICATION | {"partitions": 2, "ends": True})
        for at, group in enumerate(groups):
            put(GROUP | {"id": group, "name": f"g{at}", "created_at_us": 10**15 + at})
        for at in range(profiles):
            id_ = str(uuid.UUID(int=draw.getrandbits(128)))
            if at % 5 == 0:
                named = {"custom_id": f"c{at}", "nickname": f"n{at}"}
                put(PROFILE | {"id": id_, "created_at_us": 10**15 + at} | named)
            for group in draw.sample(groups, 10):
                joined = {"profile_id": id_, "joined_at_us": draw.randrange(10**15, 2 * 10**15)}
                put(MEMBER | {"group_id": group} | joined)
        put(END)


def verified(data_dir):
    found = json.loads(belong(data_dir, "verify", "--json")[0])
    assert [] == found["problems"]


def kill_until_done(data_dir, *arguments, kept, draw, at_least):
    """Run a command again and again, killed at random moments of its work, until it is done.

    That it works is seen by the place that it keeps. Five times it is killed at most.
    """
    kills = 0
    while True:
        with command(data_dir, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as one:
            changes = draw.randint(1, 4) if kills < 5 else 10**9
            seen = content(kept)
            while changes and one.poll() is None:
                time.sleep(0.002)
                if content(kept) not in {seen, None}:
                    seen = content(kept)
                    changes -= 1
            time.sleep(draw.uniform(0, 0.04))
            if one.poll() is None:
                one.send_signal(signal.SIGKILL)
                kills += 1
            _, err = one.communicate(timeout=60)
        if one.returncode != -signal.SIGKILL:
            assert 0 == one.returncode, err.decode()
            assert kills >= at_least
            return


def content(path):
    """Give what a file holds; None: it is not there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def test_export_and_import_in_a_pipe_of_two_processes(place, tmp_path):
    here, there = place("here"), place("there")
    path = tmp_path / "dump"
    dump(path, MEMBERSHIPS // 3)
    out, _ = belong(here, "import", str(path), "--json")
    assert MEMBERSHIPS // 3 == json.loads(out)["memberships"]

    exporting = command(
        *(here, "export", "--application", "all", "--output", "-"), stdout=subprocess.PIPE
    )
    importing = command(there, "import", "-", "--json", stdin=exporting.stdout)
    exporting.stdout.close()

    assert [0, 0] == [importing.wait(300), exporting.wait(300)]
    for data_dir in (here, there):
        verified(data_dir)
        output = str(tmp_path / data_dir.name) + ".dump"
        belong(data_dir, "export", "--application", "shop", "--output", output)
    assert sorted_lines(tmp_path / "here.dump") == sorted_lines(tmp_path / "there.dump")
    expected = [b"{" + each[1:] for each in sorted_lines(path)]
    assert len(expected) == len(sorted_lines(tmp_path / "there.dump"))


@pytest.mark.slow
def test_killed_half_way_many_times_and_gone_on_with_nothing_is_lost(place, tmp_path):
    here, there = place("here"), place("there")
    path, first, second = tmp_path / "dump", tmp_path / "first", tmp_path / "second"
    dump(path, MEMBERSHIPS)
    draw = random.Random(11)
    export = ("export", "--application", "shop", "--output")

    def killed(data_dir, *arguments, kept):
        kept = tmp_path / f"{kept.name}.progress"
        kill_until_done(data_dir, *arguments, kept=kept, draw=draw, at_least=2)

    killed(here, "import", str(path), kept=path)
    verified(here)
    killed(here, *export, str(first), kept=first)
    killed(there, "import", str(first), kept=first)
    verified(there)
    belong(there, *export, str(second))

    assert sorted_lines(first) == sorted_lines(second)
    assert MEMBERSHIPS == sum(b'"membership"' in each for each in sorted_lines(first))
    assert [] == [each.name for each in tmp_path.glob("*.progress")]
    assert [] == [each.name for each in tmp_path.glob("*.part")]


def test_an_import_from_nothing_says_so(place):
    # What is no pipe was waited for as one: /dev/null, which cron jobs have as standard input,
    # cannot be, and the command stood still for good.
    data_dir = place("one")
    with command(
        data_dir, "import", "-", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (1, b"The file is empty." in err) == (process.returncode, True)


def test_an_export_that_is_killed_in_a_pipe_is_not_taken_for_whole(place, tmp_path):
    here, there = place("here"), place("there")
    path = tmp_path / "dump"
    dump(path, MEMBERSHIPS)
    belong(here, "import", str(path))
    belong(here, "export", "--application", "shop", "--output", str(tmp_path / "out"))
    whole = (tmp_path / "out").read_bytes()
    reader, writer = os.pipe()
    importing = command(
        *(there, "import", "-"), stdin=reader, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(whole[: whole.rindex(b"\n", 0, len(whole) // 2) + 1])
    _, err = importing.communicate(timeout=300)

    assert 1 == importing.returncode
    assert "the file ends without its end record" in err.decode()
    verified(there)
    (tmp_path / "again").write_bytes(whole)
    belong(there, "import", str(tmp_path / "again"), "--merge")
    belong(there, "export", "--application", "shop", "--output", str(tmp_path / "out2"))
    assert sorted(whole.splitlines()) == sorted_lines(tmp_path / "out2")


def test_what_goes_wrong_is_one_sentence_and_exit_1(place, tmp_path):
    data_dir = place("here")
    path = tmp_path / "dump"
    path.write_bytes(lines(APPLICATION, GROUP, PROFILE | {"custom_id": "x"}, END))
    belong(data_dir, "import", str(path))

    def complaint(*arguments):
        out, err = belong(data_dir, *arguments, code=1)
        assert "" == out
        [line] = err.splitlines()
        return line

    assert "is not empty" in complaint("import", str(path))
    assert "No such file" in complaint("import", str(tmp_path / "none"))
    assert "Is a directory" in complaint("import", str(tmp_path))
    export = ("export", "--application", "shop", "--output")
    assert "is a directory" in complaint(*export, str(tmp_path))
    assert "No such file" in complaint(*export, str(tmp_path / "none" / "x"))
    assert "no application none" in complaint("export", "--application", "none", "--output", "-")
    path.write_bytes(lines(APPLICATION, PROFILE | {"id": P2, "custom_id": "x"}, END))
    out, err = belong(data_dir, "import", str(path), "--merge", "--json", code=1)
    assert 1 == json.loads(out)["conflicts"]
    assert f"line 3: profile {P2}: customer_id 'x' belongs to another profile\n" == err
    belong(data_dir, "import", code=2)
    belong(data_dir, "export", "--application", "shop", code=2)


def test_an_output_that_takes_no_more_is_a_sentence(place):
    data_dir = place("here")
    belong(data_dir, "app", "create", "shop")
    arguments = ("export", "--application", "shop", "--output", "-")

    with (
        Path("/dev/full").open("wb") as full,
        command(data_dir, *arguments, stdout=full, stderr=subprocess.PIPE) as one,
    ):
        _, err = one.communicate(timeout=60)
    assert (1, b"belong: -: No space left on device\n") == (one.returncode, err)
    reader, writer = os.pipe()
    os.close(reader)
    with command(data_dir, *arguments, stdout=writer, stderr=subprocess.PIPE) as one:
        os.close(writer)
        _, err = one.communicate(timeout=60)
    assert (1, b"belong: Nobody reads the output any more.\n") == (one.returncode, err)


def test_a_store_that_is_lost_half_way_is_a_sentence_and_the_import_goes_on_later(tmp_path):
    server = backings.embedded(persistent=True)
    path = tmp_path / "dump"
    dump(path, MEMBERSHIPS)
    url = ("--redis-url", server.url)
    clean = {n: v for n, v in os.environ.items() if not n.startswith("BELONG_")}

    def run():
        return subprocess.Popen(
            [sys.executable, "-m", "service", "import", str(path), *url],
            cwd=ROOT,
            env=clean,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    try:
        with run() as one:
            deadline = time.monotonic() + 60
            while (
                int(
                    server.about("INFO", "keyspace")
                    .get("db0", "keys=0,")
                    .split("=")[1]
                    .split(",")[0]
                )
                < 2000
            ):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            server.kill()
            _, err = one.communicate(timeout=60)
        assert 1 == one.returncode
        assert err.startswith(b"belong: The store at ")
        server.start()
        with run() as one:
            out, err = one.communicate(timeout=300)
        assert 0 == one.returncode, err
        assert f"{MEMBERSHIPS:,} memberships".encode() in out
        with subprocess.Popen(
            [sys.executable, "-m", "service", "verify", *url], cwd=ROOT, env=clean
        ) as checking:
            assert 0 == checking.wait(300)
    finally:
        server.stop()
