"""What a repeated call must have in common with the first."""

from __future__ import annotations

from gateway.idempotency import fingerprint


def test_the_fingerprint_of_a_call_without_an_artifact_is_what_it_was_before_there_were_any() -> None:
    """Else keys that clients hold during an upgrade would be refused. The digest is one that was stored then."""
    assert fingerprint("math", "add", {"a": 1, "b": 2}) == "0f72fb81df53661c0d0c1b5f5dfd5523"


def test_a_call_for_an_artifact_is_another_call() -> None:
    """Its output does not come in events."""
    plain = fingerprint("math", "add", {"a": 1})

    assert fingerprint("math", "add", {"a": 1}, artifact=True) != plain
    assert fingerprint("math", "add", {"a": 1}, artifact=False) == plain
