"""The shipped quickstart, whole, with five seeds: what the first page promises holds for each of them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from trainer_runs import run_command, values

ACCURACY = "eval/arithmetic/accuracy"
SEEDS = (1, 2, 3, 4, 5)
LOWEST_BEFORE, HIGHEST_BEFORE, LOWEST_AFTER, MOST_SECONDS = 0.2, 0.45, 0.9, 180.0
STEADY_AFTER = 5
"""Steps that do not count for the samples per second: the run is still starting up."""


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_five_seeds(tmp_path: Path) -> None:
    rows, misses = [], []
    for seed in SEEDS:
        folder = tmp_path / str(seed)
        folder.mkdir()
        started = time.monotonic()
        run = run_command(folder, "train", "--config-name", "quickstart", f"seed={seed}", timeout=MOST_SECONDS + 60)
        seconds = time.monotonic() - started
        assert run.status == 0, f"seed {seed}:\n{run.stderr}"
        accuracies = values(run.rows(), ACCURACY)
        before, after = accuracies[0], accuracies[-1]
        trained = [row for row in run.rows() if "reward/mean" in row][STEADY_AFTER:]
        num_samples = sum(row["perf/samples_per_second"] * row["perf/step_seconds"] for row in trained)
        speed = num_samples / sum(row["perf/step_seconds"] for row in trained)
        rows.append(f"| {seed} | {before:.3f} | {after:.3f} | {seconds:.0f} | {speed:.0f} |")
        if not (LOWEST_BEFORE <= before <= HIGHEST_BEFORE and after >= LOWEST_AFTER and seconds < MOST_SECONDS):
            misses.append(rows[-1])
    write_table(rows)
    assert not misses, "\n".join(misses)


def write_table(rows: list[str]) -> None:
    """Leave the figures in the folder that AREAL_X_SOAK_OUT names, if it names one; misses stand there too."""
    folder = os.environ.get("AREAL_X_SOAK_OUT")
    lines = [
        "# The quickstart with five seeds",
        "",
        "Written by `make soak`. Each row is one run of `areal-x train --config-name quickstart seed=N`, asked to",
        f"begin between {LOWEST_BEFORE} and {HIGHEST_BEFORE}, to end at {LOWEST_AFTER} or above, and to take less than "
        f"{MOST_SECONDS:.0f} seconds.",
        "Accuracy is on held-out items. Samples per second count from the sixth step on.",
        "",
        "| seed | accuracy before | accuracy after | seconds | samples/s |",
        "| --- | --- | --- | --- | --- |",
        *rows,
    ]
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "five_seeds.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(rows))
