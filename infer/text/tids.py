"""Textual identifiers (TIDs) decoded under a trie: whatever the model wants to say, every answer is a TID of the catalogue.

    trie = TidTrie(read_tids(directory), tokenizer)                  # or ending=BETWEEN: an instruction follows
    for found in decode_tids(model, prompts, trie, beams=40): ...    # per prompt its DecodedTids, best first

A prompt ends with what every answer begins with, `{"target_tid":["`, as data.renderer makes it. The search runs over the
tokens that tell TIDs apart, and what all of them end with is added without asking the model. The tokens are those of
training (data/answers.py). Two items of one TID are one leaf, and an answer names both.

Relations: infer.search.token_trie and token_tree search; infer.text.json_strings writes the instruction behind a TID.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from os.path import commonprefix
from typing import Any

from configs.program import InputError
from data.answers import END, listed, piece_ids
from data.tids import Tids
from infer.search.scoring import PLAIN
from infer.search.token_trie import TokenTrie


@dataclass(frozen=True)
class DecodedTid:
    """terms; item_ids: all items that have them; score: the log-probability of the tokens that tell TIDs apart;
    ids: all tokens behind the prompt up to the end of `ending`."""

    terms: tuple[str, ...]
    item_ids: tuple[int, ...]
    score: float
    ids: tuple[int, ...]


class TidTrie:
    """The TIDs of a catalogue as the tokens in which an answer is written.

    ending: what follows the terms, data.answers.after_terms of the task.
    Fields: prefix_ids, suffix_ids (what the tokens of all answers begin and end with), trie (over what lies between), told (the
    same, each cut behind the token that tells it from all others: what follows is forced), terms and items (per sequence of
    either), shared_items (how many items have a TID that another one has too). InputError for a catalogue without TIDs.
    """

    def __init__(self, tids: Tids, tokenizer: Any, *, ending: str = END) -> None:
        groups = tids.groups
        if not groups:
            raise InputError("no item has a textual identifier -> write them first (stage 05)")
        by_ids: dict[tuple[int, ...], tuple[tuple[str, ...], list[int]]] = {}
        behind, *rows = piece_ids(tokenizer, [ending, *map(listed, groups)])
        for ids, (terms, items) in zip(rows, groups.items(), strict=True):
            # A tokenizer that drops case or accents writes two TIDs alike: one leaf.
            by_ids.setdefault((*ids, *behind), (terms, []))[1].extend(items)
        self.prefix_ids, middles, self.suffix_ids = _without_common(list(by_ids))
        self.terms = [terms for terms, _ in by_ids.values()]
        self.items = [tuple(sorted(items)) for _, items in by_ids.values()]
        self.shared_items = sum(len(items) for items in self.items if len(items) > 1)
        self._middles = middles
        self.move_to("cpu")

    def move_to(self, device: Any) -> None:
        """Both tries where a model is, which a trainer moves behind the trie's back."""
        self.trie = TokenTrie(self._middles, device=device)
        self.told = TokenTrie(_told_apart(self._middles), device=device)

    def __len__(self) -> int:
        return len(self.terms)

    @property
    def longest(self) -> int:
        """Tokens of the longest answer."""
        return len(self.prefix_ids) + max(map(len, self._middles)) + len(self.suffix_ids)

    def answer(self, sequence: int, score: float) -> DecodedTid:
        """What a sequence of the trie stands for."""
        ids = (*self.prefix_ids, *self._middles[sequence], *self.suffix_ids)
        return DecodedTid(self.terms[sequence], self.items[sequence], score, ids)

    @cached_property
    def _branching(self) -> frozenset[tuple[int, ...]]:
        """Beginnings of `_middles` behind which more than one token may follow: where neighbours in order part."""
        ordered = sorted(self._middles)
        return frozenset(one[: len(commonprefix([one, other]))] for one, other in pairwise(ordered))

    def free(self, tid: DecodedTid) -> list[int]:
        """1 for each of `tid.ids` that was a choice, 0 where no other token could have stood."""
        front, back = len(self.prefix_ids), len(self.suffix_ids)
        middle = tid.ids[front : len(tid.ids) - back]
        chosen = [int(middle[:depth] in self._branching) for depth in range(len(middle))]
        return [0] * front + chosen + [0] * back

    def __str__(self) -> str:
        return f"{len(self)} TIDs of {sum(map(len, self.items))} items, {self.shared_items} of which share theirs"


def _without_common(
    rows: list[tuple[int, ...]],
) -> tuple[tuple[int, ...], list[tuple[int, ...]], tuple[int, ...]]:
    """(what all rows begin with, what lies between, what they end with); no row between begins another one."""
    if len(rows) == 1:
        return rows[0][:-1], [rows[0][-1:]], ()
    front = len(commonprefix(rows))
    room = min(map(len, rows)) - front - 1
    back = min(len(commonprefix([row[::-1] for row in rows])), room)
    while back and not prefix_free([row[front : len(row) - back] for row in rows]):
        back -= 1
    middles = [row[front : len(row) - back] for row in rows]
    return rows[0][:front], middles, rows[0][len(rows[0]) - back :]


def _told_apart(rows: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The shortest beginning of each row that no other row has; no row is the beginning of another one.

    >>> _told_apart([(1, 2, 3), (1, 4, 5), (6, 7)])
    [(1, 2), (1, 4), (6,)]
    """
    order = sorted(range(len(rows)), key=rows.__getitem__)
    alike = [0, *(len(commonprefix([rows[a], rows[b]])) for a, b in pairwise(order)), 0]
    needed = {row: 1 + max(alike[place : place + 2]) for place, row in enumerate(order)}
    return [ids[: needed[row]] for row, ids in enumerate(rows)]


def prefix_free(rows: Sequence[tuple[int, ...]]) -> bool:
    """Whether no row is the beginning of another; equal rows are."""
    ordered = sorted(rows)
    return all(after[: len(row)] != row for row, after in pairwise(ordered))


def decode_tids(
    model: Any,
    prompts: Sequence[Sequence[int]],
    trie: TidTrie,
    *,
    beams: int = 1,
    score_space: str = "trie",
    samples: int = 0,
    temperature: float = 1.0,
    seed: int = 0,
    keys: Sequence[int] | None = None,
    batch_size: int = 64,
) -> list[list[DecodedTid]]:
    """Per prompt (token ids) its `beams` best TIDs, distinct, fewer where the catalogue has fewer; 1 beam is greedy.

    score_space: trie - under what may follow, so that forced tokens cost and change nothing; full - under the whole vocabulary,
    as beam search of transformers ranks. With `samples` as many independent draws instead, from the model's distribution over what is legal at `temperature`;
    their score is the log-probability of being drawn. keys: an integer per prompt (default its number), which with the seed
    decides its draws, whatever is beside it in a batch. Raises InputError for an empty prompt, NumericError (exit 4) for scores that are not finite.
    """
    from infer.search.token_tree import draw_tokens, search_tokens

    if not all(prompts):
        raise InputError("empty prompt -> every prompt needs at least one token")
    keys = range(len(prompts)) if keys is None else keys
    if (device := next(model.parameters()).device) != trie.trie.device:
        trie.move_to(device)
    own_trie = trie.told if score_space == "trie" else trie.trie
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    found: list[list[DecodedTid]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = [[*prompts[row], *trie.prefix_ids] for row in rows]
        if samples:
            own = [keys[row] for row in rows]
            made = draw_tokens(model, batch, trie.told, samples, temperature=temperature, seed=seed, keys=own)
        else:
            made = search_tokens(model, batch, own_trie, beams, score_space, parity=PLAIN)
        for row, sequences, scores in zip(rows, made.rows_BK.tolist(), made.scores_BK.tolist(), strict=True):
            found[row] = [
                trie.answer(number, score)
                for number, score in zip(sequences, scores, strict=True)
                if number >= 0
            ]
    return found
