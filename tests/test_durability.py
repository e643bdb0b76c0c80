"""Every answered write is there after something was killed in the middle of the writing.

Four clients write at once, each with profiles of its own: adds of 10,000 (many scripts each) and
adds and removals of a few. What was answered is known for certain; what was cut off may be either.
Then something dies by SIGKILL; then every certain membership is looked up, and `verify` runs.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid

import httpx
import pytest

from tests.serving import ROOT, eventually

API = "/api/v1/applications/demo"
CLIENTS = 4
WRITING_SECONDS = 1.5


class Writer(threading.Thread):
    """One client. `held` says of each profile whether it is a member; None: cut off, unknown."""

    def __init__(self, base, token, group, seed):
        super().__init__(daemon=True)
        self.base, self.token, self.group = base, token, group
        self.draw = random.Random(seed)
        self.held: dict[str, bool | None] = {}
        self.answered = self.failed = 0
        self.ended = threading.Event()

    def run(self):
        while not self.ended.is_set():
            many = self.draw.random() < 0.3
            known = list(self.held)
            if many or len(known) < 10 or self.draw.random() < 0.6:
                drawn = range(10_000 if many else self.draw.randint(1, 5))
                ids = [str(uuid.UUID(int=self.draw.getrandbits(128))) for _ in drawn]
                self.write("POST", ids, becomes=True)
            else:
                self.write("DELETE", self.draw.sample(known, 5), becomes=False)

    def write(self, method, ids, *, becomes):
        try:
            answer = httpx.request(
                method,
                f"{self.base}{API}/profile-groups/{self.group}/members/",
                headers={"Authorization": f"Bearer {self.token}"},
                content=json.dumps({"profile_ids": ids}),
                timeout=10,
            )
            done = answer.status_code in {200, 204}
        except httpx.HTTPError:
            done = False
        self.held |= dict.fromkeys(ids, becomes if done else None)
        self.answered += done
        self.failed += not done
        if not done:
            time.sleep(0.05)


def belong(serving, *arguments):
    """Run a command on the data directory of a server, and give what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "service", *arguments, "--data-dir", str(serving.data_dir)],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def the_api_processes(serving):
    return serving.api_processes


def the_master(serving):
    return [serving.master]


def belong_serve(serving):
    return [serving.process.pid]


def the_store(serving):
    return [serving.store]


@pytest.mark.parametrize("victim", [the_api_processes, the_master, belong_serve, the_store])
def test_every_answered_write_is_there_after_a_kill(serve, victim):
    # A killed store loses what it had not forced to disk yet, unless it does so before it answers.
    fsync = "always" if victim is the_store else "everysec"
    arguments = ("--demo", "--workers", "2", "--appendfsync", fsync)
    serving = serve(*arguments).ready()
    token = belong(serving, "token", "--application", "demo")
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=serving.base + API, headers=headers) as client:
        groups = [
            client.post("/profile-groups/", json={"name": f"group {n}"}).json()["id"]
            for n in range(CLIENTS)
        ]
    writers = [Writer(serving.base, token, group, seed) for seed, group in enumerate(groups)]
    for writer in writers:
        writer.start()
    time.sleep(WRITING_SECONDS)
    eventually(lambda: all(writer.answered for writer in writers), 30)
    # The master and `serve` let requests in flight be answered; the others cut some off, sooner or
    # later.
    cuts_off = victim in {the_api_processes, the_store}
    for _ in range(10):
        for pid in victim(serving):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.5 if cuts_off else 0)
        if not cuts_off or any(writer.failed for writer in writers):
            break
        eventually(lambda: serving.get("/readyz").status_code == 200)
    if victim is belong_serve:
        eventually(lambda: not serving.pids(), 5)
        serving = serve(*arguments).ready()
    else:
        eventually(lambda: serving.get("/readyz").status_code == 200)
        time.sleep(WRITING_SECONDS)  # and it goes on
    for writer in writers:
        writer.ended.set()
    for writer in writers:
        writer.join()

    assert not cuts_off or any(writer.failed for writer in writers)
    eventually(lambda: serving.get("/readyz").status_code == 200)
    with httpx.Client(base_url=serving.base + API, headers=headers, timeout=30) as client:
        for writer in writers:
            certain = [(each, held) for each, held in writer.held.items() if held is not None]
            assert checked(client, writer.group, [each for each, _ in certain]) == [
                held for _, held in certain
            ]
            shown = client.get(f"/profile-groups/{writer.group}/").json()["profile_count"]
            everybody = checked(client, writer.group, list(writer.held))
            assert shown == sum(everybody)
    assert json.loads(belong(serving, "verify", "--json"))["problems"] == []


def checked(client, group, profiles):
    """Ask which profiles are members."""
    found = []
    for first in range(0, len(profiles), 10_000):
        pairs = [
            {"profile_id": each, "group_id": group} for each in profiles[first : first + 10_000]
        ]
        found += client.post("/memberships/check/", json={"pairs": pairs}).json()["results"]
    return found
