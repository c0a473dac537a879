"""Sequential models without semantic IDs: SASRec, GRU4Rec, Caser, HSTU; with item texts where options ask for them.

reads   a prepared data set: sequences.parquet (train and valid rows), interactions.parquet (train counts), items.parquet (texts);
        an embeddings directory where --embeddings names one
writes  <output_dir>/{config.yaml, item_model.json, model.safetensors, metrics.jsonl, manifest.json}, an item model that
        infer.run_baselines, rewards and caches open; with --item_vectors an embeddings directory of its item vectors

One trainer for all: train rows of a user that continue one another are one pass; the state with the best item-level NDCG@10 of
the full ranking of valid rows is kept, with `loop.repeats valid` one number of it is theirs too; test rows are never read. A killed
run resumes to the same weights.
Differs from the published code: selection by NDCG@10 unless `loop.select_by` says otherwise, attention scaled by the width
of a head, positions counted from the oldest item, batches of one row work.

python -m train.train_sequential --config configs/minionerec/sequential_sasrec.yaml --data data/industrial \\
    --output_dir outputs/minionerec-industrial/baselines/sasrec
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from configs import program
from configs.needs import Need, require_needs
from configs.program import AlreadyComplete, InputError
from data.rows import Rows
from data.store.output import Output, open_output
from infer.models.sequential.options import (
    TRUNKS,
    Caser,
    Gru4Rec,
    Hstu,
    SasRec,
    ScorerOptions,
    SequentialShape,
    TextOptions,
    Trunk,
)
from rq.vectors.embeddings import FILE as VECTORS
from rq.vectors.embeddings import require_finite, zero_rows
from train.scratch.options import EpochOptions, ItemLoss

STAGE, VERSION = "train_sequential", 2
VECTORS_STAGE = "item_vectors"


@dataclass
class TrainSequentialArgs:
    """Training of a sequential model."""

    data: str
    """prepared data set"""
    output_dir: str
    """where the model goes, e.g. outputs/<run>/baselines/sasrec"""
    trunk: Trunk = "sasrec"
    """what reads the history; its options are the group of its name"""
    sasrec: SasRec = field(default_factory=SasRec)
    """causal self-attention"""
    gru4rec: Gru4Rec = field(default_factory=Gru4Rec)
    """gated recurrent units"""
    caser: Caser = field(default_factory=Caser)
    """convolutions"""
    hstu: Hstu = field(default_factory=Hstu)
    """gated attention"""
    scorer: ScorerOptions = field(default_factory=ScorerOptions)
    """what all trunks share"""
    text: TextOptions = field(default_factory=TextOptions)
    """what the model is told of item texts"""
    embeddings: str | None = None
    """embeddings directory whose vectors take the place of the TF-IDF vectors of text.table"""
    loss: ItemLoss = field(default_factory=ItemLoss)
    """what it is trained with"""
    windows: Literal["rows", "cut"] = "rows"
    """rows: train rows of a user that continue one another are one pass, each with all of its history that is read; cut: so are those that
    lost their oldest items, cut at a new place in every epoch: for users with much more rows than scorer.positions (train/README.md)"""
    loop: EpochOptions = field(default_factory=EpochOptions)
    """how it is trained"""
    item_vectors: str | None = None
    """also write the item vectors as an embeddings directory, e.g. data/<set>/embeddings/sasrec"""
    seed: int = 0
    """of weights, batches, dropout, negatives and the valid sample"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        require_needs(self)
        beside = {
            "text.kernel": self.text.kernel, "scorer.copy": self.scorer.copy, "scorer.companions": self.scorer.companions > 0
        }  # fmt: skip
        if any(beside.values()) and (self.loss.kind != "ce" or self.loss.dro_alpha):
            names = " and ".join(name for name, given in beside.items() if given)
            raise InputError(
                f"{names} are learned by the cross-entropy over all items -> loss.kind ce without dro_alpha"
            )

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        trunks = [Need((name,), name == self.trunk, f"trunk {name}") for name in TRUNKS]
        texts = ("text.dim", "text.fields", "text.tfidf")
        return [
            *trunks,
            Need(("embeddings",), self.text.table != "none", "text.table add or init"),
            Need(("text.similar",), self.text.kernel, "text.kernel true"),
            Need(texts, bool(self.text_options()), "text.table, text.kernel or loss.neighbour_share"),
            Need(("loop.repeats",), self.scorer.copy, "scorer.copy true (loop.repeats train without it)"),
            Need(
                ("loop.evidence_rate",),
                self.scorer.copy or self.scorer.companions > 0 or self.text.kernel,
                "scorer.copy, scorer.companions or text.kernel",
            ),
        ]

    def not_chosen(self) -> set[str]:
        """Options that decide nothing of the model."""
        return {"item_vectors"}

    def text_options(self) -> list[str]:
        """The options that look into item texts."""
        asked = {
            "text.table": self.text.table != "none" and self.embeddings is None,
            "text.kernel": self.text.kernel,
            "loss.neighbour_share": self.loss.neighbour_share > 0,
        }
        return [name for name, given in asked.items() if given]


@dataclass(frozen=True)
class ItemVectors:
    """The configuration of the manifest of exported item vectors."""

    data: str
    model: str
    overwrite: bool


def knowledge(args: TrainSequentialArgs) -> Any:
    """Counts and texts; InputError where options need texts that the data set does not have."""
    from train.scratch.reading import knowledge

    wanted = [args.text.similar] * args.text.kernel + [args.loss.neighbours] * (args.loss.neighbour_share > 0)
    return knowledge(
        args.data, args.text, needed_by=args.text_options(), embeddings=args.embeddings, similar=max(wanted, default=0),
        seed=args.seed, companions=args.scorer.companions,
    )  # fmt: skip


def shape_of(args: TrainSequentialArgs, known: Any) -> SequentialShape:
    """The shape that the arguments and what is `known` (train/scratch/reading.py) give a model."""
    size = len(known.popularity_N)
    return SequentialShape(
        num_items=size,
        trunk=args.trunk,
        scorer=args.scorer,
        trunk_options=getattr(args, args.trunk),
        text_table=args.text.table,
        text_dim=known.text_NX.shape[1] if args.text.table == "add" else 0,
        similar=min(args.text.similar, size - 1) if args.text.kernel else 0,
        companions=min(args.scorer.companions, size - 1),
    )


def read_splits(args: TrainSequentialArgs, num_items: int) -> tuple[Any, Rows, dict[str, int]]:
    """(what is learned, the valid rows that choose, counts)."""
    from train.scratch.reading import read_splits
    from train.scratch.sequential import TrainRows

    train, valid, counts = read_splits(
        args.data, num_items, positions=args.scorer.positions, valid_rows=args.loop.valid_rows, seed=args.seed,
        positions_name="scorer.positions",
    )  # fmt: skip
    learned = (TrainRows.of_chains if args.windows == "cut" else TrainRows.of_rows)(train)
    return learned, valid, counts


def train(args: TrainSequentialArgs, out: Output) -> None:
    """Make the model, train it to the end (resuming), save the best state."""
    import torch

    from infer.loading import default_device, usable_device
    from infer.models.sequential.model import SequentialModel
    from infer.models.sequential.scoring import save
    from train.scratch.loop import Run
    from train.scratch.sequential import SequentialTask

    known = knowledge(args)
    shape = shape_of(args, known)
    rows, valid, counts = read_splits(args, shape.num_items)
    device = default_device() if args.loop.device == "auto" else usable_device(args.loop.device)
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)
        model = SequentialModel(shape)
    model.learn_of(
        popularity_N=known.popularity_N, text_NX=known.text_NX, similar=known.similar, companions=known.companions
    )  # fmt: skip
    model = model.to(device)
    task = SequentialTask(model, rows, valid, loss=args.loss, rows=args.loop.rows, similar=known.similar)
    facts = Run(task, args.loop, out=out, seed=args.seed).to_the_end()
    save(out, model.cpu())
    kind = "windows" if rows.reach is None else "chains"
    out.counts |= counts | {"items": shape.num_items, kind: len(rows.windows)}
    parameters = sum(p.numel() for p in model.parameters())
    out.facts |= {
        "fitted_on": "train",
        "trunk": args.trunk,
        "parameters": parameters,
        "threads": torch.get_num_threads(),
    } | facts


def export_vectors(args: TrainSequentialArgs) -> None:
    """Write the vectors that go into the trained model as an embeddings directory."""
    one = ItemVectors(args.data, args.output_dir, args.overwrite)
    inputs = {"data": args.data, "model": args.output_dir}
    with open_output(one, VECTORS_STAGE, version=VERSION, inputs=inputs, directory=args.item_vectors) as out:
        from infer.models.contract import load

        vectors_ND = load(args.output_dir).network.item_vectors().detach().cpu().numpy()
        require_finite(vectors_ND, where=args.output_dir)
        out.write_array(VECTORS, vectors_ND)
        out.counts |= {"items": len(vectors_ND), "zero_rows": int(zero_rows(vectors_ND).sum())}
        out.facts |= {"dim": vectors_ND.shape[1], "method": args.trunk, "fitted_on": "train"}


def main(args: TrainSequentialArgs) -> None:
    """Train, then export where that is asked for."""
    inputs = {"data": args.data, "embeddings": args.embeddings}
    try:
        with open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
            out.write_text("config.yaml", program.as_yaml(args))
            train(args, out)
    except AlreadyComplete as complete:
        if args.item_vectors is None:
            raise
        program.say(f"train_sequential: {complete}")
    if args.item_vectors is not None:
        export_vectors(args)


if __name__ == "__main__":
    program.run(TrainSequentialArgs, main)
