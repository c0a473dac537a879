"""Settings of group-relative policy optimisation, checked at construction and free of heavy imports."""

from __future__ import annotations

from dataclasses import dataclass

from configs.program import InputError
from infer.search.trie import SCORE_SPACES


@dataclass(frozen=True)
class GrpoSettings:
    """How rollouts are drawn and scored."""

    num_generations: int = 16
    """rollouts per prompt: the beam width of the constrained search"""
    beta: float = 1e-3
    """weight of the KL penalty; 0 needs no reference model"""
    temperature: float = 1.0
    """divides the logits in rollouts and loss"""
    rollout_space: str = "full"
    """score space of the search: full, level or trie"""
    logprob_space: str = "full"
    """score space of the policy in the loss: full, level or trie"""
    drop_zero_variance: bool = False
    """leave groups whose rewards are all equal out of the loss"""
    loss: str = "grpo"
    """the loss, by name (train/policy/losses.py)"""
    dropout: bool = False
    """keep the dropout of the model's own configuration in the loss; rollouts never have it"""

    def __post_init__(self) -> None:
        if self.num_generations < 2:
            raise InputError(f"num_generations {self.num_generations}: a group needs at least 2 rollouts")
        if self.beta < 0 or self.temperature <= 0:
            raise InputError(
                f"beta {self.beta} must not be negative and temperature {self.temperature} must be positive"
            )
        for name, space in (("rollout_space", self.rollout_space), ("logprob_space", self.logprob_space)):
            if space not in SCORE_SPACES:
                raise InputError(f"{name} {space!r} -> one of {', '.join(SCORE_SPACES)}")
