"""Log-probabilities of the codes of rollouts, every prefix computed once: the one policy forward of loss and reference.

A row is [prompt | distinct first codes | distinct first two codes | ...] of one prompt: a prefix that several rollouts share
is one token, and one state of the output layer. With 16 beams behind a prompt of 128 tokens that is at most 160 tokens
instead of 16 rows of 130. A mask lets a token see the prompt, its ancestors and itself; explicit position ids place it.

Legend: P prompts, G rollouts, L levels, T slots of the prompts, U branch slots, N = T + U, n distinct prefixes of a depth of
all prompts, X candidates of a level, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infer.search.causal import AttentionMasks
from infer.search.prompts import right_pad
from infer.search.scoring import LevelScorer, Parity
from infer.search.tree import Beams
from infer.search.trie import Trie
from train.scale.tables import lookups_of, table_scores


@dataclass(frozen=True)
class BranchScores:
    """logps_PGL float32, differentiable; of the states before each code, detached: entropy_PGL of the legal codes (nats),
    log_mass_PGL: log of the probability of the legal codes in the score space (0 in `trie`)."""

    logps_PGL: Tensor
    entropy_PGL: Tensor
    log_mass_PGL: Tensor

    def of(self, rollouts: slice) -> BranchScores:
        """Those of some of the G rollouts."""
        return BranchScores(
            *(value[:, rollouts] for value in (self.logps_PGL, self.entropy_PGL, self.log_mass_PGL))
        )


@dataclass(frozen=True)
class _Depth:
    """The distinct prefixes of one depth: row_n, slot_n within the row, node_n, token_n, and which one each rollout has."""

    row_n: Tensor
    slot_n: Tensor
    node_n: Tensor
    which_PG: Tensor
    first_n: Tensor


def tree_logprobs(
    model: Any, trie: Trie, prompts: Sequence[Sequence[int]], beams: Beams, *, space: str, temperature: float
) -> BranchScores:
    """Log-probabilities of the codes of `beams` behind their prompts; what stands beyond counts_B is that of the first beam.

    Goes through the model's own forward, so that wrappers (DDP) see it; its head computes one position, ours the rest.
    """
    codes_PGL, prefixes_PGL = _legal(beams)
    levels = codes_PGL.shape[2]
    ids_PT, lengths_P = right_pad(prompts, device=codes_PGL.device)
    depths = _depths(codes_PGL, prefixes_PGL, first_slot=ids_PT.shape[1])
    ids_PN, positions_PN, allowed_PNN = _layout(trie, codes_PGL, depths, ids_PT, lengths_P)
    inner = getattr(model, "module", model)
    with lookups_of(inner) as lookups:
        output = model(
            input_ids=ids_PN,
            attention_mask=AttentionMasks(inner)(allowed_PNN, positions_PN, positions_PN),
            position_ids=positions_PN,
            use_cache=False,
            output_hidden_states=True,
            logits_to_keep=1,
        )
    hidden_PND = output.hidden_states[-1]
    scorer = LevelScorer(inner, trie, space, Parity(temperature=temperature))
    states = [
        (depth.row_n, lengths_P - 1 if level == 0 else depth.slot_n) for level, depth in enumerate(depths)
    ]
    hidden_nD = torch.cat([hidden_PND[rows, slots] for rows, slots in states])
    weight_VD = scorer.weight_VD if lookups.weight is None else lookups.weight
    rows_CD, norm_n = table_scores(
        hidden_nD, weight_VD, scorer.bias_V, scorer.transform,
        columns_C=torch.cat(list(trie.tokens)), normalise=space == "full",
        table=weight_VD if lookups.weight is None else lookups.table,
    )  # fmt: skip
    scorer.rows = dict(enumerate(rows_CD.split([len(tokens_C) for tokens_C in trie.tokens])))
    parts, start = [], 0
    for level in range(levels):
        here = slice(start, start + len(depths[level].row_n))
        start = here.stop
        norm_1n = None if norm_n is None else norm_n[here][None]
        parts.append(_of_level(scorer, hidden_nD[here], level, depths[level], codes_PGL[..., level], norm_1n))
    return BranchScores(*(torch.stack(values, dim=2) for values in zip(*parts, strict=True)))


def _legal(beams: Beams) -> tuple[Tensor, Tensor]:
    """Codes and prefixes [P, G, L], those of the first beam beyond the legal ones: their own nodes belong to other paths."""
    place_G = torch.arange(beams.codes_BKL.shape[1], device=beams.codes_BKL.device)
    legal_PG1 = (place_G < beams.counts_B[:, None])[..., None]
    return tuple(value.where(legal_PG1, value[:, :1]) for value in (beams.codes_BKL, beams.prefixes_BKL))


def _depths(codes_PGL: Tensor, prefixes_PGL: Tensor, *, first_slot: int) -> list[_Depth]:
    """The distinct prefixes of every depth 0 .. L - 1; those of depth 0 are the prompts themselves."""
    prompts, group, levels = codes_PGL.shape
    rows_P1 = torch.arange(prompts, device=codes_PGL.device)[:, None]
    depths = []
    for depth in range(levels):
        nodes_PG = prefixes_PGL[..., depth]
        keys_PG = rows_P1 * (nodes_PG.max() + 1) + nodes_PG
        keys_n, which_R = torch.unique(keys_PG, return_inverse=True)
        which_R = which_R.flatten()
        first_n = torch.full_like(keys_n, prompts * group).scatter_reduce(
            0, which_R, torch.arange(prompts * group, device=keys_n.device), "amin"
        )
        row_n, node_n = first_n // group, nodes_PG.flatten()[first_n]
        within_n = torch.arange(len(keys_n), device=keys_n.device) - torch.searchsorted(row_n, row_n)
        depths.append(_Depth(row_n, first_slot + within_n, node_n, which_R.view(prompts, group), first_n))
        first_slot += int(within_n.max()) + 1 if depth else 0
    return depths


def _layout(
    trie: Trie, codes_PGL: Tensor, depths: Sequence[_Depth], ids_PT: Tensor, lengths_P: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(ids int64 [P, N], positions int64 [P, N], which slot sees which, bool [P, N, N])."""
    prompts, width = ids_PT.shape
    branches = max((int(depth.slot_n.max()) + 1 for depth in depths[1:]), default=width) - width
    ids_PN = torch.nn.functional.pad(ids_PT, (0, branches))
    slots_N = torch.arange(width + branches, device=ids_PT.device)
    positions_PN = slots_N.minimum(lengths_P[:, None] - 1)
    in_prompt_PN = slots_N < lengths_P[:, None]
    causal_NN = slots_N[:, None] >= slots_N
    allowed_PNN = in_prompt_PN[:, None] & causal_NN
    allowed_PNN[:, slots_N, slots_N] = True  # a slot that holds nothing sees itself: its softmax is defined
    codes_RL = codes_PGL.flatten(0, 1)
    for at in range(1, len(depths)):
        here = depths[at]
        ids_PN[here.row_n, here.slot_n] = trie.tokens[at - 1][codes_RL[here.first_n, at - 1]]
        positions_PN[here.row_n, here.slot_n] = lengths_P[here.row_n] + at - 1
        for ancestor in depths[1:at]:
            seen_n = ancestor.slot_n[ancestor.which_PG.flatten()[here.first_n]]
            allowed_PNN[here.row_n, here.slot_n, seen_n] = True
    return ids_PN, positions_PN, allowed_PNN


def _of_level(
    scorer: LevelScorer,
    hidden_nD: Tensor,
    level: int,
    depth: _Depth,
    codes_PG: Tensor,
    norm_1n: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probability, entropy, log mass) [P, G] of one code per rollout."""
    scores_1nX, at_1nX = scorer(hidden_nD[None], level, depth.node_n[None], full_BK=norm_1n)
    scores_nX = scores_1nX[0]
    column_PG = codes_PG
    if at_1nX is not None:
        here_PGX = at_1nX[0][depth.which_PG] == codes_PG[..., None]
        legal_PGX = scores_nX.detach().isfinite()[depth.which_PG]
        column_PG = (here_PGX & legal_PGX).int().argmax(2)
    with torch.no_grad():
        mass_n = scores_nX.logsumexp(1)
        share_nX = scores_nX - mass_n[:, None]
        entropy_n = -(share_nX.exp() * share_nX.masked_fill(share_nX == float("-inf"), 0.0)).sum(1)
    logps_PG = scores_nX[depth.which_PG, column_PG]
    return logps_PG, entropy_n[depth.which_PG], mass_n[depth.which_PG]
