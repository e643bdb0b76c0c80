"""The tables of groups and memberships."""

# mypy: disable-error-code="import-not-found", disallow-subclassing-any=False

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import migrations, models
from django.db.models.functions import Now


class Migration(migrations.Migration):
    """Both of them: there was nothing before."""

    initial = True
    dependencies: ClassVar[list[tuple[str, str]]] = []
    operations: ClassVar = [
        migrations.CreateModel(
            name="Group",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=255)),
                ("is_active", models.BooleanField(default=True)),
                ("description", models.CharField(max_length=2000, null=True)),
                ("profile_count", models.IntegerField(default=0)),
                ("custom_id", models.CharField(max_length=255, null=True, unique=True)),
                ("created_at", models.DateTimeField(db_default=Now())),
                ("attributes", models.JSONField(default=list)),
            ],
            options={"db_table": "groups"},
        ),
        migrations.CreateModel(
            name="Membership",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "group_id",
                        "profile_id",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("profile_id", models.UUIDField()),
                ("created_at", models.DateTimeField(db_default=Now())),
                (
                    "group",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=models.CASCADE,
                        related_name="memberships",
                        to="memberships.group",
                    ),
                ),
            ],
            options={
                "db_table": "memberships",
                "indexes": [models.Index(fields=["profile_id", "group"], name="groups_of_profile")],
            },
        ),
    ]
