"""`belong serve` as tests run it: real processes, of which none may be left when a test ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parent.parent

_Answer = TypeVar("_Answer")


def eventually(ask: Callable[[], _Answer], seconds: float = 10) -> _Answer:
    """Ask until the answer is true, or until it still raises or is false at the end."""
    deadline = time.monotonic() + seconds
    while True:
        last = time.monotonic() > deadline
        try:
            answer = ask()
        except (AssertionError, OSError, httpx.HTTPError):
            if last:
                raise
        else:
            if answer:
                return answer
            assert not last, f"still {answer!r} after {seconds} s"
        time.sleep(0.03)


class Serving:
    """A running `belong serve`, and all processes that came of it, whoever their parent is now."""

    def __init__(self, folder: Path, data_dir: Path, *arguments: str) -> None:
        self.data_dir = data_dir
        self.log = folder / f"{uuid.uuid4().hex}.log"
        self._mark = uuid.uuid4().hex
        self._stores: set[int] = set()
        clean = {n: v for n, v in os.environ.items() if not n.startswith("BELONG_")}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "service", "serve", "--workers", "1"),
                    *("--bind", "127.0.0.1:0", "--data-dir", str(data_dir), *arguments),
                ],
                cwd=ROOT,
                env=clean | {"TEST_MARK": self._mark},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )

    @property
    def base(self) -> str:
        def address() -> str | None:
            assert self.process.poll() is None, self.log.read_text()
            found = re.search(r"ready: (\S+)", self.log.read_text())
            return found[1] if found else None

        return eventually(address, 30) or ""

    def ready(self) -> Serving:
        assert self.get().status_code == 200
        assert self.store
        return self

    @property
    def store(self) -> int:
        """The store that runs on the data directory."""
        pid: int = json.loads((self.data_dir / "server.json").read_bytes())["pid"]
        self._stores.add(pid)
        return pid

    def pids(self, program: str = "") -> list[int]:
        """Find what lives of ours: the children called `api` or `worker`, or everything."""
        found = {pid for pid in self._stores if lives(pid)} if not program else set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and lives(int(entry.name)):
                with contextlib.suppress(OSError):
                    ours = f"TEST_MARK={self._mark}".encode() in (entry / "environ").read_bytes()
                    words = (entry / "cmdline").read_bytes().decode().split("\0")
                    if ours and (not program or program in words):
                        found.add(int(entry.name))
        return sorted(found)

    @property
    def master(self) -> int:
        """gunicorn's master: the one of the API's processes whose parent is none of them."""
        pids = self.pids("api")
        [master] = [pid for pid in pids if parent(pid) not in pids]
        return master

    @property
    def api_processes(self) -> list[int]:
        master = self.master
        return [pid for pid in self.pids("api") if parent(pid) == master]

    def get(self, path: str = "/healthz") -> httpx.Response:
        return httpx.get(self.base + path, timeout=5)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)

    def end(self) -> None:
        """Leave nothing behind, whatever the test did."""
        left = self.pids()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def has_ended(one: Serving) -> bool:
    return not one.pids()


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let sockets be made where nothing is left: a killed server leaves its empty directory."""
    with tempfile.TemporaryDirectory(prefix="run-", dir="/tmp") as place:
        monkeypatch.setenv("XDG_RUNTIME_DIR", place)
        yield


@pytest.fixture
def serve(tmp_path: Path, runtime: None) -> Iterator[Callable[..., Serving]]:
    """Start servers on this test's data directory; afterwards no process of them may be left."""
    started: list[Serving] = []

    def start(*arguments: str) -> Serving:
        started.append(Serving(tmp_path, tmp_path / "data", *arguments))
        return started[-1]

    yield start
    try:
        for one in started:
            if one.process.poll() is None:
                assert one.stop() == 0, one.log.read_text()
        for one in started:
            eventually(partial(has_ended, one), 5)
            said = one.log.read_text()
            # Orphans of a killed master cut off, after a second, what they could not answer.
            assert "Traceback" not in said or "graceful shutdown exceeded" in said, said
    finally:
        for one in started:
            one.end()
