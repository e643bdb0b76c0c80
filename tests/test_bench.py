"""The bench measures what it says: load, runs, and what is made of them."""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast
from uuid import UUID

import msgspec
import pytest
from hdrh.histogram import HdrHistogram

from bench import against, goals, load, results, runner, serving, social, start, tables, wrk
from bench.load import Job, Outcome
from bench.measurement import Measurement, Sample, Step
from bench.runner import Runner, Settings
from bench.serving import Running

if TYPE_CHECKING:
    from bench.measurement import Subject
    from bench.world import World

ROOT = Path(__file__).resolve().parent.parent
GET = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BAD = b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\n{}"
LAST = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
CLOSED_LOOPS = [pytest.param(load.run, id="built-in")]
if wrk.version():
    CLOSED_LOOPS.append(pytest.param(wrk.run, id="wrk"))


class Server:
    """Gives every request the answer that `answer` makes of its number; None closes."""

    def __init__(self, answer) -> None:
        self.answer = answer
        self.given: Counter[bytes | None] = Counter()
        self.bodies: list[bytes] = []
        self.port = 0

    async def serve(self, reader, writer) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if length := re.search(rb"Content-Length: (\d+)", head):
                    self.bodies.append(await reader.readexactly(int(length[1])))
                said = await self.answer(self.given.total())
                self.given[said] += 1
                if said is None:
                    break
                writer.write(said)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def server(answer):
    made = Server(answer)
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield made


async def ok(_) -> bytes:
    return OK


def job(port, *, connections=4, seconds=1.0, warm_up=0.0, rate=None) -> Job:
    return Job("127.0.0.1", port, [GET], connections, seconds, warm_up, rate)


def writes(port, many):
    subject = Running("belong", "127.0.0.1", port, "token", 0, None)
    world = cast("World", SimpleNamespace(group_id=lambda _, place: f"group-{place}"))
    draw = Random(0)
    drawn = [social.added(world, subject, draw) for _ in range(many)]
    return [subject.request(each.method, each.path, each.body) for each in drawn]


def every_tenth(said):
    async def answer(number):
        return said if number % 10 == 9 else OK

    return answer


# Load.


@pytest.mark.parametrize("run", CLOSED_LOOPS)
async def test_a_closed_loop_counts_answers_and_their_latencies(run):
    async with server(ok) as one:
        outcome = await asyncio.to_thread(run, job(one.port))
    assert 0 < outcome.answered <= one.given[OK]
    assert (0, 0) == (outcome.errors, outcome.unsent)
    assert outcome.histogram().get_total_count() >= outcome.answered


@pytest.mark.parametrize("run", CLOSED_LOOPS)
async def test_an_answer_other_than_2xx_is_an_error_and_no_throughput(run):
    async with server(every_tenth(BAD)) as one:
        outcome = await asyncio.to_thread(run, job(one.port))
    # wrk does not tell of what was on its way at the end, of its warm-up and of its run.
    assert one.given[BAD] - 8 <= outcome.errors <= one.given[BAD]
    assert 0 < outcome.answered <= one.given[OK]
    assert outcome.example


async def test_every_error_is_counted():
    async with server(every_tenth(BAD)) as one:
        outcome = await asyncio.to_thread(load.run, job(one.port, warm_up=0.2))
    assert one.given[BAD] == outcome.errors
    assert one.given.total() == outcome.sent


async def test_an_error_has_no_latency():
    async with server(every_tenth(BAD)) as one:
        outcome = await asyncio.to_thread(load.run, job(one.port, seconds=0.3))
    assert 0 < one.given[OK] == outcome.histogram().get_total_count()


@pytest.mark.parametrize("run", CLOSED_LOOPS)
async def test_what_is_to_be_new_each_time_is_never_sent_twice(run):
    many = 10
    async with server(ok) as one:
        asked = job(one.port, warm_up=0.2)
        asked.requests = [*writes(one.port, many), GET]
        outcomes = [await asyncio.to_thread(run, asked) for _ in range(2)]
    assert 0 == sum(each.errors for each in outcomes)
    ids = [each for body in one.bodies for each in msgspec.json.decode(body)["profile_ids"]]
    assert len(ids) > 10 * many
    assert len(ids) == len(set(ids))
    assert many == len({each[: -len(load.NEW)] for each in ids})
    assert {4} == {UUID(each).version for each in ids}


def test_a_write_that_is_sent_as_it_is_is_one_too():
    [request] = writes(0, 1)
    [added] = msgspec.json.decode(request.partition(b"\r\n\r\n")[2])["profile_ids"]
    assert str(UUID(added)) == added
    assert added.endswith(load.NEW)


def an_outcome(**fields) -> Outcome:
    given = {"answered": 1, "seconds": 1.0, "sent": 1, "errors": 0, "unsent": 0, "latencies": {}}
    return Outcome(**{**given, "lasted": 1.0, "client_seconds": 0.5, **fields})


def test_the_client_load_is_of_the_time_in_which_the_client_worked(monkeypatch):
    outcomes = {
        1: an_outcome(sent=300, lasted=1.01, client_seconds=0.6, errors=1, example="status: 1"),
        2: an_outcome(sent=700, lasted=2.03, client_seconds=1.3, answered=690, seconds=2.03),
    }
    monkeypatch.setattr(wrk, "_once", lambda _job, _requests, _result, seconds: outcomes[seconds])
    made = wrk.run(job(0, seconds=2.0, warm_up=0.4))
    assert (1_000, 690, 1) == (made.sent, made.answered, made.errors)
    assert (3.04, 1.9, 2.03) == pytest.approx((made.lasted, made.client_seconds, made.seconds))
    subject = cast("Subject", SimpleNamespace(name="belong", api=os.getpid(), store=None))
    _, details = a_runner()._measured(subject, job(0, seconds=2.0, warm_up=0.4), lambda _: made)
    assert (1_900, 1.9 / 3.04) == pytest.approx((details["client us"], details["client load"]))


@pytest.mark.parametrize("run", CLOSED_LOOPS)
async def test_what_left_and_the_processor_time_are_of_warm_up_and_run(run):
    async with server(ok) as one:
        outcome = await asyncio.to_thread(run, job(one.port, warm_up=1.0))
    assert 1.9 < outcome.lasted
    assert 0.9 < outcome.seconds < outcome.lasted - 0.9
    # wrk does not tell of what was on its way at the end, of its warm-up and of its run.
    assert one.given.total() - 8 <= outcome.sent <= one.given.total()
    assert 0 < outcome.client_seconds < 1.1 * outcome.lasted


async def test_a_connection_that_breaks_is_an_error_and_is_made_anew():
    async with server(every_tenth(None)) as one:
        outcome = await asyncio.to_thread(load.run, job(one.port))
    assert one.given[None] == outcome.errors > 4
    assert outcome.answered > 40


async def test_a_connection_that_the_server_ends_after_its_answer_is_no_error():
    async with server(every_tenth(LAST)) as one:
        outcome = await asyncio.to_thread(load.run, job(one.port))
    assert one.given[LAST] > 4
    assert 0 == outcome.errors


async def test_an_answer_that_never_comes_is_an_error(monkeypatch):
    async def never(_):
        await asyncio.sleep(60)

    monkeypatch.setattr(load, "GRACE", 0.2)
    async with server(never) as one:
        outcome = await load._Closed(job(one.port, connections=3, seconds=0.2)).run()
    assert (3, 3, 0) == (outcome.sent, outcome.errors, outcome.answered)


async def test_an_open_loop_sends_at_its_rate():
    async with server(ok) as one:
        outcome = await asyncio.to_thread(load.run, job(one.port, warm_up=0.5, rate=400.0))
    assert 600 == outcome.sent + outcome.unsent
    assert 400 == outcome.histogram().get_total_count()
    assert 0 == outcome.errors


@pytest.mark.alone
async def test_a_request_leaves_when_it_is_due():
    async with server(ok) as one:
        asked = job(one.port, connections=32, seconds=2.0, rate=100.0)
        outcome = await asyncio.to_thread(load.run, asked)
    assert (200, 0, 0) == (outcome.sent, outcome.errors, outcome.unsent)
    assert outcome.histogram().get_value_at_percentile(50) < 1_000


async def test_a_sleep_that_ends_early_leaves_nothing_unsent(monkeypatch):
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: sleep(0.8 * seconds))
    async with server(ok) as one:
        outcome = await load._Open(job(one.port, connections=32, seconds=0.3), 200.0).run()
    assert (60, 0, 0) == (outcome.sent, outcome.errors, outcome.unsent)


async def test_a_stall_shows_in_the_latencies_of_all_who_were_due():
    began = time.perf_counter()
    stall = 0.0

    async def answer(number):
        nonlocal stall
        if number == 100:
            stall = time.perf_counter() - began + 0.4
        await asyncio.sleep(max(0, began + stall - time.perf_counter()))
        return OK

    async with server(answer) as one:
        outcome = await asyncio.to_thread(load.run, job(one.port, seconds=2.0, rate=200.0))
    late = sum(many for us, many in outcome.latencies.items() if us >= 100_000)
    # 80 were due within the stall, of which 60 had to wait that long. A loop that waits for its
    # answers would have sent one on each of its four connections.
    assert late >= 60
    assert 0 == outcome.errors


async def test_what_was_due_and_never_left_is_told_and_its_waiting_counts():
    async def slow(_):
        await asyncio.sleep(0.3)
        return OK

    async with server(slow) as one:
        outcome = await asyncio.to_thread(load.run, job(one.port, connections=1, rate=100.0))
    assert 100 == outcome.sent + outcome.unsent
    assert outcome.unsent >= 95
    assert 100 == outcome.histogram().get_total_count()
    assert outcome.histogram().get_value_at_percentile(50) >= 400_000


async def test_where_nobody_listens_the_load_fails():
    async with server(ok) as one:
        pass
    with pytest.raises(subprocess.CalledProcessError):
        await asyncio.to_thread(load.run, job(one.port))


# Runs.


def step(workload, subject, measure=lambda: Sample(1.0), runs=None, **settings) -> Step:
    return Step(workload, subject, "closed", "requests/s", settings, measure, runs)


def a_runner(**settings) -> Runner:
    return Runner(Settings(**settings), cast("World", None), {})


def test_who_comes_first_changes_from_run_to_run():
    said = []

    def noting(workload, subject, runs=None):
        def measure():
            said.append(workload + subject)
            return Sample(1.0)

        return step(workload, subject, measure, runs)

    a_runner(runs=2).run(
        [noting("a", "1"), noting("b", "1", runs=1), noting("a", "2"), noting("c", "1", runs=3)]
    )
    assert ["a1", "a2", "b1", "c1", "a2", "a1", "c1", "c1"] == said


def test_samples_of_all_runs_come_together():
    latencies = load.histogram({1000: 3})
    samples = iter(
        [Sample(2.0, 1, 0, latencies, {"p50": 7.0}), Sample(4.0, 0, 5, latencies, {"p50": 9.0})]
    )
    one = a_runner(runs=2)
    one.run([step("check", "belong", lambda: next(samples), connections=8)])
    [made] = one.measurements.values()
    assert [2.0, 4.0] == made.values
    assert (1, 5) == (made.errors, made.unsent)
    assert {"p50": [7.0, 9.0]} == made.details
    assert 6 == HdrHistogram.decode(made.histogram).get_total_count()


def in_turn(*samples):
    """Give what measures these one after the other; an error is raised."""
    waiting = iter(samples)

    def measure():
        sample = next(waiting)
        if isinstance(sample, Exception):
            raise sample
        return Sample(sample)

    return measure


def test_half_of_the_peak_is_that_of_the_same_run():
    one = a_runner(runs=3)
    peak = step("check", "belong", in_turn(10.0, RuntimeError("no"), 20.0, 30.0), connections=32)
    few = step("check", "belong", lambda: Sample(99.0), connections=1)
    half = Step(
        "check", "belong", "open", "us", {}, lambda: Sample(one.peak("check", "belong") / 2)
    )
    one.known = [peak, few, half]
    one.run([peak, few, half])
    found = {(each.mode, *each.settings.values()): each for each in one.measurements.values()}
    # In the second run it failed, and was measured when its half was asked for.
    assert [5.0, 10.0, 15.0] == found["open",].values
    assert [10.0, 20.0, 30.0] == found["closed", 32].values
    assert ["RuntimeError: no"] == [each.why for each in one.failures]


def test_a_peak_that_is_not_to_be_measured_is_when_its_half_is():
    one = a_runner(runs=1)
    peak = step("check", "belong", lambda: Sample(8.0), connections=32)
    half = step("half", "belong", lambda: Sample(one.peak("check", "belong") / 2))
    one.known = [peak, half]
    one.run([half])
    assert {"check": [8.0], "half": [4.0]} == {
        each.workload: each.values for each in one.measurements.values()
    }
    with pytest.raises(LookupError):
        one.peak("check", "django")


def test_ratios_are_of_runs_that_have_both():
    one = a_runner(runs=3)
    no = RuntimeError("no")
    one.run(
        [
            step("check", "belong", in_turn(no, 20.0, 30.0), connections=32),
            step("check", "fastapi", in_turn(1.0, 2.0, no), connections=32),
            step("check", "django", in_turn(1.0, no, no), connections=32),
        ]
    )
    ours, fastapi, django = (
        one.measurements[runner.name(step("check", each, connections=32))]
        for each in ("belong", "fastapi", "django")
    )
    assert [10.0] == goals.ratios(ours, fastapi)
    assert [] == goals.ratios(ours, django)
    verdicts = {each.row: each.verdict for each in goals.judged([ours, django])}
    assert "not measured" == verdicts["check: peak beside Django + PostgreSQL"]


def test_it_is_told_how_long_the_rest_takes(monkeypatch, capsys):
    clock = iter(range(0, 10_000, 60))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    a_runner(runs=2).run([step("a", "belong"), step("b", "belong")])
    # What was not measured yet is guessed, what was takes as long again.
    said = re.findall(r"(\d of \d) steps, about (\d+) minutes", capsys.readouterr().err)
    assert [("1 of 4", "1"), ("2 of 4", "2"), ("3 of 4", "1"), ("4 of 4", "0")] == said


def test_a_step_that_fails_is_told_and_the_others_go_on():
    def fail():
        raise RuntimeError("wrong")

    one = a_runner(runs=1)
    one.run([step("a", "belong", fail), step("b", "belong")])
    assert ["RuntimeError: wrong"] == [each.why for each in one.failures]
    assert ["b"] == [each.workload for each in one.measurements.values()]
    assert 1 == results.finished(results.about(), one).errors


def test_ctrl_c_keeps_what_there_is():
    def interrupt():
        raise KeyboardInterrupt

    one = a_runner(runs=1)
    one.run([step("a", "belong"), step("b", "belong", interrupt), step("c", "belong")])
    assert ["a"] == [each.workload for each in one.measurements.values()]
    assert results.finished(results.about(), one).interrupted


# What is made of them.


def measured(workload, subject, mode, unit, values, latencies=None, errors=0, **settings):
    details = {}
    histogram = None
    if latencies:
        made = load.histogram(latencies)
        histogram = made.encode().decode()
        for each in (50, 99, 99.9):
            details[f"p{each}"] = [float(made.get_value_at_percentile(each))] * len(values)
    return Measurement(
        workload=workload,
        subject=subject,
        mode=mode,
        unit=unit,
        settings={name.replace("_", " "): value for name, value in settings.items()},
        values=values,
        errors=errors,
        histogram=histogram,
        details=details,
    )


def some_results():
    latencies = {100 * n: 100 - n for n in range(1, 100)}
    half = {"connections": 32, "rate": "half of the peak"}
    made = [
        measured("check", "belong", "closed", "requests/s", [18e3, 20e3, 19e3], connections=32),
        measured("check", "fastapi", "closed", "requests/s", [4e3, 4e3, 4e3], connections=32),
        measured("check", "django", "closed", "requests/s", [2e3, 2e3, 2e3], 0, 3, connections=32),
        measured("check", "belong", "closed", "requests/s", [5e3, 5e3, 5e3], connections=1),
        measured("healthz", "belong", "closed", "requests/s", [30e3, 30e3, 30e3], connections=32),
        measured("check", "belong", "open", "us", [9_000.0] * 3, latencies, **half),
        measured("check", "fastapi", "open", "us", [9_000.0] * 3, latencies, **half),
        measured("add one", "belong", "once", "us", [100.0], {100: 9}, group_size=1_000),
        measured("add one", "belong", "once", "us", [150.0], {150: 9}, group_size=1_000_000),
        measured(
            "bytes per membership", "belong", "once", "bytes", [43.2], groups=100, size=10_000
        ),
    ]
    about = results.about()
    about.measurements = made
    return about


def test_table_and_pictures_are_made_of_the_json_and_are_the_same_every_time(tmp_path):
    folder = results.write(some_results(), tmp_path)
    first = {each.name: each.read_bytes() for each in folder.iterdir()}
    pictures = {name for name in first if name.endswith(".svg")}
    assert {
        "beside-the-peers.svg",
        "throughput-by-concurrency.svg",
        "latency-by-percentile.svg",
        "add-one-by-group-size.svg",
        "bytes-per-membership.svg",
    } == pictures
    again = tmp_path / "again"
    again.mkdir()
    results.show(results.read(folder / "results.json"), again)
    assert {name: first[name] for name in {*pictures, "README.md"}} == {
        each.name: each.read_bytes() for each in again.iterdir()
    }


def test_the_table_has_ours_beside_the_peers_with_their_errors():
    page = tables.page(some_results()).partition("## Ceilings")[0]
    [row] = [line for line in page.splitlines() if line.startswith("| check (connections 32) |")]
    cells = [each.strip() for each in row.strip("|").split("|")]
    assert [
        "check (connections 32)",
        "requests/s",
        "19,000 (18,000 to 20,000)",
        "4,000 (4,000 to 4,000)",
        "4.75 (4.50 to 5.00)",
        "2,000 (2,000 to 2,000)",
        "9.50 (9.00 to 10.0)",
        "django 3",
    ] == cells


def test_the_table_shows_what_clients_took_and_marks_those_that_took_much():
    made = some_results()
    taken = {("open", "belong"): [0.6], ("open", "fastapi"): [0.3, 0.71], ("closed", "django"): [1]}
    for each in made.measurements:
        if values := taken.get((each.mode, each.subject)):
            each.details["client load"] = values
    latency, _, rest = tables.page(made).partition("## Latency")[2].partition("\n## ")
    rows = [line.strip("| ").split(" | ") for line in latency.splitlines() if line[:1] == "|"]
    assert ["client load", "0.60", "**0.51 (0.30 to 0.71)**"] == [rows[at][-1] for at in (0, 2, 3)]
    assert "more than 0.7" in latency
    assert "| django | client load **1.00** |" in rest


def test_the_table_says_what_is_reached_of_the_ceilings():
    made = some_results()
    made.measurements += [
        measured("add", "belong", "once", "adds/s", [5e4], connections=4),
        measured("add, scripts alone", "belong", "once", "adds/s", [1e5], calls_at_a_time=4),
        measured("add, scripts alone", "belong", "once", "adds/s", [2e5], calls_at_a_time=8),
        measured("bare answers", "belong", "open", "us", [50.0], connections=32),
    ]
    ceilings = tables.page(made).partition("## Ceilings")[2].partition("##")[0]
    assert [
        "| check (connections 32) | healthz | 30,000 (30,000 to 30,000) | 0.63 (0.60 to 0.67) |",
        "| add (connections 4) | add, scripts alone | 100,000 | 0.50 |",
    ] == ceilings.strip().splitlines()[2:]


def test_a_rate_that_was_not_held_is_told():
    made = some_results()
    for each in made.measurements:
        if each.mode == "open":
            achieved = 100.0 if each.subject == "belong" else 90.0
            each.details |= {"asked rate": [100.0], "achieved rate": [achieved]}
    latency, _, _ = tables.page(made).partition("## Latency")[2].partition("\n## ")
    rows = [line for line in latency.splitlines() if "not held" in line]
    assert ["fastapi"] == [row.split(" | ")[1] for row in rows]


def test_what_the_machine_does_to_latencies_stands_beside_the_goals():
    latencies = {100: 97, 200: 1, 400: 2}
    bare = measured(
        "bare answers", "belong", "open", "us", [400.0], latencies, rate=goals.AT_HALF_OF_CHECK
    )
    [row] = [each for each in goals.judged([bare]) if each.verdict == "the floor"]
    assert "0.1 ms, 0.4 ms, 4" == row.figure


def test_results_of_a_run_make_nothing_dirty(tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "ROOT", tmp_path)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    assert not results.is_dirty()
    results.write(some_results(), tmp_path / results.RESULTS)
    assert not results.is_dirty()
    (tmp_path / "changed").touch()
    assert results.is_dirty()


def test_a_busy_machine_is_told():
    made = some_results()
    made.machine.load_before, made.machine.stolen = [0.1, 3.0, 3.0], {}
    assert "busy" not in tables._head(made)
    made.machine.load_before, made.machine.stolen = [0.6, 0.0, 0.0], {0: 0.0151, 1: 0.2}
    assert "0.60, 0.00, 0.00, **busy**" in tables._head(made)
    assert "1.5 % of core 0, 20.0 % of core 1" in tables._head(made)


def test_time_that_was_stolen_is_read_of_the_kernel(monkeypatch):
    lines = ["cpu  9 9 9 9 9 9 9 9 0 0", "cpu0 10 0 5 80 0 0 0 5 0 0", "intr 1"]
    before = {0: [0, 0, 0, 0, 0, 0, 0, 0]}
    monkeypatch.setattr(Path, "read_text", lambda _: "\n".join(lines))
    assert {0: 0.05} == serving.stolen(before)


def test_goals_are_reached_not_reached_or_not_measured():
    verdicts = {each.row: each.verdict for each in goals.judged(some_results().measurements)}
    assert {
        "check: peak beside FastAPI + redis-py": "reached",
        "check: peak beside Django + PostgreSQL": "not valid: 3 errors of django",
        "check: peak beside its own /healthz": "reached",
        "check: p99 at half of the peak": "not reached",
        "adding one member: p50 at 1,000,000 / at 1,000": "not reached",
        "pairs checked, 1,000 a request": "not measured",
    }.items() <= verdicts.items()


def test_another_commit_is_checked_out_and_gone_afterwards():
    with against.worktree("HEAD") as (name, folder):
        assert (folder / "service" / "__main__.py").exists()
        assert str(folder) in _git("worktree", "list")
        assert _git("rev-parse", "HEAD").startswith(name)
    assert not folder.exists()
    assert str(folder) not in _git("worktree", "list")


def test_another_commit_is_asked_and_started_in_the_place_of_ours(tmp_path):
    one = a_runner()
    one.subjects = {"belong": Running("belong", "", 1, "", 0)}
    other = against.Other(Running("1234", "", 2, "", 0), tmp_path)
    asked = []

    def make():
        at_making = one.subjects["belong"].port

        def measure():
            asked.append((at_making, one.subjects["belong"].port, serving.program()))
            return Sample(1.0)

        return [step(each, "belong", measure) for each in ("a", "bare answers", "a, alone")]

    made = against.of_both(one, other, make)
    assert [("a", "belong"), ("a", "1234")] == [(each.workload, each.subject) for each in made]
    for each in made:
        each.measure()
    assert [(1, 1, ROOT), (2, 2, tmp_path)] == asked
    assert ROOT == serving.program()


@pytest.mark.slow
def test_servers_are_started_of_the_tree_of_the_other_commit():
    with against.worktree("HEAD") as (_, folder), serving.program_of(folder):
        with serving.server(1) as served:
            assert folder == Path(f"/proc/{served.api}/cwd").readlink()
        kept = start.Kept(_nothing)
        with kept.started() as started:
            assert folder == Path(f"/proc/{started.api}/cwd").readlink()
        assert kept._folder
        kept._folder.cleanup()


async def _nothing(_):
    pass


def _git(*words):
    return subprocess.run(
        ["git", *words], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.slow
def test_the_smoke_runs_every_workload_without_an_error(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--smoke", "--out", tmp_path],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
        timeout=600,
    )
    assert 0 == done.returncode, done.stderr[-4000:]
    [folder] = tmp_path.iterdir()
    made = results.read(folder / "results.json")
    assert 0 == made.errors
    assert "yes" == made.settings["smoke"]
    measured_of = {each.workload for each in made.measurements}
    for module in runner.WORKLOADS:
        assert measured_of & WORKLOADS_OF[module], module
    assert all(statistics.median(each.values) > 0 for each in made.measurements)
    assert done.stdout == folder.joinpath("README.md").read_text() + "\n"


WORKLOADS_OF = {
    "lookups": {"check"},
    "social": {"social mix"},
    "writes": {"add one"},
    "underload": {"checks under load"},
    "ingest": {"ingest"},
    "dynamic": {"rule built"},
    "memory": {"bytes per membership"},
    "start": {"start"},
}
