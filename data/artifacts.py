"""Schemas of the tables that cross stages: read, check, build.

Optional columns may be missing; columns beyond a schema are allowed and kept (adapter extras). A reader takes the
directory, requires its manifest, and refuses a table that does not fit in one line that names the column.

A large table may lie in parts, <stem>-00000-of-00008.parquet ..., which are contiguous ranges of its rows; the examples of a
split lie in <split>.parquet or in such parts, and are the same rows in the same order either way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data.store.output import require_manifest
from data.store.parquet import read_table, readable

SPLITS = ("train", "valid", "test")
INT_LIST, TEXT_LIST = pa.list_(pa.int32()), pa.list_(pa.string())


@dataclass(frozen=True)
class Schema:
    """Required and optional columns of one table, and the stage that writes it."""

    file: str
    written_by: str
    required: dict[str, pa.DataType]
    optional: dict[str, pa.DataType]
    nullable: frozenset[str] = frozenset()


ITEMS = Schema(
    "items.parquet",
    "scripts/01_prepare_data.sh",
    {"item_id": pa.int32(), "raw_id": pa.string(), "title": pa.string(), "description": pa.string(),
     "categories": TEXT_LIST, "brand": pa.string()},
    {"price": pa.float32(), "image": pa.string(), "item_type": pa.string()},
    frozenset({"price", "image", "item_type"}),
)  # fmt: skip
INTERACTIONS = Schema(
    "interactions.parquet",
    "scripts/01_prepare_data.sh",
    {"user_id": pa.int32(), "item_id": pa.int32(), "order": pa.int32()},
    {"rating": pa.float32(), "timestamp": pa.int64(), "split": pa.string()},
    frozenset({"rating", "timestamp", "split"}),
)
SEQUENCES = Schema(
    "sequences.parquet",
    "scripts/01_prepare_data.sh",
    {
        "example_id": pa.int64(),
        "user_id": pa.int32(),
        "history": INT_LIST,
        "target": pa.int32(),
        "split": pa.string(),
    },
    {"timestamp": pa.int64()},
    frozenset({"timestamp"}),
)
USERS = Schema(
    "users.parquet",
    "scripts/01_prepare_data.sh",
    {"user_id": pa.int32(), "raw_id": pa.string()},
    {},
    frozenset(),
)
SIDS = Schema(
    "sids.parquet", "scripts/04_build_sids.sh", {"item_id": pa.int32(), "codes": INT_LIST}, {}, frozenset()
)
TAGS = Schema(
    "tags.parquet",
    "scripts/03_complete_tags.sh",
    {"item_id": pa.int32(), "tags": TEXT_LIST, "source": TEXT_LIST, "split": pa.string()},
    {},
    frozenset(),
)
TIDS = Schema(
    "tids.parquet",
    "scripts/05_generate_tids.sh",
    {"item_id": pa.int32(), "terms": TEXT_LIST, "source": pa.string()},
    {},
    frozenset(),
)
REASONING = Schema(
    "reasoning.parquet",
    "scripts/06_write_reasoning.sh",
    {"key": pa.int64(), "kind": pa.string(), "split": pa.string(), "text": pa.string(), "teacher": pa.string(),
     "prompt_sha256": pa.string(), "status": pa.string(), "attempts": pa.int32()},
    {"history_terms": pa.list_(TEXT_LIST), "target_terms": TEXT_LIST, "sample_id": pa.string(), "user_id": pa.int32(),
     "target": pa.int32()},
    frozenset({"user_id", "target"}),
)  # fmt: skip
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
ANSWER = pa.struct(
    [
        ("reasoning", pa.string()),
        ("item_id", pa.int32()),
        ("sid", INT_LIST),
        ("terms", TEXT_LIST),
        ("text", pa.string()),
    ]
)
EXAMPLES = Schema(
    "{split}.parquet",
    "scripts/07_build_examples.sh",
    {"example_id": pa.int64(), "task": pa.string(), "messages": pa.list_(MESSAGE), "answer": ANSWER,
     "history": INT_LIST, "target": INT_LIST, "weight": pa.float32()},
    {"user_id": pa.int32(), "ages": pa.list_(pa.float32())},
    frozenset({"user_id", "ages"}),
)  # fmt: skip
PREDICTIONS = Schema(
    "predictions.parquet",
    "evaluate.sh",
    {"example_id": pa.int64(), "rank": pa.float32(), "item_ids": INT_LIST, "score": pa.float32()},
    {"codes": INT_LIST, "text": pa.string()},
    frozenset({"codes", "text"}),
)

INSTRUCTIONS = Schema(
    "instructions.parquet",
    "scripts/12_instruct.sh",
    {"example_id": pa.int64(), "user_id": pa.int32(), "target_item": pa.int32(), "terms": TEXT_LIST,
     "instruction": pa.string(), "thought": pa.string(), "constrained": pa.bool_(), "status": pa.string()},
    {"item_ids": INT_LIST, "score": pa.float32(), "forced_close": pa.bool_(), "answer": pa.string()},
    frozenset({"user_id", "score"}),
)  # fmt: skip

MEDIA = Schema(
    "index.parquet",
    "scripts/13_generate_images.sh or scripts/14_generate_videos.sh",
    {"uid": pa.string(), "dataset": pa.string(), "type": pa.string(), "source": pa.string(), "prompt": pa.string(),
     "prompt_sha256": pa.string(), "seed": pa.int64(), "model": pa.string(), "path": pa.string(), "status": pa.string()},
    {"example_id": pa.int64(), "user_id": pa.int32(), "target_item": pa.int32(), "terms": TEXT_LIST,
     "item_ids": INT_LIST, "ground_truth": pa.string(), "width": pa.int32(), "height": pa.int32(), "frames": pa.int32(), "contrast": pa.float32(),
     "seconds": pa.float32(), "sha256": pa.string(), "poster": pa.string(), "reason": pa.string()},
    frozenset({"path", "example_id", "user_id", "target_item", "ground_truth", "width", "height", "frames", "contrast",
               "seconds", "sha256", "poster", "reason"}),
)  # fmt: skip


def conform(table: pa.Table, schema: Schema, *, where: str) -> pa.Table:
    """`table` with the schema's columns cast to its types, extras after them; InputError naming the first bad column."""
    columns: dict[str, pa.ChunkedArray] = {}
    for name, kind in (schema.required | schema.optional).items():
        if name not in table.column_names:
            if name in schema.required:
                raise InputError(
                    f"{where}: column `{name}` ({kind}) is missing -> {schema.written_by} writes it"
                )
            continue
        column = table[name]
        if column.type != kind:
            try:
                column = column.cast(kind)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise InputError(
                    f"{where}: column `{name}` is {column.type}, not {kind} ({str(error)[:80]})"
                ) from None
        if name not in schema.nullable and column.null_count:
            row = pc.index(column.is_null(), True).as_py()
            raise InputError(f"{where}: column `{name}` is null in row {row} ({column.null_count} rows)")
        columns[name] = column
    extras = {name: table[name] for name in table.column_names if name not in columns}
    return pa.table(columns | extras)


def read_file(path: Path, *, columns: list[str] | None = None) -> pa.Table:
    """Read one parquet file; InputError naming file and size when it is no parquet, or damaged (data/store/parquet.py)."""
    if not path.exists():
        raise InputError(f"missing file: {path} -> run the stage that writes it")
    with readable(path):
        return read_table(path, columns=columns)


def read(directory: str | Path, schema: Schema, *, file: str | None = None) -> pa.Table:
    """The table of `schema` in a finished output directory, checked."""
    require_manifest(directory, written_by=schema.written_by)
    path = Path(directory) / (file or schema.file)
    return conform(read_file(path), schema, where=str(path))


def part_name(stem: str, part: int = 0, parts: int = 1) -> str:
    """The file of one part of a table.

    >>> part_name("train", 2, 8)
    'train-00002-of-00008.parquet'
    """
    return f"{stem}-{part:05d}-of-{parts:05d}.parquet"


def found_parts(directory: str | Path, stem: str) -> dict[tuple[int, int], Path]:
    """{(part, parts): file} of the parts of a table that are there, of whatever runs."""
    name = re.compile(rf"{re.escape(stem)}-(\d{{5}})-of-(\d{{5}})\.parquet")
    matches = ((name.fullmatch(path.name), path) for path in Path(directory).iterdir())
    return {(int(match[1]), int(match[2])): path for match, path in matches if match}


def part_files(directory: str | Path, stem: str, *, written_by: str) -> list[Path]:
    """The parts of a table in order; InputError naming what is missing or left over."""
    found = found_parts(directory, stem)
    if not found:
        raise InputError(f"{directory} has no {stem}-*.parquet -> run {written_by}")
    totals = {total for _, total in found}
    if len(totals) > 1:
        raise InputError(
            f"{directory} mixes runs of {sorted(totals)} parts -> remove the parts of the older run"
        )
    parts = {part: path for (part, _), path in found.items()}
    missing = [part for part in range(totals.pop()) if part not in parts]
    if missing:
        raise InputError(
            f"{directory} lacks {len(missing)} of its parts (first: part {missing[0]}) -> run {written_by} again"
        )
    return [parts[part] for part in sorted(parts)]


def has_split(examples: str | Path, split: str) -> bool:
    """Whether a directory of examples has the split, in one file or in parts."""
    return (Path(examples) / f"{split}.parquet").exists() or bool(found_parts(examples, split))


def split_files(examples: str | Path, split: str) -> list[Path]:
    """The files of a split of the examples, in the order of its rows: <split>.parquet, or its parts."""
    whole = Path(examples) / f"{split}.parquet"
    if whole.exists():
        return [whole]
    return part_files(examples, split, written_by=EXAMPLES.written_by)


def read_split(examples: str | Path, split: str, *, columns: list[str] | None = None) -> pa.Table:
    """The examples of a split, checked; with `columns` these alone."""
    require_manifest(examples, written_by=EXAMPLES.written_by)
    wanted = EXAMPLES
    if columns is not None:
        required, optional = (
            {name: kind for name, kind in fields.items() if name in columns}
            for fields in (EXAMPLES.required, EXAMPLES.optional)
        )
        wanted = replace(EXAMPLES, required=required, optional=optional)
    tables = [
        conform(read_file(path, columns=columns), wanted, where=str(path))
        for path in split_files(examples, split)
    ]
    return pa.concat_tables(tables)


def read_items(directory: str | Path) -> pa.Table:
    """items.parquet of a prepared data set; item_id must be 0..N-1 in order."""
    items = read(directory, ITEMS)
    ids = items["item_id"].to_numpy()
    if not np.array_equal(ids, np.arange(len(ids))):
        raise InputError(
            f"{directory}/items.parquet: item_id is not 0..{len(ids) - 1} in order -> run data.prepare again"
        )
    return items


def read_sequences(directory: str | Path, *, num_items: int | None = None) -> pa.Table:
    """sequences.parquet of a prepared data set; with `num_items` every item id is checked to lie in 0..N-1."""
    sequences = read(directory, SEQUENCES)
    if num_items is not None:
        flat = sequences["history"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        for name, values in (("history", flat), ("target", sequences["target"].to_numpy())):
            if len(values) and (values.min() < 0 or values.max() >= num_items):
                raise InputError(
                    f"{directory}/sequences.parquet: `{name}` names an item outside 0..{num_items - 1}"
                )
    return sequences


def ragged(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(offsets int64 [rows + 1], values int32 [total]) of a list<int32> column, whatever its slicing."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], type=column.type)
    offsets = np.concatenate([[0], np.cumsum(array.value_lengths().to_numpy(zero_copy_only=False))]).astype(
        np.int64
    )
    return offsets, array.flatten().to_numpy(zero_copy_only=False)


def int_lists(offsets: np.ndarray, values: np.ndarray) -> pa.ListArray:
    """The inverse of `ragged`: list<int32>."""
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values.astype(np.int32)))


def text_array(values: list[str]) -> pa.Array:
    """Strings as an Arrow array, also when there are none."""
    return pa.array(values, pa.string())


def int_rows(matrix: np.ndarray) -> pa.ListArray:
    """A dense integer matrix [N, L] as list<int32> rows of equal length."""
    rows, width = matrix.shape
    return int_lists(np.arange(rows + 1) * width, matrix.reshape(-1))
