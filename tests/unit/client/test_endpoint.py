"""Addresses of gateways."""

from __future__ import annotations

import pytest

from client.endpoint import endpoint, is_local


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8080", "ws://127.0.0.1:8080/v1/ws"),
        ("https://tools.example.org/", "wss://tools.example.org/v1/ws"),
        ("https://example.org/tools", "wss://example.org/tools/v1/ws"),
        ("ws://gateway:80/v1/ws", "ws://gateway:80/v1/ws"),
        ("localhost:8080", "ws://localhost:8080/v1/ws"),
    ],
)
def test_an_address_becomes_that_of_the_websocket_door(url: str, address: str) -> None:
    """Whatever form the user has at hand, with or without the door."""
    assert endpoint(url) == address


@pytest.mark.parametrize("url", ["nats://127.0.0.1:4222", "http://", ""])
def test_what_is_no_address_is_refused_with_an_example(url: str) -> None:
    """Before anything is dialled."""
    with pytest.raises(ValueError, match="looks like http://host:port"):
        endpoint(url)


def test_this_machine_is_reached_without_a_proxy() -> None:
    """A proxy of the environment knows another localhost."""
    assert is_local("ws://127.0.0.1:8080/v1/ws")
    assert is_local("ws://[::1]:8080/v1/ws")
    assert not is_local("wss://tools.example.org/v1/ws")
