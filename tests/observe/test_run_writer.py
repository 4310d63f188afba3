"""The run's files: whole lines only, nothing reported is lost, no secrets."""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_x.api.config import ObserveConfig
from areal_x.api.errors import ArealXError
from areal_x.api.records import Trajectory, VersionSpan
from areal_x.api.reward_api import RewardOutcome
from areal_x.observe import RunWriteError, RunWriter, load_run, redact_yaml, trajectory_record
from areal_x.observe.run_files import read_lines
from areal_x.observe.timeline import MAX_SPANS_PER_LANE, Span, coalesce, mean_in_flight


def open_writer(run_dir: Path, config: str = "name: test\n", **observe: bool) -> RunWriter:
    return RunWriter(run_dir, config, ObserveConfig(**observe), "test")


def a_trajectory(outcome: RewardOutcome | None) -> Trajectory:
    return Trajectory(
        input_ids=np.arange(6, dtype=np.int32),
        loss_mask=np.array([0, 0, 1, 1, 1, 1], dtype=np.bool_),
        logprobs=np.array([0, 0, -0.5, -0.25, -1.0, -2.0], dtype=np.float32),
        version_spans=[VersionSpan(2, 4, 1), VersionSpan(4, 6, 4)],
        outcome=outcome,
        prompt="ab",
        completion="cdef",
        group_id=7,
        episode_id="episode-1",
    )


def test_what_was_reported_is_in_the_files_before_the_run_ends(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    writer.add_span("training", "train step", writer.started_at + 1.0, writer.started_at + 1.5, tokens=12)
    writer.write_step({"step": 1, "version": np.int64(0), "reward/mean": np.float32(0.5), "train/loss": float("nan")})
    record = trajectory_record(
        a_trajectory(RewardOutcome("ok", 1.0)), list("abcdef"), step=1, version=4, reward=1.0, advantage=0.5
    )
    writer.write_trajectories([record, record])
    (row,) = read_lines(tmp_path / "metrics.jsonl")
    assert {name: row[name] for name in ("step", "version", "reward/mean", "train/loss")} == {
        "step": 1,
        "version": 0,
        "reward/mean": 0.5,
        "train/loss": None,
    }
    assert 0 <= row["time"] < 60
    assert list(read_lines(tmp_path / "trajectories.jsonl")) == [record, record]
    (span,) = read_lines(tmp_path / "timeline.jsonl")
    assert span == {"tokens": 12, "lane": "training", "name": "train step", "start": 1.0, "end": 1.5}
    assert load_run(tmp_path).info["status"] == "running"
    writer.close("interrupted")
    writer.close()
    assert load_run(tmp_path).info["status"] == "interrupted"
    with pytest.raises(RunWriteError, match="closed"):
        writer.write_step({"step": 2})


def test_a_step_needs_its_number(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    with pytest.raises(ValueError, match="step"):
        writer.write_step({"reward/mean": 1.0})
    writer.close()


def test_two_calls_for_one_step_are_read_as_one(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    writer.write_step({"step": 1, "reward/mean": 0.5})
    writer.write_step({"step": 1, "eval/gsm8k/accuracy": 0.25})
    writer.close()
    run = load_run(tmp_path)
    assert len(run.steps) == 1
    assert run.steps[0]["reward/mean"] == 0.5
    assert run.accuracies == {"gsm8k": [(1, 0.25)]}


def test_a_half_line_of_a_killed_run_is_cut_off_and_the_rest_stays(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n{"step": 2, "rewa')
    assert [row["step"] for row in load_run(tmp_path).steps] == [1]
    writer = open_writer(tmp_path)
    writer.write_step({"step": 3})
    writer.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 3]


def test_sigkill_loses_nothing_reported(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from areal_x.api.config import ObserveConfig
        from areal_x.observe.run_writer import RunWriter
        writer = RunWriter(Path(sys.argv[1]), "name: test", ObserveConfig(), "test")
        step = 0
        while True:
            step += 1
            writer.write_step({"step": step, "text": "x" * 5000})
            print(step, flush=True)
        """
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(200)]
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.readlines()
    reported = [int(line) for line in lines if line.endswith("\n")]
    steps = [row["step"] for row in load_run(tmp_path).steps]
    assert steps[: len(reported)] == reported
    assert len(steps) <= len(reported) + 1


def test_a_full_disk_is_named_and_leaves_whole_lines(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    writer.write_step({"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = (tmp_path / "metrics.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, before[1]))
    try:
        with pytest.raises(RunWriteError, match=r"cannot write .*metrics\.jsonl") as caught:
            writer.write_step({"step": 2, "text": "x" * 500})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert isinstance(caught.value, ArealXError)
    assert "\n" not in str(caught.value)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1]
    writer.write_step({"step": 2})
    writer.close()
    assert [row["step"] for row in load_run(tmp_path).steps] == [1, 2]


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunWriteError, match="cannot make"):
        open_writer(tmp_path / "file" / "run")


def test_secrets_go_and_everything_else_stays() -> None:
    text = redact_yaml(
        """
        data: {prompt_key: question, completion_key: answer, path: 'https://user:hunter2@host/file'}
        model: {hf_token: abc, pad_token: <pad>, init: {tokenizer: bpe}}
        train: {micro_batch_tokens: 16384, lr: 1.0e-4}
        rollout: {sampling: {max_new_tokens: 64, stop_token_ids: [1, 2]}}
        judge:
          api_key: plain-secret-1
          apiKey: plain-secret-2
          OPENAI_API_KEY: plain-secret-3
          credentials: {user: plain-secret-4, more: [plain-secret-5]}
          password: 1234567890
          from_environment: {api_key: '${oc.env:KEY}'}
          header: 'Bearer plain-secret-6'
          command: 'serve --api_key=plain-secret-7 --port 80'
          note: 'mine is sk-abcdefghijklmnop1234'
        """
    )
    for secret in ("hunter2", "abc", "plain-secret", "1234567890", "abcdefghijklmnop1234"):
        assert secret not in text
    for kept in (
        "prompt_key: question",
        "completion_key: answer",
        "pad_token: <pad>",
        "tokenizer: bpe",
        "micro_batch_tokens: 16384",
        "max_new_tokens: 64",
        "- 2",
        "${oc.env:KEY}",
        "--port 80",
        "@host/file",
    ):
        assert kept in text


def test_the_written_config_has_no_secret(tmp_path: Path) -> None:
    open_writer(tmp_path, "judge: {api_key: very-secret-value}\n").close()
    assert all(b"very-secret-value" not in path.read_bytes() for path in tmp_path.iterdir())
    assert load_run(tmp_path).config == {"judge": {"api_key": "<redacted>"}}


def test_a_record_tells_sampled_trained_and_over_age_tokens_apart() -> None:
    trajectory = a_trajectory(RewardOutcome("ok", 0.75, {"format": 1.0, "accuracy": np.float32(0.5)}))
    young = np.array([0, 0, 0, 0, 1, 1], dtype=np.bool_)
    record = trajectory_record(
        trajectory, list("abcdef"), step=5, version=4, reward=0.75, advantage=-0.1234567, trained_mask=young
    )
    assert record["mask"] == [[4, 6]]
    assert record["version_spans"] == [[2, 4, 1], [4, 6, 4]]
    assert record["lag"] == 3
    assert record["logprobs"] == [-500, -250, -1000, -2000]
    assert record["parts"] == {"format": 1.0, "accuracy": 0.5}
    assert record["advantage"] == -0.123457
    assert json.loads(json.dumps(record)) == record


def test_a_failed_score_has_its_reason_and_no_number() -> None:
    outcome = RewardOutcome("error", error="Traceback:\n  file\nValueError: no answer")
    record = trajectory_record(a_trajectory(outcome), list("abcdef"), step=1, version=4, reward=None, advantage=None)
    assert (record["status"], record["reason"], record["reward"]) == ("error", "ValueError: no answer", None)


def test_a_record_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="5 token texts"):
        trajectory_record(a_trajectory(None), list("abcde"), step=1, version=4, reward=None, advantage=None)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.001, 10)), min_size=1, max_size=60))
def test_in_flight_counts_keep_the_time_of_all_spans(spans: list[tuple[float, float]]) -> None:
    starts = np.array([start for start, _ in spans])
    ends = np.array([start + length for start, length in spans])
    edges = np.linspace(starts.min(), ends.max(), 17)
    counts = mean_in_flight(starts, ends, edges)
    assert np.sum(counts * np.diff(edges)) == pytest.approx(np.sum(ends - starts), rel=1e-6)
    direct = [np.sum(np.clip(ends, a, b) - np.clip(starts, a, b)) / (b - a) for a, b in itertools.pairwise(edges)]
    assert counts == pytest.approx(np.array(direct), abs=1e-6)


def test_a_busy_lane_becomes_one_record() -> None:
    spans = [Span("scoring", "reward", 100.0 + k, 101.0 + k, {}) for k in range(MAX_SPANS_PER_LANE + 1)]
    spans.append(Span("training", "train step", 100.0, 110.0, {}))
    activity, training = coalesce(spans, origin=100.0)
    assert activity["count"] == MAX_SPANS_PER_LANE + 1
    assert activity["in_flight"] == [1.0] * len(activity["in_flight"])
    assert (training["start"], training["end"]) == (0.0, 10.0)
    assert len(coalesce(spans[:MAX_SPANS_PER_LANE], origin=100.0)) == MAX_SPANS_PER_LANE


def test_spans_without_a_step_do_not_pile_up(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    for k in range(10_000):
        writer.add_span("generation", "episode", writer.started_at + k, writer.started_at + k + 1)
    assert 0 < sum(span["count"] for span in read_lines(tmp_path / "timeline.jsonl")) < 10_000
    writer.close()
    assert sum(span["count"] for span in read_lines(tmp_path / "timeline.jsonl")) == 10_000


def test_tensorboard_gets_the_same_metrics(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = open_writer(tmp_path, tensorboard=True)
    writer.write_step({"step": 1, "reward/mean": 0.25, "train/loss": float("inf")})
    writer.write_step({"step": 2, "reward/mean": 0.5})
    writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [(1, 0.25), (2, 0.5)]
    assert "train/loss" not in events.Tags()["scalars"]


@pytest.mark.parametrize("sink", ["tensorboard", "wandb"])
def test_a_missing_extra_is_named(tmp_path: Path, sink: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == sink]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, sink, None)
    with pytest.raises(ImportError, match=rf"pip install 'areal-x\[{sink}\]'"):
        open_writer(tmp_path, **{sink: True})


def test_evaluations_that_come_late_stand_at_their_step(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    for step in (1, 2, 3):
        writer.write_step({"step": step, "version": step, "reward/mean": 0.5})
    late = {"eval/sums/accuracy": 0.5, "eval/sums/pass@1": 0.5, "eval/sums/pass@8": 0.9, "eval/sums/majority@8": 0.6}
    writer.write_step({"step": 2, "eval/version": 2} | late)
    writer.write_step({"step": 4, "version": 4, "reward/mean": 0.5, "eval/sums/accuracy": 0.75})
    writer.close()
    run = load_run(tmp_path)
    assert [row["step"] for row in run.steps] == [1, 2, 3, 4]
    assert (run.steps[1]["version"], run.steps[1]["eval/version"]) == (2, 2)
    assert run.accuracies == {"sums": [(2, 0.5), (4, 0.75)]}
    assert run.several_samples == {"pass@8, sums": [(2, 0.9)], "majority@8, sums": [(2, 0.6)]}
