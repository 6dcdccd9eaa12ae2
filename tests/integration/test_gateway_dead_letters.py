"""Dead letters at the gateways: whose they are, and how they become jobs again. Workers are played on the bus."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from prometheus_client import REGISTRY

import common.acceptance
import gateway.dead_letters
from common import headers, subjects
from common.bus import Bus
from common.consumer import Delivery
from common.dead_letters import GivenUp
from common.errors import StoreUnavailable
from common.schema import Event, now_ms
from common.streams import DEAD_LETTERS, SESSIONS_BUCKET
from gateway.settings import hash_key
from tests.gateway_rig import GatewayRig, RunningGateway, Socket, gateway_rig
from tests.nats_server import NatsServer

TRACE = "a" * 32
TRACEPARENT = f"00-{TRACE}-{'b' * 16}-01"
KEYS = {"acme": hash_key("acme-key"), "umbra": hash_key("umbra-key"), "ops": hash_key("ops-key")}
GONE = {"type": "server_gone", "message": "exit code 3", "stderr": "no memory"}
ERROR = {"type": "too_many_attempts", "message": "given up after 3 attempts", "cause": GONE}


@pytest.fixture
async def rig(nats_server: NatsServer) -> AsyncIterator[GatewayRig]:
    async with gateway_rig(nats_server.url, queue_limit=3, operators="ops, nobody", api_keys=KEYS) as rig:
        await rig.add_server(tools=[{"name": "add"}], timeouts={"queue_s": 60, "job_ms": 1_000})
        yield rig


@pytest.fixture
async def gateway_(rig: GatewayRig) -> RunningGateway:
    return await rig.start_gateway()


@pytest.fixture
async def socket(gateway_: RunningGateway) -> AsyncIterator[Socket]:
    async with gateway_.socket() as socket:
        yield socket


@pytest.fixture
async def umbra(gateway_: RunningGateway) -> AsyncIterator[Socket]:
    async with gateway_.socket("umbra-key") as socket:
        yield socket


@pytest.fixture
async def ops(gateway_: RunningGateway) -> AsyncIterator[Socket]:
    async with gateway_.socket("ops-key") as socket:
        yield socket


async def delivery(rig: GatewayRig, server: str = "math") -> Delivery:
    """The next job of the server, as a worker gets it."""
    async with asyncio.timeout(5), rig.bus.consume_jobs(server, lambda: 1) as deliveries:
        async for found in deliveries:
            return found
    raise AssertionError("the consumer ended")


async def give_up(rig: GatewayRig, socket: Socket, session: str, server: str = "math", **arguments: Any) -> str:
    """A call whose three attempts fail, as a worker plays them; the job."""
    accepted = await socket.call(
        "tools/call",
        session=session,
        server=server,
        name="add",
        arguments=arguments,
        _meta={"traceparent": TRACEPARENT},
    )
    taken = await delivery(rig, server)
    assert taken.job.id == accepted["job"]
    await run_attempts(rig, taken)
    return taken.job.id


async def run_attempts(rig: GatewayRig, taken: Delivery) -> None:
    """Three attempts of which none succeeds, the letter, the end."""
    job, seq = taken.job, 0
    for attempt in range(job.first_attempt, job.first_attempt + 3):
        started = {"worker": "w-1", "engine": "e", "container": "c", "image_digest": "sha256:1"}
        seq = await store(rig, taken, attempt, "started", seq, **started)
        if attempt < job.first_attempt + 2:
            seq = await store(rig, taken, attempt, "retrying", seq, error=GONE)
    await rig.bus.dead_letter(
        GivenUp(
            subject=subjects.jobs(job.server, job.session),
            payload=taken.payload,
            error=ERROR,
            seq=taken.stream_seq,
            job=job.id,
            deliveries=taken.deliveries,
            traceparent=taken.traceparent,
        )
    )
    await store(rig, taken, attempt, "result", seq, outcome="dead_lettered", error=ERROR)
    await taken.ack()


async def store(rig: GatewayRig, taken: Delivery, attempt: int, type_: Any, seq: int, **data: Any) -> int:
    job = taken.job
    event = Event(job=job.id, session=job.session, attempt=attempt, type=type_, time_ms=now_ms(), data=data)
    return await rig.bus.publish_event(event, expected=seq)


async def listed(socket: Socket, **params: Any) -> list[str]:
    answer = await socket.call("dead_letters/list", **params)
    assert answer["before"] is None
    return [each["letter"] for each in answer["letters"]]


async def store_poison(rig: GatewayRig, session: str, payload: bytes = b"\xc1") -> None:
    """A message that no worker can read; rejected by one."""
    message_headers = {headers.MSG_ID: subjects.new_job_id()}
    await rig.bus.client.jetstream().publish(subjects.jobs("math", session), payload, headers=message_headers)
    async with rig.bus.consume_jobs("math", lambda: 1) as deliveries:
        reading = asyncio.ensure_future(anext(aiter(deliveries)))
        async with asyncio.timeout(5):
            while await rig.bus.queue_depth("math") != (0, 0):
                pass
        reading.cancel()
        await asyncio.wait({reading})


def counted(name: str) -> float:
    return REGISTRY.get_sample_value(name, {"server": "math"}) or 0.0


# --- list and show ----------------------------------------------------------------------------------------------


async def test_a_list_tells_of_each_letter_whose_it_is_and_why(rig: GatewayRig, socket: Socket) -> None:
    """Newest first, without what may be large."""
    session = await socket.open()
    jobs = [await give_up(rig, socket, session) for _ in range(2)]
    answer = await socket.call("dead_letters/list")
    newest = answer["letters"][0]

    assert [each["job"] for each in answer["letters"]] == jobs[::-1]
    assert newest.pop("time_ms") > now_ms() - 60_000
    assert newest == {
        "letter": "2",
        "tenant": "acme",
        "server": "math",
        "tool": "add",
        "session": session,
        "job": jobs[1],
        "attempts": 3,
        "reason": "given up after 3 attempts",
    }


async def test_a_letter_is_shown_with_its_history_stderr_image_trace_and_call(rig: GatewayRig, socket: Socket) -> None:
    """What an operator wants to know before it is run again."""
    job = await give_up(rig, socket, await socket.open(), a=1)
    shown = await socket.call("dead_letters/show", letter="1")

    assert (shown["job"], shown["error"], shown["stderr"]) == (job, ERROR, "no memory")
    assert (shown["image_digest"], shown["trace"], shown["traceparent"]) == ("sha256:1", TRACE, TRACEPARENT)
    assert [(each["attempt"], each["worker"], each["error"]) for each in shown["attempts"]] == [
        (number, "w-1", GONE) for number in (1, 2, 3)
    ]
    assert (shown["arguments"], shown["meta"]["traceparent"], shown["redrive_of"]) == ({"a": 1}, TRACEPARENT, "")
    assert (shown["deliveries"], "payload" in shown) == (1, False)


async def test_letters_are_listed_by_server_and_page_by_page(rig: GatewayRig, socket: Socket) -> None:
    """`before` of one answer is `before` of the next request."""
    await rig.add_server("other", tools=[{"name": "add"}])
    await socket.until_status("other", "ready")
    session = await socket.open()
    for server in ("math", "other", "math"):
        await give_up(rig, socket, session, server)
    first = await socket.call("dead_letters/list", limit=2)
    second = await socket.call("dead_letters/list", limit=2, before=first["before"])

    assert [each["letter"] for each in first["letters"] + second["letters"]] == ["3", "2", "1"]
    assert await listed(socket, server="other") == ["2"]
    assert await listed(socket, server="none") == []


async def test_a_tenant_sees_its_own_letters_and_an_operator_all(
    rig: GatewayRig, socket: Socket, umbra: Socket, ops: Socket
) -> None:
    """What is not one's own is unknown, whatever is asked of it; and stays."""
    await give_up(rig, socket, await socket.open())
    await give_up(rig, umbra, await umbra.open())

    assert [await listed(each) for each in (socket, umbra, ops)] == [["1"], ["2"], ["2", "1"]]
    for method in ("show", "redrive", "delete"):
        error = await umbra.refused(f"dead_letters/{method}", letter="1")
        assert (error["code"], error["data"]["type"]) == (404, "unknown_dead_letter")
    assert (await umbra.call("dead_letters/purge", all=True))["purged"] == 1
    assert await listed(ops) == ["1"]
    assert (await ops.call("dead_letters/show", letter="1"))["tenant"] == "acme"


async def test_an_unreadable_message_is_its_sessions_letter_and_nobodys_where_that_is_gone(
    rig: GatewayRig, socket: Socket, umbra: Socket, ops: Socket
) -> None:
    """Nobody's letters are the operators'. No job can be made of them: their bytes can be looked at, and deleted."""
    await store_poison(rig, await socket.open())
    await store_poison(rig, subjects.new_session_id(), b"\xc1\xc1")

    assert [await listed(each) for each in (socket, umbra, ops)] == [["1"], [], ["2", "1"]]
    shown = await ops.call("dead_letters/show", letter="2")
    assert (base64.b64decode(shown["payload"]), shown["tenant"], "arguments" in shown) == (b"\xc1\xc1", "", False)
    error = await ops.refused("dead_letters/redrive", letter="2")
    assert (error["code"], error["data"]["type"]) == (422, "dead_letter_unreadable")
    assert "delete it" in error["message"]
    await ops.call("dead_letters/delete", letter="2")
    assert await listed(ops) == ["1"]


# --- redrive ----------------------------------------------------------------------------------------------------


async def test_a_redriven_letter_is_a_new_job_that_goes_on_counting(rig: GatewayRig, socket: Socket) -> None:
    """With new deadlines, the old trace and all of its history; the letter is gone, the old job stays as it ended."""
    redriven = counted("dead_letters_redriven_total")
    session = await socket.open()
    old = await give_up(rig, socket, session, a=1)
    await rig.apply_entry("math", timeouts={"queue_s": 30, "job_ms": 500})
    await rig.publish_listing("math", tools=[{"name": "add"}])
    await socket.until_status("math", "ready")
    answer = await socket.call("dead_letters/redrive", letter="1")
    taken = await delivery(rig)
    job = taken.job
    queued = await rig.bus.queued_event(session, job.id)

    assert answer == {"letter": "1", "session": session, "job": job.id, "seq": queued.seq if queued else 0,
                      "redrive_of": old}  # fmt: skip
    assert queued is not None
    assert queued.event.data == {"server": "math", "tool": "add", "redrive_of": old}
    assert (job.redrive_of, job.first_attempt, job.tenant, job.arguments) == (old, 4, "acme", {"a": 1})
    assert (job.start_by_ms - job.created_ms, job.timeout_ms) == (30_000, 500)
    assert job.created_ms > now_ms() - 20_000
    assert taken.traceparent == TRACEPARENT
    assert await listed(socket) == []
    assert (await socket.call("job/get", session=session, job=old))["outcome"] == "dead_lettered"
    assert counted("dead_letters_redriven_total") == redriven + 1


async def test_the_second_letter_of_a_redriven_job_has_the_whole_history(rig: GatewayRig, socket: Socket) -> None:
    """Six attempts, whose own job is the one that was given up last."""
    old = await give_up(rig, socket, await socket.open())
    job = (await socket.call("dead_letters/redrive", letter="1"))["job"]
    await run_attempts(rig, await delivery(rig))
    shown = await socket.call("dead_letters/show", letter="2")

    assert (shown["job"], shown["redrive_of"]) == (job, old)
    assert [each["attempt"] for each in shown["attempts"]] == [1, 2, 3, 4, 5, 6]


async def test_a_redrive_that_is_asked_for_again_is_the_same_job(rig: GatewayRig, socket: Socket) -> None:
    """A client whose answer was lost repeats it, at whichever gateway, also when the job has long run."""
    await give_up(rig, socket, await socket.open())
    first = await socket.call("dead_letters/redrive", letter="1")
    other = await rig.start_gateway()
    async with other.socket() as elsewhere, other.socket("umbra-key") as stranger:
        assert await elsewhere.call("dead_letters/redrive", letter="1") == first
        taken = await delivery(rig)
        await store(rig, taken, 4, "result", 0, outcome="succeeded")
        await taken.ack()
        assert await elsewhere.call("dead_letters/redrive", letter="1") == first
        error = await stranger.refused("dead_letters/redrive", letter="1")
    assert error["data"]["type"] == "unknown_dead_letter"
    assert await rig.queued("math") == 0


async def test_redrives_at_once_through_two_gateways_are_one_job(rig: GatewayRig, socket: Socket) -> None:
    """Eight of them for each of three letters: each answer names the same job, and each job is queued once."""
    session = await socket.open()
    for _ in range(3):
        await give_up(rig, socket, session)
    other = await rig.start_gateway()
    async with AsyncExitStack() as stack:
        sockets = [socket, *[await stack.enter_async_context(other.socket()) for _ in range(7)]]
        for letter in ("1", "2", "3"):
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(each.call("dead_letters/redrive", letter=letter)) for each in sockets]
            answers = [each.result() for each in asked]
            assert all(answer == answers[0] for answer in answers)
    events = [stored.event async for stored in rig.bus.replay_session(session, 0)]

    assert await rig.queued("math") == 3
    assert sum(event.type == "queued" and "redrive_of" in event.data for event in events) == 3
    assert await listed(socket) == []


async def test_a_letter_that_outlived_its_redrive_is_not_run_again(
    rig: GatewayRig, socket: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that died between the job and the letter left both. Asked again when the store would take the job's id
    once more, it only removes the letter."""
    await give_up(rig, socket, await socket.open())

    async def dies(bus: Bus, number: int) -> bool:
        raise StoreUnavailable("the gateway dies here")

    with monkeypatch.context() as patched:
        patched.setattr(Bus, "delete_letter", dies)
        await socket.refused("dead_letters/redrive", letter="1")
    taken = await delivery(rig)
    await store(rig, taken, 4, "result", 0, outcome="succeeded")
    await taken.ack()
    assert await listed(socket) == ["1"]
    monkeypatch.setattr(common.acceptance, "HALF_ACCEPTED_MS", -1)
    monkeypatch.setattr(Bus, "enqueue_job", dies)

    assert (await socket.call("dead_letters/redrive", letter="1"))["job"] == taken.job.id
    assert await listed(socket) == []


async def test_a_session_that_has_lapsed_is_known_again_after_a_redrive(rig: GatewayRig, socket: Socket) -> None:
    """Else nobody could look at the job."""
    session = await socket.open()
    await give_up(rig, socket, session)
    await socket.call("session/close", session=session)
    other = await rig.start_gateway()
    async with other.socket() as elsewhere:
        assert (await elsewhere.refused("session/open", session=session))["data"]["type"] == "unknown_session"
        job = (await elsewhere.call("dead_letters/redrive", letter="1"))["job"]
        assert (await elsewhere.call("job/get", session=session, job=job))["state"] == "queued"


async def test_an_operators_redrive_stays_the_tenants_job(rig: GatewayRig, socket: Socket, ops: Socket) -> None:
    """Also where its session had lapsed."""
    session = await socket.open()
    await give_up(rig, socket, session)
    await rig.bus.delete(SESSIONS_BUCKET, session)
    job = (await ops.call("dead_letters/redrive", letter="1"))["job"]

    assert (await delivery(rig)).job.tenant == "acme"
    assert (await socket.call("job/get", session=session, job=job))["state"] == "queued"
    assert (await ops.refused("job/get", session=session, job=job))["data"]["type"] == "unknown_session"


async def test_a_letter_whose_server_was_removed_is_kept_and_the_redrive_refused(
    rig: GatewayRig, socket: Socket
) -> None:
    """It may come back; then the job can run."""
    await rig.add_server("other", tools=[{"name": "add"}])
    await socket.until_status("other", "ready")
    await give_up(rig, socket, await socket.open(), "other")
    await rig.remove_server("other")
    async with asyncio.timeout(5):
        while (await socket.refused("dead_letters/redrive", letter="1"))["data"]["type"] != "unknown_server":
            pass

    assert await listed(socket) == ["1"]


async def test_a_redrive_into_a_full_queue_is_refused_and_the_letter_kept(rig: GatewayRig, socket: Socket) -> None:
    """As any call is."""
    session = await socket.open()
    await give_up(rig, socket, session)
    for _ in range(3):
        await socket.call("tools/call", session=session, server="math", name="add")
    error = await socket.refused("dead_letters/redrive", letter="1")

    assert error["data"]["type"] == "queue_full"
    assert await listed(socket) == ["1"]


async def test_a_stream_made_anew_gives_its_numbers_to_other_letters(rig: GatewayRig, socket: Socket) -> None:
    """A redrive of the new number 1 is not taken for the one of before."""
    session = await socket.open()
    await give_up(rig, socket, session)
    first = await socket.call("dead_letters/redrive", letter="1")
    await (await delivery(rig)).ack()
    await rig.bus.client.jetstream().delete_stream(DEAD_LETTERS)
    await rig.bus.ensure()
    await give_up(rig, socket, session)
    second = await socket.call("dead_letters/redrive", letter="1")

    assert second["job"] != first["job"]
    assert await rig.queued("math") == 1


# --- delete and purge -------------------------------------------------------------------------------------------


async def test_a_deleted_letter_is_unknown(rig: GatewayRig, socket: Socket) -> None:
    """Counted; the second time there is none, and no job comes of it."""
    purged = counted("dead_letters_purged_total")
    await give_up(rig, socket, await socket.open())
    assert await socket.call("dead_letters/delete", letter="1") == {"letter": "1"}

    for method in ("show", "redrive", "delete"):
        error = await socket.refused(f"dead_letters/{method}", letter="1")
        assert error["data"] | {"message": ""} == {
            "type": "unknown_dead_letter", "message": "", "retryable": False, "letter": "1",
        }  # fmt: skip
    assert counted("dead_letters_purged_total") == purged + 1


async def test_a_purge_removes_the_letters_of_one_server_or_of_all(
    rig: GatewayRig, socket: Socket, umbra: Socket, ops: Socket
) -> None:
    """The caller's own; an operator's are all."""
    await rig.add_server("other", tools=[{"name": "add"}])
    await socket.until_status("other", "ready")
    session, foreign = await socket.open(), await umbra.open()
    for server in ("math", "other"):
        await give_up(rig, socket, session, server)
        await give_up(rig, umbra, foreign, server)

    assert await socket.call("dead_letters/purge", server="other") == {"purged": 1, "before": None}
    assert await listed(ops) == ["4", "2", "1"]
    assert await socket.call("dead_letters/purge", all=True, older_than_s=60) == {"purged": 0, "before": None}
    assert await socket.call("dead_letters/purge", all=True, older_than_s=0) == {"purged": 1, "before": None}
    assert await listed(ops) == ["4", "2"]
    assert await ops.call("dead_letters/purge", all=True) == {"purged": 2, "before": None}
    assert await listed(ops) == []


async def test_a_purge_goes_on_where_the_last_one_ended(
    rig: GatewayRig, socket: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One removes a bounded number."""
    session = await socket.open()
    for _ in range(3):
        await give_up(rig, socket, session)
    monkeypatch.setattr(gateway.dead_letters, "PURGED_AT_ONCE", 2)
    first = await socket.call("dead_letters/purge", all=True)
    second = await socket.call("dead_letters/purge", all=True, before=first["before"])

    assert (first["purged"], second) == (2, {"purged": 1, "before": None})


async def test_a_letter_that_never_was_is_unknown(socket: Socket) -> None:
    """Whatever is asked of it, and however large its number is."""
    for method in ("show", "redrive", "delete"):
        for letter in ("1", "9" * 18):
            error = await socket.refused(f"dead_letters/{method}", letter=letter)
            assert error["data"]["type"] == "unknown_dead_letter"


async def test_a_purge_that_does_not_say_what_to_purge_removes_nothing(rig: GatewayRig, socket: Socket) -> None:
    """All of them is never what was left out."""
    await give_up(rig, socket, await socket.open())

    assert (await socket.refused("dead_letters/purge"))["data"]["type"] == "invalid_params"
    assert await listed(socket) == ["1"]


# --- over HTTP --------------------------------------------------------------------------------------------------


async def test_over_http_letters_are_resources_and_params_stand_in_the_query(
    rig: GatewayRig, gateway_: RunningGateway, socket: Socket
) -> None:
    """The same answers as on the WebSocket."""
    session = await socket.open()
    for _ in range(4):
        await give_up(rig, socket, session)
    async with gateway_.http() as http:
        page = (await http.get("/v1/dead-letters", params={"server": "math", "limit": 2, "before": 4})).json()
        shown = await http.get("/v1/dead-letters/4")
        redriven = await http.post("/v1/dead-letters/4/redrive")
        deleted = await http.delete("/v1/dead-letters/3")
        nothing = await http.delete("/v1/dead-letters")
        purged = await http.delete("/v1/dead-letters", params={"all": "true", "older_than_s": "0"})
        gone = await http.get("/v1/dead-letters/3")

    assert [each["letter"] for each in page["letters"]] == ["3", "2"]
    assert page["before"] == "2"
    assert (shown.status_code, shown.json()["stderr"]) == (200, "no memory")
    assert (redriven.status_code, redriven.json()["session"]) == (202, session)
    assert (deleted.status_code, deleted.json()) == (200, {"letter": "3"})
    assert (nothing.status_code, nothing.json()["type"]) == (400, "invalid_params")
    assert (purged.status_code, purged.json()) == (200, {"purged": 2, "before": None})
    assert (gone.status_code, gone.json()["type"]) == (404, "unknown_dead_letter")


async def test_a_query_that_does_not_fit_is_refused(gateway_: RunningGateway) -> None:
    """With the faults of each param."""
    async with gateway_.http() as http:
        for query in ("limit=x", "limit=0", "server=a.b", "before=x", "nosuch=1", "limit=1&limit=", "before="):
            answer = await http.get(f"/v1/dead-letters?{query}")
            assert (answer.status_code, answer.json()["type"]) == (400, "invalid_params"), query


async def test_without_a_key_there_are_no_letters(gateway_: RunningGateway) -> None:
    """As with every method."""
    async with gateway_.http(None) as http:
        assert (await http.get("/v1/dead-letters")).status_code == 401
        assert (await http.delete("/v1/dead-letters?all=true")).status_code == 401
