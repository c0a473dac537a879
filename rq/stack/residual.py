"""A residual stack: level l quantizes what levels 0..l-1 left over. Codes of all levels are an item's semantic ID.

The stack works on latent vectors. Of the plain `ResidualQuantizer` these are the item vectors themselves; a subclass puts
a rotation (rq/constructors/opq.py) or a network (rq/constructors/rqvae.py, rq/constructors/hidvae/quantizer.py) before and after it. A level picks the cheapest code, where

    cost = squared Euclidean distance, or 1 - cosine, minus the code's price

Prices are zero but for balanced codebooks (rq/constructors/balanced.py), where they even out how often a code is used. A level may see
residuals and codewords through a lens, a matrix [E, M]: distances are then those of the projections.

On disk a quantizer is `quantizer.safetensors` (one float32 [K, D] tensor per level, `codebook_0`, ..., `price_0`, ... and `lens_0`,
... where there are any, and what a subclass adds) and `quantizer.json` (format, kind, sizes, dim, and how it was made). Nothing is
pickled. `load` reads every kind.

Legend: N vectors, L levels, K codes of a level, D dimensions of a vector, E dimensions of a latent vector.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from configs.program import InputError
from data.store.output import Output, require_manifest
from rq.stack.streams import row_blocks
from rq.stack.vq import Distance, cheapest_codes, cost_matrix

WRITTEN_BY = "scripts/04_build_sids.sh"
WEIGHTS, DESCRIPTION = "quantizer.safetensors", "quantizer.json"
FORMAT = "residual-1"
KINDS = {
    "residual": "rq.stack.residual:ResidualQuantizer",
    "rotated": "rq.constructors.opq:RotatedQuantizer",
    "encoded": "rq.constructors.rqvae:EncodedQuantizer",
    "hidvae": "rq.constructors.hidvae.quantizer:HidVaeQuantizer",
}


@dataclass(frozen=True, eq=False)
class ResidualQuantizer:
    """Codebooks float32 [K_l, E], coarse to fine; for balanced ones a price float64 [K_l] per code; lenses float32 [E, M] of
    the levels (by number) that have one."""

    codebooks: tuple[np.ndarray, ...]
    prices: tuple[np.ndarray, ...] | None = None
    distance: Distance = "euclidean"
    lenses: Mapping[int, np.ndarray] = field(default_factory=dict)
    kind: ClassVar[str] = "residual"

    def __post_init__(self) -> None:
        shapes = [codebook.shape for codebook in self.codebooks]
        if not shapes or any(len(shape) != 2 or 0 in shape or shape[1] != shapes[0][1] for shape in shapes):
            raise InputError(
                f"codebooks of shapes {shapes} do not form a residual stack: each must be [codes, dim]"
            )
        if self.prices is not None and [len(price) for price in self.prices] != [
            shape[0] for shape in shapes
        ]:
            raise InputError(
                f"prices of {[len(p) for p in self.prices]} codes do not fit codebooks of {list(self.sizes)}"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes per level."""
        return tuple(len(codebook) for codebook in self.codebooks)

    @property
    def dim(self) -> int:
        """Dimensions of the vectors that are encoded."""
        return self.latent_dim

    @property
    def latent_dim(self) -> int:
        """Dimensions of a codeword."""
        return self.codebooks[0].shape[1]

    def latent(self, x_ND: np.ndarray) -> np.ndarray:
        """What the first level quantizes, a new float32 [N, E]; InputError on vectors of another width."""
        self.require_dim(x_ND)
        return np.array(x_ND, np.float32)

    def restore(self, latent_NE: np.ndarray) -> np.ndarray:
        """Vectors float32 [N, D] of latent ones: the way back from `latent`."""
        return latent_NE

    def encode(self, x_ND: np.ndarray) -> np.ndarray:
        """Cheapest code at every level in turn, int32 [N, L]. Vectors (a memory map) are read block by block."""
        codes_NL = np.empty((len(x_ND), len(self.codebooks)), np.int32)
        for rows in row_blocks(x_ND):
            codes_NL[rows] = self.encode_from(self.latent(x_ND[rows]), level=0)
        return codes_NL

    def encode_from(self, residual_NE: np.ndarray, *, level: int) -> np.ndarray:
        """Codes int32 [N, L - level] of what is left of latent vectors when `level` levels are subtracted."""
        codes = np.empty((len(residual_NE), len(self.codebooks) - level), np.int32)
        for column, codebook in enumerate(self.codebooks[level:]):
            codes[:, column] = self.choose(level + column, residual_NE)
            residual_NE = residual_NE - codebook[codes[:, column]]
        return codes

    def residual(self, x_ND: np.ndarray, codes_NL: np.ndarray) -> np.ndarray:
        """What is left of the latent vectors after the given codes (of the first few levels, or all), [N, E]."""
        return self.latent(x_ND) - self.codewords(codes_NL)

    def distances(self, level: int, residual_NE: np.ndarray) -> np.ndarray:
        """Cost float64 [N, K] of every code of a level for residuals before that level; encoding takes the least."""
        seen_NM, book_KM, price_K = self.seen(level, residual_NE)
        return cost_matrix(seen_NM, book_KM, price_K=price_K, distance=self.distance)

    def choose(self, level: int, residual_NE: np.ndarray) -> np.ndarray:
        """The code int32 [N] of least cost at one level."""
        seen_NM, book_KM, price_K = self.seen(level, residual_NE)
        return cheapest_codes(seen_NM, book_KM, price_K=price_K, distance=self.distance)

    def seen(self, level: int, residual_NE: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """(residuals, codebook, prices) as a level compares them: through its lens if it has one."""
        book_KE, price_K = self.codebooks[level], None if self.prices is None else self.prices[level]
        if level not in self.lenses:
            return residual_NE, book_KE, price_K
        return through(residual_NE, self.lenses[level]), through(book_KE, self.lenses[level]), price_K

    def codewords(self, codes_NL: np.ndarray) -> np.ndarray:
        """Sum of the codewords of the given levels (all, or the first few), float32 [N, E]."""
        out_NE = np.zeros((len(codes_NL), self.latent_dim), np.float32)
        for codebook, codes_N in zip(self.codebooks, codes_NL.T, strict=False):
            out_NE += codebook[codes_N]
        return out_NE

    def decode(self, codes_NL: np.ndarray) -> np.ndarray:
        """Vectors float32 [N, D] that the codes of the given levels (all, or the first few) stand for."""
        return self.restore(self.codewords(codes_NL))

    def require_dim(self, x_ND: np.ndarray) -> None:
        if x_ND.shape[1] != self.dim:
            raise InputError(
                f"vectors have {x_ND.shape[1]} dimensions, the quantizer {self.dim} "
                "-> use the embeddings that it was trained on, or ones made alike"
            )

    def tensors(self) -> dict[str, np.ndarray]:
        """Everything that goes into the safetensors file, by name."""
        named = {f"codebook_{level}": book for level, book in enumerate(self.codebooks)}
        if self.prices is not None:
            named |= {f"price_{level}": price for level, price in enumerate(self.prices)}
        return named | {f"lens_{level}": lens for level, lens in self.lenses.items()}

    def describe(self) -> dict[str, Any]:
        """What quantizer.json says beside `made_by`; enough, with the tensors, to build the quantizer again."""
        description = {"format": FORMAT, "kind": self.kind, "sizes": list(self.sizes), "dim": self.dim}
        if self.latent_dim != self.dim:
            description["latent_dim"] = self.latent_dim
        return description | {"distance": self.distance}

    @classmethod
    def build(cls, tensors: dict[str, np.ndarray], description: dict[str, Any]) -> ResidualQuantizer:
        """The inverse of `tensors` and `describe`; KeyError or InputError when something is missing."""
        return cls(**stack_fields(tensors, description))


def through(x_NE: np.ndarray, lens_EM: np.ndarray) -> np.ndarray:
    """Projections float64 [N, M]: in double precision, so that blocks of any size give the same codes."""
    return x_NE.astype(np.float64) @ lens_EM.astype(np.float64)


def stack_fields(tensors: dict[str, np.ndarray], description: dict[str, Any]) -> dict[str, Any]:
    """Codebooks, prices, lenses and distance from the two files: what every kind has."""
    levels = range(len(description["sizes"]))
    prices = tuple(tensors[f"price_{level}"] for level in levels) if "price_0" in tensors else None
    return {
        "codebooks": tuple(tensors[f"codebook_{level}"] for level in levels),
        "prices": prices,
        "lenses": {level: tensors[f"lens_{level}"] for level in levels if f"lens_{level}" in tensors},
        "distance": description.get("distance", "euclidean"),
    }


def save(out: Output, quantizer: ResidualQuantizer, *, made_by: dict[str, Any]) -> None:
    """Write both files into an output; `made_by` (constructor name and its options) goes into the description."""
    from safetensors.numpy import save_file

    tensors = {name: np.ascontiguousarray(array) for name, array in quantizer.tensors().items()}
    with out.replacing(WEIGHTS) as temporary:
        save_file(tensors, temporary)
    out.write_json(DESCRIPTION, quantizer.describe() | {"made_by": made_by})


def load(directory: str | Path) -> tuple[ResidualQuantizer, dict[str, Any]]:
    """(quantizer of any kind, description) of a finished output; InputError when files are damaged or do not fit."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    require_manifest(directory, written_by=WRITTEN_BY)
    path = Path(directory)
    try:
        description = json.loads((path / DESCRIPTION).read_text())
        tensors = load_file(path / WEIGHTS)
        if description["format"] != FORMAT:
            raise InputError(
                f"{path / DESCRIPTION} has format {description['format']!r}, not {FORMAT} -> train again"
            )
        widths = description.get("latent_dim", description["dim"])
        expected = [(size, widths) for size in description["sizes"]]
        found = [tensors[f"codebook_{level}"].shape for level in range(len(expected))]
        if found != expected or not all(np.isfinite(array).all() for array in tensors.values()):
            raise InputError(
                f"{path / WEIGHTS} has codebooks {found} or values that are not finite, {DESCRIPTION} says {expected} "
                "-> train again"
            )
        module, name = KINDS[description.get("kind", "residual")].split(":")
        return getattr(importlib.import_module(module), name).build(tensors, description), description
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(
            f"{directory} holds no readable quantizer ({error!r}) -> run {WRITTEN_BY} again"
        ) from None
