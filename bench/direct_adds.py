"""Members added in bulk without HTTP: what the store's methods give, and what the scripts alone.

A process of its own, on the core that serves HTTP otherwise, opens Belong's own `Store` on the
server's embedded store. `methods alone` calls `add_members` as a request does: ids are mixed,
sorted and cut, scripts go one at a time. `scripts alone` sends the very same scripts with the very
same arguments, which were noted down before, some at a time, so that the store never waits for this
process. Profiles are new to everybody, or known: they have joined another group before. What was
added is removed afterwards, and nothing but the adding is timed.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Literal, cast, get_args
from uuid import uuid4

import msgspec
import uvloop

from bench.measurement import Sample
from bench.serving import ROOT, cpu_seconds, store_of
from bench.start import application
from service.groups import NewGroup
from service.store import Store
from service.store_members import MemberStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.measurement import Subject
    from service.connection import Connection
    from service.environment import Environment
    from service.scripts import Script

Way = Literal["methods alone", "scripts alone"]
Who = Literal["new", "known"]
WAYS: tuple[Way, ...] = get_args(Way)
WHO: tuple[Who, ...] = get_args(Who)

SCRIPTS_TOGETHER = 16
"""Scripts on their way: the next ones wait in the socket while the store works on one."""


class Job(msgspec.Struct):
    """What is to be added: so many calls with so many ids, on these cores."""

    url: str
    way: Way
    who: Who
    calls: int
    ids: int
    together: int
    """Calls at a time."""
    cores: list[int]


class Outcome(msgspec.Struct):
    """What came of it."""

    wrong: int
    """Ids that were not added."""
    seconds: float
    processor_seconds: float


class _Noting:
    """Stands for a connection, and notes down which scripts were called with what."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.calls: list[tuple[Script, Sequence[bytes], list[bytes | str | int]]] = []

    async def call(
        self,
        script: Script,
        keys: Sequence[bytes],
        args: Sequence[bytes | str | int],
        *,
        bulk: bool = False,
    ) -> Any:
        self.calls.append((script, keys, [*args]))
        return await self._connection.call(script, keys, args, bulk=bulk)


def measure(subject: Subject, way: Way, who: Who, *, calls: int, ids: int, together: int) -> Sample:
    """Add members in a process of its own: adds/s. The details have us of processor for each.

    RuntimeError: the subject's store is not to be found.
    """
    process, url = store_of(subject)
    cores = sorted(os.sched_getaffinity(subject.api))
    job = Job(url, way, who, calls, ids, together, cores)
    done = subprocess.run(
        [sys.executable, "-m", "bench.direct_adds"],
        cwd=ROOT,
        input=msgspec.json.encode([job, process]),
        stdout=subprocess.PIPE,
        check=True,
    )
    found, store_seconds = msgspec.json.decode(done.stdout, type=tuple[Outcome, float])
    added = calls * ids
    return Sample(
        added / found.seconds,
        errors=found.wrong,
        details={
            "caller us": 1e6 * found.processor_seconds / added,
            "store us": 1e6 * store_seconds / added,
        },
    )


async def _run(job: Job, process: int) -> tuple[Outcome, float]:
    store = await Store.open(job.url)
    env = (await application(store)).production
    # A group for each call, as requests have them that come at the same time; one of before.
    groups = [
        await store.groups.create_group(env, NewGroup(name="direct"))
        for _ in range(job.together + 1)
    ]
    before = groups.pop()
    numbers = [groups[at % len(groups)].number for at in range(job.calls)]
    everybody = [uuid4().bytes for _ in range(job.calls * job.ids)]
    packed = _cut(everybody, job.ids)
    work = _by_scripts if job.way == "scripts alone" else _by_methods
    try:
        if job.who == "known":
            # In another order: else who is added together would stand together in memory.
            for each in _cut(random.sample(everybody, len(everybody)), job.ids):
                await store.members.add_members(env, before.number, each)
        return await work(store, env, numbers, packed, job.together, process)
    finally:
        for number, each in zip(numbers, packed, strict=True):
            await store.members.remove_members(env, number, each)
            await store.members.remove_members(env, before.number, each)
        for group in (*groups, before):
            await store.groups.delete_group(env, group.id)
        await store.close()


def _cut(ids: list[bytes], many: int) -> list[bytes]:
    """Pack ids, so many together."""
    return [b"".join(ids[start : start + many]) for start in range(0, len(ids), many)]


class _Clock:
    """The time and the processor time since it was made, of this process and of the store."""

    def __init__(self, process: int) -> None:
        self._process = process
        self._began = time.perf_counter(), time.process_time(), cpu_seconds(process)

    def stop(self, wrong: int) -> tuple[Outcome, float]:
        wall, own, store = self._began
        return (
            Outcome(wrong, time.perf_counter() - wall, time.process_time() - own),
            cpu_seconds(self._process) - store,
        )


async def _by_methods(
    store: Store,
    env: Environment,
    numbers: list[int],
    packed: list[bytes],
    together: int,
    process: int,
) -> tuple[Outcome, float]:
    waiting = iter(zip(numbers, packed, strict=True))
    wrong = 0

    async def go() -> None:
        nonlocal wrong
        for number, each in waiting:
            letters = await store.members.add_members(env, number, each)
            wrong += len(letters) - letters.count(b"+")

    clock = _Clock(process)
    await asyncio.gather(*(go() for _ in range(together)))
    return clock.stop(wrong)


async def _by_scripts(
    store: Store,
    env: Environment,
    numbers: list[int],
    packed: list[bytes],
    _: int,
    process: int,
) -> tuple[Outcome, float]:
    noting = _Noting(store.connection)
    members = MemberStore(cast("Connection", noting), store.settling)
    for number, each in zip(numbers, packed, strict=True):
        await members.add_members(env, number, each)
        await store.members.remove_members(env, number, each)
    waiting = iter(noting.calls)
    wrong = sum(map(len, packed)) // 16

    async def go() -> None:
        nonlocal wrong
        for script, keys, args in waiting:
            letters = await store.connection.call(script, keys, args)
            wrong -= letters.count(b"+")

    clock = _Clock(process)
    await asyncio.gather(*(go() for _ in range(SCRIPTS_TOGETHER)))
    return clock.stop(wrong)


def main() -> None:
    """Read a job from stdin, do it, and write what came of it to stdout."""
    job, process = msgspec.json.decode(sys.stdin.buffer.read(), type=tuple[Job, int])
    os.sched_setaffinity(0, job.cores)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(_run(job, process))))


if __name__ == "__main__":
    main()
