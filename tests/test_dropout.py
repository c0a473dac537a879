"""Hooked dropout acts in training mode only, everywhere it should, and leaves the checkpoint alone."""

from __future__ import annotations

import pytest
import torch

from configs.program import InputError
from tests import tiny
from train.supervised.dropout import add_dropout


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
def test_it_drops_in_training_and_nowhere_else(kind):
    plain, dropped = (tiny.model(kind, vocab_size=50) for _ in range(2))
    assert add_dropout(dropped, 0.5) == 1 + 2 * 2  # the embedding, and two parts of each of two blocks
    ids = torch.arange(2, 12)[None]
    assert torch.equal(plain(ids).logits, dropped(ids).logits)
    dropped.train()
    assert not torch.allclose(dropped(ids).logits, dropped(ids).logits)
    assert plain.state_dict().keys() == dropped.state_dict().keys()


def test_impossible_settings_are_refused():
    with pytest.raises(InputError):
        add_dropout(tiny.model(vocab_size=50), 1.0)
    with pytest.raises(InputError, match="no attention"):
        add_dropout(torch.nn.Linear(2, 2), 0.1)
