"""A prepared data set and its semantic IDs as the folder of another system.

reads   a prepared data set (stage 01), a SID directory, for minionerec also embeddings
writes  --to minionerec   {D}.item.json, {D}.inter.json, {D}.user2id, {D}.item2id, {D}.{train,valid,test}.inter,
                          {D}.index.json, {train,valid,test}/{D}.csv, info/{D}.txt, {D}.emb-<name>-td.npy
        --to d3           {D}.item.json, {D}.item2id, {train,valid,test}/{D}.csv, info/{D}.txt: titles, ratings and times
                          instead of semantic IDs, item numbers shuffled by `seed`
        --to mimigenrec   {D}/id2sid.json, new_tokens.json, sft/*.json, rl/*.json, item.json; dataset_info.json
        --to sidreasoner  {train,valid,test}/{D}.csv, info/{D}.txt, index/{D}.{item.json,index.json,item_enhanced_v2.json,
                          integrated_narrative.csv} with texts where the data set or a teacher (--reasoning) has them, rl/{train,valid}.parquet,
                          {D}.user2id, {D}.item2id
        --to recbole      {D}/{D}.{train,valid,test}.inter, {D}.item, {D}.user, {D}.yaml, topk.py: the windows of every split as
                          atomic files, our numbers as ids, and a program that trains a RecBole model on them and writes its top-k,
                          which infer.import_predictions reads; needs no SIDs
        --to navigen      pid2cid2tid.parquet, {train,valid,test}_{cid2tid,tid2cid,cid2cid,cid2ins,tid2tid}.parquet from SIDs, TIDs and what
                          a teacher wrote; of `predictions` also hist_cid2cid_predictions.{D}_test_cid2cid.jsonl, of
                          `instructions` hist_cid2ins_predictions.{D}_test_cid2ins.jsonl

Stage 01 (adapter minionerec, mimigenrec, sidreasoner, navigen or recbole) reads these folders back. What they have no place for is said: times, ratings,
prices, images, review texts; in mimigenrec also users, and which of several items a shared semantic ID means.

python -m data.export --to minionerec --data data/industrial --sids data/industrial/sids/rqkmeans \\
    --name Industrial --output_dir outputs/export/minionerec
python -m data.export --to recbole --data data/industrial --output_dir outputs/export/recbole
"""

from __future__ import annotations

from pathlib import Path

from configs import program
from configs.program import say
from data.releases.writers import folders
from data.releases.writers.content import read_content
from data.releases.writers.navigen import write_navigen
from data.releases.writers.options import ExportArgs
from data.store.output import open_output

STAGE, VERSION = "export", 1
WRITERS = {
    "minionerec": folders.write_minionerec, "d3": folders.write_d3, "mimigenrec": folders.write_mimigenrec,
    "sidreasoner": folders.write_sidreasoner, "recbole": folders.write_recbole, "navigen": write_navigen,
}  # fmt: skip


def main(args: ExportArgs) -> None:
    """Read, choose, write, say what has no place there."""
    inputs = {"data": args.data, "sids": args.sids, "embeddings": args.embeddings, "tids": args.tids,
              "reasoning": [Path(one) for one in args.reasoning] or None, "predictions": args.predictions}  # fmt: skip
    # Absent where they are not asked for: an export that was made before there was such an option stays as it is.
    inputs |= {"instructions": args.instructions} if args.instructions else {}
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
