"""Files of a session's container: each operation is a job, as a call is."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Any

from common import subjects
from common.catalog import ServerSpec
from common.errors import FilesUnsupported, InvalidParams
from common.file_path import PathFault, parts_of
from common.schema import Job, now_ms
from gateway.admission import Admission
from gateway.catalog_view import CatalogView
from gateway.jobs import Jobs
from gateway.store import Store
from gateway.uploads import drop_upload, store_upload

Accepted = dict[str, Any]
"""`{job, seq}`."""


class Files:
    """Callers have made sure that the session is theirs.

    Every method raises UnknownServer, FilesUnsupported, InvalidParams (a path breaks a rule), and what `Jobs.call()`
    raises where the limits of a tenant or a session are met.
    """

    def __init__(
        self,
        store: Store,
        catalog: CatalogView,
        admission: Admission,
        jobs: Jobs,
        timeout_ms: int,
        max_upload_bytes: int,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._admission = admission
        self._jobs = jobs
        self._timeout_ms = timeout_ms
        self.max_upload_bytes = max_upload_bytes

    async def put(self, tenant: str, session: str, server: str, path: str, content: AsyncIterable[bytes]) -> Accepted:
        """Store the content, then have it put into the container.

        Raises:
            PayloadTooLarge, ArtifactStoreFull: nothing is kept of it.
        """
        spec = self._accepting(tenant, server, path)
        job = subjects.new_job_id()
        bus = self._store.bus
        upload = await store_upload(bus, session, job, content, self.max_upload_bytes)
        arguments = {"path": path, "size": upload.size, "sha256": upload.sha256, "object": upload.name}
        try:
            return await self._submit(self._job(spec, job, tenant, session, server, "put", arguments))
        except BaseException:
            await drop_upload(bus, upload.object_id)  # the refusal is what the caller has to hear of
            raise

    async def get(self, tenant: str, session: str, server: str, path: str, *, artifact: bool) -> Accepted:
        """Have a file's content told as the job's output `file`."""
        spec = self._accepting(tenant, server, path)
        job = self._job(spec, subjects.new_job_id(), tenant, session, server, "get", {"path": path})
        return await self._submit(job.model_copy(update={"artifact": artifact}))

    async def list(self, tenant: str, session: str, server: str, path: str | None) -> Accepted:
        """Have the job's result tell what there is, in a folder or in the whole files directory."""
        spec = self._accepting(tenant, server, path)
        arguments = {} if path is None else {"path": path}
        return await self._submit(self._job(spec, subjects.new_job_id(), tenant, session, server, "list", arguments))

    def _accepting(self, tenant: str, server: str, path: str | None) -> ServerSpec:
        self._admission.count_call(tenant)
        spec = self._catalog.server(server)
        if spec.scope != "session":
            raise FilesUnsupported(server, spec.scope)
        if path is not None:
            try:
                parts_of(path)
            except PathFault as exc:
                raise InvalidParams("invalid params", [{"path": "$.path", "message": str(exc)}]) from exc
        return spec

    def _job(
        self, spec: ServerSpec, id_: str, tenant: str, session: str, server: str, tool: str, arguments: dict[str, Any]
    ) -> Job:
        now = now_ms()
        return Job(
            id=id_,
            session=session,
            tenant=tenant,
            server=server,
            kind="files",
            tool=tool,
            arguments=arguments,
            created_ms=now,
            start_by_ms=now + int(spec.timeouts.queue_s * 1000),
            timeout_ms=spec.timeouts.job_ms or self._timeout_ms,
        )

    async def _submit(self, job: Job) -> Accepted:
        async with self._admission.place(job.session):
            return await self._jobs.submit(job)
