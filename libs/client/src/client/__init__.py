"""Python client of MCP Orchestrator.

async with connect("http://127.0.0.1:8080", key="development") as session:
    async for event in session.call("time", "get_current_time", {"timezone": "UTC"}):
        print(event.type, event.data)
"""

from client.dead_letters import DeadLetters, Redriven
from client.errors import ClientError, ConnectionLost, Damaged, NoAnswer, ProtocolFault, Refused, Unreachable
from client.event import Event, Job, JobResult, Position
from client.session import Session, connect

__all__ = [
    "ClientError",
    "ConnectionLost",
    "Damaged",
    "DeadLetters",
    "Event",
    "Job",
    "JobResult",
    "NoAnswer",
    "Position",
    "ProtocolFault",
    "Redriven",
    "Refused",
    "Session",
    "Unreachable",
    "connect",
]
