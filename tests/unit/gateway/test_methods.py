"""The table of methods, and params that do not fit."""

from __future__ import annotations

from typing import Any

import pytest

from common.errors import InvalidParams
from gateway.http import RESOURCES
from gateway.methods import METHODS
from gateway.params import CallParams, LettersParams, OpenParams, PurgeParams, validated


def test_every_method_is_there_on_both_doors() -> None:
    """What one door can do, the other can."""
    assert sorted(resource.method for resource in RESOURCES) == sorted(METHODS)


def test_a_fault_deep_in_the_params_has_its_path() -> None:
    """Names and indexes, from the params' root."""
    with pytest.raises(InvalidParams) as refused:
        validated(CallParams, {"session": "s", "server": "x" * 65, "name": "n", "_meta": 1})

    assert [problem["path"] for problem in refused.value.data["problems"]] == ["$.server", "$._meta"]


def test_a_position_is_complete_or_not_there() -> None:
    """Half of one would be taken for none, and lose events in silence."""
    whole = validated(OpenParams, {"session": "s", "epoch": "e", "seq": 0})

    assert isinstance(whole, OpenParams)
    assert whole.position is not None
    assert (whole.position.epoch, whole.position.seq) == ("e", 0)
    for half in ({"epoch": "e"}, {"seq": 0}):
        with pytest.raises(InvalidParams):
            validated(OpenParams, {"session": "s", **half})


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("list", {"limit": 0}),
        ("list", {"limit": 501}),
        ("list", {"limit": "5"}),
        ("list", {"server": "a.b"}),
        ("list", {"server": "*"}),
        ("list", {"before": 5}),
        ("list", {"nosuch": 1}),
        ("show", {}),
        ("show", {"letter": 1}),
        ("show", {"letter": "0"}),
        ("show", {"letter": "-1"}),
        ("show", {"letter": "1\n"}),
        ("show", {"letter": "x"}),
        ("redrive", {"letter": "9" * 19}),
        ("delete", {"letter": ["1"]}),
        ("purge", {}),
        ("purge", {"all": False}),
        ("purge", {"all": True, "server": "math"}),
        ("purge", {"server": ">"}),
        ("purge", {"all": True, "older_than_s": -1}),
        ("purge", {"all": True, "older_than_s": float("nan")}),
        ("purge", {"all": 1}),
    ],
)
def test_params_of_dead_letters_that_do_not_fit_are_refused(method: str, params: dict[str, Any]) -> None:
    """Above all what would widen a subject, and a purge that does not say what to purge."""
    with pytest.raises(InvalidParams):
        validated(METHODS[f"dead_letters/{method}"][0], params)


def test_numbers_and_truth_may_come_as_text_where_all_params_do() -> None:
    """In the query of an address; an id stays the text that it is."""
    listing = validated(LettersParams, {"limit": "5", "server": "123", "before": "7"}, as_text=True)
    purge = validated(PurgeParams, {"all": "true", "older_than_s": "1.5"}, as_text=True)

    assert isinstance(listing, LettersParams)
    assert (listing.limit, listing.server, listing.before) == (5, "123", "7")
    assert isinstance(purge, PurgeParams)
    assert (purge.all, purge.older_than_s) == (True, 1.5)
    for faulty in ({"limit": "x"}, {"limit": ""}, {"before": ""}):
        with pytest.raises(InvalidParams):
            validated(LettersParams, faulty, as_text=True)
