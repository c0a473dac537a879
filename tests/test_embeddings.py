"""rq/vectors/embeddings.py and rq/vectors/cooccurrence.py: text, sparse matrices and their reductions against plain references."""

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import InputError
from data.artifacts import INT_LIST, TEXT_LIST
from rq.vectors import cooccurrence, embeddings
from rq.vectors.cooccurrence import Cooccurrence
from rq.vectors.embeddings import Tfidf
from rq.vectors.external import external_vectors

EMPTY = embeddings.EMPTY_TEXT


def items_table(rows):
    """rows of (title, brand, categories, description)."""
    titles, brands, categories, descriptions = zip(*rows, strict=True)
    return pa.table(
        {
            "title": list(titles),
            "brand": list(brands),
            "categories": pa.array(list(categories), TEXT_LIST),
            "description": list(descriptions),
        }
    )


def windows(chains, max_history):
    """sequences.parquet rows of chains {user: items}: a target per position >= 1, users interleaved in time."""
    rows = []
    for position in range(1, max(map(len, chains.values()), default=0)):
        for user, items in chains.items():
            if position < len(items):
                rows.append(
                    (user, items[max(0, position - max_history) : position], items[position], "train")
                )
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
    return pa.table(
        {
            "user_id": pa.array(columns[0], pa.int32()),
            "history": pa.array(columns[1], INT_LIST),
            "target": pa.array(columns[2], pa.int32()),
            "split": pa.array(columns[3], pa.string()),
        }
    )


def test_item_text_has_every_field_no_brackets_and_no_cut():
    long = "word " * 5000 + "end"
    table = items_table(
        [("Red pen", "Acme", ["Office", "Pens"], long), ("", " ", [], ""), ("", "", [""], "x")]
    )
    first, empty, description_only = embeddings.item_texts(table)
    assert first == f"Red pen\nAcme\nOffice Pens\n{long}"
    assert empty == embeddings.EMPTY_TEXT
    assert description_only == "x"
    assert embeddings.item_texts(table, ["description", "title"])[1:] == [EMPTY, "x"]
    with pytest.raises(InputError, match="no column `colour`"):
        embeddings.item_texts(table, ["colour"])


def test_texts_about_the_same_thing_are_near():
    texts = ["blue ink pen", "black ink pen", "garden hose red", "long garden hose", embeddings.EMPTY_TEXT]
    x, space = embeddings.tfidf_svd(texts, dim=4, tfidf=Tfidf(min_df=1, max_df=1.0), seed=0)
    np.testing.assert_allclose(space.vectors(texts), x, atol=1e-5)
    assert not space.vectors(["nothing known"]).any()
    assert x.shape == (5, 4) and x.dtype == np.float32
    near = (x @ x.T - 2 * np.eye(5)).argmax(1)
    assert near[:4].tolist() == [1, 0, 3, 2]
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), [1, 1, 1, 1, 0], atol=1e-5)


def test_too_few_texts_for_the_term_limits_is_an_input_error():
    with pytest.raises(InputError, match="--tfidf.min_df"):
        embeddings.tfidf_svd(["one item"], dim=4, tfidf=Tfidf(), seed=0)
    alone, _ = embeddings.tfidf_svd(["one item"], dim=4, tfidf=Tfidf(min_df=1, max_df=1.0), seed=0)
    assert np.abs(alone[0]).tolist() == pytest.approx([1, 0, 0, 0])


def test_unit_rows_keeps_zeros_and_does_not_blow_up_noise():
    x = np.array([[3, 4], [0, 0], [1e-8, 0], [0, 0.5]])
    np.testing.assert_allclose(embeddings.unit_rows(x), [[0.6, 0.8], [0, 0], [0, 0], [0, 1]], rtol=1e-6)


chains_of_users = st.dictionaries(
    st.integers(0, 5), st.lists(st.integers(0, 6), min_size=2, max_size=9), max_size=5
)


@settings(max_examples=150)
@given(chains=chains_of_users, max_history=st.integers(1, 6))
def test_sliding_windows_become_the_chains_they_were_cut_from(chains, max_history):
    offsets, items = cooccurrence.train_chains(windows(chains, max_history))
    found = Counter(tuple(items[a:b].tolist()) for a, b in zip(offsets[:-1], offsets[1:], strict=True))
    assert found == Counter(tuple(chain) for chain in chains.values())


def test_rows_that_do_not_continue_start_their_own_chain_and_other_splits_are_left_out():
    rows = [
        (1, [4, 5], 6, "train"),
        (1, [4, 6], 7, "train"),
        (2, [6], 7, "train"),
        (1, [6, 7], 8, "train"),
        (1, [7, 8], 9, "valid"),
    ]
    users, histories, targets, splits = zip(*rows, strict=True)
    table = pa.table(
        {"user_id": users, "history": pa.array(histories, INT_LIST), "target": targets, "split": splits}
    )
    offsets, items = cooccurrence.train_chains(table)
    assert items.tolist() == [4, 5, 6, 4, 6, 7, 8, 6, 7] and offsets.tolist() == [0, 3, 7, 9]


@settings(max_examples=60)
@given(chains=chains_of_users, window=st.integers(1, 4))
def test_pair_weights_equal_a_double_loop(chains, window):
    offsets = np.cumsum([0, *map(len, chains.values())])
    items = np.array([item for chain in chains.values() for item in chain], np.int32)
    expected = np.zeros((7, 7))
    for chain in chains.values():
        for i, first in enumerate(chain):
            expected[first, first] += 1
            for j in range(i + 1, min(i + window + 1, len(chain))):
                expected[first, chain[j]] += 1 / (j - i)
                expected[chain[j], first] += 1 / (j - i)
    found = cooccurrence.pair_weights(offsets, items, num_items=7, window=window)
    np.testing.assert_allclose(found.toarray(), expected)


def test_positive_pmi_by_hand():
    from scipy.sparse import csr_matrix

    # Row sums 4 and 2, total 6: PMI(0,0) = log(3*6/16) > 0, PMI(0,1) = log(1*6/8) < 0 -> 0, PMI(1,1) = log(1*6/4) > 0.
    found = cooccurrence.positive_pmi(csr_matrix([[3.0, 1.0], [1.0, 1.0]]), context_power=1.0).toarray()
    np.testing.assert_allclose(found, [[math.log(18 / 16), 0], [0, math.log(6 / 4)]])


def test_items_bought_together_are_near_and_items_without_train_rows_are_zero():
    chains = {0: [0, 1, 0, 1], 1: [1, 0], 2: [2, 3, 2], 3: [3, 2], 4: [5, 5]}
    x = cooccurrence.cooccurrence_svd(
        cooccurrence.train_chains(windows(chains, 10)),
        num_items=7,
        dim=3,
        config=Cooccurrence(window=1),
        seed=0,
    )
    assert np.isfinite(x).all()
    assert embeddings.zero_rows(x).tolist() == [False, False, False, False, True, False, True]
    assert x[0] @ x[1] > 0.9 and x[2] @ x[3] > 0.9 and abs(x[0] @ x[2]) < 0.1


def test_cooccurrence_without_train_rows_is_an_input_error():
    with pytest.raises(InputError, match="no train rows"):
        cooccurrence.cooccurrence_svd(
            cooccurrence.train_chains(windows({}, 3)), num_items=3, dim=2, config=Cooccurrence(), seed=0
        )


def test_zero_rows_are_filled_from_the_nearest_known_items():
    behaviour = np.array([[1, 0], [0, 1], [0, 0], [0, 0]], np.float32)
    text = embeddings.unit_rows(np.array([[1, 0], [0, 1], [0.9, 0.1], [0, 0]]))
    filled = embeddings.fill_zero_rows(behaviour, text, neighbours=1)
    np.testing.assert_allclose(filled, [[1, 0], [0, 1], [1, 0], [0, 0]])
    two = embeddings.fill_zero_rows(behaviour, text, neighbours=5)[2]
    np.testing.assert_allclose(two, np.array([0.9, 0.1]) / math.hypot(0.9, 0.1), rtol=1e-5)


def test_weights_are_the_lengths_of_the_parts():
    x = embeddings.side_by_side([np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)], [1.0, 0.5])
    assert x.tolist() == [[1, 0, 0.5, 0], [0, 1, 0, 0.5]] and x.dtype == np.float32


def test_principal_directions_keep_distances_and_zero_rows():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal((50, 6)) * [9, 5, 1, 0.5, 0.2, 0.1], np.zeros((2, 6))]).astype(
        np.float32
    )
    full = embeddings.principal_directions(x, dim=6, whiten=False).apply(x)
    np.testing.assert_allclose(
        np.linalg.norm(full[:50, None] - full[None, :50], axis=2),
        np.linalg.norm(x[:50, None] - x[None, :50], axis=2),
        atol=1e-3,
    )
    assert not full[50:].any()
    variance = full[:50].var(0)
    assert (np.diff(variance) <= 1e-5).all() and variance[0] > 50
    white = embeddings.principal_directions(x, dim=4, whiten=True).apply(x)
    np.testing.assert_allclose(np.cov(white[:50].T, bias=True), np.eye(4), atol=1e-3)
    with pytest.raises(InputError, match=r"reduce.dim 7"):
        embeddings.principal_directions(x, dim=7, whiten=False)


def test_whitening_a_direction_without_variance_gives_zeros_and_not_nan():
    x = np.array([[1, 1, 0], [2, 2, 0], [3, 3, 0]], np.float32)
    white = embeddings.principal_directions(x, dim=3, whiten=True).apply(x)
    assert np.isfinite(white).all() and not white[:, 1:].any() and white[:, 0].std() == pytest.approx(1)


def test_a_column_of_numbers_is_a_part():
    import pyarrow as pa

    from rq.vectors.parts import Part, column_vectors

    table = pa.table({"flags": [[0, 1], [1, 1]], "year": [1995, 2001], "title": ["a", "b"], "gap": [1, None], "uneven": [[1], [1, 2]]})  # fmt: skip
    assert column_vectors(table, "flags").tolist() == [[0, 1], [1, 1]]
    assert column_vectors(table, "year").tolist() == [[1995], [2001]]
    part = Part("column", column="flags", normalize=False)
    assert part.scaled(column_vectors(table, "flags")).tolist() == [[0, 1], [1, 1]]
    for name in ("title", "gap", "uneven", "none"):
        with pytest.raises(InputError, match="items.parquet"):
            column_vectors(table, name)
    for wrong in ({"method": "column"}, {"method": "tfidf_svd", "column": "x"}, {"method": "column", "column": "x", "dim": 3}):  # fmt: skip
        with pytest.raises(InputError, match="column|dim"):
            Part(**wrong)


RAW = ["B0", "B1", "B2"]


def test_external_vectors_come_into_the_order_of_the_items(tmp_path):
    import json

    import pyarrow.parquet as pq

    x = np.arange(8, dtype=np.float64).reshape(4, 2)
    np.save(tmp_path / "embeddings.npy", x)
    got, missing = external_vectors(str(tmp_path), ids=None, first_row=1, keyed_by="item_id", raw_ids=RAW)
    assert got.tolist() == x[1:].tolist() and got.dtype == np.float32 and missing == 0
    np.save(tmp_path / "two.npy", x[:2])
    (tmp_path / "ids.json").write_text(json.dumps(["B2", "B0"]))
    got, missing = external_vectors(
        str(tmp_path / "two.npy"), ids=str(tmp_path / "ids.json"), first_row=0, keyed_by="auto", raw_ids=RAW
    )
    assert got.tolist() == [[2, 3], [0, 0], [0, 1]] and missing == 1
    np.save(tmp_path / "ids.npy", np.array([1, 2]))
    got, _ = external_vectors(
        str(tmp_path / "two.npy"), ids=str(tmp_path / "ids.npy"), first_row=0, keyed_by="auto", raw_ids=RAW
    )
    assert got.tolist() == [[0, 0], [0, 1], [2, 3]]
    table = pa.table({"raw_id": ["B1", "B0", "B2"], "embedding": [[1.0, 2], [3.0, 4], [5.0, 6]]})
    pq.write_table(table, tmp_path / "v.parquet")
    got, _ = external_vectors(
        str(tmp_path / "v.parquet"), ids=None, first_row=0, keyed_by="auto", raw_ids=RAW
    )
    assert got.tolist() == [[3, 4], [1, 2], [5, 6]]


@pytest.mark.parametrize(
    ("array", "ids", "message"),
    [
        (np.zeros((2, 2)), None, "has 2 rows, the data 3 items"),
        (np.zeros((2, 2)), ["B0", "B9"], "1 of 2 ids are no item .first: `id` 'B9'"),
        (np.zeros((2, 2)), ["B0", "B0"], "item 0 stands there twice"),
        (np.zeros((2, 2)), ["B0"], "2 rows for 1 ids"),
        (np.array([[0, 1], [np.nan, 0]]), ["B0", "B1"], "1 rows are not finite"),
        (np.zeros((2, 2), int), ["B0", "B1"], "not a float matrix"),
        (np.zeros(3), None, "not a float matrix"),
    ],
)
def test_external_vectors_that_do_not_fit_are_refused(tmp_path, array, ids, message):
    np.save(tmp_path / "x.npy", array)
    path = None
    if ids is not None:
        path = tmp_path / "ids.txt"
        path.write_text("\n".join(ids))
    with pytest.raises(InputError, match=message):
        external_vectors(
            str(tmp_path / "x.npy"),
            ids=None if path is None else str(path),
            first_row=0,
            keyed_by="auto",
            raw_ids=RAW,
        )


def test_a_missing_or_damaged_external_file_is_named(tmp_path):
    (tmp_path / "bad.npy").write_bytes(b"not numpy")
    for name, message in (("nowhere.npy", "missing file"), ("bad.npy", "not a readable .npy")):
        with pytest.raises(InputError, match=message):
            external_vectors(str(tmp_path / name), ids=None, first_row=0, keyed_by="auto", raw_ids=RAW)
