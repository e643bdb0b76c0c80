"""The document as a page (`/docs`): Swagger UI, from the files of the installed package.

Nothing is fetched from anywhere else: the page may talk to this server alone, and its policy
(`Content-Security-Policy`) has the browser hold it to that. All addresses in it are relative, so
that it works below a prefix, too.
"""

from __future__ import annotations

import functools
import hashlib
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import swagger_ui_bundle

from service.endpoint import Resource, Wire, endpoint
from service.errors import NotFound

if TYPE_CHECKING:
    from service.admission import Call
    from service.config import Config

_INDEX = """\
<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <title>Belong</title>
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <link rel="icon" type="image/png" href="{base}favicon-32x32.png" sizes="32x32">
    <link rel="stylesheet" href="{base}swagger-ui.css">
    <link rel="stylesheet" href="{base}index.css">
  </head>
  <body>
    <div id="swagger-ui"></div>
    <script src="{base}swagger-ui-bundle.js"></script>
    <script src="{base}initializer.js"></script>
  </body>
</html>
"""

_INITIALIZER = b"""\
// The address is relative to this file: the page is at `docs` or `docs/`, perhaps below a prefix.
const description = new URL("../openapi.json", document.currentScript.src);
window.addEventListener("load", () => {
  window.ui = SwaggerUIBundle({
    url: description.href,
    dom_id: "#swagger-ui",
    deepLinking: true,
    docExpansion: "list",
    persistAuthorization: false,
    presets: [SwaggerUIBundle.presets.apis],
    queryConfigEnabled: false,
    validatorUrl: null,
  });
});
"""

FILES = {
    "favicon-32x32.png": "image/png",
    "index.css": "text/css; charset=utf-8",
    "initializer.js": "text/javascript; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
}
"""Every file there is, and its media type."""

HTML = "text/html; charset=utf-8"


class Docs(Resource):
    """`/docs`."""

    @endpoint(None, reply=str, wire=Wire(gives=HTML))
    async def on_get(self, call: Call) -> bytes:
        """Read this document as a page, and try the calls out."""
        response = call.response
        response.set_header("Content-Security-Policy", _policy(call.backend.config))
        response.set_header("X-Content-Type-Options", "nosniff")
        response.set_header("Referrer-Policy", "no-referrer")
        response.set_header("Cache-Control", "no-cache")
        base = "" if call.request.scope["path"].endswith("/") else "docs/"
        return _INDEX.format(base=base).encode()


class DocsFile(Resource):
    """`/docs/{file}`."""

    @endpoint(None, reply=str, errors=(HTTPStatus.NOT_MODIFIED,), wire=Wire(gives="*/*"))
    async def on_get(self, call: Call, *, file: str) -> bytes:
        """Read one of the files that the page consists of."""
        kind = FILES.get(file)
        if kind is None:
            raise NotFound
        content, tag = _read(file)
        response = call.response
        response.set_header("ETag", tag)
        response.set_header("X-Content-Type-Options", "nosniff")
        response.set_header("Cache-Control", "public, max-age=3600")
        response.content_type = kind
        if tag in (call.request.get_header("if-none-match") or ""):
            response.status = HTTPStatus.NOT_MODIFIED
            return b""
        return content


@functools.cache
def _read(file: str) -> tuple[bytes, str]:
    """Give a file of the list, and its entity tag."""
    if file == "initializer.js":
        content = _INITIALIZER
    else:
        content = (swagger_ui_bundle.swagger_ui_path / file).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def _policy(config: Config) -> str:
    """Say what the page may do: nothing but talk to this server, under whatever name it goes."""
    hosts = ["'self'"]
    if config.public_url:
        public = urlsplit(config.public_url)
        hosts.append(f"{public.scheme}://{public.netloc}")
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        f"connect-src {' '.join(hosts)}; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
