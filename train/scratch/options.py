"""Options of trainings from scratch. Defaults are the published ones of MiniOneRec's small baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from configs.needs import Need, require_needs
from configs.program import InputError


@dataclass
class EpochOptions:
    """How a training from scratch runs (train/scratch/loop.py)."""

    epochs: int = 500
    """Most passes over the train rows."""
    rows: int = 1024
    """Train rows of a step, about: a batch ends with the window that reaches them."""
    learning_rate: float = 1e-3
    """After the warm-up."""
    evidence_rate: float = 1.0
    """Learning rate of what weighs the evidence of histories (alphas and bonuses, a handful of numbers), in learning rates of the rest."""
    repeats: Literal["train", "valid"] = "train"
    """Which rows say how often an item of the history comes again: valid: when all is learned, one number is added to all bonuses, by
    `select_by` on valid rows (train/scratch/repeats.py)."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """cosine: from learning_rate down to 0 at the end of `epochs`, whether or not patience stops before."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """What weight_decay means: adam adds it to the gradient, adamw shrinks weights apart from it."""
    weight_decay: float = 1e-5
    """Of matrices; vectors (biases, norms) and what weighs evidence have none with adamw."""
    beta2: float = 0.999
    """Decay of the second moment."""
    clip: float = 0.0
    """Longest gradient of all parameters together; 0: any."""
    average: float = 0.0
    """Decay of a running mean of the weights, which is validated and handed on (train/scratch/average.py); 0: the weights themselves."""
    eval_every: int = 1
    """Epochs between validations."""
    patience: int = 20
    """Stop after this many validations without a better one; 0: never."""
    select_by: Literal["ndcg@10", "ndcg@20", "hr@10"] = "ndcg@10"
    """What chooses the state, on valid rows."""
    valid_rows: int | None = None
    """Seeded sample of valid rows that choose it and say how often items come again; null = all of them."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it trains; auto: the GPU if there is one."""

    def __post_init__(self) -> None:
        least = {"epochs": 1, "rows": 1, "eval_every": 1, "warmup_steps": 0, "patience": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"loop.{name} {getattr(self, name)} must be at least {bound}")
        if self.valid_rows is not None and self.valid_rows < 1:
            raise InputError(f"loop.valid_rows {self.valid_rows} must be at least 1, or null")
        if not self.learning_rate > 0 or self.weight_decay < 0 or self.clip < 0 or not 0 <= self.beta2 < 1:
            raise InputError(
                f"loop: learning_rate {self.learning_rate} must be > 0, weight_decay {self.weight_decay} and clip {self.clip} >= 0, "
                f"beta2 {self.beta2} in [0, 1)"
            )
        if not 0 < self.evidence_rate < float("inf"):
            raise InputError(f"loop.evidence_rate {self.evidence_rate} must be above 0 and finite")
        if not 0 <= self.average < 1:
            raise InputError(f"loop.average {self.average} must lie in [0, 1)")


@dataclass
class ItemLoss:
    """What a sequential model is trained with (train/scratch/losses.py)."""

    kind: Literal["bce", "ce"] = "bce"
    """bce: the target against drawn negatives; ce: cross-entropy over all items"""
    negatives: int = 1
    """Items drawn evenly from all others for each row; for bce."""
    dro_alpha: float = 0.0
    """Weight of the distributionally robust term (DROS); 0: none."""
    dro_beta: float = 1.0
    """Its temperature."""
    neighbour_share: float = 0.0
    """Share of a target's probability that goes to the items with the most similar text; for ce."""
    neighbours: int = 10
    """How many such items."""

    def __post_init__(self) -> None:
        if self.negatives < 1 or self.neighbours < 1 or self.dro_alpha < 0 or not self.dro_beta > 0:
            raise InputError(
                f"loss: negatives {self.negatives} and neighbours {self.neighbours} must be at least 1, dro_alpha "
                f"{self.dro_alpha} >= 0, dro_beta {self.dro_beta} > 0"
            )
        if not 0 <= self.neighbour_share < 1:
            raise InputError(f"loss.neighbour_share {self.neighbour_share} must lie in [0, 1)")
        if self.neighbour_share and (self.kind == "bce" or self.dro_alpha):
            raise InputError(
                "loss.neighbour_share spreads a target of the cross-entropy alone -> loss.kind ce without dro_alpha, or 0"
            )
        require_needs(self, "loss.")

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        return [
            Need(
                ("negatives",), self.kind == "bce" or self.dro_alpha > 0, "loss.kind bce or dro_alpha above 0"
            ),
            Need(("dro_beta",), self.dro_alpha > 0, "loss.dro_alpha above 0"),
            Need(("neighbours",), self.neighbour_share > 0, "loss.neighbour_share above 0"),
        ]
