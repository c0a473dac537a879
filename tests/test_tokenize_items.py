"""The tokenizer of HiD-VAE: layouts through the program, gold and predicted tags, samples in words."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from configs.program import InputError
from data import tags as tagging
from data.artifacts import int_rows
from data.sid import read_sids
from data.store.output import open_output
from rq.stack import residual
from tests import handmade
from tests.categorised import ITEMS, Made, catalogue, fit, write_tags


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    """(data set, sids directory, tags directory, codes, quantizer) of the small catalogue."""
    root = tmp_path_factory.mktemp("tokenizer")
    x_ND, names = catalogue()
    tags = write_tags(root / "tags", names)
    quantizer = fit(root / "q", x_ND, tags)
    data = handmade.write_data(root / "data", titles=[f"Item {i}" for i in range(ITEMS)])
    codes_NL = quantizer.encode(x_ND)
    with open_output(Made(), "assign_sids", version=1, inputs={}, directory=root / "sids") as out:
        table = {"item_id": np.arange(ITEMS, dtype=np.int32), "codes": int_rows(codes_NL)}
        out.write_table("sids.parquet", pa.table(table))
        residual.save(out, quantizer, made_by={})
        out.facts["sizes"] = [8, 8, 8]
    return data, root / "sids", tags, codes_NL, quantizer


def test_the_tokenizer_lays_out_predicted_and_gold_tags(tokenized):
    data, sids, tags, codes_NL, quantizer = tokenized
    words = ["--data", data, "--sids", sids, "--samples", 3]
    said = handmade.succeed("rq.tokenize_items", *words, "--output_dir", sids.with_name("joined"), "--dedup")
    assert said.count("family") >= 3 and "item 0: [" in said and "Item 159" in said
    table = read_sids(sids.with_name("joined"))
    assert len(table.sids_SL) == ITEMS and table.num_levels == 6
    predicted_NT, _ = quantizer.predict_tags(codes_NL)
    assert (table.codes_NL[:, :3] == codes_NL).all() and (table.codes_NL[:, 3:5] == predicted_NT).all()
    layout = json.loads((sids.with_name("joined") / "layout.json").read_text())
    assert layout == {"kinds": ["code"] * 3 + ["tag"] * 2 + ["dedup"], "token_types": list(range(6))}
    gold = ["--tag_source", "gold", "--tags", tags, "--layout", "interleaved"]
    handmade.call("rq.tokenize_items", *words, "--output_dir", sids.with_name("gold"), *gold)
    mixed = read_sids(sids.with_name("gold"))
    truth = tagging.read_tags(tags).classes_NL
    assert mixed.codes_NL[0].tolist() == [
        codes_NL[0, 0],
        truth[0, 0],
        codes_NL[0, 1],
        truth[0, 1],
        codes_NL[0, 2],
    ]
    assert mixed.codes_NL[1, 1] == len(quantizer.vocab.names[0]), "an unknown gold tag is a class of its own"


def test_the_tokenizer_refuses_contradictions(tokenized):
    data, sids, tags, _, _ = tokenized
    words = ["--data", data, "--sids", sids, "--output_dir", sids.with_name("refused")]
    assert "go together" in handmade.refuse("rq.tokenize_items", *words, "--tag_source", "gold")
    with pytest.raises(InputError, match="no place"):
        handmade.call("rq.tokenize_items", *words, "--tag_source", "gold", "--tags", tags, "--layout", "sid")
    other = handmade.write_sids(sids.with_name("plain"), data=None)
    small = handmade.write_data(data.with_name("small"))
    with pytest.raises(InputError):
        handmade.call(
            "rq.tokenize_items", "--data", small, "--sids", other, "--output_dir", sids.with_name("refused")
        )
