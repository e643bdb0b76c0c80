"""LiveLike's published JavaScript SDK, unchanged, against a server that was just started.

Each scenario of `tests/node/livelike.mjs` is a process of its own; what the SDK resolved to or
rejected with is looked at here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.npm import node
from tests.serving import ROOT, Serving

pytestmark = pytest.mark.node

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
DENIED = "Access Denied. Access token incorrect."


@pytest.fixture(scope="module")
def served(tmp_path_factory, node_modules):
    """One server for all scenarios, with the demo application."""
    folder = tmp_path_factory.mktemp("sdk")
    one = Serving(folder, folder / "data", "--demo")
    try:
        one.ready()
        yield one
        assert one.stop() == 0
    finally:
        one.end()


def belong(served, *arguments):
    """Run the command line on the server's data."""
    command = [sys.executable, "-m", "service", *arguments, "--data-dir", str(served.data_dir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def run(served):
    """Run a scenario, with an admin token and what else it is given."""
    admin = belong(served, "token", "--application", "demo")

    def scenario(name, **given):
        settings = {"endpoint": f"{served.base}/api/v1/", "clientId": "demo", "admin": admin}
        return node("livelike.mjs", name, json.dumps(settings | given))

    return scenario


@pytest.fixture
def group(served, run):
    """The id of a group of its own for a test, made by the SDK."""
    made = run("create")
    return made["id"]


def rejected(ended, status, message):
    """Give the body of an error that the SDK rejected with; it must be of this kind."""
    refusal = ended["rejected"]
    assert (status, message) == (refusal["status"], refusal.get("message"))
    return refusal["errorDetail"]


def test_init_without_a_token_makes_a_profile_that_reads_its_own_groups(run):
    done = run("initAnonymous")
    assert UUID.fullmatch(done["profile"]["id"])
    assert done["profile"]["access_token"]
    assert f"Profile {done['profile']['id'][:8]}" == done["profile"]["nickname"]
    assert {"count": 0, "next": None, "previous": None, "results": []} == done["groups"]


def test_init_with_a_nickname_makes_a_profile_of_that_name(run):
    assert run("initNickname")["profile"]["nickname"] == "Zed"


def test_init_with_the_token_of_a_profile_gives_that_profile(run):
    made = run("initNickname")["profile"]
    found = run("initToken", profileToken=made["access_token"])["profile"]
    assert (made["id"], "Zed") == (found["id"], found["nickname"])


def test_init_with_a_stored_profile_gives_that_profile(run):
    made = run("initNickname")["profile"]
    done = run("initStored", profileToken=made["access_token"])
    assert made["id"] == done["profile"]["id"] == done["kept"]["id"]


def test_init_with_an_admin_token_gives_a_profile_in_no_group(run):
    profile = run("initAdmin")["profile"]
    assert UUID.fullmatch(profile["id"])
    assert profile == run("initAdmin")["profile"]


def test_init_fails_with_a_bad_token_and_for_an_application_that_is_not_there(run):
    done = run("initFails")
    message = "Unauthorized. Access token missing from request."
    rejected(done["badToken"], 401, message)
    assert done["noApplication"]["rejected"].startswith("Client resource not found.")


def test_a_profile_renames_itself_and_sees_nothing_of_others(run):
    done = run("profile")
    me = done["me"]["id"]
    assert me == done["updated"]["id"] == done["read"]["id"] == done["byId"]["id"]
    assert ("New", '{"team":"red"}') == (done["byId"]["nickname"], done["byId"]["custom_data"])
    assert me != done["another"]["id"]
    assert done["another"]["nickname"] == "Second"
    rejected(done["foreign"], 403, DENIED)
    rejected(done["groups"], 403, DENIED)


def test_groups_are_created_found_by_attributes_changed_and_deleted(run):
    done = run("groups")
    for value, made in done["found"].items():
        assert [made["id"]] == [row["id"] for row in made["page"]["results"]], value
        assert [{"key": "tier", "value": value}] == made["page"]["results"][0]["attributes"]
    ids = {made["id"] for made in done["found"].values()}
    assert ids == {row["id"] for row in done["presence"]["results"]}
    assert done["changed"]["name"] == "Edited"
    assert ("Put", "p") == (done["replaced"]["name"], done["replaced"]["description"])
    assert done["removed"] == {"resolved": {"status": 204}}
    body = rejected(done["gone"], 404, "Resource not found.")
    assert body == {"detail": "Not found.", "error_code": "not_found"}


def test_a_dynamic_group_of_the_documented_rule_tree_fills_itself(run):
    done = run("dynamic")
    made = done["made"]
    assert ("dynamic", done["rule_tree"]) == (made["membership_type"], made["rule_tree"])
    assert made["status"]["state"] in ("building", "ready")
    assert sorted(done["people"]) == sorted(row["id"] for row in done["members"]["results"])
    assert [made["id"]] == [row["group_id"] for row in done["groupsOfOne"]["results"]]
    assert [made["id"]] == [row["id"] for row in done["listed"]["results"]]
    body = rejected(done["added"], 409, "Resource already exists")
    assert body["error_code"] == "conflict"
    assert done["rule_tree"]["children"][0]["children"][0] == done["changed"]["rule_tree"]
    body = rejected(done["malformed"], 400, "Incorrect data.")
    assert "at `$.rule_tree.children`" in body["rule_tree"][0]


def test_its_paginator_walks_the_members_of_a_group_forth_and_back(run, group):
    done = run("members", groupId=group)
    assert done["added"]["successfully_added"] == done["ids"]
    assert done["again"]["already_added"] == done["ids"]
    walked = [row["id"] for row in done["walked"]]
    assert sorted(done["ids"]) == sorted(walked)
    assert done["counts"] == [5, 5, 5]
    assert walked[2:4] == [row["id"] for row in done["back"]]
    assert [walked[4]] == [row["id"] for row in done["end"]["value"]["results"]]


def test_members_are_removed_by_every_body_that_is_json_and_by_no_other(run, group):
    done = run("removals", groupId=group)
    for way in ("text", "textAsJson"):
        assert done[way] == {"removed": {"resolved": {"status": 204}}, "left": False}, way
    for way in ("object", "objectAsJson"):
        # It sends "[object Object]" then: that must not look like a success.
        body = rejected(done[way]["removed"], 400, "Incorrect data.")
        assert "JSON.stringify" in body["detail"], way
        assert done[way]["left"], way


def test_every_error_reaches_the_application_as_the_sdk_words_it(run):
    done = run("errors")
    body = rejected(done["400"], 400, "Incorrect data.")
    assert list(body) == ["name"]
    rejected(done["401"], 401, "Unauthorized. Access token missing from request.")
    rejected(done["403"], 403, DENIED)
    rejected(done["404"], 404, "Resource not found.")
    rejected(done["405"], 405, "Method not allowed.")
    rejected(done["409"], 409, "Resource already exists")
    rejected(done["413"], 413, None)
    rejected(done["415"], 415, "Unsupported media type.")
    rejected(done["noRoute"], 404, "Resource not found.")
    assert list(rejected(done["malformed"], 400, "Incorrect data.")) == ["profile_ids"]
