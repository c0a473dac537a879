"""Time tokens of the compact generator: which vectors are learned, and the search over examples with times."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs.program import InputError
from data.predictions import read_predictions
from data.rows import read_rows
from infer.models import contract
from infer.models.recency import with_ages
from tests.handmade import call, refuse
from tests.store import ITEMS
from tests.test_train_compact import trained


def test_time_tokens_are_learned_and_decoded(chain, tmp_path):
    """Users with times buy an item a day (gap level 2), the others' times are unknown (0); both vectors are learned, no other."""
    model, examples = tmp_path / "run/baselines/timed", tmp_path / "examples"
    first = trained(
        chain, tmp_path / "first", "--model.gaps", 4, "--loop.epochs", 1, "--loop.learning_rate", 1e-9
    )
    weights = trained(chain, model, "--model.gaps", 4, "--loop.weight_decay", 0)
    moved_G = (weights["gap_GD"] - first["gap_GD"]).abs().amax(1) > 1e-6
    assert moved_G.tolist() == [True, False, True, False, False]
    call(
        "preprocess.build_examples", "--data", chain.data, "--sids", chain.sids, "--output_dir", examples,
        "--tasks", "[history_to_sid]", "--ages", "true",
    )  # fmt: skip
    row = pq.read_table(examples / "test.parquet").to_pylist()[0]
    user = row["user_id"]
    assert row["ages"] == [
        float(len(row["history"]) - 1 - at) if user % 2 else None for at in range(len(row["history"]))
    ]
    recommend = (
        "infer.recommend",
        "--model",
        model,
        "--sids",
        chain.sids,
        "--split",
        "test",
        "--decode.score_space",
        "trie",
    )
    answers = tmp_path / "run/eval/timed.test"
    assert "--ages true" in refuse(*recommend, "--examples", chain.examples, "--output_dir", answers)
    call(*recommend, "--examples", examples, "--output_dir", answers, "--decode.beams", ITEMS)
    read, _ = read_predictions(answers)
    rows, scorer = read_rows(chain.data, "test", num_items=ITEMS), contract.load(model)
    with pytest.raises(InputError, match="rows with ages"):
        scorer.score(rows)
    score_RN = scorer.score(with_ages(rows, chain.data, num_items=ITEMS))
    place_R = np.searchsorted(read.example_ids_R, rows.example_ids_R)
    for mine, theirs in enumerate(place_R.tolist()):
        listed = read.items_M[read.offsets[theirs] : read.offsets[theirs + 1]]
        assert np.allclose(np.sort(score_RN[mine])[::-1], score_RN[mine, listed], atol=1e-4)
