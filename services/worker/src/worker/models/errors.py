"""How a chat turn can end other than by the model's answer.

JobError                        (common.job_errors)
├── NoModel                     failed: this worker was given no model
├── ModelUnavailable            failed: the provider does not answer, or takes no more requests now
├── ModelRefused                failed: the provider does not take what is asked
└── AttemptLost                 (worker.errors)
    └── ModelInterrupted        failed: its answer broke off; another attempt goes on from the last stored step
"""

from __future__ import annotations

from common.job_errors import JobError
from worker.errors import AttemptLost


class NoModel(JobError):
    type = "no_model"

    def __init__(self) -> None:
        super().__init__(
            "no model is configured: the operator sets CHAT_MODEL on the workers, as openai:<model> or"
            " anthropic:<model>, with CHAT_API_KEY or CHAT_API_KEY_FILE; tools can be called without one"
        )


class ModelUnavailable(JobError):
    type = "model_unavailable"
    retryable = True

    def __init__(self, model: str, why: str, status: int | None = None) -> None:
        super().__init__(f"{model} does not answer: {why}", model=model, status=status)


class ModelInterrupted(AttemptLost):
    """The turn goes on from its last stored step, in another attempt."""

    type = "model_interrupted"
    retryable = True

    def __init__(self, model: str, why: str) -> None:
        super().__init__(f"the answer of {model} broke off: {why}", model=model)


class ModelRefused(JobError):
    type = "model_refused"

    def __init__(self, model: str, why: str, status: int | None = None) -> None:
        super().__init__(f"{model} does not take the request: {why}", model=model, status=status)
