"""Verify and repair: whether the store's data contradicts itself, and how that is mended.

The whole store is walked key by key while it is in use; each key is looked at through scripts in
steps of a bounded size, together with what it has to agree with. What looks wrong is looked at
again, up to three times, and reported only if it stays wrong. Which invariants: those of the key
schema (every key parses and is somebody's), and those that the modules look_*.py name.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from service import keys
from service.errors import ScriptFailed
from service.verify.findings import STEP, Census, Finding, Unit, shown, whole
from service.verify.look_behind import (
    look_dirty,
    look_ended,
    look_indexed,
    look_requests,
    look_stale,
)
from service.verify.look_derived import look_facts, look_instances, look_listed
from service.verify.look_dynamic import (
    look_changed,
    look_due,
    look_dynamic,
    look_named,
    look_noted,
    look_ruled,
    look_trees,
    look_turnover,
    look_unsettled,
)
from service.verify.look_groups import (
    look_counters,
    look_documents,
    look_ids,
    look_indexes,
    look_intents,
    look_numbers,
)
from service.verify.look_members import look_fields, look_groups, look_memberships, look_segments
from service.verify.look_profiles import (
    look_attributes,
    look_buckets,
    look_erasing,
    look_listings,
    look_records,
    look_reserved,
)
from service.verify.look_registry import look_foreign, look_keys, look_registry
from service.verify.look_rules import look_rules
from service.verify.look_settled import look_recordless, look_subjects
from service.verify.mend import mend

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from service.store import Store

    Look = Callable[[Census, bytes, list[bytes]], Awaitable[list[Finding]]]
    Progress = Callable[[int, int], None]

PAUSES_SECONDS = (0.02, 0.1, 0.3)
"""How long something wrong is left alone before it is looked at again."""
ROUNDS = 6
"""How often repair looks and mends at most."""
EXAMPLES = 3
"""Keys below a tag of nobody that are remembered."""


class Report(msgspec.Struct):
    """What a run found wrong, and what it did about it, in sentences.

    `behind` are applications whose derived data was looked at only in itself: while a job waits or
    runs, and where users are grouped on Mondays, it need not follow from facts.
    """

    checked: int = 0
    problems: list[str] = msgspec.field(default_factory=list)
    mended: list[str] = msgspec.field(default_factory=list)
    behind: list[str] = msgspec.field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


LOOKS: dict[str, Look] = {
    "key": look_keys,
    "foreign": look_foreign,
    "registry": look_registry,
    "group": look_documents,
    "number": look_numbers,
    "index": look_indexes,
    "ids": look_ids,
    "intents": look_intents,
    "counter": look_counters,
    "m": look_memberships,
    "g": look_segments,
    "members": look_groups,
    "field": look_fields,
    "record": look_records,
    "listing": look_listings,
    "attributes": look_attributes,
    "bucket": look_buckets,
    "reserved": look_reserved,
    "erasing": look_erasing,
    "rules": look_rules,
    "facts": look_facts,
    "listed": look_listed,
    "instance": look_instances,
    "indexed": look_indexed,
    "dirty": look_dirty,
    "stale": look_stale,
    "ended": look_ended,
    "requests": look_requests,
    "tree": look_trees,
    "ruled": look_ruled,
    "named": look_named,
    "noted": look_noted,
    "dynamic": look_dynamic,
    "unsettled": look_unsettled,
    "changed": look_changed,
    "due": look_due,
    "turnover": look_turnover,
    "subject": look_subjects,
    "recordless": look_recordless,
}
"""How units of each kind are looked at."""
BY_NAME = {
    "group": "group", "m": "m", "g": "g", "profile": "record", "attributes": "attributes",
    "identities": "listing", "identity": "bucket", "instances": "listed", "instance": "instance",
    "contributors": "instance", "formers": "instance", "index": "indexed", "requests": "requests",
    "changed": "changed", "turnover": "turnover",
}  # fmt: skip
"""Kinds of keys that are units by what their name ends in -> kind of unit."""
BY_KEY = {
    "groups": "index", "inactive": "index", "group_names": "index", "group_types": "index",
    "attribute": "index", "inactive_names": "index", "inactive_types": "index",
    "inactive_attribute": "index", "group_ids": "ids", "group_custom_ids": "ids",
    "intents": "intents", "deleting": "intents", "numbers": "counter", "version": "counter",
    "reserved": "reserved", "erasing": "erasing", "dirty": "dirty", "stale": "stale",
    "ended": "ended", "unsettled": "unsettled", "due": "due", "dynamic": "dynamic",
}  # fmt: skip
"""Kinds of keys that are units by all that follows their tag -> kind of unit."""
FURTHER = {"attributes": "facts", "group": "tree", "profile": "subject", "m": "recordless"}
"""Kinds of keys that are units of another kind, too."""
OF_RULES = frozenset({"rules", "watch", "installing", "weekly", "jobs", "built", "named"})
"""Kinds of keys that are looked at together, once for an application."""


OF_PROFILES = frozenset({
    "m", "record", "listing", "attributes", "facts", "listed", "requests", "changed", "subject",
    "recordless",
})  # fmt: skip
"""Kinds of units that are named by a mixed id."""


async def verify(store: Store, progress: Progress | None = None) -> Report:
    """Check the whole store. `progress` is told keys looked at, and about how many there are."""
    found = await examine(store, progress)
    return Report(found.checked, _sentences(found.findings), behind=found.behind)


async def repair(store: Store, progress: Progress | None = None) -> Report:
    """Mend what `verify` finds, say what was done, and verify again. Safe at any time, and twice.

    One mended thing may bring another to light: it goes on until nothing is wrong, or what is
    wrong cannot be mended.
    """
    mended: list[str] = []
    for _ in range(ROUNDS):
        found = await examine(store, progress)
        if not found.findings:
            break
        census = Census(store)
        await census.take()
        done = await mend(census, found.findings)
        if not done:
            break
        mended += done
    else:
        found = await examine(store, progress)
    return Report(found.checked, _sentences(found.findings), mended, found.behind)


def _sentences(findings: list[Finding]) -> list[str]:
    return sorted({each.text for each in findings})


class Examined(NamedTuple):
    """How many keys were looked at, what is wrong with them, and which applications are behind."""

    checked: int
    findings: list[Finding]
    behind: list[str]


async def examine(store: Store, progress: Progress | None = None) -> Examined:
    """Walk the store, and look again at what is wrong."""
    census = Census(store)
    await census.take()
    total = await _total(census) if progress is not None else 0
    walk = _Walk(census)
    walk.await_look("registry", keys.REGISTRY, b"")
    async for batch in store.connection.scan():
        for key in batch:
            walk.meet(key)
        await walk.flush(STEP)
        if progress is not None:
            progress(walk.checked, max(total, walk.checked))
    await walk.flush(1)
    await walk.look_at_groups()
    await walk.look_at_rules()
    findings, behind = walk.findings, walk.behind
    for pause in PAUSES_SECONDS:
        if not findings:
            break
        await asyncio.sleep(pause)
        findings = await _again(census, findings)
    return Examined(walk.checked, findings, behind)


async def _again(census: Census, findings: list[Finding]) -> list[Finding]:
    """Of what was found wrong, what is so still."""
    census.forget()
    suspects: dict[tuple[str, bytes], set[bytes]] = {}
    for each in findings:
        suspects.setdefault((each.unit.kind, each.unit.tag), set()).add(each.unit.name)
    before = {each.same for each in findings}
    found: list[Finding] = []
    for (kind, tag), names in suspects.items():
        ordered = sorted(names)
        for start in range(0, len(ordered), STEP):
            found += await look(census, kind, tag, ordered[start : start + STEP])
    return [each for each in found if each.same in before]


async def look(census: Census, kind: str, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at units of a kind and tag. What no script can read is a finding of its own."""
    if tag not in census.places and kind not in {"key", "foreign", "registry"}:
        # The application was deleted meanwhile.
        return []
    try:
        return await LOOKS[kind](census, tag, names)
    except ScriptFailed as ex:
        if len(names) == 1:
            whose = "registry" if tag == keys.REGISTRY else census.label(tag)
            text = f"{whose}: {kind} {_named(census, kind, tag, names[0])} cannot be read: {ex}"
            return [Finding(Unit(kind, tag, names[0]), "unreadable", b"", text)]
    middle = len(names) // 2
    return [
        *await look(census, kind, tag, names[:middle]),
        *await look(census, kind, tag, names[middle:]),
    ]


def _named(census: Census, kind: str, tag: bytes, name: bytes) -> str:
    if kind in OF_PROFILES:
        return census.profile(tag, name)
    return name.hex() if kind == "instance" else shown(name)


async def _total(census: Census) -> int:
    """About how many keys there are: those of every node that some tag leads to."""
    if not census.connection.clustered:
        return int(await census.connection.command(keys.REGISTRY, "DBSIZE"))
    sizes = {}
    for tag in keys.partition_tags(0, 16 * census.connection.nodes):
        key = keys.partition(tag)
        node = await census.connection.command(key, "CLUSTER", "MYID")
        if node not in sizes:
            sizes[node] = int(await census.connection.command(key, "DBSIZE"))
    return sum(sizes.values())


class _Walk:
    """A walk through all keys: what is to be looked at, collected by kind and tag."""

    def __init__(self, census: Census) -> None:
        self.census = census
        self.checked = 0
        self.findings: list[Finding] = []
        self._waiting: dict[tuple[str, bytes], list[bytes]] = {}
        self._documents: dict[bytes, set[bytes]] = {}
        self._hashes: list[tuple[bytes, str]] = []
        self._homes: set[bytes] = set()

    @property
    def behind(self) -> list[str]:
        """Applications of which not everything that follows from facts was looked for."""
        return sorted(
            f"{self.census.label(home).partition('/')[0]}: {known.why_behind}"
            for home, known in self.census.books.items()
            if known.why_behind is not None and home in self.census.places
        )

    def meet(self, raw: bytes) -> None:
        """Take note of a key."""
        self.checked += 1
        tag = raw[: raw.find(b"}") + 1] if raw.startswith(b"{") else b""
        if tag in self.census.places or tag == keys.REGISTRY:
            self.await_look("key", tag, raw)
            return
        key = keys.parse(raw)
        if key is not None and key.kind in keys.EXPIRING:
            # What a deleted application left to go by itself is looked at, but is no example.
            self.await_look("foreign", tag, raw)
            return
        seen = self.census.foreign[tag] = self.census.foreign.get(tag, 0) + 1
        if seen <= EXAMPLES:
            self.await_look("foreign", tag, raw)

    def await_look(self, kind: str, tag: bytes, name: bytes) -> None:
        """Take note of a unit."""
        self._waiting.setdefault((kind, tag), []).append(name)

    async def flush(self, size: int) -> None:
        """Look at what is waiting, where it is so many: keys as such, then what they hold."""
        for kind, tag in list(self._waiting):
            if kind == "key":
                await self._flush(kind, tag, size)
        for kind, tag in list(self._waiting):
            await self._flush(kind, tag, size)

    async def _flush(self, kind: str, tag: bytes, size: int) -> None:
        if len(self._waiting.get((kind, tag), ())) < size:
            return
        names = self._waiting.pop((kind, tag))
        for start in range(0, len(names), STEP):
            part = names[start : start + STEP]
            found = await look(self.census, kind, tag, part)
            self.findings += found
            if kind == "key":
                odd = {each.unit.name for each in found}
                for name in part:
                    if name not in odd:
                        self._unfold(tag, name)

    def _unfold(self, tag: bytes, raw: bytes) -> None:
        """Take note of the unit that a key is."""
        key = keys.parse(raw)
        if key is None or tag == keys.REGISTRY:
            return
        if key.kind == "group":
            self._documents.setdefault(tag, set()).add(key.rest)
        if key.kind in BY_NAME:
            self.await_look(BY_NAME[key.kind], tag, key.rest)
        elif key.kind in BY_KEY:
            self.await_look(BY_KEY[key.kind], tag, raw[len(tag) + 1 :])
        elif key.kind in {"count", "shape", "state"}:
            self._hashes.append((tag, key.kind))
        elif key.kind in OF_RULES:
            place = self.census.places[tag]
            self._homes.add(tag if place.partition is None else place.env.rules_home)
        if key.kind in FURTHER:
            self.await_look(FURTHER[key.kind], tag, key.rest)

    async def look_at_rules(self) -> None:
        """Look at the rules of applications that have any, each once."""
        for home in self._homes:
            for kind in ("rules", "ruled", "named", "noted"):
                self.await_look(kind, home, b"")
        await self.flush(1)

    async def look_at_groups(self) -> None:
        """Hold counts, shapes and states of partitions against what was seen."""
        counted: set[tuple[bytes, bytes]] = set()
        for tag, kind in self._hashes:
            place = self.census.places[tag]
            exist = self._documents.get(place.env.directory, set())
            async for step in self.census.walk(keys.key(tag, kind), "HSCAN"):
                for number, held in zip(step[::2], step[1::2], strict=True):
                    if whole(number) is None:
                        self.await_look("field", tag, number)
                        continue
                    if number not in exist and number != b"0":
                        self.await_look("number", place.env.directory, number)
                    if kind == "count":
                        counted.add((tag, number))
                    seen = self.census.members.get((tag, number), 0)
                    if kind == "shape" or (kind == "count" and held != b"%d" % seen):
                        self.await_look("members", tag, number)
            await self.flush(STEP)
        for (tag, number), members in self.census.members.items():
            if members and (tag, number) not in counted:
                self.await_look("members", tag, number)
        await self.flush(1)
