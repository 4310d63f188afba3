"""``areal-x export``: the policy of a checkpoint as a model in Hugging Face format."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

__all__ = ["add_arguments"]

_EXAMPLE = """\
example:
  areal-x export runs/quickstart/checkpoints/step_000020 models/quickstart-20
"""


def add_arguments(commands: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    """Add the command."""
    text = "write the policy of a checkpoint as a model in Hugging Face format"
    command = commands.add_parser(
        "export", help=text, description=text, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    place = "such as runs/NAME/checkpoints/step_000020; of runs/NAME the newest"
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=place)
    command.add_argument("output", type=Path, metavar="OUTPUT_DIR", help="a new directory")
    command.add_argument(
        "--base-model", metavar="MODEL", help="the model below adapters; default: where it was in training"
    )
    command.add_argument("--trust-remote-code", action="store_true", help="the model is defined by code beside it")
    command.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    from transformers.utils import logging as transformers_logging

    from areal_x.trainer.exports import export_checkpoint
    from areal_x.trainer.model_places import find_checkpoint

    transformers_logging.disable_progress_bar()
    checkpoint = find_checkpoint(arguments.checkpoint)
    export_checkpoint(
        checkpoint,
        arguments.output,
        base_model=arguments.base_model,
        trust_remote_code=arguments.trust_remote_code,
    )
    print(f"wrote {arguments.output} from {checkpoint}; use it with model.path={arguments.output}", file=sys.stdout)
    return 0
