"""The trainer of sequential models on a small store, as a user runs it: what it learns, what each option changes, resume,
what it refuses, and who reads its outputs."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from configs.program import InputError, Interrupted, NumericError
from data import artifacts
from data.rows import read_rows
from data.sid import SidTable
from data.store.output import read_manifest
from infer.metrics.ranking import by_name
from infer.models import cache, contract
from infer.models.recency import with_ages
from rq.vectors.embeddings import read_embeddings
from tests import handmade
from tests.handmade import call, refuse, resign
from tests.store import ITEMS, sequences, write_store
from train.rewards.needs import Sources, resolve
from train.scratch import loop

SMALL = [
    "--scorer.hidden",
    8,
    "--loop.epochs",
    2,
    "--loop.rows",
    64,
]
FULL = ["--loss.kind", "ce", "--scorer.tied", "true"]
TRUNKS = ("sasrec", "gru4rec", "caser", "hstu")


def sized(flags: tuple[object, ...]) -> list[object]:
    """Small sizes of what the flags ask for; others would be refused."""
    few = {
        "--text.table": ["--text.dim", 6],
        "--text.kernel": ["--text.similar", 5],
        "--loss.neighbour_share": ["--loss.neighbours", 3],
    }
    return [
        part for name, size in few.items() if name in flags and "--embeddings" not in flags for part in size
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_store(tmp_path_factory.mktemp("store"))


def trained(data: Path, directory: Path, *flags: object) -> dict[str, torch.Tensor]:
    """The weights of a run."""
    from safetensors.torch import load_file

    call("train.train_sequential", "--data", data, "--output_dir", directory, *SMALL, *sized(flags), *flags)
    return load_file(directory / "model.safetensors")


def lines(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_trunk_learns_the_walks_and_the_best_state_is_kept(data, tmp_path, trunk):
    """Users walk i -> i + 1: a model that reads the last item is far above popularity within seconds."""
    trained(data, tmp_path / "m", "--trunk", trunk, *FULL, "--loop.epochs", 40, "--loop.learning_rate", 0.02,
            "--scorer.dropout", 0.1, "--scorer.hidden", 16, "--loop.patience", 6)  # fmt: skip
    found, facts = lines(tmp_path / "m"), read_manifest(tmp_path / "m")["facts"]
    best = max(found, key=lambda line: line["eval_ndcg@10"])
    assert (
        best["eval_ndcg@10"] > 0.4
        and best["epoch"] == facts["best_epoch"]
        and found[-1]["loss"] < found[0]["loss"]
    )
    assert facts["best_ndcg@10"] == best["eval_ndcg@10"] and facts["fitted_on"] == "train"
    assert len(found) == min(40, facts["best_epoch"] + 6), "it stops six validations after the best"
    rows = read_rows(data, "valid", num_items=ITEMS)
    model = contract.load(tmp_path / "m")
    placed = contract.target_places(model.score(rows), rows.target_R)
    ndcg = by_name("ndcg@10", placed.before_R, placed.group_R).mean()
    assert ndcg == pytest.approx(best["eval_ndcg@10"], abs=1e-6), (
        "the saved weights are those that were measured"
    )
    assert not list((tmp_path / "m").glob("checkpoint-*")) and not (tmp_path / "m" / loop.BEST).exists()


def test_published_defaults_train_with_one_negative(data, tmp_path):
    trained(data, tmp_path / "m", "--loop.epochs", 30, "--loop.learning_rate", 0.03)
    found = lines(tmp_path / "m")
    assert found[-1]["loss"] < 0.5 < found[0]["loss"] and found[-1]["eval_hr@10"] > found[0]["eval_hr@10"]


SWITCHES = {
    "windows": ["--windows", "cut"],
    "tied": ["--scorer.tied", "false"],
    "popularity": ["--scorer.bias", "popularity"],
    "copy": ["--scorer.copy", "true"],
    "embedding dropout": ["--scorer.embedding_dropout", "0"],
    "positions": ["--scorer.positions", "3"],
    "text added": ["--text.table", "add"],
    "text to start with": ["--text.table", "init"],
    "kernel": ["--text.kernel", "true"],
    "companions": ["--scorer.companions", "4"],
    "neighbours": ["--loss.neighbour_share", "0.3"],
    "robust": ["--loss.dro_alpha", "0.5"],
    "robust, cooler": ["--loss.dro_alpha", "0.5", "--loss.dro_beta", "3"],
    "negatives": ["--loss.kind", "bce"],
    "more negatives": ["--loss.kind", "bce", "--loss.negatives", "4"],
    "robust negatives": ["--loss.kind", "bce", "--loss.dro_alpha", "0.5"],
    "mean": ["--loop.average", "0.9"],
    "warm-up": ["--loop.warmup_steps", "7"],
    "clip": ["--loop.clip", "0.01"],
    "decay": ["--loop.weight_decay", "0.1"],
    "adamw": ["--loop.weight_decay", "0.1", "--loop.optimizer", "adamw"],
    "second moment": ["--loop.beta2", "0.9"],
    "rows": ["--loop.rows", "32"],
    "seed": ["--seed", "1"],
    "two layers": ["--sasrec.layers", "2"],
    "two heads": ["--sasrec.heads", "2"],
    "wider": ["--sasrec.feedforward", "2"],
    "gelu": ["--sasrec.activation", "gelu"],
}


@pytest.fixture(scope="module")
def base(data, tmp_path_factory) -> dict[str, torch.Tensor]:
    return trained(data, tmp_path_factory.mktemp("base") / "m", *FULL)


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_changes_what_is_learned(data, base, tmp_path, switch):
    weights = trained(data, tmp_path / "m", *FULL, *SWITCHES[switch])
    assert (weights["item_ND"] - base["item_ND"]).abs().max() > 1e-6
    learned = {
        "copy": "evidence.bonus_J",
        "kernel": "evidence.alpha_F",
        "companions": "evidence.alpha_F",
    }.get(switch)
    if learned:
        start = 0.0 if switch == "copy" else 0.1
        assert (weights[learned] - start).abs().max() > 1e-5, f"{learned} is learned"
    if switch == "text added":
        assert weights["text_NX"].shape == (ITEMS, 6) and weights["text_NX"].abs().sum() > 0
    rows = read_rows(data, "valid", num_items=ITEMS)
    model = contract.load(tmp_path / "m")
    assert np.allclose(np.exp(model.score(rows).astype(float)).sum(1), 1, atol=1e-4)


def test_a_run_is_its_seed(data, base, tmp_path):
    again = trained(data, tmp_path / "m", *FULL)
    assert all(torch.equal(again[name], base[name]) for name in base)


def test_a_killed_run_ends_with_the_same_weights(data, tmp_path, monkeypatch):
    """Killed by a signal in the middle of an epoch, and by an exception after a validation: nothing differs at the end."""
    flags = (*FULL, "--loop.epochs", 5, "--scorer.copy", "true", "--text.kernel", "true", "--loop.rows", 48,
             "--loop.average", 0.9, "--scorer.companions", 3, "--loop.repeats", "valid", "--windows", "cut",
             "--scorer.positions", 3)  # fmt: skip
    whole = trained(data, tmp_path / "whole", *flags)
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    step = loop.Run.step_on

    def killed(at, by):
        def stepped(run, batch):
            step(run, batch)
            if run.state.step == at:
                by()

        return stepped

    def fail():
        raise KeyboardInterrupt

    steps = read_manifest(tmp_path / "whole")["counts"]["steps"]
    assert steps > 20 and steps % 5 == 0
    for at, by, error in (
        (7, lambda: signal.raise_signal(signal.SIGTERM), Interrupted),
        (steps // 5 * 3 + 1, fail, KeyboardInterrupt),
    ):
        monkeypatch.setattr(loop.Run, "step_on", killed(at, by))
        with pytest.raises(error):
            trained(data, tmp_path / "parts", *flags)
        assert list((tmp_path / "parts").glob("checkpoint-*")) and read_manifest(tmp_path / "parts") is None
    monkeypatch.setattr(loop.Run, "step_on", step)
    parts = trained(data, tmp_path / "parts", *flags)
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    facts = [read_manifest(tmp_path / name)["facts"] for name in ("parts", "whole")]
    assert all(
        facts[0][key] == facts[1][key]
        for key in ("best_step", "best_epoch", "best_ndcg@10", "epochs", "repeats", "settled_ndcg@10")
    )


def test_what_chooses_and_when(data, tmp_path):
    trained(data, tmp_path / "m", *FULL, "--loop.epochs", 6, "--loop.eval_every", 4, "--loop.select_by", "hr@10",
            "--loop.valid_rows", 30)  # fmt: skip
    found, manifest = lines(tmp_path / "m"), read_manifest(tmp_path / "m")
    assert [line["epoch"] for line in found] == [4, 6] and manifest["counts"]["valid rows"] == 30
    assert manifest["facts"]["best_hr@10"] == max(line["eval_hr@10"] for line in found)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_rows(data, tmp_path, monkeypatch):
    from train.scratch.sequential import SequentialTask

    loss = SequentialTask.loss

    def bad(task, batch, rng):
        value, rows = loss(task, batch, rng)
        return value * float("nan"), rows

    monkeypatch.setattr(SequentialTask, "loss", bad)
    with pytest.raises(NumericError, match=r"loss is nan at step 1 in .* -> lower loop.learning_rate"):
        trained(data, tmp_path / "m", *FULL)
    report = json.loads((tmp_path / "m" / "nan_step.json").read_text())
    train_ids = read_rows(data, "train", num_items=ITEMS).example_ids_R
    assert (
        report["loss"] == "nan"
        and set(report["example_ids"]) <= set(train_ids.tolist())
        and len(report["example_ids"]) > 30
    )


def test_long_histories_are_cut_and_counted(data, tmp_path, capsys):
    trained(data, tmp_path / "m", *FULL, "--scorer.positions", 4)
    lengths = np.diff(read_rows(data, "train", num_items=ITEMS).offsets)
    counts = read_manifest(tmp_path / "m")["counts"]
    assert counts["histories_cut"] == (lengths > 4).sum() > 0
    assert (
        f"{counts['histories_cut']} of {len(lengths)} train histories are longer than scorer.positions 4"
        in capsys.readouterr().out
    )
    call(
        "infer.run_baselines",
        "--data",
        data,
        "--output_root",
        tmp_path / "eval",
        "--models",
        f"[{tmp_path}/m]",
    )
    tested = np.diff(read_rows(data, "test", num_items=ITEMS).offsets)
    assert read_manifest(tmp_path / "eval/m.test")["counts"]["histories_cut"] == (tested > 4).sum()


def test_item_vectors_are_an_embeddings_directory(data, tmp_path):
    vectors = tmp_path / "embeddings/sasrec"
    flags = (*FULL, "--text.table", "add", "--item_vectors", vectors)
    trained(data, tmp_path / "m", *flags)
    x_ND = read_embeddings(vectors)
    network = contract.load(tmp_path / "m").network
    assert x_ND.shape == (ITEMS, 8) and np.allclose(x_ND, network.item_vectors().detach().numpy())
    call(
        "rq.train_quantizer",
        "--embeddings",
        vectors,
        "--output_dir",
        tmp_path / "q",
        "--rqkmeans.sizes",
        "[8,8]",
    )
    call(
        "rq.assign_sids",
        "--quantizer",
        tmp_path / "q",
        "--embeddings",
        vectors,
        "--data",
        data,
        "--output_dir",
        tmp_path / "sids",
    )
    stamp = (tmp_path / "m/manifest.json").stat().st_mtime_ns
    trained(data, tmp_path / "m", *flags[:-1], tmp_path / "elsewhere")
    assert (tmp_path / "m/manifest.json").stat().st_mtime_ns == stamp, (
        "where vectors go is no part of a model"
    )
    assert np.array_equal(read_embeddings(tmp_path / "elsewhere"), x_ND)


def test_embeddings_take_the_place_of_tfidf(data, tmp_path):
    call(
        "rq.embed_items",
        "--data",
        data,
        "--output_dir",
        tmp_path / "e",
        "--parts",
        "[{method: tfidf_svd, dim: 5}]",
    )
    flags = (*FULL, "--text.table", "add", "--embeddings", tmp_path / "e")
    weights = trained(data, tmp_path / "m", *flags)
    known = weights["text_NX"][weights["text_NX"].abs().sum(1) > 0]
    assert weights["text_NX"].shape == (ITEMS, 5) and float(known.square().mean()) == pytest.approx(
        1, abs=1e-5
    )
    other = write_store(tmp_path / "other", sequences(users=40, seed=5))
    with pytest.raises(InputError, match="was made from another state of the data"):
        trained(other, tmp_path / "n", *flags)


def test_predictions_are_those_of_a_baseline(data, tmp_path):
    trained(data, tmp_path / "run/baselines/sasrec", *FULL)
    flags = ("infer.run_baselines", "--data", data, "--output_root", tmp_path / "run/eval")
    call(*flags, "--models", f"[pop,{tmp_path}/run/baselines/sasrec]")
    for split in ("valid", "test"):
        call(
            "infer.evaluate",
            "--predictions",
            tmp_path / f"run/eval/sasrec.{split}",
            "--data",
            data,
            "--resamples",
            20,
        )
    metrics = json.loads((tmp_path / "run/eval/sasrec.valid/metrics/metrics.json").read_text())
    best = read_manifest(tmp_path / "run/baselines/sasrec")["facts"]["best_ndcg@10"]
    assert metrics["item_level/ndcg@10"]["value"] == pytest.approx(best, abs=1e-6)
    assert metrics["protocol"]["fitted_on"] == "train"
    refused = (
        "infer.run_baselines",
        "--output_root",
        tmp_path / "x",
        "--models",
        f"[{tmp_path}/run/baselines/sasrec]",
    )
    other = write_store(tmp_path / "other", sequences(users=40, seed=5))
    assert "was made from another state of the data" in refuse(*refused, "--data", other)
    assert "two models are called 'pop'" in refuse(*flags, "--models", "[pop,some/pop]")
    assert not (tmp_path / "x").exists()


def test_a_teacher_and_a_cache_of_it(data, tmp_path):
    trained(data, tmp_path / "teacher", *FULL)
    rows = with_ages(read_rows(data, "test", num_items=ITEMS), data, num_items=ITEMS)
    made = cache.cached(tmp_path / "scores", model=tmp_path / "teacher", rows=rows, k=7)
    assert np.allclose(np.exp(made.score(rows).astype(float)).sum(1), 1, atol=1e-4)
    codes = np.stack(np.unravel_index(np.arange(ITEMS), (8, 8)), axis=1).astype(np.int32)
    sids = SidTable(codes, (8, 8))
    examples = handmade.write_sids(tmp_path / "sids", data=data, codes=codes, sizes=(8, 8))
    (teacher,) = resolve(
        ["teacher"], Sources(sids, teacher=str(tmp_path / "teacher"), made_from=str(examples))
    ).values()
    assert teacher.score(rows).shape == (len(rows), ITEMS)
    other = write_store(tmp_path / "other", sequences(users=40, seed=5))
    trained(other, tmp_path / "stranger", *FULL)
    with pytest.raises(InputError, match="stranger was made from another state of the data"):
        resolve(["teacher"], Sources(sids, teacher=str(tmp_path / "stranger"), made_from=str(examples)))


def test_bad_arguments_are_refused(data, tmp_path):
    common = ("train.train_sequential", "--data", data, "--output_dir", tmp_path / "m")
    for flags, words in (
        (["--sasrec.heads", 3], "sasrec: 3 heads do not divide scorer.hidden 32"),
        (["--gru4rec.layers", 2], "gru4rec is read only with trunk gru4rec"),
        (["--trunk", "caser", "--caser.heights", "[2,11]"], "more than scorer.positions 10"),
        (["--scorer.copy", "true"], "scorer.copy are learned by the cross-entropy over all items"),
        (["--loss.neighbour_share", 0.2], "spreads a target of the cross-entropy alone"),
        (["--embeddings", data], "is read only with text.table add or init"),
        (["--scorer.dropout", 1.0], "scorer.dropout 1.0 must lie in [0, 1)"),
        (["--loop.patience", -1], "loop.patience -1 must be at least 0"),
    ):
        assert words in refuse(*common, *flags)
    assert not (tmp_path / "m").exists()


def test_a_data_set_without_texts(data, tmp_path):
    bare = write_store(tmp_path / "bare")
    items = artifacts.read_items(bare)
    for name, empty in (("title", ""), ("description", ""), ("brand", "")):
        items = items.set_column(items.column_names.index(name), name, pa.array([empty] * ITEMS))
    categories = pa.array([[]] * ITEMS, artifacts.TEXT_LIST)
    items = items.set_column(items.column_names.index("categories"), "categories", categories)
    import pyarrow.parquet as pq

    pq.write_table(items, bare / "items.parquet")
    resign(bare)
    common = ("train.train_sequential", "--data", bare, "--output_dir", tmp_path / "m", *SMALL, *FULL)
    message = refuse(*common, "--text.table", "add", "--loss.neighbour_share", 0.2)
    assert "which text.table, loss.neighbour_share need" in message and not (tmp_path / "m").exists()
    trained(bare, tmp_path / "m", *FULL)
