"""On the same completions the losses and gradients are those of TRL's GRPOTrainer, whose rows and head are the ordinary ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infer.search.prompts import left_pad
from infer.search.tree import search
from infer.search.trie import Trie
from tests import handmade, tiny
from train.policy.logprobs import tree_logprobs
from train.policy.losses import Cells, Clip, loss_kind, policy_loss

SIZES = (6, 5, 4)
GROUP = 4


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A GRPOTrainer of TRL on a tiny model, whose `_compute_loss` is asked; beta is set by hand, without a second model."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model = tiny.model(vocab_size=tiny.TEXT_TOKENS + sum(SIZES)).train()
    model.warnings_issued = {}
    args = GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), use_cpu=True, bf16=False, report_to=[], num_generations=GROUP,
        per_device_train_batch_size=4 * GROUP, max_completion_length=len(SIZES), beta=0.0, gradient_checkpointing=False,
        epsilon=0.2, epsilon_high=0.25,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "x"}] * 4),
        processing_class=handmade.tokenizer("ours"),
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.beta = 0.05
    return trainer


def rollouts(model):
    rng = np.random.default_rng(4)
    sids, vocab = tiny.catalogue(rng, items=60, sizes=SIZES), tiny.vocabulary(SIZES)
    trie, prompts = Trie(sids, vocab), tiny.prompts(rng, rows=4)
    return trie, prompts, search(model.eval(), prompts, trie, GROUP)


def gradient(model):
    found = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo", "dr_grpo"])
@pytest.mark.parametrize("several", [False, True], ids=["first update", "later update"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked groups"])
def test_loss_and_gradient_are_those_of_trl(name, several, masked, theirs):
    """TRL's grpo, gspo and dr_grpo divide by the rollouts of the micro-batch, masked ones too; ours by those that count."""
    model = theirs.model
    trie, prompts, beams = rollouts(model)
    model.train()
    generator = torch.Generator().manual_seed(0)
    shape = beams.codes_BKL.shape
    advantages = torch.randn(shape[:2], generator=generator)
    mask = torch.ones(shape, dtype=torch.bool)
    if masked:
        mask[1], mask[3, 1:] = False, False
    layout = {"space": "full", "temperature": 1.0}
    policy = tree_logprobs(model, trie, prompts, beams, **layout).logps_PGL
    near = lambda: policy.detach() + 0.3 * torch.randn(shape, generator=generator)  # noqa: E731
    old, reference = near() if several else None, near()
    cells = Cells(advantages[..., None], mask)
    kind, counts = loss_kind(name), cells.counts()
    ours = policy_loss(
        policy,
        cells,
        counts,
        kind=kind,
        clip=Clip(0.2, 0.25),
        beta=0.05,
        old_PGL=old,
        reference_PGL=reference,
    )
    ours.loss.backward()
    our_gradient = gradient(model)

    ids, prompt_mask = left_pad(prompts, device="cpu")
    tokens = torch.stack([trie.tokens[level][beams.codes_BKL[..., level]] for level in range(shape[2])], 2)
    inputs = {
        "prompt_ids": ids.repeat_interleave(GROUP, 0),
        "prompt_mask": prompt_mask.repeat_interleave(GROUP, 0),
        "completion_ids": tokens.flatten(0, 1),
        "completion_mask": mask.flatten(0, 1).long(),
        "advantages": advantages.flatten(),
        "ref_per_token_logps": reference.flatten(0, 1),
        "num_items_in_batch": mask.sum(),
    }
    if several:
        inputs["old_per_token_logps"] = old.flatten(0, 1)
    theirs.loss_type = "grpo" if name == "gspo" else name
    theirs.importance_sampling_level = "sequence" if name == "gspo" else "token"
    loss = theirs._compute_loss(model, inputs)
    loss.backward()
    their_gradient = gradient(model)
    share = 1.0 if name == "dapo" else float(mask.any(2).sum()) / (shape[0] * shape[1])
    assert share < 1 or not masked or name == "dapo"
    assert float(ours.loss) * share == pytest.approx(float(loss), abs=1e-5)
    torch.testing.assert_close(our_gradient * share, their_gradient, atol=1e-5, rtol=1e-4)
