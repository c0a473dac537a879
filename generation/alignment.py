"""How pictures, prompts, recommended items and histories fit together, in the space of a CLIP or SigLIP.

All similarities are cosines of normalised vectors. A number alone says little (every picture is somewhat like every text), so each
stands beside its control: the same picture with the prompts, and with the histories, of other rows.

Legend: R rows, K other rows of other users per row, N items, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.store.models import load_tokenizer
from rq.vectors.encoders import ImageEncoder, encode_images, load_model

BATCH, BLOCK = 64, 1024


def encode_texts(texts: Sequence[str], *, model: str) -> np.ndarray:
    """float32 [R, D], rows of length 1; texts longer than the model reads lose their end."""
    import torch

    network, tokenizer = load_model(model, dtype="auto"), load_tokenizer(model)
    longest = getattr(network.config, "text_config", network.config).max_position_embeddings
    device, rows = next(network.parameters()).device, []
    for start in range(0, len(texts), BATCH):
        # SigLIP was trained on padded texts, and reads the last place; CLIP does not look behind the end of a text
        ids = tokenizer(
            list(texts[start : start + BATCH]),
            padding="max_length",
            max_length=longest,
            truncation=True,
            return_tensors="pt",
        )
        given = {"input_ids": ids["input_ids"].to(device)}
        if network.config.model_type == "clip":
            given["attention_mask"] = ids["attention_mask"].to(device)
        with torch.inference_mode():
            out = network.get_text_features(**given)
        rows.append((out if hasattr(out, "shape") else out.pooler_output).float().cpu().numpy())
    return unit(np.concatenate(rows))


def encode_pictures(files: Sequence[Path | None], *, model: str, scratch: Path) -> np.ndarray:
    """float32 [R, D], rows of length 1, or 0 where there is no picture."""
    return unit(encode_images(list(files), model=model, options=ImageEncoder(), shards=scratch))


def unit(x_ND: np.ndarray) -> np.ndarray:
    """Rows of length 1; zero rows stay."""
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)


def profiles(x_ND: np.ndarray, members: Sequence[Sequence[int]]) -> np.ndarray:
    """float32 [R, D]: the mean vector of each row's items that have one, so that a dot product with it is the mean cosine.

    NaN where no item of a row has a vector.

    >>> profiles(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), [[0, 1], [0, 2], [2]]).tolist()
    [[0.5, 0.5], [1.0, 0.0], [nan, nan]]
    """
    has = np.abs(x_ND).sum(axis=1) > 0
    out = np.full((len(members), x_ND.shape[1]), np.nan, x_ND.dtype)
    for row, items in enumerate(members):
        known = [item for item in items if has[item]]
        if known:
            out[row] = x_ND[known].mean(axis=0)
    return out


def other_rows(users_R: np.ndarray, *, count: int, seed: int) -> np.ndarray:
    """int64 [R, K]: rows of other users, drawn with a seed, all different where there are K of them; [R, 0] where a user is alone."""
    if len(np.unique(users_R)) < 2:
        return np.empty((len(users_R), 0), np.int64)
    rng, rows = np.random.default_rng(seed), np.arange(len(users_R))
    drawn = np.empty((len(users_R), count), np.int64)
    for row, user in enumerate(users_R):
        others = rows[users_R != user]
        drawn[row] = rng.choice(others, count, replace=len(others) < count)
    return drawn


def against_others(
    pictures_RD: np.ndarray, what_RD: np.ndarray, others_RK: np.ndarray
) -> dict[str, np.ndarray]:
    """Per row (float64 [R], NaN where unknown): `own` similarity, `others` mean similarity to those of other rows, `gap` between
    them, and `win`, the share of others that fit less (ties count half): .5 is chance.

    Pictures (1, 0) and (0, 1), texts the same: own 1, others 0, gap 1, win 1. Without others (K = 0) there is `own` alone.
    """
    own_R = (pictures_RD * what_RD).sum(axis=1)
    if not others_RK.shape[1]:
        return {"own": own_R}
    found = {name: np.full(len(own_R), np.nan) for name in ("own", "others", "gap", "win")}
    for start in range(0, len(own_R), BLOCK):
        rows = slice(start, start + BLOCK)
        theirs_BK = np.einsum("bd,bkd->bk", pictures_RD[rows], what_RD[others_RK[rows]])
        known_BK = np.isfinite(theirs_BK)
        counts = np.maximum(known_BK.sum(axis=1), 1)
        less = np.where(known_BK, theirs_BK < own_R[rows, None], False).sum(axis=1)
        same = np.where(known_BK, theirs_BK == own_R[rows, None], False).sum(axis=1)
        there = np.isfinite(own_R[rows]) & known_BK.any(axis=1)
        mean = np.where(known_BK, theirs_BK, 0).sum(axis=1) / counts
        values = {
            "own": own_R[rows],
            "others": mean,
            "gap": own_R[rows] - mean,
            "win": (less + same / 2) / counts,
        }
        for name, value in values.items():
            found[name][rows] = np.where(there, value, np.nan)
    return found
