"""Memberships written: one at a time to groups of all sizes, ten thousand a call, and as lines.

What is added at a time is added to groups of exactly the size that is said, on a server of its own,
and removed again; sizes take turns, so that whatever else the machine does hits all of them alike.
Bulk work is the same calls for every subject, into those groups of the world that are written to;
the subjects hold the same afterwards. Profiles are new at first: nobody has heard of them before.
Then the same ones are known, and join another group, as most do when segments are loaded.
"""

from __future__ import annotations

import random
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import click
import httpx
import msgspec

from bench import direct_adds
from bench.calls import Answer, Caller, Refused, Together, ask_all, latencies
from bench.direct_adds import WAYS, WHO
from bench.measurement import Sample, Step
from bench.serving import cpu_seconds
from bench.settling import settle
from bench.start import Kept, application, filled
from bench.world import BASE, WRITTEN
from service.groups import NewGroup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.direct_adds import Way, Who
    from bench.measurement import Bench, Setting, Subject
    from bench.start import Started
    from service.store import Store

SIZES = (1_000, 10_000, 100_000, 1_000_000)
LARGE = 10_000_000
SMOKE_SIZES = (100, 1_000)
KNOWN = 20_000
"""Profiles that are added one by one. They are in one group before, so each has a place already."""
SEED = 7
TURN = 50
"""One by one to one group, then the same to the next; what was added is removed: groups stay of
their size."""
FILLED = 100_000
"""Ids with which groups are filled at a time."""

CALL = 10_000
"""Ids of a bulk call: as many as one takes."""
CALLS_PER_SECOND = 4
"""Bulk calls of a sample, by the seconds of one: what is done is the same for all."""
CONNECTIONS = 4
"""Enough that there always is a call to work on."""

LINES_PER_SECOND = 40_000
"""The same for lines."""
PIECE = 1 << 16
"""Bytes of a body that are sent at a time."""


def steps(bench: Bench) -> list[Step]:
    """Give all: add one by size, bulk add by subject and its ceilings, lines."""
    return [*_add_one(bench), *_bulk_add(bench), *_lines(bench)]


# One at a time.


def _add_one(bench: Bench) -> list[Step]:
    sizes = SMOKE_SIZES if bench.smoke else (*SIZES, *((LARGE,) if bench.large else ()))
    kept = Kept(partial(_fill, sizes=sizes))

    def measure() -> dict[int, Sample]:
        with filled(bench, kept) as server:
            return _add_by_size(server, sizes, bench.seconds)

    together = Together(measure)
    return [
        Step("add one", "belong", "once", "us", {"group size": size}, together.part(size))
        for size in sizes
    ]


async def _fill(store: Store, sizes: tuple[int, ...]) -> None:
    """Make a group of each size, its size being its id, and one of those who are to be added.

    All groups take from the same profiles, so that as few as possible have to be there.
    """
    env = (await application(store)).production
    numbers = {}
    for size in (*sizes, 0):
        new = NewGroup(name=f"{size} members", id=_group_of(size))
        numbers[size] = (await store.groups.create_group(env, new)).number
    await store.members.add_members(env, numbers[0], b"".join(_known()))
    draw = random.Random(SEED + 1)
    with click.progressbar(
        length=max(sizes), label="filling groups of all sizes", file=sys.stderr
    ) as bar:
        for start in range(0, max(sizes), FILLED):
            packed = draw.randbytes(16 * min(FILLED, max(sizes) - start))
            for size in sizes:
                if size > start:
                    part = packed[: 16 * (size - start)]
                    await store.members.add_members(env, numbers[size], part)
            bar.update(len(packed) // 16)


def _known() -> list[bytes]:
    draw = random.Random(SEED)
    return [draw.randbytes(16) for _ in range(KNOWN)]


def _group_of(size: int) -> str:
    return str(UUID(int=size))


class _Size:
    """What was measured of one group: calls in seconds, processor time in ns, errors."""

    def __init__(self) -> None:
        self.took: list[float] = []
        self.spent = {"api us": 0, "store us": 0}
        self.errors = 0


def _add_by_size(server: Started, sizes: tuple[int, ...], seconds: float) -> dict[int, Sample]:
    """Add one by one to each group in turn, and remove what was added.

    An answer that does not name the one who was added is an error, and so is a member more or less
    at the end.
    """
    found = {size: _Size() for size in sizes}
    known = [str(UUID(bytes=each)) for each in _known()]
    # Different ones for each group: whoever is in more groups costs more.
    apart = KNOWN // len(sizes)
    with Caller("127.0.0.1", server.port) as caller:
        _turn(server, caller, sizes[0], known[:TURN], _Size())
        end = time.perf_counter() + seconds
        start = TURN
        while start == TURN or time.perf_counter() < end:
            # There and back, so that none always comes after the same other one.
            turns = [*enumerate(sizes)][:: -1 if start // TURN % 2 else 1]
            for at, size in turns:
                first = at * apart + start % apart
                _turn(server, caller, size, known[first : first + TURN], found[size])
            start += TURN
        for size, each in found.items():
            path = f"profile-groups/{_group_of(size)}/"
            count = caller.ask(server.request("GET", path)).read()["profile_count"]
            each.errors += abs(count - size)
    return _samples(found)


def _turn(server: Started, caller: Caller, size: int, chosen: list[str], found: _Size) -> None:
    path = f"profile-groups/{_group_of(size)}/members/"
    requests = [server.request("POST", path, {"profile_ids": [each]}) for each in chosen]
    before = _nanoseconds(server)
    for request in requests:
        answer = caller.ask(request)
        if _added(answer) == 1:
            found.took.append(answer.seconds)
        else:
            found.errors += 1
    for name, now in _nanoseconds(server).items():
        found.spent[name] += now - before[name]
    answer = caller.ask(server.request("DELETE", path, {"profile_ids": chosen}))
    found.errors += not answer.is_success


def _nanoseconds(server: Started) -> dict[str, int]:
    """Read the processor time of both processes, where the kernel tells it so exactly."""
    processes = {"api us": server.api, "store us": server.store}
    try:
        return {
            name: int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
            for name, pid in processes.items()
        }
    except FileNotFoundError:
        return {}


def _samples(found: dict[int, _Size]) -> dict[int, Sample]:
    """Give samples by size, each with how it compares to that of the smallest group."""
    histograms = {size: latencies(each.took) for size, each in found.items()}
    p50s = {size: each.get_value_at_percentile(50) for size, each in histograms.items()}
    return {
        size: Sample(
            float(p50s[size]),
            errors=each.errors,
            histogram=histograms[size],
            details={
                "p50": float(p50s[size]),
                "p99": float(histograms[size].get_value_at_percentile(99)),
                "to the smallest group": p50s[size] / max(p50s[min(p50s)], 1),
                **{
                    name: spent / 1000 / max(len(each.took), 1)
                    for name, spent in each.spent.items()
                    if spent
                },
            },
        )
        for size, each in found.items()
    }


# Ten thousand a call.


def _bulk_add(bench: Bench) -> list[Step]:
    call, calls, connections = _bulk_size(bench)
    fixed: dict[str, Setting] = {"ids a call": call, "calls": calls, "connections": connections}
    through = {
        name: Together(partial(_bulk_add_through, bench, subject))
        for name, subject in bench.subjects.items()
    }

    def directly(who: Who, way: Way) -> Step:
        belong = bench.subjects["belong"]
        many = calls // 2

        def measure() -> Sample:
            return direct_adds.measure(belong, way, who, calls=many, ids=call, together=connections)

        workload, some = f"bulk add of {who} profiles, {way}", {**fixed, "calls": many}
        return Step(workload, "belong", "once", "adds/s", some, measure)

    made = []
    for who in WHO:
        workload = f"bulk add of {who} profiles"
        made += [
            Step(workload, name, "once", "adds/s", fixed, both.part(who))
            for name, both in through.items()
        ]
        made += [directly(who, way) for way in WAYS]
    return made


def _bulk_size(bench: Bench) -> tuple[int, int, int]:
    if bench.smoke:
        return 200, 4, 2
    return CALL, max(CONNECTIONS, round(CALLS_PER_SECOND * bench.seconds)), CONNECTIONS


def _bulk_add_through(bench: Bench, subject: Subject) -> dict[Who, Sample]:
    """Add over HTTP profiles that are new, then the same ones, mixed, to other groups."""
    call, calls, connections = _bulk_size(bench)
    everybody = [str(uuid4()) for _ in range(call * calls)]
    half = WRITTEN // 2
    # What is drawn from all calls stands no longer together in memory, as it would never do.
    drawn: dict[Who, list[tuple[int, list[str]]]] = {
        "new": [(at % half, everybody[at * call :][:call]) for at in range(calls)],
        "known": [(half + at % half, everybody[at::calls]) for at in range(calls)],
    }
    samples = {}
    for who, added in drawn.items():
        requests = [
            subject.request(
                "POST",
                f"{BASE}/profile-groups/{bench.world.group_id(subject, group)}/members/",
                msgspec.json.encode({"profile_ids": ids}),
            )
            for group, ids in added
        ]
        samples[who] = _sent(subject, requests, connections, call * calls)
        settle(bench, subject)
    return samples


def _sent(subject: Subject, requests: list[bytes], connections: int, ids: int) -> Sample:
    """Send them all; every id has to be among those that the answers name as added."""
    before = _spent(subject)
    began = time.perf_counter()
    answers = ask_all(subject.host, subject.port, requests, connections)
    seconds = time.perf_counter() - began
    spent = _spent(subject)
    took = latencies(each.seconds for each in answers if each.is_success)
    missing = ids - sum(map(_added, answers))
    return Sample(
        (ids - missing) / seconds,
        errors=missing,
        histogram=took,
        details={
            **{each: 1e6 * (spent[each] - was) / ids for each, was in before.items()},
            "call p50, us": float(took.get_value_at_percentile(50)),
        },
    )


def _added(answer: Answer) -> int:
    try:
        return len(answer.read()["successfully_added"])
    except (Refused, msgspec.DecodeError, KeyError, TypeError):
        return 0


def _spent(subject: Subject) -> dict[str, float]:
    processes = {"api us": subject.api, "store us": subject.store}
    return {each: cpu_seconds(pid) for each, pid in processes.items() if pid}


# Lines.


def _lines(bench: Bench) -> list[Step]:
    many = 400 if bench.smoke else round(LINES_PER_SECOND * bench.seconds)
    together = Together(lambda: _change_lines(bench, many))
    return [
        Step(f"lines, {op}", "belong", "once", "lines/s", {"lines": many}, together.part(op))
        for op in ("add", "remove")
    ]


def _change_lines(bench: Bench, many: int) -> dict[str, Sample]:
    """Add everybody, then remove them: groups are what they were before."""
    belong = bench.subjects["belong"]
    groups = [bench.world.group_id(belong, at) for at in range(WRITTEN)]
    changes = [(groups[at % WRITTEN], str(uuid4())) for at in range(many)]
    samples = {}
    for op, done in (("add", "added"), ("remove", "removed")):
        samples[op] = _upload(belong, op, changes, done)
        settle(bench, belong)
    return samples


def _upload(belong: Subject, op: str, changes: list[tuple[str, str]], done: str) -> Sample:
    """Send one body of lines; every line has to have done what it says.

    The details have the memory of the API process before and at its peak. The body is longer than
    what it may hold at a time, so one that kept it would show.
    """
    body = b"".join(
        b'{"op":"%b","group_id":"%b","profile_id":"%b"}\n'
        % (op.encode(), group.encode(), profile.encode())
        for group, profile in changes
    )
    held = _memory(belong.api, "VmRSS")
    # From here on the peak is that of what follows.
    Path(f"/proc/{belong.api}/clear_refs").write_text("5")
    before = _spent(belong)
    began = time.perf_counter()
    answer = httpx.post(
        f"http://{belong.host}:{belong.port}{BASE}/memberships/bulk/",
        headers={
            "Authorization": f"Bearer {belong.token}",
            "Content-Type": "application/x-ndjson",
        },
        content=_pieces(body),
        timeout=600,
        trust_env=False,
    )
    seconds = time.perf_counter() - began
    spent = _spent(belong)
    answer.raise_for_status()
    told = msgspec.json.decode(answer.content.splitlines()[-1])
    return Sample(
        len(changes) / seconds,
        errors=len(changes) - told.get(done, 0),
        details={
            **{each: 1e6 * (spent[each] - was) / len(changes) for each, was in before.items()},
            "body, bytes": float(len(body)),
            "API before, bytes": held,
            "API at its peak, bytes": _memory(belong.api, "VmHWM"),
        },
    )


def _pieces(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]


def _memory(pid: int, what: str) -> float:
    """Read how much memory a process has, or had at most, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    [line] = [each for each in status if each.startswith(f"{what}:")]
    return 1024.0 * int(line.split()[1])
