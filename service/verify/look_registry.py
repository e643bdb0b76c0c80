"""Looking at the registry, and at keys as such: their names, types and owners (invariant 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from service import keys
from service.environment import ApplicationDocument
from service.registry import Credential, SigningKey
from service.verify.findings import Finding, Unit, decoded, numbered, shown, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.verify.findings import Census

    Documents = dict[bytes, ApplicationDocument]
    Wrong = tuple[str, bytes, str]

_APPLICATION = msgspec.json.Decoder(ApplicationDocument)
_CREDENTIAL = msgspec.json.Decoder(Credential)
_SIGNING_KEY = msgspec.json.Decoder(SigningKey)

_ZSETS = frozenset({
    "groups", "inactive", "group_names", "group_types", "attribute", "inactive_names",
    "inactive_types", "inactive_attribute", "intents", "deleting", "g", "reserved", "dirty", "due",
    "stale", "ended", "contributors", "formers", "index", "requests", "unsettled",
})  # fmt: skip
_SETS = frozenset({"erasing", "watch", "named", "changed", "dynamic"})
_STRINGS = frozenset({"format", "version", "fence", "rules", "allowance", "installing", "weekly"})


def type_of(key: keys.Key) -> bytes:
    """Give the type that a key of the schema has."""
    if key.kind in _ZSETS:
        return b"zset"
    if key.kind in _SETS:
        return b"set"
    if key.kind in _STRINGS or (key.kind == "numbers" and key.tag != b"belong"):
        return b"string"
    return b"hash"


async def look_keys(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at keys below one of our tags, whole: each is of the schema, and of its type."""
    found = []
    types = await census.call("verify_types", [keys.key(tag, "version")], names)
    for name, held in zip(names, types, strict=True):
        if held == b"none":
            continue
        key = keys.parse(name)
        if key is None:
            text = f"{_label(census, tag)}: the key {shown(name)} is none of the schema"
            found.append(Finding(Unit("key", tag, name), "unknown", b"", text))
        elif type_of(key) != held:
            text = f"{_label(census, tag)}: the key {shown(name)} is a {held.decode()}"
            found.append(Finding(Unit("key", tag, name), "type", b"", text))
    return found


async def look_foreign(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at examples of keys below a tag that nobody owns, or without one.

    Those of a deleted application that expire by themselves may be there until they do.
    """
    await census.take()
    if tag in census.places:
        return []
    seen = max(1, census.foreign.get(tag, 0))
    where = f"below {shown(tag)}" if tag else "without a tag"
    return [
        Finding(
            Unit("foreign", tag, name),
            "foreign",
            b"",
            f"the key {shown(name)} belongs to no environment, one of {seen} {where}",
        )
        for name in names
        if await _lasts(census, name)
    ]


async def _lasts(census: Census, name: bytes) -> bool:
    """Whether a key is there, and not going by itself where its kind does."""
    lasts: int = await census.connection.command(name, "PTTL", name)
    key = keys.parse(name)
    return lasts == -1 or (lasts >= 0 and (key is None or key.kind not in keys.EXPIRING))


def _label(census: Census, tag: bytes) -> str:
    return "registry" if tag == keys.REGISTRY else census.label(tag)


class Registered(NamedTuple):
    """The registry as it is held."""

    format: bytes | None
    version: bytes | None
    applications: dict[bytes, bytes]
    client_ids: dict[bytes, bytes]
    workspaces: dict[bytes, bytes]
    credentials: dict[bytes, bytes]
    keys: dict[bytes, bytes]
    numbers: dict[bytes, bytes]

    @classmethod
    async def read(cls, census: Census) -> Registered:
        """Read all of it."""
        texts: list[Any] = []
        for kind in ("format", "version"):
            key = keys.key(keys.REGISTRY, kind)
            texts.append(await census.connection.command(key, "GET", key))
        hashes = [await census.hash(keys.key(keys.REGISTRY, kind)) for kind in cls._fields[2:]]
        return cls(*texts, *hashes)

    def documents(self) -> dict[bytes, ApplicationDocument]:
        """Application documents that decode, by number as written."""
        found = {number: decoded(_APPLICATION, raw) for number, raw in self.applications.items()}
        return {
            number: document
            for number, document in found.items()
            if document is not None and whole(number)
        }


async def look_registry(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at the registry: documents decode, maps agree with them, counters are not behind."""
    held = await Registered.read(census)
    documents = held.documents()
    wrong = [
        *_wrong_parts(held, documents),
        *_wrong_maps(held, documents),
        *_wrong_environments(documents),
    ]
    return [
        Finding(Unit("registry", tag, names[0]), what, about, f"registry: {text}")
        for what, about, text in wrong
    ]


def _wrong_parts(held: Registered, documents: Documents) -> Iterator[Wrong]:
    """Say what does not decode."""
    if held.format != keys.FORMAT:
        yield "format", b"", f"the storage format is {shown(held.format or b'')}"
    if held.version is not None and whole(held.version) is None:
        yield "version", b"", f"the version is {shown(held.version)}"
    for number in held.applications.keys() - documents.keys():
        yield "document", number, f"application {numbered(number)} has a document that is none"
    for credential_id, raw in held.credentials.items():
        credential = decoded(_CREDENTIAL, raw)
        if credential is None or credential.id.encode() != credential_id:
            yield "credential", credential_id, f"credential {shown(credential_id)} is none"
    for kid, raw in held.keys.items():
        signing = decoded(_SIGNING_KEY, raw)
        if signing is None or signing.kid.encode() != kid:
            yield "key", kid, f"signing key {shown(kid)} is none"


def _wrong_maps(held: Registered, documents: Documents) -> Iterator[Wrong]:
    """Say where the maps and counters differ from the documents."""
    for what, said, meant in (
        ("client_ids", held.client_ids, client_ids(documents)),
        ("workspaces", held.workspaces, workspaces(documents)),
    ):
        for name in said.keys() | meant.keys():
            if said.get(name) != meant.get(name):
                now = numbered(said[name]) if name in said else "none"
                wanted = numbered(meant[name]) if name in meant else "none"
                text = f"{what} says application {now} of {shown(name)}, the documents {wanted}"
                yield what, name, text
    for name, least in counters(documents).items():
        if (whole(held.numbers.get(name, b"0")) or 0) < least:
            yield "counter", name, f"the counter {name.decode()} is behind {least}"


def _wrong_environments(documents: Documents) -> Iterator[Wrong]:
    """Say which environments two applications have, or have tags that cannot be theirs."""
    owners: dict[int, bytes] = {}
    for number, document in documents.items():
        for each in document.environments.values():
            if owners.setdefault(each.number, number) != number:
                text = f"environment {each.number} is of applications {numbered(number)} and others"
                yield "environment", number, text
            begin = f"{each.number}."
            unlike = [tag for tag in each.tags if not tag.startswith(begin)]
            if unlike or len(set(each.tags)) != len(each.tags):
                text = f"environment {each.number} has the tags {', '.join(each.tags)}"
                yield "tags", number, text


def client_ids(documents: Documents) -> dict[bytes, bytes]:
    """Make the map of client ids from the documents."""
    return {document.client_id.encode(): number for number, document in documents.items()}


def workspaces(documents: Documents) -> dict[bytes, bytes]:
    """Make the map of workspace ids from the documents."""
    return {b"%d" % document.workspace_id: number for number, document in documents.items()}


def counters(documents: Documents) -> dict[bytes, int]:
    """Give what the counters have to have reached."""
    environments = [
        each.number for document in documents.values() for each in document.environments.values()
    ]
    return {
        b"application": max(map(int, documents), default=0),
        b"environment": max(environments, default=0),
    }
