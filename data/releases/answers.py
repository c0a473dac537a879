"""Prediction files of MiniOneRec, MIMIGenRec, SIDReasoner (JSON) and NaviGen (JSON lines) as rows of texts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.program import InputError
from data.releases.text import read_json, read_text
from data.store.json_text import json_lines


@dataclass(frozen=True)
class ForeignRow:
    """One answered row of another system: texts as they stand there, answers best first.

    history: the text that names the history (a prompt or a list of semantic IDs), "" where there is none.
    """

    history: str
    target: str
    answers: tuple[str, ...]


def read_answers(path: str | Path) -> list[ForeignRow]:
    """The rows of a prediction file, plain or gzipped.

    JSON list   MiniOneRec and MIMIGenRec {input, output, predict}, SIDReasoner {history, output, predict, ...}
    JSON lines  NaviGen {prompt_text, gold_target_cid, candidates: [{rank, parsed_target_cid, raw_text}]}

    InputError naming the first row without these fields, or with no answer at all.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        raw = read_json(path)
    else:
        raw = [row for _, row in json_lines(text, path)]
    if not raw:
        raise InputError(f"{path} has no rows -> was the prediction finished?")
    return [_foreign_row(row, f"{path}: row {at}") for at, row in enumerate(raw)]


def _foreign_row(row: Any, where: str) -> ForeignRow:
    """The texts of one row, whatever system wrote it."""
    if not isinstance(row, dict):
        raise InputError(f"{where} is no object -> pass a prediction file")
    target = row.get("output", row.get("gold_target_cid"))
    answers = row.get("predict")
    if answers is None and isinstance(row.get("candidates"), list):
        for candidate in row["candidates"]:
            if not isinstance(candidate, dict) or not isinstance(candidate.get("rank"), int | float):
                raise InputError(f"{where}: a candidate has no rank -> decode that row again")
        ranked = sorted(row["candidates"], key=lambda candidate: candidate["rank"])
        answers = [
            candidate.get("parsed_target_cid") or candidate.get("raw_text", "") for candidate in ranked
        ]
    if not isinstance(target, str) or not isinstance(answers, list):
        raise InputError(
            f"{where} has no output and predict (or gold_target_cid and candidates) -> another file?"
        )
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise InputError(f"{where}: predictions must be one text or more -> decode that row again")
    history = row.get("history", row.get("input", row.get("prompt_text", "")))
    return ForeignRow(history if isinstance(history, str) else json.dumps(history), target, tuple(answers))
