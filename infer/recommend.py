"""Stage 11: trie-constrained recommendations for every example of a split.

reads   a model directory with SID tokens, data/<D>/sids/<name>, data/<D>/examples/<name>/{split}.parquet
writes  <output_dir>/predictions-00000-of-00001.parquet (schema data.artifacts.PREDICTIONS), manifest.json;
        with --mode think or race also thoughts.parquet (schema data.predictions.THOUGHTS)

Several GPUs: under torchrun or `accelerate launch` every process takes a range of the rows and writes its own part. Jobs of
a cluster that know nothing of each other pass --shard 0 --of 8, --shard 1 --of 8, ...; --of 8 alone joins their parts.
A run that was killed goes on where it was. --mode think writes thoughts before the semantic IDs (infer/text/thinking.py), one or
several, and belongs into <model>.<split>.think; --mode race merges what follows them with what the model says without a thought.
--answers title decodes titles of the catalogue under a trie, --answers written grounds a freely written title in it (infer/text/titles.py:
D3, BIGRec); both need --data, whose titles they are, and a model that was taught titles_to_title.
--only_thoughts stops after the thoughts, --thoughts takes those of another output: one set of thoughts for every way of using it.

Differs from the published evaluations: the prompt is the one of training, the whole-vocabulary score has no repetition
penalty, terminators are not scored (decode.repetition_penalty and decode.terminator bring them back), and every answer is a
catalogue item by construction (invalid rate 0).

python -m infer.recommend --model outputs/quickstart/grpo/final --sids data/toystore/sids/rqkmeans \
    --examples data/toystore/examples/rqkmeans --split test --output_dir outputs/quickstart/eval/grpo.test
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from configs import program
from configs.needs import Need, require_needs
from configs.program import InputError, say, warn
from data import artifacts
from data.predictions import THOUGHTS
from data.prompts import MIN_TEXT, ItemTexts
from data.sid import read_sids
from data.store.checkpoints import found_model
from data.store.claim import rank_and_world
from data.store.inputs import fingerprint
from data.store.output import Output, open_output
from infer.engine import DecodeSettings, Engine
from infer.loading import context_length, examples_facts, prompt_bound
from infer.models.retrievers.engines import open_engine
from infer.search.allowed import item_ids
from infer.text.thinking import ThinkSettings, VllmWriter, needs_of_mode
from infer.text.titles import TASK as TITLES
from infer.text.titles import Titles
from infer.work import shards
from infer.work.decoding import (
    first_thoughts,
    keep_room,
    predict,
    predict_behind,
    predict_titles,
    prediction_table,
    selected_rows,
    shortened_rows,
    think,
    thoughts_of,
)

STAGE, VERSION = "recommend", 2
# options of the search for semantic IDs that titles have no use for
OF_SIDS = (
    "decode.score_space", "decode.temperature", "decode.batch_tokens", "decode.terminator", "decode.repetition_penalty",
    "decode.penalise", "decode.length_penalty", "decode.strategy", "decode.seed",
)  # fmt: skip
MODES = ("direct", "empty_think", "think", "race")


@dataclass
class RecommendArgs:
    """Constrained recommendation."""

    model: str
    """model directory with SID tokens (08, 09 or 10 writes one), or a compact generator (train.train_compact); of a training's own directory
    its final/ is taken, else its best or newest complete checkpoint"""
    sids: str
    """SID directory that the model was expanded with"""
    examples: str
    """examples directory; its rows of task history_to_sid are answered"""
    output_dir: str
    """where predictions go, e.g. outputs/<run>/eval/<model>.<split>, with another mode <model>.<split>.<mode>"""
    split: str = "test"
    """train, valid or test"""
    mode: str = "direct"
    """direct, empty_think (behind an empty think block), think (generated thoughts first) or race (think and direct as one list)"""
    answers: Literal["sid", "title", "written"] = "sid"
    """what the model answers with: semantic IDs, titles of the catalogue under a trie, or a title as it writes it, grounded in the nearest ones"""
    data: str | None = None
    """prepared data set whose titles these are, with answers title and written"""
    allowed: str | None = None
    """parquet file with a column item_id: recommend these items only; null = the whole catalogue"""
    max_rows: int | None = None
    """answer a seeded sample of this many rows only; null = all"""
    seed: int = 0
    """of that sample"""
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    """beams, score space, batch size, parity switches"""
    think: ThinkSettings = field(default_factory=ThinkSettings)
    """how thoughts are generated and merged, with modes think and race"""
    thoughts: str | None = None
    """finished output of mode think or race of the same model and rows: its first think.thoughts of every row are taken; null = written"""
    chunk_rows: int = 256
    """rows that are decoded and saved together; a killed run loses at most the chunk it was at"""
    shard: int | None = None
    """decode this shard only (0 to of - 1) and leave the output to be joined"""
    of: int | None = None
    """number of independent shards; without --shard it joins them"""
    only_thoughts: bool = False
    """with modes think and race: write the thoughts and stop; the same command without it goes on"""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; null = a GPU when there is one"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        self.model = found_model(self.model)
        if self.max_rows is not None and self.max_rows < 1 or self.chunk_rows < 1:
            raise InputError(f"max_rows {self.max_rows} and chunk_rows {self.chunk_rows} must be at least 1")
        if self.split not in artifacts.SPLITS:
            raise InputError(f"unknown split {self.split!r} -> one of {', '.join(artifacts.SPLITS)}")
        if self.mode not in MODES:
            raise InputError(f"unknown mode {self.mode!r} -> one of {', '.join(MODES)}")
        if self.answers != "sid" and (self.data is None or self.mode != "direct" or self.allowed is not None):
            raise InputError(f"answers {self.answers} -> with --data, mode direct, and without --allowed")
        if self.only_thoughts and self.of is not None and self.shard is None:
            raise InputError("--of without --shard joins finished shards -> without only_thoughts")
        shards.check_shard(self.shard, self.of)
        if self.thinks and self.think.writer == "vllm" and rank_and_world()[1] > 1:
            raise InputError("vLLM does not run under a launcher here -> start jobs with --shard and --of")
        require_needs(self)

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        return [
            Need(("data",), self.answers != "sid", "answers title or written"),
            Need(OF_SIDS, self.answers == "sid", "answers sid"),
            Need(("only_thoughts", "thoughts"), self.thinks, "mode think or race"),
            *needs_of_mode(self.mode, self.think),
        ]

    @property
    def thinks(self) -> bool:
        """Whether thoughts stand before answers."""
        return self.mode in ("think", "race")


def main(args: RecommendArgs) -> None:
    # Who does the work is no part of what is made.
    made = replace(args, shard=None, of=None, only_thoughts=False)
    inputs = {
        name: getattr(args, name) for name in ("model", "sids", "examples", "allowed", "thoughts", "data")
    }
    opened = open_output(made, STAGE, version=VERSION, inputs=inputs)
    if args.shard is not None:
        out = shards.claim_shared(args.output_dir, opened)
        decode(args, out, plan_of(args))
        what = "thoughts of shard" if args.only_thoughts else "shard"
        say(f"recommend: {what} {args.shard} of {args.of} of {args.output_dir} done")
        return
    with shards.unfinished(), opened as out:
        plan = plan_of(args)
        if args.of is not None:
            shards.require_shards(out, plan)
            facts = settings_facts(args)
        else:
            facts = decode(args, out, plan)
        if args.only_thoughts:
            say(f"recommend: thoughts of {args.output_dir} are written; run again without --only_thoughts")
            raise shards.Left
        if out.leads:
            shards.wait_for_shards(out, plan)
            conclude(args, out, plan, facts)


def plan_of(args: RecommendArgs) -> shards.Plan:
    """Which rows, in which chunks, and which of them are ours."""
    task = artifacts.read_split(args.examples, args.split, columns=["task"])["task"]
    rows = selected_rows(
        task, max_rows=args.max_rows, seed=args.seed, where=f"{args.split} of {args.examples}"
    )
    rank, world = rank_and_world()
    if args.of is not None:
        return shards.Plan(rows, args.chunk_rows, args.shard or 0, args.of)
    return shards.Plan(rows, args.chunk_rows, rank, world)


def decode(args: RecommendArgs, out: Output, plan: shards.Plan) -> dict[str, Any]:
    """The chunks and the part of one shard; the facts of what made them."""
    # vLLM holds a model of its own: ours reaches the GPU when vLLM has left it.
    apart = args.thinks and args.think.writer == "vllm" and args.thoughts is None
    engine = load(args, device="cpu" if apart else args.device)
    titles = read_titles(args, engine)
    if titles is None and (cut := shortened_rows(engine, args.examples, args.split, plan.rows_N)):
        tokens, items = engine.renderer.max_prompt, engine.histories.most_items()
        room = (
            f"than the model reads ({items} items)"
            if tokens is None
            else f"than the prompt may be ({tokens} tokens)"
        )
        warn(f"{cut} of {len(plan.rows_N)} histories are longer {room}: they lose their oldest items")
        out.counts["shortened_histories"] = cut
    thought = []
    if args.thinks:
        thought = [write_thoughts(args, out, plan, engine)]
        if args.only_thoughts:
            return {}
        engine = load(args, device=args.device) if apart else engine
    allowed = read_allowed_file(args.allowed, engine.sids.num_items)
    trie = None if allowed is None else engine.catalogues.stacked([allowed])

    def beams(chunk: int, examples: pa.Table) -> pa.Table:
        if titles is not None:
            return predict_titles(engine, examples, titles, how=args.answers)
        if args.thinks:
            path = shards.chunk_path(out, shards.THOUGHTS, chunk)
            found = predict_behind(engine, examples, artifacts.read_file(path), where=str(path), trie=trie)
        else:
            found = predict(engine, examples, trie=trie)
        return prediction_table(*found, engine.sids, allowed=allowed)

    made = shards.work(
        out,
        plan,
        artifacts.split_files(args.examples, args.split),
        shards.PREDICTIONS,
        beams,
        show=program.progress,
    )
    if titles is not None and (cut := engine.renderer.shortened[TITLES]):
        warn(
            f"{cut} histories lost their oldest items: before the longest title a prompt may have {engine.renderer.max_prompt} tokens"
        )
    shards.write_part(out, plan, [*thought, made])
    return settings_facts(args)


def load(args: RecommendArgs, *, device: str | None) -> Engine:
    return open_engine(
        args.model, args.sids, args.examples, args.decode, device=device, mode=args.mode, think=args.think
    )


def read_titles(args: RecommendArgs, engine: Engine) -> Titles | None:
    """The titles that training had, with answers title and written, said how many items have none, and room for the longest behind the prompts.

    InputError for a model without text.
    """
    if args.answers == "sid":
        return None
    if type(engine) is not Engine:
        raise InputError(f"{args.model} writes no text -> answers sid")
    items = artifacts.read_items(args.data)
    if items.num_rows != engine.sids.num_items:
        raise InputError(
            f"{args.data} has {items.num_rows} items, {args.sids} {engine.sids.num_items} -> their data set"
        )
    facts = examples_facts(args.examples, engine.sids, args.sids)
    shown = ItemTexts.read(
        items["title"].to_pylist(), "title", longest=facts.get("max_title"), shortest=facts.get("min_title", MIN_TEXT)
    ).shown  # fmt: skip
    titles = Titles(shown, engine.renderer)
    if titles.untitled:
        warn(f"{titles.untitled} items have no title that training could show: they are never recommended")
    told = f"the longest title takes {titles.longest}"
    smaller = "examples of a smaller max_title"
    keep_room(engine, titles.longest, chosen=args.decode.max_prompt, told=told, smaller=smaller)
    return titles


def write_thoughts(args: RecommendArgs, out: Output, plan: shards.Plan, engine: Engine) -> tuple[int, float]:
    """Step 1 of mode think: the chunks of thoughts of one shard; (rows made now, seconds)."""
    chunks = plan.chunks(plan.shard)
    if all(shards.chunk_path(out, shards.THOUGHTS, chunk).exists() for chunk in chunks):
        return 0, 0.0
    writer: Any = engine.writer
    if args.thoughts is not None:
        given = thoughts_of(args.thoughts, made_as=settings_facts(args))
        make = partial(first_thoughts, given, count=args.think.thoughts, where=args.thoughts)
        shards.work(
            out,
            plan,
            artifacts.split_files(args.examples, args.split),
            shards.THOUGHTS,
            lambda _, rows: make(rows),
            show=program.progress,
        )
        return 0, 0.0
    if args.think.writer == "vllm":
        context = context_length(engine.model.config) or args.think.max_tokens * 4
        writer = VllmWriter(args.model, engine.renderer, args.think, context=context)
    try:
        return shards.work(
            out, plan, artifacts.split_files(args.examples, args.split), shards.THOUGHTS,
            lambda _, examples: think(engine, writer, examples), show=program.progress,
        )  # fmt: skip
    finally:
        writer.close()


def read_allowed_file(path: str | None, num_items: int) -> np.ndarray | None:
    """The items that may be recommended as a mask bool [N]."""
    if path is None:
        return None
    table = artifacts.read_file(Path(path))
    if "item_id" not in table.column_names or not table.num_rows:
        raise InputError(
            f"{path} has no rows with a column item_id -> list the items that may be recommended"
        )
    mask = np.zeros(num_items, bool)
    mask[item_ids(table["item_id"].to_pylist(), num_items, str(path))] = True
    return mask


def settings_facts(args: RecommendArgs) -> dict[str, Any]:
    """Every setting that decides what is generated, for the manifest and, through it, metrics.json."""
    path = Path(args.model)
    facts = {
        "split": args.split,
        "mode": args.mode,
        "model": path.parent.name if path.name == "final" else path.name,
        "model_hash": fingerprint(args.model),
        "fitted_on": "train",
        "sids_sha256": read_sids(args.sids).sha256,
        "sid_format": examples_facts(args.examples, read_sids(args.sids), args.sids)["format"],
        "max_rows": args.max_rows,
        "allowed": args.allowed,
        "decode_seed": args.decode.seed,
    } | ({"answers": args.answers} if args.answers != "sid" else {})
    facts |= {key: value for key, value in asdict(args.decode).items() if key != "seed"}
    # A shorter list has everything that may be recommended: it is complete up to the number of beams.
    facts |= {"depth": args.decode.beams, "max_prompt": prompt_bound(args.model, args.decode.max_prompt)}
    if args.thinks:
        facts |= {f"think_{key}": value for key, value in asdict(args.think).items()}
    return facts


def conclude(args: RecommendArgs, out: Output, plan: shards.Plan, facts: dict[str, Any]) -> None:
    """Join what the shards made and fill the manifest."""
    joined = {shards.THOUGHTS: pa.schema(list(THOUGHTS.required.items()))} if args.thinks else {}
    summed = shards.finish(out, plan, joined=joined)
    out.counts |= {"examples": len(plan.rows_N), "predictions": summed["predictions"]}
    out.facts |= facts | {"users_per_second": summed["users_per_second"]}
    if args.thinks:
        finished = artifacts.read_file(out.path / THOUGHTS.file, columns=["finished"])["finished"].to_numpy()
        out.counts |= {"thoughts": len(finished), "forced_close": int((~finished).sum())}
        out.facts |= {"unfinished_thought_rate": round(float((~finished).mean()), 6)}


if __name__ == "__main__":
    program.run(RecommendArgs, main)
