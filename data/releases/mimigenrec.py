"""A MIMIGenRec folder, read and written: pure functions, no program.

    id2sid.json              {"<item>": ["<a_12>", "<b_7>", "<c_255>"]}
    sft/{train,valid,test}   [{system, instruction, input, output}]
    rl/{train,valid,test}    [{data_source, prompt: [{role, content}], ability, reward_model: {ground_truth}, extra_info}]

Both hold semantic IDs instead of items and no users. A row counts as (history, target) when its input holds semantic IDs
and its output is exactly one; `sid -> title` rows of the train split give titles. What cannot be known is counted: a
semantic ID of several items is read as the first of them, and every row is a user of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.program import InputError
from data.releases.index import PublishedIndex, read_index
from data.releases.minionerec import read_items
from data.releases.published import SPLITS, Published, PublishedItem, PublishedRows, only_file
from data.releases.text import read_json
from data.sid import FORMATS

TASKS = ("sid_sft", "sid_item_feat", "fusion_seq", "histitle2sid", "title_desc2sid")


def files(folder: str | Path, name: str) -> dict[str, Path]:
    """The files that `read_folder` reads: index, the splits that are there (sft before rl), items where published."""
    patterns = [f"{name}/id2sid.json*"] if name else ["id2sid.json*", "*/id2sid.json*"]
    found = {"index": only_file(folder, patterns, what="id2sid.json")}
    here = found["index"].parent
    for split in SPLITS:
        patterns = [f"{kind}/{split}.json*" for kind in ("sft", "rl")]
        if path := only_file(here, patterns, what=f"{split} rows", needed=False):
            found[split] = path
    if not set(found) & set(SPLITS):
        raise InputError(f"{folder} has no rows: no sft/*.json and no rl/*.json -> check raw")
    if path := only_file(here, ["*item.json*"], what="item.json", needed=False):
        found["items"] = path
    return found


def read_folder(folder: str | Path, name: str = "") -> Published:
    """Items in the order of id2sid.json, and the rows of every split that is there."""
    found = files(folder, name)
    index = read_index(found["index"])
    items_of = sid_items(index)
    items = [PublishedItem(key) for key in index.keys]
    if "items" in found:
        told = {item.raw_id: item for item in read_items(found["items"], {})}
        items = [told.get(key, item) for key, item in zip(index.keys, items, strict=True)]
    published = Published(items, PublishedRows(), has_users=False)
    shared = titled = 0
    for split in (split for split in SPLITS if split in found):
        for at, (given, answer) in enumerate(read_texts(found[split])):
            history, target = (_codes(text, index) for text in (given, answer))
            if len(target) == 1 and history:
                unknown = [codes for codes in [*history, target[0]] if codes not in items_of]
                if unknown:
                    raise InputError(
                        f"{found[split]}: row {at} names {unknown[0]}, which is no item of {found['index'].name}"
                        " -> another folder's?"
                    )
                shared += sum(len(items_of[codes]) > 1 for codes in [*history, target[0]])
                first = [items_of[codes][0] for codes in [*history, target[0]]]
                published.rows.add(split, f"{split}-{at}", first[:-1], first[-1])
            elif len(history) == 1 and not target and history[0] in items_of:
                for item in items_of[history[0]]:
                    titled += not items[item].title
                    items[item].title = items[item].title or answer.strip()
    rows = len(published.rows.users)
    if not rows:
        raise InputError(f"{folder} has no row of semantic IDs with one as its answer -> check raw")
    several = sum(len(group) for group in items_of.values() if len(group) > 1)
    published.count(
        "rows_without_user", rows, "rows name no user: each is a user of its own (no clusters in intervals)"
    )
    published.count("items_sharing_a_sid", several, "items share their semantic ID with another")
    published.count(
        "ambiguous_mentions", shared, "mentions are of such an ID: read as the first of its items"
    )
    published.count("items_without_title", sum(not item.title for item in items), "items have no title here")
    return published


def sid_items(index: PublishedIndex) -> dict[tuple[int, ...], list[int]]:
    """The items (positions) of every semantic ID."""
    found: dict[tuple[int, ...], list[int]] = {}
    for item, codes in enumerate(index.codes_NL.tolist()):
        found.setdefault(tuple(codes), []).append(item)
    return found


def _codes(text: str, index: PublishedIndex) -> list[tuple[int, ...]]:
    return FORMATS["letters"].find(text, num_levels=index.codes_NL.shape[1], optional_last=index.padded > 0)


def read_texts(path: Path) -> Iterator[tuple[str, str]]:
    """(input, answer) of every record of an sft or rl file."""
    records = read_json(path)
    if not isinstance(records, list):
        raise InputError(f"{path} is no list of records -> pass an sft or rl folder")
    for number, record in enumerate(records):
        try:
            if "prompt" in record:
                yield record["prompt"][-1]["content"], record["reward_model"]["ground_truth"]
            else:
                yield record["input"], record["output"]
        except (KeyError, TypeError, IndexError):
            raise InputError(f"{path}: record {number} is neither sft nor rl -> get the file again") from None


def sft_record(instruction: str, given: str, answer: str, *, system: str) -> dict[str, str]:
    """One record of sft/*.json."""
    return {"system": system, "instruction": instruction, "input": given, "output": answer}


def rl_record(
    given: str, answer: str, *, system: str, source: str, ability: str, split: str, index: int, task: str
) -> dict[str, Any]:
    """One record of rl/*.json; its user turn is the sft record's input."""
    return {
        "data_source": source,
        "prompt": [{"role": "system", "content": system}, {"role": "user", "content": given}],
        "ability": ability,
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {"split": split, "index": index, "task": task},
    }
