"""A state machine drives the store against dicts, forward answers against reverse ones.

BELONG_TEST_EXAMPLES=200 makes long runs of it (the default takes seconds on each backing).
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from math import inf

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import UNSET

from service.attributes import value_of
from service.errors import Conflict, NotFound
from service.groups import Attribute, GroupChanges, GroupQuery, NewGroup
from service.ids import head, split
from service.store import Store
from service.store_lookups import EVERY
from service.store_profiles import Erased
from service.store_records import NewProfile, ProfileChanges
from service.verify import verify
from service.worker import work
from tests.model import Model, ModelGroup, stroll

EXAMPLES = int(os.environ.get("BELONG_TEST_EXAMPLES", "0"))
FEW = {"fake": 8, "embedded": 45, "redis7": 45, "cluster": 40}
STEPS = 30
LIMIT = 4
"""Groups that a profile may be in: few, so that it is reached."""

POOL = [uuid.UUID(int=n, version=4).bytes for n in range(500)]
TEXTS = ["", "a", "b:c", "=", "{x}", "a=b", "\x00", "ünï 🙂", "1:a"]

indexes = st.integers(0, 9)
batches = st.lists(
    st.tuples(st.integers(0, 499), st.sampled_from([1, 2, 3, 60, 200])), min_size=1, max_size=3
).map(lambda parts: [each for at, length in parts for each in POOL[at : at + length]])
values = st.sampled_from([f"person {n}" for n in range(12)])
kinds = st.sampled_from(["customer_id", "email", "other"])
nicknames = st.none() | st.sampled_from(["", "-", "=N", "\x00"])
profile_attributes = st.dictionaries(
    st.sampled_from(["a", "b", "{x}", "="]),
    st.sampled_from([*TEXTS[:6], "[1]", "true"]),
    max_size=3,
)
attributes = st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from(TEXTS)), max_size=3).map(
    tuple
)
names = st.sampled_from(["red", "green", "{7}:groups"])
custom_ids = st.none() | st.sampled_from(["x", "y:z", "ü/ñ", str(uuid.UUID(int=7))])
steps = st.lists(
    st.tuples(st.sampled_from([1, 2, 7, 100, 251, 1000]), st.booleans()), min_size=1, max_size=6
)
queries = st.fixed_dictionaries(
    {},
    optional={
        "attributes": st.lists(
            st.tuples(st.sampled_from(TEXTS), st.none() | st.sampled_from(TEXTS)), max_size=2
        ).map(tuple),
        "name": names,
        "custom_id": custom_ids,
        "membership_type": st.just("static"),
        "descending": st.booleans(),
        "include_inactive": st.booleans(),
    },
)


def as_values(attributes):
    return {name: value_of(text) for name, text in attributes.items()}


class Machine(RuleBasedStateMachine):
    """One application in an empty store, and the model of it."""

    def __init__(self, backing, partitions):
        super().__init__()
        backing.flush()
        self.runner = asyncio.Runner()
        self.store = self.run(Store.open(backing.url))
        self.run(self.store.registry.create_application("machine", partitions=partitions))
        application = self.run(
            self.store.registry.update_application("machine", groups_per_profile=LIMIT)
        )
        self.env = application.production
        self.model = Model(LIMIT)
        self.now = 1_000_000
        # Before the test, and not so long ago that deletions from then were forgotten.
        self.began_us = time.time_ns() // 1000 - 60_000_000
        self.groups: set[int] = set()
        self.profiles: set[bytes] = set()

    def run(self, coroutine):
        return self.runner.run(coroutine)

    def teardown(self):
        try:
            assert [] == self.run(verify(self.store)).problems
            self.compare(set(self.model.groups), set(POOL[::17]))
        finally:
            self.run(self.store.close())
            self.runner.close()

    def both(self, done, expected):
        """Do something to the store and to the model: the same result, or the same refusal."""
        try:
            wanted = expected()
        except (Conflict, NotFound) as ex:
            with pytest.raises(type(ex)):
                self.run(done())
            return None
        held = self.run(done())
        assert wanted is None or wanted == held
        return held

    def place(self, profile):
        mixed = self.env.mixer.mix(profile)
        return head(mixed) % len(self.env.partitions), mixed

    def gid(self, index, *, custom=False):
        """A group's id or custom id; now and then one of no group."""
        known = list(self.model.groups.values())
        if not known or index == 9:
            return str(uuid.UUID(int=9))
        group = known[index % len(known)]
        return group.custom_id or group.id if custom else group.id

    def number(self, gid):
        """The number of an existing group. It is that of the model."""
        number = self.run(self.store.groups.number_of(self.env, gid))
        assert self.model.find(gid) == number
        return number

    @initialize()
    def begin_with_groups(self):
        for custom_id in ("x", None):
            self.create("red", (("a", "b:c"),), custom_id, active=True)

    @rule(name=names, attributes=attributes, custom_id=custom_ids, active=st.booleans())
    def create(self, name, attributes, custom_id, active):
        new = NewGroup(
            name=name,
            is_active=active,
            custom_id=custom_id,
            attributes=tuple(Attribute(*each) for each in attributes),
        )
        group = self.both(
            lambda: self.store.groups.create_group(self.env, new),
            lambda: self.model.check_free(custom_id),
        )
        if group is not None:
            made = ModelGroup(group.id, name, active, custom_id, attributes)
            self.model.create_group(group.number, made)
            self.groups.add(group.number)

    @rule(
        index=indexes,
        custom=st.booleans(),
        changes=st.fixed_dictionaries(
            {},
            optional={
                "name": names,
                "is_active": st.booleans(),
                "attributes": attributes,
                "custom_id": custom_ids,
            },
        ),
        include_inactive=st.booleans(),
    )
    def update(self, index, custom, changes, include_inactive):
        gid = self.gid(index, custom=custom)
        asked = dict(changes)
        if "attributes" in asked:
            asked["attributes"] = tuple(Attribute(*each) for each in asked["attributes"])
        held = self.both(
            lambda: self.store.groups.update_group(
                self.env, gid, GroupChanges(**asked), include_inactive=include_inactive
            ),
            lambda: self.model.update_group(gid, changes, include_inactive=include_inactive),
        )
        if held is not None:
            self.groups.add(held.number)

    @rule(index=indexes, custom=st.booleans(), include_inactive=st.booleans())
    def delete(self, index, custom, include_inactive):
        gid = self.gid(index, custom=custom)
        self.both(
            lambda: self.store.groups.delete_group(
                self.env, gid, include_inactive=include_inactive
            ),
            lambda: self.model.delete_group(gid, include_inactive=include_inactive),
        )

    @precondition(lambda self: self.model.groups)
    @rule(index=st.integers(0, 8), custom=st.booleans(), batch=batches)
    def add(self, index, custom, batch):
        number = self.number(self.gid(index, custom=custom))
        self.now += 1
        now = self.now
        self.both(
            lambda: self.store.members.add_members(self.env, number, b"".join(batch), now_us=now),
            lambda: self.model.add_members(number, batch, now),
        )
        self.touch(number, batch)

    @precondition(lambda self: self.model.groups)
    @rule(index=st.integers(0, 8), custom=st.booleans(), batch=batches)
    def remove(self, index, custom, batch):
        number = self.number(self.gid(index, custom=custom))
        self.both(
            lambda: self.store.members.remove_members(self.env, number, b"".join(batch)),
            lambda: self.model.remove_members(number, batch),
        )
        self.touch(number, batch)

    @precondition(lambda self: self.model.groups)
    @rule(index=st.integers(0, 8), batch=batches)
    def replace(self, index, batch):
        number = self.number(self.gid(index))
        self.now += 1
        now = self.now
        before = set(self.model.members[number])

        async def replaced():
            outcome, removed = await self.store.members.replace_members(
                self.env, number, b"".join(batch), now_us=now
            )
            left = split(removed)
            assert len(set(left)) == len(left)
            return outcome, set(left)

        self.both(replaced, lambda: self.model.replace_members(number, batch, now))
        self.touch(number, [*batch, *before])

    @precondition(lambda self: self.model.groups)
    @rule(index=st.integers(0, 8), wanted=st.lists(values, min_size=1, max_size=4))
    def add_by_custom_id(self, index, wanted):
        self.resolve("customer_id", wanted, create=True)
        batch = [self.model.identities["customer_id", each] for each in wanted]
        number = self.number(self.gid(index))
        self.now += 1
        now = self.now
        self.both(
            lambda: self.store.members.add_members(self.env, number, b"".join(batch), now_us=now),
            lambda: self.model.add_members(number, batch, now),
        )
        self.touch(number, batch)

    @rule(kind=kinds, wanted=st.lists(values, max_size=4), create=st.booleans())
    def resolve(self, kind, wanted, create):
        found = self.run(
            self.store.profiles.resolve_identities(self.env, kind, wanted, create=create)
        )
        for value, profile in zip(wanted, found, strict=True):
            assert profile is not None or not create
            self.model.resolved(kind, value, profile)

    @rule(index=indexes, kind=kinds, value=values)
    def add_identity(self, index, kind, value):
        profile = self.profile(index)
        self.both(
            lambda: self.store.profiles.add_identity(self.env, profile, kind, value),
            lambda: self.model.add_identity(profile, kind, value),
        )
        self.profiles.add(profile)

    @rule(custom_id=st.none() | values, nickname=nicknames, attributes=profile_attributes)
    def create_profile(self, custom_id, nickname, attributes):
        new = NewProfile(nickname=nickname, custom_id=custom_id, attributes=as_values(attributes))
        made = self.both(
            lambda: self.store.records.create_profile(self.env, new),
            lambda: self.model.check_custom_id(custom_id),
        )
        if made is not None:
            self.model.create_profile(made.id, custom_id, nickname, attributes)
            self.same_profile(made)

    @rule(
        index=indexes,
        nickname=nicknames,
        attributes=st.none() | profile_attributes,
        at=st.none() | st.integers(0, 3),
    )
    def update_profile(self, index, nickname, attributes, at):
        profile = self.profile(index)
        at_us = None if at is None else self.began_us + at
        before = self.run(self.seq(profile))
        changes = ProfileChanges(
            nickname=nickname, attributes=UNSET if attributes is None else as_values(attributes)
        )
        changed = []
        held = self.both(
            lambda: self.store.records.update_profile(self.env, profile, changes, at_us=at_us),
            lambda: changed.append(
                self.model.update_profile(
                    profile, nickname, attributes, inf if at_us is None else at_us
                )
            ),
        )
        if held is not None:
            self.same_profile(held)
            assert (held.seq > before) == changed[0]

    async def seq(self, profile):
        try:
            return (await self.store.records.get_profile(self.env, profile)).seq
        except NotFound:
            return 0

    @rule(index=indexes)
    def read_profile(self, index):
        profile = self.profile(index)
        held = self.both(
            lambda: self.store.records.get_profile(self.env, profile),
            lambda: self.model.find_profile(profile) and None,
        )
        if held is not None:
            self.same_profile(held)
            assert list(held.identities) == sorted(
                key for key, owner in self.model.identities.items() if owner == profile
            )

    def same_profile(self, held):
        kept = self.model.find_profile(held.id)
        assert (kept.nickname, self.model.records.get(held.id), kept.live) == (
            held.nickname,
            held.custom_id,
            {each.name: each.text for each in held.attributes},
        )
        assert (held.created_at_us is not None) == (held.id in self.model.records)

    @rule(index=indexes)
    def erase(self, index):
        profile = self.profile(index)
        self.both(
            lambda: self.store.profiles.erase_profile(self.env, profile),
            lambda: Erased(*self.model.erase_profile(profile)),
        )
        self.profiles.add(profile)
        self.groups |= set(self.model.groups)

    @rule()
    def the_worker_passes(self):
        self.run(work(self.store, grace_us=0, purge=True))
        self.model.sweep()

    @rule(index=indexes, steps=steps)
    def stroll_through_members(self, index, steps):
        gid = self.gid(index)
        if gid in {group.id for group in self.model.groups.values()}:
            number = self.number(gid)
            if self.model.groups[number].is_active:
                self.run(self.stroll_members(number, steps))

    async def stroll_members(self, number, steps):
        held = self.model.members[number]
        await stroll(
            lambda cut, size: self.store.members.list_members(self.env, number, cut, size),
            [
                (each, self.model.records.get(each), held[each])
                for each in sorted(held, key=self.place)
            ],
            steps,
            lambda row: (row.id, row.custom_id, row.joined_at_us),
        )

    @rule(steps=steps, query=queries)
    def stroll_through_groups(self, steps, query):
        asked = GroupQuery(**query)
        self.run(
            stroll(
                lambda cut, size: self.store.groups.list_groups(self.env, asked, cut, size),
                self.model.list_groups(asked),
                steps,
                lambda group: group.number,
            )
        )

    @rule(index=indexes, steps=steps, query=queries)
    def stroll_through_groups_of_a_profile(self, index, steps, query):
        self.run(self.stroll_groups_of(self.profile(index), steps, GroupQuery(**query)))

    async def stroll_groups_of(self, profile, steps, query=EVERY):
        await stroll(
            lambda cut, size: self.store.lookups.list_profile_groups(
                self.env, profile, cut, size, query=query
            ),
            [
                (number, self.model.members[number][profile], len(self.model.members[number]))
                for number in self.model.groups_of(profile, query)
            ],
            steps,
            lambda row: (row.group.number, row.joined_at_us, row.members),
        )

    def profile(self, index):
        """One of the pool, or one that the store made for an identity."""
        made = list(self.model.records)
        return made[index % len(made)] if made and index % 2 else POOL[index * 40]

    def touch(self, number, batch):
        self.groups.add(number)
        self.profiles |= set(batch[:: max(1, len(batch) // 3)])

    @invariant()
    def what_was_touched_is_the_same_in_both(self):
        self.compare(self.groups & set(self.model.groups), self.profiles)
        self.groups, self.profiles = set(), set()

    def compare(self, groups, profiles):
        numbers = sorted(self.model.members)
        counts = self.run(self.store.members.count_members(self.env, numbers))
        assert [len(self.model.members[number]) for number in numbers] == counts
        for number in groups:
            if self.model.groups[number].is_active:
                self.run(self.stroll_members(number, [(1000, False)]))
        for profile in profiles:
            self.run(self.stroll_groups_of(profile, [(1000, False)]))
        pairs = [(number, profile) for number in numbers for profile in profiles]
        letters = self.run(
            self.store.members.check_members(
                self.env, [number for number, _ in pairs], b"".join(each for _, each in pairs)
            )
        )
        assert b"".join(self.model.check_member(*pair) for pair in pairs) == letters


def test_the_store_answers_as_dicts_do(request, backing, partitions):
    name = request.node.callspec.params["backing"]
    run_state_machine_as_test(
        lambda: Machine(backing, partitions),  # type: ignore[arg-type]
        settings=settings(
            max_examples=EXAMPLES or FEW[name],
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
