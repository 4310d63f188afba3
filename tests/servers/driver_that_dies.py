"""Run as a program: starts servers, prints all their processes, keeps them busy and waits to be killed.

python driver_that_dies.py KIND FOLDER
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from running_engines import request, start_running
from server_models import make_policy
from server_processes import family, servers_of


def shared_folders() -> set[str]:
    """Folders of weights in shared memory."""
    return {str(path) for path in Path("/dev/shm").glob("areal_x-*")}


async def main(kind: str, folder: Path) -> None:
    """Never returns."""
    policy = make_policy(folder / "model")
    before = shared_folders()
    running = await start_running(kind, policy, folder / "logs")
    await running.publish()
    (server,) = servers_of(policy.path)
    processes = {one.pid for one in family(server)} | {server.ppid()}
    tasks = [asyncio.create_task(running.engine.agenerate(request(max_new_tokens=400, seed=i))) for i in range(32)]
    await running.until(64)
    print(json.dumps([sorted(processes), sorted(shared_folders() - before)]), flush=True)
    await asyncio.gather(*tasks)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
