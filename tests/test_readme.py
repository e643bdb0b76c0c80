"""The README's calls, pasted into a shell as they stand, against a server that was just started."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import backings

ROOT = Path(__file__).parent.parent
BELONG = f"{shlex.quote(sys.executable)} -m service"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Run `belong serve --demo` on a free port; give its environment, base URL and what it says."""
    folder = tmp_path_factory.mktemp("readme")
    base = f"127.0.0.1:{backings.free_port()}"
    environment = {
        **os.environ,
        "BELONG_DATA_DIR": str(folder / "data"),
        "BELONG_BIND": base,
        "PYTHONPATH": str(ROOT),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--demo", "--workers", "1"],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "memberships/check" in line:
                break
        yield environment, base, "".join(said)
        process.send_signal(signal.SIGINT)
        process.stdout.close()
        assert process.wait(30) == 0


def shell(snippet, environment):
    """Run a snippet, and give the JSON documents that it prints."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", snippet],
        env=environment,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    decoder, text, found = json.JSONDecoder(), done.stdout.strip(), []
    while text:
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:].lstrip()
    return found


def snippets(language, base):
    """Give the README's snippets of a language, for this server."""
    found = re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [
        each.replace("127.0.0.1:8000", base).replace(".venv/bin/belong", BELONG) for each in found
    ]


def test_the_three_questions_are_answered_as_the_readme_says(served):
    environment, base, _ = served
    snippet, *_ = snippets("sh", base)
    group, added, check, groups, members = shell(snippet, environment)
    assert (group["custom_id"], group["profile_count"]) == ("gold", 0)
    assert added["successfully_added"] == ["alice", "bob"]
    assert check == {"results": [True, False]}
    assert [row["group_id"] for row in groups["results"]] == [group["id"]]
    assert sorted(row["custom_id"] for row in members["results"]) == ["alice", "bob"]


def test_john_and_jane_have_a_dog_and_bob_has_none(served, tmp_path):
    environment, base, _ = served
    _, define, look, *_ = snippets("sh", base)
    [upload] = snippets("python", base)
    household = tmp_path / "household.py"
    household.write_text(upload)
    run = f"{shlex.quote(sys.executable)} {shlex.quote(str(household))}\n"
    definition, john, jane, bob, instances = shell(f"{define}\n{run}\n{look}", environment)
    assert ("household", "$address") == (definition["id"], definition["source_user_attribute"])
    assert definition["created_by"].startswith("client_id:")
    lives = {"$address": "123 Main St", "household:has_dog": "true"}
    assert {**lives, "has_dog": "true"} == john["user_attributes"]
    assert lives == jane["user_attributes"]
    assert bob["user_attributes"] == {"$address": "9 Oak Ave", "household:has_dog": "false"}
    [instance] = instances["results"]
    assert (2, {"has_dog": "true"}) == (instance["size"], instance["attributes"])
    assert instance["explain"]["has_dog"]["from"]["mpid"] == john["mpid"]


def test_who_is_in_a_household_that_has_a_dog_is_in_a_group_of_their_own(served, tmp_path):
    environment, base, _ = served
    questions, define, _, fill, ask = snippets("sh", base)
    shell(questions, environment)
    [upload] = snippets("python", base)
    household = tmp_path / "household.py"
    household.write_text(upload)
    run = f"{shlex.quote(sys.executable)} {shlex.quote(str(household))}\n"
    _, group, members, audiences, found = shell(f"{define}\n{run}\n{fill}\n{ask}", environment)
    assert ("dynamic", "dog-people") == (group["membership_type"], group["custom_id"])
    assert ["jane", "john"] == sorted(row["custom_id"] for row in members["results"])
    assert [("Dog people", 2, 2, 0)] == [
        (each["name"], each["size"], each["added_last_24_hours"], each["dropped_last_24_hours"])
        for each in audiences
    ]
    assert ["alice", "bob"] == sorted(row["custom_id"] for row in found["results"])


@pytest.mark.node
def test_the_lines_for_the_sdk_work_when_pasted(served, node_modules):
    environment, base, said = served
    [token] = re.findall(r"^[\w-]+\.[\w-]+\.[\w-]+$", said, re.MULTILINE)
    [snippet] = re.findall(r"```js\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "'http://127.0.0.1:8000/api/v1/'" in snippet
    snippet = snippet.replace("127.0.0.1:8000", base)
    done = subprocess.run(
        ["node", "--input-type=module", "--eval", snippet],
        cwd=node_modules.parent,
        env={**environment, "TOKEN": token},
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["group"]["id"] in [row["id"] for row in shown["found"]["results"]]
    assert [shown["group"]["id"]] == [row["group_id"] for row in shown["mine"]["results"]]


def test_the_three_calls_that_serve_prints_work_when_pasted(served):
    environment, _, said = served
    calls = [line for line in said.splitlines() if line.startswith("curl ")]
    added, members, check = shell("\n".join(f"{call}; echo" for call in calls), environment)
    assert sorted(added["successfully_added"] + added["already_added"]) == ["alice", "bob"]
    assert members["count"] == 2
    assert check == {"results": [True]}


def test_the_token_that_serve_prints_stands_alone_in_its_line(served):
    _, _, said = served
    assert [line for line in said.splitlines() if re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", line)]
