"""How often an item of the history comes again, said by valid rows: one number is added to the bonuses of a trained model."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.rows import Rows
from infer.models.contract import target_places
from infer.models.retrievers.compact import CompactScorer
from infer.models.retrievers.compact_network import CompactModel
from infer.models.retrievers.compact_options import CompactOptions, CompactShape
from infer.models.sequential import repeats as shifts
from infer.models.sequential.model import SequentialModel
from infer.models.sequential.options import SasRec, ScorerOptions, SequentialShape
from infer.models.sequential.scoring import SequentialScorer
from train.scratch import repeats
from train.scratch.compact import CompactRows, CompactTask
from train.scratch.loop import Run
from train.scratch.options import EpochOptions, ItemLoss
from train.scratch.sequential import SequentialTask

ITEMS, STEPS = 8, 3


def rows_of(histories: list[list[int]], targets: list[int]) -> Rows:
    offsets = np.cumsum([0, *map(len, histories)])
    items = np.array([item for history in histories for item in history], np.int32)
    numbers = np.arange(len(targets))
    return Rows(numbers, numbers.astype(np.int32), offsets, items, np.array(targets, np.int32))


def drawn_rows(count: int, *, repeating: float, seed: int = 0) -> Rows:
    """Histories of one to three items; this share of targets stands in them."""
    rng = np.random.default_rng(seed)
    histories = [rng.permutation(ITEMS)[: 1 + row % STEPS].tolist() for row in range(count)]
    again = rng.random(count) < repeating
    targets = [
        int(rng.choice(history) if is_again else rng.choice(np.setdiff1d(np.arange(ITEMS), history)))
        for history, is_again in zip(histories, again, strict=True)
    ]
    return rows_of(histories, targets)


def sasrec() -> SequentialModel:
    torch.manual_seed(0)
    options = ScorerOptions(hidden=8, positions=STEPS, copy=True, bias="popularity")
    model = SequentialModel(
        SequentialShape(ITEMS, "sasrec", options, SasRec(layers=1, heads=1), "none", 0, 0, 0)
    )
    model.learn_of(popularity_N=np.arange(ITEMS))
    return model


def compact(**options: object) -> CompactModel:
    torch.manual_seed(0)
    codes_NL = np.array([[item // 3, item % 3] for item in range(ITEMS)], np.int32)
    chosen = CompactOptions(hidden=8, heads=2, positions=STEPS, **options)
    model = CompactModel(CompactShape(ITEMS, (3, 3), chosen, 0, 0, 0), codes_NL)
    model.learn_of(popularity_N=np.arange(ITEMS))
    return model


def task_of(model: torch.nn.Module, valid: Rows, *, rows: int = 16) -> SequentialTask | CompactTask:
    nothing = SimpleNamespace(example_I=np.zeros(0, np.int64))
    if isinstance(model, SequentialModel):
        return SequentialTask(
            model, SimpleNamespace(windows=nothing), valid, loss=ItemLoss(kind="ce"), rows=rows
        )
    return CompactTask(model, CompactRows(nothing), valid, rows=rows)


def scores(model: torch.nn.Module, rows: Rows) -> np.ndarray:
    return (SequentialScorer if isinstance(model, SequentialModel) else CompactScorer)(model).score(rows)


def mean_ndcg(model: torch.nn.Module, rows: Rows, k: int = 3) -> float:
    """Written out."""
    score_RN, found = scores(model, rows), []
    for one_N, target in zip(score_RN, rows.target_R.tolist(), strict=True):
        before = (one_N > one_N[target]).sum() + ((one_N == one_N[target]).sum() - 1) / 2
        found.append(1 / np.log2(before + 2) if before < k else 0.0)
    return float(np.mean(found))


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Weights as if something had been learned."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return model.eval()


@pytest.mark.parametrize("made", [sasrec, compact])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_every_shift_is_measured_as_if_the_model_had_it(made, share):
    """Means of NDCG@3 beside those of the model with the shift in its bonuses: exact for a softmax over items. A tree is
    only near one; what is chosen for it is near the best of its own."""
    model, valid = spread(made()), drawn_rows(200, repeating=share)
    start = [bonus.detach().clone() for bonus in repeats.bonuses_of(model)]
    found = task_of(model, valid).settle("ndcg@3")
    shift, means = found["shift"], found["ndcg@3"]
    for bonus, first in zip(repeats.bonuses_of(model), start, strict=True):
        assert torch.allclose(bonus - first, torch.full_like(first, shift), atol=1e-6)
    assert list(means) == [str(one) for one in shifts.SHIFTS.tolist()]
    real = {}
    for one in means:
        with torch.no_grad():
            for bonus, first in zip(repeats.bonuses_of(model), start, strict=True):
                bonus.copy_(first + float(one))
        real[one] = mean_ndcg(model, valid)
    assert real == pytest.approx(means, abs=1e-6 if made is sasrec else 0.08)
    assert real["0.0"] == pytest.approx(means["0.0"], abs=1e-6)
    assert real[str(shift)] > max(real.values()) - 0.04 and real[str(shift)] >= real["0.0"]
    assert np.sign(shift) == (1 if share == 0.9 else -1 if share == 0 else np.sign(shift))


def test_measures_by_hand():
    """Scores .5, .4, .3, .2 of four items; items 2 and 3 are the history, item 3 twice. By +.5 the history stands first: its target (2) is
    second behind item 3 (1.2), the other target (0) third."""
    score_RN = np.tile(np.array([0.5, 0.4, 0.3, 0.2], np.float32), (2, 1))
    rows = rows_of([[3, 2, 3], [3, 2, 3]], [2, 0])
    measure_SR = shifts.measured(score_RN, rows, positions=10, by="ndcg@10")
    at = shifts.SHIFTS.tolist().index
    ranks = {0.0: (3, 1), 0.5: (2, 3), -0.5: (3, 1), 4.0: (2, 3)}
    for shift, pair in ranks.items():
        assert measure_SR[at(shift)] == pytest.approx([1 / np.log2(rank + 1) for rank in pair], abs=1e-9), (
            shift
        )
    read_SR = shifts.measured(score_RN, rows, positions=1, by="hr@1")  # only the newest item, 3, is read
    assert read_SR[at(0.5)].tolist() == [0, 0] and read_SR[at(0.0)].tolist() == [0, 1]
    assert score_RN[0].tolist() == pytest.approx([0.5, 0.4, 0.3, 0.2]), "the scores are not touched"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_places_are_those_of_a_ranking_again_for_every_shift(seed):
    """Ties, items that stand twice, histories longer than what is read, none at all."""
    rng = np.random.default_rng(seed)
    count, size, positions = int(rng.integers(1, 9)), int(rng.integers(2, 9)), int(rng.integers(1, 5))
    score_RN = (rng.integers(-6, 7, (count, size)) / 4).astype(np.float32)
    histories = [rng.integers(0, size, rng.integers(0, 7)).tolist() for _ in range(count)]
    rows = rows_of(histories, rng.integers(0, size, count).tolist())
    for shift, before_R, group_R in zip(
        shifts.SHIFTS, *shifts.places(score_RN, rows, positions), strict=True
    ):
        moved_RN = score_RN.copy()
        for row, history in enumerate(histories):
            for item in history[-positions:]:
                moved_RN[row, item] += shift
        placed = target_places(moved_RN, rows.target_R)
        assert placed.before_R.tolist() == before_R.tolist() and placed.group_R.tolist() == group_R.tolist()


@pytest.mark.parametrize("wins, lost", [(3, 2), (12, 2), (4, 1)])
def test_a_shift_that_is_better_by_chance_is_not_taken(wins, lost):
    """Of 100 rows the farthest shift finds so many more, and loses some: 1 of 100 is below its standard error of .022, 10 and 3 (.022) are not."""
    measure_SR = np.zeros((len(shifts.SHIFTS), 100))
    measure_SR[:, wins : wins + lost] = 1.0
    measure_SR[-1] = 0.0
    measure_SR[-1, :wins] = 1.0
    assert shifts.chosen(measure_SR) == (0.0 if wins == 3 else 4.0)


@pytest.mark.parametrize("rows", [1, 2, 10, 11, 30, 4533])
def test_one_row_decides_nothing(rows):
    """Its lead is its standard error, whatever rounding makes of them."""
    measure_SR = np.zeros((len(shifts.SHIFTS), rows))
    measure_SR[-1, rows // 2] = 1.0
    assert shifts.chosen(measure_SR) == 0.0


def test_of_equal_shifts_the_nearest_is_taken():
    assert shifts.chosen(np.ones((len(shifts.SHIFTS), 5))) == 0.0
    measure_SR = (shifts.SHIFTS >= 1.5)[:, None] * np.ones(5)
    assert shifts.chosen(measure_SR) == 1.5
    measure_SR = (np.abs(shifts.SHIFTS) == 1)[:, None] * np.ones(50)
    measure_SR[shifts.SHIFTS == -1, :1] = 0.0
    assert shifts.chosen(measure_SR) == 1.0, "of two that are as near the better one"


@pytest.mark.parametrize("made", [sasrec, compact])
def test_it_does_not_depend_on_how_rows_are_cut(made, monkeypatch):
    valid, found = drawn_rows(90, repeating=0.9), []
    for rows in (1, 7, 1000):
        monkeypatch.setattr(shifts, "block_rows", lambda size, rows=rows: rows)
        found.append(task_of(spread(made()), valid).settle("hr@2"))
    assert found[0] == found[1] == found[2] and found[0]["shift"] > 0


def test_rows_without_history_and_both_paths_of_a_generator():
    some = drawn_rows(60, repeating=0.9)
    mixed = rows_of(
        [
            part
            for row in range(60)
            for part in (some.history_H[some.offsets[row] : some.offsets[row + 1]].tolist(), [])
        ],
        [target for row in range(60) for target in (int(some.target_R[row]), 0)],
    )
    with_them, without = (task_of(spread(sasrec()), rows).settle("hr@2") for rows in (mixed, some))
    assert with_them["shift"] == without["shift"] > 0
    model, valid = spread(compact(item_path=0.5)), drawn_rows(200, repeating=0.9)
    before, start = mean_ndcg(model, valid), [bonus.detach().clone() for bonus in repeats.bonuses_of(model)]
    shift = task_of(model, valid).settle("ndcg@3")["shift"]
    moved = [bonus - first for bonus, first in zip(repeats.bonuses_of(model), start, strict=True)]
    assert len(moved) == 2 and all(torch.allclose(one, torch.full_like(one, shift)) for one in moved)
    assert shift > 0 and mean_ndcg(model, valid) > before


def test_a_run_settles_where_it_is_asked_to(tmp_path):
    """The best state is chosen before, and the facts tell both."""
    facts, bonus = {}, {}
    for choice in ("train", "valid"):
        model = spread(sasrec())
        task = task_of(model, drawn_rows(200, repeating=0.9))
        task.batches = lambda epoch, rng: [0]
        task.loss = lambda batch, rng, model=model: (sum(p.sum() for p in model.parameters()) * 0, 1)
        out = _Folder(tmp_path / choice)
        options = EpochOptions(epochs=1, repeats=choice, select_by="hr@10")
        facts[choice] = Run(task, options, out=out, seed=0).to_the_end()
        bonus[choice] = model.evidence.bonus_J.detach()
        assert not list(out.path.glob("best*"))
    assert "repeats" not in facts["train"]
    shift = facts["valid"]["repeats"]["shift"]
    assert facts["valid"]["best_hr@10"] == facts["train"]["best_hr@10"]
    assert facts["valid"]["settled_hr@10"] == pytest.approx(
        facts["valid"]["repeats"]["hr@10"][str(shift)], abs=1e-6
    )
    assert torch.allclose(bonus["valid"] - bonus["train"], torch.full((STEPS,), shift), atol=1e-6)
    json.dumps(facts)


def test_a_shift_that_makes_a_tree_worse_is_taken_back(tmp_path):
    """Items in pairs that share an ID, targets the other one of the pair: what is promised to the item itself goes to both."""
    codes_NL = np.array([[item // 4, item // 2 % 2] for item in range(ITEMS)], np.int32)
    model = CompactModel(
        CompactShape(ITEMS, (2, 2), CompactOptions(hidden=8, heads=2, positions=STEPS), 0, 0, 0), codes_NL
    )
    model.learn_of(popularity_N=np.ones(ITEMS))
    # All alike but for the bonus: the pair stands first in random order, and 1 is promised to the other one.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.bonus_LJ += 0.25
    newest_R = np.random.default_rng(0).integers(0, ITEMS, 200).tolist()
    task = task_of(model.eval(), rows_of([[item] for item in newest_R], [item ^ 1 for item in newest_R]))
    weights = {name: part.clone() for name, part in model.state_dict().items()}
    task.batches = lambda epoch, rng: [0]
    task.loss = lambda batch, rng: (sum(p.sum() for p in model.parameters()) * 0, 1)
    options = EpochOptions(epochs=1, repeats="valid", weight_decay=0.0)
    facts = Run(task, options, out=_Folder(tmp_path / "m"), seed=0).to_the_end()
    promised = facts["repeats"]["ndcg@10"]
    assert facts["repeats"]["taken_back"] == -0.5 and facts["repeats"]["shift"] == 0.0
    assert promised["-0.5"] == 1 and promised["0.0"] == pytest.approx((1 + 1 / np.log2(3)) / 2, abs=1e-6)
    assert facts["settled_ndcg@10"] == facts["best_ndcg@10"] == pytest.approx(promised["0.0"], abs=1e-6)
    assert all(torch.equal(part, weights[name]) for name, part in model.state_dict().items())


class _Folder:
    """As much of an output as a run needs."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path, self.resuming, self.counts = path, False, {}

    def write_text(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    def replacing(self, name: str) -> nullcontext[Path]:
        return nullcontext(self.path / name)
