"""The result of a check: its figures and findings, for people, for notebooks and as JSON."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from areal_x.api.errors import ConfigError
from areal_x.api.reward_records import RewardOutcome
from areal_x.launch.reward_check import summary
from areal_x.launch.reward_check.finding import Finding
from areal_x.launch.reward_check.options import CheckOptions
from areal_x.launch.reward_check.runs import Runs
from areal_x.launch.reward_check.samples import CheckData, Sample

__all__ = ["RewardReport", "write_json"]


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """Write reports as JSON.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        Path(path).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error


@dataclass
class RewardReport:
    """What a check of a reward found. Shown as tables by ``print(report)`` and as the last line of a notebook cell."""

    reward: str
    data: CheckData
    options: CheckOptions
    name: str = ""
    """What messages of the wrapper call the reward."""
    is_async: bool = False
    is_group: bool = False
    samples: list[Sample] = field(default_factory=list)
    runs: Runs = field(default_factory=Runs)
    seconds: float = 0.0
    """Wall time of all runs."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def outcomes(self) -> list[RewardOutcome]:
        """Of the first run, in the samples' order; empty if the reward could not be started."""
        return self.runs.outcomes[0] if self.runs.outcomes else []

    @property
    def scores(self) -> list[float]:
        """The scores of the first run."""
        return [outcome.value for outcome in self.outcomes if outcome.value is not None]

    @functools.cached_property
    def call_seconds(self) -> list[float]:
        """Time of each call that began, of all runs; a group's call counts once for each of its samples."""
        return [outcome.seconds for outcomes in self.runs.outcomes for outcome in outcomes]

    @functools.cached_property
    def agreement(self) -> summary.Agreement:
        """Scores of the first run against what was expected."""
        return summary.agreement(self.samples, self.outcomes, self.options.threshold)

    @functools.cached_property
    def differing(self) -> list[int]:
        """Indices of samples whose score is not the same in every run."""
        return summary.differing(self.runs.outcomes)

    @property
    def ok(self) -> bool:
        """No finding is an error."""
        return not any(finding.severity == "error" for finding in self.findings)

    def finding_names(self) -> set[str]:
        """The kinds of mistakes that were found."""
        return {finding.name for finding in self.findings}

    def of_kind(self, kind: str) -> list[tuple[Sample, RewardOutcome]]:
        """Samples of one kind with their outcomes in the first run."""
        return [pair for pair in zip(self.samples, self.outcomes, strict=False) if pair[0].kind == kind]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the texts, as JSON values."""
        times = self.call_seconds
        return {
            "reward": self.reward,
            "data": self.data.source,
            "ok": self.ok,
            "findings": [asdict(finding) for finding in self.findings],
            "num_items": len({sample.item for sample in self.samples}),
            "num_runs": len(self.runs.outcomes),
            "seconds": self.seconds,
            "outcomes": summary.status_counts(self.runs.outcomes),
            "score": asdict(summary.Spread.of(self.scores)) if self.scores else None,
            "parts": {name: asdict(spread) for name, spread in summary.parts_of(self.outcomes).items()},
            "call_seconds": {
                name: summary.percentile(times, share) if times else None
                for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
            },
            "totals": self.runs.totals,
            "agreement": {"agreed": self.agreement.agreed, "known": self.agreement.known},
            "differing": self.differing,
            "samples": [self._sample_dict(index) for index in range(len(self.outcomes))],
        }

    def _sample_dict(self, index: int) -> dict[str, Any]:
        sample, outcome = self.samples[index], self.outcomes[index]
        return {
            "item": sample.item,
            "kind": sample.kind,
            "status": outcome.status,
            "score": outcome.value,
            "expected": sample.expected,
            "seconds": outcome.seconds,
            "parts": outcome.parts,
            "error": outcome.error,
        }

    def write_json(self, path: str | Path) -> None:
        """Write ``to_dict()`` to a file.

        Raises:
            ConfigError: the file cannot be written.
        """
        write_json(path, self.to_dict())

    def __str__(self) -> str:
        from areal_x.launch.reward_check.table import render_text

        return render_text(self)

    def _repr_html_(self) -> str:
        from areal_x.launch.reward_check.table import render_html

        return render_html(self)

    def __repr__(self) -> str:
        errors = sum(finding.severity == "error" for finding in self.findings)
        found = f"{errors} errors in {len(self.findings)} findings"
        return f"RewardReport({self.reward}, {len(self.samples)} completions, {found})"
