"""Rollouts of the live policy: G semantic IDs per prompt by search or by draw, in a form that every loss can use.

| rollouts | what a group is |
|---|---|
| beam | the G best, best first |
| stochastic_beam | G distinct IDs drawn without replacement; `weights_PG` makes sums over them expectations of the policy |
| sample | G independent draws, repeats and all |
| dynamic_sampling | of 1.5 G draws every hit, then one of each other ID, the most frequent first, then repeats (MiniOneRec) |

A draw depends on the seed, the step and the example, not on batch or process. With a hint the search is confined to the IDs
that begin with the given codes. A target that was put in (`add_ground_truth`) is marked in `given_PG`.

Legend: P prompts, G rollouts, L levels, F legal items.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.sid import SidTable
from infer.search.sampling import Ancestral, Sampler, StochasticBeam
from infer.search.scoring import Parity
from infer.search.tree import Beams, search
from infer.search.trie import Trie
from train.policy.settings import GrpoSettings

MORE_DRAWS = 1.5


@dataclass(frozen=True)
class Rollouts:
    """beams; given_PG bool: not drawn by the policy; weights_PG float32 or None, mean about 1; hint_P int64: codes given."""

    beams: Beams
    given_PG: Tensor
    weights_PG: Tensor | None
    hint_P: Tensor

    def take(self, rows: Sequence[int]) -> Rollouts:
        """Those of some of the prompts."""
        at = torch.as_tensor(rows, device=self.hint_P.device)
        weights_PG = None if self.weights_PG is None else self.weights_PG[at]
        return Rollouts(take_beams(self.beams, at), self.given_PG[at], weights_PG, self.hint_P[at])


def take_beams(beams: Beams, at: Tensor) -> Beams:
    """The beams of some rows."""
    values = {name: getattr(beams, name) for name in beams.__dataclass_fields__}
    return Beams(**{name: None if value is None else value[at] for name, value in values.items()})


def join(parts: Sequence[Rollouts]) -> Rollouts:
    """The rollouts of several batches of prompts, one after another."""
    if len(parts) == 1:
        return parts[0]
    names = Beams.__dataclass_fields__
    columns = {name: [getattr(part.beams, name) for part in parts] for name in names}
    beams = Beams(**{name: None if v[0] is None else torch.cat(v) for name, v in columns.items()})
    weights = [part.weights_PG for part in parts]
    return Rollouts(
        beams,
        torch.cat([part.given_PG for part in parts]),
        None if weights[0] is None else torch.cat(weights),
        torch.cat([part.hint_P for part in parts]),
    )


def roll_out(
    policy: Any,
    trie: Trie,
    prompts: Sequence[Sequence[int]],
    targets_P: np.ndarray,
    settings: GrpoSettings,
    *,
    seed: int,
    keys: Sequence[int],
    hints_P: np.ndarray | None = None,
) -> Rollouts:
    """The rollouts of one batch. targets_P: rows of `sids_SL`; keys: integers that name the prompts; hints_P: codes given."""
    group = settings.num_generations
    drawn = math.ceil(MORE_DRAWS * group) if settings.rollouts == "dynamic_sampling" else group
    hint_P = np.zeros(len(prompts), np.int64) if hints_P is None else np.asarray(hints_P, np.int64)
    searched, roots_B = trie, None
    if hint_P.any():
        searched, roots_B = confined(trie, targets_P, hint_P), range(len(prompts))
    beams = search(
        policy,
        prompts,
        searched,
        drawn,
        settings.rollout_space,
        parity=Parity(temperature=settings.temperature),
        roots_B=roots_B,
        sampler=_sampler(settings, seed, keys),
    )
    if searched is not trie:
        beams = replace(beams, prefixes_BKL=_prefixes(trie, beams))
    targets_P = torch.as_tensor(targets_P, device=trie.device)
    if settings.rollouts == "dynamic_sampling":
        beams = _varied(beams, targets_P, group)
    weights_PG = None
    if beams.log_inclusion_BK is not None:
        weights_PG = inclusion_weights(beams)
        beams = replace(beams, log_inclusion_BK=None)
    given_PG = torch.zeros_like(beams.nodes_BK, dtype=torch.bool)
    if settings.add_ground_truth:
        beams, given_PG = _with_target(beams, trie, targets_P)
    return Rollouts(beams, given_PG, weights_PG, torch.as_tensor(hint_P, device=trie.device))


def _sampler(settings: GrpoSettings, seed: int, keys: Sequence[int]) -> Sampler | None:
    if settings.rollouts == "beam":
        return None
    return (StochasticBeam if settings.rollouts == "stochastic_beam" else Ancestral)(seed, keys)


def confined(trie: Trie, targets_P: np.ndarray, hint_P: np.ndarray) -> Trie:
    """A trie with one catalogue per prompt: the IDs whose first `hint_P` codes are the target's."""
    codes_SL = trie.sids.sids_SL
    catalogues = []
    for target, depth in zip(targets_P, hint_P, strict=True):
        same_S = (codes_SL[:, :depth] == codes_SL[target, :depth]).all(1)
        catalogues.append(np.flatnonzero(same_S))
    return Trie(trie.sids, trie.vocab, catalogues=catalogues, device=trie.device)


def _prefixes(trie: Trie, beams: Beams) -> Tensor:
    """Nodes of the whole trie before each level, those of the first beam beyond the legal ones."""
    place_K = torch.arange(beams.codes_BKL.shape[1], device=trie.device)
    legal_BK1 = (place_K < beams.counts_B[:, None])[..., None]
    return trie.prefixes(beams.codes_BKL.where(legal_BK1, beams.codes_BKL[:, :1]))


def inclusion_weights(beams: Beams) -> Tensor:
    """n * p / q float32 [P, G]: probability over inclusion probability, times the number of drawn IDs; 0 beyond them.

    The mean of f * weight over the drawn is an unbiased estimate of the policy's expectation of f (Kool et al. 2019).
    Two of the IDs with p = .5, .3, .2 drawn, the first with q = .8, the second with q = .6: weights 1.25 and 1.
    """
    log_BK = beams.scores_BK - beams.log_inclusion_BK
    legal_BK = beams.log_inclusion_BK > float("-inf")
    return (log_BK.exp() * beams.counts_B[:, None]).where(legal_BK, 0.0)


def _varied(beams: Beams, targets_P: Tensor, group: int) -> Beams:
    """`group` of the draws of each prompt: hits, then one of each other ID by frequency, then repeats, each in drawn order."""
    chosen = []
    for nodes, target in zip(beams.nodes_BK.tolist(), targets_P.tolist(), strict=True):
        hits = [place for place, node in enumerate(nodes) if node == target]
        first = {node: nodes.index(node) for node in nodes if node != target}
        often = Counter(nodes)
        distinct = sorted(first.values(), key=lambda place: (-often[nodes[place]], place))
        taken = set(hits) | set(distinct)
        repeats = [place for place in range(len(nodes)) if place not in taken]
        chosen.append((hits + distinct + repeats)[:group])
    at_BG = torch.tensor(chosen, device=beams.nodes_BK.device)
    wide_BGL = at_BG[..., None].expand(-1, -1, beams.codes_BKL.shape[2])
    return Beams(
        beams.codes_BKL.gather(1, wide_BGL),
        beams.scores_BK.gather(1, at_BG),
        beams.nodes_BK.gather(1, at_BG),
        torch.full_like(beams.counts_B, group),
        beams.prefixes_BKL.gather(1, wide_BGL),
    )


def _with_target(beams: Beams, trie: Trie, targets_P: Tensor) -> tuple[Beams, Tensor]:
    """The target in the last legal place of the groups that lack it, and where that was."""
    lacks_P = ~(beams.nodes_BK == targets_P[:, None]).any(1)
    place_G = torch.arange(beams.nodes_BK.shape[1], device=trie.device)
    given_PG = lacks_P[:, None] & (place_G == beams.counts_B[:, None] - 1)
    codes_PL = target_codes(trie, targets_P)
    prefixes_PL = trie.prefixes(codes_PL[:, None])[:, 0]
    return replace(
        beams,
        codes_BKL=codes_PL[:, None].where(given_PG[..., None], beams.codes_BKL),
        nodes_BK=targets_P[:, None].where(given_PG, beams.nodes_BK),
        prefixes_BKL=prefixes_PL[:, None].where(given_PG[..., None], beams.prefixes_BKL),
    ), given_PG


def target_codes(trie: Trie, targets_P: Tensor) -> Tensor:
    """Codes int64 [P, L] of rows of `sids_SL`."""
    return torch.as_tensor(trie.sids.sids_SL[targets_P.cpu().numpy()], device=trie.device).long()


def with_branch(beams: Beams, trie: Trie, codes_PL: Tensor) -> Beams:
    """The beams with one more ID per prompt in front, so that one forward scores both."""
    codes_P1L = codes_PL[:, None]
    extra = {
        "codes_BKL": codes_P1L,
        "scores_BK": beams.scores_BK.new_zeros((len(codes_PL), 1)),
        "nodes_BK": beams.nodes_BK.new_zeros((len(codes_PL), 1)),
        "prefixes_BKL": trie.prefixes(codes_P1L),
    }
    joined = {name: torch.cat([value, getattr(beams, name)], dim=1) for name, value in extra.items()}
    return Beams(counts_B=beams.counts_B + 1, **joined)


def subtree(beams: Beams, sids: SidTable, trie: Trie) -> Beams:
    """All IDs behind the last prefixes of the beams: the beams first, in their order, then the others.

    With as many beams as there are IDs, that is the whole catalogue.
    """
    last_S = np.unique(sids.sids_SL[:, :-1], axis=0, return_inverse=True)[1].reshape(-1)
    groups = []
    for nodes, count in zip(beams.nodes_BK.tolist(), beams.counts_B.tolist(), strict=True):
        found = nodes[:count]
        below = np.flatnonzero(np.isin(last_S, last_S[found]))
        known = set(found)
        groups.append(found + [int(node) for node in below if int(node) not in known])
    width = max(map(len, groups))
    nodes_PF = torch.tensor(
        [group + [group[0]] * (width - len(group)) for group in groups], device=trie.device
    )
    counts_P = torch.tensor([len(group) for group in groups], device=trie.device)
    codes_PFL = target_codes(trie, nodes_PF.flatten()).view(*nodes_PF.shape, -1)
    beyond_PF = torch.arange(width, device=trie.device) >= counts_P[:, None]
    scores_PF = torch.zeros_like(nodes_PF, dtype=torch.float32).masked_fill(beyond_PF, float("-inf"))
    return Beams(
        codes_PFL, scores_PF, nodes_PF.masked_fill(beyond_PF, -1), counts_P, trie.prefixes(codes_PFL)
    )
