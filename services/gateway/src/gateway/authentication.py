"""Who asks: a bearer key to a tenant, before anything else of a request is looked at."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from common.errors import Unauthenticated
from gateway.problem import problem
from gateway.settings import hash_key

TENANT = "tenant"
"""Where the middleware leaves the tenant in `scope["state"]`."""


class Keys:
    """The keys of all tenants, known by their hashes only."""

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = dict(hashes)

    def tenant(self, authorization: str | None) -> str:
        """Whose key an `Authorization` header carries.

        Raises:
            Unauthenticated: if there is none, it is no bearer key, or nobody has that key.
        """
        scheme, _, key = (authorization or "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise Unauthenticated("send the header: Authorization: Bearer <api key>")
        digest = hash_key(key)
        # Every hash is compared, each in constant time: how long it takes tells nothing.
        found = [tenant for tenant, known in self._hashes.items() if hmac.compare_digest(known, digest)]
        if not found:
            raise Unauthenticated("nobody has this api key")
        return found[0]


class Authentication:
    """ASGI middleware: lets a request or an upgrade through with its tenant, or answers 401."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            tenant = self._keys.tenant(Headers(scope=scope).get("authorization"))
        except Unauthenticated as exc:
            await problem(exc)(scope, receive, send)
            return
        scope.setdefault("state", {})[TENANT] = tenant
        await self._app(scope, receive, send)
