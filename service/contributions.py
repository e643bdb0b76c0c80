"""What a profile contributes to which instances, made of its facts and the rules.

Pure: it takes what `read_facts` answers, and gives what `contribute` is told.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from service.attributes import canonical_name
from service.grouping import order_of, shared_value

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from service.environment import Environment
    from service.grouping import Definition, Rules

NAMES = 300
"""Above so many names that definitions name, all attributes of a profile are read."""

_PARTS = 3
_UNTOLD = b"0", False


class Source(NamedTuple):
    """A definition, as facts are held against it; places are those of the names of the plan."""

    definition: Definition
    place: int
    attributes: tuple[tuple[int, bytes], ...]
    """Of each attribute its place, and its name as JSON."""


class Plan(NamedTuple):
    """Rules, made ready for many profiles."""

    rules: Rules
    names: tuple[bytes, ...]
    sources: tuple[Source, ...]


class Named(NamedTuple):
    """An instance that the facts of a profile name, and what the profile brings into it."""

    source: Source
    text: str
    since: bytes
    json: bytes


class Facts(NamedTuple):
    """What was read of a profile.

    `listed`: instance -> version that the profile was told, and whether values came with it.
    """

    seq: bytes
    mpid: int | None
    behind: bool
    named: dict[bytes, Named]
    listed: dict[bytes, tuple[bytes, bool]]


class Joint(NamedTuple):
    """What becomes of contributions to one instance, as the script wants it.

    `rows`: mixed id, seq, since, order, version told, JSON (empty where it ends).
    """

    number: int | str
    text: str
    rows: list[tuple[bytes, bytes | int, bytes, bytes, bytes, bytes]]


def planned(rules: Rules) -> Plan:
    """Make rules ready."""
    place = {name: at for at, name in enumerate(rules.names)}
    sources = []
    for each in rules.definitions:
        names = dict.fromkeys(canonical_name(attribute.id) for attribute in each.attributes)
        attributes = tuple((place[name], msgspec.json.encode(name)) for name in names)
        sources.append(Source(each, place[each.source], attributes))
    return Plan(rules, tuple(name.encode() for name in rules.names), tuple(sources))


def facts_of(env: Environment, plan: Plan, row: list[Any]) -> Facts:
    """Take what was read of a profile: which instances its facts name, and what it brings in."""
    state, seq, mpid, values, listed = row
    if values and len(plan.names) > NAMES:
        held = dict(zip(values[::2], values[1::2], strict=True))
        values = [held.get(name) for name in plan.names]
    named = {}
    for source in plan.sources if values else ():
        at = _parts(values[source.place])
        text = None if at is None else shared_value(at[2])
        if at is None or text is None:
            continue
        parts = []
        for place, name in source.attributes:
            has = _parts(values[place])
            if has is not None:
                parts.append(b"%b:[%b,%b]" % (name, has[0], has[2]))
        iid = env.mixer.instance_id(env.number, source.definition.number, text)
        named[iid] = Named(source, text, at[1], b"{%b}" % b",".join(parts))
    return Facts(
        seq,
        int(mpid) if mpid else None,
        state == b"D",
        named,
        {
            iid: (told[1:], told[:1] == b"+")
            for iid, told in zip(listed[::2], listed[1::2], strict=True)
        },
    )


def _parts(held: bytes | None) -> list[bytes] | None:
    """Give time, since and JSON of an attribute as it is stored; None where there is none."""
    if held is None:
        return None
    parts = held.split(b" ", 2)
    return parts if len(parts) == _PARTS else None


def changes_of(
    facts: dict[bytes, Facts], above: Mapping[bytes, int]
) -> tuple[dict[bytes, Joint], dict[bytes, Joint]]:
    """Give what becomes of contributions: by instance, what is brought in and what ends."""
    lives: dict[bytes, Joint] = {}
    ends: dict[bytes, Joint] = {}
    for mixed, each in facts.items():
        # Without a record there is no seq. It ends what there is, and whoever comes back meanwhile
        # by a clock that is behind has its seq raised.
        seq = each.seq or b"%d" % max(time.time_ns() // 1000, above[mixed] + 1)
        order = order_of(each.mpid, mixed)
        for iid, named in each.named.items():
            joint = lives.get(iid)
            if joint is None:
                joint = lives[iid] = Joint(named.source.definition.number, named.text, [])
            told = each.listed.get(iid, _UNTOLD)[0]
            joint.rows.append((mixed, seq, named.since, order, told, named.json))
        for iid, (told, _) in each.listed.items():
            if iid not in each.named:
                joint = ends.get(iid)
                if joint is None:
                    joint = ends[iid] = Joint("", "", [])
                joint.rows.append((mixed, seq, b"", order, told, b""))
    return lives, ends


def cut(
    env: Environment, joints: dict[bytes, Joint], most: int, most_bytes: int
) -> Iterator[tuple[bytes, list[tuple[bytes, Joint]]]]:
    """Cut changes of contributions into what one script takes, by the home of the instance."""
    homes: dict[bytes, list[tuple[bytes, Joint]]] = {}
    for iid, joint in joints.items():
        homes.setdefault(env.home(iid), []).append((iid, joint))
    for tag, within in homes.items():
        chunk: list[tuple[bytes, Joint]] = []
        many = size = 0
        for iid, joint in within:
            start = 0
            for at, row in enumerate(joint.rows):
                if many >= most or size >= most_bytes:
                    if at > start:
                        chunk.append((iid, joint._replace(rows=joint.rows[start:at])))
                    yield tag, chunk
                    chunk, many, size, start = [], 0, 0, at
                many += 1
                size += len(row[-1])
            size += len(joint.text)
            chunk.append((iid, joint._replace(rows=joint.rows[start:]) if start else joint))
        yield tag, chunk


def parted(
    lives: dict[bytes, Joint], facts: dict[bytes, Facts]
) -> tuple[dict[bytes, Joint], dict[bytes, Joint]]:
    """Part contributions that may be new from those that are there already, as far as is known."""
    fresh: dict[bytes, Joint] = {}
    held: dict[bytes, Joint] = {}
    for iid, joint in lives.items():
        old = [row for row in joint.rows if row[4] != b"0" and not facts[row[0]].behind]
        new = [row for row in joint.rows if row[4] == b"0" or facts[row[0]].behind]
        if new:
            fresh[iid] = joint._replace(rows=new)
        if old:
            held[iid] = joint._replace(rows=old)
    return fresh, held
