"""The poison benchmark, small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pool_checks import LOOPS

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_poison.py"


@pytest.mark.parametrize(
    ("loop", "scale"), [(loop, 0.02) for loop in sorted(LOOPS)] + [pytest.param("asyncio", 1.0, marks=pytest.mark.soak)]
)
@pytest.mark.timeout(900)
def test_poison(loop, scale):
    # A worker of a busy machine may stand still for longer than half a second.
    deadline = 0.5 if scale == 1.0 else 3.0
    command = [sys.executable, str(SCRIPT), "--scale", str(scale), "--deadline", str(deadline), "--loop", loop]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    folder = os.environ.get("AREAL_X_SOAK_OUT")
    if folder and scale == 1.0:
        Path(folder).mkdir(parents=True, exist_ok=True)
        head = "# Misbehaving rewards in full number\n\nWritten by `make soak`.\n"
        text = f"{head}\n```text\n{done.stdout.rstrip()}\n```\n"
        (Path(folder) / "poison.md").write_text(text, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bench_poison: PASS" in done.stdout
