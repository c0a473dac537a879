"""Fuse models: the product or the mixture of what they say of the next item, or one order of their pooled lists.

reads   saved item models (of infer.run_baselines, train.train_sequential, score caches, other fusions) and predictions of
        models with semantic IDs (of infer.recommend), all of one data set
writes  <output_dir>/: the fusion as an item model, of which members with which weights (infer/models/fusion.py)
        <output_root>/<name>.<split>/: its predictions and their manifest, name being the last part of output_dir

`--how product` adds log-probabilities (equal weights: the recipe's log-fusion), `mixture` adds probabilities. Weights that make the
valid rows most likely: `--weights em` of a mixture, `--weights likelihood` of a product; `--scale fitted` multiplies all weights of a
product by one such number, which no order depends on and a teacher needs. No weight is ever searched on a ranking metric. `pool` lists what any member lists among
its `pool_k` best, in the order of the product; weights [1, 0] order it by the first member alone. Its manifest counts the
targets on each list and in the pool. Predictions of one model on several splits are one member: name all of their directories.

python -m infer.fuse --members [outputs/run/baselines/mixture,outputs/run/baselines/text] --how mixture --weights em \
    --data data/industrial --output_dir outputs/run/baselines/fused --output_root outputs/run/eval
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from configs import program
from configs.needs import Need, require_needs
from configs.program import AlreadyComplete, InputError, say, warn
from data import artifacts
from data.rows import Rows, read_rows
from data.store.output import open_output
from infer.models import contract, exponents, fusion
from infer.models.answers import write_answers
from infer.models.members import FusionMember, members_of, opened_for, require_fusable
from infer.models.recency import with_ages

MODEL_STAGE, STAGE, VERSION = "item model fusion", "fuse", 1
LISTS_VERSION = 2  # ties are listed whole
FITTED = "valid"  # the rows that weights are fitted to
FIT_ROWS = 5_000  # of them, where the weights of a product are


@dataclass
class FuseArgs:
    """A fusion and its predictions."""

    members: list[str]
    """directories of saved item models or of predictions, two models or more"""
    data: str
    """prepared data set"""
    output_dir: str
    """where the fusion is saved, e.g. outputs/<run>/baselines/<name>"""
    output_root: str
    """folder of the prediction directories, outputs/<run>/eval"""
    how: str = "product"
    """product (of probabilities, renormalised), mixture (their weighted mean) or pool (the product among listed items)"""
    weights: list[float] | str = "equal"
    """equal; by the likelihood of valid rows em (of a mixture) or likelihood (of a product); or one number per member in their order"""
    scale: float | str = 1.0
    """factor of all weights of a product: a number, or fitted (to the likelihood of valid rows)"""
    pool_k: int = 50
    """length of each member's list in a pool"""
    splits: list[str] = field(default_factory=lambda: ["valid", "test"])
    """which rows to answer"""
    depth: int = 50
    """length of the lists; items that tie for the last place are written too"""
    overwrite: bool = False
    """replace outputs of another configuration"""

    def __post_init__(self) -> None:
        if self.how not in fusion.HOW:
            raise InputError(f"unknown how {self.how!r} -> one of {', '.join(fusion.HOW)}")
        if isinstance(self.weights, str) and self.weights not in ("equal", "em", "likelihood"):
            raise InputError(
                f"unknown weights {self.weights!r} -> equal, em, likelihood, or a list of numbers"
            )
        if self.weights == "likelihood" and (self.how != "product" or self.scale != 1):
            raise InputError(
                f"weights likelihood are those of a product, scale and all, not of a {self.how} with scale {self.scale} -> "
                "--how product without a scale, or other weights"
            )
        if self.weights == "em" and self.how != "mixture":
            raise InputError(
                f"EM fits the weights of a mixture, not of a {self.how} -> --how mixture, or weights equal"
            )
        if not isinstance(self.weights, str) and (
            not all(isfinite(weight) and weight >= 0 for weight in self.weights) or not sum(self.weights) > 0
        ):
            raise InputError(f"weights {self.weights} must not be negative and not all be 0")
        fitted = self.scale == "fitted"
        if not fitted and (isinstance(self.scale, str) or not (isfinite(self.scale) and self.scale > 0)):
            raise InputError(f"scale {self.scale!r} must be a number above 0, or fitted")
        if wrong := set(self.splits) - set(artifacts.SPLITS):
            raise InputError(f"unknown split {sorted(wrong)[0]!r} -> one of {', '.join(artifacts.SPLITS)}")
        if min(self.pool_k, self.depth) < 1:
            raise InputError(f"pool_k {self.pool_k} and depth {self.depth} must be at least 1")
        require_needs(self)

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        return [
            Need(("pool_k",), self.how == "pool", "how pool"),
            Need(("scale",), self.how == "product", "how product"),
        ]


@dataclass(frozen=True)
class OneFusion:
    """What decides a saved fusion, beside its members' content: the configuration of its manifest."""

    data: str
    members: list[str]
    how: str
    weights: list[float] | str
    pool_k: int
    overwrite: bool
    scale: float | str = 1.0

    def needs(self) -> list[Need]:
        return [Need(("pool_k",), self.how == "pool", "how pool")]


@dataclass(frozen=True)
class FusedAnswers:
    """What decides one prediction directory of a fusion: the configuration of its manifest."""

    data: str
    model: str
    split: str
    depth: int
    overwrite: bool


def rows_of(data: str, split: str, num_items: int) -> Rows:
    """Rows of a split, with the ages that some models weigh by."""
    return with_ages(read_rows(data, split, num_items=num_items), data, num_items=num_items)


def sample(rows: Rows, most: int) -> Rows:
    """At most so many of the rows, drawn once and for all: enough for a few weights, and every pass asks every member."""
    if len(rows) <= most:
        return rows
    return rows.take(np.sort(np.random.default_rng(0).permutation(len(rows))[:most]))


def weights_of(
    one: OneFusion, members: list[FusionMember], splits: list[str], num_items: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """(weights float64 [M] before any scale, what the manifest says of the rows behind members, weights and scale)."""
    fits = [
        what
        for what, asked in (
            ("weights", one.weights in ("em", "likelihood")),
            ("scale", one.scale == "fitted"),
        )
        if asked
    ]
    splits = list(dict.fromkeys([*splits, *([FITTED] if fits else [])]))
    fitted_on = require_fusable(members, one.data, splits, num_items=num_items)
    models = opened_for(members, one.data, splits, num_items=num_items)
    found: dict[str, Any] = {"fitted_on": fitted_on}
    if fits and FITTED in fitted_on:
        raise InputError(
            f"members were fitted on {fitted_on}, so {FITTED} rows cannot tell their {fits[0]} -> "
            + ("weights equal" if fits[0] == "weights" else "scale 1")
        )
    weights_M = np.full(len(members), 1 / len(members))
    if not isinstance(one.weights, str):
        given_M = np.array(one.weights, float)
        weights_M = given_M / given_M.sum() if one.how == "mixture" else given_M
    if not fits:
        return weights_M, found | ({"scale": one.scale} if one.scale != 1 else {})
    rows = rows_of(one.data, FITTED, num_items)
    product, counted = fusion.FusionModel(models, weights_M, one.how), len(rows)
    if one.scale == "fitted":
        scale, nll = exponents.fitted_scale(product, rows)
        nll = {f"scale_{name}": value for name, value in nll.items()}
        found["scale"] = round(scale, 6)
    elif one.weights == "em":
        weights_M, nll = fusion.fitted_weights(models, rows)
    else:
        rows = sample(rows, FIT_ROWS)
        fit = exponents.fitted_exponents(product, rows)
        weights_M, nll, counted = fit.weight_M, fit.nll, fit.rows
        if counted < len(rows):
            warn(
                f"{len(rows) - counted:,} of {len(rows):,} {FITTED} rows are impossible for a member: they do not count"
            )
    nll = {f"{FITTED}_nll_{name}": round(value, 6) for name, value in nll.items()}
    return weights_M, found | {"tuned_on": FITTED, "tuned_rows": counted} | nll


def require_members(members: list[FusionMember], weights: list[float] | str) -> None:
    """InputError unless there are several members, and a weight for each that is 0 where it has no probabilities."""
    if len(members) < 2:
        raise InputError(f"one member ({members[0].name if members else 'none'}) is no fusion -> two or more")
    given = [1.0] * len(members) if isinstance(weights, str) else weights
    if len(given) != len(members):
        names = ", ".join(member.name for member in members)
        raise InputError(f"{len(given)} weights for {len(members)} members ({names}) -> one for each")
    for member, weight in zip(members, given, strict=True):
        if weight > 0 and not member.has_probabilities:
            raise InputError(
                f"{member.name} has ranks, no probabilities (imported predictions) -> --how pool with weight 0 for it"
            )


def save_fusion(args: FuseArgs, num_items: int) -> None:
    """Fit the weights and save the fusion, where that is not done yet."""
    one = OneFusion(args.data, args.members, args.how, args.weights, args.pool_k, args.overwrite, args.scale)
    inputs = {"data": args.data, "members": [Path(member) for member in args.members]}
    try:
        with open_output(one, MODEL_STAGE, version=VERSION, inputs=inputs, directory=args.output_dir) as out:
            members = members_of(args.members)
            require_members(members, one.weights)
            weights_M, found = weights_of(one, members, args.splits, num_items)
            scaled_M = weights_M * found.get("scale", 1.0)
            fusion.save(out, members, scaled_M, how=args.how, pool_k=args.pool_k, num_items=num_items)
            named = {member.name: round(float(w), 6) for member, w in zip(members, weights_M, strict=True)}
            out.counts |= {"items": num_items, "members": len(members)}
            out.facts |= {"how": args.how, "weights": named, **found}
            out.facts |= {"pool_k": args.pool_k} if args.how == "pool" else {}
            scale = f", all times {found['scale']:.4f}" if "scale" in found else ""
            say("fuse: " + ", ".join(f"{name} {weight:.4f}" for name, weight in named.items()) + scale)
    except AlreadyComplete:
        pass


def answer(args: FuseArgs, split: str, num_items: int) -> None:
    """The prediction directory of one split, where it is not there yet."""
    saved = Path(args.output_dir)
    one = FusedAnswers(args.data, args.output_dir, split, args.depth, args.overwrite)
    inputs = {"data": args.data, "model": args.output_dir}
    place = Path(args.output_root) / f"{saved.name}.{split}"
    try:
        with open_output(one, STAGE, version=LISTS_VERSION, inputs=inputs, directory=place) as out:
            model, rows = contract.load(saved), rows_of(args.data, split, num_items)
            write_answers(out, rows, model, saved=saved, name=saved.name, split=split, depth=args.depth)
            if args.how == "pool":
                lists, pool, size = model.pool_counts(rows)
                named = dict(zip(out.facts["weights"], lists, strict=True))
                out.facts |= {
                    "targets_listed": named | {"pool": pool},
                    "pool_items": round(size / len(rows), 2),
                }
                each = ", ".join(f"{found:,} on the list of {name}" for name, found in named.items())
                say(f"fuse: {pool:,} of {len(rows):,} targets are in the pool ({each})")
    except AlreadyComplete as complete:
        say(f"fuse: {complete}")


def main(args: FuseArgs) -> None:
    num_items = artifacts.read_items(args.data).num_rows
    save_fusion(args, num_items)
    for split in args.splits:
        answer(args, split, num_items)


if __name__ == "__main__":
    program.run(FuseArgs, main)
