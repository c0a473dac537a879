"""The rows that supervised fine-tuning computes: chosen tasks, rendered once, laid out; with a teacher, its drawn answers too.

`args` is train.sft.SftArgs throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data import artifacts
from data.rows import sample_rows
from data.store.inputs import fingerprint
from data.store.output import Output
from data.tasks import SID_TASKS
from infer.work.decoding import TASK
from train.soft_targets import TaughtRows, data_of
from train.supervised.batches import Batches
from train.supervised.item_losses import answered, item_tables
from train.supervised.soft_answers import SoftAnswers, Softened, soften
from train.supervised.tokens import TokenRows, cached_rows, render, say_shortened
from train.supervised.units import Units, single_units, tree_units
from train.windows import newest_rows

DRAWS = 2  # where nobody says
MOST_WINDOWS = 64  # of one user that share a trunk: a longer history's windows are spread over steps


def chosen_rows(table: pa.Table, args: Any) -> np.ndarray:
    """Rows (int64) of the chosen tasks; InputError for no rows or a task that the examples lack."""
    missing = set(args.tasks) - set(table["task"].unique().to_pylist())
    if missing:
        raise InputError(
            f"examples {args.examples} have no task {', '.join(sorted(missing))} -> build them in stage 07"
        )
    kept = pc.is_in(table["task"], value_set=artifacts.text_array(args.tasks)) if args.tasks else None
    rows = np.arange(table.num_rows) if kept is None else np.flatnonzero(kept.to_numpy())
    if args.leave_out_newest:
        data = data_of(args.data, args.examples)
        rows = rows[~newest_rows(table.take(rows), data, share=args.leave_out_newest)]
    if not len(rows):
        raise InputError("no examples to train on -> check the tasks of stage 07 and --tasks")
    return rows


def units_of(
    args: Any, table: pa.Table, rows: TokenRows, *, end_id: int, step_windows: int, soft: bool = False
) -> Units:
    """Rendered examples as they are computed together in the layout of `args`; soft: with drawn answers among them."""
    rows.check(table, max_length=args.max_length)
    if not args.supervise_end:
        sids = pc.is_in(table["task"], value_set=artifacts.text_array(sorted(SID_TASKS))).to_numpy()
        rows = rows.without_end(sids, end_id)
    if args.layout != "user_tree":
        return single_units(rows)
    tasks = table["task"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    users = pc.fill_null(table["user_id"], -1).to_numpy().astype(np.int64)
    most = min(MOST_WINDOWS * (1 + draws_of(args) * soft), max(1, step_windows // 2))
    return tree_units(rows, groups_N=users, tasks_N=tasks, most=most)


def make_batches(
    args: Any,
    table: pa.Table,
    units: Units,
    *,
    step_windows: int,
    seed: int | None,
    parts: int = 1,
    soft: SoftAnswers | None = None,
    redraw: Callable[[int], tuple[Units, SoftAnswers]] | None = None,
) -> Batches:
    """The `Batches` of examples in the layout of `args`; soft: their SoftAnswers, where they have some, drawn anew by `redraw`."""
    weights = table["weight"].to_numpy()
    return Batches(
        units,
        step_windows=step_windows,
        row_tokens=None if args.layout == "padded" else args.row_tokens,
        seed=seed,
        weights_N=None if (weights == 1).all() else weights,
        by_length=args.by_length,
        parts=parts,
        soft=soft,
        redraw=redraw,
    )


def weighted(table: pa.Table, weights: dict[str, float]) -> pa.Table:
    """The examples, their weights times those of their tasks; InputError for a task that is not among them."""
    if not weights:
        return table
    if missing := weights.keys() - set(table["task"].unique().to_pylist()):
        raise InputError(
            f"task_weights names {min(missing)}, of which there is no row to train on -> leave it out"
        )
    of_row = table["task"].combine_chunks().dictionary_encode()
    factors = np.array([weights.get(task, 1.0) for task in of_row.dictionary.to_pylist()], np.float32)
    made = table["weight"].to_numpy() * factors[of_row.indices.to_numpy()]
    return table.set_column(table.column_names.index("weight"), "weight", pa.array(made, pa.float32()))


def draws_of(args: Any) -> int:
    """Answers drawn for a window."""
    return DRAWS if args.soft_draws is None else args.soft_draws


def softening(
    args: Any, table: pa.Table, rows: TokenRows, engine: Any, config: Any
) -> Callable[..., Softened] | None:
    """What gives examples, with `epoch`, their answers drawn from the teacher; None without a teacher."""
    if args.soft_targets.teacher is None:
        return None
    data = data_of(args.data, args.examples)
    taught_N = pc.equal(table["task"], "history_to_sid").to_numpy()
    if not taught_N.any():
        raise InputError(
            "soft targets are answers of history_to_sid, which is not among the tasks -> add it, or leave the teacher out"
        )
    sids = engine.sids
    with config.main_process_first(local=False, desc="the teacher's scores"):
        taught = TaughtRows.of(
            args.soft_targets, data=data, num_items=sids.num_items, overwrite=args.overwrite
        )
    return partial(
        soften,
        rows,
        examples_N=table["example_id"].to_numpy(),
        soft_N=taught_N,
        probabilities=taught.dense,
        sids=sids,
        vocab=engine.renderer.answer_vocab,
        share=args.soft_targets.share,
        draws=draws_of(args),
        seed=args.seed,
    )


def with_drawn(table: pa.Table, made: Softened) -> pa.Table:
    """The example of every sequence, its weight that of the sequence."""
    table = table.take(made.source_W)
    weights = pa.array(table["weight"].to_numpy() * made.weight_W)
    return table.set_column(table.column_names.index("weight"), "weight", weights)


def train_batches(args: Any, out: Output, engine: Any, config: Any) -> tuple[pa.Table, Batches]:
    """(train rows of the chosen tasks, their `Batches`), rendered once and kept on disk."""
    table = artifacts.read_split(args.examples, "train")
    chosen = chosen_rows(table, args)
    place = Path(args.tokens_dir) if args.tokens_dir else out.path.parent / "tokens"
    rendered = cached_rows(table, engine.renderer, place, content=fingerprint(args.examples))
    table = weighted(table.take(chosen), args.task_weights)
    tasks = set(table["task"].unique().to_pylist())
    shortened = {task: count for task, count in rendered.shortened.items() if task in tasks}
    say_shortened(shortened, engine.renderer.max_prompt)
    if shortened:
        out.counts["shortened_prompts"] = shortened
    counted = table["task"].value_counts().to_pylist()
    out.counts |= {f"{entry['values']} examples": entry["counts"] for entry in counted}
    windows, rows = table.num_rows, rendered.take(chosen)
    soften_in, soft, redraw = softening(args, table, rows, engine, config), None, None
    if soften_in is not None:
        made = soften_in()
        table, rows, soft = with_drawn(table, made), made.rows, made.answers
        out.counts["drawn_answers"] = table.num_rows - windows
    parts = config.world_size * config.gradient_accumulation_steps
    step_windows = round(config.per_device_train_batch_size * parts * table.num_rows / windows)
    layout = {
        "end_id": engine.renderer.terminator_ids()[-1],
        "step_windows": step_windows,
        "soft": soft is not None,
    }
    if soften_in is not None:

        def redraw(epoch: int) -> tuple[Units, SoftAnswers]:
            drawn = soften_in(epoch=epoch)
            return units_of(args, table, drawn.rows, **layout), drawn.answers

    units = units_of(args, table, rows, **layout)
    batches = make_batches(
        args, table, units, step_windows=step_windows, seed=args.seed, parts=parts, soft=soft, redraw=redraw
    )
    return table, batches


def loss_rows(args: Any, decoded: pa.Table, trained: pa.Table) -> pa.Table:
    """The validation rows whose loss is measured: those that are decoded where their task is trained, else a seeded sample of the
    rows of trained tasks.

    The loss of answers that nobody teaches rises while others are learned: InputError where it would choose the checkpoint.
    """
    tasks = sorted(set(trained["task"].unique().to_pylist()))
    if TASK in tasks:
        return decoded
    valid = answered(args.examples)
    valid = valid.filter(pc.is_in(valid["task"], value_set=artifacts.text_array(tasks)))
    if valid.num_rows:
        return valid.take(sample_rows(valid.num_rows, args.valid_rows, args.seed))
    if args.select_by == "loss":
        raise InputError(
            f"select_by loss: valid of {args.examples} has no row of {', '.join(tasks)}, which are trained -> build the examples again "
            "with a task of histories (scripts/07_build_examples.sh), or select_by ndcg@10"
        )
    return decoded


def validation_batches(args: Any, examples: pa.Table, engine: Any, config: Any) -> Batches:
    """The `Batches` of rows that are measured, in their order."""
    step_windows = config.per_device_eval_batch_size
    end_id = engine.renderer.terminator_ids()[-1]
    units = units_of(
        args, examples, render(examples, engine.renderer), end_id=end_id, step_windows=step_windows
    )
    return make_batches(args, examples, units, step_windows=step_windows, seed=None)


def item_loss_batches(args: Any, train: pa.Table, engine: Any, config: Any) -> dict[str, Batches]:
    """The `Batches` of questions about items, by the name of their loss."""
    if not args.item_loss_rows:
        return {}
    tables = item_tables(train, args.examples, tasks=args.tasks, rows=args.item_loss_rows, seed=args.seed)
    return {name: validation_batches(args, table, engine, config) for name, table in tables.items()}
