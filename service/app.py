"""The ASGI application: routes, error handlers, and the store's life with the process.

`create_app` is what a server starts; the table `ROUTES` is all there is to reach.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import falcon
import falcon.asgi

from service import (
    applications,
    audiences,
    bulk,
    definitions,
    docs,
    events,
    explanations,
    health,
    instances,
    jobs,
    lookups,
    members,
    metrics,
    openapi,
    previews,
    profile_groups,
    profiles,
    queries,
    tokens,
    user_profiles,
)
from service.cors import with_preflight
from service.counters import Counters
from service.endpoint import (
    API,
    Backend,
    Operation,
    Resource,
    answer_error,
    answer_http_error,
    operation_of,
)
from service.errors import BelongError, Unusable
from service.faces import failure_body
from service.record import RecordingApp
from service.shortcuts import Shortcuts
from service.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from service.config import Config

_GROUPS = f"{API}/applications/{{cid}}/profile-groups"
_WORKSPACE = "/platform/workspaces/{ws}"
_DEFINITION = f"{_WORKSPACE}/groups/{{did}}"

ROUTES: tuple[tuple[str, type[Resource]], ...] = (
    ("/healthz", health.Healthz),
    ("/readyz", health.Readyz),
    ("/metrics", metrics.Metrics),
    ("/openapi.json", openapi.OpenApi),
    ("/docs", docs.Docs),
    ("/docs/{file}", docs.DocsFile),
    ("/oauth/token", tokens.Token),
    (f"{API}/applications/{{cid}}", applications.OneApplication),
    (f"{API}/applications/{{cid}}/profile", profiles.CurrentProfile),
    (f"{API}/profiles/{{pid}}", profiles.OneProfile),
    (_GROUPS, profile_groups.Groups),
    (f"{_GROUPS}/preview", previews.Preview),
    (f"{_GROUPS}/query", queries.Queries),
    (f"{_GROUPS}/{{gid}}", profile_groups.OneGroup),
    (f"{_GROUPS}/{{gid}}/members", members.Members),
    (f"{_GROUPS}/{{gid}}/members/{{pid}}", members.OneMember),
    (f"{_GROUPS}/{{gid}}/members/{{pid}}/explain", explanations.MemberExplanation),
    (f"{API}/applications/{{cid}}/profiles/{{pid}}/profile-groups", lookups.ProfileGroups),
    (f"{API}/applications/{{cid}}/memberships/check", lookups.Check),
    (f"{API}/applications/{{cid}}/memberships/bulk", bulk.Bulk),
    (f"{_WORKSPACE}/groups", definitions.Definitions),
    (_DEFINITION, definitions.OneDefinition),
    (f"{_DEFINITION}/instances", instances.Instances),
    (f"{_DEFINITION}/instances/{{iid}}", instances.OneInstance),
    (f"{_DEFINITION}/instances/{{iid}}/members", instances.InstanceMembers),
    (f"{_DEFINITION}/recompute", jobs.Recompute),
    (f"{_WORKSPACE}/jobs", jobs.Jobs),
    (f"{_WORKSPACE}/jobs/{{jid}}", jobs.OneJob),
    ("/v1/workspace/{ws}/audiences", audiences.WorkspaceAudiences),
    ("/v1/audiences", audiences.Audiences),
    ("/v1/audiences/{aid}", audiences.OneAudience),
    ("/v2/events", events.Events),
    ("/v2/bulkevents", events.BulkEvents),
    ("/v2/bulkevents/historical", events.HistoricalEvents),
    ("/userprofile/v1/resolve/{org}/{account}/{ws}", user_profiles.ResolvedUserProfile),
    ("/userprofile/v1/{org}/{account}/{ws}/{mpid}", user_profiles.UserProfile),
)
"""Every path, once (see `ALIASES`), without its trailing slash, which may be there or not."""

ALIASES = {
    "/platform/workspaces/": ("/platform/v2/workspaces/", "/platform/experimental/workspaces/"),
    "/v2/": ("/",),
}
"""Beginning of paths of the table -> others under which the same is reached: mParticle's documents
write all three prefixes, and its SDKs leave out `/v2` where the host that they are given does."""

RETRY_SECONDS = 0.5
"""How long after a failed attempt to open the store the next one is made."""

log = logging.getLogger(__name__)


def addresses(path: str) -> tuple[str, ...]:
    """Give a path of the table, and the others under which the same is reached."""
    for beginning, others in ALIASES.items():
        if path.startswith(beginning):
            rest = path.removeprefix(beginning)
            return (path, *(other + rest for other in others))
    return (path,)


def operations() -> Iterator[tuple[str, str, Operation]]:
    """Give every operation there is, once: method, path, and what `endpoint` was told."""
    for path, resource in ROUTES:
        for method in falcon.HTTP_METHODS:
            operation = operation_of(getattr(resource, f"on_{method.lower()}", None))
            if operation is not None:
                yield method, path, operation


def create_app(
    config: Config, store: Store | None = None, counters: Counters | None = None
) -> RecordingApp:
    """Make the application.

    Given an open `store`, it uses that and leaves it open. Else it opens the one of the settings
    when the server starts it, keeps trying while it cannot be reached (requests answer 503
    meanwhile), and closes it at the end. What it counts it shows together with the other processes
    that share the directory of `counters`; without that, alone.
    """
    counters = counters or Counters("alone")
    backend = Backend(config, store, counters)
    backend.operations = tuple(operations())
    app = RecordingApp(counters, config.request_log)
    app.shortcuts = Shortcuts(app, backend)
    counters.sources.append(backend.tell)
    if store is None:
        app.add_middleware(_Lifespan(backend))
    # Last: it is shut down first, and writes what was counted of the store while that is open.
    app.add_middleware(_Recording(app))
    app.req_options.strip_url_path_trailing_slash = True
    for path, resource in ROUTES:
        made = resource(backend)
        for address in addresses(path):
            app.add_route(address, with_preflight(made) if path.startswith(API) else made)
    app.add_error_handler(BelongError, answer_error)
    app.add_error_handler(falcon.HTTPError, answer_http_error)
    app.add_error_handler(Exception, _answer_surprise)
    return app


async def _answer_surprise(
    req: falcon.asgi.Request,
    resp: falcon.asgi.Response | None,
    error: Exception,
    _params: dict[str, Any],
) -> None:
    """Answer a bug: the log says what happened, the client learns that it was not its fault."""
    request_id = getattr(req, "request_id", "")
    route = req.uri_template or req.path
    log.error("%s %s failed (request id %s)", req.method, route, request_id, exc_info=error)
    if resp is None:
        raise error
    resp.status = HTTPStatus.INTERNAL_SERVER_ERROR
    resp.data = failure_body(req.path, request_id)


class _Recording:
    """Middleware that has what was counted written down for as long as the server runs."""

    def __init__(self, app: RecordingApp) -> None:
        self._app = app
        self._writing: asyncio.Task[None] | None = None

    async def process_startup(
        self,
        scope: Mapping[str, Any],  # noqa: ARG002 - Falcon names what it passes
        event: Mapping[str, Any],  # noqa: ARG002
    ) -> None:
        """Begin to write, where there is a directory for it."""
        if self._app.counters.directory is not None:
            self._writing = asyncio.create_task(self._app.counters.keep_writing())

    async def process_shutdown(
        self,
        scope: Mapping[str, Any],  # noqa: ARG002 - Falcon names what it passes
        event: Mapping[str, Any],  # noqa: ARG002
    ) -> None:
        """Write all of it once more, and the last lines of the request log."""
        if self._writing is not None:
            self._writing.cancel()
        self._app.counters.write()
        self._app.log.close()


class _Lifespan:
    """Middleware that opens the store when the server starts, and closes it when it stops."""

    def __init__(self, backend: Backend) -> None:
        url = backend.config.redis_url
        if url is None:
            raise Unusable("the application was given no store, and redis_url is not set")
        self._url = url
        self._backend = backend
        self._opening: asyncio.Task[None] | None = None

    async def process_startup(
        self,
        scope: Mapping[str, Any],  # noqa: ARG002 - Falcon names what it passes
        event: Mapping[str, Any],  # noqa: ARG002
    ) -> None:
        """Begin to open the store; a store that is down does not keep the server from starting."""
        self._opening = asyncio.create_task(self._open())
        await asyncio.wait([self._opening], timeout=RETRY_SECONDS)

    async def process_shutdown(
        self,
        scope: Mapping[str, Any],  # noqa: ARG002 - Falcon names what it passes
        event: Mapping[str, Any],  # noqa: ARG002
    ) -> None:
        """Close the store."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if self._backend.is_open:
            store = self._backend.store
            self._backend.opened(None)
            await store.close()

    async def _open(self) -> None:
        """Try until it is open, whatever is in the way: a failure that is new is logged."""
        said = ""
        while True:
            try:
                self._backend.opened(await Store.open(self._url))
            except BelongError as error:
                because = str(error)
                if because != said:
                    log.warning("store not opened yet: %s", error)
                said = self._backend.closed_because = because
            except Exception as error:
                if repr(error) != said:
                    log.exception("store not opened yet")
                said = repr(error)
                self._backend.closed_because = "The store cannot be opened; the log says why."
            else:
                return
            await asyncio.sleep(RETRY_SECONDS)
