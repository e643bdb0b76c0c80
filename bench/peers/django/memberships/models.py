"""Groups and memberships, as tables."""

# mypy: disable-error-code="import-not-found", disallow-subclassing-any=False

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models
from django.db.models.functions import Now


class Group(models.Model):
    """A group. Its members are counted when they are added: to count them costs with their size."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    name = models.CharField(max_length=255)
    is_active = models.BooleanField(default=True)
    description = models.CharField(max_length=2000, null=True)  # noqa: DJ001 - null in the answer
    profile_count = models.IntegerField(default=0)
    custom_id = models.CharField(max_length=255, null=True, unique=True)  # noqa: DJ001 - the same
    created_at = models.DateTimeField(db_default=Now())
    attributes = models.JSONField(default=list)

    class Meta:
        """How it is stored."""

        db_table = "groups"

    def __str__(self) -> str:
        """Give its name."""
        return str(self.name)


class Membership(models.Model):
    """A profile in a group. Its two indexes answer both directions."""

    pk = models.CompositePrimaryKey("group_id", "profile_id")
    group = models.ForeignKey(Group, models.CASCADE, related_name="memberships", db_index=False)
    profile_id = models.UUIDField()
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        """How it is stored."""

        db_table = "memberships"
        indexes: ClassVar = [models.Index(fields=["profile_id", "group"], name="groups_of_profile")]

    def __str__(self) -> str:
        """Name profile and group."""
        return f"{self.profile_id} in {self.group_id}"
