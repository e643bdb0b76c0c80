"""Looking at the registry, and at keys as such: their names, types and owners (invariant 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from service import keys
from service.findings import Finding, Unit, decoded, shown, whole
from service.registry import ApplicationDocument, Credential, SigningKey

if TYPE_CHECKING:
    from service.findings import Census

_APPLICATION = msgspec.json.Decoder(ApplicationDocument)
_CREDENTIAL = msgspec.json.Decoder(Credential)
_SIGNING_KEY = msgspec.json.Decoder(SigningKey)

_ZSETS = frozenset({
    "groups", "inactive", "group_names", "group_types", "attribute", "inactive_names",
    "inactive_types", "inactive_attribute", "intents", "deleting", "g", "reserved", "dirty", "due",
    "stale",
})  # fmt: skip
_SETS = frozenset({"erasing", "watch"})
_STRINGS = frozenset({"format", "version", "fence", "rules"})


def type_of(key: keys.Key) -> bytes | None:
    """The type that a key of the schema has; None where it may have any."""
    if key.kind in _ZSETS:
        return b"zset"
    if key.kind in _SETS:
        return b"set"
    if key.kind in _STRINGS or (key.kind == "numbers" and key.tag != b"belong"):
        return b"string"
    return None if key.kind in {"instance", "jobs"} else b"hash"


async def look_keys(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Keys below one of our tags, whole: each is one of the schema, and of its type."""
    found = []
    types = await census.call("verify_types", [names[0]], names)
    for name, held in zip(names, types, strict=True):
        if held == b"none":
            continue
        key = keys.parse(name)
        if key is None:
            text = f"{_label(census, tag)}: the key {shown(name)} is none of the schema"
            found.append(Finding(Unit("key", tag, name), "unknown", b"", text))
        elif type_of(key) not in {held, None}:
            text = f"{_label(census, tag)}: the key {shown(name)} is a {held.decode()}"
            found.append(Finding(Unit("key", tag, name), "type", b"", text))
    return found


async def look_foreign(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Keys below a tag that nobody owns, or without one: examples of them, whole."""
    await census.take()
    if tag in census.places:
        return []
    seen = census.foreign.get(tag, 0)
    where = f"below {shown(tag)}" if tag else "without a tag"
    return [
        Finding(
            Unit("foreign", tag, name),
            "foreign",
            b"",
            f"the key {shown(name)} belongs to no environment, one of {seen} {where}",
        )
        for name in names
        if await census.connection.command(name, "EXISTS", name)
    ]


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
    """The whole registry: documents decode, the maps agree with them, counters are not behind."""
    held = await Registered.read(census)
    found: list[Finding] = []

    def wrong(what: str, about: bytes, text: str) -> None:
        found.append(Finding(Unit("registry", tag, names[0]), what, about, f"registry: {text}"))

    if held.format != keys.FORMAT:
        wrong("format", b"", f"the storage format is {shown(held.format or b'')}")
    if held.version is not None and whole(held.version) is None:
        wrong("version", b"", f"the version is {shown(held.version)}")
    documents = held.documents()
    for number in held.applications.keys() - documents.keys():
        wrong("document", number, f"application {shown(number)} has a document that is none")
    for credential_id, raw in held.credentials.items():
        credential = decoded(_CREDENTIAL, raw)
        if credential is None or credential.id.encode() != credential_id:
            wrong("credential", credential_id, f"credential {shown(credential_id)} is none")
    for kid, raw in held.keys.items():
        signing = decoded(_SIGNING_KEY, raw)
        if signing is None or signing.kid.encode() != kid:
            wrong("key", kid, f"signing key {shown(kid)} is none")
    for what, said, meant in (
        ("client_ids", held.client_ids, client_ids(documents)),
        ("workspaces", held.workspaces, workspaces(documents)),
    ):
        for name in said.keys() | meant.keys():
            if said.get(name) != meant.get(name):
                now = shown(said[name]) if name in said else "none"
                wanted = shown(meant[name]) if name in meant else "none"
                text = f"{what} says application {now} of {shown(name)}, the documents {wanted}"
                wrong(what, name, text)
    for name, least in counters(documents).items():
        if (whole(held.numbers.get(name, b"0")) or 0) < least:
            wrong("counter", name, f"the counter {name.decode()} is behind {least}")
    _look_environments(documents, wrong)
    return found


def _look_environments(documents: dict[bytes, ApplicationDocument], wrong: Any) -> None:
    owners: dict[int, bytes] = {}
    for number, document in documents.items():
        for each in document.environments.values():
            if owners.setdefault(each.number, number) != number:
                text = f"environment {each.number} is of applications {shown(number)} and others"
                wrong("environment", number, text)
            begin = f"{each.number}."
            if len(set(each.tags)) != len(each.tags) or not all(
                tag.startswith(begin) for tag in each.tags
            ):
                text = f"environment {each.number} has the tags {', '.join(each.tags)}"
                wrong("tags", number, text)


def client_ids(documents: dict[bytes, ApplicationDocument]) -> dict[bytes, bytes]:
    """What the map of client ids should say."""
    return {document.client_id.encode(): number for number, document in documents.items()}


def workspaces(documents: dict[bytes, ApplicationDocument]) -> dict[bytes, bytes]:
    """What the map of workspace ids should say."""
    return {b"%d" % document.workspace_id: number for number, document in documents.items()}


def counters(documents: dict[bytes, ApplicationDocument]) -> dict[bytes, int]:
    """What the counters have to have reached."""
    environments = [
        each.number
        for document in documents.values()
        for each in document.environments.values()
    ]
    return {
        b"application": max(map(int, documents), default=0),
        b"environment": max(environments, default=0),
    }
