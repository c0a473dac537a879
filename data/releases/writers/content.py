"""What of a data set is written: its rows by split as the options keep them, items, users, semantic IDs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data import artifacts
from data.reasoning import RELEASED, texts_of_rows
from data.releases import d3, records, sidreasoner
from data.releases.writers.options import ExportArgs
from data.sid import FORMATS, SidTable, read_sids
from data.store.lineage import require_same_data

LETTERS = FORMATS["letters"]

# user, history, target, example
Row = tuple[int, list[int], int, int]


@dataclass(frozen=True)
class Content:
    """What is written: rows by split as (user, history, target) with their examples, items, their SIDs (recbole: none), texts."""

    items: pa.Table
    users: list[str]
    walks: dict[int, list[d3.Event]]
    rows: dict[str, list[Row]]
    sids: SidTable | None
    dropped: dict[str, int]
    told: dict[int, tuple[str, str]]

    @property
    def texts(self) -> records.Texts:
        columns = (self.items[name].to_pylist() for name in ("title", "description"))
        return records.Texts([LETTERS.text(codes) for codes in self.sids.codes_NL.tolist()], *columns)


def read_content(args: ExportArgs) -> Content:
    """Data and SIDs, with the rows that the options keep."""
    items, sids = artifacts.read_items(args.data), None if args.sids is None else read_sids(args.sids)
    if sids is not None:
        if sids.num_items != len(items):
            raise InputError(
                f"{args.sids} has {sids.num_items} items, {args.data} {len(items)} -> pass its own SIDs"
            )
        require_same_data(args.sids, args.data, again="rq.assign_sids or rq.import_sids")
    table = artifacts.read_sequences(args.data, num_items=len(items))
    users = artifacts.read(args.data, artifacts.USERS)["raw_id"].to_pylist()
    log = artifacts.read(args.data, artifacts.INTERACTIONS)
    walks: dict[int, list[d3.Event]] = {}
    unknown = [None] * log.num_rows
    rated, timed = (
        log[name].to_pylist() if name in log.column_names else unknown for name in ("rating", "timestamp")
    )
    for user, *event in zip(
        log["user_id"].to_pylist(), log["item_id"].to_pylist(), rated, timed, strict=True
    ):
        walks.setdefault(user, []).append(tuple(event))
    rows, dropped = {}, {}
    for split in artifacts.SPLITS:
        part = table.filter(pc.equal(table["split"], split))
        columns = (part[name].to_pylist() for name in ("user_id", "history", "target", "example_id"))
        whole = list(zip(*columns, strict=True))
        rows[split] = kept_rows(whole, split, args, sids)
        dropped[f"{split}_rows_left_out"] = len(whole) - len(rows[split])
    told = sidreasoner.texts_of(table, num_items=len(items), where=f"{args.data}/{artifacts.SEQUENCES.file}")
    return Content(items, users, walks, rows, sids, dropped, told)


def kept_rows(rows: list[Row], split: str, args: ExportArgs, sids: SidTable | None) -> list[Row]:
    """The rows that the options keep, in order."""
    if args.keep_longest_only:
        best: dict[int, int] = {}
        for at, (user, history, *_) in enumerate(rows):
            if user not in best or len(history) >= len(rows[best[user]][1]):
                best[user] = at
        rows = [rows[at] for at in sorted(best.values())]
    if args.deduplicate and split == "train":
        codes = [tuple(row) for row in sids.codes_NL.tolist()]
        first = {(tuple(codes[i] for i in history), codes[target]): at for at, (_, history, target, _) in reversed(list(enumerate(rows)))}  # fmt: skip
        rows = [rows[at] for at in sorted(first.values())]
    limit = {"valid": args.max_valid_samples, "test": args.max_test_samples}.get(split)
    if limit is not None and limit < len(rows):
        drawn = np.random.default_rng(args.seed).permutation(len(rows))[:limit]
        rows = [rows[at] for at in sorted(drawn.tolist())]
    return rows


def taught_texts(content: Content, args: ExportArgs, kinds: tuple[str, ...]) -> dict[str, dict[int, str]]:
    """{kind: {key: text}} of what a teacher wrote about the rows that are written, and about items; InputError for other kinds."""
    for directory in args.reasoning:
        if Path(directory).resolve() != Path(args.data).resolve():
            require_same_data(directory, args.data, again="stage 06")
    own = {key: (split, target) for split, rows in content.rows.items() for _, _, target, key in rows}
    found = texts_of_rows(args.reasoning, own, num_items=len(content.items)).texts
    if other := sorted(found.keys() - RELEASED.keys() - set(kinds)):
        raise InputError(
            f"texts of kind {other[0]} have no place in --to {args.to} -> some of kind {', '.join(kinds)}"
        )
    return {kind: found.get(kind, {}) for kind in kinds}
