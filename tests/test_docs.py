"""The document as a page: its files, its policy, and a browser that uses it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import falcon.testing
import pytest
import swagger_ui_bundle

from service import docs
from service.app import create_app
from service.config import Config
from service.store import Store
from tests.npm import node
from tests.serving import ROOT, Serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests import backings
    from tests.client import Api

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


async def text(api: Api, path: str, **options):
    return await api.conductor.simulate_get(path, **options)


@pytest.mark.parametrize(("path", "base"), [("/docs", "docs/"), ("/docs/", "")])
async def test_the_page_is_there_with_and_without_the_slash(api: Api, path, base) -> None:
    page = await text(api, path)

    assert (200, docs.HTML) == (page.status_code, page.headers["content-type"])
    named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(named) == 5
    assert {f"{base}{file}" for file in docs.FILES} == set(named)
    for prefix in ("", "/membership"):
        for address in named:
            found = urljoin(f"https://host{prefix}{path}", address)
            assert f"https://host{prefix}/docs/" == found.rpartition("/")[0] + "/"


async def test_every_file_of_the_page_is_served_with_its_kind(api: Api) -> None:
    for file, kind in docs.FILES.items():
        answer = await text(api, f"/docs/{file}")
        assert (200, kind) == (answer.status_code, answer.headers["content-type"])
        assert "nosniff" == answer.headers["x-content-type-options"]
        source = Path(swagger_ui_bundle.swagger_ui_path) / file
        if source.exists():
            assert source.read_bytes() == answer.content


async def test_a_file_that_the_browser_has_is_not_sent_again(api: Api) -> None:
    for path in ("/docs/swagger-ui.css", "/openapi.json"):
        first = await text(api, path)
        again = await text(api, path, headers={"If-None-Match": first.headers["etag"]})
        other = await text(api, path, headers={"If-None-Match": '"other"'})
        assert (304, b"") == (again.status_code, again.content)
        assert (200, first.content) == (other.status_code, other.content)


@pytest.mark.parametrize(
    "file",
    [
        "index.html",
        "swagger-ui-bundle.js.map",
        "swagger-initializer.js",
        "..",
        "../__init__.py",
        "..%2F..%2F__init__.py",
        "%2e%2e%2f__init__.py",
        "%2Fetc%2Fpasswd",
        "index.css%00",
        "INDEX.CSS",
        "C:%5Cwindows",
    ],
)
async def test_nothing_else_is_served(api: Api, file) -> None:
    answer = await text(api, f"/docs/{file}")
    assert (404, "not_found") == (answer.status_code, answer.json["error_code"])


async def test_the_page_may_talk_to_its_own_server_alone(api: Api) -> None:
    page = await text(api, "/docs")
    policy = dict(
        part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";")
    )
    assert "'none'" == policy["default-src"]
    assert "'self'" == policy["script-src"] == policy["connect-src"] == policy["style-src"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert "<script>" not in page.text


@pytest.fixture
async def behind_a_proxy(valkey: backings.Server) -> AsyncIterator[falcon.testing.ASGIConductor]:
    """The application as one of a public URL below a prefix."""
    store = await Store.open(valkey.url)
    app = create_app(Config(public_url="https://api.example:8443/membership"), store)
    async with falcon.testing.ASGIConductor(app) as conductor:
        yield conductor
    await store.close()


async def test_behind_a_public_url_calls_go_to_it_and_are_allowed(behind_a_proxy) -> None:
    document = (await behind_a_proxy.simulate_get("/openapi.json")).json
    page = await behind_a_proxy.simulate_get("/docs")

    assert [{"url": "https://api.example:8443/membership"}] == document["servers"]
    policy = page.headers["content-security-policy"]
    assert "connect-src 'self' https://api.example:8443;" in policy


@pytest.fixture
def browser() -> str:
    """Find a Chromium."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    return CHROMIUM


@pytest.mark.node
@pytest.mark.parametrize("path", ["/docs", "/docs/"])
def test_a_browser_tries_a_call_out_and_no_request_leaves_the_host(
    serve: Callable[..., Serving], node_modules: Path, browser: str, path: str
) -> None:
    served = serve("--demo").ready()
    command = [sys.executable, "-m", "service", "token", "--application", "demo"]
    token = subprocess.run(
        [*command, "--data-dir", str(served.data_dir)],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.strip()

    seen = node("docs.mjs", served.base + path, token, browser)

    assert ("Belong", "200") == (seen["title"], seen["status"])
    assert re.search(r'"count": \d+,\n  "next": null', seen["body"])
    called = urlsplit(seen["url"])
    assert "/api/v1/applications/demo/profile-groups/" == called.path
    hosts = {urlsplit(url).netloc for url in seen["requests"] if not url.startswith("data:")}
    assert {urlsplit(served.base).netloc} == hosts
    assert seen["url"] in seen["requests"]
    assert [] == seen["errors"]
    assert token not in seen["stored"]
