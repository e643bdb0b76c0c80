"""The token endpoint: client credentials in, a bearer token out (RFC 6749, section 4.4).

Owns the three ways in which clients send their credential, and RFC 6749's errors. What a token
holds is in `auth`. It is not for browsers: a page that held a credential's secret would give it to
everybody, so no answer of it has CORS headers, and a preflight of it lets nothing through.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote_plus

import msgspec

from service.auth import LIFETIME_SECONDS, basic, mint, proven
from service.endpoint import (
    ENCODER,
    JSON,
    Request,
    Resource,
    Wire,
    discard_body,
    endpoint,
    read_body,
)
from service.errors import TooLarge
from service.registry import SCOPES

if TYPE_CHECKING:
    from service.admission import Call
    from service.registry import Credential, Registry

GRANT = "client_credentials"

REQUEST_LIMIT_BYTES = 16 * 1024
FIELDS_LIMIT = 20
"""Anybody may send a request here, and 8 MiB of form hold up the event loop for 10 seconds."""


class TokenRequest(msgspec.Struct):
    """What a client asks for. More members, and any `audience` or none, are fine."""

    grant_type: str | None = None
    client_id: str | None = None
    client_secret: str | None = None
    audience: str | None = None
    scope: str | None = None


class TokenBody(msgspec.Struct, forbid_unknown_fields=True):
    """A token, as RFC 6749 says."""

    access_token: str
    expires_in: int
    token_type: str
    scope: str


class TokenErrorBody(msgspec.Struct, forbid_unknown_fields=True):
    """Why there is no token."""

    error: str
    error_description: str


class _Refused(Exception):
    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error = error


_REFUSALS = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
)

_DECODER = msgspec.json.Decoder(TokenRequest)


class Token(Resource):
    """`/oauth/token`."""

    @endpoint(
        None,
        reply=TokenBody,
        errors=(*_REFUSALS, HTTPStatus.SERVICE_UNAVAILABLE),
        wire=Wire(
            takes=("application/x-www-form-urlencoded", JSON),
            reads=TokenRequest,
            problems=dict.fromkeys(_REFUSALS, TokenErrorBody),
            basic=True,
        ),
    )
    async def on_post(self, call: Call) -> bytes:
        """Get a bearer token for a credential.

        JSON or a form; the credential in the body or as HTTP Basic.
        """
        registry = call.backend.store.registry
        response = call.response
        response.set_header("Cache-Control", "no-store")
        response.set_header("Pragma", "no-cache")
        try:
            data = await read_body(call.request, REQUEST_LIMIT_BYTES)
        except TooLarge as error:
            await discard_body(call.request)
            response.status = error.status
            return ENCODER.encode(TokenErrorBody("invalid_request", str(error)))
        try:
            wanted = _read(call.request, data)
            credential, scopes = await _granted(registry, wanted)
        except _Refused as refused:
            response.status = HTTPStatus.BAD_REQUEST
            if refused.error == "invalid_client":
                response.status = HTTPStatus.UNAUTHORIZED
                response.set_header("WWW-Authenticate", 'Basic realm="belong"')
            return ENCODER.encode(TokenErrorBody(refused.error, str(refused)))
        token = await mint(
            registry,
            applications=credential.applications,
            scopes=scopes,
            subject=credential.id,
            credential=credential.id,
        )
        return ENCODER.encode(TokenBody(token, LIFETIME_SECONDS, "Bearer", " ".join(scopes)))


def _read(request: Request, data: bytes) -> TokenRequest:
    """Read the request, whatever form it has; HTTP Basic adds the credential."""
    kind = (request.content_type or "").partition(";")[0].strip().lower()
    is_json = kind != "application/x-www-form-urlencoded" or data.lstrip().startswith(b"{")
    try:
        if not data.strip():
            wanted = TokenRequest()
        elif is_json:
            wanted = _DECODER.decode(data)
        else:
            pairs = parse_qsl(
                data.decode(),
                keep_blank_values=True,
                errors="strict",
                max_num_fields=FIELDS_LIMIT,
            )
            if len(dict(pairs)) < len(pairs):
                raise _Refused("invalid_request", "A parameter is given more than once.")
            wanted = msgspec.convert(dict(pairs), TokenRequest)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _Refused("invalid_request", f"The body cannot be read: {error}") from error
    header = request.auth or ""
    if header.partition(" ")[0].lower() != "basic":
        return wanted
    given = basic(header)
    if given is None:
        raise _Refused("invalid_client", "The Authorization header is not HTTP Basic.")
    # RFC 6749, 2.3.1: both are form-encoded first. Ours hold no character that this changes.
    name, secret = map(unquote_plus, given)
    if wanted.client_secret is not None or wanted.client_id not in (None, name):
        raise _Refused("invalid_request", "Give the credential in the body or in the header.")
    return msgspec.structs.replace(wanted, client_id=name, client_secret=secret)


async def _granted(registry: Registry, wanted: TokenRequest) -> tuple[Credential, tuple[str, ...]]:
    """Check grant, secret and scope, in this order."""
    if wanted.grant_type is None:
        raise _Refused("invalid_request", "grant_type is missing: give client_credentials.")
    if wanted.grant_type != GRANT:
        raise _Refused("unsupported_grant_type", "The only grant_type here is client_credentials.")
    if wanted.client_id is None or wanted.client_secret is None:
        raise _Refused("invalid_client", "client_id or client_secret is missing.")
    credential = await proven(registry, wanted.client_id, wanted.client_secret)
    if credential is None:
        raise _Refused("invalid_client", "The client_id or client_secret is wrong.")
    if not wanted.scope:
        return credential, credential.scopes
    scopes = tuple(dict.fromkeys(wanted.scope.split()))
    held = SCOPES if "admin" in credential.scopes else credential.scopes
    missing = [scope for scope in scopes if scope not in held]
    if missing:
        raise _Refused("invalid_scope", f"The credential does not have {' '.join(missing)[:255]}.")
    return credential, scopes
