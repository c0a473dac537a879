"""Stage 07: make the training and evaluation examples, once, and write them to disk.

    python -m preprocess.build_examples --config configs/toy/examples.yaml \\
        --data data/toystore --sids data/toystore/sids/rqkmeans --output_dir data/toystore/examples/rqkmeans

reads   <data>/  items.parquet, sequences.parquet      <sids>/  sids.parquet
        <tids>/  tids.parquet (stage 05)  <reasoning>/  reasoning.parquet (stage 06), for the tasks of dual identifiers
writes  <output_dir>/  train.parquet, valid.parquet, test.parquet; with --held_out_items also held_out.parquet
        with --rows_per_file a split of more rows in parts: train-00000-of-00008.parquet, ...

train holds the tasks that are asked for, one row per train sequence or item and task (train/README.md lists them); valid and
test hold history_to_sid rows, and history_to_tid and history_to_instruction where train has them; where train has no history_to_sid, valid
holds rows of its other history tasks too, whose loss can choose a checkpoint. Item tasks cover the whole catalogue, items without train rows included: a title is metadata
that a shop has before the first purchase, not an interaction.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs import program
from configs.needs import Need, require_needs
from configs.program import InputError
from data import artifacts
from data.prompts import MIN_TEXT, ItemTexts, wording
from data.sid import read_sids, sid_format
from data.signals import Signals, environment_words, item_words, user_words, write_signals
from data.store.lineage import require_same_data
from data.store.output import Output, open_output
from data.store.parquet import PARQUET
from data.tasks import ITEM_TASKS, PREFERENCE_TASKS, TaskContext
from data.tids import read_tids
from preprocess.examples.corpora import Converted, Corpus, convert, read_registry
from preprocess.examples.mixture import (
    ExampleSources,
    SplitPlan,
    TaskMixture,
    category_texts,
    check_shares,
    plan_held_out,
    plan_split,
)
from preprocess.examples.preferences import read_preferences
from preprocess.examples.rows import check_belong, row_keys, schema, tables, text_kind
from preprocess.examples.taught import item_narratives, read_taught, with_narratives

STAGE, VERSION = "build_examples", 1
HELD_OUT = "held_out"
CHATS = "task chat, registry and corpora belong together -> give all or none"
Task = Literal[
    "history_to_sid", "sid_to_title", "title_to_sid", "description_to_sid", "history_to_title", "titles_to_sid",
    "titles_to_title", "history_to_description", "item_narrative", "sequence_narrative", "reason_then_sid", "chat",
    "preference_to_sid", "sid_to_tid", "tid_to_sid", "history_to_tid", "history_to_instruction",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MaxRows:
    """At most this many sequences of each split; null = all."""

    train: int | None = None
    """train sequences"""
    valid: int | None = None
    """valid sequences"""
    test: int | None = None
    """test sequences"""

    def __post_init__(self) -> None:
        for split in artifacts.SPLITS:
            limit = getattr(self, split)
            if limit is not None and limit < 1:
                raise InputError(f"max_rows.{split} is {limit} -> at least 1, or null for all rows")


@dataclass(frozen=True, kw_only=True)
class BuildExamplesArgs:
    """Arguments of preprocess.build_examples."""

    data: str
    """prepared data set (stage 01)"""
    sids: str
    """semantic IDs of its items (stage 04)"""
    output_dir: str
    """where the examples go"""
    tasks: list[Task] | dict[Task, float] = field(
        default_factory=lambda: ["history_to_sid", "sid_to_title", "title_to_sid"]
    )
    """tasks of the train split; as a mapping, each with the share of its rows that is kept (1 = all), a seeded sample"""
    caps: dict[str, int] = field(default_factory=dict)
    """most rows of a task, by its name; a seeded sample"""
    wording: str = "short"
    """named set of templates of data/prompts.py: short, bare, codes, turn, sentence, minionerec or navigen"""
    frame: Literal["chat", "alpaca", "plain"] = "chat"
    """how a prompt is laid out: the model's chat template, Alpaca's headings, or plain lines"""
    category: str = "items"
    """what the shop sells, where a wording says it: office products"""
    format: Literal["letters", "navigen"] = "letters"
    """how semantic IDs are written; must be that of the model's vocabulary (stage 08)"""
    max_history: int | None = None
    """keep only this many newest items of a history; null = all"""
    max_title: int | None = None
    """items with a longer title (characters) get no item task; null = no limit"""
    max_description: int | None = None
    """descriptions longer than this (characters) are in no task; null = no limit"""
    max_rows: MaxRows = field(default_factory=MaxRows)
    """at most this many sequences per split, a seeded sample; item tasks are not sampled"""
    held_out_items: float = 0.0
    """share of the semantic IDs whose items are in no item task of train but in held_out.parquet: train.sft --item_loss_rows"""
    deduplicate: bool = False
    """leave out train sequences that repeat an earlier one as semantic IDs"""
    signals: list[Literal["user", "user_bucket", "environment", "item_type"]] = field(default_factory=list)
    """tokens in the prompt besides items (data/signals.py); stage 08 adds them: --add_tokens_list <examples>/signals.json"""
    user_buckets: int = 2000
    """tokens that the users share with signal user_bucket"""
    environment_column: str | None = None
    """column of sequences.parquet behind the signal environment"""
    value_weights: bool = False
    """weigh sequences by the value of their target (price and train rows), mean 1"""
    preferences: str | None = None
    """what customers prefer, for reason_then_sid and preference_to_sid: a file of MiniOneRec's (preprocess/examples/preferences.py), or texts
    of kind preference (preprocess.enrich_histories)"""
    tids: str | None = None
    """textual identifiers of the items (stage 05), for sid_to_tid, tid_to_sid, history_to_tid and history_to_instruction"""
    reasoning: list[str] = field(default_factory=list)
    """texts of a teacher (stage 06), a directory per kind: thoughts of history tasks, narratives and instructions
    (preprocess/examples/taught.py); or the data set itself, where a published folder brought texts with its rows"""
    only_taught: bool = False
    """leave out train rows for which a teacher's texts of the task's kind were read (thoughts, narratives), but none is theirs"""
    registry: str | None = None
    """file that names conversations and instructions of others (preprocess/examples/corpora.py), for chat"""
    corpora: list[str] = field(default_factory=list)
    """which of them"""
    ages: bool = False
    """a column with the days between history items, for models with time tokens (train.train_compact --model.gaps)"""
    rows_per_file: int | None = None
    """rows of a file, above which a split is written in parts; null = one file per split, whatever its size"""
    seed: int = 0
    """decides all samples"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        wording(self.wording_name)
        if isinstance(self.tasks, list) and len(set(self.tasks)) < len(self.tasks):
            raise InputError(f"tasks {self.tasks} -> name each only once")
        check_shares(self.shares, self.caps)
        for name in ("max_history", "max_title", "max_description", "rows_per_file"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise InputError(f"{name} is {limit} -> at least 1, or null for no limit")
        if not 0 <= self.held_out_items < 1:
            raise InputError(f"held_out_items is {self.held_out_items} -> a share below 1, or 0 for none")
        if self.held_out_items and not set(self.shares) & set(ITEM_TASKS):
            raise InputError(
                f"held_out_items holds back item tasks ({', '.join(ITEM_TASKS)}) -> add one, or 0"
            )
        if self.user_buckets < 1:
            raise InputError(f"user_buckets is {self.user_buckets} -> at least 1")
        if ("environment" in self.signals) != (self.environment_column is not None):
            raise InputError("signal environment and environment_column belong together -> give both or none")
        if bool(set(self.shares) & set(PREFERENCE_TASKS)) != (self.preferences is not None):
            raise InputError(
                f"preferences and a task of {', '.join(PREFERENCE_TASKS)} belong together -> give both or none"
            )
        if self.tids is not None and not self.of_tids:
            raise InputError(
                f"tids are for none of the tasks {list(self.shares)} -> leave them out, or add a task"
            )
        if bool(self.registry) != bool(self.corpora) or (self.registry and "chat" not in self.shares):
            raise InputError(CHATS)
        require_needs(self)

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        return [
            Need(("user_buckets",), "user_bucket" in self.signals, "signal user_bucket"),
        ]

    @property
    def shares(self) -> dict[str, float]:
        """The share of each task."""
        return self.tasks if isinstance(self.tasks, dict) else dict.fromkeys(self.tasks, 1.0)

    @property
    def of_tids(self) -> list[str]:
        """The tasks that read terms."""
        return [task for task in self.shares if text_kind(task) == "tid"]

    @property
    def wording_name(self) -> str:
        """The wording with its frame, as `data.prompts.wording` takes it."""
        return self.wording if self.frame == "chat" else f"{self.frame}:{self.wording}"

    @property
    def mixture(self) -> TaskMixture:
        return TaskMixture(
            shares=self.shares,
            caps=self.caps,
            max_rows=vars(self.max_rows),
            max_history=self.max_history,
            held_out=self.held_out_items,
            deduplicate=self.deduplicate,
            only_taught=self.only_taught,
            environment=self.environment_column,
            values=self.value_weights,
            seed=self.seed,
        )


def main(args: BuildExamplesArgs) -> None:
    corpora = read_registry(args.registry, args.corpora) if args.registry else []
    context, sources = read_sources(args, corpora)
    plans = {split: plan_split(split, context, sources, args.mixture) for split in artifacts.SPLITS}
    if args.held_out_items:
        plans[HELD_OUT] = plan_held_out(context, sources, args.mixture)
    inputs = {
        "data": args.data,
        "sids": args.sids,
        "preferences": args.preferences,
        "registry": args.registry,
    }
    inputs |= {f"corpus {corpus.name}": str(corpus.path) for corpus in corpora}
    # Absent where they are not asked for: an output that was made before there were such tasks stays as it is.
    inputs |= {"tids": args.tids} if args.tids else {}
    inputs |= {f"reasoning {number}": directory for number, directory in enumerate(args.reasoning)}
    with open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        for split, plan in plans.items():
            write_split(out, split, plan, ages=args.ages, rows_per_file=args.rows_per_file)
            out.counts[split] = plan.total
        if context.signals is not None:
            write_signals(out, context.signals)
        out.counts["tasks"] = {split: dict(plan.by_task) for split, plan in plans.items()}
        out.counts["skipped"] = {split: plan.skipped for split, plan in plans.items()}
        if args.reasoning:
            out.counts["taught"] = {kind: len(texts) for kind, texts in sources.taught.texts.items()}
            out.counts["taught_left_out"] = sources.taught.left_out
        out.facts |= {
            "sids_sha256": context.sids.sha256,
            "wording": args.wording_name,
            "format": args.format,
            "tasks": list(args.shares),
            "category": args.category,
            "min_title": MIN_TEXT,
            "max_title": args.max_title,
        }


def read_sources(args: BuildExamplesArgs, corpora: list[Corpus]) -> tuple[TaskContext, ExampleSources]:
    """Everything that examples are made of, read and checked against each other."""
    if args.of_tids and args.tids is None:  # a recipe does not name them, so parsing cannot ask for them
        raise InputError(
            f"tasks {args.of_tids} need textual identifiers -> --tids, of scripts/05_generate_tids.sh"
        )
    if "chat" in args.shares and not corpora:
        raise InputError(CHATS)
    if args.only_taught and not args.reasoning:  # recipes name neither, so parsing cannot ask for them
        raise InputError("only_taught keeps what a teacher wrote about -> --reasoning, of stage 06")
    items, sids = artifacts.read_items(args.data), read_sids(args.sids)
    check_belong(args.data, args.sids, num_items=len(items), num_sids=sids.num_items)
    table = artifacts.read_sequences(args.data, num_items=sids.num_items)
    titles = ItemTexts.read(items["title"].to_pylist(), "title", longest=args.max_title)
    descriptions = ItemTexts.read(
        items["description"].to_pylist(), "description", longest=args.max_description
    )
    brands, categories = (
        ItemTexts.read(column, kind).shown
        for column, kind in ((items["brand"].to_pylist(), "brand"), (category_texts(items), "category"))
    )
    terms = read_tids(args.tids, num_items=sids.num_items).terms if args.tids else []
    context = TaskContext(
        sids, sid_format(args.format), wording(args.wording_name), titles.shown, descriptions.shown, brands, categories,
        args.category, read_signal_words(args, items, table) if args.signals else None, terms,
        item_narratives(items, data=args.data),
    )  # fmt: skip
    sources = ExampleSources(
        sids, items, table, titles, descriptions, tids=ItemTexts.of_terms(terms),
        ages_of=args.data if args.ages else None,
    )  # fmt: skip
    found = ([], {})
    if args.preferences:
        raw_ids = items["raw_id"].to_pylist()
        found = read_preferences(args.preferences, context, sources.sequences, raw_ids)
    made = Converted()
    if corpora:
        held = np.flatnonzero(sources.sequences.split != "train")
        made = convert(corpora, context, set(row_keys(sources.sequences, held, sids)))
    taught_preferences = args.preferences if args.preferences and Path(args.preferences).is_dir() else None
    for directory in filter(None, (args.tids, taught_preferences, *args.reasoning)):
        if Path(directory).resolve() != Path(args.data).resolve():
            require_same_data(directory, args.data, again="scripts/05_generate_tids.sh and stage 06")
    taught = read_taught(args.reasoning, context, sources.sequences)
    if "item" in taught.texts:
        told = context.narratives or [""] * sids.num_items
        context = replace(context, narratives=with_narratives(told, taught))
    return context, replace(sources, preferences=found, corpora=made, taught=taught)


def read_signal_words(args: BuildExamplesArgs, items: pa.Table, table: pa.Table) -> Signals:
    """The signals that the data set has words for."""
    users = user_words(artifacts.read(args.data, artifacts.INTERACTIONS)) if "user" in args.signals else {}
    moments = set(environment_words(table, args.environment_column)) if args.environment_column else set()
    types = item_words(items) if "item_type" in args.signals else ()
    buckets = args.user_buckets if "user_bucket" in args.signals else 0
    return Signals(users, tuple(sorted(moments - {"unknown"})), types, buckets)


def write_split(
    out: Output, split: str, plan: SplitPlan, *, ages: bool, rows_per_file: int | None = None
) -> None:
    """Write <split>.parquet or its parts, a row group per chunk."""
    examples = program.progress(chain(*plan.parts), label=f"{split} examples", total=plan.total)
    rows = iter(examples)
    parts = 1 if rows_per_file is None else max(1, -(-plan.total // rows_per_file))
    for part in range(parts):
        name = f"{split}.parquet" if parts == 1 else artifacts.part_name(split, part, parts)
        own = rows if part == parts - 1 else islice(rows, rows_per_file)
        with (
            out.replacing(name) as temporary,
            pq.ParquetWriter(temporary, schema(ages=ages), **PARQUET) as writer,
        ):
            for table in tables(own, ages=ages):
                writer.write_table(table)


if __name__ == "__main__":
    program.run(BuildExamplesArgs, main)
