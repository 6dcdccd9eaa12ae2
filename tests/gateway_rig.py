"""Real gateways on a real nats-server, behind real sockets; the worker's side is played by the test on the bus."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from socket import SO_RCVBUF, SOL_SOCKET
from socket import socket as TcpSocket
from typing import Any

import httpx
from nats.aio.msg import Msg
from websockets.asyncio.client import ClientConnection, connect

from common import bus as common_bus
from common import registry, subjects
from common.bus import Bus
from common.catalog import Catalog, ServerSpec
from common.schema import Event, Outcome, ToolListing, now_ms
from gateway.server import listen, serve
from gateway.settings import GatewaySettings, hash_key
from tests.nats_server import login
from tests.settled import settled

DEADLINE_S = 20.0
KEYS = {"acme": hash_key("acme-key"), "umbra": hash_key("umbra-key")}
ADD_TOOL = {
    "name": "add",
    "inputSchema": {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "b": {"type": "integer"},
            "parts": {"type": "array", "items": {"type": "object", "required": ["of"]}},
        },
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}


class Socket:
    """A WebSocket client that keeps answers and events apart."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self._events: deque[dict[str, Any]] = deque()
        self._last_id = 0

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result; an error fails the test."""
        answer = await self.request(method, **params)
        assert "error" not in answer, answer["error"]
        result: dict[str, Any] = answer["result"]
        return result

    async def refused(self, method: str, **params: Any) -> dict[str, Any]:
        """The error; a result fails the test."""
        answer = await self.request(method, **params)
        assert "result" not in answer, answer["result"]
        error: dict[str, Any] = answer["error"]
        return error

    async def request(self, method: str, **params: Any) -> dict[str, Any]:
        self._last_id += 1
        request = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params}
        answer = await self.ask(json.dumps(request))
        assert answer["id"] == self._last_id
        return answer

    async def send_request(self, id_: str, method: str, **params: Any) -> None:
        """Send it and go on; `answer()` reads the answers, in any order."""
        request = {"jsonrpc": "2.0", "id": id_, "method": method, "params": params}
        await self.connection.send(json.dumps(request))

    async def ask(self, frame: str | bytes) -> dict[str, Any]:
        """Send a frame as it is; the next message that is no event."""
        await self.connection.send(frame)
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        """The next message that is no event."""
        while True:
            message = await self._receive()
            if "method" not in message:
                return message
            self._events.append(message["params"])

    async def event(self) -> dict[str, Any]:
        """The next event."""
        if self._events:
            return self._events.popleft()
        message = await self._receive()
        assert message["method"] == "notifications/event", message
        params: dict[str, Any] = message["params"]
        return params

    async def events(self, count: int) -> list[dict[str, Any]]:
        return [await self.event() for _ in range(count)]

    async def open(self, **params: Any) -> str:
        return str((await self.call("session/open", **params))["session"])

    async def until_status(self, server: str, status: str) -> None:
        """Wait until the gateway sees the server like that."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                servers = (await self.call("servers/list"))["servers"]
                if (server, status) in [(s["name"], s["status"]) for s in servers]:
                    return

    async def _receive(self) -> dict[str, Any]:
        async with asyncio.timeout(DEADLINE_S):
            frame = await self.connection.recv()
        message: dict[str, Any] = json.loads(frame)
        return message


class RunningGateway:
    """One gateway; made by `GatewayRig.start_gateway()`."""

    def __init__(self, address: str, stop: asyncio.Event, task: asyncio.Task[None]) -> None:
        self.address = address
        self._stop = stop
        self._task = task

    def http(self, key: str | None = "acme-key") -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.AsyncClient(
            base_url=f"http://{self.address}", headers=headers, trust_env=False, timeout=DEADLINE_S
        )

    def connect(self, key: str | None = "acme-key", **options: Any) -> connect:
        """As `websockets.connect`, with the key and without proxies."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return connect(f"ws://{self.address}/v1/ws", additional_headers=headers, proxy=None, max_size=None, **options)

    @asynccontextmanager
    async def socket(self, key: str = "acme-key", **options: Any) -> AsyncIterator[Socket]:
        async with self.connect(key, **options) as connection:
            yield Socket(connection)

    @asynccontextmanager
    async def unread(self, key: str = "acme-key") -> AsyncIterator[Socket]:
        """A WebSocket of whose messages few fit in before the client looks at them."""
        async with self.connect(key, sock=await self.narrow_socket(), max_queue=1, ping_interval=None) as connection:
            yield Socket(connection)

    async def narrow_socket(self) -> TcpSocket:
        """A TCP connection with room for little on this side."""
        host, port = self.address.split(":")
        narrow = TcpSocket()
        narrow.setsockopt(SOL_SOCKET, SO_RCVBUF, 64 * 1024)
        narrow.setblocking(False)
        await asyncio.get_running_loop().sock_connect(narrow, (host, int(port)))
        return narrow

    async def readiness(self) -> tuple[int, dict[str, Any]]:
        async with self.http() as http:
            answer = await http.get("/readyz")
        return answer.status_code, answer.json()

    async def until_ready(self, ready: bool = True) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while (await self.readiness())[0] != (200 if ready else 503):
                await asyncio.sleep(0.01)

    def start_stopping(self) -> None:
        """SIGTERM's effect."""
        self._stop.set()

    async def stop(self) -> None:
        """Returns when the gateway has drained."""
        self._stop.set()
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.wait({self._task})


class GatewayRig:
    """Gateways on one NATS. Made by `gateway_rig()`."""

    def __init__(self, nats_url: str, bus: Bus, tasks: asyncio.TaskGroup, settings: dict[str, Any]) -> None:
        self.bus = bus
        self._nats_url = nats_url
        self._tasks = tasks
        self._settings = settings
        self._gateways: list[RunningGateway] = []
        self._catalog: Catalog = {}

    async def start_gateway(self, **settings: Any) -> RunningGateway:
        gateway = start_gateway(self._nats_url, self._tasks, **{**self._settings, **settings})
        self._gateways.append(gateway)
        await gateway.until_ready()
        return gateway

    async def stop_all(self) -> None:
        for gateway in self._gateways:
            gateway.start_stopping()
        for gateway in self._gateways:
            await gateway.stop()

    async def add_server(self, name: str = "math", tools: list[dict[str, Any]] | None = None, **spec: Any) -> None:
        """A catalog entry, and the listing that a worker would publish for it."""
        await self.apply_entry(name, **spec)
        await self.publish_listing(name, tools=[ADD_TOOL] if tools is None else tools)

    async def apply_entry(self, name: str, **spec: Any) -> None:
        self._catalog[name] = ServerSpec.model_validate({"image": "none", **spec})
        await registry.apply(self.bus, self._catalog)

    async def remove_server(self, name: str) -> None:
        del self._catalog[name]
        await registry.apply(self.bus, self._catalog)

    async def publish_listing(self, name: str, **listing: Any) -> None:
        """As a worker does once a container of the entry's fingerprint has answered, or could not be had."""
        facts = {"status": "ready", "server_info": {"name": name, "version": "1"}, **listing}
        facts["entry"] = self._catalog[name].fingerprint
        await registry.publish_listing(self.bus, name, ToolListing.model_validate(facts))

    async def add_worker(self, **data: Any) -> None:
        """Something that answers as a worker's NATS micro service does."""
        stats = {"name": "worker", "id": "w-1", "endpoints": [{"name": "handoff", "data": data}]}

        async def answer(message: Msg) -> None:
            await message.respond(json.dumps(stats).encode())

        await self.bus.client.subscribe(subjects.micro_stats("worker"), cb=answer)
        await settled(self.bus)

    async def add_event(self, session: str, job: str, type_: str = "output", attempt: int = 1, **data: Any) -> int:
        """Store an event as a worker would; its number."""
        last = await self.bus.last_event(session, job)
        event = Event.model_validate(
            {
                "job": job,
                "session": session,
                "attempt": attempt,
                "type": type_,
                "time_ms": now_ms(),
                "data": data,
            }
        )
        return await self.bus.publish_event(event, expected=last.fence if last else 0)

    async def start_job(self, session: str, job: str) -> int:
        """What a worker stores when it takes a job."""
        return await self.add_event(session, job, "started", worker="w-1", container="c-1", warm=True)

    async def end_job(self, session: str, job: str, outcome: Outcome = "succeeded", **data: Any) -> int:
        return await self.add_event(session, job, "result", outcome=outcome, **data)

    async def add_output(self, session: str, count: int, job: str | None = None, text: str = "x") -> list[int]:
        """So many `output` events of one job."""
        job = job or subjects.new_job_id()
        return [await self.add_event(session, job, "output", stream="stdout", text=f"{n} {text}") for n in range(count)]

    async def queued(self, server: str) -> int:
        """Messages in the queue of a server."""
        return sum(await self.bus.queue_depth(server))


def start_gateway(nats_url: str, tasks: asyncio.TaskGroup, **settings: Any) -> RunningGateway:
    """Logs in as gateways do; the tests' own connection is the operator's."""
    wanted = {"nats_url": nats_url, **login("gateway"), "api_keys": KEYS, "drain_timeout_s": 3.0, **settings}
    listener = listen("127.0.0.1", 0)
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    stop = asyncio.Event()
    return RunningGateway(address, stop, tasks.create_task(serve(GatewaySettings(**wanted), stop, listener)))


@asynccontextmanager
async def gateway_rig(nats_url: str, **settings: Any) -> AsyncIterator[GatewayRig]:
    """On leaving, every gateway drains. `settings` are every gateway's."""
    async with AsyncExitStack() as stack:
        wanted = GatewaySettings(nats_url=nats_url, **settings)
        bus = await stack.enter_async_context(common_bus.connect(wanted, "test"))
        async with asyncio.TaskGroup() as tasks:
            rig = GatewayRig(nats_url, bus, tasks, settings)
            try:
                yield rig
            finally:
                await rig.stop_all()
