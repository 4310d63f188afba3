"""``areal-x`` with a probe: right after each publication the engine answers a few prompts, whose log-probabilities are
compared with a forward pass of the weights that were staged. Run as a program, in the folder of the run:

    python probed_train.py PROBES train --config-name quickstart ...

``PROBES`` gets one JSON object for each publication.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from areal_x import cli
from areal_x.api.records import ModelRequest, SamplingParams
from areal_x.engine import weights

NUM_PROMPTS, NUM_TOKENS = 8, 16


class ProbedSync(weights.StagedSync):
    """Keeps what it stages, and asks the engine after each publication."""

    def __init__(self, source: Any, staging: Any, engines: Any) -> None:
        super().__init__(source, staging, engines)
        self._weights, self._engine = source.named_weights, engines[0]
        self._staged: dict[str, torch.Tensor] = {}
        self._model: Any = None

    async def stage(self, version: int) -> None:
        self._staged = {name: tensor.detach().clone() for name, tensor in self._weights()}
        await super().stage(version)

    async def publish(self, version: int) -> None:
        await super().publish(version)
        if self._model is None:
            (folder,) = Path("runs").glob("*/initial_model")
            self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        missing = self._model.load_state_dict(self._staged, strict=False).missing_keys
        assert set(missing) <= {"lm_head.weight"}, missing
        sampling = SamplingParams(max_new_tokens=NUM_TOKENS, ignore_eos=True)
        prompts = np.random.default_rng(version).integers(2, self._model.config.vocab_size, (NUM_PROMPTS, 12))
        # The same first prompt each time: what a prefix cache of older weights would answer.
        prompts[0] = np.arange(2, 14) % self._model.config.vocab_size
        answers = await asyncio.gather(*(self._engine.agenerate(ModelRequest(ids, sampling)) for ids in prompts))
        worst = max(self._error(answer) for answer in answers)
        versions = sorted({span.version for answer in answers for span in answer.version_spans})
        with Path(sys.argv[1]).open("a") as file:
            file.write(json.dumps({"version": version, "seen": versions, "worst": worst}) + "\n")

    def _error(self, answer: Any) -> float:
        ids = torch.from_numpy(np.concatenate([answer.input_ids, answer.output_ids])).long()
        with torch.inference_mode():
            logits = self._model(input_ids=ids[None], use_cache=False).logits[0].double()
        start = len(answer.input_ids)
        logprobs = torch.log_softmax(logits, -1)[start - 1 : -1].gather(1, ids[start:, None])[:, 0].numpy()
        return float(np.abs(answer.logprobs - logprobs).max())


if __name__ == "__main__":
    # Before the trainer is imported, which takes the class from there.
    weights.StagedSync = ProbedSync  # type: ignore[misc]
    sys.exit(cli.main(sys.argv[2:]))
