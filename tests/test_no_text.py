"""A data set whose items have no text: what needs text says so in one line, what does not works."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.program import ROOT
from data import artifacts
from tests import handmade, store

NEED_TEXT = {
    "rq.embed_items": ["--config", ROOT / "configs/toy/embed.yaml"],
    "train.train_sequential": ["--config", ROOT / "configs/minionerec/sequential_text.yaml"],
    "train.train_compact": ["--text.kernel", "true"],
    "infer.run_baselines": ["--models", "[itemknn_text]", "--splits", "[valid]"],
    "preprocess.generate_tids": ["--config", ROOT / "configs/toy/tids.yaml"],
}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bare")
    data = store.write_store(root / "data")
    items = pq.read_table(data / "items.parquet")
    for name in ("title", "description", "brand"):
        items = items.set_column(
            items.column_names.index(name), name, artifacts.text_array([""] * len(items))
        )
    empty = pa.array([[]] * len(items), artifacts.TEXT_LIST)
    items = items.set_column(items.column_names.index("categories"), "categories", empty)
    pq.write_table(items, data / "items.parquet")
    return handmade.resign(data)


@pytest.mark.parametrize("module", NEED_TEXT)
def test_what_needs_text_says_so(module: str, bare: Path, tmp_path: Path) -> None:
    place = (
        ["--output_root", tmp_path / "out/eval"]
        if module == "infer.run_baselines"
        else ["--output_dir", tmp_path / "out"]
    )
    if module == "train.train_compact":
        sids = handmade.write_sids(tmp_path / "sids", data=bare, codes=codes(), sizes=(8, 8))
        place += ["--sids", sids]
    told = handmade.refuse(module, "--data", bare, *place, *NEED_TEXT[module])
    assert "no item has text" in told and " -> " in told


def codes():
    import numpy as np

    return np.stack(np.unravel_index(np.arange(store.ITEMS), (8, 8)), axis=1).astype(np.int32)


def test_tasks_about_titles_have_no_rows_and_are_refused(bare: Path, tmp_path: Path) -> None:
    sids = handmade.write_sids(tmp_path / "sids", data=bare, codes=codes(), sizes=(8, 8))
    flags = ["--data", bare, "--sids", sids, "--output_dir", tmp_path / "examples"]
    assert "title" in handmade.refuse(
        "preprocess.build_examples", *flags, "--tasks", "[history_to_sid, title_to_sid]"
    )
    handmade.succeed("preprocess.build_examples", *flags, "--tasks", "[history_to_sid]")
