"""Strings become dense integer codes once, while a file is read; everything after that is numpy on codes.

Codes are given in order of first appearance. Memory is one int32 per row, each distinct string once, and the strings of
the last BUFFER_ROWS rows: those are coded together, and the dictionaries of such batches are merged whenever together
they outgrow the merged one.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

BUFFER_ROWS = 1 << 20
MERGE_ABOVE = 1 << 20


class Coder:
    """Collects blocks of strings; `finish` gives the code of every row and the distinct strings.

    >>> coder = Coder(); coder.add(pa.array(["b", "a", "b"])); coder.add(pa.array(["c", "a"]))
    >>> codes, values = coder.finish()      # codes [0, 1, 0, 2, 1], values ["b", "a", "c"]
    """

    def __init__(self) -> None:
        self._strings: list[pa.Array] = []
        self._buffered = 0
        self._chunks: list[pa.DictionaryArray] = []
        self._merged = 0
        self._pending = 0

    def add(self, strings: pa.Array | pa.ChunkedArray) -> None:
        """Append the rows of `strings` (string, no nulls)."""
        self._strings += strings.chunks if isinstance(strings, pa.ChunkedArray) else [strings]
        self._buffered += len(strings)
        if self._buffered >= BUFFER_ROWS:
            self._encode()
        if self._pending > max(MERGE_ABOVE, self._merged):
            self._merge()

    def _encode(self) -> None:
        # The chunks of one call share one dictionary.
        batch = _joined(pa.chunked_array(self._strings, pa.string()).dictionary_encode().chunks)
        self._chunks.append(batch)
        self._pending += len(batch.dictionary)
        self._strings, self._buffered = [], 0

    def _merge(self) -> None:
        if len(self._chunks) > 1:
            self._chunks = [_joined(pa.chunked_array(self._chunks).unify_dictionaries().chunks)]
        self._merged, self._pending = len(self._chunks[0].dictionary), 0

    def finish(self) -> tuple[np.ndarray, pa.Array]:
        """(codes int32 [rows], distinct strings [codes.max() + 1])."""
        if self._buffered:
            self._encode()
        if not self._chunks:
            return np.zeros(0, np.int32), pa.array([], pa.string())
        self._merge()
        return self._chunks[0].indices.to_numpy(), self._chunks[0].dictionary


def _joined(chunks: list[pa.DictionaryArray]) -> pa.DictionaryArray:
    """One array of chunks that have the same dictionary."""
    codes = pa.concat_arrays([chunk.indices for chunk in chunks])
    return pa.DictionaryArray.from_arrays(codes, chunks[0].dictionary)


def dense_by_first_appearance(codes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Renumber `codes` (int [rows], values < size) by first appearance.

    Returns (dense codes int32 [rows], old code of each dense code int32 [distinct]).
    """
    first = np.full(size, len(codes), np.int64)
    # Assigning in reverse leaves each code's first position, because the last write to an index wins.
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)
    seen = np.flatnonzero(first < len(codes))
    old = seen[np.argsort(first[seen], kind="stable")].astype(np.int32)
    dense = np.full(size, -1, np.int32)
    dense[old] = np.arange(len(old), dtype=np.int32)
    return dense[codes], old
