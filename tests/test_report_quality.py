"""rq.report_quality: several sets side by side, what it measures, what it refuses; published sets where the real data is."""

from __future__ import annotations

import json
import os
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from configs.program import ROOT, InputError
from data import artifacts
from data.store.output import open_output
from data.tags import VOCAB, build_vocab, tag_table
from rq import report_quality
from rq.quality import assessment, figures
from rq.vectors import embedding_map
from tests.handmade import Made, call, refuse, succeed, write_sids
from tests.store import HOSTILE, ITEMS, write_store


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A store of 40 items, IDs of ours with embeddings, and IDs by hand with collisions."""
    root = tmp_path_factory.mktemp("quality")
    data = write_store(root / "store")
    call("rq.embed_items", "--data", data, "--output_dir", root / "e", "--parts",
         "[{method: tfidf_svd, dim: 8}, {method: cooccurrence, dim: 8}]", "--tfidf.max_df", "0.6")  # fmt: skip
    call(
        "rq.train_quantizer",
        "--embeddings",
        root / "e",
        "--output_dir",
        root / "q",
        "--rqkmeans.sizes",
        "[8,8]",
    )
    call("rq.assign_sids", "--data", data, "--embeddings", root / "e", "--quantizer", root / "q",
         "--output_dir", root / "ours/x")  # fmt: skip
    codes = np.stack([np.arange(ITEMS) // 8, np.arange(ITEMS) % 4], axis=1).astype(np.int32)
    write_sids(root / "hand/x", data=data, codes=codes, sizes=(5, 4))
    tags = [[f"t{i // 8}", None if i % 2 else "odd"] for i in range(ITEMS)]
    sources = [[tag and "given" for tag in row] for row in tags]
    with open_output(Made(), "complete_tags", version=1, inputs={}, directory=root / "tags") as out:
        out.write_table(artifacts.TAGS.file, tag_table(tags, sources, np.full(ITEMS, "train")))
        out.write_json(VOCAB, build_vocab(tags, np.ones(ITEMS, bool), rare_threshold=0).to_json())
    return root


class Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loads += [v for k, v in attrs if k in {"src", "href"} and not v.startswith("data:")]


def test_two_sets_side_by_side(place):
    said = succeed("rq.report_quality", place / "ours/x", place / "hand/x", "--tags", place / "tags",
                   "--output_dir", place / "report")  # fmt: skip
    lines = said.splitlines()
    assert lines[0].startswith("report_quality: wrote") and lines[1].split() == ["ours/x", "hand/x"]
    report = json.loads((place / "report" / "quality_report.json").read_text())
    assert list(report) == ["ours/x", "hand/x"]
    hand = report["hand/x"]
    assert hand["assigned"]["collisions"] | {"rate": 0} == {
        "rate": 0, "distinct": 20, "surplus": 20, "surplus_of_other_text": 20, "items": 40, "groups": 20,
        "largest_group": 2, "groups_of_identical_text": 0,
    }  # fmt: skip
    tag = next(label for label in hand["labels"] if label["name"] == "tag level 1")
    assert tag["depth_1"]["purity"] == 1.0 and tag["depth_1"]["nmi"] == pytest.approx(1.0)
    assert hand["affected_targets"]["test"]["share"] == 1.0 and "moved" not in hand
    assert len(hand["samples"]) == 5 and all(len(sample["titles"]) == 5 for sample in hand["samples"])
    ours = report["ours/x"]
    assert ours["assigned"]["collisions"]["surplus"] == 0 and ours["moved"] >= 0
    assert ours["neighbours"]["embedding"]["depth_1"]["lift"] > 1 and hand["neighbours"]["embedding"] is None
    row = next(line for line in lines if line.startswith("collision rate  "))
    assert row.split()[-2:] == ["0.0000", "0.5000"]

    html, seen = (place / "report" / "index.html").read_text(), Loads()
    seen.feed(html)
    assert not seen.loads and "script" not in seen.tags and seen.tags >= {"svg", "table"}
    assert HOSTILE not in html and ("&lt;script&gt;alert" in html or HOSTILE not in json.dumps(report))
    assert (place / "report" / "quality.png").read_bytes().startswith(b"\x89PNG")
    again = succeed("rq.report_quality", place / "ours/x", place / "hand/x", "--tags", place / "tags",
                    "--output_dir", place / "report")  # fmt: skip
    assert "already complete" in again


def test_lists_of_rows_in_any_order_stay_apart(tmp_path):
    """An example that is one less or one more than that of the file's first row is a list of its own."""
    for number, example in enumerate(([1, 1, 0, 0, 2, 2], [0, 0, 1, 1, 2, 2], [2, 1, 0, 2, 1, 0])):
        ranks = [1, 1, 1, 2, 2, 2] if number == 2 else [2, 1] * 3
        table = {
            "example_id": pa.array(example, pa.int64()),
            "rank": pa.array(ranks, pa.float32()),
            "item_ids": pa.array(
                [[10 * e + r] for e, r in zip(example, ranks, strict=True)], artifacts.INT_LIST
            ),
            "score": pa.array([0.0] * 6, pa.float32()),
        }
        directory = tmp_path / str(number)
        with open_output(Made(), "recommend", version=1, inputs={}, directory=directory) as out:
            out.write_table("predictions-00000-of-00001.parquet", pa.table(table))
        assert list(map(list, report_quality.predicted_lists(str(directory)))) == [[1, 2], [11, 12], [21, 22]]


def test_the_spread_of_predicted_lists(place, tmp_path):
    table = {
        "example_id": pa.array([7, 7, 3, 7], pa.int64()),
        "rank": pa.array([2, 1, 1, 3], pa.float32()),
        "item_ids": pa.array([[1, 2], [9], [0], [30]], artifacts.INT_LIST),
        "score": pa.array([0.0] * 4, pa.float32()),
    }
    with open_output(Made(), "recommend", version=1, inputs={}, directory=tmp_path / "p") as out:
        out.write_table("predictions-00000-of-00001.parquet", pa.table(table))
    lists = report_quality.predicted_lists(str(tmp_path / "p"))
    assert sorted(map(list, lists)) == [[0], [9, 1, 2, 30]]
    call("rq.report_quality", "--sids", json.dumps([str(place / "hand/x")]), "--predictions", tmp_path / "p",
         "--output_dir", tmp_path / "r")  # fmt: skip
    spread = json.loads((tmp_path / "r" / "quality_report.json").read_text())["x"]["list_spread"]
    assert spread["lists"] == 2 and spread["depth_1"]["distinct"] == 2.0  # {0} and {1, 0, 0, 3}


def test_what_does_not_fit_is_refused_in_one_line(place, tmp_path):
    assert "no sids directory" in refuse("rq.report_quality", "--output_dir", tmp_path / "r")
    line = refuse("rq.report_quality", tmp_path / "nowhere", "--output_dir", tmp_path / "r")
    assert "-> pass --data" in line and not (tmp_path / "r").exists()
    other = write_store(tmp_path / "other", [[0, 1, 2, 3]] * 5, items=8)
    with pytest.raises(InputError, match="made from another state of the data than .*pass the --data"):
        call("rq.report_quality", "--sids", json.dumps([str(place / "hand/x")]), "--data", other,
             "--output_dir", tmp_path / "r")  # fmt: skip
    with pytest.raises(InputError, match="name a directory twice"):
        report_quality.QualityArgs(sids=["a", "a"])


def test_the_script_reports_every_finished_set(place, tmp_path):
    for name in ("ours", "hand"):
        (tmp_path / "data dir/shop/sids").mkdir(parents=True, exist_ok=True)
        os.symlink(place / name / "x", tmp_path / "data dir/shop/sids" / name)
    for file in (place / "store").iterdir():
        if file.is_file():
            os.symlink(file, tmp_path / "data dir/shop" / file.name)
    environment = os.environ | {"DATA_ROOT": str(tmp_path / "data dir"), "OUTPUT_ROOT": str(tmp_path / "out"),
                                "DATASET": "shop", "OMP_NUM_THREADS": "1", "QUIET": "1"}  # fmt: skip
    command = ["bash", str(ROOT / "scripts/report_quality.sh"), "--map", "pca"]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out/quality/shop/quality_report.json").read_text())
    assert len(report) == 2


def test_a_split_that_does_not_exist_is_refused(place, tmp_path):
    with pytest.raises((InputError, SystemExit)):
        call("rq.report_quality", "--sids", json.dumps([str(place / "hand/x")]), "--split", "testt",
             "--map", "pca", "--output_dir", tmp_path / "r")  # fmt: skip
    assert not (tmp_path / "r").exists()


def test_words_that_are_no_flag_and_no_value_are_sids_directories():
    mixed = ["--map", "pca", "a", "--split=test", "b", "--seed", "-1"]
    assert report_quality.positional(mixed) == [
        "--sids", '["a", "b"]', "--map", "pca", "--split=test", "--seed", "-1"]  # fmt: skip
    given = ["--sids", "[a]", "b"]
    assert report_quality.positional(given) == given, "left to the parser to refuse"
    assert report_quality.positional(["a", "b c", "--split", "test"]) == [
        "--sids",
        '["a", "b c"]',
        "--split",
        "test",
    ]
    assert report_quality.positional(["--help"]) == ["--help"] and report_quality.positional([]) == []
    assert report_quality.names_of(["x/sids/a", "y/sids/a", "y/sids/b"]) == [
        "x/sids/a",
        "y/sids/a",
        "y/sids/b",
    ]
    assert report_quality.names_of(["x/sids/a", "y/sids/b"]) == ["a", "b"]


def test_codes_that_lie_together_look_alike():
    rng = np.random.default_rng(0)
    centres = np.array([[9, 0], [8.9, 0.8], [-9, 0], [0, 9]])
    code = np.repeat(np.arange(4), 30)
    xy = (centres[code] + rng.standard_normal((120, 2)) * 0.1).astype(np.float32)
    xy[5] = np.nan
    colours = {k: np.array(v) for k, v in embedding_map.code_colours(xy, code).items()}
    near = np.abs(colours[0] - colours[1]).sum()
    assert near < np.abs(colours[0] - colours[2]).sum() and near < np.abs(colours[0] - colours[3]).sum()
    assert embedding_map.code_colours(np.full((3, 2), np.nan), np.zeros(3, int)) == {}


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_map_has_a_point_for_every_vector_and_none_for_zero_rows(method):
    x = np.random.default_rng(1).standard_normal((30, 5)).astype(np.float32)
    x[3] = 0
    xy = embedding_map.coordinates(x, method=method, seed=0)
    assert np.isfinite(xy).all(1).tolist() == [item != 3 for item in range(30)]
    assert np.isnan(embedding_map.coordinates(x[:2], method=method, seed=0)).all()


def test_the_usage_curve_of_a_large_codebook_keeps_its_ends():
    share, counts = figures.usage_curve(np.repeat([5, 6], [3, 1]), 10_000)
    assert len(share) <= figures.CURVE_POINTS and (share[0], share[-1]) == (0, 1)
    assert (counts[0], counts[-1]) == (3, 0)


PUBLISHED = {  # set: (file, collision rate, items in collision, largest, [(used, perplexity, Gini) per level], 2-prefix)
    "amazon18_industrial": ("raw/Industrial_and_Scientific.index.json.gz", 0.0043, 0.0084, 3,
                            [(48, 41, 0.87), (256, 242, 0.17), (256, 226, 0.24)], 1.61),
    "amazon18_office": ("raw/Office_Products.index.json.gz", 0.0043, 0.0087, 2,
                        [(88, 71, 0.78), (256, 236, 0.22), (256, 217, 0.31)], 1.39),
    "mimigenrec_industrial": ("raw/id2sid.json.gz", 0.0024, 0.0049, 2,
                              [(94, 77, 0.75), (256, 242, 0.19), (256, 222, 0.28)], 1.39),
    "mimigenrec_office": ("raw/id2sid.json.gz", 0.0040, 0.0081, 2,
                          [(81, 67, 0.79), (256, 243, 0.18), (256, 233, 0.24)], 1.34),
}  # fmt: skip


@pytest.mark.skipif("REAL_DATA" not in os.environ, reason="REAL_DATA=/path/to/the/real/data/sets")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_ids_have_their_published_quality(name, tmp_path):
    real = Path(os.environ["REAL_DATA"])
    file, rate, share, largest, levels, per_prefix = PUBLISHED[name]
    dataset = name.split("_")[1]
    config = f"configs/minionerec/{dataset}/prepare.yaml"
    call(
        "data.prepare",
        "--config",
        config,
        "--raw",
        real / f"amazon18_{dataset}",
        "--output_dir",
        tmp_path / "d",
    )
    call("rq.import_sids", "--source", real / name / file, "--data", tmp_path / "d", "--sizes", "[256,256,256]",
         "--output_dir", tmp_path / "s")  # fmt: skip
    call("rq.report_quality", "--sids", json.dumps([str(tmp_path / "s")]), "--output_dir", tmp_path / "r")
    found = json.loads((tmp_path / "r" / "quality_report.json").read_text())["s"]
    collided = found["assigned"]["collisions"]
    assert collided["rate"] == pytest.approx(rate, abs=5e-5) and collided["largest_group"] == largest
    assert collided["items"] / found["items"] == pytest.approx(share, abs=5e-5)
    assert found["assigned"]["items_per_2_prefix"] == pytest.approx(per_prefix, abs=5e-3)
    for level, (used, perplexity, gini) in zip(found["assigned"]["levels"], levels, strict=True):
        assert level["used"] == used
        assert level["perplexity"] == pytest.approx(perplexity, abs=0.5)
        assert level["gini"] == pytest.approx(gini, abs=5e-3)
    if name == "amazon18_industrial":
        assert found["affected_targets"]["test"]["affected"] == 317
        pairs = found["behaviour_in_rows"]
        assert [round(pairs[f"depth_{d}"]["agreement"], 3) for d in (1, 2)] == [0.213, 0.080]


def test_an_item_without_title_is_named_by_its_source():
    items = pa.table({"title": ["", "Bolt"], "raw_id": ["B0002", "B1"], "categories": [[], []]})
    [shown] = assessment.samples(np.array([[3], [3]]), items, prefixes=1, per_prefix=2, seed=0)
    assert shown["titles"] == ["(no title, item B0002)", "Bolt"]


def test_a_map_takes_one_thread_however_many_there_are(monkeypatch):
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_info, threadpool_limits

    seen = []

    def fit(self, x_ND):
        seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp")
        return x_ND[:, :2]

    monkeypatch.setattr(TSNE, "fit_transform", fit)
    with threadpool_limits(limits=2, user_api="openmp"):
        embedding_map.coordinates(np.random.default_rng(0).normal(size=(20, 4)), method="tsne", seed=0)
    assert seen and set(seen) == {1}
