"""Advantages, KL estimates and losses against hand arithmetic, autograd and exact expectations."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from configs.program import InputError
from train.policy.advantages import group_advantages, sibling_advantages
from train.policy.losses import (
    LOSSES,
    Cells,
    Clip,
    expected_reward,
    kl_estimate,
    loss_kind,
    policy_loss,
    preference_loss,
    target_loss,
)

NAN = float("nan")


def group(*rewards):
    """One group of rollouts with a reward each: [1, G, 1]."""
    return torch.tensor([rewards])[..., None]


def cells_of(advantages, levels):
    """Every token of a rollout with a reward counts."""
    return Cells(advantages.values_PGM, advantages.valid_PGM.expand(-1, -1, levels), None)


def test_advantages_are_group_normalised_with_the_unbiased_deviation():
    found = group_advantages(torch.tensor([[1.0, 0, 0, 0], [2.0, 2, 2, 2]])[..., None])
    assert found.values_PGM[0, :, 0].tolist() == pytest.approx(
        [0.75 / 0.5001] + [-0.25 / 0.5001] * 3, rel=1e-5
    )
    assert found.values_PGM[1, :, 0].tolist() == [0, 0, 0, 0]
    assert found.flat_PM.tolist() == [[False], [True]]
    kept = found.without_flat_groups()
    assert kept.valid_PGM[..., 0].tolist() == [[True] * 4, [False] * 4]


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
    assert int(found.valid_PGM.sum()) == 8 and int(found.without_flat_groups().valid_PGM.sum()) == 5


def test_a_missing_reward_has_no_advantage_and_no_part_in_the_baseline():
    found, alone = group_advantages(group(1.0, 0, NAN)), group_advantages(group(1.0, 0))
    assert torch.allclose(found.values_PGM[:, :2], alone.values_PGM)
    assert found.values_PGM[0, 2] == 0 and not found.valid_PGM[0, 2]


def test_a_floor_keeps_small_differences_small():
    small = group_advantages(group(0.03, 0, 0, 0), floor=0.26).values_PGM[0, :, 0]
    assert small[0] == pytest.approx(0.0225 / 0.2601, rel=1e-3)
    free = group_advantages(group(0.03, 0, 0, 0)).values_PGM[0, :, 0]
    assert free[0] == pytest.approx(0.0225 / 0.0151, rel=1e-2)
    large = group_advantages(group(1.0, 0, 0, 0), floor=0.26).values_PGM
    assert torch.equal(large, group_advantages(group(1.0, 0, 0, 0)).values_PGM), "no floor above it"


def test_other_baselines_and_scales():
    loo = group_advantages(group(1.0, 0, NAN, 0, 0), baseline="leave_one_out", scale="none")
    assert loo.values_PGM[0, :, 0].tolist() == pytest.approx([1, -1 / 3, 0, -1 / 3, -1 / 3])
    whole = group_advantages(group(1.0, 0, 0, 0), scale="batch", batch_std=2.0).values_PGM[0, :, 0]
    assert whole.tolist() == pytest.approx([0.75 / 2.0001] + [-0.25 / 2.0001] * 3)
    weighted = group_advantages(group(1.0, 0, 0), scale="none", weights_PG=torch.tensor([[2.0, 1, 1]]))
    assert weighted.values_PGM[0, :, 0].tolist() == pytest.approx([0.5, -0.5, -0.5])


def test_siblings_are_compared_under_the_same_prefix():
    codes = torch.tensor([[[1, 2], [1, 3], [4, 5]]])
    found = sibling_advantages(group(1.0, 0, 0), codes).values_PGM[0]
    spread = math.sqrt(0.125) + 1e-4
    assert found[:, 0].tolist() == pytest.approx([0.25 / spread, 0.25 / spread, -0.25 / spread])
    assert found[:, 1].tolist() == pytest.approx(
        [0.5 / (math.sqrt(0.5) + 1e-4), -0.5 / (math.sqrt(0.5) + 1e-4), 0]
    )
    # a sibling counts once, however many rollouts go through it; a missing reward counts nowhere
    more = torch.tensor([[[1, 2], [1, 2], [1, 2], [4, 5], [4, 6]]])
    found = sibling_advantages(group(1.0, 1, 1, 0, NAN), more, scale="none").values_PGM[0]
    assert found[:, 0].tolist() == pytest.approx([0.5, 0.5, 0.5, -0.5, 0])
    assert not found[:, 1].any()
    levels = torch.tensor([[[0.0, 5], [2, 7], [4, 9]]])
    found = sibling_advantages(levels, torch.tensor([[[0, 0], [0, 1], [1, 0]]]), scale="none").values_PGM[0]
    assert found[:, 0].tolist() == pytest.approx([-1.5, -1.5, 1.5]), "each level has its own rewards"
    assert found[:, 1].tolist() == pytest.approx([-1, 1, 0])


def test_kl_estimates_match_their_formulas():
    reference, policy = torch.randn(50), torch.randn(50)
    assert (kl_estimate(reference, policy) >= 0).all()
    assert float(kl_estimate(torch.tensor(-1.0), torch.tensor(-1.5))) == pytest.approx(math.exp(0.5) - 1.5)
    assert float(kl_estimate(torch.tensor(-1.0), torch.tensor(-1.5), "k1")) == -0.5


def drawn(*, seed=0, masked=True):
    """(logits, chosen, rewards, mask [2, 3, 4]) of two groups of three rollouts of four tokens."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 4, 5, generator=generator, requires_grad=True)
    chosen = torch.randint(5, (2, 3, 4, 1), generator=generator)
    rewards = torch.tensor([[1.0, 0, 0], [0.0, NAN, 1.0]])
    mask = (~rewards.isnan())[..., None].expand(2, 3, 4).clone()
    if masked:
        mask[0, 1, :2] = False
    return logits, chosen, rewards, mask


def logps(logits, chosen):
    return logits.log_softmax(-1).gather(-1, chosen).squeeze(-1)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("expected", "sdpo")])
@pytest.mark.parametrize("kl", ["k1", "k3"])
@pytest.mark.parametrize("corrected", [True, False])
def test_a_first_update_is_the_policy_gradient_plus_kl(name, kl, corrected):
    """By hand: d/dlogp of -(A ratio - beta KL) is -(A - beta KL'), averaged as the name says; ratios are 1.

    Corrected, beta KL ratio has the slope beta (KL' + KL).
    """
    logits, chosen, rewards, mask = drawn()
    kind, policy = loss_kind(name), logps(logits, chosen)
    reference = policy.detach() + 0.3 * torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    advantages = group_advantages(rewards[..., None], baseline=kind.baseline, scale=kind.scale)
    cells = Cells(advantages.values_PGM, mask)
    counts = cells.counts()
    assert counts.tolist() == [18, 5, 2]
    found = policy_loss(
        policy,
        cells,
        counts,
        kind=kind,
        clip=Clip(),
        beta=0.1,
        kl=kl,
        corrected=corrected,
        reference_PGL=reference,
    )
    found.loss.backward()
    d = (reference - policy).detach()
    slope_kl = torch.ones_like(d) if kl == "k1" else 1 - d.exp()
    length = mask.sum(2, keepdim=True).clamp(min=1)
    over = {"tokens": 18, "rollouts": 5 * length, "length": 5 * 4, "sums": 5}[kind.average]
    cost = -advantages.values_PGM.expand(2, 3, 4)
    estimate = kl_estimate(reference, policy.detach(), kl) * mask
    through_ratio = cost + 0.1 * estimate * corrected
    if name == "gspo":  # the ratio is that of the rollout: each of its tokens has the mean of the slopes
        through_ratio = ((through_ratio * mask).sum(2, keepdim=True) / length).expand(2, 3, 4)
    slope = (through_ratio + 0.1 * slope_kl) * mask / over
    (by_hand,) = torch.autograd.grad((logps(logits, chosen) * slope).sum(), logits)
    torch.testing.assert_close(logits.grad, by_hand, atol=1e-6, rtol=1e-5)
    value = (cost + 0.1 * estimate) * mask / over
    assert float(found.loss) == pytest.approx(float(value.sum().detach()), rel=1e-5)
    assert not found.clipped_PGL.any()


def test_later_updates_are_clipped_low_and_high_and_both_ways():
    old = torch.zeros(1, 4, 1)
    policy = torch.tensor([0.5, 1.5, 0.5, 4.0]).log()[None, :, None].requires_grad_()
    cells = Cells(torch.tensor([1.0, 1.0, -1.0, -1.0])[None, :, None], torch.ones(1, 4, 1, dtype=torch.bool))
    found = policy_loss(
        policy, cells, cells.counts(), kind=loss_kind("dapo"), clip=Clip(0.2, 0.3, 3.0), old_PGL=old
    )
    # ratio .5 with A 1 is free; 1.5 is clipped at 1.3; .5 with A -1 at .8; 4 with A -1 is bounded by delta 3
    assert float(found.loss) == pytest.approx((-0.5 - 1.3 + 0.8 + 3.0) / 4)
    found.loss.backward()
    assert policy.grad.flatten().tolist() == pytest.approx([-0.5 / 4, 0, 0, 0])
    assert found.clipped_PGL.flatten().tolist() == [False, True, True, False]


def test_shares_of_a_step_add_up_to_the_loss_of_the_whole():
    torch.manual_seed(1)
    policy, reference = torch.randn(6, 3, 2), torch.randn(6, 3, 2)
    rewards = torch.randn(6, 3, 1)
    rewards[0, 1], rewards[2], rewards[4] = NAN, NAN, 1.0

    def share(part, name, counts):
        cells = cells_of(group_advantages(rewards[part]).without_flat_groups(), 2)
        counts = cells.counts() if counts is None else counts
        return counts, policy_loss(
            policy[part],
            cells,
            counts,
            kind=loss_kind(name),
            clip=Clip(),
            beta=0.1,
            reference_PGL=reference[part],
        ).loss

    for name in ("grpo", "dapo", "gspo", "dr_grpo", "rloo"):
        counts, whole = share(slice(None), name, None)
        shares = [share(p, name, counts)[1] for p in (slice(0, 1), slice(1, 3), slice(3, 6))]
        assert float(sum(shares)) == pytest.approx(float(whole), rel=1e-5), name


def test_the_sampled_gradient_is_that_of_the_expected_reward_in_expectation():
    """Five items of a two-level catalogue: every pair of draws, each with its probability, against the exact gradient."""
    codes = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]])
    rewards = torch.tensor([0.3, 1.0, 0.0, -0.5, 0.2])
    first, second = torch.randn(2, requires_grad=True), torch.randn(2, 3, requires_grad=True)

    def scores():
        """Log-probabilities float32 [1, F, L] of all items: the second code's among the legal ones of the first."""
        legal = torch.tensor([[True, True, False], [True, True, True]])
        below = second.masked_fill(~legal, float("-inf")).log_softmax(1)
        return torch.stack([first.log_softmax(0)[codes[:, 0]], below[codes[:, 0], codes[:, 1]]], 1)[None]

    exact = expected_reward(scores(), rewards[None], 1)
    assert float(exact.loss) == pytest.approx(-float((scores().sum(2).exp() * rewards).sum()), rel=1e-5)
    exact_grads = torch.autograd.grad(exact.loss, (first, second))
    chance = scores().sum(2).exp().detach()[0]
    total = [torch.zeros(2), torch.zeros(2, 3)]
    for pair in itertools.product(range(5), repeat=2):
        at = list(pair)
        advantages = group_advantages(rewards[None, at, None], baseline="leave_one_out", scale="none")
        cells = cells_of(advantages, 2)
        loss = policy_loss(scores()[:, at], cells, cells.counts(), kind=loss_kind("rloo"), clip=Clip()).loss
        for sum_, part in zip(total, torch.autograd.grad(loss, (first, second)), strict=True):
            sum_ += float(chance[at].prod()) * part
    for sampled, whole in zip(total, exact_grads, strict=True):
        torch.testing.assert_close(sampled, whole, atol=1e-6, rtol=1e-4)


def test_the_expected_reward_knows_missing_items_and_the_exact_kl():
    logits = torch.tensor([[0.4, 0.1, -0.3]], requires_grad=True)
    policy = logits.log_softmax(1)[..., None]
    reference = torch.tensor([[-1.0, -1.2, -1.1]])[..., None]
    rewards = torch.tensor([[1.0, NAN, 0.5]])
    found = expected_reward(policy, rewards, 2, beta=0.1, reference_PFL=reference)
    p, q = policy.detach()[0, :, 0], reference[0, :, 0]
    shares = p[[0, 2]].exp() / p[[0, 2]].exp().sum()
    value = float(shares @ (rewards[0, [0, 2]] - 0.1 * (p - q)[[0, 2]])) / 2
    assert float(found.loss) == pytest.approx(-value, rel=1e-5)
    found.loss.backward()
    assert logits.grad.isfinite().all() and logits.grad.abs().sum() > 0


def test_a_constant_added_to_the_rewards_of_some_items_moves_nothing_to_or_from_the_others():
    """Two of three items, rewards far below 0, as logs of probabilities are: the third neither gains nor loses by it."""
    grads = []
    for shift in (0.0, -20.0):
        logits = torch.tensor([0.4, 0.1, -0.3], requires_grad=True)
        policy = logits.log_softmax(0)[None, :2, None]
        expected_reward(policy, torch.tensor([[1.0, 0.5]]) + shift, 1).loss.backward()
        grads.append(logits.grad)
    torch.testing.assert_close(*grads)
    assert grads[0][0] < 0 < grads[0][1] and abs(float(grads[0][2])) < 1e-6


def test_preferences_are_a_softmax_over_the_others_of_a_group():
    # One hit, two others; policy - reference summed over two levels: .4, -.2 and .6; beta .5 makes them .2, -.1 and .3.
    reference = torch.tensor([[[-1.0, -2.0], [-1.5, -1.0], [-2.0, -2.0]], [[-1.0, -1.0]] * 3])
    policy = (
        reference + torch.tensor([[[0.2, 0.2], [-0.3, 0.1], [0.5, 0.1]], [[1.0, 1.0]] * 3])
    ).requires_grad_()
    cells = cells_of(
        group_advantages(torch.cat([group(1.0, 0.0, 0.0), group(0.0, 0.0, 0.0)]), scale="none"), 2
    )
    parts = preference_loss(policy, reference, cells, 2, beta=0.5)
    expected = math.log(1 + math.exp(-0.1 - 0.2) + math.exp(0.3 - 0.2))
    assert float(parts.loss) == pytest.approx(expected / 2), "the group without a hit has no loss, but counts"
    parts.loss.backward()
    assert (
        policy.grad[1].abs().max() == 0 and (policy.grad[0, 0] < 0).all() and (policy.grad[0, 1:] > 0).all()
    )
    # With one other rollout: DPO's loss.
    pair = cells_of(group_advantages(group(0.0, 1.0), scale="none"), 1)
    logps = torch.tensor([[[-1.0], [-3.0]]])
    dpo = -torch.nn.functional.logsigmoid(torch.tensor(0.1 * ((-3.0 + 2.5) - (-1.0 + 2.0))))
    assert float(
        preference_loss(logps, torch.tensor([[[-2.0], [-2.5]]]), pair, 1, beta=0.1).loss
    ) == pytest.approx(float(dpo))
    # A rollout that does not count (-inf: fewer legal items than G) is neither.
    three = torch.tensor([[[-1.0], [-3.0], [float("-inf")]]])
    cells = cells_of(group_advantages(group(0.0, 1.0, NAN), scale="none"), 1)
    masked = preference_loss(
        three, torch.tensor([[[-2.0], [-2.5], [float("-inf")]]]), cells, 1, beta=0.1
    ).loss
    assert float(masked) == pytest.approx(float(dpo))


def test_the_likelihood_of_targets_is_a_weighted_cross_entropy():
    policy = torch.tensor([[-1.0, -2.0, float("-inf")]], requires_grad=True)
    loss = target_loss(policy, torch.tensor([[0.5, 0.25, 0.0]]))
    loss.backward()
    assert float(loss) == 1.0 and policy.grad.tolist() == [[-0.5, -0.25, 0.0]]


def test_losses_go_by_name():
    assert loss_kind("gspo").sequence_ratio
    with pytest.raises(InputError, match="unknown loss 'gpro' -> any of grpo"):
        loss_kind("gpro")
