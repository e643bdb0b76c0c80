"""Another commit beside the present tree: `--against REF`.

It is checked out into a worktree of its own and served from there, by the same Python with the same
packages. Everything that is asked over HTTP is measured of both in turn, servers that a workload
starts for itself included. What calls the store directly, or looks at its memory, does so with the
present tree's own code: that is left out.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from bench import serving
from bench.serving import git

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.measurement import Bench, Sample, Step, Subject

HASH = 8
"""Digits of a commit that make its name."""
OF_THE_PRESENT = ("bare answers", "bytes per membership")
ALONE = " alone"
"""Workloads of these names, and with this end, know nothing of another commit."""


class Other(NamedTuple):
    """Another commit: its server, named by the commit, and its tree."""

    subject: Subject
    tree: Path


@contextmanager
def worktree(ref: str) -> Iterator[tuple[str, Path]]:
    """Check a commit out; give its name as a subject, and the folder. Gone afterwards.

    No such commit, or no repository: click.UsageError.
    """
    commit = _git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    with tempfile.TemporaryDirectory(prefix="belong-against-") as parent:
        folder = Path(parent, "tree")
        try:
            _git("worktree", "add", "--detach", "--quiet", str(folder), commit)
            yield commit[:HASH], folder
        finally:
            _git("worktree", "remove", "--force", str(folder))


def of_both(bench: Bench, other: Other, make: Callable[[], list[Step]]) -> list[Step]:
    """Give the steps of the present tree, and the same ones made and measured of another commit."""
    ours = make()
    with _in_our_place(bench, other):
        theirs = make()
    return [
        *filter(_can_be_compared, ours),
        *(
            step._replace(
                subject=other.subject.name, measure=partial(_measure, bench, other, step.measure)
            )
            for step in filter(_can_be_compared, theirs)
        ),
    ]


def _can_be_compared(step: Step) -> bool:
    return step.workload not in OF_THE_PRESENT and not step.workload.endswith(ALONE)


def _measure(bench: Bench, other: Other, measure: Callable[[], Sample]) -> Sample:
    with _in_our_place(bench, other):
        return measure()


@contextmanager
def _in_our_place(bench: Bench, other: Other) -> Iterator[None]:
    """Have workloads ask the other commit as `belong`, and start servers of its tree."""
    subjects = bench.subjects
    bench.subjects = {"belong": other.subject}
    try:
        with serving.program_of(other.tree):
            yield
    finally:
        bench.subjects = subjects


def _git(*words: str) -> str:
    done = git(*words)
    if done.returncode:
        raise click.UsageError(f"git {' '.join(words)}: {done.stderr.strip() or 'no such commit'}")
    return done.stdout.strip()
