"""Looking at derived data: it has to be what a recomputation from facts gives (invariant 6).

Profile by profile: the instances that its facts name are those that it lists, and hold what it
brings in. Instance by instance: contributions, their order and the index agree, everybody who
contributes lists it, and who counts was told what follows from those who count. What is marked as
behind (a dirty profile, a stale instance, one being erased) may differ; so may everything while a
job waits or runs, and in a weekly application facts are ahead: then only what must hold in itself
is looked at.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from service import ids, keys
from service.aggregation import values_of
from service.attributes import as_attribute, canonical_name, is_sound
from service.grouping import AGGREGATIONS, Instance, order_of, shared_value
from service.store_instances import contribution as decode_contribution
from service.verify.findings import STEP, Finding, Unit, shown, whole
from service.verify.look_rules import book

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from service.attributes import ProfileAttribute
    from service.environment import Environment
    from service.grouping import Contribution, Definition, Rules
    from service.verify.findings import Census, Part
    from service.verify.look_rules import Book

KIB = 256
"""What one script reads, in KiB, and one thing more."""

_TOLD = re.compile(rb"([1-9]\d*) (0|[1-9]\d*) (0|[1-9]\d*) (.*)", re.DOTALL)
_VALUES = msgspec.json.Decoder(dict[str, str | list[str]])
_BROUGHT = re.compile(rb"(0|[1-9]\d*) (0|[1-9]\d*) ([0-9a-g]{16}.{16}) (\{.*)", re.DOTALL)


class Told(NamedTuple):
    """What a profile keeps of an instance: what it was told, by which version and rules."""

    number: int
    version: int
    rules: int
    values: dict[str, str | list[str]]
    """Attribute id -> value; empty where it inherits nothing."""


class Facts(NamedTuple):
    """What was read of a profile: its state, and what its slot says of its instances.

    State is `E` being erased, `D` behind, `R` neither, `-` without a record.
    """

    state: bytes
    seq: bytes | None
    mpid: bytes | None
    values: list[bytes | None]
    listed: dict[bytes, bytes]


class Named(NamedTuple):
    """An instance that the facts of a profile name, and what it brings in there."""

    definition: Definition
    since_us: int
    order: bytes
    values: dict[str, tuple[int, bytes]]


class Header(NamedTuple):
    """What is held of an instance besides contributions; numbers as they are held."""

    number: bytes | None
    value: bytes | None
    version: bytes | None
    rules: bytes | None
    limit: bytes | None
    stale: int
    formers: int
    indexed: int
    held: int
    ordered: int


def told(held: bytes) -> Told | None:
    """Read what a profile keeps of an instance; None where it is none of that."""
    match = _TOLD.fullmatch(held)
    if match is None:
        return None
    try:
        values = _VALUES.decode(match[4] or b"{}")
    except (ValueError, RecursionError):
        return None
    return Told(int(match[1]), int(match[2]), int(match[3]), values)


def brought(mixed: bytes, held: bytes) -> Contribution | None:
    """Read what an instance holds of a profile; None where it is no contribution of it."""
    match = _BROUGHT.fullmatch(held)
    if match is None or match[3][ids.SIZE :] != mixed:
        return None
    try:
        return decode_contribution(held)
    except (ValueError, RecursionError):
        return None


async def facts(
    census: Census, tag: bytes, rules: Rules, names: Sequence[bytes]
) -> AsyncIterator[tuple[bytes, Facts]]:
    """Read facts of profiles, as far as rules name them."""
    declared = [keys.key(tag, "erasing"), keys.key(tag, "dirty")]
    wanted: list[Part] = [KIB, len(rules.names), *rules.names]
    left = list(names)
    while left:
        rows = await census.call("verify_facts", declared, [*wanted, *left[:STEP]])
        for mixed, (state, seq, mpid, values, flat) in zip(left, rows, strict=False):
            listed = dict(zip(flat[::2], flat[1::2], strict=True))
            yield mixed, Facts(state, seq, mpid, values, listed)
        left = left[len(rows) :]


def named(env: Environment, rules: Rules, mixed: bytes, known: Facts) -> dict[bytes, Named]:
    """Give the instances that facts name: a recomputation, from nothing but facts and rules."""
    if known.state in {b"E", b"-"}:
        return {}
    held: dict[str, ProfileAttribute] = {}
    for name, raw in zip(rules.names, known.values, strict=True):
        if raw is not None and is_sound(name.encode(), raw):
            attribute = as_attribute(name.encode(), raw)
            if attribute is not None:
                held[name] = attribute
    mpid = whole((known.mpid or b"").removeprefix(b"-"))
    order = order_of(None if mpid is None else int(known.mpid or b""), mixed)
    found = {}
    for definition in rules.definitions:
        source = held.get(definition.source)
        text = shared_value(None if source is None else source.value)
        if source is None or text is None:
            continue
        brings = {canonical_name(each.id) for each in definition.attributes}
        values = {name: (held[name].time_us, held[name].value) for name in brings if name in held}
        iid = env.mixer.instance_id(env.number, definition.number, text)
        found[iid] = Named(definition, source.since_us, order, values)
    return found


async def pairs(
    census: Census, script: str, tag: bytes, wanted: Sequence[tuple[bytes, bytes]]
) -> list[tuple[Any, bytes | None]]:
    """Ask a script that answers two things for each instance and profile, as many as fit."""
    kind = "erasing" if script == "verify_told" else "stale"
    found: list[tuple[Any, bytes | None]] = []
    while len(found) < len(wanted):
        part = wanted[len(found) : len(found) + STEP]
        flat = await census.call(
            script, [keys.key(tag, kind)], [KIB, *(each for pair in part for each in pair)]
        )
        found += zip(flat[::2], flat[1::2], strict=True)
    return found


# --- profiles


async def look_facts(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at profiles that have attributes: what their facts name, they list."""
    known = await book(census, tag)
    if not known.settled or known.rules is None or not known.rules.definitions:
        return []
    place = census.places[tag]
    found = []
    async for mixed, held in facts(census, tag, known.rules, names):
        if held.state != b"R":
            continue
        for iid, each in named(place.env, known.rules, mixed, held).items():
            if iid not in held.listed:
                text = (
                    f"{_who(census, tag, mixed)} has a value for {each.definition.id}, and is in no"
                    f" instance of it"
                )
                found.append(Finding(Unit("facts", tag, mixed), "unlisted", iid, text))
    return found


async def look_listed(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at profiles that list instances: facts name them, and they hold what facts bring in."""
    known = await book(census, tag)
    place = census.places[tag]
    count = len(place.env.partitions)
    found = []
    right = []
    for mixed in names:
        if ids.head(mixed) % count == place.partition:
            right.append(mixed)
            continue
        text = f"{_who(census, tag, mixed)} lists instances in partition {place.partition}"
        found.append(Finding(Unit("listed", tag, mixed), "stray", b"", text))
    if known.rules is None:
        return found
    wanted: dict[bytes, list[tuple[bytes, bytes, Named, bytes | None]]] = {}
    seen: dict[bytes, Facts] = {}
    async for mixed, held in facts(census, tag, known.rules, right):
        seen[mixed] = held
        found += _wrong_listed(census, Unit("listed", tag, mixed), held)
        if held.state not in {b"R", b"-"} or not (known.settled or held.state == b"-"):
            continue
        follows = named(place.env, known.rules, mixed, held)
        for iid in held.listed.keys() - follows.keys():
            text = f"{_who(census, tag, mixed)} lists instance {iid.hex()}, and has not its value"
            found.append(Finding(Unit("listed", tag, mixed), "unnamed", iid, text))
        for iid in held.listed.keys() & follows.keys():
            row = iid, mixed, follows[iid], held.seq
            wanted.setdefault(place.env.home(iid), []).append(row)
    suspects: list[Finding] = []
    for home, rows in wanted.items():
        suspects += await _look_brought(census, tag, home, rows)
    # Who changed since may have been read half before and half after it.
    again = sorted({each.unit.name for each in suspects})
    same = {
        mixed async for mixed, held in facts(census, tag, known.rules, again) if held == seen[mixed]
    }
    return found + [each for each in suspects if each.unit.name in same]


def _wrong_listed(census: Census, unit: Unit, known: Facts) -> list[Finding]:
    """Say what a profile keeps of instances that cannot be read."""
    return [
        Finding(
            unit,
            "told",
            iid,
            f"{_who(census, unit.tag, unit.name)} was told {shown(held)} of instance"
            f" {shown(iid) if len(iid) != ids.SIZE else iid.hex()}, which cannot be",
        )
        for iid, held in known.listed.items()
        if len(iid) != ids.SIZE or told(held) is None
    ]


async def _look_brought(
    census: Census,
    tag: bytes,
    home: bytes,
    rows: Sequence[tuple[bytes, bytes, Named, bytes | None]],
) -> list[Finding]:
    """Look whether instances hold what profiles bring in."""
    found = []
    held = await pairs(
        census, "verify_contributions", home, [(iid, mixed) for iid, mixed, *_ in rows]
    )
    for (iid, mixed, follows, seq), (_, raw) in zip(rows, held, strict=True):
        has = None if raw is None else brought(mixed, raw)
        if raw is not None and has is None:
            # Its instance says so.
            continue
        if has is None:
            said = "does not contribute to it"
        elif (has.since_us, order_of(has.mpid, mixed), has.values) != follows[1:]:
            said = "contributes something else than its facts say"
        elif has.seq > (whole(seq) or 0):
            said = f"contributes facts of {has.seq}, and its own are of {whole(seq) or 0}"
        else:
            continue
        text = f"{_who(census, tag, mixed)} lists instance {iid.hex()}, and {said}"
        found.append(Finding(Unit("listed", tag, mixed), "brought", iid, text))
    return found


def _who(census: Census, tag: bytes, mixed: bytes) -> str:
    return f"{census.label(tag)}: profile {census.profile(tag, mixed)}"


# --- instances


async def look_instances(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at instances: in themselves, who contributes, and what those who count were told."""
    known = await book(census, tag)
    found: list[Finding] = []
    looked: dict[bytes, _Looked] = {}
    waiting: list[tuple[_Looked, bytes, bool]] = []
    async for iid, header, rows in instances(census, tag, list(dict.fromkeys(names))):
        if iid not in looked:
            looked[iid] = _Looked(census, known, tag, iid)
        one = looked[iid]
        waiting += ((one, mixed, counts) for mixed, counts in one.take(header, rows))
        if len(waiting) >= STEP:
            found += await _look_at_contributors(census, tag, waiting)
            waiting = []
    found += await _look_at_contributors(census, tag, waiting)
    for one in looked.values():
        found += one.finish()
    # One that changed since may have been read half before and half after it.
    same = {
        iid
        for iid in {each.unit.name for each in found}
        if await _header(census, tag, iid) == looked[iid].header
    }
    return [each for each in found if each.unit.name in same]


async def _header(census: Census, tag: bytes, iid: bytes) -> Header:
    """Read the header of an instance alone."""
    [_, _, answer] = await census.call("verify_instances", [keys.key(tag, "stale")], [0, 1, iid])
    return Header(*answer[: len(Header._fields)])


async def _look_at_contributors(
    census: Census, tag: bytes, waiting: Sequence[tuple[_Looked, bytes, bool]]
) -> list[Finding]:
    """Look at what was said to those who contribute: everybody lists what they contribute to."""
    env = census.places[tag].env
    homes: dict[bytes, list[tuple[_Looked, bytes, bool]]] = {}
    for row in waiting:
        homes.setdefault(env.home(row[1]), []).append(row)
    found: list[Finding] = []
    for home, rows in homes.items():
        held = await pairs(
            census, "verify_told", home, [(one.iid, mixed) for one, mixed, _ in rows]
        )
        for (one, mixed, counts), (erasing, raw) in zip(rows, held, strict=True):
            if not erasing:
                found += one.hear(mixed, raw, counts=counts)
    return found


async def instances(
    census: Census, tag: bytes, names: list[bytes]
) -> AsyncIterator[tuple[bytes, Header, list[Any]]]:
    """Walk instances: id, header, and some of the fields, values, ranks and scores at a time."""
    cursor, left = b"0", names
    while left:
        done, cursor, *answers = await census.call(
            "verify_instances", [keys.key(tag, "stale")], [cursor, STEP, *left[:STEP]]
        )
        for iid, answer in zip(left, answers, strict=False):
            yield iid, Header(*answer[: len(Header._fields)]), answer[len(Header._fields) :]
        left = left[done:]


class _Looked:
    """One instance, as it is walked: only who counts is remembered."""

    def __init__(self, census: Census, known: Book, tag: bytes, iid: bytes) -> None:
        self._census = census
        self._book = known
        self._tag = tag
        self.iid = iid
        self._unit = Unit("instance", tag, iid)
        self.header: Header | None = None
        self._counted: dict[int, Contribution] = {}
        self._wrong: dict[str, str] = {}
        self._told: dict[bytes, Told] = {}

    def take(self, header: Header, rows: list[Any]) -> list[tuple[bytes, bool]]:
        """Take a part of it; give who contributes there, and whether they count."""
        self.header = header
        limit = whole(header.limit) or 0
        found = []
        for field, value, rank, score in zip(*[iter(rows)] * 4, strict=True):
            has = brought(field, value)
            if has is None:
                self._wrong["contribution"] = f"holds {shown(field)}, which is no contribution"
            elif rank is None or float(score) != has.since_us:
                who = self._census.profile(self._tag, field)
                self._wrong["contribution"] = f"holds {who} in another place than its own"
            else:
                if rank < limit:
                    self._counted[rank] = has
                found.append((field, rank < limit))
        return found

    def hear(self, mixed: bytes, raw: bytes | None, *, counts: bool) -> list[Finding]:
        """Hear what somebody who contributes was told."""
        who = self._census.profile(self._tag, mixed)
        if raw is None:
            return [self._finding("unlisted", mixed, f"holds {who}, which does not list it")]
        said = told(raw)
        if said is not None and counts:
            self._told[mixed] = said
        elif said is not None and self._is_quiet() and (said.values or self._is_later(said)):
            return [self._finding("told", mixed, f"told {who} something, which does not count")]
        # Of what cannot be read the profile says so.
        return []

    def _is_quiet(self) -> bool:
        return self.header is not None and not self.header.stale

    def _is_later(self, said: Told) -> bool:
        version = whole(self.header.version) if self.header is not None else None
        return version is not None and said.version > version

    def finish(self) -> list[Finding]:
        """Look at it as a whole."""
        header = self.header
        if header is None or not self._is_there(header):
            return []
        env = self._census.places[self._tag].env
        numbers = [whole(each) for each in (header.number, header.version, header.rules)]
        limit, text = whole(header.limit), _text(header.value)
        number, version, rules = numbers
        if env.home(self.iid) != self._tag:
            return [self._finding("place", b"", "lies in another partition than its own")]
        if number is None or version is None or rules is None or limit is None or text is None:
            return [self._finding("header", b"", "has a header that is none")]
        if env.mixer.instance_id(env.number, number, text) != self.iid:
            return [
                self._finding("header", b"", f"has a value {shown(text.encode())}, not its own")
            ]
        if header.held != header.ordered:
            said = f"holds {header.held} contributions, and has {header.ordered} contributors"
            self._wrong.setdefault("contribution", said)
        found = [self._finding(what, b"", said) for what, said in self._wrong.items()]
        if found:
            return found
        if not header.indexed:
            found.append(self._finding("index", b"", "is in no list of its definition's"))
        if self._is_quiet() and not header.ordered:
            found.append(self._finding("empty", b"", "has no contributor, and stays"))
        if self._is_quiet() and header.formers:
            said = "has to tell somebody who counted, and is not entered as stale"
            found.append(self._finding("formers", b"", said))
        return found + self._look_at_rules(number, version, rules, limit, text)

    def _look_at_rules(
        self, number: int, version: int, rules: int, limit: int, text: str
    ) -> list[Finding]:
        """Hold it against the rules that it follows, where these are those in force."""
        in_force = self._book.rules
        header = self.header
        if in_force is None or header is None or not header.ordered:
            return []
        definition = in_force.by_number.get(number)
        if not self._book.settled and (definition is None or rules != in_force.version):
            return []
        # A change of dynamic groups alone raises the version, too, and no instance follows that.
        if definition is None or not _newest(definition) <= rules <= in_force.version:
            said = (
                "belongs to no definition"
                if definition is None
                else f"follows version {rules} of the rules, and they are of {in_force.version}"
            )
            return [self._finding("rules", b"", said)]
        if limit != in_force.limit:
            text = f"counts {limit} users, and the rules say {in_force.limit}"
            return [self._finding("limit", b"", text)]
        if not self._is_quiet() or any(
            each.type not in AGGREGATIONS for each in definition.attributes
        ):
            # Who is to be told of it yet; or the rules say so.
            return []
        instance = Instance(
            id=self.iid,
            number=number,
            value=text,
            version=version,
            rules=rules,
            total=header.ordered,
            counted=tuple(self._counted[rank] for rank in sorted(self._counted)),
        )
        wanted = Told(number, version, rules, _values(definition, instance))
        return [
            self._finding(
                "values",
                mixed,
                f"told {self._census.profile(self._tag, mixed)} something else than follows from"
                f" those who count",
            )
            for mixed, said in self._told.items()
            if said != wanted
        ]

    def _is_there(self, header: Header) -> bool:
        return bool(
            any(each is not None for each in header[:5])
            or header.held
            or header.ordered
            or header.formers
        )

    def _finding(self, what: str, about: bytes, said: str) -> Finding:
        text = f"{self._census.label(self._tag)}: instance {self.iid.hex()} {said}"
        return Finding(self._unit, what, about, text)


def _newest(definition: Definition) -> int:
    """Give the version of the rules at which a definition became what it is."""
    return max([definition.number, *(each.since for each in definition.attributes)])


def _text(raw: bytes | None) -> str | None:
    try:
        return None if raw is None else raw.decode()
    except UnicodeDecodeError:
        return None


def _values(definition: Definition, instance: Instance) -> dict[str, str | list[str]]:
    """Give what those who count inherit, as it is told to them."""
    return {
        name: msgspec.json.decode(outcome.value, type=str | list[str])
        for name, outcome in values_of(definition, instance).items()
    }
