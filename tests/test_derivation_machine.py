"""A state machine drives two processes of both faces against a naive recomputation.

Attributes are written late, twice, out of order and side by side; users move, are deleted and
erased; they and strangers, of whom no more is known, join groups and leave them; definitions,
limit, schedule and rule trees change, and their jobs run at once or later; time passes. After every
step facts, instances, what everybody inherits and who is in which group are what the naive modules
`tests/naive.py` and `tests/naive_rules.py` make of all that was said. BELONG_TEST_EXAMPLES=200
makes long runs of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
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

from service import aggregation, ids, keys
from service.attributes import as_attribute
from service.rules import Subject, parse_tree
from service.store import Store
from service.verify import verify
from service.worker import work
from tests import naive, naive_rules
from tests.client import DEMO, opened
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
PATH = f"{DEMO}/profile-groups"
GROUPS = ("household", "plan")
SOURCES = ("$address", "$Address", "plan")
NAMES = ("$age", "dog", "x")
SAME = object()
"""Where somebody lives who does not say."""
PLACES = [*[SAME] * 5, *["a"] * 6, *["b"] * 2, "", None, ["a"], True, "true", 1, "é {7}:x"]
STRANGERS = [f"00000000-0000-4000-8000-00000000000{n}" for n in (1, 2)]
"""Profiles of whom nothing is known but the groups that they are in."""
HOUR_MS = 3_600_000
MOMENTS = [str(NOW_MS + hours * HOUR_MS) for hours in (0, -23, -48, 26)]
MOMENTS += [naive.when((NOW_MS + hours * HOUR_MS) * 1000) for hours in (-1, 2, -25)]
"""What people may have been seen at. Time goes by whole hours, so that none of it is just now."""
MOST_HOURS = 20 * 24
"""So far a machine's clock goes: the store forgets deleted attributes after thirty days."""
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
        "household:x": values, "other": values, "seen": st.sampled_from(MOMENTS),
    },
)  # fmt: skip
written = st.builds(lambda *parts: given_of({**parts[0], **parts[1]}), places, others)
deleted = st.lists(st.sampled_from(["x", "dog", "$age", "plan", "$address", "seen"]), max_size=2)
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


STATICS = ("S0", "S1", "S2")
AUDIENCES = ("A", "B", "C")
members = st.sampled_from([*PEOPLE[: len(NUMBERED) + len(NAMED)], *STRANGERS, *STRANGERS])
LOOKED_AT = (
    *("household:x", "household:x", "household:dog", "plan:x"),
    *("x", "x", "dog", "$age", "$AGE", "other", "$address", "nothing"),
)
TESTS = [
    {"condition": "exists"},
    {"condition": "is_not_set"},
    {"condition": "empty"},
    {"condition": "is", "value": "True"},
    {"condition": "equals", "value": True},
    {"condition": "equals", "value": 1},
    {"condition": "is", "value": "2.50", "type": "number"},
    {"condition": "not_equals", "value": "A"},
    {"condition": "is_not", "value": 1},
    {"condition": "contains", "value": "1"},
    {"condition": "does_not_contain", "value": "X"},
    {"condition": "pattern", "value": "?*"},
    {"condition": "pattern", "value": "1*1"},
    {"condition": "greater_than", "value": 1},
    {"condition": "greater_or_equal", "value": "11"},
    {"condition": "less_than", "value": "2.5"},
    {"condition": "less_or_equal", "value": 0.1},
    {"condition": "between", "value": [-3, 100]},
    {"condition": "in_list", "value": ["A", "true"]},
    {"condition": "in_list", "value": [1, 11, 2.5]},
    {"condition": "includes", "value": "P"},
    {"condition": "not_includes", "value": "p"},
    {"condition": "partial_match", "value": ""},
]
timed = st.one_of(
    st.builds(
        lambda days: {"attribute": "seen", "condition": "within_last_days", "value": days},
        st.integers(1, 3),
    ),
    st.sampled_from(MOMENTS).flatmap(
        lambda moment: st.sampled_from(["before", "after", "on"]).map(
            lambda condition: {"attribute": "seen", "condition": condition, "value": moment}
        )
    ),
)
leaf = st.one_of(
    st.builds(
        lambda name, test: {"attribute": name} | test,
        st.sampled_from(LOOKED_AT),
        st.sampled_from(TESTS),
    ),
    st.sampled_from(STATICS).map(lambda name: {"group": name}),
    timed,
)
trees = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.builds(
            lambda operator, children: {"operator": operator, "children": children},
            st.sampled_from(["AND", "OR"]),
            st.lists(inner, min_size=1, max_size=3),
        ),
        inner.map(lambda child: {"operator": "NOT", "children": [child]}),
    ),
    max_leaves=4,
)


@dataclass
class Static:
    """A group whose members are written, by mixed id."""

    id: str
    number: int
    is_active: bool = True
    members: set[bytes] = field(default_factory=set)


@dataclass
class Audience:
    """A dynamic group. While it is built, `before` is who was in it, and what was known of whom."""

    id: str
    number: int
    tree: dict[str, Any]
    is_active: bool = True
    before: dict[bytes, tuple[bool, object]] | None = None


def given_of(attributes):
    return {name: value for name, value in attributes.items() if value is not SAME}


true_time = time.time_ns


def spelled(tree):
    """A tree as a text: 1 and True are equal, and not the same."""
    return json.dumps(tree, sort_keys=True)


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
        self.ending = False
        """Whether the last definition was deleted since."""
        self.known: set[tuple[str, bytes]] = set()
        self.statics: dict[str, Static] = {}
        self.audiences: dict[str, Audience] = {}
        self.numbers: set[int] = set()
        """Of all dynamic groups that there were."""
        self.passed_us = 0
        """When the worker looked last at what time alone turns."""
        self.monday = 0
        self.hours = 0
        time.time_ns = lambda: true_time() + self.hours * HOUR_MS * 1_000_000

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
            if self.behind or self.building:
                assert [] == self.run(verify(self.store)).problems
                self.the_worker_passes(0)
                self.compare_audiences_with_the_model()
            assert [] == self.run(verify(self.store)).problems
            self.run(self.compare_over_http(PEOPLE))
            self.run(self.compare_lookups(self.profiles()))
        finally:
            time.time_ns = true_time
            self.run(self.stack.aclose())
            self.runner.close()

    # Facts

    @initialize(
        kind=st.sampled_from(sorted(naive.AGGREGATIONS)),
        joined=st.lists(st.none() | st.integers(0, 12), min_size=len(PEOPLE), max_size=len(PEOPLE)),
        first=st.booleans(),
        tree=trees,
    )
    def begin_with_a_household(self, kind, joined, first, tree):
        self.create_static(0, "S0")
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
        shared = {"attribute": "household:x", "condition": "greater_than", "value": 10**4}
        self.rule_tree(1, "A", shared, later=not first)
        self.rule_tree(0, "B", tree, later=first)
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
        self.forget_members({user.mixed})
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
            # With the last one all goes at once, on whatever day; the job finds what is there then.
            self.ending = self.ending or not self.model.groups
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
            self.monday = monday_before(time.time_ns() // 1000)
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
        now_us = time.time_ns() // 1000
        self.run(work(store, grace_us=0, purge=True))
        if self.model.weekly and self.model.groups and self.monday < monday_before(now_us):
            self.monday = monday_before(now_us)
            self.behind = True
        if self.behind or self.ending:
            self.run(work(store, grace_us=0))
            self.behind = self.changed = self.ending = False
            self.model.run()
        self.passed_us = now_us
        for audience in self.audiences.values():
            audience.before = None

    # Groups

    @property
    def building(self):
        return [each for each in self.audiences.values() if each.before is not None]

    def profiles(self):
        """Everybody of production who may be a member: mixed id -> profile id."""
        env = self.envs["production"]
        known = [user.mixed for (where, _), user in self.people.items() if where == env.name]
        known += [env.mixer.mix(uuid.UUID(each).bytes) for each in STRANGERS]
        return {mixed: ids.text(env.mixer.unmix(mixed)) for mixed in known}

    def chosen(self, who):
        """The mixed ids of members that are named, as far as they are known."""
        env = self.envs["production"]
        found = [
            env.mixer.mix(uuid.UUID(each).bytes) if isinstance(each, str)
            else self.people[each].mixed if each in self.people else None
            for each in who
        ]  # fmt: skip
        return [each for each in dict.fromkeys(found) if each is not None]

    def forget_members(self, gone):
        for static in self.statics.values():
            static.members -= gone

    @rule(process=processes, named=st.sampled_from(STATICS))
    def create_static(self, process, named):
        if named not in self.statics:
            body = {"name": named, "custom_id": named}
            answer = self.run(self.apis[process].admin.post(f"{PATH}/", body, 201))
            self.statics[named] = Static(answer.body.id, self.run(self.number_of(named)))

    async def number_of(self, named):
        env = self.envs["production"]
        group = await self.store.groups.get_group(env, named, include_inactive=True)
        return group.number

    @rule(process=processes, named=st.sampled_from(STATICS[1:]))
    def delete_static(self, process, named):
        """One that a rule names stays; of any other the memberships go, and perhaps all facts."""
        if named not in self.statics:
            return
        static = self.statics[named]
        naming = [
            each.id
            for each in self.audiences.values()
            if static.id in naive_rules.groups_of(each.tree)
        ]
        path = f"{PATH}/{named}/?include_inactive=true"
        answer = self.run(self.apis[process].admin.call("DELETE", path))
        assert (409 if naming else 204) == answer.status
        if naming:
            assert any(each in answer.body.detail for each in naming)
        else:
            del self.statics[named]
            self.the_worker_passes(process)

    @rule(process=processes, named=st.sampled_from(STATICS))
    def switch_static(self, process, named):
        if named in self.statics:
            self.switch(process, self.statics[named])

    @rule(process=processes, named=st.sampled_from(AUDIENCES))
    def switch_audience(self, process, named):
        if named in self.audiences:
            self.switch(process, self.audiences[named])

    def switch(self, process, group):
        group.is_active = not group.is_active
        path = f"{PATH}/{group.id}/?include_inactive=true"
        self.run(self.apis[process].admin.patch(path, {"is_active": group.is_active}))

    @rule(
        process=processes,
        named=st.sampled_from(STATICS),
        who=st.lists(members, min_size=1, max_size=4),
        how=st.sampled_from(["add", "add", "remove", "replace", "bulk", "bulk remove", "one"]),
        meanwhile=st.none() | sayings,
    )
    def join_and_leave(self, process, named, who, how, meanwhile):
        """Members are written while something is said, perhaps of them, to the other process."""
        static = self.statics.get(named)
        mixed = self.chosen(who)
        if static is None or not static.is_active or not mixed:
            return
        if meanwhile is not None and meanwhile["who"] not in self.people:
            meanwhile = None
        before_us = time.time_ns() // 1000
        calls = [self.write_members(self.apis[process].admin, static, mixed, how)]
        if meanwhile is not None:
            calls.append(self.faces[1 - process].send(self.batch(meanwhile)))
        self.run(self.gathered(calls))
        if how == "replace":
            static.members = set(mixed)
        elif "remove" in how:
            static.members -= set(mixed)
        elif how == "one":
            static.members.discard(mixed[0])
        else:
            static.members |= set(mixed)
        if meanwhile is not None:
            self.note(meanwhile, before_us)

    async def write_members(self, client, static, mixed, how):
        env = self.envs["production"]
        profiles = [ids.text(env.mixer.unmix(each)) for each in mixed]
        path, body = f"{PATH}/{static.id}/members/", {"profile_ids": profiles}
        if how == "add":
            await client.post(path, body)
        elif how == "remove":
            await client.delete(path, body)
        elif how == "replace":
            await client.call("PUT", path, body, status=200)
        elif how == "one":
            await client.delete(f"{path}{profiles[0]}/")
        else:
            operation = "remove" if "remove" in how else "add"
            lines = [
                json.dumps({"op": operation, "group_id": static.id, "profile_id": each})
                for each in profiles
            ]
            answer = await client.post(f"{DEMO}/memberships/bulk/", "\n".join(lines))
            assert [0] == [each["failed"] for each in answer.body]

    @rule(process=processes, who=st.sampled_from(STRANGERS))
    def erase_a_stranger(self, process, who):
        [mixed] = self.chosen([who])
        known = any(mixed in each.members for each in self.statics.values())
        path = f"/api/v1/profiles/{who}/?client_id=demo"
        answer = self.run(self.apis[process].admin.call("DELETE", path))
        assert (200 if known else 404) == answer.status
        self.forget_members({mixed})

    # Dynamic groups

    @rule(process=processes, named=st.sampled_from(AUDIENCES), tree=trees, later=rarely)
    def rule_tree(self, process, named, tree, later):
        """Create a dynamic group, or give it another tree; the job runs at once or later."""
        wanted = self.resolved(tree, as_shown=True)
        if wanted is None:
            return
        given = self.resolved(tree, as_shown=False)
        client = self.apis[process].admin
        audience = self.audiences.get(named)
        if audience is None:
            body = {
                "name": named, "custom_id": named, "membership_type": "dynamic",
                "rule_tree": given,
            }  # fmt: skip
            answer = self.run(client.post(f"{PATH}/", body, 201))
            number = self.run(self.number_of(named))
            audience = self.audiences[named] = Audience(answer.body.id, number, wanted)
            self.numbers.add(number)
            there = {}
        else:
            there = self.run(self.stored())
            path = f"{PATH}/{audience.id}/?include_inactive=true"
            answer = self.run(client.patch(path, {"rule_tree": given}))
            if spelled(audience.tree) == spelled(wanted):
                # It has that tree already: nothing is to be built.
                assert answer.plain["status"]["state"] in self.states(audience)
                return
            audience.tree = wanted
        assert (wanted, "building") == (answer.plain["rule_tree"], answer.plain["status"]["state"])
        audience.before = {
            mixed: (audience.number in there.get(mixed, ()), self.looked_at(audience, mixed))
            for mixed in self.profiles()
        }
        if not later:
            self.the_worker_passes(process)

    def states(self, audience):
        """What may be said of an audience: all are built anew after what any rule may follow."""
        if audience.before is not None:
            return {"building"}
        return {"ready", "building"} if self.waits() else {"ready"}

    def waits(self):
        """Whether definitions have yet to be followed, by a job or on Monday."""
        return self.behind or (self.model.weekly and self.changed)

    def resolved(self, tree, *, as_shown):
        """A tree with ids of groups, or custom ids; None where it names one that is not there."""
        if "operator" in tree:
            children = [self.resolved(each, as_shown=as_shown) for each in tree["children"]]
            return None if None in children else tree | {"children": children}
        if "group" in tree:
            if tree["group"] not in self.statics:
                return None
            return {"group": self.statics[tree["group"]].id} if as_shown else tree
        return tree

    @rule(process=processes, named=st.sampled_from(AUDIENCES))
    def delete_audience(self, process, named):
        if named in self.audiences:
            path = f"{PATH}/{self.audiences.pop(named).id}/?include_inactive=true"
            self.run(self.apis[process].admin.delete(path))

    @rule(
        process=processes,
        hours=st.sampled_from([1, 2, 23, 24, 25, 49]),
        said=st.lists(sayings, max_size=2),
    )
    def time_passes(self, process, hours, said):
        """Things are said before the worker notices what time alone has turned."""
        if self.hours + hours > MOST_HOURS:
            return
        self.hours += hours
        self.send(process, said)
        self.the_worker_passes(process)

    # Who is in which group

    @invariant()
    def everybody_is_in_the_groups_that_follow(self):
        self.compare_audiences_with_the_model()

    def compare_audiences_with_the_model(self):
        self.run(self.compare_audiences())

    def subject(self, mixed):
        """What is to be seen of a profile; None: nothing is known about it."""
        groups = {each.id for each in self.statics.values() if mixed in each.members}
        person = next((each for each in self.people.values() if each.mixed == mixed), None)
        if person is None:
            return naive_rules.Subject({}, groups) if groups else None
        inherited = self.inherited("production", person)
        return naive_rules.subject_of(person, inherited, self.model.groups, groups)

    def looked_at(self, audience, mixed):
        """What a tree may look at of a profile."""
        subject = self.subject(mixed)
        if subject is None:
            return None
        names = naive_rules.names_of(audience.tree)
        held = {name: repr(subject.attributes.get(name, "missing")) for name in names}
        return held, subject.groups & naive_rules.groups_of(audience.tree)

    def expected(self, audience, mixed, now_us):
        """What an answer may be: one thing, but for a tree that was not yet applied to all."""
        subject = self.subject(mixed)
        if subject is None:
            return {False}
        # NOTE: midnight may have come since the worker looked.
        moments = (now_us, self.passed_us or now_us)
        found = {naive_rules.holds(audience.tree, subject, each) for each in moments}
        if audience.before is not None:
            was, looked_at = audience.before.get(mixed, (False, None))
            if looked_at == self.looked_at(audience, mixed):
                found.add(was)
        return found

    async def stored(self):
        """What is written at every profile: the numbers of its groups."""
        env = self.envs["production"]
        found = {}
        for mixed in self.profiles():
            held = await of_profile(self.store, env, "m", mixed)
            derived = int(held.pop(b"d", 0))
            found[mixed] = {int(number) for number in held}
            assert len(found[mixed] & self.numbers) == derived
        return found

    async def compare_audiences(self):
        env = self.envs["production"]
        now_us = time.time_ns() // 1000
        stored = await self.stored()
        static = {each.number: each.members for each in self.statics.values()}
        for mixed, numbers in stored.items():
            written = {number for number, held in static.items() if mixed in held}
            assert written == numbers - self.numbers
        for audience in self.audiences.values():
            # While a definition changes nobody knows what is inherited.
            waits = self.waits()
            if waits and any(":" in each for each in naive_rules.names_of(audience.tree)):
                continue
            for mixed, numbers in stored.items():
                held = audience.number in numbers
                said = audience, self.profiles()[mixed], self.subject(mixed)
                assert held in self.expected(audience, mixed, now_us), said
        for number in (*static, *(each.number for each in self.audiences.values())):
            counts = 0
            for tag in env.partitions:
                key = keys.key(tag, "count")
                counts += int(await self.store.connection.command(key, "HGET", key, number) or 0)
            assert sum(number in numbers for numbers in stored.values()) == counts

    @rule(who=st.lists(members, min_size=1, max_size=3))
    def look_groups_up_over_http(self, who):
        mixed = self.chosen(who)
        profiles = self.profiles()
        self.run(self.compare_lookups({each: profiles[each] for each in mixed}))

    async def compare_lookups(self, profiles):
        """All lookups say what is stored, of active groups, whatever follows from facts."""
        client = self.apis[1].admin
        stored = await self.stored()
        groups: list[Any] = [*self.statics.values(), *self.audiences.values()]
        active = [each for each in groups if each.is_active]
        pairs = [
            {"profile_id": profile, "group_id": group.id}
            for profile in profiles.values()
            for group in groups
        ]
        answer = await client.post(f"{DEMO}/memberships/check/", {"pairs": pairs})
        assert [
            group.number in stored[mixed] if group.is_active else None
            for mixed in profiles
            for group in groups
        ] == answer.body.results
        for mixed, profile in profiles.items():
            listed = await client.walk(f"{DEMO}/profiles/{profile}/profile-groups/?page_size=2")
            assert {each.id for each in active if each.number in stored[mixed]} == {
                row.group_id for page in listed for row in page.results
            }
        for group in groups:
            path = f"{PATH}/{group.id}/members/?page_size=2"
            if not group.is_active:
                await client.get(path, 404)
                continue
            pages = await client.walk(path)
            everybody = {
                profile
                for mixed, profile in self.profiles().items()
                if group.number in stored[mixed]
            }
            rows = [row.id for page in pages for row in page.results]
            assert (everybody, len(everybody)) == (set(rows), len(rows))
            shown = (await client.get(f"{PATH}/{group.id}/")).plain
            assert len(everybody) == shown["profile_count"]
            if isinstance(group, Audience):
                assert group.tree == shown["rule_tree"]
                assert shown["status"]["state"] in self.states(group)

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
            own = naive_rules.visible(user.attributes, self.model.groups)
            assert own | self.inherited(environment, user) == seen
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
                for kind in ("dirty", "stale", "unsettled"):
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


def monday_before(at_us):
    """When the week began, in us."""
    day = at_us // naive_rules.DAY_US
    return (day - (day + 3) % 7) * naive_rules.DAY_US


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


DAYS = ["1970-01-01", "1970-01-02", "1970-01-02T00:00:00Z", "1970-01-02T12:30:00.25+02:00"]
DAYS += ["86400000", "1970-01-03T00:00", "1970-01-02T23:59:59.999999Z", "1970-02-30"]
TEXTS = ["", "a", "A*", "ab?", "Straße", "STRASSE", "ß", "İ", "true", "FALSE", "12", "-0", "012.50"]
TEXTS += ["12.5", "1e3", "9" * 30 + "." + "9" * 15, "9" * 31, "+1", " 1", "٣", *DAYS]
NUMERALS = [12, -0.0, 12.5, "12.50", "9" * 30 + "." + "9" * 15, 0, "-0"]
texts = st.sampled_from(TEXTS)
dates = st.sampled_from([*DAYS[:-1], 86_400_000])
OPERANDS: dict[str, dict[str, Any]] = {
    "string": {
        **dict.fromkeys(["equals", "exact_match", "not_equals", "contains", "not_contains"], texts),
        "pattern": st.text("aAb*?ßs1", max_size=6),
        "in_list": st.lists(texts, min_size=1, max_size=3),
    },
    "number": {
        **dict.fromkeys(
            ["is", "does_not_match", "greater_than", "greater_than_or_equal", "less_than"],
            st.sampled_from(NUMERALS),
        ),
        "less_than_or_equal": st.sampled_from(NUMERALS),
        "between": st.sampled_from([[0, 12], [12, "12.5"], ["-1", 10**30 - 1]]),
        "in_list": st.lists(st.sampled_from(NUMERALS), min_size=1, max_size=3),
    },
    "boolean": {"is": st.sampled_from([True, False, "True"])},
    "date": {
        **dict.fromkeys(["before", "after", "on", "equals"], dates),
        "between_dates": st.sampled_from(
            [["1970-01-01", "1970-01-02"], ["1970-01-02", 86_400_000], ["0", "1970-01-03T00:00"]]
        ),
        "within_last_days": st.sampled_from([1, 2, "3"]),
    },
    "list": dict.fromkeys(["includes", "does_not_include", "partial_match"], texts),
}
EVERY_TEST = [(kind, name) for kind, named in OPERANDS.items() for name in named]


def typed(kind, name):
    return OPERANDS[kind][name].map(lambda value: {"condition": name, "type": kind, "value": value})


untimed_tests = st.sampled_from([{"condition": each} for each in ("is_set", "not_exists", "empty")])
attributes = st.dictionaries(
    st.sampled_from(["a", "$age", "household:x"]),
    st.none() | texts | st.lists(texts, max_size=3) | st.sampled_from([12, 12.5, True, False]),
)
deep_trees = st.recursive(
    st.one_of(
        st.builds(
            lambda name, test: {"attribute": name} | test,
            st.sampled_from(["a", "a", "$Age", "household:x"]),
            st.sampled_from(EVERY_TEST).flatmap(lambda each: typed(*each)) | untimed_tests,
        ),
        st.sampled_from(["one", "two"]).map(lambda name: {"group": name}),
    ),
    lambda inner: st.one_of(
        st.builds(
            lambda operator, children: {"operator": operator, "children": children},
            st.sampled_from(["AND", "OR"]),
            st.lists(inner, min_size=1, max_size=4),
        ),
        inner.map(lambda child: {"operator": "NOT", "children": [child]}),
    ),
    max_leaves=8,
).filter(lambda tree: naive_rules.depth(tree) <= 8)


@given(
    tree=deep_trees,
    held=attributes,
    inside=st.sets(st.sampled_from(["one", "two"])),
    now_us=st.sampled_from([at * naive_rules.DAY_US + off for at in range(5) for off in (0, 1)]),
)
@settings(max_examples=EXAMPLES * 100 or 600, deadline=None, database=None)
def test_rules_hold_where_a_plain_reading_says_so(tree, held, inside, now_us):
    numbers = {"one": 1, "two": 2}
    given_groups = {name: (name, number) for name, number in numbers.items()}
    rule = parse_tree(tree).bound(9, 1, given_groups)
    stored = {name: json.dumps(value).encode() for name, value in held.items()}
    found = rule.evaluate(Subject(stored, {numbers[each] for each in inside}), now_us)
    seen = naive_rules.Subject({name: as_stored(value) for name, value in held.items()}, inside)
    assert naive_rules.holds(tree, seen, now_us) == found.holds
    turn_us = naive_rules.first_turn(tree, seen, now_us)
    if turn_us is not None:
        assert found.turns_at_us is not None
        assert now_us < found.turns_at_us <= turn_us
    leaves = rule.explain(Subject(stored, {numbers[each] for each in inside}), now_us)
    assert [naive_rules.holds(each, seen, now_us) for each in naive_rules.leaves(tree)] == [
        each.result for each in leaves
    ]
