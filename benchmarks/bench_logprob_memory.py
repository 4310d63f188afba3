"""Log-probabilities of 8,192 tokens over 151,936 words: peak memory above weights and activations, against naive.

Both ways compute log-probabilities, a loss of them and the gradients of the hidden states [tokens, hidden] and of the
output embedding [vocabulary, hidden]; both in float32, each in a fresh process:

- naive: logits = hidden @ weight.T, log_softmax, gather, backward;
- chunked: ``chunked_logprobs`` with the train engine's default of 1,024 rows at a time.

The figure is the process's peak resident memory less what it holds anyway: inputs, and the gradients that the backward
pass leaves behind. The bound of any way that makes logits at all is one chunk of them. Gradients are compared with
those of the naive way in float64, at 1/32 of the tokens, also where logits have a scale (Granite) or a soft cap
(Gemma); the naive way's own error in float32 stands beside them.

Asked: chunked / naive <= 0.15, gradients equal within 1e-6.

The naive way takes 15 GB. Where less than 20 are free it runs with fewer tokens, and its figure, which grows with
their number, is scaled up to all; the output says so.

    python benchmarks/bench_logprob_memory.py [--json FILE] [--naive-tokens N] [--tokens N] [--hidden N]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from areal_x.engine.train.logprob import PLAIN_LOGITS, LogitsTransform, chunked_logprobs

TOKENS, VOCABULARY, HIDDEN = 8192, 151_936, 128
CHUNK_TOKENS = 1024
TEMPERATURE = 0.9
NAIVE_COPIES = 4
"""Matrices [tokens, vocabulary] for which memory has to be free before the naive way runs; it makes three."""
COMPARED = 32
ASK_MEMORY, ASK_GRADIENT = 0.15, 1e-6
TRANSFORMS = {
    "plain": PLAIN_LOGITS,
    "scale (Granite)": LogitsTransform(scale=0.125),
    "soft cap (Gemma)": LogitsTransform(soft_cap=30.0),
}


def make_inputs(tokens: int, hidden: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(tokens, hidden, generator=generator, requires_grad=True)
    weight = torch.randn(VOCABULARY, hidden, generator=generator).mul_(0.3).requires_grad_()
    return states, weight, torch.randint(0, VOCABULARY, (tokens,), generator=generator)


def naive_logprobs(
    states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, transform: LogitsTransform
) -> torch.Tensor:
    """As a model's own forward pass and a loss do it."""
    logits = states @ weight.t()
    if transform.scale != 1.0:
        logits = logits * transform.scale
    if transform.soft_cap is not None:
        logits = torch.tanh(logits / transform.soft_cap) * transform.soft_cap
    return torch.log_softmax(logits / TEMPERATURE, -1).gather(1, targets[:, None]).squeeze(1)


def compute(way: str, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], transform: LogitsTransform) -> None:
    """Loss and gradients; the gradients stay in the inputs."""
    states, weight, targets = inputs
    if way == "naive":
        logprobs = naive_logprobs(states, weight, targets, transform)
    else:
        logprobs, _ = chunked_logprobs(
            states, weight, targets, transform=transform, temperature=TEMPERATURE, chunk_tokens=CHUNK_TOKENS
        )
    (-logprobs.mean()).backward()


def status_bytes(name: str) -> int:
    """A line of this process's status, such as its peak resident memory (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def free_bytes() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def measure_here(way: str, tokens: int, hidden: int) -> None:
    """One way in this process; prints bytes above inputs and gradients, and seconds."""
    torch.set_num_threads(1)
    compute(way, make_inputs(16, hidden), PLAIN_LOGITS)  # Loads the libraries.
    inputs = make_inputs(tokens, hidden)
    gradients = sum(part.nbytes for part in inputs[:2])
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # The peak starts again from here.
    started = time.perf_counter()
    compute(way, inputs, PLAIN_LOGITS)
    seconds = time.perf_counter() - started
    print(json.dumps({"bytes": status_bytes("VmHWM") - before - gradients, "seconds": seconds}))


def measure(way: str, tokens: int, hidden: int) -> dict[str, float]:
    """The same in a fresh process."""
    words = [sys.executable, __file__, "--way", way, "--tokens", str(tokens), "--hidden", str(hidden)]
    finished = subprocess.run(words, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(finished.stdout)
    return figures


def gradient_errors(transform: LogitsTransform, tokens: int, hidden: int) -> dict[str, float]:
    """How far the gradients of each way are from those of the naive way in float64: relative, by norm, the larger."""
    states, weight, targets = make_inputs(tokens, hidden)
    found = {}
    for way, dtype in (("exact", torch.float64), ("naive", torch.float32), ("chunked", torch.float32)):
        inputs = [part.detach().to(dtype).requires_grad_() for part in (states, weight)]
        compute("chunked" if way == "chunked" else "naive", (inputs[0], inputs[1], targets), transform)
        found[way] = [part.grad.double() for part in inputs if part.grad is not None]
    return {
        way: max(
            ((mine - exact).norm() / exact.norm()).item()
            for mine, exact in zip(found[way], found["exact"], strict=True)
        )
        for way in ("naive", "chunked")
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="append the figures as one line of JSON")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--naive-tokens", type=int, help="default: as many of them as there is memory for")
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--way", choices=["naive", "chunked"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        measure_here(options.way, options.tokens, options.hidden)
        return 0
    fitting = int(free_bytes() / (NAIVE_COPIES * 4 * VOCABULARY))
    naive_tokens = options.naive_tokens or min(options.tokens, fitting)
    sides = {"naive": measure("naive", naive_tokens, options.hidden)}
    sides["naive"] = {name: value * options.tokens / naive_tokens for name, value in sides["naive"].items()}
    sides["chunked"] = measure("chunked", options.tokens, options.hidden)
    chunk = 4 * min(CHUNK_TOKENS, options.tokens) * VOCABULARY
    ratio = sides["chunked"]["bytes"] / sides["naive"]["bytes"]
    torch.set_num_threads(1)
    errors = {
        name: gradient_errors(transform, TOKENS // COMPARED, options.hidden) for name, transform in TRANSFORMS.items()
    }
    worst = max(error["chunked"] for error in errors.values())
    passed = [ratio <= ASK_MEMORY, worst <= ASK_GRADIENT]
    print(f"{options.tokens} tokens, {VOCABULARY} words, hidden size {options.hidden}, float32, one thread")
    if naive_tokens < options.tokens:
        print(f"naive: measured with {naive_tokens} tokens, as more memory is not free, and scaled up")
    for way, side in sides.items():
        print(f"{way + ':':9s}{side['bytes'] / 1e9:7.2f} GB above inputs and gradients, {side['seconds']:.1f} s")
    print(f"bound, one chunk of logits: {chunk / 1e9:.2f} GB ({chunk / sides['naive']['bytes']:.3f} x naive)")
    print(f"chunked / naive: {ratio:.3f}   asked <= {ASK_MEMORY}   {'PASS' if passed[0] else 'FAIL'}")
    for name, error in errors.items():
        print(f"gradients, {name}: chunked off by {error['chunked']:.1e}, naive by {error['naive']:.1e}")
    verdict = "PASS" if passed[1] else "FAIL"
    print(f"gradients of the chunked way off by {worst:.1e}   asked <= {ASK_GRADIENT:g}   {verdict}")
    if options.json:
        figures: dict[str, Any] = {
            "benchmark": "logprob_memory",
            "tokens": options.tokens,
            "naive_tokens": naive_tokens,
            "sides": sides,
            "ratio": ratio,
            "gradient_errors": errors,
            "pass": all(passed),
        }
        with options.json.open("a") as file:
            file.write(json.dumps(figures) + "\n")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    raise SystemExit(main())
