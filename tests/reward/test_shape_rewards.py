"""Length, the end of the budget, repetition and chance."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_x.api.errors import ConfigError
from areal_x.reward import get_reward_fn

LENGTHS = st.integers(0, 400)


@pytest.mark.parametrize(
    ("options", "length", "value"),
    [
        ({"target": 100}, 100, 1.0),
        ({"target": 100}, 50, 0.5),
        ({"target": 100}, 150, 0.5),
        ({"target": 100}, 0, 0.0),
        ({"target": 100}, 300, 0.0),
        ({"target": 100, "tolerance": 10}, 95, 0.5),
        ({"target": 0, "tolerance": 10}, 5, 0.5),
        ({"target": 100, "shape": "cosine"}, 100, 1.0),
        ({"target": 100, "shape": "cosine"}, 50, 0.5),
        ({"target": 100, "shape": "cosine"}, 25, (1 - math.sqrt(0.5)) / 2),
        ({"maximum": 200}, 0, 1.0),
        ({"maximum": 200}, 50, 0.75),
        ({"maximum": 200}, 200, 0.0),
        ({"maximum": 200}, 300, 0.0),
        ({"maximum": 200, "shape": "cosine"}, 50, (1 + math.sqrt(0.5)) / 2),
        ({"maximum": 200, "shape": "cosine"}, 300, 0.0),
    ],
)
def test_length(options: dict[str, Any], length: int, value: float) -> None:
    reward = pickle.loads(pickle.dumps(get_reward_fn("length", **options)))
    result = reward(completions="", completion_ids=[1] * length)
    assert result.value == pytest.approx(value) and result.parts == {"length": length}
    characters = get_reward_fn("length", unit="characters", **options)
    assert characters(completions="x" * length).value == pytest.approx(value)


@given(LENGTHS, LENGTHS, st.integers(1, 300), st.sampled_from(["linear", "cosine"]))
def test_the_nearer_to_the_target_the_better(left: int, right: int, target: int, shape: str) -> None:
    reward = get_reward_fn("length", target=target, shape=shape, unit="characters")
    one, other = (reward(completions="x" * length).value for length in (left, right))
    assert 0.0 <= one <= 1.0
    if abs(left - target) <= abs(right - target):
        assert one >= other


@pytest.mark.parametrize(
    ("length", "value"),
    [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1.0), (101, -1.0), (900, -1.0)],
)
def test_overlong_is_the_punishment_of_dapo(length: int, value: float) -> None:
    reward = pickle.loads(pickle.dumps(get_reward_fn("overlong", maximum=100, buffer=20)))
    assert reward(completions="", completion_ids=[1] * length) == pytest.approx(value)
    half = get_reward_fn("overlong", maximum=100, buffer=20, penalty=0.5, unit="characters")
    assert half(completions="x" * length) == pytest.approx(0.5 * value)


@given(st.integers(1, 300), st.data(), LENGTHS, LENGTHS)
def test_overlong_never_rises_with_length(maximum: int, data: st.DataObject, left: int, right: int) -> None:
    buffer = data.draw(st.integers(1, maximum))
    reward = get_reward_fn("overlong", maximum=maximum, buffer=buffer)
    short, long = (reward(completions="", completion_ids=[0] * length) for length in sorted((left, right)))
    assert -1.0 <= long <= short <= 0.0
    assert reward(completions="", completion_ids=[0] * (maximum - buffer)) == 0.0
    assert reward(completions="", completion_ids=[0] * maximum) == -1.0


@pytest.mark.parametrize(
    ("options", "text", "value"),
    [
        ({"n": 2}, "a b c d", 0.0),
        ({"n": 2}, "a b a b a b", -0.6),
        ({"n": 2}, "A b a B a b", -0.6),
        ({"n": 1}, "a a a a", -0.75),
        ({"n": 1, "penalty": 2.0}, "a a a a", -1.5),
        ({"n": 1, "penalty": 0.0}, "a a a a", 0.0),
        ({"n": 5}, "a a a a", 0.0),
        ({"n": 1}, "", 0.0),
        ({"n": 2}, "好的好的好的", -0.6),
        ({}, "one two three four one two three four", -1 + 4 / 5),
    ],
)
def test_repetition(options: dict[str, Any], text: str, value: float) -> None:
    reward = pickle.loads(pickle.dumps(get_reward_fn("repetition", **options)))
    assert reward(completions=text) == pytest.approx(value)


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
def test_repetition_is_the_share_of_runs_seen_before(ids: list[int], n: int) -> None:
    reward = get_reward_fn("repetition", n=n, unit="tokens")
    value = reward(completions="", completion_ids=ids)
    runs = Counter(tuple(ids[start : start + n]) for start in range(len(ids) - n + 1))
    assert value == pytest.approx(-(1 - len(runs) / runs.total()) if runs else 0.0)
    assert get_reward_fn("repetition", n=n)(completions=" ".join(map(str, ids))) == pytest.approx(value)


@pytest.mark.parametrize(
    ("name", "options"),
    [("length", {"target": 5}), ("overlong", {"maximum": 5, "buffer": 1}), ("repetition", {"unit": "tokens"})],
)
def test_without_token_ids_there_is_an_error_and_no_number(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="completion_ids is None"):
        get_reward_fn(name, **options)(completions="x")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("length", {}, "needs either target or maximum"),
        ("length", {"target": 5, "maximum": 5}, "needs either target or maximum"),
        ("length", {"maximum": 5, "tolerance": 5}, "tolerance of reward 'length' belongs to target"),
        ("length", {"target": 0}, "target=0 of reward 'length' is not a whole number of at least 1"),
        ("length", {"target": 5.0}, "target=5.0"),
        ("length", {"target": True}, "target=True"),
        ("length", {"target": 5, "tolerance": 0}, "tolerance=0"),
        ("length", {"maximum": "5"}, "maximum='5'"),
        ("length", {"target": 5, "unit": "words"}, "unit='words' of reward 'length' is not one of: characters, tokens"),
        ("length", {"target": 5, "shape": "cosinus"}, "did you mean 'cosine'"),
        ("length", {"traget": 5}, "did you mean 'target'"),
        ("overlong", {"maximum": 5}, "needs reward.kwargs.buffer"),
        ("overlong", {"maximum": 5, "buffer": 0}, "buffer=0"),
        ("overlong", {"maximum": 5, "buffer": 6}, "buffer=6 of reward 'overlong' is above maximum=5"),
        ("overlong", {"maximum": 5, "buffer": 1, "penalty": -1}, "penalty=-1 of reward 'overlong' is not at least 0"),
        ("overlong", {"maximum": 5, "buffer": 1, "penalty": math.inf}, "is not a finite number"),
        ("repetition", {"n": 0}, "n=0"),
        ("repetition", {"unit": "letters"}, "unit='letters'"),
        ("repetition", {"penalty": "much"}, "is not a finite number"),
        ("random", {"probability": 1.5}, "probability=1.5 of reward 'random' is not between 0 and 1"),
        ("random", {"compat": "verl"}, "compat='verl'"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get_reward_fn(name, **options)
    assert message in str(caught.value)


def test_chance_is_fair_and_repeats_itself() -> None:
    reward = pickle.loads(pickle.dumps(get_reward_fn("random", probability=0.3)))
    draws = [reward(prompt="p", completions=str(number), completion_ids=[number]) for number in range(5000)]
    assert set(draws) == {0.0, 1.0} and abs(sum(draws) / 5000 - 0.3) < 0.04
    assert draws == [reward(prompt="p", completions=str(number), completion_ids=[number]) for number in range(5000)]
    other = get_reward_fn("random", probability=0.3, seed=1)
    assert draws != [other(prompt="p", completions=str(number), completion_ids=[number]) for number in range(5000)]
    for probability in (0.0, 1.0):
        always = get_reward_fn("random", probability=probability)
        assert {always(prompt="p", completions=str(number)) for number in range(100)} == {probability}


def test_chance_as_in_slime_draws_anew() -> None:
    reward = get_reward_fn("random", compat="slime")
    draws = [reward(prompt="p", completions="c") for _ in range(2000)]
    assert set(draws) == {0.0, 1.0} and abs(sum(draws) / 2000 - 0.5) < 0.08
