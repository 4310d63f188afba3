"""One completion for one prompt: what was sampled is what is scored and trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from areal_x.api.errors import PromptTooLongError
from areal_x.api.records import NOT_GENERATED, SamplingParams
from areal_x.api.reward_api import AsyncRewardWrapper, RewardResult
from areal_x.reward.gsm8k import gsm8k
from areal_x.workflow.rlvr import RLVRWorkflow


async def test_a_trajectory_holds_the_exact_ids_and_the_outcome(chat_tokenizer: Any, scripted: Any) -> None:
    seen: dict[str, Any] = {}

    async def reward(**sample: Any) -> RewardResult:
        seen.update(sample)
        return RewardResult(0.5, parts={"accuracy": 1.0})

    sampled = [*chat_tokenizer("#### 72")["input_ids"], chat_tokenizer.eos_token_id]
    engine = scripted([sampled])
    sampling = SamplingParams(max_new_tokens=7)
    workflow = RLVRWorkflow(reward, chat_tokenizer, sampling, prompt_key="question")
    trajectory = await workflow.arun_episode(engine, {"question": "How many?", "answer": "#### 72", "level": 3})

    prompt = "<|user|>How many?<|end|><|assistant|>"
    prompt_ids = chat_tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert engine.requests[0].sampling is sampling
    assert trajectory.input_ids.tolist() == [*prompt_ids, *sampled]
    assert trajectory.loss_mask.tolist() == [False] * len(prompt_ids) + [True] * len(sampled)
    assert trajectory.logprobs[trajectory.loss_mask].tolist() == pytest.approx(
        [-0.1 * (i + 1) for i in range(len(sampled))]
    )
    assert trajectory.versions.tolist() == [NOT_GENERATED] * len(prompt_ids) + [0] * len(sampled)
    assert (trajectory.prompt, trajectory.completion, trajectory.stop_reason) == (prompt, "#### 72", "stop")
    assert trajectory.outcome is not None
    assert (trajectory.outcome.status, trajectory.outcome.value) == ("ok", 0.5)
    assert trajectory.outcome.parts == {"accuracy": 1.0}
    assert seen.pop("prompt_ids") is not None
    assert np.asarray(seen.pop("completion_ids")).tolist() == sampled
    assert seen == {"prompt": prompt, "completions": "#### 72", "answer": "#### 72", "level": 3}


async def test_bytes_that_are_no_text_are_trained_as_sampled(chat_tokenizer: Any, scripted: Any) -> None:
    cut = chat_tokenizer("é")["input_ids"][:1]
    trajectory = await RLVRWorkflow(_zero, chat_tokenizer).arun_episode(scripted([cut]), {"prompt": "a"})
    assert trajectory.input_ids[-1] == cut[0]
    assert trajectory.completion == "\ufffd"


async def _zero(completions: str) -> float:
    return 0.0


async def test_an_aborted_completion_is_never_scored(chat_tokenizer: Any, scripted: Any) -> None:
    async def reward(completions: str) -> float:
        raise AssertionError("scored")

    engine = scripted([[5, 6]], ["abort"])
    trajectory = await RLVRWorkflow(reward, chat_tokenizer).arun_episode(engine, {"prompt": "a"})
    assert trajectory.outcome is not None
    assert (trajectory.outcome.status, trajectory.outcome.value) == ("not_applicable", None)
    assert trajectory.stop_reason == "abort"


async def test_a_truncated_completion_is_scored(chat_tokenizer: Any, scripted: Any) -> None:
    engine = scripted([[5, 6]], ["length"])
    trajectory = await RLVRWorkflow(_zero, chat_tokenizer).arun_episode(engine, {"prompt": "a"})
    assert trajectory.outcome is not None
    assert trajectory.outcome.value == 0.0


async def test_a_failed_reward_is_an_outcome_not_a_number(chat_tokenizer: Any, scripted: Any) -> None:
    async def reward(completions: str) -> float:
        raise ValueError("a fault of the user's")

    trajectory = await RLVRWorkflow(reward, chat_tokenizer).arun_episode(scripted([[5]]), {"prompt": "a"})
    assert trajectory.outcome is not None
    assert (trajectory.outcome.status, trajectory.outcome.value) == ("error", None)
    assert "a fault of the user's" in str(trajectory.outcome.error)


async def test_a_prompt_without_room_comes_through(chat_tokenizer: Any, scripted: Any) -> None:
    with pytest.raises(PromptTooLongError):
        await RLVRWorkflow(_zero, chat_tokenizer).arun_episode(scripted([[5]], max_length=1), {"prompt": "a"})


async def test_a_synchronous_builtin_runs_in_the_pool(chat_tokenizer: Any, scripted: Any) -> None:
    wrapper = AsyncRewardWrapper(gsm8k, timeout_seconds=30.0, max_workers=1)
    workflow = RLVRWorkflow(wrapper, chat_tokenizer, prompt_key="question")
    values = []
    for text in ("#### 72", "#### 71"):
        engine = scripted([chat_tokenizer(text)["input_ids"]])
        trajectory = await workflow.arun_episode(engine, {"question": "How many?", "answer": "It is\n#### 72"})
        assert trajectory.outcome is not None
        values.append(trajectory.outcome.value)
    assert values == [1.0, 0.0]
