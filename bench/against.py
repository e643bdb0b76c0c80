"""Another commit beside the present tree: `--against REF`.

It is checked out into a worktree of its own and served from there, by the same Python with the same
packages. To the bench it is one more subject, so it takes turns with the present tree; what cannot
be asked of both is left out.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.serving import git

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.measurement import Step

HASH = 8
"""Digits of a commit that make its name."""


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


def shared(steps: list[Step]) -> list[Step]:
    """Give the steps that are there for more than one subject."""
    subjects: dict[str, set[str]] = {}
    for step in steps:
        subjects.setdefault(_thing(step), set()).add(step.subject)
    return [step for step in steps if len(subjects[_thing(step)]) > 1]


def _thing(step: Step) -> str:
    return repr((step.workload, step.mode, step.unit, sorted(step.settings.items())))


def _git(*words: str) -> str:
    done = git(*words)
    if done.returncode:
        raise click.UsageError(f"git {' '.join(words)}: {done.stderr.strip() or 'no such commit'}")
    return done.stdout.strip()
