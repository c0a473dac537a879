"""What a user should know of sequences that are usable all the same: said by stage 01 and by data.validate."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.artifacts import ragged
from data.shaping.splits import SPLIT_NAMES

LACKS = {
    "train": "nothing can be trained on it",
    "valid": "no checkpoint can be chosen on it: train with another split, or without validation",
    "test": "nothing can be reported on it",
}


def remarks(sequences: pa.Table, *, max_history: int) -> list[str]:
    """One line each: splits without a row, histories longer than `max_history` (they are kept, later stages cut them).

    >>> empty = pa.table({"split": pa.array(["train", "test"]), "history": pa.array([[1], [1, 2]])})
    >>> remarks(empty, max_history=2)
    ['the valid split has no rows: no checkpoint can be chosen on it: train with another split, or without validation']
    """
    present = set(pc.unique(sequences["split"]).to_pylist())
    told = [f"the {name} split has no rows: {LACKS[name]}" for name in SPLIT_NAMES[:3] if name not in present]
    lengths = np.diff(ragged(sequences["history"])[0])
    if longer := int((lengths > max_history).sum()):
        told.append(
            f"{longer} of {len(lengths)} published histories are longer than split.max_history {max_history} (longest"
            f" {lengths.max()}): they are kept whole; windows made here hold at most {max_history} items"
        )
    return told
