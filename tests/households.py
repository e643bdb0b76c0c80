"""Households of one definition, and processes of their own that do what requests do to them.

What is stored is compared with `tests/naive.py`. Processes are forks of one server that has
imported everything, since an import takes longer than most of what they do; each has its own
connection and its own copy of all that a process keeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import time
from typing import TYPE_CHECKING, Any

import uvloop

from service import faults, store_jobs
from service.aggregation import values_of
from service.attributes import as_attribute
from service.batches import read_batch
from service.errors import NotFound, Unavailable
from service.grouping import GroupAttribute
from service.store import Store
from service.store_definitions import DefinitionChanges, NewDefinition
from service.store_records import ProfileChanges
from service.worker import work
from tests.face import inherited, of_profile
from tests.naive import Group, Share, User, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.connection import Connection

    from service.environment import Application, Environment

SHARES = (("x", "sum"), ("n", "count"), ("last", "latest"), ("dog", "boolean_or"))
HOUSEHOLD = Group("household", "$address", tuple(Share(*each) for each in SHARES))
PATIENCE_SECONDS = 60
LEASE_US = 200_000

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["pytest", "tests.households"])


class Process:
    """A process that does what it is told, with a clock that is wrong by some seconds."""

    def __init__(self, url: str, skew_seconds: float = 0) -> None:
        self._ours, theirs = _forks.Pipe()
        self._process = _forks.Process(target=_serve, args=(url, theirs, skew_seconds))
        self._process.start()
        theirs.close()

    def tell(self, *todo: dict[str, Any]) -> None:
        """Begin to do things, one after another."""
        self._ours.send(todo)

    def answer(self) -> None:
        """Wait until they are done."""
        assert self._ours.poll(PATIENCE_SECONDS), f"no answer after {PATIENCE_SECONDS} s"
        assert self._ours.recv() == "done"

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        self._process.kill()
        self._process.join()

    def end(self) -> None:
        """Let it end by itself, and see to it."""
        self._ours.close()
        self._process.join(5)
        self._process.kill()
        self._process.join()


@contextlib.contextmanager
def processes(url: str, *skews: float) -> Iterator[list[Process]]:
    """Start a process for each wrong clock, and wait until all can begin."""
    started = [Process(url, skew) for skew in skews]
    try:
        for each in started:
            each.tell()
        for each in started:
            each.answer()
        yield started
    finally:
        for each in started:
            each.end()


def _serve(url: str, pipe: Connection, skew_seconds: float) -> None:
    """What a process does: things that it is told, until there are no more."""
    # Nobody waits ten seconds to take over what the worker of a test had, and was killed.
    store_jobs.LEASE_US = LEASE_US
    true_time = time.time_ns
    time.time_ns = lambda: true_time() + int(skew_seconds * 1e9)

    async def run() -> None:
        store = await Store.open(url)
        [application] = await store.registry.list_applications()
        with contextlib.suppress(EOFError):
            while True:
                for todo in await asyncio.to_thread(pipe.recv):
                    await repeated(store, application.production, todo)
                pipe.send("done")
        await store.close()

    # As API processes have it.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def killed_at(point: str, url: str, operation: Callable[..., Any]) -> int | None:
    """Run an operation in a process that is to die at a fault point; its exit code."""
    process = _forks.Process(target=_run_armed, args=(point, url, operation))
    process.start()
    process.join(PATIENCE_SECONDS)
    code = process.exitcode
    process.kill()
    process.join()
    return code


def _run_armed(point: str, url: str, operation: Callable[..., Any]) -> None:
    # As BELONG_FAULT does it, which is read at import.
    faults._ARMED = point

    async def run() -> None:
        store = await Store.open(url)
        [application] = await store.registry.list_applications()
        await operation(store, application.production)

    asyncio.run(run())


async def repeated(store: Store, env: Environment, todo: dict[str, Any]) -> None:
    """The same as `do`, as a client does it whom others are in the way of."""
    for _ in range(50):
        try:
            return await do(store, env, todo)
        except Unavailable:
            await asyncio.sleep(0.02)
    message = f"never done: {todo}"
    raise TimeoutError(message)


async def do(store: Store, env: Environment, todo: dict[str, Any]) -> None:
    """What a request does: write facts, and derive what follows. `todo` is a batch, mostly."""
    [application] = await store.registry.list_applications()
    if "erase" in todo:
        with contextlib.suppress(NotFound):
            await store.profiles.erase_profile(env, bytes.fromhex(todo["erase"]))
    elif "share" in todo:
        changes = DefinitionChanges(
            source_user_attribute=todo["of"],
            attributes=tuple(GroupAttribute(*each) for each in todo["share"]),
        )
        await store.definitions.update_definition(application, "household", changes, "test")
    elif "limit" in todo:
        await store.registry.update_application("test", users_per_group=todo["limit"])
        await store.definitions.follow_settings("test")
    elif "work" in todo:
        await work(store, grace_us=0)
    elif "rule" in todo:
        from tests import audiences

        await audiences.rule(store, env, todo["rule"], todo["tree"])
    elif "add" in todo:
        number = await store.groups.number_of(env, todo["to"])
        await store.members.add_members(env, number, bytes.fromhex(todo["add"]))
    elif "remove" in todo:
        number = await store.groups.number_of(env, todo["of"])
        await store.members.remove_members(env, number, bytes.fromhex(todo["remove"]))
    elif "patch" in todo:
        attributes = {name: json.dumps(value).encode() for name, value in todo["to"].items()}
        id16 = bytes.fromhex(todo["patch"])
        await store.records.update_profile(env, id16, ProfileChanges(attributes=attributes))
        await store.derivation.derive_profiles(env, [env.mixer.mix(id16)])
    else:
        done = await store.ingest.write_batches(env, [read_batch(json.dumps(todo).encode())])
        assert bytes(done.letters) in (b"+", b"="), done.letters
        if done.dirty:
            await store.derivation.derive_profiles(env, done.dirty)


async def catch_up(store: Store) -> None:
    """Do what the worker does until no job is left, and look once more at everything."""
    [application] = await store.registry.list_applications()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        await work(store, grace_us=0)
        if all(each.is_over for each in await store.jobs.list_jobs(application)):
            break
        assert time.monotonic() < deadline, "a job is never done"
        await asyncio.sleep(0.02)
    await work(store, grace_us=0)


async def define(store: Store, application: Application, limit: int = 10) -> Environment:
    """Create the definition, with a limit of users."""
    if limit != 10:
        application = await store.registry.update_application(
            application.client_id, users_per_group=limit
        )
    definition = NewDefinition(
        id="household",
        source_user_attribute="$address",
        attributes=tuple(GroupAttribute(*each) for each in SHARES),
    )
    await store.definitions.create_definition(application, definition, "test")
    await work(store, grace_us=0)
    return application.production


async def mixed_ids(store: Store, env: Environment, mpids: Iterable[int]) -> dict[int, bytes]:
    """What users are called inside the store, as many of them as there are."""
    wanted = [str(mpid) for mpid in mpids]
    found = await store.profiles.resolve_identities(env, "mpid", wanted, create=False)
    return {
        int(mpid): env.mixer.mix(each)
        for mpid, each in zip(wanted, found, strict=True)
        if each is not None
    }


async def as_stored(store: Store, env: Environment, mixed: bytes) -> User:
    """A user of the model with the facts that the store has, whoever decided about them."""
    record = await of_profile(store, env, "profile", mixed)
    mpid = record.get(b"mpid")
    user = User(mixed, None if mpid is None else int(mpid))
    for name, held in (await of_profile(store, env, "attributes", mixed)).items():
        attribute = as_attribute(name, held)
        if attribute is not None:
            # First as of when the value came, which decides about places.
            value = json.loads(attribute.value)
            user.write(attribute.name, value, attribute.since_us)
            user.write(attribute.name, value, attribute.time_us)
    return user


async def exact(store: Store, env: Environment, world: World) -> None:
    """See to it that all that is derived is what follows from the facts of a world."""
    rules = await store.definitions.rules(env)
    [definition] = rules.definitions
    households = {
        env.mixer.instance_id(env.number, definition.number, each.value): each
        for each in world.households().values()
    }
    records = await asyncio.gather(
        *(of_profile(store, env, "instances", user.mixed) for user in world.users)
    )
    for user, listed in zip(world.users, records, strict=True):
        assert world.inherited(user) == inherited(rules, listed)
        assert [iid for iid, each in households.items() if user in each.everybody] == list(listed)
    found = await store.instances.read(env, list(households))
    for household, instance in zip(households.values(), found, strict=True):
        assert instance is not None
        assert [each.mixed for each in household.counted] == [
            each.mixed for each in instance.counted
        ]
        assert len(household.everybody) == instance.total
        values = values_of(definition, instance)
        assert {name: each.value for name, each in household.values.items()} == {
            name: json.loads(each.value) for name, each in values.items()
        }
