"""Tar streams without I/O: one file written as a stream, any archive read as one, both in bounded memory.

Headers are the standard library's (`tarfile.TarInfo`); what lies between them is passed on in pieces and never kept.
Formats: POSIX.1-1988 (ustar), POSIX.1-2001 (pax, records `path`, `linkpath`, `size`, `mtime`) and GNU (long names and
links, sizes beyond 8 GiB). Refused, because it would be read wrongly: sparse files, pax headers for all that follow.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import AsyncGenerator, AsyncIterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

EntryType = Literal["file", "link", "folder", "symlink", "other"]

OWNER = 65534
MAX_EXTENSION_BYTES = 64 * 1024
"""What a long name, or the records of a pax header, may have."""

_LARGEST = 2**62
_BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * _BLOCK)
"""An archive that has nothing more in it."""
_TYPES: dict[bytes, EntryType] = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.LNKTYPE: "link",
    tarfile.SYMTYPE: "symlink",
    tarfile.DIRTYPE: "folder",
    tarfile.CHRTYPE: "other",
    tarfile.BLKTYPE: "other",
    tarfile.FIFOTYPE: "other",
}
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_MTIME = re.compile(r"(-?)(\d{1,30})(?:\.(\d*))?")
_FARTHEST_MS = 2**53
"""A time beyond is told as this one: whoever sets it must not make the archive unreadable."""


class TarFault(Exception):
    """The bytes are no archive, or one that this reader does not take; the message says where and why."""


# --- writing ------------------------------------------------------------------------------------------------------


async def file_tar(
    name: str, size: int, chunks: AsyncIterable[bytes], mtime_s: int, *, folders: Sequence[str] = ()
) -> AsyncGenerator[bytes]:
    """The stream of an archive with one file of `size` bytes; `folders` come before it. All is owned by 65534.

    Raises:
        TarFault: if `chunks` are not `size` bytes; what was yielded is no whole archive then.
    """
    yield b"".join(_header(folder, tarfile.DIRTYPE, 0o755, 0, mtime_s) for folder in folders) + _header(
        name, tarfile.REGTYPE, 0o644, size, mtime_s
    )
    left = size
    async for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise TarFault(f"{name}: more bytes than the {size} of its header")
        yield chunk
    if left:
        raise TarFault(f"{name}: {left} of its {size} bytes are missing")
    yield bytes(-size % _BLOCK) + END


def _header(name: str, type_: bytes, mode: int, size: int, mtime_s: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.mtime = type_, mode, size, mtime_s
    info.uid = info.gid = OWNER
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


# --- reading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TarEntry:
    """A member of an archive. Text that is not UTF-8 has surrogates in its place, as in the names of `os`."""

    name: str
    type: EntryType
    size: int
    """Bytes of content that follow."""
    mtime_ms: int
    target: str = ""
    """Of a symlink as it was made; of a link the name of the earlier member that it is."""


class TarReader:
    """`feed()` what comes, cut anywhere; then `close()`."""

    def __init__(self) -> None:
        self._block = bytearray()
        """What there is of a header or an extension, which are read as a whole."""
        self._wanted = _BLOCK
        self._extension: tarfile.TarInfo | None = None
        """The header of the extension that is being read."""
        self._overrides: dict[str, str] = {}
        """What the next header does not say itself: pax records, GNU long names under the same keys. The first wins."""
        self._content = 0
        self._skip = 0
        self._position = 0
        self._ended = False

    def feed(self, data: bytes) -> Iterator[TarEntry | bytes]:
        """What the bytes tell: entries, each followed by pieces of its content. Must be exhausted before the next call.

        Raises:
            TarFault
        """
        at = 0
        while at < len(data) and not self._ended:
            if self._content:
                piece = data[at : at + self._content]
                at += len(piece)
                self._content -= len(piece)
                yield piece
            elif self._skip:
                skipped = min(self._skip, len(data) - at)
                at += skipped
                self._skip -= skipped
            else:
                piece = data[at : at + self._wanted - len(self._block)]
                at += len(piece)
                self._block += piece
                if len(self._block) == self._wanted and (entry := self._block_complete()) is not None:
                    yield entry

    def close(self) -> None:
        """The stream has ended.

        Raises:
            TarFault: if the archive had not.
        """
        if not self._ended:
            raise TarFault(f"byte {self._position}: the archive ends within or behind this member")

    def _block_complete(self) -> TarEntry | None:
        block = bytes(self._block)
        self._block.clear()
        self._wanted = _BLOCK
        extension, self._extension = self._extension, None
        if extension is not None:
            self._extend(extension, block)
            return None
        if not any(block):
            if self._overrides:
                raise self._fault("an extension without the member that it is for")
            self._ended = True
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as exc:
            raise self._fault(f"not a header: {exc}") from exc
        if header.size < 0:
            raise self._fault("a negative size")
        if header.type in _EXTENSIONS:
            if header.size > MAX_EXTENSION_BYTES:
                raise self._fault(
                    f"a name or pax header of {header.size} bytes; at most {MAX_EXTENSION_BYTES} are read"
                )
            self._extension = header
            self._wanted = header.size + -header.size % _BLOCK
            if not self._wanted:
                return self._block_complete()
            return None
        return self._entry(header)

    def _entry(self, header: tarfile.TarInfo) -> TarEntry:
        type_ = _TYPES.get(header.type)
        if type_ is None:
            raise self._fault(f"a member of type {header.type!r}, which is not read")
        overrides, self._overrides = self._overrides, {}
        size = self._number(overrides["size"]) if "size" in overrides else header.size
        if size > _LARGEST:
            raise self._fault(f"a size of {size} bytes")
        mtime_ms = self._mtime_ms(overrides["mtime"]) if "mtime" in overrides else int(header.mtime) * 1000
        mtime_ms = max(-_FARTHEST_MS, min(_FARTHEST_MS, mtime_ms))
        name = overrides.get("path", header.name)
        if type_ == "file" and header.type == tarfile.AREGTYPE and name.endswith("/"):
            type_ = "folder"  # so said archives before there was a type for it
        if type_ != "file":
            size = 0  # whatever the header says: nothing follows
        self._content, self._skip = size, -size % _BLOCK
        self._position += _BLOCK + self._content + self._skip
        target = overrides.get("linkpath", header.linkname) if type_ in ("link", "symlink") else ""
        return TarEntry(name.rstrip("/") if type_ == "folder" else name, type_, size, mtime_ms, target)

    def _extend(self, header: tarfile.TarInfo, block: bytes) -> None:
        self._position += _BLOCK + len(block)
        said = block[: header.size]
        if header.type == tarfile.GNUTYPE_LONGNAME:
            self._overrides.setdefault("path", _text(said.split(b"\0")[0]))
        elif header.type == tarfile.GNUTYPE_LONGLINK:
            self._overrides.setdefault("linkpath", _text(said.split(b"\0")[0]))
        else:
            self._overrides = dict(self._records(said)) | self._overrides

    def _records(self, said: bytes) -> Iterator[tuple[str, str]]:
        """Of `<length> <key>=<value>\\n`, one behind the other; the length is that of all of it."""
        while said and said.strip(b"\0"):
            digits, space, _ = said[:20].partition(b" ")
            if not space or not digits.isdigit():
                raise self._fault("a pax header whose record has no length")
            length = int(digits)
            record = said[len(digits) + 1 : length]
            key, equals, value = record[:-1].partition(b"=")
            if length > len(said) or record[-1:] != b"\n" or not equals:
                raise self._fault("a pax header with a broken record")
            said = said[length:]
            if key.startswith(b"GNU.sparse."):
                raise self._fault("a sparse file, which is not read")
            if key in (b"path", b"linkpath", b"size", b"mtime"):
                yield key.decode(), _text(value)

    def _number(self, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 20):
            raise self._fault(f"a pax header with the size {text[:40]!r}")
        return int(text)

    def _mtime_ms(self, text: str) -> int:
        found = _MTIME.fullmatch(text)
        if found is None:
            raise self._fault(f"a pax header with the time {text[:40]!r}")
        sign, seconds, fraction = found.groups()
        ms = int(seconds) * 1000 + int((fraction or "")[:3].ljust(3, "0"))
        return -ms if sign else ms

    def _fault(self, what: str) -> TarFault:
        return TarFault(f"byte {self._position}: {what}")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
