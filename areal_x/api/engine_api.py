"""The contracts of inference engines, train engines and weight synchronisation."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from areal_x.api.errors import RequestError
from areal_x.api.records import FloatArray, ModelRequest, ModelResponse, TrainBatch

if TYPE_CHECKING:
    import torch

__all__ = ["Critic", "EngineHealth", "Generator", "InferenceEngine", "PolicyFacts", "TrainEngine", "WeightSync"]


@runtime_checkable
class Generator(Protocol):
    """All that a workflow ever sees of an engine."""

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        """Sample one completion.

        Raises:
            PromptTooLongError: the prompt leaves no room for a completion.
            RequestError: the request is impossible (an id outside the vocabulary, a bad sampling parameter).
            EngineDiedError: the engine's process ended.
        """
        ...


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """A snapshot of an inference engine. ``version``: of the weights that the next token will be sampled from."""

    alive: bool
    version: int
    num_running: int
    num_waiting: int
    num_generated_tokens: int
    busy_seconds: float = 0.0
    """Seconds spent generating since the start."""
    num_updates: int = 0


class InferenceEngine(ABC):
    """A generator with a life cycle. Cancelling ``agenerate`` frees the request's slot."""

    @abstractmethod
    async def start(self) -> None:
        """Start the engine; return when it can generate."""

    @abstractmethod
    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        """See ``Generator.agenerate``."""

    async def agenerate_batch(self, requests: Sequence[ModelRequest]) -> list[ModelResponse | RequestError]:
        """Sample one ordered batch; results in input order, impossible requests as errors in their place.

        Synchronous runs send their work this way. An engine that repeats bitwise overrides it, so that the composition
        of every forward pass depends on the batch alone; by default the requests run concurrently.
        """
        results = await asyncio.gather(*map(self.agenerate, requests), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, RequestError):
                raise result
        return [result for result in results if isinstance(result, ModelResponse | RequestError)]

    @abstractmethod
    async def update_weights(self, version: int) -> None:
        """Take the weights of ``version``; return when every later token is sampled from them or newer ones."""

    @abstractmethod
    async def pause(self) -> None:
        """Stop between two decode steps; requests in flight keep their state."""

    @abstractmethod
    async def resume(self) -> None:
        """Go on after ``pause``."""

    async def sleep(self) -> None:
        """Give the device to the trainer: afterwards the engine holds neither weights nor keys and values there.

        Requests wait. The next ``update_weights`` wakes the engine with the new weights, ``wake_up`` with those that it
        had. By default the engine only pauses.
        """
        await self.pause()

    async def wake_up(self) -> None:
        """Go on after ``sleep`` with the weights of before; by default, as ``resume``."""
        await self.resume()

    def counters(self) -> dict[str, float]:
        """Running totals of the engine's own, by name, for a run's metrics; by default none."""
        return {}

    @abstractmethod
    async def health(self) -> EngineHealth:
        """Report progress; raises ``EngineDiedError`` when the engine is gone."""

    @abstractmethod
    async def close(self) -> None:
        """Stop the engine and free what it holds. Safe to call twice."""


@dataclass(frozen=True, slots=True)
class PolicyFacts:
    """What a run has to know of the policy that it trains, wherever its weights are."""

    device: str
    """Where it is trained: ``cpu``, ``cuda:0``; of several ranks, each has one like this."""
    inference_dtype: torch.dtype
    """What engines that take its weights compute in."""
    weights: tuple[tuple[str, tuple[int, ...]], ...]
    """Name and shape of what ``named_weights`` gives, in its order."""
    vocabulary_size: int
    num_reference_parameters: int = 0
    """Numbers in the weights of a reference of its own; 0: there is none, or it lies below adapters."""

    @property
    def num_parameters(self) -> int:
        """Numbers in all weights, tied ones once."""
        return sum(math.prod(shape) for _, shape in self.weights)


class TrainEngine(ABC):
    """A policy that can be trained, in this process or on ranks. ``version`` counts publications."""

    version: int

    @property
    @abstractmethod
    def facts(self) -> PolicyFacts:
        """See ``PolicyFacts``."""

    @abstractmethod
    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        """One optimiser step (or several mini-batches) on ``batch``; returns its metrics."""

    @abstractmethod
    def accumulate(self, part: TrainBatch) -> None:
        """Add the gradients of one part of a step; how a step is cut into parts does not change what is learned."""

    @abstractmethod
    def apply(self) -> dict[str, float]:
        """One optimiser step on all parts since the last one; returns the metrics of all of them together."""

    @abstractmethod
    def discard(self) -> None:
        """Forget the parts since the last step."""

    def release_memory(self) -> None:  # noqa: B027 (an engine may keep nothing back)
        """Give the device what no tensor holds, so that another process can take it."""

    @abstractmethod
    def sft_step(self, batch: TrainBatch) -> dict[str, float]:
        """One optimiser step on the mean negative log-likelihood of the masked tokens, at temperature 1."""

    @abstractmethod
    def reset_optimizer(self, learning_rate: float, schedule: str, warmup_steps: int, total_steps: int) -> None:
        """Start a new phase (after a warm start, say): fresh optimiser state and schedule, same weights. A reference
        that is no model of its own (``reference.path``) begins anew as the policy is now."""

    @abstractmethod
    def logprobs(self, batch: TrainBatch) -> FloatArray:
        """Log-probability of each token given those before it, float32 [N]; 0 at each sequence's first token."""

    def reference_logprobs(self, batch: TrainBatch) -> FloatArray:
        """As ``logprobs``, under the reference model.

        Raises:
            EngineError: there is none.
        """
        raise NotImplementedError

    def update_reference(self) -> None:
        """Move a reference that follows the policy (``reference.ema_decay``) one update closer to it."""
        raise NotImplementedError

    @abstractmethod
    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights to publish, under their Hugging Face names; tied ones once."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the policy in Hugging Face format."""

    @abstractmethod
    def load(self, path: Path) -> None:
        """Read the policy's weights from a directory in Hugging Face format."""

    def begin_checkpoint(self, path: Path) -> None:
        """Copy all that training goes on from (weights, optimiser, schedule, random numbers of every rank, a reference
        that moves) and begin to write it to the new directory ``path``; everything may change once this returns.

        Raises:
            EngineError: the checkpoint before is not ended.
        """
        raise NotImplementedError

    def end_checkpoint(self) -> None:
        """Return when what ``begin_checkpoint`` began is written.

        Raises:
            CheckpointError: it could not be; training may go on.
        """
        raise NotImplementedError

    def restore_checkpoint(self, path: Path) -> None:
        """Go on from what ``begin_checkpoint`` wrote, whatever the number of ranks was.

        Raises:
            CheckpointError: names what is wrong with it, such as another model's weights.
        """
        raise NotImplementedError


class Critic(Protocol):
    """A value model that can be trained, in this process or on ranks."""

    def values(self, batch: TrainBatch) -> FloatArray:
        """Expected return from before each token on, float32 [N]; 0 where nothing was sampled."""
        ...

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        """Optimiser steps towards ``batch.returns`` over the tokens of its loss mask; metrics named ``critic/...``."""
        ...

    def begin_checkpoint(self, path: Path) -> None:
        """As of ``TrainEngine``."""
        ...

    def end_checkpoint(self) -> None:
        """As of ``TrainEngine``."""
        ...

    def restore_checkpoint(self, path: Path) -> None:
        """As of ``TrainEngine``."""
        ...


class WeightSync(Protocol):
    """Moves the trainer's weights to the inference engines, in two parts so that training goes on during the second."""

    async def stage(self, version: int) -> None:
        """Copy the trainer's weights out as ``version``; they may change again once this returns."""
        ...

    async def publish(self, version: int) -> None:
        """Return when every engine serves the staged ``version``; requests in flight go on."""
        ...
