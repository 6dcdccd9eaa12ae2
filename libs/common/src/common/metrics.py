"""Prometheus metrics of both services, named `<noun>_<what>_<unit>`; label values are bounded.

A server's name is a label (the catalog bounds it); a session, a job and a tool never are.
What each is good for: docs/metrics.md.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

from prometheus_client import Counter, Gauge, Histogram

from common.schema import Outcome

_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)
OUTCOMES: Final[tuple[str, ...]] = get_args(Outcome)

HandBackReason = Literal["no_slot", "pool_exhausted", "engine_unavailable", "owner_alive"]
HAND_BACK_REASONS: Final[tuple[HandBackReason, ...]] = get_args(HandBackReason)

SERVICE_READY: Final = Gauge("service_ready", "1 while /readyz answers 200, else 0.")
DURABILITY_WEAKNESSES: Final = Gauge(
    "durability_weaknesses", "Ways in which the store is weaker than DURABILITY asks for."
)

JOBS_ACCEPTED: Final = Counter("jobs_accepted_total", "Jobs that the store acknowledged.", ["server"])
REQUESTS_REFUSED: Final = Counter("requests_refused_total", "Requests answered with an error.", ["type"])
CONNECTIONS_OPEN: Final = Gauge("connections_open", "Open client connections.", ["door"])
CONNECTIONS_STALLED: Final = Counter(
    "connections_stalled_total", "Connections ended because their client read nothing of what was sent."
)
EVENTS_SENT: Final = Counter("events_sent_total", "Events sent to clients.")
EVENTS_REPLAYED: Final = Counter("events_replayed_total", "Events read back from the store for a client.")
EVENTS_UNDECODABLE: Final = Counter("events_undecodable_total", "Stored events that could not be read.")

JOBS_ENDED: Final = Counter("jobs_ended_total", "Jobs by their outcome.", ["server", "outcome"])
JOBS_SWEPT: Final = Counter("jobs_swept_total", "Jobs that no worker could end any more.", ["outcome"])
JOBS_RUNNING: Final = Gauge("jobs_running", "Jobs that hold a slot of this worker.", ["server"])
JOBS_RETRIED: Final = Counter("jobs_retried_total", "Attempts after a job's first.", ["server"])
JOBS_HANDED_BACK: Final = Counter("jobs_handed_back_total", "Deliveries returned to the queue.", ["server", "reason"])
JOB_QUEUE_SECONDS: Final = Histogram("job_queue_seconds", "From accepted to picked up.", ["server"], buckets=_SECONDS)
JOB_ACQUIRE_SECONDS: Final = Histogram("job_acquire_seconds", "Waiting for a container.", ["server"], buckets=_SECONDS)
JOB_TOOL_SECONDS: Final = Histogram("job_tool_seconds", "In the tool itself.", ["server"], buckets=_SECONDS)
JOB_TOTAL_SECONDS: Final = Histogram("job_total_seconds", "From accepted to ended.", ["server"], buckets=_SECONDS)

CONTAINERS: Final = Gauge("containers", "Containers of this worker.", ["server", "state"])
CONTAINERS_LIMIT: Final = Gauge("containers_limit", "Containers that this worker may have.", ["server"])
CONTAINER_CALLS: Final = Counter(
    "container_calls_total", "Calls by how their container was found.", ["server", "start"]
)
CONTAINER_BOOTS: Final = Counter("container_boots_total", "Containers started.", ["server", "result"])
CONTAINER_BOOT_SECONDS: Final = Histogram(
    "container_boot_seconds", "From create to ready.", ["server"], buckets=_SECONDS
)
LEASES_HELD: Final = Gauge("leases_held", "Leases that this worker holds.")

DEAD_LETTERS: Final = Counter("dead_letters_total", "Jobs given up on.", ["server"])
DEAD_LETTERS_REDRIVEN: Final = Counter("dead_letters_redriven_total", "Dead letters made a job again.", ["server"])
DEAD_LETTERS_PURGED: Final = Counter("dead_letters_purged_total", "Dead letters removed unused.", ["server"])

CONVERSATION_PLAIN_BYTES: Final = Counter("conversation_plain_bytes_total", "Bytes of segments before compression.")
CONVERSATION_STORED_BYTES: Final = Counter("conversation_stored_bytes_total", "Bytes of the same segments as stored.")

CHAT_TOKENS: Final = Counter(
    "chat_tokens_total", "Tokens of chat turns, as providers count them.", ["model", "direction"]
)
CHAT_MODEL_SECONDS: Final = Histogram(
    "chat_model_seconds", "From asking a model to its whole answer.", ["model"], buckets=_SECONDS
)

# A counter that first appears with its first increment has no rate for it: where nothing has failed yet, there is a 0.

for _outcome in OUTCOMES:
    JOBS_SWEPT.labels(_outcome)


def create_server_labels(server: str) -> None:
    """What either service may count of a server of the catalog."""
    for outcome in OUTCOMES:
        JOBS_ENDED.labels(server, outcome)
    for counter in (JOBS_ACCEPTED, DEAD_LETTERS, DEAD_LETTERS_REDRIVEN, DEAD_LETTERS_PURGED):
        counter.labels(server)


def create_worker_labels(server: str) -> None:
    """What a worker counts of a server that it serves."""
    create_server_labels(server)
    for histogram in (JOB_QUEUE_SECONDS, JOB_ACQUIRE_SECONDS, JOB_TOOL_SECONDS, JOB_TOTAL_SECONDS):
        histogram.labels(server)
    JOBS_RUNNING.labels(server)
    JOBS_RETRIED.labels(server)
    for reason in HAND_BACK_REASONS:
        JOBS_HANDED_BACK.labels(server, reason)


def create_pool_labels(server: str, limit: int) -> None:
    """What a worker counts of the containers of a server."""
    CONTAINERS_LIMIT.labels(server).set(limit)
    for start in ("warm", "cold"):
        CONTAINER_CALLS.labels(server, start)
    for result in ("ready", "failed"):
        CONTAINER_BOOTS.labels(server, result)
    CONTAINER_BOOT_SECONDS.labels(server)


def create_model_labels(model: str) -> None:
    """What a worker counts of the model that answers its chat turns."""
    for direction in ("input", "output"):
        CHAT_TOKENS.labels(model, direction)
    CHAT_MODEL_SECONDS.labels(model)
