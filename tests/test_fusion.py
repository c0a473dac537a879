"""Fusions of item models: hand arithmetic, the model against a loop over generated inputs, EM, and predictions as members."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from configs.program import InputError, NumericError
from data.predictions import from_table, ranked_items_table
from data.rows import Rows
from infer.models import exponents, fusion
from infer.models.contract import ranked_lists
from infer.models.fusion import FusionModel
from infer.models.listed import ListedScores
from infer.models.mixture import em_weights


class Table:
    """An item model whose row r has the probabilities chance_RN[example_id]."""

    def __init__(self, chance_RN: list[list[float]] | np.ndarray) -> None:
        with np.errstate(divide="ignore"):
            self.score_RN = np.log(np.array(chance_RN, float)).astype(np.float32)
        self.num_items = self.score_RN.shape[1]

    def score(self, rows: Rows, items_RC: np.ndarray | None = None) -> np.ndarray:
        score_RN = self.score_RN[rows.example_ids_R]
        return score_RN if items_RC is None else np.take_along_axis(score_RN, items_RC, axis=1)


def rows_of(targets: list[int] | np.ndarray) -> Rows:
    count = len(targets)
    return Rows(
        np.arange(count), np.arange(count), np.zeros(count + 1, int), np.zeros(0, np.int32), np.array(targets)
    )


def chances(fused: FusionModel, *targets: int) -> np.ndarray:
    return np.exp(fused.score(rows_of(targets or [0])).astype(float))


FIRST, SECOND = Table([[0.5, 0.4, 0.1]]), Table([[0.2, 0.3, 0.5]])


def test_both_forms_by_hand():
    half = np.array([0.5, 0.5])
    roots = np.sqrt([0.5 * 0.2, 0.4 * 0.3, 0.1 * 0.5])
    assert chances(FusionModel([FIRST, SECOND], half, "product"))[0] == pytest.approx(roots / roots.sum())
    assert chances(FusionModel([FIRST, SECOND], half, "mixture"))[0] == pytest.approx([0.35, 0.35, 0.3])
    # Weights of a product are as peaked as they sum to: 1 and 1 multiply.
    whole = np.array([0.1, 0.12, 0.05])
    assert chances(FusionModel([FIRST, SECOND], np.ones(2), "product"))[0] == pytest.approx(
        whole / whole.sum()
    )
    assert chances(FusionModel([FIRST, SECOND], np.array([0.75, 0.25]), "mixture"))[0] == pytest.approx(
        [0.425, 0.375, 0.2]
    )


def test_a_pool_by_hand():
    """The best of the first is 0, of the second 2: item 1 is in no list of one, though the product has it first."""
    half = np.array([0.5, 0.5])
    pool = FusionModel([FIRST, SECOND], half, "pool", pool_k=1)
    roots = np.sqrt([0.1, 0.05])
    assert chances(pool)[0] == pytest.approx([roots[0] / roots.sum(), 0, roots[1] / roots.sum()])
    by_second = FusionModel([FIRST, SECOND], np.array([0.0, 1.0]), "pool", pool_k=1)
    assert chances(by_second)[0] == pytest.approx([0.2 / 0.7, 0, 0.5 / 0.7])
    assert ranked_lists(by_second.score(rows_of([0])), 3).item_E.tolist() == [2, 0]
    both = [Table([[0.5, 0.4, 0.1]] * 3), Table([[0.2, 0.3, 0.5]] * 3)]
    assert FusionModel(both, half, "pool", 1).pool_counts(rows_of([0, 1, 2])) == ([1, 1], 2, 6)
    assert FusionModel(both, half, "pool", 2).pool_counts(rows_of([0, 1, 2])) == ([2, 2], 3, 9)
    even = FusionModel([Table([[1 / 3] * 3]), Table([[1 / 3] * 3])], half, "pool", 1)
    assert chances(even)[0] == pytest.approx([1 / 3] * 3) and even.pool_counts(rows_of([0])) == ([0, 0], 0, 0)


def test_what_no_member_allows():
    sure = Table([[1, 0, 0]]), Table([[0, 0, 1]])
    half = np.array([0.5, 0.5])
    assert chances(FusionModel(sure, half, "mixture"))[0] == pytest.approx([0.5, 0, 0.5])
    with pytest.raises(NumericError, match="no item that every member"):
        FusionModel(sure, half, "product").score(rows_of([0]))
    assert chances(FusionModel(sure, np.array([1.0, 0.0]), "product"))[0] == pytest.approx([1, 0, 0])


def by_loop(tables: list[np.ndarray], weights: list[float], how: str, pool_k: int, row: int) -> list[float]:
    """Probabilities of one row, one item at a time."""
    items = range(tables[0].shape[1])
    if how == "mixture":
        return [sum(w * table[row, item] for w, table in zip(weights, tables, strict=True)) for item in items]
    powers = []
    for item in items:
        value = 1.0
        for w, table in zip(weights, tables, strict=True):
            value *= table[row, item] ** w
        better = [sum(table[row] > table[row, item]) for table in tables]
        same = [sum(table[row] == table[row, item]) - 1 for table in tables]
        pooled = any(b + s / 2 < pool_k for b, s in zip(better, same, strict=True))
        powers.append(value if how == "product" or pooled else 0.0)
    powers = powers if any(powers) else by_loop(tables, weights, "product", pool_k, row)
    return [power / sum(powers) for power in powers]


@given(st.data())
def test_every_form_is_its_loop(data):
    members, items = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 7))
    count, how = data.draw(st.integers(1, 5)), data.draw(st.sampled_from(fusion.HOW))
    pool_k, block = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    counts = st.lists(st.integers(1, 4), min_size=items, max_size=items)
    tables = [np.array(data.draw(st.lists(counts, min_size=count, max_size=count))) for _ in range(members)]
    tables = [table / table.sum(1, keepdims=True) for table in tables]
    weights = data.draw(st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=members, max_size=members))
    weights[data.draw(st.integers(0, members - 1))] = 0.5
    if how == "mixture":
        weights = [weight / sum(weights) for weight in weights]
    fused, rows = FusionModel(list(map(Table, tables)), np.array(weights), how, pool_k), rows_of([0] * count)
    with patch("infer.models.fusion.block_rows", lambda _: block):
        score_RN = fused.score(rows)
        items_RC = np.array(
            data.draw(st.lists(st.lists(st.integers(0, items - 1), min_size=2, max_size=2),
                               min_size=count, max_size=count))
        )  # fmt: skip
        asked_RC = fused.score(rows, items_RC)
    assert score_RN.dtype == asked_RC.dtype == np.float32
    expected = [by_loop(tables, weights, how, pool_k, row) for row in range(count)]
    assert np.allclose(np.exp(score_RN.astype(float)), expected, atol=1e-5)
    assert (asked_RC == np.take_along_axis(score_RN, items_RC, axis=1)).all()
    assert (fused.score(rows) == score_RN).all(), "blocks do not show"


def drawn(weight_M: list[float], rows: int, items: int, seed: int) -> tuple[list[Table], Rows]:
    """Members with random distributions and targets drawn from their mixture."""
    rng = np.random.default_rng(seed)
    tables = [rng.dirichlet(np.full(items, 0.3), size=rows) for _ in weight_M]
    mixed = sum(w * table for w, table in zip(weight_M, tables, strict=True))
    return list(map(Table, tables)), rows_of([rng.choice(items, p=row / row.sum()) for row in mixed])


def test_em_finds_the_weights_that_made_the_data_and_climbs_at_every_step():
    members, rows = drawn([0.6, 0.3, 0.1], rows=4000, items=25, seed=3)
    weight_M, nll = fusion.fitted_weights(members, rows)
    assert weight_M == pytest.approx([0.6, 0.3, 0.1], abs=0.03) and weight_M.sum() == pytest.approx(1)
    assert nll["em"] < nll["equal"] - 0.05
    chance_RM = fusion.target_probabilities(members, rows)
    likelihood = [np.log(chance_RM @ em_weights(chance_RM, steps)).sum() for steps in range(15)]
    assert (np.diff(likelihood) > 0).all()
    # It is the likelihood of the model with these weights that is highest.
    target_R1 = rows.target_R[:, None]
    said = [-FusionModel(members, np.array(w), "mixture").score(rows, target_R1).astype(float).mean()
            for w in (weight_M, [0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.6, 0.2, 0.2])]  # fmt: skip
    assert said[0] == min(said) == pytest.approx(nll["em"], abs=1e-5)


def test_em_of_rows_that_nobody_explains():
    sure = Table([[1, 0, 0]] * 2), Table([[0, 1, 0]] * 2)
    assert fusion.fitted_weights(sure, rows_of([1, 2]))[0] == pytest.approx([0, 1])
    with pytest.raises(InputError, match="nothing to fit"):
        fusion.fitted_weights(sure, rows_of([2, 2]))


def predictions(*lists: list[tuple[list[int], float]], first: int = 0):
    """One list of (items, probability) per example."""
    import pyarrow as pa

    from data import artifacts

    flat = [
        (first + row, rank + 1, *entry) for row, one in enumerate(lists) for rank, entry in enumerate(one)
    ]
    ids, ranks, items, chance = zip(*flat, strict=True)
    table = {
        "example_id": pa.array(ids, pa.int64()),
        "rank": pa.array(ranks, pa.float32()),
        "codes": pa.array([[number] for number in range(len(ids))], artifacts.INT_LIST),
        "item_ids": pa.array(items, artifacts.INT_LIST),
        "score": pa.array(np.log(chance), pa.float32()),
    }
    return from_table(pa.table(table), where="lists")


def test_predictions_as_a_model_by_hand():
    # Items 0 and 1 share a semantic ID of .2; five items share the .3 that is left.
    lists = [([3], 0.5), ([1, 0], 0.2)]
    made = ListedScores([predictions(lists)], num_items=8, where="x")
    assert np.exp(made.score(rows_of([0]))[0]) == pytest.approx([0.1, 0.1, 0.06, 0.5, *[0.06] * 4], rel=1e-5)
    # Of five items two would have .15 each, more than the last of the list: they have as much, and the row sums to 1.
    made = ListedScores([predictions(lists)], num_items=5, where="x")
    assert np.exp(made.score(rows_of([0]))[0]) == pytest.approx(np.array([1, 1, 1, 5, 1]) / 9, rel=1e-5)
    # All mass on the list: what is not on it shares a millionth.
    made = ListedScores([predictions([([2], 1.0)])], num_items=3, where="x")
    assert np.exp(made.score(rows_of([0]))[0, :2]) == pytest.approx([5e-7, 5e-7], rel=1e-3)
    whole = ListedScores([predictions([([1], 0.75), ([0], 0.25)])], num_items=2, where="x")
    assert np.exp(whole.score(rows_of([0]))[0]) == pytest.approx([0.25, 0.75], rel=1e-5)


def test_predictions_of_several_splits_answer_rows_in_any_order():
    rng = np.random.default_rng(0)
    tables = rng.dirichlet(np.ones(9), size=12)
    lists = [[([int(i)], row[i]) for i in np.argsort(-row)[: rng.integers(1, 7)]] for row in tables]
    parts = [predictions(*lists[7:], first=7), predictions(*lists[:7])]
    made, rows = ListedScores(parts, num_items=9, where="x"), rows_of([0] * 12).take(rng.permutation(12))
    score_RN = made.score(rows)
    assert score_RN.dtype == np.float32 and np.allclose(np.exp(score_RN.astype(float)).sum(1), 1, atol=1e-5)
    for place, number in enumerate(rows.example_ids_R):
        best = [entry[0][0] for entry in lists[number]]
        assert ranked_lists(score_RN[place : place + 1], len(best)).item_E.tolist()[: len(best)] == best
    items_RC = rng.integers(0, 9, (12, 5))
    assert (made.score(rows, items_RC) == np.take_along_axis(score_RN, items_RC, axis=1)).all()
    with pytest.raises(InputError, match=r"no answer to example 12 \(1 such\)"):
        made.score(rows_of([0] * 13))
    with pytest.raises(InputError, match="5 examples are answered twice"):
        ListedScores([parts[0], *parts], num_items=9, where="x")


def test_predictions_that_are_no_probabilities_of_these_items():
    with pytest.raises(InputError, match="sum to 1.4, so its scores are no log-probabilities"):
        ListedScores([predictions([([0], 0.7), ([1], 0.7)])], num_items=4, where="x")
    with pytest.raises(InputError, match=r"items outside 0..3"):
        ListedScores([predictions([([4], 0.7)])], num_items=4, where="x")


def test_a_list_of_everything_is_the_model():
    chance = np.random.default_rng(1).dirichlet(np.ones(6), size=4)
    model, rows = Table(chance), rows_of([0] * 4)
    lists = ranked_lists(model.score(rows), 6)
    table = ranked_items_table(rows.example_ids_R, lists.offsets, lists.item_E, lists.rank_E, lists.score_E)
    made = ListedScores([from_table(table, where="x")], num_items=6, where="x")
    assert np.allclose(made.score(rows), model.score(rows), atol=1e-5)


@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(2, 8))
@example(
    185, 2, 4
)  # of two rows that are always right no factor is too large: steps, then halves up to the bound
def test_the_fitted_scale_is_no_worse_than_any_of_a_grid(seed, count, items):
    rng = np.random.default_rng(seed)
    tables = [rng.dirichlet(np.full(items, 0.7), count) for _ in range(2)]
    targets = np.array([rng.choice(items, p=row) for row in tables[0]])
    product = FusionModel(list(map(Table, tables)), rng.uniform(0.2, 2, 2), "product")
    with patch("infer.models.fusion.block_rows", lambda _: 4):
        scale, nll = exponents.fitted_scale(product, rows_of(targets))

    def likelihood(factor: float) -> float:
        scaled = FusionModel(product.members, product.weights_M * factor, "product")
        return -scaled.score(rows_of(targets), targets[:, None]).astype(float).mean()

    assert nll["1"] == pytest.approx(likelihood(1.0), abs=1e-4)
    assert nll["fitted"] == pytest.approx(likelihood(scale), abs=1e-4)
    least = min(likelihood(factor) for factor in np.geomspace(*exponents.SCALES, 60))
    assert nll["fitted"] <= least + 2e-3


def test_a_scale_by_hand():
    # Of ten rows with odds 4 : 1 six are right. Odds of 6 : 4 are 4 to the power .2925.
    rows = rows_of([0] * 6 + [1] * 4)
    scale, nll = exponents.fitted_scale(FusionModel([Table([[0.8, 0.2]] * 10)], np.ones(1), "product"), rows)
    assert scale == pytest.approx(np.log(1.5) / np.log(4), rel=1e-2)
    assert nll["1"] == pytest.approx(-0.6 * np.log(0.8) - 0.4 * np.log(0.2), abs=1e-5)
    assert nll["fitted"] == pytest.approx(-0.6 * np.log(0.6) - 0.4 * np.log(0.4), abs=1e-4)
    with pytest.raises(InputError, match="no row's target is possible"):
        exponents.fitted_scale(FusionModel([Table([[1.0, 0.0]])], np.ones(1), "product"), rows_of([1]))


@given(st.data())
def test_the_fitted_weights_are_no_worse_than_any_of_a_grid(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    count, items = data.draw(st.integers(20, 50)), data.draw(st.integers(2, 8))
    tables = [rng.dirichlet(np.full(items, 0.7), count) for _ in range(2)]
    tables.append(np.full((count, items), 1 / items))
    targets = np.array([rng.choice(items, p=row) for row in tables[0]])
    product = FusionModel(list(map(Table, tables)), np.ones(3), "product")
    with patch("infer.models.fusion.block_rows", lambda _: 12):
        found = exponents.fitted_exponents(product, rows_of(targets))

    def nll(weights: np.ndarray) -> float:
        product = FusionModel(list(map(Table, tables)), weights, "product")
        return -product.score(rows_of(targets), targets[:, None]).astype(float).mean()

    def worth(weights: np.ndarray) -> float:
        return nll(weights) + weights @ weights / (2 * count)

    assert (found.weight_M >= 0).all() and found.weight_M[2] == 0, "it says nothing"
    assert found.rows == count and found.nll["equal"] == pytest.approx(nll(np.full(3, 1 / 3)), abs=1e-4)
    assert found.nll["likelihood"] == pytest.approx(nll(found.weight_M), abs=1e-4)
    grid = np.concatenate([[0], np.geomspace(0.05, 5, 12)])
    assert (
        worth(found.weight_M) <= min(worth(np.array([a, b, 0])) for a in grid for b in grid if a + b) + 1e-4
    )


def members_of_rows(count: int, *chances: list[float]) -> list[Table]:
    return [Table([chance] * count) for chance in chances]


def test_weights_by_hand():
    # One member is right about six of ten rows at odds of 4 : 1, as above; the other calls both items equal: it says nothing.
    rows = rows_of([0] * 6000 + [1] * 4000)
    members = members_of_rows(10_000, [0.8, 0.2], [0.5, 0.5])
    found = exponents.fitted_exponents(FusionModel(members, np.ones(2), "product"), rows)
    assert found.weight_M == pytest.approx([np.log(1.5) / np.log(4), 0], rel=1e-2)
    assert found.nll["likelihood"] == pytest.approx(-0.6 * np.log(0.6) - 0.4 * np.log(0.4), abs=1e-4)
    worse = FusionModel(members_of_rows(10, [0.8, 0.2], [0.1, 0.9]), np.ones(2), "product")
    found = exponents.fitted_exponents(worse, rows_of([0] * 9 + [1]))
    assert found.weight_M[1] == 0, "it is wrong nine times of ten"
    alike = FusionModel(members_of_rows(1000, [0.8, 0.2], [0.8, 0.2]), np.ones(2), "product")
    first, second = exponents.fitted_exponents(alike, rows_of([0] * 600 + [1] * 400)).weight_M
    assert first == pytest.approx(second, rel=1e-2), "what the rows leave open is divided evenly"
    sure = FusionModel(members_of_rows(3, [0.8, 0.2], [0.7, 0.3]), np.ones(2), "product")
    assert exponents.fitted_exponents(sure, rows_of([0] * 3)).weight_M.max() < 2, "three rows are no proof"
    wrong = FusionModel(members_of_rows(10, [0.8, 0.2], [0.7, 0.3]), np.ones(2), "product")
    with pytest.raises(InputError, match="more likely than chance"):
        exponents.fitted_exponents(wrong, rows_of([1] * 10))


def test_rows_that_a_member_thinks_impossible_do_not_count_while_it_has_a_weight():
    good, targets = [0.6, 0.3, 0.1], [0] * 60 + [1] * 30 + [2] * 10
    half = Table([[0.5, 0.25, 0.25]] * 80 + [[0.5, 0.5, 0.0]] * 20)
    product = FusionModel([Table([good] * 100), half], np.ones(2), "product")
    found = exponents.fitted_exponents(product, rows_of(targets))
    assert found.rows == 90 and found.weight_M[0] > 0.5
    never = Table([[0.1, 0.45, 0.45]] * 50 + [[0.0, 0.5, 0.5]] * 50)
    found = exponents.fitted_exponents(
        FusionModel([Table([good] * 100), never], np.ones(2), "product"), rows_of(targets)
    )
    alone = exponents.fitted_exponents(
        FusionModel([Table([good] * 100)], np.ones(1), "product"), rows_of(targets)
    )
    assert found.weight_M[1] == 0 and found.rows == 100, "what it thinks impossible matters to nobody"
    assert found.weight_M[0] == pytest.approx(alone.weight_M[0]) and found.nll == alone.nll
    with pytest.raises(InputError, match="no row's target is possible"):
        exponents.fitted_exponents(
            FusionModel([Table([[1.0, 0.0]])] * 2, np.ones(2), "product"), rows_of([1])
        )
    with pytest.raises(NumericError, match="NaN"):
        exponents.fitted_exponents(
            FusionModel([Table([[np.nan, 0.5]])] * 2, np.ones(2), "product"), rows_of([1])
        )
