"""Encoder-decoders as the tree decoder drives them: the prompt is encoded once, every beam is a decoder row.

T5's relative bias counts slots of the cache, not position ids, so beams cannot share a row; the decoder's own cache is
reordered after each choice. The keys and values of the encoder's states are computed once per prompt and widened when the
number of beams changes.

Legend: B prompts, K beams, T prompt slots, R = B * K decoder rows, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache


class EncoderDecoderTrunk:
    """One search's forwards over a T5- or BART-class model."""

    def __init__(self, model: Any, *, slots: int) -> None:
        self.encoder, self.decoder = model.get_encoder(), model.get_decoder()
        self.start_id = model.config.decoder_start_token_id

    def start(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Hidden state [B, 1, D] behind the start token of each prompt's answer: ids padded on the right, their lengths."""
        self.mask_RT = (torch.arange(ids_BT.shape[1], device=ids_BT.device) < lengths_B[:, None]).long()
        self.states = self.encoder(input_ids=ids_BT, attention_mask=self.mask_RT).last_hidden_state
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.beams = 1
        start_B1 = torch.full_like(ids_BT[:, :1], self.start_id)
        self.tokens_BT = start_B1  # what a repetition penalty counts, as in transformers
        return self._forward(start_B1)

    def extend(self, tokens_BK: Tensor, parent_BK: Tensor) -> Tensor:
        """Hidden states [B, K, D] behind beam k's new token, which continues beam `parent_BK` of the last call."""
        batch, beams = tokens_BK.shape
        first_B1 = torch.arange(batch, device=tokens_BK.device)[:, None] * self.beams
        rows_R = (first_B1 + parent_BK).flatten()
        self.cache.self_attention_cache.reorder_cache(rows_R)
        if beams != self.beams:
            self.cache.cross_attention_cache.reorder_cache(rows_R)
            self.mask_RT, self.states = self.mask_RT[rows_R], self.states[rows_R]
            self.beams = beams
        return self._forward(tokens_BK.reshape(-1, 1)).view(batch, beams, -1)

    def _forward(self, ids_R1: Tensor) -> Tensor:
        return self.decoder(
            input_ids=ids_R1,
            encoder_hidden_states=self.states,
            encoder_attention_mask=self.mask_RT,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
