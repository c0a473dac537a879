"""A scheduler's notice while rollouts are drawn; in validations and plain steps: tests/test_safety.py."""

from __future__ import annotations

import signal

import pytest
import torch

from configs.program import Interrupted
from data.store.checkpoints import newest_complete
from tests.test_sid_trainer import flat, trainer
from tests.test_sid_trainer_options import by_rank
from train.policy import sid_trainer
from train.policy.rollouts import roll_out
from train.safety import train_to_the_end


def test_rollouts_are_broken_off_by_a_notice_and_the_run_ends_like_another(tmp_path, monkeypatch):
    """SIGUSR1 as the fourth step rolls out: the checkpoint is that of the third; the resumed run is the uninterrupted one."""

    def run(name, *, at=None):
        calls = []

        def rolled(*args, **kwargs):
            calls.append(1)
            if len(calls) == at:
                signal.raise_signal(signal.SIGUSR1)
            return roll_out(*args, **kwargs)

        monkeypatch.setattr(sid_trainer, "roll_out", rolled)
        one = trainer(tmp_path / name, reward=by_rank, steps=6)
        train_to_the_end(one, tmp_path / name)
        return flat(one.model), len(calls)

    whole, rollouts = run("whole")
    with pytest.raises(Interrupted):
        run("run", at=rollouts // 2 + 1)
    assert newest_complete(tmp_path / "run").name == "checkpoint-3"
    again, _ = run("run")
    assert torch.equal(again, whole)
