"""What only one process of many may do at a time: whoever holds the role's record does it."""

from __future__ import annotations

from typing import Final

from common.bus import Bus
from common.errors import Fenced, UndecodableMessage
from common.schema import RoleRecord
from common.streams import ROLES_BUCKET

ROLE_TTL_S: Final = 10.0
"""After this long without a renewal the role is free."""


class Role:
    """One process's claim to a role. Two may believe to hold it for a moment (one was frozen): what they do in it must
    bear that."""

    def __init__(self, bus: Bus, name: str, holder: str) -> None:
        self._bus = bus
        self._name = name
        self._record = RoleRecord(holder=holder)

    async def hold(self) -> bool:
        """Take the role or renew it. False if another process has it.

        Raises:
            StoreUnavailable: if the store does not answer.
        """
        entry = await self._bus.get(ROLES_BUCKET, self._name)
        if _holder(entry.value) not in (None, self._record.holder):
            return False
        try:
            await self._bus.replace(ROLES_BUCKET, self._name, self._record.encode(), entry.revision, ttl_s=ROLE_TTL_S)
        except Fenced:
            return False
        return True


def _holder(value: bytes | None) -> str | None:
    if value is None:
        return None
    try:
        return RoleRecord.decode(value).holder
    except UndecodableMessage:
        return None  # of another version; it lapses, and what is done in a role bears two holders
