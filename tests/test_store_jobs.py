"""Jobs in the store: queued once, run by one worker at a time, taken over where one died."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from service import ids, keys, store_jobs
from service.errors import NotFound, ScriptFailed, Unavailable
from service.faults import POINTS
from service.groups import Group, GroupChanges, NewGroup
from service.rules import parse_tree
from service.store import Store
from service.store_definitions import DefinitionChanges
from service.store_jobs import (
    SaveStep,
    decode_job,
    encode_job,
    monday_before,
    new_job,
    new_save,
)
from service.store_records import ProfileChanges
from service.worker import work
from tests.test_store_definitions import ask, create, in_force

both_topologies = pytest.mark.parametrize(
    ("backing", "partitions"), [("embedded", 1), ("cluster", 8)], indirect=True
)
A_DAY_US = 86_400_000_000


class Deriving:
    """Notes who is to be derived, and does what a test wants on the way."""

    def __init__(self, meanwhile=None):
        self.seen = []
        self.pages = 0
        self.interrupted = set()
        self._meanwhile = meanwhile

    async def derive_profiles(self, env, mixed, *, walking=False):
        assert walking
        self.pages += 1
        if self._meanwhile is not None:
            await self._meanwhile(env, mixed)
        self.seen += [(env.name, each) for each in mixed]

    async def settle_stale(self, env, before_us, *, budget_seconds=None):  # noqa: ARG002
        return 0


@pytest.fixture
def small_pages(monkeypatch):
    """Three profiles a step."""
    monkeypatch.setattr(store_jobs, "PAGE", 3)


async def populate(store, application, count=20):
    """Make profiles in both environments; give them as a walk of everybody should see them."""
    made = set()
    for name, env in application.environments.items():
        names = [ids.text(ids.new()) for _ in range(count if name == "production" else 4)]
        found = await store.profiles.resolve_identities(env, "customer_id", names, create=True)
        made |= {(name, env.mixer.mix(profile)) for profile in found}
    return made


async def the_job(store, application):
    [job] = await store.jobs.list_jobs(application)
    return job


def exactly(everybody, deriving):
    return (everybody, len(everybody)) == (set(deriving.seen), len(deriving.seen))


def test_a_job_is_stored_under_the_letter_of_its_state():
    job = new_job("asked", 5)
    for state, letter in zip(("queued", "running", "done", "failed"), b"qrdf", strict=True):
        changed = replace(job, state=state, bound=b"(\x00\xff")
        stored = encode_job(changed)
        assert (letter, changed) == (stored[0], decode_job(stored))
    with pytest.raises(ValueError, match="is queued"):
        decode_job(b"r" + encode_job(job)[1:])


@pytest.mark.parametrize(
    ("moment", "monday"),
    [
        ("2025-11-17T00:00:00", "2025-11-17T00:00:00"),
        ("2025-11-16T23:59:59", "2025-11-10T00:00:00"),
        ("2025-11-23T23:59:59", "2025-11-17T00:00:00"),
        ("2024-12-31T12:00:00", "2024-12-30T00:00:00"),
        ("1970-01-05T00:00:00", "1970-01-05T00:00:00"),
    ],
)
def test_weeks_begin_on_monday_at_midnight_utc(moment, monday):
    def microseconds(text):
        return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000

    assert microseconds(monday) == monday_before(microseconds(moment))


async def test_without_jobs_there_is_nothing_to_do(store, application):
    assert 0 == await store.jobs.work(application, Deriving())
    assert [] == await store.jobs.list_jobs(application)
    with pytest.raises(NotFound):
        await store.jobs.get_job(application, "nobody")


async def test_a_job_walks_everybody_of_both_environments_once(store, application, small_pages):
    everybody = await populate(store, application)
    queued = await store.jobs.queue_job(application)
    assert ("queued", 0, 0) == (queued.state, queued.done, queued.total)
    assert queued == await store.jobs.get_job(application, queued.id)
    deriving = Deriving()
    assert 1 == await store.jobs.work(application, deriving)
    assert exactly(everybody, deriving)
    job = await store.jobs.get_job(application, queued.id)
    assert ("done", 24, 24, None) == (job.state, job.done, job.total, job.error)
    assert 0 == await store.jobs.work(application, deriving)


async def test_a_job_is_done_when_members_of_large_instances_know_too(store, application):
    # Deriving leaves instances of more than 100 members to the worker.
    updated = await store.registry.update_application(application.client_id, users_per_group=150)
    env = updated.production
    names = [ids.text(ids.new()) for _ in range(120)]
    profiles = await store.profiles.resolve_identities(env, "customer_id", names, create=True)
    for id16 in profiles:
        changes = ProfileChanges(attributes={"$address": b'"1 Main St"', "has_dog": b'"true"'})
        await store.records.update_profile(env, id16, changes)
    await create(store, updated)
    assert 1 == await store.jobs.work(updated, store.derivation)
    assert "done" == (await the_job(store, updated)).state
    found = [(await store.records.get_profile(env, id16)).inherited for id16 in profiles]
    assert [{"household:has_dog": "true"}] * 120 == found


async def test_a_step_is_smaller_where_more_follows_from_each_profile(
    store, application, small_pages
):
    # A page of 200 took longer than a lease with 100 definitions: two workers took it in turns.
    updated = await store.registry.update_application("test", definitions_per_workspace=3)
    for name in ("one", "two", "three"):
        await create(store, updated, id=name)
    await store.jobs.work(updated, Deriving())
    everybody = await populate(store, updated, count=6)
    await store.jobs.queue_job(updated)
    deriving = Deriving()
    assert 1 == await store.jobs.work(updated, deriving)
    assert exactly(everybody, deriving)
    assert len(everybody) <= deriving.pages


async def test_the_last_definition_of_a_weekly_application_takes_all_with_it_at_once(
    store, application
):
    # There is no Monday's job where there is no definition: instances stayed for good.
    weekly = await store.registry.update_application("test", grouping="weekly")
    await create(store, weekly)
    env = weekly.production
    [id16] = await store.profiles.resolve_identities(env, "customer_id", ["john"], create=True)
    changes = ProfileChanges(attributes={"$address": b'"1 Main St"'})
    await store.records.update_profile(env, id16, changes)
    await store.jobs.queue_job(weekly)
    await store.jobs.work(weekly, store.derivation)
    await store.definitions.delete_definition(weekly, "household")
    assert 1 == await store.jobs.work(weekly, store.derivation)
    mixed = env.mixer.mix(id16)
    listed = keys.of_profile(env.home(mixed), "instances", mixed)
    assert 0 == await store.connection.command(listed, "EXISTS", listed)


async def test_a_job_of_nobody_is_done_at_once(store, application):
    await store.jobs.queue_job(application)
    assert 1 == await store.jobs.work(application, Deriving())
    job = await the_job(store, application)
    assert ("done", 0, 0) == (job.state, job.done, job.total)


async def test_whoever_asks_while_a_job_waits_gets_that_one(store, second, application):
    jobs = await asyncio.gather(
        *(each.jobs.queue_job(application) for each in (store, second) for _ in range(5))
    )
    assert 1 == len({job.id for job in jobs})
    assert jobs[0].id == (await the_job(store, application)).id


async def until_done(store, application, deriving, most=200):
    """Work in the smallest parts until nothing is interrupted; how many calls that took."""
    for calls in range(1, most):
        store.jobs.interrupted.clear()
        await store.jobs.work(application, deriving, budget_seconds=0)
        if not store.jobs.interrupted:
            return calls
    raise AssertionError("it never ends")


async def test_whoever_asks_while_a_job_runs_gets_another_that_waits(store, second, application):
    first = await store.jobs.queue_job(application)
    await store.jobs.work(application, Deriving(), budget_seconds=0)
    one, two = [await each.jobs.queue_job(application) for each in (store, second)]
    assert (one, True) == (two, one.id != first.id)
    assert ["queued", "running"] == [job.state for job in await store.jobs.list_jobs(application)]


async def test_a_job_that_waits_beside_one_that_runs_is_run_after_it(
    store, application, small_pages
):
    everybody = await populate(store, application)
    await store.jobs.queue_job(application)
    deriving = Deriving()
    await store.jobs.work(application, deriving, budget_seconds=0)
    await store.jobs.queue_job(application)
    assert 2 == await store.jobs.work(application, deriving)
    half = len(deriving.seen) // 2
    assert [everybody, everybody] == [set(deriving.seen[:half]), set(deriving.seen[half:])]
    assert ["done", "done"] == [job.state for job in await store.jobs.list_jobs(application)]


async def test_a_job_goes_on_where_its_budget_ended(store, application, small_pages):
    everybody = await populate(store, application)
    await store.jobs.queue_job(application)
    deriving = Deriving()
    assert await until_done(store, application, deriving) > len(everybody) // 3
    assert exactly(everybody, deriving)
    assert "done" == (await the_job(store, application)).state


async def test_a_job_tells_how_far_it_is(store, second, application, small_pages):
    await populate(store, application)
    await store.jobs.queue_job(application)
    said = []

    async def meanwhile(env, mixed):
        said.append(await the_job(second, application))

    await store.jobs.work(application, Deriving(meanwhile))
    done = [job.done for job in said]
    assert (sorted(done), {24}) == (done, {job.total for job in said})
    assert done[0] == 0 < done[-1] < 24


async def test_who_comes_while_it_walks_does_not_end_above_the_total(
    store, application, small_pages
):
    await populate(store, application)
    await store.jobs.queue_job(application)

    async def meanwhile(env, mixed):
        if len(deriving.seen) < 12:
            await populate(store, application, 3)

    deriving = Deriving(meanwhile)
    await store.jobs.work(application, deriving)
    job = await the_job(store, application)
    assert ("done", len(deriving.seen), len(deriving.seen)) == (job.state, job.done, job.total)


async def test_a_worker_leaves_a_job_to_the_one_that_has_it(store, second, application):
    await populate(store, application)
    await store.jobs.queue_job(application)

    async def meanwhile(env, mixed):
        other = Deriving()
        assert 0 == await second.jobs.work(application, other)
        assert [] == other.seen

    assert 1 == await store.jobs.work(application, Deriving(meanwhile))


async def test_two_workers_at_once_derive_everybody_and_end_one_job(
    store, second, application, small_pages
):
    everybody = await populate(store, application)
    await store.jobs.queue_job(application)
    deriving = Deriving()
    ended = await asyncio.gather(
        *(each.jobs.work(application, deriving) for each in (store, second))
    )
    assert (1, everybody) == (sum(ended), set(deriving.seen))
    assert "done" == (await the_job(store, application)).state


async def test_two_works_of_one_process_at_once_end_one_job(store, application, small_pages):
    everybody = await populate(store, application)
    await store.jobs.queue_job(application)
    deriving = Deriving()
    ended = await asyncio.gather(*(store.jobs.work(application, deriving) for _ in range(2)))
    assert (1, everybody) == (sum(ended), set(deriving.seen))


async def test_a_job_whose_worker_is_silent_is_taken_over_where_it_was(
    store, second, application, small_pages, monkeypatch
):
    everybody = await populate(store, application)
    await store.jobs.queue_job(application)
    one, two = Deriving(), Deriving()
    for _ in range(3):
        await store.jobs.work(application, one, budget_seconds=0)
    assert 0 == await second.jobs.work(application, two)
    now = store_jobs._now_us()
    monkeypatch.setattr(store_jobs, "_now_us", lambda: now + store_jobs.LEASE_US + 1_000_000)
    assert 1 == await second.jobs.work(application, two)
    assert (len(everybody), everybody) == (
        len(one.seen) + len(two.seen),
        set(one.seen) | set(two.seen),
    )
    assert one.seen


async def test_a_worker_that_was_held_up_stops_when_another_took_over(
    store, second, application, small_pages, monkeypatch
):
    everybody = await populate(store, application)
    await store.jobs.queue_job(application)
    two = Deriving()
    now = store_jobs._now_us()

    async def meanwhile(env, mixed):
        monkeypatch.setattr(store_jobs, "_now_us", lambda: now + 2 * store_jobs.LEASE_US)
        assert 1 == await second.jobs.work(application, two)

    assert 0 == await store.jobs.work(application, Deriving(meanwhile))
    assert exactly(everybody, two)
    assert "done" == (await the_job(store, application)).state


async def test_a_store_that_is_gone_leaves_the_job_where_it_was(store, application, small_pages):
    everybody = await populate(store, application)
    await store.jobs.queue_job(application)
    gone = [True]

    async def meanwhile(env, mixed):
        if len(deriving.seen) >= 6 and gone:
            gone.clear()
            raise Unavailable("gone")

    deriving = Deriving(meanwhile)
    with pytest.raises(Unavailable):
        await store.jobs.work(application, deriving)
    assert "running" == (await the_job(store, application)).state
    assert 1 == await store.jobs.work(application, deriving)
    assert exactly(everybody, deriving)


async def test_a_profile_that_cannot_be_derived_fails_the_job_but_keeps_nobody_else(
    store, application, small_pages
):
    everybody = await populate(store, application)
    poison = {each for _, each in sorted(everybody)[:2]}
    await store.jobs.queue_job(application)

    async def meanwhile(env, mixed):
        if poison & set(mixed):
            raise ScriptFailed("poison")

    deriving = Deriving(meanwhile)
    assert 1 == await store.jobs.work(application, deriving)
    assert everybody == set(deriving.seen) | {each for each in everybody if each[1] in poison}
    job = await the_job(store, application)
    assert ("failed", 24, 24) == (job.state, job.done, job.total)
    assert "2 profiles could not be derived, the first one because of: poison" == job.error


async def test_where_nobody_can_be_derived_the_job_is_given_up(store, application, monkeypatch):
    monkeypatch.setattr(store_jobs, "FAILURES", 5)
    await populate(store, application)
    await store.jobs.queue_job(application)

    async def meanwhile(env, mixed):
        raise RuntimeError("broken")

    deriving = Deriving(meanwhile)
    assert 1 == await store.jobs.work(application, deriving)
    job = await the_job(store, application)
    assert ("failed", True) == (job.state, "RuntimeError('broken')" in job.error)
    assert deriving.pages < 20


async def test_jobs_that_ended_long_ago_are_forgotten(store, application, monkeypatch):
    monkeypatch.setattr(store_jobs, "KEPT", 3)
    made = []
    for _ in range(5):
        made.append((await store.jobs.queue_job(application)).id)
        await store.jobs.work(application, Deriving())
    assert made[:1:-1] == [job.id for job in await store.jobs.list_jobs(application)]
    with pytest.raises(NotFound):
        await store.jobs.get_job(application, made[0])


async def test_rules_are_in_force_before_anybody_is_derived(
    store, second, application, small_pages
):
    """Its process died when the rules were written, and before any partition was told."""
    await populate(store, application)
    await create(store, application)
    for env in application.environments.values():
        for tag in env.partitions:
            for kind in ("rules", "watch"):
                await ask(store, keys.key(tag, kind), "DEL")

    async def meanwhile(env, mixed):
        await in_force(store, application)

    deriving = Deriving(meanwhile)
    assert 1 == await second.jobs.work(application, deriving)
    assert deriving.seen


async def test_rules_that_change_after_a_job_was_taken_are_for_the_next_one(
    store, second, application, small_pages
):
    await populate(store, application)
    await create(store, application)
    jobs: list[str | None] = []

    async def meanwhile(env, mixed):
        if not jobs:
            jobs.append(await second.definitions.delete_definition(application, "household"))

    assert 2 == await store.jobs.work(application, Deriving(meanwhile))
    latest, first = await store.jobs.list_jobs(application)
    assert (latest.id, True) == (jobs[0], first.id != jobs[0])


async def test_rules_that_change_before_a_job_is_taken_are_installed_before_it_walks(
    store, second, application, monkeypatch
):
    """The worker had installed the rules, and then took the job: it walked with those."""
    await populate(store, application)
    await create(store, application)
    replaced = store.jobs._replaced

    async def late(application, raw, job, forgotten=()):
        if job.state == "running" and not job.begun:
            install = second.definitions._installed

            async def died(*args):
                raise Unavailable("gone")

            monkeypatch.setattr(second.definitions, "_installed", died)
            with pytest.raises(Unavailable):
                await second.definitions.delete_definition(application, "household")
            monkeypatch.setattr(second.definitions, "_installed", install)
            monkeypatch.setattr(store.jobs, "_replaced", replaced)
        return await replaced(application, raw, job, forgotten)

    monkeypatch.setattr(store.jobs, "_replaced", late)

    async def meanwhile(env, mixed):
        assert () == (await in_force(store, application)).definitions

    deriving = Deriving(meanwhile)
    assert 1 == await store.jobs.work(application, deriving)
    assert deriving.seen


async def test_what_a_dead_process_wrote_is_installed_without_a_job_too(
    store, second, application, monkeypatch
):
    await store.registry.update_application("test", grouping="weekly")
    application = await store.registry.application("test")

    async def died(*args):
        raise Unavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(store.definitions, "_installed", died)
        with pytest.raises(Unavailable):
            await create(store, application)
    assert 0 == await second.jobs.work(application, Deriving())
    assert ["household"] == [each.id for each in (await in_force(store, application)).definitions]


async def test_settings_that_nobody_had_follow_are_followed(store, second, application):
    await create(store, application)
    await second.jobs.work(application, Deriving())
    application = await store.registry.update_application("test", users_per_group=3)
    deriving = Deriving()
    assert 1 == await second.jobs.work(application, deriving)
    assert 3 == (await in_force(store, application)).limit


async def test_a_worker_whose_copy_of_the_settings_is_old_changes_nothing(
    store, second, application
):
    await create(store, application)
    await store.registry.update_application("test", users_per_group=3)
    await store.definitions.follow_settings("test")
    await second.jobs.work(application, Deriving())
    assert 3 == (await in_force(store, application)).limit


@pytest.fixture
async def weekly(store, application):
    """The application, in weekly mode, with a definition and no job."""
    changed = await store.registry.update_application("test", grouping="weekly")
    await create(store, changed)
    assert 0 == await store.jobs.work(changed, Deriving())
    return changed


async def last_run(store, application, weeks_ago):
    """Have the last weekly run so many weeks ago; the Monday of it."""
    monday = monday_before(store_jobs._now_us()) - 7 * weeks_ago * A_DAY_US
    await ask(store, keys.key(application.production.directory, "weekly"), "SET", monday)
    return monday


async def test_every_monday_a_weekly_application_has_one_job(store, weekly, monkeypatch):
    monday = await last_run(store, weekly, 4)
    for day, ended in ((0, 0), (6, 0), (7, 1), (7, 0), (13, 0), (14, 1), (20, 0)):
        monkeypatch.setattr(store_jobs, "_now_us", lambda at=monday + day * A_DAY_US: at)
        assert (day, ended) == (day, await store.jobs.work(weekly, Deriving()))
    assert ["weekly", "weekly"] == [job.reason for job in await store.jobs.list_jobs(weekly)]


async def test_mondays_that_were_missed_are_made_up_for_once(store, second, weekly):
    await last_run(store, weekly, 4)
    ended = await asyncio.gather(*(each.jobs.work(weekly, Deriving()) for each in (store, second)))
    assert 1 == sum(ended)
    assert 0 == await store.jobs.work(weekly, Deriving())


async def test_where_a_failover_lost_when_the_last_run_was_there_is_one(store, weekly):
    key = keys.key(weekly.production.directory, "weekly")
    await ask(store, key, "DEL")
    assert [1, 0] == [await store.jobs.work(weekly, Deriving()) for _ in range(2)]


async def test_a_weekly_application_without_definitions_has_no_jobs(store, weekly):
    await store.definitions.delete_definition(weekly, "household")
    assert 1 == await store.jobs.work(weekly, Deriving())
    await last_run(store, weekly, 4)
    assert 0 == await store.jobs.work(weekly, Deriving())


async def test_a_real_time_application_knows_no_mondays(store, application, monkeypatch):
    await create(store, application)
    assert 1 == await store.jobs.work(application, Deriving())
    later = store_jobs._now_us() + 30 * A_DAY_US
    monkeypatch.setattr(store_jobs, "_now_us", lambda: later)
    assert 0 == await store.jobs.work(application, Deriving())


async def test_whoever_asks_in_a_weekly_application_need_not_wait(store, weekly):
    asked = await store.jobs.queue_job(weekly)
    assert 1 == await store.jobs.work(weekly, Deriving())
    assert "done" == (await store.jobs.get_job(weekly, asked.id)).state


async def test_who_becomes_weekly_has_missed_nothing(store, application):
    await create(store, application)
    await store.jobs.work(application, Deriving())
    changed = await store.registry.update_application("test", grouping="weekly")
    assert 0 == await store.jobs.work(changed, Deriving())
    back = await store.registry.update_application("test", grouping="realtime")
    assert 1 == await store.jobs.work(back, Deriving())


@both_topologies
@pytest.mark.parametrize("point", ["job.taken", "job.stepped", "job.finished"])
async def test_a_job_whose_worker_was_killed_ends(
    backing, store, application, small_pages, monkeypatch, point
):
    everybody = await populate(store, application)
    await create(store, application)
    died_with = await asyncio.to_thread(in_a_process, backing.url, point)
    assert -signal.SIGKILL == died_with
    deriving = Deriving()
    over = point == "job.finished"
    if not over:
        assert 0 == await store.jobs.work(application, deriving)
        assert "running" == (await the_job(store, application)).state
    now = store_jobs._now_us()
    monkeypatch.setattr(store_jobs, "_now_us", lambda: now + 2 * store_jobs.LEASE_US)
    assert int(not over) == await store.jobs.work(application, deriving)
    job = await the_job(store, application)
    assert ("done", 24, 24) == (job.state, job.done, job.total)
    # A step is at most a page of three: nobody is left out, nor looked at again without need.
    least, most = {"job.taken": (24, 24), "job.stepped": (21, 24), "job.finished": (0, 0)}[point]
    assert least <= len(deriving.seen) == len(set(deriving.seen)) <= most
    assert set(deriving.seen) <= everybody


def test_every_fault_point_of_a_job_has_a_case():
    assert {"job.taken", "job.stepped", "job.finished"} == {
        point for point in POINTS if point.startswith("job.")
    }


def in_a_process(url, point):
    """Work in a process that is to die at a point; its return code."""
    return subprocess.run(
        [sys.executable, "-c", f"import tests.test_store_jobs as t; t.child({url!r})"],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"BELONG_FAULT": point},
        check=False,
        timeout=60,
    ).returncode


def child(url):
    async def run():
        store = await Store.open(url)
        [application] = await store.registry.list_applications()
        store.jobs.saving = Saving()
        await store.jobs.work(application, Deriving())

    store_jobs.PAGE = 3
    asyncio.run(run())


# What a job does is decided when it is taken


class Settling:
    """Notes whose rules are to be evaluated, and does what a test wants on the way."""

    def __init__(self, meanwhile=None):
        self.seen = []
        self.asked = []
        self._meanwhile = meanwhile

    async def walk(self, env, mixed, groups):
        if self._meanwhile is not None:
            await self._meanwhile(env, mixed, groups)
        self.asked.append(groups)
        self.seen += [(env.name, each) for each in mixed]


class Nothing(Deriving):
    """Must not be asked to derive anything."""

    async def derive_profiles(self, *_args, **_options):
        raise AssertionError("derived")

    async def settle_stale(self, *_args, **_options):
        raise AssertionError("told")


async def dynamic(store, application, name="dogs", attribute="has_dog"):
    tree = parse_tree({"attribute": attribute, "condition": "exists"})
    new = NewGroup(name=name, membership_type="dynamic", rule_tree=tree)
    return await store.groups.create_group(application.production, new)


async def another_tree(store, application, group, attribute="has_cat"):
    tree = parse_tree({"attribute": attribute, "condition": "exists"})
    changes = GroupChanges(rule_tree=tree)
    return await store.groups.update_group(application.production, group.id, changes)


async def built(store, application):
    found = await store.jobs.read_built(application)
    return {int(name): version for name, version in found.items() if name.isdigit()}


def versions(*groups):
    return {each.number: each.rules_version for each in groups}


async def test_a_new_dynamic_group_alone_is_looked_at_in_production_alone(
    store, application, small_pages, monkeypatch
):
    everybody = {each for each in await populate(store, application) if each[0] == "production"}
    made = await dynamic(store, application)
    settling = Settling()
    monkeypatch.setattr(store.jobs, "_settling", settling)
    assert 1 == await store.jobs.work(application, Nothing())
    assert exactly(everybody, settling)
    assert {(made.number,)} == set(settling.asked)
    job = await the_job(store, application)
    assert ("done", 20, 20, False) == (job.state, job.done, job.total, job.whole)
    assert versions(made) == await built(store, application)
    other = await dynamic(store, application, name="other")
    settling.asked.clear()
    assert 1 == await store.jobs.work(application, Nothing())
    assert {(other.number,)} == set(settling.asked)
    assert versions(made, other) == await built(store, application)


async def test_a_job_over_everything_builds_all_dynamic_groups(
    store, application, small_pages, monkeypatch
):
    everybody = await populate(store, application)
    one, two = await dynamic(store, application), await dynamic(store, application, name="two")
    await store.jobs.queue_job(application)
    settling, deriving = Settling(), Deriving()
    monkeypatch.setattr(store.jobs, "_settling", settling)
    assert 1 == await store.jobs.work(application, deriving)
    assert exactly(everybody, deriving)
    assert exactly(everybody, settling)
    assert {None} == set(settling.asked)
    assert versions(one, two) == await built(store, application)
    assert (await the_job(store, application)).whole


@pytest.mark.parametrize("why", ["create", "update", "delete", "settings", "asked"])
async def test_what_concerns_everybody_is_done_by_a_job_over_everything(store, application, why):
    if why != "create":
        await create(store, application)
    await dynamic(store, application)
    await store.jobs.work(application, Deriving())
    if why == "create":
        await create(store, application)
    elif why == "update":
        changes = DefinitionChanges(attributes=())
        await store.definitions.update_definition(application, "household", changes, "me")
    elif why == "delete":
        await store.definitions.delete_definition(application, "household")
    elif why == "settings":
        await store.registry.update_application("test", users_per_group=3)
        await store.definitions.follow_settings("test")
    else:
        await store.jobs.queue_job(application)
    application = await store.registry.application("test")
    assert 1 == await store.jobs.work(application, Deriving())
    assert (await store.jobs.list_jobs(application))[0].whole
    made = await dynamic(store, application, name="after")
    assert 1 == await store.jobs.work(application, Nothing())
    assert not (await store.jobs.list_jobs(application))[0].whole
    assert made.number in await built(store, application)


async def test_a_job_that_waits_for_a_group_is_over_everything_when_somebody_asks_for_that(
    store, application
):
    await dynamic(store, application)
    waits = await the_job(store, application)
    assert waits.id == (await store.jobs.queue_job(application)).id
    assert 1 == await store.jobs.work(application, Deriving())
    assert (await the_job(store, application)).whole


async def test_a_group_that_comes_just_before_a_waiting_job_is_taken_is_built_by_it(
    store, second, application, monkeypatch
):
    """It found the job waiting, and so queued none; what that does was decided already."""
    await populate(store, application)
    one = await dynamic(store, application)
    replaced = store.jobs._replaced
    made: list[Group] = []

    async def late(application, raw, job, forgotten=()):
        if job.state == "running" and not made:
            made.append(await dynamic(second, application, name="late"))
        return await replaced(application, raw, job, forgotten)

    monkeypatch.setattr(store.jobs, "_replaced", late)
    assert 1 == await store.jobs.work(application, Nothing())
    assert versions(one, *made) == await built(store, application)
    assert 0 == await store.jobs.work(application, Nothing())


async def test_a_tree_that_changes_while_a_job_walks_is_built_by_the_next(
    store, second, application, small_pages, monkeypatch
):
    await populate(store, application)
    one, two = await dynamic(store, application), await dynamic(store, application, name="two")
    changed: list[Group] = []

    async def meanwhile(env, mixed, groups):
        if not changed:
            changed.append(await another_tree(second, application, one))

    settling = Settling(meanwhile)
    monkeypatch.setattr(store.jobs, "_settling", settling)
    seen = []
    ended = store.jobs._ended

    async def noted(*args):
        await ended(*args)
        seen.append(await built(store, application))

    monkeypatch.setattr(store.jobs, "_ended", noted)
    assert 2 == await store.jobs.work(application, Nothing())
    assert [versions(two), versions(*changed, two)] == seen
    assert {(one.number, two.number), (one.number,)} == set(settling.asked)


async def test_a_group_that_is_deleted_while_a_job_ends_is_not_built(
    store, second, application, monkeypatch
):
    one, two = await dynamic(store, application), await dynamic(store, application, name="two")
    call = store.connection.call
    deleted: list[Group] = []

    async def late(script, keys_, args, **options):
        if script.name == "end_job" and not deleted:
            deleted.append(one)
            await second.groups.delete_group(application.production, one.id)
        return await call(script, keys_, args, **options)

    monkeypatch.setattr(store.connection, "call", late)
    assert 1 == await store.jobs.work(application, Nothing())
    assert versions(two) == await built(store, application)
    assert "done" == (await the_job(store, application)).state


async def test_more_groups_than_one_script_notes_are_noted_in_parts(
    store, second, application, monkeypatch
):
    monkeypatch.setattr(store_jobs, "BUILT", 2)
    made = [await dynamic(store, application, name=str(n)) for n in range(5)]
    call = store.connection.call
    noted = []

    async def late(script, keys_, args, **options):
        if script.name == "note_built":
            noted.append(len(args))
            if len(noted) == 2:
                await second.groups.delete_group(application.production, made.pop(0).id)
        return await call(script, keys_, args, **options)

    monkeypatch.setattr(store.connection, "call", late)
    assert 1 == await store.jobs.work(application, Nothing())
    assert versions(*made) == await built(store, application)
    assert [8] * 3 == noted


async def test_a_job_whose_groups_are_all_gone_is_done_at_once(store, application):
    await populate(store, application)
    made = await dynamic(store, application)
    await store.groups.delete_group(application.production, made.id)
    assert 1 == await store.jobs.work(application, Nothing())
    assert "done" == (await the_job(store, application)).state
    assert {} == await built(store, application)


async def test_a_walk_for_groups_goes_on_where_its_worker_died(
    store, second, application, small_pages, monkeypatch
):
    everybody = {each for each in await populate(store, application) if each[0] == "production"}
    made = await dynamic(store, application)
    settling = Settling()
    for each in (store, second):
        monkeypatch.setattr(each.jobs, "_settling", settling)
    for _ in range(3):
        await store.jobs.work(application, Nothing(), budget_seconds=0)
    later = await dynamic(store, application, name="later")
    now = store_jobs._now_us()
    monkeypatch.setattr(store_jobs, "_now_us", lambda: now + 2 * store_jobs.LEASE_US)
    assert 2 == await second.jobs.work(application, Nothing())
    assert (everybody, 2 * len(everybody)) == (set(settling.seen), len(settling.seen))
    assert versions(made, later) == await built(store, application)
    assert {(made.number,), (later.number,)} == set(settling.asked)


async def test_a_step_is_smaller_where_many_rules_are_to_be_evaluated(
    store, application, monkeypatch
):
    monkeypatch.setattr(store_jobs, "PAGE", 6)
    monkeypatch.setattr(store_jobs, "RULES", 1)
    await populate(store, application)
    for n in range(3):
        await dynamic(store, application, name=str(n))
    pages = []

    async def meanwhile(env, mixed, groups):
        pages.append(len(mixed))

    monkeypatch.setattr(store.jobs, "_settling", Settling(meanwhile))
    assert 1 == await store.jobs.work(application, Nothing())
    assert (2, 20) == (max(pages), sum(pages))


async def test_a_group_is_not_built_where_somebody_was_left_out_and_is_tried_again_in_an_hour(
    store, application, small_pages, monkeypatch
):
    everybody = await populate(store, application)
    poison = {min(each for name, each in everybody if name == "production")}
    made = await dynamic(store, application)

    async def meanwhile(env, mixed, groups):
        if poison & set(mixed):
            raise ScriptFailed("poison")

    settling = Settling(meanwhile)
    monkeypatch.setattr(store.jobs, "_settling", settling)
    assert 1 == await store.jobs.work(application, Nothing())
    job = await the_job(store, application)
    assert ("failed", "One profile could not be derived because of: poison") == (
        job.state,
        job.error,
    )
    assert {} == await built(store, application)
    monkeypatch.setattr(store_jobs, "LOOK_SECONDS", 0.0)
    assert 0 == await store.jobs.work(application, Nothing())
    poison.clear()
    now = store_jobs._now_us()
    monkeypatch.setattr(store_jobs, "_now_us", lambda: now + store_jobs.RETRY_US + 1)
    assert 1 == await store.jobs.work(application, Nothing())
    assert versions(made) == await built(store, application)
    assert 0 == await store.jobs.work(application, Nothing())


async def test_whoever_asks_need_not_wait_an_hour(store, application, monkeypatch):
    await populate(store, application)
    made = await dynamic(store, application)
    poison = [True]

    async def meanwhile(env, mixed, groups):
        if poison:
            raise ScriptFailed("poison")

    monkeypatch.setattr(store.jobs, "_settling", Settling(meanwhile))
    assert 1 == await store.jobs.work(application, Nothing())
    poison.clear()
    await store.jobs.queue_job(application)
    assert 1 == await store.jobs.work(application, Deriving())
    assert versions(made) == await built(store, application)


async def test_a_worker_does_not_look_every_second_for_what_is_not_built(
    store, application, monkeypatch
):
    made = await dynamic(store, application)
    await store.jobs.work(application, Nothing())
    await ask(store, keys.key(application.production.directory, "built"), "HDEL", str(made.number))
    key = keys.key(application.production.directory, "jobs")
    asked = []
    read = store.jobs.read_built

    async def noted(application):
        asked.append(1)
        return await read(application)

    monkeypatch.setattr(store.jobs, "read_built", noted)
    assert [0] * 3 == [await store.jobs.work(application, Nothing()) for _ in range(3)]
    assert [] == asked
    await ask(store, key, "DEL")
    monkeypatch.setattr(store_jobs, "LOOK_SECONDS", 0.0)
    assert 1 == await store.jobs.work(application, Nothing())
    assert versions(made) == await built(store, application)


async def test_rules_that_always_change_leave_the_end_of_a_job_to_the_next_look(
    store, second, application, monkeypatch
):
    made = await dynamic(store, application)
    call = store.connection.call

    async def late(script, keys_, args, **options):
        if script.name == "end_job":
            args = [*args[:3], 1, *args[4:]]
        return await call(script, keys_, args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(store.connection, "call", late)
        with pytest.raises(Unavailable, match="too many others"):
            await store.jobs.work(application, Nothing())
    assert "running" == (await the_job(store, application)).state
    assert 1 == await store.jobs.work(application, Nothing())
    assert versions(made) == await built(store, application)


async def test_a_job_of_an_older_version_is_over_everything(store, application, small_pages):
    """0.4 queued it, and kept no word of what was wanted."""
    everybody = await populate(store, application)
    key = keys.key(application.production.directory, "jobs")
    old = {"reason": "rules", "created_at_us": 1}
    for job_id, letter, state in (
        (ids.text(ids.new()), b"q", {}),
        (ids.text(ids.new()), b"r", {"state": "running", "total": 24, "begun": True}),
    ):
        document = msgspec.json.encode({"id": job_id} | old | state)
        await ask(store, key, "HSET", job_id, letter + b" " + document)
    deriving = Deriving()
    assert 2 == await store.jobs.work(application, deriving)
    assert (everybody, 48) == (set(deriving.seen), len(deriving.seen))


# Queries that are saved


class Saving:
    """Saves in so many steps, and does what a test wants on the way."""

    def __init__(self, steps=3, meanwhile=None):
        self.seen = []
        self._steps = steps
        self._meanwhile = meanwhile

    async def save_step(self, _env, number, position):
        at = int(position or 0)
        self.seen.append((number, at))
        if self._meanwhile is not None:
            await self._meanwhile(number, at)
        over = at + 1 == self._steps
        return SaveStep("" if over else str(at + 1), added=5, total=5 * self._steps)


async def saved(store, application, name="saved"):
    new = NewGroup(name=name, saved_query={"group": "vip"})
    return await store.groups.create_group(application.production, new)


def test_a_query_that_waits_to_be_saved_has_a_letter_of_its_own():
    job = new_save(7, 5)
    for state, letter in zip(("queued", "running", "done", "failed"), b"srdf", strict=True):
        stored = encode_job(replace(job, state=state))
        assert (letter, replace(job, state=state)) == (stored[0], decode_job(stored))
    with pytest.raises(ValueError, match="is queued"):
        decode_job(b"q" + encode_job(job)[1:])


async def test_queries_are_saved_one_after_the_other_beside_walks(store, application):
    groups = [await saved(store, application, name) for name in ("one", "two", "three")]
    await store.jobs.queue_job(application)
    assert 4 == len(await store.jobs.list_jobs(application))
    store.jobs.saving = saving = Saving()
    assert 4 == await store.jobs.work(application, Deriving())
    assert [(each.number, at) for each in groups for at in range(3)] == saving.seen
    jobs = await store.jobs.list_jobs(application)
    assert {("done", "save", 15, 15), ("done", "asked", 0, 0)} == {
        (job.state, job.reason, job.done, job.total) for job in jobs
    }


async def test_what_waits_longest_is_done_first(store, application):
    first = await saved(store, application)
    await store.jobs.queue_job(application)
    last = await saved(store, application, "last")
    ended = []

    async def meanwhile(number, at):
        ended.append(("save", number))

    async def walked(env, mixed):
        ended.append(("walk", 0))

    await populate(store, application, 1)
    store.jobs.saving = Saving(1, meanwhile)
    await store.jobs.work(application, Deriving(walked))
    assert [("save", first.number), ("walk", 0), ("save", last.number)] == list(
        dict.fromkeys(ended)
    )


async def test_saving_goes_on_where_its_budget_ended(store, application):
    group = await saved(store, application)
    store.jobs.saving = saving = Saving(5)
    assert 5 == await until_done(store, application, Deriving())
    assert [(group.number, at) for at in range(5)] == saving.seen
    assert "done" == (await the_job(store, application)).state


async def test_whoever_could_not_be_added_is_counted(store, application):
    await saved(store, application)

    class Limited(Saving):
        async def save_step(self, env, number, position):
            step = await super().save_step(env, number, position)
            return step._replace(failed=2, error="they are in 1,000 groups")

    store.jobs.saving = Limited()
    assert 1 == await store.jobs.work(application, Deriving())
    job = await the_job(store, application)
    said = "6 profiles could not be added, the first one because of: they are in 1,000 groups"
    assert ("failed", 15, 6, said) == (job.state, job.done, job.failures, job.error)


async def test_a_query_that_cannot_be_saved_keeps_no_other_job_waiting(store, application):
    group = await saved(store, application)

    async def meanwhile(number, at):
        if number == group.number:
            raise NotFound

    await saved(store, application, "other")
    store.jobs.saving = Saving(2, meanwhile)
    assert 2 == await store.jobs.work(application, Deriving())
    jobs = await store.jobs.list_jobs(application)
    assert {("done", None), ("failed", "The query could not be saved: Not found.")} == {
        (job.state, job.error) for job in jobs
    }


async def test_a_store_that_is_gone_leaves_a_query_where_it_was(store, application):
    await saved(store, application)
    gone = [True]

    async def meanwhile(number, at):
        if at == 1 and gone:
            gone.clear()
            raise Unavailable("gone")

    store.jobs.saving = saving = Saving(3, meanwhile)
    with pytest.raises(Unavailable):
        await store.jobs.work(application, Deriving())
    assert 1 == await store.jobs.work(application, Deriving())
    assert [0, 1, 1, 2] == [at for _, at in saving.seen]


@both_topologies
async def test_a_query_whose_worker_was_killed_is_saved(backing, store, application, monkeypatch):
    group = await saved(store, application)
    died_with = await asyncio.to_thread(in_a_process, backing.url, "save.stepped")
    assert -signal.SIGKILL == died_with
    store.jobs.saving = saving = Saving()
    assert 0 == await store.jobs.work(application, Deriving())
    now = store_jobs._now_us()
    monkeypatch.setattr(store_jobs, "_now_us", lambda: now + 2 * store_jobs.LEASE_US)
    assert 1 == await store.jobs.work(application, Deriving())
    assert [(group.number, 1), (group.number, 2)] == saving.seen


def test_every_fault_point_of_saving_has_a_case():
    assert {"save.stepped"} == {point for point in POINTS if point.startswith("save.")}


# With what really derives


async def lived_in(store, env, users, address):
    """Let users have an address; give their mixed ids."""
    profiles = await store.profiles.resolve_identities(env, "customer_id", users, create=True)
    for profile in profiles:
        kept = ProfileChanges(attributes={"$address": address, "has_dog": b'"true"'})
        await store.records.update_profile(env, profile, kept)
    return [env.mixer.mix(profile) for profile in profiles]


async def listed(store, env, mixed):
    """How many instances a profile lists."""
    return await ask(store, keys.of_profile(env.home(mixed), "instances", mixed), "HLEN")


async def sizes(store, env):
    """The instances of the one definition: value -> users."""
    [definition] = (await store.definitions.reload(env)).definitions
    page = await store.instance_index.list_instances(env, definition.number, None, 1000)
    found = await store.instances.read(env, page.rows)
    return {each.value: each.total for each in found}


async def test_a_definition_over_users_that_there_are_groups_them(
    store, application, env, small_pages
):
    for n in range(5):
        await lived_in(store, env, [f"{n} {m}" for m in range(3)], b'"here %d"' % n)
    await create(store, application)
    assert {} == await sizes(store, env)
    await work(store, grace_us=0)
    assert {f"here {n}": 3 for n in range(5)} == await sizes(store, env)


async def test_a_definition_that_is_deleted_leaves_nothing_when_its_job_is_done(
    store, application, env
):
    mixed = await lived_in(store, env, ["a", "b"], b'"here"')
    await create(store, application)
    await work(store, grace_us=0)
    assert [1, 1] == [await listed(store, env, each) for each in mixed]
    await store.definitions.delete_definition(application, "household")
    await work(store, grace_us=0)
    assert [0, 0] == [await listed(store, env, each) for each in mixed]
    for each in env.partitions:
        assert 0 == await ask(store, keys.key(each, "stale"), "ZCARD")


@both_topologies
async def test_a_definition_that_is_deleted_while_its_job_runs_leaves_nothing(
    store, second, application, env, small_pages
):
    mixed = await lived_in(store, env, [f"u{n}" for n in range(12)], b'"here"')
    await create(store, application)
    for _ in range(3):
        await store.jobs.work(application, store.derivation, budget_seconds=0)
    assert "running" == (await the_job(store, application)).state
    assert 0 < sum([await listed(store, env, each) for each in mixed])
    await second.definitions.delete_definition(application, "household")
    await work(store, grace_us=0)
    assert ["done", "done"] == [job.state for job in await store.jobs.list_jobs(application)]
    assert {0} == {await listed(store, env, each) for each in mixed}
    await work(store, grace_us=0)
    assert 0 == await work(store, grace_us=0)


@both_topologies
async def test_a_source_that_changes_while_a_job_runs_is_the_one_that_counts(
    store, second, application, env, small_pages
):
    await lived_in(store, env, [f"u{n}" for n in range(12)], b'"here"')
    await create(store, application)
    await store.jobs.work(application, store.derivation, budget_seconds=0)
    changes = DefinitionChanges(source_user_attribute="has_dog")
    await second.definitions.update_definition(application, "household", changes, "test")
    await work(store, grace_us=0)
    assert {"true": 12} == await sizes(store, env)


async def test_a_weekly_application_groups_on_mondays(store, application, env):
    application = await store.registry.update_application("test", grouping="weekly")
    await create(store, application)
    await lived_in(store, env, ["a", "b"], b'"here"')
    await work(store, grace_us=0)
    assert {} == await sizes(store, env)
    await last_run(store, application, 1)
    await work(store, grace_us=0)
    assert {"here": 2} == await sizes(store, env)
    await lived_in(store, env, ["a"], b'"there"')
    await work(store, grace_us=0)
    assert {"here": 2} == await sizes(store, env)
    await store.jobs.queue_job(application)
    await work(store, grace_us=0)
    assert {"here": 1, "there": 1} == await sizes(store, env)


async def test_who_is_weekly_no_more_is_grouped_at_once(store, application, env):
    application = await store.registry.update_application("test", grouping="weekly")
    await create(store, application)
    await lived_in(store, env, ["a", "b"], b'"here"')
    await store.registry.update_application("test", grouping="realtime")
    await work(store, grace_us=0)
    assert {"here": 2} == await sizes(store, env)


async def test_the_worker_goes_on_with_a_job_at_once_and_others_do_not_wait(
    store, application, small_pages
):
    await populate(store, application)
    await store.jobs.queue_job(application)
    other = await store.registry.create_application("other")
    await store.jobs.queue_job(other)
    assert 0 == await work(store, grace_us=0, sweep_seconds=0)
    assert {application.number, other.number} == store.jobs.interrupted
    ended = 0
    while other.number in store.jobs.interrupted:
        ended += await work(store, grace_us=0, sweep_seconds=0)
    assert (1, "running") == (ended, (await the_job(store, application)).state)
    while store.jobs.interrupted:
        ended += await work(store, grace_us=0, sweep_seconds=0)
    assert (2, "done") == (ended, (await the_job(store, application)).state)


async def test_trouble_with_the_jobs_of_one_application_does_not_keep_the_others_waiting(
    store, application, caplog
):
    key = keys.key(application.production.directory, "jobs")
    await ask(store, key, "HSET", "x", "q nonsense")
    other = await store.registry.create_application("other")
    await store.jobs.queue_job(other)
    assert 1 == await work(store, grace_us=0)
    assert "rules and jobs of test are not finished" in caplog.text
    await ask(store, key, "DEL")
