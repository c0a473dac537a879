"""Windows that begin at every few rows only: what stands near what is counted once for every pair of interactions all the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data.artifacts import read_items, read_sequences
from data.rows import has_stride, read_train_log
from rq.constructors.rqvae import train_pairs
from rq.stack.options import Source
from rq.vectors.cooccurrence import pair_weights, read_chains, steps_apart, train_chains
from rq.vectors.embeddings import read_embeddings
from tests.handmade import call
from tests.test_prepare import config, dump

STRIDES = (0, 3)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[int, Path]:
    """The same interactions in windows of at most 5 rows: one for every row, and one from every third row on."""
    root = tmp_path_factory.mktemp("strides")
    raw, found = dump(root / "raw"), {}
    for stride in STRIDES:
        split = {"kind": "leave_one_out", "max_history": 4, "stride": stride}
        settings = config(root / f"{stride}.json", filters={"user_k": 5, "item_k": 0}, split=split)
        found[stride] = root / f"stride{stride}"
        call("data.prepare", "--config", settings, "--raw", raw, "--output_dir", found[stride])
    return found


def chains(data: Path) -> tuple[list[tuple[int, ...]], tuple[np.ndarray, np.ndarray], int]:
    num_items = len(read_items(data))
    offsets, items = read_chains(data, num_items=num_items)
    return [tuple(part.tolist()) for part in np.split(items, offsets[1:-1])], (offsets, items), num_items


def test_every_pair_of_interactions_counts_once_whatever_the_stride(made):
    (plain, plain_chains, num_items), (strided, strided_chains, _) = (
        chains(made[stride]) for stride in STRIDES
    )
    assert [has_stride(made[stride]) for stride in STRIDES] == [False, True]
    assert strided == plain and max(map(len, plain)) > 5
    log = read_train_log(made[3], num_items=num_items)
    assert strided_chains[1].tolist() == log.items_T.tolist()
    weights = [pair_weights(*each, num_items=num_items, window=3) for each in (plain_chains, strided_chains)]
    assert (weights[0] != weights[1]).nnz == 0


def test_without_a_stride_the_rows_say_it(made, monkeypatch):
    monkeypatch.setattr("rq.vectors.cooccurrence.read_train_log", None)
    _, found, num_items = chains(made[0])
    expected = train_chains(read_sequences(made[0], num_items=num_items))
    assert all(map(np.array_equal, found, expected))


def test_plum_learns_every_step(made):
    pairs = []
    for stride in STRIDES:
        _, each, num_items = chains(made[stride])
        found = train_pairs(
            Source(np.zeros((num_items, 2), np.float32), data=str(made[stride])), needed_by="plum"
        )
        pairs.append(sorted(map(tuple, found.tolist())))
        assert pairs[-1] == sorted(zip(*(side.tolist() for side in steps_apart(*each, steps=1)), strict=True))
    assert pairs[0] == pairs[1]


def test_the_programs_count_once_and_say_where(made, tmp_path):
    parts = ["--parts", "[{method: cooccurrence, dim: 6}]"]
    vectors = []
    for stride in STRIDES:
        data, out = made[stride], tmp_path / f"e{stride}"
        call("rq.embed_items", "--data", data, "--output_dir", out, *parts)
        call("rq.train_quantizer", "--embeddings", out, "--output_dir", tmp_path / f"q{stride}", "--data", data,
             "--constructor", "plum", "--plum.sizes", "[6,4]", "--plum.loop.epochs", "10")  # fmt: skip
        vectors.append(read_embeddings(out))
        configs = [
            json.loads((tmp_path / f"{kind}{stride}/manifest.json").read_text())["config"] for kind in "eq"
        ]
        said = [configs[0].get("chains"), configs[1].get("pairs")]
        assert said == (["interactions"] * 2 if stride else [None, None])
    assert np.array_equal(*vectors)
