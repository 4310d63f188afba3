"""The compiled tokenizer alone gives what transformers gives, to the last character; else transformers is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from areal_x.workflow.texts import text_decoder, text_encoder

TEXTS = [
    "",
    "48 and 24",
    "How many clips are 48 , 24 ? #### 72",
    "<|end|>a <|user|> b<|end|>",
    "\u00e9\u4e2d\U0001f600 \n\t",
    "do n't .",
]


def wordpiece() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[PAD]",
        "how",
        "many",
        "do",
        "n't",
        ".",
        ",",
        "4",
        "##8",
        "2",
        "##4",
        "a",
        "##b",
    ]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 1), ("[SEP]", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )


@pytest.fixture(params=["bpe", "characters", "wordpiece", "wordpiece that cleans up", "bytes"])
def tokenizer(request: pytest.FixtureRequest, chat_tokenizer: Any, plain_tokenizer: Any) -> Any:
    if request.param == "bytes":
        from areal_x.engine.servers.text_tokenizer import TextTokenizer

        return TextTokenizer()
    if request.param in ("bpe", "characters"):
        return {"bpe": chat_tokenizer, "characters": plain_tokenizer}[request.param]
    made = wordpiece()
    made.clean_up_tokenization_spaces = request.param == "wordpiece that cleans up"
    return made


def ids_or_error(encode: Any, *arguments: Any) -> Any:
    """The tokenizer of single characters has no id for those that it does not know."""
    try:
        return list(encode(*arguments))
    except Exception as error:  # Errors of the tokenizers library are plain Exceptions.
        return type(error), str(error)


@pytest.mark.parametrize("skips", [False, True])
def test_text_is_what_transformers_gives(tokenizer: Any, skips: bool) -> None:
    decode, numbers = text_decoder(tokenizer), np.random.default_rng(0)
    size = 259 if not hasattr(tokenizer, "vocab_size") else len(tokenizer)
    rows = [row for text in TEXTS if isinstance(row := ids_or_error(lambda of: tokenizer(of)["input_ids"], text), list)]
    rows += [[], *(numbers.integers(0, size, length).tolist() for length in (1, 2, 7, 40))]
    for row in rows:
        assert decode(row, skip_special_tokens=skips) == tokenizer.decode(row, skip_special_tokens=skips)
        assert decode(row) == tokenizer.decode(row)


@pytest.mark.parametrize("adds", [False, True])
def test_ids_are_what_transformers_gives(tokenizer: Any, adds: bool) -> None:
    encode = text_encoder(tokenizer)
    for text in TEXTS:
        expected = ids_or_error(lambda of: tokenizer(of, add_special_tokens=adds)["input_ids"], text)
        assert ids_or_error(encode, text, adds) == expected


def test_cleaning_up_may_be_chosen_later() -> None:
    made = wordpiece()
    decode, row = text_decoder(made), made("do n't .")["input_ids"]
    for cleans_up in (False, True, False):
        made.clean_up_tokenization_spaces = cleans_up
        assert decode(row) == made.decode(row)
    assert "do n't ." in decode(row)


def test_what_an_earlier_call_set_in_the_compiled_tokenizer_changes_no_ids(plain_tokenizer: Any) -> None:
    encode, text = text_encoder(plain_tokenizer), "48 and 24"
    plain = plain_tokenizer(text)["input_ids"]
    plain_tokenizer(text, padding="max_length", truncation=True, max_length=20)
    assert encode(text, True) == plain
    plain_tokenizer(text, truncation=True, max_length=3)
    assert encode(text, True) == plain
    plain_tokenizer.backend_tokenizer.encode_special_tokens = True
    assert encode("<|end|>", True) == plain_tokenizer("<|end|>")["input_ids"]


def test_a_tokenizer_with_ways_of_its_own_is_asked() -> None:
    from transformers import PreTrainedTokenizerFast

    class Loud(PreTrainedTokenizerFast):
        def _decode(self, *args: Any, **kwargs: Any) -> str:
            return super()._decode(*args, **kwargs).upper()

        def __call__(self, text: str, **options: Any) -> Any:
            return super().__call__(text.replace("many", "a"), **options)

    made = Loud(tokenizer_object=wordpiece().backend_tokenizer)
    assert text_decoder(made)([4, 5]) == "HOW MANY"
    assert text_encoder(made)("how many", False) == [4, 14]
    made = wordpiece()
    made.decode = lambda token_ids, **options: "its own"
    assert text_decoder(made)([4]) == "its own"


def test_text_that_is_no_unicode_has_the_error_of_transformers(plain_tokenizer: Any) -> None:
    with pytest.raises(TypeError) as expected:
        plain_tokenizer("\ud800")
    with pytest.raises(TypeError) as found:
        text_encoder(plain_tokenizer)("\ud800", True)
    assert str(found.value) == str(expected.value)


def test_transformers_warns_of_a_text_that_is_too_long(tmp_path: Path, plain_tokenizer: Any) -> None:
    asked: list[str] = []

    class Watched(type(plain_tokenizer)):  # type: ignore[misc]
        def _eventual_warn_about_too_long_sequence(self, ids: Any, *rest: Any) -> None:
            if len(ids) > self.model_max_length:
                asked.append("warned")

    made = Watched(tokenizer_object=plain_tokenizer.backend_tokenizer, model_max_length=4)
    assert len(text_encoder(made)("48 and 24", True)) == 9
    assert asked == ["warned"]
