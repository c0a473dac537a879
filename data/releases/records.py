"""MIMIGenRec's training records of a data set: five tasks, sft and rl, in words of ours.

    task             sft         rl            input -> answer
    sid_sft          all splits  all splits    semantic IDs of the history -> semantic ID of the target
    sid_item_feat    train                     title -> semantic ID, semantic ID -> title
    fusion_seq       train                     semantic IDs of the history -> title of the target
    histitle2sid                 train sample  titles of the history -> semantic ID of the target
    title_desc2sid               train         title -> semantic ID, description -> semantic ID

No record comes from an empty description, a title of fewer than MIN_TITLE characters, or a history with such a title.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.releases.mimigenrec import TASKS, rl_record, sft_record

MIN_TITLE = 3
SYSTEM = "A request of a shop's customer follows, with what is known about it. Answer with nothing but what is asked for."
INSTRUCTION = {
    "sid_sft": "Predict the item that the customer chooses next.",
    "sid_item_feat": "Translate between an item's title and its semantic ID.",
    "fusion_seq": "Name the title of the item that the customer chooses next.",
}
ABILITY = {"sid_sft": "seq_rec", "histitle2sid": "seq_title2sid", "title_desc2sid": "title_desc2sid"}
HISTORY = "A customer chose these items, oldest first: {}. Which item will they choose next?"
HISTORY_TITLE = "A customer chose these items, oldest first: {}. What is the title of their next item?"
TITLES = "A customer chose items with these titles, oldest first: {}. Which item will they choose next?"
OF_TITLE, OF_DESCRIPTION = 'Which item has the title "{}"?', 'Which item is described as "{}"?'
TITLE_OF = "What is the title of item {}?"


@dataclass(frozen=True)
class Texts:
    """What is written for every item, by item id."""

    sids: Sequence[str]
    titles: Sequence[str]
    descriptions: Sequence[str]

    def usable(self, item: int) -> bool:
        return len(self.titles[item]) >= MIN_TITLE


Row = tuple[Sequence[int], int]


def sft_records(
    rows: Sequence[Row], split: str, texts: Texts, *, tasks: Sequence[str] = TASKS
) -> list[dict[str, str]]:
    """The records of sft/<split>.json; `rows` are (history, target) in order."""
    found = []
    if "sid_sft" in tasks:
        found += [("sid_sft", HISTORY.format(_listed(texts.sids, h)), texts.sids[t]) for h, t in rows]
    if split == "train" and "sid_item_feat" in tasks:
        for item in filter(texts.usable, range(len(texts.sids))):
            found.append(("sid_item_feat", TITLE_OF.format(texts.sids[item]), texts.titles[item]))
            found.append(("sid_item_feat", OF_TITLE.format(texts.titles[item]), texts.sids[item]))
    if split == "train" and "fusion_seq" in tasks:
        found += [
            ("fusion_seq", HISTORY_TITLE.format(_listed(texts.sids, h)), texts.titles[t])
            for h, t in rows
            if texts.usable(t)
        ]
    return [sft_record(INSTRUCTION[task], given, answer, system=SYSTEM) for task, given, answer in found]


def rl_records(
    rows: Sequence[Row],
    split: str,
    texts: Texts,
    *,
    source: str,
    tasks: Sequence[str] = TASKS,
    seq_sample: int = 10_000,
    seed: int = 42,
) -> list[dict[str, Any]]:
    """The records of rl/<split>.json; `seq_sample` rows are drawn for histitle2sid. sid_sft inputs are those of sft."""
    found = []
    if "sid_sft" in tasks:
        found += [("sid_sft", HISTORY.format(_listed(texts.sids, h)), texts.sids[t]) for h, t in rows]
    if split == "train" and "histitle2sid" in tasks:
        titled = [row for row in rows if all(texts.usable(item) for item in row[0])]
        drawn = np.random.default_rng(seed).permutation(len(titled))[:seq_sample]
        quoted = [f'"{title}"' for title in texts.titles]
        found += [
            ("histitle2sid", TITLES.format(_listed(quoted, titled[at][0])), texts.sids[titled[at][1]])
            for at in sorted(drawn.tolist())
        ]
    if split == "train" and "title_desc2sid" in tasks:
        for item in range(len(texts.sids)):
            if texts.usable(item):
                found.append(("title_desc2sid", OF_TITLE.format(texts.titles[item]), texts.sids[item]))
            if texts.descriptions[item]:
                found.append(
                    ("title_desc2sid", OF_DESCRIPTION.format(texts.descriptions[item]), texts.sids[item])
                )
    return [
        rl_record(
            given, answer, system=SYSTEM, source=source, ability=ABILITY[task], split=split, index=at,
            task=f"task{TASKS.index(task) + 1}_{task}",
        )
        for at, (task, given, answer) in enumerate(found)
    ]  # fmt: skip


def _listed(texts: Sequence[str], items: Sequence[int]) -> str:
    return ", ".join(texts[item] for item in items)
