"""Fraction of the bound that a run with everything reaches in steady state.

    python benchmarks/bench_full_run_bound.py [--steps 100] [--rounds 3] [--json FILE]

The quickstart with a reference model (KL divergence in the loss), an evaluation every 10 steps, which goes on while the
policy trains, and a checkpoint every 5. All terms are measured as ``bench_quickstart_bound.py`` does, alone, on the
same batches:

* ``train`` has the reference's passes in it and the checkpoints: what they block, and what writing them in the
  background takes from the trainer;
* ``generation`` has each step's share of the requests of an evaluation in it.

The bound is the larger of the two, so that no schedule can be quicker; the baseline is the ceiling of two busy
processes on this machine.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import bench_quickstart_bound as bound

ASKED = 0.85
CHANGES = (
    "algorithm.kl_coefficient=0.01",
    "algorithm.kl_in=loss",
    "evaluation.every_steps=10",
    "checkpoint.every_steps=5",
)


def main() -> int:
    options = bound.bound_parser(__doc__).parse_args()
    figures = bound.measure_with(options, name="full_run_bound", asked=ASKED, overrides=CHANGES)
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
