"""The benchmark of a GPU, at a tiny shape on the CPU: all of it runs, and its count of operations is right."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import bench_gpu  # noqa: E402
from gpu_parts import PARTS, SHAPES, peak_flops  # noqa: E402

TINY = SHAPES["tiny"]


@pytest.mark.parametrize("part", PARTS)
def test_each_part_runs_and_reports(part: str, tmp_path: Path) -> None:
    found = PARTS[part](TINY, "cpu", tmp_path, 1)
    lines = bench_gpu.REPORTS[part](found, "cpu")
    assert lines and not any("FAIL" in line for line in lines), lines
    if part == "train":
        assert found["tokens"] == 2 * 4 * 64 and found["steps"]["gradient checkpointing"]["seconds"] > 0
        lines = bench_gpu.REPORTS[part](found, "NVIDIA H100 80GB HBM3")
        assert any("asked >= 45%" in line and "FAIL" in line for line in lines), "a CPU is no H100"


def test_the_formula_counts_what_pytorch_counts() -> None:
    """PyTorch counts attention whole, the formula its causal half; both leave the embedding out."""
    model = AutoModelForCausalLM.from_config(TINY.config(), attn_implementation="eager")
    ids = torch.zeros(1, 64, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    lengths = np.array([64])
    half_of_attention = 2 * TINY.layers * TINY.hidden * 64**2
    assert TINY.train_flops(64, lengths) / 3 == pytest.approx(counter.get_total_flops() - half_of_attention, rel=2e-3)


def test_peaks_are_those_of_the_device() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA Unheard-of 1") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py"])
    assert bench_gpu.main() == 2
    said = capsys.readouterr()
    assert "bench-gpu needs a CUDA device" in said.err and not said.out
