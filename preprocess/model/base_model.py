"""A small base model from nothing: a byte-level BPE tokenizer with a chat template, and a random Qwen3.

Chat format, one marker per turn and as few tokens as possible:

    <|system|>...<|user|>...<|assistant|>the answer<|end|><|user|>...

`<|end|>` is the eos token: it closes an assistant turn, and nothing else. `<|pad|>` is another token, so that padding
never teaches a model to stop. `<think>` and `</think>` are ordinary tokens, as in Qwen3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

import pyarrow as pa

from configs.program import InputError, quiet
from data.prompts import Wording
from data.store.models import load_tokenizer, untrained

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("system", "user", "assistant")
THINK = ("<think>", "</think>")
BYTES = 256
LONGEST_WORD = 1000
_LONG = re.compile(rf"\S{{{LONGEST_WORD}}}(?=\S)")
_BLANK = re.compile(rf"\s{{{LONGEST_WORD},}}")
MIN_VOCAB = BYTES + len((PAD, END, *ROLES, *THINK))
# `generation` marks what an assistant mask covers: the answer and the token that ends it.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('unknown role ' + message['role'] + ' -> one of system, user, assistant') -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of the Qwen3; the defaults train on a laptop's CPU."""

    hidden_size: int = 128
    """width of the residual stream"""
    num_layers: int = 3
    """transformer blocks"""
    num_heads: int = 4
    """query heads"""
    num_kv_heads: int = 2
    """key and value heads; divides num_heads"""
    head_dim: int = 32
    """width of a head; even, for rotary positions"""
    intermediate_size: int = 384
    """width of the gated feed-forward layer"""
    tie_word_embeddings: bool = True
    """one table for input and output"""
    max_positions: int = 2048
    """longest sequence in tokens"""
    rope_theta: float = 10000.0
    """base of the rotary wavelengths"""
    init_std: float = 0.05
    """standard deviation of the random weights; the usual 0.02 suits wide models and learns far slower at width 128"""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "tie_word_embeddings" and value <= 0:
                raise InputError(f"shape.{name} is {value} -> a positive number")
        if self.num_heads % self.num_kv_heads or self.head_dim % 2:
            raise InputError(
                f"shape: num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads} "
                f"and head_dim {self.head_dim} even"
            )


def item_texts(items: pa.Table, *, batch: int = 10_000) -> Iterator[list[str]]:
    """Batches of the texts of items.parquet: titles, descriptions, brands, categories; empty ones are left out.

    Longer words than LONGEST_WORD are cut, longer blanks are one: every merge that the tokenizer learns walks over the
    whole of either.
    """
    for name in ("title", "description", "brand", "categories"):
        column = items[name]
        values = column.combine_chunks().flatten() if pa.types.is_list(column.type) else column
        for start in range(0, len(values), batch):
            if texts := [text for text in values.slice(start, batch).to_pylist() if text]:
                yield [text if len(text) <= LONGEST_WORD else _cut(text) for text in texts]


def _cut(text: str) -> str:
    return _LONG.sub(r"\g<0> ", _BLANK.sub(" ", text))


def instruction_texts(wording: Wording, *, tasks: Sequence[str], times: int) -> list[str]:
    """The fixed words of a wording's prompts of `tasks`, `times` over: they stand in every prompt, so they get tokens of their own."""
    turns = [wording.system, wording.separator]
    turns += [text for name, text in wording.templates.items() if name in tasks]
    turns += [text for name, texts in wording.instructions.items() if name in tasks for text in texts]
    words = [literal for turn in turns for literal, *_ in Formatter().parse(turn) if literal]
    return words * times


def train_tokenizer(texts: Iterator[list[str]], *, vocab_size: int, max_positions: int) -> Any:
    """A byte-level BPE tokenizer of at most `vocab_size` entries (fewer where the text has no more merges).

    Byte-level: every text can be written and read back exactly. No bos token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < MIN_VOCAB:
        raise InputError(f"vocab_size is {vocab_size} -> at least {MIN_VOCAB}: all bytes and the markers")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(THINK),
        special_tokens=[PAD, END, *(f"<|{role}|>" for role in ROLES)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=not quiet(),
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=max_positions,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens(list(THINK))
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def random_model(tokenizer: Any, shape: ModelShape, *, seed: int) -> Any:
    """A Qwen3ForCausalLM with random float32 weights and a row for every entry of `tokenizer`."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate_size,
        tie_word_embeddings=shape.tie_word_embeddings,
        max_position_embeddings=shape.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        initializer_range=shape.init_std,
        dtype=torch.float32,
    )
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    settle_generation(model, tokenizer)
    return model


def redrawn_model(directory: Path, *, seed: int) -> tuple[Any, Any]:
    """(causal LM of the architecture in `directory` with float32 weights drawn as its class does, its tokenizer)."""
    import torch

    tokenizer = load_tokenizer(directory)
    torch.manual_seed(seed)
    model = untrained(directory, dtype=torch.float32)
    settle_generation(model, tokenizer)
    return model, tokenizer


def settle_generation(model: Any, tokenizer: Any) -> None:
    """Make the token ids in the configs the tokenizer's, and generation greedy unless a caller says otherwise.

    A published checkpoint's own generation config may sample, and it silently turns beam search into beam sampling.
    """
    from transformers import GenerationConfig

    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, value in ids.items():
        setattr(model.config, name, value)
    model.generation_config = GenerationConfig(
        do_sample=False, temperature=None, top_k=None, top_p=None, repetition_penalty=1.0, **ids
    )
