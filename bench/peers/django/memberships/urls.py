"""The paths: those of Belong."""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from django.urls import path

from .views import Check, GroupsOfProfile, Members, OneGroup

API = "api/v1/applications/<str:application>"

urlpatterns = [
    path(f"{API}/memberships/check/", Check.as_view()),
    path(f"{API}/profiles/<uuid:profile>/profile-groups/", GroupsOfProfile.as_view()),
    path(f"{API}/profile-groups/<uuid:group>/members/", Members.as_view()),
    path(f"{API}/profile-groups/<uuid:group>/", OneGroup.as_view()),
]
