"""Domain errors, and the one table that maps them to HTTP.

They are few, and raised by the store or by an endpoint. Each carries the sentence that the
client reads. Lua scripts answer failures as ``CODE detail``; `CODES` says which error that is.
"""

from __future__ import annotations


class BelongError(Exception):
    """Any failure that has a sentence for the client.

    `status` is the HTTP status and `code` the `error_code` of the body; what the other face says is
    in `faces`.
    """

    status = 500
    code = "error"


class Invalid(BelongError):
    """The request is malformed. `field` names the member or parameter, where there is one."""

    status = 400
    code = "invalid"

    def __init__(self, message: str, field: str | None = None) -> None:
        """Take the sentence, and the field it is about."""
        super().__init__(message)
        self.field = field


class Unauthorized(BelongError):
    """No token, or one that is not valid (any more). `scheme` is what would be accepted."""

    status = 401
    code = "not_authenticated"
    scheme = "Bearer"


class Forbidden(BelongError):
    """A valid token that does not allow this."""

    status = 403
    code = "permission_denied"


class NotFound(BelongError):
    """It does not exist, or is inactive, which looks the same from outside."""

    status = 404
    code = "not_found"

    def __init__(self, message: str = "Not found.") -> None:
        """Take the sentence; the default is the one of the Profile Groups API."""
        super().__init__(message)


class Conflict(BelongError):
    """It contradicts what is there: a taken id, a number above a limit of what exists."""

    status = 409
    code = "conflict"


class TooLarge(BelongError):
    """The body is larger than the limit."""

    status = 413
    code = "too_large"


class Unprocessable(BelongError):
    """The request is well-formed, and breaks a rule (the Group Identity face's validation)."""

    status = 422
    code = "unprocessable"


class Unavailable(BelongError):
    """The store cannot answer now. After a connection broke in mid-write the outcome is unknown.

    Repeating is safe for every operation. `retry_after_seconds` goes into `Retry-After`.
    """

    status = 503
    code = "unavailable"
    retry_after_seconds = 1


class Unwritable(Unavailable):
    """The store can be read, but takes no writes now: it is full, or cannot keep them."""


class TooManyRequests(BelongError):
    """The caller did this too often. `retry_after_seconds` says when it may again."""

    status = 429
    code = "throttled"

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        """Take the sentence, and in how many whole seconds the next try may succeed (1 or more)."""
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Erasing(Unavailable):
    """The profile that the request names is being erased: try again when it is gone."""


class Unusable(BelongError):
    """A server, data directory or setting that cannot be used at all: `belong` exits 1."""


class Stale(BelongError):
    """A compare-and-set that lost: it changed since it was read. Never leaves the store."""


class ScriptFailed(BelongError):
    """A script ended in a way its header does not name: a bug, ours or the data's."""


CODES: dict[str, type[BelongError]] = {
    "CONFLICT": Conflict,
    "DIVERGED": ScriptFailed,
    "ERASING": Erasing,
    "INACTIVE": NotFound,
    "DELETED": NotFound,
    "NOTFOUND": NotFound,
    "STALE": Stale,
    "TAKEN": Conflict,
}
"""First word of a script's error reply -> the error it means. Headers name only these."""
