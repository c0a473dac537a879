"""Items by their titles: what a language model says of the next item in words, grounded in the catalogue.

    titles = Titles(items["title"].to_pylist(), engine.renderer)
    for found in decode_titles(model, prompts, titles, beams=50): ...      # a title of the catalogue, by a trie over all of them
    for found in nearest_titles(model, prompts, titles, beams=50): ...     # a title written freely, then those nearest to it

`decode_titles` is the search that D3 asks for (arXiv 2406.14900): the score of a title is the sum of the log-probabilities of its tokens
and of the end of the answer, not divided by its length, so that tokens which a title's beginning makes certain neither help nor
harm. D3's second part, a model without text that helps, multiplies probabilities: `infer.fuse --how product` of these predictions
and a sequential model. `nearest_titles` is BIGRec's grounding (arXiv 2308.08434): the written title and every title of the catalogue are
vectors of the model itself (the mean of its last hidden states over the title's tokens), and titles are ranked by their L2 distance.

Items of one title are one answer; items without a title are never one. Differs from BIGRec: a written title is the best of a greedy
decoding, and distances are not weighed by popularity.

Legend: B texts, T tokens, D dimensions, S different titles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from configs.program import InputError
from data.prompts import plain_texts
from data.renderer import Renderer
from data.tasks import Answer, Example
from infer.search.scoring import Parity
from infer.search.token_trie import TokenTrie
from infer.text.generate import TextSettings, generate_ids

TASK = "titles_to_title"
ASKED = ({"role": "user", "content": ""},)  # an answer to something, however it was asked
HOW = ("title", "written")


@dataclass(frozen=True)
class FoundTitle:
    """A title of the catalogue: its items, its score (a log-probability, or minus a distance), and what was written."""

    item_ids: tuple[int, ...]
    score: float
    text: str


class Titles:
    """The titles of a catalogue as the tokens in which an answer is written.

    titles: what may be shown of each item, "" for nothing. Fields: by_item (every item's title), texts (different titles), items (per title all items that have
    it), ids (their answer tokens), longest (most tokens of one), untitled (how many items have none). InputError for a catalogue without titles.
    """

    def __init__(self, titles: Sequence[str], renderer: Renderer) -> None:
        self.renderer = renderer
        self.by_item = plain_texts(titles)
        known: dict[str, list[int]] = {}
        for item, title in enumerate(self.by_item):
            known.setdefault(title, []).append(item)
        self.untitled = len(known.pop("", []))
        if not known:
            raise InputError("no item has a title -> answers sid")
        by_ids: dict[tuple[int, ...], tuple[str, list[int]]] = {}
        for title, items in known.items():
            # A tokenizer that drops case or accents writes two titles alike: one answer.
            ids = tuple(renderer.answer_ids(Example(0, TASK, ASKED, Answer(text=title))))
            by_ids.setdefault(ids, (title, []))[1].extend(items)
        self.ids = list(by_ids)
        self.longest = max(map(len, self.ids))
        self.texts = [title for title, _ in by_ids.values()]
        self.items = [tuple(sorted(items)) for _, items in by_ids.values()]
        self._vectors: tuple[Any, Any] | None = None

    def vectors(self, model: Any, *, batch_size: int) -> Any:
        """`title_vectors` of the catalogue, float32 [S, D]; made once for a model."""
        if self._vectors is None or self._vectors[0] is not model:
            self._vectors = model, title_vectors(model, self.ids, batch_size=batch_size)
        return self._vectors[1]

    def found(self, row: int, score: float, text: str | None = None) -> FoundTitle:
        """The title of a row as an answer."""
        return FoundTitle(self.items[row], score, self.texts[row] if text is None else text)


def decode_titles(
    model: Any, prompts: Sequence[Sequence[int]], titles: Titles, *, beams: int, batch_size: int = 32
) -> list[list[FoundTitle]]:
    """Per prompt (token ids) its `beams` best titles, best first, fewer where the catalogue has fewer."""
    from infer.search.token_tree import search_tokens

    trie = TokenTrie(titles.ids, device=next(model.parameters()).device)
    (end,) = titles.renderer.terminator_ids()
    made = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        found = search_tokens(
            model, batch, trie, beams, "full", parity=Parity(terminator=True), terminator_id=end
        )
        for rows, scores in zip(found.rows_BK.tolist(), found.scores_BK.tolist(), strict=True):
            made.append(
                [titles.found(row, score) for row, score in zip(rows, scores, strict=True) if row >= 0]
            )
    return made


def nearest_titles(
    model: Any, prompts: Sequence[Sequence[int]], titles: Titles, *, beams: int, batch_size: int = 32
) -> list[list[FoundTitle]]:
    """Per prompt the `beams` titles nearest to what the model writes, nearest first; `text` is what it wrote."""
    import torch

    settings = TextSettings(max_new_tokens=titles.longest + 1, batch_size=batch_size)
    ends = titles.renderer.terminator_ids()
    catalogue_SD = titles.vectors(model, batch_size=batch_size)
    made = []
    for start in range(0, len(prompts), batch_size):
        written = generate_ids(model, prompts[start : start + batch_size], settings, stop_ids=ends)
        ids = [one.ids or tuple(ends) for (one,) in written]
        distance_BS = torch.cdist(title_vectors(model, ids, batch_size=batch_size), catalogue_SD)
        nearest = distance_BS.topk(min(beams, distance_BS.shape[1]), largest=False)
        for row, (rows, distances) in enumerate(
            zip(nearest.indices.tolist(), nearest.values.tolist(), strict=True)
        ):
            text = titles.renderer.tokenizer.decode(ids[row], skip_special_tokens=True).strip()
            made.append(
                [titles.found(at, -distance, text) for at, distance in zip(rows, distances, strict=True)]
            )
    return made


def title_vectors(model: Any, ids: Sequence[Sequence[int]], *, batch_size: int) -> Any:
    """The mean of the last hidden states over the tokens of each text, float32 [B, D]."""
    import torch

    from infer.search.prompts import right_pad

    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(ids), batch_size):
        tokens_BT, length_B = right_pad([list(row) for row in ids[start : start + batch_size]], device=device)
        mask_BT = torch.arange(tokens_BT.shape[1], device=device) < length_B[:, None]
        with torch.no_grad():
            output = model(input_ids=tokens_BT, attention_mask=mask_BT.long(), output_hidden_states=True)
        hidden_BTD = output.hidden_states[-1].float() * mask_BT[..., None]
        parts.append(hidden_BTD.sum(1) / mask_BT.sum(1, keepdim=True))
    return torch.cat(parts)
