"""How an attempt ended: with the job's end, or with a failure after which another may follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common.schema import Outcome
from worker.errors import JobError


@dataclass(frozen=True)
class Ending:
    """How a job ended: the data of its `result` event."""

    outcome: Outcome
    result: dict[str, Any] | None = None
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


@dataclass(frozen=True)
class Failed:
    """Nothing of the attempt runs any more, and the job may be run again."""

    error: JobError
