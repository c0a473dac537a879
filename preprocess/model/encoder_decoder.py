"""A random T5: the encoder-decoder that TIGER and HiD-VAE's retriever are.

Pre-RMSNorm, relative positions in self-attention, an output table that may be the input table. Attention is
num_heads * head_dim wide whatever the residual stream is: HiD-VAE's "attention dim 512 over ID embeddings of 128" is
hidden_size 128 with 8 heads of 64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from configs.program import InputError
from preprocess.model.base_model import settle_generation

NUMBERS = (
    "hidden_size", "encoder_layers", "decoder_layers", "num_heads", "head_dim", "feedforward", "max_positions", "init_factor", "embedding_std"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderShape:
    """Sizes of the T5. Defaults are TIGER's (Rajput et al. 2023)."""

    hidden_size: int = 128
    """width of a token's vector and of the residual stream"""
    encoder_layers: int = 4
    """blocks that read the history"""
    decoder_layers: int = 4
    """blocks that write the semantic ID"""
    num_heads: int = 6
    """attention heads of a block"""
    head_dim: int = 64
    """width of a head"""
    feedforward: int = 1024
    """width of the inner layer"""
    activation: Literal["relu", "silu", "gated-gelu", "gated-silu"] = "relu"
    """of the inner layer"""
    dropout: float = 0.1
    """share of activations dropped in training; train.train_tiger can say otherwise"""
    tie_word_embeddings: bool = True
    """one table for input and output; without it every code has a row of its own in the output layer"""
    max_positions: int = 512
    """longest history in tokens, whole items; a longer one loses its oldest items"""
    init_factor: float = 0.4
    """on the standard deviations of T5's random weights"""
    embedding_std: float = 0.05
    """standard deviation of the first vectors of tokens; T5's own is 1, which learned slower here (configs/minionerec/README.md)"""

    def __post_init__(self) -> None:
        if bad := [name for name in NUMBERS if getattr(self, name) <= 0]:
            raise InputError(f"t5.{bad[0]} is {getattr(self, bad[0])} -> a positive number")
        if not 0 <= self.dropout < 1:
            raise InputError(f"t5.dropout {self.dropout} must lie in [0, 1)")


def random_encoder_decoder(tokenizer: Any, shape: EncoderDecoderShape, *, seed: int) -> Any:
    """A T5ForConditionalGeneration with random float32 weights and a row for every entry of `tokenizer`.

    The answer starts behind the padding token, as T5's does. `max_position_embeddings` is a bound that T5 itself does not
    have: whoever renders prompts keeps to it.
    """
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=shape.hidden_size,
        d_kv=shape.head_dim,
        d_ff=shape.feedforward,
        num_heads=shape.num_heads,
        num_layers=shape.encoder_layers,
        num_decoder_layers=shape.decoder_layers,
        feed_forward_proj=shape.activation,
        dropout_rate=shape.dropout,
        tie_word_embeddings=shape.tie_word_embeddings,
        initializer_factor=shape.init_factor,
        max_position_embeddings=shape.max_positions,
        decoder_start_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(std=shape.embedding_std)
        if not shape.tie_word_embeddings:
            model.get_output_embeddings().weight.normal_(std=shape.embedding_std)
    settle_generation(model, tokenizer)
    return model
