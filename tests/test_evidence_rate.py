"""What weighs the evidence of histories learns at a rate of its own: the first step by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs.program import InputError
from infer.models.retrievers.compact_network import CompactModel
from infer.models.retrievers.compact_options import CompactOptions, CompactShape
from rq.stack.snapshots import read_snapshot, write_snapshot
from train.scratch.loop import Run, make_optimizer
from train.scratch.options import EpochOptions


def compact() -> CompactModel:
    codes_NL = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.int32)
    return CompactModel(CompactShape(4, (2, 2), CompactOptions(hidden=8, heads=2), 0, 2, 2), codes_NL)


def steps_of(model: torch.nn.Module, **options: object) -> dict[str, float]:
    """How far each parameter moves in the first step of a run in which every slope is 1: with Adam its learning rate."""
    task = SimpleNamespace(model=model, loss=lambda batch, rng: (sum(p.sum() for p in model.parameters()), 1))
    chosen = EpochOptions(learning_rate=0.01, weight_decay=0.0, **options)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    Run(task, chosen, out=None, seed=0).step_on(None)
    return {
        name: float((before[name] - parameter.detach()).abs().max())
        for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_alphas_and_bonuses_alone_take_longer_steps(optimizer):
    moved = steps_of(compact(), optimizer=optimizer, evidence_rate=10.0)
    quick = {name for name, step in moved.items() if step == pytest.approx(0.1, rel=1e-3)}
    assert quick == {"alpha_LF", "bonus_LJ"}
    assert all(moved[name] == pytest.approx(0.01, rel=1e-3) for name in moved.keys() - quick)
    plain = steps_of(compact(), optimizer=optimizer)
    assert all(step == pytest.approx(0.01, rel=1e-3) for step in plain.values())


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(bad):
    with pytest.raises(InputError, match="loop.evidence_rate"):
        EpochOptions(evidence_rate=bad)


def test_what_weighs_evidence_does_not_decay_with_adamw():
    """Slopes of 0 and a decay of .5: weights of matrices shrink by rate x decay, alphas, bonuses and biases stay."""
    model = compact()
    task = SimpleNamespace(
        model=model, loss=lambda batch, rng: (sum(0 * p.sum() for p in model.parameters()), 1)
    )
    options = EpochOptions(learning_rate=0.01, weight_decay=0.5, optimizer="adamw", evidence_rate=10.0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    Run(task, options, out=None, seed=0).step_on(None)
    for name, parameter in model.named_parameters():
        kept = 1.0 if parameter.ndim <= 1 or name in ("alpha_LF", "bonus_LJ") else 1 - 0.01 * 0.5
        assert torch.allclose(parameter.detach(), before[name] * kept, atol=1e-7), name


def test_a_checkpoint_of_another_model_is_refused_in_one_line(tmp_path):
    """As of a model whose parameters had another order, or other names."""
    model, other = compact(), torch.nn.Linear(3, 3)
    for one in (model, other):
        one.optimizer = make_optimizer(one, EpochOptions(learning_rate=0.01))
        sum(p.sum() for p in one.parameters()).backward()
        one.optimizer.step()
    write_snapshot(tmp_path, 1, model=model, optimizer=model.optimizer, state={"step": 1}, keep=1)
    (found,) = tmp_path.glob("checkpoint-*")
    assert read_snapshot(found, model=compact(), optimizer=None) == {"step": 1}
    with pytest.raises(InputError, match="is no checkpoint of this model"):
        read_snapshot(found, model=other, optimizer=None)
    plain = torch.optim.Adam(model.parameters())  # one group: another order of the parameters
    with pytest.raises(InputError, match="moments of parameter"):
        read_snapshot(found, model=model, optimizer=plain)
