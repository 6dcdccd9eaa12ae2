"""What can keep everything on one machine from running.

StandaloneError
├── StoreInUse          another one works in the same folder
├── PortTaken           somebody else listens where the gateway should
├── NotReady            a service did not become ready in time
├── ServiceEnded        a service ended by itself
├── Leftover            something is still there that should have gone
├── DemoFailed          a call of the demo did not do what it should
└── Interrupted         by a signal, after everything was stopped
"""

from __future__ import annotations

from pathlib import Path


class StandaloneError(Exception):
    """Base; the message is a sentence for the user, `details` are lines that help to find the cause."""

    def __init__(self, message: str, details: str = "") -> None:
        self.details = details
        super().__init__(message)


class StoreInUse(StandaloneError):
    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} is in use by another instance; stop that one, or set STATE_DIR")


class PortTaken(StandaloneError):
    def __init__(self, host: str, port: int, reason: str) -> None:
        super().__init__(f"the gateway cannot listen on {host}:{port}: {reason}; set PORT (0 takes any that is free)")


class NotReady(StandaloneError):
    def __init__(self, name: str, timeout_s: float, reason: str, details: str) -> None:
        super().__init__(f"{name} is not ready after {timeout_s:g} s: {reason}", details)


class ServiceEnded(StandaloneError):
    def __init__(self, name: str, code: int, details: str) -> None:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        super().__init__(f"{name} {how}", details)


class Leftover(StandaloneError):
    pass


class DemoFailed(StandaloneError):
    pass


class Interrupted(StandaloneError):
    def __init__(self) -> None:
        super().__init__("interrupted")
