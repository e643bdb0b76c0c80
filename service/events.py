"""Ingest, as mParticle's SDKs call it: `/v2/events`, `/v2/bulkevents`, `/v2/bulkevents/historical`.

A batch that does not fit changes nothing. Alone it is refused; in a bulk the others are done all
the same, as the documents say, and it is counted and logged. What follows from what was written is
there when the request is answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from service.attributes import MANY, MANY_BYTES
from service.batches import BATCHES, BODY_BYTES, Batch, cut_bulk, read_batch, require_utf8
from service.endpoint import Resource, Wire, endpoint, read_body
from service.errors import Invalid, TooLarge
from service.resolution import DUPLICATE, TOO_LARGE, TOO_MANY, TURN, WRITTEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.admission import TenantCall
    from service.batches import UserUpdate

__all__ = ["BulkEvents", "Events", "HistoricalEvents"]

SCOPE = "events:write"

TOLD = 5
"""Batches of a bulk that did not fit of which the log, or the answer, says why."""

log = logging.getLogger(__name__)

Bulk = Annotated[list[Batch], Meta(min_length=1, max_length=BATCHES)]
"""For the document: each batch of a bulk is looked at by itself."""

_REFUSALS = {
    TOO_MANY: f"The user would have more than {MANY} attributes.",
    TOO_LARGE: f"The user's attributes would have more than {MANY_BYTES:,} bytes together.",
}
_COUNTED = {WRITTEN: "accepted", DUPLICATE: "duplicate", TOO_MANY: "invalid", TOO_LARGE: "invalid"}


class Events(Resource):
    """`/v2/events`."""

    @endpoint(SCOPE, status=HTTPStatus.ACCEPTED, wire=Wire(basic=True, reads=Batch), reply=None)
    async def on_post(self, call: TenantCall) -> None:
        """Upload one batch: what is known of one user.

        The user is the one of `mpid`, or of the first of `user_identities` that somebody has, in
        the documented order, or a new one; identities of nobody become theirs, and nobody's is
        taken. `user_attributes` are set, `deleted_user_attributes` deleted; each is as of the
        `user_attribute_change` event that tells of it, if there is one, else as of now, and what is
        older than what is there changes nothing. A batch with a `source_request_id` of before is
        not done again. Events are not kept.
        """
        now_us = time.time_ns() // 1000
        body = await read_body(call.request, BODY_BYTES)
        try:
            require_utf8(body)
            update = read_batch(body)
        except (Invalid, TooLarge):
            call.backend.counters.count("belong_ingest_batches_total", "invalid")
            raise
        [letter] = await _write(call, [update], now_us)
        if letter in _REFUSALS:
            raise Invalid(_REFUSALS[letter], "user_attributes")


class BulkEvents(Resource):
    """`/v2/bulkevents`."""

    @endpoint(SCOPE, status=HTTPStatus.ACCEPTED, wire=Wire(basic=True, reads=Bulk), reply=None)
    async def on_post(self, call: TenantCall) -> None:
        """Upload up to 100 batches, of any users.

        Each is done as if it had come alone, in their order. One that does not fit is passed over,
        counted and logged, and the others are done; only where none fits is the request refused.
        """
        await _write_bulk(call, historical=False)


class HistoricalEvents(Resource):
    """`/v2/bulkevents/historical`."""

    @endpoint(SCOPE, status=HTTPStatus.ACCEPTED, wire=Wire(basic=True, reads=Bulk), reply=None)
    async def on_post(self, call: TenantCall) -> None:
        """Upload up to 100 batches of the past.

        As other bulks; each batch needs events, and each of these a `timestamp_unixtime_ms` of 72
        hours ago or earlier: the attributes are as of the latest of them.
        """
        await _write_bulk(call, historical=True)


async def _write_bulk(call: TenantCall, *, historical: bool) -> None:
    """Do a bulk, without the batches that do not fit."""
    now_us = time.time_ns() // 1000
    raw = cut_bulk(await read_body(call.request, BODY_BYTES))
    updates: list[UserUpdate] = []
    places: list[int] = []
    refused: dict[int, str] = {}
    for place, each in enumerate(raw):
        if place and place % TURN == 0:
            await asyncio.sleep(0)
        try:
            updates.append(read_batch(each, historical_at_us=now_us if historical else None))
        except (Invalid, TooLarge) as error:
            refused[place] = str(error)
        else:
            places.append(place)
    call.backend.counters.count("belong_ingest_batches_total", "invalid", by=len(refused))
    letters = await _write(call, updates, now_us)
    for place, letter in zip(places, letters, strict=True):
        if letter in _REFUSALS:
            refused[place] = _REFUSALS[letter]
    if not refused:
        return
    told = " ".join(f"[{place}] {refused[place]}" for place in sorted(refused)[:TOLD])
    message = f"{len(refused)} of {len(raw)} batches do not fit"
    if len(refused) == len(raw):
        raise Invalid(f"{message}. {told}")
    log.warning(
        "%s, and were passed over (application %s, request id %s): %s",
        message,
        call.application.client_id,
        call.request.request_id,
        told,
    )


async def _write(call: TenantCall, updates: Sequence[UserUpdate], now_us: int) -> bytes:
    """Do batches of any environment, and what follows; a letter for each says what became of it."""
    letters = bytearray(len(updates))
    counters = call.backend.counters
    principal = call.principal
    for name, env in call.application.environments.items():
        places = [place for place, each in enumerate(updates) if each.environment == name]
        if not places:
            continue
        done = await call.store.ingest.write_batches(
            env,
            [updates[place] for place in places],
            principal.credential or principal.subject,
            now_us=now_us,
        )
        for place, letter in zip(places, done.letters, strict=True):
            letters[place] = letter
        for letter, word in _COUNTED.items():
            if by := done.letters.count(letter):
                counters.count("belong_ingest_batches_total", word, by=by)
        if done.dropped:
            counters.count("belong_ingest_dropped_attributes_total", by=done.dropped)
        if not (done.dirty or done.unsettled):
            continue
        changes = {change.name for place in places for change in updates[place].changes}
        names = [each.encode() for each in changes]
        if done.dirty:
            await call.store.derivation.derive_profiles(env, done.dirty, names=names)
        if done.unsettled:
            await call.store.settling.settle(env, done.unsettled, names)
    return bytes(letters)
