"""A SIDReasoner folder, read and written: that of MiniOneRec, and what a teacher wrote about its items and rows.

    {train,valid,test}/*.csv, info/*.txt        as in a MiniOneRec folder
    index/{D}.item.json, index/{D}.index.json   likewise, in a folder of their own
    index/{D}.item_enhanced_v2.json             items with `llm_stage2`, a narrative that names its item by semantic ID only
    index/{D}.integrated_narrative.csv          a line per train row: `integrated_narrative` and `reasoning_path`
    rl/{train,valid}.parquet                    prompts and answers for verl; never of test rows (the original validates on test)

Texts hold semantic IDs, which new ones would make wrong. Here they become placeholders of items (data/reasoning.py) when they are read,
and semantic IDs again when they are written. Where several items share one, the text means the item of its own row.

Legend: R rows.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from configs.program import InputError
from data.reasoning import column_texts, rendered
from data.releases import minionerec
from data.releases.index import read_index, write_index
from data.releases.published import Names, Published, only_file
from data.releases.text import csv_rows, read_json
from data.sid import FORMATS, SidTable
from data.store.output import Output

LETTERS = FORMATS["letters"]
NARRATIVE, REASONING = "integrated_narrative", "reasoning_path"
TEXT_COLUMNS = (
    "user_id",
    "history_item_title",
    "item_title",
    "history_item_sid",
    "item_sid",
    NARRATIVE,
    REASONING,
)
THINK_START, THINK_END = "<think>", "</think>"
SYSTEM = "Items are written as semantic IDs. From what a user chose before, name the item that comes next."
QUESTION = (
    "A user chose these items, oldest first: {history}. Think step by step about what they may want next, then give the semantic ID "
    "of that item and nothing else."
)
RL = pa.schema(
    {
        "data_source": pa.string(),
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "ability": pa.string(),
        "reward_model": pa.struct({"style": pa.string(), "ground_truth": pa.string()}),
        "extra_info": pa.struct(
            {"split": pa.string(), "index": pa.int64(), "answer": pa.string(), "question": pa.string()}
        ),
    }
)
BOTH = {"narrative": NARRATIVE, "reasoning": REASONING}  # our columns of sequences -> theirs


def files(folder: str | Path, name: str = "") -> dict[str, Path]:
    """The files that `read_folder` reads: those of a MiniOneRec folder, the index, and the texts where they are."""
    found = minionerec.files(folder, name)
    wanted = {
        "index": ("index.json", True),
        "narratives": ("item_enhanced_v2.json", False),
        "texts": ("integrated_narrative.csv", False),
    }
    for key, (ending, needed) in wanted.items():
        patterns = [f"index/{name or '*'}.{ending}*", f"{name or '*'}.{ending}*"]
        if path := only_file(folder, patterns, what=ending, needed=needed):
            found[key] = path
    return found


def read_folder(folder: str | Path, name: str = "") -> Published:
    """Items with narratives and rows with texts, both with placeholders in place of semantic IDs."""
    found = files(folder, name)
    published = minionerec.read_folder(folder, name)
    place = {item.raw_id: at for at, item in enumerate(published.items)}
    index = read_index(found["index"])
    codes: list[tuple[int, ...]] = [()] * len(place)
    for key, row in zip(index.keys, index.codes_NL.tolist(), strict=True):
        if key in place:
            codes[place[key]] = tuple(row)
    if lacking := [item.raw_id for item, row in zip(published.items, codes, strict=True) if not row]:
        raise InputError(
            f"{found['index']} has no semantic ID of item {lacking[0]} ({len(lacking)} such) -> another folder's?"
        )
    named = Names(codes, LETTERS)
    if "narratives" in found:
        _add_narratives(published, read_json(found["narratives"]), place, named)
    if "texts" in found:
        _add_texts(published, found["texts"], codes, named)
    return published


def _add_narratives(published: Published, raw: Any, place: dict[str, int], named: Names) -> None:
    """`llm_stage2` of every item that has one, without a thought that stands before it; items without the key have none."""
    strangers = 0
    for key, value in raw.items():
        if not (text := value.get("llm_stage2") if isinstance(value, dict) else None):
            continue
        if key not in place:
            strangers += 1
            continue
        at = place[key]
        published.items[at].narrative = named(text.rpartition(THINK_END)[2].strip(), [at])
    published.count(
        "narratives_of_unknown_items", strangers, "narratives are about items that are not in item.json"
    )


def _add_texts(published: Published, path: Path, codes: Sequence[tuple[int, ...]], named: Names) -> None:
    """Texts of rows, found by the semantic IDs of history and target; rows of equal ones take them in order."""
    rows = published.rows
    waiting: dict[tuple[Any, ...], list[int]] = {}
    for at in range(len(rows.targets)):
        if rows.splits[at] == "train":
            key = (tuple(codes[item] for item in rows.histories[at]), codes[rows.targets[at]])
            waiting.setdefault(key, []).append(at)
    texts = {ours: [""] * len(rows.targets) for ours in BOTH}
    strangers = endless = 0
    for line in _lines(path):
        ids = [
            tuple(LETTERS.find(line[column], num_levels=len(codes[0])))
            for column in ("history_item_sid", "item_sid")
        ]
        places = waiting.get((ids[0], *ids[1]))
        if not places:
            strangers += 1
            continue
        at = places.pop(0)
        for ours, theirs in BOTH.items():
            text = _behind_thinking((line.get(theirs) or "").strip())
            endless += text is None
            texts[ours][at] = named(text or "", [*rows.histories[at], rows.targets[at]])
    rows.texts |= texts
    published.count(
        "texts_of_unknown_rows", strangers, f"lines of {path.name} are of no train row and left out"
    )
    published.count(
        "texts_of_thinking_without_end",
        endless,
        f"texts of {path.name} are a think block that never ends, and left out",
    )
    published.count(
        "semantic_ids_of_no_item", named.unknown, "semantic IDs inside texts are of no item and stay text"
    )


def _behind_thinking(text: str) -> str | None:
    """What a teacher wrote behind the block of its own thinking, if it began with one; None where that never ends."""
    if not text.startswith(THINK_START):
        return text
    _, ended, behind = text.partition(THINK_END)
    return behind.strip() if ended else None


def _lines(path: Path) -> list[dict[str, str]]:
    return list(csv_rows(path, ("history_item_sid", "item_sid")))


def texts_csv(
    rows: Sequence[tuple[str, Sequence[int], int, str, str]], titles: Sequence[str], sids: Sequence[str]
) -> str:
    """integrated_narrative.csv of (user, history, target, narrative, reasoning), semantic IDs in the texts already."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(TEXT_COLUMNS)
    for user, history, target, *texts in rows:
        told = [str([values[item] for item in history]) for values in (titles, sids)]
        writer.writerow([user, told[0], titles[target], told[1], sids[target], *texts])
    return out.getvalue()


def with_narratives(item_json: str, narratives: Sequence[str]) -> str:
    """item_enhanced_v2.json: the items of item.json, `llm_stage2` for those that have a narrative."""
    items = json.loads(item_json)
    for key, text in zip(items, narratives, strict=True):
        items[key] |= {"llm_stage2": text} if text else {}
    return json.dumps(items, indent=2, ensure_ascii=False) + "\n"


def rl_table(
    rows: Sequence[tuple[str, Sequence[int], int]], sids: Sequence[str], *, split: str, source: str
) -> pa.Table:
    """Prompts and answers as verl reads them, a row per (user, history, target)."""
    records = []
    for number, (_, history, target) in enumerate(rows):
        question = QUESTION.format(history=", ".join(sids[item] for item in history))
        told = {"split": split, "index": number, "answer": sids[target], "question": question}
        records.append(
            {
                "data_source": source,
                "prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
                "ability": "Recommendation",
                "reward_model": {"style": "rule", "ground_truth": sids[target]},
                "extra_info": told,
            }
        )
    return pa.Table.from_pylist(records, schema=RL)


@dataclass(frozen=True)
class Folder:
    """What is written. item_text: item.json; rows by split (user, history, target, example); narratives of items (empty: none) and
    `told` of examples have placeholders; source: what RL rows name as theirs."""

    name: str
    csv_name: str
    source: str
    item_text: str
    raw_ids: Sequence[str]
    users: Sequence[str]
    titles: Sequence[str]
    sids: SidTable
    narratives: Sequence[str]
    rows: Mapping[str, Sequence[tuple[int, Sequence[int], int, int]]]
    told: Mapping[int, tuple[str, str]]


def texts_of(sequences: pa.Table, *, num_items: int, where: str) -> dict[int, tuple[str, str]]:
    """{example: (narrative, reasoning)} of the rows that have either, with placeholders."""
    columns = [column_texts(sequences, name, num_items=num_items, where=where) for name in BOTH]
    if not all(columns):
        return {}
    keys = sequences["example_id"].to_pylist()
    return {example: tuple(pair) for example, *pair in zip(keys, *columns, strict=True) if any(pair)}


def with_taught(
    narratives: Sequence[str], told: Mapping[int, tuple[str, str]], taught: Mapping[str, Mapping[int, str]], *, num_items: int
) -> tuple[list[str], dict[int, tuple[str, str]]]:  # fmt: skip
    """(narratives of items, texts of examples) of a data set, with what a teacher of ours wrote of kinds item, narrative and history."""
    items = taught["item"]
    if items:
        narratives = [items.get(item, one) for item, one in enumerate(narratives or [""] * num_items)]
    rows = [taught[kind] for kind in ("narrative", "history")]
    keys = rows[0].keys() | rows[1].keys()
    return list(narratives), {**told, **{key: tuple(texts.get(key, "") for texts in rows) for key in keys}}


def write_folder(out: Output, folder: Folder) -> dict[str, int]:
    """Every file of the folder; how many texts of items and rows it has."""
    name, titles = folder.name, folder.titles
    named = item_name(folder.sids)
    sids = [named(item) for item in range(len(titles))]
    for table, ids in (("user2id", folder.users), ("item2id", folder.raw_ids)):
        out.write_text(f"{name}.{table}", "".join(f"{key}\t{number}\n" for number, key in enumerate(ids)))
    out.write_text(f"index/{name}.item.json", folder.item_text)
    with out.replacing(f"index/{name}.index.json") as temporary:
        write_index(temporary, folder.sids.codes_NL)
    if folder.narratives:
        told = [rendered(text, named) for text in folder.narratives]
        out.write_text(f"index/{name}.item_enhanced_v2.json", with_narratives(folder.item_text, told))
    for split, rows in folder.rows.items():
        plain = [(f"A{user}", history, target) for user, history, target, _ in rows]
        out.write_text(f"{split}/{folder.csv_name}.csv", minionerec.csv_text(plain, titles, sids))
        if split != "test":
            out.write_table(f"rl/{split}.parquet", rl_table(plain, sids, split=split, source=folder.source))
    lines = [
        (f"A{user}", history, target, *(rendered(text, named) for text in folder.told[example]))
        for user, history, target, example in folder.rows["train"]
        if example in folder.told
    ]
    if lines:
        out.write_text(f"index/{name}.integrated_narrative.csv", texts_csv(lines, titles, sids))
    with out.replacing(f"info/{folder.csv_name}.txt") as temporary:
        minionerec.write_info(temporary, folder.sids.codes_NL, titles)
    return {"item_narratives": sum(map(bool, folder.narratives)), "row_texts": len(lines)}


def item_name(sids: SidTable) -> Callable[[int], str]:
    """What a placeholder becomes in these files."""
    return lambda item: LETTERS.text(sids.codes_NL[item].tolist())
