"""What one run in the sandbox may use."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from areal_x.api.errors import ConfigError

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one run. Memory is counted for each process: all together use ``memory_mb * processes`` at most."""

    seconds: float = 10.0
    """Wall clock time; also bounds the processor time of each process."""
    memory_mb: int = 512
    """Address space of each process, the interpreter's own 30 MB included."""
    processes: int = 16
    """Processes and threads at the same time."""
    output_kb: int = 4096
    """Of standard output, of standard error, and of a result: each."""
    disk_mb: int = 64
    """All files in ``/tmp`` together; also the size of the largest."""
    files: int = 4096
    """Number of files in ``/tmp``."""
    open_files: int = 128
    stack_mb: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0 or not math.isfinite(value):
                raise ConfigError(f"limit {field.name} of the sandbox must be above 0, got {value!r}")
        if self.memory_mb < 64:
            raise ConfigError(f"limit memory_mb={self.memory_mb} of the sandbox: an interpreter needs at least 64")

    @property
    def output_bytes(self) -> int:
        """``output_kb`` in bytes."""
        return self.output_kb << 10

    @property
    def cpu_seconds(self) -> int:
        """Processor time of one process in whole seconds, as the kernel counts it."""
        return math.ceil(self.seconds) + 1

    def for_kernel(self) -> dict[str, int]:
        """In bytes, seconds and counts, for ``child.member``."""
        return {
            "memory": self.memory_mb << 20,
            "processes": self.processes,
            # One byte above what may be printed, so that reaching the limit can be told from staying below it.
            "file_size": max(self.output_bytes + 1, self.disk_mb << 20),
            "disk": self.disk_mb << 20,
            "files": self.files,
            "open_files": self.open_files,
            "stack": self.stack_mb << 20,
            "cpu": self.cpu_seconds,
        }
