"""Counters: what processes count together never falls, and what is gone has no gauges."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service import counters
from service.counters import Counters, Directory, Snapshot, key
from tests.serving import ROOT, eventually

NAME = "belong_bulk_lines_total"
LOST = """
import sys, time
from pathlib import Path
from service.counters import Counters
counted = Counters("api", Path(sys.argv[1]))
counted.count("c", by=5)
counted.gauge("g", value=7)
counted.write()
print("written", flush=True)
time.sleep(60)
"""


@pytest.fixture
def directory(tmp_path):
    with Directory([tmp_path]) as made:
        yield made


@pytest.fixture
def other(directory):
    """Another process that counts in the directory; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOST, str(directory.path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "written\n" == process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def let_go(one):
    """What the end of its process does to a lock."""
    os.close(one._lock)


def files(directory):
    return sorted(path.name.partition("-")[0] for path in directory.path.iterdir())


def test_a_process_alone_counts_for_itself():
    alone = Counters("alone")
    alone.count(NAME, "added", by=2)
    alone.count(NAME, "added")
    alone.count(NAME, "failed")
    alone.gauge("g", value=4)
    total = alone.total()
    assert {key(NAME, ["added"]): 3, key(NAME, ["failed"]): 1} == total.counters
    assert {"g": 4, key("belong_processes", ["alone"]): 1} == total.gauges


def test_a_source_writes_what_it_has_counted():
    alone = Counters("alone")
    alone.sources.append(lambda to: to.counters.update({"c": 9}))
    assert {"c": 9} == alone.total().counters


def test_processes_are_put_together(directory, other):
    own = Counters("api", directory.path)
    own.count("c", by=2)
    own.gauge("g", value=1)
    total = own.total()
    assert 7 == total.counters["c"]
    assert 8 == total.gauges["g"]
    assert 2 == total.gauges[key("belong_processes", ["api"])]


def test_what_this_process_counted_is_shown_at_once(directory, other):
    own = Counters("api", directory.path)
    for count in range(1, 5):
        own.count("c")
        assert 5 + count == own.total().counters["c"]


def test_a_killed_process_keeps_its_counters_and_loses_its_gauges(directory, other):
    own = Counters("api", directory.path)
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    total = own.total()
    assert 5 == total.counters["c"]
    assert "g" not in total.gauges
    assert 1 == total.gauges[key("belong_processes", ["api"])]


def test_folding_what_is_gone_changes_no_sum_and_removes_its_files(directory, other):
    own = Counters("worker", directory.path)
    own.write()
    directory.fold()
    assert ["api", "api", "serve.lock", "worker", "worker"] == files(directory)
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    for _ in range(3):
        directory.fold()
        assert 5 == own.total().counters["c"]
    assert ["gone.json", "serve.lock", "worker", "worker"] == files(directory)


def test_a_fold_that_died_half_way_counts_nothing_twice(directory, other, monkeypatch):
    own = Counters("worker", directory.path)
    os.kill(other.pid, signal.SIGKILL)
    other.wait()

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", stop)
        with pytest.raises(KeyboardInterrupt):
            directory.fold()
    assert 5 == own.total().counters["c"]
    directory.fold()
    assert 5 == own.total().counters["c"]
    assert ["gone.json", "serve.lock", "worker", "worker"] == files(directory)


def test_sums_of_many_that_are_gone_stay_one_small_file(directory):
    own = Counters("worker", directory.path)
    for _ in range(counters._REMEMBERED + 20):
        gone = Counters("api", directory.path)
        gone.count("c")
        gone.write()
        let_go(gone)
        directory.fold()
    assert counters._REMEMBERED + 20 == own.total().counters["c"]
    added_up = counters._read(directory.path / "gone.json")
    assert added_up is not None
    assert counters._REMEMBERED == len(added_up.of)


def test_histograms_add_up_by_bucket():
    one = Snapshot(histograms={"h": [1, 2, 3, 0.5]})
    one.add(Snapshot(histograms={"h": [1, 0, 1, 0.25], "i": [1.0]}), gauges=True)
    assert {"h": [2, 2, 4, 0.75], "i": [1.0]} == one.histograms


def test_a_histogram_of_another_shape_takes_the_place_of_the_old_one():
    one = Snapshot(histograms={"h": [1, 2]})
    one.add(Snapshot(histograms={"h": [1, 2, 3]}), gauges=True)
    assert {"h": [1, 2, 3]} == one.histograms


def test_a_file_that_cannot_be_read_is_said_and_left_out(directory, caplog):
    own = Counters("worker", directory.path)
    (directory.path / "api-1-2.json").write_bytes(b'{"counters": {"c": 1')
    own.count("c")
    assert 1 == own.total().counters["c"]
    assert "cannot be read" in caplog.text


def test_a_full_disk_is_said_once_and_own_numbers_are_shown(directory, monkeypatch, caplog):
    own = Counters("worker", directory.path)
    own.count("c")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(counters, "_write", full)
    with caplog.at_level(logging.WARNING):
        assert 1 == own.total().counters["c"]
        own.write()
    assert 1 == caplog.text.count("No space left on device")


def test_the_directory_is_removed_and_what_a_killed_server_left_too(tmp_path):
    dead, young, foreign = (tmp_path / f"belong-metrics-{name}" for name in ("a", "b", "c"))
    for path in (dead, young):
        path.mkdir()
        (path / "serve.lock").touch()
    foreign.symlink_to(tmp_path)
    hour_ago = time.time() - 3600
    os.utime(dead, (hour_ago, hour_ago))
    with Directory([tmp_path]) as first:
        os.utime(first.path, (hour_ago, hour_ago))
        with Directory([tmp_path]) as second:
            assert first.path.exists()
            assert second.path.exists()
        assert not second.path.exists()
    assert [foreign, young] == sorted(tmp_path.iterdir(), reverse=True)


def test_the_next_place_is_taken_where_the_first_cannot_be(tmp_path):
    with Directory([tmp_path / "nothing", tmp_path]) as made:
        assert tmp_path == made.path.parent
    with pytest.raises(OSError, match="nothing"):
        Directory([tmp_path / "nothing"])


def test_who_died_before_it_wrote_leaves_nothing_in_the_end(directory):
    let_go(Counters("api", directory.path))
    lock = next(directory.path.glob("api-*.lock"))
    directory.fold()
    assert lock.exists()
    old = time.time() - 100
    os.utime(lock, (old, old))
    directory.fold()
    assert not lock.exists()


def test_somebody_who_lives_and_has_not_written_keeps_its_lock(directory):
    alive = Counters("api", directory.path)
    lock = next(directory.path.glob("api-*.lock"))
    old = time.time() - 100
    os.utime(lock, (old, old))
    directory.fold()
    assert lock.exists()
    alive.count("c")
    assert 1 == alive.total().counters["c"]


@pytest.mark.parametrize(
    ("nanoseconds", "seconds"),
    [
        (0, 0.0001),
        (99_999, 0.0001),
        (100_001, 0.0002),
        (399_999, 0.0004),
        (5_000_000, 0.0064),
        (13_000_000_000, 13.1072),
        (3_600_000_000_000, None),
    ],
)
def test_a_duration_is_counted_below_its_bound(nanoseconds, seconds):
    buckets = [0] * 64
    buckets[counters.bucket_of(nanoseconds)] += 1
    *counted, total = counters.timed(buckets, nanoseconds)
    place = counted.index(1)
    assert seconds == (counters.SECONDS[place] if place < len(counters.SECONDS) else None)
    assert nanoseconds / 1e9 == total
    assert 1 == sum(counted)
    assert len(counters.SECONDS) + 1 == len(counted)


async def test_a_process_writes_once_a_second(directory, monkeypatch):
    import asyncio

    monkeypatch.setattr(counters, "WRITE_SECONDS", 0.01)
    own, reader = Counters("api", directory.path), Counters("worker", directory.path)
    task = asyncio.create_task(own.keep_writing())
    own.count("c")
    await asyncio.sleep(0.05)
    assert 1 == reader.total().counters["c"]
    own.count("c")
    await asyncio.sleep(0.05)
    assert 2 == reader.total().counters["c"]
    task.cancel()
    assert eventually(task.cancelling)


def test_a_directory_that_somebody_removed_is_made_again(directory, caplog):
    """It lay in /dev/shm, which is tidied up at a logout: the others were not seen any more."""
    one, two = Counters("api", directory.path), Counters("worker", directory.path)
    two.count("c", by=3)
    shutil.rmtree(directory.path)

    one.write()
    two.write()
    directory.fold()
    for each in (one, two, one, two):
        each.write()

    assert 3 == one.total().counters["c"]
    assert 1 == one.total().gauges[key("belong_processes", ["worker"])]
    directory.fold()
    assert 1 == one.total().gauges[key("belong_processes", ["worker"])]
    assert "made again" in caplog.text
