"""Looking at profiles: records, and identities both ways across slots (invariant 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from service import ids, keys
from service.findings import STEP, Finding, Unit, in_steps, shown, whole

if TYPE_CHECKING:
    from service.findings import Census

LISTED = 500
"""Identities of one profile that come with its record; more are walked."""
CUSTOM_ID = "customer_id"
"""The identity type that a record shows as its custom_id."""


class Reservation(NamedTuple):
    """What a bucket holds of an identity that is not settled: for whom, and since which attempt."""

    mixed: bytes
    attempt: int


def reservation(value: bytes) -> Reservation | None:
    """Read a reservation; None where the value is none."""
    attempt = whole(value[ids.SIZE + 1 :])
    if value[ids.SIZE : ids.SIZE + 1] != b"r" or attempt is None:
        return None
    return Reservation(value[: ids.SIZE], attempt)


def parsed_identity(field: bytes) -> tuple[str, str] | None:
    """Read an identity's field; None where it is none."""
    try:
        return keys.parse_identity(field)
    except ValueError:
        return None


def named(field: bytes) -> str:
    """An identity in a sentence."""
    identity = parsed_identity(field)
    return f"{identity[0]} {shown(identity[1].encode())}" if identity else shown(field)


async def look_records(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Profiles by mixed id that have a record: group 0, custom id, and every identity listed."""
    found = []
    place = census.places[tag]
    listed: list[tuple[bytes, bytes]] = []
    for mixed, (state, custom_id, size, *identities) in zip(
        names,
        await census.call("verify_records", [keys.key(tag, "erasing")], [LISTED, *names]),
        strict=True,
    ):
        if state in {b"E", b"-"}:
            continue
        fields = identities
        if size > LISTED:
            fields = []
            async for step in census.walk(keys.of_profile(tag, "identities", mixed), "HSCAN"):
                fields += step[::2]
        unit = Unit("record", tag, mixed)
        who = f"{place.label}: profile {census.profile(tag, mixed)}"
        if state == b"N":
            text = f"{who} has attributes or identities, and no record"
            found.append(Finding(unit, "recordless", b"", text))
        elif state == b"O":
            text = f"{who} is known, and not in group 0 (static memberships or a record)"
            found.append(Finding(unit, "outside", b"", text))
        if ids.head(mixed) % len(place.env.partitions) != place.index:
            text = f"{who} has a record in partition {place.index}, where it does not belong"
            found.append(Finding(unit, "stray", b"", text))
        found += _look_custom_id(unit, who, custom_id, fields)
        listed += [(mixed, field) for field in fields]
    for step in in_steps(listed):
        found += await _look_listed(census, tag, step)
    return found


async def look_listings(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Profiles by mixed id that have attributes or identities: whether they have a record."""
    rows = await census.call("verify_records", [keys.key(tag, "erasing")], [0, *names])
    return [
        Finding(
            Unit("listing", tag, mixed),
            "recordless",
            b"",
            f"{census.label(tag)}: profile {census.profile(tag, mixed)}"
            " has attributes or identities, and no record",
        )
        for mixed, (state, *_) in zip(names, rows, strict=True)
        if state == b"N"
    ]


def _look_custom_id(
    unit: Unit, who: str, custom_id: bytes | None, fields: list[bytes]
) -> list[Finding]:
    """A record shows the one customer_id that it lists, and lists the one that it shows."""
    prefix = keys.identity_field(CUSTOM_ID, "")
    held = [field.removeprefix(prefix) for field in fields if field.startswith(prefix)]
    if held == ([] if custom_id is None else [custom_id]):
        return []
    has = f"custom id {shown(custom_id)}" if custom_id is not None else "no custom id"
    lists = ", ".join(shown(each) for each in sorted(held)) or "none"
    return [Finding(unit, "custom_id", b"", f"{who} has {has}, and lists as customer_id {lists}")]


async def _look_listed(
    census: Census, tag: bytes, listed: list[tuple[bytes, bytes]]
) -> list[Finding]:
    """Identities that profiles list: their buckets have to hold the profile, or its reservation."""
    found = []
    env = census.places[tag].env
    wanted: dict[int, list[tuple[bytes, bytes, int]]] = {}
    for mixed, field in listed:
        identity = parsed_identity(field)
        if identity is None:
            who = f"{census.label(tag)}: profile {census.profile(tag, mixed)}"
            text = f"{who} lists {shown(field)}, which is no identity"
            found.append(Finding(Unit("record", tag, mixed), "listed", field, text))
        else:
            partition, bucket = env.mixer.place_identity(*identity, len(env.partitions))
            wanted.setdefault(partition, []).append((mixed, field, bucket))
    for partition, rows in wanted.items():
        held = await holders(
            census, env.partitions[partition], [(bucket, field) for _, field, bucket in rows]
        )
        for (mixed, field, _), value in zip(rows, held, strict=True):
            if value is not None and (value == mixed or _reserves(value, mixed)):
                continue
            who = f"{census.label(tag)}: profile {census.profile(tag, mixed)}"
            text = f"{who} lists {named(field)}, which does not resolve to it"
            found.append(Finding(Unit("record", tag, mixed), "unheld", field, text))
    return found


def _reserves(value: bytes, mixed: bytes) -> bool:
    held = reservation(value)
    return held is not None and held.mixed == mixed


async def holders(
    census: Census, tag: bytes, wanted: list[tuple[int, bytes]]
) -> list[bytes | None]:
    """What buckets hold of identities, given as bucket and field."""
    held: list[bytes | None] = []
    for step in in_steps(wanted):
        arguments = [part for pair in step for part in pair]
        held += await census.call("verify_holders", [keys.key(tag, "reserved")], arguments)
    return held


async def look_buckets(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Buckets of identities by number: place and form of each, reservations, and the owners."""
    found = []
    place = census.places[tag]
    partitions = place.env.partitions
    settled: dict[int, list[tuple[Unit, bytes, bytes]]] = {}
    cursor, left = b"0", names
    while left:
        done, cursor, *rows = await census.call(
            "verify_buckets", [keys.key(tag, "reserved")], [cursor, STEP, *left]
        )
        for bucket, field, value, attempt in zip(
            rows[::4], rows[1::4], rows[2::4], rows[3::4], strict=True
        ):
            unit = Unit("bucket", tag, bucket)
            who = f"{place.label}: identity {named(field)}"
            where = (place.index, int(bucket))
            identity = parsed_identity(field)
            if identity is None:
                text = f"{who} is of no known type"
                found.append(Finding(unit, "form", field, text))
            elif place.env.mixer.place_identity(*identity, len(partitions)) != where:
                text = f"{who} lies in bucket {where[1]} of partition {where[0]}, by mistake"
                found.append(Finding(unit, "place", field, text))
            elif len(value) == ids.SIZE:
                if attempt is not None:
                    text = f"{who} is entered as reserved, and is not"
                    found.append(Finding(unit, "reserved", field, text))
                owner = ids.head(value) % len(partitions)
                settled.setdefault(owner, []).append((unit, field, value))
            elif (held := reservation(value)) is None:
                text = f"{who} resolves to {shown(value)}, which is no profile"
                found.append(Finding(unit, "form", field, text))
            elif attempt is None or float(attempt) != held.attempt:
                text = f"{who} is reserved by {census.profile(tag, held.mixed)}, and not entered so"
                found.append(Finding(unit, "reserved", field, text))
        left = left[done:]
    for owner, pairs in settled.items():
        for part in in_steps(pairs):
            found += await _look_owners(census, partitions[owner], part)
    return found


async def _look_owners(
    census: Census, tag: bytes, pairs: list[tuple[Unit, bytes, bytes]]
) -> list[Finding]:
    letters: bytes = await census.call(
        "verify_owners",
        [keys.key(tag, "erasing")],
        [part for _, field, mixed in pairs for part in (mixed, field)],
    )
    return [
        Finding(
            unit,
            "unlisted" if letter == _RECORD else "ownerless",
            field,
            f"{census.label(tag)}: identity {named(field)} resolves to profile"
            f" {census.profile(tag, mixed)}, which "
            + ("does not list it" if letter == _RECORD else "has no record"),
        )
        for (unit, field, mixed), letter in zip(pairs, letters, strict=True)
        if letter in {_RECORD, _NOTHING}
    ]


_RECORD, _NOTHING = b"R-"


async def look_reserved(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """The open reservations of a slot: each has to be what its bucket holds."""
    found = []
    for name in names:
        cursor = b"0"
        while True:
            cursor, *rows = await census.call(
                "verify_reserved", [keys.key(tag, "reserved")], [cursor]
            )
            for entry, attempt, value in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
                held = None if value is None else reservation(value)
                if held is None or held.attempt != float(attempt):
                    text = (
                        f"{census.label(tag)}: {shown(entry)} is entered as reserved,"
                        " and its bucket holds no such reservation"
                    )
                    found.append(Finding(Unit("reserved", tag, name), "entry", entry, text))
            if cursor == b"0":
                break
    return found


async def look_erasing(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """The profiles of a partition that are being erased: each is an id of this partition."""
    found = []
    place = census.places[tag]
    count = len(place.env.partitions)
    for name in names:
        async for step in census.walk(keys.key(tag, "erasing"), "SSCAN"):
            for mixed in step:
                if len(mixed) != ids.SIZE or ids.head(mixed) % count != place.index:
                    text = (
                        f"{place.label}: {census.profile(tag, mixed)} is being erased in partition"
                        f" {place.index}, and is no profile of it"
                    )
                    found.append(Finding(Unit("erasing", tag, name), "entry", mixed, text))
    return found
