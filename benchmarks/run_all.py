"""Run every benchmark, one after another, and write what they printed to one page.

    python benchmarks/run_all.py [--only NAME ...] [--out docs/benchmarks/results.md]

The page begins with the machine, the versions and the load that other programs caused before each benchmark (figures
are worth little where it is not near 0), then shows every line with a verdict, then the whole output. ``results.jsonl``
beside it holds all figures. The exit status is 1 when a figure misses what is asked or a benchmark failed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = ("torch", "transformers", "trl", "numpy", "uvloop")
LOAD_SECONDS = 3.0
APART = ("bench_gpu",)
"""Benchmarks of a target of their own: `make bench-gpu` needs a GPU, and writes its own page."""


@dataclass
class Outcome:
    """One benchmark's output."""

    name: str
    status: int
    output: str
    seconds: float
    foreign_load: float

    @property
    def verdicts(self) -> list[str]:
        """The lines that say PASS or FAIL."""
        return [line.strip() for line in self.output.splitlines() if "PASS" in line or "FAIL" in line]

    @property
    def passed(self) -> bool:
        """Whether it ran to its end and said nothing but PASS."""
        return self.status == 0 and bool(self.verdicts) and not any("FAIL" in line for line in self.verdicts)


def busy_cores() -> float:
    """Cores that all programs together kept busy for a few seconds, just now."""

    def read() -> float:
        user, nice, system, _idle, _wait, *rest = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
        return (user + nice + system + sum(rest[:2])) / os.sysconf("SC_CLK_TCK")

    before = read()
    time.sleep(LOAD_SECONDS)
    return (read() - before) / LOAD_SECONDS


def machine() -> list[str]:
    """Processor, memory and versions, as lines of a list."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return [
        f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, Linux {platform.release()}",
        ", ".join(versions),
        f"revision {revision.stdout.strip() or 'unknown'}, "
        f"{datetime.datetime.now(datetime.UTC).isoformat(' ', 'minutes')}",
    ]


def run(script: Path, figures: Path) -> Outcome:
    """Run one benchmark; its output is shown as it comes."""
    load = busy_cores()
    print(f"== {script.stem} (other programs keep {load:.2f} cores busy)", flush=True)
    started = time.monotonic()
    words = [sys.executable, "-u", str(script), "--json", str(figures)]
    lines: list[str] = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rsplit("\r", 1)[-1])
    return Outcome(script.stem, process.returncode, "".join(lines), time.monotonic() - started, load)


def page(outcomes: list[Outcome]) -> str:
    """The whole page."""
    lines = ["# Benchmark results", "", "Written by `make bench`.", ""]
    lines += [f"- {line}" for line in machine()]
    lines += ["", "| benchmark | verdict | seconds | foreign load before, cores |", "| --- | --- | --- | --- |"]
    for outcome in outcomes:
        verdict = "pass" if outcome.passed else "**fail**" if outcome.status in (0, 1) else "**error**"
        lines.append(f"| {outcome.name} | {verdict} | {outcome.seconds:.0f} | {outcome.foreign_load:.2f} |")
    for outcome in outcomes:
        lines += ["", f"## {outcome.name}", "", "```text", outcome.output.rstrip(), "```"]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="parts of names, such as engine")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "benchmarks" / "results.md")
    options = parser.parse_args()
    scripts = sorted(script for script in HERE.glob("bench_*.py") if script.stem not in APART)
    if options.only:
        scripts = [script for script in scripts if any(name in script.stem for name in options.only)]
    if not scripts:
        parser.error(f"no benchmark's name contains {' or '.join(options.only)}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figures = options.out.with_suffix(".jsonl").resolve()
    figures.unlink(missing_ok=True)
    outcomes = []
    for script in scripts:
        outcomes.append(run(script, figures))
        options.out.write_text(page(outcomes), encoding="utf-8")
    print("\n".join(f"{'PASS' if outcome.passed else 'FAIL'}  {outcome.name}" for outcome in outcomes))
    print(f"wrote {options.out}")
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
