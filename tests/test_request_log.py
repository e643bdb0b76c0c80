"""The request log: whole lines that hold nobody up, whoever reads them or does not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time

import msgspec
import pytest

from service import request_log
from service.request_log import PIECE_BYTES, RequestLog, stamp
from tests.serving import ROOT

WRITER = """
import asyncio, sys
from service import request_log
from service.request_log import RequestLog

request_log.CLOSE_SECONDS = 20

async def main():
    log = RequestLog(1)
    for number in range(3000):
        log.write({"who": sys.argv[1], "number": number, "text": "x" * (number % 500)})
        if number % 7 == 0:
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    log.close()

asyncio.run(main())
"""


@pytest.fixture
def pipe():
    """Both ends of a pipe: (read, write)."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def lines(descriptor):
    """What has been written, as one object per line."""
    os.set_blocking(descriptor, False)
    text = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(descriptor, 65536):
            text += part
    assert text.endswith(b"\n") or not text
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def written(monkeypatch):
    """Every piece that is written, as long as the test runs."""
    pieces: list[bytes] = []
    write = os.write

    def note(descriptor, data):
        pieces.append(data)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", note)
    return pieces


async def test_lines_leave_at_the_end_of_the_turn_in_order(pipe, written):
    log = RequestLog(pipe[1])
    for number in range(20):
        log.write({"n": number})
    assert [] == written
    await asyncio.sleep(0)
    assert [{"n": number} for number in range(20)] == lines(pipe[0])
    assert 1 == len(written)


async def test_no_write_is_longer_than_a_pipe_takes_in_one_piece(pipe, written):
    log = RequestLog(pipe[1])
    for number in range(100):
        log.write({"n": number, "text": "x" * 300})
    await asyncio.sleep(0)
    assert 100 == len(lines(pipe[0]))
    assert max(map(len, written)) <= PIECE_BYTES
    assert len(written) < 12


def test_lines_of_several_processes_do_not_mix():
    reading, writing = os.pipe()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(who)], cwd=ROOT, stdout=writing)
        for who in range(3)
    ]
    os.close(writing)
    with os.fdopen(reading, "rb") as read:
        found = [json.loads(line) for line in read]
    assert [0, 0, 0] == [writer.wait(20) for writer in writers]
    for who in range(3):
        assert list(range(3000)) == [each["number"] for each in found if each["who"] == str(who)]


async def test_a_line_that_would_be_too_long_is_cut_and_says_so(pipe):
    log = RequestLog(pipe[1])
    raw = msgspec.Raw(b'{"detail":"%b"}' % (b"y" * 5000))
    log.write({"path": "\0" * 5000, "status": 404, "error": raw})
    log.write({"path": "short"})
    await asyncio.sleep(0)
    cut, whole = lines(pipe[0])
    assert (True, 404) == (cut["cut"], cut["status"])
    assert set("\0") == set(cut["path"])
    assert {"path": "short"} == whole


async def test_a_reader_that_is_slow_holds_nobody_up_and_gets_what_was_held(pipe, monkeypatch):
    monkeypatch.setattr(request_log, "RETRY_SECONDS", 0.01)
    log = RequestLog(pipe[1])
    began = time.monotonic()
    for number in range(2000):
        log.write({"n": number, "text": "x" * 200})
        if number % 100 == 0:
            await asyncio.sleep(0)
    assert time.monotonic() - began < 1
    found: list[dict[str, int]] = []
    while len(found) < 2000:
        await asyncio.sleep(0.02)
        found += lines(pipe[0])
    assert list(range(2000)) == [each["n"] for each in found]
    assert 0 == log.dropped


async def test_what_a_reader_does_not_take_is_dropped_and_counted(pipe, monkeypatch):
    monkeypatch.setattr(request_log, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(request_log, "HELD_BYTES", 20_000)
    log = RequestLog(pipe[1])
    for number in range(2000):
        log.write({"n": number, "text": "x" * 200})
        await asyncio.sleep(0)
    assert 0 < log.dropped < 2000
    found: list[dict[str, int]] = []
    while "dropped" not in (found[-1] if found else {}) and len(found) < 2001:
        await asyncio.sleep(0.02)
        found += lines(pipe[0])
        if any("dropped" in each for each in found):
            break
    said = [each["dropped"] for each in found if "dropped" in each]
    assert [log.dropped] == said
    assert 2000 - log.dropped == len([each for each in found if "n" in each])


@pytest.mark.parametrize("whole", [True, False])
async def test_a_reader_that_is_gone_ends_nothing(pipe, whole):
    os.close(pipe[0])
    if whole:
        os.close(pipe[1])
    log = RequestLog(pipe[1])
    for _ in range(3):
        log.write({"n": 1})
        await asyncio.sleep(0)
    log.close()
    assert 3 == log.dropped


async def test_the_last_lines_are_written_when_it_is_closed(pipe):
    log = RequestLog(pipe[1])
    log.write({"n": 1})
    log.close()
    assert [{"n": 1}] == lines(pipe[0])


async def test_closing_does_not_wait_for_ever(pipe, monkeypatch):
    monkeypatch.setattr(request_log, "CLOSE_SECONDS", 0.1)
    log = RequestLog(pipe[1])
    for _ in range(500):
        log.write({"text": "x" * 2000})
    began = time.monotonic()
    log.close()
    assert time.monotonic() - began < 1


def test_a_moment_is_written_in_utc():
    assert "2026-11-22T01:02:03.045Z" == stamp(1795309323.0459)
