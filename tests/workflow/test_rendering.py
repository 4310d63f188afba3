"""Prompts become exact token ids, once for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from areal_x.api.errors import ConfigError, DataError
from areal_x.workflow.rendering import PromptRenderer


def test_a_text_prompt_goes_through_the_chat_template(chat_tokenizer: Any) -> None:
    rendered = PromptRenderer(chat_tokenizer, "question", "Be brief.").render({"question": "How many?"})
    assert rendered.text == "<|system|>Be brief.<|end|><|user|>How many?<|end|><|assistant|>"
    assert rendered.ids.dtype == np.int32
    assert chat_tokenizer.decode(rendered.ids) == rendered.text
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]
    whole = chat_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert rendered.ids.tolist() == whole


def test_messages_are_rendered_as_they_are(chat_tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    rendered = PromptRenderer(chat_tokenizer, "messages", "Not for messages.").render({"messages": messages})
    assert rendered.text == "<|user|>a<|end|><|assistant|>b<|end|><|user|>c<|end|><|assistant|>"


def test_plain_text_is_the_prompt_itself(plain_tokenizer: Any) -> None:
    rendered = PromptRenderer(plain_tokenizer, chat_template=False).render({"prompt": "48 and 24"})
    assert rendered.text == "48 and 24"
    assert len(rendered.ids) == 9


def test_episodes_of_a_group_share_one_rendering_that_nobody_can_change(chat_tokenizer: Any) -> None:
    renderer = PromptRenderer(chat_tokenizer)
    first = renderer.render({"prompt": "How many?", "other": 1})
    assert renderer.render({"prompt": "How many?", "other": 2}) is first
    with pytest.raises(ValueError, match="read-only"):
        first.ids[0] = 1
    messages = [{"role": "user", "content": "a"}]
    assert renderer.render({"prompt": messages}) is renderer.render({"prompt": [dict(messages[0])]})


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty prompt"),
        (" \n", "empty prompt"),
        (7, "neither text nor"),
        ([], "neither text nor"),
        (["a"], "neither text nor"),
    ],
)
def test_what_is_no_prompt_is_named(chat_tokenizer: Any, prompt: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        PromptRenderer(chat_tokenizer).render({"prompt": prompt})


def test_a_missing_column_lists_those_there_are(chat_tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"no column 'prompt'; set data\.prompt_key to one of: question, answer"):
        PromptRenderer(chat_tokenizer).render({"question": "a", "answer": "b"})


def test_wrong_combinations_fail_at_construction(plain_tokenizer: Any, chat_tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"no chat template; set data\.chat_template=false"):
        PromptRenderer(plain_tokenizer)
    with pytest.raises(ConfigError, match=r"data\.system_prompt needs"):
        PromptRenderer(chat_tokenizer, system_prompt="Be brief.", chat_template=False)
    with pytest.raises(DataError, match=r"they need data\.chat_template=true"):
        PromptRenderer(chat_tokenizer, chat_template=False).render({"prompt": [{"role": "user", "content": "a"}]})


def test_a_character_that_the_tokenizer_does_not_know_is_an_error(plain_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="cannot encode the prompt 'π'"):
        PromptRenderer(plain_tokenizer, chat_template=False).render({"prompt": "π"})


def test_feedback_is_what_the_template_puts_between_two_assistant_turns(chat_tokenizer: Any) -> None:
    renderer = PromptRenderer(chat_tokenizer)
    feedback = renderer.render_feedback("wrong")
    assert feedback.text == "<|end|><|user|>wrong<|end|><|assistant|>"
    assert feedback.ids[0] == chat_tokenizer.eos_token_id


def test_a_template_that_hides_assistant_turns_cannot_take_feedback(chat_tokenizer: Any) -> None:
    class Hiding:
        chat_template = "some"

        def apply_chat_template(self, conversation: Any, **_: Any) -> str:
            return "".join(m["content"] for m in conversation if m["role"] != "assistant")

    with pytest.raises(ConfigError, match="drops assistant messages"):
        PromptRenderer(Hiding()).render_feedback("wrong")  # type: ignore[arg-type]
