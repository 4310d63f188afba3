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

import argparse
import asyncio
import json
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--skip", type=int, default=40, help="first steps that are no steady state")
    parser.add_argument("--warm-steps", type=int, default=300, help="supervised steps before")
    parser.add_argument("--rounds", type=int, default=3, help="how often the terms are measured")
    parser.add_argument("--json", help="append one line of figures to this file")
    options = parser.parse_args()
    figures = asyncio.run(
        bound.measure(
            options.steps,
            options.rounds,
            options.warm_steps,
            options.skip,
            name="full_run_bound",
            asked=ASKED,
            overrides=CHANGES,
        )
    )
    bound.report(figures)
    if options.json:
        with open(options.json, "a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
