"""mParticle's published SDKs, unchanged, against a server that was just started.

The Python SDK runs here; each scenario of `tests/node/mparticle.mjs` is a process of its own. What
they uploaded is then read through the profile API.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import warnings

import httpx
import pytest

from tests.npm import node
from tests.serving import ROOT, Serving

with warnings.catch_warnings():
    # It compares with `is`, as compilers say; and asks urllib3 in a way that is on its way out.
    warnings.simplefilter("ignore")
    import mparticle  # type: ignore[import-untyped]
    from mparticle.models.user_attribute_change_event import (  # type: ignore[import-untyped]
        UserAttributeChangeEvent,
    )
    from mparticle.rest import ApiException  # type: ignore[import-untyped]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")

HOUSEHOLD = {
    "id": "household",
    "source_user_attribute": "$address",
    "attributes": [{"id": "has_dog", "type": "boolean_or"}],
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """One server for all scenarios, with the demo application."""
    folder = tmp_path_factory.mktemp("mparticle")
    one = Serving(folder, folder / "data", "--demo")
    try:
        one.ready()
        yield one
        assert one.stop() == 0
    finally:
        one.end()


class Workspace:
    """An application, as whoever configured the SDKs for it sees it."""

    def __init__(self, served: Serving, client_id: str) -> None:
        self.served = served
        made = json.loads(
            self.belong("credential", "create", "--application", client_id, "--scope",
                        "events:write", "--json")
        )  # fmt: skip
        self.key, self.secret = made["client_id"], made["client_secret"]
        self.id = json.loads(self.belong("app", "show", client_id, "--json"))["workspace_id"]
        token = self.belong("token", "--application", client_id).strip()
        self.bearer = {"Authorization": f"Bearer {token}"}

    @property
    def host(self) -> str:
        return f"{self.served.base}/v2"

    def belong(self, *arguments: str) -> str:
        command = [
            sys.executable, "-m", "service", *arguments, "--data-dir", str(self.served.data_dir),
        ]  # fmt: skip
        return subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout

    def api(self, host=None, key=None, secret=None):
        """An EventsApi, made as the SDK's documents say."""
        configuration = mparticle.Configuration()
        configuration.api_key = self.key if key is None else key
        configuration.api_secret = self.secret if secret is None else secret
        configuration.host = host or self.host
        return mparticle.EventsApi(configuration)

    def define(self, body):
        path = f"{self.served.base}/platform/workspaces/{self.id}/groups"
        answer = httpx.post(path, json=body, headers=self.bearer)
        assert answer.status_code in (200, 422), answer.text

    def view(self, customer_id, environment="production"):
        """What the profile API shows of a user; None: there is none."""
        answer = httpx.post(
            f"{self.served.base}/userprofile/v1/resolve/1/1/{self.id}",
            params={"fields": "user_attributes,user_identities"},
            json={
                "environment_type": environment,
                "identity": {"type": "customer_id", "value": customer_id},
            },
            headers=self.bearer,
        )
        assert answer.status_code in (200, 404), answer.text
        return answer.json() if answer.status_code == 200 else None

    def attributes(self, customer_id, environment="production"):
        seen = self.view(customer_id, environment)
        return None if seen is None else seen["user_attributes"]


@pytest.fixture(scope="module")
def workspace(served):
    """The demo application, whose definition is the one of mParticle's documents."""
    made = Workspace(served, "demo")
    made.define(HOUSEHOLD)
    return made


def batch(name, attributes=None, **fields):
    identities = mparticle.UserIdentities()
    if name is not None:
        identities.customerid = name
        identities.email = f"{name}@example.com"
    return mparticle.Batch(user_identities=identities, user_attributes=attributes, **fields)


def refusal(uploading, *arguments):
    """The status and message of the ApiException that the SDK raises."""
    with pytest.raises(ApiException) as refused:
        uploading(*arguments)
    body = json.loads(refused.value.body)
    assert body["statusCode"] == refused.value.status
    [problem] = body["errors"]
    return refused.value.status, problem["message"]


VALUES = {
    "$Address": "1 Python St", "has_dog": True, "points": 12, "big": 2**70, "weight": 1.5,
    "tags": ["a", "ü"], "nothing": None,
}  # fmt: skip
STORED = {
    "$address": "1 Python St", "has_dog": "true", "points": "12", "big": str(2**70),
    "weight": "1.5", "tags": ["a", "ü"], "nothing": None,
}  # fmt: skip


def test_a_batch_is_uploaded_and_there(workspace):
    uploaded = workspace.api().upload_events(batch("single", VALUES))
    assert (None, 202) == uploaded[:2]
    assert STORED | {"household:has_dog": "true"} == workspace.attributes("single")
    identities = workspace.view("single")["user_identities"]
    assert [("customer_id", "single"), ("email", "single@example.com")] == [
        (each["type"], each["value"]) for each in identities
    ]


def test_what_one_of_a_household_has_shows_on_all_members_and_on_nobody_else(workspace):
    api = workspace.api()
    api.bulk_upload_events(
        [
            batch("john", {"$address": "123 Main St"}),
            batch("jane", {"$address": "123 Main St", "has_dog": True}),
            batch("bob", {"$address": "9 Oak"}, deleted_user_attributes=["has_dog"]),
        ]
    )
    inherited = {
        name: workspace.attributes(name)["household:has_dog"] for name in ("john", "jane", "bob")
    }
    assert {"john": "true", "jane": "true", "bob": "false"} == inherited
    assert "has_dog" not in workspace.attributes("john")

    # Bob moves in, Jane moves out and takes the dog with her.
    api.bulk_upload_events(
        [batch("bob", {"$address": "123 Main St"}), batch("jane", {"$address": "9 Oak"})]
    )
    inherited = {
        name: workspace.attributes(name)["household:has_dog"] for name in ("john", "jane", "bob")
    }
    assert {"john": "false", "jane": "true", "bob": "false"} == inherited


def test_a_batch_with_everything_in_it_is_taken(workspace):
    at_ms = time.time_ns() // 1_000_000 - 60_000
    changes = [
        UserAttributeChangeEvent(
            timestamp_unixtime_ms=at_ms, user_attribute_name="tier", new="gold", deleted=False,
            is_new_attribute=True,
        ),
        UserAttributeChangeEvent(
            timestamp_unixtime_ms=at_ms + 1, user_attribute_name="old", old="x", deleted=True,
            is_new_attribute=False,
        ),
    ]  # fmt: skip
    sent = batch("whole", {"tier": "gold"}, deleted_user_attributes=["old"])
    sent.events = [*changes, mparticle.AppEvent("Attributes Updated", "other")]
    sent.source_request_id = "req-1"
    sent.environment = "development"
    sent.ip = "127.0.0.1"
    sent.mpid = -7346244611012968789
    sent.integration_attributes = {"123": {"k": "v"}}
    sent.context = mparticle.BatchContext(
        data_plan=mparticle.DataPlanContext(plan_id="plan_1", plan_version=2)
    )
    assert 202 == workspace.api().upload_events(sent)[1]
    seen = workspace.view("whole", "development")
    assert (-7346244611012968789, {"tier": "gold"}) == (seen["mpid"], seen["user_attributes"])
    assert workspace.view("whole") is None

    # The change is as of when it was, so what was set before that comes too late.
    late = batch("whole", {"tier": "silver"}, environment="development")
    late.events = [
        UserAttributeChangeEvent(timestamp_unixtime_ms=at_ms - 1, user_attribute_name="tier")
    ]
    workspace.api().upload_events(late)
    assert {"tier": "gold"} == workspace.attributes("whole", "development")
    sent.user_attributes = {"tier": "again"}
    workspace.api().upload_events(sent)
    assert {"tier": "gold"} == workspace.attributes("whole", "development")


def test_an_upload_in_the_background_tells_its_callback(workspace):
    answers = []
    told = threading.Event()

    def callback(answer):
        answers.append(answer)
        told.set()

    workspace.api().upload_events(batch("later", {"a": 1}), callback=callback)
    assert told.wait(30)
    assert 202 == answers[0][1]
    assert {"a": "1"} == workspace.attributes("later")


@pytest.mark.parametrize(
    ("method", "body", "sentence"),
    [
        # Nothing at all is sent as a body of no bytes.
        ("upload_events", mparticle.Batch, "A JSON body is required, and this one is empty."),
        ("bulk_upload_events", list, "A JSON body is required, and this one is empty."),
        ("upload_events", lambda: batch(None, environment="development"), "No user ID provided"),
        ("bulk_upload_events", lambda: [batch(f"n{n}") for n in range(101)], "has 101"),
        ("upload_events", lambda: batch("nan", {"a": float("nan")}), "not JSON"),
        ("upload_events", lambda: batch("inf", {"a": float("inf")}), "not JSON"),
        ("upload_events", lambda: batch("nested", {"a": {"b": 1}}), "a text, a number"),
        ("upload_events", lambda: batch("long", {"a": "x" * 4097}), "4,096 characters"),
        ("upload_events", lambda: batch("name", {"x" * 257: 1}), "256 characters"),
        ("upload_events", lambda: batch("list", {"a": ["x"] * 1001}), "1,000 entries"),
        ("upload_events", lambda: batch("many", {f"k{n}": n for n in range(101)}), "at most 100"),
    ],
)
def test_what_does_not_fit_is_an_exception_that_says_why(workspace, method, body, sentence):
    status, message = refusal(getattr(workspace.api(), method), body())
    assert 400 == status
    assert sentence in message


def test_one_batch_that_does_not_fit_does_not_keep_the_others_of_a_bulk_back(workspace):
    sent = [batch("good-1", {"a": 1}), batch("bad", {"a": {"b": 1}}), batch("good-2", {"a": 1})]
    assert 202 == workspace.api().bulk_upload_events(sent)[1]
    assert [{"a": "1"}, None, {"a": "1"}] == [
        workspace.attributes(name) for name in ("good-1", "bad", "good-2")
    ]


def test_wrong_and_missing_keys_are_403(workspace):
    for login in ({"secret": "wrong"}, {"key": "wrong"}, {"key": "", "secret": ""}):
        status, _ = refusal(workspace.api(**login).upload_events, batch("wrong"))
        assert 403 == status
    assert workspace.view("wrong") is None


@pytest.mark.parametrize(("name", "cut"), [("slash", "/v2/"), ("short", ""), ("bare", "/")])
def test_a_host_may_end_in_a_slash_and_lack_the_version(workspace, name, cut):
    host = workspace.served.base + cut
    assert 202 == workspace.api(host).upload_events(batch(f"{name}-1", {"a": 1}))[1]
    assert 202 == workspace.api(host).bulk_upload_events([batch(f"{name}-2", {"a": 1})])[1]
    assert {"a": "1"} == workspace.attributes(f"{name}-1") == workspace.attributes(f"{name}-2")


def test_a_limit_holds_the_sdk_back_for_as_long_as_it_is_told(served):
    # After a 429 the SDK refuses by itself, in all of this process, for the seconds it was told.
    belong = Workspace(served, "demo").belong
    belong("app", "create", "limited")
    belong("app", "update", "limited", "--requests-per-second", "3")
    limited = Workspace(served, "limited")
    api = limited.api()

    def upload():
        for n in range(100):
            headers = api.upload_events(batch(f"n{n}"))[2]
            assert 0 <= int(headers["X-mp-rate-limit-percentage-used"]) <= 100

    with pytest.raises(ApiException) as refused:
        upload()
    assert (429, "workspace") == (
        refused.value.status,
        refused.value.headers["X-mp-rate-limit-exceeded"],
    )
    wait = int(refused.value.headers["Retry-After"])
    assert 1 == wait
    with pytest.raises(ApiException) as held_back:
        api.upload_events(batch("held back"))
    assert 429 == held_back.value.status
    time.sleep(wait + 1)
    assert 202 == api.upload_events(batch("afterwards"))[1]
    assert limited.view("held back") is None


@pytest.fixture(scope="module")
def run(workspace, node_modules):
    """Run a scenario of the Node SDK."""

    def scenario(name):
        given = {"host": workspace.host, "key": workspace.key, "secret": workspace.secret}
        return node("mparticle.mjs", name, json.dumps(given))

    return scenario


@pytest.mark.node
def test_node_uploads_a_batch(workspace, run):
    assert {"done": {"status": 202, "text": ""}} == run("single")
    stored = STORED | {"$address": "1 Node St", "tags": ["a", "b"], "household:has_dog": "true"}
    del stored["big"]
    assert stored == workspace.attributes("node-single")


@pytest.mark.node
def test_node_uploads_a_household(workspace, run):
    assert {"done": {"status": 202, "text": ""}} == run("household")
    inherited = {
        name: workspace.attributes(f"node-{name}")["household:has_dog"]
        for name in ("john", "jane", "bob")
    }
    assert {"john": "true", "jane": "true", "bob": "false"} == inherited


@pytest.mark.node
def test_every_error_reaches_the_callback_of_node(workspace, run):
    done = run("errors")
    # Without a key it sends no header, where the Python SDK sends an empty one.
    statuses = {name: each["error"] for name, each in done.items()}
    assert {
        "many": 400, "none": 400, "nobody": 400, "nested": 400, "wrong": 403, "anonymous": 401,
    } == statuses  # fmt: skip
    for each in done.values():
        assert each["error"] == each["body"]["statusCode"]
        assert each["body"]["errors"][0]["message"]
    assert workspace.view("node-nested") is None


@pytest.mark.node
def test_node_reaches_us_by_any_host(workspace, run):
    done = run("hosts")
    assert {"slash": 202, "short": 202} == {name: each["status"] for name, each in done.items()}
    assert [{"n": "1"}, {"n": "2"}] == [workspace.attributes(f"node-host-{n}") for n in (1, 2)]
