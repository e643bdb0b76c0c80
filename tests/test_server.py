"""`belong serve` as real processes: what it promises when something ends that should not."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from service import server
from service.embedded import EmbeddedServer
from service.errors import Unusable
from tests.serving import ROOT, Serving, eventually, lives

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMBERS = "/api/v1/applications/demo/profile-groups/early-adopters/members/"


def refused(*arguments: str) -> str:
    """Run a `belong serve` that cannot work, and give the one line it says."""
    done = subprocess.run(
        [sys.executable, "-m", "service", "serve", "--log-level", "warning", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("belong: ")
    return line


def demo_calls(one: Serving) -> list[httpx.Request]:
    """Read the `curl` lines that `--demo` printed, as the requests that they make."""
    assert one.process.stdout is not None
    requests: list[httpx.Request] = []
    while len(requests) < 3:
        line = one.process.stdout.readline()
        assert line, "fewer than three curl lines"
        if line.startswith("curl "):
            _, quiet, h, header, url, *data = shlex.split(line)
            assert (quiet, h) == ("-sS", "-H")
            name, _, value = header.partition(": ")
            # What curl sends with -d: a POST that says it is a form.
            headers = {name: value}
            if data:
                headers["content-type"] = "application/x-www-form-urlencoded"
            body = data[1] if data else None
            method = "POST" if data else "GET"
            requests.append(httpx.Request(method, url, headers=headers, content=body))
    return requests


def send(request: httpx.Request) -> httpx.Response:
    with httpx.Client(timeout=5) as client:
        return client.send(request)


def test_the_three_printed_calls_work_and_what_they_wrote_survives_a_restart(serve):
    first = serve("--demo").ready()
    add, members, check = demo_calls(first)
    assert send(add).status_code == 200
    assert send(members).json()["count"] == 2
    assert send(check).json() == {"results": [True]}
    before = send(members).json()
    assert first.stop() == 0
    assert not first.pids()

    second = serve("--demo").ready()
    _, members, check = demo_calls(second)
    assert send(members).json()["results"] == before["results"]
    assert send(check).json() == {"results": [True]}


def test_a_request_in_flight_is_answered_before_the_server_stops(serve):
    one = serve("--demo").ready()
    add, *_ = demo_calls(one)
    with open_request(one, add) as connection:
        connection.sendall(add.content[:5])
        time.sleep(0.2)
        one.process.send_signal(signal.SIGINT)
        time.sleep(0.7)
        assert one.process.poll() is None
        with pytest.raises(httpx.ConnectError):
            httpx.get(add.url.copy_with(path="/healthz"))
        connection.sendall(add.content[5:])
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
    assert one.process.wait(10) == 0


def test_a_second_interrupt_hastens_but_lets_the_store_stop_by_itself(serve):
    one = serve("--demo").ready()
    add, *_ = demo_calls(one)
    with open_request(one, add):
        time.sleep(0.2)
        one.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert one.process.poll() is None
        one.process.send_signal(signal.SIGINT)
        assert one.process.wait(5) == 0
    assert "ready to exit, bye bye" in (one.data_dir / "store.log").read_text()


@contextlib.contextmanager
def open_request(one: Serving, request: httpx.Request) -> Iterator[socket.socket]:
    """Send the head of a request, and leave its body to the test."""
    assert request.url.port
    with socket.create_connection(("127.0.0.1", request.url.port), timeout=10) as connection:
        lines = [f"POST {request.url.raw_path.decode()} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        yield connection


def both(one: Serving) -> list[int]:
    return eventually(lambda: one.api_processes if len(one.api_processes) == 2 else [])


def test_an_api_process_that_is_killed_is_replaced(serve):
    one = serve("--workers", "2").ready()
    victim, other = both(one)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in one.api_processes and len(one.api_processes) == 2)
    assert other in one.api_processes
    assert one.get("/readyz").status_code == 200


def test_the_master_is_replaced_and_its_orphans_end_within_a_second(serve):
    one = serve("--workers", "2").ready()
    master = one.master
    orphans = both(one)
    os.kill(master, signal.SIGKILL)
    eventually(lambda: not any(map(lives, orphans)), 1.3)
    eventually(lambda: one.get("/readyz").status_code == 200)
    assert one.master != master


def test_callers_wait_while_the_master_is_replaced(serve):
    one = serve().ready()
    base, [orphan] = one.base, one.api_processes
    os.kill(one.master, signal.SIGKILL)
    eventually(lambda: not lives(orphan), 1.3)
    assert httpx.get(f"{base}/healthz", timeout=10).status_code == 200


def test_the_background_worker_is_replaced(serve):
    one = serve().ready()
    [worker] = eventually(lambda: one.pids("worker"))
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: one.pids("worker") not in ([], [worker]))


def test_nothing_outlives_a_killed_serve_and_the_port_is_free(serve):
    one = serve("--demo").ready()
    add, *_ = demo_calls(one)
    assert send(add).status_code == 200
    pids = one.pids()
    assert len(pids) >= 5  # serve, store, master, API process, worker
    one.process.kill()
    eventually(lambda: not one.pids(), 3)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{add.url.port}/healthz")

    again = serve("--demo", "--bind", f"127.0.0.1:{add.url.port}").ready()
    _, members, _ = demo_calls(again)
    assert send(members).json()["count"] == 2


def test_the_store_is_started_again_with_every_answered_write(serve):
    one = serve("--demo", "--appendfsync", "always").ready()
    add, members, _ = demo_calls(one)
    assert send(add).status_code == 200
    store = one.store
    os.kill(store, signal.SIGKILL)
    eventually(lambda: send(members).status_code == 200 and send(members).json()["count"] == 2)
    assert one.store != store


def test_a_second_serve_shares_the_store_and_takes_over_when_the_first_has_gone(serve):
    first = serve("--demo").ready()
    second = serve("--demo").ready()
    store = first.store
    assert second.store == store
    add, *_ = demo_calls(first)
    _, members, _ = demo_calls(second)
    assert send(add).status_code == 200
    assert send(members).json()["count"] == 2
    assert first.stop() == 0
    eventually(lambda: second.store != store and lives(second.store))
    eventually(lambda: send(members).status_code == 200 and send(members).json()["count"] == 2)
    assert "starting it again" in second.log.read_text()


def test_a_second_serve_that_stops_leaves_the_store_to_the_first(serve):
    first, second = serve().ready(), serve().ready()
    assert second.stop() == 0
    assert lives(first.store)
    assert first.get("/readyz").status_code == 200


def test_a_killed_store_that_two_share_is_started_by_one_of_them(serve):
    first, second = serve().ready(), serve().ready()
    store = first.store
    os.kill(store, signal.SIGKILL)
    eventually(lambda: first.store != store and first.get("/readyz").status_code == 200)
    eventually(lambda: second.get("/readyz").status_code == 200)
    assert lives(first.store)


def test_a_taken_port_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        line = refused("--bind", bind, "--data-dir", str(tmp_path / "data"))
    assert line == f"belong: Cannot listen on {bind}: Address already in use. Use another --bind."
    assert not (tmp_path / "data").exists()


def test_a_directory_that_another_program_locked_is_one_line(tmp_path):
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        line = refused("--bind", "127.0.0.1:0", "--data-dir", str(tmp_path))
    assert "locked by another program" in line


def test_an_address_that_is_none_is_one_line(tmp_path):
    line = refused("--bind", "nowhere.invalid:80", "--data-dir", str(tmp_path / "data"))
    assert line.startswith("belong: Cannot listen on nowhere.invalid:80: ")


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:1", "http://localhost", "unix:///nowhere", "nonsense"]
)
def test_a_store_that_is_not_there_is_one_line(url):
    assert refused("--bind", "127.0.0.1:0", "--redis-url", url)


def test_a_store_that_evicts_is_one_line(tmp_path):
    store = EmbeddedServer(tmp_path)
    store.start()
    try:
        assert store.state is not None
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(store.state.socket)
            connection.sendall(b"CONFIG SET maxmemory-policy allkeys-lru\r\n")
            assert connection.recv(100) == b"+OK\r\n"
        line = refused("--bind", "127.0.0.1:0", "--redis-url", store.url)
        assert "noeviction" in line
    finally:
        store.stop()


def test_a_store_by_url_is_used_and_left_running(serve, tmp_path):
    store = EmbeddedServer(tmp_path / "elsewhere")
    store.start()
    try:
        one = serve("--redis-url", store.url)
        assert one.get("/readyz").status_code == 200
        assert one.stop() == 0
        assert store.alive()
        assert not (tmp_path / "data").exists()
    finally:
        store.stop()


def test_a_head_has_a_limit_and_a_long_custom_id_is_below_it(serve):
    one = serve().ready()
    long = httpx.get(one.base + "/api/v1/applications/x/profile-groups/" + "%F0%9F%90%98" * 255)
    assert long.status_code == 401
    port = httpx.URL(one.base).port
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):  # a megabyte, of which the kernel may hold some back
                connection.sendall(b"x-a: %b\r\n" % (b"x" * 10_000))
        assert connection.recv(20).startswith(b"HTTP/1.1 431")
    assert one.get().status_code == 200


def test_a_client_that_offers_http_2_is_answered_in_http_1(serve):
    # Java's HttpClient offers this with its first request.
    one = serve().ready()
    offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAMA"}
    with httpx.Client(base_url=one.base, headers=offer) as client:
        token = {"grant_type": "nothing"}
        for _ in range(2):
            refusal = client.post("/oauth/token", json=token)
            assert refusal.json()["error"] == "unsupported_grant_type"
            assert client.get("/healthz").status_code == 200


def test_what_ends_all_the_time_is_started_later_each_time_and_then_no_more(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    again = server._Again("API")
    waits = []
    for _ in range(6):
        assert again.due()
        now += 1
        again.failed()
        began = now
        while not again.due():
            now += 0.05
        waits.append(round(now - began, 1))
    assert waits == [0.0, 0.1, 0.3, 0.7, 1.5, 3.1]
    with pytest.raises(Unusable, match="The API ended 7 times in a row: giving up"):
        again.failed()


def test_what_ran_for_a_while_is_started_at_once(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    again = server._Again("API")
    for _ in range(20):
        assert again.due()
        now += 11
        again.failed()


def test_the_demo_starts_whatever_was_made_of_it(serve, tmp_path):
    # It wanted workspace 1, which another application had, and a group that had been put away:
    # `make serve` ended with one line, every time.
    first = serve().ready()
    made = subprocess.run(
        [sys.executable, "-m", "service", "app", "create", "other", "--data-dir", first.data_dir],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert first.stop() == 0
    second = serve("--demo").ready()
    add, *_ = demo_calls(second)
    group = str(add.url).removesuffix("members/")
    headers = {"authorization": add.headers["authorization"]}
    assert httpx.patch(group, headers=headers, json={"is_active": False}).status_code == 200
    assert second.stop() == 0
    third = serve("--demo").ready()
    add, *_ = demo_calls(third)
    assert send(add).status_code == 404


def test_a_request_of_no_version_is_a_bad_one(serve):
    one = serve().ready()
    host, _, port = one.base.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"GET /healthz\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_who_sends_ahead_and_leaves_is_forgotten(serve):
    one = serve().ready()
    host, _, port = one.base.removeprefix("http://").partition(":")
    for _ in range(20):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" * 3)
    assert one.get().status_code == 200


def scrape(one: Serving) -> dict[str, float]:
    """Every sample of `/metrics`, as it is written."""
    rows = [line for line in one.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (row.rpartition(" ") for row in rows)}


def healthy(one: Serving) -> float:
    """How often `/healthz` was answered, as all API processes know it together."""
    name = 'belong_http_requests_total{method="GET",route="/healthz",status="200"}'
    return scrape(one).get(name, 0)


def by_each(one: Serving, requests: int) -> None:
    """Make requests on new connections until each API process has answered one."""
    answered: set[str] = set()
    with httpx.Client(base_url=one.base, headers={"connection": "close"}) as client:
        while len(answered) < len(one.api_processes) or requests > 0:
            answered.add(client.get("/healthz").headers["x-request-id"].partition("-")[0])
            requests -= 1


def test_metrics_are_those_of_all_processes(serve):
    one = serve("--workers", "2", "--demo").ready()
    both(one)
    by_each(one, 20)
    # Whoever is asked knows of the others what they had counted a second ago.
    eventually(lambda: healthy(one) >= 20, 3)
    before = healthy(one)
    by_each(one, 10)
    eventually(lambda: healthy(one) >= before + 10, 3)
    found = scrape(one)
    assert found['belong_processes{program="api"}'] == 2
    assert found['belong_processes{program="worker"}'] == 1
    passed = "belong_worker_last_pass_timestamp_seconds"
    eventually(lambda: scrape(one).get(passed, 0) > time.time() - 10)
    groups = 'belong_groups{application="demo",environment="production"}'
    eventually(lambda: scrape(one).get(groups) == 1)


def test_counters_do_not_fall_and_no_gauge_is_left_when_an_api_process_is_killed(serve):
    one = serve("--workers", "2").ready()
    victim, other = both(one)
    by_each(one, 20)
    time.sleep(2)
    before = healthy(one)
    os.kill(victim, signal.SIGKILL)
    for _ in range(8):
        with contextlib.suppress(httpx.TransportError):
            found = scrape(one)
            # This one, and one of before that the other process has not forgotten yet.
            assert 1 <= found["belong_http_requests_in_flight"] <= 2
            assert found['belong_processes{program="api"}'] <= 2
            assert healthy(one) >= before
    eventually(lambda: scrape(one).get('belong_processes{program="api"}') == 2)
    [fresh] = [pid for pid in both(one) if pid != other]
    assert fresh != victim
    again = healthy(one)
    assert before <= again <= before + 1


def test_metrics_survive_the_master_and_the_worker_and_their_directory_goes_in_the_end(serve):
    one = serve().ready()
    [worker] = eventually(lambda: one.pids("worker"))
    directory = metrics_directory(worker)
    by_each(one, 5)
    time.sleep(1.2)
    before = healthy(one)
    [orphan] = one.api_processes
    os.kill(worker, signal.SIGKILL)
    os.kill(one.master, signal.SIGKILL)
    eventually(lambda: not lives(orphan), 1.5)
    eventually(lambda: scrape(one).get('belong_processes{program="worker"}') == 1)
    assert scrape(one)['belong_processes{program="api"}'] == 1
    assert healthy(one) >= before
    assert directory.is_dir()
    assert one.stop() == 0
    assert not directory.exists()


def test_what_a_stopped_process_counted_last_is_kept(serve):
    one = serve().ready()
    by_each(one, 5)
    before = healthy(one)
    by_each(one, 7)
    [victim] = one.api_processes
    os.kill(victim, signal.SIGTERM)
    eventually(lambda: not lives(victim))
    eventually(lambda: healthy(one) >= before + 7)


def test_metrics_are_answered_while_the_store_is_gone(serve, tmp_path):
    store = EmbeddedServer(tmp_path / "elsewhere")
    store.start()
    one = serve("--redis-url", store.url)
    eventually(lambda: one.get("/readyz").status_code == 200)
    lost = scrape(one)["belong_store_connections_lost_total"]
    store.stop()
    assert one.get("/readyz").status_code == 503
    assert scrape(one)["belong_store_connections_lost_total"] > lost
    assert one.stop() == 0


def metrics_directory(pid: int) -> Path:
    """The directory in which a child of the supervisor counts."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return Path(words[words.index("worker") + 2])


def test_the_request_log_is_one_object_per_line_of_all_processes(serve):
    one = serve("--workers", "2", "--request-log", "all").ready()
    both(one)
    with (
        httpx.Client(base_url=one.base, headers={"connection": "close"}) as client,
        concurrent.futures.ThreadPoolExecutor(8) as callers,
    ):
        list(callers.map(lambda _: client.get("/nothing"), range(200)))
    assert one.stop() == 0
    lines = [json.loads(line) for line in one.log.read_text().splitlines() if "/nothing" in line]
    assert len(lines) == 200
    assert {line["status"] for line in lines} == {404}
    assert len({line["request_id"] for line in lines}) == 200
