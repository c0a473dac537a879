"""Which checkpoint is handed on, when training stops early, and what an example's weight does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from configs.program import InputError
from data import artifacts
from data.tasks import from_row
from infer.engine import DecodeSettings, load_engine
from tests import handmade
from train.sft import SftArgs
from train.supervised.batches import IGNORED
from train.supervised.rows import make_batches, units_of
from train.supervised.tokens import render
from train.validation import Validator

MEASURES = [
    ("ndcg@10", [0.1, 0.3, 0.2, 0.2, 0.5, 0.6]),
    ("hr@10", [0.4, 0.1, 0.1, 0.5, 0.2, 0.2]),
    ("loss", [9.0, 3.0, 2.0, 2.5, 2.5, 1.5]),
]


def run(chain, output: Path, *flags: object) -> Path:
    short = ["--trainer.max_steps", 6, "--trainer.eval_steps", 1, "--trainer.per_device_train_batch_size", 16]
    short += [
        "--trainer.learning_rate",
        5e-3,
        "--eval_share",
        1,
        "--keep_checkpoints",
        9,
        "--tasks",
        "[history_to_sid]",
        "--valid_rows",
        20,
    ]
    handmade.call("train.sft", *chain.flags(), *short, *flags, "--output_dir", output)
    return output


def facts(output: Path) -> dict:
    return json.loads((output / "manifest.json").read_text())["facts"]


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(path / "model.safetensors") for path in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


SCRIPT = [
    dict(zip([name for name, _ in MEASURES], values, strict=True))
    for values in zip(*[v for _, v in MEASURES], strict=True)
]
REALLY = Validator.__call__


def script(monkeypatch: pytest.MonkeyPatch, found: list[dict[str, float]]) -> None:
    """Validations that find what is `found`, one after the other."""
    coming = iter(found)

    def measure(self) -> dict[str, float]:
        REALLY(self)  # the samples show its lists
        return next(coming)

    monkeypatch.setattr(Validator, "__call__", measure)


@pytest.mark.parametrize(("by", "patience", "steps", "best"), [
    ("ndcg@10", None, 6, 6), ("ndcg@10", 2, 4, 2), ("ndcg@10", 3, 6, 6), ("hr@10", None, 6, 4), ("hr@10", 2, 3, 1), ("loss", None, 6, 6), ("loss", 2, 5, 3),
])  # fmt: skip
def test_the_best_is_handed_on_and_training_stops_without_a_better_one(
    by: str, patience: int | None, steps: int, best: int, chain, monkeypatch, tmp_path
) -> None:
    script(monkeypatch, SCRIPT)
    flags = ["--select_by", by, *(["--patience", patience] if patience else [])]
    output = run(chain, tmp_path / "run", *flags)
    assert {path.name for path in output.glob("checkpoint-*")} == {
        f"checkpoint-{n + 1}" for n in range(steps)
    }
    assert facts(output)["best_step"] == best and facts(output)["final_is"] == f"checkpoint-{best}"
    assert facts(output)[f"best_{by}"] == (min if by == "loss" else max)(dict(MEASURES)[by][:steps])
    assert same_weights(output / "final", output / f"checkpoint-{best}")
    assert steps == best or not same_weights(output / "final", output / f"checkpoint-{steps}")


def test_the_loss_that_chooses_is_that_of_what_is_taught(chain, tmp_path) -> None:
    """Titles alone: the least loss of valid titles, where that of semantic IDs, which nobody teaches, rises from the first on."""
    made = [
        "--data",
        chain.data,
        "--sids",
        chain.sids,
        "--output_dir",
        tmp_path / "titles",
        "--tasks",
        "[titles_to_title]",
    ]
    handmade.call("preprocess.build_examples", *made)
    flags = [
        "--tasks",
        "[titles_to_title]",
        "--select_by",
        "loss",
        "--trainer.max_steps",
        30,
        "--trainer.eval_steps",
        10,
        "--valid_rows",
        500,
    ]
    output = run(replace(chain, examples=tmp_path / "titles"), tmp_path / "run", *flags)
    assert facts(output)["final_is"] == "checkpoint-30"
    engine = load_engine(output / "final", chain.sids, tmp_path / "titles", DecodeSettings())
    valid = artifacts.read_split(tmp_path / "titles", "valid").to_pylist()
    total, count = 0.0, 0
    for row in [row for row in valid if row["task"] == "titles_to_title"]:
        prompt, answer = engine.renderer.supervised(from_row(row))
        with torch.no_grad():
            logps = (
                engine.model(torch.tensor([[*prompt, *answer]]))
                .logits[0, len(prompt) - 1 : -1]
                .log_softmax(-1)
            )
        total -= float(logps.gather(1, torch.tensor(answer)[:, None]).sum())
        count += len(answer)
    assert facts(output)["best_loss"] == pytest.approx(total / count, rel=1e-4)
    flags = ["--tasks", "[sid_to_title]", "--select_by", "loss"]
    with pytest.raises(InputError, match="select_by loss: valid of .* has no row of sid_to_title"):
        run(chain, tmp_path / "none", *flags)


def test_a_run_stops_where_it_is_good_enough(chain, monkeypatch, tmp_path) -> None:
    script(monkeypatch, SCRIPT)
    output = run(chain, tmp_path / "run", "--enough", 0.3)
    assert facts(output)["best_step"] == 2 and not (output / "checkpoint-3").exists()
    with pytest.raises(InputError, match=r"enough 0.3 of loss"):
        SftArgs("m", "e", "s", "o", enough=0.3, select_by="loss")


def test_a_run_that_was_cut_off_is_as_patient_as_one_that_was_not(chain, tmp_path, monkeypatch) -> None:
    from train.supervised.schedule import Patience

    class Kill(Exception):
        """Stands for a kill after a checkpoint."""

    flags = ["--patience", 2]
    for cut, step in (("on_step_begin", 3), ("on_save", 4)):  # while the last step is to come, and after it

        def dies(self, args, state, control, step=step, **kwargs) -> None:
            if state.global_step == step:
                raise Kill

        script(monkeypatch, SCRIPT)
        monkeypatch.setattr(Patience, cut, dies)
        with pytest.raises(Kill):
            run(chain, tmp_path / cut, *flags)
        monkeypatch.delattr(Patience, cut)
        script(monkeypatch, [{"ndcg@10": 0.2}] * 9)
        run(chain, tmp_path / cut, *flags)
        assert facts(tmp_path / cut)["best_step"] == 2 and (tmp_path / cut / "checkpoint-4").is_dir()
        assert not (tmp_path / cut / "checkpoint-5").exists()


@pytest.mark.parametrize("layout", ["user_tree", "packed", "padded"])
def test_weights_of_examples_reach_their_labels(layout: str, chain) -> None:
    """The column `weight` (value-weighted fine-tuning): every label of an example counts that many times."""
    renderer = load_engine(chain.model, chain.sids, chain.examples, DecodeSettings()).renderer
    table = artifacts.read(chain.examples, artifacts.EXAMPLES, file="train.parquet")
    weights = np.random.default_rng(0).random(table.num_rows).astype(np.float32)
    weighted = table.set_column(table.column_names.index("weight"), "weight", pa.array(weights))
    args = SftArgs("m", "e", "s", "o", layout=layout)
    rows = render(table, renderer)
    units = units_of(args, table, rows, end_id=renderer.terminator_ids()[-1], step_windows=64)
    options = {"step_windows": 64, "seed": 0}
    assert "label_weights" not in make_batches(args, table, units, **options)[0], "all of weight 1"
    batches = make_batches(args, weighted, units, **options)
    found: dict[int, list[float]] = {}
    for batch in (batches[index] for index in range(len(batches))):
        kept = batch["labels"] != IGNORED
        for label, weight in zip(
            batch["labels"][kept].tolist(), batch["label_weights"][kept].tolist(), strict=True
        ):
            found.setdefault(label, []).append(weight)
    expected: dict[int, list[float]] = {}
    for start, length, prompt, weight in zip(
        rows.starts_N, rows.lengths_N, rows.prompts_N, weights, strict=True
    ):
        for label in rows.tokens_S[start + prompt : start + length].tolist():
            expected.setdefault(label, []).append(float(weight))
    assert {label: sorted(values) for label, values in found.items()} == {
        label: sorted(values) for label, values in expected.items()
    }
