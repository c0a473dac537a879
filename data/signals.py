"""What a prompt may say besides items: one token for the user, one for the moment, one for the type of every item.

    <user_high> <user_mid> <user_low> <user_unknown>     mean rating of the user's train interactions: above 4.5, above 3.5, else
    <bucket_17> <bucket_unknown>                          the remainder of the user's number: TIGER's hashed user
    <env_WORD> <env_unknown>                              a column of sequences.parquet
    <item_WORD>                                           item_type of items.parquet; without it promoted or organic (below)

The idea is GPR's (arXiv 2510.11138 and its open code), which draws the moment by chance and rates users on all splits; here
both come from the data, users from train rows only. The answer stays a semantic ID alone: its type would be one more level.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data.store.output import Output

KINDS = ("user", "user_bucket", "environment", "item_type")
ITEM_TOKEN = r"(?:<item_[a-z0-9]+>)?"  # what may stand before a semantic ID in a history
HIGH, MID = 4.5, 3.5  # mean ratings
PROMOTED_PRICE = 50.0
FILE = "signals.json"
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Signals:
    """Tokens by what they stand for. An empty part is left out of every prompt.

    users: words by user_id, others are unknown; environments: the words there are; items: the word of every item; buckets: how
    many tokens the users share by their number's remainder.
    """

    users: dict[int, str] = field(default_factory=dict)
    environments: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    buckets: int = 0

    def lead(self, user_id: int | None, environment: str | None) -> str:
        """The tokens at the start of a history's prompt.

        >>> Signals(users={3: "high"}, environments=("home",)).lead(4, "home")
        '<user_unknown><env_home>'
        >>> Signals(buckets=2000).lead(4017, None), Signals(buckets=2000).lead(None, None)
        ('<bucket_17>', '<bucket_unknown>')
        """
        user = f"<user_{self.users.get(user_id, _UNKNOWN)}>" if self.users else ""
        known = environment if environment in self.environments else _UNKNOWN
        bucket = _UNKNOWN if user_id is None else user_id % max(self.buckets, 1)
        user += f"<bucket_{bucket}>" if self.buckets else ""
        return user + (f"<env_{known}>" if self.environments else "")

    def item_token(self, item: int) -> str:
        return f"<item_{self.items[item]}>" if self.items else ""

    @property
    def tokens(self) -> list[str]:
        """Every token that a prompt may hold: what the vocabulary needs."""
        users = ("high", "mid", "low", _UNKNOWN) if self.users else ()
        moments = (*self.environments, _UNKNOWN) if self.environments else ()
        return [
            *(f"<user_{word}>" for word in users),
            *(f"<bucket_{number}>" for number in [*range(self.buckets), _UNKNOWN] if self.buckets),
            *(f"<env_{word}>" for word in moments),
            *(f"<item_{word}>" for word in sorted(set(self.items))),
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "users": {str(user): word for user, word in self.users.items()},
            "environments": list(self.environments),
            "items": list(self.items),
            "buckets": self.buckets,
        }


def write_signals(out: Output, signals: Signals) -> None:
    """signals.json of an examples directory: serving reads it, and stage 08 takes its tokens."""
    out.write_json(FILE, signals.to_json())


def read_signals(examples: str | Path, tokenizer: Any) -> Signals | None:
    """The signals of an examples directory, or None where its prompts have none; InputError for a tokenizer without them."""
    path = Path(examples) / FILE
    if not path.exists():
        return None
    raw = json.loads(path.read_text())
    users = {int(user): value for user, value in raw["users"].items()}
    signals = Signals(users, tuple(raw["environments"]), tuple(raw["items"]), raw.get("buckets", 0))
    known = tokenizer.get_vocab()
    if missing := [token for token in signals.tokens if token not in known]:
        raise InputError(
            f"examples {examples} use the token {missing[0]}, which the model's vocabulary lacks "
            f"-> expand it with --add_tokens_list {path}"
        )
    return signals


def word(value: Any) -> str:
    """A value of a column as the word of a token.

    >>> word("Home page!"), word(None)
    ('homepage', 'unknown')
    """
    return re.sub(r"[^a-z0-9]", "", str(value).lower()) or _UNKNOWN if value is not None else _UNKNOWN


def user_words(interactions: pa.Table) -> dict[int, str]:
    """high, mid or low by the mean rating of a user's train interactions; users without one are left out."""
    for name in ("rating", "split"):
        if name not in interactions.column_names:
            raise InputError(f"interactions have no column `{name}` -> leave user out of signals")
    train = interactions.filter(pc.equal(interactions["split"], "train"))
    means = train.group_by("user_id").aggregate([("rating", "mean")])
    pairs = zip(means["user_id"].to_pylist(), means["rating_mean"].to_pylist(), strict=True)
    return {user: _rated(mean) for user, mean in pairs if mean is not None}


def _rated(mean: float) -> str:
    return "high" if mean > HIGH else "mid" if mean > MID else "low"


def item_words(items: pa.Table) -> tuple[str, ...]:
    """The item_type of every item; without that column `promoted` for a brand or a price above 50, else `organic`."""
    if "item_type" in items.column_names:
        return tuple(word(value) for value in items["item_type"].to_pylist())
    brands = items["brand"].to_pylist()
    prices = items["price"].to_pylist() if "price" in items.column_names else [None] * len(brands)
    return tuple(
        "promoted" if brand or (price or 0) > PROMOTED_PRICE else "organic"
        for brand, price in zip(brands, prices, strict=True)
    )


def environment_words(sequences: pa.Table, column: str) -> list[str]:
    """The word of every row of sequences.parquet."""
    if column not in sequences.column_names:
        raise InputError(
            f"sequences.parquet has no column {column!r} (it has {', '.join(sequences.column_names)}) -> name another, or "
            "leave environment out of signals"
        )
    return [word(value) for value in sequences[column].to_pylist()]


def item_values(items: pa.Table, targets: np.ndarray) -> np.ndarray:
    """What an item is worth, float64 [N] of mean 1 over the train rows whose targets are `targets` (int64).

    log1p(v), v = log1p(price) + log1p(train rows of the item), both scaled to 0..1 over the catalogue (value-aware
    fine-tuning of GPR's open code, there unscaled, so that its least valued item had weight 0; here at least a tenth of the mean).
    """
    counts = np.bincount(targets, minlength=len(items))
    prices = np.zeros(len(items))
    if "price" in items.column_names:
        prices = np.nan_to_num(pc.fill_null(items["price"], 0).to_numpy().astype(np.float64))
    value = np.log1p(np.maximum(prices, 0)) + np.log1p(counts)
    spread = float(np.ptp(value))
    weight = np.log1p((value - value.min()) / spread) if spread else np.ones(len(items))
    mean = weight[targets].mean() if len(targets) else 1.0
    weight = np.maximum(weight / (mean or 1.0), 0.1)
    return weight / (weight[targets].mean() if len(targets) else 1.0)
