"""Looking at memberships: both directions, segments, counts and shapes (invariants 1 to 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from service import ids, keys
from service.verify.findings import STEP, Finding, Unit, numbered, shown, whole

if TYPE_CHECKING:
    from service.verify.findings import Census

FEWEST, MOST = 24, 48
"""Members per segment between which a shape of several segments is right."""
SEGMENTS = 2_000
"""Segments that one script adds up: about 1.5 ms."""
LOOKED = 100
"""Memberships after which a script that looks at them ends: about 1 ms."""
TRIES = 3


async def look_memberships(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at what profiles say of their memberships, against segments, group 0 and `d`."""
    found = []
    cursor, left = b"0", names
    place = census.places[tag]
    while left:
        done, cursor, *wrong = await census.call(
            "verify_memberships",
            [keys.key(tag, "shape"), keys.key(tag, "erasing"), keys.key(tag, "dynamic")],
            [cursor, LOOKED, b"".join(left)],
        )
        for mixed, what, about in zip(wrong[::3], wrong[1::3], wrong[2::3], strict=True):
            if what == b"large":
                found += await _look_derived(census, tag, mixed)
                continue
            who = f"{place.label}: profile {census.profile(tag, mixed)}"
            text = f"{who} {_MEMBERSHIPS[what].format(_said(about))}"
            found.append(Finding(Unit("m", tag, mixed), what.decode(), about, text))
        left = left[done:]
    count = len(place.env.partitions)
    found += [
        Finding(
            Unit("m", tag, mixed),
            "stray",
            b"",
            f"{place.label}: profile {census.profile(tag, mixed)} has memberships in partition"
            f" {place.partition}, and belongs into {ids.head(mixed) % count}",
        )
        for mixed in names
        if ids.head(mixed) % count != place.partition
    ]
    return found


class Derived(NamedTuple):
    """How many fields a profile's memberships have, its `d` as held, how many are derived."""

    size: int
    said: bytes
    derived: int


async def derived(census: Census, tag: bytes, mixed: bytes) -> Derived:
    """Count the memberships of a profile that are in dynamic groups, in steps."""
    key = keys.memberships(tag, mixed)
    size = await census.connection.command(key, "HLEN", key)
    said = await census.connection.command(key, "HGET", key, "d") or b""
    fields: set[bytes] = set()
    noted = keys.key(tag, "dynamic")
    async for step in census.walk(key, "HSCAN"):
        numbers = [each for each in step[::2] if whole(each)]
        if numbers:
            flags = await census.connection.command(noted, "SMISMEMBER", noted, *numbers)
            fields.update(each for each, flag in zip(numbers, flags, strict=True) if flag)
    return Derived(int(size), said, len(fields))


async def _look_derived(census: Census, tag: bytes, mixed: bytes) -> list[Finding]:
    """Look at `d` of a profile whose memberships are too many for one script."""
    counted = await derived(census, tag, mixed)
    if counted.said == (b"%d" % counted.derived if counted.derived else b""):
        return []
    who = f"{census.label(tag)}: profile {census.profile(tag, mixed)}"
    text = f"{who} {_MEMBERSHIPS[b'derived'].format(_said(counted.said))}"
    return [Finding(Unit("m", tag, mixed), "derived", counted.said, text)]


def _said(about: bytes) -> str:
    return numbered(about) if about else "no"


_MEMBERSHIPS = {
    b"missing": "is a member of group {}, and stands in no segment of it",
    b"field": "has a membership {}, which is no group",
    b"joined": "is a member of group {}, since no time at all",
    b"derived": "has {} derived memberships, as it says, and that is not how many there are",
    b"outside": "is known, and not in group 0 (static memberships or a record)",
    b"inside": "is in group 0 without a static membership or a record",
}


async def look_segments(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at segments by ``<n>:<depth>:<prefix>``. What they hold is added to the census."""
    found = []
    offset, left = 0, names
    place = census.places[tag]
    while left:
        done, offset, sizes, wrong = await census.call(
            "verify_segments",
            [keys.key(tag, "shape"), keys.key(tag, "erasing")],
            [offset, STEP, *(part for name in left[:STEP] for part in name.split(b":"))],
        )
        for at, what, about in zip(wrong[::3], wrong[1::3], wrong[2::3], strict=True):
            number, depth, prefix = left[at].decode().split(":")
            sentence = _SEGMENTS[what].format(census.profile(tag, about) if about else "")
            text = f"{place.label}: group {number}: segment {depth}:{prefix} {sentence}"
            found.append(Finding(Unit("g", tag, left[at]), what.decode(), about, text))
        for name, size in zip(left, sizes, strict=False):
            key = (tag, name.partition(b":")[0])
            census.members[key] = census.members.get(key, 0) + size
        left = left[done:]
    return found


_SEGMENTS = {
    b"shape": "exists, and the group's shape has no place for it",
    b"size": "holds {}, which is no id",
    b"place": "holds profile {}, which belongs into another segment",
    b"ghost": "holds profile {}, which is not a member",
    b"score": "holds profile {} with a score",
}


async def look_groups(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at groups in one partition: count and shape against what the segments hold."""
    found = []
    for name in names:
        found += await _look_group(census, tag, name)
    return found


async def _look_group(census: Census, tag: bytes, name: bytes) -> list[Finding]:
    count, shape, members = await _recount(census, tag, name)
    place = census.places[tag]
    where = f"{place.label}: group {name.decode()} in partition {place.partition}"
    unit = Unit("members", tag, name)
    held, segments = whole(count), 1 if shape is None else whole(shape)
    if (count is not None and not held) or (count is None and members):
        said = "no count" if count is None else f"count {shown(count)}"
        return [Finding(unit, "count", b"", f"{where} has {said}, and {members} members")]
    held = held or 0
    found = []
    if held != members:
        text = f"{where} has count {held}, and {members} members"
        found.append(Finding(unit, "count", b"", text))
    if segments is None or (shape is not None and segments <= 1):
        text = f"{where} has shape {shown(shape or b'')}, which cannot be"
        found.append(Finding(unit, "shape", b"", text))
    elif held > MOST * segments or (segments > 1 and held < FEWEST * segments):
        text = f"{where} has {segments} segments for {held} members"
        found.append(Finding(unit, "shape", b"", text))
    return found


async def _recount(
    census: Census, tag: bytes, name: bytes
) -> tuple[bytes | None, bytes | None, int]:
    """Add up the members of a group; the last try does it in one script."""
    declared = [keys.key(tag, "count"), keys.key(tag, "shape")]
    for attempt in range(TRIES + 1):
        limit = SEGMENTS if attempt < TRIES else 10**6
        count, shape, segments, members = first = await census.call(
            "verify_group", declared, [name, 0, limit]
        )
        if segments <= limit or not _plausible(count, segments):
            break
        for start in range(limit, segments, limit):
            *again, part = await census.call("verify_group", declared, [name, start, limit])
            if again != first[:3]:
                break
            members += part
        else:
            if whole(count) == members:
                break
    return count, shape, members


def _plausible(count: bytes | None, segments: int) -> bool:
    """Say whether a group of this count may have so many segments: else why add them up."""
    return (whole(count) or 0) >= FEWEST * segments


async def look_fields(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at fields of count, shape and state that are no group numbers."""
    held = await census.call(
        "verify_states",
        [keys.key(tag, "state"), keys.key(tag, "count"), keys.key(tag, "shape")],
        names,
    )
    found = []
    for name, *each in zip(names, held[::3], held[1::3], held[2::3], strict=True):
        if name == keys.FILLER:
            each[1] = None
        if any(part is not None for part in each):
            text = (
                f"{census.label(tag)}: {shown(name)} has a count, shape or state, and is no group"
            )
            found.append(Finding(Unit("field", tag, name), "field", b"", text))
    return found
