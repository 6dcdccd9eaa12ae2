"""Addresses of gateways."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

DOOR = "/v1/ws"
_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
_LOOPBACK = ("localhost", "127.", "::1")


def endpoint(url: str) -> str:
    """The WebSocket address of the gateway at `url`, which may be http(s) or ws(s), with or without the door.

    Raises:
        ValueError: if it has another scheme or no host.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise ValueError(f"{url!r} is not the address of a gateway; it looks like http://host:port")
    path = parts.path.rstrip("/")
    if not path.endswith(DOOR):
        path += DOOR
    return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, path, parts.query, ""))


def http_address(endpoint: str) -> str:
    """Where the HTTP door of the same gateway is: what the paths of the protocol, `/v1/…`, are appended to."""
    parts = urlsplit(endpoint)
    scheme = "https" if parts.scheme == "wss" else "http"
    return urlunsplit((scheme, parts.netloc, parts.path.removesuffix(DOOR), "", ""))


def is_local(url: str) -> bool:
    """Whether the address is this machine: then no proxy of the environment stands between."""
    return (urlsplit(url).hostname or "").startswith(_LOOPBACK)
