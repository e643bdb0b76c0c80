"""An application object behind the protocol of an API process, in the loop of the test."""

from __future__ import annotations

import asyncio
import contextlib

import uvicorn

from service import api_process


class Running:
    """A server of one application object: `connect` opens a connection to it."""

    def __init__(self, app, server):
        self.app = app
        self.server = server
        self.port = server.servers[0].sockets[0].getsockname()[1]

    def unreadable(self, status):
        name = f"belong_http_unreadable_total\t{status}"
        return self.app.counters.snapshot().counters.get(name, 0)

    def answered(self, status):
        name = f"belong_http_requests_total\tPOST\t/oauth/token\t{status}"
        return self.app.counters.snapshot().counters.get(name, 0)


@contextlib.asynccontextmanager
async def listening(app, *, keep_alive_seconds=75):
    """Listen on a port of loopback, as an API process does."""
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        http=api_process._Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=keep_alive_seconds,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    ticking = asyncio.create_task(server.main_loop())
    try:
        yield Running(app, server)
    finally:
        server.should_exit = True
        await ticking
        await server.shutdown()


@contextlib.asynccontextmanager
async def connected(running):
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def said(reader, seconds=3.0):
    """Everything until the server closes."""
    async with asyncio.timeout(seconds):
        return await reader.read()
