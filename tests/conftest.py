"""What all tests need."""

import gc
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Shells start background jobs with interrupts ignored, and children inherit that: tests that interrupt a child would
# wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# The same examples each time; one that a busy machine was slow with is no failure.
settings.register_profile("areal_x", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("areal_x")


@pytest.fixture
def group_of_one() -> Iterator[None]:
    """Mixed precision makes a process group of this process alone; other tests begin without one."""
    import torch.distributed as dist
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache

    assert not dist.is_initialized()
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
        # PyTorch keeps the group, with its threads, in these caches. A fork that clears them does not live.
        gc.collect()
        _clear_sharding_prop_cache()
