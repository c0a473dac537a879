"""rq/constructors/opq.py and faiss' own quantizer in rq/constructors/rqkmeans.py."""

import numpy as np
import pytest

from configs.program import InputError
from rq.constructors import load
from rq.constructors.opq import Opq, train_opq
from rq.constructors.rqkmeans import RqKmeans, faiss_codes, train_faiss
from rq.quality import measures as quality
from tests.test_residual import clustered, save_to


def skewed(num, dim, seed=0):
    """Vectors whose variance lies in the first dimensions."""
    x = np.random.default_rng(seed).standard_normal((num, dim)) * 2.0 ** -np.arange(dim)
    return x.astype(np.float32)


@pytest.mark.parametrize("dim", [12, 10, 2], ids=["even pieces", "padded", "fewer dimensions than levels"])
def test_codes_are_independent_and_survive_a_file(tmp_path, dim):
    x = skewed(500, dim)
    quantizer = train_opq(x, Opq(sizes=[16, 12, 8]), seed=0)
    codes = quantizer.encode(x)
    assert quantizer.dim == dim and quantizer.sizes == (16, 12, 8)
    latent = quantizer.latent(x)
    for level, book in enumerate(quantizer.codebooks):
        nearest = ((latent[:, None] - book[None]) ** 2).sum(2).argmin(1)
        assert (codes[:, level] == nearest).mean() > 0.999, "a level does not depend on the levels before it"
    np.testing.assert_allclose(quantizer.restore(latent), x, atol=1e-5)
    save_to(tmp_path / "q", quantizer)
    loaded, description = load(tmp_path / "q")
    assert description["kind"] == "rotated" and np.array_equal(loaded.encode(x), codes)
    np.testing.assert_array_equal(loaded.decode(codes), quantizer.decode(codes))


def test_the_rotation_lowers_the_error():
    x = skewed(800, 12)
    errors = [
        quality.reconstruction_error(
            x, (q := train_opq(x, Opq(sizes=[16] * 3, rotate=turn), seed=0)).encode(x), q
        )[-1]
        for turn in (True, False)
    ]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize(
    "x", [np.ones((1, 4)), np.ones((30, 4)), np.eye(4)[[0, 1, 2]]], ids=["one", "constant", "few"]
)
def test_degenerate_vectors(x):
    x = x.astype(np.float32)
    quantizer = train_opq(x, Opq(sizes=[8, 8]), seed=0)
    np.testing.assert_allclose(quantizer.decode(quantizer.encode(x)), x, atol=1e-5)


@pytest.mark.parametrize("sizes", [[256, 256], [512, 512], [8, 8, 8], [1024, 4, 32]])
def test_faiss_codes_are_unpacked_whatever_the_bits(sizes):
    x = clustered(1500, 8, clusters=40)
    quantizer, index = train_faiss(x, RqKmeans(sizes=sizes, method="faiss", iterations=5, restarts=1), seed=0)
    codes = faiss_codes(index, x, sizes)
    assert (codes.max(0) < np.array(sizes)).all() and quantizer.sizes == tuple(sizes)
    theirs = index.decode(index.compute_codes(x))
    np.testing.assert_allclose(quantizer.decode(codes), theirs, atol=1e-5)
    assert (quantizer.encode(x) == codes).all(1).mean() > 0.99


def test_what_faiss_cannot_do_is_refused():
    with pytest.raises(InputError, match="powers of two"):
        RqKmeans(sizes=[100, 256], method="faiss")
    with pytest.raises(InputError, match="256 codes on 40 items"):
        train_faiss(clustered(40, 4, clusters=3), RqKmeans(method="faiss"), seed=0)
    for bad in ({"sizes": [0]}, {"rotation_iterations": 0}):
        with pytest.raises(InputError, match="opq"):
            Opq(**bad)
