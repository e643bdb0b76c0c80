"""What the peers need, installed where it is not: once, and again when a lock changes.

The Python peers live in a virtual environment of their own, `.peers/` at the top of the tree, from
hash-locked requirements; Fastify in `fastify/node_modules`. Whether Python, node and PostgreSQL are
there is looked at here, too; those are not ours to install.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
VENV = HERE.parent.parent / ".peers"
PYTHON = VENV / "bin" / "python"
REQUIREMENTS = HERE / "requirements.txt"
FASTIFY = HERE / "fastify"
NODE_MIN = 20
"""What Fastify 5 and ioredis 6 ask for."""

DEBIAN_POSTGRES = Path("/usr/lib/postgresql")
"""Debian has one folder for each version there, and none of their servers in the PATH."""


MADE_OF = {
    "fastapi": ("fastapi", "pydantic", "orjson", "redis", "hiredis", "uvicorn", "uvloop"),
    "django": ("django", "djangorestframework", "psycopg", "gunicorn"),
    "fastify": ("fastify", "ioredis"),
}
"""What each of them runs on, as far as it decides how fast it is."""


class Missing(Exception):
    """A peer cannot run here; the text says what is not there."""


def python() -> Path:
    """Give the interpreter of the Python peers, with everything that they import."""
    _require_venv()
    with _turn(REQUIREMENTS):
        wanted = f"{sys.version}\n{REQUIREMENTS.read_text()}"
        stamp = VENV / "installed.txt"
        if not PYTHON.exists() or not stamp.exists() or stamp.read_text() != wanted:
            _run(sys.executable, "-m", "venv", "--clear", str(VENV))
            _run(
                *(str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
                *("--require-hashes", "--requirement", str(REQUIREMENTS)),
            )
            stamp.write_text(wanted)
    return PYTHON


def node() -> str:
    """Give node, after what Fastify's program imports is there."""
    program = _require_node()
    lock = FASTIFY / "package-lock.json"
    with _turn(lock):
        wanted = f"{_node_version(program)}\n{lock.read_text()}"
        stamp = FASTIFY / "node_modules" / ".installed.txt"
        if not stamp.exists() or stamp.read_text() != wanted:
            npm = shutil.which("npm")
            if npm is None:
                raise Missing("npm is not installed")
            _run(npm, "ci", "--ignore-scripts", "--no-fund", "--no-audit", folder=FASTIFY)
            stamp.write_text(wanted)
    return program


def postgres() -> Path:
    """Give the folder of PostgreSQL's programs: Debian's newest, or the one in the PATH."""
    found = sorted(DEBIAN_POSTGRES.glob("*/bin/initdb"), key=lambda each: int(each.parts[-3]))
    if found:
        return found[-1].parent
    inside = shutil.which("initdb")
    if inside is None:
        raise Missing("PostgreSQL is not installed")
    return Path(inside).resolve().parent


def runtime(name: str) -> str | None:
    """Say what a peer lacks on this machine that is not installed here; None: nothing."""
    try:
        if name == "fastify":
            _require_node()
            return None
        _require_venv()
        if name == "django":
            postgres()
    except Missing as why:
        return str(why)
    return None


def versions(name: str) -> dict[str, str]:
    """Give the versions of what a peer is made of, as they are installed now."""
    wanted = MADE_OF[name]
    if name == "fastify":
        locked = json.loads((FASTIFY / "package-lock.json").read_bytes())["packages"]
        return {each: locked[f"node_modules/{each}"]["version"] for each in wanted}
    places = [str(each) for each in VENV.glob("lib/python*/site-packages")]
    return {
        each: found.version
        for each in wanted
        for found in metadata.distributions(name=each, path=places)
    }


def _require_venv() -> None:
    if importlib.util.find_spec("ensurepip") is None:
        raise Missing("this Python cannot make virtual environments (Debian: python3-venv)")


def _require_node() -> str:
    program = shutil.which("node")
    if program is None:
        raise Missing("node is not installed")
    version = _node_version(program)
    major = re.match(r"v(\d+)", version)
    if major is None or int(major[1]) < NODE_MIN:
        raise Missing(f"node is {version}, and has to be {NODE_MIN} or newer")
    return program


def _node_version(program: str) -> str:
    return subprocess.run(
        [program, "--version"], check=True, capture_output=True, text=True
    ).stdout.strip()


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Let one process at a time install."""
    with path.open() as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


def _run(*command: str, folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise Missing(f"`{' '.join(command[:4])} …` failed: {' '.join(said)}")
