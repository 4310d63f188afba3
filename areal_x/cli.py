"""The command line ``areal-x``. Parsing needs the standard library alone; each command imports what it needs."""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from areal_x.api.errors import ArealXError, ConfigError, DataError, MissingExtraError
from areal_x.launch.export_command import add_arguments as add_export
from areal_x.launch.reward_test_command import add_arguments as add_reward_test

if TYPE_CHECKING:
    from areal_x.api.config import ExperimentConfig
    from areal_x.launch.compose import ConfigSource

__all__ = ["build_parser", "main"]

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

_RUN_EXAMPLES = """\
examples:
  areal-x {command} --config-name quickstart
  areal-x {command} ./exp.yaml train.learning_rate=1e-5 seed=2
  areal-x {command} --config-name gsm8k data.path=train.jsonl --dry-run
"""
_RM_EXAMPLES = """\
examples:
  areal-x {command} --config-name train_rm preferences.path=pairs.jsonl
  areal-x {command} --config-name train_rm preferences.path=pairs.jsonl preferences.learning_rate=1e-5 \\
      model.path=models/my_model
  areal-x {command} --config-name train_rm preferences.path=pairs.jsonl --dry-run
"""
_SWEEP_EXAMPLE = "  areal-x {command} ./exp.yaml seed=1,2,3 --multirun\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0, 1 (failed while running), 2 (bad input) or 130 (interrupted)."""
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        # A log that is followed (`| tee`, nohup) shows each line when it is printed.
        sys.stdout.reconfigure(line_buffering=True)
    arguments = _parse(build_parser(), sys.argv[1:] if argv is None else list(argv))
    debug = arguments.debug or os.environ.get("AREAL_X_DEBUG", "") not in ("", "0")
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except ArealXError as error:
        if debug:
            traceback.print_exc()
        else:
            _print_error(error)
        return EXIT_BAD_INPUT if isinstance(error, ConfigError | DataError | MissingExtraError) else EXIT_FAILED
    except KeyboardInterrupt:
        print("areal-x: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe (`areal-x config show X | head`) has gone; nothing can be told to it any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _print_error(error: ArealXError) -> None:
    tail = getattr(error, "tail", "")
    # The error of a rank holds its last lines itself.
    if not all(line in str(error) for line in tail.splitlines()):
        print(tail.rstrip(), file=sys.stderr)
    print(f"areal-x: error: {error}", file=sys.stderr)


def _parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parse; overrides may stand before, between and behind options, which argparse alone does not take."""
    arguments, rest = parser.parse_known_args(argv)
    bad = [word for word in rest if word.startswith("-") or not hasattr(arguments, "overrides")]
    if bad:
        parser.error(f"unrecognized arguments: {' '.join(bad)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="areal-x", description="Asynchronous reinforcement learning of language models."
    )
    parser.set_defaults(debug=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run_command(commands, "train", "train a policy by reinforcement learning", _start, sweeps=True)
    _add_run_command(commands, "sft", "supervised fine-tuning, such as a warm start", _start, sweeps=True)
    _add_run_command(
        commands, "train-rm", "train a reward model on preference pairs", _start, sweeps=True, examples=_RM_EXAMPLES
    )
    _add_run_command(commands, "eval", "measure a model's accuracy on held-out data", _start, sweeps=False)
    _add_init_model(commands)
    add_export(commands)
    text = "which sequences of a skipped step's batch are not finite"
    replay = commands.add_parser("replay", help=text, description=text)
    replay.add_argument("batch", type=Path, metavar="FILE", help="such as runs/quickstart/skipped/step_000012.npz")
    replay.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the run's configuration")
    replay.set_defaults(run=_replay)
    report = commands.add_parser("report", help="write the report and the curves of a run again")
    report.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="such as runs/quickstart")
    report.set_defaults(run=_report)
    _add_listings(commands)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    return parser


def _add_run_command(
    commands: argparse._SubParsersAction,  # type: ignore[type-arg]
    name: str,
    text: str,
    run: object,
    sweeps: bool,
    examples: str = _RUN_EXAMPLES,
) -> None:
    epilog = (examples + (_SWEEP_EXAMPLE if sweeps else "")).format(command=name)
    command = commands.add_parser(
        name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("--config-name", metavar="NAME", help="a shipped config; areal-x config list shows them")
    command.add_argument(
        "overrides", nargs="*", metavar="FILE.yaml | key=value", help="a config of your own; changes to it"
    )
    command.add_argument("--dry-run", action="store_true", help="check, print the resolved config, start nothing")
    if sweeps:
        command.add_argument(
            "--multirun", action="store_true", help="run each combination of key=a,b,c, one after another"
        )
    command.set_defaults(run=run, multirun=False, command=name)


def _add_init_model(commands: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    text = "make a small, randomly initialised model with its tokenizer"
    command = commands.add_parser("init-model", help=text, description=text)
    command.add_argument("output", type=Path, metavar="OUTPUT_DIR")
    command.add_argument("--data", type=Path, help="a data file; the tokenizer is made from its text")
    command.add_argument(
        "--text-keys", nargs="+", metavar="COLUMN", help="columns of the data to use; default: all text"
    )
    command.add_argument("--tokenizer", choices=("bpe", "characters"), default="bpe")
    sizes = {
        "vocab-size": 2048,
        "hidden-size": 128,
        "num-layers": 4,
        "num-heads": 4,
        "num-kv-heads": 2,
        "head-dim": 32,
        "intermediate-size": 384,
        "max-length": 1024,
        "seed": 1,
    }
    for size, default in sizes.items():
        command.add_argument(f"--{size}", type=int, default=default, metavar="N", help=f"default {default}")
    command.add_argument("--initializer-range", type=float, default=0.02, metavar="X", help="default 0.02")
    command.set_defaults(run=_init_model)


def _add_listings(commands: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    reward = commands.add_parser("reward", help="built-in rewards").add_subparsers(metavar="COMMAND", required=True)
    reward.add_parser("list", help="names, data sets, what each extracts and returns").set_defaults(run=_reward_list)
    add_reward_test(reward)
    config = commands.add_parser("config", help="shipped configs").add_subparsers(metavar="COMMAND", required=True)
    config.add_parser("list", help="names and what each does").set_defaults(run=_config_list)
    show = config.add_parser("show", help="print a shipped config as it stands in its file")
    show.add_argument("name", metavar="NAME", help="such as quickstart or algorithm/grpo")
    show.set_defaults(run=_config_show)


def _split_source(arguments: argparse.Namespace) -> tuple[ConfigSource, list[str]]:
    """The configuration to begin with, and the overrides."""
    from areal_x.launch.compose import ConfigSource
    from areal_x.launch.config_files import config_names

    files = [word for word in arguments.overrides if "=" not in word and not word.startswith("~")]
    overrides = [word for word in arguments.overrides if word not in files]
    if arguments.config_name is not None and files:
        raise ConfigError(f"--config-name={arguments.config_name} and {files[0]!r}: give one config, then key=value")
    if len(files) > 1:
        raise ConfigError(f"two configs, {files[0]!r} and {files[1]!r}: give one, then key=value")
    if arguments.config_name is not None:
        return ConfigSource.named(arguments.config_name), overrides
    if not files:
        names = ", ".join(config_names())
        raise ConfigError(
            f"which config? areal-x {arguments.command} --config-name NAME ({names}) or a .yaml file of yours"
        )
    return ConfigSource.file(files[0]), overrides


def _run_command(arguments: argparse.Namespace) -> ExperimentConfig | int:
    """The checked configuration to run, or the exit status when nothing is left to do."""
    from areal_x.launch.checked import checked_config, dry_run

    source, overrides = _split_source(arguments)
    if arguments.multirun:
        from areal_x.launch.sweep import run_sweep

        return run_sweep(arguments.command, source, overrides, dry=arguments.dry_run)
    if arguments.dry_run:
        dry_run(arguments.command, source, overrides)
        return 0
    return checked_config(arguments.command, source, overrides)


def _start(arguments: argparse.Namespace) -> int:
    config = _run_command(arguments)
    if isinstance(config, int):
        return config
    from areal_x.launch.run import run

    return run(arguments.command, config)


def _init_model(arguments: argparse.Namespace) -> int:
    if arguments.data is None and arguments.tokenizer == "bpe":
        raise ConfigError("a BPE tokenizer is trained on text; add --data FILE, or --tokenizer characters")
    from areal_x.rollout.data_files import read_texts

    texts = None if arguments.data is None else list(read_texts(arguments.data, arguments.text_keys))
    from areal_x.engine.init_model import init_model

    skipped = ("run", "debug", "output", "data", "text_keys")
    options = {name: value for name, value in vars(arguments).items() if name not in skipped}
    init_model(arguments.output, texts=texts, **options)
    print(f"wrote {arguments.output}; use it with model.path={arguments.output}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    if not (arguments.run_dir / "metrics.jsonl").is_file():
        raise ConfigError(f"{arguments.run_dir}: not a run; it has no metrics.jsonl")
    from areal_x.observe.curves import write_curves
    from areal_x.observe.report import build_report

    print(write_curves(arguments.run_dir))
    print(build_report(arguments.run_dir))
    return 0


def _replay(arguments: argparse.Namespace) -> int:
    from areal_x.launch.replay_command import replay_file

    print("\n".join(replay_file(arguments.batch, arguments.overrides)))
    return 0


def _reward_list(arguments: argparse.Namespace) -> int:
    from areal_x.reward.listing import reward_list

    print(reward_list())
    return 0


def _config_list(arguments: argparse.Namespace) -> int:
    from areal_x.launch.config_files import config_groups, config_header, config_names, find_config

    presets = [(f"{group}={name}", f"{group}/{name}") for group, names in config_groups().items() for name in names]
    listed = [*((name, name) for name in config_names()), *presets]
    width = max(len(title) for title, _ in listed) + 2
    for title, name in listed:
        print(f"{title:<{width}}{config_header(find_config(name)).partition(chr(10))[0]}")
    return 0


def _config_show(arguments: argparse.Namespace) -> int:
    from areal_x.launch.config_files import find_config

    print(find_config(arguments.name).read_text(encoding="utf-8"), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
