"""A teacher answers train rows without the counts of their users: against the same models fitted without those users, and what it prevents."""

from __future__ import annotations

import weakref
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from configs.program import InputError
from data.rows import Rows, TrainLog, read_rows, read_train_log
from data.sid import SidTable
from infer.models import contract, mixture
from infer.models.cache import cached, top_scores
from infer.models.contract import Recountable, target_places
from infer.models.counting import CountingModel, item_similarity, transition_matrix
from infer.models.folds import NOBODY, FoldedModel, Folds, in_blocks
from infer.models.fusion import FusionModel
from infer.models.recency import with_ages
from infer.models.retrievers.compact import CompactScorer
from infer.models.retrievers.compact_network import CompactModel
from infer.models.retrievers.compact_options import CompactOptions, CompactShape
from infer.models.sequential.companions import companions
from tests.handmade import call
from tests.store import ITEMS, write_store
from train.grpo import GrpoArgs
from train.rewards.needs import Sources, resolve
from train.scratch.drawn import DrawnRows
from train.soft_targets import SoftTargets, TaughtRows

MODELS = ("pop", "repeat", "last", "recent", "itemknn", "itemknn_tuned", "mixture", "trend")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A data set, models of counts, a SASRec with companions, and a product of them."""
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
    for places, score_BN in in_blocks(model, rows, 10**6, Folds(train, 3), label="x"):
        seen[places] += 1
        fold = np.unique(rows.users_R[places] % 3)
        assert len(fold) == 1
        others = without(train, train.users_T[train.users_T % 3 == fold[0]])
        again = contract.load(root / "baselines" / name).recounted(others)
        np.testing.assert_array_equal(score_BN, again.score(rows.take(places)))
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
    chosen = contract.load(root / "baselines/last").own
    pairs["last"] = replace(pairs["last"], own=chosen)
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
    parts = list(mixture.counted(log))
    even = mixture.Beside({part.name: 1 / len(parts) for part in parts}, None, {})
    for model in (
        mixture.MixtureModel.counted(log, even),
        CountingModel(log.popularity_N, item_similarity(log), counted={"shrink": 0.0}),
    ):
        score_RN = np.empty((users, items), np.float32)
        for places, score_BN in in_blocks(model, rows, 16, Folds(log, 5), label="x"):
            assert len(places) <= 16
            score_RN[places] = score_BN
        hit, with_own = (
            (target_places(scores, rows.target_R).before_R < 6).mean()
            for scores in (score_RN, model.score(rows))
        )
        assert hit < 0.2 and with_own > 0.4, "six of sixty are a tenth"


def test_rows_of_nobody_and_models_without_counts(fitted):
    root, data = fitted
    rows, train = train_of(data)
    model = contract.load(root / "baselines/itemknn")
    nobody = replace(rows, users_R=np.full_like(rows.users_R, NOBODY))
    for asked, folds in ((nobody, Folds(train, 4)), (rows, None), (rows, Folds(train, 0))):
        found = list(in_blocks(model, asked, 10**6, folds, label="x"))
        assert len(found) == 1 and (found[0][0] == np.arange(len(rows))).all()
        np.testing.assert_array_equal(found[0][1], model.score(asked))

    class Fixed:
        num_items = ITEMS

        def score(self, rows, items_RC=None):
            return np.zeros((len(rows), ITEMS), np.float32)

    answered = list(in_blocks(Fixed(), rows, 7, Folds(train, 4), label="x"))
    assert sum(len(places) for places, _ in answered) == len(rows) and not any(
        score.any() for _, score in answered
    )
    with pytest.raises(InputError, match="all train rows are of one fold of 2 -> data of more users"):
        FoldedModel(model, Folds(without(train, train.users_T[train.users_T % 2 == 0]), 2))


def test_one_folds_counts_are_let_go_before_the_next_are_made(fitted):
    rows, train = train_of(fitted[1])
    alive = []

    class Counted:
        num_items = ITEMS

        def recounted(self, log):
            assert not any(one() for one in alive), "two folds' counts at once"
            other = Counted()
            alive.append(weakref.ref(other))
            return other

        def score(self, rows, items_RC=None):
            return np.zeros((len(rows), ITEMS), np.float32)

    for _places, _score_BN in in_blocks(Counted(), rows, 7, Folds(train, 4), label="x"):
        pass
    assert len(alive) == 4


def test_rewards_ask_a_teacher_that_holds_its_folds(fitted, capsys):
    """The scores of `in_blocks` in any order, of all items or of some; a row of no user has the teacher's own, and that is said."""
    root, data = fitted
    rows, train = train_of(data)
    model, folds = contract.load(root / "baselines/teacher"), Folds(train, 3)
    mixed = rows.take(np.random.default_rng(0).permutation(len(rows))[:50])
    held = FoldedModel(model, folds)
    expected = np.empty((50, ITEMS), np.float32)
    for places, score_BN in in_blocks(model, mixed, 8, folds, label="x"):
        expected[places] = score_BN
    np.testing.assert_array_equal(held.score(mixed), expected)
    some_RC = np.random.default_rng(1).integers(0, ITEMS, (50, 4))
    np.testing.assert_array_equal(held.score(mixed, some_RC), np.take_along_axis(expected, some_RC, 1))
    assert "rows of no user" not in capsys.readouterr().out
    nobody = replace(mixed, users_R=np.full_like(mixed.users_R, NOBODY))
    np.testing.assert_array_equal(held.score(nobody), model.score(nobody))
    assert "rows of no user are answered with all counts of the teacher" in "".join(capsys.readouterr())


def test_grpo_asks_its_teacher_without_the_prompts_users(fitted):
    """What `--teacher_folds` resolves to, what it refuses, and what a run of before counts as."""
    root, data = fitted
    rows, train = train_of(data)
    sids = SidTable(np.stack([np.arange(ITEMS) // 7, np.arange(ITEMS) % 7], 1).astype(np.int32), (6, 7))
    place = str(root / "baselines/teacher")
    model = contract.load(place)
    told = {
        folds: resolve(
            ["teacher"],
            Sources(sids, data=str(data), teacher=place, made_from=str(data), teacher_folds=folds),
        )
        for folds in (0, 3)
    }
    np.testing.assert_array_equal(told[0]["teacher"].score(rows), model.score(rows))
    np.testing.assert_array_equal(
        told[3]["teacher"].score(rows), FoldedModel(model, Folds(train, 3)).score(rows)
    )
    given = {
        "model": "m",
        "examples": "e",
        "sids": "s",
        "output_dir": "o",
        "teacher": "t",
        "rewards": ["collaborative"],
    }
    assert GrpoArgs(**given, data="d").teacher_folds == 8
    with pytest.raises(InputError, match="teacher_folds 1 must be at least 2, or 0 for none"):
        GrpoArgs(**given, teacher_folds=1)
    with pytest.raises(
        InputError,
        match="data d is read only with newest_share or a reward that needs titles, popularity or a teacher of folds",
    ):
        GrpoArgs(**given, data="d", teacher_folds=0)
    for field in (*fields(GrpoArgs), *fields(SoftTargets)):
        if field.name in ("teacher_folds", "folds"):
            assert field.default == 8 and 0 in field.metadata.values(), "a run of before had no folds"


def test_answers_on_disk_are_no_teacher_of_folds(fitted, tmp_path):
    """A cache cannot leave users out, alone or as a member; nor can counts that were mixed with texts."""
    root, data = fitted
    rows, train = train_of(data)
    cache = cached(tmp_path / "cache", model=root / "baselines/itemknn", rows=rows, k=None)
    text = contract.load(root / "baselines/itemknn_text")
    for model, said in (
        (cache, "holds answers, which cannot be counted again"),
        (text, "counts and texts .itemknn_text."),
    ):
        with pytest.raises(InputError, match=said):
            FoldedModel(model, Folds(train, 3))
        fused = FusionModel([contract.load(root / "baselines/pop"), model], np.array([1.0, 0.5]), "product")
        with pytest.raises(InputError, match=said):
            top_scores(fused, rows, None, Folds(train, 3))
        silent = replace(fused, weights_M=np.array([1.0, 0.0]))
        assert FoldedModel(silent, Folds(train, 3)).score(rows).shape == (len(rows), ITEMS), (
            "a member that says nothing"
        )
    assert (
        SoftTargets("t").place("train").name == "t.train.folds8"
        and SoftTargets("t", folds=0).place("train").name == "t.train"
    )


@pytest.mark.parametrize("item_path", [0.0, 0.5])
def test_a_generator_is_counted_again_with_what_it_has_learned(fitted, item_path):
    """Other companions and train rows in its evidence, the same vectors and biases of nodes."""
    _, data = fitted
    rows, train = train_of(data)
    codes_NL = np.stack([np.arange(ITEMS) // 7, np.arange(ITEMS) % 7], 1).astype(np.int32)
    options = CompactOptions(hidden=8, heads=2, own_vectors=True, item_path=item_path)
    torch.manual_seed(0)
    model = CompactModel(CompactShape(ITEMS, (6, 7), options, companions=5), codes_NL)
    model.learn_of(popularity_N=train.popularity_N, companions=companions(train, most=5))
    with torch.no_grad():
        for part in model.parameters():
            part.add_(torch.randn(part.shape) * 0.2)
    scorer, others = CompactScorer(model), without(train, np.unique(train.users_T)[::2])
    np.testing.assert_array_equal(scorer.recounted(train).score(rows), scorer.score(rows))
    again = scorer.recounted(others)
    assert all(
        torch.equal(a, b)
        for one, other in zip(scorer.nodes, again.nodes, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    expected = CompactModel(model.shape, codes_NL)
    expected.learn_of(popularity_N=others.popularity_N, companions=companions(others, most=5))
    learned = {
        name: one for name, one in model.state_dict().items() if "companions" not in name and name != "rows_N"
    }
    expected.load_state_dict(learned, strict=False)
    np.testing.assert_allclose(
        again.score(rows), CompactScorer(expected, scorer.nodes).score(rows), atol=1e-6
    )
    assert not np.allclose(again.score(rows), scorer.score(rows), atol=1e-3)


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
    assert not np.allclose(
        TaughtRows.of(replace(options, folds=0), **told).dense(rows.example_ids_R), chance_RN, atol=1e-3
    )
    order_N = np.arange(ITEMS)
    drawn = DrawnRows.of(options, **told, order_N=order_N, draws=40, epochs=2)
    counts_RN = np.zeros((len(rows), ITEMS))
    for epoch in range(2):
        np.add.at(counts_RN, (np.arange(len(rows))[:, None], drawn.answers(rows.example_ids_R, epoch)), 1)
    assert (np.abs(counts_RN - 80 * chance_RN) <= 1 + 1e-3).all()
    places = len(list((root / "scores").iterdir()))
    DrawnRows.of(replace(options, folds=4), **told, order_N=order_N, draws=40, epochs=2)
    assert len(list((root / "scores").iterdir())) == places + 1
