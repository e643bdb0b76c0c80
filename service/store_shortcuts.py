"""The shortest way to the store: four read scripts, packed by hand, whose replies go to a waiter.

What is asked on every request of somebody's product is asked here without a coroutine, a future or
a retry: one command leaves on the link that is open, with all others of this turn of the event
loop, and whoever asked is told the raw reply. Whatever is not as usual (no link, an error reply, a
server that does not know the script) is the business of the ordinary stores: who asked here asks
there again, which is safe, for these scripts only read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service import keys, scripts
from service.lane import packed

if TYPE_CHECKING:
    from service.connection import Connection
    from service.environment import Environment
    from service.lane import Link, Waiter

FEW = 500
"""Groups of a profile up to which there is a shortcut: 1 ms of the store."""

BEGINNINGS = 10_000
"""Beginnings of commands that are remembered: four for each partition that is asked."""

ROWS = 125
"""Members of a first page up to which there is one: 1 ms of the store."""

_NONE = None, b""
_KINDS = {
    "check_members": ("state", "erasing"),
    "get_members": ("state", "erasing"),
    "read_first_members": ("state", "shape", "count"),
    "read_groups_of": ("state", "count", "erasing"),
}
_FEW = b"$16\r\n%%b\r\n$%d\r\n%d\r\n" % (len(str(FEW)), FEW)


class ShortcutStore:
    """Asks, and does not wait. Each method tells whether the question has left."""

    def __init__(self, connection: Connection) -> None:
        """Take the open connection."""
        self._connection = connection
        self._beginnings: dict[tuple[str, bytes], tuple[Link | None, bytes]] = {}

    def check_member(self, env: Environment, number: int, id16: bytes, waiter: Waiter) -> bool:
        """Ask whether a profile is in a group; the reply is that of `check_members.lua`."""
        mixed = env.mixer.mix(id16)
        tag = env.home(mixed)
        group = b"%d" % number
        tail = b"$16\r\n%b\r\n$%d\r\n%b\r\n" % (mixed, len(group), group)
        return self._ask("check_members", tag, 2, tail, waiter)

    def get_member(self, env: Environment, number: int, id16: bytes, waiter: Waiter) -> bool:
        """Ask for one membership; the reply is that of `get_members.lua`."""
        mixed = env.mixer.mix(id16)
        tag = env.home(mixed)
        group = b"%d" % number
        tail = b"$%d\r\n%b\r\n$1\r\n0\r\n$16\r\n%b\r\n" % (len(group), group, mixed)
        return self._ask("get_members", tag, 3, tail, waiter)

    def read_first_members(self, env: Environment, number: int, limit: int, waiter: Waiter) -> bool:
        """Ask for the first page of a group's members, of up to ROWS: `read_first_members.lua`.

        Only where the environment has one partition.
        """
        group, rows = b"%d" % number, b"%d" % limit
        tail = b"$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(group), group, len(rows), rows)
        return self._ask("read_first_members", env.partitions[0], 2, tail, waiter)

    def read_groups_of(self, env: Environment, id16: bytes, waiter: Waiter) -> bool:
        """Ask for all groups of a profile, if it is in few; `read_groups_of.lua` replies.

        Counts are those of the profile's partition.
        """
        mixed = env.mixer.mix(id16)
        return self._ask("read_groups_of", env.home(mixed), 2, _FEW % mixed, waiter)

    def forgotten(self) -> None:
        """Note that a server has forgotten a script: each is sent with its text once more."""
        self._beginnings.clear()

    def _ask(self, name: str, tag: bytes, count: int, tail: bytes, waiter: Waiter) -> bool:
        link = self._connection.link_to(tag)
        if link is None:
            return False
        # PERF: 0.5 us, against 1.5 us to pack the whole command anew.
        told, beginning = self._beginnings.get((name, tag), _NONE)
        if told is not link:
            beginning = self._begin(link, name, tag, count)
        link.hand(beginning + tail, waiter)
        return True

    def _begin(self, link: Link, name: str, tag: bytes, count: int) -> bytes:
        """Pack what is the same for all profiles of a partition: this once with the script."""
        declared = [*(keys.key(tag, kind) for kind in _KINDS[name]), keys.none(tag)]
        script = scripts.load(name)
        made = [
            b"*%d\r\n%b" % (3 + len(declared) + count, command.partition(b"\r\n")[2])
            for command in (
                packed(("EVAL", script.text, len(declared), *declared)),
                packed(("EVALSHA", script.sha, len(declared), *declared)),
            )
        ]
        if len(self._beginnings) >= BEGINNINGS:
            self._beginnings.clear()
        self._beginnings[name, tag] = link, made[1]
        return made[0]
