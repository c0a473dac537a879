"""Examples -> token ids, rendered once, kept on disk by content and mapped into memory by every process.

    <directory>/<key>/{tokens,offsets,prompts}.npy, shortened.json      key: examples, tokenizer, vocabulary and prompt bound

Legend: N examples, S tokens of all of them.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from configs import program
from configs.program import InputError
from data.renderer import Renderer
from data.store.fingerprints import sha256_json
from data.tasks import from_row

FORMAT = 2  # of the files; part of the key
ROWS = 4096  # examples rendered at once


@dataclass(frozen=True)
class TokenRows:
    """Rendered examples: row n is `tokens_S[starts_N[n] : starts_N[n] + lengths_N[n]]`, its answer from `prompts_N[n]` on.

    tokens_S int32, starts_N int64, lengths_N and prompts_N int32; shortened: by task, prompts that lost their oldest items.
    """

    tokens_S: np.ndarray
    starts_N: np.ndarray
    lengths_N: np.ndarray
    prompts_N: np.ndarray
    shortened: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.starts_N)

    @property
    def label_tokens(self) -> int:
        return int((self.lengths_N - self.prompts_N).sum())

    def take(self, rows: np.ndarray) -> TokenRows:
        """The rows at `rows` (int64 or bool), in that order; tokens are shared."""
        return TokenRows(self.tokens_S, self.starts_N[rows], self.lengths_N[rows], self.prompts_N[rows])

    def without_end(self, rows_N: np.ndarray, end_id: int) -> TokenRows:
        """The same without the last token of those of the rows `rows_N` (bool) that end in `end_id`."""
        ends_N = rows_N & (self.tokens_S[self.starts_N + self.lengths_N - 1] == end_id)
        return TokenRows(
            self.tokens_S, self.starts_N, self.lengths_N - ends_N.astype(np.int32), self.prompts_N
        )

    def check(self, examples: pa.Table, *, max_length: int) -> None:
        """InputError for the first example longer than `max_length` tokens: cutting it would cut the answer."""
        too_long = np.flatnonzero(self.lengths_N > max_length)
        if len(too_long):
            row = int(too_long[0])
            raise InputError(
                f"example {examples['example_id'][row]} ({examples['task'][row]}) has {self.lengths_N[row]} tokens, more "
                f"than max_length {max_length} ({len(too_long)} such examples) -> set max_prompt, build examples with a smaller "
                "max_history, max_title or max_description, or raise max_length as far as the model reads"
            )


def render(examples: pa.Table, renderer: Renderer) -> TokenRows:
    """Every example as rollouts and evaluation render it."""
    tokens, lengths, prompts, before = [], [], [], Counter(renderer.shortened)
    batches = examples.to_batches(max_chunksize=ROWS)
    for batch in program.progress(batches, label="render examples", unit="batch"):
        rows, of_batch = [from_row(row) for row in batch.to_pylist()], []
        for prompt, answer in zip(renderer.prompts(rows), renderer.completions(rows), strict=True):
            of_batch += prompt
            of_batch += answer
            lengths.append(len(prompt) + len(answer))
            prompts.append(len(prompt))
        tokens.append(np.array(of_batch, np.int32))
    sizes = np.array(lengths, np.int32)
    starts = np.cumsum(sizes, dtype=np.int64) - sizes
    return TokenRows(
        np.concatenate(tokens) if tokens else np.empty(0, np.int32),
        starts,
        sizes,
        np.array(prompts, np.int32),
        dict(renderer.shortened - before),
    )


def say_shortened(shortened: dict[str, int], bound: int | None) -> None:
    """A warning where prompts were longer than `bound` tokens."""
    if shortened:
        counts = ", ".join(f"{count} of {task}" for task, count in sorted(shortened.items()))
        program.warn(f"prompts longer than {bound} tokens lost the oldest items of their history: {counts}")


def cached_rows(examples: pa.Table, renderer: Renderer, directory: Path, *, content: str) -> TokenRows:
    """`render(examples)`, from `directory` where it is already there; else made by one process while others wait.

    content: hash of the examples (their manifest's). Files of another key stay; a half-written one is never read.
    """
    from filelock import FileLock

    key = sha256_json(
        {"format": FORMAT, "examples": content, "rows": examples.num_rows, **renderer.identity()}
    )
    place = directory / key[:20]
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / f"{key[:20]}.lock"):
        if not place.exists():
            _write(render(examples, renderer), place)
    arrays = {
        name: np.load(place / f"{name}.npy", mmap_mode="r") for name in ("tokens", "offsets", "prompts")
    }
    offsets = np.asarray(arrays["offsets"])
    return TokenRows(
        arrays["tokens"],
        offsets[:-1],
        np.diff(offsets).astype(np.int32),
        np.asarray(arrays["prompts"]),
        json.loads((place / "shortened.json").read_text()),
    )


def _write(rows: TokenRows, place: Path) -> None:
    temporary = place.with_name(f"{place.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    np.save(temporary / "tokens.npy", rows.tokens_S)
    np.save(temporary / "offsets.npy", np.append(rows.starts_N, len(rows.tokens_S)))
    np.save(temporary / "prompts.npy", rows.prompts_N)
    (temporary / "shortened.json").write_text(json.dumps(rows.shortened))
    os.replace(temporary, place)
