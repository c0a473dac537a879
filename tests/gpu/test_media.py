"""Stages 13 and 14 on a CUDA device with tiny random weights: the same noise as on a CPU, bfloat16, offload, fp8 where it can be.

python -m pytest tests/gpu/test_media.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from configs.program import EnvironmentFault
from generation.init_tiny_models import WAN, ZIMAGE
from generation.makers.video_diffusers import VideoDiffusers, VideoSettings
from generation.makers.zimage import ZImage, ZImageSettings
from tests.handmade import call

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("tiny") / "models"
    call("generation.init_tiny_models", "--output_dir", place)
    return place


def draw(tiny: Path, device: str, **settings) -> np.ndarray:
    chosen = ZImageSettings(width=32, height=32, steps=2, **settings)
    (picture,) = ZImage(str(tiny / ZIMAGE), chosen, device=device).draw(["a bolt"], [5])
    return np.asarray(picture, np.int16)


@pytest.mark.parametrize(
    "settings", [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "offload": True}]
)
def test_a_picture_is_that_of_the_cpu(tiny, settings):
    """Noise is drawn on the CPU; float32 differs by rounding, bfloat16 by a few levels of 255."""
    gap = np.abs(draw(tiny, "cuda", **settings) - draw(tiny, "cpu", dtype="float32"))
    assert gap.mean() < (1 if settings["dtype"] == "float32" else 16)


def test_fp8_where_the_card_has_it(tiny):
    try:
        assert draw(tiny, "cuda", dtype="fp8").std() > 1
    except EnvironmentFault as fault:
        assert "torchao" in str(fault) or "8.9" in str(fault)


def test_a_video(tiny):
    settings = VideoSettings(width=32, height=32, num_frames=5, steps=2, container="webp")
    made = [
        VideoDiffusers(str(tiny / WAN), settings, device=device).draw("a bolt", 5)
        for device in ("cuda", "cpu")
    ]
    assert made[0].shape == (5, 32, 32, 3) and np.abs(made[0].astype(np.int16) - made[1]).mean() < 16
