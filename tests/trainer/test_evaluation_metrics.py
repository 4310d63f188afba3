"""pass@k and majority@k against cases by hand and all subsets; the metrics of an evaluation."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_x.api.records import Trajectory, TrajectoryGroup, VersionSpan
from areal_x.api.reward_records import RewardOutcome
from areal_x.trainer.answer_votes import RIGHT, majority_at_k, pass_at_k, stated_answer, votes_of
from areal_x.trainer.evaluation import found_line
from areal_x.trainer.evaluation_metrics import evaluation_metrics, version_metrics


def test_pass_at_k_by_hand() -> None:
    # 4 samples, 1 right: a pair holds it in 3 of 6 cases.
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)
    assert [pass_at_k(5, 2, k) for k in (1, 4, 5)] == pytest.approx([0.4, 1.0, 1.0])
    assert pass_at_k(8, 0, 8) == 0.0
    for arguments in ((4, 1, 5), (4, 1, 0), (4, 5, 1)):
        with pytest.raises(ValueError, match="is not defined"):
            pass_at_k(*arguments)


@given(st.integers(1, 9), st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(num_samples: int, data: st.DataObject) -> None:
    num_right, k = data.draw(st.integers(0, num_samples)), data.draw(st.integers(1, num_samples))
    subsets = list(itertools.combinations([i < num_right for i in range(num_samples)], k))
    assert pass_at_k(num_samples, num_right, k) == pytest.approx(np.mean([any(subset) for subset in subsets]))


def test_majority_at_k_by_hand() -> None:
    assert majority_at_k([RIGHT, RIGHT, "a"], 3) == 1.0
    assert majority_at_k([RIGHT, "a", "a"], 3) == 0.0
    # A tie of two, and one of three.
    assert majority_at_k([RIGHT, "a"], 2) == pytest.approx(0.5)
    assert majority_at_k([RIGHT, "a", "b"], 3) == pytest.approx(1 / 3)
    # Who says no answer does not vote; nobody's vote is wrong.
    assert majority_at_k([RIGHT, None, None], 3) == 1.0
    assert majority_at_k([None, None], 2) == 0.0
    # One sample: the share of right ones, silent ones counted as wrong.
    assert majority_at_k([RIGHT, "a", None, None], 1) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="majority@3 of 2 samples"):
        majority_at_k([RIGHT, "a"], 3)


@given(st.lists(st.sampled_from([RIGHT, "a", "b", "c", None]), min_size=1, max_size=9), st.data())
def test_majority_at_k_is_the_mean_over_all_subsets(votes: list[str | None], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(votes)))
    assert majority_at_k(votes, k) == pytest.approx(np.mean([_by_hand(s) for s in itertools.combinations(votes, k)]))


def _by_hand(subset: tuple[str | None, ...]) -> float:
    counts = Counter(vote for vote in subset if vote is not None)
    first = [vote for vote, count in counts.items() if count == max(counts.values())]
    return first.count(RIGHT) / max(1, len(first))


def test_many_samples_are_counted_without_drawing() -> None:
    votes = [RIGHT] * 20 + [str(i % 13) for i in range(40)] + [None] * 4
    assert 0.5 < majority_at_k(votes, 32) < 1.0


@pytest.mark.parametrize(
    ("one", "other"),
    [("1,234", "1234"), ("$12.50$", "12.5"), (" B. ", "b"), ("1e2", "100"), ("x  + y", "X + y"), ("18.", "18")],
)
def test_answers_that_say_the_same_are_one_vote(one: str, other: str) -> None:
    first, second = (stated_answer(RewardOutcome("ok", 0.0, metadata={"answer": text})) for text in (one, other))
    assert first == second is not None


def test_who_votes_for_what() -> None:
    texts = ["1/2", "0.5", "3", "3.0", None, "1e99999999999", "7" * 40]
    outcomes = [RewardOutcome("ok", 0.0, metadata={} if text is None else {"answer": text}) for text in texts]
    votes = votes_of(outcomes, [True, True, False, False, False, False, False])
    assert votes[0] == votes[1] == RIGHT and votes[2] == votes[3] != RIGHT and votes[4] is None
    assert len(set(votes)) == 5
    assert stated_answer(RewardOutcome("ok", 1.0, metadata={"math/answer": "4", "style/reason": "x"})) == "=4"


def group(number: int, *outcomes: RewardOutcome | None, versions: tuple[int, ...] = (3,)) -> TrajectoryGroup:
    """One prompt; each sample has four tokens, of which the last were sampled, one by each of ``versions``."""
    samples = []
    for index, outcome in enumerate(outcomes):
        mask = np.arange(4) >= 4 - len(versions)
        spans = [
            VersionSpan(4 - len(versions) + i, 5 - len(versions) + i, version) for i, version in enumerate(versions)
        ]
        fields = {"stop_reason": "length" if index == 0 else "stop", "episode_id": f"{number}-{index}"}
        samples.append(Trajectory(np.arange(4), mask, np.zeros(4, np.float32), spans, outcome, **fields))
    return TrajectoryGroup(number, samples, np.zeros(len(samples), np.float32))


def answered(value: float, answer: str | None = None) -> RewardOutcome:
    return RewardOutcome("ok", value, metadata={} if answer is None else {"answer": answer})


def test_metrics_of_several_samples() -> None:
    groups = [
        group(0, answered(1.0, "4"), answered(0.0, "5"), answered(0.0, "5"), answered(1.0, "4.0")),
        group(1, answered(0.0, "1"), answered(0.0, "1"), answered(1.0, "2"), RewardOutcome("timeout")),
        group(2, answered(0.0), RewardOutcome("error"), None),
    ]
    metrics = evaluation_metrics(groups, "sums", num_asked=16, group_size=4, pass_at=(1, 3), majority_at=(3,))
    metrics = {name.removeprefix("eval/sums/"): value for name, value in metrics.items()}
    assert metrics["accuracy"] == metrics["reward"] == pytest.approx(3 / 8)
    assert metrics["pass@1"] == pytest.approx((2 / 4 + 1 / 3 + 0) / 3)
    assert metrics["pass@3"] == pytest.approx((1.0 + 1.0) / 2)
    assert metrics["majority@3"] == pytest.approx((0.5 + 0.0) / 2)
    # Of four prompts one gave no score at all.
    assert (metrics["pass@1_left_out"], metrics["pass@3_left_out"], metrics["majority@3_left_out"]) == (1, 2, 2)
    assert (metrics["num_samples"], metrics["num_unscored"]) == (8, 8)
    assert (metrics["completion_tokens"], metrics["truncated_share"]) == (1.0, pytest.approx(3 / 8))


def test_without_answers_nobody_votes_and_partial_credit_passes_nothing() -> None:
    metrics = evaluation_metrics([group(0, answered(1.0), answered(0.0))], "d", 2, 2, pass_at=(2,), majority_at=(2,))
    assert metrics["eval/d/pass@2"] == 1.0
    assert not [name for name in metrics if "majority" in name]
    metrics = evaluation_metrics([group(0, answered(0.3, "1"), answered(1.0, "2"))], "d", 2, 2, (2,), (2,))
    assert not [name for name in metrics if "@" in name]


def test_versions_that_sampled() -> None:
    groups = [group(0, answered(1.0), answered(0.0), versions=(4,)), group(1, answered(1.0), versions=(4, 5))]
    assert version_metrics(groups, "d") == {
        "eval/d/oldest_version": 4.0,
        "eval/d/newest_version": 5.0,
        "eval/d/one_version_share": pytest.approx(2 / 3),
    }
    assert version_metrics([], "d") == {}


def test_the_line_of_a_set_is_about_that_set() -> None:
    metrics = {
        "num_samples": 8.0,
        "num_unscored": 0.0,
        "accuracy": 0.5,
        "pass@1": 0.5,
        "pass@4": 0.75,
        "pass@4_left_out": 1.0,
    }
    both = {f"eval/{name}/{key}": value for name in ("one", "two") for key, value in metrics.items()}
    assert found_line("two", both) == "accuracy 0.500, pass@4 0.750 on 8 held-out samples of two"
    none = {"eval/two/num_samples": 0.0, "eval/two/num_unscored": 3.0}
    assert found_line("two", both | none) == "none of 3 held-out samples of two was scored"
