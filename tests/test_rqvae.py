"""Quantizers with gradients: loss terms by hand, resume, dead codes, files, what goes wrong."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from configs import program
from configs.program import InputError, Interrupted, NumericError
from data.store import output
from rq.constructors import autoencoder, load
from rq.constructors.balanced import Balanced, train_balanced
from rq.constructors.rqvae import Plum, RqKmeansPlus, RqVae, Rvq, fit_rqkmeans_plus, fit_rqvae, fit_rvq
from rq.stack import training
from rq.stack.codebook import ResidualStack
from rq.stack.networks import Network, network_shape
from rq.stack.options import CodebookOptions, LoopOptions, Source
from rq.stack.residual import ResidualQuantizer, save
from tests.test_residual import clustered

SHORT = LoopOptions(epochs=12, batch_size=64, warmup_epochs=2, eval_every=4, learning_rate=1e-3, device="cpu")
SMALL = RqVae(sizes=[8, 8], latent_dim=6, layers=[16], loop=SHORT)


@dataclass
class NoArgs:
    """A program without options."""

    output_dir: str


def fitted(function, x, options, path, *, seed=0, **inputs):
    """(quantizer, manifest) of one constructor, saved under `path`."""
    with output.open_output(NoArgs(str(path)), "test", version=1, inputs={}, directory=path) as out:
        quantizer = function(Source(x, **inputs), options, seed=seed, out=out)
        save(out, quantizer, made_by={"name": "test"})
    return quantizer, json.loads((path / "manifest.json").read_text())


def test_loss_terms_by_hand():
    stack = ResidualStack([2, 2], 2, CodebookOptions(beta=0.25)).train()
    stack.codebooks[0].set_codewords(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    stack.codebooks[1].set_codewords(torch.tensor([[0.5, 0.0], [0.0, -0.5]]))
    # 1st vector: codes 0, 0; residual (1, .5), then (1, .5); left over (.5, .5). 2nd: codes 1, 1; residual (0, -1), left (0, -.5).
    out = stack(torch.tensor([[2.0, 0.5], [0.0, 0.0]]) + torch.tensor([[0.0, 0.0], [0.0, 0.4]]))
    assert out.codes_BL.tolist() == [[0, 0], [1, 1]]
    first = [1 + 0.25, 0.36]
    second = [0.25 + 0.25, 0.01]
    expected = torch.tensor([[first[0], second[0]], [first[1], second[1]]])
    torch.testing.assert_close(out.codebook_loss_BL, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(out.commitment_loss_BL, expected, rtol=0, atol=1e-6)
    mean = sum(first + second) / (2 * 2 * 2)
    assert float(autoencoder.quantization(out, beta=0.25).detach()) == pytest.approx(1.25 * mean, abs=1e-6)
    x, rebuilt = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    assert float(autoencoder.reconstruction(x, rebuilt, kind="mse")) == pytest.approx(2.5, abs=1e-6)
    assert float(autoencoder.reconstruction(x, rebuilt, kind="l1")) == pytest.approx(1.5, abs=1e-6)


def test_codebook_terms_move_codewords_and_commitment_moves_vectors():
    stack = ResidualStack([2], 2, CodebookOptions()).train()
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out = stack(x)
    out.codebook_loss_BL.sum().backward()
    assert x.grad is None and stack.codebooks[0].words_KE.grad.abs().sum() > 0
    stack.zero_grad(set_to_none=True)
    stack(x).commitment_loss_BL.sum().backward()
    assert x.grad.abs().sum() > 0 and stack.codebooks[0].words_KE.grad is None


def test_contrast_leaves_the_item_itself_out_of_its_negatives():
    anchor = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    partner = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    rows, partners = (
        torch.tensor([0, 1]),
        torch.tensor([5, 0]),
    )  # row 1's partner is item 0, the anchor of row 0
    loss = autoencoder.contrast(anchor, partner, rows, partners, temperature=1.0)
    # Row 0 has no negative left: 0. Row 1: scores (0, 0) over partners 5 and 0: log 2.
    assert float(loss) == pytest.approx(np.log(2) / 2, abs=1e-6)


@pytest.mark.parametrize(
    "codebook",
    [
        CodebookOptions(),
        CodebookOptions(estimator="rotation", update="ema", restart_after=5),
        CodebookOptions(estimator="gumbel", simvq=True, start="uniform"),
        CodebookOptions(distance="cosine", normalise="all", sinkhorn_epsilons=[0.0, 0.01]),
    ],
    ids=["plain", "rotation ema", "gumbel simvq", "cosine sinkhorn"],
)
def test_it_learns_and_survives_a_file(tmp_path, codebook):
    x = clustered(300, 10, clusters=12)
    options = replace(SMALL, codebook=codebook, loop=replace(SHORT, select="loss", learning_rate=5e-3))
    quantizer, manifest = fitted(fit_rqvae, x, options, tmp_path / "q")
    rows = [json.loads(line) for line in (tmp_path / "q/metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [4, 8, 12]
    assert rows[-1]["train_reconstruction"] < rows[0]["train_reconstruction"]
    assert manifest["facts"]["selected_by"] == "loss"
    loaded, description = load(tmp_path / "q")
    codes = quantizer.encode(x)
    assert description["kind"] == "encoded" and codes.shape == (300, 2) and codes.dtype == np.int32
    assert np.array_equal(loaded.encode(x), codes)
    np.testing.assert_allclose(loaded.decode(codes), quantizer.decode(codes))
    assert quantizer.decode(codes).shape == x.shape


def test_the_file_gives_the_codes_of_the_model(tmp_path):
    x = clustered(400, 10, clusters=30)
    quantizer, _ = fitted(fit_rqvae, x, replace(SMALL, loop=replace(SHORT, select="last")), tmp_path / "q")
    weights = load_file(tmp_path / "q/checkpoint-12/model.safetensors")
    model = autoencoder.Autoencoder(quantizer.network.shape, [8, 8], CodebookOptions()).eval()
    model.load_state_dict(weights)
    codes = model.stack(model.network.encode(torch.from_numpy(x))).codes_BL.numpy()
    assert (codes == quantizer.encode(x)).all(1).mean() > 0.995


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path, monkeypatch, update):
    x = clustered(200, 8, clusters=10)
    codebook = CodebookOptions(estimator="gumbel", update=update, restart_after=3)
    options = replace(SMALL, dropout=0.1, batch_norm=True, codebook=codebook)
    fitted(fit_rqvae, x, options, tmp_path / "whole")

    epochs, starts = [], []
    run_epoch, start = training.run_epoch, autoencoder.AutoencoderProblem.start

    def interrupted_epoch(problem, optimizer, options, *, epoch, seed):
        epochs.append(epoch)
        if len(epochs) == 7:
            program.signal.raise_signal(program.signal.SIGTERM)
        return run_epoch(problem, optimizer, options, epoch=epoch, seed=seed)

    def counted_start(self, *, seed):
        starts.append(seed)
        start(self, seed=seed)

    monkeypatch.setattr(training, "run_epoch", interrupted_epoch)
    monkeypatch.setattr(autoencoder.AutoencoderProblem, "start", counted_start)
    with pytest.raises(Interrupted):
        fitted(fit_rqvae, x, options, tmp_path / "parts")
    assert (tmp_path / "parts/checkpoint-7").is_dir()
    fitted(fit_rqvae, x, options, tmp_path / "parts")
    assert epochs == list(range(12)) and starts == [0], "k-means runs once, no epoch twice"
    for name in ("quantizer.safetensors", "checkpoint-12/model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name


def test_best_states_and_the_newest_checkpoints_are_kept(tmp_path):
    x = clustered(200, 8, clusters=10)
    options = replace(SMALL, loop=replace(SHORT, epochs=20, save_limit=2, select="collisions"))
    _, manifest = fitted(fit_rqvae, x, options, tmp_path / "q")
    names = {path.name for path in (tmp_path / "q").iterdir()}
    assert {"best_collisions.safetensors", "best_loss.safetensors", "checkpoint-16", "checkpoint-20"} <= names
    assert "checkpoint-12" not in names
    rows = [json.loads(line) for line in (tmp_path / "q/metrics.jsonl").read_text().splitlines()]
    fewest = min(row["collisions"] for row in rows)
    chosen = [row for row in rows if row["epoch"] == manifest["facts"]["selected_epoch"]]
    assert chosen[0]["collisions"] == fewest


def test_patience_stops(tmp_path):
    x = np.ones((20, 4), np.float32)
    options = replace(SMALL, loop=replace(SHORT, epochs=200, eval_every=1, patience=3))
    _, manifest = fitted(fit_rqvae, x, options, tmp_path / "q")
    assert manifest["facts"]["epochs"] < 30


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_restarts_bring_dead_codes_back(tmp_path, update):
    """Codewords that start far from all vectors but one are never chosen: a collapsed codebook."""
    x = clustered(400, 6, clusters=30)
    used = []
    for restart_after in (0, 3):
        options = Rvq(
            sizes=[32],
            codebook=CodebookOptions(
                start="uniform", update=update, restart_after=restart_after, ema_decay=0.8
            ),
            loop=replace(SHORT, select="last", warmup_epochs=0),
        )
        quantizer, _ = fitted(fit_rvq, x, options, tmp_path / f"{restart_after}")
        used.append(len(np.unique(quantizer.encode(x))))
    assert used[0] < 20 < used[1] and used[1] > 1.5 * used[0]


def test_rqkmeans_plus_starts_as_its_warm_start(tmp_path):
    x = clustered(300, 8, clusters=20)
    start, _ = train_balanced(x, Balanced(sizes=[8, 8, 8]), seed=0)
    for decoder in (True, False):
        network = Network(
            network_shape(8, kind="residual", layers=[16], latent_dim=8, residual_decoder=decoder)
        )
        z = torch.from_numpy(x)
        assert torch.equal(network.encode(z), z)
        assert torch.equal(network.decode(z), z) == decoder
    stack = ResidualStack([8, 8, 8], 8, CodebookOptions())
    stack.start_from(start.codebooks, start.prices)
    assert (stack.eval()(network.encode(z)).codes_BL.numpy() == start.encode(x)).all(1).mean() > 0.995
    assert not stack.initialise(z, seed=0), "no k-means over a warm start"


def test_rqkmeans_plus_trains_from_its_own_start_or_a_given_one(tmp_path):
    x = clustered(300, 8, clusters=20)
    start, _ = train_balanced(x, Balanced(sizes=[8, 8]), seed=0)
    with output.open_output(NoArgs(""), "t", version=1, inputs={}, directory=tmp_path / "start") as out:
        save(out, start, made_by={"name": "balanced"})
    options = RqKmeansPlus(layers=[16], start=Balanced(sizes=[8, 8]), loop=replace(SHORT, select="loss"))
    own, _ = fitted(fit_rqkmeans_plus, x, options, tmp_path / "own")
    given, _ = fitted(fit_rqkmeans_plus, x, options, tmp_path / "given", warm_start=str(tmp_path / "start"))
    assert np.array_equal(own.encode(x), given.encode(x)), "the same start gives the same run"
    assert own.prices is not None
    with pytest.raises(InputError, match="with an encoder"):
        fitted(fit_rqkmeans_plus, x, options, tmp_path / "bad", warm_start=str(tmp_path / "own"))
    lensed, _ = train_balanced(x, Balanced(sizes=[64, 8], separate=1), seed=0)
    with output.open_output(NoArgs(""), "t", version=1, inputs={}, directory=tmp_path / "lensed") as out:
        save(out, lensed, made_by={"name": "balanced"})
    with pytest.raises(InputError, match="separate: 0"):
        fitted(fit_rqkmeans_plus, x, options, tmp_path / "bad", warm_start=str(tmp_path / "lensed"))
    with output.open_output(NoArgs(""), "t", version=1, inputs={}, directory=tmp_path / "cosine") as out:
        save(out, ResidualQuantizer(start.codebooks, distance="cosine"), made_by={"name": "rvq"})
    with pytest.raises(InputError, match="distance: euclidean"):
        fitted(fit_rqkmeans_plus, x, options, tmp_path / "bad", warm_start=str(tmp_path / "cosine"))
    with pytest.raises(InputError, match="5 dimensions"):
        fitted(fit_rqkmeans_plus, x[:, :5], options, tmp_path / "bad", warm_start=str(tmp_path / "start"))


def test_plum_needs_sequences():
    options = Plum(sizes=[8, 4], latent_dim=4, layers=[8], loop=SHORT)
    with pytest.raises(InputError, match="--data"):
        fit_rqvae(Source(np.eye(4, dtype=np.float32)), options, seed=0, out=None)


def test_a_masked_step_reaches_the_first_levels_only():
    stack = ResidualStack([4, 4, 4], 3, CodebookOptions()).train()
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    out = stack(x, depth=2)
    torch.testing.assert_close(out.quantized_BE, out.codewords_BLE[:, :2].sum(1))
    assert out.codes_BL.shape == (10, 3)


@pytest.mark.parametrize(
    "x", [np.ones((1, 4)), np.ones((40, 4)), np.zeros((5, 4))], ids=["one item", "constant", "zeros"]
)
def test_degenerate_vectors_train(tmp_path, x):
    quantizer, _ = fitted(fit_rqvae, x.astype(np.float32), SMALL, tmp_path / "q")
    assert len(np.unique(quantizer.encode(x.astype(np.float32)), axis=0)) == 1


@pytest.mark.parametrize(("items", "batch_size"), [(1, 64), (40, 1)])
def test_batches_of_one_item_have_no_spread_for_batch_norm(tmp_path, items, batch_size):
    options = replace(SMALL, batch_norm=True, loop=replace(SHORT, batch_size=batch_size))
    with pytest.raises(InputError, match=r"needs 2 items in a batch, not 1 .* -> batch_norm: false"):
        fitted(fit_rqvae, clustered(items, 4, clusters=1), options, tmp_path / "q")


def test_a_loss_that_is_not_finite_is_a_numeric_error(tmp_path):
    x = clustered(100, 6, clusters=5)
    options = replace(SMALL, loop=replace(SHORT, learning_rate=1e30, clip=0.0, warmup_epochs=0))
    with pytest.raises(NumericError, match="learning_rate"):
        fitted(fit_rqvae, x, options, tmp_path / "q")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RqVae(sizes=[]), "sizes"),
        (lambda: RqVae(latent_dim=0), "latent_dim"),
        (lambda: RqVae(codebook=CodebookOptions(sinkhorn_epsilons=[0.1])), "3 levels"),
        (lambda: Rvq(codebook=CodebookOptions(estimator="rotation")), "no encoder"),
        (lambda: CodebookOptions(simvq=True, update="ema"), "simvq"),
        (lambda: CodebookOptions(temperature_start=0.1, temperature_end=0.2), "temperatures"),
        (lambda: LoopOptions(epochs=5, warmup_epochs=9), "warmup_epochs"),
        (lambda: Plum(mask_share=2), "mask_share"),
        (lambda: RqKmeansPlus(start=Balanced(separate=2)), "start.separate: 0"),
        (lambda: RqKmeansPlus(codebook=CodebookOptions(simvq=True)), "simvq: false"),
    ],
)
def test_bad_options_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_an_extra_or_missing_weight_is_refused(tmp_path):
    x = clustered(60, 6, clusters=5)
    quantizer, _ = fitted(fit_rqvae, x, SMALL, tmp_path / "q")
    assert isinstance(quantizer, ResidualQuantizer)
    tensors = quantizer.tensors()
    tensors.pop("network.encoder.0.bias")
    with pytest.raises(InputError, match="do not fit"):
        type(quantizer).build(tensors, quantizer.describe())
