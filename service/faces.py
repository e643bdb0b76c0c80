"""The two faces of the API: which one a path belongs to, and what an error looks like there.

The Profile Groups face says `{"detail", "error_code"}`, or names a field; the Group Identity face
says `{"statusCode", "errors": [{"code", "message"}]}`. What belongs to neither (`/healthz`, a path
that there is not) speaks as the first. Pure: it knows no request.
"""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from service.errors import BelongError, Unavailable

IDENTITY = frozenset({"platform", "v2", "v1", "userprofile", "events", "bulkevents"})
"""First segments of the paths of the Group Identity face."""

CODES = {
    HTTPStatus.BAD_REQUEST: "invalid",
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "unsupported_media_type",
}
"""`error_code` of what is refused before a domain error could say it."""

IDENTITY_CODES = {
    HTTPStatus.BAD_REQUEST: "BAD_REQUEST",
    HTTPStatus.UNAUTHORIZED: "UNAUTHORIZED",
    HTTPStatus.FORBIDDEN: "FORBIDDEN",
    HTTPStatus.NOT_FOUND: "NOT_FOUND",
    HTTPStatus.METHOD_NOT_ALLOWED: "METHOD_NOT_ALLOWED",
    HTTPStatus.CONFLICT: "CONFLICT",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "PAYLOAD_TOO_LARGE",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "UNSUPPORTED_MEDIA_TYPE",
    HTTPStatus.UNPROCESSABLE_ENTITY: "VALIDATION_ERROR",
    HTTPStatus.TOO_MANY_REQUESTS: "TOO_MANY_REQUESTS",
    HTTPStatus.SERVICE_UNAVAILABLE: "SERVICE_UNAVAILABLE",
}
"""Status -> `code` on the Group Identity face."""

INTERNAL = "INTERNAL"
"""`code` of every other status there."""

_ENCODER = msgspec.json.Encoder()


def is_identity(path: str) -> bool:
    """Tell whether a path, decoded, belongs to the Group Identity face."""
    return path.lstrip("/").partition("/")[0] in IDENTITY


def error_body(
    path: str, status: int, message: str, code: str | None = None, field: str | None = None
) -> bytes:
    """Give the body of an error, in the shape of the path's face (design 3.4).

    :param code: the `error_code` of the Profile Groups face; without it, the one of the status
    :param field: what does not fit, where that is one member or parameter
    """
    known = HTTPStatus(status)
    if is_identity(path):
        problem = {"code": IDENTITY_CODES.get(known, INTERNAL), "message": message}
        return _ENCODER.encode({"statusCode": status, "errors": [problem]})
    if field is not None:
        return _ENCODER.encode({field: [message]})
    code = code or CODES.get(known, BelongError.code)
    return _ENCODER.encode({"detail": message, "error_code": code})


def failure_body(path: str, request_id: str) -> bytes:
    """Give the body of a 500: what the client needs, to ask somebody who can read the log."""
    message = f"The server failed, and has logged why: ask for the request id {request_id}."
    return error_body(path, HTTPStatus.INTERNAL_SERVER_ERROR, message)


def stopped_body(path: str) -> bytes:
    """Give the body of the 503 for what a stop cuts off."""
    message = (
        "The server stopped before this was finished: some of it may be done, and repeating is "
        "safe."
    )
    return error_body(path, HTTPStatus.SERVICE_UNAVAILABLE, message, Unavailable.code)
