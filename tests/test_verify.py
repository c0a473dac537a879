"""verify.sh: a row is held to one that is stored, run by run, and what was not held does not end as if it were."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from configs.program import ROOT
from infer.tables.stored import read_stored
from tests.test_reproduce import dry

SHOWN = ["README.md", "README.zh.md", "scripts/reproduce/verify.sh"]


@pytest.mark.parametrize("name", SHOWN)
def test_the_row_that_is_shown_is_stored(name):
    shown = re.findall(r"ROW=(\w+) bash scripts/reproduce/verify.sh (\w+)", (ROOT / name).read_text())
    assert shown
    for row, table in shown:
        last = dry(table, ROWS=row, SEEDS="0")[-2]
        assert row in read_stored(ROOT / re.search(r"--record (\S+)", last)[1])
        assert f'/eval/{row}.test"]' in dry("verify", table, ROW=row)[-1]


def kept(folder: Path, table: str, *rows: str) -> str:
    """Some rows of a table, whatever others it has by now, as RESULTS."""
    paper, dataset = table.split("/")
    stored = json.loads((ROOT / f"configs/{paper}/results/{dataset}.json").read_text())
    (folder / "results").mkdir(parents=True)
    (folder / f"results/{dataset}.json").write_text(json.dumps({row: stored[row] for row in rows}))
    return str(folder)


def test_a_row_or_a_seed_that_is_not_stored_is_refused_before_anything_runs(tmp_path):
    few = kept(tmp_path / "few", "minionerec/industrial", "pop", "text")
    (told,) = dry("verify", "minionerec_industrial", code=2, ROW="compact", RESULTS=few)
    assert "results/industrial.json has no row compact" in told and told.endswith("-> it has pop text")
    (told,) = dry("verify", "minionerec_industrial", code=2, ROW="text", SEED="3", RESULTS=few)
    assert "has no seed 3 of text -> it has 0 1 2" in told
    (told,) = dry("verify", "hidvae_beauty14", code=2, ROW="baselines", RESULTS=str(tmp_path / "none"))
    assert "has no row pop" in told and told.endswith("-> it has none"), "the first of its five"
    assert sum("--verify" in line for line in dry("verify", "best_yelp", ROW="baselines")) == 5


@pytest.mark.parametrize(
    ("table", "row", "given", "seeds"),
    [
        ("minionerec_industrial", "text", {}, "012"),
        ("minionerec_industrial", "text", {"SEED": "2"}, "2"),
        ("minionerec_industrial", "text", {"SEEDS": "0 1"}, "01"),
        ("best_yelp", "compact_distilled", {}, ""),
    ],
)
def test_predictions_are_those_of_the_stored_runs(table, row, given, seeds):
    lines = dry("verify", table, ROW=row, HOW="predictions", **given)
    done = [line.split(" -m ")[1].split()[0] for line in lines if " -m " in line]
    stored = read_stored(ROOT / re.search(r"--verify (\S+)", lines[-1])[1])[row]["runs"]
    seeds = seeds or "".join(re.findall(r"-s(\d)", " ".join(stored)))
    assert done == ["infer.evaluate"] * len(seeds) + ["infer.compare"] and seeds
    assert "".join(re.findall(r"-s(\d)/eval/", lines[-1])) == seeds


def predicted(root: Path, *seeds: int) -> list[Path]:
    """Metrics of runs of Industrial's row `text`, with predictions that are only said to be there."""
    folders = [root / f"minionerec-industrial-s{seed}/eval/text.test" for seed in seeds]
    for folder in folders:
        (folder / "metrics").mkdir(parents=True)
        (folder / "manifest.json").touch()
    return [folder / "metrics" for folder in folders]


def test_no_metrics_are_removed_where_predictions_are_missing(tmp_path):
    given = {"ROW": "text", "HOW": "predictions", "OUTPUT_ROOT": str(tmp_path)}
    metrics = predicted(tmp_path, 0, 1)
    (told,) = dry("verify", "minionerec_industrial", code=2, DRY="", **given)
    assert f"no predictions in {tmp_path}/minionerec-industrial-s2/eval/text.test" in told
    assert all(path.exists() for path in metrics)
    predicted(tmp_path, 2)
    dry("verify", "minionerec_industrial", **given)
    assert all(path.exists() for path in metrics), "a dry run removes nothing"


def test_minutes_that_are_over_verify_nothing():
    assert dry("minionerec_industrial", DRY="", ROWS="text", MINUTES="0")[-1].startswith(
        "minionerec_industrial.sh: 0 minutes are over -> run it again"
    )
    assert dry("verify", "minionerec_industrial", code=143, DRY="", ROW="text", MINUTES="0") == []
