"""Seeded requests on vLLM's CPU runner (0.32), inside its worker.

When a prompt, or after a weight update a prefix, is computed in several steps, vLLM takes back the draw of every step
but the last by moving the generator's offset. Generators of a CPU have no offset, so the engine dies
("CPU Generator does not use offset"). Here such a draw is taken back by restoring the generator's state, so a seed
gives the same tokens however its prompt was cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["restore_cpu_draws"]


def restore_cpu_draws(runner: Any) -> None:
    """Change ``CPUModelRunner`` so that draws which do not count leave no trace in a request's generator."""
    sample, bookkeep = runner._sample, runner._bookkeeping_sync

    def discarded(self: Any) -> dict[int, Any]:
        """Generators of requests whose prompt is not complete after this step, by their row."""
        generators = self.input_batch.generators
        if not generators:
            return {}
        rows = np.flatnonzero(self.discard_request_mask.np[: self.input_batch.num_reqs]).tolist()
        return {row: generators[row] for row in rows if row in generators}

    def sample_and_restore(self: Any, *args: Any, **kwargs: Any) -> Any:
        states = [(generator, generator.get_state()) for generator in discarded(self).values()]
        result = sample(self, *args, **kwargs)
        for generator, state in states:
            generator.set_state(state)
        return result

    def bookkeep_without_offsets(self: Any, *args: Any, **kwargs: Any) -> Any:
        held = discarded(self)
        for row in held:
            del self.input_batch.generators[row]
        try:
            return bookkeep(self, *args, **kwargs)
        finally:
            self.input_batch.generators.update(held)

    runner._sample = sample_and_restore
    runner._bookkeeping_sync = bookkeep_without_offsets
