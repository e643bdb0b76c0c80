"""The store called without HTTP: how much of Belong's time is the scripts and the client of them.

A process of its own, on the core that serves HTTP otherwise, opens Belong's own `Store` on the
server's embedded store and asks what the HTTP steps ask: as many at a time, over the same
connection, answers looked at. Single questions take the shortcut that hot requests take, many pairs
the method. What HTTP, routing, token, decoding and encoding cost is the difference.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop

from bench.measurement import Sample
from bench.serving import ROOT, cpu_seconds, store_of
from bench.start import application
from service import ids
from service.store import Store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from bench.measurement import Subject
    from service.environment import Environment
    from service.lane import Waiter

    Call = Callable[[], Awaitable[bool]]
    """One call of the store; whether its answer was right."""
    Ask = Callable[[Waiter], bool]
    """One question by the shortcut; whether it has left."""
    IsRight = Callable[[Any], bool]

WARM_UP_SECONDS = 0.5
"""At most: a call of a short measurement warms up for as long as that takes."""


class Check(msgspec.Struct, tag=True):
    """Pairs for one call, and what is right for each."""

    groups: list[str]
    profiles: list[str]
    expected: list[bool]


class GroupsOf(msgspec.Struct, tag=True):
    """A profile for one call, and in how many groups it is."""

    profile: str
    expected: int


class Job(msgspec.Struct):
    """What is to be called: these in turn, some at a time, on these cores."""

    url: str
    calls: list[Check | GroupsOf]
    together: int
    seconds: float
    cores: list[int]


class Outcome(msgspec.Struct):
    """What came of it, the warm-up left out."""

    calls: int
    wrong: int
    seconds: float
    processor_seconds: float


def measure(
    subject: Subject, calls: list[Check | GroupsOf], *, together: int, seconds: float
) -> Sample:
    """Call the store from a process of its own: calls/s. The details have us of processor a call.

    RuntimeError: the subject's store is not to be found.
    """
    process, url = store_of(subject)
    cores = sorted(os.sched_getaffinity(subject.api))
    job = Job(url, calls, together, seconds, cores)
    before = cpu_seconds(process)
    done = subprocess.run(
        [sys.executable, "-m", "bench.direct"],
        cwd=ROOT,
        input=msgspec.json.encode(job),
        stdout=subprocess.PIPE,
        check=True,
    )
    store = cpu_seconds(process) - before
    found = msgspec.json.decode(done.stdout, type=Outcome)
    rate = found.calls / found.seconds
    # The store's time is that of the warm-up, too.
    every = rate * (found.seconds + _warm_up(job))
    return Sample(
        rate,
        errors=found.wrong,
        details={
            "caller us": 1e6 * found.processor_seconds / max(found.calls, 1),
            "store us": 1e6 * store / max(every, 1),
        },
    )


def _warm_up(job: Job) -> float:
    return min(WARM_UP_SECONDS, job.seconds)


class _Asking:
    """One of those who ask by the shortcut, one question after the other."""

    def __init__(self, questions: Iterator[tuple[Ask, IsRight]]) -> None:
        self._questions = questions
        self._is_right: IsRight
        self.count = self.wrong = 0
        self.is_over = False

    def ask(self) -> None:
        """Ask the next question."""
        ask, self._is_right = next(self._questions)
        if not ask(self):
            raise SystemExit("the store is not there")

    def done(self) -> bool:
        """Whether nobody waits any more: never."""
        return False

    def set_result(self, reply: Any, /) -> None:
        """Look at an answer, and go on."""
        self.count += 1
        self.wrong += not self._is_right(reply)
        if not self.is_over:
            self.ask()

    def set_exception(self, _: BaseException, /) -> None:
        """Count that none came."""
        self.wrong += 1


def _question(store: Store, env: Environment, asked: Check | GroupsOf, number: int) -> Any:
    """Give how to ask by the shortcut, and what is a right answer."""
    if isinstance(asked, GroupsOf):
        profile = bytes.fromhex(asked.profile.replace("-", ""))
        expected = asked.expected
        return (
            partial(store.shortcuts.read_groups_of, env, profile),
            lambda reply: len(reply[0].split()) == len(reply[1].split()) == expected,
        )
    packed, _ = ids.pack(asked.profiles)
    letter = b"1" if asked.expected[0] else b"0"
    ask = partial(store.shortcuts.check_member, env, number, packed)
    return ask, letter.__eq__


async def _run_shortcut(job: Job, store: Store, env: Environment) -> Outcome:
    questions = []
    for each in job.calls:
        group = each.groups[0] if isinstance(each, Check) else ""
        number = await store.groups.number_of(env, group) if group else 0
        questions.append(_question(store, env, each, number))
    await store.ping()
    turns = itertools.cycle(questions)
    asking = [_Asking(turns) for _ in range(job.together)]
    for one in asking:
        one.ask()
    await asyncio.sleep(_warm_up(job))
    before, began, spent = _count(asking), time.perf_counter(), time.process_time()
    await asyncio.sleep(job.seconds)
    done, seconds = _count(asking) - before, time.perf_counter() - began
    spent = time.process_time() - spent
    for one in asking:
        one.is_over = True
    await store.ping()
    return Outcome(done, sum(one.wrong for one in asking), seconds, spent)


def _count(asking: list[_Asking]) -> int:
    return sum(one.count for one in asking)


async def _prepared(store: Store, env: Environment, asked: Check) -> Call:
    """Make the call: what a request would find in the near-cache is looked up before."""
    numbers = [await store.groups.number_of(env, each) for each in asked.groups]
    packed, _ = ids.pack(asked.profiles)
    letters = b"".join(b"1" if each else b"0" for each in asked.expected)

    async def check() -> bool:
        return await store.members.check_members(env, numbers, packed) == letters

    return check


async def _run(job: Job) -> Outcome:
    store = await Store.open(job.url)
    env = (await application(store)).production
    if all(isinstance(each, GroupsOf) or len(each.groups) == 1 for each in job.calls):
        outcome = await _run_shortcut(job, store, env)
        await store.close()
        return outcome
    checks = [each for each in job.calls if isinstance(each, Check)]
    calls = itertools.cycle([await _prepared(store, env, each) for each in checks])
    done = wrong = 0
    over = False

    async def one_after_the_other() -> None:
        nonlocal done, wrong
        while not over:
            is_right = await next(calls)()
            done += 1
            wrong += not is_right

    tasks = [asyncio.create_task(one_after_the_other()) for _ in range(job.together)]
    await asyncio.sleep(_warm_up(job))
    # What was wrong stays so: only what is counted as done begins anew.
    done, began, spent = 0, time.perf_counter(), time.process_time()
    await asyncio.sleep(job.seconds)
    outcome = Outcome(done, wrong, time.perf_counter() - began, time.process_time() - spent)
    over = True
    await asyncio.gather(*tasks)
    await store.close()
    return outcome


def main() -> None:
    """Read a job from stdin, do it, and write what came of it to stdout."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    os.sched_setaffinity(0, job.cores)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(_run(job))))


if __name__ == "__main__":
    main()
