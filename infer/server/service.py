"""Requests to a running recommender: parsed strictly, answered by one engine, those that wait together.

    {"history": [3, 17], "k": 10, "allowed": {"category": "Tools"} | [item ids], "exclude_history": true}

Whatever comes in is hostile: sizes are bounded, unknown keys and wrong types are refused with a status and one line, and
no answer carries a traceback or a path.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from configs.program import InputError, NumericError
from infer.engine import Engine, Recommendation
from infer.search.prefixes import Prefixes
from infer.server.catalogue import ServedCatalogue
from infer.server.waiting import Turns

MAX_HISTORY = 1000
MAX_LABELS = 10
KEPT_LINES = 4096  # of semantic IDs as they are shown: the popular ones stand in most lists
FIELDS = ("history", "k", "allowed", "exclude_history")


class RequestError(Exception):
    """A request that is refused: an HTTP status and one line that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class RecommendRequest:
    """A valid request. allowed: item ids int64, ascending, or None for the whole catalogue."""

    history: tuple[int, ...]
    k: int
    allowed: np.ndarray | None
    exclude_history: bool

    @property
    def kind(self) -> Hashable:
        """What requests of one search have in common: the items they allow, and whether the history is left out."""
        return self.exclude_history, None if self.allowed is None else self.allowed.tobytes()


def parse_request(body: bytes, catalogue: ServedCatalogue, *, max_k: int) -> RecommendRequest:
    """The request in a JSON body; RequestError (400) naming the first thing that is wrong."""
    try:
        raw = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise RequestError(400, "the body is not JSON in UTF-8") from None
    if not isinstance(raw, dict):
        raise RequestError(400, "the body is not a JSON object")
    if unknown := [key for key in raw if key not in FIELDS]:
        raise RequestError(400, f"unknown key {_short(unknown[0])}: known are {', '.join(FIELDS)}")
    history = _item_ids(raw.get("history"), "history", len(catalogue))
    if len(history) > MAX_HISTORY:
        raise RequestError(400, f"history has {len(history)} items, more than {MAX_HISTORY}")
    k = raw.get("k", min(10, max_k))
    if not _is_int(k) or not 1 <= k <= max_k:
        raise RequestError(400, f"k must be a whole number in 1..{max_k}")
    exclude = raw.get("exclude_history", False)
    if not isinstance(exclude, bool):
        raise RequestError(400, "exclude_history must be true or false")
    return RecommendRequest(tuple(history), k, _allowed(raw.get("allowed"), catalogue), exclude)


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _allowed(raw: Any, catalogue: ServedCatalogue) -> np.ndarray | None:
    """Item ids of `allowed`: null, a list of item ids, or {"category": a label or a path of labels}."""
    if raw is None:
        return None
    if isinstance(raw, list):
        return np.unique(_item_ids(raw, "allowed", len(catalogue))).astype(np.int64)
    category = raw.get("category") if isinstance(raw, dict) and list(raw) == ["category"] else None
    labels = category if isinstance(category, list) else [category]
    if not labels or len(labels) > MAX_LABELS or not all(map(_is_text, labels)):
        raise RequestError(
            400, 'allowed must be null, a list of item ids, or {"category": a label or a path of labels}'
        )
    items = catalogue.of_category(category)
    if not len(items):
        raise RequestError(400, f"no item is of category {_short(category)}")
    return items


def _item_ids(raw: Any, name: str, num_items: int) -> list[int]:
    if not isinstance(raw, list) or not raw:
        raise RequestError(400, f"{name} must be a list of at least one item id")
    for item in raw:
        if not _is_int(item) or not 0 <= item < num_items:
            raise RequestError(
                400, f"{name} has {_short(item)}, which is no item id: they are 0..{num_items - 1}"
            )
    return raw


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    """A string that is not empty and has no lone surrogates (JSON may spell them, tables cannot hold them)."""
    return (
        isinstance(value, str) and bool(value) and value == value.encode("utf-8", "replace").decode("utf-8")
    )


def _short(value: Any) -> str:
    """A value of a request as it may stand in an error line."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


class Service:
    """One engine, asked by one search at a time: requests that wait meanwhile share the next one where they may."""

    def __init__(
        self,
        engine: Engine,
        catalogue: ServedCatalogue,
        *,
        name: str,
        max_waiting: int = 64,
        max_batch: int = 32,
    ) -> None:
        self.engine, self.catalogue, self.name = engine, catalogue, name
        self.prefixes = Prefixes(engine.sids)
        self.max_k = min(engine.settings.beams, len(engine.sids.sids_SL))
        self.max_waiting = max_waiting
        self._shown = lru_cache(KEPT_LINES)(self._show)
        self._turns, self._places = Turns(self._search, max_batch), threading.Semaphore(max_waiting)

    def facts(self) -> dict[str, Any]:
        """What the page needs to know before the first request."""
        settings = self.engine.settings
        return {
            "status": "ok",
            "model": self.name,
            "items": len(self.catalogue),
            "semantic_ids": len(self.engine.sids.sids_SL),
            "levels": list(self.engine.sids.sizes),
            "max_k": self.max_k,
            "beams": settings.beams,
            "score_space": settings.score_space,
        }

    def warm_up(self) -> None:
        """Build what the first request would otherwise wait for: trie, prefixes, categories.

        Whoever starts the server reads what is wrong with model or options, so errors keep their code and remedy.
        """
        request = RecommendRequest((0,), 1, None, False)
        for best in self._turns.ask(request, request.kind):
            self._place(1, best, ())
        _ = self.catalogue.categories

    def recommend(self, request: RecommendRequest) -> dict[str, Any]:
        """The answer to a valid request. RequestError: 400 nothing to recommend, 500 scores not finite, 503 too many wait."""
        if not self._places.acquire(blocking=False):
            raise RequestError(503, "too many requests are waiting: try again in a moment")
        start = time.perf_counter()
        try:
            found = self._turns.ask(request, request.kind)
        except InputError as error:
            raise RequestError(400, " ".join(str(error).split(" -> ")[0].split())) from error
        except NumericError as error:
            raise RequestError(500, "the model's scores are not finite") from error
        finally:
            self._places.release()
        seen = set(request.history)
        ranked = [self._place(rank, best, seen) for rank, best in enumerate(found, start=1)]
        return {
            "recommendations": ranked,
            "asked": request.k,
            "candidates": len(self.catalogue) if request.allowed is None else len(request.allowed),
            "seconds": round(time.perf_counter() - start, 4),
        }

    def _search(self, requests: Sequence[RecommendRequest]) -> list[list[Recommendation]]:
        """The lists of requests of one kind; a list is cut where a search with a smaller k would end."""
        first = requests[0]
        options = {} if first.allowed is None else {"allowed_items": first.allowed}
        found = self.engine.recommend(
            [request.history for request in requests],
            max(request.k for request in requests),
            exclude_history=first.exclude_history,
            **options,
        )
        return [best[: request.k] for best, request in zip(found, requests, strict=True)]

    def _place(self, rank: int, best: Any, seen: Collection[int]) -> dict[str, Any]:
        """One line of the list: items, score, and the semantic ID level by level."""
        path, cards = self._shown(best.codes, best.item_ids)
        return {
            "rank": rank,
            "score": round(best.score, 4),
            "codes": list(best.codes),
            "path": path,
            "items": [card | {"seen": card["item_id"] in seen} for card in cards],
        }

    def _show(self, codes: tuple[int, ...], item_ids: tuple[int, ...]) -> tuple[list[Any], list[Any]]:
        """(the way along `codes`, cards of the items), as JSON has them; of all lists that they are in, so nobody changes them."""
        path = [dict(vars(step)) for step in self.prefixes.path(codes)]
        return path, [self.catalogue.card(item) for item in item_ids]
