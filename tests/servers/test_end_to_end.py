"""Whole runs on real servers, as a user starts them: the reward rises, and each publication arrives exactly."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import mark_kind
from running_engines import SERVERS
from server_by_hand import KEY, KEY_VARIABLE, server_by_hand
from whole_runs import FinishedRun, assert_sane, mean_of, run_to_end, values

pytestmark = pytest.mark.timeout(900)

ACCURACY = "eval/arithmetic/accuracy"
EXACT_AFTER_PUBLICATION = 1e-4
NUM_STEPS, BATCH_SIZE = 14, 256
PROBED = (sys.executable, str(Path(__file__).with_name("probed_train.py")))
SMALL = [
    "model.init.hidden_size=128", "model.init.num_layers=2", "model.init.num_heads=4", "model.init.num_kv_heads=2",
    "model.init.intermediate_size=384", "sft.steps=350", "sft.learning_rate=3e-3",
]  # fmt: skip
"""The quickstart's model in small, with a warm start that leaves much to learn."""
SHORT = [
    *SMALL, f"train.total_steps={NUM_STEPS}", f"train.batch_size={BATCH_SIZE}", "train.learning_rate=1e-3",
    "train.warmup_steps=2", "evaluation.every_steps=0", "evaluation.limit=256", "observe.report=false",
]  # fmt: skip
KINDS = [mark_kind(kind) for kind in SERVERS]
StartQuickstart = Callable[[str], tuple[FinishedRun, list[dict[str, object]]]]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> StartQuickstart:
    """The short quickstart with probes on one kind of server, run once."""
    done: dict[str, tuple[FinishedRun, list[dict[str, object]]]] = {}

    def run(kind: str) -> tuple[FinishedRun, list[dict[str, object]]]:
        if kind not in done:
            folder = tmp_path_factory.mktemp(f"quickstart_{kind}")
            arguments = ["train", "--config-name", "quickstart", f"rollout={kind}", *SHORT]
            finished = run_to_end(folder, "probes.jsonl", *arguments, command=PROBED)
            assert finished.status == 0, finished.output[-4000:]
            probes = [json.loads(line) for line in (folder / "probes.jsonl").read_text().splitlines()]
            done[kind] = finished, probes
        return done[kind]

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_the_reward_rises(quickstart: StartQuickstart, kind: str) -> None:
    run, _ = quickstart(kind)
    assert_sane(run, NUM_STEPS, BATCH_SIZE, max_staleness=2)
    rewards = values(run.steps(), "reward/mean")
    before, after = values(run.rows(), ACCURACY)
    print(f"{kind}: accuracy {before:.2f} to {after:.2f} in {run.seconds:.0f} s")
    assert mean_of(rewards[-3:]) >= mean_of(rewards[:3]) + 0.15
    assert after >= before + 0.3
    assert any(run.directory.rglob("*.log")), "the server's log is not in the run's directory"


@pytest.mark.parametrize("kind", KINDS)
def test_each_publication_is_served_exactly(quickstart: StartQuickstart, kind: str) -> None:
    _, probes = quickstart(kind)
    versions = [probe["version"] for probe in probes]
    assert versions == sorted(set(versions)) and len(versions) >= NUM_STEPS
    for probe in probes:
        assert probe["seen"] == [probe["version"]], probe
        assert probe["worst"] <= EXACT_AFTER_PUBLICATION, probe


def accuracy_of(run: FinishedRun) -> float:
    assert run.status == 0, run.output[-3000:]
    found = re.search(r"^  accuracy +([\d.]+)", run.output, re.MULTILINE)
    assert found, run.output[-3000:]
    return float(found[1])


def evaluation_of(policy: Path) -> list[str]:
    changes = ["evaluation.limit=256", "evaluation.sampling.max_new_tokens=8"]
    return ["eval", "--config-name", "quickstart", f"model.path={policy}", *changes]


@pytest.mark.vllm
def test_evaluation_starts_its_own_server(quickstart: StartQuickstart, tmp_path: Path) -> None:
    run, _ = quickstart("vllm")
    policy = run.directory / "policy"
    expected = values(run.rows(), ACCURACY)[-1]
    evaluated = run_to_end(tmp_path, *evaluation_of(policy), "rollout=vllm")
    assert accuracy_of(evaluated) == pytest.approx(expected, abs=0.01)


@pytest.mark.vllm
def test_evaluation_on_servers_that_run_and_on_any_endpoint(
    quickstart: StartQuickstart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = quickstart("vllm")
    policy = run.directory / "policy"
    expected = values(run.rows(), ACCURACY)[-1]
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with server_by_hand("vllm", policy, tmp_path, max_length=64) as server:
        key = f"rollout.server.api_key_env={KEY_VARIABLE}"
        attached = run_to_end(
            tmp_path / "attached", *evaluation_of(policy), "rollout=vllm", f"rollout.base_urls=[{server.url}]", key
        )
        endpoint = run_to_end(
            tmp_path / "endpoint", *evaluation_of(policy), "rollout=openai", f"rollout.base_urls=[{server.url}/v1]", key
        )
    for evaluated in (attached, endpoint):
        assert accuracy_of(evaluated) == pytest.approx(expected, abs=0.01)
        assert KEY not in evaluated.output


@pytest.mark.vllm
@pytest.mark.parametrize("max_staleness", [0, pytest.param(2, marks=pytest.mark.soak)])
def test_a_colocated_run_sleeps_and_wakes_with_the_new_weights(tmp_path: Path, max_staleness: int) -> None:
    """On a CPU a sleeping server keeps its memory; the order of the steps and the exactness are those of a GPU."""
    arguments = ["train", "--config-name", "quickstart", "rollout=vllm", "rollout.colocated=true", *SHORT]
    arguments += [
        "sft.steps=20",
        "train.total_steps=3",
        f"rollout.max_staleness={max_staleness}",
        "evaluation.limit=16",
    ]
    run = run_to_end(tmp_path, "probes.jsonl", *arguments, command=PROBED)
    assert_sane(run, 3, BATCH_SIZE, max_staleness)
    probes = [json.loads(line) for line in (tmp_path / "probes.jsonl").read_text().splitlines()]
    assert len(probes) == 4
    for probe in probes:
        assert probe["seen"] == [probe["version"]] and probe["worst"] <= EXACT_AFTER_PUBLICATION, probe


GSM8K = pytest.mark.skipif("AREAL_X_GSM8K" not in os.environ, reason="AREAL_X_GSM8K names no GSM8K data")


def gsm8k(folder: Path, kind: str, *changes: str, timeout: float = 800.0) -> FinishedRun:
    data = Path(os.environ["AREAL_X_GSM8K"]) / "train.jsonl"
    arguments = ["train", "--config-name", "gsm8k", f"data.path={data}", f"rollout={kind}", "observe.report=false"]
    return run_to_end(folder, *arguments, *changes, timeout=timeout)


@GSM8K
@pytest.mark.soak
@pytest.mark.parametrize("kind", [mark_kind(kind) for kind in SERVERS])
def test_gsm8k_runs(tmp_path: Path, kind: str) -> None:
    short = [
        "data.limit=2000", "sft.steps=30", "train.total_steps=14", "train.learning_rate=1e-3", "train.warmup_steps=2",
        "evaluation.every_steps=0", "rollout.sampling.max_new_tokens=32", "evaluation.limit=32",
        "evaluation.sampling.max_new_tokens=32",
    ]  # fmt: skip
    run = gsm8k(tmp_path, kind, *short)
    assert_sane(run, 14, 128, max_staleness=2)
    rewards = values(run.steps(), "reward/mean")
    assert mean_of(rewards[-4:]) >= mean_of(rewards[:3]) + 0.03, rewards


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_whole_runs_on_every_engine(tmp_path: Path) -> None:
    """The shipped configurations as they are, on the embedded engine and on both servers."""
    rows, misses = [], []
    for config in ("quickstart", "gsm8k"):
        for kind in ("embedded", *SERVERS):
            folder = tmp_path / f"{config}_{kind}"
            if config == "gsm8k":
                run = gsm8k(folder, kind, timeout=1500)
            else:
                run = run_to_end(folder, "train", "--config-name", config, f"rollout={kind}", timeout=900)
            assert run.status == 0, run.output[-3000:]
            rewards = values(run.steps(), "reward/mean")
            first, last = mean_of(rewards[:10]), mean_of(rewards[-10:])
            rows.append(f"| {config} | {kind} | {len(rewards)} | {first:.3f} | {last:.3f} | {run.seconds:.0f} |")
            if last <= first * 1.2:
                misses.append(rows[-1])
    write_table(rows)
    assert not misses, "\n".join(misses)


def write_table(rows: list[str]) -> None:
    """Leave the figures in the folder that AREAL_X_SOAK_OUT names, if it names one; misses stand there too."""
    lines = [
        "# Whole runs on every engine",
        "",
        "Written by `make soak`: the shipped configurations on 2 CPU cores. Rewards are means of ten steps each; the",
        "seconds include the start of the server and the warm start.",
        "",
        "| configuration | engine | steps | reward, first | reward, last | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
    ]
    folder = os.environ.get("AREAL_X_SOAK_OUT")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "whole_runs.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(rows))
