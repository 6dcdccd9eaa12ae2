"""The table of methods, and params that do not fit."""

from __future__ import annotations

import pytest

from common.errors import InvalidParams
from gateway.http import RESOURCES
from gateway.methods import METHODS, CallParams, OpenParams, _validated


def test_every_method_is_there_on_both_doors() -> None:
    """What one door can do, the other can."""
    assert sorted(resource.method for resource in RESOURCES) == sorted(METHODS)


def test_a_fault_deep_in_the_params_has_its_path() -> None:
    """Names and indexes, from the params' root."""
    with pytest.raises(InvalidParams) as refused:
        _validated(CallParams, {"session": "s", "server": "x" * 65, "name": "n", "_meta": 1})

    assert [problem["path"] for problem in refused.value.data["problems"]] == ["$.server", "$._meta"]


def test_a_position_is_complete_or_not_there() -> None:
    """Half of one would be taken for none, and lose events in silence."""
    whole = _validated(OpenParams, {"session": "s", "epoch": "e", "seq": 0})

    assert isinstance(whole, OpenParams)
    assert whole.position is not None
    assert (whole.position.epoch, whole.position.seq) == ("e", 0)
    for half in ({"epoch": "e"}, {"seq": 0}):
        with pytest.raises(InvalidParams):
            _validated(OpenParams, {"session": "s", **half})
