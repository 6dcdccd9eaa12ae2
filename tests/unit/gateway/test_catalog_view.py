"""The view of catalog and listings, fed as the watches feed it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from common.catalog import ServerSpec
from common.errors import ServerNotReady, StoreUnavailable, UnknownServer
from common.schema import ToolListing
from gateway import followed
from gateway.catalog_view import CatalogView
from gateway.followed import Followed

SPEC = ServerSpec(image="one")


def listing(spec: ServerSpec = SPEC, tool: str = "add") -> ToolListing:
    return ToolListing(entry=spec.fingerprint, status="ready", tools=[{"name": tool}])


@pytest.fixture
def view() -> CatalogView:
    view = CatalogView()
    view.servers.put("math", SPEC)
    view.listings.put("math", listing())
    view.servers.complete({"math"})
    view.listings.complete({"math"})
    return view


def test_before_it_was_read_nothing_is_said_to_be_unknown() -> None:
    """An empty view would make every server unknown, which a caller takes for final."""
    view = CatalogView()
    view.servers.put("math", SPEC)
    view.servers.complete({"math"})

    for question in (lambda: view.server("math"), lambda: view.tools("math"), view.names):
        with pytest.raises(StoreUnavailable):
            question()


def test_a_listing_counts_for_the_entry_that_it_was_made_of(view: CatalogView) -> None:
    """A changed entry is another server until a worker has listed it again."""
    changed = ServerSpec(image="two")
    view.servers.put("math", changed)

    with pytest.raises(ServerNotReady, match="no worker has listed its tools yet"):
        view.tools("math")

    view.listings.put("math", listing(changed, "sub"))
    view.tools("math").require("sub")


def test_a_change_that_makes_no_other_container_keeps_the_listing(view: CatalogView) -> None:
    """A description is not part of the fingerprint."""
    view.servers.put("math", ServerSpec(image="one", description="new"))

    view.tools("math").require("add")


def test_a_new_listing_takes_the_place_of_the_old_one(view: CatalogView) -> None:
    """Compiled schemas of the old one go with it."""
    old = view.tools("math")
    view.listings.put("math", listing(tool="sub"))

    assert view.tools("math") is not old
    view.tools("math").require("sub")


def test_what_is_gone_is_unknown(view: CatalogView) -> None:
    """With the names of what is there."""
    view.servers.put("time", SPEC)
    view.servers.put("math", None)

    with pytest.raises(UnknownServer, match="the catalog has: time"):
        view.tools("math")


async def test_a_watch_that_fails_is_begun_anew_and_what_vanished_meanwhile_is_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A store that is away costs a pause, not the view."""
    monkeypatch.setattr(followed, "WATCH_RETRY_S", 0)
    begun = 0
    second = asyncio.Event()

    async def watch() -> AsyncGenerator[tuple[str, str | None] | None]:
        nonlocal begun
        begun += 1
        yield "kept", f"from watch {begun}"
        if begun == 1:
            yield "vanished", "x"
        yield None
        if begun == 1:
            raise StoreUnavailable("away")
        second.set()
        await asyncio.Event().wait()

    bucket = Followed[str]("bucket", lambda name: None)
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(bucket.follow(watch))
        await second.wait()
        following.cancel()

    assert bucket.entries == {"kept": "from watch 2"}
