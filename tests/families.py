"""Tiny random models of the families that the decoder must drive, in eval mode."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

WIDE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = WIDE | {"num_key_value_heads": 2, "head_dim": 8}
WINDOW = 5  # shorter than the prompts of the tests

CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", WIDE | {"num_key_value_heads": 2}),
    "qwen2 sliding": (
        "Qwen2",
        WIDE
        | {
            "num_key_value_heads": 2,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 1,
        },
    ),
    "qwen3": ("Qwen3", GROUPED),
    "llama": ("Llama", WIDE | {"num_key_value_heads": 2}),
    "mistral sliding": ("Mistral", GROUPED | {"sliding_window": WINDOW}),
    "gemma": ("Gemma", GROUPED),
    "gemma2": ("Gemma2", GROUPED | {"sliding_window": WINDOW, "query_pre_attn_scalar": 8, "final_logit_softcapping": 4.0}),
    "gemma3": (
        "Gemma3",
        GROUPED | {"num_hidden_layers": 3, "sliding_window": WINDOW, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
    ),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "opt": ("OPT", {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32, "max_position_embeddings": 64}),
    "phi": ("Phi", WIDE),
    "granite": ("Granite", WIDE | {"num_key_value_heads": 2, "logits_scaling": 0.5}),
    "cohere": ("Cohere", WIDE | {"num_key_value_heads": 2, "logit_scale": 2.0}),
}  # fmt: skip
ENCODER_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5", {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}),
    "t5 untied": ("T5", {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "tie_word_embeddings": False}),
    "bart": ("Bart", {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                      "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64, "forced_eos_token_id": None}),
}  # fmt: skip


def model(
    kind: str,
    *,
    vocab_size: int,
    seed: int = 0,
    tied: bool | None = None,
    attention: str = "sdpa",
    **changes: Any,
) -> Any:
    """A random model; weights large enough that beams are no near-ties. changes: of its configuration."""
    family, options = (CAUSAL | ENCODER_DECODERS)[kind]
    options = (
        options
        | {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
        | changes
    )
    if tied is not None:
        options["tie_word_embeddings"] = tied
    if kind in ENCODER_DECODERS:
        options["decoder_start_token_id"] = 0
    config_name = {"Gemma3": "Gemma3TextConfig"}.get(family, f"{family}Config")
    config = getattr(hf, config_name)(**options, attn_implementation=attention)
    torch.manual_seed(seed)
    suffix = {"GPT2": "LMHeadModel"}.get(
        family, "ForConditionalGeneration" if kind in ENCODER_DECODERS else "ForCausalLM"
    )
    made = getattr(hf, family + suffix)(config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() > 1 and "t5" not in kind:
                parameter.mul_(4)
            if "t5" in kind and "relative_attention_bias" in name:
                parameter.normal_(std=2)
            if "t5" in kind and name in ("shared.weight", "lm_head.weight"):
                parameter.normal_(std=0.5)
        if getattr(made, "final_logits_bias", None) is not None:
            made.final_logits_bias.normal_()
    return made.eval()
