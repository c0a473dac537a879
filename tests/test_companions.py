"""The kernel of companions: its counts by loops, and what a train row has put there itself taken off again, level by level."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.rows import TrainLog
from infer.models.retrievers import compact_softmax
from infer.models.retrievers.compact_network import SMOOTHING, CompactModel, relative_rows
from infer.models.retrievers.compact_options import CompactOptions, CompactShape
from infer.models.retrievers.compact_softmax import TargetMass, tree_cross_entropy
from infer.models.sequential.companions import companions
from infer.models.sequential.evidence import HistoryEvidence

ITEMS, STEPS = 7, 4
walks = st.lists(st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=6), min_size=1, max_size=4)


def log_of(users: list[list[int]]) -> TrainLog:
    flat = np.array([item for walk in users for item in walk], np.int32)
    return TrainLog(
        np.repeat(np.arange(len(users)), [len(walk) for walk in users]).astype(np.int32), flat, ITEMS
    )


def follows_of(users: list[list[int]], left_out: tuple[int, int] | None = None) -> np.ndarray:
    """How often an item came near behind another [N, N], by loops; left_out: (user, place), which is not counted behind what stood before."""
    count_NN = np.zeros((ITEMS, ITEMS))
    for user, walk in enumerate(users):
        for place, item in enumerate(walk):
            for before in range(max(0, place - 10), place):
                if (user, place) != left_out:
                    count_NN[walk[before], item] += 0.8 ** (place - before - 1)
    np.fill_diagonal(count_NN, 0)
    return count_NN


def reversal_of(users: list[list[int]]) -> float:
    """Weight of the meetings of a pair, two at a time, in different orders over that in the same order, by loops."""
    meetings: dict[frozenset[int], list[tuple[bool, float]]] = {}
    for walk in users:
        for place, item in enumerate(walk):
            for before in range(max(0, place - 10), place):
                if walk[before] != item:
                    key = frozenset((walk[before], item))
                    meetings.setdefault(key, []).append((walk[before] < item, 0.8 ** (place - before - 1)))
    weight = {True: 0.0, False: 0.0}
    for found in meetings.values():
        for (order, first), (other, second) in combinations(found, 2):
            weight[order == other] += first * second
    return min(1.0, weight[False] / weight[True]) if weight[True] else 1.0


def nearness(users: list[list[int]], left_out: tuple[int, int] | None = None) -> np.ndarray:
    """The cosines [N, N] by loops, divided as those of the whole log are."""
    follows_NN, rows_N = follows_of(users, left_out), np.zeros(ITEMS)
    np.add.at(rows_N, [item for walk in users for item in walk], 1)
    near_NN = follows_NN + reversal_of(users) * follows_of(users).T
    return near_NN / (np.sqrt(rows_N[:, None] * rows_N) + 10)


def test_by_hand():
    """0 1 2, 1 0, 0 1. Behind 0 came 1 twice next and 2 at distance two (.8), behind 1 came 2 and 0, once each. Of the three pairs of
    meetings of 0 and 1 one has the same order, two have not, so that order says nothing there: r is 1, at most. 0 and 1 have three rows
    each, 2 one."""
    found = companions(log_of([[0, 1, 2], [1, 0], [0, 1]]), most=2)
    assert found.reversed == 1
    assert found.item_NK[0].tolist() == [1, 2] and found.item_NK[2].tolist() == [1, 0]
    assert found.cosine_NK[0] == pytest.approx([3 / 13, 0.8 / (3**0.5 + 10)])
    assert found.root_N.tolist() == pytest.approx([3**0.5, 3**0.5, 1, 0, 0, 0, 0])
    assert companions(log_of([[0, 1, 2], [1, 0]]), most=1).item_NK[0].tolist() == [1]
    assert found.cosine_NK[5].tolist() == [0, 0]


def test_what_came_the_other_way_round_counts_as_much_as_it_foretells():
    """0 1 three times, 1 0 once: three pairs of meetings in the same order, three in the other, r = 1. A fourth 0 1: six and four."""
    assert companions(log_of([[0, 1]] * 3 + [[1, 0]]), most=1).reversed == 1
    found = companions(log_of([[0, 1]] * 4 + [[1, 0]]), most=1)
    assert found.reversed == pytest.approx(4 / 6)
    assert found.cosine_NK[:2, 0] == pytest.approx([(4 + 4 / 6) / 15, (1 + 4 * 4 / 6) / 15])
    one_way = companions(log_of([[0, 1]] * 2), most=1)
    assert one_way.reversed == 0 and one_way.cosine_NK[:2, 0] == pytest.approx([2 / 12, 0])
    assert companions(log_of([[0, 1]]), most=1).reversed == 1, "no pair has met twice"


def test_pairs_reach_ten_places_and_no_further():
    """0 1 2 ... 12: item 0 has the companions 1 .. 10, the tenth with .8 ** 9; the row of item 12 owes nothing at item 1, eleven places before."""
    log = TrainLog(np.zeros(13, np.int32), np.arange(13, dtype=np.int32), 13)
    found = companions(log, most=12)
    assert found.item_NK[0].tolist() == [*range(1, 11), 0, 0] and (found.cosine_NK[0, 10:] == 0).all()
    assert found.cosine_NK[0, 9] == pytest.approx(0.8**9 / 11)
    evidence = HistoryEvidence(13, 12, similar=0, copy=False, companions=12)
    evidence.companions.learn_of(found)
    recent_PJ = torch.tensor([list(range(11, -1, -1))])
    own = evidence.own_counts(recent_PJ, torch.tensor([12]))
    owed = sum(0.7**back * 0.8**back for back in range(10))
    assert own.sum_2P[:, 0].tolist() == pytest.approx([20 * 5 / 11, 20 * 5 / 11 * owed], rel=1e-5)
    _, history_PN = evidence.features(recent_PJ, own)
    assert history_PN[0, 12].item() == pytest.approx(0, abs=1e-5), (
        "nothing but the row itself had counted item 12"
    )


@given(walks)
def test_cosines_are_those_of_loops(users):
    found = companions(log_of(users), most=ITEMS)
    cosine_NN = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        for other, cosine in zip(found.item_NK[item], found.cosine_NK[item], strict=True):
            cosine_NN[item, other] += cosine
    assert found.reversed == pytest.approx(reversal_of(users))
    assert np.allclose(cosine_NN, nearness(users), atol=1e-6)
    assert (np.diff(found.cosine_NK, axis=1) <= 0).all()


def sums(near_NN: np.ndarray, recent: list[int]) -> np.ndarray:
    """20 sum_j .7^j s_j [N], s being five cosines."""
    return 20 * 5 * sum(0.7**back * near_NN[item] for back, item in enumerate(recent))


@given(walks, st.integers(1, ITEMS))
@settings(max_examples=60)
def test_a_row_in_training_sees_the_counts_without_itself(users, most):
    """For every row of the log. Counts of a pair that is not kept are not in the sums, and nothing is taken off for it."""
    found = companions(log_of(users), most=most)
    evidence = HistoryEvidence(ITEMS, STEPS, similar=0, copy=False, companions=found.item_NK.shape[1])
    evidence.companions.learn_of(found)
    kept_NN = np.zeros((ITEMS, ITEMS), bool)
    for item in range(ITEMS):
        kept_NN[item, found.item_NK[item][found.cosine_NK[item] > 0]] = True
    for user, walk in enumerate(users):
        for place in range(1, len(walk)):
            recent = walk[max(0, place - STEPS) : place][::-1]
            without_NN = nearness(users, left_out=(user, place)) * kept_NN
            whole_NN = nearness(users) * kept_NN
            recent_PJ = torch.tensor([recent + [-1] * (STEPS - len(recent))])
            own = evidence.own_counts(recent_PJ, torch.tensor([walk[place]]))
            newest_PN, history_PN = evidence.features(recent_PJ, own)
            # Only the target's own pairs are taken off: what came behind other items, and the other way round, stays.
            for feature_PN, steps in ((newest_PN, 1), (history_PN, len(recent))):
                expected_N = sums(whole_NN, recent[:steps])
                if len(walk[:place]) <= STEPS:
                    expected_N[walk[place]] = sums(without_NN, recent[:steps])[walk[place]]
                    assert np.allclose(feature_PN[0].numpy(), np.log1p(expected_N), atol=1e-4)
                others = np.arange(ITEMS) != walk[place]
                assert np.allclose(feature_PN[0].numpy()[others], np.log1p(expected_N)[others], atol=1e-4)
                assert (feature_PN >= 0).all()


@given(st.data())
@settings(max_examples=30)
def test_paths_and_every_node_give_the_same_loss(data):
    """The two forms of the tree's loss, of rows that take themselves off, also where the target itself has no share (a teacher's alone)."""
    codes = data.draw(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=ITEMS, max_size=ITEMS))
    similar = data.draw(st.sampled_from([0, 2]))
    options = CompactOptions(
        hidden=8, positions=STEPS, heads=2, dropout=0.0, own_vectors=data.draw(st.booleans())
    )
    torch.manual_seed(data.draw(st.integers(0, 99)))
    model = CompactModel(CompactShape(ITEMS, (3, 3, 3), options, 0, similar, 3), np.array(codes, np.int32))
    users = [[0, 1], *data.draw(walks)]
    found = companions(log_of(users), most=3)
    rng = np.random.default_rng(0)
    near = rng.integers(0, ITEMS, (ITEMS, 2)), rng.random((ITEMS, 2)).astype(np.float32)
    model.learn_of(popularity_N=rng.integers(0, 9, ITEMS), similar=near, companions=found)
    with torch.no_grad():
        model.alpha_LF.copy_(torch.rand(model.alpha_LF.shape) * data.draw(st.sampled_from([1.0, -4.0, 6.0])))
        model.bonus_LJ.copy_(torch.randn(model.bonus_LJ.shape) + data.draw(st.sampled_from([1.0, -9.0])))
    rows = [(walk[max(0, at - STEPS) : at][::-1], walk[at]) for walk in users for at in range(1, len(walk))]
    recent_PJ = torch.tensor([recent + [-1] * (STEPS - len(recent)) for recent, _ in rows])
    item_PT = torch.randint(0, ITEMS, (len(rows), 3))
    item_PT[:, 0] = torch.tensor([target for _, target in rows])
    hard = TargetMass(item_PT[:, :1], torch.ones(len(rows), 1))
    share_PT = torch.rand(len(rows), 3)
    share_PT[0, 0] = 0.0
    own = model.companions.own_counts(recent_PJ, item_PT[:, 0])
    state_PD = torch.randn(len(rows), 8)
    losses, slopes = [], []
    for soft in (None, lambda rows: torch.zeros(rows.stop - rows.start, ITEMS)):
        model.zero_grad()
        with patch.object(compact_softmax, "BLOCK_VALUES", data.draw(st.integers(1, 60))):
            loss = tree_cross_entropy(model, state_PD, recent_PJ, TargetMass(item_PT, share_PT, soft, own))
        loss.backward()
        losses.append(loss.item())
        slopes.append(torch.cat([model.alpha_LF.grad, model.bonus_LJ.grad], 1))
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert torch.allclose(*slopes, atol=1e-4)
    with torch.no_grad():
        model.alpha_LF.fill_(0.5)
        taken_off = tree_cross_entropy(model, state_PD, recent_PJ, replace(hard, own=own))
        whole = tree_cross_entropy(model, state_PD, recent_PJ, hard)
    assert whole <= taken_off + 1e-5, "what a row has counted itself can only raise its target"


@given(walks, st.data())
@settings(max_examples=30)
def test_a_path_is_as_likely_as_a_softmax_over_items_has_it(users, data):
    """Where vectors say nothing and all levels weigh evidence alike, items are weighed by their train rows times exp(alpha . f + b), b the
    bonuses of the steps back at which they stand, whatever their semantic IDs; items that share one share it evenly."""
    codes = data.draw(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=ITEMS, max_size=ITEMS))
    options = CompactOptions(hidden=8, positions=STEPS, heads=2)
    model = CompactModel(CompactShape(ITEMS, (3, 3, 3), options, 0, 2, 3), np.array(codes, np.int32)).eval()
    found, rows_N, rng = companions(log_of(users), most=3), np.arange(ITEMS), np.random.default_rng(0)
    near = (
        np.stack([rng.permutation(ITEMS)[:2] for _ in range(ITEMS)]),
        rng.random((ITEMS, 2)).astype(np.float32),
    )
    model.learn_of(popularity_N=rows_N, similar=near, companions=found)
    recent = users[0][-STEPS:][::-1]
    recent_PJ = torch.tensor([recent + [-1] * (STEPS - len(recent))])
    texts_NN, near_NN = np.zeros((ITEMS, ITEMS)), np.zeros((ITEMS, ITEMS))
    np.add.at(texts_NN, (np.arange(ITEMS)[:, None], near[0]), near[1] ** 2 / 5)
    np.add.at(near_NN, (np.arange(ITEMS)[:, None], found.item_NK), found.cosine_NK)
    features = [
        np.log1p(sums(one_NN, some)) for one_NN in (texts_NN, near_NN) for some in (recent[:1], recent)
    ]
    alpha_F, bonus_J = [0.2, 0.4, 0.7, 1.3], data.draw(st.sampled_from([2.0, -9.0])) + np.arange(STEPS) / 10
    bonus_N = np.zeros(ITEMS)
    np.add.at(bonus_N, recent, bonus_J[: len(recent)])
    said_N = sum(alpha * one for alpha, one in zip(alpha_F, features, strict=True)) + bonus_N
    weight_N = (rows_N + SMOOTHING) * np.exp(said_N)
    with torch.no_grad():
        model.alpha_LF.copy_(torch.tensor(alpha_F))
        model.bonus_LJ.copy_(torch.from_numpy(bonus_J))
        nodes = [(torch.zeros(len(head.bias_C), 8), head.bias_C) for head in model.heads]
        log_N = model.item_logs(torch.zeros(1, 8), recent_PJ, nodes)[:, 0].numpy()
    _, leaf_N, size = np.unique(np.array(codes), axis=0, return_inverse=True, return_counts=True)
    share_N = (np.bincount(leaf_N.ravel(), weight_N) / size)[leaf_N.ravel()] / weight_N.sum()
    assert np.allclose(np.exp(log_N), share_N, rtol=1e-3, atol=1e-6)


def test_everything_that_is_no_weight_goes_where_the_model_goes():
    model = CompactModel(
        CompactShape(4, (2, 2), CompactOptions(hidden=8, heads=2), 0, 2, 2),
        np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.int32),
    )
    near = np.ones((4, 2), np.int64), np.ones((4, 2), np.float32)
    model.learn_of(
        popularity_N=np.ones(4),
        similar=near,
        companions=companions(TrainLog(np.zeros(3, np.int32), np.arange(3, dtype=np.int32), 4), most=2),
    )
    assert {buffer.device.type for _, buffer in model.to("meta").named_buffers()} == {"meta"}


def test_a_model_scores_the_same_when_it_is_read_again():
    """Train rows, which weigh the items below a node, are saved with it."""
    codes_NL = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.int32)
    log = TrainLog(np.zeros(4, np.int32), np.arange(4, dtype=np.int32), 4)
    shape = CompactShape(4, (2, 2), CompactOptions(hidden=8, heads=2, own_vectors=True), 0, 0, 3)
    model = CompactModel(shape, codes_NL).eval()
    model.learn_of(popularity_N=np.array([9, 1, 1, 3]), companions=companions(log, most=3))
    again = CompactModel(shape, codes_NL).eval()
    again.load_state_dict(model.state_dict())
    recent_PJ, state_PD = torch.tensor([[1, 0]]), torch.randn(1, 8)
    with torch.no_grad():
        first, second = (one.item_logs(state_PD, recent_PJ, one.nodes()) for one in (model, again))
    assert torch.equal(first, second)


def test_train_rows_of_items_add_up_to_those_of_their_node_exactly():
    """In any order, in float32, so that nothing is left of a node whose items are all looked at."""
    rng = np.random.default_rng(0)
    rows_N = relative_rows(rng.integers(0, 900, 5000)).float()
    sums = {
        float(
            torch.zeros(1).index_add_(
                0, torch.zeros(5000, dtype=torch.long), rows_N[torch.from_numpy(rng.permutation(5000))]
            )
        )
        for _ in range(5)
    }
    assert sums == {float(rows_N.double().sum())} and 0.7 < float(rows_N.mean()) < 1.5
