"""NaviGen's tables, and its prediction files, of a data set with semantic IDs, TIDs and what a teacher wrote.

cid2cid of every row; cid2ins of those with an instruction whose target has terms; cid2tid and tid2cid of the items with terms,
split at random; pid2cid2tid of all items. Reading them: data/releases/navigen.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from configs.program import InputError
from data import artifacts
from data.answers import INSTRUCTION_TASK, pieces, read_answer
from data.predictions import read_predictions, refuse_other_sids
from data.reasoning import OF_TERMS, rendered
from data.releases.navigen import CID
from data.releases.published import SPLITS
from data.releases.writers.content import Content, taught_texts
from data.releases.writers.options import ExportArgs
from data.store.lineage import require_same_data
from data.store.output import Output, require_manifest
from data.tids import read_tids

MAPPING_SHARES = (0.8, 0.1, 0.1)


@dataclass(frozen=True)
class CidItems:
    """What is written of every item: the source's id, its CID, its terms (none: no row in cid2tid)."""

    pids: Sequence[str]
    cids: Sequence[str]
    terms: Sequence[Sequence[str]]

    def tables(self, *, seed: int) -> dict[str, pa.Table]:
        """pid2cid2tid, and cid2tid and tid2cid of every split: MAPPING_SHARES of the items that have terms, by `seed`."""
        having = np.flatnonzero([bool(terms) for terms in self.terms])
        order = np.random.default_rng(seed).permutation(having)
        ends = np.round(np.cumsum(MAPPING_SHARES) * len(order)).astype(int)
        made = {
            "pid2cid2tid": self._table(range(len(self.pids))).add_column(
                0, "pid", pa.array(self.pids, pa.string())
            )
        }
        for split, items in zip(SPLITS, np.split(order, ends[:-1]), strict=True):
            for kind in ("cid2tid", "tid2cid"):
                made[f"{split}_{kind}"] = self._table(sorted(items.tolist()))
        return made

    def _table(self, items: Sequence[int]) -> pa.Table:
        terms = pa.array([list(self.terms[item]) for item in items], artifacts.TEXT_LIST)
        return pa.table({"sid": pa.array([self.cids[item] for item in items], pa.string()), "tid": terms})


@dataclass(frozen=True)
class TaughtRow:
    """A window with what a teacher wrote for it: the thought before its item, the instruction and the thought before that."""

    uid: str
    history: Sequence[int]
    target: int
    reasoning: str | None = None
    instruction: str | None = None
    instruction_reasoning: str | None = None


def row_tables(
    rows: Sequence[TaughtRow], items: CidItems, split: str, *, name: str, target_type: str
) -> dict[str, pa.Table]:
    """cid2cid of all rows of a split, cid2ins of those that have an instruction and whose target has terms, tid2tid of those whose
    items all have terms."""

    def columns(some: Sequence[TaughtRow], history: dict[str, pa.Array], **more: Any) -> pa.Table:
        source = texts([f"{name}_{split}_cid2cid"] * len(some))
        return pa.table(
            {"uid": texts([row.uid for row in some])} | history | more | {"source_dataset": source}
        )

    def texts(values: Sequence[str | None]) -> pa.Array:
        return pa.array(list(values), pa.string())

    def cids(some: Sequence[TaughtRow]) -> dict[str, pa.Array]:
        named = [[items.cids[item] for item in row.history] for row in some]
        return {"hist_sid": pa.array(named, artifacts.TEXT_LIST)}

    def target_terms(some: Sequence[TaughtRow]) -> pa.Array:
        return pa.array([list(items.terms[row.target]) for row in some], artifacts.TEXT_LIST)

    taught = [row for row in rows if row.instruction and items.terms[row.target]]
    termed = [row for row in rows if all(items.terms[item] for item in (*row.history, row.target))]
    told = [[list(items.terms[item]) for item in row.history] for row in termed]
    return {
        f"{split}_cid2cid": columns(
            rows, cids(rows), target_sid=texts([items.cids[row.target] for row in rows]),
            reasoning=texts([row.reasoning for row in rows]),
        ),
        f"{split}_cid2ins": columns(
            taught, cids(taught), target_tid=target_terms(taught), target_ins=texts([row.instruction for row in taught]),
            reasoning=texts([row.instruction_reasoning for row in taught]), target_type=texts([target_type] * len(taught)),
        ),
        f"{split}_tid2tid": columns(
            termed, {"hist_tid": pa.array(told, pa.list_(artifacts.TEXT_LIST))}, target_tid=target_terms(termed),
            reasoning=texts([row.reasoning for row in termed]),
        ),
    }  # fmt: skip


def write_navigen(content: Content, args: ExportArgs, out: Output) -> None:
    """The catalogue, and the four tables of every split; predictions and instructions where they are given."""
    cids = [CID.text(codes) for codes in content.sids.codes_NL.tolist()]
    items = CidItems(
        content.items["raw_id"].to_pylist(), cids, read_tids(args.tids, num_items=len(cids)).terms
    )
    require_same_data(args.tids, args.data, again="scripts/05_generate_tids.sh")
    told = taught_texts(content, args, OF_TERMS)
    out.counts |= {f"texts_{kind}": len(texts) for kind, texts in told.items() if texts}

    def text(kind: str, key: int) -> str | None:
        return rendered(told[kind][key], cids.__getitem__) if key in told[kind] else None

    tables = items.tables(seed=args.seed)
    for split, rows in content.rows.items():
        taught = [
            TaughtRow(content.users[user], history, target, *(text(kind, key) for kind in OF_TERMS))
            for user, history, target, key in rows
        ]
        tables |= row_tables(taught, items, split, name=args.name, target_type=args.target_type)
    for name, table in tables.items():
        out.write_table(f"{name}.parquet", table)
        out.counts[name] = table.num_rows
    if args.predictions:
        source = f"{args.name}_test_cid2cid"
        lines = prediction_lines(content, cids, source, args.predictions)
        out.write_text(f"hist_cid2cid_predictions.{source}.jsonl", "".join(f"{line}\n" for line in lines))
    if args.instructions:
        source = f"{args.name}_test_cid2ins"
        instructed = {key: text("instruction", key) for _, _, _, key in content.rows["test"]}
        lines = instruction_lines(content, items, instructed, args)
        out.write_text(f"hist_cid2ins_predictions.{source}.jsonl", "".join(f"{line}\n" for line in lines))


def prediction_lines(content: Content, cids: list[str], source: str, directory: str) -> list[str]:
    """A line for every test row that the predictions answer, in the order of the rows."""
    found, manifest = read_predictions(directory)
    if found.codes_EL is None:
        raise InputError(f"{directory} ranks items, not semantic IDs -> predictions of infer.recommend")
    refuse_other_sids(manifest["facts"], content.sids, where=directory, sids="--sids")
    place = {key: at for at, key in enumerate(found.example_ids_R.tolist())}
    facts = {
        "source_file": f"{source}.parquet", "inference_model_source": "directory", "model_dir": manifest["config"].get("model"),
        "catalog_size": len(set(cids)),
    }  # fmt: skip
    lines = []
    for at, (_, history, target, key) in enumerate(content.rows["test"]):
        if key in place:
            entries = slice(*found.offsets[place[key] : place[key] + 2])
            answers = [CID.text(codes) for codes in found.codes_EL[entries].tolist()]
            lines.append(prediction_line(at, [cids[i] for i in history], cids[target], answers, facts))
    return lines


def prediction_line(
    row: int, history: Sequence[str], target: str, answers: Sequence[str], facts: dict[str, Any]
) -> str:
    """One line of hist_cid2cid_predictions.*.jsonl; `facts` go into every line. Answers are CIDs, best first."""
    candidates = [
        {
            "rank": rank,
            "raw_text": made,
            "parsed_json": {"target_cid": cid},
            "parse_error": None,
            "parsed_target_cid": cid,
        }
        for rank, cid in enumerate(answers, start=1)
        for made in [json.dumps({"target_cid": cid}, separators=(",", ":"))]
    ]
    return json.dumps(
        {
            "task": "cid2cid", "row_idx": row, **facts, "prompt_text": f"hist_cid: {json.dumps(list(history))}",
            "num_candidates": len(candidates), "top_candidate": candidates[0] if candidates else None,
            "gold_target_cid": target, "candidate_target_cids": list(answers), "candidates": candidates, "label": target,
            "source_row": {"hist_sid": list(history), "target_sid": target},
        },
        ensure_ascii=False,
    )  # fmt: skip


def instruction_lines(
    content: Content, items: CidItems, instructed: Mapping[int, str | None], args: ExportArgs
) -> list[str]:
    """A line of hist_cid2ins_predictions.*.jsonl for every test row that has an instruction of infer.instruct, in their order.

    instructed: by example, what a teacher wrote for it. row_idx is the row's place in test_cid2ins.parquet, null where it has none
    there.
    """
    require_same_data(args.instructions, args.data, again="scripts/12_instruct.sh")
    facts = require_manifest(args.instructions, written_by=artifacts.INSTRUCTIONS.written_by)["facts"]
    if facts["split"] != "test":
        raise InputError(
            f"{args.instructions} answers {facts['split']} rows -> instructions for the test rows"
        )
    refuse_other_sids(facts, content.sids, where=args.instructions, sids="--sids")
    answers = {
        row["example_id"]: row
        for row in artifacts.read(args.instructions, artifacts.INSTRUCTIONS).to_pylist()
    }
    common = {
        "source_file": f"{args.name}_test_cid2ins.parquet", "inference_model_source": "directory", "model_dir": facts["model"],
        "generation_mode": facts["mode"], "enforce_stage2_regex": facts["constrained"],
    }  # fmt: skip
    lines, place = [], 0
    for user, history, target, key in content.rows["test"]:
        written = instructed[key] if items.terms[target] else None
        row, place = (place, place + 1) if written else (None, place)
        if key not in answers:
            continue
        label = {"target_tid": list(items.terms[target]), "target_ins": written}
        told = {"uid": content.users[user], "hist_sid": [items.cids[item] for item in history]} | label
        told |= {"source_dataset": f"{args.name}_test_cid2cid", "target_type": args.target_type}
        lines.append(instruction_line(row, told, label, answers[key], common))
    return lines


def instruction_line(
    row: int | None,
    source_row: Mapping[str, Any],
    label: Mapping[str, Any],
    answer: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> str:
    """One line; `answer` is a row of artifacts.INSTRUCTIONS. What could be found in broken JSON only is `prediction`, with an error."""
    text = answer.get("answer") or "".join(pieces(INSTRUCTION_TASK, answer["terms"], answer["instruction"]))
    strict = read_answer(INSTRUCTION_TASK, text).how == "strict"
    found = {"target_tid": list(answer["terms"]), "target_ins": answer["instruction"]}
    thought = f"<think>\n{answer['thought']}\n</think>\n\n" if answer["thought"] else ""
    return json.dumps(
        {
            "task": "cid2ins", "row_idx": row, **facts, "prompt_text": f"hist_cid: {json.dumps(source_row['hist_sid'])}",
            "raw_completion_text": thought + text, "raw_text": text, "clean_json_text": text if strict else None,
            "parsed_json": json.loads(text) if strict else None, "parse_error": None if strict else answer["status"],
            "prediction": found, "label": label, "source_row": source_row,
        },
        ensure_ascii=False,
    )  # fmt: skip
