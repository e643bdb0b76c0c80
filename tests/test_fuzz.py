"""Requests that nobody wrote: the OpenAPI document is played against a served process.

schemathesis makes them of the document: what it allows, what it forbids, and chains along its
links. No answer may be a 5xx, or one that the document does not describe; what the document allows
has to be taken, what it forbids refused. Afterwards the data is proven consistent.

`FUZZ_REQUESTS` says how many (1,000 unless it does); `make fuzz` sends 20,000.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.serving import ROOT, Serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import schemathesis
    from schemathesis.engine import events, from_schema

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "1000"))
SEED = 20260301
LONGEST_SECONDS = 3600
NDJSON = "application/x-ndjson"

LIMITS = min(round(REQUESTS * 0.3), 1500)
"""How many are what the document shows, and its limits: of those there is an end."""

OTHERS = REQUESTS - LIMITS

PARTS = {
    "what the document shows, and its limits": ("admin", ("examples", "coverage"), LIMITS),
    "whatever it allows or forbids": ("admin", ("fuzzing",), round(OTHERS * 0.4)),
    "along the links": ("admin", ("stateful",), round(OTHERS * 0.4)),
    "with one scope": ("groups:read", ("fuzzing",), round(OTHERS * 0.1)),
    "as a profile": ("profile", ("fuzzing",), round(OTHERS * 0.1)),
}
"""What is sent -> with which token, made in which phases, and how many."""

SENT: dict[str, int] = {}
"""How many were sent of each."""

TOLERANT = ("add_members", "replace_members", "change_members")
"""They tell of ids and lines that do not fit one by one, and do not refuse the request."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with the application `demo`, whose data has to be right when everything was sent."""
    folder = tmp_path_factory.mktemp("fuzz")
    one = Serving(folder, folder / "data", "--demo")
    try:
        one.ready()
        yield one
        found = json.loads(belong(one, "verify", "--json"))
        assert [] == found["problems"]
        assert len(SENT) < len(PARTS) or sum(SENT.values()) >= REQUESTS
        assert one.stop() == 0
        assert "Traceback" not in one.log.read_text()
    finally:
        one.end()


def belong(served: Serving, *arguments: str) -> str:
    command = [sys.executable, "-m", "service", *arguments, "--data-dir", str(served.data_dir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def document(served: Serving) -> dict[str, Any]:
    """The document, in which a body of lines is an array, so that lines are made of the schema."""
    found: dict[str, Any] = httpx.get(f"{served.base}/openapi.json").json()
    for item in found["paths"].values():
        for operation in item.values():
            content = operation.get("requestBody", {}).get("content", {})
            if NDJSON in content:
                line = content[NDJSON]["x-line"]["anyOf"][0]
                content[NDJSON] = {"schema": {"type": "array", "items": line}}
    return found


@schemathesis.serializer(NDJSON)
def lines(_context: object, value: Any) -> bytes:
    """Write an array as lines."""
    each = value if isinstance(value, list) else [value]
    return b"".join(json.dumps(one).encode() + b"\n" for one in each)


@schemathesis.hook
def before_call(context: object, case: Any, kwargs: object) -> None:
    """Mend in a request that is to be accepted what no schema can say of it."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    query, body = case.query or {}, case.body
    # A cursor is what an answer gave, and one list is narrowed in one way.
    query.pop("cursor", None)
    if "profile_id" in query:
        query.pop("custom_id", None)
    if not isinstance(body, dict):
        return
    if case.operation.definition.raw["operationId"] == "create_group_as":
        body.pop("custom_id", None)
    if "Profiles" in (case.operation.tags or ()) and isinstance(body.get("attributes"), list):
        body["attributes"] = list({each["key"]: each for each in body["attributes"]}.values())


@pytest.fixture(scope="module")
def token(served: Serving) -> Callable[[str], str]:
    """Tokens: of an admin, of a profile, or with one scope."""

    def made(kind: str) -> str:
        token = ("token", "--application", "demo")
        if kind == "profile":
            created = httpx.post(f"{served.base}/api/v1/applications/demo/profile/")
            return str(created.json()["access_token"])
        return belong(served, *token, "--scope", kind)

    return made


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.filterwarnings("ignore")
def test_every_answer_is_one_that_the_document_describes(
    served: Serving, document: dict[str, Any], token: Callable[[str], str], part: str
) -> None:
    kind, phases, wanted = PARTS[part]
    config = schemathesis.Config.from_dict(
        {
            "seed": SEED,
            "max-time": LONGEST_SECONDS,
            "continue-on-failure": True,
            "base-url": served.base,
            "headers": {"Authorization": f"Bearer {token(kind)}"},
            "parameters": {"path.cid": "demo", "query.client_id": "demo"},
            "phases": {"enabled": False} | {phase: {"enabled": True} for phase in phases},
            "generation": {"deterministic": True, "database": "none", "no-shrink": True},
            "operations": [
                # DELETE of members takes away whom its body names, and not the list.
                {"include-tag": "Members", "checks": {"use_after_free": {"enabled": False}}},
                *(
                    {
                        "include-operation-id": name,
                        "checks": {"negative_data_rejection": {"enabled": False}},
                    }
                    for name in TOLERANT
                ),
            ],
        }
    )
    before = counted(served)
    sent, wrong = play(schemathesis.openapi.from_dict(document, config=config), wanted)

    assert not wrong, "\n\n".join(f"{name}\n{said}" for name, said in wrong.items())
    SENT[part] = sent
    assert sent >= wanted
    assert counted(served) - before >= sent


def play(schema: Any, wanted: int) -> tuple[int, dict[str, str]]:
    """Send so many requests; give how many were sent, and what was wrong, each kind once."""
    sent = 0
    wrong: dict[str, str] = {}
    stream = from_schema(schema).execute()
    for event in stream:
        if isinstance(event, events.NonFatalError):
            wrong[event.label] = str(event.value)
        elif isinstance(event, events.FatalError):
            raise event.exception
        elif isinstance(event, events.ScenarioFinished):
            sent += len(event.recorder.interactions)
            for checks in event.recorder.checks.values():
                for check in checks:
                    if check.failure_info is not None:
                        failure = check.failure_info.failure
                        name = f"{check.name}: {failure.operation}"
                        wrong[name] = f"{failure.message}\n{check.failure_info.code_sample}"
            if sent >= wanted:
                stream.stop()
    return sent, wrong


def counted(served: Serving) -> int:
    """Give how many requests the server says it answered."""
    text = httpx.get(f"{served.base}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("belong_http_requests_total")]
    return sum(int(float(line.rpartition(" ")[2])) for line in lines)
