"""Files that clients have left in the object store for a container."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from common.bus import Bus
from common.errors import UnknownArtifact


class Uploads:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def read(self, object_name: str) -> AsyncGenerator[bytes]:
        """The bytes of an uploaded object.

        Raises:
            UnknownArtifact: if there is none of that name, or none any more.
            StoreUnavailable: if the store does not answer, or has lost a part.
        """
        info = await self._bus.object_info(object_name)
        if info is None:
            raise UnknownArtifact(object_name)
        async for piece in self._bus.read_object(info, 0, info.size):
            yield piece

    async def remove(self, object_name: str) -> None:
        """Free its room: it is in the container now.

        Raises:
            StoreUnavailable: then it expires.
        """
        info = await self._bus.object_info(object_name)
        if info is not None:
            await self._bus.purge_object(info.object_id)
