"""A state machine drives two processes of the Group Identity face against a naive recomputation.

Attributes are written late, twice, out of order and side by side; users move, are deleted and
erased; definitions, limit and schedule change, and their jobs run at once or later. After every
step facts, instances and what everybody inherits are what `tests/naive.py` makes of all that was
said. BELONG_TEST_EXAMPLES=200 makes long runs of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from contextlib import AsyncExitStack
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from service import aggregation, keys
from service.attributes import as_attribute
from service.store import Store
from service.verify import verify
from service.worker import work
from tests import naive
from tests.client import opened
from tests.face import NOW_MS, Face, batch, inherited, of_profile
from tests.naive import GONE, User, Workspace

EXAMPLES = int(os.environ.get("BELONG_TEST_EXAMPLES", "0"))
FEW = {"fake": 1, "embedded": 4, "redis7": 1, "cluster": 4}
STEPS = {"fake": 8, "embedded": 25, "redis7": 25, "cluster": 25}

NUMBERED = (-5, 3, 8, 2**62)
"""Users who are sent with their mpid, and a customer id."""
NAMED = (101, 102)
"""Users who are sent with a customer id alone; the Profile Groups face may make them."""
DEVELOPERS = (3, 8)
"""Users of the other environment, who have namesakes in this one."""
PEOPLE = [
    *(("production", each) for each in (*NUMBERED, *NAMED)),
    *(("development", each) for each in DEVELOPERS),
]
GROUPS = ("household", "plan")
SOURCES = ("$address", "$Address", "plan")
NAMES = ("$age", "dog", "x")
SAME = object()
"""Where somebody lives who does not say."""
PLACES = [*[SAME] * 5, *["a"] * 6, *["b"] * 2, "", None, ["a"], True, "true", 1, "é {7}:x"]
VALUES = ["1", "2.5", -3, 0.1, "9" * 30, "true", False, None, "", "x", [], ["p", "q"], "[1]"]
REQUESTS = ["one", "two", "three"]

people = st.sampled_from(PEOPLE)
production = st.sampled_from([each for each in PEOPLE if each[0] == "production"])
values = st.sampled_from(VALUES)
processes = st.integers(0, 1)
rarely = st.sampled_from([False, False, False, True])
places = st.fixed_dictionaries(
    {"$address": st.sampled_from(PLACES)},
    optional={"$Address": st.sampled_from(PLACES), "plan": st.sampled_from(PLACES)},
)
others = st.fixed_dictionaries(
    {},
    optional={
        "x": values, "$age": values, "$AGE": values, "dog": values,
        "household:x": values, "other": values,
    },
)  # fmt: skip
written = st.builds(lambda *parts: given_of({**parts[0], **parts[1]}), places, others)
deleted = st.lists(st.sampled_from(["x", "dog", "$age", "plan", "$address"]), max_size=2)
times = st.none() | st.integers(0, 12)
sayings = st.fixed_dictionaries(
    {
        "who": people,
        "attributes": written,
        "deleted": st.just([]) | deleted,
        "at": times,
        "how": st.sampled_from(["both", "mpid", "customer id"]),
        "request": st.none() | st.sampled_from(REQUESTS),
    }
)
shares = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(sorted(naive.AGGREGATIONS))),
    max_size=4,
    unique_by=lambda each: each[0],
)


def given_of(attributes):
    return {name: value for name, value in attributes.items() if value is not SAME}


class Machine(RuleBasedStateMachine):
    """A workspace, the processes that serve it, and the model of it."""

    def __init__(self, backing, partitions):
        super().__init__()
        backing.flush()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.run(self.open(backing.url, partitions))
        self.model = Workspace(limit=2)
        self.people: dict[tuple[str, int], User] = {}
        self.requests: set[tuple[User, str]] = set()
        self.last: list[dict[str, Any]] = []
        self.behind = False
        """Whether a job is waiting, so that nobody knows yet what everybody inherits."""
        self.changed = False
        """Whether anything was defined since the last run."""
        self.known: set[tuple[str, bytes]] = set()

    async def open(self, url, partitions):
        store = await Store.open(url)
        await store.registry.create_application("demo", partitions=partitions)
        await store.registry.update_application(
            "demo", users_per_group=2, definitions_per_workspace=2
        )
        [application] = await store.registry.list_applications()
        await store.close()
        self.envs = application.environments
        self.apis = [await self.stack.enter_async_context(opened(url)) for _ in range(2)]
        self.faces = [Face(api, api.admin, application.workspace_id) for api in self.apis]
        self.store = self.apis[0].store

    def run(self, coroutine):
        return self.runner.run(coroutine)

    def teardown(self):
        try:
            if self.behind:
                self.the_worker_passes(0)
            assert [] == self.run(verify(self.store)).problems
            self.run(self.compare_over_http(PEOPLE))
        finally:
            self.run(self.stack.aclose())
            self.runner.close()

    # Facts

    @initialize(
        kind=st.sampled_from(sorted(naive.AGGREGATIONS)),
        joined=st.lists(st.none() | st.integers(0, 12), min_size=len(PEOPLE), max_size=len(PEOPLE)),
        first=st.booleans(),
    )
    def begin_with_a_household(self, kind, joined, first):
        said = [
            {
                "who": who,
                "attributes": {"$address": "b" if at % 4 == 3 else "a", "x": str(10**place)},
                "deleted": [],
                "at": at,
                "how": "both",
                "request": None,
            }
            for place, (who, at) in enumerate(zip(PEOPLE, joined, strict=True))
            if at is not None
        ]
        if first:
            self.patch(0, ("production", NAMED[0]), {"$address": "a", "x": "10000"})
            self.send(1, [each for each in said if each["who"] != ("production", NAMED[0])])
        self.define(0, "household", "$address", [("x", "sum"), ("dog", kind)], later=False)
        if not first:
            self.send(1, said)

    @rule(process=processes, said=st.lists(sayings, min_size=1, max_size=3))
    def say(self, process, said):
        self.send(process, said)

    @rule(process=processes)
    def say_the_same_again(self, process):
        self.send(process, self.last)

    @rule(process=processes, said=st.lists(sayings, min_size=1, max_size=4))
    def move(self, process, said):
        """Say where somebody lives, and nothing else: so that households fill and empty."""
        moved = [
            each | {"attributes": {"$address": each["attributes"].get("$address", "a")}}
            for each in said
        ]
        self.send(process, [each | {"deleted": [], "request": None} for each in moved])

    @rule(one=st.lists(sayings, max_size=2), other=st.lists(sayings, max_size=2))
    def say_two_things_at_once(self, one, other):
        """Of different users: who of two is faster would decide about one of the same."""
        ours = {said["who"] for said in one}
        self.send(0, one, [said for said in other if said["who"] not in ours])

    def send(self, process, *together):
        """Upload what is said, each list by another process, and note it in the model."""
        before_us = time.time_ns() // 1000
        uploads = [said for said in together if said]
        if not uploads:
            return
        self.run(
            self.gathered(
                self.faces[(process + at) % 2].send(*map(self.batch, said))
                for at, said in enumerate(uploads)
            )
        )
        self.last = uploads[0]
        for said in uploads:
            for each in said:
                self.note(each, before_us)

    async def gathered(self, coroutines):
        await asyncio.gather(*coroutines)

    def batch(self, said):
        environment, number = said["who"]
        known = said["who"] in self.people
        made = batch(
            number, *said["deleted"], at=said["at"], environment=environment, **said["attributes"]
        )
        if number in NAMED or (known and said["how"] == "customer id"):
            del made["mpid"]
        elif known and said["how"] == "mpid":
            del made["user_identities"]
        if said["request"] is not None:
            made["source_request_id"] = said["request"]
        return made

    def note(self, said, before_us):
        environment, _ = said["who"]
        user = self.person(said["who"])
        request = said["request"]
        if (user, request) in self.requests:
            return
        if request is not None:
            self.requests.add((user, request))
        reserved = {f"{group.id}:x" for group in self.model.groups}
        given = {name: value for name, value in said["attributes"].items() if name not in reserved}
        names = {naive.stored_name(name): as_stored(value) for name, value in given.items()}
        gone = [naive.stored_name(name) for name in said["deleted"]]
        for name, value in {**dict.fromkeys(gone, GONE), **names}.items():
            if said["at"] is not None:
                time_us = (NOW_MS + said["at"]) * 1000
            else:
                time_us = self.run(self.time_of(environment, user, name))
                assert before_us // 1000 <= time_us // 1000
            user.write(name, value, time_us)

    def person(self, who):
        """The model's user; the store tells which profile somebody got who is new."""
        environment, number = who
        if who not in self.people:
            user = User(self.run(self.mixed_of(environment, f"user {number}")))
            self.people[who] = user
            self.model.users[environment].append(user)
        user = self.people[who]
        if user.mpid is None:
            user.mpid = self.run(self.mpid_of(environment, user))
            assert number in NAMED or user.mpid == number
        return user

    async def mixed_of(self, environment, name):
        env = self.envs[environment]
        [found] = await self.store.profiles.resolve_identities(
            env, "customer_id", [name], create=False
        )
        assert found is not None, name
        return env.mixer.mix(found)

    async def mpid_of(self, environment, user):
        env = self.envs[environment]
        kept = await self.store.records.get_profile(env, env.mixer.unmix(user.mixed))
        assert kept.mpid is not None
        assert ("mpid", kept.mpid) in kept.identities
        return int(kept.mpid)

    async def time_of(self, environment, user, name):
        """When something was written that says no time of its own."""
        env = self.envs[environment]
        held = (await of_profile(self.store, env, "attributes", user.mixed))[name.encode()]
        return int(held.split(b" ")[0])

    @rule(process=processes, who=production, attributes=written)
    def patch(self, process, who, attributes):
        """The other face replaces all attributes, after everything that was written before."""
        called = {naive.stored_name(name): name for name in attributes if ":" not in name}
        distinct = {key: naive.shown(as_stored(attributes[name])) for key, name in called.items()}
        listed = [{"key": called[key], "value": text} for key, text in distinct.items()]
        body: dict[str, Any] = {"attributes": listed}
        before_us = time.time_ns() // 1000
        client = self.apis[process].admin
        if who in self.people:
            user = self.people[who]
            profile = self.run(self.faces[process].profile(who[1]))
            self.run(client.patch(f"/api/v1/profiles/{profile}/?client_id=demo", body))
        elif who[1] in NAMED:
            body["custom_id"] = f"user {who[1]}"
            self.run(client.post("/api/v1/applications/demo/profile/", body, 201))
            user = User(self.run(self.mixed_of("production", body["custom_id"])))
            self.people[who] = user
            self.model.users["production"].append(user)
        else:
            return
        kept = user.attributes
        for name in set(kept) | set(distinct):
            if name in kept and distinct.get(name) == naive.shown(kept[name]):
                continue
            time_us = self.run(self.time_of("production", user, name))
            assert before_us <= time_us
            user.write(name, distinct.get(name, GONE), time_us)

    @precondition(lambda self: not (self.model.weekly and self.changed))
    @rule(process=processes, who=people, meanwhile=st.none() | sayings)
    def erase(self, process, who, meanwhile):
        if who not in self.people or who[0] != "production":
            return
        user = self.people.pop(who)
        if meanwhile is not None and meanwhile["who"] == who:
            meanwhile = None
        before_us = time.time_ns() // 1000
        calls = [self.faces[process].erase(who[1])]
        if meanwhile is not None:
            calls.append(self.faces[1 - process].send(self.batch(meanwhile)))
        self.run(self.gathered(calls))
        self.model.erase(who[0], user)
        if meanwhile is not None:
            self.note(meanwhile, before_us)

    # Definitions

    @rule(
        process=processes,
        named=st.sampled_from(GROUPS),
        source=st.sampled_from(SOURCES),
        of=shares,
        later=rarely,
    )
    def define(self, process, named, source, of, later):
        face = self.faces[process]
        if any(each.id == named for each in self.model.groups):
            wanted = [{"id": name, "type": kind} for name, kind in of]
            body = {"source_user_attribute": source, "attributes": wanted}
            self.run(face.client.call("PUT", f"{face.groups}/{named}", body, status=200))
        else:
            self.run(face.define(*of, named=named, source=source, run=False))
        self.model.define(named, source, of)
        self.follow(process, later=later)

    @rule(process=processes, named=st.sampled_from(GROUPS), later=rarely)
    def drop(self, process, named, later):
        if any(each.id == named for each in self.model.groups):
            face = self.faces[process]
            self.run(face.client.delete(f"{face.groups}/{named}"))
            self.model.drop(named)
            self.follow(process, later=later)

    @rule(process=processes, limit=st.integers(1, 3), later=rarely)
    def limit(self, process, limit, later):
        if limit != self.model.limit:
            self.model.limit = limit
            self.settings(process, users_per_group=limit)
            self.follow(process, later=later)

    @precondition(lambda self: not self.behind)
    @rule(process=processes, later=rarely)
    def change_the_schedule(self, process, later):
        weekly = not self.model.weekly
        self.settings(process, grouping="weekly" if weekly else "realtime")
        if weekly:
            # What is to be seen stays as it is, until the next run.
            self.model.run()
            self.model.weekly = True
        else:
            self.model.weekly = False
            self.follow(process, later=later)

    def settings(self, process, **changes):
        store = self.apis[process].store
        self.run(store.registry.update_application("demo", **changes))
        self.run(store.definitions.follow_settings("demo"))

    def follow(self, process, *, later):
        """Do the job that a change makes necessary, or leave it for later."""
        self.changed = True
        if not self.model.weekly:
            self.behind = True
            if not later:
                self.the_worker_passes(process)

    @precondition(lambda self: self.model.groups)
    @rule(process=processes, meanwhile=st.lists(sayings, max_size=1))
    def recompute(self, process, meanwhile):
        face = self.faces[process]
        named = self.model.groups[0].id
        answer = self.run(face.client.post(f"{face.groups}/{named}/recompute", None, 202))
        self.behind = True
        self.send(process, meanwhile)
        self.the_worker_passes(1 - process)
        path = f"/platform/workspaces/{face.workspace}/jobs/{answer.plain['id']}"
        assert self.run(face.client.get(path)).plain["state"] == "done"

    @precondition(lambda self: self.behind)
    @rule(process=processes)
    def the_job_runs(self, process):
        self.the_worker_passes(process)

    @rule(process=processes)
    def the_worker_passes(self, process):
        store = self.apis[process].store
        self.run(work(store, grace_us=0, purge=True))
        if self.behind:
            self.run(work(store, grace_us=0))
            self.behind = self.changed = False
            self.model.run()

    # What is to be seen

    @rule(who=people)
    def look_over_http(self, who):
        if not self.behind:
            self.run(self.compare_over_http([who]))

    async def compare_over_http(self, people):
        face = self.faces[1]
        for who in people:
            environment, number = who
            seen = await face.has(number, environment)
            if who not in self.people:
                assert seen is None
                continue
            user = self.people[who]
            assert user.attributes | self.inherited(environment, user) == seen
        for group in self.model.groups:
            for environment in ("production", "development"):
                await self.compare_instances(face, group, environment)

    def inherited(self, environment, person):
        world = self.model.world(environment)
        user = self.seen(world, person)
        return {} if user is None else world.inherited(user)

    def seen(self, world, person):
        """Somebody as they are seen in a world: None where they came after the last run."""
        return next((each for each in world.users if each.mixed == person.mixed), None)

    async def compare_instances(self, face, group, environment):
        wanted = {
            value: household
            for (named, value), household in self.model.world(environment).households().items()
            if named == group.id
        }
        listed = await face.instances(group.id, f"?environment={environment}")
        assert {
            value: (len(each.counted), each.excluded, bool(each.excluded))
            for value, each in wanted.items()
        } == {
            each["value"]: (each["size"], each["excluded_count"], each["overflow"])
            for each in listed
        }
        # Weekly, a definition that was changed since is only in force with the next run.
        for each in listed[: not self.changed]:
            path = f"{face.groups}/{group.id}/instances/{each['id']}?environment={environment}"
            whole = (await face.client.get(path)).plain
            outcomes = wanted[each["value"]].values
            assert {name: outcome.value for name, outcome in outcomes.items()} == whole[
                "attributes"
            ]
            assert {
                name: (
                    outcome.value,
                    outcome.by and outcome.by.mpid,
                    None if outcome.set_at_us is None else naive.when(outcome.set_at_us),
                )
                for name, outcome in outcomes.items()
            } == {
                name: (held["value"], held["from"] and held["from"]["mpid"], held["set_at"])
                for name, held in whole["explain"].items()
            }

    @invariant()
    def facts_are_what_was_said_last(self):
        self.run(self.compare_facts())

    async def compare_facts(self):
        for (environment, _), user in self.people.items():
            env = self.envs[environment]
            held = await of_profile(self.store, env, "attributes", user.mixed)
            kept = {name.decode(): as_attribute(name, raw) for name, raw in held.items()}
            assert {
                name: (each.value, each.time_us, each.since_us)
                for name in user.names
                if (each := user.kept(name)) is not None
            } == {
                name: (json.loads(each.value), each.time_us, each.since_us)
                for name, each in kept.items()
                if each is not None
            }

    @invariant()
    def everything_derived_is_what_follows_from_facts(self):
        if not self.behind:
            self.run(self.compare())

    async def compare(self):
        rules = await self.store.definitions.reload(self.envs["production"])
        numbers = {each.id: each.number for each in rules.definitions}
        assert {each.id for each in self.model.groups} == set(numbers)
        for environment, env in self.envs.items():
            world = self.model.world(environment)
            households = {
                env.mixer.instance_id(env.number, numbers[group_id], value): household
                for (group_id, value), household in world.households().items()
            }
            await self.compare_users(env, world, rules, households)
            await self.compare_stored(env, rules, households)
            for tag in env.partitions:
                for kind in ("dirty", "stale"):
                    key = keys.key(tag, kind)
                    assert 0 == await self.store.connection.command(key, "ZCARD", key)

    async def compare_users(self, env, world, rules, households):
        for (environment, _), person in self.people.items():
            if environment != env.name:
                continue
            user = self.seen(world, person)
            listed = await of_profile(self.store, env, "instances", person.mixed)
            assert ({} if user is None else world.inherited(user)) == inherited(rules, listed)
            # Weekly, what a definition left that is gone goes with the next run.
            assert {iid for iid, each in households.items() if user in each.everybody} == {
                iid
                for iid, held in listed.items()
                if not self.model.weekly or int(held.split(b" ")[0]) in rules.by_number
            }

    async def compare_stored(self, env, rules, households):
        found = await self.store.instances.read(env, list(households))
        definitions = rules.by_number
        for iid, (household, instance) in zip(
            households, zip(households.values(), found, strict=True), strict=True
        ):
            assert instance is not None
            assert (household.value, len(household.everybody)) == (instance.value, instance.total)
            assert [(each.mixed, each.mpid) for each in household.counted] == [
                (each.mixed, each.mpid) for each in instance.counted
            ]
            assert (iid, (), False) == (instance.id, instance.formers, instance.stale)
            outcomes = aggregation.values_of(definitions[instance.number], instance)
            assert {
                name: (each.value, each.by and each.by.mixed, each.set_at_us, each.conflicts)
                for name, each in household.values.items()
            } == {
                name: (
                    json.loads(each.value),
                    each.source and each.source.mixed,
                    each.set_at_us,
                    each.conflicts,
                )
                for name, each in outcomes.items()
                if name in household.values or not self.model.weekly
            }
        self.known |= {(env.name, iid) for iid in households}
        if not self.model.weekly:
            gone = [iid for name, iid in self.known if name == env.name and iid not in households]
            assert [None] * len(gone) == await self.store.instances.read(env, gone)


def as_stored(value):
    """What is kept of a JSON value: texts, tags and lists."""
    if value is None or isinstance(value, str | list):
        return value
    return json.dumps(value)


def test_two_processes_derive_what_a_naive_recomputation_does(request, backing, partitions):
    name = request.node.callspec.params["backing"]
    run_state_machine_as_test(
        lambda: Machine(backing, partitions),  # type: ignore[arg-type]
        settings=settings(
            max_examples=EXAMPLES or FEW[name],
            stateful_step_count=STEPS[name],
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


@given(
    kind=st.sampled_from(sorted(naive.AGGREGATIONS)),
    held=st.lists(
        st.tuples(
            st.none() | st.integers(-3, 3),
            st.none() | st.tuples(st.sampled_from(VALUES), st.integers(1, 3)),
        ),
        min_size=1,
        max_size=6,
    ),
)
@settings(max_examples=EXAMPLES * 100 or 400, deadline=None, database=None)
def test_aggregates_are_what_fractions_say(kind, held):
    members = []
    for at, (mpid, value) in enumerate(held):
        members.append(User(bytes([at]) * 16, mpid))
        if value is not None:
            members[-1].write("x", as_stored(value[0]), value[1])
    expected = naive.aggregate(naive.Share("x", kind), members)
    outcome = aggregation.aggregate(
        kind,
        [
            aggregation.Held(user.mpid, user.mixed, kept.time_us, json.dumps(kept.value).encode())
            for user in members
            if (kept := user.kept("x")) is not None
        ],
        len(members),
    )
    if expected is None or outcome is None:
        assert (expected, outcome) == (None, None)
    else:
        assert (
            expected.value, expected.by and expected.by.mixed,
            expected.set_at_us, expected.conflicts,
        ) == (
            json.loads(outcome.value), outcome.source and outcome.source.mixed,
            outcome.set_at_us, outcome.conflicts,
        )  # fmt: skip
