"""The near-cache: what one process remembers of directories, and when it must forget it.

Two things are kept, both bounded: group documents by number, for lists, and the number of a group's
id with whether it is dynamic, which never change while the group exists. Nothing here decides
whether a group is active: member scripts ask `state` in their own slot, so answers are right
whatever a cache holds.

Every change of a directory raises its version and is published. A message in sequence drops one
group; one out of sequence, a (re)subscription, a version that went backwards, that rose without a
message or that cannot be read drops all that is known of the directory. The version is read once a
second, which bounds how stale a name in a list can be. A fill that began before an invalidation is
thrown away.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from service import keys
from service.errors import BelongError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.connection import Connection
    from service.groups import Group

POLL_SECONDS = 1.0
DIRECTORIES = 1_000
GROUPS = 20_000
NUMBERS = 200_000
"""Bounds of one process: directories, and within each documents and numbers of ids."""

log = logging.getLogger(__name__)


class Fill:
    """One read of the directory under way: which groups changed since it began."""

    __slots__ = ("changed", "void")

    def __init__(self) -> None:
        """Nothing changed yet."""
        self.void = False
        self.changed: set[int] = set()

    def fits(self, number: int) -> bool:
        """Whether what was read of this group may be kept."""
        return not self.void and number not in self.changed


class Directory:
    """What is known of one directory. `version` is None until it was read once."""

    __slots__ = ("drops", "dynamic", "fills", "groups", "ids", "numbers", "rows", "tag", "version")

    def __init__(self, tag: bytes) -> None:
        """Know nothing."""
        self.drops = 0
        self.tag = tag
        self.version: int | None = None
        self.groups: dict[int, Group] = {}
        self.rows: dict[int, tuple[bytes, bytes]] = {}
        """Of groups that are known: their JSON in lists, which who shows them keeps here."""
        self.numbers: dict[bytes, int] = {}
        self.ids: dict[int, bytes] = {}
        self.dynamic: set[int] = set()
        """Which of the numbers known by an id are those of dynamic groups: none ever changes."""
        self.fills: set[Fill] = set()

    def forget(self, number: int) -> None:
        """Drop one group, and its place in every fill under way."""
        self._drop(number)
        self.dynamic.discard(number)
        known = self.ids.pop(number, None)
        if known is not None:
            self.numbers.pop(known, None)
        for fill in self.fills:
            fill.changed.add(number)

    def forget_all(self) -> None:
        """Drop everything, and void every fill under way."""
        if self.groups or self.numbers:
            self.drops += 1
        self.version = None
        self.groups.clear()
        self.rows.clear()
        self.numbers.clear()
        self.ids.clear()
        self.dynamic.clear()
        for fill in self.fills:
            fill.void = True

    def heard(self, number: int, version: int) -> None:
        """Give a change was published."""
        if self.version is not None and version <= self.version:
            # NOTE: already polled past it, or published before a drop; the group may still be old.
            self.forget(number)
        elif self.version is not None and version == self.version + 1:
            self.version = version
            self.forget(number)
        else:
            self.forget_all()

    def polled(self, version: int) -> None:
        """Give the version was read."""
        if version != self.version:
            # NOTE: at the first reading too: a change of what was read before it may be unheard.
            self.forget_all()
            self.version = version

    @contextmanager
    def filling(self) -> Iterator[Fill]:
        """Watch for changes while the directory is read."""
        fill = Fill()
        self.fills.add(fill)
        try:
            yield fill
        finally:
            self.fills.discard(fill)

    def keep_number(self, id16: bytes, number: int, *, dynamic: bool = False) -> None:
        """Remember the number of an id, and whether the group is a dynamic one."""
        if len(self.numbers) >= NUMBERS:
            oldest = self.numbers.pop(next(iter(self.numbers)))
            self.ids.pop(oldest, None)
            self.dynamic.discard(oldest)
        if dynamic:
            self.dynamic.add(number)
        self.numbers[id16] = number
        self.ids[number] = id16

    def keep_group(self, group: Group) -> None:
        """Remember a document."""
        self._drop(group.number)
        if len(self.groups) >= GROUPS:
            self._drop(next(iter(self.groups)))
        self.groups[group.number] = group

    def _drop(self, number: int) -> None:
        self.groups.pop(number, None)
        self.rows.pop(number, None)


class NearCache:
    """The directories that this process remembers."""

    def __init__(self, connection: Connection) -> None:
        """Know nothing; `listen` and `poll` keep it true."""
        self._connection = connection
        self._directories: dict[bytes, Directory] = {}
        self.hits = 0
        self.misses = 0
        """Documents and numbers that were wanted: known, and not. Whoever asks counts them."""
        self._drops = 0

    @property
    def size(self) -> int:
        """How many documents and numbers are remembered."""
        return sum(len(each.groups) + len(each.numbers) for each in self._directories.values())

    @property
    def drops(self) -> int:
        """How often all that was known of a directory was dropped."""
        return self._drops + sum(each.drops for each in self._directories.values())

    def directory(self, tag: bytes) -> Directory:
        """Give what is known below a directory's tag."""
        found = self._directories.get(tag)
        if found is None:
            if len(self._directories) >= DIRECTORIES:
                oldest = self._directories.pop(next(iter(self._directories)))
                oldest.forget_all()
                self._drops += oldest.drops
            found = self._directories[tag] = Directory(tag)
        return found

    def listen(self) -> None:
        """Hear published changes from now on."""
        self._connection.subscribe(keys.CHANGES, self._heard, self._forget_all)

    async def poll(self) -> None:
        """Read the versions once a second, for as long as the task runs."""
        while True:
            known = list(self._directories.values())
            # NOTE: whatever one reading raises, it ends neither this loop nor the other readings.
            read = await asyncio.gather(*map(self._poll, known), return_exceptions=True)
            failed = [result for result in read if result is not None]
            for each, result in zip(known, read, strict=True):
                if result is not None:
                    each.forget_all()
            if failed:
                log.error("versions of %d directories not read", len(failed), exc_info=failed[0])
            await asyncio.sleep(POLL_SECONDS)

    async def _poll(self, directory: Directory) -> None:
        key = keys.key(directory.tag, "version")
        before = directory.version
        try:
            held = await self._connection.command(key, "GET", key)
        except BelongError as ex:
            log.debug("version of %r not read: %s", directory.tag, ex)
            directory.forget_all()
            return
        version = int(held or 0)
        if directory.version == before or directory.version is None or version > directory.version:
            directory.polled(version)

    def _heard(self, message: bytes) -> None:
        environment, number, version = message.split()
        found = self._directories.get(keys.directory(int(environment)))
        if found is not None:
            found.heard(int(number), int(version))

    def _forget_all(self) -> None:
        for each in self._directories.values():
            each.forget_all()
