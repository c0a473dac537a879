"""rq/vectors/encoders.py through stage 02: tiny random BERT, Qwen and CLIP directories, one process and two."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.program import ROOT, EnvironmentFault, InputError
from data import artifacts
from data.store.output import open_output
from rq.vectors import encoders
from rq.vectors.embeddings import read_embeddings
from tests.handmade import TITLES, Made, call, refuse, tokenizer, write_data

FIELDS = '["title","description"]'


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A data set of 12 items, a BERT and a Qwen directory."""
    import torch
    from transformers import BertConfig, BertModel, Qwen3Config, Qwen3Model

    root = tmp_path_factory.mktemp("encoders")
    write_data(root / "store")
    made = tokenizer("gpt2")
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    bert = BertModel(BertConfig(vocab_size=len(made), max_position_embeddings=128, **shape))
    qwen = Qwen3Model(Qwen3Config(vocab_size=len(made), head_dim=8, num_key_value_heads=1, **shape))
    for name, model in (("bert", bert), ("qwen", qwen)):
        model.save_pretrained(root / name)
        made.save_pretrained(root / name)
    return root


def flags(place: Path, out: Path, model: str, *more: str, normalize: str = "false") -> list[str]:
    parts = f"[{{method: hf, path: {place / model}, normalize: {normalize}}}]"
    return ["--data", str(place / "store"), "--output_dir", str(out), "--parts", parts] + [
        "--text_fields", FIELDS, *more,
    ]  # fmt: skip


def by_hand(place: Path, model: str, pooling: str, *, max_length: int = 512, before: str = "") -> np.ndarray:
    """One text at a time, no padding."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    network, words = (
        AutoModel.from_pretrained(place / model).eval(),
        AutoTokenizer.from_pretrained(place / model),
    )
    rows = []
    for number, title in enumerate(TITLES):
        text = before + "\n".join(
            part for part in (title.strip(), f"A long description of item number {number}.") if part
        )
        ids = words(text, return_tensors="pt", truncation=True, max_length=max_length)["input_ids"]
        with torch.inference_mode():
            hidden = network(input_ids=ids).last_hidden_state[0]
        rows.append({"mean": hidden.mean(0), "last": hidden[-1], "cls": hidden[0]}[pooling].numpy())
    return np.stack(rows)


@pytest.mark.parametrize(("model", "pooling"), [("bert", "mean"), ("bert", "cls"), ("qwen", "last")])
def test_rows_equal_one_text_at_a_time(place, tmp_path, model, pooling):
    call(
        "rq.embed_items",
        *flags(place, tmp_path / "x", model, "--hf.pooling", pooling, "--hf.batch_tokens", "90"),
    )
    x = read_embeddings(tmp_path / "x")
    np.testing.assert_allclose(x, by_hand(place, model, pooling), atol=2e-5)
    counts = json.loads((tmp_path / "x" / "manifest.json").read_text())["counts"]
    assert counts == {"items": 12, "zero_rows": 0, "items_without_text": 0}


def test_instruction_length_limit_and_normalisation(place, tmp_path):
    more = ["--hf.pooling", "last", "--hf.instruction", "What is it? ", "--hf.max_length", "9"]
    call("rq.embed_items", *flags(place, tmp_path / "x", "qwen", *more, normalize="true"))
    raw = by_hand(place, "qwen", "last", max_length=9, before="What is it? ")
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(read_embeddings(tmp_path / "x"), expected, atol=2e-5)


def test_two_processes_give_the_rows_of_one(place, tmp_path):
    call("rq.embed_items", *flags(place, tmp_path / "one", "bert", "--hf.batch_tokens", "90"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = flags(place, tmp_path / "two", "bert", "--hf.batch_tokens", "90")
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"OMP_NUM_THREADS": "1", "CI": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "rq.embed_items", *arguments],
            cwd=ROOT,
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    np.testing.assert_allclose(
        read_embeddings(tmp_path / "two"), read_embeddings(tmp_path / "one"), atol=2e-5
    )
    assert not (tmp_path / "two" / "shards").exists()


def test_dropped_words_depend_on_item_and_seed_only():
    text = " ".join(f"word{i}" for i in range(200))
    kept = encoders.drop_words(text, share=0.3, seed=1, item=5)
    assert kept == encoders.drop_words(text, share=0.3, seed=1, item=5)
    assert kept != encoders.drop_words(text, share=0.3, seed=1, item=6)
    assert 110 < len(kept.split()) < 165
    assert encoders.drop_words("alone", share=0.999, seed=0, item=0) == "alone"


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60), room=st.integers(1, 200))
def test_batches_hold_every_item_once_and_fit(lengths, room):
    batches = encoders.batches_by_tokens(np.array(lengths), batch_tokens=room)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= room


def test_a_missing_or_repeated_item_is_noticed():
    one = (np.array([0, 2]), np.ones((2, 3), np.float32))
    with pytest.raises(EnvironmentFault, match="1 items were not encoded"):
        encoders.collected([one], num_items=3, partial=False)
    with pytest.raises(EnvironmentFault, match="2 twice"):
        encoders.collected([one, one], num_items=3, partial=True)
    assert encoders.collected([one], num_items=3, partial=True)[1].tolist() == [0, 0, 0]


def test_bad_directories_and_options_are_one_line(place, tmp_path):
    line = refuse("rq.embed_items", *flags(place, tmp_path / "x", "store"))
    assert "is not a model directory" in line and not (tmp_path / "x").exists()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="cannot be loaded"):
        encoders.load_model(str(tmp_path / "broken"), dtype="float32")
    with pytest.raises(InputError, match="word_drop 1.0"):
        encoders.TextEncoder(word_drop=1.0)


IMAGES = (
    6  # of the items: 0 and 1 have <raw_id> files, 2 a file named in `image`, 3 a broken file, 4 and 5 none
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Six items, a folder of images, a CLIP and a SigLIP directory."""
    import torch
    from PIL import Image
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        SiglipConfig,
        SiglipImageProcessor,
        SiglipModel,
    )

    root = tmp_path_factory.mktemp("pictures")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for name in ("B0.png", "B1.jpg", "photo2.png"):
        Image.fromarray(rng.integers(0, 255, (40, 30, 3), np.uint8)).save(root / "images" / name)
    (root / "images" / "B3.jpg").write_bytes(b"no image")
    table = {
        "item_id": pa.array(range(IMAGES), pa.int32()),
        "raw_id": [f"B{i}" for i in range(IMAGES)],
        "title": [""] * IMAGES,
        "description": [""] * IMAGES,
        "categories": pa.array([[]] * IMAGES, artifacts.TEXT_LIST),
        "brand": [""] * IMAGES,
        "image": pa.array([None, None, "https://host.example/a/photo2.png?size=2", None, "gone.png", None]),
    }
    with open_output(Made(), "prepare", version=1, inputs={}, directory=root / "store") as out:
        out.write_table("items.parquet", pa.table(table))
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 50,
    }
    square = {"height": 16, "width": 16}
    crop = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=square)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    siglip = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    whole = SiglipImageProcessor(size=square)
    for name, model, processor in (("clip", clip, crop), ("siglip", siglip, whole)):
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    return root


@pytest.mark.parametrize(("model", "width"), [("clip", 12), ("siglip", 16)])
def test_images_become_rows_and_missing_ones_zero_rows(pictures, tmp_path, model, width):
    parts = f"[{{method: clip, path: {pictures / model}}}]"
    common = ["--data", pictures / "store", "--parts", parts, "--clip.images", pictures / "images"]
    call("rq.embed_items", *common, "--output_dir", tmp_path / "x")
    x = read_embeddings(tmp_path / "x")
    assert x.shape == (IMAGES, width)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), [1, 1, 1, 0, 0, 0], atol=1e-5)
    assert not np.allclose(x[0], x[1])
    counts = json.loads((tmp_path / "x" / "manifest.json").read_text())["counts"]
    assert counts == {"items": 6, "zero_rows": 3, "items_without_image": 2, "unreadable_images": 1}


def test_a_changed_image_folder_is_another_input_and_no_image_is_refused(pictures, place, tmp_path):
    from shutil import copy, copytree

    folder = copytree(pictures / "images", tmp_path / "images")
    parts = f"[{{method: clip, path: {pictures / 'clip'}}}]"
    common = ["--data", pictures / "store", "--parts", parts, "--clip.images", folder]
    call("rq.embed_items", *common, "--output_dir", tmp_path / "x")
    copy(folder / "B0.png", folder / "B4.png")
    with pytest.raises(InputError, match="holds another run"):
        call("rq.embed_items", *common, "--output_dir", tmp_path / "x")
    with pytest.raises(InputError, match="is a bert model -> pass a CLIP"):
        call("rq.embed_items", *common[:2], "--parts", f"[{{method: clip, path: {place / 'bert'}}}]",
             *common[4:], "--output_dir", tmp_path / "z")  # fmt: skip
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no item of 6 has an image"):
        call("rq.embed_items", *common[:-1], tmp_path / "none", "--output_dir", tmp_path / "y")
