"""Header names on the bus. Those of NATS are NATS's own; ours carry no prefix clash with them."""

from __future__ import annotations

from typing import Final

MSG_ID: Final = "Nats-Msg-Id"
"""Deduplication key of a publish (the stream's duplicate window)."""

EXPECTED_LAST_SUBJECT_SEQUENCE: Final = "Nats-Expected-Last-Subject-Sequence"
"""Fence: the store refuses the publish unless this is the subject's last sequence."""

TTL: Final = "Nats-TTL"
"""How long the store keeps a message (NATS ADR-43), with its unit: `30s`."""

SUBJECT: Final = "Nats-Subject"
"""On a republished or directly read message: the subject it was stored under."""

SEQUENCE: Final = "Nats-Sequence"
"""On a republished or directly read message: its number in the stream."""

LAST_SEQUENCE: Final = "Nats-Last-Sequence"
"""On a republished message: the number of the message before it on the same subject, 0 if none."""

KV_OPERATION: Final = "KV-Operation"
"""`DEL` on a message that says that a key of a bucket was deleted (NATS ADR-8)."""

TIME_STAMP: Final = "Nats-Time-Stamp"
"""On a republished or directly read message: when it was stored."""

ROLLUP: Final = "Nats-Rollup"
"""`sub` on a message that replaces all others of its subject."""

BATCH_ID: Final = "Nats-Batch-Id"
"""On every message of an atomic batch (NATS ADR-50)."""

BATCH_SEQUENCE: Final = "Nats-Batch-Sequence"
"""A message's place in its batch, from 1."""

BATCH_COMMIT: Final = "Nats-Batch-Commit"
"""`1` on the last message of a batch."""

STATUS: Final = "Status"
"""Status line of a reply without a body: 204 end of batch, 404 none, 408 expired, 409 conflict, 503 no responders."""

DESCRIPTION: Final = "Description"

NUM_PENDING: Final = "Nats-Num-Pending"
"""On the end of a batched direct get: how many messages match beyond it."""

PENDING_MESSAGES: Final = "Nats-Pending-Messages"
"""On a 408 or 409 of a pull: how many of the asked messages will not come."""

TRACEPARENT: Final = "traceparent"
"""W3C trace context of the request that a job came from."""

OFFSET: Final = "Orchestrator-Offset"
"""On a chunk: how many bytes of its object come before it."""

ACK_SUBJECT: Final = "Orchestrator-Ack-Subject"
"""On a handoff: where the job's delivery is acknowledged."""

DELIVERED: Final = "Orchestrator-Delivered"
"""On a handoff: how often the store had delivered the job."""
