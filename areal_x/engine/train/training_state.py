"""All that training goes on from: weights, moments of the optimiser, its place in the schedule, random numbers. ::

    begin    copy this rank's part into memory kept for it -> a thread writes it (``state_files.py``) -> end
    restore  check names and shapes -> read this rank's part, however it was divided when it was written

Nothing is said between ranks while a state is written: each writes its own file. Weights that are not trained are not
written; a sum over their bits is, so that a state is never put on another base.
"""

from __future__ import annotations

import errno
import json
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from areal_x.api.errors import CheckpointError, EngineError
from areal_x.engine.ranks.rank_context import ONE_RANK, RankContext
from areal_x.engine.train.optimizer import MOMENTS, ScheduledAdamW
from areal_x.engine.train.random_states import random_states, restore_random_states
from areal_x.engine.train.sharding import local_rows
from areal_x.engine.train.state_files import (
    FORMAT_VERSION,
    STATE_FILE,
    FileImage,
    StateReader,
    rank_stem,
    write_durably,
)

__all__ = ["MODEL", "TrainingState", "bit_sums", "other_base", "saved_bit_sums"]

MODEL = "model."
"""How the names of weights and buffers begin; the rest is as the module names them."""
_STEPS = "optimizer.steps"
_BIT_TYPES = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class TrainingState:
    """The state of one module and its optimiser, on this rank. Every rank makes the same calls.

    Args:
        module: its parameters may be sharded; those that are trained are written, and its buffers.
        device: that it is trained on.
        facts: what a reader of the state must know of the module, for JSON.
        timeout_seconds: a state that is not written after so long counts as failed.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        optimizer: ScheduledAdamW,
        ranks: RankContext = ONE_RANK,
        device: torch.device | str = "cpu",
        facts: Mapping[str, Any] | None = None,
        timeout_seconds: float = 300.0,
    ) -> None:
        self._optimizer, self._ranks, self._device = optimizer, ranks, torch.device(device)
        self._facts = dict(facts or {})
        self._timeout = timeout_seconds
        # Kept from here on: while a layer is gathered, the module shows other parameters in their place.
        self._trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._frozen = {name: p for name, p in module.named_parameters() if not p.requires_grad}
        persistent = module.state_dict().keys()
        self._buffers = {name: buffer for name, buffer in module.named_buffers() if name in persistent}
        self._frozen_sums: list[int] | None = None
        self._image: FileImage | None = None
        self._writer: _Writer | None = None

    def forget_frozen(self) -> None:
        """Weights that are not trained were replaced."""
        self._frozen_sums = None

    def begin(self, path: Path, version: int, others: Mapping[str, torch.Tensor] | None = None) -> None:
        """Copy the state and begin to write it to ``path``; everything may change once this returns.

        Args:
            others: further tensors by name, sharded or the same on every rank.

        Raises:
            EngineError: the one before is not ended.
        """
        if self._writer is not None:
            raise EngineError("a checkpoint is being written: call end_checkpoint first")
        moving = [name for name, parameter in self._trained.items() if MOMENTS[0] in self._optimizer.state[parameter]]
        tensors = self._weights() | self._moments(moving) | self._steps(moving) | dict(others or {})
        if self._ranks.num_ranks > 1 and self._ranks.rank > 0:
            tensors = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, DTensor)}
        if self._image is None or not self._image.fits(tensors):
            self._image = None  # Its memory is free before the new one takes some.
            self._image = FileImage(tensors, pinned=self._device.type == "cuda")
        self._image.fill(tensors)
        own = {"random": random_states(self._device), "frozen": self._sums_of_frozen()}
        facts = self._facts | {
            "format": FORMAT_VERSION,
            "num_ranks": self._ranks.num_ranks,
            "version": version,
            "optimizer": self._optimizer.progress() | {"with_moments": moving},
            "frozen": list(self._frozen),
            "others": sorted(others or {}),
        }
        self._writer = _Writer(path, self._ranks.rank, self._image, own, facts)
        self._writer.start()

    def end(self) -> None:
        """Return when the state is written, on all ranks.

        Raises:
            CheckpointError: it could not be, on any rank.
            EngineError: none is being written.
        """
        if self._writer is None:
            raise EngineError("no checkpoint is being written: call begin_checkpoint first")
        writer, self._writer = self._writer, None
        writer.join(self._timeout)
        problem = writer.problem
        if writer.is_alive():
            self._image = None  # Still in use, so the next checkpoint gets memory of its own.
            problem = f"not written within {self._timeout:g} s (half of train.rank_timeout_seconds)"
        self._agree(writer.path, None if problem is None else CheckpointError(f"checkpoint {writer.path}: {problem}"))

    def restore(self, path: Path, others: Mapping[str, torch.Tensor] | None = None) -> dict[str, Any]:
        """Take over a state that ``begin`` wrote on any number of ranks, but for the rates of the schedule, which stay
        as they are configured.

        Args:
            others: as of ``begin``; they are read if the state has them.

        Returns:
            What ``begin`` was told: ``version``, and the names of its ``others``.

        Raises:
            CheckpointError: it cannot be read, or is of another model, on any rank; unless it says that it cannot be
                read, nothing is changed then.
        """
        problem: CheckpointError | None = None
        try:
            reader = StateReader(path)
            tensors = self._checked(reader, others or {})
            own = reader.of_rank(self._ranks.rank)
            saved_sums = saved_bit_sums(reader)
        except CheckpointError as error:
            problem = error
        sums = torch.tensor(self._sums_of_frozen(), dtype=torch.int64, device=self._device)
        sums = self._ranks.sum(sums) if self._frozen else sums
        if problem is None and sums.tolist() != saved_sums:
            problem = other_base(path, "here")
        self._agree(path, problem)
        moving = reader.facts["optimizer"]["with_moments"]
        self._optimizer.make_moments(self._trained[name] for name in moving)
        tensors |= self._moments(moving) | (steps := self._steps(moving))
        try:
            reader.read(tensors)
        except CheckpointError as error:
            problem = error
        self._agree(path, problem)
        for name, step in zip(moving, steps.get(_STEPS, ()), strict=True):
            self._optimizer.state[self._trained[name]]["step"].copy_(step)
        self._optimizer.go_on(reader.facts["optimizer"])
        restore_random_states(own.get("random", {}), self._device)
        return {"version": int(reader.facts["version"]), "others": list(reader.facts["others"])}

    def _checked(self, reader: StateReader, others: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights, buffers and what is there of ``others``, all of which the state has with their shapes."""
        tensors = self._weights() | {name: others[name] for name in reader.facts["others"] if name in others}
        reader.check(tensors)
        moving = reader.facts["optimizer"]["with_moments"]
        wanted = {*tensors, *(f"optimizer.{moment}.{name}" for moment in MOMENTS for name in moving)}
        foreign = sorted(reader.shapes.keys() - wanted - {_STEPS})
        if foreign or reader.facts["frozen"] != list(self._frozen):
            what = f"it has {foreign[0]}, which is not here" if foreign else "other weights of it were not trained"
            raise CheckpointError(
                f"checkpoint {reader.path} is from another model: {what}; give the configuration that it was written "
                "with"
            )
        return tensors

    def _weights(self) -> dict[str, torch.Tensor]:
        held = self._trained | self._buffers
        return {MODEL + name: tensor.detach() for name, tensor in held.items()}

    def _moments(self, names: list[str]) -> dict[str, torch.Tensor]:
        state = self._optimizer.state
        return {
            f"optimizer.{moment}.{name}": state[self._trained[name]][moment] for moment in MOMENTS for name in names
        }

    def _steps(self, names: list[str]) -> dict[str, torch.Tensor]:
        """Steps of each parameter [names], as moments of different ages are corrected for them."""
        if not names:
            return {}
        return {_STEPS: torch.stack([self._optimizer.state[self._trained[name]]["step"] for name in names])}

    def _sums_of_frozen(self) -> list[int]:
        if self._frozen_sums is None:
            self._frozen_sums = bit_sums(self._frozen.values())
        return self._frozen_sums

    def _agree(self, path: Path, problem: CheckpointError | None) -> None:
        """Raise on all ranks if there is a problem on any."""
        failed = self._ranks.sum(torch.tensor([float(problem is not None)], device=self._device))
        if problem is not None:
            raise problem
        if failed.item():
            raise CheckpointError(f"checkpoint {path}: another rank had a problem, which its log names")


class _Writer(threading.Thread):
    """Writes one rank's files; ``problem`` says what went wrong, and is ``None`` once they are on the disk."""

    def __init__(
        self, path: Path, rank: int, image: FileImage, own: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self.path = path
        self.problem: str | None = "its writer ended too early; see the log"
        self._rank, self._image, self._own, self._facts = rank, image, own, facts

    def run(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_durably(self.path / f"{rank_stem(self._rank)}.safetensors", self._image.bytes)
            write_durably(self.path / f"{rank_stem(self._rank)}.json", json.dumps(self._own).encode())
            if self._rank == 0:
                write_durably(self.path / STATE_FILE, json.dumps(self._facts, indent=1).encode())
        except OSError as error:
            fix = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
            self.problem = f"{error.strerror or error}{fix}"
            print(f"checkpoint {self.path}: {self.problem}", file=sys.stderr, flush=True)
        else:
            self.problem = None


def bit_sums(weights: Iterable[torch.Tensor]) -> list[int]:
    """A sum over the bits of this rank's rows of each weight; those of all ranks add up to that of the whole."""
    rows = [local_rows(weight)[0] for weight in weights]
    return [int(part.view(_BIT_TYPES[part.itemsize]).sum(dtype=torch.int64)) for part in rows]


def saved_bit_sums(reader: StateReader) -> list[int]:
    """What the ranks that wrote a state found for weights that are not trained, added up.

    Raises:
        CheckpointError: it cannot be read.
    """
    of_ranks = [reader.of_rank(rank)["frozen"] for rank in range(reader.num_ranks)]
    return [sum(parts) for parts in zip(*of_ranks, strict=True)]


def other_base(path: Path, place: str) -> CheckpointError:
    """The error of adapters that were trained on other weights than those at ``place``."""
    return CheckpointError(
        f"checkpoint {path} is from another model: the weights below its adapters are not those {place}; give the "
        "model that it was trained from"
    )
