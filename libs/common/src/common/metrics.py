"""Prometheus metrics of both services, named `<noun>_<what>_<unit>`; label values are bounded.

A server's name is a label (the catalog bounds it); a session, a job and a tool never are.
"""

from __future__ import annotations

from typing import Final, get_args

from prometheus_client import Counter, Gauge, Histogram

from common.schema import Outcome

_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
OUTCOMES: Final[tuple[str, ...]] = get_args(Outcome)

JOBS_ACCEPTED: Final = Counter("jobs_accepted_total", "Jobs that the store acknowledged.", ["server"])
REQUESTS_REFUSED: Final = Counter("requests_refused_total", "Requests answered with an error.", ["type"])
CONNECTIONS_OPEN: Final = Gauge("connections_open", "Open client connections.", ["door"])
CONNECTIONS_STALLED: Final = Counter(
    "connections_stalled_total", "Connections ended because their client read nothing of what was sent."
)
EVENTS_SENT: Final = Counter("events_sent_total", "Events sent to clients.")
EVENTS_REPLAYED: Final = Counter("events_replayed_total", "Events read back from the store for a client.")
EVENTS_UNDECODABLE: Final = Counter("events_undecodable_total", "Stored events that could not be read.")

JOBS_SWEPT: Final = Counter("jobs_swept_total", "Jobs that no worker could end any more.", ["outcome"])
JOBS_ENDED: Final = Counter("jobs_ended_total", "Jobs by their outcome.", ["server", "outcome"])
JOBS_RUNNING: Final = Gauge("jobs_running", "Jobs that hold a slot of this worker.", ["server"])
JOBS_HANDED_BACK: Final = Counter("jobs_handed_back_total", "Deliveries returned to the queue.", ["server"])
JOB_QUEUE_SECONDS: Final = Histogram("job_queue_seconds", "From queued to started.", ["server"], buckets=_SECONDS)
JOB_ACQUIRE_SECONDS: Final = Histogram("job_acquire_seconds", "Waiting for a container.", ["server"], buckets=_SECONDS)
JOB_TOOL_SECONDS: Final = Histogram("job_tool_seconds", "In the tool itself.", ["server"], buckets=_SECONDS)
CONTAINERS: Final = Gauge("containers", "Containers of this worker.", ["server", "state"])
CONTAINER_BOOTS: Final = Counter("container_boots_total", "Containers started.", ["server", "result"])
CONTAINER_BOOT_SECONDS: Final = Histogram(
    "container_boot_seconds", "From create to ready.", ["server"], buckets=_SECONDS
)
CHAT_TOKENS: Final = Counter(
    "chat_tokens_total", "Tokens of chat turns, as providers count them.", ["model", "direction"]
)
CHAT_MODEL_SECONDS: Final = Histogram(
    "chat_model_seconds", "From asking a model to its whole answer.", ["model"], buckets=_SECONDS
)
LEASES_HELD: Final = Gauge("leases_held", "Leases that this worker holds.")
DURABILITY_WEAKNESSES: Final = Gauge(
    "durability_weaknesses", "Ways in which the store is weaker than DURABILITY asks for."
)
DEAD_LETTERS: Final = Counter("dead_letters_total", "Jobs given up on.", ["server"])
DEAD_LETTERS_REDRIVEN: Final = Counter("dead_letters_redriven_total", "Dead letters made a job again.", ["server"])
DEAD_LETTERS_PURGED: Final = Counter("dead_letters_purged_total", "Dead letters removed unused.", ["server"])


def create_job_labels(server: str) -> None:
    """Make every outcome of a server visible at zero, so that a rate over `failed` exists before the first one."""
    for outcome in OUTCOMES:
        JOBS_ENDED.labels(server, outcome)
    JOBS_RUNNING.labels(server)
