"""A PostgreSQL of our own: as Debian sets it up, in a scratch folder, on a Unix socket there.

Nothing is tuned but the size of its buffers: what comes back after a commit is on the disk (fsync,
synchronous_commit).
PostgreSQL refuses to run as root; where we are root it runs as the user `postgres`.
"""

from __future__ import annotations

import csv
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from bench.peers import installing, processes
from bench.serving import OTHER_CORE, children, pin

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

USER = "postgres"
START_SECONDS = 60
BUFFERS = "512MB"
"""The whole world with its indexes, and what is added to it. It would have 128 MB by itself."""


class Postgres(NamedTuple):
    """A running server: the folder of its socket, and the process above all others of it."""

    socket: Path
    pid: int
    programs: Path

    def run(self, statement: str) -> str:
        """Run a statement, and give what it answers. It is refused: RuntimeError."""
        return self._psql(statement, lambda _: None)

    def copy(self, where: str, rows: Iterable[Iterable[object]]) -> None:
        """Copy rows into a table, named with its columns."""

        def write(target: IO[str]) -> None:
            csv.writer(target).writerows(rows)

        self._psql(f"COPY {where} FROM STDIN (FORMAT csv)", write)

    def _psql(self, statement: str, write: Any) -> str:
        command: list[str | Path] = [
            *(self.programs / "psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align"),
            *("--set=ON_ERROR_STOP=1", f"--host={self.socket}", f"--username={USER}"),
            *("--dbname=postgres", f"--command={statement}"),
        ]
        with (
            tempfile.TemporaryFile("w+") as said,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=said, stderr=subprocess.STDOUT, text=True
            ) as process,
        ):
            assert process.stdin is not None  # noqa: S101 - a pipe
            try:
                write(process.stdin)
                process.stdin.close()
            except BrokenPipeError:
                pass  # it refused; what it said says why
            process.wait()
            said.seek(0)
            answer = said.read().strip()
        if process.returncode:
            raise RuntimeError(f"`{statement}`: {answer}")
        return answer


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a server; it and its data are gone afterwards.

    :raises installing.Missing: PostgreSQL, or as root its user, is not there
    """
    programs = installing.postgres()
    account = _account()
    folder = Path(tempfile.mkdtemp(prefix="belong-pg-"))
    try:
        if account:
            shutil.chown(folder, account["user"], account["group"])
        data = folder / "data"
        made = subprocess.run(
            [
                *(programs / "initdb", f"--pgdata={data}", f"--username={USER}"),
                *("--encoding=UTF8", "--locale=C.UTF-8", "--auth=trust"),
            ],
            cwd=folder, check=False, capture_output=True, text=True, **account,
        )  # fmt: skip
        if made.returncode:
            raise RuntimeError(f"initdb failed: {made.stderr.strip()}")
        with _server(programs, folder, data, account) as found:
            yield found
    finally:
        shutil.rmtree(folder)


@contextmanager
def _server(
    programs: Path, folder: Path, data: Path, account: dict[str, Any]
) -> Iterator[Postgres]:
    command: list[str | Path] = [
        *(programs / "postgres", "-D", data, "-k", folder),
        *("-c", "listen_addresses=", "-c", f"shared_buffers={BUFFERS}"),
    ]
    with processes.running("PostgreSQL", command, folder, end=signal.SIGINT, **account) as server:
        deadline = time.monotonic() + START_SECONDS
        ready: list[str | Path] = [
            programs / "pg_isready",
            "--quiet",
            f"--host={folder}",
            f"--username={USER}",
        ]
        while subprocess.run(ready, check=False).returncode:
            server.require_life()
            if time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL was not ready within {START_SECONDS} s")
            time.sleep(0.1)
        for pid in (server.pid, *children(server.pid)):
            pin(pid, OTHER_CORE)
        yield Postgres(folder, server.pid, programs)


def _account() -> dict[str, Any]:
    """Say as whom it runs: what `subprocess` takes."""
    if os.geteuid():
        return {}
    try:
        pwd.getpwnam(USER)
    except KeyError:
        raise installing.Missing(f"there is no user {USER}, and root cannot run it") from None
    return {"user": USER, "group": USER, "extra_groups": []}
