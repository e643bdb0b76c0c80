"""Looking at definitions: the rules of an application, what partitions know of them, and jobs.

What is held against the rules (`look_derived`) has to know whether everything is to follow from
facts now, or is on its way: `Book` says so, one per application, read as seldom as can be.
"""

from __future__ import annotations

import asyncio
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from service import keys
from service.grouping import AGGREGATIONS, Rules
from service.store_definitions import decode_rules
from service.store_jobs import Job, decode_job, monday_before
from service.verify.findings import Finding, Unit, now_us, shown, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.environment import Environment
    from service.verify.findings import Census

    Wrong = tuple[str, bytes, str]


class Watch(NamedTuple):
    """What a partition knows: the version of the rules as it is held, and names it watches."""

    version: bytes | None
    names: frozenset[bytes]


class Book:
    """What the directory of an application knows of definitions and jobs, at one moment.

    `is_going`: the application is being deleted.
    """

    def __init__(self, held: list[Any], *, is_going: bool = False) -> None:
        """Take what `verify_rules` answers."""
        self.is_going = is_going
        self.raw: bytes | None = held[0]
        self.installing: bytes | None = held[1]
        self.weekly: bytes | None = held[2]
        self.jobs: dict[bytes, bytes] = dict(zip(held[3][::2], held[3][1::2], strict=True))
        self.built: dict[bytes, bytes] = dict(zip(held[4][::2], held[4][1::2], strict=True))

    @cached_property
    def rules(self) -> Rules | None:
        """The rules; None: they cannot be read."""
        return readable_rules(self.raw)

    @cached_property
    def open_jobs(self) -> list[Job]:
        """Jobs that wait or run."""
        return [job for job in self._readable_jobs if not job.is_over]

    @cached_property
    def _readable_jobs(self) -> list[Job]:
        found = [readable_job(raw) for raw in self.jobs.values()]
        return [job for job in found if job is not None]

    @cached_property
    def walks(self) -> list[Job]:
        """Jobs that wait or run, and walk over profiles: all but those that save a query."""
        return [job for job in self.open_jobs if not job.is_save]

    @cached_property
    def has_failed(self) -> bool:
        """Whether a job failed that is remembered: what it was to build is tried again hourly."""
        return any(job.state == "failed" and not job.is_save for job in self._readable_jobs)

    @cached_property
    def is_walking_all(self) -> bool:
        """Whether a job that looks at everybody by everything waits or runs."""
        wanted, done = (whole(self.built.get(name)) or 0 for name in (b"wanted", b"whole"))
        return any(
            job.whole if job.decided else wanted > done or (job.whole and not wanted)
            for job in self.walks
        )

    @cached_property
    def why_behind(self) -> str | None:
        """Say why what follows from facts may not be there yet; None: all of it has to be.

        But for what is marked as behind itself.
        """
        if self.is_going:
            return "it is being deleted"
        if self.rules is None:
            return "its rules cannot be read"
        if self.rules.weekly:
            return "its users are grouped on Mondays"
        if self.installing is not None:
            return "its partitions are being told of new rules"
        if self.is_walking_all:
            return "a job waits or runs"
        return None

    @property
    def settled(self) -> bool:
        """Whether all that follows from facts has to be there, but for what is marked as behind."""
        return self.why_behind is None


def readable_rules(raw: bytes | None) -> Rules | None:
    """Read stored rules; None: nobody can."""
    try:
        return decode_rules(raw)
    except (ValueError, RecursionError):
        return None


def readable_job(raw: bytes | None) -> Job | None:
    """Read a stored job; None: nobody can."""
    try:
        return None if raw is None else decode_job(raw)
    except (ValueError, RecursionError):
        return None


async def book(census: Census, tag: bytes) -> Book:
    """Give what is known of the rules of the application that a tag belongs to."""
    home = census.places[tag].env.rules_home
    held = census.books.get(home)
    if held is None:
        kinds = ("rules", "installing", "weekly", "jobs", "built")
        declared = [keys.key(home, kind) for kind in kinds]
        answer = await census.call("verify_rules", declared, [])
        held = census.books[home] = Book(answer, is_going=_is_going(census, home))
    return held


def _is_going(census: Census, home: bytes) -> bool:
    """Whether the application whose rules are kept there is being deleted."""
    return any(
        document.deleting_since_us is not None
        and keys.directory(document.environments["production"].number) == home
        for document in census.documents.values()
    )


async def watches(census: Census, env: Environment) -> dict[bytes, Watch]:
    """Read what the partitions of an environment know, by their tags."""
    held = await asyncio.gather(
        *(
            census.call("verify_watch", [keys.key(tag, "rules"), keys.key(tag, "watch")], [])
            for tag in env.partitions
        )
    )
    return {
        tag: Watch(version, frozenset(names))
        for tag, (version, *names) in zip(env.partitions, held, strict=True)
    }


def environments(census: Census, home: bytes) -> list[Environment]:
    """Give the environments of the application whose rules are kept there."""
    return [
        place.env
        for place in census.places.values()
        if place.partition is None and place.env.rules_home == home
    ]


async def look_rules(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at the rules of an application: as a document, in every partition, and its jobs."""
    home = census.places[tag].env.rules_home
    label = census.label(home)
    unit = Unit("rules", home, names[0])
    if tag != home:
        text = f"{census.label(tag)}: has definitions or jobs of its own, those of {label} count"
        return [Finding(Unit("rules", tag, names[0]), "misplaced", b"", text)]
    census.books.pop(home, None)
    census.rulebooks.pop(home, None)
    known = await book(census, home)
    if known.is_going:
        # Directory and partitions are cleared one after another.
        return []
    if known.rules is None:
        text = f"{label}: the rules are {shown(known.raw or b'')}, which nobody can read"
        found = [Finding(unit, "document", b"", text)]
    else:
        wrong = [*_wrong_rules(known.rules), *_wrong_version(known)]
        found = [Finding(unit, what, about, f"{label}: {said}") for what, about, said in wrong]
        for env in environments(census, home):
            for where, watch in (await watches(census, env)).items():
                said = _wrong_watch(known, known.rules, watch)
                if said is not None:
                    place = census.places[where]
                    text = f"{place.label}: partition {place.partition} {said}"
                    found.append(Finding(unit, "watch", where, text))
    wrong = [*_wrong_jobs(known), *_wrong_monday(known)]
    found += [Finding(unit, what, about, f"{label}: {said}") for what, about, said in wrong]
    return found


def _wrong_rules(rules: Rules) -> Iterator[Wrong]:
    """Say what rules cannot be."""
    seen: set[str] = set()
    numbers: set[int] = set()
    for each in rules.definitions:
        name = each.id.encode()
        if each.id in seen or each.number in numbers:
            yield "definition", name, f"two definitions are {shown(name)}, or have its number"
        seen.add(each.id)
        numbers.add(each.number)
        inside = range(1, rules.version + 1)
        if each.number not in inside or any(one.since not in inside for one in each.attributes):
            text = f"definition {shown(name)} came after version {rules.version} of the rules"
            yield "ahead", name, text
        if any(one.type not in AGGREGATIONS for one in each.attributes):
            yield "definition", name, f"definition {shown(name)} has an unknown aggregation"


def _wrong_version(known: Book) -> Iterator[Wrong]:
    if known.installing is not None and known.rules is not None:
        version = whole(known.installing)
        if version != known.rules.version:
            text = (
                f"partitions are to be told of version {shown(known.installing)} of the rules, and"
                f" they are of version {known.rules.version}"
            )
            yield "installing", b"", text


def _wrong_watch(known: Book, rules: Rules, watch: Watch) -> str | None:
    """Say what is wrong with what a partition knows, None if nothing is."""
    version = whole(watch.version) if watch.version is not None else 0
    if version is None:
        return f"knows version {shown(watch.version or b'')} of the rules, which is none"
    if version != rules.version:
        if known.installing is not None and version < rules.version:
            return None
        return f"knows version {version} of the rules, and they are of version {rules.version}"
    if watch.names != {name.encode() for name in rules.watched}:
        return "does not watch the attributes that the rules name"
    return None


def _wrong_jobs(known: Book) -> Iterator[Wrong]:
    for name, raw in known.jobs.items():
        job = readable_job(raw)
        if job is None or job.id.encode() != name:
            yield "job", name, f"job {shown(name)} is none"
        elif _is_odd(job):
            yield "job", name, f"job {job.id} is to do what no job does"
    for state in ("queued", "running"):
        # Of those that save a query several may wait.
        jobs = [
            job
            for job in known.open_jobs
            if job.state == state and (state == "running" or not job.is_save)
        ]
        for job in jobs[1:]:
            yield "job", job.id.encode(), f"job {job.id} is {state} beside {jobs[0].id}"


def _is_odd(job: Job) -> bool:
    """Whether a job is to save no group, or builds groups that cannot be, or beside everything."""
    if job.is_save:
        return job.group < 1 or job.whole or bool(job.groups)
    if job.group or job.position or min(job.groups, default=1) < 1:
        return True
    return bool(job.groups) and (job.whole or not job.decided)


def _wrong_monday(known: Book) -> Iterator[Wrong]:
    if known.weekly is not None:
        at = whole(known.weekly)
        if at is None or monday_before(at) != at or at > now_us():
            yield "weekly", b"", f"the last weekly run was due at {shown(known.weekly)}"
