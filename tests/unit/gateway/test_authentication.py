"""Bearer keys and their tenants."""

from __future__ import annotations

import pytest

from common.errors import Unauthenticated
from gateway.authentication import Keys
from gateway.settings import hash_key

KEYS = Keys({"acme": hash_key("a-key"), "umbra": hash_key("u-key")})


@pytest.mark.parametrize(
    ("authorization", "tenant"),
    [("Bearer a-key", "acme"), ("bearer u-key", "umbra"), ("Bearer  a-key ", "acme")],
)
def test_a_known_key_tells_its_tenant(authorization: str, tenant: str) -> None:
    """The scheme's case does not matter (RFC 9110)."""
    assert KEYS.tenant(authorization) == tenant


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "a-key", "Basic a-key", "Bearer A-KEY"])
def test_anything_else_is_refused(authorization: str | None) -> None:
    """Without telling which part was wrong of a key."""
    with pytest.raises(Unauthenticated):
        KEYS.tenant(authorization)


def test_a_hash_is_no_key() -> None:
    """Who reads the settings cannot use what stands there."""
    with pytest.raises(Unauthenticated):
        KEYS.tenant(f"Bearer {hash_key('a-key')}")
