"""What a process counts, and how the processes of one server put that together.

A process counts in plain numbers and, where it has a directory, writes all of them into a file of
its own there: once a second, and whenever it is asked for the sum. Whoever is asked reads the files
of all. A process that is gone leaves its file: its counters count on, so that sums never fall, its
gauges do not. Whether it is gone is told by a lock that it holds for as long as it lives, however
that ends. What the numbers mean, and how they are shown, is the business of `metrics`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

WRITE_SECONDS = 1.0
"""How often a process writes down what it has counted: as much is lost when it is killed."""
COUNT_SECONDS = 60
"""How long after one count of what applications hold the background worker begins the next one."""
SECONDS = tuple(100 * 2**step / 1_000_000 for step in range(18))
"""Upper bounds of the buckets of durations: 0.1 ms, and twice as much each time, up to 13.1 s."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper bounds of the buckets of histograms of sizes."""

_PREFIX = "belong-metrics-"
_OURS = "serve.lock"
_GONE = "gone.json"
_YOUNG_SECONDS = 60.0
"""Up to this age a file without a lock may be one that is just being made."""
_REMEMBERED = 100
"""Processes whose numbers have been added up that are remembered: far more than end in the time in
which somebody reads the files."""
_BETWEEN = "\t"

log = logging.getLogger(__name__)


class Snapshot(msgspec.Struct):
    """What was counted: by name and labels, joined by `key`.

    A histogram is the number of values in each of its buckets (not those below), the last one for
    what is above all bounds, and then the sum of the values.
    """

    counters: dict[str, float] = msgspec.field(default_factory=dict)
    histograms: dict[str, list[float]] = msgspec.field(default_factory=dict)
    gauges: dict[str, float] = msgspec.field(default_factory=dict)
    of: list[str] = msgspec.field(default_factory=list)
    """Of the sum of the processes that are gone: which those are."""

    def add(self, other: Snapshot, *, gauges: bool) -> None:
        """Add another one; of a process that is gone without its gauges."""
        _add(self.counters, other.counters)
        if gauges:
            _add(self.gauges, other.gauges)
        for name, values in other.histograms.items():
            held = self.histograms.get(name)
            if held is None or len(held) != len(values):
                self.histograms[name] = list(values)
            else:
                self.histograms[name] = [a + b for a, b in zip(held, values, strict=True)]


def _add(to: dict[str, float], values: dict[str, float]) -> None:
    for name, value in values.items():
        to[name] = to.get(name, 0) + value


def key(name: str, labels: Iterable[str] = ()) -> str:
    """Join a metric's name and the values of its labels, in the order in which it has them."""
    return _BETWEEN.join((name, *labels))


def split(joined: str) -> tuple[str, list[str]]:
    """Take a key apart again."""
    name, *labels = joined.split(_BETWEEN)
    return name, labels


_decode = msgspec.json.Decoder(Snapshot).decode
_encode = msgspec.json.Encoder().encode


class Counters:
    """What this process counts.

    What is counted often is counted by whoever it happens to, in the cheapest way, and read by a
    *source*: a function that writes into the snapshot that it is given. Not for several threads.
    """

    def __init__(self, program: str, directory: Path | None = None) -> None:
        """Count alone or, with a directory, together with the other processes of a server."""
        self.program = program
        self.directory = directory
        self.sources: list[Callable[[Snapshot], None]] = []
        self._counted: dict[str, float] = {}
        self._gauges: dict[str, float] = {}
        self._name = f"{program}-{os.getpid()}-{time.time_ns():x}"
        self._lock: int | None = None
        self._failed = False
        self._lost = False
        if directory is not None:
            self._lock = _held(directory / f"{self._name}.lock")

    def count(self, name: str, *labels: str, by: float = 1) -> None:
        """Raise a counter; for what does not happen thousands of times a second."""
        joined = key(name, labels)
        self._counted[joined] = self._counted.get(joined, 0) + by

    def gauge(self, name: str, *labels: str, value: float) -> None:
        """Set a gauge of this process."""
        self._gauges[key(name, labels)] = value

    def forget(self, name: str) -> None:
        """Drop the gauges of a name, whatever their labels."""
        for joined in [each for each in self._gauges if split(each)[0] == name]:
            del self._gauges[joined]

    def snapshot(self) -> Snapshot:
        """Give what this process has counted until now."""
        made = Snapshot(dict(self._counted), {}, dict(self._gauges))
        made.gauges[key("belong_processes", [self.program])] = 1
        for source in self.sources:
            source(made)
        return made

    def write(self) -> Snapshot:
        """Write down what was counted, for the others; where that fails the log says so once."""
        made = self.snapshot()
        if self.directory is None or self._lock is None:
            return made
        try:
            if self._lost:
                self._begin_again()
            _write(self.directory / f"{self._name}.json", made)
            os.utime(self._lock)  # so that nobody who tidies up takes it for forgotten
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.warning("metrics are not written down: %s", error)
            self._failed = True
            self._lost = self._lost or isinstance(error, FileNotFoundError)
        return made

    def _begin_again(self) -> None:
        """Take part again where somebody removed the directory, and the supervisor made a new one.

        /dev/shm may be tidied up when a user logs out.
        """
        assert self.directory is not None  # noqa: S101 - nothing was to be written else
        fresh = _held(self.directory / f"{self._name}.lock")
        if self._lock is not None:
            os.close(self._lock)
        self._lock = fresh
        self._lost = False

    async def keep_writing(self) -> None:
        """Write once a second, for as long as the task runs."""
        while True:
            self.write()
            await asyncio.sleep(WRITE_SECONDS)

    def total(self) -> Snapshot:
        """Give the sum over all processes: of this one now, of the others at most a second old."""
        own = self.write()
        if self.directory is None:
            return own
        found: dict[str, tuple[Snapshot, bool]] = {}
        for name in _names(self.directory):
            held = _read(self.directory / f"{name}.json")
            if held is not None and name != self._name:
                found[name] = held, _lives(self.directory, name)
        # Last: who was added up and removed before we looked is in it, and who was since is too.
        total = _read(self.directory / _GONE) or Snapshot()
        total.add(own, gauges=True)
        for name, (held, lives) in found.items():
            if name not in total.of:
                total.add(held, gauges=lives)
        return total


class Directory:
    """The directory of one server, from its start to its end. Only its supervisor makes one."""

    def __init__(self, places: Iterable[Path]) -> None:
        """Make it in the first place where that is possible, and remove what dead servers left.

        Raises OSError where it is possible in none.
        """
        self.path = self._make(list(places))
        self._lock = _held(self.path / _OURS)
        for other in self.path.parent.glob(f"{_PREFIX}*"):
            if other != self.path:
                _remove_if_dead(other)

    @staticmethod
    def _make(places: list[Path]) -> Path:
        for place in places[:-1]:
            with contextlib.suppress(OSError):
                return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=places[-1]))

    def fold(self) -> None:
        """Add the numbers of processes that are gone to one sum, and remove their files.

        However it ends, no number is lost and none counts twice: the sum says whose it holds.
        """
        gone: Snapshot | None = None
        removed: list[str] = []
        if not self.path.exists():
            self._make_again()
        with contextlib.suppress(OSError):
            os.utime(self._lock)
        for name in _names(self.path):
            if _lives(self.path, name):
                continue
            gone = gone or _read(self.path / _GONE) or Snapshot()
            if name not in gone.of and (held := _read(self.path / f"{name}.json")) is not None:
                gone.add(held, gauges=False)
                gone.of.append(name)
            removed.append(name)
        if gone is not None:
            gone.of = gone.of[-_REMEMBERED:]
            try:
                _write(self.path / _GONE, gone)
            except OSError as error:
                log.warning("metrics of processes that are gone are not added up: %s", error)
                return
        for name in removed:
            (self.path / f"{name}.json").unlink(missing_ok=True)
            (self.path / f"{name}.lock").unlink(missing_ok=True)
        for lock in self.path.glob("*.lock"):
            # Who died before it wrote anything.
            left = lock.name != _OURS and not lock.with_suffix(".json").exists()
            if left and _is_old(lock) and not _is_locked(lock):
                lock.unlink(missing_ok=True)

    def _make_again(self) -> None:
        """Make the directory anew, which somebody removed; what dead processes left is lost."""
        try:
            self.path.mkdir(mode=0o700)
            fresh = _held(self.path / _OURS)
        except OSError as error:
            log.warning("the directory of the metrics is gone and cannot be made: %s", error)
            return
        os.close(self._lock)
        self._lock = fresh
        log.warning("somebody removed the directory of the metrics: it was made again")

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def __enter__(self) -> Self:
        """Give the directory, for a `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove it."""
        self.remove()


def bucket_of(nanoseconds: int) -> int:
    """Give the place of a duration among the buckets of SECONDS, or one of those above."""
    return (nanoseconds // 100_000).bit_length()


def timed(buckets: list[int], nanoseconds: int) -> list[float]:
    """Give what a snapshot keeps of durations: `buckets` by `bucket_of`, and their sum."""
    least = len(SECONDS)
    return [*buckets[:least], sum(buckets[least:]), nanoseconds / 1e9]


def _write(path: Path, snapshot: Snapshot) -> None:
    """Replace a file: who reads it sees the old or the new one, never a part."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(_encode(snapshot))
    fresh.replace(path)


def _read(path: Path) -> Snapshot | None:
    try:
        return _decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        log.warning("metrics in %s cannot be read: %s", path, error)
        return None


def _names(directory: Path) -> list[str]:
    return [path.stem for path in directory.glob("*.json") if path.name != _GONE]


def _held(path: Path) -> int:
    """Open a lock file, made if need be, and hold it for as long as this process lives."""
    opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    fcntl.flock(opened, fcntl.LOCK_EX)
    return opened


def _lives(directory: Path, name: str) -> bool:
    return _is_locked(directory / f"{name}.lock")


def _is_locked(path: Path) -> bool:
    """Whether somebody who lives holds the lock of a file."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(opened)
    return False


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _YOUNG_SECONDS
    except OSError:
        return False


def _remove_if_dead(directory: Path) -> None:
    """Remove what a killed server left; never what belongs to somebody else."""
    try:
        owned = directory.lstat().st_uid == os.getuid() and not directory.is_symlink()
    except OSError:
        return
    if owned and not _is_locked(directory / _OURS) and _is_old(directory):
        shutil.rmtree(directory, ignore_errors=True)
