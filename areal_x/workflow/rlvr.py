"""The plain workflow: prompt → completion → reward → trajectory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from areal_x.api.engine_api import Generator
from areal_x.api.records import ModelRequest, SamplingParams, Trajectory
from areal_x.api.reward_api import as_reward
from areal_x.api.reward_base import Reward, score_response
from areal_x.api.workflow_api import RolloutWorkflow
from areal_x.workflow.rendering import PromptRenderer, Tokenizer
from areal_x.workflow.texts import text_decoder

__all__ = ["RLVRWorkflow"]


class RLVRWorkflow(RolloutWorkflow):
    """One completion for one prompt, scored by a reward that can be checked.

    Token ids go to the engine and come from it; text is decoded for the reward only and never encoded again.

    Args:
        reward_fn: a reward function, or a ``Reward`` (``AsyncRewardWrapper``, ``RewardSet``). It gets ``prompt`` (the
            rendered text), ``completions`` (without special tokens), ``prompt_ids``, ``completion_ids`` and all other
            columns by name.
        tokenizer: a Hugging Face tokenizer.
        sampling: how to sample.
        prompt_key: the column of the prompt; the reward does not get it again.
        system_prompt: put before text prompts as a system message.
        chat_template: false: a text prompt goes to the model as it is.
    """

    def __init__(
        self,
        reward_fn: Reward | Callable[..., Any],
        tokenizer: Tokenizer,
        sampling: SamplingParams | None = None,
        prompt_key: str = "prompt",
        system_prompt: str | None = None,
        chat_template: bool = True,
    ) -> None:
        self.reward = as_reward(reward_fn)
        self.tokenizer = tokenizer
        self.sampling = sampling or SamplingParams()
        self.prompt_key = prompt_key
        self._decode = text_decoder(tokenizer)
        self.renderer = PromptRenderer(tokenizer, prompt_key, system_prompt, chat_template)

    async def arun_episode(self, engine: Generator, data: dict[str, Any]) -> Trajectory:
        """Sample and score one completion. What the engine aborted is never scored."""
        prompt = self.renderer.render(data)
        response = await engine.agenerate(ModelRequest(prompt.ids, self.sampling))
        text = self._decode(response.output_ids.tolist(), skip_special_tokens=True)
        columns = {name: value for name, value in data.items() if name != self.prompt_key}
        outcome = await score_response(self.reward, response, prompt=prompt.text, completion=text, columns=columns)
        return Trajectory.from_response(response, outcome, prompt=prompt.text, completion=text)
