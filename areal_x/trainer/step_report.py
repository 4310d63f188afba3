"""Writes and shows what a finished step did, while the next one trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from areal_x.api.records import FloatArray, IntArray, TrajectoryGroup
from areal_x.observe.display import RunDisplay
from areal_x.observe.run_writer import RunWriter
from areal_x.trainer.prompt_records import PromptRecords
from areal_x.trainer.reward_metrics import reward_metrics
from areal_x.trainer.rollout_metrics import SCORES
from areal_x.trainer.sample_records import sample_records

__all__ = ["FinishedStep", "StepReporter"]


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """A step that was trained on weights of ``version``. ``advantages``: one for each sample, in the groups' order.
    ``note``: what people should know of it, if anything."""

    step: int
    version: int
    groups: list[TrajectoryGroup]
    advantages: FloatArray
    metrics: dict[str, float]
    note: str | None = None


class StepReporter:
    """Reports finished steps to the files of the run and to the people who watch.

    Args:
        decode_tokens: the text of each token of a sequence.
        num_samples: how many samples of a step are written, -1 for all.
        reward_totals: running totals of the reward's own (calls, tokens, cost), reported as ``scoring/<total>``.
        prompts: writes the fates of prompts.
        earlier: what ``totals`` gave when an earlier run stopped, which goes on here.
    """

    def __init__(
        self,
        writer: RunWriter,
        display: RunDisplay,
        decode_tokens: Callable[[IntArray], list[str]],
        num_samples: int,
        reward_totals: Callable[[], dict[str, float]] = dict,
        prompts: PromptRecords | None = None,
        earlier: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        self._writer = writer
        self._display = display
        self._decode_tokens = decode_tokens
        self._num_samples = num_samples
        self._reward_totals = reward_totals
        self._prompts = prompts
        self._totals: dict[str, float] = dict((earlier or {}).get("scores", {}))
        self._earlier_rewards = dict((earlier or {}).get("rewards", {}))

    def add_span(self, lane: str, name: str, start: float, end: float) -> None:
        """Report that ``lane`` did ``name`` from ``start`` to ``end`` (``time.monotonic()`` seconds)."""
        self._writer.add_span(lane, name, start, end)

    def report(self, finished: FinishedStep) -> None:
        """Write the samples and metrics of one step, and print its line."""
        records = sample_records(
            finished.groups,
            finished.advantages,
            self._decode_tokens,
            step=finished.step,
            version=finished.version,
            count=self._num_samples,
        )
        metrics: dict[str, float] = {"step": finished.step, "version": finished.version}
        metrics |= finished.metrics | reward_metrics(finished.groups) | self._outcomes(finished)
        metrics |= {f"scoring/{name}": value for name, value in self.totals()["rewards"].items()}
        self._writer.write_trajectories(records)
        if self._prompts is not None:
            self._prompts.write(finished.step, finished.version, finished.groups)
        self._writer.write_step(metrics)
        self._display.step(metrics)
        if metrics.get("rollout/missing_groups"):
            self._display.print(_missing_line(metrics, len(finished.groups)))
        if finished.note is not None:
            self._display.print(finished.note)

    def totals(self) -> dict[str, dict[str, float]]:
        """The running totals that the next step is compared with, for a run that goes on from here."""
        rewards = {name: value + self._earlier_rewards.get(name, 0.0) for name, value in self._reward_totals().items()}
        return {"scores": dict(self._totals), "rewards": self._earlier_rewards | rewards}

    def _outcomes(self, finished: FinishedStep) -> dict[str, float]:
        """How the scores since the step before ended, as ``outcome/<status>``, whatever became of their groups; and of
        the samples that were trained, the reasons of verdicts as ``outcome/ok/<reason>``."""
        counts: Counter[str] = Counter()
        for name, total in finished.metrics.items():
            if name.startswith(SCORES):
                counts[f"outcome/{name.removeprefix(SCORES)}"] = int(total - self._totals.get(name, 0.0))
                self._totals[name] = total
        num_scores = counts.total()
        num_good = counts["outcome/ok"] + counts["outcome/not_applicable"]
        rate = {"outcome/failure_rate": 1.0 - num_good / num_scores} if num_scores else {}
        for group in finished.groups:
            for trajectory in group.trajectories:
                if trajectory.outcome is not None and (reason := trajectory.outcome.metadata.get("reason")):
                    counts[f"outcome/ok/{reason}"] += 1
        return {name: float(count) for name, count in counts.items()} | rate


def _missing_line(metrics: Mapping[str, float], num_groups: int) -> str:
    """Which part of a step is missing, and why."""
    prefix = "rollout/rejected_share/"
    shares = {name.removeprefix(prefix): share for name, share in metrics.items() if name.startswith(prefix)}
    missing = int(metrics["rollout/missing_groups"])
    reasons = ", ".join(f"{reason} {share:.0%}" for reason, share in shares.items())
    what = f"trained on {num_groups} of {num_groups + missing} groups" if num_groups else "nothing to train"
    redraws = f"after {metrics['rollout/redraws']:.0f} redraws the rest stays rejected"
    return f"step {metrics['step']:.0f}: {what}; {redraws} ({reasons})"
