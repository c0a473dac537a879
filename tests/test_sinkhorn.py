"""rq/stack/sinkhorn.py, rq/stack/estimators.py: transport marginals, the plain algorithm as reference, what passes a code."""

import numpy as np
import pytest
import torch

from rq.stack import estimators
from rq.stack.codebook import ResidualStack
from rq.stack.options import CodebookOptions
from rq.stack.sinkhorn import centred, log_plan, sinkhorn_codes


def plain_sinkhorn(cost_BK, epsilon, iterations):
    """exp first, then alternate scalings: what the published quantizers do, in double precision."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        plan = np.exp(-cost_BK / epsilon)
        plan /= plan.sum()
        for _ in range(iterations):
            plan /= plan.sum(1, keepdims=True) * plan.shape[0]
            plan /= plan.sum(0, keepdims=True) * plan.shape[1]
    return plan


def test_the_log_domain_equals_the_plain_algorithm_where_that_works():
    cost = torch.from_numpy(np.random.default_rng(0).random((40, 7)) * 2 - 1)
    ours = log_plan(cost, epsilon=0.05, iterations=50).exp().numpy()
    np.testing.assert_allclose(ours, plain_sinkhorn(cost.numpy(), 0.05, 50), rtol=1e-9)


@pytest.mark.parametrize("epsilon", [1.0, 0.05, 0.003])
def test_marginals(epsilon):
    cost = centred(torch.from_numpy(np.random.default_rng(1).random((64, 16)) * 1e3))
    plan = log_plan(cost, epsilon=epsilon, iterations=2000).exp()
    torch.testing.assert_close(plan.sum(0), torch.full((16,), 1 / 16, dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(plan.sum(1), torch.full((64,), 1 / 64, dtype=torch.float64), rtol=0.02, atol=0)


def test_a_temperature_at_which_exponentials_vanish_still_gives_codes():
    distances = torch.rand(50, 20, generator=torch.Generator().manual_seed(0))
    codes = sinkhorn_codes(distances, epsilon=1e-5, iterations=50)
    assert np.isnan(plain_sinkhorn(centred(distances).numpy(), 1e-5, 50)).any(), "an easy case shows nothing"
    assert (
        torch.bincount(codes, minlength=20).max()
        < torch.bincount(distances.argmin(1), minlength=20).max() + 1
    )


def test_a_crowded_code_is_spread_in_training_and_left_alone_in_evaluation():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=generator) * 0.1
    stack = ResidualStack([8], 4, CodebookOptions(start="uniform", sinkhorn_epsilons=[0.05]))
    stack.codebooks[0].set_codewords(torch.randn(8, 4, generator=generator))
    spread = [len(torch.unique(stack.train(mode)(x).codes_BL)) for mode in (True, False)]
    assert spread[0] == 8 > spread[1]


def test_rotation_gives_the_codeword_and_turns_gradients_with_it():
    generator = torch.Generator().manual_seed(0)
    r = torch.randn(200, 8, generator=generator, requires_grad=True)
    c = torch.randn(200, 8, generator=generator) * 3
    out = estimators.rotate(r, c)
    torch.testing.assert_close(out, c, rtol=0, atol=1e-5)
    upstream = torch.randn(200, 8, generator=generator)
    out.backward(upstream)
    # A rotation with scaling: the gradient's length is |c|/|r| times upstream's; its angle to r is upstream's to c.
    scale = c.norm(dim=1) / r.detach().norm(dim=1)
    torch.testing.assert_close(r.grad.norm(dim=1), scale * upstream.norm(dim=1), rtol=1e-4, atol=1e-5)
    angle = torch.cosine_similarity(r.grad, r.detach()), torch.cosine_similarity(upstream, c)
    torch.testing.assert_close(*angle, rtol=1e-4, atol=1e-5)


def test_rotation_where_there_is_none():
    r = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]], requires_grad=True)
    c = torch.tensor([[1.0, 1.0], [-2.0, 0.0], [0.0, 0.0]])
    out = estimators.rotate(r, c)
    torch.testing.assert_close(out, c)
    out.sum().backward()
    assert torch.isfinite(r.grad).all() and (r.grad == 1).all()


@pytest.mark.parametrize("estimator", ["ste", "rotation"])
def test_codes_of_training_are_codes_of_evaluation_on_every_item(estimator):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 16, generator=generator)
    stack = ResidualStack([64, 64, 64], 16, CodebookOptions(estimator=estimator))
    stack.initialise(x, seed=0)
    trained, evaluated = stack.train()(x), stack.eval()(x)
    assert torch.equal(trained.codes_BL, evaluated.codes_BL)
    assert torch.equal(trained.levels_BLE, evaluated.levels_BLE)


def test_gumbel_mixes_codewords_at_first_and_draws_one_at_the_end():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=generator) * 3
    options = CodebookOptions(estimator="gumbel", temperature_start=2.0, temperature_end=1e-3)
    stack = ResidualStack([16], 6, options).train()
    stack.initialise(x, seed=0)
    gaps = []
    for share in (0.0, 0.5, 1.0):
        stack.set_progress(share)
        out = stack(x, generator=torch.Generator().manual_seed(1))
        to_nearest = torch.cdist(out.levels_BLE[:, 0], stack.level_codewords(0)).min(1).values
        gaps.append(float(to_nearest.mean()))
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 0.05 * gaps[0]
