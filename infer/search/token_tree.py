"""Tree decoding of token sequences of different lengths: textual identifiers (TIDs).

The same trunk and scores as `infer.search.tree`, under the whole vocabulary; at every depth some beams complete a sequence and
leave into a pool of the K best, as in beam search of transformers: an ending counts only where it stands among the K best
candidates of its depth, and K beams always go on. Every `LOOK`-th depth is read back, to stop where nothing can change.

Legend: B prompts, K beams, X candidates of a beam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from configs.program import InputError, NumericError
from infer.search.prompts import right_pad
from infer.search.sampling import Ancestral
from infer.search.scoring import LevelScorer, Parity
from infer.search.token_trie import TokenTrie
from infer.search.tree import grow
from infer.search.trunk import trunk_class

ENDED = Parity(terminator=True)
LOOK = 4


@dataclass(frozen=True)
class TokenBeams:
    """Result of a search, best first: rows_BK int64 (numbers of the trie's sequences, -1 = none), scores_BK, counts_B."""

    rows_BK: Tensor
    scores_BK: Tensor
    counts_B: Tensor


@torch.no_grad()
def search_tokens(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    trie: TokenTrie,
    beams: int,
    score_space: str = "full",
    *,
    parity: Parity = ENDED,
    terminator_id: int | None = None,
) -> TokenBeams:
    """The `beams` best sequences of `trie` behind each prompt; the score is the sum of log-probabilities of the tokens.

    score_space: see `infer.search.tree`; other ones than `full` take no terminator. With `parity.terminator` (the default) the token `terminator_id` that ends an answer is scored too; without it a
    sequence that begins another one is never worse than that. `parity.length_penalty` divides by tokens ** penalty.
    Raises InputError for an empty prompt or a missing terminator, NumericError (exit 4) for scores that are not finite.
    """
    if beams < 1:
        raise InputError(f"beams {beams} must be positive")
    if parity.terminator and terminator_id is None:
        raise InputError("no terminator token to score -> give terminator_id, or Parity(terminator=False)")
    if parity.terminator and score_space != "full":
        raise InputError(f"score space {score_space} has no terminator -> full, or Parity(terminator=False)")
    widths = [1]
    for level in trie.levels:
        widths.append(min(beams, widths[-1] * level.width))
    trunk = trunk_class(model)(model, slots=sum(widths[1:]))
    hidden_BKD = trunk.start(*right_pad(prompt_ids, device=trie.device))
    scorer = LevelScorer(model, trie, score_space, parity, trunk.tokens_BT)
    batch = len(prompt_ids)
    nodes_BK = torch.zeros((batch, 1), dtype=torch.long, device=trie.device)
    scores_BK = torch.zeros((batch, 1), device=trie.device)
    full_BK = None
    path_BKl = nodes_BK.new_empty((batch, 1, 0))
    pool = (scores_BK.new_full((batch, beams), float("-inf")), nodes_BK.new_full((batch, beams), -1))
    for depth in range(trie.num_levels + 1):
        if score_space == "full" and (depth < trie.num_levels or parity.terminator):
            full_BK = scorer.full_normaliser(hidden_BKD, path_BKl)
        rows_BK = trie.ends[depth][nodes_BK]
        ending_BK = scores_BK.masked_fill(rows_BK < 0, float("-inf"))
        if parity.terminator:
            ending_BK = ending_BK + scorer.of_token(hidden_BKD, terminator_id, path_BKl, full_BK)
        ongoing_BF = scores_BK[:, :0]
        if depth < trie.num_levels:
            step_BKX, codes_BKX = scorer(hidden_BKD, depth, nodes_BK, path_BKl, full_BK)
            childless_BK = trie.levels[depth].children(nodes_BK) == 0  # no legal token: nothing to divide by
            step_BKX = step_BKX.masked_fill(childless_BK[..., None], float("-inf"))
            ongoing_BF = (scores_BK[..., None] + step_BKX).flatten(1)
        length = depth + parity.terminator
        pool = _merge(pool, _among_best(ending_BK, ongoing_BF, beams), rows_BK, length, parity)
        if depth < trie.num_levels:
            scores_BK, flat_BK = ongoing_BF.topk(widths[depth + 1], dim=1)
            if depth % LOOK == LOOK - 1 and not parity.length_penalty and _settled(scores_BK, pool[0]):
                break
            parent_BK, column_BK = flat_BK // step_BKX.shape[2], flat_BK % step_BKX.shape[2]
            token_BK = trie.tokens[depth][codes_BKX.flatten(1).gather(1, flat_BK)]
            nodes_BK = trie.child_at(depth, nodes_BK.gather(1, parent_BK), column_BK).clamp(min=0)
            path_BKl = grow(path_BKl, parent_BK, token_BK)
            if depth + 1 < trie.num_levels or parity.terminator:
                hidden_BKD = trunk.extend(token_BK, parent_BK)
    scores_BK, rows_BK = pool
    return _checked(rows_BK, scores_BK)


@torch.no_grad()
def draw_tokens(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    trie: TokenTrie,
    draws: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    keys: Sequence[int] | None = None,
) -> TokenBeams:
    """`draws` independent sequences of `trie` per prompt, repeats and all, in the order of the draw.

    Every token is drawn from the model's distribution over those that may follow; the score is the log-probability of the
    draw. No sequence may begin another one. keys: see `infer.search.sampling`. Raises as `search_tokens` does.
    """
    if draws < 1:
        raise InputError(f"draws {draws} must be positive")
    if not trie.prefix_free:
        raise InputError("a sequence begins another one -> give each the token that ends it")
    trunk = trunk_class(model)(model, slots=draws * trie.num_levels)
    hidden_BKD = trunk.start(*right_pad(prompt_ids, device=trie.device))
    scorer = LevelScorer(model, trie, "trie", Parity(temperature=temperature), trunk.tokens_BT)
    batch = len(prompt_ids)
    choice = Ancestral(seed, keys).begin(batch, draws, trie.device)
    nodes_BK = torch.zeros((batch, 1), dtype=torch.long, device=trie.device)
    scores_BK, rows_BK = torch.zeros((batch, 1), device=trie.device), nodes_BK - 1
    for depth in range(trie.num_levels):
        step_BKX, codes_BKX = scorer(hidden_BKD, depth, nodes_BK)
        # An ended draw stays where it is; what stands in its place is not read.
        step_BKX = step_BKX.masked_fill((rows_BK >= 0)[..., None], 0.0)
        parent_BK, column_BK, scores_BK = choice(scores_BK, step_BKX, draws, codes_BKX)
        rows_BK = rows_BK.gather(1, parent_BK)
        flat_BK = parent_BK * step_BKX.shape[2] + column_BK
        token_BK = trie.tokens[depth][codes_BKX.flatten(1).gather(1, flat_BK)]
        nodes_BK = trie.child_at(depth, nodes_BK.gather(1, parent_BK), column_BK).clamp(min=0)
        rows_BK = rows_BK.where(rows_BK >= 0, trie.ends[depth + 1][nodes_BK])
        if depth % LOOK == LOOK - 1 and (rows_BK >= 0).all():
            break
        if depth + 1 < trie.num_levels:
            hidden_BKD = trunk.extend(token_BK, parent_BK)
    return _checked(rows_BK, scores_BK)


def _settled(ongoing_BK: Tensor, pool_BK: Tensor) -> bool:
    """Whether nothing that goes on can still come into the pool: scores only fall. NaN goes on, and is found at the end."""
    return bool((ongoing_BK[:, 0] <= pool_BK[:, -1]).all())


def _checked(rows_BK: Tensor, scores_BK: Tensor) -> TokenBeams:
    if scores_BK.isnan().any():
        raise NumericError(
            "the model's scores are not finite -> the checkpoint is damaged or training diverged"
        )
    return TokenBeams(rows_BK, scores_BK, scores_BK.isfinite().sum(1))


def _among_best(ending_BK: Tensor, ongoing_BF: Tensor, beams: int) -> Tensor:
    """Endings that stand among the `beams` best of all candidates of their depth; -inf for the others."""
    everything_BF = torch.cat([ending_BK, ongoing_BF], dim=1)
    if everything_BF.shape[1] <= beams:
        return ending_BK
    worst_B1 = everything_BF.topk(beams, dim=1).values[:, -1:]
    return ending_BK.masked_fill(ending_BK < worst_B1, float("-inf"))


def _merge(
    pool: tuple[Tensor, Tensor], ending_BK: Tensor, rows_BK: Tensor, length: int, parity: Parity
) -> tuple[Tensor, Tensor]:
    """The best of the completed sequences so far and those that end here; both [B, pool size]."""
    ending_BK = ending_BK / max(length, 1) ** parity.length_penalty
    scores = torch.cat([pool[0], ending_BK], dim=1)
    rows = torch.cat([pool[1], rows_BK], dim=1)
    best, at = scores.topk(pool[0].shape[1], dim=1)
    return best, rows.gather(1, at).masked_fill(best == float("-inf"), -1)
