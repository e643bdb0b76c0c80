"""The five answers.

Rows are read as dictionaries, and bodies looked at by hand: serializers would cost more.
"""

# mypy: disable-error-code="import-not-found", disallow-subclassing-any=False

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from django.db import connection, transaction
from django.db.models import F
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.response import Response
from rest_framework.utils.urls import replace_query_param
from rest_framework.views import APIView

from .models import Group, Membership

if TYPE_CHECKING:
    from uuid import UUID

    from rest_framework.request import Request

MANY = 10_000
SHOWN = ("id", "name", "is_active", "description", "profile_count", "custom_id", "created_at")


class Check(APIView):
    """`memberships/check/`."""

    def post(self, request: Request, application: str) -> Response:  # noqa: ARG002 - by ForTheApplication
        """Say of each pair whether the profile is in the group."""
        pairs = [
            (uuid_of(pair.get("group_id")), uuid_of(pair.get("profile_id")))
            for pair in list_of(request.data, "pairs", dict)
        ]
        if len(pairs) == 1:
            [(group, profile)] = pairs
            exists = Membership.objects.filter(group_id=group, profile_id=profile).exists()
            return Response({"results": [exists]})
        groups, profiles = zip(*pairs, strict=True) if pairs else ((), ())
        # A list of pairs is nothing that Django can say well: two arrays are one statement, always
        # the same one.
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT m.profile_id IS NOT NULL"
                " FROM unnest(%s::uuid[], %s::uuid[]) WITH ORDINALITY"
                " AS asked(group_id, profile_id, place)"
                " LEFT JOIN memberships m USING (group_id, profile_id) ORDER BY place",
                [list(groups), list(profiles)],
            )
            return Response({"results": [found for (found,) in cursor.fetchall()]})


class GroupsOfProfile(APIView):
    """`profiles/{profile}/profile-groups/`."""

    def get(self, request: Request, application: str, profile: UUID) -> Response:  # noqa: ARG002
        """List the groups that a profile is in, in the order of their creation."""
        page, page_size = window(request)
        start = (page - 1) * page_size
        rows = list(
            Group.objects.filter(memberships__profile_id=profile)
            .order_by("created_at", "id")
            .values("id", "name", "profile_count", "is_active", "created_at", "custom_id")
        )
        shown = [
            {
                "group_id": row["id"],
                "group_name": row["name"],
                "profile_count": row["profile_count"],
                "is_active": row["is_active"],
                "created_at": row["created_at"],
                "custom_id": row["custom_id"],
            }
            for row in rows[start : start + page_size]
        ]
        return paged(request, len(rows), shown, page, page_size)


class OneGroup(APIView):
    """`profile-groups/{group}/`."""

    def get(self, request: Request, application: str, group: UUID) -> Response:  # noqa: ARG002
        """Show a group."""
        row = Group.objects.filter(id=group).values(*SHOWN, "attributes").first()
        if row is None:
            raise NotFound
        return Response({**row, "membership_type": "static"})


class Members(APIView):
    """`profile-groups/{group}/members/`."""

    def get(self, request: Request, application: str, group: UUID) -> Response:  # noqa: ARG002
        """List the members of a group, in the order of their ids."""
        page, page_size = window(request)
        start = (page - 1) * page_size
        count = Group.objects.filter(id=group).values_list("profile_count", flat=True).first()
        if count is None:
            raise NotFound
        rows = (
            Membership.objects.filter(group_id=group)
            .order_by("profile_id")
            .values_list("profile_id", "created_at")[start : start + page_size]
        )
        shown = [{"id": profile, "membership_created_at": at} for profile, at in rows]
        return paged(request, count, shown, page, page_size)

    def post(self, request: Request, application: str, group: UUID) -> Response:  # noqa: ARG002
        """Add members to a group, and say of each id what became of it."""
        sent: dict[str, UUID] = {}
        invalid = []
        for text in dict.fromkeys(list_of(request.data, "profile_ids", str)):
            try:
                sent[text] = uuid.UUID(text)
            except ValueError:
                invalid.append(text)
        with transaction.atomic():
            # Who adds to the same group waits here, so that nobody is added or counted twice.
            if not Group.objects.select_for_update(no_key=True).filter(id=group).exists():
                raise NotFound
            added = add(group, list(sent.values()))
            if added:
                Group.objects.filter(id=group).update(profile_count=F("profile_count") + len(added))
        return Response(
            {
                "successfully_added": [text for text, each in sent.items() if each in added],
                "already_added": [text for text, each in sent.items() if each not in added],
                "invalid_ids": invalid,
            }
        )


def add(group: UUID, profiles: list[UUID]) -> set[UUID]:
    """Add members, and give those who were none before.

    `bulk_create` cannot say whom it skipped, and sends a parameter for each field of each row.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO memberships (group_id, profile_id) SELECT %s, unnest(%s::uuid[])"
            " ON CONFLICT DO NOTHING RETURNING profile_id",
            [group, profiles],
        )
        return {profile for (profile,) in cursor.fetchall()}


def list_of(body: Any, name: str, kind: type) -> list[Any]:
    """Give the list that stands in a body under a name, if it is one of such things."""
    found = body.get(name) if isinstance(body, dict) else None
    if not isinstance(found, list) or not all(isinstance(each, kind) for each in found):
        raise ValidationError({name: "This is not a list of what it has to be."})
    if len(found) > MANY:
        raise ValidationError({name: f"These are more than {MANY}."})
    return found


def uuid_of(text: Any) -> UUID:
    """Read a UUID."""
    try:
        return uuid.UUID(text)
    except (TypeError, ValueError, AttributeError):
        raise ValidationError("This is not a UUID.") from None


def window(request: Request) -> tuple[int, int]:
    """Give number and size of the page that is asked for."""
    try:
        page = int(request.query_params.get("page", 1))
        page_size = int(request.query_params.get("page_size", 20))
    except ValueError:
        raise ValidationError("`page` and `page_size` are numbers.") from None
    if page < 1 or not 1 <= page_size <= 1000:
        raise ValidationError("`page` begins with 1; `page_size` is 1 to 1,000.")
    return page, page_size


def paged(request: Request, count: int, rows: list[Any], page: int, page_size: int) -> Response:
    """Answer with a page and the URLs of its neighbours."""
    url = request.build_absolute_uri()
    following, previous = page * page_size < count, page > 1
    return Response(
        {
            "count": count,
            "next": replace_query_param(url, "page", page + 1) if following else None,
            "previous": replace_query_param(url, "page", page - 1) if previous else None,
            "results": rows,
        }
    )
