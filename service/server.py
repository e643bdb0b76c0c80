"""`belong serve`: the supervisor, and the two programs that it runs beside the store.

The supervisor owns the listening socket and three children, each in a session of its own: the
embedded store, gunicorn's master with the API processes, and the background worker. It starts again
what dies, and stops them in the order that lets requests in flight be answered, the store last.
Whoever is left without a parent ends by itself. What the API answers is none of its business.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import http.client
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import uvloop

from service import auth, config, signing, worker
from service.api_process import BACKLOG, GRACEFUL_SECONDS, ORPHAN_SECONDS, Gunicorn
from service.counters import Counters, Directory
from service.embedded import EmbeddedServer
from service.errors import BelongError, Conflict, Unavailable, Unusable
from service.groups import NewGroup
from service.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from service.config import Config

log = logging.getLogger("belong")

_TURN_SECONDS = 0.1
_READY_SECONDS = 0.3
_FOLD_SECONDS = 1.0
_WORKER_STOP_SECONDS = 10.0
_STORE_PATIENCE_SECONDS = 3.0
# What ran for this long before it ended begins anew to count its failures.
_STEADY_SECONDS = 10.0
_MOST_FAILURES = 6
_LOG_FORMAT = "[%(asctime)s] [%(process)d] [%(levelname)s] %(message)s"


def configure_logging(level: str) -> None:
    """Send what we and our libraries log to stderr, in the form that gunicorn has too."""
    logging.basicConfig(format=_LOG_FORMAT, datefmt="%Y-%m-%d %H:%M:%S %z", level=logging.WARNING)
    for name in ("belong", "service"):
        logging.getLogger(name).setLevel(level.upper())
    # Its warnings are about requests that were no HTTP, one line each: anybody can send those.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


def serve(settings: Config, *, demo: bool = False) -> None:
    """Run everything until SIGINT or SIGTERM. Raises BelongError where it cannot (go on)."""
    _Supervisor(settings, demo=demo).run()


def work(url: str, parent: int | None = None, metrics: Path | None = None) -> None:
    """Run the background worker until SIGINT or SIGTERM, or until the parent is gone.

    What it counts it writes down in the directory `metrics`.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_work(url, parent, metrics))


async def _work(url: str, parent: int | None, metrics: Path | None) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)

    def look() -> None:
        if os.getppid() == parent:
            loop.call_later(_TURN_SECONDS, look)
        else:
            stop.set()
            loop.call_later(ORPHAN_SECONDS, os._exit, 1)

    if parent is not None:
        look()
    await worker.run(url, stop, Counters("worker", metrics))


# --- the supervisor


class _Child:
    """A child process that is started again when it ends, later each time, and not for ever."""

    def __init__(self, name: str, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.name = name
        self.process: subprocess.Popen[bytes] | None = None
        self._start = start
        self._again = _Again(name)

    def tend(self) -> None:
        """Start it if it does not run and its time has come; Unusable if it ends all the time."""
        if self.process is not None and (code := self.process.poll()) is not None:
            log.warning("the %s ended with status %d: starting it again", self.name, code)
            self.process = None
            self._again.failed()
        if self.process is None and self._again.due():
            self.process = self._start()

    def stop(self, seconds: float, hasten: Callable[[], bool]) -> None:
        """Ask it to stop; kill it and its own children after that time, or when told to hasten."""
        process, self.process = self.process, None
        if process is None:
            return
        process.terminate()
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline and not hasten():
            time.sleep(_TURN_SECONDS / 2)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # each leads a group of its own
            process.wait()


class _Again:
    """When something that ended may be started again: at once, then later and later."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._failures = 0
        self._not_before = 0.0
        self._started = 0.0

    def failed(self) -> None:
        """Note that it ended. Unusable if it did so too often without having run for a while."""
        now = time.monotonic()
        self._failures = 1 if now - self._started > _STEADY_SECONDS else self._failures + 1
        if self._failures > _MOST_FAILURES:
            raise Unusable(f"The {self._name} ended {self._failures} times in a row: giving up.")
        self._not_before = now + _TURN_SECONDS * (2 ** (self._failures - 1) - 1)

    def due(self) -> bool:
        """Whether it may be started now, and note that it is."""
        if (now := time.monotonic()) < self._not_before:
            return False
        self._started = now
        return True


class _Supervisor:
    def __init__(self, settings: Config, *, demo: bool) -> None:
        self._settings = settings
        self._demo = demo
        self._signals = 0
        self._store: EmbeddedServer | None = None
        if settings.redis_url is None:
            self._store = EmbeddedServer(settings.data_dir, appendfsync=settings.appendfsync)
        self._store_again = _Again("store")
        self._children = [
            _Child("API", lambda: self._spawn("api", self._listener.fileno())),
            _Child("worker", lambda: self._spawn("worker")),
        ]

    def run(self) -> None:
        with (
            _listen(self._settings) as self._listener,
            self._handlers(),
            _metrics_directory() as self._metrics,
        ):
            self._base = _base_url(self._listener)
            try:
                if self._start_store():
                    # Its file is beside the data; the children get it with the settings.
                    key = signing.secret_key(self._settings, make=True)
                    self._settings = msgspec.structs.replace(self._settings, secret_key=key)
                    welcome = asyncio.run(self._prepare())
                    self._tend(welcome)
            finally:
                self._stop()

    @property
    def _url(self) -> str:
        url = self._settings.redis_url if self._store is None else self._store.url
        assert url is not None  # noqa: S101 - there is an embedded store exactly where it is None
        return url

    def _start_store(self) -> bool:
        """Start the store or attach to it. False if a signal came meanwhile."""
        if self._store is None:
            return True
        if not self._store.start(lambda: self._signals > 0):
            return False
        how = "started" if self._store.owned else "found: another belong serve runs it"
        log.info("embedded store %s, data in %s", how, self._store.data_dir)
        return True

    async def _prepare(self) -> str:
        """See that the store can be used; give the text that `--demo` prints."""
        store = await _open(self._url)
        try:
            return await _demo(store, self._base) if self._demo else ""
        finally:
            await store.close()

    def _tend(self, welcome: str) -> None:
        ready = False
        folded = time.monotonic()
        while not self._signals:
            self._tend_store()
            for child in self._children:
                child.tend()
            if time.monotonic() > folded + _FOLD_SECONDS:
                self._metrics.fold()
                folded = time.monotonic()
            if not ready and (ready := _answers(self._base)):
                log.info("ready: %s", self._base)
                sys.stdout.write(welcome)
                sys.stdout.flush()
            time.sleep(_TURN_SECONDS)

    def _tend_store(self) -> None:
        if self._store is None:
            return
        if self._store.alive():
            self._store.tend()
            return
        before = self._url
        log.warning("the store is gone: starting it again")
        self._store_again.failed()
        while not self._store_again.due() and not self._signals:
            time.sleep(_TURN_SECONDS)
        if self._start_store() and self._url != before:
            # Another user's serve with another runtime directory started it.
            self._stop_children()

    def _spawn(self, program: str, *descriptors: int) -> subprocess.Popen[bytes]:
        environment = self._settings.environment(redis_url=self._url)
        root = str(Path(__file__).resolve().parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join(
            path for path in (root, environment.get("PYTHONPATH")) if path
        )
        # -P: a folder named `service` in somebody's working directory is not ours.
        return subprocess.Popen(  # noqa: S603 - ourselves
            [
                *(sys.executable, "-P", "-c", "from service import server; server.child()"),
                *(program, str(os.getpid()), str(self._metrics.path), *map(str, descriptors)),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            start_new_session=True,
        )

    def _stop(self) -> None:
        if self._signals:
            log.info("stopping")
        self._listener.close()
        self._stop_children()
        if self._store is not None:
            self._store.stop()

    def _stop_children(self) -> None:
        api, background = self._children
        api.stop(GRACEFUL_SECONDS + 5, lambda: self._signals > 1)
        background.stop(_WORKER_STOP_SECONDS, lambda: self._signals > 1)

    @contextlib.contextmanager
    def _handlers(self) -> Iterator[None]:
        def note(_number: int, _frame: FrameType | None) -> None:
            self._signals += 1

        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _listen(settings: Config) -> socket.socket:
    """Take the port. The supervisor keeps it, so that callers wait while gunicorn starts again."""
    host, port = settings.address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both
        )
    except OSError as error:
        # create_server adds the address, in words of its own.
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise Unusable(f"Cannot listen on {settings.bind}: {reason}. Use another --bind.") from None


def _metrics_directory() -> Directory:
    """Make the directory in which the processes put together what they count."""
    try:
        return Directory(config.scratch_directories())
    except OSError as error:
        raise Unusable(f"There is no place for temporary files: {error}.") from None


def _base_url(listener: socket.socket) -> str:
    """Give a URL that reaches the socket from this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound, asked
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _answers(base: str) -> bool:
    """Whether an API process answers."""
    connection = http.client.HTTPConnection(base.removeprefix("http://"), timeout=_READY_SECONDS)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


async def _open(url: str) -> Store:
    """Open the store, with some patience for one that is just being started."""
    deadline = time.monotonic() + _STORE_PATIENCE_SECONDS
    while True:
        try:
            return await Store.open(url)
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(_TURN_SECONDS)


async def _demo(store: Store, base: str) -> str:
    """Make the demo application, unless it is there; give a token and three calls to print."""
    registry = store.registry
    application = await registry.application("demo")
    if application is None:
        try:
            application = await registry.create_application("demo", workspace_id=1, name="Demo")
        except Conflict:
            # Somebody made an application first, and has the workspace.
            application = await registry.create_application("demo", name="Demo")
    new = NewGroup(name="Early adopters", custom_id="early-adopters")
    with contextlib.suppress(Conflict):
        await store.groups.create_group(application.production, new)
    token = await auth.mint(registry, applications=["demo"], scopes=["admin"], subject="demo")
    api = f"{base}/api/v1/applications/demo"
    curl = f'curl -sS -H "Authorization: Bearer {token}"'
    pair = '{"pairs":[{"custom_id":"alice","group_id":"early-adopters"}]}'
    return f"""
The application "demo" has a group "early-adopters". A token for it, good for 8 hours:

{token}

Put alice and bob into the group, ask who is in it, ask whether alice is:

{curl} {api}/profile-groups/early-adopters/members/ -d '{{"custom_ids":["alice","bob"]}}'
{curl} {api}/profile-groups/early-adopters/members/
{curl} {api}/memberships/check/ -d '{pair}'

"""


# --- the children


def child() -> None:
    """Be one of the supervisor's children.

    `api <parent> <directory of metrics> <descriptor>` or `worker <parent> <directory of metrics>`.
    """
    program, parent, metrics, *descriptors = sys.argv[1:]
    settings = config.load()
    configure_logging(settings.log_level)
    # Where the kernel can tell us that the parent died, it does; everywhere we look for ourselves.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
    if program == "api":
        Gunicorn(settings, int(parent), Path(metrics), int(descriptors[0])).run()
        return
    assert settings.redis_url is not None  # noqa: S101 - the supervisor says it
    try:
        work(settings.redis_url, int(parent), Path(metrics))
    except BelongError as error:
        sys.exit(f"belong: {error}")
