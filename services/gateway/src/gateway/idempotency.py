"""Idempotency keys: a call that a client repeats, not knowing whether the first one arrived, is one job.

The bucket says which job a session's key stands for, so every gateway gives the same answer. A record lives as long
as events can be replayed (`RESUME_WINDOW_S`).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from common import subjects
from common.bus import Bus
from common.errors import Fenced, IdempotencyKeyReused, StoreUnavailable
from common.schema import IdempotencyRecord, now_ms
from common.streams import IDEMPOTENCY_BUCKET

CLAIM_TRIES = 3


def fingerprint(server: str, tool: str, arguments: dict[str, Any], *, artifact: bool = False) -> str:
    """What a repeated request must have in common with the first.

    Without `artifact` it is what it was before there was such a param: keys that were given out then stay good.
    """
    facts = [server, tool, arguments, *(["artifact"] if artifact else [])]
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:32]


async def claim(bus: Bus, session: str, key: str, print_: str) -> tuple[str, bool]:
    """The id of the job that the key stands for, and whether it was given out just now.

    Raises:
        IdempotencyKeyReused: if the key stands for another request.
        StoreUnavailable: if the store does not answer.
    """
    name = subjects.idempotency_key(session, hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32])
    for _ in range(CLAIM_TRIES):
        entry = await bus.get(IDEMPOTENCY_BUCKET, name)
        if entry.value is not None:
            known = IdempotencyRecord.decode(entry.value)
            if known.fingerprint != print_:
                raise IdempotencyKeyReused(key, known.job)
            return known.job, False
        record = IdempotencyRecord(job=subjects.new_job_id(), fingerprint=print_, created_ms=now_ms())
        try:
            await bus.replace(IDEMPOTENCY_BUCKET, name, record.encode(), entry.revision)
        except Fenced:
            continue  # another gateway was asked the same at the same time
        return record.job, True
    raise StoreUnavailable("the idempotency key changes too fast: try again")
