"""The store as dicts: the same operations with the same answers, and nothing clever.

Groups are known by their number, profiles by the 16 bytes of their id. `stroll` compares a paged
list with the plain list that it should be.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any

from service.errors import Conflict, NotFound

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from service.cuts import Cut, Page
    from service.groups import GroupQuery


@dataclass
class ModelGroup:
    id: str
    name: str
    is_active: bool
    custom_id: str | None
    attributes: tuple[tuple[str, str], ...]


@dataclass
class Kept:
    """What is kept of a profile; an attribute's time is infinite where it was the store's own."""

    nickname: str | None = None
    attributes: dict[str, tuple[float, str | None]] = field(default_factory=dict)

    @property
    def live(self) -> dict[str, str]:
        return {name: text for name, (_, text) in self.attributes.items() if text is not None}


@dataclass
class Model:
    """`members` holds deleted groups too, until they are swept; `joined` is the time of each."""

    limit: int
    groups: dict[int, ModelGroup] = field(default_factory=dict)
    members: dict[int, dict[bytes, int]] = field(default_factory=dict)
    identities: dict[tuple[str, str], bytes] = field(default_factory=dict)
    records: dict[bytes, str | None] = field(default_factory=dict)
    kept: dict[bytes, Kept] = field(default_factory=dict)

    def find(self, gid: str, *, include_inactive: bool = True) -> int:
        for of in ("id", "custom_id"):
            for number, group in self.groups.items():
                if getattr(group, of) == gid:
                    if group.is_active or include_inactive:
                        return number
                    raise NotFound
        raise NotFound

    def check_free(self, custom_id: str | None, but: int | None = None) -> None:
        for number, group in self.groups.items():
            if custom_id is not None and group.custom_id == custom_id and number != but:
                raise Conflict(custom_id)

    def create_group(self, number: int, group: ModelGroup) -> None:
        assert number not in self.members, "a number is never used again"
        self.groups[number] = group
        self.members[number] = {}

    def update_group(self, gid: str, changes: dict[str, Any], *, include_inactive: bool) -> None:
        number = self.find(gid, include_inactive=include_inactive)
        self.check_free(changes.get("custom_id"), number)
        for name, value in changes.items():
            setattr(self.groups[number], name, value)

    def delete_group(self, gid: str, *, include_inactive: bool) -> None:
        del self.groups[self.find(gid, include_inactive=include_inactive)]

    def sweep(self) -> None:
        for number in self.members.keys() - self.groups.keys():
            self.members[number] = {}

    def active(self, number: int) -> dict[bytes, int]:
        if number not in self.groups or not self.groups[number].is_active:
            raise NotFound
        return self.members[number]

    def add_members(self, number: int, ids: Iterable[bytes], now_us: int) -> bytes:
        held, outcome = self.active(number), {}
        for each in dict.fromkeys(ids):
            if each in held:
                outcome[each] = b"="
            elif sum(each in members for members in self.members.values()) >= self.limit:
                outcome[each] = b"L"
            else:
                held[each], outcome[each] = now_us, b"+"
        return b"".join(outcome[each] for each in ids)

    def remove_members(self, number: int, ids: Iterable[bytes]) -> bytes:
        held = self.active(number)
        outcome = {each: b"." if held.pop(each, None) is None else b"-" for each in set(ids)}
        return b"".join(outcome[each] for each in ids)

    def replace_members(
        self, number: int, ids: Iterable[bytes], now_us: int
    ) -> tuple[bytes, set[bytes]]:
        wanted = list(ids)
        outcome = self.add_members(number, wanted, now_us)
        leaving = self.members[number].keys() - set(wanted)
        self.remove_members(number, leaving)
        return outcome, leaving

    def check_member(self, number: int, profile: bytes) -> bytes:
        try:
            return b"1" if profile in self.active(number) else b"0"
        except NotFound:
            return b"n"

    def groups_of(self, profile: bytes, query: GroupQuery) -> list[int]:
        return [number for number in self.list_groups(query) if profile in self.members[number]]

    def list_groups(self, query: GroupQuery) -> list[int]:
        def matches(group: ModelGroup) -> bool:
            return (
                (group.is_active or query.include_inactive)
                and query.name in {None, group.name}
                and query.custom_id in {None, group.custom_id}
                and all(
                    any(key == name and value in {None, held} for key, held in group.attributes)
                    for name, value in query.attributes
                )
            )

        found = (number for number, group in self.groups.items() if matches(group))
        return sorted(found, reverse=query.descending)

    def resolved(self, kind: str, value: str, profile: bytes | None) -> None:
        """The store said what an identity resolves to: what we know, or a profile it just made."""
        known = self.identities.get((kind, value))
        if profile is not None and known is None:
            assert profile not in self.records
            self.identities[kind, value] = profile
            self.records[profile] = value if kind == "customer_id" else None
        else:
            assert profile == known

    def add_identity(self, profile: bytes, kind: str, value: str) -> None:
        if self.identities.get((kind, value), profile) != profile:
            raise Conflict(value)
        if kind == "customer_id" and self.records.get(profile) not in {None, value}:
            raise Conflict(value)
        self.identities[kind, value] = profile
        self.records.setdefault(profile, None)
        if kind == "customer_id":
            self.records[profile] = value

    def check_custom_id(self, custom_id: str | None) -> None:
        if ("customer_id", custom_id) in self.identities:
            raise Conflict(custom_id)

    def create_profile(
        self,
        profile: bytes,
        custom_id: str | None,
        nickname: str | None,
        attributes: dict[str, str],
    ) -> None:
        assert profile not in self.records
        self.records[profile] = custom_id
        if custom_id is not None:
            self.identities["customer_id", custom_id] = profile
        self.kept[profile] = Kept(nickname)
        self.update_profile(profile, nickname, attributes, inf)

    def find_profile(self, profile: bytes) -> Kept:
        if profile not in self.records and not any(
            profile in members for members in self.members.values()
        ):
            raise NotFound
        return self.kept.get(profile, Kept())

    def update_profile(
        self, profile: bytes, nickname: str | None, attributes: dict[str, str] | None, at: float
    ) -> bool:
        """Whether attributes changed."""
        kept = self.kept[profile] = self.find_profile(profile)
        self.records.setdefault(profile, None)
        kept.nickname = nickname
        changed = False
        for name in [] if attributes is None else kept.attributes.keys() | attributes.keys():
            wanted = (attributes or {}).get(name)
            time, held = kept.attributes.get(name, (0, None))
            if held != wanted and at >= time:
                kept.attributes[name] = (at, wanted)
                changed = True
        return changed

    def erase_profile(self, profile: bytes) -> tuple[int, int, int]:
        attributes = self.find_profile(profile).live
        joined = [members for members in self.members.values() if profile in members]
        for members in joined:
            del members[profile]
        owned = [key for key, owner in self.identities.items() if owner == profile]
        for key in owned:
            del self.identities[key]
        self.records.pop(profile, None)
        self.kept.pop(profile, None)
        return len(joined), len(attributes), len(owned)


async def stroll(
    read: Callable[[Cut | None, int], Awaitable[Page[Any]]],
    expected: list[Any],
    steps: list[tuple[int, bool]],
    of: Callable[[Any], Any] = lambda row: row,
) -> None:
    """Go to and fro through a list (page size, backward), and hold each page against its slice."""
    cut: Cut | None = None
    begin = end = 0
    for size, backward in steps:
        page = await read(cut, size)
        begin, end = (max(0, begin - size), begin) if cut and cut.backward else (end, end + size)
        end = min(end, len(expected))
        assert expected[begin:end] == [of(row) for row in page.rows]
        assert (len(expected), begin > 0, end < len(expected)) == (
            page.count,
            page.first is not None,
            page.last is not None,
        )
        assert page.first is None or page.first.backward
        assert page.last is None or not page.last.backward
        cut = (page.first if backward else page.last) or page.first or page.last
        if cut is None:
            return
