"""A program: one of two ranks that exchange a number; the second stops, or comes late. `lost.py RANK PORT HOW`."""

from __future__ import annotations

import os
import sys
import time

from mmreason.train.distributed import DDPBackend, leave, lost_ranks_named

PATIENCE = 4.0


@lost_ranks_named()
def main(rank: int, port: str, how: str) -> None:
    """The first rank waits for the second, which does not come."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    backend = DDPBackend(PATIENCE)
    backend.barrier()
    if rank == 1 and how == "stops":
        os._exit(3)
    if rank == 1:
        time.sleep(3 * PATIENCE)
        leave()
    backend.sum(1.0)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), *sys.argv[2:])
    except ConnectionError as error:
        print(error)
        leave()
