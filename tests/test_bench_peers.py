"""The peers of the bench answer what Belong answers: else their speed would say nothing.

Collected is each peer whose runtime is on this machine (`HERE`), for nothing may be skipped; the
others are no tests here. `.ci/run` installs Python and node, and neither PostgreSQL nor wrk: it
tests FastAPI and Fastify, and Django only where PostgreSQL was before. Of wrk the same is decided
in `tests/test_bench.py` (`CLOSED_LOOPS`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import redis

from bench import peers, serving
from bench.peers import installing, loading, processes
from bench.world import BASE, Shape, World
from service.embedded import EmbeddedServer
from tests.serving import ROOT, eventually, lives

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.measurement import Subject

SHAPE = Shape(groups=30, size=50, profiles={1: 300, 10: 60, 30: 20})
HERE = [name for name in peers.NAMES if peers.missing(name) is None]
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


class Asked:
    """A subject that is asked about places in the world, for everybody draws ids of groups."""

    def __init__(self, subject: Subject, world: World) -> None:
        self.subject, self.world = subject, world
        self.client = httpx.Client(
            base_url=f"http://{subject.host}:{subject.port}",
            headers={"Authorization": f"Bearer {subject.token}"},
            timeout=30,
            trust_env=False,
        )
        self.places = {world.group_id(subject, place): place for place in range(len(world.groups))}

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.client.request(method, path, json=body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].partition(";")[0] == "application/json"
        return answer.json()

    def group(self, place: int) -> str:
        return f"{BASE}/profile-groups/{self.world.group_id(self.subject, place)}/"

    def check(self, pairs: list[tuple[int, int]]) -> Any:
        asked = [
            {
                "profile_id": self.world.profiles[profile],
                "group_id": self.world.group_id(self.subject, group),
            }
            for profile, group in pairs
        ]
        return self.ask("POST", f"{BASE}/memberships/check/", {"pairs": asked})

    def walk(self, path: str) -> tuple[set[int], list[dict[str, Any]]]:
        """Give the counts that the pages said, and their rows with places instead of ids."""
        counts, rows = set(), []
        url: str | None = path
        while url:
            page = self.ask("GET", url)
            assert page.keys() == {"count", "next", "previous", "results"}
            assert (page["previous"] is None) == (url == path)
            counts.add(page["count"])
            rows += page["results"]
            url = page["next"]
        for row in rows:
            if "group_id" in row:
                row["group_id"] = self.places[row["group_id"]]
            for name in row:
                if name.endswith("created_at"):
                    assert TIME.fullmatch(row[name])
                    row[name] = "a time"
        return counts, rows

    def show(self, place: int) -> dict[str, Any]:
        shown: dict[str, Any] = self.ask("GET", self.group(place))
        assert TIME.fullmatch(shown["created_at"])
        return shown | {"id": self.places[shown["id"]], "created_at": "a time"}

    def add(self, place: int, texts: list[str]) -> Any:
        return self.ask("POST", f"{self.group(place)}members/", {"profile_ids": texts})


@pytest.fixture
def cores() -> Iterator[None]:
    """Take back what the bench does to its own process: it binds it to a core."""
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def world() -> World:
    return World(SHAPE)


@pytest.fixture
def ours(world: World, cores: None, runtime: None) -> Iterator[Asked]:
    with serving.server(1) as served:
        subject = serving.subject(served)
        world.load(subject)
        asked = Asked(subject, world)
        with asked.client:
            yield asked


@pytest.fixture(params=HERE)
def peer(
    request: pytest.FixtureRequest, world: World, ours: Asked, tmp_path: Path
) -> Iterator[Asked]:
    with peers.peers(world, tmp_path, [request.param], warm_seconds=0.2) as found:
        assert [*found] == [request.param]
        asked = Asked(found[request.param], world)
        with asked.client:
            yield asked


@pytest.mark.slow
def test_a_peer_gives_the_answers_of_belong_to_all_that_it_is_asked(world, ours, peer):
    everybody, groups = range(len(world.profiles)), range(len(world.groups))
    some = [world.in_groups(number)[0] for number in world.shape.profiles]

    def same(ask: Any) -> Any:
        ours_said, peer_said = ask(ours), ask(peer)
        assert ours_said == peer_said
        return ours_said

    for profile in some:
        for group in groups:
            said = same(lambda one, pair=(profile, group): one.check([pair]))
            assert said == {"results": [world.is_member(profile, group)]}
    pairs = [(profile, (profile * 7) % len(groups)) for profile in everybody]
    assert True in same(lambda one: one.check(pairs))["results"]

    for profile in some:
        path = f"{BASE}/profiles/{world.profiles[profile]}/profile-groups/"
        same(lambda one, path=path: one.walk(f"{path}?page_size=100"))
        _, rows = same(lambda one, path=path: one.walk(f"{path}?page_size=7"))
        assert [row["group_id"] for row in rows] == world.groups_of[profile]
    nowhere = f"{BASE}/profiles/{uuid.uuid4()}/profile-groups/"
    assert same(lambda one: one.walk(nowhere)) == ({0}, [])

    def members(one: Asked) -> Any:
        counts, rows = one.walk(f"{one.group(3)}members/?page_size=20")
        ids = [row["id"] for row in rows]
        assert len(ids) == len(set(ids))
        assert all(row["membership_created_at"] == "a time" for row in rows)
        return counts, set(ids)

    assert same(members) == ({50}, set(world.members(3)))
    assert same(lambda one: one.show(3))["profile_count"] == 50

    fresh, member = str(uuid.uuid4()), world.members(3)[0]
    texts = [fresh, member, "no uuid", member, fresh, ""]
    told = same(lambda one: one.add(3, texts))
    assert told == {
        "successfully_added": [fresh],
        "already_added": [member],
        "invalid_ids": ["no uuid", ""],
    }
    assert same(lambda one: one.add(3, [fresh]))["already_added"] == [fresh]
    assert same(lambda one: one.show(3))["profile_count"] == 51
    assert same(members) == ({51}, {*world.members(3), fresh})
    entered = f"{BASE}/profiles/{fresh}/profile-groups/"
    assert same(lambda one: one.walk(entered))[1][0]["profile_count"] == 51

    many = [str(uuid.uuid4()) for _ in range(2_500)]
    same(lambda one: one.add(4, many))
    assert same(lambda one: one.show(4))["profile_count"] == 2_550

    gone = f"{BASE}/profile-groups/{uuid.uuid4()}/"
    for method, path, body in (
        ("GET", gone, None),
        ("GET", f"{gone}members/", None),
        ("POST", f"{gone}members/", {"profile_ids": [fresh]}),
    ):
        for one in (ours, peer):
            assert status(one, method, path, body) == 404
    del ours.client.headers["Authorization"]
    del peer.client.headers["Authorization"]
    assert same(lambda one: status(one, "GET", one.group(3))) == 401
    wrong = {"pairs": [{"profile_id": fresh, "group_id": fresh}]}
    assert same(lambda one: status(one, "POST", f"{BASE}/memberships/check/", wrong)) == 401


def status(one: Asked, method: str, path: str, body: Any = None) -> int:
    return one.client.request(method, path, json=body).status_code


if shutil.which("setpriv"):

    def test_a_process_ends_when_the_bench_is_killed(tmp_path):
        """A killed bench cannot stop what it has started: the kernel does it."""
        code = f"""
import os, pathlib, signal
from bench.peers import processes
with processes.running("sleep", ["sleep", "300"], pathlib.Path({str(tmp_path)!r})) as started:
    print(started.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
        done = subprocess.run(
            [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == -signal.SIGKILL
        eventually(lambda: not lives(int(done.stdout)))


def test_what_ends_at_once_is_told_with_its_last_words(tmp_path):
    command = ["sh", "-c", "echo no database; exit 3"]
    with (
        processes.running("sh", command, tmp_path) as started,
        pytest.raises(RuntimeError, match="sh ended with 3: no database"),
    ):
        started.wait_for_http(processes.free_port())


def test_what_is_missing_is_said_and_left_out(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(installing, "DEBIAN_POSTGRES", tmp_path)
    assert peers.missing("fastify") == "node is not installed"
    assert peers.missing("django") == "PostgreSQL is not installed"
    assert peers.missing("fastapi") is None
    with peers.peers(World(SHAPE), tmp_path, ["fastify"]) as found:
        assert found == {}
    assert capsys.readouterr().err == "fastify is left out: node is not installed\n"


@pytest.mark.slow
def test_what_a_spare_group_held_is_gone(world, cores, tmp_path):
    """Nothing of a warm-up stays in the store of a peer."""
    store = EmbeddedServer(tmp_path / "data")
    store.start()
    try:
        assert store.state is not None
        with redis.Redis(unix_socket_path=store.state.socket) as client:
            loading.load_redis(store.state.socket, world, "a store")
            before = client.dbsize()
            with loading.spare_group(store.state.socket, ["somebody"]) as group:
                client.zadd(f"group:{group}:members", {"somebody": 1})
                client.sadd("profile:somebody:groups", group)
            assert client.dbsize() == before
    finally:
        store.stop()


@pytest.mark.slow
@pytest.mark.parametrize("name", HERE)
def test_versions_are_those_that_are_locked(name):
    installing.node() if name == "fastify" else installing.python()
    requirements = installing.REQUIREMENTS.read_text()
    wanted = json.loads((installing.FASTIFY / "package.json").read_text())["dependencies"]
    found = peers.versions(name)
    assert found.keys() == set(installing.MADE_OF[name])
    for package, version in found.items():
        if name == "fastify":
            assert version == wanted[package]
        else:
            assert f"{package}=={version} " in requirements


def test_a_node_that_is_too_old_is_missing(monkeypatch, tmp_path):
    old = tmp_path / "node"
    old.write_text("#!/bin/sh\necho v18.19.0\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert peers.missing("fastify") == "node is v18.19.0, and has to be 20 or newer"
