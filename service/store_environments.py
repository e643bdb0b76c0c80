"""Environments as a whole: whether anything is in one, and clearing away what is left of it.

For whoever deletes an application. What an environment is, and what it is called, is not known
here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service import keys, scripts

if TYPE_CHECKING:
    from service.connection import Connection
    from service.environment import Environment

KEPT = ("rules", "watch", "dirty", "stale", "ended", "named", "unsettled", "due", "dynamic")
"""What a partition may keep without any profile, beside states."""
CLEARED = 500
"""Profiles that one script forgets the changes of: 1.1 ms."""


class EnvironmentStore:
    """Looks at environments and clears them. Methods raise Unavailable."""

    def __init__(self, connection: Connection) -> None:
        """Take the open connection."""
        self._connection = connection

    async def is_empty(self, environment: Environment) -> bool:
        """Whether there is no group, no profile, and nothing on its way in or out."""
        for kind in ("groups", "inactive", "deleting"):
            index = keys.key(environment.directory, kind)
            if await self._connection.command(index, "ZCARD", index):
                return False
        for tag in environment.partitions:
            [held] = await self._connection.call(
                scripts.load("count_members"), [keys.key(tag, "count"), keys.none(tag)], [0]
            )
            if held:
                return False
            for kind, count in (("reserved", "ZCARD"), ("erasing", "SCARD"), ("stale", "ZCARD")):
                index = keys.key(tag, kind)
                if await self._connection.command(index, count, index):
                    return False
        return True

    async def clear(self, environment: Environment) -> None:
        """Remove what an environment keeps without groups and profiles.

        Counters and states; definitions, rules and jobs; what is remembered of profiles that are
        gone. What expires is left to do so.
        """
        for kind in ("numbers", "version", "rules", "jobs", "installing", "weekly", "built"):
            key = keys.key(environment.directory, kind)
            await self._connection.command(key, "DEL", key)
        for tag in environment.partitions:
            cursor = b"0"
            while True:
                cursor, _ = await self._connection.call(
                    scripts.load("purge_states"),
                    [keys.key(tag, "state"), keys.none(tag)],
                    [cursor, 2**62],
                )
                if cursor == b"0":
                    break
            # What changed of each has a key of its own, which nothing else names.
            forgotten = CLEARED
            while forgotten == CLEARED:
                forgotten = await self._connection.call(
                    scripts.load("clear_changed"),
                    [keys.key(tag, "unsettled"), keys.none(tag)],
                    [CLEARED],
                )
            kept = [keys.key(tag, kind) for kind in KEPT]
            await self._connection.call(
                scripts.load("clear_partition"), [*kept, keys.none(tag)], []
            )
