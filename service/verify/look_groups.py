"""Looking at a directory: documents, indexes, ids, and states in the partitions.

That is invariant 5 for groups, and 4 for group numbers: nothing belongs to a number that is above
the counter, or gone and not being swept.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from service import ids, keys
from service.groups import GroupDocument, group_indexes
from service.verify.findings import Finding, Unit, decoded, numbered, shown, whole

if TYPE_CHECKING:
    from collections.abc import Iterable

    from service.verify.findings import Census

CACHED = 20_000
"""Documents that a run remembers while it looks at indexes."""
TRIES = 5
_DOCUMENT = msgspec.json.Decoder(GroupDocument, float_hook=Decimal)
"""Numbers of a rule tree are what they were given as."""
_STATES = (b"a", b"i", b"d", b"g")


class Known(NamedTuple):
    """What the directory knows of a group number; parts are as held, or None."""

    counter: int
    raw: bytes | None
    version: bytes | None
    intent: bytes | None
    deleting: bytes | None

    @property
    def document(self) -> GroupDocument | None:
        """The document, None where there is none that decodes."""
        return decoded(_DOCUMENT, self.raw)

    @property
    def exists(self) -> bool:
        """Whether there is anything of a document."""
        return self.raw is not None or self.version is not None


class Held(NamedTuple):
    """What a partition holds of a group number; parts are as held, or None."""

    state: bytes | None
    members: bytes | None
    shape: bytes | None

    @property
    def letter(self) -> bytes | None:
        """The state's letter: None where there is no state, empty where it is malformed."""
        if self.state is None:
            return None
        version, _, letter = self.state.partition(b" ")
        number = whole(version)
        return letter if number is not None and number < 2**53 and letter in _STATES else b""


async def known(census: Census, tag: bytes, numbers: list[bytes]) -> list[Known]:
    """Read what a directory knows of numbers, at one moment."""
    counter, *parts = await census.call(
        "verify_numbers",
        [keys.key(tag, "numbers"), keys.key(tag, "intents"), keys.key(tag, "deleting")],
        numbers,
    )
    last = whole(counter) or 0
    return [Known(last, *parts[4 * at : 4 * at + 4]) for at in range(len(numbers))]


async def held(census: Census, tag: bytes, numbers: list[bytes]) -> list[list[Held]]:
    """Read what every partition of an environment holds of numbers: a list per number."""
    replies = await asyncio.gather(
        *(
            census.call(
                "verify_states",
                [keys.key(each, "state"), keys.key(each, "count"), keys.key(each, "shape")],
                numbers,
            )
            for each in census.places[tag].env.partitions
        )
    )
    return [[Held(*reply[3 * at : 3 * at + 3]) for reply in replies] for at in range(len(numbers))]


async def look_numbers(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at group numbers, and what the partitions hold of them.

    The directory is read before and after: what it says both times was so in between.
    """
    found = []
    before = await known(census, tag, names)
    partitions = await held(census, tag, names)
    after = await known(census, tag, names)
    for name, was, here, now in zip(names, before, partitions, after, strict=True):
        if was[1:] != now[1:]:
            continue
        unit = Unit("number", tag, name)
        who = f"{census.label(tag)}: group {name.decode()}"
        if int(name) > now.counter:
            text = f"{who} is above the last number given out, {now.counter}"
            found.append(Finding(unit, "counter", b"", text))
        for index, each in enumerate(here):
            wrong = _wrong_state(now, each)
            if wrong is not None:
                what = "orphan" if not now.exists else "state"
                text = f"{who} {wrong} in partition {index}"
                found.append(Finding(unit, what, b"%d" % index, text))
    return found


def _wrong_state(known: Known, here: Held) -> str | None:
    """Say what is wrong with the state of a number in one partition, None if nothing is."""
    letter = here.letter
    if letter == b"":
        return f"has the state {shown(here.state or b'')}, which cannot be,"
    if not known.exists:
        return None if known.deleting is not None else _wrong_rest(here)
    document = known.document
    if document is None or known.intent is not None or known.deleting is not None:
        return None
    said = "none" if letter is None else letter.decode()
    if document.is_active:
        return None if letter in {None, b"a"} else f"is active, and has state {said}"
    return None if letter == b"i" else f"is inactive, and has state {said}"


def _wrong_rest(here: Held) -> str | None:
    """Say what a number that is gone has left in one partition; only the state g may stay."""
    if here.members is not None or here.shape is not None:
        return "has members, though it does not exist,"
    return "has a state, though it does not exist," if here.letter not in {None, b"g"} else None


async def look_documents(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at groups that the directory has, by number."""
    found = []
    for name, group in zip(names, await known(census, tag, names), strict=True):
        if group.exists:
            found += await _look_document(census, tag, name, group)
    return found + await look_numbers(census, tag, names)


async def _look_document(census: Census, tag: bytes, name: bytes, group: Known) -> list[Finding]:
    unit = Unit("group", tag, name)
    who = f"{census.label(tag)}: group {name.decode()}"
    found = []
    if group.deleting is not None:
        text = f"{who} has a document, and is being deleted"
        found.append(Finding(unit, "deleting", b"", text))
    if whole(group.version) is None:
        text = f"{who} has the version {shown(group.version or b'')}, which is none"
        found.append(Finding(unit, "version", b"", text))
    raw = group.raw
    for _ in range(TRIES):
        document = decoded(_DOCUMENT, raw)
        id16 = None if document is None else ids.parse(document.id)
        if document is None or id16 is None:
            text = f"{who} has a document that does not decode"
            return [*found, Finding(unit, "document", b"", text)]
        indexes = sorted(group_indexes(tag, document))
        now, version, *entries = await census.call(
            "verify_document",
            [
                keys.group(tag, int(name)),
                keys.key(tag, "group_ids"),
                keys.key(tag, "group_custom_ids"),
                *indexes,
            ],
            [name, id16, document.custom_id or ""],
        )
        if now == raw:
            return found + _look_entries(unit, who, document, indexes, entries)
        if now is None and version is None:
            break
        raw = now
    # It is gone, or changes all the time: whatever it was, it is not so any more.
    return []


def _look_entries(
    unit: Unit, who: str, document: GroupDocument, indexes: list[bytes], entries: list[bytes | None]
) -> list[Finding]:
    """Hold a document against its entries in the maps of ids and custom ids, and in the indexes."""
    by_id, by_custom_id, *scores = entries
    found = []
    if by_id != unit.name:
        text = f"{who} is not found by its id {document.id}"
        found.append(Finding(unit, "id", b"", text))
    if document.custom_id and by_custom_id != unit.name:
        text = f"{who} is not found by its custom id {shown(document.custom_id.encode())}"
        found.append(Finding(unit, "custom_id", b"", text))
    for index, score in zip(indexes, scores, strict=True):
        if score is None or float(score) != int(unit.name):
            text = f"{who} is missing in the index {shown(index)}"
            found.append(Finding(unit, "index", index, text))
    return found


async def look_indexes(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at indexes, by what follows the tag: each entry has to follow from its document."""
    found = []
    for name in names:
        key = tag + b":" + name
        async for step in census.walk(key, "ZSCAN"):
            entries = dict(zip(step[::2], step[1::2], strict=True))
            groups = await _documents(census, tag, entries)
            for entry, score in entries.items():
                document = groups.get(entry)
                right = (
                    document is not None
                    and key in group_indexes(tag, document)
                    and float(score) == int(entry)
                )
                if not right:
                    who = f"{census.label(tag)}: group {numbered(entry)}"
                    text = f"{who} is in the index {shown(key)}, where it does not belong"
                    found.append(Finding(Unit("index", tag, name), "entry", entry, text))
    return found


async def look_ids(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at the maps from ids and custom ids to numbers, by what follows the tag."""
    found = []
    for name in names:
        async for step in census.walk(tag + b":" + name, "HSCAN"):
            entries = dict(zip(step[::2], step[1::2], strict=True))
            groups = await _documents(census, tag, entries.values())
            for entry, number in entries.items():
                document = groups.get(number)
                if document is not None and entry == _id_of(document, name):
                    continue
                said = ids.text(entry) if len(entry) == ids.SIZE else shown(entry)
                kind = "id" if name == b"group_ids" else "custom id"
                text = f"{census.label(tag)}: the {kind} {said} names group {numbered(number)}"
                found.append(
                    Finding(Unit("ids", tag, name), "entry", entry, f"{text}, which has another")
                )
    return found


def _id_of(document: GroupDocument, name: bytes) -> bytes | None:
    if name == b"group_ids":
        return ids.parse(document.id)
    return document.custom_id.encode() if document.custom_id else None


async def _documents(
    census: Census, tag: bytes, numbers: Iterable[bytes]
) -> dict[bytes, GroupDocument]:
    """Read documents by number as written, of those that have one. Remembered for a while."""
    wanted = [each for each in numbers if whole(each)]
    if len(census.groups) > CACHED:
        census.groups.clear()
    missing = [each for each in wanted if (tag, each) not in census.groups]
    if missing:
        for number, group in zip(missing, await known(census, tag, missing), strict=True):
            census.groups[tag, number] = group.document
    found = {each: census.groups[tag, each] for each in wanted}
    return {number: document for number, document in found.items() if document is not None}


async def look_intents(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at what is left to do (`intents`, `deleting`), by what follows the tag."""
    found = []
    for name in names:
        async for step in census.walk(tag + b":" + name, "ZSCAN"):
            entries = dict(zip(step[::2], step[1::2], strict=True))
            numbers = [each for each in entries if whole(each)]
            groups = dict(zip(numbers, await known(census, tag, numbers), strict=True))
            for entry, version in entries.items():
                group = groups.get(entry)
                done = group is not None and (group.intent, group.deleting)[name == b"deleting"]
                if group is not None and done is None:
                    continue
                if group is None or not float(version) > 0 or float(version) % 1:
                    wrong = f"is {shown(version)} in {name.decode()}, which cannot be"
                elif name == b"intents" and not group.exists:
                    wrong = "has a state to install, and no document"
                elif int(entry) > group.counter:
                    wrong = f"is in {name.decode()}, and above the last number given out"
                else:
                    continue
                text = f"{census.label(tag)}: group {numbered(entry)} {wrong}"
                found.append(Finding(Unit("intents", tag, name), "entry", entry, text))
    return found


async def look_counters(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at the counters of a directory (`numbers`, `version`), by what follows the tag."""
    found = []
    for name in names:
        key = tag + b":" + name
        value = await census.connection.command(key, "GET", key)
        if value is not None and whole(value) is None:
            text = f"{census.label(tag)}: the counter {name.decode()} is {shown(value)}"
            found.append(Finding(Unit("counter", tag, name), "value", b"", text))
    return found
