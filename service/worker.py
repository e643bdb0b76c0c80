"""The background worker: finishes what others left, and sweeps.

It looks at every environment once a second and completes intents, deletions, erasures and
reservations older than two seconds (younger ones are somebody's work in progress); once an hour it
forgets old states. What answers depend on comes first, and sweeps, which may take minutes, get half
a second of each look, so that nothing waits for the end of one. Everything it does is made of steps
that are safe to repeat and to do twice at once, so any number of workers may run, and none holds
anything that matters.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING

from service.errors import Unavailable
from service.store import Store

if TYPE_CHECKING:
    from service.environment import Environment

INTERVAL_SECONDS = 1.0
GRACE_US = 2_000_000
"""Age from which on something unfinished is taken to be left by a dead process."""
SWEEP_SECONDS = 0.5
"""How long the sweeps of one environment may take before everything is looked at again."""
PURGE_SECONDS = 3_600.0
STATE_US = 86_400_000_000
"""Age at which a state that says no more than its absence is forgotten."""
TOGETHER = 16
"""Environments that are looked at side by side."""

log = logging.getLogger(__name__)


async def run(url: str, stop: asyncio.Event) -> None:
    """Work until `stop` is set. A store that does not answer is waited for."""
    purged_at = float("-inf")
    waiting = False
    store = None
    try:
        while not stop.is_set():
            try:
                if store is None:
                    store = await Store.open(url)
                purge = time.monotonic() - purged_at > PURGE_SECONDS
                await work(store, purge=purge, sweep_seconds=SWEEP_SECONDS)
                if purge:
                    purged_at = time.monotonic()
                waiting = False
            except Unavailable as ex:
                if not waiting:
                    log.warning("waiting for the store: %s", ex)
                waiting = True
            else:
                if store.upkeep.interrupted:
                    continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), INTERVAL_SECONDS)
    finally:
        if store is not None:
            await store.close()


async def work(
    store: Store,
    *,
    grace_us: int = GRACE_US,
    purge: bool = False,
    sweep_seconds: float | None = None,
) -> int:
    """Look at every environment once; how many things were finished.

    Without `sweep_seconds` sweeps go on to their end, else in the next look of this process.
    A failure in one environment is logged and does not keep the others waiting; Unavailable is
    raised.
    """
    store.upkeep.interrupted.clear()
    environments = [
        environment
        for application in await store.registry.list_applications()
        for environment in application.environments.values()
    ]
    total = 0
    unavailable: Unavailable | None = None
    for start in range(0, len(environments), TOGETHER):
        together = environments[start : start + TOGETHER]
        for done in await asyncio.gather(
            *(
                _work(store, each, grace_us=grace_us, purge=purge, sweep_seconds=sweep_seconds)
                for each in together
            ),
            return_exceptions=True,
        ):
            if isinstance(done, Unavailable):
                unavailable = done
            elif isinstance(done, BaseException):
                raise done
            else:
                total += done
    if unavailable is not None:
        raise unavailable
    return total


async def _work(
    store: Store, env: Environment, *, grace_us: int, purge: bool, sweep_seconds: float | None
) -> int:
    before_us = time.time_ns() // 1000 - grace_us
    try:
        total = await store.upkeep.finish_intents(env, before_us)
        await store.upkeep.install_deletions(env, before_us)
        total += await store.profiles.settle_reservations(env, before_us)
        total += await store.profiles.finish_erasures(env, grace_seconds=grace_us / 1e6)
        total += await store.upkeep.sweep_groups(env, before_us, budget_seconds=sweep_seconds)
        if purge:
            await store.upkeep.purge_states(env, before_us - STATE_US)
    except Unavailable:
        raise
    except Exception:
        # This loop must live on: what is wrong here must not keep the others waiting.
        log.exception("environment %d (%s) is not finished", env.number, env.name)
        return 0
    return total
