"""Tiny random models, vocabularies and catalogues for tests; nothing is downloaded."""

from __future__ import annotations

import numpy as np

from data.sid import FORMATS, LETTERS, LevelTokens, SidTable, SidVocab

TEXT_TOKENS = 40  # token ids below this are ordinary text


def catalogue(
    rng: np.random.Generator, *, items: int, sizes: tuple[int, ...], distinct: bool = True
) -> SidTable:
    """`items` random semantic IDs; distinct as far as the code space allows."""
    codes = np.stack([rng.integers(0, size, items) for size in sizes], axis=1).astype(np.int32)
    return SidTable(np.unique(codes, axis=0) if distinct else codes, sizes)


def vocabulary(sizes: tuple[int, ...], *, scattered: np.random.Generator | None = None) -> SidVocab:
    """Contiguous blocks behind the text tokens, or the same ids shuffled over all levels."""
    ids = np.arange(TEXT_TOKENS, TEXT_TOKENS + sum(sizes))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    if scattered is None:
        levels = [LevelTokens(LETTERS[i], size, first=int(ids[starts[i]])) for i, size in enumerate(sizes)]
    else:
        ids = scattered.permutation(ids)
        parts = [tuple(ids[starts[i] : starts[i + 1]].tolist()) for i in range(len(sizes))]
        levels = [LevelTokens(LETTERS[i], size, ids=parts[i]) for i, size in enumerate(sizes)]
    return SidVocab(FORMATS["letters"], tuple(levels))


def model(kind: str = "qwen3", *, vocab_size: int, seed: int = 0, tied: bool = True, dropout: float = 0.0):
    """A two-layer random causal LM in eval mode; weights large enough that beams are no near-ties."""
    import torch
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    common = {
        "vocab_size": vocab_size,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "tie_word_embeddings": tied,
    }
    wide = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    wide["attention_dropout"] = dropout
    torch.manual_seed(seed)
    if kind == "gpt2":
        drops = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout} if dropout else {}
        made = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **drops, **common))
    elif kind == "llama":
        made = LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **wide, **common))
    else:
        made = Qwen3ForCausalLM(Qwen3Config(num_key_value_heads=2, head_dim=8, **wide, **common))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return made.eval()


def prompts(rng: np.random.Generator, *, rows: int, longest: int = 9) -> list[list[int]]:
    """Random text prompts of mixed lengths."""
    return [rng.integers(2, TEXT_TOKENS, rng.integers(1, longest + 1)).tolist() for _ in range(rows)]
