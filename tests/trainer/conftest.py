"""Runs of the real command line, shared by the tests of this directory."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from trainer_runs import TINY_INIT, FinishedRun, run_command  # noqa: E402


@pytest.fixture(scope="session")
def small_quickstart(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The whole quickstart, shorter."""
    folder = tmp_path_factory.mktemp("quickstart")
    changes = ["sft.steps=350", "train.total_steps=40", "evaluation.limit=256", "evaluation.every_steps=20"]
    return run_command(folder, "train", "--config-name", "quickstart", *changes)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows nothing, with a tokenizer of characters."""
    from areal_x.engine.init_model import init_model

    return Path(init_model(tmp_path_factory.mktemp("model") / "tiny", texts=["0123456789+="], seed=1, **TINY_INIT))
