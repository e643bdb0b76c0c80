"""What is installed: a wheel that holds everything, and a lock that names no place."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from service import __version__

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built with the hatchling of the lock: nothing is downloaded."""
    place = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*command, "--directory", str(place)], cwd=ROOT, check=True, capture_output=True)
    [built] = place.glob("belong-*.whl")
    return built


def test_the_wheel_holds_every_module_and_every_script(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {f"service/{path.name}" for path in (ROOT / "service").glob("*.py")}
    scripts = {
        f"service/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "lua").rglob("*.lua")
    }
    assert scripts
    assert modules | scripts <= names
    assert not {name for name in names if name.startswith(("tests/", "bench/", "lua/"))}


def test_belong_runs_from_the_wheel_alone(wheel, tmp_path):
    python = install(wheel, tmp_path)
    done = run(python.parent / "belong", "--version", cwd=tmp_path)
    assert done == f"belong, version {__version__}\n"
    # Not from the checkout, and with the scripts that came along.
    program = (
        "import service; from service import scripts; print(service.__file__); "
        "print(scripts.load('add_members').name)"
    )
    where, script = run(python, "-c", program, cwd=tmp_path).splitlines()
    assert Path(where).is_relative_to(tmp_path)
    assert script == "add_members"


def install(wheel: Path, place: Path) -> Path:
    """Install the wheel into an environment that sees our dependencies, but not the checkout."""
    subprocess.run([sys.executable, "-m", "venv", str(place / "venv")], check=True)
    python = place / "venv" / "bin" / "python"
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    run(python, "-m", "pip", "install", *options, str(wheel), cwd=place)
    [packages] = (place / "venv" / "lib").glob("python*/site-packages")
    # A plain line of a .pth file adds a folder, without the .pth files in it: no editable checkout.
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def locked() -> dict[str, str]:
    text = (ROOT / "requirements.txt").read_text()
    return dict(re.findall(r"(?m)^([a-z0-9-]+)==(\S+)", text))


def test_every_requirement_is_locked_with_hashes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    names = {re.split(r"[\[>=<~! ]", one)[0].lower() for one in wanted}
    assert names <= locked().keys()
    entries = re.split(r"(?m)^(?=[a-z0-9-]+==)", (ROOT / "requirements.txt").read_text())[1:]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert len(entries) == sum(not line.startswith((" ", "#")) for line in lines if line)
    assert all("--hash=sha256:" in entry for entry in entries)


def test_the_lock_names_no_host_and_no_path():
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        assert re.fullmatch(
            r"#.*|[a-z0-9-]+==[\w.]+( ; [^/:]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line
        ), line
        assert "/" not in line


def test_the_makefile_lists_its_targets():
    done = run("make", "help", cwd=ROOT)
    targets = {line.split()[1] for line in done.splitlines() if line.startswith("make ")}
    assert {"serve", "test", "lint", "format", "bench", "wheel", "clean"} <= targets
