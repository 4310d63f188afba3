"""What a reward function for slime gets of one completion: the fields and methods of slime's ``Sample``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

__all__ = ["Sample"]


class _Status(Enum):
    PENDING = "pending"
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    ABORTED = "aborted"
    FAILED = "failed"


_STATUS_OF_FINISH_REASON = {"length": _Status.TRUNCATED, "abort": _Status.ABORTED, "stop": _Status.COMPLETED}


@dataclass
class Sample:
    """One completion. Fields that only slime's engines fill in keep their defaults."""

    Status = _Status

    group_index: int | None = None
    index: int | None = None
    rollout_id: int | None = None
    prompt: str | list[dict[str, Any]] = ""
    tokens: list[int] = field(default_factory=list)
    """Ids of the prompt and the response."""
    multimodal_inputs: dict[str, Any] | None = None
    multimodal_train_inputs: dict[str, Any] | None = None
    multimodal_train_inputs_id: Any = None
    apply_chat_template_kwargs: dict[str, Any] | None = None
    response: str = ""
    response_length: int = 0
    """Number of tokens of the response."""
    label: Any = None
    reward: float | dict[str, Any] | None = None
    loss_mask: list[int] | None = None
    """One for each token of the response: 1 if it is trained."""
    weight_versions: list[str] = field(default_factory=list)
    rollout_log_probs: list[float] | None = None
    rollout_top_p_token_ids: list[Any] | None = None
    rollout_top_p_token_offsets: list[int] | None = None
    rollout_routed_experts: Any = None
    remove_sample: bool = False
    teacher_log_probs: list[float] | None = None
    status: _Status = _Status.PENDING
    metadata: dict[str, Any] = field(default_factory=dict)
    generate_function_path: str | None = None
    custom_rm_path: str | None = None
    train_metadata: dict[str, Any] | None = None
    session_id: str | None = None
    non_generation_time: float = 0.0
    spec_info: dict[str, Any] = field(default_factory=dict)
    prefix_cache_info: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All attributes by name, those that were added, too; the status as its text."""
        return {**vars(self), "status": self.status.value}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Sample:
        """The sample that ``to_dict`` wrote. Unknown keys become attributes."""
        names = {entry.name for entry in dataclasses.fields(Sample)}
        sample = Sample(**{key: value for key, value in data.items() if key in names})
        sample.status = _Status(data["status"])
        for key in data.keys() - names:
            setattr(sample, key, data[key])
        return sample

    def get_reward_value(self, args: Any) -> Any:
        """The reward, or its entry ``args.reward_key``."""
        if not args.reward_key:
            return self.reward
        if not isinstance(self.reward, Mapping):
            raise TypeError(f"args.reward_key is {args.reward_key!r}, but the sample's reward is {self.reward!r}")
        return self.reward[args.reward_key]

    @property
    def effective_response_length(self) -> int:
        """Number of tokens of the response that are trained."""
        return self.response_length if self.loss_mask is None else sum(self.loss_mask)

    def append_response_tokens(
        self,
        args: Any,
        *,
        tokens: list[int],
        log_probs: list[float] | None = None,
        trainable: bool = True,
        meta_info: Mapping[str, Any] | None = None,
        text: str | None = None,
        update_terminal_info: bool = False,
    ) -> None:
        """Append tokens to the response; ``loss_mask`` and ``rollout_log_probs`` stay as long as it is.

        Args:
            args: slime's; not used here.
            tokens: ids.
            log_probs: one for each token. Trainable tokens need them; those of tools get 0.0.
            trainable: whether the model sampled them.
            meta_info: what the engine said; its ``finish_reason`` sets the status if ``update_terminal_info``.
            text: appended to ``response``.

        Raises:
            ValueError: log-probabilities are missing, or their number is not that of the tokens.
        """
        if log_probs is None:
            if trainable and tokens:
                raise ValueError(f"{len(tokens)} trainable tokens were appended without log_probs")
            log_probs = [0.0] * len(tokens)
        if len(log_probs) != len(tokens):
            raise ValueError(f"{len(tokens)} tokens were appended with {len(log_probs)} log_probs")
        mask = [1] * self.response_length if self.loss_mask is None else self.loss_mask
        known = [0.0] * self.response_length if self.rollout_log_probs is None else self.rollout_log_probs
        for name, values in (("loss_mask", mask), ("rollout_log_probs", known)):
            if len(values) != self.response_length:
                raise ValueError(f"{name} has {len(values)} entries, the response {self.response_length} tokens")
        self.loss_mask = [*mask, *[int(trainable)] * len(tokens)]
        self.rollout_log_probs = [*known, *log_probs]
        self.tokens = [*self.tokens, *tokens]
        self.response_length += len(tokens)
        self.response += text or ""
        if update_terminal_info and meta_info is not None:
            self.status = _STATUS_OF_FINISH_REASON.get(meta_info["finish_reason"]["type"], self.status)
