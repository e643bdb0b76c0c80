"""The command `belong recompute`: it queues a job, and shows how far that is until it is over.

Added to the command line by `add_to`, which is given how a command gets its store.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from service.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from service.environment import Application
    from service.store import Store
    from service.store_jobs import Job

    WithStore = Callable[[Callable[..., Awaitable[None]]], Callable[..., None]]

POLL_SECONDS = 0.25
QUIET_SECONDS = 10.0
"""After this without progress it is said that no worker seems to run."""


def add_to(main: click.Group, with_store: WithStore) -> None:
    """Add the command; `with_store` makes a callback of a coroutine that takes the store first."""

    @main.command("recompute")
    @click.option("--application", "client_id", metavar="CLIENT_ID", required=True)
    @click.option(
        "--definition",
        metavar="ID",
        help="A group definition that must exist. A job derives for all of them at once.",
    )
    @click.option(
        "--wait/--no-wait", default=True, help="Wait until it is over. Default: it is waited for."
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
    @with_store
    async def recompute(
        store: Store, *, client_id: str, definition: str | None, wait: bool, as_json: bool
    ) -> None:
        """Have the worker look at all users again and group them. Exit 1 if it fails."""
        application = await store.registry.application(client_id)
        if application is None:
            raise NotFound(f"no application {client_id}")
        if definition is not None:
            await store.definitions.get_definition(application, definition)
        job = await store.jobs.queue_job(application)
        if wait:
            job = await _watched(store, application, job)
        _print(job, as_json=as_json)
        if job.state == "failed":
            raise click.exceptions.Exit(1)


async def _watched(store: Store, application: Application, job: Job) -> Job:
    """Wait until a job is over, with a bar on stderr where somebody watches."""
    heard_at, said = time.monotonic(), False
    with click.progressbar(
        length=max(job.total, 1), label="recompute", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:
        while not job.is_over:
            await asyncio.sleep(POLL_SECONDS)
            before, job = job, await store.jobs.get_job(application, job.id)
            if job != before:
                heard_at, said = time.monotonic(), False
            elif not said and time.monotonic() - heard_at > QUIET_SECONDS:
                said = True
                click.echo(
                    "belong: the job does not go on: does a worker run (belong serve has one)?",
                    err=True,
                )
            bar.length = max(job.total, job.done, 1)
            bar.update(job.done - bar.pos)
    return job


def _print(job: Job, *, as_json: bool) -> None:
    shown: dict[str, Any] = {
        "id": job.id,
        "state": job.state,
        "done": job.done,
        "total": job.total,
    }
    if job.state == "failed":
        shown["error"] = job.error
    if as_json:
        click.echo(msgspec.json.encode(shown))
    else:
        for name, value in shown.items():
            click.echo(f"{name:<5}  {value}")
