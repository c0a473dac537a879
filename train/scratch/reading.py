"""What trainings from scratch read of a prepared data set: train and valid rows, popularity, texts.

Legend: N items, K similar items, X dimensions of a text vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from configs import program
from configs.program import InputError
from data import artifacts
from data.rows import Rows, TrainLog, read_rows, read_train_log, sample_rows
from data.store.lineage import require_same_data
from infer.models.recency import with_ages
from infer.models.sequential import text
from infer.models.sequential.companions import Companions
from infer.models.sequential.companions import companions as nearest
from infer.models.sequential.options import TextOptions
from infer.models.sequential.windows import newest
from rq.vectors.embeddings import NoTerms, read_embeddings


@dataclass(frozen=True)
class ItemKnowledge:
    """What a model is told of the items: text_NX float32 or None; similar: items and cosines [N, K], or None; companions, or None."""

    popularity_N: np.ndarray
    text_NX: np.ndarray | None = None
    similar: tuple[np.ndarray, np.ndarray] | None = None
    companions: Companions | None = None


def kept_users(user_ids: np.ndarray, share: float, *, seed: int) -> np.ndarray:
    """The share of the users that a model learns from, drawn by seed: a smaller share is part of a larger one, at least one user is kept.

    >>> len(kept_users(np.array([7, 7, 8, 9, 11]), 0.5, seed=0))
    2
    """
    distinct = np.unique(user_ids)
    order = np.random.default_rng(seed).permutation(len(distinct))
    return distinct[order[: max(1, int(len(distinct) * share))]]


def knowledge(
    data: str,
    options: TextOptions,
    *,
    needed_by: Sequence[str],
    embeddings: str | None,
    similar: int,
    seed: int,
    users: float = 1.0,
    companions: int = 0,
) -> ItemKnowledge:
    """Counts and texts; InputError where the options `needed_by` need texts that the data set does not have.

    embeddings: a directory whose vectors take the place of text vectors. similar: most similar items that are asked for. users: the
    share of users whose train interactions are counted, those of `kept_users`. companions: how many of each item are asked for.
    """
    items = artifacts.read_items(data)
    log = read_train_log(data, num_items=len(items))
    counted_T = np.isin(log.users_T, kept_users(log.users_T, users, seed=seed))
    log = TrainLog(log.users_T[counted_T], log.items_T[counted_T], log.num_items)
    texts = text.require_texts(items, options, needed_by=list(needed_by), where=data) if needed_by else []
    text_NX = pairs = None
    if embeddings is not None:
        require_same_data(embeddings, data, again="scripts/02_embed_items.sh")
        text_NX = text.scaled(np.asarray(read_embeddings(embeddings)))
        if len(text_NX) != len(items):
            raise InputError(
                f"{embeddings} has {len(text_NX)} items, {data} {len(items)} -> embed this data set"
            )
    made = embeddings is None and options.table != "none"
    try:
        if made:
            text_NX = text.text_vectors(texts, options, seed=seed)
        if similar:
            pairs = text.similar_items(texts, options, most=similar)
    except NoTerms as none:
        program.warn(f"{data}: {none.said}: all texts count as empty")
        text_NX = np.zeros((len(items), options.dim), np.float32) if made else text_NX
        pairs = text.nothing_similar(len(items), most=similar) if similar else None
    beside = nearest(log, most=companions) if companions else None
    return ItemKnowledge(log.popularity_N, text_NX, pairs, beside)


def read_splits(
    data: str,
    num_items: int,
    *,
    positions: int,
    valid_rows: int | None,
    seed: int,
    positions_name: str,
    ages: bool = False,
    users: float = 1.0,
) -> tuple[Rows, Rows, dict[str, int]]:
    """(train rows with the newest `positions` items, the valid rows that choose, counts); cut histories are said and counted.

    ages: the rows have the ages of their items (infer.models.recency.with_ages); InputError where no train row has one. users: the share of
    users whose train rows are learned, those of `kept_users`.
    """
    train = read_rows(data, "train", num_items=num_items)
    if users < 1:
        everybody = read_train_log(data, num_items=num_items).users_T
        train = train.take(np.flatnonzero(np.isin(train.users_R, kept_users(everybody, users, seed=seed))))
    if ages:
        train = with_ages(train, data, num_items=num_items)
        if np.isnan(train.age_H).all():
            raise InputError(f"{data} has no times of train rows -> model.gaps 0")
    without = int((np.diff(train.offsets) == 0).sum())
    train, cut = newest(train, positions)
    valid = read_rows(data, "valid", num_items=num_items)
    valid = valid.take(sample_rows(len(valid), valid_rows, seed))
    if ages:
        valid = with_ages(valid, data, num_items=num_items)
    counts = {
        "train rows": len(train) - without,
        "valid rows": len(valid),
        "rows_without_history": without,
        "histories_cut": cut,
    }
    if cut:
        program.say(
            f"{cut} of {len(train)} train histories are longer than {positions_name} {positions}: their newest items are read"
        )
    if not len(train) - without:
        raise InputError(f"{data} has no train row with a history -> a split that leaves some")
    return train, valid, counts
