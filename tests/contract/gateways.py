"""The gateway's side of a job: what it does is real, only when it does it is the test's choice."""

from __future__ import annotations

import asyncio
from pathlib import Path

from common import registry, subjects
from common.bus import Bus
from common.consumer import Delivery
from common.feed import StoredEvent
from common.job_queue import job_of
from common.schema import ToolListing
from common.streams import SERVERS_BUCKET
from gateway.admission import Admission
from gateway.catalog_view import CatalogView
from gateway.jobs import Jobs
from gateway.queue_positions import QueuePositions
from gateway.settings import GatewaySettings
from gateway.store import Store
from gateway.sweeper import Sweeper
from tests.contract.party import Party, until
from tests.contract.tools import SPEC, TOOLS
from tests.contract.workers import ACK_WAIT_S
from tests.nats_server import run_nats_server
from tests.unit.common.bus_rig import flushed


class Gateway:
    """With the store, which is as always up as this gateway."""

    def __init__(self, folder: Path) -> None:
        self.party = Party()
        self.url = self.party.do(self._start_store(folder))
        settings = GatewaySettings(nats_url=self.url, ack_wait_s=ACK_WAIT_S)
        self._store = Store(settings)
        self._catalog = CatalogView()
        self._jobs = Jobs(
            self._store, self._catalog, Admission(self._store, settings), QueuePositions(self._store), 60_000
        )
        self._sweeper = Sweeper(self._store, self._catalog, settings.sweep_period_s)
        self._holding = self.party.tasks.create_task(self._store.hold(self._catalog))
        self.party.do(until(lambda: self._store.fault is None))

    async def _start_store(self, folder: Path) -> str:
        server = await self.party.resources.enter_async_context(run_nats_server(folder))
        return server.url

    def close(self) -> None:
        self._holding.cancel()
        self.party.close()

    @property
    def bus(self) -> Bus:
        return self._store.bus

    def serve_only(self, server: str) -> None:
        """The catalog has this one, and a worker has told what it offers."""
        self.party.do(self._serve_only(server))

    async def _serve_only(self, server: str) -> None:
        # As `registry.apply()` does, which looks at the whole catalog each time.
        for name in list(self._catalog.servers.entries):
            await self.bus.delete(SERVERS_BUCKET, name)
            await self.bus.remove_server(name)
        await self.bus.ensure_server(server, SPEC.concurrency.cluster)
        await self.bus.put(SERVERS_BUCKET, server, SPEC.model_dump_json(exclude_defaults=True).encode())
        tools = [{"name": name, "annotations": hints} for name, hints in TOOLS.items()]
        listing = ToolListing(entry=SPEC.fingerprint, status="ready", tools=tools)
        await registry.publish_listing(self.bus, server, listing)
        await until(lambda: self._catalog.servers.entries.keys() == {server})
        await until(lambda: server in self._catalog.listings.entries)

    def call(self, session: str, server: str, tool: str, key: str | None) -> str:
        """Accept a call; its job."""
        return self.party.do(self._call(session, server, tool, key))

    def call_twice_at_once(self, session: str, server: str, tool: str, key: str) -> list[str]:
        """A client that is in doubt; the jobs of both calls."""

        async def both() -> list[str]:
            return await asyncio.gather(*(self._call(session, server, tool, key) for _ in range(2)))

        return self.party.do(both())

    async def _call(self, session: str, server: str, tool: str, key: str | None) -> str:
        accepted = await self._jobs.call(
            tenant="acme",
            session=session,
            server=server,
            tool=tool,
            arguments={},
            meta={},
            traceparent=None,
            idempotency_key=key,
        )
        return str(accepted["job"])

    def cancel(self, session: str, job: str) -> None:
        self.party.do(self._jobs.cancel(session, job))

    def sweep(self) -> None:
        self.party.do(self._sweeper.sweep(self.bus))

    def events(self, session: str, after: int) -> list[StoredEvent]:
        """What is stored of a session behind number `after`."""
        return self.party.do(self._events(session, after))

    async def _events(self, session: str, after: int) -> list[StoredEvent]:
        return [stored async for stored in self.bus.replay_session(session, after)]

    def in_queue(self, server: str, session: str) -> list[str]:
        """Jobs that wait or run, oldest first."""
        return self.party.do(self._in_queue(server, session))

    async def _in_queue(self, server: str, session: str) -> list[str]:
        return [job_of(msg) async for msg in self.bus.jobs_in_queue(subjects.jobs(server, session))]

    def let_lapse(self, delivery: Delivery) -> None:
        """End a delivery as the end of its ack_wait does, which nothing but time can bring about otherwise."""
        self.party.do(self._let_lapse(delivery))

    async def _let_lapse(self, delivery: Delivery) -> None:
        await self.bus.client.publish(delivery.ack_subject, b"-NAK")
        await flushed(self.bus)
