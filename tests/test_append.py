"""rq/ids/append.py, rq/vectors/extend.py and `rq.assign_sids --append`: new items get free IDs, nothing else ever changes."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from math import prod
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import InputError
from data.artifacts import INT_LIST, TEXT_LIST
from data.sid import FORMATS, SidTable, SidVocab, read_sids
from data.store.output import open_output
from rq.ids import append, collisions
from rq.stack.residual import ResidualQuantizer
from rq.vectors.embeddings import read_embeddings
from tests import store as shop
from tests import tiny
from tests.handmade import Made, call, refuse, resign, succeed

TOPICS = ("pen ink paper", "hose garden soil", "drill wood screw", "lamp light bulb")


def quantizer_of(rng: np.random.Generator, sizes: tuple[int, ...], dim: int = 3) -> ResidualQuantizer:
    return ResidualQuantizer(
        tuple((rng.standard_normal((k, dim)) / 2**i).astype(np.float32) for i, k in enumerate(sizes))
    )


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    old_share=st.floats(0, 1),
    new_share=st.floats(0, 1),
    distinct=st.integers(1, 8),
)
def test_new_codes_never_meet_an_existing_or_another_new_one(seed, sizes, old_share, new_share, distinct):
    rng = np.random.default_rng(seed)
    capacity = prod(sizes)
    old = int(old_share * capacity)
    new = int(new_share * (capacity - old))
    quantizer = quantizer_of(rng, tuple(sizes))
    taken = np.stack(np.unravel_index(rng.permutation(capacity)[:old], sizes), axis=1).astype(np.int32)
    x = rng.standard_normal((distinct, 3)).astype(np.float32)[rng.integers(0, distinct, new)]
    codes = append.append_codes(x, taken.reshape(old, len(sizes)), quantizer)
    assert codes.shape == (new, len(sizes)) and (codes >= 0).all() and (codes < np.array(sizes)).all()
    both = np.concatenate([taken.reshape(old, len(sizes)), codes])
    assert len(np.unique(both, axis=0)) == old + new


def test_a_free_nearest_id_is_taken_and_a_full_prefix_falls_back_to_the_next_nearest():
    quantizer = ResidualQuantizer(
        (np.array([[0.0], [10.0], [30.0]], np.float32), np.array([[-1.0], [1.0]], np.float32))
    )
    x = np.array([[-0.9], [11.2]], np.float32)
    empty = np.empty((0, 2), np.int32)
    assert append.append_codes(x, empty, quantizer).tolist() == [[0, 0], [1, 1]]
    # The nearest last code is taken: the other one of the prefix. Both are taken: the prefix 10, which is nearer than 30.
    assert append.append_codes(x[:1], np.array([[0, 0]]), quantizer).tolist() == [[0, 1]]
    full = np.array([[0, 0], [0, 1]])
    assert append.append_codes(x[:1], full, quantizer).tolist() == [[1, 0]]
    fuller = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    assert append.append_codes(x[:1], fuller, quantizer)[0, 0] == 2
    with pytest.raises(InputError, match="2 new items, but 1 of 6 semantic IDs are free"):
        append.append_codes(x, np.concatenate([fuller, [[2, 0]]]), quantizer)


def test_other_codebooks_dimensions_and_levels_are_refused():
    rng = np.random.default_rng(0)
    quantizer = quantizer_of(rng, (8, 8, 8))
    x = rng.standard_normal((100, 3)).astype(np.float32)
    old = SidTable(collisions.reassign(x, quantizer.encode(x), quantizer), (8, 8, 8))
    rows = np.concatenate([np.arange(100), [-1]])
    assert append.require_same_space(np.concatenate([x, x[:1]]), old, rows, quantizer) == 1.0
    for other_x, other in ((x, quantizer_of(rng, (8, 8, 8))), (x[:, ::-1], quantizer)):
        with pytest.raises(InputError, match="of 100 known items get the first code again"):
            append.require_same_space(other_x, old, rows[:100], other)
    with pytest.raises(InputError, match="vectors have 2 dimensions, the quantizer 3"):
        append.append_codes(x[:, :2], old.codes_NL, quantizer)
    with pytest.raises(InputError, match="existing IDs have 4 levels"):
        append.append_codes(x, np.zeros((1, 4), np.int32), quantizer)
    with pytest.raises(InputError, match="has a raw_id twice"):
        append.matched_rows(["a", "a"], ["b"])


def test_ranks_go_on_behind_the_old_items_of_a_prefix():
    """Two prefixes of 4 ranks: new items come after the old ones, most train rows first; who finds none goes to the other prefix."""
    quantizer = ResidualQuantizer(
        (np.array([[0.0], [10.0]], np.float32), np.linspace(-1, 1, 4, dtype=np.float32)[:, None])
    )
    x = np.array([[-0.9], [10.9], [0.1], [0.9], [0.0]], np.float32)
    taken = np.array([[0, 0], [0, 1], [1, 0]], np.int32)
    popularity = np.array([2, 0, 5, 0, 3])
    codes = append.append_codes(x, taken, quantizer, popularity_W=popularity)
    # Of the four at 0 two find a rank: those with 5 and 3 rows. The others follow at 10, 2 rows before none, behind the one that is there.
    assert codes.tolist() == [[1, 2], [1, 1], [0, 2], [1, 3], [0, 3]]
    assert append.next_ranks(np.array([0, 7, 0, 2]), np.array([0, 1]), size=5).tolist() == [4, 2, -1, 3]


def test_appending_to_ids_by_popularity_keeps_ranks_ranks(tmp_path):
    """Twice in a row: the second time the set before it says by itself what its last codes are."""
    walks = shop.sequences(users=60)
    parts = ["--parts", PARTS, "--tfidf.max_df", "0.9"]
    sizes = (24, 32, shop.ITEMS)
    data = [shop.write_store(tmp_path / str(size), [[item for item in walk if item < size] for walk in walks], items=size)
            for size in sizes]  # fmt: skip
    call("rq.embed_items", "--data", data[0], "--output_dir", tmp_path / "e0", *parts)
    call(
        "rq.train_quantizer",
        "--embeddings",
        tmp_path / "e0",
        "--output_dir",
        tmp_path / "q",
        "--rqkmeans.sizes",
        "[3,32]",
    )
    call("rq.assign_sids", "--data", data[0], "--embeddings", tmp_path / "e0", "--quantizer", tmp_path / "q",
         "--repair", "popularity", "--map", "pca", "--output_dir", tmp_path / "s0")  # fmt: skip
    for step in (1, 2):
        call(
            "rq.embed_items",
            "--data",
            data[step],
            "--like",
            tmp_path / f"e{step - 1}",
            "--output_dir",
            tmp_path / f"e{step}",
        )
        call("rq.assign_sids", "--data", data[step], "--embeddings", tmp_path / f"e{step}", "--append", tmp_path / f"s{step - 1}",
             "--map", "pca", "--output_dir", tmp_path / f"s{step}")  # fmt: skip
        before, after = (read_sids(tmp_path / f"s{number}").codes_NL for number in (step - 1, step))
        assert np.array_equal(after[: sizes[step - 1]], before)
        for first in np.unique(after[:, 0]):
            ranks = after[after[:, 0] == first, 1]  # items in order: the old ones come first
            old = int((before[:, 0] == first).sum())
            assert sorted(ranks.tolist()) == list(range(len(ranks))) and (ranks[old:] >= old).all()


def test_ids_dealt_out_at_random_cannot_be_appended_to(grown, tmp_path):
    call("rq.assign_sids", "--data", grown / "old", "--embeddings", grown / "e", "--quantizer", grown / "q",
         "--repair", "shuffled", "--output_dir", tmp_path / "s")  # fmt: skip
    flags = [*append_flags(grown, "bad")[:4], "--append", tmp_path / "s", "--output_dir", tmp_path / "bad"]
    line = refuse("rq.assign_sids", *flags)
    assert "repaired by `shuffled`" in line and "`popularity` or `none` can be appended to" in line


def write_store(path: Path, items: list[int]) -> Path:
    """The given items of a store of four topics, in this order; users walk through item 0..39 of their topic."""
    words = [TOPICS[i % 4].split() for i in items]
    titles = [
        f"{w[i % 3]} {w[(i + 1) % 3]} model{i // 8} size{i % 5}" for i, w in zip(items, words, strict=True)
    ]
    place = {item: row for row, item in enumerate(items)}
    rng = np.random.default_rng(0)
    users, histories, targets, splits = [], [], [], []
    for user in range(40):
        there = [i for i in range(user % 4, 40, 4) if i in place]
        chain = [place[i] for i in rng.choice(there, 6).tolist()]
        for position in range(1, 6):
            users.append(user)
            histories.append(chain[:position])
            targets.append(chain[position])
            splits.append("valid" if position == 5 else "train")
    table = {
        "item_id": pa.array(range(len(items)), pa.int32()),
        "raw_id": [f"R{i}" for i in items],
        "title": titles,
        "description": [""] * len(items),
        "categories": pa.array([["shop", TOPICS[i % 4][:4]] for i in items], TEXT_LIST),
        "brand": [""] * len(items),
    }
    sequences = {
        "example_id": range(len(users)),
        "user_id": pa.array(users, pa.int32()),
        "history": pa.array(histories, INT_LIST),
        "target": pa.array(targets, pa.int32()),
        "split": splits,
    }
    with open_output(Made(str(items)), "by_hand", version=1, inputs={}, directory=path) as out:
        out.write_table("items.parquet", pa.table(table))
        out.write_table("sequences.parquet", pa.table(sequences))
    return path


PARTS = "[{method: tfidf_svd, dim: 16}, {method: cooccurrence, dim: 8, weight: 0.5}]"


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Path:
    """40 items with their IDs, and a later data set: 38 of these in another order and 8 new ones."""
    root = tmp_path_factory.mktemp("grown")
    old = write_store(root / "old", list(range(40)))
    write_store(root / "new", [43, *range(39, 1, -1), 0, 1, *range(44, 51)])
    call("rq.embed_items", "--data", old, "--output_dir", root / "e", "--parts", PARTS)
    call(
        "rq.train_quantizer",
        "--embeddings",
        root / "e",
        "--output_dir",
        root / "q",
        "--rqkmeans.sizes",
        "[4,4,8]",
    )
    call("rq.assign_sids", "--data", old, "--embeddings", root / "e", "--quantizer", root / "q",
         "--output_dir", root / "s")  # fmt: skip
    call("rq.embed_items", "--data", root / "new", "--like", root / "e", "--output_dir", root / "e2")
    return root


def codes_by_raw_id(data: Path, sids: Path) -> dict[str, tuple[int, ...]]:
    import pyarrow.parquet as pq

    raw = pq.read_table(data / "items.parquet")["raw_id"].to_pylist()
    return dict(zip(raw, map(tuple, read_sids(sids).codes_NL.tolist()), strict=True))


def append_flags(root: Path, out: str) -> list[object]:
    return [
        "--data",
        root / "new",
        "--embeddings",
        root / "e2",
        "--append",
        root / "s",
        "--output_dir",
        root / out,
    ]


def test_known_items_keep_vectors_and_new_ones_are_near_their_like(grown):
    old, new = read_embeddings(grown / "e"), read_embeddings(grown / "e2")
    assert new.shape == (48, 24)
    assert np.array_equal(new[1:39], old[39:1:-1]) and np.array_equal(new[39:41], old[:2])
    item_43 = new[0]
    assert np.linalg.norm(item_43[:16]) == pytest.approx(1, abs=1e-5), "text in the fitted space"
    assert np.linalg.norm(item_43[16:]) == pytest.approx(0.5, abs=1e-5), "behaviour filled from neighbours"
    nearest = int(((old - item_43) ** 2).sum(1).argmin())
    assert nearest % 4 == 43 % 4, "the same topic"
    counts = json.loads((grown / "e2" / "manifest.json").read_text())["counts"]
    assert counts == {"items": 48, "new_items": 8, "zero_rows": 0}


def test_appending_keeps_every_id_and_adds_distinct_ones(grown):
    said = succeed("rq.assign_sids", *append_flags(grown, "s2"))
    assert "collisions" in said
    before, after = codes_by_raw_id(grown / "old", grown / "s"), codes_by_raw_id(grown / "new", grown / "s2")
    assert {raw: after[raw] for raw in before} == before
    assert len(set(after.values())) == 48
    manifest = json.loads((grown / "s2" / "manifest.json").read_text())
    assert manifest["facts"]["extends"] == [read_sids(grown / "s").sha256]
    assert manifest["facts"]["sizes"] == [4, 4, 8] and manifest["facts"]["first_code_agreement"] >= 0.9
    assert manifest["counts"]["new_items"] == 8 and manifest["counts"]["retired_items"] == 0
    levels, old = tiny.vocabulary((4, 4, 8)).levels, read_sids(grown / "s").sha256
    for expanded_with, accepted in ((old, True), ("0" * 64, False)):
        vocab = SidVocab(FORMATS["letters"], levels, sids_sha256=expanded_with)
        with nullcontext() if accepted else pytest.raises(InputError, match="with other semantic IDs"):
            vocab.check(read_sids(grown / "s2"), model="m", sids=grown / "s2")
    again = grown / "s3"
    call("rq.assign_sids", *append_flags(grown, "s3")[:4], "--append", grown / "s2", "--output_dir", again)
    assert codes_by_raw_id(grown / "new", again) == after, "an appended set can be appended to"
    assert len(json.loads((again / "manifest.json").read_text())["facts"]["extends"]) == 2


def test_vectors_of_another_space_and_another_quantizer_are_refused(grown, tmp_path):
    shutil.copytree(grown / "e2", tmp_path / "e")
    np.save(tmp_path / "e" / "embeddings.npy", read_embeddings(grown / "e2")[:, ::-1])
    resign(tmp_path / "e")
    flags = append_flags(grown, "bad")
    line = refuse("rq.assign_sids", *flags, "--embeddings", tmp_path / "e")
    assert "embed the new items in the space of the existing IDs" in line and not (grown / "bad").exists()
    call("rq.train_quantizer", "--embeddings", grown / "e", "--output_dir", tmp_path / "q",
         "--rqkmeans.sizes", "[4,4,8]", "--seed", "5")  # fmt: skip
    with pytest.raises(InputError, match="is not the one of"):
        call("rq.assign_sids", *flags, "--quantizer", tmp_path / "q")
    call("rq.assign_sids", *flags, "--quantizer", grown / "q")
    own = flags[flags.index("--append") + 1]
    with pytest.raises(InputError, match="the very IDs that are appended to"):
        call("rq.assign_sids", *flags, "--output_dir", own, "--overwrite", "true")
    call("rq.assign_sids", *append_flags(grown, "four")[:4], "--quantizer", grown / "q",
         "--repair", "collision_level", "--output_dir", tmp_path / "four")  # fmt: skip
    with pytest.raises(InputError, match="existing IDs have 4 levels"):
        call("rq.assign_sids", *flags[:4], "--append", tmp_path / "four", "--data", grown / "new",
             "--output_dir", tmp_path / "x", "--embeddings", grown / "e2")  # fmt: skip
    with pytest.raises(InputError, match="quantizer is missing"):
        call("rq.assign_sids", *flags[:4], "--output_dir", tmp_path / "x")


def test_a_projection_is_reused_and_what_cannot_be_extended_says_so(grown, tmp_path):
    text = "[{method: tfidf_svd, dim: 16}]"
    call("rq.embed_items", "--data", grown / "old", "--output_dir", tmp_path / "pca", "--parts", text,
         "--reduce.dim", "6", "--reduce.whiten", "true")  # fmt: skip
    call(
        "rq.embed_items",
        "--data",
        grown / "new",
        "--like",
        tmp_path / "pca",
        "--output_dir",
        tmp_path / "more",
    )
    x = read_embeddings(tmp_path / "more")
    assert x.shape == (48, 6) and x[40:].any(axis=1).all()
    given = f"[{{method: given, path: {grown / 'e'}}}]"
    call("rq.embed_items", "--data", grown / "old", "--output_dir", tmp_path / "given", "--parts", given)
    call("rq.embed_items", "--data", grown / "old", "--output_dir", tmp_path / "both", "--parts", PARTS,
         "--reduce.dim", "4")  # fmt: skip
    for name, message in (("given", "has a part given"), ("both", "joins co-occurrence with reduce")):
        with pytest.raises(InputError, match=message):
            call(
                "rq.embed_items",
                "--data",
                grown / "new",
                "--like",
                tmp_path / name,
                "--output_dir",
                tmp_path / "y",
            )
    (tmp_path / "pca" / "fitted.json").unlink()
    resign(tmp_path / "pca")
    with pytest.raises(InputError, match="nothing readable about how it was fitted"):
        call(
            "rq.embed_items",
            "--data",
            grown / "new",
            "--like",
            tmp_path / "pca",
            "--output_dir",
            tmp_path / "z",
        )


def test_an_item_that_left_keeps_its_id_and_has_it_again(grown):
    """Item 5 leaves, a new item with item 5's own text arrives, then item 5 comes back."""
    without = [i for i in range(40) if i != 5]
    before = codes_by_raw_id(grown / "old", grown / "s")
    steps = [("gone", without), ("later", [*without, 45]), ("back", [*without, 45, 5])]
    sids = grown / "s"
    for name, items in steps:
        data = write_store(grown / f"data_{name}", items)
        call("rq.embed_items", "--data", data, "--like", grown / "e", "--output_dir", grown / f"e_{name}")
        call("rq.assign_sids", "--data", data, "--embeddings", grown / f"e_{name}", "--append", sids,
             "--output_dir", grown / f"s_{name}")  # fmt: skip
        sids = grown / f"s_{name}"
        found = codes_by_raw_id(data, sids)
        assert {raw: codes for raw, codes in found.items() if raw in before} == {
            raw: before[raw] for raw in found if raw in before
        }
        assert found.get("R45") != before["R5"] and len(set(found.values())) == len(items)
    assert found["R5"] == before["R5"] and not (sids / append.RETIRED).exists()
