"""Run algorithms side by side on the task of the quickstart, and draw their curves in one picture.

What it does: warms up one small policy, then trains it anew with each algorithm and seed, one run after another.
Writes `comparison/curves.png`, `comparison/table.md` and the runs, under `comparison/runs/`. A run that is there is not
made again, so algorithms, seeds and steps can be added later.

Command:  python compare.py, or some: python compare.py --algorithms grpo,dapo,ppo --seeds 1,2 --steps 40
Hardware: 2 CPU cores, no GPU, no network. One to two minutes for each run of 60 steps, on free cores.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from areal_x.launch.config_files import config_groups
from areal_x.observe.curves import smoothed
from areal_x.observe.run_files import load_run

HERE = Path(__file__).resolve().parent
OUTPUT = HERE / "comparison"
COLOURS = ("#2f6fed", "#c2570c", "#0f9d75", "#8250df", "#b42367", "#0e7490", "#8a6d00")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))
INK, MUTED, GRID = "#1c2430", "#667085", "#e6e9ef"


def areal_x(command, title, *overrides):
    """One command of areal-x in a process of its own; its lines go where ours go."""
    print(f"\n== {title}", flush=True)
    subprocess.run([sys.executable, "-m", "areal_x.cli", command, *overrides], cwd=HERE, check=True)


def warm_start(changes):
    """Make the policy that all runs begin with."""
    if not (OUTPUT / "start" / "policy").is_dir():
        own = ["name=start", f"runs_dir={OUTPUT}", "overwrite=true"]
        areal_x("sft", "warm start", "--config-name", "quickstart", *own, *changes)


def train(algorithm, seed, steps, changes):
    """The run of so many steps with one algorithm and seed, which may have been made before."""
    name = f"{algorithm}_seed{seed}_steps{steps}"
    directory = OUTPUT / "runs" / name
    if not (directory / "policy").is_dir():
        start = [f"model.path={OUTPUT / 'start' / 'policy'}", f"runs_dir={OUTPUT / 'runs'}", "overwrite=true"]
        own = [f"name={name}", f"algorithm={algorithm}", f"seed={seed}", f"train.total_steps={steps}"]
        areal_x("train", name, "./compare.yaml", *start, *own, *changes)
    return load_run(directory)


def rewards(runs):
    """Mean reward of each step, one row for each seed, smoothed over 5 steps."""
    return np.array([smoothed(run.values("reward/mean")) for run in runs])


def seconds(runs):
    """Time that training has taken after each step, mean of the seeds; evaluation is left out."""
    return np.mean([np.cumsum(run.values("perf/step_seconds")) for run in runs], axis=0)


def accuracies(runs):
    """Held-out accuracy before and after, mean of the seeds."""
    curves = [next(iter(run.accuracies.values())) for run in runs]
    return tuple(float(np.mean([points[place][1] for points in curves])) for place in (0, -1))


def draw(results, path):
    """Reward against step and against time: a line for each algorithm, a band from the lowest to the highest seed."""
    figure = Figure(figsize=(13, 5.6), dpi=130, facecolor="white", layout="constrained")
    for axes, by_time in zip(figure.subplots(1, 2, sharey=True), (False, True), strict=True):
        for number, (algorithm, runs) in enumerate(results.items()):
            values = rewards(runs)
            places = seconds(runs) if by_time else np.arange(1, values.shape[1] + 1)
            style = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}
            axes.plot(places, values.mean(axis=0), linewidth=1.8, label=algorithm, **style)
            if len(runs) > 1:
                axes.fill_between(places, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.1)
        title = f"Mean reward (5 steps) against {'time' if by_time else 'step'}"
        axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color=INK)
        axes.set_xlabel("seconds of training" if by_time else "step", color=MUTED)
        axes.tick_params(colors=MUTED, labelsize=9, length=0)
        axes.grid(axis="y", color=GRID)
        axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, labelcolor=INK)
    figure.savefig(path)


def table(results):
    """A line for each algorithm, the most accurate first."""
    rows = []
    for algorithm, runs in results.items():
        before, after = accuracies(runs)
        last = float(np.mean([run.values("reward/mean")[-10:] for run in runs]))
        rows.append((after, f"| `{algorithm}` | {before:.3f} | {after:.3f} | {last:.3f} | {seconds(runs)[-1]:.0f} |"))
    head = "| algorithm | accuracy before | after | reward, last 10 steps | seconds of training |"
    return "\n".join([head, "| --- | --- | --- | --- | --- |", *(line for _, line in sorted(rows, reverse=True))])


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    known = ",".join(config_groups()["algorithm"])
    parser.add_argument("--algorithms", default=known, help="presets, by commas; all that ship by default")
    parser.add_argument("--seeds", default="1", help="by commas; each algorithm is run with each")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--start", nargs="*", default=[], metavar="key=value", help="changes to the warm start")
    parser.add_argument(
        "changes", nargs="*", metavar="key=value", help="changes to all runs, such as train.batch_size=128"
    )
    options = parser.parse_args(arguments)
    warm_start(options.start)
    results = {
        algorithm: [train(algorithm, seed, options.steps, options.changes) for seed in options.seeds.split(",")]
        for algorithm in options.algorithms.split(",")
    }
    draw(results, OUTPUT / "curves.png")
    (OUTPUT / "table.md").write_text(table(results) + "\n", encoding="utf-8")
    print(f"\n{table(results)}\n\ncurves: {OUTPUT / 'curves.png'}")


if __name__ == "__main__":
    main(sys.argv[1:])
