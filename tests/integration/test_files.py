"""Putting, getting and listing files of a leased container, on a real engine and against tools that mean harm."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from common import subjects
from common.catalog import ContainerLimits
from common.errors import StoreUnavailable
from common.schema import Job, now_ms
from tests.container_rig import SESSION, shell, spec_of, volume_names, volumes_of
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import open_bus
from worker.container import ToolContainer
from worker.docker_archive import WINDOW_LABEL
from worker.docker_engine import DockerEngine, open_docker_engine
from worker.engine import ContainerSpec
from worker.errors import EngineUnavailable, ServerGone
from worker.executors.files import FilesCall, FilesExecutor
from worker.files_errors import (
    ContentMismatch,
    FileChanged,
    FilesUnavailable,
    FileTooLarge,
    InvalidFilesCall,
    InvalidPath,
    NoSpace,
    NoSuchFile,
    NotAFile,
    NotAFolder,
    UploadUnavailable,
)
from worker.mcp_connection import McpConnection
from worker.reaper import STORE_LABEL, WORKER_LABEL, Reaper

pytestmark = pytest.mark.docker

DEADLINE_S = 30.0
MAX_FILE_BYTES = 7_000_000


class Objects:
    """Uploads in memory; one may break off, or never go on."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.stalls_at: int | None = None
        self.breaks_at: int | None = None
        self.stalled = asyncio.Event()
        self.goes_on = asyncio.Event()

    async def read(self, object_name: str) -> AsyncGenerator[bytes]:
        content = self.contents[object_name]
        for at in range(0, len(content), 100_000):
            if self.breaks_at is not None and at >= self.breaks_at:
                raise StoreUnavailable("the store went away")
            if self.stalls_at is not None and at >= self.stalls_at:
                self.stalled.set()
                await self.goes_on.wait()
            yield content[at : at + 100_000]

    async def remove(self, object_name: str) -> None:
        """It may be put once more by another test."""


class Output:
    """What a get has brought; may stand still at the first piece."""

    def __init__(self) -> None:
        self.content = b""
        self.largest = 0
        self.pause: asyncio.Event | None = None
        self.reached = asyncio.Event()

    async def output(self, stream: str, data: bytes) -> None:
        assert stream == "file"
        if self.pause is not None:
            self.reached.set()
            await self.pause.wait()
        self.content += data
        self.largest = max(self.largest, len(data))


class Rig:
    """A container and an executor for it. Made by `rig_of()`."""

    def __init__(self, engine: DockerEngine, box: ToolContainer, tasks: asyncio.TaskGroup) -> None:
        self.engine = engine
        self.box = box
        self.objects = Objects()
        self.output = Output()
        self.executor = FilesExecutor(engine, tasks, self.objects, files_mb=8, max_file_bytes=MAX_FILE_BYTES)

    async def begin(self, tool: str, **arguments: Any) -> FilesCall:
        job = Job(
            id=subjects.new_job_id(),
            session=subjects.new_session_id(),
            tenant="test",
            server="exec",
            tool=tool,
            arguments=arguments,
            created_ms=now_ms(),
            start_by_ms=now_ms() + 60_000,
            timeout_ms=20_000,
        )
        return await self.executor.begin(self.box, job, self.output)

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        async with asyncio.timeout(DEADLINE_S):
            answer = await (await self.begin(tool, **arguments)).answer
        assert answer["isError"] is False
        assert answer["content"][0]["text"]
        told: dict[str, Any] = answer["structuredContent"]
        return told

    async def begin_put(self, path: str, content: bytes, **said: Any) -> FilesCall:
        self.objects.contents["o"] = content
        facts = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "object": "o"}
        return await self.begin("put", path=path, **{**facts, **said})

    async def put(self, path: str, content: bytes, **said: Any) -> dict[str, Any]:
        async with asyncio.timeout(DEADLINE_S):
            answer = await (await self.begin_put(path, content, **said)).answer
        told: dict[str, Any] = answer["structuredContent"]
        return told

    async def get(self, path: str) -> bytes:
        self.output.content = b""
        told = await self.call("get", path=path)
        assert (told["path"], told["size"]) == (path, len(self.output.content))
        return self.output.content

    async def names(self, path: str | None = None) -> dict[str, tuple[Any, ...]]:
        told = await self.call("list", **({} if path is None else {"path": path}))
        assert not told["truncated"]
        return {each["name"]: (each["type"], each["size"], each.get("target", "")) for each in told["entries"]}

    async def shell(self, command: str) -> str:
        return await shell(self.engine, self.box.id, command)


@asynccontextmanager
async def rig_of(docker_host: str, spec: ContainerSpec) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(open_docker_engine(docker_host))
        made = await engine.create(spec)
        stack.push_async_callback(engine.remove, made)
        duplex = await engine.attach(made)
        stack.push_async_callback(duplex.close)
        await engine.start(made)
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        yield Rig(engine, ToolContainer(made, duplex, McpConnection(duplex)), tasks)


@pytest.fixture
async def rig(docker_host: str) -> AsyncIterator[Rig]:
    async with rig_of(docker_host, spec_of(SESSION)) as made:
        yield made


# --- there and back -----------------------------------------------------------------------------------------------


async def test_a_file_that_is_put_is_the_tools_and_can_be_got(rig: Rig) -> None:
    """Folders on the way are made, and are the tool's too."""
    content = bytes(range(256)) * 8_000
    told = await rig.put("in/ä b/data.bin", content)

    assert told == {"path": "in/ä b/data.bin", "size": 2_048_000, "sha256": hashlib.sha256(content).hexdigest()}
    assert await rig.shell("cd /files/in; stat -c '%u %a' . */ */*; rm */data.bin; echo x >new") == (
        "65534 755\n65534 755\n65534 644"
    )
    await rig.put("in/ä b/data.bin", content)
    assert await rig.get("in/ä b/data.bin") == content
    assert rig.output.largest <= 128 * 1024


async def test_what_a_tool_makes_can_be_got_and_says_when_it_was_made(rig: Rig) -> None:
    """Also what only its user may read, also an empty file."""
    await rig.shell("cd /files; printf secret >s; chmod 0 s; touch -d @1700000000.5 s; touch empty")

    assert await rig.get("s") == b"secret"
    assert (await rig.call("get", path="s"))["mtime_ms"] == 1_700_000_000_500
    assert await rig.get("empty") == b""


async def test_files_of_any_size_go_both_ways(rig: Rig) -> None:
    """Around the borders of a block and of a piece."""
    for size in (0, 1, 511, 512, 513, 100_000, 100_001):
        content = bytes(n % 251 for n in range(size))
        await rig.put(f"f{size}", content)

        assert await rig.get(f"f{size}") == content


async def test_a_put_replaces_a_file_and_keeps_its_neighbours(rig: Rig) -> None:
    """A folder that is there stays as it is; another name of the old file keeps the old content."""
    await rig.shell("mkdir -m 700 /files/d; touch -d @1 /files/d; cd /files/d; echo old >f; ln f other; echo x >g")
    await rig.put("d/f", b"new")

    assert await rig.shell("cd /files/d; cat f other g; stat -c %a .") == "newold\nx\n700"


async def test_a_listing_tells_everything_that_stands_there(rig: Rig) -> None:
    """All below a folder, named from the files directory on."""
    await rig.shell(
        "cd /files; mkdir -p a/b; printf 12345 >a/b/f; ln a/b/f a/z; ln -s /etc/passwd a/l; mkfifo a/p; touch e;"
        " printf x >\"a/n $(printf '\\377')\""
    )

    everything = await rig.names()
    assert everything == {
        "a": ("folder", 0, ""),
        "a/b": ("folder", 0, ""),
        "a/b/f": ("file", 5, ""),
        "a/l": ("symlink", 0, "/etc/passwd"),
        "a/n \ufffd": ("file", 1, ""),
        "a/p": ("other", 0, ""),
        "a/z": ("file", 5, ""),
        "e": ("file", 0, ""),
    }
    assert await rig.names("a/b") == {"a/b/f": ("file", 5, "")}
    assert set(await rig.names("a")) == {name for name in everything if name.startswith("a/")}


async def test_a_listing_is_cut_where_there_is_too_much(rig: Rig) -> None:
    """More entries than it holds, or a file with holes: a terabyte is not read."""
    await rig.shell("cd /files; mkdir many; cd many; seq 1001 | xargs touch")
    many = await rig.call("list", path="many")
    await rig.shell("cd /files; mkdir holes; truncate -s 1T holes/b; touch holes/a holes/c")
    holes = await rig.call("list", path="holes")

    assert (len(many["entries"]), many["truncated"]) == (1000, True)
    assert [each["name"] for each in holes["entries"]] == ["holes/a", "holes/b"]
    assert (holes["entries"][1]["size"], holes["truncated"]) == (2**40, True)
    assert await rig.shell("echo runs on") == "runs on"


async def test_files_of_an_empty_directory_are_none(rig: Rig) -> None:
    """An empty list, no error."""
    assert await rig.call("list") == {"path": "", "entries": [], "truncated": False}


# --- what is refused ----------------------------------------------------------------------------------------------


async def test_a_path_that_breaks_a_rule_is_refused(rig: Rig) -> None:
    """Each says which rule; nothing is touched."""
    for path in ("", "/etc/passwd", "../etc/passwd", "a/../../b", "a//b", "a/", "a\0", "n" * 256):
        with pytest.raises(InvalidPath) as refused:
            await rig.put(path, b"x")
        assert refused.value.data["rule"]
        with pytest.raises(InvalidPath):
            await rig.call("get", path=path)
        with pytest.raises(InvalidPath):
            await rig.call("list", path=path)
    assert await rig.names() == {}


async def test_a_path_that_is_too_long_for_the_engine_is_refused(rig: Rig) -> None:
    """The engine puts a path of its own before it."""
    path = "/".join(["n" * 127] * 32)

    with pytest.raises(InvalidPath, match="too long") as refused:
        await rig.put(path, b"x")
    assert refused.value.data["path"] == path[:256]
    with pytest.raises((InvalidPath, NoSuchFile)):
        await rig.call("get", path=path)
    assert await rig.shell("echo runs on") == "runs on"


async def test_what_is_not_there_is_said_so(rig: Rig) -> None:
    """A file, a folder, a file in a folder that is not there."""
    await rig.put("f", b"x")
    for tool, path in (("get", "none"), ("list", "none"), ("get", "none/none"), ("list", "none/none")):
        with pytest.raises(NoSuchFile):
            await rig.call(tool, path=path)


async def test_what_is_no_file_is_neither_got_nor_replaced(rig: Rig) -> None:
    """Folders, pipes, sockets. A symlink is not got, and says where it leads."""
    await rig.shell(
        "cd /files; mkdir -p d/e; mkfifo p; python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('s')\""
    )
    for path, kind in (("d", "folder"), ("p", "other"), ("s", "other")):
        with pytest.raises(NotAFile) as refused:
            await rig.call("get", path=path)
        assert refused.value.data["kind"] == kind
        with pytest.raises(NotAFile):
            await rig.put(path, b"x")
    for path in ("p", "p/x"):
        with pytest.raises(NotAFolder):
            await rig.call("list", path=path)
    with pytest.raises(NotAFolder):
        await rig.put("p/x", b"x")

    assert await rig.shell("cd /files; ls -F; ls d") == "d/\np|\ns=\ne"


@pytest.mark.parametrize(
    ("target", "leads"),
    [
        ("/etc", "/etc"),
        ("..", "/"),
        ("../../../../etc", "/etc"),
        ("/proc/self/root/etc", "/proc/self/root/etc"),
        ("real", "/files/real"),
        (".", "/files"),
        ("/tmp", "/tmp"),
        ("nothing", "/files/nothing"),
        ("link", ""),
    ],
)
async def test_a_symlink_is_never_followed(rig: Rig, target: str, leads: str) -> None:
    """At the end of a path and on the way, absolute and relative, dangling and to itself: the error says where it
    leads. A put takes the link's own place, and nothing is written where it leads."""
    before = await rig.shell("mkdir /files/real; echo kept >/files/real/passwd; cat /etc/passwd; ls -lA /etc /tmp")
    await rig.shell(f"ln -s {target} /files/link; mkdir /files/sub; ln -s {target} /files/sub/link")

    for tool in ("get", "list"):
        with pytest.raises((NotAFile, NotAFolder)) as refused:
            await rig.call(tool, path="link")
        assert (refused.value.data["kind"], refused.value.data["target"]) == ("symlink", leads)
        assert "not followed" in refused.value.message
    for path in ("link/passwd", "link/new", "link/a/b", "sub/link/passwd", "sub/link/../passwd"):
        with pytest.raises((NotAFolder, InvalidPath)):
            await rig.call("get", path=path)
        with pytest.raises((NotAFolder, InvalidPath)):
            await rig.call("list", path=path)
        with pytest.raises((NotAFolder, InvalidPath)):
            await rig.put(path, b"harm")
    assert rig.output.content == b""
    await rig.put("link", b"mine")

    assert await rig.shell("cd /files; stat -c %F link; cat link") == "regular file\nmine"
    after = await rig.shell("cat /etc/passwd; ls -lA /etc /tmp")
    assert before == after
    assert await rig.shell("ls -A /files/real; cat /files/real/passwd") == "passwd\nkept"


FLIP = """
import ctypes, os
rename = ctypes.CDLL(None).renameat2
os.mkdir('/files/d')
os.symlink('/etc', '/files/l')
os.mkdir('/files/f')
while not os.path.exists('/files/stop'):
    rename(-100, b'/files/d', -100, b'/files/l', 2)
    rename(-100, b'/files/d', -100, b'/files/l', 2)
os.mkdir('/files/still')
"""
"""Exchanges a folder with a symlink to /etc as fast as it can; in the end the folder stands where it stood."""
RACES = 25


async def test_a_folder_that_becomes_a_symlink_meanwhile_leads_nowhere(rig: Rig) -> None:
    """A tool that exchanges the two all the time, between a look and the transfer as well, gets files into its folder,
    or none, and none to /etc; what is got is never what stands there."""
    before = await rig.shell("ls -lA /etc")
    process = await rig.engine.execute(rig.box.id, ["python3", "-c", FLIP])
    taken = []
    try:
        await rig.shell("until [ -d /files/f ]; do sleep 0.05; done")
        for race in range(RACES):
            with suppress(NotAFolder, FileChanged):
                await rig.put(f"d/new{race}", b"x")
                taken.append(f"new{race}")
            with pytest.raises((NotAFolder, NoSuchFile, FileChanged)):
                await rig.call("get", path="d/passwd")
        await rig.shell("touch /files/stop; until [ -d /files/still ]; do sleep 0.05; done")
    finally:
        await process.output.close()
    await rig.put("d/last", b"x")

    assert rig.output.content == b""
    assert await rig.shell("ls -lA /etc") == before
    assert {*taken, "last"} <= set((await rig.shell("ls -A /files/d")).split())


async def test_a_file_that_is_shortened_while_it_is_got_is_an_error_that_says_so(rig: Rig) -> None:
    """Never a part that looks like the whole."""
    await rig.put("f", b"x" * 6_000_000)
    rig.output.pause = asyncio.Event()
    call = await rig.begin("get", path="f")
    await rig.output.reached.wait()
    await rig.shell(": >/files/f")
    rig.output.pause.set()

    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(FileChanged) as refused:
            await call.answer
    assert refused.value.retryable


async def test_a_file_that_grows_while_it_is_got_comes_as_it_was(rig: Rig) -> None:
    """A log that a tool writes can be got."""
    await rig.put("f", b"x" * 6_000_000)
    rig.output.pause = asyncio.Event()
    call = await rig.begin("get", path="f")
    await rig.output.reached.wait()
    await rig.shell("echo more >>/files/f")
    rig.output.pause.set()

    async with asyncio.timeout(DEADLINE_S):
        assert (await call.answer)["structuredContent"]["size"] == 6_000_000
    assert rig.output.content == b"x" * 6_000_000


async def test_a_container_that_ends_during_a_transfer_is_told_and_not_a_missing_file(rig: Rig) -> None:
    """What was put is gone with it."""
    rig.objects.stalls_at = 300_000
    call = await rig.begin_put("f", b"x" * 1_000_000)
    await rig.objects.stalled.wait()
    await rig.engine.remove(rig.box.id)
    rig.objects.goes_on.set()

    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(ServerGone):
            await call.answer


async def test_files_larger_than_allowed_are_refused_before_anything_moves(rig: Rig) -> None:
    """Beyond what may be transferred, beyond what the directory holds; both say the limit."""
    await rig.shell("truncate -s 7000001 /files/large")
    with pytest.raises(FileTooLarge) as refused:
        await rig.call("get", path="large")
    assert (refused.value.data["size"], refused.value.data["limit"]) == (7_000_001, MAX_FILE_BYTES)
    with pytest.raises(FileTooLarge):
        await rig.put("f", b"", size=7_000_001)
    rig.executor._max_file_bytes = 10**12
    with pytest.raises(NoSpace) as full:
        await rig.put("f", b"", size=8 * 1024 * 1024 + 1)

    assert full.value.data["limit"] == 8 * 1024 * 1024
    assert set(await rig.names()) == {"large"}


async def test_a_put_into_a_full_directory_fails_and_leaves_the_space_as_it_was(rig: Rig) -> None:
    """An empty file stands in its place: nothing that could be taken for the file."""
    await rig.shell("head -c 5000000 /dev/zero >/files/own")
    with pytest.raises(NoSpace) as refused:
        await rig.put("new/f", b"x" * 6_000_000)

    assert (refused.value.data["path"], refused.value.data["size"]) == ("new/f", 6_000_000)
    assert await rig.names() == {"own": ("file", 5_000_000, ""), "new": ("folder", 0, ""), "new/f": ("file", 0, "")}
    assert await rig.shell("head -c 3000000 /dev/zero >/files/more && stat -c %s /files/more") == "3000000"


async def test_an_upload_that_is_not_what_was_announced_is_not_kept(rig: Rig) -> None:
    """Neither cut nor as it came."""
    wrong: tuple[dict[str, Any], ...] = ({"size": 150_001}, {"size": 149_999}, {"size": 1}, {"sha256": "0" * 64})
    for said in wrong:
        with pytest.raises(ContentMismatch) as refused:
            await rig.put("f", b"x" * 150_000, **said)

        assert refused.value.data["what"] == next(iter(said))
        assert (await rig.names()).get("f", ("file", 0, "")) == ("file", 0, "")


async def test_a_small_upload_that_is_not_what_was_announced_costs_nothing(rig: Rig) -> None:
    """It is found out before the container is touched."""
    wrong: tuple[dict[str, Any], ...] = ({"size": 4}, {"size": 2}, {"sha256": "0" * 64})
    await rig.put("f", b"old")
    for said in wrong:
        with pytest.raises(ContentMismatch):
            await rig.put("f", b"new", **said)

    assert await rig.get("f") == b"old"


async def test_an_upload_that_cannot_be_read_costs_nothing_and_one_that_breaks_off_leaves_nothing_of_it(
    rig: Rig,
) -> None:
    """The store's failure is told as such, and may be tried again."""
    await rig.put("f", b"old")
    rig.objects.breaks_at = 0
    with pytest.raises(UploadUnavailable, match="went away") as refused:
        await rig.put("f", b"new" * 100_000)
    assert refused.value.retryable
    assert await rig.get("f") == b"old"
    rig.objects.breaks_at = 200_000
    with pytest.raises(UploadUnavailable):
        await rig.put("f", b"new" * 100_000)

    assert await rig.get("f") == b""
    assert await rig.shell("echo runs on") == "runs on"


NO_CALLS: list[tuple[str, dict[str, Any], str]] = [
    ("move", {"path": "f"}, "'move'"),
    ("get", {}, "path: Field required"),
    ("get", {"path": 7}, "path: Input should be a valid string"),
    ("get", {"path": "f", "more": 1}, "more: Extra inputs"),
    ("put", {"path": "f", "size": -1, "sha256": "0" * 64, "object": "o"}, "size: Input should be greater"),
    ("put", {"path": "f", "size": 1, "sha256": "0", "object": "o"}, "sha256: String should match"),
]


async def test_a_call_that_is_none_ends_with_an_error_that_says_so(rig: Rig) -> None:
    """A gateway of another version must not bring a worker down."""
    for tool, arguments, said in NO_CALLS:
        with pytest.raises(InvalidFilesCall, match=said):
            await rig.call(tool, **arguments)


async def test_a_container_without_a_files_directory_says_so(docker_host: str) -> None:
    """The gateway asks no such container; the worker would survive it."""
    spec = spec_of(SESSION.model_copy(update={"scope": "call"}))
    async with rig_of(docker_host, spec) as rig:
        for tool, arguments in (("get", {"path": "f"}), ("list", {})):
            with pytest.raises(FilesUnavailable):
                await rig.call(tool, **arguments)
        with pytest.raises(FilesUnavailable):
            await rig.put("f", b"x")
        assert await rig.shell("echo runs on") == "runs on"


# --- ends of other kinds ------------------------------------------------------------------------------------------


async def test_a_put_that_is_stopped_is_over_when_stop_returns(rig: Rig) -> None:
    """Nothing of it is left but an empty file, and the container runs."""
    rig.objects.stalls_at = 300_000
    call = await rig.begin_put("f", b"x" * 1_000_000)
    await rig.objects.stalled.wait()
    async with asyncio.timeout(DEADLINE_S):
        assert await call.stop() is True

    assert isinstance(call.answer.exception(), ServerGone)
    assert await rig.shell("stat -c '%s %U' /files/f") == "0 nobody"


async def test_a_get_whose_reader_stands_still_can_be_stopped(rig: Rig) -> None:
    """The container's own calls are not held up meanwhile."""
    await rig.put("f", b"x" * 1_000_000)
    rig.output.pause = asyncio.Event()
    call = await rig.begin("get", path="f")
    await rig.output.reached.wait()
    async with asyncio.timeout(DEADLINE_S):
        assert await call.stop() is True

    assert isinstance(call.answer.exception(), ServerGone)
    assert await rig.shell("echo runs on") == "runs on"


async def test_a_transfer_can_be_stopped_before_it_has_begun(rig: Rig) -> None:
    """Nothing of it happens then."""
    call = await rig.begin_put("f", b"x")
    assert await call.stop() is True

    assert isinstance(call.answer.exception(), ServerGone)
    assert await rig.names() == {}


async def test_stopping_a_call_that_has_ended_changes_nothing(rig: Rig) -> None:
    """Its answer stays."""
    call = await rig.begin_put("f", b"x")
    await asyncio.wait({call.task})

    assert await call.stop() is True
    assert call.answer.result()["structuredContent"]["size"] == 1


async def test_a_window_that_cannot_be_closed_does_not_cost_the_transfer(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes with the other containers of its worker."""
    remove, windows = rig.engine.remove, list[str]()

    async def away(container: str) -> None:
        windows.append(container)
        raise EngineUnavailable("the engine went away")

    monkeypatch.setattr(rig.engine, "remove", away)
    told = await rig.put("f", b"x")
    monkeypatch.undo()
    for window in windows:
        await remove(window)

    assert told["size"] == 1
    assert len(windows) == 1


async def test_no_window_stays_open(rig: Rig) -> None:
    """Whatever came of the transfer."""
    await rig.put("f", b"x")
    with pytest.raises(NoSuchFile):
        await rig.get("none")
    rig.objects.breaks_at = 100_000
    with pytest.raises(UploadUnavailable):
        await rig.put("g", b"x" * 300_000)

    assert await rig.engine.containers({WINDOW_LABEL: rig.box.id[:12]}) == []


async def test_a_container_that_has_ended_is_given_no_transfer(rig: Rig) -> None:
    """Nothing was handed over, so another container may be tried."""
    await rig.shell("kill -9 -1")
    async with asyncio.timeout(DEADLINE_S):
        while (state := await rig.engine.inspect(rig.box.id)) is None or state.running:
            await asyncio.sleep(0.05)
    with pytest.raises(ServerGone):
        await rig.begin("list")
    await rig.engine.remove(rig.box.id)
    with pytest.raises(ServerGone):
        await rig.begin("list")


async def test_a_container_whose_attachment_has_ended_is_given_no_transfer(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart of the engine it runs on, and the engine would put the file where the tool does not see it."""
    monkeypatch.setattr(McpConnection, "ended", True)
    with pytest.raises(ServerGone):
        await rig.begin("list")


async def test_what_a_worker_leaves_that_is_killed_during_a_transfer_is_reaped_with_its_files(
    nats_server: NatsServer, docker_host: str
) -> None:
    """The container, the window and the volume that both have."""
    async with open_bus(nats_server) as bus:
        spec = spec_of(SESSION)
        labels = {**spec.labels, WORKER_LABEL: "w-gone", STORE_LABEL: bus.epoch}
        async with rig_of(docker_host, replace(spec, labels=labels, limits=ContainerLimits(files_mb=8))) as rig:
            await rig.put("f", b"x")
            [volume] = await volumes_of(docker_host, rig.box.id)
            window = await rig.engine.open_window(rig.box.id)
            reaper = Reaper(bus, rig.engine, "w-other", 1.0, list)
            reaper._silence_s = 0.0
            await reaper.look()

            assert await rig.engine.inspect(rig.box.id) is None
            assert await rig.engine.inspect(window) is None
            assert volume["Name"] not in await volume_names(docker_host)
