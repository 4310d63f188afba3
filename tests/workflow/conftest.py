"""A small generator that answers from a script, and tokenizers made from a few sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from areal_x.api.errors import PromptTooLongError
from areal_x.api.records import ModelRequest, ModelResponse, StopReason, VersionSpan

TEXTS = ["How many clips are 48 and 24? #### 72", "Your answer is wrong. Check each step and try again.", "right wrong"]


class ScriptedGenerator:
    """Answers the requests of one episode with the given token ids, one after another; each turn has newer weights."""

    def __init__(
        self,
        answers: Sequence[Sequence[int]],
        stop_reasons: Sequence[StopReason] = (),
        max_length: int = 10_000,
    ) -> None:
        self.answers = [np.array(answer, dtype=np.int32) for answer in answers]
        self.stop_reasons = list(stop_reasons) or ["stop"] * len(self.answers)
        self.max_length = max_length
        self.requests: list[ModelRequest] = []

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        if len(request.input_ids) >= self.max_length:
            raise PromptTooLongError("no room for a completion")
        turn = len(self.requests)
        self.requests.append(request)
        output = self.answers[turn]
        return ModelResponse(
            request_id=request.request_id,
            input_ids=request.input_ids,
            output_ids=output,
            logprobs=np.arange(1, len(output) + 1, dtype=np.float32) * -0.1 - turn,
            version_spans=[VersionSpan(0, len(output), turn)] if len(output) else [],
            stop_reason=self.stop_reasons[turn],
        )


@pytest.fixture(scope="session")
def chat_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A byte-level BPE tokenizer with a chat template."""
    return _tokenizer(tmp_path_factory.mktemp("bpe"), tokenizer="bpe", vocab_size=300)


@pytest.fixture(scope="session")
def plain_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One token for each character, no chat template."""
    return _tokenizer(tmp_path_factory.mktemp("characters"), tokenizer="characters")


def _tokenizer(folder: Path, **options: Any) -> Any:
    from transformers import AutoTokenizer

    from areal_x.engine.init_model import init_model

    sizes = {
        "hidden_size": 8,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 4,
        "intermediate_size": 8,
    }
    return AutoTokenizer.from_pretrained(init_model(folder, texts=TEXTS, **sizes, **options))


@pytest.fixture(scope="session")
def scripted() -> type[ScriptedGenerator]:
    """The generator class."""
    return ScriptedGenerator
