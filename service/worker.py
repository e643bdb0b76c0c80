"""The background worker: finishes what others left, and sweeps.

It looks at every environment once a second and completes intents, deletions, erasures and
reservations older than two seconds (younger ones are somebody's work in progress), and derives what
has not followed from facts for as long, and what time alone turned since; it tells partitions of
rules and runs jobs; once an hour it forgets old states. What answers depend on comes first;
deriving, jobs and sweeps, which may take minutes, get half a second each of each look, so that
nothing waits for the end of one. Everything it does is made of steps that are safe to repeat and to
do twice at once, so any number of workers may run, and none holds anything that matters.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from typing import TYPE_CHECKING

from service.counters import COUNT_SECONDS, Counters
from service.errors import Unavailable
from service.store import Store
from service.store_groups import all_done

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from service.environment import Application, Environment
    from service.store_totals import Totals

INTERVAL_SECONDS = 1.0
GRACE_US = 2_000_000
"""Age from which on something unfinished is taken to be left by a dead process."""
SWEEP_SECONDS = 0.5
"""How long sweeps, or deriving, may take in an environment before everything is looked at again."""
PURGE_SECONDS = 3_600.0
STATE_US = 86_400_000_000
"""Age at which a state that says no more than its absence is forgotten."""
ENDED_US = 3_600_000_000
"""Age of facts at which it is forgotten that they ended a contribution: nobody is so late."""
RECOUNT_SECONDS = 5
"""After this what could not be counted is counted again."""
TOGETHER = 16
"""Environments and applications that are looked at side by side."""
_WORK = ("intent", "reservation", "erasure", "profile", "instance", "membership", "sweep")
"""What is finished, as metrics name it."""

log = logging.getLogger(__name__)


async def run(url: str, stop: asyncio.Event, counters: Counters | None = None) -> None:
    """Work until `stop` is set. A store that does not answer is waited for.

    What is done, and how much there is, is told to `counters`.
    """
    counters = counters or Counters("worker")
    tasks = [asyncio.create_task(counters.keep_writing())]
    purged_at = float("-inf")
    waiting = False
    store = None
    try:
        while not stop.is_set():
            try:
                if store is None:
                    store = await Store.open(url)
                    counters.sources.append(store.tell)
                    tasks.append(asyncio.create_task(keep_counting(store, counters)))
                purge = time.monotonic() - purged_at > PURGE_SECONDS
                await work(store, purge=purge, sweep_seconds=SWEEP_SECONDS, counters=counters)
                if purge:
                    purged_at = time.monotonic()
                waiting = False
            except Unavailable as ex:
                if not waiting:
                    log.warning("waiting for the store: %s", ex)
                waiting = True
            else:
                if (
                    store.upkeep.interrupted
                    or store.derivation.interrupted
                    or store.settling.interrupted
                    or store.jobs.interrupted
                ):
                    continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), INTERVAL_SECONDS)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        counters.write()
        if store is not None:
            await store.close()


async def work(
    store: Store,
    *,
    grace_us: int = GRACE_US,
    purge: bool = False,
    sweep_seconds: float | None = None,
    counters: Counters | None = None,
) -> int:
    """Look at every environment once; how many things were finished.

    Without `sweep_seconds` sweeps go on to their end, else in the next look of this process.
    A failure in one environment is logged and does not keep the others waiting; Unavailable is
    raised.
    """
    look = _Look(store, grace_us, sweep_seconds, purge=purge)
    store.upkeep.interrupted.clear()
    store.jobs.interrupted.clear()
    store.derivation.interrupted.clear()
    store.settling.interrupted.clear()
    applications = await store.registry.list_applications()
    parts: list[Callable[[], Awaitable[None]]] = [
        functools.partial(look.of, application) for application in applications
    ]
    parts += [
        functools.partial(look.at, environment)
        for application in applications
        for environment in application.environments.values()
    ]
    unavailable: Unavailable | None = None
    for start in range(0, len(parts), TOGETHER):
        together = [part() for part in parts[start : start + TOGETHER]]
        for failure in await asyncio.gather(*together, return_exceptions=True):
            if isinstance(failure, Unavailable):
                unavailable = failure
            elif isinstance(failure, BaseException):
                raise failure
    if counters is not None:
        look.tell(counters, complete=unavailable is None)
    if unavailable is not None:
        raise unavailable
    return sum(look.done.values())


class _Look:
    """One look at every environment: how it is made, and what was finished in it."""

    def __init__(
        self, store: Store, grace_us: int, sweep_seconds: float | None, *, purge: bool
    ) -> None:
        self.done = dict.fromkeys((*_WORK, "job"), 0)
        self._failures = 0
        self._store = store
        self._grace_us = grace_us
        self._sweep_seconds = sweep_seconds
        self._purge = purge

    async def of(self, application: Application) -> None:
        """Look at what an application has for both environments: its rules and jobs."""
        jobs, derivation = self._store.jobs, self._store.derivation
        try:
            await self._finish(
                "job", jobs.work(application, derivation, budget_seconds=self._sweep_seconds)
            )
        except Unavailable:
            raise
        except Exception:
            # As below.
            self._failures += 1
            log.exception("rules and jobs of %s are not finished", application.client_id)

    async def at(self, env: Environment) -> None:
        store, finish, budget_seconds = self._store, self._finish, self._sweep_seconds
        before_us = time.time_ns() // 1000 - self._grace_us
        try:
            await finish("intent", store.upkeep.finish_intents(env, before_us))
            await store.upkeep.install_deletions(env, before_us)
            await finish("reservation", store.profiles.settle_reservations(env, before_us))
            erasing = store.profiles.finish_erasures(env, grace_seconds=self._grace_us / 1e6)
            await finish("erasure", erasing)
            if self._purge:
                await store.upkeep.purge_states(env, before_us - STATE_US)
                await store.derivation.purge_ended(env, before_us - ENDED_US)
            deriving = store.derivation.derive_dirty(env, before_us, budget_seconds=budget_seconds)
            telling = store.derivation.settle_stale(env, before_us, budget_seconds=budget_seconds)
            sweeping = store.upkeep.sweep_groups(env, before_us, budget_seconds=budget_seconds)
            settling = store.settling.settle_unsettled(
                env, before_us, budget_seconds=budget_seconds
            )
            turning = store.settling.turn_due(
                env, store.settling.clock(), budget_seconds=budget_seconds
            )
            # Side by side: one profile that cannot be derived must not keep the others waiting.
            await all_done(
                finish("profile", deriving),
                finish("instance", telling),
                finish("membership", settling),
                finish("membership", turning),
                finish("sweep", sweeping),
            )
        except Unavailable:
            raise
        except Exception:
            # This loop must live on: what is wrong here must not keep the others waiting.
            self._failures += 1
            log.exception("environment %d (%s) is not finished", env.number, env.name)

    async def _finish(self, what: str, work: Awaitable[int]) -> None:
        finished = await work
        # NOTE: only now. `done[what] += await …` reads before it waits, while others count.
        self.done[what] += finished

    def tell(self, counters: Counters, *, complete: bool) -> None:
        for what, finished in self.done.items():
            counters.count("belong_worker_finished_total", what, by=finished)
        counters.count("belong_worker_failures_total", by=self._failures)
        if complete and not self._failures:
            name = "belong_worker_last_pass_timestamp_seconds"
            counters.gauge(name, value=round(time.time(), 3))


async def keep_counting(store: Store, counters: Counters) -> None:
    """Count what every application holds, again and again, for as long as the task runs."""
    while True:
        try:
            await count(store, counters)
            pause = COUNT_SECONDS
        except Unavailable as ex:
            log.debug("not counted: %s", ex)
            pause = RECOUNT_SECONDS
        except Exception:
            # This loop must live on, as the other one has to.
            log.exception("not counted")
            pause = COUNT_SECONDS
        await asyncio.sleep(pause)


async def count(store: Store, counters: Counters) -> None:
    """Count what every application holds, and tell it to `counters` when all is counted."""
    held: list[tuple[str, str, Totals]] = [
        (application.client_id, name, await store.totals.count(environment))
        for application in await store.registry.list_applications()
        for name, environment in application.environments.items()
    ]
    for metric in ("groups", "memberships", "profiles"):
        counters.forget(f"belong_{metric}")
        for client_id, name, totals in held:
            value = getattr(totals, metric)
            counters.gauge(f"belong_{metric}", client_id, name, value=value)
    for what in ("intent", "reservation", "erasure", "sweep"):
        waiting = sum(getattr(totals, f"{what}s") for _, _, totals in held)
        counters.gauge("belong_worker_backlog", what, value=waiting)
    now_us = time.time_ns() // 1000
    for what in ("profile", "instance", "membership"):
        behind = sum(getattr(totals, f"{what}s_behind") for _, _, totals in held)
        counters.gauge("belong_worker_backlog", what, value=behind)
        since = (getattr(totals, f"{what}s_behind_since_us") for _, _, totals in held)
        lag_us = max((now_us - each for each in since if each is not None), default=0)
        counters.gauge("belong_derivation_lag_seconds", what, value=max(lag_us, 0) / 1e6)
    counters.gauge("belong_counted_timestamp_seconds", value=round(time.time(), 3))
