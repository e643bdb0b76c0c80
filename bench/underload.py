"""Checks while somebody else loads: 2,000 a second, with and without that.

The other client adds 10,000 ids a call, one call after the other, for as long as the checks go on.
The groups that are loaded are others than those that are asked about, and new in each sample, as
when segments are exported from elsewhere; whoever is in them is the same all the time. It is Belong
alone that is asked, on a server that holds the world and nothing else and is thrown away after each
run: what is looked for is whether bulk work holds up what has to be fast.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Self
from uuid import UUID, uuid4

import click
import msgspec

from bench import questions
from bench.calls import Caller, Refused, Together
from bench.lookups import looked_at
from bench.measurement import Sample, Step
from bench.start import Kept, application
from bench.world import BASE
from service import ids
from service.groups import NewGroup

if TYPE_CHECKING:
    from bench.measurement import Bench, Setting, Subject
    from bench.world import World
    from service.store import Store

NAME = "checks under load"
RATE = 2_000
LONGER = 7.5
"""So many times as long as other samples: 30 s, if those take 4. Half of that gives no other p99s:
they differ more from minute to minute."""
RUNS = 5
CALL = 10_000
"""Ids of a call: as many as one takes."""
CALLS_OF_A_GROUP = 10
PAUSE_SECONDS = 0.1
"""After a call that failed."""
SMOKE_RATE, SMOKE_CALL = 200, 500


def steps(bench: Bench) -> list[Step]:
    """Give two, which are measured one after the other in each run."""
    call = SMOKE_CALL if bench.smoke else CALL
    kept = Kept(partial(_fill, world=bench.world))
    together = Together(partial(_measure, bench, kept, call))
    fixed: dict[str, Setting] = {
        "connections": bench.connections,
        "rate": SMOKE_RATE if bench.smoke else RATE,
        "seconds": _seconds(bench),
    }
    return [
        Step(NAME, "belong", "open", "us", {**fixed, "load": load}, together.part(part), runs=RUNS)
        for part, load in (("alone", "none"), ("loaded", f"{call:,} ids a call"))
    ]


class Loading:
    """A client that adds members in a thread of its own, for as long as this context is open."""

    def __init__(self, subject: Subject, call: int) -> None:
        """Take whom to load, and how many ids with each call."""
        self.took: list[float] = []
        """Seconds of each call that added what it had to."""
        self.errors = 0
        """Calls that were refused, broke, or did not add all of their ids."""
        self.seconds = 0.0
        self._subject = subject
        self._call = call
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        # Encoded before: this client is to cost what it sends, not what it makes.
        self._bodies = [
            msgspec.json.encode({"profile_ids": _ids(call, place)})
            for place in range(CALLS_OF_A_GROUP)
        ]

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop after the call that is on its way."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        began = time.perf_counter()
        while not self._is_over.is_set():
            try:
                with Caller(self._subject.host, self._subject.port) as caller:
                    self._load_group(caller)
            except (OSError, Refused, msgspec.DecodeError, KeyError) as ex:
                if not self.errors:
                    click.echo(f"loading failed: {ex}", err=True)
                self.errors += 1
                self._is_over.wait(PAUSE_SECONDS)
        self.seconds = time.perf_counter() - began

    def _load_group(self, caller: Caller) -> None:
        path = f"{BASE}/profile-groups/"
        body = msgspec.json.encode({"name": f"loaded {uuid4()}"})
        group = caller.ask(self._subject.request("POST", path, body)).read()["id"]
        for body in self._bodies:
            if self._is_over.is_set():
                break
            answer = caller.ask(self._subject.request("POST", f"{path}{group}/members/", body))
            if len(answer.read()["successfully_added"]) == self._call:
                self.took.append(answer.seconds)
            else:
                self.errors += 1


def _ids(call: int, place: int) -> list[str]:
    """Give the ids of a call: spread over all, and the same in each group."""
    draw = Random(f"{NAME} {place}")
    return [str(UUID(int=draw.getrandbits(128), version=4)) for _ in range(call)]


def _seconds(bench: Bench) -> float:
    return bench.seconds if bench.smoke else LONGER * bench.seconds


async def _fill(store: Store, world: World) -> None:
    """Make the groups of the world with the ids that it has for them, and add their members."""
    env = (await application(store)).production
    with click.progressbar(world.groups, label=f"filling for {NAME}", file=sys.stderr) as bar:
        for place, group in enumerate(bar):
            made = await store.groups.create_group(env, NewGroup(name=group.name, id=group.id))
            packed, _ = ids.pack(world.members(place))
            await store.members.add_members(env, made.number, packed)


def _measure(bench: Bench, kept: Kept, call: int) -> dict[str, Sample]:
    """Ask without the load, then with it: on a copy of what is kept, which is thrown away."""
    if bench.smoke:
        return _asked(bench, bench.subjects["belong"], call)
    copy = Kept(_fill_nothing, "whole", like=kept)
    with copy.started() as server:
        return _asked(bench, server.subject(), call)


async def _fill_nothing(_: Store) -> None:
    """Fill a copy: everything is there."""


def _asked(bench: Bench, belong: Subject, call: int) -> dict[str, Sample]:
    rate = SMOKE_RATE if bench.smoke else RATE

    def ask(sent: list[bytes]) -> Sample:
        return bench.open(belong, sent, rate, seconds=_seconds(bench))

    def ask_loaded(sent: list[bytes]) -> Sample:
        with Loading(belong, call) as loading:
            sample = ask(sent)
        details = dict(sample.details)
        if loading.took:
            details["loaded/s"] = len(loading.took) * call / loading.seconds
            details["call p50 ms"] = 1000 * statistics.median(loading.took)
        # Without a single call this would measure nothing.
        errors = sample.errors + loading.errors + (not loading.took)
        return sample._replace(errors=errors, details=details)

    asked = questions.drawn(bench, belong, questions.check, NAME)
    return {
        "alone": looked_at(bench, belong, asked, ask),
        "loaded": looked_at(bench, belong, asked, ask_loaded),
    }
