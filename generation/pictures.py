"""Pictures as files: whether one is what was asked for, how two of them resemble each other, many of them on one sheet.

Legend: H height, W width in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TINY = "tiny-random-"  # what the models of init_tiny_models are named: they draw noise, and whoever shows it says so
BLANK = 1.0  # standard deviation of the grey levels (0 to 255) at or below which a picture shows nothing
NEAR = 4  # bits of 64 in which two pictures that look alike differ at most
SHEET_PICTURES, SHEET_COLUMNS, CELL = 48, 8, 160


class Faulty(Exception):
    """A file that is not what was asked for; the message says why."""


@dataclass(frozen=True)
class Facts:
    """What a finished file is. contrast: standard deviation of its grey levels; frames: 1 for a picture."""

    width: int
    height: int
    contrast: float
    frames: int = 1
    poster: str | None = None


def check_picture(file: Path, *, size: tuple[int, int]) -> Facts:
    """Facts of a picture of `size` (width, height); Faulty where it cannot be decoded, has another size or is blank."""
    picture = open_picture(file)
    if picture.size != size:
        raise Faulty(f"{picture.width}x{picture.height} pixels in place of {size[0]}x{size[1]}")
    return Facts(*picture.size, require_contrast(contrast_of(picture)))


def open_picture(file: Path) -> Any:
    """The whole picture in RGB; Faulty where it cannot be decoded."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Faulty(f"not decodable ({' '.join(str(error).split())[:80]})") from None


def contrast_of(picture: Any) -> float:
    """Standard deviation of a picture's grey levels: of its channels it would be large where one colour fills all of it."""
    return float(np.asarray(picture.convert("L")).std(dtype=np.float64))


def require_contrast(contrast: float) -> float:
    """The contrast; Faulty where there is next to none: black is what not-a-number looks like."""
    if contrast <= BLANK:
        raise Faulty(f"blank (contrast {contrast:.2f} of 255)")
    return contrast


def difference_hash(picture: Any) -> int:
    """64 bits: whether each of 8 x 8 cells of a tiny grey copy is brighter than its right neighbour (dHash, Krawetz 2013)."""
    grey = np.asarray(picture.convert("L").resize((9, 8)), np.int16)
    bits = (grey[:, :-1] > grey[:, 1:]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes())


def near_pairs(hashes_N: Sequence[int]) -> np.ndarray:
    """bool [N]: whether another picture differs in at most NEAR bits.

    >>> near_pairs([0b0, 0b111, 0xFFFF]).tolist()
    [True, True, False]
    """
    hashes = np.asarray(hashes_N, np.uint64)
    near = np.zeros(len(hashes), bool)
    for row, own in enumerate(hashes):
        distance = np.bitwise_count(hashes[row + 1 :] ^ own)
        found = np.flatnonzero(distance <= NEAR) + row + 1
        near[found] = True
        near[row] |= bool(len(found))
    return near


def contact_sheet(files: Sequence[Path]) -> Any:
    """The first 48 pictures in rows of eight on one, each inside a square of 160 pixels."""
    from PIL import Image

    shown = files[:SHEET_PICTURES]
    rows = -(-len(shown) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (CELL * min(len(shown), SHEET_COLUMNS), CELL * rows), "white")
    for place, file in enumerate(shown):
        picture = open_picture(file)
        picture.thumbnail((CELL - 4, CELL - 4))
        sheet.paste(picture, (place % SHEET_COLUMNS * CELL + 2, place // SHEET_COLUMNS * CELL + 2))
    return sheet


def thumbnail(file: Path, *, longest: int) -> bytes:
    """A picture as JPEG, its longer side `longest` pixels at most."""
    picture = open_picture(file)
    picture.thumbnail((longest, longest))
    kept = io.BytesIO()
    picture.save(kept, "JPEG", quality=82)
    return kept.getvalue()
