"""What a reward model reads, and where its scores are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scoring_models import files_of, make_reward_model, renderer_of
from transformers import AutoTokenizer

from areal_x.api.errors import ConfigError
from areal_x.api.reward_records import RewardError


@pytest.fixture(scope="module")
def sequence_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reward_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def token_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reward_model(tmp_path_factory.mktemp("models"), "token")


def test_text_and_messages_are_rendered_by_the_model_s_own_template(sequence_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(sequence_model)
    conversation = renderer_of(sequence_model).render("What is the sum?", "It is four.")
    assert tokenizer.decode(conversation.ids) == "<|user|>What is the sum?<|end|><|assistant|>It is four.<|end|>"
    messages = [{"role": "system", "content": "add"}, {"role": "user", "content": "two"}]
    assert tokenizer.decode(renderer_of(sequence_model).render(messages, "five").ids).startswith("<|system|>add<|end|>")
    plain = renderer_of(sequence_model, chat_template=False).render("What is the sum?", " Four.")
    assert tokenizer.decode(plain.ids) == "What is the sum? Four."


def test_a_conversation_of_several_turns_is_rendered_as_such(sequence_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(sequence_model)
    turns = [
        {"role": "assistant", "content": "four"},
        {"role": "user", "content": "no"},
        {"role": "assistant", "content": "five"},
    ]
    ids = renderer_of(sequence_model).render("add", turns).ids
    assert tokenizer.decode(ids).endswith("<|assistant|>four<|end|><|user|>no<|end|><|assistant|>five<|end|>")


def test_a_sequence_is_scored_at_its_last_token_that_is_no_padding(tmp_path: Path) -> None:
    path = make_reward_model(tmp_path)
    conversation = renderer_of(path).render("two", "five")
    assert conversation.positions.tolist() == [len(conversation.ids) - 1]
    config = json.loads((path / "config.json").read_text())
    config["pad_token_id"] = int(conversation.ids[-1])
    (path / "config.json").write_text(json.dumps(config))
    assert renderer_of(path).render("two", "five").positions.tolist() == [len(conversation.ids) - 2]


@pytest.mark.parametrize(
    ("completion", "steps"),
    [
        ("First we add.\n\nThen five.", ["First we add.\n\n", "Then five."]),
        ("First we add.\n\n", ["First we add.\n\n"]),
        ("\n\nFive.\n\n \n\n", ["\n\n", "Five.\n\n", " \n\n"]),
        ("no step", ["no step"]),
    ],
)
def test_each_step_is_scored_at_its_last_token(token_model: Path, completion: str, steps: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(token_model)
    conversation = renderer_of(token_model, step_separator="\n\n").render("First", completion)
    start, ends = "<|user|>First<|end|><|assistant|>", []
    for step in steps:
        start += step
        ends.append(start)
    found = [tokenizer.decode(conversation.ids[: place + 1]) for place in conversation.positions]
    assert [text.rstrip() for text in found] == [text.rstrip() for text in ends]


def test_without_a_separator_the_completion_s_last_token_is_scored(token_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(token_model)
    conversation = renderer_of(token_model).render("five", "First we add.\n\nThen five")
    (place,) = conversation.positions
    assert tokenizer.decode(conversation.ids[: place + 1]).endswith("Then five")
    empty = renderer_of(token_model).render("five", "")
    assert empty.positions.tolist() == [len(empty.ids) - 1]


def test_what_is_too_long_is_an_error_that_names_the_numbers(sequence_model: Path) -> None:
    with pytest.raises(
        RewardError, match=r"has \d+ tokens of the reward model; it takes 8 \(reward_model\.max_length=8"
    ):
        renderer_of(sequence_model, max_length=8).render("What is the sum?", "It is four.")
    assert files_of(sequence_model).max_positions == 1024
    with pytest.raises(RewardError, match="it takes 1024"):
        renderer_of(sequence_model).render("What is the sum?", "four " * 2000)


def test_messages_without_a_template_are_an_error_of_that_sample(sequence_model: Path) -> None:
    with pytest.raises(RewardError, match="chat messages need a chat template"):
        renderer_of(sequence_model, chat_template=False).render([{"role": "user", "content": "x"}], "y")


def changed_template(tmp_path: Path, template: str | None) -> Path:
    path = make_reward_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = template
    for file in path.glob("chat_template*"):
        file.unlink()
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, r"no chat template; set reward_model\.chat_template=false"),
        ("{{ messages[0]['content'] }}", "drops the prompt or the completion"),
        ("{{ raise_exception('no assistant') }}", "its chat template fails: no assistant"),
        ("{% for m in %}", "its chat template fails"),
    ],
)
def test_a_template_that_does_not_fit_is_refused_at_the_start(
    tmp_path: Path, template: str | None, expected: str
) -> None:
    path = changed_template(tmp_path, template)
    with pytest.raises(ConfigError, match=expected):
        renderer_of(path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    path = make_reward_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens([f"<extra-{number}>" for number in range(50)])
    tokenizer.save_pretrained(path)
    with pytest.raises(ConfigError, match=r"tokenizer knows \d+ tokens and its embedding \d+"):
        renderer_of(path)
    for file in path.glob("*token*"):
        file.unlink()
    with pytest.raises(ConfigError, match=r"reward_model\.path=.*there is no tokenizer beside the model"):
        renderer_of(path)


@pytest.mark.parametrize("separator", [None, "\n\n"])
def test_many_conversations_are_rendered_as_each_alone(
    sequence_model: Path, token_model: Path, separator: str | None
) -> None:
    asked = [
        ("two", "five"),
        ("What is the sum?", "First.\n\nThen five."),
        ("add " * 400, "x"),
        ("", ""),
        ("two", "five"),
    ]
    for path in (sequence_model, token_model):
        renderer = renderer_of(path, step_separator=separator if path == token_model else None, max_length=64)
        together = renderer.render_all([*asked, ("two", [{"role": "assistant"}])])
        for (prompt, completion), found in zip(asked, together, strict=False):
            if isinstance(found, RewardError):
                with pytest.raises(RewardError) as caught:
                    renderer.render(prompt, completion)
                assert str(caught.value) == str(found) and "tokens of the reward model" in str(found)
            else:
                alone = renderer.render(prompt, completion)
                assert alone.ids.tolist() == found.ids.tolist()
                assert alone.positions.tolist() == found.positions.tolist()
        assert [isinstance(found, RewardError) for found in together] == [False, False, True, False, False, True]
        assert renderer.render_all([]) == []
