"""rq/stack/vq.py, rq/stack/residual.py, rq/constructors/rqkmeans.py: codebooks on ordinary and degenerate vectors, codes, files."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import InputError
from data.store import output
from rq.constructors.rqkmeans import RqKmeans, sampled, train_rqkmeans
from rq.quality import measures as quality
from rq.quality import neighbours
from rq.stack import residual, streams, vq
from rq.stack.codebook import Codebook
from rq.stack.options import CodebookOptions
from rq.stack.residual import ResidualQuantizer


@dataclass
class NoArgs:
    """A program without options."""

    output_dir: str


def save_to(path, quantizer):
    with output.open_output(NoArgs(str(path)), "test", version=1, inputs={}, directory=path) as out:
        residual.save(out, quantizer, made_by={"name": "test"})


def clustered(num, dim, clusters, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, dim)) * 3
    return (centres[rng.integers(0, clusters, num)] + rng.standard_normal((num, dim)) * 0.3).astype(
        np.float32
    )


def test_an_offset_that_all_vectors_share_changes_no_code():
    """100 standard deviations away from zero: the codes are those of double precision, in any batch, numpy and torch alike."""
    rng = np.random.default_rng(0)
    x_ND = (100 + rng.standard_normal((4000, 32))).astype(np.float32)
    book_KD = (100 + rng.standard_normal((256, 32))).astype(np.float32)
    exact = np.stack([((x.astype(np.float64) - book_KD) ** 2).sum(1) for x in x_ND])
    quantizer = ResidualQuantizer((book_KD,))
    codes = quantizer.encode(x_ND)[:, 0]
    assert np.array_equal(codes, exact.argmin(1))
    np.testing.assert_allclose(vq.nearest_codes(x_ND, book_KD)[1], exact.min(1), rtol=1e-4)
    one_by_one = np.concatenate([quantizer.encode(x_ND[i : i + 1])[:, 0] for i in range(200)])
    assert np.array_equal(one_by_one, codes[:200])
    learned = Codebook(256, 32, CodebookOptions(), epsilon=0, unit=False)
    learned.set_codewords(torch.from_numpy(book_KD))
    with torch.no_grad():
        costs_NK = learned.distances(torch.from_numpy(x_ND), torch.from_numpy(book_KD))
    assert np.array_equal(costs_NK.argmin(1).numpy(), exact.argmin(1))
    item, other = neighbours.embedding_neighbours(x_ND[:600], most=1)
    apart = np.stack([((x.astype(np.float64) - x_ND[:600]) ** 2).sum(1) for x in x_ND[:600]])
    assert np.array_equal(other, (apart + np.diag([1e9] * 600)).argmin(1)) and len(item) == 600


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), num=st.integers(1, 60), levels=st.integers(1, 3))
def test_encode_is_the_nearest_code_level_by_level(seed, num, levels):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num, 4)).astype(np.float32)
    quantizer = ResidualQuantizer(
        tuple(rng.standard_normal((5, 4)).astype(np.float32) for _ in range(levels))
    )
    codes, rest = quantizer.encode(x), x.astype(np.float64)
    for level, book in enumerate(quantizer.codebooks):
        distance = ((rest[:, None] - book[None]) ** 2).sum(2)
        chosen = distance[np.arange(num), codes[:, level]]
        np.testing.assert_allclose(chosen, distance.min(1), atol=1e-4)
        rest = rest - book[codes[:, level]]
    np.testing.assert_allclose(quantizer.decode(codes), x - rest, atol=1e-5)
    np.testing.assert_allclose(quantizer.decode(codes[:, :1]), quantizer.codebooks[0][codes[:, 0]])


def test_of_equal_codewords_the_first_is_taken():
    book = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)
    codes, squared = vq.nearest_codes(np.array([[0, 2], [2, 0]], np.float32), book)
    assert codes.tolist() == [1, 0] and squared.tolist() == [1, 1]


@pytest.mark.parametrize(
    "x",
    [np.ones((1, 3)), np.ones((50, 3)), np.eye(3)[[0, 1, 2, 0, 1]], np.eye(3)[np.arange(300) % 3]],
    ids=["one item", "constant", "fewer items than codes", "three distinct vectors"],
)
def test_few_distinct_vectors_are_coded_without_error(x):
    quantizer = train_rqkmeans(x.astype(np.float32), RqKmeans(sizes=[8, 4]), seed=0)
    codes = quantizer.encode(x.astype(np.float32))
    assert quantizer.sizes == (8, 4)
    np.testing.assert_allclose(quantizer.decode(codes), x, atol=1e-6)
    assert len(np.unique(codes, axis=0)) == len(np.unique(x, axis=0))


def test_every_code_is_used_even_when_most_vectors_are_equal():
    rng = np.random.default_rng(0)
    x = np.concatenate([np.zeros((500, 8)), rng.standard_normal((40, 8))]).astype(np.float32)
    book = vq.train_codebook(x, 32, iterations=10, restarts=1, seed=0)
    codes, _ = vq.nearest_codes(x, book)
    assert len(np.unique(codes)) == 32


def test_kmeans_finds_the_clusters_and_every_level_lowers_the_error():
    x = clustered(600, 8, clusters=10)
    quantizer = train_rqkmeans(x, RqKmeans(sizes=[10, 16, 16], restarts=5), seed=3)
    errors = quality.reconstruction_error(x, quantizer.encode(x), quantizer)
    assert errors[0] < 0.1 and errors[0] > errors[1] > errors[2] > 0


def test_equal_seeds_give_equal_codebooks_and_other_seeds_others():
    x = clustered(400, 6, clusters=40)
    books = [train_rqkmeans(x, RqKmeans(sizes=[16, 16]), seed=seed).codebooks for seed in (1, 1, 2)]
    assert all(np.array_equal(a, b) for a, b in zip(books[0], books[1], strict=True))
    assert not np.array_equal(books[0][0], books[2][0])


def test_saved_and_loaded_it_codes_alike(tmp_path):
    x = clustered(200, 5, clusters=7)
    quantizer = train_rqkmeans(x, RqKmeans(sizes=[7, 4]), seed=0)
    save_to(tmp_path / "q", quantizer)
    loaded, description = residual.load(tmp_path / "q")
    assert np.array_equal(loaded.encode(x), quantizer.encode(x))
    assert description["sizes"] == [7, 4] and description["made_by"] == {"name": "test"}


def test_damaged_or_unfinished_files_are_refused(tmp_path):
    quantizer = ResidualQuantizer((np.zeros((3, 2), np.float32),))
    with pytest.raises(InputError, match="04_build_sids"):
        residual.load(tmp_path)
    save_to(tmp_path / "short", quantizer)
    weights = tmp_path / "short" / residual.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(InputError, match="has 100 bytes, not 104"):
        residual.load(tmp_path / "short")
    for name, changed, words in (
        ("other", {"dim": 4}, r"\(3, 2\)"),
        ("old", {"sizes": None}, "no readable quantizer"),
    ):
        with output.open_output(NoArgs(str(tmp_path / name)), "test", version=1, inputs={}) as out:
            residual.save(out, quantizer, made_by={"name": "test"})
            out.write_json(residual.DESCRIPTION, quantizer.describe() | changed)
        with pytest.raises(InputError, match=words):
            residual.load(tmp_path / name)


def test_vectors_of_another_width_are_refused():
    with pytest.raises(InputError, match="5 dimensions, the quantizer 2"):
        ResidualQuantizer((np.zeros((3, 2), np.float32),)).encode(np.zeros((4, 5), np.float32))


def test_a_memory_map_is_coded_in_blocks_and_a_sample_of_it_trains(tmp_path, monkeypatch):
    x = np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    options = RqKmeans(sizes=[6, 4], train_items=24)
    drawn = sampled(mapped, 24, seed=2)
    assert drawn.shape == (24, 5) and len(np.unique(drawn, axis=0)) == 24
    assert sampled(mapped, 60, seed=2) is mapped and sampled(mapped, None, seed=2) is mapped
    quantizer = train_rqkmeans(drawn, options, seed=2)
    whole, error = quantizer.encode(x), quality.reconstruction_error(x, quantizer.encode(x), quantizer)
    monkeypatch.setattr(streams, "STREAM_ROWS", 7)
    assert np.array_equal(sampled(mapped, 24, seed=2), drawn)
    assert np.array_equal(quantizer.encode(mapped), whole)
    assert quality.reconstruction_error(mapped, whole, quantizer) == pytest.approx(error)
    with pytest.raises(InputError, match="train_items 0"):
        RqKmeans(train_items=0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_file_is_no_longer_in_memory_than_a_block(tmp_path, monkeypatch):
    """32 MiB of vectors through a pass, a draw and the encoding: the pages that the process maps of the file stay below a quarter of it."""
    monkeypatch.setattr(streams, "STREAM_ROWS", 1 << 12)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(1 << 17, 64)).astype(np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")

    def held() -> int:
        kinds = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return int(kinds["RssFile"].split()[0])

    before, most = held(), 0
    for rows in streams.row_blocks(mapped):
        assert mapped[rows].sum(dtype=np.float64) != 0
        most = max(most, held() - before)
    drawn = sampled(mapped, 2_000, seed=0)
    after = held() - before
    assert most < 8 << 10 and after < 2 << 10, "KiB"
    quantizer = train_rqkmeans(drawn, RqKmeans(sizes=[4], train_items=2_000), seed=0)
    quantizer.encode(mapped)
    assert held() - before < 2 << 10 and mapped.sum() != 0
    assert held() - before > 24 << 10, "a plain pass would keep it"
