"""Runs of the real command line, shared by the tests of this directory."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from trainer_runs import FinishedRun, run_command


@pytest.fixture(scope="session")
def small_quickstart(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The whole quickstart in small: half the model, fewer steps."""
    folder = tmp_path_factory.mktemp("quickstart")
    sizes = {"hidden_size": 128, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 384}
    changes = [f"model.init.{name}={size}" for name, size in sizes.items()]
    changes += ["sft.steps=350", "sft.learning_rate=3e-3", "train.learning_rate=4e-4", "train.total_steps=40"]
    changes += ["evaluation.limit=256", "evaluation.every_steps=20"]
    return run_command(folder, "train", "--config-name", "quickstart", *changes)
