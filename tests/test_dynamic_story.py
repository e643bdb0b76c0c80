"""The seed's third step over HTTP: "members of a household that has a dog" are a group.

Two processes answer, each with its own copies of rules and groups: what one has answered the other
one shows. Then how little is looked at for it, and what is seen while a group is built.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
import uuid
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from service import faults, ids, scripts, store_jobs
from service.batches import read_batch
from service.connection import Connection
from service.groups import NewGroup
from service.store import Store
from service.verify import verify
from service.worker import work
from tests import backings
from tests.audiences import WITH_A_DOG, all_of, exact_groups, leaf, no, rule
from tests.client import DEMO, GROUPS, opened
from tests.face import Face, batch
from tests.households import PATIENCE_SECONDS, catch_up, define, killed_at, mixed_ids
from tests.test_store_derivation import LONGEST_US, REFERENCE, REFERENCE_US

JOHN, JANE, JACK = 1, 2, 3
MANY = 20_000
RULES = 1000
LEASE_US = 200_000

both = pytest.mark.parametrize("partitions", [1, 8], ids=["one-partition", "eight-partitions"])
one_partition = pytest.mark.parametrize("partitions", [1])


@pytest.fixture
async def faces(valkey, partitions):
    """Two processes of both faces, over one store."""
    store = await Store.open(valkey.url)
    await store.registry.create_application("demo", partitions=partitions)
    await store.close()
    async with AsyncExitStack() as stack:
        apis = [await stack.enter_async_context(opened(valkey.url)) for _ in range(2)]
        application = await apis[0].store.registry.application("demo")
        assert application is not None
        yield [Face(api, api.admin, application.workspace_id) for api in apis]
        assert [] == (await verify(apis[0].store)).problems


async def create(face, named, tree, *, run=True, **fields):
    """Create a dynamic group, and have it built; give its id."""
    body = {"name": named, "custom_id": named, "membership_type": "dynamic", "rule_tree": tree}
    answer = await face.client.post(f"{GROUPS}/", body | fields, 201)
    assert tree == answer.plain["rule_tree"]
    if run:
        await face.run()
    group_id: str = answer.body.id
    return group_id


async def status(face, gid):
    """How far a group is built."""
    return (await face.client.get(f"{GROUPS}/{gid}/")).plain["status"]


async def seen(face, gid, users):
    """Who of some users is in a group, if all lookups of one process say the same."""
    profiles = {number: await face.profile(number) for number in users}
    pairs = [{"profile_id": each, "group_id": gid} for each in profiles.values()]
    pairs += [{"custom_id": f"user {number}", "group_id": gid} for number in users]
    checked = (await face.client.post(f"{DEMO}/memberships/check/", {"pairs": pairs})).body.results
    found = {number for number, inside in zip([*users, *users], checked, strict=True) if inside}
    assert [number in found for number in users] * 2 == checked
    pages = await face.client.walk(f"{GROUPS}/{gid}/members/?page_size=1")
    rows = [row.id for page in pages for row in page.results]
    assert sorted(rows) == sorted(profiles[number] for number in found)
    assert {len(found)} == {page.count for page in pages}
    for number, profile in profiles.items():
        listed = await face.client.get(f"{DEMO}/profiles/{profile}/profile-groups/")
        assert (number in found) == (gid in {row.group_id for row in listed.body.results})
    assert len(found) == (await face.client.get(f"{GROUPS}/{gid}/")).body.profile_count
    return found


async def audience(face, named):
    """What the Group Identity face says of a dynamic group."""
    listed = (await face.client.get(f"/v1/workspace/{face.workspace}/audiences")).plain
    [found] = [each for each in listed if each["name"] == named]
    return {
        "size": found["size"],
        "status": found["status"],
        "added": found["added_last_24_hours"],
        "dropped": found["dropped_last_24_hours"],
    }


@both
async def test_members_of_a_household_that_has_a_dog_are_a_group(faces):
    one, other = faces
    users = (JOHN, JANE, JACK)
    await one.define(("dog", "boolean_or"))
    gid = await create(one, "dogs", WITH_A_DOG)
    await other.say(JANE, address="1 Main")
    await one.say(JACK, address="2 Side")
    await other.say(JOHN, address="1 Main")
    assert set() == await seen(one, gid, users)
    # John has a dog, and Jane, of whom nobody said anything, is in the group with the answer.
    await one.say(JOHN, dog="true")
    assert {JOHN, JANE} == await seen(other, gid, users)
    assert {JOHN, JANE} == await seen(one, gid, users)
    active = {"size": 2, "status": "active", "added": 2, "dropped": 0}
    assert active == await audience(other, "dogs")
    path = f"/userprofile/v1/resolve/1/1/{one.workspace}?fields=audience_memberships"
    jane = {"type": "customer_id", "value": f"user {JANE}"}
    body = {"environment_type": "production", "identity": jane}
    said = (await one.client.call("POST", path, body, status=200)).plain["audience_memberships"]
    assert ["dogs"] == [each["audience_name"] for each in said]
    # Jane moves to Jack, and then Jack to her old place.
    await other.say(JANE, address="2 Side")
    assert {JOHN} == await seen(one, gid, users)
    await one.say(JACK, address="1 Main")
    assert {JOHN, JACK} == await seen(other, gid, users)
    # The dog goes, over the other face, and comes back.
    profile = await one.profile(JOHN)
    attributes = [{"key": "$address", "value": "1 Main"}, {"key": "dog", "value": "no more"}]
    path = f"/api/v1/profiles/{profile}/?client_id=demo"
    await one.client.patch(path, {"attributes": attributes})
    assert set() == await seen(other, gid, users)
    assert {"size": 0, "status": "active", "added": 3, "dropped": 3} == await audience(one, "dogs")
    await other.say(JACK, dog=True)
    assert {JOHN, JACK} == await seen(one, gid, users)
    # John is forgotten; then nothing is shared any more.
    await one.erase(JOHN)
    assert {JACK} == await seen(other, gid, (JACK, JANE))
    await other.drop()
    assert set() == await seen(one, gid, (JACK, JANE))
    assert 0 == (await audience(other, "dogs"))["size"]


@both
async def test_a_static_group_and_an_attribute_make_a_group_too(faces):
    one, other = faces
    users = (JOHN, JANE)
    paying = await one.client.group("paying")
    tree = all_of({"group": paying}, leaf("x", "between", [1, 10]), no(leaf("gone", "exists")))
    gid = await create(other, "good", tree)
    for number in users:
        await one.say(number, x=str(number))
    profiles = [await one.profile(number) for number in users]
    await other.client.post(f"{GROUPS}/{paying}/members/", {"profile_ids": profiles})
    assert {JOHN, JANE} == await seen(one, gid, users)
    await one.client.delete(f"{GROUPS}/{paying}/members/{profiles[0]}/")
    assert {JANE} == await seen(other, gid, users)
    line = {"op": "add", "group_id": paying, "custom_id": f"user {JOHN}"}
    await other.client.post(f"{DEMO}/memberships/bulk/", json.dumps(line))
    assert {JOHN, JANE} == await seen(one, gid, users)
    await one.say(JANE, gone=None)
    assert {JOHN} == await seen(other, gid, users)
    body = {"profile_ids": profiles[1:]}
    await one.client.call("PUT", f"{GROUPS}/{paying}/members/", body, status=200)
    assert set() == await seen(other, gid, users)
    # A leaf follows memberships, whether its group is to be seen or not.
    await one.client.patch(f"{GROUPS}/{paying}/", {"is_active": False})
    await one.say(JANE, "gone")
    assert {JANE} == await seen(other, gid, users)


@both
async def test_time_alone_turns_a_rule_and_nothing_is_written_or_scanned(monkeypatch, faces):
    one, other = faces
    users = (JOHN, JANE)
    gid = await create(one, "lately", leaf("seen", "within_last_days", 1))
    now_ms = time.time_ns() // 1_000_000
    await one.say(JOHN, seen=str(now_ms))
    await other.say(JANE, seen=str(now_ms + 3_600_000))
    assert {JOHN} == await seen(other, gid, users)
    true_time, before = time.time_ns, one.api.store.settling.evaluated
    for hours, expected in ((2, {JOHN, JANE}), (24, {JANE}), (26, set()), (999, set())):
        later = hours * 3_600_000_000_000
        monkeypatch.setattr(time, "time_ns", lambda later=later: true_time() + later)
        await one.run()
        assert expected == await seen(other, gid, users)
    assert 3 == one.api.store.settling.evaluated - before


@both
async def test_an_attribute_that_no_rule_names_costs_nothing(faces):
    one, other = faces
    await one.define(("dog", "boolean_or"))
    await one.say(JOHN, address="1 Main", x="1")
    store = one.api.store
    profile = await one.profile(JOHN)

    async def commands(at):
        """What writes of all kinds cost, in commands."""
        before = store.connection.stats.commands
        kept = {"other": f"{at}", "$address": "1 Main", "x": "1"}
        attributes = [{"key": name, "value": value} for name, value in kept.items()]
        path = f"/api/v1/profiles/{profile}/?client_id=demo"
        await one.client.patch(path, {"attributes": attributes, "nickname": f"{at}"})
        await one.say(JOHN, other=f"{at} again")
        return store.connection.stats.commands - before

    await commands(0)
    without = await commands(1)
    for at in range(10):
        await create(other, f"rule {at}", leaf("x", "greater_than", at))
    await create(other, "dogs", WITH_A_DOG)
    # It hears of the rules.
    await one.say(JANE, x="2")
    evaluated = store.settling.evaluated
    assert 10 == evaluated
    assert without == await commands(2)
    assert evaluated == store.settling.evaluated


@one_partition
@pytest.mark.slow
async def test_a_write_that_touches_three_of_a_thousand_rules_evaluates_three(faces):
    one, other = faces
    await one.define(("dog", "boolean_or"))
    paying = await one.client.group("paying")
    await one.say(JOHN, address="1 Main", x0="1", y="1")
    await one.say(JANE, address="1 Main")
    trees = [leaf(f"x{at // 3}", "greater_than", at) for at in range(RULES - 5)]
    trees += [WITH_A_DOG, {"group": paying}, no({"group": paying})]
    trees += [all_of(leaf("y", "is", "1"), leaf("x7", "is_set")), leaf("seen", "on", "2024-02-29")]
    for at, tree in enumerate(trees):
        await create(other, f"rule {at}", tree, run=False)
    await one.run()
    await one.say(JOHN, x1="0")
    settling = one.api.store.settling

    async def evaluated(*coroutines):
        before = settling.evaluated
        for each in coroutines:
            await each
        return settling.evaluated - before

    profile = await one.profile(JOHN)
    members = f"{GROUPS}/{paying}/members/"
    assert 3 == await evaluated(one.say(JOHN, x0="5"))
    assert 0 == await evaluated(one.say(JOHN, x0="5"))
    assert 0 == await evaluated(one.say(JOHN, z="5"))
    assert 6 == await evaluated(one.say(JOHN, x1="5", x2="5"))
    assert 1 == await evaluated(one.say(JOHN, y="2"))
    # John's dog is looked at for John and for Jane.
    assert 2 == await evaluated(one.say(JOHN, dog="true"))
    assert 2 == await evaluated(one.client.post(members, {"profile_ids": [profile]}))
    assert 0 == await evaluated(one.client.post(members, {"profile_ids": [profile]}))
    assert 2 == await evaluated(one.client.delete(f"{members}{profile}/"))
    listed = await one.client.get(f"{DEMO}/profiles/{profile}/profile-groups/?page_size=1000")
    names = {row.group_name for row in listed.body.results}
    expected = {f"rule {at}" for at in range(9) if 5 > at}
    expected |= {f"rule {RULES - 5}", f"rule {RULES - 3}"}
    assert expected == names


OFTEN = 10


class Timing:
    """How long scripts held a server up, by what was going on, as if it were the reference."""

    def __init__(self, server):
        self.server = server
        self.names = {scripts.load(name).sha.encode(): name for name in scripts.Scripts().names()}
        self.found: dict[tuple[str, str], list[float]] = {}
        self.calls: Counter[tuple[str, str]] = Counter()
        self.what = ""

    def counting(self, call):
        """Give what calls scripts, and counts them: those that are not slow are in no log."""

        async def counted(connection, script, *arguments, **options):
            self.calls[self.what, script.name] += 1
            return await call(connection, script, *arguments, **options)

        return counted

    @contextlib.contextmanager
    def of(self, what):
        self.what = what
        ask = self.server.ask
        ask("SLOWLOG", "RESET")
        ask("EVAL", REFERENCE, 0)
        slower = max(1, ask("SLOWLOG", "GET", 1)[0][2] / REFERENCE_US)
        ask("SLOWLOG", "RESET")
        yield
        for _, _, us, command, *_ in ask("SLOWLOG", "GET", -1):
            if command[0] == b"EVALSHA":
                self.found.setdefault((what, self.names[command[1]]), []).append(us / slower)

    @property
    def large(self):
        """Of each step the scripts that are mostly not small; noise makes some of them longer."""
        found = {}
        for each, us in self.found.items():
            most = max(self.calls[each], len(us))
            place = most * 7 // 10 - (most - len(us))
            # What ran a few times only says nothing here: the job that ends, what there is to do.
            if place >= 0 and most >= OFTEN:
                found[each] = round(sorted(us)[place])
        return found


def one_of_a_thousand(at):
    """A tree: of each five hundredth there are two hundred."""
    return (
        leaf("x", "greater_than", at),
        all_of(leaf(f"x{at % 50}", "is_set"), no(leaf("y", "is", str(at)))),
        {"group": "one"},
        leaf("seen", "within_last_days", 1 + at % 3),
        leaf("household:x", "less_than", at),
    )[at * 5 // RULES]


async def upload(store, env, said):
    """What requests do that bring batches, a hundred each."""
    for start in range(0, len(said), 100):
        some = [read_batch(json.dumps(each).encode()) for each in said[start : start + 100]]
        done = await store.ingest.write_batches(env, some)
        await store.derivation.derive_profiles(env, done.dirty)


@pytest.mark.alone
@pytest.mark.slow
async def test_no_script_of_a_thousand_rules_holds_the_server_up_for_long(monkeypatch):
    """Rules come, everybody is walked, changes what hundreds of them name, and time passes."""
    # NOTE: with 0 it would log, and pay for, every command of every script.
    server = backings.embedded("--slowlog-log-slower-than", "300", "--slowlog-max-len", "100000")
    timing = Timing(server)
    monkeypatch.setattr(Connection, "call", timing.counting(Connection.call))
    numbers = range(400)
    try:
        store = await Store.open(server.url)
        env = await define(store, await store.registry.create_application("test"))
        one = await store.groups.create_group(env, NewGroup(name="one", custom_id="one"))
        with timing.of("rules come"):
            for at in range(RULES):
                await rule(store, env, f"rule {at}", one_of_a_thousand(at))
        now_ms = time.time_ns() // 1_000_000
        with timing.of("people come"):
            people = [
                batch(at, address=f"{at // 4} Main", x=str(at), seen=str(now_ms - 1000 * at))
                for at in numbers
            ]
            await upload(store, env, people)
        with timing.of("the job"):
            await catch_up(store)
        profiles = (await mixed_ids(store, env, numbers)).values()
        packed = b"".join(map(env.mixer.unmix, profiles))
        with timing.of("they join"):
            await store.members.add_members(env, one.number, packed)
        with timing.of("they change"):
            await upload(store, env, [batch(at, x=str(-at), y=str(at)) for at in numbers])
            await catch_up(store)
        true_time = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: true_time() + 30 * 3_600_000_000_000)
        with timing.of("time passes"):
            await catch_up(store)
        with timing.of("they leave"):
            await store.members.remove_members(env, one.number, packed)
        with timing.of("rules go"):
            for at in range(0, RULES, 100):
                await rule(store, env, f"rule {at}", None)
            await catch_up(store)
        assert RULES - 10 == len(await exact_groups(store, env, profiles))
        assert [] == (await verify(store)).problems
        await store.close()
    finally:
        server.stop()
    print(timing.large)  # noqa: T201 - `-s` shows the table
    assert {each: us for each, us in timing.large.items() if us > LONGEST_US} == {}


# Building


async def populate(store, application, many=MANY):
    """So many users, of whom each has an x of their own; their profile ids in that order."""
    env = application.production
    for start in range(0, many, 100):
        said = [batch(at + 1, x=str(at)) for at in range(start, min(start + 100, many))]
        await store.ingest.write_batches(
            env, [read_batch(json.dumps(each).encode()) for each in said]
        )
    found = []
    for start in range(0, many, 1000):
        wanted = [str(at + 1) for at in range(start, min(start + 1000, many))]
        found += await store.profiles.resolve_identities(env, "mpid", wanted, create=False)
    return found


async def the_worker(url, until):
    """A worker of its own, which looks again and again."""
    store = await Store.open(url)
    try:
        while not until.is_set():
            await work(store, sweep_seconds=0.2)
            await asyncio.sleep(0)
    finally:
        await store.close()


@one_partition
@pytest.mark.slow
async def test_a_group_is_never_empty_while_it_is_rebuilt_and_lookups_go_on(faces, valkey):
    one, other = faces
    application = await one.api.store.registry.application("demo")
    profiles = await populate(one.api.store, application)
    gid = await create(one, "all", leaf("x", "greater_or_equal", 0))
    assert {"state": "ready", "done": MANY, "total": MANY} == await status(other, gid)
    stays, goes = profiles[MANY // 2 + 7], profiles[7]
    member = f"{GROUPS}/{gid}/members/{ids.text(stays)}/"
    joined = (await one.client.get(member)).body.membership_created_at
    done = asyncio.Event()
    task = asyncio.create_task(the_worker(valkey.url, done))
    seen_sizes, seen_done = [MANY], [0]
    try:
        tree = leaf("x", "greater_or_equal", MANY // 2)
        answer = await one.client.patch(f"{GROUPS}/{gid}/", {"rule_tree": tree})
        assert "building" == answer.plain["status"]["state"]
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            body = (await other.client.get(f"{GROUPS}/{gid}/")).plain
            pairs = [{"profile_id": ids.text(stays), "group_id": gid}]
            checked = await other.client.post(f"{DEMO}/memberships/check/", {"pairs": pairs})
            assert [True] == checked.body.results
            page = (await one.client.get(f"{GROUPS}/{gid}/members/?page_size=1000")).body
            assert 1000 == len(page.results)
            assert page.count >= MANY // 2
            seen_sizes.append(body["profile_count"])
            if body["status"]["state"] == "ready":
                break
            seen_done.append(body["status"]["done"])
            assert MANY == body["status"]["total"]
            assert time.monotonic() < deadline
    finally:
        done.set()
        await task
    assert sorted(seen_sizes, reverse=True) == seen_sizes
    assert MANY // 2 == seen_sizes[-1]
    assert sorted(seen_done) == seen_done
    # Somebody looked while it was on its way.
    assert len(set(seen_sizes)) > 2
    assert len(set(seen_done)) > 2
    assert joined == (await other.client.get(member)).body.membership_created_at
    await other.client.get(f"{GROUPS}/{gid}/members/{ids.text(goes)}/", 404)
    found = await audience(one, "all")
    assert {"size": MANY // 2, "status": "active", "added": MANY, "dropped": MANY // 2} == found


async def work_on(store, env):
    """What a worker does, by steps that are small."""
    store_jobs.PAGE = 20
    await work(store, grace_us=0)


@both
@pytest.mark.parametrize("point", [each for each in faults.POINTS if each.startswith("job.")])
async def test_a_group_whose_worker_was_killed_is_built_to_its_end(
    faces, valkey, monkeypatch, point
):
    one, other = faces
    application = await one.api.store.registry.application("demo")
    profiles = await populate(one.api.store, application, 300)
    gid = await create(one, "some", leaf("x", "less_than", 100), run=False)
    assert {"state": "building", "done": 0, "total": 300} == await status(other, gid)
    died_with = await asyncio.to_thread(killed_at, point, valkey.url, work_on)
    assert -signal.SIGKILL == died_with
    left = await status(other, gid)
    over = point == "job.finished"
    assert ("ready" if over else "building") == left["state"]
    # Whoever is written to meanwhile is where they belong.
    await one.say(299, x="1")
    await one.say(1, x="299")
    monkeypatch.setattr(store_jobs, "LEASE_US", LEASE_US)
    now = store_jobs._now_us()
    monkeypatch.setattr(store_jobs, "_now_us", lambda: now + 60_000_000)
    before = one.api.store.settling.evaluated
    await one.run()
    assert {"state": "ready", "done": 300, "total": 300} == await status(other, gid)
    again = one.api.store.settling.evaluated - before
    assert again <= 300 - left["done"]
    inside = {profiles[at] for at in range(1, 100)} | {profiles[298]}
    pages = await other.client.walk(f"{GROUPS}/{gid}/members/?page_size=50")
    assert inside == {uuid.UUID(row.id).bytes for page in pages for row in page.results}


@both
async def test_a_job_that_is_stopped_again_and_again_goes_on_where_it_was(faces, valkey):
    """Every worker dies after one step, and nobody is looked at twice without need."""
    one, other = faces
    application = await one.api.store.registry.application("demo")
    await populate(one.api.store, application, 100)
    gid = await create(one, "some", leaf("x", "less_than", 50), run=False)
    progress = []
    for _ in range(3):
        died_with = await asyncio.to_thread(killed_at, "job.stepped", valkey.url, overtake)
        assert -signal.SIGKILL == died_with
        progress.append((await status(other, gid))["done"])
    assert sorted(set(progress)) == progress
    await asyncio.to_thread(killed_at, "never", valkey.url, overtake)
    assert "ready" == (await status(other, gid))["state"]
    assert 50 == (await other.client.get(f"{GROUPS}/{gid}/")).body.profile_count


async def overtake(store, env):
    """Take over what a worker had that was killed just now."""
    store_jobs.PAGE, store_jobs.LEASE_US = 20, 1
    await asyncio.sleep(0.01)
    await work(store, grace_us=0)
