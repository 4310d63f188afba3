"""``areal-x reward test``: its arguments, and what it does. Building the parser needs the standard library alone."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from areal_x.launch.reward_check.report import RewardReport

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  areal-x reward test gsm8k --data train.jsonl
  areal-x reward test rewards.py:score --data train.jsonl --limit 20 kwargs.scale=2
  areal-x reward test rewards.py:score --data train.jsonl --completions scored.jsonl --json report.json
  areal-x reward test ./exp.yaml reward.kwargs.scale=2

exit status: 0 fine, 1 a finding is an error, 2 bad input
"""
_OPTIONS: dict[str, tuple[type, str]] = {
    "prompt-key": (str, "the prompt's column; default: prompt, or else question, problem, query, instruction, input"),
    "gold-key": (str, "the gold solution's column; default: completion, solution, answer, ground_truth, ..."),
    "gold-format": (
        str,
        "how a gold solution is written as a completion; default: {gold}; {answer} is what is behind #### or in a box",
    ),
    "id-key": (str, "the column that matches completions to items; default: id"),
    "dataset": (str, "name of the data set; default: from the file's name"),
    "limit": (int, "use the first N items; default 100"),
    "runs": (int, "score everything N times; default 2"),
    "timeout": (float, "deadline of a call in seconds; default 15"),
    "workers": (int, "worker processes; default: one for each core"),
    "concurrency": (int, "calls in flight at most; default 64"),
    "group-size": (int, "completions in a group of a group reward; default: all of an item"),
    "reward-key": (str, "where the reward is in a returned dict; default: reward"),
    "threshold": (float, "a score above it counts as right; default 0.5"),
    "tokenizer": (str, "a model's folder, for the chat template and token ids; default: ids are bytes"),
    "seed": (int, "of the garbage and of the order of the runs; default 1"),
}


def add_arguments(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to those of ``areal-x reward``."""
    text = "try a reward on data: outcomes, scores, times, and classic mistakes"
    command = commands.add_parser(
        "test", help=text, description=text, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("spec", metavar="SPEC", help="a name, file.py:function, package.module:function, or a .yaml")
    command.add_argument(
        "overrides", nargs="*", metavar="kwargs.key=value", help="options of the reward; of a .yaml, any key=value"
    )
    command.add_argument(
        "--data", metavar="FILE", help="items: .jsonl, .json, .parquet or .csv; needed but for a .yaml with data.path"
    )
    command.add_argument(
        "--completions",
        metavar="FILE",
        help="rows with completion(s), and expected where known; default: from the data",
    )
    for name, (kind, explanation) in _OPTIONS.items():
        metavar = {int: "N", float: "X"}.get(kind, "TEXT")
        command.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS, metavar=metavar, help=explanation)
    command.add_argument("--json", metavar="FILE", help="also write everything as JSON")
    command.add_argument("--strict", action="store_true", help="exit status 1 for warnings, too")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the reward, print the report, return the exit status.

    Raises:
        ConfigError, DataError: bad input.
    """
    names = [name.replace("-", "_") for name in _OPTIONS]
    options = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    if "timeout" in options:
        options["timeout_seconds"] = options.pop("timeout")
    is_config = arguments.spec.endswith((".yaml", ".yml"))
    reports = _check_config(arguments, options) if is_config else {"": _check_one(arguments, options)}
    if arguments.json:
        from areal_x.launch.reward_check.report import write_json

        contents = {name: report.to_dict() for name, report in reports.items()}
        write_json(arguments.json, contents.get("", contents))
    if not all(report.ok for report in reports.values()):
        return 1
    severities = {finding.severity for report in reports.values() for finding in report.findings}
    return int(arguments.strict and "warning" in severities)


def _check_one(arguments: argparse.Namespace, options: dict[str, Any]) -> RewardReport:
    from areal_x.api.errors import ConfigError

    kwargs = _reward_kwargs(arguments.overrides)
    if arguments.data is None:
        raise ConfigError("which data? add --data FILE, items with a prompt and, where known, an answer")
    from areal_x.launch.reward_check.check import check_reward_function
    from areal_x.launch.reward_check.table import print_report

    report = check_reward_function(arguments.spec, arguments.data, arguments.completions, kwargs=kwargs, **options)
    print_report(report)
    return report


def _check_config(arguments: argparse.Namespace, options: dict[str, Any]) -> dict[str, RewardReport]:
    """A report for each reward of a configuration, by its name in ``reward.rewards``."""
    from areal_x.launch.reward_check.check import check_reward_function
    from areal_x.launch.reward_check.configured import configured_rewards
    from areal_x.launch.reward_check.table import print_report

    reports = {}
    for number, reward in enumerate(configured_rewards(arguments.spec, arguments.overrides, arguments.data)):
        report = check_reward_function(
            reward.function, reward.data, arguments.completions, **(reward.options | options)
        )
        report.reward = reward.title
        if number:
            sys.stdout.write("\n")
        print_report(report)
        reports[reward.name] = report
    return reports


def _reward_kwargs(overrides: list[str]) -> dict[str, Any]:
    """``kwargs.a.b=1`` as a nested dict, in the grammar of the configuration's overrides."""
    if not overrides:
        return {}
    from omegaconf import OmegaConf

    from areal_x.api.errors import ConfigError
    from areal_x.launch.compose import parse_override

    tree = OmegaConf.create({})
    for text in overrides:
        override = parse_override(text)
        key = override.key_or_group.removeprefix("reward.")
        if not key.startswith("kwargs.") or override.is_sweep_override():
            raise ConfigError(f"{text!r}: options of the reward are written kwargs.key=value")
        OmegaConf.update(tree, key, override.value(), force_add=True)
    kwargs = OmegaConf.to_container(tree, resolve=True)
    assert isinstance(kwargs, dict)
    return dict(kwargs["kwargs"])
