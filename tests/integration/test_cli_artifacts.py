"""`orchestrator call --save` and `orchestrator artifact` as processes, against a real gateway."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pty
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common import subjects
from common.artifacts import artifact_uri
from common.schema import Job
from common.streams import JOBS
from tests.gateway_rig import GatewayRig, RunningGateway, gateway_rig
from tests.nats_server import NatsServer
from tests.stored_artifacts import BODY, TEXT, store, store_for
from tests.unit.client.test_cli import ended, running

CALL = ("call", "math", "add", "--args", '{"a": 1, "b": 2}')
BINARY = b"\xff\x00\r\n\xfe"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_API_KEY", "acme-key")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty one: the other has the store's files in it."""
    folder = tmp_path / "saved"
    folder.mkdir()
    return folder


@pytest.fixture
async def rig(nats_server: NatsServer) -> AsyncIterator[GatewayRig]:
    async with gateway_rig(nats_server.url) as rig:
        await rig.add_server()
        yield rig


@pytest.fixture
async def gateway(rig: GatewayRig) -> RunningGateway:
    gateway = await rig.start_gateway()
    async with gateway.socket() as socket:
        await socket.until_status("math", "ready")
    return gateway


@pytest.fixture
async def session(gateway: RunningGateway) -> str:
    async with gateway.socket() as socket:
        return await socket.open()


class Call:
    """What a worker does with the one call that a command makes."""

    def __init__(self, rig: GatewayRig, session: str, job: str, *, artifact: bool) -> None:
        self._rig = rig
        self.session = session
        self.job = job
        self.artifact = artifact
        """As the call asked for."""

    @classmethod
    async def taken(cls, rig: GatewayRig) -> Call:
        while not await rig.queued("math"):
            await asyncio.sleep(0.01)
        message = await rig.bus.client.jetstream().get_last_msg(JOBS, subjects.jobs_of_server("math"))
        job = Job.decode(message.data or b"")
        return cls(rig, job.session, job.id, artifact=job.artifact)

    async def tell(self, type_: str, attempt: int = 1, **data: Any) -> None:
        await self._rig.add_event(self.session, self.job, type_, attempt, **data)

    async def end(self, *stored: str, body: bytes = BODY, **data: Any) -> None:
        """Store the result, with these streams kept as artifacts."""
        output: dict[str, Any] = {}
        for stream in stored:
            info = await store_for(self._rig.bus, self.session, self.job, body, stream, TEXT)
            uri = artifact_uri(self.session, self.job, stream)
            told = {"uri": uri, "media_type": TEXT, "expires_ms": 1}
            output[stream] = {"size": info.size, "sha256": info.sha256, "artifact": told}
        facts = {"outcome": "succeeded", "result": {"content": [{"type": "text", "text": "a preview"}]}, **data}
        await self.tell("result", output=output, **facts)


def at(gateway: RunningGateway) -> str:
    return f"http://{gateway.address}"


async def ended_with_bytes(process: Process) -> tuple[int, bytes, str]:
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out, err.decode()


# --- call -----------------------------------------------------------------------------------------------------


async def test_a_call_saves_its_output_before_its_session_ends(
    rig: GatewayRig, gateway: RunningGateway, folder: Path
) -> None:
    """Nothing of it is on stdout, and nothing else is left in the folder."""
    file = folder / "out.bin"
    async with running(at(gateway), *CALL, "--save", str(file)) as process:
        call = await Call.taken(rig)
        await call.tell("output", stream="stdout", offset=0, size=len(BODY))
        await call.end("stdout")
        got = await ended(process)

    assert call.artifact
    assert (got.code, got.out, file.read_bytes()) == (0, "", BODY)
    assert f"saved {len(BODY):,} bytes to {file}, SHA-256 {hashlib.sha256(BODY).hexdigest()}" in got.err
    assert os.listdir(folder) == ["out.bin"]


async def test_a_call_saves_to_stdout(rig: GatewayRig, gateway: RunningGateway) -> None:
    """The very bytes, for a pipe."""
    async with running(at(gateway), *CALL, "--save", "-") as process:
        await (await Call.taken(rig)).end("stdout", "stderr")
        code, out, err = await ended_with_bytes(process)

    assert (code, out) == (0, BODY)
    assert "stderr is kept as /v1/sessions/" in err


async def test_a_file_that_exists_is_not_replaced_without_being_told(
    rig: GatewayRig, gateway: RunningGateway, folder: Path
) -> None:
    """Nor is the tool called."""
    file = folder / "mine"
    file.write_text("mine")

    async with running(at(gateway), *CALL, "--save", str(file)) as process:
        refused = await ended(process)
    async with running(at(gateway), *CALL, "--save", str(folder / "no" / "x")) as process:
        nowhere = await ended(process)
    assert (refused.code, file.read_text()) == (2, "mine")
    assert "the file exists; --force replaces it" in refused.err
    assert (nowhere.code, "its directory does not exist" in nowhere.err) == (2, True)
    assert await rig.queued("math") == 0

    async with running(at(gateway), *CALL, "--save", str(file), "--force") as process:
        await (await Call.taken(rig)).end("stdout")
        assert (await ended(process)).code == 0
    assert file.read_bytes() == BODY


async def test_a_file_that_appears_during_the_call_is_not_replaced(
    rig: GatewayRig, gateway: RunningGateway, folder: Path
) -> None:
    """It is somebody's."""
    file = folder / "theirs"
    async with running(at(gateway), *CALL, "--save", str(file)) as process:
        call = await Call.taken(rig)
        file.write_text("theirs")
        await call.end("stdout")
        got = await ended(process)

    assert (got.code, file.read_text(), os.listdir(folder)) == (2, "theirs", ["theirs"])


async def test_a_job_without_output_saves_nothing(rig: GatewayRig, gateway: RunningGateway, folder: Path) -> None:
    """And says so."""
    async with running(at(gateway), *CALL, "--save", str(folder / "x")) as process:
        await (await Call.taken(rig)).end("stderr")
        got = await ended(process)

    assert (got.code, os.listdir(folder)) == (1, [])
    assert "the job offers no output" in got.err


async def test_a_failed_job_says_why_and_its_output_is_saved(
    rig: GatewayRig, gateway: RunningGateway, folder: Path
) -> None:
    """Exit code 1 all the same."""
    file = folder / "x"
    async with running(at(gateway), *CALL, "--save", str(file)) as process:
        await (await Call.taken(rig)).end("stdout", outcome="failed")
        got = await ended(process)

    assert (got.code, got.out, file.read_bytes()) == (1, "", BODY)
    assert "a preview" in got.err


async def test_binary_output_goes_to_stdout_as_it_is(rig: GatewayRig, gateway: RunningGateway) -> None:
    """Between text, in its order."""
    async with running(at(gateway), *CALL) as process:
        call = await Call.taken(rig)
        await call.tell("output", stream="stdout", offset=0, text="one\n")
        await call.tell("output", stream="stdout", offset=4, data=BINARY)
        await call.tell("output", stream="stdout", offset=9, text="two\n")
        await call.end()
        code, out, _ = await ended_with_bytes(process)

    assert (code, out) == (0, b"one\n" + BINARY + b"two\n")


async def test_an_attempt_that_begins_anew_says_that_the_output_before_is_void(
    rig: GatewayRig, gateway: RunningGateway
) -> None:
    """Once, and only where something was shown."""
    async with running(at(gateway), *CALL) as process:
        call = await Call.taken(rig)
        await call.tell("started", worker="w")
        await call.tell("output", stream="stdout", offset=0, text="one\n")
        await call.tell("started", 2, worker="w", discard=True)
        await call.tell("output", 2, stream="stdout", offset=0, text="two\n")
        await call.tell("result", 2, outcome="succeeded")
        got = await ended(process)

    assert (got.code, got.out) == (0, "one\ntwo\n")
    assert got.err.count("void") == 1
    assert "attempt 2 begins anew: the output before this line is void" in got.err


async def test_an_answer_in_pieces_is_shown_whole(rig: GatewayRig, gateway: RunningGateway) -> None:
    """Not as the JSON that it comes as."""
    answer = b'{"content": [{"type": "text", "text": "all of it"}]}'
    async with running(at(gateway), *CALL) as process:
        call = await Call.taken(rig)
        await call.tell("output", stream="result", offset=0, text=answer[:20].decode())
        await call.tell("output", stream="result", offset=20, text=answer[20:].decode())
        told = {"result": {"size": len(answer), "sha256": hashlib.sha256(answer).hexdigest()}}
        await call.tell("result", outcome="succeeded", result={"content": []}, output=told)
        got = await ended(process)

    assert (got.code, got.out) == (0, "all of it\n")


async def test_a_call_names_what_is_kept_and_how_to_get_it(rig: GatewayRig, gateway: RunningGateway) -> None:
    """Its session ends with it."""
    async with running(at(gateway), *CALL) as process:
        call = await Call.taken(rig)
        await call.end("stdout")
        got = await ended(process)

    uri = artifact_uri(call.session, call.job, "stdout")
    assert f"stdout is kept as {uri} ({len(BODY):,} bytes)" in got.err
    assert "--save FILE keeps the output" in got.err


# --- artifact -------------------------------------------------------------------------------------------------


async def test_an_artifact_is_downloaded_later(
    rig: GatewayRig, gateway: RunningGateway, session: str, folder: Path
) -> None:
    """To stdout, or into a file; output or stderr."""
    job = await store(rig.bus, session)
    await store_for(rig.bus, session, job, BINARY, "stderr", TEXT)

    async with running(at(gateway), "artifact", session, job) as process:
        assert (await ended_with_bytes(process))[:2] == (0, BODY)
    file = folder / "e"
    async with running(at(gateway), "artifact", session, job, "--stderr", "--save", str(file)) as process:
        assert (await ended(process)).code == 0
    assert file.read_bytes() == BINARY


async def test_an_artifact_that_is_gone_is_one_sentence_and_no_file(
    gateway: RunningGateway, session: str, folder: Path
) -> None:
    """Exit code 2, as for every refusal."""
    command = ("artifact", session, subjects.new_job_id(), "--save", str(folder / "x"))
    async with running(at(gateway), *command) as process:
        got = await ended(process)

    assert (got.code, os.listdir(folder)) == (2, [])
    assert "may have expired" in got.err


async def test_a_download_that_is_not_what_was_announced_leaves_no_file(
    rig: GatewayRig, gateway: RunningGateway, session: str, folder: Path
) -> None:
    """A chunk of it has changed in the store, which a digest finds out at the end."""
    job = await store(rig.bus, session, b"well")
    info = await store_for(rig.bus, session, "other", b"hell", "stdout", TEXT)
    named = await rig.bus.object_info(f"{session}/{job}")
    assert named is not None
    await rig.bus.name_object(replace(named, object_id=info.object_id))

    async with running(at(gateway), "artifact", session, job, "--save", str(folder / "x")) as process:
        got = await ended(process)

    assert (got.code, os.listdir(folder)) == (3, [])
    assert "another SHA-256" in got.err


async def test_a_download_shows_a_bar_on_a_terminal(
    rig: GatewayRig, gateway: RunningGateway, session: str, folder: Path
) -> None:
    """Which is gone in the end."""
    job = await store(rig.bus, session)
    screen, terminal = pty.openpty()
    command = ("artifact", session, job, "--save", str(folder / "x"))
    async with running(at(gateway), *command, stderr=terminal) as process:
        os.close(terminal)
        shown = await asyncio.to_thread(read_all, screen)
        assert await process.wait() == 0
    os.close(screen)

    assert b"\x1b[" in shown
    assert b"SHA-256" in shown


def read_all(fd: int) -> bytes:
    got = b""
    while True:
        try:
            data = os.read(fd, 65_536)
        except OSError:  # the other side is closed
            return got
        if not data:
            return got
        got += data
