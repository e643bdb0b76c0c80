"""Requests that nobody wrote: the OpenAPI document is played against a served process.

schemathesis makes them of the document: what it allows, what it forbids, and chains along its
links. No answer may be a 5xx, or one that the document does not describe; what the document allows
has to be taken, what it forbids refused. Afterwards the data is proven consistent.

`FUZZ_REQUESTS` says how many (1,000 unless it does); `make fuzz` sends 20,000.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import warnings
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from service.batches import KINDS
from service.rules import DEPTH
from tests.serving import ROOT, Serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

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

UNSAYABLE = {
    "create_group_as": ["custom_id"],
    # Of which kind the group is, nothing there says.
    "update_group": ["membership_type", "rule_tree"],
    "replace_group": ["membership_type", "rule_tree"],
    "preview_group": ["group_id"],
    "query_groups": ["fields"],
}
"""Operation -> fields of its body that fit, or not, to what stands elsewhere."""

OPERANDS: dict[str, Any] = {
    "between": [-1, 2.5],
    "between_dates": [0, "2024-02-29"],
    "before": 0,
    "after": "2024-02-29T12:00:00Z",
    "on": "2024-02-29",
    "within_last_days": 7,
}
"""Condition -> what it may be compared with, where a schema says less than what that stands for."""

TIME = "timestamp_unixtime_ms"
QUIET = {"deterministic": True, "database": "none", "no-shrink": True}

PASSES = 5
"""How often all operations are gone through at most, where each gets its share of the requests."""

SENT: dict[str, int] = {}
"""How many were sent of each."""

TOLERANT = (
    *("add_members", "replace_members", "change_members"),
    *("upload_bulk_events", "upload_historical_events"),
)
"""They tell of ids, lines and batches that do not fit one by one, and do not refuse the request."""

RULED = ("create_definition", "update_definition")
"""What they are sent may be as the schema says, and break a rule: 422."""
REFUSED = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 429]
ACCEPTED = ["2xx", 401, 403, 404, 409, 422, 429]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with the application `demo`, whose data has to be right when everything was sent."""
    folder = tmp_path_factory.mktemp("fuzz")
    one = Serving(folder, folder / "data", "--demo")
    try:
        one.ready()
        belong(one, "app", "update", "demo", "--definitions-per-workspace", "20")
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
    """The document, in which a body of lines is an array, so that lines are made of the schema.

    And in which there is one workspace.
    """
    found: dict[str, Any] = httpx.get(f"{served.base}/openapi.json").json()
    for item in found["paths"].values():
        for operation in item.values():
            for parameter in operation["parameters"]:
                if parameter.get("name") == "ws":
                    parameter["schema"] = {"type": "integer", "enum": [1]}
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
    if "Events" in (case.operation.tags or ()):
        for batch in body if isinstance(body, list) else [body]:
            mend_batch(batch, case.operation.path)
    if not isinstance(body, dict):
        return
    for field in UNSAYABLE.get(case.operation.definition.raw["operationId"], ()):
        body.pop(field, None)
    mend_trees(body)
    if "Profiles" in (case.operation.tags or ()) and isinstance(body.get("attributes"), list):
        body["attributes"] = list({each["key"]: each for each in body["attributes"]}.values())


def mend_trees(body: dict[str, Any]) -> None:
    """See to it that rule trees and queries are possible ones."""
    if isinstance(body.get("rule_tree"), dict):
        body["rule_tree"] = mended(body["rule_tree"])
    if "query" in body:
        body["query"] = asked(body["query"])
    if "save_as" in body:
        body.pop("page_size", None)


def mended(node: dict[str, Any], level: int = 1) -> dict[str, Any]:
    """Make of a rule tree a possible one: its size, its groups, and what operands stand for."""
    leaf = {"attribute": "plan", "condition": "is", "value": "pro"}
    if "children" in node:
        if level == DEPTH:
            return leaf
        return node | {"children": [mended(each, level + 1) for each in node["children"][:3]]}
    if "group" in node:
        return leaf
    if "value" not in node:
        return node
    if node.get("type") == "date":
        return node | {"value": OPERANDS.get(node["condition"], "2024-02-29")}
    return node | {"value": OPERANDS.get(node["condition"], fitting(node["value"]))}


def asked(node: Any, level: int = 1) -> dict[str, Any]:
    """Make of a query that the schema allows one of possible size, over groups that may be gone."""
    known = {name: node[name] for name in ("and", "or", "of", "not") if name in node}
    if level == DEPTH or len(known) != 1:
        return {"group": "everybody"}
    [(name, below)] = known.items()
    if name == "not":
        return {"not": asked(below, level + 1)}
    children = [asked(each, level + 1) for each in below[:3]] if isinstance(below, list) else []
    if name != "of":
        return {name: children or [{"group": "everybody"}]}
    return {"at_least": 1, "of": children or [{"group": "everybody"}]}


def fitting(value: Any) -> Any:
    """Give a number the digits that it may have."""
    if isinstance(value, list):
        return list(map(fitting, value))
    if isinstance(value, float):
        return round(min(max(value, -1e9), 1e9), 3)
    return value


def mend_batch(batch: dict[str, Any], path: str) -> None:
    """See to it that a batch names somebody, and when what happened."""
    datas = [each for each in batch.get("events") or () if each.get("data")]
    identities = {
        name: value
        for name, value in (batch.get("user_identities") or {}).items()
        if name not in KINDS or name == KINDS[name]
    }
    for of, name in [(batch, "mpid"), *((each["data"], TIME) for each in datas)]:
        # 1.0 is an integer to a schema, and to no reader of 64 bits.
        if isinstance(of.get(name), float):
            of[name] = int(of[name])
    if batch.get("mpid") is None and not any(identities.get(name) for name in KINDS):
        identities["email"] = "somebody"
    batch["user_identities"] = identities
    for event in batch.get("events") or ():
        if event["event_type"] == "user_attribute_change":
            event["event_type"] = "custom_event"
    if path.endswith("historical"):
        batch["events"] = [{"event_type": "custom_event", "data": {TIME: 1}}]


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
    make = functools.partial(configured, served, document, token(kind), phases)
    before = counted(served)
    sent = 0
    wrong: dict[str, str] = {}
    for turns_left, schema in turns(operation_ids(document), phases, make):
        share = -(-(wanted - sent) // turns_left)
        if share > 0:
            more, found = play(schema(share), share)
            sent += more
            wrong |= found

    assert not wrong, "\n\n".join(f"{name}\n{said}" for name, said in wrong.items())
    SENT[part] = sent
    assert sent >= wanted
    assert counted(served) - before >= sent


def turns(
    names: list[str], phases: tuple[str, ...], make: Callable[..., Any]
) -> Iterator[tuple[int, Callable[[int], Any]]]:
    """Give what makes a schema to play of how many it has to send, so that each operation has a go.

    And how many turns are left, this one included.
    """
    if "coverage" in phases:
        whole = make(SEED)
        for place, name in enumerate(names):
            yield len(names) - place, functools.partial(of_operation, whole, name)
    elif "fuzzing" in phases:
        for again in range(PASSES):
            yield 1, functools.partial(of_all, make, SEED + again, len(names))
    else:
        yield 1, functools.partial(of_links, make)


def of_operation(whole: Any, name: str, _share: int) -> Any:
    return whole.include(operation_id=name)


def of_all(make: Callable[..., Any], seed: int, operations: int, share: int) -> Any:
    return make(seed, {"max-examples": -(-share // operations)})


def of_links(make: Callable[..., Any], _share: int) -> Any:
    return make(SEED)


def operation_ids(document: dict[str, Any]) -> list[str]:
    """Give all operations, those of which little can be asked first: what they leave others use."""
    found = [operation for item in document["paths"].values() for operation in item.values()]
    return [each["operationId"] for each in sorted(found, key=lambda each: "requestBody" in each)]


def configured(
    served: Serving,
    document: dict[str, Any],
    token: str,
    phases: tuple[str, ...],
    seed: int,
    generation: Mapping[str, int] = MappingProxyType({}),
) -> Any:
    """Give what is sent, and what is looked at."""
    config = schemathesis.Config.from_dict(
        {
            "seed": seed,
            "max-time": LONGEST_SECONDS,
            "continue-on-failure": True,
            "base-url": served.base,
            "headers": {"Authorization": f"Bearer {token}"},
            "parameters": {"path.cid": "demo", "query.client_id": "demo"},
            "phases": {"enabled": False} | {phase: {"enabled": True} for phase in phases},
            "generation": {**QUIET, **generation},
            # 413 is none of those that schemathesis expects by itself.
            "checks": {"negative_data_rejection": {"expected-statuses": REFUSED}},
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
                *(
                    {
                        "include-operation-id": name,
                        "checks": {"positive_data_acceptance": {"expected-statuses": ACCEPTED}},
                    }
                    for name in RULED
                ),
            ],
        }
    )
    return schemathesis.openapi.from_dict(document, config=config)


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
