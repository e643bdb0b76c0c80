"""The registry: applications and their environments, credentials, signing keys.

It is small and read on every request, so each process holds a copy. The copy is read again when the
registry's version rose (asked once a second in the background) or when something is not found in
it; a copy that could not be confirmed for 29 s is not used any more. Secrets of credentials are
kept as SHA-256; the registry knows no HTTP and no tokens.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import re
import secrets
import time
from typing import TYPE_CHECKING, Any, Unpack

import msgspec

from service import keys, scripts
from service.environment import (
    Application,
    ApplicationDocument,
    EnvironmentDocument,
    Settings,
    as_application,
)
from service.errors import Conflict, Invalid, NotFound, Stale, Unavailable, Unusable
from service.store_environments import EnvironmentStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.connection import Connection

SCOPES = (
    "groups:read",
    "groups:write",
    "members:read",
    "members:write",
    "profiles:read",
    "profiles:write",
    "definitions:read",
    "definitions:write",
    "events:write",
    "admin",
)
POLL_SECONDS = 1.0
SETTLE_SECONDS = 2 * POLL_SECONDS
"""After this no process that reaches the registry still uses what a change took out of it."""
STALE_SECONDS = 29.0
"""Age at which an unconfirmed copy is refused. With the second for which `auth` trusts a checked
token, a deactivated credential stops within 30 s."""
PUBLISH_SECONDS = 60
"""A rotated signing key signs only this long after every process could have read it."""
TOKEN_SECONDS = 28_800
DELETED_SECONDS = TOKEN_SECONDS + PUBLISH_SECONDS
"""How long the client id of a deleted application is given to no other: tokens name it."""
PARTITIONS_MAX = 64
_CLIENT_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

log = logging.getLogger(__name__)


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """An id and secret that get tokens, for some applications (client ids) and scopes."""

    id: str
    secret_sha256: str
    scopes: tuple[str, ...]
    applications: tuple[str, ...]
    created_at_us: int
    active: bool = True


class SigningKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that signs tokens from `not_before_us` on."""

    kid: str
    secret: bytes
    not_before_us: int


class _Copy(msgspec.Struct, frozen=True):
    """What one process knows of the registry, and since when (monotonic seconds)."""

    version: int
    applications: dict[str, Application]
    workspaces: dict[int, Application]
    deleting: dict[str, Application]
    credentials: dict[str, Credential]
    keys: dict[str, SigningKey]
    raw: dict[tuple[str, str], bytes]
    """Documents as they were read, by hash and field: what a change compares with."""


class Registry:
    """Reads and changes the registry. Methods raise Unavailable when the store does not answer."""

    def __init__(self, connection: Connection) -> None:
        """Take the open connection; nothing is read yet."""
        self._connection = connection
        self._environments = EnvironmentStore(connection)
        self._copy: _Copy | None = None
        self._confirmed_at = 0.0
        self._asked_at = 0.0
        self._renewing: asyncio.Task[_Copy] | None = None

    async def check_format(self) -> None:
        """Refuse a server that holds another storage format; mark an empty one with ours."""
        held = await self._connection.command(_key("format"), "GET", _key("format"))
        if held is None:
            # Only now: a full store refuses to write what is there already, but can be read.
            await self._connection.command(_key("format"), "SET", _key("format"), keys.FORMAT, "NX")
            held = await self._connection.command(_key("format"), "GET", _key("format"))
        if held != keys.FORMAT:
            message = (
                f"the store holds storage format {held.decode(errors='replace')}, "
                f"and this version needs {keys.FORMAT.decode()}"
            )
            raise Unusable(message)

    async def poll(self) -> None:
        """Confirm the copy once a second, for as long as the task runs."""
        while True:
            try:
                await self._confirm()
            except Unavailable as ex:
                log.debug("registry not confirmed: %s", ex)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # Not this task was cancelled, but something that it waited for.
                log.warning("registry not confirmed: the command was cancelled")
            except Exception:
                # This loop must live on: a copy that is not confirmed any more is refused anyway.
                log.exception("registry not confirmed")
            await asyncio.sleep(POLL_SECONDS)

    async def application(self, client_id: str) -> Application | None:
        """Give the application of a client id, at most a second behind; None where none is."""
        copy = await self._current()
        found = copy.applications.get(client_id)
        if found is None:
            copy = await self._renewed()
            found = copy.applications.get(client_id)
        return found

    def known(self, client_id: str) -> Application | None:
        """Give the application of a client id without waiting; None means: ask `application`."""
        copy = self._copy
        if copy is None or time.monotonic() - self._confirmed_at >= STALE_SECONDS:
            return None
        return copy.applications.get(client_id)

    async def application_of(self, workspace_id: int, among: frozenset[str]) -> Application | None:
        """Give the application of a workspace if it is `among` these client ids; else None.

        Whether another one has the workspace does not show, nor does it take longer.
        """
        copy = await self._current()
        found = copy.workspaces.get(workspace_id)
        if (found is None or found.client_id not in among) and among - copy.applications.keys():
            found = (await self._renewed()).workspaces.get(workspace_id)
        return found if found is not None and found.client_id in among else None

    async def list_applications(self) -> list[Application]:
        """All applications but those being deleted, by number."""
        copy = await self._load()
        return sorted(copy.applications.values(), key=lambda each: each.number)

    async def create_application(
        self,
        client_id: str,
        *,
        workspace_id: int | None = None,
        name: str | None = None,
        partitions: int = 1,
        profiles: str = "open",
    ) -> Application:
        """Create an application with its two environments of `partitions` partitions each.

        Without `workspace_id` the next free one is taken. A client id or workspace in use is a
        Conflict; so is a client id whose application was deleted within the last 8 h, for tokens
        name applications by it. The number of partitions can never be changed.
        """
        if _CLIENT_ID.fullmatch(client_id) is None:
            message = "a client id is 1 to 64 letters, digits, hyphens and underscores"
            raise Invalid(message, "client_id")
        if not 1 <= partitions <= PARTITIONS_MAX:
            message = f"partitions must be 1 to {PARTITIONS_MAX}"
            raise Invalid(message, "partitions")
        _check("profiles", profiles)
        copy = await self._load()
        if client_id in copy.applications:
            message = f"application {client_id} already exists"
            raise Conflict(message)
        if client_id in copy.deleting:
            message = f"application {client_id} is being deleted; delete it again to finish that"
            raise Conflict(message)
        environments = {}
        for environment in ("production", "development"):
            taken = await self._next_environment()
            environments[environment] = EnvironmentDocument(
                taken, keys.partition_tags(taken, partitions)
            )
        while True:
            number = await self._next("application")
            workspace = workspace_id or await self._next("workspace")
            document = ApplicationDocument(
                client_id=client_id,
                workspace_id=workspace,
                name=name or client_id,
                secret=secrets.token_bytes(32),
                created_at_us=_now_us(),
                environments=environments,
                profiles=profiles,  # type: ignore[arg-type]
            )
            try:
                await self._connection.call(
                    scripts.load("create_application"),
                    _keys("applications", "client_ids", "workspaces", "deleted", "version", "none"),
                    [
                        number,
                        client_id,
                        workspace,
                        msgspec.json.encode(document),
                        _now_us() - DELETED_SECONDS * 1_000_000,
                    ],
                )
                break
            except Conflict as ex:
                taken_is = str(ex).split(maxsplit=1)[0]
                if taken_is == "deleted":
                    message = (
                        f"an application {client_id} was deleted within the last 8 hours, "
                        "and there may be tokens for it yet: choose another client id, or wait"
                    )
                    raise Conflict(message) from None
                if taken_is == "number" or (taken_is == "workspace" and workspace_id is None):
                    continue
                message = f"{ex} is already in use"
                raise Conflict(message) from None
        return (await self._load()).applications[client_id]

    async def update_application(self, client_id: str, **settings: Unpack[Settings]) -> Application:
        """Change settings of an application; those not given stay. Unknown: NotFound.

        A value that cannot be is Invalid, which names the setting.
        """
        for name, value in settings.items():
            _check(name, value)
        return await self.change_application(client_id, lambda _: dict(settings))

    async def change_application(
        self, client_id: str, change: Callable[[dict[str, Any]], dict[str, object]]
    ) -> Application:
        """Change members of an application's document; `change` makes them from it as it stands.

        It is called again where somebody else was faster, and what it raises ends this. Members
        that it does not give stay, those of other versions too. Unknown: NotFound.
        """
        while True:
            copy = await self._load()
            found = copy.applications.get(client_id)
            if found is None:
                message = f"no application {client_id}"
                raise NotFound(message)
            number = str(found.number)
            changes = change(msgspec.json.decode(copy.raw["applications", number]))
            try:
                await self._change(copy, "applications", number, changes)
            except Stale:
                continue
            return (await self._load()).applications[client_id]

    async def delete_application(self, client_id: str) -> None:
        """Forget an application. One that still has groups or profiles is a Conflict.

        It is marked first, so that no process knows it any more; looked at again 2 s later, when
        nobody can be writing to it; then removed for good, or, where somebody did write, put back.
        If this dies in between it stays marked, and deleting it once more finishes that.
        Credentials lose it, and those that were for nothing else are deactivated. Only a process
        that reads the registry no more, but can still write elsewhere, may write to it for up to
        29 s.
        """
        while True:
            copy = await self._load()
            found = copy.applications.get(client_id) or copy.deleting.get(client_id)
            if found is None:
                message = f"no application {client_id}"
                raise NotFound(message)
            try:
                await self._delete(copy, found)
            except Stale:
                continue
            await self._load()
            return

    async def _delete(self, copy: _Copy, found: Application) -> None:
        number = str(found.number)
        message = f"application {found.client_id} still has groups or profiles"
        if found.client_id in copy.applications:
            if not await self._is_empty(found):
                raise Conflict(message)
            await self._change(copy, "applications", number, {"deleting_since_us": _now_us()})
        await asyncio.sleep(SETTLE_SECONDS)
        copy = await self._load()
        if found.client_id not in copy.deleting:
            # Somebody else, who deletes it at the same time, has finished that or put it back.
            raise Stale(found.client_id)
        if not await self._is_empty(found):
            await self._change(copy, "applications", number, {"deleting_since_us": None})
            await self._load()
            raise Conflict(message)
        for environment in found.environments.values():
            await self._environments.clear(environment)
        await self._forget_in_credentials(found.client_id)
        await self._connection.call(
            scripts.load("delete_application"),
            _keys("applications", "client_ids", "workspaces", "deleted", "version", "none"),
            [
                number,
                found.client_id,
                found.workspace_id,
                copy.raw["applications", number],
                _now_us(),
            ],
        )

    async def _forget_in_credentials(self, client_id: str) -> None:
        """Take an application out of all credentials. One that is for no other is deactivated."""
        while True:
            copy = await self._load()
            try:
                for each in copy.credentials.values():
                    if client_id in each.applications:
                        left = [other for other in each.applications if other != client_id]
                        changes = {"applications": left, "active": each.active and bool(left)}
                        await self._change(copy, "credentials", each.id, changes)
            except Stale:
                continue
            return

    async def _is_empty(self, application: Application) -> bool:
        for environment in application.environments.values():
            if not await self._environments.is_empty(environment):
                return False
        return True

    async def create_credential(
        self, applications: list[str], scopes: list[str]
    ) -> tuple[Credential, str]:
        """Give a new credential and its secret, which is shown this once: 256 random bits."""
        _require_known(applications, await self._load())
        if not applications:
            message = "a credential is for at least one application"
            raise Invalid(message, "applications")
        unknown = sorted(set(scopes) - set(SCOPES))
        if unknown or not scopes:
            message = f"unknown scope {', '.join(unknown)}" if unknown else "no scope given"
            message = f"{message}; scopes are {', '.join(SCOPES)}"
            raise Invalid(message, "scopes")
        secret = secrets.token_urlsafe(32)
        credential = Credential(
            id=secrets.token_hex(12),
            secret_sha256=hashlib.sha256(secret.encode()).hexdigest(),
            scopes=tuple(scopes),
            applications=tuple(applications),
            created_at_us=_now_us(),
        )
        await self._replace("credentials", credential.id, b"", msgspec.json.encode(credential))
        try:
            # Whoever deletes one from here on finds the credential.
            _require_known(applications, await self._load())
        except NotFound:
            await self.deactivate_credential(credential.id)
            raise
        return credential, secret

    async def credential(self, credential_id: str) -> Credential | None:
        """Give the credential of an id, from a list that is at most 29 s old (else Unavailable)."""
        copy = await self._current()
        found = copy.credentials.get(credential_id)
        if found is None:
            found = (await self._renewed()).credentials.get(credential_id)
        return found

    async def list_credentials(self) -> list[Credential]:
        """All credentials, oldest first."""
        copy = await self._load()
        return sorted(copy.credentials.values(), key=lambda each: each.created_at_us)

    async def deactivate_credential(self, credential_id: str) -> None:
        """Make a credential and its tokens useless, in every process within 30 s (mostly 1 s)."""
        while True:
            copy = await self._load()
            if credential_id not in copy.credentials:
                message = f"no credential {credential_id}"
                raise NotFound(message)
            try:
                await self._change(copy, "credentials", credential_id, {"active": False})
            except Stale:
                continue
            await self._load()
            return

    async def signing_keys(self, kid: str | None = None) -> dict[str, SigningKey]:
        """Keys that tokens may name, by kid; read again where `kid` is not among them."""
        copy = await self._current()
        if not copy.keys or (kid is not None and kid not in copy.keys):
            copy = await self._renewed()
        return copy.keys

    async def signing_key(self) -> SigningKey:
        """Give the newest key that may sign now; the first one is made where there is none."""
        now = _now_us()
        usable = [
            each for each in (await self.signing_keys()).values() if each.not_before_us <= now
        ]
        if not usable:
            await self._create_key(now, first=True)
            usable = list((await self._load()).keys.values())
        return max(usable, key=lambda each: each.not_before_us)

    async def rotate_keys(self) -> SigningKey:
        """Publish a new key, which signs in 60 s; older ones are kept for the tokens they signed.

        A key is forgotten 8 h after the last moment at which it could sign.
        """
        await self.signing_key()
        return await self._create_key(_now_us() + PUBLISH_SECONDS * 1_000_000, first=False)

    async def _create_key(self, not_before_us: int, *, first: bool) -> SigningKey:
        held = sorted((await self._load()).keys.values(), key=lambda each: each.not_before_us)
        cutoff = _now_us() - (TOKEN_SECONDS + PUBLISH_SECONDS) * 1_000_000
        expired = [
            old.kid for old, newer in itertools.pairwise(held) if newer.not_before_us < cutoff
        ]
        key = SigningKey(
            kid=secrets.token_hex(8), secret=secrets.token_bytes(32), not_before_us=not_before_us
        )
        await self._connection.call(
            scripts.load("create_key"),
            _keys("keys", "version", "none"),
            [key.kid, msgspec.json.encode(key), int(first), *expired],
        )
        await self._load()
        return key

    async def _next(self, counter: str) -> int:
        held = await self._connection.command(
            _key("numbers"), "HINCRBY", _key("numbers"), counter, 1
        )
        return int(held)

    async def _next_environment(self) -> int:
        """Draw a number that no environment has, though a failover may have lost the counter.

        Nor had: where it lost an application, too, that one's groups are still in its directory.
        """
        copy = await self._load()
        known = {
            environment.number
            for application in (*copy.applications.values(), *copy.deleting.values())
            for environment in application.environments.values()
        }
        while True:
            number = await self._next("environment")
            if number in known:
                continue
            left = keys.key(keys.directory(number), "numbers")
            if not await self._connection.command(left, "EXISTS", left):
                return number

    async def _change(self, copy: _Copy, kind: str, field: str, changes: dict[str, object]) -> None:
        """Change a document as it stands in a copy. Members that another version wrote stay.

        Stale: somebody else changed it since the copy was read.
        """
        old = copy.raw[kind, field]
        await self._replace(
            kind, field, old, msgspec.json.encode(msgspec.json.decode(old) | changes)
        )

    async def _replace(self, kind: str, field: str, old: bytes, new: bytes) -> None:
        """Compare and set one document, byte by byte; `old` is empty where there was none."""
        await self._connection.call(
            scripts.load("replace_document"), _keys(kind, "version", "none"), [field, old, new]
        )

    async def _current(self) -> _Copy:
        """Give the copy, if it was confirmed within the last 29 s."""
        if self._copy is not None and time.monotonic() - self._confirmed_at < STALE_SECONDS:
            return self._copy
        return await self._load()

    async def _renewed(self) -> _Copy:
        """Give the copy, read again after this was called.

        What is unknown is asked for once more, but a flood of unknown names is not a flood of
        reads: one begins at most every 0.1 s, and is for all who wait for it.
        """
        if self._renewing is None:
            self._renewing = asyncio.get_running_loop().create_task(self._renew())
            # Whoever waited may be gone: then nobody else looks at how it ended.
            self._renewing.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(self._renewing)

    async def _renew(self) -> _Copy:
        await asyncio.sleep(self._asked_at + POLL_SECONDS / 10 - time.monotonic())
        self._renewing = None
        return await self._load()

    async def _confirm(self) -> None:
        """Read the version; read everything where it is not the copy's."""
        started = time.monotonic()
        held = await self._connection.command(_key("version"), "GET", _key("version"))
        if self._copy is not None and int(held or 0) == self._copy.version:
            self._confirmed_at = started
        else:
            await self._load()

    async def _load(self) -> _Copy:
        """Read everything. Callers that come while it is read wait for a reading of their own.

        A change is followed by a reading that began after it, so nobody is handed an older one.
        """
        started = time.monotonic()
        version, applications, credentials, signing = await asyncio.gather(
            self._connection.command(_key("version"), "GET", _key("version")),
            self._read("applications"),
            self._read("credentials"),
            self._read("keys"),
        )
        found: dict[str, Application] = {}
        deleting: dict[str, Application] = {}
        for number, raw in applications.items():
            document = _APPLICATION.decode(raw)
            known = found if document.deleting_since_us is None else deleting
            known[document.client_id] = as_application(int(number), document)
        copy = _Copy(
            int(version or 0),
            found,
            {each.workspace_id: each for each in found.values()},
            deleting,
            {field.decode(): _CREDENTIAL.decode(raw) for field, raw in credentials.items()},
            {field.decode(): _SIGNING_KEY.decode(raw) for field, raw in signing.items()},
            {
                (kind, field.decode()): raw
                for kind, held in (("applications", applications), ("credentials", credentials))
                for field, raw in held.items()
            },
        )
        if started >= self._confirmed_at:
            self._copy = copy
            self._confirmed_at = self._asked_at = started
        return copy

    async def _read(self, kind: str) -> dict[bytes, bytes]:
        flat = await self._connection.command(_key(kind), "HGETALL", _key(kind))
        return dict(zip(flat[::2], flat[1::2], strict=True))


_APPLICATION = msgspec.json.Decoder(ApplicationDocument)
_CREDENTIAL = msgspec.json.Decoder(Credential)
_SIGNING_KEY = msgspec.json.Decoder(SigningKey)


def _require_known(client_ids: list[str], copy: _Copy) -> None:
    for client_id in client_ids:
        if client_id not in copy.applications:
            message = f"no application {client_id}"
            raise NotFound(message)


def _check(name: str, value: object) -> None:
    """Hold a setting against its type in `Settings`."""
    try:
        msgspec.convert({name: value}, Settings)
    except msgspec.ValidationError as error:
        message = f"{name}: {str(error).partition(' - at ')[0]}"
        raise Invalid(message, name) from None


def _key(kind: str) -> bytes:
    return keys.key(keys.REGISTRY, kind)


def _keys(*kinds: str) -> list[bytes]:
    return [_key(kind) for kind in kinds]


def _now_us() -> int:
    return time.time_ns() // 1000
