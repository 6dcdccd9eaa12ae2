"""The queue of jobs as it stands: which jobs wait or run, how many, and where one of them stands."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import NamedTuple

import nats.js.errors
from nats.js.api import RawStreamMsg

from common import headers, nats_connection, subjects
from common.errors import StoreUnavailable
from common.event_log import EventLog
from common.nats_connection import translated
from common.streams import JOBS


class QueueFront(NamedTuple):
    """How far the workers have come in the queue of a server."""

    delivered: int
    """Stream number of the newest job that any of them got; 0 if none did."""
    waiting: int
    """Jobs behind it. nats-server 2.15 may count one that was deleted twice, and then says too few for a while."""


class JobQueue(EventLog):
    """A connection with the stream JOBS, to look at. What changes it stands in `common.bus`."""

    async def unfinished_jobs(self, session: str) -> list[str]:
        """Ids of the session's jobs that wait or run: a job leaves the queue after its terminal event is stored."""
        return [job_of(msg) async for msg in self.jobs_in_queue(subjects.jobs_of_session(session)) if job_of(msg)]

    async def jobs_in_queue(self, subject: str, after: int = 0) -> AsyncGenerator[RawStreamMsg]:
        """Every message of a subject of the queue with a number above `after`, in order: jobs that wait or run.

        As the stream's leader has them, one at a time: a replica may be behind, and would hide the newest.
        """
        while (msg := await self._next_in_queue(subject, after)) is not None:
            yield msg
            after = msg.seq or 0

    async def oldest_job_seq(self, server: str, session: str, after: int = 0) -> int | None:
        """Stream number of the oldest job of the session on the server that has not ended; None if there is none.

        Numbers up to `after` are left out: an acknowledgement takes a moment to remove its job.
        """
        oldest = await self._next_in_queue(subjects.jobs(server, session), after)
        return oldest.seq if oldest else None

    async def _next_in_queue(self, subject: str, after: int) -> RawStreamMsg | None:
        async def read() -> RawStreamMsg | None:
            try:
                direct = self.one_replica
                return await self._reads.get_msg(JOBS, seq=after + 1, subject=subject, direct=direct, next=True)
            except nats.js.errors.NotFoundError:
                return None

        return await self.patiently("reading the queue", read)

    async def servers_in_queue(self) -> set[str]:
        """Servers that jobs wait or run for, whether the catalog has them or not."""
        with translated("reading the queue"):
            info = await self._js.stream_info(JOBS, subjects_filter=subjects.ALL_JOBS)
        return {subject.split(".")[1] for subject in info.state.subjects or {}}

    async def queue_depth(self, server: str) -> tuple[int, int]:
        """How many jobs of a server wait, and how many are with a worker."""
        with translated("reading the queue depth"):
            try:
                info = await self._js.consumer_info(JOBS, server)
            except nats.js.errors.NotFoundError:
                return 0, 0
        return info.num_pending or 0, info.num_ack_pending or 0

    async def oldest_job_age_s(self, server: str) -> float | None:
        """For how long the server's oldest job that waits or runs has been in the queue; None if there is none.

        The answer holds the job's message.
        """
        oldest = await self._next_in_queue(subjects.jobs_of_server(server), 0)
        if oldest is None or oldest.time is None:
            return None
        # The store's clock may be ahead of ours.
        return max(0.0, (datetime.now(UTC) - oldest.time).total_seconds())

    async def count_jobs(self, session: str) -> int:
        """How many jobs of the session wait or run, on all servers and as the stream's leader has them."""
        wanted = subjects.jobs_of_session(session)
        info = await self.patiently("counting jobs", lambda: self._reads.stream_info(JOBS, subjects_filter=wanted))
        return sum((info.state.subjects or {}).values())

    async def queue_front(self, server: str) -> QueueFront | None:
        """Where the server's workers are in its queue. A server that left the catalog has none: nothing waits."""
        with translated("reading the front of a queue"):
            try:
                info = await self._js.consumer_info(JOBS, server)
            except nats.js.errors.NotFoundError:
                return None
        return QueueFront(info.delivered.stream_seq if info.delivered else 0, info.num_pending or 0)

    async def jobs_behind(self, server: str, job: str, seq: int) -> int | None:
        """How many jobs of the server came after the one with number `seq`; None if that one has left the queue.

        Any replica may answer: one that is behind does not count the newest. The answer holds the job's message.
        """
        request = {"seq": seq, "next_by_subj": subjects.jobs_of_server(server), "batch": 1}
        with translated("reading the queue"):
            # The end of the batch, which comes behind the message, finds nobody who waits for it.
            answer = await self.client.request(
                subjects.direct_get(JOBS), json.dumps(request).encode(), timeout=nats_connection.REQUEST_TIMEOUT_S
            )
        fields = answer.headers or {}
        status = fields.get(headers.STATUS)
        if status not in (None, "404"):
            raise StoreUnavailable(f"reading the queue: {status} {fields.get(headers.DESCRIPTION, '')}")
        # Where the stream was made anew, the number may be another job's.
        if fields.get(headers.SEQUENCE) != str(seq) or fields.get(headers.MSG_ID) != job:
            return None
        return int(fields[headers.NUM_PENDING])


def job_of(msg: RawStreamMsg) -> str:
    """Id of the job of a message in the queue; empty if it has none that can be one."""
    job = (msg.headers or {}).get(headers.MSG_ID, "")
    return job if subjects.TOKEN.match(job) else ""
