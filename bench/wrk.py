"""The closed loop by wrk, where it is installed.

Written in C, it leaves the server more of the machine than the client in `load` does. It counts as
an error a connection that it could not make, read or write, a request without an answer in time,
and an answer above 399; none of what is measured redirects. Its latencies have those of such
answers in them, and are "corrected" by itself: after a long one it adds those that would have
waited meanwhile.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from bench.load import NEW, Outcome, numbered

if TYPE_CHECKING:
    from bench.load import Job

SCRIPT = Path(__file__).with_name("wrk.lua")
TIMEOUT = 10
"""Seconds after which an answer counts as missing."""
ERRORS = ("connect", "read", "write", "status", "timeout")
SHORTEST = 1
"""wrk takes whole seconds."""


@functools.cache
def version() -> str | None:
    """Give the version of wrk, or None where there is none."""
    program = shutil.which("wrk")
    if program is None:
        return None
    # It says its version, then how it is used, and ends with 1.
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=False)
    words = (said.stdout + said.stderr).split()
    return words[1] if len(words) > 1 else "of unknown version"


def can(job: Job) -> bool:
    """Say whether wrk is here and can do this: closed loops of whole seconds."""
    return version() is not None and job.rate is None and job.seconds >= SHORTEST


def run(job: Job) -> Outcome:
    """Do a closed loop with one thread of wrk, after a warm-up by another.

    Raises:
        subprocess.CalledProcessError: wrk failed, and said why on stderr.
    """
    with tempfile.TemporaryDirectory(prefix="belong-wrk-") as folder:
        requests, result = Path(folder, "requests"), Path(folder, "result")
        requests.write_bytes(b"".join(b"%d\n%b" % (len(each), each) for each in job.requests))
        once = functools.partial(_once, job, requests, result)
        warm_up = once(max(SHORTEST, round(job.warm_up)))
        measured = once(round(job.seconds))
    measured.sent += warm_up.sent
    measured.lasted += warm_up.lasted
    measured.client_seconds += warm_up.client_seconds
    measured.errors += warm_up.errors
    measured.example = warm_up.example or measured.example
    return measured


def _once(job: Job, requests: Path, result: Path, seconds: int) -> Outcome:
    before = os.times()
    subprocess.run(
        [
            *("wrk", "--threads", "1", "--connections", str(job.connections)),
            *("--duration", f"{seconds}s", "--timeout", f"{TIMEOUT}s"),
            *("--script", SCRIPT, f"http://{job.host}:{job.port}/"),
            *("--", requests, result, NEW, numbered(job).number),
        ],
        stdout=subprocess.DEVNULL,
        check=True,
        start_new_session=True,
    )
    after = os.times()
    told: Counter[str] = Counter()
    latencies: dict[int, int] = {}
    for line in result.read_text().splitlines():
        name, *numbers = line.split()
        if name == "latency":
            latencies[int(float(numbers[0]))] = int(float(numbers[1]))
        else:
            told[name] = int(float(numbers[0]))
    errors = {each: told[each] for each in ERRORS if told[each]}
    return Outcome(
        answered=told["requests"] - told["status"],
        seconds=told["duration"] / 1e6,
        sent=told["requests"],
        errors=sum(errors.values()),
        unsent=0,
        lasted=told["duration"] / 1e6,
        latencies=latencies,
        client_seconds=sum(after[2:4]) - sum(before[2:4]),
        example=", ".join(f"{name}: {many}" for name, many in errors.items()),
    )
