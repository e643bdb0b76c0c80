"""Whether this process lives, and whether it can answer."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec

from service.endpoint import ENCODER, Resource, Wire, endpoint
from service.errors import Unavailable

if TYPE_CHECKING:
    from service.admission import Call


class Health(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """`ok`, or `unavailable` and why."""

    status: str
    reason: str | None = None


_OK = ENCODER.encode(Health("ok"))


class Healthz(Resource):
    """`/healthz`."""

    @endpoint(None, reply=Health)
    async def on_get(self, _call: Call) -> bytes:
        """Tell that the process lives. The store is not asked."""
        return _OK


class Readyz(Resource):
    """`/readyz`."""

    @endpoint(
        None,
        reply=Health,
        errors=(HTTPStatus.SERVICE_UNAVAILABLE,),
        wire=Wire(problems={HTTPStatus.SERVICE_UNAVAILABLE: Health}),
    )
    async def on_get(self, call: Call) -> bytes:
        """Tell whether requests can be answered: 503 with the reason where not."""
        try:
            await call.backend.store.ping()
        except Unavailable as error:
            call.response.status = HTTPStatus.SERVICE_UNAVAILABLE
            call.response.set_header("Retry-After", str(error.retry_after_seconds))
            return ENCODER.encode(Health("unavailable", str(error)))
        return _OK
