"""What a group is in the store: its document, and the indexes it stands in.

Pure: structs and their rules. `store_groups.py` reads and changes them.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from service import keys
from service.rules import Tree

DYNAMIC_TYPE = "dynamic"


class NotStatic(enum.Enum):
    """What stands in the place of a number where only a static group will do."""

    DYNAMIC = "dynamic"


class Attribute(msgspec.Struct, frozen=True):
    """A key and a value, by which groups are found. Keys may repeat."""

    key: str
    value: str


class GroupDocument(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the directory keeps of a group. `id` is the UUID's text.

    A dynamic one has its rule tree as it is shown, the numbers of the static groups that the tree
    names by their ids, and the version of the application's rules with which it came. One that a
    query was saved as has that query.
    """

    id: str
    name: str
    is_active: bool
    description: str | None
    custom_id: str | None
    created_at_us: int
    attributes: tuple[Attribute, ...]
    membership_type: str
    created_by: str | None = None
    modified_by: str | None = None
    rule_tree: Any = None
    leaf_groups: dict[str, int] = {}
    rules_version: int = 0
    saved_query: Any = None

    @property
    def is_dynamic(self) -> bool:
        """Whether members follow a rule tree."""
        return self.membership_type == DYNAMIC_TYPE


class Group(GroupDocument, frozen=True, kw_only=True):
    """A group as read: its document, its number and the version of the document."""

    number: int
    version: int


class NewGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A group to create. Without `id` a new one is drawn; without `created_at_us` it is now.

    A dynamic one has a `rule_tree`, and no other has. `saved_query` is the query whose answer is to
    become the members of a static one.
    """

    name: str
    is_active: bool = True
    description: str | None = None
    attributes: tuple[Attribute, ...] = ()
    custom_id: str | None = None
    id: str | None = None
    membership_type: str = "static"
    created_at_us: int | None = None
    created_by: str | None = None
    modified_by: str | None = None
    rule_tree: Tree | None = None
    saved_query: Any = None


class GroupChanges(msgspec.Struct, frozen=True, kw_only=True):
    """What to change of a group; UNSET stays as it is.

    `attributes` replaces the list, `rule_tree` the tree of a dynamic group.
    """

    name: str | UnsetType = UNSET
    is_active: bool | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    attributes: tuple[Attribute, ...] | UnsetType = UNSET
    custom_id: str | UnsetType | None = UNSET
    modified_by: str | UnsetType | None = UNSET
    rule_tree: Tree | UnsetType = UNSET


class GroupQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which groups a list holds: all conditions must match.

    `attributes` are (key, value) pairs; a value of None asks for the presence of the key.
    """

    attributes: tuple[tuple[str, str | None], ...] = ()
    name: str | None = None
    custom_id: str | None = None
    membership_type: str | None = None
    descending: bool = False
    include_inactive: bool = False


_DOCUMENT = msgspec.json.Decoder(GroupDocument)
_ENCODER = msgspec.json.Encoder()


def decode(number: int, raw: bytes, version: bytes) -> Group:
    """Give the group of a stored document."""
    return as_group(_DOCUMENT.decode(raw), number, int(version))


def encode(document: GroupDocument) -> bytes:
    """Give what is stored of a group."""
    return _ENCODER.encode(document)


def encode_tree(tree: object) -> bytes:
    """Give what is stored of a rule tree."""
    return _ENCODER.encode(tree)


def as_group(document: GroupDocument, number: int, version: int) -> Group:
    """Give the group of a document under its number, in this version."""
    held = {name: getattr(document, name) for name in GroupDocument.__struct_fields__}
    return Group(**held, number=number, version=version)


def group_indexes(tag: bytes, document: GroupDocument) -> set[bytes]:
    """Give every index that a group stands in."""
    return keys.group_indexes(
        tag,
        name=document.name,
        membership_type=document.membership_type,
        attributes=((each.key, each.value) for each in document.attributes),
        active=document.is_active,
    )


def query_indexes(tag: bytes, query: GroupQuery, *, active: bool) -> list[bytes]:
    """Give the indexes that a group must stand in to match (but for a custom id)."""
    found = [
        keys.attribute_index(tag, name, value, active=active) for name, value in query.attributes
    ]
    if query.name is not None:
        found.append(keys.name_index(tag, query.name, active=active))
    if query.membership_type is not None:
        found.append(keys.type_index(tag, query.membership_type, active=active))
    return list(dict.fromkeys(found)) or [keys.group_index(tag, active=active)]


def matches(group: Group, query: GroupQuery) -> bool:
    """Tell whether a group matches a query (but for a custom id)."""
    return (
        (group.is_active or query.include_inactive)
        and query.name in {None, group.name}
        and query.membership_type in {None, group.membership_type}
        and all(
            any(each.key == name and value in {None, each.value} for each in group.attributes)
            for name, value in query.attributes
        )
    )
