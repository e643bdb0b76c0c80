"""Tokens that speak for one profile: what signs them, and how an application's secrets are kept.

A *profile token* is ours, signed with a key that follows from the application's secret. A
*client-signed token* is made by the application's own back end, with a *signing secret* that is
kept in the registry, encrypted under the server's secret key. Who believes them is `auth`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import time
from typing import TYPE_CHECKING, Any

import jwt
import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from service import ids
from service.environment import SigningSecret
from service.errors import Conflict, Invalid, NotFound, Unavailable, Unusable

if TYPE_CHECKING:
    from pathlib import Path

    from service.config import Config
    from service.environment import Application
    from service.registry import Registry

ALGORITHM = "HS256"

PROFILE_TYPE = "profile+jwt"
"""The header's `typ` of a profile token."""

SECRET_BYTES_MIN = 32
"""RFC 7518, 3.2: a key of HS256 has 256 bits or more."""
SECRET_BYTES_MAX = 1024
SECRETS_MAX = 10
"""Signing secrets of one application: a token without a hint is tried with each."""

KEY_FILE = "secret.key"

_KID = "profile:"
_NONCE_BYTES = 12
_FORM = b"\x01"

log = logging.getLogger(__name__)


# --- profile tokens


def profile_token(application: Application, id16: bytes, created_at_us: int) -> str:
    """Give the token of a profile: it reads and changes that profile alone, and does not expire.

    It ends with the application, and with the profile's record: one that was erased and made
    anew was created at another time.
    """
    claims = {
        "iss": application.client_id,
        "sub": ids.text(id16),
        "since": created_at_us,
        "iat": int(time.time()),
    }
    headers = {"kid": _KID + application.client_id, "typ": PROFILE_TYPE}
    return jwt.encode(claims, profile_key(application), algorithm=ALGORITHM, headers=headers)


def profile_key(application: Application) -> bytes:
    """Give the key of an application's profile tokens. No rotation of ours changes it."""
    return ids.derive(application.secret, b"profile token", 32)


def client_id_of(kid: object) -> str | None:
    """Give the application that the `kid` of a profile token names; no other key has such a one."""
    if isinstance(kid, str) and kid.startswith(_KID):
        return kid.removeprefix(_KID)
    return None


# --- the server's secret key


def secret_key(settings: Config, *, make: bool = False) -> str | None:
    """Give the secret key: of the settings, else of the file that it is kept in.

    The file is in the data directory of the embedded store, and goes with its data; `belong serve`
    makes it if it is missing. None: there is no file, or the store is another one, which other
    machines may use, too, so that the key has to be given.
    """
    path = settings.data_dir / KEY_FILE
    try:
        if settings.redis_url is not None:
            return settings.secret_key
        if settings.secret_key is not None:
            if _read(path) not in {None, settings.secret_key}:
                log.warning("%s holds another key than --secret-key, and is not used", path)
            return settings.secret_key
        held = _read(path)
        if held is None and make:
            _make(path)
            held = _read(path)
    except (OSError, UnicodeDecodeError) as error:
        raise Unusable(f"{path} cannot be used: {error}") from None
    return held


def _read(path: Path) -> str | None:
    try:
        with path.open(encoding="ascii") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            text = file.read().strip()
    except FileNotFoundError:
        return None
    if mode & 0o077:
        log.warning("%s can be read by others (mode %o): chmod 600 it", path, mode)
    if len(text) < SECRET_BYTES_MIN:
        raise Unusable(f"{path} holds no secret key: it should be 32 characters or more")
    return text


def _make(path: Path) -> None:
    """Write a new key, whole or not at all. Of two processes that do so at once one wins."""
    made = path.with_name(f".{KEY_FILE}.{secrets.token_hex(8)}")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(made, path)
    finally:
        made.unlink()


class Seal:
    """Seals and opens signing secrets: AES-256-GCM, bound to the application and the secret's id.

    One that is sealed under another key cannot be opened; the log says so, once for each.
    """

    def __init__(self, key: str | None) -> None:
        """Take the secret key; without one nothing can be sealed or opened."""
        self._cipher: AESGCM | None = None
        if key is not None:
            hashed = hashlib.sha256(key.encode()).digest()
            self._cipher = AESGCM(ids.derive(hashed, b"signing secrets", 32))
        self._said: set[str] = set()

    def seal(self, client_id: str, secret_id: str, secret: bytes) -> bytes:
        """Encrypt a secret.

        :raises Unusable: there is no key.
        """
        if self._cipher is None:
            raise Unusable(
                "There is no key to encrypt signing secrets with: give --secret-key "
                "(BELONG_SECRET_KEY) here, the same as to every belong serve of this store."
            )
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _FORM + nonce + self._cipher.encrypt(nonce, secret, _bound(client_id, secret_id))

    def open(self, client_id: str, kept: SigningSecret) -> bytes | None:
        """Decrypt a secret; None where that cannot be done here, of which the log says why."""
        why = "no --secret-key is set here"
        if self._cipher is not None:
            nonce, sealed = kept.sealed[1 : 1 + _NONCE_BYTES], kept.sealed[1 + _NONCE_BYTES :]
            try:
                if kept.sealed[:1] == _FORM:
                    return self._cipher.decrypt(nonce, sealed, _bound(client_id, kept.id))
                why = "a newer version wrote it"
            except (InvalidTag, ValueError):
                why = "it was made under another --secret-key"
        if kept.id not in self._said:
            self._said.add(kept.id)
            log.error("signing secret %s of %s cannot be used: %s", kept.id, client_id, why)
        return None

    def opened(self, application: Application) -> list[bytes]:
        """Give the secrets of an application, newest first.

        :raises Unavailable: there are some, and none can be opened here.
        """
        kept = application.signing_secrets.values()
        newest = sorted(kept, key=lambda each: each.created_at_us, reverse=True)
        found = [self.open(application.client_id, each) for each in newest]
        usable = [each for each in found if each is not None]
        if found and not usable:
            raise Unavailable("The server cannot read its signing secrets; its log says why.")
        return usable


def _bound(client_id: str, secret_id: str) -> bytes:
    return f"{client_id}\n{secret_id}".encode()


# --- signing secrets


async def create_secret(
    registry: Registry, seal: Seal, client_id: str, brought: str | None = None
) -> tuple[SigningSecret, str]:
    """Add a signing secret to an application, and give it with its text, which is shown this once.

    The text is the key of HS256, as UTF-8. It is a new one of 256 random bits, or the one brought.
    One too many is a Conflict, one too short or too long Invalid, no application NotFound; a key
    that opens none of the secrets that are there is Unusable: the servers have another.
    """
    kept = await list_secrets(registry)
    if kept and not any(seal.open(each.client_id, one) for each, one in kept):
        message = (
            "The signing secrets of this store were made under another --secret-key: give that "
            "one, or delete them first if it is lost."
        )
        raise Unusable(message)
    text = secrets.token_urlsafe(32) if brought is None else brought
    try:
        secret = text.encode()
    except UnicodeEncodeError:
        message = "a signing secret is a text, and this one is not valid UTF-8"
        raise Invalid(message, "secret") from None
    if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
        message = (
            f"a signing secret has {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes "
            f"(RFC 7518 for HS256), and this one {len(secret)}"
        )
        raise Invalid(message, "secret")
    try:
        jwt.encode({}, secret, algorithm=ALGORITHM)
    except jwt.InvalidKeyError as error:
        message = f"this cannot be a signing secret: {error}"
        raise Invalid(message, "secret") from None
    secret_id = secrets.token_hex(8)
    made = SigningSecret(
        id=secret_id,
        sealed=seal.seal(client_id, secret_id, secret),
        created_at_us=time.time_ns() // 1000,
    )

    def add(document: dict[str, Any]) -> dict[str, object]:
        held = document.get("signing_secrets", {})
        if len(held) >= SECRETS_MAX:
            message = f"{client_id} has {SECRETS_MAX} signing secrets already: delete one first"
            raise Conflict(message)
        return {"signing_secrets": held | {secret_id: msgspec.to_builtins(made)}}

    await registry.change_application(client_id, add)
    return made, text


async def list_secrets(registry: Registry) -> list[tuple[Application, SigningSecret]]:
    """All signing secrets, by application, oldest first. They need no key to be listed."""
    return [
        (application, each)
        for application in await registry.list_applications()
        for each in sorted(
            application.signing_secrets.values(), key=lambda each: each.created_at_us
        )
    ]


async def delete_secret(registry: Registry, secret_id: str) -> None:
    """Delete a signing secret: what it signed stops within seconds. Unknown: NotFound."""
    for application, each in await list_secrets(registry):
        if each.id == secret_id:
            await registry.change_application(
                application.client_id,
                lambda document: {
                    "signing_secrets": {
                        name: held
                        for name, held in document.get("signing_secrets", {}).items()
                        if name != secret_id
                    }
                },
            )
            return
    message = f"no signing secret {secret_id}"
    raise NotFound(message)
