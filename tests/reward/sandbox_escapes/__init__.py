"""Programs that try to get out of the sandbox: each does what it tries when it runs without one."""

from sandbox_escapes import files, kernel, network, processes, resources
from sandbox_escapes.attempt import Attempt

ATTEMPTS: list[Attempt] = [
    *files.ATTEMPTS,
    *network.ATTEMPTS,
    *processes.ATTEMPTS,
    *resources.ATTEMPTS,
    *kernel.ATTEMPTS,
]
