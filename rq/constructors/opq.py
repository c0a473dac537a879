"""Optimised product quantization: independent codes. The vector is rotated and cut into one piece per level.

A codebook over one piece is a codebook over whole vectors that is zero elsewhere; subtracting its codeword touches that
piece only. So after the rotation a product quantizer *is* a residual stack with codebooks of disjoint support, and
everything that works on stacks (repair, measures, new items) works on it. Unlike in a residual stack no level refines
another: a code's meaning does not depend on the codes before it.

The rotation is faiss' OPQ (Ge et al. 2013), the codebooks are k-means per piece, for any number of codes.

Legend: N vectors, D dimensions of a vector, E >= D of a rotated one (a multiple of the number of levels).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from configs.program import InputError
from data.store.output import Output
from rq.stack.options import Source, require_sizes
from rq.stack.residual import ResidualQuantizer, stack_fields
from rq.stack.vq import distinct_rows, train_codebook


@dataclass
class Opq:
    """Options of optimised product quantization."""

    sizes: list[int] = field(default_factory=lambda: [256, 256, 256])
    """Codes per piece."""
    rotate: bool = True
    """Learn a rotation that spreads the variance over the pieces; false: plain product quantization."""
    rotation_iterations: int = 50
    """Alternations of codebooks and rotation."""
    iterations: int = 25
    """Iterations of each piece's k-means."""
    restarts: int = 3
    """Runs of each k-means from other starts; the one with the least distortion is kept."""

    def __post_init__(self) -> None:
        require_sizes(self.sizes, constructor="opq")
        if min(self.rotation_iterations, self.iterations, self.restarts) < 1:
            raise InputError(
                f"opq: rotation_iterations {self.rotation_iterations}, iterations {self.iterations} and restarts "
                f"{self.restarts} must all be >= 1"
            )


@dataclass(frozen=True, eq=False)
class RotatedQuantizer(ResidualQuantizer):
    """A stack on rotated vectors: latent = x @ rotation.T with orthonormal columns, float32 [E, D]."""

    rotation_ED: np.ndarray | None = None
    kind: ClassVar[str] = "rotated"

    @property
    def dim(self) -> int:
        return self.rotation_ED.shape[1]

    def latent(self, x_ND: np.ndarray) -> np.ndarray:
        self.require_dim(x_ND)
        return np.array(x_ND, np.float32) @ self.rotation_ED.T

    def restore(self, latent_NE: np.ndarray) -> np.ndarray:
        return latent_NE @ self.rotation_ED

    def tensors(self) -> dict[str, np.ndarray]:
        return super().tensors() | {"rotation": self.rotation_ED}

    @classmethod
    def build(cls, tensors: dict[str, np.ndarray], description: dict[str, Any]) -> RotatedQuantizer:
        return cls(**stack_fields(tensors, description), rotation_ED=tensors["rotation"])


def fit_opq(source: Source, options: Opq, *, seed: int, out: Output) -> ResidualQuantizer:
    """The registry's entry."""
    return train_opq(source.x_ND, options, seed=seed)


def train_opq(x_ND: np.ndarray, options: Opq, *, seed: int) -> RotatedQuantizer:
    """Rotation and codebooks of float32 [N, D]; equal for equal seed, vectors and thread count."""
    pieces = len(options.sizes)
    width = -(-x_ND.shape[1] // pieces)
    padded_NE = np.zeros((len(x_ND), width * pieces), np.float32)
    padded_NE[:, : x_ND.shape[1]] = x_ND
    rotation_EE = np.eye(width * pieces, dtype=np.float32)
    if options.rotate:
        rotation_EE = _rotation(padded_NE, pieces, min(options.sizes), options.rotation_iterations)
    turned_NE = padded_NE @ rotation_EE.T
    codebooks = []
    for piece, size in enumerate(options.sizes):
        columns = slice(piece * width, (piece + 1) * width)
        book_KE = np.zeros((size, width * pieces), np.float32)
        book_KE[:, columns] = train_codebook(
            np.ascontiguousarray(turned_NE[:, columns]),
            size,
            iterations=options.iterations,
            restarts=options.restarts,
            seed=seed,
        )
        codebooks.append(book_KE)
    rotation_ED = np.ascontiguousarray(rotation_EE[:, : x_ND.shape[1]])
    return RotatedQuantizer(tuple(codebooks), rotation_ED=rotation_ED)


def _rotation(x_NE: np.ndarray, pieces: int, smallest: int, iterations: int) -> np.ndarray:
    """faiss' OPQ rotation [E, E], made with as many codes per piece as fit the smallest codebook and the items.

    The identity where there are fewer distinct vectors than dimensions or codes: nothing to learn, and faiss aborts there.
    """
    import faiss

    width, distinct = x_NE.shape[1], len(distinct_rows(x_NE))
    bits = min(8, smallest.bit_length() - 1, distinct.bit_length() - 1)
    if bits < 1 or distinct <= width:
        return np.eye(width, dtype=np.float32)
    opq = faiss.OPQMatrix(width, pieces)
    pq = faiss.ProductQuantizer(width, pieces, bits)
    pq.cp.min_points_per_centroid, pq.cp.max_points_per_centroid = 1, 2**31 - 1
    opq.pq, opq.niter, opq.verbose = pq, iterations, False
    opq.train(np.ascontiguousarray(x_NE))
    return faiss.vector_to_array(opq.A).reshape(width, width)
