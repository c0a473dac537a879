"""A prepared data set and its semantic IDs as the folder of another system.

reads   a prepared data set (stage 01), a SID directory, for minionerec also embeddings
writes  --to minionerec   {D}.item.json, {D}.inter.json, {D}.user2id, {D}.item2id, {D}.{train,valid,test}.inter,
                          {D}.index.json, {train,valid,test}/{D}.csv, info/{D}.txt, {D}.emb-<name>-td.npy
        --to d3           {D}.item.json, {D}.item2id, {train,valid,test}/{D}.csv, info/{D}.txt: titles, ratings and times
                          instead of semantic IDs, item numbers shuffled by `seed`
        --to mimigenrec   {D}/id2sid.json, new_tokens.json, sft/*.json, rl/*.json, item.json; dataset_info.json
        --to sidreasoner  {train,valid,test}/{D}.csv, info/{D}.txt, index/{D}.{item.json,index.json,item_enhanced_v2.json,
                          integrated_narrative.csv} with texts where the data set has them, rl/{train,valid}.parquet,
                          {D}.user2id, {D}.item2id
        --to recbole      {D}/{D}.{train,valid,test}.inter, {D}.item, {D}.user, {D}.yaml, topk.py: the windows of every split as
                          atomic files, our numbers as ids, and a program that trains a RecBole model on them and writes its top-k,
                          which infer.import_predictions reads; needs no SIDs
        --to navigen      pid2cid2tid.parquet, {train,valid,test}_{cid2tid,tid2cid,cid2cid,cid2ins}.parquet from SIDs, TIDs and what
                          a teacher wrote; of `predictions` also hist_cid2cid_predictions.{D}_test_cid2cid.jsonl

Stage 01 (adapter minionerec, mimigenrec, sidreasoner, navigen or recbole) reads these folders back. What they have no place for is said: times, ratings,
prices, images, review texts; in mimigenrec also users, and which of several items a shared semantic ID means.

python -m data.export --to minionerec --data data/industrial --sids data/industrial/sids/rqkmeans \\
    --name Industrial --output_dir outputs/export/minionerec
python -m data.export --to recbole --data data/industrial --output_dir outputs/export/recbole
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs import program
from configs.program import InputError, say
from data import artifacts
from data.predictions import read_predictions, refuse_other_sids
from data.reasoning import KINDS, WITH_TEXT, column_texts, read_reasoning, rendered
from data.releases import atomic, d3, mimigenrec, minionerec, navigen, records, sidreasoner
from data.releases.index import write_index, write_new_tokens
from data.sid import FORMATS, SidTable, read_sids
from data.store.lineage import require_same_data
from data.store.output import Output, open_output
from data.tids import read_tids

STAGE, VERSION = "export", 1
LETTERS = FORMATS["letters"]


@dataclass(frozen=True, kw_only=True)
class ExportArgs:
    """Arguments of data.export."""

    to: Literal["minionerec", "d3", "mimigenrec", "sidreasoner", "recbole", "navigen"]
    """whose folder"""
    data: str
    """prepared data set"""
    output_dir: str
    """where the folder goes"""
    sids: str | None = None
    """its SID directory; recbole has no place for it"""
    name: str = "dataset"
    """D, the start of the file names (mimigenrec: the folder, and data_source unless that is given)"""
    csv_name: str = ""
    """minionerec, d3, sidreasoner: name of the csv and info files without ending, e.g. Industrial_5_2016-10-2018-11; empty = `name`"""
    embeddings: str | None = None
    """minionerec: embeddings directory to write as {D}.emb-<its name>-td.npy"""
    max_valid_samples: int | None = None
    """at most so many valid rows, drawn by `seed`, in their order"""
    max_test_samples: int | None = None
    """at most so many test rows, likewise"""
    keep_longest_only: bool = False
    """of every user and split only the row with the longest history, the last of equals"""
    deduplicate: bool = False
    """drop train rows whose history and target repeat those of an earlier row as semantic IDs"""
    tasks: list[str] = field(default_factory=lambda: list(mimigenrec.TASKS))
    """mimigenrec: which of its five tasks"""
    seq_sample: int = 10_000
    """mimigenrec: rows of the task histitle2sid"""
    data_source: str = ""
    """mimigenrec, sidreasoner: what rl records name as their source; empty = `name`"""
    max_history: int = 50
    """recbole: the newest items of a history that are written"""
    answered: Literal["valid", "test"] = "test"
    """recbole: the rows whose top-k topk.py writes"""
    tids: str | None = None
    """navigen: its TID directory"""
    reasoning: list[str] = field(default_factory=list)
    """navigen: directories of what a teacher wrote, at most one per kind"""
    target_type: Literal["image", "video"] = "image"
    """navigen: what the instructions are for"""
    predictions: str | None = None
    """navigen: predictions for the test rows, to be written as well"""
    seed: int = 42
    """seed of every draw"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in mimigenrec.TASKS]
        if unknown or not self.tasks:
            raise InputError(f"tasks {self.tasks} -> some of {', '.join(mimigenrec.TASKS)}")
        if self.max_history < 1:
            raise InputError(f"max_history {self.max_history} -> at least 1")
        if not self.name or "/" in self.name + self.csv_name:
            raise InputError(f"name {self.name!r}, csv_name {self.csv_name!r} -> file names without a folder")
        if (self.sids is None) != (self.to == "recbole"):
            fix = "leave sids out" if self.sids else "name the SID directory: --sids"
            raise InputError(f"--to {self.to} with sids {self.sids} -> {fix}")
        if self.to == "recbole" and self.deduplicate:
            raise InputError(
                "deduplicate compares semantic IDs, which --to recbole has none of -> leave it out"
            )
        if (self.tids is not None) != (self.to == "navigen"):
            raise InputError(f"--to {self.to} with tids {self.tids} -> tids for navigen, and for it alone")
        if (self.reasoning or self.predictions) and self.to != "navigen":
            raise InputError("reasoning and predictions belong to --to navigen -> leave them out")
        if self.embeddings and self.to != "minionerec":
            raise InputError("embeddings belong to --to minionerec -> leave them out")


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


def write_d3(content: Content, args: ExportArgs, out: Output) -> None:
    """Every file of a D3 folder that a prepared data set has the content for."""
    name, csv_name = args.name, args.csv_name or args.name
    raw_ids, numbers = content.items["raw_id"].to_pylist(), d3.shuffled_numbers(len(content.items), args.seed)
    items = d3.D3Items(raw_ids, numbers, content.texts.titles)
    out.write_text(f"{name}.item.json", minionerec.item_json(content.items, numbers))
    out.write_text(
        f"{name}.item2id", "".join(f"{key}\t{at}\n" for key, at in zip(raw_ids, numbers, strict=True))
    )
    for split, rows in content.rows.items():
        told = [
            (content.users[user], d3.events_of(content.walks.get(user, ()), history, target))
            for user, history, target, _ in rows
        ]
        out.write_text(f"{split}/{csv_name}.csv", d3.csv_text(told, items))
    out.write_text(f"info/{csv_name}.txt", d3.info_text(items))


def write_minionerec(content: Content, args: ExportArgs, out: Output) -> None:
    """Every file of a MiniOneRec folder but the review texts, which a prepared data set does not keep."""
    texts, name, csv_name = content.texts, args.name, args.csv_name or args.name
    raw_ids = content.items["raw_id"].to_pylist()
    out.write_text(f"{name}.item.json", minionerec.item_json(content.items, range(len(content.items))))
    out.write_text(
        f"{name}.inter.json",
        json.dumps({str(u): [item for item, *_ in walk] for u, walk in content.walks.items()}) + "\n",
    )
    for table, ids in (("user2id", content.users), ("item2id", raw_ids)):
        out.write_text(f"{name}.{table}", "".join(f"{key}\t{number}\n" for number, key in enumerate(ids)))
    for split, rows in content.rows.items():
        columns = zip(*rows, strict=True) if rows else ((), (), (), ())
        users, histories, targets, _ = (tuple(column) for column in columns)
        inter = minionerec.InterRows(tuple(map(str, users)), tuple(map(tuple, histories)), targets)
        with out.replacing(f"{name}.{split}.inter") as temporary:
            minionerec.write_inter(temporary, inter)
        named = [(f"A{user}", history, target) for user, history, target, _ in rows]
        out.write_text(f"{split}/{csv_name}.csv", minionerec.csv_text(named, texts.titles, texts.sids))
    with out.replacing(f"{name}.index.json") as temporary:
        write_index(temporary, content.sids.codes_NL)
    with out.replacing(f"info/{csv_name}.txt") as temporary:
        changed = minionerec.write_info(temporary, content.sids.codes_NL, texts.titles)
    out.facts["info_titles_with_tabs_or_line_ends"] = changed
    if args.embeddings:
        x_ND = np.load(Path(args.embeddings) / "embeddings.npy", allow_pickle=False)
        if len(x_ND) != len(content.items):
            raise InputError(f"{args.embeddings} has {len(x_ND)} rows, the data {len(content.items)} items")
        out.write_array(f"{name}.emb-{Path(args.embeddings).name}-td.npy", x_ND.astype(np.float32))


def write_sidreasoner(content: Content, args: ExportArgs, out: Output) -> None:
    """Every file of a SIDReasoner folder but the general chats, and the source's ids."""
    items = content.items
    narratives = column_texts(
        items, "narrative", num_items=len(items), where=f"{args.data}/{artifacts.ITEMS.file}"
    )
    item_text = minionerec.item_json(items, range(len(items)))
    folder = sidreasoner.Folder(
        args.name, args.csv_name or args.name, args.data_source or args.name, item_text, items["raw_id"].to_pylist(), content.users,
        content.texts.titles, content.sids, narratives, content.rows, content.told,
    )  # fmt: skip
    out.counts |= sidreasoner.write_folder(out, folder)


def write_mimigenrec(content: Content, args: ExportArgs, out: Output) -> None:
    """Every file of a MIMIGenRec data folder, and item.json, without which titles of rare items could not come back."""
    texts, name = content.texts, args.name
    with out.replacing(f"{name}/id2sid.json") as temporary:
        write_index(temporary, content.sids.codes_NL, layout="mimigenrec")
    with out.replacing(f"{name}/new_tokens.json") as temporary:
        write_new_tokens(temporary, content.sids.codes_NL)
    out.write_text(f"{name}/item.json", minionerec.item_json(content.items, range(len(content.items))))
    info: dict[str, Any] = {}
    for split, rows in content.rows.items():
        pairs = [(history, target) for _, history, target, _ in rows]
        sft = records.sft_records(pairs, split, texts, tasks=args.tasks)
        rl = records.rl_records(
            pairs, split, texts, source=args.data_source or name, tasks=args.tasks, seq_sample=args.seq_sample,
            seed=args.seed,
        )  # fmt: skip
        for kind, found in (("sft", sft), ("rl", rl)):
            text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
            out.write_text(f"{name}/{kind}/{split}.json", text)
            out.counts[f"{kind}_{split}"] = len(found)
        columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
        info[f"{name}_{split}"] = {"file_name": f"{name}/sft/{split}.json", "columns": columns}
    out.write_text("dataset_info.json", json.dumps(info, indent=2) + "\n")


def write_recbole(content: Content, args: ExportArgs, out: Output) -> None:
    """Every split as atomic files, what RecBole is told of them, and the program that runs it."""
    name = args.name
    fields = ["user_id:token", f"{atomic.HISTORY}:token_seq", "item_id:token", f"{atomic.EXAMPLE}:token"]
    for split, rows in content.rows.items():
        told = ((user, history[-args.max_history :], target, at) for user, history, target, at in rows)
        out.write_text(f"{name}/{name}.{split}.inter", atomic.table_text(fields, told))
    columns = [
        content.items[field].to_pylist() for field in ("item_id", "title", "categories", "brand", "raw_id")
    ]
    # Labels are told apart by commas, as the adapter reads them.
    columns[2] = [", ".join(label.replace(",", " ") for label in path) for path in columns[2]]
    fields = ["item_id:token", "title:token_seq", "categories:token_seq", "brand:token", "source_id:token"]
    out.write_text(f"{name}/{name}.item", atomic.table_text(fields, zip(*columns, strict=True)))
    users = enumerate(content.users)
    out.write_text(f"{name}/{name}.user", atomic.table_text(["user_id:token", "source_id:token"], users))
    lengths = [len(history) for rows in content.rows.values() for _, history, *_ in rows]
    longest = min(max(lengths, default=1), args.max_history)
    out.write_text(f"{name}.yaml", atomic.CONFIG.format(longest=longest))
    out.write_text("topk.py", atomic.SCRIPT.format(name=name, split=args.answered, depth=50))
    out.counts["histories_cut"] = sum(length > args.max_history for length in lengths)


def write_navigen(content: Content, args: ExportArgs, out: Output) -> None:
    """The catalogue, and the four tables of every split."""
    cids = [navigen.CID.text(codes) for codes in content.sids.codes_NL.tolist()]
    terms = read_tids(args.tids, num_items=len(cids)).terms
    items = navigen.CidItems(content.items["raw_id"].to_pylist(), cids, terms)
    for directory in (args.tids, *args.reasoning):
        require_same_data(directory, args.data, again="scripts/05_generate_tids.sh and stage 06")
    own = {key: (split, target) for split, rows in content.rows.items() for _, _, target, key in rows}
    told: dict[str, dict[int, str]] = {kind: {} for kind in KINDS}
    for directory in args.reasoning:
        for row in read_reasoning(directory, num_items=len(cids)).to_pylist():
            # A text of a foreign file has a place in it for a key, and no target: it is of no row here.
            if row["status"] in WITH_TEXT and own.get(row["key"]) == (row["split"], row["target"]):
                told[row["kind"]][row["key"]] = row["text"]
    out.counts |= {f"texts_{kind}": len(texts) for kind, texts in told.items() if texts}

    def text(kind: str, key: int) -> str | None:
        return rendered(told[kind][key], cids.__getitem__) if key in told[kind] else None

    tables = items.tables(seed=args.seed)
    for split, rows in content.rows.items():
        taught = [
            navigen.TaughtRow(content.users[user], history, target, *(text(kind, key) for kind in KINDS))
            for user, history, target, key in rows
        ]
        tables |= navigen.row_tables(taught, items, split, name=args.name, target_type=args.target_type)
    for name, table in tables.items():
        out.write_table(f"{name}.parquet", table)
        out.counts[name] = table.num_rows
    if args.predictions:
        source = f"{args.name}_test_cid2cid"
        lines = navigen_lines(content, cids, source, args.predictions)
        out.write_text(f"hist_cid2cid_predictions.{source}.jsonl", "".join(f"{line}\n" for line in lines))


def navigen_lines(content: Content, cids: list[str], source: str, directory: str) -> list[str]:
    """A line for every test row that the predictions answer, in the order of the rows."""
    found, manifest = read_predictions(directory)
    if found.codes_EL is None:
        raise InputError(f"{directory} ranks items, not semantic IDs -> predictions of infer.recommend")
    refuse_other_sids(manifest["facts"], content.sids, where=directory, sids="--sids")
    place = {key: at for at, key in enumerate(found.example_ids_R.tolist())}
    facts = {
        "source_file": f"{source}.parquet", "inference_model_source": "directory", "model_dir": manifest["config"].get("model"),
        "catalog_size": len(set(cids)),
    }  # fmt: skip
    lines = []
    for at, (_, history, target, key) in enumerate(content.rows["test"]):
        if key in place:
            entries = slice(*found.offsets[place[key] : place[key] + 2])
            answers = [navigen.CID.text(codes) for codes in found.codes_EL[entries].tolist()]
            lines.append(
                navigen.prediction_line(at, [cids[i] for i in history], cids[target], answers, facts)
            )
    return lines


WRITERS = {
    "minionerec": write_minionerec, "d3": write_d3, "mimigenrec": write_mimigenrec,
    "sidreasoner": write_sidreasoner, "recbole": write_recbole, "navigen": write_navigen,
}  # fmt: skip


def main(args: ExportArgs) -> None:
    """Read, choose, write, say what has no place there."""
    inputs = {"data": args.data, "sids": args.sids, "embeddings": args.embeddings, "tids": args.tids,
              "reasoning": [Path(one) for one in args.reasoning] or None, "predictions": args.predictions}  # fmt: skip
    with open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        content = read_content(args)
        WRITERS[args.to](content, args, out)
        shared = int((content.sids.group_sizes_S > 1).sum()) if args.to == "mimigenrec" else 0
        out.counts |= {split: len(rows) for split, rows in content.rows.items()} | content.dropped
        if content.sids is not None:
            out.facts |= {"sids_sha256": content.sids.sha256, "sids_of_several_items": shared}
        kept = {"item_id", "raw_id"}
        kept |= {"title", "description", "categories", "brand"} if args.to != "navigen" else set()
        kept |= {"narrative"} if args.to == "sidreasoner" else set()
        untold = "review texts" if args.to == "d3" else "times, ratings, review texts"
        lost = [column for column in content.items.column_names if column not in kept]
        say(f"export: {args.to} has no place for {untold}{''.join(f', {name}' for name in lost)}")
        if args.to == "mimigenrec":
            say(f"export: mimigenrec has no users, and {shared} semantic IDs are of several items")
        for split, count in content.dropped.items():
            if count:
                say(f"export: {split.removesuffix('_rows_left_out')}: {count} rows left out")


if __name__ == "__main__":
    program.run(ExportArgs, main)
