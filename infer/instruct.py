"""Stage 12: the next item's terms and an instruction for a picture or a video of it, for every history of a split.

reads   a model directory with SID tokens, data/<D>/{sids,tids}/<name>, data/<D>/examples/<name>/{split}.parquet (its rows of task
        history_to_instruction)
writes  <output_dir>/instructions.parquet (schema data.artifacts.INSTRUCTIONS), instructions.jsonl (the same, a row a line),
        manifest.json

direct_json_prefix answers at once behind `{"target_tid":["`, two_stage writes a thought first: every row stops by itself, a thought
that does not end is closed by force and counted. With `constrained` (the default) the terms are a TID of the catalogue and the
answer is valid JSON, whatever the model is; without, the model's own text is read, strictly or repaired, and each row says which.
Several processes and jobs share the rows as those of infer.recommend do; a run that was killed goes on where it was.

Differs from NaviGen: no row overruns its thought, `constrained` says what was enforced, several thoughts of a row count together,
all rows are answered unless `max_rows` says otherwise. How good the answers are: infer.grade. The next item itself: infer.recommend.

python -m infer.instruct --model outputs/quickstart/sft_dual/final --sids data/toystore/sids/rqkmeans \\
    --tids data/toystore/tids/keywords --examples data/toystore/examples/dual --output_dir outputs/quickstart/instructions/sft_dual.test
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from configs import program
from configs.program import InputError, say
from data import artifacts
from data.answers import BETWEEN, INSTRUCTION_TASK
from data.sid import read_sids
from data.store.checkpoints import found_model
from data.store.claim import rank_and_world
from data.store.inputs import fingerprint
from data.store.lineage import require_common_data
from data.store.output import Output, open_output
from data.tids import read_tids
from infer.engine import DecodeSettings, load_engine
from infer.text.generate import TextSettings
from infer.text.thinking import ThinkSettings
from infer.work import shards
from infer.work.decoding import selected_rows

STAGE, VERSION = "instruct", 1
FILE, LINES = artifacts.INSTRUCTIONS.file, "instructions.jsonl"


@dataclass
class InstructArgs:
    """Instructions for the users of a split."""

    model: str
    """model directory with SID tokens that was trained on history_to_instruction; of a training's own directory its final/, or best checkpoint"""
    sids: str
    """SID directory that the model was expanded with"""
    tids: str
    """TID directory (stage 05): the catalogue of terms"""
    examples: str
    """examples directory; its rows of task history_to_instruction are answered"""
    output_dir: str
    """where instructions go, e.g. outputs/<run>/instructions/<model>.<split>"""
    split: str = "test"
    """train, valid or test"""
    mode: Literal["direct_json_prefix", "two_stage"] = "direct_json_prefix"
    """answer at once, or behind a generated thought"""
    constrained: bool = True
    """terms of the catalogue and valid JSON; false: whatever the model writes"""
    beams: int = 10
    """TIDs searched behind each thought, of which the best is taken; 1 is greedy"""
    text: TextSettings = field(default_factory=lambda: TextSettings(max_new_tokens=192))
    """how instructions are written; without constraints the terms are part of this length"""
    think: ThinkSettings = field(default_factory=ThinkSettings)
    """how thoughts are written and counted together, with mode two_stage"""
    max_prompt: int | None = None
    """longest prompt in tokens; a longer history loses its oldest items; null = as the model was trained, or has room for"""
    batch_size: int = 64
    """most prompts per search"""
    max_rows: int | None = None
    """answer a seeded sample of this many rows only; null = all"""
    seed: int = 0
    """of that sample"""
    chunk_rows: int = 256
    """rows that are answered and saved together; a killed run loses at most the chunk it was at"""
    shard: int | None = None
    """answer this shard only (0 to of - 1) and leave the output to be joined"""
    of: int | None = None
    """number of independent shards; without --shard it joins them"""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; null = a GPU when there is one"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        self.model = found_model(self.model)
        if self.max_rows is not None and self.max_rows < 1 or min(self.chunk_rows, self.beams) < 1:
            raise InputError(
                f"max_rows {self.max_rows}, chunk_rows {self.chunk_rows}, beams {self.beams} must be at least 1"
            )
        if self.split not in artifacts.SPLITS:
            raise InputError(f"unknown split {self.split!r} -> one of {', '.join(artifacts.SPLITS)}")
        if self.text.samples > 1 or self.text.beams > 1:
            raise InputError("a row has one instruction -> text.samples 1 and text.beams 1")
        if self.think.writer != "transformers":
            raise InputError(f"think.writer {self.think.writer} holds no model for the terms -> transformers")
        shards.check_shard(self.shard, self.of)

    def not_chosen(self) -> set[str]:
        """Options of thoughts, where nothing thinks; of the search, where nothing is searched."""
        unread = set() if self.mode == "two_stage" else {"think"}
        return unread if self.constrained else unread | {"beams"}


def main(args: InstructArgs) -> None:
    made = replace(args, shard=None, of=None)  # who does the work is no part of what is made
    inputs = {name: getattr(args, name) for name in ("model", "sids", "tids", "examples")}
    opened = open_output(made, STAGE, version=VERSION, inputs=inputs)
    if args.shard is not None:
        answer(args, shards.claim_shared(args.output_dir, opened), plan_of(args))
        say(f"instruct: shard {args.shard} of {args.of} of {args.output_dir} done")
        return
    with opened as out:
        plan = plan_of(args)
        if args.of is not None:
            shards.require_shards(out, plan)
        else:
            answer(args, out, plan)
        if out.leads:
            shards.wait_for_shards(out, plan)
            conclude(args, out, plan)


def plan_of(args: InstructArgs) -> shards.Plan:
    """Which rows, in which chunks, and which of them are ours."""
    task = artifacts.read_split(args.examples, args.split, columns=["task"])["task"]
    rows = selected_rows(
        task,
        max_rows=args.max_rows,
        seed=args.seed,
        where=f"{args.split} of {args.examples}",
        wanted=INSTRUCTION_TASK,
    )
    rank, world = rank_and_world()
    if args.of is not None:
        return shards.Plan(rows, args.chunk_rows, args.shard or 0, args.of)
    return shards.Plan(rows, args.chunk_rows, rank, world)


def answer(args: InstructArgs, out: Output, plan: shards.Plan) -> None:
    """The chunks of one shard."""
    from infer.text.tids import TidTrie
    from infer.work.instructing import instruct, make_room

    decode = DecodeSettings(beams=1, max_prompt=args.max_prompt, batch_size=args.batch_size)
    mode = "think" if args.mode == "two_stage" else "direct"
    engine = load_engine(
        args.model, args.sids, args.examples, decode, device=args.device, mode=mode, think=args.think
    )
    require_common_data(args.sids, args.tids, again="scripts/05_generate_tids.sh")
    tids = read_tids(args.tids, num_items=engine.sids.num_items)
    trie = TidTrie(tids, engine.renderer.tokenizer, ending=BETWEEN)
    make_room(engine, trie, longest_text=args.text.max_new_tokens, chosen=args.max_prompt)
    work = shards.work(
        out, plan, artifacts.split_files(args.examples, args.split), shards.INSTRUCTIONS,
        lambda _, examples: instruct(
            engine, trie, examples, text=args.text, beams=args.beams, constrained=args.constrained
        ),
        show=program.progress,
    )  # fmt: skip
    shards.mark_done(out, plan, [work], entries=sum(len(plan.rows(c)) for c in plan.chunks(plan.shard)))


def conclude(args: InstructArgs, out: Output, plan: shards.Plan) -> None:
    """Join what the shards made, write it as lines of JSON too, and fill the manifest."""
    from infer.work.instructing import SCHEMA

    summed = shards.finish(out, plan, joined={shards.INSTRUCTIONS: SCHEMA})
    table = artifacts.read_file(out.path / FILE)
    with out.replacing(LINES) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for batch in table.to_batches(max_chunksize=4096):
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())
    statuses = Counter(table["status"].to_pylist())
    closed = sum(table["forced_close"].to_pylist())
    out.counts |= {"rows": table.num_rows, "forced_close": closed} | dict(statuses)
    out.facts |= facts(args) | {"users_per_second": summed["users_per_second"]}
    say(f"instruct: {table.num_rows:,} rows: {dict(statuses)}, {closed} thoughts closed by force")


def facts(args: InstructArgs) -> dict[str, Any]:
    """What decides the answers, for whoever grades them."""
    path = Path(args.model)
    return {
        "split": args.split,
        "mode": args.mode,
        "constrained": args.constrained,
        "model": path.parent.name if path.name == "final" else path.name,
        "model_hash": fingerprint(args.model),
        "sids_sha256": read_sids(args.sids).sha256,
        "max_rows": args.max_rows,
    }


if __name__ == "__main__":
    program.run(InstructArgs, main)
