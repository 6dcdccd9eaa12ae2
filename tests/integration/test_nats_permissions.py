"""What the users of k8s/base/nats/authorization.conf may do, and what the server refuses them, by its own word."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from pydantic import SecretStr

from common import streams, subjects
from common.bus import connect, user_of
from common.settings import BusSettings
from common.streams import Limits, bucket_stream, stream_configs
from tests.nats_server import NatsServer, credentials, run_nats_server

SERVICES = ("gateway", "worker")
STREAMS = [config.name or "" for config in stream_configs(Limits())]
SESSION, JOB = "s1", "j1"
VIOLATION = "permissions violation"
ANSWER_WITHIN_S = 10.0

READ = {
    "gateway": set(STREAMS) - {bucket_stream(streams.LEASES_BUCKET)},
    "worker": set(STREAMS)
    - {streams.DEAD_LETTERS, bucket_stream(streams.IDEMPOTENCY_BUCKET), bucket_stream(streams.ROLES_BUCKET)},
}
WRITTEN = {
    "gateway": {
        streams.SESSIONS_BUCKET,
        streams.IDEMPOTENCY_BUCKET,
        streams.ROLES_BUCKET,
        streams.CONVERSATIONS_BUCKET,
    },
    "worker": {streams.LEASES_BUCKET, streams.TOOLS_BUCKET, streams.CONVERSATIONS_BUCKET},
}
"""Key-value buckets, of all that there are."""
BUCKETS = {name.removeprefix("KV_") for name in STREAMS if name.startswith("KV_")}
EMPTIED = {
    "gateway": {streams.JOBS, streams.SESSIONS, streams.DEAD_LETTERS, streams.ARTIFACTS},
    "worker": {streams.JOBS, streams.SESSIONS, streams.ARTIFACTS},
}
"""Where a message may be deleted by its number."""
SENT = {
    "gateway": {
        subjects.jobs("time", SESSION),
        subjects.event(SESSION, JOB),
        subjects.queued_event(SESSION, JOB),
        subjects.waiting_event(SESSION, JOB),
        subjects.cancel_event(SESSION, JOB),
        subjects.decision_event(SESSION, JOB),
        subjects.dead("time", SESSION),
        subjects.close(SESSION),
        subjects.alive("w-1"),
        subjects.micro_stats("worker"),
        subjects.stream_info(streams.JOBS),
        "$JS.API.CONSUMER.INFO.JOBS.time",
    },
    "worker": {
        subjects.jobs("time", SESSION),
        subjects.event(SESSION, JOB),
        subjects.queued_event(SESSION, JOB),
        subjects.cancel_event(SESSION, JOB),
        subjects.dead("time", SESSION),
        subjects.alive("w-1"),
        subjects.handoff("w-1"),
        subjects.stream_info(streams.JOBS),
        subjects.pull_request(streams.JOBS, "time"),
        "$JS.API.CONSUMER.INFO.JOBS.time",
        "$JS.API.CONSUMER.DURABLE.CREATE.JOBS.time",
        "$JS.ACK.JOBS.time.1.1.1.1.0",
    },
}
OTHERS = {
    subjects.live_of_session(SESSION).removesuffix(">") + JOB,
    subjects.micro_stats("gateway"),
    "$SRV.PING",
    "$JS.API.INFO",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.LIST",
    "$JS.API.CONSUMER.LIST.JOBS",
    "$JS.API.CONSUMER.NAMES.JOBS",
    "$JS.API.CONSUMER.DELETE.JOBS.time",
    "$JS.API.CONSUMER.PAUSE.JOBS.time",
    "$JS.API.CONSUMER.CREATE.JOBS",
    "$JS.API.CONSUMER.CREATE.JOBS.mine.jobs.time.*",
    "$JS.API.CONSUMER.CREATE.SESSIONS",
    "$JS.API.CONSUMER.CREATE.SESSIONS.mine",
    "$JS.API.CONSUMER.CREATE.KV_sessions",
    "$JS.API.CONSUMER.DURABLE.CREATE.KV_servers.mine",
    "$JS.API.SERVER.REMOVE",
    "$SYS.REQ.SERVER.PING",
    "_INBOX.anyone",
    "_INBOX_gateway.forged",
    "_INBOX_worker.forged",
    "_INBOX_operator.forged",
    "anything",
}
"""For neither service."""
HEARD = {
    "gateway": {subjects.live_of_session(SESSION), subjects.ALL_LIVE_CANCELS, "_INBOX_gateway.>"},
    "worker": {
        subjects.live_of_session(SESSION),
        subjects.ALL_LIVE_CANCELS,
        subjects.ALL_CLOSES,
        subjects.handoff("w-1"),
        subjects.alive("w-1"),
        subjects.micro_stats("worker"),
        "$SRV.PING",
        "$SRV.INFO.worker.id",
        "_INBOX_worker.>",
    },
}
SECRET = {
    ">",
    "*",
    "_INBOX.>",
    "_INBOX_operator.>",
    "$JS.>",
    "$JS.API.>",
    "$JS.ACK.>",
    "$JS.EVENT.>",
    "$KV.>",
    "$KV.conversations.>",
    "$O.>",
    "$SYS.>",
    subjects.ALL_JOBS,
    subjects.ALL_EVENTS,
    subjects.ALL_DEAD,
    "workers.>",
}
"""For neither service to listen to."""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """Under the permissions, and not asked afterwards whether somebody tried what he may not."""
    async with run_nats_server(tmp_path) as running:
        yield running


class User:
    """A connection without any of our own code between."""

    def __init__(self, client: Client, errors: list[str]) -> None:
        self._client = client
        self._errors = errors

    async def refused_to_publish(self, subject: str) -> bool:
        await self._client.publish(subject, b"")
        return await self._violation("publish", subject)

    async def refused_to_subscribe(self, subject: str) -> bool:
        await self._client.subscribe(subject)
        return await self._violation("subscription", subject)

    async def _violation(self, kind: str, subject: str) -> bool:
        """The server's word on what was sent comes before its answer to what is asked afterwards."""
        await self._client.request(subjects.stream_info(streams.JOBS), timeout=ANSWER_WITHIN_S)
        refusals, self._errors[:] = list(self._errors), []
        assert all(VIOLATION in each.lower() for each in refusals), refusals
        return any(kind in each.lower() and f'"{subject}"'.lower() in each.lower() for each in refusals)


@asynccontextmanager
async def logged_in(server: NatsServer, user: str) -> AsyncIterator[User]:
    errors: list[str] = []
    client = Client()

    async def on_error(exc: Exception) -> None:
        errors.append(str(exc))

    given = credentials(user)
    await client.connect(
        server.url,
        user=given["NATS_USER"],
        password=given["NATS_PASSWORD"],
        inbox_prefix=subjects.inbox(user),
        error_cb=on_error,
        allow_reconnect=False,
    )
    try:
        yield User(client, errors)
    finally:
        await client.close()


def published(user: str) -> dict[str, bool]:
    """Each subject, and whether the user may publish to it: what is allowed to one service only is asked of both."""
    may = {subject: subject in SENT[user] for subject in SENT["gateway"] | SENT["worker"] | OTHERS}
    for stream in [*STREAMS, "NEW"]:
        ours = stream in STREAMS
        reads = stream in READ[user]
        may[f"$JS.API.STREAM.CREATE.{stream}"] = ours
        may[f"$JS.API.STREAM.UPDATE.{stream}"] = False
        may[f"$JS.API.STREAM.DELETE.{stream}"] = False
        may[f"$JS.API.STREAM.SNAPSHOT.{stream}"] = False
        may[f"$JS.API.STREAM.RESTORE.{stream}"] = False
        may[f"$JS.API.STREAM.PURGE.{stream}"] = stream == streams.ARTIFACTS
        may[f"$JS.API.STREAM.MSG.DELETE.{stream}"] = stream in EMPTIED[user]
        may[f"$JS.API.STREAM.MSG.GET.{stream}"] = reads
        may[subjects.direct_get(stream)] = reads
        may[f"{subjects.direct_get(stream)}.any.subject"] = reads
        watched = stream in (bucket_stream(streams.SERVERS_BUCKET), bucket_stream(streams.TOOLS_BUCKET))
        may[f"$JS.API.CONSUMER.CREATE.{stream}"] = watched
    for bucket in BUCKETS:
        may[subjects.bucket_key(bucket, "key")] = bucket in WRITTEN[user]
    may[subjects.chunks_of_object(streams.ARTIFACTS_BUCKET, f"{SESSION}.x")] = True
    may[subjects.object_info(streams.ARTIFACTS_BUCKET, "name")] = True
    return may


@pytest.mark.parametrize("user", SERVICES)
async def test_a_service_publishes_what_it_needs_and_nothing_else(server: NatsServer, user: str) -> None:
    """A stream or bucket that is new in `common.streams` is asked about too: it has to be let in here and there."""
    wrong = []
    async with logged_in(server, user) as connection:
        for subject, allowed in sorted(published(user).items()):
            if await connection.refused_to_publish(subject) == allowed:
                wrong.append(f"{user} is {'refused' if allowed else 'allowed'} {subject}")
    assert wrong == []


@pytest.mark.parametrize("user", SERVICES)
async def test_a_service_hears_what_it_needs_and_nothing_else(server: NatsServer, user: str) -> None:
    """Neither jobs nor answers of the other one; events as they are stored both of them."""
    wrong = []
    async with logged_in(server, user) as connection:
        for subject in sorted(HEARD["gateway"] | HEARD["worker"] | SECRET):
            allowed = subject in HEARD[user]
            if await connection.refused_to_subscribe(subject) == allowed:
                wrong.append(f"{user} is {'refused' if allowed else 'allowed'} {subject}")
    assert wrong == []


async def test_the_operator_may_do_everything(server: NatsServer) -> None:
    """In the account of the services; the server's own is another one."""
    async with logged_in(server, "operator") as connection:
        for subject in sorted(set(published("gateway"))):
            assert not await connection.refused_to_publish(subject), subject
        for subject in sorted(SECRET):
            assert not await connection.refused_to_subscribe(subject), subject


@pytest.mark.parametrize(
    "given",
    [{}, *({"user": user, "pass": "guessed"} for user in ("operator", *SERVICES))],
    ids=lambda given: str(given),
)
async def test_nobody_comes_in_without_the_password(tmp_path: Path, given: dict[str, str]) -> None:
    """Of the file itself: the tests' own server takes those who give no name for the operator."""
    async with run_nats_server(tmp_path, no_auth_user="") as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                assert (await reader.readline()).startswith(b"INFO ")
                writer.write(f"CONNECT {json.dumps(given)}\r\nPING\r\n".encode())
                answer = await reader.readline()
        finally:
            writer.close()
            await writer.wait_closed()
    assert answer == b"-ERR 'Authorization Violation'\r\n"


@pytest.mark.parametrize("in_url", [False, True])
@pytest.mark.parametrize("user", SERVICES)
async def test_answers_come_where_only_their_user_listens(server: NatsServer, user: str, in_url: bool) -> None:
    """The bus of a service connects, makes the streams, reads, and nothing of it is refused; also with its name in the
    URL."""
    password = credentials(user)["NATS_PASSWORD"]
    if in_url:
        settings = BusSettings(nats_url=server.url.replace("://", f"://{user}:{password}@"))
    else:
        settings = BusSettings(nats_url=server.url, nats_user=user, nats_password=SecretStr(password))
    async with connect(settings, "test") as bus:
        assert bus.client.new_inbox().startswith(f"_INBOX_{user}.")
        assert await bus.keeping(bus.limits)
    assert server.violations() == []


@pytest.mark.parametrize(
    ("given", "user"),
    [
        ({"nats_user": "gateway"}, "gateway"),
        ({"nats_user": "gateway", "nats_url": "nats://other:secret@nats:4222"}, "gateway"),
        ({"nats_url": "nats://gateway:secret@nats-0:4222,nats://gateway:secret@nats-1:4222"}, "gateway"),
        ({}, ""),
        ({"nats_url": "nats://a-token-is-a-secret@nats:4222"}, ""),
        ({"nats_user": "any one"}, ""),
        ({"nats_user": "*"}, ""),
        ({"nats_user": "a.>"}, ""),
    ],
)
def test_only_a_plain_name_of_a_user_stands_in_subjects(given: dict[str, Any], user: str) -> None:
    """Neither a token nor what would make the subject another one."""
    assert user_of(BusSettings(**given)) == user
