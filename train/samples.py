"""What the model answers at every validation, for a person who wants to see it learn: samples.jsonl.

A few fixed validation rows with their best recommendations, which the validation has computed anyway, and a few training rows
of every task whose answer is text, answered greedily. One line per row and validation:

    {"step", "task", "example_id", "prompt", "answer", "recommended": [{"sid", "title", "score"}] or "generated"}

Titles are there where the examples' data set still lies where it was.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data import artifacts
from data.cards import Cards
from data.renderer import answer_pieces
from data.store.lineage import input_directory
from data.tasks import SID_TASKS, Example, from_row
from infer.engine import Engine
from infer.text.generate import TextSettings, generate_ids

FILE = "samples.jsonl"
TOP = 3  # recommendations of a row
ROOM = 8  # tokens that an answer may be longer than the expected one


class Samples:
    """Writes `rows` samples of each kind below `directory`. valid: the rows of the validator, in its order; train: examples."""

    def __init__(
        self,
        directory: Path,
        engine: Engine,
        *,
        valid: pa.Table,
        train: pa.Table,
        examples_dir: str,
        rows: int,
    ) -> None:
        self.path, self.engine = directory / FILE, engine
        self.valid = [from_row(row) for row in valid.slice(0, rows).to_pylist()]
        self.texts = text_rows(train, rows)
        data = input_directory(examples_dir, "data")
        fmt = engine.renderer.vocab.format
        self.cards = None if data is None else Cards(artifacts.read_items(data), engine.sids, fmt)

    def write(self, step: int, nodes_RK: np.ndarray, scores_RK: np.ndarray) -> None:
        """Append the lines of one validation. Row r of the arrays is validation row r."""
        lines = [
            self._line(step, example) | {"recommended": self._recommended(nodes, scores)}
            for example, nodes, scores in zip(self.valid, nodes_RK, scores_RK, strict=False)
        ]
        lines += [
            self._line(step, example) | {"generated": text}
            for example, text in zip(self.texts, self._answers(), strict=True)
        ]
        with open(self.path, "a", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _line(self, step: int, example: Example) -> dict[str, Any]:
        return {
            "step": step,
            "task": example.task,
            "example_id": example.example_id,
            "prompt": "\n".join(str(message["content"]) for message in example.messages),
            "answer": self._named(example.target[0])
            if example.task in SID_TASKS
            else "".join(answer_pieces(example)),
        }

    def _named(self, item: int) -> str:
        sid = self.engine.sids.text(item, self.engine.renderer.vocab.format)
        return sid if self.cards is None else f"{sid} {self.cards(item).title}"

    def _recommended(self, nodes_K: Sequence[int], scores_K: Sequence[float]) -> list[dict[str, Any]]:
        best = []
        for node, score in zip(nodes_K[:TOP], scores_K[:TOP], strict=True):
            if node >= 0:
                item = int(self.engine.sids.items_of_sid(int(node))[0])
                title = None if self.cards is None else self.cards(item).title
                sid = self.engine.sids.text(item, self.engine.renderer.vocab.format)
                best.append({"sid": sid, "title": title, "score": round(float(score), 4)})
        return best

    def _answers(self) -> list[str]:
        if not self.texts:
            return []
        renderer = self.engine.renderer
        longest = max(len(renderer.answer_ids(example)) for example in self.texts)
        made = generate_ids(
            self.engine.model,
            renderer.prompts(self.texts),
            TextSettings(max_new_tokens=longest + ROOM),
            stop_ids=[renderer.terminator_ids()[-1]],
        )
        return [
            renderer.tokenizer.decode(
                text.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            ).strip()
            for (text,) in made
        ]


def text_rows(train: pa.Table, rows: int) -> list[Example]:
    """The first `rows` examples of each task that has a prompt and whose answer is text."""
    tasks = train["task"].to_pylist()
    found = []
    for task in dict.fromkeys(tasks):
        if task not in SID_TASKS:
            at = [row for row, name in enumerate(tasks) if name == task][:rows]
            found += [example for row in train.take(at).to_pylist() if (example := from_row(row)).messages]
    return found
