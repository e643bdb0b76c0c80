"""What the OpenAPI document has once, for all operations: headers, parameters, who may call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.examples import ORIGIN
from service.registry import SCOPES

if TYPE_CHECKING:
    from service.schemas import Json

OWN_IDENTITY = "profile_token"

HEADERS: Json = {
    "Retry-After": {
        "description": "After how many seconds the next try may succeed.",
        "schema": {"type": "integer", "minimum": 1},
        "example": 1,
    },
    "WWW-Authenticate": {
        "description": "What would be accepted, and what is wrong with the token (RFC 6750).",
        "schema": {"type": "string"},
        "example": 'Bearer realm="belong"',
    },
    "X-Belong-Job": {
        "description": "Id of the job by which users become groups as the definitions now say.",
        "schema": {"type": "string"},
    },
    "X-mp-rate-limit-exceeded": {
        "description": "Whose limit it is: requests are limited for each caller of a workspace.",
        "schema": {"const": "workspace", "type": "string"},
    },
    "X-mp-rate-limit-percentage-used": {
        "description": (
            "How much of its requests the caller has used, where the workspace limits them."
        ),
        "schema": {"type": "integer", "minimum": 1, "maximum": 100},
    },
    "X-Request-Id": {
        "description": "The id of this request, as the log has it.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[!-~]+$"},
    },
}

REQUEST_ID_PARAMETER: Json = {
    "name": "X-Request-Id",
    "in": "header",
    "description": (
        "Taken over as the id of this request if it is 1 to 128 printable ASCII characters without "
        "spaces; else one is made."
    ),
    "schema": {"type": "string"},
}

CLIENT_ID: Json = {
    "name": "client_id",
    "in": "query",
    "description": "The application. Not needed where the token is for exactly one.",
    "schema": {"type": "string"},
    "example": "demo",
}

SECURITY: Json = {
    "oauth2": {
        "type": "oauth2",
        "description": "A token for a credential. `admin` implies every other scope.",
        "flows": {
            "clientCredentials": {
                "tokenUrl": f"{ORIGIN}/oauth/token",
                "scopes": {
                    scope: (
                        "Everything."
                        if scope == "admin"
                        else "{1} {0}.".format(*scope.split(":")).capitalize()
                    )
                    for scope in SCOPES
                },
            }
        },
    },
    "basic": {
        "type": "http",
        "scheme": "basic",
        "description": (
            "A credential's id and secret: to get a token with (RFC 6749, 2.3.1), or, where a "
            "scope is needed, in place of a token; then it has to be for one application."
        ),
    },
    "token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A token, pasted: from `/oauth/token`, or as `belong token` prints it.",
    },
    OWN_IDENTITY: {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "The `access_token` of a profile: for what is its own, and nothing else.",
    },
}
