"""The poison benchmark, small."""

from __future__ import annotations

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
    command = [sys.executable, str(SCRIPT), "--scale", str(scale), "--loop", loop]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bench_poison: PASS" in done.stdout
