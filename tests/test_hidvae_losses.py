"""HiD-VAE's losses held to hand values, and weights that count once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from data.tags import UNKNOWN
from rq.constructors.hidvae import losses


def value(tensor):
    return pytest.approx(tensor, abs=1e-5)


def test_reconstruction_sums_squares_and_adds_cross_entropy_of_flags():
    x_BD = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    out_BD = torch.tensor([[0.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    assert float(losses.reconstruction(out_BD, x_BD)) == value((2 + 4) / 2)
    flags = losses.reconstruction(out_BD, x_BD, binary_columns=1)
    assert float(flags) == value((1 + math.log(2) + 4 + math.log(2)) / 2)


def test_alignment_masks_other_items_of_the_same_tag():
    latent_BE = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    tag_BE = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    classes_B = torch.tensor([4, 4, 7])
    masked = losses.alignment(latent_BE, tag_BE, classes_B, temperature=0.5)
    pair, alone = math.log(1 + math.exp(-2)), math.log(1 + math.exp(-2))
    third = math.log(1 + 2 * math.exp(-2))
    assert float(masked) == value((pair + alone + third) / 3)
    published = losses.alignment(latent_BE, tag_BE, classes_B, temperature=0.5, mask_same=False)
    assert float(published) == value((2 * math.log(2 + math.exp(-2)) + third) / 3)


def test_alignment_leaves_out_items_without_a_tag():
    latent_BE, tag_BE = torch.eye(3), torch.eye(3)
    classes_B = torch.tensor([0, UNKNOWN, 1])
    without = losses.alignment(latent_BE[[0, 2]], tag_BE[[0, 2]], classes_B[[0, 2]], temperature=1.0)
    assert float(losses.alignment(latent_BE, tag_BE, classes_B, temperature=1.0)) == value(float(without))
    assert float(losses.alignment(latent_BE, tag_BE, torch.full((3,), UNKNOWN), temperature=1.0)) == 0


def test_level_weights_and_the_smoothing_formula():
    assert [losses.level_weight(level) for level in range(3)] == pytest.approx([1, 2 / 3, 1 / 2])
    assert losses.smoothing_share(0.13, gamma=2.7, classes=7) == pytest.approx(0.13 + 0.0405 + 0.0035)
    assert losses.smoothing_share(0.13, gamma=2.7, classes=927) == 0.25
    assert losses.smoothing_share(0.0, gamma=0.0, classes=2) == pytest.approx(0.001)


def test_prediction_is_cross_entropy_without_focus_and_smoothing():
    logits_BC = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [9.0, 9.0, 9.0]])
    classes_B = torch.tensor([0, 2, UNKNOWN])
    plain = losses.prediction(logits_BC, classes_B, gamma=0, alpha=1, smoothing=0)
    expected = -(math.log(math.e**2 / (math.e**2 + 2)) + math.log(1 / (math.e + 2))) / 2
    assert float(plain) == value(expected)


def test_focal_loss_with_smoothing_by_hand():
    p = np.array([0.7, 0.2, 0.1])
    q = 0.3 / 3 + 0.7 * np.array([0, 1, 0])
    true, entropy = (q * p).sum(), -(q * np.log(p)).sum()
    logits_BC, classes_B = torch.tensor(np.log(p)[None], dtype=torch.float32), torch.tensor([1])
    found = losses.prediction(logits_BC, classes_B, gamma=2.7, alpha=0.24, smoothing=0.3)
    assert float(found) == value(0.24 * (1 - true) ** 2.7 * entropy)
    weighted = losses.prediction(
        logits_BC, classes_B, gamma=2.7, alpha=0.24, smoothing=0.3, weights_C=torch.tensor([1.0, 5.0, 1.0])
    )
    assert float(weighted) == value(5 * float(found))
    none = losses.prediction(logits_BC, torch.tensor([UNKNOWN]), gamma=1, alpha=1, smoothing=0)
    assert float(none) == 0


def test_class_weights_have_mean_one_and_favour_the_rare():
    counts_C = torch.tensor([100, 25, 0])
    root = losses.class_weights(counts_C, balance="inverse_sqrt")
    assert root.tolist() == pytest.approx([2 * 0.1 / 0.3, 2 * 0.2 / 0.3, 0])
    effective = losses.class_weights(counts_C, balance="effective")
    ratio = (1 - 0.999**100) / (1 - 0.999**25)
    assert float(effective[1] / effective[0]) == pytest.approx(ratio, rel=1e-4)
    assert float(effective.sum()) == pytest.approx(2, rel=1e-5)
    assert losses.class_weights(counts_C, balance="none") is None


def test_uniqueness_of_a_doubled_batch_is_one_and_a_half():
    """64 items, each twice: every colliding pair has cosine 1; at Amazon's weight 1.5 and margin 0 the loss is 1.5."""
    torch.manual_seed(0)
    latent_BE, codes_BL = torch.randn(64, 32).repeat(2, 1), torch.arange(64 * 3).reshape(64, 3).repeat(2, 1)
    assert 1.5 * float(losses.uniqueness(latent_BE, codes_BL, margin=0.0)) == value(1.5)
    assert float(losses.uniqueness(latent_BE, codes_BL, margin=0.9)) == value(0.1)
    assert float(losses.uniqueness(latent_BE[:64], codes_BL[:64], margin=0.0)) == 0


def test_uniqueness_counts_whole_ids_only_and_separates_near_duplicates():
    codes_BL = torch.tensor([[1, 2], [1, 2], [1, 3], [2, 1]])
    assert losses.colliding_pairs(codes_BL).tolist() == [[0, 1]]
    latent_BE = torch.tensor([[1.0, 0.1], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    loss = losses.uniqueness(latent_BE, codes_BL, margin=0.0)
    loss.backward()
    assert float(loss.detach()) == value(1 / math.sqrt(1.01))
    step = latent_BE.detach() - 0.1 * latent_BE.grad
    assert float(torch.cosine_similarity(step[:1], step[1:2])) < float(loss.detach())
    assert not latent_BE.grad[2:].any()


def test_the_distance_form_has_the_same_slope_however_near():
    slopes = []
    for gap in (0.2, 0.001):
        latent_PE = torch.tensor([[1.0, gap], [1.0, 0.0]], requires_grad=True)
        loss = losses.pair_repulsion(latent_PE[:1], latent_PE[1:], reach=0.4)
        loss.backward()
        assert float(loss.detach()) == value(1 - gap / 0.4)
        slopes.append(float(latent_PE.grad[0].norm()))
    assert slopes == pytest.approx([2.5, 2.5], rel=1e-3)
    assert (
        float(losses.pair_repulsion(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), reach=0.4)) == 0
    )


def test_every_weight_counts_once():
    parts = {
        "reconstruction": torch.tensor(2.0),
        "alignment": torch.tensor(3.0),
        "uniqueness": torch.tensor(5.0),
    }
    assert float(losses.total(parts, {"alignment": 0.15, "uniqueness": 1.5})) == value(2 + 0.45 + 7.5)
