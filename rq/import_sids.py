"""Published semantic IDs in, ours out: index.json, id2sid.json, sids.parquet, NaviGen's CID strings.

In (--source FILE --data DATA --output_dir data/<set>/sids/<name>): the IDs of a file become a sids directory.
    *.json, *.json.gz   index.json of MiniOneRec, LETTER, SIDReasoner; id2sid.json of MIMIGenRec
    *.parquet           raw_id, item_id or pid, and `sid` or `codes` (a list of integers) or `cid` (NaviGen's strings, in its own
                        pid2cid2tid they are the column `sid`)
  An item of the file is the item of DATA whose raw_id it names, `id_offset` added to numbers; numbers that can be read as
  DATA's own item ids too need `keyed_by`. Every item of DATA must have an ID, and other IDs need `allow_surplus`.
  writes  sids.parquet, quality.json, quality.png, map.parquet, manifest.json (no quantizer: new items cannot be appended)
Out (--sids SIDS --output_dir FOLDER): a sids directory in the published layouts.
  writes  index.json (MiniOneRec), id2sid.json and new_tokens.json (MIMIGenRec), cids.parquet (item_id, raw_id, cid), manifest.json

python -m rq.import_sids --source Industrial_and_Scientific.index.json --data data/industrial --sizes [256,256,256] \\
    --output_dir data/industrial/sids/minionerec
python -m rq.import_sids --sids data/toystore/sids/rqkmeans --output_dir outputs/export/sids
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from configs import program
from configs.program import InputError
from data import artifacts
from data.releases import index as interop
from data.releases import navigen
from data.releases.index import PublishedIndex
from data.releases.item_ids import find_items
from data.releases.published import only_file
from data.sid import FORMATS, SidTable, read_sids, write_sids
from data.store import output
from rq.quality import assessment
from rq.quality import page as quality_page
from rq.quality.assessment import Evidence
from rq.vectors import embedding_map

VERSION = 1
INDEX_FILES = (
    "*.index.json*",
    "index/*.index.json*",
    "id2sid.json*",
    "*/id2sid.json*",
    "pid2cid2tid*",
    "*/pid2cid2tid*",
)


@dataclass
class ImportSidsArgs:
    """Import, or with `sids` export."""

    output_dir: str
    """Where to write."""
    source: str | None = None
    """Published file to import, or a published folder with one index.json, id2sid.json or pid2cid2tid."""
    sids: str | None = None
    """Sids directory to export."""
    data: str | None = None
    """Import: prepared data set whose items the IDs belong to. Export: names the items by raw_id instead of item id."""
    sizes: list[int] | None = None
    """Import: codes per level; null = the largest code of a level plus one (the Gini index needs the real size)."""
    code_offset: int = 0
    """Import: taken off every code but a last rank; 1 for the published constrained and plus builders. Export: added again."""
    id_offset: int = 0
    """Import: added to the item numbers of the file, e.g. 1 where they count from 0 and the data set's from 1."""
    keyed_by: Literal["auto", "raw_id", "item_id"] = "auto"
    """Import: what the numbers of the file are, where they can be read both ways: the source's (raw_id) or ours."""
    allow_surplus: bool = False
    """Import: the file may hold IDs of items that the data set does not have."""
    whole: bool = False
    """Import: every distinct ID becomes one code of a single level, so that stage 08 makes one token per ID. `source` may be the
    sids.parquet of a sids directory. New items need the import, and the expansion, again."""
    drop_last_zero: bool = False
    """Export: leave out a last code 0, as the published builders that rank colliding items only."""
    overwrite: bool = False
    """Replace an output of another configuration."""

    def __post_init__(self) -> None:
        if (self.source is None) == (self.sids is None):
            raise InputError("give either --source (import) or --sids (export)")
        if self.source is not None and self.data is None:
            raise InputError("--source needs --data, the prepared data set of these IDs")
        importing = self.source is not None
        if (
            importing
            and self.drop_last_zero
            or not importing
            and (self.sizes or self.id_offset or self.whole)
        ):
            raise InputError("drop_last_zero belongs to an export, sizes, id_offset and whole to an import")
        if self.code_offset < 0:
            raise InputError(f"code_offset {self.code_offset} must be >= 0")


def read_source(path: str) -> PublishedIndex:
    """A published file of any kind."""
    if not path.endswith(".parquet"):
        return interop.read_index(path)
    table = artifacts.read_file(Path(path))
    column = next((name for name in ("sid", "codes", "cid") if name in table.column_names), None)
    key = next((name for name in ("raw_id", "item_id", "pid") if name in table.column_names), None)
    if column is None or key is None:
        raise InputError(
            f"{path} has columns {', '.join(table.column_names)} -> it needs raw_id, item_id or pid, and sid, codes or cid"
        )
    keys = tuple(map(str, table[key].to_pylist()))
    key = "raw_id" if key == "pid" else key
    rows = table[column].to_pylist()
    if column == "sid" and rows and (isinstance(rows[0], str) or (rows[0] and isinstance(rows[0][0], str))):
        _, places, cids = navigen.read_cids(table, column, Path(path), one=True)
        rows = [cids[place] for place in places.tolist()]
    if column == "cid" or isinstance(next(iter(rows), None), str):
        return PublishedIndex(keys, parse_cids(rows, where=path), key=key)
    levels = {None if row is None else len(row) for row in rows}
    if len(levels) != 1 or not levels <= set(range(1, 27)):
        raise InputError(
            f"{path}: IDs in `{column}` are missing or differ in length -> fixed-length IDs only"
        )
    return PublishedIndex(keys, np.array(rows, np.int32), key=key)


def parse_cids(cids: list[str], *, where: str) -> np.ndarray:
    """Codes int32 [N, L] of NaviGen's strings; InputError naming the first that is not exactly one ID."""
    fmt = FORMATS["navigen"]
    levels = max((str(cids[0]).count("<s_"), 1)) if cids else 1
    rows = [fmt.parse(str(cid), num_levels=levels) for cid in cids]
    bad = next(
        (at for at, codes in enumerate(rows) if codes is None or fmt.text(codes) != str(cids[at])), None
    )
    if bad is not None or not rows:
        shown = f"row {bad}: {str(cids[bad])[:80]!r}" if bad is not None else "no row at all"
        raise InputError(
            f"{where}: {shown} is not one CID of {levels} levels -> expected {fmt.text([0] * levels)}"
        )
    return np.array(rows, np.int32)


def in_item_order(index: PublishedIndex, raw_ids: list[str], args: ImportSidsArgs) -> tuple[np.ndarray, int]:
    """(codes int32 [N, L] in the order of our items, IDs of the file that belong to no item)."""
    keys, key = index.keys, index.key
    if args.id_offset:
        keys, key = tuple(str(number) for number in index.item_ids + args.id_offset), "raw_id"
    places = find_items(keys, raw_ids, key=key, where=str(args.source), keyed_by=args.keyed_by, surplus=True)
    rows_N = places.of_items(len(raw_ids))
    missing = [raw_ids[item] for item in np.flatnonzero(rows_N < 0)]
    if missing:
        raise InputError(
            f"{args.source} has no ID for {len(missing)} of {len(raw_ids)} items (raw_id {', '.join(missing[:5])}) "
            "-> check id_offset, or prepare the data set of these IDs"
        )
    unused = len(keys) - len(raw_ids)
    if unused and not args.allow_surplus:
        first = keys[int(np.flatnonzero(places.rows_R < 0)[0])]
        raise InputError(
            f"{args.source} has {unused} IDs of no item of {args.data} (first: {first}) -> is it another data set's?"
            " if it is a larger catalogue of the same ids, pass --allow_surplus true"
        )
    codes_NL = index.codes_NL[rows_N].copy()
    ranked = codes_NL.shape[1] - (index.padded > 0)
    codes_NL[:, :ranked] -= args.code_offset
    return codes_NL, unused


def require_fitting(
    codes_NL: np.ndarray, sizes: tuple[int, ...], raw_ids: list[str], args: ImportSidsArgs
) -> None:
    """InputError that names the first ID with a code outside its level."""
    if len(sizes) != codes_NL.shape[1]:
        raise InputError(
            f"{args.source} has IDs of {codes_NL.shape[1]} levels, sizes has {len(sizes)} numbers -> one per level"
        )
    outside = np.argwhere((codes_NL < 0) | (codes_NL >= np.array(sizes)))
    if len(outside):
        row, level = outside[0]
        raise InputError(
            f"{args.source}: raw_id {raw_ids[row]} has code {codes_NL[row, level]} at level {level + 1}, outside 0..{sizes[level] - 1} "
            f"(code_offset {args.code_offset}) -> check code_offset and sizes"
        )


def bring_in(args: ImportSidsArgs, out: output.Output) -> None:
    """The import."""
    items = artifacts.read_items(args.data)
    index = read_source(args.source)
    raw_ids = items["raw_id"].to_pylist()
    codes_NL, unused = in_item_order(index, raw_ids, args)
    sizes = tuple(args.sizes or (codes_NL.max(0) + 1).tolist())
    require_fitting(codes_NL, sizes, raw_ids, args)
    table = SidTable(codes_NL, sizes)
    if args.whole:
        table = SidTable(table.sid_of_item_N[:, None].astype(np.int32), (len(table.sids_SL),))
    sequences = artifacts.read_sequences(args.data, num_items=len(items))
    report = assessment.assess(table, Evidence(items, sequences))
    none_N2 = np.full((len(items), 2), np.nan, np.float32)
    write_sids(out, table)
    out.write_table(embedding_map.FILE, embedding_map.map_table(raw_ids, none_N2))
    out.write_json("quality.json", report)
    name = Path(args.output_dir).name
    quality_page.write_png(out, "quality.png", [quality_page.Shown(name, report, table.codes_NL)])
    out.counts |= {"ids_of_no_item": unused, "items_without_last_token": index.padded}
    out.facts |= {"published": Path(args.source).name}


def take_out(args: ImportSidsArgs, out: output.Output) -> None:
    """The export."""
    table = read_sids(args.sids)
    keys = [str(item) for item in range(table.num_items)]
    if args.data is not None:
        keys = artifacts.read_items(args.data)["raw_id"].to_pylist()
        if len(keys) != table.num_items:
            raise InputError(
                f"{args.sids} has {table.num_items} items, {args.data} {len(keys)} -> pass their data set"
            )
    codes_NL = table.codes_NL.copy()
    shifted = codes_NL.shape[1] - args.drop_last_zero
    codes_NL[:, :shifted] += args.code_offset
    for name, layout in (("index.json", "minionerec"), ("id2sid.json", "mimigenrec")):
        with out.replacing(name) as temporary:
            interop.write_index(
                temporary, codes_NL, keys=keys, layout=layout, drop_last_zero=args.drop_last_zero
            )
    tokens = interop.new_tokens(codes_NL)
    if args.drop_last_zero:
        dropped = FORMATS["letters"].code_token(codes_NL.shape[1] - 1, 0)
        tokens = [token for token in tokens if token != dropped]
    out.write_json("new_tokens.json", tokens)
    fmt = FORMATS["navigen"]
    cids = {
        "item_id": np.arange(table.num_items, dtype=np.int32),
        "raw_id": pa.array(keys, pa.string()),
        "cid": pa.array([fmt.text(row) for row in table.codes_NL.tolist()], pa.string()),
    }
    out.write_table("cids.parquet", pa.table(cids))
    out.counts |= {"items": table.num_items, "tokens": len(tokens)}


def main(args: ImportSidsArgs) -> None:
    """Import or export."""
    if args.source is not None and Path(args.source).is_dir():
        found = only_file(args.source, INDEX_FILES, what="index.json, id2sid.json or pid2cid2tid")
        args = replace(args, source=str(found))
    source = None if args.source is None else Path(args.source)
    if source is not None and not source.is_file():
        raise InputError(f"missing file: {source} -> check the path")
    with output.open_output(
        args,
        "import_sids" if args.sids is None else "export_sids",
        version=VERSION,
        inputs={"source": args.source, "sids": args.sids, "data": args.data},
    ) as out:
        if args.sids is None:
            bring_in(args, out)
        else:
            take_out(args, out)


if __name__ == "__main__":
    program.run(ImportSidsArgs, main)
