"""How codebooks learn while they train: a step is one step however it is cut, and a code that nobody chooses stays."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rq.constructors.autoencoder import Autoencoder, AutoencoderProblem
from rq.stack import training
from rq.stack.codebook import Codebook, ResidualStack
from rq.stack.networks import network_shape
from rq.stack.options import CodebookOptions, LoopOptions
from rq.stack.vq import train_codebook
from tests.test_residual import clustered

LOOP = LoopOptions(epochs=3, batch_size=64, warmup_epochs=0, learning_rate=1e-2, device="cpu")


def problem_of(x, codebook, **shape):
    """An autoencoder of 2 x 16 codes over these vectors, its codebooks started."""
    shape = {"layers": [16], "latent_dim": 4} | shape
    torch.manual_seed(0)
    model = Autoencoder(network_shape(x.shape[1], **shape), [16, 16], codebook)
    problem = AutoencoderProblem(
        x, model, reconstruction_kind="mse", quantization_weight=1.0, device=torch.device("cpu")
    )
    problem.start(seed=0)
    return problem


def trained(problem, loop):
    """Weights and counts after all epochs."""
    optimizer = (
        torch.optim.AdamW(problem.parameter_groups(loop)) if list(problem.model.parameters()) else None
    )
    for group in optimizer.param_groups if optimizer else []:
        group["initial_lr"] = loop.learning_rate
    for epoch in range(loop.epochs):
        training.run_epoch(problem, optimizer, loop, epoch=epoch, seed=0)
    return problem.model.state_dict()


@pytest.mark.parametrize("kind", ["plain", "residual", "identity"], ids=["rqvae", "rqkmeans_plus", "rvq"])
@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_moving_averages_and_restarts_are_those_of_the_whole_step(kind, update):
    """Four parts of 16 that make one step are one batch of 64; 300 items leave a last step of 44 in three parts."""
    x = clustered(300, 8, clusters=12)
    codebook = CodebookOptions(update=update, start="uniform", restart_after=2, ema_decay=0.5)
    shape = {"kind": kind} if kind == "plain" else {"kind": kind, "latent_dim": 8}
    whole = trained(problem_of(x, codebook, **shape), LOOP)
    parts = trained(problem_of(x, codebook, **shape), replace(LOOP, batch_size=16, accumulate=4))
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, atol=1e-4, err_msg=name)


def test_a_code_that_nobody_chooses_keeps_its_place():
    """0.9^400 of its average is left: nothing. When it is chosen again it moves to what chose it."""
    book = Codebook(2, 3, CodebookOptions(update="ema", ema_decay=0.9), epsilon=0, unit=False)
    book.set_codewords(torch.tensor([[1.0, 0.0, 0.0], [5.0, -5.0, 5.0]]))
    near, far = torch.tensor([[1.0, 0.0, 0.0]]).repeat(8, 1), torch.tensor([[4.0, -4.0, 4.0]])
    for _ in range(400):
        book.after_step(near, torch.zeros(8, dtype=torch.long), generator=None)
    torch.testing.assert_close(book.words_KE, torch.tensor([[1.0, 0.0, 0.0], [5.0, -5.0, 5.0]]))
    book.after_step(far, torch.ones(1, dtype=torch.long), generator=None)
    torch.testing.assert_close(book.words_KE[1:], far)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_a_level_starts_from_what_the_stack_itself_leaves_over(distance):
    """Vectors of many lengths, where the nearest codeword and the one of the same direction differ."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(200, 4)) * rng.lognormal(0, 1, (200, 1))).astype(np.float32)
    stack = ResidualStack([8, 8], 4, CodebookOptions(distance=distance)).eval()
    stack.initialise(torch.from_numpy(x), seed=0)
    left_over = stack(torch.from_numpy(x)).residuals_BLE[:, 1].detach().numpy()
    expected = train_codebook(left_over, 8, iterations=100, restarts=1, seed=0)
    np.testing.assert_allclose(stack.level_codewords(1).detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("items", "accumulate"), [(129, 1), (129, 2), (193, 2)])
def test_a_last_item_alone_joins_the_batch_before_it_for_batch_norm(items, accumulate):
    """129 items in batches of 64: 64 and 65, in one step or in two; without batch norm 64, 64 and 1."""
    x = clustered(items, 8, clusters=12)
    seen = {}
    for batch_norm in (True, False):
        problem = problem_of(x, CodebookOptions(), batch_norm=batch_norm)
        terms, sizes = problem.terms, seen.setdefault(batch_norm, [])

        def counted(rows_B, *, generator, terms=terms, sizes=sizes):
            sizes.append(len(rows_B))
            return terms(rows_B, generator=generator)

        problem.terms = counted
        trained(problem, replace(LOOP, epochs=1, accumulate=accumulate))
    full = [64] * (items // 64)
    assert seen == {True: [*full[:-1], 65], False: [*full, 1]}
