"""`belong import`: lines to applications with their groups, profiles and memberships.

What is there stays. A definition or group of the same id keeps its document, a membership its time;
of a profile only what is missing is filled in, and of an attribute the later time wins. What
contradicts what is there (an identity or custom id that somebody else has, a definition for which
there is no room) is left out, reported with its line, and counted. A line that is no record ends
the import; what was done stays.

What follows from definitions and rule trees is not in the file. They are in force before any
profile is there, so that none is forgotten; when all are, a job is queued that groups them. A group
that is dynamic here takes no members from a file, whatever it was where that was written.

Everything can be repeated. The place in a file is kept in `<file>.progress`, always one that was
reached some seconds ago: a killed store may have lost the last two, and going over them again is
harmless. Before that place the file has to be what it was, which is checked; after it, it may be
mended.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import stat
import time
from collections import deque
from contextlib import aclosing
from typing import IO, TYPE_CHECKING

import msgspec

from service.environment import Settings
from service.errors import BelongError, Conflict, Invalid, Unusable
from service.transfer import (
    LONGEST_LINE,
    ApplicationRecord,
    EndRecord,
    decode,
    decode_heading,
    mark,
    read_place,
    write_place,
)
from service.transfer.merging import Merger, Segment

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from service.environment import Application
    from service.store import Store
    from service.transfer import AnyRecord

LAG_SECONDS = 3.0
"""How old the place is that is kept: older than what a killed store may have lost."""
PLACE_SECONDS = 1.0
"""How often it is kept."""
LINES = 20_000
"""Lines that are brought in together."""
BYTES = 4 * 2**20
"""Bytes of lines after which they are brought in, though there are fewer."""
BLOCK = 2**20


class Read(msgspec.Struct):
    """How many records of each kind were brought in, and what contradicted what is there."""

    applications: int = 0
    definitions: int = 0
    groups: int = 0
    profiles: int = 0
    memberships: int = 0
    conflicts: int = 0


class Place(msgspec.Struct, kw_only=True):
    """Where an import is: the bytes and lines behind it, what they were, whose lines come next."""

    offset: int
    line: int
    digest: str
    application: str | None
    ends: bool
    read: Read


class Progress(msgspec.Struct, kw_only=True):
    """What `<file>.progress` holds: the place, and the marks of the applications so far.

    `renamed` is the client id that the application of the file is imported under, where that is
    another one.
    """

    applications: dict[str, str]
    place: Place
    renamed: str | None = None


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to import.

    `application`: another client id for the one application of the file. `partitions`: of an
    application that is created. `merge`: into one that has groups or profiles, too.
    """

    application: str | None = None
    partitions: int | None = None
    merge: bool = False


async def import_file(
    store: Store,
    path: Path,
    options: Options,
    progress: Callable[[int, int], None],
    report: Callable[[str], None],
) -> Read:
    """Import a file, or go on with it.

    `progress` is told bytes, `report` a sentence for each conflict. Invalid names the line that is
    wrong; Conflict: an application is not empty. Unusable: what the progress file says does not
    fit, or another import is at the file.
    """
    with path.open("rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            return await import_stream(store, file, options, report)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unusable(f"Another import is reading {path}.") from None
        kept = path.with_name(path.name + ".progress")
        run = _Import(store, options, report, kept)
        earlier = read_place(kept, Progress)
        if earlier is not None:
            await run.resume(earlier, path, file)
        source = _Source(file, piped=False)
        await run.run(source, lambda offset: progress(offset, max(about.st_size, offset)))
        kept.unlink(missing_ok=True)
    return run.read


async def import_stream(
    store: Store, stream: IO[bytes], options: Options, report: Callable[[str], None]
) -> Read:
    """Import from a stream, whose place cannot be kept."""
    run = _Import(store, options, report, None)
    await run.run(_Source(stream, piped=_is_piped(stream)), lambda _: None)
    return run.read


def _is_piped(stream: IO[bytes]) -> bool:
    """Whether it may let us wait: pipes, sockets, terminals; not files, nor /dev/null."""
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stream.isatty()


class _Source:
    """Whole lines of a file or pipe, in blocks; the last one may lack its line feed (`cut`)."""

    def __init__(self, stream: IO[bytes], *, piped: bool) -> None:
        self.cut = False
        self._stream = stream
        self._piped = piped

    async def blocks(self, line: int) -> AsyncGenerator[list[bytes], None]:
        """Read on. `line` is how many lines are behind, for the sentence about one too long."""
        rest = b""
        async with aclosing(self._read()) as data:
            async for block in data:
                lines = (rest + block).split(b"\n")
                rest = lines.pop()
                longest = max(map(len, lines), default=0)
                if max(longest, len(rest)) > LONGEST_LINE:
                    fine = [each for each in lines if len(each) <= LONGEST_LINE]
                    at = line + 1 + (len(fine) if longest <= LONGEST_LINE else _first_long(lines))
                    raise Invalid(f"line {at}: it is longer than {LONGEST_LINE:,} bytes.")
                if lines:
                    line += len(lines)
                    yield lines
        if rest:
            self.cut = True
            yield [rest]

    async def _read(self) -> AsyncGenerator[bytes, None]:
        if not self._piped:
            # A file answers at once; a thread for each block would cost more.
            while block := self._stream.read(BLOCK):
                yield block
                await asyncio.sleep(0)
            return
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=BLOCK)
        # A double, since the transport closes what it reads when that ends.
        double = os.fdopen(os.dup(self._stream.fileno()), "rb", buffering=0)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), double
        )
        try:
            while block := await reader.read(BLOCK):
                yield block
        finally:
            # A pipe or terminal is shared with whoever started us.
            os.set_blocking(self._stream.fileno(), True)
            transport.close()


def _not_empty(application: Application) -> Conflict:
    return Conflict(
        f"application {application.client_id} is not empty. Import into a new one, or use --merge:"
        f" then what is there stays."
    )


def _first_long(lines: list[bytes]) -> int:
    return next(at for at, each in enumerate(lines) if len(each) > LONGEST_LINE)


class _Import:
    """One run."""

    def __init__(
        self,
        store: Store,
        options: Options,
        report: Callable[[str], None],
        kept: Path | None,
    ) -> None:
        self.read = Read()
        self._store = store
        self._options = options
        self._report = report
        self._merger = Merger(store, self._conflict, merge=options.merge)
        self._kept = kept
        self._kept_at = time.monotonic()
        self._reached: deque[tuple[float, Place]] = deque()
        self._old = Place(offset=0, line=0, digest="", application=None, ends=False, read=Read())
        self._marks: dict[str, str] = {}
        self._application: Application | None = None
        self._ends = False
        self._ended = False
        self._offset = self._line = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._old.digest = self._digest.hexdigest()
        self._batch: list[Segment] = []
        self._lines = self._bytes = 0
        self._bringing: asyncio.Task[None] | None = None

    async def resume(self, earlier: Progress, path: Path, file: IO[bytes]) -> None:
        """Go to where an earlier run was, if file, store and client id are what they were."""
        if earlier.renamed != self._options.application:
            asked = f"with --application {earlier.renamed}" if earlier.renamed else "without it"
            raise Unusable(
                f"{self._kept} is of an unfinished import under another --application: go on"
                f" {asked}, or delete it to begin again."
            )
        for client_id, known in earlier.applications.items():
            found = await self._store.registry.application(client_id)
            if found is None or mark(found.secret) != known:
                raise Unusable(
                    f"{self._kept} is of an unfinished import into another store, or application"
                    f" {client_id} was made anew since: delete it to begin again."
                )
        place = earlier.place
        left = place.offset
        while left:
            block = file.read(min(left, BLOCK))
            self._digest.update(block)
            left -= len(block)
            if not block:
                break
        if left or self._digest.hexdigest() != place.digest:
            raise Unusable(
                f"{path} was changed before line {place.line + 1}, up to where an unfinished import"
                f" has read it. Delete {self._kept} and use --merge to go over all of it."
            )
        self._marks = earlier.applications
        self._report(f"going on from line {place.line + 1:,}")
        self._old = place
        self._offset, self._line, self._ends = place.offset, place.line, place.ends
        self.read = msgspec.structs.replace(place.read)
        if place.application is not None:
            self._application = await self._store.registry.application(place.application)

    async def run(self, source: _Source, progress: Callable[[int], None]) -> None:
        """Bring in all lines that are left. While some are brought in the next are read."""
        try:
            async with aclosing(source.blocks(self._line)) as blocks:
                async for lines in blocks:
                    for line in lines:
                        await self._take(line, source)
                    progress(self._offset)
                    await asyncio.sleep(0)
        except BelongError:
            # What stands before the wrong line is brought in; a failure there comes first.
            await self._settle()
            raise
        except BaseException:
            if self._bringing is not None:
                self._bringing.cancel()
            raise
        await self._settle()
        self._check_end()
        await self._follow()

    async def _take(self, line: bytes, source: _Source) -> None:
        """Read one line."""
        record = self._decoded(line, source)
        if isinstance(record, ApplicationRecord):
            await self._settle()
            await self._begin(record)
        self._behind(line, source)
        if record is not None and not isinstance(record, ApplicationRecord | EndRecord):
            if not (self._batch and self._batch[-1].takes(record)):
                self._batch.append(Segment.of(record))
            self._batch[-1].add(self._line, record)
            self._lines += 1
            self._bytes += len(line)
            if self._lines >= LINES or self._bytes >= BYTES:
                await self._bring()

    async def _bring(self) -> None:
        """Begin to bring in what was read, as soon as what was read before is in."""
        if self._bringing is not None:
            await self._bringing
        batch, place = self._batch, self._here()
        self._batch, self._lines, self._bytes = [], 0, 0
        self._bringing = asyncio.create_task(self._bring_all(batch, place))

    async def _follow(self) -> None:
        """Queue jobs that group the users of what was imported, and say so.

        Members of dynamic groups follow what is brought in; the job finds those who were there.
        """
        for client_id in self._marks:
            application = await self._store.registry.application(client_id)
            if application is None:
                continue
            definitions = self._store.definitions
            whole = bool(await definitions.list_definitions(application))
            rules = await definitions.rules(application.production)
            if whole or rules.dynamic:
                job = await self._store.jobs.queue_job(application, whole=whole)
                does = "groups its users" if whole else "finds the members of its dynamic groups"
                self._report(
                    f"application {client_id}: job {job.id} {does}, as soon as a worker runs"
                )

    async def _settle(self) -> None:
        """Bring in all that was read."""
        await self._bring()
        if self._bringing is not None:
            await self._bringing

    def _decoded(self, line: bytes, source: _Source) -> AnyRecord | None:
        """Read a line, and see whether it may stand here. None: it is blank, or the first."""
        number = self._line + 1
        if number == 1:
            decode_heading(line)
            return None
        if not line.strip():
            return None
        record = decode(line, number, whole=not source.cut)
        if self._ended:
            raise Invalid(f"line {number}: nothing may follow the end record.")
        if isinstance(record, EndRecord):
            self._ended = True
        elif self._application is None and not isinstance(record, ApplicationRecord):
            raise Invalid(f"line {number}: an application record has to stand before it.")
        return record

    def _behind(self, line: bytes, source: _Source) -> None:
        raw = line if source.cut else line + b"\n"
        self._digest.update(raw)
        self._offset += len(raw)
        self._line += 1

    def _check_end(self) -> None:
        if self._line == 0:
            raise Invalid("The file is empty.")
        if self._ends and not self._ended:
            raise Invalid(
                f"line {self._line + 1}: the file ends without its end record, so it was cut off;"
                f" what it holds was imported."
            )

    # --- the place

    def _here(self) -> Place:
        return Place(
            offset=self._offset,
            line=self._line,
            digest=self._digest.hexdigest(),
            application=self._application.client_id if self._application else None,
            ends=self._ends,
            read=self.read,
        )

    def _reach(self, place: Place) -> None:
        """Remember a place that was reached, and keep the latest that is old enough."""
        now = time.monotonic()
        place.read = msgspec.structs.replace(self.read)
        self._reached.append((now, place))
        while self._reached and now - self._reached[0][0] >= LAG_SECONDS:
            self._old = self._reached.popleft()[1]
        if now - self._kept_at >= PLACE_SECONDS:
            self._keep()

    def _keep(self) -> None:
        if self._kept is not None and self._marks:
            write_place(
                self._kept,
                Progress(
                    applications=self._marks,
                    place=self._old,
                    renamed=self._options.application,
                ),
            )
        self._kept_at = time.monotonic()

    # --- what is brought in

    async def _begin(self, record: ApplicationRecord) -> None:
        """Find or create the application whose records follow."""
        line = self._line + 1
        client_id = self._options.application or record.client_id
        if self._options.application is not None and self._application is not None:
            raise Invalid(
                f"line {line}: the file holds another application, {record.client_id};"
                f" --application is for files with one."
            )
        found = await self._store.registry.application(client_id)
        try:
            if found is None:
                found = await self._create(client_id, record)
            elif client_id not in self._marks and not self._options.merge:
                found = await self._fill(found, record)
        except (Conflict, Invalid) as ex:
            raise type(ex)(f"line {line}: {ex}") from None
        self._application = found
        self._ends = self._ends or record.ends
        self.read.applications += 1
        if client_id not in self._marks:
            self._marks = self._marks | {client_id: mark(found.secret)}
            # Before anything is in it: whoever goes on has to know that it was empty.
            self._keep()

    async def _create(self, client_id: str, record: ApplicationRecord) -> Application:
        registry = self._store.registry
        workspace: int | None = record.workspace_id
        if any(each.workspace_id == workspace for each in await registry.list_applications()):
            workspace = None
        await registry.create_application(
            client_id,
            workspace_id=workspace,
            name=record.name,
            partitions=self._options.partitions or record.partitions,
        )
        settings = msgspec.convert(record.settings, Settings)
        made = await registry.update_application(client_id, **settings)
        if workspace is None:
            self._report(
                f"application {client_id}: workspace {record.workspace_id} is in use, it got"
                f" {made.workspace_id}"
            )
        return made

    async def _fill(self, found: Application, record: ApplicationRecord) -> Application:
        """Give an application that is empty the settings of the file. Conflict: it is not."""
        for environment in found.environments.values():
            if not await self._store.transfer.is_empty(environment):
                raise _not_empty(found)
        if await self._store.definitions.list_definitions(found):
            raise _not_empty(found)
        settings = msgspec.convert(record.settings | {"name": record.name}, Settings)
        filled = await self._store.registry.update_application(found.client_id, **settings)
        return await self._store.definitions.follow_settings(found.client_id) or filled

    async def _bring_all(self, batch: list[Segment], place: Place) -> None:
        """Bring in what was read; the place is then reached."""
        for segment in batch:
            if self._application is not None:
                await self._merger.bring(self._application, segment)
                self.read.definitions += len(segment.definitions)
                self.read.groups += len(segment.groups)
                self.read.profiles += len(segment.profiles)
                self.read.memberships += len(segment.memberships)
        self._reach(place)

    def _conflict(self, line: int, sentence: str) -> None:
        """Count what was left out; without a sentence it is like one that was reported before."""
        self.read.conflicts += 1
        if sentence:
            self._report(f"line {line}: {sentence}")
