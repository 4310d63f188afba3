"""Small models that every engine can serve, the versions of their weights, and what plain forward passes give."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM

from areal_x.api.records import ModelResponse, VersionSpan
from areal_x.engine.init_model import init_model

__all__ = ["DEVICE", "EOS", "EXACT", "LETTERS", "MAX_LENGTH", "VOCAB", "Policy", "make_policy"]

LETTERS = [chr(code) for code in range(33, 127)]
VOCAB = len(LETTERS) + 2
EOS = 0
"""The model's end of sequence; 1 pads, and token ``i`` from 2 on is the text ``LETTERS[i - 2]``."""
MAX_LENGTH = 512
DEVICE = os.environ.get("AREAL_X_TEST_DEVICE", "cpu")
"""Where the policies are, and where engines compute."""
EXACT = 2e-5 if DEVICE == "cpu" else 2e-4
"""How far log-probabilities may be from those of a plain forward pass; GPUs add up in another order."""
_NOISE = 0.03


class Policy:
    """A policy whose weights change from version to version; every version that was published is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model, self._reference = (
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(DEVICE).eval().requires_grad_(False)
            for _ in range(2)
        )
        self.loaded: int | None = 0
        """The version that forward passes use now."""
        self.versions: dict[int, dict[str, torch.Tensor]] = {}
        self.keep(0)

    def keep(self, version: int) -> None:
        """Remember the weights of now as those of ``version``."""
        self.versions[version] = {name: tensor.clone() for name, tensor in self.named_weights()}

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights under their Hugging Face names; tied ones once."""
        return iter(self.model.named_parameters())

    def change(self) -> int:
        """New weights of the next version; returns it."""
        version = max(self.versions) + 1
        generator = torch.Generator().manual_seed(version)
        for _, parameter in self.named_weights():
            parameter.add_(_NOISE * torch.randn(parameter.shape, generator=generator).to(DEVICE))
        self.keep(version)
        return version

    def logprobs(self, version: int, response: ModelResponse, temperature: float = 1.0) -> npt.NDArray[np.float64]:
        """Log-probability of each sampled token by one forward pass of ``version`` over the whole sequence."""
        ids = torch.from_numpy(np.concatenate([response.input_ids, response.output_ids])).long()
        logprobs = self._all_logprobs(version, ids, temperature)[len(response.input_ids) - 1 : -1]
        return logprobs.gather(1, ids[len(response.input_ids) :, None])[:, 0].numpy()

    def next_logprobs(
        self, version: int, input_ids: npt.NDArray[np.int32], temperature: float = 1.0
    ) -> npt.NDArray[np.float64]:
        """Log-probability of each token of the vocabulary after a prompt."""
        return self._all_logprobs(version, torch.from_numpy(input_ids).long(), temperature)[-1].numpy()

    def _all_logprobs(self, version: int, ids: torch.Tensor, temperature: float) -> torch.Tensor:
        if self.loaded != version:
            self._reference.load_state_dict(self.versions[version], strict=False)
            self.loaded = version
        with torch.inference_mode():
            logits = self._reference(input_ids=ids[None].to(DEVICE), use_cache=False).logits[0].double().cpu()
        return torch.log_softmax(logits / (temperature or 1.0), -1)

    def assert_exact(self, response: ModelResponse, temperature: float = 1.0, tolerance: float = EXACT) -> None:
        """Each span equals the forward pass of its own version over the whole prefix, and no token lacks a version."""
        assert_whole_spans(response)
        for start, end, version in response.version_spans:
            expected = self.logprobs(version, response, temperature)[start:end]
            np.testing.assert_allclose(
                response.logprobs[start:end],
                expected,
                atol=tolerance,
                rtol=0,
                err_msg=f"{response.request_id}: span {start}-{end} of version {version}",
            )

    def is_exact(self, response: ModelResponse, temperature: float = 1.0) -> bool:
        """As ``assert_exact``, for what must not be exact."""
        errors = [
            np.abs(response.logprobs[start:end] - self.logprobs(version, response, temperature)[start:end]).max()
            for start, end, version in response.version_spans
        ]
        return max(errors) <= EXACT


def assert_whole_spans(response: ModelResponse) -> None:
    """Spans cover the output without gaps, in order, with rising versions; everything has the same length."""
    spans: list[VersionSpan] = response.version_spans
    assert len(response.logprobs) == len(response.output_ids) > 0
    assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])]
    assert spans[-1].end == len(response.output_ids) and all(span.start < span.end for span in spans)
    versions = [span.version for span in spans]
    assert versions == sorted(set(versions)), versions


def make_policy(path: Path, *, tied: bool = False, seed: int = 1) -> Policy:
    """Write a model of two layers with 96 tokens, whose distributions are far from uniform."""
    init_model(
        path,
        texts=["".join(LETTERS)],
        tokenizer="characters",
        hidden_size=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=32,
        intermediate_size=96,
        max_length=MAX_LENGTH,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        seed=seed,
    )
    return Policy(path)
