"""What an embedding was fitted to, on disk, and vectors for new items in that same space.

fitted.json has the parts, their options, the terms of TF-IDF and the raw ids of the items; fitted.safetensors the arrays.

Legend: N items of the new data set, W of them new, D dimensions.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from configs.program import InputError
from data.store.claim import rank_and_world
from data.store.output import Output
from rq.ids.append import matched_rows
from rq.vectors import embeddings, parts
from rq.vectors.cooccurrence import Cooccurrence
from rq.vectors.embeddings import Projection, Tfidf, TfidfSpace
from rq.vectors.encoders import ImageEncoder, TextEncoder
from rq.vectors.parts import Made, Part, Recipe

FITTED, ARRAYS = "fitted.json", "fitted.safetensors"


@dataclass
class Reduce:
    """PCA of all columns."""

    dim: int | None = None
    """Columns to keep, by variance; null = no PCA."""
    whiten: bool = False
    """Give every kept direction variance 1."""
    normalize: bool = False
    """Scale the rows to length 1 afterwards."""

    def __post_init__(self) -> None:
        if self.dim is not None and self.dim < 1:
            raise InputError(f"reduce.dim {self.dim} must be >= 1")
        if self.dim is None and (self.whiten or self.normalize):
            raise InputError("reduce.whiten and reduce.normalize belong to a PCA -> give reduce.dim")

    def finish(self, x_ND: np.ndarray) -> np.ndarray:
        """Rows after the projection."""
        return embeddings.unit_rows(x_ND) if self.normalize else x_ND


@dataclass
class Fitted:
    """All that makes the rows of one embeddings directory. widths: columns of each part before PCA."""

    parts: list[Part]
    recipe: Recipe
    reduce: Reduce
    fill_neighbours: int
    widths: list[int]
    raw_ids: list[str]
    spaces: list[TfidfSpace | None]
    projection: Projection | None


def write_fitted(out: Output, fitted: Fitted) -> None:
    """Both files, into an output."""
    from safetensors.numpy import save_file

    tensors, terms = parts.fitted_tensors(fitted.spaces)
    if fitted.projection is not None:
        tensors |= {"mean": fitted.projection.mean_D, "directions": fitted.projection.directions_DE}
    with out.replacing(ARRAYS) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, temporary)
    plain = {
        "parts": [asdict(part) for part in fitted.parts],
        "recipe": asdict(fitted.recipe),
        "reduce": asdict(fitted.reduce),
        "fill_neighbours": fitted.fill_neighbours,
        "widths": fitted.widths,
        "terms": terms,
        "raw_ids": fitted.raw_ids,
    }
    out.write_json(FITTED, plain)


def read_fitted(directory: str | Path) -> Fitted:
    """What `write_fitted` wrote; InputError when it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    embeddings.read_embeddings(directory)
    path = Path(directory)
    try:
        raw = json.loads((path / FITTED).read_text())
        tensors = load_file(path / ARRAYS)
        recipe = raw["recipe"]
        tfidf = Tfidf(**recipe["tfidf"])
        return Fitted(
            parts=[Part(**part) for part in raw["parts"]],
            recipe=Recipe(
                recipe["text_fields"],
                tfidf,
                Cooccurrence(**recipe["cooccurrence"]),
                TextEncoder(**recipe["hf"]),
                ImageEncoder(**recipe["clip"]),
                recipe["seed"],
            ),
            reduce=Reduce(**raw["reduce"]),
            fill_neighbours=raw["fill_neighbours"],
            widths=raw["widths"],
            raw_ids=raw["raw_ids"],
            spaces=[
                None if terms is None else parts.fitted_space(number, tensors, terms, tfidf)
                for number, terms in enumerate(raw["terms"])
            ],
            projection=Projection(tensors["mean"], tensors["directions"]) if "mean" in tensors else None,
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{directory} says nothing readable about how it was fitted ({error!r}) -> embed its data again"
        ) from None


def embed_new(
    fitted: Fitted, items: pa.Table, *, like: str, shards: Path
) -> tuple[np.ndarray | None, Fitted | None, dict[str, int]]:
    """(float32 [N, D], `fitted` for these items, counts): known items keep their rows of `like`, new ones are made alike."""
    fixed = [part.method for part in fitted.parts if part.method in ("given", "external")]
    if fixed:
        raise InputError(
            f"{like} has a part {fixed[0]}: its vectors of new items come from elsewhere -> embed anew"
        )
    behaviour = any(part.method == "cooccurrence" for part in fitted.parts)
    if behaviour and (fitted.projection is not None or not fitted.fill_neighbours):
        raise InputError(
            f"{like} joins co-occurrence with reduce or fill_neighbours 0: new items cannot be placed -> embed anew"
        )
    raw_ids = items["raw_id"].to_pylist()
    old_row_N = matched_rows(fitted.raw_ids, raw_ids)
    new = np.flatnonzero(old_row_N < 0)
    old_OD = embeddings.read_embeddings(like)
    out_ND = np.zeros((len(items), old_OD.shape[1]), np.float32)
    out_ND[old_row_N >= 0] = old_OD[old_row_N[old_row_N >= 0]]
    counts: dict[str, int] = {"items": len(items), "new_items": len(new)}
    if len(new):
        rows = items.take(pa.array(new))
        blocks = [_new_rows(fitted, number, rows, shards=shards) for number in range(len(fitted.parts))]
        if any(block is None for block in blocks):
            return None, None, {}
        out_ND[new] = _join(fitted, blocks, old_OD)
    if rank_and_world()[0]:
        return None, None, {}
    counts["zero_rows"] = int(embeddings.zero_rows(out_ND).sum())
    return out_ND, Fitted(**vars(fitted) | {"raw_ids": raw_ids}), counts


def _new_rows(fitted: Fitted, number: int, rows: pa.Table, *, shards: Path) -> np.ndarray | None:
    """The block of part `number` for new items [W, D]; zeros for co-occurrence; None on ranks other than 0."""
    part = fitted.parts[number]
    if part.method in (*parts.ENCODED, "column"):
        made: Made = parts.make_part(
            part, fitted.recipe, rows, None, shards=shards / f"part_{number}", where="the new items"
        )
        return made.x_ND
    if rank_and_world()[0]:
        return None
    if part.method == "cooccurrence":
        return np.zeros((len(rows), fitted.widths[number]), np.float32)
    return fitted.spaces[number].vectors(embeddings.item_texts(rows, fitted.recipe.text_fields))


def _join(fitted: Fitted, blocks: list[np.ndarray], old_OD: np.ndarray) -> np.ndarray:
    """Blocks of the new items side by side, co-occurrence filled from old neighbours, then projected."""
    if any(part.method == "cooccurrence" for part in fitted.parts):
        ends = np.cumsum(fitted.widths)
        old = [
            old_OD[:, end - width : end] / part.weight
            for part, width, end in zip(fitted.parts, fitted.widths, ends, strict=True)
        ]
        both = [np.concatenate(pair) for pair in zip(old, blocks, strict=True)]
        filled, _ = parts.fill_behaviour(fitted.parts, both, neighbours=fitted.fill_neighbours)
        blocks = [block[len(old_OD) :] for block in filled]
    x_WD = embeddings.side_by_side(blocks, [part.weight for part in fitted.parts])
    if fitted.projection is not None:
        x_WD = fitted.reduce.finish(fitted.projection.apply(x_WD))
    return x_WD
