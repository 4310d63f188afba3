"""One record for each prompt of an epoch, when its fate is settled: ``prompts.jsonl``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from areal_x.api.records import TrajectoryGroup
from areal_x.observe.run_writer import RunWriter
from areal_x.rollout.data_stream import Place
from areal_x.rollout.ledger import PromptEnd

__all__ = ["PromptRecords"]


class PromptRecords:
    """Collects the fates of groups and writes them with the step that they are reported in.

    A record has ``group_id``, ``epoch`` and ``item`` (its place in the data set), ``end`` (``trained``, ``rejected`` or
    ``failed``), ``reason`` (``null`` for trained ones), ``step`` and ``version``: the step, and the weights that it was
    trained on; and ``admitted_version``, of the weights when it was drawn. A prompt that is still under way when the
    run ends has none.

    Args:
        place: epoch and item of a group, by its id.
    """

    def __init__(self, writer: RunWriter, place: Callable[[int], Place]) -> None:
        self._writer = writer
        self._place = place
        self._ends: list[PromptEnd] = []

    def on_prompt(self, end: PromptEnd) -> None:
        """A prompt will not be trained."""
        self._ends.append(end)

    def write(self, step: int, version: int, trained: Sequence[TrajectoryGroup]) -> None:
        """Write the prompts of a step: those that it trained, and those whose other fate was settled since the last.

        Raises:
            RunWriteError: the system refused.
        """
        ends, self._ends = self._ends, []
        rows: list[tuple[int, str, str | None, int]]
        rows = [(group.group_id, "trained", None, group.admitted_version) for group in trained]
        rows += [(end.group_id, end.end, end.reason, end.admitted_version) for end in ends]
        records = []
        for group_id, end, reason, admitted in sorted(rows):
            place = self._place(group_id)
            record: dict[str, Any] = {"group_id": group_id, "epoch": place.epoch, "item": place.item, "end": end}
            record |= {"reason": reason, "step": step, "version": version, "admitted_version": admitted}
            records.append(record)
        self._writer.write_prompts(records)
