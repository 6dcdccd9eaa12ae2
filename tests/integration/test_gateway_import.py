"""Conversations that an operator brings from elsewhere, at real gateways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from common.streams import SESSIONS_BUCKET
from gateway.settings import hash_key
from tests.gateway_rig import GatewayRig, RunningGateway, Socket, gateway_rig
from tests.nats_server import NatsServer

KEYS = {"acme": hash_key("acme-key"), "umbra": hash_key("umbra-key"), "ops": hash_key("ops-key")}
SESSION = "old-session-1"


@pytest.fixture
async def rig(nats_server: NatsServer) -> AsyncIterator[GatewayRig]:
    async with gateway_rig(nats_server.url, operators="ops", api_keys=KEYS) as rig:
        yield rig


@pytest.fixture
async def gateway_(rig: GatewayRig) -> RunningGateway:
    return await rig.start_gateway()


@pytest.fixture
async def acme(gateway_: RunningGateway) -> AsyncIterator[Socket]:
    async with gateway_.socket() as socket:
        yield socket


@pytest.fixture
async def ops(gateway_: RunningGateway) -> AsyncIterator[Socket]:
    async with gateway_.socket("ops-key") as socket:
        yield socket


def messages(count: int, size: int = 10) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"{number} ".ljust(size, "x"), "timestamp": number} for number in range(count)]


def params(brought: list[dict[str, Any]], after: int = 0, **more: Any) -> dict[str, Any]:
    return {"session": SESSION, "tenant": "acme", "messages": brought, "after": after, **more}


async def stored(socket: Socket, session: str = SESSION) -> list[dict[str, Any]]:
    """Every message without its number, which is looked at here."""
    page = await socket.call("conversation/get", session=session, limit=1000)
    assert [message.pop("number") for message in page["messages"]] == list(range(1, len(page["messages"]) + 1))
    assert (page["faults"], page["after"]) == ([], None)
    found: list[dict[str, Any]] = page["messages"]
    return found


async def test_messages_come_into_the_session_of_the_tenant_that_is_named(acme: Socket, ops: Socket) -> None:
    """The session is made, and its owner reads and goes on with it as with any other."""
    told = await ops.call("conversations/import", **params(messages(3)))

    assert told == {"session": SESSION, "last": 3, "added": 3}
    assert (await acme.call("session/open", session=SESSION))["session"] == SESSION
    assert await stored(acme) == messages(3)
    assert (await ops.refused("conversation/get", session=SESSION))["data"]["type"] == "unknown_session"


async def test_what_is_there_already_is_not_added_again(rig: GatewayRig, acme: Socket, ops: Socket) -> None:
    """Whatever part of it is there, and through whichever gateway it is brought again."""
    brought = messages(10, 20_000)
    assert (await ops.call("conversations/import", **params(brought[:4])))["last"] == 4
    assert await ops.call("conversations/import", **params(brought)) == {"session": SESSION, "last": 10, "added": 6}
    other = await rig.start_gateway()
    async with other.socket("ops-key") as again:
        assert (await again.call("conversations/import", **params(brought)))["added"] == 0
        assert (await again.call("conversations/import", **params(brought[2:5], 2)))["added"] == 0
        assert (await again.call("conversations/import", **params(messages(12)[10:], 10)))["added"] == 2

    assert await stored(acme) == [*brought, *messages(12)[10:]]


async def test_two_who_bring_the_same_at_once_bring_it_once(rig: GatewayRig, acme: Socket, ops: Socket) -> None:
    """Through two gateways, in different pieces."""
    other = await rig.start_gateway()
    brought = messages(60, 9_000)
    async with other.socket("ops-key") as second:

        async def bring(socket: Socket, pieces: int) -> None:
            for after in range(0, 60, pieces):
                await socket.call("conversations/import", **params(brought[after : after + pieces], after))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(bring(ops, 60))
            tasks.create_task(bring(second, 7))

    assert await stored(acme) == brought


@pytest.mark.parametrize("at", [0, 2, 3])
async def test_a_conversation_that_has_other_messages_is_left_as_it_is(acme: Socket, ops: Socket, at: int) -> None:
    """Wherever the difference is, and however small; the refusal says where."""
    await ops.call("conversations/import", **params(messages(4)))
    others = messages(6)
    others[at]["timestamp"] = str(at)
    refused = await ops.refused("conversations/import", **params(others))

    assert (refused["code"], refused["data"]["type"]) == (409, "conversation_differs")
    assert (refused["data"]["number"], refused["data"]["last"]) == (at + 1, 4)
    assert "already has 4 messages that are not from this import" in refused["message"]
    assert await stored(acme) == messages(4)


async def test_a_conversation_that_went_on_has_nothing_missing(acme: Socket, ops: Socket) -> None:
    """What was said since the import stays; a later export of the old system does not come behind it."""
    await ops.call("conversations/import", **params([*messages(3), {"role": "user", "content": "said since"}]))

    told = await ops.call("conversations/import", **params(messages(3)))
    assert told == {"session": SESSION, "last": 4, "added": 0}
    refused = await ops.refused("conversations/import", **params(messages(6)))
    assert (refused["data"]["type"], refused["data"]["number"]) == ("conversation_differs", 4)
    assert len(await stored(acme)) == 4


async def test_a_gap_is_refused(ops: Socket) -> None:
    """The refusal tells how many there are."""
    await ops.call("conversations/import", **params(messages(2)))
    refused = await ops.refused("conversations/import", **params(messages(1), 5))

    assert refused["data"]["type"] == "conversation_moved"
    assert (refused["data"]["expected"], refused["data"]["last"]) == (5, 2)


async def test_another_tenants_session_takes_nothing(acme: Socket, ops: Socket) -> None:
    """Whether it was opened or imported."""
    opened = await acme.open()
    await ops.call("conversations/import", **params(messages(1)))
    for session in (opened, SESSION):
        wrong = params(messages(2)) | {"session": session, "tenant": "umbra"}
        refused = await ops.refused("conversations/import", **wrong)
        assert (refused["code"], refused["data"]["type"]) == (409, "session_taken")
    assert await stored(acme) == messages(1)
    assert await stored(acme, opened) == []


async def test_who_is_no_operator_imports_nothing(rig: GatewayRig, acme: Socket) -> None:
    """Not even into a session of its own; none is made."""
    refused = await acme.refused("conversations/import", **params(messages(1)))

    assert (refused["code"], refused["data"]["type"]) == (403, "operators_only")
    assert (await rig.bus.get(SESSIONS_BUCKET, SESSION)).value is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"session": "_dictionary"},
        {"session": "a.b"},
        {"session": ""},
        {"tenant": ""},
        {"messages": []},
        {"messages": ["text"]},
        {"messages": [{"role": "user"}] * 1001},
        {"after": -1},
        {"ttl_s": 0},
        {"ttl_s": 1e12},
    ],
)
async def test_params_that_do_not_fit_are_refused(ops: Socket, wrong: dict[str, Any]) -> None:
    """Above all a session that would be a name of our own in the bucket."""
    refused = await ops.refused("conversations/import", **(params(messages(1)) | wrong))

    assert refused["data"]["type"] == "invalid_params"


async def test_large_texts_and_large_messages_are_known_again(acme: Socket, ops: Socket) -> None:
    """They are objects in the store, and compared all the same."""
    text, many = "y" * 100_000, [f"{number}".ljust(16_000, "z") for number in range(20)]
    brought: list[dict[str, Any]] = [
        {"role": "tool", "content": [{"type": "text", "text": text}]},
        {"role": "assistant", "content": many},
        {"role": "assistant", "content": [*many, text]},
    ]
    for after, message in enumerate(brought):
        assert (await ops.call("conversations/import", **params([message], after)))["added"] == 1
    for after, message in enumerate(brought):
        assert (await ops.call("conversations/import", **params([message], after)))["added"] == 0
        other = message | {"content": [*message["content"][:-1], text[:-1] + "Y"]}
        refused = await ops.refused("conversations/import", **params([other], after))
        assert (refused["data"]["type"], refused["data"]["number"]) == ("conversation_differs", after + 1)
    shown = await stored(acme)
    assert shown[0]["content"][0]["text"]["part"]["size"] == 100_000


async def test_over_http_it_is_a_resource_and_a_field_named_number_does_not_hide_the_place(
    gateway_: RunningGateway,
) -> None:
    """With a time to live it is that of the session's conversation."""
    brought = [{"role": "user", "content": "x", "number": 77}]
    async with gateway_.http("ops-key") as http, gateway_.http() as owner:
        answer = await http.post("/v1/conversations/import", json=params(brought, ttl_s=3600))
        page = (await owner.get(f"/v1/sessions/{SESSION}/conversation")).json()

    assert (answer.status_code, answer.json()) == (200, {"session": SESSION, "last": 1, "added": 1})
    assert page["messages"] == [{"number": 1, "role": "user", "content": "x"}]
