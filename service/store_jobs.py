"""Jobs of an application: walks over its profiles that derive what follows from their facts.

A job is queued with the change of rules that makes it necessary, by somebody who asks, or, in a
weekly application, for every Monday. At most one walk waits beside one that runs, and whoever asks
meanwhile gets the one that waits: it has not looked at anybody yet. What it does is decided when it
is taken: it derives everything of everybody, where that is wanted, or else it finds the members of
the dynamic groups that are not built by the rule tree that they have now. Jobs that save a query as
a group are no walks: each waits for itself. The worker runs them, the oldest first, a page of
profiles at a time, under a lease that each step renews; position and counts are kept with the job,
so that another worker goes on where one died. Every step is safe to repeat and to do twice.
"""

from __future__ import annotations

import logging
import secrets
import time
from typing import TYPE_CHECKING, Protocol

import msgspec
from msgspec.structs import replace

from service import ids, keys, scripts
from service.errors import BelongError, Conflict, NotFound, Stale, Unavailable
from service.faults import fault
from service.job_record import (
    FAILURES,
    Job,
    SaveStep,
    decode_job,
    encode_job,
    failure,
    monday_before,
    new_job,
    new_save,
    onward,
    unbuilt,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from service.connection import Connection
    from service.environment import Application, Environment
    from service.grouping import Rules
    from service.store_definitions import DefinitionStore

    class Derivation(Protocol):
        """What derives: `DerivationStore`."""

        interrupted: set[int]

        async def derive_profiles(
            self, env: Environment, mixed: Sequence[bytes], *, walking: bool = False
        ) -> None:
            """Derive what follows from the facts of these profiles."""

        async def settle_stale(
            self, env: Environment, before_us: int, *, budget_seconds: float | None = None
        ) -> int:
            """Tell the members of instances."""

    class Settling(Protocol):
        """What follows rule trees: `SettlingStore`."""

        async def walk(
            self, env: Environment, mixed: Sequence[bytes], groups: Collection[int] | None
        ) -> None:
            """Evaluate the rules of these dynamic groups (None: of all) for these profiles."""

    class Saving(Protocol):
        """What saves queries as groups: `QueryStore`."""

        async def save_step(self, env: Environment, number: int, position: str) -> SaveStep:
            """Add some of those of whom the query of a group is true to it, from a position on."""


__all__ = [
    "FAILURES", "Job", "JobStore", "SaveStep", "decode_job", "encode_job", "monday_before",
    "new_job", "new_save", "unbuilt",
]  # fmt: skip

PAGE = 200
"""Profiles of one step."""
LEASE_US = 10_000_000
"""After this without a step another worker takes a job over."""
TRIES = 20
"""How often the end of a job is noted again while rules change."""
KEPT = 100
"""Jobs that ended and are remembered, the latest."""
BUILT = 60
"""Groups that one script notes as built: 1 ms."""
RULES = 50
"""So many rules take as long for a profile as what follows from one definition."""
WAITING = 100
"""Queries that may wait at a time to be saved as groups."""
LOOK_SECONDS = 600.0
"""How often a worker looks whether a dynamic group is not built, and no job is to do it."""
RETRY_US = 3_600_000_000
"""After this what a job that failed was to build is tried again."""

log = logging.getLogger(__name__)


class _Agenda(msgspec.Struct, frozen=True):
    """What there is to do for an application."""

    version: int
    installing: int
    weekly_us: int
    jobs: tuple[tuple[Job, bytes], ...]
    """Jobs that wait or run, as they are and as they are stored."""

    def next(self, runner: str, now_us: int) -> tuple[Job, bytes] | None:
        """Give the job to go on with: the one that runs, if it is ours or left, or what waits.

        What waits longest comes first, so that neither walks nor queries to save wait for ever.
        """
        for job, raw in self.jobs:
            if job.state == "running":
                left = job.runner == runner or job.lease_until_us < now_us
                return (job, raw) if left else None
        return min(self.jobs, key=lambda each: (each[0].created_at_us, each[0].id), default=None)

    @property
    def walks(self) -> bool:
        """Whether a walk waits or runs."""
        return any(not job.is_save for job, _ in self.jobs)


class JobStore:
    """Jobs of applications. Every method may raise Unavailable."""

    def __init__(
        self, connection: Connection, definitions: DefinitionStore, settling: Settling
    ) -> None:
        """Take the open connection, who knows rules and tells partitions, and who follows trees."""
        self._connection = connection
        self._definitions = definitions
        self._settling = settling
        self._runner = secrets.token_hex(8)
        self._looked_at: dict[int, float] = {}
        self.saving: Saving | None = None
        """Who saves queries: set once, by who opens both."""
        self.interrupted: set[int] = set()
        """Numbers of applications whose job ran out of its budget; the worker clears it."""

    async def list_jobs(self, application: Application) -> list[Job]:
        """Give all jobs that are known, the latest first: of those that ended the last 100."""
        key = _jobs(application)
        flat = await self._connection.command(key, "HGETALL", key)
        return sorted(
            map(decode_job, flat[1::2]), key=lambda job: (job.created_at_us, job.id), reverse=True
        )

    async def get_job(self, application: Application, job_id: str) -> Job:
        """Give a job. NotFound where there is none, or it ended long ago."""
        key = _jobs(application)
        raw = await self._connection.command(key, "HGET", key, job_id.encode())
        if raw is None:
            message = f"The job {job_id[:64]!r} was not found."
            raise NotFound(message)
        return decode_job(raw)

    async def queue_job(self, application: Application, *, whole: bool = True) -> Job:
        """Queue a job, or give the one that waits already. It begins within a worker's second.

        It is over everything, or, where it need not be `whole`, over the dynamic groups that are
        not built.
        """
        now = _now_us()
        job = new_job("asked", now, whole=whole)
        key = _jobs(application)
        waits = await self._connection.call(
            scripts.load("queue_job"),
            [key, _built(application), keys.none(_home(application))],
            [job.id, msgspec.json.encode(job), int(whole), now],
        )
        waiting = waits.decode()
        return job if waiting == job.id else await self.get_job(application, waiting)

    async def open_jobs(self, application: Application) -> list[Job]:
        """Give the jobs that wait or run."""
        return [job for job, _ in (await self._read_agenda(application)).jobs]

    async def read_built(self, application: Application) -> dict[bytes, int]:
        """Give the version of the rules by which each dynamic group was built, by its number.

        Beside them `wanted` and `whole`, as the key schema says.
        """
        key = _built(application)
        flat = await self._connection.command(key, "HGETALL", key)
        return {name: int(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}

    async def work(
        self,
        application: Application,
        derivation: Derivation,
        *,
        budget_seconds: float | None = None,
    ) -> int:
        """Do what there is to do for an application; how many jobs ended.

        Rules follow the settings; partitions are told of rules where a dead process did not; the
        Monday's job is queued; a job that waits or was left is run. Without a budget it runs to its
        end, else in the next call of this process, and `interrupted` says so. For the worker; safe
        at any time, by several at once.
        """
        until = None if budget_seconds is None else time.monotonic() + budget_seconds
        ended = 0
        while True:
            agenda = await self._prepared(application)
            found = agenda.next(self._runner, _now_us())
            if found is None:
                return ended
            try:
                if not await self._run(application, derivation, *found, until):
                    return ended
            except Stale:
                # Another worker has it, or was faster.
                return ended
            ended += 1

    async def _prepared(self, application: Application) -> _Agenda:
        """Have rules in force and the Monday's job queued, and give what is left to do."""
        agenda = await self._read_agenda(application)
        version = agenda.version
        if version and not await self._definitions.follows(application, version):
            await self._definitions.follow_settings(application.client_id)
            agenda = await self._read_agenda(application)
        if agenda.installing:
            await self._definitions.install(application)
        if agenda.version:
            rules = await self._definitions.known(application, agenda.version)
            queued = await self._queue_weekly(application, rules, agenda.weekly_us)
            if rules.dynamic and not agenda.walks:
                queued |= await self._queue_unbuilt(application)
            if queued:
                agenda = await self._read_agenda(application)
        return agenda

    async def _queue_unbuilt(self, application: Application) -> bool:
        """Queue a job for dynamic groups that are not built; whether there are any.

        The job that was to build them failed: it is tried again an hour later.
        """
        now = time.monotonic()
        if now - self._looked_at.get(application.number, -LOOK_SECONDS) < LOOK_SECONDS:
            return False
        self._looked_at[application.number] = now
        rules = await self._definitions.reread(application.production)
        if not unbuilt(rules, await self.read_built(application)):
            return False
        walks = [each for each in await self.list_jobs(application) if not each.is_save]
        if max((each.ended_at_us or 0 for each in walks), default=0) > _now_us() - RETRY_US:
            return False
        await self.queue_job(application, whole=False)
        return True

    async def _read_agenda(self, application: Application) -> _Agenda:
        home = _home(application)
        kinds = ("rules", "installing", "jobs", "weekly")
        version, installing, weekly, *flat = await self._connection.call(
            scripts.load("read_agenda"),
            [*(keys.key(home, kind) for kind in kinds), keys.none(home)],
            [],
        )
        jobs = tuple((decode_job(raw), raw) for raw in flat[1::2])
        return _Agenda(int(version), int(installing), int(weekly), jobs)

    async def _queue_weekly(self, application: Application, rules: Rules, last_us: int) -> bool:
        """Queue the job of the last Monday, unless there was one; whether it was queued now.

        Where several were missed, one job makes up for all.
        """
        now = _now_us()
        monday = monday_before(now)
        if not (rules.weekly and rules.definitions) or last_us >= monday:
            return False
        home, job = _home(application), new_job("weekly", now)
        waits = await self._connection.call(
            scripts.load("queue_weekly"),
            [*(keys.key(home, kind) for kind in ("jobs", "weekly", "built")), keys.none(home)],
            [monday, job.id, msgspec.json.encode(job), now],
        )
        return bool(waits)

    async def _run(
        self,
        application: Application,
        derivation: Derivation,
        job: Job,
        raw: bytes,
        until: float | None,
    ) -> bool:
        """Run a job; whether it ended. Stale: somebody else has it."""
        if job.runner != self._runner:
            job, raw = await self._taken(application, job, raw)
        if job.is_save:
            return await self._save(application, job, raw, until)
        if not job.decided:
            job, raw = await self._decide(application, job, raw)
        environments = _environments(application, job)
        if not job.begun:
            # Whoever changed rules and found this job waiting did so before it was taken.
            await self._definitions.install(application)
        while job.environment < len(environments):
            env = environments[job.environment]
            page, left = await self._page(env, job)
            failures, error = await self._derive(env, derivation, job, page)
            done = job.done + len(page)
            stepped = replace(
                job,
                begun=True,
                done=done,
                total=max(job.total, done),
                failures=job.failures + failures,
                error=job.error or error,
                lease_until_us=_now_us() + LEASE_US,
            )
            if stepped.failures >= FAILURES:
                break
            job, raw = await self._replaced(application, raw, onward(env, stepped, left))
            fault("job.stepped")
            if until is not None and time.monotonic() > until:
                self.interrupted.add(application.number)
                return False
        else:
            stepped = job
            if job.whole and not await self._tell(derivation, environments, until):
                self.interrupted.add(application.number)
                return False
        await self._end(application, raw, stepped)
        return True

    async def _taken(self, application: Application, job: Job, raw: bytes) -> tuple[Job, bytes]:
        """Take a job that waits, or was left."""
        taken = replace(
            job,
            state="running",
            runner=self._runner,
            lease_until_us=_now_us() + LEASE_US,
            begun=False,
        )
        found = await self._replaced(application, raw, taken)
        fault("job.taken")
        return found

    async def _decide(self, application: Application, job: Job, raw: bytes) -> tuple[Job, bytes]:
        """Decide what a job that was taken does.

        Only now: whoever found it waiting relies on it, and did so before it was taken.
        """
        rules = await self._definitions.reread(application.production)
        built = await self.read_built(application)
        wanted, done = built.get(b"wanted", 0), built.get(b"whole", 0)
        # What an older version queued, `built` does not know of.
        whole = wanted > done or (job.whole and not wanted)
        decided = replace(
            job,
            decided=True,
            whole=whole,
            wanted=wanted,
            groups=() if whole else unbuilt(rules, built),
            rules=rules.version,
            since=done,
        )
        environments = _environments(application, decided)
        total = job.total or await self._count(environments)
        return await self._replaced(application, raw, replace(decided, total=total))

    async def _save(
        self, application: Application, job: Job, raw: bytes, until: float | None
    ) -> bool:
        """Save a query as a group; whether that ended."""
        if self.saving is None:
            message = "nothing here saves queries"
            raise RuntimeError(message)
        while True:
            try:
                step = await self.saving.save_step(application.production, job.group, job.position)
            except Unavailable:
                raise
            except Exception as ex:
                # What is wrong with this query must not keep other jobs waiting.
                said = str(ex) if isinstance(ex, BelongError) else repr(ex)
                where = "group %d of %s could not be filled: %s"
                log.warning(
                    where, job.group, application.client_id, said,
                    exc_info=not isinstance(ex, BelongError),
                )  # fmt: skip
                said = f"The query could not be saved: {said}"[:1000]
                await self._end(application, raw, job, said)
                return True
            done = job.done + step.added
            job = replace(
                job,
                begun=True,
                position=step.position,
                done=done,
                total=max(step.total, done),
                failures=job.failures + step.failed,
                error=job.error or step.error,
                lease_until_us=_now_us() + LEASE_US,
            )
            if not step.position:
                await self._end(application, raw, job)
                return True
            job, raw = await self._replaced(application, raw, job)
            fault("save.stepped")
            if until is not None and time.monotonic() > until:
                self.interrupted.add(application.number)
                return False

    async def _count(self, environments: Sequence[Environment]) -> int:
        """Count the profiles of environments: everybody is in group 0."""
        script = scripts.load("count_members")
        return sum(
            [
                int(count or 0)
                for env in environments
                for tag in env.partitions
                for count in await self._connection.call(
                    script, [keys.key(tag, "count"), keys.none(tag)], [0]
                )
            ]
        )

    async def _page(self, env: Environment, job: Job) -> tuple[list[bytes], bytes]:
        """Read the next profiles of a partition, and where it goes on there; empty at its end."""
        tag = env.partitions[job.partition]
        rules = await self._definitions.rules(env)
        followed = len(rules.dynamic if job.whole else job.groups) // RULES
        width = max(len(rules.definitions) if job.whole else 0, followed, 1)
        _, left, packed, _ = await self._connection.call(
            scripts.load("list_member_ids"),
            [
                *(keys.key(tag, kind) for kind in ("state", "count", "shape", "erasing")),
                keys.none(tag),
            ],
            # What follows from many definitions takes longer: a step is to be far below a lease.
            [0, job.bound, max(PAGE // width, 1)],
        )
        return ids.split(packed), left

    async def _derive(
        self, env: Environment, derivation: Derivation, job: Job, page: Sequence[bytes]
    ) -> tuple[int, str | None]:
        """Derive a page, and one by one where that fails; how many failed, and why the first did.

        What is wrong with one profile must not keep the others from their groups.
        """
        if not page:
            return 0, None
        try:
            if job.whole:
                await derivation.derive_profiles(env, page, walking=True)
            await self._settling.walk(env, page, None if job.whole else job.groups)
        except Unavailable:
            raise
        except Exception as ex:
            if len(page) == 1:
                log.exception("a profile of environment %d could not be derived", env.number)
                return 1, str(ex) if isinstance(ex, BelongError) else repr(ex)
        else:
            return 0, None
        failures, first = 0, None
        for mixed in page:
            failed, error = await self._derive(env, derivation, job, [mixed])
            failures, first = failures + failed, first or error
            if failures >= FAILURES:
                break
        return failures, first

    async def _tell(
        self, derivation: Derivation, environments: Sequence[Environment], until: float | None
    ) -> bool:
        """Tell members of instances that have many, whom deriving leaves; whether all are told."""
        for env in environments:
            left = None if until is None else max(until - time.monotonic(), 0.0)
            was = env.number in derivation.interrupted
            derivation.interrupted.discard(env.number)
            try:
                await derivation.settle_stale(env, _now_us(), budget_seconds=left)
            except Unavailable:
                raise
            except Exception:
                # It stays stale, which verify and the metrics show; the job has done its part.
                log.exception("an instance of environment %d could not be told", env.number)
            if env.number in derivation.interrupted:
                return False
            if was:
                derivation.interrupted.add(env.number)
        return True

    async def _end(
        self, application: Application, raw: bytes, job: Job, error: str | None = None
    ) -> None:
        """Note that a job ended and what it built, and forget those that ended long before.

        A group is built by the tree with which it was decided on, if it still has that one, and if
        nobody was left out. `error` is why the job as a whole failed.
        """
        now = _now_us()
        ended = replace(job, state="done", total=job.done, ended_at_us=now, bound=b"", groups=())
        if error or job.failures:
            ended = replace(ended, state="failed", total=job.total, error=error or failure(job))
        over = sorted(
            (each for each in await self.list_jobs(application) if each.is_over),
            key=lambda each: (each.ended_at_us or 0, each.id),
        )
        forgotten = [each.id for each in over[: max(len(over) + 1 - KEPT, 0)]]
        if job.is_save:
            await self._replaced(application, raw, ended, forgotten)
        else:
            await self._ended(application, raw, (job, ended), forgotten)
        fault("job.finished")

    async def _ended(
        self, application: Application, raw: bytes, jobs: tuple[Job, Job], forgotten: Sequence[str]
    ) -> None:
        job, ended = jobs
        home = _home(application)
        declared = [*(keys.key(home, kind) for kind in ("jobs", "built", "rules")), keys.none(home)]
        for _ in range(TRIES):
            rules = await self._definitions.reread(application.production)
            built = [
                each
                for each in rules.dynamic
                if each.version <= job.rules and (job.whole or each.number in job.groups)
            ]
            if job.failures:
                built = []
            *parts, last = [
                [part for each in built[at : at + BUILT] for part in (each.number, each.version)]
                for at in range(0, max(len(built), 1), BUILT)
            ]
            guard = [rules.version, job.since]
            whole = job.wanted if job.whole and job.failures < FAILURES else ""
            rest = [whole, len(forgotten), *forgotten, *last]
            try:
                for part in parts:
                    await self._connection.call(
                        scripts.load("note_built"), declared, [job.id, raw, *guard, *part]
                    )
                await self._connection.call(
                    scripts.load("end_job"),
                    declared,
                    [job.id, raw, encode_job(ended), *guard, *rest],
                )
            except Conflict:
                # Rules changed meanwhile, and a group may be gone.
                continue
            return
        message = "The rules are being changed by too many others at once."
        raise Unavailable(message)

    async def _replaced(
        self, application: Application, raw: bytes, job: Job, forgotten: Sequence[str] = ()
    ) -> tuple[Job, bytes]:
        """Write a job where it is as it was read. Stale: it is not."""
        encoded = encode_job(job)
        await self._connection.call(
            scripts.load("replace_job"),
            [_jobs(application), keys.none(_home(application))],
            [job.id, raw, encoded, *forgotten],
        )
        return job, encoded


def _environments(application: Application, job: Job) -> list[Environment]:
    """Give the environments that a job walks. Dynamic groups are in production alone."""
    return list(application.environments.values()) if job.whole else [application.production]


def _home(application: Application) -> bytes:
    return application.production.rules_home


def _jobs(application: Application) -> bytes:
    return keys.key(_home(application), "jobs")


def _built(application: Application) -> bytes:
    return keys.key(_home(application), "built")


def _now_us() -> int:
    return time.time_ns() // 1000
