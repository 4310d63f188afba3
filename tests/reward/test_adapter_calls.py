"""Adapters: what each library's function is given, what becomes of what it returns, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from areal_x.api import (
    AsyncRewardWrapper,
    ConfigError,
    DataError,
    ModelResponse,
    RewardError,
    RewardResult,
    RewardSample,
    ScoredSample,
    score_response,
)
from areal_x.api.import_paths import LIBRARIES
from areal_x.api.reward_records import check_reward
from areal_x.reward import get_reward_fn
from areal_x.reward.adapters import adapt, adapt_post_process
from areal_x.reward.adapters.results import one_for_each, read_reward, to_number

FILE = Path(__file__).with_name("adapted_functions.py")
IDS = ([1, 2, 3], [4, 5])


def reward(library: str, function: str, dataset: str | None = None, **kwargs: Any) -> Any:
    return get_reward_fn(f"{library}:{FILE}:{function}", dataset=dataset, **kwargs)


def samples(*completions: str, **data: Any) -> list[RewardSample]:
    return [RewardSample("Q?", text, [1, 2], list(range(len(text))), dict(data)) for text in completions]


# -- slime ------------------------------------------------------------------------------------------------------------


async def test_slime_gets_args_and_a_sample():
    fields = ["prompt", "response", "tokens", "response_length", "label", "metadata", "index", "group_index"]
    rm = reward("slime", "slime_sees", fields=fields)
    result = await rm("Q?", "A", *IDS, answer="72", level=3, metadata={"rm_type": "math"})
    assert result == {
        "reward": 1.0,
        "kwargs": {},
        "prompt": "Q?",
        "response": "A",
        "tokens": [1, 2, 3, 4, 5],
        "response_length": 2.0,
        "label": "72",
        "metadata": {"level": 3, "rm_type": "math"},
        "index": None,
        "group_index": None,
    }


async def test_slime_label_is_the_named_column_or_label_or_answer_or_none():
    async def label(columns: dict[str, Any], **kwargs: Any) -> Any:
        return (await reward("slime", "slime_sees", fields=["label"], **kwargs)("", "", **columns))["label"]

    assert await label({"answer": "a", "label": "b", "gold": "c"}, label_key="gold") == "c"
    assert await label({"answer": "a", "label": "b"}) == "b"
    assert await label({"answer": "a"}) == "a"
    assert await label({"other": "a"}) is None
    with pytest.raises(DataError, match=r"label_key='gold' is no column of the data; it has: answer"):
        await label({"answer": "a"}, label_key="gold")


async def test_slime_args_hold_what_is_configured_and_name_the_place_of_what_is_not():
    with pytest.raises(AttributeError, match=r"args.rollout_max_response_len .* reward.kwargs"):
        await reward("slime", "slime_unknown_argument")("", "")
    assert await reward("slime", "slime_unknown_argument", rollout_max_response_len=7)("", "") == 7.0
    args = reward("slime", "slime_returns", value=1).adapter.args
    assert (getattr(args, "n", 4), args.group_rm, args.reward_key, vars(args)["value"]) == (4, False, None, 1)
    assert args.custom_rm_path == f"{FILE}:slime_returns"


def test_slime_groups_come_as_a_list_in_input_order():
    rm = reward("slime", "slime_echo", group=True, reward_key="score")
    assert rm.is_group_reward
    group = samples("a", "bb", "c", label="x")
    group[1].truncated = True
    results = rm(group)
    assert [result.value for result in results] == [0.0, 1.0, 2.0]
    assert [result.metadata["status"] for result in results] == ["completed", "truncated", "completed"]


async def test_slime_is_told_of_a_sample_that_was_cut_off():
    rm = reward("slime", "slime_sees", fields=["status"])
    response = ModelResponse("r", np.array([1]), np.array([2]), np.zeros(1, np.float32), [], "length")
    outcome = await score_response(AsyncRewardWrapper(rm), response, prompt="p", completion="c", columns={})
    assert outcome.metadata["status"].value == "truncated"


@pytest.mark.parametrize(
    ("value", "number"), [(True, 1.0), (np.bool_(False), 0.0), (2, 2.0), (np.float32(0.5), 0.5), (torch.tensor(3), 3.0)]
)
def test_slime_numbers_and_bools(value, number):
    result = reward("slime", "slime_returns", value=value)("", "")
    assert result == number and type(result) is float


def test_slime_dicts_are_read_at_the_reward_key():
    value = {"score": -1.0, "acc": False, "pred": "5", "length": 3, "odd": math.inf}
    result = reward("slime", "slime_returns", value=value, reward_key="score")("", "")
    parts = {"score": -1.0, "acc": 0.0, "length": 3.0}
    assert result == RewardResult(-1.0, parts, metadata={"pred": "5", "odd": math.inf})
    assert check_reward(result, "score", None).value == -1.0
    del value["odd"]
    chosen_later = reward("slime", "slime_returns", value=value)("", "")
    assert check_reward(chosen_later, "acc", None).value == 0.0
    with pytest.raises(KeyError, match="a dict without 'reward'; its keys: 'score', 'acc', 'pred'"):
        reward("slime", "slime_returns", value=value, reward_key="reward")("", "")
    assert reward("slime", "slime_returns", value=None)("", "") is None


@pytest.mark.parametrize("value", ["1.0", [1.0], (1.0, "x"), 1j, np.ones(2), torch.ones(1)])
def test_what_is_no_number_is_an_error_that_names_the_function(value):
    with pytest.raises(TypeError, match=r"what slime:.*adapted_functions.py:slime_returns returned is a \w+ .* number"):
        reward("slime", "slime_returns", value=value)("", "")


@pytest.mark.parametrize("value", [math.nan, -math.inf, {"score": math.nan}, torch.tensor(math.nan)])
def test_nan_and_infinity_never_count(value):
    result = reward("slime", "slime_returns", value=value)("", "")
    with pytest.raises(RewardError, match="finite"):
        check_reward(result, "score" if isinstance(value, dict) else "reward", None)


# -- slime's hook for a batch -----------------------------------------------------------------------------------------


BATCH = [
    ScoredSample("Q?", text, [1], [2], {"answer": "4"}, reward=reward, group_id=group_id, parts={"acc": 0.5})
    for text, reward, group_id in [("a", 1.0, 7), ("b", 0.0, 9), ("c", 3.0, 7)]
]


@pytest.mark.parametrize("kwargs", [{}, {"reward_key": "score"}])
def test_the_hook_sees_rewards_and_group_indices(kwargs):
    hook = adapt_post_process("slime", f"{FILE}:post_reward_key", kwargs)
    assert hook(BATCH) == ([1.0, 0.0, 3.0], [1.0, -1.0, 3.0])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (([1, 2, 3], [1, 2]), "processed_rewards of slime.* has 2 entries for 3 samples"),
        (([1, 2], [1, 2, 3]), "raw_rewards of slime.* has 2 entries for 3 samples"),
        ([1, 2, 3], r"returned a list, expected \(raw_rewards, processed_rewards\)"),
        (None, "returned a NoneType"),
        (([1, 2, 3], [1, 2, None]), "processed_rewards of slime.* is a NoneType"),
        (([1, 2, 3], 5), "processed_rewards of slime.* is a int, expected a list of 3"),
    ],
)
def test_a_hook_returns_two_lists_of_all_samples(value, message):
    with pytest.raises((TypeError, ValueError), match=message):
        adapt_post_process("slime", f"{FILE}:post_returns", {"value": value})(BATCH)


def test_only_slime_has_the_hook_and_it_is_plain():
    with pytest.raises(ConfigError, match="only slime has a hook"):
        adapt_post_process("trl", f"{FILE}:post_returns", {})
    with pytest.raises(ConfigError, match="is an async def; slime calls this hook without await"):
        adapt_post_process("slime", f"{FILE}:post_async", {})


# -- OpenRLHF ---------------------------------------------------------------------------------------------------------


def test_openrlhf_gets_lists_of_one_or_of_a_group():
    result = reward("openrlhf", "openrlhf_echo", label_key="gold")("Q?", "A", *IDS, gold="72")
    assert (result.value, result.parts) == (1.0, {"batch": 1.0})
    assert result.metadata == {"queries": "Q?A", "prompts": "Q?", "labels": "72"}
    results = reward("openrlhf", "openrlhf_echo", group=True)(samples("A", "B"))
    assert [result.metadata["queries"] for result in results] == ["Q?A", "Q?B"]
    assert [result.metadata["labels"] for result in results] == ["", ""]
    assert [result.parts["batch"] for result in results] == [2.0, 2.0]


@pytest.mark.parametrize("make", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_openrlhf_results_are_lists_or_tensors(make):
    value = {"rewards": make([0.5, -1.0]), "scores": make([True, False]), "extra_logs": {"len": make([3, 4])}}
    results = reward("openrlhf", "openrlhf_returns", group=True, value=value)(samples("A", "B"))
    assert results == [RewardResult(0.5, {"scores": 1.0, "len": 3.0}), RewardResult(-1.0, {"scores": 0.0, "len": 4.0})]
    assert reward("openrlhf", "openrlhf_returns", group=True, value=make([1, 2]))(samples("A", "B")) == [1.0, 2.0]


@pytest.mark.parametrize("value", [1, {"rewards": torch.tensor(1.0)}, {"rewards": [True], "scores": None}])
def test_openrlhf_takes_a_single_value_for_a_single_sample(value):
    assert reward("openrlhf", "openrlhf_returns", value=value)("Q?", "A") == 1.0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"rewards": [1.0]}, "'rewards' of openrlhf.* has 1 entries for 2 samples"),
        ({"rewards": torch.ones(3)}, "has 3 entries for 2 samples"),
        ({"rewards": 1.0}, "'rewards' of openrlhf.* is a float, expected a list of 2"),
        ({"rewards": torch.ones(2, 1)}, "is a list"),
        ({"scores": [1.0, 1.0]}, "without 'rewards'; its keys: 'scores'"),
        ({"rewards": [1, 2], "scores": [1]}, "'scores' of openrlhf.* has 1 entries"),
        ({"rewards": [1, 2], "extra_logs": {"a": [1]}}, r"extra_logs\['a'\] of openrlhf.* has 1 entries"),
        ({"rewards": [1, None]}, "is a NoneType"),
        (None, "is a NoneType, expected a list of 2"),
    ],
)
def test_openrlhf_counts_are_checked(value, message):
    with pytest.raises((TypeError, ValueError, KeyError), match=message):
        reward("openrlhf", "openrlhf_returns", group=True, value=value)(samples("A", "B"))


# -- TRL --------------------------------------------------------------------------------------------------------------


def test_trl_gets_the_group_and_repeated_columns():
    rm = reward("trl", "trl_echo")
    first, second, none = rm(samples("A", "BB", "C", answer="72", level=3))
    assert none is None
    assert (first.value, first.parts, first.metadata["seen"]) == (1.0, {}, ["Q?"] * 3)
    assert second.metadata["seen"] == ["A", "BB", "C"]
    assert (first.metadata["columns"], second.metadata["columns"]) == (["72"] * 3, [3] * 3)


def test_trl_messages_where_the_data_are_conversations():
    first, second, _ = reward("trl", "trl_echo", conversational=True)(samples("A", "B", "C", answer="", level=0))
    assert first.metadata["seen"] == [[{"role": "user", "content": "Q?"}]] * 3
    assert second.metadata["seen"][1] == [{"role": "assistant", "content": "B"}]


def test_trl_functions_may_take_less_and_be_called_for_one_sample():
    assert reward("trl", "trl_few_arguments")(samples("72", "7", answer="72", level=3)) == [1.0, 0.0]
    alone = reward("trl", "trl_few_arguments", group=False)
    assert not hasattr(alone, "is_group_reward")
    assert alone("Q?", "72", *IDS, answer="72", level=3) == 1.0


def test_trl_logs_become_parts_and_metadata():
    results = reward("trl", "trl_logs")(samples("A", "B"))
    assert [result.value for result in results] == [0.0, 1.0]
    assert results[1].parts == {"mean_length": 3.0, "odd": 1.0} and results[1].metadata == {"word": "B"}
    with_nan = reward("trl", "trl_logs", nan=True)(samples("A", "B"))[0]
    assert with_nan.parts == {"mean_length": 3.0} and math.isnan(with_nan.metadata["odd"])
    assert check_reward(with_nan, "reward", None).value == 0.0
    with pytest.raises(ValueError, match=r"log_extra\('word'\) of trl.* has 1 entries for 2 samples"):
        reward("trl", "trl_logs", short=True)(samples("A", "B"))


def test_trl_trainer_state_is_what_is_configured():
    assert reward("trl", "trl_step", trainer_state={"global_step": 7})(samples("A", "B")) == [7.0, 7.0]
    with pytest.raises(AttributeError, match=r"trainer_state.global_step is not known .*reward.kwargs.trainer_state"):
        reward("trl", "trl_step")(samples("A"))
    with pytest.raises(ConfigError, match="trainer_state=7 must be a mapping"):
        reward("trl", "trl_step", trainer_state=7)


@pytest.mark.parametrize("value", [[1.0], [1.0, 2.0, 3.0], 1.0, None, "ab", {"rewards": [1, 2]}, torch.ones(1)])
def test_trl_never_broadcasts(value):
    with pytest.raises((ValueError, TypeError), match=r"entries for 2 samples|expected a list of 2"):
        reward("trl", "trl_returns")(samples("A", "B", value=value))


def test_trl_models_are_refused():
    with pytest.raises(ConfigError, match="'trl:Qwen/Q3-RM' names a reward model, and those run in the training loop"):
        get_reward_fn("trl:Qwen/Q3-RM")
    with pytest.raises(ConfigError, match="is a reward model"):
        reward("trl", "model")


def test_trl_columns_are_checked_before_a_run():
    check = reward("trl", "trl_echo").check_columns
    check(frozenset({"answer", "level", "other"}))
    with pytest.raises(DataError, match=r"needs a column 'level' \(or reward.kwargs.level\); the data has: answer"):
        check(frozenset({"answer"}))
    with pytest.raises(DataError, match="column 'prompts' of the data has the name of an argument"):
        check(frozenset({"answer", "level", "prompts"}))
    reward("trl", "trl_echo", level=3).check_columns(frozenset({"answer"}))


# -- verl -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "kwargs", "dataset", "source", "gold", "extra"),
    [
        ({"answer": "1"}, {}, "gsm8k", "gsm8k", "1", {}),
        ({"answer": "1", "ground_truth": "2", "data_source": "own"}, {}, "gsm8k", "own", "2", {}),
        ({"reward_model": {"ground_truth": "3"}, "answer": "1", "extra_info": {"i": 1}}, {}, "d", "d", "3", {"i": 1}),
        ({"answer": "1", "gold": "4"}, {"label_key": "gold", "data_source": "x"}, "d", "x", "4", {}),
        ({"data_source": "own"}, {"ground_truth": "5"}, None, "own", "5", {}),
    ],
)
def test_verl_gets_its_columns(columns, kwargs, dataset, source, gold, extra):
    rm = reward("verl", "verl_echo", dataset, more="m", **kwargs)
    rm.check_columns(frozenset(columns))
    result = rm("Q?", "A", *IDS, **columns)
    assert result == RewardResult(
        1.0, {"score": 1.0}, metadata={"data_source": source, "gold": gold, "extra": extra, "more": "m"}
    )


def test_verl_data_without_source_or_gold_is_an_error():
    rm = reward("verl", "verl_echo")
    with pytest.raises(DataError, match=r"no column 'data_source'; set reward.kwargs.data_source or data.name"):
        rm.check_columns(frozenset({"answer"}))
    with pytest.raises(DataError, match="no column 'data_source'"):
        rm("Q?", "A", answer="1")
    for check in (lambda: rm.check_columns(frozenset({"data_source"})), lambda: rm("Q?", "A", data_source="d")):
        with pytest.raises(DataError, match="none of the columns reward_model"):
            check()


async def test_verl_batches():
    rm = reward("verl", "verl_batch", "gsm8k", group=True)
    results = await rm(samples("1", "2", answer="1"))
    assert [(result.value, result.parts) for result in results] == [
        (1.0, {"score": 1.0, "index": 0.0}),
        (0.0, {"score": 0.0, "index": 1.0}),
    ]
    with pytest.raises(ValueError, match="has 1 entries for 2 samples"):
        await reward("verl", "verl_batch", "gsm8k", group=True, drop=1)(samples("1", "2", answer="1"))


def test_verl_default_name_and_unknown_options(tmp_path):
    (tmp_path / "reward.py").write_text("def compute_score(data_source, solution_str, ground_truth): return 0.25")
    (tmp_path / "reward_func.py").write_text("def reward_func(queries, prompts, labels): return [0.5]")
    for spec in (f"verl:{tmp_path}/reward.py", f"verl:{tmp_path}/reward.py::compute_score"):
        assert get_reward_fn(spec, dataset="d")("Q?", "A", answer="1") == 0.25
    assert get_reward_fn(f"openrlhf:{tmp_path}/reward_func.py")("Q?", "A") == 0.5
    with pytest.raises(ConfigError, match=r"reward.kwargs.mor is not an argument of verl:.*; did you mean 'more'"):
        reward("verl", "verl_echo", mor=1)
    with pytest.raises(KeyError, match="a dict without 'score'; its keys: 'acc'"):
        reward("verl", "verl_returns", "d", value={"acc": 1.0})("Q?", "A", answer="1")


# -- AReaL ------------------------------------------------------------------------------------------------------------


def test_areal_arguments_go_by_position_and_columns_by_name():
    result = reward("areal", "areal_echo")("Q?", "A", *IDS, answer="1", level=3)
    assert check_reward(result, "reward", None).value == 5.0
    assert result["seen"] == ["Q?", "A", "1", ["level"]]
    rm = reward("areal", "areal_few", scale=2)
    assert rm("Q?", "1", *IDS, answer="1", level=3) == 2.0
    with pytest.raises(DataError, match="needs a column 'answer'"):
        rm.check_columns(frozenset({"level"}))
    with pytest.raises(ConfigError, match=r"reward.kwargs.prompt is not an argument"):
        reward("areal", "areal_few", prompt="x")
    with pytest.raises(ConfigError, match="AReaL has no rewards of groups"):
        reward("areal", "areal_few", group=True)


# -- all --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_library_has_an_adapter_and_refuses_what_is_no_function(library):
    with pytest.raises(ConfigError, match="is a str, expected a function"):
        reward(library, "not_a_function")
    with pytest.raises(ConfigError, match="is a class, expected a function"):
        reward(library, "SomeClass")
    with pytest.raises(ConfigError, match="has no 'missing'"):
        reward(library, "missing")


def test_unknown_libraries_and_bad_options():
    with pytest.raises(ConfigError, match="there is no adapter for 'slim'; did you mean 'slime'"):
        adapt("slim", "a.b", {})
    with pytest.raises(ConfigError, match=r"reward.kwargs.group='yes' .* must be true or false"):
        reward("slime", "slime_returns", group="yes")


def test_a_group_given_to_a_reward_of_samples_says_what_to_set():
    with pytest.raises(TypeError, match=r"set reward.kwargs.group=true"):
        reward("slime", "slime_returns", value=1)("Q?", ["A", "B"], samples=[])


def test_a_coroutine_from_a_plain_function_is_an_error():
    with pytest.raises(TypeError, match="is a plain def and returned a coroutine; make it async def"):
        reward("slime", "hands_back_a_coroutine")("Q?", "A")


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.floats(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.one_of(st.floats(), st.text(max_size=3)), max_size=3),
)


@given(anything)
def test_whatever_is_returned_is_a_finite_reward_or_a_typed_error(returned):
    try:
        checked = check_reward(read_reward(returned, "score", "it"), "reward", None)
    except (TypeError, KeyError, RewardError, OverflowError):
        assert returned is not None and not isinstance(returned, bool)
    else:
        assert (checked is None) == (returned is None)
        assert checked is None or math.isfinite(checked.value)


@given(st.one_of(st.lists(st.floats()), st.tuples(st.floats(), st.floats()), anything), st.integers(0, 5))
def test_one_for_each_gives_exactly_as_many(values, count):
    try:
        listed = one_for_each(values, count, "it")
    except (TypeError, ValueError):
        assert not isinstance(values, list | tuple) or len(values) != count
    else:
        assert len(listed) == count == len(values)


@given(st.one_of(st.booleans(), st.integers(-1000, 1000), st.floats(allow_nan=False)))
def test_numbers_keep_their_value(value):
    assert to_number(value, "it") == value
    assert to_number(np.float64(value), "it") == value
    assert to_number(torch.tensor(value, dtype=torch.float64), "it") == value
