"""The files directory of a container, and archives in and out of it, on a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import replace

import pytest
from aiodocker.exceptions import DockerError

from common.catalog import ContainerLimits
from common.errors import StoreUnavailable
from tests.container_rig import LABEL, SESSION, container, raw, shell, spec_of, volume_names, volumes_of
from worker.docker_archive import EMPTY_IMAGE, WINDOW_LABEL
from worker.docker_engine import DockerEngine, open_docker_engine
from worker.engine import PathStat
from worker.errors import EngineUnavailable, ServerGone
from worker.files_errors import FileChanged, FilesUnavailable, NoSpace, NoSuchFile
from worker.tar_stream import TarEntry, TarReader, file_tar

pytestmark = pytest.mark.docker


@pytest.fixture
async def engine(docker_host: str) -> AsyncIterator[DockerEngine]:
    async with open_docker_engine(docker_host) as opened:
        yield opened


@pytest.fixture
async def box(engine: DockerEngine) -> AsyncIterator[str]:
    """A running container of a `session` server, with nothing in its files directory."""
    async with container(engine, spec_of(SESSION)) as made:
        yield made


async def chunks(content: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


async def put(engine: DockerEngine, box: str, name: str, content: bytes, folder: str = "/files") -> None:
    await engine.put_archive(box, folder, file_tar(name, len(content), chunks(content), 1_700_000_000))


async def got(engine: DockerEngine, box: str, path: str) -> dict[str, tuple[TarEntry, bytes]]:
    reader, found, name = TarReader(), dict[str, tuple[TarEntry, bytes]](), ""
    async with aclosing(engine.get_archive(box, path)) as pieces:
        async for piece in pieces:
            assert len(piece) <= 128 * 1024
            for item in reader.feed(piece):
                if isinstance(item, TarEntry):
                    name = item.name
                    found[name] = item, b""
                else:
                    found[name] = found[name][0], found[name][1] + item
    reader.close()
    return found


# --- the directory ------------------------------------------------------------------------------------------------


async def test_the_files_directory_is_the_tools_own_and_nothing_in_it_can_be_run(
    engine: DockerEngine, box: str
) -> None:
    """Private, in memory, no program, no setuid, no device; the root stays read-only."""
    mount = await shell(engine, box, "grep ' /files ' /proc/mounts")
    said = await shell(
        engine,
        box,
        'echo "$FILES_DIR"; stat -c "%a %u %g" /files; echo hi >/files/x; cat /files/x; touch /root-file || true;'
        " printf '#!/bin/sh\\necho ran' >/files/p; chmod +x /files/p; /files/p || true",
    )

    assert mount.startswith("tmpfs /files tmpfs rw,nosuid,nodev,noexec")
    lines = said.splitlines()
    assert lines[:3] == ["/files", "700 65534 65534", "hi"]
    assert "Read-only file system" in lines[3]
    assert "Permission denied" in lines[4]


@pytest.mark.parametrize("scope", ["shared", "call"])
async def test_a_container_that_belongs_to_no_session_has_no_files_directory(engine: DockerEngine, scope: str) -> None:
    """Its files would be there for other callers, or for nobody."""
    spec = spec_of(SESSION.model_copy(update={"scope": scope}))

    async with container(engine, spec) as box:
        assert "FILES_DIR" not in spec.env
        assert await engine.stat(box, "/files") is None
        with pytest.raises(FilesUnavailable):
            await engine.open_window(box)
        with pytest.raises(FilesUnavailable):
            await put(engine, box, "x", b"1", "/tmp")


async def test_the_directory_holds_no_more_than_its_size(engine: DockerEngine, box: str) -> None:
    """For what a tool writes, and for what is put."""
    tool = await shell(engine, box, "head -c 9000000 /dev/zero >/files/big; stat -c %s /files/big; rm /files/big")
    with pytest.raises(NoSpace):
        await put(engine, box, "put", b"x" * 9_000_000)
    many = await shell(engine, box, "rm /files/*; cd /files; seq 20000 | xargs touch 2>&1 | tail -1; ls -f | wc -l")

    assert "No space left on device" in tool
    assert int(tool.splitlines()[-1]) < 8 * 1024 * 1024 + 1
    assert "No space left on device" in many
    assert int(many.splitlines()[-1]) <= 16_384 + 2


async def test_what_is_put_does_not_count_towards_the_containers_memory(docker_host: str, engine: DockerEngine) -> None:
    """It is the engine that writes it; what the tool writes is the tool's."""
    spec = replace(spec_of(SESSION), limits=ContainerLimits(memory_mb=32, tmpfs_mb=1), files_mb=100)

    async with container(engine, spec) as box:
        await put(engine, box, "big", bytes(60_000_000))
        assert (await shell(engine, box, "wc -c </files/big")) == "60000000"


async def test_the_volume_goes_with_its_container(docker_host: str, engine: DockerEngine) -> None:
    """Whatever state it is in: made, running, ended."""
    names = set()
    for state in ("created", "running", "ended"):
        box = await engine.create(spec_of(SESSION))
        if state != "created":
            await engine.start(box)
        if state == "ended":
            await shell(engine, box, "kill -9 -1")
        [volume] = await volumes_of(docker_host, box)
        names.add(volume["Name"])
        assert volume["Name"] in await volume_names(docker_host)
        await engine.remove(box)

    assert len(names) == 3
    assert names.isdisjoint(await volume_names(docker_host))


# --- archives -----------------------------------------------------------------------------------------------------


async def test_a_file_goes_in_and_comes_back_while_the_container_runs(engine: DockerEngine, box: str) -> None:
    """It is the tool's own, and comes back as it went."""
    content = bytes(range(256)) * 4000
    name = "n ä'%2F&+\\\n*?[x]" + "y" * 200
    await put(engine, box, name, content)

    assert await shell(engine, box, "cd /files; stat -c '%u %g %a %s %Y' n*") == "65534 65534 644 1024000 1700000000"
    assert await shell(engine, box, "cd /files; echo more >>n*; rm n*") == ""
    await put(engine, box, name, content)
    [(entry, back)] = (await got(engine, box, f"/files/{name}")).values()
    assert (entry.name, entry.type, entry.mtime_ms, back) == (name, "file", 1_700_000_000_000, content)


async def test_a_folder_comes_with_all_that_is_in_it(engine: DockerEngine, box: str) -> None:
    """Names start with the folder's own; sockets are left out by the engine."""
    await shell(
        engine,
        box,
        "mkdir -p /files/a/b/c; cd /files/a/b; echo 12345 >f; ln f hard; ln -s /etc/passwd link; mkfifo pipe;"
        " echo x >c/.wh.x; python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('socket')\"",
    )

    found = await got(engine, box, "/files/a/b")

    assert {name: (entry.type, entry.size, entry.target) for name, (entry, _) in found.items()} == {
        "b": ("folder", 0, ""),
        "b/c": ("folder", 0, ""),
        "b/c/.wh.x": ("file", 2, ""),
        "b/f": ("file", 6, ""),
        "b/hard": ("link", 0, "b/f"),
        "b/link": ("symlink", 0, "/etc/passwd"),
        "b/pipe": ("other", 0, ""),
    }


async def test_looking_at_a_path_tells_what_stands_there_and_follows_no_link(engine: DockerEngine, box: str) -> None:
    """Type, size, time; where a link leads to."""
    await shell(
        engine,
        box,
        "cd /files; mkdir d; echo 12345 >f; touch -d @1700000000.25 f; ln -s ../etc/passwd l; ln -s loop loop;"
        " mkfifo p; ln -s nothing dangling; touch -d @-99999999999 old",
    )

    stats = {
        name: await engine.stat(box, f"/files/{name}") for name in ("d", "l", "loop", "p", "dangling", "none", "f/x")
    }

    assert await engine.stat(box, "/files/f") == PathStat("file", 6, 1_700_000_000_250)
    assert {name: stat and (stat.kind, stat.target) for name, stat in stats.items()} == {
        "d": ("folder", ""),
        "l": ("symlink", "/etc/passwd"),
        "loop": ("symlink", ""),
        "p": ("other", ""),
        "dangling": ("symlink", "/files/nothing"),
        "none": None,
        "f/x": None,
    }


async def test_a_file_takes_the_place_of_a_link_and_never_that_of_a_folder(engine: DockerEngine, box: str) -> None:
    """What the link leads to stays as it is."""
    await shell(engine, box, "cd /files; mkdir -p d/e; echo old >f; ln -s f l; ln -s /etc/passwd p")
    await put(engine, box, "l", b"new")
    await put(engine, box, "p", b"new")
    with pytest.raises(FileChanged):
        await put(engine, box, "d", b"new")

    assert await shell(engine, box, "cd /files; cat f l p; ls d; head -c 5 /etc/passwd") == "old\nnewnewe\nroot:"


async def test_what_does_not_exist_is_said_so(engine: DockerEngine, box: str) -> None:
    """A path, a folder to unpack into, a container."""
    with pytest.raises(NoSuchFile):
        await got(engine, box, "/files/none")
    with pytest.raises(NoSuchFile):
        await put(engine, box, "x", b"1", "/files/none")
    await engine.remove(box)
    for doing in (got(engine, box, "/files"), put(engine, box, "x", b"1"), engine.stat(box, "/files")):
        with pytest.raises(ServerGone):
            await doing


async def test_a_source_that_breaks_off_ends_the_put_with_its_own_error(engine: DockerEngine, box: str) -> None:
    """The engine has let go of the container when the error is told."""

    async def broken() -> AsyncIterator[bytes]:
        async with aclosing(file_tar("f", 3_000_000, chunks(b"x" * 3_000_000), 0)) as pieces:
            async for piece in pieces:
                yield piece
                break
        raise StoreUnavailable("the store went away")

    with pytest.raises(StoreUnavailable, match="went away"):
        await engine.put_archive(box, "/files", broken())

    async with asyncio.timeout(5):
        assert await engine.inspect(box) is not None


async def test_a_put_that_is_given_up_lets_go_of_the_container(engine: DockerEngine, box: str) -> None:
    """Also where its source would never go on; the source is closed."""
    waiting, closed = asyncio.Event(), asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        try:
            async for piece in file_tar("f", 3_000_000, chunks(b"x" * 3_000_000), 0):
                yield piece
                waiting.set()
                await asyncio.Event().wait()
        finally:
            closed.set()

    async with asyncio.TaskGroup() as tasks:
        putting = tasks.create_task(engine.put_archive(box, "/files", stalled()))
        await waiting.wait()
        putting.cancel()

    assert closed.is_set()
    async with asyncio.timeout(5):
        assert await engine.inspect(box) is not None


async def test_a_get_that_is_given_up_lets_go_of_the_container(engine: DockerEngine, box: str) -> None:
    """Until then the engine answers nothing else about it."""
    await put(engine, box, "f", b"x" * 8_000_000)
    async with aclosing(engine.get_archive(box, "/files/f")) as pieces:
        assert await anext(pieces)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await engine.inspect(box)

    async with asyncio.timeout(5):
        assert await engine.inspect(box) is not None


async def test_an_engine_that_stands_still_is_given_up(
    engine: DockerEngine, box: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline is between two pieces, and not over the whole."""
    monkeypatch.setattr("worker.docker_archive.PIECE_TIMEOUT_S", 0.5)

    async def slow(pause_s: float) -> AsyncIterator[bytes]:
        async for piece in file_tar("f", 400_000, chunks(b"x" * 400_000), 0):
            yield piece
            await asyncio.sleep(pause_s)

    await engine.put_archive(box, "/files", slow(0.2))
    with pytest.raises(EngineUnavailable, match="TimeoutError"):
        await engine.put_archive(box, "/files", slow(5))


# --- windows ------------------------------------------------------------------------------------------------------


async def test_a_window_shows_the_files_directory_and_nothing_else(engine: DockerEngine, box: str) -> None:
    """Both ways; a symlink in it leads to nothing, for reading and for writing, however it is reached."""
    await shell(engine, box, "cd /files; echo own >own; ln -s /etc etc; ln -s ../etc/passwd passwd; ln -s / root")
    window = await engine.open_window(box)
    try:
        for path in ("/files/etc/passwd", "/etc/passwd", "/files/root/etc/passwd", "/bin/sh", "/files/root/tmp/x"):
            with pytest.raises(NoSuchFile):
                await got(engine, window, path)
        assert (await got(engine, window, "/files/own"))["own"][1] == b"own\n"
        for name in ("in", "etc/harm", "root/tmp/harm", "root/harm"):
            await put(engine, window, name, b"in")
    finally:
        await engine.remove(window)

    assert await shell(engine, box, "cat /files/in; ls /etc/harm /tmp /harm 2>/dev/null") == "in/tmp:"
    assert await shell(engine, box, "ls /files") == "etc\nin\nown\npasswd\nroot"


async def test_a_transfer_through_a_window_does_not_lock_the_container(engine: DockerEngine, box: str) -> None:
    """Its calls go on, and it can be removed."""
    await put(engine, box, "f", b"x" * 8_000_000)
    window = await engine.open_window(box)
    try:
        async with aclosing(engine.get_archive(window, "/files/f")) as pieces, asyncio.timeout(5):
            assert await anext(pieces)
            assert await shell(engine, box, "echo runs") == "runs"
            await engine.remove(box)
            assert await engine.inspect(box) is None
    finally:
        await engine.remove(window)


@pytest.mark.parametrize("window_first", [True, False])
@pytest.mark.parametrize("under_way", [True, False])
async def test_whichever_of_window_and_container_goes_last_takes_the_volume_along(
    docker_host: str, engine: DockerEngine, box: str, window_first: bool, under_way: bool
) -> None:
    """Also where the other one is removed in the middle of a transfer."""
    await put(engine, box, "f", b"x" * 8_000_000)
    [volume] = await volumes_of(docker_host, box)
    window = await engine.open_window(box)
    async with aclosing(engine.get_archive(window, "/files/f")) as pieces:
        if under_way:
            assert await anext(pieces)
        if not window_first:
            await engine.remove(box)
    await engine.remove(window)
    if window_first:
        assert await shell(engine, box, "wc -c </files/f") == "8000000"
        await engine.remove(box)

    assert volume["Name"] not in await volume_names(docker_host)


async def test_a_window_belongs_to_the_worker_of_its_container(engine: DockerEngine, box: str) -> None:
    """So that it is removed with what the worker leaves."""
    window = await engine.open_window(box)
    try:
        found = {each.id: each for each in await engine.containers({LABEL: ""})}
        labels = {name: value for name, value in found[box].labels.items() if name.startswith("mcp-orchestrator.")}
        assert found[window].labels == {**labels, WINDOW_LABEL: box[:12]}
        assert not found[window].running
    finally:
        await engine.remove(window)


async def test_the_empty_image_is_made_where_it_is_missing(docker_host: str, engine: DockerEngine, box: str) -> None:
    """Somebody tidied the engine up."""
    async with raw(docker_host) as docker:
        with suppress(DockerError):
            await docker.images.delete(EMPTY_IMAGE, force=True)
    window = await engine.open_window(box)
    await engine.remove(window)

    async with raw(docker_host) as docker:
        assert (await docker.images.inspect(EMPTY_IMAGE))["Size"] == 0


async def test_there_is_a_window_only_to_a_container_that_runs(engine: DockerEngine, box: str) -> None:
    """The files of one that has ended are gone."""
    await shell(engine, box, "kill -9 -1")
    async with asyncio.timeout(10):
        while (state := await engine.inspect(box)) is None or state.running:
            await asyncio.sleep(0.05)
    with pytest.raises(ServerGone):
        await engine.open_window(box)
    await engine.remove(box)
    with pytest.raises(ServerGone):
        await engine.open_window(box)
