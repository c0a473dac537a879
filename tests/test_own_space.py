"""data/store/lineage.py: which vectors a quantizer may code, and that a report leaves out vectors that are others by now."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from configs.program import InputError
from data.store.lineage import require_own_space
from data.store.output import open_output
from rq.vectors.embeddings import read_embeddings
from tests.handmade import call, refuse, resign
from tests.store import write_store

DIM = 8


@dataclass
class Recipe:
    """The configuration that a hand-made output records."""

    what: str = "text"
    overwrite: bool = True


def write(path: Path, content: str, *, what: str = "text", **inputs: Path | None) -> Path:
    with open_output(Recipe(what), "by_hand", version=1, inputs=inputs, directory=path) as out:
        out.write_text("content.txt", content)
    return path


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A data set, vectors of it, and a quantizer that was trained on them."""
    write(tmp_path / "data", "items")
    write(tmp_path / "e", "vectors", data=tmp_path / "data")
    write(tmp_path / "q", "codebooks", embeddings=tmp_path / "e")
    return tmp_path


def require(place: Path, embeddings: str, *, quantizer: str = "q", data: str = "data") -> None:
    require_own_space(place / quantizer, place / embeddings, place / data, again="stage 04")


def test_vectors_of_another_recipe_are_refused_though_the_data_are_the_same(trained):
    write(trained / "other", "other vectors", what="images", data=trained / "data")
    with pytest.raises(
        InputError, match="other is neither these vectors nor made with rq.embed_items --like"
    ):
        require(trained, "other")
    write(trained / "e", "other vectors", what="images", data=trained / "data")
    with pytest.raises(InputError, match="neither these vectors"):
        require(trained, "e")  # the same place, other content


def test_the_same_vectors_elsewhere_and_once_more_are_at_home(trained):
    shutil.copytree(trained / "e", trained / "copy")
    write(trained / "again", "vectors with other last bits", data=trained / "data")
    for name in ("e", "copy", "again"):
        require(trained, name)


def test_what_extends_the_vectors_is_at_home_as_long_as_the_trail_holds(trained):
    write(trained / "data2", "more items")
    write(trained / "e2", "more vectors", data=trained / "data2", like=trained / "e")
    write(trained / "e3", "still more vectors", data=trained / "data2", like=trained / "e2")
    for name in ("e2", "e3"):
        require(trained, name, data="data2")
    write(trained / "e2", "others", what="images", data=trained / "data2", like=trained / "e3")
    with pytest.raises(InputError, match="another state of the data"):
        require(trained, "e3", data="data2")  # by now e2 and e3 each say that they extend the other


def test_a_quantizer_that_does_not_say_what_it_was_trained_on_is_known_by_its_data(trained):
    write(trained / "imported", "codebooks", data=trained / "data")
    write(trained / "silent", "codebooks")
    write(trained / "data2", "more items")
    write(trained / "other", "other vectors", what="images", data=trained / "data")
    for name in ("imported", "silent"):
        require(trained, "other", quantizer=name)
    with pytest.raises(InputError, match="another state of the data"):
        require(trained, "other", quantizer="imported", data="data2")


def test_the_programs_refuse_another_space_and_report_without_it(tmp_path, capsys):
    """Two embeddings of one width and one data set; then the vectors are made anew where the first ones lay."""
    data = write_store(tmp_path / "store")
    text, behaviour = (f"[{{method: {method}, dim: {DIM}}}]" for method in ("tfidf_svd", "cooccurrence"))
    common = ["--data", data, "--tfidf.max_df", "0.6"]
    call("rq.embed_items", *common, "--output_dir", tmp_path / "e", "--parts", text)
    call("rq.embed_items", "--data", data, "--output_dir", tmp_path / "other", "--parts", behaviour)
    call("rq.train_quantizer", "--embeddings", tmp_path / "e", "--output_dir", tmp_path / "q",
         "--rqkmeans.sizes", "[8,8]")  # fmt: skip
    flags = ["--data", data, "--quantizer", tmp_path / "q", "--map", "pca"]
    line = refuse(
        "rq.assign_sids", *flags, "--embeddings", tmp_path / "other", "--output_dir", tmp_path / "bad"
    )
    assert "neither these vectors nor" in line and not (tmp_path / "bad").exists()
    call("rq.assign_sids", *flags, "--embeddings", tmp_path / "e", "--output_dir", tmp_path / "s")

    np.save(tmp_path / "e" / "embeddings.npy", read_embeddings(tmp_path / "other"))
    resign(tmp_path / "e")
    call("rq.report_quality", "--sids", json.dumps([str(tmp_path / "s")]), "--map", "pca",
         "--output_dir", tmp_path / "r")  # fmt: skip
    report = json.loads((tmp_path / "r" / "quality_report.json").read_text())["s"]
    assert report["neighbours"]["embedding"] is None and "nearest" not in report
    assert f"{tmp_path / 'e'} is no longer what" in capsys.readouterr().err
