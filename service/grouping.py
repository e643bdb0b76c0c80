"""What makes users a group: definitions, the rules that are in force, and instances.

A *definition* says "group users by this attribute and share those". All definitions of an
application together, with the settings that they follow, are its *rules*; their version is what
partitions know of them. All users with one value of a definition's source attribute are an
*instance*. Pure: no I/O.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from service.attributes import canonical_name

if TYPE_CHECKING:
    from collections.abc import Mapping

AGGREGATIONS = (
    "latest", "boolean_or", "sum", "average",
    "min", "max", "count", "count_distinct", "boolean_and", "unique_list",
)  # fmt: skip
"""How members' values become one. The first four are documented, the others are ours."""

_INHERITED = msgspec.json.Decoder(dict[str, str | list[str]])


WATCHED = 300
"""Names that a partition watches one by one: to tell it so many takes a script 1.5 ms."""


class GroupAttribute(msgspec.Struct, frozen=True):
    """An attribute that members of an instance share.

    `since` is the version of the rules with which it came, or got this type: what was inherited
    before is not shown.
    """

    id: str
    type: str
    since: int = 0


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """A group definition.

    `number` is the version of the rules with which it came, or got this source: instances belong to
    the number, so none outlives it. It is never given twice.
    """

    id: str
    description: str | None = None
    source_user_attribute: str
    attributes: tuple[GroupAttribute, ...]
    number: int
    created_at_us: int
    created_by: str
    modified_at_us: int
    modified_by: str

    @property
    def source(self) -> str:
        """The name under which the source attribute is stored."""
        return canonical_name(self.source_user_attribute)

    def inherited_name(self, attribute: str) -> str:
        """Give the name under which members have an attribute of the group."""
        return f"{self.id}:{attribute}"


class Ruled(msgspec.Struct, frozen=True, array_like=True):
    """A dynamic group: its number, and the version of the rules with which its rule tree came."""

    number: int
    version: int


class Rules(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """All definitions of an application, and what else decides what follows from facts.

    `version` 0 is that of an application that never had any. `limit` is how many users of an
    instance count; `weekly`, that definitions look at facts on Mondays, and not when they change.
    `dynamic` are the dynamic groups of production; their rule trees are kept with them. `before` is
    the version that these took the place of, -1 where that is not known: whoever was told one in
    between heard of rules that the directory has lost.
    """

    version: int = 0
    limit: int = 10
    weekly: bool = False
    definitions: tuple[Definition, ...] = ()
    dynamic: tuple[Ruled, ...] = ()
    before: int = -1

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The stored names of all attributes that any definition names, in order."""
        return tuple(
            sorted(
                {each.source for each in self.definitions}
                | {
                    canonical_name(attribute.id)
                    for each in self.definitions
                    for attribute in each.attributes
                }
            )
        )

    @property
    def watched(self) -> tuple[str, ...]:
        """The names whose change makes what follows from it outdated at once.

        The empty one alone, which no attribute has, stands for every name where they are many.
        """
        if self.weekly:
            return ()
        return self.names if len(self.names) <= WATCHED else ("",)

    @cached_property
    def by_number(self) -> dict[int, Definition]:
        """Definitions by their number."""
        return {each.number: each for each in self.definitions}

    def definition(self, definition_id: str) -> Definition | None:
        """Give the definition of an id; None where there is none."""
        return next((each for each in self.definitions if each.id == definition_id), None)

    @cached_property
    def _prefixes(self) -> tuple[str, ...]:
        return tuple(f"{each.id}:" for each in self.definitions)

    @cached_property
    def inherited_names(self) -> frozenset[str]:
        """The names of all that is inherited."""
        return frozenset(
            each.inherited_name(attribute.id)
            for each in self.definitions
            for attribute in each.attributes
        )

    def reserves(self, name: str) -> bool:
        """Tell whether an attribute of this name is inherited, so that no client may write it."""
        return bool(self._prefixes) and name.startswith(self._prefixes)


class Contribution(msgspec.Struct, frozen=True, kw_only=True):
    """What one user brings into an instance.

    `values`: stored name of an attribute -> when it was written, in us, and its value as stored
    (JSON: a text, a number, a truth value, null or a list of texts). What the user does not have is
    missing. `since_us` is since when the user has had the instance's value.
    """

    mixed: bytes
    seq: int
    since_us: int
    mpid: int | None
    values: dict[str, tuple[int, bytes]]


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """An instance as it is stored, at one version.

    `counted` are the contributions that count, in their order (`since_us`, mpid); `total` is how
    many there are. `formers` (mixed ids) counted since it was last told to all, and do no more.
    `rules` is the version of those that it follows.
    """

    id: bytes
    number: int
    value: str
    version: int
    rules: int = 0
    total: int
    counted: tuple[Contribution, ...]
    formers: tuple[bytes, ...] = ()
    stale: bool = False


def order_of(mpid: int | None, mixed: bytes) -> bytes:
    """Give what puts contributions of the same `since` in order: mpid, and those without one last.

    32 bytes, compared as such.
    """
    return (b"g" * 16 if mpid is None else b"%016x" % (mpid + 2**63)) + mixed


def shared_value(value: bytes | None) -> str | None:
    """Give the text of a source attribute that makes its user one of an instance.

    `value` is as stored; None: there is none. Null, the empty text and lists are shared by nobody.
    """
    if value is None or value[:1] == b"[" or value in (b"null", b'""'):
        return None
    if value[:1] == b'"':
        return msgspec.json.decode(value, type=str)
    return value.decode()


def inherited(rules: Rules, listed: Mapping[bytes, bytes]) -> dict[str, str | list[str]]:
    """Give what a profile inherits: the names that it is shown under, as written, and the values.

    `listed` is what its record keeps of the instances that it contributes to: id ->
    `<number> <version> <rules> <JSON>`, the JSON an object of attribute ids and values, or nothing
    while it has none. What another source, a deleted definition or an attribute of another type
    made is passed over. Of two instances of one definition, while its user moves, the one that was
    told last is shown.
    """
    latest: dict[int, tuple[int, bytes, int, bytes]] = {}
    for iid, held in listed.items():
        number, version, told, values = held.split(b" ", 3)
        if values:
            row = int(version), iid, int(told), values
            if row > latest.get(int(number), ()):
                latest[int(number)] = row
    shown: dict[str, str | list[str]] = {}
    for definition in rules.definitions:
        if definition.number in latest:
            _, _, told_by, encoded = latest[definition.number]
            decoded = _INHERITED.decode(encoded)
            for attribute in definition.attributes:
                value = decoded.get(attribute.id)
                if value is not None and told_by >= attribute.since:
                    shown[definition.inherited_name(attribute.id)] = value
    return shown
