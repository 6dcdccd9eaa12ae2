"""What a folder of the files directory holds, of its archive and in bounded memory."""

from __future__ import annotations

from typing import Any

from worker.tar_stream import EntryType, TarEntry

MAX_ENTRIES = 1_000
MAX_TEXT_BYTES = 256 * 1024
"""Names and targets, in all."""

_TYPES: dict[EntryType, str] = {"link": "file"}


class Listing:
    """The entries below a folder, named from the files directory on, so that each name is a path.

    `path` is the folder's, empty for the files directory itself.
    """

    def __init__(self, path: str, max_content_bytes: int) -> None:
        self._prefix = f"{path}/" if path else ""
        self._content_left = max_content_bytes
        self._text_left = MAX_TEXT_BYTES
        self._sizes: dict[str, int] = {}
        self.entries: list[dict[str, Any]] = []
        self.truncated = False
        """There is more; what comes now is not taken."""

    def take(self, item: TarEntry | bytes) -> None:
        """An entry, or content that is skipped."""
        if isinstance(item, bytes):
            self._content_left -= len(item)
            self.truncated = self._content_left < 0
        elif below := item.name.partition("/")[2]:
            self._add(item, below)

    def _add(self, item: TarEntry, below: str) -> None:
        entry: dict[str, Any] = {
            "name": self._prefix + _shown(below),
            "type": _TYPES.get(item.type, item.type),
            # A further name of a file that was listed has no size of its own in an archive.
            "size": self._sizes.get(item.target, 0) if item.type == "link" else item.size,
            "mtime_ms": item.mtime_ms,
        }
        if item.type == "symlink":
            entry["target"] = _shown(item.target)
        self._text_left -= len(entry["name"].encode()) + len(entry.get("target", "").encode())
        if len(self.entries) == MAX_ENTRIES or self._text_left < 0:
            self.truncated = True
            return
        self._sizes[item.name] = entry["size"]
        self.entries.append(entry)


def _shown(text: str) -> str:
    """Names are bytes to Linux; what is no UTF-8 in them is shown as U+FFFD, and cannot be asked for."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
