"""The API process: what is answered to requests that are none, or do not come to their end.

uvicorn with our protocol runs in the loop of the test, with short patience.
"""

from __future__ import annotations

import asyncio

import pytest

from service import api_process
from service.app import create_app
from service.config import Config
from tests.client import GROUPS
from tests.listening import connected, listening, said

HEAD = b"POST /oauth/token HTTP/1.1\r\nhost: x\r\n"


@pytest.fixture
def patience(monkeypatch):
    """How long the server of the test waits, in seconds: for a head, for a body."""
    monkeypatch.setattr(api_process, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(api_process._Protocol, "_patience", 0.3)
    monkeypatch.setattr(api_process, "HURRY_SECONDS", 0.1)


@pytest.fixture
async def running(api, patience):
    app = create_app(Config(request_log="off"), api.store)
    async with listening(app, keep_alive_seconds=1) as found:
        yield found


@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\n", HEAD])
async def test_a_head_that_does_not_come_to_its_end_is_408(running, sent):
    async with connected(running) as (reader, writer):
        writer.write(sent)
        answer = await said(reader)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert 1 == running.unreadable(408)


async def test_a_head_that_trickles_is_not_waited_for_any_longer(running):
    async with connected(running) as (reader, writer):
        began = asyncio.get_running_loop().time()

        async def trickle():
            for byte in HEAD * 5:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        answer = await said(reader)
        trickling.cancel()
        assert asyncio.get_running_loop().time() - began < 1
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_a_head_in_pieces_is_answered(running):
    async with connected(running) as (reader, writer):
        for piece in (b"GET /hea", b"lthz HTTP/1.1\r\nho", b"st: x\r\n\r\n"):
            writer.write(piece)
            await asyncio.sleep(0.05)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        await asyncio.sleep(0.4)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert b"HTTP/1.1 200 " in await said(reader)
    assert 0 == running.unreadable(408)


async def test_a_body_that_stands_still_is_408_with_the_id_of_its_request(running):
    async with connected(running) as (reader, writer):
        writer.write(HEAD + b"x-request-id: mine\r\ncontent-length: 100\r\n\r\n{")
        answer = await said(reader)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"x-request-id: mine\r\n" in answer
    await asyncio.sleep(0.05)
    assert 1 == running.answered(408)
    assert 0 == running.unreadable(408)


async def test_a_body_that_moves_on_is_read_however_long_it_takes(running):
    body = b'{"grant_type":"nothing"}'
    async with connected(running) as (reader, writer):
        head = HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        writer.write(head)
        for byte in body:
            await asyncio.sleep(0.05)
            writer.write(bytes([byte]))
        answer = await said(reader)
    assert b"unsupported_grant_type" in answer
    assert 1 == running.answered(400)


async def test_a_body_that_we_do_not_read_yet_is_waited_for(running, monkeypatch):
    gate = asyncio.Event()
    original = running.app._answer

    async def slow(scope, receive, send):
        await gate.wait()
        await original(scope, receive, send)

    running.app._answer = slow
    body = b"{" + b" " * 200_000 + b'"grant_type":"nothing"}'
    async with connected(running) as (reader, writer):
        writer.write(HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % (len(body) + 1))
        writer.write(body)
        await asyncio.sleep(0.8)
        gate.set()
        await asyncio.sleep(0.1)
        writer.write(b" ")
        answer = await said(reader)
    assert answer.startswith(b"HTTP/1.1 4")
    assert not answer.startswith(b"HTTP/1.1 408")


async def test_an_answered_request_whose_body_never_ends_is_closed(running):
    async with connected(running) as (reader, writer):
        writer.write(b"POST /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        answer = await said(reader, 8)
    assert answer.startswith(b"HTTP/1.1 40")


async def test_a_connection_that_asks_nothing_is_closed_like_an_idle_one(running):
    async with connected(running) as (reader, _):
        assert b"" == await said(reader)
    assert 0 == running.unreadable(408)


async def test_a_stalled_body_does_not_hold_up_the_end(running, monkeypatch):
    monkeypatch.setattr(api_process._Protocol, "_patience", 60)
    async with connected(running) as (reader, writer):
        writer.write(HEAD + b"content-length: 100\r\n\r\n{")
        await asyncio.sleep(0.3)
        running.server.should_exit = True
        running.server.servers[0].close()
        for connection in list(running.server.server_state.connections):
            connection.shutdown()
        assert (await said(reader)).startswith(b"HTTP/1.1 408 ")


async def test_what_is_no_http_is_400_and_counted(running):
    async with connected(running) as (reader, writer):
        writer.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert (await said(reader)).startswith(b"HTTP/1.1 400 ")
    assert 1 == running.unreadable(400)


async def test_a_head_over_the_limit_is_431_and_counted(running):
    async with connected(running) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n" + b"x-a: %b\r\n" % (b"x" * 10_000) * 8)
        assert (await said(reader)).startswith(b"HTTP/1.1 431 ")
    assert 1 == running.unreadable(431)


async def test_a_head_request_has_no_body(running):
    async with connected(running) as (reader, writer):
        writer.write(b"HEAD /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = await said(reader)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n")
    assert b"content-length: 15\r\n" in answer
    assert b"x-request-id: " in answer


async def test_requests_sent_ahead_are_answered_one_by_one(running):
    async with connected(running) as (reader, writer):
        get = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
        last = b"GET %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % GROUPS.encode()
        writer.write(get * 3 + last)
        answer = await said(reader)
    assert 3 == answer.count(b"HTTP/1.1 200 ")
    assert 1 == answer.count(b"HTTP/1.1 401 ")
