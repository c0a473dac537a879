"""Group advantages, KL estimate and policy loss against hand arithmetic and autograd."""

from __future__ import annotations

import math

import pytest
import torch

from train.policy.losses import group_advantages, k3, policy_loss

NAN = float("nan")


def test_advantages_are_group_normalised_with_the_unbiased_deviation():
    found = group_advantages(torch.tensor([[1.0, 0, 0, 0], [2.0, 2, 2, 2]]))
    assert found.values_PG[0].tolist() == pytest.approx([0.75 / 0.5001] + [-0.25 / 0.5001] * 3, rel=1e-5)
    assert found.values_PG[1].tolist() == [0, 0, 0, 0]
    assert found.flat_P.tolist() == [False, True]
    assert found.without_flat_groups().valid_PG.tolist() == [[True] * 4, [False] * 4]


def test_a_missing_reward_has_no_advantage_and_no_part_in_the_baseline():
    found = group_advantages(torch.tensor([[1.0, 0, NAN]]))
    alone = group_advantages(torch.tensor([[1.0, 0]]))
    assert torch.allclose(found.values_PG[:, :2], alone.values_PG)
    assert found.values_PG[0, 2] == 0 and not found.valid_PG[0, 2]


def test_k3_is_non_negative_and_matches_its_formula():
    reference, policy = torch.randn(50), torch.randn(50)
    assert (k3(reference, policy) >= 0).all()
    assert float(k3(torch.tensor(-1.0), torch.tensor(-1.5))) == pytest.approx(math.exp(0.5) - 1.5)


def test_policy_loss_is_the_policy_gradient_plus_kl():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    chosen = torch.randint(5, (2, 3, 4, 1))
    policy = logits.log_softmax(-1).gather(-1, chosen).squeeze(-1)
    reference = policy.detach() + 0.3 * torch.randn(2, 3, 4)
    rewards = torch.tensor([[1.0, 0, 0], [0.0, NAN, 1.0]])
    advantages = group_advantages(rewards)
    loss, kl = policy_loss(policy, reference, advantages, beta=0.1)
    loss.backward()
    # by hand: d/dlogp of -(A * ratio - beta k3) is -(A + beta * (exp(ref - logp) - 1)), over 5 valid rollouts of 4 tokens
    valid = (~rewards.isnan()).float()[..., None]
    slope = -(advantages.values_PG[..., None] + 0.1 * ((reference - policy).exp() - 1)).detach() * valid / 20
    (by_hand,) = torch.autograd.grad((policy_again(logits, chosen) * slope).sum(), logits)
    assert torch.allclose(logits.grad, by_hand, atol=1e-6)
    assert float(kl) == pytest.approx(float((k3(reference, policy.detach()) * valid).sum() / 20), rel=1e-5)


def policy_again(logits, chosen):
    return logits.log_softmax(-1).gather(-1, chosen).squeeze(-1)
