"""What each split of the examples holds: which tasks, how many rows of each, and what is left out for which reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa

from configs.program import InputError
from data import artifacts
from data.prompts import ItemTexts
from data.rows import sample_rows
from data.sid import SidTable
from data.signals import environment_words, item_values
from data.tasks import ITEM_TASKS, PREFERENCE_TASKS, TASKS, WINDOW_TASKS, Example, TaskContext
from preprocess.examples.corpora import Converted
from preprocess.examples.preferences import Preference, preference_examples
from preprocess.examples.rows import (
    Sequences,
    distinct_rows,
    item_examples,
    item_rows,
    sampled,
    text_kind,
    window_examples,
    window_rows,
)
from preprocess.examples.taught import Taught

# Tasks of a history whose answer is a text of the target, which must be there.
ANSWERED_BY_TEXT = frozenset(
    {
        "history_to_title", "history_to_description", "titles_to_title", "history_to_tid",
        "history_to_instruction",
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TaskMixture:
    """How the train split is mixed: the share (0..1) of each task's rows, the most rows of some, and the choices of all.

    held_out: share of the semantic IDs whose items are in no item task of train.
    """

    shares: dict[str, float]
    caps: dict[str, int] = field(default_factory=dict)
    max_rows: dict[str, int | None] = field(default_factory=dict)
    max_history: int | None = None
    held_out: float = 0.0
    deduplicate: bool = False
    only_taught: bool = False
    environment: str | None = None
    values: bool = False
    seed: int = 0


@dataclass(frozen=True)
class ExampleSources:
    """What examples are made of. items, sequences: the tables; titles, descriptions: what may be shown of each item."""

    sids: SidTable
    items: pa.Table
    table: pa.Table
    titles: ItemTexts
    descriptions: ItemTexts
    preferences: tuple[list[Preference], dict[str, int]] = ((), {})
    corpora: Converted = field(default_factory=Converted)
    tids: ItemTexts = field(default_factory=lambda: ItemTexts((), ()))
    taught: Taught = field(default_factory=Taught)
    ages_of: str | None = None
    """data set whose times date the histories"""

    @cached_property
    def sequences(self) -> Sequences:
        found = Sequences.from_table(self.table)
        return found if self.ages_of is None else found.with_ages(self.ages_of, num_items=self.sids.num_items)

    def texts(self, task: str) -> ItemTexts:
        return {"description": self.descriptions, "tid": self.tids}.get(text_kind(task), self.titles)


@dataclass
class SplitPlan:
    """What one split will hold: its examples, made when they are asked for, and their numbers."""

    parts: list[Iterator[Example]] = field(default_factory=list)
    by_task: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return self.by_task.total()

    def add(self, task: str, examples: Iterator[Example], count: int, skipped: dict[str, int]) -> None:
        self.parts.append(examples)
        if count:
            self.by_task[task] += count
        if skipped:
            self.skipped[task] = skipped


def plan_split(split: str, context: TaskContext, sources: ExampleSources, mixture: TaskMixture) -> SplitPlan:
    """The examples of one split, of its tasks (`tasks_of`).

    InputError for a task of train without a row, with the reasons.
    """
    plan, sequences = SplitPlan(), sources.sequences
    rows, empty = sequences.rows(split, max_rows=mixture.max_rows.get(split), seed=mixture.seed)
    skipped = {"empty_history": empty} if empty else {}
    if split == "train" and mixture.deduplicate:
        kept = distinct_rows(sequences, rows, sources.sids, max_history=mixture.max_history)
        if len(kept) < len(rows):
            skipped["repeated"] = len(rows) - len(kept)
        rows = kept
    for task in tasks_of(split, mixture):
        if task in WINDOW_TASKS:
            chosen = _add_windows(plan, task, split, rows, skipped, context, sources, mixture)
        elif task in ITEM_TASKS:
            chosen, left_out = item_rows(task, sources.texts(task), sources.sids)
            held_N = held_items(sources.sids, mixture)
            if held_N[chosen].any():
                left_out["held_out"] = int(held_N[chosen].sum())
            chosen = chosen[~held_N[chosen]]
            chosen = chosen[_sample(task, len(chosen), left_out, mixture)]
            plan.add(task, item_examples(context, task, chosen), len(chosen), left_out)
        elif task in PREFERENCE_TASKS:
            known, left_out = sources.preferences[0], dict(sources.preferences[1])
            chosen = [known[at] for at in _sample(task, len(known), left_out, mixture)]
            plan.add(task, preference_examples(context, task, chosen), len(chosen), left_out)
        else:
            made, left_out = sources.corpora.examples, dict(sources.corpora.skipped)
            chosen = [made[at] for at in _sample(task, len(made), left_out, mixture)]
            plan.add(task, iter(chosen), 0, left_out)
            plan.by_task.update(example.task for example in chosen)
        if split == "train" and not len(chosen):
            reasons = ", ".join(f"{count} {reason}" for reason, count in plan.skipped.get(task, {}).items())
            raise InputError(
                f"the data gives no train example of {task} ({reasons or 'no rows'}) -> leave it out of tasks, or choose other "
                "data"
            )
    return plan


def tasks_of(split: str, mixture: TaskMixture) -> list[str]:
    """Every task of the mixture in train; in valid and test histories with the next item, and with its TID and instruction where
    train has them.

    A mixture without history_to_sid has its other questions about histories in valid too: a checkpoint that is chosen by the
    loss of answers that nobody teaches is the first one.
    """
    if split == "train":
        return list(mixture.shares)
    asked = [task for task in mixture.shares if task in WINDOW_TASKS and task != "sequence_narrative"]
    if split != "valid" or "history_to_sid" in asked:
        asked = [task for task in asked if text_kind(task) == "tid"]
    return ["history_to_sid", *asked]


def plan_held_out(context: TaskContext, sources: ExampleSources, mixture: TaskMixture) -> SplitPlan:
    """The questions about items that train has none about: how well names are known that were never taught."""
    plan, held_N = SplitPlan(), held_items(sources.sids, mixture)
    for task in mixture.shares:
        if task in ITEM_TASKS:
            chosen, left_out = item_rows(task, sources.texts(task), sources.sids)
            chosen = chosen[held_N[chosen]]
            plan.add(task, item_examples(context, task, chosen), len(chosen), left_out)
    return plan


def held_items(sids: SidTable, mixture: TaskMixture) -> np.ndarray:
    """bool [N]: items of the seeded sample of semantic IDs that is held out, all items of an ID together."""
    total = len(sids.sids_SL)
    seed = [mixture.seed, len(artifacts.SPLITS), len(TASKS)]  # a stream that no split and no task has
    held_S = np.zeros(total, bool)
    if mixture.held_out:
        held_S[sample_rows(total, max(1, round(mixture.held_out * total)), seed)] = True
    return held_S[sids.sid_of_item_N]


def _sample(task: str, total: int, skipped: dict[str, int], mixture: TaskMixture) -> np.ndarray:
    """Positions of the rows of `task` that its share and cap keep; the others are counted in `skipped`."""
    share, cap = mixture.shares[task], mixture.caps.get(task)
    chosen = sampled(task, total, share=share, cap=cap, seed=mixture.seed)
    if len(chosen) < total:
        skipped["not_sampled"] = total - len(chosen)
    return chosen


def _add_windows(
    plan: SplitPlan,
    task: str,
    split: str,
    rows: np.ndarray,
    skipped: dict[str, int],
    context: TaskContext,
    sources: ExampleSources,
    mixture: TaskMixture,
) -> np.ndarray:
    sequences = sources.sequences
    texts = sources.texts(task) if task in ANSWERED_BY_TEXT else None
    chosen, left_out = window_rows(
        task, sequences, rows, texts=texts, titles=sources.titles, max_history=mixture.max_history
    )
    left_out = skipped | left_out
    values = None
    if split == "train" and task == "history_to_instruction":
        told_N = sources.taught.instructed(sequences.example_id[chosen])
        if not told_N.all():
            left_out["no_instruction"] = int((~told_N).sum())
        chosen = chosen[told_N]
    written = sources.taught.written(task) if mixture.only_taught else None
    if split == "train" and written is not None:
        told_N = np.isin(sequences.example_id[chosen], list(written))
        if not told_N.all():
            left_out["nothing_written"] = int((~told_N).sum())
        chosen = chosen[told_N]
    if split == "train":
        chosen = chosen[_sample(task, len(chosen), left_out, mixture)]
        if mixture.values:
            train, _ = sequences.rows("train")
            values = item_values(sources.items, sequences.target[train].astype(np.int64))
    environments = environment_words(sources.table, mixture.environment) if mixture.environment else None
    windows = sequences.windows(
        chosen, max_history=mixture.max_history, environments=environments, values_N=values
    )
    joined = sources.taught.join(task, windows)
    plan.add(task, window_examples(context, task, joined), len(chosen), left_out)
    return chosen


def category_texts(items: pa.Table) -> list[str]:
    """The category path of every item as one text, coarse to fine."""
    return [", ".join(path) for path in items["categories"].to_pylist()]


def check_shares(shares: dict[str, float], caps: dict[str, int]) -> None:
    """InputError for no task, a share outside (0, 1], a cap of a task that is not there or below 1."""
    if not shares:
        raise InputError(f"tasks {shares} -> name at least one task")
    for task, share in shares.items():
        if not 0 < share <= 1:
            raise InputError(f"tasks.{task} is {share} -> a share of its rows above 0, at most 1")
    for task, cap in caps.items():
        if task not in shares or cap < 1:
            raise InputError(f"caps.{task} is {cap} -> at least 1, for a task of tasks ({', '.join(shares)})")
