"""Data sets of the Hugging Face hub, through ``datasets``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from areal_x.api.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["find_held_out_split", "read_hub_rows"]

_HELD_OUT_SPLITS = ("test", "validation", "valid", "dev")


def read_hub_rows(path: str, subset: str | None, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of one split with its place.

    Raises:
        DataError: the hub cannot be reached, or it has no such data set, configuration or split.
    """
    for number, row in enumerate(_load(path, subset, split), start=1):
        yield f"{path} ({split}), row {number}", dict(row)


def _load(path: str, subset: str | None, split: str) -> Dataset:
    import datasets

    try:
        return datasets.load_dataset(path, subset, split=split)
    except _hub_errors() as error:
        raise _explain(error, path, subset, split) from error


def find_held_out_split(path: str, subset: str | None) -> str | None:
    """The first of the usual held-out splits that the data set has.

    Raises:
        DataError: as ``read_hub_rows``.
    """
    import datasets

    try:
        names = datasets.get_dataset_split_names(path, subset)
    except _hub_errors() as error:
        raise _explain(error, path, subset, "test") from error
    return next((split for split in _HELD_OUT_SPLITS if split in names), None)


def _hub_errors() -> tuple[type[Exception], ...]:
    """What ``datasets`` raises for a network, a name or a file that is wrong; its HTTP errors are ``OSError``."""
    from datasets.exceptions import DatasetsError

    return (OSError, ValueError, RuntimeError, DatasetsError)


def _explain(error: Exception, path: str, subset: str | None, split: str) -> DataError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    name = type(error).__name__
    offline = isinstance(error, ConnectionError) or "Connect" in name or "Offline" in name or "Timeout" in name
    if offline:
        return DataError(
            f"data.path={path}: no such file here, and the hub cannot be reached ({reason}); "
            "download the data elsewhere and name the file"
        )
    if "Config name is missing" in str(error) or "BuilderConfig" in str(error):
        return DataError(f"data.subset={subset}: {' '.join(lines)[:400]}")
    if "split" in reason.lower():
        return DataError(f"data.split={split}: {reason}")
    return DataError(f"data.path={path}: the hub's data set cannot be loaded: {reason}")
