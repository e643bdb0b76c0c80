"""The format of `belong export` and `belong import`, and the place in a file that both keep.

NDJSON: UTF-8, one JSON object a line, each line at most 16 MiB. The first is `{"format":1}`. Each
further one says first of which kind it is; what follows an `application` belongs to it, up to the
next one:

=============== ====================================================================================
kind            members
=============== ====================================================================================
``application`` client_id, workspace_id, name, settings (those of `belong app update`), partitions;
                ends: true where the last line of the file is an ``end``, as export writes it
``definition``  id, description, source_user_attribute, attributes [{id, type}], created_at_us,
                created_by, modified_at_us, modified_by; for both environments
``group``       environment, id, name, is_active, description, custom_id, created_at_us,
                attributes [{key, value}], membership_type, created_by, modified_by; a dynamic one:
                rule_tree, in which groups are named by id
``profile``     environment, id, created_at_us, nickname, custom_id, custom_data, mpid,
                identities [{type, value}] beyond the custom id,
                attributes [{name, time_us, since_us, value}]; a deleted one has name and time_us
``membership``  environment, group_id, profile_id, joined_at_us
``end``         nothing: a file without it, that should have it, was cut off
=============== ====================================================================================

Definitions stand before all groups and profiles of their application, groups in the order of their
creation and before their memberships; inactive ones too. Only a group that the rule tree of an
older one names stands out of that order, just before it: no tree is read before what it names. A
group that a query was saved as is one with the members that it has. A profile that has nothing but
memberships has no line of its own. Times are microseconds since 1970, exact. Memberships are those
that were written: what follows from rules and definitions is not exported, but derived where it is
imported. Nor are jobs, and batches that are remembered so that none is taken twice; nor secrets:
credentials, signing keys and secrets, the key that ids are mixed with.

An unknown kind, an unknown member or another format is refused, with the number of the line.
"""

from __future__ import annotations

import contextlib
import os
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service import ids, keys
from service.attributes import NAME_CHARACTERS, is_sound
from service.definitions import ID, DefinitionChangesBody, NewSharedAttribute
from service.environment import Settings
from service.errors import Invalid, Unprocessable, Unusable
from service.group_bodies import Attributes
from service.profile_groups import CustomId, Description, Name
from service.profiles import CustomData, Nickname
from service.rule_trees import read_tree

if TYPE_CHECKING:
    from pathlib import Path

    from service.rules import Tree

FORMAT = 1
LONGEST_LINE = 16 * 2**20
"""Bytes. Twice what a request may hold."""
Time = Annotated[int, Meta(ge=0, le=2**53 - 1)]
"""Microseconds since 1970; scripts compare them as doubles."""
Author = Annotated[str, Meta(max_length=1024)]
EnvironmentName = Literal["production", "development"]


class Heading(msgspec.Struct, forbid_unknown_fields=True):
    """The first line."""

    format: int


class Record(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"
):
    """Any line but the first."""


class ApplicationRecord(Record, frozen=True, kw_only=True, tag="application"):
    """An application. `settings` are members of `environment.Settings`."""

    client_id: str
    workspace_id: Annotated[int, Meta(ge=1, le=2**53 - 1)]
    name: Name
    settings: dict[str, Any] = {}
    partitions: int = 1
    ends: bool = False

    def __post_init__(self) -> None:
        """Hold the settings against their types."""
        for name in self.settings:
            if name not in SETTINGS:
                raise ValueError(f"there is no setting `{name}`")
        msgspec.convert(self.settings, Settings)


class SharedAttributeRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An attribute that the members of a group share, and how their values become one."""

    id: str
    type: str


class DefinitionRecord(Record, frozen=True, kw_only=True, tag="definition", omit_defaults=True):
    """A group definition, and who wrote it when."""

    id: str
    description: str | None = None
    source_user_attribute: str
    attributes: tuple[SharedAttributeRecord, ...] = ()
    created_at_us: Time
    created_by: Author
    modified_at_us: Time
    modified_by: Author

    def __post_init__(self) -> None:
        """Refuse what the API does not take."""
        if ID.fullmatch(self.id) is None:
            raise ValueError(f"`{self.id[:64]}` is no id of a definition: {ID.pattern}")
        body = DefinitionChangesBody(
            description=self.description,
            source_user_attribute=self.source_user_attribute,
            attributes=[NewSharedAttribute(each.id, each.type) for each in self.attributes],
        )
        try:
            body.changes()
        except Unprocessable as error:
            raise ValueError(str(error)) from None
        _no_nul(created_by=self.created_by, modified_by=self.modified_by)


class GroupRecord(Record, frozen=True, kw_only=True, tag="group"):
    """A group with its document; members of a static one follow as memberships."""

    environment: EnvironmentName
    id: str
    name: Name
    is_active: bool
    created_at_us: Time
    description: Description | None = None
    custom_id: CustomId | None = None
    attributes: Attributes = []
    membership_type: Literal["static", "dynamic"] = "static"
    rule_tree: msgspec.Raw | UnsetType = UNSET
    created_by: Author | UnsetType = UNSET
    modified_by: Author | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Refuse what no annotation can say."""
        _uuid(self.id)
        authors = {
            name: author
            for name in ("created_by", "modified_by")
            if isinstance(author := getattr(self, name), str)
        }
        _no_nul(name=self.name, description=self.description, custom_id=self.custom_id, **authors)
        if (self.membership_type == "dynamic") != (self.rule_tree is not UNSET):
            raise ValueError("a dynamic group has a `rule_tree`, and no other group has one")
        tree = self.tree
        if tree is not None and self.environment != "production":
            raise ValueError("dynamic groups are in production alone")
        for group, place in ({} if tree is None else tree.places).items():
            if ids.parse(group) is None:
                raise ValueError(f"groups are named by their UUIDs here, unlike `{place}`")

    @property
    def tree(self) -> Tree | None:
        """The rule tree; None of a static group."""
        if not isinstance(self.rule_tree, msgspec.Raw):
            return None
        try:
            return read_tree(self.rule_tree)
        except Invalid as error:
            raise ValueError(str(error)) from None


class IdentityRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What resolves to a profile."""

    type: str
    value: Annotated[str, Meta(min_length=1)]

    def __post_init__(self) -> None:
        """Refuse types that there are not, and what is no mpid."""
        if self.type not in keys.IDENTITY_CODES:
            raise ValueError(f"there is no identity type `{self.type}`")
        if self.type == "mpid":
            _mpid(self.value)


class AttributeRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An attribute of a profile, or when it was deleted."""

    name: str
    time_us: Time
    since_us: Time | UnsetType = UNSET
    value: msgspec.Raw | UnsetType = UNSET
    """As it is stored, byte by byte: text, number, truth value, null, list of texts."""

    def __post_init__(self) -> None:
        """Refuse half a value, and what no attribute is."""
        held = str(self.time_us)
        if self.value is not UNSET and self.since_us is not UNSET:
            held += f" {self.since_us} {bytes(self.value).decode()}"
        elif self.value is not UNSET or self.since_us is not UNSET:
            raise ValueError("`since_us` and `value` stand together, or both are left out")
        if not is_sound(self.name.encode(), held.encode()):
            raise ValueError(
                f"`{self.name[:100]}` is no attribute: a name of 1 to {NAME_CHARACTERS} characters"
                f" without NUL; a text, number, truth value, null or list of texts; and `since_us`"
                f" no later than `time_us`"
            )


class ProfileRecord(Record, frozen=True, kw_only=True, tag="profile", omit_defaults=True):
    """What is kept of a profile besides its memberships."""

    environment: EnvironmentName
    id: str
    created_at_us: Time
    nickname: Nickname | None = None
    custom_id: CustomId | None = None
    custom_data: CustomData | None = None
    mpid: str | None = None
    identities: tuple[IdentityRecord, ...] = ()
    attributes: tuple[AttributeRecord, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no annotation can say."""
        _uuid(self.id)
        _no_nul(nickname=self.nickname, custom_id=self.custom_id, custom_data=self.custom_data)
        if self.mpid is not None:
            _mpid(self.mpid)
        if any(each.type == "customer_id" for each in self.identities):
            raise ValueError("an identity `customer_id` is written as `custom_id`")


class MembershipRecord(Record, frozen=True, kw_only=True, tag="membership"):
    """One profile in one group. The ids are looked at in bulk."""

    environment: EnvironmentName
    group_id: str
    profile_id: str
    joined_at_us: Time


class EndRecord(Record, frozen=True, kw_only=True, tag="end"):
    """The last line."""


AnyRecord = (
    ApplicationRecord
    | DefinitionRecord
    | GroupRecord
    | ProfileRecord
    | MembershipRecord
    | EndRecord
)

SETTINGS = tuple(name for name in get_type_hints(Settings) if name != "name")
"""Settings of an application that are exported; its name is a member of its own."""

_HEADING = msgspec.json.Decoder(Heading)
_RECORD = msgspec.json.Decoder(AnyRecord)
_FOREIGN = {
    b"\xef\xbb\xbf": "it begins with a byte order mark; save it as UTF-8 without one",
    b"\xff\xfe": "it is UTF-16; save it as UTF-8",
    b"\xfe\xff": "it is UTF-16; save it as UTF-8",
    b"\x1f\x8b": "it is compressed by gzip; use gunzip -c FILE | belong import -",
    b"\x28\xb5\x2f\xfd": "it is compressed by zstd; use zstd -dc FILE | belong import -",
    b"PK": "it is a zip archive; unpack it first",
}


def decode_heading(line: bytes) -> None:
    """Read the first line. Invalid: it is none of this format."""
    for magic, said in _FOREIGN.items():
        if line.startswith(magic):
            raise Invalid(f"line 1: {said}.")
    try:
        heading = _HEADING.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Invalid(
            f'line 1: no export begins so; the first line has to be {{"format":{FORMAT}}}.'
        ) from None
    if heading.format != FORMAT:
        raise Invalid(
            f"line 1: the file has format {heading.format}, and this version reads {FORMAT}."
        )


def decode(line: bytes, number: int, *, whole: bool = True) -> AnyRecord:
    """Read a record. Invalid, with the number of the line: it is none.

    Where `whole` is false the file ends without a line feed.
    """
    try:
        record: AnyRecord = _RECORD.decode(line)
    except msgspec.ValidationError as error:
        reason = str(error)
    except msgspec.DecodeError as error:
        reason = f"no JSON: {str(error).removeprefix('JSON is malformed: ')}"
    except UnicodeDecodeError:
        reason = "no valid UTF-8"
    except RecursionError:
        reason = "nested too deeply"
    else:
        return record
    if not whole:
        raise Invalid(f"line {number}: the file is cut off in the middle of this line.")
    raise Invalid(f"line {number}: {reason}")


def mark(secret: bytes) -> str:
    """Give what tells an application's data from those of another of the same name."""
    return ids.derive(secret, b"transfer", 8).hex()


Kept = TypeVar("Kept", bound=msgspec.Struct)


def read_place(path: Path, kind: type[Kept]) -> Kept | None:
    """Read where an earlier run was; None where none was interrupted."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unusable(
            f"{path} does not say where an earlier run was ({error}): delete it to begin anew."
        ) from None


def write_place(path: Path, place: msgspec.Struct) -> None:
    """Write where this run is: all of it or nothing, on disk when this returns."""
    fresh = path.with_name(path.name + ".new")
    with private(fresh) as file:
        file.write(msgspec.json.encode(place))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_folder(path)


def private(path: Path) -> IO[bytes]:
    """Open a file for writing that nobody else may read: it holds what people are like."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def sync_folder(path: Path) -> None:
    """Make what became of a file's name outlive the machine."""
    # Some file systems cannot do it, and need not.
    with contextlib.suppress(OSError):
        folder = os.open(path.absolute().parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _uuid(text: str) -> None:
    if ids.parse(text) is None:
        raise ValueError("`id` has to be a UUID")


def _mpid(text: str) -> None:
    if ids.parse_mpid(f"mpid:{text}") is None:
        raise ValueError(f"`{text[:64]}` is no mpid: a signed number of 64 bits")


def _no_nul(**texts: str | None) -> None:
    for name, text in texts.items():
        if text is not None and "\0" in text:
            raise ValueError(f"NUL characters are not allowed in `{name}`")
