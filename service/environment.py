"""Applications and their environments: what the registry keeps of them, and what is made of it.

Pure: no I/O. An `Environment` is what every method of the store takes first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

import msgspec
from msgspec import Meta

from service import ids, keys

if TYPE_CHECKING:
    from collections.abc import Iterable


class Settings(TypedDict, total=False):
    """What of an application can be changed, and to what."""

    name: Annotated[str, Meta(min_length=1, max_length=255)]
    profiles: Literal["open", "registered"]
    groups_per_profile: Annotated[int, Meta(ge=1, le=10_000)]
    anonymous_profiles: bool
    anonymous_per_minute: Annotated[int, Meta(ge=1, le=1_000_000)]
    requests_per_second: Annotated[int, Meta(ge=1, le=1_000_000)] | None
    grouping: Literal["realtime", "weekly"]
    definitions_per_workspace: Annotated[int, Meta(ge=1, le=100)]
    attributes_per_definition: Annotated[int, Meta(ge=1, le=100)]
    users_per_group: Annotated[int, Meta(ge=1, le=1_000)]
    dynamic_groups: Annotated[int, Meta(ge=1, le=5_000)]


class EnvironmentDocument(msgspec.Struct, frozen=True):
    """An environment as the registry keeps it: its number, and the tags of its partitions."""

    number: int
    tags: tuple[str, ...]


class SigningSecret(msgspec.Struct, frozen=True, kw_only=True):
    """A secret with which an application signs tokens of its own, as the registry keeps it.

    `sealed` is encrypted under the server's secret key: `signing` opens it.
    """

    id: str
    sealed: bytes
    created_at_us: int


class ApplicationDocument(msgspec.Struct, frozen=True, kw_only=True):
    """An application as the registry keeps it. What an older version did not write has defaults."""

    client_id: str
    workspace_id: int
    name: str
    secret: bytes
    created_at_us: int
    environments: dict[str, EnvironmentDocument]
    profiles: Literal["open", "registered"] = "open"
    groups_per_profile: int = 1000
    anonymous_profiles: bool = True
    """Whether anybody may create a profile without a token."""
    anonymous_per_minute: int = 6000
    """How many profiles may be created so in a minute."""
    requests_per_second: int | None = None
    """Limit of each caller (`auth.Principal.caller`); None: there is none."""
    signing_secrets: dict[str, SigningSecret] = {}
    grouping: Literal["realtime", "weekly"] = "realtime"
    """When users become groups: with the request that says so, or on Mondays."""
    definitions_per_workspace: int = 1
    attributes_per_definition: int = 10
    users_per_group: int = 10
    dynamic_groups: int = 1000
    """How many groups may follow a rule tree."""
    deleting_since_us: int | None = None
    """Set while it is deleted: no process knows it any more, but what it has is still its own."""


class Environment:
    """One environment of an application, ready to use: what every store method takes first."""

    __slots__ = (
        "client_id",
        "directory",
        "groups_per_profile",
        "mixer",
        "name",
        "number",
        "partitions",
        "registered",
        "rules_home",
        "secret",
    )

    def __init__(self, name: str, document: EnvironmentDocument, of: ApplicationDocument) -> None:
        """Compute tags and the mixer once."""
        self.name = name
        self.client_id = of.client_id
        self.number = document.number
        self.directory = keys.directory(document.number)
        self.partitions = tuple(keys.partition(tag) for tag in document.tags)
        self.rules_home = keys.directory(of.environments["production"].number)
        """Definitions belong to the workspace: the directory that keeps them is production's."""
        self.secret = of.secret
        self.mixer = ids.mixer(of.secret)
        self.groups_per_profile = of.groups_per_profile
        self.registered = of.profiles == "registered"

    def home(self, mixed: bytes) -> bytes:
        """Give the tag of the partition that a profile lives in: h mod B."""
        return self.partitions[ids.head(mixed) % len(self.partitions)]

    def by_home(self, mixed: Iterable[bytes]) -> dict[bytes, list[bytes]]:
        """Part profiles, or instances, by the tags of their partitions, in the order given."""
        homes: dict[bytes, list[bytes]] = {}
        for each in mixed:
            homes.setdefault(self.home(each), []).append(each)
        return homes


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
    anonymous_profiles: bool
    anonymous_per_minute: int
    requests_per_second: int | None
    signing_secrets: dict[str, SigningSecret]
    grouping: str
    definitions_per_workspace: int
    attributes_per_definition: int
    users_per_group: int
    dynamic_groups: int
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
        anonymous_profiles=document.anonymous_profiles,
        anonymous_per_minute=document.anonymous_per_minute,
        requests_per_second=document.requests_per_second,
        signing_secrets=document.signing_secrets,
        grouping=document.grouping,
        definitions_per_workspace=document.definitions_per_workspace,
        attributes_per_definition=document.attributes_per_definition,
        users_per_group=document.users_per_group,
        dynamic_groups=document.dynamic_groups,
        environments={
            name: Environment(name, environment, document)
            for name, environment in document.environments.items()
        },
    )
