"""Fraction of the bound that a run with a reward model in the loop reaches in steady state.

    python benchmarks/bench_reward_model_bound.py [--steps 100] [--rounds 3] [--json FILE]

The quickstart with a reward model of the policy's own size, offloaded after each step, beside its rule reward. All
terms are measured as ``bench_quickstart_bound.py`` does, alone, on the same batches; the trainer's term has the reward
model in it: rendering, loading, scoring and offloading. The bound is the larger of that and generation, so that no
schedule can be quicker; the baseline is the ceiling of two busy processes on this machine.

A step with reward models is taken whole, because the filter is asked after the scores.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import bench_quickstart_bound as bound
import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForSequenceClassification

from areal_x.engine.init_model import init_model
from areal_x.launch.compose import ConfigSource, compose_config

ASKED = 0.85


def make_reward_model(folder: Path) -> Path:
    """A random sequence classification model of the quickstart's shape."""
    sizes = dict(compose_config(ConfigSource.named("quickstart"), []).model.init or {})
    base = init_model(folder / "base", **sizes)
    config: Any = AutoConfig.from_pretrained(base, num_labels=1)
    torch.manual_seed(0)
    Qwen3ForSequenceClassification(config).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "model")
    return folder / "model"


def main() -> int:
    options = bound.bound_parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        model = make_reward_model(Path(temporary))
        changes = [f"reward_model.path={model}", "reward_model.chat_template=false", "reward_model.weight=0.1"]
        figures = bound.measure_with(options, name="reward_model_bound", asked=ASKED, overrides=changes)
    print(f"  reward model, in the run       {figures['reward_model_ms']:7.1f} ms   (part of train)")
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
