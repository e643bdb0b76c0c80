"""Looking at what stands beside derived data: who is behind, what ended, lists of instances.

And at batches that profiles are remembered for. None of it says what follows from facts; but what
names something that cannot be would keep the worker busy for ever, or hide an instance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service import ids, keys
from service.verify.findings import STEP, Finding, Unit, in_steps, shown, whole

if TYPE_CHECKING:
    from service.verify.findings import Census

BATCHES = 5_000
"""Batches that one script looks at: about 1 ms."""


async def look_indexed(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at lists of instances, by definition and bucket: each entry is one that is there."""
    found = []
    cursor, left = b"0", list(dict.fromkeys(names))
    while left:
        done, cursor, *rows = await census.call(
            "verify_index", [keys.key(tag, "stale")], [cursor, STEP, *left[:STEP]]
        )
        for name, iid, score, number in zip(
            rows[::4], rows[1::4], rows[2::4], rows[3::4], strict=True
        ):
            listed, _, bucket = name.partition(b":")
            if len(iid) != ids.SIZE or bucket != b"%d" % keys.instance_bucket(iid):
                said = "does not belong there"
            elif number != listed:
                said = "is none of that definition"
            elif float(score) != 0:
                said = "has a score"
            else:
                continue
            text = f"{census.label(tag)}: instance {_shown(iid)} in list {name.decode()} {said}"
            found.append(Finding(Unit("indexed", tag, name), "entry", iid, text))
        left = left[done:]
    return found


async def look_dirty(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at profiles that are behind: each is one that belongs there."""
    found = []
    place = census.places[tag]
    async for step in census.walk(keys.key(tag, "dirty"), "ZSCAN"):
        for mixed, since in zip(step[::2], step[1::2], strict=True):
            if len(mixed) != ids.SIZE or place.env.home(mixed) != tag or not _is_time(since):
                text = (
                    f"{place.label}: {census.profile(tag, mixed)} is behind since {_since(since)}"
                    f" in partition {place.partition}, and is no profile of it"
                )
                found.append(Finding(Unit("dirty", tag, names[0]), "entry", mixed, text))
    return found


async def look_stale(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at instances whose members are not yet told: there is one."""
    found = []
    async for step in census.walk(keys.key(tag, "stale"), "ZSCAN"):
        entries = step[::2]
        held = await census.call("verify_ended", [keys.key(tag, "stale")], entries)
        for iid, since, version in zip(entries, step[1::2], held, strict=True):
            if len(iid) != ids.SIZE or version is None or not _is_time(since):
                text = f"{census.label(tag)}: instance {_shown(iid)} is stale, and is none"
                found.append(Finding(Unit("stale", tag, names[0]), "entry", iid, text))
    return found


async def look_ended(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at contributions and instances that ended: they did."""
    found = []
    place = census.places[tag]
    async for step in census.walk(keys.key(tag, "ended"), "ZSCAN"):
        for part in in_steps(step, 2 * STEP):
            entries = part[::2]
            held = await census.call("verify_ended", [keys.key(tag, "stale")], entries)
            for entry, at, since in zip(entries, part[1::2], held, strict=True):
                iid = entry[: ids.SIZE]
                if len(entry) not in {ids.SIZE, 2 * ids.SIZE} or not _is_time(at):
                    said = f"has {_since(at)} as its end, which is none"
                elif place.env.home(iid) != tag:
                    said = "ended in another partition than its own"
                elif since is not None and (whole(since) or 0) <= float(at):
                    said = f"ended at {_since(at)}, and goes on since {shown(since)}"
                else:
                    continue
                what = "instance" if len(entry) == ids.SIZE else "the contribution"
                text = f"{place.label}: {what} {_shown(entry)} {said}"
                found.append(Finding(Unit("ended", tag, names[0]), "entry", entry, text))
    return found


async def look_requests(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at batches that profiles are remembered for: they go by themselves, and are hashes."""
    found = []
    place = census.places[tag]
    left = list(dict.fromkeys(names))
    while left:
        rows = await census.call(
            "verify_requests", [keys.key(tag, "erasing")], [BATCHES, *left[:STEP]]
        )
        for mixed, (state, milliseconds, *wrong) in zip(left, rows, strict=False):
            unit = Unit("requests", tag, mixed)
            who = f"{place.label}: profile {census.profile(tag, mixed)}"
            if place.env.home(mixed) != tag or (state == b"-" and milliseconds != -2):
                text = f"{who} is remembered for batches, and is no profile there"
                found.append(Finding(unit, "nobody", b"", text))
            elif milliseconds == -1:
                text = f"{who} is remembered for batches without end"
                found.append(Finding(unit, "endless", b"", text))
            found += [
                Finding(unit, "entry", entry, f"{who} is remembered for {shown(entry)}")
                for entry in wrong
            ]
        left = left[len(rows) :]
    return found


def _is_time(score: bytes) -> bool:
    return 0 <= float(score) < 2**53


def _since(score: bytes) -> str:
    return f"{float(score):.0f}"


def _shown(iid: bytes) -> str:
    return iid.hex() if len(iid) in {ids.SIZE, 2 * ids.SIZE} else shown(iid)
