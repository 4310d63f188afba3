"""Makes a new policy: a randomly initialised Qwen3 model and a tokenizer that fits the data, in Hugging Face format."""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from areal_x.api.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["init_model"]

END = "<|end|>"
PAD = "<|pad|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
NUM_BYTES = 256
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def init_model(
    output: Path | str,
    *,
    texts: Iterable[str] | None = None,
    architecture: str = "qwen3",
    tokenizer: Literal["bpe", "characters"] = "bpe",
    vocab_size: int = 2048,
    hidden_size: int = 128,
    num_layers: int = 4,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 32,
    intermediate_size: int = 384,
    max_length: int = 1024,
    initializer_range: float = 0.02,
    tie_word_embeddings: bool = True,
    seed: int = 1,
) -> Path:
    """Write a Qwen3 model with random weights and a tokenizer to ``output``, for ``AutoModelForCausalLM``.

    Args:
        output: the directory, made if it is missing.
        texts: what the tokenizer is made from.
        architecture: ``qwen3``.
        tokenizer: ``bpe`` (byte-level, any text round-trips, with a chat template) or ``characters`` (one token for
            each character that occurs, no chat template; without any text, printable ASCII).
        vocab_size: tokens of the ``bpe`` tokenizer at most, special ones included; ``characters`` takes what it needs.
        hidden_size, num_layers, num_heads, num_kv_heads, head_dim, intermediate_size: sizes of the model.
        max_length: longest sequence in tokens.
        initializer_range: standard deviation of the random weights; small models learn sooner from 0.05.
        tie_word_embeddings: one matrix for input and output embeddings.
        seed: of the weights; the tokenizer depends on the texts alone.

    Returns:
        ``output``.

    Raises:
        ConfigError: sizes that do not fit together, or a vocabulary that is too small.
        DataError: there is no text.
    """
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "intermediate_size": intermediate_size,
        "max_length": max_length,
    }
    if architecture != "qwen3":
        raise ConfigError(f"architecture={architecture!r} is unknown; new models are qwen3")
    if not 0 < initializer_range < 1:
        raise ConfigError(f"initializer_range={initializer_range!r} must be between 0 and 1")
    _check(sizes, tokenizer)
    if texts is None and tokenizer == "characters":
        texts = [string.printable]
    # Sorted and without repetitions, so that the tokenizer depends on what the texts are, not on their order.
    corpus = sorted({text for text in texts or () if text})
    if not corpus:
        raise DataError("there is no text to make a tokenizer from")
    made = _train_bpe(corpus, vocab_size, max_length) if tokenizer == "bpe" else _characters(corpus, max_length)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    made.save_pretrained(folder)
    _save_model(folder, made, sizes, initializer_range, tie_word_embeddings, seed)
    return folder


def _check(sizes: dict[str, int], tokenizer: str) -> None:
    if tokenizer not in ("bpe", "characters"):
        raise ConfigError(f"tokenizer={tokenizer!r} is unknown; write bpe or characters")
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"{name}={size!r} must be a positive whole number")
    if sizes["num_heads"] % sizes["num_kv_heads"]:
        raise ConfigError(
            f"num_heads={sizes['num_heads']} is not a multiple of num_kv_heads={sizes['num_kv_heads']}; "
            "each key-value head serves the same number of heads"
        )
    if sizes["head_dim"] % 2:
        raise ConfigError(f"head_dim={sizes['head_dim']} must be even; rotary embeddings turn pairs of values")
    smallest = NUM_BYTES + len((END, PAD, *ROLES))
    if tokenizer == "bpe" and sizes["vocab_size"] < smallest:
        raise ConfigError(f"vocab_size={sizes['vocab_size']} is too small: bytes and special tokens need {smallest}")


def _train_bpe(corpus: list[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # Digits one by one: a small model cannot learn arithmetic on "48" and "148" as unrelated tokens.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD, *ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return _wrap(tokenizer, max_length, chat_template=CHAT_TEMPLATE)


def _characters(corpus: list[str], max_length: int) -> PreTrainedTokenizerFast:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(set().union(*corpus))
    vocabulary = {token: number for number, token in enumerate([END, PAD, *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrap(tokenizer, max_length, chat_template=None)


def _wrap(tokenizer: Any, max_length: int, chat_template: str | None) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    roles = [] if chat_template is None else list(ROLES)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=roles,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    if chat_template is not None:
        wrapped.chat_template = chat_template
    return wrapped


def _save_model(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    sizes: dict[str, int],
    initializer_range: float,
    tie_word_embeddings: bool,
    seed: int,
) -> None:
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=sizes["hidden_size"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        num_key_value_heads=sizes["num_kv_heads"],
        head_dim=sizes["head_dim"],
        intermediate_size=sizes["intermediate_size"],
        max_position_embeddings=sizes["max_length"],
        initializer_range=initializer_range,
        tie_word_embeddings=tie_word_embeddings,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    with _no_progress_bar():
        model.save_pretrained(folder)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
