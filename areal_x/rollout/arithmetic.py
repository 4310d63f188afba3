"""Addition problems, made on the spot: ``12+34=`` with the answer ``46``, or ``64`` when its digits are reversed.

A problem is held out by a hash of its operands, the smaller one first. So training and held-out problems are disjoint
whatever the seeds and the sizes, and ``34+12=`` stands on the same side as ``12+34=``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from areal_x.api.errors import ConfigError

__all__ = ["arithmetic_items"]

_MAX_DIGITS = 18
_ENUMERATED_PAIRS = 2_000_000
"""Up to so many pairs, all are listed and shuffled; beyond, pairs are drawn at random until enough differ."""

IntArray = npt.NDArray[np.int64]


def arithmetic_items(
    split: str = "train",
    *,
    num_digits: int = 2,
    num_items: int | None = None,
    num_eval_items: int | None = None,
    seed: int = 0,
    reverse: bool = False,
    zero_pad: bool = False,
    careless_share: float = 0.0,
    held_out_fraction: float = 0.1,
) -> list[dict[str, Any]]:
    """Different addition problems in random order, as rows with ``prompt``, ``answer`` and ``completion``.

    Args:
        split: ``train`` or ``eval``.
        num_digits: digits of each operand, exactly (one digit: 0 to 9); at most so many with ``zero_pad``.
        num_items: training problems. Default: 10,000, or all there are.
        num_eval_items: held-out problems. Default: 1,000, or all there are.
        seed: which problems are drawn, and their order.
        reverse: answers with the last digit first, which a model that writes left to right learns sooner.
        zero_pad: small operands too, written with leading zeros: ``07+58=``.
        careless_share: this share of the ``completion`` column, which a warm start learns from, was worked out by a
            teacher who never carries (``07+58=`` gives 55). The ``answer`` column, which rewards look at, is right.
        held_out_fraction: share of all problems that is never trained.

    Raises:
        ConfigError: an argument is out of range, or there are not so many different problems.
    """
    _check(num_digits, held_out_fraction, careless_share, {"num_items": num_items, "num_eval_items": num_eval_items})
    asked = num_items if split == "train" else num_eval_items
    limit = asked or (10_000 if split == "train" else 1_000)
    low = 0 if num_digits == 1 or zero_pad else 10 ** (num_digits - 1)
    high = 10**num_digits
    random = np.random.RandomState(seed % 2**32)
    draw = _draw_enumerated if (high - low) ** 2 <= _ENUMERATED_PAIRS else _draw_at_random
    first, second = draw(random, low, high, limit, split != "train", held_out_fraction)
    if asked is not None and len(first) < asked:
        name = "num_items" if split == "train" else "num_eval_items"
        raise ConfigError(
            f"data.kwargs.{name}={asked}: there are only {len(first)} such problems of {num_digits} digits"
        )
    careless = random.random_sample(len(first)) < careless_share
    width = num_digits if zero_pad else 0
    rows = zip(first.tolist(), second.tolist(), careless.tolist(), strict=True)
    return [_row(a, b, width, reverse, is_careless) for a, b, is_careless in rows]


def _check(num_digits: int, held_out_fraction: float, careless_share: float, counts: dict[str, int | None]) -> None:
    if not isinstance(num_digits, int) or not 1 <= num_digits <= _MAX_DIGITS:
        raise ConfigError(f"data.kwargs.num_digits={num_digits}: must be from 1 to {_MAX_DIGITS}")
    if not 0 < held_out_fraction < 1:
        raise ConfigError(f"data.kwargs.held_out_fraction={held_out_fraction}: must be above 0 and below 1")
    if not 0 <= careless_share <= 1:
        raise ConfigError(f"data.kwargs.careless_share={careless_share}: must be from 0 to 1")
    for name, count in counts.items():
        if count is not None and (not isinstance(count, int) or count < 1):
            raise ConfigError(f"data.kwargs.{name}={count}: must be 1 or more")


def _row(a: int, b: int, width: int, reverse: bool, is_careless: bool) -> dict[str, Any]:
    total = str(a + b)
    taught = add_without_carrying(a, b) if is_careless else total
    answer, completion = (total[::-1], taught[::-1]) if reverse else (total, taught)
    return {"prompt": f"{a:0{width}}+{b:0{width}}=", "answer": answer, "completion": completion}


def add_without_carrying(a: int, b: int) -> str:
    """The sum that forgets every carry, column by column: 17 + 58 gives 65."""
    width = max(len(str(a)), len(str(b)))
    columns = zip(f"{a:0{width}}", f"{b:0{width}}", strict=True)
    return "".join(str((int(first) + int(second)) % 10) for first, second in columns)


def _is_held_out(first: IntArray, second: IntArray, fraction: float) -> npt.NDArray[np.bool_]:
    """Whether each pair is held out: the splitmix64 mix of (smaller, larger) falls below ``fraction``."""
    mixed = np.minimum(first, second).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= np.maximum(first, second).astype(np.uint64) + np.uint64(0xD1B54A32D192ED03)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53 < fraction


def _draw_enumerated(
    random: np.random.RandomState, low: int, high: int, limit: int, held_out: bool, fraction: float
) -> tuple[IntArray, IntArray]:
    pairs = random.permutation((high - low) ** 2)
    first, second = pairs // (high - low) + low, pairs % (high - low) + low
    chosen = np.flatnonzero(_is_held_out(first, second, fraction) == held_out)[:limit]
    return first[chosen], second[chosen]


def _draw_at_random(
    random: np.random.RandomState, low: int, high: int, limit: int, held_out: bool, fraction: float
) -> tuple[IntArray, IntArray]:
    """Draw until ``limit`` different pairs are found; a space this large always holds them."""
    pairs = np.empty((0, 2), dtype=np.int64)
    while len(pairs) < limit:
        drawn = random.randint(low, high, size=(2 * limit, 2), dtype=np.int64)
        drawn = drawn[_is_held_out(drawn[:, 0], drawn[:, 1], fraction) == held_out]
        pairs = np.concatenate([pairs, drawn])
        _, earliest = np.unique(pairs, axis=0, return_index=True)
        pairs = pairs[np.sort(earliest)]
    return pairs[:limit, 0], pairs[:limit, 1]
