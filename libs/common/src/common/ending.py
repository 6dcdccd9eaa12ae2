"""How a job ended: what its `result` event says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common.job_errors import JobError
from common.schema import Outcome


@dataclass(frozen=True)
class Ending:
    outcome: Outcome
    result: dict[str, Any] | None = None
    """MCP's CallToolResult, where the tool answered."""
    error: JobError | None = None

    @classmethod
    def of(cls, error: JobError) -> Ending:
        return cls(error.outcome, error=error)

    def as_data(self) -> dict[str, Any]:
        data: dict[str, Any] = {"outcome": self.outcome}
        if self.result is not None:
            data["result"] = self.result
        if self.error is not None:
            data["error"] = self.error.as_dict()
        return data
