"""Runs of the real command line, shared by the tests of this directory."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from trainer_runs import FinishedRun, run_command


@pytest.fixture(scope="session")
def small_quickstart(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The whole quickstart, shorter."""
    folder = tmp_path_factory.mktemp("quickstart")
    changes = ["sft.steps=350", "train.total_steps=40", "evaluation.limit=256", "evaluation.every_steps=20"]
    return run_command(folder, "train", "--config-name", "quickstart", *changes)
