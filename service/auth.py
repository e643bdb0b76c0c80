"""Who is calling: from the header `Authorization` to a Principal, and from grants to a token.

Tokens are JWTs, signed with HS256 alone. Their `typ` says which of three kinds they are, and so
which key is tried: ours for scopes (a key of the store, named by `kid`), ours for one profile (the
application's, `signing.profile_token`), or one that an application's back end signed with a secret
of its own, which is for one profile, too. Where a route takes HTTP Basic, the credential itself
speaks. A header that was checked once is remembered, so that the next request with it costs a look
into a dict. It does not know routes or scopes' meaning: `admission` compares.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import math
import time
from base64 import b64decode
from typing import TYPE_CHECKING, Annotated, Any

import jwt
import msgspec
from msgspec import Meta

from service import ids, signing
from service.decoding import misfit
from service.errors import Forbidden, Unauthorized
from service.registry import SCOPES, TOKEN_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from service.environment import Application
    from service.registry import Credential, Registry
    from service.store import Store

__all__ = ["LIFETIME_SECONDS", "SCOPES", "Access", "InvalidToken", "Principal", "mint"]

LIFETIME_SECONDS = TOKEN_SECONDS
"""How long a token lasts: as long as the documents of the Group Identity API say."""

ALGORITHM = signing.ALGORITHM

TOKEN_TYPE = "at+jwt"  # noqa: S105  (the header's `typ`, RFC 9068: no other JWT of ours has it)

RECHECK_SECONDS = 1.0
"""What is remembered of a header is held against the registry again after this long."""

CLIENT_SIGNED_SECONDS = 86_400
"""How long after its `iat` a client-signed token without `exp` lasts."""

AHEAD_SECONDS = 10
"""How far the clock of the host that signed a token may be ahead of ours."""

_REMEMBERED = 10_000
_LONGEST_HEADER = len("Bearer ") + 8192
_NOT_VALID = "The token is not valid."
_EXPIRED = "The token has expired."
_NOBODY = hashlib.sha256(b"").hexdigest()


class Principal(msgspec.Struct, frozen=True):
    """Who a token speaks for. `scopes` holds what `admin` implies, too.

    `profile` is the id of the one profile that a token without scopes speaks for, in the one
    application that it is for.
    """

    applications: frozenset[str]
    scopes: frozenset[str]
    subject: str
    credential: str | None
    caller: str
    """Whose requests are counted together."""
    profile: bytes | None = None
    profile_since_us: int | None = None
    """When the record was created that a profile token was made for; None: whichever there is."""

    def is_of(self, created_at_us: int) -> bool:
        """Tell whether the token is for the record of `profile` that was created then.

        Not so where that profile was erased and made anew: the token is the old one's.
        """
        return self.profile_since_us in (None, created_at_us)


class InvalidToken(Unauthorized):
    """There is a token, and it is not valid (any more). Sentences hold no double quotes."""

    code = "authentication_failed"


class Unnamed(Unauthorized):
    """Nobody says who is calling, where HTTP Basic would do."""

    scheme = "Basic"


class _Claims(msgspec.Struct):
    sub: str
    scope: str
    applications: list[str]
    exp: int
    iat: float
    client_id: str | None = None


class _ProfileClaims(msgspec.Struct):
    """Of a profile token. `since` is when the profile's record was created."""

    iss: str
    sub: str
    since: int


class _Issuer(msgspec.Struct):
    """Who signed a token, as it says: the client id of an application."""

    iss: str


class _ClientClaims(_Issuer, kw_only=True):
    """Of a client-signed token. Whatever else it claims counts for nothing."""

    iat: float
    custom_profile_id: Annotated[str, Meta(min_length=1, max_length=255, pattern=r"\A[^\0]*\Z")]
    exp: float | None = None
    nbf: float | None = None


_JWS = jwt.PyJWS()
_PROFILE_CLAIMS = msgspec.json.Decoder(_ProfileClaims)
_ISSUER = msgspec.json.Decoder(_Issuer)
_CLIENT_CLAIMS = msgspec.json.Decoder(_ClientClaims)


class _Remembered(msgspec.Struct):
    principal: Principal
    expires_at: float
    good_until: float


class Access:
    """The bounded memory of checked headers of one process: of tokens, and of credentials."""

    def __init__(self, seal: signing.Seal, remembered: int = _REMEMBERED) -> None:
        """Remember at most so many of each; the one that came first goes first.

        :param seal: opens the signing secrets of applications
        """
        self._seal = seal
        self._limit = remembered
        self._tokens: dict[str, _Remembered] = {}
        self._credentials: dict[str, _Remembered] = {}

    def known(self, header: str | None) -> Principal | None:
        """Give whom a header speaks for if that is known and fresh. Never waits.

        None means: ask `check`.
        """
        remembered = self._tokens.get(header) if header is not None else None
        if remembered is None or remembered.good_until <= time.monotonic():
            return None
        return remembered.principal

    async def check(self, header: str | None, store: Store) -> Principal:
        """Check a header from scratch, or what may have changed since it was remembered.

        The first use of a client-signed token creates its profile.

        :raises Unauthorized: it holds no token; `Bearer` alone is none, as the SDK sends it.
        :raises InvalidToken: the token is not ours, has expired, or what it was made with is gone:
            its credential, its application, its signing secret.
        """
        token = _token_of(header)
        key = header or ""
        remembered = self._tokens.pop(key, None)
        # NOTE: taken before the registry is read: what is read later can only be younger. Both at
        # once: else a token would be asked for again just before it expires, not just after.
        now, wall = time.monotonic(), time.time()
        if remembered is None or remembered.principal.profile is not None:
            remembered = await self._verified(token, store)
        left_seconds = remembered.expires_at - wall
        if left_seconds <= 0:
            raise InvalidToken(_EXPIRED)
        principal = remembered.principal
        good_for = left_seconds
        if principal.credential is not None:
            await _require_active(principal.credential, store.registry)
        if principal.credential is not None or principal.profile is not None:
            good_for = min(left_seconds, RECHECK_SECONDS)
        remembered.good_until = now + good_for
        self._remember(self._tokens, key, remembered)
        return principal

    def known_credential(self, header: str | None) -> Principal | None:
        """Give whom a header of HTTP Basic speaks for if that is known and fresh. Never waits.

        What `known` remembers is no credential, and the other way round: most routes take no Basic.
        """
        remembered = self._credentials.get(header) if header is not None else None
        if remembered is None or remembered.good_until <= time.monotonic():
            return None
        return remembered.principal

    async def check_credential(self, header: str | None, store: Store) -> Principal:
        """Check a header of HTTP Basic: a credential's id and secret.

        :raises Unnamed: there is no header
        :raises Forbidden: it is malformed, the secret is wrong, or the credential was deactivated.
            The documents of the Events API say 403 for that.
        """
        if header is None or not header.strip():
            raise Unnamed(
                "Authentication credentials were not provided: send the id and secret of a "
                "credential by HTTP Basic."
            )
        now = time.monotonic()
        given = basic(header) if len(header) <= _LONGEST_HEADER else None
        if given is None:
            raise Forbidden(
                "The Authorization header is neither HTTP Basic, with the id and secret of a "
                "credential, nor Bearer, with a token."
            )
        credential = await proven(store.registry, *given)
        if credential is None:
            raise Forbidden("The id or the secret of the credential is wrong.")
        principal = Principal(
            applications=frozenset(credential.applications),
            scopes=_implied(credential.scopes),
            subject=credential.id,
            credential=credential.id,
            caller=f"credential:{credential.id}",
        )
        remembered = _Remembered(principal, expires_at=math.inf, good_until=now + RECHECK_SECONDS)
        self._credentials.pop(header, None)
        self._remember(self._credentials, header, remembered)
        return principal

    def _remember(
        self, memory: dict[str, _Remembered], header: str, remembered: _Remembered
    ) -> None:
        while len(memory) >= self._limit:
            del memory[next(iter(memory))]
        memory[header] = remembered

    async def _verified(self, token: str, store: Store) -> _Remembered:
        try:
            header = jwt.get_unverified_header(token)
            kind = header.get("typ")
            if kind == TOKEN_TYPE:
                return await _ours(token, header, store.registry)
            if kind == signing.PROFILE_TYPE:
                return await _of_profile(token, header, store.registry)
            if kind is None or str(kind).upper() == "JWT":
                return await self._client_signed(token, store)
        except jwt.ExpiredSignatureError as error:
            raise InvalidToken(_EXPIRED) from error
        except (
            jwt.PyJWTError,
            msgspec.MsgspecError,
            UnicodeDecodeError,
            RecursionError,
        ) as error:
            raise InvalidToken(_NOT_VALID) from error
        raise InvalidToken(_NOT_VALID)

    async def _client_signed(self, token: str, store: Store) -> _Remembered:
        """Check a token that an application's back end signed, and find or create its profile.

        Also where the setting `profiles` is `registered`: that says who may be added to groups,
        and who holds the secret says who is known. Where the profile was erased, it is made anew.
        """
        unverified = _JWS.decode(token, options={"verify_signature": False})
        application = await store.registry.application(_ISSUER.decode(unverified).iss)
        if application is None:
            raise InvalidToken(_NOT_VALID)
        payload = _payload(token, self._seal.opened(application))
        try:
            claims = _CLIENT_CLAIMS.decode(payload)
        except msgspec.ValidationError as error:
            # Whoever has the secret may know what is wrong with what it signed.
            claim = misfit(str(error)).field or "iss"
            raise InvalidToken(
                f"The claim {claim} of the token is missing or does not fit."
            ) from error
        now = time.time()
        if claims.iat > now + AHEAD_SECONDS or (claims.nbf or 0) > now + AHEAD_SECONDS:
            raise InvalidToken("The token is from the future.")
        ends = claims.iat + CLIENT_SIGNED_SECONDS if claims.exp is None else claims.exp
        if ends <= now:
            raise InvalidToken(_EXPIRED)
        [found] = await store.profiles.resolve_identities(
            application.production, "customer_id", [claims.custom_profile_id], create=True
        )
        assert found is not None  # noqa: S101 - it was created, if there was none
        return _Remembered(_speaking_for(application, found), expires_at=ends, good_until=0.0)


def basic(header: str | None) -> tuple[str, str] | None:
    """Give name and secret of a header of HTTP Basic (RFC 7617); None where it is not one."""
    kind, _, encoded = (header or "").partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        name, colon, secret = b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    return (name, secret) if colon else None


async def proven(registry: Registry, credential_id: str, secret: str) -> Credential | None:
    """Give the credential of this id, if the secret is its own and it was not deactivated."""
    credential = await registry.credential(credential_id)
    known = _NOBODY if credential is None else credential.secret_sha256
    given = hashlib.sha256(secret.encode()).hexdigest()
    if not hmac.compare_digest(known, given) or credential is None or not credential.active:
        return None
    return credential


def _implied(scopes: Iterable[str]) -> frozenset[str]:
    held = frozenset(scopes)
    return frozenset(SCOPES) if "admin" in held else held


def _token_of(header: str | None) -> str:
    kind, _, token = (header or "").partition(" ")
    token = token.strip()
    if not kind or (kind.lower() == "bearer" and not token):
        raise Unauthorized(
            "Authentication credentials were not provided: send Authorization: Bearer <token>."
        )
    if kind.lower() != "bearer":
        raise Unauthorized("Only Authorization: Bearer <token> is understood here.")
    # NOTE: not the token's: the whole header is remembered, and may be 64 KiB of spaces.
    if len(header or "") > _LONGEST_HEADER:
        raise InvalidToken(_NOT_VALID)
    return token


async def _ours(token: str, header: dict[str, Any], registry: Registry) -> _Remembered:
    kid = header.get("kid")
    key = (await registry.signing_keys(str(kid))).get(str(kid))
    if key is None:
        raise InvalidToken(_NOT_VALID)
    verified = jwt.decode(
        token,
        key.secret,
        algorithms=[ALGORITHM],
        # NOTE: `iat` is looked at below: a leeway of PyJWT would be one of `exp`, too.
        options={"require": ["exp", "iat", "sub"], "verify_aud": False, "verify_iat": False},
    )
    claims = msgspec.convert(verified, _Claims)
    if claims.iat > time.time() + AHEAD_SECONDS:
        raise InvalidToken(_NOT_VALID)
    credential = claims.client_id
    principal = Principal(
        applications=frozenset(claims.applications),
        scopes=_implied(claims.scope.split()),
        subject=claims.sub,
        credential=credential,
        caller=f"subject:{claims.sub}" if credential is None else f"credential:{credential}",
    )
    return _Remembered(principal, expires_at=float(claims.exp), good_until=0.0)


async def _of_profile(token: str, header: dict[str, Any], registry: Registry) -> _Remembered:
    client_id = signing.client_id_of(header.get("kid"))
    application = None if client_id is None else await registry.application(client_id)
    if application is None:
        raise InvalidToken(_NOT_VALID)
    claims = _PROFILE_CLAIMS.decode(_payload(token, [signing.profile_key(application)]))
    id16 = ids.parse(claims.sub)
    if id16 is None or claims.iss != application.client_id:
        raise InvalidToken(_NOT_VALID)
    principal = _speaking_for(application, id16, claims.since)
    return _Remembered(principal, expires_at=math.inf, good_until=0.0)


def _payload(token: str, keys: list[bytes]) -> bytes:
    """Give what one of the keys signed; whatever the header says, with HS256."""
    for key in keys:
        try:
            payload: bytes = _JWS.decode(token, key, algorithms=[ALGORITHM])
        except jwt.InvalidSignatureError:
            continue
        return payload
    raise InvalidToken(_NOT_VALID)


def _speaking_for(application: Application, id16: bytes, since_us: int | None = None) -> Principal:
    text = ids.text(id16)
    return Principal(
        applications=frozenset((application.client_id,)),
        scopes=frozenset(),
        subject=text,
        credential=None,
        caller=f"profile:{text}",
        profile=id16,
        profile_since_us=since_us,
    )


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
