"""The whole quickstart in small: the reward must rise, and everything that a run promises must be there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer_runs import TINY, FinishedRun, run_command, values

ACCURACY = "eval/arithmetic/accuracy"
TIME_METRICS = ("perf/", "time", "train/seconds")


def test_the_reward_rises(small_quickstart: FinishedRun) -> None:
    run = small_quickstart
    assert run.status == 0, run.stderr
    accuracies = values(run.rows(), ACCURACY)
    rewards = values(run.rows(), "reward/mean")
    assert len(rewards) == 40
    assert accuracies[-1] >= accuracies[0] + 0.2
    assert accuracies[-1] >= 0.7
    assert sum(rewards[-5:]) / 5 >= sum(rewards[:5]) / 5 + 0.2


def test_one_object_for_each_step(small_quickstart: FinishedRun) -> None:
    rows = small_quickstart.rows()
    trained = [row for row in rows if "reward/mean" in row]
    assert [row["step"] for row in trained] == list(range(1, 41))
    assert [row["version"] for row in trained] == list(range(1, 41))
    assert [row["step"] for row in rows if ACCURACY in row] == [0, 20, 40]


def test_the_run_directory_is_whole(small_quickstart: FinishedRun) -> None:
    directory = small_quickstart.directory
    for name in ("config.yaml", "report.html", "curves.png"):
        assert (directory / name).stat().st_size > 100, name
    assert len(small_quickstart.rows("trajectories.jsonl")) == 40 * 16
    assert small_quickstart.rows("timeline.jsonl")
    assert json.loads((directory / "run.json").read_text())["status"] == "finished"


def test_no_token_is_over_age_and_no_episode_is_lost(small_quickstart: FinishedRun) -> None:
    rows = [row for row in small_quickstart.rows() if "reward/mean" in row]
    lags = {int(name.rpartition("/")[2]) for row in rows for name in row if name.startswith("staleness/lag/")}
    assert lags <= {0, 1, 2}
    assert max(lags) > 0, "nothing was generated while the trainer worked"
    last = rows[-1]
    ended = sum(last[f"episodes/{end}"] for end in ("trained", "rejected", "failed", "cancelled"))
    assert last["episodes/trained"] == 40 * 512
    assert last["episodes/failed"] == last["episodes/rejected"] == 0
    waiting = last["episodes/submitted"] - ended - last["rollout/in_flight"] - 8 * last["rollout/queue"]
    assert 0 <= waiting <= 3 * 512, "what neither ended nor runs waits for the rest of its group"


def test_the_policy_loads_with_transformers_and_adds(small_quickstart: FinishedRun) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from areal_x.api.config import DataConfig
    from areal_x.rollout.dataset import load_dataset_items

    path = small_quickstart.directory / "policy"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    kwargs = {"num_digits": 2, "zero_pad": True, "reverse": True}
    items = load_dataset_items(DataConfig(path="arithmetic", chat_template=False, kwargs=kwargs), "eval")[:100]
    right = 0
    for item in items:
        ids = torch.tensor([tokenizer(item["prompt"])["input_ids"]])
        with torch.no_grad():
            output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        right += tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip() == item["answer"]
    assert right >= 60


def repeatable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.startswith(TIME_METRICS)} for row in rows]


def test_synchronous_runs_of_one_seed_are_bitwise_equal(tmp_path: Path) -> None:
    runs = {}
    for name, seed in (("first", 5), ("again", 5), ("other", 6)):
        (tmp_path / name).mkdir()
        changes = [*TINY, "rollout.max_staleness=0", f"seed={seed}", "sft.enabled=true", "sft.steps=10"]
        changes += ["evaluation.every_steps=1", "evaluation.group_size=2", "evaluation.sampling.temperature=1.0"]
        changes += [f"evaluation.sets.{name}.path=arithmetic" for name in ("some", "others")]
        runs[name] = run_command(tmp_path / name, "train", "--config-name", "quickstart", *changes)
        assert runs[name].status == 0, runs[name].stderr
    metrics = {name: repeatable(run.rows()) for name, run in runs.items()}
    samples = {name: repeatable(run.rows("trajectories.jsonl")) for name, run in runs.items()}
    weights = {name: (run.directory / "policy" / "model.safetensors").read_bytes() for name, run in runs.items()}
    assert metrics["first"] == metrics["again"]
    assert samples["first"] == samples["again"]
    assert weights["first"] == weights["again"]
    assert samples["first"] != samples["other"]
    assert weights["first"] != weights["other"]
    lags = {name for row in metrics["first"] for name in row if name.startswith("staleness/lag/")}
    assert lags == {"staleness/lag/0"}
    assert [row["step"] for row in metrics["first"] if "eval/others/accuracy" in row] == [0, 1, 2, 3]
