"""Who is admitted to what: a token or credential, its application, and its scope or its profile.

An operation gets its request as a `Call`, or, where it asks for a scope, as a `TenantCall`: one
that was admitted to an application. What a token is worth is the matter of `auth`.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import falcon.asgi
import msgspec

from service import ids
from service.auth import InvalidToken, Principal
from service.decoding import plain, raw_values
from service.environment import Application, Environment
from service.errors import Forbidden, Invalid, NotFound
from service.store import Store

if TYPE_CHECKING:
    from service.endpoint import Backend, Request  # noqa: TC004 - that one imports this


class Call(msgspec.Struct):
    """One request of a route that anybody may call."""

    request: Request
    response: falcon.asgi.Response
    backend: Backend


class TenantCall(Call):
    """One admitted request of an application."""

    store: Store
    application: Application
    environment: Environment
    principal: Principal

    @property
    def is_admin(self) -> bool:
        """Whether the token has the scope `admin`."""
        return "admin" in self.principal.scopes

    @property
    def author(self) -> str:
        """Who writes: `client_id:<credential id>`; the subject of a token without credential."""
        principal = self.principal
        if principal.credential is None:
            return principal.subject
        return f"client_id:{principal.credential}"

    def require(self, scope: str) -> None:
        """See to it that the token has one scope more than the operation asks of everybody.

        :raises Forbidden: it has not
        """
        if scope not in self.principal.scopes:
            raise _lacking(scope, self.principal)

    async def profile_id(self, text: str) -> bytes | None:
        """Give the profile that a path or body names by UUID, `mpid:<number>` or custom id.

        In UUID form any profile exists (design 3.1); None is an unknown mpid or custom id. What
        follows on `custom_id:` is a custom id, whatever its form.
        """
        if (custom_id := ids.named_by_custom_id(text)) is not None:
            return await self.profile_id_of(custom_id)
        if (parsed := ids.parse(text)) is not None:
            return parsed
        mpid = ids.parse_mpid(text)
        if mpid is None:
            return await self.profile_id_of(text)
        return await self._resolved("mpid", str(mpid))

    async def profile_id_of(self, custom_id: str) -> bytes | None:
        """Give the profile of a custom id; None where there is none."""
        return await self._resolved("customer_id", custom_id)

    async def require_own(self, found: bytes | None) -> None:
        """See to it that the token of a profile is used for that one, as long as it exists.

        That is one round trip; any other token may name any profile, and costs none.

        :raises Forbidden: it is not the profile that the token speaks for
        :raises InvalidToken: the profile was erased; perhaps another one has its id now
        """
        own = self.principal.profile
        if own is None:
            return
        if found != own:
            raise Forbidden("The token of a profile reads and changes that profile alone.")
        created_at_us = None
        with contextlib.suppress(NotFound):
            record = await self.store.records.get_profile(self.environment, own)
            created_at_us = record.created_at_us
        if created_at_us is None or not self.principal.is_of(created_at_us):
            raise InvalidToken("The profile of this token was erased.")

    async def _resolved(self, kind: str, value: str) -> bytes | None:
        [found] = await self.store.profiles.resolve_identities(
            self.environment, kind, [value], create=False
        )
        return found


async def admitted(
    call: Call, client_id: str | None, scope: str | None, *, own: bool = False
) -> TenantCall:
    """Admit a call if its token is for this application, and has the scope or speaks for a profile.

    With the token and the application known, it does not wait; where the application limits
    requests, that is one round trip. Without a `client_id` in the path, the query or the token
    names the application.

    :param scope: without one, any token for the application will do
    :param own: a profile token may call it, for its own profile
    :raises Invalid: neither the query nor the token names one application.
    :raises Unauthorized: there is no valid token.
    :raises Forbidden: it is not for the application, which need not exist, or lacks the scope.
    :raises TooManyRequests: of this caller, for this application.
    """
    backend = call.backend
    store = backend.store
    header = call.request.auth
    principal = backend.access.known(header)
    if principal is None:
        principal = await backend.access.check(header, store)
    if client_id is None:
        client_id = _client_id(call.request, principal)
    application = None
    if client_id in principal.applications:
        if scope not in principal.scopes and not (
            scope is None or (own and principal.profile is not None)
        ):
            raise _lacking(scope, principal)
        application = await store.registry.application(client_id)
    if application is None:
        raise Forbidden(f"The token is not for the application {client_id[:255]!r}.")
    call.request.admitted = client_id, principal.caller
    if application.requests_per_second is not None:
        await _take(call, application, principal, application.requests_per_second)
    return _of_application(call, application, principal)


_INTEGER = re.compile(r"-?[0-9]+")
_LONGEST_INTEGER = 20
"""Characters of a workspace's id: no 64 bits have more."""


async def admitted_to_workspace(call: Call, workspace: str, scope: str) -> TenantCall:
    """Admit a call if its token is for the application of this workspace, and has the scope.

    It waits as rarely as `admitted`.

    :raises Unauthorized: there is no valid token
    :raises NotFound: the workspace is no integer
    :raises Forbidden: it is not the token's, whether it exists or not, or the scope is missing
    :raises TooManyRequests: of this caller, for this application
    """
    access, store = call.backend.access, call.backend.store
    header = call.request.auth
    principal = access.known(header) or await access.check(header, store)
    if _INTEGER.fullmatch(workspace) is None:
        raise NotFound("A workspace is named by an integer, and this is none.")
    application = None
    if len(workspace) <= _LONGEST_INTEGER:
        named = int(workspace)
        application = await store.registry.application_of(named, principal.applications)
    if application is None:
        raise Forbidden(f"The token is not for the workspace {workspace[:_LONGEST_INTEGER]}.")
    return await _admitted_with(call, application, principal, scope)


async def admitted_by_credential(call: Call, scope: str) -> TenantCall:
    """Admit a call by HTTP Basic, or by a token, to the one application that it is for.

    :raises Unauthorized: there is no header, or a token that is not valid
    :raises Forbidden: the credential is not valid, is not for exactly one application, or lacks the
        scope
    :raises TooManyRequests: of this caller, for this application
    """
    access, store = call.backend.access, call.backend.store
    header = call.request.auth
    principal = access.known_credential(header) or access.known(header)
    if principal is None:
        is_token = (header or "").partition(" ")[0].lower() == "bearer"
        check = access.check if is_token else access.check_credential
        principal = await check(header, store)
    if len(principal.applications) != 1:
        raise Forbidden(
            "The credential is for several applications, and nothing here says which of them is "
            "meant: use one that is for exactly one."
        )
    [client_id] = principal.applications
    application = await store.registry.application(client_id)
    if application is None:
        raise Forbidden(f"The token is not for the application {client_id[:255]!r}.")
    return await _admitted_with(call, application, principal, scope)


async def _admitted_with(
    call: Call, application: Application, principal: Principal, scope: str
) -> TenantCall:
    """Admit a call to the application that it is for, if the scope allows it and the limit."""
    if scope not in principal.scopes:
        raise _lacking(scope, principal)
    call.request.admitted = application.client_id, principal.caller
    if application.requests_per_second is not None:
        await _take(call, application, principal, application.requests_per_second)
    return _of_application(call, application, principal)


async def _take(
    call: Call, application: Application, principal: Principal, per_second: int
) -> None:
    """Count a request of a caller, where the application limits them."""
    call.request.used_percent = await call.backend.store.limits.take(
        application.production, principal.caller, per_second, per_second
    )


def _of_application(call: Call, application: Application, principal: Principal) -> TenantCall:
    return TenantCall(
        call.request,
        call.response,
        call.backend,
        call.backend.store,
        application,
        application.production,
        principal,
    )


async def admitted_again(call: TenantCall, scope: str) -> TenantCall:
    """Admit a call once more, for one that goes on for long.

    What it may do, and how its application is set, is then as it is now. Mostly without waiting.

    :raises Unauthorized: the token ended
    :raises Forbidden: its application is gone
    """
    access, header = call.backend.access, call.request.auth
    principal = access.known(header) or await access.check(header, call.store)
    application = await call.store.registry.application(call.application.client_id)
    if application is None or scope not in principal.scopes:
        raise Forbidden(f"The token is not for the application {call.application.client_id!r}.")
    return _of_application(call, application, principal)


def _lacking(scope: str, principal: Principal) -> Forbidden:
    if principal.profile is None:
        return Forbidden(f"This needs the scope {scope}, which the token does not have.")
    return Forbidden(
        f"This needs a token with the scope {scope}. The token of a profile reads and changes that "
        "profile and reads its groups, nothing else."
    )


def _client_id(request: Request, principal: Principal) -> str:
    """Name the application of a route that has none in its path."""
    given = raw_values(request.query_string, "client_id")
    if len(given) == 1:
        return plain(given[0])
    if given:
        raise Invalid("`client_id` is given more than once - at `$.client_id`", "client_id")
    if len(principal.applications) != 1:
        message = "The token is not for exactly one application: name one with ?client_id=."
        raise Invalid(message, "client_id")
    [client_id] = principal.applications
    return client_id
