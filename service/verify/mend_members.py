"""Mending memberships: segments, counts and shapes follow what the profiles' side says.

Every step is one script that reads what is there and makes it right, so steps can be repeated and
run while the store is in use. Counts come first (then every later step keeps them exact), then
segments, then memberships, which are entered one by one as adding does it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service import keys
from service.errors import Erasing
from service.verify.findings import STEP, in_steps, now_us, numbered, shown
from service.verify.look_groups import known
from service.verify.look_members import derived

if TYPE_CHECKING:
    from service.verify.findings import Census, Finding

CHUNK = 50
"""Memberships that one script mends: about 1 ms."""
RESHAPES = 30
"""Segments that one script splits or merges: about 1 ms."""


async def mend_fields(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Drop what is kept under names that are no group numbers."""
    names = sorted({each.unit.name for each in findings})
    for step in in_steps(names):
        await census.call(
            "mend_fields",
            [keys.key(tag, "state"), keys.key(tag, "count"), keys.key(tag, "shape")],
            step,
        )
    return [f"{census.label(tag)}: dropped what was kept of {shown(each)}" for each in names]


async def mend_counts(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Recount groups, and bring their shapes to what the count asks for."""
    done = []
    for number in sorted({each.unit.name for each in findings}):
        done += await recount(census, tag, number)
    return done


async def recount(census: Census, tag: bytes, number: bytes) -> list[str]:
    """Recount one group in one partition."""
    more = 1
    first = None
    while more:
        more, *before, count, segments = await census.call(
            "mend_members",
            [keys.key(tag, "count"), keys.key(tag, "shape")],
            [number, RESHAPES],
        )
        first = before if first is None else first
    place = census.places[tag]
    who = f"{place.label}: group {number.decode()} in partition {place.partition}"
    done = []
    if first is not None and first[0] != (b"%d" % count if count else None):
        done.append(f"{who}: count set from {_said(first[0])} to {count}")
    if first is not None and first[1] != (b"%d" % segments if segments > 1 else None):
        done.append(f"{who}: shape set from {_said(first[1])} to {segments}")
    return done


def _said(raw: bytes | None) -> str:
    return "none" if raw is None else shown(raw)


async def mend_segments(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Put segments in order, then recount their groups."""
    done = []
    names = sorted({each.unit.name for each in findings})
    for name in names:
        number, depth, prefix = name.split(b":")
        more, offset, taken, moved = 1, 0, 0, 0
        while more:
            more, offset, out, away = await census.call(
                "mend_segment",
                [keys.key(tag, "erasing")],
                [number, depth, prefix, offset, CHUNK],
            )
            taken += out
            moved += away
        if taken or moved:
            where = f"{census.label(tag)}: group {number.decode()}"
            segment = f"segment {depth.decode()}:{prefix.decode()}"
            done.append(f"{where}: {segment}: {taken} ids taken out, {moved} put in their place")
    for number in sorted({name.partition(b":")[0] for name in names}):
        done += await recount(census, tag, number)
    return done


async def mend_memberships(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Enter members where their groups do not hold them; drop memberships of what is no group."""
    done = await mend_strays(census, tag, findings)
    done += await _mend_derived(census, tag, findings)
    named = [each for each in findings if each.what in {"missing", "field", "joined"}]
    pairs = sorted({(each.unit.name, each.about) for each in named})
    touched = set()
    for step in in_steps(pairs, CHUNK):
        exist = await _existing(census, tag, {number for _, number in step if number.isdigit()})
        arguments = [
            part for mixed, number in step for part in (mixed, number, int(number in exist))
        ]
        letters = await census.call(
            "mend_memberships", [keys.key(tag, "state")], [now_us(), *arguments]
        )
        for (mixed, number), letter in zip(step, letters.decode(), strict=True):
            if letter in _MENDED:
                touched.add(number)
                who = f"{census.label(tag)}: profile {census.profile(tag, mixed)}"
                done.append(f"{who}: {_MENDED[letter]} {numbered(number)}")
    for number in sorted(touched):
        if number.isdigit():
            done += await recount(census, tag, number)
    return done + await mend_facts(census, tag, findings)


_MENDED = {
    "+": "entered into the segments of group",
    "-": "dropped the membership in",
    "t": "given a time of joining in group",
}


async def _existing(census: Census, tag: bytes, numbers: set[bytes]) -> set[bytes]:
    """Pick the group numbers that the directory knows: with a document, or being swept."""
    ordered = sorted(numbers)
    directory = census.places[tag].env.directory
    return {
        number
        for number, group in zip(ordered, await known(census, directory, ordered), strict=True)
        if group.exists or group.deleting is not None
    }


async def _mend_derived(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    done = []
    for mixed in sorted({each.unit.name for each in findings if each.what == "derived"}):
        size, said, counted = await derived(census, tag, mixed)
        declared = [keys.memberships(tag, mixed)]
        if await census.call("mend_derived", declared, [size, said, counted]):
            who = f"{census.label(tag)}: profile {census.profile(tag, mixed)}"
            done.append(f"{who}: the number of derived memberships set to {counted}")
    return done


async def mend_facts(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Make records where only attributes or identities are, and put group 0 right."""
    done = []
    wanted = {"outside", "inside", "recordless", "derived", "missing", "field"}
    names = sorted({each.unit.name for each in findings if each.what in wanted})
    for step in in_steps(names, CHUNK):
        replies = await census.call("mend_facts", [keys.key(tag, "erasing")], [now_us(), *step])
        for mixed, letters in zip(step, replies, strict=True):
            who = f"{census.label(tag)}: profile {census.profile(tag, mixed)}"
            done += [f"{who}: {_FACTS[letter]}" for letter in letters.decode()]
    return done + (await recount(census, tag, b"0") if done else [])


_FACTS = {"r": "given a record", "+": "entered into group 0", "-": "taken out of group 0"}


async def mend_strays(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Move what is kept of profiles in a wrong partition into their own."""
    done = []
    env = census.places[tag].env
    for mixed in sorted({each.unit.name for each in findings if each.what == "stray"}):
        home = env.home(mixed)
        declared = [keys.key(home, "erasing")]
        numbers: list[bytes] = []
        try:
            for kind in ("profile", "attributes", "identities", "m"):
                async for step in census.walk(keys.of_profile(tag, kind, mixed), "HSCAN"):
                    for part in in_steps(step, 2 * STEP):
                        await census.call("mend_receive", declared, [mixed, kind, *part])
                    numbers += step[::2] if kind == "m" else []
        except Erasing:
            pass
        for part in in_steps(numbers, CHUNK):
            exist = await _existing(census, tag, {each for each in part if each.isdigit()})
            await census.call(
                "mend_memberships",
                [keys.key(home, "state")],
                [now_us(), *(x for each in part for x in (mixed, each, int(each in exist)))],
            )
        await census.call("mend_facts", declared, [now_us(), mixed])
        while await census.call("mend_stray", [keys.key(tag, "erasing")], [mixed, CHUNK]):
            pass
        who = f"{census.label(tag)}: profile {census.profile(tag, mixed)}"
        done.append(f"{who}: moved into its own partition")
    return done


async def mend_erasing(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Drop entries of `erasing` that are no profiles of the partition."""
    entries = sorted({each.about for each in findings})
    for step in in_steps(entries):
        await census.call("mend_erasing", [keys.key(tag, "erasing")], step)
    return [
        f"{census.label(tag)}: {census.profile(tag, each)} is not being erased any more"
        for each in entries
    ]
