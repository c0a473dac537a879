"""infer.compare as a user runs it: seeds merged, published rows beside, paired tests, mixtures refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from configs.program import ROOT, InputError
from data.predictions import write_predictions
from data.rows import read_rows
from data.sid import read_sids
from data.store.output import open_output
from infer.compare import CompareArgs
from infer.metrics.significance import Clusters, paired_differences
from infer.tables import sheet
from infer.tables.comparison import (
    Cell,
    TableRow,
    add_tests,
    find_evaluations,
    our_rows,
    read_evaluation,
)
from infer.tables.layout import cell_text, latex
from infer.tables.published import COLUMNS
from infer.tables.results import read_result
from infer.tables.stored import measured_row, read_stored, stored_text
from tests.handmade import call, refuse, resign, succeed, write_sids
from tests.store import ITEMS, write_store
from tests.test_evaluate import BEAMS, CODES, prediction_table

LINES = (
    "store,test,90,TIGER,T5,sid,not stated,hr@10,0.2000,a paper,quoted,",
    "store,test,90,SASRec,,item,not stated,hr@10,0.1000,a paper,quoted,misprint",
)


@dataclass
class Trained:
    """The configuration of a training stage."""

    learning_rate: float
    seed: int


@dataclass
class Predicted:
    """The configuration of a prediction."""

    model: str
    beams: int = BEAMS


def evaluated(
    run: Path, name: str, data: Path, sids: Path, seed: int, *, rate: float = 0.1, rows: int | None = None
) -> Path:
    """A training directory and its evaluated predictions in a run folder."""
    trained = run / name
    with open_output(Trained(rate, seed), name, version=1, inputs={}, directory=trained) as out:
        out.write_text("final/config.json", "{}")
        out.write_text("final/model.safetensors.index.json", json.dumps({"seed": seed}))
    ids = read_rows(data, "test", num_items=ITEMS).example_ids_R[:rows]
    directory = run / "eval" / f"{name}.test"
    args, inputs = Predicted(str(trained / "final")), {"model": trained}
    with open_output(args, "recommend", version=1, inputs=inputs, directory=directory) as out:
        write_predictions(out, prediction_table(ids, read_sids(sids), seed))
        out.facts |= {
            "split": "test",
            "beams": BEAMS,
            "score_space": "full",
            "fitted_on": "train",
            "max_rows": rows,
        }
    made_from = json.loads((directory / "manifest.json").read_text())["inputs"]["model"]
    resign(directory, inputs={"model": made_from | {"path": str(trained / "final")}})
    score(directory, data, sids)
    return directory


def score(directory: Path, data: Path, sids: Path) -> None:
    call("infer.evaluate", "--predictions", directory, "--data", data, "--sids", sids, "--resamples", 50)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    data = write_store(root / "store")
    sids = write_sids(root / "sids", data=data, codes=CODES, sizes=(5, 8))
    for seed in (1, 2, 3):
        evaluated(root / f"seed{seed}", "sft", data, sids, seed)
        call(
            "infer.run_baselines", "--data", data, "--output_root", root / f"seed{seed}" / "eval", "--models", "[pop,itemknn]",
            "--splits", "[test]",
        )  # fmt: skip
        for name in ("pop", "itemknn"):
            score(root / f"seed{seed}" / "eval" / f"{name}.test", data, sids)
    published = root / "published.csv"
    published.write_text("\n".join([",".join(COLUMNS), *LINES]) + "\n")
    return root, data, sids, published


def runs(root: Path) -> str:
    return f"[{','.join(str(root / f'seed{seed}') for seed in (1, 2, 3))}]"


def test_seeds_baselines_and_published_rows_in_one_table(made, tmp_path):
    root, data, _, published = made
    command = (
        "infer.compare", "--runs", runs(root), "--published", f"[{published}]", "--dataset", "store", "--reference", "itemknn",
        "--output_dir", tmp_path / "out", "--metrics", "[hr@10,ndcg@10]", "--resamples", 200,
    )  # fmt: skip
    printed = succeed(*command)
    written = json.loads((tmp_path / "out" / "compare.json").read_text())
    rows = {row["name"]: row for row in written["table"]}
    assert list(rows) == ["pop", "itemknn", "TIGER (T5)", "SASRec", "sft"]
    assert [row["seeds"] for row in rows.values()] == [1, 1, 1, 1, 3] and rows["sft"]["fitted_on"] == "train"
    values = [
        json.loads((root / f"seed{seed}/eval/sft.test/metrics/metrics.json").read_text())["item_level/hr@10"][
            "value"
        ]
        for seed in (1, 2, 3)
    ]
    cell = rows["sft"]["cells"]["item_level/hr@10"]
    assert cell["value"] == pytest.approx(np.mean(values)) and cell["spread"] == pytest.approx(
        np.std(values, ddof=1)
    )
    # The test: mean of the seeds on every row against the reference, over users.
    sft = [read(root / f"seed{seed}/eval/sft.test") for seed in (1, 2, 3)]
    knn = read(root / "seed1/eval/itemknn.test")
    ours = np.mean([one.levels["item_level"].value_R("hr@10") for one in sft], axis=0)[:, None]
    theirs = knn.levels["item_level"].value_R("hr@10")[:, None]
    expected = paired_differences(ours, theirs, np.ones(90), Clusters(knn.users_R, resamples=200, seed=0))[0]
    assert (cell["difference"], cell["p_value"]) == pytest.approx((expected.value, expected.p_value))
    assert cell["difference"] == pytest.approx(
        np.mean(values) - rows["itemknn"]["cells"]["item_level/hr@10"]["value"], abs=1e-5
    )
    assert rows["itemknn"]["cells"]["item_level/hr@10"]["p_value"] is None
    # A published row that counts semantic IDs is no row of the item-level table.
    assert set(rows["TIGER (T5)"]["cells"]) == {"sid_level/hr@10"}
    assert set(rows["SASRec"]["cells"]) == {"sid_level/hr@10", "item_level/hr@10"}
    tables = (
        printed.split("\n**")[1:]
        if printed.startswith("**")
        else printed.split("**SID level")[1].split("\n**")
    )
    assert "TIGER" in printed and len(tables) >= 3 and "TIGER" not in tables[1] and "SASRec" in tables[1]
    assert f"{cell['value']:.4f}" in printed and "±" in printed and ("(p=" in printed or "(p<" in printed)
    assert "SASRec (a paper, quoted): misprint (hr@10)." in printed and "no claim" not in printed
    tex = (tmp_path / "out" / "compare.tex").read_text()
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 3 and r"\textbf{" in tex
    before = (tmp_path / "out" / "compare.md").read_text()
    assert "already complete" in succeed(*command) and (tmp_path / "out" / "compare.md").read_text() == before


def read(directory: Path):
    return read_evaluation(directory, read_result(directory))


def test_runs_apart_and_single_directories(made, tmp_path):
    root, *_ = made
    call(
        "infer.compare", "--runs", f"[{root}/seed1/eval/sft.test,{root}/seed2/eval]", "--separate", "true", "--intervals", "true",
        "--output_dir", tmp_path / "out",
    )  # fmt: skip
    table = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["name"] for row in table["table"]] == ["seed2/pop", "seed2/itemknn", "seed1/sft", "seed2/sft"]
    assert "Fewer than three seeds, no claim: seed1/sft, seed2/sft." in table["remarks"]
    assert " [0." in (tmp_path / "out" / "compare.md").read_text()


def test_what_cannot_be_compared_is_refused(made, tmp_path):
    root, data, sids, published = made

    def said(*arguments: object) -> str:
        return refuse("infer.compare", *arguments, "--output_dir", tmp_path / "out")

    other = write_store(tmp_path / "other", [[0, 1, 2, 3]] * 90)
    foreign = evaluated(
        tmp_path / "foreign",
        "sft",
        other,
        write_sids(tmp_path / "s", data=other, codes=CODES, sizes=(5, 8)),
        4,
    )
    assert "are of different data sets" in said("--runs", f"[{root}/seed1,{foreign}]")
    short = evaluated(tmp_path / "short", "sft", data, sids, 5, rows=40)
    assert "answer different rows (90 and 40)" in said("--runs", f"[{root}/seed1,{short}]")
    faster = evaluated(tmp_path / "faster", "sft", data, sids, 6, rate=0.3)
    assert "no seeds of one recipe (training.learning_rate differ)" in said(
        "--runs", f"[{root}/seed1,{faster}]"
    )
    assert f"{root}/seed1 has no evaluation of split 'valid' (test)" in said(
        "--runs", f"[{root}/seed1]", "--split", "valid"
    )
    assert "no */metrics/metrics.json" in said("--runs", f"[{tmp_path}/nothing]")
    assert "no row is called 'sasrec' -> one of itemknn, pop, sft" in said(
        "--runs", runs(root), "--reference", "sasrec"
    )
    assert "unknown metric 'mrr' -> hr@K, ndcg@K or mrr@K" in said("--runs", runs(root), "--metrics", "[mrr]")
    assert "dataset is missing" in said("--runs", runs(root), "--published", f"[{published}]")
    assert "unknown level 'sids'" in said("--runs", runs(root), "--levels", "[sids]")
    assert "have none of sid_level/hr@7" in said("--runs", runs(root), "--metrics", "[hr@7]")
    published_of_more = tmp_path / "more.csv"
    published_of_more.write_text(published.read_text().replace(",90,", ",4533,"))
    named = ("--published", f"[{published_of_more}]", "--dataset", "store")
    assert "was measured on 4533 rows, these runs on 90" in said("--runs", runs(root), *named)
    (foreign / "metrics" / "rows.parquet").unlink()
    assert "rows.parquet is missing" in said("--runs", f"[{foreign}]")
    assert not (tmp_path / "out").exists()


def test_a_row_from_a_part_of_the_catalogue_says_so(made):
    root, *_ = made
    [found] = find_evaluations([root / "seed1" / "eval" / "sft.test"], split="test")
    assert "allowed" not in our_rows({"sft": [found]}, [])[0].protocol
    found.result.protocol.update(allowed="stock.parquet", strategy="beam", temperature=2.0)
    shown = our_rows({"sft": [found]}, [])[0].protocol
    assert shown["allowed"] == "stock.parquet" and shown["temperature"] == 2.0 and "strategy" not in shown


def test_numbers_of_a_table_are_printed_as_they_are():
    plain = {"best": 0.5, "intervals": False, "bold": "**{}**", "plus_minus": "±"}
    assert cell_text(None, **plain) == "-"
    assert cell_text(Cell(0.12344, 0.1, 0.2), **plain) == "0.1234"
    assert cell_text(Cell(0.5, spread=0.0123, p_value=0.0004), **plain) == "**0.5000** ± 0.0123 (p<0.001)"
    assert (
        cell_text(Cell(0.4, 0.3, 0.45, p_value=0.0405), **plain | {"intervals": True})
        == "0.4000 [0.3000, 0.4500] (p=0.041)"
    )
    row = TableRow(r"a_b & 50% \x", "model", "train", "ours", cells={"item_level/hr@1": Cell(0.1)})
    assert r"a\_b \& 50\% \textbackslash{}x" in latex([row], {"item_level": ["hr@1"]}, intervals=False)


def test_a_run_folder_is_searched_for_its_split(made):
    root, *_ = made
    assert len(find_evaluations([root / "seed1", root / "seed1" / "eval" / "sft.test"], split="test")) == 3


def test_the_stage_script_on_a_data_set_without_published_rows(made, tmp_path):
    root, *_ = made
    variables = {"OUTPUT_ROOT": str(root), "RUNS": "seed1,seed2,seed3", "DATASET": "shop", "REFERENCE": "pop"}
    done = subprocess.run(
        ["bash", "scripts/compare.sh", "--levels", "[item_level]", "--resamples", "50", "--overwrite", "true"],
        cwd=ROOT, env=os.environ | variables | {"PYTHON": sys.executable}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| sft | ours | train | both | 3 |" in done.stdout
    assert "configs/minionerec/published.csv has no rows of 'shop', split 'test': it has " in done.stdout
    assert (root / "compare" / "shop.test" / "compare.tex").exists()


def test_mrr_names_its_cut_and_older_files_are_read_so(made, tmp_path):
    root, *_ = made
    old = tmp_path / "run" / "eval" / "last.test"
    shutil.copytree(root / "seed1" / "eval" / "pop.test", old)
    path = old / "metrics" / "metrics.json"
    metrics = json.loads(path.read_text())
    longest = max(metrics["protocol"]["ks"])
    assert f"item_level/mrr@{longest}" in metrics and "item_level/mrr" not in metrics
    path.write_text(json.dumps({name.replace(f"mrr@{longest}", "mrr"): m for name, m in metrics.items()}))
    resign(old / "metrics")
    resign(old, stage="baseline last", stage_version=1)
    result = read_result(old)
    assert result.get(f"item_level/mrr@{longest}") == metrics[f"item_level/mrr@{longest}"]
    assert result.name == "recent (as last)", "what version 1 called last is the decayed variant"


def test_a_level_without_rows_is_not_tested(made):
    root, *_ = made
    [sft] = find_evaluations([root / "seed1" / "eval" / "sft.test"], split="test")
    [pop] = find_evaluations([root / "seed1" / "eval" / "pop.test"], split="test")
    for one in (sft, pop):
        one.levels["item_level"] = replace(one.levels["item_level"], weight_R=np.zeros(90))
    groups, keys = {"pop": [pop], "sft": [sft]}, ["item_level/hr@10", "sid_level/hr@10"]
    rows = our_rows(groups, keys)
    add_tests(rows, groups, keys, reference="pop", resamples=500, seed=0)
    empty, tested = (rows[1].cells[key] for key in keys)
    assert empty.p_value is None and "not tested" in empty.note and tested.p_value is not None


def test_rows_of_a_table_are_recorded_and_held_to_their_runs(made, tmp_path):
    root, data, sids, _ = made
    path = tmp_path / "paper" / "results" / "store.json"
    runs_of = [root / f"seed{seed}" / "eval" / "sft.test" for seed in (1, 2, 3)]
    record = ("infer.compare", "--record", path, "--command", "bash it.sh", "--runs")
    assert "3 runs, look 1 at test" in succeed(*record, f"[{','.join(map(str, runs_of))}]")
    succeed(*record, f"[{root / 'seed1/eval/pop.test'}]")
    rows = read_stored(path)
    assert list(rows) == ["sft", "pop"] and list(rows["sft"]["runs"]) == ["seed1", "seed2", "seed3"]
    assert [run["seed"] for run in rows["sft"]["runs"].values()] == [1, 2, 3]
    assert [run["seed"] for run in rows["pop"]["runs"].values()] == [None]
    told = rows["sft"]
    assert (told["fitted_on"], told["looks"], told["protocol"]["rows"]) == ("train", 1, 90)
    assert "item_level_unseen/hr@10" in told["metrics"], "the history taken out of the lists"
    metric = rows["sft"]["metrics"]["item_level/ndcg@10"]
    assert (
        metric["value"] == pytest.approx(np.mean(metric["seeds"]), abs=1e-6)
        and metric["low"] < metric["value"] < metric["high"]
    )
    assert metric["spread"] == pytest.approx(np.std(metric["seeds"], ddof=1), abs=1e-6)
    # The interval of the mean: every example has the mean of its seeds.
    read_seeds = [read(path) for path in runs_of]
    mean_R = np.mean([one.levels["item_level"].value_R("ndcg@10") for one in read_seeds], axis=0)
    clusters = Clusters(read_seeds[0].users_R, resamples=1000, seed=0)
    low, high = clusters.interval([clusters.collect(mean_R[:, None], np.ones((90, 1)), np.zeros(1, int))])
    assert (metric["low"], metric["high"]) == pytest.approx((low[0], high[0]), abs=1e-6)
    assert any(key.startswith("item_level/popularity=") for key in rows["sft"]["metrics"])
    verify = ("infer.compare", "--verify", path, "--runs", f"[{runs_of[1]}]")
    assert "seed2: sid_level/hr@10: stored" in succeed(*verify)

    # Another prediction of a known run is another look; a stored number that its run does not give is found.
    other = evaluated(tmp_path / "seed2", "sft", data, sids, 7)
    assert "look 2 at test" in succeed(*record, f"[{runs_of[0]},{other},{runs_of[2]}]")
    assert "look 2 at test" in succeed(*record, f"[{runs_of[0]},{other}]"), "a run that leaves is no look"
    assert "look 3 at test" in succeed(*record, f"[{runs_of[0]},{runs_of[2]}]"), "seed3 in the place of seed2"
    succeed(*record, f"[{runs_of[0]},{other}]")
    error = refuse(*verify, code=4)
    assert "sft seed2: item_level/" in error and "further than 1e-06" in error
    assert "NOT HELD" not in succeed(*verify, "--tolerance", 1)
    assert "none of the runs seed3" in refuse("infer.compare", "--verify", path, "--runs", f"[{runs_of[2]}]")
    assert "one of output_dir, record, verify, stored, table" in refuse("infer.compare", "--runs", "[x]")
    assert "command is missing" in refuse("infer.compare", "--record", path, "--runs", f"[{runs_of[2]}]")
    assert "quality True is read only with output_dir" in refuse(*verify, "--quality", "true")
    assert "sft seed1 seed2" in succeed("infer.compare", "--stored", path).splitlines()
    for mode in ({"table": True}, {"stored": "x"}):
        with pytest.raises(InputError, match="runs .* is read only without table"):
            CompareArgs(runs=["x"], **mode)
    with pytest.raises(InputError, match="metrics at 10"):
        CompareArgs(runs=["x"], output_dir="y", quality=True, metrics=["hr@5"])


def test_groups_of_rows_have_tables_of_their_own(made, tmp_path):
    root, *_ = made
    command = (
        "infer.compare",
        "--runs",
        runs(root),
        "--metrics",
        "[hr@10]",
        "--levels",
        "[item_level]",
        "--output_dir",
    )
    succeed(*command, tmp_path / "out", "--groups", "[popularity=head,popularity=tail]")
    written = json.loads((tmp_path / "out" / "compare.json").read_text())
    (sft,) = [row for row in written["table"] if row["name"] == "sft"]
    values = [
        json.loads((root / f"seed{seed}/eval/sft.test/metrics/metrics.json").read_text())
        for seed in (1, 2, 3)
    ]
    for group in ("popularity=head", "popularity=tail"):
        key = f"item_level/{group}/hr@10"
        assert sft["cells"][key]["value"] == pytest.approx(np.mean([one[key]["value"] for one in values]))
        assert f"**item_level/{group}**" in (tmp_path / "out" / "compare.md").read_text()
    assert "no evaluation has the group 'shop=a'" in refuse(*command, tmp_path / "x", "--groups", "[shop=a]")


def test_a_table_shows_published_reproduced_and_ours(made, tmp_path):
    root, _, _, published = made
    paper = tmp_path / "paper"
    (paper / "results").mkdir(parents=True)
    shutil.copy(published, paper / "published.csv")
    seeds = find_evaluations([root / "seed1/eval/sft.test"], split="test")
    told = {"dirty": False, "commit": "abc1234", "date": "2026-01-02"}
    row = measured_row(seeds, command="bash it.sh", hardware="a laptop") | told
    lines = [
        ",".join(sheet.COLUMNS),
        "store,sft,ours,TIGER,SASRec,,bash it.sh",
        "store,big,theirs,TIGER|T5,,8 GPUs,NUM_GPUS=8 bash sft.sh",
    ]
    (paper / "rows.csv").write_text("\n".join(lines) + "\n")
    (paper / "results" / "store.json").write_text(stored_text({"sft": row}))
    table = sheet.tables_of(paper)["store"]
    first, second = table.splitlines()[2:4]
    hr = row["metrics"]["item_level/hr@10"]
    shown = f"{hr['value']:.4f} [{hr['low']:.4f}, {hr['high']:.4f}]".replace("0.", ".")
    assert first.startswith(f"| ours | .2000 / - | .1000 / - | {shown} | ") and first.endswith(
        "| a laptop | 2026-01-02, abc1234 |"
    )
    assert second == "| theirs | .2000 / - |  |  |  |  |  |  |  |  |  | not run: needs 8 GPUs |"
    assert table.endswith("    bash it.sh\n    NUM_GPUS=8 bash sft.sh\n")
    grouped = sheet.group_tables_of(paper)["store"].splitlines()
    column = [cell.strip() for cell in grouped[0].split("|")].index("popularity tail")
    tail = sheet.plain_number(row["metrics"]["item_level/popularity=tail/hr@10"])
    assert [line.split("|")[column].strip() for line in grouped[2:]] == [tail], "measured rows alone"
    kept = "# A\n<!-- rows of store -->\n{}\n<!-- end of rows -->\n<!-- groups of store -->\n{}\n<!-- end of groups -->\nend\n"
    tables = {"store": "new\n"}, {"store": "newer\n"}
    assert sheet.with_tables(kept.format("old", "older"), *tables, where="x") == kept.format("new", "newer")
    (paper / "results" / "store.json").write_text(stored_text({"other": row}))
    with pytest.raises(InputError, match="lacks rows that have results"):
        sheet.tables_of(paper)
