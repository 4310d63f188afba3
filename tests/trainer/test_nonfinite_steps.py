"""Steps whose numbers are not finite: skipped, kept for replay, and the end of a run when they go on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from trainer_runs import TINY, TINY_INIT, run_command, values

from areal_x.api.config import AlgorithmConfig, ExperimentConfig, ModelConfig, TrainConfig
from areal_x.api.errors import DataError, NonFiniteError
from areal_x.api.records import TrainBatch
from areal_x.engine.init_model import init_model
from areal_x.engine.train.fsdp_engine import FSDPEngine
from areal_x.trainer.nonfinite import NonFiniteSteps, nonfinite_inputs
from areal_x.trainer.replay import replay, replay_lines
from areal_x.trainer.skipped_batches import (
    MAX_KEPT,
    SkippedBatch,
    join_batches,
    read_skipped,
    select_sequences,
    write_skipped,
)

HUGE = 3e38


def make_batch(*advantages: float, first_group: int = 0) -> TrainBatch:
    """Sequences of five tokens, the last three trained, two to a group."""
    number = len(advantages)
    mask = np.tile(np.array([False, False, True, True, True]), number)
    return TrainBatch(
        input_ids=np.tile(np.array([1, 4, 5, 6, 7], np.int32), number),
        loss_mask=mask,
        logprobs=np.where(mask, -3.0, 0.0).astype(np.float32),
        advantages=np.repeat(np.array(advantages, np.float32), 5),
        lengths=np.full(number, 5, np.int32),
        group_ids=first_group + np.arange(number, dtype=np.int64) // 2,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    sizes = {name: size for name, size in TINY_INIT.items() if name != "tokenizer"}
    return Path(init_model(folder, texts=None, tokenizer="characters", seed=0, **sizes))


@pytest.fixture
def engine(model: Path) -> FSDPEngine:
    return FSDPEngine(model, TrainConfig(), AlgorithmConfig(), ModelConfig(device="cpu"))


def test_parts_of_a_step_are_one_batch() -> None:
    parts = [make_batch(1.0, 2.0), make_batch(3.0, first_group=1)]
    joined = join_batches(parts)
    assert len(joined) == 3 and joined.group_ids.tolist() == [0, 0, 1]
    assert joined.advantages.tolist() == [1.0] * 5 + [2.0] * 5 + [3.0] * 5 and joined.values is None
    last = select_sequences(joined, 2, 3)
    assert last.advantages.tolist() == [3.0] * 5 and last.group_ids.tolist() == [1] and last.reference is None


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    batch = make_batch(1.0, float("nan"))
    batch.returns = batch.advantages * 2
    read = read_skipped(write_skipped(tmp_path, SkippedBatch(12, 11, batch)))
    assert (read.step, read.version) == (12, 11)
    for name in ("input_ids", "loss_mask", "logprobs", "advantages", "returns", "lengths", "group_ids"):
        found, expected = getattr(read.batch, name), getattr(batch, name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    assert read.batch.values is None


def test_the_newest_files_are_kept(tmp_path: Path) -> None:
    for step in range(1, MAX_KEPT + 4):
        write_skipped(tmp_path, SkippedBatch(step, step - 1, make_batch(1.0)))
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == [f"step_{step:06d}.npz" for step in range(4, MAX_KEPT + 4)]


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 and no more", "npz"])
def test_a_file_that_is_none(content: bytes | str | None, tmp_path: Path) -> None:
    path = tmp_path / "step_000001.npz"
    if content == "npz":
        np.savez(path, weights=np.ones(3))
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"step_000001\.npz: no "):
        read_skipped(path)


def test_advantages_that_are_not_finite_are_found() -> None:
    batch = make_batch(1.0, float("inf"), float("nan"))
    assert nonfinite_inputs(batch) == "advantages: sequence 1 (group 0), token 2, and 1 more of 3 sequences"
    batch.loss_mask[5:] = False
    assert nonfinite_inputs(batch) is None


def test_too_many_in_a_row_end_the_run(engine: FSDPEngine, tmp_path: Path) -> None:
    watch = NonFiniteSteps(3, tmp_path / "skipped", engine)
    good, bad, nothing = make_batch(1.0, -1.0), make_batch(1.0, HUGE), make_batch(1.0, 1.0)
    nothing.loss_mask[:] = False
    assert watch.on_step(1, [good], engine.train_step(good)) is None
    note = watch.on_step(2, [bad], engine.train_step(bad))
    assert note is not None and "step 2 was skipped: the gradient is not finite" in note
    assert "an advantage has the size 3e+38: sequence 1 (group 0), token 2" in note and "step_000002.npz" in note
    in_part = {"train/grad_norm": 1.0, "critic/nonfinite_losses": 1.0}
    assert str(watch.on_step(2, [good], in_part)).startswith("step 2 was skipped in part: the loss of the critic is")
    assert watch.on_step(3, [good], engine.train_step(good)) is None and watch.num_in_a_row == 0
    watch.on_step(4, [bad], engine.train_step(bad))
    watch.on_step(4, [bad], engine.train_step(bad))
    # Neither good nor bad.
    assert watch.on_step(5, [nothing], engine.train_step(nothing)) is None and watch.num_in_a_row == 2
    with pytest.raises(NonFiniteError, match=r"max_skipped_in_a_row=3 in a row: .*; the first was step 4; an adv"):
        watch.on_step(6, [bad], engine.train_step(bad))
    assert (tmp_path / "skipped" / "policy" / "config.json").is_file()


def test_a_good_step_of_the_critic_alone_is_good(engine: FSDPEngine, tmp_path: Path) -> None:
    watch = NonFiniteSteps(2, tmp_path, engine)
    for step in (1, 3):
        watch.on_step(step, [make_batch(1.0)], {"critic/nonfinite_losses": 1.0})
        watch.on_step(step + 1, [make_batch(1.0)], {"critic/grad_norm": 1.0, "critic/policy_waits": 1.0})
    assert watch.num_in_a_row == 0


def test_broken_weights_are_named(engine: FSDPEngine, tmp_path: Path) -> None:
    next(iter(engine.policy.parameters())).data[5] = float("nan")
    batch = make_batch(1.0, -1.0)
    batch.input_ids[5:] = 3
    note = NonFiniteSteps(5, tmp_path, engine).on_step(1, [batch], engine.train_step(batch))
    assert note is not None and "log-probabilities of the policy: sequence 0" in note


LOSS = '''\
from areal_x.engine.train.objective.tokens import TokenLoss


def broken(tokens):
    """Not finite where the advantage is below -1."""
    return TokenLoss(-tokens.logprobs * (tokens.advantages + 1.0).sqrt())
'''


def test_a_loss_of_ones_own_is_named_and_replayed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "own_loss.py").write_text(LOSS)
    algorithm = AlgorithmConfig(policy_loss=f"{tmp_path}/own_loss.py:broken")
    engine = FSDPEngine(model, TrainConfig(), algorithm, ModelConfig(device="cpu"))
    batch = make_batch(1.0, 2.0, -2.0)
    note = NonFiniteSteps(5, tmp_path, engine).on_step(7, [batch], engine.train_step(batch))
    assert note is not None and "step 7 was skipped: the loss is not finite; log-probabilities and adv" in note
    config = ExperimentConfig(model=ModelConfig(path=str(model), device="cpu"), algorithm=algorithm)
    found = replay(config, tmp_path / "step_000007.npz", str(model))
    assert [one.is_finite for one in found] == [True, True, False] and found[2].loss is None


def test_a_batch_that_cannot_be_written_is_told(engine: FSDPEngine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    watch = NonFiniteSteps(1, tmp_path / "file", engine)
    with pytest.raises(NonFiniteError, match=r"its batch could not be written: .*file"):
        watch.on_step(1, [make_batch(HUGE)], engine.train_step(make_batch(HUGE)))


def test_a_replay_finds_the_sequence(model: Path, tmp_path: Path) -> None:
    config = ExperimentConfig(name="run", model=ModelConfig(path=str(model), device="cpu"))
    path = write_skipped(tmp_path, SkippedBatch(3, 2, make_batch(1.0, -1.0, HUGE, float("nan"))))
    found = replay(config, path, str(model))
    assert [one.is_finite for one in found] == [True, True, False, False]
    assert [one.num_bad_logprobs for one in found] == [0] * 4 and found[2].group_id == 1
    assert found[0].loss == pytest.approx(-found[1].loss)  # type: ignore[operator]
    lines = replay_lines(found)
    assert lines[1].split()[:4] == ["2", "1", "3", "3e+38"] and lines[-1] == "2 of 4 sequences are not finite"
    assert replay_lines(found[:2]) == ["each of the 2 sequences is finite with these weights when it is alone"]


REWARDS = '''\
def huge(completions, **data):
    """Finite, as rewards must be; what is made of it is not."""
    return [(-1) ** index * 3e38 for index, _ in enumerate(completions)]
'''


def test_a_run_that_meets_them_stops_and_can_be_replayed(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(REWARDS)
    changes = [*TINY, "reward.fn=rewards.py:huge", "reward.group=true", "algorithm.scale_by=none"]
    changes += ["train.max_skipped_in_a_row=2", "train.total_steps=8"]
    run = run_command(tmp_path, "train", "--config-name", "quickstart", *changes)
    assert run.status == 1
    assert "train.max_skipped_in_a_row=2 in a row" in run.stderr and "areal-x replay" in run.stderr
    assert "step 1 was skipped" in run.stdout
    assert sorted(path.name for path in (run.directory / "skipped").iterdir()) == [
        "policy",
        "step_000001.npz",
        "step_000002.npz",
    ]
    assert values(run.rows(), "train/skipped_steps")[:1] == [1.0]
    shown = run_command(tmp_path, "replay", str(run.directory / "skipped" / "step_000002.npz"))
    assert shown.status == 0, shown.stderr
    assert "step 2, weights of version 1" in shown.stdout and "sequences are not finite" in shown.stdout
