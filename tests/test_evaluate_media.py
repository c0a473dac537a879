"""Measures of pictures by hand and by a tiny CLIP, and the gallery page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import artifacts
from data.tasks import example_id
from generation import alignment
from generation.init_tiny_models import CLIP, clip, tokenizer
from generation.requests import RequestSettings, read_requests
from infer.metrics.measure import means_of_known
from tests.handmade import SEQUENCES, call, refuse, succeed, write_data, write_sids
from tests.media import Sketch, draw, write_instructions

PROGRAM = "generation.evaluate_media"
ROWS = [
    {"example_id": example_id("history_to_instruction", 102), "user_id": 0, "target_item": 6, "item_ids": [7, 6, 1], "terms": ["nut", "<b>brass</b>"], "instruction": "A nut <script>alert(1)</script>"},
    {"example_id": example_id("history_to_instruction", 103), "user_id": 1, "target_item": 8, "item_ids": [4], "terms": ["nail gun"], "instruction": "A nail gun & a lamp"},
    {"example_id": example_id("history_to_instruction", 104), "user_id": 2, "target_item": 0, "terms": [], "instruction": "A bolt"},
    {"example_id": example_id("history_to_instruction", 107), "user_id": 0, "target_item": 6, "terms": ["nut"], "instruction": ""},
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory) -> Path:
    import torch

    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("models") / CLIP
    for part in clip():
        part.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """Pictures of three of four rows."""
    place = tmp_path_factory.mktemp("media")
    instructions = str(write_instructions(place / "i", ROWS))
    requests = read_requests(
        RequestSettings(),
        kind="image",
        instructions=instructions,
        examples=None,
        prompts=None,
        dataset="shop",
    )
    draw(place / "m", requests, Sketch(), model="tiny-random-zimage")
    return place / "m"


def test_media_are_measured_and_shown(tiny_clip, media, tmp_path):
    data = write_data(tmp_path / "shop")
    sids = write_sids(tmp_path / "shop/sids/s", data=data)
    pictures = tmp_path / "items"
    pictures.mkdir()
    for item in (0, 1, 5, 6):
        shade = np.random.default_rng(item).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(shade).save(pictures / f"B{item:04d}.png")
    flags = ("--media", media, "--data", data, "--sids", sids, "--resamples", 50)
    succeed(PROGRAM, *flags, "--model", tiny_clip, "--item_images", pictures, "--output_dir", tmp_path / "g")
    metrics = json.loads((tmp_path / "g/metrics.json").read_text())
    rows = artifacts.read_file(tmp_path / "g/rows.parquet")
    assert metrics["all/made_share"]["value"] == 0.75 and metrics["all/refused_share"]["value"] == 0.25
    for name in ("alignment/prompt", "personalisation/titles", "personalisation/pictures"):
        assert {f"{name}.{part}" for part in ("own", "others", "gap", "win")} <= metrics.keys()
        gap = metrics[f"{name}.own"]["value"] - metrics[f"{name}.others"]["value"]
        assert metrics[f"{name}.gap"]["value"] == pytest.approx(gap, abs=2e-6)
    unknown = np.isnan(rows["personalisation/titles.own"].to_numpy())
    assert unknown.tolist() == [False, False, True], "an empty history is unknown, not 0"
    assert metrics["protocol"]["random_weights"] == ["tiny-random-zimage", CLIP]
    html = (tmp_path / "g/index.html").read_text()
    assert "<script" not in html and "A nut &lt;script&gt;" in html and "&lt;b&gt;brass" in html
    assert "http" not in html and html.count("data:image/jpeg;base64,") == html.count("<article") == 3
    assert "Random weights: tiny-random-zimage and tiny-random-clip" in html
    assert "and 1 more with these terms" in html and "chosen next: Nail &lt;|end|&gt; gun" in html
    assert html.count('class="verdict yes">chosen next') == 1 and html.count("no item of the catalogue") == 1
    assert np.isnan(rows["alignment/item"].to_numpy()).tolist() == [False, False, True]
    assert not np.isnan(rows["alignment/target"].to_numpy()).any()
    assert "Brass nut" in html and "<code>&lt;a_2&gt;&lt;b_2&gt;&lt;c_2&gt;</code>" in html


def test_without_a_model_and_with_the_wrong_ones(media, tmp_path):
    data = write_data(tmp_path / "shop")
    flags = ("--media", media, "--data", data, "--resamples", 0)
    succeed(PROGRAM, *flags, "--output_dir", tmp_path / "plain")
    metrics = json.loads((tmp_path / "plain/metrics.json").read_text())
    assert {name for name in metrics if not name.startswith("all/")} == {"protocol"}
    for flag, value in (("--item_images", tmp_path), ("--others", 3), ("--history", 5)):
        line = refuse(PROGRAM, *flags, flag, value, "--output_dir", tmp_path / "n")
        assert f"{flag[2:]} {value} is read only with model" in line
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "bert/model.safetensors").write_bytes(bytes(8))
    line = refuse(PROGRAM, *flags, "--model", tmp_path / "bert", "--output_dir", tmp_path / "n")
    assert "is a bert model -> pass a CLIP or SigLIP" in line and not (tmp_path / "n").exists()
    other = write_data(tmp_path / "other", sequences=SEQUENCES[:2])
    line = refuse(PROGRAM, "--media", media, "--data", other, "--output_dir", tmp_path / "n")
    assert "pass the --data that the media was made for" in line


def siglip(place: Path) -> Path:
    """A tiny SigLIP, whose texts end at their last place."""
    import torch
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config=sizes | {"vocab_size": 300, "max_position_embeddings": 64, "projection_size": 16},
        vision_config=sizes | {"image_size": 32, "patch_size": 8},
    )
    for part in (SiglipModel(config), tokenizer(longest=64)):
        part.save_pretrained(place)
    return place


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_texts_are_encoded_as_the_model_does(tiny_clip, tmp_path, kind):
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = tiny_clip if kind == "clip" else siglip(tmp_path / "siglip")
    texts = ["a bolt", "a much longer text about a drum " * 9]
    padding = {
        "clip": {"padding": True, "max_length": 77},
        "siglip": {"padding": "max_length", "max_length": 64},
    }[kind]
    ids = AutoTokenizer.from_pretrained(model)(texts, truncation=True, return_tensors="pt", **padding)
    given = {"input_ids": ids["input_ids"]} if kind == "siglip" else dict(ids)
    with torch.no_grad():
        out = AutoModel.from_pretrained(model)(**given, pixel_values=torch.zeros(1, 3, 32, 32)).text_embeds
    expected = torch.nn.functional.normalize(out, dim=-1).numpy()
    assert np.abs(alignment.encode_texts(texts, model=str(model)) - expected).max() < 1e-5


def test_a_picture_beside_its_own_and_the_words_of_others():
    """Three rows of users 1, 1 and 2 in two dimensions, by hand."""
    texts = alignment.unit(np.array([[2.0, 0.0], [3.0, 3.0], [0.0, 0.0]], np.float32))
    histories = alignment.profiles(texts, [[0, 1], [2], [0]])
    half = np.sqrt(0.5)
    assert histories[0] == pytest.approx([(1 + half) / 2, half / 2]) and np.isnan(histories[1]).all()
    pictures = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    others = alignment.other_rows(np.array([1, 1, 2]), count=1, seed=0)
    assert others[:2].tolist() == [[2], [2]] and others[2, 0] in (0, 1)
    found = alignment.against_others(pictures, histories, np.array([[2, 1], [0, 0], [0, 1]]))
    assert found["own"][0] == pytest.approx((1 + half) / 2) and np.isnan(found["own"][1])
    assert found["others"][0] == 1 and found["win"][0] == 0, (
        "row 1 has no history: it does not count among the others"
    )
    assert (found["own"][2], found["others"][2], found["win"][2]) == (0, pytest.approx(half / 2), 0)
    even = alignment.against_others(pictures, np.ones((3, 2)), np.array([[1], [2], [0]]))
    assert even["win"].tolist() == [0.5, 0.5, 0.5] and even["gap"].tolist() == [0, 0, 0]
    assert alignment.other_rows(np.array([4, 4]), count=1, seed=0).shape == (2, 0)


def test_pictures_of_one_user_are_measured_without_others(tiny_clip, tmp_path, capsys):
    instructions = str(write_instructions(tmp_path / "i", ROWS[:1]))
    requests = read_requests(
        RequestSettings(),
        kind="image",
        instructions=instructions,
        examples=None,
        prompts=None,
        dataset="shop",
    )
    draw(tmp_path / "m", requests, Sketch())
    data = write_data(tmp_path / "shop")
    call(
        PROGRAM,
        "--media",
        tmp_path / "m",
        "--data",
        data,
        "--model",
        tiny_clip,
        "--output_dir",
        tmp_path / "g",
    )
    assert "all pictures are of one user, nobody to compare with" in capsys.readouterr().err
    metrics = json.loads((tmp_path / "g/metrics.json").read_text())
    told = {name for name in metrics if name.split("/")[0] in ("alignment", "personalisation")}
    assert told == {
        "alignment/prompt.own",
        "alignment/item",
        "alignment/target",
        "personalisation/titles.own",
    }
    assert (tmp_path / "g/index.html").read_text().count("<article") == 1


def test_means_and_intervals_leave_out_what_is_unknown():
    columns = {"a": np.array([1.0, np.nan, 3.0]), "b": np.full(3, np.nan)}
    summary = means_of_known(columns, np.array([1, 2, 3]), resamples=200, seed=0)
    assert summary.keys() == {"a"} and summary["a"]["value"] == 2
    assert summary["a"]["low"] == 1 and summary["a"]["high"] == 3
