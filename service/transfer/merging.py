"""What becomes of imported records where something is there already.

What is there stays. A definition or group of the same id keeps its document, a membership its time;
of a profile only what is missing is filled in, and of an attribute the later time wins. What
contradicts what is there is left out and reported with its line. Everything here can be repeated.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from service import ids
from service.errors import Invalid
from service.grouping import Definition
from service.grouping import GroupAttribute as SharedAttribute
from service.groups import Attribute, Group, NewGroup
from service.rule_trees import written
from service.store_transfer import BEING_ERASED, DELETED, OVER_LIMIT, Arriving, Refused
from service.transfer import (
    DefinitionRecord,
    EnvironmentName,
    GroupRecord,
    MembershipRecord,
    ProfileRecord,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.environment import Application, Environment
    from service.store import Store

    Content = DefinitionRecord | GroupRecord | ProfileRecord | MembershipRecord
    Rows = list[tuple[int, MembershipRecord]]

NUMBERS = 200_000
"""Groups whose numbers are remembered."""
REMEMBERED_SECONDS = 3_600.0
"""How long they are. A day after a group was swept no partition knows that it was deleted, and
whoever still goes by its number makes members of nothing."""
_GONE = "there is no group {}: its record has to stand before its memberships."


class Segment(msgspec.Struct, kw_only=True):
    """Records with the numbers of their lines: definitions, or those of one environment.

    Groups are before all others.
    """

    environment: EnvironmentName | None
    definitions: list[tuple[int, DefinitionRecord]] = []
    groups: list[tuple[int, GroupRecord]] = []
    profiles: list[tuple[int, ProfileRecord]] = []
    memberships: list[tuple[int, MembershipRecord]] = []

    @classmethod
    def of(cls, record: Content) -> Segment:
        """Give an empty one that takes a record."""
        return cls(environment=_environment_of(record))

    def takes(self, record: Content) -> bool:
        """Whether a record may join: not a group behind the others, which may name it in vain."""
        if _environment_of(record) != self.environment:
            return False
        return not (isinstance(record, GroupRecord) and (self.profiles or self.memberships))

    def add(self, line: int, record: Content) -> None:
        """Take a record."""
        if isinstance(record, MembershipRecord):
            self.memberships.append((line, record))
        elif isinstance(record, ProfileRecord):
            self.profiles.append((line, record))
        elif isinstance(record, GroupRecord):
            self.groups.append((line, record))
        else:
            self.definitions.append((line, record))


def _environment_of(record: Content) -> EnvironmentName | None:
    return None if isinstance(record, DefinitionRecord) else record.environment


class Merger:
    """Brings records in. `conflict` is told line and sentence of what was left out."""

    def __init__(self, store: Store, conflict: Callable[[int, str], None], *, merge: bool) -> None:
        """Take the store. Without `merge` a group that is there has to be the one of the file."""
        self._store = store
        self._conflict = conflict
        self._merge = merge
        self._numbers: dict[bytes, int] = {}
        self._dynamic: set[bytes] = set()
        self._told: set[bytes] = set()
        self._numbers_of: Environment | None = None
        self._learned_at = 0.0

    async def bring(self, application: Application, segment: Segment) -> None:
        """Bring a segment in. Invalid, with the line: what may not be brought in."""
        if segment.environment is None:
            await self._bring_definitions(application, segment.definitions)
            return
        env = application.environments[segment.environment]
        await self._bring_groups(env, segment.groups)
        await self._bring_profiles(env, segment.profiles)
        await self._bring_members(env, segment.memberships)

    async def _bring_definitions(
        self, application: Application, rows: list[tuple[int, DefinitionRecord]]
    ) -> None:
        """Bring definitions in. Invalid, with the line: another one is there, or there is no room.

        With `merge` the one that is there stays, and one without room is left out.
        """
        held = await self._store.definitions.import_definitions(
            application, [_definition(record) for _, record in rows]
        )
        found = {each.id: each for each in held}
        for line, record in rows:
            there = found.get(record.id)
            if there is None:
                sentence = (
                    f"there is no room for definition {record.id}: the application is set to"
                    f" {application.definitions_per_workspace} with"
                    f" {application.attributes_per_definition} attributes each"
                )
                if not self._merge:
                    raise Invalid(f"line {line}: {sentence}.")
                self._conflict(line, sentence)
            elif not self._merge and not _same_definition(there, record):
                raise Invalid(
                    f"line {line}: there is a definition {record.id} already, and it is another"
                    f" one."
                )

    async def _bring_groups(self, env: Environment, rows: list[tuple[int, GroupRecord]]) -> None:
        """Create the groups that are not there."""
        records: dict[bytes, tuple[int, GroupRecord]] = {}
        again: list[tuple[bytes, int, GroupRecord]] = []
        for line, record in rows:
            id16 = _id16(record.id)
            if id16 in records:
                again.append((id16, line, record))
            else:
                records[id16] = (line, record)
        found = await self._store.transfer.find_numbers(env, b"".join(records))
        held = {
            id16: number for id16, number in zip(records, found, strict=True) if number is not None
        }
        new = [each for id16, each in records.items() if id16 not in held]
        made = await self._store.transfer.import_groups(env, [_new(record) for _, record in new])
        for (line, record), group in zip(new, made, strict=True):
            if isinstance(group, Refused):
                await self._bring_contested(env, line, record, group)
        for id16, number in held.items():
            await self._compare(env, number, *records[id16])
        for id16, line, record in again:
            [there] = await self._store.transfer.find_numbers(env, id16)
            if there is not None:
                await self._compare(env, there, line, record)

    async def _bring_contested(
        self, env: Environment, line: int, record: GroupRecord, refused: Refused
    ) -> None:
        """Create a group without the custom id that another one has, if that is what is wrong.

        Invalid, with the line: something else is, and with `merge` that is left out.
        """
        if refused.is_taken:
            new = msgspec.structs.replace(_new(record), custom_id=None)
            [made] = await self._store.transfer.import_groups(env, [new])
            if isinstance(made, Group):
                if record.custom_id is not None:
                    self._conflict(line, _custom_id_taken(record))
                return
            [there] = await self._store.transfer.find_numbers(env, _id16(record.id))
            if there is not None:
                # Somebody else has just created it.
                await self._compare(env, there, line, record)
                return
            refused = made
        sentence = f"group {record.id} cannot be created: {refused.sentence}"
        if not self._merge:
            raise Invalid(f"line {line}: {sentence}")
        self._conflict(line, sentence)

    async def _compare(self, env: Environment, number: int, line: int, record: GroupRecord) -> None:
        """Look at a group that was there: without --merge it has to be the one of the file."""
        if self._merge:
            return
        groups = await self._store.groups.read_groups(env, [number], cached=False)
        group = groups.get(number)
        if group is None or _same(group, record):
            return
        if group.custom_id is None and _same(
            group, msgspec.structs.replace(record, custom_id=None)
        ):
            self._conflict(line, _custom_id_taken(record))
            return
        raise Invalid(f"line {line}: there is a group {record.id} already, and it is another one.")

    async def _bring_profiles(
        self, env: Environment, rows: list[tuple[int, ProfileRecord]]
    ) -> None:
        """Bring in records, attributes, identities."""
        arriving = [_arriving(record) for _, record in rows]
        outcomes = await self._store.transfer.import_profiles(env, arriving)
        owners: list[tuple[int, str]] = []
        identities: list[tuple[bytes, str, str]] = []
        for (line, record), each, outcome in zip(rows, arriving, outcomes, strict=True):
            if outcome == BEING_ERASED:
                self._conflict(line, f"profile {record.id} is being erased")
                continue
            named = [(held.type, held.value) for held in record.identities]
            if record.mpid is not None and ("mpid", record.mpid) not in named:
                named.insert(0, ("mpid", record.mpid))
            if record.custom_id is not None:
                named.insert(0, ("customer_id", record.custom_id))
            identities += ((each.id, kind, value) for kind, value in named)
            owners += ((line, record.id) for _ in named)
        told = await self._store.transfer.import_identities(env, identities)
        for (line, id_), refused in zip(owners, told, strict=True):
            if refused is not None:
                self._conflict(line, f"profile {id_}: {refused}")

    async def _bring_members(
        self, env: Environment, rows: list[tuple[int, MembershipRecord]]
    ) -> None:
        """Bring in memberships, up to one that cannot be: that ends the import."""
        wrong: Invalid | None = None
        profiles, malformed = ids.pack([record.profile_id for _, record in rows])
        groups, malformed_groups = ids.pack([record.group_id for _, record in rows])
        if malformed or malformed_groups:
            at = min(malformed + malformed_groups)
            what = "profile_id" if at in malformed else "group_id"
            wrong = Invalid(f"line {rows[at][0]}: `{what}` has to be a UUID")
            # Up to there nothing is missing from what was packed.
            rows = rows[:at]
        wanted = ids.split(groups[: ids.SIZE * len(rows)])
        await self._learn(env, wanted)
        numbers = [number for id16 in wanted if (number := self._numbers.get(id16)) is not None]
        if len(numbers) < len(wanted):
            at = next(at for at, id16 in enumerate(wanted) if id16 not in self._numbers)
            wrong = Invalid(f"line {rows[at][0]}: {_GONE.format(rows[at][1].group_id)}")
            rows = rows[:at]
        packed, numbers, rows, refused = self._of_static(rows, wanted, profiles, numbers)
        wrong = refused or wrong
        outcomes = await self._store.transfer.import_members(
            env, packed, numbers, [record.joined_at_us for _, record in rows]
        )
        for (line, record), outcome in zip(rows, outcomes, strict=True):
            if outcome == DELETED:
                raise Invalid(f"line {line}: {_GONE.format(record.group_id)}")
            if outcome == BEING_ERASED:
                self._conflict(line, f"profile {record.profile_id} is being erased")
            elif outcome == OVER_LIMIT:
                self._conflict(line, f"profile {record.profile_id} is in too many groups")
        if wrong is not None:
            raise wrong

    def _of_static(
        self, rows: Rows, wanted: list[bytes], packed: bytes, numbers: list[int]
    ) -> tuple[bytes, list[int], Rows, Invalid | None]:
        """Leave out what is of groups that are dynamic here: their members follow rule trees.

        Gives packed profiles, numbers of groups, rows; without `merge` it ends at the first of such
        groups, and what is wrong there comes with it.
        """
        wanted, numbers = wanted[: len(rows)], numbers[: len(rows)]
        packed = packed[: ids.SIZE * len(rows)]
        if self._dynamic.isdisjoint(wanted):
            return packed, numbers, rows, None
        left: list[int] = []
        refused = None
        for at, id16 in enumerate(wanted):
            if id16 not in self._dynamic:
                left.append(at)
                continue
            line, record = rows[at]
            sentence = (
                f"group {record.group_id} is dynamic: its members follow its rule tree, and none is"
                f" written"
            )
            if not self._merge:
                refused = Invalid(f"line {line}: {sentence}.")
                break
            # A file may have millions of them: they are counted, and one is reported.
            self._conflict(line, "" if id16 in self._told else sentence)
            self._told.add(id16)
        profiles = ids.split(packed)
        return (
            b"".join(profiles[at] for at in left),
            [numbers[at] for at in left],
            [rows[at] for at in left],
            refused,
        )

    async def _learn(self, env: Environment, wanted: list[bytes]) -> None:
        """Find the numbers of groups that are not remembered."""
        now = time.monotonic()
        if self._numbers_of is not env or now - self._learned_at >= REMEMBERED_SECONDS:
            self._numbers.clear()
            self._dynamic.clear()
            self._told.clear()
            self._numbers_of, self._learned_at = env, now
        missing = [id16 for id16 in set(wanted) if id16 not in self._numbers]
        if len(self._numbers) + len(missing) > NUMBERS:
            self._numbers.clear()
            self._dynamic.clear()
            missing = list(set(wanted))
        found = await self._store.transfer.find_numbers(env, b"".join(missing))
        learned = {
            id16: number for id16, number in zip(missing, found, strict=True) if number is not None
        }
        dynamic = await self._store.transfer.find_dynamic(env, list(learned.values()))
        self._numbers |= learned
        self._dynamic.update(id16 for id16, number in learned.items() if number in dynamic)


def _definition(record: DefinitionRecord) -> Definition:
    """Give a definition as it arrives: number, and since when it has attributes, are not known."""
    return Definition(
        id=record.id,
        description=record.description,
        source_user_attribute=record.source_user_attribute,
        attributes=tuple(SharedAttribute(each.id, each.type) for each in record.attributes),
        number=0,
        created_at_us=record.created_at_us,
        created_by=record.created_by,
        modified_at_us=record.modified_at_us,
        modified_by=record.modified_by,
    )


def _same_definition(definition: Definition, record: DefinitionRecord) -> bool:
    attributes = tuple(SharedAttribute(each.id, each.type) for each in definition.attributes)
    return _definition(record) == msgspec.structs.replace(
        definition, number=0, attributes=attributes
    )


def _new(record: GroupRecord) -> NewGroup:
    return NewGroup(
        id=ids.text(_id16(record.id)),
        name=record.name,
        is_active=record.is_active,
        description=record.description,
        attributes=tuple(Attribute(each.key, each.value) for each in record.attributes),
        custom_id=record.custom_id,
        membership_type=record.membership_type,
        created_at_us=record.created_at_us,
        created_by=_given(record.created_by),
        modified_by=_given(record.modified_by),
        rule_tree=record.tree,
    )


def _given(author: str | UnsetType) -> str | None:
    return None if author is UNSET else author


_COMPARED = (
    "id", "name", "is_active", "description", "attributes", "custom_id", "membership_type",
    "created_at_us", "created_by",
)  # fmt: skip


def _same(group: Group, record: GroupRecord) -> bool:
    """Whether a group that is there is the one of a file, whoever changed it last."""
    new = _new(record)
    if any(getattr(group, name) != getattr(new, name) for name in _COMPARED):
        return False
    if new.rule_tree is None:
        return True
    leaves = {each: (ids.text(_id16(each)), 0) for each in new.rule_tree.groups}
    shown = new.rule_tree.bound(group.number, group.rules_version, leaves).shown
    return bytes(written(shown)) == bytes(written(group.rule_tree))


def _custom_id_taken(record: GroupRecord) -> str:
    return (
        f"custom id '{record.custom_id}' belongs to another group; group {record.id} was created"
        f" without it"
    )


def _id16(text: str) -> bytes:
    """Give the 16 bytes of an id that was looked at when its line was read."""
    return bytes.fromhex(text.replace("-", ""))


def _arriving(record: ProfileRecord) -> Arriving:
    fields: dict[str, str | int | None] = {
        "created_at": record.created_at_us,
        "nickname": record.nickname,
        "custom_data": record.custom_data,
    }
    return Arriving(
        _id16(record.id),
        [(name, value) for name, value in fields.items() if value is not None],
        [
            (each.name, each.time_us, each.since_us, bytes(each.value))
            if isinstance(each.value, msgspec.Raw) and isinstance(each.since_us, int)
            else (each.name, each.time_us, b"", b"")
            for each in record.attributes
        ],
    )
