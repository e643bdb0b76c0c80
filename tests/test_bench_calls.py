"""The connection with which the bench looks at answers, steps together, and what comes after."""

from __future__ import annotations

import socketserver
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from bench import settling
from bench.calls import Answer, Caller, Refused, Together, ask_all, request
from bench.measurement import Sample

ASKED = request("Bearer t", "POST", "/x", {"a": 1})


@contextmanager
def server(*pieces):
    """Answer every request by these pieces, a moment apart; without any, hang up."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            while pieces and self.request.recv(1 << 16):
                for piece in pieces:
                    self.request.sendall(piece)
                    time.sleep(0.01)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield listening.server_address
        finally:
            listening.shutdown()
            thread.join()


def test_a_request_says_who_asks_and_how_long_its_body_is():
    head, _, body = ASKED.partition(b"\r\n\r\n")
    assert b'{"a":1}' == body
    assert b"POST /x HTTP/1.1" == head.splitlines()[0]
    assert {b"Authorization: Bearer t", b"Content-Length: 7"} <= {*head.splitlines()}


def test_an_answer_that_comes_in_pieces_is_read_to_its_end_and_timed():
    pieces = (b"HTTP/1.1 200 OK\r\nContent-", b"Length: 4\r\n\r", b"\n[1", b"2]")
    with server(*pieces) as address, Caller(*address) as caller:
        first, second = caller.ask(ASKED), caller.ask(ASKED)
    assert (200, b"[12]") == (first.status, first.body)
    assert first[:2] == second[:2]
    assert first.seconds >= 0.03


def test_an_answer_without_a_body_ends_with_its_head():
    with server(b"HTTP/1.1 204 No Content\r\n\r\n") as address, Caller(*address) as caller:
        assert (204, b"") == caller.ask(ASKED)[:2]


def test_what_is_no_success_is_not_read():
    with pytest.raises(Refused, match="404 none"):
        Answer(404, b"none", 0.1).read()
    assert {"a": 1} == Answer(200, b'{"a":1}', 0.1).read()


def test_a_connection_that_breaks_is_told():
    with server() as address, Caller(*address) as caller, pytest.raises(ConnectionError):
        caller.ask(ASKED)


def test_of_many_requests_each_one_that_broke_has_an_answer_that_is_none():
    with server() as (host, port):
        answers = ask_all(host, port, [ASKED] * 5, 2)
    assert [0] * 5 == [each.status for each in answers]
    assert not any(each.is_success for each in answers)


def test_many_requests_are_answered_each():
    with server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]") as (host, port):
        answers = ask_all(host, port, [ASKED] * 7, 3)
    assert [(200, b"[]")] * 7 == [each[:2] for each in answers]


def test_steps_together_are_measured_once_in_a_run():
    times = iter(range(1, 10))

    def measure():
        time_of_all = float(next(times))
        return {name: Sample(time_of_all) for name in "ab"}

    together = Together(measure)
    a, b = together.part("a"), together.part("b")
    assert [1.0, 1.0, 2.0, 2.0] == [part().value for part in (a, b, b, a)]
    assert 3 == next(times)


@contextmanager
def store(code):
    """Run what stands for a store, after its first line."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield SimpleNamespace(name="belong", store=process.pid)
        finally:
            process.kill()


def a_bench(*, smoke=False):
    return SimpleNamespace(smoke=smoke)


WORKS = """
import os, sys, time
print(flush=True)
child = os.fork()
end = time.process_time() + {seconds}
while not child and time.process_time() < end:
    pass
if not child:
    os._exit(0)
os.waitpid(child, 0)
time.sleep(60)
"""


def test_what_comes_next_waits_until_the_store_and_those_below_it_are_idle(capsys):
    with store(WORKS.format(seconds=1)) as one:
        began = time.monotonic()
        settling.settle(a_bench(), one)
        assert time.monotonic() - began > 1
    assert not capsys.readouterr().err


def test_a_store_that_never_rests_is_told_and_waited_for_no_longer(monkeypatch, capsys):
    monkeypatch.setattr(settling, "LONGEST_SECONDS", 0.6)
    with store(WORKS.format(seconds=60)) as one:
        settling.settle(a_bench(), one)
    assert capsys.readouterr().err == "belong still works after 1 s\n"


def test_the_smoke_and_what_has_no_store_wait_for_nothing(monkeypatch):
    monkeypatch.setattr(settling, "LOOKED_AT_SECONDS", 60)
    settling.settle(a_bench(smoke=True), SimpleNamespace(name="belong", store=1))
    settling.settle(a_bench(), SimpleNamespace(name="belong", store=None))
