"""Tar streams against the standard library's own reader and writer, cut anywhere."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.tar_stream import MAX_EXTENSION_BYTES, TarEntry, TarFault, TarReader, file_tar

NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=120).filter(
    lambda name: name not in (".", "..")
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
CUTS = st.lists(st.integers(0, 20_000), max_size=30)
TYPES = {
    tarfile.REGTYPE: "file",
    tarfile.LNKTYPE: "link",
    tarfile.SYMTYPE: "symlink",
    tarfile.DIRTYPE: "folder",
    tarfile.FIFOTYPE: "other",
}


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    borders = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(borders)]


def read(pieces: Iterable[bytes]) -> list[tuple[TarEntry, bytes]]:
    """Every entry with its content."""
    reader, found = TarReader(), list[tuple[TarEntry, bytearray]]()
    for piece in pieces:
        for item in reader.feed(piece):
            if isinstance(item, TarEntry):
                found.append((item, bytearray()))
            else:
                assert len(item) > 0
                found[-1][1].extend(item)
    reader.close()
    return [(entry, bytes(content)) for entry, content in found]


def packed(members: Iterable[tuple[dict[str, Any], bytes]], form: int = tarfile.PAX_FORMAT, **options: Any) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=form, **options) as tar:
        for fields, content in members:
            info = tarfile.TarInfo()
            info.size = len(content)
            for name, value in fields.items():
                setattr(info, name, value)
            tar.addfile(info, io.BytesIO(content))
    return archive.getvalue()


async def written(name: str, size: int, chunks: Iterable[bytes], **options: Any) -> list[bytes]:
    async def given_chunks() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return [piece async for piece in file_tar(name, size, given_chunks(), 1_700_000_000, **options)]


def unpacked(pieces: Iterable[bytes]) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        return [(member, file.read() if (file := tar.extractfile(member)) else b"") for member in tar]


# --- writing ------------------------------------------------------------------------------------------------------


@given(name=PATHS, content=st.binary(max_size=3000), cuts=CUTS)
async def test_a_file_that_is_written_is_the_same_for_the_standard_reader(
    name: str, content: bytes, cuts: list[int]
) -> None:
    """Name, content, owner, mode and time, however the content came."""
    pieces = await written(name, len(content), cut(content, cuts))

    [(member, unpacked_content)] = unpacked(pieces)
    assert (member.name, unpacked_content) == (name, content)
    assert (member.uid, member.gid, member.mode, member.mtime) == (65534, 65534, 0o644, 1_700_000_000)
    assert (member.isreg(), len(b"".join(pieces)) % 512) == (True, 0)


async def test_folders_come_before_the_file_that_stands_in_them() -> None:
    """So that they are the tool's: what an unpacker makes by itself is root's."""
    members = unpacked(await written("a/ä/f", 1, [b"x"], folders=["a", "a/ä"]))

    assert [(member.name, member.isdir(), member.mode, member.uid) for member, _ in members] == [
        ("a", True, 0o755, 65534),
        ("a/ä", True, 0o755, 65534),
        ("a/ä/f", False, 0o644, 65534),
    ]


async def test_content_is_passed_on_as_it_comes() -> None:
    """Nothing is gathered: a piece goes out before the next one is asked for."""
    asked: list[int] = []

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(3):
            asked.append(number)
            yield b"x" * 1000

    seen = [len(asked) async for piece in file_tar("f", 3000, chunks(), 0) if piece == b"x" * 1000]

    assert seen == [1, 2, 3]


@pytest.mark.parametrize(("size", "said"), [(3, "more bytes than the 3"), (9, "5 of its 9 bytes are missing")])
async def test_content_of_another_size_than_announced_is_a_fault(size: int, said: str) -> None:
    """The header has gone out by then: what follows would be read as something else."""
    with pytest.raises(TarFault, match=said):
        await written("f", size, [b"ab", b"cd"])


# --- reading ------------------------------------------------------------------------------------------------------

MEMBERS = st.lists(
    st.tuples(
        st.fixed_dictionaries(
            {
                "name": PATHS,
                "type": st.sampled_from(list(TYPES)),
                "linkname": PATHS,
                "mtime": st.integers(0, 2**33),
                "uid": st.integers(0, 2**40),
            }
        ),
        st.binary(max_size=2000),
    ),
    max_size=6,
)


@given(members=MEMBERS, form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), cuts=CUTS)
def test_what_the_standard_writer_writes_is_read_the_same(
    members: list[tuple[dict[str, Any], bytes]], form: int, cuts: list[int]
) -> None:
    """Every type, long names and links in both forms, however the stream is cut."""
    members = [(fields, content if fields["type"] == tarfile.REGTYPE else b"") for fields, content in members]

    found = read(cut(packed(members, form), cuts))

    assert [(entry.name, entry.type, entry.size, entry.mtime_ms, content) for entry, content in found] == [
        (fields["name"], TYPES[fields["type"]], len(content), fields["mtime"] * 1000, content)
        for fields, content in members
    ]
    assert [entry.target for entry, _ in found] == [
        fields["linkname"] if fields["type"] in (tarfile.LNKTYPE, tarfile.SYMTYPE) else "" for fields, _ in members
    ]


def test_of_two_names_for_one_member_the_first_is_read_as_the_standard_reader_does() -> None:
    """A pax header and a GNU long name may stand before the same member, in either order."""
    by_pax, by_gnu = pax(b"9 path=p\n"), header(type=tarfile.GNUTYPE_LONGNAME, size=2) + b"g\0" + bytes(510)

    for archive in (by_pax + by_gnu + FILE, by_gnu + by_pax + FILE):
        [(member, _)] = unpacked([archive])
        [(entry, _)] = read([archive])
        assert entry.name == member.name


@given(mtime=st.decimals(-(10**10), 10**10, places=3))
def test_a_time_with_a_fraction_is_read_to_the_millisecond(mtime: Any) -> None:
    """As pax records tell it."""
    [(entry, _)] = read([packed([({"name": "f", "pax_headers": {"mtime": str(mtime)}}, b"")])])

    assert entry.mtime_ms == int(mtime * 1000)


def test_a_time_beyond_all_reason_is_told_as_the_farthest() -> None:
    """A tool sets what it likes, and must not make a listing fail."""
    [(entry, _)] = read([packed([({"name": "f", "pax_headers": {"mtime": "9" * 25}}, b"")])])

    assert entry.mtime_ms == 2**53


def test_a_name_that_is_no_text_is_read_with_surrogates_in_its_place() -> None:
    """As the functions of `os` do."""
    [(entry, _)] = read([packed([({"name": "a\udcff", "linkname": ""}, b"")], tarfile.GNU_FORMAT)])

    assert entry.name == "a\udcff"


def test_a_file_of_more_than_eight_gibibytes_has_its_size() -> None:
    """In both forms: octal digits end there."""
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        info = tarfile.TarInfo("f")
        info.size = 2**40
        [entry] = TarReader().feed(info.tobuf(form))
        assert isinstance(entry, TarEntry)
        assert entry.size == 2**40


def test_what_stands_behind_the_end_is_not_read() -> None:
    """Writers fill up their last record with anything."""
    assert read([packed([]) + b"rubbish" * 200]) == []


def test_content_is_handed_on_before_all_of_it_is_there() -> None:
    """Pieces are as they came, and no byte is kept."""
    reader = TarReader()
    archive = packed([({"name": "f"}, b"x" * 1_000_000)])
    list(reader.feed(archive[:512]))

    pieces = [list(reader.feed(archive[at : at + 1000])) for at in range(512, 10_512, 1000)]

    assert pieces == [[b"x" * 1000]] * 10


# --- what is refused ----------------------------------------------------------------------------------------------


def header(**fields: Any) -> bytes:
    info = tarfile.TarInfo("f")
    for name, value in fields.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def checked(block: bytes) -> bytes:
    """The block with its sum."""
    blank = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(struct.unpack("512B", blank)) + block[156:]


def pax(records: bytes) -> bytes:
    return header(type=tarfile.XHDTYPE, size=len(records)) + records + bytes(-len(records) % 512)


FILE = header() + bytes(1024)


@pytest.mark.parametrize(
    ("archive", "said"),
    [
        (b"x" * 512, "not a header: .*checksum|not a header: invalid"),
        (bytes(100), "ends within"),
        (packed([({"name": "f"}, b"abc")])[:514], "ends within"),
        (header(size=-5), "negative size"),
        (header(type=tarfile.GNUTYPE_SPARSE), "type b'S'"),
        (header(type=tarfile.XGLTYPE), "type b'g'"),
        (header(type=b"M"), "type b'M'"),
        (pax(b"22 GNU.sparse.major=1\n") + FILE, "sparse"),
        (pax(b"22 GNU.sparse.map=0,1\n") + FILE, "sparse"),
        (header(type=tarfile.GNUTYPE_LONGNAME, size=MAX_EXTENSION_BYTES + 1), "at most 65536"),
        (header(type=tarfile.XHDTYPE, size=2**50), "at most 65536"),
        (pax(b"8 path=x\n") + FILE, "broken record"),
        (pax(b"99 path=x\n") + FILE, "broken record"),
        (pax(b"0 path=x\n") + FILE, "broken record"),
        (pax(b"5 pat\n") + FILE, "broken record"),
        (pax(b"path=x\n") + FILE, "no length"),
        (pax(b"-9 path=x\n") + FILE, "no length"),
        (pax(b"1" * 4000) + FILE, "no length"),
        (pax(b"11 size=-1\n") + FILE, "size '-1'"),
        (pax(b"12 size=1_0\n") + FILE, "size '1_0'"),
        (pax(b"30 size=99999999999999999999\n") + FILE, "broken|a size of"),
        (pax(b"29 size=99999999999999999999\n") + FILE, "a size of 99999999999999999999"),
        (pax(b"13 mtime=nan\n") + FILE, "time 'nan'"),
        (pax(b"13 mtime=1e9\n") + FILE, "time '1e9'"),
        (pax(b"9 path=x\n") + bytes(1024), "without the member"),
        (checked(header()[:124] + b"\xff" * 12 + header()[136:]), "negative size"),
        (checked(header()[:124] + b"8" * 12 + header()[136:]), "not a header"),
    ],
)
def test_what_cannot_be_read_is_a_fault_that_says_where(archive: bytes, said: str) -> None:
    """Never another exception, and never a wrong entry."""
    with pytest.raises(TarFault, match=rf"^byte \d+: .*({said})"):
        read([archive])


@given(data=st.binary(max_size=3000), at=st.integers(0, 4000), cuts=CUTS)
def test_bytes_of_any_kind_are_read_or_are_a_fault(data: bytes, at: int, cuts: list[int]) -> None:
    """An archive with a wound: the reader says so or goes on, and does nothing else."""
    archive = packed(
        [({"name": "n" * 200, "linkname": "l" * 200, "type": tarfile.SYMTYPE}, b""), ({"name": "f"}, b"a")]
    )
    wounded = archive[:at] + data + archive[at + len(data) :]

    with suppress(TarFault):
        read(cut(wounded, cuts))


def test_sums_of_wounded_headers_are_right_and_their_fields_are_not() -> None:
    """A wound that its sum does not tell: random bytes seldom get that far."""
    for place in range(0, 500, 7):
        block = header(size=3)
        wounded = checked(block[:place] + b"\xff\x80\x00\xfe" + block[place + 4 :])
        with suppress(TarFault):
            read([wounded, b"abc", bytes(512 - 3), bytes(1024)])
