"""Try, be told, try again: one trajectory of several turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from areal_x.api.engine_api import Generator
from areal_x.api.errors import ConfigError, PromptTooLongError
from areal_x.api.records import TURNS, IntArray, ModelRequest, ModelResponse, SamplingParams, Trajectory
from areal_x.api.reward_api import as_reward
from areal_x.api.reward_base import Reward, score_response
from areal_x.api.reward_records import RewardOutcome
from areal_x.api.workflow_api import RolloutWorkflow
from areal_x.workflow.rendering import PromptRenderer, Tokenizer
from areal_x.workflow.texts import text_decoder

__all__ = ["MultiTurnWorkflow"]


class MultiTurnWorkflow(RolloutWorkflow):
    """Lets the model try again, told that it was wrong, until its reward is good or its turns are used up.

    The trajectory's reward is the last turn's, times ``turn_discount ** (turns - 1)``; its mask covers exactly the
    sampled tokens of all turns. Each turn's prompt is the ids of all turns before it with the feedback's ids appended.

    Args:
        reward_fn, tokenizer, sampling, prompt_key, system_prompt, chat_template: as for ``RLVRWorkflow``. In later
            turns the reward's ``prompt`` is the whole conversation so far, its ``completions`` the last turn.
        max_turns: turns at most.
        turn_discount: factor of the reward for each turn after the first.
        feedback: what the model is told; a user message, or plain text where ``chat_template`` is false.
        success_above: a value above this ends the episode. The value is the reward's part ``accuracy`` where the
            reward has one, so that partial credit for the form of a wrong answer ends nothing; else the reward itself.
    """

    def __init__(
        self,
        reward_fn: Reward | Callable[..., Any],
        tokenizer: Tokenizer,
        sampling: SamplingParams | None = None,
        prompt_key: str = "prompt",
        system_prompt: str | None = None,
        chat_template: bool = True,
        max_turns: int = 2,
        turn_discount: float = 0.9,
        feedback: str = "Your answer is wrong. Check each step and try again.",
        success_above: float = 0.0,
    ) -> None:
        if max_turns < 1:
            raise ConfigError(f"workflow.kwargs.max_turns={max_turns} must be at least 1")
        if not 0.0 <= turn_discount <= 1.0:
            raise ConfigError(f"workflow.kwargs.turn_discount={turn_discount} must lie between 0 and 1")
        self.reward = as_reward(reward_fn)
        if self.reward.is_group:
            raise ConfigError(
                f"reward {self.reward.name} scores whole groups, when all turns are over; MultiTurnWorkflow needs a "
                "score after each turn: use a reward of single samples, or RLVRWorkflow"
            )
        self.tokenizer = tokenizer
        self.sampling = sampling or SamplingParams()
        self.prompt_key = prompt_key
        self.max_turns = max_turns
        self.turn_discount = turn_discount
        self.success_above = success_above
        self.renderer = PromptRenderer(tokenizer, prompt_key, system_prompt, chat_template)
        self._decode = text_decoder(tokenizer)
        self.feedback_text = feedback
        self.feedback = self.renderer.render_feedback(feedback)

    async def arun_episode(self, engine: Generator, data: dict[str, Any]) -> Trajectory:
        """Run one episode of up to ``max_turns`` turns."""
        first = self.renderer.render(data)
        columns = {name: value for name, value in data.items() if name != self.prompt_key}
        text, ids = first.text, first.ids
        session: str | None = None
        responses: list[ModelResponse] = []
        completions: list[str] = []
        completion = ""
        while True:
            request = ModelRequest(ids, self.sampling)
            session = request.session_id = session or request.request_id
            try:
                response = await engine.agenerate(request)
            except PromptTooLongError:
                if not responses:
                    raise
                break
            responses.append(response)
            completion = self._decode(response.output_ids.tolist(), skip_special_tokens=True)
            completions.append(completion)
            outcome = await score_response(
                self.reward, response, prompt=text, completion=completion, columns=dict(columns)
            )
            if len(responses) == self.max_turns or outcome.value is None or self._is_success(outcome):
                break
            text, ids = self._next_prompt(text, response)
        trajectory = Trajectory.from_responses(responses, self._discounted(outcome, len(responses)), prompt=first.text)
        generated = trajectory.input_ids[len(first.ids) :]
        trajectory.completion = completion if len(responses) == 1 else self._decode(generated.tolist())
        trajectory.metadata[TURNS] = self._turns(completions)
        return trajectory

    def _turns(self, completions: list[str]) -> list[dict[str, str]]:
        """What came after the prompt, as chat messages."""
        turns: list[dict[str, str]] = []
        for completion in completions:
            if turns:
                turns.append({"role": "user", "content": self.feedback_text})
            turns.append({"role": "assistant", "content": completion})
        return turns

    def _is_success(self, outcome: RewardOutcome) -> bool:
        value = outcome.parts.get("accuracy", outcome.value)
        return value is not None and value > self.success_above

    def _next_prompt(self, text: str, response: ModelResponse) -> tuple[str, IntArray]:
        """The conversation so far and the feedback; the turn's end is not repeated where the model sampled it."""
        sampled, feedback = response.output_ids, self.feedback.ids
        if self.renderer.chat_template and len(sampled) and len(feedback) and sampled[-1] == feedback[0]:
            feedback = feedback[1:]
        turn = self._decode(np.concatenate([sampled, feedback]).tolist())
        return text + turn, np.concatenate([response.input_ids, sampled, feedback])

    def _discounted(self, outcome: RewardOutcome, turns: int) -> RewardOutcome:
        if outcome.value is None or turns == 1:
            return outcome
        factor = self.turn_discount ** (turns - 1)
        metadata = {**outcome.metadata, "last_turn_reward": outcome.value}
        values = {name: factor * value for name, value in outcome.values.items()}
        return replace(outcome, value=factor * outcome.value, values=values, metadata=metadata)
