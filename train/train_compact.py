"""A compact generator of semantic IDs: one position per history item, level heads, softmax over the children of a prefix.

reads   a prepared data set (train and valid rows, train counts, texts), a semantic-ID directory of it; with soft targets a
        teacher: any saved item model, usually a product of several (infer.fuse --how product --scale fitted)
writes  <output_dir>/{config.yaml, item_model.json, model.safetensors, metrics.jsonl, manifest.json}: an item model with exact
        probabilities that fusion, rewards and caches open, and a model that infer.recommend decodes (score space trie);
        the teacher's scores beside the teacher (scores/)

With `soft_targets.teacher` the target of a train row is (1 - share) the item that came and share what the teacher says, so one
small model learns what an ensemble knows; `augment` makes histories that the teacher answers. The state with the best
item-level NDCG@10 of the full ranking of valid rows is kept, with `loop.repeats valid` one number of it is theirs too; test rows
are never read. A killed run resumes to the same weights.

python -m train.train_compact --config configs/minionerec/compact.yaml --data data/industrial \\
    --sids data/industrial/sids/rqkmeans --output_dir outputs/minionerec-industrial/baselines/compact
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from configs import program
from configs.needs import Need, require_needs
from configs.program import InputError
from data.rows import Rows
from data.sid import SidTable, read_sids
from data.store.lineage import require_same_data
from data.store.output import Output, open_output
from infer.models.retrievers.compact_options import CompactOptions, CompactShape, require_text_options
from infer.models.sequential.options import TextOptions
from train.scratch.augment import Augmentation
from train.scratch.drawn import DrawnRows
from train.scratch.options import EpochOptions
from train.soft_targets import SoftTargets, TaughtRows

STAGE, VERSION = "train_compact", 4


@dataclass
class TrainCompactArgs:
    """Training of a compact generator."""

    data: str
    """prepared data set"""
    sids: str
    """semantic-ID directory of that data set"""
    output_dir: str
    """where the model goes, e.g. outputs/<run>/baselines/compact"""
    model: CompactOptions = field(default_factory=CompactOptions)
    """the trunk and what is added to its logits"""
    text: TextOptions = field(default_factory=TextOptions)
    """what the model is told of item texts"""
    embeddings: str | None = None
    """embeddings directory whose vectors take the place of the TF-IDF vectors of text.table"""
    windows: Literal["rows", "single", "cut"] = "rows"
    """rows: train rows of a user that continue one another are one pass, with a loss at every position; single: a pass for each
    row, with a loss at its end; cut: those that lost their oldest items are one pass too, cut at a new place in every epoch: for users with
    much more rows than model.positions"""
    soft_targets: SoftTargets = field(default_factory=SoftTargets)
    """what is learned from a teacher"""
    soft_draws: int | None = None
    """answers drawn from the teacher for a row, anew in every epoch (train/scratch/drawn.py); null = its distribution over all items"""
    augment: Augmentation = field(default_factory=Augmentation)
    """histories that are made for the teacher to answer"""
    loop: EpochOptions = field(default_factory=EpochOptions)
    """how it is trained"""
    user_share: float = 1.0
    """learn from this share of the train users alone, drawn by seed: a point of a scaling curve"""
    seed: int = 0
    """of weights, batches, dropout and the valid sample"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        require_text_options(self.model, self.text)
        if self.soft_draws is not None and (self.soft_draws < 1 or self.soft_targets.k is not None):
            raise InputError(
                f"soft_draws {self.soft_draws} -> at least 1, without soft_targets.k; or null, the whole distribution"
            )
        if not 0 < self.user_share <= 1:
            raise InputError(f"user_share {self.user_share} -> above 0, at most 1")
        if self.augment.ratio and self.windows == "single":
            raise InputError(
                "made histories are as many as users' windows, and single has one per row -> windows rows or cut"
            )
        require_needs(self)

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        return [
            Need(("embeddings",), self.text.table != "none", "text.table add or init"),
            Need(("text.similar",), self.text.kernel, "text.kernel true"),
            Need(
                ("text.dim", "text.fields", "text.tfidf"),
                bool(self.text_options()),
                "text.table or text.kernel",
            ),
            Need(("user_share",), self.soft_targets.teacher is None, "hard targets"),
            Need(
                ("augment.ratio", "soft_draws"), self.soft_targets.teacher is not None, "soft_targets.teacher"
            ),
            Need(("loop.repeats",), self.model.copy, "model.copy true (loop.repeats train without it)"),
            Need(
                ("loop.evidence_rate",),
                self.model.copy or self.model.companions > 0 or self.text.kernel,
                "model.copy, model.companions or text.kernel",
            ),
        ]

    def text_options(self) -> list[str]:
        """The options that look into item texts."""
        asked = {
            "text.table": self.text.table != "none" and self.embeddings is None,
            "text.kernel": self.text.kernel,
        }
        return [name for name, given in asked.items() if given]


def shape_of(args: TrainCompactArgs, known: Any, sids: SidTable) -> CompactShape:
    """The shape that the arguments and what is `known` (train/scratch/reading.py) give a model."""
    size = len(known.popularity_N)
    if sids.num_items != size:
        raise InputError(
            f"{args.sids} has {sids.num_items} items, {args.data} {size} -> semantic IDs of this data set"
        )
    return CompactShape(
        num_items=size,
        sizes=sids.sizes,
        model=args.model,
        text_dim=known.text_NX.shape[1] if args.text.table == "add" else 0,
        similar=min(args.text.similar, size - 1) if args.text.kernel else 0,
        companions=min(args.model.companions, size - 1),
    )


def learned_rows(args: TrainCompactArgs, train: Rows, sids: SidTable) -> Any:
    """What is learned of the train rows (train.scratch.compact.CompactRows): windows, users, teacher, made histories."""
    from infer.models.sequential.windows import cut_windows, row_chains, row_windows, single_windows
    from train.scratch.compact import CompactRows

    windows, reach = row_chains(train) if args.windows == "cut" else (row_windows(train), None)
    users = (train.example_ids_R, train.users_R) if args.model.users else None
    learned = CompactRows(single_windows(train) if args.windows == "single" else windows, reach, users)
    if args.soft_targets.teacher is None:
        return learned
    learned = replace(learned, taught=teaching(args, sids), share=args.soft_targets.share)
    if not args.augment.ratio:
        return learned
    # Histories are made of the longest of a user's rows that continue one another, once of each; of chains as one epoch cuts them.
    whole = (
        windows
        if reach is None
        else cut_windows(windows, reach, np.random.default_rng([args.augment.seed, 2]))
    )
    made, rows, answered = made_rows(args, whole, train, sids)
    if users is not None:
        users = np.concatenate([users[0], rows.example_ids_R]), np.concatenate([users[1], rows.users_R])
    part = args.augment.ratio / args.augment.variants
    return replace(learned, users=users, made=(made, answered, part))


def teaching(args: TrainCompactArgs, sids: SidTable, **rows: Any) -> TaughtRows | DrawnRows:
    """What the teacher says of the train rows, or of other rows (rows=..., name=...): distributions, or answers drawn from them."""
    told = {"data": args.data, "num_items": sids.num_items, **rows}
    if args.soft_draws is None:
        return TaughtRows.of(args.soft_targets, **told, overwrite=args.overwrite)
    order_N = np.argsort(sids.sid_of_item_N, kind="stable")
    return DrawnRows.of(
        args.soft_targets, order_N=order_N, draws=args.soft_draws, epochs=args.loop.epochs, **told
    )


def made_rows(
    args: TrainCompactArgs, windows: Any, train: Rows, sids: SidTable
) -> tuple[Any, Rows, TaughtRows | DrawnRows]:
    """(windows of made histories, their rows, the teacher's answers to them)."""
    from infer.models.cache import rows_sha256
    from train.scratch.augment import drawn_from, made_windows, prefixes, single_items, sources

    windows = sources(windows, args.augment, positions=args.model.positions)
    alone = teaching(args, sids, rows=single_items(sids.num_items), name="items")
    follower = alone.one if isinstance(alone, DrawnRows) else partial(drawn_from, alone.dense)
    made = made_windows(
        windows, args.augment, positions=args.model.positions, first_example=int(train.example_ids_R.max()) + 1,
        follower=follower,
    )  # fmt: skip
    by_example = dict(zip(train.example_ids_R.tolist(), train.users_R.tolist(), strict=True))
    user_W = np.array(
        [by_example[example] for example in windows.example_I[windows.offsets[1:] - 1].tolist()]
    )
    rows = prefixes(made, np.tile(user_W, args.augment.variants))
    return made, rows, teaching(args, sids, rows=rows, name=f"made-{rows_sha256(rows)[:12]}")


def train(args: TrainCompactArgs, out: Output) -> None:
    """Make the model, train it to the end (resuming), save the best state."""
    import torch

    from infer.loading import default_device, usable_device
    from infer.models.retrievers.compact import save
    from infer.models.retrievers.compact_network import CompactModel
    from train.scratch.compact import CompactTask
    from train.scratch.loop import Run
    from train.scratch.reading import knowledge, read_splits

    require_same_data(args.sids, args.data, again="scripts/04_build_sids.sh")
    sids = read_sids(args.sids)
    known = knowledge(
        args.data, args.text, needed_by=args.text_options(), embeddings=args.embeddings,
        similar=args.text.similar * args.text.kernel, seed=args.seed, users=args.user_share, companions=args.model.companions,
    )  # fmt: skip
    shape = shape_of(args, known, sids)
    rows, valid, counts = read_splits(
        args.data, shape.num_items, positions=args.model.positions, valid_rows=args.loop.valid_rows, seed=args.seed,
        positions_name="model.positions", ages=args.model.gaps > 0, users=args.user_share,
    )  # fmt: skip
    learned = learned_rows(args, rows, sids)
    device = default_device() if args.loop.device == "auto" else usable_device(args.loop.device)
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)
        model = CompactModel(shape, sids.codes_NL)
    model.learn_of(
        popularity_N=known.popularity_N, text_NX=known.text_NX, similar=known.similar, companions=known.companions
    )  # fmt: skip
    task = CompactTask(model.to(device), learned, valid, rows=args.loop.rows)
    facts: dict[str, Any] = Run(task, args.loop, out=out, seed=args.seed).to_the_end()
    save(out, model.cpu(), sids_sha256=sids.sha256)
    kind = "windows" if learned.reach is None else "chains"
    out.counts |= counts | {"items": shape.num_items, kind: len(learned.windows)}
    out.counts |= {} if learned.made is None else {"made windows": len(learned.made[0])}
    out.facts |= {
        "fitted_on": "train",
        "teacher": args.soft_targets.teacher,
        "sids_sha256": sids.sha256,
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
    } | facts


def main(args: TrainCompactArgs) -> None:
    inputs = {
        "data": args.data, "sids": args.sids, "embeddings": args.embeddings, "teacher": args.soft_targets.teacher,
    }  # fmt: skip
    with open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        out.write_text("config.yaml", program.as_yaml(args))
        train(args, out)


if __name__ == "__main__":
    program.run(TrainCompactArgs, main)
