"""``boxed_NAME`` for every registered name: a box with the right answer, in NAME's own form, has NAME's full score."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_x.api import AsyncRewardWrapper, ConfigError, DataError
from areal_x.reward import get_reward_fn, list_rewards, register_reward, registry
from areal_x.reward.boxed import boxed

WHOLE = st.integers(-(10**6), 10**6).map(str)
FRACTION = st.tuples(st.integers(1, 99), st.integers(2, 99)).map(lambda pair: rf"\frac{{{pair[0]}}}{{{pair[1]}}}")
ROOT = st.tuples(st.integers(2, 9), st.sampled_from([2, 3, 5, 7])).map(lambda pair: rf"{pair[0]}\sqrt{{{pair[1]}}}")
MATH = WHOLE | FRACTION | ROOT
WORDS = st.lists(st.sampled_from(["Paris", "blue", "river", "seven"]), min_size=1, max_size=3).map(" ".join)
ANSWERS: dict[str, tuple[st.SearchStrategy[str], float]] = {
    "arithmetic": (WHOLE, 1.0),
    "clevr_count_70k": (st.integers(0, 99).map(str), 1.0),
    "dapo": (MATH, 1.0),
    "deepscaler": (MATH, 1.0),
    "f1": (WORDS, 1.0),
    "geometry3k": (MATH, 1.0),
    "gsm8k": (WHOLE | FRACTION, 1.0),
    "math": (MATH, 1.0),
    "multiple_choice": (st.sampled_from("ABCD"), 1.0),
}
"""Right answers and the full score of each reward that compares an answer with a gold one."""
WITHOUT_GOLD = {"code", "judge", "length", "overlong", "random", "remote_rm", "repetition"}
REFUSED = {"composite", "cosine", "format"}
REGISTERED = [entry for entry in list_rewards() if entry.is_builtin]
NAMES = [(name, entry.name) for entry in REGISTERED if entry.name in ANSWERS for name in (entry.name, *entry.datasets)]


def value_of(returned: Any) -> float:
    return float(getattr(returned, "value", returned))


def test_every_built_in_reward_is_tried_here() -> None:
    assert {*ANSWERS, *WITHOUT_GOLD, *REFUSED} == {entry.name for entry in REGISTERED}


@pytest.mark.parametrize(("name", "registered"), NAMES)
@pytest.mark.parametrize("around", ["{}", "It may be 8. So {} at last", "<think>\\boxed{{1}} [2] Answer: 3</think>{}"])
def test_a_box_with_the_right_answer_has_the_full_score(name: str, registered: str, around: str) -> None:
    answers, full = ANSWERS[registered]
    reward = get_reward_fn(f"boxed_{name}")

    @settings(max_examples=8, deadline=None, derandomize=True)
    @given(answers)
    def check(answer: str) -> None:
        right = around.format(rf"\boxed{{{answer}}}")
        assert value_of(reward(prompt="q", completions=right, answer=answer)) == full, right

    check()


@pytest.mark.parametrize(
    ("name", "completion", "gold", "value"),
    [
        ("boxed_clevr_count_70k", r"[3] \boxed{4}", "3", 0.0),
        ("boxed_geometry3k", r"\boxed{2\sqrt{3}}", "3", 0.0),
        ("boxed_hiyouga/Geometry3K", r"\boxed{2\sqrt{3}}", r"2\sqrt{3}", 1.0),
        ("boxed_dapo-math-17k", r"\boxed{5}", "6", -1.0),
        ("BOXED_DeepScaleR-Preview-Dataset", r"\boxed{5}", "6", 0.0),
        ("boxed_gpqa", r"\boxed{\text{C}}", "B", 0.0),
    ],
)
def test_data_sets_and_wrong_answers(name: str, completion: str, gold: str, value: float) -> None:
    assert value_of(get_reward_fn(name)(prompt="q", completions=completion, answer=gold)) == value


@pytest.mark.parametrize("name", ["boxed_dapo-math-17k", "boxed_deepscaler-preview-dataset", "boxed_remote_rm"])
def test_slimes_verdicts_know_the_registered_name(name: str) -> None:
    """slime gives its graders the bare answer, in which they find no mark; its remote one gets the whole response."""
    if name == "boxed_remote_rm":
        inner = get_reward_fn("boxed_REMOTE_RM", urls="http://127.0.0.1:9/", compat="slime")
        assert type(inner).__name__ == "RemoteReward"
        return
    returned = get_reward_fn(name, compat="slime")(prompt="q", completions=r"</think>\boxed{5}", answer="5")
    assert (returned["score"] if isinstance(returned, dict) else returned) <= 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("boxed_boxed_math", "reward.fn='boxed_boxed_math': there is one last box only; write boxed_ once"),
        ("BOXED_Boxed_math", "reward.fn='BOXED_Boxed_math': there is one last box only"),
        ("boxed_", "reward.fn='boxed_' names no reward; write boxed_NAME"),
        ("boxed_nosuch", "reward.fn='boxed_nosuch' is unknown: there is no reward 'nosuch'; known: "),
        ("boxed_matt", "reward.fn='boxed_matt' is unknown: there is no reward 'matt'; did you mean 'math'"),
        *((f"boxed_{name}", f"reward.fn='boxed_{name}': '{name}' looks at more than an answer") for name in REFUSED),
    ],
)
def test_what_has_no_boxed_form_is_refused_in_the_words_written(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        get_reward_fn(name)
    assert str(error.value).startswith(message)


def find_the_box(completions: str, answer: str) -> float:
    return float(rf"\boxed{{{answer}}}" in completions)


def test_a_registered_reward_says_how_it_wants_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("_entries", "_name_of_dataset"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    register_reward("find_the_box", ["boxes"], boxed_as=registry.IN_A_BOX)(find_the_box)
    assert get_reward_fn("boxed_boxes")(completions=r"\boxed{1} \boxed{7}", answer="7") == 1.0
    assert get_reward_fn("boxed_boxes")(completions=r"\boxed{1} \boxed{7}", answer="1") == 0.0
    for wrong in ("Answer:", "{} or {}", "{", "{name}", 3):
        with pytest.raises(ConfigError, match="boxed_as="):
            register_reward("find_the_box", boxed_as=wrong)(find_the_box)  # type: ignore[arg-type]


class Patient:
    """What a reward object may have besides being called."""

    owns_deadline = True

    async def __call__(self, completions: str, answer: str) -> float:
        return float(completions == answer)

    def check_columns(self, columns: frozenset[str]) -> None:
        if "hint" in columns:
            raise DataError("a hint tells the answer")


def test_a_boxed_object_keeps_its_deadline_and_its_check() -> None:
    wrapped = boxed(Patient())
    assert wrapped.owns_deadline is True and not hasattr(wrapped, "start")
    with pytest.raises(DataError, match="a hint tells"):
        AsyncRewardWrapper(wrapped).check_columns({"answer", "hint"})
