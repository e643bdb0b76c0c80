"""What is measured, and what comes of it: the words that all parts of the bench share.

A *subject* is a running server. A *step* measures one thing of one subject once and gives a
*sample*; it is measured in every run, and its samples together are a *measurement*. How load is
made is the business of `load` and `wrk`, who runs the steps that of `runner`, how measurements are
kept and shown that of `results` and `pictures`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hdrh.histogram import HdrHistogram

    from bench.world import World

Mode = Literal["closed", "open", "once"]
"""Closed loop: as fast as answers come. Open loop: at a fixed rate. Once: anything else."""

Setting = int | float | str


class Subject(Protocol):
    """A running server, with the world loaded into it."""

    name: str
    """`belong`, `fastapi`, `django` or `fastify`."""
    host: str
    port: int
    token: str
    api: int
    """The process that serves HTTP, for its processor time."""
    store: int | None
    """The process of its store, where it has one of its own."""

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Give a whole HTTP/1.1 request with the subject's token, for a connection kept alive.

        `path` begins with `/`; a body is sent as JSON.
        """


class Sample(NamedTuple):
    """What one step gave in one run."""

    value: float
    """In the unit of the step: requests/s, us, bytes, ..."""
    errors: int = 0
    """Answers that were none, or not what was asked for."""
    unsent: int = 0
    """Open loop: requests that were due and never left."""
    histogram: HdrHistogram | None = None
    """Latencies in us."""
    details: Mapping[str, float] = {}
    """Whatever else is worth telling, by name: processor time per request, the achieved rate."""


class Step(NamedTuple):
    """One thing to be measured, of one subject."""

    workload: str
    """A short name that stands in tables: `check`, `groups of 10`, `add one`."""
    subject: str
    mode: Mode
    unit: str
    settings: Mapping[str, Setting]
    """What was fixed: connections, rate, group size. With the fields above it names the step."""
    measure: Callable[[], Sample]
    runs: int | None = None
    """How often it is measured; None: once in every run."""


class Measurement(msgspec.Struct, kw_only=True):
    """A step with all of its samples, as it is kept."""

    workload: str
    subject: str
    mode: Mode
    unit: str
    settings: dict[str, Setting]
    values: list[float] = []
    """One of each run in which there was one, in their order."""
    runs: list[int] = []
    """The numbers of these runs, from 0 on. Absent, as in older files: all from the first on."""
    errors: int = 0
    unsent: int = 0
    histogram: str | None = None
    """Latencies of all runs together, in us: an HdrHistogram, encoded as its libraries do it."""
    details: dict[str, list[float]] = {}

    def by_run(self) -> dict[int, float]:
        """Give the values by the number of their run: a step may have failed in another."""
        return dict(zip(self.runs or range(len(self.values)), self.values, strict=True))


class Bench(Protocol):
    """What a workload knows when it makes its steps, and when they are measured."""

    world: World
    subjects: Mapping[str, Subject]
    """By name, `belong` first; the peers that could be started."""
    seconds: float
    """How long one sample of a loop takes, without its warm-up."""
    connections: int
    large: bool
    smoke: bool
    """Everything as small as it can be: only whether it works is of interest."""

    def closed(
        self, subject: Subject, requests: list[bytes], *, connections: int | None = None
    ) -> Sample:
        """Send prepared requests in turn, as fast as answers come: requests/s."""

    def open(
        self, subject: Subject, requests: list[bytes], rate: float, *, seconds: float | None = None
    ) -> Sample:
        """Send prepared requests in turn at a fixed rate; the value is the p99 in us.

        Latencies count from the moment at which a request was due.
        """

    def peak(self, workload: str, subject: str) -> float:
        """Give what the closed loop of a workload gives in this run, with the usual connections.

        Where that was not measured in this run yet, it is now. None, or it fails: LookupError.
        """
