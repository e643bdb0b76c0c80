"""`belong export`: applications with all they hold that is not derived, as lines.

What is there from the beginning to the end is exported exactly once. Of what is created, changed or
removed meanwhile each line is as it was at one moment between the two: a profile is read in one
step with all of its memberships (one with more than 300 in several), and so is each group.
Definitions and groups are read first; what is created after that is not exported, and neither are
memberships of it, unless a rule tree names it that is. A dynamic group is written after all groups
that its tree names; its members are not, since they follow from it.

A file is written as `<file>.part` beside `<file>.progress`, which says how far it is good; whoever
is killed goes on there. It becomes `<file>` when it is whole.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import os
import time
from typing import IO, TYPE_CHECKING, Protocol

import msgspec
from msgspec import UNSET

from service import ids, keys
from service.cuts import Cut
from service.errors import Unusable
from service.group_bodies import GroupAttribute
from service.groups import GroupQuery
from service.rule_trees import written
from service.transfer import (
    FORMAT,
    SETTINGS,
    ApplicationRecord,
    AttributeRecord,
    DefinitionRecord,
    EndRecord,
    GroupRecord,
    Heading,
    IdentityRecord,
    MembershipRecord,
    ProfileRecord,
    SharedAttributeRecord,
    decode,
    mark,
    read_place,
    sync_folder,
    write_place,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from service.environment import Application, Environment
    from service.grouping import Definition
    from service.groups import Group
    from service.store import Store
    from service.store_transfer import Known
    from service.transfer import EnvironmentName

PLACE_SECONDS = 1.0
"""How often what is written is forced to disk, and the place kept."""
GROUPS = 500
"""Groups that are read at a time."""
TRIES = 20
"""How often a dynamic group is read again whose tree names what is not there."""
BLOCK = 256 * 1024
"""Bytes after which lines are written, about."""
ENVIRONMENTS: tuple[EnvironmentName, ...] = ("production", "development")
_RECORD = {"nickname", "custom_id", "custom_data", "mpid", "created_at"}
_OWN = {"seq"}
"""Fields of a record that mean nothing elsewhere."""
_PAGE = 1_024


class Written(msgspec.Struct):
    """How many lines of each kind."""

    applications: int = 0
    definitions: int = 0
    groups: int = 0
    profiles: int = 0
    memberships: int = 0


class Place(msgspec.Struct, kw_only=True):
    """Where an export is: which application and environment, and what of it comes next.

    `partition` is None while groups are read, and `bound` the number of the last one; then it is
    the position in group 0, in hexadecimal. `section` is where the lines of the environment begin.
    """

    application: int = 0
    environment: int = 0
    partition: int | None = None
    bound: str = ""
    section: int = 0


class Progress(msgspec.Struct, kw_only=True):
    """What `<file>.progress` holds: whose data, how far the file is good, what comes next."""

    applications: dict[str, str]
    offset: int
    place: Place
    written: Written
    done: int


class Sink(Protocol):
    """Where lines go."""

    offset: int

    def write(self, lines: bytes) -> None:
        """Write whole lines."""

    def reached(self, place: Place, written: Written, done: int) -> None:
        """Keep the place, if that is due. `done` are profiles, for the progress bar."""


class StreamSink:
    """Standard output: what has gone is gone."""

    def __init__(self, stream: IO[bytes]) -> None:
        """Take the stream."""
        self.offset = 0
        self._stream = stream

    def write(self, lines: bytes) -> None:
        """Write whole lines."""
        self._stream.write(lines)
        self._stream.flush()
        self.offset += len(lines)

    def reached(self, place: Place, written: Written, done: int) -> None:
        """Keep nothing."""


class FileSink:
    """A file that can be gone on with. Open with `open`."""

    def __init__(self, path: Path, applications: dict[str, str]) -> None:
        """Take the file's name, and the marks of the applications by client id."""
        self.path = path
        self.offset = 0
        self.earlier: Progress | None = None
        self._applications = applications
        self._part = path.with_name(path.name + ".part")
        self._progress = path.with_name(path.name + ".progress")
        if path.is_dir():
            raise Unusable(f"{path} is a directory.")
        # Killed between giving the file its name and the end, an export leaves its place alone.
        self._begun = self._part.exists()
        descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT, 0o600)
        self._file = os.fdopen(descriptor, "r+b")
        try:
            self._begin()
        except BaseException:
            self._file.close()
            raise
        self._kept_at = time.monotonic()

    def _begin(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unusable(f"Another export is writing {self._part}.") from None
        if not self._is_named():
            raise Unusable(f"Another export has just finished {self.path}.")
        earlier = read_place(self._progress, Progress) if self._begun else None
        if earlier is not None:
            if list(earlier.applications.items()) != list(self._applications.items()):
                raise Unusable(
                    f"{self._progress} is of an unfinished export of other applications or another"
                    f" store: delete it to begin anew."
                )
            if self._file.seek(0, os.SEEK_END) < earlier.offset:
                raise Unusable(
                    f"{self._part} is shorter than {self._progress} says: delete both to begin"
                    f" anew."
                )
            self.earlier = earlier
            self.offset = earlier.offset
        self._file.truncate(self.offset)
        self._file.seek(self.offset)

    def _is_named(self) -> bool:
        """Whether the name still is of what was opened, and is locked only now."""
        try:
            return os.path.samestat(self._part.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def write(self, lines: bytes) -> None:
        """Write whole lines."""
        self._file.write(lines)
        self.offset += len(lines)

    def reached(self, place: Place, written: Written, done: int) -> None:
        """Keep the place once a second: first what it speaks of is forced to disk."""
        if time.monotonic() - self._kept_at < PLACE_SECONDS:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        write_place(
            self._progress,
            Progress(
                applications=self._applications,
                offset=self.offset,
                place=place,
                written=written,
                done=done,
            ),
        )
        self._kept_at = time.monotonic()

    def groups_since(self, offset: int) -> Iterator[bytes]:
        """Give ids of the static groups again that were written from there on, packed, in parts."""
        self._file.seek(offset)
        packed = bytearray()
        while self._file.tell() < self.offset:
            record = decode(self._file.readline(), 0)
            if not isinstance(record, GroupRecord):
                break
            if record.membership_type == "dynamic":
                continue
            packed += _id16(record.id)
            if len(packed) == GROUPS * ids.SIZE:
                yield bytes(packed)
                packed.clear()
        yield bytes(packed)
        self._file.seek(self.offset)

    def finish(self) -> None:
        """Give the file its name; nothing else is left."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._part.replace(self.path)
        sync_folder(self.path)
        self._progress.unlink(missing_ok=True)
        self._file.close()

    def close(self) -> None:
        """Leave what is there to be gone on with."""
        self._file.close()


class GroupIds:
    """Ids of the static groups that were exported, by number: 17 bytes each, in pages."""

    def __init__(self) -> None:
        """Know none."""
        self._pages: dict[int, bytearray] = {}

    def add(self, number: int, id16: bytes) -> None:
        """Remember one."""
        page, at = divmod(number, _PAGE)
        if page not in self._pages:
            self._pages[page] = bytearray(17 * _PAGE)
        self._pages[page][17 * at : 17 * at + 17] = b"\1" + id16

    def get(self, number: int) -> bytes | None:
        """Give the id of one; None: it was not exported."""
        page, at = divmod(number, _PAGE)
        held = self._pages.get(page)
        if held is None or not held[17 * at]:
            return None
        return bytes(held[17 * at + 1 : 17 * at + 17])


async def export_to_file(
    store: Store,
    applications: list[Application],
    path: Path,
    progress: Callable[[int, int], None],
) -> Written:
    """Export into a file, or go on with it. `progress` is told what is done, and about how much.

    Unusable: what is there cannot be gone on with, or another export is at it.
    """
    sink = FileSink(path, {each.client_id: mark(each.secret) for each in applications})
    try:
        run = _Export(store, applications, sink, progress)
        if sink.earlier is not None:
            run.written, run.done = sink.earlier.written, sink.earlier.done
            await run.run(sink.earlier.place, sink)
        else:
            await run.run(None, sink)
        sink.finish()
    finally:
        sink.close()
    return run.written


async def export_to_stream(
    store: Store,
    applications: list[Application],
    stream: IO[bytes],
    progress: Callable[[int, int], None],
) -> Written:
    """Export to a stream, which cannot be gone on with."""
    run = _Export(store, applications, StreamSink(stream), progress)
    await run.run(None, None)
    return run.written


class _Export:
    """One run."""

    def __init__(
        self,
        store: Store,
        applications: list[Application],
        sink: Sink,
        progress: Callable[[int, int], None],
    ) -> None:
        self.written = Written()
        self.done = 0
        self._store = store
        self._applications = applications
        self._sink = sink
        self._progress = progress
        self._lines = bytearray()
        self._encoder = msgspec.json.Encoder()
        self._total = 0

    async def run(self, earlier: Place | None, file: FileSink | None) -> None:
        """Write everything, or what is left from an earlier place on."""
        for application in self._applications:
            for environment in application.environments.values():
                self._total += await self._store.transfer.count_profiles(environment)
        place = earlier or Place()
        if earlier is None:
            self._put(Heading(format=FORMAT))
        while place.application < len(self._applications):
            application = self._applications[place.application]
            if earlier is None:
                await self._begin(application)
            while place.environment < len(ENVIRONMENTS):
                groups = GroupIds()
                environment = application.environments[ENVIRONMENTS[place.environment]]
                if earlier is None:
                    self._flush()
                    place.section = self._sink.offset
                elif file is not None:
                    for packed in file.groups_since(place.section):
                        await self._remember(environment, packed, groups)
                earlier = None
                await self._environment(environment, place, groups)
                place = Place(application=place.application, environment=place.environment + 1)
            place = Place(application=place.application + 1)
        self._put(EndRecord())
        self._flush()

    async def _begin(self, application: Application) -> None:
        """Write what stands before both environments."""
        self._put(_application(application))
        self.written.applications += 1
        for definition in await self._store.definitions.list_definitions(application):
            self._put(_definition(definition))
            self.written.definitions += 1

    async def _environment(self, env: Environment, place: Place, groups: GroupIds) -> None:
        if place.partition is None:
            async for page in self._groups(env, int(place.bound or 0)):
                for group in page:
                    await self._group(env, group, groups)
                    place.bound = str(group.number)
                self._flush()
                self._sink.reached(place, self.written, self.done)
            place.partition, place.bound = 0, ""
        text = functools.lru_cache(maxsize=65_536)(ids.text)
        for partition in range(place.partition, len(env.partitions)):
            async for bound, profiles in self._profiles(env, partition, bytes.fromhex(place.bound)):
                for known in profiles:
                    self._profile(env, known, groups, text)
                self.done += len(profiles)
                place.bound = bound.hex()
                self._progress(self.done, self._total)
                if not bound:
                    place.partition = partition + 1
                if len(self._lines) > BLOCK or not bound:
                    self._flush()
                    self._sink.reached(place, self.written, self.done)

    async def _group(self, env: Environment, group: Group, groups: GroupIds) -> None:
        """Write a group, behind those that its rule tree names; one that is written stays away."""
        for _ in range(TRIES):
            if groups.get(group.number) is not None:
                return
            wanted = sorted(each for each in group.leaf_groups.values() if not groups.get(each))
            named = await self._store.groups.read_groups(env, wanted, cached=False)
            if len(named) == len(wanted) and not any(each.is_dynamic for each in named.values()):
                for each in (*(named[number] for number in wanted), group):
                    self._put(_group(env, each))
                    self.written.groups += 1
                    if not each.is_dynamic:
                        groups.add(each.number, _id16(each.id))
                return
            # Somebody gave it another tree, and deleted what this one names.
            again = await self._store.groups.read_groups(env, [group.number], cached=False)
            if group.number not in again:
                return
            group = again[group.number]
        raise Unusable(
            f"The rule tree of group {group.id} names a group that there is not: belong verify says"
            f" more."
        )

    async def _groups(self, env: Environment, after: int) -> AsyncIterator[list[Group]]:
        """Read all groups in the order of their creation, inactive ones too."""
        query = GroupQuery(include_inactive=True)
        cut = Cut(backward=False, key=b"%d" % after) if after else None
        while True:
            page = await self._store.groups.list_groups(env, query, cut, GROUPS)
            yield page.rows
            cut = page.last
            if cut is None:
                return

    async def _profiles(
        self, env: Environment, partition: int, bound: bytes
    ) -> AsyncIterator[tuple[bytes, list[Known]]]:
        """Read all profiles of a partition; the next step runs while one is written."""
        read = self._store.transfer.export_profiles
        step = asyncio.ensure_future(read(env, partition, bound))
        try:
            while True:
                bound, profiles = await step
                if not bound:
                    yield bound, profiles
                    return
                step = asyncio.ensure_future(read(env, partition, bound))
                # One turn, so that it leaves now.
                await asyncio.sleep(0)
                yield bound, profiles
        finally:
            step.cancel()

    def _profile(
        self,
        env: Environment,
        known: Known,
        groups: GroupIds,
        text: Callable[[bytes], str],
    ) -> None:
        environment = _environment_name(env)
        id_ = ids.text(known.id)
        if known.record or known.attributes:
            self._put(_profile(environment, id_, known))
            self.written.profiles += 1
        for number, joined_at_us in sorted(known.memberships.items()):
            group = groups.get(number)
            if group is not None:
                self._put(
                    MembershipRecord(
                        environment=environment,
                        group_id=text(group),
                        profile_id=id_,
                        joined_at_us=joined_at_us,
                    )
                )
                self.written.memberships += 1

    async def _remember(self, env: Environment, packed: bytes, groups: GroupIds) -> None:
        """Find the numbers again of groups that an earlier run has written."""
        numbers = await self._store.transfer.find_numbers(env, packed)
        for number, id16 in zip(numbers, ids.split(packed), strict=True):
            if number is not None:
                groups.add(number, id16)

    def _put(self, line: msgspec.Struct) -> None:
        self._encoder.encode_into(line, self._lines, -1)
        self._lines += b"\n"

    def _flush(self) -> None:
        self._sink.write(bytes(self._lines))
        self._lines.clear()


def _application(application: Application) -> ApplicationRecord:
    return ApplicationRecord(
        client_id=application.client_id,
        workspace_id=application.workspace_id,
        name=application.name,
        settings={name: getattr(application, name) for name in SETTINGS},
        partitions=len(application.production.partitions),
        ends=True,
    )


def _definition(definition: Definition) -> DefinitionRecord:
    return DefinitionRecord(
        id=definition.id,
        description=definition.description,
        source_user_attribute=definition.source_user_attribute,
        attributes=tuple(
            SharedAttributeRecord(each.id, each.type) for each in definition.attributes
        ),
        created_at_us=definition.created_at_us,
        created_by=definition.created_by,
        modified_at_us=definition.modified_at_us,
        modified_by=definition.modified_by,
    )


def _group(env: Environment, group: Group) -> GroupRecord:
    return GroupRecord(
        environment=_environment_name(env),
        id=group.id,
        name=group.name,
        is_active=group.is_active,
        created_at_us=group.created_at_us,
        description=group.description,
        custom_id=group.custom_id,
        attributes=[GroupAttribute(each.key, each.value) for each in group.attributes],
        membership_type="dynamic" if group.is_dynamic else "static",
        rule_tree=written(group.rule_tree) if group.is_dynamic else UNSET,
        created_by=UNSET if group.created_by is None else group.created_by,
        modified_by=UNSET if group.modified_by is None else group.modified_by,
    )


def _profile(environment: EnvironmentName, id_: str, known: Known) -> ProfileRecord:
    record = {field.decode(): value.decode() for field, value in known.record.items()}
    unknown = sorted(record.keys() - _RECORD - _OWN)
    if unknown or "created_at" not in record:
        wrong = f"has a field {unknown[0]}" if unknown else "has no time of creation"
        raise Unusable(f"Profile {id_} {wrong}, which this version does not export.")
    identities = sorted(keys.parse_identity(field) for field in known.identities)
    return ProfileRecord(
        environment=environment,
        id=id_,
        created_at_us=int(record["created_at"]),
        nickname=record.get("nickname"),
        custom_id=record.get("custom_id"),
        custom_data=record.get("custom_data"),
        mpid=record.get("mpid"),
        identities=tuple(
            IdentityRecord(kind, value) for kind, value in identities if kind != "customer_id"
        ),
        attributes=tuple(
            _attribute(name.decode(), *held.split(b" ", 2))
            for name, held in sorted(known.attributes.items())
        ),
    )


def _attribute(
    name: str, time_us: bytes, since_us: bytes | None = None, value: bytes | None = None
) -> AttributeRecord:
    if since_us is None or value is None:
        return AttributeRecord(name, int(time_us))
    return AttributeRecord(name, int(time_us), int(since_us), msgspec.Raw(value))


def _environment_name(env: Environment) -> EnvironmentName:
    return "production" if env.name == "production" else "development"


def _id16(text: str) -> bytes:
    parsed = ids.parse(text)
    if parsed is None:
        raise Unusable(f"{text} is no UUID, and yet a group's id: belong verify says more.")
    return parsed
