"""rq.import_sids: published files in and out, as a user runs it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.program import InputError
from data.sid import FORMATS, read_sids
from tests.handmade import CODES, SIZES, call, refuse, succeed, write_data, write_sids

TOKENS = [[f"<{'abc'[level]}_{code}>" for level, code in enumerate(row)] for row in CODES.tolist()]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("import") / "store")


def index_file(path: Path, rows: list[list[str]] = TOKENS) -> Path:
    """An index.json whose keys are the raw ids of the hand-made data set, in another order."""
    value = {f"B{item:04d}": rows[item] for item in reversed(range(len(rows)))}
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(json.dumps(value).encode()))
    else:
        path.write_text(json.dumps(value))
    return path


def test_a_published_index_becomes_a_sids_directory_and_comes_out_again(data, tmp_path):
    source = index_file(tmp_path / "x.index.json.gz")
    succeed("rq.import_sids", "--source", source, "--data", data, "--output_dir", tmp_path / "sids",
            "--sizes", list(SIZES))  # fmt: skip
    table = read_sids(tmp_path / "sids")
    assert np.array_equal(table.codes_NL, CODES) and table.sizes == SIZES
    report = json.loads((tmp_path / "sids" / "quality.json").read_text())
    assert report["assigned"]["collisions"]["surplus"] == 2 and "nearest" not in report
    assert report["affected_targets"]["test"] == {"rows": 1, "affected": 1, "share": 1.0}
    assert (tmp_path / "sids" / "quality.png").read_bytes().startswith(b"\x89PNG")

    succeed("rq.import_sids", "--sids", tmp_path / "sids", "--data", data, "--output_dir", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index == {f"B{item:04d}": tokens for item, tokens in enumerate(TOKENS)}
    assert json.loads((tmp_path / "out" / "id2sid.json").read_text()) == index
    tokens = json.loads((tmp_path / "out" / "new_tokens.json").read_text())
    assert tokens == sorted({token for row in TOKENS for token in row})
    cids = pq.read_table(tmp_path / "out" / "cids.parquet")
    assert cids["cid"][1].as_py() == "<|cid_begin|><s_a_0><s_b_1><s_c_2><|cid_end|>"
    assert cids["raw_id"].to_pylist() == list(index)

    call("rq.import_sids", "--source", tmp_path / "out" / "cids.parquet", "--data", data, "--sizes", list(SIZES),
         "--output_dir", tmp_path / "back", "--id_offset", "0")  # fmt: skip
    assert np.array_equal(read_sids(tmp_path / "back").codes_NL, CODES)


def test_the_constrained_builders_ranks_and_offset_survive_a_round_trip(data, tmp_path):
    distinct = {tuple(row): at for at, row in enumerate(CODES.tolist())}
    ranked = [
        [f"<{'abc'[level]}_{code + 1}>" for level, code in enumerate(row)]
        + ([f"<d_{1 + (distinct[tuple(row)] == at)}>"] if CODES.tolist().count(row) > 1 else [])
        for at, row in enumerate(CODES.tolist())
    ]
    source = index_file(tmp_path / "x.json", ranked)
    call(
        "rq.import_sids",
        "--source",
        source,
        "--data",
        data,
        "--code_offset",
        "1",
        "--output_dir",
        tmp_path / "s",
    )
    table = read_sids(tmp_path / "s")
    assert np.array_equal(table.codes_NL[:, :3], CODES) and len(table.sids_SL) == len(CODES)
    assert table.codes_NL[:, 3].tolist() == [0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 1, 2]
    call("rq.import_sids", "--sids", tmp_path / "s", "--data", data, "--code_offset", "1", "--drop_last_zero", "true",
         "--output_dir", tmp_path / "out")  # fmt: skip
    assert list(json.loads((tmp_path / "out" / "index.json").read_text()).values()) == ranked
    assert "<d_0>" not in json.loads((tmp_path / "out" / "new_tokens.json").read_text())


def test_a_parquet_of_codes_with_other_numbers_is_read(data, tmp_path):
    # The hand-made raw ids are no numbers: rename them by reading item ids as texts.
    table = {"item_id": [f"B{item:04d}" for item in range(len(CODES))], "sid": CODES.tolist()}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    call("rq.import_sids", "--source", tmp_path / "x.parquet", "--data", data, "--output_dir", tmp_path / "s")
    assert np.array_equal(read_sids(tmp_path / "s").codes_NL, CODES)
    assert read_sids(tmp_path / "s").sizes == tuple((CODES.max(0) + 1).tolist())


def test_codes_outside_their_level_are_refused_with_the_item_and_the_flags(data, tmp_path):
    whole = index_file(tmp_path / "whole.json")
    for flags, message in (
        (
            ["--code_offset", "1"],
            r"has code -1 at level \d, outside .* \(code_offset 1\) -> check code_offset",
        ),
        (["--sizes", "[9,9]"], "has IDs of 3 levels, sizes has 2 numbers -> one per level"),
    ):
        with pytest.raises(InputError, match=message):
            call("rq.import_sids", "--source", whole, "--data", data, *flags, "--output_dir", tmp_path / "s")


def test_what_does_not_fit_is_refused_in_one_line(data, tmp_path):
    source = index_file(tmp_path / "short.json", TOKENS[:-2])
    line = refuse("rq.import_sids", "--source", source, "--data", data, "--output_dir", tmp_path / "s")
    assert "no ID for 2 of 12 items (raw_id B0010, B0011)" in line and not (tmp_path / "s").exists()
    whole = index_file(tmp_path / "whole.json")
    with pytest.raises(
        InputError, match="whole.json: raw_id B.* has code 3 at level 1, outside 0..2 .*-> check"
    ):
        call(
            "rq.import_sids",
            "--source",
            whole,
            "--data",
            data,
            "--sizes",
            "[3,3,5]",
            "--output_dir",
            tmp_path / "s",
        )
    with pytest.raises(InputError, match="are not numbers"):
        call(
            "rq.import_sids",
            "--source",
            whole,
            "--data",
            data,
            "--id_offset",
            "1",
            "--output_dir",
            tmp_path / "s",
        )
    fmt = FORMATS["navigen"]
    cids = [fmt.text(row) for row in CODES.tolist()]
    for bad in (
        "<s_a_0><s_b_1><s_c_2>",
        cids[3] + " ",
        "<|cid_begin|><s_a_0><s_c_1><s_b_2><|cid_end|>",
        "x" + cids[3],
    ):
        table = {"item_id": [f"B{i:04d}" for i in range(12)], "cid": [*cids[:3], bad, *cids[4:]]}
        pq.write_table(pa.table(table), tmp_path / "bad.parquet")
        with pytest.raises(InputError, match="is not one CID of 3 levels"):
            call(
                "rq.import_sids",
                "--source",
                tmp_path / "bad.parquet",
                "--data",
                data,
                "--output_dir",
                tmp_path / "s",
            )
    for flags, message in (
        (["--output_dir", "x"], "either --source .import. or --sids"),
        (["--source", "x", "--output_dir", "x"], "--source needs --data"),
        (["--sids", "x", "--sizes", "[4]", "--output_dir", "x"], "belongs to an export"),
        (["--source", "nowhere", "--data", str(data), "--output_dir", "x"], "missing file: nowhere"),
    ):
        with pytest.raises(InputError, match=message):
            call("rq.import_sids", *flags)
    sids = write_sids(tmp_path / "other", data=data, codes=CODES[:5])
    with pytest.raises(InputError, match="has 5 items"):
        call("rq.import_sids", "--sids", sids, "--data", data, "--output_dir", tmp_path / "out")
