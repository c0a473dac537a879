"""The mixture of counts and texts: components and EM by hand, the model against its formula, and the programs around it."""

from __future__ import annotations

import json
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from scipy import sparse

from data.rows import TrainLog, read_rows, read_train_log
from data.store.output import open_output, read_manifest
from infer.models import contract, mixture
from infer.models.counting import item_similarity, transition_matrix
from infer.models.recency import recent_popularity
from tests.handmade import Made, call, refuse
from tests.store import ITEMS, sequences, write_store
from tests.test_baselines import history


def log(walks: list[list[int]], num_items: int) -> TrainLog:
    users = np.repeat(np.arange(len(walks)), [len(walk) for walk in walks]).astype(np.int32)
    return TrainLog(users, np.array([item for walk in walks for item in walk], np.int32), num_items)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixture")
    data = write_store(root / "store")
    call(
        "infer.run_baselines",
        "--data",
        data,
        "--output_root",
        root / "eval",
        "--models",
        "[mixture,itemknn_tuned,itemknn_text]",
    )
    return root, data


def test_components_by_hand():
    train = log([[0, 1, 1, 2], [0, 1]], 4)
    named = {part.name: part for part in mixture.counted(train)}
    # 0 -> 1 twice, 1 -> 2 once (1 -> 1 is a repeat): with two more in the denominator 2/4 and 1/3.
    assert np.allclose(
        named["follows_1"].matrix.toarray(), [[0, 0.5, 0, 0], [0, 0, 1 / 3, 0], [0] * 4, [0] * 4]
    )
    # Repeats in a row: one of four steps; from item 1 one of two, from item 0 none of two.
    usual = 0.25
    assert np.allclose(
        named["again_item"].matrix.diagonal(), [5 * usual / 7, (1 + 5 * usual) / 7, usual, usual]
    )
    assert named["popular"].base_N == pytest.approx(np.array([2.1, 3.1, 1.1, 0.1]) / 6.4)
    assert np.allclose(transition_matrix(train, reach=3, decay=0.5).toarray()[0], [0, 1 + 0.5 + 1, 0.25, 0])
    similar = mixture.similarity_matrix(
        np.array([[1, 2], [0, 3], [0, 1], [1, 0]]), np.array([[0.5, 0.1], [0.5, 0], [0.1, 0], [0, 0]])
    )
    told = {part.name: part.matrix.toarray() for part in mixture.told_by_text(train, similar, {})}
    assert told["text"][0] == pytest.approx([0, 0.5**4 / (0.5**4 + 0.1**4), 0.1**4 / (0.5**4 + 0.1**4), 0])
    by_count = np.array([0.25 * 4**0.5, 0.01 * 2**0.5])
    assert told["text_wide_popular"][0] == pytest.approx([0, *(by_count / by_count.sum()), 0])
    assert "text_lately" not in told


def test_em_climbs_the_likelihood():
    probability_RC = np.random.default_rng(0).random((60, 4)) ** 3
    weights = [mixture.em_weights(probability_RC, steps) for steps in (0, 1, 5, 500)]
    likelihood = [np.log(probability_RC @ weight).sum() for weight in weights]
    assert likelihood == sorted(likelihood) and likelihood[-1] > likelihood[0]
    # At the optimum every used component explains as much as the whole.
    ratio_C = (probability_RC / (probability_RC @ weights[-1])[:, None]).mean(0)
    assert ratio_C[weights[-1] > 1e-3] == pytest.approx(1, abs=1e-2) and (ratio_C < 1.01).all()


def test_a_few_rows_do_not_make_all_items_alike():
    """One row whose target no count knows and few have taken: without a prior all weight is that of `any`."""
    train = log([[0, 1, 2, 0], [0, 1, 0], [0, 2]], 150)
    found, row = list(mixture.components(train, None, {})), history(0, 1)
    row.target_R[0] = 149
    told_RC = mixture.target_probabilities(found, row, 150)
    alike, kept = (mixture.em_weights(told_RC, prior=prior) for prior in (0.0, 1.0))
    assert alike[-1] > 0.999 and 0.4 < kept[-1] < 0.6 and kept.sum() == pytest.approx(1)
    score_N = mixture.MixtureModel.of(zip(found, kept, strict=True), 150).score(row)[0]
    assert (np.bincount(np.unique(score_N, return_inverse=True)[1]).max() < 150) and score_N.argmax() in (
        0,
        1,
        2,
    )


def test_the_model_is_the_sum_of_its_components():
    rng = np.random.default_rng(1)

    def random_matrix() -> sparse.csr_matrix:
        return mixture.shares(sparse.csr_matrix(rng.random((5, 5)) * (rng.random((5, 5)) < 0.5)))

    found = [
        mixture.Component("a", random_matrix()),
        mixture.Component("b", random_matrix(), decay=1.0),
        mixture.Component("c", random_matrix(), last=1),
        mixture.Component("d", random_matrix()),
        mixture.Component("e", base_N=np.full(5, 0.2)),
    ]
    weight_C = np.array([0.3, 0.2, 0.1, 0.15, 0.25])
    model, rows = mixture.MixtureModel.of(zip(found, weight_C, strict=True), 5), history(2, 4, 1)
    seven = np.array([0, 1, 0.49, 0, 0.7]) / 2.19
    weighed = [seven, np.array([0, 1, 1, 0, 1]) / 3, np.eye(5)[1], seven]
    parts = [one @ part.matrix.toarray() for one, part in zip(weighed, found, strict=False)] + [
        np.full(5, 0.2)
    ]
    expected = weight_C @ np.array(parts)
    assert len(model.parts) == 3, "components of one weighing are one matrix"
    assert np.allclose(np.exp(model.score(rows))[0], expected / expected.sum(), atol=1e-6)
    target = history(2, 4, 1)
    target.target_R[:] = 3
    assert mixture.target_probabilities(found, target, 5)[0] == pytest.approx([part[3] for part in parts])
    assert np.allclose(np.exp(model.score(history()))[0], 0.2), "no history: what holds for everybody"


def test_recent_popularity_counts_the_latest(fitted):
    _, data = fitted
    found = recent_popularity(data, [50, 10_000], num_items=ITEMS)
    train = read_train_log(data, num_items=ITEMS)
    assert found[50].sum() == 50 and 50 < found[10_000].sum() < len(train.items_T), (
        "rows without a time do not count"
    )


def test_the_saved_mixture(fitted):
    root, data = fitted
    rows, model = read_rows(data, "test", num_items=ITEMS), contract.load(root / "baselines/mixture")
    score_RN = model.score(rows)
    assert score_RN.dtype == np.float32 and np.allclose(np.exp(score_RN.astype(float)).sum(1), 1, atol=1e-5)
    few, items_RC = np.array([5, 2]), np.array([[1, 3], [0, 2]])
    assert np.allclose(
        model.score(rows.take(few), items_RC), np.take_along_axis(score_RN[few], items_RC, axis=1)
    )
    facts = read_manifest(root / "eval/mixture.test")["facts"]
    assert facts["fitted_on"] == "train" and facts["tuned_on"] == "valid"
    assert sum(facts["weights"].values()) == pytest.approx(1, abs=0.01) and {
        "text_lately",
        "popular_1000",
    } <= set(facts["weights"])
    valid = read_rows(data, "valid", num_items=ITEMS)
    likelihood = {
        name: contract.load(root / "baselines" / name).score(valid, valid.target_R[:, None]).mean()
        for name in ("mixture", "itemknn_tuned")
    }
    assert likelihood["mixture"] > likelihood["itemknn_tuned"]


def test_item_knn_with_texts_and_a_repeat_bonus(fitted, tmp_path):
    """Users who choose everything twice: an item is not its own neighbour, so only what it has in common with itself says it again."""
    twice = write_store(
        tmp_path / "twice", [[item for item in walk for _ in (0, 1)][:-1] for walk in sequences(users=40)]
    )
    common = ("infer.run_baselines", "--data", twice, "--output_root", tmp_path / "eval")
    call(
        *common,
        "--models",
        "[itemknn_tuned,itemknn_text,mixture]",
        "--tune.repeats",
        "[0.0,2.0]",
        "--tune.text_weights",
        "[0.0,0.5]",
    )
    call(*common[:-1], tmp_path / "never/eval", "--models", "[itemknn_tuned]", "--tune.repeats", "[0.0]")
    facts = {
        name: read_manifest(tmp_path / f"{name}.test")["facts"]
        for name in ("eval/itemknn_tuned", "eval/itemknn_text", "eval/mixture", "never/eval/itemknn_tuned")
    }
    text, never = facts["eval/itemknn_text"], facts["never/eval/itemknn_tuned"]
    assert text["own"] == facts["eval/itemknn_tuned"]["own"] == 2.0 and never["own"] == 0.0
    assert (
        min(text["valid_ndcg@10"], facts["eval/itemknn_tuned"]["valid_ndcg@10"])
        > never["valid_ndcg@10"] + 0.1
    )
    assert facts["eval/mixture"]["repeats"]["shift"] >= 0
    call(
        "infer.evaluate",
        "--predictions",
        tmp_path / "eval/itemknn_text.valid",
        "--data",
        twice,
        "--resamples",
        20,
    )
    metrics = json.loads((tmp_path / "eval/itemknn_text.valid/metrics/metrics.json").read_text())
    assert metrics["item_level/ndcg@10"]["value"] == pytest.approx(text["valid_ndcg@10"], abs=1e-6)
    root, data = fitted
    call("infer.run_baselines", "--data", data, "--output_root", tmp_path / "text/eval", "--models", "[itemknn_text]",
         "--tune.repeats", "[0.3]", "--tune.text_weights", "[0.7]")  # fmt: skip
    model = contract.load(tmp_path / "text/baselines/itemknn_text")
    shrink = read_manifest(tmp_path / "text/baselines/itemknn_text")["facts"]["shrink"]
    plain = item_similarity(read_train_log(data, num_items=ITEMS), shrink=shrink).toarray()
    assert model.own == 0.3 and (model.matrix_NN.toarray() >= plain).all()
    assert (model.matrix_NN.toarray() > plain).sum() > ITEMS, "similar texts"
    assert "text_weights and repeats not negative" in refuse(
        *common, "--models", "[pop]", "--tune.text_weights", "[-1]"
    )


def test_components_are_made_when_they_are_asked_for():
    """So counting again holds the sum and one component, not all of them."""
    train = log([[0, 1, 2, 0], [0, 1, 0], [0, 2]], 6)
    weights = {one.name: 0.1 for one in mixture.components(train, None, {})}
    made = []

    def watched(*told):
        for one in components(*told):
            made.append((one.name, len(added)))
            yield one

    added, components = [], mixture.components

    class Counted(dict):
        def __getitem__(self, name):
            added.append(name)
            return super().__getitem__(name)

    with patch.object(mixture, "components", watched):
        model = mixture.MixtureModel.counted(train, mixture.Beside(Counted(weights), None, {}))
    assert made == [(name, place) for place, name in enumerate(weights)], "one after the other"
    listed = mixture.MixtureModel.of(((one, 0.1) for one in list(components(train, None, {}))), 6)
    for one, other in zip(model.parts, listed.parts, strict=True):
        assert (one.matrix != other.matrix).nnz == 0


def test_a_shift_is_of_the_history_and_stays_with_the_model(fitted, tmp_path):
    """Items 3 (twice) and 1 of a history by 1.5 nats each time; the rest keeps its proportions, whoever counts again or loads it."""
    root, data = fitted
    train = read_train_log(data, num_items=ITEMS)
    plain = replace(contract.load(root / "baselines/mixture"), shift=0.0)
    shifted, row = replace(plain, shift=1.5), history(3, 1, 3)
    moved_N = shifted.score(row)[0].astype(float) - plain.score(row)[0]
    others = np.setdiff1d(np.arange(ITEMS), [1, 3])
    assert np.ptp(moved_N[others]) < 1e-5
    assert moved_N[[3, 1]] - moved_N[others[0]] == pytest.approx([3.0, 1.5], abs=1e-5)
    assert np.exp(shifted.score(row)).sum() == pytest.approx(1, abs=1e-5)
    with open_output(Made(), "item model mixture", version=1, inputs={}, directory=tmp_path / "saved") as out:
        shifted.save(out)
    for again in (contract.load(tmp_path / "saved"), shifted.recounted(train)):
        assert np.allclose(again.score(row), shifted.score(row), atol=1e-5)
