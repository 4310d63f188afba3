"""Each correction against an independent numpy version and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_tokens import Numbers, make_tokens, random_numbers, tensor

from areal_x.api.errors import ConfigError
from areal_x.engine.train.objective.corrections import CORRECTIONS

SETTINGS: dict[str, dict[str, object]] = {
    "decoupled": {},
    "tis": {},
    "icepop": {"low": 0.7, "high": 1.5},
    "mis": {"high": 1.4},
    "sequence_mask": {"high": 3.0},
    "m2po": {"threshold": 0.1},
}


def by_numpy(name: str, numbers: Numbers, settings: dict[str, object], only_stale: bool) -> np.ndarray:
    drift = numbers["proximal"] - numbers["behaviour"]
    if only_stale:
        drift = np.where(numbers["lag"] > 0, drift, 0)
    if name in ("decoupled", "tis"):
        return np.minimum(np.exp(drift), {"decoupled": 5.0, "tis": 2.0}[name])
    weights = []
    if name in ("icepop", "mis"):
        for value in np.exp(drift):
            weights.append(value if settings.get("low", 0.0) <= value <= settings["high"] else 0.0)
    elif name == "sequence_mask":
        for own in numbers["sequence"]:
            value = drift[numbers["sequence"] == own]
            value = np.exp(value.mean() if settings.get("ratio") == "geometric" else value.sum())
            weights.append(value if settings.get("low", 0.0) <= value <= settings["high"] else 0.0)
    else:
        kept = np.ones(len(drift), bool)
        while kept.any() and (drift[kept] ** 2).mean() > settings["threshold"]:
            kept[np.argmax(np.where(kept, drift**2, -1))] = False
        return np.where(kept, np.exp(drift), 0)
    return np.array(weights)


@pytest.mark.parametrize("only_stale", [False, True])
@pytest.mark.parametrize(
    ("name", "more"), [*((name, {}) for name in SETTINGS), ("sequence_mask", {"ratio": "geometric", "high": 1.05})]
)
def test_equals_an_independent_numpy_version(name: str, more: dict[str, object], only_stale: bool) -> None:
    numbers, settings = random_numbers(2), SETTINGS[name] | more
    expected = by_numpy(name, numbers, settings, only_stale)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        weights = CORRECTIONS[name](make_tokens(numbers, dtype=dtype), only_stale=only_stale, **settings).weights
        np.testing.assert_allclose(weights.detach().double().numpy(), expected, rtol=tolerance, atol=tolerance)
    assert name in ("decoupled", "tis") or 0 < (expected == 0).sum() < len(expected)


def by_hand(weights: list[float], sequence: list[int] | None = None, lag: list[int] | None = None):
    size = len(weights)
    return make_tokens(
        {
            "new": np.log(weights) - 3,
            "proximal": np.log(weights) - 3,
            "behaviour": np.full(size, -3.0),
            "advantages": np.ones(size),
            "sequence": np.array(sequence or [0] * size, float),
            "lag": np.array(lag or [1] * size, float),
        }
    )


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("decoupled", {}, [1, 0.25, 5, 3]),
        ("tis", {}, [1, 0.25, 2, 2]),
        ("icepop", {}, [1, 0, 0, 3]),
        ("mis", {}, [1, 0.25, 0, 0]),
        ("mis", {"low": 0.5, "high": 4}, [1, 0, 0, 3]),
        # Sequences of weights 1 * 0.25 and 8 * 3.
        ("sequence_mask", {}, [0.25, 0.25, 0, 0]),
        ("sequence_mask", {"low": 0.3, "high": 30}, [0, 0, 24, 24]),
        ("sequence_mask", {"ratio": "geometric", "high": 5}, [0.5, 0.5, math.sqrt(24), math.sqrt(24)]),
    ],
)
def test_by_hand(name: str, settings: dict[str, object], expected: list[float]) -> None:
    correction = CORRECTIONS[name](by_hand([1, 0.25, 8, 3], [0, 0, 2, 2]), **settings)
    torch.testing.assert_close(correction.weights.detach(), tensor(*expected))
    if name == "tis":
        assert correction.means["behaviour_weight_capped_fraction"].tolist() == [0, 0, 1, 1]


def test_m2po_by_hand() -> None:
    """Log ratios 0, 0.1, -0.2, 0.6, 0.5; squares 0, 0.01, 0.04, 0.36, 0.25. The mean of the three smallest is 0.0167,
    of four 0.075: at a threshold of 0.04 two are masked."""
    drifts = [0, 0.1, -0.2, 0.6, 0.5]
    correction = CORRECTIONS["m2po"](by_hand(np.exp(drifts).tolist()))
    torch.testing.assert_close(correction.weights.detach(), tensor(1, math.exp(0.1), math.exp(-0.2), 0, 0))
    torch.testing.assert_close(correction.means["behaviour_second_moment"].detach(), tensor(0, 0.01, 0.04, 0.36, 0.25))


def test_tokens_of_the_newest_weights_can_be_left_alone() -> None:
    tokens = by_hand([8, 8, 0.25], lag=[0, 2, 0])
    assert CORRECTIONS["icepop"](tokens, only_stale=True).weights.tolist() == [1, 0, 1]
    assert CORRECTIONS["m2po"](tokens, only_stale=True).weights.tolist() == [1, 0, 1]


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=30), st.floats(0.001, 1.0))
def test_m2po_masks_as_few_as_it_takes(drifts: list[float], threshold: float) -> None:
    weights = CORRECTIONS["m2po"](by_hand(np.exp(drifts).tolist()), threshold=threshold).weights.detach().numpy()
    squares = (by_hand(np.exp(drifts).tolist()).drift.numpy()) ** 2
    kept = weights > 0
    assert not kept.any() or squares[kept].mean() <= threshold + 1e-12
    if not kept.all():
        one_more = np.append(squares[kept], squares[squares == squares[~kept].min()])
        assert one_more.mean() > threshold - 1e-12
        assert not kept.any() or squares[kept].max() < squares[~kept].min()


@pytest.mark.parametrize("name", SETTINGS)
def test_no_tokens_have_the_same_names(name: str) -> None:
    none = {key: values[:0] for key, values in random_numbers(0).items()}
    empty, full = (CORRECTIONS[name](make_tokens(numbers)) for numbers in (none, random_numbers(0)))
    assert empty.weights.shape == (0,)
    assert list(empty.means) == list(full.means) and list(empty.maxima) == list(full.maxima)


def test_a_ratio_that_is_not_known_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.correction_kwargs\.ratio='mean': must be product or geometric"):
        CORRECTIONS["sequence_mask"](by_hand([1.0]), ratio="mean")


def test_a_product_that_overflows_masks_its_sequence() -> None:
    weights = CORRECTIONS["sequence_mask"](by_hand([1e300, 1e300, 1], [0, 0, 1])).weights
    assert weights.tolist() == [0, 0, 1]
