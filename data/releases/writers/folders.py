"""The files of MiniOneRec, D3, SIDReasoner, MIMIGenRec and RecBole, from the content of a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from configs.program import InputError
from data import artifacts
from data.reasoning import OF_ITEMS, column_texts
from data.releases import atomic, d3, minionerec, records, sidreasoner
from data.releases.index import write_index, write_new_tokens
from data.releases.writers.content import Content, taught_texts
from data.releases.writers.options import ExportArgs
from data.store.output import Output


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
    told = sidreasoner.with_taught(
        narratives, content.told, taught_texts(content, args, OF_ITEMS), num_items=len(items)
    )
    item_text = minionerec.item_json(items, range(len(items)))
    folder = sidreasoner.Folder(
        args.name, args.csv_name or args.name, args.data_source or args.name, item_text, items["raw_id"].to_pylist(), content.users,
        content.texts.titles, content.sids, told[0], content.rows, told[1],
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
