"""Which run and checkpoint ``resume`` finds, what it refuses, and what is cut away."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from areal_x.api.config import DataConfig, ExperimentConfig, ModelConfig
from areal_x.api.errors import CheckpointError, ConfigError, DataError
from areal_x.engine.init_model import init_model
from areal_x.observe.file_positions import LINE_FILES, FilePositions
from areal_x.rollout.data_stream import DataStream
from areal_x.trainer.checkpoint_identity import run_identity
from areal_x.trainer.checkpoint_store import CHECKPOINTS, CheckpointStore
from areal_x.trainer.open_run import open_run
from areal_x.trainer.resume import Resumption, find_resumption, plain_config
from areal_x.trainer.run_directory import lock_directory, numbered_directories


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    init_model(path, tokenizer="characters", hidden_size=32, num_layers=1, num_heads=2)
    return path


def make_config(folder: Path, model: Path, **changes: Any) -> ExperimentConfig:
    config = ExperimentConfig(name="run", runs_dir=str(folder), resume="auto")
    config.model = ModelConfig(path=str(model))
    config.data = DataConfig(path="arithmetic")
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def add_checkpoint(directory: Path, config: ExperimentConfig, step: int) -> Path:
    """A checkpoint of ``step``, with one line in each file of the run for each step so far."""
    assert config.model.path is not None
    directory.mkdir(exist_ok=True)
    sizes = {}
    for name in LINE_FILES:
        lines = [json.dumps({"step": number}) + "\n" for number in range(1, step + 1)]
        (directory / name).write_text("".join(lines))
        sizes[name] = (directory / name).stat().st_size
    store = CheckpointStore(directory / CHECKPOINTS, config.checkpoint, run_identity(config, config.model.path))
    partial = store.begin(step)
    (partial / "state").write_bytes(b"x" * 1000)
    files = FilePositions(step, float(step), sizes)
    stream = DataStream([{"prompt": "1+1="}] * 3, seed=config.seed).state_dict()
    facts = {"version": step, "files": files.as_facts(), "config": plain_config(config), "stream": stream}
    return store.commit(step, facts).path


def found(config: ExperimentConfig) -> tuple[str, int] | None:
    resumption = find_resumption(config)
    return None if resumption is None else (resumption.directory.name, resumption.step)


def test_auto_takes_the_last_run_with_a_good_checkpoint(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path, model)
    assert found(config) is None
    for name, step in (("run", 2), ("run-2", 4), ("run-10", 2), ("run-10", 6), ("run-x", 9), ("runner", 9)):
        add_checkpoint(tmp_path / name, config, step)
    (tmp_path / "run-11" / CHECKPOINTS / "step_000002.partial").mkdir(parents=True)
    names = [path.name for path in numbered_directories(config.run_dir)]
    assert names == ["run", "run-2", "run-10", "run-11"]
    assert found(config) == ("run-10", 6)
    state = tmp_path / "run-10" / CHECKPOINTS / "step_000006" / "state"
    state.write_bytes(b"x" * 10)
    assert found(config) == ("run-10", 2)
    assert "step_000006" in (told := capsys.readouterr().err) and "truncated" in told
    for path in tmp_path.glob("run-10/checkpoints/*/manifest.json"):
        path.write_text("{}")
    assert found(config) == ("run-2", 4)
    config.resume = "never"
    assert found(config) is None


def test_a_path_must_be_there(tmp_path: Path, model: Path) -> None:
    config = make_config(tmp_path, model, resume=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="no such directory"):
        find_resumption(config)
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(ConfigError, match="no good checkpoint"):
        find_resumption(config)
    path = add_checkpoint(tmp_path / "run", config, 2)
    add_checkpoint(tmp_path / "run", config, 4)
    assert found(make_config(tmp_path, model, resume=str(tmp_path / "run"))) == ("run", 4)
    assert found(make_config(tmp_path, model, resume=str(path.parent))) == ("run", 4)
    assert found(make_config(tmp_path, model, resume=str(path))) == ("run", 2)
    with pytest.raises(ConfigError, match="overwrite=true"):
        find_resumption(make_config(tmp_path, model, overwrite=True))


def test_a_changed_configuration_is_told_or_refused(tmp_path: Path, model: Path) -> None:
    config = make_config(tmp_path, model)
    add_checkpoint(tmp_path / "run", config, 2)
    config.train.total_steps, config.train.learning_rate, config.evaluation.every_steps = 77, 0.5, 3
    resumption = find_resumption(config)
    assert resumption is not None
    assert [text.partition(" ")[0] for text in resumption.changes] == [
        "train.learning_rate=0.5",
        "train.total_steps=77",
    ]
    config.seed = 12
    with pytest.raises(ConfigError, match=r"seed=12 \(was 1\)"):
        find_resumption(config)
    config.seed, config.data.kwargs = 1, {"num_digits": 3}
    with pytest.raises(ConfigError, match=r"data.kwargs.num_digits=3 \(was null\)"):
        find_resumption(config)


def test_files_are_cut_back_to_the_checkpoint(tmp_path: Path, model: Path) -> None:
    config = make_config(tmp_path, model)
    config.checkpoint.keep_last = 9
    directory = tmp_path / "run"
    for step in (2, 4):
        path = add_checkpoint(directory, config, step)
    late = {"step": 2, "eval/arithmetic/accuracy": 0.5}
    for name in LINE_FILES:
        with (directory / name).open("a") as file:
            file.write(json.dumps({"step": 5}) + "\n" + json.dumps(late) + "\n" + '{"step": 6, "tor')
    resumption = find_resumption(make_config(tmp_path, model, resume=str(path.with_name("step_000002"))))
    assert isinstance(resumption, Resumption)
    resumption.cut_back(config.checkpoint)
    for name in LINE_FILES:
        rows = [json.loads(line) for line in (directory / name).read_text().splitlines()]
        kept = [late] if name == "metrics.jsonl" else []
        assert rows == [{"step": 1}, {"step": 2}, *kept]
    assert resumption.has_evaluation()
    assert [path.name for path in (directory / CHECKPOINTS).glob("step_*")] == ["step_000002"]
    assert found(config) == ("run", 2)


def test_files_that_are_shorter_than_the_checkpoint_says_are_named(tmp_path: Path, model: Path) -> None:
    config = make_config(tmp_path, model)
    add_checkpoint(tmp_path / "run", config, 2)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl has 12 bytes"):
        find_resumption(config)


async def test_nothing_is_cut_away_for_a_run_on_other_data(tmp_path: Path, model: Path) -> None:
    config = make_config(tmp_path, model)
    path = add_checkpoint(tmp_path / "run", config, 2)
    later = add_checkpoint(tmp_path / "run", config, 4)
    config.resume = str(path)
    with pytest.raises(DataError, match="num_items=3"):
        async with open_run(config, 9, None, find_resumption(config)):
            pass
    assert later.is_dir() and (tmp_path / "run" / "metrics.jsonl").read_text().count("step") == 4


def test_a_directory_has_one_run_at_a_time(tmp_path: Path) -> None:
    lock = lock_directory(tmp_path)
    program = "import sys; from pathlib import Path; from areal_x.trainer.run_directory import lock_directory\n"
    program += "lock_directory(Path(sys.argv[1]))"
    words = [sys.executable, "-c", program, str(tmp_path)]
    other = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "another process is running" in other.stderr
    lock.close()
    assert subprocess.run(words, check=False).returncode == 0
