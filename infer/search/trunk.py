"""What can be decoded: which trunk drives which model, and what scores the candidates of a level.

A Hugging Face model has one of the trunks of this room and an output layer (infer/search/scoring.py). Any other model brings both:
`model.search_trunk` is a class `trunk(model, slots=...)` with

    start(ids_BT, lengths_B) -> hidden [B, 1, D]           behind each prompt; sets `tokens_BT`
    extend(tokens_BK, parent_BK) -> hidden [B, K, D]       behind beam k's new token
    level_scorer(trie, score_space, parity)                called as LevelScorer is
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infer.search.scoring import LevelScorer, Parity

if TYPE_CHECKING:
    from infer.search.trie import Trie


def trunk_class(model: Any) -> type:
    """The model's own, CausalTrunk or EncoderDecoderTrunk: `trunk(model, slots=...)`, then `start` once and `extend` per level."""
    from infer.search.causal import CausalTrunk
    from infer.search.encoder_decoder import EncoderDecoderTrunk

    own = getattr(model, "search_trunk", None)
    if own is not None:
        return own
    return EncoderDecoderTrunk if model.config.is_encoder_decoder else CausalTrunk


def level_scorer(model: Any, trunk: Any, trie: Trie, score_space: str, parity: Parity) -> Any:
    """What scores the candidates of a level behind a trunk that has started."""
    own = getattr(trunk, "level_scorer", None)
    return (
        LevelScorer(model, trie, score_space, parity, trunk.tokens_BT)
        if own is None
        else own(trie, score_space, parity)
    )
