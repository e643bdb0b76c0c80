"""Limits in the store: how often somebody may do something, counted over all processes.

An allowance is one small key per caller, in the slot of the directory, that goes away by itself
once it is whole again. Who the callers are, and what they may, is not known here.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from service import keys, scripts
from service.errors import TooManyRequests, Unwritable

if TYPE_CHECKING:
    from service.connection import Connection
    from service.environment import Environment

SKEW_US = 5_000_000
"""By how much the clocks of two processes may differ. An allowance that is whole only later than
this after it could be was written before the clock went back."""
ALONE = 10_000
"""Callers that a process counts by itself, while the store takes no writes."""


class LimitStore:
    """Allowances of an environment's callers."""

    def __init__(self, connection: Connection) -> None:
        """Take the open connection."""
        self._connection = connection
        self._script = scripts.load("take_allowance")
        self._alone: dict[bytes, int] = {}

    async def take(
        self, env: Environment, caller: str, per_second: float, burst: int, allowed: str = ""
    ) -> int:
        """Take one request out of a caller's allowance: `burst` at once, `per_second` on average.

        Gives how much of the allowance is used now, in percent, rounded up: 1 to 100.

        Exact over all processes, in one round trip: of many calls at once on a whole allowance
        `burst` pass. A request comes back every 1/`per_second`, rounded to whole microseconds. A
        clock that goes back costs a caller no more than `SKEW_US`; clocks that differ by more than
        that make the limit inexact.

        A store that can be read but not written (it is full) would make the limit refuse what only
        reads: until it takes writes again each process counts by itself, so that N processes let
        through up to N times as much.

        Raises TooManyRequests, which says what is `allowed` (unless told otherwise, so many a
        second), and Unavailable when the store does not answer.
        """
        interval_us = max(1, round(1_000_000 / per_second))
        now_us = time.time_ns() // 1000
        key = keys.allowance(env.directory, caller)
        try:
            wait_us: int = await self._connection.call(
                self._script,
                [key, keys.none(env.directory)],
                [now_us, interval_us, burst, SKEW_US],
            )
        except Unwritable:
            wait_us = self._take_alone(key, interval_us, burst)
        if wait_us > 0:
            allowed = allowed or f"{per_second:g} a second"
            message = f"Too many requests: {allowed} are allowed here."
            raise TooManyRequests(message, -(-wait_us // 1_000_000))
        return -(wait_us * 100 // (burst * interval_us))

    def _take_alone(self, key: bytes, interval_us: int, burst: int) -> int:
        """Do what the script does, for this process alone and by a clock that never goes back."""
        now_us = time.monotonic_ns() // 1000
        taken_us = max(self._alone.pop(key, 0), now_us) + interval_us
        wait_us = taken_us - now_us - burst * interval_us
        if len(self._alone) >= ALONE:
            del self._alone[next(iter(self._alone))]
        self._alone[key] = taken_us if wait_us <= 0 else taken_us - interval_us
        return wait_us if wait_us > 0 else now_us - taken_us
