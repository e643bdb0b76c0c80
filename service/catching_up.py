"""Catching up: how the worker goes on with profiles and instances that others left behind.

They stand in a sorted set of each partition with the time since when. The oldest come first, and
what fails goes behind all others, so that none of them waits for somebody who mends it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from service import keys, scripts
from service.errors import Unavailable, Unwritable
from service.store_groups import all_done

if TYPE_CHECKING:
    from service.connection import Connection
    from service.environment import Environment

Work = Callable[[list[bytes]], Awaitable[None]]

PAGE = 100
"""Profiles, or instances, that are worked on together."""


class CatchingUp:
    """One look at what is behind in an environment: `dirty` profiles, or `stale` instances."""

    def __init__(
        self,
        connection: Connection,
        env: Environment,
        kind: str,
        work: Work,
        budget_seconds: float | None,
        interrupted: set[int],
    ) -> None:
        """Take what does the work for some of them, and how long it may go on: None, to the end.

        Where that runs out, so that more may be left, the environment is added to `interrupted`.
        """
        self._connection = connection
        self._env = env
        self._kind = kind
        self._work = work
        self._deadline = (
            float("inf") if budget_seconds is None else time.monotonic() + budget_seconds
        )
        self._failures: list[Exception] = []
        self._interrupted = interrupted

    async def catch_up(self, before_us: int) -> int:
        """Work on what has been behind since before a moment, partitions side by side. How many.

        The first failure is raised when all others are done, also where the store is full;
        Unavailable else at once.
        """
        done = await all_done(*(self._of_partition(tag, before_us) for tag in self._env.partitions))
        if self._failures:
            raise self._failures[0]
        return sum(done)

    async def _of_partition(self, tag: bytes, before_us: int) -> int:
        # A clock that ran ahead left it with a time that is yet to come.
        after_us = max(2 * time.time_ns() // 1000 - before_us, before_us)
        done = 0
        for low, high in (("-inf", before_us), (f"({after_us}", "+inf")):
            passed = 0
            last: set[bytes] = set()
            while True:
                found = await self._list(tag, low, high, passed)
                fresh = [each for each in found if each not in last]
                # What is still there, its turn over, is left to whoever keeps changing it.
                passed += len(found) - len(fresh)
                done -= len(found) - len(fresh)
                if fresh:
                    done += len(fresh) - await self._work_on(tag, fresh)
                last = set(fresh)
                if len(found) < PAGE and not fresh:
                    break
                if time.monotonic() >= self._deadline:
                    self._interrupted.add(self._env.number)
                    return done
        return done

    async def _list(self, tag: bytes, low: str, high: int | str, passed: int) -> list[bytes]:
        found: list[bytes] = await self._connection.call(
            scripts.load("list_behind"),
            [keys.key(tag, self._kind), keys.none(tag)],
            [low, high, passed, PAGE],
            bulk=True,
        )
        return found

    async def _work_on(self, tag: bytes, todo: list[bytes]) -> int:
        """Work on some, one by one where that fails; put back what fails. How many that is."""
        try:
            await self._work(todo)
        except Exception as ex:
            # On a full store those go on who need no room: the others do not stand before them.
            is_full = isinstance(ex, Unwritable)
            if isinstance(ex, Unavailable) and not is_full:
                raise
            if len(todo) > 1 and not is_full:
                return sum([await self._work_on(tag, [each]) for each in todo])
            self._failures.append(ex)
            await self._connection.call(
                scripts.load("put_back"),
                [keys.key(tag, self._kind), keys.none(tag)],
                [time.time_ns() // 1000, *todo],
                bulk=True,
            )
            return len(todo)
        return 0
