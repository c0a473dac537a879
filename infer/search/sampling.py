"""How a search chooses among the candidates of a level: the best, or a draw.

    search(..., sampler=None)                    the K best (beam search; greedy with one beam)
    search(..., sampler=StochasticBeam(seed=1))  K distinct items drawn without replacement
    search(..., sampler=Ancestral(seed=1))       K independent draws, repeats and all

Both draws follow the probabilities of the legal items, so they need the score space `trie`, in which the children of every
node sum to one. With a sampler the beams come in the order of the draw. What a row draws depends on the seed and on its key
(an integer that names the row; default: its number), not on the rows beside it.

Legend: B prompts, K beams, X candidates of a beam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from infer.search.noise import child_keys, gumbel, row_keys


class Choice(Protocol):
    """One search's way to go from K beams to the next level's."""

    def width(self, candidates: int) -> int:
        """How many beams leave a level that has `candidates` per prompt."""

    def __call__(
        self, scores_BK: Tensor, step_BKX: Tensor, width: int, codes_BKX: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(parent beam int64 [B, width], candidate int64 [B, width], summed score [B, width]).

        codes_BKX int64, or [X] for all beams: the code of every candidate.
        """

    def finish(self, scores_BK: Tensor) -> tuple[Tensor, Tensor | None]:
        """(scores of the returned beams, their log inclusion probabilities or None)."""


class Sampler(Protocol):
    """What `search` takes as `sampler`."""

    def begin(self, batch: int, beams: int, device: torch.device) -> Choice: ...


class Best:
    """The candidates with the highest scores. own_B int64: rows that have fewer beams than `beams` (None: all have as many)."""

    def __init__(self, beams: int, own_B: Tensor | None = None) -> None:
        self.beams, self.own_B = beams, own_B

    def width(self, candidates: int) -> int:
        return min(self.beams, candidates)

    def __call__(
        self, scores_BK: Tensor, step_BKX: Tensor, width: int, codes_BKX: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        totals_BF = (scores_BK[..., None] + step_BKX).flatten(1)
        scores, flat = totals_BF.topk(width, dim=1)
        if self.own_B is not None:
            place_K = torch.arange(width, device=scores.device)
            scores = scores.masked_fill(place_K >= self.own_B[:, None], float("-inf"))
        return flat // step_BKX.shape[2], flat % step_BKX.shape[2], scores

    def finish(self, scores_BK: Tensor) -> tuple[Tensor, Tensor | None]:
        return scores_BK, None


@dataclass(frozen=True)
class StochasticBeam:
    """K distinct items without replacement in one search: Gumbel-top-k over the trie (Kool et al. 2019, arXiv 1903.06059).

    Every leaf's log-probability gets Gumbel noise and the K largest win; going down, a node's noisy value is the maximum
    of its children's, so only K beams are kept per level. The (K + 1)-th largest is the threshold kappa: an item of
    log-probability phi is in the sample with probability 1 - exp(-exp(phi - kappa)), which makes
    sum of f(item) * exp(score - log_inclusion) an unbiased estimate of the expectation of f.
    """

    seed: int = 0
    keys: Sequence[int] | None = None

    def begin(self, batch: int, beams: int, device: torch.device) -> Choice:
        keys = range(batch) if self.keys is None else self.keys
        return _GumbelTopK(row_keys(self.seed, keys, device)[:, None], beams)


class _GumbelTopK:
    def __init__(self, keys_B1: Tensor, beams: int) -> None:
        self.keys_BK, self.beams = keys_B1, beams
        self.noisy_BK = gumbel(keys_B1)

    def width(self, candidates: int) -> int:
        return min(self.beams + 1, candidates)  # one more: its value is the threshold

    def __call__(
        self, scores_BK: Tensor, step_BKX: Tensor, width: int, codes_BKX: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        phi_BKX = scores_BK[..., None] + step_BKX
        keys_BKX = child_keys(self.keys_BK[..., None], codes_BKX)
        free_BKX = phi_BKX + gumbel(keys_BKX)
        below_BKX = free_BKX - free_BKX.amax(2, keepdim=True)
        # Children conditioned on their maximum being the parent's value (appendix B.3 of the paper).
        v_BKX = self.noisy_BK[..., None] - free_BKX + _log1mexp(below_BKX)
        noisy_BKX = self.noisy_BK[..., None] - v_BKX.relu() - torch.log1p((-v_BKX.abs()).exp())
        noisy_BKX = noisy_BKX.masked_fill(phi_BKX == float("-inf"), float("-inf"))
        self.noisy_BK, flat = noisy_BKX.flatten(1).topk(width, dim=1)
        self.keys_BK = keys_BKX.flatten(1).gather(1, flat)
        return flat // step_BKX.shape[2], flat % step_BKX.shape[2], phi_BKX.flatten(1).gather(1, flat)

    def finish(self, scores_BK: Tensor) -> tuple[Tensor, Tensor | None]:
        kept_BK = scores_BK[:, : self.beams]
        kappa_B1 = self.noisy_BK[:, self.beams :]
        none_BK = kept_BK == float("-inf")  # fewer legal items than draws
        if kappa_B1.shape[1]:
            log_BK = _log1mexp(-(kept_BK - kappa_B1).exp())
        else:  # every item was drawn
            log_BK = torch.zeros_like(kept_BK)
        return kept_BK, log_BK.masked_fill(none_BK, float("-inf"))


@dataclass(frozen=True)
class Ancestral:
    """K independent draws from the model's distribution over legal items; the same item may come several times."""

    seed: int = 0
    keys: Sequence[int] | None = None

    def begin(self, batch: int, beams: int, device: torch.device) -> Choice:
        keys_B = row_keys(self.seed, range(batch) if self.keys is None else self.keys, device)
        return _Independent(child_keys(keys_B[:, None], torch.arange(beams, device=device)))


class _Independent:
    def __init__(self, keys_BK: Tensor) -> None:
        self.keys_BK, self.beams = keys_BK, keys_BK.shape[1]

    def width(self, candidates: int) -> int:
        return self.beams

    def __call__(
        self, scores_BK: Tensor, step_BKX: Tensor, width: int, codes_BKX: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, rows, _ = step_BKX.shape
        keys_BKX = child_keys(self.keys_BK[..., None], codes_BKX)
        column_BK = (step_BKX + gumbel(keys_BKX)).argmax(2)  # a single root is broadcast over the beams
        self.keys_BK = keys_BKX.gather(2, column_BK[..., None]).squeeze(2)
        parent_BK = (torch.arange(self.beams, device=step_BKX.device) % rows).expand(batch, -1)
        step_BK = step_BKX.expand(-1, self.beams, -1).gather(2, column_BK[..., None]).squeeze(2)
        return parent_BK, column_BK, scores_BK + step_BK

    def finish(self, scores_BK: Tensor) -> tuple[Tensor, Tensor | None]:
        return scores_BK, None


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) of x <= 0 without cancellation at either end."""
    return torch.where(x > -0.6931, torch.log(-torch.expm1(x)), torch.log1p(-x.exp()))
