"""Processes of the peers: started apart from the terminal, stopped in any case.

Ctrl-C is for the bench, which then stops them in order. Where the kernel can do it (setpriv, of
Debian's util-linux), they also end when the process dies that started them, however it does.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

START_SECONDS = 60
STOP_SECONDS = 30


class Process(NamedTuple):
    """A running process, and what it says."""

    name: str
    process: subprocess.Popen[bytes]
    said: IO[bytes]

    @property
    def pid(self) -> int:
        """Its id."""
        return self.process.pid

    def require_life(self) -> None:
        """Raise RuntimeError with its last words if it has ended."""
        if self.process.poll() is not None:
            self.said.seek(0)
            words = self.said.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}: {words}")

    def wait_for_http(self, port: int) -> None:
        """Wait until it answers, whatever it is: nobody who has no token is told more."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            self.require_life()
            with suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/", timeout=5, trust_env=False)
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not answer within {START_SECONDS} s")
            time.sleep(0.05)


@contextmanager
def running(
    name: str,
    command: Sequence[str | Path],
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    end: signal.Signals = signal.SIGTERM,
    **account: Any,
) -> Iterator[Process]:
    """Run a program in a folder, where its output goes, too; end it by a signal, or by force.

    `account` is what `subprocess` takes for another user. Call it from the main thread: the
    kernel's word that a parent has died is sent when the thread ends that started the program.
    """
    setpriv = shutil.which("setpriv")
    bound = [setpriv, "--pdeathsig", end.name.removeprefix("SIG")] if setpriv else []
    with (folder / f"{name}.log").open("w+b") as said:
        process = subprocess.Popen(
            [*bound, *command],
            cwd=folder,
            env={**_environment(), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **account,
        )
        try:
            yield Process(name, process, said)
        finally:
            process.send_signal(end)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """Give a port of loopback on which nobody listens now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _environment() -> dict[str, str]:
    """Give ours without what would change how Python or node run."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "NODE_", "VIRTUAL_ENV", "PG", "GUNICORN"))
    }
