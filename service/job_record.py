"""A job as it is kept, and what follows from that alone: when it is due, where it goes on.

Pure: no I/O. `store_jobs` queues and runs jobs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from service import ids

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.environment import Environment
    from service.grouping import Rules

FAILURES = 100
"""A job ends when so many profiles could not be derived: something is wrong with all of them."""
_DAY_US = 86_400_000_000
_WEEK_US = 7 * _DAY_US
_FIRST_MONDAY_US = 4 * _DAY_US
"""1970 began on a Thursday."""


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job as it is kept. `done` of `total` profiles were looked at; the total is an estimate.

    `environment`, `partition` and `bound` are where it goes on, and `runner` is who may, up to
    `lease_until_us`; `begun` says that partitions were told of the rules since it was taken.
    `failures` profiles could not be derived, the first one because of `error`.

    Of a walk that was `decided`: it is `whole`, and answers to `wanted`, or it builds `groups`; as
    `rules` of that version had them, and since `whole` in `built` was `since`. Of one that saves a
    query: `group` is the number of the group it fills, `position` where it goes on.
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
    decided: bool = False
    whole: bool = True
    wanted: int = 0
    groups: tuple[int, ...] = ()
    rules: int = 0
    since: int = 0
    group: int = 0
    position: str = ""

    @property
    def is_save(self) -> bool:
        """Whether it saves a query as a group."""
        return self.reason == "save"

    def builds(self, number: int, version: int) -> bool:
        """Tell whether it finds the members of a dynamic group, by the tree of this version."""
        has_it = self.whole or number in self.groups
        return self.decided and not self.is_over and has_it and version <= self.rules

    @property
    def is_over(self) -> bool:
        """Whether it ended, one way or the other."""
        return self.state in ("done", "failed")


_JOB = msgspec.json.Decoder(Job)


class SaveStep(NamedTuple):
    """What a step of saving a query came to: where the next one begins, '' after the last.

    `added` profiles were seen to, and `failed` more could not be added, for what `error` says;
    `total` is about how many there are in all.
    """

    position: str
    added: int
    total: int
    failed: int = 0
    error: str | None = None


def new_job(reason: str, now_us: int, *, whole: bool = True) -> Job:
    """Give a walk to queue: `rules` or `weekly`, or `asked` for.

    `whole` is what it would be if it were taken now: see `JobStore`.
    """
    return Job(id=ids.text(ids.new()), reason=reason, created_at_us=now_us, whole=whole)


def new_save(group: int, now_us: int) -> Job:
    """Give a job to queue that saves a query as a group."""
    return Job(
        id=ids.text(ids.new()), reason="save", created_at_us=now_us, whole=False, group=group
    )


def encode_job(job: Job) -> bytes:
    """Give what is stored of a job: the letter of its state, and the job.

    The letter is the first of the state; of one that waits to save a query it is `s`.
    """
    return _letter(job) + b" " + msgspec.json.encode(job)


def _letter(job: Job) -> bytes:
    return b"s" if job.is_save and job.state == "queued" else job.state[:1].encode()


def decode_job(raw: bytes) -> Job:
    """Give the job that is stored so. Anything else is a ValueError."""
    job = _JOB.decode(raw[2:])
    if raw[:2] != _letter(job) + b" ":
        message = f"job {job.id} is stored as {raw[:2]!r}, and is {job.state}"
        raise ValueError(message)
    return job


def monday_before(now_us: int) -> int:
    """Give the last Monday, 00:00 UTC, that began at or before a moment."""
    return now_us - (now_us - _FIRST_MONDAY_US) % _WEEK_US


def unbuilt(rules: Rules, built: Mapping[bytes, int]) -> tuple[int, ...]:
    """Give the dynamic groups that were not built by the rule tree that they have now."""
    return tuple(
        each.number for each in rules.dynamic if built.get(b"%d" % each.number) != each.version
    )


def failure(job: Job) -> str:
    """Say why a job failed that left profiles out."""
    what = "added" if job.is_save else "derived"
    if job.failures == 1:
        said = f"One profile could not be {what}"
    elif job.is_save or job.failures < FAILURES:
        said = f"{job.failures:,} profiles could not be {what}, the first one"
    else:
        said = f"It was given up after {job.failures} profiles that could not be {what}, the first"
    return f"{said} because of: {job.error}"[:1000]


def onward(env: Environment, job: Job, left: bytes) -> Job:
    """Give a job at its next position: on in this partition, or the next one, or environment."""
    if left:
        return replace(job, bound=left)
    if job.partition + 1 < len(env.partitions):
        return replace(job, partition=job.partition + 1, bound=b"")
    return replace(job, environment=job.environment + 1, partition=0, bound=b"")
