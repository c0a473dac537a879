"""A full disk and exhausted memory end with exit 3 and the place, whatever the library that meets them says."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from configs.program import EnvironmentFault, classify
from tests import handmade, tiny

WEIGHTS = {"w": torch.ones(9999)}


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """No file of this process grows beyond `limit` bytes: writing fails as on a full disk, with another number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS: dict[str, Callable[[Path], object]] = {
    "python": lambda path: path.write_text("x" * 9999),
    "numpy": lambda path: np.save(path, np.ones(9999)),
    "parquet": lambda path: pq.write_table(pa.table({"x": np.random.default_rng(0).random(9999)}), path),
    "safetensors": lambda path: save_file(WEIGHTS, path),
    "torch": lambda path: torch.save(WEIGHTS, path),
    "transformers": lambda path: tiny.model(vocab_size=50).save_pretrained(path),
    "tokenizers": lambda path: handmade.tokenizer("ours").save_pretrained(path),
}
ALLOCATORS: dict[str, Callable[[], object]] = {
    "numpy": lambda: np.empty(1 << 55),
    "arrow": lambda: pa.allocate_buffer(1 << 60),
    "torch": lambda: torch.empty(1 << 55),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_no_bug(name: str, tmp_path: Path) -> None:
    with small_files(3000), pytest.raises(Exception) as caught:  # noqa: PT011, B017
        WRITERS[name](tmp_path / "x.npy")
    code, line = classify(caught.value)
    assert code == 3 and line.startswith("disk full") and line.endswith("run the same command again"), line


@pytest.mark.parametrize("name", ["torch", "tokenizers"])
def test_no_space_left_is_no_bug(name: str) -> None:
    save = {
        "torch": lambda: torch.save(WEIGHTS, "/dev/full"),
        "tokenizers": lambda: handmade.tokenizer("ours").backend_tokenizer.save("/dev/full"),
    }[name]
    with pytest.raises(Exception) as caught:  # noqa: PT011, B017
        save()
    assert classify(caught.value)[0] == 3


@pytest.mark.parametrize("name", ALLOCATORS)
def test_no_memory_is_no_bug(name: str) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        ALLOCATORS[name]()
    code, line = classify(caught.value)
    assert code == 3 and line.startswith("out of memory"), line


def test_other_errors_keep_their_codes() -> None:
    assert classify(RuntimeError("shapes (2, 3) and (4, 5)"))[0] == 1
    assert classify(ValueError("a memory of things past"))[0] == 1


@pytest.mark.parametrize("limit", [100, 3_000, 40_000])
def test_a_stage_names_the_place_and_goes_on_when_there_is_room(limit: int, chain, tmp_path: Path) -> None:
    place = tmp_path / "vocab"
    stage = ["preprocess.expand_vocab", "--model", chain.model.with_name("base"), "--sids", chain.sids]
    with small_files(limit), pytest.raises(EnvironmentFault, match=f"disk full while writing {place}"):
        handmade.call(*stage, "--output_dir", place)
    assert not (place / "manifest.json").exists()
    handmade.call(*stage, "--output_dir", place)
    assert (place / "model.safetensors").read_bytes() == (chain.model / "model.safetensors").read_bytes()
    assert not [p.name for p in place.rglob(".*")]


def test_a_trainer_without_room_for_its_checkpoint_names_the_place(chain, tmp_path: Path) -> None:
    steps = {"max_steps": 2, "eval_steps": 1, "per_device_train_batch_size": 4}
    flags = [part for key, value in steps.items() for part in (f"--trainer.{key}", value)]
    command = ["train.sft", *chain.flags(), *flags, "--valid_rows", 4, "--output_dir", tmp_path / "run"]
    with (
        small_files(60_000),
        pytest.raises(EnvironmentFault, match=f"disk full while writing {tmp_path}/run"),
    ):
        handmade.call(*command)
    handmade.call(*command)
    assert (tmp_path / "run/final/COMPLETE.json").exists()
