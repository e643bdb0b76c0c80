from __future__ import annotations

import hashlib
import json
import random
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from bench import lookups, questions, social, underload, writes
from bench.measurement import Sample
from bench.serving import Running
from bench.world import FULL, TINY, WRITTEN, Shape, World
from tests.serving import eventually

PEER: Any = Running("fastapi", "127.0.0.1", 1, "token", 0)
BELONG: Any = Running("belong", "127.0.0.1", 2, "token", 0)


class Nobody:
    """What workloads see, with nobody behind it: what would be sent is kept."""

    def __init__(self, *subjects, smoke=False):
        self.world = World(TINY)
        self.subjects = {each.name: each for each in subjects}
        self.seconds, self.connections, self.large, self.smoke = 0.2, 8, False, smoke

    def closed(self, *_, **__):
        return Sample(100.0)

    def open(self, _, __, rate, **___):
        return Sample(1.0, details={"rate": rate})

    def peak(self, *_):
        return 100.0


def bench_of(*subjects: Any, smoke: bool = False) -> Any:
    return Nobody(*subjects, smoke=smoke)


@pytest.fixture(scope="module")
def world():
    return World(TINY)


@pytest.fixture
def answering():
    """Run servers that give each request the same answer, and note what was asked."""
    running = []

    def start(answer, status=200):
        asked = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                size = int(self.headers.get("Content-Length", 0))
                asked.append((self.path, self.rfile.read(size)))
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                self.do_POST()

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        running.append((server, thread))
        return Running("belong", "127.0.0.1", server.server_port, "token", 0), asked

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_world_is_the_same_on_every_machine_and_python(world):
    text = "".join(f"{group} {profile}\n" for group, profile in world.memberships())

    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "6cf052ec953acb9bc07ff2812b73a05d79aa03fcd6f51915e51d9a1c220ffd5c"
    )


def test_another_seed_makes_another_world(world):
    other = World(TINY._replace(seed=7))

    assert set(world.profiles).isdisjoint(other.profiles)
    assert world.groups_of != other.groups_of


@pytest.mark.parametrize(
    "shape",
    [
        TINY,
        Shape(groups=1, size=3, profiles={1: 3}),
        Shape(groups=5, size=4, profiles={5: 4}),
        Shape(groups=7, size=30, profiles={1: 14, 4: 42, 7: 4}),
    ],
    ids=str,
)
def test_groups_and_profiles_have_exactly_what_the_shape_says(shape):
    made = World(shape)

    assert {shape.size: shape.groups} == Counter(len(set(each.members)) for each in made.groups)
    assert shape.profiles == Counter(len(set(places)) for places in made.groups_of)
    assert shape.memberships == sum(1 for _ in made.memberships())
    assert len(made.profiles) == len(set(made.profiles)) == sum(shape.profiles.values())
    assert len({each.id for each in made.groups}) == shape.groups


def test_the_world_that_is_measured_can_be():
    # Made it takes seconds, and its sums are all that could be wrong.
    assert FULL.memberships == sum(each * many for each, many in FULL.profiles.items())
    assert FULL.size == 1_000
    assert {1, 10, 100} == set(FULL.profiles) == set(TINY.profiles)


def test_both_directions_say_the_same(world):
    forward = {(group, each) for group, it in enumerate(world.groups) for each in it.members}
    reverse = {(group, each) for each, places in enumerate(world.groups_of) for group in places}

    assert forward == reverse
    assert all(world.is_member(each, group) for group, each in forward)
    assert all(len(world.groups_of[each]) == 10 for each in world.in_groups(10))


def test_profiles_in_as_many_groups_are_in_different_ones(world):
    # Dealt from one order, a hundred groups of a hundred: everybody was in the same.
    hands = [tuple(world.groups_of[each]) for each in world.in_groups(10)]

    assert len(set(hands)) == len(hands)


@pytest.mark.parametrize(
    ("profiles", "sentence"),
    [({1: 9}, "9 memberships of profiles are not 10"), ({5: 2}, "nobody can be in 5 of 2 groups")],
)
def test_a_shape_that_cannot_be_is_refused(profiles, sentence):
    with pytest.raises(ValueError, match=sentence):
        World(Shape(groups=2, size=5, profiles=profiles))


def test_everybody_is_asked_the_same():
    bench = bench_of(BELONG, PEER)

    first, second = (
        questions.drawn(bench, each, social.mix, "seed", 500) for each in bench.subjects.values()
    )

    assert [each[:3] for each in first] == [each[:3] for each in second]


def test_half_of_the_checks_are_of_members(world):
    draw = random.Random(1)

    pairs = [questions.pair(world, draw) for _ in range(4_000)]

    # Of those drawn evenly a few are, too.
    assert 0.48 < sum(world.is_member(*pair) for pair in pairs) / len(pairs) < 0.56


def test_the_mix_has_the_published_shares():
    bench = bench_of(BELONG)
    asked = questions.drawn(bench, BELONG, social.mix, "shares", 40_000)

    found = Counter(kind(each) for each in asked)
    writes = found.pop("write")

    assert writes / len(asked) == pytest.approx(0.002, abs=0.0005)
    assert {
        "range": 0.409,
        "object": 0.289,
        "check": 0.157,
        "count": 0.117,
        "time range": 0.028,
    } == {each: pytest.approx(many / found.total(), abs=0.006) for each, many in found.items()}


def kind(asked):
    path = asked.path.removeprefix("/api/v1/applications/bench/")
    if path == "memberships/check/":
        return "check"
    if asked.method == "POST":
        return "write"
    if path.startswith("profiles/"):
        return "range"
    if "/members/" not in path:
        return "object"
    return "count" if path.endswith("page_size=1") else "time range"


def test_writes_go_only_where_counts_may_have_grown(world):
    draw = random.Random(2)

    paths = [social.added(world, BELONG, draw).path for _ in range(500)]

    written = {world.groups[each].id for each in range(WRITTEN)}
    assert written == {path.split("/")[-3] for path in paths}
    assert world.can_count(WRITTEN - 1, TINY.size + 1)
    assert not world.can_count(WRITTEN, TINY.size + 1)
    assert not world.can_count(0, TINY.size - 1)


def test_each_run_adds_others():
    bench = bench_of(BELONG, smoke=True)
    [step, _] = social.steps(bench)
    nobody = [questions.Question("GET", "/", None, bool)]
    seeds = []

    def draw(*given):
        seeds.append(given[3])
        return nobody

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(questions, "wrong", lambda *_: 0)
        patch.setattr(questions, "drawn", draw)
        step.measure()
        step.measure()

    assert len(set(seeds)) == 2


def test_an_answer_that_misses_something_is_wrong(world):
    asked = questions.groups_of(world, BELONG, random.Random(3), number=10)
    [profile] = [each for each, name in enumerate(world.profiles) if name in asked.path]
    rows = [
        {
            "group_id": world.groups[each].id,
            "group_name": world.groups[each].name,
            "profile_count": TINY.size,
        }
        for each in world.groups_of[profile]
    ]
    miscounted = [*rows[:-1], rows[-1] | {"profile_count": TINY.size - 1}]
    another = next(each for each in range(TINY.groups) if each not in world.groups_of[profile])
    strange = [*rows[:-1], rows[-1] | {"group_id": world.groups[another].id}]

    assert asked.is_right({"count": 10, "results": rows})
    assert not asked.is_right({"count": 10, "results": rows[:-1]})
    assert not asked.is_right({"count": 9, "results": rows[:-1]})
    assert not asked.is_right({"count": 10, "results": miscounted})
    assert not asked.is_right({"count": 10, "results": strange})


@pytest.mark.parametrize("answer", [{"results": "none"}, {}, [], 7])
def test_what_is_answered_wrongly_is_counted(answering, world, answer, capsys):
    subject, asked = answering(answer)
    drawn = [questions.check(world, subject, random.Random(each)) for each in range(10)]

    assert questions.wrong(subject, drawn, 4) == 4
    assert len(asked) == 4
    assert capsys.readouterr().err.count("wrong: belong") == 1


def test_a_refusal_is_a_wrong_answer_and_stays_one_in_the_sample(answering, world):
    subject, _ = answering({"detail": "no"}, status=403)
    bench = bench_of(subject)
    drawn = [questions.check(world, subject, random.Random(4))]

    sample = lookups.looked_at(bench, subject, drawn, lambda _: Sample(1.0, errors=2))

    assert sample.errors == 3


def test_every_step_has_a_name_of_its_own_and_what_is_shared_one_of_each_subject():
    steps = [
        each
        for module in (lookups, social, underload)
        for each in module.steps(bench_of(BELONG, PEER))
    ]
    named = Counter(
        (each.workload, each.subject, each.mode, each.unit, *each.settings.items())
        for each in steps
    )

    assert set(named.values()) == {1}
    for workload in (*lookups.SHARED, "many pairs", social.NAME):
        assert {"belong", "fastapi"} == {e.subject for e in steps if e.workload == workload}
    assert {1, 8, 32, 128} == {
        each.settings["connections"]
        for each in steps
        if (each.workload, each.subject, each.mode) == ("check", "belong", "closed")
    }


def test_latency_is_looked_at_at_half_of_the_peak_and_at_one_rate_for_all(monkeypatch):
    monkeypatch.setattr(questions, "wrong", lambda *_: 0)
    steps = [
        each
        for each in lookups.steps(bench_of(BELONG))
        if (each.workload, each.mode) == ("check", "open")
    ]

    assert {"half of the peak": 50, lookups.RATE: lookups.RATE} == {
        each.settings["rate"]: each.measure().details["rate"] for each in steps
    }


def test_a_client_that_loads_nobody_is_an_error(answering, capsys):
    refusing, _ = answering({"detail": "no"}, status=403)
    keeping_out, _ = answering({"id": "g", "successfully_added": ["a"]})

    for subject in (refusing, keeping_out):
        with underload.Loading(subject, 2) as loading:
            eventually(lambda: loading.errors)
        assert loading.took == []
    assert "loading failed: 403" in capsys.readouterr().err


def test_a_sample_under_no_load_is_an_error(answering, monkeypatch):
    monkeypatch.setattr(questions, "wrong", lambda *_: 0)
    monkeypatch.setattr(underload, "PAUSE_SECONDS", 5)
    subject, asked = answering({"detail": "no"}, status=403)
    alone, loaded = underload.steps(bench_of(subject, smoke=True))

    assert alone.measure().errors == 0
    assert loaded.measure().errors > 0
    assert asked


def test_a_client_loads_the_same_profiles_into_one_group_after_the_other(answering):
    subject, asked = answering({"id": "g", "successfully_added": ["a", "b"]})

    with underload.Loading(subject, 2) as loading:
        eventually(lambda: len(loading.took) >= 2 * underload.CALLS_OF_A_GROUP)

    assert loading.errors == 0
    of_a_group = 1 + underload.CALLS_OF_A_GROUP
    first, second = asked[:of_a_group], asked[of_a_group : 2 * of_a_group]
    assert first[0][0].endswith("/profile-groups/")
    assert all(path.endswith("/g/members/") for path, _ in first[1:])
    assert first[1:] == second[1:]
    assert len({body for _, body in first}) == of_a_group


def test_profiles_are_new_first_and_then_the_same_ones_join_other_groups(monkeypatch):
    bench = bench_of(BELONG)
    sent = []

    def keep(_, requests, connections, ids):
        sent.append([read(each) for each in requests])
        return Sample(1.0, details={"ids": ids, "connections": connections})

    monkeypatch.setattr(writes, "CALL", 50)
    monkeypatch.setattr(writes, "_sent", keep)
    new, known = (
        each
        for each in writes.steps(bench)
        if each.workload in {"bulk add of new profiles", "bulk add of known profiles"}
    )
    assert new.measure().details == {"ids": 200, "connections": 4}
    known.measure()

    [first, second] = sent
    assert members(first) == members(second)
    assert groups(first).isdisjoint(groups(second))
    assert groups(first) | groups(second) <= {each.id for each in bench.world.groups[:WRITTEN]}
    for calls in sent:
        assert [50] * 4 == [len(set(ids)) for _, ids in calls]
        assert len(members(calls)) == 200
    for _, ids in second:
        assert all(not set(ids).isdisjoint(before) for _, before in first)

    new.measure()
    assert members(first).isdisjoint(members(sent[2]))


def read(request):
    head, _, body = request.partition(b"\r\n\r\n")
    return head.split(b" ")[1].split(b"/")[-3].decode(), json.loads(body)["profile_ids"]


def groups(calls):
    return {group for group, _ in calls}


def members(calls):
    return {each for _, ids in calls for each in ids}
