"""What travels between the layers: requests, responses, trajectories, groups and train batches.

Token ids, log-probabilities and masks are 1-D numpy arrays. Axis letters: T tokens of one sequence, N tokens of all
sequences of a batch laid end to end, S sequences. Versions are spans, because they change only at weight updates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from areal_x.api.reward_records import RewardOutcome

__all__ = [
    "NOT_GENERATED",
    "TURNS",
    "ModelRequest",
    "ModelResponse",
    "SamplingParams",
    "StopReason",
    "TrainBatch",
    "Trajectory",
    "TrajectoryGroup",
    "VersionSpan",
    "spans_from_versions",
    "versions_from_spans",
]

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
StopReason = Literal["stop", "length", "abort"]

NOT_GENERATED = -1
"""The version of a token that no engine sampled (prompts, feedback, tool results)."""

TURNS = "turns"
"""Key of a trajectory's ``metadata``: what came after the prompt, as chat messages, for models that read conversations.
Without it the completion is one message."""

_request_numbers = itertools.count()


class VersionSpan(NamedTuple):
    """Tokens ``start`` to ``end`` (exclusive) were sampled by weights of ``version``."""

    start: int
    end: int
    version: int


def spans_from_versions(versions: npt.NDArray[np.integer[Any]]) -> list[VersionSpan]:
    """Run-length encode a version per token; tokens of version ``NOT_GENERATED`` get no span."""
    if len(versions) == 0:
        return []
    edges = np.flatnonzero(np.diff(versions)) + 1
    starts = [0, *edges.tolist()]
    ends = [*edges.tolist(), len(versions)]
    spans = (VersionSpan(a, b, int(versions[a])) for a, b in zip(starts, ends, strict=True))
    return [span for span in spans if span.version != NOT_GENERATED]


def versions_from_spans(spans: Iterable[VersionSpan], length: int) -> IntArray:
    """The version of each of ``length`` tokens, ``NOT_GENERATED`` outside every span."""
    versions = np.full(length, NOT_GENERATED, dtype=np.int32)
    for start, end, version in spans:
        versions[start:end] = version
    return versions


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample a completion. ``temperature=0`` is greedy; ``top_k=0`` and ``top_p=1.0`` mean no truncation.

    Lists of stops become tuples, so that the parameters can be hashed.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end a completion, beside the model's own end-of-sequence ids. The stop token is part of the output."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion, found in its decoded text. The tokens that made the string are kept."""
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        given: Any = self.stop
        if isinstance(given, str):
            raise TypeError(f"stop={given!r} is one string; give a list or a tuple of strings")
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "stop", tuple(given))


@dataclass(slots=True)
class ModelRequest:
    """One completion to generate from exact token ids.

    ``session_id`` names requests that share a prefix (turns of one episode); ``order`` is the place in an ordered batch
    of a synchronous run and is set by the executor.
    """

    input_ids: IntArray
    sampling: SamplingParams = field(default_factory=SamplingParams)
    request_id: str = field(default_factory=lambda: f"request-{next(_request_numbers)}")
    session_id: str | None = None
    order: int = 0

    def __post_init__(self) -> None:
        self.input_ids = np.asarray(self.input_ids, dtype=np.int32)


@dataclass(slots=True)
class ModelResponse:
    """What an engine sampled: ids, their log-probabilities under the distribution sampled from, and version spans.

    ``output_ids`` int32 [T], ``logprobs`` float32 [T], ``version_spans`` cover 0..T without gaps. ``started_at`` and
    ``finished_at`` are ``time.monotonic()`` seconds of the engine's own work (queueing excluded).
    """

    request_id: str
    input_ids: IntArray
    output_ids: IntArray
    logprobs: FloatArray
    version_spans: list[VersionSpan]
    stop_reason: StopReason
    started_at: float = 0.0
    finished_at: float = 0.0


@dataclass(slots=True)
class Trajectory:
    """One sample as it will be trained: exact ids, the mask of sampled tokens, their log-probabilities and versions.

    ``input_ids`` int32 [T]; ``loss_mask`` bool [T], true exactly at sampled tokens; ``logprobs`` float32 [T], zero
    where the mask is false; ``version_spans`` index into 0..T. ``group_id`` and ``episode_id`` are set by the executor.
    """

    input_ids: IntArray
    loss_mask: BoolArray
    logprobs: FloatArray
    version_spans: list[VersionSpan]
    outcome: RewardOutcome | None = None
    stop_reason: StopReason = "stop"
    num_turns: int = 1
    prompt: str = ""
    completion: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    group_id: int = -1
    episode_id: str = ""

    def __post_init__(self) -> None:
        if not len(self.input_ids) == len(self.loss_mask) == len(self.logprobs):
            raise ValueError(
                f"input_ids, loss_mask and logprobs of a trajectory differ in length: {len(self.input_ids)}, "
                f"{len(self.loss_mask)}, {len(self.logprobs)}"
            )

    @classmethod
    def from_response(cls, response: ModelResponse, outcome: RewardOutcome | None = None, **fields: Any) -> Trajectory:
        """The trajectory of a single-turn episode."""
        return cls.from_responses([response], outcome, **fields)

    @classmethod
    def from_responses(
        cls, responses: Sequence[ModelResponse], outcome: RewardOutcome | None = None, **fields: Any
    ) -> Trajectory:
        """One trajectory of several turns, in which each turn's prompt begins with all ids that came before it.

        Raises:
            ValueError: a turn's prompt does not begin with the turns before it: its ids are not what was sampled.
        """
        last = responses[-1]
        length = len(last.input_ids) + len(last.output_ids)
        input_ids = np.concatenate([last.input_ids, last.output_ids])
        if input_ids.dtype != np.int32:
            input_ids = input_ids.astype(np.int32)
        loss_mask = np.zeros(length, dtype=np.bool_)
        logprobs = np.zeros(length, dtype=np.float32)
        spans: list[VersionSpan] = []
        for turn, response in enumerate(responses):
            start = len(response.input_ids)
            end = start + len(response.output_ids)
            if response is not last and not (
                end <= length
                and np.array_equal(input_ids[:start], response.input_ids)
                and np.array_equal(input_ids[start:end], response.output_ids)
            ):
                raise ValueError(f"turn {turn + 1} is no prefix of the last turn; append ids, do not encode again")
            loss_mask[start:end] = True
            logprobs[start:end] = response.logprobs
            spans += [VersionSpan(a + start, b + start, version) for a, b, version in response.version_spans]
        if "num_turns" not in fields:
            fields["num_turns"] = len(responses)
        if "stop_reason" not in fields:
            fields["stop_reason"] = last.stop_reason
        return cls(input_ids, loss_mask, logprobs, spans, outcome, **fields)

    @property
    def versions(self) -> IntArray:
        """Version per token, int32 [T], ``NOT_GENERATED`` where no engine sampled."""
        return versions_from_spans(self.version_spans, len(self.input_ids))

    @property
    def num_sampled(self) -> int:
        """Tokens that an engine sampled, trained or not."""
        return sum(span.end - span.start for span in self.version_spans)

    @property
    def oldest_version(self) -> int:
        """Version of the oldest sampled token, ``NOT_GENERATED`` if there is none."""
        return min((span.version for span in self.version_spans), default=NOT_GENERATED)


@dataclass(slots=True)
class TrajectoryGroup:
    """All samples of one prompt that are to be trained.

    ``rewards`` float32, one final scalar for each trajectory. NaN marks a sample whose score failed and which is masked
    (``reward.on_failure=mask``): nothing of it is trained, its advantage is 0, and no mean or deviation counts it.
    """

    group_id: int
    trajectories: list[Trajectory]
    rewards: FloatArray
    item: dict[str, Any] = field(default_factory=dict)
    item_index: int = -1
    admitted_version: int = 0
    raw_rewards: FloatArray | None = None
    """The rewards before post-processing, if there is any."""


@dataclass(slots=True)
class TrainBatch:
    """Sequences laid end to end, as the train engine takes them.

    ``input_ids`` int32 [N]; ``loss_mask`` bool [N], true at tokens that are trained (sampled and young enough);
    ``logprobs`` float32 [N], the behaviour policy's; ``advantages`` float32 [N]; ``lengths`` int32 [S]; ``group_ids``
    int64 [S]. What stands behind them is there when an algorithm needs it.
    """

    input_ids: IntArray
    loss_mask: BoolArray
    logprobs: FloatArray
    advantages: FloatArray
    lengths: IntArray
    group_ids: npt.NDArray[np.int64]
    versions: IntArray | None = None
    """Version of the weights that sampled each token, int32 [N]; ``NOT_GENERATED`` where none did."""
    proximal: FloatArray | None = None
    """Log-probabilities under the policy at the start of the step, float32 [N]; the engine computes what it needs."""
    reference: FloatArray | None = None
    """Those of the reference model, float32 [N]; the engine computes what it needs."""
    values: FloatArray | None = None
    """The critic's at the start of the step, float32 [N]: expected return from before each token on."""
    returns: FloatArray | None = None
    """What the critic is trained towards, float32 [N]."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Start of each sequence and the end of the last, int64 [S + 1]."""
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
