"""The blocks of columns that an embedding is made of, and how each is made: for all items, or for new ones in a fitted space.

Legend: N items, D dimensions, G dimensions of the guide.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from configs.program import InputError, warn
from data.store.claim import rank_and_world
from rq.vectors import embeddings, encoders
from rq.vectors.cooccurrence import Cooccurrence, cooccurrence_svd
from rq.vectors.embeddings import NoTerms, Tfidf, TfidfSpace
from rq.vectors.encoders import ImageEncoder, TextEncoder
from rq.vectors.external import external_vectors

FROM_PATH = ("given", "external", "hf", "clip")
ENCODED = ("hf", "clip")


@dataclass
class Part:
    """One block of columns."""

    method: Literal["tfidf_svd", "cooccurrence", "hf", "clip", "given", "external", "column"]
    """How it is made."""
    dim: int | None = None
    """Columns of tfidf_svd and cooccurrence, 128 unless said. The others have the width of their model or file."""
    weight: float = 1.0
    """Factor of its rows: with `normalize` their length, and how much the part counts beside the others."""
    normalize: bool = True
    """Scale every row to length 1 first. False keeps the lengths that an encoder or a file gives."""
    path: str | None = None
    """Embeddings directory of a given part, file or folder of an external one, model directory of hf and clip."""
    ids: str | None = None
    """external: file with the item of every row; null = row i is item i."""
    first_row: int = 0
    """external: rows to leave out at the start, e.g. 1 for a matrix whose row 0 is padding."""
    column: str | None = None
    """column: the column of items.parquet, e.g. genre_flags."""
    keyed_by: Literal["auto", "raw_id", "item_id"] = "auto"
    """external: what its numbers are where they can be read both ways: the source's (raw_id) or ours (also: rows)."""

    def __post_init__(self) -> None:
        if (self.method in FROM_PATH) != (self.path is not None):
            raise InputError(
                f"embedding part {self.method}: `path` belongs to {', '.join(FROM_PATH)}, and they need one"
            )
        if (self.method == "column") != (self.column is not None):
            raise InputError(
                f"embedding part {self.method}: `column` belongs to a column part, which needs it"
            )
        if self.column and self.dim is not None:
            raise InputError(f"embedding part {self.column}: `dim` is fixed by what it reads -> leave it out")
        if self.method in FROM_PATH and self.dim is not None:
            raise InputError(f"embedding part {self.path}: `dim` is fixed by what it reads -> leave it out")
        if self.method != "external" and (self.ids or self.first_row or self.keyed_by != "auto"):
            raise InputError(
                f"embedding part {self.method}: `ids`, `first_row` and `keyed_by` belong to an external part"
            )
        if self.dim is not None and self.dim < 1 or self.weight <= 0 or self.first_row < 0:
            raise InputError(
                f"embedding part {self.method}: dim {self.dim} must be >= 1, weight {self.weight} > 0, "
                f"first_row {self.first_row} >= 0"
            )

    def scaled(self, x_ND: np.ndarray) -> np.ndarray:
        """Rows at length 1 if the part says so; its weight comes when parts are put side by side."""
        return embeddings.unit_rows(x_ND) if self.normalize else x_ND.astype(np.float32)


@dataclass
class Recipe:
    """Everything beside the parts that decides what their rows are."""

    text_fields: list[str]
    tfidf: Tfidf
    cooccurrence: Cooccurrence
    hf: TextEncoder
    clip: ImageEncoder
    seed: int


@dataclass
class Made:
    """The rows of one part, float32 [N, D] (None on ranks other than 0), what was fitted, and counts for the manifest."""

    x_ND: np.ndarray | None
    fitted: TfidfSpace | None = None
    counts: dict[str, int] = field(default_factory=dict)


def make_part(
    part: Part,
    recipe: Recipe,
    items: pa.Table,
    chains: tuple[np.ndarray, np.ndarray] | None,
    *,
    shards: Path,
    where: str,
    texts_alone: bool = True,
) -> Made:
    """One part for all items. `chains`: of `cooccurrence.read_chains`, where a part needs them; `shards`: folder for the files of several processes; `where` names the data in errors; texts_alone:
    there are no parts but tfidf_svd, so that texts in which it finds no term are an error."""
    if part.method in ENCODED:
        return _encode(part, recipe, items, shards=shards)
    if rank_and_world()[0]:
        return Made(None)
    if part.method == "column":
        return Made(part.scaled(column_vectors(items, part.column)))
    if part.method == "tfidf_svd":
        return _of_terms(part.dim or 128, recipe, items, where=where, alone=texts_alone)
    if part.method == "cooccurrence":
        x_ND = cooccurrence_svd(
            chains,
            num_items=len(items),
            dim=part.dim or 128,
            config=recipe.cooccurrence,
            seed=recipe.seed,
        )
        return Made(x_ND, counts={"items_without_cooccurrence": int(embeddings.zero_rows(x_ND).sum())})
    if part.method == "external":
        raw_ids = items["raw_id"].to_pylist()
        x_ND, missing = external_vectors(
            part.path, ids=part.ids, first_row=part.first_row, keyed_by=part.keyed_by, raw_ids=raw_ids
        )
        return Made(part.scaled(x_ND), counts={"items_without_vector": missing})
    x_ND = embeddings.read_embeddings(part.path)
    if len(x_ND) != len(items):
        raise InputError(f"{part.path} has {len(x_ND)} rows, {where} has {len(items)} items -> embed again")
    return Made(part.scaled(x_ND))


def _of_terms(dim: int, recipe: Recipe, items: pa.Table, *, where: str, alone: bool) -> Made:
    """A tfidf_svd part; zero rows, said so, where no term is found and other parts remain."""
    texts = texts_of(items, recipe, needed_by="tfidf_svd")
    try:
        return Made(*embeddings.tfidf_svd(texts, dim=dim, tfidf=recipe.tfidf, seed=recipe.seed))
    except NoTerms as none:
        if alone:
            raise
        warn(f"{where}: {none.said}: the part tfidf_svd is zero, the others remain")
    nothing = TfidfSpace([], np.zeros(0, np.float32), np.zeros((0, dim), np.float32), recipe.tfidf)
    return Made(nothing.vectors(texts), nothing)


def column_vectors(items: pa.Table, name: str) -> np.ndarray:
    """float32 [N, D] of a column that holds numbers, or lists of numbers of one length; InputError for any other."""
    if name not in items.column_names:
        raise InputError(f"items.parquet has no column {name!r} -> it has {', '.join(items.column_names)}")
    try:
        x_ND = np.array(items[name].to_pylist(), np.float32).reshape(len(items), -1)
    except (ValueError, TypeError):
        raise InputError(
            f"items.parquet: column {name} is {items[name].type}, not numbers or lists of numbers of one length -> another column"
        ) from None
    if not np.isfinite(x_ND).all():
        raise InputError(f"items.parquet: column {name} lacks a number in some row -> another column")
    return x_ND


def texts_of(items: pa.Table, recipe: Recipe, *, needed_by: str) -> list[str]:
    """The text of every item; InputError where no item has any."""
    texts = embeddings.item_texts(items, recipe.text_fields)
    remedy = "other text_fields, or parts without text (cooccurrence)"
    embeddings.require_text(texts, recipe.text_fields, needed_by=needed_by, remedy=remedy)
    return texts


def _encode(part: Part, recipe: Recipe, items: pa.Table, *, shards: Path) -> Made:
    counts: dict[str, int] = {}
    if part.method == "hf":
        texts = texts_of(items, recipe, needed_by="hf")
        counts["items_without_text"] = sum(text == embeddings.EMPTY_TEXT for text in texts)
        x_ND = encoders.encode_texts(
            texts, model=part.path, options=recipe.hf, seed=recipe.seed, shards=shards
        )
    else:
        paths = images_of(items, folder=recipe.clip.images)
        x_ND = encoders.encode_images(paths, model=part.path, options=recipe.clip, shards=shards)
        if x_ND is not None:
            missing = sum(path is None for path in paths)
            unreadable = int(embeddings.zero_rows(x_ND).sum()) - missing
            counts |= {"items_without_image": missing, "unreadable_images": unreadable}
    return Made(None if x_ND is None else part.scaled(x_ND), counts=counts)


def images_of(items: pa.Table, *, folder: str | None) -> list[Path | None]:
    """The image file of every item, None where there is none."""
    has_column = "image" in items.column_names
    if folder is None and not has_column:
        raise InputError("items have no column `image` -> pass --clip.images, a folder of <raw_id>.jpg files")
    images = items["image"].to_pylist() if has_column else [None] * len(items)
    return encoders.image_paths(items["raw_id"].to_pylist(), images, folder=folder)


def fill_behaviour(
    parts: list[Part], made: list[np.ndarray], *, neighbours: int
) -> tuple[list[np.ndarray], int]:
    """(the parts, zero rows of co-occurrence replaced by what the nearest items in the other parts have, rows filled)."""
    behaviour = [part.method == "cooccurrence" for part in parts]
    guides = [(x_ND, part.weight) for part, x_ND, b in zip(parts, made, behaviour, strict=True) if not b]
    if not neighbours or not guides or not any(behaviour):
        return made, 0
    guide_NG = embeddings.unit_rows(embeddings.side_by_side(*map(list, zip(*guides, strict=True))))
    out, filled = list(made), 0
    for number in np.flatnonzero(behaviour):
        out[number] = embeddings.fill_zero_rows(made[number], guide_NG, neighbours=neighbours)
        filled = int((embeddings.zero_rows(made[number]) & ~embeddings.zero_rows(out[number])).sum())
    return out, filled


def fitted_tensors(fitted: list[TfidfSpace | None]) -> tuple[dict[str, np.ndarray], list[Any]]:
    """(arrays by name, term lists by part) of what was fitted; the inverse of `fitted_space`."""
    tensors: dict[str, np.ndarray] = {}
    for number, space in enumerate(fitted):
        if space is not None:
            tensors |= {
                f"part_{number}.idf": space.idf_T,
                f"part_{number}.directions": space.directions_TD,
            }
    return tensors, [None if space is None else space.terms for space in fitted]


def fitted_space(number: int, tensors: dict[str, np.ndarray], terms: list[str], options: Tfidf) -> TfidfSpace:
    """The TF-IDF space of part `number` as it was fitted."""
    return TfidfSpace(terms, tensors[f"part_{number}.idf"], tensors[f"part_{number}.directions"], options)
