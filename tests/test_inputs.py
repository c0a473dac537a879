"""What a stage reads is what was written: hashes of files, outputs and models, verified and remembered."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import chdir
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from configs import integrity
from configs.program import AlreadyComplete, InputError
from data import artifacts
from data.store import inputs
from data.store.checkpoints import mark_complete
from data.store.fingerprints import safetensors_header, sha256_bytes, sha256_json
from data.store.inputs import fingerprint, same_input
from data.store.manifest import read_manifest, sealed
from data.store.output import require_manifest
from tests import handmade
from tests.test_checkpoints import flip_bit
from tests.test_output import finish, writing

KINDS = {".parquet", ".npy", ".safetensors", ".json"}


def flip(file: Path, byte: int, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[byte] ^= 1 << bit
    file.write_bytes(data)


def test_a_file_is_hashed_again_when_size_or_time_changed(tmp_path: Path) -> None:
    file = tmp_path / "raw.json"
    file.write_text("abc")
    known = {"size": 3, "mtime_ns": file.stat().st_mtime_ns, "sha256": "remembered"}
    assert fingerprint(file, known) == "remembered"
    os.utime(file, ns=(0, 0))
    assert fingerprint(file, known) == sha256_bytes(b"abc")


def test_a_large_file_is_read_once_and_again_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    monkeypatch.setattr(
        integrity, "sha256", lambda path: reads.append(path) or sha256_bytes(path.read_bytes())
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(integrity, "LARGE", 3)
    monkeypatch.setattr(integrity, "FRESH_SECONDS", -1.0)
    file = tmp_path / "model.safetensors"
    for content in (b"abc", b"abd"):  # of one size
        file.write_bytes(content)
        for _ in range(2):
            monkeypatch.setattr(integrity, "_known", {})  # another process
            assert integrity.remembered_sha256(file) == sha256_bytes(content)
    assert len(reads) == 2
    monkeypatch.setattr(integrity, "FRESH_SECONDS", 60.0)  # another write might leave the same times
    file.write_bytes(b"abe")
    for _ in range(2):
        integrity.remembered_sha256(file)
    assert len(reads) == 4


def model(path: Path, weights: np.ndarray) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    save_file({"w": weights}, path / "model.safetensors")
    return path


def test_models_are_told_apart_by_their_weights(tmp_path: Path) -> None:
    zeros = model(tmp_path / "a", np.zeros((2, 2), np.float32))
    ones = model(tmp_path / "b", np.ones((2, 2), np.float32))  # with the same header
    assert fingerprint(zeros) != fingerprint(ones)
    shutil.copytree(zeros, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == fingerprint(zeros)
    with pytest.raises(InputError, match="neither a finished output"):
        (tmp_path / "empty").mkdir()
        fingerprint(tmp_path / "empty")


def test_an_output_of_a_model_known_by_its_header_is_still_kept(tmp_path: Path) -> None:
    """As manifests and pending records had it before weights were hashed in full."""
    base = model(tmp_path / "base", np.zeros((2, 2), np.float32))
    files = [base / "config.json", base / "model.safetensors"]
    digests = [sha256_bytes(files[0].read_bytes()), sha256_bytes(safetensors_header(files[1]))]
    by_header = sha256_json([[f.name, f.stat().st_size, d] for f, d in zip(files, digests, strict=True)])
    place = finish(tmp_path / "out", source=str(base))
    record = read_manifest(place)
    assert record["inputs"]["source"]["sha256"] == fingerprint(base) != by_header
    record["inputs"]["source"]["sha256"] = by_header
    del record["seal"]
    (place / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(AlreadyComplete):
        finish(place, source=str(base))
    (place / "manifest.json").unlink()
    pending = {key: record[key] for key in ("stage", "stage_version", "config_hash", "config")}
    (place / "pending.json").write_text(json.dumps(pending | {"inputs": {"source": by_header}}))
    with writing(place, source=str(base)) as out:
        assert out.resuming
    assert same_input(base, by_header, fingerprint(base)) and not same_input(
        base, "0" * 64, fingerprint(base)
    )
    finish(tmp_path / "new", source=str(base))
    save_file({"w": np.ones((2, 2), np.float32)}, files[1])
    with pytest.raises(InputError, match=r"holds another run \(input source\)"):
        finish(tmp_path / "new", source=str(base))


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    with writing(tmp_path / "source") as out:
        rows = pa.table({"item_id": pa.array(range(50), pa.int32()), "codes": [[1, 2]] * 50})
        out.write_table("sids.parquet", rows)
        out.write_array("x.npy", np.arange(40, dtype=np.float32))
        out.write_json("deep/facts.json", {"size": 3})
        out.facts["size"] = 16
    return tmp_path / "source"


@pytest.mark.parametrize("name", ["sids.parquet", "x.npy", "deep/facts.json"])
def test_a_flipped_bit_is_refused_by_name_wherever_it_is_read(
    name: str, output_dir: Path, tmp_path: Path
) -> None:
    read = (
        lambda: finish(tmp_path / "out", source=str(output_dir)),
        lambda: require_manifest(output_dir, written_by="the stage"),
        lambda: artifacts.read(output_dir, artifacts.SIDS),
    )
    for each in read[1:]:
        each()
    flip_bit(output_dir / name)
    for each in read:
        with pytest.raises(
            InputError, match=rf"{name} does not match its hash: it is not what stage demo wrote"
        ):
            each()
    assert not (tmp_path / "out").exists()
    (output_dir / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        artifacts.read(output_dir, artifacts.SIDS)


def test_a_flipped_bit_of_a_manifest_is_refused_or_harmless(output_dir: Path) -> None:
    """Every byte of it: damaged, no longer ours, or without its seal and otherwise unchanged."""
    file = output_dir / "manifest.json"
    whole, record = file.read_bytes(), read_manifest(output_dir)
    harmless = 0
    for byte in range(0, len(whole), 3):
        flip(file, byte, bit=byte % 7)
        try:
            found = read_manifest(output_dir)
        except InputError as error:
            assert "manifest.json is damaged" in str(error)
        else:
            assert found is None or all(found.get(key) == record[key] for key in record if key != "seal")
            harmless += 1
        file.write_bytes(whole)
    assert harmless < len(whole) / 30
    file.write_text(json.dumps(sealed(record | {"facts": {"size": 17}})))
    assert read_manifest(output_dir)["facts"] == {"size": 17}


def test_parquet_pages_carry_checksums(tmp_path: Path) -> None:
    """Of a table that is read by itself, without its manifest."""
    values = pa.array(np.random.default_rng(0).integers(0, 1 << 30, 5000))
    with writing(tmp_path / "out") as out:
        out.write_table("t.parquet", pa.table({"x": values}))
    file = tmp_path / "out/t.parquet"
    assert artifacts.read_file(file)["x"].combine_chunks().equals(values)
    flip(file, file.stat().st_size // 2)
    with pytest.raises(InputError, match="is not a readable parquet file"):
        artifacts.read_file(file)


def test_the_raw_files_of_a_list_count_by_name_and_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    both = [tmp_path / "a", tmp_path / "b"]
    one, other = inputs.hash_inputs({"raw": both}, None), inputs.hash_inputs({"raw": both[::-1]}, None)
    assert one["raw"]["sha256"] != other["raw"]["sha256"] and len(one["raw"]["files"]) == 2


@pytest.mark.long
def test_two_hundred_flipped_bits_over_the_inputs_of_all_stages(chain, tmp_path: Path) -> None:
    """Each in another place of another file; a stage opens its inputs by their fingerprints before anything else."""
    made = tmp_path / "made"
    shutil.copytree(chain.data, made / "data")
    for name in ("base", "vocab"):
        shutil.copytree(chain.model.with_name(name), made / name)
    final = shutil.copytree(chain.model, made / "sft/final")
    (final / "manifest.json").unlink()
    mark_complete(final, step=1, full=True)
    steps = ('rq.embed_items --data data --parts [{"method":"tfidf_svd","dim":8}] --output_dir e', "rq.train_quantizer "
             "--embeddings e --rqkmeans.sizes [4,4,4] --output_dir q", "preprocess.complete_tags --data data "
             "--classes.rare_threshold 1 --output_dir tags", "infer.recommend --model vocab --examples data/examples/x "
             "--sids data/sids/x --max_rows 5 --output_dir predictions")  # fmt: skip
    with chdir(made):
        for step in steps:
            handmade.call(*step.split())
    whole = {
        path: fingerprint(path) for path in sorted({f.parent for f in made.rglob("manifest.json")} | {final})
    }
    rng, refused, harmless = np.random.default_rng(0), 0, []
    files = [
        (path, file)
        for path in whole
        for file in sorted(path.iterdir())
        if file.is_file() and file.suffix in KINDS
    ]
    for number in range(200):
        path, file = files[number % len(files)]
        before, size = file.read_bytes(), file.stat().st_size
        flip(file, int(rng.integers(size)), int(rng.integers(8)))
        try:
            same = fingerprint(path) == whole[path]
            assert same, f"{file} changed unseen"
            harmless.append(str(file.relative_to(made)))
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
        file.write_bytes(before)
    print(f"{len(files)} files, 200 flipped bits: {refused} refused, {len(harmless)} harmless: {harmless}")
    assert refused + len(harmless) == 200 and len(harmless) < 20
