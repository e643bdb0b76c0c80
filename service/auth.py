"""Who is calling: from `Authorization: Bearer <token>` to a Principal, and from grants to a token.

Tokens are JWTs, signed with HS256 alone by a key of the store that their `kid` names. A token that
was checked once is remembered, so that the next request with it costs a look into a dict. It does
not know routes or scopes' meaning: `endpoint` compares.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import jwt
import msgspec

from service.errors import Unauthorized
from service.registry import SCOPES, TOKEN_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from service.registry import Registry

__all__ = ["LIFETIME_SECONDS", "SCOPES", "Access", "InvalidToken", "Principal", "mint"]

LIFETIME_SECONDS = TOKEN_SECONDS
"""How long a token lasts: as long as the documents of the Group Identity API say."""

ALGORITHM = "HS256"

TOKEN_TYPE = "at+jwt"  # noqa: S105  (the header's `typ`, RFC 9068: no other JWT of ours has it)

RECHECK_SECONDS = 1.0
"""A remembered token is held against the list of credentials again after this long."""

AHEAD_SECONDS = 10
"""How far the clock of the host that signed a token may be ahead of ours."""

_REMEMBERED = 10_000
_LONGEST_TOKEN = 8192
_NOT_VALID = "The token is not valid."


class Principal(msgspec.Struct, frozen=True):
    """Who a token speaks for. `scopes` holds what `admin` implies, too."""

    applications: frozenset[str]
    scopes: frozenset[str]
    subject: str
    credential: str | None


class InvalidToken(Unauthorized):
    """There is a token, and it is not valid (any more). Sentences hold no double quotes."""

    code = "authentication_failed"


class _Claims(msgspec.Struct):
    sub: str
    scope: str
    applications: list[str]
    exp: int
    iat: float
    client_id: str | None = None


class _Remembered(msgspec.Struct):
    principal: Principal
    expires_at: float
    good_until: float


class Access:
    """The bounded memory of checked tokens of one process."""

    def __init__(self, remembered: int = _REMEMBERED) -> None:
        """Remember at most so many tokens; the one that came first goes first."""
        self._limit = remembered
        self._tokens: dict[str, _Remembered] = {}

    def known(self, header: str | None) -> Principal | None:
        """Give whom a header speaks for if that is known and fresh. Never waits.

        None means: ask `check`.
        """
        remembered = self._tokens.get(header) if header is not None else None
        if remembered is None or remembered.good_until <= time.monotonic():
            return None
        return remembered.principal

    async def check(self, header: str | None, registry: Registry) -> Principal:
        """Check a header from scratch, or what may have changed since it was remembered.

        :raises Unauthorized: it holds no token; `Bearer` alone is none, as the SDK sends it.
        :raises InvalidToken: the token is not ours, has expired, or its credential was deactivated.
        """
        token = _token_of(header)
        key = header or ""
        remembered = self._tokens.pop(key, None)
        if remembered is None:
            remembered = await _verified(token, registry)
        left_seconds = remembered.expires_at - time.time()
        if left_seconds <= 0:
            raise InvalidToken("The token has expired.")
        # NOTE: taken before the list is read: what is read later can only be younger.
        now = time.monotonic()
        credential = remembered.principal.credential
        good_for = left_seconds
        if credential is not None:
            await _require_active(credential, registry)
            good_for = min(left_seconds, RECHECK_SECONDS)
        remembered.good_until = now + good_for
        while len(self._tokens) >= self._limit:
            del self._tokens[next(iter(self._tokens))]
        self._tokens[key] = remembered
        return remembered.principal


def _token_of(header: str | None) -> str:
    kind, _, token = (header or "").partition(" ")
    token = token.strip()
    if not kind or (kind.lower() == "bearer" and not token):
        raise Unauthorized(
            "Authentication credentials were not provided: send Authorization: Bearer <token>."
        )
    if kind.lower() != "bearer":
        raise Unauthorized("Only Authorization: Bearer <token> is understood here.")
    if len(token) > _LONGEST_TOKEN:
        raise InvalidToken(_NOT_VALID)
    return token


async def _verified(token: str, registry: Registry) -> _Remembered:
    try:
        kid = jwt.get_unverified_header(token).get("kid")
        key = (await registry.signing_keys(str(kid))).get(str(kid))
        if key is None:
            raise InvalidToken(_NOT_VALID)
        verified: dict[str, Any] = jwt.decode_complete(
            token,
            key.secret,
            algorithms=[ALGORITHM],
            # NOTE: `iat` is looked at below: a leeway of PyJWT would be one of `exp`, too.
            options={
                "require": ["exp", "iat", "sub"],
                "verify_aud": False,
                "verify_iat": False,
            },
        )
        claims = msgspec.convert(verified["payload"], _Claims)
        is_ours = verified["header"].get("typ") == TOKEN_TYPE
        if not is_ours or claims.iat > time.time() + AHEAD_SECONDS:
            raise InvalidToken(_NOT_VALID)
    except jwt.ExpiredSignatureError as error:
        raise InvalidToken("The token has expired.") from error
    except (jwt.PyJWTError, msgspec.ValidationError) as error:
        raise InvalidToken(_NOT_VALID) from error
    scopes = frozenset(claims.scope.split())
    principal = Principal(
        applications=frozenset(claims.applications),
        scopes=frozenset(SCOPES) if "admin" in scopes else scopes,
        subject=claims.sub,
        credential=claims.client_id,
    )
    return _Remembered(principal, expires_at=float(claims.exp), good_until=0.0)


async def _require_active(credential_id: str, registry: Registry) -> None:
    credential = await registry.credential(credential_id)
    if credential is None or not credential.active:
        raise InvalidToken("The credential of this token was deactivated.")


async def mint(
    registry: Registry,
    *,
    applications: Iterable[str],
    scopes: Iterable[str],
    subject: str,
    credential: str | None = None,
    lifetime_seconds: int = LIFETIME_SECONDS,
) -> str:
    """Sign a token with the newest usable key.

    `applications` are client ids. A token that names a `credential` ends with it, one without
    lasts until it expires.
    """
    key = await registry.signing_key()
    now = int(time.time())
    claims: dict[str, object] = {
        "sub": subject,
        "scope": " ".join(scopes),
        "applications": list(applications),
        "iat": now,
        "exp": now + lifetime_seconds,
    }
    if credential is not None:
        claims["client_id"] = credential
    return jwt.encode(
        claims, key.secret, algorithm=ALGORITHM, headers={"kid": key.kid, "typ": TOKEN_TYPE}
    )
