"""Applications and their environments: what the registry keeps of them, and what is made of it.

Pure: no I/O. An `Environment` is what every method of the store takes first.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from service import ids, keys


class EnvironmentDocument(msgspec.Struct, frozen=True):
    """An environment as the registry keeps it: its number, and the tags of its partitions."""

    number: int
    tags: tuple[str, ...]


class ApplicationDocument(msgspec.Struct, frozen=True, kw_only=True):
    """An application as the registry keeps it."""

    client_id: str
    workspace_id: int
    name: str
    secret: bytes
    created_at_us: int
    environments: dict[str, EnvironmentDocument]
    profiles: Literal["open", "registered"] = "open"
    groups_per_profile: int = 1000
    deleting_since_us: int | None = None
    """Set while it is deleted: no process knows it any more, but what it has is still its own."""


class Environment:
    """One environment of an application, ready to use: what every store method takes first."""

    __slots__ = (
        "directory",
        "groups_per_profile",
        "mixer",
        "name",
        "number",
        "partitions",
        "registered",
        "secret",
    )

    def __init__(self, name: str, document: EnvironmentDocument, of: ApplicationDocument) -> None:
        """Compute tags and the mixer once."""
        self.name = name
        self.number = document.number
        self.directory = keys.directory(document.number)
        self.partitions = tuple(keys.partition(tag) for tag in document.tags)
        self.secret = of.secret
        self.mixer = ids.mixer(of.secret)
        self.groups_per_profile = of.groups_per_profile
        self.registered = of.profiles == "registered"

    def home(self, mixed: bytes) -> bytes:
        """Give the tag of the partition that a profile lives in: h mod B."""
        return self.partitions[ids.head(mixed) % len(self.partitions)]


class Application(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant. `secret` never leaves the process: ids and cursors depend on it."""

    number: int
    client_id: str
    workspace_id: int
    name: str
    secret: bytes
    created_at_us: int
    profiles: str
    groups_per_profile: int
    environments: dict[str, Environment]

    @property
    def production(self) -> Environment:
        """The environment that the Profile Groups face shows."""
        return self.environments["production"]


def as_application(number: int, document: ApplicationDocument) -> Application:
    """Give the application of a document under its number."""
    return Application(
        number=number,
        client_id=document.client_id,
        workspace_id=document.workspace_id,
        name=document.name,
        secret=document.secret,
        created_at_us=document.created_at_us,
        profiles=document.profiles,
        groups_per_profile=document.groups_per_profile,
        environments={
            name: Environment(name, environment, document)
            for name, environment in document.environments.items()
        },
    )
