"""Data sets whose items have no text, or texts without a term that TF-IDF counts: what needs text says so in one line, the rest works."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.program import ROOT
from data import artifacts
from data.artifacts import read_items
from data.rows import read_rows
from data.store.output import read_manifest
from infer.models import contract
from infer.models.recency import with_ages
from infer.models.sequential.options import TextOptions
from infer.models.sequential.text import similar_items
from rq.vectors.embeddings import Tfidf, item_texts, read_embeddings, tfidf_svd, zero_rows
from rq.vectors.extend import read_fitted
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
    return titled(data, [""] * store.ITEMS)


def titled(data: Path, titles: list[str]) -> Path:
    """`data` with these titles and no other text."""
    items, nothing = pq.read_table(data / "items.parquet"), [""] * len(titles)
    columns = {name: artifacts.text_array(nothing) for name in ("description", "brand")}
    columns |= {
        "title": artifacts.text_array(titles),
        "categories": pa.array([[]] * len(titles), artifacts.TEXT_LIST),
    }
    for name, column in columns.items():
        items = items.set_column(items.column_names.index(name), name, column)
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
    return np.stack(np.unravel_index(np.arange(store.ITEMS), (8, 8)), axis=1).astype(np.int32)


def test_tasks_about_titles_have_no_rows_and_are_refused(bare: Path, tmp_path: Path) -> None:
    sids = handmade.write_sids(tmp_path / "sids", data=bare, codes=codes(), sizes=(8, 8))
    flags = ["--data", bare, "--sids", sids, "--output_dir", tmp_path / "examples"]
    assert "title" in handmade.refuse(
        "preprocess.build_examples", *flags, "--tasks", "[history_to_sid, title_to_sid]"
    )
    handmade.succeed("preprocess.build_examples", *flags, "--tasks", "[history_to_sid]")


TABLES = {
    "unique words": [f"word{item}" for item in range(200)],
    "one title": ["Same title"] * 8,
    "five products": ["Red pen", "Blue pen", "Garden hose", "Long hose", "Lamp"],
    "kinds and sizes": [f"Thing kind {1 + item // 10} size {item % 10}" for item in range(20)],
    "few titled": [f"word{item}" if item < 15 else "" for item in range(40)],
}


@pytest.fixture(scope="module", params=TABLES)
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary table whose titles have no term that is in two items and in at most 30 % of them."""
    titles, rng = TABLES[request.param], np.random.default_rng(0)
    walks = [rng.integers(0, len(titles), 6).tolist() for _ in range(30)]
    data = store.write_store(tmp_path_factory.mktemp("table") / "data", walks, len(titles))
    return titled(data, titles)


def test_texts_without_terms_leave_the_other_vectors(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "both"
    done = handmade.run(
        "rq.embed_items",
        "--data",
        table,
        "--output_dir",
        out,
        "--config",
        ROOT / "configs/minionerec/embed.yaml",
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert "no term occurs" in line and "the part tfidf_svd is zero" in line
    x_ND = read_embeddings(out)
    assert x_ND.shape == (len(read_items(table)), 192) and not x_ND[:, :128].any() and x_ND[:, 128:].any()
    again = tmp_path / "again"
    handmade.succeed("rq.embed_items", "--data", table, "--output_dir", again, "--like", out)
    assert np.array_equal(read_embeddings(again), x_ND)
    assert not read_fitted(out).spaces[0].vectors(["something new"]).any()
    alone = "rq.embed_items", "--data", table, "--output_dir", tmp_path / "alone"
    assert "lower --tfidf.min_df" in handmade.refuse(*alone)


def test_texts_without_terms_are_trained_without(table: Path, tmp_path: Path) -> None:
    """The plan says `with texts` from the titles alone: mixture, sequential text model and text kernel take it with zero texts."""
    size = len(read_items(table))
    handmade.succeed(
        "infer.run_baselines",
        "--data",
        table,
        "--output_root",
        tmp_path / "eval",
        "--models",
        "[mixture]",
        "--splits",
        "[valid]",
    )
    assert not any(
        "text" in name for name in read_manifest(tmp_path / "baselines/mixture")["facts"]["weights"]
    )
    short = ["--loop.epochs", 1, "--loop.device", "cpu"]
    handmade.succeed(
        "train.train_sequential", "--config", ROOT / "configs/minionerec/sequential_text.yaml", "--data", table,
        "--output_dir", tmp_path / "text", *short, "--scorer.hidden", 16,
    )  # fmt: skip
    codes_NL = np.stack(np.unravel_index(np.arange(size), (16, 16)), axis=1).astype(np.int32)
    sids = handmade.write_sids(tmp_path / "sids", data=table, codes=codes_NL, sizes=(16, 16))
    handmade.succeed(
        "train.train_compact", "--config", ROOT / "configs/minionerec/compact.yaml", "--data", table, "--sids", sids,
        "--output_dir", tmp_path / "compact", *short, "--model.hidden", 16, "--text.kernel", "true",
    )  # fmt: skip
    rows = with_ages(read_rows(table, "test", num_items=size), table, num_items=size)
    for name in ("baselines/mixture", "text", "compact"):
        score_RN = contract.load(tmp_path / name).score(rows)
        assert np.isfinite(score_RN).all() and np.allclose(
            np.exp(score_RN.astype(float)).sum(1), 1, atol=1e-4
        )
    done = handmade.run(
        "infer.run_baselines", "--data", table, "--output_root", tmp_path / "x", "--models", "[itemknn_text]"
    )
    assert done.returncode == 2 and "no item has text with a term of others" in done.stderr.splitlines()[-1]


def test_items_without_text_are_not_alike(tmp_path: Path) -> None:
    """A fifth of the items has none: their placeholder is no text that they share, and outputs tell which way they were made."""
    titles = ["" if item % 5 == 0 else f"steel bolt kind{item % 7}" for item in range(store.ITEMS)]
    data, bare = titled(store.write_store(tmp_path / "data"), titles), np.arange(0, store.ITEMS, 5)
    x_ND, space = tfidf_svd(texts := item_texts(read_items(data)), dim=8, tfidf=Tfidf(max_df=0.9), seed=0)
    assert zero_rows(x_ND).nonzero()[0].tolist() == bare.tolist() and not space.vectors([texts[0]]).any()
    items_NK, cosine_NK = similar_items(texts, TextOptions(tfidf=Tfidf(max_df=0.9)), most=10)
    assert not cosine_NK[bare].any() and not np.isin(items_NK[cosine_NK > 0], bare).any()
    handmade.succeed("rq.embed_items", "--data", data, "--output_dir", tmp_path / "x", "--tfidf.max_df", 0.9)
    assert read_manifest(tmp_path / "x")["config"]["without_text"] == "zero rows"
    whole = titled(
        store.write_store(tmp_path / "whole"), [f"steel bolt kind{item % 7}" for item in range(store.ITEMS)]
    )
    handmade.succeed("rq.embed_items", "--data", whole, "--output_dir", tmp_path / "y", "--tfidf.max_df", 0.9)
    assert "without_text" not in read_manifest(tmp_path / "y")["config"], (
        "an earlier output is this one's too"
    )
