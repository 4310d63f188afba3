"""`areal-x train-rm` as a whole: small models, real steps, and transformers as the judge of what was written."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from areal_x.cli import main
from areal_x.engine.init_model import init_model

KIND = ("thanks", "please", "welcome", "gladly", "surely", "dear")
UNKIND = ("no", "never", "silly", "wrong", "boring", "whatever")
SMALL = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "intermediate_size": 64}


def write_pairs(path: Path, number: int, chat: bool = False, seed: int = 0) -> Path:
    """The chosen answer has a kind word where the rejected one has an unkind one; both have one length."""
    chance = random.Random(seed)
    rows = []
    for index in range(number):
        words = chance.choices(("the", "sum", "is", "four", "maybe"), k=chance.randint(3, 6))
        place = chance.randrange(len(words))
        chosen, rejected = (
            " ".join([*words[:place], chance.choice(kind), *words[place + 1 :]]) for kind in (KIND, UNKIND)
        )
        prompt = f"question {index % 37}?"
        user = {"role": "user", "content": prompt}
        rows.append(
            {
                name: [user, {"role": "assistant", "content": text}]
                for name, text in (("chosen", chosen), ("rejected", rejected))
            }
            if chat
            else {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_file(folder: Path, **changes: Any) -> str:
    config: dict[str, Any] = {
        "defaults": ["train_rm", "_self_"],
        "name": "rm",
        "runs_dir": str(folder / "runs"),
        "model": {"init": SMALL | {"vocab_size": 300}, "device": "cpu"},
        "preferences": {"steps": 20, "batch_size": 16, "learning_rate": 5e-3, "warmup_steps": 2},
        "evaluation": {"every_steps": 10},
    }
    for section, values in changes.items():
        config[section] = {**config[section], **values} if isinstance(values, dict) and section in config else values
    path = folder / "rm.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_equal_scores(run: Path, chat: bool) -> None:
    """What transformers makes of the written folder alone, padded to one batch, is what was written of each pair."""
    records = [json.loads(line) for line in (run / "held_out_scores.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(run / "reward_model")
    model = AutoModelForSequenceClassification.from_pretrained(run / "reward_model", dtype=torch.float32).eval()
    assert model.config.num_labels == 1 and model.config.pad_token_id == tokenizer.pad_token_id
    for role in ("chosen", "rejected"):
        texts = [
            tokenizer.apply_chat_template([*record["prompt"], *record[role]], tokenize=False)
            if chat
            else record["prompt"] + record[role]
            for record in records
        ]
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=not chat)
        with torch.inference_mode():
            logits = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits[:, 0]
        np.testing.assert_allclose(logits, [record[f"{role}_score"] for record in records], atol=1e-5)


@pytest.mark.parametrize("chat", [True, False])
def test_accuracy_rises_and_transformers_agrees(chat: bool, tmp_path: Path, capsys: Any) -> None:
    held_out = write_pairs(tmp_path / "held_out.jsonl", 60, chat, seed=1)
    pairs = write_pairs(tmp_path / "pairs.jsonl", 200, chat)
    preferences = {"path": str(pairs), "eval_path": str(held_out), "chat_template": chat}
    assert main(["train-rm", config_file(tmp_path, preferences=preferences)]) == 0
    run = tmp_path / "runs" / "rm"
    rows = metrics_of(run)
    accuracies = {row["step"]: row["rm/held_out_accuracy"] for row in rows if "rm/held_out_accuracy" in row}
    assert list(accuracies) == [0, 10, 20] and accuracies[0] < 0.75 and accuracies[20] >= 0.9
    assert {"rm/loss", "rm/accuracy", "rm/margin", "rm/chosen_score", "rm/rejected_score", "rm/grad_norm"} <= set(
        rows[1]
    )
    assert_equal_scores(run, chat)
    printed = capsys.readouterr().out
    assert "200 pairs to train on, 60 held out" in printed and f"reward_model.path={run / 'reward_model'}" in printed


def test_two_ranks_write_what_one_does_and_a_reward_model_is_trained_on(tmp_path: Path) -> None:
    """A padding token that ends conversations gets a new id; with ranks, the model must have room for it."""
    path = init_model(tmp_path / "model", texts=["the sum is four maybe question 0123456789?"], vocab_size=320, **SMALL)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(path)
    preferences = {"path": str(write_pairs(tmp_path / "pairs.jsonl", 80, chat=True)), "steps": 3}
    model = {"path": str(path), "init": None}
    first = config_file(tmp_path, preferences=preferences, model=model)
    assert main(["train-rm", first, "name=one"]) == 0
    trained = tmp_path / "runs" / "one" / "reward_model"
    padding = AutoTokenizer.from_pretrained(trained).pad_token_id
    assert padding != tokenizer.eos_token_id
    assert_equal_scores(tmp_path / "runs" / "one", chat=True)
    for ranks in (1, 2):
        again = [f"model.path={trained}", f"train.num_ranks={ranks}", f"name=ranks_{ranks}"]
        assert main(["train-rm", first, *again]) == 0
    alone, together = (metrics_of(tmp_path / "runs" / f"ranks_{ranks}") for ranks in (1, 2))
    for row, same in zip(alone, together, strict=True):
        for name in ("rm/loss", "rm/margin", "rm/grad_norm", "rm/held_out_loss"):
            assert (name in row) == (name in same)
            assert name not in row or row[name] == pytest.approx(same[name], abs=1e-5, rel=1e-5), (row["step"], name)
    start = metrics_of(tmp_path / "runs" / "one")[-1]["rm/held_out_loss"]
    assert alone[0]["rm/held_out_loss"] == pytest.approx(start, abs=1e-5)
    assert_equal_scores(tmp_path / "runs" / "ranks_2", chat=True)
    for rank in (0, 1):
        assert "view" not in (tmp_path / "runs" / "ranks_2" / "ranks" / f"rank{rank}.log").read_text()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["preferences.path=nope.jsonl"], "preferences.path=nope.jsonl: no such file"),
        ([], "preferences.path=None: name a file of preference pairs"),
        (["preferences.path=empty.jsonl"], "preferences.path=empty.jsonl: the file is empty"),
        (["preferences.path=pairs.jsonl", "preferences.chosen_key=better"], "pairs.jsonl:1: no column 'better'"),
        (
            ["preferences.path=pairs.jsonl", "preferences.rejected_key=chosen"],
            "is the column of the chosen answers, too",
        ),
        (["preferences.path=pairs.jsonl", "preferences.eval_path=no.jsonl"], "preferences.eval_path=no.jsonl: no such"),
        (["preferences.path=pairs.jsonl", "preferences.batch_size=0"], "preferences.batch_size=0: must be 1 or more"),
        (["preferences.path=pairs.jsonl", "preferences.max_length=1"], "preferences.max_length=1: must be 2 or more"),
        (["preferences.path=pairs.jsonl", "preferences.lr_schedule=cosin"], "did you mean cosine?"),
        (["preferences.path=pairs.jsonl", "preferences.learning_rate=-1"], "preferences.learning_rate=-1.0: must be 0"),
        (["preferences.path=pairs.jsonl", "train.lora.rank=8"], "train.lora.rank=8: reward models are trained whole"),
        (["preferences.path=pairs.jsonl", "model.path=models/none"], "model.path=models/none: no such folder"),
        (["preferences.path=pairs.jsonl", "preferences.stepz=3"], "did you mean preferences.steps?"),
        (["preferences.path=pairs.jsonl", "train.learning_rate=1e-5"], "=1e-05: is not for areal-x train-rm; use pref"),
        (["data.path=pairs.jsonl"], "data.path=pairs.jsonl: is not for areal-x train-rm; use preferences.path"),
        (["reward_model.path=models/old"], "use model.path, the model that is trained"),
    ],
)
def test_bad_input_is_told_before_anything_is_loaded(
    words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.jsonl", 4)
    (tmp_path / "empty.jsonl").touch()
    assert main(["train-rm", "--config-name", "train_rm", *words, "--dry-run"]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["preferences.max_length=3"], r"no preference pair is left (\d+ too long)"),
        (
            ["model.init.tokenizer=characters"],
            "the tokenizer has no chat template; set preferences.chat_template=false",
        ),
    ],
)
def test_pairs_that_do_not_fit_the_model_are_told(words: list[str], expected: str, tmp_path: Path, capsys: Any) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", 80)
    assert main(["train-rm", config_file(tmp_path, preferences={"path": str(pairs)}), *words]) == 2
    assert expected.split("(")[0] in capsys.readouterr().err
    assert not (tmp_path / "runs" / "rm").exists()
