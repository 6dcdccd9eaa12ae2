"""What a running call tells and writes, on its way to the store: bounded, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final, NamedTuple

from common import subjects
from common.bus import Bus
from common.errors import ArtifactStoreFull, Fenced, PayloadTooLarge, StoreUnavailable
from common.job_errors import JobError
from common.log import get
from common.object_writer import SentChunk
from common.output import as_text, estimated_bytes
from common.schema import EventType, Job, now_ms
from worker.errors import OutputNotStored, OutputStoreFull, OutputTooLarge
from worker.journal import Journal
from worker.output_stream import OutputLimits, OutputStream, StreamName, Written

_log = get(__name__)

WAITING_ITEMS: Final = 32
MAX_REPORT_BYTES: Final = 64 * 1024
"""Memory of one progress report; a larger one is left out."""
LINGER_S: Final = 0.01
"""How long an unfinished line waits for its end."""


class _Told(NamedTuple):
    type: EventType
    data: dict[str, Any]


class _Spilled(NamedTuple):
    """A chunk on its way to the stream's object."""

    stream: OutputStream
    chunk: SentChunk
    repeated: bool
    """Its bytes have left in an event before."""


class _Look(NamedTuple):
    """A stream may have something that waits for company: the pump looks when it has nothing else to do."""


class _Mark(NamedTuple):
    """Reached when all that was told before is stored."""

    reached: asyncio.Event


class _End(NamedTuple):
    pass


_Item = _Told | _Spilled | _Look | _Mark | _End


class Outbox:
    """One attempt's events before its result. `pump()` must run; it ends after `close()`, when all is stored.

    While the attempt tells nothing, its `started` is stored again every `repeat_s` seconds: were it past the resume
    window, nobody would know any more that the job had started.
    """

    def __init__(self, bus: Bus, job: Job, journal: Journal, limits: OutputLimits, repeat_s: float) -> None:
        self._bus = bus
        self._job = job
        self._journal = journal
        self._limits = limits
        self._repeat_s = repeat_s
        self._started: dict[str, Any] = {}
        self._since_ms = 0
        self._waiting: asyncio.Queue[_Item] = asyncio.Queue(WAITING_ITEMS)
        self._writing = asyncio.Lock()
        """Chunks are cut and queued in one step, so that those of a stream keep their order."""
        self._room = limits.most
        self._ended = False
        self._marks: set[asyncio.Event] = set()
        self.streams: dict[StreamName, OutputStream] = {}
        self.fault: asyncio.Future[JobError] = asyncio.get_running_loop().create_future()
        """Done when the call has to be stopped because of what it writes."""
        self.told_at = asyncio.get_running_loop().time()
        """When the tool last told something, or was about to begin; by the loop's clock."""
        self.started_settled = asyncio.Event()
        """Set when `started` is stored, or never will be."""

    # --- telling --------------------------------------------------------------------------------------

    def started(self, data: dict[str, Any]) -> None:
        """The first event of an attempt."""
        self._since_ms = now_ms()
        self._started = _repeated(data, self._since_ms)
        self._waiting.put_nowait(_Told("started", data))

    async def started_elsewhere(self, data: dict[str, Any]) -> None:
        """The call goes to another container than was told. Returns when that is stored, or never will be.

        Nothing else may be waiting: no call has been begun.
        """
        await self.started_settled.wait()
        if self._ended:
            return
        self.started_settled.clear()
        self._started = _repeated(data, self._since_ms)
        self._waiting.put_nowait(_Told("started", self._started))
        await self.started_settled.wait()

    def progress(self, data: dict[str, Any]) -> None:
        """Never waits. A tool that reports faster than the store takes it loses reports in between: each one
        supersedes the one before."""
        self.told_at = asyncio.get_running_loop().time()
        if self._waiting.qsize() >= WAITING_ITEMS - 1:  # the last place is kept for close()
            return
        if estimated_bytes(data) > MAX_REPORT_BYTES:
            _log.warning("progress report left out", job=self._job.id, reason="too large")
            return
        self._waiting.put_nowait(_Told("progress", data))

    async def step(self, data: dict[str, Any]) -> bool:
        """A step of a chat turn, behind all output so far. Returns when it is stored; False if it never will be,
        because the job is another worker's."""
        self.told_at = asyncio.get_running_loop().time()
        reached = asyncio.Event()
        self._marks.add(reached)
        try:
            async with self._writing:
                for stream in self.streams.values():
                    if chunk := stream.flush(partial=True):
                        await self._queue(stream, chunk)
                if self._ended:
                    return False
                await self._waiting.put(_Told("step", data))
                await self._waiting.put(_Mark(reached))
            await reached.wait()
        finally:
            self._marks.discard(reached)
        return not self._ended

    @property
    def ended(self) -> bool:
        """Nothing is stored any more: the attempt is over, or the job another worker's."""
        return self._ended

    # --- writing --------------------------------------------------------------------------------------

    async def output(self, name: StreamName, data: bytes) -> None:
        """Take in what the tool wrote. Waits while the store is behind: so the tool is slowed instead of this process
        growing. After a `fault` it goes nowhere."""
        self.told_at = asyncio.get_running_loop().time()
        async with self._writing:
            if self._ended or self.fault.done():
                return
            stream = self._stream(name)
            for chunk in stream.take(self._within_room(data)):
                await self._queue(stream, chunk)
        if stream.waiting and self._waiting.empty():
            self._waiting.put_nowait(_Look())

    async def end_output(self) -> None:
        """Nothing more is written: what waits leaves."""
        async with self._writing:
            for stream in self.streams.values():
                if last := stream.close():
                    await self._queue(stream, last)

    def written(self, name: StreamName) -> Written:
        """The stream as far as a result can repeat it."""
        return self.streams[name].written() if name in self.streams else Written(b"", whole=True)

    async def close(self) -> None:
        await self.end_output()
        if not self._ended:
            await self._waiting.put(_End())

    def _stream(self, name: StreamName) -> OutputStream:
        if name not in self.streams:
            job = self._job
            self.streams[name] = OutputStream(
                name,
                self._limits,
                spill_all=job.artifact,
                new_writer=lambda: self._bus.write_object(subjects.new_object_id(job.session, job.id, name)),
            )
        return self.streams[name]

    def _within_room(self, data: bytes) -> bytes:
        if len(data) > self._room:
            data = data[: self._room]
            self.fault.set_result(OutputTooLarge(self._limits.most))
        self._room -= len(data)
        return data

    async def _queue(self, stream: OutputStream, chunk: bytes) -> None:
        if not self._ended:
            async for item in self._cut(stream, chunk):
                await self._waiting.put(item)

    async def _cut(self, stream: OutputStream, chunk: bytes) -> AsyncGenerator[_Item]:
        cut = stream.cut(chunk)
        if stream.writer is None:
            yield _Told("output", {"stream": stream.name, "offset": cut.offset} | _body(chunk))
            return
        for piece in cut.before:
            yield _Spilled(stream, await stream.writer.put(piece), repeated=True)
        yield _Spilled(stream, await stream.writer.put(chunk), repeated=False)

    # --- storing --------------------------------------------------------------------------------------

    async def pump(self) -> Fenced | None:
        """Store what comes until `close()`. Returns why it ended early, if it did: the job is another worker's then."""
        try:
            ended = False
            while not ended:
                items = await self._next()
                ended = any(isinstance(item, _End) for item in items)  # a tool may report even after it
                await self._store(items)
        except Fenced as exc:
            return exc
        finally:
            # What comes after the end is nobody's: writers must neither wait for it nor pile it up.
            self._ended = True
            self.started_settled.set()
            for mark in self._marks:
                mark.set()
            for stream in self.streams.values():
                if stream.writer is not None:
                    stream.writer.abandon()
            while not self._waiting.empty():
                self._waiting.get_nowait()
        return None

    async def _next(self) -> list[_Item]:
        """What waits, else what the streams hold back, else what comes next."""
        silent = False
        while True:
            if items := self._drained() or await self._held_back(partial=silent):
                return items
            lingers = not silent and any(stream.waiting for stream in self.streams.values())
            try:
                async with asyncio.timeout(LINGER_S if lingers else self._repeat_s):
                    item = await self._waiting.get()
            except TimeoutError:
                if not lingers:
                    return [_Told("started", self._started)]
                silent = True
            else:
                if not isinstance(item, _Look):
                    return [item, *self._drained()]
                silent = False

    def _drained(self) -> list[_Item]:
        items: list[_Item] = []
        while not self._waiting.empty():
            if not isinstance(item := self._waiting.get_nowait(), _Look):
                items.append(item)
        return items

    async def _held_back(self, *, partial: bool) -> list[_Item]:
        """Lines that wait for company have none now: the store has taken all that came before.

        A writer that is at it queues more in a moment.
        """
        items: list[_Item] = []
        if not self._writing.locked():
            async with self._writing:
                for stream in self.streams.values():
                    if chunk := stream.flush(partial=partial):
                        items += [item async for item in self._cut(stream, chunk)]
        return items

    async def _store(self, items: list[_Item]) -> None:
        """In order; output in as few steps as it takes."""
        outputs: list[_Told] = []
        for item in items:
            if isinstance(item, _Spilled):
                outputs += await self._settled(item)
            elif isinstance(item, _Told) and item.type == "output":
                outputs.append(item)
            elif isinstance(item, _Told):
                await self._append(outputs)
                outputs = []
                await self._append([item])
            elif isinstance(item, _Mark):
                await self._append(outputs)
                outputs = []
                item.reached.set()
        await self._append(outputs)

    async def _settled(self, item: _Spilled) -> list[_Told]:
        """The event of a chunk, when the chunk is stored; none if there is nothing to tell."""
        stream, chunk = item.stream, item.chunk
        assert stream.writer is not None
        try:
            seq = await stream.writer.settle(chunk)
        except (ArtifactStoreFull, StoreUnavailable) as exc:
            if not self.fault.done():
                self.fault.set_result(OutputStoreFull() if isinstance(exc, ArtifactStoreFull) else OutputNotStored())
            return []
        if item.repeated or stream.writer.full:
            return []  # a smaller chunk may have found room behind one that did not: its event would follow a gap
        data: dict[str, Any] = {"stream": stream.name, "offset": chunk.offset, "size": chunk.size}
        if not self._job.artifact:
            data |= {"object": stream.writer.object_id, "chunk": seq}
        return [_Told("output", data)]

    async def _append(self, told: list[_Told]) -> None:
        try:
            if len(told) > 1:
                await self._journal.append_all(told)
            elif told:
                await self._journal.append(*told[0])
        except PayloadTooLarge as exc:
            _log.warning("event left out", type=told[0].type, reason=exc.message)
        if told:
            self.started_settled.set()


def _repeated(started: dict[str, Any], since_ms: int) -> dict[str, Any]:
    """`started` again: it voids nothing of what the attempt itself has told."""
    return {name: value for name, value in started.items() if name != "discard"} | {"since_ms": since_ms}


def _body(chunk: bytes) -> dict[str, Any]:
    text = as_text(chunk)
    return {"text": text} if isinstance(text, str) else {"data": chunk}
