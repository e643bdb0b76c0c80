"""The peers as subjects of the bench: set up, started beside their stores, loaded, stopped.

What serves HTTP is one process on the first core, everything else is on the second. The two on
Redis have each a server of their own: the same binary with the same settings and persistence as
Belong's embedded one, for it is started by the same code.
"""

from __future__ import annotations

import itertools
import os
import secrets
import subprocess
from contextlib import ExitStack, contextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING
from uuid import UUID

import click
import msgspec

from bench import load, questions
from bench.peers import installing, loading, postgres, processes
from bench.serving import API_CORE, OTHER_CORE, Running, children, pin
from bench.world import BASE
from service.embedded import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from bench.world import World
    from service.embedded import State

    Starter = Callable[[ExitStack, World, Path], Running]
    """Starts a peer that ends with the stack."""

HOST = "127.0.0.1"
APPLICATION = "bench"

GUNICORN = ("--workers", "1", "--worker-class", "gthread", "--threads", "32", "--keep-alive", "75")
"""`sync` closes every connection after its answer. README.md has what was measured."""


WARM_REQUESTS = 500
"""Different ones of each kind."""
WARM_LONG_REQUESTS = 20
"""The same of those with many pairs or profiles."""
WARM_LONG = 1_000
"""So many of them."""
WARM_CONNECTIONS = 32
WARM_LONG_CONNECTIONS = 4


def missing(name: str) -> str | None:
    """Say what a peer lacks on this machine: PostgreSQL, node, … None: nothing."""
    return installing.runtime(name)


@contextmanager
def peers(
    world: World,
    folder: Path,
    names: Sequence[str] | None = None,
    warm_seconds: float = 3.0,
) -> Iterator[dict[str, Running]]:
    """Run the peers with the world in them, by name; they and their data are gone afterwards.

    What is missing here is left out, and a line on stderr says why. What is installed and does
    not start is a RuntimeError. Call it from the main thread.

    :param folder: where their data and logs go; the path may be long
    :param names: which of them; absent: all
    :param warm_seconds: how long Fastify is asked each of the questions before: node compiles what
        runs often while it runs, and takes 5 times as long for its first thousands of answers
    """
    with ExitStack() as stack:
        found = {}
        for name in NAMES if names is None else names:
            place = folder / name
            place.mkdir()
            starters = _STARTERS | {"fastify": partial(_fastify, warm_seconds=warm_seconds)}
            try:
                found[name] = starters[name](stack, world, place)
            except installing.Missing as why:
                click.echo(f"{name} is left out: {why}", err=True)
        yield found


def _fastapi(stack: ExitStack, world: World, folder: Path) -> Running:
    python = installing.python()
    store = _redis(stack, world, folder, "fastapi")
    port, token = processes.free_port(), secrets.token_hex(16)
    server = stack.enter_context(
        processes.running(
            "fastapi",
            [
                *(python, "-m", "uvicorn", "app:app", "--app-dir", installing.HERE / "fastapi"),
                *("--host", HOST, "--port", str(port), "--loop", "uvloop", "--http", "httptools"),
                *("--no-access-log", "--log-level", "warning"),
            ],
            folder,
            environment=_environment(token) | {"PEER_REDIS": store.socket},
        )
    )
    return _ready(server, "fastapi", port, token, server.pid, store.pid)


def _fastify(stack: ExitStack, world: World, folder: Path, *, warm_seconds: float = 0.0) -> Running:
    node = installing.node()
    store = _redis(stack, world, folder, "fastify")
    port, token = processes.free_port(), secrets.token_hex(16)
    server = stack.enter_context(
        processes.running(
            "fastify",
            [node, installing.FASTIFY / "app.js"],
            folder,
            environment=_environment(token)
            | {"PEER_REDIS": store.socket, "PEER_PORT": str(port), "NODE_ENV": "production"},
        )
    )
    peer = _ready(server, "fastify", port, token, server.pid, store.pid)
    if warm_seconds:
        _warm_up(peer, world, store.socket, warm_seconds)
    return peer


def _django(stack: ExitStack, world: World, folder: Path) -> Running:
    python = installing.python()
    database = stack.enter_context(postgres.postgres())
    port, token = processes.free_port(), secrets.token_hex(16)
    environment = _environment(token) | {
        "PEER_POSTGRES": str(database.socket),
        "PYTHONPATH": str(installing.HERE / "django"),
        "DJANGO_SETTINGS_MODULE": "memberships.settings",
    }
    subprocess.run(
        [python, "-m", "django", "migrate", "--verbosity", "0"],
        env=os.environ | environment,
        check=True,
    )
    loading.load_postgres(database, world, "django")
    server = stack.enter_context(
        processes.running(
            "django",
            [
                *(python, "-m", "gunicorn", "memberships.wsgi", "--bind", f"{HOST}:{port}"),
                *(*GUNICORN, "--log-level", "warning"),
            ],
            folder,
            environment=environment,
        )
    )
    server.wait_for_http(port)
    [worker] = children(server.pid)
    return _ready(server, "django", port, token, worker, database.pid)


_STARTERS: dict[str, Starter] = {"fastapi": _fastapi, "django": _django, "fastify": _fastify}
NAMES = tuple(_STARTERS)


def _redis(stack: ExitStack, world: World, folder: Path, name: str) -> State:
    """Start a store with the world in it."""
    store = EmbeddedServer(folder / "data")
    store.start()
    stack.callback(store.stop)
    assert store.state is not None  # noqa: S101 - started
    pin(store.state.pid, OTHER_CORE)
    loading.load_redis(store.state.socket, world, name)
    return store.state


def _ready(
    server: processes.Process, name: str, port: int, token: str, api: int, store: int
) -> Running:
    """Wait until it answers, and give it as a subject, in its place."""
    server.wait_for_http(port)
    pin(api, API_CORE)
    return Running(name, HOST, port, token, api, store)


def _warm_up(peer: Running, world: World, socket: str, seconds: float) -> None:
    """Let node see everything that it will be asked. An answer that is none: RuntimeError."""
    draw = Random(0)
    for ask in (questions.check, questions.groups_of, questions.members, questions.group):
        asked = [ask(world, peer, draw) for _ in range(WARM_REQUESTS)]
        _send(peer, questions.requests(peer, asked), WARM_CONNECTIONS, seconds)
    asked = [questions.check(world, peer, draw, pairs=WARM_LONG) for _ in range(WARM_LONG_REQUESTS)]
    _send(peer, questions.requests(peer, asked), WARM_LONG_CONNECTIONS, seconds)
    few = [[_profile(draw)] for _ in range(WARM_REQUESTS)]
    long = [[_profile(draw) for _ in range(WARM_LONG)] for _ in range(WARM_LONG_REQUESTS)]
    with loading.spare_group(socket, itertools.chain(*few, *long)) as group:
        path = f"{BASE}/profile-groups/{group}/members/"
        for added, connections in ((few, WARM_CONNECTIONS), (long, WARM_LONG_CONNECTIONS)):
            bodies = [msgspec.json.encode({"profile_ids": each}) for each in added]
            sent = [peer.request("POST", path, each) for each in bodies]
            _send(peer, sent, connections, seconds)


def _send(peer: Running, sent: list[bytes], connections: int, seconds: float) -> None:
    done = load.run(load.Job(peer.host, peer.port, sent, connections, seconds, 0))
    # What is sent and stays without an answer is an error; a late answer is none.
    if done.errors or not done.sent:
        raise RuntimeError(f"{peer.name} gave {done.errors} errors: {done.example}")


def _profile(draw: Random) -> str:
    return str(UUID(int=draw.getrandbits(128), version=4))


def _environment(token: str) -> dict[str, str]:
    return {"PEER_TOKEN": token, "PEER_APPLICATION": APPLICATION}
