"""A teacher answers train rows without the counts of their users: against the same models fitted without those users, and what it prevents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from configs.program import InputError
from data.rows import Rows, TrainLog, read_rows, read_train_log
from infer.models import contract, mixture
from infer.models.cache import top_scores
from infer.models.contract import Recountable, target_ranks
from infer.models.counting import CountingModel, item_similarity, transition_matrix
from infer.models.folds import NOBODY, Folds, in_blocks
from infer.models.recency import with_ages
from tests.handmade import call
from tests.store import ITEMS, write_store
from train.scratch.drawn import DrawnRows
from train.soft_targets import SoftTargets, TaughtRows

MODELS = ("pop", "repeat", "last", "recent", "itemknn", "itemknn_tuned", "mixture", "trend")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A data set, models of counts, a text-aware model with companions, and a product of them."""
    root = tmp_path_factory.mktemp("folds")
    data = write_store(root / "store")
    call(
        "infer.run_baselines", "--data", data, "--output_root", root / "eval", "--splits", "[]",
        "--models", f"[{','.join((*MODELS, 'itemknn_text'))}]",
    )  # fmt: skip
    call(
        "train.train_sequential", "--data", data, "--output_dir", root / "baselines/near", "--loop.epochs", 2, "--loss.kind", "ce",
        "--scorer.hidden", 16, "--scorer.companions", 8, "--loop.learning_rate", 0.01, "--loop.evidence_rate", 10,
        "--sasrec.heads", 2,
    )  # fmt: skip
    members = ",".join(str(root / "baselines" / name) for name in ("mixture", "near", "trend"))
    call(
        "infer.fuse", "--members", f"[{members}]", "--data", data, "--output_dir", root / "baselines/teacher",
        "--output_root", root / "eval", "--splits", "[]", "--weights", "[0.5,1,0.5]",
    )  # fmt: skip
    return root, data


def train_of(data):
    rows = with_ages(read_rows(data, "train", num_items=ITEMS), data, num_items=ITEMS)
    return rows, read_train_log(data, num_items=ITEMS)


def without(train: TrainLog, users: np.ndarray) -> TrainLog:
    kept = ~np.isin(train.users_T, users)
    return TrainLog(train.users_T[kept], train.items_T[kept], train.num_items)


@pytest.mark.parametrize("name", [*MODELS, "near", "teacher"])
def test_every_model_that_counts_is_what_it_is_without_those_users(fitted, name):
    """A fold's rows have the scores of the model of the others' log, one user of it taken away at a time or all at once."""
    root, data = fitted
    (rows, train), model = train_of(data), contract.load(root / "baselines" / name)
    assert isinstance(model, Recountable)
    seen = np.zeros(len(rows), int)
    for places, one in Folds(train, 3).answering(model, rows):
        seen[places] += 1
        fold = np.unique(rows.users_R[places] % 3)
        assert len(fold) == 1
        others = without(train, train.users_T[train.users_T % 3 == fold[0]])
        again = contract.load(root / "baselines" / name).recounted(others)
        np.testing.assert_array_equal(one.score(rows.take(places)), again.score(rows.take(places)))
    assert (seen == 1).all()
    np.testing.assert_array_equal(model.recounted(train).score(rows), model.score(rows))


def test_what_is_counted_again_is_fitted_again(fitted):
    """Counts by hand of the other users, beside what a model was saved with."""
    root, data = fitted
    rows, train = train_of(data)
    others = without(train, np.unique(train.users_T)[::2])
    asked = rows.take(np.arange(40))
    pairs = {
        "last": CountingModel(others.popularity_N, transition_matrix(others), last=1),
        "itemknn": CountingModel(others.popularity_N, item_similarity(others)),
    }
    for name, expected in pairs.items():
        found = contract.load(root / "baselines" / name).recounted(others)
        np.testing.assert_array_equal(found.score(asked), expected.score(asked))
    near = contract.load(root / "baselines/near")
    state, again = near.network.state_dict(), near.recounted(others).network.state_dict()
    changed = {name for name in state if not bool((state[name] == again[name]).all())}
    assert changed == {"evidence.companions.item_NK", "evidence.companions.value_NK"}


def test_where_histories_say_nothing_a_teacher_says_nothing():
    """Items drawn evenly, whatever came before: counts that hold a row find its target, those of the other folds do not."""
    rng, users, items = np.random.default_rng(0), 150, 60
    log = TrainLog(
        np.repeat(np.arange(users), 6).astype(np.int32),
        rng.integers(0, items, 6 * users).astype(np.int32),
        items,
    )
    walk_UT = log.items_T.reshape(users, 6)
    offsets = np.arange(users + 1) * 5
    rows = Rows(
        np.arange(users), np.arange(users, dtype=np.int32), offsets, walk_UT[:, :5].ravel(), walk_UT[:, 5]
    )
    parts = mixture.counted(log)
    even = mixture.Beside({part.name: 1 / len(parts) for part in parts}, None, {})
    for model in (
        mixture.MixtureModel.counted(log, even),
        CountingModel(log.popularity_N, item_similarity(log), counted={"shrink": 0.0}),
    ):
        score_RN = np.empty((users, items), np.float32)
        for places, one in in_blocks(model, rows, 16, Folds(log, 5), label="x"):
            assert len(places) <= 16
            score_RN[places] = one.score(rows.take(places))
        hit, with_own = (
            (target_ranks(scores, rows.target_R) <= 6).mean() for scores in (score_RN, model.score(rows))
        )
        assert hit < 0.2 and with_own > 0.4, "six of sixty are a tenth"


def test_rows_of_nobody_and_models_without_counts(fitted):
    root, data = fitted
    rows, train = train_of(data)
    model = contract.load(root / "baselines/itemknn")
    nobody = replace(rows, users_R=np.full_like(rows.users_R, NOBODY))
    found = list(Folds(train, 4).answering(model, nobody))
    assert len(found) == 1 and found[0][1] is model and (found[0][0] == np.arange(len(rows))).all()
    for folds in (None, Folds(train, 0)):
        (one,) = {id(one) for _, one in in_blocks(model, rows, 10**6, folds, label="x")}
        assert one == id(model)

    class Fixed:
        num_items = ITEMS

        def score(self, rows, items_RC=None):
            return np.zeros((len(rows), ITEMS), np.float32)

    fixed = Fixed()
    assert [one for _, one in Folds(train, 4).answering(fixed, rows)] == [fixed]
    with pytest.raises(
        InputError, match="all train rows are of one fold of 2 -> data of more users, or 0 folds"
    ):
        list(Folds(without(train, train.users_T[train.users_T % 2 == 0]), 2).answering(model, rows))


def test_soft_targets_of_folds_on_disk(fitted):
    """Dense, drawn and best-k answers are those of the folds; another number of folds is another folder or refused."""
    root, data = fitted
    rows, train = train_of(data)
    teacher, told = root / "baselines/teacher", {"data": data, "num_items": ITEMS}
    options = SoftTargets(str(teacher), folds=3)
    chance_RN = TaughtRows.of(options, **told).dense(rows.example_ids_R)
    expected = np.exp(top_scores(contract.load(teacher), rows, None, Folds(train, 3))["scores"])
    np.testing.assert_allclose(chance_RN, expected, rtol=1e-5)
    target_R1 = rows.target_R[:, None].astype(np.int64)
    own_R1 = np.take_along_axis(np.exp(contract.load(teacher).score(rows)), target_R1, 1)
    assert own_R1.mean() > np.take_along_axis(chance_RN, target_R1, 1).mean(), (
        "its own counts spoke for the target"
    )
    with pytest.raises(InputError, match="holds scores of 3 folds -> another directory, or remove it"):
        TaughtRows.of(replace(options, folds=0), **told)
    order_N = np.arange(ITEMS)
    drawn = DrawnRows.of(options, **told, order_N=order_N, draws=40, epochs=2)
    counts_RN = np.zeros((len(rows), ITEMS))
    for epoch in range(2):
        np.add.at(counts_RN, (np.arange(len(rows))[:, None], drawn.answers(rows.example_ids_R, epoch)), 1)
    assert (np.abs(counts_RN - 80 * chance_RN) <= 1 + 1e-3).all()
    places = len(list((root / "scores").iterdir()))
    DrawnRows.of(replace(options, folds=4), **told, order_N=order_N, draws=40, epochs=2)
    assert len(list((root / "scores").iterdir())) == places + 1
