"""npm packages that tests need: installed from `tests/node/package-lock.json` when first used."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NODE = Path(__file__).parent / "node"


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """Install the packages, unless they are those of the lock. Processes take turns."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node or npm is not installed")
    locked = (NODE / "package-lock.json").read_bytes()
    installed = NODE / "node_modules" / ".belong-lock.json"
    with (NODE / "package.json").open() as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not installed.exists() or installed.read_bytes() != locked:
            subprocess.run(
                ["npm", "ci", "--ignore-scripts", "--no-fund", "--no-audit"],
                cwd=NODE,
                check=True,
                capture_output=True,
                timeout=300,
            )
            installed.write_bytes(locked)
    return NODE / "node_modules"


def node(script: str, *arguments: str, seconds: float = 60) -> Any:
    """Run a script of `tests/node`, and give the JSON document that it prints."""
    done = subprocess.run(
        ["node", NODE / script, *arguments],
        capture_output=True,
        check=False,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
