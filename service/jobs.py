"""Jobs: walks over profiles of an application, as whoever waits for one sees them.

They are queued by changes of definitions and of rule trees, by queries that are saved as groups,
and by who asks here; the worker runs them.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import UNSET, UnsetType

from service.endpoint import Resource, endpoint

if TYPE_CHECKING:
    from service.admission import TenantCall
    from service.store_jobs import Job


class JobBody(msgspec.Struct, forbid_unknown_fields=True):
    """A job. `done` of `total` profiles were looked at; the total is exact when it is over.

    One that fails has left profiles out, and says why; all others it has seen to.
    """

    id: str
    state: Literal["queued", "running", "done", "failed"]
    done: int
    total: int
    error: str | UnsetType = UNSET
    """Of one that failed: why."""


class Jobs(Resource):
    """`/platform/workspaces/{ws}/jobs`."""

    @endpoint("definitions:read", reply=list[JobBody])
    async def on_get(self, call: TenantCall) -> list[JobBody]:
        """List the jobs of a workspace.

        The latest first: those that wait, one that runs, and the last 100 that are over.
        """
        return list(map(_body, await call.store.jobs.list_jobs(call.application)))


class OneJob(Resource):
    """`/platform/workspaces/{ws}/jobs/{jid}`."""

    @endpoint("definitions:read", reply=JobBody)
    async def on_get(self, call: TenantCall, *, jid: str) -> JobBody:
        """Read a job: how far it is."""
        return _body(await call.store.jobs.get_job(call.application, jid))


class Recompute(Resource):
    """`/platform/workspaces/{ws}/groups/{did}/recompute`."""

    @endpoint("definitions:write", reply=JobBody, status=HTTPStatus.ACCEPTED)
    async def on_post(self, call: TenantCall, *, did: str) -> JobBody:
        """Look at all users again, and group them.

        In a weekly application that makes up for waiting until Monday; in any other it changes
        nothing that is right. A job derives for all definitions at once; where one waits already,
        that is the one.
        """
        await call.store.definitions.get_definition(call.application, did)
        return _body(await call.store.jobs.queue_job(call.application))


def _body(job: Job) -> JobBody:
    error = job.error if job.state == "failed" else None
    return JobBody(job.id, job.state, job.done, job.total, UNSET if error is None else error)
