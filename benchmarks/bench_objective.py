"""Losses, corrections and advantages of 64k tokens against the same formulas in plain tensor operations.

512 samples of 16 to 240 tokens in groups of 8, float32, one thread. The plain side writes each formula, and the
metrics that belong to it, as operations of PyTorch: losses under one autograd graph, forward and backward; generalised
advantage estimation and returns over a padded matrix, one step of time after the other; groups are found by their ids.
Both sides must agree; then they take turns, and medians are compared.

Asked: plain time / time here >= 0.9, for each.

    python benchmarks/bench_objective.py [--json FILE] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bench_train_step import medians

from areal_x.api.advantage_api import RewardedSamples
from areal_x.api.config import AlgorithmConfig
from areal_x.engine.train.advantages import ADVANTAGE_FUNCTIONS
from areal_x.engine.train.objective.corrections import CORRECTIONS
from areal_x.engine.train.objective.inputs import LossInputs
from areal_x.engine.train.objective.losses import LOSSES
from areal_x.engine.train.objective.objective import Objective
from areal_x.engine.train.objective.tokens import LossTokens

SAMPLES, TOKENS, GROUP = 512, 65536, 8
ASKED = 0.9
SAME = 2e-4
LOW, HIGH, CAP = 0.2, 0.2, 5.0
Sides = dict[str, Callable[[], torch.Tensor]]


def sample_lengths() -> np.ndarray:
    """Uneven, and ``TOKENS`` together."""
    lengths = np.random.default_rng(0).integers(16, 241, SAMPLES)
    while (missing := TOKENS - int(lengths.sum())) != 0:
        step = max(1, abs(missing) // SAMPLES) * (1 if missing > 0 else -1)
        fitting = np.flatnonzero((lengths + step >= 16) & (lengths + step <= 240))
        lengths[fitting[: abs(missing) // abs(step)]] += step
    return lengths.astype(np.int32)


class Tokens:
    """Random tokens, and the formulas in plain operations."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(4, TOKENS, generator=generator)
        self.behaviour = noise[0] - 2
        self.proximal = self.behaviour + 0.2 * noise[1]
        self.new = (self.proximal + 0.2 * noise[2]).requires_grad_()
        self.advantages = noise[3]
        self.sequence = torch.repeat_interleave(torch.arange(SAMPLES), torch.from_numpy(sample_lengths()))
        self.lag = (self.sequence % 3).int()
        self.entropy = torch.rand(TOKENS, generator=generator)

    def own(self) -> LossTokens:
        return LossTokens(
            logprobs=self.new,
            behaviour=self.behaviour,
            proximal=self.proximal,
            anchor=self.proximal,
            advantages=self.advantages,
            sequence=self.sequence,
            num_sequences=SAMPLES,
            lag=self.lag,
        )

    def gradient(self, losses: torch.Tensor) -> torch.Tensor:
        """The backward pass of the sum, and the gradient."""
        self.new.grad = None
        losses.sum().backward()
        assert self.new.grad is not None
        return self.new.grad

    def clip(self, ratio: torch.Tensor | None = None) -> torch.Tensor:
        ratio = torch.exp(self.new - self.proximal) if ratio is None else ratio
        surrogate = torch.minimum(ratio * self.advantages, ratio.clamp(1 - LOW, 1 + HIGH) * self.advantages)
        with torch.no_grad():
            ((ratio < 1 - LOW) & (self.advantages < 0)).sum()
            ((ratio > 1 + HIGH) & (self.advantages > 0)).sum()
        return -surrogate

    def gspo(self) -> torch.Tensor:
        log_ratio = (self.new - self.proximal).detach()
        counts = torch.zeros(SAMPLES).index_add(0, self.sequence, torch.ones(TOKENS))
        means = torch.zeros(SAMPLES).index_add(0, self.sequence, log_ratio) / counts
        return self.clip(torch.exp(means[self.sequence] + self.new - self.new.detach()))

    def reinforce(self) -> torch.Tensor:
        return -torch.exp(self.new - self.proximal).detach() * self.advantages * self.new

    def cispo(self) -> torch.Tensor:
        ratio = torch.exp(self.new - self.proximal).detach()
        (ratio < 1 - LOW).sum()
        (ratio > 1 + HIGH).sum()
        return -ratio.clamp(1 - LOW, 1 + HIGH) * self.advantages * self.new

    def sapo(self) -> torch.Tensor:
        tau = torch.where(self.advantages > 0, 1.0, 1.05)
        gate = torch.sigmoid(tau * (torch.exp(self.new - self.proximal) - 1))
        with torch.no_grad():
            (4 * gate * (1 - gate)).sum()
        return -4 / tau * gate * self.advantages

    def likelihood(self) -> torch.Tensor:
        (self.advantages != 0).sum()
        return -self.advantages * self.new

    def weights(self) -> torch.Tensor:
        return torch.exp(self.proximal - self.behaviour)

    def band(self, low: float, high: float) -> torch.Tensor:
        weights = self.weights()
        return torch.where((weights >= low) & (weights <= high), weights, 0.0)

    def truncated(self, high: float) -> torch.Tensor:
        weights = self.weights()
        (weights > high).sum()
        return weights.clamp(max=high)

    def sequence_mask(self) -> torch.Tensor:
        sums = torch.zeros(SAMPLES).index_add(0, self.sequence, self.proximal - self.behaviour)
        whole = torch.exp(sums)[self.sequence]
        return torch.where(whole <= 3.0, whole, 0.0)

    def m2po(self) -> torch.Tensor:
        drift = self.proximal - self.behaviour
        squares, order = torch.sort(drift.square())
        kept = int((torch.cumsum(squares, 0) / torch.arange(1, TOKENS + 1) <= 0.04).sum())
        weights = torch.exp(drift)
        weights[order[kept:]] = 0.0
        return weights

    def objective(self) -> torch.Tensor:
        """The clipped loss with capped weights, and all metrics that a step reports of it."""
        with torch.no_grad():
            drift, fresh = self.proximal - self.behaviour, self.lag <= 0
            weights = self.truncated(CAP)
            divergence = torch.expm1(drift) - drift
            ratio = torch.exp(self.new - self.proximal)
            for values in (self.entropy, drift.abs(), divergence, weights, ratio):
                values.sum()
            for values in (drift.abs(), ratio, weights):
                values.max()
            drift.abs()[fresh].sum(), drift.abs()[fresh].max(), divergence[fresh].sum(), fresh.sum()
            (weights == 0).sum(), weights[~fresh].sum(), (weights == 0)[~fresh].sum()
        return self.clip() * weights


def loss_cases(tokens: Tokens) -> dict[str, Sides]:
    clips = {"clip_low": LOW, "clip_high": HIGH}

    def of(name: str, settings: dict[str, float]) -> Sides:
        def ours() -> torch.Tensor:
            losses, means, _ = LOSSES[name](tokens.own(), **settings)
            for values in means.values():
                values.sum()
            return tokens.gradient(losses)

        return {"here": ours, "plain": lambda: tokens.gradient(getattr(tokens, name)())}

    cases = {name: of(name, clips if name in ("clip", "gspo", "cispo") else {}) for name in LOSSES}
    objective = Objective(AlgorithmConfig())
    given = (tokens.behaviour, tokens.advantages, tokens.sequence, SAMPLES, tokens.lag)
    inputs = LossInputs(*given, proximal=tokens.proximal)
    cases["clip, decoupled, all metrics"] = {
        "here": lambda: tokens.gradient(objective(tokens.new, tokens.entropy, inputs).loss),
        "plain": lambda: tokens.gradient(tokens.objective()),
    }
    return cases


def correction_cases(tokens: Tokens) -> dict[str, Sides]:
    plain: dict[str, Callable[[], torch.Tensor]] = {
        "decoupled": lambda: tokens.truncated(5.0),
        "tis": lambda: tokens.truncated(2.0),
        "icepop": lambda: tokens.band(0.5, 5.0),
        "mis": lambda: tokens.band(0.0, 2.0),
        "sequence_mask": tokens.sequence_mask,
        "m2po": tokens.m2po,
    }
    return {
        name: {"here": lambda name=name: CORRECTIONS[name](tokens.own()).weights, "plain": plain[name]}
        for name in CORRECTIONS
    }


class Samples:
    """Random rewards and values, and advantages in plain operations."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        every, lengths = np.ones(TOKENS, np.bool_), sample_lengths()
        self.own = RewardedSamples(
            rewards=generator.integers(0, 2, SAMPLES).astype(np.float32),
            group_ids=np.arange(SAMPLES, dtype=np.int64) // GROUP,
            lengths=lengths,
            sampled=every,
            trained=every,
            kl_penalties=(0.01 * generator.standard_normal(TOKENS)).astype(np.float32),
            values=generator.standard_normal(TOKENS).astype(np.float32),
        )
        assert self.own.kl_penalties is not None and self.own.values is not None
        self.rewards = torch.from_numpy(self.own.rewards)
        self.ids = torch.from_numpy(self.own.group_ids)
        self.lengths = torch.from_numpy(lengths).long()
        self.penalties, self.values = torch.from_numpy(self.own.kl_penalties), torch.from_numpy(self.own.values)

    def per_token(self, values: torch.Tensor) -> torch.Tensor:
        return torch.repeat_interleave(values, self.lengths)

    def penalized(self) -> torch.Tensor:
        numbers = torch.repeat_interleave(torch.arange(SAMPLES), self.lengths)
        return self.rewards - torch.zeros(SAMPLES).index_add(0, numbers, self.penalties)

    def group(self) -> torch.Tensor:
        centred, group, counts = self.centred(self.penalized())
        squares = torch.zeros(len(counts)).index_add(0, group, centred.square())
        return self.per_token(centred / (torch.sqrt(squares / counts) + 1e-6)[group])

    def centred(self, rewards: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rewards less the mean of their group; the group of each, and the sizes of groups."""
        _, group, counts = torch.unique(self.ids, return_inverse=True, return_counts=True)
        means = torch.zeros(len(counts)).index_add(0, group, rewards) / counts
        return rewards - means[group], group, counts

    def raft(self) -> torch.Tensor:
        rewards = self.penalized()
        ids, group = torch.unique(self.ids, return_inverse=True)
        best = torch.full((len(ids),), -torch.inf).scatter_reduce(0, group, rewards, "amax")
        worst = torch.full((len(ids),), torch.inf).scatter_reduce(0, group, rewards, "amin")
        return self.per_token(((rewards == best[group]) & (best > worst)[group]).float())

    def reinforce_pp(self, rewards: torch.Tensor | None = None) -> torch.Tensor:
        steps, present = self.steps(self.rewards if rewards is None else rewards)
        running, found = torch.zeros(SAMPLES), torch.empty_like(steps)
        for t in range(steps.shape[1] - 1, -1, -1):
            running = steps[:, t] + running
            found[:, t] = running
        return self.normalized(found[present])

    def reinforce_pp_baseline(self) -> torch.Tensor:
        return self.reinforce_pp(self.centred(self.rewards)[0])

    def gae(self) -> torch.Tensor:
        steps, present = self.steps(self.rewards)
        values = torch.zeros(steps.shape)
        values[present] = self.values
        running, following, found = torch.zeros(SAMPLES), torch.zeros(SAMPLES), torch.empty_like(steps)
        for t in range(steps.shape[1] - 1, -1, -1):
            error = steps[:, t] + following - values[:, t]
            running = error + 0.95 * running
            found[:, t], following = running, values[:, t]
        (found + values)[present]
        return self.normalized(found[present])

    def steps(self, rewards: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rewards less penalties of each step of time, padded, and which steps there are."""
        present = torch.arange(int(self.lengths.max())) < self.lengths[:, None]
        steps = torch.zeros(present.shape)
        steps[present] = -self.penalties
        steps[torch.arange(SAMPLES), self.lengths - 1] += rewards
        return steps, present

    def normalized(self, found: torch.Tensor) -> torch.Tensor:
        return (found - found.mean()) / (found.std(correction=0) + 1e-8)


def advantage_cases(samples: Samples) -> dict[str, Sides]:
    def of(name: str, settings: dict[str, float]) -> Sides:
        def ours() -> torch.Tensor:
            found = ADVANTAGE_FUNCTIONS[name](samples.own, **settings)
            values = getattr(found, "values", found)
            return torch.from_numpy(values if len(values) == TOKENS else samples.own.per_token(values))

        return {"here": ours, "plain": getattr(samples, name)}

    return {name: of(name, {"gae_lambda": 0.95} if name == "gae" else {}) for name in ADVANTAGE_FUNCTIONS}


def compare(kind: str, cases: dict[str, Sides], rounds: int) -> list[dict[str, object]]:
    results: list[dict[str, object]] = []
    for name, sides in cases.items():
        # A token of m2po may fall on the other side of the threshold by rounding.
        found, expected = (sides[side]().clone() for side in ("here", "plain"))
        difference = (found - expected).abs().quantile(0.999).item()
        seconds = medians(sides, rounds)
        ratio = seconds["plain"] / seconds["here"]
        passed = ratio >= ASKED and difference <= SAME
        print(
            f"{kind} {name + ':':32s}{seconds['here'] * 1e6:8.0f} us, plain {seconds['plain'] * 1e6:8.0f} us, "
            f"ratio {ratio:6.2f}, differ by {difference:.0e}   asked >= {ASKED}   {'PASS' if passed else 'FAIL'}"
        )
        results.append(
            {"kind": kind, "name": name, "seconds": seconds, "ratio": ratio, "difference": difference, "pass": passed}
        )
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="append the figures as one line of JSON")
    parser.add_argument("--rounds", type=int, default=101)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokens, samples = Tokens(), Samples()
    results = compare("loss", loss_cases(tokens), options.rounds)
    results += compare("correction", correction_cases(tokens), options.rounds)
    results += compare("advantage", advantage_cases(samples), options.rounds)
    if options.json:
        with options.json.open("a") as file:
            file.write(json.dumps({"benchmark": "objective", "results": results}) + "\n")
    return 0 if all(result["pass"] for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
