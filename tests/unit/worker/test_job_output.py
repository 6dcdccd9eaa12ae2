"""What a tool writes, on its way to a real store: in events up to a threshold, as chunks of an object beyond it."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import zstandard

from common import object_writer
from common.bus import Bus
from common.errors import Fenced
from common.output import OUTPUT_CHUNK_BYTES, Summary
from common.schema import Event
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import DEADLINE_S, be_impatient, make_event, make_job, open_bus, store_paused, until
from worker import artifacts, journal, outbox
from worker.errors import OutputNotStored, OutputStoreFull, OutputTooLarge
from worker.journal import Journal
from worker.outbox import Outbox
from worker.output_stream import PREVIEW_BYTES, OutputLimits

MIB = 1024 * 1024
SMALL = OutputLimits(collect=2 * OUTPUT_CHUNK_BYTES, offer=4 * OUTPUT_CHUNK_BYTES, most=64 * OUTPUT_CHUNK_BYTES)


@asynccontextmanager
async def writing(bus: Bus, limits: OutputLimits = SMALL, **fields: Any) -> AsyncIterator[Outbox]:
    """An outbox whose pump runs; on leaving all is stored."""
    job = make_job(id="j1", **fields)
    box = Outbox(bus, job, Journal(bus, job, attempt=1, last_seq=0), limits, 60.0)
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        pump = tasks.create_task(box.pump())
        yield box
        await box.close()
    assert pump.result() is None


async def outputs(bus: Bus, stream: str = "stdout") -> list[Event]:
    events = [found.event async for found in bus.replay_session("s1", 0)]
    return [event for event in events if event.type == "output" and event.data["stream"] == stream]


async def read(bus: Bus, events: list[Event]) -> bytes:
    """What the events say, in their order; each begins where the one before ended."""
    whole = b""
    for event in events:
        data = event.data
        assert data["offset"] == len(whole)
        if "text" in data:
            whole += data["text"].encode()
        elif "data" in data:
            whole += data["data"]
        else:
            [chunk, *_] = await bus.chunks_from(data["object"], data["chunk"])
            assert (chunk.offset, len(chunk.content())) == (data["offset"], data["size"])
            whole += chunk.content()
    return whole


def lines(size: int) -> bytes:
    line = b"the quick brown fox jumps over the lazy d\xc3\xb6g\n"
    return (line * (size // len(line) + 1))[:size]


async def test_a_line_leaves_at_once_and_an_unfinished_one_soon(bus: Bus) -> None:
    """Nobody waits for a chunk to be full."""
    async with bus.subscribe_session("s1", 0) as feed, writing(bus) as box:
        events = aiter(feed)
        await box.output("stdout", b"first\nsec")
        one = (await anext(events)).event.data
        two = (await anext(events)).event.data
        await box.output("stdout", b"ond\n")
        three = (await anext(events)).event.data

    assert one == {"stream": "stdout", "offset": 0, "text": "first\n"}
    assert two == {"stream": "stdout", "offset": 6, "text": "sec"}
    assert three == {"stream": "stdout", "offset": 9, "text": "ond\n"}


async def test_each_stream_keeps_its_order_and_counts_for_itself(bus: Bus) -> None:
    """Whatever comes between."""
    async with writing(bus) as box:
        for number in range(200):
            await box.output("stdout", f"out {number}\n".encode())
            await box.output("stderr", f"err {number}\n".encode())

    assert await read(bus, await outputs(bus)) == b"".join(f"out {n}\n".encode() for n in range(200))
    assert await read(bus, await outputs(bus, "stderr")) == b"".join(f"err {n}\n".encode() for n in range(200))
    assert box.written("stdout").whole
    assert box.written("stderr").text.endswith("err 199\n")


async def test_bytes_that_are_no_text_are_told_as_they_are(bus: Bus) -> None:
    """And text between them as text."""
    async with writing(bus) as box:
        await box.output("stdout", bytes(range(256)))

    [event] = await outputs(bus)
    assert event.data == {"stream": "stdout", "offset": 0, "data": bytes(range(256))}
    assert not box.streams["stdout"].is_text


async def test_a_character_that_comes_in_two_pieces_is_one_character(bus: Bus) -> None:
    """Though the first half waits."""
    async with writing(bus) as box:
        await box.output("stdout", "ö".encode()[:1])
        await asyncio.sleep(0)
        await box.output("stdout", "ö".encode()[1:])

    assert "".join(event.data["text"] for event in await outputs(bus)) == "ö"


async def test_output_up_to_the_threshold_is_in_its_events_and_whole(bus: Bus) -> None:
    """To the byte."""
    written = lines(SMALL.collect)
    async with writing(bus) as box:
        await box.output("stdout", written)
    events = await outputs(bus)

    assert all("text" in event.data for event in events)
    assert await read(bus, events) == written
    assert box.written("stdout") == (written, True)


async def test_output_beyond_the_threshold_is_an_object_from_its_first_byte_on(bus: Bus) -> None:
    """The events that left before stay what they are; those behind them name chunks."""
    written = lines(SMALL.collect + 1)
    async with writing(bus) as box:
        for at in range(0, len(written), 1000):
            await box.output("stdout", written[at : at + 1000])
    events = await outputs(bus)
    stream = box.streams["stdout"]
    assert stream.writer is not None
    stored = await bus.read_chunks(stream.writer.object_id)

    assert await read(bus, events) == written
    assert {"text" in events[0].data, "chunk" in events[-1].data} == {True}
    assert b"".join(chunk.content() for chunk in stored) == written
    assert [chunk.offset for chunk in stored] == sorted(chunk.offset for chunk in stored)
    assert box.written("stdout") == (written[-PREVIEW_BYTES:], False)
    assert stream.summary().sha256 == hashlib.sha256(written).hexdigest()


async def test_no_chunk_is_larger_than_its_bound_and_lines_stay_whole(bus: Bus) -> None:
    """Where they fit."""
    async with writing(bus) as box:
        await box.output("stdout", lines(10 * OUTPUT_CHUNK_BYTES) + b"\n")
    named = [event.data for event in await outputs(bus) if "chunk" in event.data]
    chunks = [(await bus.chunks_from(data["object"], data["chunk"]))[0].content() for data in named]

    assert max(map(len, chunks)) <= OUTPUT_CHUNK_BYTES
    assert all(chunk.endswith(b"\n") for chunk in chunks)


async def test_an_artifact_on_request_has_everything_and_its_events_nothing(bus: Bus) -> None:
    """They tell how it grows."""
    async with writing(bus, artifact=True) as box:
        await box.output("stdout", b"small\n")
    [event] = await outputs(bus)
    told = await artifacts.keep_output(bus, make_job(id="j1", artifact=True), SMALL, box.streams.values())
    info = await bus.object_info("s1/j1")

    assert event.data == {"stream": "stdout", "offset": 0, "size": 6}
    assert told["stdout"]["artifact"]["uri"] == "/v1/sessions/s1/artifacts/j1"
    assert info is not None
    assert [piece async for piece in bus.read_object(info, 0, info.size)] == [b"small\n"]


async def test_only_output_above_the_second_threshold_is_offered(bus: Bus) -> None:
    """What lies between is in the events, and nowhere else by name."""
    job = make_job(id="j1")
    async with writing(bus) as box:
        await box.output("stdout", lines(SMALL.offer))
        await box.output("stderr", lines(SMALL.offer + 1))
    told = await artifacts.keep_output(bus, job, SMALL, box.streams.values())

    assert told["stdout"] == {"size": SMALL.offer, "sha256": hashlib.sha256(lines(SMALL.offer)).hexdigest()}
    assert told["stderr"]["artifact"]["uri"] == "/v1/sessions/s1/artifacts/j1/stderr"
    assert await bus.object_info("s1/j1") is None
    assert await bus.object_info("s1/j1/stderr") is not None


async def test_a_job_that_writes_too_much_is_told_so_and_keeps_what_fits(bus: Bus) -> None:
    """To the byte; what comes after goes nowhere."""
    async with writing(bus) as box:
        for _ in range(70):
            await box.output("stdout", b"x" * OUTPUT_CHUNK_BYTES)
        await box.output("stderr", b"late")

    assert isinstance(box.fault.result(), OutputTooLarge)
    assert box.streams["stdout"].summary().size == SMALL.most
    assert len(await read(bus, await outputs(bus))) == SMALL.most
    assert "stderr" not in box.streams


async def test_a_full_store_ends_that_job_and_leaves_room_for_others(nats_server: NatsServer) -> None:
    """Its chunks are removed; a job beside it that writes little does not notice."""
    async with open_bus(nats_server, artifact_store_bytes=MIB) as bus:
        async with writing(bus, session="s2") as small, writing(bus, OutputLimits(collect=OUTPUT_CHUNK_BYTES)) as box:
            while not box.fault.done():
                await box.output("stdout", random.randbytes(OUTPUT_CHUNK_BYTES))
            await box.output("stdout", b"late")
            await small.output("stdout", b"fine\n")
        told = await artifacts.keep_output(bus, make_job(id="j1"), OutputLimits(offer=1), box.streams.values())
        async with writing(bus, OutputLimits(collect=OUTPUT_CHUNK_BYTES), session="s3") as after:
            await after.output("stdout", random.randbytes(5 * OUTPUT_CHUNK_BYTES))

    assert isinstance(box.fault.result(), OutputStoreFull)
    assert "artifact" not in told["stdout"]
    assert small.written("stdout").text == "fine\n"
    assert not after.fault.done()


async def test_a_store_that_is_away_slows_the_tool_and_loses_nothing(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on its way is bounded: beyond it the tool is not read."""
    be_impatient(monkeypatch, 0.2)
    monkeypatch.setattr(object_writer, "RETRY_MIN_S", 0.02)
    monkeypatch.setattr(journal, "RETRY_MIN_S", 0.02)
    written = lines(60 * OUTPUT_CHUNK_BYTES)
    taken = 0

    async def write(box: Outbox) -> None:
        nonlocal taken
        for at in range(0, len(written), OUTPUT_CHUNK_BYTES):
            await box.output("stdout", written[at : at + OUTPUT_CHUNK_BYTES])
            taken += OUTPUT_CHUNK_BYTES

    async with open_bus(nats_server) as bus:
        async with writing(bus) as box:
            await box.output("stdout", b"")
            with store_paused():
                writer = asyncio.create_task(write(box))
                before = -1
                while taken != before:
                    before = taken
                    await asyncio.wait({writer}, timeout=0.5)
                assert taken <= (object_writer.WINDOW_CHUNKS + outbox.WAITING_ITEMS) * OUTPUT_CHUNK_BYTES
            await writer
        events = await outputs(bus)

        assert await read(bus, events) == written


async def test_a_store_that_is_there_and_takes_nothing_ends_the_job(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose disk is full: the tool must not hang for as long as its timeout allows."""
    be_impatient(monkeypatch, 0.2)
    monkeypatch.setattr(object_writer, "RETRY_MIN_S", 0.02)
    monkeypatch.setattr(object_writer, "GIVE_UP_S", 0.5)
    monkeypatch.setattr(journal, "RETRY_MIN_S", 0.02)
    async with open_bus(nats_server) as bus, writing(bus) as box:
        with store_paused():
            writer = asyncio.create_task(box.output("stdout", b"x" * 60 * OUTPUT_CHUNK_BYTES))
            await asyncio.wait({box.fault})
        await writer

    assert isinstance(box.fault.result(), OutputNotStored)


async def test_chunks_that_had_to_be_sent_again_are_stored_in_their_order(bus: Bus) -> None:
    """One was lost on its way, those behind it were not: they come once more, behind it."""
    writer = bus.write_object("s1.o1")
    lost = await writer.put(b"a")

    async def stored() -> bool:
        return len(await bus.read_chunks("s1.o1")) == 1

    await until(stored)
    await bus.purge_object("s1.o1")
    lost.sent, lost.msg_id = None, "as if it had never come"
    behind = [await writer.put(piece) for piece in (b"b", b"c", b"d")]
    numbers = [await writer.settle(chunk) for chunk in (lost, *behind)]
    found = await bus.read_chunks("s1.o1")

    assert numbers == sorted(set(numbers))
    assert [chunk.content() for chunk in found] == [b"a", b"b", b"c", b"d"]
    assert [chunk.offset for chunk in found] == [0, 1, 2, 3]


async def test_a_fenced_attempt_stores_no_more_and_holds_nobody_up(bus: Bus) -> None:
    """Though its tool writes on."""
    await bus.publish_event(make_event("j1", "started"), expected=0)
    job = make_job(id="j1")
    box = Outbox(bus, job, Journal(bus, job, attempt=1, last_seq=0), SMALL, 60.0)
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        pump = tasks.create_task(box.pump())
        for _ in range(60):
            await box.output("stdout", b"x" * OUTPUT_CHUNK_BYTES)
        await box.close()

    assert isinstance(pump.result(), Fenced)
    assert await outputs(bus) == []


@pytest.mark.parametrize(
    ("start", "end"), [(0, 1), (0, 700_000), (300_000, 300_001), (123_456, 654_321), (699_999, 700_000)]
)
async def test_any_part_of_an_object_can_be_read(bus: Bus, start: int, end: int) -> None:
    """Its chunks have all sizes, and others' stand between them."""
    written = hashlib.sha512(b"seed").digest() * 11_000
    written = written[:700_000]
    mine, other = bus.write_object("s1.mine"), bus.write_object("s1.other")
    at = 0
    for number in range(1000):
        size = 1 + (number * 7919) % 1400
        await mine.settle(await mine.put(written[at : at + size]))
        if number % 3 == 0:
            await other.settle(await other.put(b"other"))
        at += size
        if at >= len(written):
            break
    else:
        await mine.settle(await mine.put(written[at:]))
    info = mine.info("s1/j1", Summary(len(written), hashlib.sha256(written).hexdigest()), "text/plain")

    assert b"".join([piece async for piece in bus.read_object(info, start, end)]) == written[start:end]


async def test_an_object_is_what_the_nats_command_line_can_read(bus: Bus) -> None:
    """Its name, size and digest are those of the chunks as they are stored: one zstd frame behind the other."""
    written = lines(5 * OUTPUT_CHUNK_BYTES)
    async with writing(bus, artifact=True) as box:
        await box.output("stdout", written)
    await artifacts.keep_output(bus, make_job(id="j1", artifact=True), SMALL, box.streams.values())
    found = await (await bus.client.jetstream().object_store("artifacts")).get("s1/j1")

    assert found.info.size == len(found.data or b"") < len(written) // 2
    with zstandard.ZstdDecompressor().stream_reader(found.data or b"", read_across_frames=True) as reader:
        assert reader.read() == written
