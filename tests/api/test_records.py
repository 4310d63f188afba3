"""Records that travel between the layers."""

from __future__ import annotations

from typing import Any

import pytest

from areal_x.api.records import SamplingParams


def test_lists_of_stops_become_tuples() -> None:
    values: dict[str, Any] = {"stop": ["\n", "END"], "stop_token_ids": [1, 2]}
    sampling = SamplingParams(**values)
    assert (sampling.stop, sampling.stop_token_ids) == (("\n", "END"), (1, 2))
    assert hash(sampling) == hash(SamplingParams(stop=("\n", "END"), stop_token_ids=(1, 2)))
    with pytest.raises(TypeError, match="one string"):
        SamplingParams(stop="END")
