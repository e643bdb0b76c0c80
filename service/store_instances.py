"""Instances in the store: all users of a definition who share a value, and what they bring in.

An instance lives in the slot that its id says, which is a keyed hash of what it is: its header, a
contribution of each of its users, and their order, of which the first ones count. How it comes to
be and who is told of it is the matter of `store_derivation`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from service import ids, keys, scripts
from service.errors import Unavailable
from service.grouping import Contribution, Instance
from service.store_groups import all_done

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.connection import Connection
    from service.environment import Environment

READ = 80
"""Instances that one script reads, if they are small."""
READ_CONTRIBUTIONS = 400
"""Contributions that one script reads, if they are small."""
READ_BYTES = 262_144
WHOLE_CONTRIBUTIONS = 1_000
WHOLE_BYTES = 8_388_608
"""An instance that changes meanwhile again and again is read by one script, up to this size."""
PARTS_TRIES, TRIES = 3, 20
"""How often an instance is read anew because it changed: in parts, and in all."""

_VALUES = msgspec.json.Decoder(dict[str, tuple[int, msgspec.Raw]])
_WITHOUT_MPID = b"g" * 16
_ORDER = 32


class InstanceStore:
    """Instances of an environment. Every method may raise Unavailable."""

    def __init__(self, connection: Connection) -> None:
        """Take the open connection."""
        self._connection = connection

    async def read(
        self, env: Environment, iids: Sequence[bytes], *, limit: int = 10, bulk: bool = False
    ) -> list[Instance | None]:
        """Read instances in the order given, each as it was at one moment; None where none is.

        One round trip for 80 of a partition, or for 400 contributions that count, or 256 KiB of
        them; partitions side by side. One that keeps changing, and is over 8 MiB: Unavailable.
        `limit` is how many may count in most of them.
        """
        found: dict[bytes, Instance | None] = {}
        await all_done(
            *(
                self._read(tag, within[start : start + READ], found, limit, bulk=bulk)
                for tag, within in env.by_home(dict.fromkeys(iids)).items()
                for start in range(0, len(within), READ)
            )
        )
        return [found[iid] for iid in iids]

    async def _read(
        self,
        tag: bytes,
        iids: list[bytes],
        found: dict[bytes, Instance | None],
        limit: int,
        *,
        bulk: bool,
    ) -> None:
        """Read instances of one partition into `found`."""
        script = scripts.load("read_instances")
        declared = [keys.key(tag, "stale"), keys.none(tag)]
        parts: dict[bytes, list[bytes]] = {}
        version, tries = b"", 0
        while iids:
            room = (READ_CONTRIBUTIONS, READ_BYTES)
            if tries >= PARTS_TRIES:
                room = (WHOLE_CONTRIBUTIONS, WHOLE_BYTES)
            arguments: list[bytes | int] = [*room, limit]
            for iid in iids:
                arguments += (iid, len(parts.get(iid, ())))
            answers = await self._connection.call(script, declared, arguments, bulk=bulk)
            for iid, answer in zip(iids, answers, strict=False):
                if not isinstance(answer, list):
                    found[iid] = None
                    parts.pop(iid, None)
                    continue
                held = parts.get(iid)
                if held is None:
                    held = answer[8]
                elif answer[2] != version:
                    parts.pop(iid)
                    tries += 1
                    break
                else:
                    held += answer[8]
                if len(held) < answer[4]:
                    # The last one that this answer had room for: the next one goes on with it.
                    parts[iid], version = held, answer[2]
                    break
                parts.pop(iid, None)
                found[iid] = _instance(iid, answer, held)
            iids = [iid for iid in iids if iid not in found]
            if tries >= TRIES:
                message = "an instance is being changed by too many others at once"
                raise Unavailable(message)


def _instance(iid: bytes, answer: list[Any], held: list[bytes]) -> Instance:
    number, value, version, rules, _, total, stale, formers, _ = answer
    return Instance(
        id=iid,
        number=int(number),
        value=value.decode(),
        version=int(version),
        rules=int(rules),
        total=total,
        counted=tuple(map(contribution, held)),
        formers=tuple(formers),
        stale=bool(stale),
    )


def contribution(held: bytes) -> Contribution:
    """Read a contribution as it is stored: `<seq> <since> <order> <JSON>`."""
    seq, since, rest = held.split(b" ", 2)
    mpid = rest[: ids.SIZE]
    return Contribution(
        mixed=rest[ids.SIZE : _ORDER],
        seq=int(seq),
        since_us=int(since),
        mpid=None if mpid == _WITHOUT_MPID else int(mpid, 16) - 2**63,
        values={
            name: (time_us, bytes(value))
            for name, (time_us, value) in _VALUES.decode(rest[_ORDER + 1 :]).items()
        },
    )
