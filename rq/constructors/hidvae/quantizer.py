"""HiD-VAE: residual quantization that learns tags, so that the codes of an item spell a path of tag names.

    quantizer = fit_hidvae(source, HidVaeOptions(), seed=0, out=out)      # source.tags: a directory of stage 03
    codes_NL = quantizer.encode(x_ND)
    classes_NT, confidence_NT = quantizer.predict_tags(codes_NL)
    item_paths(quantizer, codes_NL)                                        # the same in words, one row per item

After Fang et al., HiD-VAE (arXiv 2508.04618), from its equations; networks in rq/constructors/hidvae/model.py, losses in
rq/constructors/hidvae/losses.py, training in rq/constructors/hidvae/problem.py. `fit_hidvae` also writes tag_accuracy.json,
tag_paths.parquet and code_names.json (what every first code stands for).

Legend: N items, D dimensions of a vector, E of a latent vector, L levels, T tag levels, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from configs.program import InputError
from data.artifacts import TEXT_LIST, int_rows
from data.store.output import Output
from data.tags import OTHER, UNKNOWN, TagSet, TagVocab, read_tags
from rq.constructors.hidvae.options import HidVaeOptions
from rq.stack.options import Source
from rq.stack.residual import ResidualQuantizer, stack_fields

ACCURACY, PATHS, CODES = "tag_accuracy.json", "tag_paths.parquet", "code_names.json"
FLOAT_LIST = pa.list_(pa.float32())
BLOCK = 8192


@dataclass(frozen=True, eq=False)
class HidVaeQuantizer(ResidualQuantizer):
    """A residual stack with HiD-VAE's networks (an `rq.constructors.hidvae.model.HidVae` in evaluation mode, on the CPU)."""

    model: Any = None
    vocab: TagVocab | None = None
    kind: ClassVar[str] = "hidvae"

    @property
    def dim(self) -> int:
        return self.model.network.shape["dim"]

    def latent(self, x_ND: np.ndarray) -> np.ndarray:
        from rq.stack.networks import in_blocks

        self.require_dim(x_ND)
        return in_blocks(self.model.encode, x_ND)

    def restore(self, latent_NE: np.ndarray) -> np.ndarray:
        """Vectors whose number columns have length 1; binary columns are probabilities."""
        from rq.stack.networks import in_blocks

        out_ND, binary = in_blocks(self.model.decode, latent_NE), self.model.shape["binary_columns"]
        if binary:
            out_ND[:, -binary:] = 1 / (1 + np.exp(-out_ND[:, -binary:]))
        return out_ND

    def predict_tags(self, codes_NL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(class int32 [N, T], its probability float32 [N, T]) that the codes of an item stand for."""
        import torch

        books = [torch.from_numpy(book) for book in self.codebooks]
        classes, confidences = [], []
        for start in range(0, max(len(codes_NL), 1), BLOCK):
            codes = torch.from_numpy(np.asarray(codes_NL[start : start + BLOCK, : len(books)], np.int64))
            levels_BLE = torch.stack([book[codes[:, level]] for level, book in enumerate(books)], 1)
            with torch.no_grad():
                best = [logits.softmax(1).max(1) for logits in self.model.logits(levels_BLE)]
            classes.append(torch.stack([found.indices for found in best], 1).numpy().astype(np.int32))
            confidences.append(torch.stack([found.values for found in best], 1).numpy())
        return np.concatenate(classes), np.concatenate(confidences)

    def tensors(self) -> dict[str, np.ndarray]:
        weights = {f"model.{name}": value.numpy() for name, value in self.model.state_dict().items()}
        return super().tensors() | weights

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"model": self.model.shape, "tag_vocab": self.vocab.to_json()}

    @classmethod
    def build(cls, tensors: dict[str, np.ndarray], description: dict[str, Any]) -> HidVaeQuantizer:
        """The quantizer of both files, strictly: InputError when a weight is missing, extra or misshapen."""
        from rq.constructors.hidvae.model import HidVae
        from rq.stack.networks import with_weights

        model = with_weights(HidVae(description["model"]), tensors, prefix="model.")
        vocab = TagVocab.from_json(description["tag_vocab"])
        return cls(**stack_fields(tensors, description), model=model, vocab=vocab)


def fit_hidvae(source: Source, options: HidVaeOptions, *, seed: int, out: Output) -> HidVaeQuantizer:
    """Train on `source.x_ND` and the tags of `source.tags`; InputError without tags, or with those of other items."""
    import torch

    from rq.constructors.hidvae.model import HidVae
    from rq.constructors.hidvae.problem import HidVaeProblem
    from rq.stack.training import device_of, train

    if source.tags is None:
        raise InputError(
            "hidvae learns tags -> pass --tags data/<set>/tags/<name> (scripts/03_complete_tags.sh)"
        )
    tags = read_tags(source.tags, num_items=len(source.x_ND))
    options.require_tags(tags.num_levels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = HidVae(model_shape(source.x_ND, options, tags.vocab))
    problem = HidVaeProblem(
        source.x_ND,
        model,
        options,
        learn_NT=classes_to_learn(tags, options),
        judge_NT=classes_to_judge(tags, split="valid"),
        rows_M=items_to_learn(tags, options),
        seed=seed,
        device=device_of(options.loop.device),
    )
    out.facts |= train(problem, options.loop, out=out, seed=seed, label="hidvae")
    model = model.cpu().eval().requires_grad_(False)
    quantizer = HidVaeQuantizer(**model.stack.arrays(), model=model, vocab=tags.vocab)
    codes_NL = quantizer.encode(source.x_ND)
    report = tag_accuracy(quantizer, codes_NL, tags)
    out.write_json(ACCURACY, report)
    out.write_table(PATHS, item_paths(quantizer, codes_NL))
    out.write_json(CODES, code_names(quantizer, codes_NL))
    out.facts["tag_accuracy"] = {
        split: [level and level["accuracy"] for level in levels] for split, levels in report.items()
    }
    return quantizer


def model_shape(x_ND: np.ndarray, options: HidVaeOptions, vocab: TagVocab) -> dict[str, Any]:
    """The `shape` of the model for these vectors and tags."""
    from dataclasses import asdict

    from rq.constructors.rqvae import inverse_scale
    from rq.stack.networks import network_shape

    if options.binary_columns >= x_ND.shape[1]:
        raise InputError(
            f"hidvae: binary_columns {options.binary_columns} leave no numbers of {x_ND.shape[1]} columns"
        )
    if min(vocab.sizes) < 1:
        raise InputError(
            f"the tags have {list(vocab.sizes)} classes per level -> fewer levels, or other tags"
        )
    names = ("hidden", "blocks", "dropout", "gate", "projector")
    return {
        "network": network_shape(
            x_ND.shape[1],
            layers=options.layers,
            latent_dim=options.latent_dim,
            activation="silu",
            bias=False,
            dropout=options.dropout,
            unit_latent=options.unit_latent,
            scale=inverse_scale(x_ND) if options.scale_inputs else 1.0,
        ),
        "sizes": options.sizes,
        "codebook": asdict(options.codebook),
        "classes": list(vocab.sizes),
        "prefix": options.prefix,
        "head": {name: getattr(options.tags, name) for name in names},
        "binary_columns": options.binary_columns,
    }


def items_to_learn(tags: TagSet, options: HidVaeOptions) -> np.ndarray:
    """Items that training sees, int64: all, or those of the train part."""
    return np.flatnonzero((tags.split_N == "train") | (options.held_out == "tags"))


def classes_to_learn(tags: TagSet, options: HidVaeOptions) -> np.ndarray:
    """Classes int32 [N, T] of train items from the sources that count, UNKNOWN elsewhere."""
    wanted_NT = np.array([[source in options.tag_sources for source in row] for row in tags.sources], bool)
    return np.where(wanted_NT & (tags.split_N == "train")[:, None], tags.classes_NL, UNKNOWN)


def classes_to_judge(tags: TagSet, *, split: str) -> np.ndarray:
    """Classes int32 [N, T] of the items of a split: given ones, or all where the data set gives none."""
    judged_NT = tags.given_NL if tags.given_NL.any() else np.ones_like(tags.given_NL)
    return np.where(judged_NT & (tags.split_N == split)[:, None], tags.classes_NL, UNKNOWN)


def tag_accuracy(
    quantizer: HidVaeQuantizer, codes_NL: np.ndarray, tags: TagSet
) -> dict[str, list[dict[str, float] | None]]:
    """Per split and level: items with a known class, share predicted right, the same without the folded class, and the
    share of the most frequent train class among them. None where no item has a class."""
    predicted_NT, _ = quantizer.predict_tags(codes_NL)
    train_NT = classes_to_judge(tags, split="train")
    report: dict[str, list[dict[str, float] | None]] = {}
    for split in ("train", "valid", "test"):
        truth_NT = classes_to_judge(tags, split=split)
        report[split] = []
        for level, names in enumerate(quantizer.vocab.names):
            known = truth_NT[:, level] != UNKNOWN
            if not known.any():
                report[split].append(None)
                continue
            truth, right = truth_NT[known, level], (predicted_NT == truth_NT)[known, level]
            learned = train_NT[:, level][train_NT[:, level] != UNKNOWN]
            commonest = np.bincount(learned).argmax() if len(learned) else 0
            own = truth != (len(names) - 1 if names[-1] == OTHER else len(names))
            report[split].append(
                {
                    "items": int(known.sum()),
                    "accuracy": float(right.mean()),
                    "accuracy_without_other": float(right[own].mean()) if own.any() else None,
                    "largest_class": float((truth == commonest).mean()),
                }
            )
    return report


def item_paths(quantizer: HidVaeQuantizer, codes_NL: np.ndarray) -> pa.Table:
    """item_id, codes, tags (the name that the codes up to each level stand for) and confidence, one row per item."""
    classes_NT, confidence_NT = quantizer.predict_tags(codes_NL)
    return pa.table(
        {
            "item_id": pa.array(range(len(codes_NL)), pa.int32()),
            "codes": int_rows(codes_NL),
            "tags": pa.array(quantizer.vocab.decode(classes_NT), TEXT_LIST),
            "confidence": pa.array(confidence_NT.tolist(), FLOAT_LIST),
        }
    )


def code_names(quantizer: HidVaeQuantizer, codes_NL: np.ndarray) -> list[dict[str, Any]]:
    """What every used first code stands for, most items first: code, items, tag, confidence."""
    counts = np.bincount(codes_NL[:, 0], minlength=quantizer.sizes[0])
    used = np.flatnonzero(counts)
    # The first tag depends on the first code alone; the others are placeholders.
    probe_CL = np.zeros((len(used), len(quantizer.sizes)), np.int32)
    probe_CL[:, 0] = used
    classes_CT, confidence_CT = quantizer.predict_tags(probe_CL)
    rows = [
        {
            "code": int(code),
            "items": int(counts[code]),
            "tag": quantizer.vocab.names[0][classes_CT[row, 0]],
            "confidence": float(confidence_CT[row, 0]),
        }
        for row, code in enumerate(used)
    ]
    return sorted(rows, key=lambda row: (-row["items"], row["code"]))


def path_text(codes: list[int], tags: list[str | None], confidences: list[float]) -> str:
    """`12 Fasteners (0.98) > 7 Screws (0.91) > 255` for a person."""
    parts = []
    for level, code in enumerate(codes):
        known = level < len(tags) and tags[level] is not None
        parts.append(f"{code} {tags[level]} ({confidences[level]:.2f})" if known else str(code))
    return " > ".join(parts)
