"""01  Raw dump or tables -> items, interactions, sequences.

reads   a folder of Amazon review dumps (2014, 2018 or 2023), or a user's own tables (parquet or csv)
writes  items.parquet interactions.parquet sequences.parquet users.parquet funnel.json manifest.json

python -m data.prepare --config configs/minionerec/industrial/prepare.yaml --raw RAW --output_dir data/industrial

Amazon dumps: title filter, time window, k-core, order by time, split, sliding windows. Users are numbered by first
appearance in the filtered reviews, items by first appearance while walking the users in that order. Tables: ids become
dense, a published split and its sequences are kept word for word. The columns are those of `data.artifacts`.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs import program
from configs.program import InputError
from data.adapters import amazon, tables
from data.adapters.recipe import AmazonOptions, Recipe
from data.shaping.assemble import Coded, Funnel, Prepared, filter_core, finish, split_rows, windows
from data.shaping.coding import dense_by_first_appearance
from data.shaping.findings import raise_first
from data.shaping.splits import SPLIT_NAMES, TRAIN
from data.store.output import open_output

STAGE, VERSION = "prepare", 1


@dataclass(frozen=True, kw_only=True)
class PrepareArgs(Recipe):
    """Arguments of data.prepare: a recipe, where the raw files lie, where the data set goes."""

    raw: str
    """folder of the raw files"""
    output_dir: str
    """where the prepared data set goes"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def input_files(self) -> list[Path]:
        """Every raw file that is read, in order."""
        if self.adapter == "tables":
            files = self.tables.files(self.raw)
            missing = [path for path in files if not path.is_file()]
            if missing:
                raise InputError(
                    f"missing file: {missing[0]} -> check raw and the tables section of the config"
                )
            return files
        return [*self.review_files(), *self.metadata_files()]

    def review_files(self) -> list[Path]:
        """The dump's review files."""
        return amazon.find_files(self.raw, self.amazon.reviews, what="reviews")

    def metadata_files(self) -> list[Path]:
        """The dump's metadata files; none when there are no patterns."""
        if not self.amazon.metadata:
            return []
        return amazon.find_files(self.raw, self.amazon.metadata, what="metadata")


def prepare(args: PrepareArgs) -> Prepared:
    """Everything but the output directory: what tests and the bench call."""
    return prepare_amazon(args) if args.adapter == "amazon" else prepare_tables(args)


def prepare_amazon(args: PrepareArgs) -> Prepared:
    """Review dumps -> prepared tables."""
    options, funnel = args.amazon, Funnel()
    reviews = amazon.read_reviews(
        args.review_files(), year=options.format, max_bad_share=options.max_bad_share
    )
    files = args.metadata_files()
    metadata = amazon.scan_metadata(
        files, reviews.item_ids, year=options.format, max_bad_share=options.max_bad_share
    )
    _count_raw(reviews, metadata, funnel)
    known = np.ones(len(reviews.user), bool)
    rows = Coded(reviews.user, reviews.item, reviews.rating, reviews.timestamp, known)
    rows = _drop_items(rows, metadata, options, funnel)
    rows = filter_core(rows, args.filters, funnel)
    rows, user_codes, item_codes = renumber(rows)
    split = split_rows(rows, args.split)
    text = amazon.read_items(
        files, metadata, item_codes, year=options.format, title_filter=options.title_filter
    )
    items = text.add_column(0, "raw_id", reviews.item_ids.take(pa.array(item_codes)))
    items = items.add_column(0, "item_id", pa.array(np.arange(len(item_codes)), pa.int32()))
    users = user_table(reviews.user_ids.take(pa.array(user_codes)))
    sequences = windows(rows, split, args.split)
    return finish(items=items, rows=rows, split=split, sequences=sequences, users=users, funnel=funnel)


def renumber(rows: Coded) -> tuple[Coded, np.ndarray, np.ndarray]:
    """Dense ids by first appearance: users in file order, items while walking the users in sequence.

    Returns (rows in sequence with dense ids, old user code of each user, old item code of each item).
    """
    user, user_codes = dense_by_first_appearance(rows.user, int(rows.user.max()) + 1)
    rows = dataclasses.replace(rows, user=user).in_sequence()
    item, item_codes = dense_by_first_appearance(rows.item, int(rows.item.max()) + 1)
    return dataclasses.replace(rows, item=item), user_codes, item_codes


def _count_raw(reviews: amazon.Reviews, metadata: amazon.Metadata, funnel: Funnel) -> None:
    lines = [*reviews.lines, *metadata.lines]
    funnel.step("review lines", sum(account.total for account in reviews.lines))
    funnel.step("reviews read", len(reviews.user), len(reviews.user_ids), len(reviews.item_ids))
    funnel.facts |= {
        "review_lines_broken": sum(account.broken for account in reviews.lines),
        "metadata_lines": sum(account.total for account in metadata.lines),
        "metadata_lines_broken": sum(account.broken for account in metadata.lines),
        "metadata_items": metadata.distinct,
        # Without the folder: the file's hash must not depend on where the dump lies.
        "first_broken": next(
            (a.first_broken.removeprefix(f"{a.path.parent}{os.sep}") for a in lines if a.broken), None
        ),
        "truncated_files": [account.path.name for account in lines if account.truncated],
        "reviewed_items_without_metadata": int((metadata.file < 0).sum()),
        "reviewed_items_with_bad_title": int(metadata.bad_title.sum()),
    }


def _drop_items(rows: Coded, metadata: amazon.Metadata, options: AmazonOptions, funnel: Funnel) -> Coded:
    """Drop the rows of items that the metadata and title rules exclude, and exact repeats where asked."""
    keep_item = np.ones(len(metadata.file), bool)
    if not options.keep_without_metadata:
        keep_item &= metadata.file >= 0
    if options.title_filter == "published":
        keep_item &= ~metadata.bad_title
    rows = rows.take(np.flatnonzero(keep_item[rows.item]))
    funnel.count(f"items with metadata, title filter {options.title_filter}", rows)
    if options.drop_duplicates:
        rows = rows.take(first_of_repeats(rows))
        funnel.count("without exact repeats", rows)
    return rows


def first_of_repeats(rows: Coded) -> np.ndarray:
    """Row numbers (ascending) of the first of every (user, item, time)."""
    order = np.lexsort((rows.timestamp, rows.item, rows.user))
    repeats = np.zeros(len(order), bool)
    same = [np.diff(column[order]) == 0 for column in (rows.user, rows.item, rows.timestamp)]
    repeats[order[1:][same[0] & same[1] & same[2]]] = True
    return np.flatnonzero(~repeats)


def prepare_tables(args: PrepareArgs) -> Prepared:
    """A user's own tables -> prepared tables."""
    funnel = Funnel()
    loaded, findings = tables.load(args.raw, args.tables)
    raise_first(findings, more="python -m data.validate lists all")
    assert loaded is not None, "tables that cannot be used have findings"
    rows = Coded(
        loaded.user, loaded.item, loaded.rating, loaded.timestamp, loaded.known, loaded.order, loaded.split
    )
    funnel.count("interactions read", rows)
    funnel.facts["items_with_cleaned_text"] = loaded.cleaned
    items, users = loaded.items, loaded.users
    if args.filters.keeps_everything:
        rows = rows.in_sequence()
    else:
        rows, user_codes, item_codes = renumber(filter_core(rows, args.filters, funnel))
        items = items.take(pa.array(item_codes)).set_column(
            0, "item_id", pa.array(np.arange(len(item_codes)), pa.int32())
        )
        users = users.take(pa.array(user_codes)).set_column(
            0, "user_id", pa.array(np.arange(len(user_codes)), pa.int32())
        )
    published = args.split.kind == "published"
    split = (
        split_rows(rows, args.split)
        if not published or rows.split is not None
        else np.full(len(rows.user), TRAIN, np.int8)
    )
    made = windows(rows, split, args.split)
    sequences = published_sequences(loaded.sequences, made, funnel) if published else made
    return finish(items=items, rows=rows, split=split, sequences=sequences, users=users, funnel=funnel)


def published_sequences(shipped: pa.Table | None, made: pa.Table, funnel: Funnel) -> pa.Table:
    """The shipped sequences as they are, with the windows made here for every split that they do not have before them."""
    if shipped is None:
        return made
    present = set(pc.unique(shipped["split"]).to_pylist())
    absent = [name for name in SPLIT_NAMES[:3] if name not in present]
    funnel.facts["windows_made_here"] = absent
    wanted = pc.is_in(made["split"], value_set=pa.array(absent, pa.string()))
    return pa.concat_tables([made.filter(wanted), shipped], promote_options="default")


def warnings(funnel: Funnel) -> list[str]:
    """What a user should know of files that were read all the same."""
    told = [
        f"{name} ends in the middle of its gzip stream; its whole lines are used"
        for name in funnel.facts.get("truncated_files", [])
    ]
    broken = [funnel.facts.get(f"{kind}_lines_broken", 0) for kind in ("review", "metadata")]
    if any(broken):
        counts = f"{broken[0]} broken review lines and {broken[1]} broken metadata lines are left out"
        told.append(f"{counts}, first: {funnel.facts['first_broken']}")
    return told


def user_table(raw_ids: pa.Array) -> pa.Table:
    """users.parquet of users 0..N-1."""
    return pa.table({"user_id": pa.array(np.arange(len(raw_ids)), pa.int32()), "raw_id": raw_ids})


def main(args: PrepareArgs) -> None:
    """Read, prepare, write."""
    with open_output(args, STAGE, version=VERSION, inputs={"raw": args.input_files()}) as out:
        prepared = prepare(args)
        for warning in warnings(prepared.funnel):
            program.say(f"prepare: {warning}")
        for name in ("items", "interactions", "sequences", "users"):
            out.write_table(f"{name}.parquet", getattr(prepared, name))
        out.write_json("funnel.json", {"steps": prepared.funnel.steps, **prepared.funnel.facts})
        out.counts |= prepared.counts()
        out.facts["funnel"] = {"steps": prepared.funnel.steps, **prepared.funnel.facts}


if __name__ == "__main__":
    program.run(PrepareArgs, main)
