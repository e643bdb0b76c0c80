"""The shapes of errors, and which path has which."""

from __future__ import annotations

import json
from http import HTTPStatus

import pytest

from service import faces
from service.app import ROUTES, addresses
from service.endpoint import API
from service.errors import CODES, BelongError

OURS = {"healthz", "readyz", "metrics", "openapi.json", "docs", "oauth"}
"""First segments that belong to neither face, and speak as the first."""


def test_every_route_belongs_to_the_face_that_its_path_says() -> None:
    for path, _ in ROUTES:
        for address in addresses(path):
            first = address.split("/")[1]
            assert faces.is_identity(address) == (first in faces.IDENTITY)
            assert first in faces.IDENTITY | OURS or address.startswith(API), address


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", False),
        ("", False),
        ("/api/v1/applications/v2", False),
        ("/v1", True),
        ("/v1/audiences", True),
        ("/v2/events", True),
        ("//v2//events", True),
        ("/v22/events", False),
        ("/events", True),
        ("/eventsource", False),
        ("/platform/nothing", True),
        ("/userprofile/v1/1/1/1/1", True),
    ],
)
def test_a_path_that_there_is_not_has_a_face_too(path: str, expected: bool) -> None:
    assert expected == faces.is_identity(path)


def test_every_status_of_a_domain_error_has_a_code_on_the_group_identity_face() -> None:
    statuses = {each.status for each in (*BelongError.__subclasses__(), *CODES.values())} - {500}
    assert statuses <= set(map(int, faces.IDENTITY_CODES))


@pytest.mark.parametrize("status", [each for each in HTTPStatus if each >= 400])
def test_any_error_can_be_said_on_either_face(status: HTTPStatus) -> None:
    said = json.loads(faces.error_body("/v2/events", status, "Why.", "conflict", "name"))
    code = faces.IDENTITY_CODES.get(status, "INTERNAL")
    assert {"statusCode": status, "errors": [{"code": code, "message": "Why."}]} == said

    plain = json.loads(faces.error_body("/api/v1/x", status, "Why.", "conflict"))
    assert {"detail": "Why.", "error_code": "conflict"} == plain
    assert {"name": ["Why."]} == json.loads(faces.error_body("/", status, "Why.", "c", "name"))


def test_what_is_said_of_a_failure_and_of_a_stop_has_the_face_s_shape() -> None:
    for body in (faces.failure_body("/x", "id-1"), faces.stopped_body("/x")):
        assert {"detail", "error_code"} == set(json.loads(body))
    failed = json.loads(faces.failure_body("/platform/x", "id-1"))
    assert (500, "INTERNAL") == (failed["statusCode"], failed["errors"][0]["code"])
    assert "id-1" in failed["errors"][0]["message"]
    stopped = json.loads(faces.stopped_body("/bulkevents"))
    assert (503, "SERVICE_UNAVAILABLE") == (stopped["statusCode"], stopped["errors"][0]["code"])
