"""The numbered shell stages on the tiny generated store, as a user runs them: another working directory, a path with spaces."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from configs.program import ROOT
from data.sid import read_sids

FAST_SFT = ["--trainer.max_steps", "24", "--trainer.eval_steps", "12", "--trainer.per_device_train_batch_size", "32", "--valid_rows", "50"]  # fmt: skip
FAST_RL = ["--trainer.max_steps", "4", "--trainer.eval_steps", "2", "--trainer.logging_steps", "1", "--trainer.per_device_train_batch_size", "4",
           "--rollout.num_generations", "8", "--valid_rows", "50"]  # fmt: skip


def stage(
    home: Path, script: str, *flags: str, code: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run one shell stage from a foreign directory; the process must end with `code`."""
    environment = os.environ | {
        "PAPER": "toy", "DATASET": "toystore", "RUN": "test", "DATA_ROOT": str(home / "data"), "QUIET": "1",
        "OUTPUT_ROOT": str(home / "outputs"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(ROOT / script), *flags],
        cwd="/",
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, f"{script}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the whole chain has run."""
    home = tmp_path_factory.mktemp("a home with spaces")
    raw = home / "data/toystore/raw"
    subprocess.run(
        [os.environ.get("PYTHON", ".venv/bin/python"), "-m", "data.toy", "--size", "tiny", "--output_dir", str(raw)],
        cwd=ROOT, check=True, env=os.environ | {"QUIET": "1"},
    )  # fmt: skip
    stage(home, "scripts/01_prepare_data.sh")
    stage(home, "scripts/02_embed_items.sh")
    stage(home, "scripts/04_build_sids.sh", "--rqkmeans.sizes", "[8,8,8]")
    stage(home, "scripts/07_build_examples.sh")
    stage(home, "scripts/train_baselines.sh")
    stage(home, "scripts/08_expand_vocab.sh", "--shape.hidden_size", "32", "--shape.num_layers", "2")
    told = stage(home, "sft.sh", *FAST_SFT, PYTHONPROFILEIMPORTTIME="1").stderr
    (home / "imported.txt").write_text(told)
    stage(home, "evaluate.sh", NAME="sft_recommend")
    stage(home, "rl.sh", *FAST_RL)
    stage(home, "evaluate.sh", NAME="grpo")
    return home


def manifest(home: Path, directory: str) -> dict:
    return json.loads((home / directory / "manifest.json").read_text())


def test_every_stage_leaves_a_manifest_that_names_its_inputs(home):
    directories = [
        "data/toystore", "data/toystore/embeddings/text_cooc", "data/toystore/sids/rqkmeans", "data/toystore/examples/rqkmeans",
        "outputs/test/base", "outputs/test/vocab", "outputs/test/sft_recommend", "outputs/test/grpo", "outputs/test/eval/grpo.test",
        "outputs/test/eval/grpo.test/metrics", "outputs/test/report",
    ]  # fmt: skip
    for directory in directories:
        found = manifest(home, directory)
        assert found["inputs"] and all(len(entry["sha256"]) == 64 for entry in found["inputs"].values()), (
            directory
        )
        assert found["counts"] and found["wall_seconds"] > 0 and found["files"], directory
    assert not list(home.rglob("*.tmp")) and not list(home.rglob("pending.json"))


def test_a_training_imports_no_scikit_learn(home):
    """Nor scipy: two seconds of every start, of programs that decode too."""
    imported = {line.split("|")[-1].strip() for line in (home / "imported.txt").read_text().splitlines()}
    assert {"transformers.generation.candidate_generator", "transformers.data.metrics"} <= imported
    assert not imported & {"sklearn", "scipy.optimize"}


def test_every_item_has_its_own_semantic_id(home):
    sids = read_sids(home / "data/toystore/sids/rqkmeans")
    items = pq.read_table(home / "data/toystore/items.parquet")
    assert sids.num_items == items.num_rows == len(sids.sids_SL)


def test_recommendations_are_legal_complete_and_better_than_chance(home):
    metrics = json.loads((home / "outputs/test/eval/grpo.test/metrics/metrics.json").read_text())
    assert metrics["all/invalid_rate"]["value"] == 0
    assert metrics["item_level/hr@10"]["low"] > 0
    rows = pq.read_table(home / "outputs/test/eval/grpo.test/predictions-00000-of-00001.parquet")
    tests = pq.read_table(home / "data/toystore/examples/rqkmeans/test.parquet")
    assert set(rows["example_id"].to_pylist()) == set(tests["example_id"].to_pylist())
    assert rows.num_rows == 50 * tests.num_rows
    for baseline in ("pop", "last", "recent", "itemknn", "itemknn_tuned"):
        assert (home / f"outputs/test/eval/{baseline}.test/metrics/metrics.json").exists()


def test_the_page_shows_models_baselines_and_users(home):
    page = (home / "outputs/test/report/index.html").read_text()
    for word in ("sft_recommend", "grpo", "itemknn", "HR@10", "<svg"):
        assert word in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page


def test_a_finished_stage_is_kept_and_another_configuration_is_refused(home):
    kept = stage(home, "scripts/02_embed_items.sh")
    assert "already complete" in kept.stdout
    refused = stage(home, "scripts/02_embed_items.sh", "--seed", "5", code=2)
    assert "--overwrite" in refused.stderr.splitlines()[-1]
    unknown = stage(home, "sft.sh", "--no_such_flag", "1", code=2)
    assert "no_such_flag" in unknown.stderr.splitlines()[-1]


def test_examples_of_other_sids_are_refused(home):
    stage(home, "scripts/04_build_sids.sh", "--rqkmeans.sizes", "[4,8,16]", SIDS="other")
    model = str(home / "outputs/test/grpo/final")
    refused = stage(home, "evaluate.sh", code=2, SIDS="other", EXAMPLES="rqkmeans", RUN="mixed", MODEL=model)
    assert "other semantic IDs" in refused.stderr.splitlines()[-1]
    assert not (home / "outputs/mixed/eval/grpo.test").exists()
