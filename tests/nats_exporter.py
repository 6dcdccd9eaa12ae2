"""The metrics of natsio/prometheus-nats-exporter 0.17 that rules and dashboards may name, and what each is made of.

The exporter itself is not among the programs of `make tools`: its Go module cannot be had everywhere. So the tests hold
the names against this list, and what the exporter reads against a real nats-server.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

_SERVER: Final = frozenset({"server_id", "server_name", "cluster", "domain", "meta_leader", "is_meta_leader"})
_STREAM: Final = _SERVER | {"account", "account_id", "stream_name", "stream_leader", "is_stream_leader"}
_CONSUMER: Final = _STREAM | {"consumer_name", "consumer_leader", "is_consumer_leader", "consumer_desc"}
_STREAMS: Final = "account_details.0.stream_detail"
_VARZ: Final = ("connections", "cpu", "in_bytes", "in_msgs", "mem", "out_bytes", "out_msgs", "slow_consumers")


class Exported(NamedTuple):
    endpoint: str
    path: str
    """Of the value in the answer; a list stands for each of its items."""
    labels: frozenset[str]


EXPORTED: Final[dict[str, Exported]] = {
    # -varz: every number at the top of the answer, under its name.
    **{f"gnatsd_varz_{name}": Exported("/varz", name, frozenset({"server_id"})) for name in _VARZ},
    # -healthz: 0 where the status is "ok".
    "gnatsd_healthz_status": Exported("/healthz", "status", frozenset({"server_id", "value"})),
    # -jsz=all
    # 0, where the answer says nothing of it. Its labels tell the leader, that is, whether there is one.
    "jetstream_server_jetstream_disabled": Exported("/jsz", "now", _SERVER),
    "jetstream_server_max_storage": Exported("/jsz", "config.max_storage", _SERVER),
    "jetstream_server_total_message_bytes": Exported("/jsz", "bytes", _SERVER),
    "jetstream_stream_total_bytes": Exported("/jsz", f"{_STREAMS}.state.bytes", _STREAM),
    "jetstream_stream_total_messages": Exported("/jsz", f"{_STREAMS}.state.messages", _STREAM),
    "jetstream_stream_last_seq": Exported("/jsz", f"{_STREAMS}.state.last_seq", _STREAM),
    "jetstream_stream_limit_bytes": Exported("/jsz", f"{_STREAMS}.config.max_bytes", _STREAM),
    "jetstream_consumer_num_pending": Exported("/jsz", f"{_STREAMS}.consumer_detail.num_pending", _CONSUMER),
    "jetstream_consumer_num_ack_pending": Exported("/jsz", f"{_STREAMS}.consumer_detail.num_ack_pending", _CONSUMER),
    "jetstream_consumer_num_redelivered": Exported("/jsz", f"{_STREAMS}.consumer_detail.num_redelivered", _CONSUMER),
    "jetstream_consumer_num_waiting": Exported("/jsz", f"{_STREAMS}.consumer_detail.num_waiting", _CONSUMER),
}
QUERY: Final = {"/jsz": "/jsz?consumers=true&config=true&raft=true"}
"""What the exporter adds for `-jsz=all`."""


def values_at(answer: Any, path: str) -> list[Any]:
    """All that stand there."""
    found = [answer]
    for step in path.split("."):
        if step == "0":
            found = [each[0] for each in found]
            continue
        found = [item for each in found for item in (each if isinstance(each, list) else [each])]
        found = [each[step] for each in found if step in each]
    return found
