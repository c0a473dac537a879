"""Stages 02 and 04 as a user runs them, on a small store whose items come in six topics."""

import json
import shutil
from dataclasses import dataclass
from types import SimpleNamespace
from typing import get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import program
from configs.program import InputError
from data.artifacts import INT_LIST, TEXT_LIST
from data.sid import read_sids
from data.store import output
from rq import assign_sids, embed_items, train_quantizer
from rq.stack import residual
from rq.vectors.embeddings import read_embeddings
from tests import handmade
from tests.handmade import run

TOPICS = (
    "pen ink paper",
    "hose garden soil",
    "drill wood screw",
    "lamp light bulb",
    "cup tea pot",
    "rope knot sail",
)
NUM_ITEMS, COLD = 60, 59
CONFIG = {"sizes": "[6,4,8]"}


@dataclass
class ByHand:
    """What the manifest of a hand-made directory says."""

    output_dir: str


def python(*words, module):
    """(exit code, stdout, last line of stderr) of one program."""
    done = run(module, *words)
    return done.returncode, done.stdout, (done.stderr.strip().splitlines() or [""])[-1]


def write_store(path):
    """60 items; items 0, 6 and 12 have the same text, item 7 has none, item 59 is in no train row."""
    rng = np.random.default_rng(0)
    words = [TOPICS[i % 6].split() for i in range(NUM_ITEMS)]
    titles = [f"{w[i % 3]} {w[(i + 1) % 3]} model{i // 12} size{i % 5}" for i, w in enumerate(words)]
    titles[6] = titles[12] = titles[0]
    titles[7] = ""
    categories = [["shop", TOPICS[i % 6][:4]] if i != 7 else [] for i in range(NUM_ITEMS)]
    users, histories, targets, splits = [], [], [], []
    for user in range(60):
        topic = np.arange(user % 6, NUM_ITEMS - 1, 6)
        chain = rng.choice(topic, 6).tolist()
        for position in range(1, 6):
            users.append(user)
            histories.append(chain[:position])
            targets.append(chain[position])
            splits.append("valid" if position == 5 else "train")
    items = {
        "item_id": pa.array(range(NUM_ITEMS), pa.int32()),
        "raw_id": [str(i) for i in range(NUM_ITEMS)],
        "title": titles,
        "description": [""] * NUM_ITEMS,
        "categories": pa.array(categories, TEXT_LIST),
        "brand": [""] * NUM_ITEMS,
    }
    sequences = {
        "example_id": range(len(users)),
        "user_id": pa.array(users, pa.int32()),
        "history": pa.array(histories, INT_LIST),
        "target": pa.array(targets, pa.int32()),
        "split": splits,
    }
    with output.open_output(ByHand(str(path)), "by_hand", version=1, inputs={}, directory=path) as out:
        out.write_table("items.parquet", pa.table(items))
        out.write_table("sequences.parquet", pa.table(sequences))


def manifest(path):
    return json.loads((path / "manifest.json").read_text())


PARTS = "[{method: tfidf_svd, dim: 16}, {method: cooccurrence, dim: 8, weight: 0.5}]"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The store after stages 02 and 04."""
    path = tmp_path_factory.mktemp("store")
    write_store(path)
    steps = [
        ("rq.embed_items", ["--data", path, "--output_dir", path / "embeddings/both", "--parts", PARTS]),
        (
            "rq.train_quantizer",
            ["--embeddings", path / "embeddings/both", "--output_dir", path / "quantizers/q"]
            + ["--rqkmeans.sizes", CONFIG["sizes"]],
        ),
        ("rq.assign_sids", [*assign_flags(path), "--output_dir", path / "sids/q"]),
    ]
    for module, words in steps:
        code, _, error = python(*words, module=module)
        assert code == 0, error
    return path


def assign_flags(path):
    return ["--data", path, "--embeddings", path / "embeddings/both", "--quantizer", path / "quantizers/q"]


def test_embeddings_have_both_parts_and_count_what_is_missing(store):
    x = read_embeddings(store / "embeddings/both")
    assert x.shape == (NUM_ITEMS, 24) and isinstance(x, np.memmap)
    # The one item without text has terms that no other item has: nothing is known of it there.
    np.testing.assert_allclose(np.linalg.norm(x[:, :16], axis=1), np.arange(NUM_ITEMS) != 7, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(x[:, 16:], axis=1), 0.5, atol=1e-5)
    record = manifest(store / "embeddings/both")
    assert record["facts"] == {"dim": 24, "method": "tfidf_svd+cooccurrence"}
    assert record["counts"]["items_without_cooccurrence"] == record["counts"]["filled_from_neighbours"] >= 1
    assert record["counts"]["zero_rows"] == 0


def test_every_item_has_its_own_sid_and_the_facts_agree(store):
    table, facts = read_sids(store / "sids/q"), manifest(store / "sids/q")["facts"]
    assert table.sizes == (6, 4, 8) and len(table.sids_SL) == NUM_ITEMS
    assert facts == {"sizes": [6, 4, 8], "levels": 3, "sids_sha256": table.sha256}
    # 4 * 8 codes hold a topic's ten items, so the repair moves last codes only.
    quantizer, _ = residual.load(store / "sids/q")
    nearest = quantizer.encode(read_embeddings(store / "embeddings/both"))
    assert np.array_equal(nearest[:, :1], table.codes_NL[:, :1])
    moved = int((nearest != table.codes_NL).any(1).sum())
    counts = manifest(store / "sids/q")["counts"]
    assert counts["moved"] == moved > 0
    assert (
        counts["collisions_before"] == NUM_ITEMS - len(np.unique(nearest, axis=0))
        and counts["collisions_after"] == 0
    )


def test_the_quality_report_sees_the_topics(store):
    report = json.loads((store / "sids/q/quality.json").read_text())
    assert report["nearest"]["collisions"]["rate"] > 0 == report["assigned"]["collisions"]["rate"]
    assert report["behaviour"]["pairs"] == 60
    assert report["behaviour"]["depth_1"]["lift"] > 3
    assert report["purity"]["category_level"] == 1 and report["purity"]["items"] == NUM_ITEMS - 1
    assert report["purity"]["depth_1"] > 0.9 > 0.2 > report["purity"]["largest_category"]
    errors = report["assigned"]["reconstruction_error"]
    assert (
        errors == sorted(errors, reverse=True) and errors[-1] >= report["nearest"]["reconstruction_error"][-1]
    )


def test_a_finished_run_is_kept_and_a_repeated_one_is_equal(store, tmp_path):
    code, said, _ = python(*assign_flags(store), "--output_dir", store / "sids/q", module="rq.assign_sids")
    assert code == 0 and "already complete" in said
    flags = ["--data", store, "--output_dir", tmp_path / "again", "--parts", PARTS]
    assert python(*flags, module="rq.embed_items")[0] == 0
    again, first = (
        manifest(path)["content_hash"] for path in (tmp_path / "again", store / "embeddings/both")
    )
    assert again == first


def test_a_collision_level_is_a_level_of_all_items(store, tmp_path):
    flags = [*assign_flags(store), "--output_dir", tmp_path / "four", "--repair", "collision_level"]
    code, _, error = python(*flags, module="rq.assign_sids")
    assert code == 0, error
    table = read_sids(tmp_path / "four")
    assert table.num_levels == 4 and table.sizes[:3] == (6, 4, 8) and len(table.sids_SL) == NUM_ITEMS
    report = json.loads((tmp_path / "four/quality.json").read_text())
    assert report["moved"] == 0 and len(report["assigned"]["levels"]) == 4
    assert table.sizes[3] == report["nearest"]["collisions"]["largest_group"] >= 3


def test_last_codes_by_popularity_are_those_of_the_train_rows(store, monkeypatch):
    counts = np.arange(NUM_ITEMS) * 7 % 13
    monkeypatch.setattr(
        assign_sids, "read_train_log", lambda data, num_items: SimpleNamespace(popularity_N=counts)
    )
    args = assign_sids.AssignArgs(
        str(store), str(store / "embeddings/both"), "none", str(store / "quantizers/q"), repair="popularity"
    )
    table = assign_sids.assign(args, read_embeddings(store / "embeddings/both")).table
    _, prefix_N = np.unique(table.codes_NL[:, :-1], axis=0, return_inverse=True)
    order = np.lexsort((table.codes_NL[:, -1], prefix_N))
    same = np.diff(prefix_N[order]) == 0
    assert same.any() and (np.diff(counts[order])[same] <= 0).all() and len(table.sids_SL) == NUM_ITEMS


def test_given_embeddings_are_a_part_and_their_content_is_an_input(store, tmp_path):
    parts = (
        f"[{{method: given, path: {store / 'embeddings/both'}, weight: 2}}, {{method: cooccurrence, dim: 4}}]"
    )
    flags = ["--data", store, "--output_dir", tmp_path / "x", "--parts", parts, "--fill_neighbours", "0"]
    assert python(*flags, module="rq.embed_items")[0] == 0
    x, record = read_embeddings(tmp_path / "x"), manifest(tmp_path / "x")
    np.testing.assert_allclose(np.linalg.norm(x[:, :24], axis=1), 2, atol=1e-5)
    assert not x[COLD, 24:].any() and record["counts"]["filled_from_neighbours"] == 0
    assert (
        record["inputs"]["given"]["files"][0]["sha256"] == manifest(store / "embeddings/both")["content_hash"]
    )


def assert_refused(store, tmp_path, program_module, words, *parts):
    """The program stops with one line that says every part, and leaves no output."""
    args_class = get_type_hints(program_module.main)["args"]
    with pytest.raises(InputError) as caught:
        args, _ = program.parse(args_class, [*map(str, words), "--output_dir", str(tmp_path / "out")])
        program_module.main(args)
    assert not (tmp_path / "out").exists()
    assert all(part in str(caught.value) for part in parts), caught.value


def test_a_refusal_is_one_line_and_exit_code_2(store, tmp_path):
    flags = [*assign_flags(store), "--output_dir", tmp_path / "out", "--repair", "maybe"]
    code, said, error = python(*flags, module="rq.assign_sids")
    assert (code, said) == (2, "") and error.startswith("ERROR 2: ") and "maybe" in error
    assert not (tmp_path / "out").exists()


def test_bad_options_are_refused(store, tmp_path):
    data, quantizer = ["--data", store], ["--embeddings", store / "embeddings/both"]
    bad_part = "[{method: tfidf_svd, path: somewhere}]"
    assert_refused(store, tmp_path, embed_items, [*data, "--parts", bad_part], "`path`")
    assert_refused(store, tmp_path, embed_items, [*data, "--parts", "[{method: bert}]"], "bert")
    assert_refused(store, tmp_path, train_quantizer, [*quantizer, "--rqkmeans.sizes", "[4,0]"], "[4, 0]")


def test_too_few_codes_for_the_items_are_refused(store, tmp_path):
    words = [
        "--embeddings",
        store / "embeddings/both",
        "--output_dir",
        tmp_path / "q",
        "--rqkmeans.sizes",
        "[5,5]",
    ]
    assert python(*words, module="rq.train_quantizer")[0] == 0
    flags = [*assign_flags(store)[:-1], tmp_path / "q"]
    assert_refused(store, tmp_path, assign_sids, flags, "60 items do not fit into 25 semantic IDs (5 x 5)")


def test_vectors_that_are_not_finite_are_refused_by_row(store, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(store / "embeddings/both", broken)
    x = np.load(broken / "embeddings.npy")
    x[[3, 41]] = np.nan
    np.save(broken / "embeddings.npy", x)
    handmade.resign(broken)
    assert_refused(store, tmp_path, train_quantizer, ["--embeddings", broken], "2 rows", "3, 41")
    x[[3, 41]] = 1e25  # finite, but its square is not: faiss would abort the process
    np.save(broken / "embeddings.npy", x)
    handmade.resign(broken)
    assert_refused(
        store, tmp_path, train_quantizer, ["--embeddings", broken], "2 rows hold values above", "3, 41"
    )


def test_vectors_of_another_catalogue_or_width_are_refused(store, tmp_path):
    for name, cut in (("fewer", np.s_[:50]), ("narrow", np.s_[:, :9])):
        shutil.copytree(store / "embeddings/both", tmp_path / name)
        x = np.load(tmp_path / name / "embeddings.npy")
        np.save(tmp_path / name / "embeddings.npy", x[cut])
        handmade.resign(tmp_path / name)
    flags = assign_flags(store)
    assert_refused(
        store, tmp_path, assign_sids, [*flags, "--embeddings", tmp_path / "fewer"], "50 rows", "60 items"
    )
    assert_refused(
        store, tmp_path, assign_sids, [*flags, "--embeddings", tmp_path / "narrow"], "9 dimensions", "24"
    )


def test_vectors_of_another_data_set_of_the_same_size_are_refused(store, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for file in [*store.glob("*.parquet"), store / "manifest.json"]:
        shutil.copy(file, other)
    pq.write_table(pq.read_table(other / "items.parquet"), other / "items.parquet", compression="none")
    handmade.resign(other)
    flags = ["--data", other, *assign_flags(store)[2:]]
    assert_refused(
        store, tmp_path, assign_sids, flags, "embeddings/both was made from another state of the data"
    )


def test_sids_hold_the_columns_that_the_schema_promises(store):
    schema = pq.read_schema(store / "sids/q/sids.parquet")
    assert schema.names == ["item_id", "codes"]
    assert schema.field("item_id").type == pa.int32() and schema.field("codes").type == INT_LIST
