"""Stage 12, second half: how good instructions are, by their terms, their words and, where one is asked for, by a judge.

reads   instructions (of infer.instruct), the TIDs of the items
writes  <instructions>/metrics/metrics.json, metrics.tsv (one row, 4 decimals), rows.parquet (a row each), manifest.json

    parse/strict, repaired, unreadable      what could be read; `cut` and `forced_close` count texts and thoughts ended by force
    tid/precision, recall, f1, exact        terms against those of the next item; tid/legal: they are a TID of the catalogue;
                                            tid/item: the next item is meant, items of one TID being equally likely
    quality/...                             infer/metrics/instructions.py, over rows with an instruction
    judge/...                               seven scores in [0, 1], their means, and how many rows have a grade

A judge is a chat model (`judge.client`): a grade that fails is no score and is left out of the means. Backend `heuristic` grades by a
rule that says so in `protocol`. Without a backend nobody judges. Whether a judge is worth its calls says --calibrate: it grades
pairs of which one is known to be better, each spoilt in one way, and calibration.json has who won. Differs from NaviGen, which evaluates terms only.

python -m infer.grade --instructions outputs/quickstart/instructions/sft_dual.test --tids data/toystore/tids/keywords
python -m infer.grade --calibrate true --judge.client.backend heuristic --output_dir outputs/judges/word_overlap
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from configs import program
from configs.program import InputError, say
from data import artifacts
from data.store.lineage import require_common_data
from data.store.output import open_output, require_manifest
from data.tids import Tids, read_tids
from infer.chat.judge import SCORES, Grade, GradedSample, Judge, JudgeSettings, calibrate
from infer.metrics import instructions
from infer.metrics.measure import entry, means_of_known
from infer.tables.results import one_row

STAGE, VERSION = "grade", 2
STATUSES = {"ok": "strict", "cut": "strict", "repaired": "repaired", "unreadable": "unreadable"}


@dataclass(frozen=True, kw_only=True)
class RowsJudge(JudgeSettings):
    """Who judges, and how many rows."""

    max_rows: int | None = None
    """judge the first rows only; null = all"""


@dataclass
class GradeArgs:
    """Metrics of instructions."""

    instructions: str | None = None
    """directory of infer.instruct, outputs/<run>/instructions/<model>.<split>"""
    tids: str | None = None
    """TID directory with which they were written"""
    calibrate: bool = False
    """grade the judge instead: instructions and tids are not read"""
    judge: RowsJudge = field(default_factory=RowsJudge)
    """a chat model's opinion"""
    output_dir: str | None = None
    """null = <instructions>/metrics"""
    resamples: int = 1000
    """bootstrap resamples of the users"""
    seed: int = 0
    """of the bootstrap"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        if self.resamples < 1 or self.judge.max_rows is not None and self.judge.max_rows < 1:
            raise InputError(
                f"resamples {self.resamples}, judge.max_rows {self.judge.max_rows} -> at least 1"
            )
        if self.calibrate and (self.instructions or self.tids):
            raise InputError("calibrate reads no instructions and no tids -> leave them out")
        if self.calibrate and (self.judge.client.backend == "none" or not self.output_dir):
            raise InputError("calibrate grades a judge -> judge.client.backend and output_dir")
        if not self.calibrate and not (self.instructions and self.tids):
            raise InputError("there is nothing to grade -> instructions and tids, or calibrate")

    def not_chosen(self) -> set[str]:
        """Options of grades of rows, where there are no rows."""
        return {"resamples", "seed"} if self.calibrate else set()


def main(args: GradeArgs) -> None:
    judge = args.judge.judge() if args.judge.asked else None  # without its key it stops here
    if args.calibrate:
        write_calibration(args, judge)
        return
    directory = args.output_dir or str(Path(args.instructions) / "metrics")
    inputs = {"instructions": args.instructions, "tids": args.tids}
    with open_output(args, STAGE, version=VERSION, inputs=inputs, directory=directory) as out:
        require_common_data(args.instructions, args.tids, again="scripts/12_instruct.sh")
        table = artifacts.read(args.instructions, artifacts.INSTRUCTIONS)
        facts = require_manifest(args.instructions, written_by=artifacts.INSTRUCTIONS.written_by)["facts"]
        rows, tids = table.to_pylist(), read_tids(args.tids)
        columns = row_columns(rows, tids)
        asked = [row for row in rows[: args.judge.max_rows] if row["instruction"] and judge]
        grades = judge.grade([sample(row, tids) for row in asked]) if asked else []
        by_row = dict(zip((row["example_id"] for row in asked), grades, strict=True))
        columns |= judge_columns([row["example_id"] for row in rows], by_row)
        metrics = means_of_known(columns, users_of(table), resamples=args.resamples, seed=args.seed)
        metrics |= diversity(table["instruction"].to_pylist())
        known = {
            name: facts.get(name)
            for name in ("split", "mode", "constrained", "model", "model_hash", "max_rows")
        }
        judges = sorted({grade.judge for grade in grades if grade})
        protocol = known | {"rows": table.num_rows, "resamples": args.resamples, "judge": judges or None}
        out.write_json("metrics.json", metrics | {"protocol": protocol})
        out.write_text("metrics.tsv", one_row(metrics))
        ids = {name: table[name] for name in ("example_id", "user_id", "target_item", "status")}
        out.write_table("rows.parquet", pa.table(ids | columns))
        told = sum(map(bool, table["instruction"].to_pylist()))
        out.counts |= {
            "rows": table.num_rows,
            "with_instruction": told,
            "graded": sum(grade is not None for grade in grades),
        }
        say(
            f"{Path(args.instructions).name}, {table.num_rows:,} rows; quality/* is about the {told:,} with an instruction"
        )
        for name, value in metrics.items():
            say(f"  {name:<28} {value['value']:.4f}" + ("" if value["low"] is None else f" [{value['low']:.4f}, {value['high']:.4f}]"))  # fmt: skip


def write_calibration(args: GradeArgs, judge: Judge) -> None:
    """calibration.json: how the judge orders pairs of which it is known that one is better."""
    with open_output(args, STAGE, version=VERSION, inputs={}) as out:
        made = calibrate(judge)
        out.write_json("calibration.json", asdict(made) | {"judge": judge.client.teacher})
        out.counts |= {"pairs": made.pairs, "graded": made.graded, "right": made.right}
        say(
            f"{judge.client.teacher}: {made.right} of {made.graded} graded pairs in the right order ({made.pairs} pairs), "
            f"better minus worse {made.mean_gap:.3f} on average"
        )
        for flaw, gap in made.gaps.items():
            say(f"  {flaw:<28} {'no grade' if gap is None else f'{gap:+.3f}'}")


def row_columns(rows: list[dict[str, Any]], tids: Tids) -> dict[str, np.ndarray]:
    """Metrics of every row, float64 [N]; NaN where one says nothing of a row."""
    made: dict[str, list[float]] = {}
    groups = tids.groups
    overlap = instructions.self_overlap([row["instruction"] for row in rows])
    for row, shared in zip(rows, overlap.tolist(), strict=True):
        target, text = tids.terms[row["target_item"]], row["instruction"]
        found = {f"parse/{name}": float(STATUSES[row["status"]] == name) for name in set(STATUSES.values())}
        found |= {
            "parse/cut": float(row["status"] == "cut"),
            "parse/forced_close": float(row["forced_close"]),
        }
        found |= {
            f"tid/{name}": value for name, value in instructions.term_scores(row["terms"], target).items()
        }
        items = row["item_ids"]
        found["tid/legal"] = float(tuple(row["terms"]) in groups)
        found["tid/item"] = (row["target_item"] in items) / max(len(items), 1)
        told = {
            "quality/specificity": instructions.specificity(text),
            "quality/term_coverage": instructions.term_coverage(text, row["terms"]),
            "quality/concealment": instructions.concealment(text, target),
            "quality/self_overlap": shared,
        }
        found |= told if text else dict.fromkeys(told, np.nan)
        for name, value in found.items():
            made.setdefault(name, []).append(value)
    return {name: np.array(values, np.float64) for name, values in sorted(made.items())}


def sample(row: dict[str, Any], tids: Tids) -> GradedSample:
    """What a judge hears of a row."""
    return GradedSample(
        key=str(row["example_id"]),
        target_terms=tids.terms[row["target_item"]],
        predicted_terms=row["terms"],
        instruction=row["instruction"],
    )


def judge_columns(example_ids: list[int], grades: dict[int, Grade | None]) -> dict[str, np.ndarray]:
    """Scores of every row as `row_columns` gives them; `grades` has the rows that a judge was asked about, None where it failed."""
    if not grades:
        return {}
    given = [grades.get(example) for example in example_ids]
    columns: dict[str, list[float]] = {
        "graded": [
            float(grades[example] is not None) if example in grades else np.nan for example in example_ids
        ]
    }
    for name in SCORES:
        columns[name] = [np.nan if grade is None else grade.scores[name] for grade in given]
    for name in ("quality", "semantic"):
        columns[name] = [np.nan if grade is None else getattr(grade, name) for grade in given]
    return {f"judge/{name}": np.array(values, np.float64) for name, values in columns.items()}


def users_of(table: pa.Table) -> np.ndarray:
    """int64 [N]; a row without a user is a user of its own."""
    return np.array(
        [-1 - row if user is None else user for row, user in enumerate(table["user_id"].to_pylist())]
    )


def diversity(texts: list[str]) -> dict[str, dict[str, float | None]]:
    """Over all instructions together."""
    told = [text for text in texts if text]
    return {f"quality/distinct_{n}": entry(instructions.distinct_n(told, n)) for n in (1, 2)}


if __name__ == "__main__":
    program.run(GradeArgs, main)
