"""What is noted of a request: its id, wherever it ends, and its line in the log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
from typing import Any

import falcon.testing
import pytest

from service import auth, config, faces
from service.app import create_app
from service.config import Config
from service.counters import Counters
from service.endpoint import Request
from service.errors import Unavailable
from tests.client import GROUPS, HOST, P1

SECRET = "a-very-secret-value"


class Logged:
    """An application object whose log is read by the test."""

    def __init__(self, conductor, reading, token):
        self.conductor = conductor
        self._reading = reading
        self._token = token

    async def call(self, method, path, body=None, **headers):
        sent = {"Authorization": f"Bearer {self._token}"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        return await self.conductor.simulate_request(
            method, path, body=body, headers=sent, host="belong.test", remote_addr="192.0.2.7"
        )

    def text(self):
        os.set_blocking(self._reading, False)
        text = b""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._reading, 65536):
                text += part
        return text.decode()

    def lines(self):
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture
async def logged(api, request):
    """An application object that logs `all`, or what the test's parameter says."""
    reading, writing = os.pipe()
    token = await auth.mint(
        api.store.registry, applications=["demo"], scopes=["admin"], subject="somebody"
    )
    settings = config.load({"request_log": getattr(request, "param", "all")}, {})
    app = create_app(settings, api.store)
    app.log._descriptor = writing
    async with falcon.testing.ASGIConductor(app) as conductor:
        yield Logged(conductor, reading, token)
    os.close(reading)
    os.close(writing)


async def test_what_a_stop_cuts_off_is_told_so_and_logged(api):
    """uvicorn answered in plain text, logged a traceback, and the request log had no line."""
    app = create_app(Config(request_log="errors"), api.store)
    reading, app.log._descriptor = os.pipe()
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        await asyncio.sleep(60)

    scope = falcon.testing.create_scope(
        path=f"{GROUPS}/",
        method="POST",
        headers={"Authorization": f"Bearer {api.admin.token}", "Content-Length": "9"},
    )
    answering = asyncio.create_task(app(scope, receive, send))
    await asyncio.sleep(0.05)
    answering.cancel("Task cancelled, timeout graceful shutdown exceeded")
    await answering
    await asyncio.sleep(0.01)

    head, body = sent
    assert 503 == head["status"]
    assert (b"retry-after", b"1") in head["headers"]
    assert "unavailable" == json.loads(body["body"])["error_code"]
    logged = json.loads(os.read(reading, 65536))
    assert 503 == logged["status"]
    assert logged["request_id"].encode() == dict(head["headers"])[b"x-request-id"]
    os.close(reading)
    os.close(app.log._descriptor)


async def test_every_answer_has_an_id_of_its_own(api, admin):
    answers = [
        await admin.get(f"{GROUPS}/"),
        await admin.get("/healthz"),
        await admin.get("/nothing", 404),
        await admin.get(f"{GROUPS}/{P1}/", 404),
        await admin.post(f"{GROUPS}/", b"{", 400),
        await admin.post("/healthz", b"", 405),
        await admin.using(None).get(f"{GROUPS}/", 401),
        await admin.get("/%ff/", 404),
        await admin.get(f"{GROUPS}/%ff/", 400),
    ]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == len(answers)
    assert all(re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", each) for each in ids)


async def test_two_processes_make_different_ids(api):
    ids = set()
    for _ in range(2):
        async with falcon.testing.ASGIConductor(create_app(Config(), api.store)) as conductor:
            ids.add((await conductor.simulate_get("/healthz")).headers["x-request-id"])
    assert 2 == len(ids)


@pytest.mark.parametrize("given", ["abc", "!", "~" * 128, '"quoted\\"', "x-y_z:1/2"])
async def test_an_id_that_fits_is_taken_over(admin, given):
    answer = await admin.get("/healthz", headers={"X-Request-Id": given})
    assert given == answer.headers["x-request-id"]


@pytest.mark.parametrize("given", ["", " ", "a b", "x" * 129, "caf\u00e9", "a\tb", "a,b c"])
async def test_an_id_that_does_not_fit_is_not(admin, given):
    answer = await admin.get("/healthz", headers={"X-Request-Id": given})
    assert re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", answer.headers["x-request-id"])


async def test_a_failure_names_the_id_to_ask_for(logged, api, monkeypatch, caplog):
    async def broken(*_, **__):
        raise RuntimeError("the bug")

    monkeypatch.setattr(api.store.groups, "get_group", broken)
    with caplog.at_level(logging.ERROR):
        answer = await logged.call("GET", f"{GROUPS}/{P1}/", x_request_id="mine")
    assert 500 == answer.status_code
    assert "request id mine" in answer.json["detail"]
    assert "request id mine" in caplog.text
    [line] = logged.lines()
    assert (500, "mine", answer.json) == (line["status"], line["request_id"], line["error"])


async def test_what_cannot_even_become_a_request_is_answered_with_an_id(
    logged, monkeypatch, caplog
):
    def broken(*_, **__):
        raise RuntimeError("the bug")

    monkeypatch.setattr(Request, "__init__", broken)
    answer = await logged.call("GET", "/healthz")
    request_id = answer.headers["x-request-id"]
    assert 500 == answer.status_code
    assert request_id in answer.json["detail"]
    assert request_id in caplog.text
    [line] = logged.lines()
    assert (500, "(none)", request_id) == (line["status"], line["route"], line["request_id"])


async def test_a_line_says_what_was_asked_by_whom_and_what_became_of_it(logged):
    answer = await logged.call("POST", f"{GROUPS}/", '{"name": "n"}', x_request_id="me")
    [line] = logged.lines()
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert 0 < line.pop("duration_ms") < 5000
    assert {
        "request_id": "me",
        "method": "POST",
        "route": "/api/v1/applications/{cid}/profile-groups",
        "path": f"{GROUPS}/",
        "status": 201,
        "bytes": len(answer.content),
        "remote": "192.0.2.7",
        "application": "demo",
        "caller": "subject:somebody",
    } == line


async def test_an_error_is_in_the_line_as_the_client_read_it(logged):
    answer = await logged.call("GET", f"{GROUPS}/{P1}/")
    [line] = logged.lines()
    assert (404, answer.json) == (line["status"], line["error"])


async def test_tokens_bodies_and_query_strings_are_never_logged(logged):
    await logged.call("POST", f"{GROUPS}/?q={SECRET}", f'{{"name": "{SECRET}"}}')
    await logged.call("GET", f"{GROUPS}/?client_secret={SECRET}")
    await logged.call("GET", f"{GROUPS}/", authorization=f"Bearer {SECRET}")
    await logged.call(
        "POST",
        "/oauth/token",
        f"grant_type=client_credentials&client_id=x&client_secret={SECRET}",
        content_type="application/x-www-form-urlencoded",
    )
    text = logged.text()
    assert 4 == len(text.splitlines())
    assert SECRET not in text
    assert logged._token not in text


@pytest.mark.parametrize(
    ("logged", "statuses"),
    [("all", [200, 404]), ("errors", [404]), ("off", [])],
    indirect=["logged"],
)
async def test_the_setting_says_which_requests_are_logged(logged, statuses):
    await logged.call("GET", "/healthz")
    await logged.call("GET", "/nothing")
    assert statuses == [line["status"] for line in logged.lines()]


async def test_a_path_of_any_bytes_makes_one_line(logged):
    path = "/" + "%0A%22%00%ff\u00e9" * 500
    answer = await logged.call("GET", path)
    [line] = logged.lines()
    assert answer.status_code == line["status"]
    assert line["path"].startswith("/%0A%22%00")
    assert (len(line["path"]) < len(path)) == line.get("cut", False)


async def test_a_head_is_answered_as_its_get_without_the_body(api, admin):
    group = await admin.group()
    for path in (f"{GROUPS}/{group}/", f"{GROUPS}/", "/healthz"):
        head = await api.conductor.simulate_head(
            path, headers={"Authorization": f"Bearer {admin.token}"}
        )
        got = await api.conductor.simulate_get(
            path, headers={"Authorization": f"Bearer {admin.token}"}
        )
        assert (200, b"") == (head.status_code, head.content)
        assert got.headers["content-length"] == head.headers["content-length"]


async def test_a_head_fails_as_its_get_does(api, admin):
    for path, status in ((f"{GROUPS}/", 401), ("/nothing", 404), ("/oauth/token", 405)):
        head = await api.conductor.simulate_head(path)
        assert (status, b"") == (head.status_code, head.content)
    refused = await admin.post("/healthz", b"", 405)
    assert {"GET", "HEAD"} <= set(refused.headers["allow"].split(", "))


async def test_an_answer_that_breaks_off_is_counted_and_not_in_flight(api):
    counters = Counters("alone")
    app = create_app(Config(), api.store, counters)
    app.log._descriptor = os.open(os.devnull, os.O_WRONLY)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        if message["type"] == "http.response.body":
            raise Unavailable("the client is gone")

    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "path": "/healthz",
        "raw_path": b"/healthz",
        "query_string": b"",
        "headers": [(b"host", HOST.encode())],
    }
    with pytest.raises(Unavailable):
        await app(scope, receive, send)
    told = counters.snapshot()
    assert 0 == told.gauges["belong_http_requests_in_flight"]
    assert 1 == told.counters["belong_http_requests_total\tGET\t/healthz\t200"]
    assert scope["belong.note"].req is None
    os.close(app.log._descriptor)


async def test_what_is_refused_before_there_is_a_request_is_counted_and_logged(logged, api):
    app = create_app(Config(request_log="errors"), api.store)
    reading, writing = os.pipe()
    app.log._descriptor = writing
    app.refused(431, ("192.0.2.9", 1))
    app.refused(408, None)
    app.log.close()
    first, second = map(json.loads, os.read(reading, 4096).splitlines())
    assert (431, "192.0.2.9") == (first["status"], first["remote"])
    assert 408 == second["status"]
    assert 1 == app.counters.snapshot().counters["belong_http_unreadable_total\t431"]
    os.close(reading)
    os.close(writing)


def test_the_body_of_a_failure_is_that_of_any_error():
    assert {"detail", "error_code"} == set(json.loads(faces.failure_body("/", "x")))
