"""Looking at profiles: records, and identities both ways across slots (invariant 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from service import ids, keys
from service.attributes import is_sound
from service.store_profiles import SHOWN
from service.verify.findings import STEP, Finding, Unit, in_steps, shown, whole

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from service.verify.findings import Census

LISTED = 500
"""Identities of one profile that come with its record; more are walked."""
KINDS = {field: kind for kind, field in SHOWN.items()}
"""Field of a record -> the identity type that it shows."""


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


class Owner(NamedTuple):
    """What a bucket holds of a settled identity: whose it is, and since when (digits)."""

    mixed: bytes
    since: bytes


def owner(value: bytes) -> Owner | None:
    """Read an owner; None where the value is none."""
    since = value[ids.SIZE :]
    return None if whole(since) is None else Owner(value[: ids.SIZE], since)


def parsed_identity(field: bytes) -> tuple[str, str] | None:
    """Read an identity's field; None where it is none."""
    try:
        return keys.parse_identity(field)
    except ValueError:
        return None


def named(field: bytes) -> str:
    """Name an identity in a sentence."""
    identity = parsed_identity(field)
    return f"{identity[0]} {shown(identity[1].encode())}" if identity else shown(field)


async def look_records(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at profiles that have a record: group 0, custom id, mpid, every identity listed."""
    found = []
    place = census.places[tag]
    listed: list[tuple[bytes, bytes]] = []
    for mixed, (state, custom_id, mpid, size, *identities) in zip(
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
        if ids.head(mixed) % len(place.env.partitions) != place.partition:
            text = f"{who} has a record in partition {place.partition}, where it does not belong"
            found.append(Finding(unit, "stray", b"", text))
        found += _look_shown(unit, who, "custom_id", custom_id, fields)
        found += _look_shown(unit, who, "mpid", mpid, fields)
        listed += [(mixed, field) for field in fields]
    for part in in_steps(listed):
        found += await _look_listed(census, tag, part)
    return found + await _look_kept(census, tag, "record", names)


async def look_attributes(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at attributes of profiles: each can be read, and belongs to somebody with a record."""
    return [
        *await _look_recordless(census, tag, "attributes", names),
        *await _look_kept(census, tag, "attributes", names),
    ]


async def kept(
    census: Census, tag: bytes, kind: str, names: list[bytes]
) -> AsyncIterator[tuple[bytes, bytes, bytes]]:
    """Walk what is kept of profiles, in hashes of a kind: mixed id, field, value."""
    cursor, left = b"0", names
    while left:
        done, cursor, *rows = await census.call(
            "verify_kept", [keys.key(tag, "erasing")], [kind, cursor, STEP, *left]
        )
        for row in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
            yield row
        left = left[done:]


def wrong_field(kind: str, field: bytes, value: bytes) -> str | None:
    """Say what is wrong with a field of a record or with an attribute, None if nothing is."""
    if kind == "attributes":
        return None if is_sound(field, value) else f"the attribute {shown(field)}, which is none"
    if field in {b"created_at", b"seq"}:
        sound = whole(value) is not None
    elif field in {b"nickname", b"custom_data"}:
        sound = _is_text(value)
    elif field == b"mpid":
        sound = is_mpid(value)
    else:
        # What it shows as its custom id is held against its identities.
        return None if field == b"custom_id" else f"a field {shown(field)}, which no record has"
    return None if sound else f"{field.decode()} {shown(value)}, which is none"


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


async def _look_kept(census: Census, tag: bytes, unit: str, names: list[bytes]) -> list[Finding]:
    kind = "profile" if unit == "record" else unit
    found = []
    undated: set[bytes] = set()
    dated: set[bytes] = set()
    async for mixed, field, value in kept(census, tag, kind, names):
        (dated if field == b"created_at" else undated).add(mixed)
        wrong = wrong_field(kind, field, value)
        if wrong is not None:
            text = f"{census.label(tag)}: profile {census.profile(tag, mixed)} has {wrong}"
            found.append(Finding(Unit(unit, tag, mixed), "kept", field, text))
    if kind == "profile":
        found += [
            Finding(
                Unit(unit, tag, mixed),
                "kept",
                b"created_at",
                f"{census.label(tag)}: profile {census.profile(tag, mixed)} has no created_at",
            )
            for mixed in undated - dated
        ]
    return found


async def look_listings(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look whether profiles that have identities have a record."""
    return await _look_recordless(census, tag, "listing", names)


async def _look_recordless(
    census: Census, tag: bytes, unit: str, names: list[bytes]
) -> list[Finding]:
    rows = await census.call("verify_records", [keys.key(tag, "erasing")], [0, *names])
    return [
        Finding(
            Unit(unit, tag, mixed),
            "recordless",
            b"",
            f"{census.label(tag)}: profile {census.profile(tag, mixed)}"
            " has attributes or identities, and no record",
        )
        for mixed, (state, *_) in zip(names, rows, strict=True)
        if state == b"N"
    ]


def _look_shown(
    unit: Unit, who: str, field: str, shows: bytes | None, fields: list[bytes]
) -> list[Finding]:
    """Hold the custom id, or mpid, that a record shows against the one that it lists."""
    prefix = keys.identity_field(KINDS[field], "")
    held = [each.removeprefix(prefix) for each in fields if each.startswith(prefix)]
    if held == ([] if shows is None else [shows]) and (field != "mpid" or all(map(is_mpid, held))):
        return []
    name = field.replace("_", " ")
    has = f"{name} {shown(shows)}" if shows is not None else f"no {name}"
    lists = ", ".join(shown(each) for each in sorted(held)) or "none"
    return [Finding(unit, field, b"", f"{who} has {has}, and lists as {KINDS[field]} {lists}")]


def is_mpid(value: bytes) -> bool:
    """Tell whether this is an mpid: a signed number of 64 bits as we write it."""
    return value.isascii() and ids.parse_mpid(f"mpid:{value.decode()}") is not None


async def _look_listed(
    census: Census, tag: bytes, listed: Sequence[tuple[bytes, bytes]]
) -> list[Finding]:
    """Look whether buckets hold the profiles, or their reservations, that list an identity."""
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
            if value is not None and value[: ids.SIZE] == mixed:
                continue
            who = f"{census.label(tag)}: profile {census.profile(tag, mixed)}"
            text = f"{who} lists {named(field)}, which does not resolve to it"
            found.append(Finding(Unit("record", tag, mixed), "unheld", field, text))
    return found


async def holders(
    census: Census, tag: bytes, wanted: list[tuple[int, bytes]]
) -> list[bytes | None]:
    """Read what buckets hold of identities, given as bucket and field."""
    held: list[bytes | None] = []
    for step in in_steps(wanted):
        arguments = [part for pair in step for part in pair]
        held += await census.call("verify_holders", [keys.key(tag, "reserved")], arguments)
    return held


async def look_buckets(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at buckets by number: place and form of each identity, reservations, owners."""
    found = []
    partitions = census.places[tag].env.partitions
    settled: dict[int, list[tuple[Unit, bytes, Owner]]] = {}
    cursor, left = b"0", names
    while left:
        done, cursor, *rows = await census.call(
            "verify_buckets", [keys.key(tag, "reserved")], [cursor, STEP, *left]
        )
        for bucket, field, value, attempt in zip(
            rows[::4], rows[1::4], rows[2::4], rows[3::4], strict=True
        ):
            unit = Unit("bucket", tag, bucket)
            wrong = _wrong_identity(census, unit, field, value, attempt)
            if wrong is not None:
                what, said = wrong
                text = f"{census.label(tag)}: identity {named(field)} {said}"
                found.append(Finding(unit, what, field, text))
            held = owner(value)
            if held is not None and (wrong is None or wrong[0] == "reserved"):
                home = ids.head(held.mixed) % len(partitions)
                settled.setdefault(home, []).append((unit, field, held))
        left = left[done:]
    for home, identities in settled.items():
        for part in in_steps(identities):
            found += await _look_owners(census, partitions[home], part)
    return found


def _wrong_identity(
    census: Census, unit: Unit, field: bytes, value: bytes, attempt: bytes | None
) -> tuple[str, str] | None:
    """Say what is wrong with an identity in its own slot, None if nothing is."""
    env, _, partition = census.places[unit.tag]
    identity = parsed_identity(field)
    if identity is None:
        return "form", "is of no known type"
    where = (partition, int(unit.name))
    if env.mixer.place_identity(*identity, len(env.partitions)) != where:
        return "place", f"lies in bucket {where[1]} of partition {where[0]}, by mistake"
    if owner(value) is not None:
        return None if attempt is None else ("reserved", "is entered as reserved, and is not")
    held = reservation(value)
    if held is None:
        return "form", f"resolves to {shown(value)}, which is no profile"
    if attempt is None or float(attempt) != held.attempt:
        who = census.profile(unit.tag, held.mixed)
        return "reserved", f"is reserved by {who}, and not entered so"
    return None


async def _look_owners(
    census: Census, tag: bytes, identities: Sequence[tuple[Unit, bytes, Owner]]
) -> list[Finding]:
    letters: bytes = await census.call(
        "verify_owners",
        [keys.key(tag, "erasing")],
        [part for _, field, held in identities for part in (held.mixed, field, held.since)],
    )
    return [
        Finding(
            unit,
            _OWNERS[letter][0],
            field,
            f"{census.label(tag)}: identity {named(field)} resolves to profile"
            f" {census.profile(tag, held.mixed)}, which {_OWNERS[letter][1]}",
        )
        for (unit, field, held), letter in zip(identities, letters, strict=True)
        if letter in _OWNERS
    ]


_OWNERS = {
    ord("R"): ("unlisted", "does not list it"),
    ord("S"): ("unlisted", "lists it since another moment"),
    ord("-"): ("ownerless", "has no record"),
}


async def look_reserved(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at the open reservations of a slot: each has to be what its bucket holds."""
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
    """Look at who is being erased in a partition: each is an id that belongs there."""
    found = []
    place = census.places[tag]
    count = len(place.env.partitions)
    for name in names:
        async for step in census.walk(keys.key(tag, "erasing"), "SSCAN"):
            for mixed in step:
                if len(mixed) != ids.SIZE or ids.head(mixed) % count != place.partition:
                    text = (
                        f"{place.label}: {census.profile(tag, mixed)} is being erased in partition"
                        f" {place.partition}, and is no profile of it"
                    )
                    found.append(Finding(Unit("erasing", tag, name), "entry", mixed, text))
    return found
