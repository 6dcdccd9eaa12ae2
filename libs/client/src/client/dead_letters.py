"""Dead letters: the jobs that the system gave up on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

PAGE: Final = 500
"""What a gateway lists at most in one answer."""

Ask = Callable[..., Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Redriven:
    """The job that a letter became."""

    session: str
    job: str
    seq: int
    """Number of its first event in that session."""
    redrive_of: str
    """The job that was given up on."""


class DeadLetters:
    """Of one's own tenant, or of all for an operator. Made by `Session.dead_letters`.

    Every method raises `Refused` with the type `unknown_dead_letter` for a letter that is not there (any more).
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def list(self, *, server: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
        """The newest: `{letter, time_ms, tenant, server, tool, session, job, attempts, reason}` of each."""
        found: list[dict[str, Any]] = []
        before: str | None = None
        while len(found) < limit:
            params = {"limit": min(PAGE, limit - len(found)), **_given(server=server, before=before)}
            answer = await self._ask("dead_letters/list", **params)
            found += answer["letters"]
            before = answer["before"]
            if before is None:
                break
        return found

    async def show(self, letter: str) -> dict[str, Any]:
        """All that is known of one (docs/protocol.md, "Methods")."""
        return await self._ask("dead_letters/show", letter=letter)

    async def redrive(self, letter: str) -> Redriven:
        """Have its job run again. Asked again, the answer is the same job.

        Raises:
            Refused: `dead_letter_unreadable` if there is no job in it, `unknown_server`, `queue_full`.
        """
        answer = await self._ask("dead_letters/redrive", letter=letter)
        return Redriven(answer["session"], answer["job"], answer["seq"], answer["redrive_of"])

    async def delete(self, letter: str) -> None:
        await self._ask("dead_letters/delete", letter=letter)

    async def purge(self, *, server: str | None = None, all: bool = False, older_than_s: float = 0) -> int:
        """Remove those of a server, or `all`; how many there were.

        Raises:
            Refused: `invalid_params` unless one of the two is said.
        """
        params = _given(server=server, all=all or None, older_than_s=older_than_s or None)
        purged: int = 0
        before: str | None = None
        while True:
            answer = await self._ask("dead_letters/purge", **params, **_given(before=before))
            purged += answer["purged"]
            before = answer["before"]
            if before is None:
                return purged


def _given(**params: Any) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}
