"""New models load through transformers, and their tokenizers lose nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from areal_x.api.errors import ConfigError, DataError
from areal_x.engine.init_model import init_model

TINY: dict[str, Any] = {
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 4,
    "intermediate_size": 32,
    "max_length": 64,
}
QUESTIONS = [f"Natalia sold {n} clips in April, and half as many in May. How many did she sell?" for n in range(30)]


TEXTS = [*QUESTIONS, *(f"#### {n * 3 // 2}" for n in range(len(QUESTIONS)))]


@pytest.fixture(scope="module")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model(tmp_path_factory.mktemp("bpe") / "deep" / "model", texts=TEXTS, vocab_size=400, **TINY)


def test_the_model_loads_with_the_sizes_asked_for_and_generates(bpe_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(bpe_folder)
    tokenizer = AutoTokenizer.from_pretrained(bpe_folder)
    config = model.config
    assert config.model_type == "qwen3"
    assert (config.hidden_size, config.num_hidden_layers, config.num_key_value_heads, config.head_dim) == (16, 2, 2, 4)
    assert config.vocab_size == len(tokenizer) <= 400
    assert config.max_position_embeddings == tokenizer.model_max_length == 64
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    ids = tokenizer(QUESTIONS[0], return_tensors="pt")["input_ids"]
    assert model.generate(ids, max_new_tokens=3).shape[1] <= ids.shape[1] + 3
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_untied_embeddings(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        init_model(tmp_path, texts=["a"], tie_word_embeddings=False, vocab_size=261, **TINY)
    )
    assert model.lm_head.weight is not model.model.embed_tokens.weight


def test_weights_come_from_the_seed_and_the_tokenizer_from_the_texts(bpe_folder: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    again = init_model(tmp_path / "again", texts=TEXTS, vocab_size=400, **TINY)
    other = init_model(tmp_path / "other", texts=TEXTS, vocab_size=400, seed=2, **TINY)
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("model.safetensors", "tokenizer.json"):
        assert (again / name).read_bytes() == (bpe_folder / name).read_bytes()
    assert (other / "model.safetensors").read_bytes() != (bpe_folder / "model.safetensors").read_bytes()
    assert (other / "tokenizer.json").read_bytes() == (bpe_folder / "tokenizer.json").read_bytes()


def test_the_chat_template_marks_turns_and_ends_them_with_eos(bpe_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bpe_folder)
    messages = [{"role": "user", "content": "How many?"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<|user|>How many?<|end|>"
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>How many?<|end|><|assistant|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|user|>")
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert ids[-2] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "How many?"


def test_questions_round_trip_in_fewer_tokens_than_characters(bpe_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bpe_folder)
    for text in QUESTIONS:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert len(ids) < len(text) / 2


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text_round_trips_through_bytes(bpe_folder: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bpe_folder) if not _loaded else _loaded[0]
    _loaded[:] = [tokenizer]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


_loaded: list[Any] = []


def test_a_character_tokenizer_has_one_token_for_each_character(tmp_path: Path) -> None:
    folder = init_model(tmp_path, texts=["0123456789+=", " \n"], tokenizer="characters", **TINY)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == 14 + 2
    text = "12 + 34=\n"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id, tokenizer.pad_token_id], skip_special_tokens=True) == text
    assert not tokenizer.chat_template


def test_printable_ascii_is_the_default_alphabet(tmp_path: Path) -> None:
    ascii_only = AutoTokenizer.from_pretrained(init_model(tmp_path / "ascii", tokenizer="characters", **TINY))
    text = "def f(x):\n\treturn x ** 2  # ~"
    assert ascii_only.decode(ascii_only(text)["input_ids"]) == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 200}, "vocab_size=200 is too small"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_heads=4 is not a multiple of num_kv_heads=3"),
        ({"head_dim": 5}, "head_dim=5 must be even"),
        ({"hidden_size": 0}, "hidden_size=0 must be a positive whole number"),
        ({"num_layers": 1.5}, "num_layers=1.5 must be a positive whole number"),
        ({"tokenizer": "words"}, "tokenizer='words' is unknown"),
        ({"architecture": "llama"}, "architecture='llama' is unknown"),
    ],
)
def test_impossible_sizes_are_named_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        init_model(tmp_path / "model", texts=["a"], **{**TINY, **options})
    assert not (tmp_path / "model").exists()


def test_no_text_is_said_before_anything_is_written(tmp_path: Path) -> None:
    for texts in (None, [], [""]):
        with pytest.raises(DataError, match="no text"):
            init_model(tmp_path / "model", texts=texts)
    assert not (tmp_path / "model").exists()


def test_the_spread_of_the_weights(tmp_path: Path) -> None:
    folder = init_model(tmp_path / "m", tokenizer="characters", initializer_range=0.05, **TINY)
    weight = AutoModelForCausalLM.from_pretrained(folder).model.embed_tokens.weight
    assert 0.04 < weight.std().item() < 0.06
    with pytest.raises(ConfigError, match="initializer_range=0"):
        init_model(tmp_path / "n", tokenizer="characters", initializer_range=0, **TINY)


@pytest.mark.skipif("AREAL_X_GSM8K" not in os.environ, reason="AREAL_X_GSM8K names no GSM8K data")
def test_gsm8k_questions_round_trip(tmp_path: Path) -> None:
    root = Path(os.environ["AREAL_X_GSM8K"])
    path = root if root.is_file() else root / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(init_model(tmp_path, texts=[row["question"] for row in rows], **TINY))
    assert len(rows) > 100
    for row in rows:
        assert tokenizer.decode(tokenizer(row["question"])["input_ids"]) == row["question"]
