"""Artifacts over HTTP: whole, in part, gone, and cut off."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
from h2.exceptions import InvalidBodyLengthError

import gateway.artifacts
from common import subjects
from common.artifacts import artifact_uri
from tests.gateway_rig import DEADLINE_S, GatewayRig, RunningGateway, gateway_rig
from tests.nats_server import NatsServer
from tests.stored_artifacts import BODY, LARGE, TEXT, store, store_for


@pytest.fixture
async def rig(nats_server: NatsServer) -> AsyncIterator[GatewayRig]:
    async with gateway_rig(nats_server.url) as rig:
        yield rig


@pytest.fixture
async def served(rig: GatewayRig) -> RunningGateway:
    return await rig.start_gateway()


@pytest.fixture
async def http(served: RunningGateway) -> AsyncIterator[httpx.AsyncClient]:
    async with served.http() as http:
        yield http


@pytest.fixture
async def session(http: httpx.AsyncClient) -> str:
    return str((await http.post("/v1/sessions")).json()["session"])


def assert_problem(answer: httpx.Response, status: int, type_: str) -> None:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["type"] == type_


# --- whole ----------------------------------------------------------------------------------------------------


async def test_an_artifact_comes_whole_with_what_a_client_needs_to_check_and_to_resume(
    rig: GatewayRig, http: httpx.AsyncClient, session: str
) -> None:
    """Its digest in two forms, and a file name that no path can hide in."""
    job = await store(rig.bus, session)
    digest = hashlib.sha256(BODY)

    answer = await http.get(artifact_uri(session, job, "stdout"))

    assert (answer.status_code, answer.content) == (200, BODY)
    assert {name: answer.headers[name] for name in answer.headers if name not in ("date", "connection")} == {
        "content-type": TEXT,
        "content-length": str(len(BODY)),
        "etag": f'"sha256-{digest.hexdigest()}"',
        "repr-digest": f"sha-256=:{base64.b64encode(digest.digest()).decode()}:",
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
        "content-disposition": f'attachment; filename="{job}.txt"',
        "x-content-type-options": "nosniff",
    }


async def test_head_tells_the_same_without_the_body(rig: GatewayRig, http: httpx.AsyncClient, session: str) -> None:
    """A range is for GET alone."""
    uri = artifact_uri(session, await store(rig.bus, session), "stdout")

    got, told = await http.get(uri), await http.head(uri, headers={"Range": "bytes=0-1"})

    assert (told.status_code, told.content) == (200, b"")
    differ = ("date",)
    assert {n: v for n, v in told.headers.items() if n not in differ} == {
        n: v for n, v in got.headers.items() if n not in differ
    }


async def test_stderr_stands_beside_the_output(rig: GatewayRig, http: httpx.AsyncClient, session: str) -> None:
    """Each under its own address, with its own type and file name."""
    job = await store(rig.bus, session, b"{}", "result", "application/json")
    await store_for(rig.bus, session, job, b"\xff\x00", "stderr", "application/octet-stream")

    output = await http.get(artifact_uri(session, job, "result"))
    side = await http.get(artifact_uri(session, job, "stderr"))

    assert (output.content, output.headers["content-type"]) == (b"{}", "application/json")
    assert output.headers["content-disposition"] == f'attachment; filename="{job}.json"'
    assert (side.content, side.headers["content-type"]) == (b"\xff\x00", "application/octet-stream")
    assert side.headers["content-disposition"] == f'attachment; filename="{job}-stderr.bin"'


async def test_an_empty_artifact_is_an_empty_body(rig: GatewayRig, http: httpx.AsyncClient, session: str) -> None:
    """And no range of it exists."""
    uri = artifact_uri(session, await store(rig.bus, session, b""), "stdout")

    whole, part = await http.get(uri), await http.get(uri, headers={"Range": "bytes=0-"})

    assert (whole.status_code, whole.content, whole.headers["content-length"]) == (200, b"", "0")
    assert (part.status_code, part.headers["content-range"]) == (416, "bytes */0")


# --- in part --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-9", 0, 10),
        ("bytes=131000-262200", 131_000, 262_201),
        ("bytes=393000-", 393_000, len(BODY)),
        ("bytes=-5", len(BODY) - 5, len(BODY)),
        ("bytes=0-", 0, len(BODY)),
    ],
)
async def test_a_range_is_answered_with_that_part(
    rig: GatewayRig, http: httpx.AsyncClient, session: str, asked: str, start: int, end: int
) -> None:
    """Also across chunks."""
    uri = artifact_uri(session, await store(rig.bus, session), "stdout")

    answer = await http.get(uri, headers={"Range": asked})

    assert answer.status_code == 206
    assert answer.content == BODY[start:end]
    assert answer.headers["content-length"] == str(end - start)
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(BODY)}"


async def test_a_range_behind_the_end_is_refused_with_the_size(
    rig: GatewayRig, http: httpx.AsyncClient, session: str
) -> None:
    """So that a client can ask anew."""
    uri = artifact_uri(session, await store(rig.bus, session), "stdout")

    answer = await http.get(uri, headers={"Range": f"bytes={len(BODY)}-"})

    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{len(BODY)}")


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "bytes=9-2", "lines=0-1"])
async def test_several_ranges_or_none_are_answered_with_the_whole(
    rig: GatewayRig, http: httpx.AsyncClient, session: str, asked: str
) -> None:
    """As the RFC allows."""
    uri = artifact_uri(session, await store(rig.bus, session), "stdout")

    answer = await http.get(uri, headers={"Range": asked})

    assert (answer.status_code, answer.content) == (200, BODY)


async def test_a_part_is_sent_only_of_what_the_client_has_begun(
    rig: GatewayRig, http: httpx.AsyncClient, session: str
) -> None:
    """Otherwise the whole."""
    uri = artifact_uri(session, await store(rig.bus, session), "stdout")
    etag = (await http.head(uri)).headers["etag"]

    same = await http.get(uri, headers={"Range": "bytes=5-", "If-Range": etag})
    other = await http.get(uri, headers={"Range": "bytes=5-", "If-Range": '"sha256-00"'})

    assert (same.status_code, same.content) == (206, BODY[5:])
    assert (other.status_code, other.content) == (200, BODY)


async def test_who_has_it_already_is_told_so(rig: GatewayRig, http: httpx.AsyncClient, session: str) -> None:
    """Without the body."""
    uri = artifact_uri(session, await store(rig.bus, session), "stdout")
    etag = (await http.head(uri)).headers["etag"]

    for verb in ("GET", "HEAD"):
        answer = await http.request(verb, uri, headers={"If-None-Match": f'"x", {etag}', "Range": "bytes=0-1"})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)


# --- not there ------------------------------------------------------------------------------------------------


async def test_what_never_was_is_unknown(rig: GatewayRig, http: httpx.AsyncClient, session: str) -> None:
    """A job without an artifact, a stream without one, an id that is none."""
    job = await store(rig.bus, session)

    assert_problem(await http.get(artifact_uri(session, subjects.new_job_id(), "stdout")), 404, "unknown_artifact")
    assert_problem(await http.get(artifact_uri(session, job, "stderr")), 404, "unknown_artifact")
    assert_problem(await http.get(artifact_uri(session, "a.b", "stdout")), 400, "invalid_params")
    assert_problem(await http.get(artifact_uri("a*", job, "stdout")), 400, "invalid_params")


async def test_another_tenants_artifact_is_in_no_session_of_ours(
    rig: GatewayRig, served: RunningGateway, session: str
) -> None:
    """The answer is that to a session that never was; without a key there is none at all."""
    uri = artifact_uri(session, await store(rig.bus, session), "stdout")

    async with served.http("umbra-key") as other, served.http(None) as nobody:
        assert_problem(await other.get(uri), 404, "unknown_session")
        assert_problem(await nobody.get(uri), 401, "unauthenticated")


async def test_an_artifact_whose_chunks_are_gone_is_unknown(
    rig: GatewayRig, http: httpx.AsyncClient, session: str
) -> None:
    """Its name may outlive them: no 200 is promised then."""
    job = await store(rig.bus, session)
    await rig.bus.purge_objects(session)

    for verb in ("GET", "HEAD"):
        answer = await http.request(verb, artifact_uri(session, job, "stdout"))
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


async def test_closing_a_session_removes_its_artifacts_and_no_others(
    rig: GatewayRig, http: httpx.AsyncClient, session: str
) -> None:
    """At once, not when they expire."""
    other = str((await http.post("/v1/sessions")).json()["session"])
    info = await store_for(rig.bus, session, "job1", BODY, "stdout", TEXT)
    kept = await store_for(rig.bus, other, "job1", BODY, "stdout", TEXT)

    await http.delete(f"/v1/sessions/{session}")

    assert await rig.bus.read_chunks(info.object_id) == []
    assert len(await rig.bus.read_chunks(kept.object_id)) == kept.chunks
    assert_problem(await http.get(artifact_uri(session, "job1", "stdout")), 404, "unknown_session")


# --- cut off --------------------------------------------------------------------------------------------------


async def slow_download(address: str, uri: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that has asked and does not read yet, with little room on its side."""
    host, _, port = address.partition(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=sock, limit=4_096)
    writer.write(f"GET {uri} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer acme-key\r\n\r\n".encode())
    await writer.drain()
    return reader, writer


async def open_downloads(http: httpx.AsyncClient, count: int) -> None:
    """Wait until so many connections are held."""
    async with asyncio.timeout(DEADLINE_S):
        while (await http.get("/v1/status")).json()["gateway"]["connections"] != count:
            await asyncio.sleep(0.01)


async def short_body(reader: asyncio.StreamReader) -> bytes:
    """What comes of a body until the gateway hangs up; the head has promised all of LARGE."""
    async with asyncio.timeout(DEADLINE_S):
        head = await reader.readuntil(b"\r\n\r\n")
        assert f"content-length: {len(LARGE)}\r\n".encode() in head.lower()
        return await reader.read(-1)


async def test_a_client_that_does_not_read_is_cut_and_can_resume(
    rig: GatewayRig, served: RunningGateway, http: httpx.AsyncClient, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the beginning of the body, and nothing else."""
    monkeypatch.setattr(gateway.artifacts, "TAKEN_WITHIN_S", 0.05)
    uri = artifact_uri(session, await store(rig.bus, session, LARGE), "stdout")
    reader, writer = await slow_download(served.address, uri)
    await open_downloads(http, 1)
    await open_downloads(http, 0)

    got = await short_body(reader)
    writer.close()

    assert len(got) < len(LARGE)
    assert LARGE.startswith(got)
    monkeypatch.undo()
    rest = await http.get(uri, headers={"Range": f"bytes={len(got)}-"})
    assert got + rest.content == LARGE


async def test_a_client_that_goes_ends_its_download(
    rig: GatewayRig, served: RunningGateway, http: httpx.AsyncClient, session: str
) -> None:
    """Nothing is read for it any more."""
    _, writer = await slow_download(
        served.address, artifact_uri(session, await store(rig.bus, session, LARGE), "stdout")
    )
    await open_downloads(http, 1)

    writer.transport.abort()

    await open_downloads(http, 0)


async def test_a_gateway_that_drains_cuts_downloads(
    rig: GatewayRig, served: RunningGateway, http: httpx.AsyncClient, session: str
) -> None:
    """They go on at another one."""
    uri = artifact_uri(session, await store(rig.bus, session, LARGE), "stdout")
    reader, writer = await slow_download(served.address, uri)
    await open_downloads(http, 1)
    other = await rig.start_gateway()

    served.start_stopping()
    got = await short_body(reader)
    writer.close()
    await served.stop()

    assert len(got) < len(LARGE)
    async with other.http() as elsewhere:
        rest = await elsewhere.get(uri, headers={"Range": f"bytes={len(got)}-"})
    assert got + rest.content == LARGE


async def test_a_download_whose_rest_is_gone_is_cut_short(
    rig: GatewayRig, served: RunningGateway, http: httpx.AsyncClient, session: str
) -> None:
    """The client must not take it for the whole."""
    uri = artifact_uri(session, await store(rig.bus, session, LARGE), "stdout")
    reader, writer = await slow_download(served.address, uri)
    await open_downloads(http, 1)

    await rig.bus.purge_objects(session)
    got = await short_body(reader)
    writer.close()

    assert len(got) < len(LARGE)
    assert LARGE.startswith(got)


async def test_a_download_over_http_2_that_is_cut_is_an_error_and_not_a_silence(
    rig: GatewayRig, served: RunningGateway, http: httpx.AsyncClient, session: str
) -> None:
    """The connection stays; its stream ends before what Content-Length said."""
    uri = artifact_uri(session, await store(rig.bus, session, LARGE), "stdout")
    headers = {"Authorization": "Bearer acme-key"}
    async with (
        asyncio.timeout(DEADLINE_S),
        httpx.AsyncClient(http1=False, http2=True, trust_env=False, headers=headers) as client,
        client.stream("GET", f"http://{served.address}{uri}") as answer,
    ):
        await open_downloads(http, 1)
        await rig.bus.purge_objects(session)
        with pytest.raises(InvalidBodyLengthError):
            await answer.aread()

    assert answer.http_version == "HTTP/2"
