"""What can be decoded: which trunk drives which Hugging Face model."""

from __future__ import annotations

from typing import Any


def trunk_class(model: Any) -> type:
    """CausalTrunk or EncoderDecoderTrunk: `trunk(model, slots=...)`, then `start` once and `extend` per level."""
    from infer.search.causal import CausalTrunk
    from infer.search.encoder_decoder import EncoderDecoderTrunk

    return EncoderDecoderTrunk if model.config.is_encoder_decoder else CausalTrunk
