"""Rows of users with long histories as chains that are cut anew in every epoch: what a row is shown, counted with, taught."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs import program
from data.rows import Rows, TrainLog, read_rows
from data.sid import read_sids
from infer.models.sequential import companions as near
from infer.models.sequential import windows
from infer.models.sequential.evidence import HistoryEvidence
from tests.store import ITEMS
from tests.test_sequential import rows_of
from tests.test_train_compact import teacher  # noqa: F401 - a fixture
from train import train_compact
from train.scratch.sequential import TrainRows


def rows_of_walks(walks: list[list[int]], cut: int, order: list[int] | None = None) -> Rows:
    """Every item but the first of each walk, with the newest `cut` before it; users' rows interleaved as `order` says."""
    table = [
        (user, walk[max(0, at - cut) : at], walk[at])
        for user, walk in enumerate(walks)
        for at in range(1, len(walk))
    ]
    users = iter(sorted(range(len(table)), key=lambda row: (order[row] if order else row, row)))
    queues = {user: [row for row in table if row[0] == user] for user in range(len(walks))}
    return rows_of([queues[table[place][0]].pop(0) for place in users])


def shown(made: windows.RowWindows) -> dict[int, tuple[list[int], int]]:
    """{example: (items up to its target's place, target)}; every example once."""
    found = {}
    for a, b in zip(made.offsets, made.offsets[1:], strict=False):
        for place in range(a, b):
            if made.target_I[place] != windows.NONE:
                assert int(made.example_I[place]) not in found
                found[int(made.example_I[place])] = (
                    made.item_I[a : place + 1].tolist(),
                    int(made.target_I[place]),
                )
    return found


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 6))
def test_every_row_is_learned_once_with_the_newest_of_its_history(seed, reach, cut):
    """Histories are the newest `cut` items, windows of at most as many: what stands before a target is the end of its row's history."""
    rng = np.random.default_rng(seed)
    walks = [rng.integers(0, 4, rng.integers(2, 14)).tolist() for _ in range(5)]
    total = sum(map(len, walks)) - len(walks)
    rows = rows_of_walks(walks, cut, rng.integers(0, 9, total).tolist())
    chains, longest = windows.row_chains(rows)
    assert longest == np.diff(rows.offsets).max() and chains.rows_W.sum() == len(rows)
    made = windows.cut_windows(chains, min(reach, longest), rng)
    assert np.diff(made.offsets).max() <= min(reach, longest) and (made.rows_W > 0).all()
    found, histories = shown(made), np.split(rows.history_H, rows.offsets[1:-1])
    assert len(found) == len(rows)
    for example, history, target in zip(rows.example_ids_R, histories, rows.target_R, strict=True):
        items, asked = found[int(example)]
        assert asked == target and items == history.tolist()[-len(items) :]


def test_a_chain_is_cut_at_another_place_in_every_epoch():
    walk = list(range(40))
    chains, longest = windows.row_chains(rows_of_walks([walk], 8))
    assert len(chains) == 1 and longest == 8 and chains.item_I.tolist() == walk[:-1]
    rng = np.random.default_rng(0)
    cuts = [windows.cut_windows(chains, 8, rng).offsets.tolist() for _ in range(60)]
    assert {cut[1] for cut in cuts} == set(range(1, 9)), "the first window has 1 to 8 items"
    assert all(set(np.diff(cut[1:-1])) == {8} for cut in cuts)


def test_rows_that_only_look_alike_are_chains_of_their_own():
    """Another user, another history of that length, a shorter one: none of them goes on with the row before."""
    rows = rows_of(
        [(0, [1, 2], 3), (1, [2, 3], 4), (2, [5, 6], 3), (2, [2, 3], 4), (3, [1, 2], 3), (3, [3], 4)]
    )
    chains, _ = windows.row_chains(rows)
    assert len(chains) == 6 and chains.rows_W.tolist() == [1] * 6
    both, _ = windows.row_chains(rows_of([(0, [1, 2], 3), (0, [2, 3], 4)]))
    assert both.item_I.tolist() == [1, 2, 3] and both.target_I.tolist() == [-1, 3, 4]
    tail = windows.cut_windows(
        windows.row_chains(rows_of([(0, [7, 8, 9], 1)]))[0], 2, np.random.default_rng(0)
    )
    assert tail.rows_W.tolist() == [1], "a window without a target is left out"


def test_times_begin_with_a_window():
    """As a history's, the first item's gap is unknown; the others are those of the row alone."""
    rows = rows_of_walks([list(range(12))], 4)
    rng = np.random.default_rng(1)
    since_N = np.cumsum(rng.integers(0, 40, 12)[::-1])[::-1].astype(float)  # days before the end
    ages = since_N[rows.history_H] - since_N[rows.history_H[rows.offsets[1:] - 1]][rows.history_row_H]
    rows = replace(rows, age_H=ages)
    alone = windows.single_windows(rows)
    gap_of = {
        (int(example), int(item)): int(gap)
        for w, example in enumerate(alone.example_I[alone.offsets[1:] - 1])
        for item, gap in zip(
            alone.item_I[alone.offsets[w] : alone.offsets[w + 1]],
            alone.gap_I[alone.offsets[w] : alone.offsets[w + 1]],
            strict=True,
        )
    }
    assert len(set(alone.gap_I.tolist())) > 3
    made = windows.cut_windows(windows.row_chains(rows)[0], 4, rng)
    for a, b in zip(made.offsets, made.offsets[1:], strict=False):
        assert made.gap_I[a] == 0
        for place in range(a + 1, b):
            assert made.gap_I[place] == gap_of[int(made.example_I[place]), int(made.item_I[place])]


@given(st.integers(0, 1000), st.integers(1, 14))
def test_a_row_knows_all_that_it_was_counted_with(seed, cut):
    """Whatever its window shows: the newest REACH items of its user up to there."""
    rng = np.random.default_rng(seed)
    walks = [rng.integers(0, 5, rng.integers(2, 30)).tolist() for _ in range(3)]
    chains, longest = windows.row_chains(rows_of_walks(walks, cut))
    made = windows.cut_windows(chains, longest, rng)
    if len(made) > 1:
        made = made.take(rng.permutation(len(made)))
    batch = windows.padded(windows.joined(made, made.take(np.arange(0))), np.arange(len(made)))
    walked = [
        walk[:at] for walk in walks for at in range(1, len(walk))
    ]  # in the order of the examples, from 50
    for example, counted in zip(batch.example_P, batch.counted_PC, strict=True):
        newest = walked[int(example) - 50][: -near.REACH - 1 : -1]
        assert counted.tolist() == newest + [-1] * (near.REACH - len(newest))
    plain = windows.padded(windows.row_windows(rows_of_walks(walks, cut)), np.arange(1))
    assert plain.counted_PC is None, "a row that is shown whole"


@pytest.mark.parametrize("items", [[0, 1, 2, 0], [2, 0], [0]])
def test_what_a_row_counted_is_taken_off_whatever_is_shown_of_it(items):
    """One user walks 0 1 2 0 and then 3: but for that row nothing is near 3, so to the row nothing is."""
    walk = [0, 1, 2, 0, 3]
    log = TrainLog(np.zeros(5, np.int32), np.array(walk, np.int32), 6)
    evidence = HistoryEvidence(6, 10, similar=0, copy=False, companions=5)
    evidence.companions.learn_of(near.companions(log, most=5))
    recent_PJ, counted_PC = torch.tensor([items[::-1]]), torch.tensor([[0, 2, 1, 0]])
    own = evidence.own_counts(recent_PJ, torch.tensor([3]), counted_PC)
    for feature_PN in evidence.features(recent_PJ, own):
        assert abs(float(feature_PN[0, 3])) < 1e-6
    if len(items) < 4:
        less = evidence.features(recent_PJ, evidence.own_counts(recent_PJ, torch.tensor([3])))
        assert float(less[0][0, 3]) > 0.1, "which what is shown does not tell"


def test_what_a_trainer_learns_of_rows():
    """A chain of every user, no window longer than the longest history."""
    walks = [[3, 1, 4, 1, 5, 9, 2, 6], [7, 8, 2, 3, 5]]
    rows = rows_of_walks(walks, 3)
    learned = TrainRows.of_chains(rows)
    assert len(learned.windows) == 2 and learned.reach == 3
    assert learned.windows.item_I.tolist() == walks[0][:-1] + walks[1][:-1]
    assert max(np.diff(learned.of_epoch(np.random.default_rng(0)).offsets)) == 3
    assert len(TrainRows.of_rows(rows).windows) == 2 + 4 + 1, "else a window for each row that was cut"


def test_histories_are_made_of_what_an_epoch_shows(chain, teacher, tmp_path):  # noqa: F811
    """Cut rows: a chain of every user's, no window longer than the longest history, made histories of the windows that they are cut into."""
    rows, _ = windows.newest(read_rows(chain.data, "train", num_items=ITEMS), 3)
    sids = read_sids(chain.sids)
    flags = ["--data", chain.data, "--sids", chain.sids, "--output_dir", tmp_path / "m"]
    flags += ["--windows", "cut", "--model.positions", 3]
    args, _ = program.parse(train_compact.TrainCompactArgs, [str(flag) for flag in flags])
    found = train_compact.learned_rows(args, rows, sids)
    assert found.reach == 3 and len(found.windows) == len(set(rows.users_R.tolist())) and found.made is None
    flags += ["--soft_targets.teacher", teacher, "--augment.ratio", "0.5", "--augment.drop", "0"]
    args, _ = program.parse(train_compact.TrainCompactArgs, [str(flag) for flag in flags])
    found = train_compact.learned_rows(args, rows, sids)
    of_epoch = windows.cut_windows(found.windows, 3, np.random.default_rng([0, 2]))
    made, _, ratio = found.made
    assert len(made) == len(of_epoch) > len(found.windows) and ratio == 0.5
    assert np.diff(made.offsets).max() == 3 and len(set(made.example_I.tolist())) == len(made.example_I)
    assert made.example_I.min() > rows.example_ids_R.max()
    epoch = found.of_epoch(np.random.default_rng(0))
    assert set(rows.example_ids_R.tolist()) <= set(epoch.example_I.tolist())
