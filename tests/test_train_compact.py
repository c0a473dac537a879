"""The trainer of compact generators on a small store, as a user runs it: what it learns, with and without a teacher; decoding;
resume; what each option changes; what it refuses."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from configs.program import InputError, Interrupted
from data.predictions import read_predictions
from data.rows import read_rows
from data.sid import read_sids
from data.store.output import read_manifest
from infer.models import contract
from infer.models.recency import with_ages
from tests import handmade
from tests.handmade import call, refuse, resign, succeed
from tests.store import ITEMS, sequences, write_store
from train.scratch import loop

SMALL = [
    "--model.hidden", 8, "--model.heads", 2, "--model.layers", 1, "--model.feedforward", 2, "--loop.epochs", 2, "--loop.rows", 64,
]  # fmt: skip


def sized(flags: tuple[object, ...]) -> list[object]:
    """Small sizes of what the flags ask for; others would be refused."""
    few = {"--text.table": ["--text.dim", 6], "--text.kernel": ["--text.similar", 5]}
    return [part for name, size in few.items() if name in flags for part in size]


LEARNS = [
    "--model.hidden", 16, "--model.dropout", 0.1, "--loop.epochs", 20, "--loop.learning_rate", 0.02, "--loop.patience", 4,
]  # fmt: skip


@pytest.fixture(scope="module")
def teacher(chain, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("teacher")
    call("infer.run_baselines", "--data", chain.data, "--output_root", root / "eval", "--splits", "[]", "--models", "[pop,recent,itemknn]")  # fmt: skip
    members = ",".join(str(root / "baselines" / name) for name in ("pop", "recent", "itemknn"))
    call(
        "infer.fuse", "--members", f"[{members}]", "--data", chain.data, "--output_dir", root / "baselines/teacher",
        "--output_root", root / "eval", "--splits", "[]", "--scale", "fitted",
    )  # fmt: skip
    return root / "baselines/teacher"


def command(chain, directory: Path, *flags: object) -> tuple[object, ...]:
    return (
        "train.train_compact",
        "--data",
        chain.data,
        "--sids",
        chain.sids,
        "--output_dir",
        directory,
        *SMALL,
        *sized(flags),
        *flags,
    )


def trained(chain, directory: Path, *flags: object) -> dict[str, torch.Tensor]:
    """The weights of a run."""
    from safetensors.torch import load_file

    call(*command(chain, directory, *flags))
    return load_file(directory / "model.safetensors")


def lines(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_the_walks_and_is_decoded_like_any_model(chain, tmp_path):
    """Users walk i -> i + 1. The decoded list is the ranking of all items, and the saved state the best on valid."""
    model = tmp_path / "run/baselines/compact"
    trained(chain, model, *LEARNS)
    facts, found = read_manifest(model)["facts"], lines(model)
    assert facts["best_ndcg@10"] == max(line["eval_ndcg@10"] for line in found) > 0.4
    assert (
        facts["fitted_on"] == "train"
        and facts["teacher"] is None
        and facts["sids_sha256"] == read_sids(chain.sids).sha256
    )
    rows = read_rows(chain.data, "test", num_items=ITEMS)
    score_RN = contract.load(model).score(rows)
    answers = tmp_path / "run/eval/compact.test"
    recommend = (
        "infer.recommend",
        "--model",
        model,
        "--sids",
        chain.sids,
        "--examples",
        chain.examples,
        "--split",
        "test",
    )
    assert "score_space trie" in refuse(*recommend, "--output_dir", answers)
    call(*recommend, "--output_dir", answers, "--decode.score_space", "trie", "--decode.beams", ITEMS)
    read, _ = read_predictions(answers)
    row = np.searchsorted(read.example_ids_R, rows.example_ids_R)
    assert len(read.items_M) == len(rows) * ITEMS
    for mine, theirs in enumerate(row.tolist()):
        listed = read.items_M[read.offsets[theirs] : read.offsets[theirs + 1]]
        assert np.allclose(np.sort(score_RN[mine])[::-1], score_RN[mine, listed], atol=1e-4)
    whole = tmp_path / "whole/compact.test"
    call(
        "infer.run_baselines", "--models", f"[{model}]", "--data", chain.data, "--output_root", whole.parent, "--splits", "[test]",
    )  # fmt: skip
    for place in (answers, whole):
        call(
            "infer.evaluate",
            "--predictions",
            place,
            "--data",
            chain.data,
            "--sids",
            chain.sids,
            "--resamples",
            20,
        )
    ndcg = [
        json.loads((place / "metrics/metrics.json").read_text())["item_level/ndcg@10"]["value"]
        for place in (answers, whole)
    ]
    assert ndcg[0] == pytest.approx(ndcg[1], abs=1e-6) and ndcg[0] > 0.4


def test_a_teacher_is_learned(chain, teacher, tmp_path):
    """Taught by its share of 1, the student comes near the teacher's own distribution; a student of hard targets does not."""
    rows = read_rows(chain.data, "valid", num_items=ITEMS)
    wanted_RN = np.exp(contract.load(teacher).score(rows).astype(float))

    def distance(directory: Path) -> float:
        return float(-(wanted_RN * contract.load(directory).score(rows)).sum(1).mean())

    flags = ["--soft_targets.teacher", teacher, "--soft_targets.share", 1.0, "--augment.ratio", 1.0]
    trained(chain, tmp_path / "soft", *LEARNS, *flags, "--loop.patience", 0, "--loop.epochs", 8)
    trained(chain, tmp_path / "hard", *LEARNS, "--loop.patience", 0, "--loop.epochs", 8)
    least = float(-(wanted_RN * np.log(wanted_RN)).sum(1).mean())
    assert distance(tmp_path / "soft") - least < 0.5 * (distance(tmp_path / "hard") - least)
    # Six drawn answers a row and epoch in place of the distribution come as near.
    trained(
        chain,
        tmp_path / "drawn",
        *LEARNS,
        *flags,
        "--soft_draws",
        6,
        "--loop.patience",
        0,
        "--loop.epochs",
        8,
    )
    assert distance(tmp_path / "drawn") - least < 0.6 * (distance(tmp_path / "hard") - least)
    manifest = read_manifest(tmp_path / "soft")
    assert manifest["inputs"]["teacher"]["sha256"] == read_manifest(teacher)["content_hash"]
    assert manifest["counts"]["made windows"] == manifest["counts"]["windows"]
    places = sorted(
        re.sub("-[0-9a-f]+", "", path.name) for path in (teacher.parent.parent / "scores").iterdir()
    )
    kept = ["items.drawn", "items", "made.drawn", "made", "train.drawn", "train"]
    kept = [f"teacher.{name}.folds8" for name in kept]
    assert places == kept, "the teacher's answers are kept"
    # Any item model: a member of a fusion.
    call(
        "infer.fuse", "--members", f"[{tmp_path}/soft,{tmp_path}/hard]", "--data", chain.data, "--output_dir", tmp_path / "both",
        "--output_root", tmp_path / "eval", "--splits", "[valid]",
    )  # fmt: skip


SWITCHES = {
    "windows": ["--windows", "single"],
    "cut": ["--windows", "cut"],
    "layers": ["--model.layers", "2"],
    "heads": ["--model.heads", "1"],
    "feedforward": ["--model.feedforward", "1"],
    "dropout": ["--model.dropout", "0"],
    "embedding dropout": ["--model.embedding_dropout", "0"],
    "positions": ["--model.positions", "3"],
    "cut, gaps": ["--windows", "cut", "--model.positions", "3", "--model.gaps", "4"],
    "copy": ["--model.copy", "false"],
    "users": ["--model.users", "7"],
    "gaps": ["--model.gaps", "4"],
    "items": ["--model.item_path", "0.5"],
    "text": ["--text.table", "add"],
    "text to start with": ["--text.table", "init"],
    "own vectors": ["--model.own_vectors", "true"],
    "node text": ["--text.table", "add", "--model.node_text", "true"],
    "kernel": ["--text.kernel", "true"],
    "companions": ["--model.companions", "4"],
    "companions and kernel, two paths": [
        "--model.companions",
        "4",
        "--text.kernel",
        "true",
        "--model.item_path",
        "0.5",
    ],  # fmt: skip
    "seed": ["--seed", "1"],
}
TAUGHT = {
    "taught": [],
    "share": ["--soft_targets.share", "0.3"],
    "temperature": ["--soft_targets.temperature", "2"],
    "best items": ["--soft_targets.k", "4"],
    "drawn": ["--soft_draws", "3"],
    "made": ["--augment.ratio", "0.5"],
    "made, drawn": ["--augment.ratio", "0.5", "--soft_draws", "3"],
    "more made": ["--augment.ratio", "1.5", "--augment.variants", "2"],
    "made, users": ["--augment.ratio", "0.5", "--model.users", "7"],
    "made, drawn, companions": ["--augment.ratio", "0.5", "--soft_draws", "3", "--model.companions", "4"],
    "made, two paths": ["--augment.ratio", "0.5", "--model.item_path", "0.5"],
    "dropped": ["--augment.ratio", "0.5", "--augment.drop", "0.5"],
    "replaced": ["--augment.ratio", "0.5", "--augment.replace", "0"],
    "made otherwise": ["--augment.ratio", "0.5", "--augment.seed", "1"],
    "made, cut": ["--augment.ratio", "0.5", "--windows", "cut", "--model.positions", "3"],
    "made, drawn, cut, users": [
        "--augment.ratio",
        "0.5",
        "--soft_draws",
        "3",
        "--windows",
        "cut",
        "--model.positions",
        "3",
        "--model.users",
        "7",
    ],  # fmt: skip
}


MADE = ["--augment.ratio", "0.5"]


@pytest.fixture(scope="module")
def reference(chain, teacher, tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of the runs that switches are compared with: without a teacher, with one, with made histories."""
    root, taught = tmp_path_factory.mktemp("reference"), ["--soft_targets.teacher", teacher]
    runs = {"hard": [], "taught": taught, "made": [*taught, *MADE]}
    return {name: trained(chain, root / name, *flags) for name, flags in runs.items()}


@pytest.mark.parametrize("switch", [*SWITCHES, *TAUGHT])
def test_every_switch_changes_what_is_learned(chain, reference, teacher, tmp_path, switch):
    flags = SWITCHES.get(switch) or ["--soft_targets.teacher", teacher, *TAUGHT[switch]]
    weights = trained(chain, tmp_path / "m", *flags)
    other = "hard" if switch in SWITCHES or switch == "taught" else "taught"
    if other == "taught" and "--augment.ratio" in flags and switch != "made":
        other = "made"
    same = weights.keys() == reference[other].keys() and all(
        weights[name].shape == part.shape and torch.equal(weights[name], part)
        for name, part in reference[other].items()
    )
    assert not same
    if "--model.companions" in flags:
        assert (weights["alpha_LF"][:, -2:] - 0.1).abs().max() > 1e-5, "what companions weigh is learned"
    rows = with_ages(read_rows(chain.data, "valid", num_items=ITEMS), chain.data, num_items=ITEMS)
    rows = rows.take(np.arange(20))
    assert np.allclose(np.exp(contract.load(tmp_path / "m").score(rows).astype(float)).sum(1), 1, atol=1e-4)


def test_a_killed_run_ends_with_the_same_weights(chain, teacher, tmp_path, monkeypatch):
    flags = ["--soft_targets.teacher", teacher, "--augment.ratio", "0.5", "--text.kernel", "true", "--loop.epochs", "3",
             "--model.companions", "4", "--loop.average", "0.9", "--loop.repeats", "valid", "--windows", "cut",
             "--model.positions", "3"]  # fmt: skip
    whole = trained(chain, tmp_path / "whole", *flags)
    plain, done = loop.Run.step_on, []

    def killed(run: loop.Run, batch: object) -> None:
        plain(run, batch)
        done.append(run.state.step)
        if len(done) == 11:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop.Run, "step_on", killed)
    with pytest.raises(Interrupted):
        trained(chain, tmp_path / "killed", *flags)
    resumed = trained(chain, tmp_path / "killed", *flags)
    assert done[11] == 12, "it went on where it was"
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert lines(tmp_path / "whole") == lines(tmp_path / "killed")


def test_the_toy_recipe_as_a_user_runs_it(chain, tmp_path, capsys):
    printed = succeed(
        "train.train_compact", "--config", "configs/toy/compact.yaml", "--data", chain.data, "--sids", chain.sids,
        "--output_dir", tmp_path / "m", "--loop.epochs", 2, "--model.positions", 5,
    )  # fmt: skip
    assert "train histories are longer than model.positions 5" in printed
    assert read_manifest(tmp_path / "m")["counts"]["histories_cut"] > 0
    call("infer.recommend", "--model", tmp_path / "m", "--sids", chain.sids, "--examples", chain.examples, "--split", "test",
         "--output_dir", tmp_path / "a", "--decode.score_space", "trie")  # fmt: skip
    assert "longer than the model reads (5 items): they lose their oldest items" in capsys.readouterr().err
    stamp = (tmp_path / "m/manifest.json").stat().st_mtime_ns
    succeed(
        "train.train_compact", "--config", "configs/toy/compact.yaml", "--data", chain.data, "--sids", chain.sids,
        "--output_dir", tmp_path / "m", "--loop.epochs", 2, "--model.positions", 5,
    )  # fmt: skip
    assert (tmp_path / "m/manifest.json").stat().st_mtime_ns == stamp


def test_bad_arguments_are_refused(chain, teacher, tmp_path):
    for flags, words in (
        (["--model.node_text", "true", "--text.table", "init"], "text.table add"),
        (["--augment.ratio", "0.5"], "soft_targets.teacher"),
        (["--soft_draws", "4"], "soft_targets.teacher"),
        (["--soft_draws", "0", "--soft_targets.teacher", teacher], "at least 1"),
        (
            ["--soft_draws", "4", "--soft_targets.k", "3", "--soft_targets.teacher", teacher],
            "without soft_targets.k",
        ),
        (["--augment.ratio", "2", "--soft_targets.teacher", teacher], "more variants"),
        (["--embeddings", "x"], "text.table add"),
    ):
        assert words in refuse(*command(chain, tmp_path / "m", *flags)), words
    other = write_store(tmp_path / "other", sequences(seed=1))
    assert "another state of the data" in refuse(*command(chain, tmp_path / "m"), "--data", other)
    sids = handmade.write_sids(
        tmp_path / "sids", data=other, codes=read_sids(chain.sids).codes_NL, sizes=(8, 8, 4)
    )
    strange = refuse(
        *command(chain, tmp_path / "m", "--soft_targets.teacher", teacher), "--data", other, "--sids", sids
    )
    assert "another state of the data" in strange and "the teacher" in strange
    facts = read_manifest(teacher)["facts"]
    kept = (teacher / "manifest.json").read_bytes()
    resign(teacher, facts=facts | {"fitted_on": "train and valid"})
    try:
        assert "train rows alone" in refuse(
            *command(chain, tmp_path / "m", "--soft_targets.teacher", teacher)
        )
    finally:
        (teacher / "manifest.json").write_bytes(kept)
    assert not (tmp_path / "m").exists()


def test_what_is_not_decoded_is_refused(chain, teacher, tmp_path):
    answers = ["--output_dir", tmp_path / "x"]
    recommend = ["infer.recommend", "--sids", chain.sids, "--examples", chain.examples, *answers]
    trie = ["--decode.score_space", "trie"]
    assert "kind fusion, which is not decoded" in refuse(*recommend, "--model", teacher, *trie)
    trained(chain, tmp_path / "m")
    assert "mode direct" in refuse(*recommend, "--model", tmp_path / "m", *trie, "--mode", "empty_think")
    codes = read_sids(chain.sids).codes_NL[::-1]
    other = handmade.write_sids(tmp_path / "sids", data=chain.data, codes=codes, sizes=(8, 8, 4))
    examples = tmp_path / "examples"
    call("preprocess.build_examples", "--data", chain.data, "--sids", other, "--output_dir", examples)
    again = ["infer.recommend", "--sids", other, "--examples", examples, *answers]
    strange = refuse(*again, "--model", tmp_path / "m", *trie)
    assert "was trained on other semantic IDs" in strange


def test_a_data_set_without_texts_and_times(chain, tmp_path):
    from data import artifacts

    data = tmp_path / "data"
    items = artifacts.read_items(chain.data)
    write_store(data)
    empty = items
    for name in ("title", "description", "brand", "categories"):
        if name in empty.column_names:
            place, kind = empty.column_names.index(name), empty[name].type
            blank = [[]] * len(items) if pa.types.is_list(kind) else [""] * len(items)
            empty = empty.set_column(place, name, pa.array(blank, kind))
    pq.write_table(empty, data / "items.parquet")
    rows = pq.read_table(data / "sequences.parquet")
    pq.write_table(rows.drop_columns(["timestamp"]), data / "sequences.parquet")
    resign(data)
    sids = handmade.write_sids(
        tmp_path / "sids", data=data, codes=read_sids(chain.sids).codes_NL, sizes=(8, 8, 4)
    )
    bare = ("train.train_compact", "--data", data, "--sids", sids, "--output_dir", tmp_path / "m", *SMALL)
    assert "which text.kernel need" in refuse(*bare, "--text.kernel", "true")
    assert "no times of train rows" in refuse(*bare, "--model.gaps", 4)
    examples = ("--sids", sids, "--output_dir", tmp_path / "examples", "--tasks", "[history_to_sid]", "--ages", "true")  # fmt: skip
    assert "no times" in refuse("preprocess.build_examples", "--data", data, *examples)
    call(*bare)
    with pytest.raises(InputError):
        contract.load(data)
