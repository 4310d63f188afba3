"""Sums from the end of each sequence, and normalisation over a batch, without a loop over tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from areal_x.api.records import BoolArray

__all__ = ["normalized", "reverse_scan"]

_Floats = npt.NDArray[np.float64]
_BLOCK = 32


def reverse_scan(terms: _Floats, last: npt.NDArray[np.int64], factor: float) -> _Floats:
    """x[m] = terms[m] + factor * x[m + 1] within each sequence, from its end on.

    Args:
        terms: of all sequences in a row, [M].
        last: index of the last element of each sequence, ascending.

    Returns:
        float64 [M].
    """
    if factor == 1.0:
        sums = np.cumsum(terms)
        lengths = np.diff(last, prepend=-1)
        result: _Floats = np.repeat(sums[last], lengths)
        result -= sums
        result += terms
        return result
    factors = np.full(len(terms), factor)
    factors[last] = 0.0
    return _scan(np.asarray(terms, dtype=np.float64), factors)


def _scan(terms: _Floats, factors: _Floats) -> _Floats:
    """x[m] = terms[m] + factors[m] * x[m + 1]; the last factor does not matter.

    The row is cut into blocks of equal length. All blocks are gone through at the same time, each as if nothing came
    after it, with the product of its factors beside it; then what does come after each block, which is a scan over the
    first elements of the blocks, is added. So the work does not depend on how long the sequences are.
    """
    length = len(terms)
    if length <= _BLOCK:
        result = terms.copy()
        for index in range(length - 2, -1, -1):
            result[index] += factors[index] * result[index + 1]
        return result
    num_blocks = -(-length // _BLOCK)
    # Row b of the transposed arrays: element b of every block. What is filled in at the end changes nothing.
    sums, products = _blocks(terms, num_blocks), _blocks(factors, num_blocks)
    carried = np.empty(num_blocks)
    for row in range(_BLOCK - 2, -1, -1):
        np.multiply(products[row], sums[row + 1], out=carried)
        sums[row] += carried
        products[row] *= products[row + 1]
    products *= np.append(_scan(sums[0], products[0])[1:], 0.0)
    sums += products
    return np.ascontiguousarray(sums.T).reshape(-1)[:length]


def _blocks(values: _Floats, num_blocks: int) -> _Floats:
    padded = np.zeros(num_blocks * _BLOCK)
    padded[: len(values)] = values
    return np.ascontiguousarray(padded.reshape(num_blocks, _BLOCK).T)


def normalized(values: _Floats, counted: BoolArray, eps: float) -> _Floats:
    """Values less their mean, over their population standard deviation; both are those of ``counted`` elements.

    Equal values give exactly 0, and so does a batch without any that counts.

    Args:
        values: finite, [M].
        counted: [M].
        eps: added to the deviation.
    """
    weights = counted.astype(np.float64)
    number = weights.sum()
    if not number:
        return np.zeros_like(values)
    # Shifting by one element first keeps equal values at exactly 0: their mean may round away from them.
    shifted = values - values[int(counted.argmax())]
    shifted -= (shifted @ weights) / number
    deviation = np.sqrt((shifted**2 @ weights) / number)
    if deviation > 0:
        shifted /= deviation + eps
    return shifted
