"""A residual stack: level l quantizes what levels 0..l-1 left over. Codes of all levels are an item's semantic ID.

On disk a quantizer is `quantizer.safetensors` (one float32 [K, D] tensor per level, `codebook_0`, ...) and
`quantizer.json` (format, sizes, dim, and how it was made). Nothing is pickled.

Legend: N vectors, L levels, K codes of a level, D dimensions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.program import InputError
from data.output import Output, require_manifest
from rq.vq import nearest_codes

WRITTEN_BY = "scripts/04_build_sids.sh"
WEIGHTS, DESCRIPTION = "quantizer.safetensors", "quantizer.json"
FORMAT = "residual-1"


@dataclass(frozen=True)
class ResidualQuantizer:
    """Codebooks float32 [K_l, D], coarse to fine."""

    codebooks: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        shapes = [codebook.shape for codebook in self.codebooks]
        if not shapes or any(len(shape) != 2 or 0 in shape or shape[1] != shapes[0][1] for shape in shapes):
            raise InputError(
                f"codebooks of shapes {shapes} do not form a residual stack: each must be [codes, dim]"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes per level."""
        return tuple(len(codebook) for codebook in self.codebooks)

    @property
    def dim(self) -> int:
        return self.codebooks[0].shape[1]

    def encode(self, x_ND: np.ndarray) -> np.ndarray:
        """Nearest code at every level in turn, int32 [N, L]."""
        self.require_dim(x_ND)
        return self.encode_from(np.array(x_ND, np.float32), level=0)

    def encode_from(self, residual_ND: np.ndarray, *, level: int) -> np.ndarray:
        """Codes int32 [N, L - level] of what is left over when `level` levels are subtracted."""
        codes = np.empty((len(residual_ND), len(self.codebooks) - level), np.int32)
        for column, codebook in enumerate(self.codebooks[level:]):
            codes[:, column], _ = nearest_codes(residual_ND, codebook)
            residual_ND = residual_ND - codebook[codes[:, column]]
        return codes

    def decode(self, codes_NL: np.ndarray) -> np.ndarray:
        """Sum of the codewords of the given levels (all, or the first few), float32 [N, D]."""
        out_ND = np.zeros((len(codes_NL), self.dim), np.float32)
        for codebook, codes_N in zip(self.codebooks, codes_NL.T, strict=False):
            out_ND += codebook[codes_N]
        return out_ND

    def require_dim(self, x_ND: np.ndarray) -> None:
        if x_ND.shape[1] != self.dim:
            raise InputError(
                f"vectors have {x_ND.shape[1]} dimensions, the quantizer {self.dim} "
                "-> use the embeddings that it was trained on, or ones made alike"
            )


def save(out: Output, quantizer: ResidualQuantizer, *, made_by: dict[str, Any]) -> None:
    """Write both files into an output; `made_by` (constructor name and its options) goes into the description."""
    from safetensors.numpy import save_file

    tensors = {f"codebook_{level}": book for level, book in enumerate(quantizer.codebooks)}
    with out.replacing(WEIGHTS) as temporary:
        save_file(tensors, temporary)
    description = {"format": FORMAT, "sizes": quantizer.sizes, "dim": quantizer.dim, "made_by": made_by}
    out.write_json(DESCRIPTION, description)


def load(directory: str | Path) -> tuple[ResidualQuantizer, dict[str, Any]]:
    """(quantizer, description) of a finished output; InputError when the files are damaged or do not fit together."""
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
        books = tuple(tensors[f"codebook_{level}"] for level in range(len(description["sizes"])))
        expected = [(size, description["dim"]) for size in description["sizes"]]
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(
            f"{directory} holds no readable quantizer ({error!r}) -> run {WRITTEN_BY} again"
        ) from None
    if [book.shape for book in books] != expected or not all(np.isfinite(book).all() for book in books):
        shapes = [book.shape for book in books]
        raise InputError(
            f"{path / WEIGHTS} has codebooks {shapes}, {DESCRIPTION} says {expected} -> train again"
        )
    return ResidualQuantizer(books), description
