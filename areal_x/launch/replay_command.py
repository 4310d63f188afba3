"""``areal-x replay``: the batch of a skipped step, with the configuration of its run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from areal_x.api.errors import ConfigError
from areal_x.launch.compose import ConfigSource, compose_config, parse_override

__all__ = ["replay_file"]


def replay_file(path: Path, overrides: Sequence[str]) -> list[str]:
    """Say which sequences of the batch in ``path`` are not finite, with the weights that ended the run or those of
    ``model.path``.

    Raises:
        ConfigError: the file is in no run, or its weights were not kept.
        DataError: it holds no batch.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; runs keep batches of skipped steps in RUN_DIR/skipped")
    config_file = path.absolute().parent.parent / "config.yaml"
    if not config_file.is_file():
        raise ConfigError(f"{path}: is in no run; {config_file} is not there")
    config = compose_config(ConfigSource.file(config_file), overrides)
    weights = path.parent / "policy"
    if any(parse_override(override).key_or_group == "model.path" for override in overrides):
        weights = Path(str(config.model.path))
    elif not weights.is_dir():
        raise ConfigError(f"{path}: the run went on, so its weights were not kept; name some with model.path=FOLDER")
    from transformers.utils import logging as transformers_logging

    from areal_x.trainer.replay import replay, replay_lines
    from areal_x.trainer.skipped_batches import read_skipped

    transformers_logging.disable_progress_bar()
    skipped = read_skipped(path)
    lines = replay_lines(replay(config, path, str(weights)))
    return [f"step {skipped.step}, weights of version {skipped.version}: {weights}", *lines]
