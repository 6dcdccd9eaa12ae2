"""The rules of paths in a session's files directory: the same at the gateway's door and in front of the container."""

from __future__ import annotations

MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255
"""What Linux takes."""


class PathFault(Exception):
    """The message is the rule that a path breaks."""


def parts_of(path: str) -> list[str]:
    """The names along a path that is relative to the files directory: `a/b.txt` is `["a", "b.txt"]`.

    Raises:
        PathFault
    """
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise PathFault("it has to be text that UTF-8 can hold") from None
    if not path:
        raise PathFault("it must not be empty")
    if size > MAX_PATH_BYTES:
        raise PathFault(f"it has {size} bytes; at most {MAX_PATH_BYTES} are allowed")
    if "\0" in path:
        raise PathFault("it must not have a NUL")
    if path.startswith("/"):
        raise PathFault("it is relative to the files directory, so it must not start with '/'")
    parts = path.split("/")
    for part in parts:
        if not part:
            raise PathFault("between two '/', and behind the last one, stands a name")
        if part in (".", ".."):
            raise PathFault("it must not have '.' or '..' in it")
        if len(part.encode()) > MAX_NAME_BYTES:
            raise PathFault(f"one of its names has {len(part.encode())} bytes; at most {MAX_NAME_BYTES} are allowed")
    return parts
