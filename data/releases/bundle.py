"""A SID bundle: what a program without this repository needs to recommend with a checkpoint.

bundle.json        format, version, how a prompt is written, the shape of the IDs, the SHA-256 of the checkpoint's weights
trie.safetensors   ptr_l int32 [M_l + 1], tokens_l int32 [M_(l+1)]: the tokens that may follow node m of depth l are
                   tokens_l[ptr_l[m] : ptr_l[m + 1]], and the node that token t leads to is its own place in tokens_l;
                   leaf_ptr int64 [S + 1], leaf_items int32 [N]: the items of a leaf are leaf_items[leaf_ptr[s] : leaf_ptr[s + 1]]
items.parquet      item_id, raw_id, title, sid (as text), codes
tokenizer/         of the checkpoint

Version 1. A reader refuses a `version` that it does not know.

Legend: N items, S distinct semantic IDs, M_l nodes at depth l, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from configs.program import InputError
from data import artifacts
from data.renderer import HistoryRenderer
from data.sid import SidTable, SidVocab, prefix_levels

FORMAT, VERSION = "sid-bundle", 1
FACTS, TRIE, ITEMS, TOKENIZER, CARD = (
    "bundle.json",
    "trie.safetensors",
    "items.parquet",
    "tokenizer",
    "README.md",
)
PROCESSOR = "trie_processor.py"


def trie_arrays(sids: SidTable, vocab: SidVocab) -> dict[str, np.ndarray]:
    """The trie over token ids and the items of its leaves, as trie.safetensors has them."""
    arrays: dict[str, np.ndarray] = {}
    for level, (ptr, codes) in enumerate(prefix_levels(sids.sids_SL, None, 1)):
        arrays[f"ptr_{level}"] = ptr
        arrays[f"tokens_{level}"] = vocab.levels[level].token_ids[codes].astype(np.int32)
    arrays["leaf_ptr"] = np.concatenate([[0], np.cumsum(sids.group_sizes_S)]).astype(np.int64)
    arrays["leaf_items"] = sids.items_by_sid
    return arrays


def items_table(items: pa.Table, sids: SidTable, vocab: SidVocab) -> pa.Table:
    """Every item with its semantic ID, in item order."""
    return pa.table(
        {
            "item_id": items["item_id"], "raw_id": items["raw_id"], "title": items["title"],
            "sid": pa.array([vocab.format.text(codes) for codes in sids.codes_NL.tolist()], pa.string()),
            "codes": artifacts.int_rows(sids.codes_NL),
        }
    )  # fmt: skip


def prompt_parts(histories: HistoryRenderer, samples: Sequence[Sequence[int]]) -> dict[str, Any]:
    """How the prompt of a history is written: `before`, the items' IDs with `separator` between them, `after`, and token ids.

    A prompt is start_ids, then the tokens of the text, then answer_ids; with more than max_tokens the oldest items go.
    InputError where this does not give the prompts of `samples` (histories of item ids), as the examples have them.
    """
    renderer, sids, mode = histories.renderer, histories.context.sids, histories.mode
    ends = [0, sids.num_items - 1]
    first, last = (renderer.vocab.format.text(sids.codes_NL[item].tolist()) for item in ends)
    one, two = (renderer.prompt_text(histories.example(history), mode) for history in (ends[:1], ends))
    before, _, after = one.partition(first)
    answer = list(renderer.answer_vocab.prefix_ids)
    length = len(renderer.tokenizer(one, add_special_tokens=False)["input_ids"]) + len(answer)
    whole = renderer.uncut([histories.example(ends[:1])], mode)[0]
    told = {
        "start_ids": whole[: len(whole) - length],
        "before": before,
        "separator": two.removeprefix(before).removesuffix(after).removeprefix(first).removesuffix(last),
        "after": after,
        "answer_ids": answer,
        "max_tokens": renderer.max_prompt,
    }
    for history in samples:
        written = told["separator"].join(
            renderer.vocab.format.text(sids.codes_NL[item].tolist()) for item in history
        )
        text = renderer.tokenizer(before + written + after, add_special_tokens=False)["input_ids"]
        wanted = renderer.uncut([histories.example(history)], mode)[0]
        if [*told["start_ids"], *text, *told["answer_ids"]] != wanted:
            raise InputError(
                "the prompts of these examples are not one template around a history -> build them with another wording, or "
                "use the checkpoint through infer.engine"
            )
    return told
