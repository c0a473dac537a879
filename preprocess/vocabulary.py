"""Semantic-ID tokens in a tokenizer, and a row for each of them in a model's embedding tables.

Rows are initialised by token id, not by "what the resize added": a checkpoint may have more rows than its tokenizer has
entries (Qwen pads its table), and then the first new tokens land on reserved rows that were never trained.

Legend: V rows of a table, D hidden size, T tokenizer entries before the expansion, M new tokens, K codes of a level,
E width of a codebook.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.program import InputError
from data.sid import LETTERS, LevelTokens, SidFormat, SidVocab
from rq.stack import residual


@dataclass(frozen=True)
class Addition:
    """What an expansion of a tokenizer did. `old_ids` and `new_ids` are ascending int64; `reused` tokens were there."""

    vocab: SidVocab
    old_ids: np.ndarray
    new_ids: np.ndarray
    reused: int


def add_sid_tokens(tokenizer: Any, fmt: SidFormat, sizes: tuple[int, ...], *, sids_sha256: str) -> Addition:
    """Add the format's fixed tokens and every code of every level to `tokenizer`, as ordinary tokens.

    New tokens get the ids after the tokenizer's last, each level one block. A token that the tokenizer already has (a
    checkpoint that was expanded elsewhere) keeps its id, and its level is listed id by id where that is no block.
    InputError when a token is not encoded as exactly one id.
    """
    from transformers import AddedToken

    before = tokenizer.get_vocab()
    levels = [tokens for _, tokens in fmt.level_tokens(sizes)]
    wanted = [*fmt.prefix, *fmt.suffix, *(token for tokens in levels for token in tokens)]
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
    codebooks: Mapping[int, np.ndarray] | None = None,
    noise_std: float | None = None,
    pad_to_multiple_of: int = 1,
    seed: int = 0,
) -> None:
    """Give every new token a row in the input table and, where it is another one, in the output table.

    The tables grow when the largest new id needs it and never shrink; rows of tokenizer entries stay bitwise as they are.
    `codebooks` float [K, E] by level: with them codes get their own vectors; without, the mean plus noise.
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
    for number, table in enumerate(tables):
        mean_D, spread = moments(table.weight.data, old_ids)
        rows_MD = new_rows(
            addition,
            mean_D=mean_D,
            spread=spread,
            codebooks=codebooks or {},
            noise_std=noise_std,
            generator=np.random.default_rng([seed, number]),
        )
        table.weight.data[new_ids] = torch.from_numpy(rows_MD).to(table.weight.dtype)
        bias = getattr(table, "bias", None)
        if bias is not None:
            bias.data[new_ids] = bias.data[old_ids].mean()


def moments(table_VD: Any, ids_T: Any, *, chunk: int = 8192) -> tuple[np.ndarray, float]:
    """(mean float64 [D] of the rows `ids_T`, their spread: the root mean square of the distance from it per dimension).

    In chunks, because a float64 copy of a whole table is larger than the model.
    """
    parts = ids_T.split(chunk)
    mean_D = sum(table_VD[part].double().sum(0) for part in parts) / len(ids_T)
    squares = sum(float(((table_VD[part].double() - mean_D) ** 2).sum()) for part in parts)
    return mean_D.numpy(), float(np.sqrt(squares / (len(ids_T) * len(mean_D))))


def new_rows(
    addition: Addition,
    *,
    mean_D: np.ndarray,
    spread: float,
    codebooks: Mapping[int, np.ndarray],
    noise_std: float | None,
    generator: np.random.Generator,
) -> np.ndarray:
    """Rows float32 [M, D] of the new tokens, in the order of `new_ids`.

    A code of a level in `codebooks` gets the mean of the old rows plus its own vector, projected and scaled to their
    spread; every other token the mean plus normal noise of `noise_std` (None: that spread).
    """
    noise_MD = generator.normal(size=(len(addition.new_ids), len(mean_D)))
    rows_MD = mean_D + noise_MD * (spread if noise_std is None else noise_std)
    for level, codebook_KE in sorted(codebooks.items()):
        ids_K = addition.vocab.levels[level].token_ids
        fresh_K = np.isin(ids_K, addition.new_ids)
        projected_KD = project(codebook_KE, len(mean_D), generator)
        rows_MD[np.searchsorted(addition.new_ids, ids_K[fresh_K])] = mean_D + projected_KD[fresh_K] * spread
    return rows_MD.astype(np.float32)


def project(codebook_KE: np.ndarray, width: int, generator: np.random.Generator) -> np.ndarray:
    """A codebook float64 [K, width], centred, of root mean square 1, seen through a random projection.

    Where the width allows it the projection has orthonormal rows, so distances between codes keep their proportions;
    into fewer dimensions it is Gaussian (Johnson-Lindenstrauss). Every level has a projection of its own: tokens of
    different levels stand at different places of a semantic ID and must not look alike.
    """
    centred_KE = codebook_KE.astype(np.float64) - codebook_KE.mean(0, dtype=np.float64)
    gaussian_WE = generator.normal(size=(width, codebook_KE.shape[1]))
    if codebook_KE.shape[1] <= width:
        gaussian_WE = np.linalg.qr(gaussian_WE)[0]
    projected_KD = centred_KE @ gaussian_WE.T
    scale = np.sqrt(np.mean(projected_KD**2))
    return projected_KD / scale if scale > 0 else projected_KD


def read_codebooks(sids: str | Path, sizes: tuple[int, ...]) -> dict[int, np.ndarray]:
    """Codebook float32 [K, E] of each level, from the quantizer beside the semantic IDs.

    A level that no quantizer made (a collision digit) has none.
    """
    quantizer, _ = residual.load(sids)
    if quantizer.sizes != sizes[: len(quantizer.sizes)]:
        raise InputError(
            f"{sids}: the quantizer has {quantizer.sizes} codes per level, the semantic IDs {sizes} "
            "-> run scripts/04_build_sids.sh again"
        )
    return dict(enumerate(quantizer.codebooks))
