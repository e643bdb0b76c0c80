"""Waiting for what a subject does by itself after writes: what is measured next is to be alone.

A store writes its log anew when that has doubled, PostgreSQL its checkpoints, and the worker of
Belong finishes what was left to it: all of that takes processor time of the store, and is over when
that takes none.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from bench.serving import children, cpu_seconds
from service.embedded import LOOK_SECONDS

if TYPE_CHECKING:
    from bench.measurement import Bench, Subject

LONGEST_SECONDS = 60.0
LOOKED_AT_SECONDS = 0.5
IDLE = 0.05
"""The share of a core that a store may take that has nothing to do."""


def settle(bench: Bench, subject: Subject) -> None:
    """Wait until a subject's store is idle: a minute at most, and then a line on stderr says so.

    The smoke waits for nothing.
    """
    if subject.store is None or bench.smoke:
        return
    deadline = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < deadline:
        before = _spent(subject.store)
        time.sleep(LOOKED_AT_SECONDS)
        now = _spent(subject.store)
        # A process that has come meanwhile has work, and one that has gone had.
        if now.keys() == before.keys():
            spent = sum(now.values()) - sum(before.values())
            if spent < IDLE * LOOKED_AT_SECONDS:
                return
    click.echo(f"{subject.name} still works after {LONGEST_SECONDS:.0f} s", err=True)


def rest(bench: Bench) -> None:
    """Let every store do what it puts off until it is quiet, and wait for the end of it.

    That of Belong rewrites its log when it saw little to do twice.
    """
    if bench.smoke:
        return
    time.sleep(2.5 * LOOK_SECONDS)
    for subject in bench.subjects.values():
        settle(bench, subject)


def _spent(store: int) -> dict[int, float]:
    """Give the processor time of a store and of all processes below it."""
    found = {}
    for each in (store, *children(store)):
        with suppress(OSError):
            found[each] = cpu_seconds(each)
    return found
