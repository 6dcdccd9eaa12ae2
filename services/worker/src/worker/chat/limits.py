"""How much one chat turn may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChatLimits:
    turns: int
    """At once on this worker."""
    steps: int
    """Answers of the model in one turn: each with calls leads to another."""
    tokens: int
    """Of all requests of a turn, as the provider counts them; what is under way when they are used up is finished."""
    reply_tokens: int
    """Of one answer of the model."""
    result_chars: int
    """What the model is told of one call's result."""
    history_chars: int
    """What the model is told of the conversation before the turn."""
    system_prompt: str
