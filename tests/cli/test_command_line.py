"""The commands: what they print, what they start, and the exit status of each way to end."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from areal_x.api.config import ExperimentConfig
from areal_x.api.errors import ConfigError, DataError, EngineDiedError, EngineError, MissingExtraError
from areal_x.cli import build_parser, main

Runner = Callable[[ExperimentConfig], int]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ExperimentConfig]]:
    """What the commands would have started; the trainer itself is not loaded."""
    calls: list[tuple[str, ExperimentConfig]] = []
    use_trainer(monkeypatch, lambda name: lambda config: calls.append((name, config)) or 0)
    monkeypatch.chdir(tmp_path)
    return calls


def use_trainer(monkeypatch: pytest.MonkeyPatch, make: Callable[[str], Runner]) -> None:
    module = types.ModuleType("areal_x.launch.run")
    module.run = lambda command, config: make(command)(config)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "areal_x.launch.run", module)


def raising(error: BaseException) -> Callable[[str], Runner]:
    def run(config: ExperimentConfig) -> int:
        raise error

    return lambda name: run


@pytest.mark.parametrize("command", ["train", "sft", "train-rm", "eval"])
def test_each_command_is_started_with_its_configuration(command: str, started: list[Any], tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "1+1=", "chosen": "2", "rejected": "3"}\n')
    needed = {"eval": ["model.path=organisation/name"], "train-rm": ["preferences.path=pairs.jsonl"]}
    assert main([command, "--config-name", "quickstart", "seed=9", *needed.get(command, [])]) == 0
    assert [(name, config.seed, config.name) for name, config in started] == [(command, 9, "quickstart")]


def test_overrides_may_stand_anywhere(started: list[Any], tmp_path: Path) -> None:
    (tmp_path / "exp.yaml").write_text("defaults: [quickstart, _self_]\nname: mine\n")
    assert main(["train", "seed=2", "./exp.yaml", "--debug", "train.total_steps=3"]) == 0
    (_, config) = started[0]
    assert (config.name, config.seed, config.train.total_steps) == ("mine", 2, 3)


def test_a_dry_run_prints_the_whole_config_and_starts_nothing(started: list[Any], capsys: Any, tmp_path: Path) -> None:
    assert main(["train", "--config-name", "quickstart", "seed=4", "--dry-run"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["seed"] == 4 and printed["rollout"]["sampling"]["temperature"] == 1.0
    assert not started and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train"], "which config?"),
        (["train", "--config-name", "quikstart"], "did you mean quickstart?"),
        (["train", "--config-name", "quickstart", "train.bach_size=3"], "did you mean train.batch_size?"),
        (["train", "--config-name", "quickstart", "train.batch_size=12"], "train.batch_size=12: must be a multiple"),
        (["train", "--config-name", "quickstart", "reward.fn=gsm9k"], "did you mean 'gsm8k'?"),
        (["train", "--config-name", "quickstart", "reward.kwargs.nope=3"], "reward.kwargs.nope is not an option"),
        (["train", "--config-name", "quickstart", "data.path=x/sums.jsonl"], "no such file"),
        (["train", "--config-name", "quickstart", "data.kwargs.num_digit=3"], "did you mean 'num_digits'?"),
        (["train", "--config-name", "gsm8k"], "data.path is not set"),
        (["train", "nope.yaml"], "nope.yaml: no such file"),
        (["train", "a.yaml", "b.yaml"], "two configs"),
        (["train", "--config-name", "quickstart", "exp.yaml"], "give one config"),
        (["train", "--config-name", "quickstart", "seed=1,2"], "add --multirun"),
        (["train", "--config-name", "quickstart", "--multirun"], "--multirun without a sweep"),
        (["train", "--config-name", "quickstart", "seed=1,-2", "--multirun"], "run seed=-2: seed=-2: must be from 0"),
        (["train", "--config-name", "quickstart", "workflow.path=areal_x.workflow.rlvr:RLVR"], "it has: "),
        (["train", "--config-name", "quickstart", "workflow.path=no_such_package.a:B"], "no package 'no_such_package'"),
        (["train", "--config-name", "quickstart", "workflow.kwargs.turns=2"], "workflow.kwargs.turns is not"),
        (["train", "--config-name", "quickstart", "rollout.filter=my_filter"], "rollout.filter=my_filter: must be"),
        (["eval", "--config-name", "quickstart"], "model.path is not set"),
        (["config", "show", "nope"], "no shipped config 'nope'"),
        (["report", "."], "not a run"),
        (["replay", "runs/x/skipped/step_000001.npz"], "no such file; runs keep batches of skipped steps"),
        (["init-model", "out"], "add --data FILE"),
        (["init-model", "out", "--data", "nope.jsonl"], "nope.jsonl: no such file"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words: list[str], expected: str, started: list[Any], capsys: Any) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert expected in printed.err and printed.err.startswith("areal-x: error: ")
    assert printed.err.count("\n") == 1 and printed.out == "" and not started


@pytest.mark.parametrize("key", ["reward.fn", "workflow.path", "rollout.filter"])
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import json\ndef mine(:\n", ": mine.py:2: SyntaxError: "),
        ("import json\nimport numppy\n", ": mine.py:2: ModuleNotFoundError: No module named 'numppy'"),
        ("raise SystemExit\n", ": mine.py:1: SystemExit: "),
        ("mine = 3\n", "mine' is not a "),
        ("def other():\n    pass\n", "has no 'mine'; it has: other"),
    ],
    ids=["syntax", "import", "exit", "kind", "name"],
)
def test_a_broken_file_of_the_user_is_one_line(
    key: str, source: str, expected: str, started: list[Any], capsys: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(source)
    words = ["train", "--config-name", "quickstart", f"{key}=mine.py:mine"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"areal-x: error: {key}='mine.py:mine'") and expected in error
    assert error.count("\n") == 1 and not started
    assert main([*words, "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_extra_that_is_missing_is_bad_input(
    started: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["train", "--config-name", "quickstart", "observe.wandb=true"]) == 2
    assert "observe.wandb=true needs Weights & Biases: pip install 'areal-x[wandb]'" in capsys.readouterr().err
    assert not started


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("a"), 2),
        (DataError("a"), 2),
        (MissingExtraError("a"), 2),
        (EngineError("a"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=["config", "data", "extra", "engine", "interrupt"],
)
def test_the_status_says_how_a_run_ended(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    use_trainer(monkeypatch, raising(error))
    assert main(["train", "--config-name", "quickstart"]) == status
    assert "Traceback" not in capsys.readouterr().err


def test_the_last_lines_of_a_dead_engine_are_shown(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    use_trainer(monkeypatch, raising(EngineDiedError("the engine's process ended", tail="out of memory\nkilled\n")))
    assert main(["train", "--config-name", "quickstart"]) == 1
    assert capsys.readouterr().err == "out of memory\nkilled\nareal-x: error: the engine's process ended\n"


@pytest.mark.parametrize("by_variable", [True, False])
def test_debug_shows_the_traceback(by_variable: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    use_trainer(monkeypatch, raising(EngineError("broken")))
    if by_variable:
        monkeypatch.setenv("AREAL_X_DEBUG", "1")
    assert main(["train", "--config-name", "quickstart", *([] if by_variable else ["--debug"])]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_log_shows_each_line_at_once() -> None:
    code = (
        "import sys, areal_x.cli as cli; cli._config_list = lambda a: print('shown') or sys.stdin.read() and 0; "
        "sys.exit(cli.main(['config', 'list']))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "shown\n"
        process.stdin.close()


def test_an_unexpected_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    use_trainer(monkeypatch, raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["train", "--config-name", "quickstart"])


@pytest.mark.parametrize("words", [["--nope"], ["train", "--nope"], ["nope"], [], ["config", "list", "x"]])
def test_unknown_words_are_refused(words: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2


def test_listings(capsys: Any) -> None:
    assert main(["config", "list"]) == 0 and main(["reward", "list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("quickstart", "gsm8k", "algorithm=grpo", "composite"))
    assert main(["config", "show", "quickstart"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["name"] == "quickstart"


def test_init_model_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The options are those of the real function: names that it does not take would fail."""
    import inspect

    from areal_x.engine import init_model as module

    calls: list[Any] = []
    signature = inspect.signature(module.init_model)
    monkeypatch.setattr(module, "init_model", lambda *a, **k: calls.append(signature.bind(*a, **k).arguments))
    (tmp_path / "x.jsonl").write_text('{"a": "b"}\n')
    words = [
        "init-model",
        str(tmp_path / "m"),
        "--data",
        str(tmp_path / "x.jsonl"),
        "--text-keys",
        "a",
        "--num-layers",
        "2",
    ]
    assert main(words) == 0
    assert calls[0]["num_layers"] == 2 and calls[0]["texts"] == ["b"] and calls[0]["tokenizer"] == "bpe"


def test_a_reader_that_closes_the_pipe_is_no_crash() -> None:
    command = f"{sys.executable} -m areal_x.cli train --config-name quickstart --dry-run | head -1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.stdout == "name: quickstart\n" and "Traceback" not in result.stderr


def test_help_of_every_command(capsys: Any) -> None:
    for words in ([], ["train"], ["sft"], ["eval"], ["init-model"], ["report"], ["config"], ["reward", "list"]):
        with pytest.raises(SystemExit) as caught:
            build_parser().parse_args([*words, "--help"])
        assert caught.value.code == 0
    assert "key=value" in capsys.readouterr().out


def test_the_console_script_reports_an_unknown_key() -> None:
    script = Path(sys.executable).with_name("areal-x")
    if not script.is_file():
        pytest.skip("areal-x is not installed beside this Python")
    words = [str(script), "train", "--config-name", "quickstart", "trian.batch_size=3"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "did you mean train.batch_size?" in result.stderr


TRAINER = """
import os, signal, sys, time
from pathlib import Path
def run(command, config):
    config.run_dir.mkdir(parents=True)
    print("seed", config.seed, "pid", os.getpid(), flush=True)
    if config.seed == 13:
        return 1
    if config.seed == 99:
        signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
        (config.run_dir / "started").touch()
        time.sleep(300)
    (config.run_dir / "metrics.jsonl").write_text('{"step": 1}\\n{"eval/arithmetic/accuracy": 0.%d}\\n' % config.seed)
    return 0
"""


@pytest.fixture
def sweep_environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which ``areal_x.launch.run`` is a trainer that only writes what its config says."""
    (tmp_path / "stand_in_trainer.py").write_text(TRAINER)
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, stand_in_trainer\nsys.modules['areal_x.launch.run'] = stand_in_trainer\n"
    )
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def sweep_command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "areal_x.cli", "train", "--config-name", "quickstart", "--multirun", *overrides]


def test_a_sweep_runs_each_combination_in_a_process_of_its_own(
    sweep_environment: dict[str, str], tmp_path: Path
) -> None:
    command = sweep_command(f"runs_dir={tmp_path}/runs", "seed=1,13,2", "train.learning_rate=1e-4")
    result = subprocess.run(command, capture_output=True, text=True, env=sweep_environment, check=False)
    assert result.returncode == 1, result.stderr
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert runs == ["quickstart_seed-1", "quickstart_seed-13", "quickstart_seed-2"]
    pids = [line.split()[-1] for line in result.stdout.splitlines() if line.startswith("seed")]
    assert len(set(pids)) == 3
    summary = result.stdout.split("== 3 of 3 runs\n")[1].splitlines()
    assert "ok" in summary[0] and "accuracy 0.100" in summary[0] and "failed (exit 1)" in summary[1]
    assert json.dumps("accuracy 0.200")[1:-1] in summary[2]


def test_an_interrupted_sweep_stops_its_run_and_starts_no_other(
    sweep_environment: dict[str, str], tmp_path: Path
) -> None:
    command = sweep_command(f"runs_dir={tmp_path}/runs", "seed=99,1")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=sweep_environment) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("seed 99"):
            assert process.poll() is None
        started = tmp_path / "runs" / "quickstart_seed-99" / "started"
        deadline = time.monotonic() + 60
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        interrupted_at = time.monotonic()
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=100)
        assert process.returncode == 130
        assert time.monotonic() - interrupted_at < 60
    assert "== 1 of 2 runs" in printed
    assert not (tmp_path / "runs" / "quickstart_seed-1").exists()


@pytest.mark.parametrize(
    "message", ["rank 1 of 2 died\nlast lines of rank 1:\nout of memory\nat step 3", "a server died"]
)
def test_the_last_lines_of_a_process_are_told_once(
    message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    use_trainer(monkeypatch, raising(EngineDiedError(message, "out of memory\nat step 3")))
    assert main(["train", "--config-name", "quickstart"]) == 1
    told = capsys.readouterr().err
    assert told.count("out of memory") == told.count("at step 3") == told.count(message) == 1
