"""Who may ask: whoever has the token for the application of the path."""

# mypy: disable-error-code="import-not-found", disallow-subclassing-any=False

from __future__ import annotations

import os
from typing import Any

from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import BasePermission

TOKENS = {os.environ["PEER_TOKEN"]: os.environ["PEER_APPLICATION"]}
"""Token -> the application that it is good for."""


class BearerToken(BaseAuthentication):
    """`Authorization: Bearer <token>`."""

    def authenticate(self, request: Any) -> tuple[None, str] | None:
        """Give the application of the token; None if nothing was sent."""
        scheme, _, token = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        if token not in TOKENS:
            raise AuthenticationFailed
        return None, TOKENS[token]

    def authenticate_header(self, request: Any) -> str:  # noqa: ARG002 - REST framework gives it
        """Name the scheme, so that nothing sent is 401 and not 403."""
        return "Bearer"


class ForTheApplication(BasePermission):
    """The token is for the application in the path."""

    def has_permission(self, request: Any, view: Any) -> bool:
        """Compare both."""
        return bool(request.auth == view.kwargs["application"])
