"""Training, log-probabilities, publication and a reward model at the shape of Qwen2.5-1.5B, on one GPU.

    make bench-gpu
    python benchmarks/bench_gpu.py [--device cuda] [--shape qwen2.5-1.5b] [--rounds N] [--out DIRECTORY] [--json FILE]
    python benchmarks/bench_gpu.py --device cpu --shape tiny          the same program, for a test

The model is random (1536 wide, 28 layers, 12 heads over 2, 8960 in between, 151936 tokens, tied). It measures:

- training: tokens per second of ``FSDPEngine.train_step`` on 2 micro-batches of 16k packed tokens, and model FLOPs
  utilisation by the formula at the top of ``gpu_parts.py`` and the peak of the device's data sheet. Asked: >= 45 % on
  an H100 or H200, of the best of: all activations kept, gradient checkpointing, compiled layers;
- a pass of log-probabilities over the same tokens;
- log-probabilities of 16k tokens and their gradients: peak memory above the inputs, in chunks and whole: asked <= 0.15;
- publication into a bfloat16 copy on the device, beside one copy of as many bytes in one piece;
- a reward model's load → score → offload. Asked: <= 1.3 x (its bytes by the measured pinned copy) + the forward pass of
  a model that stays; the same scores bit for bit; memory back within 1 MB.

Each part runs in a process of its own. The page goes to ``docs/benchmarks/gpu_<name>.md``.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from gpu_parts import PARTS, SHAPES, Shape, peak_flops
from run_all import machine

ASKED_MFU, ASKED_MEMORY, ASKED_CYCLE, ASKED_LEFT = 0.45, 0.15, 1.3, 10**6
ASKED_DEVICES = ("H100", "H200")
PARTS_TIMEOUT_SECONDS = 1800


def report_train(found: dict[str, Any], device_name: str) -> list[str]:
    lines, best = [], None
    peak = peak_flops(device_name)
    for name, step in found["steps"].items():
        if step["seconds"] is None:
            lines.append(f"training, {name}: does not fit")
            continue
        speed = found["tokens"] / step["seconds"]
        text = f"training, {name}: {step['seconds'] * 1e3:.0f} ms a step, {speed:,.0f} tokens per second"
        text += "" if step["peak_bytes"] is None else f", peak {_gib(step['peak_bytes'])}"
        if peak is not None:
            utilisation = found["flops"] / step["seconds"] / peak
            best = max(best or 0.0, utilisation)
            text += f", model FLOPs utilisation {utilisation:.1%}"
        lines.append(text)
    if peak is None or best is None:
        lines.append(f"model FLOPs utilisation: left out, no peak is known of {device_name}")
    else:
        verdict = ""
        if any(name in device_name for name in ASKED_DEVICES):
            verdict = f"   asked >= {ASKED_MFU:.0%}   {_verdict(best >= ASKED_MFU)}"
        lines.append(f"best utilisation of {peak / 1e12:.0f} TFLOP/s: {best:.1%}{verdict}")
    speed = found["tokens"] / found["logprobs"]
    return [*lines, f"log-probabilities: {found['logprobs'] * 1e3:.0f} ms, {speed:,.0f} tokens per second"]


def report_logprob_memory(found: dict[str, Any], device_name: str) -> list[str]:
    chunked, naive = found["chunked"], found["naive"]
    lines = [
        f"log-probabilities {name}: {side['seconds'] * 1e3:.0f} ms forward and backward"
        for name, side in (("in chunks", chunked), ("whole", naive))
        if side["seconds"] is not None
    ]
    if chunked["bytes"] is not None and naive["bytes"] is not None:
        share = chunked["bytes"] / naive["bytes"]
        text = f"peak above the inputs: {_gib(chunked['bytes'])} in chunks, {_gib(naive['bytes'])} whole, {share:.3f}"
        lines.append(f"{text}   asked <= {ASKED_MEMORY}   {_verdict(share <= ASKED_MEMORY)}")
    elif naive["seconds"] is None:
        lines.append("whole, the logits do not fit")
    if "difference" in found:
        verdict = _verdict(found["difference"] <= found["allowed"])
        lines.append(f"gradients differ by {found['difference']:.1e}   asked <= {found['allowed']:g}   {verdict}")
    return lines


def report_publication(found: dict[str, Any], device_name: str) -> list[str]:
    share = found["seconds"] / found["one_copy"]
    speed = found["bytes"] / found["seconds"] / 1e9
    text = f"publication of {_gib(found['bytes'])} into a copy: {found['seconds'] * 1e3:.2f} ms, {speed:.0f} GB/s"
    return [f"{text}, {share:.2f} x one copy in one piece ({found['one_copy'] * 1e3:.2f} ms)"]


def report_reward_model(found: dict[str, Any], device_name: str) -> list[str]:
    bound = found["copy"] + found["forward"]
    passed = found["cycle"] <= ASKED_CYCLE * found["copy"] + found["forward"]
    text = f"reward model of {_gib(found['bytes'])}, load → score → offload: {found['cycle'] * 1e3:.1f} ms"
    parts = f"copy {found['copy'] * 1e3:.1f} ms ({found['bytes'] / found['copy'] / 1e9:.1f} GB/s) + forward"
    cycle = f"{text}; {parts} {found['forward'] * 1e3:.1f} ms = {bound * 1e3:.1f} ms"
    # On a CPU the weights are mapped, not copied: the cycle has another bound there.
    cycle += "" if device_name == "cpu" else f"   asked <= {ASKED_CYCLE} x copy + forward   {_verdict(passed)}"
    left = f"memory left behind: {found['left_bytes']} bytes   asked <= {ASKED_LEFT}"
    return [
        cycle,
        f"the same scores as a model that stays: {found['same']}   {_verdict(found['same'])}",
        f"{left}   {_verdict(found['left_bytes'] <= ASKED_LEFT)}",
    ]


REPORTS = {
    "train": report_train,
    "logprob_memory": report_logprob_memory,
    "publication": report_publication,
    "reward_model": report_reward_model,
}


def run_part(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one part in a process of its own.

    Raises:
        subprocess.CalledProcessError: it failed; what it printed is on the terminal.
    """
    with tempfile.TemporaryDirectory() as directory:
        figures = Path(directory) / "figures.json"
        words = [sys.executable, __file__, "--part", name, "--part-out", str(figures), "--rounds", str(options.rounds)]
        words += ["--device", options.device, "--shape", options.shape]
        subprocess.run(words, check=True, timeout=PARTS_TIMEOUT_SECONDS)
        found: dict[str, Any] = json.loads(figures.read_text(encoding="utf-8"))
    return found


def device_name_of(device: str) -> str:
    """As the maker calls it."""
    return "cpu" if device == "cpu" else torch.cuda.get_device_name()


def check_device(device: str) -> str | None:
    """What is missing, if anything is."""
    if device == "cpu" or torch.cuda.is_available():
        return None
    return (
        f"bench-gpu needs a CUDA device and a PyTorch that uses it; this is torch {torch.__version__} on a machine "
        "where none is usable. Nothing was measured. A test of the program itself: "
        "python benchmarks/bench_gpu.py --device cpu --shape tiny"
    )


def write_page(lines: list[str], shape: Shape, device_name: str, folder: Path) -> Path:
    """The results with the machine's name."""
    name = re.sub(r"[^a-z0-9]+", "_", device_name.lower()).strip("_")
    path = folder / f"gpu_{name}.md"
    folder.mkdir(parents=True, exist_ok=True)
    head = ["# Benchmarks on a GPU", "", "Written by `make bench-gpu`.", "", f"- {device_name}"]
    head += [f"- {line}" for line in machine()] + [f"- {shape}", "", "```text"]
    path.write_text("\n".join([*head, *lines, "```"]) + "\n", encoding="utf-8")
    return path


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def _verdict(passed: bool) -> str:
    return "PASS" if passed else "FAIL"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--shape", default="qwen2.5-1.5b", choices=tuple(SHAPES))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "benchmarks")
    parser.add_argument("--json", type=Path, help="append the figures as one line of JSON")
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--part-out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    missing = check_device(options.device)
    if missing is not None:
        print(missing, file=sys.stderr)
        return 2
    shape = SHAPES[options.shape]
    if options.part is not None:
        with tempfile.TemporaryDirectory() as directory:
            found = PARTS[options.part](shape, options.device, Path(directory), options.rounds)
        options.part_out.write_text(json.dumps(found), encoding="utf-8")
        return 0
    name = device_name_of(options.device)
    lines, failed = [f"{name}, {options.shape}, {shape.tokens} packed tokens a micro-batch"], []
    figures: dict[str, Any] = {"benchmark": "gpu", "device": name, "shape": options.shape}
    print(lines[0])
    for part, report in REPORTS.items():
        try:
            figures[part] = run_part(part, options)
            said = report(figures[part], name)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            failed.append(part)
            said = [f"{part}: did not run to its end: {error}   FAIL"]
        print("\n".join(said), flush=True)
        lines += said
    if options.json:
        with options.json.open("a") as file:
            file.write(json.dumps(figures) + "\n")
    print(f"wrote {write_page(lines, shape, name, options.out)}")
    return 1 if failed or any("FAIL" in line for line in lines) else 0


if __name__ == "__main__":
    raise SystemExit(main())
