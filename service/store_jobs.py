"""Jobs of an application: walks over all its profiles that derive what follows from their facts.

A job is queued with the change of rules that makes it necessary, by somebody who asks, or, in a
weekly application, for every Monday. At most one waits beside one that runs, and whoever asks
meanwhile gets the one that waits: it has not looked at anybody yet. The worker runs them, a page of
profiles at a time, under a lease that each step renews; position and counts are kept with the job,
so that another worker goes on where one died. Every step is safe to repeat and to do twice.
"""

from __future__ import annotations

import logging
import secrets
import time
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec
from msgspec.structs import replace

from service import ids, keys, scripts
from service.errors import BelongError, NotFound, Stale, Unavailable
from service.faults import fault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.connection import Connection
    from service.environment import Application, Environment
    from service.grouping import Rules
    from service.store_definitions import DefinitionStore

    class Derivation(Protocol):
        """What derives: `DerivationStore`."""

        interrupted: set[int]

        async def derive_profiles(self, env: Environment, mixed: Sequence[bytes]) -> None:
            """Derive what follows from the facts of these profiles."""

        async def settle_stale(
            self, env: Environment, before_us: int, *, budget_seconds: float | None = None
        ) -> int:
            """Tell the members of instances."""


PAGE = 200
"""Profiles of one step."""
LEASE_US = 10_000_000
"""After this without a step another worker takes a job over."""
KEPT = 100
"""Jobs that ended and are remembered, the latest."""
FAILURES = 100
"""A job ends when so many profiles could not be derived: something is wrong with all of them."""

_DAY_US = 86_400_000_000
_WEEK_US = 7 * _DAY_US
_FIRST_MONDAY_US = 4 * _DAY_US
"""1970 began on a Thursday."""

log = logging.getLogger(__name__)


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job as it is kept. `done` of `total` profiles were looked at; the total is an estimate.

    `environment`, `partition` and `bound` are where it goes on, and `runner` is who may, up to
    `lease_until_us`; `begun` says that partitions were told of the rules since it was taken.
    `failures` profiles could not be derived, the first one because of `error`.
    """

    id: str
    state: Literal["queued", "running", "done", "failed"] = "queued"
    reason: str
    created_at_us: int
    ended_at_us: int | None = None
    done: int = 0
    total: int = 0
    environment: int = 0
    partition: int = 0
    bound: bytes = b""
    runner: str = ""
    lease_until_us: int = 0
    begun: bool = False
    failures: int = 0
    error: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether it ended, one way or the other."""
        return self.state in ("done", "failed")


_JOB = msgspec.json.Decoder(Job)


def new_job(reason: str, now_us: int) -> Job:
    """Give a job to queue: `rules` or `weekly`, or `asked` for."""
    return Job(id=ids.text(ids.new()), reason=reason, created_at_us=now_us)


def encode_job(job: Job) -> bytes:
    """Give what is stored of a job: the first letter of its state, and the job."""
    return job.state[:1].encode() + b" " + msgspec.json.encode(job)


def decode_job(raw: bytes) -> Job:
    """Give the job that is stored so. Anything else is a ValueError."""
    job = _JOB.decode(raw[2:])
    if raw[:2] != job.state[:1].encode() + b" ":
        message = f"job {job.id} is stored as {raw[:2]!r}, and is {job.state}"
        raise ValueError(message)
    return job


def monday_before(now_us: int) -> int:
    """Give the last Monday, 00:00 UTC, that began at or before a moment."""
    return now_us - (now_us - _FIRST_MONDAY_US) % _WEEK_US


class _Agenda(msgspec.Struct, frozen=True):
    """What there is to do for an application."""

    version: int
    installing: int
    weekly_us: int
    jobs: tuple[tuple[Job, bytes], ...]
    """Jobs that wait or run, as they are and as they are stored."""

    def next(self, runner: str, now_us: int) -> tuple[Job, bytes] | None:
        """Give the job to go on with: the one that runs, if it is ours or left, or what waits."""
        for job, raw in self.jobs:
            if job.state == "running":
                left = job.runner == runner or job.lease_until_us < now_us
                return (job, raw) if left else None
        return self.jobs[0] if self.jobs else None


class JobStore:
    """Jobs of applications. Every method may raise Unavailable."""

    def __init__(self, connection: Connection, definitions: DefinitionStore) -> None:
        """Take the open connection, and who knows rules and tells partitions of them."""
        self._connection = connection
        self._definitions = definitions
        self._runner = secrets.token_hex(8)
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

    async def queue_job(self, application: Application) -> Job:
        """Queue a job, or give the one that waits already. It begins within a worker's second."""
        job = new_job("asked", _now_us())
        key = _jobs(application)
        waits = await self._connection.call(
            scripts.load("queue_job"),
            [key, keys.none(_home(application))],
            [job.id, msgspec.json.encode(job)],
        )
        waiting = waits.decode()
        return job if waiting == job.id else await self.get_job(application, waiting)

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
            if await self._queue_weekly(application, rules, agenda.weekly_us):
                agenda = await self._read_agenda(application)
        return agenda

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
            [keys.key(home, "jobs"), keys.key(home, "weekly"), keys.none(home)],
            [monday, job.id, msgspec.json.encode(job)],
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
        environments = list(application.environments.values())
        if job.runner != self._runner:
            job, raw = await self._taken(application, job, raw, environments)
        if not job.begun:
            # Whoever changed rules and found this job waiting did so before it was taken.
            await self._definitions.install(application)
        while job.environment < len(environments):
            env = environments[job.environment]
            page, left = await self._page(env, job)
            failures, error = await self._derive(env, derivation, page)
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
            job, raw = await self._replaced(application, raw, _onward(env, stepped, left))
            fault("job.stepped")
            if until is not None and time.monotonic() > until:
                self.interrupted.add(application.number)
                return False
        else:
            stepped = job
            if not await self._tell(derivation, environments, until):
                self.interrupted.add(application.number)
                return False
        await self._end(application, raw, stepped)
        return True

    async def _taken(
        self, application: Application, job: Job, raw: bytes, environments: Sequence[Environment]
    ) -> tuple[Job, bytes]:
        """Take a job that waits, or was left."""
        total = job.total or await self._count(environments)
        taken = replace(
            job,
            state="running",
            total=total,
            runner=self._runner,
            lease_until_us=_now_us() + LEASE_US,
            begun=False,
        )
        found = await self._replaced(application, raw, taken)
        fault("job.taken")
        return found

    async def _count(self, environments: Sequence[Environment]) -> int:
        """Count the profiles of both environments: everybody is in group 0."""
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
        _, left, packed, _ = await self._connection.call(
            scripts.load("list_member_ids"),
            [
                *(keys.key(tag, kind) for kind in ("state", "count", "shape", "erasing")),
                keys.none(tag),
            ],
            # What follows from many definitions takes longer: a step is to be far below a lease.
            [0, job.bound, max(PAGE // max(len(rules.definitions), 1), 1)],
        )
        return ids.split(packed), left

    async def _derive(
        self, env: Environment, derivation: Derivation, page: Sequence[bytes]
    ) -> tuple[int, str | None]:
        """Derive a page, and one by one where that fails; how many failed, and why the first did.

        What is wrong with one profile must not keep the others from their groups.
        """
        if not page:
            return 0, None
        try:
            await derivation.derive_profiles(env, page)
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
            failed, error = await self._derive(env, derivation, [mixed])
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

    async def _end(self, application: Application, raw: bytes, job: Job) -> None:
        """Note that a job ended, and forget those that ended long before."""
        now = _now_us()
        ended = replace(job, state="done", total=job.done, ended_at_us=now, bound=b"")
        if job.failures:
            ended = replace(ended, state="failed", total=job.total, error=_failure(job))
        over = sorted(
            (each for each in await self.list_jobs(application) if each.is_over),
            key=lambda each: (each.ended_at_us or 0, each.id),
        )
        forgotten = [each.id for each in over[: max(len(over) + 1 - KEPT, 0)]]
        await self._replaced(application, raw, ended, forgotten)
        fault("job.finished")

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


def _failure(job: Job) -> str:
    if job.failures == 1:
        said = "One profile could not be derived"
    elif job.failures < FAILURES:
        said = f"{job.failures} profiles could not be derived, the first one"
    else:
        said = f"It was given up after {job.failures} profiles that could not be derived, the first"
    return f"{said} because of: {job.error}"[:1000]


def _onward(env: Environment, job: Job, left: bytes) -> Job:
    """Give a job at its next position: on in this partition, or the next one, or environment."""
    if left:
        return replace(job, bound=left)
    if job.partition + 1 < len(env.partitions):
        return replace(job, partition=job.partition + 1, bound=b"")
    return replace(job, environment=job.environment + 1, partition=0, bound=b"")


def _home(application: Application) -> bytes:
    return application.production.rules_home


def _jobs(application: Application) -> bytes:
    return keys.key(_home(application), "jobs")


def _now_us() -> int:
    return time.time_ns() // 1000
