"""Metrics against a loop over rows, hand arithmetic and trec_eval; refused predictions."""

from __future__ import annotations

import doctest
import math

import ir_measures
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, R, nDCG
from scipy.sparse import csr_matrix

from configs.program import InputError, NumericError
from data import artifacts
from data.predictions import Predictions, align, from_table, ranked_items_table
from data.rows import Rows
from data.sid import SidTable
from infer.metrics import groups, levels, measure, ranking, significance
from infer.metrics.placement import (
    find_targets,
    place_items,
    place_merged,
    place_prefixes,
    place_sids,
    place_unseen,
)
from infer.models import contract, counting
from infer.models.contract import ranked_lists
from infer.tables import markdown, results

KS = (1, 3, 5, 10)


@pytest.mark.parametrize(
    "module", [ranking, significance, groups, levels, contract, counting, markdown, results]
)
def test_worked_examples_of_the_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted >= 2 or module is not ranking
    assert result.attempted and not result.failed


def make_rows(histories: list[list[int]], targets: list[int], users: list[int] | None = None) -> Rows:
    offsets = np.concatenate([[0], np.cumsum([len(h) for h in histories])]).astype(np.int64)
    flat = np.array([item for h in histories for item in h], np.int32)
    return Rows(
        np.arange(len(targets)) * 7 + 3,
        np.array(users or range(len(targets))),
        offsets,
        flat,
        np.array(targets, np.int32),
    )


def sid_predictions(lists: list[list[int]], table: SidTable, ids: np.ndarray) -> Predictions:
    """Predictions of semantic IDs (rows of `table.sids_SL`), best first."""
    sids = [sid for row in lists for sid in row]
    counts = [len(row) for row in lists]
    return from_table(
        pa.table(
            {
                "example_id": np.repeat(ids, counts),
                "rank": pa.array([rank for row in lists for rank in range(1, len(row) + 1)], pa.float32()),
                "codes": pa.array([table.sids_SL[sid].tolist() for sid in sids], artifacts.INT_LIST),
                "item_ids": pa.array([table.items_of_sid(sid).tolist() for sid in sids], artifacts.INT_LIST),
                "score": pa.array([0.0] * len(sids), pa.float32()),
            }
        ),
        where="here",
    )


@st.composite
def cases(draw):
    """(sid table, ranked SIDs per row, rows): few items and codes, so that many collide."""
    num_items = draw(st.integers(2, 12))
    codes = draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=num_items, max_size=num_items)
    )
    table = SidTable(np.array(codes, np.int32), (3, 2))
    num_rows = draw(st.integers(1, 5))
    all_sids = list(range(len(table.sids_SL)))
    lists = [draw(st.permutations(all_sids))[: draw(st.integers(1, len(all_sids)))] for _ in range(num_rows)]
    item = st.integers(0, num_items - 1)
    histories = [draw(st.lists(item, max_size=6)) for _ in range(num_rows)]
    users = [draw(st.integers(0, 2)) for _ in range(num_rows)]
    return table, lists, make_rows(histories, [draw(item) for _ in range(num_rows)], users)


def places(groups_of_items: list[list[int]], target: int) -> list[int]:
    """The places (from 1) that the target can take when each group is in random order."""
    before = 0
    for members in groups_of_items:
        if target in members:
            return list(range(before + 1, before + len(members) + 1))
        before += len(members)
    return []


def loop_metrics(possible: list[int], k: int) -> tuple[float, float, float]:
    """HR, NDCG and reciprocal rank at k, averaged over equally likely places, as a loop."""
    if not possible:
        return 0.0, 0.0, 0.0
    inside = [place for place in possible if place <= k]
    return (
        len(inside) / len(possible),
        sum(1 / math.log2(place + 1) for place in inside) / len(possible),
        sum(1 / place for place in inside) / len(possible),
    )


def assert_rows_equal(placement, expected_places: list[list[int]], mask=None) -> None:
    for k in KS:
        got = [
            f(placement.before_R, placement.group_R, k)
            for f in (ranking.hr_at_k, ranking.ndcg_at_k, ranking.rr_at_k)
        ]
        for row, possible in enumerate(expected_places):
            if mask is None or mask[row]:
                assert np.allclose([values[row] for values in got], loop_metrics(possible, k)), (
                    k,
                    row,
                    possible,
                )


@settings(max_examples=150)
@given(cases())
def test_levels_equal_a_loop_over_rows(case):
    table, lists, rows = case
    predictions = sid_predictions(lists, table, rows.example_ids_R)
    members = [[table.items_of_sid(sid).tolist() for sid in row] for row in lists]
    targets = rows.target_R.tolist()
    found = find_targets(predictions, rows.target_R)
    assert_rows_equal(
        place_items(predictions, found), [places(m, t) for m, t in zip(members, targets, strict=True)]
    )
    sid_of = table.sid_of_item_N
    assert_rows_equal(
        place_sids(predictions, found, rows.target_R, sid_of),
        [places([[sid] for sid in row], sid_of[t]) for row, t in zip(lists, targets, strict=True)],
    )
    unseen, counts, shortest = place_unseen(
        predictions, found, rows.target_R, rows.history_row_H, rows.history_H, table.num_items
    )
    histories = [
        set(rows.history_H[rows.offsets[r] : rows.offsets[r + 1]].tolist()) for r in range(len(rows))
    ]
    left = [[[i for i in g if i not in h] for g in m] for m, h in zip(members, histories, strict=True)]
    assert counts.tolist() == [t not in h for t, h in zip(targets, histories, strict=True)]
    assert shortest == min(sum(map(len, kept)) for kept in left)
    assert_rows_equal(unseen, [places(kept, t) for kept, t in zip(left, targets, strict=True)], counts)


@settings(max_examples=75)
@given(cases(), st.lists(st.integers(0, 3), min_size=12, max_size=12))
def test_merged_items_and_prefixes_equal_a_loop_over_rows(case, labels):
    table, lists, rows = case
    label_N = np.array(labels[: table.num_items])
    predictions = sid_predictions(lists, table, rows.example_ids_R)
    found, targets = find_targets(predictions, rows.target_R), rows.target_R.tolist()
    expected = []
    for row, target in zip(lists, targets, strict=True):
        shown, groups_of_labels = set(), []
        for sid in row:
            fresh = {int(label_N[item]) for item in table.items_of_sid(sid)} - shown
            groups_of_labels.append(sorted(fresh))
            shown |= fresh
        expected.append(places(groups_of_labels, int(label_N[target])))
    assert_rows_equal(place_merged(predictions, found, rows.target_R, label_N), expected)
    placed = place_prefixes(predictions, table.codes_NL[rows.target_R])
    assert list(placed) == ["prefix=1", "position=1", "prefix=2", "position=2"]
    for name, placement in placed.items():
        kind, _, number = name.partition("=")
        part = slice(0, int(number)) if kind == "prefix" else slice(int(number) - 1, int(number))
        wanted = [
            next(
                (
                    [at + 1]
                    for at, sid in enumerate(row)
                    if (table.sids_SL[sid][part] == table.codes_NL[target][part]).all()
                ),
                [],
            )
            for row, target in zip(lists, targets, strict=True)
        ]
        assert_rows_equal(placement, wanted)
    whole = place_sids(predictions, found, rows.target_R, None)
    assert (placed["prefix=2"].before_R == whole.before_R).all(), "the full prefix is the SID level"


@st.composite
def scored_rows(draw):
    """(scores [rows, items] with many ties, popularity, rows)."""
    num_items, num_rows = draw(st.integers(2, 9)), draw(st.integers(1, 4))
    level = st.sampled_from([0.0, 0.0, 0.5, 1.0, 1.5, counting.LEFT_OUT])
    scores = np.array([[draw(level) for _ in range(num_items)] for _ in range(num_rows)])
    popularity = np.array([draw(st.integers(0, 3)) for _ in range(num_items)])
    item = st.integers(0, num_items - 1)
    histories = [draw(st.lists(item, max_size=4)) for _ in range(num_rows)]
    return scores, popularity, make_rows(histories, [draw(item) for _ in range(num_rows)])


def tied_places(key: list[tuple], item: int) -> list[int]:
    """The places (from 1) that an item can take when equal ones are in random order."""
    better = sum(other > key[item] for other in key)
    return list(range(better + 1, better + sum(other == key[item] for other in key) + 1))


@settings(max_examples=150)
@given(scored_rows(), st.integers(1, 9))
def test_ranked_items_and_their_ties_equal_a_loop(case, depth):
    scores, popularity, rows = case
    num_items = len(popularity)
    probabilities = counting.log_probabilities(csr_matrix(scores), popularity)
    assert np.allclose(np.exp(probabilities.astype(float)).sum(1), 1, atol=1e-5)
    lists, expected = ranked_lists(probabilities, depth), []
    for row in range(len(rows)):
        key = [(scores[row, i], popularity[i]) for i in range(num_items)]
        could_be = {i: tied_places(key, i) for i in range(num_items)}
        part = slice(lists.offsets[row], lists.offsets[row + 1])
        got = dict(zip(lists.item_E[part].tolist(), lists.rank_E[part].tolist(), strict=True))
        assert got == {i: np.mean(found) for i, found in could_be.items() if found[0] <= depth}
        expected.append(could_be[rows.target_R[row]])
    assert_rows_equal(counting.target_places(csr_matrix(scores), rows.target_R, popularity), expected)
    assert_rows_equal(contract.target_places(probabilities, rows.target_R), expected)
    full = ranked_lists(probabilities, num_items)
    predictions = from_table(
        ranked_items_table(rows.example_ids_R, full.offsets, full.item_E, full.rank_E, full.score_E),
        where="here",
    )
    sids = np.arange(num_items) // 2
    found = find_targets(predictions, rows.target_R)
    placed = place_sids(predictions, found, rows.target_R, sids)
    unseen, counts, _ = place_unseen(
        predictions, found, rows.target_R, rows.history_row_H, rows.history_H, num_items
    )
    assert_rows_equal(place_items(predictions, found), expected)
    of_sids, without = [], []
    for row in range(len(rows)):
        target = rows.target_R[row]
        key = [(scores[row, i], popularity[i]) for i in range(num_items)]
        best = [max(key[i] for i in np.flatnonzero(sids == sid)) for sid in range(sids[-1] + 1)]
        of_sids.append(tied_places(best, sids[target]))
        history = rows.history_H[rows.offsets[row] : rows.offsets[row + 1]].tolist()
        left = [i for i in range(num_items) if i not in history]
        without.append(tied_places([key[i] for i in left], left.index(target)) if counts[row] else [])
    assert_rows_equal(placed, of_sids)
    assert_rows_equal(unseen, without, counts)


def test_equal_to_trec_eval_on_random_runs():
    rng = np.random.default_rng(0)
    num_items, num_rows = 60, 40
    run, truth = [], []
    lists = [rng.permutation(num_items)[:20] for _ in range(num_rows)]
    targets = rng.integers(0, num_items, num_rows)
    for row, (items, target) in enumerate(zip(lists, targets, strict=True)):
        truth.append(ir_measures.Qrel(str(row), str(target), 1))
        run += [ir_measures.ScoredDoc(str(row), str(item), float(-at)) for at, item in enumerate(items)]
    named = {"hr": R, "ndcg": nDCG, "rr": RR}
    theirs = ir_measures.calc_aggregate([m @ k for m in named.values() for k in KS], truth, run)
    rank = np.tile(np.arange(1.0, 21), num_rows)
    predictions = from_table(
        ranked_items_table(
            np.arange(num_rows), np.arange(num_rows + 1) * 20, np.concatenate(lists), rank, -rank
        ),
        where="here",
    )
    placed = place_items(predictions, find_targets(predictions, targets))
    for name, measure_class in named.items():
        ours = {"hr": ranking.hr_at_k, "ndcg": ranking.ndcg_at_k, "rr": ranking.rr_at_k}[name]
        for k in KS:
            value = ours(placed.before_R, placed.group_R, k).mean()
            assert value == pytest.approx(theirs[measure_class @ k], abs=1e-9), (name, k)
    assert theirs[R @ 10] > 0


def test_gini_equals_its_definition():
    x = np.random.default_rng(1).poisson(1.0, 50).astype(float)
    pairs = sum(abs(a - b) for a in x for b in x)
    assert ranking.gini(x) == pytest.approx(pairs / (2 * len(x) * x.sum()))


def test_metrics_json_by_hand():
    """Three items share SID 0, items 3 and 4 have their own. Two users, three rows."""
    table = SidTable(np.array([[0, 0], [0, 0], [0, 0], [1, 0], [1, 1]], np.int32), (2, 2))
    rows = make_rows([[3], [0, 1], [4]], targets=[1, 4, 4], users=[5, 5, 6])
    predictions = sid_predictions([[0, 1], [0, 2], [1, 2]], table, rows.example_ids_R)
    popularity = np.array([4, 0, 1, 3, 2])
    flat, facts, _ = measure.measure(
        predictions,
        rows,
        popularity_N=popularity,
        sids=table,
        settings=measure.Settings(ks=(1, 2, 5), resamples=200),
        where="here",
    )
    value = {name: number["value"] for name, number in flat.items()}
    # Row 0: one of three items in random order. Row 1: fourth behind them. Row 2: second.
    assert value["item_level/hr@1"] == pytest.approx((1 / 3 + 0 + 0) / 3, abs=1e-6)
    assert value["item_level/hr@2"] == pytest.approx((2 / 3 + 0 + 1) / 3, abs=1e-6)
    assert value["sid_level/hr@1"] == pytest.approx(1 / 3, abs=1e-6)
    assert value["sid_level/hr@2"] == 1.0
    assert value["sid_level/ndcg@2"] == pytest.approx((1 + 2 / math.log2(3)) / 3, abs=1e-6)
    assert value["item_level/target=cold/hr@2"] == pytest.approx(2 / 3, abs=1e-6)
    assert value["item_level/repeat=yes/hr@2"] == 1.0
    # Without the histories: row 0 keeps its three items, row 1 has one left ahead, row 2 does not count.
    assert value["item_level_unseen/hr@1"] == pytest.approx((1 / 3 + 0) / 2, abs=1e-6)
    # Two places: rows 0 and 1 show 2/3 of each of the items 0-2, row 2 items 3 and 4: nothing is left out.
    assert value["all/coverage@2"] == 1.0
    assert value["all/popularity@2"] == pytest.approx((2 * (4 + 0 + 1) * 2 / 3 + 3 + 2) / 6, abs=1e-6)
    assert value["all/popularity_lift@2"] == pytest.approx(
        (2 * (5 * 2 / 3) / 2 + 2.5) / (3 + 2 + 2), abs=1e-6
    )
    assert value["all/invalid_rate"] == 0
    assert facts["ks"] == [1, 2] and facts["rows_unseen"] == 2 and facts["group_rows"]["history=1-2"] == 3
    for name, number in flat.items():
        if number["low"] is not None:
            assert number["low"] <= number["value"] <= number["high"], name
    assert not any(name.endswith("@5") for name in flat)


def test_predictions_outside_the_catalogue_stop_the_stage():
    table = SidTable(np.array([[0, 0], [1, 0]], np.int32), (2, 2))
    other = SidTable(np.array([[0, 1], [1, 0]], np.int32), (2, 2))
    rows = make_rows([[0]], targets=[1])
    predictions = sid_predictions([[0, 1]], other, rows.example_ids_R)
    with pytest.raises(
        NumericError, match=r"1 of 2 predictions are not in the catalogue \(first: example 3\)"
    ):
        measure.measure(
            predictions,
            rows,
            popularity_N=np.ones(2, int),
            sids=table,
            settings=measure.Settings(ks=(1,)),
            where="x",
        )


def ranked(ids: list[int], items: list[int], ranks: list[float]) -> pa.Table:
    offsets = np.arange(len(ids) + 1)
    return ranked_items_table(np.array(ids), offsets, np.array(items), np.array(ranks), np.zeros(len(ids)))


def test_incomplete_or_double_predictions_are_refused():
    expected = np.array([10, 20, 30])
    good = from_table(ranked([30, 10, 20], [0, 0, 0], [1, 1, 1]), where="w")
    assert align(good, expected, max_rows=None, where="w").tolist() == [2, 0, 1]
    part = from_table(ranked([30, 10], [0, 0], [1, 1]), where="w")
    assert align(part, expected, max_rows=2, where="w").tolist() == [2, 0]
    with pytest.raises(InputError, match=r"w: 1 of 3 examples are missing \(first: 20\)"):
        align(part, expected, max_rows=None, where="w")
    with pytest.raises(InputError, match="1 examples are not of this data set and split"):
        align(from_table(ranked([11], [0], [1]), where="w"), expected, max_rows=None, where="w")
    with pytest.raises(InputError, match=r"1 examples occur more than once \(first: 10\)"):
        from_table(ranked([10, 20, 10], [0, 0, 1], [1, 1, 2]), where="w")
    with pytest.raises(InputError, match="ranks must start at 1 and ascend"):
        from_table(ranked([10, 10], [0, 1], [2, 1]), where="w")
    with pytest.raises(InputError, match="ranks must start at 1"):
        from_table(ranked([10, 10], [0, 1], [float("nan"), 1]), where="w")
    broken = ranked([10, 20], [0, 1], [1, 1])
    broken = broken.set_column(
        broken.column_names.index("score"), "score", pa.array([0.5, float("nan")], pa.float32())
    )
    with pytest.raises(NumericError, match=r"1 scores are not finite \(first: example 20\)"):
        from_table(broken, where="w")
    with pytest.raises(NumericError, match="example 10 is given item 4 twice"):
        from_table(ranked([10, 10], [4, 4], [1, 2]), where="w")
