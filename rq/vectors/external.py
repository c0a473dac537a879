"""Item vectors that another program wrote: a matrix, a table, or a folder with one, put into the order of our items.

  x.npy, folder/embeddings.npy   float [rows, d]. With `ids` row i + first_row belongs to the i-th id, else it is item i:
                                 only where raw ids are 0..N-1 in order, or with keyed_by item_id
  x.parquet                      a list column `embedding` (or `vector`) beside `raw_id` or `item_id`

`ids` is a .npy, .json or .txt (one a line) file. Whether ids are ours or the source's: `data.releases.item_ids`.

Legend: N items, R rows, D dimensions.
"""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile

import numpy as np

from configs.program import InputError
from data.artifacts import read_file
from data.releases.item_ids import find_items
from data.store.json_text import parse_json
from rq.vectors.embeddings import FILE, require_finite

VECTOR_COLUMNS = ("embedding", "embeddings", "vector")


def external_vectors(
    path: str, *, ids: str | None, first_row: int, keyed_by: str, raw_ids: list[str]
) -> tuple[np.ndarray, int]:
    """(float32 [N, D] in the order of `raw_ids`, items without a vector: zero rows).

    InputError on ids that are no item or stand twice, on vectors that are not finite, on a wrong number of rows.
    """
    source = Path(path) / FILE if Path(path).is_dir() else Path(path)
    if source.suffix == ".parquet":
        if ids is not None or first_row:
            raise InputError(f"{path} brings its own ids -> leave out `ids` and `first_row`")
        x_RD, key, names = _read_parquet(source)
    else:
        x_RD, key, names = _read_matrix(source), "id", None if ids is None else _read_ids(Path(ids))
        x_RD = x_RD[first_row:]
    require_finite(x_RD, where=str(source))
    if names is not None and len(names) != len(x_RD):
        raise InputError(f"{source} has {len(x_RD)} rows for {len(names)} ids -> pass the ids of these rows")
    places = find_items(names, raw_ids, key=key, where=str(source), keyed_by=keyed_by, count=len(x_RD))
    out_ND = np.zeros((len(raw_ids), x_RD.shape[1]), np.float32)
    out_ND[places.rows_R] = x_RD
    return out_ND, len(raw_ids) - len(places.rows_R)


def _read_matrix(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"missing file: {path} -> pass a .npy or .parquet file or a folder with {FILE}")
    x_RD = _load(path)
    if x_RD.ndim != 2 or x_RD.dtype.kind != "f" or 0 in x_RD.shape:
        raise InputError(f"{path} is {x_RD.dtype} {x_RD.shape}, not a float matrix [items, dimensions]")
    return x_RD


def _load(path: Path) -> np.ndarray:
    """An array of somebody else's; numpy reads its header as Python source, with whatever error that has."""
    try:
        made = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(made, np.ndarray):
            raise ValueError("an archive of arrays")
        return made
    except (
        OSError,
        ValueError,
        EOFError,
        SyntaxError,
        TokenError,
        OverflowError,
        MemoryError,
        BadZipFile,
    ) as error:
        raise InputError(
            f"{path} is not a readable .npy array ({error}) -> write it with numpy.save"
        ) from None


def _read_parquet(path: Path) -> tuple[np.ndarray, str, list[int] | list[str]]:
    table = read_file(path)
    vector = next((name for name in VECTOR_COLUMNS if name in table.column_names), None)
    key = next((name for name in ("raw_id", "item_id") if name in table.column_names), None)
    if vector is None or key is None:
        raise InputError(
            f"{path} has columns {', '.join(table.column_names)} -> it needs item_id or raw_id, and embedding"
        )
    rows = table[vector].to_pylist()
    if not rows or any(row is None or len(row) != len(rows[0]) or not row for row in rows):
        raise InputError(f"{path}: vectors in `{vector}` are missing or differ in length -> write them again")
    return np.array(rows, np.float32), key, table[key].to_pylist()


def _read_ids(path: Path) -> list[int] | list[str]:
    if not path.is_file():
        raise InputError(f"missing file: {path} -> pass the ids of the rows")
    try:
        if path.suffix == ".npy":
            return _load(path).tolist()
        text = path.read_text(encoding="utf-8")
        names = parse_json(text, where=path) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} holds no readable ids ({str(error)[:80]}) -> write them again") from None
    if not isinstance(names, list) or not all(isinstance(name, (int, str)) for name in names):
        raise InputError(f"{path} is no list of ids -> one integer or text per row")
    return names
