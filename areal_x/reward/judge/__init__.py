"""A language model as a reward: ``LLMJudge``, registered as ``judge``."""

from areal_x.reward.judge.errors import (
    JudgeDeadlineError,
    JudgeError,
    JudgeReplyError,
    JudgeRequestError,
    JudgeUnavailableError,
)
from areal_x.reward.judge.llm_judge import LLMJudge

__all__ = [
    "JudgeDeadlineError",
    "JudgeError",
    "JudgeReplyError",
    "JudgeRequestError",
    "JudgeUnavailableError",
    "LLMJudge",
]
