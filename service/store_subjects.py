"""Reading what rules are evaluated on: facts of profiles, each as they are at one moment."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from service import keys, scripts
from service.rows import all_done_of
from service.subjects import facts_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from service.connection import Connection
    from service.environment import Environment
    from service.subjects import Facts, Part, Plan

LOOKS = 500
"""What one script reads, in looks at a field: 40 profiles by a simple rule take 0.6 ms."""
BYTES = 262_144
TURN_SECONDS = 0.002
"""How long rules are evaluated before others have their turn."""


class SubjectStore:
    """Facts of profiles, for rules. Every method may raise Unavailable."""

    def __init__(self, connection: Connection) -> None:
        """Take the open connection."""
        self._connection = connection

    async def read(
        self, env: Environment, plan: Plan, mixed: Iterable[bytes], *, bulk: bool
    ) -> dict[bytes, Facts | None]:
        """Read what the rules of a plan have to know of profiles; None of who is being erased.

        Stale where another version of the rules is in force. One round trip for 40 profiles of a
        partition, fewer by many or large rules, or 256 KiB of values; partitions side by side.
        """
        script = scripts.load("read_subjects")
        many = max(LOOKS // plan.cost, 1)
        head: list[Part] = [plan.book.rules.version, BYTES, *plan.reading]
        found: dict[bytes, Facts | None] = {}

        async def read(tag: bytes, chunk: list[bytes]) -> None:
            kinds = ("rules", "erasing", "unsettled", "due", "dynamic")
            declared = [*(keys.key(tag, kind) for kind in kinds), keys.none(tag)]
            while chunk:
                rows = await self._connection.call(script, declared, [*head, *chunk], bulk=bulk)
                for one, row in zip(chunk, rows, strict=False):
                    found[one] = facts_of(plan, row)
                chunk = chunk[len(rows) :]

        await all_done_of(
            *(
                read(tag, within[start : start + many])
                for tag, within in env.by_home(mixed).items()
                for start in range(0, len(within), many)
            )
        )
        return found


class Turn:
    """How long the event loop is held by evaluating rules."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        """Begin one."""
        self._until = time.perf_counter() + TURN_SECONDS

    def is_over(self) -> bool:
        """Whether others have their turn now; then the next one begins."""
        now = time.perf_counter()
        if now <= self._until:
            return False
        self._until = now + TURN_SECONDS
        return True
