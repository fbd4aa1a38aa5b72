"""torchrun's restarts: one store outlives the processes, and what the dead ones left there must not be taken for the living."""

from __future__ import annotations

import subprocess
import sys

STARTS = """
import multiprocessing, os, time
import torch
import torch.distributed
from bigtransfer import dist

def process(rank, late):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    if rank in late:
        time.sleep(0.5)
    with dist.join(torch.device("cpu")) as (world, _):
        assert world.collect(rank) == [0, 1]
        os._exit(17)  # without a farewell

store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port), TORCHELASTIC_USE_AGENT_STORE="True")
for late in ([], [0], [1], [0]):
    processes = [multiprocessing.get_context("fork").Process(target=process, args=(rank, late)) for rank in range(2)]
    for each in processes:
        each.start()
    for each in processes:
        each.join(10)
        each.kill()
    print([each.exitcode for each in processes], flush=True)
"""


def test_each_start_of_the_processes_finds_itself() -> None:
    done = subprocess.run([sys.executable, "-c", STARTS], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "[17, 17]\n" * 4, done.stdout + done.stderr
