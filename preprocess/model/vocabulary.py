"""Semantic-ID tokens in a tokenizer, and a row for each of them in a model's embedding tables.

Rows are initialised by token id, not by "what the resize added": a checkpoint may have more rows than its tokenizer has
entries (Qwen pads its table), and then the first new tokens land on reserved rows that were never trained.

Legend: V rows of a table, D hidden size, T tokenizer entries before the expansion, M new tokens, K codes of a level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from configs.program import InputError
from data.sid import LETTERS, LevelTokens, SidFormat, SidVocab
from preprocess.model.row_sources import Directions, RowSource

Scale = Literal["auto", "spread", "resize"]
TRAINED = 10.0  # times the mean of random rows
RESIZE_SHARE = 0.5  # how far new rows lie from the mean of the old ones, in lengths of that mean


@dataclass(frozen=True)
class Addition:
    """What an expansion of a tokenizer did. `old_ids` and `new_ids` are ascending int64; `reused` tokens were there."""

    vocab: SidVocab
    old_ids: np.ndarray
    new_ids: np.ndarray
    reused: int


def add_sid_tokens(
    tokenizer: Any, fmt: SidFormat, sizes: tuple[int, ...], *, sids_sha256: str, more: Sequence[str] = ()
) -> Addition:
    """Add the format's fixed tokens, every code of every level and the tokens of `more` to `tokenizer`, as ordinary tokens.

    New tokens get the ids after the tokenizer's last, each level one block. A token that the tokenizer already has (a
    checkpoint that was expanded elsewhere) keeps its id, and its level is listed id by id where that is no block.
    InputError when a token is not encoded as exactly one id.
    """
    from transformers import AddedToken

    before = tokenizer.get_vocab()
    levels = [tokens for _, tokens in fmt.level_tokens(sizes)]
    wanted = [*fmt.prefix, *fmt.suffix, *(token for tokens in levels for token in tokens)]
    wanted += [token for token in dict.fromkeys(more) if token not in set(wanted)]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in wanted])
    after = tokenizer.get_vocab()
    vocab = SidVocab(
        fmt,
        tuple(_level(LETTERS[i], [after[token] for token in tokens]) for i, tokens in enumerate(levels)),
        tuple(after[token] for token in fmt.prefix),
        tuple(after[token] for token in fmt.suffix),
        sids_sha256,
    )
    probe(tokenizer, wanted, vocab)
    new_ids = np.array(sorted(after[token] for token in wanted if token not in before), np.int64)
    old_ids = np.array(sorted(set(before.values())), np.int64)
    return Addition(vocab, old_ids, new_ids, reused=len(wanted) - len(new_ids))


def _level(name: str, ids: list[int]) -> LevelTokens:
    """A block where the ids are consecutive, else an explicit list."""
    if ids == list(range(ids[0], ids[0] + len(ids))):
        return LevelTokens(name, len(ids), first=ids[0])
    return LevelTokens(name, len(ids), ids=tuple(ids))


def probe(tokenizer: Any, tokens: list[str], vocab: SidVocab) -> None:
    """Encode every token alone, and semantic IDs inside text; InputError when one is not its own single id."""
    known = tokenizer.get_vocab()
    encoded = tokenizer(tokens, add_special_tokens=False)["input_ids"]
    for token, ids in zip(tokens, encoded, strict=True):
        if ids != [known[token]]:
            raise InputError(
                f"this tokenizer encodes {token!r} as {ids}, not as the one id {known[token]} -> choose another format"
            )
    for codes in (tuple(0 for _ in vocab.sizes), tuple(size - 1 for size in vocab.sizes)):
        text, ids = vocab.format.text(codes), vocab.encode(codes)
        inside = tokenizer(f"a{text}b {text}{text}, c", add_special_tokens=False)["input_ids"]
        found = sum(inside[i : i + len(ids)] == ids for i in range(len(inside)))
        if found != 3:
            raise InputError(
                f"this tokenizer does not keep {text} whole inside a text ({found} of 3 found) -> choose another format"
            )


def expand_model(
    model: Any,
    addition: Addition,
    *,
    source: RowSource | None = None,
    scale: Scale = "auto",
    noise_std: float | None = None,
    pad_to_multiple_of: int = 1,
    seed: int = 0,
) -> str:
    """Give every new token a row in the input table and, where it is another one, in the output table.

    The tables grow when the largest new id needs it and never shrink; rows of tokenizer entries stay bitwise as they are.
    `source` says where the rows of codes point (preprocess/model/row_sources.py); without it they are mean plus noise. Returns the
    scale of the input table: `spread` or `resize`.
    """
    import torch

    rows = model.get_input_embeddings().weight.shape[0]
    if addition.old_ids[-1] >= rows:
        raise InputError(
            f"the tokenizer has token id {addition.old_ids[-1]}, but the model has {rows} embedding rows -> use the "
            "tokenizer that belongs to the model"
        )
    needed = int(max(addition.new_ids, default=0)) + 1
    if needed > rows:
        torch.manual_seed(seed)
        model.resize_token_embeddings(needed, pad_to_multiple_of=pad_to_multiple_of, mean_resizing=False)
    tables = [model.get_input_embeddings()]
    output = model.get_output_embeddings()
    if output is not None and output.weight is not tables[0].weight:
        tables.append(output)
    new_ids, old_ids = torch.from_numpy(addition.new_ids), torch.from_numpy(addition.old_ids)
    scales = []
    for number, table in enumerate(tables):
        mean_D, spread = moments(table.weight.data, old_ids)
        generator = np.random.default_rng([seed, number])
        deviation = spread
        scales.append(chosen_scale(mean_D, spread, rows=len(old_ids), scale=scale))
        if scales[-1] == "resize":
            deviation = RESIZE_SHARE * float(np.sqrt(np.mean(mean_D**2)))
        rows_MD = new_rows(
            addition,
            mean_D=mean_D,
            deviation=deviation,
            directions=(lambda g, table=table: source(table.weight.data, g)) if source else None,
            noise_std=noise_std,
            generator=generator,
        )
        table.weight.data[new_ids] = torch.from_numpy(rows_MD).to(table.weight.dtype)
        bias = getattr(table, "bias", None)
        if bias is not None:
            bias.data[new_ids] = bias.data[old_ids].mean()
    return scales[0]


def moments(table_VD: Any, ids_T: Any, *, chunk: int = 8192) -> tuple[np.ndarray, float]:
    """(mean float64 [D] of the rows `ids_T`, their spread: the root mean square of the distance from it per dimension).

    In chunks, because a float64 copy of a whole table is larger than the model.
    """
    parts = ids_T.split(chunk)
    mean_D = sum(table_VD[part].double().sum(0) for part in parts) / len(ids_T)
    squares = sum(float(((table_VD[part].double() - mean_D) ** 2).sum()) for part in parts)
    return mean_D.numpy(), float(np.sqrt(squares / (len(ids_T) * len(mean_D))))


def chosen_scale(mean_D: np.ndarray, spread: float, *, rows: int, scale: Scale) -> str:
    """`scale`, or what `auto` means for a table: `spread` where its rows are random, `resize` where they were trained.

    The mean of `rows` random rows has a root mean square of spread / sqrt(rows); training moves all rows to one side, so that
    it is many times larger (200 times in SmolLM2-135M).
    """
    if scale != "auto":
        return scale
    return "resize" if np.sqrt(np.mean(mean_D**2)) > TRAINED * spread / np.sqrt(rows) else "spread"


def new_rows(
    addition: Addition,
    *,
    mean_D: np.ndarray,
    deviation: float,
    directions: Callable[[np.random.Generator], Directions] | None,
    noise_std: float | None,
    generator: np.random.Generator,
) -> np.ndarray:
    """Rows float32 [M, D] of the new tokens, in the order of `new_ids`.

    A code with a direction gets the mean of the old rows plus that times `deviation`; every other token the mean plus
    normal noise of `noise_std` (None: `deviation`).
    """
    noise_MD = generator.normal(size=(len(addition.new_ids), len(mean_D)))
    rows_MD = mean_D + noise_MD * (deviation if noise_std is None else noise_std)
    for level, (codes, rows_KD) in sorted((directions(generator) if directions else {}).items()):
        ids_K = addition.vocab.levels[level].token_ids[codes]
        fresh_K = np.isin(ids_K, addition.new_ids)
        rows_MD[np.searchsorted(addition.new_ids, ids_K[fresh_K])] = mean_D + rows_KD[fresh_K] * deviation
    return rows_MD.astype(np.float32)
