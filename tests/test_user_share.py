"""A share of the train users: a point of a scaling curve."""

from __future__ import annotations

import numpy as np

from data.rows import read_rows
from data.store.output import read_manifest
from tests.handmade import call, refuse
from tests.store import ITEMS
from train.scratch.reading import kept_users

SMALL = [
    "--model.hidden", 8, "--model.heads", 2, "--model.layers", 1, "--model.feedforward", 2, "--loop.epochs", 1, "--loop.rows", 64,
]  # fmt: skip


def test_a_share_of_the_users_is_all_that_is_learned_of(chain, tmp_path):
    flags = ("train.train_compact", "--data", chain.data, "--sids", chain.sids, *SMALL)
    call(*flags, "--user_share", 0.25, "--output_dir", tmp_path / "few")
    counts = read_manifest(tmp_path / "few")["counts"]
    rows = read_rows(chain.data, "train", num_items=ITEMS)
    kept = kept_users(rows.users_R, 0.25, seed=0)
    assert counts["train rows"] == np.isin(rows.users_R, kept).sum() < len(rows)
    assert set(kept) < set(kept_users(rows.users_R, 0.5, seed=0)), "a smaller share is part of a larger one"
    error = refuse(*flags, "--user_share", 0, "--output_dir", tmp_path / "none")
    assert "user_share 0.0" in error and not (tmp_path / "none").exists()
