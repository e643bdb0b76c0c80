"""What verify and repair share: the census of who owns which keys, units, and findings.

A *unit* is what is looked at, and mended, as one: a profile's memberships, a segment, a group's
document. A *finding* is one thing that is wrong with a unit. Looking reads through scripts, in
steps of a bounded size. A finding is only a suspicion at first: the store is in use meanwhile.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from service import ids, keys, rows, scripts
from service.environment import ApplicationDocument, Environment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from service.connection import Connection
    from service.groups import GroupDocument
    from service.rules import Rule
    from service.store import Store
    from service.verify.look_dynamic import Rulebook
    from service.verify.look_rules import Book

    Part = bytes | str | int

STEP = 200
"""Things that one script looks at."""

T = TypeVar("T")


class Unit(NamedTuple):
    """What is looked at as one: its kind, the tag below which it is, and its name there."""

    kind: str
    tag: bytes
    name: bytes = b""


class Finding(NamedTuple):
    """One thing wrong with a unit: what, about which part of it, and the sentence that says so."""

    unit: Unit
    what: str
    about: bytes
    text: str

    @property
    def same(self) -> tuple[Unit, str, bytes]:
        """What makes it the same finding when it is looked at again."""
        return self[:3]


class Place(NamedTuple):
    """Whose a tag is: an environment's, as its directory (no index) or one of its partitions."""

    env: Environment
    label: str
    partition: int | None


class Census:
    """Who owns which tags, as the registry says, and what a run has read since."""

    def __init__(self, store: Store) -> None:
        """Know nothing yet: `take` reads the registry."""
        self.store = store
        self.connection: Connection = store.connection
        self.documents: dict[int, ApplicationDocument] = {}
        self.places: dict[bytes, Place] = {}
        self.members: dict[tuple[bytes, bytes], int] = {}
        """Members seen in the segments of a group below a tag."""
        self.groups: dict[tuple[bytes, bytes], GroupDocument | None] = {}
        """Documents read lately, for indexes."""
        self.books: dict[bytes, Book] = {}
        """What is known of the rules of applications, by the tag of the directory that has them."""
        self.rulebooks: dict[bytes, Rulebook] = {}
        """The rules of their dynamic groups, likewise."""
        self.rules: dict[tuple[bytes, int], tuple[GroupDocument, Rule]] = {}
        """Rules made of documents, by the tag of the directory and the group's number."""
        self.foreign: dict[bytes, int] = {}
        """Keys below tags that nobody owns."""

    async def take(self) -> None:
        """Read the registry. A document that does not decode owns nothing."""
        held = await self.hash(keys.key(keys.REGISTRY, "applications"))
        self.documents = {}
        self.places = {}
        for number, raw in held.items():
            document = decoded(_APPLICATION, raw)
            if document is None or not number.isdigit():
                continue
            self.documents[int(number)] = document
            for name, each in document.environments.items():
                env = Environment(name, each, document)
                label = f"{document.client_id}/{name}"
                self.places[env.directory] = Place(env, label, None)
                for index, tag in enumerate(env.partitions):
                    self.places[tag] = Place(env, label, index)

    async def call(self, name: str, declared: Sequence[bytes], arguments: Sequence[Part]) -> Any:
        """Run a script as bulk work, which leaves room for everybody else; `none` is added."""
        tag = declared[0][: declared[0].index(b"}") + 1]
        return await self.connection.call(
            scripts.load(name), [*declared, keys.none(tag)], arguments, bulk=True
        )

    async def hash(self, key: bytes) -> dict[bytes, bytes]:
        """Read a whole hash of the registry, which is small."""
        flat = await self.connection.command(key, "HGETALL", key)
        return dict(zip(flat[::2], flat[1::2], strict=True))

    async def walk(self, key: bytes, command: str) -> AsyncIterator[list[bytes]]:
        """Walk a hash, set or sorted set of any size, as HSCAN, SSCAN and ZSCAN do it."""
        cursor = b"0"
        while True:
            cursor, *parts = await self.call("verify_walk", [key], [cursor, command])
            cursor = cursor if isinstance(cursor, bytes) else b"%d" % cursor
            # A small one comes whole, whatever was asked for.
            width = 1 if command == "SSCAN" else 2
            for part in in_steps(parts, STEP * width):
                yield list(part)
            if cursor == b"0":
                return

    def profile(self, tag: bytes, mixed: bytes) -> str:
        """Give a profile's id as its owner knows it."""
        if len(mixed) != ids.SIZE:
            return shown(mixed)
        return ids.text(self.places[tag].env.mixer.unmix(mixed))

    def forget(self) -> None:
        """Read directories again from now on."""
        self.groups.clear()
        self.books.clear()
        self.rulebooks.clear()

    def label(self, tag: bytes) -> str:
        """Name the environment of a tag: client id and name."""
        return self.places[tag].label


def decoded(decoder: msgspec.json.Decoder[T], raw: bytes | None) -> T | None:
    """Decode a document; None where it does not decode."""
    if raw is None:
        return None
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, ValueError, ArithmeticError, RecursionError):
        return None


def in_steps(parts: Sequence[T], size: int = STEP) -> Iterator[Sequence[T]]:
    """Cut a sequence into pieces of a size."""
    return rows.in_steps(parts, size)


def whole(raw: bytes | None) -> int | None:
    """Read a number that is written as we write them; None where it is none."""
    if raw is None or not raw.isdigit() or (raw[:1] == b"0" and raw != b"0"):
        return None
    return int(raw)


def shown(raw: bytes) -> str:
    """Write bytes into a sentence: escaped where they are no text, and never endless."""
    text = ascii(raw[:120])[1:]
    return text if len(raw) <= 120 else f"{text[:-1]}...'"


def numbered(raw: bytes) -> str:
    """Write what should be a group's number into a sentence."""
    return shown(raw) if whole(raw) is None else raw.decode()


def by_name(findings: list[Finding]) -> dict[bytes, list[Finding]]:
    """Sort findings by the names of their units."""
    found: dict[bytes, list[Finding]] = {}
    for each in sorted(findings):
        found.setdefault(each.unit.name, []).append(each)
    return found


def now_us() -> int:
    """Give the time in microseconds since 1970."""
    return time.time_ns() // 1000


_APPLICATION = msgspec.json.Decoder(ApplicationDocument)
