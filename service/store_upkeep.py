"""Upkeep of groups: what the worker does for them.

Completes changes that a dead process left between the directory and the partitions, removes what
deleted groups left, and forgets old states. Everything is made of steps that are safe to repeat.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from service import keys, scripts
from service.errors import Unavailable
from service.faults import fault
from service.store_groups import all_done

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from service.connection import Connection
    from service.environment import Environment
    from service.store_groups import GroupStore

SWEEP = 40
"""Members that one step of a sweep removes: 1.5 ms."""
OPEN = 1000
"""Intents that one command reads."""
TOGETHER = 50
"""Groups whose state is installed side by side: 400 small scripts at eight partitions."""


class GroupUpkeep:
    """The worker's work on groups of an environment. Every method may raise Unavailable."""

    def __init__(self, connection: Connection, groups: GroupStore) -> None:
        """Take the open connection, and the store that changes groups."""
        self._connection = connection
        self._groups = groups
        self._sweeps: dict[tuple[int, int], list[int]] = {}
        self.interrupted: set[int] = set()
        """Numbers of environments in which a sweep ran out of its budget; the worker clears it."""

    async def finish_intents(self, env: Environment, before_us: int) -> int:
        """Complete changes of `is_active` that a dead process left, those from before a moment.

        Returns how many were completed. For the worker; safe at any time, by several at once.
        """
        open_intents = await self._open(env, "intents", before_us)
        groups = await self._groups.read_groups(
            env, [number for number, _ in open_intents], cached=False
        )

        async def finish(number: int, version: int) -> None:
            group = groups.get(number)
            if group is not None:
                letter = "a" if group.is_active else "i"
                await self._groups.install_state(env, number, group.version, letter)
            await self._groups.finish_intent(
                env, "intents", number, group.version if group else version
            )

        await _for_each(open_intents, finish)
        return len(open_intents)

    async def install_deletions(self, env: Environment, before_us: int) -> list[tuple[int, int]]:
        """Tell the partitions of every group that was deleted before a moment and is not swept.

        Each group once in a process, unless its sweep fails. Gives the numbers and versions of all
        of them, oldest first. For the worker; safe at any time, by several at once.
        """
        deleted = await self._open(env, "deleting", before_us)
        named = {number for number, _ in deleted}
        for of, number in list(self._sweeps):
            if of == env.number and number not in named:
                self._sweeps.pop((of, number), None)

        async def install(number: int, version: int) -> None:
            await self._groups.install_state(env, number, version, "d")
            self._sweeps.setdefault((env.number, number), [0] * len(env.partitions))

        await _for_each(
            [each for each in deleted if (env.number, each[0]) not in self._sweeps], install
        )
        return deleted

    async def sweep_groups(
        self, env: Environment, before_us: int, *, budget_seconds: float | None = None
    ) -> int:
        """Remove what deleted groups left, those deleted before a moment, in bounded steps.

        Stops when the budget is used up, after at least one step; the next call of this process
        goes on there (another one begins anew, which is as right). Without a budget all is swept.
        What fails does not keep other groups waiting, unless it is Unavailable.
        Returns how many were completed. For the worker; safe at any time, by several at once.
        """
        deleted = await self.install_deletions(env, before_us)
        deadline = float("inf") if budget_seconds is None else time.monotonic() + budget_seconds
        completed = 0
        failure: Exception | None = None
        for number, version in deleted:
            done = False
            try:
                done = await self._sweep_group(env, number, version, deadline)
            except Unavailable:
                raise
            except Exception as ex:  # noqa: BLE001  (raised below, after the others)
                failure = failure or ex
            completed += done
            if time.monotonic() >= deadline:
                if not done or number != deleted[-1][0]:
                    self.interrupted.add(env.number)
                break
        if failure is not None:
            raise failure
        return completed

    async def _sweep_group(
        self, env: Environment, number: int, version: int, deadline: float
    ) -> bool:
        """Sweep a group in all partitions side by side, until a deadline. Whether it is done."""
        # Another call may have completed it, and dropped this, meanwhile.
        positions = self._sweeps.setdefault((env.number, number), [0] * len(env.partitions))
        try:
            await all_done(
                *(
                    self._sweep(tag, number, positions, partition, deadline)
                    for partition, tag in enumerate(env.partitions)
                )
            )
        except BaseException:
            # After a failover what was removed, or the state, may be there as it was: begin anew.
            self._sweeps.pop((env.number, number), None)
            raise
        if max(positions) >= 0:
            return False
        fault("sweep_group.swept")
        await self._groups.finish_intent(env, "deleting", number, version)
        fault("sweep_group.finished")
        self._sweeps.pop((env.number, number), None)
        return True

    async def _sweep(
        self, tag: bytes, number: int, positions: list[int], partition: int, deadline: float
    ) -> None:
        while positions[partition] >= 0:
            positions[partition] = await self._connection.call(
                scripts.load("sweep_group"),
                [
                    keys.key(tag, "state"),
                    keys.key(tag, "count"),
                    keys.key(tag, "shape"),
                    keys.key(tag, "dynamic"),
                    keys.none(tag),
                ],
                [number, SWEEP, _now_us(), positions[partition]],
                bulk=True,
            )
            if time.monotonic() >= deadline:
                return

    async def purge_states(self, env: Environment, before_us: int) -> int:
        """Forget states from before a moment that say no more than their absence. How many."""
        purged = 0
        for tag in env.partitions:
            cursor = b"0"
            while True:
                cursor, step = await self._connection.call(
                    scripts.load("purge_states"),
                    [keys.key(tag, "state"), keys.none(tag)],
                    [cursor, before_us],
                    bulk=True,
                )
                purged += step
                if cursor == b"0":
                    break
        return purged

    async def _open(self, env: Environment, kind: str, before_us: int) -> list[tuple[int, int]]:
        """Give what is open from before a moment, or from as long after now.

        A version is a time or, after a clock that ran ahead, just above the last one: an hour
        ahead of now it would be an hour until it is from before the moment.
        """
        key = keys.key(env.directory, kind)
        now = _now_us()
        after_us = max(2 * now - before_us, now, before_us)
        found = []
        for low, high in (("-inf", before_us), (f"({after_us}", "+inf")):
            offset = 0
            while True:
                flat = await self._connection.command(
                    key,
                    "ZRANGE",
                    key,
                    low,
                    high,
                    "BYSCORE",
                    "LIMIT",
                    offset,
                    OPEN,
                    "WITHSCORES",
                )
                found += [
                    (int(number), int(float(score)))
                    for number, score in zip(flat[::2], flat[1::2], strict=True)
                ]
                if len(flat) < 2 * OPEN:
                    break
                offset += OPEN
        return found


async def _for_each(
    intents: list[tuple[int, int]], do: Callable[[int, int], Awaitable[None]]
) -> None:
    """Do something for each number and version, some at a time; the first failure comes last."""
    failure: BaseException | None = None
    for start in range(0, len(intents), TOGETHER):
        try:
            await all_done(*(do(*each) for each in intents[start : start + TOGETHER]))
        except Exception as ex:  # noqa: BLE001  (raised below, after the others)
            failure = failure or ex
    if failure is not None:
        raise failure


def _now_us() -> int:
    return time.time_ns() // 1000
