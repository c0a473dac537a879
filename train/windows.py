"""Which train rows are the newest: SFT leaves them out, policy optimisation trains on them (prompts that nothing has fitted).

Legend: R rows of examples.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data import artifacts


def newest_rows(examples: pa.Table, data: str | Path, *, share: float) -> np.ndarray:
    """bool [R]: rows of the newest `share` of a data set's train rows; other rows (questions about items) are not new.

    Newest by the time in sequences.parquet; rows without a time are older than all others, in the order of their examples.
    Times 5, 1, 9, 3 and share .5 choose the first and the third row. InputError for a share that leaves no row.
    """
    sequences = artifacts.read(data, artifacts.SEQUENCES)
    train = sequences.filter(pc.equal(sequences["split"], "train"))
    ids_T = train["example_id"].to_numpy()
    time_T = np.full(len(ids_T), np.iinfo(np.int64).min)
    if "timestamp" in train.column_names:
        time_T = train["timestamp"].fill_null(np.iinfo(np.int64).min).to_numpy()
    order_T = np.lexsort((ids_T, time_T))
    count = round(share * len(ids_T))
    new_R = np.isin(examples["example_id"].to_numpy(), ids_T[order_T[len(ids_T) - count :]])
    new_R &= np.array([len(history) > 0 for history in examples["history"].to_pylist()], bool)
    if not new_R.any():
        raise InputError(
            f"the newest {share:g} of {len(ids_T)} train rows are no row of the examples -> a larger share"
        )
    return new_R
