"""Math graders: Math-Verify made fast and bounded, and slime's graders by their names.

```
completion ──after_thinking──▶ find_answer ──▶ refusal? ──▶ compare (plain cases) ──▶ bounded child: Math-Verify
                                                  │ a verdict with a reason                │ deadline, memory: a verdict
```
"""

from areal_x.reward.math.bounded_child import ChildError, LimitReached, Limits, run_bounded
from areal_x.reward.math.math_reward import MathReward
from areal_x.reward.math.slime_rewards import DapoReward, DeepScalerReward

__all__ = ["ChildError", "DapoReward", "DeepScalerReward", "LimitReached", "Limits", "MathReward", "run_bounded"]
