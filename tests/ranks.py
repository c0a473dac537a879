"""A few processes with a gloo group between them, forked from this one: an import of torch costs seconds."""

from __future__ import annotations

import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 120


def together(work: Callable[..., Any], *arguments: Any, world: int = 2) -> list[Any]:
    """What `work(*arguments)` returned in each of `world` processes; AssertionError with the traceback where one failed."""
    with tempfile.TemporaryDirectory() as place:
        context = torch.multiprocessing.get_context("fork")
        children = [
            context.Process(target=_one, args=(rank, world, Path(place), work, arguments))
            for rank in range(world)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(SECONDS)
        hung = [child for child in children if child.is_alive()]
        for child in hung:
            child.kill()
        results = []
        for rank in range(world):
            file = Path(place, f"{rank}.pickle")
            kind, value = pickle.loads(file.read_bytes()) if file.exists() else ("error", "it left nothing")
            assert kind == "result" and not hung, f"process {rank}: {value}"
            results.append(value)
        return results


def _one(rank: int, world: int, place: Path, work: Callable[..., Any], arguments: tuple) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
    }
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}  # asked for; the group meets in a file
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=world)
        answer = ("result", work(*arguments))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        answer = ("error", traceback.format_exc())
    Path(place, f"{rank}.pickle").write_bytes(pickle.dumps(answer))
    os._exit(0)
