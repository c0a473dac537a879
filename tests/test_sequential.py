"""Sequential models: windows, states, losses and scores against references; the trainer as a user runs it."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.rows import Rows
from infer.models import contract
from infer.models.sequential import text, windows
from infer.models.sequential.evidence import HistoryEvidence
from infer.models.sequential.model import SequentialModel, recent_items
from infer.models.sequential.options import (
    Caser,
    Gru4Rec,
    Hstu,
    SasRec,
    ScorerOptions,
    SequentialShape,
    TextOptions,
)
from infer.models.sequential.scoring import SequentialScorer
from infer.models.sequential.softmax import soft_cross_entropy
from rq.vectors.embeddings import Tfidf, tfidf_matrix
from train.scratch import losses
from train.scratch.options import ItemLoss
from train.scratch.sequential import SequentialTask, TrainRows

TRUNKS = {
    "sasrec": SasRec(layers=2, heads=2, feedforward=2, activation="gelu"),
    "gru4rec": Gru4Rec(layers=2),
    "caser": Caser(filters=3, heights=[2, 4], vertical=2),
    "hstu": Hstu(layers=2, heads=2),
}


def rows_of(table: list[tuple[int, list[int], int]]) -> Rows:
    """Rows (user, history, target); example ids from 50."""
    users, histories, targets = zip(*table, strict=True)
    lengths = [len(history) for history in histories]
    return Rows(
        np.arange(50, 50 + len(table)),
        np.array(users, np.int32),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.array([item for history in histories for item in history], np.int32),
        np.array(targets, np.int32),
    )


def random_rows(rng: np.random.Generator, *, users: int, items: int, positions: int) -> Rows:
    """Users' walks as windows of at most `positions`, some with a gap, some repeated, users interleaved."""
    table = []
    for user in range(users):
        walk = rng.integers(0, items, rng.integers(1, 9)).tolist()
        for at in range(len(walk)):
            if rng.random() < 0.85:
                table.append((user, walk[max(0, at - positions) : at], walk[at]))
    rng.shuffle(table)
    by_length = sorted(table, key=lambda row: len(row[1])) if rng.random() < 0.5 else table
    return rows_of(by_length or [(0, [1], 0)])


def network(trunk: str = "sasrec", *, num_items: int = 12, **changes) -> SequentialModel:
    """A model with random weights everywhere, in evaluation mode."""
    scorer = {"hidden": 8, "positions": 5, "tied": True, "copy": True} | changes.pop("scorer", {})
    shape = SequentialShape(num_items, trunk, ScorerOptions(**scorer), TRUNKS[trunk], **changes)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = SequentialModel(shape)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        for name, buffer in model.named_buffers():
            if name == "evidence.similar_NK":
                buffer.copy_((torch.arange(num_items)[:, None] + 1 + torch.arange(shape.similar)) % num_items)
            else:
                torch.nn.init.uniform_(buffer)
    return model.eval()


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_windows_hold_every_row_once(seed, positions):
    """Each target stands behind exactly its row's history: nothing before the window, nothing left out."""
    rows = random_rows(np.random.default_rng(seed), users=4, items=5, positions=positions)
    made = windows.row_windows(rows)
    found = []
    for w in range(len(made)):
        items = made.item_I[made.offsets[w] : made.offsets[w + 1]]
        for t in np.flatnonzero(made.target_I[made.offsets[w] : made.offsets[w + 1]] != windows.NONE):
            i = made.offsets[w] + t
            found.append((int(made.example_I[i]), items[: t + 1].tolist(), int(made.target_I[i])))
    histories = np.split(rows.history_H, rows.offsets[1:-1])
    expected = [
        (int(e), h.tolist(), int(t))
        for e, h, t in zip(rows.example_ids_R, histories, rows.target_R, strict=True)
        if len(h)
    ]
    assert sorted(found) == sorted(expected)


def test_rows_that_continue_one_another_share_a_window():
    rows = rows_of(
        [
            (1, [4], 5),
            (0, [7], 8),
            (1, [4, 5], 6),
            (1, [4, 5, 6], 2),
            (1, [5, 6, 2], 3),
            (0, [7, 9], 1),
            (2, [], 4),
        ]
    )
    made = windows.row_windows(rows)
    assert [made.item_I[a:b].tolist() for a, b in zip(made.offsets, made.offsets[1:], strict=False)] == [
        [7],
        [7, 9],
        [4, 5, 6],
        [5, 6, 2],
    ]
    assert made.target_I.tolist() == [8, -1, 1, 5, 6, 2, -1, -1, 3] and made.rows_W.tolist() == [1, 1, 3, 1]
    cut, count = windows.newest(rows, 2)
    assert count == 2 and cut.history_H.tolist() == [4, 7, 4, 5, 5, 6, 6, 2, 7, 9]


def test_batches_hold_every_window_once_and_about_as_many_rows():
    rows = random_rows(np.random.default_rng(1), users=60, items=9, positions=4)
    made = windows.row_windows(rows)
    parts = windows.batches(made, rows=20, rng=np.random.default_rng(0))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(made)))
    sizes = [int(made.rows_W[part].sum()) for part in parts]
    assert len(parts) > 3 and max(sizes) < 20 + 5 and sum(size < 16 for size in sizes) <= 1
    lengths = [np.diff(made.offsets)[part] for part in parts]
    assert all(np.ptp(length) <= 1 for length in lengths), "windows of similar lengths"
    assert [p.tolist() for p in parts] != [
        p.tolist() for p in windows.batches(made, rows=20, rng=np.random.default_rng(1))
    ]
    one = windows.padded(made, parts[0][:1])
    assert one.history_BT.shape[0] == 1 and len(one.at_P) == made.rows_W[parts[0][0]]


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_state_is_that_of_its_prefix_alone(trunk):
    model = network(trunk)
    items_ND = model.item_vectors()
    history_BT = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
    whole_PN = model.logits(history_BT, torch.tensor([2, 4, 7]), items_ND)
    for row, prefix in enumerate(([3, 1, 4], [3, 1, 4, 1, 5], [9, 2, 6])):
        alone_1N = model.logits(torch.tensor([prefix]), torch.tensor([len(prefix) - 1]), items_ND)
        torch.testing.assert_close(whole_PN[row], alone_1N[0], rtol=1e-5, atol=1e-5)
    other = model.logits(torch.tensor([[1, 3, 4]]), torch.tensor([2]), items_ND)
    assert (whole_PN[0] - other[0]).abs().max() > 1e-3, "the order of a history matters"


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_the_loss_of_a_batch_is_the_mean_of_its_rows_alone(trunk, kind):
    """Batches of one row, of one item, and of all of them; the negatives of a row are drawn once for both sides."""
    model = network(trunk, scorer={"copy": kind == "ce"})
    rows = random_rows(np.random.default_rng(5), users=6, items=12, positions=5)
    task = SequentialTask(model, TrainRows.of_rows(rows), rows, loss=ItemLoss(kind=kind), rows=64)
    (whole,) = task.batches(0, np.random.default_rng(0))
    made = windows.padded(task.current, whole)
    together = float(task.batch_loss(made, np.random.default_rng(1)).detach())
    drawn = losses.drawn_negatives(made.target_P, 12, 1, np.random.default_rng(1))
    alone = []
    for p, at in enumerate(made.at_P):
        row, place = divmod(int(at), made.history_BT.shape[1])
        one = windows.PaddedBatch(
            made.history_BT[row : row + 1, : place + 1],
            made.gap_BT[row : row + 1, : place + 1],
            np.array([place]),
            made.target_P[p : p + 1],
            made.example_P[p : p + 1],
        )
        with patch.object(losses, "drawn_negatives", lambda *_, p=p: drawn[p : p + 1]):
            alone.append(float(task.batch_loss(one, np.random.default_rng(1)).detach()))
    assert len(alone) >= 10 and together == pytest.approx(np.mean(alone), rel=1e-4)


def test_recent_items_by_hand():
    history_BT = torch.tensor([[4, 7, 5], [8, 0, 0]])
    assert recent_items(history_BT, torch.tensor([1, 3, 2])).tolist() == [[7, 4, -1], [8, -1, -1], [5, 7, 4]]


def plain_evidence(evidence: HistoryEvidence, recent: list[int]) -> torch.Tensor:
    """The formulas of evidence.py for one history, newest first, item by item."""
    square_NN = torch.zeros(evidence.num_items, evidence.num_items)
    for item in range(evidence.num_items):
        square_NN[item, evidence.similar_NK[item].long()] = evidence.square_NK[item]
    past = [item for item in recent if item >= 0]
    whole_N = sum(0.7**back * square_NN[item] for back, item in enumerate(past))
    added_N = evidence.alpha_F[0] * torch.log(1 + 20 * square_NN[past[0]]) + evidence.alpha_F[1] * torch.log(
        1 + 20 * whole_N
    )
    for back, item in enumerate(past):
        added_N = added_N + evidence.bonus_J[back] * torch.nn.functional.one_hot(
            torch.tensor(item), evidence.num_items
        )
    return added_N


@pytest.mark.parametrize("block", [1 << 22, 24])
def test_cross_entropy_and_its_gradients_equal_autograd(monkeypatch, block):
    monkeypatch.setattr("infer.models.sequential.softmax.BLOCK_VALUES", block)
    model = network(similar=4)
    recent_PJ = torch.tensor([[3, 1, 3, -1], [0, -1, -1, -1], [7, 7, 2, 11], [5, 4, -1, -1], [1, 2, -1, -1]])
    torch.manual_seed(0)
    state_PE = torch.randn(5, 8, requires_grad=True)
    target_PM, share_PM = (
        torch.tensor([[0, 1], [2, 2], [3, 9], [11, 0], [4, 5]]),
        torch.tensor([[0.7, 0.3]] * 5),
    )
    inputs = [state_PE, model.item_ND, model.bias_N, model.evidence.alpha_F, model.evidence.bonus_J]
    loss = soft_cross_entropy(
        state_PE, model.item_ND, model.bias_N, model.evidence, recent_PJ, target_PM, share_PM
    )
    slopes = torch.autograd.grad(3 * loss, inputs)
    added_PN = torch.stack([plain_evidence(model.evidence, recent) for recent in recent_PJ.tolist()])
    plain_PN = torch.log_softmax(state_PE @ model.item_ND.T + model.bias_N + added_PN, dim=1)
    expected = -(share_PM * plain_PN.gather(1, target_PM)).sum(1).mean()
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(slopes, torch.autograd.grad(3 * expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_other_losses_by_hand():
    logit_PC = torch.tensor([[1.0, -2.0, 0.5]])
    sigmoid = [1 / (1 + np.exp(-z)) for z in (1.0, -2.0, 0.5)]
    expected = -(np.log(sigmoid[0]) + np.log(1 - sigmoid[1]) + np.log(1 - sigmoid[2])) / 3
    assert float(losses.binary_cross_entropy(logit_PC)) == pytest.approx(expected, rel=1e-6)
    weight_N = torch.tensor([0.9, 0.5, 0.7])
    errors = [0.9 * 1.0 / 2, 0.5 * (-2.0 - 1) ** 2 / 2, 0.7 * 0.25 / 2]
    robust = losses.dro_term(logit_PC, torch.tensor([1]), weight_N, beta=2.0)
    assert float(robust) == pytest.approx(np.log(np.exp(errors).sum()), rel=1e-6)
    assert losses.propensity(np.array([3, 0])) == pytest.approx([0.8**0.05, 0.2**0.05], rel=1e-6)
    drawn = losses.drawn_negatives(np.array([0, 2, 3] * 500), 4, 2, np.random.default_rng(0))
    assert all(set(drawn[row::3].ravel()) == {0, 1, 2, 3} - {target} for row, target in enumerate((0, 2, 3)))
    items, shares = losses.soft_targets(torch.tensor([2, 0]), torch.tensor([[1, 2], [0, 2], [1, 0]]),
                                        torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.25, 0.75]]), share=0.4)  # fmt: skip
    assert items.tolist() == [[2, 1, 0], [0, 1, 2]]
    torch.testing.assert_close(shares, torch.tensor([[0.6, 0.1, 0.3], [1.0, 0.0, 0.0]]))


def test_scores_of_any_history():
    scorer = SequentialScorer(network(similar=3))
    rows = rows_of([(0, [1, 2, 3, 4, 5, 6, 7], 0), (0, [3, 4, 5, 6, 7], 0), (1, [], 0), (2, [4], 1)])
    score_RN = scorer.score(rows)
    assert np.allclose(np.exp(score_RN).sum(1), 1, atol=1e-5)
    assert (score_RN[0] == score_RN[1]).all(), "the newest items of a longer history are read"
    bias = scorer.network.bias_N.detach().numpy()
    assert np.allclose(score_RN[2], bias - np.log(np.exp(bias).sum()), atol=1e-5), "no history: the bias"
    alone = scorer.score(rows.take(np.array([3])), np.array([[5, 0]]))
    assert np.allclose(alone, score_RN[3:, [5, 0]], atol=1e-6)
    assert scorer.score(rows.take(np.array([2]))).shape == (1, 12)


def test_target_places_are_those_of_the_lists():
    score_RN = np.random.default_rng(0).integers(0, 6, (40, 25)).astype(np.float32)
    target_R = np.random.default_rng(1).integers(0, 25, 40)
    lists = contract.ranked_lists(score_RN, 25)
    placed = contract.target_places(score_RN, target_R)
    for row, rank in enumerate(placed.before_R + (placed.group_R + 1) / 2):
        part = slice(lists.offsets[row], lists.offsets[row + 1])
        assert rank == lists.rank_E[part][lists.item_E[part] == target_R[row]][0]


def test_similar_items_are_the_best_of_all_cosines(monkeypatch):
    words = ["steel", "brass", "bolt", "nut", "washer", "long", "short", "pump"]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 4)) for _ in range(30)] + ["unheard"]
    options = TextOptions(tfidf=Tfidf(max_df=1.0))
    monkeypatch.setattr(text, "BLOCK", 7)
    items_NK, cosine_NK = text.similar_items(texts, options, most=6)
    dense_NN = (matrix := tfidf_matrix(texts, options.tfidf)) @ matrix.T
    dense_NN = dense_NN.toarray() - 2 * np.eye(31)
    expected_NK = np.argsort(-dense_NN, axis=1, kind="stable")[:, :6]
    assert np.allclose(cosine_NK, np.take_along_axis(dense_NN, expected_NK, axis=1).clip(min=0), atol=1e-6)
    assert np.allclose(
        np.take_along_axis(dense_NN, items_NK.astype(int), axis=1),
        np.take_along_axis(dense_NN, expected_NK, axis=1),
    )
    assert not cosine_NK[30].any(), "nothing is known of a text without known terms"
    few, _ = text.similar_items(texts[:4] + texts[:4], options, most=50)
    assert few.shape == (8, 7) and all(item not in row for item, row in enumerate(few))
