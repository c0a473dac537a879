"""What an item's ID consists of: its semantic codes alone, with a collision digit, or with the classes of its tags.

  sid           s1 s2 s3
  sid_dedup     s1 s2 s3 d            d counts the items that share s1 s2 s3, so that every ID is one item's own
  concatenated  s1 s2 s3 t1 t2 t3
  interleaved   s1 t1 s2 t2 s3 t3

Every ID has the same number of positions, and position p has token type p. Tag positions hold gold tags of the data set or the
tags that the codes predict; predicted ones follow from the codes, so cold items have them too. A gold tag that is unknown takes
one more class, the last of its level. IDs of a tag layout are as unique as their codes and tags: where they are not, `dedup` adds
a digit to them as well.

Legend: N items, L levels of codes, T levels of tags, W positions of an ID.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from configs.program import InputError
from data.sid import SidTable
from data.tags import UNKNOWN
from rq.ids.collisions import collision_digits

Layout = Literal["sid", "sid_dedup", "concatenated", "interleaved"]


@dataclass(frozen=True)
class LaidOut:
    """IDs in a layout. `kinds` says of every position what it holds: `code`, `tag` or `dedup`."""

    table: SidTable
    kinds: tuple[str, ...]

    @property
    def token_types(self) -> np.ndarray:
        """Token type of every position, int64 [W]: 0..W-1."""
        return np.arange(len(self.kinds))


def lay_out(
    codes_NL: np.ndarray,
    sizes: Sequence[int],
    *,
    layout: Layout,
    classes_NT: np.ndarray | None = None,
    class_sizes: Sequence[int] = (),
    dedup: bool = False,
) -> LaidOut:
    """The IDs of all items. InputError where a tag layout has no tags, or `sid` has tags or more tags than codes to stand between.

    `dedup` adds the digit that `sid_dedup` always has.
    """
    tagged = layout in ("concatenated", "interleaved")
    if tagged != (classes_NT is not None):
        raise InputError(f"layout {layout} {'needs tags' if tagged else 'has no place for tags'}")
    columns = [(codes_NL[:, level], size, "code") for level, size in enumerate(sizes)]
    if tagged:
        tags = tag_columns(classes_NT, class_sizes)
        if layout == "interleaved":
            columns = interleave(columns, tags)
        else:
            columns += tags
    if dedup or layout == "sid_dedup":
        digit_N = collision_digits(np.stack([column for column, _, _ in columns], 1))
        columns.append((digit_N, int(digit_N.max(initial=0)) + 1, "dedup"))
    values, widths, kinds = zip(*columns, strict=True)
    return LaidOut(SidTable(np.stack(values, 1).astype(np.int32), widths), kinds)


def tag_columns(classes_NT: np.ndarray, class_sizes: Sequence[int]) -> list[tuple[np.ndarray, int, str]]:
    """(class int [N], classes, `tag`) per level; unknown tags become one more class where there are any."""
    columns = []
    for classes_N, size in zip(classes_NT.T, class_sizes, strict=True):
        unknown = classes_N == UNKNOWN
        columns.append((np.where(unknown, size, classes_N), size + int(unknown.any()), "tag"))
    return columns


def interleave(codes: list[tuple], tags: list[tuple]) -> list[tuple]:
    """s1 t1 s2 t2 ...; levels without a tag follow as they are. InputError for more tags than codes."""
    if len(tags) > len(codes):
        raise InputError(
            f"{len(tags)} tag levels do not fit between {len(codes)} levels of codes -> layout concatenated"
        )
    mixed = [column for pair in zip(codes, tags, strict=False) for column in pair]
    return mixed + codes[len(tags) :]
