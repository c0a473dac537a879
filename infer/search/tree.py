"""Trie-constrained beam search with the prompt encoded once: beams are branches of one sequence.

One prefill per user, then L - 1 forwards of K query tokens (`infer.search.causal`; encoder-decoders decode a row per beam,
`infer.search.encoder_decoder`). Only columns that can be legal are scored, illegal ones are -inf, and nothing is read back
to the host between the prompt and the result.

Score spaces: `full` - log-probabilities under the whole vocabulary (what published systems report); `level` - under the
level's codes; `trie` - under the legal codes of the prefix. Scores are sums over levels.

Differs from beam search in transformers: no row per beam, no prefill per beam, no (rows, vocabulary) tensor; with fewer
legal items than beams it returns fewer instead of illegal or repeated ones. `full` equals it rank for rank.

Legend: B prompts, K beams, L levels, X candidates of a beam, H excluded rows, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.program import InputError, NumericError, poll
from infer.search.prompts import right_pad
from infer.search.sampling import Best, Choice, Sampler
from infer.search.scoring import PLAIN, LevelScorer, Parity
from infer.search.trie import Trie
from infer.search.trunk import level_scorer, trunk_class


@dataclass(frozen=True)
class Beams:
    """Result of a search, best first; rows with fewer legal items than beams have counts_B < K and -inf scores beyond.

    codes_BKL int64, scores_BK float32, counts_B int64, nodes_BK int64: rows of SidTable.sids_SL, with catalogues too; -1
    beyond counts_B. prefixes_BKL int64: the trie node before each level, what scores the same codes again.
    With a sampler the order is that of the draw, scores_BK are log-probabilities, and draws without replacement carry
    log_inclusion_BK float32: the log-probability that the item is in the sample, given the threshold; -inf beyond counts_B.
    """

    codes_BKL: Tensor
    scores_BK: Tensor
    nodes_BK: Tensor
    counts_B: Tensor
    prefixes_BKL: Tensor
    log_inclusion_BK: Tensor | None = None


@torch.no_grad()
def search(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    trie: Trie,
    beams: int,
    score_space: str = "full",
    *,
    parity: Parity = PLAIN,
    roots_B: Sequence[int] | None = None,
    exclude: np.ndarray | Tensor | None = None,
    sampler: Sampler | None = None,
    own_beams: Sequence[int] | None = None,
    terminator_ids: Sequence[int] = (),
) -> Beams:
    """The `beams` best semantic IDs of each prompt under `model`, a Hugging Face causal LM or encoder-decoder in eval mode, or a
    model that brings its trunk (infer/search/trunk.py).

    roots_B: the catalogue of each prompt (default: the first). exclude: int64 [B, H] rows of SidTable.sids_SL that a prompt
    must not get, padded with -1; they are taken out at the last level, so wide exclusions want more beams or a catalogue.
    own_beams: how many of the beams each prompt has, where some have fewer: its list is then that of a search with as many.
    sampler: see `infer.search.sampling`; needs the score space `trie`. terminator_ids: what follows the suffix tokens of a
    semantic ID (the end-of-turn token); scored with `parity.terminator`, which needs the score space `full`.
    Raises InputError for an empty prompt or options that do not go together, NumericError (exit 4) where the model's
    scores are not finite.
    """
    poll()
    endings = _check(trie, beams, score_space, parity, exclude, sampler, terminator_ids)
    ids_BT, lengths_B = right_pad(prompt_ids, device=trie.device)
    best = Best(beams, None if own_beams is None else torch.as_tensor(own_beams, device=trie.device))
    found = decode(
        model,
        ids_BT,
        lengths_B,
        trie,
        sampler.begin(len(ids_BT), beams, trie.device) if sampler else best,
        score_space,
        parity=parity,
        roots_B1=_roots(roots_B, len(ids_BT), trie),
        excluded_BH=_excluded(exclude, len(ids_BT), trie.device),
        endings=endings,
    )
    if found.scores_BK.isnan().any():
        raise NumericError(
            f"the model's scores are not finite ({model.name_or_path}) -> the checkpoint is damaged or training diverged"
        )
    return found


def decode(
    model: Any,
    ids_BT: Tensor,
    lengths_B: Tensor,
    trie: Trie,
    choice: Choice,
    score_space: str,
    *,
    parity: Parity,
    roots_B1: Tensor,
    excluded_BH: Tensor | None = None,
    endings: Sequence[int] = (),
) -> Beams:
    """The part of `search` that stays on the device: shapes depend on those of the arguments alone, nothing is read back.

    ids int64 padded on the right, excluded rows ascending; so a CUDA graph or `torch.compile` can hold all of it.
    """
    widths = _widths(trie, choice)
    trunk = trunk_class(model)(model, slots=sum(widths[:-1]) + widths[-1] * len(endings))
    state = _State.at(roots_B1, trunk.start(ids_BT, lengths_B))
    scorer = level_scorer(model, trunk, trie, score_space, parity)
    state = _descend(trunk, scorer, state, choice, widths, excluded_BH)
    if endings:
        state = _rank_with_endings(trunk, scorer, state, endings)
    scores_BK, log_inclusion_BK = choice.finish(state.scores_BK)
    kept = scores_BK.shape[1]
    if parity.length_penalty:
        scores_BK = scores_BK / (trie.num_levels + len(endings)) ** parity.length_penalty
    nodes_BK = trie.sid_rows(state.nodes_BK[:, :kept]).masked_fill(scores_BK == float("-inf"), -1)
    return Beams(
        state.codes_BKl[:, :kept],
        scores_BK,
        nodes_BK,
        scores_BK.isfinite().sum(1),
        state.prefixes_BKl[:, :kept],
        log_inclusion_BK,
    )


def _check(
    trie: Trie,
    beams: int,
    score_space: str,
    parity: Parity,
    exclude: Any,
    sampler: Sampler | None,
    terminator_ids: Sequence[int],
) -> tuple[int, ...]:
    """The tokens that end an answer, where they are scored; InputError for options that do not go together."""
    if beams < 1:
        raise InputError(f"beams {beams} must be positive")
    if sampler is not None and (score_space != "trie" or exclude is not None or parity.terminator):
        raise InputError(
            "a sampler draws from the legal items -> use the score space trie, without exclude and terminator"
        )
    if not parity.terminator:
        return ()
    if score_space != "full":
        raise InputError(
            f"terminator tokens have probability 1 in the score space {score_space!r} -> use full"
        )
    endings = (*trie.suffix_ids, *terminator_ids)
    if not endings:
        raise InputError("no terminator tokens to score -> give terminator_ids (renderer.terminator_ids())")
    return endings


def _roots(roots_B: Sequence[int] | None, batch: int, trie: Trie) -> Tensor:
    """Start nodes int64 [B, 1]."""
    roots = np.zeros(batch, np.int64) if roots_B is None else np.asarray(roots_B, np.int64)
    if roots.shape != (batch,) or (batch and not 0 <= roots.min() <= roots.max() < trie.num_roots):
        raise InputError(
            f"roots_B must hold {batch} catalogue numbers within 0..{trie.num_roots - 1}, one per prompt"
        )
    return torch.as_tensor(roots, device=trie.device)[:, None]


def _excluded(exclude: np.ndarray | Tensor | None, batch: int, device: torch.device) -> Tensor | None:
    """Excluded rows of each prompt int64 [B, H], ascending; None where there are none."""
    if exclude is None or exclude.shape[1] == 0:
        return None
    if len(exclude) != batch:
        raise InputError(f"exclude has {len(exclude)} rows for {batch} prompts -> give one row per prompt")
    return torch.as_tensor(exclude, device=device).long().sort(1).values


def _widths(trie: Trie, choice: Choice) -> list[int]:
    """Beams that leave each level."""
    widths = [1]
    for level in trie.levels:
        widths.append(choice.width(widths[-1] * level.width))
    return widths[1:]


@dataclass(frozen=True)
class _State:
    """The beams of a search at some depth l; `hidden_BKD` and `parent_BK` belong to the beams one level up."""

    nodes_BK: Tensor
    scores_BK: Tensor
    codes_BKl: Tensor
    path_BKl: Tensor
    prefixes_BKl: Tensor
    parent_BK: Tensor
    hidden_BKD: Tensor

    @staticmethod
    def at(roots_B1: Tensor, hidden_B1D: Tensor) -> _State:
        empty = roots_B1.new_empty((*roots_B1.shape, 0))
        scores_B1 = torch.zeros(roots_B1.shape, device=roots_B1.device)
        return _State(roots_B1, scores_B1, empty, empty, empty, roots_B1, hidden_B1D)


def _descend(
    trunk: Any,
    scorer: LevelScorer,
    state: _State,
    choice: Choice,
    widths: Sequence[int],
    excluded_BH: Tensor | None,
) -> _State:
    """From the roots to the leaves."""
    trie, hidden_BKD = scorer.trie, state.hidden_BKD
    for level, width in enumerate(widths):
        if level:
            hidden_BKD = trunk.extend(state.path_BKl[..., -1], state.parent_BK)
        step_BKX, at_BKX = scorer(hidden_BKD, level, state.nodes_BK, state.path_BKl)
        column_X = torch.arange(step_BKX.shape[2], device=step_BKX.device)
        if level == len(widths) - 1 and excluded_BH is not None:
            rows_BKX = trie.sid_rows(trie.child_at(level, state.nodes_BK[..., None], column_X))
            step_BKX = step_BKX.masked_fill(_is_in(rows_BKX, excluded_BH), float("-inf"))
        codes_BKX = column_X if at_BKX is None else at_BKX
        parent_BK, column_BK, scores_BK = choice(state.scores_BK, step_BKX, width, codes_BKX)
        flat_BK = parent_BK * step_BKX.shape[2] + column_BK
        code_BK = column_BK if at_BKX is None else at_BKX.flatten(1).gather(1, flat_BK)
        from_BK = state.nodes_BK.gather(1, parent_BK)
        state = _State(
            nodes_BK=trie.child_at(level, from_BK, column_BK).clamp(min=0),
            scores_BK=scores_BK,
            codes_BKl=grow(state.codes_BKl, parent_BK, code_BK),
            path_BKl=grow(state.path_BKl, parent_BK, trie.tokens[level][code_BK]),
            prefixes_BKl=grow(state.prefixes_BKl, parent_BK, from_BK),
            parent_BK=parent_BK,
            hidden_BKD=hidden_BKD,
        )
    return state


def _rank_with_endings(trunk: Any, scorer: LevelScorer, state: _State, endings: Sequence[int]) -> _State:
    """The beams ranked anew with the log-probability of the tokens that end the answer; one forward per token."""
    scores_BK, path_BKl, parent_BK = state.scores_BK, state.path_BKl, state.parent_BK
    same_BK = torch.arange(parent_BK.shape[1], device=parent_BK.device).expand_as(parent_BK)
    for token in endings:
        hidden_BKD = trunk.extend(path_BKl[..., -1], parent_BK)
        full_BK = scorer.full_normaliser(hidden_BKD, path_BKl)
        scores_BK = scores_BK + scorer.of_token(hidden_BKD, token, path_BKl, full_BK)
        path_BKl = grow(path_BKl, same_BK, torch.full_like(parent_BK, token))
        parent_BK = same_BK
    scores_BK, order_BK = scores_BK.sort(dim=1, descending=True, stable=True)
    return replace(
        state,
        scores_BK=scores_BK,
        nodes_BK=state.nodes_BK.gather(1, order_BK),
        codes_BKl=state.codes_BKl.gather(1, order_BK[..., None].expand_as(state.codes_BKl)),
        prefixes_BKl=state.prefixes_BKl.gather(1, order_BK[..., None].expand_as(state.prefixes_BKl)),
    )


def grow(path_BKl: Tensor, parent_BK: Tensor, new_BK: Tensor) -> Tensor:
    """Each beam's path, its parent's with one more entry."""
    parents_BKl = path_BKl.gather(1, parent_BK[..., None].expand(-1, -1, path_BKl.shape[2]))
    return torch.cat([parents_BKl, new_BK[..., None]], dim=2)


def _is_in(rows_BKX: Tensor, sorted_BH: Tensor) -> Tensor:
    """Whether each entry is among its prompt's sorted ones, bool [B, K, X]."""
    flat_BF = rows_BKX.flatten(1)
    at_BF = torch.searchsorted(sorted_BH, flat_BF).clamp(max=sorted_BH.shape[1] - 1)
    return (sorted_BH.gather(1, at_BF) == flat_BF).view(rows_BKX.shape)
