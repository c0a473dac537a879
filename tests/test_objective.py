"""Group advantages, KL estimate and policy loss against hand arithmetic and autograd."""

from __future__ import annotations

import math

import pytest
import torch

from configs.program import InputError
from train.policy.losses import group_advantages, grpo, k3, loss_function

NAN = float("nan")


def group(*rewards):
    """One group of rollouts with a reward each: [1, G, 1]."""
    return torch.tensor([rewards])[..., None]


def test_advantages_are_group_normalised_with_the_unbiased_deviation():
    found = group_advantages(torch.tensor([[1.0, 0, 0, 0], [2.0, 2, 2, 2]])[..., None])
    assert found.values_PGM[0, :, 0].tolist() == pytest.approx(
        [0.75 / 0.5001] + [-0.25 / 0.5001] * 3, rel=1e-5
    )
    assert found.values_PGM[1, :, 0].tolist() == [0, 0, 0, 0]
    assert found.flat_PM.tolist() == [[False], [True]]
    kept = found.without_flat_groups()
    assert kept.valid_PGM[..., 0].tolist() == [[True] * 4, [False] * 4]
    assert int(found.cells(3)) == 24 and int(kept.cells(3)) == 12


def test_rewards_equal_up_to_rounding_are_a_flat_group_without_advantages():
    rounded = group_advantages(group(0.1 + 0.2, 0.3, 0.3 * (1 + 2e-7)))
    assert rounded.flat_PM.item() and not rounded.values_PGM.any()
    assert not group_advantages(group(1e-9, 2e-9)).flat_PM.item(), "small, but not equal"
    large = torch.tensor(1000.0)
    assert group_advantages(group(large, torch.nextafter(large, large + 1))).flat_PM.item()
    assert group_advantages(group(NAN, NAN)).flat_PM.item(), "no reward is no signal"


def test_rewards_of_levels_are_normalised_level_by_level():
    found = group_advantages(torch.tensor([[[1.0, 5, NAN], [0, 5, 2], [0, 5, 4]]]))
    for level, rewards in enumerate(([1.0, 0, 0], [5.0, 5, 5], [NAN, 2, 4])):
        alone = group_advantages(group(*rewards))
        assert torch.equal(found.values_PGM[..., level], alone.values_PGM[..., 0])
        assert torch.equal(found.valid_PGM[..., level], alone.valid_PGM[..., 0])
    assert found.flat_PM.tolist() == [[False, True, False]]
    assert int(found.cells(3)) == 8 and int(found.without_flat_groups().cells(3)) == 5


def test_a_missing_reward_has_no_advantage_and_no_part_in_the_baseline():
    found, alone = group_advantages(group(1.0, 0, NAN)), group_advantages(group(1.0, 0))
    assert torch.allclose(found.values_PGM[:, :2], alone.values_PGM)
    assert found.values_PGM[0, 2] == 0 and not found.valid_PGM[0, 2]


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
    advantages = group_advantages(rewards[..., None])
    cells = int(advantages.cells(4))
    assert cells == 20
    loss, kl = grpo(policy, reference, advantages, beta=0.1, cells=cells)
    loss.backward()
    # by hand: d/dlogp of -(A * ratio - beta k3) is -(A + beta * (exp(ref - logp) - 1)), over 5 valid rollouts of 4 tokens
    valid = (~rewards.isnan()).float()[..., None]
    slope = -(advantages.values_PGM + 0.1 * ((reference - policy).exp() - 1)).detach() * valid / 20
    (by_hand,) = torch.autograd.grad((policy_again(logits, chosen) * slope).sum(), logits)
    assert torch.allclose(logits.grad, by_hand, atol=1e-6)
    assert float(kl) == pytest.approx(float((k3(reference, policy.detach()) * valid).sum()), rel=1e-5)


def policy_again(logits, chosen):
    return logits.log_softmax(-1).gather(-1, chosen).squeeze(-1)


def test_shares_of_a_step_add_up_to_the_loss_of_the_whole():
    torch.manual_seed(1)
    policy, reference = torch.randn(6, 3, 2), torch.randn(6, 3, 2)
    rewards = torch.randn(6, 3, 1)
    rewards[0, 1], rewards[2], rewards[4] = NAN, NAN, 1.0
    advantages = group_advantages(rewards).without_flat_groups()
    cells = int(advantages.cells(2))
    whole, _ = grpo(policy, reference, advantages, beta=0.1, cells=cells)
    shares = [
        grpo(
            policy[p],
            reference[p],
            group_advantages(rewards[p]).without_flat_groups(),
            beta=0.1,
            cells=cells,
        )[0]
        for p in (slice(0, 1), slice(1, 3), slice(3, 6))
    ]
    assert float(sum(shares)) == pytest.approx(float(whole), rel=1e-5)


def test_losses_go_by_name():
    assert loss_function("grpo") is grpo
    with pytest.raises(InputError, match="unknown loss 'gpro' -> any of grpo"):
        loss_function("gpro")
