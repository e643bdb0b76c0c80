"""Fault points: where a test can kill the process between two scripts of an operation.

An operation that takes several scripts calls `fault("<operation>.<what was just done>")` after each
of them. Where the variable BELONG_FAULT names that point, the process is gone at once, as by
``kill -9``; otherwise the call costs a comparison.
"""

from __future__ import annotations

import os
import signal

_ARMED = os.environ.get("BELONG_FAULT")

POINTS = (
    "create_group.reserved",
    "create_group.probed",
    "create_group.created",
    "create_group.installed",
    "create_group.finished",
    "update_group.updated",
    "update_group.installed",
    "update_group.finished",
    "delete_group.deleted",
    "delete_group.installed",
    "sweep_group.swept",
    "sweep_group.finished",
    "erase_profile.begun",
    "erase_profile.stepped",
    "erase_profile.derived",
    "erase_profile.released",
    "erase_profile.finished",
    "add_identity.reserved",
    "add_identity.confirmed",
    "add_identity.settled",
    "replace_members.added",
    "ingest.resolved",
    "ingest.written",
    "ingest.identified",
    "define.written",
    "define.installed",
    "derive.read",
    "derive.listed",
    "derive.contributed",
    "derive.settled",
    "derive.released",
    "derive.finished",
    "dynamic.written",
    "dynamic.installed",
    "save.stepped",
    "job.taken",
    "job.stepped",
    "job.finished",
    "settle.read",
    "settle.written",
    "due.marked",
)
"""Every fault point there is; a test kills the process at each of them."""


def fault(point: str) -> None:
    """Die here if this is the armed point."""
    if point == _ARMED:
        os.kill(os.getpid(), signal.SIGKILL)
