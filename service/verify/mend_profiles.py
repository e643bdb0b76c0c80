"""Mending profiles: what is kept of them, and the identities that resolve to them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from service import ids, keys
from service.errors import Conflict, Erasing, Stale
from service.store_profiles import SHOWN
from service.verify.findings import in_steps, now_us, shown
from service.verify.look_profiles import (
    KINDS,
    holders,
    is_mpid,
    kept,
    named,
    owner,
    parsed_identity,
    wrong_field,
)
from service.verify.mend_members import mend_facts, mend_strays

if TYPE_CHECKING:
    from service.verify.findings import Census, Finding


async def mend_records(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Mend records, group 0, and identities that profiles list."""
    done = await mend_strays(census, tag, findings)
    done += await mend_facts(census, tag, findings)
    done += await _mend_kept(census, tag, "profile", findings)
    for each in findings:
        try:
            if each.what in KINDS:
                done += await _mend_shown(census, tag, each.unit.name, each.what)
            elif each.what == "listed":
                done += await _unlist(census, tag, each.unit.name, each.about)
            elif each.what == "unheld":
                done += await _hold(census, tag, each.unit.name, each.about)
        except (Erasing, Stale):
            continue
    return done


async def mend_attributes(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Drop attributes that cannot be read; give profiles that have some a record."""
    done = await mend_facts(census, tag, findings)
    return done + await _mend_kept(census, tag, "attributes", findings)


async def _mend_kept(census: Census, tag: bytes, kind: str, findings: list[Finding]) -> list[str]:
    """Drop fields that cannot be read; a record gets a time of creation where it has none."""
    done = []
    for mixed in sorted({each.unit.name for each in findings if each.what == "kept"}):
        now = now_us()
        fields = {field: value async for _, field, value in kept(census, tag, kind, [mixed])}
        changes = [
            (field, b"=" + value, b"=%d" % now if field == b"created_at" else b"")
            for field, value in fields.items()
            if wrong_field(kind, field, value) is not None
        ]
        if kind == "profile" and fields and b"created_at" not in fields:
            changes.append((b"created_at", b"", b"=%d" % now))
        for step in in_steps(changes):
            await census.call(
                "mend_kept",
                [
                    keys.of_profile(tag, kind, mixed),
                    keys.of_profile(tag, "profile", mixed),
                    keys.key(tag, "erasing"),
                ],
                [mixed, now, *(part for change in step for part in change)],
            )
        who = f"{census.label(tag)}: profile {census.profile(tag, mixed)}"
        done += [
            f"{who}: {shown(field)} {'is now' if wanted else 'dropped'}"
            for field, _, wanted in changes
        ]
    return done


async def _hold(census: Census, tag: bytes, mixed: bytes, field: bytes) -> list[str]:
    """Make an identity that a profile lists resolve to it; unlist it if another profile has it."""
    identity = parsed_identity(field)
    if identity is None:
        return []
    env = census.places[tag].env
    who = f"{census.label(tag)}: profile {census.profile(tag, mixed)}"
    try:
        await census.store.profiles.add_identity(env, env.mixer.unmix(mixed), *identity)
    except Conflict:
        return await _unlist(census, tag, mixed, field)
    return [f"{who}: {named(field)} resolves to it again"]


async def _unlist(census: Census, tag: bytes, mixed: bytes, field: bytes) -> list[str]:
    shows = await _shown(census, tag, mixed)
    # Where no record shows identities of this kind, what is shown as custom id stays.
    name, wanted = "custom_id", shows["custom_id"]
    for each, kind in KINDS.items():
        if field == keys.identity_field(kind, "") + shows[each]:
            name, wanted = each, b""
    if not await _change(census, tag, mixed, name, shows[name], wanted, [field]):
        return []
    who = f"{census.label(tag)}: profile {census.profile(tag, mixed)}"
    return [f"{who}: {named(field)} unlisted"]


async def _mend_shown(census: Census, tag: bytes, mixed: bytes, field: str) -> list[str]:
    """Make the record show the identity of a kind that it lists, or list the one that it shows."""
    kind, prefix = KINDS[field], keys.identity_field(KINDS[field], "")
    shows = (await _shown(census, tag, mixed))[field]
    listed: list[bytes] = []
    async for step in census.walk(keys.of_profile(tag, "identities", mixed), "HSCAN"):
        listed += [each for each in step[::2] if each.startswith(prefix)]
    env = census.places[tag].env
    name = field.replace("_", " ")
    who = f"{census.label(tag)}: profile {census.profile(tag, mixed)}"
    fit = [each for each in listed if field != "mpid" or is_mpid(each.removeprefix(prefix))]
    if not listed:
        try:
            await census.store.profiles.add_identity(
                env, env.mixer.unmix(mixed), kind, shows.decode()
            )
        except (Conflict, UnicodeDecodeError):
            await _change(census, tag, mixed, field, shows, b"", [])
            return [f"{who}: its {name} is taken away, another profile has it"]
        # Where it was held already and not listed, it is confirmed as any other.
        await _list(census, tag, mixed, prefix + shows)
        return [f"{who}: its {name} resolves to it again"]
    chosen = prefix + shows if prefix + shows in fit else min(fit, default=prefix)
    others = [each for each in listed if each != chosen]
    await _change(census, tag, mixed, field, shows, chosen.removeprefix(prefix), others)
    for each in others:
        await release(census, tag, each, mixed)
    return [f"{who}: its {name} is {named(chosen) if fit else 'none'}"]


async def _shown(census: Census, tag: bytes, mixed: bytes) -> dict[str, bytes]:
    """Read what a record shows of identities, by field; empty where it shows none."""
    [[_, custom_id, mpid, *_]] = await census.call(
        "verify_records", [keys.key(tag, "erasing")], [0, mixed]
    )
    return {"custom_id": custom_id or b"", "mpid": mpid or b""}


async def _change(
    census: Census,
    tag: bytes,
    mixed: bytes,
    field: str,
    expected: bytes,
    wanted: bytes,
    identities: list[bytes],
) -> bool:
    return bool(
        await census.call(
            "mend_record",
            [keys.of_profile(tag, "profile", mixed), keys.of_profile(tag, "identities", mixed)],
            [mixed, now_us(), field, expected, wanted, *identities],
        )
    )


def _place(census: Census, tag: bytes, field: bytes) -> tuple[bytes, int] | None:
    """Give the partition and the bucket where an identity of an environment belongs."""
    identity = parsed_identity(field)
    if identity is None:
        return None
    env = census.places[tag].env
    partition, bucket = env.mixer.place_identity(*identity, len(env.partitions))
    return env.partitions[partition], bucket


async def _held(census: Census, tag: bytes, field: bytes) -> bytes | None:
    place = _place(census, tag, field)
    return None if place is None else (await holders(census, place[0], [(place[1], field)]))[0]


async def _replace(census: Census, tag: bytes, field: bytes, held: bytes, settled: bytes) -> bool:
    """Replace what an identity's bucket holds, if it is still that."""
    place = _place(census, tag, field)
    return place is not None and bool(
        await census.call(
            "settle_identity",
            [keys.identity_bucket(*place), keys.key(place[0], "reserved")],
            [place[1], field, held, settled],
        )
    )


async def release(census: Census, tag: bytes, field: bytes, mixed: bytes) -> bool:
    """Take an identity away from a profile, where it resolves to it."""
    held = await _held(census, tag, field)
    if held is None or held[: ids.SIZE] != mixed:
        return False
    return await _replace(census, tag, field, held, b"")


async def _list(census: Census, tag: bytes, mixed: bytes, field: bytes) -> None:
    """Make a profile list an identity that resolves to it, and both since the same moment.

    Raises Conflict where the profile has another custom id.
    """
    identity, held = parsed_identity(field), await _held(census, tag, field)
    if identity is None or held is None or owner(held) is None or held[: ids.SIZE] != mixed:
        return
    kind, value = identity
    since, _ = await census.call(
        "confirm_identity",
        [
            keys.of_profile(tag, "profile", mixed),
            keys.of_profile(tag, "identities", mixed),
            keys.of_profile(tag, "fence", mixed),
            keys.key(tag, "erasing"),
        ],
        [mixed, field, now_us(), SHOWN.get(kind, ""), value, 0, now_us()],
    )
    await _replace(census, tag, field, held, mixed + since)


async def mend_buckets(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Identities in buckets: those that are none go, those of a profile are listed there."""
    done = []
    for each in findings:
        try:
            done += await _mend_bucket(census, tag, each)
        except (Erasing, Stale):
            continue
    return done


async def _mend_bucket(census: Census, tag: bytes, finding: Finding) -> list[str]:
    bucket, field = finding.unit.name, finding.about
    who = f"{census.label(tag)}: identity {named(field)}"
    if finding.what == "reserved":
        entry = b"%b:%b" % (bucket, field)
        await census.call("mend_reservation", [keys.key(tag, "reserved")], [entry])
        return [f"{who}: its reservation entered as it is"]
    [value] = await holders(census, tag, [(int(bucket), field)])
    if value is None:
        return []
    env = census.places[tag].env
    mixed = value[: ids.SIZE]
    home = env.home(mixed)
    if finding.what == "unlisted":
        try:
            await _list(census, home, mixed, field)
        except Conflict:
            await release(census, tag, field, mixed)
            return [f"{who}: removed, since its profile has another"]
        return [f"{who}: listed by profile {census.profile(home, mixed)} again"]
    if finding.what == "ownerless":
        await release(census, tag, field, mixed)
        return [f"{who}: removed, since its profile does not exist"]
    identity = parsed_identity(field)
    if finding.what == "place" and identity is not None and (held := owner(value)):
        [letter] = await census.call(
            "verify_owners", [keys.key(home, "erasing")], [mixed, field, held.since]
        )
        if letter in b"RLS":
            with contextlib.suppress(Conflict):
                await census.store.profiles.add_identity(env, env.mixer.unmix(mixed), *identity)
    removed = await census.call(
        "settle_identity",
        [keys.identity_bucket(tag, int(bucket)), keys.key(tag, "reserved")],
        [bucket, field, value, b""],
    )
    return [f"{who}: removed from bucket {bucket.decode()}"] if removed else []


async def mend_reserved(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Entries of `reserved` that no bucket knows."""
    for each in findings:
        await census.call("mend_reservation", [keys.key(tag, "reserved")], [each.about])
    return [
        f"{census.label(tag)}: the reservation {named(each.about.partition(b':')[2])} put right"
        for each in findings
    ]
