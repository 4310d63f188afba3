"""Several turns are one trajectory whose mask covers exactly what was sampled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_x.api.errors import ConfigError, PromptTooLongError
from areal_x.workflow.multi_turn import MultiTurnWorkflow


async def accuracy(completions: str, answer: str) -> float:
    return float(completions == answer)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]


async def test_a_wrong_turn_is_told_and_tried_again(chat_tokenizer: Any, scripted: Any) -> None:
    engine = scripted([_ids(chat_tokenizer, "wrong"), _ids(chat_tokenizer, "right")])
    workflow = MultiTurnWorkflow(accuracy, chat_tokenizer, max_turns=3, turn_discount=0.9, feedback="again")
    trajectory = await workflow.arun_episode(engine, {"prompt": "How many?", "answer": "right"})

    text = "<|user|>How many?<|end|><|assistant|>wrong<|end|><|user|>again<|end|><|assistant|>right<|end|>"
    assert trajectory.input_ids.tolist() == chat_tokenizer(text, add_special_tokens=False)["input_ids"]
    sampled = trajectory.input_ids[trajectory.loss_mask]
    assert sampled.tolist() == [*_ids(chat_tokenizer, "wrong"), *_ids(chat_tokenizer, "right")]
    assert set(trajectory.versions[trajectory.loss_mask].tolist()) == {0, 1}
    assert (trajectory.logprobs[~trajectory.loss_mask] == 0).all()
    assert (trajectory.logprobs[trajectory.loss_mask] < 0).all()
    assert trajectory.outcome is not None
    assert trajectory.outcome.value == pytest.approx(0.9)
    assert trajectory.outcome.metadata["last_turn_reward"] == 1.0
    assert trajectory.num_turns == 2
    assert trajectory.prompt + trajectory.completion == text
    assert trajectory.metadata["turns"] == [
        {"role": "assistant", "content": "wrong"},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": "right"},
    ]
    assert engine.requests[0].session_id == engine.requests[1].session_id is not None


@pytest.mark.parametrize(("answers", "turns", "value"), [(["right"], 1, 1.0), (["no", "no", "no"], 3, 0.0)])
async def test_turns_end_with_success_or_when_they_are_used_up(
    chat_tokenizer: Any, scripted: Any, answers: list[str], turns: int, value: float
) -> None:
    engine = scripted([_ids(chat_tokenizer, text) for text in answers])
    workflow = MultiTurnWorkflow(accuracy, chat_tokenizer, max_turns=3)
    trajectory = await workflow.arun_episode(engine, {"prompt": "How many?", "answer": "right"})
    assert len(engine.requests) == trajectory.num_turns == turns
    assert trajectory.outcome is not None
    assert trajectory.outcome.value == value


async def test_partial_credit_goes_on_below_the_success_mark(chat_tokenizer: Any, scripted: Any) -> None:
    async def partial(completions: str) -> float:
        return {"wrong": 0.2, "right": 1.0}[completions]

    answers = [_ids(chat_tokenizer, "wrong"), _ids(chat_tokenizer, "right")]
    for mark, turns in ((0.0, 1), (0.2, 2)):
        workflow = MultiTurnWorkflow(partial, chat_tokenizer, success_above=mark)
        trajectory = await workflow.arun_episode(scripted(answers), {"prompt": "a"})
        assert trajectory.num_turns == turns


async def test_the_form_of_a_wrong_answer_ends_nothing(chat_tokenizer: Any, scripted: Any) -> None:
    async def composite(completions: str) -> dict[str, float]:
        right = float(completions == "right")
        return {"reward": 0.2 + 0.8 * right, "format": 1.0, "accuracy": right}

    answers = [_ids(chat_tokenizer, "wrong"), _ids(chat_tokenizer, "right")]
    workflow = MultiTurnWorkflow(composite, chat_tokenizer, max_turns=3)
    trajectory = await workflow.arun_episode(scripted(answers), {"prompt": "a"})
    assert trajectory.num_turns == 2
    assert trajectory.outcome is not None
    assert trajectory.outcome.value == pytest.approx(0.9)


async def test_a_turn_that_was_cut_is_closed_by_the_template(chat_tokenizer: Any, scripted: Any) -> None:
    cut = chat_tokenizer("wron")["input_ids"]
    engine = scripted([cut, _ids(chat_tokenizer, "right")], ["length", "stop"])
    workflow = MultiTurnWorkflow(accuracy, chat_tokenizer, feedback="again")
    trajectory = await workflow.arun_episode(engine, {"prompt": "a", "answer": "right"})
    assert trajectory.completion == "wron<|end|><|user|>again<|end|><|assistant|>right<|end|>"
    assert trajectory.loss_mask.sum() == len(cut) + len(_ids(chat_tokenizer, "right"))


async def test_plain_text_gets_the_feedback_as_it_is(plain_tokenizer: Any, scripted: Any) -> None:
    engine = scripted([plain_tokenizer("72")["input_ids"], plain_tokenizer("24")["input_ids"]])
    workflow = MultiTurnWorkflow(accuracy, plain_tokenizer, chat_template=False, feedback=" wrong ")
    trajectory = await workflow.arun_episode(engine, {"prompt": "48", "answer": "24"})
    assert (trajectory.prompt, trajectory.completion) == ("48", "72 wrong 24")


async def test_no_room_for_another_turn_keeps_the_turns_there_are(chat_tokenizer: Any, scripted: Any) -> None:
    engine = scripted([_ids(chat_tokenizer, "wrong"), []], max_length=12)
    workflow = MultiTurnWorkflow(accuracy, chat_tokenizer)
    trajectory = await workflow.arun_episode(engine, {"prompt": "a", "answer": "right"})
    assert trajectory.num_turns == 1
    assert trajectory.completion == "wrong"
    assert trajectory.outcome is not None
    assert trajectory.outcome.value == 0.0
    with pytest.raises(PromptTooLongError):
        await workflow.arun_episode(scripted([[5]], max_length=1), {"prompt": "a", "answer": "right"})


async def test_a_failed_score_or_an_abort_ends_the_episode(chat_tokenizer: Any, scripted: Any) -> None:
    async def broken(completions: str) -> float:
        raise ValueError("broken")

    data = {"prompt": "a", "answer": "right"}
    trajectory = await MultiTurnWorkflow(broken, chat_tokenizer).arun_episode(scripted([[5]]), data)
    assert trajectory.outcome is not None
    assert (trajectory.outcome.status, trajectory.num_turns) == ("error", 1)
    trajectory = await MultiTurnWorkflow(accuracy, chat_tokenizer).arun_episode(scripted([[5]], ["abort"]), data)
    assert trajectory.outcome is not None
    assert (trajectory.outcome.status, trajectory.num_turns) == ("not_applicable", 1)


async def test_later_turns_are_scored_with_the_conversation_as_prompt(chat_tokenizer: Any, scripted: Any) -> None:
    prompts: list[tuple[str, list[int]]] = []

    async def reward(prompt: str, prompt_ids: Any) -> float:
        prompts.append((prompt, np.asarray(prompt_ids).tolist()))
        return 0.0

    engine = scripted([_ids(chat_tokenizer, "wrong")] * 3)
    await MultiTurnWorkflow(reward, chat_tokenizer, max_turns=3, feedback="x").arun_episode(engine, {"prompt": "a"})
    assert [text for text, _ in prompts] == [
        "<|user|>a<|end|><|assistant|>" + "wrong<|end|><|user|>x<|end|><|assistant|>" * turn for turn in range(3)
    ]
    assert [ids for _, ids in prompts] == [request.input_ids.tolist() for request in engine.requests]


@pytest.mark.parametrize("options", [{"max_turns": 0}, {"turn_discount": 1.5}])
def test_wrong_options_fail_at_construction(chat_tokenizer: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        MultiTurnWorkflow(accuracy, chat_tokenizer, **options)


@settings(max_examples=50, deadline=None)
@given(turns=st.lists(st.lists(st.integers(0, 299), max_size=6), min_size=1, max_size=4))
async def test_the_mask_covers_exactly_the_sampled_tokens(
    chat_tokenizer: Any, scripted: Any, turns: list[list[int]]
) -> None:
    async def never(completions: str) -> float:
        return 0.0

    workflow = MultiTurnWorkflow(never, chat_tokenizer, max_turns=len(turns))
    trajectory = await workflow.arun_episode(scripted(turns), {"prompt": "How many?"})
    assert trajectory.input_ids[trajectory.loss_mask].tolist() == [token for turn in turns for token in turn]
    versions = [turn for turn, tokens in enumerate(turns) for _ in tokens]
    assert trajectory.versions[trajectory.loss_mask].tolist() == versions
